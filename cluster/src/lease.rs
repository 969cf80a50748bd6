//! Lease arithmetic: until when may this process act on what etcd last confirmed?
//!
//! Our boot-time clock is the only one trusted. A renewal counts from the instant it was *sent*: etcd granted it
//! later, so our deadline is always the earlier one. `margin` pays for clock-rate drift and for stopping PostgreSQL.

use crate::clock::Instant;
use crate::term::Term;
use std::time::Duration;

/// A lease as its holder may rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The term for which the holder acts.
    pub term: Term,
    /// When the last renewal that succeeded was sent.
    pub sent_at: Instant,
    /// Time to live as granted by etcd, which may be longer than asked for.
    pub ttl: Duration,
}

/// What the holder may do. `Expired` means: fence first, ask later (INV-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// May act for `left` more.
    Held {
        /// Time until the deadline.
        left: Duration,
    },
    /// Must not act any more.
    Expired {
        /// Time since the deadline.
        since: Duration,
    },
}

impl Lease {
    /// The instant from which the holder must not act. A `margin` of the ttl or more saturates to "expired at once".
    pub fn deadline(&self, margin: Duration) -> Instant {
        self.sent_at + self.ttl.saturating_sub(margin)
    }

    /// Has half of the time gone in which its holder may act?
    pub fn is_half_over(&self, now: Instant, margin: Duration) -> bool {
        now.since(self.sent_at) > self.ttl.saturating_sub(margin) / 2
    }

    /// What may be done at `now`. `margin` < `ttl` is checked when the configuration is read.
    pub fn state_at(&self, now: Instant, margin: Duration) -> LeaseState {
        let deadline = self.deadline(margin);
        match deadline.checked_since(now) {
            Some(left) if !left.is_zero() => LeaseState::Held { left },
            _ => LeaseState::Expired { since: now.since(deadline) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(now_ms: u64, margin_ms: u64) -> LeaseState {
        let lease = Lease { term: Term(3), sent_at: Instant::from_millis(1000), ttl: Duration::from_secs(3) };
        lease.state_at(Instant::from_millis(now_ms), Duration::from_millis(margin_ms))
    }

    #[test]
    fn a_lease_counts_from_the_instant_its_renewal_was_sent() {
        assert_eq!(state(1000, 500), LeaseState::Held { left: Duration::from_millis(2500) });
        assert_eq!(state(3499, 500), LeaseState::Held { left: Duration::from_millis(1) });
    }

    #[test]
    fn at_its_deadline_a_lease_is_expired() {
        assert_eq!(state(3500, 500), LeaseState::Expired { since: Duration::ZERO });
        assert_eq!(state(4000, 500), LeaseState::Expired { since: Duration::from_millis(500) });
    }

    #[test]
    fn half_of_a_lease_is_half_of_what_is_left_of_it_without_the_margin() {
        let lease = Lease { term: Term(3), sent_at: Instant::from_millis(1000), ttl: Duration::from_secs(3) };
        let half_over = |now| lease.is_half_over(Instant::from_millis(now), Duration::from_millis(700));
        assert!(!half_over(900) && !half_over(2150));
        assert!(half_over(2151) && half_over(9000));
    }

    #[test]
    fn a_margin_longer_than_the_ttl_expires_at_once() {
        assert_eq!(state(1000, 5000), LeaseState::Expired { since: Duration::ZERO });
    }
}
