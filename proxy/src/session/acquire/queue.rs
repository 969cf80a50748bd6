//! A statement's turn: queueing for a connection that is given back, or making one.

use super::open::{describe, open};
use super::{NotFound, Want, refused, rules, serving, target};
use crate::pool::checkout::Turn;
use crate::pool::{Full, Offer, Permit, Pool, Rivals, Share};
use crate::session::server::{ConnectError, Server};
use crate::sql::Access;
use crate::wire::error_response::ClientError;
use crate::wire::pool_error::{PoolError, Sharing};
use crate::worker::{ToWorker, Worker};
use cluster::topology::Member;
use cluster::{Instant, Role};
use std::rc::Rc;
use std::time::Duration;

/// A statement's time in the queue of its pool. While nothing but a connection lacks, `query_wait_timeout` runs, and what
/// limits how long statements are held stands still.
#[derive(Default)]
pub(super) struct Queue {
    since: Option<Instant>,
    /// Since when nothing else lacks.
    lacking: Option<Instant>,
    /// For how long, the times before.
    spent: Duration,
    /// The words of a server that takes no more connections.
    server_full: Option<Vec<u8>>,
}

impl Queue {
    /// From now on, until it is looked at again, only a connection lacks: or an operator's word, which is waited for alike.
    pub(super) fn lacks(&mut self, now: Instant) {
        self.lacking.get_or_insert(now);
    }

    /// Everything is looked at again: whatever lacks now is found out anew.
    pub(super) fn look(&mut self, now: Instant) {
        self.spent += self.lacking.take().map_or(Duration::ZERO, |since| now.since(since));
    }

    /// The words of a server that has taken no more connections for as long as one is waited for.
    pub(super) fn give_up(&mut self, w: &Worker, want: &Want) -> Option<Vec<u8>> {
        let left = self.wait_left(w, want);
        self.server_full.take_if(|_| left.is_zero())
    }

    /// How long it may still be held while something else lacks.
    pub(super) fn hold_left(&self, w: &Worker, want: &Want, now: Instant) -> Duration {
        (want.hold(w) + self.spent).saturating_sub(now.since(want.since))
    }

    /// How long it may still wait for a connection.
    pub(super) fn wait_left(&self, w: &Worker, want: &Want) -> Duration {
        rules(w, want).query_wait_timeout.saturating_sub(self.spent)
    }

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
        let pause = w.may_connect(pool, now).err();
        if role == Role::Primary && pause.is_some() {
            // Somebody else has been refused for all who wait.
            self.server_full = w.full(pool);
        }
        let left = if self.server_full.is_some() {
            // It waits for a connection, if one of a server's.
            self.lacks(now);
            self.wait_left(w, want)
        } else {
            self.hold_left(w, want, now)
        };
        if let Some(pause) = pause {
            // No connection could be made lately: a read goes elsewhere, and what needs the primary waits for
            // the next attempt, or for a connection that is given back.
            permit.forgo();
            if role == Role::Standby {
                want.avoid.push(member.node.clone());
                return Ok(None);
            }
            let until = now + left.min(pause);
            w.look_no_later(until);
            let since = *self.since.get_or_insert(now);
            let mut wait = pool.wait(Turn { since, until, for_room: false, reads: want.access == Access::Read });
            return Ok(match wait.offer().await {
                Offer::Server(server) => Some(server),
                Offer::TryAgain | Offer::Sampled => None,
            });
        }
        let error = match open(w, want, member, role, permit, left).await {
            Ok(server) => return Ok(Some(server)),
            Err(None) => return Ok(None),
            Err(Some(error)) if error.is_final() && role == Role::Primary => {
                // Nobody is to be told that this login succeeds before a server says so again. But a proof that is refused is of this
                // one client: others have better ones.
                if !error.is_of_proof() {
                    w.forget_welcome(&want.identity);
                }
                return Err(refused(error));
            }
            Err(Some(error)) => error,
        };
        tracing::debug!(node = %member.node, ?role, error = %describe(&error), "server not reached");
        let met = error.limit();
        if let Some(rivals) = met {
            // The next attempt, a pause from now, finds a place if one of these was idle or is given back until then.
            pool.limit.claim(rivals);
            evict(w, pool, rivals);
        }
        match (role, error) {
            (Role::Standby, _) => want.avoid.push(member.node.clone()),
            (Role::Primary, ConnectError::Refused { frame, .. }) if met.is_some() => self.server_full = Some(frame),
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
        self.lacks(now);
        let (waited, rules) = (now.since(since), rules(w, want));
        let mut left = self.wait_left(w, want);
        if left.is_zero() {
            let waited = self.spent;
            let (limit, of) = match full {
                Full::Pool { limit } => (limit, Sharing::Pool),
                Full::Database { limit } => (limit, Sharing::Database),
                Full::User { limit } => (limit, Sharing::User),
            };
            let waiting = pool.limit.waiting() + 1;
            return Err(ClientError::Pool(PoolError::Exhausted { waited, limit, of, waiting }));
        }
        if pool.limit.has_reserve() && waited < rules.reserve_after {
            left = left.min(rules.reserve_after - waited);
        }
        // No timer of its own: the worker looks when the first of those who wait has waited for long enough.
        let until = now + left;
        w.look_no_later(until);
        let mut wait = pool.wait(Turn { since, until, for_room: true, reads: want.access == Access::Read });
        loop {
            match wait.offer().await {
                Offer::Server(server) => return Ok(Some(server)),
                Offer::Sampled if goes_to(w, want, pool) => {}
                Offer::TryAgain | Offer::Sampled => return Ok(None),
            }
        }
    }
}

/// Would what waits for a connection of that pool still go there? To leave the queue and to come back to its place costs
/// a walk along it, for each who waits.
fn goes_to(w: &Worker, want: &Want, pool: &Pool) -> bool {
    let now = w.now();
    let (target, _) = target(w, want.need(), now);
    serving(w, target, now).is_some_and(|(node, _)| node == pool.key.node)
}

/// Other pools, on any worker, may have a connection that nobody uses.
fn evict(w: &Worker, pool: &Pool, rivals: Rivals) {
    let evict = || ToWorker::Evict { key: pool.key.clone(), rivals };
    w.shared.peers.iter().for_each(|peer| drop(peer.try_send(evict())));
}
