//! Which standby may serve a read at all.

use super::*;

#[test]
fn a_write_goes_to_the_primary() {
    let d = World::new().decide(Access::Write, 1000, 1);
    assert_eq!(d, Decision { target: Target::Primary, reason: Reason::Write });
}

#[test]
fn a_read_goes_to_a_fresh_standby_with_its_numbers() {
    let d = World::new().only_n2().decide(Access::Read, 1050, 1);
    let reason = Reason::Fresh { staleness: Some(Duration::from_millis(50)), replay_lsn: Lsn(100), need: None };
    assert_eq!(d, Decision { target: Target::Standby(node("n2")), reason });
}

#[test]
fn a_sample_too_old_makes_a_standby_stale() {
    let mut w = World::new().only_n2();
    assert_eq!(w.read(2000), "n2 fresh");
    let d = w.decide(Access::Read, 2001, 1);
    let unfit = Unfit::Lagging { staleness: Duration::from_millis(1001), budget: BUDGET };
    assert_eq!(d.reason, Reason::NoStandby { closest: Some((node("n2"), unfit)) });
}

#[test]
fn a_lag_that_is_not_known_is_never_fresh_while_the_primary_answers() {
    for (why, want) in [
        (LagUnknown::NeverSampled, "primary never_sampled"),
        (LagUnknown::Unreachable, "primary unreachable"),
        (LagUnknown::StreamBroken, "primary stream_broken"),
        (LagUnknown::ReplayPaused, "primary replay_paused"),
        (LagUnknown::NoPrimarySample, "primary no_primary_sample"),
        (LagUnknown::NotInRecovery, "primary not_in_recovery"),
        (LagUnknown::OtherCluster, "primary other_cluster"),
    ] {
        let mut w = World::new().only_n2();
        w.snapshot.standbys[0].replay_lag = Err(why);
        w.publish();
        assert_eq!(w.read(1001), want);
    }
}

#[test]
fn a_position_is_not_believed_of_who_may_have_gone_another_way() {
    for why in [LagUnknown::ReplayPaused, LagUnknown::NoPrimarySample, LagUnknown::StreamBroken] {
        let mut w = World::new().only_n2();
        w.promise.consistency = Consistency::Eventual;
        w.snapshot.standbys[0].replay_lag = Err(why);
        w.snapshot.standbys[0].sample.as_mut().unwrap().received_timeline = Some(TimelineId(5));
        w.publish();
        assert_eq!(w.read(1001), "n2 fresh", "whatever is there will do");
        w.promise.after = Some(Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(90) }.into());
        assert_eq!(w.read(1001), format!("primary {}", why.as_str()), "past the fork of its timeline it has other WAL");
        w.snapshot.standbys[0].sample.as_mut().unwrap().received_timeline = Some(TimelineId(7));
        w.publish();
        let want = if why == LagUnknown::StreamBroken { "primary stream_broken" } else { "n2 fresh" };
        assert_eq!(w.read(1001), want);
    }
}

#[test]
fn fenced_avoided_and_absent_standbys_do_not_serve() {
    let mut w = World::new().only_n2();
    w.topology.standbys[0].fenced = true;
    assert_eq!(w.read(1001), "primary fenced");
    let mut w = World::new().only_n2();
    w.avoid = vec![node("n2")];
    assert_eq!(w.read(1001), "primary avoided");
    let mut w = World::new();
    w.topology.standbys.clear();
    assert_eq!(w.read(1001), "primary no_standby");
    let mut w = World::new().only_n2();
    w.snapshot.standbys.clear();
    w.publish();
    assert_eq!(w.read(1001), "primary never_sampled");
}

#[test]
fn a_standby_that_sorts_text_by_other_rules_serves_only_what_may_miss_rows() {
    use Consistency::{Bounded, Eventual, Global, Session, Strong};
    let mut w = World::new();
    w.snapshot.standbys[0].detail.sorts_otherwise = true;
    w.publish();
    for seed in 1001..1020 {
        assert_eq!(w.read(seed), "n3 fresh");
    }
    let mut w = w.only_n2();
    for consistency in [Eventual, Bounded, Session, Global, Strong] {
        w.promise.consistency = consistency;
        let want = match consistency {
            Eventual => "n2 fresh",
            Strong => "primary as_asked",
            // It waits for a sample of its own first.
            Global => "wait 100 awaiting_sample",
            Bounded | Session => "primary sorts_otherwise",
        };
        assert_eq!(w.read(1001), want, "{consistency:?}");
    }
    w.promise = Promise { other_collations: true, ..Promise::session(BUDGET) };
    assert_eq!(w.read(1001), "n2 fresh");
}

#[test]
fn figures_of_another_term_do_not_count_once_the_new_one_is_open() {
    let mut w = World::new().only_n2();
    w.topology.term = Term(8);
    assert_eq!(w.read(1010), "primary other_term");
    w.topology.gate = Gate::Draining;
    assert_eq!(w.read(1010), "primary other_term");
    w.topology.gate = Gate::Closed(Closed::Recruiting);
    assert_eq!(w.read(1010), "n2 fresh");
    w.topology.term = Term(6);
    assert_eq!(w.read(1010), "primary other_term");
}

/// What lagmon shows when a new term begins: first nothing of the standbys, then positions without a stream.
#[test]
fn reads_go_on_when_a_new_term_recruits_as_soon_as_a_standby_was_sampled_again() {
    let mut w = World::new().only_n2();
    w.topology.term = Term(8);
    w.topology.gate = Gate::Closed(Closed::Recruiting);
    let blank = StandbyLag { sample: None, replay_lag: Err(LagUnknown::NeverSampled), ..standby("n2", 0, 0) };
    w.snapshot = LagSnapshot { term: Term(8), primary: None, standbys: vec![blank], proven_at: None };
    w.publish();
    assert_eq!(w.read(1300), "primary never_sampled");
    w.snapshot.standbys = vec![StandbyLag { replay_lag: Err(LagUnknown::StreamBroken), ..standby("n2", 100, 1310) }];
    w.publish();
    assert_eq!(w.read(1320), "n2 fresh");
    assert_eq!(w.read(2001), "primary lagging");
    // It may have left behind what n2 has.
    w.topology.gate = Gate::Open;
    assert_eq!(w.read(1320), "primary awaiting_sample");
}

/// A standby that was not heard may have gone on with the WAL of a term that was left behind: its positions are of another
/// history than those of the primary, and greater perhaps.
#[test]
fn while_no_primary_answers_only_who_followed_it_is_measured_by_its_last_sample() {
    use Consistency::{Bounded, Session};
    let broken = |name, at| StandbyLag { replay_lag: Err(LagUnknown::StreamBroken), ..standby(name, 200, at) };
    for gate in [Gate::Open, Gate::Closed(Closed::Recruiting)] {
        for (consistency, after) in [(Session, 0), (Bounded, 0), (Session, 110)] {
            let mut w = World::new().only_n2();
            (w.promise.consistency, w.topology.term, w.snapshot.term) = (consistency, Term(8), Term(8));
            let position = Token { term: Term(8), timeline: TimelineId(8), lsn: Lsn(after) };
            w.promise.after = (after > 0).then_some(position.into());
            // Its sample of the term before, when it did follow, tells nothing of this one.
            w.snapshot.primary = Some(sample("n1", 110, 1000));
            w.snapshot.standbys = vec![broken("n2", 1000)];
            w.publish();
            assert_eq!(w.read(1010), "primary stream_broken");
            w.snapshot.primary = None;
            w.topology.gate = gate;
            w.publish();
            assert_eq!(w.read(1010), "primary stream_broken", "{consistency:?} {after} {gate:?}");
        }
    }
    // Nor does it tell anything of who may have been restarted since.
    let mut w = World::new().only_n2();
    w.snapshot.primary = None;
    w.snapshot.standbys = vec![broken("n2", 1100)];
    w.publish();
    assert_eq!(w.read(1110), "n2 fresh");
    w.snapshot.standbys[0].sample.as_mut().unwrap().up_since = at(1001);
    w.publish();
    assert_eq!(w.read(1110), "primary stream_broken");
}

/// Rule 4: the primary is dead, so every stream is broken.
#[test]
fn while_no_primary_answers_staleness_is_the_age_of_its_last_sample() {
    for gate in [Gate::Open, Gate::Closed(Closed::Recruiting)] {
        let mut w = World::new();
        w.topology.gate = gate;
        // What it had inserted beyond is in memory that died with it.
        w.snapshot.primary = Some(PrimarySample { insert_lsn: Lsn(120), ..sample("n1", 100, 1000) });
        w.publish();
        w.snapshot.primary = None;
        w.snapshot.standbys = vec![standby("n2", 100, 1500), standby("n3", 99, 1500)];
        for s in &mut w.snapshot.standbys {
            s.replay_lag = Err(LagUnknown::StreamBroken);
        }
        w.publish();
        // n3 has not replayed all that the primary had at 1000 ms, n2 has.
        for now in [1500, 1750, 2000] {
            assert_eq!(w.read(now), "n2 fresh");
        }
        assert_eq!(w.read(2001), "primary lagging");
        w.snapshot.standbys[0].replay_lag = Err(LagUnknown::ReplayPaused);
        w.publish();
        assert_eq!(w.read(1500), "primary replay_paused");
    }
}

#[test]
fn a_view_that_has_run_out_is_as_stale_as_the_time_since() {
    let mut w = World::new().only_n2();
    w.topology.valid_until = Some(at(1000));
    w.snapshot.standbys = vec![standby("n2", 100, 2500)];
    w.snapshot.primary = Some(sample("n1", 100, 2500));
    w.publish();
    assert_eq!(w.topology.gate_at(at(2000)), Gate::Closed(Closed::Stale));
    assert_eq!(w.read(2000), "n2 fresh");
    assert_eq!(w.read(2001), "primary lagging");
    // Who is to see what anybody was acknowledged does not: that may have been in another term.
    (w.promise.consistency, w.since) = (Consistency::Global, Some(at(1950)));
    assert_eq!(w.read(2000), "wait 50 awaiting_sample");
    w.topology.valid_until = Some(at(2001));
    assert_eq!(w.read(2000), "n2 fresh");
}

proptest! {
    /// Whatever the state, a read never goes to a standby that is fenced, too stale by its own figures, or behind
    /// the session's covered write; and a write never leaves the primary.
    #[test]
    fn no_state_sends_a_read_where_it_must_not_go(
        replay in prop::collection::vec(0u64..300, 2), fenced in prop::collection::vec(any::<bool>(), 2),
        sent in prop::collection::vec(0u64..3000, 2), lag_ms in prop::collection::vec(0u64..2000, 2),
        wrote in prop::option::of(0u64..3000), insert in 0u64..300, sampled in 0u64..3000,
        unflushed in 0u64..50, now in 0u64..4000, seed: u64, newer: bool,
    ) {
        let mut w = World::new();
        w.topology.term = Term(if newer { 8 } else { 7 });
        let flush_lsn = Lsn(insert.saturating_sub(unflushed));
        w.snapshot.primary = Some(PrimarySample { flush_lsn, ..sample("n1", insert, sampled) });
        w.snapshot.standbys = vec![standby("n2", replay[0], sent[0]), standby("n3", replay[1], sent[1])];
        for i in 0..2 {
            w.topology.standbys[i].fenced = fenced[i];
            w.snapshot.standbys[i].replay_lag = Ok(Duration::from_millis(lag_ms[i]));
        }
        w.publish();
        if let Some(t) = wrote {
            w.causality.wrote(at(t));
        }
        prop_assert_eq!(w.decide(Access::Write, now, seed).target, Target::Primary);
        if let Target::Standby(n) = w.decide(Access::Read, now, seed).target {
            let i = usize::from(n == node("n3"));
            prop_assert!(!newer && !fenced[i]);
            prop_assert!(lag_ms[i] + now.saturating_sub(sent[i]) <= 1000);
            prop_assert!(wrote.is_none_or(|t| sampled >= t && replay[i] >= insert));
        }
    }
}

#[test]
fn a_reason_tells_its_numbers() {
    let mut w = World::new().only_n2();
    assert_eq!(w.decide(Access::Read, 1050, 1).reason.to_string(), "50 ms stale, replayed 0/64");
    assert_eq!(
        w.decide(Access::Read, 9000, 1).reason.to_string(),
        "closest is n2, 8000 ms stale where 1000 ms are allowed"
    );
}

#[test]
fn a_standby_lacks_nothing_that_has_replayed_what_the_primary_was_found_to_have() {
    for (replayed, term, lacks) in [(99, 7, true), (100, 7, false), (101, 7, false), (100, 8, true)] {
        let mut w = World::new();
        w.snapshot.standbys = vec![standby("n2", replayed, 1000)];
        w.publish();
        w.topology.term = Term(term);
        assert_eq!(w.lag.may_lack(&node("n2"), &w.topology), lacks, "{replayed} in term {term}");
        assert!(w.lag.may_lack(&node("n3"), &w.topology), "nothing is known of it");
    }
}
