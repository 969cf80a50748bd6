//! What drivers rarely do and PostgreSQL allows: it must not cost anybody a connection, a statement or an answer.

use super::common::raw::{Raw, bind, close, describe, execute, flush, parse, run, sync, value};
use super::common::{self, Cluster, dial, wait_for};
use cluster::topology::{Closed, Gate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy::config::pools::Database;
use proxy::session::presence::Activity;
use proxy::wire::backend;
use proxy::wire::codec::message;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::{Read, Write};

fn words(seen: &[String]) -> String {
    seen.join(" | ")
}

fn copy_data(out: &mut Vec<u8>) {
    for row in [&b"5\n"[..], b"6\n"] {
        message(out, b'd', |b| b.extend_from_slice(row));
    }
    message(out, b'c', |_| {});
}

#[test]
fn what_is_described_behind_a_flush_runs_on_the_primary() {
    let c = Cluster::start(1, |_| {});
    c.psql("create table t(a int)").unwrap();
    let mut raw = Raw::login(c.port, &[]);
    wait_for("reads to go to the standby", || {
        words(&raw.query("select current_setting('cluster_name')")).contains("D n2").then_some(())
    });
    // As asyncpg prepares: it waits for the description before it sends the rest of the unit.
    raw.write(|out| {
        parse(out, "s", "insert into t values (1)");
        describe(out, "s");
        flush(out);
    });
    assert_eq!([raw.next(), raw.next(), raw.next()], ["1", "t", "n"]);
    raw.write(|out| {
        bind(out, "", "s", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "2 | C INSERT 0 1 | Z I");
    // As a pipeline does that wants the first result early.
    wait_for("reads to go to the standby again", || {
        words(&raw.query("select current_setting('cluster_name')")).contains("D n2").then_some(())
    });
    raw.write(|out| {
        run(out, "select 1");
        flush(out);
    });
    assert_eq!([raw.next(), raw.next(), raw.next(), raw.next()], ["1", "2", "D 1", "C SELECT 1"]);
    raw.write(|out| {
        run(out, "insert into t values (2)");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "1 | 2 | C INSERT 0 1 | Z I");
    // And what is called by its number: nextval('drawn').
    c.psql("create sequence drawn").unwrap();
    wait_for("reads to go to the standby once more", || {
        words(&raw.query("select current_setting('cluster_name')")).contains("D n2").then_some(())
    });
    raw.write(|out| {
        message(out, b'F', |b| {
            b.extend_from_slice(&1574_u32.to_be_bytes());
            b.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 5]);
            b.extend_from_slice(b"drawn");
            b.extend_from_slice(&[0, 0]);
        });
    });
    assert_eq!(words(&raw.until_ready()), "V | Z I");
    let route = value(&mut raw, "show pgtenure.last_route");
    assert!(route.starts_with("primary n1: write"), "{route}");
}

#[test]
fn copy_data_may_come_before_the_server_asks_for_it() {
    let c = Cluster::start(0, |_| {});
    c.psql("create table t(a int)").unwrap();
    let mut raw = Raw::login(c.port, &[]);
    raw.write(|out| {
        write_query(out, "copy t from stdin");
        copy_data(out);
        write_query(out, "select count(*) from t");
    });
    assert_eq!(words(&raw.until_ready()), "G | C COPY 2 | Z I");
    assert_eq!(words(&raw.until_ready()), "T | D 2 | C SELECT 1 | Z I");
    for early_sync in [false, true] {
        raw.write(|out| {
            run(out, "copy t from stdin");
            if early_sync {
                sync(out);
            }
            copy_data(out);
            sync(out);
        });
        assert_eq!(words(&raw.until_ready()), "1 | 2 | G | C COPY 2 | Z I");
    }
    // Where nothing copies it is thrown away.
    raw.write(|out| {
        run(out, "select 1");
        copy_data(out);
        sync(out);
        write_query(out, "select count(*) from t");
        copy_data(out);
    });
    assert_eq!(words(&raw.until_ready()), "1 | 2 | D 1 | C SELECT 1 | Z I");
    assert_eq!(words(&raw.until_ready()), "T | D 6 | C SELECT 1 | Z I");
    raw.write(|out| {
        write_query(out, "copy nowhere from stdin");
        copy_data(out);
        write_query(out, "select 7");
    });
    assert_eq!(words(&raw.until_ready()), "E 42P01 | Z I");
    assert_eq!(words(&raw.until_ready()), "T | D 7 | C SELECT 1 | Z I");
}

#[test]
fn a_client_that_leaves_without_its_sync_gives_its_server_up() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    c.psql("create table t(a int)").unwrap();
    let mut raw = Raw::login(c.port, &[]);
    raw.write(|out| {
        run(out, "insert into t values (1)");
        flush(out);
    });
    assert_eq!([raw.next(), raw.next(), raw.next()], ["1", "2", "C INSERT 0 1"]);
    raw.write(|out| run(out, "insert into t values (2)"));
    drop(raw);
    let mut other = Raw::login(c.port, &[]);
    assert_eq!(words(&other.query("select count(*) from t")), "T | D 0 | C SELECT 1 | Z I");
}

#[test]
fn a_lost_block_is_ended_by_a_rollback_of_any_name() {
    let mut c = Cluster::start(1, |_| {});
    c.psql("create table t(a int)").unwrap();
    let mut raw = Raw::login(c.port, &[]);
    assert_eq!(words(&raw.query("begin")), "C BEGIN | Z T");
    c.nodes[0].kill();
    assert_eq!(words(&raw.query("insert into t values (1)")), "E 40001 | Z E");
    // As JDBC sends it.
    raw.write(|out| {
        parse(out, "S_1", "ROLLBACK");
        bind(out, "", "S_1", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "1 | 2 | C ROLLBACK | Z I");
    c.fail_over_to(1);
    // The name is known from now on.
    raw.write(|out| {
        write_query(out, "begin");
        bind(out, "", "S_1", &[]);
        execute(out, "");
        sync(out);
        parse(out, "S_1", "ROLLBACK");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "C BEGIN | Z T");
    assert_eq!(words(&raw.until_ready()), "2 | C ROLLBACK | Z I");
    assert_eq!(words(&raw.until_ready()), "E 42P05 | Z I");
}

#[test]
fn a_statement_held_for_a_pinned_session_can_be_cancelled() {
    let c = Cluster::start(0, |_| {});
    let mut raw = Raw::login(c.port, &[]);
    assert_eq!(words(&raw.query("create temp table mine(a int)")), "C CREATE TABLE | Z I");
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    raw.write(|out| write_query(out, "insert into mine values (1)"));
    // The request may come before the statement, and then has nothing to cancel.
    raw.stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    let mut first = [0];
    wait_for("the statement to be cancelled", || {
        dial(c.port).write_all(&cancel_request(raw.key.0, raw.key.1)).unwrap();
        (raw.stream.peek(&mut first).ok()? == 1).then_some(())
    });
    raw.stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    assert_eq!(words(&raw.until_ready()), "E 57014 | Z I");
    c.publish(|t| t.gate = Gate::Open);
    assert_eq!(words(&raw.query("select count(*) from mine")), "T | D 0 | C SELECT 1 | Z I");
}

/// As libpq: send the request, and wait until it has been dealt with.
fn cancel(c: &Cluster, s: &Raw) {
    let mut request = dial(c.port);
    request.write_all(&cancel_request(s.key.0, s.key.1)).unwrap();
    assert_eq!(request.read(&mut [0]).unwrap(), 0);
}

/// The nodes whose servers serve sessions, and are sessions at anything?
fn in_use(c: &Cluster) -> (String, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let view = runtime.block_on(c.handle.as_ref().unwrap().view(common::DEADLINE)).unwrap();
    let nodes = view.clients.iter().filter_map(|client| Some(client.server.as_ref()?.0.to_string()));
    let busy = view.clients.iter().any(|client| client.activity != Activity::Idle);
    (nodes.collect::<Vec<_>>().join(" "), busy)
}

#[test]
fn a_statement_is_cancelled_while_its_server_is_asked_for_its_session() {
    let c = Cluster::start(1, |raw| {
        (raw.workers, raw.pool_size) = (1, 1);
        raw.drain_timeout = cluster::config::Span::secs(60);
    });
    c.psql("create table t(a int); create function unproven() returns int language sql volatile as 'select 1'")
        .unwrap();
    c.replicate();
    let login = || Raw::login(c.port, &[("pgtenure.max_replay_lag", "1h")]);
    let (mut a, mut b) = (login(), login());
    for block in [true, false] {
        assert_eq!(words(&a.query("set work_mem = '5MB'")), "C SET | Z I");
        if block {
            wait_for("a block at the standby", || {
                assert_eq!(words(&a.query("begin read only")), "C BEGIN | Z T");
                let there = in_use(&c).0 == "n2";
                (there || a.query("rollback").is_empty()).then_some(())
            });
        }
        let rests = if block { ("n2".to_owned(), true) } else { (String::new(), false) };
        assert_eq!(words(&b.query("insert into t values (1)")), "C INSERT 0 1 | Z I");
        wait_for("the primary's server to be free", || (in_use(&c) == rests).then_some(()));
        let pid = c.nodes[0].psql("select pid from pg_stat_activity where usename = 'app'");
        let pid = Pid::from_raw(pid.parse().unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        // The server has the other's settings.
        a.write(|out| write_query(out, "select unproven()"));
        wait_for("the primary's server to be found", || (in_use(&c).0 == "n1").then_some(()));
        cancel(&c, &a);
        assert_eq!(words(&a.until_ready()), if block { "E 57014 | Z E" } else { "E 57014 | Z I" });
        b.write(|out| write_query(out, "insert into t values (7) returning a"));
        kill(pid, Signal::SIGCONT).unwrap();
        assert_eq!(words(&b.until_ready()), "T | D 7 | C INSERT 0 1 | Z I", "in a block: {block}");
        if block {
            assert_eq!(words(&a.query("rollback")), "C ROLLBACK | Z I");
        }
        wait_for("nobody to have a server", || (in_use(&c) == (String::new(), false)).then_some(()));
        let shown = "select current_setting('work_mem') from t limit 1 for update";
        assert_eq!(words(&a.query(shown)), "T | D 5MB | C SELECT 1 | Z I");
    }
    // A question behind a transaction, about its cursor, that waits for a lock.
    let config = format!("host=127.0.0.1 port={} user=postgres dbname=app", c.nodes[0].port);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (locker, connection) = runtime.block_on(tokio_postgres::connect(&config, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    runtime.block_on(locker.batch_execute("begin; lock table pg_catalog.pg_cursors")).unwrap();
    let hold = "begin; declare held cursor with hold for select 1; commit";
    assert_eq!(words(&a.query(hold)), "C BEGIN | C DECLARE CURSOR | C COMMIT | Z I");
    a.write(|out| write_query(out, "select 1"));
    a.stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    wait_for("the statement to be cancelled", || {
        // The request may come before the statement, and then has nothing to cancel.
        cancel(&c, &a);
        (a.stream.peek(&mut [0]).ok()? == 1).then_some(())
    });
    a.stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    assert_eq!(words(&a.until_ready()), "E 57014 | Z I");
    runtime.block_on(locker.batch_execute("rollback")).unwrap();
    assert_eq!(words(&a.query("fetch held")), "T | D 1 | C FETCH 1 | Z I");
}

/// What is asked for is behind a transaction, and may wait for as long as somebody else likes.
#[test]
fn a_question_of_ours_that_is_not_answered_keeps_nobody_for_longer_than_a_statement_is_held() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size) = (1, 3);
        raw.hold_timeout = cluster::config::Span::secs(5);
    });
    c.warm();
    let mut clients: Vec<Raw> = (0..3).map(|_| Raw::login(c.port, &[])).collect();
    let config = format!("host=127.0.0.1 port={} user=postgres dbname=app", c.nodes[0].port);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (locker, connection) = runtime.block_on(tokio_postgres::connect(&config, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    runtime.block_on(locker.batch_execute("begin; lock table pg_catalog.pg_cursors")).unwrap();
    let hold = "begin; declare held cursor with hold for select 1; commit";
    for client in &mut clients {
        assert_eq!(words(&client.query(hold)), "C BEGIN | C DECLARE CURSOR | C COMMIT | Z I");
    }
    let mut waits = clients.pop().unwrap();
    waits.write(|out| write_query(out, "select 1"));
    // One says that it goes, and the other does not.
    clients[0].write(|out| message(out, b'X', |_| {}));
    drop(clients);
    let connected = || c.counter("pgtenure_proxy_sessions");
    wait_for("those to be gone that have left", || (connected() == 1.0).then_some(()));
    assert_eq!(words(&waits.until_ready()), "E 57014 | Z I");
    assert_eq!(words(&waits.query("fetch held")), "E 08006 | Z I");
    assert_eq!(words(&waits.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn a_statement_held_in_a_block_can_be_cancelled_and_a_held_one_is_over_in_its_time() {
    let c = Cluster::start(0, |_| {});
    let mut raw = Raw::login(c.port, &[]);
    assert_eq!(words(&raw.query("create temp table mine(a int)")), "C CREATE TABLE | Z I");
    assert_eq!(words(&raw.query("begin; insert into mine values (1)")), "C BEGIN | C INSERT 0 1 | Z T");
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    raw.write(|out| write_query(out, "insert into mine values (2)"));
    raw.stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    let mut first = [0];
    wait_for("the statement to be cancelled", || {
        dial(c.port).write_all(&cancel_request(raw.key.0, raw.key.1)).unwrap();
        (raw.stream.peek(&mut first).ok()? == 1).then_some(())
    });
    raw.stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    assert_eq!(words(&raw.until_ready()), "E 57014 | Z E");
    assert_eq!(words(&raw.query("rollback")), "C ROLLBACK | Z I");
    c.publish(|t| t.gate = Gate::Open);
    let mut raw = Raw::login(c.port, &[]);
    raw.query("create temp table mine(a int)");
    raw.query("set statement_timeout = '300ms'");
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    assert_eq!(words(&raw.query("insert into mine values (2)")), "E 57014 | Z I");
}

#[test]
fn a_client_that_dies_within_a_message_of_a_failed_copy_leaves_nobody_its_server() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    c.psql("create table t(a int)").unwrap();
    let mut raw = Raw::login(c.port, &[]);
    raw.write(|out| write_query(out, "copy t from stdin"));
    assert_eq!(raw.next(), "G");
    raw.write(|out| {
        message(out, b'd', |b| b.extend_from_slice(b"bad\n"));
        out.extend_from_slice(b"d\0\0\xff\xffhalf of it");
    });
    assert_eq!(words(&raw.until_ready()), "E 22P02 | Z I");
    drop(raw);
    // Its server waits for the rest of that message, and would take it from whoever came next.
    let mut other = Raw::login(c.port, &[]);
    assert_eq!(words(&other.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    // One that sends the rest has no server any more, though it says nothing else.
    let mut lives = Raw::login(c.port, &[]);
    lives.write(|out| write_query(out, "copy t from stdin"));
    assert_eq!(lives.next(), "G");
    lives.write(|out| {
        message(out, b'd', |b| b.extend_from_slice(b"bad\n"));
        out.extend_from_slice(b"d\0\0\0\x0fhalf");
    });
    assert_eq!(words(&lives.until_ready()), "E 22P02 | Z I");
    lives.send(b" of it\n");
    assert_eq!(words(&other.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    lives.write(|out| message(out, b'c', |_| {}));
    assert_eq!(words(&lives.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

/// Nothing is answered within a COPY but at its end.
#[test]
fn what_is_no_copy_data_ends_a_connection_within_a_copy_whatever_it_would_wait_for() {
    let c = Cluster::start(0, |raw| raw.reads.hints = true);
    c.psql("create table t(a int); create sequence s").unwrap();
    let within = [
        (&["copy t from stdin"][..], "show pgtenure.term"),
        (&["set pgtenure.consistency = 'strong'", "copy t from stdin"], "select 1"),
        (&["begin", "copy t from stdin"], "/* pgtenure: consistency=eventual */ select 1"),
        (&["copy t from stdin"], "set pgtenure.after = 'nonsense'"),
        (&["copy t from stdin"], "select currval('s')"),
        (&["copy t from stdin"], "/* pgtenure: durability=local */ select 1"),
    ];
    for (first, sql) in within {
        let mut raw = Raw::login(c.port, &[]);
        let (copy, before) = first.split_last().expect("a COPY");
        before.iter().for_each(|sql| drop(common::raw::ok(&mut raw, sql)));
        raw.write(|out| write_query(out, copy));
        assert_eq!(raw.next(), "G");
        raw.write(|out| write_query(out, sql));
        let told = words(&raw.until_ready());
        assert!(told.ends_with("E 08P01 | EOF"), "{first:?}: {told}");
    }
    // What needs no server, behind the COPY in one unit.
    let mut raw = Raw::login(c.port, &[]);
    raw.write(|out| {
        parse(out, "known", "select 1");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "1 | Z I");
    raw.write(|out| {
        parse(out, "", "copy t from stdin");
        bind(out, "", "", &[]);
        execute(out, "");
        close(out, "known");
        sync(out);
        copy_data(out);
        message(out, b'c', |_| {});
        sync(out);
    });
    let told = words(&raw.until_ready());
    assert!(told.starts_with("1 | 2 | G"), "{told}");
}

#[test]
fn a_named_statement_of_megabytes_follows_its_client_like_any() {
    let c = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.prepared_statement_bytes = cluster::config::Size(4 << 20);
    });
    let (mut raw, mut other) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let long = format!("select length('{}')", "w".repeat(3 << 20));
    raw.write(|out| {
        parse(out, "long", &long);
        bind(out, "", "long", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "1 | 2 | D 3145728 | C SELECT 1 | Z I");
    // Its server is taken by another session; it is prepared again on the next.
    assert_eq!(words(&other.query("begin")), "C BEGIN | Z T");
    raw.write(|out| {
        bind(out, "", "long", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "2 | D 3145728 | C SELECT 1 | Z I");
    // One for which there is no room is refused, whole, and nothing else is.
    raw.write(|out| {
        parse(out, "too long", &format!("{long}, length('{}')", "w".repeat(2 << 20)));
        bind(out, "", "too long", &[]);
        sync(out);
        bind(out, "", "too long", &[]);
        sync(out);
        bind(out, "", "long", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "E 54000 | Z I");
    assert_eq!(words(&raw.until_ready()), "E 26000 | Z I");
    assert_eq!(words(&raw.until_ready()), "2 | D 3145728 | C SELECT 1 | Z I");
    assert_eq!(words(&other.query("rollback")), "C ROLLBACK | Z I");
    // An unnamed one, which drivers describe before they bind it, is kept until there is another.
    let unnamed = |raw: &mut Raw, other: &mut Raw, sql: &str| {
        raw.write(|out| {
            parse(out, "", sql);
            sync(out);
        });
        assert_eq!(words(&raw.until_ready()), "1 | Z I");
        assert_eq!(words(&other.query("begin")), "C BEGIN | Z T");
        raw.write(|out| {
            bind(out, "", "", &[]);
            execute(out, "");
            sync(out);
        });
        let seen = words(&raw.until_ready());
        assert_eq!(words(&other.query("rollback")), "C ROLLBACK | Z I");
        seen
    };
    assert_eq!(words(&raw.query("deallocate long")), "C DEALLOCATE | Z I");
    assert_eq!(unnamed(&mut raw, &mut other, &long), "2 | D 3145728 | C SELECT 1 | Z I");
    assert_eq!(unnamed(&mut raw, &mut other, "select 1"), "2 | D 1 | C SELECT 1 | Z I");
}

/// A notification may come in one read with an answer, behind it: nothing else comes then that would bring it along.
#[test]
fn a_notification_right_behind_an_answer_is_told_at_once() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let (mut raw, mut other) = (Raw::login(c.port, &[]), Raw::login(c.nodes[0].port, &[]));
    assert_eq!(words(&raw.query("listen news")), "C LISTEN | Z I");
    for round in 0..500 {
        // Behind it the server is asked what is still listened to.
        raw.write(|out| write_query(out, "unlisten another"));
        for _ in 0..round % 50 {
            std::thread::yield_now();
        }
        other.write(|out| write_query(out, "notify news"));
        let mut seen = [raw.next(), raw.next(), raw.next()];
        seen.sort();
        assert_eq!(seen, ["A", "C UNLISTEN", "Z I"], "round {round}");
        assert_eq!(words(&other.until_ready()), "C NOTIFY | Z I");
    }
}

#[test]
fn an_error_or_a_notice_of_megabytes_is_told_whole() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let mut a = Raw::login(c.port, &[]);
    let before = words(&a.query("select pg_backend_pid()"));
    for (level, kind) in [("notice", b'N'), ("exception", b'E')] {
        for length in [2_000_000, 20_000_000] {
            let sql = format!("do $$ begin raise {level} '%', repeat('#', {length}); end $$");
            a.write(|out| write_query(out, &sql));
            let (seen, frame) = a.frame().expect("it is told");
            assert_eq!((seen, frame.len() > length), (kind, true), "{level} {length}");
            assert_eq!(frame.iter().filter(|b| **b == b'#').count(), length);
            a.until_ready();
        }
    }
    assert_eq!(words(&a.query("select pg_backend_pid()")), before, "no server was lost");
}

/// Who notifies next, and of what.
fn notified(client: &mut Raw) -> (Option<u32>, Vec<u8>) {
    loop {
        let (kind, frame) = client.frame().expect("the session goes on");
        if kind == b'A' {
            return (backend::notifying_pid(&frame), frame[9..].to_vec());
        }
    }
}

#[test]
fn a_client_knows_its_own_notifications_by_the_process_number_it_was_given() {
    let c = Cluster::start(0, |raw| {
        let own = proxy::config::pools::Database {
            dbname: Some("app".into()),
            pool_mode: Some(proxy::config::PoolMode::Session),
            ..Default::default()
        };
        raw.databases.insert("own".into(), own);
    });
    for database in ["app", "own"] {
        let mut a = Raw::login(c.port, &[("database", database)]);
        let mut other = Raw::login(c.port, &[]);
        a.query("listen news");
        other.query("notify news, 'other'");
        let (pid, told) = notified(&mut a);
        assert_eq!(told, b"news\0other\0");
        let served = c.nodes[0].psql("select string_agg(pid::text, ' ') from pg_stat_activity where usename = 'app'");
        assert!(served.split(' ').any(|p| p.parse().ok() == pid), "{pid:?} of {served}");
        a.write(|out| write_query(out, "notify news, 'own'"));
        assert_eq!(notified(&mut a), (Some(a.key.0), b"news\0own\0".to_vec()), "{database}");
    }
}

#[test]
fn statements_of_all_clients_together_are_bounded_at_the_cost_of_whose_they_are() {
    const EACH: usize = 64 << 10;
    let c = Cluster::start(0, |raw| {
        raw.prepared_statement_bytes = cluster::config::Size(EACH as u64);
        let (dbname, user) = (Some("app".to_owned()), Some("postgres".to_owned()));
        raw.databases.insert("others".to_owned(), Database { dbname, user, ..Database::default() });
    });
    let mut texts = 0;
    let mut prepare = |raw: &mut Raw, length: usize, keep: bool| {
        texts += 1;
        raw.write(|out| {
            // Each has a text of its own.
            let name = format!("s{texts}");
            parse(out, &name, &format!("select '{texts} {}'", "x".repeat(length)));
            if !keep {
                close(out, &name);
            }
            sync(out);
        });
        words(&raw.until_ready())
    };
    let taken = || c.counter("pgtenure_proxy_prepared_statement_bytes");
    let (mut few, mut other) = (Raw::login(c.port, &[]), Raw::login(c.port, &[("database", "others")]));
    let mut crowd: Vec<Raw> = Vec::new();
    for _ in 0..34 {
        let mut raw = Raw::login(c.port, &[]);
        assert_eq!(prepare(&mut raw, EACH - 4000, true), "1 | Z I");
        crowd.push(raw);
    }
    wait_for("one with much to be refused", || prepare(&mut crowd[0], 10, false).contains("E 54000").then_some(()));
    wait_for("all of it to be shown", || (taken() > 32.0 * EACH as f64).then_some(()));
    // Who has little goes on, and who belongs to others is not concerned.
    assert_eq!(prepare(&mut few, 5000, true), "1 | Z I");
    assert_eq!(prepare(&mut other, EACH - 4000, true), "1 | Z I");
    // However many more clients of that user come, it ends before all of them take twice as much.
    let refused = (0..500).any(|_| {
        let mut raw = Raw::login(c.port, &[]);
        let told = prepare(&mut raw, 20_000, true);
        crowd.push(raw);
        told.contains("E 54000")
    });
    assert!(refused && taken() < 64.0 * EACH as f64, "{}", taken());
    drop(crowd);
    wait_for("much to be taken again", || (prepare(&mut few, EACH / 2, true) == "1 | Z I").then_some(()));
}

#[test]
fn a_unit_without_an_end_is_answered_as_it_goes() {
    const CLOSES: usize = 200_000;
    let c = Cluster::start(0, |raw| raw.workers = 1);
    let mut raw = Raw::login(c.port, &[]);
    let mut stream = raw.stream.try_clone().expect("a second handle");
    let writer = std::thread::spawn(move || {
        let mut out = Vec::new();
        (0..CLOSES).for_each(|_| close(&mut out, "x"));
        stream.write_all(&out).expect("the endpoint reads");
    });
    // What is not answered before the Sync is what may be kept of it.
    for _ in 0..CLOSES - 8192 {
        assert_eq!(raw.next(), "3");
    }
    writer.join().expect("all of it was written");
    raw.write(sync);
    assert_eq!(raw.until_ready().len(), 8192 + 1);
}

#[test]
fn a_unit_of_thousands_of_statements_before_its_sync_is_answered() {
    let c = Cluster::start(0, |raw| raw.workers = 1);
    for statements in [2_500, 20_000] {
        let mut raw = Raw::login(c.port, &[]);
        let mut stream = raw.stream.try_clone().expect("a second handle");
        let writer = std::thread::spawn(move || {
            let mut out = Vec::new();
            parse(&mut out, "s", "select 1");
            for _ in 0..statements {
                bind(&mut out, "", "s", &[]);
                execute(&mut out, "");
            }
            sync(&mut out);
            stream.write_all(&out).expect("the endpoint reads");
        });
        let seen = raw.until_ready();
        writer.join().expect("all of it was written");
        assert_eq!(seen.iter().filter(|s| *s == "C SELECT 1").count(), statements);
        assert_eq!((seen.len(), seen.last().map(String::as_str)), (3 * statements + 2, Some("Z I")));
    }
}
