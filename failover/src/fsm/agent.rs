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
    /// The data directory belongs to another cluster.
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
            Self::ForeignData => Some("the data directory belongs to another cluster (its system identifier differs)"),
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

/// How long a WAL receiver that was given an address may fail before histories are compared again.
pub const STREAMING_PATIENCE: Duration = Duration::from_secs(3);

/// Decide.
pub fn decide(facts: &Facts<'_>) -> Act {
    if let Some(fence) = facts.fence {
        return fenced(facts, fence);
    }
    if let (Server::Absent, Some(turn)) = (facts.server, facts.adopts) {
        return if turn { Act::TakeOver } else { Act::Wait(Because::AwaitsAdoption) };
    }
    let Some(record) = facts.record else { return unborn(facts) };
    if let (Some(id), Some(want)) = (facts.system_id, facts.init.and_then(|i| i.system_id.as_deref()))
        && id != want
    {
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
mod tests {
    use super::*;
    use crate::record::Cause;

    fn record(term: u64, phase: Phase, node: Option<&str>) -> TermRecord {
        TermRecord {
            term: Term(term),
            phase,
            coordinator: "m".into(),
            node: node.map(|n| n.parse().unwrap()),
            cause: Cause::Failover,
            prev: None,
            fork: None,
            forks: Vec::new(),
            xid_bound: None,
            xid_bounds: Vec::new(),
            record_lsn: None,
            policy_epoch: 1,
            newest_timeline: None,
            holds_all_of: None,
            history_lost: false,
            lossy_timelines: Vec::new(),
            chosen_before: None,
            data_loss_allowed: false,
        }
    }

    fn n(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    /// Node n1 with this server under this record; promised the record's term.
    fn check(server: Server, record: Option<&TermRecord>, expected: Act) {
        let node = n("n1");
        let facts = facts(&node, server, record);
        assert_eq!(decide(&facts), expected, "{server:?} under {record:?}");
    }

    fn facts<'a>(node: &'a NodeId, server: Server, record: Option<&'a TermRecord>) -> Facts<'a> {
        Facts {
            node,
            server,
            promise: record.map_or(Term(0), |r| r.term),
            record,
            init: None,
            system_id: None,
            fence: None,
            maintenance: false,
            adopts: None,
            upstream: None,
            not_streaming_for: Duration::ZERO,
            starts_late: false,
            hangs_late: false,
            rewind_interrupted: false,
            quarantined: false,
            remembers: record.is_some(),
            others: Others::Empty,
            voter: true,
            place: Place::Own,
        }
    }

    #[test]
    fn a_second_agent_of_the_nodes_name_neither_copies_nor_starts_nor_follows() {
        let node = n("n2");
        let active = record(3, Phase::Active, Some("n1"));
        let act = |place, server| decide(&Facts { place, ..facts(&node, server, Some(&active)) });
        let stopped = [Server::Absent, Server::Stopped { was_primary: false }, Server::Stopped { was_primary: true }];
        let runs = [Server::Starting, Server::Standby { streaming: None }, Server::Hung { was_primary: false }];
        for server in stopped {
            assert_eq!(act(Place::Others, server), Act::Wait(Because::NotOnRecord), "{server:?}");
        }
        for server in runs {
            assert_eq!(act(Place::Others, server), Act::StopNamesake, "{server:?}");
        }
        let primary = Server::Primary { timeline: TimelineId(3) };
        assert_eq!(act(Place::Others, primary), act(Place::Own, primary));
        // Who has not looked yet only waits with a copy.
        assert_eq!(act(Place::Unknown, Server::Absent), Act::Wait(Because::NotOnRecord));
        for server in [stopped[1], stopped[2], runs[0], runs[1], runs[2]] {
            assert_eq!(act(Place::Unknown, server), act(Place::Own, server), "{server:?}");
        }
    }

    #[test]
    fn nobody_connects_ahead_who_was_not_frozen_for_it_or_has_something_to_make_up_for() {
        let whole = Recruit {
            frozen_for: Some(Term(8)),
            cut_off_for: Term(8),
            standby: true,
            rewinding: false,
            examined: false,
            quarantined: false,
        };
        assert_eq!(whole.may_connect_ahead(Term(8)), Ok(()));
        for (unfrozen, why) in [
            (Recruit { frozen_for: None, ..whole }, "its freeze is over"),
            (Recruit { frozen_for: Some(Term(9)), ..whole }, "for another term"),
            (Recruit { cut_off_for: Term(0), ..whole }, "it may receive still"),
            (Recruit { standby: false, ..whole }, "stopped"),
        ] {
            assert_eq!(unfrozen.may_connect_ahead(Term(8)), Err("frozen for the term"), "{why}");
        }
        for marked in [
            Recruit { rewinding: true, ..whole },
            Recruit { examined: true, ..whole },
            Recruit { quarantined: true, ..whole },
        ] {
            assert!(marked.may_connect_ahead(Term(8)).is_err_and(|why| why.contains("examined")), "{marked:?}");
        }
        let at = |timeline, lsn| Position { timeline: TimelineId(timeline), lsn: cluster::Lsn(lsn) };
        for (have, fits) in [
            (Some(at(7, 100)), true),
            (Some(at(7, 99)), true),
            (Some(at(7, 101)), false),
            (Some(at(6, 99)), false),
            (Some(at(8, 99)), false),
            (None, false),
        ] {
            assert_eq!(ends_by(at(7, 100), have), fits, "{have:?}");
        }
    }

    const STANDBY: Server = Server::Standby { streaming: None };

    #[test]
    fn a_stopped_primary_never_starts_by_itself() {
        let stopped = Server::Stopped { was_primary: true };
        check(stopped, Some(&record(3, Phase::Active, Some("n1"))), Act::Wait(Because::AwaitsManager));
        check(stopped, Some(&record(4, Phase::Recruiting, None)), Act::Wait(Because::NoPrimary));
        check(stopped, Some(&record(4, Phase::Promoting, Some("n2"))), Act::Wait(Because::NoPrimary));
        check(stopped, Some(&record(4, Phase::Opening, Some("n2"))), Act::Rejoin);
    }

    #[test]
    fn a_primary_of_an_older_term_stops_at_once() {
        let primary = Server::Primary { timeline: TimelineId(3) };
        check(primary, Some(&record(3, Phase::Active, Some("n1"))), Act::Wait(Because::Fine));
        check(primary, Some(&record(3, Phase::Draining, Some("n1"))), Act::Wait(Because::Fine));
        check(primary, Some(&record(4, Phase::Recruiting, None)), Act::StopSuperseded);
        check(primary, Some(&record(4, Phase::Active, Some("n2"))), Act::StopSuperseded);
        // A standby of term 2 that somebody promoted by hand: nobody has promised term 3.
        check(primary, Some(&record(2, Phase::Active, Some("n2"))), Act::StopSuperseded);
        let node = n("n1");
        let known_late = Facts { promise: Term(3), ..facts(&node, primary, None) };
        let behind = record(2, Phase::Active, Some("n2"));
        assert_eq!(decide(&Facts { record: Some(&behind), ..known_late }), Act::Wait(Because::Fine));
        let hung = |was_primary| Server::Hung { was_primary };
        check(hung(true), Some(&record(4, Phase::Active, Some("n2"))), Act::StopSuperseded);
        // A standby that is only slow is left alone.
        check(hung(false), Some(&record(4, Phase::Active, Some("n2"))), Act::Wait(Because::Hung));
        check(hung(true), Some(&record(4, Phase::Active, Some("n1"))), Act::Wait(Because::Hung));
    }

    #[test]
    fn a_standby_that_has_hung_for_long_is_started_again_and_nobody_else() {
        let check = |was_primary, phase, named: Option<&str>, expected| {
            let (node, record) = (n("n1"), record(4, phase, named));
            let facts = facts(&node, Server::Hung { was_primary }, Some(&record));
            assert_eq!(decide(&Facts { hangs_late: true, ..facts }), expected, "{was_primary} {phase:?} {named:?}");
        };
        check(false, Phase::Active, Some("n2"), Act::StopHung);
        // It is to be frozen, and cannot be.
        check(false, Phase::Recruiting, None, Act::StopHung);
        check(false, Phase::Promoting, Some("n1"), Act::Wait(Because::Hung));
        check(true, Phase::Active, Some("n1"), Act::Wait(Because::Hung));
        check(true, Phase::Recruiting, None, Act::Wait(Because::Hung));
    }

    #[test]
    fn a_standby_without_stream_compares_histories() {
        let active = record(4, Phase::Active, Some("n2"));
        check(STANDBY, Some(&active), Act::Rejoin);
        check(Server::Stopped { was_primary: false }, Some(&active), Act::StartDetached);
        // Without the primary's WAL it would wait for consistency for ever.
        let (node, recruiting) = (n("n1"), record(5, Phase::Recruiting, None));
        let rewound =
            Facts { quarantined: true, ..facts(&node, Server::Stopped { was_primary: false }, Some(&active)) };
        assert_eq!(decide(&rewound), Act::StartUnder);
        assert_eq!(decide(&Facts { record: Some(&recruiting), ..rewound }), Act::Wait(Because::NoPrimary));
        let (node, upstream) = (n("n1"), n("n2"));
        let follows = Facts { upstream: Some((&upstream, Term(4))), ..facts(&node, STANDBY, Some(&active)) };
        assert_eq!(decide(&follows), Act::Wait(Because::Fine));
        let late = Facts { not_streaming_for: STREAMING_PATIENCE, ..follows.clone() };
        assert_eq!(decide(&late), Act::Rejoin);
        let stale = Server::Standby { streaming: Some(TimelineId(3)) };
        assert_eq!(decide(&Facts { server: stale, ..late }), Act::Rejoin);
        let fine = Facts { server: Server::Standby { streaming: Some(TimelineId(4)) }, ..follows };
        assert_eq!(decide(&fine), Act::Wait(Because::Fine));
    }

    #[test]
    fn what_was_rewound_and_waits_for_the_wal_of_a_lost_primary_is_started_under_the_new_one() {
        let (node, active, old) = (n("n1"), record(4, Phase::Active, Some("n3")), n("n2"));
        let at =
            |starts_late| Facts { starts_late, quarantined: true, ..facts(&node, Server::Starting, Some(&active)) };
        assert_eq!(decide(&at(false)), Act::Wait(Because::Starting));
        assert_eq!(decide(&at(true)), Act::StopStranded, "its agent was restarted and has given it no address");
        assert_eq!(decide(&Facts { upstream: Some((&old, Term(3))), ..at(true) }), Act::StopStranded);
        let new = n("n3");
        let late = Act::Wait(Because::StartsLate);
        assert_eq!(decide(&Facts { upstream: Some((&new, Term(4))), ..at(true) }), late);
        assert_eq!(decide(&Facts { quarantined: false, ..at(true) }), late, "it replays its own WAL");
        assert_eq!(decide(&Facts { promise: Term(5), ..at(true) }), late);
        assert!(Because::StartsLate.trouble().is_some());
    }

    #[test]
    fn a_node_frozen_for_a_later_term_does_not_follow_the_earlier_one() {
        let (node, active) = (n("n1"), record(4, Phase::Active, Some("n2")));
        let frozen = Facts { promise: Term(5), ..facts(&node, STANDBY, Some(&active)) };
        assert_eq!(decide(&frozen), Act::Wait(Because::Frozen));
    }

    #[test]
    fn one_node_creates_the_cluster_and_the_others_wait_to_clone() {
        let node = n("n1");
        let unborn = facts(&node, Server::Absent, None);
        assert_eq!(decide(&unborn), Act::Create);
        let init = |name: &str| InitRecord { node: n(name), system_id: None };
        let (mine, other) = (init("n1"), init("n2"));
        assert_eq!(decide(&Facts { init: Some(&mine), ..unborn.clone() }), Act::ResumeCreation);
        assert_eq!(decide(&Facts { init: Some(&other), ..unborn.clone() }), Act::Wait(Because::BeingCreated));
        // The term's record is gone although the cluster was created, or a manager has already commanded here.
        let created = InitRecord { system_id: Some("7".into()), ..init("n1") };
        assert_eq!(decide(&Facts { init: Some(&created), ..unborn.clone() }), Act::Wait(Because::UnknownCluster));
        let commanded = Facts { init: Some(&mine), remembers: true, server: STANDBY, ..unborn.clone() };
        assert_eq!(decide(&commanded), Act::Wait(Because::UnknownCluster));
        let wiped = Facts { remembers: true, ..unborn.clone() };
        assert_eq!(decide(&wiped), Act::Wait(Because::UnknownCluster), "etcd has lost all, and this disk is a new one");
        let with = |others| decide(&Facts { others, ..unborn.clone() });
        assert_eq!(
            with(Others::HaveData),
            Act::Wait(Because::UnknownCluster),
            "etcd has lost all, and this node is a new one"
        );
        assert_eq!(with(Others::Missing(Duration::from_secs(1))), Act::Wait(Because::AwaitsOthers));
        assert_eq!(with(Others::Missing(REGISTERING)), Act::Create);
        let late = Facts { init: Some(&mine), others: Others::HaveData, ..unborn.clone() };
        assert_eq!(decide(&late), Act::Wait(Because::UnknownCluster), "they registered after it had won the right");
        check(Server::Absent, Some(&record(1, Phase::Opening, Some("n2"))), Act::Clone);
        check(STANDBY, None, Act::Wait(Because::UnknownCluster));
    }

    #[test]
    fn data_of_another_cluster_is_left_alone() {
        let (node, active) = (n("n1"), record(4, Phase::Active, Some("n2")));
        let init = InitRecord { node: n("n2"), system_id: Some("7".into()) };
        let base = facts(&node, Server::Stopped { was_primary: true }, Some(&active));
        let foreign = Facts { init: Some(&init), system_id: Some("8"), ..base };
        assert_eq!(decide(&foreign), Act::Wait(Because::ForeignData));
    }

    #[test]
    fn a_directory_to_adopt_is_neither_created_nor_cloned_over_and_taken_in_its_turn() {
        let (node, active) = (n("n1"), record(4, Phase::Active, Some("n2")));
        let at = |record, turn| Facts { adopts: Some(turn), ..facts(&node, Server::Absent, record) };
        assert_eq!(decide(&at(None, false)), Act::Wait(Because::AwaitsAdoption));
        assert_eq!(decide(&at(Some(&active), false)), Act::Wait(Because::AwaitsAdoption));
        assert_eq!(decide(&at(Some(&active), true)), Act::TakeOver);
        let ours = Facts { server: Server::Stopped { was_primary: false }, ..at(Some(&active), true) };
        assert_eq!(decide(&ours), Act::StartDetached);
    }

    #[test]
    fn in_maintenance_what_is_stopped_stays_stopped_and_what_runs_goes_on() {
        let (node, active) = (n("n1"), record(4, Phase::Active, Some("n2")));
        let at = |server| Facts { maintenance: true, ..facts(&node, server, Some(&active)) };
        for stopped in [Server::Stopped { was_primary: false }, Server::Stopped { was_primary: true }, Server::Absent] {
            assert_eq!(decide(&at(stopped)), Act::Wait(Because::Maintenance), "{stopped:?}");
        }
        assert_eq!(decide(&at(STANDBY)), Act::Rejoin);
        assert_eq!(decide(&at(Server::Primary { timeline: TimelineId(3) })), Act::StopSuperseded);
    }

    #[test]
    fn a_fence_stops_a_standby_and_a_primary_only_when_writes_may_stop() {
        let (node, active) = (n("n1"), record(4, Phase::Active, Some("n1")));
        let fence = |stop_writes| FenceRecord { by: "me".into(), at: 0, stop_writes, removed: false };
        let (soft, hard) = (fence(false), fence(true));
        let primary = facts(&node, Server::Primary { timeline: TimelineId(4) }, Some(&active));
        assert_eq!(decide(&Facts { fence: Some(&soft), ..primary.clone() }), Act::Wait(Because::Fine));
        assert_eq!(decide(&Facts { fence: Some(&hard), ..primary.clone() }), Act::StopFenced);
        assert_eq!(decide(&Facts { server: STANDBY, fence: Some(&soft), ..primary.clone() }), Act::StopFenced);
        let stopped = Server::Stopped { was_primary: false };
        assert_eq!(decide(&Facts { server: stopped, fence: Some(&soft), ..primary }), Act::Wait(Because::Fenced));
    }
}
