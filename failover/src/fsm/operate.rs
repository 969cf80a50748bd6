//! Operators' requests: what is checked before anything is touched, and fences. PURE.

use crate::api::PostgresState;
use crate::fsm::action::{Action, Answer, ChangeKind, Guard, Operation, RecordKey, RecordPut};
use crate::fsm::blocker::{Blocker, Missing, Unfit, Verdict, list};
use crate::fsm::maintenance::Asked;
use crate::fsm::observe::{Health, millis};
use crate::fsm::planner::{Flow, Planner, Stage};
use crate::fsm::preference::{Preference, Willing};
use crate::fsm::report::observed;
use crate::fsm::round::{Begin, Op};
use crate::fsm::switchover::{Forced, Prelude, PreludeStep};
use crate::fsm::sync_set;
use crate::record::{Cause, FenceRecord, Mode, Phase};
use cluster::{Instant, Lsn, NodeId, Term};

/// Requests to fence or unfence that may be under way at once.
const FENCE_OPS: usize = 16;

/// A fence being put or removed.
#[derive(Debug)]
pub(super) struct FenceOp {
    pub(super) id: u64,
    node: NodeId,
    /// The record to put; `None` removes it.
    fence: Option<FenceRecord>,
    sent: bool,
    deadline: Instant,
}

impl Planner {
    /// Check a request and begin it, or refuse.
    pub(super) fn operate(&mut self, now: Instant, id: u64, operation: Operation, out: &mut Vec<Action>) {
        let begun = match operation {
            Operation::Switchover { to, expect_term, by } => self.switchover(now, (id, by), to, expect_term, out),
            Operation::Failover { to, expect_term, allow_data_loss, by } => {
                self.failover(now, (id, by), to, expect_term, allow_data_loss, out)
            }
            Operation::Fence { node, stop_writes, by } => self.fence(now, id, node, stop_writes, by),
            Operation::Unfence { node } => self.unfence(now, id, node),
            Operation::Pause { by, why, length } => self.pause(now, id, by, why, length),
            Operation::Resume => self.resume(now, id),
            Operation::BeginMaintenance { node, stop_writes, by, why, length } => {
                self.begin_maintenance(now, id, node, stop_writes, Asked { by, why, length })
            }
            Operation::RemoveNode { node, by } => self.remove_node(now, id, node, by),
            Operation::EndMaintenance { node } => self.end_maintenance(now, id, node),
            Operation::SetPolicy(change) => self.set_policy(now, id, change),
        };
        if let Err(blockers) = begun {
            out.push(Action::Answer { id, answer: Box::new(Answer::Refused(blockers)) });
        }
    }

    fn op(&self, now: Instant, (id, by): (u64, String), to: Option<NodeId>) -> Op {
        Op { id, deadline: now + self.settings.operation_timeout, to, by }
    }

    fn expected(&self, expect: Option<Term>) -> Result<(), Vec<Blocker>> {
        let current = self.seen.term().map(|t| t.term).ok_or_else(|| vec![self.no_cluster()])?;
        match expect {
            Some(expected) if expected != current => Err(vec![Blocker::OtherTerm { expected, current }]),
            _ => Ok(()), // nothing expected, or what was expected
        }
    }

    pub(super) fn busy(&self) -> Vec<Blocker> {
        let what = match &self.verdict {
            Verdict::Acting { term, step } => format!("term {term}: {step}"),
            Verdict::Hold { blockers } => format!("held by: {}", list(blockers)),
            Verdict::Following | Verdict::Steady => "a change of primary".into(),
        };
        vec![Blocker::Busy { what }]
    }

    fn switchover(
        &mut self,
        now: Instant,
        asked: (u64, String),
        to: Option<NodeId>,
        expect: Option<Term>,
        out: &mut Vec<Action>,
    ) -> Result<(), Vec<Blocker>> {
        self.expected(expect)?;
        if !matches!(self.stage, Stage::Idle) {
            return Err(self.busy());
        }
        let open = self.seen.term().filter(|t| t.phase == Phase::Active).and_then(|t| Some((t.term, t.node.clone()?)));
        let Some((term, primary)) = open else { return Err(vec![Blocker::PrimaryNotWell { node: None }]) };
        match self.seen.health(now, &self.settings) {
            Health::Well if self.seen.reachable(&primary, now, &self.settings).is_some() => {}
            Health::Well | Health::Dead { .. } => return Err(vec![Blocker::PrimaryNotWell { node: Some(primary) }]),
            Health::Unsure(mut blockers) => {
                blockers.insert(0, Blocker::PrimaryNotWell { node: Some(primary) });
                return Err(blockers);
            }
        }
        let target = self.switchover_target(now, &primary, to)?;
        let op = self.op(now, asked, Some(target.clone()));
        let evidence = vec![format!("{} asked for a switchover from {primary} to {target}", op.by)];
        let step = PreludeStep::Checkpointing;
        let target = Some(target);
        let (op, detected, steps) = (Some(op), None, Vec::new());
        self.begin_prelude(
            Prelude {
                op,
                term,
                primary,
                began: now,
                detected,
                target,
                forced: None,
                step,
                unanswered: None,
                ordered: None,
                steps,
                evidence,
            },
            out,
        );
        Ok(())
    }

    fn switchover_target(&self, now: Instant, primary: &NodeId, to: Option<NodeId>) -> Result<NodeId, Vec<Blocker>> {
        if let Some(to) = to {
            return self.fit_for_switchover(now, primary, &to).map(|_| to).map_err(|b| vec![b]);
        }
        let mut blockers = Vec::new();
        let preferences = self.preferences(Some(primary));
        let mut best: Option<((Preference, Lsn), NodeId)> = None;
        for node in self.seen.policy().map(|p| p.target().0.to_vec()).unwrap_or_default() {
            if node == *primary {
                continue;
            }
            match self.fit_for_switchover(now, primary, &node) {
                Err(blocker) => blockers.push(blocker),
                Ok(lsn) => match preferences.get(&node).copied().unwrap_or_default() {
                    Preference { willing: Willing::Never, .. } => {
                        blockers.push(Blocker::NeverPromoted { node, have: None });
                    }
                    liked if best.as_ref().is_none_or(|(b, _)| (liked, lsn) > *b) => best = Some(((liked, lsn), node)),
                    Preference { willing: Willing::Hardly | Willing::Yes, .. } => {}
                },
            }
        }
        if best.is_none() && blockers.is_empty() {
            blockers.push(Blocker::NoOtherVoter { node: primary.clone() });
        }
        best.map(|(_, node)| node).ok_or(blockers)
    }

    /// Where the node's replay is, if it can take over.
    fn fit_for_switchover(&self, now: Instant, primary: &NodeId, node: &NodeId) -> Result<Lsn, Blocker> {
        if node == primary {
            return Err(Blocker::AlreadyPrimary { node: node.clone() });
        }
        self.known_voter(node)?;
        if let Some(unfit) = self.unfit(node, now) {
            return Err(Blocker::TargetUnfit { target: Missing { node: node.clone(), unfit } });
        }
        if let Some(m) = self.seen.records.maintenance.get(node) {
            return Err(Blocker::InMaintenance { node: node.clone(), by: m.by.clone() });
        }
        let not_streaming = || Blocker::TargetNotStreaming { node: node.clone() };
        let standby = self.seen.streaming(node, now, &self.settings).ok_or_else(not_streaming)?;
        let head = self.seen.term().and_then(|t| self.clock.last(t.term)).unwrap_or(Lsn::INVALID);
        let (bytes, limit) = (head.bytes_since(standby.replay_lsn), self.settings.max_switchover_lag);
        if bytes > limit || standby.replay_paused {
            return Err(Blocker::TargetBehind { node: node.clone(), bytes, limit });
        }
        Ok(standby.replay_lsn)
    }

    fn known_voter(&self, node: &NodeId) -> Result<(), Blocker> {
        let voter = self.seen.policy().is_some_and(|p| p.target().0.contains(node));
        if voter { Ok(()) } else { Err(self.no_such(node)) }
    }

    fn failover(
        &mut self,
        now: Instant,
        asked: (u64, String),
        to: Option<NodeId>,
        expect: Option<Term>,
        allow_loss: bool,
        out: &mut Vec<Action>,
    ) -> Result<(), Vec<Blocker>> {
        self.expected(expect)?;
        if let Some(to) = &to {
            // Who does not vote may lack what was promised: only for an operator who takes what there is.
            let member = self.seen.records.members.contains_key(to);
            match self.known_voter(to) {
                Err(_) if member && allow_loss => {}
                Err(_) if member => return Err(vec![Blocker::TargetDoesNotVote { node: to.clone() }]),
                known => known.map_err(|b| vec![b])?,
            }
        }
        let joins = match &self.stage {
            Stage::Intent(begin) => begin.op.is_none(),
            Stage::Round(round) => round.begin.op.is_none(),
            Stage::Idle | Stage::Prelude(_) | Stage::Beginning(_) => false,
        };
        if joins && to.is_none() {
            self.somebody_is_willing(now, None, allow_loss)?;
        }
        let op = self.op(now, asked, to.clone());
        let old = self.seen.open_primary().cloned();
        match &mut self.stage {
            Stage::Idle => {}
            // A change that waits for more nodes than there are can be told to go on without them.
            Stage::Intent(begin) if begin.op.is_none() => {
                join(begin, old.as_ref(), op, to, allow_loss);
                return Ok(());
            }
            Stage::Round(round) if round.begin.op.is_none() => {
                let old = round.prev.as_ref().map(|p| &p.node);
                op.words(allow_loss).into_iter().for_each(|line| observed(&mut round.journal, line));
                join(&mut round.begin, old, op, to, allow_loss);
                round.journal.data_loss_allowed |= allow_loss;
                return Ok(());
            }
            Stage::Prelude(prelude) if prelude.op.is_none() => {
                if to.as_ref() == Some(&prelude.primary) {
                    return Err(vec![Blocker::AlreadyPrimary { node: prelude.primary.clone() }]);
                }
                prelude.join(op, to, allow_loss);
                return Ok(());
            }
            Stage::Intent(_) | Stage::Round(_) | Stage::Prelude(_) | Stage::Beginning(_) => return Err(self.busy()),
        }
        self.forced(now, op, to, allow_loss, out)
    }

    /// Where none of those that are there would be promoted without being named, nobody is waited for, nor a primary stopped
    /// that serves.
    fn somebody_is_willing(
        &self,
        now: Instant,
        at_work: Option<&NodeId>,
        allow_loss: bool,
    ) -> Result<(), Vec<Blocker>> {
        let votes = |n: &NodeId| allow_loss || self.seen.policy().is_some_and(|p| p.counts(n));
        let there: Vec<NodeId> = self.prospects(now).into_iter().filter(|n| Some(n) != at_work && votes(n)).collect();
        let preferences = self.preferences(at_work);
        let willing = |n: &NodeId| preferences.get(n).copied().unwrap_or_default().willing != Willing::Never;
        if there.is_empty() || there.iter().any(willing) {
            return Ok(());
        }
        Err(there.into_iter().map(|node| Blocker::NeverPromoted { node, have: None }).collect())
    }

    /// Nothing is under way: replace the primary, dead or alive.
    fn forced(
        &mut self,
        now: Instant,
        op: Op,
        to: Option<NodeId>,
        allow_loss: bool,
        out: &mut Vec<Action>,
    ) -> Result<(), Vec<Blocker>> {
        let (Some(term), Some(policy)) = (self.seen.term().cloned(), self.seen.policy().cloned()) else {
            return Err(vec![self.no_cluster()]);
        };
        let primary = self.seen.open_primary().cloned();
        let at_work = primary.clone().filter(|p| self.seen.at_work(p, now, &self.settings));
        if let Some(to) = &to {
            if at_work.as_ref() == Some(to) {
                return Err(vec![Blocker::AlreadyPrimary { node: to.clone() }]);
            }
            // Nobody but an operator can say that what a quarantined node has is to be all that there is.
            let runs = self.seen.reachable(to, now, &self.settings);
            let runs = runs.is_some_and(|s| matches!(s.postgres, PostgresState::Standby(_)));
            let taken = |u: &Unfit| allow_loss && runs && matches!(u, Unfit::Quarantined { .. });
            if let Some(unfit) = self.unfit(to, now).filter(|u| !taken(u)) {
                return Err(vec![Blocker::TargetUnfit { target: Missing { node: to.clone(), unfit } }]);
            }
        }
        let short = self.too_few(now, &policy, at_work.as_ref());
        let somebody = to.is_some() || self.prospects(now).iter().any(|n| Some(n) != at_work.as_ref());
        let knowingly = allow_loss && somebody;
        if !(short.is_empty() || knowingly) {
            return Err(short);
        }
        if to.is_none() {
            self.somebody_is_willing(now, at_work.as_ref(), allow_loss)?;
        }
        let elsewhere = to.is_none() || to != primary;
        if let Some(doubt) = self.in_doubt().filter(|_| elsewhere && !allow_loss) {
            return Err(vec![doubt]);
        }
        let evidence = op.words(allow_loss);
        if let (Some(primary), false) = (&at_work, policy.protects()) {
            // No quorum fences it, so it is stopped first; its agent then gives up the lease. The gate is closed before, so
            // that no manager takes it for dead while its leader is about to go on.
            let (term, step) = (term.term, PreludeStep::ToCloseGate);
            let forced = Some(Forced { allow_loss });
            let (op, detected, primary, steps) = (Some(op), None, primary.clone(), Vec::new());
            self.begin_prelude(
                Prelude {
                    op,
                    term,
                    primary,
                    began: now,
                    detected,
                    target: to,
                    forced,
                    step,
                    unanswered: None,
                    ordered: None,
                    steps,
                    evidence,
                },
                out,
            );
            return Ok(());
        }
        // The primary itself is to be started again, and is waited for. Who names it wants to lose nothing.
        let home = to.clone().filter(|to| primary.as_ref() == Some(to));
        let begin = Begin {
            unlimited: allow_loss || home.is_none(),
            home,
            prefer: to,
            avoid: at_work,
            allow_loss,
            op: Some(op),
            ..Self::automatic(Cause::OperatorFailover, now, evidence)
        };
        self.stage = Stage::Intent(Box::new(begin));
        Ok(())
    }
}

fn join(begin: &mut Begin, old: Option<&NodeId>, op: Op, to: Option<NodeId>, allow_loss: bool) {
    let home = to.clone().filter(|to| old == Some(to));
    begin.evidence.extend(op.words(allow_loss));
    begin.op = Some(op);
    begin.unlimited |= allow_loss || home.is_none();
    begin.home = home.or(begin.home.take());
    begin.prefer = to.or(begin.prefer.take());
    begin.allow_loss |= allow_loss;
    begin.lost_candidates.0 = 0;
    if allow_loss {
        // Who is taken need not have what the old primary had when a switchover stopped it.
        begin.end = None;
    }
}

// Fences.
impl Planner {
    fn fence(
        &mut self,
        now: Instant,
        id: u64,
        node: NodeId,
        stop_writes: bool,
        by: String,
    ) -> Result<(), Vec<Blocker>> {
        if !self.seen.records.members.contains_key(&node) {
            return Err(vec![self.no_such(&node)]);
        }
        if self.seen.records.fences.contains_key(&node) {
            return Err(vec![Blocker::AlreadyFenced { node }]);
        }
        let primary = self.is_term_node(&node);
        if !matches!(self.stage, Stage::Idle) {
            return Err(self.busy());
        }
        if !stop_writes {
            self.writes_survive(now, &node, primary)?;
        }
        let fence = Some(FenceRecord { by, at: self.wall, stop_writes: primary && stop_writes, removed: false });
        self.queue_fence(now, id, node, fence)
    }

    pub(super) fn writes_survive(&self, now: Instant, node: &NodeId, primary: bool) -> Result<(), Vec<Blocker>> {
        let Some(policy) = self.seen.policy() else { return Err(vec![self.no_cluster()]) };
        let streaming =
            |n: &&NodeId| *n != node && !self.taken_out(n) && self.seen.streaming(n, now, &self.settings).is_some();
        let left: Vec<NodeId> =
            self.seen.agents.keys().filter(|n| policy.counts(n)).filter(streaming).cloned().collect();
        let k = sync_set::open_quorum(policy);
        let needed = self.seen.streaming(node, now, &self.settings).is_some();
        let starved = policy.mode == Mode::Strict && needed && !sync_set::opens(policy, node, &left);
        if primary || starved {
            return Err(vec![Blocker::WouldStopWrites { node: node.clone(), left: left.len(), k, primary }]);
        }
        Ok(())
    }

    /// Fenced, or in maintenance and so to be stopped any time; or about to be.
    fn taken_out(&self, node: &NodeId) -> bool {
        let fencing = self.fence_ops.iter().any(|o| o.node == *node && o.fence.is_some());
        let maintaining = self.maintenance_op.as_ref().is_some_and(|o| o.begins(node));
        fencing || maintaining || self.seen.fenced(node) || self.seen.maintained(node)
    }

    fn unfence(&mut self, now: Instant, id: u64, node: NodeId) -> Result<(), Vec<Blocker>> {
        if !self.seen.records.fences.contains_key(&node) {
            return Err(vec![Blocker::NotFenced { node }]);
        }
        self.queue_fence(now, id, node, None)
    }

    fn queue_fence(
        &mut self,
        now: Instant,
        id: u64,
        node: NodeId,
        fence: Option<FenceRecord>,
    ) -> Result<(), Vec<Blocker>> {
        let same = self.fence_ops.iter().any(|o| o.node == node);
        if same || self.fence_ops.len() >= FENCE_OPS {
            return Err(vec![Blocker::Busy { what: format!("another request about fencing {node}") }]);
        }
        let deadline = now + self.settings.operation_timeout / 2;
        self.fence_ops.push(FenceOp { id, node, fence, sent: false, deadline });
        Ok(())
    }

    /// Write the next fence when no change is under way; answer those that the agents have obeyed.
    pub(super) fn advance_fences(&mut self, now: Instant, out: &mut Vec<Action>) -> Flow {
        let next = self.fence_ops.iter_mut().find(|o| !o.sent && now < o.deadline);
        if let Some(op) = next.filter(|_| self.pending.is_none()) {
            op.sent = true;
            let node = op.node.clone();
            let (puts, deletes) = match op.fence.clone() {
                Some(fence) => (vec![RecordPut::Fence(node, fence)], Vec::new()),
                None => (Vec::new(), vec![RecordKey::Fence(node)]),
            };
            let guards: Vec<Guard> =
                self.seen.records.term.as_ref().map(|t| Guard::Term(t.revision)).into_iter().collect();
            self.send(ChangeKind::Fence, guards, puts, deletes, out);
        }
        let ops = std::mem::take(&mut self.fence_ops);
        for op in ops {
            match self.fence_answer(now, &op) {
                Some(answer) => out.push(Action::Answer { id: op.id, answer: Box::new(answer) }),
                None => self.fence_ops.push(op),
            }
        }
        Flow::Wait
    }

    fn fence_answer(&self, now: Instant, op: &FenceOp) -> Option<Answer> {
        let want = op.fence.is_some();
        let recorded = self.seen.records.fences.contains_key(&op.node) == want;
        let state = self.seen.reachable(&op.node, now, &self.settings);
        let obeyed = state.is_some_and(|s| s.fenced == want);
        let word = if want { "fenced" } else { "unfenced" };
        let (node, term) = (op.node.clone(), self.seen.term().map_or(Term(0), |t| t.term));
        if op.sent && recorded && obeyed && self.pending.is_none() {
            let note = format!("{node} is {word}");
            return Some(Answer::Done { term, node: Some(node), note, journal: None });
        }
        if op.sent && recorded && state.is_none() && self.pending.is_none() {
            let silent = millis(self.seen.silent_for(&node, now));
            let note = format!(
                "{node} is marked as {word}; its agent has not answered for {silent} ms and obeys when it is back"
            );
            return Some(Answer::Done { term, node: Some(node), note, journal: None });
        }
        if now < op.deadline {
            return None;
        }
        let standing = match (op.sent, recorded) {
            (false, _) => "nothing was written".to_owned(),
            (true, false) => "the record was not written".to_owned(),
            (true, true) => format!("recorded, but the agent of {node} has not obeyed yet"),
        };
        Some(Answer::Failed { why: format!("{node} is not {word} in time: {standing}"), journal: None })
    }
}
