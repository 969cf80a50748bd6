//! A proxy's registration: `proxies/<id>`, under a lease, says which term and gate all its workers have applied.
//!
//! A manager that changes the term waits for what is written here, or for the key to be gone. So the key must never be
//! gone while the proxy still acts on an old view: [`Registered::until`] bounds the view's validity.

use super::Times;
use super::topology::CLOCK_DRIFT_PER_MILLE;
use crate::record::{DoubtsRecord, ProxyRecord, TermCommits};
use crate::store::{LeaseId, Store, StoreError, Txn};
use cluster::keys::Keys;
use cluster::lease::Lease;
use cluster::topology::{BelowMode, Doubts, Gate, PerTerm, ProxyState, Topology};
use cluster::{Clock, Instant, Term};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{info, warn};

/// Least pause between two writes of the record.
const MIN_GAP: Duration = Duration::from_millis(20);
/// While the gate is open nobody waits for what is counted.
const IDLE_GAP: Duration = Duration::from_secs(5);
/// Nor for `busy`, which is for status pages, and differs whenever there are clients: each time it is written is a revision that
/// etcd keeps until it is compacted.
const BUSY_GAP: Duration = Duration::from_secs(300);
/// What became of writes in doubt is told this soon: a person may be looking at the report of a failover.
const DOUBTS_GAP: Duration = Duration::from_millis(500);
/// Between two phases of one term, which nobody waits for either.
const PHASE_GAP: Duration = Duration::from_millis(250);
/// Transactions that run when the gate is drained are mostly over in a moment: so long that they still run is not written.
const DRAIN_PATIENCE: Duration = Duration::from_millis(40);
/// Pause after a failed attempt to get a lease or write the record.
const FAILED_PAUSE: Duration = Duration::from_millis(200);

/// Until when a manager is sure to wait for this proxy.
#[derive(Debug, Default)]
pub(super) struct Registered {
    until: Mutex<Option<Instant>>,
    newly: Notify,
    restored: Notify,
}

impl Registered {
    /// The deadline of the registration's lease; `None` while not registered.
    pub(super) fn until(&self) -> Option<Instant> {
        *self.until.lock().expect("no code panics while it holds this lock")
    }

    /// Notified when the registration comes into being.
    pub(super) fn newly(&self) -> &Notify {
        &self.newly
    }

    /// etcd tells of something older than this proxy knows: it was restored, and the record may be an older one, too.
    pub(super) fn restored(&self) {
        self.restored.notify_one();
    }

    fn set(&self, until: Option<Instant>) {
        let before = {
            let mut held = self.until.lock().expect("no code panics while it holds this lock");
            std::mem::replace(&mut *held, until)
        };
        if before.is_none() && until.is_some() {
            self.newly.notify_one();
        }
    }
}

/// A running registration. Dropped, it leaves the key to expire with its lease.
#[derive(Debug)]
pub struct Registration {
    end: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
    abort: AbortHandle,
}

impl Registration {
    /// Remove the key: this proxy acts on no view any more. Bounded by the store's deadlines.
    pub async fn end(mut self) {
        drop(self.end.take());
        if let Some(task) = self.task.take() {
            // It cannot fail: it is aborted by nobody but our own Drop.
            let _ = task.await;
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

pub(super) fn start(
    store: Arc<dyn Store>,
    keys: Keys,
    id: &str,
    times: Times,
    (state, topology): (watch::Receiver<ProxyState>, watch::Receiver<Topology>),
    registered: Arc<Registered>,
) -> Registration {
    let (end, ended) = oneshot::channel();
    let key = keys.proxy(id);
    let told = (PerTerm::default(), BelowMode::default());
    let registrar = Registrar { store, keys, id: id.to_owned(), key, times, state, topology, told, registered };
    let task = tokio::spawn(registrar.run(ended));
    Registration { abort: task.abort_handle(), end: Some(end), task: Some(task) }
}

struct Registrar {
    store: Arc<dyn Store>,
    keys: Keys,
    id: String,
    key: String,
    times: Times,
    state: watch::Receiver<ProxyState>,
    topology: watch::Receiver<Topology>,
    /// What is written for good.
    told: (PerTerm<Doubts>, BelowMode),
    registered: Arc<Registered>,
}

/// Why a lease is no longer kept.
enum Over {
    Lost(StoreError),
    Ended,
}

impl Registrar {
    async fn run(mut self, mut ended: oneshot::Receiver<()>) {
        let mut failing = false;
        loop {
            let lease = tokio::select! {
                lease = self.acquire() => lease,
                _ = &mut ended => return,
            };
            let (id, over) = match lease {
                Ok((id, lease, written)) => {
                    info!(key = self.key, lease = %id, "registered with the managers");
                    failing = false;
                    (id, self.keep(id, lease, written, &mut ended).await)
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(key = self.key, %error, "cannot register with the managers");
                    }
                    tokio::time::sleep(FAILED_PAUSE).await;
                    continue;
                }
            };
            self.registered.set(None);
            match over {
                Over::Lost(error) => warn!(key = self.key, %error, "registration lost, registering again"),
                Over::Ended => {
                    self.tell_for_good().await;
                    if let Err(error) = self.store.revoke(id).await {
                        info!(key = self.key, %error, "registration is left to expire");
                    }
                    return;
                }
            }
        }
    }

    /// A new lease with the record bound to it.
    async fn acquire(&mut self) -> Result<(LeaseId, Lease, ProxyState), StoreError> {
        let sent_at = Clock.now();
        let granted = self.store.grant(self.times.lease_ttl).await?;
        let state = *self.state.borrow_and_update();
        self.write(granted.lease, state).await?;
        let lease = Lease { term: state.term, sent_at, ttl: granted.ttl };
        self.registered.set(Some(deadline(&lease)));
        Ok((granted.lease, lease, state))
    }

    /// Renew the lease and write the state's changes until one of them is impossible. Written again while etcd, restored from
    /// a backup, tells of something older: managers learn from the record that there was more.
    async fn keep(
        &mut self,
        id: LeaseId,
        mut lease: Lease,
        mut written: ProxyState,
        ended: &mut oneshot::Receiver<()>,
    ) -> Over {
        let period = lease.ttl / 6;
        let mut renew_at = lease.sent_at + period;
        let mut written_at = Clock.now();
        let (mut differs_since, mut restored, mut rewritten_at) = (None, false, None);
        loop {
            let now = Clock.now();
            let state = *self.state.borrow_and_update();
            differs_since = (written != state).then(|| differs_since.unwrap_or(now));
            let differs_for = differs_since.map_or(Duration::ZERO, |since| now.since(since));
            let write_in = write_in(&written, (now.since(written_at), differs_for), &state);
            let again_in = restored.then(|| rewrite_in(now.since(written_at), rewritten_at.map(|at| now.since(at))));
            let write_in = write_in.into_iter().chain(again_in).min();
            let wait = write_in.unwrap_or(period).min(renew_at.since(now));
            if !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait) => (),
                    // A proxy that is gone changes no more; its Registration ends or is dropped.
                    Ok(()) = self.state.changed() => (),
                    // What was told for good may be gone with it.
                    () = self.registered.restored.notified() => (restored, self.told) = (true, Default::default()),
                    _ = &mut *ended => return Over::Ended,
                }
                continue;
            }
            if renew_at <= now {
                renew_at = now + period;
                match self.store.keep_alive(id).await {
                    Ok(ttl) => {
                        lease = Lease { sent_at: now, ttl, ..lease };
                        self.registered.set(Some(deadline(&lease)));
                    }
                    Err(error @ (StoreError::LeaseLost { .. } | StoreError::Refused { .. })) => {
                        return Over::Lost(error);
                    }
                    Err(error @ (StoreError::Unavailable { .. } | StoreError::Indeterminate { .. })) => {
                        if Clock.now() >= deadline(&lease) {
                            return Over::Lost(error);
                        }
                    }
                }
            } else {
                written_at = now;
                rewritten_at = restored.then_some(now).or(rewritten_at);
                match self.write(id, state).await {
                    Ok(()) => (written, restored) = (state, false),
                    Err(error @ (StoreError::LeaseLost { .. } | StoreError::Refused { .. })) => {
                        return Over::Lost(error);
                    }
                    // Written again after the least pause.
                    Err(StoreError::Unavailable { .. } | StoreError::Indeterminate { .. }) => (),
                }
            }
        }
    }

    /// The last word of a proxy that ends: with it goes what it alone knows.
    async fn tell_for_good(&mut self) {
        let state = *self.state.borrow_and_update();
        let txn = self.with_untold(Txn::new(), &state);
        if !txn.puts.is_empty()
            && let Err(error) = self.store.txn(txn).await
        {
            warn!(key = self.key, %error, "what became of writes in doubt, or was acknowledged below the mode, is not told");
        }
    }

    /// With what is not told yet of writes in doubt, and of commits below the mode: what was acknowledged while the proxy
    /// could not tell is lost with the term, and asked for later.
    fn with_untold(&self, txn: Txn, state: &ProxyState) -> Txn {
        let terms: BTreeSet<Term> =
            state.doubts.iter().map(|(term, _)| term).chain(state.below_mode.iter().map(|(term, _)| term)).collect();
        let of = |(doubts, below_mode): &(PerTerm<Doubts>, BelowMode), term| (doubts.of(term), below_mode.of(term));
        let counted = (state.doubts, state.below_mode);
        terms.into_iter().filter(|term| of(&self.told, *term) != of(&counted, *term)).fold(txn, |txn, term| {
            let (Doubts { survived, lost, unknown }, below_mode) = of(&counted, term);
            let record = DoubtsRecord { term, proxy: self.id.clone(), survived, lost, unknown, below_mode };
            let value = serde_json::to_vec(&record).expect("a record of numbers and text is JSON");
            txn.put(self.keys.doubts_by(term, &self.id), value)
        })
    }

    async fn write(&mut self, lease: LeaseId, state: ProxyState) -> Result<(), StoreError> {
        let below_mode = state.below_mode.iter().map(|(term, commits)| TermCommits { term, commits }).collect();
        let gate = state.gate.as_str().to_owned();
        let system_id = self.topology.borrow().system_id.map(|id| id.to_string());
        let ProxyState { term, epoch, busy, .. } = state;
        let view_ms = self.times.validity.as_millis().try_into().unwrap_or(u64::MAX);
        let record = ProxyRecord { term, epoch, gate, busy, system_id, view_ms, below_mode };
        let value = serde_json::to_vec(&record).expect("a record of numbers and text is JSON");
        let txn = self.with_untold(Txn::new().put_leased(self.key.as_str(), value, lease), &state);
        self.store.txn(txn).await?;
        self.told = (state.doubts, state.below_mode);
        Ok(())
    }
}

/// Until when the key is sure to exist: early by what our clock may be slow.
fn deadline(lease: &Lease) -> Instant {
    lease.deadline(lease.ttl * CLOCK_DRIFT_PER_MILLE / 1000)
}

/// In how long `state` is to be written, given what was written, how long ago, and for how long that has been outdated.
/// `None`: nothing to write. Each write costs a commit in etcd and readings of who watches, while clients wait.
fn write_in(written: &ProxyState, (ago, differs_for): (Duration, Duration), state: &ProxyState) -> Option<Duration> {
    if written == state {
        return None;
    }
    let same_term = (written.term, written.epoch) == (state.term, state.epoch);
    let drains = |s: &ProxyState| s.gate == Gate::Draining;
    let gap = match same_term {
        true if written.gate == Gate::Open && state.gate == Gate::Open => {
            if written.doubts != state.doubts {
                DOUBTS_GAP
            } else if written.below_mode != state.below_mode {
                IDLE_GAP
            } else {
                BUSY_GAP
            }
        }
        true if !drains(written) && !drains(state) => PHASE_GAP,
        true | false => MIN_GAP,
    };
    let runs_out = drains(state) && !drains(written) && same_term && state.busy > 0;
    let patience = if runs_out { DRAIN_PATIENCE.saturating_sub(differs_for) } else { Duration::ZERO };
    Some(gap.saturating_sub(ago).max(patience))
}

/// In how long the record is to be written again that a restored etcd may hold an older one of: at once the first time, as a
/// term may begin meanwhile that this proxy ignores. `rewritten`: how long ago the last attempt was.
fn rewrite_in(ago: Duration, rewritten: Option<Duration>) -> Duration {
    let seldom = rewritten.map_or(Duration::ZERO, |ago| IDLE_GAP.saturating_sub(ago));
    MIN_GAP.saturating_sub(ago).max(seldom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::per_term::Fate;
    use cluster::topology::Closed;

    #[test]
    fn only_what_a_manager_waits_for_is_written_promptly() {
        let s = |term, gate, busy| ProxyState {
            term: Term(term),
            epoch: 1,
            gate,
            busy,
            below_mode: BelowMode::default(),
            doubts: PerTerm::default(),
        };
        let mut resolved = s(3, Gate::Open, 9);
        resolved.doubts.add(Term(2), Fate::Lost.into());
        let mut lowered = s(3, Gate::Open, 8);
        lowered.below_mode.add(Term(3), 1);
        let (open, drained) = (s(3, Gate::Open, 9), s(3, Gate::Draining, 0));
        let closed = |why, busy| s(3, Gate::Closed(why), busy);
        let ms = Duration::from_millis;
        for (written, ago, differs_for, state, want) in [
            (open, 60_000, 0, open, None),
            (open, 6000, 6000, s(3, Gate::Open, 8), Some(ms(294_000))),
            (open, 300_000, 300_000, s(3, Gate::Open, 8), Some(ms(0))),
            (open, 1000, 0, lowered, Some(ms(4000))),
            (open, 6000, 6000, lowered, Some(ms(0))),
            (open, 1000, 0, drained, Some(ms(0))),
            (open, 1000, 0, s(3, Gate::Draining, 9), Some(ms(40))),
            (open, 1000, 40, s(3, Gate::Draining, 9), Some(ms(0))),
            (open, 5, 0, s(4, Gate::Open, 9), Some(ms(15))),
            (open, 1000, 0, s(4, Gate::Closed(Closed::Recruiting), 9), Some(ms(0))),
            (s(3, Gate::Draining, 9), 30, 0, drained, Some(ms(0))),
            (open, 100, 0, resolved, Some(ms(400))),
            // The next drain must not find what was written of this one.
            (drained, 30, 0, s(3, Gate::Open, 0), Some(ms(0))),
            (closed(Closed::Promoting, 0), 50, 50, closed(Closed::Opening, 0), Some(ms(200))),
            (closed(Closed::Opening, 0), 300, 0, s(3, Gate::Open, 5), Some(ms(0))),
        ] {
            let seen = write_in(&written, (ms(ago), ms(differs_for)), &state);
            assert_eq!(seen, want, "{written:?} -> {state:?}");
        }
    }

    #[test]
    fn what_a_backup_may_have_set_back_is_written_at_once_and_then_seldom() {
        let ms = Duration::from_millis;
        for (ago, rewritten, want) in [
            (5, None, 15),
            (60_000, None, 0),
            (1000, Some(1000), 4000),
            // Written since for another reason.
            (1000, Some(4500), 500),
            (5, Some(60_000), 15),
        ] {
            assert_eq!(rewrite_in(ms(ago), rewritten.map(ms)), ms(want), "{ago} {rewritten:?}");
        }
    }
}
