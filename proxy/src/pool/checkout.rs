//! Taking a server connection and giving it back.

use crate::pool::{Doors, Full, Identity, Limit, Limits, Permit, PoolKey, Rivals, Share};
use crate::session::server::Server;
use crate::session::settings::Shared;
use cluster::topology::Topology;
use cluster::{Instant, NodeId, Role};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A waiter of another worker is served first when it has waited this much longer: moving a connection costs more
/// than a short wait.
const PATIENCE: Duration = Duration::from_millis(20);
/// How many idle connections are looked at for one with the session's settings.
const LOOK: usize = 8;

/// What a checkout yields. Never kept, so its size does not matter; boxing would allocate for each unit sent.
pub enum Checkout {
    /// An idle connection.
    Ready(Server),
    /// An idle connection that has been idle for so long that it is to be checked first.
    Check(Server),
    /// A place for a new one.
    Open(Permit),
    /// Neither: wait in the queue.
    Full(Full),
}

/// What a waiter gets.
pub enum Offer {
    /// A connection.
    Server(Server),
    /// Things may be otherwise now, as where there is a place for a new connection: check out again, and wait at the same
    /// place in the queue if there is none.
    TryAgain,
}

/// This worker's copy of what operators have said.
#[derive(Default)]
pub struct Doorway {
    /// Something has been said.
    gated: Cell<bool>,
    doors: RefCell<Doors>,
}

impl Doorway {
    /// Something else has been said.
    pub fn obey(&self, doors: Doors) {
        self.gated.set(!doors.all_open());
        *self.doors.borrow_mut() = doors;
    }

    /// Do statements of this database wait?
    pub fn paused(&self, database: &str) -> bool {
        self.gated.get() && self.doors.borrow().paused(database)
    }

    /// Are its new clients refused?
    pub fn disabled(&self, database: &str) -> bool {
        self.gated.get() && self.doors.borrow().disabled(database)
    }

    /// Is a server connection that was made at `born` to be closed when it is free?
    pub fn must_close(&self, database: &str, born: Instant) -> bool {
        self.gated.get() && self.doors.borrow().must_close(database, born)
    }
}

struct Waiter {
    since: Instant,
    until: Instant,
    slot: Rc<Slot>,
}

/// Where a waiter finds what it is given. Both ends are of one thread.
#[derive(Default)]
struct Slot {
    offer: Cell<Option<Offer>>,
    /// It is to look again, and keeps its place meanwhile.
    look: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Slot {
    fn give(&self, offer: Offer) {
        self.offer.set(Some(offer));
        self.wake();
    }

    fn look_again(&self) {
        self.look.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Option<Offer>> {
        let offer = self.offer.take();
        if offer.is_some() || self.look.take() {
            return Poll::Ready(offer);
        }
        self.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// One worker's part of a pool.
pub struct Pool {
    /// Whose connections these are.
    pub key: PoolKey,
    /// The limit shared with the other workers.
    pub limit: Arc<Limit>,
    /// Connections being made.
    pub opening: Cell<usize>,
    worker: usize,
    doorway: Rc<Doorway>,
    idle: RefCell<Vec<Server>>,
    waiters: RefCell<VecDeque<Waiter>>,
    /// Hand a connection over to another worker.
    hand_over: Rc<dyn Fn(usize, PoolKey, Server)>,
    /// Ask another worker for one.
    ask: Rc<dyn Fn(usize, PoolKey)>,
}

impl Pool {
    /// Take a connection, or a place for one. One that has been idle since before `check_before` is to be checked.
    pub fn checkout(&self, check_before: Instant, share: Share) -> Checkout {
        while let Some(mut server) = self.take_idle() {
            if server.is_quiet() {
                let fresh = server.meta.idle_since >= check_before;
                return if fresh { Checkout::Ready(server) } else { Checkout::Check(server) };
            }
        }
        self.limit.permit(share).map_or_else(Checkout::Full, Checkout::Open)
    }

    /// Take an idle connection that needs no check: the one used last, or one of the few before it that has the
    /// settings `wanted` already, or on which the session of that number, if any, was the last to draw from sequences.
    pub fn at_hand(&self, check_before: Instant, wanted: (&Shared, u64)) -> Option<Server> {
        loop {
            if self.idle.borrow().last()?.meta.idle_since < check_before {
                return None;
            }
            self.prefer(check_before, wanted);
            let mut server = self.take_idle()?;
            if server.is_quiet() {
                return Some(server);
            }
        }
    }

    /// Put the connection that needs no other settings where it is taken next. Giving another one its settings costs a
    /// round trip; looking further than this for one would cost more than that when there is none.
    fn prefer(&self, check_before: Instant, (wanted, own): (&Shared, u64)) {
        let mut idle = self.idle.borrow_mut();
        let fits = |server: &Server| {
            if own != 0 {
                return server.meta.drew == own;
            }
            let given = &server.meta.given;
            Arc::ptr_eq(given, wanted) || given == wanted
        };
        let recent = idle.iter().rev().take(LOOK).take_while(|server| server.meta.idle_since >= check_before);
        let found = recent.map(fits).position(|fits| fits);
        if let Some(behind @ 1..) = found {
            let last = idle.len() - 1;
            idle[last - behind..].rotate_left(1);
        }
    }

    fn take_idle(&self) -> Option<Server> {
        let mut idle = self.idle.borrow_mut();
        let server = idle.pop()?;
        self.limit.show_idle(self.worker, idle.len());
        Some(server)
    }

    /// Queue for a connection since `since`, to be told at `until` that it is time to look again (see [`Pools::expire`]);
    /// those that began earlier are served earlier. `for_room`: or for a place for a new one.
    pub fn wait(self: &Rc<Self>, since: Instant, until: Instant, for_room: bool) -> Wait {
        let slot = Rc::<Slot>::default();
        {
            let mut waiters = self.waiters.borrow_mut();
            let at = waiters.iter().rposition(|w| w.since <= since).map_or(0, |i| i + 1);
            waiters.insert(at, Waiter { since, until, slot: slot.clone() });
        }
        self.limit.count_waiter(true);
        self.show_oldest();
        // Announced first, looked second: who gives back or closes at this moment sees us, or we see it.
        if for_room && self.limit.has_room() {
            self.room();
        } else if let Some(worker) = self.limit.idle_elsewhere(self.worker) {
            (self.ask)(worker, self.key.clone());
        }
        Wait { pool: self.clone(), slot, served: false }
    }

    /// Give a connection back, or one that came from another worker.
    pub fn give(&self, server: Server) {
        if self.doorway.must_close(&self.key.identity.database, server.meta.born) {
            return;
        }
        let Some(server) = self.serve_waiter(server) else { return };
        if self.limit.surplus() {
            return;
        }
        {
            let mut idle = self.idle.borrow_mut();
            idle.push(server);
            self.limit.show_idle(self.worker, idle.len());
        }
        if self.limit.waited_for()
            && let Some(server) = self.take_idle()
            && let Some(server) = self.serve_waiter(server)
        {
            let mut idle = self.idle.borrow_mut();
            idle.push(server);
            self.limit.show_idle(self.worker, idle.len());
        }
    }

    fn serve_waiter(&self, server: Server) -> Option<Server> {
        if !self.limit.waited_for() {
            return Some(server);
        }
        let mine = self.waiters.borrow().front().map(|w| w.since);
        if let Some((worker, since)) = self.limit.oldest_elsewhere(self.worker)
            && mine.is_none_or(|mine| Instant::from_nanos(since) + PATIENCE < mine)
        {
            (self.hand_over)(worker, self.key.clone(), server);
            return None;
        }
        let Some(waiter) = self.next_waiter() else { return Some(server) };
        waiter.slot.give(Offer::Server(server));
        None
    }

    /// Another worker asks: let one idle connection go.
    pub fn asked_by(&self, worker: usize) {
        if let Some(server) = self.take_idle() {
            (self.hand_over)(worker, self.key.clone(), server);
        }
    }

    /// A place has become free: let the first waiter try.
    pub fn room(&self) {
        if let Some(waiter) = self.next_waiter() {
            waiter.slot.give(Offer::TryAgain);
        }
    }

    fn next_waiter(&self) -> Option<Waiter> {
        let waiter = self.waiters.borrow_mut().pop_front()?;
        self.show_oldest();
        Some(waiter)
    }

    /// Who waits looks again where it need not wait.
    fn retry(&self) {
        if self.waiting() == 0 {
            return;
        }
        if self.limit.has_room() {
            self.room();
        } else if let Some(worker) = self.limit.idle_elsewhere(self.worker) {
            (self.ask)(worker, self.key.clone());
        }
    }

    /// Those whose time is over look again. When the next one's will be.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let waiters = self.waiters.borrow();
        waiters.iter().filter(|w| w.until <= now).for_each(|w| w.slot.look_again());
        waiters.iter().map(|w| w.until).filter(|until| *until > now).min()
    }

    fn show_oldest(&self) {
        let oldest = self.waiters.borrow().front().map(|w| w.since.as_nanos());
        self.limit.show_oldest(self.worker, oldest);
    }

    /// Close idle connections that `keep` does not want.
    pub fn retain_idle(&self, keep: impl FnMut(&mut Server) -> bool) {
        let mut gone = Vec::new();
        {
            let (mut idle, mut keep) = (self.idle.borrow_mut(), keep);
            let mut i = 0;
            while i < idle.len() {
                if keep(&mut idle[i]) {
                    i += 1;
                } else {
                    gone.push(idle.remove(i));
                }
            }
            self.limit.show_idle(self.worker, idle.len());
        }
        // Dropped here: freeing a place may wake a waiter of this very pool.
        drop(gone);
    }

    /// Close the connection that has been idle longest.
    pub fn close_oldest(&self) -> bool {
        let server = {
            let mut idle = self.idle.borrow_mut();
            let server = (!idle.is_empty()).then(|| idle.remove(0));
            self.limit.show_idle(self.worker, idle.len());
            server
        };
        // Dropped here: freeing a place may wake a waiter of this very pool.
        server.is_some()
    }

    /// Run `look` for each idle connection.
    pub fn each_idle(&self, mut look: impl FnMut(&Server)) {
        self.idle.borrow().iter().for_each(&mut look);
    }

    /// Idle connections here.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }

    /// Waiters here.
    pub fn waiting(&self) -> usize {
        self.waiters.borrow().len()
    }
}

/// A place in the queue; dropping it leaves the queue.
pub struct Wait {
    pool: Rc<Pool>,
    slot: Rc<Slot>,
    /// Something was given, and taken.
    served: bool,
}

impl Wait {
    /// Wait. Cancel-safe: a connection that was given and not taken goes to the next one with the `Wait`.
    pub async fn offer(&mut self) -> Offer {
        let offer = poll_fn(|cx| self.slot.poll(cx)).await;
        self.served = offer.is_some();
        offer.unwrap_or(Offer::TryAgain)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.pool.limit.count_waiter(false);
        if self.served {
            // Who gave has taken it out of the queue.
            return;
        }
        // What was given at the last moment goes to the next.
        match self.slot.offer.take() {
            Some(Offer::Server(server)) => self.pool.give(server),
            Some(Offer::TryAgain) => self.pool.room(),
            None => self.pool.waiters.borrow_mut().retain(|w| !Rc::ptr_eq(&w.slot, &self.slot)),
        }
        self.pool.show_oldest();
    }
}

/// May a connection of that node, made when it had `role` in `term`, serve under `topology`?
pub fn still_valid(node: &NodeId, role: Role, term: cluster::Term, topology: &Topology) -> bool {
    match role {
        Role::Primary => topology.primary.as_ref().is_some_and(|p| &p.node == node) && topology.term == term,
        Role::Standby => topology.standbys.iter().any(|s| &s.node == node && !s.fenced),
    }
}

/// All pools of one worker.
pub struct Pools {
    worker: usize,
    limits: Arc<Limits>,
    doorway: Rc<Doorway>,
    pools: RefCell<BTreeMap<PoolKey, Rc<Pool>>>,
    hand_over: Rc<dyn Fn(usize, PoolKey, Server)>,
    ask: Rc<dyn Fn(usize, PoolKey)>,
}

impl Pools {
    /// `hand_over` and `ask` reach the other workers.
    pub fn new(
        worker: usize,
        limits: Arc<Limits>,
        doorway: Rc<Doorway>,
        hand_over: Rc<dyn Fn(usize, PoolKey, Server)>,
        ask: Rc<dyn Fn(usize, PoolKey)>,
    ) -> Self {
        Self { worker, limits, doorway, pools: RefCell::default(), hand_over, ask }
    }

    /// The pool of that key.
    pub fn of(&self, node: &NodeId, identity: &Arc<Identity>) -> Rc<Pool> {
        let key = PoolKey { node: node.clone(), identity: identity.clone() };
        let new = |key: &PoolKey| {
            Rc::new(Pool {
                key: key.clone(),
                limit: self.limits.of(key),
                opening: Cell::new(0),
                worker: self.worker,
                doorway: self.doorway.clone(),
                idle: RefCell::default(),
                waiters: RefCell::default(),
                hand_over: self.hand_over.clone(),
                ask: self.ask.clone(),
            })
        };
        let mut pools = self.pools.borrow_mut();
        if let Some(pool) = pools.get(&key) {
            return pool.clone();
        }
        let pool = new(&key);
        pools.insert(key, pool.clone());
        pool
    }

    /// Every pool, in order. A copy of the list, so that pools may change while it is walked.
    pub fn all(&self) -> Vec<Rc<Pool>> {
        self.pools.borrow().values().cloned().collect()
    }

    /// Another pool lacks a connection: let go one of its rivals' that nobody waits for here.
    pub fn evict(&self, for_whom: &PoolKey, rivals: Rivals) {
        let rival = |p: &&Rc<Pool>| p.waiting() == 0 && rivals.has(&p.key, for_whom);
        let _ = self.all().iter().filter(rival).any(|p| p.close_oldest());
    }

    /// What has been decided may be decided otherwise now: who waits looks again, and keeps its place meanwhile.
    pub fn reconsider(&self) {
        let pools = self.pools.borrow();
        pools.values().for_each(|pool| pool.waiters.borrow().iter().for_each(|w| w.slot.look_again()));
    }

    /// Of each pool the first who waits looks again where there is room, and asks where there are connections: the queues
    /// between workers have an end, and what one worker tells another may be lost.
    pub fn retry(&self) {
        self.all().iter().for_each(|pool| pool.retry());
    }

    /// Who has waited until its time is over looks again. When the next one's will be.
    pub fn expire(&self, now: Instant) -> Option<Instant> {
        self.pools.borrow().values().filter_map(|pool| pool.expire(now)).min()
    }

    /// Forget pools that nothing is left of.
    pub fn sweep(&self) {
        let unused = |p: &Rc<Pool>| Rc::strong_count(p) == 1 && p.idle() == 0 && p.waiting() == 0;
        self.pools.borrow_mut().retain(|_, p| !unused(p));
        self.limits.sweep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pools::Pools as Rules;
    use std::pin::pin;

    #[test]
    fn what_another_worker_has_told_in_vain_is_found_again() {
        let asked = Rc::new(Cell::new(0));
        let ask = asked.clone();
        // Nobody is told that there is room.
        let limits = Arc::new(Limits::new(Rules::new(1, Duration::from_secs(30)), 2, Arc::new(|_, _| {})));
        let ask = Rc::new(move |_, _| ask.set(ask.get() + 1));
        let pools = Pools::new(0, limits, Rc::default(), Rc::new(|_, _, _| {}), ask);
        let (database, dbname, user) = ("d".to_owned(), "d".to_owned(), "u".to_owned());
        let identity = Arc::new(Identity { database, dbname, user, parameters: Vec::new() });
        let pool = pools.of(&"n1".parse().unwrap(), &identity);
        let permit = pool.limit.permit(Share::Usual).unwrap();
        let (start, later) = (Instant::from_millis(1), Instant::from_millis(30_000));
        let mut wait = pool.wait(start, later, true);
        let mut offer = pin!(wait.offer());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(offer.as_mut().poll(&mut cx).is_pending());
        pools.retry();
        assert!(offer.as_mut().poll(&mut cx).is_pending(), "there is no room");
        pool.limit.show_idle(1, 1);
        pools.retry();
        assert_eq!((asked.get(), offer.as_mut().poll(&mut cx).is_pending()), (1, true));
        drop(permit);
        assert!(offer.as_mut().poll(&mut cx).is_pending());
        pools.retry();
        assert!(matches!(offer.as_mut().poll(&mut cx), Poll::Ready(Offer::TryAgain)));
    }
}
