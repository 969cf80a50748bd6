//! Where a statement goes: the primary, or a standby that is fresh enough and has replayed what the session wrote.
//!
//! # The rules
//! 1. Only what is proven read-only may go to a standby; everything else goes to the primary.
//! 2. A standby serves when it is not fenced, its staleness is within `max_replay_lag`, and it has replayed the
//!    session's last write (`consistency`) and whatever the session has already read (`seen`, which also decides when the
//!    primary shows all of that).
//!    A position that the session names (`pgtenure.after`) counts like a write of its own.
//! 3. Without such a standby a read waits for one as long as the session's promise says, and then goes to the primary
//!    or fails, as that says too (`promise`, which also loosens or tightens rule 2).
//! 4. While no primary answers, a standby that has replayed the primary's last sampled position holds everything
//!    acknowledged before that sample was sent, so its staleness is the age of that sample: reads go on at standbys
//!    until that exceeds `max_replay_lag`. That is said only of those that were seen to stream from that primary, in its
//!    term: others may have another history. In the ordinary case a broken stream is never fresh.
//! 5. When the view of the cluster has run out at `valid_until`, another primary may have begun to acknowledge writes
//!    then, so staleness is at least the time since.
//! 6. Where a quorum and not time keeps a later term from opening, whatever is read in this one, at the primary too, is
//!    at least as stale as the last proof that it is not over (`tenure`). Too old a proof makes a statement wait.
//!
//! A read that went to the primary for want of a standby and is held there should be decided again when the topology
//! or the lag changes.

pub mod balance;
pub mod consistency;
pub mod durability;
pub mod footing;
pub mod hint;
mod lost;
pub mod misroute;
pub mod policy;
pub mod promise;
pub mod recheck;
pub mod sample;
mod samples;
mod seen;
pub mod tenure;
pub mod throttle;
pub mod token;
mod votes;

pub use balance::Loads;
pub use consistency::Causality;
use consistency::Pending;
pub use footing::{Favour, Footing, Footings};
pub use lost::{By, LostWrite};
pub use misroute::Misroutes;
pub use policy::{Lag, Unfit};
pub use promise::{Consistency, NoStandby, Promise, ReadFrom};
pub use seen::{LostRead, Shows};
pub use tenure::Unproven;
pub(crate) use tenure::only_time_protects;
pub use throttle::Slowed;
pub use token::{After, Gone, Standing, Token};

use crate::sql::Access;
use cluster::topology::{Member, Topology};
use cluster::{Instant, Lsn, NodeId, Term};
use std::fmt;
use std::time::Duration;

/// What is to be routed: a statement outside any transaction block, of a session that is not pinned.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What it needs.
    pub access: Access,
    /// Standbys on which this very statement has failed just now.
    pub avoid: &'a [NodeId],
    /// What the session is promised.
    pub promise: Promise,
    /// When the statement began to wait; now, when it has not.
    pub since: Instant,
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the primary, whichever that is.
    Primary,
    /// To this standby.
    Standby(NodeId),
    /// Nowhere yet: decide again when the topology or the lag has changed, and after this time at the latest.
    Wait(Duration),
    /// Nowhere: it fails.
    Nowhere,
}

/// Where it goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where.
    pub target: Target,
    /// Why, with the numbers.
    pub reason: Reason,
}

/// So old the newest sample is before another is asked for on behalf of reads that do not wait for it.
const FOR_LATER: Duration = Duration::from_millis(10);

impl Decision {
    /// Does the statement wait for a proof of its term? Then that is worth asking for.
    pub fn wants_proof(&self) -> bool {
        matches!((&self.target, &self.reason), (Target::Wait(_), Reason::Unproven { .. }))
    }

    /// Would a newer sample change it? Then one is worth asking for: the read waits for it, or it went to the primary and
    /// the session's next ones need not; for those not again so soon, as all nodes are asked each time. `age`: of the newest sample
    /// of the primary.
    pub fn wants_sample(&self, age: Option<Duration>) -> bool {
        match (&self.target, &self.reason) {
            (Target::Primary, Reason::AwaitingSample { .. }) => age.is_none_or(|age| age >= FOR_LATER),
            (
                Target::Wait(_),
                Reason::AwaitingSample { .. } | Reason::Unconfirmed { .. } | Reason::AfterUnseen { .. },
            ) => true,
            (Target::Wait(_), Reason::NoStandby { closest: Some((_, unfit)) }) => {
                matches!(unfit, Unfit::ReplayBehind { .. } | Unfit::Uncovered { .. } | Unfit::Lagging { .. })
            }
            _ => false,
        }
    }
}

/// Why a statement goes where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// To the primary: not proven read-only.
    Write,
    /// To the primary: taken for a read, but a standby has refused such a statement.
    RefusedBefore,
    /// To the primary: a standby does not know what it names, and may only not know it yet.
    Rechecked,
    /// To the primary: the session wants it so.
    AsAsked,
    /// To the primary: a setting of what the session is promised means nothing.
    Unclear,
    /// To a standby.
    Fresh {
        /// Its staleness now; `None` when it is not known and does not matter.
        staleness: Option<Duration>,
        /// Its replay position when sampled.
        replay_lsn: Lsn,
        /// The position it had to have replayed; `None` when the session has neither written nor read.
        need: Option<Lsn>,
    },
    /// No position of the primary was sampled since what the read must see.
    AwaitingSample {
        /// When the session's last write was acknowledged, or when the read began that is to see everybody's.
        since: Instant,
    },
    /// The position that the session names is in no history any more.
    AfterLost {
        /// The position.
        after: After,
        /// Why not.
        why: Gone,
        /// The term in force.
        term: Term,
    },
    /// The position that the session names lies past what is known of the primary's WAL: a newer sample tells whether it is there.
    AfterUnseen {
        /// The position.
        after: After,
        /// The end that is known.
        end: Lsn,
    },
    /// The position that the session names cannot be judged yet: a term begins, or is not known here.
    AfterUnknown {
        /// The position.
        after: After,
        /// The term in force.
        term: Term,
    },
    /// To the primary, or waiting for it: it may not show yet what the session has read at a standby.
    Unconfirmed {
        /// When that read was answered.
        since: Instant,
    },
    /// It was proven too long ago that the term is not over: waiting, or to the primary behind a commit that proves it.
    Unproven {
        /// How long ago.
        what: Unproven,
        /// How long the statement has waited.
        waited: Duration,
    },
    /// No standby qualifies.
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
            Self::RefusedBefore => "refused_before",
            Self::Rechecked => "rechecked",
            Self::AsAsked => "as_asked",
            Self::Unclear => "invalid_setting",
            Self::Fresh { .. } => "fresh",
            Self::AwaitingSample { .. } => "awaiting_sample",
            Self::AfterLost { .. } => "after_lost",
            Self::AfterUnseen { .. } => "after_unseen",
            Self::AfterUnknown { .. } => "after_unknown",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::Unproven { .. } => "unproven",
            Self::NoStandby { closest: None } => "no_standby",
            Self::NoStandby { closest: Some((_, unfit)) } => unfit.as_str(),
        }
    }
}

impl Reason {
    /// Is it that no standby may serve a read, or could without a wait?
    pub const fn lacks_standby(&self) -> bool {
        match self {
            Self::AwaitingSample { .. } | Self::Unconfirmed { .. } | Self::NoStandby { .. } => true,
            Self::Write
            | Self::RefusedBefore
            | Self::Rechecked
            | Self::AsAsked
            | Self::Unclear
            | Self::Fresh { .. }
            | Self::AfterLost { .. }
            | Self::AfterUnseen { .. }
            | Self::AfterUnknown { .. }
            | Self::Unproven { .. } => false,
        }
    }

    /// How long before `now` that was which it waits for.
    pub fn waits_for(&self, now: Instant) -> Option<Duration> {
        match self {
            Self::AwaitingSample { since }
            | Self::Unconfirmed { since }
            | Self::NoStandby { closest: Some((_, Unfit::Uncovered { since })) } => Some(now.since(*since)),
            Self::Write
            | Self::RefusedBefore
            | Self::Rechecked
            | Self::AsAsked
            | Self::Unclear
            | Self::Fresh { .. }
            | Self::AfterLost { .. }
            | Self::AfterUnseen { .. }
            | Self::AfterUnknown { .. }
            | Self::Unproven { .. }
            | Self::NoStandby { .. } => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: &Duration| d.as_millis();
        match self {
            Self::Write => write!(f, "not proven read-only"),
            Self::RefusedBefore => write!(f, "a standby has refused such a statement"),
            Self::Rechecked => write!(f, "a standby does not know what it names, and may not have replayed that yet"),
            Self::AsAsked => write!(f, "reads from the primary are asked for"),
            Self::Unclear => write!(f, "one of the session's pgtenure settings means nothing"),
            Self::Fresh { staleness: Some(staleness), replay_lsn, need: Some(need) } => {
                write!(f, "{} ms stale, replayed {replay_lsn} of {need}", ms(staleness))
            }
            Self::Fresh { staleness: Some(staleness), replay_lsn, need: None } => {
                write!(f, "{} ms stale, replayed {replay_lsn}", ms(staleness))
            }
            Self::Fresh { staleness: None, replay_lsn, .. } => write!(f, "replayed {replay_lsn}, lag not known"),
            Self::AwaitingSample { .. } => write!(f, "no position of the primary is known yet that covers it"),
            Self::AfterLost { after, why: Gone::Fork(fork), .. } => {
                write!(f, "{after} lies past {fork}, where a later term left its timeline")
            }
            Self::AfterLost { after, why: Gone::Lineage, term } => {
                write!(f, "the timeline of {after} is not known to be an ancestor of term {term}")
            }
            Self::AfterLost { after, why: Gone::End(end), term } => {
                write!(f, "{after} lies past {end}, where the WAL of term {term} ended when the primary was asked")
            }
            Self::AfterLost { after, why: Gone::OtherCluster(ours), .. } => {
                write!(f, "{after} is of another cluster than this one, whose system identifier is {ours}")
            }
            Self::AfterUnseen { after, end } => {
                write!(f, "{after} lies past {end}, the end of the primary's WAL that was told last")
            }
            Self::AfterUnknown { after, term } if after.token.term > *term => {
                write!(f, "{after} is of a later term than {term}, the newest one known here")
            }
            Self::AfterUnknown { after, term } => {
                write!(f, "it is not decided yet whether {after} is in the history of term {term}")
            }
            Self::Unconfirmed { .. } => {
                write!(f, "the primary may not show yet what was read at a standby and waits to be confirmed")
            }
            Self::Unproven { what, .. } => write!(f, "{what}"),
            Self::NoStandby { closest: None } => write!(f, "there is no standby"),
            Self::NoStandby { closest: Some((node, unfit)) } => write!(f, "closest is {node}, {unfit}"),
        }
    }
}

/// How long a statement waits for a sample of the primary that tells whether the position which its session names is there.
const AFTER_SAMPLE: Duration = Duration::from_millis(100);

/// For how long a statement that waits for a proof has that asked for at once, and not with pauses.
pub const ASK_FOR_PROOF: Duration = Duration::from_millis(100);

/// Decide. `causality` is the session's own; `seed` is any number that differs from call to call.
pub fn decide(
    request: &Request<'_>,
    causality: &mut Causality,
    topology: &Topology,
    lag: &Lag,
    loads: &dyn Loads,
    now: Instant,
    seed: u64,
) -> Decision {
    let to_primary = |reason| Decision { target: Target::Primary, reason };
    let promise = &request.promise;
    let after = match after(promise, topology, lag, (request.since, now)) {
        Ok(after) => after,
        Err(decision) => return decision,
    };
    if let Err(what) = tenure::check((promise, request.access), topology, lag, request.since, now) {
        let reason = Reason::Unproven { what, waited: now.since(request.since) };
        return match commit_proves_in(topology, lag, now) {
            Some(Duration::ZERO) if promise.spares_primary(request.access) => {
                Decision { target: Target::Nowhere, reason }
            }
            Some(Duration::ZERO) => to_primary(reason),
            left => Decision { target: Target::Wait(left.unwrap_or(promise::LONGEST)), reason },
        };
    }
    if let Some(reason) = only_at_primary(request) {
        return match shown(promise, causality, topology, lag, (request.since, now)) {
            Ok(()) => to_primary(reason),
            Err((Duration::ZERO, since)) => to_primary(Reason::Unconfirmed { since }),
            Err((left, since)) => Decision { target: Target::Wait(left), reason: Reason::Unconfirmed { since } },
        };
    }
    let need = match need(promise, causality, topology, lag, (request.since, now)) {
        Ok(need) => need,
        Err(pending) => {
            return without(request, Reason::AwaitingSample { since: pending.since }, causality, (topology, lag, now));
        }
    };
    let need = need.max(after);
    let seen = &causality.seen;
    let fit = |member: &Member, footing: Footing| match request.avoid.contains(&member.node) {
        true => Err(Unfit::Avoided),
        false => policy::fit(&held_to(promise, footing), member, topology, lag, (need, seen), now),
    };
    match balance::choose(&topology.standbys, |m, footing| fit(m, footing).ok(), loads, seed) {
        Some((member, fresh)) => {
            causality.read(topology, lag, fresh.replay_lsn);
            let reason = Reason::Fresh { staleness: fresh.staleness, replay_lsn: fresh.replay_lsn, need };
            Decision { target: Target::Standby(member.node.clone()), reason }
        }
        None => {
            let unfit = |m: &Member| fit(m, loads.footing(&m.node)).err().map(|unfit| (m.node.clone(), unfit));
            let unfit = topology.standbys.iter().filter_map(unfit);
            let closest = unfit.min_by_key(|(_, u)| u.distance());
            without(request, Reason::NoStandby { closest }, causality, (topology, lag, now))
        }
    }
}

/// Why no standby is looked for. `None`: one is.
fn only_at_primary(request: &Request<'_>) -> Option<Reason> {
    let promise = &request.promise;
    match (request.access, promise.read_from) {
        (Access::Write, _) => Some(Reason::Write),
        (Access::Read, ReadFrom::Primary) if promise.unclear => Some(Reason::Unclear),
        (Access::Read, ReadFrom::Primary) => Some(Reason::AsAsked),
        (Access::Read, ReadFrom::Standby) if promise.consistency == Consistency::Strong => Some(Reason::AsAsked),
        (Access::Read, ReadFrom::Standby) => None,
    }
}

/// What a standby must keep of the promise: one that was too stale lately, less than another may.
fn held_to(promise: &Promise, footing: Footing) -> Promise {
    Promise { max_replay_lag: footing.held_to(promise.max_replay_lag), ..*promise }
}

/// The position that a standby must have replayed to keep the promise.
fn need(
    promise: &Promise,
    causality: &mut Causality,
    topology: &Topology,
    lag: &Lag,
    (since, now): (Instant, Instant),
) -> Result<Option<Lsn>, Pending> {
    causality.seen.cover(topology, lag);
    match promise.consistency {
        Consistency::Eventual | Consistency::Bounded | Consistency::Strong => Ok(None),
        Consistency::Session => causality.need(topology, lag),
        // Behind the end of the view another term may be open, and what it acknowledges is in no sample of this one.
        Consistency::Global if tenure::is_over_by_time(topology, now) => Err(Pending { since }),
        Consistency::Global => causality.need_of_all(topology, lag, since),
    }
}

/// Is a standby that was chosen before still fit for a read that begins now?
pub fn still_fits(
    node: &NodeId,
    promise: &Promise,
    causality: &mut Causality,
    topology: &Topology,
    lag: &Lag,
    now: Instant,
) -> bool {
    let Some(member) = topology.standbys.iter().find(|member| member.node == *node) else { return false };
    let (ReadFrom::Standby, Ok(after)) = (promise.read_from, after(promise, topology, lag, (now, now))) else {
        return false;
    };
    let proven = tenure::check((promise, Access::Read), topology, lag, now, now);
    if promise.consistency == Consistency::Strong || proven.is_err() {
        return false;
    }
    let Ok(need) = need(promise, causality, topology, lag, (now, now)) else { return false };
    let needs = (need.max(after), &causality.seen);
    let fresh = policy::fit(promise, member, topology, lag, needs, now);
    fresh.map(|fresh| causality.read(topology, lag, fresh.replay_lsn)).is_ok()
}

/// May a statement go to the primary that the session has already, as far as its term is proven?
///
/// # Errors
/// Not yet.
pub fn proven(
    promise: &Promise,
    access: Access,
    topology: &Topology,
    lag: &Lag,
    (since, now): (Instant, Instant),
) -> Result<(), Unproven> {
    tenure::check((promise, access), topology, lag, since, now)
}

/// May a statement that came at `since` go to the primary, as far as its session has read at standbys? One that writes as well:
/// it would find nothing to write to, or show less, where that is missing.
///
/// # Errors
/// The primary may not show all of it yet: for how long the statement waits for that at most, and when it was read. Behind one
/// that has waited in vain it does not wait at all.
pub fn shown(
    promise: &Promise,
    causality: &Causality,
    topology: &Topology,
    lag: &Lag,
    (since, now): (Instant, Instant),
) -> Result<(), (Duration, Instant)> {
    let waited = now.since(since.max(lag.open_since()));
    confirmed(promise, causality, topology, lag).map_err(|at| match causality.seen.is_given_up(topology.term) {
        true => (Duration::ZERO, at),
        false => (seen::CONFIRM_WAIT.saturating_sub(waited), at),
    })
}

/// After what time a statement that waits for a proof may be sent to the primary behind a commit that proves the term.
/// `None`: not as things are.
pub fn commit_proves_in(topology: &Topology, lag: &Lag, now: Instant) -> Option<Duration> {
    tenure::commit_proves_in(topology, lag, now)
}

/// Is etcd alone to prove the term, as no standby is seen to?
pub fn only_etcd_proves(topology: &Topology, lag: &Lag, now: Instant) -> bool {
    tenure::only_etcd_proves(topology, lag, now)
}

/// The position that the session names, as one to have replayed.
fn after(
    promise: &Promise,
    topology: &Topology,
    lag: &Lag,
    (since, now): (Instant, Instant),
) -> Result<Option<Lsn>, Decision> {
    let Some(after) = promise.after else { return Ok(None) };
    let term = topology.term;
    let lost = |why| Decision { target: Target::Nowhere, reason: Reason::AfterLost { after, why, term } };
    match after.standing(topology, now) {
        Standing::Need(lsn) => match after.is_past_end(topology, lag, (since, now)) {
            Ok(None) => Ok(Some(lsn)),
            Ok(Some(why)) => Err(lost(why)),
            Err(end) => match AFTER_SAMPLE.saturating_sub(now.since(since)) {
                Duration::ZERO => Ok(Some(lsn)),
                left => Err(Decision { target: Target::Wait(left), reason: Reason::AfterUnseen { after, end } }),
            },
        },
        Standing::Lost(why) => Err(lost(why)),
        Standing::Undecided | Standing::Ahead => {
            Err(Decision { target: Target::Wait(promise::LONGEST), reason: Reason::AfterUnknown { after, term } })
        }
    }
}

/// Does the primary show all that the session has read? When not, since when it may miss something.
fn confirmed(promise: &Promise, causality: &Causality, topology: &Topology, lag: &Lag) -> Result<(), Instant> {
    match promise.consistency {
        // What proves the primary has waited for the standbys too.
        Consistency::Eventual | Consistency::Bounded | Consistency::Strong => Ok(()),
        Consistency::Session | Consistency::Global => causality.seen.is_at_primary(topology, lag),
    }
}

/// No standby may serve the read.
fn without(
    request: &Request<'_>,
    reason: Reason,
    causality: &mut Causality,
    (topology, lag, now): (&Topology, &Lag, Instant),
) -> Decision {
    let promise = &request.promise;
    let confirmed = confirmed(promise, causality, topology, lag);
    let chases = match &reason {
        Reason::AwaitingSample { .. } => true,
        Reason::NoStandby { closest } => matches!(closest, Some((_, Unfit::ReplayBehind { .. }))),
        _ => false,
    };
    let patience = match (promise.consistency, chases) {
        (Consistency::Session, true) => causality.patience(now),
        (Consistency::Global, true) => causality.patience_of_all(now),
        _ => Duration::ZERO,
    };
    let (held, waited) = (promise.standby_wait.max(patience), now.since(request.since));
    let left = held.saturating_sub(waited);
    // A term that has opened meanwhile is given as long. What another has waited for in vain is not waited for again.
    let until_confirmed = match causality.seen.is_given_up(topology.term) {
        true => Duration::ZERO,
        false => (held + seen::CONFIRM_WAIT).saturating_sub(now.since(request.since.max(lag.open_since()))),
    };
    let (target, reason) = match (left.is_zero(), promise.no_standby, confirmed) {
        (false, _, _) => (Target::Wait(left), reason),
        // Nobody may serve it before that is told: without a wait for it, it would fail for as long as it cannot be known.
        (true, NoStandby::Error, Err(since)) if causality.seen.is_undecided(topology, lag) => {
            let target = if until_confirmed.is_zero() { Target::Nowhere } else { Target::Wait(until_confirmed) };
            (target, Reason::Unconfirmed { since })
        }
        (true, NoStandby::Error, _) => (Target::Nowhere, reason),
        (true, NoStandby::Primary, Ok(())) => (Target::Primary, reason),
        (true, NoStandby::Primary, Err(since)) if until_confirmed.is_zero() => {
            (Target::Primary, Reason::Unconfirmed { since })
        }
        (true, NoStandby::Primary, Err(since)) => (Target::Wait(until_confirmed), Reason::Unconfirmed { since }),
    };
    if !matches!(target, Target::Wait(_)) && !patience.is_zero() {
        causality.waited(now);
    }
    Decision { target, reason }
}

#[cfg(test)]
mod tests;
