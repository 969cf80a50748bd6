//! Replication connections through the endpoint, with PostgreSQL's own tools.

mod common;

use common::{Cluster, wait_for};
use std::io::{BufRead, BufReader};
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
