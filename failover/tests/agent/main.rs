//! Agents with real PostgreSQL: promises, freezing, promotion, deaths, and every way of coming back.

mod adopt;
#[path = "../agents/mod.rs"]
mod agents;
mod ahead;
mod async_waits;
mod killed;
mod names;
mod obstacles;
mod restored;
mod slots;
mod strangers;

use agents::{
    Cluster, SECRET, bin, kill_all, postgres_of, postmaster, signal, unprivileged, until, writing_postgres_of,
};
use cluster::topology::{Closed, Gate};
use cluster::{Endpoint, Lsn, Term, TimelineId};
use failover::api::*;
use failover::config::agent::OWNED_PARAMETERS;
use failover::fsm::control_file;
use failover::record::*;
use failover::store::{Store, Txn};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn a_cluster_is_created_and_a_killed_primary_comes_back_as_a_standby() {
    unprivileged("a_cluster_is_created_and_a_killed_primary_comes_back_as_a_standby", async {
        let mut c = Cluster::new(22100, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let others: Vec<usize> = (0..3).filter(|i| *i != p).collect();
        c.sql(p)
            .await
            .batch_execute("CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 100)")
            .await
            .unwrap();
        c.until_replayed(p, &others).await;
        assert_eq!(c.value(p, "SHOW synchronous_standby_names").await, {
            let names: Vec<&str> = others.iter().map(|i| c.nodes[*i].id.as_str()).collect();
            format!("ANY 1 ({})", names.join(", "))
        });
        let begun = Instant::now();
        signal(postmaster(&c.nodes[p].config), Signal::SIGKILL);
        c.until_state(p, "the death", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
        assert_eq!(writing_postgres_of(&c.nodes[p].config.data_dir.join("data")), Vec::<i32>::new());
        until("no zombie", async || zombies().is_empty().then_some(())).await;
        let (term, promoted) = c.failover(others[0], &others).await;
        eprintln!("outage as the manager's steps made it: {:?}", begun.elapsed());
        assert_eq!((term, promoted.fork.timeline), (Term(2), TimelineId(1)));
        c.sql(others[0]).await.batch_execute("INSERT INTO t SELECT generate_series(101, 200)").await.unwrap();
        c.until_streaming(p, others[0], term).await;
        until("the rows at the old primary", async || {
            (c.value(p, "SELECT count(*) FROM t").await == "200").then_some(())
        })
        .await;
        // It was not rewound for nothing, and the mark of the quarantine is gone.
        c.until_state(p, "the quarantine's end", |s| s.quarantine.is_none().then_some(())).await;
        // What its last look had to say may be older.
        c.until_state(p, "no trouble", |s| s.trouble.is_none().then_some(())).await;
    });
}

#[test]
fn a_promise_survives_a_restart_and_lower_terms_are_refused_for_ever() {
    unprivileged("a_promise_survives_a_restart_and_lower_terms_are_refused_for_ever", async {
        let mut c = Cluster::new(22110, 1, Mode::Async, 0);
        c.start(0).await;
        let (status, _) = c.request(0, "POST", "/agent/freeze", "{}".into(), "not the secret").await;
        assert_eq!(status, 401);
        c.freeze(0, Term(7)).await.unwrap();
        c.crash_agent(0).await;
        c.start(0).await;
        assert_eq!(c.state(0).await.promise, Term(7));
        let refused = c.freeze(0, Term(6)).await.unwrap_err();
        assert!(refused.starts_with("409") && refused.contains("lower_term"), "{refused}");
        c.freeze(0, Term(7)).await.unwrap();
        let (status, _) = c.request(0, "POST", "/agent/freeze", "x".repeat(100_000), SECRET).await;
        assert_eq!(status, 400);
    });
}

#[test]
fn a_freeze_ends_receiving_although_replay_is_paused() {
    unprivileged("a_freeze_ends_receiving_although_replay_is_paused", async {
        let mut c = Cluster::new(22120, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        c.sql(s).await.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
        until("the pause", async || {
            (c.value(s, "SELECT pg_get_wal_replay_pause_state()").await == "paused").then_some(())
        })
        .await;
        c.sql(p).await.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
        let written = c.value(p, "SELECT pg_current_wal_flush_lsn()").await;
        until("the WAL at the standby", async || {
            let q = format!("SELECT pg_last_wal_receive_lsn() >= '{written}'");
            (c.value(s, &q).await == "t").then_some(())
        })
        .await;
        let (record, revision) = c.begin().await;
        let frozen = c.freeze(s, record.term).await.unwrap();
        let position = frozen.position.unwrap();
        assert!(position.lsn >= written.parse().unwrap() && frozen.replay_lsn.unwrap() < position.lsn);
        assert_eq!(position.timeline, TimelineId(1));
        assert_eq!(c.value(s, "SELECT count(*) FROM pg_stat_wal_receiver").await, "0");
        // Frozen means frozen: nothing the primary of the lower term writes arrives any more.
        assert_eq!(c.state(s).await.frozen_for, Some(record.term));
        let (term, _) = c.failover_begun(record, revision, s, &[s]).await;
        assert_eq!(c.value(s, "SELECT count(*) FROM t").await, "1000");
        // The old primary was not asked to stop: it sees the record and stops by itself, then comes back.
        c.until_streaming(p, s, term).await;
        // By following it has promised the term: a command of an older one that is still under way is refused.
        let late = c.freeze(p, Term(1)).await.unwrap_err();
        assert!(late.contains("lower_term"), "{late}");
    });
}

#[test]
fn a_frozen_standby_receives_what_another_frozen_one_has_and_no_more() {
    unprivileged("a_frozen_standby_receives_what_another_frozen_one_has_and_no_more", async {
        let mut c = Cluster::new(22125, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let others: Vec<usize> = (0..3).filter(|i| *i != p).collect();
        let (behind, ahead) = (others[0], others[1]);
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        // Its agent would stop it on seeing the new term.
        c.crash_agent(p).await;
        let (record, revision) = c.begin().await;
        let term = record.term;
        c.freeze(behind, term).await.unwrap();
        // Acknowledged by the other standby alone.
        c.sql(p).await.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
        let to = c.freeze(ahead, term).await.unwrap().position.unwrap();
        assert!(c.freeze(behind, term).await.unwrap().position.unwrap() < to);
        let endpoint = Endpoint { host: "127.0.0.1".into(), port: c.nodes[ahead].config.postgres_port };
        let order = CatchUp { term, from: c.nodes[ahead].id.clone(), endpoint, to, deadline_ms: 60_000 };
        let begun = Instant::now();
        let frozen: Frozen = c.post(behind, "catch_up", &order).await.unwrap();
        eprintln!("caught up in {:?}", begun.elapsed());
        assert_eq!(frozen.position, Some(to));
        assert_eq!(c.state(behind).await.frozen_for, Some(term));
        let receivers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
        assert_eq!(c.value(behind, receivers).await, "0");
        c.failover_begun(record, revision, behind, &others).await;
        assert_eq!(c.value(behind, "SELECT count(*) FROM t").await, "1000");
        // Open for a later term: an order that comes late changes nothing.
        let late = c.post::<Frozen>(ahead, "catch_up", &order).await;
        assert!(late.as_ref().is_err_and(|e| e.contains("wrong_state")), "{late:?}");
    });
}

#[test]
fn a_timeline_is_its_term_across_a_gap_and_a_repeated_promotion_gives_the_same_answer() {
    unprivileged("a_timeline_is_its_term_across_a_gap_and_a_repeated_promotion_gives_the_same_answer", async {
        let mut c = Cluster::new(22130, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let others: Vec<usize> = (0..3).filter(|i| *i != p).collect();
        kill_all(&c.nodes[p].config.data_dir.join("data"));
        // Three terms that came to nothing.
        c.begin().await;
        c.begin().await;
        c.begin().await;
        let (term, promoted) = c.failover(others[1], &others).await;
        assert_eq!(term, Term(5));
        let state = c.state(others[1]).await;
        assert!(matches!(&state.postgres, PostgresState::Primary(x) if x.timeline == TimelineId(5)), "{state:#?}");
        let base = Position { timeline: TimelineId(1), lsn: promoted.fork.lsn };
        let again: Promoted = c.post(others[1], "promote", &c.promotion(others[1], term, base)).await.unwrap();
        assert_eq!((again.fork, again.xid_bound), (promoted.fork, promoted.xid_bound));
        // A freeze of the same term that comes late does not stop the primary that the term has got.
        for verb in ["freeze", "recover"] {
            let order = Freeze { term, coordinator: "test".into(), is_stopped: false };
            let recover = Recover { term };
            let late = match verb {
                "freeze" => c.post::<Frozen>(others[1], verb, &order).await,
                _ => c.post::<Frozen>(others[1], verb, &recover).await,
            };
            assert!(late.as_ref().is_err_and(|e| e.contains("wrong_state")), "{late:?}");
        }
        assert_eq!(c.value(others[1], "SELECT max(term) FROM pgtenure.term").await, "5");
        c.until_streaming(p, others[1], term).await;
        // What a frozen standby reported is what is promoted, nothing else.
        let frozen = c.freeze(others[0], Term(6)).await.unwrap().position.unwrap();
        let wrong = Position { lsn: cluster::Lsn(frozen.lsn.0 + 8), ..frozen };
        let refused = c.post::<Promoted>(others[0], "promote", &c.promotion(others[0], Term(6), wrong)).await;
        assert!(refused.unwrap_err().contains("other_position"));
    });
}

#[test]
fn a_term_that_was_not_opened_unprotected_opens_with_commits_that_wait() {
    unprivileged("a_term_that_was_not_opened_unprotected_opens_with_commits_that_wait", async {
        let mut c = Cluster::new(22195, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let others: Vec<usize> = (0..3).filter(|i| *i != p).collect();
        kill_all(&c.nodes[p].config.data_dir.join("data"));
        let (to, follower) = (others[0], others[1]);
        let (record, revision) = c.begin().await;
        let (term, _) = c.failover_unopened(record, revision, to, &[to, follower]).await;
        let (_, term_revision) = c.term().await;
        let (_, policy_revision) = c.record::<PolicyRecord>(c.keys.policy()).await.unwrap();
        let since = "0/1".parse().unwrap();
        let suspension = Suspension { term, since, since_wall: 0, why: "test".into(), lowered: None };
        let suspend = Some(suspension);
        let order = Open { term, term_revision, suspend, policy_revision: policy_revision + 1000 };
        c.post::<Opened>(to, "open", &order).await.unwrap_err();
        assert_eq!(c.value(to, "SHOW synchronous_standby_names").await, "", "it was to open without standbys");
        // Whatever becomes of T3, what it promises is in force before it: this one is refused.
        let order = Open { term, term_revision: term_revision + 1000, suspend: None, policy_revision };
        c.post::<Opened>(to, "open", &order).await.unwrap_err();
        let names = c.value(to, "SHOW synchronous_standby_names").await;
        assert!(names.starts_with("ANY 1 ("), "about to open with {names:?}");
        c.open(to).await;
    });
}

#[test]
fn lost_transactions_are_reported_before_the_rewind() {
    unprivileged("lost_transactions_are_reported_before_the_rewind", async {
        let mut c = Cluster::new(22140, 2, Mode::Async, 0);
        // It loses more than its agent would let through in a shorter one, on a machine whose disk stalls.
        c.nodes.iter_mut().for_each(|n| n.config.lease_ttl = Duration::from_secs(40));
        // And more than is kept, one segment.
        c.nodes.iter_mut().for_each(|n| n.config.lost_wal_max = 16 << 20);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.sql(p).await.batch_execute("CREATE TABLE t (i int PRIMARY KEY); INSERT INTO t VALUES (0)").await.unwrap();
        c.until_replayed(p, &[s]).await;
        // What is committed from here on counts as unprotected by the cluster's own record.
        let (policy, revision) = c.record::<PolicyRecord>(c.keys.policy()).await.unwrap();
        let since = c.value(p, "SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
        let suspension = Suspension { term: Term(1), since, since_wall: 0, why: "test".into(), lowered: None };
        let suspended = PolicyRecord { suspended: Some(suspension), ..policy };
        use failover::store::{Compare, Store, Txn};
        let put = Txn::new().when(Compare::ModRevision(c.keys.policy(), revision));
        let put = put.put(c.keys.policy(), serde_json::to_vec(&suspended).unwrap());
        assert!(c.store.txn(put).await.unwrap().succeeded);
        let memory = c.nodes[p].config.data_dir.join("agent.json");
        until("the suspension at the primary", async || {
            std::fs::read_to_string(&memory).ok()?.contains("\"why\"").then_some(())
        })
        .await;
        // The standby is frozen while the primary goes on, and protection is back after some of what is lost.
        let (unprotected, lost) = (10, 25);
        c.freeze(s, Term(2)).await.unwrap();
        let sql = c.sql(p).await;
        for i in 1..=unprotected {
            sql.batch_execute(&format!("INSERT INTO t VALUES ({i})")).await.unwrap();
        }
        let end = c.value(p, "SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
        let rearmed = Some(Rearmed { term: Term(1), lsn: end });
        let rearmed = PolicyRecord { epoch: suspended.epoch + 1, suspended: None, rearmed, ..suspended };
        let put = Txn::new().put(c.keys.policy(), serde_json::to_vec(&rearmed).unwrap());
        assert!(c.store.txn(put).await.unwrap().succeeded);
        until("the end of the suspension at the primary", async || {
            let memory: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&memory).ok()?).ok()?;
            (memory["rearmed"]["lsn"] == end.to_string()).then_some(())
        })
        .await;
        // The term begins, and its agent does not hear of it.
        c.nodes[p].store.set_down(true);
        let (record, revision) = c.begin().await;
        for i in unprotected + 1..=lost {
            sql.batch_execute(&format!("INSERT INTO t VALUES ({i})")).await.unwrap();
        }
        sql.batch_execute("BEGIN; INSERT INTO t VALUES (1000); ROLLBACK").await.unwrap();
        sql.simple_query("SELECT pg_switch_wal()").await.unwrap();
        sql.batch_execute("CHECKPOINT").await.unwrap();
        drop(sql);
        kill_all(&c.nodes[p].config.data_dir.join("data"));
        let (term, promoted) = c.failover_begun(record, revision, s, &[s]).await;
        let rows: i32 = c.value(s, "SELECT count(*) FROM t").await.parse().unwrap();
        c.nodes[p].store.set_down(false);
        c.until_streaming(p, s, term).await;
        let key = c.keys.report(term, &c.nodes[p].id);
        let (report, _) = c.record::<LossReport>(key).await.expect("a report");
        let total = lost + 1;
        assert_eq!(i32::try_from(report.commits).unwrap(), total - rows, "{report:#?}");
        assert_eq!((report.commits, report.aborts), (lost as u64, 1));
        assert_eq!(report.commits_while_suspended, unprotected as u64);
        assert_eq!(report.fork_lsn, promoted.fork.lsn);
        assert_eq!(report.bytes, report.end_lsn.bytes_since(report.fork_lsn));
        assert_eq!(report.transactions.len(), lost as usize);
        let next_segment = Lsn((report.fork_lsn.0 | ((16 << 20) - 1)) + 1);
        assert_eq!(report.kept_to, Some(next_segment), "of {} to {}", report.fork_lsn, report.end_lsn);
        let kept = report.kept_in.unwrap();
        assert!(std::fs::read_dir(&kept).unwrap().count() >= 2, "segments and the report in {kept}");
        assert_eq!(c.value(p, "SELECT count(*) FROM t").await, rows.to_string());
        c.until_state(p, "no trouble", |s| s.trouble.is_none().then_some(())).await;
        let label = c.nodes[p].config.data_dir.join("data/backup_label.old");
        let label = std::fs::read_to_string(label).unwrap();
        assert!(label.contains("BACKUP METHOD: pg_rewind"), "rewound, not cloned: {label}");
    });
}

#[test]
fn a_primary_that_comes_back_two_terms_later_says_that_nothing_was_lost() {
    unprivileged("a_primary_that_comes_back_two_terms_later_says_that_nothing_was_lost", async {
        let mut c = Cluster::new(22650, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let (a, b) = ((p + 1) % 3, (p + 2) % 3);
        c.until_replayed(p, &[a, b]).await;
        // It is away for the next two changes of primary.
        let stop = |term| Stop { term, deadline_ms: 60_000, ..Stop::default() };
        c.post::<Stopped>(p, "stop", &stop(Term(1))).await.unwrap();
        c.crash_agent(p).await;
        let (second, _) = c.failover(a, &[a, b]).await;
        c.until_replayed(a, &[b]).await;
        c.post::<Stopped>(a, "stop", &stop(second)).await.unwrap();
        let (third, _) = c.failover(b, &[b]).await;
        c.until_streaming(a, b, third).await;
        c.start(p).await;
        c.until_streaming(p, b, third).await;
        let report = async |term, i: usize| c.record::<LossReport>(c.keys.report(term, &c.nodes[i].id)).await;
        for (term, i) in [(second, p), (third, a)] {
            let (report, _) = report(term, i).await.expect("a report");
            assert_eq!((report.bytes, report.commits), (0, 0), "{report:?}");
        }
        for (term, i) in [(second, a), (second, b), (third, p), (third, b)] {
            assert_eq!(report(term, i).await, None, "{} of {term}", c.nodes[i].id);
        }
    });
}

#[test]
fn an_interrupted_rewind_is_never_started_but_replaced() {
    unprivileged("an_interrupted_rewind_is_never_started_but_replaced", async {
        let mut c = Cluster::new(22150, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        let (data, memory) = {
            let dir = &c.nodes[p].config.data_dir;
            (dir.join("data"), dir.join("agent.json"))
        };
        c.crash_agent(p).await;
        kill_all(&data);
        std::fs::write(data.join("marker"), "an old directory").unwrap();
        assert!(c.store.expire_holder(&c.keys.primary()));
        let (term, _) = c.failover(s, &[s]).await;
        let text = std::fs::read_to_string(&memory).unwrap();
        let mut mark: serde_json::Value = serde_json::from_str(&text).unwrap();
        mark["rewinding"] = true.into();
        std::fs::write(&memory, mark.to_string()).unwrap();
        c.start(p).await;
        c.until_streaming(p, s, term).await;
        assert!(!data.join("marker").exists(), "the directory was replaced");
        let text = std::fs::read_to_string(&memory).unwrap();
        assert!(text.contains("\"rewinding\": false"), "{text}");
    });
}

#[test]
fn a_running_postgres_is_adopted_by_a_new_agent_and_keeps_its_lease() {
    unprivileged("a_running_postgres_is_adopted_by_a_new_agent_and_keeps_its_lease", async {
        let mut c = Cluster::new(22165, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let pids: Vec<i32> = c.nodes.iter().map(|n| postmaster(&n.config)).collect();
        let holder = c.record::<PrimaryRecord>(c.keys.primary()).await.unwrap().0.holder;
        c.crash_agent(0).await;
        c.crash_agent(1).await;
        c.start(0).await;
        c.start(1).await;
        c.until_streaming(1 - p, p, Term(1)).await;
        let again: Vec<i32> = c.nodes.iter().map(|n| postmaster(&n.config)).collect();
        assert_eq!(pids, again, "nothing was restarted");
        until("the new agent's lease", async || {
            let (record, _) = c.record::<PrimaryRecord>(c.keys.primary()).await?;
            (record.holder != holder && c.state(p).await.lease_left_ms.is_some()).then_some(())
        })
        .await;
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        // Told to stop, agents stop what they run, and the primary's key goes with it.
        let handle = c.nodes[p].handle.take().unwrap();
        handle.stop().await;
        assert_eq!(writing_postgres_of(&c.nodes[p].config.data_dir.join("data")), Vec::<i32>::new());
        assert_eq!(c.record::<PrimaryRecord>(c.keys.primary()).await, None);
    });
}

#[test]
fn an_async_primary_cut_off_from_etcd_stops_acknowledging_and_then_stops() {
    unprivileged("an_async_primary_cut_off_from_etcd_stops_acknowledging_and_then_stops", async {
        let mut c = Cluster::new(22170, 2, Mode::Async, 0);
        // Between the fence and the lease's end there is time for a slow machine.
        for node in &mut c.nodes {
            (node.config.lease_ttl, node.config.lease_margin) = (Duration::from_secs(5), Duration::from_millis(2500));
        }
        let p = c.bootstrap().await;
        let sql = c.sql(p).await;
        sql.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        // Nobody is left to sign for it.
        c.crash_agent(1 - p).await;
        let begun = Instant::now();
        c.nodes[p].store.set_down(true);
        let mut acknowledged = Instant::now();
        while sql.batch_execute("SET synchronous_commit = on; INSERT INTO t VALUES (1)").await.is_ok() {
            acknowledged = Instant::now();
        }
        // Whoever replaces it waits for the end of the lease.
        let (ttl, last) = (c.nodes[p].config.lease_ttl, acknowledged - begun);
        assert!(last < ttl, "acknowledged {last:?} after etcd was cut off, with a lease of {ttl:?}");
        assert!(last > Duration::from_millis(500), "stopped after {last:?} already");
        c.until_state(p, "the stop", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
        // Nothing was begun meanwhile, so it is the managers' turn; once etcd answers, the key is given back.
        c.nodes[p].store.set_down(false);
        until("the primary's key to go", async || {
            c.record::<PrimaryRecord>(c.keys.primary()).await.is_none().then_some(())
        })
        .await;
    });
}

#[test]
fn without_etcd_an_async_primary_goes_on_while_all_sign_and_no_later_term_begins_before_it_has_stopped() {
    let name = "without_etcd_an_async_primary_goes_on_while_all_sign_and_no_later_term_begins_before_it_has_stopped";
    unprivileged(name, async {
        let mut c = Cluster::new(22260, 3, Mode::Async, 0);
        let (long, short) = (Duration::from_secs(8), Duration::from_secs(6));
        // Between the end of what is signed and the lease's there is time for a slow machine.
        for node in &mut c.nodes {
            (node.config.lease_ttl, node.config.lease_margin) = (long, Duration::from_millis(2400));
        }
        let p = c.bootstrap().await;
        let (candidate, third) = ((p + 1) % 3, (p + 2) % 3);
        // One signs for less than the others.
        c.crash_agent(candidate).await;
        c.nodes[candidate].config.lease_ttl = short;
        c.start(candidate).await;
        c.until_streaming(candidate, p, Term(1)).await;
        let sql = c.sql(p).await;
        sql.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        let link = c.store.client();
        let times = failover::view::Times {
            validity: Duration::from_secs(1),
            strict: Duration::from_secs(3),
            lease_ttl: Duration::from_secs(3),
        };
        let registry = prometheus::Registry::new();
        let view = failover::view::start(
            std::sync::Arc::new(link.clone()),
            c.keys.clone(),
            times,
            failover::view::Purpose::Observe,
            &registry,
        );
        let topology = view.as_ref().unwrap().topology();
        let gate = || topology.borrow().gate_at(cluster::Clock.now());
        until("an open view", async || (gate() == Gate::Open).then_some(())).await;
        let begun = Instant::now();
        link.set_down(true);
        c.nodes.iter().for_each(|n| n.store.set_down(true));
        while begun.elapsed() < long + short / 3 {
            sql.batch_execute("INSERT INTO t VALUES (1)").await.expect("all agents sign");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        until("the primary's agent to vouch for the view", async || (gate() == Gate::Open).then_some(())).await;
        let vouch = async |query: &str| c.request(p, "GET", &format!("/vouch?{query}"), String::new(), "").await.0;
        assert_eq!((vouch("term=1&epoch=1").await, vouch("term=2&epoch=1").await), (200, 409));
        assert_eq!((vouch("term=1&epoch=2").await, vouch("term=1").await), (409, 400));

        // What was signed binds a signer that starts anew, too, also when it has promised the later term already.
        tokio::select! {
            done = c.freeze(candidate, Term(2)) => panic!("frozen although it has signed for term 1: {done:?}"),
            () = c.until_state(candidate, "the promise", |s| (s.promise == Term(2)).then_some(())) => {}
        }
        c.crash_agent(candidate).await;
        c.start(candidate).await;
        // Two freezes wait for it: the later term's counts.
        let overtaken = async {
            let refused = c.freeze(candidate, Term(2)).await.unwrap_err();
            assert!(refused.starts_with("409"), "{refused}");
        };
        let frozen = async {
            c.until_state(candidate, "the agent", |s| (s.promise == Term(2)).then_some(())).await;
            let frozen = c.freeze(candidate, Term(3)).await.expect("a standby that runs");
            (frozen, Instant::now())
        };
        let written = async {
            let mut acknowledged = Instant::now();
            while sql.batch_execute("INSERT INTO t VALUES (1)").await.is_ok() {
                acknowledged = Instant::now();
            }
            (acknowledged, gate())
        };
        // One that waits still when its term opens without it would cut off who follows the new primary.
        let late = async {
            let opens = async {
                c.until_state(third, "the promise", |s| (s.promise == Term(3)).then_some(())).await;
                let (record, revision) = c.term().await;
                c.put_term(&TermRecord { term: Term(3), ..record }, revision).await;
                c.nodes[third].store.set_down(false);
            };
            let (refused, ()) = tokio::join!(c.freeze(third, Term(3)), opens);
            let refused = refused.unwrap_err();
            assert!(refused.starts_with("409") && refused.contains("in a term that is not open yet"), "{refused}");
        };
        // In this order: of two that are ready the first is looked at first.
        let ((acknowledged, gate), (), (frozen, at), ()) = tokio::join!(written, overtaken, frozen, late);
        assert!(frozen.position.is_some());
        assert_eq!(c.state(candidate).await.frozen_for, Some(Term(3)));
        assert!(acknowledged < at, "acknowledged {:?} after a later term's freeze was answered", acknowledged - at);
        assert_eq!(gate, Gate::Closed(Closed::Stale), "the view ended before");
        c.until_state(p, "the stop", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
        assert_eq!(c.state(third).await.frozen_for, None);
    });
}

#[test]
fn arming_proves_that_commits_wait() {
    unprivileged("arming_proves_that_commits_wait", async {
        let mut c = Cluster::new(22180, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let (policy, revision) = c.record::<PolicyRecord>(c.keys.policy()).await.unwrap();
        let since = "0/1".parse().unwrap();
        let suspension = Suspension { term: Term(1), since, since_wall: 0, why: "test".into(), lowered: None };
        let put = |record: &PolicyRecord, revision| {
            failover::store::Txn::new()
                .when(failover::store::Compare::ModRevision(c.keys.policy(), revision))
                .put(c.keys.policy(), serde_json::to_vec(record).unwrap())
        };
        use failover::store::Store;
        let suspended = PolicyRecord { suspended: Some(suspension), ..policy.clone() };
        assert!(c.store.txn(put(&suspended, revision)).await.unwrap().succeeded);
        let names = format!("ANY 1 ({})", c.nodes[1 - p].id);
        let order = Arm { term: Term(1), sync_names: names.clone(), policy_epoch: policy.epoch };
        let armed: Armed = c.post(p, "arm", &order).await.unwrap();
        assert_eq!(c.value(p, "SHOW synchronous_standby_names").await, names);
        let q = format!("SELECT pg_current_wal_insert_lsn() >= '{}'", armed.lsn);
        assert_eq!(c.value(p, &q).await, "t");
        let overtaken = Arm { policy_epoch: policy.epoch + 1, ..order.clone() };
        let refused = c.post::<Armed>(p, "arm", &overtaken).await.unwrap_err();
        assert!(refused.starts_with("409") && refused.contains("policy in force"), "{refused}");
        // Without the standby nothing is released, and arming fails as it should, back to what was.
        // Its agent first: what that has just started is no process of the directory yet.
        c.crash_agent(1 - p).await;
        kill_all(&c.nodes[1 - p].config.data_dir.join("data"));
        let failed = c.post::<Armed>(p, "arm", &order).await.unwrap_err();
        assert!(failed.starts_with("503") && failed.contains("did not release"), "{failed}");
    });
}

#[test]
fn a_fenced_standby_stops_and_comes_back_and_a_primary_only_stops_when_told() {
    unprivileged("a_fenced_standby_stops_and_comes_back_and_a_primary_only_stops_when_told", async {
        use failover::store::{Store, Txn};
        let mut c = Cluster::new(22190, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        let fence = |stop_writes| {
            serde_json::to_vec(&FenceRecord { by: "test".into(), at: 0, stop_writes, removed: false }).unwrap()
        };
        let (standby, primary) = (c.keys.fence(&c.nodes[s].id), c.keys.fence(&c.nodes[p].id));
        c.store.txn(Txn::new().put(standby.clone(), fence(false)).put(primary.clone(), fence(false))).await.unwrap();
        c.until_state(s, "the fence", |s| {
            (s.fenced && matches!(s.postgres, PostgresState::Stopped { clean: true, .. })).then_some(())
        })
        .await;
        assert!(matches!(c.state(p).await.postgres, PostgresState::Primary(_)));
        // Somebody's ALTER SYSTEM does not win over what failover depends on.
        c.sql(p).await.simple_query("ALTER SYSTEM SET wal_receiver_timeout = '1h'").await.unwrap();
        let auto = c.nodes[p].config.data_dir.join("data/postgresql.auto.conf");
        until("the reset", async || (!std::fs::read_to_string(&auto).ok()?.contains("1h")).then_some(())).await;
        let refused = c.post::<Frozen>(s, "recover", &Recover { term: Term(1) }).await.unwrap_err();
        assert!(refused.contains("fenced"), "{refused}");
        c.store.txn(Txn::new().delete(standby)).await.unwrap();
        c.until_streaming(s, p, Term(1)).await;
        c.store.txn(Txn::new().put(primary.clone(), fence(true))).await.unwrap();
        c.until_state(p, "the fence", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
    });
}

/// As `pg_controldata` understands it, of whichever major this is.
fn control_file_is_understood(data: &Path) {
    let file = std::fs::read(data.join("global/pg_control")).unwrap();
    let read = control_file::parse(&file).expect("the layout is known");
    let program = Command::new(format!("{}/pg_controldata", bin())).arg(data).env("LC_ALL", "C").output().unwrap();
    let told = String::from_utf8(program.stdout).unwrap();
    for (name, value) in [
        ("Database system identifier", read.system_id.to_string()),
        ("Database cluster state", read.state.to_owned()),
        ("Latest checkpoint location", read.checkpoint.to_string()),
        ("Latest checkpoint's TimeLineID", read.timeline.to_string()),
        ("Bytes per WAL segment", read.segment_size.to_string()),
    ] {
        let line = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
        assert_eq!(line.trim(), value, "{name}: {told}");
    }
}

#[test]
fn a_switchover_stops_cleanly_and_the_old_primary_follows_without_rewind() {
    unprivileged("a_switchover_stops_cleanly_and_the_old_primary_follows_without_rewind", async {
        let mut c = Cluster::new(22115, 3, Mode::Strict, 1);
        // Two managers lead, one after the other.
        let lead = async || c.store.txn(Txn::new().put(c.keys.manager(), "{}")).await.unwrap().revision;
        let (earlier, leader) = (lead().await, lead().await);
        let p = c.bootstrap().await;
        let others: Vec<usize> = (0..3).filter(|i| *i != p).collect();
        c.sql(p).await.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
        let most_of_one = "SELECT pg_switch_wal(); SELECT pg_logical_emit_message(false, '', repeat('x', 9 << 20))";
        c.sql(p).await.batch_execute(most_of_one).await.unwrap();
        let checkpointer = c.value(p, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await;
        signal(checkpointer.parse().unwrap(), Signal::SIGSTOP);
        let checkpoint = |deadline_ms| Checkpoint { term: Term(1), deadline_ms };
        let late = c.post::<serde_json::Value>(p, "checkpoint", &checkpoint(1)).await.unwrap_err();
        assert!(late.contains("1ms"), "as long as the manager waits: {late}");
        signal(checkpointer.parse().unwrap(), Signal::SIGCONT);
        c.post::<serde_json::Value>(p, "checkpoint", &checkpoint(60_000)).await.unwrap();
        // PostgreSQL makes segments in advance, which hold zeros: where WAL ends is found all the same.
        let wal = c.nodes[p].config.data_dir.join("data/pg_wal");
        for number in 0x20..0x40 {
            let ahead = std::fs::File::create(wal.join(format!("0000000100000000000000{number:02X}"))).unwrap();
            ahead.set_len(16 << 20).unwrap();
        }
        let only_if_hung = Stop { term: Term(1), only_if_hung: true, ..Stop::default() };
        let refused = c.post::<Stopped>(p, "stop", &only_if_hung).await;
        assert!(refused.is_err(), "it answers: {refused:?}");
        c.sql(p).await.batch_execute("SELECT 1").await.expect("nothing was stopped");
        // Its leader stood still when it ordered this, and another leads by now; a manager of before does not say who leads.
        let of_earlier = Stop { term: Term(1), deadline_ms: 60_000, leader: earlier, ..Stop::default() };
        let refused = c.post::<Stopped>(p, "stop", &of_earlier).await.unwrap_err();
        assert!(refused.contains(&format!("\"leader\":{earlier},\"newest\":{leader}")), "{refused}");
        c.sql(p).await.batch_execute("SELECT 1").await.expect("nothing was stopped");
        let stop = Stop { term: Term(1), deadline_ms: 60_000, leader, ..Stop::default() };
        // Whether it runs cannot be seen: then it is not said to be stopped.
        let pid_file = c.nodes[p].config.data_dir.join("data/postmaster.pid");
        let may_be_read =
            |mode| std::fs::set_permissions(&pid_file, std::os::unix::fs::PermissionsExt::from_mode(mode));
        may_be_read(0o000).unwrap();
        let unseen = c.post::<Stopped>(p, "stop", &stop).await.unwrap_err();
        may_be_read(0o600).unwrap();
        assert!(unseen.contains("looking for the postmaster"), "{unseen}");
        c.sql(p).await.batch_execute("SELECT 1").await.expect("nothing was stopped");
        let stopped: Stopped = c.post(p, "stop", &stop).await.unwrap();
        // A lease is kept as long as it seems to run: that is known no later than its order's answer.
        let seen = c.nodes[p].handle.as_ref().unwrap().state().postgres;
        assert!(matches!(seen, PostgresState::Stopped { was_primary: true, .. }), "{seen:?}");
        let end = stopped.end.expect("a clean end");
        assert!(end.lsn.0 % (16 << 20) < 1 << 20, "standbys are sent all of its segment again, up to {end:?}");
        let again: Stopped = c.post(p, "stop", &stop).await.unwrap();
        assert_eq!(again, stopped, "the command may be repeated");
        control_file_is_understood(&c.nodes[p].config.data_dir.join("data"));
        let (record, revision) = c.begin().await;
        let frozen = c.freeze(p, record.term).await.unwrap();
        assert!(frozen.was_primary && frozen.position.is_none());
        let recovered: Frozen = c.post(p, "recover", &Recover { term: record.term }).await.unwrap();
        assert_eq!(recovered.position, Some(end));
        // As a manager orders it that was told of the end: no receiver is looked for twice.
        let order = Freeze { term: record.term, coordinator: "test".into(), is_stopped: true };
        let at = c.post::<Frozen>(others[0], "freeze", &order).await.unwrap().position;
        assert_eq!(at, Some(end), "the standby has all of it");
        let (term, promoted) = c.failover_begun(record, revision, others[0], &others).await;
        assert_eq!(promoted.fork.lsn, end.lsn);
        c.until_streaming(p, others[0], term).await;
        // They connected in haste; PostgreSQL's own settings are back once they stream.
        for follower in [p, others[1]] {
            let usual = [("wal_retrieve_retry_interval", "200ms"), ("wal_init_zero", "on")];
            for (name, value) in usual {
                let set = async || (c.value(follower, &format!("SHOW {name}")).await == value).then_some(());
                until("the usual settings", set).await;
            }
        }
        assert!(std::fs::read_dir(c.nodes[p].config.data_dir.join("lost")).unwrap().next().is_none());
        assert_eq!(c.value(p, "SELECT count(*) FROM t").await, "1");
        // What a dead postmaster has left could go on to acknowledge: it is ended before it is said that nothing runs, also
        // where the agent's look hangs.
        let data = c.nodes[others[0]].config.data_dir.join("data");
        let dead = postmaster(&c.nodes[others[0]].config);
        signal(dead, Signal::SIGSTOP);
        writing_postgres_of(&data).into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
        let hangs = |s: &AgentState| matches!(s.postgres, PostgresState::Hung { for_ms: 1.. }).then_some(());
        c.until_state(others[0], "that it hangs", hangs).await;
        let socket = format!(".s.PGSQL.{}", c.nodes[others[0]].config.postgres_port);
        let connections = || std::fs::read_to_string("/proc/net/unix").unwrap().matches(&socket).count();
        let before = connections();
        until("the next look", async || (connections() > before).then_some(())).await;
        signal(dead, Signal::SIGKILL);
        until("its death", async || (!postgres_of(&data).contains(&dead)).then_some(())).await;
        let stop = Stop { term, deadline_ms: 60_000, ..Stop::default() };
        let stopped: Stopped = c.post(others[0], "stop", &stop).await.unwrap();
        assert_eq!((stopped.clean, writing_postgres_of(&data)), (false, Vec::new()));
    });
}

#[test]
fn a_standby_that_was_away_for_too_long_is_cloned_anew() {
    unprivileged("a_standby_that_was_away_for_too_long_is_cloned_anew", async {
        let mut c = Cluster::new(22135, 2, Mode::Async, 0);
        for node in &mut c.nodes {
            node.config.wal_keep = cluster::config::Size(16 << 20);
        }
        let p = c.bootstrap().await;
        let s = 1 - p;
        let data = c.nodes[s].config.data_dir.join("data");
        c.crash_agent(s).await;
        kill_all(&data);
        std::fs::write(data.join("marker"), "").unwrap();
        let sql = c.sql(p).await;
        sql.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        for _ in 0..6 {
            sql.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
            sql.batch_execute("SELECT pg_switch_wal()").await.unwrap();
            sql.batch_execute("CHECKPOINT").await.unwrap();
        }
        // What the primary keeps elsewhere cannot be copied to where something is already.
        let elsewhere = c.nodes[p].config.data_dir.join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let tablespace = format!("CREATE TABLESPACE elsewhere LOCATION '{}'", elsewhere.display());
        sql.batch_execute(&tablespace).await.unwrap();
        c.start(s).await;
        let refused = |s: &AgentState| s.trouble.as_ref().filter(|t| t.contains("primary's tablespace")).cloned();
        let told = c.until_state(s, "that it is not copied", refused).await;
        assert!(told.contains(elsewhere.to_str().unwrap()), "{told}");
        let up = |s: &AgentState| matches!(s.postgres, PostgresState::Standby(_)).then_some(());
        c.until_state(s, "that it is up meanwhile", up).await;
        // A copy begins with a checkpoint, and is seen for as long as that takes.
        let checkpointer = c.value(p, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await;
        signal(checkpointer.parse().unwrap(), nix::sys::signal::Signal::SIGSTOP);
        sql.batch_execute("DROP TABLESPACE elsewhere").await.unwrap();
        // It streams for a moment before it is told that the WAL is gone.
        let copies = until("the copy", async || {
            let names =
                "SELECT string_agg(DISTINCT application_name, ' ') FROM pg_stat_replication WHERE state = 'backup'";
            sql.query_one(names, &[]).await.unwrap().get::<_, Option<String>>(0)
        })
        .await;
        signal(checkpointer.parse().unwrap(), nix::sys::signal::Signal::SIGCONT);
        // Not by the standby's name, by which the commits that it confirms would count as kept.
        assert_eq!(copies, format!("copy:{}", c.nodes[s].id));
        until("the clone", async || (!data.join("marker").exists()).then_some(())).await;
        c.until_streaming(s, p, Term(1)).await;
        until("the rows", async || (c.value(s, "SELECT count(*) FROM t").await == "6").then_some(())).await;
    });
}

#[test]
fn a_primary_that_was_paused_with_its_agent_is_stopped_when_it_wakes() {
    unprivileged("a_primary_that_was_paused_with_its_agent_is_stopped_when_it_wakes", async {
        let mut c = Cluster::new(22145, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let others: Vec<usize> = (0..3).filter(|i| *i != p).collect();
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        c.until_replayed(p, &others).await;
        // The agent is cut off by ending it; every process of PostgreSQL is stopped in its tracks.
        c.crash_agent(p).await;
        let data = c.nodes[p].config.data_dir.join("data");
        postgres_of(&data).into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
        assert!(c.store.expire_holder(&c.keys.primary()));
        let begun = Instant::now();
        let (term, _) = c.failover(others[0], &others).await;
        eprintln!("opened after {:?}", begun.elapsed());
        c.sql(others[0]).await.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        postgres_of(&data).into_iter().for_each(|pid| signal(pid, Signal::SIGCONT));
        c.start(p).await;
        c.until_streaming(p, others[0], term).await;
        until("the row", async || (c.value(p, "SELECT count(*) FROM t").await == "1").then_some(())).await;
    });
}

/// Dead postgres processes that are our children and were not collected.
fn zombies() -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = all.filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok());
    let parent = format!(") Z {} ", std::process::id());
    stats.filter(|s| s.contains("(postgres)") && s.contains(&parent)).collect()
}
