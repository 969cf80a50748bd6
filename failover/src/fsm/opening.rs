//! From T2 to T3: promote, let the others follow, and open once the term's record is on a quorum. PURE.

use crate::api::{Follow, Open, PostgresState, Prepared, Promoted};
use crate::fsm::action::{Action, ChangeKind, Command, CommandError, Guard, RecordPut};
use crate::fsm::blocker::{Blocker, Verdict, list};
use crate::fsm::observe::millis;
use crate::fsm::planner::{Flow, Planner, Stage};
use crate::fsm::report::{observed, phase};
use crate::fsm::round::{Ask, Round, Step, send};
use crate::fsm::sync_set::{self};
use crate::record::{Lowered, MOST_FORKS, Mode, Phase, ProxyRecord, Suspension, TermRecord};
use crate::view::topology::lengthened;
use cluster::topology::STRICT_VIEW;
use cluster::{Instant, Lsn, NodeId, Term};
use std::time::Duration;

/// As many forks, or bounds, as a record keeps.
fn newest<T: Copy>(all: &[T]) -> Vec<T> {
    all[all.len().saturating_sub(MOST_FORKS)..].to_vec()
}

impl Planner {
    pub(super) fn promoted(&mut self, now: Instant, node: &NodeId, promoted: Promoted, out: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let Step::Promoting(choice) = round.step.clone() else { return };
        if choice.node != *node {
            return;
        }
        phase(&mut round.journal, round.begin.began, now, "promoted");
        round.journal.fork = Some(promoted.fork);
        round.journal.xid_bound = Some(promoted.xid_bound);
        let Prepared { count, oldest } = &promoted.prepared;
        if *count > 0 {
            let what = format!(
                "{count} prepared transactions wait at {node} for COMMIT or ROLLBACK PREPARED: {}",
                list(oldest)
            );
            observed(&mut round.journal, what);
        }
        round.step = Step::Recording(choice, promoted);
        self.ask_to_follow(now, out);
    }

    pub(super) fn send_record(&mut self, out: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        let Step::Recording(choice, promoted) = &round.step else { return };
        let record = TermRecord {
            phase: Phase::Opening,
            node: Some(choice.node.clone()),
            fork: Some(promoted.fork),
            forks: newest(&promoted.forks),
            xid_bound: Some(promoted.xid_bound),
            xid_bounds: newest(&promoted.xid_bounds),
            record_lsn: Some(promoted.record_lsn),
            chosen_before: None,
            ..self.round_record(round)
        };
        let (guards, puts) = (vec![Guard::Term(round.revision)], vec![RecordPut::Term(record)]);
        self.send(ChangeKind::Record, guards, puts, Vec::new(), out);
    }

    pub(super) fn ask_to_follow(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let Some(primary) = round.step.candidate().cloned() else { return };
        let record_lsn = match &round.step {
            Step::Recording(_, promoted) => Some(promoted.record_lsn),
            _ => None,
        };
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
            send(
                out,
                node,
                Command::Follow(Follow { term, primary, endpoint, record_lsn, ahead: None }),
                self.settings.detect_timeout,
            );
        }
    }

    /// A promotion that is not known to have succeeded: the node must be fenced by a higher term before another, or
    /// it again, is tried.
    pub(super) fn promote_failed(&mut self, now: Instant, node: &NodeId, error: &CommandError, out: &mut Vec<Action>) {
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
            // It may not have been promoted yet when it said so.
            _ if self.seen.is_outdated(&node, &self.settings) => {
                self.verdict = Verdict::Acting { term: term.term, step: format!("listening for {node}") };
                return Flow::Wait;
            }
            _ => return self.take_over(now, term, out), // in no other state can it be opened
        }
        let step = Step::Opening { node, record_lsn, since: now, open: Ask::default() };
        self.go_on(now, term, &policy, step);
        Flow::Again
    }

    /// Wait for followers and old proxies, then order T3. Gives the node if it is lost.
    pub(super) fn advance_opening(&mut self, now: Instant, round: &mut Round, out: &mut Vec<Action>) -> Option<NodeId> {
        let Step::Opening { node, record_lsn, since, .. } = &round.step else { return None };
        let (node, record_lsn, since) = (node.clone(), *record_lsn, *since);
        if self.candidate_lost(now, round.term, &node, since) {
            return Some(node);
        }
        let follows = |n: &&NodeId| **n != node && self.has_record(now, n, &node, round.term, record_lsn);
        let members = self.seen.agents.keys().filter(|n| round.policy.counts(n));
        let followers: Vec<NodeId> = members.filter(follows).cloned().collect();
        let (needed, there) = (sync_set::open_quorum(&round.policy), followers.clone());
        let mut blockers = Vec::new();
        let mut suspend = None;
        if !followers.is_empty() {
            phase(&mut round.journal, round.begin.began, now, "followed");
        }
        if !sync_set::opens(&round.policy, &node, &followers) {
            let may = round.begin.allow_loss || round.policy.mode == Mode::Available;
            if may && now.since(since) >= self.settings.open_wait {
                suspend = Some(self.suspension(round, &followers, needed, record_lsn));
            } else {
                blockers.push(Blocker::TooFewFollowers { needed, have: followers, record_lsn });
            }
        }
        let policy_lost = self.seen.lost_policy(now, &self.settings).is_some();
        round.unfenced = round.find_unfenced(&there, policy_lost);
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

    /// Who streams from another node has the record of another's timeline of that number.
    fn has_record(&self, now: Instant, node: &NodeId, primary: &NodeId, term: Term, record_lsn: Lsn) -> bool {
        self.seen
            .on_timeline(node, term, now, &self.settings)
            .is_some_and(|s| s.receive_lsn >= record_lsn && s.streams_from.as_ref().is_none_or(|from| from == primary))
    }

    pub(super) fn candidate_lost(&self, now: Instant, term: Term, node: &NodeId, since: Instant) -> bool {
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

    /// Without a quorum that fences, a proxy could go on writing to the old primary until its view runs out. Those of a strict
    /// cluster do that for as long whether they are registered or not, unless the old primary's agent vouches on.
    pub(super) fn proxies_behind(&self, now: Instant, round: &Round) -> Option<Blocker> {
        if round.prev.is_none() || round.policy.protects() && round.unfenced.is_none() {
            return None;
        }
        // Where the policy on record is not the last one, that may have been strict.
        let strict = round.unfenced.clone().filter(|_| !round.policy.protects() || round.policy.mode == Mode::Strict);
        let left = |lasts: Duration| lasts.saturating_sub(now.since(round.started));
        if let Some(unfrozen) = strict {
            let left = left(lengthened(STRICT_VIEW));
            return (!left.is_zero()).then(|| Blocker::StrictViews { unfrozen, left_ms: millis(left) });
        }
        // Each goes by its own file, which may say another time than ours.
        let lasts = |p: &ProxyRecord| self.settings.proxy_lease.max(lengthened(Duration::from_millis(p.view_ms)));
        let proxies = self.seen.records.proxies.iter().filter(|(_, p)| p.term < round.term);
        let behind: Vec<_> =
            proxies.map(|(id, p)| (id, p, left(lasts(p)))).filter(|(.., left)| !left.is_zero()).collect();
        let left_ms = behind.iter().map(|(.., left)| millis(*left)).max()?;
        let proxies = behind.iter().map(|(id, p, _)| format!("{id} (term {})", p.term)).collect();
        Some(Blocker::ProxiesBehind { proxies, left_ms })
    }

    fn suspension(&self, round: &Round, followers: &[NodeId], needed: u32, record_lsn: Lsn) -> Suspension {
        let there = format!("{} of {needed} standbys followed", followers.len());
        // With enough recruits all that was promised is here; who has this term's record has it too.
        let promised = round.policy.mode == Mode::Available && !round.begin.allow_loss;
        let lowered = Lowered { k: round.policy.k, complete_from: Some(record_lsn), timed: false, ended: None };
        let why = if promised { there } else { format!("an operator allowed data loss; {there}") };
        Suspension {
            lowered: promised.then_some(lowered),
            term: round.term,
            since: round.journal.fork.map_or(Lsn::INVALID, |f| f.lsn),
            since_wall: self.wall,
            why,
        }
    }

    /// T3, by the new primary's agent.
    pub(super) fn order_open(
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
        if let Some(left) = round.left_unfenced() {
            observed(&mut round.journal, left);
        }
        round.suspend.clone_from(&suspend);
        let (term, term_revision, policy_revision) = (round.term, round.revision, round.policy_revision);
        let command = Command::Open(Open { term, term_revision, suspend, policy_revision });
        send(out, node, command, self.settings.detect_timeout * 5);
    }
}
