//! What an agent does by itself, without a manager's command. PURE.
//!
//! Whoever was a primary is never started as one again, and never started at all before its line of descent was
//! compared with the new primary's; the exception is the node that creates the cluster, until the first term exists.
//! Commands (freeze, promote, …) are not decided here: they come from a manager and carry their term.

use crate::api::Position;
use crate::fsm::namesake::Place;
use crate::record::{FenceRecord, InitRecord, Phase, TermRecord};
use cluster::{NodeId, Term, TimelineId};
use std::time::Duration;

/// PostgreSQL as far as the decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// No data directory.
    Absent,
    /// Not running.
    Stopped {
        /// It was a primary when it stopped.
        was_primary: bool,
    },
    /// Started, not yet answering.
    Starting,
    /// In recovery.
    Standby {
        /// Timeline of its WAL receiver, while that streams.
        streaming: Option<TimelineId>,
    },
    /// Accepting writes.
    Primary {
        /// The timeline it writes.
        timeline: TimelineId,
    },
    /// Not answering.
    Hung {
        /// It was a primary when it last answered.
        was_primary: bool,
    },
}

/// The other agents, as they have registered in an etcd that knows no term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// One of them has data: the cluster exists, and etcd has lost it.
    HaveData,
    /// Not all of the configuration have registered, for so long.
    Missing(Duration),
    /// All have, and none has data.
    Empty,
}

/// So long a node without data waits for the others to register, before it takes it that there is no cluster yet.
pub const REGISTERING: Duration = Duration::from_secs(5);

/// What is known when the decision is made.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// This node.
    pub node: &'a NodeId,
    /// Its PostgreSQL.
    pub server: Server,
    /// Highest term promised.
    pub promise: Term,
    /// The term record; `None` when there is none. Nothing is decided before etcd was read once.
    pub record: Option<&'a TermRecord>,
    /// The init record.
    pub init: Option<&'a InitRecord>,
    /// System identifier of the data directory.
    pub system_id: Option<&'a str>,
    /// The same of the cluster whose terms and policy the agent remembers.
    pub memory_of: Option<&'a str>,
    /// An operator's fence on this node.
    pub fence: Option<&'a FenceRecord>,
    /// An operator works on this node.
    pub maintenance: bool,
    /// `Some` while a directory whose PostgreSQL ran without an agent is to be taken over: has its turn come?
    pub adopts: Option<bool>,
    /// The primary whose address the WAL receiver was given, and its term.
    pub upstream: Option<(&'a NodeId, Term)>,
    /// For how long the WAL receiver has not streamed although it was given an address.
    pub not_streaming_for: Duration,
    /// It has been starting for `agent.start_timeout` or longer.
    pub starts_late: bool,
    /// It has hung for `agent.hung_standby_timeout` or longer.
    pub hangs_late: bool,
    /// A rewind was begun and not finished.
    pub rewind_interrupted: bool,
    /// It was rewound or copied and has not replayed past that yet.
    pub quarantined: bool,
    /// It has promised a term, or read a policy: the cluster exists, whatever etcd says.
    pub remembers: bool,
    /// What is registered in etcd says whether the cluster exists.
    pub others: Others,
    /// Is this node a voter of the configuration (only such a node may create the cluster)?
    pub voter: bool,
    /// Whose place the record of the node's address is.
    pub place: Place,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing now.
    Wait(Because),
    /// Stop the PostgreSQL that ran without an agent and make its directory ours.
    TakeOver,
    /// Try to become the node that creates the cluster.
    Create,
    /// Go on creating the cluster: this node has won the right to.
    ResumeCreation,
    /// Copy the primary's data.
    Clone,
    /// Start as a standby without upstream: only then its line of descent and its end are known.
    StartDetached,
    /// Start under the primary of the record: rewound or copied data may be consistent only with WAL from there.
    StartUnder,
    /// Compare lines of descent with the primary of the record; then follow, rewind or clone.
    Rejoin,
    /// Stop what has been starting for too long: it waits for WAL from a node that is not the primary, and is then started
    /// under the one that is.
    StopStranded,
    /// Stop a standby that has hung for too long, to start it again: it can neither be frozen nor read from.
    StopHung,
    /// Stop a standby that would acknowledge in the name of the node, whose place is another agent's.
    StopNamesake,
    /// Stop: an operator fenced the node. On a primary acknowledgements stop first.
    StopFenced,
    /// Stop at once: another term has begun, this node must not accept writes any more.
    StopSuperseded,
}

/// Why nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// All is as it should be.
    Fine,
    /// PostgreSQL is starting.
    Starting,
    /// It has been for longer than an agent waits that starts it.
    StartsLate,
    /// PostgreSQL does not answer; managers decide what follows.
    Hung,
    /// Frozen for a term that is not decided yet.
    Frozen,
    /// It was the primary of the current term: managers decide what follows.
    AwaitsManager,
    /// No primary to follow yet.
    NoPrimary,
    /// An operator fenced the node.
    Fenced,
    /// An operator works on the node: what is stopped stays stopped.
    Maintenance,
    /// `pgtenure adopt` has not come to this node yet.
    AwaitsAdoption,
    /// The others have to register first, who may have the cluster's data.
    AwaitsOthers,
    /// Another node creates the cluster.
    BeingCreated,
    /// The data directory, or what the agent remembers, belongs to another cluster.
    ForeignData,
    /// There is a data directory, and etcd knows no cluster.
    UnknownCluster,
    /// Another agent is on record for the node, or may be.
    NotOnRecord,
    /// Neither a cluster in etcd nor the right to create one.
    NotAVoter,
}

impl Because {
    /// What an operator must be told; `None` when nothing is wrong.
    pub const fn trouble(self) -> Option<&'static str> {
        match self {
            Self::ForeignData => Some(
                "the data directory, or what agent.json remembers, belongs to another cluster (its system identifier differs); to join \
                 this one, empty agent.data_dir, with agent.json",
            ),
            Self::UnknownCluster => {
                Some("etcd knows no term, but this cluster has had one: was etcd lost or restored?")
            }
            Self::NotAVoter => Some("etcd knows no cluster, and this node is none of cluster.voters"),
            Self::StartsLate => Some("PostgreSQL has been starting for longer than agent.start_timeout"),
            _ => None,
        }
    }
}

/// A node that is to connect to the candidate of a term ahead of its promotion.
#[derive(Clone, Copy, Debug)]
pub struct Recruit {
    /// The term that it was frozen for.
    pub frozen_for: Option<Term>,
    /// The term for which it was seen that nothing is received.
    pub cut_off_for: Term,
    /// It runs as a standby.
    pub standby: bool,
    /// A rewind was begun and not finished.
    pub rewinding: bool,
    /// Its WAL was examined, as it had diverged.
    pub examined: bool,
    /// It has not replayed past what it was rewound or copied from.
    pub quarantined: bool,
}

impl Recruit {
    /// May it? Nothing is compared again, so all of it must be of one line of descent.
    ///
    /// # Errors
    /// What it would have to be.
    pub fn may_connect_ahead(&self, term: Term) -> Result<(), &'static str> {
        if self.frozen_for != Some(term) || self.cut_off_for != term || !self.standby {
            return Err("frozen for the term");
        }
        if self.rewinding || self.examined || self.quarantined {
            return Err("a standby with nothing to be examined or made up for");
        }
        Ok(())
    }
}

/// Has who ends at `have` nothing that one that ends at `base` lacks? A timeline has one writer.
pub fn ends_by(base: Position, have: Option<Position>) -> bool {
    have.is_some_and(|have| have.timeline == base.timeline && have.lsn <= base.lsn)
}

/// The latest leader's revision, where an order that names its leader's is of an earlier one. 0: it names none.
pub fn later_leader(ordered_by: i64, newest: Option<i64>) -> Option<i64> {
    newest.filter(|newest| ordered_by != 0 && ordered_by < *newest)
}

/// How long a WAL receiver that was given an address may fail before histories are compared again.
pub const STREAMING_PATIENCE: Duration = Duration::from_secs(3);

/// Decide.
pub fn decide(facts: &Facts<'_>) -> Act {
    if let Some(fence) = facts.fence {
        return fenced(facts, fence);
    }
    if let (Server::Absent, Some(turn)) = (facts.server, facts.adopts)
        && !is_foreign(facts)
    {
        return if turn { Act::TakeOver } else { Act::Wait(Because::AwaitsAdoption) };
    }
    let Some(record) = facts.record else { return unborn(facts) };
    if is_foreign(facts) {
        return Act::Wait(Because::ForeignData);
    }
    if facts.maintenance && matches!(facts.server, Server::Absent | Server::Stopped { .. }) {
        return Act::Wait(Because::Maintenance);
    }
    if let Some(act) = aside(facts) {
        return act;
    }
    match facts.server {
        Server::Starting => starting(facts, record),
        Server::Primary { timeline } => primary(facts, record, timeline),
        Server::Hung { was_primary: true } if record.node.as_ref() != Some(facts.node) && has_primary(record) => {
            Act::StopSuperseded
        }
        // Of a node that is chosen or primary managers decide.
        Server::Hung { was_primary: false } if facts.hangs_late && record.node.as_ref() != Some(facts.node) => {
            Act::StopHung
        }
        Server::Hung { .. } => Act::Wait(Because::Hung),
        Server::Absent => with_primary(facts, record, Act::Clone),
        Server::Stopped { .. } if facts.rewind_interrupted => with_primary(facts, record, Act::Rejoin),
        Server::Stopped { was_primary: true } => with_primary(facts, record, Act::Rejoin),
        Server::Stopped { was_primary: false } if facts.quarantined => with_primary(facts, record, Act::StartUnder),
        Server::Stopped { was_primary: false } => Act::StartDetached,
        Server::Standby { streaming } => standby(facts, record, streaming),
    }
}

fn is_foreign(facts: &Facts<'_>) -> bool {
    let want = facts.init.and_then(|i| i.system_id.as_deref());
    let known = [facts.system_id, facts.memory_of].into_iter().flatten();
    want.is_some_and(|want| known.into_iter().any(|id| id != want))
}

fn fenced(facts: &Facts<'_>, fence: &FenceRecord) -> Act {
    match facts.server {
        Server::Absent | Server::Stopped { .. } => Act::Wait(Because::Fenced),
        Server::Primary { .. } if !fence.stop_writes && !superseded(facts) => Act::Wait(Because::Fine),
        Server::Primary { .. } | Server::Standby { .. } | Server::Starting | Server::Hung { .. } => Act::StopFenced,
    }
}

/// What is done by whom another agent of the node's name was found in its place: it receives nothing. A copy takes long, and might
/// take the other's slot, so whose place it is must be known before.
fn aside(facts: &Facts<'_>) -> Option<Act> {
    match (facts.place, facts.server) {
        (Place::Others, Server::Absent | Server::Stopped { .. }) | (Place::Unknown, Server::Absent) => {
            Some(Act::Wait(Because::NotOnRecord))
        }
        (Place::Others, Server::Starting | Server::Standby { .. } | Server::Hung { was_primary: false }) => {
            Some(Act::StopNamesake)
        }
        // Of a primary the lease and the managers decide.
        (Place::Others, Server::Primary { .. } | Server::Hung { was_primary: true })
        | (Place::Unknown | Place::Own, _) => None,
    }
}

fn superseded(facts: &Facts<'_>) -> bool {
    matches!((facts.record, facts.server), (Some(r), Server::Primary { timeline })
        if primary(facts, r, timeline) == Act::StopSuperseded)
}

/// No term exists yet.
fn unborn(facts: &Facts<'_>) -> Act {
    match (facts.init, facts.server) {
        // Created means that a term was put with the identifier: whatever took that record away (an etcd restored
        // from an old copy), filling a live cluster in anew would lift what its commits wait for.
        (Some(InitRecord { system_id: Some(_), .. }), _) => Act::Wait(Because::UnknownCluster),
        // So has who remembers a term or a policy: etcd has lost all, and a new cluster would take the old one's place.
        _ if facts.remembers => Act::Wait(Because::UnknownCluster),
        _ if facts.others == Others::HaveData => Act::Wait(Because::UnknownCluster),
        (Some(init), _) if init.node == *facts.node => Act::ResumeCreation,
        (Some(_), Server::Absent) => Act::Wait(Because::BeingCreated),
        (None, Server::Absent) if facts.voter => match facts.others {
            Others::Missing(since) if since < REGISTERING => Act::Wait(Because::AwaitsOthers),
            _ => Act::Create,
        },
        (None, Server::Absent) => Act::Wait(Because::NotAVoter),
        (Some(_) | None, _) => Act::Wait(Because::UnknownCluster),
    }
}

/// A primary writes on the timeline of its term, so its timeline tells which term it serves.
fn primary(facts: &Facts<'_>, record: &TermRecord, timeline: TimelineId) -> Act {
    let mine = record.node.as_ref() == Some(facts.node);
    match record.term.timeline() {
        Some(t) if t > timeline => Act::StopSuperseded,
        Some(t) if t == timeline && !mine && record.node.is_some() => Act::StopSuperseded,
        // Whoever we promote has promised the term before. This one was promoted by hand, past every manager.
        _ if !mine && facts.promise.timeline().is_some_and(|promised| timeline > promised) => Act::StopSuperseded,
        _ => Act::Wait(Because::Fine),
    }
}

/// What was rewound or copied needs WAL of its source to become consistent. Whoever started it sees to that, unless that
/// agent is gone: then it would be asked of the old source for ever.
fn starting(facts: &Facts<'_>, record: &TermRecord) -> Act {
    if !facts.starts_late {
        return Act::Wait(Because::Starting);
    }
    let right = facts.upstream.is_some_and(|(node, term)| record.node.as_ref() == Some(node) && term == record.term);
    match with_primary(facts, record, Act::StopStranded) {
        act @ Act::StopStranded if facts.quarantined && !right => act,
        _ => Act::Wait(Because::StartsLate),
    }
}

fn standby(facts: &Facts<'_>, record: &TermRecord, streaming: Option<TimelineId>) -> Act {
    let follows = facts.upstream.is_some_and(|(node, term)| record.node.as_ref() == Some(node) && term == record.term);
    let current = streaming.is_some() && streaming == record.term.timeline();
    match (follows, current) {
        (true, true) => Act::Wait(Because::Fine),
        (true, false) if facts.not_streaming_for < STREAMING_PATIENCE => Act::Wait(Because::Fine),
        _ => with_primary(facts, record, Act::Rejoin),
    }
}

fn has_primary(record: &TermRecord) -> bool {
    matches!(record.phase, Phase::Opening | Phase::Active | Phase::Draining)
}

/// `act`, if there is a primary other than this node that it may follow.
fn with_primary(facts: &Facts<'_>, record: &TermRecord, act: Act) -> Act {
    if !has_primary(record) {
        return Act::Wait(Because::NoPrimary);
    }
    if record.node.as_ref() == Some(facts.node) {
        return Act::Wait(Because::AwaitsManager);
    }
    if facts.promise > record.term {
        return Act::Wait(Because::Frozen);
    }
    act
}

#[cfg(test)]
mod tests;
