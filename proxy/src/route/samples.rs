//! Where the primary's WAL ended at what time, in this term and in those before it: tells what of a term that is over is in
//! a later one. Bounded: the further back, the fewer samples are kept.

use cluster::{Instant, Lsn, Term};
use std::collections::VecDeque;
use std::time::Duration;

/// Terms kept.
const MOST_TERMS: usize = 8;
/// Samples kept of a term.
const MOST: usize = 256;
/// No two are nearer to each other than this, but for the newest.
const APART: Duration = Duration::from_millis(50);

/// The samples of several terms, the newest term last.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(VecDeque<OfTerm>);

#[derive(Clone, Debug)]
struct OfTerm {
    term: Term,
    /// When the primary was asked, and an end of its WAL at or past all that was acknowledged before that; oldest first.
    samples: Vec<(Instant, Lsn)>,
}

impl Samples {
    /// The primary of `term`, asked at that time, has told this end of its WAL.
    pub(super) fn add(&mut self, term: Term, asked: Instant, lsn: Lsn) {
        if self.0.back().is_none_or(|newest| newest.term < term) {
            self.0.push_back(OfTerm { term, samples: Vec::new() });
            if self.0.len() > MOST_TERMS {
                self.0.pop_front();
            }
        }
        if let Some(of) = self.0.back_mut().filter(|newest| newest.term == term) {
            of.add(asked, lsn);
        }
    }

    /// All that was acknowledged in `term` before this lies before `end`.
    pub(super) fn before(&self, term: Term, end: Lsn) -> Option<Instant> {
        let mut known = self.of(term).iter().rev();
        known.find(|(_, lsn)| *lsn <= end).map(|(asked, _)| *asked)
    }

    /// A position that what was acknowledged in `term` by that time lies before.
    pub(super) fn past(&self, term: Term, acknowledged: Instant) -> Option<Lsn> {
        self.of(term).iter().find(|(asked, _)| *asked >= acknowledged).map(|(_, lsn)| *lsn)
    }

    fn of(&self, term: Term) -> &[(Instant, Lsn)] {
        self.0.iter().find(|of| of.term == term).map_or(&[], |of| &of.samples)
    }
}

impl OfTerm {
    fn add(&mut self, asked: Instant, lsn: Lsn) {
        if self.samples.last().is_some_and(|(newest, _)| asked <= *newest) {
            return;
        }
        // The newest always stays, and goes for a newer one that is near.
        if let [.., (before, _), (newest, _)] = self.samples[..]
            && newest.since(before) < APART
        {
            self.samples.pop();
        }
        self.samples.push((asked, lsn));
        if self.samples.len() > MOST {
            self.thin(asked);
        }
    }

    /// Take out the one that is missed the least: whose neighbours are nearest to each other for their age.
    fn thin(&mut self, now: Instant) {
        let missed = |i: usize| {
            let ((before, _), (after, _)) = (self.samples[i - 1], self.samples[i + 1]);
            after.since(before).as_nanos() * 1000 / now.since(before).as_nanos().max(1)
        };
        if let Some(least) = (1..self.samples.len() - 1).min_by_key(|i| missed(*i)) {
            self.samples.remove(least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn what_was_acknowledged_before_a_sample_lies_before_it() {
        let mut samples = Samples::default();
        for (term, ms, lsn) in
            [(7, 1000, 10), (7, 1100, 20), (7, 1200, 20), (7, 1300, 40), (8, 2000, 35), (7, 2100, 90)]
        {
            samples.add(Term(term), at(ms), Lsn(lsn));
        }
        for (term, end, want) in
            [(7, 9, None), (7, 10, Some(1000)), (7, 39, Some(1200)), (7, 40, Some(1300)), (8, 34, None), (9, 99, None)]
        {
            assert_eq!(samples.before(Term(term), Lsn(end)), want.map(at), "term {term}, {end}");
        }
        for (term, ms, want) in [(7, 1101, Some(20)), (7, 1201, Some(40)), (7, 1301, None), (6, 1, None)] {
            assert_eq!(samples.past(Term(term), at(ms)), want.map(Lsn), "term {term}, {ms} ms");
        }
    }

    #[test]
    fn few_are_kept_and_the_newest_always() {
        let mut samples = Samples::default();
        for ms in 0..100_000 {
            samples.add(Term(7), at(ms), Lsn(ms));
            assert_eq!(samples.before(Term(7), Lsn(u64::MAX)), Some(at(ms)));
        }
        assert!(samples.of(Term(7)).len() <= MOST);
        // Near at hand they are dense, and long ago there are some.
        for (end, within) in [(99_990, 60), (97_000, 200), (50_000, 3_000), (10_000, 6_000)] {
            let before = samples.before(Term(7), Lsn(end)).expect("one is kept");
            assert!(at(end).since(before) <= Duration::from_millis(within), "{end}: {before:?}");
        }
        for term in 8..30 {
            samples.add(Term(term), at(200_000 + term), Lsn(1));
        }
        assert_eq!(samples.0.len(), MOST_TERMS);
    }
}
