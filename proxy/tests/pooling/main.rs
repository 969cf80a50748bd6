//! Who gets a server connection, when, and what operators can do about it, against real PostgreSQL.

#[path = "../common/mod.rs"]
mod common;
mod idle;
mod lacking;
mod moved;

use cluster::Role;
use cluster::config::Span;
use cluster::topology::{Closed, Gate};
use common::raw::Raw;
use common::{Cluster, dial, wait_for};
use nix::sys::signal::{Signal, kill};
use proxy::config::PoolMode;
use proxy::config::pools::{Database, User};
use proxy::pool::admin::OrderError;
use proxy::pool::view::{ServerState, View};
use proxy::pool::{Order, Scope};
use proxy::wire::frontend::write_query;
use proxy::wire::startup::{cancel_request, write_startup};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

const LIMIT: Duration = common::DEADLINE;
/// Long enough for what cannot happen to happen.
const SHORT: Duration = Duration::from_millis(300);
/// A worker is to hear of an order within it, and not to have it done.
const IN_VAIN: Duration = Duration::from_secs(2);

fn words(seen: &[String]) -> String {
    seen.join(" | ")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn order(c: &Cluster, order: Order, scope: Scope, limit: Duration) -> Result<(), OrderError> {
    block_on(c.handle.as_ref().unwrap().order(order, scope, limit))
}

fn view(c: &Cluster) -> View {
    block_on(c.handle.as_ref().unwrap().view(LIMIT)).expect("the workers answer")
}

fn app() -> Scope {
    Scope::Database("app".into())
}

/// Statements that are held or wait for a server.
fn waiting(c: &Cluster) -> u64 {
    c.handle.as_ref().unwrap().status().totals.held
}

fn wait_until_waiting(c: &Cluster, n: u64) {
    wait_for("statements to wait", || (waiting(c) == n).then_some(()));
}

/// Send a statement until it is not answered.
fn wait_until_held(c: &Cluster, client: &mut Raw, sql: &str) {
    client.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let (mut sent, mut held) = (false, 0);
    wait_for("statements to be held", || {
        if !sent {
            client.write(|out| write_query(out, sql));
        }
        sent = client.stream.peek(&mut [0]).is_err();
        if !sent {
            client.stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
            client.until_ready();
            client.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        }
        // For a moment also one is that waits for a connection to be made, or to be asked whether it lives.
        held = if sent && waiting(c) > 0 { held + 1 } else { 0 };
        (held > 10).then_some(())
    });
    client.stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
}

/// What the endpoint says to a startup packet it refuses, after the login.
fn refused(c: &Cluster, database: &str) -> String {
    let mut command = c.client("psql");
    command.env("PGDATABASE", database).args(["-X", "-v", "VERBOSITY=verbose", "-c", "select 1"]);
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn waiters_of_all_workers_are_served_in_the_order_they_came() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let mut holder = Raw::login(c.port, &[]);
    holder.query("create table served(at serial, who int)");
    // More clients than workers, each worker has some.
    let mut clients: Vec<Raw> = (0..9).map(|_| Raw::login(c.port, &[])).collect();
    holder.query("begin");
    for (i, client) in clients.iter_mut().enumerate() {
        client.write(|out| write_query(out, &format!("insert into served(who) values ({i})")));
        wait_until_waiting(&c, i as u64 + 1);
        // Between workers the order is kept for those who came at least 20 ms apart.
        std::thread::sleep(Duration::from_millis(40));
    }
    holder.query("commit");
    for client in &mut clients {
        assert_eq!(words(&client.until_ready()), "C INSERT 0 1 | Z I");
    }
    let order = c.nodes[0].psql("select string_agg(who::text, ' ' order by at) from served");
    assert_eq!(order, "0 1 2 3 4 5 6 7 8");
}

#[test]
fn no_worker_starves_while_another_is_busy() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let port = c.port;
    Raw::login(port, &[]).query("create table work(who int)");
    // Eight clients want the only connection all the time; each must get it often.
    let all_there = Arc::new(Barrier::new(8));
    let run = |who: usize| {
        let all_there = all_there.clone();
        std::thread::spawn(move || {
            let mut client = Raw::login(port, &[]);
            all_there.wait();
            for _ in 0..50 {
                let seen = client.query(&format!("insert into work values ({who}); select pg_sleep(0.001)"));
                assert_eq!(seen.last().unwrap(), "Z I", "{seen:?}");
            }
        })
    };
    let threads: Vec<_> = (0..8).map(run).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // When the first had done its 50, each other had done a fair part of its own.
    let least = c.nodes[0].psql(
        "with numbered as (select who, ctid, row_number() over (partition by who order by ctid) n from work),
              first as (select min(ctid) at from numbered where n = 50)
         select min(done) from (select who, count(*) filter (where ctid <= at) done
                                from numbered, first group by who) counts",
    );
    assert!(least.parse::<u32>().unwrap() >= 10, "when the first was done another had done {least} of 50");
}

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
fn pause_waits_for_transactions_and_holds_what_comes() {
    let c = Cluster::start(0, |raw| {
        let own = Database { dbname: Some("app".into()), pool_mode: Some(PoolMode::Session), ..Database::default() };
        raw.databases.insert("own".into(), own);
    });
    let mut busy = Raw::login(c.port, &[]);
    let mut idle = Raw::login(c.port, &[]);
    idle.query("create table t(a int)");
    busy.query("begin");
    busy.query("insert into t values (1)");
    // A pause that does not come about is taken back.
    let error = order(&c, Order::Pause, app(), IN_VAIN).unwrap_err();
    assert!(matches!(error, OrderError::StillInUse { servers: 1, .. }), "{error}");
    assert_eq!(words(&idle.query("select count(*) from t")), "T | D 0 | C SELECT 1 | Z I");
    std::thread::scope(|scope| {
        let paused = scope.spawn(|| order(&c, Order::Pause, app(), LIMIT));
        wait_until_held(&c, &mut idle, "select count(*) from t");
        assert!(!paused.is_finished(), "a transaction runs");
        assert_eq!(words(&busy.query("commit")), "C COMMIT | Z I");
        paused.join().unwrap().unwrap();
    });
    wait_for("all servers to be closed", || {
        (c.nodes[0].psql("select count(*) from pg_stat_activity where usename = 'app'") == "0").then_some(())
    });
    assert_eq!(waiting(&c), 1);
    order(&c, Order::Resume, app(), LIMIT).unwrap();
    assert_eq!(words(&idle.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    assert!(matches!(order(&c, Order::Resume, app(), LIMIT).unwrap_err(), OrderError::Refused(_)));
    // By session it waits for clients to leave, which keep their servers until then: a pause in vain costs them nothing.
    let own = || Scope::Database("own".into());
    let mut keeps = Raw::login(c.port, &[("database", "own")]);
    let pid = words(&keeps.query("select pg_backend_pid()"));
    let error = order(&c, Order::Pause, own(), IN_VAIN).unwrap_err();
    assert!(matches!(error, OrderError::StillInUse { servers: 1, .. }), "{error}");
    assert_eq!(words(&keeps.query("select pg_backend_pid()")), pid);
    drop(keeps);
    order(&c, Order::Pause, own(), LIMIT).unwrap();
    order(&c, Order::Resume, own(), LIMIT).unwrap();
}

#[test]
fn a_pause_that_is_resumed_meanwhile_says_so_and_leaves_the_next_one() {
    let c = Cluster::start(0, |_| {});
    let mut busy = Raw::login(c.port, &[]);
    busy.query("begin");
    let resume = || wait_for("it to be paused", || order(&c, Order::Resume, app(), LIMIT).ok());
    std::thread::scope(|scope| {
        // Longer than this test may wait for anything.
        let first = scope.spawn(|| order(&c, Order::Pause, app(), Duration::from_secs(600)));
        resume();
        assert!(matches!(first.join().unwrap(), Err(OrderError::Resumed)), "while a transaction runs");
        let second = scope.spawn(|| order(&c, Order::Pause, app(), Duration::from_secs(600)));
        // Another one in vain meanwhile: the pause is not its own to take back.
        let mut waits = Raw::login(c.port, &[]);
        wait_until_held(&c, &mut waits, "select 1");
        let error = order(&c, Order::Pause, app(), IN_VAIN).unwrap_err();
        assert!(matches!(error, OrderError::StillInUse { servers: 1, .. }), "{error}");
        assert_eq!((waiting(&c), second.is_finished()), (1, false));
        busy.query("commit");
        second.join().unwrap().unwrap();
        resume();
        assert_eq!(words(&waits.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    });
}

#[test]
fn a_pause_of_all_that_does_not_come_about_leaves_what_was_paused_before() {
    let c = Cluster::start(0, |_| {});
    let other = || Scope::Database("other".into());
    order(&c, Order::Pause, other(), LIMIT).unwrap();
    let mut busy = Raw::login(c.port, &[]);
    busy.query("begin");
    let error = order(&c, Order::Pause, Scope::All, IN_VAIN).unwrap_err();
    assert!(matches!(error, OrderError::StillInUse { servers: 1, .. }), "{error}");
    assert_eq!(words(&Raw::login(c.port, &[]).query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    order(&c, Order::Resume, other(), LIMIT).expect("it is paused still");
    let error = order(&c, Order::Resume, Scope::All, LIMIT).unwrap_err();
    assert!(matches!(error, OrderError::Refused(_)), "{error}");
}

#[test]
fn a_pause_longer_than_the_wait_is_told_and_new_clients_wait_too() {
    let c = Cluster::start(0, |raw| raw.query_wait_timeout = Span::millis(200));
    let mut client = Raw::login(c.port, &[]);
    order(&c, Order::Pause, Scope::All, LIMIT).unwrap();
    assert_eq!(words(&client.query("select 1")), "E 57P03 | Z I");
    order(&c, Order::Resume, Scope::All, LIMIT).unwrap();
    assert_eq!(words(&client.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn reconnect_replaces_every_connection_unnoticed() {
    let c = Cluster::start(0, |_| {});
    let pid = |client: &mut Raw| words(&client.query("select pg_backend_pid()"));
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    b.query("begin");
    let (old_b, old_a) = (pid(&mut b), pid(&mut a));
    order(&c, Order::Reconnect, app(), LIMIT).unwrap();
    assert_ne!(pid(&mut a), old_a);
    assert_eq!(pid(&mut b).replace("Z T", ""), old_b.replace("Z T", ""), "its transaction goes on");
    b.query("commit");
    let pids: Vec<u32> = view(&c).servers.iter().map(|s| s.pid).collect();
    assert!(pids.iter().all(|pid| !old_b.contains(&pid.to_string())), "{pids:?} {old_b}");
}

#[test]
fn kill_ends_sessions_and_servers_and_disable_refuses_clients() {
    let c = Cluster::start(0, |_| {});
    let mut idle = Raw::login(c.port, &[]);
    let (mut in_block, mut alone) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    in_block.query("begin");
    in_block.write(|out| write_query(out, "select pg_sleep(60)"));
    alone.write(|out| write_query(out, "do 'begin perform pg_sleep(60); end'"));
    wait_for("the statements to run", || {
        (c.nodes[0].psql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'") == "2").then_some(())
    });
    order(&c, Order::Kill, app(), LIMIT).unwrap();
    assert_eq!((idle.next(), idle.next()), ("E 57P01".into(), "EOF".into()));
    let seen = words(&in_block.until_ready());
    assert!(seen.ends_with("E 57P01 | EOF"), "{seen}");
    // A statement that commits with its end: whatever was said would be taken for its outcome, which nobody knows.
    assert_eq!(alone.next(), "EOF");
    wait_for("the statements to be cancelled", || {
        (c.nodes[0].psql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'") == "0").then_some(())
    });
    order(&c, Order::Resume, app(), LIMIT).unwrap();
    order(&c, Order::Disable, app(), LIMIT).unwrap();
    let error = refused(&c, "app");
    assert!(error.contains("database \"app\" is not currently accepting connections"), "{error}");
    order(&c, Order::Enable, app(), LIMIT).unwrap();
    assert_eq!(words(&Raw::login(c.port, &[]).query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn the_view_shows_who_does_what() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let mut a = Raw::login(c.port, &[]);
    let mut b = Raw::login(c.port, &[]);
    a.query("begin");
    b.write(|out| write_query(out, "select 1"));
    wait_until_waiting(&c, 1);
    let v = view(&c);
    let pool = &v.pools(cluster::Clock.now(), |_, _| proxy::config::PoolMode::Transaction)[0];
    assert_eq!((pool.cl_active, pool.cl_waiting, pool.sv_active, pool.sv_idle), (1, 1, 1, 0));
    assert!(pool.maxwait > Duration::ZERO);
    let served = v.clients.iter().find(|c| c.server.is_some()).unwrap();
    assert_eq!(served.server.as_ref().unwrap().1, v.servers[0].pid);
    a.query("commit");
    b.until_ready();
    // Its client may have the answer before the server is given back.
    wait_for("the server to be nobody's", || {
        let v = view(&c);
        let idle = v.servers.iter().map(|s| s.state).eq([ServerState::Idle]);
        (idle && v.clients.iter().all(|c| c.server.is_none())).then_some(())
    });
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
fn a_pool_keeps_its_minimum_while_it_has_clients_also_at_a_new_primary() {
    let c = Cluster::start(1, |raw| raw.pools.min_pool_size = 3);
    let backends = |node: usize| {
        c.nodes[node].psql("select count(*) from pg_stat_activity where usename = 'app' and state = 'idle'")
    };
    let client = Raw::login(c.port, &[]);
    wait_for("the pool to be filled", || (backends(0) == "3").then_some(()));
    let pids = || view(&c).servers.iter().map(|server| server.pid).collect::<Vec<_>>();
    let before = wait_for("all to be shown", || Some(pids()).filter(|pids| pids.len() == 3));
    c.nodes[0].psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
    wait_for("the pool to be filled again", || {
        let pids = pids();
        (pids.len() == 3 && pids.iter().all(|pid| !before.contains(pid))).then_some(())
    });
    wait_for("no more than that", || (backends(0) == "3").then_some(()));
    c.fail_over_to(1);
    wait_for("the pool of the new primary to be filled", || (backends(1) == "3").then_some(()));
    // Without clients nobody's keys are kept, and so no connections are made.
    drop(client);
    wait_for("the client to be gone", || view(&c).clients.is_empty().then_some(()));
    c.nodes[1].psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
    wait_for("its connections to be closed", || view(&c).servers.is_empty().then_some(()));
    std::thread::sleep(SHORT);
    assert!(view(&c).servers.is_empty());
}

#[test]
fn a_login_that_nobody_waits_for_is_not_tried_again_and_again() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.pools.min_pool_size) = (1, 1));
    let _client = Raw::login(c.port, &[]);
    wait_for("the pool to be filled", || (view(&c).servers.len() == 1).then_some(()));
    c.nodes[0].psql("alter role app nologin");
    let began = std::time::Instant::now();
    c.nodes[0].psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
    let refused = || c.counter_of("pgtenure_proxy_server_connects_total", "refused");
    let until = |n: f64| wait_for("refusals", || (refused() >= n).then_some(()));
    // Pauses of half a second, one and two at most, and of half of that at least.
    until(4.0);
    assert!(began.elapsed() >= Duration::from_millis(1300), "four attempts in {:?}", began.elapsed());
    c.nodes[0].psql("alter role app login");
    wait_for("the pool to be filled again", || (view(&c).servers.len() == 1).then_some(()));
}

#[test]
fn connections_are_made_while_a_new_primary_is_not_open_yet() {
    let c = Cluster::start(1, |raw| {
        raw.pool_size = 50;
        (raw.connect_timeout, raw.login_timeout) = (Span::secs(60), Span::secs(60));
    });
    let mut clients: Vec<Raw> = (0..3).map(|_| Raw::login(c.port, &[])).collect();
    for client in &mut clients {
        assert_eq!(words(&client.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    }
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    c.nodes[1].promote();
    clients[0].write(|out| write_query(out, "begin; select pg_backend_pid()"));
    let primary = c.nodes[1].member();
    c.publish(|t| {
        t.term = t.term.next();
        t.gate = Gate::Closed(Closed::Opening);
        t.standbys.retain(|s| s.node != primary.node);
        t.primary = Some(primary);
    });
    let made = wait_for("a connection for each client", || {
        let servers = view(&c).servers;
        let idle = servers.iter().filter(|s| s.role == Role::Primary && s.state == ServerState::Idle);
        let pids: Vec<String> = idle.map(|s| s.pid.to_string()).collect();
        (pids.len() == 3 && servers.len() == 3).then_some(pids)
    });
    // A view that says the same again makes no more.
    c.publish(|t| t.revision += 1);
    assert_eq!(view(&c).servers.len(), 3);
    c.publish(|t| t.gate = Gate::Open);
    let answer = words(&clients[0].until_ready());
    let pid = answer.split(" | ").find_map(|frame| frame.strip_prefix("D ")).expect("the pid").to_owned();
    assert!(made.contains(&pid), "{answer} is none of {made:?}");
    // However many wait, a server that is slow to begin is asked for so many at a time.
    const AT_ONCE: usize = 2 * 8;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for mut stream in silent.incoming().map_while(Result::ok) {
            let count = count.clone();
            std::thread::spawn(move || {
                // Nothing is answered. Who else looks at the primary is sent away.
                let mut startup = [0; 1024];
                let length = stream.read(&mut startup).unwrap_or(0);
                if startup[..length].windows(9).any(|w| w == b"user\0app\0") {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                }
            });
        }
    });
    clients.extend((0..2 * AT_ONCE).map(|_| Raw::login(c.port, &[])));
    c.publish(|t| {
        t.term = t.term.next();
        t.primary.as_mut().expect("n2").postgres.port = port;
    });
    for client in &mut clients[3..] {
        client.write(|out| write_query(out, "select 1"));
    }
    wait_until_waiting(&c, 2 * AT_ONCE as u64);
    wait_for("connections to be asked for", || (asked.load(Ordering::SeqCst) >= AT_ONCE).then_some(()));
    std::thread::sleep(SHORT);
    assert_eq!(asked.load(Ordering::SeqCst), AT_ONCE);
}

#[test]
fn limits_and_timeouts_change_while_sessions_live() {
    let mut settings = None;
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 1;
        settings = Some(raw.clone());
    });
    let mut changed = settings.unwrap();
    let control = c.handle.as_ref().unwrap().control();
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    let mut waits = Raw::login(c.port, &[]);
    waits.write(|out| write_query(out, "begin"));
    wait_until_waiting(&c, 1);
    // A larger pool serves who waits already.
    changed.pool_size = 2;
    control.reload(proxy::config::check(changed.clone()).unwrap()).unwrap();
    assert_eq!(words(&waits.until_ready()), "C BEGIN | Z T");
    // A limit holds for what sessions are at already.
    changed.timeouts.idle_in_transaction_timeout = Span::millis(100);
    changed.pool_size = 1;
    control.reload(proxy::config::check(changed.clone()).unwrap()).unwrap();
    assert_eq!(waits.next(), "E 25P03");
    assert_eq!(holder.next(), "E 25P03");
    changed.timeouts.idle_in_transaction_timeout = Span::secs(0);
    control.reload(proxy::config::check(changed.clone()).unwrap()).unwrap();
    let mut after = Raw::login(c.port, &[]);
    after.query("begin");
    let mut second = Raw::login(c.port, &[]);
    second.write(|out| write_query(out, "select 1"));
    wait_until_waiting(&c, 1);
    after.query("commit");
    assert_eq!(words(&second.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    // A user's limit holds over all databases: what is idle in one is closed for who waits in another.
    changed.pool_size = 5;
    changed.users.insert("app".into(), User { max_user_connections: Some(1), ..User::default() });
    changed.databases.insert("alias".into(), Database { dbname: Some("app".into()), ..Database::default() });
    control.reload(proxy::config::check(changed).unwrap()).unwrap();
    let mut elsewhere = Raw::login(c.port, &[("database", "alias")]);
    for _ in 0..2 {
        assert_eq!(words(&after.query("begin")), "C BEGIN | Z T");
        elsewhere.write(|out| write_query(out, "select 1"));
        wait_until_waiting(&c, 1);
        after.query("commit");
        assert_eq!(words(&elsewhere.until_ready()), "T | D 1 | C SELECT 1 | Z I");
        std::mem::swap(&mut after, &mut elsewhere);
    }
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

#[test]
fn kill_ends_those_who_wait_and_a_cancel_request_their_wait() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    let mut waits = Raw::login(c.port, &[]);
    waits.write(|out| write_query(out, "select 1"));
    wait_until_waiting(&c, 1);
    // Who has no server cancels only its own wait.
    let mut request = dial(c.port);
    request.write_all(&cancel_request(waits.key.0, waits.key.1)).expect("the endpoint reads");
    assert_eq!(words(&waits.until_ready()), "E 57014 | Z I");
    assert_eq!(words(&holder.query("select 1")), "T | D 1 | C SELECT 1 | Z T");
    waits.write(|out| write_query(out, "select 1"));
    wait_until_waiting(&c, 1);
    order(&c, Order::Kill, Scope::All, LIMIT).unwrap();
    for client in [&mut holder, &mut waits] {
        assert_eq!((client.next(), client.next()), ("E 57P01".into(), "EOF".into()));
    }
    wait_for("both to be gone", || view(&c).clients.is_empty().then_some(()));
    wait_until_waiting(&c, 0);
    order(&c, Order::Resume, Scope::All, LIMIT).unwrap();
    assert_eq!(words(&Raw::login(c.port, &[]).query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn no_more_is_held_than_hold_bytes() {
    let c = Cluster::start(0, |raw| raw.hold_bytes = cluster::config::Size(64 << 10));
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let long = format!("select length('{}')", "x".repeat(40_000));
    c.publish(|t| t.gate = cluster::topology::Gate::Closed(cluster::topology::Closed::Promoting));
    a.write(|out| write_query(out, &long));
    wait_until_waiting(&c, 1);
    assert_eq!(words(&b.query(&long)), "E 57P03 | Z I");
    // What is small enough waits with it.
    b.write(|out| write_query(out, "select 1"));
    wait_until_waiting(&c, 2);
    c.publish(|t| t.gate = cluster::topology::Gate::Open);
    assert_eq!(words(&a.until_ready()), "T | D 40000 | C SELECT 1 | Z I");
    assert_eq!(words(&b.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    assert_eq!(words(&b.query(&long)), "T | D 40000 | C SELECT 1 | Z I");
}
