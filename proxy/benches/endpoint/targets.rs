//! What the proxy may cost, and whether it does: medians of the rounds against bounds.

use crate::idle::Memory;
use crate::load::{Cell, HOLD, Mode, ROUTED, Sample, Work};
use crate::peers::{Kind, Peer};
use crate::report::{Report, Spread, calls, cpu, parts, socket_calls};

/// User time of a transaction, microseconds; its calls; CPU of wide rows, seconds per GB.
const MAX_USER: f64 = 6.0;
const MAX_CALLS: f64 = 4.5;
const MAX_WIDE: f64 = 1.2;
/// Multiples of the CPU of PgBouncer, and with named statements of the relay.
const MAX_OF_PGBOUNCER: f64 = 1.15;
const MAX_OF_RELAY: f64 = 1.36;
const MAX_CONNECT: f64 = 1.3;
/// KiB of an idle client, without and with TLS.
const MAX_IDLE: f64 = 8.0;
const MAX_IDLE_TLS: f64 = 40.0;
/// Percent of a core while all are idle. The clock of a process ticks at 1/100 s: over the four seconds this is four
/// ticks, for the sampling of lag, which goes on.
const MAX_IDLE_CPU: f64 = 1.0;
/// Of the memory that clients took, this part may stay the second time they have left.
const MAX_KEPT: f64 = 0.1;
/// What routing may add to a simple and to a prepared select, microseconds of CPU.
const MAX_ROUTING: (f64, f64) = (4.0, 2.0);
/// Sends and receives that routing may add: none, but for those of the sampling of lag and of new connections.
const MAX_ROUTING_CALLS: f64 = 0.02;

struct Target {
    what: String,
    bound: f64,
    measured: Spread,
}

impl Report {
    /// Print each bound next to what was measured. How many are not seen to hold?
    pub(crate) fn judge(&self, cells: &[Cell], peers: &[Peer]) -> usize {
        println!("\ntargets (medians)");
        let mut missed = 0;
        for ours in peers.iter().filter(|p| p.kind == Kind::Ours) {
            for target in cells.iter().flat_map(|cell| self.targets(cell, ours, peers)) {
                let verdict = match target.measured.median() {
                    None => "not measured",
                    Some(value) if value <= target.bound => "PASS",
                    Some(_) => "MISS",
                };
                missed += usize::from(verdict != "PASS");
                let Target { what, bound, measured } = target;
                println!("  {:16} {what:44} at most {bound:6.2}: {measured:24} {verdict}", ours.name());
            }
        }
        missed
    }

    fn targets(&self, cell: &Cell, ours: &Peer, peers: &[Peer]) -> Vec<Target> {
        let name = cell.name();
        let against = |kind, bound, other: &str| {
            let other_peer = peers.iter().find(|p| p.kind == kind);
            let measured = self.ratio(cell, ours.name(), other_peer);
            Target { what: format!("{name}: CPU, as a multiple of {other}'s"), bound, measured }
        };
        let value = |what: &str, bound, of: &dyn Fn(&Sample) -> Option<f64>| Target {
            what: format!("{name}: {what}"),
            bound,
            measured: self.spread(cell, ours.name(), of),
        };
        let memory = |of: fn(&Memory) -> Option<f64>| {
            move |sample: &Sample| match sample {
                Sample::Memory(memory) => of(memory),
                Sample::Each { .. } | Sample::Bulk { .. } => None,
            }
        };
        match cell.work {
            Work::Select(mode, ROUTED) => {
                let mut targets = vec![
                    match mode {
                        Mode::Simple | Mode::Extended => against(Kind::PgBouncer, MAX_OF_PGBOUNCER, "PgBouncer"),
                        Mode::Prepared => against(Kind::Relay, MAX_OF_RELAY, "the relay"),
                    },
                    value("user µs per transaction", MAX_USER, &|s| parts(s).map(|(user, _)| user)),
                    value("calls per transaction", MAX_CALLS, &calls),
                ];
                targets.extend(self.of_routing(cell, mode, ours, peers));
                targets
            }
            Work::WriteRead => vec![self.round_trips(cell, ours, peers)],
            Work::Wide => vec![value("CPU s per GB", MAX_WIDE, &cpu)],
            Work::Connect => vec![against(Kind::PgBouncer, MAX_CONNECT, "PgBouncer")],
            Work::Idle(HOLD) => vec![value("KiB per client while all hold", MAX_IDLE, &memory(|m| m.prepared))],
            Work::Idle(_) | Work::IdleTls(_) => {
                let bound = if matches!(cell.work, Work::Idle(_)) { MAX_IDLE } else { MAX_IDLE_TLS };
                vec![
                    value("KiB per client", bound, &memory(|m| m.prepared)),
                    value("idle CPU %", MAX_IDLE_CPU, &memory(|m| Some(m.idle_cpu))),
                    value("part of it kept when all have left again", MAX_KEPT, &memory(Memory::kept)),
                ]
            }
            Work::Select(..) | Work::CopyIn | Work::CopyOut => Vec::new(),
        }
    }

    /// What routing adds to reads.
    fn of_routing(&self, cell: &Cell, mode: Mode, ours: &Peer, peers: &[Peer]) -> Vec<Target> {
        let off = peers.iter().find(|p| p.kind == Kind::Unrouted);
        let bound = match mode {
            Mode::Simple => Some(MAX_ROUTING.0),
            Mode::Extended => None,
            Mode::Prepared => Some(MAX_ROUTING.1),
        };
        let what = format!("{}: CPU µs that routing adds", cell.name());
        let measured = self.pairs(cell, ours.name(), off, cpu, |on, off| on - off);
        let cpu = bound.map(|bound| Target { what, bound, measured });
        cpu.into_iter().chain([self.round_trips(cell, ours, peers)]).collect()
    }

    /// Routing takes no further round trip, also when a read must see what its session has written.
    fn round_trips(&self, cell: &Cell, ours: &Peer, peers: &[Peer]) -> Target {
        let off = peers.iter().find(|p| p.kind == Kind::Unrouted);
        let what = format!("{}: sends and receives that routing adds", cell.name());
        let measured = self.pairs(cell, ours.name(), off, socket_calls, |on, off| on - off);
        Target { what, bound: MAX_ROUTING_CALLS, measured }
    }
}
