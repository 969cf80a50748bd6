//! lagmon against a real primary with two standbys.

mod postgres;

use cluster::lag::{Freshness, LagSnapshot, LagUnknown, StandbyLag};
use cluster::topology::{Gate, Member, Topology};
use cluster::{Clock, Endpoint, NodeId, Term};
use lagmon::config::{Raw, check};
use lagmon::{Handle, start};
use postgres::Cluster;
use prometheus::Registry;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

fn n(i: usize) -> NodeId {
    format!("n{}", i + 1).parse().unwrap()
}

fn topology(c: &Cluster, term: u64, primary: usize) -> Topology {
    let member = |i: usize| Member {
        node: n(i),
        postgres: Endpoint { host: "127.0.0.1".to_owned(), port: c.ports[i] },
        fenced: false,
    };
    let standbys = (0..c.ports.len()).filter(|i| *i != primary).map(member).collect();
    Topology { term: Term(term), gate: Gate::Open, primary: Some(member(primary)), standbys, ..Topology::unknown() }
}

struct Monitor {
    handle: Handle,
    registry: Registry,
    topology: watch::Sender<Topology>,
}

fn monitor(c: &Cluster) -> Monitor {
    let (topology, shown) = watch::channel(topology(c, 1, 0));
    let registry = Registry::new();
    let handle = start(check(Raw::default()).unwrap(), shown, &registry).unwrap();
    Monitor { handle, registry, topology }
}

impl Monitor {
    /// Wait until a snapshot is as `wanted` says; 20 s at most.
    async fn until(&self, what: &str, wanted: impl Fn(&LagSnapshot) -> bool) {
        let mut lag = self.handle.lag();
        let waited = tokio::time::timeout(Duration::from_secs(20), lag.wait_for(|s| wanted(s))).await.map(drop);
        assert!(waited.is_ok(), "waited 20 s for {what}: {:#}", self.handle.status());
    }

    fn standby(&self, i: usize) -> StandbyLag {
        self.handle.lag().borrow().standby(&n(i)).expect("in the topology").clone()
    }

    fn shown(&self, i: usize) -> serde_json::Value {
        let status = self.handle.status();
        let standbys = status["standbys"].as_array().unwrap().clone();
        standbys.into_iter().find(|s| s["node"] == n(i).as_str()).unwrap()
    }

    fn metrics(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap()
    }
}

fn lag(s: &LagSnapshot, i: usize) -> Option<Result<Duration, LagUnknown>> {
    s.standby(&n(i)).map(|s| s.replay_lag)
}

fn is_zero(s: &LagSnapshot, i: usize) -> bool {
    lag(s, i) == Some(Ok(Duration::ZERO))
}

#[tokio::test]
async fn an_idle_cluster_has_a_lag_of_zero_and_a_new_term_is_followed() {
    let c = Cluster::start(2);
    let m = monitor(&c);
    c.sql(0, "INSERT INTO t SELECT generate_series(1, 20000)");
    m.until("both standbys at zero", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    let snapshot = m.handle.lag().borrow().clone();
    assert_eq!(snapshot.term, Term(1));
    assert_eq!(snapshot.standby(&n(1)).unwrap().sample.as_ref().unwrap().replay_lag_bytes, Some(0));
    // It stays zero, for as long as nothing is written: PostgreSQL itself writes a record now and then.
    let until = Instant::now() + Duration::from_secs(2);
    let mut changes = m.handle.lag();
    let mut zeros = 0;
    while Instant::now() < until {
        let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
        let now = changes.borrow_and_update().clone();
        let flushed = |s: &LagSnapshot| s.primary.as_ref().map(|p| p.flush_lsn);
        if flushed(&now) != flushed(&snapshot) {
            break;
        }
        for i in [1, 2] {
            // A probe may time out on a busy machine; what is known must be zero.
            let Some(Ok(known)) = lag(&now, i) else { continue };
            assert_eq!(known, Duration::ZERO, "{now:?}");
            zeros += 1;
        }
    }
    assert!(zeros > 0, "no snapshot with a known lag");
    m.until("both standbys at zero again", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    let fresh = m.standby(1).freshness_at(Clock.now(), Duration::from_secs(5));
    assert!(matches!(fresh, Freshness::Fresh { .. }), "{fresh:?}");
    let text = m.metrics();
    for want in [
        "pgtenure_lagmon_replay_lag_seconds{node=\"n2\"} 0\n",
        "pgtenure_lagmon_flush_lag_bytes{node=\"n3\"} 0\n",
        "pgtenure_lagmon_lag_unknown{node=\"n2\",reason=\"stream_broken\"} 0\n",
        "pgtenure_lagmon_node_role{node=\"n1\",role=\"primary\"} 1\n",
        "pgtenure_lagmon_term 1\n",
        "pgtenure_lagmon_probes_total{node=\"n3\",outcome=\"answered\"}",
        "pgtenure_lagmon_sample_age_seconds{node=\"n1\"}",
        "pgtenure_lagmon_primary_flush_position_bytes",
    ] {
        assert!(text.contains(want), "{want} is not in\n{text}");
    }
    // Term 2 has timeline 2: the primary found on timeline 1 dates nobody.
    m.topology.send_replace(topology(&c, 2, 0));
    let none = Some(Err(LagUnknown::NoPrimarySample));
    m.until("term 2", |s| s.term == Term(2) && s.primary.is_none() && lag(s, 1) == none).await;
    c.sql(1, "SELECT pg_promote()");
    m.topology.send_replace(topology(&c, 2, 1));
    m.until("the new primary", |s| s.primary.as_ref().is_some_and(|p| p.node == n(1))).await;
    m.until("the old primary to be no standby", |s| lag(s, 0) == Some(Err(LagUnknown::NotInRecovery))).await;
    let elsewhere = Some(Err(LagUnknown::StreamBroken));
    m.until("the other standby, on timeline 1, to count as broken", |s| lag(s, 2) == elsewhere).await;
}

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
    let until = Instant::now() + Duration::from_secs(5);
    let mut seen = 0;
    while Instant::now() < until {
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
    assert!(seen > 5, "only {seen} snapshots with a known lag");
    let verdict = m.standby(1).freshness_at(Clock.now(), Duration::from_millis(500));
    assert!(matches!(verdict, Freshness::Lagging { .. }), "{verdict:?}");
    writer.abort();
    driver.abort();
}

#[tokio::test]
async fn a_dead_standby_is_unreachable_disturbs_no_other_and_comes_back() {
    let mut c = Cluster::start(2);
    let m = monitor(&c);
    m.until("both standbys at zero", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    c.stop(1);
    m.until("the dead standby unreachable", |s| lag(s, 1) == Some(Err(LagUnknown::Unreachable))).await;
    m.until("the other at zero", |s| is_zero(s, 2)).await;
    assert!(m.standby(1).sample.is_some(), "where it was is still known");
    c.spawn(1);
    m.until("the dead standby back at zero", |s| is_zero(s, 1)).await;
    // A dead primary leaves nobody's lag known, for one reason or the other.
    c.stop(0);
    m.until("no primary", |s| s.primary.is_none() && lag(s, 1).is_some_and(|l| l.is_err())).await;
    c.spawn(0);
    m.until("all back at zero", |s| s.primary.is_some() && is_zero(s, 1) && is_zero(s, 2)).await;
}
