//! What a choice would lose where no quorum confirms commits, and whether that is allowed. PURE.
//!
//! The limits were looked at before the term was begun, by what the nodes reported then. The choice is between those that
//! have answered since, of which the best may be missing: so it is looked at again, by what they have. Nothing is open
//! meanwhile, and who is awaited is asked on.

use crate::api::{Frozen, Position, PostgresState};
use crate::fsm::blocker::Blocker;
use crate::fsm::candidate::Choice;
use crate::fsm::planner::Planner;
use crate::fsm::round::Round;
use crate::record::{Cause, Mode, PolicyRecord, Tenure, Window};
use cluster::timeline::{Fork, History};
use cluster::{Instant, Lsn, NodeId};
use std::cmp::Ordering;

/// An old primary that is waited for has failed to be frozen or recovered so often: its disk is full, say, or a rewind was
/// interrupted there.
const TRIES: u32 = 5;

impl Planner {
    /// Most bytes that an automatic failover may lose where commits are not protected.
    pub(super) const fn loss_limit(&self, policy: &PolicyRecord) -> u64 {
        match policy.mode {
            Mode::Async => self.settings.max_loss,
            Mode::Strict | Mode::Available => policy.limits.max_loss_bytes,
        }
    }

    /// Why this choice may not be made by itself.
    pub(super) fn loss_at_choice(
        &self,
        now: Instant,
        round: &Round,
        choice: &Choice,
        history: Option<&History>,
    ) -> Option<Blocker> {
        if round.policy.protects() || round.begin.allow_loss || round.begin.unlimited {
            return None;
        }
        let prev = round.prev.as_ref().filter(|p| p.node != choice.node)?;
        if self.holds_the_end(round, history, choice.base) {
            return None;
        }
        let heard = self.clock.last(prev.term);
        let written = heard.max(self.left_by(round, prev));
        let lost = written.zip(self.lost_from(prev, history, choice.base)).map(|(last, from)| last.bytes_since(from));
        let limit = self.loss_limit(&round.policy);
        if let Some(bytes) = lost.filter(|bytes| *bytes > limit) {
            return Some(Blocker::LossTooLarge { bytes, limit });
        }
        // It was stopped to lose nothing; or nobody else knows how much it has.
        let complete_only = round.begin.cause == Cause::Switchover || heard.is_none();
        // What it has when it has answered was looked at with the others; once it was rewound, nothing of its own.
        let told = round.frozen.get(&prev.node).is_some_and(|f| f.position.is_some());
        let awaited = complete_only && !told && self.unfit(&prev.node, now).is_none();
        let awaited = awaited && !self.is_hopeless(now, round, &prev.node);
        awaited.then(|| Blocker::OldPrimaryAwaited { node: prev.node.clone() })
    }

    /// Would this choice lose what may be with somebody else only? Not where it has all that the last primary says that it has.
    pub(super) fn doubt_at_choice(&self, round: &Round, choice: &Choice, history: Option<&History>) -> Option<Blocker> {
        let prev = round.prev.as_ref().filter(|p| p.node != choice.node && !round.begin.allow_loss)?;
        let doubt = self.in_doubt_of(prev.term, &round.policy)?;
        // What recruits have counts as their agents' reports do.
        let has = |lsn: Lsn, node: &NodeId| {
            let frozen = round.frozen.get(node).filter(|f| f.quarantine.is_none());
            let on_line = frozen.filter(|f| f.position.is_some_and(|p| p.timeline >= prev.timeline));
            let from = on_line.and_then(|f| self.lost_from(prev, f.history.as_ref(), f.position?));
            from.is_some_and(|from| from >= lsn)
        };
        let known = self.seen.doubts.of(prev.term)?;
        if known.is_over(&round.policy, &prev.node, |node| has(known.lsn, node)) {
            return None;
        }
        let own = round.frozen.get(&prev.node).and_then(|f| f.position).filter(|p| p.timeline == prev.timeline);
        let from = self.lost_from(prev, history, choice.base);
        let has_all = own.zip(from).is_some_and(|(own, from)| from >= own.lsn);
        (!has_all && !self.holds_the_end(round, history, choice.base)).then_some(doubt)
    }

    /// Does the node's agent answer for a PostgreSQL that does not come up? One that is starting has not failed; from the
    /// outside the others cannot be told from one that is silent, which is waited for just as long.
    pub(super) fn is_hopeless(&self, now: Instant, round: &Round, node: &NodeId) -> bool {
        let failed = round.asks.get(node).is_some_and(|ask| ask.failures >= TRIES);
        let state = self.seen.reachable(node, now, &self.settings);
        let starting = state.is_some_and(|s| matches!(s.postgres, PostgresState::Starting));
        failed && !starting && now.since(round.started) >= self.settings.restart_grace
    }

    /// Does a node whose WAL ends at `base` hold all that the last primary had written when it was stopped cleanly? A later
    /// timeline alone does not tell: a term in between may have left that one before its end, and not have been opened.
    pub(super) fn holds_the_end(&self, round: &Round, history: Option<&History>, base: Position) -> bool {
        let (Some(prev), Some(end)) = (&round.prev, &round.journal.clean_end) else { return false };
        let of_prev = end.timeline == prev.timeline && base.timeline >= prev.timeline;
        of_prev && self.lost_from(prev, history, base).is_some_and(|from| from >= end.lsn)
    }

    /// Does it hold all that was found on the last primary's disk since? What was acknowledged by that disk is there then; a commit
    /// with `synchronous_commit = off` need not have come to it.
    pub(super) fn holds_what_was_found(&self, round: &Round, history: Option<&History>, base: Position) -> bool {
        let Some(prev) = &round.prev else { return false };
        let ours = |f: &&Frozen| f.quarantine.is_none() && self.seen.foreign(f.system_id.as_ref()).is_none();
        let found = round.frozen.get(&prev.node).filter(ours).and_then(|f| f.position);
        let Some(found) = found.filter(|p| p.timeline == prev.timeline) else { return false };
        base.timeline >= prev.timeline && self.lost_from(prev, history, base).is_some_and(|from| from >= found.lsn)
    }

    /// The last primary's agent says that it is stopped cleanly, whoever ordered that and whether the answer came: that counts as
    /// much, also once it is started again.
    pub(super) fn note_the_end(&self, round: &mut Round) {
        let end =
            round.prev.as_ref().filter(|_| round.journal.clean_end.is_none()).and_then(|prev| self.clean_end(prev));
        round.journal.clean_end = round.journal.clean_end.or(end);
    }

    /// Where that primary ended, if it is stopped cleanly as its agent said last. No commit lies behind the beginning of that
    /// checkpoint.
    pub(super) fn clean_end(&self, of: &Tenure) -> Option<Fork> {
        let state = self.seen.agents.get(&of.node)?.state.as_ref()?;
        let end = match &state.postgres {
            PostgresState::Stopped { clean: true, was_primary: true, timeline, checkpoint_lsn } => {
                Fork { timeline: *timeline, lsn: *checkpoint_lsn }
            }
            _ => return None, // it runs, or what it had when it was stopped is not known
        };
        let ours = self.seen.foreign(state.system_id.as_ref()).is_none();
        (ours && end.timeline == of.timeline).then_some(end)
    }

    /// What of the last primary's WAL lies past `from`, at least: by what was heard while it wrote, and by what it says of
    /// itself since.
    pub(super) fn window(&self, round: &Round, prev: &Tenure, from: Lsn) -> Option<Window> {
        let heard = self.clock.window(prev.term, from);
        let frozen = round.frozen.get(&prev.node).and_then(|f| f.position);
        let state = self.seen.agents.get(&prev.node).and_then(|a| a.state.as_ref());
        let stopped = state.and_then(|s| match &s.postgres {
            PostgresState::Stopped { timeline, checkpoint_lsn, .. } => {
                Some(Position { timeline: *timeline, lsn: *checkpoint_lsn })
            }
            _ => None, // what runs has no end
        });
        let own = frozen.into_iter().chain(stopped).filter(|p| p.timeline == prev.timeline).map(|p| p.lsn).max();
        let known = heard.as_ref().map_or(from, |w| w.last_known_lsn);
        let Some(last_known_lsn) = own.filter(|own| *own > known) else { return heard };
        let ms = heard.and_then(|w| w.ms);
        Some(Window { fork_lsn: from, last_known_lsn, bytes: last_known_lsn.bytes_since(from), ms })
    }

    /// What there is of the last primary's WAL, at itself or at others: it had written so much at least.
    fn left_by(&self, round: &Round, prev: &Tenure) -> Option<Lsn> {
        let reports = self.seen.agents.values().filter_map(|a| a.state.as_ref());
        let reported = reports.filter_map(|s| match &s.postgres {
            PostgresState::Standby(s) => Some(Position { timeline: s.timeline, lsn: s.receive_lsn }),
            PostgresState::Stopped { timeline, checkpoint_lsn, .. } => {
                Some(Position { timeline: *timeline, lsn: *checkpoint_lsn })
            }
            PostgresState::Primary(_)
            | PostgresState::Starting
            | PostgresState::Absent
            | PostgresState::Hung { .. } => None,
        });
        let ends =
            round.frozen.values().filter_map(|f| f.position).chain(round.begin.end.as_ref().map(|(_, end)| *end));
        reported.chain(ends).filter(|p| p.timeline == prev.timeline).map(|p| p.lsn).max()
    }

    /// From where on a node whose WAL ends at `base` lacks what the last primary wrote.
    pub(super) fn lost_from(&self, prev: &Tenure, history: Option<&History>, base: Position) -> Option<Lsn> {
        match base.timeline.cmp(&prev.timeline) {
            Ordering::Equal => Some(base.lsn),
            Ordering::Greater => history?.forks.iter().find(|f| f.timeline == prev.timeline).map(|f| f.lsn),
            // All that was written in the last term, and before it what the choice had not come to.
            Ordering::Less => Some(self.clock.began(prev.term).map_or(base.lsn, |began| began.min(base.lsn))),
        }
    }
}
