//! Which errors of a standby the primary is asked about: those that it may give only because it has not replayed yet what
//! defines a name.

use cluster::Instant;
use std::time::Duration;

/// So many errors a second of one worker, where the standby was found to have all that the primary had: what has been defined
/// since the last sample is rare, and a client that only errs must not be served twice.
const MOST: u32 = 20;
/// And where it was not: with anybody writing, a standby is nearly always found a little behind.
const MOST_BEHIND: u32 = 200;

/// Counts the errors asked about.
#[derive(Debug, Default)]
pub struct Rechecks {
    /// The second that the counts are of, when there were any.
    since: Option<Instant>,
    /// While the standby had all, and while it was behind.
    counts: [u32; 2],
}

impl Rechecks {
    /// Is the primary asked about one more now? `behind`: by the newest samples the standby has not replayed all that there was.
    pub fn takes(&mut self, behind: bool, now: Instant) -> bool {
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
        let mut taken = |behind, ms, times| (0..times).filter(|_| rechecks.takes(behind, at(ms))).count();
        assert_eq!(taken(false, 1000, 100), 20);
        assert_eq!(taken(true, 1500, 1000), 200);
        assert_eq!(taken(false, 1999, 100) + taken(true, 1999, 100), 0);
        assert_eq!(taken(false, 2000, 100), 20);
    }
}
