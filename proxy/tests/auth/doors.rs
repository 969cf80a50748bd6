//! The ways in besides plain TCP: a Unix-domain socket, and a proxy before ours.

use super::common::raw::Raw;
use super::common::slow::Slow;
use super::common::{Cluster, DEADLINE, dial, wait_for};
use cluster::topology::{Closed, Gate};
use proxy::console::tally::Counter;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::write_startup;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[test]
fn clients_of_this_host_come_through_the_unix_socket() {
    let dir = tempfile::Builder::new().prefix("pgt").tempdir().unwrap();
    let c = Cluster::start(0, |raw| {
        raw.unix_socket_dir = Some(dir.path().to_owned());
        raw.unix_socket_permissions = "0700".to_owned();
    });
    let mut psql = c.client("psql");
    let psql = psql.env("PGHOST", dir.path()).args(["-X", "-A", "-t", "-c", "select 1", "-c", "\\conninfo"]);
    let output = psql.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.starts_with("1\n") && (text.contains("via socket in") || text.contains("Socket Directory|")),
        "{text} {:?}",
        output.stderr
    );
    let big = c
        .client("psql")
        .env("PGHOST", dir.path())
        .args(["-X", "-A", "-t", "-c", "select repeat('x', 5000000)"])
        .output();
    assert_eq!(big.unwrap().stdout.len(), 5_000_001);
}

/// So many messages of this length does a socket of this host hold.
fn capacity(length: usize) -> usize {
    let (mut ours, _theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let message = vec![0; length];
    let mut taken = 0;
    loop {
        match ours.write(&message) {
            Ok(n) => assert_eq!(n, length, "a short message is taken whole or not"),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                return taken;
            }
        }
        taken += 1;
    }
}

/// Bytes that have come and were not read.
fn unread(socket: &UnixStream) -> usize {
    let mut unread: libc::c_int = 0;
    // SAFETY: the kernel writes a number there.
    assert_eq!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut unread) }, 0);
    usize::try_from(unread).unwrap()
}

fn wait_until_unread(socket: &UnixStream, bytes: usize) {
    let begun = Instant::now();
    while unread(socket) < bytes {
        assert!(begun.elapsed() < DEADLINE, "waited {DEADLINE:?} for {bytes} bytes");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Bytes of the answer to a question.
fn length_of_answer(raw: &mut Raw<UnixStream>, question: &[u8]) -> usize {
    raw.send(question);
    let mut length = 0;
    while let Some((kind, frame)) = raw.frame() {
        length += frame.len();
        if kind == b'Z' {
            break;
        }
    }
    length
}

/// Statements that were answered.
fn answered(c: &Cluster) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let view = runtime.block_on(c.handle.as_ref().unwrap().view(DEADLINE)).expect("the worker answers");
    view.tallies.iter().map(|t| t.totals[Counter::Queries as usize]).sum()
}

#[test]
fn who_goes_before_it_has_read_finds_all_answers() {
    let dir = tempfile::Builder::new().prefix("pgt").tempdir().unwrap();
    let c = Cluster::start(0, |raw| {
        raw.unix_socket_dir = Some(dir.path().to_owned());
        raw.workers = 1;
    });
    let path = dir.path().join(format!(".s.PGSQL.{}", c.port));
    let login = || Raw::over(UnixStream::connect(&path).unwrap(), &[]);
    let mut question = Vec::new();
    write_query(&mut question, "select repeat('x', 1900)");
    let length = length_of_answer(&mut login(), &question);
    let holds = capacity(length);
    for (answers, half_closes) in [(holds, true), (holds, false), (holds + 1, true), (holds + 1, false)] {
        let mut raw = login();
        let all_of_them = answered(&c) + answers as u64;
        // Each by itself, so that each is a message of its own.
        for nth in 1..answers {
            raw.send(&question);
            wait_until_unread(&raw.stream, nth * length);
        }
        // The last one comes when it is known already that nothing follows.
        if half_closes {
            raw.send(&question);
            raw.stream.shutdown(Shutdown::Write).unwrap();
        } else {
            raw.send(&[&question[..], b"X\0\0\0\x04"].concat());
        }
        wait_for("the last answer", || (answered(&c) >= all_of_them).then_some(()));
        assert_eq!(unread(&raw.stream), holds.min(answers) * length, "a socket holds {holds}");
        let mut all = Vec::new();
        raw.stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), answers * length, "{answers} answers, a socket holds {holds}, {half_closes}");
    }
}

#[test]
fn the_rest_of_an_answer_is_sent_while_the_next_statement_waits_for_a_server() {
    let dir = tempfile::Builder::new().prefix("pgt").tempdir().unwrap();
    let c = Cluster::start(0, |raw| {
        raw.unix_socket_dir = Some(dir.path().to_owned());
        raw.workers = 1;
        raw.hold_timeout = cluster::config::Span::secs(600);
    });
    c.nodes[0].psql("create table t(a int); insert into t values (1); grant all on t to app");
    let path = dir.path().join(format!(".s.PGSQL.{}", c.port));
    let mut raw = Raw::over(UnixStream::connect(&path).unwrap(), &[]);
    raw.stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut question = Vec::new();
    write_query(&mut question, "select repeat('x', 1900) from t");
    let length = length_of_answer(&mut raw, &question);
    let holds = capacity(length);
    for nth in 1..=holds {
        raw.send(&question);
        wait_until_unread(&raw.stream, nth * length);
    }
    // One more answer, which comes when the gate is closed, and a statement that waits for that to open.
    let mut locker = Raw::login(c.nodes[0].port, &[]);
    locker.query("begin");
    locker.query("lock table t");
    let before = answered(&c);
    let mut both = question.clone();
    write_query(&mut both, "select 'and then'");
    raw.send(&both);
    wait_for("the statement to wait for the table", || {
        (c.nodes[0].psql("select count(*) from pg_locks where not granted") == "1").then_some(())
    });
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    locker.query("commit");
    wait_for("the last answer", || (answered(&c) > before).then_some(()));
    for nth in 0..=holds {
        assert_eq!(raw.until_ready().last().map(String::as_str), Some("Z I"), "answer {nth} of {}", holds + 1);
    }
    c.publish(|t| t.gate = Gate::Open);
    assert_eq!(raw.until_ready()[1..], ["D and then", "C SELECT 1", "Z I"]);
}

/// What is answered to a startup packet behind `header`.
fn answer(c: &Cluster, header: &[u8], user: &str) -> String {
    let mut s = dial(c.port);
    let mut out = header.to_vec();
    write_startup(&mut out, [("user", user), ("database", "app")].into_iter());
    s.write_all(&out).unwrap();
    let mut all = vec![0; 4096];
    // A refused connection may end in a reset.
    let n = s.read(&mut all).unwrap_or(0);
    String::from_utf8_lossy(&all[..n]).into_owned()
}

#[test]
fn a_trusted_proxy_must_tell_whom_it_brings_and_rules_see_that_client() {
    let c = Cluster::start(0, |raw| {
        raw.proxy_protocol_from = vec!["127.0.0.0/8".to_owned()];
        raw.auth.rules = vec![
            "host all all 192.0.2.0/24 scram-sha-256".to_owned(),
            "host all all 2001:db8::/32 scram-sha-256".to_owned(),
        ];
    });
    let v2 = |ip: [u8; 4]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        header.extend(ip);
        header.extend([10, 0, 0, 2, 0x30, 0x39, 0x19, 0x20]);
        header
    };
    for header in [
        b"PROXY TCP4 192.0.2.9 10.0.0.2 1 2\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::9 ::1 1 2\r\n".to_vec(),
        v2([192, 0, 2, 9]),
    ] {
        let text = answer(&c, &header, "app");
        assert!(text.starts_with('R') && text.contains("SCRAM-SHA-256"), "{header:?}: {text:?}");
    }
    for header in [b"PROXY TCP4 198.51.100.1 10.0.0.2 1 2\r\n".to_vec(), v2([198, 51, 100, 1])] {
        let text = answer(&c, &header, "app");
        assert!(text.starts_with('E') && text.contains("198.51.100.1"), "{header:?}: {text:?}");
    }
    // However slowly it comes, and what follows it.
    for header in [b"PROXY TCP4 192.0.2.9 10.0.0.2 1 2\r\n".to_vec(), v2([192, 0, 2, 9])] {
        let mut slow = Slow::new(dial(c.port));
        slow.write_all(&header).unwrap();
        assert_eq!(Raw::over(slow, &[]).query("select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
    }
    // The header is not optional, and what is no header is not read on.
    assert_eq!(answer(&c, b"", "app"), "");
    assert_eq!(answer(&c, b"PROXY TCP4 nonsense\r\n", "app"), "");
}
