//! What a session has read at a standby.

use super::*;

/// Two standbys with the same sample, and a session that has read at n2 at 1010.
fn read_at_n2() -> World {
    let mut w = World::new();
    w.causality.read_at((&node("n2"), None), (Term(7), Term(7)), at(1010), Shows::All);
    w
}

#[test]
fn what_was_read_at_a_standby_is_served_by_that_one_until_a_sample_covers_it() {
    let mut w = read_at_n2();
    // n3 was sampled at the same position, but n2 may have replayed more since.
    for seed in 0..20 {
        assert_eq!(w.decide(Access::Read, 1020, seed).target, Target::Standby(node("n2")));
    }
    w.snapshot.primary = Some(sample("n1", 150, 1011));
    w.snapshot.standbys = vec![standby("n2", 140, 1011), standby("n3", 149, 1011)];
    w.publish();
    assert_eq!(w.read(1020), "n2 fresh");
    // Later positions of the primary do not raise what n3 needs.
    w.snapshot.primary = Some(sample("n1", 999, 1111));
    w.snapshot.standbys = vec![standby("n2", 150, 1111), standby("n3", 150, 1111)];
    w.publish();
    let targets: Vec<Target> = (0..20).map(|seed| w.decide(Access::Read, 1120, seed).target).collect();
    assert!(targets.contains(&Target::Standby(node("n3"))), "{targets:?}");
}

#[test]
fn a_standby_that_was_restarted_has_to_prove_that_it_shows_what_was_read_there() {
    let mut w = read_at_n2().only_n2();
    w.snapshot.standbys[0].sample.as_mut().unwrap().up_since = at(1010);
    w.publish();
    assert_eq!(w.read(1020), "n2 fresh");
    w.snapshot.standbys[0].sample.as_mut().unwrap().up_since = at(1011);
    w.publish();
    assert_eq!(w.read(1020), "wait 5000 unconfirmed");
    w.snapshot.primary = Some(sample("n1", 150, 1030));
    w.snapshot.standbys[0].sample.as_mut().unwrap().replay_lsn = Lsn(150);
    w.publish();
    assert_eq!(w.read(1040), "n2 fresh");
}

#[test]
fn the_primary_serves_what_was_read_at_a_standby_when_that_is_confirmed() {
    let mut w = read_at_n2();
    w.topology.standbys.clear();
    w.since = Some(at(1020));
    assert_eq!(w.read(1020), "wait 5000 unconfirmed");
    w.snapshot.primary = Some(PrimarySample { confirmed_until: Some(at(1010)), ..sample("n1", 150, 1100) });
    w.publish();
    assert_eq!(w.read(1120), "wait 4900 unconfirmed", "confirmed only before it was read");
    w.snapshot.primary = Some(PrimarySample { confirmed_until: None, ..sample("n1", 150, 1200) });
    w.publish();
    assert_eq!(w.read(6019), "wait 1 unconfirmed");
    assert_eq!(w.read(6020), "primary unconfirmed", "it says so, and does not wait for ever");
    w.causality.misses(Term(7));
    w.causality.saw(at(6030), Shows::Some);
    w.since = Some(at(6040));
    assert_eq!(w.read(6040), "primary unconfirmed", "nor again, but says so");
    assert_eq!(w.at(Access::Write, 6040), "primary unconfirmed");
    assert_eq!(w.causality.take_untold(), Some((Some(node("n2")), at(1010))));
    assert_eq!(w.causality.take_untold(), None, "it is told once");
    assert!(!w.causality.is_shown_at_primary(&w.topology, &w.lag) && w.causality.read_before(Term(8)));
    let mut w = read_at_n2();
    w.topology.standbys.clear();
    w.since = Some(at(1020));
    w.promise.no_standby = NoStandby::Error;
    assert_eq!(w.read(1220), "nowhere no_standby");
    w.promise.no_standby = NoStandby::Primary;
    w.promise.consistency = Consistency::Bounded;
    assert_eq!(w.read(1220), "primary no_standby");
    w.promise.consistency = Consistency::Session;
    w.snapshot.primary = Some(PrimarySample { confirmed_until: Some(at(1011)), ..sample("n1", 150, 1300) });
    w.publish();
    assert_eq!(w.read(1310), "primary no_standby");
}

/// Or it would change nothing where a row was seen, or show less.
#[test]
fn what_goes_to_the_primary_in_any_case_waits_until_that_shows_what_was_read_at_a_standby() {
    let mut w = read_at_n2();
    w.since = Some(at(1020));
    assert_eq!(w.at(Access::Write, 1020), "wait 5000 unconfirmed");
    assert!(w.decide(Access::Write, 1020, 0).wants_sample(Some(Duration::ZERO)));
    assert_eq!(w.at(Access::Write, 6020), "primary unconfirmed", "it says so, and does not wait for ever");
    w.promise.no_standby = NoStandby::Error;
    assert_eq!(w.at(Access::Write, 6020), "primary unconfirmed", "it is for no standby to begin with");
    for (read_from, unclear, sent) in
        [(ReadFrom::Primary, false, "primary as_asked"), (ReadFrom::Primary, true, "primary invalid_setting")]
    {
        let mut w = read_at_n2();
        w.since = Some(at(1020));
        w.promise = Promise { read_from, unclear, ..w.promise };
        assert_eq!(w.read(1020), "wait 5000 unconfirmed");
        w.snapshot.primary = Some(sample("n1", 150, 1011));
        w.publish();
        assert_eq!(w.read(1030), sent);
        assert_eq!(w.at(Access::Write, 1030), "primary write");
    }
    for consistency in [Consistency::Eventual, Consistency::Bounded, Consistency::Strong] {
        let mut w = read_at_n2();
        w.promise.consistency = consistency;
        assert_eq!(w.at(Access::Write, 1020), "primary write", "{consistency:?} says nothing of that");
    }
    let mut w = World::new();
    assert_eq!(w.at(Access::Write, 1020), "primary write", "nothing was read");
}

/// A commit that waits to be applied where replay stands still confirms nothing behind it. What was read is before that.
#[test]
fn the_primary_serves_what_was_read_at_a_standby_that_has_replayed_no_more_than_is_applied() {
    let told_at = |told, applied, replayed, sampled, up_since| {
        let mut w = read_at_n2();
        let confirmed_until = Some(at(500));
        let primary = sample("n1", 900, told);
        w.snapshot.primary = Some(PrimarySample { confirmed_until, applied_lsn: Some(Lsn(applied)), ..primary });
        w.snapshot.standbys = vec![standby("n2", replayed, sampled)];
        w.snapshot.standbys[0].replay_lag = Ok(BUDGET * 2);
        w.snapshot.standbys[0].sample.as_mut().unwrap().up_since = at(up_since);
        w.publish();
        w.read(1120)
    };
    let reads = |applied, replayed, sampled, up_since| told_at(1100, applied, replayed, sampled, up_since);
    assert_eq!(reads(150, 150, 1010, 0), "primary lagging");
    assert_eq!(told_at(1011, 150, 150, 1010, 0), "primary lagging");
    assert_eq!(told_at(1010, 150, 150, 1010, 0), "wait 5000 unconfirmed", "its commit may not have waited yet");
    assert_eq!(reads(149, 150, 1010, 0), "wait 5000 unconfirmed", "the other standbys have applied less");
    assert_eq!(reads(150, 150, 1009, 0), "wait 5000 unconfirmed", "it may have replayed more since");
    assert_eq!(reads(150, 150, 1010, 1011), "wait 5000 unconfirmed", "it may have had more before it was restarted");
}

#[test]
fn what_standbys_have_flushed_is_safe_although_it_waits_to_be_applied() {
    let mut w = World::new();
    w.snapshot.primary = Some(PrimarySample { confirmed_until: Some(at(10)), ..sample("n1", 150, 1100) });
    w.publish();
    let asks = |w: &World, ms| w.lag.confirms(&w.topology, at(ms));
    w.topology.protected = true;
    assert_eq!((asks(&w, 1099), asks(&w, 1100)), (Some(true), Some(false)));
    w.topology.protected = false;
    assert_eq!(asks(&w, 1099), None, "less waits for them");
    w.topology = Topology { protected: true, term: Term(8), ..w.topology };
    assert_eq!(asks(&w, 1099), None, "of another term");
}

/// n1 in term 7, sampled at 1000 ms at 100 and at 1100 ms at 200, and n3, where a session has read at `read`; then n2 in term 8,
/// which has term 7 up to `fork`.
fn failed_over(read: u64, fork: u64) -> World {
    let mut w = World::new();
    for (lsn, ms) in [(100, 1000), (200, 1100)] {
        w.snapshot.primary = Some(sample("n1", lsn, ms));
        w.publish();
    }
    w.causality.read_at((&node("n3"), Some(ServerStart(77))), (Term(7), Term(7)), at(read), Shows::All);
    let forks = vec![Fork { timeline: TimelineId(7), lsn: Lsn(fork) }];
    let standbys = vec![member("n3")];
    let (primary, read_at) = (Some(member("n2")), Some(at(1315)));
    w.topology = Topology { term: Term(8), primary, standbys, forks, read_at, ..w.topology };
    (w.snapshot.term, w.snapshot.primary) = (Term(8), Some(sample("n2", 300, 1300)));
    w.snapshot.standbys = vec![StandbyLag { replay_lag: Err(LagUnknown::StreamBroken), ..standby("n3", 200, 1300) }];
    w.publish();
    w
}

#[test]
fn what_was_read_and_is_in_no_later_term_is_told_once() {
    let quorum = |voters: &[&str], k| {
        let voters = voters.iter().map(|name| node(name)).collect();
        cluster::topology::Quorum { voters, k }
    };
    let all = ["n1", "n2", "n3"];
    let follows = |w: &mut World| w.snapshot.standbys[0].replay_lag = Ok(Duration::ZERO);
    let restarted = |w: &mut World| w.snapshot.standbys[0].sample.as_mut().unwrap().up_since = at(1160);
    let gone = |w: &mut World| w.topology.standbys.clear();
    let nothing = |_: &mut World| ();
    let out_of_sight = |w: &mut World, started| {
        restarted(w);
        w.snapshot.standbys[0].sample.as_mut().unwrap().started = Some(ServerStart(started));
    };
    let follows_again = |w: &mut World| {
        out_of_sight(w, 77);
        follows(w);
    };
    // Once the term is open.
    let suspended = |w: &mut World| {
        (w.topology.epoch, w.topology.protected) = (5, false);
        w.topology.quorums.clear();
        w.topology.standbys.clear();
    };
    let one_suffices = |w: &mut World| {
        (w.topology.epoch, w.topology.protected) = (5, true);
        w.topology.quorums = vec![quorum(&all, 1)];
        w.topology.standbys.clear();
    };
    let never_seen = |w: &mut World| {
        w.topology.begun_by = 5;
        w.topology.standbys.clear();
    };
    let allowed = |w: &mut World| {
        w.topology.loss_allowed = true;
        w.topology.standbys.clear();
    };
    let (kept, lost, open) = (Some(false), Some(true), None);
    for (quorums, then, want) in [
        // Whose vote counts alone has no more than the term that it made.
        (vec![quorum(&all, 1)], &nothing as &dyn Fn(&mut World), kept),
        (vec![quorum(&all, 1)], &gone, kept),
        (vec![quorum(&all, 2)], &gone, lost),
        (vec![quorum(&all, 1), quorum(&all[..2], 1)], &gone, lost),
        (vec![], &gone, lost),
        // A later policy says nothing of that.
        (vec![quorum(&all, 1)], &suspended, kept),
        (vec![quorum(&all, 2)], &one_suffices, lost),
        (vec![], &one_suffices, lost),
        (vec![quorum(&all, 1)], &never_seen, lost),
        (vec![quorum(&all, 1)], &allowed, lost),
        // Who has more does not follow without being started anew.
        (vec![], &nothing, open),
        (vec![], &follows, kept),
        (vec![], &restarted, lost),
        // Out of sight is not started anew, where that can be told.
        (vec![], &|w| out_of_sight(w, 77), open),
        (vec![], &follows_again, kept),
        (vec![], &|w| out_of_sight(w, 78), lost),
        (vec![], &|w: &mut World| w.topology.primary = Some(member("n3")), kept),
        (vec![], &|w: &mut World| w.topology.holds_all_of = Some(Term(7)), kept),
    ] {
        let mut w = failed_over(1150, 250);
        w.topology.quorums.clone_from(&quorums);
        w.topology.protected = !quorums.is_empty();
        (w.topology.epoch, w.topology.begun_by) = (4, 4);
        w.publish();
        then(&mut w);
        w.publish();
        let what = format!("{quorums:?}, want {want:?}");
        assert!(w.causality.read_before(Term(8)), "{what}");
        assert_eq!(w.causality.is_shown_at_primary(&w.topology, &w.lag), want.is_some(), "{what}");
        w.topology.gate = Gate::Closed(Closed::Opening);
        assert_eq!(w.causality.take_lost_read(&w.topology, &w.lag, false), None, "it is not decided yet");
        w.topology.gate = Gate::Open;
        let told = w.causality.take_lost_read(&w.topology, &w.lag, false);
        let (node, fork) = (Some(node("n3")), Some(Lsn(250)));
        let read = LostRead { node, term: Term(7), at: at(1150), fork, open: Term(8) };
        assert_eq!(told, Some(read).filter(|_| want == Some(true)), "{what}");
        assert_eq!(w.causality.take_lost_read(&w.topology, &w.lag, false), None, "{what}, once");
        assert_eq!(w.causality.read_before(Term(8)), want.is_none(), "{what}");
    }
    // What was sampled since lies within what the later term has.
    for (read, fork, lost) in [(1100, 200, false), (1100, 199, true), (1101, 900, true)] {
        let mut w = failed_over(read, fork);
        w.topology.standbys.clear();
        assert_eq!(w.causality.take_lost_read(&w.topology, &w.lag, false).is_some(), lost, "{read} {fork}");
    }
}

#[test]
fn what_was_read_while_a_term_began_or_at_less_of_a_promise_since_is_of_the_term_before() {
    let mut w = failed_over(1150, 250);
    w.topology.standbys.clear();
    w.causality.read_at((&node("n2"), None), (Term(8), Term(8)), at(1350), Shows::Some);
    assert!(w.causality.take_lost_read(&w.topology, &w.lag, false).is_some(), "what was read at n3 is");
    // Nobody has opened 8 when it is asked.
    let mut w = World::new();
    w.publish();
    (w.topology.term, w.topology.gate) = (Term(8), Gate::Closed(Closed::Recruiting));
    w.publish();
    assert_eq!(w.lag.shown(&w.topology), Term(7));
    w.topology.gate = Gate::Open;
    w.publish();
    assert_eq!(w.lag.shown(&w.topology), Term(8));
}

#[test]
fn what_a_block_that_outlives_its_term_shows_is_confirmed_in_the_next() {
    let mut w = failed_over(1150, 250);
    w.snapshot.standbys[0].replay_lag = Ok(Duration::ZERO);
    w.causality.read_at((&node("n3"), None), (Term(7), Term(8)), at(1350), Shows::All);
    w.publish();
    assert!(!w.causality.is_shown_at_primary(&w.topology, &w.lag), "sampled at 1300");
    w.snapshot.primary = Some(sample("n2", 300, 1400));
    w.publish();
    assert!(w.causality.is_shown_at_primary(&w.topology, &w.lag));
}

#[test]
fn a_later_term_begins_with_all_that_its_primary_showed() {
    let mut w = read_at_n2();
    w.topology.term = Term(8);
    w.topology.primary = Some(member("n2"));
    w.topology.standbys = vec![member("n3")];
    assert_eq!(w.read(1020), "primary other_term", "the new primary has it");
    w.snapshot.term = Term(8);
    w.publish();
    assert_eq!(w.read(1020), "primary uncovered", "n3 may not");
    w.snapshot.primary = Some(sample("n2", 100, 1030));
    w.publish();
    assert_eq!(w.read(1040), "n3 fresh");
}

/// A session has read at n3, which was restarted since, lags, or is not heard of; n1 follows the primary of the later term, and has
/// all that it has.
#[test]
fn what_follows_a_later_term_does_not_show_what_that_may_lack() {
    let voters = ["n1", "n2", "n3"].map(node).to_vec();
    let world = |gate, heard: bool, k| {
        let mut w = failed_over(1150, 250);
        w.topology.quorums = vec![cluster::topology::Quorum { voters: voters.clone(), k }];
        (w.topology.protected, w.topology.epoch, w.topology.begun_by, w.topology.gate) = (true, 4, 4, gate);
        w.topology.standbys = vec![member("n1"), member("n3")];
        let n3 = match heard {
            true => StandbyLag { replay_lag: Ok(BUDGET * 2), ..standby("n3", 300, 1310) },
            false => StandbyLag { sample: None, replay_lag: Err(LagUnknown::NeverSampled), ..standby("n3", 0, 0) },
        };
        w.snapshot.standbys = vec![standby("n1", 300, 1310), n3];
        w.snapshot.standbys[1].sample.iter_mut().for_each(|sample| sample.up_since = at(1200));
        w.publish();
        w.since = Some(at(1320));
        w
    };
    let closed = Gate::Closed(Closed::Opening);
    for (gate, heard, k, want) in [
        // To the primary once that is open, and there it is told.
        (closed, true, 2, "primary uncovered"),
        (closed, false, 2, "wait 5000 unconfirmed"),
        (Gate::Open, false, 2, "wait 5000 unconfirmed"),
        // All of the term before is in this one.
        (closed, true, 1, "n1 fresh"),
        (closed, false, 1, "n1 fresh"),
        (Gate::Open, false, 1, "n1 fresh"),
    ] {
        let mut w = world(gate, heard, k);
        let what = format!("{gate:?}, heard {heard}, k = {k}");
        assert_eq!(w.read(1320), want, "{what}");
        // Nor does what the primary tells of itself cover it.
        let position = Token { term: Term(8), timeline: TimelineId(8), lsn: Lsn(300) };
        w.causality.cover(at(1320), position);
        assert_eq!(w.read(1320), want, "{what}");
        assert!(w.causality.read_before(Term(8)), "{what}");
    }
    // Nobody tells what became of it: a read waits for that, but not for ever, and then is told, not sent. Nor is the time over
    // that it has waited before the term was open.
    let mut w = world(Gate::Open, false, 2);
    w.since = Some(at(100));
    assert_eq!(w.read(1320), "wait 4995 unconfirmed");
    assert_eq!(w.causality.take_lost_read(&w.topology, &w.lag, false), None);
    w.snapshot.standbys[0] = standby("n1", 300, 6310);
    w.topology.read_at = Some(at(6310));
    w.publish();
    assert_eq!(w.read(6315), "primary unconfirmed");
    assert!(w.causality.take_lost_read(&w.topology, &w.lag, true).is_some());
    assert_eq!(w.read(6315), "n1 fresh");
    // So it is where the primary must not serve it; while nothing can be told yet, it fails at once.
    let mut w = world(closed, false, 2);
    w.promise.no_standby = NoStandby::Error;
    assert_eq!(w.read(1320), "nowhere uncovered");
    w.topology.gate = Gate::Open;
    w.publish();
    assert_eq!(w.read(1320), "wait 5000 unconfirmed");
    w.snapshot.standbys[0] = standby("n1", 300, 6310);
    w.topology.read_at = Some(at(6310));
    w.publish();
    assert_eq!(w.read(6320), "nowhere unconfirmed");
    assert!(w.causality.take_lost_read(&w.topology, &w.lag, true).is_some());
    assert_eq!(w.read(6320), "n1 fresh");
}

/// What is classed as a write may have written nothing, and waited for nobody; and a commit of others may wait for more.
#[test]
fn what_the_primary_was_asked_besides_does_not_make_it_show_what_was_read_at_a_standby() {
    let mut w = read_at_n2();
    w.topology.standbys.clear();
    w.since = Some(at(1060));
    w.causality.wrote(at(1050));
    assert!(!w.causality.is_shown_at_primary(&w.topology, &w.lag));
    assert_eq!(w.read(1060), "wait 5000 unconfirmed");
    w.snapshot.primary = Some(PrimarySample { confirmed_until: Some(at(1011)), ..sample("n1", 150, 1040) });
    w.publish();
    assert!(w.causality.is_shown_at_primary(&w.topology, &w.lag));
    assert_eq!(w.read(1060), "primary awaiting_sample", "a sample tells");
    let mut w = read_at_n2();
    w.topology.standbys.clear();
    w.causality.answered(at(1050), true, Shows::All);
    assert_eq!(w.read(1060), "primary awaiting_sample", "it was looked at before");
}

#[test]
fn a_read_that_is_promised_less_takes_nothing_from_what_was_read_before() {
    let on_n3 = |w: &mut World| {
        let targets = (0..20).map(|seed| w.decide(Access::Read, 1020, seed).target);
        targets.filter(|target| *target == Target::Standby(node("n3"))).count()
    };
    let mut w = read_at_n2();
    w.causality.read_at((&node("n3"), None), (Term(7), Term(7)), at(1015), Shows::Nothing);
    assert_eq!(w.read(1020), "n2 fresh", "a setting was shown");
    w.causality.read_at((&node("n3"), None), (Term(7), Term(7)), at(1015), Shows::Some);
    assert_eq!(on_n3(&mut w), 0, "it may lack what n2 has shown");
    assert_eq!(w.read(1020), "wait 5000 unconfirmed", "and n2 what n3 has");
    w.snapshot.primary = Some(sample("n1", 150, 1015));
    w.snapshot.standbys = vec![standby("n2", 149, 1016), standby("n3", 150, 1016)];
    w.publish();
    assert_eq!(on_n3(&mut w), 20);

    // Where it was read before, it is there still, unless that was restarted in between.
    let mut w = read_at_n2();
    w.causality.read_at((&node("n2"), None), (Term(7), Term(7)), at(1015), Shows::Some);
    assert_eq!(w.read(1020), "n2 fresh");
    w.snapshot.standbys[0].sample.as_mut().unwrap().up_since = at(1012);
    w.publish();
    assert_eq!(w.read(1020), "wait 5000 unconfirmed");

    // At the primary it is as little made sure of that it shows what was read.
    let mut w = read_at_n2();
    w.topology.standbys.clear();
    w.causality.saw(at(1015), Shows::Some);
    assert_eq!(w.read(1020), "wait 5000 unconfirmed");
    w.causality.saw(at(1016), Shows::All);
    assert_eq!(w.read(1020), "primary awaiting_sample");
}

#[test]
fn a_token_covers_what_was_read_at_a_standby() {
    let mut w = World::new().only_n2();
    assert_eq!(w.read(1000), "n2 fresh");
    w.causality.read_at((&node("n2"), None), (Term(7), Term(7)), at(1010), Shows::All);
    let token = |w: &mut World| w.causality.token(&w.topology, &w.lag).map(|token| token.unwrap().to_string());
    assert_eq!(token(&mut w), Err(Pending { since: at(1010) }), "it may have replayed more than was sampled");
    w.snapshot.primary = Some(sample("n1", 150, 1010));
    w.publish();
    assert_eq!(token(&mut w).as_deref(), Ok("7-7-0/96"));
    // What the primary tells when asked, and what the standby itself does.
    w.causality.read_at((&node("n2"), None), (Term(7), Term(7)), at(1020), Shows::All);
    let position = Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(160) };
    w.causality.cover(at(1019), position);
    assert_eq!(token(&mut w), Err(Pending { since: at(1020) }), "asked too early");
    w.causality.cover(at(1020), position);
    assert_eq!(token(&mut w).as_deref(), Ok("7-7-0/A0"));
    w.causality.read_at((&node("n2"), None), (Term(7), Term(7)), at(1030), Shows::All);
    assert!(w.causality.shown_by(&node("n2")) && !w.causality.shown_by(&node("n3")));
    w.causality.replayed(at(1031), Lsn(170), &w.topology, &w.lag);
    assert_eq!(token(&mut w).as_deref(), Ok("7-7-0/AA"));
}
