//! Messages between managers and agents: JSON over HTTP/1.1, `Authorization: Bearer <shared secret>`. PURE.
//!
//! Every command carries the term it belongs to. An agent first fsyncs a promise to that term, then acts, then
//! answers; it refuses a lower term for ever (`409`, [`Refused`]). Commands are idempotent: repeating one whose answer
//! was lost gives the same answer.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /agent/state?after=SEQ&wait_ms=N` | | [`AgentState`]: at once when `seq > SEQ`, else at a change or after N ms |
//! | `POST /agent/freeze` | [`Freeze`] | [`Frozen`] |
//! | `POST /agent/recover` | [`Recover`] | [`Frozen`]: starts a stopped PostgreSQL as a standby without upstream first |
//! | `POST /agent/catch_up` | [`CatchUp`] | [`Frozen`]: receives from another frozen node first |
//! | `POST /agent/promote` | [`Promote`] | [`Promoted`] |
//! | `POST /agent/follow` | [`Follow`] | `{}` |
//! | `POST /agent/open` | [`Open`] | [`Opened`] |
//! | `POST /agent/checkpoint` | [`Checkpoint`] | `{}` |
//! | `POST /agent/stop` | [`Stop`] | [`Stopped`] |
//! | `POST /agent/arm` | [`Arm`] | [`Armed`] |
//! | `POST /agent/relax` | [`Relax`] | [`Relaxed`] |
//! | `POST /agent/countersign` | [`Countersign`] | [`Countersigned`] |
//! | `GET /vouch?term=T&epoch=E` | | [`Vouched`]; needs no secret, `409` with the reason |
//!
//! Errors: `401` wrong secret, `409` [`Refused`], `503` [`Failed`] (tried, did not work; says where things stand).

use crate::record::{PolicyRecord, WallMillis};
use cluster::timeline::{Fork, History, XidBound};
use cluster::{Endpoint, Lsn, NodeId, Term, TimelineId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Everything an agent knows about its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentState {
    /// Grows with every change of anything but ages and positions; for long polling. Restarts with the agent.
    pub seq: u64,
    /// The node.
    pub node: NodeId,
    /// A random id of this agent process.
    pub holder: String,
    /// Host identity (boot id).
    pub host: String,
    /// Highest term promised, from disk.
    pub promise: Term,
    /// Highest term that this agent has read as open, from disk: an etcd that was restored may tell of it as unfinished.
    #[serde(default)]
    pub opened: Term,
    /// PostgreSQL as last observed.
    pub postgres: PostgresState,
    /// Its postmaster is dead, and its other processes are being ended: what `postgres` says is from before.
    #[serde(default)]
    pub ending: bool,
    /// Age of that observation, ms; grows when PostgreSQL does not answer.
    pub observed_ms_ago: u64,
    /// System identifier, if there is a data directory.
    pub system_id: Option<String>,
    /// The same of the cluster whose promise, opened term and policy these are, from disk: data may have been removed, and not what
    /// its agent remembers. `None` while that is not known, and from agents that do not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_of: Option<String>,
    /// Receiving is cut off for this term.
    pub frozen_for: Option<Term>,
    /// Not counted as a recruit nor chosen before it has replayed past here (after a rewind or clone).
    pub quarantine: Option<Position>,
    /// Rejoin under way: `starting`, `examining wal`, `rewinding`, `cloning 43 % (12 of 28 MiB)`, `catching up`, or what stopped it.
    pub rejoin: Option<String>,
    /// Fenced by an operator (the key in etcd was seen and obeyed).
    pub fenced: bool,
    /// This agent as an observer of the primary of the term it knows.
    pub sees_primary: Option<Sighting>,
    /// The lease this agent holds as the primary's, ms left; `None` when it holds none.
    pub lease_left_ms: Option<u64>,
    /// Last write+fsync probe in the WAL's file system, ms it took; `None` before the first.
    pub fsync_probe_ms: Option<u64>,
    /// The last thing that went wrong and is not over.
    pub trouble: Option<String>,
    /// Another agent lives under this node's name, in words: neither counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namesake: Option<String>,
    /// How many replication slots of ours there could be. `None` while that is not known, and from agents that know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_room: Option<usize>,
    /// The newest policy that this agent has read, from disk: an etcd that was restored may hold an older one.
    #[serde(default)]
    pub policy: Option<PolicyRecord>,
}

/// PostgreSQL as its agent sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum PostgresState {
    /// No data directory.
    Absent,
    /// Not running.
    Stopped {
        /// From pg_control: shut down cleanly (as primary or in recovery).
        clean: bool,
        /// Timeline of its latest checkpoint.
        timeline: TimelineId,
        /// It was a primary when it stopped.
        was_primary: bool,
        /// Position of the latest checkpoint.
        checkpoint_lsn: Lsn,
    },
    /// Started, not yet answering.
    Starting,
    /// In recovery.
    Standby(Standby),
    /// Accepting writes as far as PostgreSQL is concerned.
    Primary(Primary),
    /// Its postmaster lives, but no query or no new connection was answered within the probe's deadline.
    Hung {
        /// For how long, ms.
        for_ms: u64,
    },
}

/// A node in recovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standby {
    /// The timeline of the last WAL it received or replayed.
    pub timeline: TimelineId,
    /// `greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())`.
    pub receive_lsn: Lsn,
    /// `pg_last_wal_replay_lsn()`.
    pub replay_lsn: Lsn,
    /// The node it streams from, only while its WAL receiver is streaming.
    pub streams_from: Option<NodeId>,
    /// Replay is paused.
    pub replay_paused: bool,
    /// `synchronous_standby_names` as set for the case of promotion.
    pub sync_names: String,
}

/// A node that accepts writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Primary {
    /// The timeline it writes.
    pub timeline: TimelineId,
    /// `pg_current_wal_insert_lsn()`, normalised.
    pub insert_lsn: Lsn,
    /// `pg_current_wal_flush_lsn()`.
    pub flush_lsn: Lsn,
    /// `synchronous_standby_names`.
    pub sync_names: String,
    /// Walsenders of standbys, by application_name.
    pub followers: Vec<Follower>,
    /// Holders of a voter's name that are not that voter, or duplicates of it.
    pub impostors: Vec<String>,
    /// Nodes in whose name somebody else confirms what it receives, or did a moment ago: one that has only the name, or a
    /// second one that lives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubted: Vec<NodeId>,
}

/// A row of pg_stat_replication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// application_name.
    pub node: NodeId,
    /// `streaming`, `catchup`, …
    pub state: String,
    /// flush_lsn.
    pub flush_lsn: Option<Lsn>,
    /// replay_lsn.
    pub replay_lsn: Option<Lsn>,
    /// sync_state.
    pub sync_state: String,
}

/// A place in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Timeline; compared first.
    pub timeline: TimelineId,
    /// Position on it.
    pub lsn: Lsn,
}

/// Pause between two new connections by which an agent sees whether a postmaster, which its sessions do not need, takes
/// any.
pub const KNOCK: Duration = Duration::from_secs(1);

/// When this agent last reached the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The primary observed.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
    /// Since its agent last answered, ms.
    pub agent_ms_ago: u64,
    /// Since its PostgreSQL last answered a query, ms.
    pub sql_ms_ago: u64,
    /// Since it last answered a new connection, ms, which is tried every [`KNOCK`]; `None` from an agent that does not.
    #[serde(default)]
    pub accept_ms_ago: Option<u64>,
    /// Since it last said that it has no connection left, ms; `None` if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_ms_ago: Option<u64>,
    /// The last attempt was refused outright (nothing listens), at both.
    pub refused: bool,
}

/// Stop receiving WAL for ever from primaries of lower terms. A primary is stopped at once (immediate shutdown).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The new term.
    pub term: Term,
    /// The manager asking.
    pub coordinator: String,
    /// The primary of the term before has stopped and told where its WAL ends: nobody can receive more of it.
    #[serde(default)]
    pub is_stopped: bool,
}

/// A frozen node's evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frozen {
    /// The node.
    pub node: NodeId,
    /// The term promised.
    pub term: Term,
    /// End of its valid WAL along its lineage; `None` when PostgreSQL is stopped and must be recovered to know.
    pub position: Option<Position>,
    /// Replayed so far.
    pub replay_lsn: Option<Lsn>,
    /// The history of `position.timeline`.
    pub history: Option<History>,
    /// See [`AgentState::quarantine`].
    pub quarantine: Option<Position>,
    /// It was the primary and is stopped now.
    pub was_primary: bool,
    /// System identifier of its data directory, if it has one. Older agents do not tell it.
    #[serde(default)]
    pub system_id: Option<String>,
    /// The newest term that its data has a record of, looked up only where its agent has never read that the term of its
    /// timeline was open. Older agents do not tell it.
    #[serde(default)]
    pub recorded: Option<Term>,
}

/// Start a stopped PostgreSQL as a standby without upstream, replay all local WAL, and report as frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recover {
    /// The term.
    pub term: Term,
}

/// Receive from another node that is frozen for the same term what it has and this one lacks; then be frozen again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatchUp {
    /// The term.
    pub term: Term,
    /// The node to receive from.
    pub from: NodeId,
    /// Its PostgreSQL.
    pub endpoint: Endpoint,
    /// Where it ends.
    pub to: Position,
    /// Give up after so long, ms.
    pub deadline_ms: u64,
}

/// Become primary on the timeline of `term`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promote {
    /// The term.
    pub term: Term,
    /// What it reported when frozen; the agent refuses when its WAL does not end there.
    pub base: Position,
    /// `synchronous_standby_names` to hold before and after.
    pub sync_names: String,
    /// Only commits that ask for it wait for them.
    #[serde(default)]
    pub on_request: bool,
    /// The epoch, for the term's record.
    pub policy_epoch: u64,
    /// The previous tenure's term, for the record.
    pub prev_term: Option<Term>,
    /// Give up (and stop PostgreSQL) after so long, ms.
    pub deadline_ms: u64,
}

/// Promoted, and the term's record is in `pgtenure.term`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// Parent timeline and switch LSN, from the history file.
    pub fork: Fork,
    /// All of the history file, oldest first, `fork` last. Older agents do not tell it.
    #[serde(default)]
    pub forks: Vec<Fork>,
    /// `pg_snapshot_xmax(pg_current_snapshot())` before promotion, as a 64-bit xid.
    pub xid_bound: u64,
    /// The same of every term in the line of descent that the new primary has a record of, oldest first, this one last.
    /// Older agents do not tell it.
    #[serde(default)]
    pub xid_bounds: Vec<XidBound>,
    /// End of the term record's commit.
    pub record_lsn: Lsn,
    /// Transactions that were prepared and have survived: they hold their locks until somebody ends them.
    #[serde(default)]
    pub prepared: Prepared,
}

/// `pg_prepared_xacts` of a new primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// How many.
    pub count: u64,
    /// The names of the oldest, at most 20.
    pub oldest: Vec<String>,
}

/// Stream from this primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The term.
    pub term: Term,
    /// The primary.
    pub primary: NodeId,
    /// Its PostgreSQL.
    pub endpoint: Endpoint,
    /// Where the term's record ends: clients wait until that is received.
    #[serde(default)]
    pub record_lsn: Option<Lsn>,
    /// It is only being promoted, and ends there: to be connected to already, by who has no more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Position>,
}

/// T3: take the primary's lease and set the term active, comparing the term record's revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The term.
    pub term: Term,
    /// `mod_revision` of the term record to compare.
    pub term_revision: i64,
    /// Record this suspension in the same transaction (operator allowed data loss and too few voters follow).
    pub suspend: Option<crate::record::Suspension>,
    /// `mod_revision` of the policy record to compare.
    pub policy_revision: i64,
}

/// The term is active.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// etcd revision of the change.
    pub revision: i64,
}

/// Begin a WAL segment, wait for standbys to have what is before it, and run CHECKPOINT, so that the stop that follows is short and little is sent again behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The term.
    pub term: Term,
    /// Longest wait for the CHECKPOINT, ms. 0: by a manager of before it was said.
    #[serde(default)]
    pub deadline_ms: u64,
}

/// Stop the primary cleanly for a switchover (fast shutdown), or hard when that takes longer than the bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The term in which it is primary.
    pub term: Term,
    /// Immediate shutdown after so long, ms.
    pub deadline_ms: u64,
    /// Refuse when it answers (again).
    #[serde(default)]
    pub only_if_hung: bool,
    /// The revision at which the manager that orders it put the managers' key, by which it leads: when a later leader is known it
    /// stood still, and nobody wants this any more. 0: by a manager of before it was said.
    #[serde(default)]
    pub leader: i64,
}

/// The primary is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// False: the bound was exceeded and it was stopped hard.
    pub clean: bool,
    /// End of its WAL when clean: no standby that has received less may be promoted.
    pub end: Option<Position>,
}

/// Make commits wait for standbys again (re-arm), and prove that they do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// The term.
    pub term: Term,
    /// The setting.
    pub sync_names: String,
    /// The policy's epoch that asks for it: an order that was overtaken by another policy is refused.
    pub policy_epoch: u64,
}

/// Commits wait from here on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// Everything committed past this position waited for standbys.
    pub lsn: Lsn,
    /// The policy's epoch that the order was given under.
    #[serde(default)]
    pub policy_epoch: u64,
}

/// Let commits through without standbys: the policy of this epoch says that they are not protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relax {
    /// The term.
    pub term: Term,
    /// The policy's epoch that allows it.
    pub policy_epoch: u64,
}

/// Commits wait for nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relaxed {
    /// Everything that was promised to be on standbys lies before this position.
    pub lsn: Lsn,
}

/// While etcd does not answer: promise to the primary of `term` that no later one begins here for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Countersign {
    /// The term.
    pub term: Term,
    /// Its primary, who asks.
    pub primary: NodeId,
    /// For how long, ms, from when the order arrives.
    pub lasts_ms: u64,
}

/// It is promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Countersigned {
    /// Who promises.
    pub node: NodeId,
    /// For how long, ms, from when the order arrived: no longer than asked for. Older agents do not tell it, and their
    /// promise does not count.
    #[serde(default)]
    pub lasts_ms: u64,
}

/// The primary's agent confirms a proxy's view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouched {
    /// For how long, ms, from when the question was sent.
    pub lasts_ms: u64,
}

/// A command that was not obeyed; nothing was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "refused", rename_all = "snake_case")]
pub enum Refused {
    /// A higher term was promised.
    #[error("{node} promised term {promised}, the command is of term {term}")]
    LowerTerm {
        /// The node.
        node: NodeId,
        /// The command's term.
        term: Term,
        /// The term promised.
        promised: Term,
    },
    /// The node's WAL does not end where the command says.
    #[error("{node} ends at {have:?}, the command expects {want:?}")]
    OtherPosition {
        /// The node.
        node: NodeId,
        /// Where it ends.
        have: Option<Position>,
        /// What the command said.
        want: Position,
    },
    /// PostgreSQL is not in the state that the command needs.
    #[error("{node} is {state}, the command needs {needs}")]
    WrongState {
        /// The node.
        node: NodeId,
        /// State found.
        state: String,
        /// State needed.
        needs: String,
    },
    /// Another manager leads by now than the one that gave the order.
    #[error("{node} has read of a leader since revision {newest}, the command is of the one since {leader}")]
    EarlierLeader {
        /// The node.
        node: NodeId,
        /// Since when the one leads that gave the order.
        leader: i64,
        /// The same of the latest leader that is known.
        newest: i64,
    },
    /// An operator has fenced the node.
    #[error("{node} is fenced")]
    Fenced {
        /// The node.
        node: NodeId,
    },
}

/// A command that was tried and did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{node}: {what}: {why}")]
pub struct Failed {
    /// The node.
    pub node: NodeId,
    /// What was tried.
    pub what: String,
    /// Why it did not work.
    pub why: String,
    /// When, for display.
    pub at: WallMillis,
}
