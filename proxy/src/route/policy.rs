//! Is a standby fit to serve a read now?

use super::promise::{Consistency, Promise};
use super::samples::Samples;
use super::seen::Seen;
use super::token::{After, Gone};
use super::votes::Votes;
use cluster::lag::{Freshness, LagSnapshot, LagUnknown, PrimarySample, ServerStart, StandbyLag, StandbySample};
use cluster::topology::{Gate, Member, Topology};
use cluster::{Instant, Lsn, NodeId, Term};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The newest lag snapshot, and the newest sample of any primary: kept while none answers.
#[derive(Clone, Debug, Default)]
pub struct Lag {
    snapshot: Arc<LagSnapshot>,
    last_primary: Option<LastPrimary>,
    /// The last commit of ours that standbys confirmed: of which term, and when it was sent.
    committed: Option<(Term, Instant)>,
    /// Where the WAL of this term and of those before it ended, and when.
    pub(super) samples: Samples,
    /// Whose WAL a term begins with.
    pub(super) votes: Votes,
    /// The newest term that was seen open, and when etcd was asked that said so first.
    opened: Option<(Term, Instant)>,
}

/// The newest sample of any primary.
#[derive(Clone, Debug)]
struct LastPrimary {
    term: Term,
    sample: PrimarySample,
    /// The standbys that were seen to stream from it in that term, and when they were asked last that did. What others have may
    /// be of another history, in which positions mean something else.
    followers: BTreeMap<NodeId, Instant>,
}

impl LastPrimary {
    /// Is what that standby has replayed of this one's history?
    fn has_follower(&self, node: &NodeId, sample: &StandbySample) -> bool {
        self.followers.get(node).is_some_and(|asked_at| sample.up_since <= *asked_at)
    }
}

impl Lag {
    /// Take over a newer snapshot.
    pub fn update(&mut self, snapshot: Arc<LagSnapshot>) {
        if let Some(sample) = &snapshot.primary {
            let before = self.last_primary.take().filter(|last| last.term == snapshot.term);
            let mut followers = before.map(|last| last.followers).unwrap_or_default();
            let streaming = snapshot.standbys.iter().filter(|standby| standby.replay_lag.is_ok());
            for (node, asked_at) in streaming.filter_map(|s| Some((&s.node, s.sample.as_ref()?.asked_at))) {
                match followers.get_mut(node) {
                    Some(last) => *last = asked_at,
                    None => _ = followers.insert(node.clone(), asked_at),
                }
            }
            self.last_primary = Some(LastPrimary { term: snapshot.term, sample: sample.clone(), followers });
            self.samples.add(snapshot.term, sample.sent_at, sample.insert_lsn);
        }
        self.snapshot = snapshot;
    }

    /// Take over a newer view of the cluster.
    pub fn follow(&mut self, topology: &Topology) {
        self.votes.follow(topology);
        let known = self.opened.is_some_and(|(term, _)| term == topology.term);
        if !known && !matches!(topology.gate, Gate::Closed(_)) {
            self.opened = Some((topology.term, topology.read_at.unwrap_or_default()));
        }
    }

    /// Whose history a standby shows, which may be asked now: a term that begins has none of its own before it is open.
    pub fn shown(&self, topology: &Topology) -> Term {
        match topology.gate {
            Gate::Open | Gate::Draining => topology.term,
            Gate::Closed(_) => self.opened.map_or(topology.term, |(term, _)| term.min(topology.term)),
        }
    }

    /// Since when the newest term is open that was seen so, as far as is known.
    pub(super) fn open_since(&self) -> Instant {
        self.opened.map_or_else(Instant::default, |(_, since)| since)
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> &LagSnapshot {
        &self.snapshot
    }

    /// A commit that was sent in `term` at that time was confirmed by the standbys that commits wait for.
    pub fn committed(&mut self, term: Term, sent_at: Instant) {
        self.committed = self.committed.max(Some((term, sent_at)));
    }

    /// When that was asked or sent which proves that `topology`'s term is not over, besides etcd's readings.
    pub(super) fn proven_at(&self, topology: &Topology) -> Option<Instant> {
        let committed = self.committed.filter(|(term, _)| *term == topology.term).map(|(_, sent_at)| sent_at);
        committed.max(self.streams_at(topology))
    }

    /// When the standbys were asked that prove that `topology`'s term is not over.
    pub(super) fn streams_at(&self, topology: &Topology) -> Option<Instant> {
        self.snapshot.proven_at.filter(|_| self.snapshot.term == topology.term)
    }

    /// Have the standbys that commits wait for flushed all that `topology`'s primary had by `at`? `None`: that primary is not
    /// sampled, or nothing is to wait for standbys, where samples say less.
    pub fn confirms(&self, topology: &Topology, at: Instant) -> Option<bool> {
        let sample = self.primary_of(topology).filter(|_| topology.protected)?;
        Some(sample.flushed_until.is_some_and(|until| until > at))
    }

    /// Is that in no history of `topology`'s primary, as it lies past the end of its WAL that was told at `since` or later?
    pub fn is_past_end(&self, after: &After, topology: &Topology, times: (Instant, Instant)) -> Option<Gone> {
        after.is_past_end(topology, self, times).ok().flatten()
    }

    /// May that standby lack something that `topology`'s primary had when it was sampled last?
    pub fn may_lack(&self, node: &NodeId, topology: &Topology) -> bool {
        let Some(primary) = self.primary_of(topology) else { return true };
        let sample = self.snapshot.standby(node).and_then(|standby| standby.sample.as_ref());
        sample.is_none_or(|sample| sample.replay_lsn < primary.insert_lsn)
    }

    /// Which server answers to a standby's name who samples it. `None`: none does, or it does not tell.
    pub fn answering(&self, node: &NodeId) -> Option<ServerStart> {
        let standby = self.snapshot.standby(node)?;
        let answers = standby.replay_lag != Err(LagUnknown::Unreachable);
        standby.sample.as_ref().filter(|_| answers)?.started
    }

    /// The position of `topology`'s primary, when it was sampled in that very term.
    pub(super) fn primary_of(&self, topology: &Topology) -> Option<&PrimarySample> {
        let primary = topology.primary.as_ref()?;
        let sample = self.snapshot.primary.as_ref()?;
        (self.snapshot.term == topology.term && sample.node == primary.node).then_some(sample)
    }
}

/// What a standby that is fit offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Replay lag plus sample age, or the age of the last primary's sample; `None` when it is not known.
    pub staleness: Option<Duration>,
    /// Its replay position when sampled.
    pub replay_lsn: Lsn,
}

/// Why a standby is not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It has not replayed what the session needs.
    ReplayBehind {
        /// What the session needs.
        need: Lsn,
        /// What it had replayed when sampled.
        have: Lsn,
    },
    /// Its staleness exceeds the promise's `max_replay_lag`.
    Lagging {
        /// Its staleness now.
        staleness: Duration,
        /// The limit.
        budget: Duration,
    },
    /// Its lag is not known.
    Unknown(LagUnknown),
    /// The lag was sampled in another term.
    OtherTerm {
        /// The term in which it was sampled.
        sampled: Term,
        /// The term in force.
        current: Term,
    },
    /// This very statement failed on it just now.
    Avoided,
    /// The session has read elsewhere, and it is not known that this one shows as much.
    Uncovered {
        /// When that read was answered.
        since: Instant,
    },
    /// It sorts text by other rules than the primary.
    SortsOtherwise,
    /// An operator has fenced it.
    Fenced,
}

impl Unfit {
    /// The reason as one snake_case word, for logs and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::ReplayBehind { .. } => "replay_behind",
            Self::Lagging { .. } => "lagging",
            Self::Unknown(why) => why.as_str(),
            Self::OtherTerm { .. } => "other_term",
            Self::Avoided => "avoided",
            Self::Uncovered { .. } => "uncovered",
            Self::SortsOtherwise => "sorts_otherwise",
            Self::Fenced => "fenced",
        }
    }

    /// How far from serving, to name the closest of several.
    pub(super) const fn distance(&self) -> u8 {
        match self {
            Self::ReplayBehind { .. } => 0,
            Self::Uncovered { .. } => 1,
            Self::Lagging { .. } => 2,
            Self::Unknown(_) => 3,
            Self::OtherTerm { .. } => 4,
            Self::Avoided => 5,
            Self::SortsOtherwise => 6,
            Self::Fenced => 7,
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplayBehind { need, have } => write!(f, "which has replayed {have} of {need}"),
            Self::Lagging { staleness, budget } => {
                write!(f, "{} ms stale where {} ms are allowed", staleness.as_millis(), budget.as_millis())
            }
            Self::Unknown(why) => write!(f, "whose lag is not known: {}", why.as_str()),
            Self::OtherTerm { sampled, current } => write!(f, "last sampled in term {sampled}, now is {current}"),
            Self::Uncovered { .. } => write!(f, "of which it is not known that it shows what was read elsewhere"),
            Self::Avoided => write!(f, "which has just failed this statement"),
            Self::SortsOtherwise => write!(f, "which sorts text by other rules than the primary"),
            Self::Fenced => write!(f, "which is fenced"),
        }
    }
}

/// Is `member` fit to serve a read that is promised this, needs `need` and comes after what was `seen`?
///
/// # Errors
/// Why not, with the numbers.
pub(super) fn fit(
    promise: &Promise,
    member: &Member,
    topology: &Topology,
    lag: &Lag,
    (need, seen): (Option<Lsn>, &Seen),
    now: Instant,
) -> Result<Fit, Unfit> {
    if member.fenced {
        return Err(Unfit::Fenced);
    }
    let sampled = lag.snapshot.term;
    let gate = topology.gate_at(now);
    // While a new term begins nothing newer can have been acknowledged; once it is open, figures of the old one
    // may come from a standby that went another way.
    let same_history = sampled == topology.term || (sampled < topology.term && matches!(gate, Gate::Closed(_)));
    if !same_history {
        return Err(Unfit::OtherTerm { sampled, current: topology.term });
    }
    let standby = lag.snapshot.standby(&member.node).ok_or(Unfit::Unknown(LagUnknown::NeverSampled))?;
    let sample = standby.sample.as_ref().ok_or(Unfit::Unknown(unknown_of(standby)))?;
    let replay_lsn = sample.replay_lsn;
    let behind = need.filter(|need| replay_lsn < *need).map(|need| Unfit::ReplayBehind { need, have: replay_lsn });
    if promise.consistency == Consistency::Eventual {
        return match (standby.replay_lag, behind) {
            (
                Err(
                    why @ (LagUnknown::NeverSampled
                    | LagUnknown::Unreachable
                    | LagUnknown::NotInRecovery
                    | LagUnknown::OtherCluster),
                ),
                _,
            ) => Err(Unfit::Unknown(why)),
            // It may have gone another way than the history that the position is in.
            (Err(why @ LagUnknown::StreamBroken), _) if need.is_some() => Err(Unfit::Unknown(why)),
            // Nothing says then which way it went but its own timeline.
            (Err(why @ (LagUnknown::ReplayPaused | LagUnknown::NoPrimarySample)), _)
                if need.is_some() && sample.received_timeline != topology.term.timeline() =>
            {
                Err(Unfit::Unknown(why))
            }
            (_, Some(behind)) => Err(behind),
            (Ok(_) | Err(LagUnknown::StreamBroken | LagUnknown::ReplayPaused | LagUnknown::NoPrimarySample), None) => {
                Ok(Fit { staleness: standby.staleness_at(now).ok(), replay_lsn })
            }
        };
    }
    if standby.detail.sorts_otherwise && !promise.other_collations {
        return Err(Unfit::SortsOtherwise);
    }
    let budget = promise.max_replay_lag;
    let since_view = topology.ends_at().map_or(Duration::ZERO, |end| now.since(end));
    let staleness = staleness(budget, (standby, sample), topology, lag, now)?.max(since_view);
    if staleness > budget {
        return Err(Unfit::Lagging { staleness, budget });
    }
    match promise.consistency {
        Consistency::Eventual | Consistency::Bounded | Consistency::Strong => {}
        Consistency::Session | Consistency::Global => seen.allows(&member.node, sample, topology, lag)?,
    }
    match behind {
        Some(behind) => Err(behind),
        None => Ok(Fit { staleness: Some(staleness), replay_lsn }),
    }
}

/// By the LSN clock; while no primary answers, by the last primary's sample (rule 4).
fn staleness(
    budget: Duration,
    (standby, sample): (&StandbyLag, &StandbySample),
    topology: &Topology,
    lag: &Lag,
    now: Instant,
) -> Result<Duration, Unfit> {
    match standby.freshness_at(now, budget) {
        Freshness::Fresh { staleness } | Freshness::Lagging { staleness } => Ok(staleness),
        Freshness::Unknown { why: why @ (LagUnknown::StreamBroken | LagUnknown::NoPrimarySample) } => {
            let last = lag.last_primary.as_ref().filter(|_| lag.snapshot.primary.is_none());
            // A term that is open may have left behind what the one before it had.
            let closed = matches!(topology.gate_at(now), Gate::Closed(_));
            let last = last.filter(|last| last.term == topology.term || closed);
            let last = last.filter(|last| last.has_follower(&standby.node, sample)).map(|last| &last.sample);
            // As lagmon's clock does it: what the primary had not flushed reaches no standby, so nothing that was
            // acknowledged can wait for it (but with synchronous_commit = off).
            let covered = last.filter(|primary| primary.flush_lsn <= sample.replay_lsn);
            covered.map(|primary| now.since(primary.sent_at)).ok_or(Unfit::Unknown(why))
        }
        Freshness::Unknown {
            why:
                why @ (LagUnknown::NeverSampled
                | LagUnknown::Unreachable
                | LagUnknown::ReplayPaused
                | LagUnknown::NotInRecovery
                | LagUnknown::OtherCluster),
        } => Err(Unfit::Unknown(why)),
    }
}

fn unknown_of(standby: &StandbyLag) -> LagUnknown {
    standby.replay_lag.err().unwrap_or(LagUnknown::NeverSampled)
}
