//! Operators who give others the places of lost voters, take voters out, change k or raise limits while commits are not
//! protected, and while that is being written.

use super::node::{Names, Node};
use super::{Event, World, ms, name};
use cluster::NodeId;
use failover::fsm::action::{Answer, Change, ChangeKind, Input, Operation, PolicyChange};
use failover::fsm::blocker::Blocker;
use failover::fsm::sync_set;
use failover::record::{Mode, PolicyRecord};
use std::time::Duration;

impl World {
    fn operators_watch(&self) -> bool {
        self.mode == Mode::Available && self.faulty()
    }

    /// A primary's standbys are lost, for longer than commits may go unprotected, but for one at most. If one has no vote, that
    /// one is left, and could take the place of those.
    pub(crate) fn lose_standbys(&mut self) -> bool {
        let primary = self.nodes.iter().position(Node::is_primary);
        let Some(primary) = primary.filter(|_| self.operators_watch() && self.chance.percent(25)) else { return false };
        let policy = self.records.policy.as_ref().map(|p| p.value.clone());
        let others = (0..self.nodes.len()).filter(|n| *n != primary && !self.nodes[*n].fenced);
        let (voters, spare): (Vec<usize>, Vec<usize>) =
            others.partition(|n| policy.as_ref().is_some_and(|p| p.counts(&name(*n))));
        // Now and then it alone has the last that was promised, and is lost a little later.
        let of = if spare.is_empty() || self.chance.percent(50) { &voters } else { &spare };
        let left = of.get(self.chance.below(of.len() as u64 + 1) as usize).copied();
        self.say(format!("the standbys of {} are lost, but for {left:?}", name(primary)));
        for n in voters.into_iter().chain(spare) {
            let (wait, span) = (1000 + self.chance.below(3000), 1000 + self.chance.below(9000));
            if Some(n) != left {
                self.nodes[n].cut_until = self.now + ms(span);
            } else if self.chance.percent(60) {
                let until = self.now + ms(wait + 3000 + span);
                self.after(wait, Event::Lose(n, until));
            }
        }
        true
    }

    /// T5 of a suspension is sent: now and then somebody asks for something before it is heard of.
    pub(crate) fn note_suspending(&mut self, m: usize, life: u32, change: &Change) {
        let protects = self.records.policy.as_ref().is_some_and(|p| p.value.protects());
        let begins = change.kind == ChangeKind::Suspend && protects;
        if !begins || !self.operators_watch() {
            return;
        }
        (self.suspending, self.asked_in_between) = (Some((m, life, change.id)), false);
        if self.chance.percent(70) {
            let wait = self.chance.below(4);
            self.after(wait, Event::Unprotected);
        }
        // And while it lasts.
        for _ in 0..8 {
            let wait = 100 + self.chance.below(10_000);
            self.after(wait, Event::Unprotected);
        }
    }

    pub(crate) fn note_refused(&mut self, id: u64, answer: &Answer) {
        let Answer::Refused(blockers) = answer else { return };
        let unprotected = self.records.policy.as_ref().is_some_and(|p| !p.value.protects());
        let promised = blockers.iter().any(|b| matches!(b, Blocker::Suspended { .. }));
        if id > 1000 && unprotected && promised {
            self.reach("a change refused while unprotected, as of what is promised");
        }
        if id == self.accepted {
            self.reach("a change judged again and refused");
        }
        self.refused = id;
    }

    /// One asks for what an operator may think of while standbys are gone.
    pub(crate) fn ask_while_unprotected(&mut self) {
        let leader = (0..self.managers.len()).find(|m| self.managers[*m].planner.leads());
        let Some((m, policy)) = leader.zip(self.records.policy.as_ref().map(|p| p.value.clone())) else { return };
        if !self.operators_watch() || policy.protects() && self.suspending.is_none() {
            return;
        }
        let operation = self.operation_while_unprotected(&policy);
        self.say(format!("an operator asks manager {m} for {operation:?}"));
        self.operations += 1;
        let id = 1000 + self.operations;
        let between = self.suspending.is_some_and(|(by, life, _)| by == m && life == self.managers[m].life);
        self.step(m, Input::Operator { id, operation });
        if self.refused == id {
            return;
        }
        self.accepted = id;
        if between {
            self.asked_in_between = true;
            self.reach("a change while a suspension is written");
        }
    }

    fn operation_while_unprotected(&mut self, policy: &PolicyRecord) -> Operation {
        let to = |voters, k| Operation::SetPolicy(PolicyChange { voters, k, ..Default::default() });
        let n = self.chance.below(self.nodes.len() as u64) as usize;
        let ended = policy.suspended.as_ref().and_then(|s| s.lowered.as_ref()).is_some_and(|l| l.ended.is_some());
        let removed = self.records.fences.keys().next().cloned();
        let m = policy.voters.len();
        match (self.chance.below(10), removed) {
            (0, Some(node)) => Operation::Unfence { node },
            (0 | 1, _) => Operation::RemoveNode { node: name(n), by: "o".into() },
            (2..=5, _) if ended => {
                let longer = Duration::from_millis(policy.limits.max_ms + 4000);
                Operation::SetPolicy(PolicyChange { max_time: Some(longer), ..Default::default() })
            }
            (2 | 3, _) if m > 2 => to(None, Some(if policy.k == 1 { 2 } else { 1 })),
            (4, _) if m > 2 => {
                let mut voters = policy.voters.clone();
                voters.retain(|v| *v != name(n));
                to(Some(voters), Some(1))
            }
            (2..=6, _) => {
                let voters = self.records.members.keys().filter(|n| policy.counts(n) || self.is_there(n));
                to(Some(voters.cloned().collect()), None)
            }
            _ => {
                let voters: Vec<NodeId> = self.records.members.keys().filter(|n| self.is_there(n)).cloned().collect();
                let most = (voters.len() as u64).saturating_sub(1).clamp(1, 2);
                let k = 1 + self.chance.below(most) as u32;
                to(Some(voters), Some(k))
            }
        }
    }

    /// As an operator sees it.
    fn is_there(&self, node: &NodeId) -> bool {
        let primary = self.records.term.as_ref().and_then(|t| t.value.node.as_ref());
        primary == Some(node) || (0..self.nodes.len()).any(|n| name(n) == *node && self.reachable(n))
    }

    /// What a T5 makes of an unprotected cluster.
    pub(crate) fn note_unprotected(&mut self, old: &PolicyRecord, to: &PolicyRecord) {
        if old.protects() || to.mode != Mode::Available {
            return;
        }
        let lowered = old.suspended.as_ref().and_then(|s| s.lowered.as_ref());
        if to.joint.is_some() && old.joint.is_none() && self.asked_in_between {
            self.reach("a change while a suspension is written, begun under it");
        }
        if old.joint.is_some() || to.joint.is_some() || to.suspended.is_none() {
            return;
        }
        let lost = old.voters.iter().any(|v| !to.voters.contains(v));
        let new = to.voters.iter().any(|v| !old.voters.contains(v));
        if !lost && !new && old.k == to.k {
            return;
        }
        self.replaced = true;
        // That is when the next failover goes by others.
        let primary = self.nodes.iter().position(Node::is_primary);
        if let Some(p) = primary.filter(|_| self.faulty() && self.chance.percent(40)) {
            let gone = (0..self.nodes.len()).find(|n| old.counts(&name(*n)) && !to.counts(&name(*n)));
            let any = self.chance.below(self.nodes.len() as u64) as usize;
            let n = gone.filter(|_| self.chance.percent(70)).unwrap_or(any);
            let wait = 10 + self.chance.below(1500);
            self.after(wait, Event::Bereave(p, n));
        }
        for (reached, what) in [
            (new, "voters given a vote while unprotected"),
            (lost, "voters let go while unprotected"),
            (to.k < old.k, "k lowered while unprotected"),
            (to.k > old.k, "k raised while unprotected"),
            (lowered.is_some_and(|l| l.ended.is_some()), "voters changed beyond the limits of a suspension"),
        ] {
            if reached {
                self.reach(what);
            }
        }
    }

    /// A primary is about to let commits through.
    pub(crate) fn note_let_through(&mut self, n: usize) {
        let node = &self.nodes[n];
        let Some(policy) = self.policy(n).filter(|_| node.names == Names::Armed) else { return };
        if policy.joint.is_none() && sync_set::armed_names(&policy, &name(n)) != node.waits_for {
            self.reach("commits let through that waited for former voters");
        }
    }
}
