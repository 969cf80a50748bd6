//! A session that listens, and what becomes of that when its server is lost, or closed with a block that is given up for
//! an error of ours.

use super::common::raw::{Raw, bind, ok, parse, sync, two_servers, value};
use super::common::{self, Cluster, wait_for};
use cluster::topology::{Closed, Gate};
use proxy::config::PoolMode;
use proxy::console::tally::Counter;
use proxy::wire::frontend::write_query;
use std::io::Write;

fn shut(c: &Cluster) {
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
}

fn cancel(c: &Cluster, a: &Raw) {
    let request = proxy::wire::startup::cancel_request(a.key.0, a.key.1);
    let mut socket = common::dial(c.port);
    socket.write_all(&request).unwrap();
    // Dealt with once its connection is closed.
    assert_eq!(std::io::Read::read(&mut socket, &mut [0]).unwrap(), 0);
}

/// It listens to `news`, and is in a block whose statement was cancelled while the gate was closed, as it still is.
fn given_up(c: &Cluster) -> Raw {
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen news");
    ok(&mut a, "begin");
    ok(&mut a, "select 1");
    shut(c);
    a.write(|out| write_query(out, "select 1"));
    // The request may come before the statement, and then has nothing to cancel.
    a.stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    let mut first = [0];
    wait_for("the statement to be cancelled", || {
        cancel(c, &a);
        (a.stream.peek(&mut first).ok()? == 1).then_some(())
    });
    a.stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    assert_eq!(a.until_ready(), ["E 57014", "Z E"]);
    a
}

fn open(c: &Cluster) {
    c.publish(|t| t.gate = Gate::Open);
}

#[test]
fn another_server_listens_once_the_block_is_over() {
    let c = two_servers();
    let mut a = given_up(&c);
    assert_eq!(a.query("rollback"), ["C ROLLBACK", "Z I"]);
    // There is nothing to cancel, however often that is asked.
    cancel(&c, &a);
    cancel(&c, &a);
    open(&c);
    assert_eq!(a.next(), "N 01000");
    c.nodes[0].psql("notify news");
    assert_eq!(a.next(), "A");
}

#[test]
fn what_is_sent_behind_the_end_of_the_block_finds_it_listening() {
    let c = two_servers();
    let (mut stops, mut adds) = (given_up(&c), {
        open(&c);
        given_up(&c)
    });
    stops.write(|out| ["rollback", "unlisten news"].iter().for_each(|sql| write_query(out, sql)));
    adds.write(|out| write_query(out, "rollback; listen more"));
    assert_eq!(stops.until_ready(), ["C ROLLBACK", "Z I"]);
    open(&c);
    assert_eq!(stops.until_ready(), ["N 01000", "C UNLISTEN", "Z I"]);
    assert_eq!(adds.until_ready(), ["C ROLLBACK", "N 01000", "C LISTEN", "Z I"]);
    c.nodes[0].psql("notify news; notify more");
    assert_eq!([adds.next(), adds.next()], ["A", "A"]);
    assert_eq!(ok(&mut stops, "select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
    ok(&mut adds, "unlisten *");
    assert_eq!(ok(&mut adds, "select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
}

#[test]
fn a_statement_that_waits_for_it_can_be_cancelled() {
    let c = two_servers();
    let mut a = given_up(&c);
    a.write(|out| ["rollback", "select 1"].iter().for_each(|sql| write_query(out, sql)));
    assert_eq!(a.until_ready(), ["C ROLLBACK", "Z I"]);
    cancel(&c, &a);
    assert_eq!(a.until_ready(), ["E 57014", "Z I"]);
    open(&c);
    assert_eq!(a.next(), "N 01000");
    c.nodes[0].psql("notify news");
    assert_eq!(a.next(), "A");
}

/// The other way to give a server up: it was to be proven that it is the primary.
#[test]
fn another_server_listens_behind_a_proof_that_was_given_up() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen news");
    ok(&mut a, "set pgtenure.consistency = 'strong'");
    common::raw::let_commits_wait(&c);
    a.write(|out| write_query(out, "select 1"));
    common::raw::wait_until_waiting(&c, 1);
    cancel(&c, &a);
    assert_eq!(a.until_ready(), ["E 57014", "Z I"]);
    assert_eq!(a.next(), "N 01000");
    c.nodes[0].psql("set synchronous_commit = local; notify news");
    assert_eq!(a.next(), "A");
}

/// A function may listen without any text that shows it, as one that was changed elsewhere. What comes for nobody is kept
/// from the next client, and so is what would come.
#[test]
fn what_an_idle_server_is_notified_of_is_nobodys() {
    let c = two_servers();
    c.nodes[0].psql("create function hears() returns void language plpgsql as $$ begin null; end $$");
    let mut a = Raw::login(c.port, &[]);
    c.nodes[0].psql("create or replace function hears() returns void language plpgsql as $$ begin listen news; end $$");
    ok(&mut a, "select hears()");
    let pid = value(&mut a, "select pg_backend_pid()");
    ok(&mut a, "select 1");
    c.nodes[0].psql("notify news, 'one'");
    let mut b = Raw::login(c.port, &[]);
    wait_for("the notification to be taken in, and no more to come", || {
        let seen = ok(&mut b, "select count(*) from pg_listening_channels()");
        assert!(!seen.contains(&"A".to_owned()), "{seen:?}");
        seen.contains(&"D 0".to_owned()).then_some(())
    });
    assert_eq!(value(&mut b, "select pg_backend_pid()"), pid, "the connection is kept");
    c.nodes[0].psql("notify news, 'two'");
    assert_eq!(ok(&mut b, "select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
    // What comes while the next client is served is not that one's either.
    ok(&mut a, "select hears()");
    let pid = value(&mut a, "select pg_backend_pid()");
    ok(&mut b, "begin");
    assert_eq!(value(&mut b, "select pg_backend_pid()"), pid);
    c.nodes[0].psql("notify news, 'three'");
    assert_eq!(ok(&mut b, "commit"), ["C COMMIT", "Z I"]);
    assert_eq!(value(&mut b, "select count(*) from pg_listening_channels()"), "0");
}

#[test]
fn a_listener_is_warned_after_a_failover_and_goes_on_listening() {
    let mut c = Cluster::start(1, |_| {});
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set work_mem = '2MB'");
    ok(&mut a, "listen news; listen \"Odd one\"");
    // Behind this answer its channels are known; lost before, the session ends with 08006.
    ok(&mut a, "select 1");
    c.nodes[0].kill();
    c.fail_over_to(1);
    // It says nothing, and is told all the same.
    assert_eq!(a.next(), "N 01000");
    c.nodes[1].psql("select pg_notify('Odd one', 'x')");
    assert_eq!(a.next(), "A");
    assert_eq!(value(&mut a, "show work_mem"), "2MB");
    ok(&mut a, "notify news");
    let seen = ok(&mut a, "select 1");
    assert!(!seen.is_empty());
    ok(&mut a, "unlisten *");
}

#[test]
fn every_listen_of_a_session_survives_its_server() {
    lose_listeners(PoolMode::Transaction);
}

#[test]
fn so_does_every_listen_of_one_that_keeps_its_server() {
    lose_listeners(PoolMode::Session);
}

/// Each of these is told the channels anew, and a block that is lost takes nothing from what was listened to before it.
fn lose_listeners(mode: PoolMode) {
    let mut c = Cluster::start(1, |raw| raw.pools.pool_mode = mode);
    let pid = |a: &mut Raw| value(a, "select pg_backend_pid()");
    let terminate = |c: &Cluster, pid: &str| c.nodes[0].psql(&format!("select pg_terminate_backend({pid})"));
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen a");
    ok(&mut a, "listen b");
    let of_a = pid(&mut a);
    terminate(&c, &of_a);
    assert_eq!(a.next(), "N 01000");
    c.nodes[0].psql("select pg_notify('b', '')");
    assert_eq!(a.next(), "A", "its server alone was lost");

    let mut other = Raw::login(c.port, &[]);
    ok(&mut other, "listen a");
    ok(&mut other, "begin");
    ok(&mut other, "listen b");
    let of_other = pid(&mut other);
    terminate(&c, &of_other);
    assert_eq!(other.next(), "N 01000");
    assert_eq!(other.query("select 1"), ["E 40001", "Z E"]);
    ok(&mut other, "rollback");
    assert_eq!(value(&mut other, "select string_agg(c, ',') from pg_listening_channels() c"), "a");
    c.nodes[0].psql("select pg_notify('a', '')");
    assert_eq!((a.next(), other.next()), ("A".to_owned(), "A".to_owned()));

    c.nodes[0].kill();
    c.fail_over_to(1);
    assert_eq!(a.next(), "N 01000");
    c.nodes[1].psql("select pg_notify('b', '')");
    assert_eq!(a.next(), "A");
}

#[test]
fn who_listens_again_does_so_with_its_own_settings() {
    let c = two_servers();
    let node = &c.nodes[0];
    node.psql("create function hears() returns void language plpgsql as $$ begin null; end $$");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen \"grün\"");
    let pid = value(&mut a, "select pg_backend_pid()");
    // The other server has the settings of somebody else, and listens for nobody.
    let mut b = Raw::login(c.port, &[]);
    ok(&mut b, "select hears()");
    node.psql("create or replace function hears() returns void language plpgsql as $$ begin listen news; end $$");
    ok(&mut b, "set client_encoding = latin1");
    ok(&mut b, "select hears()");
    ok(&mut b, "begin");
    node.psql("notify news");
    assert_eq!(ok(&mut b, "commit"), ["C COMMIT", "Z I"]);
    node.psql(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(a.next(), "N 01000");
    ok(&mut a, "select 1");
    node.psql("select pg_notify('grün', '')");
    assert_eq!(a.next(), "A");
}

#[test]
fn a_session_listens_to_thousands_of_channels() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    let all: String = (0..5000).map(|i| format!("listen c{i};")).collect();
    ok(&mut a, &all);
    let pid = value(&mut a, "select pg_backend_pid()");
    ok(&mut a, "listen one");
    assert_eq!(value(&mut a, "select pg_backend_pid()"), pid);
    c.nodes[0].psql(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(a.next(), "N 01000");
    c.nodes[0].psql("select pg_notify('c4999', '')");
    assert_eq!(a.next(), "A");
}

/// It waits for notifications, and would wait for ever.
#[test]
fn who_listened_on_a_server_that_was_given_up_for_the_gate_is_told_so() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::millis(300)));
    c.warm();
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen news");
    c.publish(|t| t.gate = cluster::topology::Gate::Closed(cluster::topology::Closed::Promoting));
    assert_eq!(a.query("select 1"), ["E 08006", "EOF"]);
}

/// A message that was on its way to a server that is lost: the one that listens for the session now would read the rest of it
/// as messages.
#[test]
fn the_rest_of_a_message_goes_to_no_other_server() {
    let c = two_servers();
    c.nodes[0].psql("create table t(n int); grant all on t to app");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen news");
    let pid = value(&mut a, "select pg_backend_pid()");
    let (mut foreign, mut whole) = (Vec::new(), Vec::new());
    write_query(&mut foreign, "insert into t values (666)");
    let text = String::from_utf8(foreign.clone()).expect("all of it is ASCII");
    bind(&mut whole, "", "", &[&["x".repeat(100_000), text, "x".repeat(1_000_000)].concat()]);
    let cut = whole.windows(foreign.len()).position(|w| w == foreign).expect("it is in there");
    let before = c.tally(Counter::Received);
    a.write(|out| {
        parse(out, "", "select $1::text");
        out.extend_from_slice(&whole[..cut]);
    });
    wait_for("the first part to be read", || (c.tally(Counter::Received) - before > cut as u64).then_some(()));
    c.nodes[0].psql(&format!("select pg_terminate_backend({pid})"));
    while a.next() != "N 01000" {}
    a.write(|out| {
        out.extend_from_slice(&whole[cut..]);
        sync(out);
    });
    assert_eq!(a.until_ready().last().map(String::as_str), Some("Z I"));
    assert_eq!(value(&mut a, "select count(*) from t"), "0");
    c.nodes[0].psql("notify news");
    assert_eq!(a.next(), "A");
}
