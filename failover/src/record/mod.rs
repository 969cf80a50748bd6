//! The records kept in etcd, as JSON: what the cluster has agreed on. PURE.
//!
//! Every change of a record is a compare-and-put on the `mod_revision` it was read at (T1 to T6 in ARCHITECTURE.md).
//! Wall-clock times in records are for people only; no decision reads them.

mod journal;

pub use journal::{JournalRecord, LossReport, LostTransaction, PhaseTime, Recruit, Window};

use cluster::timeline::{Fork, XidBound};
use cluster::{Endpoint, Lsn, NodeId, Term, TimelineId};
use serde::{Deserialize, Serialize};

/// A wall-clock time, milliseconds since 1970 UTC. For display only.
pub type WallMillis = u64;

/// Forks kept in a term's record.
pub const MOST_FORKS: usize = 64;

/// `term`: who is, or is becoming, primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermRecord {
    /// The term; only ever grows (INV-1).
    pub term: Term,
    /// How far this term has come.
    pub phase: Phase,
    /// The manager that began it, or the agent that created the cluster.
    pub coordinator: String,
    /// The node chosen (from `Promoting` on); the primary once `Active`.
    pub node: Option<NodeId>,
    /// Why the term was begun.
    pub cause: Cause,
    /// The last term that was opened to clients, whose commits this term must contain. `None` in the first term.
    pub prev: Option<Tenure>,
    /// Where the chosen node's received WAL ended, so where this term's timeline starts. Set by T2.
    pub fork: Option<Fork>,
    /// The line of descent of this term's timeline, oldest first, `fork` last: tells what of older terms it holds. Set
    /// once promoted; the newest [`MOST_FORKS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forks: Vec<Fork>,
    /// The first transaction id that can only belong to this term. An xid at or past it seen in the old term is lost.
    pub xid_bound: Option<u64>,
    /// The same of this term and of those before it in the line of descent, oldest first, as the new primary knows them.
    /// One that was promoted and never recorded is missing. Set once promoted; the newest [`MOST_FORKS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xid_bounds: Vec<XidBound>,
    /// End of this term's record in `pgtenure.term`; the term opens when it is on a quorum.
    pub record_lsn: Option<Lsn>,
    /// The policy this term's arithmetic used.
    pub policy_epoch: u64,
    /// The newest timeline that a term before this one may have made. WAL of a later one is of a node that somebody
    /// promoted past the managers. `None` in records of versions that did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_timeline: Option<TimelineId>,
    /// The last open term, where this one is known to hold all that it wrote: its primary was stopped cleanly and has
    /// told where its WAL ends. Set by T2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_all_of: Option<Term>,
    /// The last open term, where this one is known to hold all of it that its primary's disk had, as that has told since. It was not
    /// stopped cleanly, so what was committed last with `synchronous_commit = off` may never have been there. Set by T2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_written_of: Option<Term>,
    /// etcd was lost or restored from a backup since the last open term, so who was its primary is not known for sure:
    /// as many nodes must be frozen as suffice whoever it was. Said by every term from then on until one is open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub history_lost: bool,
    /// An operator allowed this term to begin or open with fewer nodes than its arithmetic asks for. Whoever goes on with
    /// it must know: such recruits may have left the old primary enough standbys to be acknowledged by.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub data_loss_allowed: bool,
    /// Timelines of terms since the last open one that were allowed to lose data and were never opened. Whoever follows one
    /// may lack what was acknowledged, although it ranks first by number: it counts only where this term may lose data, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lossy_timelines: Vec<TimelineId>,
    /// Who was chosen last in the terms since the last open one, as said by terms without a choice of their own. While none of them
    /// is opened it has all that was acknowledged, whoever has been rewound for it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_before: Option<Chosen>,
}

/// A choice: the node and where its WAL ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The node.
    pub node: NodeId,
    /// It has at least this.
    pub base: Fork,
    /// The policy whose arithmetic was used. None has the epoch 0, which stands for a record that does not tell.
    #[serde(default)]
    pub policy_epoch: u64,
}

impl TermRecord {
    /// May its primary be written to, as far as its phase says?
    pub const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Draining)
    }

    /// The newest timeline that this term or one before it may have made: nobody is promoted before T2.
    pub fn may_have_made(&self) -> Option<TimelineId> {
        match self.phase {
            Phase::Recruiting => self.newest_timeline,
            Phase::Promoting | Phase::Opening | Phase::Active | Phase::Draining => self.term.timeline(),
        }
    }

    /// May this term lack, as an operator allowed, what was acknowledged under protection? So may one that goes on with the
    /// line of a term that was allowed to and never opened. Older agents do not tell the line.
    pub fn may_lack_acknowledged(&self) -> bool {
        let on_line = |t: &TimelineId| self.forks.is_empty() || self.forks.iter().any(|f| f.timeline == *t);
        self.data_loss_allowed || self.lossy_timelines.iter().any(on_line)
    }

    /// [`Self::lossy_timelines`] of the term after this one.
    pub fn left_lossy(&self) -> Vec<TimelineId> {
        if self.is_open() {
            return Vec::new();
        }
        let chosen = self.data_loss_allowed && matches!(self.phase, Phase::Promoting | Phase::Opening);
        let ours = self.term.timeline().filter(|_| chosen);
        self.lossy_timelines.iter().copied().chain(ours).collect()
    }

    /// [`Self::chosen_before`] of the term after this one. A choice that was allowed to lose data proves nothing.
    pub fn left_chosen(&self) -> Option<Chosen> {
        if !self.lossy_timelines.is_empty() {
            return None;
        }
        match self.phase {
            Phase::Recruiting => self.chosen_before.clone(),
            Phase::Promoting | Phase::Opening => {
                let chosen = self.node.clone().zip(self.fork).filter(|_| !self.data_loss_allowed);
                chosen.map(|(node, base)| Chosen { node, base, policy_epoch: self.policy_epoch })
            }
            // What was acknowledged since others may have and it may not.
            Phase::Active | Phase::Draining => None,
        }
    }
}

/// How far a term has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// T1 done: standbys are being frozen.
    Recruiting,
    /// T2 done: the chosen node is being promoted.
    Promoting,
    /// Promoted; waits until the term's record is on a quorum.
    Opening,
    /// T3 done: open to clients.
    Active,
    /// Open for running transactions only: a switchover is under way.
    Draining,
}

/// Why a term began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The cluster was created.
    Bootstrap,
    /// The primary was found dead or unreachable.
    Failover,
    /// An operator asked for a failover.
    OperatorFailover,
    /// An operator asked for a switchover.
    Switchover,
    /// Every node had been stopped.
    Restart,
}

/// A term that was opened to clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    /// Its term.
    pub term: Term,
    /// Its primary.
    pub node: NodeId,
    /// Its timeline, equal to the term.
    pub timeline: TimelineId,
}

/// `primary`: exists while the primary's agent keeps its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryRecord {
    /// The term.
    pub term: Term,
    /// The primary.
    pub node: NodeId,
    /// The agent process that holds the lease (a random id per start).
    pub holder: String,
}

/// The durability a commit has been promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A commit is acknowledged when `k` standbys have flushed it.
    Strict,
    /// As strict; but when the standbys are gone for a while the primary goes on without, within limits and on record.
    Available,
    /// A commit is acknowledged by the primary alone; what a failover may lose is measured and reported.
    Async,
}

impl Mode {
    /// One word, as in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Available => "available",
            Self::Async => "async",
        }
    }
}

/// `policy`: who votes, how many copies, what may be lowered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Grows with every change.
    pub epoch: u64,
    /// Nodes that count.
    pub voters: Vec<NodeId>,
    /// Standbys that must have flushed a commit (`ANY k`); in async mode one that asks for it, and 0 if none can.
    pub k: u32,
    /// The mode chosen by the operator.
    pub mode: Mode,
    /// Set while commits are not protected although the mode says so, and while the mode is changed from or to async;
    /// cleared when re-armed.
    pub suspended: Option<Suspension>,
    /// In `available` mode: how far and for how long commits may go unprotected.
    #[serde(default)]
    pub limits: Limits,
    /// Set while voters or k are being changed: what they will be. Until it is cleared both hold, the ones above and
    /// these, for whatever a failover needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<Quorum>,
    /// Where the last suspension before this record ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rearmed: Option<Rearmed>,
}

/// Commits past there were protected again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rearmed {
    /// The term in which they were.
    pub term: Term,
    /// They wait for the quorum from here on.
    pub lsn: Lsn,
}

impl Rearmed {
    /// Did it end that suspension, rather than one before it?
    pub fn ended(&self, suspended: &Suspension) -> bool {
        (self.term, self.lsn) > (suspended.term, suspended.since)
    }
}

/// How far and for how long commits may go unprotected in `available` mode; beyond either they wait again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of WAL since protection was lowered: what a failover could lose, give or take the agents' reports.
    pub max_loss_bytes: u64,
    /// Milliseconds since then, by a lease in etcd.
    pub max_ms: u64,
}

impl Default for Limits {
    /// A gibibyte and a day: long enough to repair a host, short enough to be noticed.
    fn default() -> Self {
        Self { max_loss_bytes: 1 << 30, max_ms: 86_400_000 }
    }
}

/// Who counts, and how many of them besides the primary must have flushed a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Nodes that count.
    pub voters: Vec<NodeId>,
    /// Standbys that must have flushed a commit.
    pub k: u32,
}

/// Since when and why commits are not protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// The term in which protection was lowered.
    pub term: Term,
    /// Commits up to here are still covered by the mode.
    pub since: Lsn,
    /// When, for display.
    pub since_wall: WallMillis,
    /// Who or what lowered it.
    pub why: String,
    /// How it was lowered while the term was open. `None`: with the opening of the term, by an operator who allowed data
    /// loss; then only the term's primary has everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowered: Option<Lowered>,
}

/// Protection that was lowered step by step, see `fsm::suspend`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lowered {
    /// Standbys that had every commit promised before.
    pub k: u32,
    /// Who has the WAL of the suspension's term up to here has all that was promised. `None` until commits are let
    /// through: up to then they wait as before.
    pub complete_from: Option<Lsn>,
    /// The key that bounds its time was written.
    pub timed: bool,
    /// A limit was reached: commits wait again, for standbys that are still missing.
    pub ended: Option<String>,
}

impl PolicyRecord {
    /// The quorums that hold: one, or two while voters or k are being changed.
    pub fn quorums(&self) -> impl Iterator<Item = (&[NodeId], u32)> {
        let joint = self.joint.as_ref().map(|j| (j.voters.as_slice(), j.k));
        [(self.voters.as_slice(), self.k)].into_iter().chain(joint)
    }

    /// What commits wait for once all is in place: the quorum being changed to, else the one in force.
    pub fn target(&self) -> (&[NodeId], u32) {
        self.joint.as_ref().map_or((&self.voters, self.k), |j| (&j.voters, j.k))
    }

    /// Does the node count, in any quorum that holds?
    pub fn counts(&self, node: &NodeId) -> bool {
        self.quorums().any(|(voters, _)| voters.contains(node))
    }

    /// m, the number of voters.
    pub fn m(&self) -> usize {
        self.voters.len()
    }

    /// Do commits wait for standbys now?
    pub fn protects(&self) -> bool {
        self.mode != Mode::Async && self.k > 0 && self.suspended.is_none()
    }
}

/// `init`: which node creates the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitRecord {
    /// The node that won the right to run initdb.
    pub node: NodeId,
    /// PostgreSQL's system identifier, once initdb has run.
    pub system_id: Option<String>,
}

/// `members/<node>`: written by the node's agent when it starts and when something changes; not under a lease, so
/// that addresses stay known while a node is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The node.
    pub node: NodeId,
    /// Where its PostgreSQL listens.
    pub postgres: Endpoint,
    /// Where its agent's HTTP listens.
    pub agent: Endpoint,
    /// `server_version_num` of its PostgreSQL binaries, e.g. 150018.
    pub pg_version: u32,
    /// System identifier of its data directory, if it has one.
    pub system_id: Option<String>,
    /// Host identity (boot id), to tell which processes share a host.
    pub host: String,
    /// What it is meant for. Older agents do not tell it.
    #[serde(default)]
    pub standing: Standing,
    /// Its agent has its PostgreSQL stream through a slot where that is a must. Older agents do not tell it, whether they
    /// know of slots or not.
    #[serde(default)]
    pub slots: bool,
    /// The agent process that has written this, by its random id. Older agents do not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

/// What a node is meant for, by its agent's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// Of nodes that hold the same WAL the one with the highest becomes primary.
    pub priority: u32,
    /// Where it is; among equals one in the old primary's zone becomes primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Only an operator who names it makes it primary.
    pub never_promote: bool,
    /// It replays commits so much later, ms (`recovery_min_apply_delay`).
    pub apply_delay_ms: u64,
    /// Proxies may read from it while it is a standby.
    pub serve_reads: bool,
}

impl Default for Standing {
    fn default() -> Self {
        Self { priority: 100, zone: None, never_promote: false, apply_delay_ms: 0, serve_reads: true }
    }
}

impl Standing {
    /// May it become primary without an operator's naming it? A delayed standby would first replay all its delay.
    pub fn is_promoted_by_itself(&self) -> bool {
        !self.never_promote && self.apply_delay_ms == 0
    }

    /// May proxies read from it? A delayed standby shows the past on purpose.
    pub fn serves_reads(&self) -> bool {
        self.serve_reads && self.apply_delay_ms == 0
    }
}

/// `fences/<node>`: an operator took the node out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRecord {
    /// Who asked, as `user@host`.
    pub by: String,
    /// When, for display.
    pub at: WallMillis,
    /// The primary was fenced knowingly: the cluster accepts no writes until unfenced or failed over.
    pub stop_writes: bool,
    /// The node was removed for good: its agent does not register any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

impl FenceRecord {
    /// Stands for one that exists and cannot be read. It holds, but does not stop a primary that runs.
    pub(crate) fn unreadable() -> Self {
        Self { by: "somebody".into(), at: 0, stop_writes: false, removed: false }
    }
}

/// `adopt`: a cluster that ran without agents is being taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptRecord {
    /// Who asked, as `user@host`.
    pub by: String,
    /// The node of the running primary.
    pub primary: NodeId,
    /// PostgreSQL's system identifier.
    pub system_id: String,
    /// The standbys whose turn has come; `None`: all of them, as earlier versions had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<Vec<NodeId>>,
    /// The primary's turn has come, too.
    pub take_primary: bool,
}

impl AdoptRecord {
    /// May this node's agent take over what it is to?
    pub fn is_turn_of(&self, node: &NodeId) -> bool {
        if *node == self.primary {
            return self.take_primary;
        }
        self.turns.as_ref().is_none_or(|turns| turns.contains(node))
    }
}

/// `maintenance/<node>`: an operator works on the node; its PostgreSQL may be stopped and started meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceRecord {
    /// Who asked, as `user@host`.
    pub by: String,
    /// In the operator's words; may be empty.
    pub why: String,
    /// When, for display.
    pub at: WallMillis,
    /// When it ends by itself, for display: the key's lease ends it. `None`: never.
    pub until: Option<WallMillis>,
}

impl MaintenanceRecord {
    /// Stands for one that exists and cannot be read. It holds.
    pub(crate) fn unreadable() -> Self {
        Self { by: "somebody".into(), why: String::new(), at: 0, until: None }
    }
}

/// `pause`: an operator wants no change of primary by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseRecord {
    /// Who asked, as `user@host`.
    pub by: String,
    /// In the operator's words; may be empty.
    pub why: String,
    /// When, for display.
    pub at: WallMillis,
    /// When it ends by itself, for display: the key's lease ends it. `None`: never.
    pub until: Option<WallMillis>,
}

/// `manager`: the leading manager, under its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// The manager's id (a random id per start).
    pub id: String,
    /// Host identity (boot id).
    pub host: String,
    /// Where its admin HTTP listens, for the CLI.
    pub admin: String,
}

/// `proxies/<id>`: what a proxy has applied, under its lease. Managers pass over a term that etcd, restored, does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyRecord {
    /// The newest term all its workers act on.
    pub term: Term,
    /// The oldest epoch of the policy that any of its workers acts on. Older proxies do not tell it.
    #[serde(default)]
    pub epoch: u64,
    /// The gate all its workers have applied, as in `Gate::as_str`.
    pub gate: String,
    /// Sessions busy on the primary.
    pub busy: u64,
    /// PostgreSQL's system identifier of the cluster whose term that is. Older proxies do not tell it.
    #[serde(default)]
    pub system_id: Option<String>,
    /// How long it goes by a view, in milliseconds. Older proxies do not tell it.
    #[serde(default)]
    pub view_ms: u64,
    /// Commits acknowledged with less durability than the cluster's mode, for the last terms that had any.
    #[serde(default)]
    pub below_mode: Vec<TermCommits>,
}

/// `doubts/<term>/<proxy>`: what became of a term's writes whose outcome was in doubt at that proxy, and how many it has
/// acknowledged below the cluster's mode. Not under its lease, and only ever written by it: counts only grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubtsRecord {
    /// The term that took the writes, not the one that tells.
    pub term: Term,
    /// The proxy.
    pub proxy: String,
    /// COMMITs found in the cluster, and answered so.
    pub survived: u64,
    /// COMMITs proven not to be there, and answered 40001.
    pub lost: u64,
    /// Writes answered 08007.
    pub unknown: u64,
    /// Commits acknowledged with less durability than the cluster's mode. Older proxies tell of them in [`ProxyRecord`] only.
    #[serde(default)]
    pub below_mode: u64,
}

impl DoubtsRecord {
    /// Was anything in doubt?
    pub const fn had_any(&self) -> bool {
        self.survived + self.lost + self.unknown > 0
    }
}

/// So many commits in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermCommits {
    /// The term.
    pub term: Term,
    /// How many.
    pub commits: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A term that was only begun has promoted nobody: what it says is what the one before it said.
    #[test]
    fn the_newest_timeline_is_carried_through_terms_that_promoted_nobody() {
        let json = r#"{"term": 8, "phase": "promoting", "coordinator": "m1", "node": "n2", "cause": "failover",
            "prev": null, "fork": null, "xid_bound": null, "record_lsn": null, "policy_epoch": 1}"#;
        let chosen: TermRecord = serde_json::from_str(json).expect("a record without the newest timeline");
        assert_eq!(chosen.may_have_made(), Some(TimelineId(8)));
        let begun = |term, newest_timeline| TermRecord {
            term: Term(term),
            phase: Phase::Recruiting,
            newest_timeline,
            holds_all_of: None,
            holds_written_of: None,
            ..chosen.clone()
        };
        let ninth = begun(9, chosen.may_have_made());
        assert_eq!(begun(10, ninth.may_have_made()).may_have_made(), Some(TimelineId(8)));
        assert_eq!(begun(9, None).may_have_made(), None);
    }

    /// Who was chosen is carried through terms that chose nobody, until one is open or may lose data.
    #[test]
    fn a_choice_in_vain_is_carried_until_something_may_have_come_after_it() {
        let json = r#"{"term": 8, "phase": "opening", "coordinator": "m1", "node": "n2", "cause": "failover", "prev": null,
            "fork": {"timeline": 7, "lsn": "0/5000"}, "xid_bound": null, "record_lsn": null, "policy_epoch": 1}"#;
        let eighth: TermRecord = serde_json::from_str(json).expect("a record of a version that does not carry it");
        let chosen = eighth.left_chosen();
        let told = chosen.as_ref().map(|c| (c.node.as_str(), c.base.lsn, c.policy_epoch));
        assert_eq!(told, Some(("n2", Lsn(0x5000), 1)));
        let begun =
            TermRecord { phase: Phase::Recruiting, node: None, chosen_before: chosen.clone(), ..eighth.clone() };
        assert_eq!(begun.left_chosen(), chosen);
        let lossy = TermRecord { lossy_timelines: vec![TimelineId(8)], ..begun.clone() };
        assert_eq!(lossy.left_chosen(), None);
        // The leave to lose data has chosen nobody.
        assert_eq!(TermRecord { data_loss_allowed: true, ..begun }.left_chosen(), chosen);
        assert_eq!(TermRecord { data_loss_allowed: true, ..eighth.clone() }.left_chosen(), None);
        for phase in [Phase::Active, Phase::Draining] {
            assert_eq!(TermRecord { phase, chosen_before: chosen.clone(), ..eighth.clone() }.left_chosen(), None);
        }
    }
}
