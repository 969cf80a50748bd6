//! Whether the host's watchdog device is fed. PURE.
//!
//! The last layer of fencing, where the lease is the fence: should the agent or the whole host stand still, the device
//! resets the host at the latest when the lease ends. It is fed only while all of its timeout fits before that. So on a node that
//! loses its lease the feeding ends first, then acknowledgements, then PostgreSQL; and when that is stopped the device is
//! disarmed before it fires. Where a quorum fences nothing is armed: there a lost etcd must not reset a host.

use std::time::Duration;

/// What is known when the decision is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The device counts down.
    pub armed: bool,
    /// PostgreSQL may accept writes, and nothing but the lease keeps it from doing so too long.
    pub fenced_by_lease: bool,
    /// The same as soon as its term is opened, which brings the lease.
    pub becoming: bool,
    /// What is left of the lease, shortened by what clocks may differ. `None`: there is none.
    pub lease_left: Option<Duration>,
    /// After so long without food the device resets the host.
    pub timeout: Duration,
}

/// So long before the device fires PostgreSQL is stopped at once, if it is the lease's end that lets it fire: what is
/// stopped in time must not cost the host.
const STOP_WITHIN: Duration = Duration::from_millis(500);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Arm it if it is not, and begin its timeout anew.
    Feed,
    /// Let it count down.
    Starve,
    /// Stop it.
    Disarm,
    /// Nothing is armed and nothing to be armed.
    Rest,
}

/// Decide.
pub fn decide(facts: &Facts) -> Act {
    let lasts = facts.lease_left.is_some_and(|left| left >= facts.timeout);
    match (facts.fenced_by_lease, facts.becoming, facts.armed) {
        (true, _, _) if lasts => Act::Feed,
        (true, _, true) => Act::Starve,
        // Armed now, it would fire after the lease's end, and soon there is nothing to fence.
        (true, _, false) => Act::Rest,
        (false, true, _) => Act::Feed,
        (false, false, true) => Act::Disarm,
        (false, false, false) => Act::Rest,
    }
}

/// Must PostgreSQL be stopped now, for the device not to fire while that is being done? `fires_in` is what is left until it
/// fires. A device that is merely fed late, under a lease that lasts, stops nothing.
pub fn must_stop(facts: &Facts, fires_in: Option<Duration>) -> bool {
    decide(facts) == Act::Starve && fires_in.is_some_and(|left| left <= STOP_WITHIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    fn facts(armed: bool, fenced_by_lease: bool, becoming: bool, left_ms: Option<u64>) -> Facts {
        let lease_left = left_ms.map(Duration::from_millis);
        Facts { armed, fenced_by_lease, becoming, lease_left, timeout: TIMEOUT }
    }

    #[test]
    fn it_is_fed_only_while_a_whole_timeout_fits_before_the_end_of_the_lease() {
        for (armed, fenced, becoming, left, want) in [
            (false, true, false, Some(3000), Act::Feed),
            (true, true, false, Some(1000), Act::Feed),
            (true, true, false, Some(999), Act::Starve),
            (false, true, false, Some(999), Act::Rest),
            (true, true, false, None, Act::Starve),
            (true, true, true, Some(10), Act::Starve),
            (false, false, true, None, Act::Feed),
            (true, false, false, None, Act::Disarm),
            // In strict mode the lease lasts, and the quorum fences.
            (true, false, false, Some(3000), Act::Disarm),
            (false, false, false, Some(3000), Act::Rest),
        ] {
            assert_eq!(decide(&facts(armed, fenced, becoming, left)), want, "{armed} {fenced} {becoming} {left:?}");
        }
    }

    #[test]
    fn postgres_is_stopped_before_a_starved_device_fires_and_not_because_of_a_late_feeding() {
        let at = |armed, fenced, left, fires_ms: Option<u64>| {
            must_stop(&facts(armed, fenced, false, left), fires_ms.map(Duration::from_millis))
        };
        // As the margins are by default the lease's own hard end comes with 233 ms left: this device fires at 100.
        assert!(at(true, true, Some(600), Some(500)));
        assert!(!at(true, true, Some(601), Some(501)));
        assert!(at(true, true, None, Some(500)));
        assert!(!at(true, true, Some(2000), Some(10)), "the lease lasts, the next feeding is on its way");
        assert!(!at(true, false, None, Some(10)), "the quorum fences");
        assert!(!at(false, true, None, None));
    }

    proptest! {
        /// The agent looks at odd times, renewals succeed or fail, and at some moment everything stands still.
        #[test]
        fn whenever_all_stands_still_the_host_is_reset_before_its_lease_ends(
            looks in prop::collection::vec((1u64..400, prop::bool::weighted(0.4)), 1..60)
        ) {
            let (ttl, mut now, mut renewed, mut fires) = (3000, 0, 0, None);
            for (pause, renews) in looks {
                now += pause;
                if fires.is_some_and(|at| at <= now) {
                    return Ok(()); // reset
                }
                if renews && now < renewed + ttl {
                    renewed = now;
                }
                let left = (renewed + ttl).checked_sub(now);
                if decide(&facts(fires.is_some(), true, false, left)) == Act::Feed {
                    fires = Some(now + 1000);
                }
                prop_assert!(fires.is_none_or(|at| at <= renewed + ttl), "fires at {fires:?}, lease ends {}", renewed + ttl);
            }
        }

        #[test]
        fn a_lease_that_is_renewed_every_other_time_never_starves_it(late in prop::collection::vec(0u64..200, 1..60)) {
            let (ttl, renew, mut sent) = (3000, 600, 0);
            for pause in late {
                let next = sent + 2 * renew + pause;
                prop_assert_eq!(decide(&facts(true, true, false, Some(sent + ttl - next))), Act::Feed);
                sent = next;
            }
        }
    }
}
