//! What the workers allocate: nothing per row, be it of a query or of COPY, in clear or within TLS, and next to nothing per
//! statement once a session runs.

mod common;

use common::authority::Authority;
use common::raw::Raw;
use common::{Cluster, dial};
use proxy::config::tls::ClientMode;
use proxy::wire::codec::{cstring, message};
use proxy::wire::frontend::{write_parse, write_query};
use proxy::wire::startup::SSL_REQUEST;
use rustls::pki_types::ServerName;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

/// Statements before counting begins: buffers and tables have their size, the catalog has been read.
const WARM_UP: usize = 500;
const STATEMENTS: usize = 5000;
/// Ten times a second a worker sums up what it did, and it takes in samples of the lag.
const EACH_SECOND: f64 = 40.0;
const ROWS: usize = 200_000;
const IDLE_CLIENTS: usize = 200;
/// Heap of an idle client that has a named statement, bytes. An unoptimised build's tasks are larger than a released one's.
const IDLE_BYTES: i64 = 16 * 1024;
/// What the workers may keep when all clients have left, bytes: spare buffers, a pool's servers, tables that grew.
const LEFT_BYTES: i64 = 256 * 1024;

/// Counts what threads called `proxy-<number>` allocate, and nothing else.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);
/// Bytes that the workers have allocated and not freed.
static LIVE: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static IS_WORKER: Cell<Option<bool>> = const { Cell::new(None) };
}

fn count(allocated: u64, bytes: i64) {
    // During a thread's end its variables are gone: not counted.
    let _ = IS_WORKER.try_with(|known| {
        let is_worker = known.get().unwrap_or_else(|| {
            let mut name = [0_u8; 16];
            // SAFETY: the buffer is as long as we say; names of threads are at most 16 bytes with their end.
            unsafe { libc::pthread_getname_np(libc::pthread_self(), name.as_mut_ptr().cast(), name.len()) };
            let is_worker = name.starts_with(b"proxy-") && name[6].is_ascii_digit();
            // A thread gets its name after its first allocations.
            known.set(is_worker.then_some(true));
            is_worker
        });
        if is_worker {
            COUNT.fetch_add(allocated, Ordering::Relaxed);
            LIVE.fetch_add(bytes, Ordering::Relaxed);
        }
    });
}

// SAFETY: everything is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size().cast_signed() as i64);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, -(layout.size().cast_signed() as i64));
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size.cast_signed() as i64 - layout.size().cast_signed() as i64);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated(work: impl FnOnce()) -> u64 {
    let before = COUNT.load(Ordering::Relaxed);
    work();
    COUNT.load(Ordering::Relaxed) - before
}

/// The same, without what they do a few times a second: a machine that is busy with other things does little in that time.
fn allocated_for(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    let count = allocated(work) as f64;
    (count - began.elapsed().as_secs_f64() * EACH_SECOND).max(0.0)
}

/// Allocations of the workers per statement, of which `request` is one.
fn per_statement(raw: &mut Raw, request: &[u8]) -> f64 {
    let mut run = |n: usize| {
        for _ in 0..n {
            raw.send(request);
            assert_eq!(raw.until_ready().last().map(String::as_str), Some("Z I"));
        }
    };
    run(WARM_UP);
    allocated_for(|| run(STATEMENTS)) / STATEMENTS as f64
}

fn execute(out: &mut Vec<u8>, statement: &[u8]) {
    message(out, b'B', |b| {
        cstring(b, b"");
        cstring(b, statement);
        b.extend_from_slice(b"\0\0\0\x01\0\0\0\x017\0\0");
    });
    message(out, b'D', |b| b.extend_from_slice(b"P\0"));
    message(out, b'E', |b| b.extend_from_slice(&[0; 5]));
    message(out, b'S', |_| {});
}

#[test]
fn statements_in_steady_state_allocate_next_to_nothing_and_rows_nothing() {
    let authority = Authority::new();
    authority.sign("server", "endpoint", &["127.0.0.1", "localhost"]);
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.tls.mode = ClientMode::Allow;
        raw.tls.cert = Some(authority.path("server.crt"));
        raw.tls.key = Some(authority.path("server.key"));
    });
    let mut raw = Raw::login(cluster.port, &[]);
    let sql = b"select $1::int4 + 1\0\0\0";

    let mut simple = Vec::new();
    write_query(&mut simple, "select 1");
    let mut extended = Vec::new();
    write_parse(&mut extended, b"", sql);
    execute(&mut extended, b"");
    let mut prepared = Vec::new();
    execute(&mut prepared, b"named");
    raw.write(|out| {
        write_parse(out, b"named", sql);
        message(out, b'S', |_| {});
    });
    raw.until_ready();

    for (mode, request, limit) in [("simple", simple, 0.1), ("extended", extended, 0.1), ("prepared", prepared, 0.1)] {
        let each = per_statement(&mut raw, &request);
        println!("{mode}: {each:.3} allocations per statement");
        assert!(each < limit, "{mode}: {each} allocations per statement");
    }

    cluster.nodes[0].psql("set role app; create unlogged table t(i int, word text)");
    rows_allocate_nothing("in clear", &mut raw, 200.0);
    // A record of 16 KiB costs two, and carries hundreds of rows.
    rows_allocate_nothing("with TLS", &mut encrypted(&cluster, &authority), ROWS as f64 / 100.0);
    drop(raw);
    idle_clients_are_small(&cluster);
}

/// A session within TLS.
fn encrypted(
    cluster: &Cluster,
    authority: &Authority,
) -> Raw<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
    let (mut socket, mut answer) = (dial(cluster.port), [0]);
    socket.write_all(&SSL_REQUEST).expect("the endpoint reads");
    socket.read_exact(&mut answer).expect("it answers");
    assert_eq!(&answer, b"S");
    let name = ServerName::try_from("localhost").expect("a name");
    let tls = rustls::ClientConnection::new(authority.client(&[]), name).expect("a good configuration");
    Raw::over(rustls::StreamOwned::new(tls, socket), &[])
}

/// Neither those that a query gives, nor those of COPY in either direction.
fn rows_allocate_nothing<S: Read + Write>(how: &str, raw: &mut Raw<S>, most: f64) {
    let mut copied = Vec::new();
    (0..ROWS).for_each(|i| message(&mut copied, b'd', |b| b.extend_from_slice(format!("{i}\tsome text\n").as_bytes())));
    message(&mut copied, b'c', |_| {});
    let query = format!("select i, 'some text' from generate_series(1, {ROWS}) i");
    for (what, sql, kind, sent) in [
        ("rows", query.as_str(), b'D', &[][..]),
        ("COPY in", "copy t from stdin", b'G', &copied),
        ("COPY out", "copy t to stdout", b'd', &[]),
    ] {
        let mut seen = 0;
        let count = allocated_for(|| {
            raw.write(|out| write_query(out, sql));
            raw.send(sent);
            loop {
                match raw.frame().expect("the result goes on").0 {
                    b'Z' => break,
                    other => seen += usize::from(other == kind),
                }
            }
        });
        println!("{ROWS} {what}, {how}: {count:.0} allocations");
        assert_eq!(seen, if kind == b'G' { 1 } else { ROWS }, "{what}, {how}");
        assert!(count < most, "{count} allocations for {ROWS} {what}, {how}");
    }
    raw.query("truncate t");
}

/// A test of its own would count what the other one's workers do at the same time.
fn idle_clients_are_small(cluster: &Cluster) {
    let before = LIVE.load(Ordering::Relaxed);
    let mut clients: Vec<Raw> = (0..IDLE_CLIENTS).map(|_| Raw::login(cluster.port, &[])).collect();
    for client in &mut clients {
        client.write(|out| {
            write_parse(out, b"named", b"select $1::int4 + 1\0\0\0");
            execute(out, b"named");
        });
        assert_eq!(client.until_ready().last().map(String::as_str), Some("Z I"));
    }
    let each = || (LIVE.load(Ordering::Relaxed) - before) / IDLE_CLIENTS as i64;
    // The client has its answer before the worker has put its buffers away.
    println!("{} bytes of heap per idle client", each());
    common::wait_for("idle clients to be small", || (each() < IDLE_BYTES).then_some(()));
    drop(clients);
    let left = || LIVE.load(Ordering::Relaxed) - before;
    common::wait_for("the memory of clients that left", || (left() < LEFT_BYTES).then_some(()));
    println!("{} bytes when all have left", left());
}
