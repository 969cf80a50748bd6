//! The cells of the comparison and how each is measured.

use crate::idle;
use crate::peers::{Kind, Peer};
use crate::postgres::{COPY_ROWS, Cluster};
use crate::process::{Calls, Cpu, count_calls, run};
use anyhow::{Context, bail};
use std::process::{Command, Output};
use std::time::Instant;

/// Rows of a wide result and bytes of each.
const WIDE: (u64, u64) = (1000, 10 * 1024);
/// The number of clients for which bounds of CPU hold, and at which routing is compared with none.
pub(crate) const ROUTED: u32 = 16;
/// Idle clients that must hold.
pub(crate) const HOLD: usize = 10_000;
/// Each client has rows of its own, so that nobody waits for another's lock.
const WRITE_READ: &str = "\\set aid 1 + :client_id * 1000 + random(0, 999)
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
";
/// Seconds while system calls are counted.
const COUNTING: u32 = 1;

/// pgbench's protocol modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Extended,
    Prepared,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Simple, Self::Extended, Self::Prepared];

    const fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// pgbench -S.
    Select(Mode, u32),
    /// A write and a read that must see it, each a transaction.
    WriteRead,
    /// Rows of 10 KiB.
    Wide,
    /// COPY from stdin, 100 MB.
    CopyIn,
    /// COPY to stdout, 100 MB.
    CopyOut,
    /// A connection for each transaction.
    Connect,
    /// Clients that do nothing.
    Idle(usize),
    /// The same with TLS.
    IdleTls(usize),
}

/// One cell: a kind of work for so long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) work: Work,
    seconds: u32,
}

/// What one run of a cell gave.
#[derive(Clone, Debug)]
pub(crate) enum Sample {
    /// Per transaction or connection.
    Each {
        /// User and system time of the endpoint, microseconds.
        cpu: Option<(f64, f64)>,
        /// Mean, microseconds.
        latency: f64,
        /// System calls of the endpoint.
        calls: Option<Calls>,
    },
    /// Of a stream.
    Bulk {
        /// User and system time of the endpoint, seconds per GB.
        cpu: Option<(f64, f64)>,
        /// MB per second.
        speed: f64,
    },
    /// Of idle clients.
    Memory(idle::Memory),
}

impl Cell {
    /// All cells, cheap ones first.
    pub(crate) fn all(clients: &[u32], seconds: u32, idle: usize) -> Vec<Self> {
        let mut works = Vec::new();
        for mode in Mode::ALL {
            works.extend(clients.iter().map(|&c| Work::Select(mode, c)));
        }
        works.extend([
            Work::WriteRead,
            Work::Wide,
            Work::CopyIn,
            Work::CopyOut,
            Work::Connect,
            Work::IdleTls(idle),
            Work::Idle(idle),
            Work::Idle(HOLD),
        ]);
        works.into_iter().map(|work| Self { work, seconds }).collect()
    }

    pub(crate) fn name(&self) -> String {
        match self.work {
            Work::Select(mode, clients) => format!("{} c={clients}", mode.name()),
            Work::WriteRead => format!("write and read c={ROUTED}"),
            Work::Wide => "wide rows".to_owned(),
            Work::CopyIn => "copy in".to_owned(),
            Work::CopyOut => "copy out".to_owned(),
            Work::Connect => "connect c=16".to_owned(),
            Work::Idle(n) => format!("idle {n}"),
            Work::IdleTls(n) => format!("idle TLS {n}"),
        }
    }

    /// Memory is measured on a fresh process, once.
    pub(crate) fn once(&self) -> bool {
        matches!(self.work, Work::Idle(_) | Work::IdleTls(_))
    }

    /// Can this peer do it, and does it mean anything?
    pub(crate) fn suits(&self, peer: &Peer) -> bool {
        match self.work {
            _ if peer.kind == Kind::Unrouted => matches!(self.work, Work::Select(_, ROUTED) | Work::WriteRead),
            _ if peer.kind == Kind::Asking => matches!(self.work, Work::WriteRead),
            Work::Select(Mode::Prepared, _) => !peer.name().starts_with("pgbouncer 1.1"),
            Work::WriteRead => peer.kind == Kind::Ours,
            Work::Select(..) | Work::Wide | Work::CopyIn | Work::CopyOut | Work::Connect => true,
            Work::Idle(HOLD) | Work::IdleTls(_) => peer.kind == Kind::Ours,
            Work::Idle(_) => !matches!(peer.kind, Kind::Direct | Kind::Relay),
        }
    }

    /// One run. System calls are counted in a run of their own, as counting costs time; in each round, as how often an
    /// endpoint sleeps in between depends on who runs where.
    pub(crate) fn measure(&self, peer: &Peer, cluster: &Cluster) -> anyhow::Result<Sample> {
        match self.work {
            Work::Select(mode, clients) => {
                let jobs = if clients < 16 { 1 } else { 2 };
                let script = format!("-n -S -M {} -c {clients} -j {jobs}", mode.name());
                self.transactions(peer, &script.split(' ').map(str::to_owned).collect::<Vec<_>>())
            }
            Work::WriteRead => {
                let file = cluster.scratch.path().join("write.sql");
                std::fs::write(&file, WRITE_READ)?;
                let script = format!("-n -M prepared -c {ROUTED} -j 2 -f {}", file.display());
                self.transactions(peer, &script.split(' ').map(str::to_owned).collect::<Vec<_>>())
            }
            Work::Connect => {
                let mut pgbench = peer.client("pgbench")?;
                each(peer, pgbench.args(["-n", "-S", "-C", "-c", "16", "-j", "2", "-T", &self.seconds.to_string()]))
            }
            Work::Wide => self.wide(peer, cluster),
            Work::CopyIn => {
                cluster.primary.sql("truncate copied")?;
                let file = cluster.scratch.path().join("copy.txt");
                let mut psql = peer.client("psql")?;
                psql.args(["-X", "-q", "-c", "copy copied from stdin"]).stdin(std::fs::File::open(file)?);
                let sample = bulk(peer, &mut psql, |_| Ok(cluster.copy_bytes))?;
                let rows = cluster.primary.sql("select count(*) from copied")?;
                if rows != COPY_ROWS.to_string() {
                    bail!("{rows} rows arrived");
                }
                Ok(sample)
            }
            Work::CopyOut => {
                let mut psql = peer.client("psql")?;
                psql.args(["-X", "-q", "-o", "/dev/null", "-c", "copy source to stdout"]);
                bulk(peer, &mut psql, |_| Ok(cluster.copy_bytes))
            }
            Work::Idle(clients) => Ok(Sample::Memory(idle::measure(peer, clients, None)?)),
            Work::IdleTls(clients) => {
                let tls = crate::tls::client(&cluster.userlist)?;
                Ok(Sample::Memory(idle::measure(peer, clients, Some(&tls))?))
            }
        }
    }

    fn transactions(&self, peer: &Peer, script: &[String]) -> anyhow::Result<Sample> {
        let pgbench = |seconds: u32| -> anyhow::Result<Command> {
            let mut pgbench = peer.client("pgbench")?;
            pgbench.args(script).args(["-T", &seconds.to_string()]);
            Ok(pgbench)
        };
        let sample = each(peer, &mut pgbench(self.seconds)?)?;
        Ok(with_calls(sample, calls(peer, &pgbench(COUNTING)?)?))
    }

    fn wide(&self, peer: &Peer, cluster: &Cluster) -> anyhow::Result<Sample> {
        let script = cluster.scratch.path().join("wide.sql");
        std::fs::write(&script, format!("SELECT repeat('x', {}) FROM generate_series(1, {});\n", WIDE.1, WIDE.0))?;
        let mut pgbench = peer.client("pgbench")?;
        pgbench.args(["-n", "-c", "2", "-j", "1", "-T", &self.seconds.to_string(), "-f"]).arg(&script);
        // Type, length, count and length of the only column.
        bulk(peer, &mut pgbench, |output| Ok(transactions(output)? * WIDE.0 * (1 + 4 + 2 + 4 + WIDE.1)))
    }
}

fn with_calls(sample: Sample, calls: Option<Calls>) -> Sample {
    match sample {
        Sample::Each { cpu, latency, .. } => Sample::Each { cpu, latency, calls },
        Sample::Bulk { .. } | Sample::Memory(_) => sample,
    }
}

/// The endpoint's CPU while `command` runs, and its output.
fn metered(peer: &Peer, command: &mut Command) -> anyhow::Result<(Option<Cpu>, f64, Output)> {
    let before = peer.pid.map(Cpu::of).transpose()?;
    let started = Instant::now();
    let output = run(command)?;
    let wall = started.elapsed().as_secs_f64();
    let used = match (before, peer.pid) {
        (Some(before), Some(pid)) => Some(Cpu::of(pid)?.since(before)),
        _ => None,
    };
    Ok((used, wall, output))
}

fn each(peer: &Peer, pgbench: &mut Command) -> anyhow::Result<Sample> {
    let (used, _, output) = metered(peer, pgbench)?;
    let n = transactions(&output)? as f64;
    let cpu = used.map(|cpu| (cpu.user / n * 1e6, cpu.system / n * 1e6));
    Ok(Sample::Each { cpu, latency: number_after(&output, "latency average =")? * 1000.0, calls: None })
}

fn bulk(
    peer: &Peer,
    command: &mut Command,
    bytes: impl FnOnce(&Output) -> anyhow::Result<u64>,
) -> anyhow::Result<Sample> {
    let (used, wall, output) = metered(peer, command)?;
    let gb = bytes(&output)? as f64 / 1e9;
    Ok(Sample::Bulk { cpu: used.map(|cpu| (cpu.user / gb, cpu.system / gb)), speed: gb * 1000.0 / wall })
}

fn calls(peer: &Peer, pgbench: &Command) -> anyhow::Result<Option<Calls>> {
    let Some(pid) = peer.pid else { return Ok(None) };
    let Some((calls, output)) = count_calls(pid, pgbench)? else { return Ok(None) };
    Ok(Some(calls.each(transactions(&output)? as f64)))
}

fn transactions(output: &Output) -> anyhow::Result<u64> {
    Ok(number_after(output, "number of transactions actually processed:")? as u64)
}

/// pgbench's number behind `label`.
fn number_after(output: &Output, label: &str) -> anyhow::Result<f64> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rest =
        text.lines().find_map(|l| l.strip_prefix(label)).with_context(|| format!("pgbench did not say {label}"))?;
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.split('/').next().unwrap_or_default().parse().with_context(|| format!("{label} {rest}"))
}
