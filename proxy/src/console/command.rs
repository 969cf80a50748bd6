//! The console's language: which command a text is, and what to say when it is none.
//!
//! Names and their meaning are PgBouncer's. What drivers send on their own, before anybody has typed anything, is
//! understood as well.

mod tokens;

use crate::pool::doors::{Order, Scope};
use tokens::{Token, tokens};

/// What a stopping process waits for, within its own bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For running transactions.
    Servers,
    /// For all clients to leave.
    Clients,
    /// For nothing.
    Nothing,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `SHOW` something.
    Show(Show),
    /// `SHOW` a setting that drivers ask for: its name and value.
    Setting(&'static str, &'static str),
    /// `SELECT 1`, by which drivers and health checks find out whether a connection lives.
    One,
    /// `SELECT version()`.
    Version,
    /// An order about databases.
    Order(Order, Scope),
    /// `KILL_CLIENT` with the `id` of `SHOW CLIENTS`.
    KillClient(u32),
    /// `WAIT_CLOSE`: wait until no server connection is left that is to be closed when it is free.
    WaitClose(Scope),
    /// `RELOAD`
    Reload,
    /// `SHUTDOWN`
    Shutdown(Wait),
    /// What drivers say for order's sake: answered with this tag, without effect.
    Ignored(&'static str),
}

/// What `SHOW` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the table of that name")]
pub enum Show {
    Clients,
    Config,
    Databases,
    Help,
    Lag,
    Lists,
    Mem,
    Pins,
    Pools,
    Prepared,
    Servers,
    Sockets,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Throttle,
    Topology,
    Totals,
    Users,
    Version,
}

/// Every table, by its name.
pub const SHOWS: [(&str, Show); 21] = [
    ("CLIENTS", Show::Clients),
    ("CONFIG", Show::Config),
    ("DATABASES", Show::Databases),
    ("HELP", Show::Help),
    ("LAG", Show::Lag),
    ("LISTS", Show::Lists),
    ("MEM", Show::Mem),
    ("PINS", Show::Pins),
    ("POOLS", Show::Pools),
    ("PREPARED", Show::Prepared),
    ("SERVERS", Show::Servers),
    ("SOCKETS", Show::Sockets),
    ("STATE", Show::State),
    ("STATS", Show::Stats),
    ("STATS_AVERAGES", Show::StatsAverages),
    ("STATS_TOTALS", Show::StatsTotals),
    ("THROTTLE", Show::Throttle),
    ("TOPOLOGY", Show::Topology),
    ("TOTALS", Show::Totals),
    ("USERS", Show::Users),
    ("VERSION", Show::Version),
];

/// Tables of PgBouncer's about what is otherwise here.
const NOT_HERE: [&str; 5] = ["FDS", "DNS_HOSTS", "DNS_ZONES", "PEERS", "PEER_POOLS"];

const VERBS: [&str; 13] = [
    "WAIT_CLOSE",
    "SHOW",
    "PAUSE",
    "RESUME",
    "RECONNECT",
    "KILL",
    "KILL_CLIENT",
    "DISABLE",
    "ENABLE",
    "RELOAD",
    "SHUTDOWN",
    "SET",
    "SELECT",
];

/// Settings that drivers ask for, with values that suit every answer of the console.
const SETTINGS: [(&str, &str); 11] = [
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("integer_datetimes", "on"),
    ("search_path", "\"$user\", public"),
    ("standard_conforming_strings", "on"),
    ("timezone", "UTC"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
];

/// Further settings that drivers make; like those above they have no effect here.
const SET_IGNORED: [&str; 9] = [
    "bytea_output",
    "client_min_messages",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "names",
    "statement_timeout",
    "session",
];

/// A text that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// No such command, table, or form of it.
    #[error("invalid command \"{text}\"")]
    Unknown {
        /// What was typed, shortened.
        text: String,
        /// The nearest valid name.
        nearest: Option<String>,
    },
    /// An argument is missing or of the wrong kind.
    #[error("{verb} needs {what}")]
    Argument {
        /// The command.
        verb: &'static str,
        /// What it needs.
        what: &'static str,
    },
    /// PgBouncer has it and we do not.
    #[error("{verb} is not supported by this proxy")]
    Unsupported {
        /// The command.
        verb: String,
    },
    /// Settings come from the configuration file only.
    #[error("parameter \"{key}\" cannot be changed at the console")]
    Set {
        /// The setting.
        key: String,
    },
}

/// The commands of a text, in order. Empty ones are left out.
///
/// # Errors
/// The first that is none.
pub fn parse(text: &str) -> Result<Vec<Command>, BadCommand> {
    let tokens = tokens(text);
    let parts = tokens.split(|t| *t == Token::Symbol(';'));
    parts.filter(|part| !part.is_empty()).map(|part| command(part, text)).collect()
}

fn command(tokens: &[Token], text: &str) -> Result<Command, BadCommand> {
    let unknown = |nearest: Option<String>| BadCommand::Unknown { text: shortened(text), nearest };
    let Some(Token::Word(verb)) = tokens.first() else { return Err(unknown(None)) };
    let rest = &tokens[1..];
    let verb = verb.to_ascii_uppercase();
    let scope = || match rest {
        [] => Ok(Scope::All),
        [name] => name.word().map(|n| Scope::Database(n.to_owned())).ok_or_else(|| unknown(None)),
        _ => Err(unknown(None)),
    };
    let bare = |command| if rest.is_empty() { Ok(command) } else { Err(unknown(None)) };
    match verb.as_str() {
        "SHOW" => show(rest, &unknown),
        "SELECT" => select(rest, &unknown),
        "PAUSE" => Ok(Command::Order(Order::Pause, scope()?)),
        "RESUME" => Ok(Command::Order(Order::Resume, scope()?)),
        "RECONNECT" => Ok(Command::Order(Order::Reconnect, scope()?)),
        "KILL" => Ok(Command::Order(Order::Kill, scope()?)),
        "DISABLE" | "ENABLE" => {
            let (verb, order) = if verb == "DISABLE" { ("DISABLE", Order::Disable) } else { ("ENABLE", Order::Enable) };
            match scope()? {
                Scope::All => Err(BadCommand::Argument { verb, what: "the name of a database" }),
                database @ Scope::Database(_) => Ok(Command::Order(order, database)),
            }
        }
        "KILL_CLIENT" => {
            let id = if let [id] = rest { id.word().and_then(|id| id.parse().ok()) } else { None };
            let what = "the id of a client, as SHOW CLIENTS has it";
            id.map(Command::KillClient).ok_or(BadCommand::Argument { verb: "KILL_CLIENT", what })
        }
        "RELOAD" => bare(Command::Reload),
        "SHUTDOWN" => match rest {
            [] => Ok(Command::Shutdown(Wait::Nothing)),
            [wait] if wait.is("WAIT_FOR_SERVERS") => Ok(Command::Shutdown(Wait::Servers)),
            [wait] if wait.is("WAIT_FOR_CLIENTS") => Ok(Command::Shutdown(Wait::Clients)),
            _ => Err(BadCommand::Argument { verb: "SHUTDOWN", what: "nothing, WAIT_FOR_SERVERS or WAIT_FOR_CLIENTS" }),
        },
        "SET" => set(rest, &unknown),
        "WAIT_CLOSE" => Ok(Command::WaitClose(scope()?)),
        // A restart is `pgtenure run --takeover` here, which stops nobody.
        "SUSPEND" => Err(BadCommand::Unsupported { verb }),
        "BEGIN" | "START" => Ok(Command::Ignored("BEGIN")),
        "COMMIT" | "END" => Ok(Command::Ignored("COMMIT")),
        "ROLLBACK" | "ABORT" => Ok(Command::Ignored("ROLLBACK")),
        "RESET" => Ok(Command::Ignored("RESET")),
        "DISCARD" => Ok(Command::Ignored("DISCARD ALL")),
        "DEALLOCATE" => Ok(Command::Ignored("DEALLOCATE")),
        "CLOSE" => Ok(Command::Ignored("CLOSE CURSOR")),
        "UNLISTEN" => Ok(Command::Ignored("UNLISTEN")),
        other => Err(unknown(nearest(other, VERBS.into_iter()).map(str::to_owned))),
    }
}

fn show(rest: &[Token], unknown: &dyn Fn(Option<String>) -> BadCommand) -> Result<Command, BadCommand> {
    // What JDBC asks: SHOW TRANSACTION ISOLATION LEVEL.
    if let [a, b, ..] = rest
        && a.is("TRANSACTION")
        && b.is("ISOLATION")
    {
        return Ok(Command::Setting("transaction_isolation", "read committed"));
    }
    let [Token::Word(name)] = rest else {
        return Err(if rest.is_empty() {
            BadCommand::Argument { verb: "SHOW", what: "the name of a table; SHOW HELP lists them" }
        } else {
            unknown(None)
        });
    };
    if let Some((_, show)) = SHOWS.iter().find(|(n, _)| name.eq_ignore_ascii_case(n)) {
        return Ok(Command::Show(*show));
    }
    // The same here: nothing but what is at work holds a socket for long.
    if name.eq_ignore_ascii_case("ACTIVE_SOCKETS") {
        return Ok(Command::Show(Show::Sockets));
    }
    if let Some(theirs) = NOT_HERE.iter().find(|n| name.eq_ignore_ascii_case(n)) {
        return Err(BadCommand::Unsupported { verb: format!("SHOW {theirs}") });
    }
    if let Some((name, value)) = SETTINGS.iter().find(|(n, _)| name.eq_ignore_ascii_case(n)) {
        return Ok(Command::Setting(name, value));
    }
    let close = nearest(&name.to_ascii_uppercase(), SHOWS.iter().map(|(n, _)| *n));
    Err(unknown(close.map(|n| format!("SHOW {n}"))))
}

fn select(rest: &[Token], unknown: &dyn Fn(Option<String>) -> BadCommand) -> Result<Command, BadCommand> {
    match rest {
        [one] if one.is("1") => Ok(Command::One),
        [name, Token::Symbol('('), Token::Symbol(')')] if name.is("VERSION") => Ok(Command::Version),
        [name, Token::Symbol('('), ..] if name.is("pg_advisory_unlock_all") => Ok(Command::One),
        // As in PgBouncer, where drivers that know only SELECT can be used.
        [Token::Word(_)] => show(rest, unknown),
        _ => Err(unknown(None)),
    }
}

fn set(rest: &[Token], unknown: &dyn Fn(Option<String>) -> BadCommand) -> Result<Command, BadCommand> {
    let rest = match rest.first() {
        Some(word) if (word.is("SESSION") || word.is("LOCAL")) && rest.len() > 2 => &rest[1..],
        _ => rest,
    };
    let Some(Token::Word(key)) = rest.first() else { return Err(unknown(None)) };
    if rest.len() < 2 {
        return Err(BadCommand::Argument { verb: "SET", what: "a name and a value" });
    }
    let known = SETTINGS.iter().map(|(name, _)| *name).chain(SET_IGNORED);
    // SET TIME ZONE, SET TRANSACTION and SET [SESSION] CHARACTERISTICS have forms of their own.
    let forms = ["time", "transaction", "characteristics"];
    if known.chain(forms).any(|name| key.eq_ignore_ascii_case(name)) {
        return Ok(Command::Ignored("SET"));
    }
    Err(BadCommand::Set { key: key.clone() })
}

fn shortened(text: &str) -> String {
    let line: String = text.trim().trim_end_matches(';').chars().take(60).collect();
    line.replace(['\n', '\r', '\t'], " ")
}

/// The name that is fewest edits away, when that is few enough for a slip of the fingers.
fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed: String = typed.chars().take(32).collect();
    let best = names.map(|name| (distance(&typed, name), name)).min()?;
    (best.0 <= 1 + typed.chars().count() / 4).then_some(best.1)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
