//! The model's arithmetic is the code's: recruits, the choice among them, histories.

use cluster::timeline::{Fork, History};
use cluster::{Lsn, NodeId, Term, TimelineId};
use failover::api::{Frozen, Position as CodePosition};
use failover::fsm::candidate::{Wishes, choose};
use failover::fsm::rejoin::{Facts, Plan, plan};
use failover::fsm::sync_set;
use failover::record::{Limits, Lowered, Mode, PolicyRecord, Quorum, Suspension, Tenure};
use model::Scope;
use model::manager::choices;
use model::state::State;
use model::wal::{Entry, Numbering, Position, Wal};
use std::collections::{BTreeMap, BTreeSet};

fn node(i: usize) -> NodeId {
    format!("n{i}").parse().expect("a name")
}

fn position(p: Position) -> CodePosition {
    CodePosition { timeline: TimelineId(p.timeline().into()), lsn: Lsn(p.lsn().into()) }
}

fn frozen(i: usize, p: Position) -> Frozen {
    let at = position(p);
    let replay_lsn = Some(at.lsn);
    let (node, term) = (node(i), Term(8));
    Frozen {
        node,
        term,
        position: Some(at),
        replay_lsn,
        history: None,
        quarantine: None,
        was_primary: false,
        system_id: None,
        recorded: None,
    }
}

fn lowered_by(k: u8, complete: Position) -> Lowered {
    let complete_from = complete.is_known().then(|| position(complete).lsn);
    Lowered { k: k.into(), complete_from, timed: true, ended: None }
}

/// Every set of recruits of `M` nodes, each at one of three ends of WAL, under every k and every change of it.
fn compare_choices<const M: usize>() {
    let ends = [Position(0), Position(0x11), Position(0x13), Position(0x22)];
    let mut chosen = 0;
    let copies = 1..M as u8;
    let nexts = copies.clone().map(Some).chain([None]);
    let no = Position::default();
    let policies = copies.flat_map(|k| {
        let ends = ends.map(|complete| (k, None, true, Some(complete)));
        nexts.clone().map(move |next| (k, next, false, None)).chain([(k, None, true, None)]).chain(ends)
    });
    for (k, next, suspended, lowered) in policies {
        for set in 0..ends.len().pow(M as u32) {
            let mut s = State::<M>::first(k);
            (s.etcd.term, s.etcd.prev, s.round.suspended, s.round.next) = (2, 1, suspended, next);
            s.round.next_voters = if next.is_some() { s.round.voters } else { 0 };
            (s.round.lowered, s.round.complete) = (lowered.is_some(), lowered.unwrap_or(no));
            s.recruits = std::array::from_fn(|i| ends[set / ends.len().pow(i as u32) % ends.len()]);
            let voters: Vec<NodeId> = (0..M).map(node).collect();
            let timeline = lowered.filter(|p| p.is_known()).map_or(1, |p| p.timeline());
            let suspension = Suspension {
                term: Term(timeline.into()),
                since: Lsn(1),
                since_wall: 0,
                why: String::new(),
                lowered: lowered.map(|at| lowered_by(k, at)),
            };
            let suspended = suspended.then_some(suspension);
            let joint = next.map(|k| Quorum { voters: voters.clone(), k: k.into() });
            let policy = PolicyRecord {
                epoch: 1,
                voters,
                k: k.into(),
                mode: Mode::Strict,
                joint,
                suspended,
                rearmed: None,
                limits: Limits::default(),
            };
            let prev = Tenure { term: Term(1), node: node(0), timeline: TimelineId(1) };
            let known = (0..M).filter(|i| s.recruits[*i].is_known());
            let recruits: BTreeMap<NodeId, Frozen> = known.map(|i| (node(i), frozen(i, s.recruits[i]))).collect();
            let names: BTreeSet<NodeId> = recruits.keys().cloned().collect();
            let ours = choices(&Scope { k, ..Scope::three() }, &s, &s.recruits);
            let ends = recruits.values().filter_map(|f| f.position);
            let enough = sync_set::enough(&policy, Some(&prev), &names, ends);
            assert_eq!(!ours.is_empty(), enough, "{:?} under {policy:?}", s.recruits);
            // Where nobody knows who was primary last.
            s.etcd.history_lost = true;
            let any = !choices(&Scope { k, ..Scope::three() }, &s, &s.recruits).is_empty();
            let theirs = sync_set::sufficient_for_any(&policy, &names);
            assert_eq!(any, theirs, "{:?} under {policy:?}", s.recruits);
            if enough {
                let preferences = BTreeMap::new();
                let wishes = Wishes {
                    policy: &policy,
                    prev: Some(&prev),
                    history_lost: false,
                    prefer: None,
                    avoid: None,
                    end: None,
                    beside: None,
                    allow_loss: false,
                    preferences: &preferences,
                };
                let theirs = choose(&recruits, &wishes).expect("enough recruits");
                assert!(ours.iter().any(|i| node(usize::from(*i)) == theirs.node), "{ours:?} and {theirs:?}");
                chosen += 1;
            }
        }
    }
    assert!(chosen > 0, "no set was ever enough");
}

#[test]
fn the_same_recruits_suffice_and_the_same_node_is_chosen() {
    compare_choices::<3>();
    compare_choices::<4>();
    compare_choices::<5>();
}

fn history(wal: Wal) -> History {
    let parts: Vec<Position> = wal.segments(Numbering::Term).collect();
    let (last, forks) = parts.split_last().expect("a log has a timeline");
    let fork = |p: &Position| Fork { timeline: TimelineId(p.timeline().into()), lsn: Lsn(p.lsn().into()) };
    History { forks: forks.iter().map(fork).collect(), ..History::root(TimelineId(last.timeline().into())) }
}

/// Every log of at most four records in which terms grow.
fn logs() -> Vec<Wal> {
    let mut all = vec![Wal::default()];
    let mut longest = all.clone();
    for _ in 0..4 {
        let grown = longest.iter().flat_map(|wal| {
            let next = wal.timeline(Numbering::Term) + 1;
            [Entry::Write(1), Entry::Noise].into_iter().chain((next..4).map(Entry::Term)).map(|e| wal.with(e))
        });
        longest = grown.collect();
        all.extend(&longest);
    }
    all
}

#[test]
fn the_same_nodes_may_simply_follow() {
    let (mut follow, mut repair) = (0, 0);
    for upstream in logs() {
        for own in logs() {
            let (theirs, mine) = (history(upstream), history(own));
            let facts = Facts {
                own_end: position(own.end(Numbering::Term)),
                own: Some(&mine),
                upstream: &theirs,
                rewind_interrupted: false,
                whole: false,
                examined: None,
                opened: Term(0),
                source_is_open: true,
            };
            let follows = plan(&facts) == Plan::Follow;
            assert_eq!(upstream.descends(own, Numbering::Term), follows, "{own:?} under {upstream:?}");
            *(if follows { &mut follow } else { &mut repair }) += 1;
        }
    }
    assert!(follow > 1000 && repair > 1000, "both happen: {follow}, {repair}");
}
