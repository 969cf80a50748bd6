//! When to try a node again that could not be connected to.

use cluster::Instant;
use std::time::Duration;

/// The first pause after a failure; doubled at each, up to the longest.
const FIRST: Duration = Duration::from_millis(20);
/// The longest.
const LONGEST: Duration = Duration::from_millis(500);
/// The first pause after a server has refused a login that nobody waits for, as others can be asked or nobody has asked, and
/// the longest: whoever counts failed logins counts these.
const REFUSED: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What is known of connecting to one node. Shared by all who want to, so that a node that is down gets one attempt
/// per pause, however many wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    next: Option<Instant>,
}

impl Backoff {
    /// May one try now? If so the next attempt is a pause away, until this one has succeeded.
    ///
    /// # Errors
    /// How long to wait.
    pub fn attempt(&mut self, now: Instant, seed: u64) -> Result<(), Duration> {
        match self.next {
            None => Ok(()),
            Some(next) if now < next => Err(next.since(now)),
            Some(_) => {
                self.next = Some(now + pause((FIRST, LONGEST), self.failures, seed));
                Ok(())
            }
        }
    }

    /// Attempts that have failed since one succeeded.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long until the next attempt, unless one may be made now.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.next.filter(|next| now < *next).map(|next| next.since(now))
    }

    /// An attempt has failed.
    pub fn failed(&mut self, now: Instant, seed: u64) {
        self.failures = self.failures.saturating_add(1);
        self.next = Some(now + pause((FIRST, LONGEST), self.failures, seed));
    }

    /// A login that nobody waits for was refused.
    pub fn refused(&mut self, now: Instant, seed: u64) {
        self.failures = self.failures.saturating_add(1);
        self.next = Some(now + pause(REFUSED, self.failures, seed));
    }

    /// An attempt has succeeded. True when others were kept waiting.
    pub fn succeeded(&mut self) -> bool {
        std::mem::take(self).failures > 0
    }
}

/// Between half of the doubled pause and the whole of it, so that workers and processes do not try in step.
fn pause((first, longest): (Duration, Duration), failures: u32, seed: u64) -> Duration {
    let whole = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    let half = whole / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_nanos(mix(seed) % nanos)
}

/// Spread a seed over all bits (the finalizer of splitmix64).
pub(super) fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn many_who_wait_make_few_attempts() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.attempt(at(0), 1), Ok(()));
        assert_eq!(backoff.attempt(at(0), 2), Ok(()), "nothing is known against it yet");
        backoff.failed(at(1), 3);
        let mut attempts = 0;
        // A thousand who wait look every millisecond for ten seconds, and each attempt fails.
        for ms in 1..10_000 {
            for waiter in 0..10 {
                if backoff.attempt(at(ms), ms * 10 + waiter).is_ok() {
                    attempts += 1;
                    backoff.failed(at(ms), ms);
                }
            }
        }
        assert!((20..=45).contains(&attempts), "{attempts}");
        assert!(backoff.succeeded());
        assert!(!backoff.succeeded());
        assert_eq!(backoff.attempt(at(10_000), 1), Ok(()));
    }

    #[test]
    fn only_one_attempt_is_made_when_the_pause_is_over() {
        let mut backoff = Backoff::default();
        backoff.failed(at(0), 7);
        assert_eq!(backoff.attempt(at(100), 8), Ok(()));
        assert!(backoff.attempt(at(100), 9).is_err(), "the first has not ended yet");
    }

    #[test]
    fn pauses_grow_to_the_longest_and_differ() {
        for (failures, least, most) in [(1, 10, 20), (2, 20, 40), (5, 160, 320), (6, 250, 500), (60, 250, 500)] {
            let pauses: Vec<Duration> = (0..100).map(|seed| pause((FIRST, LONGEST), failures, seed)).collect();
            let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
            assert!(pauses.iter().all(|p| (least..=most).contains(p)), "{failures}: {pauses:?}");
            let different: std::collections::BTreeSet<_> = pauses.into_iter().collect();
            assert!(different.len() > 90);
        }
    }
}
