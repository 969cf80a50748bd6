//! What idle clients cost. Alone in its file: it counts what the threads of its process do.

mod common;

use cluster::config::Span;
use common::Cluster;
use common::raw::Raw;

/// How often the proxy's threads have given up the processor of their own accord.
fn wakes() -> u64 {
    let of = |entry: std::fs::DirEntry| {
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let count = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?;
        name.starts_with("proxy-").then_some(count.trim().parse::<u64>().ok()?)
    };
    std::fs::read_dir("/proc/self/task").unwrap().flatten().filter_map(of).sum()
}

#[test]
fn idle_clients_wake_nobody() {
    let c = Cluster::start(0, |raw| {
        raw.timeouts.client_idle_timeout = Span::secs(3600);
        raw.timeouts.query_timeout = Span::secs(1);
        raw.timeouts.idle_in_transaction_timeout = Span::secs(3600);
    });
    let window = || {
        let before = wakes();
        std::thread::sleep(std::time::Duration::from_secs(3));
        wakes() - before
    };
    let mut clients: Vec<Raw> = (0..1).map(|_| Raw::login(c.port, &[])).collect();
    clients[0].query("select 1");
    // Until the look at what those statements were at, and the last of them, is behind us.
    window();
    let few = window();
    clients.extend((0..200).map(|_| Raw::login(c.port, &[])));
    clients.iter_mut().for_each(|client| drop(client.query("select 1")));
    window();
    let many = window();
    // The threads wake for the lag that is published and once a second, more often on a busy machine; a timer per client
    // would wake them six hundred times.
    assert!(many <= few + 300, "{few} wakes with one client, {many} with 201");
}
