//! Performs the planner's actions: commands to agents, transactions on the records. Each gives back exactly one input.

use crate::fsm::action::{
    Change, ChangeKind, ChangeOutcome, Command, CommandError, Guard, Input, RecordKey, RecordPut, Reply,
};
use crate::manager::client;
use crate::metrics::Metrics;
use crate::store::{Compare, LeaseId, Put, Store, StoreError, Txn};
use cluster::keys::Keys;
use cluster::secret::Secret;
use cluster::{Endpoint, NodeId};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// Policies kept in the log.
const POLICIES: u64 = 200;

/// What actions are performed with.
#[derive(Clone, Debug)]
pub(super) struct Performer {
    pub(super) keys: Keys,
    pub(super) secret: Secret,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) metrics: Metrics,
    /// Time for the network and the agent's own work around a command.
    pub(super) agent_timeout: Duration,
    /// This manager's id.
    pub(super) id: Arc<str>,
}

impl Performer {
    /// Order a command of the agent at `endpoint` and tell the planner its answer.
    pub(super) async fn order(self, node: NodeId, endpoint: Option<Endpoint>, command: Command, within: Duration) {
        let (kind, term) = (command.kind(), command.term());
        debug!(%node, term = term.0, command = kind.as_str(), "ordering");
        let result = match endpoint {
            Some(endpoint) => client::order(endpoint, self.secret, &command, within + self.agent_timeout).await,
            None => Err(CommandError::Unreachable("its address is not known".into())),
        };
        log_answer(&node, term.0, &command, &result);
        let input = Input::Answered { node, term, kind, result: Box::new(result) };
        // Only a manager that is being stopped does not listen any more.
        let _ = self.inputs.send(input).await;
    }

    /// Try a transaction and tell the planner its outcome.
    pub(super) async fn change(self, store: Arc<dyn Store>, change: Change) {
        let made = match self.lease(&*store, &change).await {
            Ok(lease) => store.txn(self.txn(&change, lease)).await,
            // Whatever became of the lease, nothing is bound to it.
            Err(error) => Err(StoreError::Unavailable { what: "granting a lease", why: error.to_string() }),
        };
        let outcome = match made {
            Ok(done) if done.succeeded => ChangeOutcome::Done(done.revision),
            Ok(_) => ChangeOutcome::Lost,
            Err(error) => {
                self.metrics.store_error(&error);
                match error {
                    StoreError::Indeterminate { .. } => ChangeOutcome::Unknown(error.to_string()),
                    StoreError::Unavailable { .. } | StoreError::LeaseLost { .. } | StoreError::Refused { .. } => {
                        ChangeOutcome::NotMade(error.to_string())
                    }
                }
            }
        };
        log_outcome(&change, &outcome);
        let _ = self.inputs.send(Input::Changed { id: change.id, outcome }).await;
    }

    /// The lease that a record of limited life is bound to. One that is then not used runs out by itself.
    async fn lease(&self, store: &dyn Store, change: &Change) -> Result<Option<LeaseId>, StoreError> {
        let ttl = change.puts.iter().find_map(|p| match p {
            RecordPut::Pause(_, length) | RecordPut::Maintenance(_, _, length) => *length,
            RecordPut::Spent(_, length) | RecordPut::Grace(length) => Some(*length),
            RecordPut::Term(_) | RecordPut::Policy(_) | RecordPut::Journal(_) | RecordPut::Fence(..) => None,
        });
        match ttl {
            Some(ttl) => store.grant(ttl).await.map(|granted| Some(granted.lease)),
            None => Ok(None),
        }
    }

    fn txn(&self, change: &Change, lease: Option<LeaseId>) -> Txn {
        let keys = &self.keys;
        let mut txn = Txn::new();
        for guard in &change.guards {
            txn = txn.when(match guard {
                Guard::Term(revision) => Compare::ModRevision(keys.term(), *revision),
                Guard::Policy(revision) => Compare::ModRevision(keys.policy(), *revision),
                Guard::Leader(revision) => Compare::ModRevision(keys.manager(), *revision),
                Guard::NoPrimary => Compare::Absent(keys.primary()),
                Guard::NotPaused => Compare::Absent(keys.pause()),
            });
        }
        for put in &change.puts {
            txn = match put {
                RecordPut::Term(r) => txn.put(keys.term(), json(r)),
                RecordPut::Policy(r) => {
                    let kept = txn.put(keys.policy(), json(r)).put(keys.policy_of(r.epoch), json(r));
                    // The log is bounded: with each new one the oldest goes.
                    kept.delete(keys.policy_of(r.epoch.saturating_sub(POLICIES)))
                }
                RecordPut::Grace(_) => Txn { puts: with(txn.puts, keys.grace(), Vec::from("{}"), lease), ..txn },
                RecordPut::Journal(r) => txn.put(keys.journal(r.term), json(r)),
                RecordPut::Fence(node, r) => txn.put(keys.fence(node), json(r)),
                RecordPut::Maintenance(node, r, _) => {
                    Txn { puts: with(txn.puts, keys.maintenance_of(node), json(r), lease), ..txn }
                }
                RecordPut::Pause(r, _) => Txn { puts: with(txn.puts, keys.pause(), json(r), lease), ..txn },
                RecordPut::Spent(term, _) => {
                    Txn { puts: with(txn.puts, keys.spent_on(*term), Vec::from("{}"), lease), ..txn }
                }
            };
        }
        for key in &change.deletes {
            txn = txn.delete(match key {
                RecordKey::Primary => keys.primary(),
                RecordKey::Fence(node) => keys.fence(node),
                RecordKey::Member(node) => keys.member(node),
                RecordKey::Maintenance(node) => keys.maintenance_of(node),
                RecordKey::Pause => keys.pause(),
            });
        }
        txn
    }
}

fn with(mut puts: Vec<Put>, key: String, value: Vec<u8>, lease: Option<LeaseId>) -> Vec<Put> {
    puts.push(Put { key, value, lease });
    puts
}

pub(super) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain structs")
}

fn log_answer(node: &NodeId, term: u64, command: &Command, result: &Result<Reply, CommandError>) {
    let word = command.kind().as_str();
    match result {
        Ok(Reply::Frozen(f)) => {
            let (timeline, lsn) = f.position.map_or((None, None), |p| (Some(p.timeline.0), Some(p.lsn.to_string())));
            info!(%node, term, timeline, lsn, was_primary = f.was_primary, "node frozen");
        }
        Ok(Reply::Promoted(p)) => {
            info!(%node, term, lsn = %p.fork.lsn, from_timeline = p.fork.timeline.0, record_lsn = %p.record_lsn, "standby promoted");
        }
        Ok(Reply::Opened(_)) => info!(%node, term, "primary opened"),
        Ok(Reply::Stopped(s)) => {
            let lsn = s.end.map(|e| e.lsn.to_string());
            info!(%node, term, clean = s.clean, lsn, "old primary stopped");
        }
        Ok(Reply::Relaxed(r)) => warn!(%node, term, lsn = %r.lsn, "commits wait for no standby"),
        Ok(Reply::Armed(a)) => info!(%node, term, lsn = %a.lsn, "commits wait for standbys again"),
        Ok(Reply::Done) => debug!(%node, term, command = word, "order obeyed"),
        Err(error @ (CommandError::Unreachable(_) | CommandError::NoAnswer(_))) => {
            debug!(%node, term, command = word, %error, "order not answered");
        }
        Err(error) => warn!(%node, term, command = word, %error, "order not carried out"),
    }
}

fn log_outcome(change: &Change, outcome: &ChangeOutcome) {
    let (word, journal) = (change.kind.as_str(), change.kind == ChangeKind::Journal);
    let term = change.puts.iter().find_map(|p| match p {
        RecordPut::Term(t) => Some(t.term.0),
        RecordPut::Journal(j) => Some(j.term.0),
        RecordPut::Spent(term, _) => Some(term.0),
        RecordPut::Policy(_)
        | RecordPut::Fence(..)
        | RecordPut::Maintenance(..)
        | RecordPut::Pause(..)
        | RecordPut::Grace(_) => None,
    });
    match outcome {
        ChangeOutcome::Done(_) if journal => debug!(term, "journal written"),
        ChangeOutcome::Done(revision) => info!(change = word, term, revision, "record changed"),
        // It is bound to what it tells of: that has changed, or another manager leads, and tells it. Or an earlier attempt, whose outcome was
        // not known, has written it.
        ChangeOutcome::Lost if journal => debug!(term, "journal not written any more"),
        ChangeOutcome::Lost => warn!(change = word, term, "record not changed, something else had changed first"),
        ChangeOutcome::NotMade(error) => warn!(change = word, term, error, "record not changed"),
        ChangeOutcome::Unknown(error) => warn!(change = word, term, error, "outcome of a change is unknown"),
    }
}
