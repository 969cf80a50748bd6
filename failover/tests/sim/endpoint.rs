//! The proxy through which everything is written: its view of the cluster, what renews and ends that, and what it tells of
//! commits whose server was lost are the shipped decisions. What carries them is the simulator's.

use super::{LEASE, RECORDS, VIEW, World, name};
use cluster::topology::{Gate, STRICT_VIEW, Topology};
use cluster::{Instant, Term};
use failover::fsm::observe::Records;
use failover::record::ProxyRecord;
use failover::view::topology::{Validity, later, not_shortened, shortened, steps_back, topology, vouched};
use proxy::ledger::verdict::{after_asking, before_asking};
use proxy::ledger::{Descent, Mark, Since, Status, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// Clients that wait for the outcome of a COMMIT give up once so many more do.
const WAITING: usize = 500;

pub(crate) struct Proxy {
    pub(crate) topology: Topology,
    /// When etcd ends its registration.
    pub(crate) ends: Instant,
    /// It does not reach etcd before.
    pub(crate) cut: Instant,
    /// Sent and not acknowledged: the term, and what the server said just before.
    on_their_way: BTreeMap<u64, (Term, Mark)>,
    /// Told to be lost.
    lost: BTreeSet<u64>,
    /// Broken on purpose: it asks about ids that the new primary has given out again.
    pub(crate) asks_blindly: bool,
}

impl Proxy {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            topology: Topology::unknown(),
            ends: start + LEASE,
            cut: start,
            on_their_way: BTreeMap::new(),
            lost: BTreeSet::new(),
            asks_blindly: false,
        }
    }

    /// A client was told that it was committed.
    pub(crate) fn acknowledged(&mut self, id: u64) {
        self.on_their_way.remove(&id);
    }

    /// An operator let something be lost: what was told before says nothing of the terms that follow.
    pub(crate) fn excuse(&mut self) {
        self.on_their_way.clear();
        self.lost.clear();
    }
}

/// One linearizable read of etcd.
pub(crate) fn read(records: &Records) -> failover::view::topology::Records {
    failover::view::topology::Records {
        revision: u64::try_from(records.revision).unwrap_or(0),
        init: None,
        term: records.term.as_ref().map(|t| t.value.clone()),
        primary: records.primary.clone(),
        policy: records.policy.as_ref().map(|p| p.value.clone()),
        members: records.members.clone(),
        fences: records.fences.clone(),
        maintenance: records.maintenance.clone(),
    }
}

impl World {
    /// What a proxy learns of these records now, by its own clock; `None` when they are older than what it knows.
    pub(crate) fn learn(&self, current: &Topology) -> Option<Topology> {
        let lasts = |span| self.counted(self.nodes.len(), span);
        let (lasts, strict_lasts) = (lasts(VIEW), lasts(STRICT_VIEW));
        // Its registration is renewed with the same stroke, and lasts longer.
        let validity = Validity { sent_at: self.now, lasts, strict_lasts, registered_until: None };
        let next = topology(&read(&self.records), validity);
        if steps_back(current, &next).is_some() {
            return None;
        }
        Some(later(current, not_shortened(current, next)))
    }

    /// The proxy reads etcd, when it can, and says that it acts on that.
    pub(crate) fn look(&mut self) {
        let reads = self.etcd_up() && self.now >= self.proxy.cut && !self.lost();
        match reads.then(|| self.learn(&self.proxy.topology)).flatten() {
            Some(next) => {
                let before = self.proxy.topology.term;
                self.proxy.topology.merge(next);
                self.tell();
                if before < self.proxy.topology.term && self.proxy.topology.term > Term(1) {
                    self.reach("a term that the proxy has heard of");
                }
            }
            None if reads => {
                self.tell();
                self.reach("an older view ignored");
            }
            None => self.ask_to_vouch(),
        }
        self.resolve();
    }

    /// What it acts on; written again where etcd was restored.
    fn tell(&mut self) {
        self.proxy.ends = self.now + LEASE;
        let t = &self.proxy.topology;
        let gate = if t.gate == Gate::Draining { "draining" } else { "open" }.to_owned();
        let record = ProxyRecord {
            term: t.term,
            epoch: t.epoch,
            gate,
            busy: 0,
            system_id: None,
            view_ms: 0,
            below_mode: Vec::new(),
        };
        self.records.proxies.insert("p".into(), record);
    }

    /// The node and the term that it writes to, as far as it knows.
    pub(crate) fn writes_to(&self) -> Option<(Term, usize)> {
        let topology = &self.proxy.topology;
        let primary = topology.primary.as_ref().filter(|_| topology.gate_at(self.now) == Gate::Open)?;
        Some((topology.term, (0..self.nodes.len()).find(|n| name(*n) == primary.node)?))
    }

    /// May it pass on what the primary of `term` acknowledges?
    pub(crate) fn passes_on(&self, term: Term, n: usize) -> bool {
        let topology = &self.proxy.topology;
        let open = matches!(topology.gate_at(self.now), Gate::Open | Gate::Draining);
        open && topology.term == term && topology.primary.as_ref().is_some_and(|p| p.node == name(n))
    }

    pub(crate) fn write(&mut self) {
        let to = self.writes_to().filter(|(term, primary)| {
            let node = &self.nodes[*primary];
            node.serves(*term) && node.awake(self.now) && !node.hangs(self.now) && node.flushes(self.now)
        });
        if let Some((term, primary)) = to {
            self.writes += 1;
            let id = self.writes;
            // Each record takes one number: so a new primary goes on where its WAL ends.
            let at = self.nodes[primary].wal.len() as u64;
            let lsn = self.nodes[primary].end().lsn;
            self.proxy.on_their_way.insert(id, (term, Mark { xid: Some(at + 1), lsn }));
            if self.proxy.on_their_way.len() > WAITING {
                self.proxy.on_their_way.pop_first();
            }
            self.append(primary, id);
            self.acknowledge(primary);
        }
    }

    /// `Agent::vouch`, asked by the proxy when half of its view's time is over.
    fn ask_to_vouch(&mut self) {
        let topology = &self.proxy.topology;
        let (term, epoch) = (topology.term, topology.epoch);
        let Some(end) = topology.ends_at().filter(|_| matches!(topology.gate, Gate::Open | Gate::Draining)) else {
            return;
        };
        let lasts = if topology.valid_until.is_none() { STRICT_VIEW } else { VIEW };
        let primary = topology.primary.as_ref().and_then(|p| (0..self.nodes.len()).find(|n| name(*n) == p.node));
        let due = end.since(self.now) < lasts / 2;
        let Some(n) = primary.filter(|_| due && !self.lost()) else { return };
        let Some(lasts) = self.vouches(n, term, epoch) else { return };
        let end = self.now + self.counted(self.nodes.len(), shortened(lasts));
        if let Some(longer) = vouched(&self.proxy.topology, term, epoch, end) {
            self.proxy.topology = longer;
            self.reach("a view vouched for");
        }
    }

    /// Tell clients of earlier terms what became of their COMMITs, where the open term and its primary know.
    fn resolve(&mut self) {
        let Some((open, n)) = self.writes_to() else { return };
        let asks = self.reachable(n) && self.nodes[n].serves(open) && !self.nodes[n].hangs(self.now);
        if !asks || self.loss_in >= open {
            return;
        }
        let protected = self.proxy.topology.protected;
        let earlier = self.proxy.on_their_way.iter().filter(|(_, (term, _))| *term < open);
        let all: Vec<(u64, Term, Mark)> = earlier.map(|(id, (term, mark))| (*id, *term, *mark)).collect();
        for (id, term, mark) in all {
            let since = Descent::of(&self.proxy.topology).since(term);
            let verdict = self.verdict(n, mark, since, protected);
            self.proxy.on_their_way.remove(&id);
            self.heed(id, n, protected, &verdict);
        }
    }

    fn verdict(&self, n: usize, mark: Mark, since: Since, protected: bool) -> Verdict {
        let asks = |xid: u64| {
            // Whatever has that number there, as `pg_xact_status` tells it.
            let there = (xid - 1) < self.nodes[n].released as u64;
            after_asking(if there { Status::Committed } else { Status::Unknown }, since, protected)
        };
        match (before_asking(&mark, since, protected), mark.xid) {
            (Verdict::Ask(xid), _) => asks(xid),
            (Verdict::Lost(_), Some(xid)) if self.proxy.asks_blindly => asks(xid),
            (told, _) => told,
        }
    }

    /// What is told is true, and stays so.
    fn heed(&mut self, id: u64, n: usize, protected: bool, verdict: &Verdict) {
        let there = self.nodes[n].has(id);
        match verdict {
            Verdict::Survived if !there => {
                self.fail(format!("{id} is told to be committed and is not on {}", name(n)));
            }
            Verdict::Survived => {
                self.reach("a commit in doubt that survived");
                if protected {
                    self.promise(id);
                }
            }
            Verdict::Lost(why) if there => self.fail(format!("{id} is told to be lost ({why}) and is on {}", name(n))),
            Verdict::Lost(_) => {
                self.reach("a commit in doubt that was lost");
                self.proxy.lost.insert(id);
            }
            Verdict::Unknown(_) => self.reach("a commit whose outcome nobody can tell"),
            Verdict::Ask(_) | Verdict::Running | Verdict::Unconfirmed => {}
        }
    }

    /// `n` opens a term: nothing in it was told to be lost.
    pub(crate) fn check_told(&mut self, n: usize) {
        let back = self.nodes[n].wal.iter().map(|e| e.1).find(|id| *id < RECORDS && self.proxy.lost.contains(id));
        if let Some(id) = back {
            self.fail(format!("{} opens with {id}, which was told to be lost", name(n)));
        }
    }
}
