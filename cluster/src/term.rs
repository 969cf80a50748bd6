//! The term: our counter of primaries, and the fencing token.
//!
//! A term is written in etcd by compare-and-put and only ever grows. Each primary writes WAL on the timeline of its
//! term's number (INV-4), so a timeline seen on disk names the primary that wrote it.

use crate::timeline::TimelineId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The number of a primary's tenure, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// The term a failover or switchover from this one begins.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The timeline on which this term's primary writes. `None` past PostgreSQL's 32-bit timelines.
    pub fn timeline(self) -> Option<TimelineId> {
        u32::try_from(self.0).ok().map(TimelineId)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
