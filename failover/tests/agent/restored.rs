//! Agents with real PostgreSQL that start when etcd tells of an older policy than the one in force, or does not answer.

use super::agents::{Cluster, kill_all, postmaster, unprivileged, until};
use cluster::{Term, TimelineId};
use failover::api::{Frozen, PostgresState, Recover, Stop, Stopped};
use failover::record::{LossReport, Mode, PolicyRecord};
use failover::store::{Store, Txn};

/// As a change of the mode or a restored backup leaves it.
async fn put_policy(c: &Cluster, epoch: u64, mode: Mode) {
    let (policy, _) = c.record::<PolicyRecord>(c.keys.policy()).await.unwrap();
    let policy = PolicyRecord { epoch, mode, ..policy };
    let put = Txn::new().put(c.keys.policy(), serde_json::to_vec(&policy).unwrap());
    assert!(c.store.txn(put).await.unwrap().succeeded);
}

async fn until_noted(c: &Cluster, i: usize, epoch: u64) {
    let noted = |p: &PolicyRecord| p.epoch == epoch;
    c.until_state(i, "the policy", |s| s.policy.as_ref().is_some_and(noted).then_some(())).await;
}

async fn until_default(c: &Cluster, i: usize, want: &str) {
    until("the default", async || (c.value(i, "SHOW synchronous_commit").await == want).then_some(())).await;
}

async fn until_stopped(c: &Cluster, i: usize) {
    c.until_state(i, "the stop", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
}

#[test]
fn commits_go_on_waiting_when_a_restored_etcd_says_that_they_need_not() {
    unprivileged("restored::commits_go_on_waiting_when_a_restored_etcd_says_that_they_need_not", async {
        let mut c = Cluster::new(22470, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        put_policy(&c, 5, Mode::Strict).await;
        until_noted(&c, p, 5).await;
        c.crash_agent(p).await;
        put_policy(&c, 3, Mode::Async).await;
        c.start(p).await;
        c.until_state(p, "the lease", |s| s.lease_left_ms).await;
        // What the agent mends right after it has looked at what commits are to wait for.
        let auto = c.nodes[p].config.data_dir.join("data/postgresql.auto.conf");
        for _ in 0..2 {
            c.sql(p).await.simple_query("ALTER SYSTEM SET wal_receiver_timeout = '1h'").await.unwrap();
            until("the reset", async || (!std::fs::read_to_string(&auto).ok()?.contains("1h")).then_some(())).await;
        }
        let settings = std::fs::read_to_string(c.nodes[p].config.data_dir.join("conf/dynamic.conf")).unwrap();
        assert!(settings.contains("\nsynchronous_commit = 'on'\n"), "{settings}");

        // However it came that they did not: the policy in force has the last word.
        put_policy(&c, 6, Mode::Async).await;
        until_default(&c, p, "local").await;
        put_policy(&c, 7, Mode::Strict).await;
        until_default(&c, p, "on").await;
        let names = format!("ANY 1 ({})", c.nodes[1 - p].id);
        until("the list", async || (c.value(p, "SHOW synchronous_standby_names").await == names).then_some(())).await;
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    });
}

#[test]
fn the_lease_goes_on_fencing_when_a_restored_etcd_says_that_a_quorum_does() {
    unprivileged("restored::the_lease_goes_on_fencing_when_a_restored_etcd_says_that_a_quorum_does", async {
        let mut c = Cluster::new(22474, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        put_policy(&c, 5, Mode::Async).await;
        until_default(&c, p, "local").await;
        // Nobody is left to sign for it.
        c.crash_agent(1 - p).await;
        c.crash_agent(p).await;
        put_policy(&c, 3, Mode::Strict).await;
        c.start(p).await;
        c.until_state(p, "the lease", |s| s.lease_left_ms).await;
        c.nodes[p].store.set_down(true);
        until_stopped(&c, p).await;
    });
}

#[test]
fn without_etcd_a_started_agent_fences_by_the_mode_that_was_changed_to() {
    unprivileged("restored::without_etcd_a_started_agent_fences_by_the_mode_that_was_changed_to", async {
        let mut c = Cluster::new(22478, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        put_policy(&c, 5, Mode::Async).await;
        until_default(&c, p, "local").await;
        c.crash_agent(1 - p).await;
        c.crash_agent(p).await;
        c.nodes[p].store.set_down(true);
        c.start(p).await;
        until_stopped(&c, p).await;
    });
}

#[test]
fn who_is_on_the_timeline_of_a_term_that_is_recruiting_tells_whether_it_has_its_record() {
    unprivileged(
        "restored::who_is_on_the_timeline_of_a_term_that_is_recruiting_tells_whether_it_has_its_record",
        async {
            let mut c = Cluster::new(22605, 3, Mode::Strict, 1);
            let p = c.bootstrap().await;
            let (a, b) = ((p + 1) % 3, (p + 2) % 3);
            c.until_replayed(p, &[a, b]).await;
            let (begun, revision) = c.begin().await;
            let (term, _) = c.failover_unopened(begun.clone(), revision, a, &[a, b]).await;
            // It may stream before it has received the term's record.
            c.until_replayed(a, &[b]).await;
            let (_, revision) = c.term().await;
            c.put_term(&begun, revision).await;
            let frozen = c.freeze(b, term).await.unwrap();
            assert_eq!((frozen.position.unwrap().timeline, frozen.recorded), (TimelineId(2), Some(term)));
            // Promoted past everybody: that timeline is no term's.
            // Its agent may stop it before it has told of its success.
            let _ = c.sql(b).await.query("SELECT pg_promote(true)", &[]).await;
            c.begin().await;
            let (after, _) = c.begin().await;
            until("the stop", async || c.freeze(b, after.term).await.ok()?.was_primary.then_some(())).await;
            let frozen: Frozen = c.post(b, "recover", &Recover { term: after.term }).await.unwrap();
            assert_eq!((frozen.position.unwrap().timeline, frozen.recorded), (TimelineId(3), Some(term)));
        },
    );
}

#[test]
fn what_was_open_is_left_as_it_is_for_a_twin_that_is_not() {
    unprivileged("restored::what_was_open_is_left_as_it_is_for_a_twin_that_is_not", async {
        let mut c = Cluster::new(22680, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let (a, b) = ((p + 1) % 3, (p + 2) % 3);
        c.until_replayed(p, &[a, b]).await;
        // The old primary ends further on than the next one begins.
        let mut ends = Vec::new();
        for i in [a, b] {
            ends.push(c.freeze(i, Term(2)).await.unwrap().position);
        }
        // The primary writes something every second: only the second of them may have received that.
        let (a, b) = if ends[1] > ends[0] { (b, a) } else { (a, b) };
        c.sql(p).await.batch_execute("CHECKPOINT").await.unwrap();
        c.crash_agent(p).await;
        kill_all(&c.nodes[p].config.data_dir.join("data"));
        let (begun, revision) = c.begin().await;
        let (term, _) = c.failover_begun(begun.clone(), revision, a, &[a, b]).await;
        c.sql(a).await.batch_execute("CREATE TABLE acknowledged ()").await.unwrap();
        c.until_state(b, "the open term", |s| (s.opened == term).then_some(())).await;

        // etcd is restored to the recruiting, and the old primary is all that answers.
        c.crash_agent(a).await;
        kill_all(&c.nodes[a].config.data_dir.join("data"));
        let (_, revision) = c.term().await;
        let revision = c.put_term(&begun, revision).await;
        c.start(p).await;
        until("the freeze", async || c.freeze(p, term).await.ok()?.was_primary.then_some(())).await;
        c.post::<Frozen>(p, "recover", &Recover { term }).await.unwrap();
        let running = postmaster(&c.nodes[b].config);
        c.failover_unopened(begun, revision, p, &[p]).await;
        let told = |t: &String| t.contains("begun twice, and its term was open");
        c.until_state(b, "what is in the way", |s| s.trouble.as_ref().is_some_and(told).then_some(())).await;
        // Nor is it stopped and started, nor told to be lost: another term may choose it.
        assert_eq!(postmaster(&c.nodes[b].config), running);
        assert_eq!(c.record::<LossReport>(c.keys.report(term, &c.nodes[b].id)).await, None);
        let frozen = c.freeze(b, Term(3)).await.unwrap();
        assert_eq!(frozen.position.unwrap().timeline, TimelineId(2));
        assert_eq!(c.value(b, "SELECT to_regclass('acknowledged') IS NOT NULL").await, "t");
    });
}

#[test]
fn twins_that_began_at_one_place_are_told_apart_by_who_began_them() {
    unprivileged("restored::twins_that_began_at_one_place_are_told_apart_by_who_began_them", async {
        let mut c = Cluster::new(22655, 3, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let (a, b) = ((p + 1) % 3, (p + 2) % 3);
        c.until_replayed(p, &[a, b]).await;
        // A switchover: all three end at the same place.
        let stop = Stop { term: Term(1), deadline_ms: 60_000, ..Stop::default() };
        let end = c.post::<Stopped>(p, "stop", &stop).await.unwrap().end;
        c.crash_agent(p).await;
        let (begun, revision) = c.begin().await;
        let (term, first) = c.failover_begun(begun.clone(), revision, a, &[a, b]).await;
        let acknowledged = "CREATE TABLE acknowledged ()";
        c.sql(a).await.batch_execute(acknowledged).await.unwrap();
        c.until_replayed(a, &[b]).await;
        c.until_state(b, "the open term", |s| (s.opened == term).then_some(())).await;

        // etcd is restored to the recruiting, and the old primary is all that answers.
        for i in [a, b] {
            c.crash_agent(i).await;
            kill_all(&c.nodes[i].config.data_dir.join("data"));
        }
        let (_, revision) = c.term().await;
        let revision = c.put_term(&begun, revision).await;
        c.start(p).await;
        until("the freeze", async || c.freeze(p, term).await.ok()?.was_primary.then_some(())).await;
        let recovered: Frozen = c.post(p, "recover", &Recover { term }).await.unwrap();
        assert_eq!(recovered.position, end);
        let (_, second) = c.failover_unopened(begun, revision, p, &[p]).await;
        assert_eq!(first.fork, second.fork, "they begin at one place");

        // Its agent has read that the first one was open.
        c.start(b).await;
        let told = |t: &String| t.contains("begun twice, and its term was open");
        c.until_state(b, "what is in the way", |s| s.trouble.as_ref().is_some_and(told).then_some(())).await;
        assert_eq!(c.value(b, "SELECT to_regclass('acknowledged') IS NOT NULL").await, "t");
        assert_eq!(c.record::<LossReport>(c.keys.report(term, &c.nodes[b].id)).await, None);
        // Once the cluster goes by the second one, what the first had is reported before it is replaced.
        c.open(p).await;
        c.until_streaming(b, p, term).await;
        let (report, _) = c.record::<LossReport>(c.keys.report(term, &c.nodes[b].id)).await.expect("a report");
        assert_eq!((report.fork_lsn, report.commits), (first.fork.lsn, 2), "the term's record and {acknowledged}");
        assert_eq!(c.value(b, "SELECT to_regclass('acknowledged') IS NULL").await, "t");
    });
}
