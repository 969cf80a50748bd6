//! Whose vote counts alone by which policy: PURE.
//!
//! Where one standby suffices for a commit a later term freezes all that vote, so it begins with all that any of them has
//! received. What decides is the policy by which that term was begun: it may have been another when something was read in the
//! term before, and be another again when its session comes back.

use cluster::NodeId;
use cluster::topology::{Quorum, Topology};
use std::collections::VecDeque;

/// Policies kept.
const MOST: usize = 32;

/// The newest policies, the newest last.
#[derive(Clone, Debug, Default)]
pub(super) struct Votes(VecDeque<Policy>);

#[derive(Clone, Debug)]
struct Policy {
    epoch: u64,
    /// Do commits wait for standbys?
    protected: bool,
    quorums: Vec<Quorum>,
}

impl Votes {
    /// Take over a newer view of the cluster.
    pub(super) fn follow(&mut self, topology: &Topology) {
        let is_that = |known: &Policy| {
            (known.epoch, known.protected) == (topology.epoch, topology.protected) && known.quorums == topology.quorums
        };
        if self.0.back().is_some_and(is_that) {
            return;
        }
        // The record is missing from this reading, which so says nothing of it.
        if topology.epoch == 0 {
            return;
        }
        // Policies of an etcd that was restored from an older copy count anew.
        while self.0.back().is_some_and(|newest| newest.epoch >= topology.epoch) {
            self.0.pop_back();
        }
        let Topology { epoch, protected, .. } = *topology;
        self.0.push_back(Policy { epoch, protected, quorums: topology.quorums.clone() });
        if self.0.len() > MOST {
            // What the term was begun by may be asked for at any time.
            let oldest = self.0.iter().position(|policy| policy.epoch != topology.begun_by);
            self.0.remove(oldest.unwrap_or(0));
        }
    }

    /// Did the vote of `node` count alone by the policy by which the term of `topology` was begun? `None`: of any member. Not
    /// where that policy was never seen.
    pub(super) fn count_alone(&self, topology: &Topology, node: Option<&NodeId>) -> bool {
        let Some(policy) = self.0.iter().find(|policy| policy.epoch == topology.begun_by) else { return false };
        let alone = |node: &NodeId| policy.quorums.iter().all(|quorum| quorum.k == 1 && quorum.voters.contains(node));
        let all = || topology.standbys.iter().chain(&topology.primary).all(|member| alone(&member.node));
        policy.protected && node.map_or_else(all, alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(epoch: u64, begun_by: u64, k: u32) -> Topology {
        let voters = ["n1", "n2"].map(|name| name.parse().unwrap()).to_vec();
        let quorums = if k > 0 { vec![Quorum { voters, k }] } else { Vec::new() };
        Topology { epoch, begun_by, protected: k > 0, quorums, ..Topology::unknown() }
    }

    #[test]
    fn the_policy_that_a_term_was_begun_by_decides() {
        let mut votes = Votes::default();
        let (n2, n3) = ("n2".parse().unwrap(), "n3".parse().unwrap());
        for (epoch, k) in [(1, 1), (2, 2), (3, 0), (5, 1)] {
            votes.follow(&view(epoch, 0, k));
        }
        for (begun_by, want) in [(1, true), (2, false), (3, false), (4, false), (5, true), (6, false)] {
            assert_eq!(votes.count_alone(&view(5, begun_by, 1), Some(&n2)), want, "{begun_by}");
            assert!(!votes.count_alone(&view(5, begun_by, 1), Some(&n3)), "it has no vote");
        }
        // Counted anew.
        votes.follow(&view(2, 0, 1));
        assert!(votes.count_alone(&view(2, 2, 1), Some(&n2)) && !votes.count_alone(&view(2, 5, 1), Some(&n2)));
        // One that is not read changes nothing.
        votes.follow(&view(0, 0, 0));
        assert!(votes.count_alone(&view(2, 2, 1), Some(&n2)));
        for epoch in 3..100 {
            votes.follow(&view(epoch, 2, 1));
        }
        assert!(votes.count_alone(&view(99, 2, 1), Some(&n2)), "the term was begun by it");
        for epoch in 3..100 {
            votes.follow(&view(epoch, 0, 1));
            assert!(votes.count_alone(&view(epoch, epoch, 1), Some(&n2)) && votes.0.len() <= MOST);
        }
    }
}
