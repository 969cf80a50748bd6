//! Agents with real PostgreSQL in async mode: who waits for a standby, and how acknowledgements stop with the lease.

use super::agents::{Cluster, kill_all, postmaster, signal, unprivileged, until};
use cluster::Term;
use failover::api::{PostgresState, Promoted};
use failover::config::watchdog::{WatchdogConfig, WatchdogMode};
use failover::record::{Mode, PrimaryRecord};
use failover::store::{Store, Txn};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The commit of a session that waits, once it is seen to.
async fn waiting(
    c: &Cluster,
    p: usize,
    sql: &'static str,
) -> tokio::task::JoinHandle<Result<(), tokio_postgres::Error>> {
    let session = c.sql(p).await;
    let commit = tokio::spawn(async move { session.batch_execute(sql).await });
    let count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("a commit to wait", async || (c.value(p, count).await == "1").then_some(())).await;
    commit
}

/// The agent sets it by the policy, once the term is open. Who asks has read that there is a list before the checkpointer
/// has, which tells all who commit; it does so before it makes a checkpoint.
async fn list_is_in_force(c: &Cluster, p: usize, names: &str) {
    until("the list", async || (c.value(p, "SHOW synchronous_standby_names").await == names).then_some(())).await;
    // One of them it may make before, if it was about to look for what is asked for.
    for _ in 0..2 {
        c.sql(p).await.batch_execute("CHECKPOINT").await.unwrap();
    }
}

#[test]
fn in_async_mode_only_a_commit_that_asks_waits_for_a_standby() {
    unprivileged("async_waits::in_async_mode_only_a_commit_that_asks_waits_for_a_standby", async {
        let mut c = Cluster::new(22450, 2, Mode::Async, 1);
        // For so long an agent that has started without a lease leaves sessions alone.
        for node in &mut c.nodes {
            (node.config.lease_ttl, node.config.lease_margin) = (Duration::from_secs(6), Duration::from_millis(2400));
        }
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.until_streaming(s, p, Term(1)).await;
        let names = format!("ANY 1 ({})", c.nodes[s].id);
        list_is_in_force(&c, p, &names).await;
        assert_eq!(c.value(p, "SHOW synchronous_commit").await, "local");
        let sql = c.sql(p).await;
        sql.batch_execute("CREATE TABLE t (i int); SET synchronous_commit = on; INSERT INTO t VALUES (1)")
            .await
            .unwrap();
        c.crash_agent(s).await;
        kill_all(&c.nodes[s].config.data_dir.join("data"));
        sql.batch_execute("SET synchronous_commit = local; INSERT INTO t VALUES (2)").await.unwrap();
        c.sql(p).await.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
        let asked = waiting(&c, p, "SET synchronous_commit = on; INSERT INTO t VALUES (4)").await;
        c.start(s).await;
        c.until_streaming(s, p, Term(1)).await;
        asked.await.unwrap().unwrap();
        // An agent that starts again has no lease for a moment: its fence ends no session.
        c.crash_agent(p).await;
        c.start(p).await;
        until("the new agent's lease", async || c.state(p).await.lease_left_ms).await;
        sql.batch_execute("INSERT INTO t VALUES (5)").await.unwrap();
        until("the list", async || (c.value(p, "SHOW synchronous_standby_names").await == names).then_some(())).await;
        // The other becomes primary with the same.
        let (term, _) = c.failover(s, &[s]).await;
        c.until_streaming(p, s, term).await;
        let names = format!("ANY 1 ({})", c.nodes[p].id);
        until("the list", async || (c.value(s, "SHOW synchronous_standby_names").await == names).then_some(())).await;
        assert_eq!(c.value(s, "SHOW synchronous_commit").await, "local");
        c.sql(s).await.batch_execute("SET synchronous_commit = on; INSERT INTO t VALUES (7)").await.unwrap();
    });
}

/// A fence that a killed agent left is lifted although no standby answers. A commit that waited under it has perhaps asked
/// for that, so it is not acknowledged as if it had one: its session is ended. A wait that is cancelled would only be warned of,
/// and not even that where the client hides warnings, as this one does.
#[test]
fn a_commit_that_a_fence_held_is_released_without_a_standby_and_told() {
    unprivileged("async_waits::a_commit_that_a_fence_held_is_released_without_a_standby_and_told", async {
        let mut c = Cluster::new(22455, 2, Mode::Async, 1);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.until_streaming(s, p, Term(1)).await;
        list_is_in_force(&c, p, &format!("ANY 1 ({})", c.nodes[s].id)).await;
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        c.crash_agent(s).await;
        kill_all(&c.nodes[s].config.data_dir.join("data"));
        let hiding = "SET client_min_messages = error; SET synchronous_commit = on; INSERT INTO t VALUES (1)";
        let held = waiting(&c, p, hiding).await;
        c.crash_agent(p).await;
        let conf = c.nodes[p].config.data_dir.join("conf/dynamic.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        let fenced = format!("synchronous_standby_names = '{}'", cluster::sync_names::SyncNames::Fenced);
        std::fs::write(&conf, format!("{text}{fenced}\nsynchronous_commit = 'on'\n")).unwrap();
        signal(postmaster(&c.nodes[p].config), nix::sys::signal::Signal::SIGHUP);
        until("the fence", async || {
            c.value(p, "SHOW synchronous_standby_names").await.contains("fenced").then_some(())
        })
        .await;
        let by_default = c.sql(p).await;
        let by_default = tokio::spawn(async move { by_default.batch_execute("INSERT INTO t VALUES (2)").await });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        until("both to wait", async || (c.value(p, waits).await == "2").then_some(())).await;
        c.start(p).await;
        for unanswered in [held.await.unwrap(), by_default.await.unwrap()] {
            unanswered.expect_err("neither is told that it has committed as it asked");
        }
        assert_eq!(c.value(p, "SELECT count(*) FROM t").await, "2");
        assert_eq!(c.value(p, "SHOW synchronous_commit").await, "local");
        c.sql(p).await.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    });
}

/// A PostgreSQL that does not answer when its agent starts is adopted later: what it has is not what is presumed.
#[test]
fn a_fence_that_was_left_is_lifted_when_postgres_answers_late() {
    unprivileged("async_waits::a_fence_that_was_left_is_lifted_when_postgres_answers_late", async {
        let mut c = Cluster::new(22465, 2, Mode::Async, 1);
        let p = c.bootstrap().await;
        c.until_streaming(1 - p, p, Term(1)).await;
        let names = format!("ANY 1 ({})", c.nodes[1 - p].id);
        until("the list", async || (c.value(p, "SHOW synchronous_standby_names").await == names).then_some(())).await;
        c.crash_agent(p).await;
        let conf = c.nodes[p].config.data_dir.join("conf/dynamic.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        let fenced = format!("synchronous_standby_names = '{}'", cluster::sync_names::SyncNames::Fenced);
        std::fs::write(&conf, format!("{text}{fenced}\nsynchronous_commit = 'on'\n")).unwrap();
        let postmaster = postmaster(&c.nodes[p].config);
        signal(postmaster, nix::sys::signal::Signal::SIGHUP);
        until("the fence", async || {
            c.value(p, "SHOW synchronous_standby_names").await.contains("fenced").then_some(())
        })
        .await;
        signal(postmaster, nix::sys::signal::Signal::SIGSTOP);
        c.start(p).await;
        assert_eq!(c.state(p).await.postgres, PostgresState::Starting, "it does not answer");
        signal(postmaster, nix::sys::signal::Signal::SIGCONT);
        until("the list", async || (c.value(p, "SHOW synchronous_standby_names").await == names).then_some(())).await;
        until("the default", async || (c.value(p, "SHOW synchronous_commit").await == "local").then_some(())).await;
    });
}

/// Before, only the hard stop at the lease's end ended them.
#[test]
fn sessions_that_wait_for_less_are_ended_before_the_lease_is() {
    unprivileged("async_waits::sessions_that_wait_for_less_are_ended_before_the_lease_is", async {
        let mut c = Cluster::new(22460, 2, Mode::Async, 1);
        // So much earlier than the hard stop that its agent certainly has the time.
        for node in &mut c.nodes {
            (node.config.lease_ttl, node.config.lease_margin) = (Duration::from_secs(6), Duration::from_millis(2400));
        }
        let p = c.bootstrap().await;
        c.until_streaming(1 - p, p, Term(1)).await;
        c.sql(p).await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        let (lowered, busy, idle) = (c.sql(p).await, c.sql(p).await, c.sql(p).await);
        lowered.batch_execute("SET synchronous_commit = off").await.unwrap();
        // No other agent vouches for it.
        c.crash_agent(1 - p).await;
        c.nodes[p].store.set_down(true);
        // Its command has begun under the default of before, and would commit by that.
        let busy = tokio::spawn(async move {
            busy.batch_execute("DO $$ BEGIN INSERT INTO t VALUES (1); PERFORM pg_sleep(60); END $$").await
        });
        let lowered = loop {
            if let Err(error) = lowered.batch_execute("INSERT INTO t VALUES (2)").await {
                break error;
            }
        };
        // Told by the agent, while PostgreSQL runs: at the lease's end it is stopped without a word of that kind. Between
        // two commands nobody hears it.
        let told = |e: &tokio_postgres::error::DbError| e.message().contains("administrator command");
        assert!(lowered.as_db_error().map_or(lowered.is_closed(), told), "{lowered:?}");
        let busy = busy.await.unwrap().unwrap_err();
        assert!(busy.as_db_error().is_some_and(told), "{busy:?}");
        until("the idle one's end", async || idle.is_closed().then_some(())).await;
        c.until_state(p, "the stop", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
    });
}

/// A file that whoever opens it to write waits for, as on a disk that hangs; until this is dropped.
struct HangingFile(PathBuf);

impl HangingFile {
    fn new(path: PathBuf) -> Self {
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        Self(path)
    }
}

impl Drop for HangingFile {
    fn drop(&mut self) {
        let _ = std::fs::OpenOptions::new().read(true).write(true).open(&self.0);
    }
}

/// The soft fence writes a file. Before, the hard one waited for that.
#[test]
fn a_disk_that_hangs_does_not_hold_up_the_stop_at_the_leases_end() {
    unprivileged("async_waits::a_disk_that_hangs_does_not_hold_up_the_stop_at_the_leases_end", async {
        let mut c = Cluster::new(22570, 2, Mode::Async, 1);
        let p = c.bootstrap().await;
        c.until_streaming(1 - p, p, Term(1)).await;
        until("the lease", async || c.state(p).await.lease_left_ms).await;
        c.crash_agent(1 - p).await;
        let _hangs = HangingFile::new(c.nodes[p].config.data_dir.join("conf/dynamic.tmp"));
        c.nodes[p].store.set_down(true);
        c.until_state(p, "the stop", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
    });
}

/// Before, the lease was renewed for ever and guarded nothing: a new term's condition that the key is gone held at once.
#[test]
fn a_lease_whose_key_is_gone_is_taken_again() {
    unprivileged("async_waits::a_lease_whose_key_is_gone_is_taken_again", async {
        let mut c = Cluster::new(22575, 2, Mode::Async, 1);
        let p = c.bootstrap().await;
        until("the lease", async || c.state(p).await.lease_left_ms).await;
        let key = c.keys.primary();
        let (record, _) = c.record::<PrimaryRecord>(key.clone()).await.unwrap();
        assert!(c.store.txn(Txn::new().delete(key.clone())).await.unwrap().succeeded);
        let again = until("the key", async || c.record::<PrimaryRecord>(key.clone()).await).await;
        assert_eq!(again.0, record);
        let other = PrimaryRecord { node: c.nodes[1 - p].id.clone(), ..record.clone() };
        let put = Txn::new().put(key.clone(), serde_json::to_vec(&other).unwrap());
        assert!(c.store.txn(put).await.unwrap().succeeded);
        until("its own key", async || (c.record::<PrimaryRecord>(key.clone()).await?.0 == record).then_some(())).await;
    });
}

/// What a node's agent writes to, in place of a device: a FIFO, of which it is noted when which byte came.
struct Device {
    path: PathBuf,
    bytes: Arc<Mutex<Vec<(Instant, u8)>>>,
}

/// Much longer than it takes to feed it, on whatever machine: the test's own thread may be late to note that.
const FIRES_AFTER: Duration = Duration::from_secs(3);

impl Device {
    /// Give every node one that is required.
    fn of_all(c: &mut Cluster) -> Vec<Self> {
        let of_each = c.nodes.iter_mut().map(|node| {
            let path = node.config.data_dir.with_extension("watchdog");
            let (mode, device) = (WatchdogMode::Required, path.clone());
            let longest = Duration::from_secs(5);
            node.config.watchdog = WatchdogConfig { mode, device, timeout: FIRES_AFTER, longest };
            node.config.lease_ttl = Duration::from_secs(8);
            Self::new(path)
        });
        of_each.collect()
    }

    fn new(path: PathBuf) -> Self {
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        // Open for both, so that it has a writer whatever the agent does.
        let mut fifo = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let mut byte = [0];
            while std::io::Read::read_exact(&mut fifo, &mut byte).is_ok() {
                noted.lock().unwrap().push((Instant::now(), byte[0]));
            }
        });
        Self { path, bytes }
    }

    fn food(&self) -> String {
        self.bytes.lock().unwrap().iter().map(|(_, b)| char::from(*b)).collect()
    }

    /// Would the host have been reset, between two bytes of which the earlier is no `V`?
    fn has_fired(&self, after: Duration) -> bool {
        let bytes = self.bytes.lock().unwrap();
        bytes.windows(2).any(|w| w[0].1 == b'.' && w[1].0.duration_since(w[0].0) > after)
    }
}

#[test]
fn the_watchdog_is_fed_while_the_lease_lasts_and_stopped_once_postgres_is() {
    unprivileged("async_waits::the_watchdog_is_fed_while_the_lease_lasts_and_stopped_once_postgres_is", async {
        let mut c = Cluster::new(22486, 2, Mode::Async, 1);
        let devices = Device::of_all(&mut c);
        let p = c.bootstrap().await;
        let s = 1 - p;
        until("food", async || (devices[p].food().len() > 3).then_some(())).await;
        assert_eq!(devices[s].food(), "", "a standby has nothing to fence");

        c.crash_agent(s).await;
        c.nodes[p].store.set_down(true);
        c.until_state(p, "the stop", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
        until("the device to be stopped", async || devices[p].food().ends_with(".V").then_some(())).await;
        // PostgreSQL is stopped half a second before the agent's device fires: this one gives a slow machine more.
        let fired = devices[p].has_fired(FIRES_AFTER + Duration::from_secs(2));
        assert!(!fired, "postgres was stopped in time, and the host is reset nevertheless");

        std::fs::remove_file(&devices[s].path).unwrap();
        c.start(s).await;
        let (record, _) = c.begin().await;
        let base = c.freeze(s, record.term).await.unwrap().position.expect("it runs");
        let order = c.promotion(s, record.term, base);
        let refused = c.post::<Promoted>(s, "promote", &order).await.unwrap_err();
        assert!(refused.contains("agent.watchdog.mode is required"), "{refused}");
        let again = Device::new(devices[s].path.clone());
        c.post::<Promoted>(s, "promote", &order).await.unwrap();
        until("food", async || again.food().starts_with('.').then_some(())).await;
    });
}

/// A shutdown that takes longer than the device's patience.
#[test]
fn the_watchdog_is_fed_while_an_agent_that_ends_stops_its_postgres() {
    unprivileged("async_waits::the_watchdog_is_fed_while_an_agent_that_ends_stops_its_postgres", async {
        let mut c = Cluster::new(22490, 2, Mode::Async, 1);
        let devices = Device::of_all(&mut c);
        c.nodes.iter_mut().for_each(|n| n.config.stop_timeout = 2 * FIRES_AFTER);
        let p = c.bootstrap().await;
        until("food", async || (devices[p].food().len() > 3).then_some(())).await;
        let pid = c.value(p, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await;
        signal(pid.parse().unwrap(), nix::sys::signal::Signal::SIGSTOP);
        c.nodes[p].handle.take().unwrap().stop().await;
        until("the device to be stopped", async || devices[p].food().ends_with(".V").then_some(())).await;
        // A slow machine has two seconds more; the stop takes longer still.
        let fired = devices[p].has_fired(FIRES_AFTER + Duration::from_secs(2));
        assert!(!fired, "the host is reset, because its agent is restarted");
    });
}

/// An agent that starts on a running primary whose device is gone: it serves no longer.
#[test]
fn a_primary_whose_required_watchdog_is_gone_ends() {
    unprivileged("async_waits::a_primary_whose_required_watchdog_is_gone_ends", async {
        let mut c = Cluster::new(22494, 2, Mode::Async, 1);
        let devices = Device::of_all(&mut c);
        let p = c.bootstrap().await;
        c.crash_agent(p).await;
        std::fs::remove_file(&devices[p].path).unwrap();
        c.start(p).await;
        c.until_state(p, "the stop", |s| matches!(s.postgres, PostgresState::Stopped { .. }).then_some(())).await;
    });
}
