//! How many nodes make a change of primary safe, and how many followers make it open. PURE.
//!
//! With m voters and k copies besides the primary's, every acknowledged commit is on k of the m − 1 standbys. Once
//! m − k of them are frozen, at most k − 1 can still acknowledge the old primary (it is fenced), and any k of them
//! meet the frozen ones in at least one node (nothing acknowledged is missed).

use crate::record::{Mode, PolicyRecord, Tenure};
use cluster::NodeId;
use cluster::sync_names::SyncNames;
use std::collections::BTreeSet;

/// What a set of recruits must be for a failover to lose nothing that was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// So many voters besides the old primary, or the old primary itself.
    Quorum {
        /// m − k.
        needed: usize,
    },
    /// Async: at least one node; the most advanced of those reachable.
    MostAdvanced,
    /// Commits were acknowledged without a standby: only the old primary itself has them all.
    OldPrimary,
}

/// The rule of the policy in force.
pub fn rule(policy: &PolicyRecord) -> Rule {
    match policy.mode {
        Mode::Async => Rule::MostAdvanced,
        Mode::Strict if policy.suspended.is_some() => Rule::OldPrimary,
        Mode::Strict => Rule::Quorum { needed: policy.recruits_needed() },
    }
}

impl Rule {
    /// Recruits needed besides the old primary, for display: with `OldPrimary` no number of others suffices.
    pub fn needed(self, policy: &PolicyRecord) -> usize {
        match self {
            Self::Quorum { needed } => needed,
            Self::MostAdvanced => 1,
            Self::OldPrimary => policy.m(),
        }
    }
}

/// Do the nodes of `usable` (frozen, or such as could be frozen) suffice to replace `prev`?
///
/// Without a previous tenure nothing was ever acknowledged, so any node will do.
pub fn sufficient(policy: &PolicyRecord, prev: Option<&Tenure>, usable: &BTreeSet<NodeId>) -> bool {
    let Some(prev) = prev else { return !usable.is_empty() };
    if usable.contains(&prev.node) {
        return true;
    }
    let others = others(policy, prev, usable);
    match rule(policy) {
        Rule::Quorum { needed } => others.len() >= needed,
        Rule::MostAdvanced => !usable.is_empty(),
        Rule::OldPrimary => false,
    }
}

/// The voters of `usable` other than the old primary.
pub fn others(policy: &PolicyRecord, prev: &Tenure, usable: &BTreeSet<NodeId>) -> Vec<NodeId> {
    usable.iter().filter(|n| **n != prev.node && policy.voters.contains(n)).cloned().collect()
}

/// How many standbys must hold the new term's record before it opens.
pub fn open_quorum(policy: &PolicyRecord) -> u32 {
    if policy.protects() { policy.k } else { 0 }
}

/// What `node` sets as primary under `policy`.
pub fn names(policy: &PolicyRecord, node: &NodeId) -> SyncNames {
    if policy.protects() { armed_names(policy, node) } else { SyncNames::Off }
}

/// What `node` sets as primary to protect commits, whether they are suspended now or not.
pub fn armed_names(policy: &PolicyRecord, node: &NodeId) -> SyncNames {
    SyncNames::for_primary(node, &policy.voters, policy.k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Suspension;
    use cluster::{Lsn, Term, TimelineId};
    use proptest::prelude::*;

    fn nodes(n: usize) -> Vec<NodeId> {
        (1..=n).map(|i| format!("n{i}").parse().unwrap()).collect()
    }

    fn policy(m: usize, k: u32) -> PolicyRecord {
        PolicyRecord { epoch: 1, voters: nodes(m), k, mode: Mode::Strict, suspended: None }
    }

    fn prev(node: &str) -> Tenure {
        Tenure { term: Term(7), node: node.parse().unwrap(), timeline: TimelineId(7) }
    }

    fn set(names: &[NodeId]) -> BTreeSet<NodeId> {
        names.iter().cloned().collect()
    }

    fn subset(all: &[NodeId], bits: u32) -> BTreeSet<NodeId> {
        all.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, n)| n.clone()).collect()
    }

    proptest! {
        #[test]
        fn sufficient_recruits_meet_every_commit_quorum_and_leave_none(
            m in 2usize..8, k in 1u32..7, recruits: u32, copies: u32
        ) {
            prop_assume!((k as usize) < m);
            let (policy, old) = (policy(m, k), prev("n1"));
            let standbys = &policy.voters[1..];
            let recruits = subset(standbys, recruits);
            let copies = subset(standbys, copies);
            prop_assume!(sufficient(&policy, Some(&old), &recruits));
            let free = standbys.iter().filter(|n| !recruits.contains(n)).count();
            prop_assert!(free < k as usize, "the old primary could still be acknowledged by {free}");
            if copies.len() >= k as usize {
                prop_assert!(recruits.intersection(&copies).next().is_some(), "a commit on {copies:?} is missed");
            }
        }

        #[test]
        fn one_recruit_less_than_needed_misses_some_quorum(m in 2usize..8, k in 1u32..7) {
            prop_assume!((k as usize) < m && k > 0);
            let (policy, old) = (policy(m, k), prev("n1"));
            let short = set(&policy.voters[1..m - k as usize]);
            prop_assert!(!sufficient(&policy, Some(&old), &short));
        }
    }

    #[test]
    fn the_old_primary_alone_is_complete() {
        assert!(sufficient(&policy(3, 1), Some(&prev("n1")), &set(&nodes(1))));
        assert!(!sufficient(&policy(3, 1), Some(&prev("n3")), &set(&nodes(1))));
    }

    #[test]
    fn a_node_that_does_not_vote_is_no_recruit() {
        let with_stranger = set(&["n2".parse().unwrap(), "x9".parse().unwrap()]);
        assert!(!sufficient(&policy(3, 1), Some(&prev("n1")), &with_stranger));
    }

    #[test]
    fn unprotected_commits_are_only_on_the_old_primary() {
        let mut p = policy(3, 1);
        let why = String::new();
        p.suspended = Some(Suspension { term: Term(7), since: Lsn(1), since_wall: 0, why });
        assert!(!sufficient(&p, Some(&prev("n1")), &set(&nodes(3)[1..])));
        assert!(sufficient(&p, Some(&prev("n1")), &set(&nodes(1))));
        assert_eq!(names(&p, &nodes(1)[0]), SyncNames::Off);
        assert_eq!(armed_names(&p, &nodes(1)[0]).to_string(), "ANY 1 (n2, n3)");
    }

    #[test]
    fn async_needs_one_node() {
        let p = PolicyRecord { mode: Mode::Async, k: 0, ..policy(3, 1) };
        assert!(sufficient(&p, Some(&prev("n1")), &set(&nodes(3)[2..])));
        assert!(!sufficient(&p, Some(&prev("n1")), &BTreeSet::new()));
        assert_eq!(open_quorum(&p), 0);
    }
}
