//! Every duration and limit that a planner's decision uses. PURE.

use std::time::Duration;

/// Limits of the planner; see `[manager]` for the meaning of those that are configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Silence after which the primary is suspected, and an agent counts as unreachable.
    pub detect_timeout: Duration,
    /// How long a PostgreSQL may answer nothing while its postmaster lives.
    pub hung_timeout: Duration,
    /// How long a primary that answers may be unable to commit.
    pub stuck_timeout: Duration,
    /// How long "connection refused" must be seen by all observers before it counts as silence.
    pub refused_confirm: Duration,
    /// Bound on freezing or recovering one node.
    pub freeze_timeout: Duration,
    /// Wait for further recruits once there are enough.
    pub recruit_grace: Duration,
    /// Bound on a promotion.
    pub promote_timeout: Duration,
    /// Wait for standbys to follow before opening without them, when data loss is allowed.
    pub open_wait: Duration,
    /// In `available` mode: how long the standbys must be missing before commits go on without them.
    pub suspend_after: Duration,
    /// Wait for running transactions in a switchover.
    pub drain_timeout: Duration,
    /// Bound on the clean shutdown in a switchover.
    pub stop_timeout: Duration,
    /// Most bytes of replay that a switchover's target may be behind.
    pub max_switchover_lag: u64,
    /// Most bytes an automatic failover may lose in async mode.
    pub max_loss: u64,
    /// Bound on an operator's request.
    pub operation_timeout: Duration,
    /// Automatic failovers allowed in `failover_window`.
    pub failover_budget: usize,
    /// See `failover_budget`.
    pub failover_window: Duration,
    /// Pause before a command or transaction that failed is tried again; doubled per failed round up to
    /// `retry_longest`.
    pub retry: Duration,
    /// See `retry`.
    pub retry_longest: Duration,
    /// How long a proxy may act on an old view once its lease has run out: T_p (1 + ρ), with rounding up.
    pub proxy_lease: Duration,
    /// Where commits are not protected, a primary that was never heard may be one that is being started with all
    /// others: how long a fresh leader waits for it.
    pub restart_grace: Duration,
    /// A fresh leader acts on silence only after having listened for so long.
    pub settle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            detect_timeout: Duration::from_secs(1),
            hung_timeout: Duration::from_secs(3),
            stuck_timeout: Duration::from_secs(5),
            refused_confirm: Duration::from_millis(300),
            freeze_timeout: Duration::from_secs(30),
            recruit_grace: Duration::from_millis(500),
            promote_timeout: Duration::from_secs(30),
            open_wait: Duration::from_secs(3),
            suspend_after: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(10),
            max_switchover_lag: 16 << 20,
            max_loss: 16 << 20,
            operation_timeout: Duration::from_secs(60),
            failover_budget: 6,
            failover_window: Duration::from_secs(600),
            retry: Duration::from_millis(200),
            retry_longest: Duration::from_secs(5),
            proxy_lease: Duration::from_millis(2100),
            restart_grace: Duration::from_secs(30),
            settle: Duration::from_millis(500),
        }
    }
}

impl Settings {
    /// Pause before the next try after `failures` failures in a row.
    pub fn backoff(&self, failures: u32) -> Duration {
        self.retry.saturating_mul(1 << failures.min(10)).min(self.retry_longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let s = Settings::default();
        assert_eq!(s.backoff(0), Duration::from_millis(200));
        assert_eq!(s.backoff(2), Duration::from_millis(800));
        assert_eq!(s.backoff(40), Duration::from_secs(5));
    }
}
