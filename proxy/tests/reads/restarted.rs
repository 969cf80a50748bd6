//! A sample of a standby says nothing of a connection that was made after it: the standby may have been restarted in
//! between, and begun again with less.

use super::common::{Cluster, DEADLINE, wait_for};
use cluster::lag::{Detail, LagSnapshot, StandbyLag, StandbySample};
use cluster::{Clock, Instant, Lsn, Term};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// The standby as found at `asked_at`, and with nothing more to replay to this day.
fn snapshot(cluster: &Cluster, asked_at: Instant) -> Arc<LagSnapshot> {
    let sample = StandbySample {
        receive_lsn: Lsn(1),
        replay_lsn: Lsn(1),
        received_timeline: None,
        replay_lag_bytes: Some(0),
        sent_at: Clock.now(),
        asked_at,
        up_since: Instant::from_millis(0),
        started: None,
    };
    let node = cluster.nodes[1].name.clone();
    let standby = StandbyLag { node, sample: Some(sample), replay_lag: Ok(Duration::ZERO), detail: Detail::default() };
    Arc::new(LagSnapshot { term: Term(1), primary: None, standbys: vec![standby], proven_at: None })
}

#[test]
fn a_new_connection_to_a_standby_serves_only_once_the_standby_was_sampled_since() {
    let mut typed = None;
    let cluster = Cluster::start(1, |raw| typed = Some(raw.clone()));
    let config = proxy::config::check(typed.expect("the closure ran")).expect("valid");
    let before = Clock.now();
    let (lag, seen) = watch::channel(snapshot(&cluster, before));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let ask: proxy::AskSample = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let inputs = proxy::Inputs { topology: cluster.topology.subscribe(), lag: seen, ask: Some(ask), ask_view: None };
    let proxy = proxy::start(config, inputs, &prometheus::Registry::new()).expect("the proxy starts");
    let port = proxy.addr.port().to_string();
    let (stop, answers) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, so that a wait that fails below ends the test.
            let begun = std::time::Instant::now();
            while !stop.load(Ordering::SeqCst) && begun.elapsed() < DEADLINE * 2 {
                let mut psql = cluster.client("psql");
                psql.env("PGPORT", &port).env("PGOPTIONS", "-c pgtenure.consistency=bounded");
                psql.args(["-X", "-A", "-t", "-c", "select current_setting('in_hot_standby')"]);
                let output = psql.output().expect("psql can be started");
                answers.lock().unwrap().push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
            }
        });
        wait_for("a read to ask for a sample", || {
            lag.send_replace(snapshot(&cluster, before));
            (asked.load(Ordering::SeqCst) > 0).then_some(())
        });
        let early = answers.lock().unwrap().clone();
        wait_for("the standby to serve a read", || {
            lag.send_replace(snapshot(&cluster, Clock.now()));
            answers.lock().unwrap().iter().any(|a| a == "on").then_some(())
        });
        stop.store(true, Ordering::SeqCst);
        assert!(!early.contains(&"on".to_owned()), "{early:?}");
    });
    drop(proxy);
}

/// Of the harness: its servers are killed and started again a hundred times in these tests, under load.
#[test]
fn a_killed_server_is_gone_and_starts_again_at_once() {
    let mut cluster = Cluster::start(0, |_| ());
    let data = cluster.nodes[0].data.canonicalize().expect("it is there");
    let processes = || {
        let all = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
        all.filter(|p| std::fs::read_link(p.path().join("cwd")).is_ok_and(|cwd| cwd == data)).count()
    };
    for _ in 0..5 {
        assert!(processes() > 5, "a PostgreSQL has several");
        cluster.nodes[0].kill();
        assert_eq!(processes(), 0);
        cluster.nodes[0].start();
    }
    let log = std::fs::read_to_string(data.with_extension("log")).expect("its log");
    assert!(!log.contains("still in use"), "{log}");
}
