//! What a session is told of its own writes once another term is open.

use super::*;

/// n1 in term 7, sampled at 1000 ms at 100 and at 1100 ms at 200; then n2 in term 8, which has term 7 up to `fork`.
fn failed_over(write: impl FnOnce(&mut Causality), fork: u64) -> World {
    let mut w = World::new();
    for (lsn, ms) in [(100, 1000), (200, 1100)] {
        w.snapshot.primary = Some(sample("n1", lsn, ms));
        w.publish();
    }
    write(&mut w.causality);
    let forks = vec![Fork { timeline: TimelineId(7), lsn: Lsn(fork) }];
    w.topology = Topology { term: Term(8), primary: Some(member("n2")), forks, ..w.topology };
    w
}

fn lost(w: &mut World) -> Option<LostWrite> {
    w.causality.take_lost(&w.topology, &w.lag)
}

#[test]
fn a_write_that_no_standby_had_is_told_once() {
    for (acknowledged, fork, before, is_lost) in [
        // A sample that was asked for later is within what term 8 has, so the write is.
        (900, 100, Some(100), false),
        (1000, 100, Some(100), false),
        (1001, 200, Some(200), false),
        (1001, 199, Some(200), true),
        (900, 99, Some(100), true),
        // Nothing was sampled since.
        (1101, 200, None, true),
        (1101, 900, None, true),
    ] {
        let mut w = failed_over(|c| c.acknowledged(Term(7), By::Primary, at(acknowledged)), fork);
        let fork = Some(Lsn(fork));
        let told = LostWrite { term: Term(7), at: at(acknowledged), fork, before: before.map(Lsn), open: Term(8) };
        assert_eq!(lost(&mut w), is_lost.then_some(told), "{acknowledged} ms");
        assert_eq!(lost(&mut w), None, "it is told once");
        assert!(!w.causality.wrote_before(Term(8)));
    }
}

#[test]
fn what_the_next_term_is_known_to_hold_is_not_lost_though_nothing_was_sampled_since() {
    let write = |c: &mut Causality| c.acknowledged(Term(7), By::Primary, at(1101));
    let mut w = failed_over(write, 900);
    w.topology.holds_all_of = Some(Term(7));
    assert_eq!(lost(&mut w), None);
    let mut w = failed_over(write, 900);
    w.topology.holds_all_of = Some(Term(6));
    assert!(lost(&mut w).is_some());
}

#[test]
fn what_the_last_primarys_disk_had_is_there_and_what_it_need_not_have_had_may_be_lost() {
    for (by, is_lost) in [(By::Primary, false), (By::Quorum, false), (By::Memory, true)] {
        let mut w = failed_over(|c| c.acknowledged(Term(7), by, at(1101)), 900);
        (w.topology.holds_written_of, w.topology.loss_allowed) = (Some(Term(7)), true);
        assert_eq!(lost(&mut w).is_some(), is_lost, "{by:?}");
    }
}

#[test]
fn what_a_quorum_has_confirmed_is_lost_only_where_an_operator_allows_it() {
    let write = |c: &mut Causality| c.acknowledged(Term(7), By::Quorum, at(1050));
    assert_eq!(lost(&mut failed_over(write, 150)), None);
    let mut w = failed_over(write, 150);
    w.topology.loss_allowed = true;
    assert_eq!(lost(&mut w).map(|l| l.term), Some(Term(7)));
    let mut w = failed_over(write, 200);
    w.topology.loss_allowed = true;
    assert_eq!(lost(&mut w), None, "it is there all the same");
    // The term in between had all of it.
    let mut w = failed_over(write, 150);
    let later = Fork { timeline: TimelineId(8), lsn: Lsn(300) };
    w.topology.forks.push(later);
    (w.topology.term, w.topology.loss_allowed) = (Term(9), true);
    assert_eq!(lost(&mut w), None);
    // One that it did not confirm, before one that it did.
    let mut w = failed_over(
        |c| {
            c.acknowledged(Term(7), By::Primary, at(1090));
            c.acknowledged(Term(7), By::Quorum, at(1150));
        },
        150,
    );
    assert_eq!(lost(&mut w).map(|l| l.at), Some(at(1090)));
}

#[test]
fn nothing_is_said_before_it_is_decided_and_nothing_of_the_term_in_force() {
    let mut w = failed_over(|c| c.acknowledged(Term(7), By::Primary, at(1050)), 150);
    w.topology.gate = Gate::Closed(Closed::Opening);
    assert_eq!(lost(&mut w), None);
    w.topology.gate = Gate::Open;
    w.causality.acknowledged(Term(8), By::Quorum, at(1200));
    assert_eq!(lost(&mut w).map(|l| l.term), Some(Term(7)));
    w.causality.acknowledged(Term(8), By::Primary, at(1300));
    assert_eq!(lost(&mut w), None);
    // A term that leads nowhere.
    (w.topology.term, w.topology.forks) = (Term(10), vec![Fork { timeline: TimelineId(9), lsn: Lsn(400) }]);
    assert_eq!(lost(&mut w).map(|l| (l.term, l.fork)), Some((Term(8), None)));
}

/// The session would miss its own write there, without a word.
#[test]
fn no_position_of_a_term_that_is_undecided_covers_what_it_may_lack() {
    for (acknowledged, consistency, serves) in [
        (1150, Consistency::Session, "primary awaiting_sample"),
        (1150, Consistency::Global, "wait 100 awaiting_sample"),
        (1150, Consistency::Bounded, "n3 fresh"),
        // That much it has.
        (1050, Consistency::Session, "n3 fresh"),
        (1050, Consistency::Global, "n3 fresh"),
    ] {
        let write = |c: &mut Causality| {
            c.acknowledged(Term(7), By::Primary, at(acknowledged));
            c.wrote(at(acknowledged));
        };
        let mut w = failed_over(write, 200);
        w.promise.consistency = consistency;
        (w.topology.gate, w.topology.standbys) = (Gate::Closed(Closed::Opening), vec![member("n3")]);
        w.snapshot.term = Term(8);
        w.snapshot.primary = Some(sample("n2", 300, 1300));
        w.snapshot.standbys = vec![standby("n3", 300, 1300)];
        w.publish();
        assert_eq!(w.read(1300), serves, "{acknowledged} ms, {consistency:?}");
        w.topology.gate = Gate::Open;
        assert_eq!(lost(&mut w).is_some(), acknowledged == 1150);
        assert_eq!(w.read(1300), "n3 fresh");
    }
}

/// It is there, but in nothing that need be there for good.
#[test]
fn a_write_that_one_term_has_is_looked_for_in_the_next() {
    let forks =
        |of: &[(u32, u64)]| of.iter().map(|&(t, lsn)| Fork { timeline: TimelineId(t), lsn: Lsn(lsn) }).collect();
    for by in [By::Primary, By::Quorum, By::Memory] {
        // The next one descends from that, or leaves the write's own term as late; or it does not have it.
        for (next, is_lost) in
            [(&[(7, 200), (8, 210)][..], false), (&[(7, 200)], false), (&[(7, 150)], true), (&[], true)]
        {
            let mut w = failed_over(|c| c.acknowledged(Term(7), by, at(1050)), 200);
            assert_eq!(lost(&mut w), None);
            assert!(!w.causality.wrote_before(Term(8)));
            // Long after, when no sample of term 7 is left.
            for term in 8..40 {
                w.snapshot.term = Term(term);
                w.snapshot.primary = Some(sample("n2", 300, 2000 + term));
                w.publish();
            }
            (w.topology.term, w.topology.loss_allowed, w.topology.forks) = (Term(40), true, forks(next));
            assert!(w.causality.wrote_before(Term(40)));
            let told = LostWrite {
                term: Term(7),
                at: at(1050),
                fork: next.first().map(|&(_, lsn)| Lsn(lsn)),
                before: Some(Lsn(200)),
                open: Term(40),
            };
            assert_eq!(lost(&mut w), is_lost.then_some(told), "{next:?}, {by:?}");
            assert_eq!(lost(&mut w), None, "it is told once");
        }
        let mut w = failed_over(|c| c.acknowledged(Term(7), by, at(1050)), 200);
        assert_eq!(lost(&mut w), None);
        (w.topology.term, w.topology.loss_allowed, w.topology.forks) = (Term(9), true, Vec::new());
        w.topology.holds_all_of = Some(Term(8));
        assert_eq!(lost(&mut w), None, "8 has it");
    }
}
