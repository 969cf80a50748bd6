//! The process ends while a COMMIT's outcome is looked for.

use super::*;
use cluster::topology::ProxyState;
use tokio::sync::watch;

/// Drain the proxy for so long at most; what it tells the managers in the end.
fn drain(c: &mut Cluster, bound: Duration) -> std::thread::JoinHandle<watch::Receiver<ProxyState>> {
    let handle = c.handle.take().expect("the proxy runs");
    std::thread::spawn(move || {
        let state = handle.state.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(handle.drain(bound));
        state
    })
}

/// Its primary is dead, and its commit on the standby.
fn in_doubt(c: &mut Cluster) -> Raw {
    c.psql(TABLES).unwrap();
    let_commits_wait(c);
    let (mut s, _) = begun(c, "insert into t values (1)");
    send(&mut s, "commit");
    wait_until_waiting(c, 1);
    replicate(c);
    c.nodes[0].kill();
    wait_until_looked_for(c);
    s
}

fn doubts(told: std::thread::JoinHandle<watch::Receiver<ProxyState>>) -> (u64, u64, u64) {
    let state = told.join().expect("it drains");
    let doubts: Vec<_> = state.borrow().doubts.iter().map(|(_, d)| (d.survived, d.lost, d.unknown)).collect();
    doubts.into_iter().fold((0, 0, 0), |sum, d| (sum.0 + d.0, sum.1 + d.1, sum.2 + d.2))
}

#[test]
fn a_drain_waits_until_a_commits_outcome_is_known() {
    let mut c = Cluster::start(1, |_| {});
    let mut s = in_doubt(&mut c);
    let told = drain(&mut c, Duration::from_secs(60));
    wait_for("nobody to be let in", || std::net::TcpStream::connect(("127.0.0.1", c.port)).is_err().then_some(()));
    let (fork, bound) = promote(&c);
    open(&c, fork, Some(bound));
    assert_eq!(words(&s.until_ready()), "C COMMIT | Z I");
    assert_eq!(doubts(told), (1, 0, 0));
}

#[test]
fn a_proxy_that_ends_tells_what_nobody_has_found_out() {
    let mut c = Cluster::start(1, |_| {});
    let mut s = in_doubt(&mut c);
    let told = drain(&mut c, Duration::ZERO);
    assert_eq!(s.next(), "E 08007");
    assert_eq!(doubts(told), (0, 0, 1));
}
