//! Read your writes, at no cost to the write: what must a standby have replayed before this session may read there?
//!
//! After a write acknowledged at t, any insert position of the primary whose query was sent at or after t lies at or
//! past the end of its commit record. So nothing is asked at commit: the session reads from the primary until such a
//! sample comes by, at most one probe interval later, and from then on from standbys that have replayed it.
//!
//! Positions of an older term say nothing in a newer one: the bound is resolved again from the new primary's samples,
//! every one of which lies past whatever survived.

use super::policy::Lag;
use cluster::topology::Topology;
use cluster::{Instant, Lsn, Term};

/// What one session has written and read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Causality {
    write: Option<Bound>,
    /// Greatest replay position, as sampled, of the standbys it has read from, with its term.
    read: Option<(Term, Lsn)>,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    /// When the last write was acknowledged.
    wrote_at: Instant,
    /// The position that covers it, and the term of that position.
    covered: Option<(Term, Lsn)>,
}

/// No position of the primary covers what must be seen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// A sample whose query was sent at or after this instant will.
    pub since: Instant,
}

impl Causality {
    /// Something that may have written was acknowledged at `now`, or its outcome became unknown: anything that ran on
    /// the primary and is not a proven read. Call it when the answer arrives, not when the statement is sent: a sample
    /// taken in between would not cover it.
    pub fn wrote(&mut self, now: Instant) {
        self.write = Some(Bound { wrote_at: now, covered: None });
    }

    /// A read goes to a standby that had replayed `replay_lsn` when sampled. Its later reads do not go to one that
    /// was sampled behind that.
    pub(super) fn read(&mut self, term: Term, replay_lsn: Lsn) {
        let newest = match self.read {
            Some((t, lsn)) if t == term => lsn.max(replay_lsn),
            _ => replay_lsn,
        };
        self.read = Some((term, newest));
    }

    /// The position a standby must have replayed for the session to read there; `None` when any will do.
    ///
    /// # Errors
    /// The last write is not covered by any sample yet.
    pub(super) fn need(&mut self, topology: &Topology, lag: &Lag) -> Result<Option<Lsn>, Pending> {
        let read = self.read.filter(|(term, _)| *term == topology.term).map(|(_, lsn)| lsn);
        let Some(bound) = &mut self.write else { return Ok(read) };
        if bound.covered.is_none_or(|(term, _)| term != topology.term) {
            let sample = lag.primary_of(topology).filter(|s| s.sent_at >= bound.wrote_at);
            bound.covered = sample.map(|s| (topology.term, s.insert_lsn));
        }
        match bound.covered {
            Some((_, lsn)) => Ok(read.max(Some(lsn))),
            None => Err(Pending { since: bound.wrote_at }),
        }
    }

    /// The position a standby must have replayed for a read that began at `since` to miss nothing that anybody was
    /// acknowledged before: any insert position of the primary sampled since then, and what the session has read.
    ///
    /// # Errors
    /// There is no such sample yet.
    pub(super) fn need_of_all(
        &mut self,
        topology: &Topology,
        lag: &Lag,
        since: Instant,
    ) -> Result<Option<Lsn>, Pending> {
        let read = self.read.filter(|(term, _)| *term == topology.term).map(|(_, lsn)| lsn);
        let sample = lag.primary_of(topology).filter(|s| s.sent_at >= since).ok_or(Pending { since })?;
        Ok(read.max(Some(sample.insert_lsn)))
    }
}
