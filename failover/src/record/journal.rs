//! How a term came about, and what an old primary's WAL held past it. PURE.

use super::{Cause, WallMillis};
use cluster::timeline::Fork;
use cluster::{Lsn, NodeId, Term, TimelineId};
use serde::{Deserialize, Serialize};

/// `journal/<term>`: how a term came about. Rewritten as it proceeds, final when `finished` is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalRecord {
    /// The term.
    pub term: Term,
    /// Why it began.
    pub cause: Cause,
    /// What was observed, as shown to an operator.
    pub observed: Vec<String>,
    /// The previous primary.
    pub from: Option<NodeId>,
    /// The term that ends with it: the last that was open. Not told by older managers, and where etcd does not tell of all terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Term>,
    /// The new primary, once chosen.
    pub to: Option<NodeId>,
    /// When it began, for display.
    pub started: WallMillis,
    /// Milliseconds from the start, per phase finished, in order: detected, recruiting, frozen, chosen, promoted,
    /// followed, recorded, open.
    pub phases: Vec<PhaseTime>,
    /// Frozen nodes and where their WAL ended.
    pub recruits: Vec<Recruit>,
    /// m and k in force.
    pub m: usize,
    /// Copies beyond the primary's.
    pub k: u32,
    /// Where the timelines part.
    pub fork: Option<Fork>,
    /// First xid of the new term.
    pub xid_bound: Option<u64>,
    /// Commits of the previous term that proxies acknowledged with less durability than the cluster's mode, because the
    /// session had lowered `synchronous_commit`: only these can be missing without being a fault.
    #[serde(default)]
    pub below_mode: u64,
    /// What was known at the time of the writes that may be lost.
    pub window: Option<Window>,
    /// Where the previous primary ended, when it was stopped cleanly for this term. Older managers did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_end: Option<Fork>,
    /// The outcome: `active`, `superseded by term N`, or why it was given up.
    pub finished: Option<String>,
    /// Data loss was allowed by an operator.
    pub data_loss_allowed: bool,
}

impl JournalRecord {
    /// The term that ends with it, also where the record does not tell: a timeline is its term's number (INV-4).
    pub fn ended(&self) -> Option<Term> {
        self.ended.or_else(|| self.fork.map(|f| Term(u64::from(f.timeline.0))))
    }
}

/// A phase and when it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// The phase's name.
    pub phase: String,
    /// Milliseconds since the term began (detection: since the first evidence).
    pub ms: u64,
}

/// A frozen node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recruit {
    /// The node.
    pub node: NodeId,
    /// The timeline of its last WAL.
    pub timeline: TimelineId,
    /// Where its WAL ends.
    pub lsn: Lsn,
}

/// The provisional unreplicated-write window: from the fork to the last position heard of the old primary. It may have
/// written more since, or not have flushed all of that; [`LossReport`] is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Where the new timeline starts.
    pub fork_lsn: Lsn,
    /// The old primary's last known insert position.
    pub last_known_lsn: Lsn,
    /// Bytes between.
    pub bytes: u64,
    /// Milliseconds between the moments at which the old primary passed the two, by the manager's LSN clock.
    pub ms: Option<u64>,
}

/// `report/<term>/<node>`: what the old primary's own WAL held past the fork, read before any rewind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReport {
    /// The term that began at the fork.
    pub term: Term,
    /// The node whose WAL was read.
    pub node: NodeId,
    /// Its timeline past the fork.
    pub timeline: TimelineId,
    /// The fork.
    pub fork_lsn: Lsn,
    /// End of valid WAL on that node.
    pub end_lsn: Lsn,
    /// The WAL up to here was not there any more (a checkpoint of the old primary's had removed it): what is counted lies past
    /// it, and more may be lost. The directory that the WAL belongs to was set aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread_to: Option<Lsn>,
    /// Bytes between.
    pub bytes: u64,
    /// Transactions committed in that window.
    pub commits: u64,
    /// Transactions aborted in it.
    pub aborts: u64,
    /// The first of the lost commits, at most 1000 of them.
    pub transactions: Vec<LostTransaction>,
    /// From the first to the last lost commit by the node's own clock, milliseconds.
    pub span_ms: Option<u64>,
    /// Commits of the window made while the cluster's mode was suspended (acknowledged without a standby).
    pub commits_while_suspended: u64,
    /// Where the WAL tail was kept on that node.
    pub kept_in: Option<String>,
    /// Kept there is only what lies before this, as `agent.lost_wal_max` allows no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_to: Option<Lsn>,
    /// When it was read, for display.
    pub examined: WallMillis,
}

impl LossReport {
    /// So many commits count as lost: where not all could be read, one at least.
    pub fn at_least(&self) -> u64 {
        self.commits.max(u64::from(self.unread_to.is_some()))
    }
}

/// A transaction that is in the old primary's WAL and not in the new timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostTransaction {
    /// Its 32-bit transaction id as WAL has it.
    pub xid: u32,
    /// Start of its commit record.
    pub lsn: Lsn,
    /// Commit time by the old primary's clock, as pg_waldump prints it.
    pub committed_at: String,
}
