//! Reads the records: at every hint, when the planner asks, and now and then anyway.

use crate::fsm::action::Input;
use crate::fsm::observe::{At, Records};
use crate::metrics::Metrics;
use crate::record::{FenceRecord, InitRecord, LeaderRecord, LossReport, MaintenanceRecord, PauseRecord};
use crate::store::{Range, Snapshot, Store, StoreError, Versioned};
use cluster::keys::Keys;
use cluster::{Clock, NodeId, Term};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

/// Pause after a read that failed.
const RETRY: Duration = Duration::from_millis(200);
/// Reports of lost WAL are large and change rarely: they are read when a hint says that one has come, and this often.
const REPORTS_EVERY: Duration = Duration::from_secs(600);
/// Pause after they could not be read.
const REPORTS_RETRY: Duration = Duration::from_secs(5);
/// Reports of so many terms are shown.
const REPORTED: u64 = 32;
/// Of so many terms reports are read at once: each lists up to a thousand commits, and etcd's answers have a limit.
const REPORTS_AT_ONCE: usize = 4;

/// The `manager` key as last read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LeaderSeen {
    /// Who leads.
    pub(super) leader: Option<LeaderRecord>,
    /// The key's `mod_revision`.
    pub(super) revision: i64,
    /// The primary runs on this host and other members do not.
    pub(super) beside_primary: bool,
    /// It was read at least once.
    pub(super) read: bool,
}

pub(super) struct Reader {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Keys,
    pub(super) host: Arc<str>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) asked: Arc<Notify>,
    pub(super) leader: watch::Sender<LeaderSeen>,
    pub(super) interval: Duration,
    pub(super) metrics: Metrics,
}

impl Reader {
    /// Read until the planner is gone.
    pub(super) async fn run(self) {
        let newest = watch::Sender::new(Term(0));
        let known = newest.subscribe();
        tokio::select! {
            () = self.read_records(&newest) => {}
            () = self.read_reports(known) => {}
        }
    }

    async fn read_records(&self, known: &watch::Sender<Term>) {
        let mut hints = self.store.watch(&self.keys.root());
        let mut newest = Term(0);
        let mut failing = false;
        loop {
            let sent_at = Clock.now();
            let pause = match self.store.read(self.ranges(newest)).await {
                Ok(snapshot) => {
                    if std::mem::take(&mut failing) {
                        info!("records are read again");
                    }
                    let records = parse(&self.keys, &snapshot);
                    newest = records.term.as_ref().map_or(newest, |t| t.value.term);
                    known.send_if_modified(|known| std::mem::replace(known, newest) != newest);
                    self.show_leader(&snapshot, &records);
                    self.metrics.records_read(sent_at);
                    let input = Input::Records { sent_at, records: Box::new(records) };
                    if self.inputs.send(input).await.is_err() {
                        return;
                    }
                    self.interval
                }
                Err(error) => {
                    self.note(&error, &mut failing);
                    RETRY
                }
            };
            tokio::select! {
                () = hints.changed() => {}
                () = self.asked.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What old primaries turned out to have lost, for the metrics.
    async fn read_reports(&self, mut newest: watch::Receiver<Term>) {
        let mut hints = self.store.watch(&self.keys.reports());
        loop {
            // Its sender lives as long as this does.
            let Ok(newest) = newest.wait_for(|term| *term != Term(0)).await.map(|term| *term) else { return };
            let terms: Vec<Term> = (newest.0.saturating_sub(REPORTED - 1)..=newest.0).map(Term).collect();
            let read = reports_of(&*self.store, &self.keys, &terms).await;
            let pause = if read.is_ok() { REPORTS_EVERY } else { REPORTS_RETRY };
            if let Ok(reports) = read {
                self.metrics.losses(&reports);
            }
            tokio::select! {
                () = hints.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn note(&self, error: &StoreError, failing: &mut bool) {
        self.metrics.store_error(error);
        if !*failing {
            warn!(%error, "records cannot be read: no failover is possible without etcd");
        }
        *failing = true;
    }

    fn ranges(&self, newest: Term) -> Vec<Range> {
        let k = &self.keys;
        let keys = [k.init(), k.term(), k.policy(), k.primary(), k.manager(), k.pause(), k.grace(), k.journal(newest)];
        let prefixes = [k.members(), k.fences(), k.maintenance(), k.proxies(), k.spent()];
        keys.into_iter().map(Range::Key).chain(prefixes.into_iter().map(Range::Prefix)).collect()
    }

    fn show_leader(&self, snapshot: &Snapshot, records: &Records) {
        let found = snapshot.get(&self.keys.manager());
        let primary = records.term.as_ref().and_then(|t| t.value.node.clone());
        let host_of_primary = primary.and_then(|n| records.members.get(&n)).map(|m| m.host.clone());
        let elsewhere = records.members.values().any(|m| m.host != *self.host);
        let seen = LeaderSeen {
            leader: found.and_then(one),
            revision: found.map_or(0, |v| v.mod_revision),
            beside_primary: elsewhere && host_of_primary.as_deref() == Some(&*self.host),
            read: true,
        };
        self.leader.send_if_modified(|old| {
            let changed = *old != seen;
            *old = seen;
            changed
        });
    }
}

/// The records of a read. A value that cannot be understood counts as absent and is named in the log.
pub(super) fn parse(keys: &Keys, snapshot: &Snapshot) -> Records {
    let journal = snapshot.under(&keys.journals()).last().and_then(one);
    Records {
        revision: snapshot.revision,
        term: snapshot.get(&keys.term()).and_then(at),
        policy: snapshot.get(&keys.policy()).and_then(at),
        system_id: snapshot.get(&keys.init()).and_then(one::<InitRecord>).and_then(|i| i.system_id),
        primary: snapshot.get(&keys.primary()).and_then(one),
        members: below(snapshot, &keys.members()),
        fences: holding(snapshot, &keys.fences(), FenceRecord::unreadable),
        maintenance: holding(snapshot, &keys.maintenance(), MaintenanceRecord::unreadable),
        proxies: below(snapshot, &keys.proxies()),
        pause: snapshot.get(&keys.pause()).map(paused),
        grace: snapshot.get(&keys.grace()).is_some(),
        spent: snapshot.under(&keys.spent()).filter_map(|v| term_of(&v.key)).collect(),
        journal,
    }
}

/// The reports of these terms' changes.
pub(crate) async fn reports_of(store: &dyn Store, keys: &Keys, terms: &[Term]) -> Result<Vec<LossReport>, StoreError> {
    let mut reports = Vec::new();
    for some in terms.chunks(REPORTS_AT_ONCE) {
        let found = store.read(some.iter().map(|term| Range::Prefix(keys.reports_of(*term))).collect()).await?;
        reports.extend(found.found.iter().filter_map(one::<LossReport>));
    }
    Ok(reports)
}

/// A pause holds also when its record cannot be understood.
fn paused(found: &Versioned) -> PauseRecord {
    let unreadable = || PauseRecord { by: "somebody".into(), why: String::new(), at: 0, until: None };
    one(found).unwrap_or_else(unreadable)
}

/// The term that a key ends with.
pub(super) fn term_of(key: &str) -> Option<Term> {
    key.rsplit('/').next()?.parse().ok().map(Term)
}

/// A record, if it can be understood.
pub(super) fn one<T: DeserializeOwned>(found: &Versioned) -> Option<T> {
    match serde_json::from_slice(&found.value) {
        Ok(value) => Some(value),
        Err(error) => {
            warn!(key = found.key, %error, "a record cannot be understood");
            None
        }
    }
}

fn at<T: DeserializeOwned>(found: &Versioned) -> Option<At<T>> {
    one(found).map(|value| At { value, revision: found.mod_revision })
}

/// By node, of what holds by existing: one that cannot be understood counts, as `unreadable` says.
fn holding<T: DeserializeOwned>(snapshot: &Snapshot, prefix: &str, unreadable: fn() -> T) -> BTreeMap<NodeId, T> {
    let named = |v: &Versioned| Some((v.key.strip_prefix(prefix)?.parse().ok()?, one(v).unwrap_or_else(unreadable)));
    snapshot.under(prefix).filter_map(named).collect()
}

fn below<K: FromStr + Ord, T: DeserializeOwned>(snapshot: &Snapshot, prefix: &str) -> BTreeMap<K, T> {
    let named = |v: &Versioned| Some((v.key.strip_prefix(prefix)?.parse().ok()?, one(v)?));
    snapshot.under(prefix).filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_that_cannot_be_understood_holds() {
        let keys = Keys::new("/t", "t");
        let of =
            |key: String| Versioned { key, value: b"{}".to_vec(), create_revision: 1, mod_revision: 1, lease: None };
        let node: NodeId = "n2".parse().unwrap();
        let mut found = vec![of(keys.fence(&node)), of(keys.maintenance_of(&node)), of(keys.member(&node))];
        found.sort_by(|a, b| a.key.cmp(&b.key));
        let records = parse(&keys, &Snapshot { revision: 1, found });
        assert!(records.fences.contains_key(&node) && records.maintenance.contains_key(&node));
        assert!(records.members.is_empty(), "its addresses are not known");
    }
}
