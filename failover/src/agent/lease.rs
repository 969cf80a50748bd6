//! The primary's lease in etcd: taken when its term opens (T3, see `opening`), renewed (T4), given back when PostgreSQL is stopped.
//!
//! While commits wait for a quorum (strict mode) the quorum fences and an expired lease stops nothing. Otherwise the
//! lease is the fence: before its end acknowledgements stop, at its end PostgreSQL is stopped. Renewals count from the
//! instant they were sent, on the boot-time clock.
//!
//! Acknowledgements stop by a list of standbys that nobody satisfies, under which commits wait by default. What is begun
//! later waits; a command under way, and a session that has asked for less, do not, so the sessions of clients are ended
//! as well, again and again.

use super::env::Env;
use super::postgres::{self, ServerError, Stop};
use super::sql::Sql;
use super::take_up::END_ALL;
use super::{Agent, wall_millis};
use crate::api::{Failed, PostgresState};
use crate::fsm::lease::{Fence, fence_at, may_give_back, renewal_bound};
use crate::fsm::sync_set::Waits;
use crate::record::{Mode, Phase, PrimaryRecord};
use crate::store::{Compare, LeaseId, StoreError, Txn};
use cluster::lease::Lease;
use cluster::sync_names::SyncNames;
use cluster::{Instant, Term};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A lease that this agent holds as the primary's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) id: LeaseId,
    pub(super) lease: Lease,
}

/// The fence by the lease, as it stands.
#[derive(Default)]
struct Guard {
    /// Since when there has been no lease.
    missing_since: Option<Instant>,
    /// What commits waited for before the fence.
    fenced_from: Option<Waits>,
    /// What commits wait for is being changed.
    turning: Option<oneshot::Receiver<Turned>>,
    /// Sessions are being ended.
    ending: Option<JoinHandle<()>>,
}

/// What commits waited for before the fence, `None` once it is lifted; and what went wrong.
type Turned = (Option<Waits>, Result<(), String>);

/// Ending sessions may take so long; it is begun anew after that.
const END_WITHIN: Duration = Duration::from_millis(500);

/// End the sessions of clients: which of them have asked to wait for less no server tells.
async fn end_sessions(env: Arc<Env>) {
    let ended = async {
        let sql = Sql::local(&env, "postgres", END_WITHIN).await?;
        sql.value::<u64>("ending sessions", END_ALL, END_WITHIN).await
    };
    match ended.await {
        Ok(0) => {}
        Ok(sessions) => {
            tracing::warn!(node = %env.config.node, sessions, "sessions ended: their commits might not wait")
        }
        Err(error) => tracing::debug!(node = %env.config.node, %error, "sessions not ended"),
    }
}

impl Agent {
    pub(super) fn json<T: serde::Serialize>(&self, value: &T) -> Result<Vec<u8>, Failed> {
        serde_json::to_vec(value).map_err(|e| self.failed("writing a record", &e))
    }

    pub(super) fn hold(&self, held: Option<Held>) {
        *self.held.lock().expect("no holder of this lock panics") = held;
        let until = held.map(|h| h.lease.deadline(self.env.config.lease_margin));
        self.state.change(|o| o.lease_until = until);
    }

    /// Is the lease held, and not about to end?
    pub(super) fn holds_lease(&self) -> bool {
        let (config, now) = (&self.env.config, self.env.clock.now());
        let held = self.held();
        let fence = fence_at(held.as_ref().map(|h| &h.lease), None, config.lease_margin, config.lease_ttl, now);
        fence == Fence::Free && !self.lacks_watchdog()
    }

    /// The end of the lease by which this node may acknowledge, and the time until which it is renewed in any case.
    pub(super) fn lease(&self) -> Option<Lease> {
        self.held().map(|h| h.lease)
    }

    /// The other agents have signed for `ttl` from `sent` on: as good as a renewal.
    pub(super) fn lease_signed(&self, term: Term, sent: Instant, ttl: Duration) {
        let mut held = self.held.lock().expect("no holder of this lock panics");
        let Some(h) = held.as_mut().filter(|h| h.lease.term == term && h.lease.sent_at < sent) else { return };
        let signed = Lease { term, sent_at: sent, ttl };
        // They may sign for less than what is left.
        if signed.deadline(Duration::ZERO) <= h.lease.deadline(Duration::ZERO) {
            return;
        }
        h.lease = signed;
        let until = h.lease.deadline(self.env.config.lease_margin);
        drop(held);
        self.state.change(|o| o.lease_until = Some(until));
    }

    pub(super) fn held(&self) -> Option<Held> {
        *self.held.lock().expect("no holder of this lock panics")
    }

    /// Fence by the lease where it is the only fence, and give it back once PostgreSQL is stopped. Ends never.
    ///
    /// Nothing here waits for etcd or a disk while this node serves, so that no deadline passes unseen.
    pub(super) async fn keep_lease(self: &Arc<Self>) {
        let mut guard = Guard::default();
        let mut left_fenced = false;
        let mut records = self.records.subscribe();
        let mut state = self.state.subscribe();
        // Far below the margin's last third, and below the time in which a watchdog's firing can be forestalled.
        let tick = (self.env.config.lease_margin / 10).min(self.env.config.lease_renew);
        loop {
            *self.fence_kept_at.lock().expect("no holder of this lock panics") = self.env.clock.now();
            self.take_turned(&mut guard);
            let serves = self.serves().is_some() || self.is_unguarded();
            // A fence that an agent left when it was killed: lifted like one of ours, or commits would wait for ever.
            if let Ok(mut conf) = self.conf.try_lock() {
                left_fenced |= std::mem::take(&mut conf.left_fenced);
            }
            if serves {
                if std::mem::take(&mut left_fenced) {
                    guard.fenced_from = Some(Waits::FENCED);
                }
                self.enforce(&mut guard).await;
            } else {
                left_fenced |= guard.fenced_from.take().is_some();
                guard.missing_since = None;
                if self.watchdog_is_about_to_fire() {
                    // Superseded, and still not stopped: that must not cost the host.
                    if let Err(why) = self.stop_at_once("a newer term, and the watchdog is about to fire").await {
                        self.trouble(&format!("fencing failed: {why}"));
                    }
                }
                if self.is_stopped() {
                    // Whoever starts or promotes it sets the names anew.
                    left_fenced = false;
                    self.give_back_lease().await;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(if serves || self.has_armed_watchdog() { tick } else { self.env.config.lease_renew }) => {}
                _ = records.changed() => {}
                _ = state.changed() => {}
            }
        }
    }

    /// Take and renew the lease while this node serves. Ends never.
    pub(super) async fn renew_lease(&self) {
        let mut records = self.records.subscribe();
        let mut state = self.state.subscribe();
        loop {
            let began = tokio::time::Instant::now();
            let serves = self.serves();
            if let Some(term) = serves.filter(|_| !self.lacks_watchdog() && self.is_fence_kept()) {
                // An attempt that etcd does not answer must not use up the time of the next ones.
                let (config, now) = (&self.env.config, self.env.clock.now());
                let left = self.lease().and_then(|l| l.deadline(config.lease_margin).checked_since(now));
                let bound = renewal_bound(left, config.lease_ttl, config.lease_renew);
                if tokio::time::timeout(bound, self.renew(term)).await.is_err() {
                    self.metrics.store_errors.inc();
                    tracing::debug!(node = %self.env.config.node, term = term.0, ?bound, "etcd was too slow to renew the lease");
                }
            }
            let next = began + self.env.config.lease_renew;
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                // Only the beginning of a term is urgent.
                _ = records.changed(), if serves.is_none() => {}
                _ = state.changed(), if serves.is_none() => {}
            }
        }
    }

    /// Would this node be fenced if its lease ended? Not while whoever does it stands still, as all that shares a runtime with
    /// a disk that hangs may: then the lease is left to end, so that others may go on.
    fn is_fence_kept(&self) -> bool {
        let kept_at = *self.fence_kept_at.lock().expect("no holder of this lock panics");
        self.env.clock.now().since(kept_at) < self.env.config.lease_ttl / 2
    }

    /// A primary adopted by an agent that has not reached etcd yet, or found it empty: where no quorum fences it may have
    /// been replaced already.
    pub(super) fn is_unguarded(&self) -> bool {
        let memory = self.memory();
        // Whatever mode it was created in.
        let unprotected = memory.leased || memory.policy.is_some_and(|p| !p.protects());
        let (unread, termless) = {
            let records = self.records.borrow();
            (records.read_at.is_none(), records.term.is_none())
        };
        // While a cluster is being created there is no term either, and nothing is remembered yet.
        ((self.env.cluster.mode == Mode::Async && unread) || unprotected)
            && termless
            && self.state.look(|o| matches!(o.postgres, PostgresState::Primary(_)))
    }

    /// The term that this node serves as its open primary.
    pub(super) fn serves(&self) -> Option<Term> {
        let timeline = self.state.look(|o| match &o.postgres {
            PostgresState::Primary(p) => Some(p.timeline),
            // A primary that hangs still holds its lease; its managers decide what follows.
            PostgresState::Hung { .. } => o.last_timeline,
            _ => None,
        })?;
        let records = self.records.borrow();
        let term = &records.term.as_ref()?.value;
        let mine = term.node.as_ref() == Some(&self.env.config.node) && term.term.timeline() == Some(timeline);
        (mine && matches!(term.phase, Phase::Active | Phase::Draining)).then_some(term.term)
    }

    fn is_stopped(&self) -> bool {
        self.state.look(|o| matches!(o.postgres, PostgresState::Stopped { .. } | PostgresState::Absent))
            && postgres::is_dead(&self.env)
    }

    /// Fence by the lease, if the policy makes it the fence.
    async fn enforce(self: &Arc<Self>, guard: &mut Guard) {
        let now = self.env.clock.now();
        let held = self.held();
        guard.missing_since = if held.is_some() { None } else { guard.missing_since.or(Some(now)) };
        if self.protects() {
            // Fenced before commits were protected again: the quorum fences from here on.
            self.turn(guard, false);
            if self.memory().leased
                && let Err(error) = self.remember(|m| m.leased = false)
            {
                tracing::debug!(%error, "protection not remembered");
            }
            return;
        }
        let (margin, ttl) = (self.env.config.lease_margin, self.env.config.lease_ttl);
        let by_lease = fence_at(held.as_ref().map(|h| &h.lease), guard.missing_since, margin, ttl, now);
        let fence = if self.watchdog_is_about_to_fire() { Fence::Hard } else { by_lease };
        match fence {
            Fence::Free => self.turn(guard, false),
            Fence::Soft => {
                self.turn(guard, true);
                // An agent that has just started mostly has its lease in a moment: nobody is to lose a session for that.
                let starting = guard.missing_since.is_some_and(|since| now.since(since) < margin);
                if !starting && guard.ending.as_ref().is_none_or(JoinHandle::is_finished) {
                    guard.ending = Some(tokio::spawn(end_sessions(Arc::clone(&self.env))));
                }
            }
            Fence::Hard => {
                if let Err(why) = self.stop_at_once("lease ended").await {
                    self.trouble(&format!("fencing failed: {why}"));
                }
            }
        }
    }

    /// Begin to put up the soft fence or to lift it, unless one of them is under way. Both write a file, and a disk that hangs
    /// must not hold up the hard fence, which needs none: so on a thread that nobody waits for.
    fn turn(self: &Arc<Self>, guard: &mut Guard, fence: bool) {
        let up = self.conf.try_lock().is_ok_and(|c| c.waits.names == SyncNames::Fenced);
        let done = if fence { up && guard.fenced_from.is_some() } else { guard.fenced_from.is_none() };
        if guard.turning.is_some() || done {
            return;
        }
        let (agent, from) = (Arc::clone(self), guard.fenced_from.clone());
        let (runtime, (tell, told)) = (tokio::runtime::Handle::current(), oneshot::channel());
        let work = async move { if fence { agent.fence_softly(from).await } else { agent.lift(from).await } };
        let run = move || {
            // Nobody listens any more when the agent has ended.
            let _ = tell.send(runtime.block_on(work));
        };
        match std::thread::Builder::new().name("fence".to_owned()).spawn(run) {
            Ok(_) => guard.turning = Some(told),
            Err(error) => self.trouble(&format!("no thread to fence: {error}")),
        }
    }

    fn take_turned(&self, guard: &mut Guard) {
        let Some(turning) = &mut guard.turning else { return };
        match turning.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return,
            Ok((fenced_from, done)) => {
                guard.fenced_from = fenced_from;
                if let Err(why) = done {
                    self.trouble(&why);
                }
            }
            // It panicked: whether the fence is up is not known.
            Err(oneshot::error::TryRecvError::Closed) => guard.fenced_from = Some(Waits::FENCED),
        }
        guard.turning = None;
    }

    async fn stop_at_once(&self, why: &str) -> Result<(), String> {
        tracing::error!(node = %self.env.config.node, why, "stopping postgres at once");
        let stopped = postgres::stop(&self.env, Stop::Immediate).await;
        if !stopped.as_ref().is_err_and(ServerError::may_run) {
            self.disarm_watchdog().await;
        }
        self.look_again(Duration::from_millis(500)).await;
        stopped.map(drop).map_err(|e| e.to_string())
    }

    /// Ends when PostgreSQL, which is being stopped, must be gone: its lease is the fence, and ends.
    pub(super) async fn outlasts_lease(&self) {
        let (margin, ttl) = (self.env.config.lease_margin, self.env.config.lease_ttl);
        let since = self.env.clock.now();
        loop {
            tokio::time::sleep(margin / 10).await;
            if self.protects() || self.serves().is_none() && !self.is_unguarded() {
                continue;
            }
            let held = self.held();
            let fence = fence_at(held.as_ref().map(|h| &h.lease), Some(since), margin, ttl, self.env.clock.now());
            if fence == Fence::Hard || self.watchdog_is_about_to_fire() {
                return;
            }
        }
    }

    async fn fence_softly(&self, fenced_from: Option<Waits>) -> Turned {
        let waits = self.conf.lock().await.waits.clone();
        if fenced_from.is_none() {
            tracing::warn!(node = %self.env.config.node, "lease about to end: commits wait");
        }
        // Armed since it was put up: that is what to come back to.
        let from = fenced_from.filter(|_| waits.names == SyncNames::Fenced).or(Some(waits));
        let done = self.set_waits(&Waits::FENCED).await;
        (from, done.map_err(|error| format!("fencing failed: {error}")))
    }

    /// Acknowledge again, as before the fence; as the policy says when what was before is not known.
    async fn lift(&self, fenced_from: Option<Waits>) -> Turned {
        let Some(before) = fenced_from else { return (None, Ok(())) };
        // A proof that commits wait is under way, with the same list: it ends soon, and says what holds then.
        let Ok(_arming) = self.arming.try_lock() else { return (Some(before), Ok(())) };
        if self.conf.lock().await.waits.names != SyncNames::Fenced {
            return (None, Ok(()));
        }
        let waits = if before.names == SyncNames::Fenced { self.waits_by_policy() } else { before.clone() };
        match self.go_back(&waits).await {
            Ok(()) => (None, Ok(())),
            Err(error) => (Some(before), Err(format!("the fence could not be lifted: {error}"))),
        }
    }

    /// T4: a renewal alone proves nothing, the term is read as well.
    async fn renew(&self, term: Term) {
        let sent = self.env.clock.now();
        let result = match self.held().filter(|h| h.lease.term == term) {
            Some(held) => self.extend(held, sent).await,
            None => self.take(term, sent).await,
        };
        match result {
            Ok(()) => {}
            Err(StoreError::LeaseLost { lease }) => {
                tracing::warn!(node = %self.env.config.node, term = term.0, %lease, "lease lost");
                // Until it is taken again the old deadline counts, which only comes closer.
                if let Err(error) = self.take(term, sent).await {
                    tracing::warn!(node = %self.env.config.node, term = term.0, %error, "lease not taken again");
                }
            }
            Err(error) => {
                self.metrics.store_errors.inc();
                tracing::debug!(node = %self.env.config.node, term = term.0, %error, "lease not renewed");
            }
        }
    }

    async fn extend(&self, held: Held, sent: Instant) -> Result<(), StoreError> {
        let ttl = self.leases.keep_alive(held.id).await?;
        let read = self.read_records_apart().await?;
        let node = &self.env.config.node;
        let mine = |p: &PrimaryRecord| p.term == held.lease.term && p.node == *node && p.holder == self.env.holder;
        let open = read.term.as_ref().is_some_and(|t| {
            let open = matches!(t.value.phase, Phase::Active | Phase::Draining);
            open && t.value.term == held.lease.term && t.value.node.as_ref() == Some(node)
        });
        if !open || self.serves() != Some(held.lease.term) {
            return Ok(());
        }
        if !read.primary.is_some_and(|p| mine(&p.value)) {
            // Its key was deleted or taken: the lease lives and guards nothing.
            tracing::warn!(%node, term = held.lease.term.0, "the lease's key is gone");
            return self.take(held.lease.term, sent).await;
        }
        // Signatures that were gathered meanwhile may reach further.
        let signed = self.held().filter(|h| h.id == held.id && h.lease.sent_at > sent);
        let renewed = Held { lease: Lease { sent_at: sent, ttl, ..held.lease }, ..held };
        self.hold(Some(signed.unwrap_or(renewed)));
        Ok(())
    }

    /// Take the lease of a term that is ours and active: after a restart of the agent, or after etcd lost it.
    async fn take(&self, term: Term, sent: Instant) -> Result<(), StoreError> {
        let revision = {
            let records = self.records.borrow();
            records.term.as_ref().filter(|t| t.value.term == term).map(|t| t.revision)
        };
        let (Some(revision), Ok(value)) = (revision, self.primary_record(term)) else { return Ok(()) };
        let granted = self.leases.grant(self.env.config.lease_ttl).await?;
        let txn = Txn::new().when(Compare::ModRevision(self.env.keys.term(), revision)).put_leased(
            self.env.keys.primary(),
            value,
            granted.lease,
        );
        if self.leases.txn(txn).await?.succeeded {
            // Where it does not count it is left to expire, after PostgreSQL was stopped for want of one.
            let lease = Lease { term, sent_at: sent, ttl: granted.ttl };
            if !self.lease_counts(lease).await {
                return Ok(());
            }
            tracing::info!(node = %self.env.config.node, term = term.0, "lease taken");
            self.hold(Some(Held { id: granted.lease, lease }));
        } else {
            let _ = self.leases.revoke(granted.lease).await;
            self.read_records_apart().await?;
        }
        Ok(())
    }

    /// PostgreSQL is stopped, so nothing needs to wait for the lease's end any more.
    pub(super) async fn give_back_lease(&self) {
        let record = self.records.borrow().primary.clone();
        let (env, before) = (&self.env, &self.predecessors);
        let ours = |r: &PrimaryRecord| may_give_back(r, &env.config.node, &env.holder, before);
        let Some(record) = record.filter(|r| ours(&r.value)) else {
            self.hold(None);
            return;
        };
        let key = self.env.keys.primary();
        let txn = Txn::new().when(Compare::ModRevision(key.clone(), record.revision)).delete(key);
        match self.store.txn(txn).await {
            Ok(done) => {
                tracing::info!(
                    node = %self.env.config.node, term = record.value.term.0, given_back = done.succeeded, at = wall_millis(),
                    "postgres is stopped, lease given back"
                );
                self.hold(None);
                let _ = self.read_records().await;
            }
            Err(error) => tracing::debug!(node = %self.env.config.node, %error, "lease not given back"),
        }
    }

    /// What commits wait for if this node is the primary, by the policy in force.
    pub(super) fn waits_by_policy(&self) -> Waits {
        match self.policy() {
            Some(policy) => crate::fsm::sync_set::waits(&policy, &self.env.config.node),
            None => super::presumed_waits(&self.env),
        }
    }
}
