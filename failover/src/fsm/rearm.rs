//! Protecting commits again after a suspension, or by another quorum: setting first, then proof, then the record. PURE.
//!
//! In this order an interruption at any point leaves commits at least as protected as the record says.

use crate::api::Arm;
use crate::fsm::action::{Action, ChangeKind, Command, CommandError, Guard, RecordPut, Reply};
use crate::fsm::planner::Planner;
use crate::fsm::suspend::Suspend;
use crate::fsm::sync_set;
use crate::record::{Mode, PolicyRecord, Rearmed};
use crate::view::topology::lengthened;
use cluster::topology::STRICT_VIEW;
use cluster::{Instant, Lsn, NodeId, Term};
use std::time::Duration;

/// How far it has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rearm {
    /// The primary was ordered to wait for the standbys of this epoch, and to prove it.
    Arming { term: Term, epoch: u64 },
    /// Commits past `lsn` wait for the quorum that is to be; k of it must have that position.
    Confirming { term: Term, lsn: Lsn, since: Instant },
    /// The policy is being written.
    Writing,
}

impl Rearm {
    fn is_arming(&self, in_term: Term) -> bool {
        matches!(self, Self::Arming { term, .. } if *term == in_term)
    }
}

/// Longer than the agent's own bounds, of 5 s until standbys stream through slots, 9 s until every session goes by the
/// settings and 15 s for the proof.
pub(crate) const ARM_WITHIN: Duration = Duration::from_secs(30);

/// So long after the primary's agent has read of a change a proxy may still go by the quorum before it.
///
/// One that has lost etcd takes k voters that receive for a proof that no later term is open ([`cluster::topology::Quorum`]).
/// Who votes no more, or a smaller part of those that must be frozen, proves nothing once the new quorum is alone; so both
/// count until the last view of the old one has ended. The agent vouches for none of them any more. Where k of the old
/// voters are always enough of the new ones nothing needs to be waited for.
fn views_to_outlast(policy: &PolicyRecord) -> Duration {
    let Some(to) = policy.joint.as_ref().filter(|_| policy.protects()) else { return Duration::ZERO };
    let gone = policy.voters.iter().filter(|v| !to.voters.contains(v)).count();
    if to.k as usize + gone <= policy.k as usize { Duration::ZERO } else { lengthened(STRICT_VIEW) }
}

impl Planner {
    /// Called while the primary is open and well.
    pub(super) fn advance_rearm(&mut self, now: Instant, out: &mut Vec<Action>) {
        let (Some(term), Some(policy)) = (self.seen.term().cloned(), self.seen.policy().cloned()) else { return };
        let Some(primary) = term.node.clone() else { return };
        let (_, k) = policy.target();
        if policy.mode == Mode::Async || (policy.suspended.is_none() && policy.joint.is_none()) {
            self.rearm = None;
            return;
        }
        match &self.rearm {
            None => {
                if now < self.rearm_not_before || self.near(now, &policy, &primary) < k {
                    return;
                }
                if matches!(self.suspend, Some(Suspend::Relaxing { .. } | Suspend::Writing)) {
                    return; // one order after the other
                }
                let sync_names = sync_set::armed_names(&policy, &primary).to_string();
                let command = Box::new(Command::Arm(Arm { term: term.term, sync_names, policy_epoch: policy.epoch }));
                out.push(Action::Send { node: primary, command, within: ARM_WITHIN });
                self.rearm = Some(Rearm::Arming { term: term.term, epoch: policy.epoch });
            }
            Some(Rearm::Arming { term: armed, .. } | Rearm::Confirming { term: armed, .. }) if *armed != term.term => {
                self.rearm = None;
            }
            Some(Rearm::Arming { .. } | Rearm::Writing) => {}
            Some(Rearm::Confirming { lsn, since, .. }) => {
                let streams = self.caught_up(now, &policy, &primary, Lsn::INVALID);
                if policy.suspended.is_some() && streams < k {
                    // Gone again before it was known to have that: what commits wait for goes by the record until it is back.
                    self.rearm = None;
                    self.rearm_not_before = now + self.settings.retry;
                    return;
                }
                let known = now >= *since + views_to_outlast(&policy);
                if known && self.caught_up(now, &policy, &primary, *lsn) >= k {
                    let rearmed = Rearmed { term: term.term, lsn: *lsn };
                    self.rearm = Some(Rearm::Writing);
                    self.send_rearmed(policy, rearmed, out);
                }
            }
        }
    }

    /// Those who are to vote, stream from the primary and have received `lsn`.
    pub(super) fn caught_up(&self, now: Instant, policy: &PolicyRecord, primary: &NodeId, lsn: Lsn) -> u32 {
        let has = |n: &&NodeId| {
            *n != primary
                && !self.seen.fenced(n)
                && self.seen.streaming(n, now, &self.settings).is_some_and(|s| s.receive_lsn >= lsn)
        };
        u32::try_from(policy.target().0.iter().filter(has).count()).unwrap_or(u32::MAX)
    }

    /// Those of them to whom the primary has sent all that it had: commits that begin to wait for one that is still sent WAL
    /// of long ago wait until that is done.
    pub(super) fn near(&self, now: Instant, policy: &PolicyRecord, primary: &NodeId) -> u32 {
        let sent_all = self.followers(now, policy.target().0, primary).unwrap_or_default();
        let near = |n: &&NodeId| !self.seen.fenced(n) && self.seen.streaming(n, now, &self.settings).is_some();
        u32::try_from(sent_all.iter().filter(near).count()).unwrap_or(u32::MAX)
    }

    fn send_rearmed(&mut self, policy: PolicyRecord, rearmed: Rearmed, out: &mut Vec<Action>) {
        let (Some(term), Some(old)) = (self.seen.records.term.clone(), self.seen.records.policy.clone()) else {
            return;
        };
        let (voters, k) = policy.target();
        let (voters, epoch) = (voters.to_vec(), policy.epoch + 1);
        let rearmed = if policy.suspended.is_some() { Some(rearmed) } else { policy.rearmed };
        let policy = PolicyRecord { epoch, voters, k, suspended: None, joint: None, rearmed, ..policy };
        let guards = vec![Guard::Term(term.revision), Guard::Policy(old.revision)];
        self.send(ChangeKind::Rearm, guards, vec![RecordPut::Policy(policy)], Vec::new(), out);
    }

    pub(super) fn rearmed(&mut self) {
        self.rearm = None;
    }

    pub(super) fn arm_answer(&mut self, now: Instant, term: Term, result: Result<Reply, CommandError>) {
        let Some(Rearm::Arming { epoch, .. }) = self.rearm.as_ref().filter(|r| r.is_arming(term)) else { return };
        // The answer to an order of an earlier policy says nothing of the list that is to be set now.
        if matches!(&result, Ok(Reply::Armed(armed)) if armed.policy_epoch != *epoch) {
            return;
        }
        if let (Ok(Reply::Armed(_)), Some(Suspend::Short { since })) = (&result, &mut self.suspend) {
            // That the former quorum was short of standbys meanwhile says nothing of the one that commits wait for now.
            *since = now;
        }
        self.rearm = match result {
            Ok(Reply::Armed(armed)) => Some(Rearm::Confirming { term, lsn: armed.lsn, since: now }),
            Ok(_) | Err(_) => {
                self.rearm_not_before = now + self.settings.retry_longest;
                None
            }
        };
    }
}
