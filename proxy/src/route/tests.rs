use super::*;
use cluster::lag::{Detail, LagSnapshot, LagUnknown, PrimarySample, StandbyLag, StandbySample};
use cluster::node::Endpoint;
use cluster::timeline::Fork;
use cluster::topology::{Closed, Gate};
use cluster::{Term, TimelineId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const BUDGET: Duration = Duration::from_secs(1);

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn member(name: &str) -> Member {
    Member { node: node(name), postgres: Endpoint { host: name.to_owned(), port: 5432 }, fenced: false, zone: None }
}

/// Busyness by name.
#[derive(Default)]
struct Busy(BTreeMap<&'static str, u32>, BTreeMap<&'static str, Footing>);

impl Loads for Busy {
    fn outstanding(&self, node: &NodeId) -> u32 {
        self.0.get(node.as_str()).copied().unwrap_or(0)
    }

    fn footing(&self, node: &NodeId) -> Footing {
        self.1.get(node.as_str()).copied().unwrap_or_default()
    }
}

/// A cluster of n1 (primary), n2 and n3 in term 7, sampled at 1000 ms with everything replayed up to 100.
struct World {
    topology: Topology,
    snapshot: LagSnapshot,
    lag: Lag,
    causality: Causality,
    busy: Busy,
    avoid: Vec<NodeId>,
    promise: Promise,
    /// When the statement began to wait, if it has.
    since: Option<Instant>,
}

fn standby(name: &str, replay: u64, sent_at: u64) -> StandbyLag {
    let sample = StandbySample {
        receive_lsn: Lsn(replay),
        replay_lsn: Lsn(replay),
        received_timeline: Some(TimelineId(7)),
        replay_lag_bytes: Some(0),
        sent_at: at(sent_at),
        asked_at: at(sent_at),
        up_since: at(0),
    };
    StandbyLag { node: node(name), sample: Some(sample), replay_lag: Ok(Duration::ZERO), detail: Detail::default() }
}

fn sample(name: &str, insert: u64, sent_at: u64) -> PrimarySample {
    let (insert_lsn, flush_lsn) = (Lsn(insert), Lsn(insert));
    let sent_at = at(sent_at);
    let confirmed_until = Some(sent_at);
    PrimarySample { node: node(name), timeline: TimelineId(7), insert_lsn, flush_lsn, sent_at, confirmed_until }
}

impl World {
    fn new() -> Self {
        let topology = Topology {
            term: Term(7),
            gate: Gate::Open,
            primary: Some(member("n1")),
            standbys: vec![member("n2"), member("n3")],
            ..Topology::unknown()
        };
        let snapshot = LagSnapshot {
            term: Term(7),
            primary: Some(sample("n1", 100, 1000)),
            standbys: vec![standby("n2", 100, 1000), standby("n3", 100, 1000)],
        };
        let mut world = Self {
            topology,
            snapshot,
            lag: Lag::default(),
            causality: Causality::default(),
            busy: Busy::default(),
            avoid: Vec::new(),
            promise: Promise::session(BUDGET),
            since: None,
        };
        world.publish();
        world
    }

    fn publish(&mut self) {
        self.lag.update(Arc::new(self.snapshot.clone()));
    }

    fn decide(&mut self, access: Access, now: u64, seed: u64) -> Decision {
        let since = self.since.unwrap_or(at(now));
        let request = Request { access, avoid: &self.avoid, promise: self.promise, since };
        let Self { topology, lag, causality, busy, .. } = self;
        super::decide(&request, causality, topology, lag, busy, at(now), seed)
    }

    /// A read at `now`, as `n2 fresh` or `primary lagging`.
    fn read(&mut self, now: u64) -> String {
        let Decision { target, reason } = self.decide(Access::Read, now, now);
        match target {
            Target::Primary => format!("primary {}", reason.as_str()),
            Target::Standby(node) => format!("{node} {}", reason.as_str()),
            Target::Wait(left) => format!("wait {} {}", left.as_millis(), reason.as_str()),
            Target::Nowhere => format!("nowhere {}", reason.as_str()),
        }
    }

    /// Only n2 is left, so that answers do not depend on the seed.
    fn only_n2(mut self) -> Self {
        self.topology.standbys.truncate(1);
        self
    }
}

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
    w.snapshot = LagSnapshot { term: Term(8), primary: None, standbys: vec![blank] };
    w.publish();
    assert_eq!(w.read(1300), "primary never_sampled");
    w.snapshot.standbys = vec![StandbyLag { replay_lag: Err(LagUnknown::StreamBroken), ..standby("n2", 100, 1310) }];
    w.publish();
    assert_eq!(w.read(1320), "n2 fresh");
    assert_eq!(w.read(2001), "primary lagging");
    w.topology.gate = Gate::Open;
    assert_eq!(w.read(1320), "n2 fresh");
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
}

#[test]
fn reads_are_spread_and_lean_to_the_less_busy() {
    let count = |w: &mut World| {
        let picks: Vec<_> = (0..1000).map(|seed| w.decide(Access::Read, 1001, seed).target).collect();
        picks.iter().filter(|t| **t == Target::Standby(node("n2"))).count()
    };
    let mut w = World::new();
    let even = count(&mut w);
    assert!((400..=600).contains(&even), "{even}");
    w.busy = Busy(BTreeMap::from([("n2", 1)]), BTreeMap::new());
    assert_eq!(count(&mut w), 0);
    w.busy = Busy(BTreeMap::from([("n2", 1), ("n3", 2)]), BTreeMap::new());
    assert_eq!(count(&mut w), 1000);
}

#[test]
fn every_one_of_many_standbys_gets_its_share() {
    let names = ["n2", "n3", "n4", "n5", "n6"];
    let mut w = World::new();
    w.topology.standbys = names.iter().map(|n| member(n)).collect();
    w.snapshot.standbys = names.iter().map(|n| standby(n, 100, 1000)).collect();
    w.publish();
    let mut share = BTreeMap::new();
    for seed in 0..5000 {
        *share.entry(format!("{:?}", w.decide(Access::Read, 1001, seed).target)).or_insert(0) += 1;
    }
    assert!(share.len() == 5 && share.values().all(|n| (800..=1200).contains(n)), "{share:?}");
}

proptest! {
    /// Whatever the state, a read never goes to a standby that is fenced, too stale by its own figures, or behind
    /// the session's covered write; and a write never leaves the primary.
    #[test]
    fn no_state_sends_a_read_where_it_must_not_go(
        replay in prop::collection::vec(0u64..300, 2), fenced in prop::collection::vec(any::<bool>(), 2),
        sent in prop::collection::vec(0u64..3000, 2), lag_ms in prop::collection::vec(0u64..2000, 2),
        wrote in prop::option::of(0u64..3000), insert in 0u64..300, sampled in 0u64..3000,
        now in 0u64..4000, seed: u64, newer: bool,
    ) {
        let mut w = World::new();
        w.topology.term = Term(if newer { 8 } else { 7 });
        w.snapshot.primary = Some(sample("n1", insert, sampled));
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
        (decision.wants_sample(), decision.reason.as_str())
    };
    assert_eq!(wants(&mut w, 1050), (false, "fresh"));
    w.causality.wrote(at(1060));
    assert_eq!(wants(&mut w, 1061), (true, "awaiting_sample"), "the session's next reads may then go to a standby");
    w.snapshot.primary = Some(sample("n1", 150, 1070));
    w.publish();
    assert_eq!(wants(&mut w, 1071), (false, "replay_behind"), "nobody waits for the standby");
    w.promise.standby_wait = Duration::from_secs(1);
    assert_eq!(wants(&mut w, 1071), (true, "replay_behind"));
    w.snapshot.standbys[0].replay_lag = Err(LagUnknown::ReplayPaused);
    w.publish();
    assert_eq!(wants(&mut w, 1072), (false, "replay_paused"), "what is broken is not looked at more often");
    let write = w.decide(Access::Write, 1072, 1);
    assert!(!write.wants_sample());
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
fn what_was_read_at_the_primary_counts_like_a_write() {
    let mut w = World::new().only_n2();
    w.causality.saw(at(1010));
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
    w.causality.saw(at(1012));
    assert!(!w.causality.asks(false), "the next sample may do");
    assert!(w.causality.asks(true), "where each write is asked for");
    w.snapshot.primary = Some(sample("n1", 150, 1011));
    w.publish();
    assert_eq!(w.read(1013), "primary awaiting_sample");
    w.causality.saw(at(1014));
    assert!(w.causality.asks(false), "a sample covers the write, but not what was read since");
    let position = Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(140) };
    w.causality.cover(at(1013), position);
    assert!(w.causality.asks(false), "asked before the last answer");
    w.causality.cover(at(1014), position);
    assert!(!w.causality.asks(true));
    w.snapshot.standbys = vec![standby("n2", 140, 1015)];
    w.publish();
    assert_eq!(w.read(1016), "n2 fresh");
    // One that does not tell is not asked for ever.
    w.causality.wrote(at(1017));
    w.causality.give_up();
    assert!(!w.causality.asks(true));
}

#[test]
fn a_named_position_is_waited_for_whatever_the_consistency() {
    for consistency in [Consistency::Eventual, Consistency::Bounded, Consistency::Session, Consistency::Global] {
        let mut w = World::new().only_n2();
        w.promise.consistency = consistency;
        w.promise.after = Some(Token { term: Term(7), timeline: TimelineId(7), lsn: Lsn(101) });
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
        w.promise.after =
            Some(Token { term: Term(term), timeline: TimelineId(u32::try_from(term).unwrap()), lsn: Lsn(lsn) });
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
    w.causality.saw(at(1999));
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
    w.causality.saw(at(2251));
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
    w.causality.saw(at(4262));
    fresh(&mut w, 5262, 140);
    assert_eq!(w.read(5262), "wait 250 replay_behind");
}

/// Of 1000 reads, how many go to each of n2, n3 and n4.
fn shares(w: &mut World) -> [usize; 3] {
    let mut shares = [0; 3];
    for seed in 0..1000 {
        match w.decide(Access::Read, 1000, seed).target {
            Target::Standby(node) => shares[["n2", "n3", "n4"].iter().position(|n| *n == node.as_str()).unwrap()] += 1,
            Target::Primary | Target::Wait(_) | Target::Nowhere => {}
        }
    }
    shares
}

#[test]
fn weights_zones_and_who_comes_back_decide_between_equals() {
    let usual = Footing::default();
    let with = |footings: &[(&'static str, Footing)]| {
        let mut w = World::new();
        w.topology.standbys.push(member("n4"));
        w.snapshot.standbys.push(standby("n4", 100, 1000));
        w.publish();
        w.busy.1 = footings.iter().copied().collect();
        w
    };
    let near = |[a, b]: [usize; 2], by: usize| a.abs_diff(b) <= by;
    let [n2, n3, n4] = shares(&mut with(&[]));
    assert!(near([n2, 333], 60) && near([n3, 333], 60) && near([n4, 333], 60), "{n2} {n3} {n4}");
    // Half the weight, about half the reads.
    let [n2, n3, n4] = shares(&mut with(&[("n4", Footing { weight: 5000, ..usual })]));
    assert!(near([n4, 200], 50) && near([n2, n3], 80), "{n2} {n3} {n4}");
    // Its own zone first, whatever the weights.
    let home = Footing { near: true, weight: 100, ..usual };
    assert_eq!(shares(&mut with(&[("n3", home)])), [0, 1000, 0]);
    // One that comes back takes little, also when it is alone in its zone.
    let back = Footing { share: 10, weight: 1000, ..usual };
    let [_, n3, _] = shares(&mut with(&[("n3", back)]));
    assert!((10..=90).contains(&n3), "{n3}");
    let [n2, n3, n4] = shares(&mut with(&[("n3", Footing { near: true, ..back })]));
    assert!((70..=230).contains(&n3) && near([n2, n4], 100), "{n2} {n3} {n4}");
    // Busy for its weight.
    let mut w = with(&[("n4", Footing { weight: 20_000, ..usual })]);
    w.busy.0 = BTreeMap::from([("n2", 3), ("n3", 3), ("n4", 3)]);
    let [n2, n3, n4] = shares(&mut w);
    assert!(n4 > 700 && near([n2, n3], 60), "{n2} {n3} {n4}");
}

#[test]
fn one_that_was_too_stale_must_be_well_within_the_bound() {
    let mut w = World::new().only_n2();
    let at_bound = 1000 + BUDGET.as_millis() as u64;
    assert!(matches!(w.decide(Access::Read, at_bound, 0).target, Target::Standby(_)));
    w.busy.1 = BTreeMap::from([("n2", Footing { strict: true, ..Footing::default() })]);
    assert_eq!(w.decide(Access::Read, at_bound, 0).target, Target::Primary);
    assert_eq!(w.decide(Access::Read, 1801, 0).target, Target::Primary);
    assert!(matches!(w.decide(Access::Read, 1800, 0).target, Target::Standby(_)));
}

/// Two standbys with the same sample, and a session that has read at n2 at 1010.
fn read_at_n2() -> World {
    let mut w = World::new();
    w.causality.read_at(&node("n2"), Term(7), at(1010));
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

#[test]
fn a_later_term_begins_with_all_that_any_standby_showed() {
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

#[test]
fn a_write_of_its_own_covers_what_a_session_has_read() {
    let mut w = read_at_n2();
    w.topology.standbys.clear();
    w.causality.wrote(at(1050));
    assert_eq!(w.read(1060), "primary awaiting_sample");
}
