//! The manager's routes, for the process's admin HTTP to mount. Knows nothing of HTTP but methods, paths and statuses.
//!
//! | method and path | body or query | answer |
//! |---|---|---|
//! | `GET /status` | | [`Status`]; on a manager that does not lead, 307 unless `local=1` |
//! | `GET /lag` | | replay lag per standby by the agents' reports |
//! | `GET /history` | | `{"history": [journal…], "losses": [{"term", "commits", "whole"}…]}`, oldest first; what was lost of the newest 32 |
//! | `GET /report` | `term=N`, default the newest | `{"journal": …, "reports": [loss report…], "doubts": [what a proxy found out…]}`; without `term` also `"losses"`, as above, of the other terms that lost anything |
//! | `POST /ops/switchover` | `{to?, expect_term?, by?}` | done, refused or failed |
//! | `POST /ops/failover` | `{to?, expect_term?, allow_data_loss?, by?}` | done, refused or failed |
//! | `POST /ops/fence` | `{node, stop_writes?, by?}` | done, refused or failed |
//! | `POST /ops/unfence` | `{node}` | done, refused or failed |
//! | `POST /ops/pause` | `{by?, why?, seconds?}` | done, refused or failed |
//! | `POST /ops/resume` | | done, refused or failed |
//! | `POST /ops/maintenance` | `{node, on, stop_writes?, by?, why?, seconds?}` | done, refused or failed |
//! | `POST /ops/remove` | `{node, by?}` | done, refused or failed |
//! | `POST /ops/policy` | `{mode?, voters?, k?, max_loss_bytes?, max_seconds?, expect_epoch?}` | done, refused or failed |
//! | `GET /policy/history` | | `{"history": [policy…]}`, oldest first |
//!
//! Done is 200 `{"done", "term", "node", "journal"}`; refused 409 `{"error", "blockers"}`; failed 503 `{"error",
//! "journal"}`; not leading 307 `{"error", "leader"}`; a request that cannot be understood 400 `{"error"}`. The caller
//! checks the shared secret of a POST.

use crate::fsm::action::{Answer, Operation, PolicyChange};
use crate::fsm::blocker::list;
use crate::fsm::status::Status;
use crate::manager::{Request, reports_of};
use crate::record::{DoubtsRecord, JournalRecord, LossReport, Mode, PolicyRecord};
use crate::store::{Range, Snapshot, Store, StoreError};
use cluster::keys::Keys;
use cluster::{NodeId, Term};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// The routes of one manager. Clones are the same.
#[derive(Clone)]
pub struct ManagerRoutes {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Arc<Status>>,
    store: Arc<dyn Store>,
    keys: Keys,
}

impl fmt::Debug for ManagerRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerRoutes").finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SwitchoverBody {
    to: Option<NodeId>,
    expect_term: Option<Term>,
    by: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FailoverBody {
    to: Option<NodeId>,
    expect_term: Option<Term>,
    allow_data_loss: bool,
    by: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FenceBody {
    node: NodeId,
    #[serde(default)]
    stop_writes: bool,
    #[serde(default)]
    by: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnfenceBody {
    node: NodeId,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PauseBody {
    by: String,
    why: String,
    seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveBody {
    node: NodeId,
    #[serde(default)]
    by: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MaintenanceBody {
    node: NodeId,
    on: bool,
    #[serde(default)]
    stop_writes: bool,
    #[serde(default)]
    by: String,
    #[serde(default)]
    why: String,
    #[serde(default)]
    seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResumeBody {}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyBody {
    mode: Option<Mode>,
    max_loss_bytes: Option<u64>,
    max_seconds: Option<u64>,
    voters: Option<Vec<NodeId>>,
    k: Option<u32>,
    expect_epoch: Option<u64>,
}

type Reply = (u16, Value);

/// What a change of primary lost, in short.
#[derive(Debug, Serialize, Deserialize)]
pub struct Loss {
    /// The term that began.
    pub term: Term,
    /// Commits found in WAL that it has not; at least so many where not all could be read.
    pub commits: u64,
    /// All of that WAL could be read.
    pub whole: bool,
}

/// Losses of so many changes are told.
const LOSSES_OF: usize = 32;

impl ManagerRoutes {
    pub(crate) fn new(
        requests: mpsc::Sender<Request>,
        status: watch::Receiver<Arc<Status>>,
        store: Arc<dyn Store>,
        keys: Keys,
    ) -> Self {
        Self { requests, status, store, keys }
    }

    /// Answer a request with an HTTP status and JSON; `None` when the route is not the manager's. An order is answered
    /// when it is done, refused or failed, at the latest after `manager.operation_timeout` and what is left of the
    /// step under way.
    pub async fn handle(&self, method: &str, path: &str, query: &str, body: &[u8]) -> Option<Reply> {
        Some(match (method, path) {
            ("GET", "/status") => self.status(query),
            ("GET", "/lag") => self.lag(),
            ("GET", "/history") => self.history().await,
            ("GET", "/policy/history") => self.policies().await,
            ("GET", "/report") => self.report(query).await,
            ("POST", "/ops/switchover") => {
                self.order(optional::<SwitchoverBody>(body).map(|b| Operation::Switchover {
                    to: b.to,
                    expect_term: b.expect_term,
                    by: name(&b.by),
                }))
                .await
            }
            ("POST", "/ops/failover") => {
                self.order(optional::<FailoverBody>(body).map(|b| Operation::Failover {
                    to: b.to,
                    expect_term: b.expect_term,
                    allow_data_loss: b.allow_data_loss,
                    by: name(&b.by),
                }))
                .await
            }
            ("POST", "/ops/fence") => {
                self.order(required::<FenceBody>(body).map(|b| Operation::Fence {
                    node: b.node,
                    stop_writes: b.stop_writes,
                    by: name(&b.by),
                }))
                .await
            }
            ("POST", "/ops/unfence") => {
                self.order(required::<UnfenceBody>(body).map(|b| Operation::Unfence { node: b.node })).await
            }
            ("POST", "/ops/pause") => self.order(optional::<PauseBody>(body).and_then(pause)).await,
            ("POST", "/ops/resume") => self.order(optional::<ResumeBody>(body).map(|_| Operation::Resume)).await,
            ("POST", "/ops/maintenance") => self.order(required::<MaintenanceBody>(body).and_then(maintenance)).await,
            ("POST", "/ops/remove") => {
                let remove = |b: RemoveBody| Operation::RemoveNode { node: b.node, by: name(&b.by) };
                self.order(required::<RemoveBody>(body).map(remove)).await
            }
            ("POST", "/ops/policy") => self.order(optional::<PolicyBody>(body).and_then(policy)).await,
            _ => return None, // another part's route, or nobody's
        })
    }

    fn status(&self, query: &str) -> Reply {
        let status = self.status.borrow().clone();
        if !status.leading && parameter(query, "local") != Some("1") {
            return not_leading(&status);
        }
        (200, value(&*status))
    }

    fn lag(&self) -> Reply {
        let status = self.status.borrow().clone();
        if !status.leading {
            return not_leading(&status);
        }
        let primary = status.nodes.iter().find(|n| status.primary.as_ref() == Some(&n.node));
        let standbys = status.nodes.iter().filter(|n| status.primary.as_ref() != Some(&n.node)).map(|n| {
            let unknown = (n.replay_lag_ms.is_none() || n.streams_from.is_none()).then(|| n.state.clone());
            json!({
                "node": n.node, "replay_lsn": n.replay_lsn, "receive_lsn": n.receive_lsn,
                "replay_lag_bytes": n.replay_lag_bytes, "replay_lag_ms": n.replay_lag_ms,
                "sample_age_ms": n.silent_ms, "unknown": unknown,
            })
        });
        let standbys: Vec<Value> = standbys.collect();
        let primary = primary.map(|p| json!({ "node": p.node, "insert_lsn": p.receive_lsn }));
        (200, json!({ "term": status.term, "primary": primary, "standbys": standbys }))
    }

    async fn history(&self) -> Reply {
        match self.store.read(vec![Range::Prefix(self.keys.journals())]).await {
            Ok(found) => {
                let journals: Vec<JournalRecord> = understood(&found, &self.keys.journals());
                match self.losses(&journals).await {
                    Ok(losses) => (200, json!({ "history": journals, "losses": losses })),
                    Err(error) => unread(&error),
                }
            }
            Err(error) => unread(&error),
        }
    }

    /// What the newest changes have lost, of those whose old primary's WAL was read.
    async fn losses(&self, journals: &[JournalRecord]) -> Result<Vec<Loss>, StoreError> {
        let newest = journals.len().saturating_sub(LOSSES_OF);
        let terms: Vec<Term> = journals[newest..].iter().map(|j| j.term).collect();
        let mut losses: Vec<Loss> = Vec::new();
        for report in reports_of(&*self.store, &self.keys, &terms).await? {
            let (commits, whole) = (report.at_least(), report.unread_to.is_none());
            match losses.last_mut().filter(|l| l.term == report.term) {
                // Several nodes may have the same commits.
                Some(loss) => (loss.commits, loss.whole) = (loss.commits.max(commits), loss.whole && whole),
                None => losses.push(Loss { term: report.term, commits, whole }),
            }
        }
        Ok(losses)
    }

    async fn policies(&self) -> Reply {
        match self.store.read(vec![Range::Prefix(self.keys.policy_log())]).await {
            Ok(found) => {
                let policies: Vec<PolicyRecord> = understood(&found, &self.keys.policy_log());
                (200, json!({ "history": policies }))
            }
            Err(error) => unread(&error),
        }
    }

    async fn report(&self, query: &str) -> Reply {
        let term = match parameter(query, "term").map(str::parse) {
            None => None,
            Some(Ok(term)) => Some(Term(term)),
            Some(Err(_)) => return (400, json!({ "error": "term is not a number" })),
        };
        let read = async |prefixes: Vec<String>| {
            let found = self.store.read(prefixes.into_iter().map(Range::Prefix).collect()).await;
            found.map_err(|error| unread(&error))
        };
        let found = match read(vec![self.keys.journals()]).await {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let journals: Vec<JournalRecord> = understood(&found, &self.keys.journals());
        let journal = match term {
            Some(term) => journals.iter().find(|j| j.term == term),
            None => journals.last(),
        };
        let Some(journal) = journal else {
            let which =
                term.map_or_else(|| "no change of primary yet".to_owned(), |t| format!("no journal of term {t}"));
            return (404, json!({ "error": which }));
        };
        // Of this term only: a report lists up to a thousand commits, and etcd's answers have a limit.
        let of_reports = self.keys.reports_of(journal.term);
        let of_doubts = journal.ended().map(|ended| self.keys.doubts_of(ended));
        let found = match read([of_reports.clone()].into_iter().chain(of_doubts.clone()).collect()).await {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let reports: Vec<LossReport> = understood(&found, &of_reports);
        let doubts: Vec<DoubtsRecord> = of_doubts.map_or_else(Vec::new, |prefix| understood(&found, &prefix));
        let mut answer = json!({ "journal": journal, "reports": reports, "doubts": doubts });
        if term.is_none() {
            // Who asks for the newest because something was lost may be after another's.
            match self.losses(&journals).await {
                Ok(mut losses) => {
                    losses.retain(|l| l.term != journal.term && l.commits > 0);
                    answer["losses"] = value(&losses);
                }
                Err(error) => return unread(&error),
            }
        }
        (200, answer)
    }

    async fn order(&self, operation: Result<Operation, String>) -> Reply {
        let operation = match operation {
            Ok(operation) => operation,
            Err(why) => return (400, json!({ "error": why })),
        };
        let status = self.status.borrow().clone();
        if !status.leading {
            return not_leading(&status);
        }
        let (answer, answered) = oneshot::channel();
        if self.requests.try_send(Request { operation, answer }).is_err() {
            return (503, json!({ "error": "too many requests wait for the manager" }));
        }
        match answered.await {
            Ok(Answer::Done { term, node, note, journal }) => {
                (200, json!({ "done": note, "term": term, "node": node, "journal": journal }))
            }
            Ok(Answer::Refused(blockers)) => (409, json!({ "error": list(&blockers), "blockers": blockers })),
            Ok(Answer::Failed { why, journal }) => (503, json!({ "error": why, "journal": journal })),
            Err(_) => (503, json!({ "error": "the manager is being stopped" })),
        }
    }
}

/// Longest time for which commits may go unprotected, seconds: a year.
const LONGEST_GRACE: u64 = 365 * 86_400;

/// Longest pause that ends by itself, seconds: thirty days.
const LONGEST_PAUSE: u64 = 30 * 86_400;

fn policy(body: PolicyBody) -> Result<Operation, String> {
    if let Some(s) = body.max_seconds.filter(|s| !(1..=LONGEST_GRACE).contains(s)) {
        return Err(format!("max_seconds = {s}: must be from 1 to {LONGEST_GRACE}"));
    }
    Ok(Operation::SetPolicy(PolicyChange {
        mode: body.mode,
        voters: body.voters,
        k: body.k,
        max_loss_bytes: body.max_loss_bytes,
        max_time: body.max_seconds.map(Duration::from_secs),
        expect_epoch: body.expect_epoch,
    }))
}

fn pause(body: PauseBody) -> Result<Operation, String> {
    Ok(Operation::Pause { by: name(&body.by), why: words(&body.why), length: length(body.seconds)? })
}

fn maintenance(body: MaintenanceBody) -> Result<Operation, String> {
    let node = body.node;
    if !body.on {
        return Ok(Operation::EndMaintenance { node });
    }
    let (by, why, length) = (name(&body.by), words(&body.why), length(body.seconds)?);
    Ok(Operation::BeginMaintenance { node, stop_writes: body.stop_writes, by, why, length })
}

/// How long a pause or a maintenance holds.
fn length(seconds: Option<u64>) -> Result<Option<Duration>, String> {
    match seconds {
        Some(s) if !(1..=LONGEST_PAUSE).contains(&s) => {
            Err(format!("seconds = {s}: must be from 1 to {LONGEST_PAUSE}"))
        }
        seconds => Ok(seconds.map(Duration::from_secs)),
    }
}

/// An operator's words, within bounds.
fn words(why: &str) -> String {
    why.chars().take(200).collect()
}

/// Who asks, as far as they say.
fn name(by: &str) -> String {
    if by.is_empty() { "an operator".to_owned() } else { by.chars().take(200).collect() }
}

fn unread(error: &StoreError) -> Reply {
    (503, json!({ "error": error.to_string() }))
}

fn not_leading(status: &Status) -> Reply {
    let error = match &status.leader {
        Some(leader) => format!("manager {} at {} leads", leader.id, leader.admin),
        None => "no manager leads just now".to_owned(),
    };
    (307, json!({ "error": error, "leader": status.leader }))
}

fn value<T: serde::Serialize>(of: &T) -> Value {
    serde_json::to_value(of).expect("plain structs serialise")
}

fn optional<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, String> {
    if body.iter().all(u8::is_ascii_whitespace) { Ok(T::default()) } else { required(body) }
}

fn required<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| format!("the request cannot be understood: {e}"))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|p| p.split_once('=')).find(|(k, _)| *k == name).map(|(_, v)| v)
}

/// The records below `prefix` that can be understood, ordered by key.
fn understood<T: DeserializeOwned>(found: &Snapshot, prefix: &str) -> Vec<T> {
    found.under(prefix).filter_map(|v| serde_json::from_slice(&v.value).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_name() {
        assert_eq!(parameter("a=1&term=7", "term"), Some("7"));
        assert_eq!(parameter("terms=7", "term"), None);
    }

    #[test]
    fn bodies_are_strict_and_may_be_empty_where_nothing_is_required() {
        assert!(optional::<SwitchoverBody>(b" \n").is_ok());
        assert!(optional::<FailoverBody>(br#"{"allow_data_los": true}"#).is_err());
        assert!(required::<UnfenceBody>(b"").is_err());
        assert!(required::<FenceBody>(br#"{"node": "n1"}"#).is_ok_and(|b| !b.stop_writes));
    }
}
