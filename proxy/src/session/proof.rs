//! `pgtenure.consistency = 'strong'`: nothing is sent to a primary that may have been replaced.
//!
//! Where the view of the cluster has an end (async mode), that is the proof: no new term opens before every proxy has seen
//! it or has run out of its view. Elsewhere a commit of ours is, which standbys confirm before the statement is sent. A
//! standby that confirms it was not frozen for a later term, and any quorum that is frozen holds one of those that
//! confirmed; so no later term was open when the statement came, and whatever such a term has acknowledged since is
//! concurrent with it.
//!
//! Other statements are proven like that where neither etcd nor the standbys' samples prove the term any more
//! ([`crate::route::Unproven`]); what one has proven holds for all of its worker as long as a proof does.
//!
//! A block is proven as of its BEGIN. Nothing of a session is sent ahead of an answer.

use crate::route::durability::Durability;
use crate::route::{Consistency, Reason};
use crate::session::cancel::Waiters;
use crate::session::client::{Failure, Session};
use crate::session::incoming::Step;
use crate::session::presence::Activity;
use crate::session::relay::Hidden;
use crate::session::tracking::Asked;
use crate::sql::Access;
use crate::wire::backend::{self, TxStatus};
use crate::wire::error_response::ClientError;
use crate::wire::promise_error::PromiseError;
use cluster::{Instant, Role};
use std::time::Duration;

/// A commit that waits for the standbys and writes nothing that anybody sees. It has a transaction id, or it would not wait;
/// the notice of a wait that was given up must come.
const COMMIT: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\
                      SET LOCAL synchronous_commit TO on;SET LOCAL client_min_messages TO warning;\
                      SELECT pg_catalog.pg_logical_emit_message(true,'pgtenure','');COMMIT";

/// The same, waiting for what `level` stands for.
pub(super) fn commit_as(level: Durability) -> String {
    COMMIT.replace("synchronous_commit TO on", &format!("synchronous_commit TO {}", level.commit()))
}

impl Session {
    /// Must a unit wait until it is proven that its server is the primary? The proof is on its way then.
    pub(super) fn must_prove(&mut self, now: Instant) -> bool {
        let doubted = self.doubted || matches!(self.chosen, Some(Reason::Unproven { .. }));
        let asked = doubted || self.promise_of_unit().consistency == Consistency::Strong;
        if self.relay.open.is_some() || !asked {
            return false;
        }
        if self.relay.busy() {
            // What is in flight may end the block that it is in.
            return true;
        }
        if self.relay.status != TxStatus::Idle {
            return false;
        }
        let protected = self.w.view.borrow().topology.protected;
        let asks = self.server.as_ref().is_some_and(|server| server.meta.role == Role::Primary) && protected;
        if self.proven || !asks {
            return false;
        }
        self.tracking.asked = Some(Asked::Proof { since: now });
        self.hold = Some(Box::pin(tokio::time::sleep(self.w.config().hold_timeout)));
        self.set_busy(Some(Role::Primary));
        self.send_hidden(COMMIT);
        // The next turn polls the timer.
        self.presence.wake();
        true
    }

    /// Must a statement wait before it goes to the primary that the session has, for a proof that comes from elsewhere?
    pub(super) fn must_await_proof(&mut self, access: Access, now: Instant) -> bool {
        let doubts = self.doubts(access, now).is_some();
        self.doubted |= doubts && self.w.commit_proves_in(now) == Some(Duration::ZERO);
        doubts && !self.doubted
    }

    /// The statement waits for that, or until a commit may prove it.
    pub(super) fn hold_unproven(&mut self, access: Access, now: Instant) -> Step {
        self.hold_for(access, self.w.commit_proves_in(now).unwrap_or(Duration::MAX), now)
    }

    /// It waits, to be looked at again after that time at the latest.
    pub(super) fn hold_for(&mut self, access: Access, most: Duration, now: Instant) -> Step {
        self.held_for = access;
        let since = *self.waiting_since.get_or_insert(now);
        let left = self.w.config().hold_timeout.saturating_sub(now.since(since)).min(most);
        let left = self.statement_over(now).map_or(left, |over| over.min(left));
        self.hold = Some(Box::pin(tokio::time::sleep(left)));
        self.mark(Activity::Waiting, now, true);
        // The next turn polls the timer.
        self.presence.wake();
        Step::Wait
    }

    /// The hold has ended before its time, to look again: it goes on.
    pub(super) fn holds_on(&mut self, now: Instant) -> bool {
        let waited = self.waiting_since.map_or(Duration::MAX, |since| now.since(since));
        let left = self.w.config().hold_timeout.saturating_sub(waited);
        if left.is_zero() {
            return false;
        }
        // What goes on with a unit that is half sent is not ended by that.
        let over = self.statement_over(now).filter(|_| !self.relay.busy());
        let left = over.map_or(left, |over| over.min(left));
        self.hold = Some(Box::pin(tokio::time::sleep(left)));
        // The next turn polls the timer.
        self.presence.wake();
        true
    }

    /// The commit is answered.
    pub(super) fn proof_answered(&mut self, since: Instant, answer: &Hidden) {
        self.hold = None;
        let why = match &answer.error {
            None if answer.unreplicated => "a wait for the standbys was given up".to_owned(),
            None => {
                self.proven = true;
                if let Some(server) = &self.server {
                    self.w.committed(server.meta.term, since);
                }
                return;
            }
            Some(frame) => String::from_utf8_lossy(backend::fields(frame).message).into_owned(),
        };
        self.unproven(since, why);
    }

    /// A proof is on its way and takes too long, or is not wanted any more: nobody knows when its commit ends.
    pub(super) fn give_up_proof(&mut self, error: Option<ClientError>) -> bool {
        let Some(Asked::Proof { since }) = self.tracking.asked else { return false };
        match error {
            Some(error) => self.drop_proof(error),
            None => self.unproven(since, "no standby has confirmed a commit since".to_owned()),
        }
        true
    }

    fn unproven(&mut self, since: Instant, why: String) {
        let waited = self.w.now().since(since);
        let Some(meta) = self.server.as_ref().map(|server| &server.meta) else { return };
        let (node, term) = (meta.node.clone(), meta.term);
        self.drop_proof(ClientError::Promise(PromiseError::Unproven { node, term, waited, why }));
    }

    fn drop_proof(&mut self, error: ClientError) {
        (self.hold, self.doubted) = (None, false);
        // It writes nothing, so it may be stopped; else its backend would wait on, where it counts nowhere.
        self.forward_cancel(Waiters::default());
        self.leave_asked();
        // Nothing that is sent from now on would be hit, as it goes to another server.
        self.cancelling &= self.server.is_some();
        self.fail = Some(Failure::Error(error));
    }
}
