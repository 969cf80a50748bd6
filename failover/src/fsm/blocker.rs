//! Why the planner does not act: typed, with the numbers that decided. PURE.

mod words;

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
    /// Another agent lives under its name: which of them has what the node acknowledged nobody can tell.
    Namesake {
        /// As the agent says.
        what: String,
    },
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
    /// Its WAL is of a term that was allowed to lose data and never opened.
    PromotedWithLoss {
        /// Where its WAL ends.
        have: Position,
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
    /// What the primary's agent said last may be of a time before the term.
    PrimaryUnheard {
        /// The primary.
        node: NodeId,
        /// The term.
        term: Term,
    },
    /// The primary's PostgreSQL does not answer, not long enough yet.
    PrimaryHung {
        /// The primary.
        node: NodeId,
        /// So far.
        for_ms: u64,
        /// Counts as dead from here.
        limit_ms: u64,
        /// It is, and a failover would not help: what is wrong with the nodes that would take over.
        others: Vec<String>,
    },
    /// The primary's PostgreSQL does not answer its own agent, but others.
    PrimaryAnswersOthers {
        /// The primary.
        node: NodeId,
        /// So far.
        for_ms: u64,
        /// Who sees what.
        observers: Vec<String>,
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
    /// Where commits wait for two standbys or more these stream through slots, and a node could not have them all.
    TooFewSlots {
        /// The node.
        node: NodeId,
        /// Needed: one for each other member.
        needed: usize,
        /// There could be; `None` where its agent knows of no slots.
        room: Option<usize>,
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
    /// A proxy has read of a term that etcd, restored from a backup, does not tell of: it ignores every term up to it, and one above
    /// it may not begin.
    ProxyAhead {
        /// The proxy.
        proxy: String,
        /// What it has read of.
        term: Term,
        /// Terms were begun for proxies just before: until one more is. `None`: something else forbids it.
        next_in_ms: Option<u64>,
    },
    /// One candidate after the other could not be promoted or was lost before it was opened.
    RoundsFailed {
        /// Rounds that ended so.
        rounds: u32,
        /// Until one more is tried.
        next_in_ms: u64,
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
    /// Too few nodes were frozen to fence an old primary of a strict cluster: proxies beside it act on views of its term.
    StrictViews {
        /// Who was not frozen.
        unfrozen: Vec<NodeId>,
        /// Until the views have ended that nobody vouches for.
        left_ms: u64,
    },
    /// An automatic failover would lose too much.
    LossTooLarge {
        /// Bytes between the most advanced standby and the primary's last known position.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The old primary is there and has everything; how much another lacks is not known, or nobody wanted to lose any.
    OldPrimaryAwaited {
        /// The old primary.
        node: NodeId,
    },
    /// Commits were acknowledged without a standby, so only the old primary has them all.
    Suspended {
        /// Since this position.
        since: Lsn,
        /// Since this term.
        term: Term,
    },
    /// Who was chosen in a term that was never opened has every acknowledged commit, and would suffice beside those in quarantine.
    ChosenAwaited {
        /// The node.
        node: NodeId,
        /// Where its WAL ended when it was chosen.
        base: Position,
        /// Where it ends now, if that is before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        have: Option<Position>,
    },
    /// Somebody who is none of the nodes, or a second one under a node's name, has confirmed commits that no other is known
    /// to have.
    CommitsInDoubt {
        /// The names.
        nodes: Vec<NodeId>,
        /// Up to here at least.
        lsn: Lsn,
        /// Of this term.
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
    /// An operator named a node without a vote, and allowed no data loss.
    TargetDoesNotVote {
        /// That node.
        node: NodeId,
    },
    /// Nobody else could take over: only the primary votes.
    NoOtherVoter {
        /// The primary.
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
    /// One timeline number was begun at two places, as etcd was restored from a backup: where these end does not tell which of
    /// them has what was acknowledged.
    BegunTwice {
        /// The timeline.
        timeline: TimelineId,
        /// Who has the one and the other.
        nodes: Vec<NodeId>,
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
    /// The kind of [`Self::TooFewRecruits`], one of those of another alert.
    pub const TOO_FEW_RECRUITS: &'static str = "too_few_recruits";

    /// The kind as one snake_case word, for metrics: the serialised tag.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotLeading => "not_leading",
            Self::RecordsUnread => "records_unread",
            Self::NoCluster => "no_cluster",
            Self::RecordsLost { .. } => "records_lost",
            Self::TooFewRecruits { .. } => Self::TOO_FEW_RECRUITS,
            Self::TooFewObservers { .. } => "too_few_observers",
            Self::PrimaryStillAnswers { .. } => "primary_still_answers",
            Self::PrimaryAwaited { .. } => "primary_awaited",
            Self::PrimaryUnheard { .. } => "primary_unheard",
            Self::PrimaryHung { .. } => "primary_hung",
            Self::PrimaryAnswersOthers { .. } => "primary_answers_others",
            Self::PrimaryStuck { .. } => Self::PRIMARY_STUCK,
            Self::PrimaryOnOtherTimeline { .. } => "primary_on_other_timeline",
            Self::PrimaryFenced { .. } => "primary_fenced",
            Self::Paused { .. } => "paused",
            Self::TooFewSlots { .. } => "too_few_slots",
            Self::NotPaused => "not_paused",
            Self::OtherEpoch { .. } => "other_epoch",
            Self::PolicyUnchanged { .. } => "policy_unchanged",
            Self::PolicyChanging { .. } => "policy_changing",
            Self::QuorumImpossible { .. } => "quorum_impossible",
            Self::PrimaryMustVote { .. } => "primary_must_vote",
            Self::TooFewStreaming { .. } => "too_few_streaming",
            Self::BudgetSpent { .. } => "budget_spent",
            Self::ProxyAhead { .. } => "proxy_ahead",
            Self::RoundsFailed { .. } => "rounds_failed",
            Self::LeaseHeld { .. } => "lease_held",
            Self::PolicyLost { .. } => "policy_lost",
            Self::ProxiesBehind { .. } => "proxies_behind",
            Self::StrictViews { .. } => "strict_views",
            Self::LossTooLarge { .. } => "loss_too_large",
            Self::OldPrimaryAwaited { .. } => "old_primary_awaited",
            Self::Suspended { .. } => "suspended",
            Self::ChosenAwaited { .. } => "chosen_awaited",
            Self::CommitsInDoubt { .. } => "commits_in_doubt",
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
            Self::TargetDoesNotVote { .. } => "target_does_not_vote",
            Self::NoOtherVoter { .. } => "no_other_voter",
            Self::DelayedVoter { .. } => "delayed_voter",
            Self::BegunTwice { .. } => "begun_twice",
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
