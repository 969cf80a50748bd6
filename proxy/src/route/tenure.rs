//! Is the primary that reads rest on still the primary?
//!
//! Where a quorum confirms commits nothing tells a primary that it was replaced while it is cut off, nor a proxy that is
//! cut off with it: what both know is that no later term was open at some instant. Everything that a later term has
//! acknowledged came after that, so the age of that instant is a staleness of whatever is read in the term, at the primary
//! as at the standbys that follow it.

use super::policy::Lag;
use super::promise::{Consistency, Promise};
use crate::sql::Access;
use cluster::topology::{Closed, Gate, Topology};
use cluster::{Instant, Term};
use std::fmt;
use std::time::Duration;

/// What writes, and a block that may, goes on for at least this long after a proof, however fresh reads are to be: its own
/// commit proves more.
const LEAST_FOR_WRITES: Duration = Duration::from_secs(1);

/// When neither etcd nor the standbys have proven anything for this long they are not expected to: a commit of ours does
/// it. Before that they are waited for, as etcd proves the term where no standby confirms a commit.
const SILENCE: Duration = Duration::from_secs(2);

/// Standbys that are sampled prove the term about as often as that; some samples may be lost.
const STREAMS: Duration = Duration::from_millis(500);

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
        (Consistency::Bounded | Consistency::Session, Access::Read) => promise.max_replay_lag,
        (Consistency::Global | Consistency::Bounded | Consistency::Session, Access::Write) => {
            promise.max_replay_lag.max(LEAST_FOR_WRITES)
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

/// After what time a commit at the primary, which standbys confirm, may prove the term before a statement is sent there.
/// `None`: never, as things are.
pub(super) fn commit_proves_in(topology: &Topology, lag: &Lag, now: Instant) -> Option<Duration> {
    let may = topology.protected && topology.primary.is_some() && topology.gate_at(now) == Gate::Open;
    let proven = topology.proven_at(lag.streams_at(topology), now).filter(|_| may)?;
    Some((proven + SILENCE).since(now))
}

/// Is etcd alone to prove the term, as no standby is seen to receive from its primary, or none of them would prove it?
pub(super) fn only_etcd_proves(topology: &Topology, lag: &Lag, now: Instant) -> bool {
    match topology.gate_at(now) {
        Gate::Open | Gate::Draining => lag.streams_at(topology).is_none_or(|at| now.since(at) > STREAMS),
        Gate::Closed(_) => true,
    }
}

/// May a later term be open, as nothing but time has kept it from that, and that is over?
pub(super) fn is_over_by_time(topology: &Topology, now: Instant) -> bool {
    topology.quorums.is_empty() && topology.gate_at(now) == Gate::Closed(Closed::Stale)
}

/// Is it time alone that keeps a later term from opening while commits of this one are acknowledged? Then an acknowledgement
/// must not leave after the view has ended.
pub(crate) fn only_time_protects(topology: &Topology) -> bool {
    topology.ends_at().is_some() && topology.quorums.is_empty()
}
