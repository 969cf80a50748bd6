//! The protocol, byte by byte, against a real server: what drivers do, and what they never do.

mod abuse;
#[path = "../common/mod.rs"]
mod common;
mod conversations;
mod drivers;
mod replication;
mod timeouts;

use common::raw::{Raw, bind, close, describe, execute, flush, parse, run, sync};
use common::{Cluster, dial, wait_for};
use proxy::wire::backend::fields;
use proxy::wire::codec::{head, message};
use proxy::wire::frontend::write_query;
use proxy::wire::startup::{cancel_request, write_startup};
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

fn words(seen: &[String]) -> String {
    seen.join(" | ")
}

#[test]
fn startup_is_answered_as_postgresql_does() {
    let c = Cluster::start(0, |_| {});
    // SSL and GSS in either order, each declined once, and refused when asked again.
    for codes in [[80_877_103u32, 80_877_104], [80_877_104, 80_877_103]] {
        let mut s = dial(c.port);
        let ask = |s: &mut std::net::TcpStream, code: u32| {
            s.write_all(&[&8u32.to_be_bytes()[..], &code.to_be_bytes()[..]].concat()).unwrap();
        };
        let mut byte = [0];
        for code in codes {
            ask(&mut s, code);
            s.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"N");
        }
        ask(&mut s, codes[0]);
        let mut all = Vec::new();
        let _ = s.read_to_end(&mut all);
        assert!(String::from_utf8_lossy(&all).contains("08P01"), "{codes:?}");
    }
    // A second request for encryption, garbage, and an HTTP request end the connection with an error.
    for bytes in [&[0, 0, 0, 8, 4, 210, 22, 47, 0, 0, 0, 8, 4, 210, 22, 47][..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64]]
    {
        let mut s = dial(c.port);
        s.write_all(bytes).unwrap();
        let mut all = Vec::new();
        let _ = s.read_to_end(&mut all);
        let text = String::from_utf8_lossy(&all).into_owned();
        assert!(text.contains("08P01"), "{bytes:?}: {text:?}");
    }
    // What PostgreSQL says word for word; to protocol 2 in its own form. It reads what is `replication` first of all.
    let replication = |value: &str| {
        let mut out = Vec::new();
        write_startup(&mut out, [("replication", value), ("user", "nobody")].into_iter());
        out
    };
    let old = [&16u32.to_be_bytes()[..], &[0, 2, 0, 0], &[0; 8]].concat();
    let said = |port, bytes: &[u8]| {
        let mut s = dial(port);
        s.write_all(bytes).unwrap();
        let mut all = Vec::new();
        let _ = s.read_to_end(&mut all);
        match head(&all) {
            Ok(Some(h)) if h.total == all.len() => {
                let f = fields(&all);
                format!("{} {} ", String::from_utf8_lossy(f.code), String::from_utf8_lossy(f.message))
            }
            _ => String::from_utf8_lossy(&all).into_owned(),
        }
    };
    for bytes in [old, replication("nonsense"), replication("")] {
        // 18 has 3.2, which it tells of here.
        assert_eq!(said(c.port, &bytes), said(c.nodes[0].port, &bytes).replace("3.0 to 3.2", "3.0 to 3.0"));
    }
    let raw = Raw::login(c.port, &[("application_name", "mine"), ("DateStyle", "SQL, DMY"), ("_pq_.x", "1")]);
    let setting = |name: &str| raw.settings.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(setting("application_name"), Some("mine"));
    assert_eq!(setting("DateStyle"), Some("SQL, DMY"));
    assert_eq!(setting("in_hot_standby"), Some("off"));
}

#[test]
fn broken_messages_end_only_their_own_connection() {
    let c = Cluster::start(0, |_| {});
    let mut good = Raw::login(c.port, &[]);
    for bytes in [&b"Q\0\0\0\x03"[..], b"Q\xff\xff\xff\xff", b"\x01garbage", b"S\0\x10\0\0", b"y\0\0\0\x04"] {
        let mut raw = Raw::login(c.port, &[]);
        raw.send(bytes);
        let seen = words(&raw.until_ready());
        assert_eq!(seen, "E 08P01 | EOF", "{bytes:?}");
    }
    // What is malformed only inside is the server's to refuse, and the connection goes on behind the Sync.
    let mut raw = Raw::login(c.port, &[]);
    raw.send(b"P\0\0\0\x06x\0");
    raw.write(sync);
    assert_eq!(words(&raw.until_ready()), "E 08P01 | Z I");
    assert_eq!(words(&raw.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    assert_eq!(words(&good.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
}

#[test]
fn simple_queries_and_their_errors() {
    let c = Cluster::start(0, |_| {});
    let mut raw = Raw::login(c.port, &[]);
    for (sql, want) in [
        ("", "I | Z I"),
        ("-- nothing", "I | Z I"),
        ("select 1; select 2", "T | D 1 | C SELECT 1 | T | D 2 | C SELECT 1 | Z I"),
        ("create table t(a int); insert into t values(1); select 1/0", "C CREATE TABLE | C INSERT 0 1 | E 22012 | Z I"),
        ("select * from t", "E 42P01 | Z I"),
        ("begin", "C BEGIN | Z T"),
        ("select 1/0", "E 22012 | Z E"),
        ("select 1", "E 25P02 | Z E"),
        ("commit", "C ROLLBACK | Z I"),
        ("rollback", "N 25P01 | C ROLLBACK | Z I"),
    ] {
        assert_eq!(words(&raw.query(sql)), want, "{sql}");
    }
}

#[test]
fn pipelines_are_answered_in_order() {
    let c = Cluster::start(1, |_| {});
    let mut raw = Raw::login(c.port, &[]);
    raw.write(|out| {
        write_query(out, "create table t(a int)");
        for i in 0..300 {
            run(out, &format!("insert into t values ({i})"));
            sync(out);
        }
        write_query(out, "select count(*) from t");
        run(out, "select 1/0");
        run(out, "insert into t values (0)");
        sync(out);
        run(out, "select 7");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "C CREATE TABLE | Z I");
    for _ in 0..300 {
        assert_eq!(words(&raw.until_ready()), "1 | 2 | C INSERT 0 1 | Z I");
    }
    assert_eq!(words(&raw.until_ready()), "T | D 300 | C SELECT 1 | Z I");
    assert_eq!(words(&raw.until_ready()), "1 | E 22012 | Z I");
    assert_eq!(words(&raw.until_ready()), "1 | 2 | D 7 | C SELECT 1 | Z I");
}

#[test]
fn a_flush_brings_answers_before_the_sync_and_an_error_skips_to_it() {
    let c = Cluster::start(0, |_| {});
    let mut raw = Raw::login(c.port, &[]);
    raw.write(|out| {
        parse(out, "s", "select 1");
        describe(out, "s");
        flush(out);
    });
    assert_eq!([raw.next(), raw.next(), raw.next()], ["1", "t", "T"]);
    raw.write(|out| {
        bind(out, "", "s", &[]);
        execute(out, "");
        flush(out);
    });
    assert_eq!([raw.next(), raw.next(), raw.next()], ["2", "D 1", "C SELECT 1"]);
    raw.write(|out| {
        bind(out, "", "nowhere", &[]);
        execute(out, "");
    });
    // PostgreSQL sends an error at once, and a Query before the Sync is thrown away with the rest.
    assert_eq!(raw.next(), "E 26000");
    raw.write(|out| {
        write_query(out, "select 2");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "Z I");
    // A Query may follow extended messages without a Sync.
    raw.write(|out| {
        run(out, "select 3");
        write_query(out, "select 4");
    });
    // From 18 on its end is not that of what was executed before it.
    let status = if c.nodes[0].psql("show server_version_num").as_str() < "180000" { "I" } else { "T" };
    assert_eq!(words(&raw.until_ready()), format!("1 | 2 | D 3 | C SELECT 1 | T | D 4 | C SELECT 1 | Z {status}"));
}

#[test]
fn prepared_statements_follow_the_client_from_server_to_server() {
    let c = Cluster::start(1, |_| {});
    let mut a = Raw::login(c.port, &[]);
    a.write(|out| {
        parse(out, "s", "select current_setting('cluster_name'), $1::int");
        describe(out, "s");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | t | T | Z I");
    let run_it = |a: &mut Raw| {
        a.write(|out| {
            bind(out, "", "s", &["5"]);
            execute(out, "");
            sync(out);
        });
        words(&a.until_ready())
    };
    for _ in 0..3 {
        // A write makes the next reads go to the primary until the standby is known to have it.
        a.query("select pg_current_xact_id()");
        assert_eq!(run_it(&mut a), "2 | D n1 5 | C SELECT 1 | Z I");
        wait_for("the statement to run on the standby", || {
            (run_it(&mut a) == "2 | D n2 5 | C SELECT 1 | Z I").then_some(())
        });
    }
    // Names behave as PostgreSQL's: taken, closed, free again, unknown.
    a.write(|out| {
        parse(out, "s", "select 2");
        sync(out);
        close(out, "s");
        parse(out, "s", "select 3");
        bind(out, "", "s", &[]);
        execute(out, "");
        sync(out);
        close(out, "s");
        describe(out, "s");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "E 42P05 | Z I");
    assert_eq!(words(&a.until_ready()), "3 | 1 | 2 | D 3 | C SELECT 1 | Z I");
    assert_eq!(words(&a.until_ready()), "3 | E 26000 | Z I");
    // A Parse that fails leaves its name free; a Parse in an aborted unit does too.
    a.write(|out| {
        parse(out, "bad", "select from from");
        sync(out);
        parse(out, "bad", "select 4");
        bind(out, "", "bad", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "E 42601 | Z I");
    assert_eq!(words(&a.until_ready()), "1 | 2 | D 4 | C SELECT 1 | Z I");
    // The unnamed statement of an earlier unit is there, until a simple query destroys it.
    a.write(|out| {
        parse(out, "", "select 5");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | Z I");
    let mut other = Raw::login(c.port, &[]);
    other.write(|out| {
        run(out, "select 'not mine'");
        sync(out);
    });
    assert_eq!(words(&other.until_ready()), "1 | 2 | D not mine | C SELECT 1 | Z I");
    for want in ["2 | D 5 | C SELECT 1 | Z I", "E 26000 | Z I"] {
        a.write(|out| {
            bind(out, "", "", &[]);
            execute(out, "");
            sync(out);
        });
        assert_eq!(words(&a.until_ready()), want);
        a.query("select 1");
    }
    a.write(|out| {
        parse(out, "gone", "select 6");
        sync(out);
    });
    a.until_ready();
    assert_eq!(words(&a.query("deallocate all")), "C DEALLOCATE ALL | Z I");
    a.write(|out| {
        bind(out, "", "gone", &[]);
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "E 26000 | Z I");
}

#[test]
fn copy_works_in_both_directions_and_fails_cleanly() {
    let c = Cluster::start(0, |_| {});
    let mut raw = Raw::login(c.port, &[]);
    raw.query("create table t(a int)");
    let data = |out: &mut Vec<u8>, text: &str| message(out, b'd', |b| b.extend_from_slice(text.as_bytes()));
    let done = |out: &mut Vec<u8>| message(out, b'c', |_| {});
    raw.write(|out| write_query(out, "copy t from stdin"));
    assert_eq!(raw.next(), "G");
    raw.write(|out| {
        data(out, "1\n2\n");
        data(out, "3\n");
        done(out);
    });
    assert_eq!(words(&raw.until_ready()), "C COPY 3 | Z I");
    raw.write(|out| write_query(out, "copy t from stdin"));
    assert_eq!(raw.next(), "G");
    raw.write(|out| message(out, b'f', |b| b.extend_from_slice(b"no more\0")));
    assert_eq!(words(&raw.until_ready()), "E 57014 | Z I");
    // After an error late data reaches nobody.
    raw.write(|out| write_query(out, "copy t from stdin"));
    assert_eq!(raw.next(), "G");
    raw.write(|out| {
        data(out, "x\n");
        data(out, "4\n");
        done(out);
    });
    assert_eq!(words(&raw.until_ready()), "E 22P02 | Z I");
    raw.write(|out| {
        data(out, "late\n");
        write_query(out, "copy t to stdout");
    });
    assert_eq!(words(&raw.until_ready()), "H | d | d | d | c | C COPY 3 | Z I");
    // Extended, with the Sync sent before the data as libpq does, and one behind.
    raw.write(|out| {
        run(out, "copy t from stdin");
        sync(out);
    });
    assert_eq!([raw.next(), raw.next(), raw.next()], ["1", "2", "G"]);
    raw.write(|out| {
        data(out, "5\n");
        done(out);
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "C COPY 1 | Z I");
    assert_eq!(words(&raw.query("select count(*) from t")), "T | D 4 | C SELECT 1 | Z I");
}

#[test]
fn two_hundred_megabytes_stream_through_in_little_memory() {
    let c = Cluster::start(0, |_| {});
    c.psql("create unlogged table big(a text)").unwrap();
    let before = resident();
    // From here on the most that there was at a time counts.
    std::fs::write("/proc/self/clear_refs", "5").expect("the kernel resets it");
    let mut psql = c.client("psql");
    let mut psql = psql.args(["-X", "-q", "-c", "copy big from stdin"]).stdin(Stdio::piped()).spawn().unwrap();
    let line = [b"x".repeat(999), b"\n".to_vec()].concat();
    let chunk = line.repeat(1000);
    let mut pipe = psql.stdin.take().unwrap();
    (0..200).for_each(|_| pipe.write_all(&chunk).unwrap());
    drop(pipe);
    assert!(psql.wait().unwrap().success());
    assert_eq!(c.psql("select count(*) from big").unwrap(), "200000");
    let mut out = c.client("psql");
    let mut out = out.args(["-X", "-q", "-c", "copy big to stdout"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut bytes = 0;
    let mut buf = vec![0; 1 << 20];
    let mut pipe = out.stdout.take().unwrap();
    loop {
        match pipe.read(&mut buf).unwrap() {
            0 => break,
            n => bytes += n,
        }
    }
    assert_eq!(bytes, 200_000_000);
    assert!(out.wait().unwrap().success());
    // One row of 100 MB, one parameter of 50 MB.
    let mut raw = Raw::login(c.port, &[]);
    raw.write(|out| write_query(out, "select repeat('y', 100000000)"));
    assert_eq!(raw.next(), "T");
    let (kind, frame) = raw.frame().unwrap();
    assert_eq!((kind, frame.len()), (b'D', 100_000_011));
    drop(frame);
    assert_eq!(words(&raw.until_ready()), "C SELECT 1 | Z I");
    let parameter = "z".repeat(50_000_000);
    raw.write(|out| {
        parse(out, "", "select length($1::text)");
        bind(out, "", "", &[&parameter]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&raw.until_ready()), "1 | 2 | D 50000000 | C SELECT 1 | Z I");
    drop((raw, parameter));
    let peak = peak();
    // The test's own buffers for one row and one parameter are in this figure: at most 350 MB, against 900 MB moved.
    assert!(peak < before + 450_000, "{before} KiB before, {peak} KiB at most");
}

/// KiB.
fn resident() -> u64 {
    proc_status("VmRSS:")
}

fn peak() -> u64 {
    proc_status("VmHWM:")
}

fn proc_status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|l| l.strip_prefix(key)).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_slow_client_holds_back_its_server_and_no_one_else() {
    let c = Cluster::start(0, |_| {});
    let mut slow = Raw::login(c.port, &[]);
    slow.write(|out| write_query(out, "select repeat('x', 1000) from generate_series(1, 200000)"));
    let mut quick = Raw::login(c.port, &[]);
    assert_eq!(words(&quick.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    let before = resident();
    wait_for("the server to wait for its client", || {
        let sql = "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'ClientWrite'";
        (c.nodes[0].psql(sql) == "1").then_some(())
    });
    assert!(resident() < before + 50_000, "the result is not buffered");
    let seen = slow.until_ready();
    assert_eq!(seen.len(), 200_003);
}

#[test]
fn a_cancel_request_hits_its_own_statement_only() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let mut raw = Raw::login(c.port, &[]);
    raw.write(|out| write_query(out, "select pg_sleep(60)"));
    wait_for("the statement to run", || {
        let sql = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        (c.nodes[0].psql(sql) == "1").then_some(())
    });
    // A wrong secret does nothing; another session waits for the only connection.
    dial(c.port).write_all(&cancel_request(raw.key.0, raw.key.1 ^ 1)).unwrap();
    let mut waiting = Raw::login(c.port, &[]);
    waiting.write(|out| write_query(out, "select 1"));
    wait_for("the other statement to wait", || (c.handle.as_ref()?.status().totals.held == 1).then_some(()));
    // What waits can be cancelled too, and its session goes on.
    dial(c.port).write_all(&cancel_request(waiting.key.0, waiting.key.1)).unwrap();
    assert_eq!(words(&waiting.until_ready()), "E 57014 | Z I");
    let started = Instant::now();
    dial(c.port).write_all(&cancel_request(raw.key.0, raw.key.1)).unwrap();
    assert_eq!(words(&raw.until_ready()), "T | E 57014 | Z I");
    assert!(started.elapsed() < Duration::from_secs(30));
    for _ in 0..50 {
        // Cancels of an idle session reach nobody.
        dial(c.port).write_all(&cancel_request(raw.key.0, raw.key.1)).unwrap();
        assert_eq!(words(&waiting.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    }
}

#[test]
fn settings_and_pins_leak_to_nobody() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 2;
        raw.query_wait_timeout = cluster::config::Span::millis(1500);
    });
    let mut a = Raw::login(c.port, &[]);
    let mut b = Raw::login(c.port, &[]);
    assert_eq!(words(&a.query("set datestyle = 'SQL'")), "C SET | S DateStyle=SQL, MDY | Z I");
    for _ in 0..3 {
        assert_eq!(words(&b.query("show datestyle")), "T | D ISO, MDY | C SHOW | Z I");
        assert_eq!(words(&a.query("show datestyle")), "T | D SQL, MDY | C SHOW | Z I");
    }
    assert_eq!(words(&a.query("create temp table mine(a int)")), "C CREATE TABLE | Z I");
    assert_eq!(words(&a.query("listen news")), "C LISTEN | Z I");
    assert_eq!(words(&b.query("notify news")), "C NOTIFY | Z I");
    assert_eq!(a.next(), "A");
    // One more pinned session than connections: the next statement waits its time out and the session lives.
    assert_eq!(words(&b.query("create temp table mine(a int)")), "C CREATE TABLE | Z I");
    let mut third = Raw::login(c.port, &[]);
    assert_eq!(words(&third.query("select 1")), "E 53300 | Z I");
    drop(a);
    wait_for("the pinned connection to be closed", || {
        (words(&third.query("show datestyle")) == "T | D ISO, MDY | C SHOW | Z I").then_some(())
    });
}

#[test]
fn the_server_of_a_client_that_vanishes_is_used_again_unless_that_costs_too_much() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 1;
        raw.drain_bytes = cluster::config::Size(64 << 10);
        raw.drain_timeout = cluster::config::Span::secs(3);
    });
    // Before the first client comes: what is not known of yet keeps its client's server.
    let slow = "create function slow() returns text language sql stable as 'select pg_sleep(60)::text'";
    c.nodes[0].psql(&format!("set role app; create table t(a int); {slow}"));
    let pid = |raw: &mut Raw| raw.query("select pg_backend_pid()")[1].clone();
    let mut first = Raw::login(c.port, &[]);
    let server = pid(&mut first);
    let leave: [fn(&mut Raw); 7] = [
        |raw| drop(raw.query("begin; set work_mem = '7MB'; insert into t values (1)")),
        |raw| drop(raw.query("begin; select 1/0")),
        |raw| {
            raw.write(|out| write_query(out, "copy t from stdin"));
            assert_eq!(raw.next(), "G");
        },
        |raw| {
            raw.write(|out| {
                parse(out, "s", "select 1");
                bind(out, "", "s", &[]);
                execute(out, "");
                flush(out);
            });
            assert_eq!([raw.next(), raw.next()], ["1", "2"]);
        },
        |raw| raw.write(|out| write_query(out, "select pg_sleep(0.2), repeat('x', 1000)")),
        // What nobody has read of an answer makes the end of the connection known.
        |raw| {
            raw.write(|out| {
                write_query(out, "select 1");
                write_query(out, "select slow()");
            });
            raw.stream.peek(&mut [0]).unwrap();
        },
        |raw| {
            raw.write(|out| {
                write_query(out, "select 1");
                write_query(out, "begin; insert into t select 1 from pg_sleep(60)");
            });
            raw.stream.peek(&mut [0]).unwrap();
        },
    ];
    for leave in leave {
        let mut raw = Raw::login(c.port, &[]);
        leave(&mut raw);
        drop(raw);
        let mut next = Raw::login(c.port, &[]);
        assert_eq!(pid(&mut next), server, "the server was rolled back and serves on");
        assert_eq!(words(&next.query("select count(*) from t")), "T | D 0 | C SELECT 1 | Z I");
        assert_eq!(words(&next.query("show work_mem")), "T | D 4MB | C SHOW | Z I");
    }
    first.write(|out| write_query(out, "select repeat('x', 1000) from generate_series(1, 100000)"));
    assert_eq!(first.next(), "T");
    // What was not sent yet when the client vanishes is cancelled: nothing may be left to send but what was sent.
    wait_for("all buffers to be full of the result", || {
        let of = server.trim_start_matches("D ");
        let event = c.nodes[0].psql(&format!("select wait_event from pg_stat_activity where pid = {of}"));
        (event == "ClientWrite").then_some(())
    });
    drop(first);
    let mut next = Raw::login(c.port, &[]);
    assert_ne!(pid(&mut next), server, "too long a result is not read to its end");
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let mut a = Raw::login(c.port, &[]);
    a.query("create table t(a int)");
    a.query("begin");
    a.query("insert into t values (1)");
    drop(a);
    let mut b = Raw::login(c.port, &[]);
    assert_eq!(words(&b.query("select count(*) from t")), "T | D 0 | C SELECT 1 | Z I");
    b.write(|out| write_query(out, "copy t from stdin"));
    assert_eq!(b.next(), "G");
    drop(b);
    let mut d = Raw::login(c.port, &[]);
    d.write(|out| write_query(out, "select repeat('x', 1000) from generate_series(1, 100000)"));
    assert_eq!(d.next(), "T");
    drop(d);
    assert_eq!(c.psql("select count(*) from t").unwrap(), "0");
}

#[test]
fn a_client_that_sends_no_more_is_answered_though_its_statement_waits() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    let mut waiting = Raw::login(c.port, &[]);
    waiting.write(|out| write_query(out, "select 1"));
    wait_for("the statement to wait", || (c.handle.as_ref()?.status().totals.held == 1).then_some(()));
    waiting.stream.shutdown(std::net::Shutdown::Write).unwrap();
    holder.query("commit");
    assert_eq!(words(&waiting.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    assert_eq!(waiting.next(), "EOF");
}
