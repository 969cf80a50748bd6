//! Is what was acknowledged to a session in a term that is over in the one that is open?
//!
//! Where a quorum confirms commits it is, unless an operator allowed data to be lost. Elsewhere a failover may leave behind
//! what no standby had received. A session's reads would miss it then, although they were promised not to, so the session is
//! told. What was acknowledged before a sample of the primary's WAL lies before that sample's position; where that is within
//! what the later term has, so is the write. What came after the last such sample may be there or not.

use super::policy::Lag;
use cluster::topology::{Gate, Topology};
use cluster::{Instant, Lsn, Term};

/// By whom a write was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// By the standbys that commits wait for.
    Quorum,
    /// By the primary alone, whose disk has it.
    Primary,
    /// By a primary whose disk may not have had it (`synchronous_commit = off`).
    Memory,
}

/// When writes were acknowledged to a session last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acknowledged {
    /// By the standbys that commits wait for.
    by_quorum: Option<Write>,
    /// By the primary alone.
    alone: Option<Write>,
    /// Before it was on the primary's disk.
    unwritten: Option<Write>,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    /// The term that acknowledged it.
    term: Term,
    /// When.
    at: Instant,
    /// The newest term that is known to have it.
    known: Term,
    /// It was on the primary's disk.
    written: bool,
    /// It lies before this position of its own term, as is known since a later one was found to have it.
    before: Option<Lsn>,
}

/// A write that was acknowledged and may be in no later term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostWrite {
    /// The term that acknowledged it.
    pub term: Term,
    /// When.
    pub at: Instant,
    /// What its term wrote from here on is in no later one; `None` when that is not known.
    pub fork: Option<Lsn>,
    /// It lies before this; `None` when that is not known.
    pub before: Option<Lsn>,
    /// The term that is open.
    pub open: Term,
}

impl Acknowledged {
    /// What may have written was acknowledged in `term` at `now`.
    pub(super) fn note(&mut self, term: Term, by: By, now: Instant) {
        let last = match by {
            By::Quorum => &mut self.by_quorum,
            By::Primary => &mut self.alone,
            By::Memory => &mut self.unwritten,
        };
        *last = Some(Write { term, at: now, known: term, written: by != By::Memory, before: None });
    }

    /// Was anything acknowledged in a term before this one, of which nobody has looked yet whether it is in this one?
    pub(super) fn precedes(&self, term: Term) -> bool {
        [self.by_quorum, self.alone, self.unwritten].iter().flatten().any(|write| write.known < term)
    }

    /// May a term that is not decided upon yet lack what was acknowledged before it? Its positions tell nothing of that then.
    pub(super) fn is_undecided(&self, topology: &Topology, lag: &Lag) -> bool {
        if !matches!(topology.gate, Gate::Closed(_)) {
            return false;
        }
        let may_lack = |last: Option<Write>| {
            last.is_some_and(|write| write.known < topology.term && lost(write, topology, lag).is_some())
        };
        may_lack(self.alone) || may_lack(self.unwritten) || topology.loss_allowed && may_lack(self.by_quorum)
    }

    /// The last write that may be lost, told once. Nothing while it is not decided where the new term begins. What is there
    /// is looked for again in the terms behind this one, which need not descend from it.
    pub(super) fn take_lost(&mut self, topology: &Topology, lag: &Lag) -> Option<LostWrite> {
        if matches!(topology.gate, Gate::Closed(_)) {
            return None;
        }
        let told = |last: &mut Option<Write>, may_lack: &dyn Fn(&Write) -> bool| {
            let write = last.as_mut().filter(|write| write.known < topology.term)?;
            let lost = may_lack(write).then(|| lost(*write, topology, lag)).flatten();
            if lost.is_some() {
                *last = None;
                return lost;
            }
            write.known = topology.term;
            write.before = [write.before, fork_of(topology, write.term)].into_iter().flatten().min();
            None
        };
        let alone = told(&mut self.alone, &|_| true);
        let unwritten = told(&mut self.unwritten, &|_| true);
        let by_quorum = told(&mut self.by_quorum, &|write| topology.loss_allowed && follows(topology, write.term));
        alone.or(unwritten).or(by_quorum)
    }
}

/// Is the term that is open the next one after `term` in its line of descent, as far as is known?
pub(super) fn follows(topology: &Topology, term: Term) -> bool {
    topology.forks.last().is_none_or(|last| Some(last.timeline) == term.timeline())
}

/// Where the term that is open left `term`.
pub(super) fn fork_of(topology: &Topology, term: Term) -> Option<Lsn> {
    topology.forks.iter().find(|f| Some(f.timeline) == term.timeline()).map(|f| f.lsn)
}

fn lost(write: Write, topology: &Topology, lag: &Lag) -> Option<LostWrite> {
    let Write { term, at, known, written, before } = write;
    let holds = |of: Option<Term>| of.is_some_and(|of| of == term || of == known);
    if holds(topology.holds_all_of) || written && holds(topology.holds_written_of) {
        return None;
    }
    let fork = fork_of(topology, term);
    let sampled = fork.and_then(|fork| lag.samples.before(term, fork));
    let is_kept = sampled.is_some_and(|sampled| at <= sampled) || before.zip(fork).is_some_and(|(b, fork)| b <= fork);
    let before = before.or_else(|| lag.samples.past(term, at));
    (!is_kept).then_some(LostWrite { term, at, fork, before, open: topology.term })
}
