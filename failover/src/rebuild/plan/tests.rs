use super::*;
use crate::api::{Primary, Standby};
use crate::record::{Limits, Mode};
use cluster::Lsn;

fn n(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn policy(epoch: u64, k: u32) -> PolicyRecord {
    PolicyRecord {
        epoch,
        voters: ["n1", "n2", "n3"].map(n).to_vec(),
        k,
        mode: Mode::Strict,
        suspended: None,
        limits: Limits::default(),
        joint: None,
        rearmed: None,
    }
}

fn agent(node: &str, promise: u64, epoch: u64, postgres: PostgresState) -> AgentState {
    AgentState {
        seq: 1,
        node: n(node),
        holder: "h".into(),
        host: "h".into(),
        promise: Term(promise),
        opened: Term(0),
        postgres,
        observed_ms_ago: 0,
        system_id: Some("77".into()),
        memory_of: None,
        frozen_for: None,
        quarantine: None,
        rejoin: None,
        fenced: false,
        sees_primary: None,
        lease_left_ms: None,
        fsync_probe_ms: None,
        trouble: None,
        namesake: None,
        slot_room: None,
        ending: false,
        policy: Some(policy(epoch, 1)),
    }
}

fn primary(timeline: u32) -> PostgresState {
    PostgresState::Primary(Primary {
        timeline: TimelineId(timeline),
        insert_lsn: Lsn(0x9000),
        flush_lsn: Lsn(0x9000),
        sync_names: String::new(),
        followers: Vec::new(),
        impostors: Vec::new(),
        doubted: Vec::new(),
    })
}

fn standby(timeline: u32, from: Option<&str>) -> PostgresState {
    PostgresState::Standby(Standby {
        timeline: TimelineId(timeline),
        receive_lsn: Lsn(0x8000),
        replay_lsn: Lsn(0x8000),
        streams_from: from.map(n),
        replay_paused: false,
        sync_names: String::new(),
    })
}

/// n1 is primary of term 4; n3 has promised a term that nobody opened, and n2 has read the newest policy.
fn found() -> Found {
    let agents = [
        agent("n1", 4, 2, primary(4)),
        agent("n2", 4, 3, standby(4, Some("n1"))),
        agent("n3", 6, 2, standby(4, Some("n1"))),
    ];
    Found {
        configured: ["n1", "n2", "n3"].map(n).to_vec(),
        agents: agents.into_iter().map(|a| (a.node.clone(), Ok(a))).collect(),
        led: true,
        ..Found::default()
    }
}

fn made(found: &Found, without: &[&str]) -> Plan {
    plan(found, &without.iter().map(|w| n(w)).collect(), "me@host", 5)
}

#[test]
fn the_term_is_above_every_promise_and_timeline_and_the_policy_is_the_newest() {
    let plan = made(&found(), &[]);
    assert_eq!(plan.obstacles, Vec::<String>::new());
    let records = plan.records.expect("nothing forbids it");
    assert_eq!((records.term.term, records.term.phase, records.policy.epoch), (Term(7), Phase::Recruiting, 3));
    assert!(records.term.history_lost);
    assert_eq!(records.term.prev.map(|p| (p.term, p.node)), Some((Term(4), n("n1"))));
    assert_eq!(records.init.system_id.as_deref(), Some("77"));

    let mut promoted_by_hand = found();
    promoted_by_hand.agents.insert(n("n3"), Ok(agent("n3", 4, 2, primary(9))));
    let records = made(&promoted_by_hand, &[]).records.expect("nothing forbids it");
    assert_eq!(records.term.term, Term(10));

    // A term that was open is not made a second time, although whoever promised it is not among those that answer.
    let mut heard_of = found();
    heard_of.agents.insert(n("n3"), Ok(AgentState { opened: Term(12), ..agent("n3", 6, 2, standby(4, Some("n1"))) }));
    assert_eq!(made(&heard_of, &[]).records.expect("nothing forbids it").term.term, Term(13));
}

#[test]
fn an_agent_that_does_not_answer_forbids_it_until_it_is_left_out_knowingly() {
    let mut found = found();
    found.agents.insert(n("n3"), Err("connection refused".into()));
    let refused = made(&found, &[]);
    assert_eq!((refused.obstacles.len(), refused.records), (1, None), "{:?}", refused.obstacles);
    assert!(refused.obstacles[0].starts_with("n3 does not answer (connection refused)"), "{:?}", refused.obstacles);
    let allowed = made(&found, &["n3"]);
    assert_eq!(allowed.records.expect("nothing forbids it").term.term, Term(5 + GAP), "n3 may have promised more");
    assert!(allowed.notes[0].starts_with("n3 is left out"), "{:?}", allowed.notes);

    // Nor is one forgotten that never registered again.
    found.agents.remove(&n("n3"));
    assert!(made(&found, &[]).obstacles[0].starts_with("n3 has not registered"));
    found.configured.pop();
    assert!(made(&found, &[]).obstacles[0].starts_with("n3 has not registered"), "the policy names it as well");
}

#[test]
fn what_cannot_be_made_sense_of_is_refused_with_every_reason() {
    let mut found = found();
    (found.term, found.led) = (Some(Term(3)), false);
    let other = AgentState { system_id: Some("78".into()), ..agent("n2", 4, 3, standby(4, None)) };
    found.agents.insert(n("n2"), Ok(other));
    let refused = made(&found, &["n1", "n9"]);
    assert_eq!((refused.obstacles.len(), refused.records), (5, None), "{:#?}", refused.obstacles);

    let removed =
        AgentState { system_id: None, memory_of: Some("78".into()), ..agent("n2", 12, 9, PostgresState::Absent) };
    let mut found = self::found();
    found.agents.insert(n("n2"), Ok(removed));
    let refused = made(&found, &[]);
    assert!(refused.obstacles.iter().any(|o| o.contains("n2 78")), "{:#?}", refused.obstacles);

    let nothing = made(&Found { led: true, ..Found::default() }, &[]);
    assert_eq!((nothing.obstacles.len(), nothing.records), (2, None), "{:#?}", nothing.obstacles);
}

#[test]
fn a_fence_that_an_agent_still_obeys_is_put_again() {
    let mut found = found();
    let fenced = AgentState { fenced: true, ..agent("n2", 4, 3, standby(4, None)) };
    found.agents.insert(n("n2"), Ok(fenced));
    let records = made(&found, &[]).records.expect("nothing forbids it");
    assert_eq!(records.fences.keys().collect::<Vec<_>>(), [&n("n2")]);
}

#[test]
fn what_a_proxy_acts_on_is_heeded() {
    let mut found = found();
    found.proxied = (Term(9), 3);
    assert_eq!(made(&found, &[]).records.expect("nothing forbids it").term.term, Term(10));
    found.proxied = (Term(9), 4);
    let refused = made(&found, &[]);
    assert!(refused.obstacles[0].starts_with("a proxy acts on the policy of epoch 4"), "{:?}", refused.obstacles);
    found.agents.remove(&n("n3"));
    let allowed = made(&found, &["n3"]);
    assert_eq!(allowed.records.expect("nothing forbids it").term.term, Term(10 + GAP));
    assert!(allowed.notes[0].starts_with("a proxy acts on"), "{:?}", allowed.notes);
}

#[test]
fn an_agent_without_memory_and_data_is_not_heard() {
    let mut found = found();
    let new_disk = AgentState { policy: None, system_id: None, ..agent("n3", 0, 2, PostgresState::Absent) };
    found.agents.insert(n("n3"), Ok(new_disk));
    let refused = made(&found, &[]);
    assert!(refused.obstacles[0].starts_with("n3 answers, but has no data"), "{:?}", refused.obstacles);
    assert!(made(&found, &["n3"]).records.is_some());
}

#[test]
fn whoever_cannot_be_frozen_does_not_count_towards_what_suffices() {
    let suffices = |found: &Found| made(found, &[]).steps.iter().any(|s| s.contains("with data suffice"));
    let mut found = found();
    assert!(suffices(&found));
    for node in ["n2", "n3"] {
        let fenced = AgentState { fenced: true, ..agent(node, 4, 3, standby(4, None)) };
        found.agents.insert(n(node), Ok(fenced));
    }
    assert!(!suffices(&found));
}

#[test]
fn nothing_is_refused_without_a_word() {
    let mut found = found();
    for node in ["n1", "n2", "n3"] {
        found.agents.insert(n(node), Ok(agent(node, 4, 3, PostgresState::Starting)));
    }
    let refused = made(&found, &[]);
    assert!(refused.obstacles[0].starts_with("no node's timeline is known yet"), "{:?}", refused.obstacles);
    found.configured.push(n("n4"));
    let refused = made(&found, &[]);
    assert!(refused.obstacles[0].contains("only cluster.voters of this file names it"), "{:?}", refused.obstacles);
}

#[test]
fn a_cluster_that_was_created_in_the_empty_etcd_is_told_from_the_old_one() {
    let mut found = found();
    (found.term, found.system_id) = (Some(Term(1)), Some("78".into()));
    let refused = made(&found, &[]);
    assert!(refused.obstacles[0].contains("delete all keys below etcd.prefix"), "{:?}", refused.obstacles);
    found.system_id = Some("77".into());
    assert!(made(&found, &[]).obstacles[0].starts_with("etcd knows this cluster"));
}
