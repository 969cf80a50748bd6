//! Writes are slowed while the standbys do not keep up, and only they, against real PostgreSQL.

use super::common::raw::Raw;
use super::common::{self, Cluster, dial, wait_for};
use cluster::config::{Size, Span};
use proxy::config::throttle::UnknownLag;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::Write;
use std::time::{Duration, Instant};

/// Whoever is looked at only after that has waited already, and is not counted: so longer than anything stands still.
const MAX_DELAY: Duration = Duration::from_millis(700);

fn start(set: impl FnOnce(&mut proxy::config::throttle::Raw)) -> Cluster {
    Cluster::start(1, |raw| {
        raw.console.admin_users = vec!["app".to_owned()];
        raw.throttle.max_write_lag_bytes = Some(Size(64 << 10));
        raw.throttle.max_delay = Span(MAX_DELAY);
        set(&mut raw.throttle);
    })
}

fn delayed(c: &Cluster) -> f64 {
    c.counter("pgtenure_proxy_slowed_transactions_total")
}

fn delay_is(c: &Cluster, what: &str, wanted: impl Fn(f64) -> bool) {
    wait_for(what, || wanted(c.counter("pgtenure_proxy_write_delay_seconds")).then_some(()));
}

fn said(session: &mut Raw, sql: &str) -> String {
    session.query(sql).join(" | ")
}

#[test]
fn writes_wait_while_the_standby_does_not_replay_and_reads_do_not() {
    let c = start(|_| {});
    let mut session = Raw::login(c.port, &[]);
    assert_eq!(said(&mut session, "create table t(a int)"), "C CREATE TABLE | Z I");
    assert_eq!(said(&mut session, "create unlogged table u(a int)"), "C CREATE TABLE | Z I");
    // What a base backup leaves, and the first changes of pages behind it, may be more than the standby is to lack.
    let written = c.nodes[0].psql("select pg_current_wal_insert_lsn()");
    let replayed = format!("select pg_last_wal_replay_lsn() >= '{written}'");
    wait_for("the standby to have it", || (c.nodes[1].psql(&replayed) == "t").then_some(()));
    delay_is(&c, "no delay", |seconds| seconds == 0.0);
    let start = delayed(&c);
    assert_eq!(said(&mut session, "insert into t values (0)"), "C INSERT 0 1 | Z I");
    assert_eq!(delayed(&c), start, "the standby keeps up");
    c.nodes[1].psql("select pg_wal_replay_pause()");
    c.nodes[0].psql("select pg_logical_emit_message(true, 'x', repeat('x', 300000))");
    let full = MAX_DELAY.as_secs_f64();
    delay_is(&c, "the full delay", |seconds| (seconds - full).abs() < 1e-9);
    let mut console = Raw::login(c.port, &[("database", "pgtenure")]);
    let shown = said(&mut console, "show throttle");
    let ms = MAX_DELAY.as_millis();
    let parts = [format!("D 1 {ms} bytes "), format!(" B of 65536 B {ms}")];
    assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");

    for (sql, tag) in [("insert into t values (1)", "C INSERT 0 1 | Z I"), ("begin", "C BEGIN | Z T")] {
        let began = Instant::now();
        assert_eq!(said(&mut session, sql), tag);
        assert!(began.elapsed() >= MAX_DELAY, "{sql} after {:?}", began.elapsed());
    }
    assert_eq!(said(&mut session, "rollback"), "C ROLLBACK | Z I");
    // Nothing is answered before the end of a COPY, so nothing that is none of its messages waits for an answer.
    let mut copies = Raw::login(c.port, &[]);
    copies.write(|out| ["copy t from stdin", "insert into t values (1)"].iter().for_each(|sql| write_query(out, sql)));
    assert_eq!(copies.until_ready(), ["G", "E 08P01", "E 08P01", "EOF"]);
    // Nor does who asks more before it was answered get past.
    let (before, began) = (delayed(&c), Instant::now());
    session.write(|out| (0..3).for_each(|_| write_query(out, "insert into t values (1)")));
    for n in 0..3 {
        assert_eq!(session.until_ready(), ["C INSERT 0 1", "Z I"], "{n}");
    }
    assert_eq!(delayed(&c) - before, 3.0);
    assert!(began.elapsed() >= 3 * MAX_DELAY, "after {:?}", began.elapsed());
    assert_eq!(said(&mut session, "begin"), "C BEGIN | Z T");
    // A transaction that has begun goes on at once, and what is proven to read was never slowed.
    let before = delayed(&c);
    assert_eq!(said(&mut session, "insert into t values (2)"), "C INSERT 0 1 | Z T");
    assert_eq!(said(&mut session, "commit"), "C COMMIT | Z I");
    assert_eq!(said(&mut session, "select 1"), "T | D 1 | C SELECT 1 | Z I");
    // Nor is what reads a table that only the primary has.
    assert_eq!(said(&mut session, "select a from u"), "T | C SELECT 0 | Z I");
    assert_eq!((before - start, delayed(&c) - start), (7.0, 7.0));
    // Nor is a login, of somebody for whom no server has been asked yet.
    drop(Raw::login(c.port, &[("options", "-c work_mem=1234kB")]));
    assert_eq!(delayed(&c) - start, 7.0);
    assert!(c.counter("pgtenure_proxy_slowed_seconds_total") >= 7.0 * full);

    // Who waits goes on as soon as the standby has caught up.
    c.nodes[1].psql("select pg_wal_replay_resume()");
    delay_is(&c, "no delay", |seconds| seconds == 0.0);
    assert_eq!(said(&mut session, "insert into t values (3)"), "C INSERT 0 1 | Z I");
    assert_eq!(delayed(&c) - start, 7.0);
    let shown = said(&mut console, "show throttle");
    assert!(shown.contains("D 0 "), "{shown}");
}

#[test]
fn a_session_that_keeps_its_server_waits_as_well() {
    let c = start(|_| {});
    let mut session = Raw::login(c.port, &[]);
    assert_eq!(said(&mut session, "create temp table mine(a int)"), "C CREATE TABLE | Z I");
    c.nodes[1].psql("select pg_wal_replay_pause()");
    c.nodes[0].psql("select pg_logical_emit_message(true, 'x', repeat('x', 300000))");
    let full = MAX_DELAY.as_secs_f64();
    delay_is(&c, "the full delay", |seconds| (seconds - full).abs() < 1e-9);
    for (sql, tag, waits) in [
        ("insert into mine values (1)", "C INSERT 0 1 | Z I", true),
        ("begin", "C BEGIN | Z T", true),
        ("insert into mine values (2)", "C INSERT 0 1 | Z T", false),
        ("commit", "C COMMIT | Z I", false),
        ("select a from mine order by a", "T | D 1 | D 2 | C SELECT 2 | Z I", false),
        ("select 1; select a from mine limit 1", "T | D 1 | C SELECT 1 | T | D 1 | C SELECT 1 | Z I", false),
        ("select a from mine where a = 1 for update", "T | D 1 | C SELECT 1 | Z I", true),
        ("delete from mine; select 1", "C DELETE 2 | T | D 1 | C SELECT 1 | Z I", true),
    ] {
        let (before, began) = (delayed(&c), Instant::now());
        assert_eq!(said(&mut session, sql), tag);
        assert_eq!(delayed(&c) - before, f64::from(u8::from(waits)), "{sql}");
        assert!(!waits || began.elapsed() >= MAX_DELAY, "{sql} after {:?}", began.elapsed());
    }
}

#[test]
fn who_waits_with_its_server_can_be_cancelled() {
    // Longer than this test waits for anything.
    let c = start(|raw| raw.max_delay = Span::secs(25));
    let mut session = Raw::login(c.port, &[]);
    assert_eq!(said(&mut session, "create temp table mine(a int)"), "C CREATE TABLE | Z I");
    c.nodes[1].psql("select pg_wal_replay_pause()");
    c.nodes[0].psql("select pg_logical_emit_message(true, 'x', repeat('x', 300000))");
    delay_is(&c, "a delay", |seconds| seconds > 20.0);
    session.write(|out| write_query(out, "insert into mine values (1)"));
    session.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    // One that comes before the statement finds nothing to cancel.
    wait_for("an answer", || {
        dial(c.port).write_all(&cancel_request(session.key.0, session.key.1)).unwrap();
        session.stream.peek(&mut [0]).ok()
    });
    session.stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    assert_eq!(session.until_ready().join(" | "), "E 57014 | Z I");
    c.nodes[1].psql("select pg_wal_replay_resume()");
    delay_is(&c, "no delay", |seconds| seconds == 0.0);
    assert_eq!(said(&mut session, "select count(*) from mine"), "T | D 0 | C SELECT 1 | Z I");
}

#[test]
fn a_lag_that_nobody_knows_slows_writes_only_where_it_is_asked_for() {
    let mut c = start(|raw| raw.unknown_lag = UnknownLag::Delay);
    let mut session = Raw::login(c.port, &[]);
    assert_eq!(said(&mut session, "create table t(a int)"), "C CREATE TABLE | Z I");
    c.nodes[1].kill();
    delay_is(&c, "a delay for want of knowledge", |seconds| seconds > 0.0);
    let before = delayed(&c);
    assert_eq!(said(&mut session, "insert into t values (1)"), "C INSERT 0 1 | Z I");
    assert_eq!(delayed(&c), before + 1.0);

    let mut passing = start(|_| {});
    let mut session = Raw::login(passing.port, &[]);
    assert_eq!(said(&mut session, "create table t(a int)"), "C CREATE TABLE | Z I");
    passing.nodes[1].psql("select pg_wal_replay_pause()");
    passing.nodes[0].psql("select pg_logical_emit_message(true, 'x', repeat('x', 300000))");
    delay_is(&passing, "a delay for the lag", |seconds| seconds > 0.0);
    passing.nodes[1].kill();
    delay_is(&passing, "no delay without knowledge", |seconds| seconds == 0.0);
    let before = delayed(&passing);
    assert_eq!(said(&mut session, "insert into t values (1)"), "C INSERT 0 1 | Z I");
    assert_eq!(delayed(&passing), before);
}
