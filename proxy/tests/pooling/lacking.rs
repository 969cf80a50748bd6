//! Whose word a statement is told that has waited in vain, and who else has to wait because a server refuses somebody.

use super::*;
use nix::sys::signal::{Signal, kill};

#[test]
fn what_lacks_only_a_connection_is_not_told_that_there_is_no_primary() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 1;
        raw.hold_timeout = Span::secs(1);
        raw.query_wait_timeout = Span::millis(1500);
    });
    c.warm();
    let (mut holder, mut waits) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    holder.query("begin");
    let began = std::time::Instant::now();
    assert_eq!(words(&waits.query("select 1")), "E 53300 | Z I");
    assert!(began.elapsed() >= Duration::from_millis(1500), "it waits for as long as configured");
    holder.query("commit");
    // A pause lasts for as long as that, too.
    order(&c, Order::Pause, app(), LIMIT).unwrap();
    let began = std::time::Instant::now();
    assert_eq!(words(&waits.query("select 1")), "E 57P03 | Z I");
    assert!(began.elapsed() >= Duration::from_millis(1500), "it waits for as long as configured");
    // While the gate is shut the other limit holds.
    order(&c, Order::Resume, app(), LIMIT).unwrap();
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    assert_eq!(words(&waits.query("select 1")), "E 57P03 | Z I");
}

#[test]
fn the_time_in_a_full_pool_is_not_taken_from_the_time_a_failover_may_take() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size) = (1, 1);
        raw.hold_timeout = Span::secs(3);
        raw.hold_bytes = cluster::config::Size(64 << 10);
        raw.query_wait_timeout = Span::secs(60);
    });
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin; select pg_sleep(0)");
    let (mut waits, mut second) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let began = std::time::Instant::now();
    let long = format!("select length('{}')", "x".repeat(40_000));
    waits.write(|out| write_query(out, &long));
    wait_until_waiting(&c, 1);
    // There is a bound for what may wait so.
    assert_eq!(words(&second.query(&long)), "E 53300 | Z I");
    wait_for("it to wait longer than what is held", || (began.elapsed() > Duration::from_millis(3500)).then_some(()));
    wait_until_waiting(&c, 1);
    c.publish(|t| t.gate = Gate::Draining);
    assert_eq!(waiting(&c), 1, "it is held");
    c.publish(|t| t.gate = Gate::Open);
    holder.query("commit");
    assert_eq!(words(&waits.until_ready()), "T | D 40000 | C SELECT 1 | Z I");
}

#[test]
fn who_waits_behind_another_is_told_too_that_the_server_takes_no_more() {
    let c = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.hold_timeout = Span::secs(2);
        raw.query_wait_timeout = Span::secs(4);
    });
    c.warm();
    c.nodes[0].psql("alter role app connection limit 1");
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    let (mut first, mut second) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    first.write(|out| write_query(out, "select 1"));
    wait_for("refusals", || (c.counter_of("pgtenure_proxy_server_connects_total", "refused") >= 2.0).then_some(()));
    let began = std::time::Instant::now();
    assert_eq!(words(&second.query("select 1")), "E 53300 | Z I");
    assert!(began.elapsed() >= Duration::from_secs(4), "it waits for as long as configured");
    assert_eq!(words(&first.until_ready()), "E 53300 | Z I");
}

/// What a login with these options is told.
fn refusal(c: &Cluster, database: &str, options: &str) -> String {
    let mut command = c.client("psql");
    command.env("PGDATABASE", database).env("PGOPTIONS", options).env("PGCONNECT_TIMEOUT", "20");
    let output = command.args(["-X", "-c", "select 1"]).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_a_server_says_of_a_login_is_told_at_once_and_hinders_nobody() {
    // What takes its time is held for longer than the test waits.
    let c = Cluster::start(0, |raw| {
        raw.hold_timeout = Span::secs(600);
        raw.workers = 1;
    });
    let node = &c.nodes[0];
    node.psql("create database private owner postgres");
    node.psql("revoke connect on database private from public");
    let said =
        [refusal(&c, "app", "-c no_such=1"), refusal(&c, "app", "-c shared_buffers=1MB"), refusal(&c, "private", "")];
    let want = [
        "unrecognized configuration parameter \"no_such\"",
        "parameter \"shared_buffers\" cannot be changed without restarting the server",
        "permission denied for database \"private\"",
    ];
    for (said, want) in said.iter().zip(want) {
        assert!(said.contains(want), "{said}");
    }
    node.psql("alter database private allow_connections false");
    let said = refusal(&c, "private", "");
    assert!(said.contains("database \"private\" is not currently accepting connections"), "{said}");
}

#[test]
fn a_database_at_its_connection_limit_keeps_no_other_from_connecting() {
    let c = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.query_wait_timeout = Span::secs(60);
    });
    c.nodes[0].psql("alter database app connection limit 1");
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    let mut waiters: Vec<Raw> = (0..3).map(|_| Raw::login(c.port, &[])).collect();
    waiters.iter_mut().for_each(|client| client.write(|out| write_query(out, "select 1")));
    wait_until_waiting(&c, 3);
    // They have been refused, and more than once.
    wait_for("refusals", || (c.counter_of("pgtenure_proxy_server_connects_total", "refused") >= 6.0).then_some(()));
    // Its pool comes after theirs; none of these has had a connection before.
    for round in 0..5 {
        let parameter = format!("{}MB", round + 1);
        let mut other = Raw::login(c.port, &[("database", "postgres"), ("work_mem", &parameter)]);
        assert_eq!(words(&other.query("show work_mem")), format!("T | D {parameter} | C SHOW | Z I"));
    }
    // As of the worker's last tick the last of them may have waited too.
    wait_until_waiting(&c, 3);
    holder.query("commit");
    for client in &mut waiters {
        assert_eq!(words(&client.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    }
}

#[test]
fn a_standby_that_stands_still_keeps_nobody_from_the_primary() {
    let c = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = Span::secs(60);
        raw.login_timeout = Span::secs(4);
        raw.hold_timeout = Span::secs(60);
    });
    let which = "select current_setting('cluster_name')";
    let mut reader = Raw::login(c.port, &[]);
    wait_for("a read at the standby", || words(&reader.query(which)).contains("D n2").then_some(()));
    let mut readers: Vec<Raw> = (0..20).map(|_| Raw::login(c.port, &[("work_mem", "5MB")])).collect();
    let postmaster = c.nodes[1].postmaster();
    kill(postmaster, Signal::SIGSTOP).unwrap();
    // The kernel lets them connect, and nobody answers.
    readers.iter_mut().for_each(|reader| reader.write(|out| write_query(out, which)));
    wait_until_waiting(&c, 20);
    let mut writer = Raw::login(c.port, &[("work_mem", "6MB")]);
    let timeouts = || c.counter_of("pgtenure_proxy_server_connects_total", "timeout");
    let (told, before) = (words(&writer.query("create table t(a int)")), timeouts());
    // Who waited for a turn finds that others had theirs in vain.
    let read: Vec<String> = readers.iter_mut().map(|reader| words(&reader.until_ready())).collect();
    let attempts = timeouts();
    kill(postmaster, Signal::SIGCONT).unwrap();
    assert_eq!((told.as_str(), before), ("C CREATE TABLE | Z I", 0.0));
    assert_eq!(read, vec!["T | D n1 | C SELECT 1 | Z I"; 20]);
    assert!((8.0..16.0).contains(&attempts), "{attempts} attempts");
}
