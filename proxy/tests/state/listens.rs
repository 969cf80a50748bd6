//! A session that listens, and whose server is closed with a block that is given up for an error of ours.

use super::*;
use cluster::topology::{Closed, Gate};
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
