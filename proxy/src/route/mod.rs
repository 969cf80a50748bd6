//! Where a statement goes: the primary, or a standby that is fresh enough and has replayed what the session wrote.
//!
//! # The rules
//! 1. Only what is proven read-only may go to a standby; everything else goes to the primary.
//! 2. A standby serves when it is not fenced, its staleness is within `max_replay_lag`, and it has replayed the
//!    session's last write (`consistency`) and whatever the session has already read.
//! 3. Without such a standby, a read goes to the primary.
//! 4. While no primary answers, a standby that has replayed the primary's last sampled position holds everything
//!    acknowledged before that sample was sent, so its staleness is the age of that sample: reads go on at standbys
//!    until that exceeds `max_replay_lag`. In the ordinary case a broken stream is never fresh.
//! 5. When the view of the cluster has run out at `valid_until`, another primary may have begun to acknowledge writes
//!    then, so staleness is at least the time since.
//!
//! A read that went to the primary for want of a standby and is held there should be decided again when the topology
//! or the lag changes.

pub mod balance;
pub mod consistency;
pub mod policy;

pub use balance::Loads;
pub use consistency::Causality;
pub use policy::{Lag, Policy, Unfit};

use crate::sql::Access;
use cluster::topology::{Member, Topology};
use cluster::{Instant, Lsn, NodeId};
use std::time::Duration;

/// What is to be routed: a statement outside any transaction block, of a session that is not pinned.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What it needs.
    pub access: Access,
    /// Standbys on which this very statement has failed just now.
    pub avoid: &'a [NodeId],
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the primary, whichever that is.
    Primary,
    /// To this standby.
    Standby(NodeId),
}

/// Where it goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where.
    pub target: Target,
    /// Why, with the numbers.
    pub reason: Reason,
}

/// Why a statement goes where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// To the primary: not proven read-only.
    Write,
    /// To a standby.
    Fresh {
        /// Its staleness now.
        staleness: Duration,
        /// Its replay position when sampled.
        replay_lsn: Lsn,
        /// The position it had to have replayed; `None` when the session has neither written nor read.
        need: Option<Lsn>,
    },
    /// To the primary: the session wrote, and no position of the primary was sampled since.
    AwaitingSample {
        /// When its last write was acknowledged.
        wrote_at: Instant,
    },
    /// To the primary: no standby qualifies.
    NoStandby {
        /// The one that came closest; `None` when there is no standby at all.
        closest: Option<(NodeId, Unfit)>,
    },
}

impl Reason {
    /// The reason as one snake_case word, for logs and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Fresh { .. } => "fresh",
            Self::AwaitingSample { .. } => "awaiting_sample",
            Self::NoStandby { closest: None } => "no_standby",
            Self::NoStandby { closest: Some((_, unfit)) } => unfit.as_str(),
        }
    }
}

/// Decide. `causality` is the session's own; `seed` is any number that differs from call to call.
#[expect(clippy::too_many_arguments, reason = "a decision is a function of all that it depends on")]
pub fn decide(
    request: &Request<'_>,
    causality: &mut Causality,
    topology: &Topology,
    lag: &Lag,
    policy: &Policy,
    loads: &dyn Loads,
    now: Instant,
    seed: u64,
) -> Decision {
    let to_primary = |reason| Decision { target: Target::Primary, reason };
    match request.access {
        Access::Write => return to_primary(Reason::Write),
        Access::Read => {}
    }
    let need = match causality.need(topology, lag) {
        Ok(need) => need,
        Err(pending) => return to_primary(Reason::AwaitingSample { wrote_at: pending.wrote_at }),
    };
    let fit = |member: &Member| match request.avoid.contains(&member.node) {
        true => Err(Unfit::Avoided),
        false => policy.fit(member, topology, lag, need, now),
    };
    let chosen = balance::choose(&topology.standbys, |m| fit(m).is_ok(), loads, seed);
    match chosen.map(|member| (member, fit(member))) {
        Some((member, Ok(fresh))) => {
            causality.read(topology.term, fresh.replay_lsn);
            let reason = Reason::Fresh { staleness: fresh.staleness, replay_lsn: fresh.replay_lsn, need };
            Decision { target: Target::Standby(member.node.clone()), reason }
        }
        _ => {
            let unfit = topology.standbys.iter().filter_map(|m| fit(m).err().map(|u| (m.node.clone(), u)));
            to_primary(Reason::NoStandby { closest: unfit.min_by_key(|(_, u)| u.distance()) })
        }
    }
}

#[cfg(test)]
mod tests;
