//! What a session has read at a standby, and must not miss later.
//!
//! A read shows all that its standby has replayed when it runs: more than the sample by which it was chosen told, and
//! commits that are not acknowledged yet. PostgreSQL makes a commit visible at the primary only when the standbys that it
//! waits for have confirmed it, while one of them may have replayed it already. So once a read was answered at a standby,
//! * the same standby serves on, as long as it was not restarted since;
//! * another one does when it has replayed a position of the primary that was sampled after the answer: no standby has
//!   replayed more than there was by then;
//! * the primary does when everything up to the answer is confirmed, or in a later term, which begins with all of it.

use super::policy::{Lag, Unfit};
use cluster::lag::StandbySample;
use cluster::topology::Topology;
use cluster::{Instant, Lsn, NodeId, Term};
use std::time::Duration;

/// How long a read waits for the primary to show what its session has read at a standby. Ordinarily it is a sample or
/// two. Without standbys that confirm, commits wait for good; reads should not, so a read then misses what was never
/// acknowledged.
pub(super) const CONFIRM_WAIT: Duration = Duration::from_secs(5);

/// The last read of a session, if a standby answered it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    last: Option<Last>,
}

#[derive(Clone, Debug)]
struct Last {
    node: NodeId,
    term: Term,
    /// When the answer came.
    at: Instant,
    /// The first position of the primary sampled since, and the term of it.
    covered: Option<(Term, Lsn)>,
}

impl Seen {
    /// A read was answered by `node` at `now`.
    pub(super) fn at_standby(&mut self, node: &NodeId, term: Term, now: Instant) {
        self.last = Some(Last { node: node.clone(), term, at: now, covered: None });
    }

    /// The primary has answered: positions sampled after that cover all that was seen before.
    pub(super) fn at_primary(&mut self) {
        self.last = None;
    }

    /// Take the position that covers it from the newest sample, if that is new enough.
    pub(super) fn cover(&mut self, topology: &Topology, lag: &Lag) {
        let Some(last) = &mut self.last else { return };
        if last.covered.is_none_or(|(term, _)| term != topology.term) {
            let sample = lag.primary_of(topology).filter(|s| s.sent_at >= last.at);
            last.covered = sample.map(|s| (topology.term, s.insert_lsn));
        }
    }

    /// May `node` serve the next read?
    ///
    /// # Errors
    /// Why not.
    pub(super) fn allows(&self, node: &NodeId, sample: &StandbySample, term: Term) -> Result<(), Unfit> {
        let Some(last) = &self.last else { return Ok(()) };
        if last.node == *node && sample.up_since <= last.at {
            return Ok(());
        }
        match last.covered {
            Some((of, need)) if of == term && sample.replay_lsn >= need => Ok(()),
            Some((of, need)) if of == term => Err(Unfit::ReplayBehind { need, have: sample.replay_lsn }),
            Some(_) | None => Err(Unfit::Uncovered { since: last.at }),
        }
    }

    /// May the primary serve the next read?
    ///
    /// # Errors
    /// When the answer came that it may miss.
    pub(super) fn allows_primary(&self, topology: &Topology, lag: &Lag) -> Result<(), Instant> {
        let Some(last) = self.last.as_ref().filter(|last| last.term >= topology.term) else { return Ok(()) };
        let confirmed = lag.primary_of(topology).and_then(|s| s.confirmed_until);
        if confirmed.is_some_and(|until| until > last.at) { Ok(()) } else { Err(last.at) }
    }
}
