//! Where a statement would go, for operators: what its text means, with the database's own functions, and what routing
//! would decide now.

use crate::config::PoolMode;
use crate::pool::policy::{self, dbname};
use crate::route::hint::{self, Hints};
use crate::route::{Decision, Target};
use crate::session::misroute::shape;
use crate::sql::{Access, Control, FunctionTable, LexRules, Statement, Why, classify, why};
use crate::worker::{Shared, ToWorker};
use serde::Serialize;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the catalog of a database that nobody uses, and a worker's answer, are waited for.
const LIMIT: Duration = Duration::from_secs(5);

/// What a text means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Meaning {
    /// `read` or `write`.
    pub class: &'static str,
    /// What decided, as one snake_case word.
    pub decided_by: &'static str,
    /// The word, function or relation that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub word: Option<String>,
    /// The same as a sentence.
    pub because: String,
    /// The functions of the database were known.
    pub catalog: bool,
}

/// What a text means, and where it would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// What its text means.
    #[serde(flatten)]
    pub meaning: Meaning,
    /// `primary`, `standby`, `wait` or `nowhere`.
    pub target: &'static str,
    /// The standby.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why there, as one snake_case word: a label of `pgtenure_proxy_queries_total`.
    pub reason: &'static str,
    /// Why there, with the numbers.
    pub detail: String,
}

/// A statement, as a worker is asked where it would go.
#[derive(Debug)]
pub struct Asked {
    /// What it needs.
    pub access: Access,
    /// The number of its shape.
    pub shape: u64,
    /// The database, as clients name it.
    pub database: String,
    /// The user.
    pub user: String,
    /// What it says of itself in a comment, and what the others of its string say.
    pub hints: Vec<Hints>,
}

/// It could not be found out.
#[derive(Debug, thiserror::Error)]
#[error("the proxy did not answer within {} s", LIMIT.as_secs())]
pub struct ExplainError;

/// What a text means to a session with PostgreSQL's defaults, by itself.
pub fn meaning(sql: &[u8], functions: &FunctionTable) -> Meaning {
    meaning_in(None, sql, functions)
}

/// The same in a session of this mode; `None`: in any, and of what may hide in its database nothing is held against it.
fn meaning_in(mode: Option<PoolMode>, sql: &[u8], functions: &FunctionTable) -> Meaning {
    let statement = classify(sql, functions, LexRules::STANDARD);
    let class = access(mode, &statement);
    let (decided_by, word, because) = match why(sql, functions, LexRules::STANDARD) {
        Why::ProvenRead if class == Access::Write && statement.strange && statement.pins.is_empty() => {
            let because = match functions.is_loaded() {
                true => "functions of the database may leave something in any session, where no text shows them",
                false => "what it may leave in the session is not known without the database's catalog",
            };
            ("unseen", None, because.to_owned())
        }
        Why::ProvenRead if class == Access::Write => {
            let because = "it leaves something in the session that only one server has";
            ("session_state", None, because.to_owned())
        }
        Why::ProvenRead => ("proven_read", None, "every word is understood and none can write".to_owned()),
        Why::Verb(word) if class == Access::Read => {
            ("verb", Some(word), "the block is READ ONLY: a standby serves all of it".to_owned())
        }
        Why::Verb(word) if access(None, &statement) == Access::Read => {
            let because = "with pool_mode = \"session\" the session stays at the primary from its first block on";
            ("pool_mode", Some(word), because.to_owned())
        }
        Why::Verb(word) => ("verb", Some(word), "what begins so is not proven to read only".to_owned()),
        Why::Word(word) => ("word", Some(word), "it writes, locks rows or is about the server itself".to_owned()),
        Why::Function(name) => {
            let known = functions.volatility(name.as_bytes()).is_some();
            let because = match (functions.is_loaded(), known) {
                (true, true) => "the function is volatile, or means the server it runs on",
                (true, false) => "the database has no function of that name",
                (false, _) => "what the function does is not known without the database's catalog",
            };
            ("function", Some(name), because.to_owned())
        }
        Why::Setting(name) => {
            let because = "a standby answers that setting otherwise, or which one it is cannot be read from the text";
            ("setting", Some(name), because.to_owned())
        }
        Why::Local(name) => {
            let because = "what has that name must be used on the primary: it is unlogged, temporary, a sequence, or \
                           calls volatile functions";
            ("relation", Some(name), because.to_owned())
        }
        Why::Unreadable(at) => ("unreadable", None, format!("it cannot be read with certainty from byte {at} on")),
        Why::Incomplete => ("incomplete", None, "it is not a whole statement".to_owned()),
        Why::LexRules => ("lex_rules", None, "the session reads texts in another way".to_owned()),
        Why::Hidden => ("hidden", None, "a volatile function hides where no text shows it".to_owned()),
    };
    let class = match class {
        Access::Read => "read",
        Access::Write => "write",
    };
    Meaning { class, decided_by, word, because, catalog: functions.is_loaded() }
}

/// What a statement needs that begins a transaction, of a session with PostgreSQL's defaults and of this mode; `None`: of any.
fn access(mode: Option<PoolMode>, statement: &Statement) -> Access {
    match statement.control {
        Control::None | Control::Empty if mode.is_some() && statement.strange => Access::Write,
        Control::None | Control::Empty if statement.pins.is_empty() => statement.access,
        Control::Begin(modes) if mode != Some(PoolMode::Session) && modes.suit_standby(|_| None) => Access::Read,
        _ => Access::Write,
    }
}

pub(crate) async fn explain(
    shared: &Shared,
    database: &str,
    user: &str,
    sql: &[u8],
) -> Result<Explained, ExplainError> {
    let (at_servers, mode) = {
        let pools = &shared.config.borrow().pools;
        (dbname(pools, database).to_owned(), policy::mode(pools, database, user))
    };
    let mut table = shared.catalogs.table(&at_servers);
    // One that cannot be read is what a session would meet: any statement may leave something there then.
    let _ = tokio::time::timeout(LIMIT, table.wait_for(|table| !table.is_awaited())).await;
    let table = table.borrow().clone();
    let (statement, mut hints) = (classify(sql, &table, LexRules::STANDARD), hint::of_each(sql));
    if matches!(statement.control, Control::Begin(_)) {
        // What comes behind a BEGIN is in its block.
        hints.truncate(1);
    }
    let asked = Asked {
        access: access(Some(mode), &statement),
        shape: shape(&at_servers, sql),
        database: database.to_owned(),
        user: user.to_owned(),
        hints,
    };
    let (reply, answer) = oneshot::channel();
    let asked = async {
        shared.peers.first()?.send(ToWorker::Explain { asked, reply }).await.ok()?;
        answer.await.ok()
    };
    let decision = tokio::time::timeout(LIMIT, asked).await.ok().flatten().ok_or(ExplainError)?;
    Ok(shown(meaning_in(Some(mode), sql, &table), decision))
}

fn shown(meaning: Meaning, decision: Decision) -> Explained {
    let (target, node) = match &decision.target {
        Target::Primary => ("primary", None),
        Target::Standby(node) => ("standby", Some(node.to_string())),
        Target::Wait(_) => ("wait", None),
        Target::Nowhere => ("nowhere", None),
    };
    Explained { meaning, target, node, reason: decision.reason.as_str(), detail: decision.reason.to_string() }
}
