//! Election of the leading manager: one key under a lease. At most one manager believes that it leads, as far as
//! clocks run alike; safety does not depend on it.

use crate::fsm::action::Input;
use crate::manager::perform::json;
use crate::manager::records::LeaderSeen;
use crate::record::LeaderRecord;
use crate::store::{Compare, LeaseId, Store, StoreError, Txn};
use cluster::keys::Keys;
use cluster::{Clock, Instant};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

/// A manager on the primary's host leaves the key to others for so long, so that a lost host takes only one of both.
const DEFERENCE: Duration = Duration::from_secs(1);

pub(super) struct Election {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Keys,
    pub(super) me: LeaderRecord,
    pub(super) ttl: Duration,
    pub(super) seen: watch::Receiver<LeaderSeen>,
    pub(super) inputs: mpsc::Sender<Input>,
    /// Set to end the leadership and give the key back.
    pub(super) stop: watch::Receiver<bool>,
}

impl Election {
    /// Campaign, lead, campaign again, until stopped.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|s| *s) => return,
                () = vacancy(&mut self.seen) => {}
            }
            let sent_at = Clock.now();
            match self.campaign().await {
                Ok(Some((lease, ttl, revision))) => self.lead(lease, ttl, revision, sent_at).await,
                Ok(None) => debug!("another manager was elected"),
                Err(error) => debug!(%error, "campaign failed"),
            }
            // Without news of the key there is nothing to campaign for; with news, no two managers race in step.
            sleep(Duration::from_millis(50 + rand::random_range(0..100))).await;
        }
    }

    async fn campaign(&self) -> Result<Option<(LeaseId, Duration, i64)>, StoreError> {
        let granted = self.store.grant(self.ttl).await?;
        let key = self.keys.manager();
        let txn = Txn::new().when(Compare::Absent(key.clone())).put_leased(key, json(&self.me), granted.lease);
        match self.store.txn(txn).await {
            Ok(done) if done.succeeded => Ok(Some((granted.lease, granted.ttl, done.revision))),
            other => {
                // Won without knowing, or lost: either way the key goes with the lease.
                let _ = self.store.revoke(granted.lease).await;
                other.map(|_| None)
            }
        }
    }

    /// Lead until the lease is lost, cannot be renewed in time, or the manager is stopped.
    async fn lead(&mut self, lease: LeaseId, ttl: Duration, revision: i64, sent_at: Instant) {
        info!(manager = self.me.id, revision, "this manager leads");
        let usable = |ttl: Duration| ttl.mul_f64(0.75);
        let mut until = sent_at + usable(ttl);
        if self.inputs.send(Input::Leading { revision }).await.is_err() {
            return;
        }
        let why = loop {
            let left = until.since(Clock.now());
            if left.is_zero() {
                break "its lease could not be renewed in time";
            }
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|s| *s) => break "it is being stopped",
                () = sleep((ttl / 6).min(left)) => {}
            }
            let sent_at = Clock.now();
            match timeout(until.since(sent_at), self.store.keep_alive(lease)).await {
                Ok(Ok(ttl)) => until = sent_at + usable(ttl),
                Ok(Err(StoreError::LeaseLost { .. })) => break "its lease is lost",
                Ok(Err(error)) => debug!(%error, "lease not renewed, trying again"),
                Err(_) => {} // the loop's head sees that time is up
            }
            let seen = self.seen.borrow().clone();
            // An answer to a renewal does not prove that the key is still there.
            if seen.leader.as_ref().is_some_and(|l| l.id != self.me.id) && seen.revision > revision {
                break "another manager leads";
            }
        };
        warn!(manager = self.me.id, reason = why, "this manager does not lead any more");
        let _ = self.inputs.send(Input::NotLeading).await;
        if let Err(error) = self.store.revoke(lease).await {
            debug!(%error, "lease not given back; it runs out by itself");
        }
    }
}

/// Wait until nobody leads.
async fn vacancy(seen: &mut watch::Receiver<LeaderSeen>) {
    loop {
        let free = |s: &LeaderSeen| s.read && s.leader.is_none();
        let Ok(found) = seen.wait_for(free).await.map(|s| s.clone()) else {
            return std::future::pending().await;
        };
        if !found.beside_primary {
            return;
        }
        if timeout(DEFERENCE, seen.wait_for(|s| s.leader.is_some())).await.is_err() {
            return;
        }
    }
}
