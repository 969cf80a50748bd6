//! The clock: an instant since boot that also counts the time the machine was suspended.
//!
//! std's `Instant` is CLOCK_MONOTONIC, which stops while a virtual machine is suspended; a lease measured with it
//! would outlive its term (clock_gettime(2)). Decisions take an [`Instant`] as argument; only IO code holds a
//! [`Clock`]. A simulator hands out instants of its own.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time on this host's CLOCK_BOOTTIME, nanoseconds since boot. Never comparable between hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// An instant from nanoseconds since boot: for simulators and tests.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// An instant from milliseconds since boot: for simulators and tests.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time from `earlier` to `self`; `None` when `earlier` is later.
    pub fn checked_since(self, earlier: Self) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(Duration::from_nanos)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    /// Saturates at the end of time (584 years of uptime).
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    /// Saturates at boot.
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Where IO code gets `now` from. Copy it freely; it has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Now, on CLOCK_BOOTTIME.
    pub fn now(self) -> Instant {
        let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
        let (secs, nanos) = (t.tv_sec().unsigned_abs(), t.tv_nsec().unsigned_abs());
        Instant(secs * 1_000_000_000 + nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_runs_backward() {
        let a = Clock.now();
        let b = Clock.now();
        assert!(b >= a && a.as_nanos() > 0);
    }

    #[test]
    fn a_span_to_the_past_is_zero_or_none() {
        let (a, b) = (Instant::from_millis(5), Instant::from_millis(7));
        assert_eq!(b.since(a), Duration::from_millis(2));
        assert_eq!(a.since(b), Duration::ZERO);
        assert_eq!(a.checked_since(b), None);
    }
}
