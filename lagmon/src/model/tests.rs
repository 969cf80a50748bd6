//! The model as a whole: tables for what must not be believed, and a simulated cluster for what is.

use super::sample::StandbyFacts;
use super::*;
use cluster::lag::{Freshness, LagUnknown, StandbyLag};
use cluster::topology::{Gate, Member};
use cluster::{Endpoint, Lsn, TimelineId};
use proptest::prelude::*;
use std::time::Duration;

const TERM: Term = Term(7);
const CLUSTER: u64 = 77;

fn n(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn topology(term: Term, primary: &str) -> Topology {
    let member = |name: &&str| Member {
        node: n(name),
        postgres: Endpoint { host: "h".to_owned(), port: 5432 },
        fenced: false,
        candidate: true,
        zone: None,
    };
    let standbys = ["n1", "n2", "n3"].iter().filter(|name| **name != primary).map(member).collect();
    Topology { term, gate: Gate::Open, primary: Some(member(&primary)), standbys, ..Topology::unknown() }
}

fn wrote(ms: u64, timeline: u32, lsn: u64) -> Outcome {
    confirmed(ms, timeline, lsn, None)
}

fn confirmed(ms: u64, timeline: u32, lsn: u64, confirmed_lsn: Option<Lsn>) -> Outcome {
    let (insert_lsn, flush_lsn) = (Lsn(lsn), Lsn(lsn));
    let timeline = TimelineId(timeline);
    let facts = PrimaryFacts { timeline, insert_lsn, flush_lsn, confirmed_lsn, ..PrimaryFacts::default() };
    Outcome::Answered(Answer { sent_at: at(ms), system_id: CLUSTER, started: None, facts: Facts::Primary(facts) })
}

fn replayed(ms: u64, lsn: u64) -> Outcome {
    let facts = StandbyFacts {
        replay_lsn: Some(Lsn(lsn)),
        receive_lsn: Some(Lsn(lsn + 5)),
        streams: Some(TimelineId(7)),
        ..StandbyFacts::default()
    };
    Outcome::Answered(Answer { sent_at: at(ms), system_id: CLUSTER, started: None, facts: Facts::Standby(facts) })
}

fn model(samples: Vec<(&str, Outcome)>) -> Model {
    let mut m = Model::new();
    m.follow(&topology(TERM, "n1"));
    samples.into_iter().for_each(|(node, outcome)| m.record(TERM, &n(node), outcome));
    m
}

fn lag(m: &Model, node: &str) -> StandbyLag {
    m.snapshot(&m.estimates()).standby(&n(node)).unwrap().clone()
}

fn staleness(m: &Model, node: &str, now_ms: u64) -> Result<u64, LagUnknown> {
    lag(m, node).staleness_at(at(now_ms)).map(|d| u64::try_from(d.as_millis()).unwrap())
}

#[test]
fn a_standby_that_has_all_the_primary_had_flushed_lags_by_exactly_zero() {
    for samples in [
        vec![("n1", wrote(100, 7, 50)), ("n2", replayed(110, 50))],
        vec![("n2", replayed(110, 50)), ("n1", wrote(120, 7, 50))],
        vec![("n1", wrote(100, 7, 40)), ("n1", wrote(200, 7, 50)), ("n2", replayed(150, 50))],
    ] {
        assert_eq!(lag(&model(samples), "n2").replay_lag, Ok(Duration::ZERO));
    }
}

#[test]
fn who_answers_for_another_cluster_is_neither_primary_nor_standby() {
    let mut ours = topology(TERM, "n1");
    ours.system_id = Some(CLUSTER);
    let foreign = |outcome| match outcome {
        Outcome::Answered(answer) => Outcome::Answered(Answer { system_id: CLUSTER + 1, ..answer }),
        Outcome::Failed => Outcome::Failed,
    };
    let mut m = Model::new();
    m.follow(&ours);
    m.record(TERM, &n("n1"), wrote(100, 7, 50));
    m.record(TERM, &n("n2"), foreign(replayed(110, 50)));
    m.record(TERM, &n("n3"), replayed(110, 50));
    assert_eq!((lag(&m, "n2").replay_lag, lag(&m, "n2").sample), (Err(LagUnknown::OtherCluster), None));
    assert_eq!(lag(&m, "n3").replay_lag, Ok(Duration::ZERO));
    m.record(TERM, &n("n1"), foreign(wrote(200, 7, 60)));
    assert_eq!((m.primary(), lag(&m, "n3").replay_lag), (None, Err(LagUnknown::NoPrimarySample)));
}

#[test]
fn a_node_whose_address_changes_is_another_server() {
    let mut m = model(vec![("n1", wrote(100, 7, 50)), ("n2", replayed(110, 50)), ("n3", replayed(110, 50))]);
    let mut moved = topology(TERM, "n1");
    moved.standbys[0].postgres.host = "elsewhere".to_owned();
    m.follow(&moved);
    assert_eq!((lag(&m, "n2").replay_lag, lag(&m, "n2").sample), (Err(LagUnknown::NeverSampled), None));
    assert_eq!(lag(&m, "n3").sample.unwrap().up_since, at(110), "it stays");
    m.record(TERM, &n("n2"), replayed(200, 50));
    assert_eq!(lag(&m, "n2").sample.unwrap().up_since, at(200));
    moved.primary.as_mut().unwrap().postgres.host = "elsewhere".to_owned();
    m.follow(&moved);
    assert_eq!(m.primary(), None);
}

#[test]
fn lag_is_the_time_since_the_primary_passed_the_replayed_position() {
    let m = model(vec![
        ("n1", wrote(100, 7, 10)),
        ("n1", wrote(200, 7, 20)),
        ("n1", wrote(300, 7, 30)),
        ("n2", replayed(300, 15)),
    ]);
    assert_eq!(lag(&m, "n2").replay_lag, Ok(Duration::from_millis(200)));
    assert_eq!(staleness(&m, "n2", 350), Ok(250));
    let estimate = m.estimates().into_iter().next().unwrap();
    assert_eq!(estimate.replay.unwrap().bytes, 15);
    assert_eq!(estimate.lag.detail.flush.unwrap().time, Duration::from_millis(100), "received up to 20");
    assert_eq!(estimate.lag.sample.unwrap().replay_lag_bytes, Some(15));
}

#[test]
fn what_is_older_than_the_window_is_not_dated() {
    let m = model(vec![("n1", wrote(100, 7, 10)), ("n2", replayed(110, 9))]);
    assert_eq!(lag(&m, "n2").replay_lag, Err(LagUnknown::NoPrimarySample));
}

#[test]
fn while_the_primary_does_not_answer_lag_is_unknown_and_positions_stay() {
    let mut m = model(vec![("n1", wrote(100, 7, 10)), ("n2", replayed(110, 10))]);
    m.record(TERM, &n("n1"), Outcome::Failed);
    let snapshot = m.snapshot(&m.estimates());
    assert_eq!(snapshot.primary, None);
    let standby = snapshot.standby(&n("n2")).unwrap();
    assert_eq!(standby.replay_lag, Err(LagUnknown::NoPrimarySample));
    assert_eq!(standby.sample.as_ref().unwrap().replay_lsn, Lsn(10));
    m.record(TERM, &n("n1"), wrote(300, 7, 10));
    assert_eq!(staleness(&m, "n2", 300), Ok(190), "its own sample is of 110");
}

#[test]
fn an_unreachable_standby_is_not_fresh_though_its_last_sample_was() {
    let mut m = model(vec![("n1", wrote(100, 7, 10)), ("n2", replayed(110, 10))]);
    m.record(TERM, &n("n2"), Outcome::Failed);
    let verdict = lag(&m, "n2").freshness_at(at(120), Duration::MAX);
    assert_eq!(verdict, Freshness::Unknown { why: LagUnknown::Unreachable });
    m.record(TERM, &n("n2"), replayed(200, 10));
    assert!(lag(&m, "n2").replay_lag.is_ok());
}

#[test]
fn when_the_stream_breaks_the_data_grow_older_from_when_they_were_last_complete() {
    let mut m = model(vec![("n1", wrote(100, 7, 10)), ("n2", replayed(110, 10))]);
    let broken = |ms, lsn| {
        let facts = StandbyFacts { replay_lsn: Some(Lsn(lsn)), ..StandbyFacts::default() };
        Outcome::Answered(Answer { sent_at: at(ms), system_id: CLUSTER, started: None, facts: Facts::Standby(facts) })
    };
    m.record(TERM, &n("n2"), broken(200, 10));
    m.record(TERM, &n("n1"), wrote(5000, 7, 90));
    let estimate = m.estimates().into_iter().next().unwrap();
    assert_eq!(estimate.lag.replay_lag, Err(LagUnknown::StreamBroken));
    assert_eq!(estimate.complete_until, Some(at(100)));
    assert_eq!(estimate.lag.sample.unwrap().replay_lag_bytes, Some(80));
}

#[test]
fn a_primary_of_another_timeline_or_in_recovery_dates_nobody() {
    for answer in [wrote(200, 5, 90), replayed(200, 90)] {
        let m = model(vec![("n1", wrote(100, 7, 10)), ("n1", answer), ("n2", replayed(210, 10))]);
        assert_eq!(m.primary(), None);
        assert_eq!(lag(&m, "n2").replay_lag, Err(LagUnknown::NoPrimarySample));
    }
}

#[test]
fn a_new_term_makes_all_samples_old_and_answers_to_older_questions_are_dropped() {
    let mut m = model(vec![("n1", wrote(100, 7, 10)), ("n2", replayed(110, 10)), ("n3", replayed(110, 10))]);
    m.follow(&topology(Term(8), "n2"));
    assert_eq!(lag(&m, "n3").replay_lag, Err(LagUnknown::NeverSampled));
    m.record(TERM, &n("n3"), replayed(120, 10));
    assert_eq!(lag(&m, "n3").sample, None);
    m.record(Term(8), &n("n2"), wrote(200, 8, 30));
    m.record(Term(8), &n("n3"), replayed(210, 30));
    assert_eq!(lag(&m, "n3").replay_lag, Err(LagUnknown::StreamBroken), "it still streams timeline 7");
    assert_eq!(m.estimates()[1].complete_until, Some(at(100)), "what was known before is not forgotten");
}

#[test]
fn nodes_come_and_go_with_the_topology() {
    let mut m = model(vec![]);
    let mut smaller = topology(TERM, "n1");
    smaller.standbys.pop();
    m.follow(&smaller);
    assert_eq!(m.estimates().len(), 1);
    m.follow(&topology(TERM, "n1"));
    assert_eq!(m.estimates().len(), 2);
}

/// A primary that writes and a standby that follows it, each probed at its own times with its own delays.
#[derive(Clone, Debug)]
struct Run {
    /// Per millisecond: bytes flushed by the primary.
    writes: Vec<u64>,
    /// Replay is so many milliseconds behind, changing over time.
    delays: Vec<u64>,
    /// (sent at, answered after) of probes of the primary and the standby.
    primary: Vec<(usize, usize)>,
    standby: Vec<(usize, usize)>,
}

const SPAN: usize = 400;

fn runs() -> impl Strategy<Value = Run> {
    let probes = || prop::collection::vec((0..SPAN, 0usize..30), 1..40);
    let writes = prop::collection::vec(prop_oneof![3 => Just(0u64), 1 => 1u64..1000], SPAN);
    let delays = prop::collection::vec(prop_oneof![2 => Just(0u64), 1 => 0u64..80], SPAN);
    (writes, delays, probes(), probes()).prop_map(|(writes, delays, primary, standby)| Run {
        writes,
        delays,
        primary,
        standby,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_standby_is_never_said_to_be_fresher_than_it_is(run in runs()) {
        let mut end = 1000u64;
        let flushed: Vec<u64> = run.writes.iter().map(|bytes| { end += bytes; end }).collect();
        // Replay never goes back, whatever the delay does.
        let mut replay = 0;
        let replay: Vec<u64> = (0..SPAN)
            .map(|t| {
                replay = replay.max(flushed[t.saturating_sub(usize::try_from(run.delays[t]).unwrap())]);
                replay
            })
            .collect();
        let clip = |t: usize| t.min(SPAN - 1);
        let mut events: Vec<(usize, bool, usize)> = Vec::new();
        for (probes, is_primary) in [(&run.primary, true), (&run.standby, false)] {
            // One probe of a node at a time.
            let mut free_at = 0;
            let mut sorted = probes.clone();
            sorted.sort_unstable();
            for (sent, took) in sorted {
                if sent >= free_at {
                    free_at = sent + took;
                    events.push((clip(sent + took), is_primary, sent));
                }
            }
        }
        events.sort_unstable();
        let mut m = model(vec![]);
        for (answered, is_primary, sent) in events {
            // The server reads its position at some time between; here in the middle.
            let read = clip((sent + answered) / 2);
            let (sent_ms, now) = (sent as u64, answered as u64);
            if is_primary {
                m.record(TERM, &n("n1"), wrote(sent_ms, 7, flushed[read]));
            } else {
                m.record(TERM, &n("n2"), replayed(sent_ms, replay[read]));
            }
            let Ok(told) = staleness(&m, "n2", now) else { continue };
            // True staleness of what the last answered probe saw: since the first flush that it lacks.
            let has = m.nodes[&n("n2")].answer.clone().map(|a| match a.facts {
                Facts::Standby(s) => s.replayed().0,
                Facts::Primary(_) => unreachable!("n2 answers as a standby"),
            }).unwrap();
            let lacks = (0..=answered).find(|t| flushed[*t] > has);
            let truth = lacks.map_or(0, |t| (answered - t) as u64);
            prop_assert!(told >= truth, "told {told} ms, true {truth} ms at {now}");
        }
    }
}

#[test]
fn what_the_standbys_have_flushed_tells_up_to_when_commits_are_confirmed() {
    let until = |samples: &[(u64, u64, Option<u64>)]| {
        let outcomes = samples.iter().map(|(ms, lsn, c)| ("n1", confirmed(*ms, 7, *lsn, c.map(Lsn)))).collect();
        model(outcomes).primary().unwrap().confirmed_until
    };
    assert_eq!(until(&[(100, 10, Some(10)), (200, 20, Some(19))]), Some(at(100)));
    assert_eq!(until(&[(100, 10, Some(10)), (200, 20, Some(20))]), Some(at(200)));
    assert_eq!(until(&[(100, 10, Some(9))]), None, "older than all samples");
    assert_eq!(until(&[(100, 10, Some(10)), (200, 20, None)]), None, "too few standbys, and that was a guess");
}

#[test]
fn what_the_standbys_that_commits_wait_for_have_confirmed_stays_so_when_they_are_gone() {
    let told_of = |m: &mut Model, ms, c: Option<u64>, by_list, waits: Option<u64>| {
        let Outcome::Answered(mut answer) = confirmed(ms, 7, ms / 10, c.map(Lsn)) else { unreachable!("it answers") };
        let Facts::Primary(facts) = &mut answer.facts else { unreachable!("it is the primary") };
        (facts.confirmed_by_list, facts.waits) = (by_list, waits.map(Duration::from_millis));
        m.record(TERM, &n("n1"), Outcome::Answered(answer));
        m.primary().unwrap().confirmed_until
    };
    let told = |m: &mut Model, ms, c: Option<u64>, by_list| told_of(m, ms, c, by_list, None);
    let mut m = model(vec![]);
    assert_eq!(told(&mut m, 100, None, true), None);
    assert_eq!(told(&mut m, 200, Some(10), true), Some(at(100)));
    assert_eq!(told(&mut m, 300, None, true), Some(at(100)));
    m.record(TERM, &n("n1"), Outcome::Failed);
    assert_eq!(told(&mut m, 400, None, false), Some(at(100)), "also when commits wait for nobody any more");
    assert_eq!(told(&mut m, 500, Some(50), false), Some(at(500)));
    assert_eq!(told(&mut m, 600, None, true), Some(at(100)), "who waits then may have been overlooked before");
    assert_eq!(told(&mut m, 700, Some(40), true), Some(at(400)));
    assert_eq!(told(&mut m, 750, Some(30), true), Some(at(400)), "another has less, and one that is gone had more");
    let mut back = m.clone();
    assert_eq!(told(&mut back, 800, None, true), Some(at(400)));
    assert_eq!(told(&mut back, 810, None, true), Some(at(400)));
    let mut waits = back.clone();
    assert_eq!(told_of(&mut waits, 820, None, true, Some(300)), Some(at(400)), "it began since");
    assert_eq!(told_of(&mut waits, 830, None, true, Some(450)), Some(at(380)), "it waits to be applied, perhaps");
    assert_eq!(told(&mut waits, 840, None, true), Some(at(380)), "and was broken off, unseen by anybody");
    let Outcome::Answered(answer) = confirmed(820, 7, 5, None) else { unreachable!("it answers") };
    back.record(TERM, &n("n1"), Outcome::Answered(answer));
    assert_eq!(back.primary().unwrap().confirmed_until, None, "its WAL went back");
    m.follow(&topology(Term(8), "n1"));
    m.record(Term(8), &n("n1"), confirmed(800, 8, 80, None));
    assert_eq!(m.primary().unwrap().confirmed_until, None, "of another term");
}

#[test]
fn a_commit_that_waits_to_be_applied_is_not_confirmed_by_what_was_flushed() {
    let until = |waits: Option<u64>, applied: Option<u64>| {
        let mut m = model([100, 200, 300].map(|ms| ("n1", wrote(ms, 7, ms / 10))).into());
        let (insert_lsn, flush_lsn, confirmed_lsn) = (Lsn(40), Lsn(40), Some(Lsn(40)));
        let (applied_lsn, waits) = (applied.map(Lsn), waits.map(Duration::from_millis));
        let timeline = TimelineId(7);
        let rest = PrimaryFacts::default();
        let facts = PrimaryFacts { timeline, insert_lsn, flush_lsn, confirmed_lsn, applied_lsn, waits, ..rest };
        let answer = Answer { sent_at: at(400), system_id: CLUSTER, started: None, facts: Facts::Primary(facts) };
        m.record(TERM, &n("n1"), Outcome::Answered(answer));
        let sample = m.primary().unwrap();
        assert_eq!(sample.flushed_until, Some(at(400)), "that they have in any case");
        sample.confirmed_until
    };
    assert_eq!(until(None, None), Some(at(400)));
    assert_eq!(until(Some(0), None), Some(at(400)), "it began since");
    assert_eq!(until(Some(150), None), Some(at(250)));
    assert_eq!(until(Some(150), Some(20)), Some(at(250)));
    assert_eq!(until(Some(150), Some(30)), Some(at(300)), "that much is applied");
    assert_eq!(until(Some(5_000), None), Some(at(0)), "nothing is");
}

#[test]
fn a_standby_that_did_not_answer_may_have_been_restarted_also_when_a_term_began_meanwhile() {
    let up_since = |m: &Model| lag(m, "n2").sample.unwrap().up_since;
    let mut m = model(vec![("n1", wrote(90, 7, 10)), ("n2", replayed(100, 10)), ("n2", replayed(200, 10))]);
    assert_eq!(up_since(&m), at(100));
    m.follow(&topology(Term(8), "n3"));
    m.record(Term(8), &n("n2"), replayed(300, 10));
    assert_eq!(up_since(&m), at(100), "a new term restarts nobody");
    // The probe was sent in the term before.
    m.record(TERM, &n("n2"), Outcome::Failed);
    m.record(Term(8), &n("n2"), replayed(500, 10));
    assert_eq!(up_since(&m), at(500));
    // Nor would it have been noticed while nobody was connected.
    m.lose_sight(&n("n2"));
    m.record(Term(8), &n("n2"), replayed(600, 10));
    assert_eq!(up_since(&m), at(600));
}

/// A standby that receives `timeline` from the sender at `host`.
fn receives(ms: u64, timeline: Option<u32>, host: &str, system_id: u64) -> Outcome {
    let facts = StandbyFacts {
        replay_lsn: Some(Lsn(5)),
        streams: timeline.map(TimelineId),
        sender: Some(Endpoint { host: host.to_owned(), port: 5432 }),
        ..StandbyFacts::default()
    };
    Outcome::Answered(Answer { sent_at: at(ms), system_id, started: None, facts: Facts::Standby(facts) })
}

#[test]
fn voters_that_receive_from_the_primary_prove_its_term_as_of_when_they_were_asked() {
    let mut cluster = topology(TERM, "n1");
    cluster.system_id = Some(CLUSTER);
    for member in cluster.primary.iter_mut().chain(&mut cluster.standbys) {
        member.postgres.host = member.node.to_string();
    }
    let quorum = |k| Quorum { voters: ["n1", "n2", "n3"].map(n).to_vec(), k };
    let proven = |quorums: Vec<Quorum>, answers: Vec<(&str, Outcome)>| {
        let mut m = Model::new();
        m.follow(&Topology { quorums, ..cluster.clone() });
        answers.into_iter().for_each(|(node, outcome)| m.record(TERM, &n(node), outcome));
        m.snapshot(&m.estimates()).proven_at
    };
    let both = || vec![("n2", receives(100, Some(7), "n1", CLUSTER)), ("n3", receives(110, Some(7), "n1", CLUSTER))];
    assert_eq!(proven(vec![quorum(1)], both()), Some(at(110)));
    assert_eq!(proven(vec![quorum(2)], both()), Some(at(100)));
    assert_eq!(proven(vec![quorum(1), quorum(2)], both()), Some(at(100)), "each of two must be proven");
    assert_eq!(proven(vec![], both()), None, "where time fences");
    for (what, proves_nothing) in [
        ("frozen", receives(200, None, "n1", CLUSTER)),
        ("another timeline", receives(200, Some(6), "n1", CLUSTER)),
        ("follows a later primary up to the fork", receives(200, Some(7), "n3", CLUSTER)),
        ("another cluster", receives(200, Some(7), "n1", CLUSTER + 1)),
        ("silent", Outcome::Failed),
        ("promoted", wrote(200, 8, 50)),
    ] {
        assert_eq!(proven(vec![quorum(1)], vec![("n2", proves_nothing.clone())]), None, "{what}");
        let before = vec![("n2", receives(100, Some(7), "n1", CLUSTER)), ("n2", proves_nothing)];
        assert_eq!(proven(vec![quorum(1)], before), Some(at(100)), "{what}: what was proven before stays");
    }
    // A later term begins with nothing.
    let mut m = Model::new();
    m.follow(&Topology { quorums: vec![quorum(1)], ..cluster.clone() });
    m.record(TERM, &n("n2"), receives(100, Some(7), "n1", CLUSTER));
    m.follow(&Topology { quorums: vec![quorum(1)], term: Term(8), ..cluster.clone() });
    m.record(Term(8), &n("n2"), receives(200, Some(7), "n1", CLUSTER));
    assert_eq!(m.snapshot(&m.estimates()).proven_at, None);
}

#[test]
fn a_node_with_other_collations_sorts_otherwise_and_one_that_has_not_told_does_not() {
    let told = |m: &mut Model, term, node: &str, text: &str| {
        let detail = detail::NodeDetail { collations: Some(text.to_owned()), ..detail::NodeDetail::default() };
        m.record_detail(term, &n(node), Some(detail));
    };
    let otherwise = |m: &Model| ["n1", "n2", "n3"].map(|node| m.sorts_otherwise(&n(node)));
    let mut m = model(Vec::new());
    told(&mut m, TERM, "n2", "database 2.31, icu 153.120, libc 2.31");
    assert_eq!(otherwise(&m), [false; 3], "the primary has not told");
    told(&mut m, TERM, "n1", "database 2.36, icu 153.120, libc 2.36");
    assert_eq!(otherwise(&m), [false, true, false]);
    told(&mut m, TERM, "n3", "database 2.36, icu 153.120, libc 2.36");
    assert_eq!(otherwise(&m), [false, true, false]);
    // Nor is it forgotten while nobody answers, or as another term begins.
    m.record_detail(TERM, &n("n1"), None);
    m.record(TERM, &n("n1"), Outcome::Failed);
    assert_eq!([lag(&m, "n2"), lag(&m, "n3")].map(|lag| lag.detail.sorts_otherwise), [true, false]);
    m.follow(&topology(Term(8), "n2"));
    assert_eq!(otherwise(&m), [true, false, true]);
    told(&mut m, Term(8), "n2", "database 2.36, icu 153.120, libc 2.36");
    assert_eq!(otherwise(&m), [false; 3]);
}
