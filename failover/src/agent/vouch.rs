//! Vouching to proxies that have lost etcd: the term and the policy that they act on still hold.
//!
//! Where commits wait for standbys the promise is that they go on to: they are let through no sooner than all that was
//! vouched for is over. Where the lease is the fence it is that the lease lasts. Views of a strict cluster that come from
//! etcd end long after they were read, and nobody knows of all of them; so the same wait follows whenever the mode is seen
//! to be lowered.

use super::Agent;
use super::commands::CommandError;
use super::env::Env;
use super::memory::Memory;
use crate::api::{PostgresState, Vouched};
use crate::fsm::lease::{VOUCHED, vouched_for};
use crate::record::{Mode, PolicyRecord};
use crate::view::topology::lengthened;
use cluster::topology::STRICT_VIEW;
use cluster::{Instant, Term};
use std::time::Duration;

/// An order to let commits through waits no longer than this within the order itself; then it is given again.
const WAIT: Duration = Duration::from_secs(4);

/// What an agent must assume that one before it has vouched for; of a policy before the last one, too, while that is
/// not known to be older than a view.
pub(super) fn remembered(env: &Env, memory: &Memory) -> Instant {
    let lasts = if memory.was_strict { STRICT_VIEW } else { VOUCHED };
    env.clock.now() + lengthened(lasts)
}

impl Agent {
    /// `/vouch`.
    pub(super) fn vouch(&self, term: Term, epoch: u64) -> Result<Vouched, String> {
        // Whoever lets commits through has read the policy that says so before it looks at what was vouched for.
        let mut until = self.vouched_until.lock().expect("no holder of this lock panics");
        let now = self.env.clock.now();
        let promised = self.memory().promise;
        if promised > term {
            return Err(format!("term {promised} is promised"));
        }
        let policy = self.policy_of(term).ok_or_else(|| format!("this is not the open primary of term {term}"))?;
        if policy.epoch != epoch {
            return Err(format!("the policy in force is of epoch {}", policy.epoch));
        }
        let margin = self.env.config.lease_margin;
        let lease_left = self.lease().and_then(|l| l.deadline(margin).checked_since(now));
        let lasts = vouched_for(&policy, lease_left).ok_or_else(|| "the lease is over".to_owned())?;
        *until = (*until).max(now + lengthened(lasts));
        Ok(Vouched { lasts_ms: u64::try_from(lasts.as_millis()).unwrap_or(0) })
    }

    /// Called after each read of the records: keep the newest policy, and mind the end of a strict mode.
    pub(super) fn note_policy(&self) {
        let Some(policy) = self.records.borrow().policy.as_ref().map(|p| p.value.clone()) else { return };
        let before = self.memory().policy;
        if before.as_ref().is_some_and(|b| b.epoch >= policy.epoch) {
            return;
        }
        let strict = |p: &PolicyRecord| p.mode == Mode::Strict && p.protects();
        if before.as_ref().is_some_and(strict) && !strict(&policy) {
            let mut until = self.vouched_until.lock().expect("no holder of this lock panics");
            *until = (*until).max(self.env.clock.now() + lengthened(STRICT_VIEW));
        }
        let noted = self.remember(|m| {
            m.was_strict |= strict(&policy);
            m.policy = Some(policy);
        });
        if let Err(error) = noted {
            tracing::debug!(%error, "the policy is not remembered");
        }
    }

    /// The policy in force as far as this node knows; `None` before one was read.
    pub(super) fn policy(&self) -> Option<PolicyRecord> {
        let read = self.records.borrow().policy.as_ref().map(|p| p.value.clone());
        self.memory().in_force(read.as_ref())
    }

    /// Do commits wait for standbys by the policy in force? Without a policy: no.
    pub(super) fn protects(&self) -> bool {
        self.policy().is_some_and(|p| p.protects())
    }

    /// The policy of an open term of this node, by the records; by memory where an agent has been started since etcd was
    /// lost, or has lost all it held. Only who was told of the term by etcd asks, and a later one was promised by nobody here.
    fn policy_of(&self, term: Term) -> Option<PolicyRecord> {
        if self.serves() == Some(term) {
            return self.policy();
        }
        let unread = self.records.borrow().term.is_none();
        let memory = self.memory();
        let runs = self.state.look(|o| match &o.postgres {
            PostgresState::Primary(p) => Some(p.timeline) == term.timeline(),
            _ => false,
        });
        // Without etcd it has no lease, and can get none.
        memory.policy.filter(|p| unread && runs && memory.promise == term && !memory.leased && p.protects())
    }

    /// Wait until no proxy acts on a policy before the present one any more.
    pub(super) async fn outlast_vouched(&self) -> Result<(), CommandError> {
        let until = *self.vouched_until.lock().expect("no holder of this lock panics");
        let left = until.since(self.env.clock.now());
        if left > WAIT {
            let why = std::io::Error::other(format!("proxies may act on the mode before for {} ms", left.as_millis()));
            return Err(self.failed("relaxing", &why).into());
        }
        tokio::time::sleep(left).await;
        Ok(())
    }
}
