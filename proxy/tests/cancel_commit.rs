//! Cancel requests while a commit waits for a standby that never comes: what is passed on, and what is never told as
//! success.

mod common;

use common::raw::{Raw, let_commits_wait, run, sync, wait_until_waiting};
use common::{Cluster, dial, wait_for};
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::{Read, Write};

fn words(seen: &[String]) -> String {
    seen.join(" | ")
}

/// A cluster whose table is there and whose commits wait for nobody.
fn hung() -> Cluster {
    let c = Cluster::start(0, |_| {});
    c.psql("create table t(a int)").expect("nothing hangs yet");
    let_commits_wait(&c);
    c
}

/// As libpq: send the request, and wait until it has been dealt with.
fn cancel(c: &Cluster, s: &Raw) {
    let mut request = dial(c.port);
    request.write_all(&cancel_request(s.key.0, s.key.1)).expect("the endpoint reads");
    assert_eq!(request.read(&mut [0]).expect("it is closed"), 0);
}

fn send(s: &mut Raw, sql: &str) {
    s.write(|out| write_query(out, sql));
}

#[test]
fn an_explicit_commit_is_not_told_to_stop_waiting() {
    let c = hung();
    let mut simple = Raw::login(c.port, &[]);
    let mut ext = Raw::login(c.port, &[]);
    for s in [&mut simple, &mut ext] {
        s.query("begin");
        s.query("insert into t values (1)");
    }
    send(&mut simple, "commit");
    ext.write(|out| {
        run(out, "commit");
        sync(out);
    });
    wait_until_waiting(&c, 2);
    cancel(&c, &simple);
    cancel(&c, &ext);
    // The requests have been dealt with, and both still wait.
    wait_until_waiting(&c, 2);
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&simple.until_ready()), "C COMMIT | Z I");
    assert_eq!(words(&ext.until_ready()), "1 | 2 | C COMMIT | Z I");
}

#[test]
fn a_commit_of_its_own_that_stopped_waiting_is_told_by_its_notice() {
    let c = hung();
    let mut simple = Raw::login(c.port, &[]);
    let mut ext = Raw::login(c.port, &[]);
    send(&mut simple, "insert into t values (1)");
    ext.write(|out| {
        run(out, "insert into t values (2)");
        sync(out);
    });
    wait_until_waiting(&c, 2);
    cancel(&c, &simple);
    cancel(&c, &ext);
    assert_eq!(words(&simple.until_ready()), "N 01000 | E 08007 | Z I");
    assert_eq!(words(&ext.until_ready()), "1 | 2 | C INSERT 0 1 | N 01000 | E 08007 | Z I");
    // Somebody else may have stopped it as well.
    send(&mut simple, "insert into t values (3)");
    wait_until_waiting(&c, 1);
    c.nodes[0].psql("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'");
    assert_eq!(words(&simple.until_ready()), "N 01000 | E 08007 | Z I");
    wait_for("all of them to be counted", || (c.counter("pgtenure_proxy_in_doubt_total") == 3.0).then_some(()));
    // It is there all the same.
    assert_eq!(words(&simple.query("select count(*) from t")), "T | D 3 | C SELECT 1 | Z I");
}

#[test]
fn a_session_that_hides_the_notice_is_told_all_the_same() {
    let c = hung();
    let mut by_set = Raw::login(c.port, &[]);
    by_set.query("set client_min_messages = error");
    let mut at_once = Raw::login(c.port, &[]);
    let mut by_startup = Raw::login(c.port, &[("client_min_messages", "error")]);
    let mut by_options = Raw::login(c.port, &[("options", "-c client_min_messages=error")]);
    let insert = "insert into t values (1)";
    for s in [&mut by_set, &mut by_startup, &mut by_options] {
        send(s, insert);
    }
    send(&mut at_once, &format!("set client_min_messages = error; {insert}"));
    wait_until_waiting(&c, 4);
    for s in [&mut by_set, &mut by_startup, &mut by_options] {
        cancel(&c, s);
        assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    }
    cancel(&c, &at_once);
    assert_eq!(words(&at_once.until_ready()), "E 08007 | Z I");
    // A write that failed before it committed is known to have failed.
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    holder.query("lock table t");
    send(&mut by_set, insert);
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    wait_for("the insert to wait for the lock", || (c.nodes[0].psql(blocked) == "1").then_some(()));
    cancel(&c, &by_set);
    assert_eq!(words(&by_set.until_ready()), "E 57014 | Z I");
}

#[test]
fn a_read_is_cancelled_as_ever() {
    let c = hung();
    for parameters in [&[][..], &[("client_min_messages", "error")]] {
        let mut s = Raw::login(c.port, parameters);
        send(&mut s, "select pg_sleep(60)");
        let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        wait_for("the statement to run", || (c.nodes[0].psql(asleep) == "1").then_some(()));
        cancel(&c, &s);
        assert_eq!(words(&s.until_ready()), "T | E 57014 | Z I");
    }
}

/// What comes before the COMMIT in a pipeline is cancelled as it would be alone.
#[test]
fn a_statement_with_a_commit_behind_it_is_cancelled() {
    let c = Cluster::start(0, |_| {});
    c.psql("create table t(a int)").expect("nothing hangs");
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    holder.query("lock table t");
    let mut s = Raw::login(c.port, &[]);
    s.write(|out| ["begin", "insert into t values (1)", "commit"].iter().for_each(|sql| write_query(out, sql)));
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    wait_for("the insert to wait for the lock", || (c.nodes[0].psql(blocked) == "1").then_some(()));
    cancel(&c, &s);
    for told in ["C BEGIN | Z T", "E 57014 | Z E", "C ROLLBACK | Z I"] {
        assert_eq!(words(&s.until_ready()), told);
    }
}
