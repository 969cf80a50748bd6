//! Which decisions are logged: one in so many, and a bounded number a second.

use cluster::Instant;
use std::time::Duration;

/// Lines a second at most, of one worker.
const MOST: u32 = 20;

/// Counts decisions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    count: u32,
    /// The second that `lines` are of, when there were any.
    since: Option<Instant>,
    lines: u32,
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
        if self.since.is_none_or(|since| now.since(since) >= Duration::from_secs(1)) {
            (self.since, self.lines) = (Some(now), 0);
        }
        self.lines += 1;
        self.lines <= MOST
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
}
