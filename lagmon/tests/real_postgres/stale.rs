//! Standbys that fall behind: replay that pauses, waits or is delayed, streams that break or stall, a primary that hangs.

use super::postgres::Cluster;
use super::{is_zero, lag, monitor, monitor_with, n};
use cluster::Clock;
use cluster::lag::{Freshness, LagSnapshot, LagUnknown};
use lagmon::config::Raw;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn a_paused_replay_and_a_broken_stream_are_never_fresh_and_their_data_grow_older() {
    let c = Cluster::start(2);
    let m = monitor(&c);
    m.until("both standbys at zero", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    c.sql(1, "SELECT pg_wal_replay_pause()");
    c.sql(2, "ALTER SYSTEM SET primary_conninfo = ''");
    c.sql(2, "SELECT pg_reload_conf()");
    let (paused, broken) = (Some(Err(LagUnknown::ReplayPaused)), Some(Err(LagUnknown::StreamBroken)));
    m.until("paused and broken", |s| lag(s, 1) == paused && lag(s, 2) == broken).await;
    c.sql(0, "INSERT INTO t SELECT generate_series(1, 20000)");
    // For as long as it lasts, with the primary writing or not, no snapshot calls either of them fresh.
    let until = Instant::now() + Duration::from_secs(2);
    let mut changes = m.handle.lag();
    while Instant::now() < until {
        let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
        let now = changes.borrow_and_update().clone();
        assert!([1, 2].iter().all(|i| lag(&now, *i).is_some_and(|l| l.is_err())), "{now:?}");
    }
    m.until("paused and broken still", |s| lag(s, 1) == paused && lag(s, 2) == broken && s.primary.is_some()).await;
    for i in [1, 2] {
        let shown = m.shown(i);
        assert!(shown["data_age_ms"].as_u64().unwrap() >= 1900, "{shown:#}");
        assert!(shown["replay_lag_bytes"].as_u64().unwrap() > 100_000, "{shown:#}");
        assert!(shown["replay_lag_ms"].is_null() && shown["staleness_ms"].is_null(), "{shown:#}");
    }
    let text = m.metrics();
    assert!(text.contains("pgtenure_lagmon_lag_unknown{node=\"n2\",reason=\"replay_paused\"} 1\n"), "{text}");
    assert!(!text.contains("pgtenure_lagmon_replay_lag_seconds{"), "unknown is absent\n{text}");
    c.sql(1, "SELECT pg_wal_replay_resume()");
    c.sql(2, "ALTER SYSTEM RESET primary_conninfo");
    c.sql(2, "SELECT pg_reload_conf()");
    m.until("the resumed standby at zero", |s| is_zero(s, 1)).await;
}

#[tokio::test]
async fn a_standby_that_applies_late_is_measured_and_never_too_young() {
    const DELAY: Duration = Duration::from_secs(2);
    let c = Cluster::start(1);
    c.sql(1, "ALTER SYSTEM SET recovery_min_apply_delay = '2s'");
    c.sql(1, "SELECT pg_reload_conf()");
    let m = monitor(&c);
    let (connection, driver) = tokio_postgres::connect(
        &format!("host=127.0.0.1 port={} user=postgres dbname=postgres", c.ports[0]),
        tokio_postgres::NoTls,
    )
    .await
    .unwrap();
    let driver = tokio::spawn(driver);
    // When each number was acknowledged.
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let acks = Arc::clone(&acknowledged);
    let writer = tokio::spawn(async move {
        for number in 1u64.. {
            connection
                .batch_execute(&format!("INSERT INTO t VALUES ({number})"))
                .await
                .expect("the primary takes rows");
            acks.lock().unwrap().push((Clock.now(), number));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    m.until("a lag of nearly two seconds", |s| matches!(lag(s, 1), Some(Ok(lag)) if lag > DELAY * 3 / 4)).await;
    let begun = Instant::now();
    let mut seen = 0;
    while seen <= 5 || begun.elapsed() < Duration::from_secs(5) {
        assert!(begun.elapsed() < Duration::from_secs(60), "only {seen} snapshots with a known lag");
        let (standby, now) = (m.standby(1), Clock.now());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Ok(staleness) = standby.staleness_at(now) else { continue };
        // What staleness means: everything acknowledged before is there.
        let complete_until = now - staleness;
        let must = acknowledged.lock().unwrap().iter().rev().find(|(at, _)| *at < complete_until).map_or(0, |a| a.1);
        let has: u64 = c.sql(1, "SELECT coalesce(max(v), 0) FROM t").parse().unwrap();
        assert!(has >= must, "stale by {staleness:?}, so {must} must be visible, the newest is {has}");
        assert!(staleness < DELAY + Duration::from_secs(5), "{staleness:?}");
        seen += 1;
    }
    let verdict = m.standby(1).freshness_at(Clock.now(), Duration::from_millis(500));
    assert!(matches!(verdict, Freshness::Lagging { .. }), "{verdict:?}");
    writer.abort();
    driver.abort();
}

#[tokio::test]
async fn a_stalled_receiver_makes_its_standby_and_the_cascade_behind_it_stale() {
    let mut c = Cluster::start(1);
    c.add(1);
    let m = monitor(&c);
    m.until("both standbys at zero", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    c.signal_receiver(1, Signal::SIGSTOP);
    c.sql(0, "INSERT INTO t SELECT generate_series(1, 20000)");
    let written = Clock.now();
    // It says that it streams, and what it received it has replayed; only the primary's position tells.
    let streams = "SELECT status, pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() FROM pg_stat_wal_receiver";
    m.until("what was received to be replayed", |_| c.sql(1, streams) == "streaming|t").await;
    m.until("the primary's new position", |s| s.primary.as_ref().is_some_and(|p| p.sent_at > written)).await;
    let begun = Instant::now();
    let mut changes = m.handle.lag();
    let mut known = 0;
    while known <= 5 || begun.elapsed() < Duration::from_secs(3) {
        assert!(begun.elapsed() < Duration::from_secs(60), "only {known} snapshots with a known lag");
        let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
        let snapshot = changes.borrow_and_update().clone();
        let now = Clock.now();
        for i in [1, 2] {
            let Ok(staleness) = snapshot.standby(&n(i)).unwrap().staleness_at(now) else { continue };
            assert!(staleness >= now.since(written), "stale for {:?}: {snapshot:?}", now.since(written));
            known += 1;
        }
    }
    // As of the last sample, which may have been a while before.
    m.until("it to be shown", |_| {
        let lags = [1, 2].map(|i| m.shown(i)).iter().all(|shown| {
            shown["write_lag_ms"].as_u64() >= Some(2000) && shown["flush_lag_bytes"].as_u64() > Some(100_000)
        });
        lags && m.shown(1)["stream_age_ms"].as_u64() >= Some(2500)
    })
    .await;
    c.signal_receiver(1, Signal::SIGCONT);
    m.until("both back at zero", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    let history = m.handle.history()();
    for line in history["standbys"].as_array().unwrap() {
        let worst = line["points"].as_array().unwrap().iter().filter_map(|p| p["max_ms"].as_u64()).max();
        assert!(worst >= Some(2500), "{history:#}");
    }
}

#[tokio::test]
async fn a_hanging_primary_makes_its_standbys_stale_by_the_age_of_its_sample() {
    let c = Cluster::start(1);
    let m = monitor_with(&c, Raw::default());
    m.until("the standby at zero", |s| is_zero(s, 1)).await;
    // After a probe that took too long there may be two.
    let of_it = "FROM pg_stat_activity WHERE application_name = 'pgtenure_lagmon' ORDER BY backend_start DESC LIMIT 1";
    let backend = c.sql(0, &format!("SELECT pid {of_it}"));
    let backend = Pid::from_raw(backend.parse().unwrap());
    c.signal_postmaster(0, backend, Signal::SIGSTOP);
    let stopped = Clock.now();
    let mut changes = m.handle.lag();
    let until = Instant::now() + Duration::from_secs(20);
    // Until the probe is given up nothing is heard, and its last answer is of the time before.
    while changes.borrow_and_update().primary.is_some() {
        let (standby, now) = (m.standby(1), Clock.now());
        if let Ok(staleness) = standby.staleness_at(now) {
            let at_least = now.since(stopped).saturating_sub(Duration::from_millis(5));
            assert!(staleness >= at_least, "{staleness:?}, stopped for {at_least:?}");
        }
        assert!(Instant::now() < until, "a probe that hangs for {:?}", Clock.now().since(stopped));
        let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
    }
    assert!(lag(&changes.borrow(), 1).is_some_and(|l| l.is_err()));
    c.signal_postmaster(0, backend, Signal::SIGCONT);
    m.until("the standby at zero again", |s| is_zero(s, 1)).await;
}

#[tokio::test]
async fn a_query_that_blocks_replay_makes_its_standby_stale_within_one_sample() {
    let c = Cluster::start(2);
    c.sql(1, "ALTER SYSTEM SET max_standby_streaming_delay = -1");
    c.sql(1, "SELECT pg_reload_conf()");
    c.sql(0, "INSERT INTO t SELECT generate_series(1, 100)");
    let m = monitor(&c);
    m.until("both standbys at zero", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", c.ports[1]);
    let (reader, driver) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(driver);
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t").await.unwrap();
    c.sql(0, "DELETE FROM t");
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event LIKE 'RecoveryConflict%'";
    let until = Instant::now() + Duration::from_secs(60);
    while c.sql(1, waits) != "1" {
        assert!(Instant::now() < until, "replay is not blocked");
        // Again where somebody looked at the database just then, and the rows were kept for that.
        c.sql(0, "VACUUM t");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The very first sample that was asked for since, of both nodes, says so: all received, not replayed.
    let blocked = Clock.now();
    let asked = |s: &LagSnapshot| {
        let standby = s.standby(&n(1)).and_then(|s| s.sample.as_ref()).is_some_and(|s| s.sent_at > blocked);
        standby && s.primary.as_ref().is_some_and(|p| p.sent_at > blocked)
    };
    let mut lag_seen = m.handle.lag();
    let first =
        tokio::time::timeout(Duration::from_secs(60), lag_seen.wait_for(|s| asked(s))).await.unwrap().unwrap().clone();
    let standby = first.standby(&n(1)).unwrap().clone();
    let sample = standby.sample.as_ref().unwrap();
    assert!(sample.replay_lag_bytes > Some(0) && sample.receive_lsn > sample.replay_lsn, "{standby:?}");
    assert!(standby.replay_lag.is_ok_and(|lag| lag > Duration::ZERO), "{standby:?}");
    // It grows for as long as the query lasts, while nobody writes, and the other standby is not touched by it.
    m.until("half a second", |s| matches!(lag(s, 1), Some(Ok(lag)) if lag > Duration::from_millis(500))).await;
    m.until("the other standby at zero", |s| is_zero(s, 2)).await;
    driver.abort();
    drop(reader);
    m.until("the standby at zero", |s| is_zero(s, 1)).await;
}

#[tokio::test]
async fn recovery_conflicts_and_a_delay_are_shown() {
    let c = Cluster::start(1);
    c.sql(1, "ALTER SYSTEM SET max_standby_streaming_delay = '50ms'");
    c.sql(1, "SELECT pg_reload_conf()");
    c.sql(0, "INSERT INTO t SELECT generate_series(1, 100)");
    let m = monitor(&c);
    m.until("the standby at zero", |s| is_zero(s, 1)).await;
    m.until("no conflicts", |s| s.standby(&n(1)).unwrap().detail.conflicts == Some(0)).await;
    let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", c.ports[1]);
    let (reader, driver) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(driver);
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t").await.unwrap();
    c.sql(0, "DELETE FROM t");
    m.until("a conflict", |s| {
        // Again where somebody looked at the database just then, and the rows were kept for that.
        c.sql(0, "VACUUM t");
        // One more if a look of the monitor's own was in the way.
        s.standby(&n(1)).unwrap().detail.conflicts >= Some(1)
    })
    .await;
    let text = m.metrics();
    let want = "pgtenure_lagmon_recovery_conflicts_total{cause=\"snapshot\",node=\"n2\"} ";
    let shown = text.lines().find_map(|line| line.strip_prefix(want)?.parse::<f64>().ok());
    assert!(shown.is_some_and(|conflicts| conflicts >= 1.0), "{want} is not in\n{text}");
    driver.abort();
    c.sql(1, "ALTER SYSTEM SET recovery_min_apply_delay = '90s'");
    c.sql(1, "SELECT pg_reload_conf()");
    let delay = |s: &LagSnapshot| s.standby(&n(1)).unwrap().detail.apply_delay;
    m.until("the delay", |s| delay(s) == Some(Duration::from_secs(90))).await;
    assert_eq!(m.shown(1)["apply_delay_ms"], 90_000);
    // Asked to pause while the delay holds a record back: it has not stopped yet, and is not fresh already.
    c.sql(0, "INSERT INTO t VALUES (1)");
    c.sql(1, "SELECT pg_wal_replay_pause()");
    let paused = Some(Err(LagUnknown::ReplayPaused));
    m.until("a request to pause", |s| lag(s, 1) == paused && s.standby(&n(1)).unwrap().detail.pause.is_some()).await;
}
