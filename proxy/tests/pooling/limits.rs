//! How many connections and clients there may be: of a pool and its reserve, a database, a user, an alias, and of what the
//! server itself allows.

use super::common::raw::Raw;
use super::common::{Cluster, dial, wait_for};
use super::{block_on, refused, view, wait_until_waiting, words};
use cluster::config::Span;
use nix::sys::signal::{Signal, kill};
use proxy::config::PoolMode;
use proxy::config::pools::{Database, User};
use proxy::pool::view::ServerState;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::{cancel_request, write_startup};
use std::io::{Read, Write};

#[test]
fn the_reserve_is_used_by_who_has_waited_long_and_closed_afterwards() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 1;
        raw.pools.reserve_pool_size = 1;
        raw.pools.reserve_pool_timeout = Span::millis(200);
        raw.query_wait_timeout = Span::millis(600);
    });
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    let mut second = Raw::login(c.port, &[]);
    assert_eq!(words(&second.query("begin")), "C BEGIN | Z T", "served by the reserve");
    let mut third = Raw::login(c.port, &[]);
    assert_eq!(words(&third.query("select 1")), "E 53300 | Z I");
    second.query("commit");
    holder.query("commit");
    let open = || view(&c).servers.len();
    assert!(open() <= 2);
    wait_for("the reserve to be closed", || (open() == 1).then_some(()));
}

#[test]
fn a_databases_limit_moves_connections_to_the_pool_that_lacks_one() {
    let c = Cluster::start(0, |raw| {
        raw.pools.max_db_connections = 2;
        let sized = Database {
            dbname: Some("app".into()),
            pool_size: Some(2),
            max_db_connections: Some(0),
            ..Default::default()
        };
        raw.databases.insert("sized".into(), sized);
    });
    let backends = || -> u32 {
        c.nodes[0].psql("select count(*) from pg_stat_activity where usename = 'app'").parse().expect("a number")
    };
    // As does that of a user, whatever its clients begin with.
    for database in ["app", "sized"] {
        let before = backends();
        // Two pools: they differ in a startup parameter.
        let login = |work_mem| Raw::login(c.port, &[("database", database), ("work_mem", work_mem)]);
        let mut a: Vec<Raw> = (0..2).map(|_| login("1MB")).collect();
        for client in &mut a {
            assert_eq!(words(&client.query("begin")), "C BEGIN | Z T");
        }
        for client in &mut a {
            client.query("commit");
        }
        // Both connections are idle in the first pool, maybe on two workers.
        let mut b: Vec<Raw> = (0..2).map(|_| login("2MB")).collect();
        for client in &mut b {
            assert_eq!(words(&client.query("begin")), "C BEGIN | Z T");
        }
        a[0].write(|out| write_query(out, "show work_mem"));
        wait_until_waiting(&c, 1);
        b[0].query("commit");
        assert_eq!(words(&a[0].until_ready()), "T | D 1MB | C SHOW | Z I");
        // They leave later than their sockets are closed.
        wait_for("no more than the limit to be left", || (backends() <= before + 2).then_some(()));
    }
}

#[test]
fn a_limit_of_the_server_moves_connections_to_the_pool_that_lacks_one() {
    let c = Cluster::start(0, |raw| raw.query_wait_timeout = Span::secs(60));
    c.nodes[0].psql("alter role app connection limit 2");
    let mut a: Vec<Raw> = (0..2).map(|_| Raw::login(c.port, &[("work_mem", "1MB")])).collect();
    a.iter_mut().for_each(|client| assert_eq!(words(&client.query("begin")), "C BEGIN | Z T"));
    a.iter_mut().for_each(|client| drop(client.query("commit")));
    // Both are idle in the first pool; a login needs one.
    let mut b = Raw::login(c.port, &[("work_mem", "2MB")]);
    assert_eq!(words(&b.query("begin")), "C BEGIN | Z T");
    // The limit is the database's now, for another user too, and one that is in use is let go when it is given back.
    c.nodes[0].psql("alter role app connection limit -1");
    c.nodes[0].psql("alter database app connection limit 2");
    assert_eq!(words(&a[0].query("begin")), "C BEGIN | Z T");
    b.query("commit");
    b.query("begin");
    a[1].write(|out| write_query(out, "show work_mem"));
    wait_until_waiting(&c, 1);
    b.query("commit");
    assert_eq!(words(&a[1].until_ready()), "T | D 1MB | C SHOW | Z I");
}

#[test]
fn an_alias_has_its_own_limits_and_leads_to_its_database() {
    let c = Cluster::start(0, |raw| {
        let alias = Database {
            dbname: Some("app".into()),
            pool_size: Some(1),
            max_client_connections: Some(1),
            // What the first client leaves is to become idle first.
            query_wait_timeout: Some(Span::secs(60)),
            ..Database::default()
        };
        raw.databases.insert("narrow".into(), alias);
        // And a user a mode of its own, whatever the database: it keeps its server between transactions.
        raw.users.insert("app".into(), User { pool_mode: Some(PoolMode::Session), ..User::default() });
    });
    let mut first = Raw::login(c.port, &[("database", "narrow")]);
    assert_eq!(words(&first.query("select current_database()")), "T | D app | C SELECT 1 | Z I");
    let server = first.query("select pg_backend_pid()");
    let active = || view(&c).servers.iter().filter(|server| server.state == ServerState::Active).count();
    assert_eq!((active(), first.query("select pg_backend_pid()")), (1, server));
    let error = refused(&c, "narrow");
    assert!(error.contains("too many connections for database \"narrow\""), "{error}");
    assert!(error.contains("This proxy takes 1 connections for it."), "{error}");
    assert_eq!(words(&Raw::login(c.port, &[]).query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    drop(first);
    wait_for("the client to be gone", || {
        let gone = view(&c).clients.iter().all(|v| v.database != "narrow");
        gone.then_some(())
    });
    let mut second = Raw::login(c.port, &[("database", "narrow")]);
    assert_eq!(words(&second.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn all_databases_have_a_limit_of_clients_unless_they_have_their_own() {
    let c = Cluster::start(0, |raw| {
        raw.pools.max_db_client_connections = 2;
        raw.databases.insert("wide".into(), Database { max_client_connections: Some(3), ..Database::default() });
        raw.databases.insert("app".into(), Database::default());
    });
    c.nodes[0].psql("create database wide");
    for (database, most) in [("app", 2), ("wide", 3), ("postgres", 2)] {
        let login = || Raw::login(c.port, &[("database", database)]);
        let mut clients: Vec<Raw> = (0..most).map(|_| login()).collect();
        let one_more = || {
            let dsn = format!("{} dbname={database}", c.dsn());
            let refused = block_on(tokio_postgres::connect(&dsn, tokio_postgres::NoTls)).err().expect("one too many");
            let e = refused.as_db_error().expect("told by the endpoint");
            format!("{} {} {}: {}", e.severity(), e.code().code(), e.message(), e.detail().unwrap_or_default())
        };
        let told = format!(
            "FATAL 53300 too many connections for database \"{database}\": This proxy takes {most} connections for it."
        );
        assert_eq!(one_more(), told);
        // Those who are there go on, and when one has left another may come.
        assert_eq!(words(&clients[0].query("select 1")), "T | D 1 | C SELECT 1 | Z I");
        clients.pop();
        wait_for("the client to be gone", || {
            let here = view(&c).clients.iter().filter(|v| v.database == database).count();
            (here == clients.len()).then_some(())
        });
        clients.push(login());
        assert_eq!(one_more(), told);
    }
}

#[test]
fn a_client_that_is_refused_for_its_database_does_not_count() {
    let c = Cluster::start(0, |raw| {
        raw.pools.max_user_client_connections = 1;
        raw.connect_timeout = Span::secs(10);
    });
    // No such database: the login fails at the server, and its place is free again.
    for _ in 0..3 {
        let error = refused(&c, "nowhere");
        assert!(error.contains("database \"nowhere\" does not exist"), "{error}");
    }
    let mut first = Raw::login(c.port, &[]);
    let error = refused(&c, "app");
    assert!(error.contains("too many connections for role \"app\""), "{error}");
    // Nor does a client that has gone, although its request to cancel is still on its way: the postmaster does not take it.
    first.write(|out| write_query(out, "select pg_sleep(600)"));
    let server = wait_for("it to run", || view(&c).clients.iter().find_map(|client| Some(client.server.as_ref()?.1)));
    // One that has not read it yet ignores the signal below.
    let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    wait_for("PostgreSQL to run it", || (c.nodes[0].psql(asleep) == "1").then_some(()));
    let postmaster = c.nodes[0].postmaster();
    kill(postmaster, Signal::SIGSTOP).unwrap();
    let mut request = dial(c.port);
    request.write_all(&cancel_request(first.key.0, first.key.1)).unwrap();
    wait_for("the request to be on its way", || view(&c).clients.iter().any(|c| c.cancels > 0).then_some(()));
    kill(nix::unistd::Pid::from_raw(server.try_into().unwrap()), Signal::SIGINT).unwrap();
    assert!(words(&first.until_ready()).ends_with("E 57014 | Z I"));
    drop(first);
    wait_for("the next client to be let in", || {
        let output = c.client("psql").args(["-X", "-c", "\\q"]).output().unwrap();
        output.status.success().then_some(())
    });
    request.set_nonblocking(true).unwrap();
    let unanswered = request.read(&mut [0]).map_err(|error| error.kind());
    kill(postmaster, Signal::SIGCONT).unwrap();
    assert_eq!(unanswered, Err(std::io::ErrorKind::WouldBlock), "it still is");
    // Who has not proven who it is takes nobody's place.
    let mut stranger = dial(c.port);
    let mut out = Vec::new();
    write_startup(&mut out, [("user", "app"), ("database", "app")].into_iter());
    stranger.write_all(&out).unwrap();
    let mut first = [0];
    stranger.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"R");
}

#[test]
fn a_server_that_takes_no_more_connections_is_waited_for_and_then_told() {
    let c = Cluster::start(0, |raw| raw.query_wait_timeout = Span::secs(2));
    c.nodes[0].psql("alter role app connection limit 1");
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    let mut other = Raw::login(c.port, &[]);
    assert_eq!(words(&other.query("select 1")), "E 53300 | Z I");
    other.write(|out| write_query(out, "select 1"));
    wait_until_waiting(&c, 1);
    holder.query("commit");
    assert_eq!(words(&other.until_ready()), "T | D 1 | C SELECT 1 | Z I");
}
