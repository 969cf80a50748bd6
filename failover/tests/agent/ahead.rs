//! Agents with real PostgreSQL: a recruit that connects to the candidate before that is promoted.

use super::agents::{Cluster, kill_all, signal, unprivileged, until};
use cluster::{Endpoint, Lsn, Term};
use failover::api::{Follow, Position, PostgresState, Promoted};
use failover::record::{Mode, Phase};
use nix::sys::signal::Signal;

const RECEIVER: &str = "SELECT coalesce((SELECT pid::text FROM pg_stat_wal_receiver WHERE status = 'streaming'), '')";

impl Cluster {
    fn order(&self, to: usize, term: Term, ahead: Option<Position>) -> Follow {
        let endpoint = Endpoint { host: "127.0.0.1".into(), port: self.nodes[to].config.postgres_port };
        Follow { term, primary: self.nodes[to].id.clone(), endpoint, record_lsn: None, ahead }
    }

    /// The two of them, the one that ends later first, once neither receives any more.
    async fn most_advanced_of(&self, one: usize, other: usize) -> (usize, usize) {
        let mut ends = Vec::new();
        for i in [one, other] {
            until("the receiver's end", async || self.value(i, RECEIVER).await.is_empty().then_some(())).await;
            ends.push(self.value(i, "SELECT pg_last_wal_receive_lsn()").await.parse::<Lsn>().unwrap());
        }
        if ends[0] >= ends[1] { (one, other) } else { (other, one) }
    }

    async fn until_received(&self, i: usize) -> String {
        until("the WAL receiver", async || Some(self.value(i, RECEIVER).await).filter(|pid| !pid.is_empty())).await
    }
}

#[test]
fn a_recruit_streams_from_the_candidate_and_goes_on_when_that_is_promoted() {
    unprivileged("ahead::a_recruit_streams_from_the_candidate_and_goes_on_when_that_is_promoted", async {
        let mut c = Cluster::new(22620, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let others: Vec<usize> = (0..3).filter(|i| *i != p).collect();
        c.sql(p).await.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 1000)").await.unwrap();
        c.until_replayed(p, &others).await;
        kill_all(&c.nodes[p].config.data_dir.join("data"));
        // The primary writes something every second, and one may not have received the last of it.
        let (a, b) = c.most_advanced_of(others[0], others[1]).await;
        let (mut record, revision) = c.begin().await;
        let term = record.term;

        // Who has not been frozen for the term may have what the candidate lacks.
        let base = c.freeze(a, term).await.unwrap().position.unwrap();
        let early = c.post::<serde_json::Value>(b, "follow", &c.order(a, term, Some(base))).await;
        assert!(early.as_ref().is_err_and(|e| e.contains("wrong_state")), "{early:?}");
        let end = c.freeze(b, term).await.unwrap().position.unwrap();
        assert!(end <= base);
        let less = Position { lsn: Lsn(end.lsn.0 - 1), ..end };
        let beyond = c.post::<serde_json::Value>(b, "follow", &c.order(a, term, Some(less))).await;
        assert!(beyond.as_ref().is_err_and(|e| e.contains("other_position")), "{beyond:?}");
        (record.phase, record.node) = (Phase::Promoting, Some(c.nodes[a].id.clone()));
        let revision = c.put_term(&record, revision).await;
        c.post::<serde_json::Value>(b, "follow", &c.order(a, term, Some(base))).await.unwrap();
        c.until_received(b).await;
        // A freeze is a freeze, by whichever manager.
        c.freeze(b, term).await.unwrap();
        let receivers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
        assert_eq!(c.value(b, receivers).await, "0");
        c.post::<serde_json::Value>(b, "follow", &c.order(a, term, Some(base))).await.unwrap();
        let receiver = c.until_received(b).await;
        let seen = c.until_state(b, "the look at it", |s| match &s.postgres {
            PostgresState::Standby(x) => x.streams_from.clone(),
            _ => None,
        });
        assert_eq!(seen.await, c.nodes[a].id);

        let promoted: Promoted = c.post(a, "promote", &c.promotion(a, term, base)).await.unwrap();
        // Nothing but the stream that stands is needed, and no other is made.
        c.until_streaming(b, a, term).await;
        assert_eq!(c.until_received(b).await, receiver);
        record.phase = Phase::Opening;
        (record.fork, record.xid_bound) = (Some(promoted.fork), Some(promoted.xid_bound));
        record.record_lsn = Some(promoted.record_lsn);
        c.put_term(&record, revision).await;
        let order = Follow { record_lsn: Some(promoted.record_lsn), ..c.order(a, term, None) };
        c.post::<serde_json::Value>(b, "follow", &order).await.unwrap();
        c.open(a).await;
        c.sql(a).await.batch_execute("INSERT INTO t VALUES (0)").await.unwrap();
        c.until_replayed(a, &[b]).await;
        assert_eq!(c.value(b, "SELECT count(*) FROM t").await, "1001");
        assert_eq!(c.until_received(b).await, receiver);
    });
}

#[test]
fn a_recruit_that_knows_of_a_term_that_was_given_up_follows_the_next() {
    unprivileged("ahead::a_recruit_that_knows_of_a_term_that_was_given_up_follows_the_next", async {
        let mut c = Cluster::new(22630, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let others: Vec<usize> = (0..3).filter(|i| *i != p).collect();
        c.until_replayed(p, &others).await;
        kill_all(&c.nodes[p].config.data_dir.join("data"));
        let (a, b) = c.most_advanced_of(others[0], others[1]).await;

        // Somebody was promoted in term 2 and is gone; only its history has come here.
        let (record, _) = c.begin().await;
        let end = c.freeze(b, record.term).await.unwrap().position.unwrap();
        let base = c.freeze(a, record.term).await.unwrap().position.unwrap();
        let root = &c.nodes[b].config.data_dir;
        let history = format!("1\t{}\tno recovery target specified\n", base.lsn.max(end.lsn));
        std::fs::write(root.join("data/pg_wal/00000002.history"), history).unwrap();
        c.post::<serde_json::Value>(b, "follow", &c.order(a, record.term, Some(base))).await.unwrap_err();
        let said = |words: &str| {
            let logs = std::fs::read_dir(root.join("log")).unwrap().flatten();
            logs.map(|l| std::fs::read_to_string(l.path()).unwrap().matches(words).count()).sum::<usize>()
        };
        until("PostgreSQL to take it", async || (said("new target timeline is 2") > 0).then_some(())).await;
        let starts = said("starting PostgreSQL");

        let (record, revision) = c.begin().await;
        let (term, promoted) = c.failover_unopened(record, revision, a, &[a, b]).await;
        assert_eq!((term, promoted.fork.lsn), (Term(3), base.lsn));
        // The agent ends what a postmaster leaves behind; but its log's writer has time for what it said last.
        until("its last words", async || (said("database system is shut down") > 0).then_some(())).await;
        until("the new start's words", async || (said("starting PostgreSQL") > starts).then_some(())).await;
        c.open(a).await;
        c.sql(a).await.batch_execute("CREATE TABLE t AS SELECT 1").await.unwrap();
        c.until_replayed(a, &[b]).await;
    });
}

/// Replay may come to its end while it is asked how far it is. Before, a freeze then gave the position of a moment before.
#[test]
fn a_freeze_while_replay_ends_tells_where_it_has_ended() {
    unprivileged("ahead::a_freeze_while_replay_ends_tells_where_it_has_ended", async {
        let mut c = Cluster::new(22635, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        // Between the parts of a question there is time for that.
        let slow = "SET allow_system_table_mods = on; DO $$ BEGIN EXECUTE 'CREATE OR REPLACE VIEW pg_catalog.pg_stat_activity AS ' || \
            rtrim(pg_get_viewdef('pg_stat_activity'::regclass), ';') || ' WHERE (SELECT pg_sleep(0.2)) IS NOT NULL'; END $$";
        c.sql(p).await.batch_execute(slow).await.unwrap();
        for i in [p, s] {
            c.sql(i).await.batch_execute("CHECKPOINT").await.unwrap();
            c.until_replayed(p, &[s]).await;
        }
        c.sql(p).await.batch_execute("CREATE TABLE t ()").await.unwrap();
        c.until_replayed(p, &[s]).await;
        c.until_state(s, "the end of its quarantine", |s| s.quarantine.is_none().then_some(())).await;
        let term = Term(2);
        let received = c.freeze(s, term).await.unwrap().position.unwrap();
        c.crash_agent(s).await;
        kill_all(&c.nodes[s].config.data_dir.join("data"));
        // From that checkpoint on it replays once more, and commits not at once.
        c.nodes[s].config.standing.apply_delay_ms = 10_000;
        c.start(s).await;
        let end = until("the freeze", async || c.freeze(s, term).await.ok()?.position).await;
        let at_end =
            "SELECT wait_event = 'RecoveryRetrieveRetryInterval' FROM pg_stat_activity WHERE backend_type = 'startup'";
        until("the end of replay", async || (c.value(s, at_end).await == "t").then_some(())).await;
        assert_eq!(c.value(s, "SELECT pg_last_wal_replay_lsn()").await.parse(), Ok(end.lsn));
        assert!(end <= received);
    });
}

/// One that stands still has not seen that nobody receives any more. Before, a promotion took it for one that has replayed all, and
/// told commits to be lost that it then replayed.
#[test]
fn a_promotion_waits_for_a_startup_process_that_stood_still() {
    unprivileged("ahead::a_promotion_waits_for_a_startup_process_that_stood_still", async {
        let mut c = Cluster::new(22670, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.until_streaming(s, p, Term(1)).await;
        c.until_state(s, "the end of its quarantine", |s| s.quarantine.is_none().then_some(())).await;
        let startup = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'";
        let startup = c.value(s, startup).await.parse().unwrap();
        let waits = "SELECT wait_event = 'RecoveryWalStream' FROM pg_stat_activity WHERE backend_type = 'startup'";
        until("it to wait", async || {
            signal(startup, Signal::SIGSTOP);
            let waiting = c.value(s, waits).await == "t";
            waiting.then_some(()).or_else(|| {
                signal(startup, Signal::SIGCONT);
                None
            })
        })
        .await;
        c.sql(p).await.batch_execute("CREATE TABLE t ()").await.unwrap();
        let bound: u64 = c.value(p, "SELECT pg_snapshot_xmax(pg_current_snapshot())").await.parse().unwrap();
        let received =
            format!("SELECT pg_last_wal_receive_lsn() >= '{}'", c.value(p, "SELECT pg_current_wal_lsn()").await);
        until("the commit", async || (c.value(s, &received).await == "t").then_some(())).await;
        let reader = c.sql(s).await;
        let (record, _) = c.begin().await;
        let base = c.freeze(s, record.term).await.unwrap().position.unwrap();
        let order = c.promotion(s, record.term, base);
        let goes_on = async {
            until("readers to be ended", async || reader.is_closed().then_some(())).await;
            signal(startup, Signal::SIGCONT);
        };
        let (promoted, ()) = tokio::join!(c.post::<Promoted>(s, "promote", &order), goes_on);
        assert!(promoted.unwrap().xid_bound >= bound);
    });
}
