//! Which errors of a standby the primary is asked about: those that it may give only because it has not replayed yet what
//! defines a name.

use cluster::Instant;
use std::time::Duration;

/// So many errors a second of one worker, where the standby was found to have all that the primary had: what has been defined
/// since the last sample is rare, and a client that only errs must not be served twice.
const MOST: u32 = 20;

/// Counts the errors asked about for which there was no sign that the standby is behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rechecks {
    /// The second that `count` is of, when there were any.
    since: Option<Instant>,
    count: u32,
}

impl Rechecks {
    /// Is the primary asked about one now? `behind`: by the newest samples the standby has not replayed all that there was.
    pub fn takes(&mut self, behind: bool, now: Instant) -> bool {
        if behind {
            return true;
        }
        if self.since.is_none_or(|since| now.since(since) >= Duration::from_secs(1)) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_standby_that_has_all_are_asked_about_a_bounded_number_of_times_a_second() {
        let mut rechecks = Rechecks::default();
        let mut taken =
            |behind, ms, times| (0..times).filter(|_| rechecks.takes(behind, Instant::from_millis(ms))).count();
        assert_eq!(taken(false, 1000, 100), 20);
        assert_eq!(taken(true, 1500, 100), 100);
        assert_eq!(taken(false, 1999, 100), 0);
        assert_eq!(taken(false, 2000, 100), 20);
    }
}
