//! What the workers allocate: nothing per row, and next to nothing per statement once a session runs.

mod common;

use common::Cluster;
use common::raw::Raw;
use proxy::wire::codec::{cstring, message};
use proxy::wire::frontend::{write_parse, write_query};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
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
    let cluster = Cluster::start(1, |raw| raw.workers = 1);
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

    let mut rows = 0;
    let count = allocated_for(|| {
        raw.write(|out| write_query(out, &format!("select i, 'some text' from generate_series(1, {ROWS}) i")));
        loop {
            match raw.frame().expect("the result goes on").0 {
                b'D' => rows += 1,
                b'Z' => break,
                _ => {}
            }
        }
    });
    println!("{ROWS} rows: {count:.0} allocations");
    assert_eq!(rows, ROWS);
    assert!(count < 200.0, "{count} allocations for {ROWS} rows");
    drop(raw);
    idle_clients_are_small(&cluster);
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
