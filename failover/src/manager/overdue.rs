//! A failover that the leading manager does not begin: where the leader was lost together with the primary, or stands still,
//! another manager need not wait until the leader's lease has run out, which takes etcd several seconds.

use crate::fsm::planner::Planner;
use cluster::{Instant, Term};
use std::time::Duration;
use tokio::sync::watch;

/// The leader, who sees about the same, begins first.
const LEADER_MAY_TAKE: Duration = Duration::from_millis(300);

/// Watches, in a manager that does not lead, for how long it would have begun a failover.
pub(super) struct Overdue {
    /// The term whose primary is taken for dead while its leader does nothing, for the election.
    tell: watch::Sender<Option<Term>>,
    /// The records were read within this, or etcd does not answer: then nobody can begin anything.
    known_within: Duration,
    since: Option<(Term, Instant)>,
}

impl Overdue {
    /// `read_interval`: how often the records are read when nothing happens.
    pub(super) fn new(tell: watch::Sender<Option<Term>>, read_interval: Duration) -> Self {
        Self { tell, known_within: read_interval + Duration::from_millis(200), since: None }
    }

    /// Look at what the planner knows now.
    pub(super) fn look(&mut self, now: Instant, planner: &Planner) {
        let known = planner.seen().read_at.is_some_and(|at| now.since(at) <= self.known_within);
        let dead = planner.would_replace(now).filter(|_| known);
        self.since = dead.map(|term| match self.since {
            Some((earlier, since)) if earlier == term => (term, since),
            _ => (term, now),
        });
        let overdue = self.since.filter(|(_, since)| now.since(*since) >= LEADER_MAY_TAKE).map(|(term, _)| term);
        self.tell.send_if_modified(|old| std::mem::replace(old, overdue) != overdue);
    }
}
