//! When servers are connected to again that could not be.

use super::Worker;
use crate::pool::Pool;
use crate::pool::backoff::Backoff;
use crate::session::server::Blame;
use cluster::{Instant, NodeId};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Connections to one node that a worker makes at the same time: a new primary is not run over by those who waited.
const CONNECTS_IN_FLIGHT: usize = 8;

impl Worker {
    /// May that node be connected to now?
    ///
    /// # Errors
    /// How long to wait: it could not be connected to before.
    pub fn may_reach(&self, node: &NodeId, now: Instant) -> Result<(), Duration> {
        match self.backoffs.borrow_mut().get_mut(node) {
            Some(backoff) => backoff.attempt(now, self.next_seed()),
            None => Ok(()),
        }
    }

    /// May a connection of that pool be made now?
    ///
    /// # Errors
    /// How long to wait: none could be before.
    pub fn may_connect(&self, pool: &Pool, now: Instant) -> Result<(), Duration> {
        let mut own = pool.backoff.get();
        // Looked at before: what is not attempted here must not count as an attempt there.
        own.left(now).map_or(Ok(()), Err)?;
        self.may_reach(&pool.key.node, now)?;
        let may = own.attempt(now, self.next_seed());
        pool.backoff.set(own);
        may
    }

    /// The turns of those who connect to that node. Each has its own: who waits for one that stands still keeps nobody from
    /// another.
    pub fn connects_to(&self, node: &NodeId) -> Rc<Semaphore> {
        let mut connects = self.connects.borrow_mut();
        if let Some(turns) = connects.get(node) {
            return turns.clone();
        }
        // Nodes come and go.
        connects.retain(|_, turns| Rc::strong_count(turns) > 1);
        connects.entry(node.clone()).or_insert_with(|| Rc::new(Semaphore::new(CONNECTS_IN_FLIGHT))).clone()
    }

    /// How many attempts to make a connection of that pool have failed since one succeeded.
    pub fn failures(&self, pool: &Pool) -> u32 {
        let of_node = self.backoffs.borrow().get(&pool.key.node).map_or(0, Backoff::failures);
        pool.backoff.get().failures().saturating_add(of_node)
    }

    /// A connection of that pool was made, or was not.
    pub fn connected(&self, pool: &Pool, outcome: Result<(), Blame>) {
        let mut own = pool.backoff.get();
        let kept_waiting = match outcome {
            Ok(()) => own.succeeded(),
            Err(Blame::Pool) => {
                own.failed(self.now(), self.next_seed());
                false
            }
            // Whoever reads goes elsewhere meanwhile.
            Err(Blame::Login) => {
                own.refused(self.now(), self.next_seed());
                false
            }
            Err(Blame::Client | Blame::Node) => false,
        };
        pool.backoff.set(own);
        let mut backoffs = self.backoffs.borrow_mut();
        if outcome == Err(Blame::Node) {
            let seed = self.next_seed();
            backoffs.entry(pool.key.node.clone()).or_default().failed(self.now(), seed);
        } else if backoffs.get_mut(&pool.key.node).is_some_and(Backoff::succeeded) {
            // Those who were kept waiting go on at once.
            self.tell_change();
        } else if kept_waiting {
            pool.reconsider();
        }
    }

    /// The last attempt to make a connection of that pool has ended so. `words`: those of a server that takes no more.
    pub fn note_full(&self, pool: &Pool, blame: Option<Blame>, words: Option<&[u8]>) {
        let of_node = words.filter(|_| blame == Some(Blame::Node));
        match of_node {
            Some(words) => drop(self.full.borrow_mut().insert(pool.key.node.clone(), words.to_vec())),
            None => drop(self.full.borrow_mut().remove(&pool.key.node)),
        }
        *pool.full.borrow_mut() = words.filter(|_| of_node.is_none()).map(<[u8]>::to_vec);
    }

    /// The words of the server with which it has refused the last connection that was wanted of it, if it takes no more.
    pub fn full(&self, pool: &Pool) -> Option<Vec<u8>> {
        let own = pool.full.borrow().clone();
        own.or_else(|| self.full.borrow().get(&pool.key.node).cloned())
    }
}
