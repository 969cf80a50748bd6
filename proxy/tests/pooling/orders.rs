//! PAUSE, RESUME, RECONNECT, KILL, DISABLE and ENABLE, and what they do to who is served and who waits.

use super::common::raw::Raw;
use super::common::{self, Cluster, dial, wait_for};
use super::{LIMIT, app, order, refused, view, wait_until_waiting, waiting, words};
use cluster::config::Span;
use proxy::config::PoolMode;
use proxy::config::pools::Database;
use proxy::pool::admin::OrderError;
use proxy::pool::{Order, Scope};
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::Write;
use std::time::Duration;

/// A worker is to hear of an order within it, and not to have it done.
const IN_VAIN: Duration = Duration::from_secs(2);

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
    // On a busy machine it may still be asked what the statement before has left.
    wait_for("the old one to be closed", || {
        let is_old = |pid: u32| old_b.contains(&format!("D {pid} "));
        view(&c).servers.iter().all(|s| !is_old(s.pid)).then_some(())
    });
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
