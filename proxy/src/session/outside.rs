//! What reaches a session from outside of its two sockets: changes of the cluster, limits, cancel requests, its end.

use crate::metrics::Outcome;
use crate::route::Reason;
use crate::route::durability::{COMMIT, Durability};
use crate::session::before_commit::Unless;
use crate::session::cancel::{Asks, Waiters};
use crate::session::client::{Failure, Loss, Session, Tail, Turn};
use crate::session::presence::Activity;
use crate::session::timers::Expiry;
use crate::session::{acquire, cancel, lost};
use crate::sql::Access;
use crate::wire::backend::TxStatus;
use crate::wire::error_response::ClientError;
use crate::wire::pool_error::PoolError;
use crate::wire::promise_error::PromiseError;
use cluster::topology::Gate;
use cluster::{Instant, Role};
use std::future::Future;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::Duration;

/// Why a read fails at the primary that its session has, in metrics.
const UNPROVEN: &str = "unproven";

/// How far standbys may be behind that keep up: none of their commits has waited for longer.
const KEEPS_UP: Duration = Duration::from_secs(2);

impl Session {
    /// Changes of the cluster, cancel requests, the end of a hold.
    pub(super) fn look_outside(&mut self, cx: &mut Context<'_>) -> Result<(), Turn> {
        if self.generation != self.w.generation.get() {
            self.generation = self.w.generation.get();
            self.rescan = true;
            if let Some(server) = &self.server
                && !self.w.still_valid(&server.meta)
            {
                return Err(Turn::Lost(Loss::Deposed));
            }
        }
        self.rescan |= self.presence.again.take();
        self.let_go_of_table();
        if let Some(waiters) = self.presence.cancel.take() {
            self.cancel(waiters);
        }
        if self.cancelling && self.may_leave_astray() && !self.relay.busy() {
            self.rest(self.w.now());
        }
        if self.cancelling && !self.server.as_ref().is_some_and(|s| s.cancels.in_the_way()) {
            (self.cancelling, self.rescan) = (false, true);
            if self.server.is_some() && !self.relay.busy() {
                self.rest(self.w.now());
            }
        }
        if self.presence.end.take() {
            let may_commit = self.relay.may_commit();
            self.stop();
            if may_commit {
                // Anything said now would be taken for the outcome, which nobody knows.
                return Err(Turn::Close);
            }
            return Err(self.farewell(&ClientError::ShuttingDown));
        }
        if self.presence.moved.get()
            && self.inbox.is_empty()
            && self.to_client.is_empty()
            && let Some(error) = self.must_leave()
        {
            return Err(self.farewell(&error));
        }
        if let Some(expiry) = self.presence.expired.take() {
            self.expire(expiry)?;
        }
        if let Some(hold) = &mut self.hold
            && hold.as_mut().poll(cx).is_ready()
        {
            self.hold = None;
            self.rescan = true;
            if self.give_up_proof(None) {
                return Ok(());
            }
            let now = self.w.now();
            if !self.relay.busy() && self.statement_over(now) == Some(Duration::ZERO) {
                self.end_held(self.statement_timeout_error(now));
                return Ok(());
            }
            if self.holds_on(now) {
                return Ok(());
            }
            match self.w.gate(now) {
                Gate::Open => self.fail_unproven(now),
                // Outside a block there is nothing to lose: only the statement fails.
                Gate::Draining if !self.relay.busy() => {
                    let since = self.waiting_since.unwrap_or(now);
                    self.end_held(acquire::hold_timeout(&self.w, None, since, now));
                }
                Gate::Draining => {}
                Gate::Closed(_) => return Err(Turn::Lost(Loss::HoldTimeout)),
            }
        }
        Ok(())
    }

    /// Between transactions: keep no table of functions that is not the newest, which the next unit asks for anyway. Each is
    /// large, and who does nothing for days would keep that of its last statement.
    pub(super) fn let_go_of_table(&mut self) {
        if !self.presence.outdated.get() {
            return;
        }
        let between = !self.relay.busy() && self.status() == TxStatus::Idle && self.tail == Tail::None;
        if between && self.inbox.is_empty() && self.cut.is_none() && self.long.is_none() {
            self.presence.outdated.set(false);
            if self.functions.has_changed().unwrap_or(false) {
                self.table = self.w.no_table.clone();
            }
        }
    }

    /// A statement that is held is over, and with it the block that it is in.
    fn end_held(&mut self, error: ClientError) {
        (self.hold, self.rescan) = (None, true);
        if self.relay.status == TxStatus::Idle {
            self.fail = Some(Failure::Error(error));
        } else {
            lost::fail_block(self, error);
        }
    }

    /// The primary that the session has could not be proven to be that for as long as a statement is held.
    fn fail_unproven(&mut self, now: Instant) {
        let primary = self.server.as_ref().is_some_and(|server| server.meta.role == Role::Primary);
        if !primary || self.relay.busy() || self.relay.status != TxStatus::Idle {
            return;
        }
        let since = self.waiting_since.unwrap_or(now);
        if let Some((after, term)) = self.after_unknown(now) {
            let waited = now.since(since);
            let error = PromiseError::AfterUnknown { after, term, waited };
            self.fail = Some(Failure::Error(ClientError::Promise(error)));
        } else if let Some(what) = self.doubts(self.held_for, now) {
            if self.held_for == Access::Read && !self.held_unshown {
                self.w.counts.no_standby(Outcome::Error, UNPROVEN);
            }
            self.fail = Some(Failure::Error(acquire::unproven(&self.w, &what, since, now)));
        } else if let Some((_, read_at)) = self.unshown(now) {
            let why = Reason::Unconfirmed { since: read_at };
            self.fail = Some(Failure::Error(acquire::hold_timeout(&self.w, Some(&why), since, now)));
        }
    }

    /// Between two transactions: why no other is to begin.
    pub(super) fn must_leave(&self) -> Option<ClientError> {
        let stopping = self.w.shared.stopping.load(Ordering::Relaxed);
        if !stopping && !self.presence.moved.get() {
            return None;
        }
        let between = !self.relay.busy() && self.relay.open.is_none() && self.status() == TxStatus::Idle;
        let database = || self.identity.database.clone();
        between.then(|| match stopping {
            true => ClientError::ShuttingDown,
            false => ClientError::Pool(PoolError::Moved { database: database() }),
        })
    }

    /// Does what waits for long wait for no standby, as they have all that the primary had shortly before? A COMMIT is never given
    /// up, and what standbys have applied is not known.
    fn standbys_keep_up(&self) -> bool {
        let tells = self.relay.commits.waits().is_some_and(|waits| waits.most <= Durability::SemiSync);
        let view = self.w.view.borrow();
        let keep_up = || view.lag.confirms(&view.topology, self.w.now() - KEEPS_UP) == Some(true);
        tells && !self.relay.is_committing() && keep_up()
    }

    /// The client is told why its session ends.
    fn farewell(&mut self, error: &ClientError) -> Turn {
        // Nothing can be said in the middle of a message.
        if !self.relay.mid_frame() {
            self.error(error);
            self.to_client.try_flush(&mut self.client);
        }
        Turn::Close
    }

    /// It has taken too long, unless it has gone on meanwhile.
    fn expire(&mut self, expiry: Expiry) -> Result<(), Turn> {
        let activity = self.presence.doing.get().activity;
        let fatal = match (expiry, activity) {
            (Expiry::Idle, Activity::Idle) => PoolError::Idle,
            (Expiry::IdleInTransaction, Activity::InTransaction) => PoolError::IdleInTransaction,
            (Expiry::Transaction, Activity::InTransaction) => PoolError::Transaction,
            (Expiry::Query | Expiry::Transaction, Activity::Active) => {
                if self.relay.pending() > 0 {
                    self.stop();
                } else {
                    // All is answered: it is the client that has not sent its Sync.
                    self.mark(Activity::InTransaction, self.w.now(), false);
                }
                return Ok(());
            }
            // It waits for standbys, or may: given up, it would wait on where it counts nowhere.
            (Expiry::Stuck, Activity::Active)
                if self.relay.busy() && self.presence.spared.get() && !self.standbys_keep_up() =>
            {
                self.stop();
                return Ok(());
            }
            // A COMMIT is never given up: it ends, or its server does.
            (Expiry::Stuck, Activity::Active) if self.relay.busy() && !self.relay.is_committing() => {
                return Err(Turn::Lost(Loss::Stuck));
            }
            (Expiry::Stuck, Activity::Idle | Activity::Waiting) if self.relay.hiding() => {
                self.forward_cancel(Waiters::default());
                return Err(Turn::Lost(Loss::Stuck));
            }
            (Expiry::Write, _) if self.presence.blocked.get().is_some() => {
                tracing::info!(place = self.place, "client takes nothing of what is sent to it, disconnected");
                // What may commit is left to the end of its wait.
                if !self.relay.may_commit() {
                    self.stop();
                }
                return Err(Turn::Close);
            }
            (
                Expiry::Idle
                | Expiry::IdleInTransaction
                | Expiry::Query
                | Expiry::Transaction
                | Expiry::Stuck
                | Expiry::Write,
                _,
            ) => return Ok(()),
        };
        Err(self.farewell(&ClientError::Pool(fatal)))
    }

    /// A cancel request has come for this session, which holds a server or nothing that runs.
    fn cancel(&mut self, waiters: Waiters) {
        self.interrupt(waiters, true);
    }

    /// What it does is to end, and no client of it has asked for that: a limit has, or an operator.
    fn stop(&mut self) {
        self.interrupt(Waiters::default(), false);
    }

    fn interrupt(&mut self, waiters: Waiters, by_client: bool) {
        if self.server.is_none() {
            return;
        }
        if self.hold.is_some() && !self.relay.busy() {
            return self.end_held(ClientError::Cancelled);
        }
        if self.relay.hiding() {
            return self.cancel_hidden(waiters);
        }
        // Nothing runs there, and what is held behind a request is not stopped by another.
        if !self.relay.busy() || self.cancelling && self.relay.pending() == 0 {
            return;
        }
        // A COMMIT that waits for its standby must not be told to stop waiting.
        if by_client && self.relay.may_be_at_commit() && self.commit_waits() {
            let alone = self.relay.is_committing() && !self.relay.may_be_before_commit();
            return self.cancel_unless(Unless::Waiting, if alone { Asks::AtCommit } else { Asks::Client }, waiters);
        }
        if !by_client && self.relay.is_committing() {
            // Nor does a limit end one at all.
            if self.relay.may_be_before_commit() {
                self.cancel_unless(Unless::Committing, Asks::Limit, waiters);
            }
            return;
        }
        if !by_client && self.relay.may_commit() && self.commit_waits() {
            // Nor must anything else: who stops it is not who would be told what that means.
            return self.cancel_unless(Unless::Waiting, Asks::Limit, waiters);
        }
        self.cancelled |= by_client;
        if self.hides_notices() && !self.knows_waits() {
            self.relay.commits.distrust();
        }
        self.forward_cancel(waiters);
    }

    /// Is it known from the session itself what its commits wait for? What its server began with a function may change, and so
    /// may its configuration.
    fn knows_waits(&self) -> bool {
        let touched = &self.tracking.touched;
        let sets = touched.every || touched.names.iter().any(|name| &**name == COMMIT);
        !sets && self.tracking.settings.get(COMMIT).is_some()
    }

    /// May what the oldest unit commits wait for standbys, by the cluster's mode or by what the session asks for?
    fn commit_waits(&self) -> bool {
        let waits = self.relay.commits.waits();
        let topology = &self.w.view.borrow().topology;
        topology.protected || topology.semi_sync || waits.is_none_or(|waits| waits.most >= Durability::Received)
    }

    /// A cancel request goes on to the server. Until that has acted on it, nothing new is sent there: it would be hit.
    pub(super) fn forward_cancel(&mut self, waiters: Waiters) {
        let Some(server) = self.server.as_ref().filter(|server| !server.cancels.crowded()) else { return };
        let (peer, key, limit) = (server.meta.peer, server.meta.key, self.w.config().connect_timeout);
        // Counted before the task runs: the server may be given back before that.
        let way = cancel::Way { worker: self.w.clone(), host: server.meta.host.clone(), peer };
        let (presence, told, errand) = (self.presence.clone(), self.presence.clone(), self.w.begin_errand());
        let lost = move || {
            drop((errand, waiters));
            // What waits for its end is held from now on.
            told.again.set(true);
            told.wake();
        };
        let request = cancel::forward(way, key, limit, server.cancels.begin(), lost);
        self.cancelling = true;
        presence.cancels.set(presence.cancels.get() + 1);
        tokio::task::spawn_local(async move {
            request.await;
            presence.cancels.set(presence.cancels.get() - 1);
            presence.wake();
        });
    }
}
