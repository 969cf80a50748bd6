//! The manager's planner: `step(now, input)` gives the actions to perform. PURE.
//!
//! This file takes inputs in and says which part decides next: `begin` (up to T1), `recruit` (to T2), `opening` (to T3),
//! `switchover` (what precedes T1 when the old primary helps), `rearm` and `operate` (operators' requests). What they
//! share of a term being made is in `round`.
//!
//! Duties of the caller:
//! 1. Call `step` with every input, in order, and with a `Tick` at least every 50 ms; `now` never goes back.
//! 2. Perform every action. Each `Send` and each `Change` is answered by exactly one input, also when it fails.
//! 3. Say `NotLeading` before the managers' lease can have run out.
//!
//! Safety does not rest on these duties: every change of a record names the revisions it was decided on, and every
//! command names its term.

use crate::api::PostgresState;
use crate::fsm::action::{Action, Answer, Input, Operation, RecordPut};
use crate::fsm::blocker::{Blocker, Verdict};
use crate::fsm::change::Pending;
use crate::fsm::maintenance::MaintenanceOp;
use crate::fsm::observe::{At, Health, Observed, Records};
use crate::fsm::operate::FenceOp;
use crate::fsm::pause::PauseOp;
use crate::fsm::policy::PolicyOp;
use crate::fsm::rearm::Rearm;
use crate::fsm::remove::RemoveOp;
use crate::fsm::report::LsnClock;
use crate::fsm::round::{Begin, Round};
use crate::fsm::suspend::Suspend;
use crate::fsm::switchover::Prelude;
use crate::fsm::timers::Settings;
use crate::record::{Cause, JournalRecord, Phase, Tenure, WallMillis};
use cluster::{Instant, NodeId, Term};
use std::collections::VecDeque;

/// The planner of one manager.
#[derive(Debug)]
pub struct Planner {
    pub(super) id: String,
    pub(super) settings: Settings,
    pub(super) leading: Option<i64>,
    pub(super) seen: Observed,
    pub(super) stage: Stage,
    pub(super) pending: Option<Pending>,
    /// The journal that was written last, until it is known to be there.
    pub(super) journal: Option<Pending>,
    pub(super) rearm: Option<Rearm>,
    pub(super) rearm_not_before: Instant,
    pub(super) suspend: Option<Suspend>,
    /// A primary that could not be stopped before a failover is not tried again before.
    pub(super) stop_not_before: Instant,
    /// Since when too large a loss alone has kept that term's primary, which could be recovered, from being replaced.
    pub(super) lossy_since: Option<(Term, Instant)>,
    pub(super) relax_not_before: Instant,
    /// The epoch under which the primary would not let commits through.
    pub(super) relax_refused: u64,
    pub(super) fence_ops: Vec<FenceOp>,
    pub(super) pause_op: Option<PauseOp>,
    pub(super) maintenance_op: Option<MaintenanceOp>,
    pub(super) policy_op: Option<PolicyOp>,
    pub(super) remove_op: Option<RemoveOp>,
    pub(super) clock: LsnClock,
    /// Highest term that any agent says it promised.
    pub(super) promised: Term,
    /// There was a term that etcd does not tell of, as was found out in this one.
    pub(super) history_lost_in: Term,
    /// There may have been one, as was found out in this one: who was chosen before it need not have everything.
    pub(super) choice_doubted_in: Term,
    /// Highest term that any agent says it has read as open.
    pub(super) opened: Term,
    /// When that was first heard.
    pub(super) opened_known_at: Instant,
    /// The term whose primary this manager has seen at work.
    pub(super) saw_primary: Term,
    /// The term whose opening is in its journal, as far as this manager has seen to it.
    pub(super) told_open: Term,
    /// When this leader's automatic failovers began, and their terms; newest last.
    pub(super) spent: VecDeque<(Instant, Term)>,
    /// When it began terms because of what only a proxy had read of, lately.
    pub(super) passed_over: VecDeque<Instant>,
    pub(super) wall: WallMillis,
    pub(super) verdict: Verdict,
    pub(super) last: Option<JournalRecord>,
    /// Since when this leader has known what it decides by: since it leads, or since before, when it was listening already.
    pub(super) leading_since: Instant,
    /// Since when it leads, whatever it had heard before.
    pub(super) led_at: Instant,
    /// Since when agents' reports have come without a gap, and the last of them.
    listening: Option<(Instant, Instant)>,
    pub(super) change_ids: u64,
}

/// What this manager is in the middle of.
#[derive(Debug)]
pub(super) enum Stage {
    /// Nothing.
    Idle,
    /// A switchover or forced failover, before its T1.
    Prelude(Box<Prelude>),
    /// A term is to begin as soon as it may.
    Intent(Box<Begin>),
    /// T1 was sent.
    Beginning(Box<Begin>),
    /// A term is being made.
    Round(Box<Round>),
}

/// Has a step of a stage left something for another step to do at once?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Wait,
    Again,
}

impl Planner {
    /// A planner that does not lead. `id` is this manager's.
    pub fn new(id: impl Into<String>, settings: Settings) -> Self {
        Self {
            id: id.into(),
            settings,
            leading: None,
            seen: Observed::default(),
            stage: Stage::Idle,
            pending: None,
            journal: None,
            rearm: None,
            rearm_not_before: Instant::default(),
            suspend: None,
            stop_not_before: Instant::default(),
            lossy_since: None,
            relax_not_before: Instant::default(),
            relax_refused: 0,
            fence_ops: Vec::new(),
            pause_op: None,
            maintenance_op: None,
            policy_op: None,
            remove_op: None,
            clock: LsnClock::default(),
            promised: Term(0),
            history_lost_in: Term(0),
            choice_doubted_in: Term(0),
            opened: Term(0),
            opened_known_at: Instant::default(),
            saw_primary: Term(0),
            told_open: Term(0),
            spent: VecDeque::new(),
            passed_over: VecDeque::new(),
            wall: 0,
            verdict: Verdict::Following,
            last: None,
            leading_since: Instant::default(),
            led_at: Instant::default(),
            listening: None,
            change_ids: 0,
        }
    }

    /// What it is doing, or why not.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Everything it knows.
    pub fn seen(&self) -> &Observed {
        &self.seen
    }

    /// Does it lead?
    pub fn leads(&self) -> bool {
        self.leading.is_some()
    }

    /// Is a change of primary under way, so that agents should be asked often?
    pub fn hurries(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
            || self.rearm.is_some()
            || self.suspend.is_some()
            || self.policy_op.is_some()
            || !self.fence_ops.is_empty()
    }

    /// Take an input and say what to do.
    pub fn step(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        self.take(now, input, &mut out);
        // Each pass either waits or moves a stage on; the bound only guards against a mistake in a stage.
        for _ in 0..16 {
            if self.advance(now, &mut out) == Flow::Wait {
                break;
            }
        }
        out
    }

    fn take(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Tick { wall } => self.wall = wall,
            Input::Leading { revision } => self.lead(now, revision, out),
            Input::NotLeading => self.follow(out),
            Input::Records { sent_at, records } => self.take_records(now, sent_at, *records, out),
            Input::Report(state) => self.take_report(now, *state),
            Input::Silent { node, refused } => self.seen.silence(now, &node, refused),
            Input::Answered { node, term, kind, result } => self.take_answer(now, &node, term, kind, *result, out),
            Input::Changed { id, outcome } => self.take_outcome(now, id, outcome, out),
            Input::Operator { id, operation } => self.take_operation(now, id, operation, out),
        }
    }

    pub(super) fn lead(&mut self, now: Instant, revision: i64, out: &mut Vec<Action>) {
        if self.leading == Some(revision) {
            return;
        }
        self.follow(out);
        self.leading = Some(revision);
        (self.leading_since, self.led_at) = (now, now);
        match self.listening {
            // Who listened all the time need not hear it all again.
            Some((since, last)) if now.since(last) <= self.settings.settle => {
                self.leading_since = since.max(self.seen.term_known_since);
            }
            _ => self.seen.start_listening(now),
        }
        self.seen.read_at = None;
        // An etcd restored from a backup counts its revisions anew; it also costs the lease, so this is the place.
        self.seen.records.revision = 0;
        out.push(Action::Read);
    }

    fn follow(&mut self, out: &mut Vec<Action>) {
        self.leading = None;
        self.pending = None;
        // Should this manager lead again, it looks whether that was written.
        (self.journal, self.told_open) = (None, Term(0));
        (self.rearm, self.suspend, self.lossy_since) = (None, None, None);
        self.verdict = Verdict::Following;
        let failed = |why: &str| Answer::Failed { why: why.to_owned(), journal: None };
        let why = "this manager lost its leadership; the next leader decides how it goes on";
        for op in std::mem::take(&mut self.fence_ops) {
            out.push(Action::Answer { id: op.id, answer: Box::new(failed(why)) });
        }
        let (paused, policy) = (self.pause_op.take().map(|o| o.id), self.policy_op.take().map(|o| o.id));
        let maintenance = self.maintenance_op.take().map(|o| o.id);
        // While its vote is being taken the removal has the same id as the policy's change, which goes on by the record; what
        // follows it is nobody's.
        let removal = self.remove_op.take().map(|o| o.id);
        let again = "this manager lost its leadership, and the next one removes no node by itself: ask again";
        let asked = |id: &u64| removal != Some(*id);
        for id in paused.into_iter().chain(policy.filter(asked)).chain(maintenance) {
            out.push(Action::Answer { id, answer: Box::new(failed(why)) });
        }
        if let Some(id) = removal {
            out.push(Action::Answer { id, answer: Box::new(failed(again)) });
        }
        if let Some(id) = self.take_stage_operation() {
            out.push(Action::Answer { id, answer: Box::new(failed(why)) });
        }
        self.stage = Stage::Idle;
    }

    fn take_stage_operation(&mut self) -> Option<u64> {
        match &mut self.stage {
            Stage::Idle => None,
            Stage::Prelude(p) => p.op.take().map(|o| o.id),
            Stage::Intent(b) | Stage::Beginning(b) => b.op.take().map(|o| o.id),
            Stage::Round(r) => r.begin.op.take().map(|o| o.id),
        }
    }

    /// A manager that does not lead and would begin a failover: the term whose primary it takes for dead. Not while the
    /// leader has a reason to wait that this one sees too: whatever would keep this one from beginning, or from ending what
    /// it began, work on the node, or a switchover that stops the primary.
    pub fn would_replace(&mut self, now: Instant) -> Option<At<Term>> {
        let following = self.leading.is_none() && self.agents_know_no_more();
        let record = self.seen.records.term.as_ref().filter(|t| following && t.value.phase == Phase::Active)?;
        let (term, node) = (At { value: record.value.term, revision: record.revision }, record.value.node.clone()?);
        if self.seen.maintained(&node) || self.seen.fenced(&node) {
            return None;
        }
        let Health::Dead { since, evidence, restarted } = self.seen.health(now, &self.settings) else { return None };
        let begin = self.begin_for(now, since, evidence, restarted)?;
        (self.obstacles(now, &begin).is_empty() && self.could_open_without(now, &node)).then_some(term)
    }

    fn take_report(&mut self, now: Instant, state: crate::api::AgentState) {
        let since = self.listening.filter(|(_, last)| now.since(*last) <= self.settings.settle).map(|(since, _)| since);
        self.listening = Some((since.unwrap_or(now), now));
        if let (PostgresState::Primary(p), Some(term)) = (&state.postgres, self.seen.term())
            && term.node.as_ref() == Some(&state.node)
            && Some(p.timeline) == term.term.timeline()
        {
            self.saw_primary = term.term;
            // What was written in the last open term is not forgotten for one that may never open.
            if matches!(term.phase, Phase::Active | Phase::Draining) {
                self.clock.sample(term.term, now, p.insert_lsn);
                if let Some(fork) = term.fork {
                    self.clock.begin(fork.lsn);
                }
            }
        }
        self.seen.hear(now, state);
        self.note_known_terms(now);
    }

    /// What agents have promised and read as open. Not before it is known whose data is this cluster's: what another one's
    /// agent remembers would never be forgotten again.
    fn note_known_terms(&mut self, now: Instant) {
        if self.seen.read_at.is_none() || self.seen.term().is_none() {
            return;
        }
        let told = || self.seen.agents.values().filter_map(|a| self.seen.of_this_cluster(a));
        let promised = told().map(|s| s.promise).max().unwrap_or_default();
        let opened = told().map(|s| s.opened).max().unwrap_or_default();
        self.promised = self.promised.max(promised);
        if opened > self.opened {
            (self.opened, self.opened_known_at) = (opened, now);
        }
    }

    fn take_records(&mut self, now: Instant, sent_at: Instant, records: Records, out: &mut Vec<Action>) {
        if self.leading.is_none() {
            // Nothing is decided here; and an etcd that was restored, or is empty, counts its revisions anew.
            self.seen.records.revision = 0;
        }
        if records.revision < self.seen.records.revision {
            self.take_older(now, sent_at, out);
            return;
        }
        // One of ours that is not there yet tells more than what etcd has of that term.
        let ours = self.journal.as_ref().and_then(|p| p.change.puts.first());
        let unwritten = |j: &JournalRecord| matches!(ours, Some(RecordPut::Journal(own)) if own.term == j.term);
        if let Some(journal) = records.journal.as_ref().filter(|j| !unwritten(j)) {
            self.last = Some(journal.clone());
        }
        self.note_term(now, &records);
        self.seen.read(now, sent_at, records);
        self.note_known_terms(now);
        self.settle_pending(now, sent_at, out);
        if self.pending.is_none() {
            self.notice_superseded(now, out);
        }
    }

    /// A term that was made or changed: agents are to be heard again before anything is concluded from it. Where another
    /// manager did it, all of them.
    fn note_term(&mut self, now: Instant, records: &Records) {
        let known = self.seen.records.term.as_ref().map(|t| t.revision);
        let ours = records.term.as_ref().is_some_and(|t| t.value.coordinator == self.id);
        let ours = ours && self.leading.is_some() && self.seen.read_at.is_some();
        if records.term.as_ref().map(|t| t.revision) == known {
            return;
        }
        self.seen.term_known_since = now;
        if !ours {
            self.leading_since = self.leading_since.max(now);
        }
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) -> Flow {
        if self.leading.is_none() {
            return Flow::Wait;
        }
        if self.seen.read_at.is_none() {
            self.verdict = Verdict::Hold { blockers: vec![Blocker::RecordsUnread] };
            return Flow::Wait;
        }
        self.advance_fences(now, out);
        self.advance_pause(now, out);
        self.advance_maintenance(now, out);
        self.advance_policy(now, out);
        self.advance_remove(now, out);
        self.retry_changes(now, out);
        if self.pending.is_some() {
            self.expire_operation(now, out);
            return Flow::Wait;
        }
        self.restore_policy(now, out);
        if self.pending.is_some() {
            return Flow::Wait;
        }
        self.expire_operation(now, out);
        match self.stage {
            Stage::Idle => self.advance_idle(now, out),
            Stage::Prelude(_) => self.advance_prelude(now, out),
            Stage::Intent(_) => self.advance_intent(now, out),
            Stage::Beginning(_) => Flow::Wait,
            Stage::Round(_) => self.advance_round(now, out),
        }
    }

    fn advance_idle(&mut self, now: Instant, out: &mut Vec<Action>) -> Flow {
        let Some(term) = self.seen.term().cloned() else {
            self.verdict = Verdict::Hold { blockers: vec![self.no_cluster()] };
            return Flow::Wait;
        };
        match term.phase {
            Phase::Active | Phase::Draining => self.advance_told_open(now, term.phase, out),
            // Another manager's round, or one of ours whose end we lost: only an opened door can be walked through.
            Phase::Opening => self.advance_found_opening(now, &term, out),
            Phase::Recruiting | Phase::Promoting => self.advance_found_round(now, &term, out),
        }
    }

    pub(super) fn advance_open(&mut self, now: Instant, phase: Phase, out: &mut Vec<Action>) -> Flow {
        let health = self.seen.health(now, &self.settings);
        if phase == Phase::Draining
            && let Some(step) = self.awaited_behind_gate(now, &health)
        {
            let term = self.seen.term().map_or(Term(0), |t| t.term);
            self.verdict = Verdict::Acting { term, step: step.to_owned() };
            return Flow::Wait;
        }
        match health {
            Health::Well if phase == Phase::Draining => {
                self.undrain(out);
                Flow::Wait
            }
            // It may serve, and whoever closed its gate has given up.
            Health::Unsure(_) if phase == Phase::Draining && now.since(self.leading_since) >= self.settings.settle => {
                self.undrain(out);
                Flow::Wait
            }
            Health::Well => {
                self.verdict = Verdict::Steady;
                self.finish_left_journal(out);
                self.advance_rearm(now, out);
                self.advance_suspend(now, out);
                Flow::Wait
            }
            Health::Unsure(blockers) => {
                let starved = blockers.iter().any(|b| matches!(b, Blocker::PrimaryStuck { .. }));
                self.verdict = Verdict::Hold { blockers };
                if starved {
                    self.advance_suspend(now, out);
                }
                Flow::Wait
            }
            Health::Dead { since, evidence, restarted } => {
                if now.since(self.leading_since) < self.settings.settle {
                    return Flow::Wait;
                }
                (self.rearm, self.suspend) = (None, None);
                self.begin_by_evidence(now, since, evidence, restarted, out)
            }
        }
    }

    /// Give an operator whose time is up an answer; the work itself goes on.
    fn expire_operation(&mut self, now: Instant, out: &mut Vec<Action>) {
        let (op, journal) = match &mut self.stage {
            Stage::Idle | Stage::Prelude(_) => return, // a prelude is bounded step by step
            Stage::Intent(b) | Stage::Beginning(b) => (&mut b.op, None),
            Stage::Round(r) => (&mut r.begin.op, Some(Box::new(r.journal.clone()))),
        };
        if op.as_ref().is_some_and(|o| now >= o.deadline) {
            let op = op.take().expect("just seen");
            let standing = match &self.verdict {
                Verdict::Hold { blockers } => format!("held by: {}", crate::fsm::blocker::list(blockers)),
                Verdict::Acting { term, step } => format!("term {term}: {step}"),
                Verdict::Following | Verdict::Steady => "nothing is under way".into(),
            };
            let why = format!("not finished in time and still going on; {standing}");
            out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal }) });
        }
    }

    /// The last tenure whose commits a new term must contain.
    pub(super) fn last_tenure(&self) -> Option<Tenure> {
        let term = self.seen.term()?;
        match (term.phase, &term.node, term.term.timeline()) {
            (Phase::Active | Phase::Draining, Some(node), Some(timeline)) => {
                Some(Tenure { term: term.term, node: node.clone(), timeline })
            }
            _ => term.prev.clone(), // never opened: nothing was acknowledged in it
        }
    }

    /// The next term's number: above the record's, every promise and every term that was open.
    pub(super) fn next_term(&self) -> Term {
        let current = self.seen.term().map_or(Term(0), |t| t.term);
        current.max(self.promised).max(self.opened).max(self.proxied().map_or(Term(0), |(_, term)| term)).next()
    }

    fn take_operation(&mut self, now: Instant, id: u64, operation: Operation, out: &mut Vec<Action>) {
        let refusal = if self.leading.is_none() {
            Some(Blocker::NotLeading)
        } else if self.seen.read_at.is_none() {
            Some(Blocker::RecordsUnread)
        } else {
            None
        };
        match refusal {
            Some(blocker) => {
                out.push(Action::Answer { id, answer: Box::new(Answer::Refused(vec![blocker])) });
            }
            None => self.operate(now, id, operation, out),
        }
    }

    /// May automatic failovers go on? Otherwise the blocker. Those that earlier leaders began count too: etcd keeps them
    /// for the window's length.
    pub(super) fn budget(&mut self, now: Instant) -> Option<Blocker> {
        let window = self.settings.failover_window;
        while self.spent.front().is_some_and(|(at, _)| now.since(*at) >= window) {
            self.spent.pop_front();
        }
        let spent = self.failovers_spent(now);
        if spent < self.settings.failover_budget {
            return None;
        }
        let ms = crate::fsm::observe::millis;
        let oldest = self.spent.front().filter(|_| self.spent.len() == spent);
        let next_in_ms = oldest.map(|(at, _)| ms(window.saturating_sub(now.since(*at))));
        Some(Blocker::BudgetSpent { failovers: spent, window_ms: ms(window), next_in_ms })
    }

    /// Automatic failovers within the window, ours and earlier leaders'.
    pub(super) fn failovers_spent(&self, now: Instant) -> usize {
        let ours = self.spent.iter().filter(|(at, _)| now.since(*at) < self.settings.failover_window);
        let mine: Vec<Term> = ours.map(|(_, term)| *term).collect();
        let gone = |t: &&Term| !self.spent.iter().any(|(_, mine)| mine == *t);
        mine.len() + self.seen.records.spent.iter().filter(gone).count()
    }

    /// A begin for reasons seen rather than asked for.
    pub(super) fn automatic(cause: Cause, began: Instant, evidence: Vec<String>) -> Begin {
        Begin {
            cause,
            began,
            detected: None,
            evidence,
            steps: Vec::new(),
            prefer: None,
            avoid: None,
            home: None,
            end: None,
            allow_loss: false,
            unlimited: cause == Cause::OperatorFailover,
            not_before: Instant::default(),
            failures: 0,
            given_up: None,
            counts: false,
            for_proxy: false,
            lost_candidates: (0, Instant::default()),
            back_since: None,
            op: None,
        }
    }

    /// Why there is no term.
    pub(super) fn no_cluster(&self) -> Blocker {
        let told = self.seen.agents.values().filter_map(|a| self.seen.of_this_cluster(a)).map(|s| s.promise);
        match told.max().unwrap_or_default().max(self.promised) {
            Term(0) => Blocker::NoCluster,
            promised => Blocker::RecordsLost { promised },
        }
    }

    /// An operator named a node that is no member.
    pub(super) fn no_such(&self, node: &NodeId) -> Blocker {
        Blocker::UnknownNode { node: node.clone(), known: self.seen.records.members.keys().cloned().collect() }
    }

    /// The node's name if it is the node of the current term.
    pub(super) fn is_term_node(&self, node: &NodeId) -> bool {
        self.seen.term().and_then(|t| t.node.as_ref()) == Some(node)
    }
}
