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
    /// Commits wait for standbys, by the policy in force.
    pub protects: bool,
    /// This node is the primary of an open term, or may be: nothing newer is known.
    pub serves: bool,
    /// The term's record names it, and is not open yet. Opening brings the lease.
    pub becoming: bool,
    /// PostgreSQL was seen not to accept writes: stopped, or in recovery.
    pub stopped: bool,
    /// What is left of the lease, shortened by what clocks may differ. `None`: there is none.
    pub lease_left: Option<Duration>,
    /// After so long without food the device resets the host.
    pub timeout: Duration,
}

impl Facts {
    /// PostgreSQL may accept writes, and nothing but the lease keeps it from doing so too long. That a newer term is known
    /// has stopped nothing yet: until PostgreSQL was seen stopped the device stays as armed as the lease made it.
    fn fenced_by_lease(&self) -> bool {
        let superseded = self.armed && self.lease_left.is_some() && !(self.stopped || self.serves || self.becoming);
        superseded || self.serves && !self.protects
    }

    /// Does all of the timeout fit before the lease's end?
    fn lasts(&self) -> bool {
        self.lease_left.is_some_and(|left| left >= self.timeout)
    }
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
    match (facts.fenced_by_lease(), facts.becoming && !facts.protects, facts.armed) {
        (true, _, _) if facts.lasts() => Act::Feed,
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

    const NOTHING: Facts = Facts {
        armed: false,
        protects: false,
        serves: false,
        becoming: false,
        stopped: false,
        lease_left: None,
        timeout: TIMEOUT,
    };

    fn served(armed: bool, left_ms: Option<u64>) -> Facts {
        Facts { armed, serves: true, lease_left: left_ms.map(Duration::from_millis), ..NOTHING }
    }

    #[test]
    fn it_is_fed_only_while_a_whole_timeout_fits_before_the_end_of_the_lease() {
        let before = |armed, protects| Facts { armed, protects, becoming: true, ..NOTHING };
        let strict = |armed| Facts { protects: true, ..served(armed, Some(3000)) };
        for (facts, want) in [
            (served(false, Some(3000)), Act::Feed),
            (served(true, Some(1000)), Act::Feed),
            (served(true, Some(999)), Act::Starve),
            (served(false, Some(999)), Act::Rest),
            (served(true, None), Act::Starve),
            (Facts { becoming: true, ..served(true, Some(10)) }, Act::Starve),
            (before(false, false), Act::Feed),
            (before(true, true), Act::Disarm),
            (NOTHING, Act::Rest),
            // In strict mode the lease lasts, and the quorum fences.
            (strict(true), Act::Disarm),
            (strict(false), Act::Rest),
        ] {
            assert_eq!(decide(&facts), want, "{facts:?}");
        }
    }

    #[test]
    fn a_newer_term_does_not_disarm_it_before_postgres_was_seen_stopped() {
        // Whatever the policy of the newer term says: it is not what this primary's commits wait for.
        for protects in [false, true] {
            let superseded = |left| Facts { serves: false, protects, ..served(true, left) };
            for (left, want) in [(Some(3000), Act::Feed), (Some(999), Act::Starve), (Some(0), Act::Starve)] {
                assert_eq!(decide(&superseded(left)), want, "{left:?}");
                assert_eq!(decide(&Facts { stopped: true, ..superseded(left) }), Act::Disarm, "{left:?}");
            }
            assert!(must_stop(&superseded(Some(600)), Some(Duration::from_millis(500))));
            assert_eq!(decide(&superseded(None)), Act::Disarm, "promoted, and never opened: nobody was let in");
        }
    }

    #[test]
    fn postgres_is_stopped_before_a_starved_device_fires_and_not_because_of_a_late_feeding() {
        let at = |facts: Facts, fires_ms: Option<u64>| must_stop(&facts, fires_ms.map(Duration::from_millis));
        // As the margins are by default the lease's own hard end comes with 233 ms left: this device fires at 100.
        assert!(at(served(true, Some(600)), Some(500)));
        assert!(!at(served(true, Some(601)), Some(501)));
        assert!(at(served(true, None), Some(500)));
        assert!(!at(served(true, Some(2000)), Some(10)), "the lease lasts, the next feeding is on its way");
        assert!(!at(Facts { protects: true, ..served(true, None) }, Some(10)), "the quorum fences");
        assert!(!at(served(false, None), None));
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
                if decide(&served(fires.is_some(), left)) == Act::Feed {
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
                prop_assert_eq!(decide(&served(true, Some(sent + ttl - next))), Act::Feed);
                sent = next;
            }
        }
    }
}
