//! Where reads go: to standbys, never to one that lacks the session's own writes, never to one that is too far behind.

use integration::client::{Client, message};
use integration::cluster::{Cluster, LONG, one_at_a_time};
use integration::config_file::Options;
use integration::fault::FaultProxy;
use integration::wait::wait_for;
use integration::workload::{Readers, Style, Workload};
use nix::sys::signal::Signal;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// `proxy.max_replay_lag`, its default.
const MAX_REPLAY_LAG: Duration = Duration::from_secs(1);

#[test]
fn reads_are_served_by_fresh_standbys_and_never_miss_the_sessions_own_writes() {
    let _turn = one_at_a_time();
    let cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let primary = cluster.active().primary;
    reads_go_to_every_standby(&cluster, &primary);
    a_session_reads_its_own_writes(&cluster);
    staleness_is_bounded(&cluster);
    what_may_write_goes_to_the_primary(&cluster, &primary);
    an_operator_is_told_where_statements_go(&cluster);
    a_paused_standby_serves_nothing(&cluster, &primary);
}

fn reads_go_to_every_standby(cluster: &Cluster, primary: &str) {
    let mut seen = Vec::new();
    let mut probe = cluster.connect();
    // Until the catalog of the database has been read for the first time, everything goes to the primary.
    integration::wait::wait_for("a standby to serve a read", LONG, || {
        let node = probe.query("select current_setting('cluster_name')").map_err(|e| e.to_string())?.value().to_owned();
        if node == primary { Err(node) } else { Ok(()) }
    });
    let readers = Readers::start(&cluster.target(), 4, Duration::from_millis(1));
    integration::wait::wait_for("both standbys to serve reads", LONG, || {
        let node = probe.query("select current_setting('cluster_name')").map_err(|e| e.to_string())?.value().to_owned();
        if node != primary && !seen.contains(&node) {
            seen.push(node);
        }
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let log = readers.finish();
    assert!(log.errors.is_empty(), "{:?}", log.errors);
    // A share is one of many: how many reads there were meanwhile depends on the machine.
    integration::wait::wait_for("standbys to serve most reads of sessions that write nothing", LONG, || {
        let readers = Readers::start(&cluster.target(), 4, Duration::from_millis(1));
        for _ in 0..100 {
            probe.query("select 1").map_err(|e| e.to_string())?;
        }
        let log = readers.finish();
        assert!(log.errors.is_empty(), "{:?}", log.errors);
        let total: usize = log.served_by.values().sum();
        let by_primary = log.served_by.get(primary).copied().unwrap_or(0);
        if total >= 100 && by_primary * 2 < total { Ok(()) } else { Err(format!("{:?}", log.served_by)) }
    });
}

/// Write, then read in autocommit, over and over, while others write: the row is always there.
fn a_session_reads_its_own_writes(cluster: &Cluster) {
    let load = Workload::start(&cluster.target(), 4, &[Style::Autocommit], 500, Duration::from_millis(1));
    let threads: Vec<_> = (0..4)
        .map(|t| {
            let target = cluster.target();
            std::thread::spawn(move || {
                let mut client = Client::connect(&target).expect("the endpoint accepts the application");
                for i in 0..200 {
                    let id = 600_000_000 + t * 1_000_000 + i;
                    client.query(&format!("insert into rows(id) values ({id})")).expect("a row");
                    let count = client.query(&format!("select count(*) from rows where id = {id}")).expect("a read");
                    assert_eq!(count.value(), "1", "row {id} was acknowledged to this session");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no session misses its own write");
    }
    drop(load.finish());
}

/// What another session had acknowledged longer ago than `max_replay_lag` is seen by every read, whoever serves it.
fn staleness_is_bounded(cluster: &Cluster) {
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let (log, stopped, target) = (acknowledged.clone(), stop.clone(), cluster.target());
    let writer = std::thread::spawn(move || {
        let mut client = Client::connect(&target).expect("the endpoint accepts the application");
        for id in 700_000_000u64.. {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            client.query(&format!("insert into rows(id) values ({id})")).expect("a row");
            log.lock().expect("no panic under the lock").push(Instant::now());
        }
    });
    let mut client = cluster.connect();
    let start = Instant::now();
    let mut compared = 0;
    while compared <= 100 || start.elapsed() < Duration::from_secs(4) {
        assert!(start.elapsed() < LONG, "only {compared} reads were late enough to compare");
        let asked = Instant::now();
        let sql = "select count(*) from rows where id between 700000000 and 799999999";
        let seen: usize = client.query(sql).expect("a read").value().parse().expect("a number");
        let old_enough = |t: &&Instant| asked.duration_since(**t) > MAX_REPLAY_LAG;
        let owed = acknowledged.lock().expect("no panic under the lock").iter().filter(old_enough).count();
        assert!(
            seen >= owed,
            "a read saw {seen} rows, {owed} were acknowledged more than {MAX_REPLAY_LAG:?} before it"
        );
        compared += usize::from(owed > 0);
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer does not panic");
}

fn what_may_write_goes_to_the_primary(cluster: &Cluster, primary: &str) {
    let mut client = cluster.connect();
    client
        .query("create or replace function noisy() returns text language plpgsql as $$begin insert into rows values (-1); return current_setting('cluster_name'); end$$")
        .expect("a function");
    for sql in [
        "select noisy()",
        "select current_setting('cluster_name') from (select 1) x for update of x",
        "with w as (insert into rows values (-2) returning 1) select current_setting('cluster_name') from w",
        "begin; select current_setting('cluster_name'); commit",
        "select current_setting('cluster_name'), nextval('numbers')",
    ] {
        if sql.contains("numbers") {
            client.query("create sequence if not exists numbers").expect("a sequence");
        }
        let answer = client.query(sql);
        // FOR UPDATE of a subquery without a table is an error of the statement itself; what matters is that no
        // standby refused it.
        match answer {
            Ok(answer) => assert_eq!(answer.value(), primary, "{sql}"),
            Err(e) => assert_ne!(e.sqlstate(), Some("25006"), "{sql}: {e}"),
        }
    }
}

/// `pgtenure route` asks the proxy that runs, or goes by the text alone.
fn an_operator_is_told_where_statements_go(cluster: &Cluster) {
    let admin = format!("http://{}", cluster.layout().proxy_admin);
    let ask = |sql: &str, at: &[&str]| {
        let names = ["--database", "app", "--user", "app", "--json"];
        cluster.verb(&[&["route", sql], at, &names].concat()).exits(0).json()
    };
    let read = wait_for("a standby to be chosen", LONG, || {
        let told = ask("select count(*) from rows", &["--admin", &admin]);
        if told["target"] == "standby" { Ok(told) } else { Err(told.to_string()) }
    });
    assert!(read["class"] == "read" && read["reason"] == "fresh" && read["catalog"] == true, "{read}");
    assert!(cluster.standbys().iter().any(|node| read["node"] == *node), "{read}");
    let write = ask("select noisy()", &["--admin", &admin]);
    assert!(write["target"] == "primary" && write["decided_by"] == "function" && write["word"] == "noisy", "{write}");
}

/// Replay paused on one standby: within a moment only the other one answers; both paused: the primary does.
fn a_paused_standby_serves_nothing(cluster: &Cluster, primary: &str) {
    let standbys = cluster.standbys();
    let load = Workload::start(&cluster.target(), 2, &[Style::Autocommit], 800, Duration::from_millis(2));
    for standby in &standbys {
        cluster.superuser(standby, "select pg_wal_replay_pause()").expect("replay pauses");
        let paused: Vec<&str> = standbys.iter().take_while(|s| *s != standby).chain([standby]).copied().collect();
        let mut client = cluster.connect();
        let mut in_a_row = 0;
        integration::wait::wait_for("reads to leave the paused standbys", LONG, || {
            let node =
                client.query("select current_setting('cluster_name')").map_err(|e| e.to_string())?.value().to_owned();
            in_a_row = if paused.contains(&node.as_str()) { 0 } else { in_a_row + 1 };
            if in_a_row > 50 { Ok(()) } else { Err(node) }
        });
        // From now on not one read more: the standby's staleness only grows.
        for _ in 0..200 {
            let answer = client.query("select current_setting('cluster_name')").expect("a read");
            assert!(!paused.contains(&answer.value()), "{} answered although its replay is paused", answer.value());
        }
    }
    let answer = cluster.connect().query("select current_setting('cluster_name')").expect("a read");
    assert_eq!(answer.value(), primary, "with both standbys paused the primary reads");
    for standby in &standbys {
        cluster.superuser(standby, "select pg_wal_replay_resume()").expect("replay resumes");
    }
    drop(load.finish());
}

/// The proxy loses etcd, and the agent of the primary stands still; the rest replaces the primary, which goes on answering
/// that proxy. What is committed elsewhere is missing there for no longer than it may.
#[test]
fn a_proxy_that_is_cut_off_with_a_replaced_primary_reads_nothing_too_old() {
    let _turn = one_at_a_time();
    let options = Options { second_proxy: true, proxy: "hold_timeout = \"5s\"\n", ..Options::default() };
    let mut cluster = Cluster::start(&options);
    let etcd = FaultProxy::plain(cluster.layout().etcd.parse().expect("an address")).expect("a port is free");
    cluster.stop_role("proxy");
    let file = cluster.config("proxy");
    let text = std::fs::read_to_string(&file).expect("the proxy's configuration");
    std::fs::write(&file, text.replace(&cluster.layout().etcd, &etcd.addr().to_string())).expect("it can be written");
    cluster.start_role("proxy");
    cluster.endpoint_writes();
    let first = cluster.active();
    let mut elsewhere = Client::connect(&cluster.second_target()).expect("the second proxy accepts");
    elsewhere.query("create table seen(v int); insert into seen values (1)").expect("a table");
    let bounded = [("options", "-c pgtenure.consistency=bounded")];
    let mut here = Client::connect_with(&cluster.target(), &bounded).expect("the proxy accepts");
    assert_eq!(here.query("select v from seen").expect("a read").value(), "1");
    let primary = [("options", "-c pgtenure.consistency=bounded -c pgtenure.read_from=primary")];
    let client = Client::connect_with(&cluster.target(), &primary).expect("the proxy accepts");
    let told = Arc::new(OnceLock::new());
    let ahead = std::thread::spawn({
        let told = told.clone();
        move || asks_ahead(client, &told)
    });

    etcd.hold();
    cluster.role(&first.primary).signal(Signal::SIGSTOP);
    cluster.verb(&["failover"]).exits(0);
    let replaced = cluster.active_after(first.term);
    assert_ne!(replaced.primary, first.primary, "its agent stands still");
    wait_for("a write elsewhere", LONG, || {
        elsewhere.query("update seen set v = 2").map(drop).map_err(|e| e.to_string())
    });
    let acknowledged = Instant::now();
    told.set(acknowledged).expect("it is set once");
    let (mut old, mut newest) = (0, Duration::ZERO);
    let refused = wait_for("the proxy to have no proof of the term left", LONG, || {
        let asked = Instant::now();
        match here.query("select v from seen") {
            Ok(answer) if answer.value() == "1" => {
                (old, newest) = (old + 1, asked.duration_since(acknowledged));
                assert!(newest <= MAX_REPLAY_LAG, "what was replaced {newest:?} before was read, as {old} times");
                Err("an old read within the bound".to_owned())
            }
            Ok(answer) => panic!("{} cannot be known there", answer.value()),
            Err(error) => Ok(error.to_string()),
        }
    });
    println!("{old} reads of what was replaced, the last {newest:?} after that, then: {refused}");
    assert!(refused.contains("57P03"), "{refused}");
    let refused = ahead.join().expect("nothing too old is read by who asks ahead");
    assert!(refused.contains("57P03"), "{refused}");
    cluster.role(&first.primary).signal(Signal::SIGCONT);
    etcd.release();
    wait_for("the proxy to read at the new primary", LONG, || {
        let answer = here.query("select v from seen").map_err(|e| e.to_string())?;
        if answer.value() == "2" { Ok(()) } else { Err(answer.value().to_owned()) }
    });
}

/// A client of the primary that always has reads in flight, until one is refused: why it is. What it asks `MAX_REPLAY_LAG` behind a
/// commit elsewhere does not miss that.
fn asks_ahead(mut client: Client, acknowledged: &OnceLock<Instant>) -> String {
    // Each takes a moment, so that the last is not answered before the next has come.
    const READ: &[u8] = b"select v + 0 * (select count(*) from generate_series(1, 20000)) from seen\0";
    let mut asked = VecDeque::new();
    loop {
        while asked.len() < 8 {
            asked.push_back(Instant::now());
            client.send(&message(b'Q', READ)).expect("it is sent");
        }
        let seen = match client.until_ready() {
            Ok(seen) => seen,
            Err(error) => return error.to_string(),
        };
        let asked = asked.pop_front().expect("it was asked");
        let row = seen.iter().find(|m| m.tag == b'D').expect("a row");
        // One column, behind their number and its length.
        assert_eq!(&row.body[6..], b"1", "no other value can be known there");
        let late = acknowledged.get().map_or(Duration::ZERO, |at| asked.saturating_duration_since(*at));
        assert!(late <= MAX_REPLAY_LAG, "what was replaced {late:?} before was read by who asks ahead");
        assert!(acknowledged.get().is_none_or(|at| at.elapsed() < LONG), "it is refused at last");
    }
}
