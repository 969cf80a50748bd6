//! Slots: what a standby is connected through only once. PURE.
//!
//! For `synchronous_standby_names` PostgreSQL counts walsenders, not names. While the old connection of a standby is not
//! seen to have ended (its walsender stands still, or nothing tells it that the other side is gone), the new one is a second
//! copy of whatever both have confirmed. Where commits wait for one standby the two are no worse than one. Where they wait
//! for two they could be all of it, and the primary and that standby together all that has the commit. So there each
//! standby streams through a physical slot of its own, which PostgreSQL gives to one walsender at a time.
//!
//! Slots are kept on every member for every other one, by its agent, so that nobody waits for one when a standby is
//! promoted. They are not there to keep WAL, which is `agent.wal_keep`'s: they reserve none when they are made, and one that
//! was used and left is made anew. A slot that is in use is never dropped, as PostgreSQL refuses to.

use crate::record::PolicyRecord;
use cluster::{Instant, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// So long a standby may be away before its slot is made anew.
const LEFT_FOR: Duration = Duration::from_secs(10);

/// Are standbys to stream through slots? As soon as commits are to wait for two, and as long as they may.
pub fn wanted(policy: &PolicyRecord) -> bool {
    policy.quorums().any(|(_, k)| k >= 2)
}

/// Must nobody stream under a node's name but through its slot? Not while that is still to be armed, which sees to it. Nor
/// while commits are to wait for one standby of the same voters or more, which must not depend on slots: whoever succeeds
/// meanwhile meets that quorum too, and so has what any one of them has.
pub fn required(policy: &PolicyRecord) -> bool {
    let lowered =
        policy.joint.as_ref().is_some_and(|to| to.k < 2 && policy.voters.iter().all(|v| to.voters.contains(v)));
    policy.protects() && policy.k >= 2 && !lowered
}

/// The slots that a member should have, one for each other member, where standbys stream `through` slots; `None` while
/// that, or the members, is not known: then those that are there are left as they are.
pub fn needed<'a>(
    own: &NodeId,
    through: Option<bool>,
    mut members: impl Iterator<Item = &'a NodeId> + Clone,
) -> Option<BTreeSet<String>> {
    if !through? {
        return Some(BTreeSet::new());
    }
    let others = members.clone().filter(|n| *n != own).map(NodeId::slot_name).collect();
    members.any(|n| n == own).then_some(others)
}

/// Who keeps commits from being released by `k` of these voters: whoever is connected `without` its slot and, if too few
/// stream `through` theirs, the other voters. Nobody where each of the k is one.
pub fn not_through(
    k: u32,
    voters: &[NodeId],
    through: &BTreeSet<NodeId>,
    without: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let missing = voters.iter().filter(|v| !through.contains(*v));
    let enough = voters.len() - missing.clone().count() >= k as usize;
    let missing = missing.filter(|_| !enough).cloned();
    missing.chain(without.iter().cloned()).collect()
}

/// A slot of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// A walsender has it.
    pub active: bool,
    /// It keeps WAL, or old rows.
    pub keeps: bool,
    /// It has been invalidated, for having kept too much. PostgreSQL 18 lets nobody stream through it.
    pub lost: bool,
    /// Its node is known to do without.
    pub unused: bool,
}

/// What to do about one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tend {
    /// Make it.
    Make(String),
    /// Drop it and make it again, so that it keeps nothing.
    Renew(String),
    /// Drop it.
    Drop(String),
}

/// Since when slots have been left that keep something, or are not needed.
#[derive(Debug, Default)]
pub struct Left(BTreeMap<String, Instant>);

impl Left {
    /// What is to be done where there are these slots of ours, and those are needed. One that is not may still be to a node
    /// whose agent has not read of that, and would be made again at once.
    pub fn tend(&mut self, now: Instant, needed: &BTreeSet<String>, found: &[Slot]) -> Vec<Tend> {
        let needs = |s: &Slot| needed.contains(&s.name);
        let counts = |s: &Slot| !s.active && (s.keeps || !needs(s));
        self.0.retain(|name, _| found.iter().any(|s| s.name == *name && counts(s)));
        let mut left = |s: &Slot| now.since(*self.0.entry(s.name.clone()).or_insert(now)) >= LEFT_FOR;
        let mut todo = Vec::new();
        for slot in found.iter().filter(|s| !s.active) {
            if !needs(slot) && (slot.unused || left(slot)) {
                todo.push(Tend::Drop(slot.name.clone()));
            } else if needs(slot) && (slot.lost || slot.keeps && left(slot)) {
                todo.push(Tend::Renew(slot.name.clone()));
            }
        }
        let missing = needed.iter().filter(|n| found.iter().all(|s| s.name != **n));
        todo.extend(missing.cloned().map(Tend::Make));
        todo
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Limits, Mode, Quorum};

    fn policy(mode: Mode, k: u32, to: Option<u32>) -> PolicyRecord {
        let voters: Vec<_> = ["n1", "n2", "n3", "n4"].map(|n| n.parse().unwrap()).to_vec();
        let joint = to.map(|k| Quorum { voters: voters.clone(), k });
        let limits = Limits::default();
        PolicyRecord { epoch: 1, voters, k, mode, suspended: None, limits, joint, rearmed: None }
    }

    #[test]
    fn slots_are_wanted_before_two_are_relied_on_and_until_they_no_more_are() {
        for (mode, k, to, want) in [
            (Mode::Strict, 1, None, (false, false)),
            (Mode::Strict, 1, Some(2), (true, false)),
            (Mode::Strict, 2, None, (true, true)),
            (Mode::Strict, 2, Some(3), (true, true)),
            (Mode::Strict, 2, Some(1), (true, false)),
            (Mode::Async, 2, None, (true, false)),
        ] {
            let policy = policy(mode, k, to);
            assert_eq!((wanted(&policy), required(&policy)), want, "{mode:?} {k} {to:?}");
        }
    }

    #[test]
    fn a_node_twice_is_kept_out_as_long_as_it_may_not_vote_once_one_is_enough() {
        let mut policy = policy(Mode::Strict, 2, Some(1));
        policy.joint.as_mut().unwrap().voters.pop();
        assert!(required(&policy));
    }

    #[test]
    fn slots_are_those_of_the_other_members_and_left_alone_until_it_is_known_that_there_are_to_be_some() {
        let members: Vec<NodeId> = names("n1 n2 n3").into_iter().collect();
        let needed = |own: &str, through| {
            let needed = needed(&own.parse().unwrap(), through, members.iter())?;
            Some(needed.into_iter().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(needed("n2", Some(true)).as_deref(), Some("pgtenure_n1 pgtenure_n3"));
        assert_eq!(needed("n2", Some(false)).as_deref(), Some(""));
        assert_eq!(needed("n2", None), None, "no policy was read");
        assert_eq!(needed("n4", Some(true)), None, "not all members are known");
    }

    #[test]
    fn two_may_release_commits_once_two_stream_through_slots_and_nobody_without() {
        let voters: Vec<NodeId> = names("n2 n3 n4").into_iter().collect();
        let keep = |through: &str, without: &str| {
            let keep = not_through(2, &voters, &names(through), &names(without));
            keep.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(keep("n2 n4", ""), "");
        assert_eq!(keep("n2 n3 n4", "n4"), "n4", "connected twice");
        assert_eq!(keep("n2 n3", "n5"), "n5", "a member that does not vote yet");
        assert_eq!(keep("n2", "n3"), "n3 n4");
        assert_eq!(keep("", ""), "n2 n3 n4", "nobody at all, as they connect anew just now");
        assert_eq!(keep("n2 n5", ""), "n3 n4", "through a slot, but no voter");
    }

    fn names(text: &str) -> BTreeSet<NodeId> {
        text.split_whitespace().map(|n| n.parse().unwrap()).collect()
    }

    /// `name`, `!` behind it: in use, `+`: keeps something, `-`: invalidated, `?`: its node may still want it.
    fn slots(text: &str) -> Vec<Slot> {
        let one = |word: &str| Slot {
            name: word.trim_end_matches(['!', '+', '-', '?']).into(),
            active: word.contains('!'),
            keeps: word.contains('+'),
            lost: word.contains('-'),
            unused: !word.contains('?'),
        };
        text.split_whitespace().map(one).collect()
    }

    fn check(left: &mut Left, s: u64, needed: &str, found: &str, want: &str) {
        let needed = needed.split_whitespace().map(str::to_owned).collect();
        let told = left.tend(Instant::from_millis(s * 1000), &needed, &slots(found));
        let told: Vec<String> = told.iter().map(|t| format!("{t:?}").replace(['"', '(', ')'], " ")).collect();
        let told = told.join(" ");
        assert_eq!(told.split_whitespace().collect::<Vec<_>>().join(" "), want, "{s} s: {found}");
    }

    #[test]
    fn slots_of_all_members_are_made_and_those_of_nobody_dropped_once_they_are_left() {
        let left = &mut Left::default();
        check(left, 0, "a b", "", "Make a Make b");
        check(left, 0, "a", "a c! d d2+", "Drop d Drop d2");
        check(left, 0, "", "a!+", "");
    }

    /// A standby whose agent has not read that none are needed any more makes its slot, and connects a moment later.
    #[test]
    fn a_slot_that_is_not_needed_is_dropped_at_once_only_where_its_node_does_without() {
        let left = &mut Left::default();
        check(left, 0, "", "a?", "");
        check(left, 1, "", "a?!+", "");
        check(left, 2, "", "a?+", "");
        check(left, 11, "", "a?+", "");
        check(left, 12, "", "a?+ b?", "Drop a");
        check(left, 13, "", "b", "Drop b");
    }

    #[test]
    fn a_slot_that_was_left_keeps_nothing_for_long() {
        let left = &mut Left::default();
        check(left, 0, "a b", "a!+ b", "");
        check(left, 5, "a b", "a+ b", "");
        check(left, 14, "a b", "a+ b", "");
        check(left, 15, "a b", "a+ b", "Renew a");
        // Not made anew yet, as its standby came back: it begins from the beginning.
        check(left, 16, "a b", "a!+ b", "");
        check(left, 17, "a b", "a+ b", "");
        check(left, 26, "a b", "a+ b", "");
        check(left, 27, "a b", "a+ b", "Renew a");
        check(left, 28, "a b", "a b", "");
        // Its standby may be refused for as long as it is there.
        check(left, 29, "a b", "a!- b-", "Renew b");
    }
}
