//! Where commits wait for two standbys, one that is connected twice is one of them.

use crate::agents::{Cluster, bin, signal, unprivileged, until};
use cluster::Term;
use cluster::sync_names::SyncNames;
use failover::api::{Arm, Armed, PostgresState};
use failover::record::*;
use failover::store::{Compare, Store, Txn};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Standbys that stream from here through their slots.
const THROUGH: &str = "SELECT count(*) FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid \
     WHERE r.state = 'streaming' AND s.slot_name = 'pgtenure_' || r.application_name";
const SLOTS: &str = "SELECT coalesce(string_agg(slot_name, ' ' ORDER BY slot_name), '') FROM pg_replication_slots";

pub(super) async fn put_policy(c: &Cluster, change: impl FnOnce(PolicyRecord) -> PolicyRecord) -> PolicyRecord {
    let (old, revision) = c.record::<PolicyRecord>(c.keys.policy()).await.unwrap();
    let new = change(PolicyRecord { epoch: old.epoch + 1, ..old });
    let put = Txn::new().when(Compare::ModRevision(c.keys.policy(), revision));
    let put = put.put(c.keys.policy(), serde_json::to_vec(&new).unwrap());
    assert!(c.store.txn(put).await.unwrap().succeeded);
    new
}

/// Of the process that the query finds, once it is there: a receiver that connects anew has none for a moment.
async fn pid(c: &Cluster, at: usize, query: &str) -> i32 {
    let query = format!("SELECT coalesce((SELECT pid FROM ({query}) found LIMIT 1), 0)");
    let found = async || c.value(at, &query).await.parse().ok().filter(|pid| *pid > 0);
    until(&format!("a process from {query}"), found).await
}

async fn until_value(c: &Cluster, at: usize, query: &str, want: &str) {
    until(&format!("{want} from {query}"), async || (c.value(at, query).await == want).then_some(())).await;
}

/// Somebody who streams from there under this name, without its slot.
fn stream_as(c: &Cluster, from: usize, name: &str, to: &Path) -> Child {
    let port = c.nodes[from].config.postgres_port;
    let dsn = format!("host=127.0.0.1 user=pgtenure_repl port={port} application_name={name}");
    let mut twin = Command::new(format!("{}/pg_receivewal", bin()));
    twin.args(["--no-loop", "--synchronous", "-D"]).arg(to).args(["-d", &dsn]);
    twin.env("PGPASSWORD", "repl's: password\\").stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_standby_that_is_connected_twice_is_one_of_the_two_that_commits_wait_for() {
    unprivileged("slots::a_standby_that_is_connected_twice_is_one_of_the_two_that_commits_wait_for", async {
        let mut c = Cluster::new(22270, 3, Mode::Strict, 2);
        let p = c.bootstrap().await;
        let (twice, other) = ((p + 1) % 3, (p + 2) % 3);
        let name = c.nodes[twice].id.clone();
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();

        // Its copy is flushed here and at one standby, and the other stands still.
        let stopped = pid(&c, other, "SELECT pid FROM pg_stat_wal_receiver").await;
        signal(stopped, Signal::SIGSTOP);
        let client = c.sql(p).await;
        let insert = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (1)").await });
        let flushed = format!(
            "SELECT flush_lsn >= pg_current_wal_flush_lsn() AND EXISTS (SELECT FROM pg_stat_activity \
             WHERE wait_event = 'SyncRep') FROM pg_stat_replication WHERE application_name = '{name}'"
        );
        until_value(&c, p, &flushed, "t").await;
        // Nothing tells the standby's walsender that its connection has ended.
        let sender = format!("SELECT pid FROM pg_stat_replication WHERE application_name = '{name}'");
        let sender = pid(&c, p, &sender).await;
        signal(sender, Signal::SIGSTOP);
        signal(pid(&c, twice, "SELECT pid FROM pg_stat_wal_receiver").await, Signal::SIGTERM);
        let log = c.nodes[twice].config.data_dir.join("log");
        let refused = || {
            let files = std::fs::read_dir(&log).unwrap().flatten();
            let mut texts = files.map(|f| std::fs::read_to_string(f.path()).unwrap_or_default());
            texts.any(|t| t.contains(&format!("is active for PID {sender}")))
        };
        until("the second connection's end, or that of the commit", async || {
            (insert.is_finished() || refused()).then_some(())
        })
        .await;
        assert!(!insert.is_finished(), "acknowledged with one copy besides the primary's");
        // Who receives nothing through it any more knows that it may go. It does once it can, and the standby is back.
        let ended = || {
            let status = std::fs::read_to_string(format!("/proc/{sender}/status")).unwrap();
            let pending = status.lines().find_map(|l| l.strip_prefix("ShdPnd:")).unwrap().trim();
            u64::from_str_radix(pending, 16).unwrap() & (1 << (Signal::SIGTERM as i32 - 1)) != 0
        };
        until("its standby's agent to end it", async || ended().then_some(())).await;
        signal(sender, Signal::SIGCONT);
        c.until_streaming(twice, p, Term(1)).await;
        assert!(!insert.is_finished(), "acknowledged with one copy besides the primary's");
        signal(stopped, Signal::SIGCONT);
        insert.await.unwrap().unwrap();

        // Who uses a standby's name without its slot could be the second one. Also where the node's record does not say that its
        // agent knows of slots, as an older agent's does not: it was seen to.
        let member = until("its agent to say that it knows", async || {
            let (member, _) = c.record::<MemberRecord>(c.keys.member(&name)).await.unwrap();
            member.slots.then_some(member)
        })
        .await;
        let member = serde_json::to_vec(&MemberRecord { slots: false, ..member }).unwrap();
        assert!(c.store.txn(Txn::new().put(c.keys.member(&name), member)).await.unwrap().succeeded);
        let dir = tempfile::tempdir().unwrap();
        let twin = stream_as(&c, p, name.as_str(), dir.path());
        let told = tokio::task::spawn_blocking(|| twin.wait_with_output().unwrap()).await.unwrap().stderr;
        let told = String::from_utf8(told).unwrap();
        assert!(told.contains("terminating connection due to administrator command"), "{told}");
        until_value(&c, p, THROUGH, "2").await;

        // Every member has one for each other, so that none is missing when another is promoted.
        for i in 0..3 {
            let others: Vec<String> = (0..3).filter(|o| *o != i).map(|o| c.nodes[o].id.slot_name()).collect();
            until_value(&c, i, SLOTS, &others.join(" ")).await;
        }
        let (term, _) = c.failover(twice, &[twice, other]).await;
        c.until_streaming(p, twice, term).await;
        until_value(&c, twice, THROUGH, "2").await;
        let impostors = c.state(twice).await;
        let impostors = matches!(&impostors.postgres, PostgresState::Primary(p) if p.impostors.is_empty());
        assert!(impostors, "nobody had to be ended");

        // To come back to one does not depend on slots: who has none counts meanwhile, and is let be.
        let joint = |k| {
            move |p: PolicyRecord| {
                let to = Quorum { voters: p.voters.clone(), k };
                PolicyRecord { joint: Some(to), ..p }
            }
        };
        let arm = |epoch| {
            let sync_names = |k| SyncNames::for_primary(&c.nodes[twice].id, &c.shared.voters, k).to_string();
            move |k| Arm { term, sync_names: sync_names(k), policy_epoch: epoch }
        };
        let lowered = put_policy(&c, joint(1)).await;
        let other_name = c.nodes[other].id.clone();
        c.until_state(twice, "that policy", |s| s.policy.as_ref().filter(|p| p.epoch == lowered.epoch).map(drop)).await;
        let dir = tempfile::tempdir().unwrap();
        let mut twin = stream_as(&c, twice, other_name.as_str(), dir.path());
        c.until_state(twice, "both connections", |s| match &s.postgres {
            PostgresState::Primary(p) => {
                (p.followers.iter().filter(|f| f.node == other_name && f.state == "streaming").count() == 2)
                    .then_some(())
            }
            _ => None,
        })
        .await;
        let _: Armed = c.post(twice, "arm", &arm(lowered.epoch)(1)).await.unwrap();

        // One is enough for commits: then nobody needs a slot, and none is left.
        put_policy(&c, |p| PolicyRecord { k: 1, joint: None, ..p }).await;
        for i in 0..3 {
            until_value(&c, i, SLOTS, "").await;
        }
        for i in [p, other] {
            c.until_streaming(i, twice, term).await;
        }

        // Before two are relied on again all stream through slots.
        let policy = put_policy(&c, joint(2)).await;
        // Both of them do again, so that only the other one is in the way.
        until_value(&c, twice, THROUGH, "2").await;
        let refused = c.post::<Armed>(twice, "arm", &arm(policy.epoch)(2)).await.unwrap_err();
        assert!(refused.contains(&format!("count twice: {other_name}\"")), "{refused}");
        assert_eq!(twin.try_wait().unwrap(), None, "who is in the way is not ended: it would be back");
        twin.kill().unwrap();
        twin.wait().unwrap();
        let _: Armed = c.post(twice, "arm", &arm(policy.epoch)(2)).await.unwrap();
        assert_eq!(c.value(twice, THROUGH).await, "2");
        assert_eq!(c.value(p, "SHOW max_slot_wal_keep_size").await, "-1", "an operator's slots are not limited");
    });
}
