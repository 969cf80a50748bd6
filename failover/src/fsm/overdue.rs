//! A failover that the leading manager does not begin: where the leader was lost together with the primary, or stands still,
//! another manager need not wait until the leader's lease has run out, which takes etcd several seconds. PURE.

use crate::fsm::observe::At;
use cluster::{Instant, Term};
use std::time::Duration;

/// The leader, who sees about the same, begins first.
const LEADER_MAY_TAKE: Duration = Duration::from_millis(300);

/// What a leader does not do, as seen by another manager. The lead is taken from it only while all of this holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inaction {
    /// The term whose primary is dead.
    pub term: Term,
    /// The `mod_revision` of its record: a leader that has begun the next one is not in the way.
    pub term_revision: i64,
    /// The `mod_revision` of the leader's key; `None` while nobody leads.
    pub leader: Option<i64>,
}

/// Watches, in a manager that does not lead, for how long it would have begun a failover under the same leader: one that has
/// just come to lead has all of its time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overdue {
    since: Option<(Inaction, Instant)>,
}

impl Overdue {
    /// `dead`: the term whose primary the manager would replace, see `Planner::would_replace`. Gives what the leader has
    /// failed to do for too long.
    pub fn look(&mut self, now: Instant, dead: Option<At<Term>>, leader: Option<i64>) -> Option<Inaction> {
        let seen = dead.map(|term| Inaction { term: term.value, term_revision: term.revision, leader });
        self.since = seen.map(|seen| match self.since {
            Some((earlier, since)) if earlier == seen => (seen, since),
            _ => (seen, now), // another leader, or another record, or the first look
        });
        self.since.filter(|(_, since)| now.since(*since) >= LEADER_MAY_TAKE).map(|(inaction, _)| inaction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leader_has_its_own_time_to_begin() {
        let mut overdue = Overdue::default();
        let dead = Some(At { value: Term(7), revision: 90 });
        let mut at = |ms, dead, leader| overdue.look(Instant::from_millis(ms), dead, leader);
        let of = |leader| Some(Inaction { term: Term(7), term_revision: 90, leader });
        assert_eq!(at(0, dead.clone(), Some(50)), None);
        assert_eq!(at(299, dead.clone(), Some(50)), None);
        assert_eq!(at(300, dead.clone(), Some(50)), of(Some(50)));
        // Another took the lead at that moment: it is about to begin.
        assert_eq!(at(310, dead.clone(), Some(95)), None);
        assert_eq!(at(609, dead.clone(), Some(95)), None);
        assert_eq!(at(610, dead.clone(), Some(95)), of(Some(95)));
        // A primary that is heard again in between was not dead all the time.
        assert_eq!(at(620, None, Some(95)), None);
        assert_eq!(at(700, dead.clone(), None), None);
        assert_eq!(at(1000, dead, None), of(None));
    }
}
