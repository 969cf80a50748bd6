//! Reads at a standby whose recovery needs what they read, against real PostgreSQL: each kind of conflict.

use super::common::raw::{Raw, ok, value, words};
use super::common::{Cluster, Node, dial, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::{Read, Write};

/// A cluster with one standby, which waits so long before it cancels what is in the way of its recovery.
fn start(delay: &str) -> Cluster {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        // On a loaded machine a sample of the tests' own monitor may take long.
        raw.max_replay_lag = cluster::config::Span::secs(10);
        // It looks at its own node's sessions, and is to.
        raw.allow_functions = vec!["deadlocks".into()];
    });
    cluster.nodes[0].psql("create table t(n int); insert into t select generate_series(1, 5); grant all on t to app");
    cluster.replicate();
    cluster.nodes[1].psql(&format!("alter system set max_standby_streaming_delay = '{delay}'"));
    cluster.nodes[1].psql("select pg_reload_conf()");
    cluster
}

/// A client whose reads the standby serves, and whose functions are known.
fn reader(cluster: &Cluster, parameters: &[(&str, &str)]) -> Raw {
    let mut client = Raw::login(cluster.port, parameters);
    wait_for("the standby to serve reads", || {
        (value(&mut client, "select current_setting('cluster_name'), abs(1)") == "n2 1").then_some(())
    });
    client
}

/// Wait until so many statements of clients run there, all of which sleep: what they read is settled then. Active is also
/// a new connection that is asked something at its login, and a statement that has no snapshot yet.
fn runs(node: &Node, count: usize) {
    wait_for("statements to run at the standby", || {
        let asleep = "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'PgSleep'";
        (node.psql(asleep) == count.to_string()).then_some(())
    });
}

fn retried(cluster: &Cluster) -> f64 {
    cluster.counter_of("pgtenure_proxy_retries_total", "recovery_conflict")
}

#[test]
fn a_read_whose_rows_are_removed_runs_again_elsewhere() {
    let cluster = start("0");
    let mut a = reader(&cluster, &[]);
    let [mut block, mut idle] = [(); 2].map(|()| reader(&cluster, &[]));
    for client in [&mut block, &mut idle] {
        ok(client, "begin isolation level repeatable read read only");
    }
    assert_eq!(value(&mut idle, "select count(*), current_setting('cluster_name') from t"), "5 n2");
    let slow = "select count(*), current_setting('cluster_name') \
                from t, pg_sleep(case current_setting('in_hot_standby', true) when 'on' then 60 else 0 end)";
    a.write(|out| write_query(out, slow));
    block.write(|out| write_query(out, slow));
    runs(&cluster.nodes[1], 2);
    cluster.nodes[0].psql("delete from t where n = 1");
    // Again where somebody looked at the database just then, and the row was kept for that. Nobody asks the standby: that would
    // be in recovery's way, too.
    wait_for("recovery to need what they read", || {
        cluster.nodes[0].psql("vacuum t");
        (retried(&cluster) >= 1.0).then_some(())
    });
    assert_eq!(words(&a.until_ready()), "T | D 4 n1 | C SELECT 1 | Z I");
    assert_eq!(words(&block.until_ready()), "T | D 4 n1 | C SELECT 1 | Z T");
    // One that has read there, and is between two statements: the server ends its connection. Recovery goes from one to the
    // next: on a busy machine it may have come to this one only as it runs again.
    let told = words(&idle.query("select count(*) from t"));
    assert!(["E 40001 | Z E", "T | E 40001 | Z E"].contains(&&*told), "{told}");
    assert_eq!(words(&idle.query("rollback")), "C ROLLBACK | Z I");
    assert_eq!(value(&mut idle, "select count(*) from t"), "4");
    let conflicts = || cluster.nodes[1].psql("select sum(confl_snapshot) from pg_stat_database_conflicts");
    wait_for("the standby to count them", || (conflicts().parse::<u32>().ok()? >= 3).then_some(()));
    assert_eq!(retried(&cluster), 2.0);
    assert_eq!(cluster.counter("pgtenure_proxy_misroutes_total"), 0.0, "the text is not to blame");
}

/// Its server ends before it has obeyed.
#[test]
fn a_read_that_its_client_has_cancelled_does_not_run_again_elsewhere() {
    let cluster = start("-1");
    let mut a = reader(&cluster, &[]);
    let cancelled = |a: &mut Raw, told: &str| {
        a.write(|out| write_query(out, "select pg_sleep(600) from t"));
        runs(&cluster.nodes[1], 1);
        let pid = cluster.nodes[1].psql("select pid from pg_stat_activity where wait_event = 'PgSleep'");
        let backend = Pid::from_raw(pid.parse().unwrap());
        kill(backend, Signal::SIGSTOP).unwrap();
        let mut request = dial(cluster.port);
        request.write_all(&cancel_request(a.key.0, a.key.1)).unwrap();
        assert_eq!(request.read(&mut [0]).unwrap(), 0);
        cluster.nodes[1].psql(&format!("select pg_terminate_backend({pid})"));
        kill(backend, Signal::SIGCONT).unwrap();
        assert_eq!(words(&a.until_ready()), told);
    };
    cancelled(&mut a, "E 57014 | Z I");
    ok(&mut a, "begin read only");
    cancelled(&mut a, "E 57014 | Z E");
    ok(&mut a, "rollback");
    assert_eq!(value(&mut a, "select count(*) from t"), "5");
}

/// The startup process waits for a page that the read has pinned, and the read for a lock that the startup process holds
/// for a prepared transaction.
#[test]
fn a_read_that_deadlocks_with_recovery_runs_again_elsewhere() {
    let cluster = start("-1");
    let [primary, standby] = &cluster.nodes[..] else { panic!("two nodes") };
    for sql in [
        "create table pinned(n int)",
        "create table held(n int)",
        "insert into pinned values (1)",
        "grant select on pinned to app",
        "create function deadlocks() returns bigint language plpgsql stable security definer as $$ begin
           while pg_is_in_recovery() and not exists (select from pg_stat_activity
               where backend_type = 'startup' and wait_event_type = 'BufferPin') loop
             perform pg_sleep(0.01), pg_stat_clear_snapshot();
           end loop;
           return (select count(*) from held);
         end $$",
        "begin; lock table held in access exclusive mode; prepare transaction 'holder'",
    ] {
        primary.psql(sql);
    }
    wait_for("the standby to hold the lock", || {
        let locks = "select count(*) from pg_locks where relation = 'held'::regclass and mode = 'AccessExclusiveLock'";
        (standby.try_psql(locks).ok()? == "1").then_some(())
    });
    let deadlock = |client: &mut Raw| {
        // Rows of an aborted transaction: to remove them needs the page, and nobody's snapshot is in the way.
        primary.psql("begin; insert into pinned values (2), (3); rollback");
        client.write(|out| write_query(out, "select deadlocks(), current_setting('cluster_name') from pinned"));
        runs(standby, 1);
        primary.psql("vacuum pinned");
    };
    // As the standby says it, without us.
    let mut direct = Raw::login(standby.port, &[]);
    deadlock(&mut direct);
    assert_eq!(words(&direct.until_ready()), "T | E 40P01 | Z I");
    // The first session: its catalog has the function.
    let mut a = reader(&cluster, &[]);
    deadlock(&mut a);
    wait_for("the read to run again", || (retried(&cluster) == 1.0).then_some(()));
    // At the primary it waits for the lock as anybody does.
    primary.psql("rollback prepared 'holder'");
    assert_eq!(words(&a.until_ready()), "T | D 0 n1 | C SELECT 1 | Z I");
}

#[test]
fn a_read_in_a_database_that_is_dropped_is_told_what_the_primary_says() {
    let cluster = start("-1");
    cluster.nodes[0].psql("create database extra");
    wait_for("the standby to have the database", || {
        let found = "select count(*) from pg_database where datname = 'extra'";
        (cluster.nodes[1].psql(found) == "1").then_some(())
    });
    let mut a = reader(&cluster, &[("database", "extra")]);
    a.write(|out| write_query(out, "select pg_sleep(60)"));
    runs(&cluster.nodes[1], 1);
    cluster.nodes[0].psql("drop database extra with (force)");
    // The standby ends it with 57P04, and where it runs next there is no such database either.
    assert_eq!(words(&a.until_ready()), "E 3D000 | Z I");
    assert_eq!(retried(&cluster), 1.0);
    drop(a);
    let refused = || {
        let output = cluster.client("psql").env("PGDATABASE", "extra").args(["-XAtc", "select 1"]).output();
        let said = String::from_utf8_lossy(&output.expect("psql can be started").stderr).into_owned();
        assert!(said.contains("FATAL:  database \"extra\" does not exist"), "{said}");
    };
    // Nor does a login succeed there.
    refused();
    // Connections that are open for nobody are in nobody's way.
    cluster.nodes[0].psql("create database extra owner app");
    cluster.nodes[0].psql("alter role app createdb");
    ok(&mut Raw::login(cluster.port, &[("database", "extra")]), "create table t ()");
    let mut b = Raw::login(cluster.port, &[]);
    let control = cluster.handle.as_ref().expect("it runs").control();
    wait_for("the client to have left", || (control.clients() == 1).then_some(()));
    ok(&mut b, "drop database extra");
    refused();
}
