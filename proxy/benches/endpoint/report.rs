//! The tables: medians with their ranges, and ratios taken within each round.

use crate::load::{Cell, Sample, Work};
use crate::peers::{Kind, Peer};
use crate::process::Calls;
use std::collections::BTreeMap;

/// All samples, by cell, peer and round.
#[derive(Debug, Default)]
pub(crate) struct Report {
    samples: BTreeMap<(String, String, usize), Sample>,
}

/// Median, least and greatest.
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    /// `None` when nothing was measured.
    pub(crate) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let text = match sorted[..] {
            [] => "-".to_owned(),
            [one] => format!("{one:.2}"),
            [least, .., greatest] => format!("{:.2} [{least:.2}..{greatest:.2}]", sorted[sorted.len() / 2]),
        };
        f.pad(&text)
    }
}

impl Report {
    pub(crate) fn add(&mut self, cell: &Cell, peer: &str, round: usize, sample: Sample) {
        self.samples.insert((cell.name(), peer.to_owned(), round), sample);
    }

    pub(crate) fn of(&self, cell: &Cell, peer: &str) -> Vec<(usize, &Sample)> {
        let name = cell.name();
        let all = self.samples.iter().filter(|((c, p, _), _)| *c == name && p == peer);
        all.map(|((_, _, round), sample)| (*round, sample)).collect()
    }

    pub(crate) fn spread(&self, cell: &Cell, peer: &str, value: impl Fn(&Sample) -> Option<f64>) -> Spread {
        Spread(self.of(cell, peer).into_iter().filter_map(|(_, s)| value(s)).collect())
    }

    /// CPU of `peer` as a multiple of that of `other`, round by round.
    pub(crate) fn ratio(&self, cell: &Cell, peer: &str, other: Option<&Peer>) -> Spread {
        self.pairs(cell, peer, other, cpu, |ours, theirs| ours / theirs)
    }

    /// A value of `peer` put together with that of `other`, round by round.
    pub(crate) fn pairs(
        &self,
        cell: &Cell,
        peer: &str,
        other: Option<&Peer>,
        value: impl Fn(&Sample) -> Option<f64>,
        join: impl Fn(f64, f64) -> f64,
    ) -> Spread {
        let Some(other) = other.filter(|o| o.name() != peer) else { return Spread(Vec::new()) };
        let others: BTreeMap<usize, &Sample> = self.of(cell, other.name()).into_iter().collect();
        let of = self.of(cell, peer).into_iter();
        let pairs = of.filter_map(|(round, s)| Some((value(s)?, value(others.get(&round)?)?)));
        Spread(pairs.map(|(ours, theirs)| join(ours, theirs)).collect())
    }

    pub(crate) fn print(&self, cells: &[Cell], peers: &[Peer]) {
        let relay = peers.iter().find(|p| p.kind == Kind::Relay);
        let pgbouncer = peers.iter().find(|p| p.kind == Kind::PgBouncer);
        for cell in cells {
            println!("\n{}", cell.name());
            self.heading(cell);
            for peer in peers.iter().map(Peer::name).filter(|p| !self.of(cell, p).is_empty()) {
                if let Some(memory) = self.memory(cell, peer) {
                    println!("  {peer:18} {memory}");
                    continue;
                }
                let value = |f: fn(&Sample) -> Option<f64>| self.spread(cell, peer, f);
                println!(
                    "  {peer:18} {:23} {:23} {:23} {:20} {:26} {:20} {}",
                    value(cpu),
                    value(|s| parts(s).map(|(user, _)| user)),
                    value(|s| parts(s).map(|(_, system)| system)),
                    value(calls),
                    value(speed),
                    self.ratio(cell, peer, relay),
                    self.ratio(cell, peer, pgbouncer),
                );
            }
        }
    }

    fn heading(&self, cell: &Cell) {
        let (unit, calls, speed) = match cell.work {
            Work::Select(..) | Work::WriteRead => ("CPU µs/transaction", "calls", "latency µs"),
            Work::Connect => ("CPU µs/connection", "", "latency µs"),
            Work::Wide | Work::CopyIn | Work::CopyOut => ("CPU s/GB", "", "MB/s"),
            Work::Idle(_) | Work::IdleTls(_) => return,
        };
        println!(
            "  {:18} {unit:23} {:23} {:23} {calls:20} {speed:26} {:20} x pgbouncer",
            "", "user", "system", "x relay"
        );
    }

    fn memory(&self, cell: &Cell, peer: &str) -> Option<String> {
        match self.of(cell, peer).first()?.1 {
            Sample::Memory(memory) => Some(memory.to_string()),
            Sample::Each { .. } | Sample::Bulk { .. } => None,
        }
    }
}

pub(crate) fn parts(sample: &Sample) -> Option<(f64, f64)> {
    match sample {
        Sample::Each { cpu, .. } | Sample::Bulk { cpu, .. } => *cpu,
        Sample::Memory(_) => None,
    }
}

pub(crate) fn cpu(sample: &Sample) -> Option<f64> {
    parts(sample).map(|(user, system)| user + system)
}

pub(crate) fn calls(sample: &Sample) -> Option<f64> {
    counted(sample).map(|calls| calls.all)
}

/// Sends and receives.
pub(crate) fn socket_calls(sample: &Sample) -> Option<f64> {
    counted(sample).map(|calls| calls.socket)
}

fn counted(sample: &Sample) -> Option<Calls> {
    match sample {
        Sample::Each { calls, .. } => *calls,
        Sample::Bulk { .. } | Sample::Memory(_) => None,
    }
}

fn speed(sample: &Sample) -> Option<f64> {
    match sample {
        Sample::Each { latency, .. } => Some(*latency),
        Sample::Bulk { speed, .. } => Some(*speed),
        Sample::Memory(_) => None,
    }
}
