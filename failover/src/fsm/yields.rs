//! When a leading manager on the primary's host leaves the lead to another, so that a lost host takes only one of both: once for
//! each primary, and while nothing is under way. PURE.

use crate::fsm::blocker::Verdict;
use crate::fsm::planner::{Planner, Stage};
use crate::record::Phase;
use cluster::{Instant, Term};
use std::time::Duration;

/// The primary is well for so long before: whoever leads through a change of primary leads until it is over.
const STEADY_FOR: Duration = Duration::from_secs(10);

impl Planner {
    /// The term of a leader that could leave the lead to another now: its primary is well, nothing is under way, and nobody waits
    /// for an answer.
    pub fn may_yield(&self) -> Option<Term> {
        let asked = !self.fence_ops.is_empty()
            || self.pause_op.is_some()
            || self.maintenance_op.is_some()
            || self.policy_op.is_some()
            || self.remove_op.is_some();
        let works = !matches!(self.stage, Stage::Idle)
            || self.pending.is_some()
            || self.journal.is_some()
            || self.rearm.is_some()
            || self.suspend.is_some();
        let steady = self.leads() && !asked && !works && self.verdict == Verdict::Steady;
        self.seen.term().filter(|t| steady && t.phase == Phase::Active).map(|t| t.term)
    }
}

/// Watches, in a manager, for how long it could leave the lead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Yields {
    since: Option<(Term, Instant)>,
    /// Left once for that: where nobody else took it, nobody else is there.
    done: Term,
}

impl Yields {
    /// `may`: see [`Planner::may_yield`]. `beside`: the primary is on this manager's host, and other members are not. True once: the
    /// lead is to be left.
    pub fn look(&mut self, now: Instant, may: Option<Term>, beside: bool) -> bool {
        let term = may.filter(|term| beside && *term > self.done);
        self.since = term.map(|term| self.since.filter(|(since, _)| *since == term).unwrap_or((term, now)));
        let due = self.since.filter(|(_, since)| now.since(*since) >= STEADY_FOR);
        if let Some((term, _)) = due {
            *self = Self { since: None, done: term };
        }
        due.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lead_is_left_once_for_each_primary_that_has_been_well_for_a_while() {
        let mut yields = Yields::default();
        let mut at = |ms, may: Option<u64>, beside| yields.look(Instant::from_millis(ms), may.map(Term), beside);
        assert!(!at(0, Some(7), false) && !at(20_000, Some(7), false), "the primary is elsewhere");
        assert!(!at(20_000, Some(7), true) && !at(29_999, Some(7), true));
        assert!(!at(29_999, None, true) && !at(30_000, Some(7), true), "it was busy in between");
        assert!(!at(39_999, Some(7), true) && at(40_000, Some(7), true));
        assert!(!at(40_001, Some(7), true) && !at(90_000, Some(7), true), "nobody has taken it");
        assert!(!at(90_000, Some(8), true), "another primary is given its time");
        assert!(!at(99_999, Some(8), true) && at(100_000, Some(8), true));
    }
}
