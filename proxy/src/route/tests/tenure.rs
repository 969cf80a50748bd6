//! What is read in a term that may be over.

use super::*;
use cluster::topology::Quorum;

/// A strict cluster whose view was read at 1000 ms and that no standby has proven since, without standbys to read at.
fn strict() -> World {
    let mut w = World::new();
    w.topology.quorums = vec![Quorum { voters: ["n1", "n2", "n3"].map(node).to_vec(), k: 1 }];
    w.topology.read_at = Some(at(1000));
    w.topology.confirmed_until = Some(at(60_000));
    w.topology.standbys.clear();
    w
}

fn word(decision: &Decision) -> String {
    let target = match &decision.target {
        Target::Primary => "primary",
        Target::Standby(_) => "standby",
        Target::Wait(_) => "wait",
        Target::Nowhere => "nowhere",
    };
    format!("{target} {}", decision.reason.as_str())
}

#[test]
fn the_primary_is_as_stale_as_the_last_proof_that_its_term_is_not_over() {
    for (consistency, access, now, want) in [
        (Consistency::Bounded, Access::Read, 2000, "primary no_standby"),
        (Consistency::Bounded, Access::Read, 2001, "wait unproven"),
        (Consistency::Session, Access::Read, 2000, "primary no_standby"),
        (Consistency::Session, Access::Read, 2001, "wait unproven"),
        // Whoever is promised everything needs a proof of later than the question.
        (Consistency::Global, Access::Read, 1001, "wait unproven"),
        (Consistency::Global, Access::Write, 2000, "primary write"),
        (Consistency::Global, Access::Write, 2001, "wait unproven"),
        // A block reads, too.
        (Consistency::Session, Access::Write, 2000, "primary write"),
        (Consistency::Session, Access::Write, 2001, "wait unproven"),
        // Anything may be missing, or a commit proves it.
        (Consistency::Eventual, Access::Read, 50_000, "primary no_standby"),
        (Consistency::Eventual, Access::Write, 50_000, "primary write"),
        (Consistency::Strong, Access::Read, 50_000, "primary as_asked"),
        (Consistency::Strong, Access::Write, 50_000, "primary write"),
    ] {
        let mut w = strict();
        w.promise.consistency = consistency;
        assert_eq!(word(&w.decide(access, now, 1)), want, "{consistency:?} {access:?} at {now}");
        w.promise.read_from = ReadFrom::Primary;
        let held = word(&w.decide(access, now, 1)) == "wait unproven";
        assert_eq!(held, want == "wait unproven", "{consistency:?} {access:?} at {now}, asked for from the primary");
    }
}

#[test]
fn standbys_that_receive_prove_it_and_are_as_stale_as_that_proof_themselves() {
    let mut w = strict();
    w.topology.standbys = vec![member("n2")];
    // Whatever it has replayed of this term, it was asked for at 3000 ms.
    w.snapshot.standbys = vec![standby("n2", 100, 3000)];
    w.publish();
    assert_eq!(word(&w.decide(Access::Read, 3000, 1)), "wait unproven");
    w.snapshot.proven_at = Some(at(2500));
    w.publish();
    assert_eq!(word(&w.decide(Access::Read, 3500, 1)), "standby fresh");
    assert_eq!(word(&w.decide(Access::Read, 3501, 1)), "wait unproven");
    w.snapshot.term = Term(6);
    w.publish();
    assert_eq!(word(&w.decide(Access::Write, 3000, 1)), "wait unproven", "another term was proven");
}

#[test]
fn a_statement_that_waits_is_judged_by_when_it_came_and_says_what_it_waits_for() {
    let mut w = strict();
    w.since = Some(at(2500));
    let d = w.decide(Access::Read, 2600, 1);
    assert_eq!(word(&d), "wait unproven");
    assert_eq!(d.reason.to_string(), "the last proof that term 7 is not over is 1600 ms old where 1000 ms are allowed");
    assert!(d.wants_proof() && !d.wants_sample(None));
    w.topology.read_at = Some(at(1500));
    assert_eq!(word(&w.decide(Access::Read, 9000, 1)), "primary no_standby");
    w.topology.read_at = None;
    assert_eq!(w.decide(Access::Read, 2600, 1).reason.to_string(), "nothing has proven that term 7 is not over");
    w.promise.consistency = Consistency::Global;
    w.topology.read_at = Some(at(2499));
    let why = w.decide(Access::Read, 2600, 1).reason.to_string();
    assert_eq!(why, "the last proof that term 7 is not over is 101 ms old, a newer one is needed");
    w.topology.read_at = Some(at(2500));
    w.snapshot.primary = Some(sample("n1", 100, 2550));
    w.publish();
    assert_eq!(word(&w.decide(Access::Read, 2600, 1)), "primary no_standby");
}

#[test]
fn a_block_at_a_standby_begins_only_while_the_term_is_proven() {
    let mut w = strict();
    w.topology.standbys = vec![member("n2")];
    w.snapshot.standbys = vec![standby("n2", 100, 2001)];
    w.publish();
    for (now, fits) in [(2000, true), (2001, false)] {
        let World { topology, lag, causality, promise, .. } = &mut w;
        assert_eq!(still_fits(&node("n2"), promise, causality, topology, lag, at(now)), fits, "at {now}");
    }
}

#[test]
fn writes_have_a_second_however_fresh_reads_are_to_be() {
    let mut w = strict();
    w.promise.max_replay_lag = Duration::ZERO;
    assert_eq!(word(&w.decide(Access::Read, 1001, 1)), "wait unproven");
    assert_eq!(word(&w.decide(Access::Write, 2000, 1)), "primary write");
    assert_eq!(word(&w.decide(Access::Write, 2001, 1)), "wait unproven");
}

#[test]
fn where_everybody_else_is_silent_a_commit_proves_it() {
    for access in [Access::Read, Access::Write] {
        let mut w = strict();
        let waits = |w: &mut World, now| w.decide(access, now, 1).target;
        w.since = Some(at(2500));
        assert_eq!(waits(&mut w, 2600), Target::Wait(promise::LONGEST), "no standby confirms commits");
        w.topology.protected = true;
        assert_eq!(waits(&mut w, 2600), Target::Wait(Duration::from_millis(400)));
        w.snapshot.proven_at = Some(at(1200));
        w.publish();
        assert_eq!(waits(&mut w, 3100), Target::Wait(Duration::from_millis(100)));
        let d = w.decide(access, 3200, 1);
        assert_eq!((word(&d).as_str(), d.wants_sample(None)), ("primary unproven", false));
        // Who does not want the primary burdened is told what is missing.
        w.promise.no_standby = NoStandby::Error;
        let spared = if access == Access::Read { "nowhere unproven" } else { "primary unproven" };
        assert_eq!(word(&w.decide(access, 3200, 1)), spared);
        w.promise.no_standby = NoStandby::Primary;
        // It holds for others as well, and does not put off the next one.
        w.lag.committed(Term(7), at(3200));
        w.since = None;
        assert_ne!(word(&w.decide(access, 4200, 1)), "primary unproven");
        assert_eq!(word(&w.decide(access, 4201, 1)), "primary unproven");
        w.lag.committed(Term(8), at(4201));
        assert_eq!(word(&w.decide(access, 4201, 1)), "primary unproven", "of another term");
        w.topology.gate = Gate::Draining;
        assert_eq!(waits(&mut w, 4201), Target::Wait(promise::LONGEST));
    }
}

#[test]
fn where_time_keeps_a_later_term_from_opening_the_view_is_the_proof() {
    let mut w = strict();
    w.topology.quorums.clear();
    (w.topology.valid_until, w.topology.confirmed_until) = (Some(at(9000)), None);
    assert_eq!(word(&w.decide(Access::Read, 8999, 1)), "primary no_standby");
    assert_eq!(word(&w.decide(Access::Write, 8999, 1)), "primary write");
}

#[test]
fn once_a_term_begins_only_etcd_tells_that_it_has_not_opened() {
    let mut w = strict();
    w.topology.standbys = vec![member("n2")];
    w.topology.gate = Gate::Closed(Closed::Recruiting);
    w.snapshot = LagSnapshot {
        primary: None,
        standbys: vec![StandbyLag { replay_lag: Err(LagUnknown::NoPrimarySample), ..standby("n2", 100, 1900) }],
        proven_at: Some(at(1900)),
        ..w.snapshot
    };
    w.snapshot.primary = Some(sample("n1", 100, 1900));
    w.publish();
    w.snapshot.primary = None;
    w.publish();
    assert_eq!(word(&w.decide(Access::Read, 2000, 1)), "standby fresh");
    assert_eq!(word(&w.decide(Access::Read, 2001, 1)), "wait unproven");
}

#[test]
fn etcd_is_asked_where_no_standby_proves_the_term() {
    let mut w = strict();
    let only_etcd = |w: &World, now| super::super::only_etcd_proves(&w.topology, &w.lag, at(now));
    assert!(only_etcd(&w, 2000), "no standby was seen to stream");
    w.snapshot.proven_at = Some(at(2000));
    w.publish();
    assert!(!only_etcd(&w, 2500) && only_etcd(&w, 2501), "those that are sampled say it several times a second");
    w.topology.gate = cluster::topology::Gate::Closed(cluster::topology::Closed::Promoting);
    assert!(only_etcd(&w, 2000), "a term that begins is proven by none of them");
}

#[test]
fn only_a_view_that_ends_and_has_no_quorum_is_protected_by_time_alone() {
    let confirmed = strict().topology;
    assert!(!only_time_protects(&confirmed), "a later term freezes a quorum of it");
    let timed = Topology { quorums: Vec::new(), valid_until: Some(at(60_000)), ..confirmed.clone() };
    assert!(only_time_protects(&timed));
    assert!(!only_time_protects(&Topology { valid_until: timed.valid_until, ..confirmed }));
    assert!(!only_time_protects(&Topology { valid_until: None, confirmed_until: None, ..timed }), "it never ends");
}
