//! What rests on clocks: leases and views, counted by clocks that drift, and what agents sign and vouch for while etcd does
//! not answer.

use super::node::SOFT;
use super::{LEASE, World, ms};
use cluster::Term;
use failover::fsm::action::Command;
use failover::fsm::lease::vouched_for;
use failover::view::topology::{lengthened, shortened};
use std::time::Duration;

/// Two renewals have failed.
const DUE: Duration = ms(900);

impl World {
    /// How long it takes `who`'s clock to count `span`. The proxy's comes after the nodes'.
    pub(crate) fn counted(&self, who: usize, span: Duration) -> Duration {
        let rate = 1_000_000 + self.drift[who];
        Duration::from_nanos((span.as_nanos() as i128 * 1_000_000 / i128::from(rate)) as u64)
    }

    /// `Agent::gather_signatures`.
    pub(crate) fn gather_signatures(&mut self, n: usize) {
        let (Some(term), Some(policy)) = (self.served(n), self.policy(n)) else { return };
        let held = self.nodes[n].lease.is_some_and(|(t, _)| t == term);
        if policy.protects() || !held || self.now.since(self.nodes[n].renewed) < DUE {
            return;
        }
        let mut all = true;
        for other in (0..self.nodes.len()).filter(|o| *o != n) {
            all &= self.sign(n, other, term);
        }
        if all {
            let end = self.now + self.counted(n, shortened(LEASE));
            (self.nodes[n].lease, self.nodes[n].renewed) = (Some((term, end)), self.now);
            self.reach("a lease signed by the others");
        }
    }

    /// `Agent::countersign`, and whether its answer arrives.
    fn sign(&mut self, n: usize, other: usize, term: Term) -> bool {
        let asked = self.linked(n, other) && self.nodes[other].flushes(self.now);
        if !asked || self.lost() || self.nodes[other].promise > term || self.nodes[other].is_primary() {
            return false;
        }
        let until = self.now + self.counted(other, lengthened(LEASE));
        let node = &mut self.nodes[other];
        (node.promise, node.signed) = (term, (term, node.signed.1.max(until)));
        !self.lost()
    }

    /// `Agent::outlast_signature`: the promise is given at once, the answer waits.
    pub(crate) fn bound_by_signature(&mut self, n: usize, command: &Command) -> Option<u64> {
        let term = command.term();
        let asked = matches!(command, Command::Freeze(_) | Command::Recover(_)) && self.reachable(n);
        let (signed, until) = self.nodes[n].signed;
        if !asked || term < self.nodes[n].promise || signed >= term || self.now >= until {
            return None;
        }
        self.nodes[n].promise = term;
        self.reach("a freeze that waited for what was signed");
        Some(until.since(self.now).as_millis() as u64 + 1)
    }

    /// `Agent::vouch`.
    pub(crate) fn vouches(&mut self, n: usize, term: Term, epoch: u64) -> Option<Duration> {
        let runs = self.nodes[n].awake(self.now) && self.nodes[n].promise == term && self.served(n) == Some(term);
        let policy = self.policy(n).filter(|p| runs && p.epoch == epoch)?;
        let leased = self.nodes[n].lease.filter(|(t, _)| *t == term).map(|(_, end)| (end - SOFT).since(self.now));
        let lasts = vouched_for(&policy, leased)?;
        let until = self.now + self.counted(n, lengthened(lasts));
        self.nodes[n].vouched_until = self.nodes[n].vouched_until.max(until);
        Some(lasts)
    }
}
