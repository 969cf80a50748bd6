//! The LSN clock: when had the primary's WAL grown to a given position? PURE.
//!
//! A bounded row of (sent at, flushed position). Dating is never optimistic: a position is dated to the sending of the
//! newest probe that found the primary at or before it, so everything flushed before that instant is contained in it.
//! Leaving samples out only dates earlier, so that a full window is thinned where it is old: recent lag is resolved by
//! the probe interval, hours of lag by minutes, in the same memory.

use cluster::{Instant, Lsn};

/// Samples of one primary on one timeline.
#[derive(Clone, Debug)]
pub struct Window {
    /// Strictly increasing in both.
    samples: Vec<(Instant, Lsn)>,
    limit: usize,
}

impl Window {
    /// An empty window of at most `limit` samples (at least 4).
    pub fn new(limit: usize) -> Self {
        Self { samples: Vec::new(), limit: limit.max(4) }
    }

    /// Add the position found by a probe sent at `sent_at`. WAL that went back is another history: it starts anew.
    pub fn add(&mut self, sent_at: Instant, lsn: Lsn) {
        match self.samples.last_mut() {
            Some(&mut (at, _)) if sent_at < at => return,
            Some(&mut (_, last)) if lsn < last => self.samples.clear(),
            // An idle primary: what was flushed then is still all that there is.
            Some((at, last)) if lsn == *last => {
                *at = sent_at;
                return;
            }
            Some((at, last)) if *at == sent_at => {
                *last = lsn;
                return;
            }
            Some(_) | None => (),
        }
        if self.samples.len() >= self.limit {
            self.thin();
        }
        self.samples.push((sent_at, lsn));
    }

    /// Forget everything: another primary or timeline begins.
    pub fn clear(&mut self) {
        self.samples.clear();
    }

    /// The newest sample.
    pub fn newest(&self) -> Option<(Instant, Lsn)> {
        self.samples.last().copied()
    }

    /// The instant such that everything flushed before it is at or below `lsn`. `None`: older than the window.
    pub fn passed(&self, lsn: Lsn) -> Option<Instant> {
        let beyond = self.samples.partition_point(|(_, sampled)| *sampled <= lsn);
        beyond.checked_sub(1).map(|i| self.samples[i].0)
    }

    /// Drop every second sample of the older half.
    fn thin(&mut self) {
        let half = self.samples.len() / 2;
        let mut index = 0;
        self.samples.retain(|_| {
            index += 1;
            index > half || index % 2 == 1
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn window(samples: &[(u64, u64)]) -> Window {
        let mut w = Window::new(100);
        samples.iter().for_each(|(ms, lsn)| w.add(at(*ms), Lsn(*lsn)));
        w
    }

    #[test]
    fn a_position_is_dated_to_the_newest_sample_that_it_contains() {
        let w = window(&[(100, 10), (200, 20), (300, 30)]);
        for (lsn, want) in [(9, None), (10, Some(100)), (29, Some(200)), (30, Some(300)), (99, Some(300))] {
            assert_eq!(w.passed(Lsn(lsn)), want.map(at), "{lsn}");
        }
    }

    #[test]
    fn while_the_primary_is_idle_the_last_position_is_dated_to_now() {
        let w = window(&[(100, 10), (200, 20), (300, 20), (400, 20)]);
        assert_eq!(w.passed(Lsn(20)), Some(at(400)));
        assert_eq!(w.passed(Lsn(19)), Some(at(100)));
    }

    #[test]
    fn wal_that_went_back_starts_anew_and_a_late_sample_is_dropped() {
        let mut w = window(&[(100, 10), (200, 20)]);
        w.add(at(150), Lsn(30));
        assert_eq!(w.newest(), Some((at(200), Lsn(20))));
        w.add(at(300), Lsn(15));
        assert_eq!((w.passed(Lsn(14)), w.passed(Lsn(15))), (None, Some(at(300))));
    }

    proptest! {
        #[test]
        fn a_thinned_window_stays_small_and_never_dates_later(
            steps in prop::collection::vec((1u64..500, 0u64..50), 1..600),
            limit in 4usize..40,
            lsn in 0u64..20_000,
        ) {
            let (mut whole, mut thin) = (Window::new(10_000), Window::new(limit));
            let (mut ms, mut end) = (0, 0);
            for (pause, bytes) in steps {
                (ms, end) = (ms + pause, end + bytes);
                whole.add(at(ms), Lsn(end));
                thin.add(at(ms), Lsn(end));
            }
            prop_assert!(thin.samples.len() <= limit);
            prop_assert_eq!(thin.newest(), whole.newest());
            prop_assert!(thin.passed(Lsn(lsn)) <= whole.passed(Lsn(lsn)));
        }
    }
}
