//! Making a term: T1, freeze, T2, promote, follow, T3. PURE.
//!
//! Once T1 is made there is no way back, only forward: to the choice of a node, to a higher term when a step fails, or
//! to another manager's term. Nothing is open to clients meanwhile, so waiting is always safe here.

use crate::api::{Follow, Freeze, Frozen, Open, Position, PostgresState, Promote, Promoted, Recover};
use crate::fsm::action::{
    Action, Answer, ChangeKind, Command, CommandError, CommandKind, Guard, RecordKey, RecordPut, Reply,
};
use crate::fsm::blocker::{Blocker, Missing, Unfit, Verdict, list};
use crate::fsm::candidate::{Choice, Wishes, choose};
use crate::fsm::observe::millis;
use crate::fsm::planner::{Flow, Planner, Stage};
use crate::fsm::report::{observed, phase};
use crate::fsm::sync_set::{self, Rule};
use crate::record::{Cause, JournalRecord, Mode, Phase, PolicyRecord, Recruit, Suspension, Tenure, TermRecord};
use cluster::timeline::Fork;
use cluster::{Instant, Lsn, NodeId, Term};
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
    /// The operator's target.
    pub(super) prefer: Option<NodeId>,
    /// Not this node, when the others suffice.
    pub(super) avoid: Option<NodeId>,
    /// The old primary, to be recovered and promoted again.
    pub(super) home: Option<NodeId>,
    /// The old primary and where it ended, stopped cleanly.
    pub(super) end: Option<(NodeId, Position)>,
    pub(super) allow_loss: bool,
    pub(super) not_before: Instant,
    /// Rounds of this change that failed.
    pub(super) failures: u32,
    pub(super) op: Option<Op>,
}

/// An operator who waits.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub(super) id: u64,
    pub(super) deadline: Instant,
    /// The node asked for.
    pub(super) to: Option<NodeId>,
}

/// A term being made.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) begin: Begin,
    pub(super) term: Term,
    /// `mod_revision` of our term record.
    revision: i64,
    prev: Option<Tenure>,
    policy: PolicyRecord,
    policy_revision: i64,
    started: Instant,
    step: Step,
    asks: BTreeMap<NodeId, Ask>,
    frozen: BTreeMap<NodeId, Frozen>,
    enough_since: Option<Instant>,
    pub(super) journal: JournalRecord,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Recruiting,
    Choosing(Choice),
    Promoting(Choice),
    Recording(Choice, Promoted),
    Opening { node: NodeId, record_lsn: Lsn, since: Instant, open: Ask },
}

/// A command to one node: sent, to be sent again, or answered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ask {
    in_flight: bool,
    not_before: Instant,
    failures: u32,
    recover: bool,
    answered: bool,
}

impl Ask {
    fn due(&self, now: Instant) -> bool {
        !self.in_flight && !self.answered && now >= self.not_before
    }

    fn failed(&mut self, now: Instant, backoff: Duration) {
        (self.in_flight, self.not_before) = (false, now + backoff);
        self.failures += 1;
    }
}

impl Round {
    /// Frozen while its PostgreSQL was stopped: it must be started before its end is known or it can be promoted.
    fn needs_recovery(&self, node: &NodeId) -> bool {
        let recovered = self.asks.get(node).is_some_and(|a| a.recover && a.answered);
        !recovered && self.frozen.get(node).is_some_and(|f| f.position.is_none() || f.was_primary)
    }
}

impl Step {
    const fn candidate(&self) -> Option<&NodeId> {
        match self {
            Self::Recruiting => None,
            Self::Choosing(c) | Self::Promoting(c) | Self::Recording(c, _) => Some(&c.node),
            Self::Opening { node, .. } => Some(node),
        }
    }
}

// Before T1.
impl Planner {
    /// The primary was found dead: begin a term unless something forbids it.
    pub(super) fn begin_by_evidence(
        &mut self,
        now: Instant,
        since: Instant,
        evidence: Vec<String>,
        restarted: bool,
        out: &mut Vec<Action>,
    ) -> Flow {
        let Some((term, node)) = self.seen.term().and_then(|t| Some((t.term, t.node.clone()?))) else {
            return Flow::Wait;
        };
        let there = self.seen.reachable(&node, now, &self.settings).is_some();
        let stopped_before_us = there && (restarted || self.saw_primary != term);
        let mut begin = if stopped_before_us {
            Self::automatic(Cause::Restart, since, evidence)
        } else {
            Self::automatic(Cause::Failover, since, evidence)
        };
        if stopped_before_us {
            begin.home = Some(node);
        }
        self.begin_or_hold(now, begin, out)
    }

    /// A term that another manager left before its node was promoted: begin a higher one.
    pub(super) fn take_over(&mut self, now: Instant, term: &TermRecord, out: &mut Vec<Action>) -> Flow {
        let left = format!("term {} was left by {} while {}", term.term, term.coordinator, phase_word(term.phase));
        let mut begin = Self::automatic(term.cause, now, vec![left]);
        begin.avoid = term.node.clone();
        self.begin_or_hold(now, begin, out)
    }

    fn begin_or_hold(&mut self, now: Instant, begin: Begin, out: &mut Vec<Action>) -> Flow {
        let blockers = self.obstacles(now, &begin);
        if blockers.is_empty() {
            self.send_begin(now, begin, out);
        } else {
            self.verdict = Verdict::Hold { blockers };
        }
        Flow::Wait
    }

    /// An intended term waits until nothing forbids it.
    pub(super) fn advance_intent(&mut self, now: Instant, out: &mut Vec<Action>) -> Flow {
        let Stage::Intent(begin) = std::mem::replace(&mut self.stage, Stage::Idle) else { return Flow::Wait };
        let blockers = self.obstacles(now, &begin);
        if blockers.is_empty() && now >= begin.not_before {
            self.send_begin(now, *begin, out);
        } else {
            if !blockers.is_empty() {
                self.verdict = Verdict::Hold { blockers };
            }
            self.stage = Stage::Intent(begin);
        }
        Flow::Wait
    }

    /// What forbids to begin now.
    fn obstacles(&mut self, now: Instant, begin: &Begin) -> Vec<Blocker> {
        let (Some(term), Some(policy)) = (self.seen.term().cloned(), self.seen.policy().cloned()) else {
            return vec![Blocker::NoCluster];
        };
        let mut blockers = Vec::new();
        let was_open = matches!(term.phase, Phase::Active | Phase::Draining);
        if was_open && matches!(begin.cause, Cause::Failover | Cause::Restart) {
            let fence = term.node.as_ref().and_then(|n| Some((n, self.seen.records.fences.get(n)?)));
            if let Some((node, fence)) = fence {
                blockers.push(Blocker::PrimaryFenced { node: node.clone(), by: fence.by.clone() });
            }
            if begin.cause == Cause::Failover {
                blockers.extend(self.budget(now));
                blockers.extend(self.loss_too_large(now, &policy));
            }
        }
        let proven = begin.end.is_some() || begin.allow_loss;
        if !proven {
            blockers.extend(self.too_few(now, &policy, None));
        }
        if let Some(primary) = self.seen.records.primary.as_ref().filter(|_| !policy.protects()) {
            blockers.push(Blocker::LeaseHeld { node: primary.node.clone(), term: primary.term });
        }
        blockers
    }

    /// The blockers if the nodes that could be frozen now, without `leaving`, would not suffice.
    pub(super) fn too_few(&self, now: Instant, policy: &PolicyRecord, leaving: Option<&NodeId>) -> Vec<Blocker> {
        let prev = self.last_tenure();
        let mut usable = self.prospects(now);
        if let Some(leaving) = leaving {
            usable.remove(leaving);
        }
        if sync_set::sufficient(policy, prev.as_ref(), &usable) {
            return Vec::new();
        }
        let missing = |node: &NodeId| self.unfit(node, now).map(|unfit| Missing { node: node.clone(), unfit });
        let missing = policy.voters.iter().filter(|n| Some(*n) != leaving).filter_map(missing).collect();
        short(policy, prev.as_ref(), &usable, missing)
    }

    /// Nodes that could be frozen now.
    pub(super) fn prospects(&self, now: Instant) -> BTreeSet<NodeId> {
        self.seen.agents.keys().filter(|n| self.unfit(n, now).is_none()).cloned().collect()
    }

    /// Why the node would not count as a recruit.
    pub(super) fn unfit(&self, node: &NodeId, now: Instant) -> Option<Unfit> {
        if self.seen.fenced(node) {
            return Some(Unfit::Fenced);
        }
        let Some(state) = self.seen.reachable(node, now, &self.settings) else {
            return Some(Unfit::Unreachable { silent_ms: millis(self.seen.silent_for(node, now)) });
        };
        if let Some(floor) = state.quarantine {
            return Some(Unfit::Quarantined { floor });
        }
        (state.postgres == PostgresState::Absent).then_some(Unfit::NoData)
    }

    fn loss_too_large(&self, now: Instant, policy: &PolicyRecord) -> Option<Blocker> {
        let term = self.seen.term()?.term;
        let last = self.clock.last(term).filter(|_| policy.mode == Mode::Async)?;
        let ends = policy.voters.iter().filter_map(|n| self.seen.on_timeline(n, term, now, &self.settings));
        let best = ends.map(|s| s.receive_lsn).max()?;
        let (bytes, limit) = (last.bytes_since(best), self.settings.max_loss);
        (bytes > limit).then_some(Blocker::LossTooLarge { bytes, limit })
    }

    /// T1.
    fn send_begin(&mut self, now: Instant, mut begin: Begin, out: &mut Vec<Action>) {
        let (Some(old), Some(policy)) = (self.seen.records.term.clone(), self.seen.records.policy.clone()) else {
            return;
        };
        let term = self.next_term();
        let prev = self.last_tenure();
        let record = TermRecord {
            term,
            phase: Phase::Recruiting,
            coordinator: self.id.clone(),
            node: None,
            cause: begin.cause,
            prev: prev.clone(),
            fork: None,
            xid_bound: None,
            record_lsn: None,
            policy_epoch: policy.value.epoch,
        };
        let mut guards = vec![Guard::Term(old.revision), Guard::Policy(policy.revision)];
        if !policy.value.protects() {
            guards.push(Guard::NoPrimary);
        }
        begin.detected = begin.detected.or(Some(now));
        let journal = self.new_journal(term, &begin, prev.as_ref(), &policy.value);
        let puts = vec![RecordPut::Term(record), RecordPut::Journal(Box::new(journal))];
        self.verdict = Verdict::Acting { term, step: "beginning the term".into() };
        self.stage = Stage::Beginning(Box::new(begin));
        self.send(ChangeKind::Begin, guards, puts, vec![RecordKey::Primary], out);
    }

    fn new_journal(&self, term: Term, begin: &Begin, prev: Option<&Tenure>, policy: &PolicyRecord) -> JournalRecord {
        JournalRecord {
            term,
            cause: begin.cause,
            observed: begin.evidence.clone(),
            from: prev.map(|p| p.node.clone()),
            to: None,
            started: self.wall,
            phases: Vec::new(),
            recruits: Vec::new(),
            m: policy.m(),
            k: policy.k,
            fork: None,
            xid_bound: None,
            window: None,
            finished: None,
            data_loss_allowed: begin.allow_loss,
        }
    }

    /// T1 was not made because something had changed.
    pub(super) fn begin_lost(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Stage::Beginning(begin) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let ours = self.seen.term().is_some_and(|t| matches!(t.phase, Phase::Active | Phase::Draining));
        if begin.op.is_none() {
            return; // found again by evidence, if it still holds
        }
        if ours {
            let mut begin = begin;
            begin.not_before = now + self.settings.backoff(begin.failures);
            begin.failures += 1;
            self.stage = Stage::Intent(begin);
        } else if let Some(op) = begin.op {
            let why = self.seen.term().map_or_else(String::new, |t| {
                format!("term {} was begun by {} at the same time", t.term, t.coordinator)
            });
            out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
        }
    }

    /// T1 is made: freeze everybody.
    pub(super) fn begun(&mut self, now: Instant, revision: i64, out: &mut Vec<Action>) {
        let Stage::Beginning(begin) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let (Some(term), Some(policy)) = (self.seen.term().cloned(), self.seen.records.policy.clone()) else {
            return;
        };
        if begin.cause == Cause::Failover && begin.failures == 0 {
            self.spent.push_back(now);
        }
        let mut journal = self.new_journal(term.term, &begin, term.prev.as_ref(), &policy.value);
        phase(&mut journal, begin.began, begin.detected.unwrap_or(now), "detected");
        phase(&mut journal, begin.began, now, "recruiting");
        let round = Round {
            begin: *begin,
            term: term.term,
            revision,
            prev: term.prev,
            policy: policy.value,
            policy_revision: policy.revision,
            started: now,
            step: Step::Recruiting,
            asks: BTreeMap::new(),
            frozen: BTreeMap::new(),
            enough_since: None,
            journal,
        };
        self.stage = Stage::Round(Box::new(round));
        let _ = self.advance_round(now, out);
    }
}

// From T1 to T2.
impl Planner {
    /// Move the round on.
    pub(super) fn advance_round(&mut self, now: Instant, out: &mut Vec<Action>) -> Flow {
        let Stage::Round(mut round) = std::mem::replace(&mut self.stage, Stage::Idle) else { return Flow::Wait };
        if self.promised > round.term {
            // A promise to a term that etcd does not know: only a higher one will be obeyed.
            let why = format!("an agent has promised term {}", self.promised);
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
        self.stage = Stage::Round(round);
        Flow::Wait
    }

    fn recruit(&mut self, now: Instant, round: &mut Round, out: &mut Vec<Action>) {
        self.ask_to_freeze(now, round, out);
        let usable = self.usable(round);
        let waited = now.since(round.started) >= self.settings.recruit_grace;
        let reachable = |n: &&NodeId| self.seen.reachable(n, now, &self.settings).is_some();
        let answered = self.seen.agents.keys().filter(reachable).all(|n| round.frozen.contains_key(n));
        let names: BTreeSet<NodeId> = usable.keys().cloned().collect();
        let enough = sync_set::sufficient(&round.policy, round.prev.as_ref(), &names);
        round.enough_since = if enough { round.enough_since.or(Some(now)) } else { None };
        self.heed_the_end(now, round, &usable);
        let at_home = round.begin.home.as_ref().is_some_and(|h| names.contains(h) && !round.needs_recovery(h));
        let going_home = round.begin.home.is_some() && !at_home && self.may_come_home(now, round);
        let settled = answered || round.enough_since.is_some_and(|t| now.since(t) >= self.settings.recruit_grace);
        if enough && (at_home || (settled && !going_home)) {
            self.send_choice(now, round, &usable, out);
            return;
        }
        if round.begin.allow_loss && (answered || waited) && names.iter().any(|n| Some(n) != round.begin.avoid.as_ref())
        {
            self.send_choice(now, round, &usable, out);
            return;
        }
        let wanted = |n: &NodeId| (!enough && (answered || waited)) || round.begin.home.as_ref() == Some(n);
        let stopped: Vec<NodeId> =
            round.frozen.keys().filter(|n| round.needs_recovery(n) && wanted(n)).cloned().collect();
        for node in stopped {
            self.ask_to_recover(now, round, &node, out);
        }
        self.verdict = if enough || !(answered || waited) {
            Verdict::Acting { term: round.term, step: format!("freezing; frozen: {}", list(&keys(&round.frozen))) }
        } else {
            Verdict::Hold { blockers: self.missing_recruits(now, round, &names) }
        };
    }

    /// Frozen nodes that count. The old primary's clean end stands for its own report.
    fn usable(&self, round: &Round) -> BTreeMap<NodeId, Frozen> {
        let mut usable = BTreeMap::new();
        for (node, frozen) in &round.frozen {
            let mut frozen = frozen.clone();
            if let Some((_, end)) = round.begin.end.as_ref().filter(|(n, _)| n == node) {
                frozen.position = frozen.position.or(Some(*end));
            }
            let counts = frozen.position.is_some() && frozen.quarantine.is_none() && !self.seen.fenced(node);
            if counts {
                usable.insert(node.clone(), frozen);
            }
        }
        usable
    }

    /// A switchover's target that lacks what the old primary wrote last, or that is gone, is given up: the old
    /// primary comes back.
    fn heed_the_end(&self, now: Instant, round: &mut Round, usable: &BTreeMap<NodeId, Frozen>) {
        let (Some((old, end)), Some(target)) = (round.begin.end.clone(), round.begin.prefer.clone()) else { return };
        if target == old {
            return;
        }
        let have = usable.get(&target).and_then(|f| f.position);
        let gone = now.since(round.started) >= self.settings.detect_timeout;
        let why = match have {
            Some(have) if have < end => Blocker::TargetShort { node: target, have, need: end }.to_string(),
            None if gone => format!("{target} was not frozen within {} ms", millis(self.settings.detect_timeout)),
            _ => return, // complete, or still expected
        };
        observed(&mut round.journal, why);
        round.begin.prefer = Some(old.clone());
        round.begin.home = Some(old);
        round.begin.avoid = None;
        round.begin.end = None;
    }

    /// Is it worth waiting for the old primary's own recovery?
    fn may_come_home(&self, now: Instant, round: &Round) -> bool {
        let home = round.begin.home.as_ref().filter(|h| self.unfit(h, now).is_none());
        // With a quorum it only saves a rewind; without one it saves rows.
        let saves_a_rewind = round.policy.protects() && round.begin.cause == Cause::Restart;
        let bound = if saves_a_rewind { self.settings.detect_timeout } else { self.settings.freeze_timeout };
        home.is_some() && now.since(round.started) < bound
    }

    fn ask_to_freeze(&self, now: Instant, round: &mut Round, out: &mut Vec<Action>) {
        for node in self.seen.agents.keys() {
            let ask = round.asks.entry(node.clone()).or_default();
            if ask.recover || !ask.due(now) {
                continue;
            }
            ask.in_flight = true;
            let command = Command::Freeze(Freeze { term: round.term, coordinator: self.id.clone() });
            send(out, node, command, self.settings.freeze_timeout);
        }
    }

    fn ask_to_recover(&self, now: Instant, round: &mut Round, node: &NodeId, out: &mut Vec<Action>) {
        let ask = round.asks.entry(node.clone()).or_default();
        if !ask.recover {
            *ask = Ask { recover: true, ..Ask::default() };
        }
        if ask.due(now) {
            ask.in_flight = true;
            let command = Command::Recover(Recover { term: round.term });
            send(out, node, command, self.settings.freeze_timeout);
        }
    }

    fn missing_recruits(&self, now: Instant, round: &Round, usable: &BTreeSet<NodeId>) -> Vec<Blocker> {
        let missing = |node: &NodeId| {
            if usable.contains(node) {
                return None;
            }
            let unfit = self.unfit(node, now).unwrap_or(match round.frozen.get(node) {
                Some(f) => f.quarantine.map_or(Unfit::NotRecovered, |floor| Unfit::Quarantined { floor }),
                None => Unfit::NotFrozen,
            });
            Some(Missing { node: node.clone(), unfit })
        };
        let missing = round.policy.voters.iter().filter_map(missing).collect();
        short(&round.policy, round.prev.as_ref(), usable, missing)
    }

    /// T2.
    fn send_choice(
        &mut self,
        now: Instant,
        round: &mut Round,
        usable: &BTreeMap<NodeId, Frozen>,
        out: &mut Vec<Action>,
    ) {
        let wishes = Wishes {
            policy: &round.policy,
            prev: round.prev.as_ref(),
            prefer: round.begin.prefer.as_ref().or(round.begin.home.as_ref()),
            avoid: round.begin.avoid.as_ref(),
            end: round.begin.end.as_ref().map(|(_, end)| *end),
            allow_loss: round.begin.allow_loss,
        };
        let Some(choice) = choose(usable, &wishes) else { return };
        // The old primary's clean end is known, but it must be running to be promoted.
        if round.needs_recovery(&choice.node) {
            round.begin.home = Some(choice.node.clone());
            round.begin.end = None;
            return;
        }
        phase(&mut round.journal, round.begin.began, now, "frozen");
        let ends = usable.iter().filter_map(|(node, f)| f.position.map(|p| (node.clone(), p)));
        round.journal.recruits = ends.map(|(node, p)| Recruit { node, timeline: p.timeline, lsn: p.lsn }).collect();
        round.journal.to = Some(choice.node.clone());
        let fork = Fork { timeline: choice.base.timeline, lsn: choice.base.lsn };
        round.journal.fork = Some(fork);
        let old = round.prev.as_ref().filter(|p| p.timeline == fork.timeline);
        round.journal.window = old.and_then(|p| self.clock.window(p.term, fork.lsn));
        let record = TermRecord {
            phase: Phase::Promoting,
            node: Some(choice.node.clone()),
            fork: Some(fork),
            ..self.round_record(round)
        };
        let guards = vec![Guard::Term(round.revision), Guard::Policy(round.policy_revision)];
        let puts = vec![RecordPut::Term(record), RecordPut::Journal(Box::new(round.journal.clone()))];
        self.verdict = Verdict::Acting { term: round.term, step: format!("choosing {}", choice.node) };
        round.step = Step::Choosing(choice);
        self.send(ChangeKind::Choose, guards, puts, Vec::new(), out);
    }

    fn round_record(&self, round: &Round) -> TermRecord {
        TermRecord {
            term: round.term,
            phase: Phase::Recruiting,
            coordinator: self.id.clone(),
            node: None,
            cause: round.begin.cause,
            prev: round.prev.clone(),
            fork: None,
            xid_bound: None,
            record_lsn: None,
            policy_epoch: round.policy.epoch,
        }
    }

    /// T2 was not made: the policy changed, or the term is another's.
    pub(super) fn choose_lost(&mut self, now: Instant, out: &mut Vec<Action>) {
        let policy = self.seen.records.policy.clone();
        if let (Stage::Round(round), Some(policy)) = (&mut self.stage, policy) {
            round.policy = policy.value;
            round.policy_revision = policy.revision;
            round.step = Step::Recruiting;
        }
        self.notice_superseded(now, out);
    }

    /// T2 is made: promote.
    pub(super) fn chosen(&mut self, now: Instant, revision: i64, out: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let Step::Choosing(choice) = round.step.clone() else { return };
        round.revision = revision;
        phase(&mut round.journal, round.begin.began, now, "chosen");
        let names = sync_set::names(&round.policy, &choice.node);
        let within = self.settings.promote_timeout;
        let command = Command::Promote(Promote {
            term: round.term,
            base: choice.base,
            sync_names: names.to_string(),
            policy_epoch: round.policy.epoch,
            prev_term: round.prev.as_ref().map(|p| p.term),
            deadline_ms: millis(within),
        });
        send(out, &choice.node, command, within);
        round.step = Step::Promoting(choice);
    }
}

// From T2 to T3.
impl Planner {
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
            self.promised = self.promised.max(*promised);
            out.push(Action::Read);
        }
        match kind {
            CommandKind::Checkpoint | CommandKind::Stop => self.prelude_answer(now, term, result, out),
            CommandKind::Arm => self.arm_answer(now, term, result),
            CommandKind::Freeze
            | CommandKind::Recover
            | CommandKind::Promote
            | CommandKind::Follow
            | CommandKind::Open => self.round_answer(now, node, term, kind, result, out),
        }
    }

    fn round_answer(
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
                }
            }
            (CommandKind::Promote, Ok(Reply::Promoted(promoted))) => self.promoted(now, node, promoted, out),
            (CommandKind::Promote, Err(error)) => self.promote_failed(now, node, &error, out),
            (CommandKind::Open, Ok(Reply::Opened(opened))) => {
                if let Some(record) = &mut self.seen.records.term {
                    (record.value.phase, record.revision) = (Phase::Active, opened.revision);
                }
                self.seen.records.revision = self.seen.records.revision.max(opened.revision);
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

    fn promoted(&mut self, now: Instant, node: &NodeId, promoted: Promoted, out: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let Step::Promoting(choice) = round.step.clone() else { return };
        if choice.node != *node {
            return;
        }
        phase(&mut round.journal, round.begin.began, now, "promoted");
        round.journal.fork = Some(promoted.fork);
        round.journal.xid_bound = Some(promoted.xid_bound);
        round.step = Step::Recording(choice, promoted);
        self.send_record(out);
        self.ask_to_follow(now, out);
    }

    fn send_record(&mut self, out: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        let Step::Recording(choice, promoted) = &round.step else { return };
        let record = TermRecord {
            phase: Phase::Opening,
            node: Some(choice.node.clone()),
            fork: Some(promoted.fork),
            xid_bound: Some(promoted.xid_bound),
            record_lsn: Some(promoted.record_lsn),
            ..self.round_record(round)
        };
        let (guards, puts) = (vec![Guard::Term(round.revision)], vec![RecordPut::Term(record)]);
        self.send(ChangeKind::Record, guards, puts, Vec::new(), out);
    }

    fn ask_to_follow(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let Some(primary) = round.step.candidate().cloned() else { return };
        let Some(endpoint) = self.seen.records.members.get(&primary).map(|m| m.postgres.clone()) else { return };
        round.asks.clear();
        for node in self.seen.agents.keys().filter(|n| **n != primary) {
            if self.seen.records.fences.contains_key(node) {
                continue;
            }
            let (term, primary, endpoint) = (round.term, primary.clone(), endpoint.clone());
            let not_before = now + self.settings.retry;
            round.asks.insert(node.clone(), Ask { in_flight: true, not_before, ..Ask::default() });
            // Tried once: an agent that did not hear it follows by itself from the term's record.
            send(out, node, Command::Follow(Follow { term, primary, endpoint }), self.settings.detect_timeout);
        }
    }

    /// A promotion that is not known to have succeeded: the node must be fenced by a higher term before another, or
    /// it again, is tried.
    fn promote_failed(&mut self, now: Instant, node: &NodeId, error: &CommandError, out: &mut Vec<Action>) {
        let Stage::Round(round) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let _ = self.give_up(now, *round, &format!("promoting {node}: {error}"), Some(node.clone()), out);
    }

    /// The record of the new term is written: wait for followers.
    pub(super) fn recorded(&mut self, now: Instant, revision: i64, _out: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let Step::Recording(choice, promoted) = round.step.clone() else { return };
        round.revision = revision;
        let open = Ask::default();
        round.step = Step::Opening { node: choice.node, record_lsn: promoted.record_lsn, since: now, open };
    }

    pub(super) fn record_lost(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.notice_superseded(now, out);
        if matches!(&self.stage, Stage::Round(r) if matches!(r.step, Step::Recording(..))) {
            self.send_record(out);
        }
    }

    /// A term found in its opening: an earlier manager's, or the first of a new cluster.
    pub(super) fn advance_found_opening(&mut self, now: Instant, term: &TermRecord, out: &mut Vec<Action>) -> Flow {
        let found = term.node.clone().zip(term.record_lsn).zip(self.seen.records.policy.clone());
        let Some(((node, record_lsn), policy)) = found else { return self.take_over(now, term, out) };
        let Some(state) = self.seen.reachable(&node, now, &self.settings) else {
            if self.seen.silent_for(&node, now) >= self.settings.detect_timeout {
                return self.take_over(now, term, out);
            }
            self.verdict = Verdict::Acting { term: term.term, step: format!("listening for {node}") };
            return Flow::Wait;
        };
        match &state.postgres {
            PostgresState::Primary(p) if Some(p.timeline) == term.term.timeline() => {}
            _ => return self.take_over(now, term, out), // in no other state can it be opened
        }
        let evidence = vec![format!("opening of term {} taken over from {}", term.term, term.coordinator)];
        let begin = Self::automatic(term.cause, now, evidence);
        let kept = self.last.clone().filter(|j| j.term == term.term);
        let mut journal =
            kept.unwrap_or_else(|| self.new_journal(term.term, &begin, term.prev.as_ref(), &policy.value));
        (journal.to, journal.fork, journal.xid_bound) = (term.node.clone(), term.fork, term.xid_bound);
        let round = Round {
            begin,
            term: term.term,
            revision: self.seen.records.term.as_ref().map_or(0, |t| t.revision),
            prev: term.prev.clone(),
            policy: policy.value,
            policy_revision: policy.revision,
            started: now,
            step: Step::Opening { node, record_lsn, since: now, open: Ask::default() },
            asks: BTreeMap::new(),
            frozen: BTreeMap::new(),
            enough_since: None,
            journal,
        };
        self.stage = Stage::Round(Box::new(round));
        Flow::Again
    }

    /// Wait for followers and old proxies, then order T3. Gives the node if it is lost.
    fn advance_opening(&mut self, now: Instant, round: &mut Round, out: &mut Vec<Action>) -> Option<NodeId> {
        let Step::Opening { node, record_lsn, since, .. } = &round.step else { return None };
        let (node, record_lsn, since) = (node.clone(), *record_lsn, *since);
        if self.candidate_lost(now, round.term, &node, since) {
            return Some(node);
        }
        let followers: Vec<NodeId> = round
            .policy
            .voters
            .iter()
            .filter(|n| **n != node && self.has_record(now, n, round.term, record_lsn))
            .cloned()
            .collect();
        let needed = sync_set::open_quorum(&round.policy);
        let mut blockers = Vec::new();
        let mut suspend = None;
        if !followers.is_empty() {
            phase(&mut round.journal, round.begin.began, now, "followed");
        }
        if followers.len() < needed as usize {
            if round.begin.allow_loss && now.since(since) >= self.settings.open_wait {
                suspend = Some(self.suspension(round, &followers, needed));
            } else {
                blockers.push(Blocker::TooFewFollowers { needed, have: followers, record_lsn });
            }
        }
        blockers.extend(self.proxies_behind(now, round));
        if blockers.is_empty() {
            self.order_open(now, round, &node, suspend, out);
        } else {
            let late = now.since(since) >= self.settings.detect_timeout;
            self.verdict = if late {
                Verdict::Hold { blockers }
            } else {
                Verdict::Acting { term: round.term, step: list(&blockers) }
            };
        }
        None
    }

    fn has_record(&self, now: Instant, node: &NodeId, term: Term, record_lsn: Lsn) -> bool {
        self.seen.on_timeline(node, term, now, &self.settings).is_some_and(|s| s.receive_lsn >= record_lsn)
    }

    fn candidate_lost(&self, now: Instant, term: Term, node: &NodeId, since: Instant) -> bool {
        let Some(agent) = self.seen.agents.get(node) else { return true };
        let heard_since = agent.heard_at.is_some_and(|at| at > since + self.settings.refused_confirm);
        match (self.seen.reachable(node, now, &self.settings), heard_since) {
            (None, _) => now.since(since) >= self.settings.detect_timeout,
            (Some(_), false) => false, // its report may be older than its promotion
            (Some(state), true) => match &state.postgres {
                PostgresState::Primary(p) => Some(p.timeline) != term.timeline(),
                PostgresState::Hung { for_ms } => Duration::from_millis(*for_ms) >= self.settings.hung_timeout,
                _ => true, // it is no primary any more
            },
        }
    }

    /// Without a quorum that fences, a proxy could go on writing to the old primary until its view runs out.
    fn proxies_behind(&self, now: Instant, round: &Round) -> Option<Blocker> {
        if round.policy.protects() || round.prev.is_none() {
            return None;
        }
        let left = self.settings.proxy_lease.saturating_sub(now.since(round.started));
        let behind = self.seen.records.proxies.iter().filter(|(_, p)| p.term < round.term);
        let proxies: Vec<String> = behind.map(|(id, p)| format!("{id} (term {})", p.term)).collect();
        (!proxies.is_empty() && !left.is_zero()).then(|| Blocker::ProxiesBehind { proxies, left_ms: millis(left) })
    }

    fn suspension(&self, round: &Round, followers: &[NodeId], needed: u32) -> Suspension {
        Suspension {
            term: round.term,
            since: round.journal.fork.map_or(Lsn::INVALID, |f| f.lsn),
            since_wall: self.wall,
            why: format!("an operator allowed data loss; {} of {needed} standbys followed", followers.len()),
        }
    }

    /// T3, by the new primary's agent.
    fn order_open(
        &mut self,
        now: Instant,
        round: &mut Round,
        node: &NodeId,
        suspend: Option<Suspension>,
        out: &mut Vec<Action>,
    ) {
        phase(&mut round.journal, round.begin.began, now, "recorded");
        self.verdict = Verdict::Acting { term: round.term, step: format!("opening {node}") };
        let Step::Opening { open, .. } = &mut round.step else { return };
        if !open.due(now) {
            return;
        }
        if let Some(s) = &suspend {
            observed(&mut round.journal, format!("commits past {} are not protected: {}", s.since, s.why));
        }
        open.in_flight = true;
        let (term, term_revision, policy_revision) = (round.term, round.revision, round.policy_revision);
        let command = Command::Open(Open { term, term_revision, suspend, policy_revision });
        send(out, node, command, self.settings.detect_timeout * 5);
    }

    /// T3 is made.
    fn finish(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Stage::Round(mut round) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        phase(&mut round.journal, round.begin.began, now, "open");
        round.journal.finished = Some("active".into());
        self.write_journal(&round.journal, out);
        self.saw_primary = round.term;
        self.rearm_not_before = now + self.settings.retry;
        let journal = Box::new(round.journal);
        if let Some(op) = round.begin.op {
            let answer = outcome(&op, round.term, round.begin.home.as_ref(), &journal);
            out.push(Action::Answer { id: op.id, answer: Box::new(answer) });
        }
        out.push(Action::Ended { cause: round.begin.cause, active: true, journal });
    }

    /// End this round; a higher term follows, whose freeze fences whatever this one may have left behind.
    fn give_up(
        &mut self,
        now: Instant,
        mut round: Round,
        why: &str,
        failing: Option<NodeId>,
        out: &mut Vec<Action>,
    ) -> Flow {
        round.journal.finished = Some(format!("given up: {why}"));
        self.write_journal(&round.journal, out);
        out.push(Action::Ended { cause: round.begin.cause, active: false, journal: Box::new(round.journal) });
        let mut begin = round.begin;
        begin.evidence.push(format!("term {} was given up: {why}", round.term));
        begin.not_before = now + self.settings.backoff(begin.failures);
        begin.failures += 1;
        if let Some(node) = failing {
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

fn send(out: &mut Vec<Action>, node: &NodeId, command: Command, within: Duration) {
    out.push(Action::Send { node: node.clone(), command: Box::new(command), within });
}

fn keys(map: &BTreeMap<NodeId, Frozen>) -> Vec<NodeId> {
    map.keys().cloned().collect()
}

fn short(
    policy: &PolicyRecord,
    prev: Option<&Tenure>,
    usable: &BTreeSet<NodeId>,
    missing: Vec<Missing>,
) -> Vec<Blocker> {
    let rule = sync_set::rule(policy);
    let have = prev.map_or_else(|| usable.iter().cloned().collect(), |p| sync_set::others(policy, p, usable));
    let (m, k, needed) = (policy.m(), policy.k, rule.needed(policy));
    let mut blockers = vec![Blocker::TooFewRecruits { m, k, needed, have, missing }];
    if let (Rule::OldPrimary, Some(s)) = (rule, &policy.suspended) {
        blockers.push(Blocker::Suspended { since: s.since, term: s.term });
    }
    blockers
}

/// What an operator is told when the term is open.
fn outcome(op: &Op, term: Term, home: Option<&NodeId>, journal: &JournalRecord) -> Answer {
    let node = journal.to.clone();
    let name = node.as_ref().map_or_else(String::new, ToString::to_string);
    let detail = list(&journal.observed);
    match (&op.to, &node) {
        (_, Some(n)) if home == Some(n) => {
            let why = format!("not changed: {n} is primary again in term {term}; {detail}");
            Answer::Failed { why, journal: Some(Box::new(journal.clone())) }
        }
        (Some(to), Some(n)) if to != n => {
            let why = format!("{n}, not {to}, is primary in term {term}: its WAL ended later; {detail}");
            Answer::Failed { why, journal: Some(Box::new(journal.clone())) }
        }
        _ => {
            let note = format!("{name} is primary in term {term}");
            Answer::Done { term, node, note, journal: Some(Box::new(journal.clone())) }
        }
    }
}

const fn phase_word(phase: Phase) -> &'static str {
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
