//! How long clients may take over what they do, against real PostgreSQL.

use super::common::raw::{Raw, flush, run};
use super::common::{Cluster, dial, wait_for};
use cluster::config::Span;
use nix::sys::signal::{Signal, kill};
use proxy::config::timeouts;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::write_startup;
use std::io::{Read, Write};

fn words(seen: &[String]) -> String {
    seen.join(" | ")
}

fn start(set: impl FnOnce(&mut timeouts::Raw)) -> Cluster {
    Cluster::start(0, |raw| set(&mut raw.timeouts))
}

fn backends(c: &Cluster, condition: &str) -> String {
    c.nodes[0].psql(&format!("select count(*) from pg_stat_activity where usename = 'app' and {condition}"))
}

#[test]
fn an_idle_client_is_disconnected_and_a_waiting_or_working_one_is_not() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 1;
        raw.timeouts.client_idle_timeout = Span::secs(1);
    });
    let mut idle = Raw::login(c.port, &[]);
    let mut waits = Raw::login(c.port, &[]);
    let mut busy = Raw::login(c.port, &[]);
    // There is nothing to flush, so nobody needs a server for that.
    busy.write(|out| {
        flush(out);
        write_query(out, "select 1");
        flush(out);
    });
    assert_eq!(words(&busy.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    assert_eq!(words(&waits.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    busy.query("begin");
    waits.write(|out| write_query(out, "select 1"));
    busy.query("select pg_sleep(2.5)");
    assert_eq!((idle.next(), idle.next()), ("E 57P05".into(), "EOF".into()));
    assert_eq!(words(&busy.query("commit")), "C COMMIT | Z I", "a transaction is not idleness");
    assert_eq!(words(&waits.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    assert_eq!((waits.next(), waits.next()), ("E 57P05".into(), "EOF".into()));
}

#[test]
fn a_client_idle_in_its_transaction_loses_both() {
    let c = start(|t| t.idle_in_transaction_timeout = Span::millis(800));
    let mut a = Raw::login(c.port, &[]);
    a.query("create table t(a int)");
    // In one string: between two of them this test might be idle for too long itself.
    let works = words(&a.query("begin; insert into t values (1); lock table t; select pg_sleep(1.5)"));
    assert_eq!(works.split(" | ").last(), Some("Z T"), "it works");
    assert_eq!((a.next(), a.next()), ("E 25P03".into(), "EOF".into()));
    let mut b = Raw::login(c.port, &[]);
    assert_eq!(words(&b.query("select count(*) from t")), "T | D 0 | C SELECT 1 | Z I");
    // So does one that does not end what it has begun, and has read all that it was owed.
    b.write(|out| {
        run(out, "lock table t");
        flush(out);
    });
    let seen: Vec<String> = (0..5).map(|_| b.next()).collect();
    assert_eq!(words(&seen), "1 | 2 | E 25P01 | E 25P03 | EOF");
    let mut b = Raw::login(c.port, &[]);
    b.write(|out| {
        run(out, "insert into t values (2)");
        flush(out);
    });
    let seen: Vec<String> = (0..5).map(|_| b.next()).collect();
    assert_eq!(words(&seen), "1 | 2 | C INSERT 0 1 | E 25P03 | EOF");
    let mut b = Raw::login(c.port, &[]);
    assert_eq!(words(&b.query("select count(*) from t")), "T | D 0 | C SELECT 1 | Z I");
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled_and_the_session_goes_on() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 1;
        raw.timeouts.query_timeout = Span::millis(1500);
    });
    let mut a = Raw::login(c.port, &[]);
    assert_eq!(words(&a.query("select pg_sleep(60)")), "T | E 57014 | Z I");
    assert_eq!(backends(&c, "wait_event = 'PgSleep'"), "0");
    // Time in the queue does not count.
    a.query("begin");
    let mut b = Raw::login(c.port, &[]);
    b.write(|out| write_query(out, "select pg_sleep(0.3), 'late'"));
    for _ in 0..6 {
        a.query("select pg_sleep(0.3)");
    }
    a.query("commit");
    let seen = words(&b.until_ready());
    assert!(seen.ends_with("C SELECT 1 | Z I"), "{seen}");
    // Each statement of a pipeline has its own time.
    a.write(|out| (0..6).for_each(|_| write_query(out, "select pg_sleep(0.3)")));
    for _ in 0..6 {
        let seen = words(&a.until_ready());
        assert!(seen.ends_with("C SELECT 1 | Z I"), "{seen}");
    }
    // In a block the block fails, as PostgreSQL's does.
    a.query("begin");
    assert_eq!(words(&a.query("select pg_sleep(60)")), "T | E 57014 | Z E");
    assert_eq!(words(&a.query("rollback")), "C ROLLBACK | Z I");
}

#[test]
fn a_commit_is_never_cancelled() {
    let c = start(|t| {
        t.query_timeout = Span::secs(1);
        t.transaction_timeout = Span::secs(1);
    });
    c.nodes[0].psql(
        "create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(3); return null; end';
         create table t(a int);
         create constraint trigger late after insert on t deferrable initially deferred
            for each row execute function slow();
         grant all on t to app",
    );
    c.warm();
    let mut a = Raw::login(c.port, &[]);
    a.write(|out| {
        write_query(out, "begin");
        write_query(out, "insert into t values (1)");
        write_query(out, "commit");
    });
    let seen: Vec<String> = (0..3).map(|_| words(&a.until_ready())).collect();
    assert_eq!(seen, ["C BEGIN | Z T", "C INSERT 0 1 | Z T", "C COMMIT | Z I"]);
}

#[test]
fn a_transaction_open_for_too_long_is_ended() {
    let c = start(|t| t.transaction_timeout = Span::secs(1));
    let mut a = Raw::login(c.port, &[]);
    let seen = words(&a.query("begin; select pg_sleep(60)"));
    assert!(seen.starts_with("C BEGIN | T | E 57014"), "{seen}");
    wait_for("the session to be ended", || (a.next() == "EOF").then_some(()));
    let mut b = Raw::login(c.port, &[]);
    b.query("begin");
    assert_eq!((b.next(), b.next()), ("E 25P04".into(), "EOF".into()));
    let mut d = Raw::login(c.port, &[]);
    assert_eq!(words(&d.query("select pg_sleep(60)")), "T | E 57014 | Z I", "a statement is a transaction too");
    assert_eq!(words(&d.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn a_client_that_takes_nothing_frees_its_server() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 1;
        raw.timeouts.client_write_timeout = Span::millis(500);
    });
    let mut slow = Raw::login(c.port, &[]);
    slow.write(|out| write_query(out, "select repeat('x', 1000) from generate_series(1, 100000)"));
    let mut other = Raw::login(c.port, &[]);
    assert_eq!(words(&other.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    wait_for("the slow client's statement to end", || {
        (backends(&c, "query like '%generate_series%' and state = 'active'") == "0").then_some(())
    });
}

#[test]
fn a_server_that_does_not_end_a_cancelled_statement_is_given_up_and_a_write_is_in_doubt() {
    let c = start(|t| t.query_timeout = Span::secs(3));
    let (mut a, mut reader) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    a.query("create table t(a int)");
    reader.query("select 1");
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    holder.query("lock table t");
    a.write(|out| write_query(out, "insert into t values (1)"));
    let pid = wait_for("the insert to wait", || {
        let sql = "select pid from pg_stat_activity where usename = 'app' and wait_event_type = 'Lock'";
        c.nodes[0].psql(sql).parse::<i32>().ok()
    });
    reader.write(|out| ["select pg_sleep(60)", "select 2"].iter().for_each(|sql| write_query(out, sql)));
    let asleep = wait_for("the read to run", || {
        let sql = "select pid from pg_stat_activity where usename = 'app' and wait_event = 'PgSleep'";
        c.nodes[0].psql(sql).parse::<i32>().ok()
    });
    let signal = |signal| [pid, asleep].map(|pid| kill(nix::unistd::Pid::from_raw(pid), signal).unwrap());
    signal(Signal::SIGSTOP);
    let seen = words(&a.until_ready());
    // A read is not begun anew elsewhere, where it would not end either; what came behind it is.
    let read = [words(&reader.until_ready()), words(&reader.until_ready())];
    signal(Signal::SIGCONT);
    assert!(seen == "E 08007 | Z I", "{seen}");
    assert_eq!(read, ["E 57014 | Z I", "T | D 2 | C SELECT 1 | Z I"]);
    assert_eq!(words(&a.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn a_limit_of_the_clients_own_is_told_in_the_servers_words_and_no_server_is_lost() {
    let c = Cluster::start(0, |_| {});
    let timed_out = |client: &mut Raw, code: &str| {
        assert_eq!((client.next(), client.next()), (format!("E {code}"), "EOF".to_owned()));
    };
    let mut a = Raw::login(c.port, &[]);
    a.query("set idle_in_transaction_session_timeout = '200ms'");
    a.query("begin");
    timed_out(&mut a, "25P03");
    // Its role may have it, or its login.
    let mut b = Raw::login(c.port, &[("idle_in_transaction_session_timeout", "200ms")]);
    b.query("begin; select 1");
    timed_out(&mut b, "25P03");
    // Outside a transaction only a session that keeps its server is told; who has none never waits there.
    let mut d = Raw::login(c.port, &[("idle_session_timeout", "200ms")]);
    d.query("listen news");
    timed_out(&mut d, "57P05");
    wait_for("the counters to be handed over", || {
        (c.counter_of("pgtenure_proxy_errors_total", "server") >= 3.0).then_some(())
    });
    assert_eq!(c.counter("pgtenure_proxy_server_losses_total"), 0.0);
    let mut e = Raw::login(c.port, &[]);
    assert_eq!(words(&e.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn who_does_not_log_in_in_time_is_told_so_and_leaves() {
    let c = Cluster::start(0, |raw| (raw.login_timeout, raw.connect_timeout) = (Span::secs(2), Span::secs(2)));
    let mut packet = Vec::new();
    write_startup(&mut packet, [("user", "app"), ("database", "app")].into_iter());
    // One says nothing, one does not end its startup packet, one does not answer the challenge.
    let sent = [&packet[..0], &packet[..packet.len() - 3], &packet];
    let mut waiting: Vec<_> = sent.map(|bytes| (dial(c.port), bytes)).into();
    for (stream, bytes) in &mut waiting {
        stream.write_all(bytes).expect("the endpoint reads");
    }
    for (stream, bytes) in &mut waiting {
        let mut told = Vec::new();
        stream.read_to_end(&mut told).expect("the connection ends");
        let text = String::from_utf8_lossy(&told);
        let whole = text.contains("FATAL") && text.contains("C57014\0Mcanceling authentication due to timeout\0");
        assert!(whole, "{} bytes: {text}", bytes.len());
    }
    let counted = || c.counter_of("pgtenure_proxy_logins_total", "timeout");
    wait_for("them to be counted", || (counted() == 3.0).then_some(()));
    assert_eq!(words(&Raw::login(c.port, &[]).query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn who_does_not_answer_a_challenge_keeps_nobody_from_logging_in() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.auth.max_logins) = (1, 1));
    let mut silent = dial(c.port);
    let mut packet = Vec::new();
    write_startup(&mut packet, [("user", "app"), ("database", "app")].into_iter());
    silent.write_all(&packet).expect("the endpoint reads");
    let mut asked = [0];
    silent.read_exact(&mut asked).expect("it is asked for a password");
    assert_eq!(&asked, b"R");
    assert_eq!(words(&Raw::login(c.port, &[]).query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn more_clients_than_are_taken_are_refused_except_at_the_console() {
    let c = Cluster::start(0, |raw| {
        (raw.max_client_connections, raw.workers) = (2, 1);
        raw.login_timeout = Span::secs(60);
        raw.console.stats_users = vec!["app".to_owned()];
    });
    let psql = |database: &str, sql: &str| {
        let mut command = c.client("psql");
        command.env("PGDATABASE", database).args(["-X", "-A", "-t", "-v", "VERBOSITY=verbose", "-c", sql]);
        let output = command.output().expect("psql can be started");
        let said = if output.status.success() { &output.stdout } else { &output.stderr };
        (output.status.success(), String::from_utf8_lossy(said).trim().to_owned())
    };
    let (first, mut second) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let (served, said) = psql("app", "select 1");
    assert!(!served && said.contains("FATAL:  sorry, too many clients already"), "{said}");
    assert!(said.contains("This proxy takes 2 connections."), "{said}");
    assert!(psql("pgtenure", "show clients").0, "who looks why is let in");
    assert_eq!(words(&second.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    drop(first);
    wait_for("the next one to be served", || (psql("app", "select 1") == (true, "1".to_owned())).then_some(()));
    assert!(c.counter_of("pgtenure_proxy_logins_total", "too_many") >= 1.0);
    // Who connects and does not log in takes nobody's place: the oldest of them makes room, and of those first who has not
    // even said who it is. Twice as many may be connected as may be clients.
    let handle = c.handle.as_ref().expect("the proxy runs");
    let connected = |count: u64| {
        wait_for("them to be counted", || (handle.status().totals.sessions == count).then_some(()));
    };
    let mut packet = Vec::new();
    write_startup(&mut packet, [("user", "app"), ("database", "app")].into_iter());
    connected(1);
    let begin = |count: u64, bytes: &[u8]| {
        let mut stream = dial(c.port);
        stream.write_all(bytes).expect("the endpoint reads");
        connected(count);
        stream
    };
    let gone = |stream: &mut std::net::TcpStream| {
        stream.set_nonblocking(true).expect("a TCP socket");
        loop {
            match stream.read(&mut [0; 512]) {
                Ok(1..) => {}
                Ok(0) => return true,
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    };
    let (mut named, mut first, mut next) = (begin(2, &packet), begin(3, &[0, 0]), begin(4, &[0, 0]));
    assert_eq!(psql("app", "select 1"), (true, "1".to_owned()));
    assert!(gone(&mut first) && !gone(&mut next) && !gone(&mut named));
    connected(3);
    let mut last = begin(4, &[0, 0]);
    assert_eq!(psql("app", "select 1"), (true, "1".to_owned()));
    assert!(gone(&mut next) && !gone(&mut last) && !gone(&mut named));
    drop((named, last));
    connected(1);
    let (listed, lists) = psql("pgtenure", "show lists");
    assert!(listed && lists.contains("login_clients|0\n"), "{lists}");
}
