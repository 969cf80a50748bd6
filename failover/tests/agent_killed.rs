//! Agents with real PostgreSQL: what an agent that was killed half-way leaves behind.

#[allow(dead_code, reason = "the harness serves several test programs, none of which uses all of it")]
mod agents;

use agents::{Cluster, kill_all, postmaster, signal, unprivileged, until};
use cluster::{Term, TimelineId};
use failover::record::Mode;

/// Killed between writing the stubs and the promotion, or while fetching histories from a primary: PostgreSQL would
/// take the stub for the newest timeline and refuse to start, because its own is no ancestor of that.
#[test]
fn a_stub_history_above_every_real_one_does_not_keep_postgres_from_starting() {
    unprivileged("a_stub_history_above_every_real_one_does_not_keep_postgres_from_starting", async {
        let mut c = Cluster::new(22400, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        let data = c.nodes[s].config.data_dir.join("data");
        c.crash_agent(s).await;
        kill_all(&data);
        for number in 2..=4 {
            std::fs::write(data.join("pg_wal").join(TimelineId(number).history_file()), "").unwrap();
        }
        c.start(s).await;
        c.until_streaming(s, p, Term(1)).await;
        // It can still be promoted to the timeline of a term in the gap.
        c.begin().await;
        let (term, _) = c.failover(s, &[s]).await;
        assert_eq!(term, Term(3));
        c.until_streaming(p, s, term).await;
    });
}

/// A lease that ran short made commits wait, and the agent was killed before it was renewed.
#[test]
fn a_fence_that_a_killed_agent_left_is_lifted_once_the_lease_is_held_again() {
    unprivileged("a_fence_that_a_killed_agent_left_is_lifted_once_the_lease_is_held_again", async {
        let mut c = Cluster::new(22410, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        c.crash_agent(p).await;
        let conf = c.nodes[p].config.data_dir.join("conf/dynamic.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        let kept = text.lines().filter(|l| !l.starts_with("synchronous_standby_names"));
        let fenced = format!("synchronous_standby_names = '{}'", cluster::sync_names::SyncNames::Fenced);
        let text: Vec<&str> = kept.chain([fenced.as_str()]).collect();
        std::fs::write(&conf, text.join("\n") + "\n").unwrap();
        signal(postmaster(&c.nodes[p].config), nix::sys::signal::Signal::SIGHUP);
        let names = "SHOW synchronous_standby_names";
        until("the fence", async || c.value(p, names).await.contains("fenced").then_some(())).await;
        c.start(p).await;
        until("the end of the fence", async || c.value(p, names).await.is_empty().then_some(())).await;
        assert!(c.state(p).await.lease_left_ms.is_some());
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    });
}
