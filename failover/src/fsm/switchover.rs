//! What precedes T1 when the old primary can help: checkpoint, drain, clean stop. PURE.
//!
//! Up to the order to stop, everything can be undone in the same term, because the primary was never fenced. Once it
//! may have been stopped, the only way on is a new term: for the target, or for the old primary again.

use crate::api::{Checkpoint, PostgresState, Stop};
use crate::fsm::action::{Action, Answer, ChangeKind, Command, CommandError, Guard, RecordPut, Reply};
use crate::fsm::blocker::{Blocker, Verdict, list};
use crate::fsm::observe::{Health, millis};
use crate::fsm::planner::{Flow, Planner, Stage};
use crate::fsm::report::step;
use crate::fsm::round::{Begin, Op};
use crate::fsm::timers::Settings;
use crate::record::{Cause, Phase, PhaseTime, TermRecord};
use cluster::{Instant, NodeId, Term};
use std::time::Duration;

/// The steps before T1.
#[derive(Debug)]
pub(super) struct Prelude {
    /// Whose request it is; none of a failover for what was seen.
    pub(super) op: Option<Op>,
    pub(super) term: Term,
    pub(super) primary: NodeId,
    pub(super) began: Instant,
    /// When what was seen sufficed; none of an operator's request.
    pub(super) detected: Option<Instant>,
    /// The target of a switchover; of a forced failover only if one was named.
    pub(super) target: Option<NodeId>,
    /// A failover stops the old primary hard, without a drain, and does not return to it.
    pub(super) forced: Option<Forced>,
    pub(super) step: PreludeStep,
    /// When it was first not known whether the order to stop was carried out.
    pub(super) unanswered: Option<Instant>,
    /// When it was first ordered to stop.
    pub(super) ordered: Option<Instant>,
    /// When the steps before were over.
    pub(super) steps: Vec<PhaseTime>,
    pub(super) evidence: Vec<String>,
}

/// What a failover that stops the old primary allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forced {
    pub(super) allow_loss: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum PreludeStep {
    /// CHECKPOINT was ordered.
    Checkpointing,
    /// The gate is to be closed for new transactions, as soon as no other change is under way.
    ToCloseGate,
    /// It is being closed.
    ClosingGate,
    /// Running transactions end.
    Draining { since: Instant },
    /// The primary is to be stopped, not before that.
    ToStop { not_before: Instant },
    /// The order to stop was sent.
    Stopping,
}

impl Prelude {
    /// An operator asks for what is under way by itself.
    pub(super) fn join(&mut self, op: Op, to: Option<NodeId>, allow_loss: bool) {
        self.evidence.extend(op.words(allow_loss));
        self.op = Some(op);
        self.target = to.or(self.target.take());
        if let Some(forced) = &mut self.forced {
            forced.allow_loss |= allow_loss;
        }
    }

    /// An order to stop that may have been carried out is given again: who is stopped already says so, and where it ended. A
    /// failover does not wait for that.
    fn may_ask_again(&self, now: Instant, settings: &Settings) -> bool {
        self.forced.is_none() && self.ordered.is_none_or(|since| now.since(since) < settings.stop_timeout)
    }

    fn ask_again(&mut self, now: Instant, settings: &Settings) {
        if self.unanswered.is_none() {
            self.evidence.push(format!("{} did not answer the order to stop, which is given again", self.primary));
        }
        self.unanswered.get_or_insert(now);
        self.step = PreludeStep::ToStop { not_before: now + settings.retry };
    }
}

impl Planner {
    /// Move the prelude on. A primary that dies meanwhile is replaced all the same.
    pub(super) fn advance_prelude(&mut self, now: Instant, out: &mut Vec<Action>) -> Flow {
        let Stage::Prelude(prelude) = &self.stage else { return Flow::Wait };
        let term = prelude.term;
        self.verdict = Verdict::Acting { term, step: prelude_word(prelude) };
        // Its answer tells more than its death; from an agent that is lost, too, none comes for long.
        let stopping = matches!(prelude.step, PreludeStep::ToStop { .. } | PreludeStep::Stopping)
            && self.seen.reachable(&prelude.primary, now, &self.settings).is_some();
        // What hangs is still to be stopped.
        let runs = prelude.forced.is_some() && self.seen.at_work(&prelude.primary, now, &self.settings);
        if !(stopping || runs)
            && let Health::Dead { since, evidence, .. } = self.seen.health(now, &self.settings)
        {
            return self.prelude_overtaken(since, evidence);
        }
        let Stage::Prelude(prelude) = &mut self.stage else { return Flow::Wait };
        match prelude.step {
            PreludeStep::Checkpointing | PreludeStep::ClosingGate | PreludeStep::Stopping => Flow::Wait,
            PreludeStep::ToCloseGate => {
                prelude.step = PreludeStep::ClosingGate;
                self.send_gate(ChangeKind::Drain, Phase::Draining, out);
                Flow::Wait
            }
            PreludeStep::Draining { since } => {
                let waited = now.since(since);
                let busy = busy_proxies(term, &self.seen.records.proxies);
                if busy.is_empty() || waited >= self.settings.drain_timeout {
                    let note = format!("after {} ms not drained: {}", millis(waited), list(&busy));
                    prelude.evidence.extend((!busy.is_empty()).then_some(note));
                    step(&mut prelude.steps, prelude.began, now, "drained");
                    prelude.step = PreludeStep::ToStop { not_before: now };
                    return Flow::Again;
                }
                self.verdict = Verdict::Acting { term, step: format!("draining: {}", list(&busy)) };
                Flow::Wait
            }
            PreludeStep::ToStop { not_before } if now < not_before => Flow::Wait,
            PreludeStep::ToStop { .. } => {
                let bound = if prelude.forced.is_some() { Duration::ZERO } else { self.settings.stop_timeout };
                prelude.step = PreludeStep::Stopping;
                let node = prelude.primary.clone();
                // Nobody asked for it: if it answers again when the order comes, there is no reason any more.
                let hangs = self.seen.reachable(&node, now, &self.settings).map(|s| &s.postgres);
                let only_if_hung = prelude.op.is_none() && matches!(hangs, Some(PostgresState::Hung { .. }));
                let leader = self.leading.unwrap_or_default();
                let stop = Stop { term, deadline_ms: millis(bound), only_if_hung, leader };
                let command = Box::new(Command::Stop(stop));
                // A hard stop follows a clean one that takes too long, and needs its own time.
                // What is ordered again has what is left of that: proxies hold statements for no longer.
                let asked = now.since(*prelude.ordered.get_or_insert(now));
                let within = (bound + self.settings.stop_timeout).saturating_sub(asked).max(self.settings.retry);
                out.push(Action::Send { node, command, within });
                Flow::Wait
            }
        }
    }

    /// The primary is taken for dead by what its own agent says, and still runs where the lease is the fence: that agent
    /// lives and would renew the lease for ever. If nothing else stands in the way it is stopped first, and its agent gives
    /// the lease up. Gives the failover back if that is not so.
    pub(super) fn stop_before(&mut self, now: Instant, begin: Begin) -> Option<Begin> {
        let obstacles = self.obstacles(now, &begin);
        let running = self.seen.open_primary().filter(|p| self.seen.at_work(p, now, &self.settings));
        let (Some(primary), Some(term), Some(policy)) = (running.cloned(), self.seen.term(), self.seen.policy()) else {
            return Some(begin);
        };
        let leased = matches!(&obstacles[..], [Blocker::LeaseHeld { node, .. }] if *node == primary);
        let others_suffice =
            self.too_few(now, policy, Some(&primary)).is_empty() && self.could_open_without(now, &primary);
        if !leased || !others_suffice || now < self.stop_not_before {
            return Some(begin);
        }
        let term = term.term;
        self.stage = Stage::Prelude(Box::new(Prelude {
            op: None,
            term,
            primary,
            began: begin.began,
            detected: Some(now),
            target: None,
            forced: Some(Forced { allow_loss: false }),
            step: PreludeStep::ToStop { not_before: now },
            unanswered: None,
            ordered: None,
            steps: Vec::new(),
            evidence: begin.evidence,
        }));
        None
    }

    /// Begin the steps of a switchover.
    pub(super) fn begin_prelude(&mut self, prelude: Prelude, out: &mut Vec<Action>) {
        if prelude.step == PreludeStep::Checkpointing {
            // A checkpoint may write everything in shared buffers, so the operator's bound is the only sensible one.
            let within = self.settings.operation_timeout / 2;
            let order = Checkpoint { term: prelude.term, deadline_ms: millis(within) };
            let command = Box::new(Command::Checkpoint(order));
            out.push(Action::Send { node: prelude.primary.clone(), command, within });
        }
        self.stage = Stage::Prelude(Box::new(prelude));
    }

    /// A checkpoint or stop was answered.
    pub(super) fn prelude_answer(
        &mut self,
        now: Instant,
        term: Term,
        result: Result<Reply, CommandError>,
        out: &mut Vec<Action>,
    ) {
        let Stage::Prelude(prelude) = &mut self.stage else { return };
        if prelude.term != term {
            return;
        }
        match (&prelude.step, result) {
            (PreludeStep::Checkpointing, Ok(_)) => {
                step(&mut prelude.steps, prelude.began, now, "checkpointed");
                prelude.step = PreludeStep::ToCloseGate;
            }
            (PreludeStep::Checkpointing, Err(error)) => {
                let why = format!("the checkpoint before the switchover failed: {error}; nothing was changed");
                self.prelude_failed(why, out);
            }
            (PreludeStep::Stopping, Ok(Reply::Stopped(stopped))) => self.old_primary_stopped(now, &stopped),
            (PreludeStep::Stopping, Err(CommandError::NoAnswer(_))) if prelude.may_ask_again(now, &self.settings) => {
                prelude.ask_again(now, &self.settings);
            }
            // Its agent is restarted, say.
            (PreludeStep::Stopping, Err(CommandError::Unreachable(_)))
                if prelude.unanswered.is_some() && prelude.may_ask_again(now, &self.settings) =>
            {
                prelude.ask_again(now, &self.settings);
            }
            (PreludeStep::Stopping, Err(error)) => {
                self.stop_not_before = now + self.settings.retry_longest;
                // It may be stopped or not: from here its health decides, and the gate opens again if it lives.
                let why = format!("the order to stop the primary failed: {error}");
                self.prelude_failed(why, out);
            }
            (PreludeStep::Stopping, Ok(_))
            | (
                PreludeStep::ToCloseGate
                | PreludeStep::ClosingGate
                | PreludeStep::Draining { .. }
                | PreludeStep::ToStop { .. },
                _,
            ) => {}
        }
    }

    fn old_primary_stopped(&mut self, now: Instant, stopped: &crate::api::Stopped) {
        let Stage::Prelude(prelude) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let mut begin = begin_of(*prelude, Cause::Switchover);
        step(&mut begin.steps, begin.began, now, "stopped");
        let old = begin.avoid.take().expect("begin_of names the old primary");
        match (begin.cause, stopped.end.filter(|_| stopped.clean)) {
            (Cause::Switchover, Some(end)) => begin.end = Some((old, end)),
            (Cause::Switchover, None) => {
                let bound = millis(self.settings.stop_timeout);
                begin.evidence.push(format!("{old} was not stopped cleanly within {bound} ms"));
                begin.prefer = Some(old.clone());
                begin.home = Some(old);
            }
            _ => begin.avoid = Some(old), // a failover leaves it
        }
        begin.not_before = now;
        self.stage = Stage::Intent(Box::new(begin));
    }

    /// The primary died during the prelude: the same change goes on as a failover.
    fn prelude_overtaken(&mut self, since: Instant, evidence: Vec<String>) -> Flow {
        let Stage::Prelude(prelude) = std::mem::replace(&mut self.stage, Stage::Idle) else { return Flow::Wait };
        let mut begin = begin_of(*prelude, Cause::OperatorFailover);
        begin.began = since;
        // They count from the order.
        begin.steps.clear();
        begin.evidence.extend(evidence);
        begin.avoid = None;
        self.stage = Stage::Intent(Box::new(begin));
        Flow::Again
    }

    fn prelude_failed(&mut self, why: String, out: &mut Vec<Action>) {
        let Stage::Prelude(prelude) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        if let Some(op) = prelude.op {
            out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
        }
    }

    pub(super) fn drained_gate(&mut self, now: Instant) {
        if let Stage::Prelude(prelude) = &mut self.stage {
            prelude.step = match prelude.forced {
                Some(_) => PreludeStep::ToStop { not_before: now },
                None => PreludeStep::Draining { since: now },
            };
        }
    }

    pub(super) fn drain_lost(&mut self, out: &mut Vec<Action>) {
        self.prelude_failed("the term changed before the drain; nothing was stopped".into(), out);
    }

    /// Another term has begun while a prelude was under way.
    pub(super) fn prelude_superseded(&mut self, current: &TermRecord, out: &mut Vec<Action>) {
        if matches!(&self.stage, Stage::Prelude(p) if p.term != current.term) {
            let why = format!("superseded by term {} of {}", current.term, current.coordinator);
            self.prelude_failed(why, out);
        }
    }

    /// The switchover that closed the gate is over without a stop: open it again.
    pub(super) fn undrain(&mut self, out: &mut Vec<Action>) {
        if let Some(term) = self.seen.term().map(|t| t.term) {
            self.verdict = Verdict::Acting { term, step: "opening the gate again after a drain".into() };
        }
        self.send_gate(ChangeKind::Undrain, Phase::Active, out);
    }

    fn send_gate(&mut self, kind: ChangeKind, phase: Phase, out: &mut Vec<Action>) {
        let Some(term) = self.seen.records.term.clone() else { return };
        let puts = vec![RecordPut::Term(TermRecord { phase, ..term.value })];
        self.send(kind, vec![Guard::Term(term.revision)], puts, Vec::new(), out);
    }
}

fn begin_of(prelude: Prelude, cause: Cause) -> Begin {
    let forced = prelude.forced;
    let cause = match (&prelude.op, forced) {
        (None, _) => Cause::Failover,
        (Some(_), Some(_)) => Cause::OperatorFailover,
        (Some(_), None) => cause,
    };
    Begin {
        cause,
        began: prelude.began,
        detected: prelude.detected,
        evidence: prelude.evidence,
        steps: prelude.steps,
        prefer: prelude.target,
        avoid: Some(prelude.primary),
        home: None,
        end: None,
        allow_loss: forced.is_some_and(|f| f.allow_loss),
        // A switchover that its primary's death overtakes is nobody's order to lose anything.
        unlimited: forced.is_some(),
        not_before: Instant::default(),
        failures: 0,
        given_up: None,
        counts: false,
        for_proxy: false,
        lost_candidates: (0, Instant::default()),
        back_since: None,
        op: prelude.op,
    }
}

fn busy_proxies(term: Term, proxies: &std::collections::BTreeMap<String, crate::record::ProxyRecord>) -> Vec<String> {
    let busy =
        proxies.iter().filter(|(_, p)| p.term < term || (p.term == term && (p.gate != "draining" || p.busy > 0)));
    busy.map(|(id, p)| format!("{id} (term {}, gate {}, {} busy)", p.term, p.gate, p.busy)).collect()
}

fn prelude_word(prelude: &Prelude) -> String {
    match prelude.step {
        PreludeStep::Checkpointing => format!("checkpoint on {}", prelude.primary),
        PreludeStep::ToCloseGate | PreludeStep::ClosingGate => "closing the gate for new transactions".into(),
        PreludeStep::Draining { .. } => "draining".into(),
        PreludeStep::ToStop { .. } | PreludeStep::Stopping => format!("stopping {}", prelude.primary),
    }
}
