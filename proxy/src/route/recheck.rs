//! Which errors of a standby the primary is asked about: those that it may give only because it has not replayed yet what
//! defines a name. And what was found so: what fails on the primary as well is not asked again for a while, and what does not
//! goes to no standby that lacks it.

use cluster::{Instant, Lsn, Term};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// So many errors a second of one worker, where the standby was found to have all that the primary had: what has been defined
/// since the last sample is rare, and a client that only errs must not be served twice.
const MOST: u32 = 20;
/// And where it was not: with anybody writing, a standby is nearly always found a little behind.
const MOST_BEHIND: u32 = 200;
/// So long the error of a standby is believed that the primary has given too.
const BELIEVED: Duration = Duration::from_secs(5);
/// So long no standby is asked that lacks what a unit names. Whether it still does is asked again then.
const LACKED: Duration = Duration::from_secs(60);
/// Units of which something is remembered; the oldest is forgotten first.
const MAX_UNITS: usize = 1024;

/// What the primary has said to a unit that a standby knew a name of no better.
#[derive(Clone, Copy, Debug)]
enum Found {
    /// The same.
    Same,
    /// It knows what was named, as of that position of its term.
    Lacked(Term, Lsn),
}

/// Counts the errors asked about, and remembers what came of it, by a number for a unit's shape.
#[derive(Debug, Default)]
pub struct Rechecks {
    /// The second that the counts are of, when there were any.
    since: Option<Instant>,
    /// While the standby had all, and while it was behind.
    counts: [u32; 2],
    found: BTreeMap<u64, (Found, Instant)>,
    order: VecDeque<u64>,
}

impl Rechecks {
    /// Is the primary asked about that unit's error now? `behind`: by the newest samples the standby has not replayed all that
    /// there was.
    pub fn takes(&mut self, unit: Option<u64>, behind: bool, now: Instant) -> bool {
        if matches!(unit.and_then(|unit| self.of(unit, now)), Some(Found::Same)) {
            return false;
        }
        if self.since.is_none_or(|since| now.since(since) >= Duration::from_secs(1)) {
            (self.since, self.counts) = (Some(now), [0, 0]);
        }
        let (count, most) = match behind {
            true => (&mut self.counts[1], MOST_BEHIND),
            false => (&mut self.counts[0], MOST),
        };
        *count = count.saturating_add(1);
        *count <= most
    }

    /// That unit fails on the primary as well.
    pub fn fails(&mut self, unit: u64, now: Instant) {
        self.remember(unit, Found::Same, now + BELIEVED);
    }

    /// It does not, where the primary's WAL has come to `position`.
    pub fn succeeds(&mut self, unit: u64, (term, position): (Term, Lsn), now: Instant) {
        self.remember(unit, Found::Lacked(term, position), now + LACKED);
    }

    /// What a standby must have replayed in that term to know what the unit names, as far as is known.
    pub fn needs(&self, unit: u64, term: Term, now: Instant) -> Option<Lsn> {
        match self.of(unit, now) {
            Some(Found::Lacked(of, position)) if of == term => Some(position),
            _ => None,
        }
    }

    /// Nothing is remembered: there is no need to work out a shape.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Forget what is too old.
    pub fn expire(&mut self, now: Instant) {
        self.found.retain(|_, (_, until)| now < *until);
        self.order.retain(|unit| self.found.contains_key(unit));
    }

    fn of(&self, unit: u64, now: Instant) -> Option<Found> {
        self.found.get(&unit).filter(|(_, until)| now < *until).map(|(found, _)| *found)
    }

    fn remember(&mut self, unit: u64, found: Found, until: Instant) {
        if self.found.insert(unit, (found, until)).is_none() {
            self.order.push_back(unit);
        }
        if self.order.len() > MAX_UNITS
            && let Some(oldest) = self.order.pop_front()
        {
            self.found.remove(&oldest);
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
    fn the_primary_is_asked_about_a_bounded_number_of_errors_a_second() {
        let mut rechecks = Rechecks::default();
        let mut taken = |behind, ms, times| (0..times).filter(|_| rechecks.takes(None, behind, at(ms))).count();
        assert_eq!(taken(false, 1000, 100), 20);
        assert_eq!(taken(true, 1500, 1000), 200);
        assert_eq!(taken(false, 1999, 100) + taken(true, 1999, 100), 0);
        assert_eq!(taken(false, 2000, 100), 20);
    }

    #[test]
    fn an_error_that_the_primary_gives_too_is_believed_for_a_while() {
        let mut rechecks = Rechecks::default();
        assert!(rechecks.takes(Some(7), true, at(1000)) && rechecks.is_empty());
        rechecks.fails(7, at(1000));
        assert!(!rechecks.takes(Some(7), true, at(5999)) && !rechecks.takes(Some(7), false, at(5999)));
        assert!(rechecks.takes(Some(8), true, at(5999)) && rechecks.takes(Some(7), true, at(6000)));
        rechecks.expire(at(5999));
        assert!(!rechecks.is_empty());
        rechecks.expire(at(6000));
        assert!(rechecks.is_empty());
    }

    #[test]
    fn what_only_the_primary_knows_needs_what_that_had_replayed() {
        let mut rechecks = Rechecks::default();
        rechecks.succeeds(7, (Term(3), Lsn(100)), at(1000));
        assert_eq!(rechecks.needs(7, Term(3), at(60_999)), Some(Lsn(100)));
        assert!(rechecks.takes(Some(7), true, at(2000)), "another standby, or by older samples");
        for (unit, term, ms) in [(8, 3, 2000), (7, 4, 2000), (7, 3, 61_000)] {
            assert_eq!(rechecks.needs(unit, Term(term), at(ms)), None);
        }
        rechecks.fails(7, at(3000));
        assert_eq!(rechecks.needs(7, Term(3), at(3000)), None);
        for unit in 100..100 + MAX_UNITS as u64 {
            rechecks.fails(unit, at(3000));
        }
        assert_eq!((rechecks.found.len(), rechecks.order.len()), (MAX_UNITS, MAX_UNITS));
        assert!(rechecks.takes(Some(7), true, at(3000)), "it was the oldest");
    }
}
