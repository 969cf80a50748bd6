//! Replication connections through the endpoint, with PostgreSQL's own tools.

mod common;

use common::{Cluster, wait_for};
use proxy::wire::backend::parameter_status;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

fn start(standbys: usize) -> Cluster {
    // As in a pg_hba.conf, physical replication belongs to no database.
    let c = Cluster::start(standbys, |raw| raw.auth.rules.push("host replication app all scram-sha-256".to_owned()));
    c.nodes[0].psql("alter role app replication");
    c
}

/// Ends a tool that runs until it is told to.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn output(command: &mut Command) -> (bool, String) {
    let out = command.output().expect("the tool can be started");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

#[test]
fn replication_commands_reach_the_primary() {
    let c = start(0);
    for kind in ["database", "true"] {
        let dsn = format!("replication={kind} dbname=app application_name=mine");
        let (ok, text) = output(c.client("psql").args(["-X", "-A", "-t", "-d", &dsn, "-c", "IDENTIFY_SYSTEM"]));
        assert!(ok && text.contains("|1|0/"), "{kind}: {text}");
        let (_, text) = output(c.client("psql").args(["-X", "-d", &dsn, "-c", "select 1/0"]));
        assert!(text.contains("ERROR"), "{kind}: {text}");
        // The connection is never used again.
        wait_for("the walsender to end", || {
            let sql = "select count(*) from pg_stat_activity where backend_type = 'walsender'";
            (c.nodes[0].psql(sql) == "0").then_some(())
        });
    }
}

#[test]
fn a_base_backup_is_taken_through_the_endpoint() {
    let c = start(0);
    c.psql("create table t as select generate_series(1, 100000) as a").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("copy");
    let mut tool = c.client("pg_basebackup");
    let (ok, text) = output(tool.arg("-D").arg(&target).args(["-c", "fast", "-X", "stream", "--no-sync"]));
    assert!(ok, "{text}");
    let mut verify = Command::new(common::bin("pg_verifybackup"));
    let (ok, text) = output(verify.arg("-n").arg(&target));
    assert!(ok, "{text}");
}

#[test]
fn changes_are_received_and_a_failover_ends_the_stream_with_an_error() {
    let mut c = start(1);
    c.psql("create table t(a int primary key)").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let slot = ["-S", "s1", "--create-slot"];
    let (ok, text) = output(c.client("pg_receivewal").arg("-D").arg(dir.path()).args(slot));
    assert!(ok, "{text}");
    let mut wal = c.client("pg_receivewal");
    let wal = wal.arg("-D").arg(dir.path()).args(["-S", "s1", "--no-loop"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut wal = Running(wal);
    let logical = ["-d", "app", "-S", "s2", "--create-slot", "-P", "test_decoding"];
    let (ok, text) = output(c.client("pg_recvlogical").args(logical));
    assert!(ok, "{text}");
    let mut changes = c.client("pg_recvlogical");
    changes.args(["-d", "app", "-S", "s2", "--start", "-f", "-", "--no-loop"]);
    let changes = changes.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut changes = Running(changes);
    let mut lines = BufReader::new(changes.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    c.psql("insert into t select generate_series(1, 20000)").unwrap();
    assert!(lines.any(|l| l.contains("INSERT: a[integer]:20000")), "every change comes through");
    wait_for("WAL to be received", || {
        let sql =
            "select count(*) from pg_stat_replication where application_name like 'pg_rec%' and state = 'streaming'";
        (c.nodes[0].psql(sql) == "2").then_some(())
    });
    c.fail_over_to(1);
    for tool in [&mut wal.0, &mut changes.0] {
        assert!(!tool.wait().unwrap().success());
        let mut text = String::new();
        std::io::Read::read_to_string(tool.stderr.as_mut().unwrap(), &mut text).unwrap();
        assert!(text.contains("terminating connection"), "{text}");
    }
    c.nodes[0].kill();
}

#[test]
fn a_process_that_stops_says_so_to_those_who_receive() {
    let mut c = start(0);
    let dir = tempfile::tempdir().unwrap();
    let mut wal = c.client("pg_receivewal");
    let wal = wal.arg("-D").arg(dir.path()).arg("--no-loop").stderr(Stdio::piped()).spawn().unwrap();
    let mut wal = Running(wal);
    wait_for("WAL to be streamed", || {
        (c.nodes[0].psql("select count(*) from pg_stat_replication where state = 'streaming'") == "1").then_some(())
    });
    drop(c.handle.take());
    assert!(!wal.0.wait().unwrap().success());
    let mut text = String::new();
    std::io::Read::read_to_string(wal.0.stderr.as_mut().unwrap(), &mut text).unwrap();
    assert!(text.contains("terminating connection due to administrator command"), "{text}");
}

#[test]
fn there_is_a_limit_of_their_own() {
    let c = Cluster::start(0, |raw| {
        raw.auth.rules.push("host replication app all scram-sha-256".to_owned());
        raw.pools.max_replication_connections = 1;
    });
    c.nodes[0].psql("alter role app replication");
    let dir = tempfile::tempdir().unwrap();
    let mut wal = c.client("pg_receivewal");
    let mut wal = Running(wal.arg("-D").arg(dir.path()).arg("--no-loop").stderr(Stdio::null()).spawn().unwrap());
    wait_for("WAL to be streamed", || {
        (c.nodes[0].psql("select count(*) from pg_stat_replication") == "1").then_some(())
    });
    let identify = |kind: &str| {
        let dsn = format!("replication={kind} dbname=app");
        output(c.client("psql").args(["-X", "-A", "-t", "-d", &dsn, "-c", "IDENTIFY_SYSTEM"]))
    };
    for kind in ["database", "true"] {
        let (ok, text) = identify(kind);
        assert!(!ok && text.contains("too many replication connections"), "{kind}: {text}");
    }
    // Others come in, and the next one when the first has gone.
    assert_eq!(c.psql("select 1"), Ok("1".to_owned()));
    wal.0.kill().unwrap();
    wait_for("the place to be free", || identify("true").0.then_some(()));
}

/// A way to a server that never says whether it is in recovery, as before PostgreSQL 14.
fn taciturn(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || without_recovery(&mut server, client));
        }
    });
    here
}

fn without_recovery(server: &mut TcpStream, mut client: TcpStream) -> std::io::Result<()> {
    loop {
        let mut message = vec![0; 5];
        server.read_exact(&mut message)?;
        let length = u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize;
        message.resize(length + 1, 0);
        server.read_exact(&mut message[5..])?;
        let told = message[0] == b'S' && parameter_status(&message).is_some_and(|(name, _)| name == "in_hot_standby");
        if !told {
            client.write_all(&message)?;
        }
    }
}

#[test]
fn a_server_that_does_not_say_whether_it_is_in_recovery_is_asked() {
    let c = Cluster::start(1, |raw| {
        raw.auth.rules.push("host replication app all scram-sha-256".to_owned());
        raw.hold_timeout = cluster::config::Span::secs(1);
    });
    c.nodes[0].psql("alter role app replication");
    let lead_to = |node: usize| {
        let port = taciturn(c.nodes[node].port);
        c.publish(|t| t.primary.as_mut().expect("there is one").postgres.port = port);
    };
    let each = || {
        ["database", "true", "off"].map(|kind| {
            let dsn = format!("replication={kind} dbname=app");
            let sql = if kind == "off" { "select 1" } else { "IDENTIFY_SYSTEM" };
            output(c.client("psql").args(["-X", "-A", "-t", "-d", &dsn, "-c", sql])).0
        })
    };
    lead_to(0);
    assert_eq!(each(), [true; 3]);
    // A standby behind the primary's name is not taken for it.
    lead_to(1);
    assert_eq!(each()[..2], [false; 2]);
}
