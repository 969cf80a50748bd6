//! Who gets a server connection, when, and what operators can do about it, against real PostgreSQL.

#[path = "../common/mod.rs"]
mod common;
mod console;
mod crowd;
mod dropped;
mod held;
mod idle;
mod lacking;
mod limits;
mod moved;
#[cfg(target_os = "linux")]
mod no_ring;
mod orders;
mod takeover;

use cluster::Role;
use cluster::config::Span;
use cluster::topology::{Closed, Gate};
use common::raw::Raw;
use common::{Cluster, wait_for};
use proxy::config::pools::{Database, User};
use proxy::pool::admin::OrderError;
use proxy::pool::view::{ServerState, View};
use proxy::pool::{Order, Scope};
use proxy::wire::frontend::write_query;
use std::io::Read;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

const LIMIT: Duration = common::DEADLINE;
/// Long enough for what cannot happen to happen.
const SHORT: Duration = Duration::from_millis(300);

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
