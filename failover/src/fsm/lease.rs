//! What a primary may do by its lease, where that is the fence: acknowledge, and have proxies go by it. PURE.

use crate::record::{Mode, PolicyRecord, PrimaryRecord};
use cluster::lease::{Lease, LeaseState};
use cluster::topology::STRICT_VIEW;
use cluster::{Instant, NodeId};
use std::time::Duration;

/// What an unprotected primary must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Go on.
    Free,
    /// Acknowledge nothing.
    Soft,
    /// Stop.
    Hard,
}

/// Decide from the lease alone; without one, from when it was first missing.
///
/// Without one (the agent was restarted, or etcd lost the lease) nothing is acknowledged until it is taken again, and
/// after a whole `ttl` PostgreSQL stops.
pub fn fence_at(
    lease: Option<&Lease>,
    missing_since: Option<Instant>,
    margin: Duration,
    ttl: Duration,
    now: Instant,
) -> Fence {
    // The last third of the margin is for stopping PostgreSQL.
    let hard_margin = margin / 3;
    match (lease, missing_since) {
        (Some(l), _) => match (l.state_at(now, margin), l.state_at(now, hard_margin)) {
            (LeaseState::Held { .. }, _) => Fence::Free,
            (_, LeaseState::Held { .. }) => Fence::Soft,
            _ => Fence::Hard,
        },
        (None, Some(since)) if now.since(since) >= ttl => Fence::Hard,
        (None, _) => Fence::Soft,
    }
}

/// For how long at most a view is confirmed, but in strict mode.
pub const VOUCHED: Duration = Duration::from_secs(2);

/// For how long may a view that goes by `policy` be confirmed? `lease_left`: until the lease is too short to acknowledge
/// by.
pub fn vouched_for(policy: &PolicyRecord, lease_left: Option<Duration>) -> Option<Duration> {
    match (policy.protects(), policy.mode) {
        (true, Mode::Strict) => Some(STRICT_VIEW),
        (true, Mode::Available | Mode::Async) => Some(VOUCHED),
        (false, _) => lease_left.map(|left| left.min(VOUCHED)).filter(|l| !l.is_zero()),
    }
}

/// For how long may a renewal wait for etcd? Of the time that is `left` to acknowledge in, half, so that two that hang leave room for a
/// third; and a third of the lease at most, also once nothing is left to share.
pub fn renewal_bound(left: Option<Duration>, ttl: Duration, renew: Duration) -> Duration {
    let half = left.unwrap_or_default() / 2;
    if half < renew / 3 { ttl / 3 } else { half.min(ttl / 3) }
}

/// May the agent of `node`, whose PostgreSQL is stopped, delete the key of the primary? Another one may live under the same name
/// (a restored copy of the host, or a second one with a directory of its own), and what is stopped here runs there. `predecessors`:
/// who held `agent.lock` before it, since this host was started.
pub fn may_give_back(record: &PrimaryRecord, node: &NodeId, own: &str, predecessors: &[String]) -> bool {
    record.node == *node && (record.holder == own || predecessors.contains(&record.holder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Limits;
    use cluster::Term;

    #[test]
    fn acknowledgements_stop_before_the_lease_ends_and_postgres_at_its_end() {
        let lease = Lease { term: Term(3), sent_at: Instant::from_millis(1000), ttl: Duration::from_secs(3) };
        let margin = Duration::from_millis(600);
        let at = |ms| fence_at(Some(&lease), None, margin, lease.ttl, Instant::from_millis(ms));
        assert_eq!([at(1000), at(3399), at(3400), at(3799), at(3800), at(9000)], {
            use Fence::{Free, Hard, Soft};
            [Free, Free, Soft, Soft, Hard, Hard]
        });
    }

    #[test]
    fn without_a_lease_nothing_is_acknowledged_and_soon_nothing_runs() {
        let margin = Duration::from_millis(600);
        let ttl = Duration::from_secs(3);
        let at = |ms| fence_at(None, Some(Instant::from_millis(1000)), margin, ttl, Instant::from_millis(ms));
        assert_eq!((at(1000), at(3999), at(4000)), (Fence::Soft, Fence::Soft, Fence::Hard));
        assert_eq!(fence_at(None, None, margin, ttl, Instant::from_millis(5)), Fence::Soft);
    }

    #[test]
    fn nobody_gives_back_what_another_agent_of_the_same_name_holds() {
        let n1: NodeId = "n1".parse().unwrap();
        let held_by = |holder: &str| PrimaryRecord { term: Term(3), node: n1.clone(), holder: holder.to_owned() };
        assert!(may_give_back(&held_by("a"), &n1, "a", &[]));
        assert!(may_give_back(&held_by("a"), &n1, "b", &["a".to_owned()]), "its own directory's, killed before");
        assert!(!may_give_back(&held_by("a"), &n1, "b", &[]));
        assert!(!may_give_back(&held_by("a"), &n1, "b", &["c".to_owned()]));
        assert!(!may_give_back(&held_by("a"), &"n2".parse().unwrap(), "a", &[]));
    }

    #[test]
    fn two_renewals_that_hang_leave_room_for_a_third() {
        let ms = Duration::from_millis;
        for (ttl, renew, margin) in [(3000, 600, 700), (1000, 200, 200), (10_000, 2400, 2000), (60_000, 5000, 700)] {
            // The last that was answered was sent at 0.
            let (ends, mut at) = (ms(ttl - margin), ms(renew));
            for _ in 0..2 {
                at += renewal_bound(ends.checked_sub(at), ms(ttl), ms(renew)).max(ms(renew));
            }
            assert!(at + ms(renew) / 10 <= ends, "{ttl} {renew} {margin}: the third is sent at {at:?}");
        }
        let bound = |left| renewal_bound(left, ms(3000), ms(600));
        assert_eq!([bound(Some(ms(1700))), bound(Some(ms(2300))), bound(Some(ms(300))), bound(None)], {
            [ms(850), ms(1000), ms(1000), ms(1000)]
        });
    }

    #[test]
    fn an_unprotected_view_is_confirmed_for_no_longer_than_the_lease() {
        let policy = |mode, k| PolicyRecord {
            epoch: 1,
            voters: Vec::new(),
            k,
            mode,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        };
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(vouched_for(&policy(Mode::Strict, 1), None), Some(STRICT_VIEW));
        assert_eq!(vouched_for(&policy(Mode::Available, 1), None), Some(VOUCHED));
        assert_eq!(vouched_for(&policy(Mode::Async, 0), ms(900)), ms(900));
        assert_eq!(vouched_for(&policy(Mode::Async, 0), ms(9000)), Some(VOUCHED));
        assert_eq!(vouched_for(&policy(Mode::Async, 0), ms(0)), None);
        assert_eq!(vouched_for(&policy(Mode::Async, 0), None), None);
    }
}
