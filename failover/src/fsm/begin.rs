//! Before T1: why a term should begin, what forbids it, and T1 itself. PURE.
//!
//! Nothing has been touched yet, so every doubt is a reason to wait, and says so as a blocker with its numbers.

use crate::api::{Position, PostgresState};
use crate::fsm::action::{Action, Answer, ChangeKind, Guard, RecordKey, RecordPut};
use crate::fsm::blocker::{Blocker, Missing, Unfit, Verdict};
use crate::fsm::observe::{At, Health, millis};
use crate::fsm::planner::{Flow, Planner, Stage};
use crate::fsm::preference::Willing;
use crate::fsm::report::phase;
use crate::fsm::round::{Begin, Round, Step, phase_word};
use crate::fsm::sync_set::{self, Rule};
use crate::record::{Cause, Chosen, JournalRecord, Mode, Phase, PolicyRecord, Tenure, TermRecord};
use cluster::timeline::Fork;
use cluster::{Instant, NodeId, Term};
use std::collections::BTreeSet;
use std::time::Duration;

/// So many rounds of a change may lose their candidates one after the other. From there on each waits longer than the one
/// before it: twice as long, up to the budget's window.
const MOST_FAILED: u32 = 6;
/// The first of these pauses.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

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
        let Some(begin) = self.begin_for(now, since, evidence, restarted) else { return Flow::Wait };
        let begin = self.rather_at_home(now, begin);
        match self.stop_before(now, begin) {
            Some(begin) => self.begin_or_hold(now, begin, out),
            None => Flow::Again,
        }
    }

    /// Where any other node would lose too much, and nothing else stands in the way, the dead primary is recovered, if its
    /// agent is there: it has everything. Not before an operator has had the time to order otherwise. What the others lack
    /// is looked at again when they are chosen from.
    fn rather_at_home(&mut self, now: Instant, begin: Begin) -> Begin {
        let blockers = self.obstacles(now, &begin);
        let would_lose = |b: &Blocker| matches!(b, Blocker::LossTooLarge { .. } | Blocker::CommitsInDoubt { .. });
        let lossy = !blockers.is_empty() && blockers.iter().all(would_lose);
        let home = self.seen.term().and_then(|t| Some((t.term, t.node.clone()?))).filter(|(_, node)| {
            let there = self.seen.reachable(node, now, &self.settings).is_some();
            lossy && there && !self.seen.at_work(node, now, &self.settings) && self.unfit(node, now).is_none()
        });
        let Some((term, home)) = home else {
            self.lossy_since = None;
            return begin;
        };
        let since = self.lossy_since.filter(|(t, _)| *t == term).map_or(now, |(_, since)| since);
        self.lossy_since = Some((term, since));
        if now.since(since) < self.settings.restart_grace {
            return begin;
        }
        Begin { cause: Cause::Restart, home: Some(home), ..begin }
    }

    /// The term that follows that death, if there is one of which the primary is known.
    pub(super) fn begin_for(
        &self,
        now: Instant,
        since: Instant,
        evidence: Vec<String>,
        restarted: bool,
    ) -> Option<Begin> {
        let (term, node) = self.seen.term().and_then(|t| Some((t.term, t.node.clone()?)))?;
        if let Some(begin) = self.left_switchover(since, &evidence) {
            return Some(begin);
        }
        let there = self.seen.reachable(&node, now, &self.settings).is_some();
        let runs = self.seen.at_work(&node, now, &self.settings);
        let stopped_before_us = there && !runs && (restarted || self.saw_primary != term);
        let mut begin = if stopped_before_us {
            Self::automatic(Cause::Restart, since, evidence)
        } else {
            Self::automatic(Cause::Failover, since, evidence)
        };
        if stopped_before_us {
            begin.home = Some(node);
        }
        Some(begin)
    }

    /// The gate was closed for an order that stops the primary, and it is stopped cleanly: whoever gave the order was lost, and what was
    /// begun goes on. It is nobody's death, so neither a pause nor the budget stands in the way.
    fn left_switchover(&self, since: Instant, evidence: &[String]) -> Option<Begin> {
        self.seen.term().filter(|t| t.phase == Phase::Draining)?;
        let last = self.last_tenure()?;
        let end = self.clean_end(&last)?;
        let end = Position { timeline: end.timeline, lsn: end.lsn };
        Some(Begin { end: Some((last.node, end)), ..Self::automatic(Cause::Switchover, since, evidence.to_vec()) })
    }

    /// Could another node than `dead` become primary, and enough others follow it, as far as this manager hears them?
    pub(super) fn could_open_without(&self, now: Instant, dead: &NodeId) -> bool {
        let Some(policy) = self.seen.policy() else { return false };
        let there: Vec<NodeId> = self.prospects(now).into_iter().filter(|n| n != dead && policy.counts(n)).collect();
        let preferences = self.preferences(Some(dead));
        let willing = |n: &&NodeId| preferences.get(*n).copied().unwrap_or_default().willing != Willing::Never;
        // In available mode a term opens alone if it must.
        let opens = |n| policy.mode == Mode::Available || sync_set::opens(policy, n, &there);
        there.iter().filter(willing).any(opens)
    }

    /// A term that another manager left before its node was promoted: begin a higher one.
    pub(super) fn take_over(&mut self, now: Instant, term: &TermRecord, out: &mut Vec<Action>) -> Flow {
        if self.was_open_already(term.term) {
            return self.begin_above_the_promised(now, out);
        }
        let left = format!("term {} was left by {} while {}", term.term, term.coordinator, phase_word(term.phase));
        let mut begin = Self::automatic(term.cause, now, vec![left]);
        begin.avoid = term.node.clone();
        begin.lost_candidates = self.rounds_on_record(now, term);
        self.begin_or_hold(now, begin, out)
    }

    pub(super) fn begin_or_hold(&mut self, now: Instant, begin: Begin, out: &mut Vec<Action>) -> Flow {
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
        let Stage::Intent(mut begin) = std::mem::replace(&mut self.stage, Stage::Idle) else { return Flow::Wait };
        if let Some(term) = self.opened_after_all(&begin) {
            return self.leave_open(now, &term, begin, out);
        }
        if begin.end_of(self.last_tenure().as_ref()).is_none() {
            begin.end = None;
        }
        let blockers = self.obstacles(now, &begin);
        if self.is_overtaken_by_the_primary(now, &mut begin, &blockers) {
            let well = matches!(self.seen.health(now, &self.settings), Health::Well);
            if let (Some(op), Some(term)) = (begin.op, self.seen.term()) {
                let node = term.node.as_ref().map_or_else(String::new, ToString::to_string);
                let why = if well {
                    format!("{node} is well again and stays primary in term {}", term.term)
                } else {
                    format!("{node} still runs and holds its lease: it is stopped first, as where nobody has asked")
                };
                out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
            }
            return Flow::Again;
        }
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

    /// A term that may not begin, while the primary that it was to replace is well again, is not waited for: where the lease
    /// is the fence it would be for ever, with the gate closed, say, and the leave to lose data would be used for whatever
    /// happens next. An operator is told, unless what forbids it may pass by itself while he waits. Nor is one waited for
    /// while the primary is no good and its agent renews the lease: it must be stopped first (see `stop_before`).
    fn is_overtaken_by_the_primary(&self, now: Instant, begin: &mut Begin, blockers: &[Blocker]) -> bool {
        let open = self.seen.term().is_some_and(TermRecord::is_open);
        let stays = begin.op.is_none() || blockers.iter().any(|b| matches!(b, Blocker::LeaseHeld { .. }));
        let ends = match self.seen.health(now, &self.settings) {
            Health::Well => true,
            Health::Unsure(_) => false,
            Health::Dead { .. } => {
                let runs = self.seen.open_primary().is_some_and(|p| self.seen.at_work(p, now, &self.settings));
                runs && blockers.iter().all(|b| matches!(b, Blocker::LeaseHeld { .. }))
            }
        };
        // Behind a clean stop that is known it can only be a report of before.
        let back = open && ends && stays && !blockers.is_empty() && begin.end.is_none();
        // What it said last before it was stopped may say that it is well.
        begin.back_since = back.then(|| begin.back_since.unwrap_or(now));
        begin.back_since.is_some_and(|since| now.since(since) >= self.settings.detect_timeout)
    }

    /// What forbids to begin now.
    pub(super) fn obstacles(&mut self, now: Instant, begin: &Begin) -> Vec<Blocker> {
        let (Some(term), Some(policy)) = (self.seen.term().cloned(), self.seen.policy().cloned()) else {
            return vec![self.no_cluster()];
        };
        let mut blockers = Vec::new();
        let was_open = matches!(term.phase, Phase::Active | Phase::Draining);
        if was_open && matches!(begin.cause, Cause::Failover | Cause::Restart) {
            let fence = term.node.as_ref().and_then(|n| Some((n, self.seen.records.fences.get(n)?)));
            if let Some((node, fence)) = fence {
                blockers.push(Blocker::PrimaryFenced { node: node.clone(), by: fence.by.clone() });
            }
            blockers.extend(self.paused());
            if self.is_of_the_budget(begin) {
                blockers.extend(self.budget(now));
            }
            if begin.cause == Cause::Failover {
                blockers.extend(self.loss_too_large(now, &policy));
            }
        }
        let elsewhere = begin.cause == Cause::OperatorFailover && !begin.unlimited && begin.home.is_none();
        if was_open && elsewhere {
            blockers.extend(self.loss_too_large(now, &policy));
        }
        let replaced = begin.cause == Cause::Failover || begin.cause == Cause::OperatorFailover && begin.home.is_none();
        if was_open && replaced && !begin.allow_loss {
            blockers.extend(self.in_doubt());
        }
        let failed = self.too_many_failed(now, begin);
        if failed.is_some() && !was_open && !begin.allow_loss {
            // Why each of them went back to the same node.
            blockers.extend(term.prev.as_ref().and_then(|prev| self.in_doubt_of(prev.term, &policy)));
        }
        blockers.extend(failed);
        if !begin.allow_loss {
            blockers.extend(self.policy_lost_to_a_backup(now));
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

    /// What another node than the primary would lose, for all that is known.
    pub(super) fn in_doubt(&self) -> Option<Blocker> {
        self.in_doubt_of(self.seen.term()?.term, self.seen.policy()?)
    }

    /// The same of that term's primary.
    pub(super) fn in_doubt_of(&self, term: Term, policy: &PolicyRecord) -> Option<Blocker> {
        // Where protection is lowered, what was promised before it counts still.
        let lowered = policy.mode != Mode::Async && policy.suspended.as_ref().is_some_and(|s| s.lowered.is_some());
        let doubt = self.seen.doubts.of(term).filter(|_| policy.protects() || lowered)?;
        Some(Blocker::CommitsInDoubt { nodes: doubt.nodes.iter().cloned().collect(), lsn: doubt.lsn, term })
    }

    /// Rounds that lose one candidate after the other begin terms without end, and each freezes everybody.
    fn too_many_failed(&self, now: Instant, begin: &Begin) -> Option<Blocker> {
        let (rounds, last) = begin.lost_candidates;
        let doubled = FIRST_PAUSE.saturating_mul(1 << rounds.saturating_sub(MOST_FAILED).min(10));
        let left = doubled.min(self.settings.failover_window).saturating_sub(now.since(last));
        (rounds >= MOST_FAILED && !left.is_zero() && begin.op.is_none())
            .then(|| Blocker::RoundsFailed { rounds, next_in_ms: millis(left) })
    }

    /// Rounds that earlier leaders began since a term was last open, before the one on record. Not all of them had a
    /// candidate to lose, but each froze everybody. When the last of them ended is not on record: no later than this lead began,
    /// and soon after that round did, which is known by the hosts' time of day. Leads that change hands must not prolong a pause
    /// for ever; a host whose clock is ahead by the pause takes it for over, once for each of its leads, and nothing but the
    /// pause hangs on it.
    pub(super) fn rounds_on_record(&self, now: Instant, term: &TermRecord) -> (u32, Instant) {
        let last = term.prev.as_ref().filter(|_| !self.history_lost());
        let rounds = last.map_or(0, |open| term.term.0.saturating_sub(open.term.0 + 1));
        let journal = self.last.as_ref().filter(|j| j.term == term.term);
        let age = journal.map_or(Duration::ZERO, |j| Duration::from_millis(self.wall.saturating_sub(j.started)));
        (u32::try_from(rounds).unwrap_or(u32::MAX), self.leading_since.min(now - age))
    }

    /// The arithmetic of a policy that is not the one in force proves nothing.
    fn policy_lost_to_a_backup(&self, now: Instant) -> Option<Blocker> {
        let (known, unheard) = self.seen.lost_policy(now, &self.settings)?;
        let have = self.seen.policy().map_or(0, |p| p.epoch);
        Some(Blocker::PolicyLost { have, known: known.epoch, unheard })
    }

    /// Write the policy that was in force when the backup was not: whoever lowered or raised what is promised had it read
    /// by the primary's agent, at least.
    pub(super) fn restore_policy(&mut self, now: Instant, out: &mut Vec<Action>) {
        let nothing_begun = matches!(self.stage, Stage::Idle | Stage::Intent(_)) && self.policy_op.is_none();
        let Some((known, unheard)) = self.seen.lost_policy(now, &self.settings).filter(|_| nothing_begun) else {
            return;
        };
        // What agents have read may be newer than what this manager has, for a moment: the transaction fails then.
        let settled = now.since(self.leading_since) >= self.settings.settle;
        let (Some(term), Some(old)) = (&self.seen.records.term, &self.seen.records.policy) else { return };
        if unheard.is_empty() && settled {
            let guards = vec![Guard::Term(term.revision), Guard::Policy(old.revision)];
            (self.rearm, self.suspend) = (None, None);
            self.send(ChangeKind::Policy, guards, vec![RecordPut::Policy(known)], Vec::new(), out);
        }
    }

    /// The blockers if the nodes that could be frozen now, without `leaving`, would not suffice.
    pub(super) fn too_few(&self, now: Instant, policy: &PolicyRecord, leaving: Option<&NodeId>) -> Vec<Blocker> {
        let prev = self.last_tenure();
        let mut usable = self.prospects(now);
        if let Some(leaving) = leaving {
            usable.remove(leaving);
        }
        // The quarantined, beside who was chosen already.
        let chosen = self.left_chosen().filter(|c| c.policy_epoch == policy.epoch);
        let is_quarantined = |n: &&NodeId| matches!(self.unfit(n, now), Some(Unfit::Quarantined { .. }));
        let quarantined: BTreeSet<NodeId> = self.seen.agents.keys().filter(is_quarantined).cloned().collect();
        let there = chosen.as_ref().is_some_and(|c| usable.contains(&c.node));
        let counted = usable.iter().chain(quarantined.iter().filter(|_| there)).cloned().collect();
        let ends = usable.iter().filter_map(|n| self.end_reported(n, now));
        let enough = match self.history_lost() {
            false => sync_set::enough_beside(policy, prev.as_ref(), &usable, &counted, ends),
            true => sync_set::sufficient_for_any(policy, &counted),
        };
        if enough {
            return Vec::new();
        }
        let missing = |node: &NodeId| self.unfit(node, now).map(|unfit| Missing { node: node.clone(), unfit });
        let members = self.seen.agents.keys().filter(|n| policy.counts(n) && Some(*n) != leaving);
        let missing = members.filter_map(missing).collect();
        let mut blockers = short(policy, prev.as_ref(), &usable, missing);
        let prev = (prev.as_ref(), !self.history_lost());
        let awaited =
            |c: &Chosen| chosen_awaited(policy, prev, &usable, &quarantined, c, self.end_reported(&c.node, now));
        blockers.extend(chosen.as_ref().filter(|c| Some(&c.node) != leaving).and_then(awaited));
        blockers
    }

    /// A term that etcd tells of as unfinished was open: etcd was restored from a backup.
    pub(super) fn was_open_already(&self, term: Term) -> bool {
        self.opened >= term
    }

    /// Is it unknown who was primary last? Also once a term was begun above the promised, until one is open.
    pub(super) fn history_lost(&self) -> bool {
        !self.knows_of_every_term() || self.seen.term().is_some_and(|t| t.history_lost && !t.is_open())
    }

    /// Who was chosen last since a term was open, unless terms have been that etcd does not tell of.
    fn left_chosen(&self) -> Option<Chosen> {
        let known = |t: &&TermRecord| self.knows_of_every_term() && t.term > self.choice_doubted_in;
        self.seen.term().filter(known)?.left_chosen()
    }

    /// Where the WAL of a standby ends at least.
    fn end_reported(&self, node: &NodeId, now: Instant) -> Option<Position> {
        match &self.seen.reachable(node, now, &self.settings)?.postgres {
            PostgresState::Standby(s) => Some(Position { timeline: s.timeline, lsn: s.receive_lsn }),
            _ => None, // stopped, starting or hung: its end is not known
        }
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
        if let Some(have) = self.seen.foreign(state.system_id.as_ref()) {
            return Some(Unfit::Foreign { have: have.clone() });
        }
        if let Some(what) = &state.namesake {
            return Some(Unfit::Namesake { what: what.clone() });
        }
        if let Some(floor) = state.quarantine {
            return Some(Unfit::Quarantined { floor });
        }
        match (&state.postgres, &state.rejoin) {
            (PostgresState::Stopped { .. }, _) if self.seen.maintained(node) => Some(Unfit::InMaintenance),
            (PostgresState::Absent, None) => Some(Unfit::NoData),
            (PostgresState::Absent | PostgresState::Stopped { .. }, Some(what)) => {
                Some(Unfit::Rejoining { what: what.clone() })
            }
            (PostgresState::Hung { for_ms }, _) => Some(Unfit::Hung { for_ms: *for_ms }),
            // A stopped one can be recovered, a starting one waited for.
            (PostgresState::Stopped { .. }, None)
            | (PostgresState::Starting | PostgresState::Standby(_) | PostgresState::Primary(_), _) => None,
        }
    }

    pub(super) fn loss_too_large(&self, now: Instant, policy: &PolicyRecord) -> Option<Blocker> {
        let term = self.seen.term()?.term;
        let last = self.clock.last(term).filter(|_| !policy.protects())?;
        let ends = policy.voters.iter().filter_map(|n| self.seen.on_timeline(n, term, now, &self.settings));
        let best = ends.map(|s| s.receive_lsn).max();
        // Nobody has anything of this term: what it wrote since it was unprotected would be lost.
        let since = policy.suspended.as_ref().filter(|s| s.term.0 == term.0 && s.lowered.is_some()).map(|s| s.since);
        let best = match policy.mode {
            Mode::Async => best?,
            Mode::Strict | Mode::Available => best.or(since)?,
        };
        let (bytes, limit) = (last.bytes_since(best), self.loss_limit(policy));
        (bytes > limit).then_some(Blocker::LossTooLarge { bytes, limit })
    }

    /// T1.
    pub(super) fn send_begin(&mut self, now: Instant, mut begin: Begin, out: &mut Vec<Action>) {
        let (Some(old), Some(policy)) = (self.seen.records.term.clone(), self.seen.records.policy.clone()) else {
            return;
        };
        let term = self.next_term();
        let prev = self.last_tenure();
        let newest_timeline = old.value.may_have_made().filter(|_| self.knows_of_every_term());
        let record = TermRecord {
            term,
            phase: Phase::Recruiting,
            coordinator: self.id.clone(),
            node: None,
            cause: begin.cause,
            prev: prev.clone(),
            fork: None,
            forks: Vec::new(),
            xid_bound: None,
            xid_bounds: Vec::new(),
            record_lsn: None,
            policy_epoch: policy.value.epoch,
            newest_timeline,
            holds_all_of: None,
            holds_written_of: None,
            history_lost: self.history_lost(),
            lossy_timelines: old.value.left_lossy(),
            chosen_before: self.left_chosen(),
            data_loss_allowed: begin.allow_loss,
        };
        let mut guards = vec![Guard::Term(old.revision), Guard::Policy(policy.revision)];
        if !policy.value.protects() {
            guards.push(Guard::NoPrimary);
        }
        if self.bound_by_pause(&begin) {
            guards.push(Guard::NotPaused);
        }
        begin.detected = begin.detected.or(Some(now));
        let journal = self.new_journal(term, &begin, prev.as_ref(), &policy.value);
        let mut puts = vec![RecordPut::Term(record)];
        puts.extend(self.unwritten_journal());
        puts.push(RecordPut::Journal(Box::new(journal)));
        begin.counts = self.counts_for_budget(&begin, &old.value);
        begin.for_proxy = self.proxied().is_some_and(|(_, proxied)| proxied.next() == term);
        if begin.counts {
            // In the same transaction: whoever leads next counts it too, whatever becomes of this manager.
            puts.push(RecordPut::Spent(term, self.settings.failover_window));
        }
        self.verdict = Verdict::Acting { term, step: "beginning the term".into() };
        self.stage = Stage::Beginning(Box::new(begin));
        self.send(ChangeKind::Begin, guards, puts, vec![RecordKey::Primary], out);
    }

    /// Is this begun for a death? A restart is, wherever it ends (whether it is one hangs on what its manager has seen); behind
    /// an etcd restored from a backup it is not.
    fn is_of_the_budget(&self, begin: &Begin) -> bool {
        begin.cause == Cause::Failover || begin.cause == Cause::Restart && self.knows_of_every_term()
    }

    /// Is this an automatic failover's first attempt? The first that replaces an open term is one too: a term that its manager gave
    /// up may have opened all the same.
    fn counts_for_budget(&self, begin: &Begin, old: &TermRecord) -> bool {
        let open = matches!(old.phase, Phase::Active | Phase::Draining);
        self.is_of_the_budget(begin) && (open || begin.cause == Cause::Failover && begin.failures == 0)
    }

    pub(super) fn new_journal(
        &self,
        term: Term,
        begin: &Begin,
        prev: Option<&Tenure>,
        policy: &PolicyRecord,
    ) -> JournalRecord {
        JournalRecord {
            term,
            cause: begin.cause,
            observed: begin.evidence.clone(),
            from: prev.map(|p| p.node.clone()),
            // Behind an etcd restored from a backup that may be another one: then the fork tells.
            ended: prev.filter(|_| !self.history_lost()).map(|p| p.term),
            to: None,
            started: self.wall,
            phases: Vec::new(),
            recruits: Vec::new(),
            m: policy.m(),
            k: policy.k,
            fork: None,
            xid_bound: None,
            below_mode: 0,
            window: None,
            clean_end: begin.end.as_ref().map(|(_, end)| Fork { timeline: end.timeline, lsn: end.lsn }),
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
        if begin.counts {
            self.spent.push_back((now, term.term));
        }
        if begin.for_proxy {
            self.passed_over.push_back(now);
        }
        let mut journal = self.new_journal(term.term, &begin, term.prev.as_ref(), &policy.value);
        journal.phases.clone_from(&begin.steps);
        phase(&mut journal, begin.began, begin.detected.unwrap_or(now), "detected");
        phase(&mut journal, begin.began, now, "recruiting");
        let round = Round::new(now, *begin, At { value: &term, revision }, policy, Step::Recruiting, journal);
        self.stage = Stage::Round(Box::new(round));
        let _ = self.advance_round(now, out);
    }
}

/// Where the WAL of a node ended when it was chosen.
pub(super) const fn base_of(chosen: &Chosen) -> Position {
    Position { timeline: chosen.base.timeline, lsn: chosen.base.lsn }
}

/// Who was chosen in vain, where it would suffice with those that are there and in quarantine, and not without these. `prev`: the
/// last tenure, and whether that is known for sure.
pub(super) fn chosen_awaited(
    policy: &PolicyRecord,
    prev: (Option<&Tenure>, bool),
    usable: &BTreeSet<NodeId>,
    quarantined: &BTreeSet<NodeId>,
    chosen: &Chosen,
    have: Option<Position>,
) -> Option<Blocker> {
    let names = usable.iter().chain([&chosen.node]).cloned().collect();
    let counted = quarantined.union(&names).cloned().collect();
    let enough = |counted| match prev {
        (prev, true) => sync_set::enough_beside(policy, prev, &names, counted, []),
        (_, false) => sync_set::sufficient_for_any(policy, counted),
    };
    let suffices = enough(&counted) && !enough(&names);
    let (node, base) = (chosen.node.clone(), base_of(chosen));
    suffices.then(|| Blocker::ChosenAwaited { node, base, have: have.filter(|have| *have < base) })
}

pub(super) fn short(
    policy: &PolicyRecord,
    prev: Option<&Tenure>,
    usable: &BTreeSet<NodeId>,
    missing: Vec<Missing>,
) -> Vec<Blocker> {
    let rule = sync_set::rule(policy);
    let have = prev.map_or_else(|| usable.iter().cloned().collect(), |p| sync_set::others(policy, p, usable));
    let (m, k, needed) = (policy.m(), policy.k, sync_set::needed(policy, prev.map(|p| &p.node)));
    let mut blockers = vec![Blocker::TooFewRecruits { m, k, needed, have, missing }];
    if let (Rule::OldPrimary | Rule::Lowered, Some(s)) = (rule, &policy.suspended) {
        blockers.push(Blocker::Suspended { since: s.since, term: s.term });
    }
    blockers
}
