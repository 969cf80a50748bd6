//! The LSN clock of the manager and the journal of a change of primary. PURE.
//!
//! The clock is a ring of (when, the primary's insert position); what lies between the fork and the last position
//! known of a dead primary is its provisional window of unreplicated writes, in bytes and in time.

use crate::fsm::observe::millis;
use crate::record::{JournalRecord, PhaseTime, Window};
use cluster::{Instant, Lsn, Term};
use std::collections::VecDeque;

/// Samples kept: at five a second, three and a half minutes.
const KEPT: usize = 1024;
/// Lines of evidence kept in a journal.
const OBSERVED: usize = 40;

/// When the primary of a term had written how far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LsnClock {
    term: Term,
    /// Where the term's timeline left its parent.
    began: Option<Lsn>,
    ring: VecDeque<(Instant, Lsn)>,
}

impl LsnClock {
    /// The primary of `term` had written up to `lsn` at `at`. Another term's samples are forgotten.
    pub fn sample(&mut self, term: Term, at: Instant, lsn: Lsn) {
        if term != self.term {
            *self = Self { term, ..Self::default() };
        }
        if self.ring.back().is_some_and(|(_, last)| lsn <= *last) {
            return;
        }
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back((at, lsn));
    }

    /// The timeline of the term that is sampled began there.
    pub fn begin(&mut self, lsn: Lsn) {
        self.began = Some(lsn);
    }

    /// Where the timeline of `term` began.
    pub fn began(&self, term: Term) -> Option<Lsn> {
        self.began.filter(|_| self.term == term)
    }

    /// The last position known of `term`'s primary.
    pub fn last(&self, term: Term) -> Option<Lsn> {
        self.ring.back().filter(|_| self.term == term).map(|(_, lsn)| *lsn)
    }

    /// When the primary passed `lsn`: the first sample at or past it, so never earlier than it was. `None` when it
    /// has not, or when that is older than the ring.
    pub fn passed(&self, lsn: Lsn) -> Option<Instant> {
        let first = self.ring.front()?;
        if lsn < first.1 {
            return None;
        }
        self.ring.iter().find(|(_, l)| *l >= lsn).map(|(at, _)| *at)
    }

    /// How long ago the primary passed `lsn`; zero when it has written nothing since. `None` when unknown.
    pub fn lag_ms(&self, term: Term, lsn: Lsn, now: Instant) -> Option<u64> {
        let last = self.last(term)?;
        if lsn >= last {
            return Some(0);
        }
        // The first sample past the standby's position is the earliest at which more is known to have been written.
        self.ring.iter().find(|(_, l)| *l > lsn).map(|(at, _)| millis(now.since(*at)))
    }

    /// The window from `fork` to the last position known of `term`'s primary. `None` when none is known.
    pub fn window(&self, term: Term, fork: Lsn) -> Option<Window> {
        let last = self.last(term)?;
        let span = self.passed(fork).zip(self.passed(last)).map(|(a, b)| millis(b.since(a)));
        let bytes = last.bytes_since(fork);
        let ms = if bytes == 0 { Some(0) } else { span };
        Some(Window { fork_lsn: fork, last_known_lsn: last, bytes, ms })
    }
}

/// Note that `phase` ended at `now`; `began` is the first evidence. A phase noted twice keeps its first time.
pub fn phase(journal: &mut JournalRecord, began: Instant, now: Instant, phase: &str) {
    step(&mut journal.phases, began, now, phase);
}

/// The same of what has no journal yet.
pub(super) fn step(phases: &mut Vec<PhaseTime>, began: Instant, now: Instant, phase: &str) {
    if !phases.iter().any(|p| p.phase == phase) {
        phases.push(PhaseTime { phase: phase.to_owned(), ms: millis(now.since(began)) });
    }
}

/// Add a line of evidence, once, and not without bound.
pub fn observed(journal: &mut JournalRecord, line: String) {
    if journal.observed.len() < OBSERVED && !journal.observed.contains(&line) {
        journal.observed.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(samples: &[(u64, u64)]) -> LsnClock {
        let mut c = LsnClock::default();
        for (at, lsn) in samples {
            c.sample(Term(3), Instant::from_millis(*at), Lsn(*lsn));
        }
        c
    }

    #[test]
    fn the_window_is_what_lies_between_the_fork_and_the_last_position_known() {
        let c = clock(&[(0, 100), (200, 300), (400, 500)]);
        let w = c.window(Term(3), Lsn(300)).unwrap();
        assert_eq!((w.bytes, w.ms, w.last_known_lsn), (200, Some(200), Lsn(500)));
        assert_eq!(c.window(Term(3), Lsn(600)).map(|w| (w.bytes, w.ms)), Some((0, Some(0))));
        assert_eq!(c.window(Term(4), Lsn(300)), None);
    }

    #[test]
    fn a_fork_before_the_first_sample_has_bytes_but_no_time() {
        let w = clock(&[(0, 100), (200, 300)]).window(Term(3), Lsn(50)).unwrap();
        assert_eq!((w.bytes, w.ms), (250, None));
    }

    #[test]
    fn a_standby_that_has_everything_does_not_lag() {
        let c = clock(&[(0, 100), (200, 300)]);
        let now = Instant::from_millis(1000);
        assert_eq!(c.lag_ms(Term(3), Lsn(300), now), Some(0));
        assert_eq!(c.lag_ms(Term(3), Lsn(150), now), Some(800));
        assert_eq!(c.lag_ms(Term(9), Lsn(150), now), None);
    }

    #[test]
    fn a_new_term_starts_the_clock_afresh_and_the_ring_is_bounded() {
        let mut c = clock(&[(0, 100)]);
        for i in 0..(KEPT as u64 + 10) {
            c.sample(Term(4), Instant::from_millis(i), Lsn(i + 1));
        }
        assert_eq!((c.ring.len(), c.last(Term(3))), (KEPT, None));
    }
}
