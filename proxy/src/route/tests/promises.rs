//! What each kind of promise asks for, and what happens where none can be kept.

use super::*;

#[test]
fn eventual_reads_go_to_a_standby_however_stale_but_not_to_one_that_is_no_standby() {
    let mut w = World::new().only_n2();
    w.promise.consistency = Consistency::Eventual;
    w.causality.wrote(at(1500));
    assert_eq!(w.read(60_000), "n2 fresh");
    for (why, want) in [
        (LagUnknown::ReplayPaused, "n2 fresh"),
        (LagUnknown::StreamBroken, "n2 fresh"),
        (LagUnknown::Unreachable, "primary unreachable"),
        (LagUnknown::NotInRecovery, "primary not_in_recovery"),
        (LagUnknown::OtherCluster, "primary other_cluster"),
    ] {
        w.snapshot.standbys[0].replay_lag = Err(why);
        w.publish();
        assert_eq!(w.read(60_000), want);
    }
    w.snapshot.standbys[0].replay_lag = Ok(Duration::ZERO);
    w.topology.term = Term(8);
    w.publish();
    assert_eq!(w.read(60_000), "primary other_term", "it may have gone another way");
}

#[test]
fn bounded_reads_need_not_see_the_sessions_own_writes() {
    let mut w = World::new().only_n2();
    w.causality.wrote(at(1100));
    assert_eq!(w.read(1200), "primary awaiting_sample");
    w.promise.consistency = Consistency::Bounded;
    assert_eq!(w.read(1200), "n2 fresh");
    w.promise.max_replay_lag = Duration::from_millis(100);
    assert_eq!(w.read(1200), "primary lagging");
}

#[test]
fn global_reads_wait_for_a_sample_sent_after_they_began_and_for_a_standby_that_has_replayed_it() {
    let mut w = World::new().only_n2();
    w.promise = Promise { consistency: Consistency::Global, standby_wait: Duration::from_millis(500), ..w.promise };
    w.since = Some(at(1100));
    assert_eq!(w.read(1200), "wait 400 awaiting_sample", "the sample of 1000 misses what was written since");
    w.snapshot.primary = Some(sample("n1", 150, 1210));
    w.publish();
    assert_eq!(w.read(1220), "wait 380 replay_behind");
    w.snapshot.standbys[0] = standby("n2", 150, 1230);
    w.publish();
    assert_eq!(w.read(1240), "n2 fresh");
    w.since = Some(at(1241));
    assert_eq!(w.read(1241), "wait 500 awaiting_sample", "every read needs a sample of its own");
}

#[test]
fn a_global_read_needs_the_first_sample_since_it_began_and_not_the_newest() {
    let mut w = World::new().only_n2();
    w.promise.consistency = Consistency::Global;
    w.since = Some(at(1100));
    for (sent_at, insert, replayed, want) in [
        (1110, 150, 140, "wait 89 replay_behind"),
        (1120, 170, 149, "wait 79 replay_behind"),
        (1130, 190, 150, "n2 fresh"),
    ] {
        w.snapshot.primary = Some(sample("n1", insert, sent_at));
        w.snapshot.standbys[0] = standby("n2", replayed, sent_at);
        w.publish();
        assert_eq!(w.read(sent_at + 1), want);
    }
    w.since = Some(at(1132));
    assert_eq!(w.read(1132), "wait 100 awaiting_sample");
    w.snapshot.primary = Some(sample("n1", 200, 1135));
    w.publish();
    assert_eq!(w.read(1140), "wait 92 replay_behind");
    // What the old term's primary told does not count in a new one, whose primary may have acknowledged more.
    w.topology.term = Term(8);
    w.snapshot.term = Term(8);
    w.snapshot.primary = Some(sample("n1", 120, 1131));
    w.snapshot.standbys[0] = standby("n2", 200, 1140);
    w.publish();
    assert_eq!(w.read(1141), "wait 91 awaiting_sample");
}

#[test]
fn a_global_read_waits_unasked_but_not_again_and_again_in_vain() {
    let mut w = World::new().only_n2();
    w.promise.consistency = Consistency::Global;
    let mut reads = |since: u64, now: u64| {
        w.since = Some(at(since));
        w.read(now)
    };
    assert_eq!(reads(1100, 1100), "wait 100 awaiting_sample");
    assert_eq!(reads(1100, 1200), "primary awaiting_sample");
    assert_eq!(reads(1201, 1201), "primary awaiting_sample", "the last has waited in vain");
    assert_eq!(reads(3199, 3199), "primary awaiting_sample");
    assert_eq!(reads(3200, 3200), "wait 100 awaiting_sample", "after some time one waits again");
    assert_eq!(reads(3200, 3300), "primary awaiting_sample");
    assert_eq!(reads(7299, 7299), "primary awaiting_sample", "and after longer the next");
    assert_eq!(reads(7300, 7300), "wait 100 awaiting_sample");
}

#[test]
fn a_sample_is_asked_for_where_one_would_change_the_decision() {
    let mut w = World::new().only_n2();
    let wants = |w: &mut World, now| {
        let Decision { target, reason } = w.decide(Access::Read, now, 1);
        let decision = Decision { target, reason };
        (decision.wants_sample(None), decision.reason.as_str())
    };
    assert_eq!(wants(&mut w, 1050), (false, "fresh"));
    w.causality.wrote(at(1060));
    assert_eq!(wants(&mut w, 1061), (true, "awaiting_sample"), "the session's next reads may then go to a standby");
    let waits_not = w.decide(Access::Read, 1062, 1);
    let asks = |decision: &Decision, age| decision.wants_sample(Some(Duration::from_millis(age)));
    assert!(!asks(&waits_not, 9) && asks(&waits_not, 10), "not for each of many that do not wait");
    let wait = w.promise.standby_wait;
    w.promise.standby_wait = Duration::from_secs(1);
    let waits = w.decide(Access::Read, 1062, 1);
    assert!(matches!(waits.target, Target::Wait(_)) && asks(&waits, 0), "{waits:?}");
    w.promise.standby_wait = wait;
    w.snapshot.primary = Some(sample("n1", 150, 1070));
    w.publish();
    assert_eq!(wants(&mut w, 1071), (false, "replay_behind"), "nobody waits for the standby");
    w.promise.standby_wait = Duration::from_secs(1);
    assert_eq!(wants(&mut w, 1071), (true, "replay_behind"));
    w.snapshot.standbys[0].replay_lag = Err(LagUnknown::ReplayPaused);
    w.publish();
    assert_eq!(wants(&mut w, 1072), (false, "replay_paused"), "what is broken is not looked at more often");
    let write = w.decide(Access::Write, 1072, 1);
    assert!(!write.wants_sample(None));
}

#[test]
fn without_a_standby_a_read_waits_and_then_does_what_the_session_wants() {
    let mut w = World::new().only_n2();
    w.promise = Promise { standby_wait: Duration::from_secs(3), no_standby: NoStandby::Error, ..w.promise };
    w.since = Some(at(5000));
    assert_eq!(w.read(5000), "wait 3000 lagging");
    assert_eq!(w.read(7999), "wait 1 lagging");
    assert_eq!(w.read(8000), "nowhere lagging");
    w.promise.no_standby = NoStandby::Primary;
    assert_eq!(w.read(8000), "primary lagging");
    let write = w.decide(Access::Write, 8000, 1);
    assert_eq!(write.target, Target::Primary, "a write never waits for a standby");
    w.promise.read_from = ReadFrom::Primary;
    assert_eq!(w.read(5000), "primary as_asked");
}
