//! Lowering protection knowingly: the record first, then the setting, and never further than its limits. PURE.
//!
//! In `available` mode a primary whose standbys are gone goes on alone, and in `async` mode commits wait only when they
//! ask. Both begin alike, so that whatever is interrupted, the next failover knows what was promised:
//!
//! 1. The policy says that commits are not protected (T5), while they still wait.
//! 2. Every proxy acts on that: until then one might take an answer for more than it is.
//! 3. The primary's agent, which holds its lease, lets them through, and says from which position on.
//! 4. The policy says so too: whoever has that has all that was promised, and may succeed without a quorum.
//!
//! Up to the fourth step, and wherever it never comes, recruits must meet the quorum that commits had waited for. A
//! suspension is bounded in WAL by the primary's position and in time by a key under a lease; beyond either commits
//! wait again. Ending it is `rearm`'s.

use crate::api::Relax;
use crate::fsm::action::{Action, ChangeKind, Command, CommandError, Guard, RecordPut, Reply};
use crate::fsm::blocker::{Verdict, list};
use crate::fsm::observe::millis;
use crate::fsm::planner::{Planner, Stage};
use crate::fsm::rearm::Rearm;
use crate::record::{Lowered, Mode, Phase, PolicyRecord, Suspension};
use cluster::sync_names::SyncNames;
use cluster::{Instant, Lsn, NodeId, Term};
use std::time::Duration;

/// How far it has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Suspend {
    /// Fewer standbys than commits wait for have streamed since then.
    Short { since: Instant },
    /// The policy is being written.
    Writing,
    /// The primary was ordered to let commits through, under this epoch.
    Relaxing { term: Term, epoch: u64 },
}

/// A reload, and a look at etcd before it.
const RELAX_WITHIN: Duration = Duration::from_secs(5);

impl Planner {
    /// Called while the primary is open and answers.
    pub(super) fn advance_suspend(&mut self, now: Instant, out: &mut Vec<Action>) {
        let (Some(term), Some(policy)) = (self.seen.term().cloned(), self.seen.policy().cloned()) else { return };
        let open = term.node.clone().filter(|_| term.phase == Phase::Active);
        let Some(primary) = open.filter(|_| self.pending.is_none()) else { return };
        if matches!(&self.suspend, Some(Suspend::Relaxing { term: t, .. }) if *t != term.term) {
            self.suspend = None;
        }
        let lowered = policy.suspended.as_ref().and_then(|s| Some((s.clone(), s.lowered.clone()?)));
        match lowered {
            None if policy.suspended.is_none() => self.consider_suspending(now, term.term, &policy, &primary, out),
            None => self.suspend = None, // an operator's, which came with its term
            Some((suspension, lowered)) => self.lower(now, term.term, &policy, &primary, suspension, lowered, out),
        }
    }

    /// Are commits held up for want of standbys, and may they go on without?
    fn consider_suspending(
        &mut self,
        now: Instant,
        term: Term,
        policy: &PolicyRecord,
        primary: &NodeId,
        out: &mut Vec<Action>,
    ) {
        let (voters, k) = self.waited_for(now, policy, primary);
        let there = self.followers(now, voters, primary);
        if policy.mode != Mode::Available || there.as_ref().is_none_or(|t| t.len() >= k as usize) {
            self.suspend = None;
            return;
        }
        let since = match self.suspend {
            Some(Suspend::Short { since }) => since,
            _ => now,
        };
        self.suspend = Some(Suspend::Short { since });
        let waited = now.since(since);
        // The lease is what fences it from now on.
        let leased = self.seen.records.primary.as_ref().is_some_and(|p| p.term == term && p.node == *primary);
        // An order to arm is answered within its bound; that its standbys have what it answered need never come true.
        let busy = self.policy_op.as_ref().is_some_and(|op| !op.is_sent())
            || matches!(self.rearm, Some(Rearm::Arming { .. } | Rearm::Writing));
        if waited < self.settings.suspend_after || !leased || busy {
            return;
        }
        self.rearm = None;
        let there = there.unwrap_or_default();
        let why = format!("{} of {k} standbys for {} ms: {}", there.len(), millis(waited), list(&there));
        let lowered = Lowered { k: policy.k, complete_from: None, timed: false, ended: None };
        let suspended = Some(self.lowering(term, why, lowered));
        self.send_policy(PolicyRecord { epoch: policy.epoch + 1, suspended, ..policy.clone() }, false, out);
    }

    /// The quorum that commits wait for: while voters or k are being changed, the one to be from when it was set.
    fn waited_for<'p>(&self, now: Instant, policy: &'p PolicyRecord, primary: &NodeId) -> (&'p [NodeId], u32) {
        let set = |to: &(&[NodeId], u32)| self.is_set(now, *to, primary);
        Some(policy.target()).filter(set).unwrap_or((&policy.voters, policy.k))
    }

    /// Does the primary make commits wait for that quorum, by its own word?
    fn is_set(&self, now: Instant, (voters, k): (&[NodeId], u32), primary: &NodeId) -> bool {
        let names = SyncNames::for_primary(primary, voters, k).to_string();
        let state = self.seen.reachable(primary, now, &self.settings).map(|s| &s.postgres);
        matches!(state, Some(crate::api::PostgresState::Primary(p)) if p.sync_names == names && !names.is_empty())
    }

    pub(super) fn lowering(&self, term: Term, why: String, lowered: Lowered) -> Suspension {
        let since = self.clock.last(term).unwrap_or(Lsn::INVALID);
        Suspension { term, since, since_wall: self.wall, why, lowered: Some(lowered) }
    }

    /// Voters that stream, as the primary itself shows them, and not those that are still catching up; `None` while it has
    /// not been heard. Each is there once, however often it is connected.
    pub(super) fn followers(&self, now: Instant, voters: &[NodeId], primary: &NodeId) -> Option<Vec<NodeId>> {
        let state = self.seen.reachable(primary, now, &self.settings)?;
        let crate::api::PostgresState::Primary(p) = &state.postgres else { return None };
        let streams = |v: &&NodeId| p.followers.iter().any(|f| f.node == **v && f.state == "streaming");
        Some(voters.iter().filter(streams).cloned().collect())
    }

    /// From the second step on.
    #[expect(clippy::too_many_arguments, reason = "what the steps go by, read once")]
    fn lower(
        &mut self,
        now: Instant,
        term: Term,
        policy: &PolicyRecord,
        primary: &NodeId,
        suspension: Suspension,
        lowered: Lowered,
        out: &mut Vec<Action>,
    ) {
        let returning = policy.mode != Mode::Async && self.near(now, policy, primary) >= policy.target().1;
        if lowered.ended.is_some() || returning || self.rearm.is_some() {
            self.suspend = None;
            return;
        }
        if matches!(self.suspend, Some(Suspend::Writing | Suspend::Relaxing { .. })) {
            return;
        }
        let next = |suspended| PolicyRecord { epoch: policy.epoch + 1, suspended, ..policy.clone() };
        if lowered.complete_from.is_none() || self.waits_still(now, policy, primary) {
            if policy.epoch == self.relax_refused && now >= self.relax_not_before {
                // It was ordered to make them wait under this epoch, and goes by what is newer.
                self.send_policy(next(Some(suspension)), false, out);
            } else {
                self.order_relax(now, term, policy, primary, out);
            }
            return;
        }
        if policy.mode == Mode::Async {
            let all = policy.voters.iter().filter(|n| *n != primary).count();
            let complete = lowered.complete_from.unwrap_or(Lsn::INVALID);
            if self.caught_up(now, policy, primary, complete) as usize >= all {
                // Whoever is promoted next has what was promised before: nothing is left to remember.
                self.send_policy(next(None), false, out);
            }
            return;
        }
        if !lowered.timed {
            let lowered = Some(Lowered { timed: true, ..lowered });
            self.send_policy(next(Some(Suspension { lowered, ..suspension })), true, out);
        } else if let Some(why) = self.exhausted(term, policy, &suspension) {
            let lowered = Some(Lowered { ended: Some(why), ..lowered });
            self.send_policy(next(Some(Suspension { lowered, ..suspension })), false, out);
        }
    }

    /// Does the primary still make commits wait, although the policy says otherwise?
    ///
    /// By whichever list: voters may have become others meanwhile.
    fn waits_still(&self, now: Instant, policy: &PolicyRecord, primary: &NodeId) -> bool {
        let state = self.seen.reachable(primary, now, &self.settings).map(|s| &s.postgres);
        let Some(crate::api::PostgresState::Primary(p)) = state else { return false };
        policy.mode != Mode::Async && matches!(p.sync_names.parse(), Ok(SyncNames::Any { .. }))
    }

    fn exhausted(&self, term: Term, policy: &PolicyRecord, suspension: &Suspension) -> Option<String> {
        let limits = policy.limits;
        let bytes = self.clock.last(term).map_or(0, |last| last.bytes_since(suspension.since));
        if bytes >= limits.max_loss_bytes {
            return Some(format!("{bytes} bytes are unprotected, of {} allowed", limits.max_loss_bytes));
        }
        let over = !self.seen.records.grace;
        over.then(|| format!("it has lasted for the {} s allowed", limits.max_ms / 1000))
    }

    fn order_relax(
        &mut self,
        now: Instant,
        term: Term,
        policy: &PolicyRecord,
        primary: &NodeId,
        out: &mut Vec<Action>,
    ) {
        if now < self.relax_not_before {
            return;
        }
        // One that has read of a later term, which etcd has forgotten, passes on nothing of this one, and reads no policy of it.
        let behind = self.seen.records.proxies.iter().filter(|(_, p)| p.epoch < policy.epoch && p.term <= term);
        let behind: Vec<String> = behind.map(|(id, p)| format!("{id} (epoch {})", p.epoch)).collect();
        if !behind.is_empty() {
            let step = format!("before commits go unprotected, proxies must know: {}", list(&behind));
            self.verdict = Verdict::Acting { term, step };
            return;
        }
        let command = Box::new(Command::Relax(Relax { term, policy_epoch: policy.epoch }));
        out.push(Action::Send { node: primary.clone(), command, within: RELAX_WITHIN });
        self.suspend = Some(Suspend::Relaxing { term, epoch: policy.epoch });
    }

    pub(super) fn relax_answer(
        &mut self,
        now: Instant,
        term: Term,
        result: Result<Reply, CommandError>,
        out: &mut Vec<Action>,
    ) {
        let Some(Suspend::Relaxing { term: ordered, epoch }) = self.suspend else { return };
        if ordered != term {
            return;
        }
        self.suspend = None;
        self.relax_not_before = now + self.settings.retry_longest;
        if matches!(result, Err(CommandError::Refused(_))) {
            self.relax_refused = epoch;
        }
        let (Ok(Reply::Relaxed(relaxed)), Some(policy)) = (result, self.seen.policy().cloned()) else { return };
        self.relax_not_before = now + self.settings.retry;
        let Some(suspension) = policy.suspended.clone().filter(|_| policy.epoch == epoch) else { return };
        let Some(lowered) = suspension.lowered.clone().filter(|l| l.complete_from.is_none()) else { return };
        if self.pending.is_some() || !matches!(self.stage, Stage::Idle) {
            return; // ordered again, and answered again
        }
        let timed = policy.mode == Mode::Available;
        let lowered = Some(Lowered { complete_from: Some(relaxed.lsn), timed, ..lowered });
        let suspended = Some(Suspension { lowered, ..suspension });
        self.send_policy(PolicyRecord { epoch: epoch + 1, suspended, ..policy }, timed, out);
    }

    /// T5. With `grace`, the time that the suspension may last begins.
    fn send_policy(&mut self, policy: PolicyRecord, grace: bool, out: &mut Vec<Action>) {
        let (Some(term), Some(old)) = (self.seen.records.term.clone(), self.seen.records.policy.clone()) else {
            return;
        };
        self.suspend = Some(Suspend::Writing);
        let length = Duration::from_millis(policy.limits.max_ms);
        let grace = grace.then_some(RecordPut::Grace(length));
        let puts = [RecordPut::Policy(policy)].into_iter().chain(grace).collect();
        let guards = vec![Guard::Term(term.revision), Guard::Policy(old.revision)];
        self.send(ChangeKind::Suspend, guards, puts, Vec::new(), out);
    }
}
