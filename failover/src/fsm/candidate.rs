//! Which frozen node becomes primary: the one whose WAL ends last. PURE.
//!
//! Only ends of WAL are compared, of nodes that answered as frozen: what a node had reported earlier, or what the old
//! primary had last published, decides nothing. An operator's wish and what nodes are meant for break ties, they never
//! override an end of WAL, except where data loss was allowed or the old primary's clean end proves the wish complete.

use crate::api::{Frozen, Position};
use crate::fsm::preference::{Preference, Willing};
use crate::fsm::sync_set::{enough_beside, sufficient_for_any};
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
    /// Who that was is not known for sure.
    pub history_lost: bool,
    /// The operator's `--to`, or the primary to go back to.
    pub prefer: Option<&'a NodeId>,
    /// Not this one when the others suffice without it: the primary an operator wants to leave, or a node that has
    /// just failed to be promoted.
    pub avoid: Option<&'a NodeId>,
    /// Where the old primary ended when it was stopped cleanly: who has that has everything.
    pub end: Option<Position>,
    /// Who else counts, beside whom.
    pub beside: Option<&'a Beside>,
    /// An operator allowed data loss.
    pub allow_loss: bool,
    /// What the nodes are meant for; who is not named is as by default.
    pub preferences: &'a BTreeMap<NodeId, Preference>,
}

/// A recruit that was chosen in an earlier term, none of which was opened, and frozen nodes that are quarantined. What they have
/// lost it has, and they are as frozen as others: where it is among the recruits they count, but are not chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// Who was chosen.
    pub node: NodeId,
    /// Who counts where it is.
    pub quarantined: BTreeSet<NodeId>,
}

impl Beside {
    /// `names`, and who else counts beside them.
    pub fn counted(beside: Option<&Self>, names: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let there = beside.filter(|b| names.contains(&b.node));
        there.into_iter().flat_map(|b| &b.quarantined).chain(names).cloned().collect()
    }
}

impl Wishes<'_> {
    fn preference(&self, node: &NodeId) -> Preference {
        self.preferences.get(node).copied().unwrap_or_default()
    }

    fn gladly(&self, node: &NodeId) -> bool {
        self.prefer == Some(node) || self.preference(node).willing == Willing::Yes
    }

    /// Would the node have to be made primary against what it is meant for?
    pub fn unasked(&self, node: &NodeId) -> bool {
        self.prefer != Some(node) && self.preference(node).willing == Willing::Never
    }
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
    let known: Vec<Known<'_>> = recruits
        .iter()
        .filter_map(|(node, f)| f.position.map(|p| (node, p, f.replay_lsn.unwrap_or(Lsn::INVALID))))
        .collect();
    if let Some(choice) = wished(&known, wishes) {
        return Some(choice);
    }
    let avoided = |n: &NodeId| Some(n) == wishes.avoid;
    // The smallest pool that lacks nothing: without whom nobody wants there, then with those, then with all.
    let pool = pool_of(&known, wishes, |n| !avoided(n) && wishes.gladly(n))
        .or_else(|| pool_of(&known, wishes, |n| !avoided(n) && !wishes.unasked(n)))
        .or_else(|| pool_of(&known, wishes, |n| !avoided(n)))
        .unwrap_or(known);
    pool.into_iter()
        .max_by(|a, b| {
            let rank = |c: &Known<'_>| (c.1, Some(c.0) == wishes.prefer, wishes.preference(c.0), c.2);
            // The first name wins the last tie, so the order of names is turned round.
            rank(a).cmp(&rank(b)).then_with(|| b.0.cmp(a.0))
        })
        .map(|(node, base, _)| Choice { node: node.clone(), base })
}

/// A recruit, its end and how far it has replayed.
type Known<'a> = (&'a NodeId, Position, Lsn);

/// Those that `keep` leaves, if they are complete without the rest.
fn pool_of<'a>(known: &[Known<'a>], wishes: &Wishes<'_>, keep: impl Fn(&NodeId) -> bool) -> Option<Vec<Known<'a>>> {
    let pool: Vec<Known<'a>> = known.iter().filter(|(n, ..)| keep(n)).copied().collect();
    let names: BTreeSet<NodeId> = pool.iter().map(|(n, ..)| (*n).clone()).collect();
    let counted = Beside::counted(wishes.beside, &names);
    let ends = pool.iter().map(|(_, end, _)| *end);
    let enough = match wishes.history_lost {
        false => enough_beside(wishes.policy, wishes.prev, &names, &counted, ends),
        true => sufficient_for_any(wishes.policy, &counted),
    };
    let complete = wishes.allow_loss || enough;
    (!pool.is_empty() && complete).then_some(pool)
}

/// Whom one would rather have as primary than the choice, and who lacks at most `limit` bytes of what that has.
pub fn rather(recruits: &BTreeMap<NodeId, Frozen>, wishes: &Wishes<'_>, choice: &Choice, limit: u64) -> Option<NodeId> {
    let liking = |n: &NodeId| (wishes.prefer == Some(n), wishes.preference(n));
    let lacks = |p: Position| {
        p.timeline == choice.base.timeline && p < choice.base && choice.base.lsn.bytes_since(p.lsn) <= limit
    };
    let close = recruits.iter().filter_map(|(n, f)| f.position.filter(|p| lacks(*p)).map(|p| (liking(n), p, n)));
    let better = close.filter(|(l, _, n)| *l > liking(&choice.node) && Some(*n) != wishes.avoid && !wishes.unasked(n));
    better.max_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then_with(|| b.2.cmp(a.2))).map(|(_, _, n)| n.clone())
}

fn wished(known: &[Known<'_>], wishes: &Wishes<'_>) -> Option<Choice> {
    let (node, base, _) = known.iter().find(|(n, ..)| Some(*n) == wishes.prefer)?;
    let complete = wishes.end.is_some_and(|end| base.timeline == end.timeline && base.lsn >= end.lsn);
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
            recorded: None,
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
            rearmed: None,
        }
    }

    fn wishes<'a>(policy: &'a PolicyRecord, preferences: &'a BTreeMap<NodeId, Preference>) -> Wishes<'a> {
        Wishes {
            policy,
            prev: None,
            history_lost: false,
            prefer: None,
            avoid: None,
            end: None,
            beside: None,
            allow_loss: false,
            preferences,
        }
    }

    fn check(recruits: &[(&str, u32, u64, u64)], wish: impl FnOnce(&mut Wishes<'_>), expected: &str) {
        let recruits = recruits.iter().map(|(n, t, l, r)| frozen(n, Some(at(*t, *l)), *r)).collect();
        let (policy, prev) = (policy(), Tenure { term: Term(7), node: node("n1"), timeline: TimelineId(7) });
        let preferences = BTreeMap::new();
        let mut wishes = Wishes { prev: Some(&prev), ..wishes(&policy, &preferences) };
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

    /// n2 has this priority; n3 is near, and willing or not.
    fn meant(priority: u32, willing: Willing) -> &'static BTreeMap<NodeId, Preference> {
        let n2 = Preference { priority, ..Preference::default() };
        let n3 = Preference { willing, near: true, ..Preference::default() };
        Box::leak(Box::new(BTreeMap::from([(node("n2"), n2), (node("n3"), n3)])))
    }

    #[test]
    fn among_equals_the_priority_decides_then_the_zone_and_never_against_the_wal() {
        let with = |priority| move |w: &mut Wishes<'_>| w.preferences = meant(priority, Willing::Yes);
        check(&[("n2", 7, 9, 1), ("n3", 7, 9, 2)], with(101), "n2");
        check(&[("n2", 7, 9, 2), ("n3", 7, 9, 1)], with(100), "n3");
        check(&[("n2", 7, 9, 2), ("n3", 7, 9, 1)], with(99), "n3");
        check(&[("n2", 7, 8, 1), ("n3", 7, 9, 1)], with(101), "n3");
        // Of three recruits two are complete without the third, however far it is.
        let never = |w: &mut Wishes<'_>| w.preferences = meant(100, Willing::Never);
        check(&[("n1", 7, 8, 0), ("n2", 7, 7, 0), ("n3", 7, 9, 0)], never, "n1");
        check(&[("n2", 7, 9, 1), ("n3", 7, 9, 2)], never, "n2");
    }

    #[test]
    fn a_node_that_is_liked_better_and_little_behind_is_worth_bringing_up() {
        let all = |n2: u64| [("n2", 7, n2, 0), ("n3", 7, 900, 0)].map(|(n, t, l, r)| frozen(n, Some(at(t, l)), r));
        let (policy, choice) = (policy(), Choice { node: node("n3"), base: at(7, 900) });
        let of = |n2: u64, priority: u32| {
            let (recruits, preferences) = (BTreeMap::from(all(n2)), meant(priority, Willing::Yes));
            rather(&recruits, &wishes(&policy, preferences), &choice, 100)
        };
        assert_eq!(of(800, 101), Some(node("n2")));
        assert_eq!(of(799, 101), None, "too far");
        assert_eq!(of(800, 100), None, "n3 is near");
        let other_line = BTreeMap::from([frozen("n2", Some(at(6, 880)), 0)]);
        assert_eq!(rather(&other_line, &wishes(&policy, meant(101, Willing::Yes)), &choice, 100), None);
        // Whoever is never promoted is left for anybody else.
        assert_eq!(
            rather(&BTreeMap::from(all(850)), &wishes(&policy, meant(1, Willing::Never)), &choice, 100),
            Some(node("n2"))
        );
    }

    #[test]
    fn who_is_never_promoted_is_named_when_the_others_lack_something() {
        let never = |w: &mut Wishes<'_>| w.preferences = meant(100, Willing::Never);
        check(&[("n2", 7, 8, 1), ("n3", 7, 9, 2)], never, "n3");
        let (policy, wanted) = (policy(), node("n3"));
        let by_default = wishes(&policy, meant(100, Willing::Never));
        assert!(by_default.unasked(&wanted));
        assert!(!Wishes { prefer: Some(&wanted), ..by_default }.unasked(&wanted));
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
            let preferences = BTreeMap::new();
            let wishes = wishes(&policy, &preferences);
            let choice = choose(&recruits, &wishes).unwrap();
            prop_assert!(recruits.values().all(|f| f.position.unwrap() <= choice.base));
        }
    }
}
