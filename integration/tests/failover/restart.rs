//! Everything dies and is started again, in any order: the cluster is writable and every acknowledged row is there.

use integration::client::{Client, ClientError, Target};
use integration::cluster::{Cluster, LONG, one_at_a_time, program};
use integration::config_file::{MANAGERS, NODES};
use integration::process::Process;
use integration::wait::wait_until;
use integration::workload::{Style, Workload};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const ORDERS: [[&str; 6]; 3] = [
    ["n1", "n2", "n3", "m1", "m2", "proxy"],
    ["proxy", "m2", "m1", "n3", "n2", "n1"],
    ["m1", "n2", "proxy", "n3", "m2", "n1"],
];

#[test]
fn everything_killed_and_started_in_any_order_is_writable_with_every_acknowledged_row() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    for (i, order) in ORDERS.iter().enumerate() {
        let before = cluster.active();
        let block = 1 + 100 * i as i64;
        let load =
            Workload::start(&cluster.target(), 4, &[Style::Autocommit, Style::Block], block, Duration::from_millis(2));
        load.wait_for_more(200, LONG);
        cluster.kill_all();
        let history = load.finish();
        if i == 1 {
            cluster.etcd().kill();
            cluster.etcd().restart();
        }
        for name in order {
            cluster.start_role(name);
        }
        let after = cluster.active_after(before.term);
        cluster.endpoint_writes();
        cluster.all_stream();
        cluster.verify(&history, block);
        cluster.timelines_are(after.term);
    }
}

/// A new client every 20 ms until told to stop; each must log in and be answered.
fn knock(target: &Target, stop: &AtomicBool, served: &AtomicUsize) {
    std::thread::scope(|scope| {
        while !stop.load(Ordering::SeqCst) {
            scope.spawn(|| {
                let answer =
                    Client::connect(target).and_then(|mut c| c.query("select 1")).expect("no client is refused");
                assert_eq!(answer.value(), "1");
                served.fetch_add(1, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Ask the endpoint to cancel what the session of that key does, until its statement has ended.
fn cancel(target: &Target, mut sleeper: Client) {
    let request = [&16u32.to_be_bytes()[..], &80_877_102u32.to_be_bytes(), &sleeper.key].concat();
    let statement = std::thread::spawn(move || sleeper.query("select pg_sleep(100)"));
    wait_until("the statement to be cancelled", LONG, || {
        let mut stream = TcpStream::connect(target.addr).expect("it listens");
        stream.write_all(&request).expect("it reads");
        let _ = stream.read_to_end(&mut Vec::new());
        statement.is_finished()
    });
    let outcome = statement.join().expect("it ends");
    assert_eq!(outcome.expect_err("it sleeps for longer").sqlstate(), Some("57014"));
}

#[test]
fn a_proxy_is_replaced_three_times_and_nobody_is_refused() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    let target = cluster.target();
    // The proxy of the harness does not hand over: it is started anew with the key that lets it.
    let file = cluster.config("proxy");
    let socket = file.with_file_name("handover");
    let text = std::fs::read_to_string(&file).expect("the harness wrote it");
    let key = format!("[process]\nhandover_socket = {socket:?}\ndrain_timeout = \"20s\"\n");
    std::fs::write(&file, text.replace("[process]\n", &key)).expect("it can be written");
    cluster.stop_role("proxy");
    cluster.start_role("proxy");
    cluster.endpoint_writes();
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut sleeper, mut processes) = (Some(cluster.connect()), Vec::new());
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| knock(&target, &stop, &served));
        for round in 0..3 {
            let so_far = served.load(Ordering::SeqCst);
            wait_until("clients to be served", LONG, || served.load(Ordering::SeqCst) >= so_far + 20);
            let log = file.with_file_name(format!("proxy-{round}.log"));
            let mut command = Command::new(program());
            command.args(["run", "--takeover", "--config"]).arg(&file);
            let name = format!("proxy-{round}");
            let next = Process::spawn(&name, command, cluster.scratch().path(), &log).expect("it starts");
            wait_until("the takeover", LONG, || next.log().contains("taken over"));
            processes.push(next);
            // A client of the process before is cancelled through the one after it.
            if let Some(sleeper) = sleeper.take() {
                cancel(&target, sleeper);
            }
        }
        let so_far = served.load(Ordering::SeqCst);
        wait_until("clients of the last", LONG, || served.load(Ordering::SeqCst) >= so_far + 20);
        stop.store(true, Ordering::SeqCst);
        clients.join().expect("no client failed");
    });
    // Those before it have ended by themselves, with success.
    let first = cluster.role("proxy").wait(LONG).expect("its clients have left");
    assert!(first.success(), "{first}");
    processes.pop();
    for mut old in processes {
        let status = old.wait(LONG).expect("its clients have left");
        assert!(status.success(), "{}: {status}", old.name());
    }
}

/// What a client is told at the end of its session.
fn farewell(client: &mut Client) -> String {
    match client.until_ready() {
        Err(ClientError::Server(error)) => format!("{} {}", error.severity, error.sqlstate),
        other => panic!("not told why its session ends: {other:?}"),
    }
}

/// Say it at the console: the answer comes before the process stops.
fn at_the_console(target: &Target, command: &str) {
    let target = Target { database: "pgtenure".to_owned(), ..target.clone() };
    let answer = Client::connect(&target).and_then(|mut console| console.query(command));
    assert_eq!(answer.expect("the console obeys").tags, ["SHUTDOWN"], "{command}");
}

/// A proxy that runs anew, a client that is idle, and one in a transaction.
fn begin(cluster: &mut Cluster) -> (Client, Client) {
    cluster.start_role("proxy");
    cluster.endpoint_writes();
    let (idle, mut in_block) = (cluster.connect(), cluster.connect());
    // Of the primary, which is what a process that stops waits for.
    in_block.query("begin; select pg_current_xact_id()").expect("it is served");
    (idle, in_block)
}

/// Wait for its end, which must be a success. What it has logged since it was started.
fn end(cluster: &mut Cluster) -> String {
    let status = cluster.role("proxy").wait(LONG).expect("it ends");
    assert!(status.success(), "{status}");
    let log = cluster.role("proxy").log();
    log.rsplit("starting roles=").next().unwrap_or_default().to_owned()
}

fn the_console_stops_a_proxy_in_three_ways(cluster: &mut Cluster) {
    const TOLD: &str = "FATAL 57P01";
    let (file, target) = (cluster.config("proxy"), cluster.target());
    let text = std::fs::read_to_string(&file).expect("the harness wrote it");
    let text = text.replace("[process]\n", "[process]\ndrain_timeout = \"60s\"\n");
    std::fs::write(&file, text + "\n[proxy.console]\nadmin_users = [\"app\"]\n").expect("it can be written");
    cluster.stop_role("proxy");

    let (mut idle, mut in_block) = begin(cluster);
    at_the_console(&target, "shutdown");
    assert_eq!([farewell(&mut idle), farewell(&mut in_block)], [TOLD; 2]);
    end(cluster);

    // Those who wait for servers let transactions end.
    let (mut idle, mut in_block) = begin(cluster);
    at_the_console(&target, "shutdown wait_for_servers");
    in_block.query("commit").expect("its transaction ends");
    assert_eq!([farewell(&mut idle), farewell(&mut in_block)], [TOLD; 2]);
    let log = end(cluster);
    assert!(!log.contains("transactions still run"), "{log}");

    // Those who wait for clients let sessions end.
    let (mut idle, mut in_block) = begin(cluster);
    at_the_console(&target, "shutdown wait_for_clients");
    in_block.query("commit").expect("its transaction ends");
    in_block.terminate();
    assert_eq!(idle.query("select 1").expect("its session goes on").value(), "1");
    wait_until("nobody else to come in", LONG, || Client::connect(&target).is_err());
    idle.terminate();
    let log = end(cluster);
    assert!(log.contains("all clients have left"), "{log}");

    // But not for ever.
    let text = std::fs::read_to_string(&file).expect("it was written");
    std::fs::write(&file, text.replace("drain_timeout = \"60s\"", "drain_timeout = \"5s\""))
        .expect("it can be written");
    let (mut idle, mut in_block) = begin(cluster);
    at_the_console(&target, "shutdown wait_for_clients");
    assert_eq!([farewell(&mut idle), farewell(&mut in_block)], [TOLD; 2]);
    let log = end(cluster);
    assert!(log.contains("clients did not leave in time"), "{log}");
    cluster.start_role("proxy");
}

#[test]
fn a_cluster_stopped_in_good_order_starts_again() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let load = Workload::start(&cluster.target(), 4, &[Style::Autocommit], 1, Duration::from_millis(2));
    load.wait_for_more(100, LONG);
    let history = load.finish();
    the_console_stops_a_proxy_in_three_ways(&mut cluster);
    for name in ["proxy"].iter().chain(&MANAGERS).chain(&NODES) {
        cluster.stop_role(name);
    }
    for node in NODES {
        assert_eq!(cluster.postmaster(node), None, "PostgreSQL stops with its agent");
    }
    for name in NODES.iter().chain(&MANAGERS).chain(&["proxy"]) {
        cluster.start_role(name);
    }
    cluster.active();
    cluster.endpoint_writes();
    cluster.all_stream();
    cluster.verify(&history, 1);
}
