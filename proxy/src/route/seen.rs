//! What a session has read at a standby, and must not miss later.
//!
//! A read shows all that its standby has replayed when it runs: more than the sample by which it was chosen told, and
//! commits that are not acknowledged yet. PostgreSQL makes a commit visible at the primary only when the standbys that it
//! waits for have confirmed it, while one of them may have replayed it already. So once a read was answered at a standby,
//! * the same standby serves on, as long as it was not restarted since;
//! * another one does when it has replayed a position of the primary that was sampled after the answer: no standby has
//!   replayed more than there was by then;
//! * the primary does when everything up to the answer is confirmed, or all that the standby had replayed after it; or in a
//!   later term that has all of it.
//!
//! A later term need not. It has what the standbys had whose votes made it: all that vote, where one of them suffices for a
//! commit by the policy that the term was begun by (`votes`). Elsewhere it is known to have what its primary had, or a standby
//! that follows it and was not restarted since, as nobody follows who has more; and what lies before a position that it has. Of
//! the rest the session is told that it may be lost.

use super::lost::{follows, fork_of};
use super::policy::{Lag, Unfit};
use super::token::Token;
use cluster::lag::{ServerStart, StandbyLag, StandbySample};
use cluster::topology::{Gate, Topology};
use cluster::{Instant, Lsn, NodeId, Term};
use std::time::Duration;

/// How long a read waits for the primary to show what its session has read at a standby. Ordinarily it is a sample or
/// two. Without standbys that confirm, commits wait for good; reads should not, so a read then misses what was never
/// acknowledged.
pub(super) const CONFIRM_WAIT: Duration = Duration::from_secs(5);

/// What an answer shows, as the reads behind it go by that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shows {
    /// Nothing that anybody has written.
    #[default]
    Nothing,
    /// What others have written, but perhaps not all that the session had seen before: it was not promised that.
    Some,
    /// That, and all that the session had seen before.
    All,
}

/// What a session has read at standbys since the primary showed all of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    last: Option<Last>,
}

#[derive(Clone, Debug)]
struct Last {
    /// Who shows all of it, as long as it has been up since `from`; `None` when no standby is known to.
    node: Option<NodeId>,
    from: Instant,
    /// Which server that is; `None` where that is not known.
    started: Option<ServerStart>,
    /// The oldest term whose history it shows.
    term: Term,
    /// The term of the last answer.
    answered_in: Term,
    /// When the last answer came.
    at: Instant,
    /// The first position of the primary sampled since.
    covered: Option<Token>,
    /// The newest term that is known to have all of it.
    kept_in: Term,
    /// In this term a statement has waited in vain for the primary to show it: none does so again.
    given_up: Option<Term>,
    /// The client was told that it was given up in this term.
    told: Option<Term>,
}

/// What a session has read at a standby, and may be in no later term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRead {
    /// Who has shown it; `None` when several have.
    pub node: Option<NodeId>,
    /// In which term.
    pub term: Term,
    /// When.
    pub at: Instant,
    /// What that term wrote from here on is in no later one; `None` when that is not known.
    pub fork: Option<Lsn>,
    /// The term that is open.
    pub open: Term,
}

/// What became of it in a later term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    /// Nobody can tell yet.
    Open,
}

impl Last {
    /// A position that all of it lies before: what the standby that shows it had replayed when sampled after the answer.
    fn replayed(&self, lag: &Lag) -> Option<Lsn> {
        let sample = lag.snapshot().standby(self.node.as_ref()?)?.sample.as_ref()?;
        (sample.sent_at >= self.at && sample.up_since <= self.from).then_some(sample.replay_lsn)
    }

    /// May the standby that showed it have been started anew since, as none is rewound without? One that was out of sight and
    /// tells when it was started need not.
    fn may_be_restarted(&self, sample: &StandbySample) -> bool {
        let same = self.started.is_some() && sample.started == self.started;
        sample.up_since > self.from && !same
    }

    /// Is all of it known to be in the term of `topology`, which may not be open yet?
    fn is_in(&self, topology: &Topology, lag: &Lag) -> bool {
        self.kept_in >= topology.term || self.fate(topology, lag) == Fate::Kept
    }

    /// Has the term of `topology`, which is open, all of it?
    fn fate(&self, topology: &Topology, lag: &Lag) -> Fate {
        let fork = fork_of(topology, self.term);
        let lies_before = |fork| lag.samples.before(self.term, fork).is_some_and(|sampled| self.at <= sampled);
        let kept = self.kept_in >= topology.term
            || [topology.holds_all_of, topology.holds_written_of].contains(&Some(self.term))
            || [topology.holds_all_of, topology.holds_written_of].contains(&Some(self.kept_in))
            || fork.is_some_and(lies_before)
            || follows(topology, self.term)
                && !topology.loss_allowed
                && lag.votes.count_alone(topology, self.node.as_ref());
        let Some(node) = self.node.as_ref().filter(|_| !kept) else {
            return if kept { Fate::Kept } else { Fate::Lost };
        };
        if topology.primary.as_ref().is_some_and(|primary| &primary.node == node) {
            return if follows(topology, self.term) { Fate::Kept } else { Fate::Lost };
        }
        if !topology.standbys.iter().any(|standby| &standby.node == node) {
            return Fate::Lost;
        }
        let of_term = lag.snapshot().term == topology.term;
        match lag.snapshot().standby(node).filter(|_| of_term) {
            Some(StandbyLag { sample: Some(sample), .. }) if self.may_be_restarted(sample) => Fate::Lost,
            Some(StandbyLag { replay_lag: Ok(_), .. }) => Fate::Kept,
            Some(StandbyLag { sample: Some(StandbySample { received_timeline: Some(timeline), .. }), .. })
                if Some(*timeline) == topology.term.timeline() =>
            {
                Fate::Kept
            }
            Some(_) | None => Fate::Open,
        }
    }
}

impl Seen {
    /// A read was answered by that node at `now`, by the server that was started then.
    pub(super) fn at_standby(
        &mut self,
        (node, started): (&NodeId, Option<ServerStart>),
        (asked_in, answered_in): (Term, Term),
        now: Instant,
        shows: Shows,
    ) {
        let (node, from, started) = match (shows, &self.last) {
            (Shows::Nothing, _) => return,
            (Shows::All, _) | (Shows::Some, None) => (Some(node.clone()), now, started),
            // As before: it may have been restarted since.
            (Shows::Some, Some(last)) if last.node.as_ref() == Some(node) => {
                (Some(node.clone()), last.from, started.filter(|_| started == last.started))
            }
            // Neither shows what was read at the other.
            (Shows::Some, Some(_)) => (None, now, None),
        };
        // What was read before at less of a promise is still to be looked for in the terms since.
        let before = self.last.as_ref().filter(|_| shows == Shows::Some);
        let term = before.map_or(asked_in, |last| last.term.min(asked_in));
        let kept_in = before.map_or(asked_in, |last| last.kept_in.min(asked_in));
        let (at, covered, given_up, told) = (now, None, None, None);
        self.last = Some(Last { node, from, started, term, answered_in, at, covered, kept_in, given_up, told });
    }

    /// The primary has answered: positions sampled after that cover all that was seen before. Where it was not made sure
    /// that the primary shows that too, it still has to.
    pub(super) fn at_primary(&mut self, shows: Shows) {
        if shows == Shows::All {
            self.last = None;
        }
    }

    /// Is there anything to be missed?
    pub(super) fn has_any(&self) -> bool {
        self.last.is_some()
    }

    /// Take the position that covers it from the newest sample, if that is new enough. One of a term that may lack it does not.
    pub(super) fn cover(&mut self, topology: &Topology, lag: &Lag) {
        let Some(last) = &mut self.last else { return };
        if last.covered.is_none_or(|covered| covered.term != topology.term) && last.is_in(topology, lag) {
            let sample = lag.primary_of(topology).filter(|s| s.sent_at >= last.at);
            let token = sample.map(|s| Token { term: topology.term, timeline: s.timeline, lsn: s.insert_lsn });
            last.covered = token.or(last.covered);
        }
    }

    /// What covers it; `None` when nothing was seen.
    ///
    /// # Errors
    /// Nothing does yet: when the last answer came.
    pub(super) fn position(&self) -> Result<Option<Token>, Instant> {
        self.last.as_ref().map(|last| last.covered.ok_or(last.at)).transpose()
    }

    /// Does `node` show all of it, as far as is known?
    pub(super) fn is_shown_by(&self, node: &NodeId) -> bool {
        self.last.as_ref().is_some_and(|last| last.node.as_ref() == Some(node))
    }

    /// Who shows all of it, as far as is known.
    pub(super) fn shown_at(&self) -> Option<&NodeId> {
        self.last.as_ref().and_then(|last| last.node.as_ref())
    }

    /// A server that shows at least as much was asked at `asked`, and nothing lies past this position.
    pub(super) fn cover_by(&mut self, asked: Instant, position: Token) {
        if let Some(last) = self.last.as_mut().filter(|last| last.at <= asked) {
            last.covered = Some(last.covered.filter(|known| known.term >= position.term).unwrap_or(position));
        }
    }

    /// May `node` serve the next read?
    ///
    /// # Errors
    /// Why not.
    pub(super) fn allows(
        &self,
        node: &NodeId,
        sample: &StandbySample,
        topology: &Topology,
        lag: &Lag,
    ) -> Result<(), Unfit> {
        let Some(last) = &self.last else { return Ok(()) };
        if last.node.as_ref() == Some(node) && sample.up_since <= last.from {
            return Ok(());
        }
        match last.covered {
            // Who follows a later term's primary has no more than that.
            Some(Token { term, lsn: need, .. }) if term == topology.term && last.is_in(topology, lag) => {
                match sample.replay_lsn {
                    have if have >= need => Ok(()),
                    have => Err(Unfit::ReplayBehind { need, have }),
                }
            }
            Some(_) | None => Err(Unfit::Uncovered { since: last.at }),
        }
    }

    /// Was anything read in a term before this one, of which nobody has looked yet whether it is in this one?
    pub(super) fn precedes(&self, term: Term) -> bool {
        self.last.as_ref().is_some_and(|last| last.kept_in < term)
    }

    /// Is a later term open of which nobody can tell whether it has all of it?
    pub(super) fn is_undecided(&self, topology: &Topology, lag: &Lag) -> bool {
        let opened = !matches!(topology.gate, Gate::Closed(_)) && self.precedes(topology.term);
        opened && self.last.as_ref().is_some_and(|last| last.fate(topology, lag) == Fate::Open)
    }

    /// What may be lost, told once. Nothing while that cannot be told, unless it was waited for `in_vain`.
    pub(super) fn take_lost(&mut self, topology: &Topology, lag: &Lag, in_vain: bool) -> Option<LostRead> {
        if matches!(topology.gate, Gate::Closed(_)) || !self.precedes(topology.term) {
            return None;
        }
        let last = self.last.as_mut()?;
        match last.fate(topology, lag) {
            Fate::Open if !in_vain => None,
            Fate::Kept => {
                last.kept_in = topology.term;
                None
            }
            Fate::Lost | Fate::Open => {
                let Last { node, term, at, .. } = self.last.take()?;
                Some(LostRead { node, term, at, fork: fork_of(topology, term), open: topology.term })
            }
        }
    }

    /// A statement goes to the primary that has waited for long enough: in this term those behind it do not wait again. What it
    /// may miss is not forgotten: where a later term lacks it the session is told.
    pub(super) fn give_up(&mut self, term: Term) {
        if let Some(last) = &mut self.last {
            last.given_up = Some(term);
        }
    }

    /// Was that done in this term? Then nothing waits for the primary to show it.
    pub(super) fn is_given_up(&self, term: Term) -> bool {
        self.last.as_ref().is_some_and(|last| last.given_up == Some(term))
    }

    /// Who has shown what was given up, if that is known, and when: told once.
    pub(super) fn take_untold(&mut self) -> Option<(Option<NodeId>, Instant)> {
        let last = self.last.as_mut().filter(|last| last.given_up.is_some() && last.told != last.given_up)?;
        last.told = last.given_up;
        Some((last.node.clone(), last.at))
    }

    /// Does the primary show all of it, as far as is known?
    ///
    /// # Errors
    /// When the answer came that it may miss.
    pub(super) fn is_at_primary(&self, topology: &Topology, lag: &Lag) -> Result<(), Instant> {
        let Some(last) = self.last.as_ref() else { return Ok(()) };
        if last.term < topology.term && last.fate(topology, lag) == Fate::Open {
            return Err(last.at);
        }
        if last.answered_in < topology.term {
            return Ok(());
        }
        let primary = lag.primary_of(topology);
        let confirmed = primary.and_then(|s| s.confirmed_until).is_some_and(|until| until > last.at);
        // One that waits to be applied may have been replayed nowhere yet, and keep the other waiting for long.
        // Behind a sample from before the answer somebody may have begun to wait whose commit that does not tell of.
        let applied = primary.filter(|s| s.sent_at > last.at).and_then(|s| s.applied_lsn);
        let is_shown = applied.is_some_and(|applied| last.replayed(lag).is_some_and(|shown| shown <= applied));
        if confirmed || is_shown { Ok(()) } else { Err(last.at) }
    }
}
