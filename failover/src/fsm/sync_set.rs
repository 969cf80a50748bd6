//! How many nodes make a change of primary safe, and how many followers make it open. PURE.
//!
//! With voters V, a primary p and k copies besides its own, every acknowledged commit is on k of the standbys V - p. Once
//! |V - p| + 1 - k of them are frozen (m - k when the primary votes), at most k - 1 can still acknowledge the old primary
//! (it is fenced), and any k of them meet the frozen ones in at least one node (nothing acknowledged is missed).
//!
//! While voters or k are being changed two quorums hold, and nobody knows which of them a commit has waited for: recruits
//! and followers must satisfy both.

use crate::api::Position;
use crate::record::{Lowered, Mode, PolicyRecord, Tenure};
use cluster::NodeId;
use cluster::sync_names::SyncNames;
use std::collections::BTreeSet;

/// What a set of recruits must be for a failover to lose nothing that was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Enough voters besides the old primary, or the old primary itself.
    Quorum,
    /// Async: at least one node; the most advanced of those reachable.
    MostAdvanced,
    /// Commits were acknowledged without a standby: only the old primary itself has them all.
    OldPrimary,
    /// The same, knowingly and within limits: what had been promised before is all that must be kept. So many nodes that
    /// they meet every quorum of before, or one that is known to have it all.
    Lowered,
}

/// The rule of the policy in force.
pub fn rule(policy: &PolicyRecord) -> Rule {
    match (&policy.suspended, policy.mode) {
        (Some(s), _) if s.lowered.is_some() => Rule::Lowered,
        (Some(_), Mode::Strict | Mode::Available) => Rule::OldPrimary,
        (_, Mode::Async) => Rule::MostAdvanced,
        (None, Mode::Strict | Mode::Available) => Rule::Quorum,
    }
}

/// Recruits needed besides the old primary, for display: of the larger demand while two quorums hold; where only the old
/// primary itself would do no number of others suffices.
pub fn needed(policy: &PolicyRecord, prev: Option<&NodeId>) -> usize {
    match rule(policy) {
        Rule::Quorum => policy.quorums().map(|(voters, k)| needed_of(voters, k, prev)).max().unwrap_or(1),
        Rule::MostAdvanced => 1,
        Rule::OldPrimary => policy.m(),
        Rule::Lowered => {
            let each = promised(policy).map(|(voters, k)| needed_of(voters, k, prev));
            each.max().unwrap_or(1).min(policy.m())
        }
    }
}

fn lowered(policy: &PolicyRecord) -> Option<&Lowered> {
    policy.suspended.as_ref()?.lowered.as_ref()
}

/// The quorums that commits waited for before protection was lowered. Where voters or k were being changed then, a commit
/// may have waited for either.
fn promised(policy: &PolicyRecord) -> impl Iterator<Item = (&[NodeId], u32)> {
    let k = lowered(policy).map_or(0, |l| l.k);
    let joint = policy.joint.as_ref().map(|to| (&to.voters[..], to.k.min(k)));
    [(&policy.voters[..], k)].into_iter().chain(joint)
}

/// Does one node whose WAL ends there have all that was promised before protection was lowered?
pub fn complete(policy: &PolicyRecord, end: Position) -> bool {
    let since = policy.suspended.as_ref().and_then(|s| Some((s.term.timeline()?, s.lowered.as_ref()?.complete_from?)));
    since.is_some_and(|(timeline, lsn)| end >= Position { timeline, lsn })
}

fn needed_of(voters: &[NodeId], k: u32, prev: Option<&NodeId>) -> usize {
    let standbys = voters.iter().filter(|v| Some(*v) != prev).count();
    (standbys + 1).saturating_sub(k as usize)
}

/// Do these nodes, of which some have their ends known, suffice to replace `prev`?
pub fn enough(
    policy: &PolicyRecord,
    prev: Option<&Tenure>,
    usable: &BTreeSet<NodeId>,
    ends: impl IntoIterator<Item = Position>,
) -> bool {
    enough_beside(policy, prev, usable, usable, ends)
}

/// The same where more count than are usable: they make up the number, and nothing is said of what they have.
pub fn enough_beside(
    policy: &PolicyRecord,
    prev: Option<&Tenure>,
    usable: &BTreeSet<NodeId>,
    counted: &BTreeSet<NodeId>,
    ends: impl IntoIterator<Item = Position>,
) -> bool {
    sufficient_beside(policy, prev, usable, counted) || ends.into_iter().any(|end| complete(policy, end))
}

/// Do the nodes of `usable` (frozen, or such as could be frozen) suffice to replace `prev`, whatever they have?
///
/// Without a previous tenure nothing was ever acknowledged, so any node will do.
pub fn sufficient(policy: &PolicyRecord, prev: Option<&Tenure>, usable: &BTreeSet<NodeId>) -> bool {
    sufficient_beside(policy, prev, usable, usable)
}

fn sufficient_beside(
    policy: &PolicyRecord,
    prev: Option<&Tenure>,
    usable: &BTreeSet<NodeId>,
    counted: &BTreeSet<NodeId>,
) -> bool {
    let Some(prev) = prev else { return !usable.is_empty() };
    if usable.contains(&prev.node) {
        return true;
    }
    let meets = |(voters, k): (&[NodeId], u32)| {
        let there = voters.iter().filter(|v| **v != prev.node && counted.contains(v)).count();
        there >= needed_of(voters, k, Some(&prev.node))
    };
    match rule(policy) {
        Rule::Quorum => policy.quorums().all(meets),
        Rule::MostAdvanced => !usable.is_empty(),
        Rule::OldPrimary => false,
        Rule::Lowered => promised(policy).all(meets),
    }
}

/// The same where nobody knows who was primary last: etcd was restored from a backup, and terms have been that it does
/// not tell of. So many that they suffice whoever it was; where no quorum confirmed commits, all who vote.
pub fn sufficient_for_any(policy: &PolicyRecord, usable: &BTreeSet<NodeId>) -> bool {
    let there = |voters: &[NodeId]| voters.iter().filter(|v| usable.contains(v)).count();
    match rule(policy) {
        Rule::Quorum => policy.quorums().all(|(voters, k)| there(voters) >= voters.len().saturating_sub(k as usize)),
        Rule::MostAdvanced | Rule::OldPrimary | Rule::Lowered => {
            policy.quorums().all(|(voters, _)| there(voters) == voters.len())
        }
    }
}

/// The nodes of `usable` that count, other than the old primary.
pub fn others(policy: &PolicyRecord, prev: &Tenure, usable: &BTreeSet<NodeId>) -> Vec<NodeId> {
    usable.iter().filter(|n| **n != prev.node && policy.counts(n)).cloned().collect()
}

/// How many standbys must hold the new term's record before it opens, for display.
pub fn open_quorum(policy: &PolicyRecord) -> u32 {
    if policy.protects() { policy.quorums().map(|(_, k)| k).max().unwrap_or(0) } else { 0 }
}

/// Do these followers make `primary`'s term open?
pub fn opens(policy: &PolicyRecord, primary: &NodeId, followers: &[NodeId]) -> bool {
    let of = |voters: &[NodeId]| followers.iter().filter(|f| *f != primary && voters.contains(f)).count();
    !policy.protects() || policy.quorums().all(|(voters, k)| of(voters) >= k as usize)
}

/// What a primary's commits wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// The list of standbys.
    pub names: SyncNames,
    /// Only commits that ask for it wait: `synchronous_commit` is `local` unless a session says otherwise.
    pub on_request: bool,
}

impl Waits {
    /// Every commit waits for the list, unless its session asks for less.
    pub const fn always(names: SyncNames) -> Self {
        Self { names, on_request: false }
    }

    /// Commits wait for nobody, whatever they ask for.
    pub const NOBODY: Self = Self::always(SyncNames::Off);

    /// Commits wait for a standby that there is not: the soft fence.
    pub const FENCED: Self = Self::always(SyncNames::Fenced);

    /// Do commits wait that ask for nothing?
    pub fn protects(&self) -> bool {
        !self.on_request && self.names != SyncNames::Off
    }
}

/// What `node` sets as primary under `policy`.
pub fn waits(policy: &PolicyRecord, node: &NodeId) -> Waits {
    // Beyond its limits a suspension lets nothing through.
    let over = policy.mode != Mode::Async && lowered(policy).is_some_and(|l| l.ended.is_some());
    match policy.mode {
        Mode::Async => Waits { names: armed_names(policy, node), on_request: true },
        Mode::Strict | Mode::Available if policy.protects() || over => Waits::always(armed_names(policy, node)),
        Mode::Strict | Mode::Available => Waits::NOBODY,
    }
}

/// What `node` sets as primary to protect commits, whether they are suspended now or not. While voters or k are being
/// changed, as they will be: a commit that waits for that is covered, as every failover satisfies both.
pub fn armed_names(policy: &PolicyRecord, node: &NodeId) -> SyncNames {
    let (voters, k) = policy.target();
    SyncNames::for_primary(node, voters, k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Limits, Quorum, Suspension};
    use cluster::{Lsn, Term, TimelineId};
    use proptest::prelude::*;

    fn nodes(n: usize) -> Vec<NodeId> {
        (1..=n).map(|i| format!("n{i}").parse().unwrap()).collect()
    }

    fn policy(m: usize, k: u32) -> PolicyRecord {
        PolicyRecord {
            epoch: 1,
            voters: nodes(m),
            k,
            mode: Mode::Strict,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        }
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
            k in 1u32..6, more in 1usize..4, recruits: u32, copies: u32
        ) {
            let m = k as usize + more;
            let (policy, old) = (policy(m, k), prev("n1"));
            let standbys = &policy.voters[1..];
            let recruits = subset(standbys, recruits);
            let copies = subset(standbys, copies);
            if !sufficient(&policy, Some(&old), &recruits) {
                return Ok(());
            }
            let free = standbys.iter().filter(|n| !recruits.contains(n)).count();
            prop_assert!(free < k as usize, "the old primary could still be acknowledged by {free}");
            if copies.len() >= k as usize {
                prop_assert!(recruits.intersection(&copies).next().is_some(), "a commit on {copies:?} is missed");
            }
        }

        #[test]
        fn recruits_for_an_unknown_primary_suffice_whoever_it_was(k in 1u32..6, more in 1usize..4, recruits: u32) {
            let m = k as usize + more;
            let policy = policy(m, k);
            let recruits = subset(&policy.voters, recruits);
            let whoever = policy.voters.iter().all(|p| sufficient(&policy, Some(&prev(p.as_str())), &recruits));
            prop_assert_eq!(sufficient_for_any(&policy, &recruits), whoever);
        }

        #[test]
        fn one_recruit_less_than_needed_misses_some_quorum(k in 1u32..6, more in 1usize..4) {
            let m = k as usize + more;
            let (policy, old) = (policy(m, k), prev("n1"));
            let short = set(&policy.voters[1..m - k as usize]);
            prop_assert!(!sufficient(&policy, Some(&old), &short));
        }
    }

    fn lowered_from(k: u32) -> Suspension {
        let lowered = Some(Lowered { k, complete_from: None, timed: false, ended: None });
        Suspension { term: Term(7), since: Lsn(1), since_wall: 0, why: String::new(), lowered }
    }

    #[test]
    fn a_term_that_opened_alone_while_k_was_lowered_needs_the_recruits_of_both() {
        let to = Some(Quorum { voters: nodes(5), k: 1 });
        let p = PolicyRecord { joint: to, suspended: Some(lowered_from(2)), ..policy(5, 2) };
        let of = |names: &[usize]| set(&names.iter().map(|i| nodes(5)[i - 1].clone()).collect::<Vec<_>>());
        // A commit may have waited for n4 alone, which has been primary since: n1 has it, too.
        assert!(!sufficient(&p, Some(&prev("n4")), &of(&[2, 3, 5])));
        assert!(sufficient(&p, Some(&prev("n4")), &of(&[1, 2, 3, 5])));
        assert_eq!(needed(&p, Some(&prev("n4").node)), 4);
    }

    fn joint(m: usize, k: u32, voters: &[&str], to: u32) -> PolicyRecord {
        let voters = voters.iter().map(|n| n.parse().unwrap()).collect();
        PolicyRecord { joint: Some(Quorum { voters, k: to }), ..policy(m, k) }
    }

    proptest! {
        #[test]
        fn while_voters_change_recruits_meet_the_quorums_of_both(
            (k, more, to_k, to_more) in (1u32..4, 1usize..3, 1u32..4, 1usize..3), shift in 0usize..3, recruits: u32,
            copies: u32, alone: bool
        ) {
            let (m, to_m) = (k as usize + more, to_k as usize + to_more);
            // The new voters overlap the old ones or not, and may leave out the old primary.
            let all = nodes(9);
            let policy = PolicyRecord {
                joint: Some(Quorum { voters: all[shift..shift + to_m].to_vec(), k: to_k }),
                // In available mode a term may have opened alone meanwhile.
                suspended: alone.then(|| lowered_from(k)),
                ..policy(m, k)
            };
            let old = prev("n1");
            let recruits = subset(&all[1..], recruits);
            if !sufficient(&policy, Some(&old), &recruits) {
                return Ok(());
            }
            for (voters, k) in policy.quorums() {
                let standbys: Vec<NodeId> = voters.iter().filter(|v| **v != old.node).cloned().collect();
                let free = standbys.iter().filter(|n| !recruits.contains(*n)).count();
                prop_assert!(free < k as usize, "the old primary could still be acknowledged by {free} of {voters:?}");
                let copies = subset(&standbys, copies);
                if copies.len() >= k as usize {
                    prop_assert!(recruits.intersection(&copies).next().is_some(), "a commit on {copies:?} is missed");
                }
            }
        }
    }

    #[test]
    fn while_voters_change_a_term_opens_with_the_record_on_both_quorums() {
        let policy = joint(3, 1, &["n1", "n4", "n5"], 1);
        let n = |name: &str| name.parse::<NodeId>().unwrap();
        assert!(!opens(&policy, &n("n1"), &[n("n2"), n("n3")]));
        assert!(opens(&policy, &n("n1"), &[n("n2"), n("n4")]));
        assert_eq!(armed_names(&policy, &n("n1")).to_string(), "ANY 1 (n4, n5)");
        assert_eq!(needed(&policy, Some(&n("n1"))), 2);
    }

    #[test]
    fn the_old_primary_alone_is_complete() {
        assert!(sufficient(&policy(3, 1), Some(&prev("n1")), &set(&nodes(1))));
        assert!(!sufficient(&policy(3, 1), Some(&prev("n3")), &set(&nodes(1))));
    }

    /// It is complete where its own WAL is known; one that was rewound is no more than any other, and no standby of its own.
    #[test]
    fn an_old_primary_that_only_makes_up_the_number_does_not() {
        let usable = set(&nodes(2)[1..]);
        let enough =
            |m, k, counted: &[NodeId]| enough_beside(&policy(m, k), Some(&prev("n1")), &usable, &set(counted), []);
        assert!(!enough(3, 1, &nodes(2)));
        assert!(enough(3, 1, &nodes(3)));
        assert!(!enough(5, 2, &nodes(3)));
        assert!(enough(5, 2, &nodes(4)));
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
        p.suspended = Some(Suspension { term: Term(7), since: Lsn(1), since_wall: 0, why, lowered: None });
        assert!(!sufficient(&p, Some(&prev("n1")), &set(&nodes(3)[1..])));
        assert!(sufficient(&p, Some(&prev("n1")), &set(&nodes(1))));
        assert_eq!(waits(&p, &nodes(1)[0]), Waits::NOBODY);
        assert_eq!(armed_names(&p, &nodes(1)[0]).to_string(), "ANY 1 (n2, n3)");
    }

    #[test]
    fn in_async_mode_only_commits_that_ask_wait() {
        let n1 = &nodes(1)[0];
        let strict = waits(&policy(3, 1), n1);
        let asked = waits(&PolicyRecord { mode: Mode::Async, ..policy(3, 1) }, n1);
        assert_eq!((strict.names.to_string().as_str(), strict.protects()), ("ANY 1 (n2, n3)", true));
        assert_eq!((&asked.names, asked.on_request, asked.protects()), (&strict.names, true, false));
        // There is nobody to be asked for.
        let alone = waits(&PolicyRecord { mode: Mode::Async, k: 0, ..policy(3, 1) }, n1);
        assert_eq!(alone, Waits { names: SyncNames::Off, on_request: true });
    }

    #[test]
    fn async_needs_one_node() {
        let p = PolicyRecord { mode: Mode::Async, ..policy(3, 1) };
        assert!(sufficient(&p, Some(&prev("n1")), &set(&nodes(3)[2..])));
        assert!(!sufficient(&p, Some(&prev("n1")), &BTreeSet::new()));
        assert_eq!(open_quorum(&p), 0);
    }
}
