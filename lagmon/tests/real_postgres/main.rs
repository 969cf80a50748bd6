//! lagmon against a real primary with two standbys.

#[path = "../postgres/mod.rs"]
mod postgres;
mod stale;

use cluster::config::Span;
use cluster::lag::{Freshness, LagSnapshot, LagUnknown, StandbyLag, Upstream};
use cluster::topology::{Gate, Member, Topology};
use cluster::{Clock, Endpoint, Lsn, NodeId, Term};
use lagmon::config::{Raw, check};
use lagmon::{Handle, start};
use postgres::{Cluster, sql_at};
use prometheus::Registry;
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
        candidate: true,
        zone: None,
    };
    let standbys = (0..c.ports.len()).filter(|i| *i != primary).map(member).collect();
    Topology { term: Term(term), gate: Gate::Open, primary: Some(member(primary)), standbys, ..Topology::unknown() }
}

/// Probes a minute apart have no part in what happens within this.
const BEFORE_THE_NEXT: Duration = Duration::from_secs(20);

struct Monitor {
    handle: Handle,
    registry: Registry,
    topology: watch::Sender<Topology>,
}

/// One whose probes may take long, as on a busy machine: what a node did not tell in time is not known.
fn monitor(c: &Cluster) -> Monitor {
    let long = Span::secs(10);
    monitor_with(c, Raw { probe_timeout: long, tcp_user_timeout: long, ..Raw::default() })
}

fn monitor_with(c: &Cluster, raw: Raw) -> Monitor {
    let (topology, shown) = watch::channel(topology(c, 1, 0));
    let registry = Registry::new();
    let handle = start(check(raw).unwrap(), shown, &registry).unwrap();
    Monitor { handle, registry, topology }
}

impl Monitor {
    /// Wait until a snapshot is as `wanted` says, a minute at most.
    async fn until(&self, what: &str, wanted: impl Fn(&LagSnapshot) -> bool) {
        self.until_within(Duration::from_secs(60), what, wanted).await;
    }

    async fn until_within(&self, limit: Duration, what: &str, wanted: impl Fn(&LagSnapshot) -> bool) {
        let mut lag = self.handle.lag();
        let waited = tokio::time::timeout(limit, lag.wait_for(|s| wanted(s))).await.map(drop);
        assert!(waited.is_ok(), "waited {limit:?} for {what}: {:#}", self.handle.status());
    }

    /// Wait until what is shown is as `wanted` says, a minute at most, and give that: what is shown later may lack again
    /// what a node did not tell in time.
    async fn until_shown(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let shown = std::cell::OnceCell::new();
        self.until(what, |_| {
            let status = self.handle.status();
            wanted(&status) && shown.set(status).is_ok()
        })
        .await;
        shown.into_inner().expect("set when it was as wanted")
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
    // Whatever is set for everybody does not end a session of ours between two probes.
    c.sql(0, "ALTER ROLE pgtenure_monitor SET idle_session_timeout = '60ms'");
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
    let log = c.log(0);
    // On a busy machine one may end before it has said that it may not; it would be one after the other else.
    assert!(log.matches("idle-session timeout").count() < 3, "{log}");
    m.until("both standbys at zero again", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    let fresh = m.standby(1).freshness_at(Clock.now(), Duration::from_secs(5));
    assert!(matches!(fresh, Freshness::Fresh { .. }), "{fresh:?}");
    // Each at some time: PostgreSQL itself may write a record between two samples.
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
        m.until(want, |_| m.metrics().contains(want)).await;
    }
    // A commit that was acknowledged before it was flushed lies within what a sample tells that was asked for since.
    c.sql(0, "ALTER SYSTEM SET wal_writer_delay = '10s'");
    c.sql(0, "SELECT pg_reload_conf()");
    c.sql(0, "SET synchronous_commit = off; INSERT INTO t VALUES (1)");
    let (end, now) = (c.sql(0, "SELECT pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap(), Clock.now());
    m.until("a sample since", |s| s.primary.as_ref().is_some_and(|p| p.sent_at >= now)).await;
    let told = m.handle.lag().borrow().primary.as_ref().map(|p| p.insert_lsn);
    assert!(told >= Some(end.normalised_insert()), "{told:?}, written up to {end}");
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
async fn who_waits_for_a_sample_gets_one_of_every_node_and_not_only_at_the_next_tick() {
    let c = Cluster::start(1);
    let minute = Span::secs(60);
    let raw = Raw {
        probe_interval: minute,
        detail_interval: minute,
        probe_timeout: minute,
        tcp_user_timeout: minute,
        ..Raw::default()
    };
    let m = monitor_with(&c, raw);
    m.until("the first samples", |s| s.primary.is_some() && lag(s, 1).is_some_and(|l| l.is_ok())).await;
    let ask = m.handle.ask();
    for round in 0..3 {
        c.sql(0, "INSERT INTO t VALUES (1)");
        let (asked, before) = (Clock.now(), m.handle.lag().borrow().primary.clone().map(|p| p.insert_lsn));
        ask();
        m.until_within(BEFORE_THE_NEXT, "samples taken since they were asked for", |s| {
            let primary = s.primary.as_ref().is_some_and(|p| p.sent_at >= asked && Some(p.insert_lsn) > before);
            let standby = s.standby(&n(1)).and_then(|s| s.sample.clone());
            primary && standby.is_some_and(|sample| sample.sent_at >= asked)
        })
        .await;
        let text = m.metrics();
        assert!(text.contains(&format!("pgtenure_lagmon_demanded_rounds_total {}\n", round + 1)), "{text}");
    }
}

#[tokio::test]
async fn without_standbys_what_does_not_wait_for_them_is_confirmed_until_somebody_does() {
    let c = Cluster::start(1);
    for set in ["synchronous_standby_names = 'ANY 1 (nobody)'", "synchronous_commit = 'local'"] {
        c.sql(0, &format!("ALTER SYSTEM SET {set}"));
    }
    c.sql(0, "SELECT pg_reload_conf()");
    c.list_is_in_force();
    let m = monitor(&c);
    let confirmed = |s: &LagSnapshot| s.primary.as_ref().and_then(|p| p.confirmed_until);
    m.until("commits to be confirmed", |s| confirmed(s).is_some()).await;
    let before = Clock.now();
    c.sql(0, "INSERT INTO t VALUES (1)");
    m.until("what was committed to be confirmed", |s| confirmed(s).is_some_and(|at| at >= before)).await;
    let port = c.ports[0];
    let asking =
        tokio::task::spawn_blocking(move || sql_at(port, "SET synchronous_commit = on; INSERT INTO t VALUES (2)"));
    m.until("a commit that waits not to be confirmed", |s| s.primary.is_some() && confirmed(s).is_none()).await;
    c.sql(0, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    asking.await.expect("the commit ends");
    m.until("all to be confirmed again", |s| confirmed(s).is_some_and(|at| at > before)).await;
}

#[tokio::test]
async fn a_commit_that_waits_to_be_applied_is_not_confirmed_before() {
    let c = Cluster::start(2);
    for set in ["synchronous_standby_names = 'ANY 2 (n2, n3)'", "synchronous_commit = 'on'"] {
        c.sql(0, &format!("ALTER SYSTEM SET {set}"));
    }
    c.sql(0, "SELECT pg_reload_conf()");
    c.list_is_in_force();
    let m = monitor(&c);
    let confirmed = |s: &LagSnapshot| s.primary.as_ref().and_then(|p| p.confirmed_until);
    m.until("commits to be confirmed", |s| confirmed(s).is_some()).await;
    c.sql(2, "SELECT pg_wal_replay_pause()");
    let port = c.ports[0];
    let applies = "SET synchronous_commit = remote_apply; INSERT INTO t VALUES (1)";
    let waits = tokio::task::spawn_blocking(move || sql_at(port, applies));
    // Both have flushed it, and the first has applied it.
    m.until("n2 to show it", |_| c.sql(1, "SELECT count(*) FROM t") == "1").await;
    let (at_primary, shown) = (c.sql(0, "SELECT count(*) FROM t"), Clock.now());
    // Others commit meanwhile, and are confirmed by what is flushed.
    c.sql(0, "CREATE TABLE other(v int)");
    let since = |s: &LagSnapshot| s.primary.as_ref().is_some_and(|p| p.sent_at > shown);
    let held = |s: &LagSnapshot| s.standbys[1].sample.as_ref().map(|held| held.replay_lsn);
    m.until("samples of after that", |s| since(s) && held(s).is_some()).await;
    let sampled = m.handle.lag().borrow().clone();
    let (until, applied) = (confirmed(&sampled), sampled.primary.as_ref().and_then(|p| p.applied_lsn));
    let held = held(&sampled);
    c.sql(2, "SELECT pg_wal_replay_resume()");
    waits.await.expect("it was committed");
    assert_eq!(at_primary, "0", "the primary does not show it");
    assert!(until.is_none_or(|until| until <= shown), "{until:?}, shown at {shown:?}");
    assert!(
        applied.is_some() && applied <= held,
        "no more is applied than where replay stands still: {applied:?}, {held:?}"
    );
    m.until("it to be confirmed", |s| confirmed(s).is_some_and(|until| until > shown)).await;
    // Also when there are fewer standbys than commits wait for.
    c.sql(0, "ALTER SYSTEM SET synchronous_standby_names = 'ANY 3 (n2, n3, nobody)'");
    c.sql(0, "SELECT pg_reload_conf()");
    let flushed = |s: &LagSnapshot| s.primary.as_ref().map(|p| p.flushed_until);
    m.until("too few standbys", |s| flushed(s) == Some(None)).await;
    assert!(confirmed(&m.handle.lag().borrow()).is_some_and(|until| until > shown), "it stays so");
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

#[tokio::test]
async fn a_cascade_is_named_and_slots_and_subscribers_are_shown_as_what_they_are() {
    let mut c = Cluster::start(1);
    assert_eq!(c.add(1), 2);
    c.sql(0, "SELECT pg_create_physical_replication_slot('kept', true)");
    c.sql(0, "SELECT pg_create_logical_replication_slot('decoded', 'test_decoding')");
    let _subscriber = c.subscriber("decoded");
    let m = monitor(&c);
    c.sql(0, "INSERT INTO t SELECT generate_series(1, 20000)");
    m.until("both standbys at zero", |s| is_zero(s, 1) && is_zero(s, 2)).await;
    let from = |s: &LagSnapshot, i: usize| s.standby(&n(i)).and_then(|s| s.detail.upstream.clone());
    m.until("who streams from whom", |s| {
        from(s, 1) == Some(Upstream::Primary) && from(s, 2) == Some(Upstream::Cascade(n(1)))
    })
    .await;
    let shown = m
        .until_shown("the subscriber at the primary, and what every node tells", |shown| {
            let senders = |node: usize| shown["nodes"][node]["senders"].as_array().map(Vec::len);
            (0..3).all(|node| shown["nodes"][node]["node"] == n(node).as_str())
                && (senders(0), senders(1)) == (Some(2), Some(1))
        })
        .await;
    let kinds = |node: usize, list: &str, name: &str| -> Vec<(String, String)> {
        let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
        let list = shown["nodes"][node][list].as_array().unwrap();
        list.iter().map(|entry| (text(&entry[name]), text(&entry["kind"]))).collect()
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(kinds(0, "senders", "application_name"), [pair("n2", "standby"), pair("pg_recvlogical", "logical")]);
    assert_eq!(kinds(1, "senders", "application_name"), [pair("n3", "standby")]);
    assert_eq!(kinds(0, "slots", "slot"), [pair("decoded", "logical"), pair("kept", "physical")]);
    // All run on this machine: they sort alike, and say by what.
    for node in 0..3 {
        let told = &shown["nodes"][node];
        assert!(told["collations"].as_str().is_some_and(|text| text.contains("icu ")), "{told}");
        assert_eq!(told["sorts_otherwise"], false);
    }
    let kept = &shown["nodes"][0]["slots"][1];
    assert!(kept["active"] == false && kept["wal_status"] == "reserved", "{kept}");
    assert_eq!((&m.shown(2)["streams_from"], &m.shown(2)["upstream"]), (&"n2".into(), &"cascade".into()));
    assert_eq!((&m.shown(1)["streams_from"], &m.shown(1)["upstream"]), (&"n1".into(), &"primary".into()));
    c.sql(0, "INSERT INTO t SELECT generate_series(1, 20000)");
    m.until_shown("the slot to keep it", |shown| {
        shown["nodes"][0]["slots"][1]["retained_bytes"].as_u64() > Some(1 << 20)
    })
    .await;
    let text = m.metrics();
    for want in [
        "pgtenure_lagmon_upstream{kind=\"cascade\",node=\"n3\"} 1\n",
        "pgtenure_lagmon_senders{kind=\"logical\",node=\"n1\"} 1\n",
        "pgtenure_lagmon_senders{kind=\"standby\",node=\"n1\"} 1\n",
        "pgtenure_lagmon_slot_active{node=\"n1\",slot=\"decoded\"} 1\n",
        "pgtenure_lagmon_slot_wal_status{node=\"n1\",slot=\"kept\",status=\"reserved\"} 1\n",
        "pgtenure_lagmon_slot_retained_bytes{node=\"n1\",slot=\"kept\"}",
        "pgtenure_lagmon_stream_age_seconds{node=\"n3\"}",
    ] {
        assert!(text.contains(want), "{want} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_primary_that_stops_at_the_end_of_a_page_has_a_lag_of_zero() {
    const PAGE: u64 = 8192;
    let c = Cluster::start(1);
    let m = monitor(&c);
    let emit = |length: u64| {
        c.sql(0, &format!("SELECT pg_logical_emit_message(false, 'x', repeat('x', {length}))"));
        let end = c.sql(0, "SELECT pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap();
        (end.0, end.0 % PAGE)
    };
    let mut at_the_end = 0;
    for _ in 0..40 {
        let ((before, _), (after, place)) = (emit(1000), emit(1000));
        if after - before > 1200 || place < 24 || PAGE - place < 300 {
            continue;
        }
        // Records are padded to eight bytes: 1000 more or fewer bytes of text are as many of WAL.
        let overhead = after - before - 1000;
        let (end, _) = emit(PAGE - place - overhead);
        at_the_end += u32::from([24, 40].contains(&(end % PAGE)));
        let reached = |s: &LagSnapshot| s.primary.as_ref().is_some_and(|p| p.insert_lsn.0 + 40 >= end);
        // Else a session would wait for a standby that has all there is.
        let covers = |s: &LagSnapshot| {
            let replayed = s.standby(&n(1)).and_then(|s| s.sample.as_ref()).map(|sample| sample.replay_lsn);
            s.primary.as_ref().zip(replayed).is_some_and(|(primary, replayed)| primary.insert_lsn <= replayed)
        };
        m.until("the standby at zero", |s| reached(s) && is_zero(s, 1) && covers(s)).await;
        if at_the_end == 3 {
            return;
        }
    }
    panic!("only {at_the_end} records ended with their page");
}

#[tokio::test]
async fn a_server_that_ends_is_unreachable_at_once_and_not_only_at_the_next_probe() {
    let mut c = Cluster::start(1);
    // Longer than this test waits for what it is about.
    let long = Span::secs(60);
    let raw = Raw {
        probe_interval: long,
        probe_timeout: long,
        tcp_user_timeout: long,
        detail_interval: long,
        ..Raw::default()
    };
    let m = monitor_with(&c, raw);
    m.until("a first sample", |s| lag(s, 1).is_some_and(|l| l.is_ok())).await;
    c.stop(1);
    let unreachable = |s: &LagSnapshot| lag(s, 1) == Some(Err(LagUnknown::Unreachable));
    m.until_within(BEFORE_THE_NEXT, "the dead standby unreachable", unreachable).await;
    c.stop(0);
    m.until_within(BEFORE_THE_NEXT, "no primary", |s| s.primary.is_none()).await;
}

#[tokio::test]
async fn a_server_that_asks_for_the_password_itself_gets_none() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let impostor = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = impostor.local_addr().unwrap().port();
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut secret, b"the secret\n").unwrap();
    let raw = Raw { monitor_password_file: Some(secret.path().to_owned()), ..Raw::default() };
    let postgres = Endpoint { host: "127.0.0.1".to_owned(), port };
    let primary = Some(Member { node: n(0), postgres, fenced: false, candidate: true, zone: None });
    let shown = Topology { term: Term(1), gate: Gate::Open, primary, ..Topology::unknown() };
    let (_topology, shown) = watch::channel(shown);
    let _handle = start(check(raw).unwrap(), shown, &Registry::new()).unwrap();
    // In clear, and by MD5.
    for demand in [&b"R\0\0\0\x08\0\0\0\x03"[..], b"R\0\0\0\x0c\0\0\0\x05salt"] {
        let (mut login, _) = tokio::time::timeout(Duration::from_secs(60), impostor.accept()).await.unwrap().unwrap();
        let length = login.read_u32().await.unwrap();
        let mut startup = vec![0; length as usize - 4];
        login.read_exact(&mut startup).await.unwrap();
        login.write_all(demand).await.unwrap();
        let mut more = Vec::new();
        // One that has given up meanwhile is gone before it has read the demand: an error.
        let _ = login.read_to_end(&mut more).await;
        assert_eq!(more, b"", "the password, or what is as good");
    }
}
