//! A term being made: its state, the answers it gets, and its ends. PURE.
//!
//! Once T1 is made there is no way back, only forward: to the choice of a node, to a higher term when a step fails, or
//! to another manager's term. Nothing is open to clients meanwhile, so waiting is always safe here.

use crate::api::{Frozen, Position, Promoted};
use crate::fsm::action::{Action, Answer, Command, CommandError, CommandKind, Guard, Reply};
use crate::fsm::blocker::{Blocker, Verdict, list};
use crate::fsm::candidate::{Beside, Choice};
use crate::fsm::catch_up::CatchingUp;
use crate::fsm::observe::At;
use crate::fsm::planner::{Flow, Planner, Stage};
use crate::fsm::report::{observed, phase};
use crate::fsm::sync_set;
use crate::record::{Cause, Chosen, JournalRecord, Phase, PhaseTime, PolicyRecord, Suspension, Tenure, TermRecord};
use cluster::{Instant, Lsn, NodeId, Term, TimelineId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Why and how a term is to begin.
#[derive(Clone, Debug)]
pub(super) struct Begin {
    pub(super) cause: Cause,
    /// The first evidence; the journal counts from here.
    pub(super) began: Instant,
    /// When it was first decided.
    pub(super) detected: Option<Instant>,
    pub(super) evidence: Vec<String>,
    /// What came before T1, for the journal.
    pub(super) steps: Vec<PhaseTime>,
    /// The operator's target.
    pub(super) prefer: Option<NodeId>,
    /// Not this node, when the others suffice.
    pub(super) avoid: Option<NodeId>,
    /// The old primary, to be recovered and promoted again.
    pub(super) home: Option<NodeId>,
    /// The old primary and where it ended, stopped cleanly.
    pub(super) end: Option<(NodeId, Position)>,
    pub(super) allow_loss: bool,
    /// An operator asked for this failover: the limits of what may be lost bind automatic ones only.
    pub(super) unlimited: bool,
    pub(super) not_before: Instant,
    /// Rounds of this change that failed.
    pub(super) failures: u32,
    /// The term of the last of them, and who was left unfenced by it.
    pub(super) given_up: Option<(Term, Option<String>)>,
    /// Its transaction counts as an automatic failover.
    pub(super) counts: bool,
    /// It passes over a term that only a proxy has read of.
    pub(super) for_proxy: bool,
    /// How many of them lost their candidate, and when the last of them did.
    pub(super) lost_candidates: (u32, Instant),
    /// The primary that was to be replaced is well, since then, while something forbids to begin.
    pub(super) back_since: Option<Instant>,
    pub(super) op: Option<Op>,
}

impl Begin {
    /// Where the last primary ended, if it is the one that has told. The term that was begun behind that end may have opened
    /// after it was given up: then another has written since.
    pub(super) fn end_of(&self, last: Option<&Tenure>) -> Option<Position> {
        let (old, end) = self.end.as_ref()?;
        last.is_some_and(|last| last.node == *old && last.timeline == end.timeline).then_some(*end)
    }
}

/// An operator who waits.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub(super) id: u64,
    pub(super) deadline: Instant,
    /// The node asked for.
    pub(super) to: Option<NodeId>,
    /// Who asks.
    pub(super) by: String,
}

impl Op {
    /// A failover was asked for.
    pub(super) fn words(&self, allow_loss: bool) -> Vec<String> {
        let asked = format!("{} asked for a failover", self.by);
        [asked].into_iter().chain(allow_loss.then(|| format!("{} allowed data loss", self.by))).collect()
    }
}

/// A term being made.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) begin: Begin,
    pub(super) term: Term,
    /// `mod_revision` of our term record.
    pub(super) revision: i64,
    pub(super) prev: Option<Tenure>,
    /// See [`TermRecord::newest_timeline`].
    pub(super) newest_timeline: Option<TimelineId>,
    /// See [`TermRecord::holds_all_of`].
    pub(super) holds_all_of: Option<Term>,
    /// See [`TermRecord::holds_written_of`].
    pub(super) holds_written_of: Option<Term>,
    /// See [`TermRecord::history_lost`].
    pub(super) history_lost: bool,
    /// See [`TermRecord::lossy_timelines`].
    pub(super) lossy_timelines: Vec<TimelineId>,
    /// See [`TermRecord::chosen_before`].
    pub(super) chosen_before: Option<Chosen>,
    /// See [`Planner::beside`], as of the last look.
    pub(super) beside: Option<Beside>,
    pub(super) policy: PolicyRecord,
    pub(super) policy_revision: i64,
    pub(super) started: Instant,
    pub(super) step: Step,
    pub(super) asks: BTreeMap<NodeId, Ask>,
    pub(super) frozen: BTreeMap<NodeId, Frozen>,
    pub(super) enough_since: Option<Instant>,
    /// A recruit that receives from another, or has.
    pub(super) catching_up: Option<CatchingUp>,
    /// See [`Round::find_unfenced`], as of the last look.
    pub(super) unfenced: Option<Vec<NodeId>>,
    /// What T3 was last ordered to record.
    pub(super) suspend: Option<Suspension>,
    pub(super) journal: JournalRecord,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Recruiting,
    Choosing(Choice),
    Promoting(Choice),
    Recording(Choice, Promoted),
    Opening { node: NodeId, record_lsn: Lsn, since: Instant, open: Ask },
}

/// A command to one node: sent, to be sent again, or answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Ask {
    pub(super) in_flight: bool,
    pub(super) not_before: Instant,
    pub(super) failures: u32,
    pub(super) recover: bool,
    pub(super) answered: bool,
}

impl Ask {
    pub(super) fn due(&self, now: Instant) -> bool {
        !self.in_flight && !self.answered && now >= self.not_before
    }

    pub(super) fn failed(&mut self, now: Instant, backoff: Duration) {
        (self.in_flight, self.not_before) = (false, now + backoff);
        self.failures += 1;
    }
}

impl Round {
    /// Is it known who was primary last? Not where etcd was restored from a backup and terms have been that it does not tell of.
    pub(super) fn is_prev_known(&self) -> bool {
        !self.history_lost && (self.newest_timeline.is_some() || self.prev.is_none())
    }

    /// An operator made do with recruits that may leave the old primary enough standbys to be acknowledged by: those who may
    /// be that; `None` where a quorum fences. `followers` have promised this term, too. `policy_lost`: commits may have gone
    /// by another one.
    pub(super) fn find_unfenced(&self, followers: &[NodeId], policy_lost: bool) -> Option<Vec<NodeId>> {
        if !self.begin.allow_loss || !(self.policy.protects() || policy_lost) {
            return None;
        }
        // Who is promoted was frozen, by an earlier leader if not by this one.
        let chosen = match &self.step {
            Step::Recruiting => None,
            Step::Choosing(choice) | Step::Promoting(choice) | Step::Recording(choice, _) => Some(&choice.node),
            Step::Opening { node, .. } => Some(node),
        };
        let frozen: BTreeSet<NodeId> = self.frozen.keys().chain(chosen).chain(followers).cloned().collect();
        let suffice = match self.is_prev_known() {
            true => sync_set::sufficient(&self.policy, self.prev.as_ref(), &frozen),
            false => sync_set::sufficient_for_any(&self.policy, &frozen),
        };
        if suffice && !policy_lost {
            return None;
        }
        let voters: BTreeSet<&NodeId> = self.policy.quorums().flat_map(|(voters, _)| voters).collect();
        Some(voters.into_iter().filter(|v| !frozen.contains(*v)).cloned().collect())
    }

    /// The same for who has allowed it.
    pub(super) fn left_unfenced(&self) -> Option<String> {
        let (prev, unfrozen) = (self.prev.as_ref()?, self.unfenced.as_ref()?);
        let unfrozen = if unfrozen.is_empty() { "all that may have a vote".to_owned() } else { list(unfrozen) };
        Some(format!(
            "nobody has frozen {unfrozen}: {} may go on acknowledging to proxies that its agent reaches; make sure that it is down",
            prev.node
        ))
    }

    /// The term of that record, made for `begin`'s reasons, from `step` on.
    pub(super) fn new(
        now: Instant,
        begin: Begin,
        term: At<&TermRecord>,
        policy: At<PolicyRecord>,
        step: Step,
        journal: JournalRecord,
    ) -> Self {
        Self {
            begin,
            term: term.value.term,
            revision: term.revision,
            prev: term.value.prev.clone(),
            newest_timeline: term.value.newest_timeline,
            holds_all_of: term.value.holds_all_of,
            holds_written_of: term.value.holds_written_of,
            history_lost: term.value.history_lost,
            lossy_timelines: term.value.lossy_timelines.clone(),
            chosen_before: term.value.chosen_before.clone(),
            beside: None,
            policy: policy.value,
            policy_revision: policy.revision,
            started: now,
            step,
            asks: BTreeMap::new(),
            frozen: BTreeMap::new(),
            enough_since: None,
            catching_up: None,
            unfenced: None,
            suspend: None,
            journal,
        }
    }

    /// The node that an operator wants as primary, whatever is lost.
    pub(super) fn wanted_with_loss(&self, node: &NodeId) -> bool {
        self.begin.allow_loss && self.begin.prefer.as_ref() == Some(node)
    }

    /// Frozen while its PostgreSQL was stopped: it must be started before its end is known or it can be promoted.
    pub(super) fn needs_recovery(&self, node: &NodeId) -> bool {
        let recovered = self.asks.get(node).is_some_and(|a| a.recover && a.answered);
        !recovered && self.frozen.get(node).is_some_and(|f| f.position.is_none() || f.was_primary)
    }
}

impl Step {
    pub(super) const fn candidate(&self) -> Option<&NodeId> {
        match self {
            Self::Recruiting => None,
            Self::Choosing(c) | Self::Promoting(c) | Self::Recording(c, _) => Some(&c.node),
            Self::Opening { node, .. } => Some(node),
        }
    }
}

impl Planner {
    /// Move the round on.
    pub(super) fn advance_round(&mut self, now: Instant, out: &mut Vec<Action>) -> Flow {
        let Stage::Round(mut round) = std::mem::replace(&mut self.stage, Stage::Idle) else { return Flow::Wait };
        let heeds = self.promised > round.term || self.heeds_proxies_in(now).is_none();
        if let Some(why) = self.known_beyond(round.term).filter(|_| heeds) {
            // A term that etcd does not know: only a higher one will be obeyed.
            return self.give_up(now, *round, &why, None, out);
        }
        if self.was_opened_by_another(&round) {
            if matches!(round.step, Step::Opening { .. }) && self.seen.read_at < Some(self.opened_known_at) {
                // Or the record says so by now, as T3's answer was lost, or another leader had ordered it.
                let step = "reading whether it is open".to_owned();
                self.verdict = Verdict::Acting { term: round.term, step };
                self.stage = Stage::Round(round);
                out.push(Action::Read);
                return Flow::Wait;
            }
            let why = "etcd was restored from a backup: an agent has read that this term was open";
            return self.give_up(now, *round, why, None, out);
        }
        if let Some(why) = self.told_by_a_record(&round) {
            self.history_lost_in = round.term;
            return self.give_up(now, *round, &why, None, out);
        }
        if let Some(why) = self.number_is_taken(now, &round) {
            self.choice_doubted_in = round.term;
            return self.give_up(now, *round, &why, None, out);
        }
        let lost = match &round.step {
            Step::Recruiting => {
                self.recruit(now, &mut round, out);
                None
            }
            Step::Choosing(_) | Step::Promoting(_) | Step::Recording(..) => {
                let step = format!("{} {}", step_word(&round.step), list(&[round.step.candidate().expect("chosen")]));
                self.verdict = Verdict::Acting { term: round.term, step };
                None
            }
            Step::Opening { .. } => self.advance_opening(now, &mut round, out),
        };
        if let Some(node) = lost {
            let why = format!("{node} was lost before it was opened");
            return self.give_up(now, *round, &why, Some(node), out);
        }
        if !matches!(self.stage, Stage::Idle) {
            return Flow::Wait;
        }
        // Also when another change, an operator's pause say, was under way when the promotion was answered.
        let promoted = matches!(round.step, Step::Recording(..));
        self.stage = Stage::Round(round);
        if promoted {
            self.send_record(out);
        }
        Flow::Wait
    }

    pub(super) fn round_record(&self, round: &Round) -> TermRecord {
        TermRecord {
            term: round.term,
            phase: Phase::Recruiting,
            coordinator: self.id.clone(),
            node: None,
            cause: round.begin.cause,
            prev: round.prev.clone(),
            fork: None,
            forks: Vec::new(),
            xid_bound: None,
            xid_bounds: Vec::new(),
            record_lsn: None,
            policy_epoch: round.policy.epoch,
            newest_timeline: round.newest_timeline,
            holds_all_of: round.holds_all_of,
            holds_written_of: round.holds_written_of,
            history_lost: round.history_lost,
            lossy_timelines: round.lossy_timelines.clone(),
            chosen_before: round.chosen_before.clone(),
            data_loss_allowed: round.begin.allow_loss,
        }
    }

    /// A command of the round, or of what precedes it, was answered.
    pub(super) fn take_answer(
        &mut self,
        now: Instant,
        node: &NodeId,
        term: Term,
        kind: CommandKind,
        result: Result<Reply, CommandError>,
        out: &mut Vec<Action>,
    ) {
        if let Err(CommandError::Refused(crate::api::Refused::LowerTerm { promised, .. })) = &result {
            let agent = self.seen.agents.get(node);
            // One with another cluster's data has promised another cluster's term.
            if agent.is_none_or(|a| a.state.is_none() || self.seen.of_this_cluster(a).is_some()) {
                self.promised = self.promised.max(*promised);
            }
            out.push(Action::Read);
        }
        match kind {
            CommandKind::Checkpoint | CommandKind::Stop => self.prelude_answer(now, term, result, out),
            CommandKind::Arm => self.arm_answer(now, term, result),
            CommandKind::Relax => self.relax_answer(now, term, result, out),
            CommandKind::Freeze
            | CommandKind::Recover
            | CommandKind::CatchUp
            | CommandKind::Promote
            | CommandKind::Follow
            | CommandKind::Open => self.round_answer(now, node, term, kind, result, out),
        }
    }

    pub(super) fn round_answer(
        &mut self,
        now: Instant,
        node: &NodeId,
        term: Term,
        kind: CommandKind,
        result: Result<Reply, CommandError>,
        out: &mut Vec<Action>,
    ) {
        let settings = self.settings.clone();
        let Stage::Round(round) = &mut self.stage else { return };
        if round.term != term {
            return;
        }
        match (kind, result) {
            (CommandKind::Freeze | CommandKind::Recover, Ok(Reply::Frozen(frozen))) => {
                let ask = round.asks.entry(node.clone()).or_default();
                // A recovery asked for meanwhile is still to be answered by itself.
                if ask.recover == (kind == CommandKind::Recover) {
                    (ask.in_flight, ask.answered) = (false, true);
                    round.frozen.insert(node.clone(), frozen);
                    self.frozen_late(node, out);
                }
            }
            (CommandKind::CatchUp, Ok(Reply::Frozen(frozen))) => {
                round.caught_up(node);
                round.frozen.insert(node.clone(), frozen);
            }
            (CommandKind::CatchUp, Err(error)) => {
                round.caught_up(node);
                observed(&mut round.journal, format!("catching up of {node}: {error}"));
            }
            (CommandKind::Promote, Ok(Reply::Promoted(promoted))) => self.promoted(now, node, promoted, out),
            (CommandKind::Promote, Err(error)) => self.promote_failed(now, node, &error, out),
            (CommandKind::Open, Ok(Reply::Opened(opened))) => {
                if let Some(record) = &mut self.seen.records.term {
                    (record.value.phase, record.revision) = (Phase::Active, opened.revision);
                }
                // Until the records are read again nobody may be told that commits are protected.
                if let (Some(suspended), Some(policy)) = (round.suspend.take(), &mut self.seen.records.policy) {
                    policy.value.epoch += 1;
                    (policy.value.suspended, policy.revision) = (Some(suspended), opened.revision);
                }
                self.seen.made_at(now, opened.revision);
                out.push(Action::Read);
                self.finish(now, out);
            }
            (CommandKind::Open, Err(error)) => {
                if let Step::Opening { open, .. } = &mut round.step {
                    open.failed(now, settings.backoff(open.failures));
                    observed(&mut round.journal, format!("opening {node}: {error}"));
                }
                out.push(Action::Read);
            }
            (_, Ok(_)) => {
                if let Some(ask) = round.asks.get_mut(node) {
                    (ask.in_flight, ask.answered) = (false, true);
                }
            }
            (_, Err(error)) => {
                let ask = round.asks.entry(node.clone()).or_default();
                ask.failed(now, settings.backoff(ask.failures));
                let unreachable = matches!(error, CommandError::Unreachable(_) | CommandError::NoAnswer(_));
                if !unreachable {
                    observed(&mut round.journal, format!("{} {node}: {error}", kind.as_str()));
                }
            }
        }
    }

    /// Commits of the term that ended, acknowledged below the mode, as the proxies have written them by now.
    pub(super) fn below_mode(&self, journal: &JournalRecord) -> u64 {
        let Some(ended) = journal.ended() else { return 0 };
        let counts = self.seen.records.proxies.values().flat_map(|p| &p.below_mode);
        counts.filter(|c| c.term == ended).map(|c| c.commits).sum()
    }

    /// The term is open and its journal does not say so: whoever led died in between.
    pub(super) fn finish_left_journal(&mut self, out: &mut Vec<Action>) {
        let Some(term) = self.seen.term().filter(|t| t.term > self.told_open) else { return };
        let Some(journal) = self.seen.records.journal.as_ref().filter(|j| j.term == term.term) else { return };
        self.told_open = term.term;
        if journal.finished.as_deref() == Some("active") {
            return;
        }
        let mut journal = journal.clone();
        observed(&mut journal, "it was open when its leader was lost, who has not told since when".into());
        (journal.to, journal.fork, journal.xid_bound) = (term.node.clone(), term.fork, term.xid_bound);
        journal.finished = Some("active".into());
        journal.below_mode = self.below_mode(&journal);
        self.write_journal(&journal, None, out);
    }

    /// T3 is made.
    pub(super) fn finish(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Stage::Round(mut round) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        phase(&mut round.journal, round.begin.began, now, "open");
        round.journal.finished = Some("active".into());
        round.journal.below_mode = self.below_mode(&round.journal);
        self.write_journal(&round.journal, None, out);
        (self.saw_primary, self.told_open) = (round.term, round.term);
        self.seen.term_known_since = now;
        self.rearm_not_before = now + self.settings.retry;
        let unfenced = round.left_unfenced();
        let journal = Box::new(round.journal);
        if let Some(op) = round.begin.op {
            let answer = outcome(&op, round.term, round.begin.home.as_ref(), (&journal, unfenced));
            out.push(Action::Answer { id: op.id, answer: Box::new(answer) });
        }
        out.push(Action::Ended { cause: round.begin.cause, active: true, journal });
    }

    /// End this round; a higher term follows, whose freeze fences whatever this one may have left behind.
    pub(super) fn give_up(
        &mut self,
        now: Instant,
        mut round: Round,
        why: &str,
        failing: Option<NodeId>,
        out: &mut Vec<Action>,
    ) -> Flow {
        let given_up = (round.term, round.left_unfenced());
        round.journal.finished = Some(format!("given up: {why}"));
        // Should the term open after all, that is told in its place.
        self.write_journal(&round.journal, Some(Guard::Term(round.revision)), out);
        out.push(Action::Ended { cause: round.begin.cause, active: false, journal: Box::new(round.journal) });
        let mut begin = round.begin;
        begin.evidence.push(format!("term {} was given up: {why}", round.term));
        begin.not_before = now + self.settings.backoff(begin.failures);
        begin.failures += 1;
        begin.given_up = Some(given_up);
        if let Some(node) = failing {
            begin.lost_candidates = (begin.lost_candidates.0 + 1, now);
            begin.prefer = begin.prefer.filter(|n| *n != node);
            begin.home = begin.home.filter(|n| *n != node);
            begin.avoid = Some(node);
        }
        self.verdict = Verdict::Hold { blockers: vec![Blocker::Failing { what: why.to_owned() }] };
        self.stage = Stage::Intent(Box::new(begin));
        Flow::Wait
    }

    /// The records show that this round's term is no longer ours to make, or that it is open.
    pub(super) fn notice_superseded(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(current) = self.seen.records.term.clone() else { return };
        let Stage::Round(round) = &self.stage else {
            self.prelude_superseded(&current.value, out);
            return;
        };
        let same = current.value.term == round.term;
        if same && current.value.phase == Phase::Active && current.value.node.as_ref() == round.step.candidate() {
            self.finish(now, out);
            return;
        }
        if same && current.revision == round.revision {
            return;
        }
        let Stage::Round(mut round) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let why = format!("superseded by term {} of {}", current.value.term, current.value.coordinator);
        round.journal.finished = Some(why.clone());
        let journal = Box::new(round.journal);
        if let Some(op) = round.begin.op {
            let answer = Answer::Failed { why, journal: Some(journal.clone()) };
            out.push(Action::Answer { id: op.id, answer: Box::new(answer) });
        }
        out.push(Action::Ended { cause: round.begin.cause, active: false, journal });
    }
}

pub(super) fn send(out: &mut Vec<Action>, node: &NodeId, command: Command, within: Duration) {
    out.push(Action::Send { node: node.clone(), command: Box::new(command), within });
}

pub(super) const fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Recruiting => "recruiting",
        Phase::Promoting => "promoting",
        Phase::Opening => "opening",
        Phase::Active => "active",
        Phase::Draining => "draining",
    }
}

const fn step_word(step: &Step) -> &'static str {
    match step {
        Step::Recruiting => "freezing",
        Step::Choosing(_) => "choosing",
        Step::Promoting(_) => "promoting",
        Step::Recording(..) => "recording the fork of",
        Step::Opening { .. } => "opening",
    }
}

/// What an operator is told when the term is open.
pub(super) fn outcome(
    op: &Op,
    term: Term,
    home: Option<&NodeId>,
    (journal, unfenced): (&JournalRecord, Option<String>),
) -> Answer {
    let node = journal.to.clone();
    let name = node.as_ref().map_or_else(String::new, ToString::to_string);
    let detail = list(&journal.observed);
    match (&op.to, &node) {
        (to, Some(n)) if home == Some(n) && to.as_ref() != Some(n) => {
            let why = format!("not changed: {n} is primary again in term {term}; {detail}");
            Answer::Failed { why, journal: Some(Box::new(journal.clone())) }
        }
        (Some(to), Some(n)) if to != n => {
            let why = format!("{n}, not {to}, is primary in term {term}: its WAL ended later; {detail}");
            Answer::Failed { why, journal: Some(Box::new(journal.clone())) }
        }
        _ => {
            let unfenced = unfenced.map(|u| format!("; {u}")).unwrap_or_default();
            let note = format!("{name} is primary in term {term}{unfenced}");
            Answer::Done { term, node, note, journal: Some(Box::new(journal.clone())) }
        }
    }
}
