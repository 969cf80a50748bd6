//! From T1 to T2: freeze everybody, wait until those frozen suffice, choose one of them. PURE.

use crate::api::{Follow, Freeze, Frozen, Position, Promote, Recover};
use crate::fsm::action::{Action, ChangeKind, Command, Guard, RecordPut};
use crate::fsm::begin::{base_of, chosen_awaited, short};
use crate::fsm::blocker::{Blocker, Missing, Unfit, Verdict, list};
use crate::fsm::candidate::{Beside, Choice, Wishes, choose};
use crate::fsm::observe::millis;
use crate::fsm::planner::{Planner, Stage};
use crate::fsm::preference::Preference;
use crate::fsm::rejoin::twins;
use crate::fsm::report::{observed, phase};
use crate::fsm::round::{Ask, Round, Step, send};
use crate::fsm::sync_set::{self};
use crate::record::{Cause, Chosen, Phase, Recruit, TermRecord};
use cluster::timeline::{Fork, History};
use cluster::{Instant, NodeId, TimelineId};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that a recruit may lack of the candidate's WAL and connect to it ahead of its promotion.
const NEAR: u64 = 1 << 20;

impl Planner {
    pub(super) fn recruit(&mut self, now: Instant, round: &mut Round, out: &mut Vec<Action>) {
        self.ask_to_freeze(now, round, out);
        let usable = self.usable(round);
        let waited = now.since(round.started) >= self.settings.recruit_grace;
        let reachable = |n: &&NodeId| self.seen.reachable(n, now, &self.settings).is_some();
        let answered = self.seen.agents.keys().filter(reachable).all(|n| round.frozen.contains_key(n));
        let names: BTreeSet<NodeId> = usable.keys().cloned().collect();
        round.beside = self.beside(round, &usable);
        let counted = Beside::counted(round.beside.as_ref(), &names);
        let ends = usable.values().filter_map(|f| f.position);
        // Not told which timelines there may be, nobody knows who was primary last either.
        let known = round.is_prev_known();
        let enough = match known {
            true => sync_set::enough_beside(&round.policy, round.prev.as_ref(), &names, &counted, ends),
            false => sync_set::sufficient_for_any(&round.policy, &counted),
        };
        round.enough_since = if enough { round.enough_since.or(Some(now)) } else { None };
        self.heed_the_end(now, round, &usable);
        self.note_the_end(round);
        let at_home = round.begin.home.as_ref().is_some_and(|h| names.contains(h) && !round.needs_recovery(h));
        let going_home = round.begin.home.is_some() && !at_home && self.may_come_home(now, round);
        // A quorum's best holds every acknowledged commit, so others are only waited for to have a wish fulfilled,
        // where commits are not protected, to lose less, and where a term before this one was not opened: who follows
        // that one would have to be rewound before it could follow a candidate that does not, and no other may be left.
        // Nobody is where a switchover's target has the old primary's clean end: writers wait as long as the slowest.
        let unopened = round.prev.as_ref().is_some_and(|last| round.term.0 > last.term.0 + 1);
        let liked = self.is_better_awaited(now, round, &usable);
        let decisive = round.policy.protects() && round.begin.prefer.is_none() && !unopened && !liked;
        let patience = if decisive { self.settings.recruit_grace / 10 } else { self.settings.recruit_grace };
        let whole = !unopened && target_is_whole(round, &usable);
        let settled = answered || whole || round.enough_since.is_some_and(|t| now.since(t) >= patience);
        let ready = enough && (at_home || (settled && !going_home));
        let twice = if ready || round.begin.allow_loss { begun_twice(round, &usable) } else { None };
        let takes = round.begin.allow_loss && twice.is_none() && (answered || waited);
        let held = twice.or_else(|| if ready { self.held(now, round, &usable) } else { None });
        if ready && held.is_none() {
            if self.catches_up(now, round, &usable, out) {
                return;
            }
            self.send_choice(now, round, &usable, out);
            return;
        }
        if takes && self.takes_what_there_is(now, round, &names) {
            self.send_choice(now, round, &usable, out);
            return;
        }
        let short = !enough || held.is_some();
        let wanted = |n: &NodeId| (short && (answered || waited)) || round.begin.home.as_ref() == Some(n);
        let stopped: Vec<NodeId> = round
            .frozen
            .keys()
            .filter(|n| round.needs_recovery(n) && wanted(n) && !self.seen.maintained(n))
            .cloned()
            .collect();
        for node in stopped {
            self.ask_to_recover(now, round, &node, out);
        }
        self.verdict = if let Some(blocker) = held {
            Verdict::Hold { blockers: vec![blocker] }
        } else if enough || !(answered || waited) {
            Verdict::Acting { term: round.term, step: format!("freezing; frozen: {}", list(&keys(&round.frozen))) }
        } else {
            Verdict::Hold { blockers: self.missing_recruits(now, round, &names) }
        };
    }

    /// An operator allowed data loss. Whoever is there is taken, but the node to be avoided only when nobody else comes:
    /// nothing that answers is still to be frozen or to be recovered, or that has lasted too long.
    fn takes_what_there_is(&self, now: Instant, round: &Round, names: &BTreeSet<NodeId>) -> bool {
        if names.iter().any(|n| Some(n) != round.begin.avoid.as_ref()) {
            return true;
        }
        let may_come = |n: &NodeId| match round.frozen.contains_key(n) {
            true => round.needs_recovery(n) && !names.contains(n) && self.unfit(n, now).is_none(),
            false => self.seen.reachable(n, now, &self.settings).is_some() && !self.seen.fenced(n),
        };
        let overdue = now.since(round.started) >= self.settings.freeze_timeout;
        !names.is_empty() && (overdue || !self.seen.agents.keys().any(may_come))
    }

    /// What forbids the choice between those that have answered. Who is avoided is so only while the others have all that it has.
    fn held(&self, now: Instant, round: &mut Round, usable: &BTreeMap<NodeId, Frozen>) -> Option<Blocker> {
        let held = self.too_lossy(now, round, usable)?;
        let Some(avoided) = round.begin.avoid.take() else { return Some(held) };
        if let Some(still) = self.too_lossy(now, round, usable) {
            round.begin.avoid = Some(avoided);
            return Some(still);
        }
        observed(&mut round.journal, format!("{avoided} is taken after all: {held}"));
        if round.prev.as_ref().is_some_and(|last| last.node == avoided) {
            round.begin.home = Some(avoided);
        }
        None
    }

    /// Would the choice between those that have answered lose more than it may?
    fn too_lossy(&self, now: Instant, round: &Round, usable: &BTreeMap<NodeId, Frozen>) -> Option<Blocker> {
        let preferences = self.preferences(round.prev.as_ref().map(|p| &p.node));
        let choice = choose(usable, &wishes(round, &preferences))?;
        let history = usable.get(&choice.node).and_then(|f| f.history.as_ref());
        self.doubt_at_choice(round, &choice, history).or_else(|| self.loss_at_choice(now, round, &choice, history))
    }

    /// Is there one who has not answered yet and would be liked better than all that have?
    fn is_better_awaited(&self, now: Instant, round: &Round, usable: &BTreeMap<NodeId, Frozen>) -> bool {
        let preferences = self.preferences(round.prev.as_ref().map(|p| &p.node));
        let best = usable.keys().filter_map(|n| preferences.get(n)).max();
        let there =
            |n: &NodeId| round.policy.counts(n) && !round.frozen.contains_key(n) && self.unfit(n, now).is_none();
        preferences.iter().any(|(n, p)| Some(p) > best && there(n))
    }

    /// Frozen nodes that count. The old primary's clean end stands for its own report.
    pub(super) fn usable(&self, round: &Round) -> BTreeMap<NodeId, Frozen> {
        let mut usable = BTreeMap::new();
        for (node, frozen) in &round.frozen {
            let mut frozen = frozen.clone();
            if let Some((_, end)) = round.begin.end.as_ref().filter(|(n, _)| n == node) {
                frozen.position = frozen.position.or(Some(*end));
            }
            // One that does not vote is made primary only where an operator takes what there is.
            let votes = round.policy.counts(node) || round.begin.allow_loss;
            let ours = self.seen.foreign(frozen.system_id.as_ref()).is_none();
            // What a quarantined one once acknowledged and has not again, nobody can tell: for an operator who names it.
            let whole = frozen.quarantine.is_none() || round.wanted_with_loss(node);
            let known = frozen.position.is_some() && whole;
            let descends = promoted_past_us(round, &frozen).is_none() || round.wanted_with_loss(node);
            let allowed = self.promoted_with_loss(round, &frozen).is_none();
            if votes && ours && known && descends && allowed && !self.seen.fenced(node) {
                usable.insert(node.clone(), frozen);
            }
        }
        usable
    }

    /// Who was chosen before in vain, and is there with all that it had: then nothing that was acknowledged is missed, as no term
    /// was open since. The others are counted to be sure that they have promised this term, and that none of them knows of
    /// one which etcd does not: for that a quarantined one is as good as any.
    fn beside(&self, round: &Round, usable: &BTreeMap<NodeId, Frozen>) -> Option<Beside> {
        let chosen = self.chosen_before(round)?;
        let base = base_of(chosen);
        let whole = usable.get(&chosen.node).is_some_and(|f| f.quarantine.is_none() && f.position >= Some(base));
        whole.then(|| Beside { node: chosen.node.clone(), quarantined: self.quarantined(round) })
    }

    /// Who was chosen, by the policy that holds still, unless somebody has WAL of a timeline that no term has made, as far as
    /// etcd tells. That may be a later choice's, which has what this one lacks; whether its bearer is quarantined tells
    /// nothing.
    fn chosen_before<'a>(&self, round: &'a Round) -> Option<&'a Chosen> {
        let chosen = round.chosen_before.as_ref().filter(|c| c.policy_epoch == round.policy.epoch)?;
        let ours = |f: &&Frozen| self.seen.foreign(f.system_id.as_ref()).is_none();
        let past_it = round.frozen.values().filter(ours).any(|f| promoted_past_us(round, f).is_some());
        (!past_it).then_some(chosen)
    }

    /// Frozen, and in quarantine.
    fn quarantined(&self, round: &Round) -> BTreeSet<NodeId> {
        let counts = |(n, f): &(&NodeId, &Frozen)| {
            let ours = self.seen.foreign(f.system_id.as_ref()).is_none();
            f.quarantine.is_some() && ours && round.policy.counts(n) && !self.seen.fenced(n)
        };
        round.frozen.iter().filter(counts).map(|(n, _)| n.clone()).collect()
    }

    /// A term that was allowed to lose data and never opened has left its timeline behind; this one is not allowed to.
    fn promoted_with_loss(&self, round: &Round, frozen: &Frozen) -> Option<Unfit> {
        let have = frozen.position.filter(|p| round.lossy_timelines.contains(&p.timeline))?;
        // It did open, and etcd was restored from a backup.
        let opened = self.opened.timeline().is_some_and(|opened| opened >= have.timeline);
        // Whoever has a vote has followed there, before the record said that it was open: what it lost nobody has.
        // So has who was rewound to it, or copied from there, and has not replayed all of it again.
        let on_it = |f: &Frozen| {
            let ends = f.position.into_iter().chain(f.quarantine);
            ends.into_iter().any(|p| round.lossy_timelines.contains(&p.timeline))
        };
        let mut voters = round.policy.quorums().flat_map(|(voters, _)| voters);
        let all = voters.all(|n| round.frozen.get(n).is_some_and(on_it));
        (!round.begin.allow_loss && !opened && !all).then_some(Unfit::PromotedWithLoss { have })
    }

    /// A switchover's target that lacks what the old primary wrote last, or that is gone, is given up: the old
    /// primary comes back.
    pub(super) fn heed_the_end(&self, now: Instant, round: &mut Round, usable: &BTreeMap<NodeId, Frozen>) {
        let (Some((old, end)), Some(target)) = (round.begin.end.clone(), round.begin.prefer.clone()) else { return };
        if target == old {
            return;
        }
        let have = usable.get(&target).and_then(|f| f.position);
        let gone = now.since(round.started) >= self.settings.detect_timeout;
        let why = match have {
            Some(have) if have.timeline != end.timeline || have.lsn < end.lsn => {
                Blocker::TargetShort { node: target, have, need: end }.to_string()
            }
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
    pub(super) fn may_come_home(&self, now: Instant, round: &Round) -> bool {
        let home = round.begin.home.as_ref().filter(|h| self.unfit(h, now).is_none());
        // With a quorum it only saves a rewind; without one it saves rows.
        let saves_a_rewind = round.policy.protects() && round.begin.cause == Cause::Restart;
        let bound = if saves_a_rewind { self.settings.detect_timeout } else { self.settings.freeze_timeout };
        home.is_some() && now.since(round.started) < bound
    }

    pub(super) fn ask_to_freeze(&self, now: Instant, round: &mut Round, out: &mut Vec<Action>) {
        // A term in between may have got a primary of its own, and whoever recovers serves WAL again.
        let next = round.prev.as_ref().is_some_and(|last| round.term.0 == last.term.0 + 1);
        let recovers = round.asks.values().any(|ask| ask.recover);
        let is_stopped = round.begin.end_of(round.prev.as_ref()).is_some() && next && !recovers;
        for node in self.seen.agents.keys() {
            let ask = round.asks.entry(node.clone()).or_default();
            if ask.recover || !ask.due(now) {
                continue;
            }
            ask.in_flight = true;
            let command = Command::Freeze(Freeze { term: round.term, coordinator: self.id.clone(), is_stopped });
            send(out, node, command, self.settings.freeze_timeout);
        }
    }

    pub(super) fn ask_to_recover(&self, now: Instant, round: &mut Round, node: &NodeId, out: &mut Vec<Action>) {
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

    pub(super) fn missing_recruits(&self, now: Instant, round: &Round, usable: &BTreeSet<NodeId>) -> Vec<Blocker> {
        let missing = |node: &NodeId| {
            if usable.contains(node) {
                return None;
            }
            let unfit = self.unfit(node, now).unwrap_or_else(|| match round.frozen.get(node) {
                Some(Frozen { system_id: Some(have), .. }) if self.seen.foreign(Some(have)).is_some() => {
                    Unfit::Foreign { have: have.clone() }
                }
                Some(f) => promoted_past_us(round, f)
                    .or_else(|| self.promoted_with_loss(round, f))
                    .unwrap_or_else(|| f.quarantine.map_or(Unfit::NotRecovered, |floor| Unfit::Quarantined { floor })),
                None => Unfit::NotFrozen,
            });
            Some(Missing { node: node.clone(), unfit })
        };
        let members = self.seen.agents.keys().filter(|n| round.policy.counts(n));
        let missing = members.filter_map(missing).collect();
        let mut blockers = short(&round.policy, round.prev.as_ref(), usable, missing);
        let have = |n: &NodeId| round.frozen.get(n).and_then(|f| f.position);
        let (prev, known) = (round.prev.as_ref(), round.is_prev_known());
        let awaited = |c: &Chosen| {
            chosen_awaited(&round.policy, (prev, known), usable, &self.quarantined(round), c, have(&c.node))
        };
        blockers.extend(self.chosen_before(round).and_then(awaited));
        blockers
    }

    /// T2.
    pub(super) fn send_choice(
        &mut self,
        now: Instant,
        round: &mut Round,
        usable: &BTreeMap<NodeId, Frozen>,
        out: &mut Vec<Action>,
    ) {
        let preferences = self.preferences(round.prev.as_ref().map(|p| &p.node));
        let wishes = wishes(round, &preferences);
        let Some(choice) = choose(usable, &wishes) else { return };
        if wishes.unasked(&choice.node) {
            let (node, have) = (choice.node, Some(choice.base));
            self.verdict = Verdict::Hold { blockers: vec![Blocker::NeverPromoted { node, have }] };
            round.forget_catching_up(now, self.settings.retry_longest);
            return;
        }
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
        self.note_window(round, usable.get(&choice.node).and_then(|f| f.history.as_ref()), choice.base);
        let hopeless = round.prev.as_ref().map(|p| p.node.clone()).filter(|n| self.is_hopeless(now, round, n));
        if let Some(node) = hopeless {
            observed(&mut round.journal, format!("{node} was waited for and could not be frozen or recovered"));
        }
        let history = usable.get(&choice.node).and_then(|f| f.history.as_ref());
        let last = round.prev.as_ref().map(|p| p.term).filter(|_| !round.history_lost && !round.begin.allow_loss);
        let all = self.holds_the_end(round, history, choice.base);
        let written = !all && self.holds_what_was_found(round, history, choice.base);
        (round.holds_all_of, round.holds_written_of) = (last.filter(|_| all), last.filter(|_| written));
        let record = TermRecord {
            phase: Phase::Promoting,
            node: Some(choice.node.clone()),
            fork: Some(fork),
            chosen_before: None,
            ..self.round_record(round)
        };
        let guards = vec![Guard::Term(round.revision), Guard::Policy(round.policy_revision)];
        let puts = vec![RecordPut::Term(record), RecordPut::Journal(Box::new(round.journal.clone()))];
        self.verdict = Verdict::Acting { term: round.term, step: format!("choosing {}", choice.node) };
        round.step = Step::Choosing(choice);
        self.send(ChangeKind::Choose, guards, puts, Vec::new(), out);
    }

    /// What the last primary wrote and the choice has not, as far as is known before its WAL is read.
    fn note_window(&self, round: &mut Round, history: Option<&History>, base: Position) {
        let Some(prev) = &round.prev else { return };
        let from = self.lost_from(prev, history, base);
        round.journal.window = from.and_then(|from| self.window(round, prev, from));
        if round.journal.window.is_none() && round.begin.end.is_none() {
            let line = format!(
                "how far {} had written in term {} is not known here: the unreplicated-write window is known when its \
                 WAL is read",
                prev.node, prev.term
            );
            observed(&mut round.journal, line);
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
        round.step = Step::Promoting(choice.clone());
        // Who has read meanwhile that the term was open: then nobody is promoted in it again, and the round is given up.
        let term = round.term;
        if self.was_open_already(term) {
            return;
        }
        if let Stage::Round(round) = &self.stage {
            self.order_promotion(round, &choice, out);
            self.order_to_connect(round, &choice, None, out);
        }
    }

    /// Frozen while another is promoted already.
    pub(super) fn frozen_late(&self, node: &NodeId, out: &mut Vec<Action>) {
        if let Stage::Round(round) = &self.stage
            && let Step::Promoting(choice) = &round.step
        {
            self.order_to_connect(round, choice, Some(node), out);
        }
    }

    /// The other recruits need not wait for the promotion: PostgreSQL streams from a standby too, and goes on with the new
    /// timeline when that is promoted. Only those that have a part of what the candidate has, lack so little that it has the
    /// rest, and have replayed what they have: before that PostgreSQL connects to nobody. And only if the candidate ends with a
    /// whole record: half of one that is streamed is confirmed too, and would stand for what is written in its place. The old
    /// primary compares histories, for the report; so does whose timeline has another beginning, or its WAL would be overwritten
    /// before it was examined (INV-5). `late`: only this one, which was not frozen yet at the choice.
    fn order_to_connect(&self, round: &Round, choice: &Choice, late: Option<&NodeId>, out: &mut Vec<Action>) {
        let Some(endpoint) = self.seen.records.members.get(&choice.node).map(|m| m.postgres.clone()) else { return };
        let old = round.prev.as_ref().map(|p| &p.node);
        let whole = |f: &&Frozen| f.replay_lsn == Some(choice.base.lsn);
        let Some(chosen) = round.frozen.get(&choice.node).filter(whole) else { return };
        let meant = |n: &NodeId| *n != choice.node && Some(n) != old && late.is_none_or(|late| late == n);
        let others = round.frozen.iter().filter(|(n, f)| meant(n) && f.history == chosen.history);
        for (node, _) in others.filter(|(n, f)| self.may_connect(round, n, f, choice.base)) {
            let (term, primary, endpoint) = (round.term, choice.node.clone(), endpoint.clone());
            let order = Follow { term, primary, endpoint, record_lsn: None, ahead: Some(choice.base) };
            send(out, node, Command::Follow(order), self.settings.detect_timeout);
        }
    }

    fn may_connect(&self, round: &Round, node: &NodeId, frozen: &Frozen, base: Position) -> bool {
        let Some(end) = frozen.position.filter(|p| frozen.replay_lsn == Some(p.lsn)) else { return false };
        let near = end.timeline == base.timeline && end.lsn <= base.lsn && base.lsn.0 - end.lsn.0 <= NEAR;
        let ours = self.seen.foreign(frozen.system_id.as_ref()).is_none() && frozen.quarantine.is_none();
        near && ours && !round.needs_recovery(node) && !self.seen.fenced(node)
    }

    pub(super) fn order_promotion(&self, round: &Round, choice: &Choice, out: &mut Vec<Action>) {
        let waits = sync_set::waits(&round.policy, &choice.node);
        let within = self.settings.promote_timeout;
        let command = Command::Promote(Promote {
            term: round.term,
            base: choice.base,
            sync_names: waits.names.to_string(),
            on_request: waits.on_request,
            policy_epoch: round.policy.epoch,
            prev_term: round.prev.as_ref().filter(|_| round.is_prev_known()).map(|p| p.term),
            deadline_ms: millis(within),
        });
        send(out, &choice.node, command, within);
    }
}

/// What the choice depends on besides the recruits.
pub(super) fn wishes<'a>(round: &'a Round, preferences: &'a BTreeMap<NodeId, Preference>) -> Wishes<'a> {
    Wishes {
        policy: &round.policy,
        prev: round.prev.as_ref(),
        history_lost: round.history_lost,
        prefer: round.begin.prefer.as_ref().or(round.begin.home.as_ref()),
        avoid: round.begin.avoid.as_ref(),
        end: round.begin.end.as_ref().map(|(_, end)| *end),
        beside: round.beside.as_ref(),
        allow_loss: round.begin.allow_loss,
        preferences,
    }
}

/// Has a switchover's target all that the old primary, stopped cleanly, has written?
fn target_is_whole(round: &Round, usable: &BTreeMap<NodeId, Frozen>) -> bool {
    let (Some(end), Some(target)) = (round.begin.end_of(round.prev.as_ref()), &round.begin.prefer) else {
        return false;
    };
    let other = round.prev.as_ref().is_some_and(|last| last.node != *target);
    let have = usable.get(target).and_then(|f| f.position);
    other && have.is_some_and(|have| have.timeline == end.timeline && have.lsn >= end.lsn)
}

/// WAL of a timeline that no term has made counts for nothing: it may lack what was acknowledged since it left its own,
/// and yet ranks before everybody by its number.
fn promoted_past_us(round: &Round, frozen: &Frozen) -> Option<Unfit> {
    let (have, newest) = (frozen.position?, round.newest_timeline?);
    (have.timeline > newest).then_some(Unfit::PromotedPastUs { have, newest })
}

/// A timeline that was begun twice had two writers, so that who ends further on it need not have what the other has. That is for
/// an operator to tell, by a name. It does not matter below the last open term's timeline where somebody is on that: whatever was
/// acknowledged before is there.
fn begun_twice(round: &Round, usable: &BTreeMap<NodeId, Frozen>) -> Option<Blocker> {
    if usable.keys().any(|n| round.wanted_with_loss(n)) {
        return None;
    }
    let last = round.prev.as_ref().filter(|_| round.is_prev_known()).map(|p| p.timeline);
    let decides = |last: &TimelineId| usable.values().any(|f| f.position.is_some_and(|p| p.timeline >= *last));
    let from = last.filter(decides);
    let lines: Vec<(&NodeId, &History)> = usable.iter().filter_map(|(n, f)| Some((n, f.history.as_ref()?))).collect();
    let pairs = lines.iter().flat_map(|a| lines.iter().map(move |b| (a, b)));
    let matters = pairs.filter_map(|(a, b)| Some((twins(a.1, b.1).find(|t| Some(*t) >= from)?, a.0, b.0)));
    let (timeline, a, b) = matters.min_by_key(|(timeline, ..)| *timeline)?;
    Some(Blocker::BegunTwice { timeline, nodes: vec![a.clone(), b.clone()] })
}

fn keys(map: &BTreeMap<NodeId, Frozen>) -> Vec<NodeId> {
    map.keys().cloned().collect()
}
