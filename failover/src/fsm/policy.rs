//! Changing who votes and how many copies a commit needs: checks, and the record that begins it. PURE.
//!
//! In this order, so that an interruption at any point leaves every acknowledged commit where the next failover looks:
//! the record names both quorums (a failover then satisfies both); the primary waits for the new one, and proves it; the
//! new one has flushed everything up to there; the record names the new one only. The first step is here, the others are
//! `rearm`'s. Going back is another change, to what was.

use crate::fsm::action::{Action, Answer, ChangeKind, Guard, RecordPut};
use crate::fsm::blocker::{Blocker, Missing};
use crate::fsm::observe::Health;
use crate::fsm::planner::{Planner, Stage};
use crate::record::{Mode, Phase, PolicyRecord, Quorum};
use cluster::{Instant, NodeId};

/// An operator who waits for a change of the quorum.
#[derive(Debug)]
pub(super) struct PolicyOp {
    pub(super) id: u64,
    /// What the policy becomes.
    to: Quorum,
    sent: bool,
    deadline: Instant,
}

impl Planner {
    pub(super) fn set_policy(
        &mut self,
        now: Instant,
        id: u64,
        voters: Option<Vec<NodeId>>,
        k: Option<u32>,
        expect_epoch: Option<u64>,
    ) -> Result<(), Vec<Blocker>> {
        let Some(policy) = self.seen.policy().cloned() else { return Err(vec![Blocker::NoCluster]) };
        if let Some(expected) = expect_epoch.filter(|e| *e != policy.epoch) {
            return Err(vec![Blocker::OtherEpoch { expected, current: policy.epoch }]);
        }
        if self.policy_op.is_some() || !matches!(self.stage, Stage::Idle) {
            return Err(vec![Blocker::Busy { what: "a change of the primary or of the policy".into() }]);
        }
        let (now_voters, now_k) = policy.target();
        let mut voters = voters.unwrap_or_else(|| now_voters.to_vec());
        voters.sort();
        voters.dedup();
        let to = Quorum { voters, k: k.unwrap_or(now_k) };
        if policy.target() == (&to.voters[..], to.k) {
            return Err(vec![Blocker::PolicyUnchanged { epoch: policy.epoch, going_on: policy.joint.is_some() }]);
        }
        if beginning(&policy, &to).is_none() {
            return Err(vec![Blocker::PolicyChanging { epoch: policy.epoch }]);
        }
        let blockers = self.policy_obstacles(now, &policy, &to);
        if !blockers.is_empty() {
            return Err(blockers);
        }
        let deadline = now + self.settings.operation_timeout;
        self.policy_op = Some(PolicyOp { id, to, sent: false, deadline });
        Ok(())
    }

    /// Everything that would leave the cluster unable to commit or to fail over once the change is made.
    fn policy_obstacles(&self, now: Instant, policy: &PolicyRecord, to: &Quorum) -> Vec<Blocker> {
        let open = self.seen.term().filter(|t| t.phase == Phase::Active).and_then(|t| t.node.clone());
        let Some(primary) = open else { return vec![Blocker::PrimaryNotWell { node: None }] };
        if self.seen.health(now, &self.settings) != Health::Well {
            return vec![Blocker::PrimaryNotWell { node: Some(primary) }];
        }
        let mut blockers = Vec::new();
        let (m, k) = (to.voters.len(), to.k);
        match policy.mode {
            Mode::Strict if k == 0 || k as usize >= m => blockers.push(Blocker::QuorumImpossible { m, k }),
            Mode::Async if k != 0 => blockers.push(Blocker::QuorumImpossible { m, k }),
            Mode::Strict | Mode::Async => {}
        }
        if let Some(s) = &policy.suspended {
            blockers.push(Blocker::Suspended { since: s.since, term: s.term });
        }
        if !to.voters.contains(&primary) {
            blockers.push(Blocker::PrimaryMustVote { node: primary.clone() });
        }
        // Who voted before may be down: that is often why the voters are changed.
        let added = to.voters.iter().filter(|n| **n != primary && !policy.counts(n));
        for node in added {
            if !self.seen.records.members.contains_key(node) {
                blockers.push(Blocker::UnknownNode { node: node.clone() });
            } else if let Some(unfit) = self.unfit(node, now) {
                blockers.push(Blocker::TargetUnfit { target: Missing { node: node.clone(), unfit } });
            } else if self.seen.streaming(node, now, &self.settings).is_none() {
                blockers.push(Blocker::TargetNotStreaming { node: node.clone() });
            }
        }
        let streams = |n: &&NodeId| {
            **n != primary && !self.seen.fenced(n) && self.seen.streaming(n, now, &self.settings).is_some()
        };
        let have: Vec<NodeId> = to.voters.iter().filter(streams).cloned().collect();
        if have.len() < k as usize {
            blockers.push(Blocker::TooFewStreaming { needed: k, have });
        }
        blockers
    }

    /// Write the record that begins the change when no other change is under way; answer when it is complete.
    pub(super) fn advance_policy(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(op) = &mut self.policy_op else { return };
        let policy = self.seen.records.policy.as_ref();
        let complete =
            policy.is_some_and(|p| p.value.joint.is_none() && p.value.target() == (&op.to.voters[..], op.to.k));
        if op.sent && complete {
            let (id, epoch) = (op.id, policy.map_or(0, |p| p.value.epoch));
            let names: Vec<String> = op.to.voters.iter().map(ToString::to_string).collect();
            let note = format!("epoch {epoch}: {} vote, commits wait for {}", names.join(", "), op.to.k);
            self.policy_op = None;
            let term = self.seen.term().map_or(cluster::Term(0), |t| t.term);
            let answer = Box::new(Answer::Done { term, node: None, note, journal: None });
            out.push(Action::Answer { id, answer });
            return;
        }
        if now >= op.deadline {
            let (id, sent) = (op.id, op.sent);
            self.policy_op = None;
            let why = match (sent, policy.and_then(|p| p.value.joint.as_ref())) {
                (false, _) => "not begun in time; nothing was written".to_owned(),
                (true, None) => "not begun: something else changed first".to_owned(),
                (true, Some(_)) => {
                    "not finished in time and still going on; until then a failover needs both quorums, \
                    and the change can be taken back by setting what was"
                        .to_owned()
                }
            };
            out.push(Action::Answer { id, answer: Box::new(Answer::Failed { why, journal: None }) });
            return;
        }
        if !op.sent && self.pending.is_none() && matches!(self.stage, Stage::Idle) {
            op.sent = true;
            let to = op.to.clone();
            self.send_joint(&to, out);
        }
    }

    fn send_joint(&mut self, to: &Quorum, out: &mut Vec<Action>) {
        let (Some(term), Some(old)) = (self.seen.records.term.clone(), self.seen.records.policy.clone()) else {
            return;
        };
        let Some(policy) = beginning(&old.value, to) else { return self.policy_lost(out) };
        let guards = vec![Guard::Term(term.revision), Guard::Policy(old.revision)];
        self.rearm = None;
        self.send(ChangeKind::Policy, guards, vec![RecordPut::Policy(policy)], Vec::new(), out);
    }

    pub(super) fn policy_lost(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.policy_op.take() else { return };
        let why = "nothing was written: the term, the policy or the leading manager changed first".to_owned();
        out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
    }
}

/// The record that begins the change; `None` while another change is unfinished, which can only be taken back: commits
/// may wait for either of its quorums, and a third would be one too many to satisfy.
fn beginning(old: &PolicyRecord, to: &Quorum) -> Option<PolicyRecord> {
    let epoch = old.epoch + 1;
    if old.mode == Mode::Async {
        // Nobody is waited for, so there is nothing to overlap.
        return Some(PolicyRecord { epoch, voters: to.voters.clone(), joint: None, ..old.clone() });
    }
    let (voters, k) = match &old.joint {
        None => (old.voters.clone(), old.k),
        Some(unfinished) if (&old.voters, old.k) == (&to.voters, to.k) => (unfinished.voters.clone(), unfinished.k),
        Some(_) => return None,
    };
    Some(PolicyRecord { epoch, voters, k, joint: Some(to.clone()), ..old.clone() })
}
