//! Election of the leading manager: one key under a lease. At most one manager believes that it leads, as far as
//! clocks run alike; safety does not depend on it.

use crate::fsm::action::Input;
use crate::fsm::overdue::Inaction;
use crate::manager::perform::json;
use crate::manager::records::LeaderSeen;
use crate::record::LeaderRecord;
use crate::store::{Compare, LeaseId, Range, Store, StoreError, Txn};
use cluster::keys::Keys;
use cluster::{Clock, Instant, Term};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

/// A manager on the primary's host leaves the key to others for so long, so that a lost host takes only one of both.
const DEFERENCE: Duration = Duration::from_secs(1);

/// Why a leader gives its key back by itself. It campaigns again only once nobody else has for [`DEFERENCE`].
const YIELDS: &str = "the primary is on its host";

/// Between two attempts to renew a lease that may have run out.
const RETRY: Duration = Duration::from_millis(50);

pub(super) struct Election {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Keys,
    pub(super) me: LeaderRecord,
    pub(super) ttl: Duration,
    pub(super) seen: watch::Receiver<LeaderSeen>,
    pub(super) inputs: mpsc::Sender<Input>,
    /// A failover that the leader does not begin and this manager would begin.
    pub(super) overdue: watch::Receiver<Option<Inaction>>,
    /// Changes when the lead is to be left to another manager, see [`crate::fsm::yields`].
    pub(super) yields: watch::Receiver<()>,
    /// Set to end the leadership and give the key back.
    pub(super) stop: watch::Receiver<bool>,
}

impl Election {
    /// Campaign, lead, campaign again, until stopped.
    pub(super) async fn run(mut self) {
        // The lead is taken from another once for each term: if that did not help, the reason is not who leads.
        let mut taken_for = Term(0);
        // Something has changed since that was seen: it is not tried again.
        let mut outdated = None;
        loop {
            let instead = tokio::select! {
                biased;
                _ = self.stop.wait_for(|s| *s) => return,
                () = vacancy(&mut self.seen) => None,
                inaction = overdue(&mut self.overdue, taken_for, outdated) => Some(inaction),
            };
            let sent_at = Clock.now();
            match self.campaign(instead).await {
                Ok(Some((lease, ttl, revision))) => {
                    if let Some(Inaction { term, leader, .. }) = instead {
                        taken_for = term;
                        let manager = &self.me.id;
                        warn!(
                            manager,
                            term = term.0,
                            leader,
                            "the primary is dead and its manager does nothing: lead taken"
                        );
                    }
                    self.lead(lease, ttl, revision, sent_at).await;
                }
                Ok(None) => {
                    outdated = instead.or(outdated);
                    debug!("another manager was elected");
                }
                Err(error) => debug!(%error, "campaign failed"),
            }
            // Without news of the key there is nothing to campaign for; with news, no two managers race in step.
            sleep(Duration::from_millis(50 + rand::random_range(0..100))).await;
        }
    }

    /// Take the key, when nobody has it, or `instead` of a leader who has still not begun what it should have. Whoever had
    /// it finds that out at its next change of a record at the latest: all compare the key's revision.
    async fn campaign(&self, instead: Option<Inaction>) -> Result<Option<(LeaseId, Duration, i64)>, StoreError> {
        let granted = self.store.grant(self.ttl).await?;
        let key = self.keys.manager();
        let free = match instead.and_then(|i| i.leader) {
            Some(revision) => Compare::ModRevision(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        let mut txn = Txn::new().when(free);
        if let Some(inaction) = instead {
            txn = txn.when(Compare::ModRevision(self.keys.term(), inaction.term_revision));
        }
        let txn = txn.put_leased(key, json(&self.me), granted.lease);
        match self.store.txn(txn).await {
            Ok(done) if done.succeeded => Ok(Some((granted.lease, granted.ttl, done.revision))),
            other => {
                // Won without knowing, or lost: either way the key goes with the lease.
                let _ = self.store.revoke(granted.lease).await;
                other.map(|_| None)
            }
        }
    }

    /// Lead until the lease is lost or the manager is stopped. While it could not be renewed in time nothing is led, but
    /// the lease may live on: etcd gives all of them more time when it has elected a leader of its own.
    async fn lead(&mut self, lease: LeaseId, ttl: Duration, revision: i64, sent_at: Instant) {
        let usable = |ttl: Duration| ttl.mul_f64(0.75);
        let mut until = sent_at + usable(ttl);
        let mut leads = false;
        self.yields.mark_unchanged();
        let why = loop {
            let left = until.since(Clock.now());
            match (leads, left.is_zero()) {
                (true, true) => {
                    leads = false;
                    self.resign("its lease could not be renewed in time").await;
                }
                (false, false) => {
                    info!(manager = self.me.id, revision, "this manager leads");
                    leads = true;
                    if self.inputs.send(Input::Leading { revision }).await.is_err() {
                        return;
                    }
                }
                _ => {}
            }
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|s| *s) => break "it is being stopped",
                Ok(()) = self.yields.changed(), if leads => break YIELDS,
                () = sleep(if leads { (ttl / 6).min(left) } else { RETRY }) => {}
            }
            let sent_at = Clock.now();
            let bound = if leads { until.since(sent_at) } else { ttl };
            match timeout(bound, self.store.keep_alive(lease)).await {
                Ok(Ok(ttl)) if leads || self.has_key(revision, ttl).await => until = sent_at + usable(ttl),
                Ok(Ok(_)) => break "its key is gone",
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
        if leads {
            self.resign(why).await;
        }
        if let Err(error) = self.store.revoke(lease).await {
            debug!(%error, "lease not given back; it runs out by itself");
        }
    }

    async fn resign(&self, reason: &str) {
        if reason == YIELDS {
            info!(manager = self.me.id, reason, "this manager leaves the lead to another");
        } else {
            warn!(manager = self.me.id, reason, "this manager does not lead any more");
        }
        let _ = self.inputs.send(Input::NotLeading).await;
    }

    /// Is the key still the one that was written at `revision`? Not knowing is no.
    async fn has_key(&self, revision: i64, within: Duration) -> bool {
        let key = self.keys.manager();
        match timeout(within, self.store.read(vec![Range::Key(key.clone())])).await {
            Ok(Ok(found)) => found.get(&key).is_some_and(|v| v.mod_revision == revision),
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

/// Wait until a failover of a term above `done` is overdue, in another way than `outdated`.
async fn overdue(told: &mut watch::Receiver<Option<Inaction>>, done: Term, outdated: Option<Inaction>) -> Inaction {
    let counts = |told: &Option<Inaction>| told.is_some_and(|i| i.term > done && outdated != Some(i));
    match told.wait_for(counts).await.map(|told| *told) {
        Ok(Some(inaction)) => inaction,
        Ok(None) | Err(_) => std::future::pending().await,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::{Fault, MemoryStore};

    const LONG: Duration = Duration::from_secs(20);

    struct Bench {
        store: MemoryStore,
        keys: Keys,
        seen: watch::Sender<LeaderSeen>,
        overdue: watch::Sender<Option<Inaction>>,
        yields: watch::Sender<()>,
        stop: watch::Sender<bool>,
        inputs: mpsc::Receiver<Input>,
    }

    fn leader(id: &str) -> LeaderRecord {
        LeaderRecord { id: id.into(), host: "h".into(), admin: String::new() }
    }

    /// A manager m1 on a connection of its own, while m0 leads in term 7.
    async fn bench() -> (Bench, Election, MemoryStore, Inaction) {
        let (store, keys) = (MemoryStore::new(), Keys::new("/t", "t"));
        let term = store.txn(Txn::new().put(keys.term(), "7")).await.unwrap().revision;
        let lead = store.txn(Txn::new().put(keys.manager(), json(&leader("m0")))).await.unwrap().revision;
        let link = store.client();
        let led = LeaderSeen { leader: Some(leader("m0")), revision: lead, read: true, ..LeaderSeen::default() };
        let ((seen, s), (overdue, o), (stop, st)) = (watch::channel(led), watch::channel(None), watch::channel(false));
        let ((yields, y), (sender, inputs)) = (watch::channel(()), mpsc::channel(8));
        let election = Election {
            store: Arc::new(link.clone()),
            keys: keys.clone(),
            me: leader("m1"),
            ttl: Duration::from_secs(2),
            seen: s,
            inputs: sender,
            overdue: o,
            yields: y,
            stop: st,
        };
        let inaction = Inaction { term: Term(7), term_revision: term, leader: Some(lead) };
        (Bench { store, keys, seen, overdue, yields, stop, inputs }, election, link, inaction)
    }

    #[tokio::test]
    async fn the_lead_is_taken_only_from_who_was_seen_to_do_nothing() {
        let (bench, election, _, inaction) = bench().await;
        // The leader has begun the next term meanwhile, or has lost its place to another manager.
        let begun = Inaction { term_revision: inaction.term_revision - 1, ..inaction };
        let replaced = Inaction { leader: inaction.leader.map(|r| r - 1), ..inaction };
        for outdated in [begun, replaced, Inaction { leader: None, ..inaction }] {
            assert_eq!(election.campaign(Some(outdated)).await, Ok(None), "{outdated:?}");
        }
        assert!(election.campaign(None).await.unwrap().is_none());
        let before = bench.store.get(&bench.keys.manager()).await.unwrap().unwrap();
        assert_eq!(Some(before.mod_revision), inaction.leader);
        assert!(election.campaign(Some(inaction)).await.unwrap().is_some());
        // And not again.
        assert_eq!(election.campaign(Some(inaction)).await, Ok(None));
    }

    #[tokio::test]
    async fn a_campaign_that_etcd_did_not_answer_is_repeated() {
        for fault in [Fault::Unavailable, Fault::NotDoneAndUnknown] {
            let (mut bench, election, link, inaction) = bench().await;
            link.fail_next([fault]);
            let running = tokio::spawn(election.run());
            bench.overdue.send_replace(Some(inaction));
            let led = timeout(LONG, bench.inputs.recv()).await.expect("the lead to be taken").unwrap();
            assert!(matches!(led, Input::Leading { revision } if Some(revision) > inaction.leader), "{led:?}");
            bench.stop.send_replace(true);
            timeout(LONG, running).await.expect("the lead to be given back").unwrap();
            assert!(bench.store.get(&bench.keys.manager()).await.unwrap().is_none());
            drop(bench.seen);
        }
    }

    #[tokio::test]
    async fn a_lead_that_is_left_is_free_for_others_and_taken_again_where_there_are_none() {
        let (mut bench, election, _, _) = bench().await;
        bench.store.txn(Txn::new().delete(bench.keys.manager())).await.unwrap();
        // What was said before it leads is not heard later.
        bench.yields.send_replace(());
        let free = LeaderSeen { read: true, beside_primary: true, ..LeaderSeen::default() };
        bench.seen.send_replace(free);
        let running = tokio::spawn(election.run());
        let mut next = async || timeout(LONG, bench.inputs.recv()).await.expect("news of the lead").unwrap();
        let Input::Leading { revision: first } = next().await else { panic!("nobody else leads") };
        bench.yields.send_replace(());
        assert!(matches!(next().await, Input::NotLeading));
        // The key was free, or it could not be put anew.
        let again = next().await;
        assert!(matches!(again, Input::Leading { revision } if revision > first), "{again:?}");
        bench.stop.send_replace(true);
        timeout(LONG, running).await.expect("the lead to be given back").unwrap();
        assert!(bench.store.get(&bench.keys.manager()).await.unwrap().is_none());
    }
}
