//! Is the primary that reads rest on still the primary?
//!
//! Where a quorum confirms commits nothing tells a primary that it was replaced while it is cut off, nor a proxy that is
//! cut off with it: what both know is that no later term was open at some instant. Everything that a later term has
//! acknowledged came after that, so the age of that instant is a staleness of whatever is read in the term, at the primary
//! as at the standbys that follow it.

use super::policy::Lag;
use super::promise::{Consistency, Promise};
use crate::sql::Access;
use cluster::topology::Topology;
use cluster::{Instant, Term};
use std::fmt;
use std::time::Duration;

/// It was proven too long ago that the term is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// The term.
    pub term: Term,
    /// How old the last proof is; `None`: there was none.
    pub age: Option<Duration>,
    /// How old it may be when the statement begins to wait; zero: it must have been asked for since.
    pub allowed: Duration,
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { term, age, allowed } = self;
        match (age, allowed.is_zero()) {
            (None, _) => write!(f, "nothing has proven that term {term} is not over"),
            (Some(age), true) => {
                write!(
                    f,
                    "the last proof that term {term} is not over is {} ms old, a newer one is needed",
                    age.as_millis()
                )
            }
            (Some(age), false) => {
                let (age, allowed) = (age.as_millis(), allowed.as_millis());
                write!(f, "the last proof that term {term} is not over is {age} ms old where {allowed} ms are allowed")
            }
        }
    }
}

/// Is it proven, as far as the promise needs it, that no later term has acknowledged what a statement must see that came
/// at `since`? What writes, and a block that may, is kept from a primary that may have been replaced for longer than
/// `max_replay_lag`; its COMMIT proves more.
///
/// # Errors
/// Not yet.
pub(super) fn check(
    (promise, access): (&Promise, Access),
    topology: &Topology,
    lag: &Lag,
    since: Instant,
    now: Instant,
) -> Result<(), Unproven> {
    let allowed = match (promise.consistency, access) {
        // Anything may be missing, or it is proven by a commit of its own.
        (Consistency::Eventual | Consistency::Strong, _) => return Ok(()),
        (Consistency::Global, Access::Read) => Duration::ZERO,
        (Consistency::Global, Access::Write) | (Consistency::Bounded | Consistency::Session, _) => {
            promise.max_replay_lag
        }
    };
    match topology.proven_at(lag.proven_at(topology), now) {
        Some(proven) if proven + allowed < since => {
            let age = (proven > Instant::default()).then(|| now.since(proven));
            Err(Unproven { term: topology.term, age, allowed })
        }
        Some(_) | None => Ok(()),
    }
}
