use super::*;
use crate::record::Cause;

fn record(term: u64, phase: Phase, node: Option<&str>) -> TermRecord {
    TermRecord {
        term: Term(term),
        phase,
        coordinator: "m".into(),
        node: node.map(|n| n.parse().unwrap()),
        cause: Cause::Failover,
        prev: None,
        fork: None,
        forks: Vec::new(),
        xid_bound: None,
        xid_bounds: Vec::new(),
        record_lsn: None,
        policy_epoch: 1,
        newest_timeline: None,
        holds_all_of: None,
        holds_written_of: None,
        history_lost: false,
        lossy_timelines: Vec::new(),
        chosen_before: None,
        data_loss_allowed: false,
    }
}

fn n(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// Node n1 with this server under this record; promised the record's term.
fn check(server: Server, record: Option<&TermRecord>, expected: Act) {
    let node = n("n1");
    let facts = facts(&node, server, record);
    assert_eq!(decide(&facts), expected, "{server:?} under {record:?}");
}

fn facts<'a>(node: &'a NodeId, server: Server, record: Option<&'a TermRecord>) -> Facts<'a> {
    Facts {
        node,
        server,
        promise: record.map_or(Term(0), |r| r.term),
        record,
        init: None,
        system_id: None,
        memory_of: None,
        fence: None,
        maintenance: false,
        adopts: None,
        upstream: None,
        not_streaming_for: Duration::ZERO,
        starts_late: false,
        hangs_late: false,
        rewind_interrupted: false,
        quarantined: false,
        remembers: record.is_some(),
        others: Others::Empty,
        voter: true,
        place: Place::Own,
    }
}

#[test]
fn a_second_agent_of_the_nodes_name_neither_copies_nor_starts_nor_follows() {
    let node = n("n2");
    let active = record(3, Phase::Active, Some("n1"));
    let act = |place, server| decide(&Facts { place, ..facts(&node, server, Some(&active)) });
    let stopped = [Server::Absent, Server::Stopped { was_primary: false }, Server::Stopped { was_primary: true }];
    let runs = [Server::Starting, Server::Standby { streaming: None }, Server::Hung { was_primary: false }];
    for server in stopped {
        assert_eq!(act(Place::Others, server), Act::Wait(Because::NotOnRecord), "{server:?}");
    }
    for server in runs {
        assert_eq!(act(Place::Others, server), Act::StopNamesake, "{server:?}");
    }
    let primary = Server::Primary { timeline: TimelineId(3) };
    assert_eq!(act(Place::Others, primary), act(Place::Own, primary));
    // Who has not looked yet only waits with a copy.
    assert_eq!(act(Place::Unknown, Server::Absent), Act::Wait(Because::NotOnRecord));
    for server in [stopped[1], stopped[2], runs[0], runs[1], runs[2]] {
        assert_eq!(act(Place::Unknown, server), act(Place::Own, server), "{server:?}");
    }
}

#[test]
fn nobody_connects_ahead_who_was_not_frozen_for_it_or_has_something_to_make_up_for() {
    let whole = Recruit {
        frozen_for: Some(Term(8)),
        cut_off_for: Term(8),
        standby: true,
        rewinding: false,
        examined: false,
        quarantined: false,
    };
    assert_eq!(whole.may_connect_ahead(Term(8)), Ok(()));
    for (unfrozen, why) in [
        (Recruit { frozen_for: None, ..whole }, "its freeze is over"),
        (Recruit { frozen_for: Some(Term(9)), ..whole }, "for another term"),
        (Recruit { cut_off_for: Term(0), ..whole }, "it may receive still"),
        (Recruit { standby: false, ..whole }, "stopped"),
    ] {
        assert_eq!(unfrozen.may_connect_ahead(Term(8)), Err("frozen for the term"), "{why}");
    }
    for marked in [
        Recruit { rewinding: true, ..whole },
        Recruit { examined: true, ..whole },
        Recruit { quarantined: true, ..whole },
    ] {
        assert!(marked.may_connect_ahead(Term(8)).is_err_and(|why| why.contains("examined")), "{marked:?}");
    }
    let at = |timeline, lsn| Position { timeline: TimelineId(timeline), lsn: cluster::Lsn(lsn) };
    for (have, fits) in [
        (Some(at(7, 100)), true),
        (Some(at(7, 99)), true),
        (Some(at(7, 101)), false),
        (Some(at(6, 99)), false),
        (Some(at(8, 99)), false),
        (None, false),
    ] {
        assert_eq!(ends_by(at(7, 100), have), fits, "{have:?}");
    }
}

const STANDBY: Server = Server::Standby { streaming: None };

#[test]
fn a_stopped_primary_never_starts_by_itself() {
    let stopped = Server::Stopped { was_primary: true };
    check(stopped, Some(&record(3, Phase::Active, Some("n1"))), Act::Wait(Because::AwaitsManager));
    check(stopped, Some(&record(4, Phase::Recruiting, None)), Act::Wait(Because::NoPrimary));
    check(stopped, Some(&record(4, Phase::Promoting, Some("n2"))), Act::Wait(Because::NoPrimary));
    check(stopped, Some(&record(4, Phase::Opening, Some("n2"))), Act::Rejoin);
}

#[test]
fn a_primary_of_an_older_term_stops_at_once() {
    let primary = Server::Primary { timeline: TimelineId(3) };
    check(primary, Some(&record(3, Phase::Active, Some("n1"))), Act::Wait(Because::Fine));
    check(primary, Some(&record(3, Phase::Draining, Some("n1"))), Act::Wait(Because::Fine));
    check(primary, Some(&record(4, Phase::Recruiting, None)), Act::StopSuperseded);
    check(primary, Some(&record(4, Phase::Active, Some("n2"))), Act::StopSuperseded);
    // A standby of term 2 that somebody promoted by hand: nobody has promised term 3.
    check(primary, Some(&record(2, Phase::Active, Some("n2"))), Act::StopSuperseded);
    let node = n("n1");
    let known_late = Facts { promise: Term(3), ..facts(&node, primary, None) };
    let behind = record(2, Phase::Active, Some("n2"));
    assert_eq!(decide(&Facts { record: Some(&behind), ..known_late }), Act::Wait(Because::Fine));
    let hung = |was_primary| Server::Hung { was_primary };
    check(hung(true), Some(&record(4, Phase::Active, Some("n2"))), Act::StopSuperseded);
    // A standby that is only slow is left alone.
    check(hung(false), Some(&record(4, Phase::Active, Some("n2"))), Act::Wait(Because::Hung));
    check(hung(true), Some(&record(4, Phase::Active, Some("n1"))), Act::Wait(Because::Hung));
}

#[test]
fn a_standby_that_has_hung_for_long_is_started_again_and_nobody_else() {
    let check = |was_primary, phase, named: Option<&str>, expected| {
        let (node, record) = (n("n1"), record(4, phase, named));
        let facts = facts(&node, Server::Hung { was_primary }, Some(&record));
        assert_eq!(decide(&Facts { hangs_late: true, ..facts }), expected, "{was_primary} {phase:?} {named:?}");
    };
    check(false, Phase::Active, Some("n2"), Act::StopHung);
    // It is to be frozen, and cannot be.
    check(false, Phase::Recruiting, None, Act::StopHung);
    check(false, Phase::Promoting, Some("n1"), Act::Wait(Because::Hung));
    check(true, Phase::Active, Some("n1"), Act::Wait(Because::Hung));
    check(true, Phase::Recruiting, None, Act::Wait(Because::Hung));
}

#[test]
fn a_standby_without_stream_compares_histories() {
    let active = record(4, Phase::Active, Some("n2"));
    check(STANDBY, Some(&active), Act::Rejoin);
    check(Server::Stopped { was_primary: false }, Some(&active), Act::StartDetached);
    // Without the primary's WAL it would wait for consistency for ever.
    let (node, recruiting) = (n("n1"), record(5, Phase::Recruiting, None));
    let rewound = Facts { quarantined: true, ..facts(&node, Server::Stopped { was_primary: false }, Some(&active)) };
    assert_eq!(decide(&rewound), Act::StartUnder);
    assert_eq!(decide(&Facts { record: Some(&recruiting), ..rewound }), Act::Wait(Because::NoPrimary));
    let (node, upstream) = (n("n1"), n("n2"));
    let follows = Facts { upstream: Some((&upstream, Term(4))), ..facts(&node, STANDBY, Some(&active)) };
    assert_eq!(decide(&follows), Act::Wait(Because::Fine));
    let late = Facts { not_streaming_for: STREAMING_PATIENCE, ..follows.clone() };
    assert_eq!(decide(&late), Act::Rejoin);
    let stale = Server::Standby { streaming: Some(TimelineId(3)) };
    assert_eq!(decide(&Facts { server: stale, ..late }), Act::Rejoin);
    let fine = Facts { server: Server::Standby { streaming: Some(TimelineId(4)) }, ..follows };
    assert_eq!(decide(&fine), Act::Wait(Because::Fine));
}

#[test]
fn what_was_rewound_and_waits_for_the_wal_of_a_lost_primary_is_started_under_the_new_one() {
    let (node, active, old) = (n("n1"), record(4, Phase::Active, Some("n3")), n("n2"));
    let at = |starts_late| Facts { starts_late, quarantined: true, ..facts(&node, Server::Starting, Some(&active)) };
    assert_eq!(decide(&at(false)), Act::Wait(Because::Starting));
    assert_eq!(decide(&at(true)), Act::StopStranded, "its agent was restarted and has given it no address");
    assert_eq!(decide(&Facts { upstream: Some((&old, Term(3))), ..at(true) }), Act::StopStranded);
    let new = n("n3");
    let late = Act::Wait(Because::StartsLate);
    assert_eq!(decide(&Facts { upstream: Some((&new, Term(4))), ..at(true) }), late);
    assert_eq!(decide(&Facts { quarantined: false, ..at(true) }), late, "it replays its own WAL");
    assert_eq!(decide(&Facts { promise: Term(5), ..at(true) }), late);
    assert!(Because::StartsLate.trouble().is_some());
}

#[test]
fn a_node_frozen_for_a_later_term_does_not_follow_the_earlier_one() {
    let (node, active) = (n("n1"), record(4, Phase::Active, Some("n2")));
    let frozen = Facts { promise: Term(5), ..facts(&node, STANDBY, Some(&active)) };
    assert_eq!(decide(&frozen), Act::Wait(Because::Frozen));
}

#[test]
fn one_node_creates_the_cluster_and_the_others_wait_to_clone() {
    let node = n("n1");
    let unborn = facts(&node, Server::Absent, None);
    assert_eq!(decide(&unborn), Act::Create);
    let init = |name: &str| InitRecord { node: n(name), system_id: None };
    let (mine, other) = (init("n1"), init("n2"));
    assert_eq!(decide(&Facts { init: Some(&mine), ..unborn.clone() }), Act::ResumeCreation);
    assert_eq!(decide(&Facts { init: Some(&other), ..unborn.clone() }), Act::Wait(Because::BeingCreated));
    // The term's record is gone although the cluster was created, or a manager has already commanded here.
    let created = InitRecord { system_id: Some("7".into()), ..init("n1") };
    assert_eq!(decide(&Facts { init: Some(&created), ..unborn.clone() }), Act::Wait(Because::UnknownCluster));
    let commanded = Facts { init: Some(&mine), remembers: true, server: STANDBY, ..unborn.clone() };
    assert_eq!(decide(&commanded), Act::Wait(Because::UnknownCluster));
    let wiped = Facts { remembers: true, ..unborn.clone() };
    assert_eq!(decide(&wiped), Act::Wait(Because::UnknownCluster), "etcd has lost all, and this disk is a new one");
    let with = |others| decide(&Facts { others, ..unborn.clone() });
    assert_eq!(
        with(Others::HaveData),
        Act::Wait(Because::UnknownCluster),
        "etcd has lost all, and this node is a new one"
    );
    assert_eq!(with(Others::Missing(Duration::from_secs(1))), Act::Wait(Because::AwaitsOthers));
    assert_eq!(with(Others::Missing(REGISTERING)), Act::Create);
    let late = Facts { init: Some(&mine), others: Others::HaveData, ..unborn.clone() };
    assert_eq!(decide(&late), Act::Wait(Because::UnknownCluster), "they registered after it had won the right");
    check(Server::Absent, Some(&record(1, Phase::Opening, Some("n2"))), Act::Clone);
    check(STANDBY, None, Act::Wait(Because::UnknownCluster));
}

#[test]
fn data_of_another_cluster_is_left_alone() {
    let (node, active) = (n("n1"), record(4, Phase::Active, Some("n2")));
    let init = InitRecord { node: n("n2"), system_id: Some("7".into()) };
    let base = facts(&node, Server::Stopped { was_primary: true }, Some(&active));
    let foreign = Facts { init: Some(&init), system_id: Some("8"), ..base };
    assert_eq!(decide(&foreign), Act::Wait(Because::ForeignData));
    // It was removed, and what its agent remembers was not.
    let init_of = |memory_of, adopts| {
        decide(&Facts { init: Some(&init), memory_of, adopts, ..facts(&node, Server::Absent, Some(&active)) })
    };
    for adopts in [None, Some(true)] {
        assert_eq!(init_of(Some("8"), adopts), Act::Wait(Because::ForeignData));
    }
    assert_eq!((init_of(Some("7"), None), init_of(Some("7"), Some(true))), (Act::Clone, Act::TakeOver));
}

#[test]
fn a_directory_to_adopt_is_neither_created_nor_cloned_over_and_taken_in_its_turn() {
    let (node, active) = (n("n1"), record(4, Phase::Active, Some("n2")));
    let at = |record, turn| Facts { adopts: Some(turn), ..facts(&node, Server::Absent, record) };
    assert_eq!(decide(&at(None, false)), Act::Wait(Because::AwaitsAdoption));
    assert_eq!(decide(&at(Some(&active), false)), Act::Wait(Because::AwaitsAdoption));
    assert_eq!(decide(&at(Some(&active), true)), Act::TakeOver);
    let ours = Facts { server: Server::Stopped { was_primary: false }, ..at(Some(&active), true) };
    assert_eq!(decide(&ours), Act::StartDetached);
}

#[test]
fn in_maintenance_what_is_stopped_stays_stopped_and_what_runs_goes_on() {
    let (node, active) = (n("n1"), record(4, Phase::Active, Some("n2")));
    let at = |server| Facts { maintenance: true, ..facts(&node, server, Some(&active)) };
    for stopped in [Server::Stopped { was_primary: false }, Server::Stopped { was_primary: true }, Server::Absent] {
        assert_eq!(decide(&at(stopped)), Act::Wait(Because::Maintenance), "{stopped:?}");
    }
    assert_eq!(decide(&at(STANDBY)), Act::Rejoin);
    assert_eq!(decide(&at(Server::Primary { timeline: TimelineId(3) })), Act::StopSuperseded);
}

#[test]
fn a_fence_stops_a_standby_and_a_primary_only_when_writes_may_stop() {
    let (node, active) = (n("n1"), record(4, Phase::Active, Some("n1")));
    let fence = |stop_writes| FenceRecord { by: "me".into(), at: 0, stop_writes, removed: false };
    let (soft, hard) = (fence(false), fence(true));
    let primary = facts(&node, Server::Primary { timeline: TimelineId(4) }, Some(&active));
    assert_eq!(decide(&Facts { fence: Some(&soft), ..primary.clone() }), Act::Wait(Because::Fine));
    assert_eq!(decide(&Facts { fence: Some(&hard), ..primary.clone() }), Act::StopFenced);
    assert_eq!(decide(&Facts { server: STANDBY, fence: Some(&soft), ..primary.clone() }), Act::StopFenced);
    let stopped = Server::Stopped { was_primary: false };
    assert_eq!(decide(&Facts { server: stopped, fence: Some(&soft), ..primary }), Act::Wait(Because::Fenced));
}
