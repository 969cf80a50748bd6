//! Replication connections through the endpoint, with PostgreSQL's own tools.

use super::common::authority::Authority;
use super::common::raw::{Raw, let_commits_wait, wait_until_waiting};
use super::common::{self, Cluster, dial, has, wait_for};
use proxy::config::tls::ClientMode;
use proxy::route::durability::Durability;
use proxy::wire::backend::parameter_status;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
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
fn the_tools_work_over_tls() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    authority.sign("server", "endpoint", &["127.0.0.1"]);
    let c = Cluster::start(1, |raw| {
        raw.auth.rules.push("host replication app all scram-sha-256".to_owned());
        raw.tls.mode = ClientMode::Require;
        (raw.tls.cert, raw.tls.key) = (Some(authority.path("server.crt")), Some(authority.path("server.key")));
    });
    c.nodes[0].psql("alter role app replication");
    let tool = |program: &str, sslmode: &str| {
        let mut command = c.client(program);
        command.env("PGSSLMODE", sslmode);
        command
    };
    let dir = tempfile::tempdir().unwrap();
    let (ok, text) = output(tool("pg_receivewal", "disable").args(["-S", "s1", "--create-slot"]));
    assert!(!ok && text.contains("connection requires TLS"), "{text}");
    c.psql("create table t as select generate_series(1, 100000) as a").unwrap();
    let copy = dir.path().join("copy");
    let mut backup = tool("pg_basebackup", "require");
    let (ok, text) = output(backup.arg("-D").arg(&copy).args(["-c", "fast", "-X", "stream", "--no-sync"]));
    assert!(ok, "{text}");
    let (ok, text) = output(Command::new(common::bin("pg_verifybackup")).arg("-n").arg(&copy));
    assert!(ok, "{text}");
    let (ok, text) = output(tool("pg_receivewal", "require").args(["-S", "s1", "--create-slot"]));
    assert!(ok, "{text}");
    let logical = ["-d", "app", "-S", "s2", "--create-slot", "-P", "test_decoding"];
    let (ok, text) = output(tool("pg_recvlogical", "require").args(logical));
    assert!(ok, "{text}");
    let mut wal = tool("pg_receivewal", "require");
    wal.arg("-D").arg(dir.path()).args(["-S", "s1", "--no-loop"]).stderr(Stdio::piped());
    let mut wal = Running(wal.spawn().unwrap());
    let mut changes = tool("pg_recvlogical", "require");
    changes.args(["-d", "app", "-S", "s2", "--start", "-f", "-", "--no-loop"]);
    let mut changes = Running(changes.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(changes.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    // Many records of TLS.
    c.psql("insert into t select generate_series(100001, 120000)").unwrap();
    assert!(lines.any(|l| l.contains("INSERT: a[integer]:120000")), "every change comes through");
    wait_for("WAL to be received", || {
        let sql = "select count(*) from pg_stat_replication where application_name like 'pg_rec%' \
                   and state = 'streaming' and sent_lsn >= pg_current_wal_flush_lsn()";
        (c.nodes[0].psql(sql) == "2").then_some(())
    });
    // The farewell is encrypted, too.
    c.fail_over_to(1);
    for tool in [&mut wal.0, &mut changes.0] {
        assert!(!tool.wait().unwrap().success());
        let mut text = String::new();
        tool.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
        assert!(text.contains("terminating connection"), "{text}");
    }
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

/// As libpq: send the request, and wait until it has been dealt with.
fn cancel(c: &Cluster, s: &Raw) {
    let mut request = dial(c.port);
    request.write_all(&cancel_request(s.key.0, s.key.1)).unwrap();
    assert_eq!(request.read(&mut [0]).unwrap(), 0);
}

/// A connection for logical replication runs SQL as well.
#[test]
fn a_cancel_request_stops_what_streams_and_what_runs_there_and_no_wait_for_standbys() {
    let c = start(0);
    let mut s = Raw::login(c.port, &[("replication", "database")]);
    s.write(|out| write_query(out, "select pg_sleep(600)"));
    wait_for("the statement to run", || {
        (c.nodes[0].psql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'") == "1").then_some(())
    });
    cancel(&c, &s);
    assert_eq!(s.until_ready(), ["T", "E 57014", "Z I"]);
    let made = s.query("CREATE_REPLICATION_SLOT changes LOGICAL test_decoding");
    assert_eq!(made.last().map(String::as_str), Some("Z I"), "{made:?}");
    s.write(|out| write_query(out, "START_REPLICATION SLOT changes LOGICAL 0/0"));
    assert_eq!(s.next(), "W");
    wait_for("it to have streamed all", || {
        let sql = "select count(*) from pg_stat_activity where wait_event ilike 'walsender%'";
        (c.nodes[0].psql(sql) == "1").then_some(())
    });
    cancel(&c, &s);
    let seen = s.until_ready();
    assert_eq!(seen.iter().rev().take(2).collect::<Vec<_>>(), ["Z I", "E 57014"], "{seen:?}");
    let_commits_wait(&c);
    s.write(|out| write_query(out, "create table t(a int)"));
    wait_until_waiting(&c, 1);
    cancel(&c, &s);
    // The request has been dealt with, and it still waits.
    wait_until_waiting(&c, 1);
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(s.until_ready(), ["C CREATE TABLE", "Z I"]);
}

#[test]
fn who_runs_sql_there_may_begin_with_no_less_than_the_clusters_mode() {
    let c = Cluster::start(0, |raw| raw.durability.level = Some(Durability::Applied));
    c.nodes[0].psql("alter role app replication");
    let begin = |parameter: &str| {
        let dsn = format!("replication=database dbname=app {parameter}");
        output(c.client("psql").args(["-X", "-A", "-t", "-d", &dsn, "-c", "show synchronous_commit"]))
    };
    for parameter in ["synchronous_commit", "pgtenure.durability"] {
        let (ok, text) = begin(&format!("options='-c {parameter}=local'"));
        assert!(!ok && text.contains("below the cluster's mode"), "{text}");
    }
    assert_eq!(begin("").1.trim(), "remote_apply");
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

/// A way to a server whose answers are passed on by `pass`.
fn way_to(port: u16, pass: impl Fn(TcpStream, TcpStream) -> std::io::Result<()> + Copy + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                // The server hears that nobody is there any more.
                let _ = to.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || pass(server, client));
        }
    });
    here
}

fn message(server: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; 5];
    server.read_exact(&mut message)?;
    let length = u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize;
    message.resize(length + 1, 0);
    server.read_exact(&mut message[5..])?;
    Ok(message)
}

/// It never says whether it is in recovery, as before PostgreSQL 14.
fn without_recovery(mut server: TcpStream, mut client: TcpStream) -> std::io::Result<()> {
    loop {
        let message = message(&mut server)?;
        let told = message[0] == b'S' && parameter_status(&message).is_some_and(|(name, _)| name == "in_hot_standby");
        if !told {
            client.write_all(&message)?;
        }
    }
}

/// It dies within what it streams, so far into the first message of that.
fn cut(mut server: TcpStream, mut client: TcpStream, at: usize) -> std::io::Result<()> {
    loop {
        let message = message(&mut server)?;
        let streamed = message[0] == b'd';
        client.write_all(if streamed { &message[..at] } else { &message })?;
        if streamed {
            return client.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn who_streams_sees_the_death_of_its_server() {
    let c = start(0);
    let port = c.nodes[0].port;
    let lsn = c.nodes[0].psql("select pg_current_wal_lsn()");
    c.nodes[0].psql("create table t()");
    // Nothing can be said within a message: the connection ends there.
    for (at, seen) in [(0, &["W", "E 57P01", "EOF"][..]), (7, &["W", "EOF"])] {
        let port = way_to(port, move |server, client| cut(server, client, at));
        c.publish(|t| t.primary.as_mut().expect("there is one").postgres.port = port);
        let mut s = Raw::login(c.port, &[("replication", "true")]);
        s.write(|out| write_query(out, &format!("START_REPLICATION PHYSICAL {lsn}")));
        assert_eq!(s.until_ready(), seen, "{at}");
    }
}

#[test]
fn a_server_that_does_not_say_whether_it_is_in_recovery_is_asked() {
    let mut typed = None;
    let c = Cluster::start(1, |raw| {
        raw.auth.rules.push("host replication app all scram-sha-256".to_owned());
        typed = Some(raw.clone());
    });
    c.nodes[0].psql("alter role app replication");
    let lead_to = |node: usize| {
        let port = way_to(c.nodes[node].port, without_recovery);
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
    // A standby behind the primary's name is not taken for it. Who is refused waits until this is over.
    let mut soon = typed.expect("they were set");
    soon.hold_timeout = cluster::config::Span::secs(1);
    c.reload(soon);
    lead_to(1);
    assert_eq!(each()[..2], [false; 2]);
}

#[test]
fn attempts_at_a_standby_leave_it_all_its_walsenders() {
    let c = Cluster::start(1, |raw| {
        raw.auth.rules.push("host replication app all scram-sha-256".to_owned());
        // For more attempts than it has walsenders; whoever is told that these are all taken waits for longer.
        raw.hold_timeout = cluster::config::Span::secs(5);
        raw.query_wait_timeout = cluster::config::Span::secs(30);
    });
    c.nodes[0].psql("alter role app replication");
    c.replicate();
    let standby = c.nodes[1].port;
    c.publish(|t| t.primary.as_mut().expect("there is one").postgres.port = standby);
    let before = c.counter_of("pgtenure_proxy_server_connects_total", "wrong_role");
    for kind in ["true", "database"] {
        let dsn = format!("replication={kind} dbname=app");
        let (ok, text) = output(c.client("psql").args(["-X", "-d", &dsn, "-c", "IDENTIFY_SYSTEM"]));
        assert!(!ok && text.contains("the primary cannot be reached"), "{kind}: {text}");
    }
    let attempts = c.counter_of("pgtenure_proxy_server_connects_total", "wrong_role") - before;
    assert!(attempts > 5.0, "{attempts} attempts");
}
