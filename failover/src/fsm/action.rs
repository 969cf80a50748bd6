//! What the planner is told and what it asks for. PURE.
//!
//! Every command carries the term it belongs to, and its answer comes back with that term: an answer of an older term
//! is dropped. Every change of a record names the revisions it was decided on.

use crate::api;
use crate::fsm::blocker::Blocker;
use crate::fsm::observe::Records;
use crate::record::{
    Cause, FenceRecord, JournalRecord, MaintenanceRecord, Mode, PauseRecord, PolicyRecord, TermRecord, WallMillis,
};
use cluster::{Instant, NodeId, Term};
use std::time::Duration;

/// Something the planner learns.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passes. Also carries the wall clock, which is only ever displayed.
    Tick {
        /// Milliseconds since 1970 UTC.
        wall: WallMillis,
    },
    /// This manager holds the managers' lease since the `manager` key was put at `revision`.
    Leading {
        /// Its `mod_revision`.
        revision: i64,
    },
    /// It does not, or not surely.
    NotLeading,
    /// The records were read.
    Records {
        /// When the read was sent.
        sent_at: Instant,
        /// What it gave.
        records: Box<Records>,
    },
    /// An agent reported.
    Report(Box<api::AgentState>),
    /// An exchange with an agent failed.
    Silent {
        /// The node.
        node: NodeId,
        /// Nothing listens there.
        refused: bool,
    },
    /// A command was answered, or not.
    Answered {
        /// The node.
        node: NodeId,
        /// The command's term.
        term: Term,
        /// Which command.
        kind: CommandKind,
        /// What came back.
        result: Box<Result<Reply, CommandError>>,
    },
    /// What became of a change.
    Changed {
        /// The change's id.
        id: u64,
        /// The outcome.
        outcome: ChangeOutcome,
    },
    /// An operator asks.
    Operator {
        /// To be given back with the answer.
        id: u64,
        /// What.
        operation: Operation,
    },
}

/// What an operator can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Change the primary with its help; nothing is lost.
    Switchover {
        /// To this node; `None` chooses.
        to: Option<NodeId>,
        /// Only in this term.
        expect_term: Option<Term>,
        /// Who asks.
        by: String,
    },
    /// Replace the primary without its help.
    Failover {
        /// Preferably by this node.
        to: Option<NodeId>,
        /// Only in this term.
        expect_term: Option<Term>,
        /// Go on without the recruits and followers that the guarantee needs.
        allow_data_loss: bool,
        /// Who asks.
        by: String,
    },
    /// Take a node out.
    Fence {
        /// The node.
        node: NodeId,
        /// Also when that stops writes.
        stop_writes: bool,
        /// Who asks.
        by: String,
    },
    /// Put it back.
    Unfence {
        /// The node.
        node: NodeId,
    },
    /// Begin no change of primary but an operator's.
    Pause {
        /// Who asks.
        by: String,
        /// In their words.
        why: String,
        /// It ends by itself after so long; `None`: never.
        length: Option<Duration>,
    },
    /// End the pause.
    Resume,
    /// Take a node out for good: its vote first, then its record.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// Who asks.
        by: String,
    },
    /// Work on a node: its PostgreSQL may be stopped meanwhile.
    BeginMaintenance {
        /// The node.
        node: NodeId,
        /// Also when commits then wait.
        stop_writes: bool,
        /// Who asks.
        by: String,
        /// In their words.
        why: String,
        /// It ends by itself after so long; `None`: never.
        length: Option<Duration>,
    },
    /// The work is done.
    EndMaintenance {
        /// The node.
        node: NodeId,
    },
    /// Change who votes, how many copies a commit needs, the mode, or the limits of a suspension.
    SetPolicy(PolicyChange),
}

/// A change of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// What commits are to be promised; `None`: as now.
    pub mode: Option<Mode>,
    /// Who is to vote; `None`: as now.
    pub voters: Option<Vec<NodeId>>,
    /// Copies besides the primary's; `None`: as now, or one when the mode was async.
    pub k: Option<u32>,
    /// Most bytes that may go unprotected; `None`: as now.
    pub max_loss_bytes: Option<u64>,
    /// Longest time unprotected; `None`: as now.
    pub max_time: Option<Duration>,
    /// Only in this epoch.
    pub expect_epoch: Option<u64>,
}

/// An operator's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Done.
    Done {
        /// The term now.
        term: Term,
        /// The node that the operation was about.
        node: Option<NodeId>,
        /// In words.
        note: String,
        /// How it went, for a change of primary.
        journal: Option<Box<JournalRecord>>,
    },
    /// Not begun, and why.
    Refused(Vec<Blocker>),
    /// Begun and not finished as asked; where it stands.
    Failed {
        /// In words.
        why: String,
        /// How it went.
        journal: Option<Box<JournalRecord>>,
    },
}

/// A command to an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Promise the term and stop receiving.
    Freeze(api::Freeze),
    /// Start without upstream and find the end of WAL.
    Recover(api::Recover),
    /// Receive what another frozen node has.
    CatchUp(api::CatchUp),
    /// Become primary.
    Promote(api::Promote),
    /// Stream from the new primary.
    Follow(api::Follow),
    /// Open the term.
    Open(api::Open),
    /// Shorten the coming shutdown.
    Checkpoint(api::Checkpoint),
    /// Shut down.
    Stop(api::Stop),
    /// Protect commits again.
    Arm(api::Arm),
    /// Let commits through without standbys.
    Relax(api::Relax),
}

/// A command's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandKind {
    /// See [`Command::Freeze`].
    Freeze,
    /// See [`Command::Recover`].
    Recover,
    /// See [`Command::CatchUp`].
    CatchUp,
    /// See [`Command::Promote`].
    Promote,
    /// See [`Command::Follow`].
    Follow,
    /// See [`Command::Open`].
    Open,
    /// See [`Command::Checkpoint`].
    Checkpoint,
    /// See [`Command::Stop`].
    Stop,
    /// See [`Command::Arm`].
    Arm,
    /// See [`Command::Relax`].
    Relax,
}

impl CommandKind {
    /// The command's word, also the last part of its path.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Recover => "recover",
            Self::CatchUp => "catch_up",
            Self::Promote => "promote",
            Self::Follow => "follow",
            Self::Open => "open",
            Self::Checkpoint => "checkpoint",
            Self::Stop => "stop",
            Self::Arm => "arm",
            Self::Relax => "relax",
        }
    }
}

impl Command {
    /// Its name.
    pub const fn kind(&self) -> CommandKind {
        match self {
            Self::Freeze(_) => CommandKind::Freeze,
            Self::Recover(_) => CommandKind::Recover,
            Self::CatchUp(_) => CommandKind::CatchUp,
            Self::Promote(_) => CommandKind::Promote,
            Self::Follow(_) => CommandKind::Follow,
            Self::Open(_) => CommandKind::Open,
            Self::Checkpoint(_) => CommandKind::Checkpoint,
            Self::Stop(_) => CommandKind::Stop,
            Self::Arm(_) => CommandKind::Arm,
            Self::Relax(_) => CommandKind::Relax,
        }
    }

    /// Its term.
    pub const fn term(&self) -> Term {
        match self {
            Self::Freeze(c) => c.term,
            Self::Recover(c) => c.term,
            Self::CatchUp(c) => c.term,
            Self::Promote(c) => c.term,
            Self::Follow(c) => c.term,
            Self::Open(c) => c.term,
            Self::Checkpoint(c) => c.term,
            Self::Stop(c) => c.term,
            Self::Arm(c) => c.term,
            Self::Relax(c) => c.term,
        }
    }
}

/// A command's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To freeze, recover and catch up.
    Frozen(api::Frozen),
    /// To promote.
    Promoted(api::Promoted),
    /// To open.
    Opened(api::Opened),
    /// To stop.
    Stopped(api::Stopped),
    /// To arm.
    Armed(api::Armed),
    /// To relax.
    Relaxed(api::Relaxed),
    /// To follow and checkpoint.
    Done,
}

/// A command that did not succeed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// Nothing was done.
    #[error(transparent)]
    Refused(api::Refused),
    /// Tried; did not work.
    #[error(transparent)]
    Failed(api::Failed),
    /// Nobody was reached, so nothing was done.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No answer in time, or one that cannot be read: it may have been done or be done yet.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

/// A transaction on the records.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Given back with the outcome.
    pub id: u64,
    /// What it is for.
    pub kind: ChangeKind,
    /// All must hold.
    pub guards: Vec<Guard>,
    /// What is written.
    pub puts: Vec<RecordPut>,
    /// What is deleted.
    pub deletes: Vec<RecordKey>,
}

/// What a change is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// T1: begin a term.
    Begin,
    /// T2: name the candidate.
    Choose,
    /// Promoted: name the fork and the term's record.
    Record,
    /// A switchover closes the gate for new transactions.
    Drain,
    /// It was given up; the gate opens again in the same term, whose primary was never stopped.
    Undrain,
    /// Commits are protected again.
    Rearm,
    /// Commits are not protected, and how far that has come.
    Suspend,
    /// An operator's fence, put or removed.
    Fence,
    /// An operator's pause, put or removed.
    Pause,
    /// A node's maintenance, put or removed.
    Maintenance,
    /// A node that does not vote any more is forgotten.
    Remove,
    /// A change of voters or k begins.
    Policy,
    /// Only the journal; nobody waits for it.
    Journal,
}

impl ChangeKind {
    /// One word, for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Choose => "choose",
            Self::Record => "record",
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Rearm => "rearm",
            Self::Suspend => "suspend",
            Self::Fence => "fence",
            Self::Pause => "pause",
            Self::Maintenance => "maintenance",
            Self::Remove => "remove",
            Self::Policy => "policy",
            Self::Journal => "journal",
        }
    }
}

/// A condition of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// `term` was last changed at this revision.
    Term(i64),
    /// `policy` was last changed at this revision.
    Policy(i64),
    /// `manager` was last changed at this revision: this manager still leads.
    Leader(i64),
    /// No `primary` key: the old primary's lease is gone.
    NoPrimary,
    /// No `pause` key: no operator has forbidden changes that nobody asked for.
    NotPaused,
}

/// A record to write.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordPut {
    /// `term`.
    Term(TermRecord),
    /// `policy`.
    Policy(PolicyRecord),
    /// `journal/<term>`.
    Journal(Box<JournalRecord>),
    /// `fences/<node>`.
    Fence(NodeId, FenceRecord),
    /// `maintenance/<node>`, for so long if it is to end by itself.
    Maintenance(NodeId, MaintenanceRecord, Option<Duration>),
    /// `pause`, for so long if it is to end by itself.
    Pause(PauseRecord, Option<Duration>),
    /// `grace`: commits may go unprotected for so long.
    Grace(Duration),
    /// `spent/<term>`: an automatic failover, counted for so long.
    Spent(Term, Duration),
}

/// A record to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordKey {
    /// `primary`.
    Primary,
    /// `fences/<node>`.
    Fence(NodeId),
    /// `members/<node>`.
    Member(NodeId),
    /// `maintenance/<node>`.
    Maintenance(NodeId),
    /// `pause`.
    Pause,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// Made, at this revision.
    Done(i64),
    /// A guard did not hold; nothing was changed.
    Lost,
    /// Certainly not made: etcd could not be reached or refused.
    NotMade(String),
    /// Nobody knows.
    Unknown(String),
}

/// Something the planner wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send a command and report its answer, at the latest after `within` and the network's time.
    Send {
        /// To this node's agent.
        node: NodeId,
        /// The command.
        command: Box<Command>,
        /// Time that the command itself may take.
        within: Duration,
    },
    /// Try a transaction and report its outcome.
    Change(Box<Change>),
    /// Read the records at once.
    Read,
    /// Answer an operator.
    Answer {
        /// The operation's id.
        id: u64,
        /// The answer.
        answer: Box<Answer>,
    },
    /// A term that this manager began has ended its making: for metrics and the log.
    Ended {
        /// Why it had begun.
        cause: Cause,
        /// It is open; otherwise it was superseded or given up.
        active: bool,
        /// How it went.
        journal: Box<JournalRecord>,
    },
}
