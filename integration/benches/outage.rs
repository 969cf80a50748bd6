//! How long clients cannot write when a primary dies, as the clients see it: for each kind of death, the longest gap
//! between two acknowledgements of every connection, over several rounds.
//!
//! `cargo bench -p integration --bench outage` (build the program first, in release mode for numbers worth telling:
//! `PGTENURE_BIN=target/release/pgtenure`). `ROUNDS` sets the rounds per kind, 5 unless set.

use integration::cluster::{Cluster, LONG};
use integration::config_file::Options;
use integration::workload::{Style, Workload};
use nix::sys::signal::Signal;
use std::time::Duration;

const CONNECTIONS: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Death {
    Postmaster,
    PostmasterAndAgent,
    Freeze,
    Switchover,
}

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(5);
    // A budget of automatic failovers would end the bench early, as it should a flapping primary.
    let options = Options { manager: "failover_budget = 1000\n", ..Options::default() };
    let mut cluster = Cluster::start(&options);
    Workload::create_table(&cluster.target()).expect("a table");
    let mut block = 1;
    for death in [Death::Postmaster, Death::PostmasterAndAgent, Death::Freeze, Death::Switchover] {
        let mut medians = Vec::new();
        let mut worst = Duration::ZERO;
        for _ in 0..rounds {
            let gaps = round(&mut cluster, death, block);
            medians.push(gaps[gaps.len() / 2]);
            worst = worst.max(gaps[gaps.len() - 1]);
            block += 100;
        }
        medians.sort();
        println!("{death:?}: {rounds} rounds, median {:?}, worst {worst:?}", medians[medians.len() / 2]);
    }
}

fn round(cluster: &mut Cluster, death: Death, block: i64) -> Vec<Duration> {
    let before = cluster.active();
    cluster.all_stream();
    let load = Workload::start(&cluster.target(), CONNECTIONS, &[Style::Autocommit], block, Duration::from_millis(2));
    load.wait_for_more(500, LONG);
    let mut frozen = None;
    match death {
        Death::Postmaster => cluster.kill_postmaster(&before.primary),
        Death::PostmasterAndAgent => {
            cluster.role(&before.primary).signal(Signal::SIGKILL);
            cluster.kill_postmaster(&before.primary);
        }
        Death::Freeze => frozen = Some(cluster.freeze_node(&before.primary)),
        Death::Switchover => drop(cluster.verb(&["switchover"]).exits(0)),
    }
    cluster.active_after(before.term);
    load.wait_for_more(500, LONG);
    if let Some(frozen) = frozen {
        frozen.thaw();
    }
    if matches!(death, Death::PostmasterAndAgent) {
        cluster.kill_role(&before.primary);
        cluster.start_role(&before.primary);
    }
    let history = load.finish();
    cluster.verify(&history, block);
    cluster.all_stream();
    history.longest_gaps()
}
