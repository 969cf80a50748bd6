//! The cluster's records in etcd as this agent last read them.

use super::Agent;
use crate::fsm::agent::Others;
use crate::fsm::namesake::{Other, Place};
use crate::record::{
    AdoptRecord, FenceRecord, InitRecord, MemberRecord, Phase, PolicyRecord, PrimaryRecord, TermRecord,
};
use crate::store::{Compare, Hints, Range, Snapshot, Store, StoreError, Txn, Versioned};
use cluster::keys::Keys;
use cluster::{Endpoint, Instant, NodeId, Term};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;

/// A record and the revision at which it was last changed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) revision: i64,
}

/// What was read, all at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Records {
    /// When the read was sent; `None` before the first.
    pub(crate) read_at: Option<Instant>,
    /// Since when etcd has known no term.
    pub(crate) termless_since: Option<Instant>,
    /// The revision at which the latest leader that is known put the managers' key.
    pub(crate) leader: Option<i64>,
    pub(crate) term: Option<At<TermRecord>>,
    pub(crate) policy: Option<At<PolicyRecord>>,
    pub(crate) init: Option<At<InitRecord>>,
    pub(crate) primary: Option<At<PrimaryRecord>>,
    pub(crate) members: BTreeMap<NodeId, MemberRecord>,
    pub(crate) fences: BTreeMap<NodeId, FenceRecord>,
    /// An operator works on this node.
    pub(crate) maintenance: bool,
    /// A cluster that ran without agents is being taken over.
    pub(crate) adopt: Option<AdoptRecord>,
}

impl Records {
    /// The primary of the newest term, once it is promoted.
    pub(crate) fn primary_node(&self) -> Option<(&NodeId, Term)> {
        let t = &self.term.as_ref()?.value;
        matches!(t.phase, Phase::Opening | Phase::Active | Phase::Draining).then_some(())?;
        Some((t.node.as_ref()?, t.term))
    }

    /// Is the primary that is followed in this term one without an agent? Only the one that is being adopted, in the term that
    /// its adoption began.
    pub(crate) fn is_by_hand(&self, node: &NodeId, term: Term) -> bool {
        let begun = self.term.as_ref().is_some_and(|t| t.value.term == term && t.value.prev.is_none());
        begun && self.adopt.as_ref().is_some_and(|a| a.primary == *node)
    }

    /// What the other agents have registered tells of a cluster that etcd does not know.
    pub(crate) fn others(&self, own: &NodeId, voters: &[NodeId], now: Instant) -> Others {
        if self.members.iter().any(|(node, m)| node != own && m.system_id.is_some()) {
            return Others::HaveData;
        }
        if voters.iter().all(|v| v == own || self.members.contains_key(v)) {
            return Others::Empty;
        }
        Others::Missing(self.termless_since.map_or(Duration::ZERO, |since| now.since(since)))
    }

    /// Where a node's PostgreSQL listens.
    pub(crate) fn postgres_of(&self, node: &NodeId) -> Option<&Endpoint> {
        self.members.get(node).map(|m| &m.postgres)
    }
}

/// A record that cannot be read is treated as absent and told: acting on a guess would be worse.
fn decode<T: DeserializeOwned>(found: &Versioned) -> Option<At<T>> {
    match serde_json::from_slice(&found.value) {
        Ok(value) => Some(At { value, revision: found.mod_revision }),
        Err(error) => {
            tracing::error!(key = %found.key, %error, "a record in etcd cannot be read");
            None
        }
    }
}

fn named<T: DeserializeOwned>(snapshot: &Snapshot, prefix: &str) -> BTreeMap<NodeId, T> {
    let one = |v: &Versioned| Some((v.key.strip_prefix(prefix)?.parse().ok()?, decode::<T>(v)?.value));
    snapshot.under(prefix).filter_map(one).collect()
}

/// One that cannot be read holds all the same: an operator did not want the node to serve.
fn fences(snapshot: &Snapshot, prefix: &str) -> BTreeMap<NodeId, FenceRecord> {
    let one = |v: &Versioned| {
        let node = v.key.strip_prefix(prefix)?.parse().ok()?;
        Some((node, decode(v).map_or_else(FenceRecord::unreadable, |f| f.value)))
    };
    snapshot.under(prefix).filter_map(one).collect()
}

/// What an agent reads.
fn ranges(keys: &Keys) -> Vec<Range> {
    vec![
        Range::Key(keys.term()),
        Range::Key(keys.policy()),
        Range::Key(keys.init()),
        Range::Key(keys.primary()),
        Range::Prefix(keys.members()),
        Range::Prefix(keys.fences()),
        Range::Prefix(keys.maintenance()),
        Range::Key(keys.adopt()),
        Range::Key(keys.manager()),
    ]
}

/// The keys and prefixes of the same. Proxies and managers write others at each step of a change of primary, when a
/// reading of each agent would take from what clients wait for.
fn watches(keys: &Keys) -> [String; 9] {
    let k = keys;
    [k.term(), k.policy(), k.init(), k.primary(), k.adopt(), k.manager(), k.members(), k.fences(), k.maintenance()]
}

impl Agent {
    /// Read all records, publish them.
    pub(crate) async fn read_records(&self) -> Result<(), StoreError> {
        let records = self.fetch_records(&*self.store).await?;
        self.publish(records);
        self.note_policy();
        self.note_opened();
        self.note_whose();
        self.forget_signature();
        Ok(())
    }

    /// The same for the thread that keeps the lease, over its own connections. It must not wait for a disk: what may have to
    /// be remembered is left to the task that follows the records.
    pub(crate) async fn read_records_apart(&self) -> Result<Records, StoreError> {
        let records = self.fetch_records(&*self.leases).await?;
        let shape = |r: &Records| (r.term.as_ref().map(|t| t.revision), r.policy.as_ref().map(|p| p.revision));
        if shape(&self.records.borrow()) == shape(&records) {
            self.publish(records.clone());
        } else {
            self.read_again.notify_one();
        }
        Ok(records)
    }

    async fn fetch_records(&self, store: &dyn Store) -> Result<Records, StoreError> {
        let keys = &self.env.keys;
        let sent = self.env.clock.now();
        let snapshot = store.read(ranges(keys)).await?;
        Ok(Records {
            read_at: Some(sent),
            termless_since: None,
            leader: snapshot.get(&keys.manager()).map(|v| v.mod_revision),
            term: snapshot.get(&keys.term()).and_then(decode),
            policy: snapshot.get(&keys.policy()).and_then(decode),
            init: snapshot.get(&keys.init()).and_then(decode),
            primary: snapshot.get(&keys.primary()).and_then(decode),
            members: named(&snapshot, &keys.members()),
            fences: fences(&snapshot, &keys.fences()),
            adopt: snapshot.get(&keys.adopt()).and_then(decode).map(|a| a.value),
            // Also when the record cannot be understood.
            maintenance: snapshot.get(&keys.maintenance_of(&self.env.config.node)).is_some(),
        })
    }

    fn publish(&self, mut records: Records) {
        let sent = records.read_at;
        self.records.send_if_modified(|old| {
            // Of an etcd that was restored from a backup the revisions are lower, and the rest may not count yet.
            records.leader = records.leader.or(old.leader);
            old.leader = records.leader;
            // An answer that overtook a newer one must not bring the older view back.
            let age = |r: &Records| (r.term.as_ref().map(|t| t.value.term), r.policy.as_ref().map(|p| p.value.epoch));
            if age(old) > age(&records) {
                // Or etcd was restored from a backup, which may know another address, or none.
                let own = &self.env.config.node;
                if old.members.get(own) != records.members.get(own) {
                    self.register_again.notify_one();
                }
                // An adoption that was taken back takes its term with it, and is over: whose turn it was must not stay on.
                return records.adopt.is_none() && old.adopt.take().is_some();
            }
            records.termless_since = if records.term.is_none() { old.termless_since.or(sent) } else { None };
            let same = Records { read_at: None, ..old.clone() } == Records { read_at: None, ..records.clone() };
            *old = records;
            !same
        });
        let fenced = self.records.borrow().fences.contains_key(&self.env.config.node);
        self.state.change(|o| o.fenced = fenced);
    }

    /// Remember which term was open. Nothing waits for that: it is for an etcd that is restored from a backup some day.
    fn note_opened(&self) {
        let open = |t: &TermRecord| matches!(t.phase, Phase::Active | Phase::Draining);
        let term = self.records.borrow().term.as_ref().filter(|t| open(&t.value)).map(|t| t.value.term);
        let Some(term) = term.filter(|t| *t > self.memory().opened) else { return };
        if let Err(error) = self.remember(|m| m.opened = term) {
            tracing::debug!(%error, "the open term is not remembered");
        }
    }

    /// Remember whose terms and policy are remembered, by the data that is here.
    fn note_whose(&self) {
        let memory = self.memory();
        if memory.system_id.is_some() || !memory.remembers() {
            return;
        }
        let Some(have) = self.state.look(|o| o.system_id.clone()) else { return };
        match self.remember(|m| m.system_id = Some(have.clone())) {
            Ok(()) => self.state.change(|o| o.memory_of = Some(have)),
            Err(error) => tracing::debug!(%error, "whose terms are remembered is not remembered"),
        }
    }

    /// Read at every hint and every second; while etcd does not answer, keep what was read.
    pub(crate) async fn follow_records(&self) {
        let mut hints = watches(&self.env.keys).map(|prefix| self.store.watch(&prefix));
        let mut reachable = true;
        loop {
            match self.read_records().await {
                Ok(()) => {
                    if !reachable {
                        tracing::info!(node = %self.env.config.node, "etcd answers again");
                    }
                    reachable = true;
                }
                Err(error) => {
                    self.metrics.store_errors.inc();
                    if reachable {
                        tracing::warn!(node = %self.env.config.node, %error, "etcd does not answer");
                    }
                    reachable = false;
                }
            }
            let pause = Duration::from_millis(if reachable { 1000 } else { 200 });
            tokio::select! {
                () = Hints::any(&mut hints), if reachable => {}
                () = self.read_again.notified(), if reachable => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Keep `members/<node>` right: addresses stay known while the node is down.
    pub(crate) async fn register(&self) {
        let (mut state, mut records) = (self.state.subscribe(), self.records.subscribe());
        let mut written: Option<MemberRecord> = None;
        let mut other = Other::default();
        loop {
            let (told, slots) = {
                let state = state.borrow_and_update();
                (state.system_id.clone(), state.slots_seen_to)
            };
            let system_id = if told.is_some() { told } else { self.system_id_to_adopt().await };
            let c = &self.env.config;
            let member = MemberRecord {
                node: c.node.clone(),
                postgres: c.postgres_endpoint(),
                agent: Endpoint { host: c.advertise_host.clone(), port: self.listen.port() },
                pg_version: self.env.version,
                system_id,
                host: self.env.host.clone(),
                standing: c.standing.clone(),
                slots,
                holder: Some(self.env.holder.clone()),
            };
            let (removed, taken) = {
                let records = records.borrow_and_update();
                let found = records.members.get(&c.node);
                let removed = records.fences.get(&c.node).is_some_and(|f| f.removed);
                (removed, written.is_some() && found.is_none_or(|m| m.holder != member.holder))
            };
            if removed {
                // Until an operator lifts the fence; then it is told anew.
                written = None;
            } else if taken || written.as_ref() != Some(&member) {
                let put = self.put_member(&member, &mut other).await;
                if put.is_err() && self.state.look(|o| o.place == Place::Unknown) {
                    // etcd is away again: nobody waits for it to tell who is there.
                    self.takes(Place::Own);
                }
                let Ok(Some(revision)) = put else {
                    tracing::debug!(?put, "member record not written");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    continue;
                };
                other.registered(revision);
                written = Some(member);
                if taken {
                    // Two that do not find each other would write by turns.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                _ = records.changed() => {}
                () = self.register_again.notified() => written = None,
            }
        }
    }

    /// Put it, unless the node was removed (which an agent that has just started has not read yet) or its fence changes, or
    /// another agent lives under its name. Gives the revision at which it was put.
    async fn put_member(&self, member: &MemberRecord, other: &mut Other) -> Result<Option<i64>, StoreError> {
        let key = self.env.keys.member(&member.node);
        let found = self.store.get(&key).await?;
        let of_now = match &found {
            Some(found) => Compare::ModRevision(key.clone(), found.mod_revision),
            None => Compare::Absent(key.clone()),
        };
        let found = found.as_ref().and_then(decode::<MemberRecord>);
        if !self.may_register(found.as_ref(), other).await {
            return Ok(None);
        }
        if let Some(found) = found.filter(|f| f.value == *member) {
            return Ok(Some(found.revision));
        }
        let fence = self.env.keys.fence(&member.node);
        let unchanged = match self.store.get(&fence).await? {
            Some(found) if decode::<FenceRecord>(&found).is_some_and(|f| f.value.removed) => return Ok(None),
            Some(found) => Compare::ModRevision(fence, found.mod_revision),
            None => Compare::Absent(fence),
        };
        let value = serde_json::to_vec(member).expect("a record of texts and numbers can be written");
        let put = Txn::new().when(unchanged).when(of_now).put(key, value);
        let put = self.store.txn(put).await?;
        Ok(put.succeeded.then_some(put.revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Cause, Tenure};
    use cluster::TimelineId;

    /// As the adoption of n1 began it.
    fn adoption() -> Records {
        let n1: NodeId = "n1".parse().unwrap();
        let value = TermRecord {
            term: Term(3),
            phase: Phase::Active,
            coordinator: "ops@host".to_owned(),
            node: Some(n1.clone()),
            cause: Cause::Bootstrap,
            prev: None,
            fork: None,
            forks: Vec::new(),
            xid_bound: None,
            xid_bounds: Vec::new(),
            record_lsn: None,
            policy_epoch: 1,
            newest_timeline: None,
            holds_all_of: None,
            holds_written_of: None,
            history_lost: false,
            lossy_timelines: Vec::new(),
            chosen_before: None,
            data_loss_allowed: false,
        };
        let by = "ops@host".to_owned();
        let adopt =
            AdoptRecord { by, primary: n1, system_id: "7".to_owned(), turns: Some(Vec::new()), take_primary: false };
        Records { term: Some(At { value, revision: 1 }), adopt: Some(adopt), ..Records::default() }
    }

    #[test]
    fn only_the_primary_of_the_adoptions_own_term_has_no_agent() {
        let (n1, n2): (NodeId, NodeId) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        let begun = adoption();
        assert!(begun.is_by_hand(&n1, Term(3)));
        assert!(!begun.is_by_hand(&n2, Term(3)));
        // By an order that comes before the records that it goes with.
        assert!(!begun.is_by_hand(&n1, Term(4)));
        let mut failed_over = adoption();
        failed_over.term.as_mut().unwrap().value.prev =
            Some(Tenure { term: Term(2), node: n2, timeline: TimelineId(2) });
        assert!(!failed_over.is_by_hand(&n1, Term(3)));
        assert!(!Records { adopt: None, ..adoption() }.is_by_hand(&n1, Term(3)));
    }
}
