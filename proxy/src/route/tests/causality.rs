//! What a session has written or read at the primary, and positions that it names.

use super::*;

#[test]
fn after_a_write_reads_stay_on_the_primary_until_a_sample_covers_it() {
    let mut w = World::new().only_n2();
    w.causality.wrote(at(1010));
    assert_eq!(w.read(1020), "primary awaiting_sample");
    // Sent before the acknowledgement: its position may lie before the commit.
    w.snapshot.primary = Some(sample("n1", 150, 1009));
    w.snapshot.standbys = vec![standby("n2", 200, 1009)];
    w.publish();
    assert_eq!(w.read(1030), "primary awaiting_sample");
    w.snapshot.primary = Some(sample("n1", 180, 1010));
    w.snapshot.standbys = vec![standby("n2", 179, 1010)];
    w.publish();
    let d = w.decide(Access::Read, 1040, 1);
    let unfit = Unfit::ReplayBehind { need: Lsn(180), have: Lsn(179) };
    assert_eq!(d.reason, Reason::NoStandby { closest: Some((node("n2"), unfit)) });
    w.snapshot.standbys = vec![standby("n2", 180, 1100)];
    // The bound is kept: later positions of the primary do not raise it.
    w.snapshot.primary = Some(sample("n1", 999, 1100));
    w.publish();
    assert_eq!(w.read(1110), "n2 fresh");
    // Another write starts over.
    w.causality.wrote(at(1120));
    assert_eq!(w.read(1130), "primary awaiting_sample");
}

#[test]
fn a_write_that_was_acknowledged_before_it_was_flushed_is_not_missed() {
    let mut w = World::new().only_n2();
    w.causality.wrote(at(1000));
    // As with synchronous_commit = off: the write may lie up to 130, and the standby has all that was flushed.
    w.snapshot.primary = Some(PrimarySample { insert_lsn: Lsn(130), ..sample("n1", 100, 1000) });
    w.publish();
    assert_eq!(w.read(1010), "primary replay_behind");
    w.snapshot.standbys = vec![standby("n2", 130, 1050)];
    w.publish();
    assert_eq!(w.read(1060), "n2 fresh");
}

#[test]
fn a_bound_of_an_older_term_is_resolved_again_in_the_newer_one() {
    let mut w = World::new();
    w.causality.wrote(at(1000));
    assert_eq!(w.read(1010).split(' ').nth(1), Some("fresh"));
    w.topology.term = Term(8);
    w.topology.primary = Some(member("n2"));
    w.topology.standbys = vec![member("n3")];
    assert_eq!(w.read(1020), "primary awaiting_sample");
    // A sample of the new term, but of the old primary.
    w.snapshot.term = Term(8);
    w.publish();
    assert_eq!(w.read(1030), "primary awaiting_sample");
    w.snapshot.primary = Some(sample("n2", 90, 1040));
    w.snapshot.standbys = vec![standby("n3", 90, 1040)];
    w.publish();
    assert_eq!(w.read(1050), "n3 fresh");
}

#[test]
fn a_session_does_not_go_back_to_a_standby_sampled_behind_what_it_has_read() {
    let mut w = World::new();
    w.snapshot.standbys = vec![standby("n2", 200, 1000), standby("n3", 190, 1000)];
    w.publish();
    w.avoid = vec![node("n3")];
    assert_eq!(w.read(1010), "n2 fresh");
    w.avoid = vec![node("n2")];
    let d = w.decide(Access::Read, 1020, 1);
    let unfit = Unfit::ReplayBehind { need: Lsn(200), have: Lsn(190) };
    assert_eq!(d.reason, Reason::NoStandby { closest: Some((node("n3"), unfit)) });
    // In another term positions mean something else.
    w.topology.term = Term(8);
    w.snapshot.term = Term(8);
    w.publish();
    assert_eq!(w.read(1030), "n3 fresh");
}

#[test]
fn what_was_read_at_the_primary_counts_like_a_write() {
    let mut w = World::new().only_n2();
    w.causality.saw(at(1010), Shows::All);
    assert_eq!(w.read(1020), "primary awaiting_sample");
    w.snapshot.primary = Some(sample("n1", 150, 1030));
    w.snapshot.standbys = vec![standby("n2", 149, 1030)];
    w.publish();
    assert_eq!(w.read(1040), "primary replay_behind");
    w.snapshot.standbys = vec![standby("n2", 150, 1035)];
    w.publish();
    assert_eq!(w.read(1040), "n2 fresh");
}

#[test]
fn a_session_that_reads_without_a_pause_asks_the_primary_where_it_is() {
    let mut w = World::new().only_n2();
    w.causality.wrote(at(1010));
    assert_eq!(w.read(1011), "primary awaiting_sample");
    w.causality.saw(at(1012), Shows::All);
    assert!(!w.causality.asks(false), "the next sample may do");
    assert!(w.causality.asks(true), "where each write is asked for");
    w.snapshot.primary = Some(sample("n1", 150, 1011));
    w.publish();
    assert_eq!(w.read(1013), "primary awaiting_sample");
    w.causality.saw(at(1060), Shows::All);
    assert!(!w.causality.asks(false), "it had hardly begun");
    assert_eq!(w.read(1061), "primary awaiting_sample");
    w.causality.saw(at(1062), Shows::All);
    assert!(w.causality.asks(false), "a sample covers the write, but not what was read since");
    let position = Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(140) };
    w.causality.cover(at(1061), position);
    assert!(w.causality.asks(false), "asked before the last answer");
    w.causality.cover(at(1062), position);
    assert!(!w.causality.asks(true));
    w.snapshot.standbys = vec![standby("n2", 140, 1063)];
    w.publish();
    assert_eq!(w.read(1064), "n2 fresh");
    // One that does not tell is not asked for ever.
    w.causality.wrote(at(1065));
    w.causality.give_up();
    assert!(!w.causality.asks(true));
}

#[test]
fn a_session_that_writes_again_and_again_asks_for_nothing() {
    let mut w = World::new().only_n2();
    for ms in (1010..2000).step_by(10) {
        w.causality.wrote(at(ms));
        // Others have samples taken all the time.
        w.snapshot.primary = Some(sample("n1", 150, ms - 1));
        w.publish();
        assert_eq!(w.read(ms + 1), "primary awaiting_sample");
        w.causality.saw(at(ms + 4), Shows::All);
        w.snapshot.primary = Some(sample("n1", 150, ms + 3));
        w.publish();
        assert_eq!(w.read(ms + 5), "primary awaiting_sample");
        w.causality.saw(at(ms + 8), Shows::All);
        assert!(!w.causality.asks(false), "at {ms}");
    }
    // Who writes once and reads a lot need not wait long for it.
    w.causality.wrote(at(2000));
    w.snapshot.primary = Some(sample("n1", 150, 2000));
    w.publish();
    w.causality.saw(at(2001), Shows::All);
    for read in 2..=8 {
        assert!(!w.causality.asks(false), "behind {read} reads");
        assert_eq!(w.read(2000 + read), "primary awaiting_sample");
        w.causality.saw(at(2000 + read), Shows::All);
    }
    assert_eq!(w.read(2009), "primary awaiting_sample");
    assert!(w.causality.asks(false));
}

#[test]
fn a_named_position_is_waited_for_whatever_the_consistency() {
    for consistency in [Consistency::Eventual, Consistency::Bounded, Consistency::Session, Consistency::Global] {
        let mut w = World::new().only_n2();
        w.snapshot.primary = Some(sample("n1", 101, 1000));
        w.publish();
        w.promise.consistency = consistency;
        w.promise.after = Some(Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(101) }.into());
        let want = if consistency == Consistency::Global { "wait 100 replay_behind" } else { "primary replay_behind" };
        assert_eq!(w.read(1000), want, "{consistency:?}");
        w.snapshot.standbys = vec![standby("n2", 101, 1000)];
        w.publish();
        assert_eq!(w.read(1000), "n2 fresh", "{consistency:?}");
        // Who streams nothing may have gone another way.
        w.snapshot.standbys[0].replay_lag = Err(LagUnknown::StreamBroken);
        w.publish();
        assert_eq!(w.read(1000), "primary stream_broken", "{consistency:?}");
    }
}

#[test]
fn what_lies_past_a_fork_is_refused_also_to_those_who_read_at_the_primary() {
    let mut w = World::new().only_n2();
    w.topology.forks = vec![Fork { timeline: TimelineId(5), lsn: Lsn(90) }];
    let after = |w: &mut World, term, lsn| {
        let timeline = TimelineId(u32::try_from(term).unwrap());
        w.promise.after = Some(Token { term: Term(term), timeline, lsn: Lsn(lsn) }.into());
    };
    after(&mut w, 5, 90);
    assert_eq!(w.read(1000), "n2 fresh");
    after(&mut w, 5, 91);
    for from in [ReadFrom::Standby, ReadFrom::Primary] {
        w.promise.read_from = from;
        assert_eq!(w.read(1000), "nowhere after_lost");
    }
    assert_eq!(w.decide(Access::Write, 1000, 1).target, Target::Nowhere);
    after(&mut w, 8, 1);
    assert_eq!(w.read(1000), "wait 3600000 after_unknown");
    after(&mut w, 5, 91);
    w.topology.gate = Gate::Closed(Closed::Promoting);
    assert_eq!(w.read(1000), "wait 3600000 after_unknown");
}

#[test]
fn what_lies_past_the_end_of_the_primarys_wal_is_refused_once_that_was_asked() {
    let mut w = World::new().only_n2();
    w.promise.after = Some(Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(101) }.into());
    w.since = Some(at(1001));
    // It may have been handed out since n1 was asked.
    for from in [ReadFrom::Standby, ReadFrom::Primary] {
        w.promise.read_from = from;
        assert_eq!(w.read(1001), "wait 100 after_unseen");
    }
    assert!(w.decide(Access::Write, 1001, 1).wants_sample(None));
    assert_eq!(w.read(1101), "primary as_asked", "nobody tells");
    w.snapshot.primary = Some(sample("n1", 100, 1001));
    w.publish();
    for from in [ReadFrom::Standby, ReadFrom::Primary] {
        w.promise.read_from = from;
        assert_eq!(w.read(1002), "nowhere after_lost");
    }
    assert_eq!(w.decide(Access::Write, 1002, 1).target, Target::Nowhere);
    w.snapshot.primary = Some(sample("n1", 101, 1001));
    w.publish();
    assert_eq!(w.read(1002), "primary as_asked");
    // Where nobody samples the primary, or not any more, it is as before.
    w.since = Some(at(3002));
    w.promise.after = Some(Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(999) }.into());
    assert_eq!(w.read(3002), "primary as_asked");
    w.since = Some(at(1001));
    w.promise.after = Some(Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(999) }.into());
    w.snapshot.primary = None;
    w.publish();
    assert_eq!(w.read(1002), "primary as_asked");
}

#[test]
fn a_fork_carries_what_was_read_and_written_into_the_next_term() {
    let mut w = World::new().only_n2();
    assert_eq!(w.read(1000), "n2 fresh");
    w.causality.wrote(at(1001));
    w.snapshot.primary = Some(sample("n1", 150, 1002));
    w.publish();
    assert_eq!(w.read(1003), "primary replay_behind");
    w.topology.term = Term(8);
    w.topology.forks = vec![Fork { timeline: TimelineId(7), lsn: Lsn(120) }];
    w.snapshot.term = Term(8);
    w.snapshot.standbys = vec![standby("n2", 119, 1004)];
    w.publish();
    assert_eq!(w.read(1005), "primary replay_behind", "what survived of its write is at the fork at the latest");
    w.snapshot.standbys = vec![standby("n2", 120, 1006)];
    w.publish();
    assert_eq!(w.read(1007), "n2 fresh");
    // The token still tells that the write may be lost.
    let token = w.causality.token(&w.topology, &w.lag);
    assert_eq!(token.unwrap().unwrap().to_string(), "8-7-0/78");
}

#[test]
fn a_session_that_only_reads_at_the_primary_waits_for_a_standby_now_and_then() {
    let mut w = World::new().only_n2();
    w.causality.wrote(at(1000));
    w.causality.saw(at(1999), Shows::All);
    w.snapshot.primary = Some(sample("n1", 150, 1999));
    w.snapshot.standbys = vec![standby("n2", 140, 1999)];
    w.publish();
    assert_eq!(w.read(1999), "primary replay_behind");
    assert_eq!(w.read(2000), "wait 250 replay_behind");
    w.since = Some(at(2000));
    assert_eq!(w.read(2249), "wait 1 replay_behind");
    assert_eq!(w.read(2250), "primary replay_behind");
    w.since = None;
    // In vain: not again before twice the time is over, and a write puts it off.
    w.causality.saw(at(2251), Shows::All);
    let fresh = |w: &mut World, at: u64, replay| {
        w.snapshot.primary = Some(sample("n1", 150, at));
        w.snapshot.standbys = vec![standby("n2", replay, at)];
        w.publish();
    };
    fresh(&mut w, 4249, 140);
    assert_eq!(w.read(4249), "primary replay_behind");
    assert_eq!(w.read(4250), "wait 250 replay_behind");
    w.causality.wrote(at(4251));
    fresh(&mut w, 4252, 140);
    assert_eq!(w.read(4252), "primary replay_behind");
    // Once a standby has served it, it begins anew.
    fresh(&mut w, 4260, 150);
    assert_eq!(w.read(4261), "n2 fresh");
    w.causality.saw(at(4262), Shows::All);
    fresh(&mut w, 5262, 140);
    assert_eq!(w.read(5262), "wait 250 replay_behind");
}
