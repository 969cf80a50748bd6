//! A second proxy of a strict cluster, which only reads, and is cut off now from etcd, now together with a primary: what it
//! reads there is never older than it may be. Its view, what ends and renews that, and what proves its term are the
//! shipped ones.

use super::{Chance, World, ms, name};
use cluster::topology::{Gate, STRICT_VIEW, Topology};
use cluster::{Instant, NodeId};
use failover::record::{Mode, Phase};
use failover::view::topology::{shortened, vouched};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// `max_replay_lag`.
const BOUND: Duration = ms(1000);

pub(crate) struct Reader {
    /// Of its own, so that the rest of the world goes on as without it.
    chance: Chance,
    topology: Topology,
    /// When each node was asked that answered that it receives from the primary of the term.
    seen: BTreeMap<NodeId, Instant>,
    proven: Option<Instant>,
    /// It does not reach etcd before.
    cut: Instant,
    /// Nor any node but this one.
    island: Option<usize>,
    /// When each promised write was acknowledged.
    acked_at: BTreeMap<u64, Instant>,
    /// Broken on purpose: it asks for no proof.
    pub(crate) trusts: bool,
}

impl Reader {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: Chance(seed ^ 0x5eed),
            topology: Topology::unknown(),
            seen: BTreeMap::new(),
            proven: None,
            cut: Instant::default(),
            island: None,
            acked_at: BTreeMap::new(),
            trusts: false,
        }
    }

    /// A write was acknowledged, as promised.
    pub(crate) fn note(&mut self, id: u64, now: Instant) {
        self.acked_at.insert(id, now);
    }

    /// It was lost, as an operator allowed.
    pub(crate) fn excuse(&mut self, ids: &[u64]) {
        self.acked_at.retain(|id, _| !ids.contains(id));
    }
}

impl World {
    /// `n` is cut off until then: the reader may be with it.
    pub(crate) fn maroon(&mut self, n: usize, until: Instant) {
        if self.reader.chance.percent(50) {
            (self.reader.cut, self.reader.island) = (until, Some(n));
        }
    }

    /// Another fault has happened: the reader may have lost etcd.
    pub(crate) fn cut_reader(&mut self, until: Instant) {
        if self.now >= self.reader.cut && self.reader.chance.percent(15) {
            (self.reader.cut, self.reader.island) = (until, None);
        }
    }

    fn reader_primary(&self) -> Option<usize> {
        let primary = self.reader.topology.primary.as_ref()?;
        (0..self.nodes.len()).find(|n| name(*n) == primary.node)
    }

    /// It reads etcd, when it can, has its view vouched for otherwise, and asks the nodes.
    pub(crate) fn reader_looks(&mut self) {
        if self.mode != Mode::Strict {
            return;
        }
        if self.etcd_up() && self.now >= self.reader.cut {
            self.reader_reads();
        } else {
            self.reader_asks_to_vouch();
        }
        let (Some(primary), term) = (self.reader_primary(), self.reader.topology.term) else { return };
        for n in (0..self.nodes.len()).filter(|n| *n != primary) {
            if self.reader_reaches(n) && self.nodes[n].awake(self.now) && self.nodes[n].receives_from(primary, term) {
                self.reader.seen.insert(name(n), self.now);
            }
        }
        let seen = |node: &NodeId| self.reader.seen.get(node).copied();
        let proven = self.reader.topology.quorums.iter().map(|q| q.proven(&name(primary), seen)).min().flatten();
        self.reader.proven = self.reader.proven.max(proven);
    }

    fn reader_reads(&mut self) {
        let Some(next) = self.learn(&self.reader.topology) else { return };
        if next.term != self.reader.topology.term {
            self.reader.seen.clear();
        }
        if (next.term, &next.quorums) != (self.reader.topology.term, &self.reader.topology.quorums) {
            self.reader.proven = None;
        }
        self.reader.topology = next;
    }

    fn reader_asks_to_vouch(&mut self) {
        let (Some(n), term, epoch) = (self.reader_primary(), self.reader.topology.term, self.reader.topology.epoch)
        else {
            return;
        };
        let due = self.reader.topology.ends_at().is_some_and(|end| end.since(self.now) < STRICT_VIEW / 2);
        if !due || !self.reader_reaches(n) {
            return;
        }
        let Some(lasts) = self.vouches(n, term, epoch) else { return };
        let end = self.now + self.counted(self.nodes.len(), shortened(lasts));
        if let Some(longer) = vouched(&self.reader.topology, term, epoch, end) {
            self.reader.topology = longer;
        }
    }

    fn reader_reaches(&self, n: usize) -> bool {
        match self.reader.island {
            Some(island) if self.now < self.reader.cut => island == n,
            Some(_) | None => self.now >= self.nodes[n].cut_until,
        }
    }

    /// A bounded read at the primary that it knows: all that was acknowledged `BOUND` ago is there, by whomever.
    pub(crate) fn reader_asks(&mut self) {
        let (Some(n), term) = (self.reader_primary(), self.reader.topology.term) else { return };
        let topology = &self.reader.topology;
        let answers = self.reader_reaches(n) && self.nodes[n].serves(term) && self.nodes[n].awake(self.now);
        // An operator who allows loss lets a term open that froze too few: what this one proves is void.
        if !answers || topology.quorums.is_empty() || self.loss_in > term {
            return;
        }
        let newest = self.records.term.as_ref().filter(|t| t.value.phase == Phase::Active).map(|t| t.value.term);
        let replaced = newest.is_some_and(|newest| newest > term);
        if topology.gate_at(self.now) != Gate::Open {
            if topology.gate == Gate::Open {
                self.reach("a strict view that ended");
            }
            return;
        }
        let proven = topology.proven_at(self.reader.proven, self.now).unwrap_or_default();
        let by_etcd = topology.read_at.is_some_and(|read| read + BOUND >= self.now);
        if proven + BOUND < self.now && !self.reader.trusts {
            if replaced {
                self.reach("a read refused at a replaced primary");
            }
            return;
        }
        if !by_etcd {
            self.reach("a term proven by the standbys that receive");
        }
        if replaced {
            let there: BTreeSet<u64> = self.nodes[n].wal.iter().map(|entry| entry.1).collect();
            let old = |(id, at): &(&u64, &Instant)| **at + BOUND < self.now && !there.contains(id);
            if let Some((id, at)) = self.reader.acked_at.iter().find(old).map(|(id, at)| (*id, *at)) {
                let old = self.now.since(at).as_millis();
                self.fail(format!("a read at {} of term {term} misses {id}, acknowledged {old} ms ago", name(n)));
            }
        }
    }
}
