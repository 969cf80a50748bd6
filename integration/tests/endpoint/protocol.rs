//! The endpoint speaks PostgreSQL's protocol as PostgreSQL does, byte by byte, in front of a real cluster.

use integration::client::{Client, ClientError, Target, bind, execute, message, parse, parse_error, with_length};
use integration::cluster::{Cluster, one_at_a_time};
use integration::config_file::NODES;
use integration::wait::wait_until;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_endpoint_speaks_the_protocol_as_postgresql_does() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    let target = cluster.target();
    // What PostgreSQL itself does is what these expect: it is asked first.
    let primary = cluster.active().primary;
    for target in [&cluster.node_target(&primary), &target] {
        as_postgresql_does(target);
        connect(target).query("drop table piped").expect("dropped");
    }
    connect(&target).query("create table piped(id int primary key)").expect("a table");
    requests_for_encryption_are_declined_and_the_login_goes_on(&target);
    a_newer_minor_version_is_negotiated_down(&target);
    refused_logins_say_why(&target);
    parameters_are_the_primarys(&target);
    a_cancel_request_needs_the_right_key(&cluster, &target);
    session_state_pins(&target);
    a_client_that_vanishes_leaves_no_open_transaction(&cluster, &target);
    garbage_ends_only_its_own_connection(&target);
    a_huge_row_streams_in_bounded_memory(&mut cluster, &target);
}

fn as_postgresql_does(target: &Target) {
    a_pipeline_with_an_error_skips_to_its_sync(target);
    flush_delivers_without_ending_the_transaction(target);
    several_statements_in_one_query_are_one_transaction(target);
    names_of_prepared_statements_behave(target);
    copy_in_can_fail_and_the_connection_goes_on(target);
}

fn connect(target: &Target) -> Client {
    Client::connect(target).expect("the endpoint accepts the application")
}

fn startup(target: &Target, version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    let named = [("user", target.user.as_str()), ("database", target.database.as_str())];
    for (name, value) in named.iter().chain(parameters) {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    with_length(&body)
}

fn requests_for_encryption_are_declined_and_the_login_goes_on(target: &Target) {
    let mut client = Client::raw(target).expect("it listens");
    for code in [80_877_103u32, 80_877_104] {
        client.send(&with_length(&code.to_be_bytes())).expect("sent");
        assert_eq!(client.byte().expect("an answer"), b'N', "{code}");
    }
    client.send(&startup(target, 196_608, &[])).expect("sent");
    let m = client.reply().expect("an authentication request");
    assert_eq!((m.tag, &m.body[..4]), (b'R', &10u32.to_be_bytes()[..]), "SASL is asked for");
    assert!(m.body[4..].starts_with(b"SCRAM-SHA-256\0"));
}

fn a_newer_minor_version_is_negotiated_down(target: &Target) {
    let mut client = Client::raw(target).expect("it listens");
    client.send(&startup(target, 196_608 + 9, &[("_pq_.wishes", "on")])).expect("sent");
    let m = client.reply().expect("an answer");
    assert_eq!(m.tag, b'v', "NegotiateProtocolVersion comes first");
    assert!(m.body.windows(11).any(|w| w == b"_pq_.wishes"), "the option we do not know is named");
    assert_eq!(client.reply().expect("an authentication request").tag, b'R');
}

fn refused_logins_say_why(target: &Target) {
    let state = |t: &Target| match Client::connect(t) {
        Err(ClientError::Server(e)) => (e.severity, e.sqlstate),
        other => panic!("{other:?}"),
    };
    let fatal = |s: &str| ("FATAL".to_owned(), s.to_owned());
    assert_eq!(state(&Target { password: "wrong".into(), ..target.clone() }), fatal("28P01"));
    assert_eq!(state(&Target { user: "nobody".into(), ..target.clone() }), fatal("28P01"));
    assert_eq!(state(&Target { database: "nowhere".into(), ..target.clone() }), fatal("3D000"));
    match Client::connect_with(target, &[("replication", "true")]) {
        // As from a pg_hba.conf without a line for replication.
        Err(ClientError::Server(e)) => assert_eq!(e.sqlstate, "28000"),
        other => panic!("{other:?}"),
    }
}

fn parameters_are_the_primarys(target: &Target) {
    let client =
        Client::connect_with(target, &[("application_name", "teller"), ("TimeZone", "Asia/Tokyo")]).expect("a login");
    let reported = |name: &str| client.parameters.get(name).map(String::as_str);
    assert_eq!(reported("in_hot_standby"), Some("off"));
    assert_eq!(reported("application_name"), Some("teller"));
    assert_eq!(reported("TimeZone"), Some("Asia/Tokyo"));
    for name in ["server_version", "server_encoding", "client_encoding", "DateStyle", "standard_conforming_strings"] {
        assert!(reported(name).is_some(), "{name} is missing: {:?}", client.parameters);
    }
    assert_eq!((client.key.len(), client.status), (8, b'I'));
    let mut client = client;
    assert_eq!(client.query("show timezone").expect("an answer").value(), "Asia/Tokyo");
}

fn tags(client: &mut Client, until: usize) -> String {
    let mut seen = String::new();
    while seen.matches('Z').count() < until {
        seen.push(client.reply().expect("an answer").tag as char);
    }
    seen
}

fn a_pipeline_with_an_error_skips_to_its_sync(target: &Target) {
    let mut client = connect(target);
    client.query("create table piped(id int primary key)").expect("a table");
    let sync = message(b'S', b"");
    let step = |sql: &str| [parse("", sql), bind("", &[]), execute(0)].concat();
    let all = [
        step("insert into piped values (1)"),
        step("select 1/0"),
        step("insert into piped values (2)"),
        sync.clone(),
        step("insert into piped values (3)"),
        sync.clone(),
        sync,
    ];
    client.send(&all.concat()).expect("sent");
    assert_eq!(tags(&mut client, 3), "12C1EZ12CZZ", "what follows an error is skipped up to its Sync");
    let rows = client.query("begin; select string_agg(id::text, ',') from piped; commit").expect("rows");
    assert_eq!(rows.value(), "3", "the first Sync's transaction was rolled back whole");
}

fn flush_delivers_without_ending_the_transaction(target: &Target) {
    let mut client = connect(target);
    let flush = message(b'H', b"");
    client
        .send(&[parse("", "insert into piped values (10)"), bind("", &[]), execute(0), flush].concat())
        .expect("sent");
    assert_eq!([0; 3].map(|_| client.reply().expect("flushed").tag), *b"12C");
    let count = "begin; select count(*) from piped where id = 10; commit";
    assert_eq!(connect(target).query(count).expect("an answer").value(), "0", "not committed before Sync");
    client.send(&message(b'S', b"")).expect("sent");
    assert_eq!((tags(&mut client, 1).as_str(), client.status), ("Z", b'I'));
    assert_eq!(connect(target).query(count).expect("an answer").value(), "1");
}

fn several_statements_in_one_query_are_one_transaction(target: &Target) {
    let mut client = connect(target);
    let failed = client.query("insert into piped values (20); select 1/0; insert into piped values (21)");
    assert_eq!(failed.expect_err("a division by zero").sqlstate(), Some("22012"));
    let answer =
        client.query("insert into piped values (22); begin; insert into piped values (23); rollback; ;").expect("done");
    assert_eq!(answer.tags, ["INSERT 0 1", "BEGIN", "INSERT 0 1", "ROLLBACK"]);
    let rows = client.query("begin; select count(*) from piped where id >= 20; commit").expect("rows");
    assert_eq!(rows.value(), "0", "BEGIN inside took the first insert into its block");
    assert_eq!(client.query("").expect("nothing").tags, Vec::<String>::new());
}

fn names_of_prepared_statements_behave(target: &Target) {
    let mut client = connect(target);
    client.extended("named", Some("select $1::text"), &["a"]).expect("prepared");
    let again = client.extended("named", Some("select 1"), &[]).expect_err("the name is taken");
    assert_eq!(again.sqlstate(), Some("42P05"));
    assert_eq!(client.extended("named", None, &["b"]).expect("kept").value(), "b");
    let unknown = client.extended("stranger", None, &[]).expect_err("never prepared");
    assert_eq!(unknown.sqlstate(), Some("26000"));
    let broken = client.extended("broken", Some("selec 1"), &[]).expect_err("a syntax error");
    assert_eq!(broken.sqlstate(), Some("42601"));
    assert_eq!(client.extended("broken", None, &[]).expect_err("not registered").sqlstate(), Some("26000"));
    client.send(&[message(b'C', b"Snamed\0"), message(b'S', b"")].concat()).expect("sent");
    client.until_ready().expect("closed");
    assert_eq!(client.extended("named", None, &["b"]).expect_err("closed").sqlstate(), Some("26000"));
    // The unnamed statement lives from one batch to the next, whatever server serves it.
    client.send(&[parse("", "select $1::int + 1"), message(b'S', b"")].concat()).expect("sent");
    client.until_ready().expect("prepared");
    assert_eq!(client.extended("", None, &["41"]).expect("kept").value(), "42");
    // Another client's name is its own.
    assert_eq!(connect(target).extended("named", None, &["x"]).expect_err("not theirs").sqlstate(), Some("26000"));
}

fn copy_in_can_fail_and_the_connection_goes_on(target: &Target) {
    let mut client = connect(target);
    let query = |sql: &str| message(b'Q', &[sql.as_bytes(), b"\0"].concat());
    client.send(&query("copy piped from stdin")).expect("sent");
    assert_eq!(client.reply().expect("CopyInResponse").tag, b'G');
    client.send(&[message(b'd', b"100\n101\n"), message(b'f', b"changed my mind\0")].concat()).expect("sent");
    assert_eq!(client.until_ready().expect_err("failed").sqlstate(), Some("57014"));
    client.send(&query("copy piped from stdin")).expect("sent");
    assert_eq!(client.reply().expect("CopyInResponse").tag, b'G');
    client.send(&[message(b'd', b"200\n20"), message(b'd', b"1\n"), message(b'c', b"")].concat()).expect("sent");
    client.until_ready().expect("copied");
    let rows = client.query("begin; select count(*) from piped where id between 100 and 201; commit").expect("rows");
    assert_eq!(rows.value(), "2");
}

fn a_cancel_request_needs_the_right_key(cluster: &Cluster, target: &Target) {
    let mut client = connect(target);
    let cancel = |key: &[u8]| {
        let mut other = Client::raw(target).expect("it listens");
        other.send(&with_length(&[&80_877_102u32.to_be_bytes(), key].concat())).expect("sent");
        assert!(other.message().is_err(), "a cancel request is answered by closing");
    };
    let mut wrong = client.key.clone();
    wrong[7] ^= 1;
    client.send(&message(b'Q', b"select pg_sleep(1.5)\0")).expect("sent");
    cancel(&wrong);
    client.until_ready().expect("a wrong key cancels nothing");
    client.send(&message(b'Q', b"select pg_sleep(600)\0")).expect("sent");
    waits_for(cluster, "PgSleep");
    let start = Instant::now();
    cancel(&client.key.clone());
    assert_eq!(client.until_ready().expect_err("cancelled").sqlstate(), Some("57014"));
    assert!(start.elapsed() < SOON);
    client.query("select 1").expect("the connection goes on");
}

fn session_state_pins(target: &Target) {
    let mut client = connect(target);
    client.query("create temp table mine(x int)").expect("a table");
    client.query("set statement_timeout = '12345ms'").expect("set");
    client.query("prepare sqlp as select 7").expect("prepared");
    client.query("select pg_advisory_lock(99)").expect("locked");
    // Others use the servers meanwhile.
    let mut others: Vec<Client> = (0..10).map(|_| connect(target)).collect();
    for other in &mut others {
        other.query("insert into piped select 1000 + count(*) from piped").expect("a row");
        assert_eq!(other.query("show statement_timeout").expect("an answer").value(), "0");
        let lock = "begin; select pg_try_advisory_xact_lock(99); commit";
        assert_eq!(other.query(lock).expect("an answer").value(), "f", "the lock is held by another session");
    }
    for _ in 0..5 {
        client.query("insert into mine values (1)").expect("the temporary table is there");
        assert_eq!(client.query("show statement_timeout").expect("an answer").value(), "12345ms");
        assert_eq!(client.query("execute sqlp").expect("an answer").value(), "7");
    }
    assert_eq!(client.query("select count(*) from mine").expect("an answer").value(), "5");
    client.terminate();
    // What it pinned is gone with it.
    wait_until("the advisory lock to be released", SOON, || {
        others[0].query("begin; select pg_try_advisory_xact_lock(99); commit").is_ok_and(|a| a.value() == "t")
    });
}

/// Wait until a backend of the application on some node waits for that event.
fn waits_for(cluster: &Cluster, event: &str) {
    let sql = format!("select count(*) from pg_stat_activity where usename = 'app' and wait_event = '{event}'");
    let mut monitors: Vec<Client> =
        NODES.iter().map(|n| Client::connect(&cluster.monitor_target(n)).expect("a login")).collect();
    wait_until(&format!("a backend to wait for {event}"), SOON, || {
        monitors.iter_mut().any(|m| m.query(&sql).is_ok_and(|a| a.value() != "0"))
    });
}

fn a_client_that_vanishes_leaves_no_open_transaction(cluster: &Cluster, target: &Target) {
    let mut client = Client::connect_with(target, &[("application_name", "vanisher")]).expect("a login");
    client.query("begin; insert into piped values (5000)").expect("a row");
    drop(client);
    let primary = cluster.active().primary;
    let mut monitor = Client::connect(&cluster.monitor_target(&primary)).expect("a login");
    wait_until("no transaction to be left open", SOON, || {
        let sql = "select count(*) from pg_stat_activity where usename = 'app' and state like 'idle in transaction%'";
        monitor.query(sql).is_ok_and(|a| a.value() == "0")
    });
    let rows = connect(target).query("begin; select count(*) from piped where id = 5000; commit").expect("rows");
    assert_eq!(rows.value(), "0");
}

fn garbage_ends_only_its_own_connection(target: &Target) {
    let mut witness = connect(target);
    let attempts: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", &[0, 0, 0, 8, 0, 1, 0, 0], &[0xff; 64], &[0, 0, 0, 4]];
    for bytes in attempts {
        let mut client = Client::raw(target).expect("it listens");
        client.send(bytes).expect("sent");
        // An error and the end, or just the end.
        while let Ok(m) = client.message() {
            assert_eq!((m.tag, parse_error(&m.body).severity.as_str()), (b'E', "FATAL"), "{bytes:?}");
        }
    }
    for bytes in [&b"Q\0\0\0\x03"[..], b"\x01\0\0\0\x04", b"Q\x7f\xff\xff\xff"] {
        let mut client = connect(target);
        client.send(bytes).expect("sent");
        let m = client.reply().expect("an error");
        let e = parse_error(&m.body);
        assert_eq!((m.tag, e.severity.as_str(), e.sqlstate.as_str()), (b'E', "FATAL", "08P01"), "{bytes:?}");
        assert!(client.message().is_err(), "and the connection is closed");
    }
    witness.query("select 1").expect("other connections go on");
}

/// Memory of a process in use, bytes.
fn resident(pid: nix::unistd::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

fn a_huge_row_streams_in_bounded_memory(cluster: &mut Cluster, target: &Target) {
    const ROW: usize = 100 << 20;
    let pid = cluster.role("proxy").pid();
    let mut client = connect(target);
    client.query("select 1").expect("warm");
    let before = resident(pid);
    client.send(&message(b'Q', format!("begin; select repeat('x', {ROW}); commit\0").as_bytes())).expect("sent");
    // Nothing is read until the server itself has to wait: whatever the proxy is willing to buffer, it has now.
    waits_for(cluster, "ClientWrite");
    let during = resident(pid);
    let answer = client.until_ready().expect("the row");
    let after = resident(pid);
    assert!(answer.iter().any(|m| m.tag == b'D' && m.body.len() > ROW), "the row came whole");
    for grown in [during, after].map(|r| r.saturating_sub(before)) {
        assert!(grown < 16 << 20, "the proxy grew by {grown} bytes for a row of {ROW}");
    }
}
