//! T3: a term is opened by whoever was promoted in it, with its lease.

use super::commands::CommandError;
use super::lease::Held;
use super::records::Records;
use super::{Agent, arm};
use crate::api::{Failed, Open, Opened};
use crate::fsm::sync_set::Waits;
use crate::record::{Phase, PolicyRecord, PrimaryRecord, TermRecord};
use crate::store::{Compare, Granted, LeaseId, StoreError, Txn};
use cluster::lease::Lease;
use cluster::{Instant, Term};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// The lease of a term that this node is promoted in, asked for before the order to open it comes. Unused it runs out.
pub(super) struct Ahead {
    term: Term,
    sent: Instant,
    granted: JoinHandle<Result<Granted, StoreError>>,
}

/// What an order to open finds.
enum ToBeOpened {
    /// It was carried out before.
    Opened(Opened),
    /// The term and the records to go by.
    Now(Box<(TermRecord, Records)>),
}

impl Agent {
    /// `/agent/open`.
    pub(super) async fn open(&self, order: &Open) -> Result<Opened, CommandError> {
        self.promise(order.term)?;
        let failed = |e: &dyn std::error::Error| -> CommandError { self.failed("opening", e).into() };
        let lease_of = |sent_at, granted: &Granted| Lease { term: order.term, sent_at, ttl: granted.ttl };
        // The lease is asked for meanwhile, as clients wait, if it was not before; its deadline counts from before the grant.
        let ((sent, granted), found) = tokio::join!(self.grant(order.term), self.to_be_opened(order));
        let (term, records) = match found {
            Ok(ToBeOpened::Now(found)) => *found,
            Ok(ToBeOpened::Opened(opened)) => {
                self.give_up_lease(granted.ok());
                self.wake.notify_one();
                return Ok(opened);
            }
            Err(error) => {
                self.give_up_lease(granted.ok());
                return Err(error);
            }
        };
        let (sent, granted) = match granted {
            // What was to be seen to first took long, or the grant did: half of what is left must do for T3.
            Ok(granted)
                if lease_of(sent, &granted).is_half_over(self.env.clock.now(), self.env.config.lease_margin) =>
            {
                self.give_up_lease(Some(granted));
                let sent = self.env.clock.now();
                (sent, self.store.grant(self.env.config.lease_ttl).await)
            }
            granted => (sent, granted),
        };
        let granted = granted.map_err(|e| failed(&e))?;
        let txn = self.opening(order, &term, &records, granted.lease)?;
        let before = self.held().filter(|h| h.lease.term == order.term);
        // Held from before the term is seen to be active.
        self.hold(Some(Held { id: granted.lease, lease: lease_of(sent, &granted) }));
        match self.store.txn(txn).await {
            Ok(done) if done.succeeded => {
                tracing::info!(node = %self.env.config.node, term = order.term.0, "term opened");
                self.wake.notify_one();
                Ok(Opened { revision: done.revision })
            }
            Ok(_) => {
                // Another order may have opened it meanwhile.
                self.hold(before);
                self.give_up_lease(Some(granted));
                Err(self.wrong_state("the chosen node of an unchanged term record"))
            }
            Err(error) => {
                // It may have happened: the lease's task reads what is, a repeated command finds the term active.
                self.wake.notify_one();
                Err(failed(&error))
            }
        }
    }

    /// Clients wait for the term to be opened: its lease is there when it is to be.
    pub(super) fn ask_for_lease(&self, term: Term) {
        let (store, ttl) = (Arc::clone(&self.store), self.env.config.lease_ttl);
        let sent = self.env.clock.now();
        let granted = tokio::spawn(async move { store.grant(ttl).await });
        *self.ahead.lock().expect("no holder of this lock panics") = Some(Ahead { term, sent, granted });
    }

    /// The lease that was asked for ahead, or else a new one; and when it was.
    async fn grant(&self, term: Term) -> (Instant, Result<Granted, StoreError>) {
        let ahead = self.ahead.lock().expect("no holder of this lock panics").take();
        if let Some(ahead) = ahead.filter(|a| a.term == term)
            && let Ok(Ok(granted)) = ahead.granted.await
        {
            return (ahead.sent, Ok(granted));
        }
        let sent = self.env.clock.now();
        (sent, self.store.grant(self.env.config.lease_ttl).await)
    }

    /// Nothing is bound to it. Nobody waits for that: it expires by itself when this fails.
    fn give_up_lease(&self, granted: Option<Granted>) {
        if let Some(granted) = granted {
            let store = Arc::clone(&self.store);
            tokio::spawn(async move { store.revoke(granted.lease).await });
        }
    }

    /// The records by which the term is to be opened, once nothing else stands in the way.
    async fn to_be_opened(&self, order: &Open) -> Result<ToBeOpened, CommandError> {
        let failed = |e: &dyn std::error::Error| -> CommandError { self.failed("opening", e).into() };
        if !self.has_read_what_opens(order) || self.must_be_primary(order.term).is_err() {
            let look = self.look_again(self.env.config.probe_timeout);
            let ((), read) = tokio::join!(look, self.read_records());
            self.must_be_primary(order.term)?;
            read.map_err(|e| failed(&e))?;
        }
        if order.suspend.is_none() && self.protects() {
            self.protect_again().await.map_err(|e| failed(&e))?;
        }
        let records = self.records.borrow().clone();
        let Some(term) = records.term.clone() else { return Err(self.wrong_state("in a cluster with a term")) };
        let mine = term.value.term == order.term && term.value.node.as_ref() == Some(&self.env.config.node);
        if mine && matches!(term.value.phase, Phase::Active | Phase::Draining) {
            // Repeated, or its answer was lost.
            return Ok(ToBeOpened::Opened(Opened { revision: term.revision }));
        }
        if !mine || term.revision != order.term_revision {
            return Err(self.wrong_state("the chosen node of an unchanged term record"));
        }
        // Only now: an order that comes late must not lower what an open term promises.
        if order.suspend.is_some() {
            self.must_have_watchdog("opening", None).await?;
            self.remember(|m| m.leased = true).map_err(|e| failed(&e))?;
            self.set_waits(&Waits::NOBODY).await.map_err(|e| failed(&e))?;
        }
        Ok(ToBeOpened::Now(Box::new((term.value, records))))
    }

    /// Has this agent read the very records that the order goes by, a moment ago (an etcd restored from a backup counts anew)? T3
    /// compares the term's again, and clients wait.
    fn has_read_what_opens(&self, order: &Open) -> bool {
        let records = self.records.borrow();
        let lately = records.read_at.is_some_and(|at| self.env.clock.now().since(at) < self.env.config.probe_timeout);
        let term = lately && records.term.as_ref().is_some_and(|t| t.revision == order.term_revision);
        term && records.policy.as_ref().is_some_and(|p| p.revision == order.policy_revision)
    }

    /// An earlier order to open without standbys has lifted what commits wait for and came to nothing: it must be in force
    /// again before the term opens with the promise that they wait.
    async fn protect_again(&self) -> Result<(), arm::ProofError> {
        let waits = self.waits_by_policy();
        let _turn = self.arming.lock().await;
        if !waits.protects() || self.conf.lock().await.waits.protects() {
            return Ok(());
        }
        tracing::warn!(node = %self.env.config.node, "commits waited for nobody before the term is open");
        self.make_all_wait(&waits).await
    }

    /// From whatever they waited for, with a proof that needs no standby.
    pub(super) async fn make_all_wait(&self, waits: &Waits) -> Result<(), arm::ProofError> {
        if self.conf.lock().await.is_lenient() {
            self.set_waits(waits).await?;
            self.taken_up().await?;
        }
        self.prove_waiting(&waits.names, self.env.config.probe_timeout * 5).await
    }

    fn opening(&self, order: &Open, term: &TermRecord, records: &Records, lease: LeaseId) -> Result<Txn, Failed> {
        let keys = &self.env.keys;
        let active = TermRecord { phase: Phase::Active, ..term.clone() };
        let mut txn = Txn::new()
            .when(Compare::ModRevision(keys.term(), order.term_revision))
            .when(Compare::Absent(keys.primary()))
            .put(keys.term(), self.json(&active)?)
            .put_leased(keys.primary(), self.primary_record(order.term)?, lease);
        if let Some(suspend) = &order.suspend {
            let no_policy = std::io::Error::other("there is no policy record");
            let policy = records.policy.as_ref().ok_or_else(|| self.failed("opening", &no_policy))?;
            let next = PolicyRecord {
                epoch: policy.value.epoch + 1,
                suspended: Some(suspend.clone()),
                ..policy.value.clone()
            };
            txn = txn
                .when(Compare::ModRevision(keys.policy(), order.policy_revision))
                .put(keys.policy(), self.json(&next)?)
                .put(keys.policy_of(next.epoch), self.json(&next)?);
        }
        Ok(txn)
    }

    pub(super) fn primary_record(&self, term: Term) -> Result<Vec<u8>, Failed> {
        let node = self.env.config.node.clone();
        self.json(&PrimaryRecord { term, node, holder: self.env.holder.clone() })
    }
}
