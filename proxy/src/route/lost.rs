//! Is what was acknowledged to a session in a term that is over in the one that is open?
//!
//! Where a quorum confirms commits it is, unless an operator allowed data to be lost. Elsewhere a failover may leave behind
//! what no standby had received. A session's reads would miss it then, although they were promised not to, so the session is
//! told. What was acknowledged before a sample of the primary's WAL lies before that sample's position; where that is within
//! what the later term has, so is the write. What came after the last such sample may be there or not.

use super::policy::Lag;
use cluster::topology::{Gate, Topology};
use cluster::{Instant, Lsn, Term};

/// When writes were acknowledged to a session last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acknowledged {
    /// By the standbys that commits wait for.
    by_quorum: Option<(Term, Instant)>,
    /// By the primary alone.
    alone: Option<(Term, Instant)>,
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
    pub(super) fn note(&mut self, term: Term, by_quorum: bool, now: Instant) {
        let last = if by_quorum { &mut self.by_quorum } else { &mut self.alone };
        *last = Some((term, now));
    }

    /// Was anything acknowledged in a term before this one that was not looked at since?
    pub(super) fn precedes(&self, term: Term) -> bool {
        [self.by_quorum, self.alone].iter().flatten().any(|(of, _)| *of < term)
    }

    /// May a term that is not decided upon yet lack what was acknowledged before it? Its positions tell nothing of that then.
    pub(super) fn is_undecided(&self, topology: &Topology, lag: &Lag) -> bool {
        if !matches!(topology.gate, Gate::Closed(_)) {
            return false;
        }
        let may_lack = |last: Option<(Term, Instant)>| {
            last.is_some_and(|write| write.0 < topology.term && lost(write, topology, lag).is_some())
        };
        may_lack(self.alone) || topology.loss_allowed && may_lack(self.by_quorum)
    }

    /// The last write that may be lost, told once. Nothing while it is not decided where the new term begins.
    pub(super) fn take_lost(&mut self, topology: &Topology, lag: &Lag) -> Option<LostWrite> {
        if matches!(topology.gate, Gate::Closed(_)) {
            return None;
        }
        let before = |last: &mut Option<(Term, Instant)>| last.take_if(|(term, _)| *term < topology.term);
        let (by_quorum, alone) = (before(&mut self.by_quorum), before(&mut self.alone));
        let alone = alone.and_then(|write| lost(write, topology, lag));
        let by_quorum = by_quorum.filter(|(term, _)| topology.loss_allowed && follows(topology, *term));
        alone.or_else(|| by_quorum.and_then(|write| lost(write, topology, lag)))
    }
}

/// Is the term that is open the next one after `term` in its line of descent, as far as is known?
fn follows(topology: &Topology, term: Term) -> bool {
    topology.forks.last().is_none_or(|last| Some(last.timeline) == term.timeline())
}

fn lost((term, at): (Term, Instant), topology: &Topology, lag: &Lag) -> Option<LostWrite> {
    if topology.holds_all_of == Some(term) {
        return None;
    }
    let fork = topology.forks.iter().find(|f| Some(f.timeline) == term.timeline()).map(|f| f.lsn);
    let kept = fork.and_then(|fork| lag.samples.before(term, fork));
    let is_kept = kept.is_some_and(|sampled| at <= sampled);
    let before = lag.samples.past(term, at);
    (!is_kept).then_some(LostWrite { term, at, fork, before, open: topology.term })
}
