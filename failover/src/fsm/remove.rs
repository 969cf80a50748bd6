//! Taking a node out for good: its vote by a change of the policy, then its record. PURE.
//!
//! The vote goes first and as ever (`policy`): both quorums hold until the new one has everything, and what could not
//! commit or fail over without the node is refused with its numbers. Then one transaction forgets the member and leaves a
//! fence that says so, by which its agent stops and does not register again. Lifting the fence brings the node back,
//! without a vote.

use crate::fsm::action::{Action, Answer, ChangeKind, Guard, PolicyChange, RecordKey, RecordPut};
use crate::fsm::blocker::Blocker;
use crate::fsm::planner::Planner;
use crate::record::FenceRecord;
use cluster::{Instant, NodeId, Term};

/// A node being forgotten. While its vote is being taken the policy's change has the operator's id.
#[derive(Debug)]
pub(super) struct RemoveOp {
    pub(super) id: u64,
    pub(super) node: NodeId,
    pub(super) by: String,
    pub(super) sent: bool,
    pub(super) deadline: Instant,
}

impl Planner {
    pub(super) fn remove_node(&mut self, now: Instant, id: u64, node: NodeId, by: String) -> Result<(), Vec<Blocker>> {
        if self.remove_op.is_some() {
            return Err(vec![Blocker::Busy { what: "another request to remove a node".into() }]);
        }
        if !self.seen.records.members.contains_key(&node) {
            return Err(vec![self.no_such(&node)]);
        }
        if self.is_term_node(&node) {
            return Err(vec![Blocker::PrimaryMustMove { node }]);
        }
        let Some(policy) = self.seen.policy() else { return Err(vec![self.no_cluster()]) };
        if policy.counts(&node) {
            let voters = policy.target().0.iter().filter(|v| **v != node).cloned().collect();
            self.set_policy(now, id, PolicyChange { voters: Some(voters), ..PolicyChange::default() })?;
        }
        let deadline = now + self.settings.operation_timeout;
        self.remove_op = Some(RemoveOp { id, node, by, sent: false, deadline });
        Ok(())
    }

    /// Forget the node once its vote is gone; say so when that takes too long.
    pub(super) fn advance_remove(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(op) = &mut self.remove_op else { return };
        let (Some(term), Some(policy)) = (&self.seen.records.term, &self.seen.records.policy) else { return };
        let votes = policy.value.counts(&op.node);
        if votes && self.policy_op.is_none() {
            // Its change of the policy has failed, and was answered.
            self.remove_op = None;
            return;
        }
        let (open, primary) = (term.value.is_open(), term.value.node.as_ref() == Some(&op.node));
        if !votes && !op.sent && open && primary && self.pending.is_none() {
            // A failover meanwhile made it that: without a record of it nobody could be sent there.
            let why =
                format!("{} has no vote any more, but it has become the primary: switch over, and ask again", op.node);
            out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
            self.remove_op = None;
            return;
        }
        if votes || op.sent || !open || self.pending.is_some() || now >= op.deadline {
            if now >= op.deadline && !votes {
                let why = format!("{} has no vote any more, but is not forgotten in time; ask again", op.node);
                out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
                self.remove_op = None;
            }
            return;
        }
        op.sent = true;
        let node = op.node.clone();
        let fence = FenceRecord { by: op.by.clone(), at: self.wall, stop_writes: false, removed: true };
        let guards = vec![Guard::Term(term.revision), Guard::Policy(policy.revision)];
        let puts = vec![RecordPut::Fence(node.clone(), fence)];
        let deletes = vec![RecordKey::Member(node.clone()), RecordKey::Maintenance(node)];
        self.send(ChangeKind::Remove, guards, puts, deletes, out);
    }

    pub(super) fn removed(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.remove_op.take() else { return };
        let node = op.node;
        let note = format!("{node} is removed; its agent stops PostgreSQL, its data stay where they are");
        let term = self.seen.term().map_or(Term(0), |t| t.term);
        let answer = Answer::Done { term, node: Some(node), note, journal: None };
        out.push(Action::Answer { id: op.id, answer: Box::new(answer) });
    }

    pub(super) fn remove_lost(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.remove_op.take() else { return };
        let why = format!("{} has no vote any more, but something changed before it was forgotten; ask again", op.node);
        out.push(Action::Answer { id: op.id, answer: Box::new(Answer::Failed { why, journal: None }) });
    }

    /// Does the end of the policy's change lead on to a removal, which answers instead?
    pub(super) fn leads_to_removal(&self, id: u64) -> bool {
        self.remove_op.as_ref().is_some_and(|op| op.id == id)
    }
}
