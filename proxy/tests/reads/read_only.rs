//! The addresses for clients that only read, against a real primary and a real standby, and with real libpq.

use super::common::raw::{Raw, bind, execute, ok, parse, run, sync, value, words};
use super::common::{Cluster, PASSWORD, bin, wait_for};
use std::process::Command;

const WHERE: &str = "select current_setting('cluster_name')";

const SCHEMA: &str = "create table t(n int); create sequence s;
    create function writes() returns int language plpgsql as 'begin insert into t values (1); return 1; end';
    create function frees() returns text language plpgsql as
        $$ begin return set_config('default_transaction_read_only', 'off', false); end $$;
    create procedure commits() language plpgsql as
        $$ begin commit; set transaction read write; insert into t values (2); end $$;
    grant all on t, s to app";

/// A cluster with one standby, and its read-only port.
fn start() -> (Cluster, u16) {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(10);
        raw.listen_read_only = Some(([127, 0, 0, 1], 0).into());
    });
    cluster.nodes[0].psql(SCHEMA);
    let port = cluster.handle.as_ref().expect("the proxy runs").read_only_addrs[0].port();
    (cluster, port)
}

/// Wait until the standby has the schema and serves this session, for reads and for what is not proven to be such.
fn settle(client: &mut Raw) {
    wait_for("the standby to serve reads", || {
        let seen = words(&client.query("select current_setting('cluster_name'), random() > 2, count(*) from t"));
        seen.contains("D n2 f 0").then_some(())
    });
}

/// What SQL is refused with, and the state that leaves.
fn refusal(client: &mut Raw, sql: &str) -> String {
    let seen = words(&client.query(sql));
    // A description of rows may come before it, and what the statements before it did.
    let at = seen.find("E ").unwrap_or_else(|| panic!("{sql}: {seen}"));
    seen[at..].to_owned()
}

/// Every way to write, and every way to be allowed to: the state of the session is as it was behind each.
const WRITES: [(&str, &str); 12] = [
    ("insert into t values (1)", "E 25006 | Z I"),
    ("with x as (insert into t values (1) returning n) select * from x", "E 25006 | Z I"),
    ("create table u(n int)", "E 25006 | Z I"),
    ("create temp table u(n int)", "E 25006 | Z I"),
    ("select nextval('s')", "E 25006 | Z I"),
    ("select n from t for update", "E 25006 | Z I"),
    ("select writes()", "E 25006 | Z I"),
    ("do 'begin insert into t values (1); end'", "E 25006 | Z I"),
    ("begin read write", "E 0A000 | Z I"),
    ("start transaction isolation level repeatable read, read write", "E 0A000 | Z I"),
    ("begin; insert into t values (1); commit", "E 25006 | Z E"),
    ("commit; begin read write; insert into t values (1); commit", "E 0A000 | Z I"),
];

#[test]
fn libpq_finds_it_by_every_kind_of_target_session_attrs() {
    let (cluster, reads) = start();
    let writes = cluster.port;
    for (wanted, port) in [
        ("any", None),
        ("read-write", Some(writes)),
        ("primary", Some(writes)),
        ("read-only", Some(reads)),
        ("standby", Some(reads)),
        ("prefer-standby", Some(reads)),
    ] {
        for ports in [[writes, reads], [reads, writes]] {
            let dsn = format!(
                "host=127.0.0.1,127.0.0.1 port={},{} user=app dbname=app target_session_attrs={wanted}",
                ports[0], ports[1]
            );
            let mut psql = Command::new(bin("psql"));
            psql.env("PGPASSWORD", PASSWORD).args(["-XAt", "-d", &dsn, "-c", "\\echo :PORT"]);
            let output = psql.output().expect("psql can be started");
            let at = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(at, port.unwrap_or(ports[0]).to_string(), "{wanted} of {ports:?}: {errors}");
        }
    }
}

#[test]
fn its_sessions_are_as_those_of_a_standby() {
    let (cluster, port) = start();
    let mut a = Raw::login(port, &[("default_transaction_read_only", "off")]);
    let told = |name: &str| a.settings.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    assert_eq!(told("in_hot_standby").as_deref(), Some("on"));
    assert_eq!(told("default_transaction_read_only").as_deref(), Some("on"));
    settle(&mut a);
    assert_eq!(value(&mut a, "show transaction_read_only"), "on");
    assert_eq!(value(&mut a, "select pg_is_in_recovery()"), "t");
    for (sql, want) in WRITES {
        assert_eq!(refusal(&mut a, sql).split(" | ").last(), want.split(" | ").last(), "{sql}");
        ok(&mut a, "rollback");
    }
    for (sql, want) in &WRITES[..10] {
        assert_eq!(refusal(&mut a, sql), *want, "{sql}");
    }
    // Locks that others would not see are not given.
    assert_eq!(refusal(&mut a, "select pg_advisory_lock(1)"), "E 0A000 | Z I");
    ok(&mut a, "prepare l as select pg_advisory_xact_lock(1)");
    assert_eq!(refusal(&mut a, "execute l"), "E 0A000 | Z I");
    // A standby takes these, and nothing follows from them.
    for sql in [
        "set default_transaction_read_only = off",
        "set session characteristics as transaction read write",
        "select frees()",
        "do $$ begin perform set_config('default_transaction_read_only', 'off', false); end $$",
    ] {
        ok(&mut a, sql);
        assert_eq!(value(&mut a, "show transaction_read_only"), "on", "{sql}");
        assert_eq!(refusal(&mut a, "insert into t values (1)"), "E 25006 | Z I", "{sql}");
    }
    // Blocks, and settings, as anywhere.
    ok(&mut a, "begin");
    assert_eq!(value(&mut a, WHERE), "n2");
    assert_eq!(refusal(&mut a, "insert into t values (1)"), "E 25006 | Z E");
    ok(&mut a, "rollback");
    ok(&mut a, "begin");
    assert_eq!(refusal(&mut a, "set transaction read write"), "E 0A000 | Z E");
    ok(&mut a, "rollback");
    ok(&mut a, "set work_mem = '3MB'");
    wait_for("the setting at the standby", || {
        let seen = value(&mut a, "select current_setting('cluster_name'), current_setting('work_mem') from (select) x");
        (seen == "n2 3MB").then_some(())
    });
    // The other port is as ever, for the same user.
    let mut b = Raw::login(cluster.port, &[]);
    assert!(b.settings.iter().any(|(n, v)| n == "in_hot_standby" && v == "off"));
    ok(&mut b, "insert into t values (7)");
    assert_eq!(cluster.nodes[0].psql("select sum(n) from t"), "7");
}

#[test]
fn a_primary_in_place_of_the_standby_gets_only_what_cannot_write() {
    let (cluster, port) = start();
    let mut a = Raw::login(port, &[("options", "-c default_transaction_read_only=off")]);
    settle(&mut a);
    // What was set at the standby must not come along.
    ok(&mut a, "set default_transaction_read_only = off");
    ok(&mut a, "set work_mem = '3MB'");
    assert_eq!(value(&mut a, WHERE), "n2");
    cluster.publish(|t| t.standbys.clear());
    wait_for("the catalog to tell what only reads", || {
        let seen = words(&a.query("select current_setting('cluster_name'), current_setting('work_mem')"));
        seen.contains("D n1 3MB").then_some(())
    });
    for sql in ["show transaction_read_only", "show default_transaction_read_only"] {
        assert_eq!(value(&mut a, sql), "on");
    }
    for (sql, want) in &WRITES[..10] {
        assert_eq!(refusal(&mut a, sql), *want, "{sql}");
    }
    for sql in [
        "set default_transaction_read_only = off",
        "set \"default_transaction_read_only\" = off",
        "set session characteristics as transaction read write",
        "select set_config('default_transaction_read_only', 'off', false)",
        "select frees()",
        "do $$ begin perform set_config('default_transaction_read_only', 'off', false); end $$",
        "call commits()",
        "begin; insert into t values (1); commit",
        "rollback; begin read write; insert into t values (1); commit",
        "reset default_transaction_read_only; insert into t values (1)",
    ] {
        assert_eq!(refusal(&mut a, sql), "E 25006 | Z I", "{sql}");
        assert_eq!(value(&mut a, "show transaction_read_only"), "on", "{sql}");
    }
    for (sql, want) in [
        ("insert into t values (1)", "E 25006 | Z E"),
        ("set transaction read write", "E 0A000 | Z E"),
        ("set transaction_read_only = off", "E 25006 | Z E"),
        ("rollback and chain; insert into t values (1)", "E 25006 | Z E"),
    ] {
        ok(&mut a, "begin");
        assert_eq!(refusal(&mut a, sql), want);
        assert_eq!(refusal(&mut a, "insert into t values (1)"), "E 25P02 | Z E");
        ok(&mut a, "rollback");
    }
    // So does the extended protocol, also when the portal was bound before.
    a.write(|out| {
        run(out, "insert into t values (1)");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "E 25006 | Z I");
    ok(&mut a, "begin");
    a.write(|out| {
        parse(out, "p", "insert into t values (1)");
        bind(out, "", "p", &[]);
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | 2 | Z T");
    a.write(|out| {
        execute(out, "");
        run(out, "set work_mem = '4MB'");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "E 25006 | Z E");
    ok(&mut a, "rollback");
    // What cannot write goes on.
    ok(&mut a, "set session characteristics as transaction read only");
    ok(&mut a, "begin");
    ok(&mut a, "savepoint a");
    assert_eq!(value(&mut a, "select count(*) from t"), "0");
    ok(&mut a, "commit");
    ok(&mut a, "discard all");
    assert_eq!(value(&mut a, "show transaction_read_only"), "on");
    assert_eq!(cluster.nodes[0].psql("select count(*) from t"), "0");
}

#[test]
fn replication_is_not_served_there() {
    let cluster = Cluster::start(0, |raw| raw.listen_read_only = Some(([127, 0, 0, 1], 0).into()));
    let port = cluster.handle.as_ref().expect("the proxy runs").read_only_addrs[0].port();
    let dsn = format!("host=127.0.0.1 port={port} user=app dbname=app replication=database");
    let mut psql = Command::new(bin("psql"));
    let output = psql.env("PGPASSWORD", PASSWORD).args(["-XAtc", "select 1", "-d", &dsn]).output();
    let errors = String::from_utf8_lossy(&output.expect("psql can be started").stderr).into_owned();
    assert!(errors.contains("replication"), "{errors}");
}
