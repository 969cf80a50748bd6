//! What keeps a server for a session, and what does not. Nothing else runs in this process meanwhile, as tests take turns:
//! how its threads are scheduled is looked at.

use super::common::raw::{Raw, words};
use super::common::{self, Cluster, wait_for};
use proxy::console::tally::Counter;
use proxy::wire::frontend::write_query;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    wait_for("eight clients that do nothing to keep nobody busy", || (!waits()).then_some(()));
    let mut holder = Raw::login(c.nodes[0].port, &[]);
    holder.query("select pg_advisory_lock(7)");
    clients.iter_mut().for_each(|client| {
        client.write(|out| write_query(out, "select pg_advisory_xact_lock_shared(7)"));
    });
    wait_for("the worker to wait for others", || waits().then_some(()));
    holder.query("select pg_advisory_unlock(7)");
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

/// Does the first worker's thread sleep? One that polls without end is running, or about to, whatever else runs.
fn sleeps() -> bool {
    let of = |entry: std::fs::DirEntry| {
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let state = stat.rsplit_once(')')?.1.split_whitespace().next()?.to_owned();
        (name.trim() == "proxy-0").then_some(state == "S")
    };
    std::fs::read_dir("/proc/self/task").unwrap().flatten().find_map(of).expect("a worker")
}

/// Wait until the worker sleeps most of the time, while `stays` does not change.
fn rests(mut stays: impl FnMut() -> u64) {
    wait_for("the worker to rest", || {
        let before = stays();
        let asleep = (0..50).filter(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            sleeps()
        });
        (asleep.count() >= 25 && stays() == before).then_some(())
    });
}

#[test]
fn a_worker_rests_while_a_client_does_not_read() {
    const QUERIES: usize = 5000;
    let c = Cluster::start(0, |raw| raw.workers = 1);
    let mut client = Raw::login(c.port, &[]);
    client.write(|out| (0..QUERIES).for_each(|_| write_query(out, "select repeat('x', 15000)")));
    let blocked = "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'ClientWrite'";
    wait_for("the server to wait for the client", || (c.nodes[0].psql(blocked) == "1").then_some(()));
    rests(|| 0);
    for _ in 0..QUERIES {
        assert_eq!(client.until_ready().last().unwrap(), "Z I");
    }
}

#[test]
fn a_worker_rests_while_a_server_does_not_read() {
    let c = Cluster::start(0, |raw| raw.workers = 1);
    let mut client = Raw::login(c.port, &[]);
    client.query("create table rows(a text)");
    client.write(|out| write_query(out, "copy rows from stdin"));
    assert!(client.next().starts_with('G'));
    let pid = c.nodes[0].psql("select pid from pg_stat_activity where query like 'copy%' and usename = 'app'");
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let (count, mut stream) = (written.clone(), client.stream.try_clone().unwrap());
    let enough = Arc::new(AtomicBool::new(false));
    let stop = enough.clone();
    let writer = std::thread::spawn(move || {
        let row = [&b"d\0\0\x03\xed"[..], &[b'x'; 1000], b"\n"].concat();
        while !stop.load(Ordering::SeqCst) {
            stream.write_all(&row).unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    wait_for("rows on their way", || (written.load(Ordering::SeqCst) > 1000).then_some(()));
    rests(|| written.load(Ordering::SeqCst));
    enough.store(true, Ordering::SeqCst);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    writer.join().unwrap();
    client.send(b"c\0\0\0\x04");
    let rows = written.load(Ordering::SeqCst);
    assert_eq!(words(&client.until_ready()), format!("C COPY {rows} | Z I"));
    what_is_lost_half_sent_is_not_done_again(&c, client, pid);
}

/// Its server reads no more and is killed, with more on its way than there is room for.
fn what_is_lost_half_sent_is_not_done_again(c: &Cluster, mut client: Raw, pid: nix::unistd::Pid) {
    const LENGTH: usize = 40 << 20;
    let before = c.tally(Counter::Received);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let mut stream = client.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let mut out = Vec::with_capacity(LENGTH + 100);
        write_query(&mut out, &format!("insert into rows values ('half {}')", "y".repeat(LENGTH)));
        stream.write_all(&out).unwrap();
    });
    wait_for("a part of it to be on its way", || (c.tally(Counter::Received) - before > 1 << 20).then_some(()));
    assert!(c.tally(Counter::Received) - before < LENGTH as u64, "there is room for all of it");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(words(&client.until_ready()), "E 08007 | Z I");
    writer.join().unwrap();
    // PostgreSQL starts anew meanwhile.
    wait_for("the rows to be counted", || {
        let found = client.query("select count(*) from rows where a like 'half%'");
        (words(&found) == "T | D 0 | C SELECT 1 | Z I").then_some(())
    });
    assert_eq!(words(&client.query("insert into rows values ('whole')")), "C INSERT 0 1 | Z I");
}

/// How often the first worker's thread has gone to sleep.
fn sleeps_begun() -> u64 {
    let of = |entry: std::fs::DirEntry| {
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        (value("Name:")? == "proxy-0").then(|| value("voluntary_ctxt_switches:")?.parse().ok()).flatten()
    };
    std::fs::read_dir("/proc/self/task").unwrap().flatten().find_map(of).expect("a worker")
}

/// The rest of a unit that is half sent has no end of its own: nothing happens at the end of a statement's time.
#[test]
fn a_worker_rests_while_the_rest_of_a_unit_is_held() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::secs(600)));
    let mut client = Raw::login(c.port, &[]);
    client.query("set statement_timeout = '200ms'");
    client.query("begin");
    let part = |out: &mut Vec<u8>| {
        common::raw::run(out, "select 1");
        common::raw::flush(out);
    };
    client.write(part);
    assert_eq!([client.next(), client.next(), client.next(), client.next()], ["1", "2", "D 1", "C SELECT 1"]);
    c.publish(|t| t.gate = cluster::topology::Gate::Closed(cluster::topology::Closed::Promoting));
    client.write(part);
    let began = std::time::Instant::now();
    wait_for("its time to be over", || (began.elapsed().as_millis() > 1000).then_some(()));
    wait_for("the worker to rest", || {
        let before = sleeps_begun();
        std::thread::sleep(std::time::Duration::from_millis(500));
        (sleeps_begun() - before < 150).then_some(())
    });
    c.publish(|t| t.gate = cluster::topology::Gate::Open);
    assert_eq!([client.next(), client.next(), client.next(), client.next()], ["1", "2", "D 1", "C SELECT 1"]);
}
