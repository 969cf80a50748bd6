//! Which frozen node becomes primary: the one whose WAL ends last. PURE.
//!
//! Only ends of WAL are compared, of nodes that answered as frozen: what a node had reported earlier, or what the old
//! primary had last published, decides nothing. An operator's wish breaks ties, it never overrides an end of WAL,
//! except where data loss was allowed or the old primary's clean end proves the wish complete.

use crate::api::{Frozen, Position};
use crate::fsm::sync_set::enough;
use crate::record::{PolicyRecord, Tenure};
use cluster::{Lsn, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// What the choice depends on besides the recruits.
#[derive(Clone, Debug)]
pub struct Wishes<'a> {
    /// The policy in force.
    pub policy: &'a PolicyRecord,
    /// The last open tenure.
    pub prev: Option<&'a Tenure>,
    /// The operator's `--to`, or the primary to go back to.
    pub prefer: Option<&'a NodeId>,
    /// Not this one when the others suffice without it: the primary an operator wants to leave, or a node that has
    /// just failed to be promoted.
    pub avoid: Option<&'a NodeId>,
    /// Where the old primary ended when it was stopped cleanly: who has that has everything.
    pub end: Option<Position>,
    /// An operator allowed data loss.
    pub allow_loss: bool,
}

/// The node chosen and where its WAL ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The node.
    pub node: NodeId,
    /// Its end of WAL, which is the base of the new timeline.
    pub base: Position,
}

/// Choose among `recruits` (frozen, not fenced, not quarantined); `None` when nobody's end is known.
pub fn choose(recruits: &BTreeMap<NodeId, Frozen>, wishes: &Wishes<'_>) -> Option<Choice> {
    let known: Vec<(&NodeId, Position, Lsn)> = recruits
        .iter()
        .filter_map(|(node, f)| f.position.map(|p| (node, p, f.replay_lsn.unwrap_or(Lsn::INVALID))))
        .collect();
    if let Some(choice) = wished(&known, wishes) {
        return Some(choice);
    }
    let without: Vec<_> = known.iter().filter(|(n, ..)| Some(*n) != wishes.avoid).copied().collect();
    let names: BTreeSet<NodeId> = without.iter().map(|(n, ..)| (*n).clone()).collect();
    let avoidable = !without.is_empty()
        && (wishes.allow_loss || {
            enough(wishes.policy, wishes.prev, &names, without.iter().map(|(_, end, _)| *end))
        });
    let pool = if avoidable { without } else { known };
    pool.into_iter()
        .max_by(|a, b| {
            let rank = |c: &(&NodeId, Position, Lsn)| (c.1, Some(c.0) == wishes.prefer, c.2);
            // The first name wins the last tie, so the order of names is turned round.
            rank(a).cmp(&rank(b)).then_with(|| b.0.cmp(a.0))
        })
        .map(|(node, base, _)| Choice { node: node.clone(), base })
}

fn wished(known: &[(&NodeId, Position, Lsn)], wishes: &Wishes<'_>) -> Option<Choice> {
    let (node, base, _) = known.iter().find(|(n, ..)| Some(*n) == wishes.prefer)?;
    let complete = wishes.end.is_some_and(|end| *base >= end);
    (wishes.allow_loss || complete).then(|| Choice { node: (*node).clone(), base: *base })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Limits, Mode};
    use cluster::{Term, TimelineId};
    use proptest::prelude::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    fn frozen(name: &str, position: Option<Position>, replay: u64) -> (NodeId, Frozen) {
        let frozen = Frozen {
            node: node(name),
            term: Term(8),
            position,
            replay_lsn: Some(Lsn(replay)),
            history: None,
            quarantine: None,
            was_primary: false,
            system_id: None,
        };
        (node(name), frozen)
    }

    fn policy() -> PolicyRecord {
        let voters = vec![node("n1"), node("n2"), node("n3")];
        PolicyRecord {
            epoch: 1,
            voters,
            k: 1,
            mode: Mode::Strict,
            suspended: None,
            limits: Limits::default(),
            joint: None,
        }
    }

    fn check(recruits: &[(&str, u32, u64, u64)], wish: impl FnOnce(&mut Wishes<'_>), expected: &str) {
        let recruits = recruits.iter().map(|(n, t, l, r)| frozen(n, Some(at(*t, *l)), *r)).collect();
        let (policy, prev) = (policy(), Tenure { term: Term(7), node: node("n1"), timeline: TimelineId(7) });
        let mut wishes =
            Wishes { policy: &policy, prev: Some(&prev), prefer: None, avoid: None, end: None, allow_loss: false };
        wish(&mut wishes);
        assert_eq!(choose(&recruits, &wishes).unwrap().node.as_str(), expected);
    }

    #[test]
    fn the_timeline_counts_before_the_position() {
        check(&[("n2", 7, 900, 0), ("n3", 8, 100, 0)], |_| {}, "n3");
        check(&[("n2", 7, 900, 0), ("n3", 7, 100, 0)], |_| {}, "n2");
    }

    #[test]
    fn ties_go_to_the_wish_then_to_the_replay_then_to_the_first_name() {
        let (n2, n3) = (node("n2"), node("n3"));
        check(&[("n2", 7, 9, 1), ("n3", 7, 9, 1)], |_| {}, "n2");
        check(&[("n2", 7, 9, 1), ("n3", 7, 9, 2)], |_| {}, "n3");
        let want = n2.clone();
        check(&[("n2", 7, 9, 1), ("n3", 7, 9, 2)], |w| w.prefer = Some(Box::leak(Box::new(want))), "n2");
        let want = n3.clone();
        check(&[("n2", 7, 10, 1), ("n3", 7, 9, 2)], |w| w.prefer = Some(Box::leak(Box::new(want))), "n2");
        let want: &'static NodeId = Box::leak(Box::new(n3));
        let lossy = |w: &mut Wishes<'_>| (w.prefer, w.allow_loss) = (Some(want), true);
        check(&[("n2", 7, 10, 1), ("n3", 7, 9, 2)], lossy, "n3");
    }

    #[test]
    fn a_target_that_has_the_clean_end_is_complete() {
        let want: &'static NodeId = Box::leak(Box::new(node("n3")));
        let clean = |end| move |w: &mut Wishes<'_>| (w.prefer, w.end) = (Some(want), Some(at(7, end)));
        check(&[("n1", 7, 10, 9), ("n3", 7, 9, 9)], clean(9), "n3");
        check(&[("n1", 7, 10, 9), ("n3", 7, 9, 9)], clean(10), "n1");
    }

    #[test]
    fn a_node_is_avoided_only_when_the_others_are_complete_without_it() {
        let old: &'static NodeId = Box::leak(Box::new(node("n1")));
        check(&[("n1", 7, 10, 0), ("n2", 7, 8, 0), ("n3", 7, 9, 0)], |w| w.avoid = Some(old), "n3");
        check(&[("n1", 7, 10, 0), ("n3", 7, 9, 0)], |w| w.avoid = Some(old), "n1");
        let lossy = |w: &mut Wishes<'_>| (w.avoid, w.allow_loss) = (Some(old), true);
        check(&[("n1", 7, 10, 0), ("n3", 7, 9, 0)], lossy, "n3");
    }

    proptest! {
        #[test]
        fn without_a_wish_nobody_is_ahead_of_the_choice(ends in prop::collection::vec((1u32..4, 0u64..5), 1..5)) {
            let recruits: BTreeMap<_, _> =
                ends.iter().enumerate().map(|(i, (t, l))| frozen(&format!("n{i}"), Some(at(*t, *l)), 0)).collect();
            let policy = policy();
            let wishes =
                Wishes { policy: &policy, prev: None, prefer: None, avoid: None, end: None, allow_loss: false };
            let choice = choose(&recruits, &wishes).unwrap();
            prop_assert!(recruits.values().all(|f| f.position.unwrap() <= choice.base));
        }
    }
}
