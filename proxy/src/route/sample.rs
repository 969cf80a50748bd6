//! Which lines are logged of what may come in storms: decisions, one in so many, and refusals; a bounded number a second.

use cluster::Instant;
use std::time::Duration;

/// Lines a second at most, of one worker.
const MOST: u32 = 20;

/// Counts lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines {
    /// The second that `lines` are of, when there were any.
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Lines {
    /// Is one more to be logged? Then how many were left out since the one before.
    pub fn takes(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.since(since) >= Duration::from_secs(1)) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines == MOST {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Lines of clients that are not let in, of two kinds that take no room of each other: where only warnings are shown, what is
/// not shown leaves none of them out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    told: Lines,
    warned: Lines,
}

impl Refusals {
    /// Is one more to be logged, as a warning or as less? Then how many of its kind were left out since the one before.
    pub fn takes(&mut self, warns: bool, now: Instant) -> Option<u64> {
        if warns { self.warned.takes(now) } else { self.told.takes(now) }
    }
}

/// Counts decisions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    count: u32,
    lines: Lines,
}

impl Sample {
    /// Is this one to be logged? `every`: one in so many; 0: none.
    pub fn takes(&mut self, every: u32, now: Instant) -> bool {
        if every == 0 {
            return false;
        }
        self.count += 1;
        if self.count < every {
            return false;
        }
        self.count = 0;
        self.lines.takes(now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_is_taken_and_a_bounded_number_a_second() {
        let mut sample = Sample::default();
        let mut taken = |every, ms, times| (0..times).filter(|_| sample.takes(every, Instant::from_millis(ms))).count();
        assert_eq!(taken(0, 0, 100), 0);
        assert_eq!(taken(10, 1000, 95), 9);
        assert_eq!(taken(1, 1500, 100), 11);
        assert_eq!(taken(1, 2000, 100), 20);
    }

    #[test]
    fn the_next_line_tells_how_many_were_left_out() {
        let mut lines = Lines::default();
        let mut told = |ms, times| (0..times).filter_map(|_| lines.takes(Instant::from_millis(ms))).collect::<Vec<_>>();
        assert_eq!(told(1000, 100), [0; 20]);
        assert_eq!(told(2000, 2), [80, 0]);
    }

    #[test]
    fn a_storm_of_refusals_leaves_no_warning_out() {
        let (mut refusals, now) = (Refusals::default(), Instant::from_millis(1000));
        assert_eq!((0..100).filter_map(|_| refusals.takes(false, now)).count(), 20);
        assert_eq!([true, true, false].map(|warns| refusals.takes(warns, now)), [Some(0), Some(0), None]);
    }
}
