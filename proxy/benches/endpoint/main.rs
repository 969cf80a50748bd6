//! What a hop through the endpoint costs, next to PostgreSQL itself, to PgBouncer and to a relay that parses nothing.
//!
//! `make bench`, or `cargo bench -p proxy --bench endpoint`. Everything is measured in one run, the endpoints in turn
//! within each round: only the ratios of one round mean something on a machine that does other work as well. CPU time
//! is that of the endpoint's process. Environment:
//!
//! * `BENCH_ROUNDS` (3), `BENCH_SECONDS` of a cell (3), `BENCH_CLIENTS` (`1,16,64`), `BENCH_IDLE` clients (5000, and 10000 that only
//!   have to hold);
//! * `BENCH_ONLY`: only cells whose name contains this, as `prepared c=16` or `idle`; several, by commas;
//! * `BENCH_PEER`: another endpoint to measure, `NAME HOST:PORT PID`, which must lead to the PostgreSQL whose port is
//!   printed at the start (`BENCH_POSTGRES_PORT` chooses it) and let user `app` in without a password;
//! * `BENCH_WORKERS` of the proxy (2); `BENCH_BATCH`: its `batch_scheduling` (`never`, `busy` or `always`); `BENCH_URING`: its
//!   `io_uring` (`auto` or `off`);
//! * `BENCH_STRICT=1`: a target that is missed, or not measured, is a failure;
//! * `BENCH_BEFORE`: an older build of this program, whose proxy is measured next to the new one's.

mod idle;
mod load;
mod ours;
mod peers;
#[path = "../../../integration/src/ports.rs"]
mod ports;
mod postgres;
mod process;
mod relay;
mod report;
mod targets;
mod tls;

use anyhow::{Context, bail};
use load::Cell;
use peers::Peer;
use report::Report;
use std::io::Read;

/// The role and database of all clients, and the password where one is asked.
pub(crate) const USER: &str = "app";
pub(crate) const PASSWORD: &str = "bench";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--relay", upstream] => {
            end_with_parent();
            relay::run(upstream.parse()?)
        }
        [role @ ("--ours" | "--unrouted" | "--asking"), primary, standby, userlist] => {
            ours::run(role, primary.parse()?, standby.parse()?, userlist.into())
        }
        // cargo bench says this; cargo test --benches does not, and gets nothing to do.
        ["--bench"] => compare(),
        [] => Ok(()),
        _ => bail!("unknown arguments {arguments:?}"),
    }
}

/// A relay that nobody reads from any more must not stay.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
}

fn variable<T: std::str::FromStr>(name: &str, default: T) -> anyhow::Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text} is not understood")),
        Err(_) => Ok(default),
    }
}

fn compare() -> anyhow::Result<()> {
    process::raise_descriptor_limit()?;
    let rounds: usize = variable("BENCH_ROUNDS", 3)?;
    let seconds: u32 = variable("BENCH_SECONDS", 3)?;
    let clients = variable("BENCH_CLIENTS", "1,16,64".to_owned())?;
    let clients: Vec<u32> = clients.split(',').map(str::parse).collect::<Result<_, _>>().context("BENCH_CLIENTS")?;
    let only = variable("BENCH_ONLY", String::new())?;
    let wanted = |cell: &Cell| only.is_empty() || only.split(',').any(|part| cell.name().contains(part.trim()));
    let cells: Vec<Cell> = Cell::all(&clients, seconds, variable("BENCH_IDLE", 5000)?);
    let cells: Vec<Cell> = cells.into_iter().filter(wanted).collect();
    if cells.is_empty() {
        bail!("BENCH_ONLY={only} fits no cell");
    }
    let cluster = postgres::Cluster::start(variable("BENCH_POSTGRES_PORT", 0)?)?;
    println!("PostgreSQL listens on 127.0.0.1:{}, its standby on {}", cluster.primary.port, cluster.standby.port);
    let mut peers =
        vec![Peer::direct(&cluster), Peer::relay(&cluster)?, Peer::ours(&cluster)?, Peer::unrouted(&cluster)?];
    peers.push(Peer::asking(&cluster)?);
    match Peer::pgbouncer(&cluster) {
        Ok(peer) => peers.push(peer),
        Err(error) => println!("PgBouncer is left out: {error:#}"),
    }
    peers.extend(Peer::before(&cluster)?);
    peers.extend(Peer::from_environment()?);
    let mut report = Report::default();
    for round in 0..rounds {
        for cell in &cells {
            if cell.once() && round > 0 {
                continue;
            }
            // Another one begins each round, so that nobody always runs on a warm machine.
            for i in 0..peers.len() {
                let peer = &peers[(i + round) % peers.len()];
                if !cell.suits(peer) {
                    continue;
                }
                match cell.measure(peer, &cluster) {
                    Ok(sample) => report.add(cell, peer.name(), round, sample),
                    Err(error) => println!("round {round}, {}, {}: {error:#}", cell.name(), peer.name()),
                }
            }
            eprintln!("round {} of {rounds}: {}", round + 1, cell.name());
        }
    }
    report.print(&cells, &peers);
    let missed = report.judge(&cells, &peers);
    if missed > 0 && variable("BENCH_STRICT", 0u8)? != 0 {
        bail!("{missed} targets are missed or not measured");
    }
    Ok(())
}
