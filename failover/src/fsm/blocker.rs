//! Why the planner does not act: typed, with the numbers that decided. PURE.

use crate::api::Position;
use crate::fsm::stuck::Stuck;
use cluster::{Lsn, NodeId, Term, TimelineId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the planner is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// This manager does not lead.
    Following,
    /// A primary is open and lives.
    Steady,
    /// A change of primary is under way.
    Acting {
        /// The term being made.
        term: Term,
        /// What it waits for now.
        step: String,
    },
    /// Something should happen and may not.
    Hold {
        /// Every reason.
        blockers: Vec<Blocker>,
    },
}

/// A node that does not count, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The node.
    pub node: NodeId,
    /// Why it does not count.
    #[serde(flatten)]
    pub unfit: Unfit,
}

/// Why a node does not count as a recruit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Unfit {
    /// Its agent does not answer.
    Unreachable {
        /// Since when nothing was heard.
        silent_ms: u64,
    },
    /// Taken out by an operator.
    Fenced,
    /// Stopped, while an operator works on it.
    InMaintenance,
    /// It has not replayed past the point at which its data was rewound or copied.
    Quarantined {
        /// It counts again from here.
        floor: Position,
    },
    /// Its data is not this cluster's: the system identifier differs.
    Foreign {
        /// The identifier found there.
        have: String,
    },
    /// Its WAL is of a timeline that no term has made: somebody promoted it.
    PromotedPastUs {
        /// Where its WAL ends.
        have: Position,
        /// The newest timeline that a term may have made.
        newest: TimelineId,
    },
    /// No data directory, or one that is being made.
    NoData,
    /// Stopped; the end of its WAL is known only once it has been recovered.
    NotRecovered,
    /// Has not answered the request to freeze.
    NotFrozen,
    /// Its PostgreSQL answers nothing, so it could not be frozen.
    Hung {
        /// For how long, ms.
        for_ms: u64,
    },
    /// Its data is being examined, rewound or copied.
    Rejoining {
        /// As the agent says.
        what: String,
    },
}

/// A reason not to act, or to refuse an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "blocker", rename_all = "snake_case")]
pub enum Blocker {
    /// This manager does not lead.
    NotLeading,
    /// etcd has not been read yet, or not since a change whose outcome is unknown.
    RecordsUnread,
    /// No term: the cluster has not been created yet.
    NoCluster,
    /// No term, but agents have promised some: etcd has lost what it held.
    RecordsLost {
        /// The highest.
        promised: Term,
    },
    /// An agent has read a newer policy than etcd holds: etcd was restored from a backup. It is written anew once every
    /// member was heard, who may know a newer one still.
    PolicyLost {
        /// The epoch in etcd.
        have: u64,
        /// The newest that an agent knows.
        known: u64,
        /// Members that were not heard.
        unheard: Vec<NodeId>,
    },
    /// Fewer nodes can be frozen than the proof needs.
    TooFewRecruits {
        /// Voters.
        m: usize,
        /// Standbys that hold each acknowledged commit.
        k: u32,
        /// Recruits needed besides the old primary.
        needed: usize,
        /// Recruits there are.
        have: Vec<NodeId>,
        /// Who is missing.
        missing: Vec<Missing>,
    },
    /// Too few agents have lost the primary.
    TooFewObservers {
        /// The primary.
        node: NodeId,
        /// Those that lost it.
        lost: usize,
        /// Those needed.
        needed: usize,
        /// The rest, and why they have no opinion.
        abstained: Vec<String>,
    },
    /// The primary's agent is silent but somebody still reaches the node.
    PrimaryStillAnswers {
        /// The primary.
        node: NodeId,
        /// Who sees what.
        observers: Vec<String>,
    },
    /// This manager has never heard the primary, which alone has every acknowledged commit: it may yet be started.
    PrimaryAwaited {
        /// The primary.
        node: NodeId,
        /// Until it counts as lost.
        left_ms: u64,
    },
    /// The primary's PostgreSQL does not answer, not long enough yet.
    PrimaryHung {
        /// The primary.
        node: NodeId,
        /// So far.
        for_ms: u64,
        /// Counts as dead from here.
        limit_ms: u64,
    },
    /// The primary answers and cannot commit, and a failover would not help.
    PrimaryStuck {
        /// The primary.
        node: NodeId,
        /// What keeps it.
        stuck: Stuck,
        /// What is wrong with the nodes that would take over.
        others: Vec<String>,
    },
    /// The primary writes a timeline that is not its term's.
    PrimaryOnOtherTimeline {
        /// The primary.
        node: NodeId,
        /// Its term.
        term: Term,
        /// What it writes.
        timeline: TimelineId,
    },
    /// An operator stopped writes.
    PrimaryFenced {
        /// The primary.
        node: NodeId,
        /// Who.
        by: String,
    },
    /// An operator wants no change of primary by itself.
    Paused {
        /// Who.
        by: String,
        /// In their words.
        why: String,
    },
    /// The policy is in another epoch than expected.
    OtherEpoch {
        /// Expected.
        expected: u64,
        /// Found.
        current: u64,
    },
    /// The policy says that already, or is being changed to say so.
    PolicyUnchanged {
        /// Its epoch.
        epoch: u64,
        /// The change is not complete yet.
        going_on: bool,
    },
    /// Another change of the policy is unfinished; it can be waited for or taken back.
    PolicyChanging {
        /// Its epoch.
        epoch: u64,
    },
    /// No quorum can be like that.
    QuorumImpossible {
        /// Voters.
        m: usize,
        /// Copies besides the primary's.
        k: u32,
    },
    /// The primary must be among the voters.
    PrimaryMustVote {
        /// The primary.
        node: NodeId,
    },
    /// Too few of those who would vote stream from the primary: commits would hang.
    TooFewStreaming {
        /// Needed.
        needed: u32,
        /// There are.
        have: Vec<NodeId>,
    },
    /// Changes of primary are not paused.
    NotPaused,
    /// Too many automatic failovers lately.
    BudgetSpent {
        /// Failovers in the window.
        failovers: usize,
        /// The window.
        window_ms: u64,
        /// Until one more is allowed; `None` when an earlier leader began the oldest of them.
        next_in_ms: Option<u64>,
    },
    /// Commits are not protected by a quorum: the old primary's lease must be gone first.
    LeaseHeld {
        /// Who holds it.
        node: NodeId,
        /// Its term.
        term: Term,
    },
    /// Some proxies may still send writes to the old primary.
    ProxiesBehind {
        /// The proxies and the term each acts on.
        proxies: Vec<String>,
        /// Until they cannot any more.
        left_ms: u64,
    },
    /// An automatic failover would lose too much.
    LossTooLarge {
        /// Bytes between the most advanced standby and the primary's last known position.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Commits were acknowledged without a standby, so only the old primary has them all.
    Suspended {
        /// Since this position.
        since: Lsn,
        /// Since this term.
        term: Term,
    },
    /// Too few standbys have the new term's record.
    TooFewFollowers {
        /// Needed.
        needed: u32,
        /// There are.
        have: Vec<NodeId>,
        /// What they must have received.
        record_lsn: Lsn,
    },
    /// A change of primary is under way.
    Busy {
        /// What.
        what: String,
    },
    /// The operator's expectation does not hold.
    OtherTerm {
        /// Expected.
        expected: Term,
        /// Found.
        current: Term,
    },
    /// No such node.
    UnknownNode {
        /// The name.
        node: NodeId,
        /// Those that there are. Older managers do not tell.
        #[serde(default)]
        known: Vec<NodeId>,
    },
    /// The node is the primary already.
    AlreadyPrimary {
        /// The node.
        node: NodeId,
    },
    /// The primary does not live, so it cannot help with a switchover.
    PrimaryNotWell {
        /// The primary.
        node: Option<NodeId>,
    },
    /// The node cannot become primary.
    TargetUnfit {
        /// The node and why.
        #[serde(flatten)]
        target: Missing,
    },
    /// The node does not stream the current timeline from the primary.
    TargetNotStreaming {
        /// The node.
        node: NodeId,
    },
    /// The node is too far behind.
    TargetBehind {
        /// The node.
        node: NodeId,
        /// By so many bytes of replay.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The target's WAL ends before what the old primary acknowledged.
    TargetShort {
        /// The node.
        node: NodeId,
        /// Where it ends.
        have: Position,
        /// Where it must end.
        need: Position,
    },
    /// Fencing the node would stop writes.
    WouldStopWrites {
        /// The node.
        node: NodeId,
        /// Standbys that would be left.
        left: usize,
        /// Standbys needed.
        k: u32,
        /// It is the primary.
        primary: bool,
    },
    /// The primary is moved before somebody works on its node.
    PrimaryMustMove {
        /// The node.
        node: NodeId,
    },
    /// Somebody works on the node.
    InMaintenance {
        /// The node.
        node: NodeId,
        /// Who.
        by: String,
    },
    /// Nobody does.
    NotInMaintenance {
        /// The node.
        node: NodeId,
    },
    /// It is fenced already.
    AlreadyFenced {
        /// The node.
        node: NodeId,
    },
    /// It is not fenced.
    NotFenced {
        /// The node.
        node: NodeId,
    },
    /// Only a node that is never promoted by itself would do.
    NeverPromoted {
        /// The node.
        node: NodeId,
        /// Where its WAL ends, once it is frozen.
        have: Option<Position>,
    },
    /// A node that votes must be able to take over.
    DelayedVoter {
        /// The node.
        node: NodeId,
        /// How much later it replays, ms.
        delay_ms: u64,
    },
    /// The new primary was stopped or lost before it was opened.
    CandidateLost {
        /// The node.
        node: NodeId,
    },
    /// The last step failed and is tried again.
    Failing {
        /// What failed and why.
        what: String,
    },
}

impl Blocker {
    /// The kind of [`Self::PrimaryStuck`], which an alert names.
    pub const PRIMARY_STUCK: &'static str = "primary_stuck";

    /// The kind as one snake_case word, for metrics: the serialised tag.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotLeading => "not_leading",
            Self::RecordsUnread => "records_unread",
            Self::NoCluster => "no_cluster",
            Self::RecordsLost { .. } => "records_lost",
            Self::TooFewRecruits { .. } => "too_few_recruits",
            Self::TooFewObservers { .. } => "too_few_observers",
            Self::PrimaryStillAnswers { .. } => "primary_still_answers",
            Self::PrimaryAwaited { .. } => "primary_awaited",
            Self::PrimaryHung { .. } => "primary_hung",
            Self::PrimaryStuck { .. } => Self::PRIMARY_STUCK,
            Self::PrimaryOnOtherTimeline { .. } => "primary_on_other_timeline",
            Self::PrimaryFenced { .. } => "primary_fenced",
            Self::Paused { .. } => "paused",
            Self::NotPaused => "not_paused",
            Self::OtherEpoch { .. } => "other_epoch",
            Self::PolicyUnchanged { .. } => "policy_unchanged",
            Self::PolicyChanging { .. } => "policy_changing",
            Self::QuorumImpossible { .. } => "quorum_impossible",
            Self::PrimaryMustVote { .. } => "primary_must_vote",
            Self::TooFewStreaming { .. } => "too_few_streaming",
            Self::BudgetSpent { .. } => "budget_spent",
            Self::LeaseHeld { .. } => "lease_held",
            Self::PolicyLost { .. } => "policy_lost",
            Self::ProxiesBehind { .. } => "proxies_behind",
            Self::LossTooLarge { .. } => "loss_too_large",
            Self::Suspended { .. } => "suspended",
            Self::TooFewFollowers { .. } => "too_few_followers",
            Self::Busy { .. } => "busy",
            Self::OtherTerm { .. } => "other_term",
            Self::UnknownNode { .. } => "unknown_node",
            Self::AlreadyPrimary { .. } => "already_primary",
            Self::PrimaryNotWell { .. } => "primary_not_well",
            Self::TargetUnfit { .. } => "target_unfit",
            Self::TargetNotStreaming { .. } => "target_not_streaming",
            Self::TargetBehind { .. } => "target_behind",
            Self::TargetShort { .. } => "target_short",
            Self::WouldStopWrites { .. } => "would_stop_writes",
            Self::PrimaryMustMove { .. } => "primary_must_move",
            Self::InMaintenance { .. } => "in_maintenance",
            Self::NotInMaintenance { .. } => "not_in_maintenance",
            Self::AlreadyFenced { .. } => "already_fenced",
            Self::NotFenced { .. } => "not_fenced",
            Self::NeverPromoted { .. } => "never_promoted",
            Self::DelayedVoter { .. } => "delayed_voter",
            Self::CandidateLost { .. } => "candidate_lost",
            Self::Failing { .. } => "failing",
        }
    }
}

/// Names joined by commas, or `none`.
pub fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".into();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.node)?;
        match &self.unfit {
            Unfit::Unreachable { silent_ms } => write!(f, "unreachable for {silent_ms} ms"),
            Unfit::Fenced => f.write_str("fenced"),
            Unfit::InMaintenance => f.write_str("stopped, in maintenance"),
            Unfit::Quarantined { floor } => {
                write!(f, "quarantined until it has replayed {} on timeline {}", floor.lsn, floor.timeline)
            }
            Unfit::Foreign { have } => write!(f, "with another cluster's data (system identifier {have})"),
            Unfit::PromotedPastUs { have, newest } => {
                write!(f, "promoted by somebody else (timeline {}, no term made one after {newest})", have.timeline)
            }
            Unfit::NoData => f.write_str("without data"),
            Unfit::NotRecovered => f.write_str("stopped and not recovered"),
            Unfit::NotFrozen => f.write_str("not frozen yet"),
            Unfit::Hung { for_ms } => write!(f, "without an answer from PostgreSQL for {for_ms} ms"),
            Unfit::Rejoining { what } => write!(f, "{what}"),
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeading => f.write_str("this manager does not lead"),
            Self::RecordsUnread => f.write_str("the records in etcd have not been read"),
            Self::NoCluster => f.write_str("the cluster has not been created yet"),
            Self::RecordsLost { promised } => write!(
                f,
                "etcd knows no term, and agents have promised term {promised}: it has lost what it held; restore a backup, or \
                 make the records anew with `pgtenure rebuild`"
            ),
            Self::TooFewRecruits { m, k, needed, have, missing } => write!(
                f,
                "too few standbys: m={m}, k={k}, {needed} needed, {} there ({}); missing: {}",
                have.len(),
                list(have),
                list(missing)
            ),
            Self::TooFewObservers { node, lost, needed, abstained } => write!(
                f,
                "{node} is silent to this manager, but only {lost} of {needed} observers needed have lost it; {}",
                list(abstained)
            ),
            Self::PrimaryStillAnswers { node, observers } => {
                write!(f, "{node} is silent to this manager but still answers others: {}", list(observers))
            }
            Self::PrimaryAwaited { node, left_ms } => write!(
                f,
                "only {node} has every acknowledged commit and it has not been heard since this manager leads; it is \
                 waited for, {left_ms} ms more"
            ),
            Self::PrimaryHung { node, for_ms, limit_ms } => {
                write!(f, "PostgreSQL of {node} has not answered for {for_ms} ms of {limit_ms} ms")
            }
            Self::PrimaryStuck { node, stuck, others } => {
                write!(f, "{node} cannot commit: {stuck}; a failover would not help: {}", list(others))
            }
            Self::PrimaryOnOtherTimeline { node, term, timeline } => {
                write!(f, "{node} writes timeline {timeline} in term {term}")
            }
            Self::PrimaryFenced { node, by } => write!(f, "writes are stopped: {node} was fenced by {by}"),
            Self::Paused { by, why } if why.is_empty() => {
                write!(f, "changes of primary were paused by {by}; `pgtenure resume` ends that")
            }
            Self::Paused { by, why } => {
                write!(f, "changes of primary were paused by {by} ({why}); `pgtenure resume` ends that")
            }
            Self::OtherEpoch { expected, current } => write!(f, "the policy's epoch is {current}, not {expected}"),
            Self::PolicyUnchanged { epoch, going_on: false } => {
                write!(f, "the policy of epoch {epoch} says that already")
            }
            Self::PolicyUnchanged { epoch, going_on: true } => {
                write!(f, "the policy of epoch {epoch} is being changed to that")
            }
            Self::PolicyChanging { epoch } => write!(
                f,
                "the policy of epoch {epoch} is still being changed: wait for that, or take it back by setting what was"
            ),
            Self::QuorumImpossible { m, k } => {
                write!(f, "m={m}, k={k}: k is from 1 (in async mode from 0) to the number of voters less one")
            }
            Self::PrimaryMustVote { node } => write!(f, "{node} is the primary: it must vote, or be left first"),
            Self::TooFewStreaming { needed, have } => write!(
                f,
                "commits would wait for {needed} standbys and only {} of the voters stream ({})",
                have.len(),
                list(have)
            ),
            Self::NotPaused => f.write_str("changes of primary are not paused"),
            Self::BudgetSpent { failovers, window_ms, next_in_ms: Some(next) } => {
                write!(f, "{failovers} automatic failovers within {window_ms} ms; the next is allowed in {next} ms")
            }
            Self::BudgetSpent { failovers, window_ms, next_in_ms: None } => {
                write!(f, "{failovers} automatic failovers within {window_ms} ms, some of them under an earlier leader")
            }
            Self::PolicyLost { have, known, unheard } => {
                let awaited = if unheard.is_empty() { "nobody".to_owned() } else { list(unheard) };
                write!(
                    f,
                    "etcd was restored from a backup: it holds policy epoch {have} and epoch {known} was in force; \
                     waiting for {awaited}"
                )
            }
            Self::LeaseHeld { node, term } => {
                write!(f, "{node} may still hold the primary's lease of term {term}")
            }
            Self::ProxiesBehind { proxies, left_ms } => {
                write!(f, "proxies that may act on an older term: {}; at most {left_ms} ms more", list(proxies))
            }
            Self::LossTooLarge { bytes, limit } => {
                write!(f, "a failover now would lose {bytes} bytes of WAL, the limit is {limit}")
            }
            Self::Suspended { since, term } => {
                write!(f, "commits past {since} (term {term}) were acknowledged without a standby")
            }
            Self::TooFewFollowers { needed, have, record_lsn } => write!(
                f,
                "{needed} standbys must have received {record_lsn} to open, {} have ({})",
                have.len(),
                list(have)
            ),
            Self::Busy { what } => write!(f, "busy: {what}"),
            Self::OtherTerm { expected, current } => write!(f, "the term is {current}, not {expected}"),
            Self::UnknownNode { node, known } if known.is_empty() => write!(f, "there is no node {node}"),
            Self::UnknownNode { node, known } => write!(f, "there is no node {node}; there are {}", list(known)),
            Self::AlreadyPrimary { node } => write!(f, "{node} is the primary already"),
            Self::PrimaryNotWell { node: Some(node) } => write!(f, "the primary {node} is not well"),
            Self::PrimaryNotWell { node: None } => f.write_str("there is no open primary"),
            Self::TargetUnfit { target } => write!(f, "{target}"),
            Self::TargetNotStreaming { node } => write!(f, "{node} does not stream from the primary"),
            Self::TargetBehind { node, bytes, limit } => {
                write!(f, "{node} is {bytes} bytes behind, the limit is {limit}")
            }
            Self::TargetShort { node, have, need } => {
                write!(f, "{node} ends at {}, the old primary at {}", have.lsn, need.lsn)
            }
            Self::WouldStopWrites { node, primary: true, .. } => {
                write!(f, "{node} is the primary: taking it out stops writes; --stop-writes does it all the same")
            }
            Self::WouldStopWrites { node, left, k, primary: false } => {
                write!(
                    f,
                    "without {node} {left} standbys stream and commits wait for {k}: taking it out stops writes; \
                     --stop-writes does it all the same"
                )
            }
            Self::PrimaryMustMove { node } => write!(f, "{node} is the primary: switch over to another node first"),
            Self::InMaintenance { node, by } => write!(f, "{node} is in maintenance ({by})"),
            Self::NotInMaintenance { node } => write!(f, "{node} is not in maintenance"),
            Self::AlreadyFenced { node } => write!(f, "{node} is fenced already"),
            Self::NotFenced { node } => write!(f, "{node} is not fenced"),
            Self::NeverPromoted { node, have: Some(have) } => write!(
                f,
                "only {node} has everything up to {} on timeline {}, and it is never promoted by itself; an operator can \
                 name it with --to",
                have.lsn, have.timeline
            ),
            Self::NeverPromoted { node, have: None } => {
                write!(f, "{node} is never promoted by itself; an operator can name it with --to")
            }
            Self::DelayedVoter { node, delay_ms } => write!(
                f,
                "{node} replays {delay_ms} ms later (agent.apply_delay): who votes must be able to take over at once"
            ),
            Self::CandidateLost { node } => write!(f, "the new primary {node} was lost before it was opened"),
            Self::Failing { what } => write!(f, "{what}"),
        }
    }
}
