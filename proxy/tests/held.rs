//! What keeps a server for a session, and what does not. Few statements run at the same time in this process: how its
//! threads are scheduled is looked at.

mod common;

use common::raw::{Raw, words};
use common::{Cluster, wait_for};
use proxy::wire::frontend::write_query;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};

/// What a server says by itself, as in a reload of its configuration.
const NOTICE: &[u8] = b"N\0\0\0\x1bSNOTICE\0C00000\0Mhello\0\0";
/// ReadyForQuery, outside of a block.
const READY: &[u8] = b"Z\0\0\0\x05I";

/// What is answered with half a notice behind it.
const HALVES: &str = "select 'in halves'";

/// A way to PostgreSQL on which a server says the first half of a notice with its answer to [`HALVES`], and the second
/// half when it is told to go on.
struct Way {
    port: u16,
    go_on: mpsc::SyncSender<()>,
}

impl Way {
    fn to(postgres: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (go_on, told) = mpsc::sync_channel(1);
        let told = Arc::new(Mutex::new(told));
        std::thread::spawn(move || {
            for proxy in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(("127.0.0.1", postgres)).unwrap();
                let (mut from, mut to) = (proxy.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
                let told = told.clone();
                std::thread::spawn(move || answers(server, proxy, &told));
            }
        });
        Self { port, go_on }
    }
}

fn answers(mut server: TcpStream, mut proxy: TcpStream, told: &Mutex<mpsc::Receiver<()>>) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = server.read(&mut chunk) {
        let mut answer = chunk[..n].to_vec();
        let halves = answer.windows(9).any(|w| w == b"in halves") && answer.ends_with(READY);
        let (first, second) = NOTICE.split_at(if halves { 7 } else { NOTICE.len() });
        if halves {
            answer.extend_from_slice(first);
        }
        if proxy.write_all(&answer).is_err() {
            return;
        }
        if halves && (told.lock().unwrap().recv().is_err() || proxy.write_all(second).is_err()) {
            return;
        }
    }
}

#[test]
fn a_notice_that_comes_in_two_halves_behind_an_answer_keeps_no_server() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size, raw.hold_timeout) = (1, 1, cluster::config::Span::secs(10));
    });
    let way = Way::to(c.nodes[0].port);
    c.publish(|t| t.primary.as_mut().unwrap().postgres.port = way.port);
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    for _ in 0..2 {
        assert_eq!(words(&a.query(HALVES)), "T | D in halves | C SELECT 1 | Z I");
        // The server is the first client's until it has said all, and then anybody's: that one need not speak.
        b.write(|out| write_query(out, "select 1"));
        way.go_on.send(()).unwrap();
        assert_eq!(words(&b.until_ready()), "T | D 1 | C SELECT 1 | Z I");
        assert_eq!(a.next(), "N 00000");
    }
}

/// Does a worker's thread wait for what runs on its core?
fn waits() -> bool {
    let of = |entry: std::fs::DirEntry| {
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let policy = stat.rsplit_once(')')?.1.split_whitespace().nth(38)?.to_owned();
        (name.starts_with("proxy-") && policy == "3").then_some(())
    };
    std::fs::read_dir("/proc/self/task").unwrap().flatten().any(|entry| of(entry).is_some())
}

#[test]
fn a_worker_is_busy_with_statements_not_with_clients_that_hold_servers() {
    let c = Cluster::start(0, |raw| raw.workers = 1);
    let mut clients: Vec<Raw> = (0..8).map(|_| Raw::login(c.port, &[])).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin")));
    wait_for("a look at all of them", || (c.counter_of("pgtenure_proxy_servers", "in_use") >= 8.0).then_some(()));
    assert!(!waits(), "eight clients that do nothing keep nobody busy");
    clients.iter_mut().for_each(|client| {
        client.write(|out| write_query(out, "select pg_sleep(0.5)"));
    });
    wait_for("the worker to wait for others", || waits().then_some(()));
    clients.iter_mut().for_each(|client| drop(client.until_ready()));
    wait_for("the worker to be calm", || (!waits()).then_some(()));
    // However a statement ends, it is counted no more.
    for client in &mut clients {
        client.write(|out| write_query(out, "select pg_sleep(30)"));
    }
    wait_for("the worker to wait for others", || waits().then_some(()));
    drop(clients.split_off(4));
    c.nodes[0].psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
    clients.iter_mut().for_each(|client| drop(client.until_ready()));
    wait_for("the worker to be calm", || (!waits()).then_some(()));
}
