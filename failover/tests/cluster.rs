//! Managers and agents together, with real PostgreSQL over a store in memory: creation, deaths, switchover, operators'
//! verbs and a restart of everything.

#[allow(dead_code)] // another test's harness, of which this one needs the half
mod agents;
#[path = "cluster/hung.rs"]
mod hung;

use agents::{Cluster, SECRET, postgres_of, postmaster, signal, unprivileged, until};
use cluster::Term;
use cluster::secret::Secret;
use failover::api::{AgentState, PostgresState};
use failover::config::manager::{ManagerRaw, check};
use failover::fsm::status::Status;
use failover::manager::{ManagerConfig, ManagerHandle, start};
use failover::record::{JournalRecord, Mode, Phase};
use failover::store::Store;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn manager(c: &Cluster, admin: &str) -> ManagerHandle {
    manager_with(c, admin, &ManagerRaw::default())
}

fn manager_with(c: &Cluster, admin: &str, raw: &ManagerRaw) -> ManagerHandle {
    let config = ManagerConfig {
        cluster: "t".into(),
        one_of_several: false,
        keys: c.keys.clone(),
        section: check(raw).unwrap(),
        secret: Secret::new(SECRET),
        admin: admin.into(),
        view_validity: Duration::from_secs(1),
    };
    start(config, Arc::new(c.store.client()), &prometheus::Registry::new()).unwrap()
}

/// Wait until the manager's status satisfies `test`.
async fn status_is(m: &ManagerHandle, what: &str, test: impl Fn(&Status) -> bool) -> Arc<Status> {
    let mut status = m.status();
    let found = tokio::time::timeout(Duration::from_secs(60), status.wait_for(|s| test(s))).await;
    match found {
        Ok(found) => Arc::clone(&found.unwrap()),
        Err(_) => panic!("waited for {what}; the manager says {:#?}", m.status().borrow()),
    }
}

fn is_open(s: &Status, term: u64) -> bool {
    s.term == Some(Term(term)) && s.phase == Some(Phase::Active)
}

fn is_active(s: &Status) -> bool {
    s.phase == Some(Phase::Active)
}

fn all_stream(s: &Status, standbys: usize) -> bool {
    s.nodes.iter().filter(|n| n.streams_from.is_some() && n.quarantine.is_none()).count() == standbys
}

async fn order(m: &ManagerHandle, verb: &str, body: Value) -> (u16, Value) {
    let routes = m.routes();
    routes.handle("POST", &format!("/ops/{verb}"), "", body.to_string().as_bytes()).await.unwrap()
}

/// The trigger that README shows, on a table of its own.
async fn fence_by_trigger(c: &Cluster, primary: usize) {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("    CREATE FUNCTION fence()").expect("README shows it");
    let (body, _) = rest.split_once("    END $$;").expect("README shows its end");
    // In the database of an application, which sees nothing of that of the agents, by a user without any rights.
    c.sql(primary).await.batch_execute("CREATE ROLE app").await.unwrap();
    c.sql(primary).await.batch_execute("CREATE DATABASE app OWNER app").await.unwrap();
    let sql = format!(
        "SET SESSION AUTHORIZATION app; CREATE SCHEMA app; SET search_path = app; \
         CREATE FUNCTION fence(){body}END $$; CREATE TABLE fenced (term bigint); \
         CREATE TRIGGER fence BEFORE INSERT ON fenced FOR EACH ROW EXECUTE FUNCTION fence()"
    );
    c.sql_in(primary, "app").await.batch_execute(&sql).await.unwrap();
}

/// What a write with that fencing token is told.
async fn write_in(c: &Cluster, primary: usize, term: u64) -> Result<(), String> {
    let write = format!("SET SESSION AUTHORIZATION app; INSERT INTO app.fenced VALUES ({term})");
    let done = c.sql_in(primary, "app").await.batch_execute(&write).await;
    done.map_err(|e| e.as_db_error().map_or_else(|| e.to_string(), |e| e.message().to_owned()))
}

async fn started(c: &mut Cluster) -> ManagerHandle {
    for i in 0..c.nodes.len() {
        c.start(i).await;
    }
    manager(c, "127.0.0.1:1")
}

fn primary_of(c: &Cluster, s: &Status) -> usize {
    c.number(s.primary.as_ref().expect("a primary"))
}

#[test]
fn a_killed_primary_is_replaced_and_comes_back_and_a_switchover_returns_to_it() {
    unprivileged("a_killed_primary_is_replaced_and_comes_back_and_a_switchover_returns_to_it", async {
        let mut c = Cluster::new(22020, 3, Mode::Strict, 1);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 2)).await;
        // A manager that came while the creator was still opening may have begun once more.
        let first = s.term.expect("it is active").0;
        let old = primary_of(&c, &s);
        c.sql(old).await.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
        fence_by_trigger(&c, old).await;
        assert_eq!(write_in(&c, old, first).await, Ok(()));
        let begun = Instant::now();
        signal(postmaster(&c.nodes[old].config), Signal::SIGKILL);
        let s = status_is(&m, "the second term", |s| is_open(s, first + 1)).await;
        eprintln!("outage: {:?}", begun.elapsed());
        let journal = s.last_failover.clone().unwrap();
        eprintln!("{:?}", journal.phases);
        let new = primary_of(&c, &s);
        assert_ne!(new, old);
        c.sql(new).await.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
        assert_eq!(write_in(&c, new, first).await, Err(format!("term {first} is over")));
        assert_eq!(write_in(&c, new, first + 1).await, Ok(()));
        let safe = |s: &Status| all_stream(s, 2) && s.safe_to_lose_primary.safe;
        status_is(&m, "the old primary as a standby, and safety", safe).await;

        // Another manager does not lead and says who does. Only now: when etcd is slow, the first may lose its lease to
        // whoever is there.
        let follower = manager(&c, "127.0.0.1:2");
        status_is(&follower, "who leads", |s| s.leader.as_ref().is_some_and(|l| l.admin == "127.0.0.1:1")).await;
        let (code, answer) = follower.routes().handle("POST", "/ops/switchover", "", b"").await.unwrap();
        assert_eq!((code, answer.pointer("/leader/admin")), (307, Some(&json!("127.0.0.1:1"))), "{answer}");

        let begun = Instant::now();
        let (code, answer) = order(&m, "switchover", json!({"to": c.nodes[old].id, "expect_term": first + 1})).await;
        assert_eq!(code, 200, "{answer:#}");
        eprintln!("switchover: {:?}, {}", begun.elapsed(), answer.pointer("/journal/phases").unwrap());
        let s = status_is(&m, "the third term", |s| is_open(s, first + 2) && all_stream(s, 2)).await;
        assert_eq!(primary_of(&c, &s), old);
        assert_eq!(c.value(old, "SELECT string_agg(i::text, ',' ORDER BY i) FROM t").await, "1,2");
        let (code, history) = m.routes().handle("GET", "/history", "", b"").await.unwrap();
        let terms: Vec<JournalRecord> = serde_json::from_value(history["history"].clone()).unwrap();
        let since = || terms.iter().filter(|j| j.term.0 >= first);
        let want = vec![first, first + 1, first + 2];
        assert_eq!((code, since().map(|j| j.term.0).collect::<Vec<_>>()), (200, want));
        assert!(since().all(|j| j.finished.as_deref() == Some("active")), "{terms:#?}");
        let (code, report) = m.routes().handle("GET", "/report", &format!("term={}", first + 1), b"").await.unwrap();
        assert_eq!((code, &report["journal"]["term"]), (200, &json!(first + 1)));
        m.stop().await;
        status_is(&follower, "the other manager to lead", |s| s.leading).await;
        follower.stop().await;
    });
}

#[test]
fn a_node_is_worked_on_removed_and_added_again() {
    unprivileged("a_node_is_worked_on_removed_and_added_again", async {
        let mut c = Cluster::new(22080, 3, Mode::Strict, 1);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 2)).await;
        let old = primary_of(&c, &s);
        let (worked_on, other) = ((old + 1) % 3, (old + 2) % 3);
        let (id, other_id) = (c.nodes[worked_on].id.clone(), c.nodes[other].id.clone());
        let (code, answer) = order(&m, "maintenance", json!({"node": s.primary, "on": true})).await;
        assert_eq!((code, answer.pointer("/blockers/0/blocker")), (409, Some(&json!("primary_must_move"))));
        let (code, answer) = order(&m, "maintenance", json!({"node": id, "on": true, "seconds": 600})).await;
        assert_eq!(code, 200, "{answer:#}");
        let stopped = |s: &Status| s.nodes.iter().any(|n| n.node == id && n.state == "stopped");
        signal(postmaster(&c.nodes[worked_on].config), Signal::SIGINT);
        status_is(&m, "the standby stopped by hand", stopped).await;
        // A switchover to the node that is left is several looks of that agent long, and it starts nothing.
        let (code, answer) = order(&m, "switchover", json!({})).await;
        assert_eq!((code, answer.pointer("/node")), (200, Some(&json!(other_id))), "{answer:#}");
        // One whose agent is late with an answer is not said to be stopped meanwhile; one that was started never again.
        let kept_down = |s: &Status| is_active(s) && all_stream(s, 1) && stopped(s);
        let s = status_is(&m, "the old primary as a standby, and the other one stopped", kept_down).await;
        assert!(s.nodes.iter().any(|n| n.node == id && n.maintenance.is_some()), "{s:#?}");
        let (code, answer) = order(&m, "maintenance", json!({"node": id, "on": false})).await;
        assert_eq!(code, 200, "{answer:#}");
        status_is(&m, "both standbys", |s| is_active(s) && all_stream(s, 2)).await;

        let (code, answer) = order(&m, "remove", json!({"node": id})).await;
        assert_eq!(code, 200, "{answer:#}");
        let gone = |s: &Status| s.nodes.len() == 2 && s.policy.as_ref().is_some_and(|p| !p.counts(&id));
        status_is(&m, "the removal", gone).await;
        let is_down = |s: &AgentState| (s.fenced && matches!(s.postgres, PostgresState::Stopped { .. })).then_some(());
        c.until_state(worked_on, "its stop", is_down).await;
        // Its agent is started again without data, and does not take part.
        c.crash_agent(worked_on).await;
        std::fs::remove_dir_all(c.nodes[worked_on].config.data_dir.join("data")).unwrap();
        c.nodes[worked_on].config.copy_from_standby = true;
        // So that it comes to registering before it has read the records.
        c.nodes[worked_on].store.fail_next([failover::store::memory::Fault::Unavailable]);
        c.start(worked_on).await;
        c.until_state(worked_on, "its fence", |s| (s.fenced && s.postgres == PostgresState::Absent).then_some(()))
            .await;
        assert!(m.status().borrow().nodes.len() == 2, "{:#?}", m.status().borrow());
        assert_eq!(c.store.get(&c.keys.member(&id)).await.unwrap(), None, "nor does it register");
        let (code, answer) = order(&m, "unfence", json!({"node": id})).await;
        assert_eq!(code, 200, "{answer:#}");
        let s = status_is(&m, "the node without a vote", |s| s.nodes.len() == 3 && all_stream(s, 2)).await;
        assert!(s.nodes.iter().any(|n| n.node == id && !n.voter));
        let label = c.nodes[worked_on].config.data_dir.join("data/backup_label.old");
        let label = std::fs::read_to_string(label).unwrap();
        assert!(label.contains("BACKUP FROM: standby"), "{label}");
        m.stop().await;
    });
}

#[test]
fn a_failover_with_too_few_standbys_is_refused_unless_data_loss_is_allowed() {
    unprivileged("a_failover_with_too_few_standbys_is_refused_unless_data_loss_is_allowed", async {
        let mut c = Cluster::new(22030, 3, Mode::Strict, 1);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 2)).await;
        let old = primary_of(&c, &s);
        let standbys: Vec<usize> = (0..3).filter(|i| *i != old).collect();
        let (gone, left) = (standbys[0], standbys[1]);
        let gone_id = c.nodes[gone].id.clone();
        c.crash_agent(gone).await;
        agents::kill_all(&c.nodes[gone].config.data_dir.join("data"));
        let numbers = |s: &Status| s.safe_to_lose_primary.why.first().is_some_and(|w| w.contains("2 needed, 1 there"));
        let s = status_is(&m, "the loss of a standby", |s| !all_stream(s, 2) && numbers(s)).await;
        assert!(!s.safe_to_lose_primary.safe, "{:?}", s.safe_to_lose_primary);
        let (code, answer) = order(&m, "failover", json!({})).await;
        assert_eq!(
            (code, answer.pointer("/blockers/0/blocker")),
            (409, Some(&json!("too_few_recruits"))),
            "{answer:#}"
        );
        assert_eq!(answer.pointer("/blockers/0/missing/0/node"), Some(&json!(gone_id)));
        assert_eq!(answer.pointer("/blockers/0/needed"), Some(&json!(2)));

        // The old primary dies for good as well.
        c.crash_agent(old).await;
        agents::kill_all(&c.nodes[old].config.data_dir.join("data"));
        let (code, answer) = order(&m, "failover", json!({"allow_data_loss": true})).await;
        assert_eq!((code, &answer["node"]), (200, &json!(c.nodes[left].id)), "{answer:#}");
        let s = status_is(&m, "the suspension", |s| s.suspended.is_some()).await;
        assert!(!s.safe_to_lose_primary.safe);
        let journal = s.last_failover.as_ref().expect("of this term");
        assert!(journal.data_loss_allowed && journal.window.is_some(), "what may be lost is said: {journal:?}");
        c.sql(left).await.batch_execute("CREATE TABLE unprotected (i int)").await.unwrap();

        // A standby returns: commits are protected again.
        c.start(gone).await;
        status_is(&m, "the re-arming", |s| s.suspended.is_none() && s.policy.as_ref().is_some_and(|p| p.protects()))
            .await;
        assert!(c.value(left, "SHOW synchronous_standby_names").await.starts_with("ANY 1"));
        c.start(old).await;
        status_is(&m, "everybody", |s| all_stream(s, 2)).await;

        // Fences: a standby may be taken out and put back, the primary only knowingly.
        let (code, answer) = order(&m, "fence", json!({"node": c.nodes[left].id})).await;
        assert_eq!(
            (code, answer.pointer("/blockers/0/blocker")),
            (409, Some(&json!("would_stop_writes"))),
            "{answer:#}"
        );
        let (code, answer) = order(&m, "fence", json!({"node": gone_id, "by": "test"})).await;
        assert_eq!(code, 200, "{answer:#}");
        until("the fenced standby to stop", async || {
            postgres_of(&c.nodes[gone].config.data_dir.join("data")).is_empty().then_some(())
        })
        .await;
        let (code, answer) = order(&m, "unfence", json!({"node": gone_id})).await;
        assert_eq!(code, 200, "{answer:#}");
        status_is(&m, "everybody again", |s| all_stream(s, 2)).await;
        m.stop().await;
    });
}

#[test]
fn after_a_stop_of_everything_the_cluster_opens_again_with_every_row() {
    unprivileged("after_a_stop_of_everything_the_cluster_opens_again_with_every_row", async {
        let mut c = Cluster::new(22040, 3, Mode::Strict, 1);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 2)).await;
        // A manager that came while the creator was still opening may have begun once more.
        let first = s.term.expect("it is active").0;
        let old = primary_of(&c, &s);
        c.sql(old).await.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1), (2)").await.unwrap();
        m.stop().await;
        for i in 0..3 {
            c.crash_agent(i).await;
            agents::kill_all(&c.nodes[i].config.data_dir.join("data"));
        }
        let m = manager(&c, "127.0.0.1:1");
        for i in [2, 0, 1] {
            c.start(i).await;
        }
        let s = status_is(&m, "a new term", |s| s.term > Some(Term(first)) && s.phase == Some(Phase::Active)).await;
        let new = primary_of(&c, &s);
        assert_eq!(c.value(new, "SELECT count(*) FROM t").await, "2");
        c.sql(new).await.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
        status_is(&m, "everybody", |s| all_stream(s, 2)).await;
        m.stop().await;
    });
}

#[test]
fn a_lost_host_is_noticed_by_the_others_and_replaced() {
    unprivileged("a_lost_host_is_noticed_by_the_others_and_replaced", async {
        let mut c = Cluster::new(22050, 3, Mode::Strict, 1);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 2)).await;
        // A manager that came while the creator was still opening may have begun once more.
        let first = s.term.expect("it is active").0;
        let old = primary_of(&c, &s);
        c.sql(old).await.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
        let begun = Instant::now();
        c.crash_agent(old).await;
        agents::kill_all(&c.nodes[old].config.data_dir.join("data"));
        let s = status_is(&m, "the second term", |s| is_open(s, first + 1)).await;
        eprintln!("outage: {:?}; {:?}", begun.elapsed(), s.last_failover.as_ref().map(|j| &j.phases));
        let journal = s.last_failover.as_ref().unwrap();
        assert!(journal.observed.len() >= 3, "the observers' votes are missing: {:?}", journal.observed);
        let new = primary_of(&c, &s);
        assert_ne!(new, old);
        c.sql(new).await.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
        c.start(old).await;
        status_is(&m, "the old primary as a standby", |s| all_stream(s, 2)).await;
        until("the rows at the old primary", async || {
            (c.value(old, "SELECT count(*) FROM t").await == "2").then_some(())
        })
        .await;
        m.stop().await;
    });
}

#[test]
fn in_async_mode_a_lost_host_is_replaced_only_when_its_lease_is_gone() {
    unprivileged("in_async_mode_a_lost_host_is_replaced_only_when_its_lease_is_gone", async {
        let mut c = Cluster::new(22060, 3, Mode::Async, 0);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 2)).await;
        // A manager that came while the creator was still opening may have begun once more.
        let first = s.term.expect("it is active").0;
        let old = primary_of(&c, &s);
        let lease = c.store.get(&c.keys.primary()).await.unwrap().expect("the primary's key").lease.expect("its lease");
        c.crash_agent(old).await;
        agents::kill_all(&c.nodes[old].config.data_dir.join("data"));
        let s = status_is(&m, "the lease as a blocker", |s| s.verdict_text.iter().any(|t| t.contains("lease"))).await;
        assert!(is_open(&s, first), "{s:#?}");
        c.store.expire(lease);
        let s = status_is(&m, "the second term", |s| is_open(s, first + 1)).await;
        let new = primary_of(&c, &s);
        assert_ne!(new, old);
        c.sql(new).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        c.start(old).await;
        status_is(&m, "the old primary as a standby", |s| all_stream(s, 2)).await;
        // An operator's failover of a live primary stops it first.
        let (code, answer) = order(&m, "failover", json!({"to": c.nodes[old].id})).await;
        assert_eq!((code, &answer["node"]), (200, &json!(c.nodes[old].id)), "{answer:#}");
        status_is(&m, "everybody", |s| all_stream(s, 2)).await;
        m.stop().await;
    });
}

/// Its standby is gone for good, until it is started again.
async fn lose(c: &mut Cluster, i: usize) {
    c.crash_agent(i).await;
    agents::kill_all(&c.nodes[i].config.data_dir.join("data"));
}

fn goes_alone(s: &Status) -> bool {
    let lowered = s.suspended.as_ref().and_then(|s| s.lowered.as_ref());
    lowered.is_some_and(|l| l.complete_from.is_some() && l.timed && l.ended.is_none())
}

#[test]
fn in_available_mode_a_primary_goes_on_alone_on_record_and_what_that_cost_is_told() {
    unprivileged("in_available_mode_a_primary_goes_on_alone_on_record_and_what_that_cost_is_told", async {
        let mut c = Cluster::new(22070, 2, Mode::Available, 1);
        for i in 0..2 {
            c.start(i).await;
        }
        let raw = ManagerRaw { suspend_after: cluster::config::Span::secs(2), ..ManagerRaw::default() };
        let m = manager_with(&c, "127.0.0.1:1", &raw);
        // The creator may have opened alone, while the other was still copying.
        let protected = |s: &Status| s.policy.as_ref().is_some_and(failover::record::PolicyRecord::protects);
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 1) && protected(s)).await;
        let (first, one) = (s.term.expect("it is active").0, primary_of(&c, &s));
        let (two, epoch) = (1 - one, s.policy.as_ref().expect("it protects").epoch);
        c.sql(one).await.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
        lose(&mut c, two).await;
        // It waits, until it has been recorded that it need not.
        c.sql(one).await.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
        let s = status_is(&m, "the suspension", goes_alone).await;
        assert_eq!(c.value(one, "SHOW synchronous_standby_names").await, "");
        assert!(!s.safe_to_lose_primary.safe && is_open(&s, first), "{s:#?}");

        // Back: protected again, by proof.
        c.start(two).await;
        let s = status_is(&m, "protection", protected).await;
        assert!(c.value(one, "SHOW synchronous_standby_names").await.starts_with("ANY 1"), "{s:#?}");
        let (code, history) = m.routes().handle("GET", "/policy/history", "", b"").await.unwrap();
        let epochs = history["history"].as_array().unwrap().iter().filter(|p| p["epoch"].as_u64() >= Some(epoch));
        let protects: Vec<bool> = epochs.map(|p| p["suspended"].is_null()).collect();
        assert_eq!((code, &protects[..]), (200, &[true, false, false, true][..]), "{history:#}");

        // Alone again, and then lost itself: the other, which has all that was promised, succeeds with the lease's end.
        lose(&mut c, two).await;
        status_is(&m, "the second suspension", goes_alone).await;
        c.sql(one).await.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
        let at = c.value(one, "SELECT pg_current_wal_flush_lsn()").await.parse::<cluster::Lsn>().unwrap();
        let name = c.nodes[one].id.clone();
        let heard = |s: &Status| s.nodes.iter().any(|n| n.node == name && n.receive_lsn >= Some(at));
        status_is(&m, "the manager to hear of it", heard).await;
        let lease = c.store.get(&c.keys.primary()).await.unwrap().expect("the primary's key").lease.expect("its lease");
        lose(&mut c, one).await;
        c.start(two).await;
        status_is(&m, "the lease as a blocker", |s| s.verdict_text.iter().any(|t| t.contains("lease"))).await;
        c.store.expire(lease);
        let s = status_is(&m, "the second term", |s| is_open(s, first + 1)).await;
        assert_eq!(primary_of(&c, &s), two);
        assert_eq!(c.value(two, "SELECT string_agg(i::text, ',' ORDER BY i) FROM t").await, "1,2");
        let window = s.last_failover.as_ref().and_then(|j| j.window).expect("the leader has heard the primary");
        assert!(window.bytes > 0, "{window:?}");
        c.sql(two).await.batch_execute("INSERT INTO t VALUES (4)").await.unwrap();

        // The old primary's WAL is read before it follows, and protection is back.
        c.start(one).await;
        status_is(&m, "protection in the second term", |s| protected(s) && all_stream(s, 1)).await;
        let (code, report) = m.routes().handle("GET", "/report", &format!("term={}", first + 1), b"").await.unwrap();
        let lost = &report["reports"][0];
        assert_eq!(
            (code, &lost["commits"], &lost["commits_while_suspended"]),
            (200, &json!(1), &json!(1)),
            "{report:#}"
        );
        let (_, history) = m.routes().handle("GET", "/history", "", b"").await.unwrap();
        assert_eq!(history["losses"], json!([{ "term": first + 1, "commits": 1, "whole": true }]), "{history:#}");
        m.stop().await;
    });
}

#[test]
fn the_mode_is_changed_while_the_cluster_runs_and_proxies_are_waited_for() {
    unprivileged("the_mode_is_changed_while_the_cluster_runs_and_proxies_are_waited_for", async {
        let mut c = Cluster::new(22075, 2, Mode::Strict, 1);
        let m = started(&mut c).await;
        let s = status_is(&m, "the first term", |s| is_active(s) && all_stream(s, 1)).await;
        let one = primary_of(&c, &s);
        let put = async |epoch: u64| {
            let record = json!({ "term": s.term, "epoch": epoch, "gate": "open", "busy": 0 });
            let txn = failover::store::Txn::new().put(c.keys.proxy("p1"), serde_json::to_vec(&record).unwrap());
            assert!(c.store.txn(txn).await.unwrap().succeeded);
        };
        put(1).await;
        let begun = Instant::now();
        let change = order(&m, "policy", json!({"mode": "async"}));
        let acts = async {
            let waits = |s: &Status| s.verdict_text.iter().any(|t| t.contains("proxies must know: p1 (epoch 1)"));
            status_is(&m, "the proxy as a blocker", waits).await;
            assert!(c.value(one, "SHOW synchronous_standby_names").await.starts_with("ANY 1"));
            put(2).await;
        };
        let ((code, answer), ()) = tokio::join!(change, acts);
        assert_eq!(code, 200, "{answer:#}");
        // Proxies that nobody knows of may have acted on the strict mode for so long.
        assert!(begun.elapsed() >= cluster::topology::STRICT_VIEW, "after {:?}", begun.elapsed());
        assert_eq!(c.value(one, "SHOW synchronous_commit").await, "local");
        // Those that ask for it wait still.
        let names = "SHOW synchronous_standby_names";
        until("the list", async || c.value(one, names).await.starts_with("ANY 1").then_some(())).await;
        let async_whole = |s: &Status| s.mode == Some(Mode::Async) && s.suspended.is_none();
        status_is(&m, "nothing left to remember", async_whole).await;
        back_to_strict(&c, &m, one).await;
        m.stop().await;
    });
}

/// A command that was begun before all commits had to wait would be acknowledged by what held then: it is waited for.
async fn back_to_strict(c: &Cluster, m: &ManagerHandle, one: usize) {
    let (busy, holder) = (c.sql(one).await, c.sql(one).await);
    holder.batch_execute("CREATE TABLE t (i int); SELECT pg_advisory_lock(7)").await.unwrap();
    let busy = tokio::spawn(async move {
        busy.batch_execute("DO $$ BEGIN INSERT INTO t VALUES (1); PERFORM pg_advisory_lock(7); END $$").await
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    until("the command", async || (c.value(one, waits).await == "1").then_some(())).await;
    let change = order(m, "policy", json!({"mode": "strict"}));
    let acts = async {
        let default = async || (c.value(one, "SHOW synchronous_commit").await == "on").then_some(());
        until("the new default", default).await;
        assert!(!busy.is_finished());
        holder.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
    };
    let ((code, answer), ()) = tokio::join!(change, acts);
    assert_eq!(code, 200, "{answer:#}");
    assert_eq!(c.value(one, "SELECT count(*) FROM t").await, "1", "the command had ended");
    busy.await.unwrap().unwrap();
    assert!(c.value(one, "SHOW synchronous_standby_names").await.starts_with("ANY 1"));
    assert_eq!(c.value(one, "SHOW synchronous_commit").await, "on");
}
