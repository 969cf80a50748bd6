//! The harness itself, against a plain PostgreSQL and etcd: a checker that cannot fail would prove nothing.

use integration::client::{Client, Target};
use integration::etcd::Etcd;
use integration::fault::{FaultProxy, freeze, thaw};
use integration::history::Outcome;
use integration::ports::free_port;
use integration::postgres::Postgres;
use integration::process::{alive, state_of, working_in};
use integration::scratch::Scratch;
use integration::tap::Tap;
use integration::wait::wait_until;
use integration::workload::{Style, Workload, rows_found};
use std::time::Duration;

const STYLES: [Style; 3] = [Style::Autocommit, Style::Block, Style::Prepared];
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_workload_agrees_with_a_plain_postgresql_and_a_lost_row_is_noticed() {
    let scratch = Scratch::new();
    let postgres = Postgres::start(&scratch);
    Workload::create_table(postgres.target()).expect("a table");
    let load = Workload::start(postgres.target(), 3, &STYLES, 1, Duration::ZERO);
    load.wait_for_more(300, SOON);
    let history = load.finish();
    let mut client = Client::connect(postgres.target()).expect("a login");
    let found = rows_found(&mut client, 1).expect("the rows");
    assert_eq!(history.contradictions(&found), Vec::<String>::new());
    assert!(history.acknowledged().len() >= 300 && history.refusals().is_empty());

    let lost = history.acknowledged()[7];
    client
        .query(&format!("delete from rows where id = {lost}; insert into rows values (1000001), (999999999)"))
        .expect("done");
    let found = rows_found(&mut client, 1).expect("the rows");
    assert_eq!(history.contradictions(&found).len(), 3, "one lost, one twice, one from nobody");
}

#[test]
fn a_dead_server_is_told_from_a_refusal_and_the_tap_sees_both() {
    let scratch = Scratch::new();
    let postgres = Postgres::start(&scratch);
    Workload::create_table(postgres.target()).expect("a table");
    let tap = Tap::start(postgres.target().addr).expect("a tap");
    let target = Target { addr: tap.addr(), ..postgres.target().clone() };
    let mut client = Client::connect(&target).expect("a login");
    let error = client.query("select 1/0").expect_err("a division by zero");
    assert_eq!((error.sqlstate(), client.status), (Some("22012"), b'I'));
    let load = Workload::start(&target, 2, &STYLES, 1, Duration::ZERO);
    load.wait_for_more(50, SOON);
    let frozen = freeze(&[postgres.pid()]);
    assert!(frozen.len() > 3 && frozen.iter().all(|p| state_of(*p) == Some('T')), "{frozen:?}");
    thaw(&frozen);
    load.wait_for_more(50, SOON);
    drop(postgres);
    wait_until("both writers to lose their server", SOON, || load.has_ended());
    let history = load.finish();
    let ends = history.events.iter().filter(|e| matches!(e.outcome, Outcome::Disconnected(_))).count();
    assert_eq!(ends, 2, "both writers lost their server: {:?}", history.refusals());
    wait_until("the tap to see three connections closed by the server", SOON, || tap.seen().closed_by_server == 3);
    assert_eq!(tap.seen().errors[0].sqlstate, "22012");
}

#[test]
fn a_cut_ends_replication_connections_and_no_others() {
    let scratch = Scratch::new();
    let postgres = Postgres::start(&scratch);
    let at = ([127, 0, 0, 11], free_port()).into();
    let proxy = FaultProxy::start(at, postgres.target().addr).expect("a proxy");
    let target = Target { addr: proxy.addr(), ..postgres.target().clone() };
    let mut ordinary = Client::connect(&target).expect("a login");
    let walsender = || Client::connect_with(&target, &[("replication", "true")]);
    let mut replication = walsender().expect("a replication connection");
    replication.query("IDENTIFY_SYSTEM").expect("an answer");
    proxy.cut_replication();
    assert!(replication.query("IDENTIFY_SYSTEM").is_err(), "the connection was cut");
    assert!(walsender().is_err(), "and no new one comes through");
    ordinary.query("select 1").expect("others go on");
    proxy.heal();
    walsender().expect("a replication connection").query("IDENTIFY_SYSTEM").expect("an answer");
}

#[test]
fn etcd_keeps_its_data_over_a_kill_and_nothing_outlives_its_directory() {
    let scratch = Scratch::new();
    let mut etcd = Etcd::start(&scratch);
    etcd.kill();
    etcd.restart();
    let inside = working_in(scratch.path());
    assert!(!inside.is_empty(), "etcd works inside the scratch directory");
    let path = scratch.path().to_owned();
    // The guard alone must do it, as when the test program is killed.
    std::mem::forget(etcd);
    drop(scratch);
    wait_until("every process to be gone", SOON, || inside.iter().all(|p| !alive(*p)));
    wait_until("the directory to be removed", SOON, || !path.exists());
}

#[test]
fn a_postgresql_that_was_killed_leaves_no_shared_memory() {
    let scratch = Scratch::new();
    let postgres = Postgres::start(&scratch);
    let pid_file = std::fs::read_to_string(scratch.path().join("single/postmaster.pid")).expect("it runs");
    let id = pid_file.lines().nth(6).and_then(|l| l.split_whitespace().nth(1)).expect("a segment").to_owned();
    let segments = || std::fs::read_to_string("/proc/sysvipc/shm").expect("Linux has it");
    let there = || segments().lines().any(|l| l.split_whitespace().nth(1) == Some(&id));
    assert!(there(), "segment {id} is not in {}", segments());
    drop(postgres);
    drop(scratch);
    assert!(!there(), "segment {id} is still there: {}", segments());
}
