//! A statement's turn: queueing for a connection that is given back, or making one.

use super::open::{describe, open};
use super::{NotFound, Want, refused, rules};
use crate::pool::checkout::Wait;
use crate::pool::{Full, Offer, Permit, Pool, Rivals, Share};
use crate::session::server::{ConnectError, Server};
use crate::wire::backend::fields;
use crate::wire::error_response::ClientError;
use crate::wire::pool_error::PoolError;
use crate::worker::{ToWorker, Worker};
use cluster::topology::Member;
use cluster::{Instant, Role};
use std::rc::Rc;

/// too_many_connections: the server has as many as it takes, of all or of this user.
const TOO_MANY: &str = "53300";

/// A statement's time in the queue of its pool.
#[derive(Default)]
pub(super) struct Queue {
    since: Option<Instant>,
    /// The words of a server that takes no more connections.
    pub(super) server_full: Option<Vec<u8>>,
}

impl Queue {
    pub(super) fn share(&self, w: &Worker, want: &Want, now: Instant) -> Share {
        let Some(since) = self.since else { return Share::Usual };
        let after = rules(w, want).reserve_after;
        if now.since(since) >= after { Share::Reserve } else { Share::Usual }
    }

    /// Make a connection. `None` when there is none yet: everything is to be looked at again.
    pub(super) async fn make(
        &mut self,
        w: &Rc<Worker>,
        want: &mut Want,
        (member, role): (&Member, Role),
        pool: &Rc<Pool>,
        permit: Permit,
    ) -> Result<Option<Server>, NotFound> {
        let now = w.now();
        let left = want.hold(w).saturating_sub(now.since(want.since));
        if let Err(pause) = w.may_connect(&member.node, now) {
            // The node could not be connected to lately: a read goes elsewhere, and what needs the primary waits for
            // the next attempt, or for a connection that is given back.
            permit.forgo();
            if role == Role::Standby {
                want.avoid.push(member.node.clone());
                return Ok(None);
            }
            let until = now + left.min(pause);
            w.look_no_later(until);
            return Ok(turn(pool.wait(*self.since.get_or_insert(now), until, false)).await);
        }
        let error = match open(w, want, member, role, permit, left).await {
            Ok(server) => return Ok(Some(server)),
            Err(None) => return Ok(None),
            Err(Some(error)) if error.is_final() && role == Role::Primary => return Err(refused(error)),
            Err(Some(error)) => error,
        };
        tracing::debug!(node = %member.node, ?role, error = %describe(&error), "server not reached");
        if let ConnectError::Refused { code, frame, .. } = &error
            && code == TOO_MANY
        {
            // The next attempt, a pause from now, finds a place if one of these was idle or is given back until then.
            let rivals = Rivals::of_refusal(fields(frame).routine);
            pool.limit.claim(rivals);
            evict(w, pool, rivals);
        }
        match (role, error) {
            (Role::Standby, _) => want.avoid.push(member.node.clone()),
            (Role::Primary, ConnectError::Refused { code, frame, .. }) if code == TOO_MANY => {
                self.server_full = Some(frame);
            }
            (Role::Primary, _) => self.server_full = None,
        }
        Ok(None)
    }

    /// Wait for a turn. `None` when something has changed and everything is to be looked at again.
    pub(super) async fn wait(
        &mut self,
        w: &Worker,
        want: &Want,
        pool: &Rc<Pool>,
        full: Full,
    ) -> Result<Option<Server>, ClientError> {
        let now = w.now();
        let since = *self.since.get_or_insert(now);
        let waited = now.since(since);
        let rules = rules(w, want);
        let mut left = rules.query_wait_timeout.saturating_sub(waited);
        if left.is_zero() {
            let (limit, of_database) = match full {
                Full::Pool { limit } => (limit, false),
                Full::Database { limit } => (limit, true),
            };
            let waiting = pool.limit.waiting() + 1;
            return Err(ClientError::Pool(PoolError::Exhausted { waited, limit, of_database, waiting }));
        }
        if pool.limit.has_reserve() && waited < rules.reserve_after {
            left = left.min(rules.reserve_after - waited);
        }
        // No timer of its own: the worker looks when the first of those who wait has waited for long enough.
        let until = now + left;
        w.look_no_later(until);
        let wait = pool.wait(since, until, true);
        if let Full::Database { .. } = full {
            evict(w, pool, Rivals::Database);
        }
        Ok(turn(wait).await)
    }
}

/// Other pools, on any worker, may have a connection that nobody uses.
fn evict(w: &Worker, pool: &Pool, rivals: Rivals) {
    let evict = || ToWorker::Evict { key: pool.key.clone(), rivals };
    w.shared.peers.iter().for_each(|peer| drop(peer.try_send(evict())));
}

/// A turn in the queue. `None` when something has changed, or the time is over.
async fn turn(mut wait: Wait) -> Option<Server> {
    match wait.offer().await {
        Offer::Server(server) => Some(server),
        Offer::TryAgain => None,
    }
}
