//! Agents with real PostgreSQL: history files that an interrupted promotion leaves behind.

#[allow(dead_code, reason = "the harness serves several test programs, none of which uses all of it")]
mod agents;

use agents::{Cluster, kill_all, unprivileged};
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
