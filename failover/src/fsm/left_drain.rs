//! A gate that a leader before this one closed: is the primary behind it being stopped? PURE.
//!
//! That leader's last order may have been carried out, be on its way, or never have been given. The primary's agent tells
//! which, but late: while it stops PostgreSQL it does not look at it, for up to a second, and tells of a primary that is well;
//! afterwards it tells of one that takes no connections, as one does that starts. So nothing is concluded before it has looked
//! again, and one that ends as it was ordered to is nobody's death.

use crate::api::PostgresState;
use crate::fsm::observe::Health;
use crate::fsm::planner::Planner;
use cluster::{Instant, NodeId};
use std::time::Duration;

/// For longer than an agent that stops its PostgreSQL does not look at it, and an order is on its way.
const UNSEEN: Duration = Duration::from_millis(1200);
/// For so long a leader waits for an agent that is slow to look again: clients wait meanwhile.
const LONGEST_UNSEEN: Duration = Duration::from_secs(5);

impl Planner {
    /// What is to be waited for, in words, before the gate that is closed is opened, or a term begun for a death. `None`: nothing.
    pub(super) fn awaited_behind_gate(&self, now: Instant, health: &Health) -> Option<&'static str> {
        let primary = self.seen.open_primary()?;
        let led = now.since(self.led_at);
        match health {
            Health::Well | Health::Unsure(_) => {
                let awaited = led < LONGEST_UNSEEN && !self.looked_since(primary, now, self.led_at + UNSEEN);
                awaited.then_some("hearing whether its primary is being stopped")
            }
            // A clean shutdown, and the hard one behind it.
            Health::Dead { .. } => {
                let ends = led < self.settings.stop_timeout * 2 && self.takes_no_connections(primary, now);
                ends.then_some("waiting until its primary is stopped, as an earlier leader may have ordered")
            }
        }
    }

    /// Has the node's agent looked at its PostgreSQL since? What it answers takes a moment to come, and is taken for that much
    /// younger.
    fn looked_since(&self, node: &NodeId, now: Instant, since: Instant) -> bool {
        let state = self.seen.reachable(node, now, &self.settings);
        let heard = self.seen.agents.get(node).and_then(|a| a.heard_at);
        state.zip(heard).is_some_and(|(s, heard)| heard - Duration::from_millis(s.observed_ms_ago) >= since)
    }

    fn takes_no_connections(&self, node: &NodeId, now: Instant) -> bool {
        let state = self.seen.reachable(node, now, &self.settings);
        state.is_some_and(|s| s.postgres == PostgresState::Starting)
    }
}
