//! Changing who votes, how many copies a commit needs, the mode, or the limits of a suspension: checks, and the record
//! that begins it. PURE.
//!
//! Voters and k, in this order, so that an interruption at any point leaves every acknowledged commit where the next
//! failover looks: the record names both quorums (a failover then satisfies both); the primary waits for the new one,
//! and proves it; the new one has flushed everything up to there; the record names the new one only. The first step is
//! here, the others are `rearm`'s. Going back is another change, to what was.
//!
//! A mode that promises less is recorded before anything is lowered, and lowered by `suspend`; one that promises more
//! begins as a suspension, which `rearm` ends.

use crate::fsm::action::{Action, Answer, ChangeKind, Guard, PolicyChange, RecordPut};
use crate::fsm::blocker::{Blocker, Missing};
use crate::fsm::observe::{Health, millis};
use crate::fsm::planner::{Planner, Stage};
use crate::fsm::slots;
use crate::record::{Limits, Lowered, MemberRecord, Mode, Phase, PolicyRecord, Quorum, Suspension};
use cluster::{Instant, Lsn, NodeId};

/// What a policy is to become.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    mode: Mode,
    quorum: Quorum,
    limits: Limits,
}

/// An operator who waits for a change of the policy.
#[derive(Debug)]
pub(super) struct PolicyOp {
    pub(super) id: u64,
    to: Wanted,
    /// Nothing is promised to commits, and something is to be when it is complete.
    until_armed: bool,
    sent: bool,
    deadline: Instant,
}

impl PolicyOp {
    /// The record that begins it was sent.
    pub(super) const fn is_sent(&self) -> bool {
        self.sent
    }

    fn complete(&self, p: &PolicyRecord) -> bool {
        let there = p.mode == self.to.mode && p.limits == self.to.limits;
        let lowered = p.suspended.as_ref().and_then(|s| s.lowered.as_ref());
        let done = match p.mode {
            Mode::Async => p.suspended.is_none() || lowered.is_some_and(|l| l.complete_from.is_some()),
            Mode::Strict | Mode::Available => !self.until_armed || p.suspended.is_none(),
        };
        there && done && p.joint.is_none() && p.target() == (&self.to.quorum.voters[..], self.to.quorum.k)
    }
}

impl Planner {
    pub(super) fn set_policy(&mut self, now: Instant, id: u64, change: PolicyChange) -> Result<(), Vec<Blocker>> {
        let Some(policy) = self.seen.policy().cloned() else { return Err(vec![self.no_cluster()]) };
        if let Some(expected) = change.expect_epoch.filter(|e| *e != policy.epoch) {
            return Err(vec![Blocker::OtherEpoch { expected, current: policy.epoch }]);
        }
        if self.policy_op.is_some() || !matches!(self.stage, Stage::Idle) {
            return Err(vec![Blocker::Busy { what: "a change of the primary or of the policy".into() }]);
        }
        let to = wanted(&policy, change);
        let same = policy.mode == to.mode && policy.limits == to.limits;
        if same && policy.target() == (&to.quorum.voters[..], to.quorum.k) {
            return Err(vec![Blocker::PolicyUnchanged { epoch: policy.epoch, going_on: policy.joint.is_some() }]);
        }
        self.beginning(&policy, &to).map_err(|b| vec![b])?;
        let blockers = self.policy_obstacles(now, &policy, &to);
        if !blockers.is_empty() {
            return Err(blockers);
        }
        let deadline = now + self.settings.operation_timeout;
        let until_armed = policy.mode == Mode::Async && to.mode != Mode::Async;
        self.policy_op = Some(PolicyOp { id, to, until_armed, sent: false, deadline });
        Ok(())
    }

    /// Everything that would leave the cluster unable to commit or to fail over once the change is made.
    fn policy_obstacles(&self, now: Instant, policy: &PolicyRecord, to: &Wanted) -> Vec<Blocker> {
        let open = self.seen.term().filter(|t| t.phase == Phase::Active).and_then(|t| t.node.clone());
        let Some(primary) = open else { return vec![Blocker::PrimaryNotWell { node: None }] };
        let lowers = lowers(policy, to);
        match self.seen.health(now, &self.settings) {
            Health::Well => {}
            // That is when one wants to lower what is promised.
            Health::Unsure(b) if lowers && b.iter().all(|b| matches!(b, Blocker::PrimaryStuck { .. })) => {}
            Health::Unsure(_) | Health::Dead { .. } => return vec![Blocker::PrimaryNotWell { node: Some(primary) }],
        }
        let mut blockers = Vec::new();
        let (m, k) = (to.quorum.voters.len(), to.quorum.k);
        match to.mode {
            Mode::Strict | Mode::Available if k == 0 || k as usize >= m => {
                blockers.push(Blocker::QuorumImpossible { m, k });
            }
            Mode::Async if k as usize >= m.max(1) => blockers.push(Blocker::QuorumImpossible { m, k }),
            Mode::Strict | Mode::Available | Mode::Async => {}
        }
        // Lowered or not: it must end before anything that commits wait for is changed. But where the standbys that are to vote, or
        // those of an unfinished change, do not come back, it would never end.
        let taken_back = policy.suspended.is_some() && takes_back(policy, to);
        let changes = !lowers && !taken_back && policy.mode != Mode::Async && !is_replaced_at_once(policy, to);
        if let Some(s) = policy.suspended.as_ref().filter(|_| changes) {
            blockers.push(Blocker::Suspended { since: s.since, term: s.term });
        }
        if let Some(s) = self.owed_to_the_voters(now, policy, &to.quorum, &primary) {
            blockers.push(Blocker::Suspended { since: s.since, term: s.term });
        }
        if !to.quorum.voters.contains(&primary) {
            blockers.push(Blocker::PrimaryMustVote { node: primary.clone() });
        }
        blockers.extend(self.unready_voters(now, policy, &to.quorum, &primary));
        if to.quorum.k >= 2 && !slots::wanted(policy) {
            blockers.extend(self.short_of_slots(now, &to.quorum.voters));
        }
        let streams = |n: &&NodeId| {
            **n != primary && !self.seen.fenced(n) && self.seen.streaming(n, now, &self.settings).is_some()
        };
        let have: Vec<NodeId> = to.quorum.voters.iter().filter(streams).cloned().collect();
        // In async mode only who asks for them waits for standbys.
        if have.len() < k as usize && !lowers && !taken_back && to.mode != Mode::Async {
            blockers.push(Blocker::TooFewStreaming { needed: k, have });
        }
        blockers
    }

    /// Members that could not have a slot for each other one, as far as they are heard. Who is neither heard nor to vote is
    /// not waited for.
    fn short_of_slots(&self, now: Instant, voters: &[NodeId]) -> Vec<Blocker> {
        let members = &self.seen.records.members;
        let needed = members.len().saturating_sub(1);
        let short = |(node, member): (&NodeId, &MemberRecord)| {
            let there = self.seen.reachable(node, now, &self.settings);
            let room = there.and_then(|s| s.slot_room);
            let unknown = !member.slots && (there.is_some() || voters.contains(node));
            let lacks = unknown || member.slots && room.is_some_and(|room| room < needed);
            let room = room.filter(|_| member.slots);
            lacks.then(|| Blocker::TooFewSlots { node: node.clone(), needed, room })
        };
        members.iter().filter_map(short).collect()
    }

    /// In async mode, and where protection is suspended, voters change at once, as nothing is promised. What had been promised before
    /// is on some of those who voted then, so where one of them leaves, first everybody who is to vote has it.
    fn owed_to_the_voters<'a>(
        &self,
        now: Instant,
        policy: &'a PolicyRecord,
        to: &Quorum,
        primary: &NodeId,
    ) -> Option<&'a Suspension> {
        let at_once = policy.mode == Mode::Async || policy.joint.is_none();
        let suspension = policy.suspended.as_ref().filter(|_| at_once)?;
        let leaves = policy.voters.iter().any(|v| !to.voters.contains(v));
        let lowered = suspension.lowered.as_ref().filter(|l| l.k > 0 && leaves)?;
        let has = |n: &NodeId| {
            let there = self.seen.streaming(n, now, &self.settings).filter(|_| !self.seen.fenced(n));
            there.is_some_and(|s| lowered.complete_from.is_some_and(|lsn| s.receive_lsn >= lsn))
        };
        (!to.voters.iter().filter(|n| *n != primary).all(has)).then_some(suspension)
    }

    /// Who voted before may be down: that is often why the voters are changed.
    fn unready_voters(&self, now: Instant, policy: &PolicyRecord, to: &Quorum, primary: &NodeId) -> Vec<Blocker> {
        let judge = |node: &NodeId| {
            if !self.seen.records.members.contains_key(node) {
                Some(self.no_such(node))
            } else if let Some(unfit) = self.unfit(node, now) {
                Some(Blocker::TargetUnfit { target: Missing { node: node.clone(), unfit } })
            } else if let delay_ms @ 1.. = self.standing(node).apply_delay_ms {
                Some(Blocker::DelayedVoter { node: node.clone(), delay_ms })
            } else if self.seen.streaming(node, now, &self.settings).is_none() {
                Some(Blocker::TargetNotStreaming { node: node.clone() })
            } else {
                None
            }
        };
        to.voters.iter().filter(|n| *n != primary && !policy.counts(n)).filter_map(judge).collect()
    }

    /// Write the record that begins the change when no other change is under way; answer when it is complete.
    pub(super) fn advance_policy(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(op) = &mut self.policy_op else { return };
        let policy = self.seen.records.policy.as_ref();
        if op.sent && policy.is_some_and(|p| op.complete(&p.value)) {
            let (id, epoch) = (op.id, policy.map_or(0, |p| p.value.epoch));
            let note = note(epoch, &op.to);
            self.policy_op = None;
            if self.leads_to_removal(id) {
                return;
            }
            let term = self.seen.term().map_or(cluster::Term(0), |t| t.term);
            let answer = Box::new(Answer::Done { term, node: None, note, journal: None });
            out.push(Action::Answer { id, answer });
            return;
        }
        if now >= op.deadline {
            let (id, sent, to) = (op.id, op.sent, op.to.mode);
            self.policy_op = None;
            let why = match (sent, policy.map(|p| &p.value)) {
                (false, _) => "not begun in time; nothing was written".to_owned(),
                (true, Some(p)) if p.joint.is_some() => {
                    "not finished in time and still going on; until then a failover needs both quorums, \
                    and the change can be taken back by setting what was"
                        .to_owned()
                }
                (true, Some(p)) if p.mode == to && p.suspended.is_some() => {
                    "not finished in time and still going on: the mode is on record, and what commits wait for is not \
                    as it says yet"
                        .to_owned()
                }
                (true, _) => "not begun: something else changed first".to_owned(),
            };
            out.push(Action::Answer { id, answer: Box::new(Answer::Failed { why, journal: None }) });
            return;
        }
        if !op.sent && self.pending.is_none() && matches!(self.stage, Stage::Idle) {
            op.sent = true;
            let (id, to) = (op.id, op.to.clone());
            self.send_beginning(now, id, &to, out);
        }
    }

    fn send_beginning(&mut self, now: Instant, id: u64, to: &Wanted, out: &mut Vec<Action>) {
        let (Some(term), Some(old)) = (self.seen.records.term.clone(), self.seen.records.policy.clone()) else {
            return;
        };
        if is_replaced_at_once(&old.value, to) {
            // It may have been accepted under another policy than this.
            let blockers = self.policy_obstacles(now, &old.value, to);
            if !blockers.is_empty() {
                self.policy_op = None;
                out.push(Action::Answer { id, answer: Box::new(Answer::Refused(blockers)) });
                return;
            }
            // A removal is complete, and answers, when nobody counts the node any more.
            let armed = !self.leads_to_removal(id);
            self.policy_op.iter_mut().for_each(|op| op.until_armed = armed);
        }
        let Ok(policy) = self.beginning(&old.value, to) else { return self.policy_lost(out) };
        let guards = vec![Guard::Term(term.revision), Guard::Policy(old.revision)];
        (self.rearm, self.suspend) = (None, None);
        self.send(ChangeKind::Policy, guards, vec![RecordPut::Policy(policy)], Vec::new(), out);
    }

    pub(super) fn policy_lost(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.policy_op.take() else { return };
        let why = "nothing was written: the term, the policy or the leading manager changed first".to_owned();
        out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
    }

    /// The record that begins the change.
    fn beginning(&self, old: &PolicyRecord, to: &Wanted) -> Result<PolicyRecord, Blocker> {
        let old = PolicyRecord { epoch: old.epoch + 1, limits: to.limits, ..old.clone() };
        let same = old.target() == (&to.quorum.voters[..], to.quorum.k);
        if to.mode != old.mode {
            return self.other_mode(old, to);
        }
        if same {
            return Ok(PolicyRecord { suspended: old.suspended.clone().map(renewed), ..old });
        }
        quorum_changing(old, &to.quorum)
    }

    fn other_mode(&self, old: PolicyRecord, to: &Wanted) -> Result<PolicyRecord, Blocker> {
        let epoch = old.epoch - 1;
        let by_operator = old.suspended.as_ref().filter(|s| s.lowered.is_none());
        let lowered = old.suspended.as_ref().and_then(|s| s.lowered.clone());
        if old.joint.is_some() || to.quorum.voters != old.voters {
            return Err(Blocker::PolicyChanging { epoch });
        }
        let refused = |s: &Suspension| Blocker::Suspended { since: s.since, term: s.term };
        let term = self.seen.term().map_or(cluster::Term(0), |t| t.term);
        let suspended = match (old.mode, to.mode) {
            (Mode::Available, Mode::Strict) => match &old.suspended {
                Some(s) => return Err(refused(s)),
                None => None,
            },
            (_, Mode::Async) => {
                if let Some(s) = by_operator {
                    return Err(refused(s));
                }
                let fresh = Lowered { k: old.k, complete_from: None, timed: true, ended: None };
                let lowered = lowered.map(|l| Lowered { ended: None, timed: true, ..l });
                Some(self.lowering(term, "an operator chose async".into(), lowered.unwrap_or(fresh)))
            }
            (Mode::Async, _) => {
                // Nothing was promised, so everybody has all that was.
                let nothing = Lowered { k: 0, complete_from: Some(Lsn::INVALID), timed: false, ended: None };
                let why = "async until standbys have everything".to_owned();
                let lowered = lowered.map(|l| Lowered { timed: false, ..l });
                Some(self.lowering(term, why, lowered.unwrap_or(nothing)))
            }
            (Mode::Strict | Mode::Available, Mode::Strict | Mode::Available) => old.suspended.clone(),
        };
        if old.mode != Mode::Async && to.mode != Mode::Async && to.quorum.k != old.k {
            return Err(Blocker::PolicyChanging { epoch });
        }
        Ok(PolicyRecord { mode: to.mode, k: to.quorum.k, suspended, ..old })
    }
}

/// Is the change that is under way to come to what was before it?
fn takes_back(policy: &PolicyRecord, to: &Wanted) -> bool {
    let before = (&policy.voters, policy.k) == (&to.quorum.voters, to.quorum.k);
    policy.joint.is_some() && policy.mode == to.mode && before
}

/// Is nothing promised to commits, on record and in truth? Up to where they are let through they wait, and a proxy may
/// still go by the policy before.
fn lets_through(policy: &PolicyRecord) -> bool {
    let through = |s: &Suspension| s.lowered.as_ref().is_none_or(|l| l.complete_from.is_some());
    policy.suspended.as_ref().is_some_and(through)
}

/// Do voters or k become others in one step, as nothing is promised to commits?
fn is_replaced_at_once(policy: &PolicyRecord, to: &Wanted) -> bool {
    let other = policy.target() != (&to.quorum.voters[..], to.quorum.k);
    lets_through(policy) && policy.joint.is_none() && policy.mode == to.mode && other
}

/// What is known to be on that many of the quorum is on fewer, too.
fn promised_to_at_most(s: Suspension, k: u32) -> Suspension {
    Suspension { lowered: s.lowered.map(|l| Lowered { k: l.k.min(k), ..l }), ..s }
}

/// A suspension with new limits: what had ended it does not hold any more.
fn renewed(s: Suspension) -> Suspension {
    Suspension { lowered: s.lowered.map(|l| Lowered { timed: false, ended: None, ..l }), ..s }
}

fn wanted(policy: &PolicyRecord, change: PolicyChange) -> Wanted {
    let (now_voters, now_k) = policy.target();
    let mode = change.mode.unwrap_or(policy.mode);
    let mut voters = change.voters.unwrap_or_else(|| now_voters.to_vec());
    voters.sort();
    voters.dedup();
    let usual = if mode == Mode::Async { now_k } else { now_k.max(1) };
    let limits = Limits {
        max_loss_bytes: change.max_loss_bytes.unwrap_or(policy.limits.max_loss_bytes),
        max_ms: change.max_time.map_or(policy.limits.max_ms, millis),
    };
    Wanted { mode, quorum: Quorum { voters, k: change.k.unwrap_or(usual) }, limits }
}

/// Does the change promise less, or no more, with the same voters?
fn lowers(policy: &PolicyRecord, to: &Wanted) -> bool {
    let rank = |m: Mode| match m {
        Mode::Async => 0,
        Mode::Available => 1,
        Mode::Strict => 2,
    };
    let same = policy.target() == (&to.quorum.voters[..], to.quorum.k);
    match rank(to.mode).cmp(&rank(policy.mode)) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal => same,
        std::cmp::Ordering::Greater => false,
    }
}

fn note(epoch: u64, to: &Wanted) -> String {
    let names: Vec<String> = to.quorum.voters.iter().map(ToString::to_string).collect();
    let who = if to.mode == Mode::Async { "commits that ask for it" } else { "commits" };
    format!("epoch {epoch}: mode {}, {} vote, {who} wait for {}", to.mode.as_str(), names.join(", "), to.quorum.k)
}

/// Refused while another change is unfinished, which can only be taken back: commits may wait for either of its
/// quorums, and a third would be one too many to satisfy. `old` has the new epoch already.
fn quorum_changing(old: PolicyRecord, to: &Quorum) -> Result<PolicyRecord, Blocker> {
    if old.mode == Mode::Async || lets_through(&old) && old.joint.is_none() {
        // Nothing is promised, so there is nothing to overlap. What was is on all who stay, see `owed_to_the_voters`, however
        // few they are: who is added later must not make it look as if one that stays could be missing.
        let standbys = u32::try_from(to.voters.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let suspended = old.suspended.clone().map(|s| promised_to_at_most(s, standbys));
        return Ok(PolicyRecord { voters: to.voters.clone(), k: to.k, joint: None, suspended, ..old });
    }
    let (voters, k) = match &old.joint {
        None => (old.voters.clone(), old.k),
        Some(unfinished) if (&old.voters, old.k) == (&to.voters, to.k) => (unfinished.voters.clone(), unfinished.k),
        Some(_) => return Err(Blocker::PolicyChanging { epoch: old.epoch - 1 }),
    };
    // What was promised before a suspension is on so many of each: `promised` of `sync_set` takes it for the former's.
    let suspended = old.suspended.clone().map(|s| promised_to_at_most(s, k));
    Ok(PolicyRecord { voters, k, joint: Some(to.clone()), suspended, ..old })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsm::sync_set::sufficient;
    use crate::record::Tenure;
    use cluster::{Term, TimelineId};
    use proptest::prelude::*;
    use proptest::sample::subsequence;
    use std::collections::BTreeSet;

    /// Nodes beside n1, which stays primary, of eight: `least` at least.
    fn standbys(least: usize) -> impl Strategy<Value = Vec<usize>> {
        subsequence((1..8).collect::<Vec<_>>(), least..8)
    }

    /// k, how many more nodes vote beside n1, and which of the voters have what was promised: k or more.
    fn unprotected() -> impl Strategy<Value = (usize, usize, Vec<usize>)> {
        (1usize..4, 1usize..3).prop_flat_map(|(k, more)| {
            let have = subsequence((1..k + more).collect::<Vec<_>>(), k..k + more);
            have.prop_map(move |have| (k, more, have))
        })
    }

    proptest! {
        #[test]
        fn recruits_that_suffice_for_a_change_taken_back_while_suspended_meet_both_quorums(
            (k, more, to_k, to_more) in (1u32..4, 1usize..3, 1u32..4, 1usize..3), shift in 0usize..3, recruits: u32
        ) {
            let all: Vec<NodeId> = (1..=9).map(|i| format!("n{i}").parse().unwrap()).collect();
            let before = Quorum { voters: all[..k as usize + more].to_vec(), k };
            let to = Quorum { voters: all[shift..shift + to_k as usize + to_more].to_vec(), k: to_k };
            let lowered = Some(Lowered { k, complete_from: None, timed: false, ended: None });
            let suspended = Suspension { term: Term(7), since: Lsn(1), since_wall: 0, why: String::new(), lowered };
            let policy = PolicyRecord {
                epoch: 2,
                voters: before.voters.clone(),
                k,
                mode: Mode::Available,
                suspended: Some(suspended),
                limits: Limits::default(),
                joint: Some(to),
                rearmed: None,
            };
            let back = quorum_changing(policy.clone(), &before).expect("what was before");
            prop_assert_eq!(back.target(), (&before.voters[..], before.k));
            let old = Tenure { term: Term(7), node: all[0].clone(), timeline: TimelineId(7) };
            let recruits: BTreeSet<NodeId> =
                all[1..].iter().enumerate().filter(|(i, _)| recruits & (1 << i) != 0).map(|(_, n)| n.clone()).collect();
            if sufficient(&back, Some(&old), &recruits) {
                for (voters, k) in policy.quorums() {
                    let free = voters.iter().filter(|v| **v != old.node && !recruits.contains(*v)).count();
                    prop_assert!(free < k as usize, "a commit that {free} of {voters:?} have is missed");
                }
            }
        }

        /// Whoever leaves, everybody who stays has all that was promised first; who comes has nothing.
        #[test]
        fn recruits_that_suffice_after_voters_changed_while_unprotected_have_what_was_promised(
            (k, more, copies) in unprotected(), changes in proptest::collection::vec(standbys(1), 0..4), recruits in standbys(0)
        ) {
            let all: Vec<NodeId> = (1..=8).map(|i| format!("n{i}").parse().unwrap()).collect();
            let of = |drawn: Vec<usize>| -> BTreeSet<NodeId> { drawn.into_iter().map(|i| all[i].clone()).collect() };
            let k = u32::try_from(k).unwrap();
            let lowered = Some(Lowered { k, complete_from: Some(Lsn(1)), timed: true, ended: None });
            let suspended = Suspension { term: Term(7), since: Lsn(1), since_wall: 0, why: String::new(), lowered };
            let mut policy = PolicyRecord {
                epoch: 2,
                voters: all[..k as usize + more].to_vec(),
                k,
                mode: Mode::Available,
                suspended: Some(suspended),
                limits: Limits::default(),
                joint: None,
                rearmed: None,
            };
            let mut have = of(copies);
            for change in changes {
                let standbys = of(change);
                let voters: Vec<NodeId> = all[..1].iter().chain(&standbys).cloned().collect();
                if policy.voters.iter().any(|v| !voters.contains(v)) {
                    have.extend(standbys);
                }
                policy = quorum_changing(policy, &Quorum { voters, k: 1 }).expect("at once");
                prop_assert!(policy.joint.is_none());
            }
            let old = Tenure { term: Term(7), node: all[0].clone(), timeline: TimelineId(7) };
            let recruits = of(recruits);
            if sufficient(&policy, Some(&old), &recruits) {
                prop_assert!(recruits.intersection(&have).next().is_some(), "of {have:?} nobody is among {recruits:?}");
            }
        }
    }
}
