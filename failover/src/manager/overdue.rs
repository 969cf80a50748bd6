//! Tells the election what the leading manager does not do; decided in [`crate::fsm::overdue`].

use crate::fsm::overdue::{Inaction, Overdue as Watch};
use crate::fsm::planner::Planner;
use cluster::Instant;
use std::time::Duration;
use tokio::sync::watch;

/// Watches the planner of a manager that does not lead.
pub(super) struct Overdue {
    /// What the leader has not done for too long, for the election.
    tell: watch::Sender<Option<Inaction>>,
    /// The records were read within this, or etcd does not answer: then nobody can begin anything.
    known_within: Duration,
    watch: Watch,
}

impl Overdue {
    /// `read_interval`: how often the records are read when nothing happens.
    pub(super) fn new(tell: watch::Sender<Option<Inaction>>, read_interval: Duration) -> Self {
        Self { tell, known_within: read_interval + Duration::from_millis(200), watch: Watch::default() }
    }

    /// Look at what the planner knows now. `leader`: the revision of the leader's key.
    pub(super) fn look(&mut self, now: Instant, planner: &mut Planner, leader: Option<i64>) {
        let known = planner.seen().read_at.is_some_and(|at| now.since(at) <= self.known_within);
        let dead = if known { planner.would_replace(now) } else { None };
        let overdue = self.watch.look(now, dead, leader);
        self.tell.send_if_modified(|old| std::mem::replace(old, overdue) != overdue);
    }
}
