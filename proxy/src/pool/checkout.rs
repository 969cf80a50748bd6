//! Taking a server connection and giving it back.

mod slot;

pub use slot::{Offer, Turn};

use crate::pool::backoff::Backoff;
use crate::pool::doors::Doorway;
use crate::pool::{Full, Identity, Limit, Limits, Permit, PoolKey, Rivals, Share};
use crate::session::server::Server;
use crate::session::settings::Shared;
use cluster::topology::Topology;
use cluster::{Instant, NodeId, Role};
use slot::{Look, Slot, Waiter};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
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

/// One worker's part of a pool.
pub struct Pool {
    /// Whose connections these are.
    pub key: PoolKey,
    /// The limit shared with the other workers.
    pub limit: Arc<Limit>,
    /// Connections being made.
    pub opening: Cell<usize>,
    /// When to try again after the server has refused a connection for a limit of this role or database, which says
    /// nothing of the node.
    pub backoff: Cell<Backoff>,
    /// What the server said then.
    pub full: RefCell<Option<Vec<u8>>>,
    worker: usize,
    doorway: Rc<Doorway>,
    idle: RefCell<Vec<Server>>,
    waiters: RefCell<VecDeque<Waiter>>,
    /// Hand a connection over to another worker.
    hand_over: Rc<dyn Fn(usize, PoolKey, Server)>,
    /// Ask another worker for one.
    ask: Rc<dyn Fn(usize, PoolKey)>,
    /// Ask a worker to close an idle connection of a rival.
    ask_to_close: Rc<dyn Fn(usize, PoolKey, Rivals)>,
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

    /// Queue for a connection.
    pub fn wait(self: &Rc<Self>, turn: Turn) -> Wait {
        let slot = Rc::<Slot>::default();
        {
            let mut waiters = self.waiters.borrow_mut();
            let at = waiters.iter().rposition(|w| w.turn.since <= turn.since).map_or(0, |i| i + 1);
            waiters.insert(at, Waiter { turn, slot: slot.clone() });
        }
        self.limit.count_waiter(true, turn.for_room);
        self.show_oldest();
        // Announced first, looked second: who gives back or closes at this moment sees us, or we see it.
        if turn.for_room {
            self.limit.starve();
        }
        self.seek(turn.for_room);
        Wait { pool: self.clone(), slot, for_room: turn.for_room, served: false }
    }

    /// Give a connection back, or one that came from another worker.
    pub fn give(&self, server: Server) {
        if self.doorway.must_close(&self.key.identity.database, server.meta.born) {
            return;
        }
        if self.limit.yields() {
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
        let mine = self.waiters.borrow().front().map(|w| w.turn.since);
        if let Some((worker, since)) = self.limit.oldest_elsewhere(self.worker)
            && mine.is_none_or(|mine| Instant::from_nanos(since) + PATIENCE < mine)
        {
            (self.hand_over)(worker, self.key.clone(), server);
            return None;
        }
        let Some(waiter) = self.take_waiter(0) else { return Some(server) };
        waiter.slot.give(Offer::Server(server));
        None
    }

    /// Another worker asks: let one idle connection go.
    pub fn asked_by(&self, worker: usize) {
        if let Some(server) = self.take_idle() {
            (self.hand_over)(worker, self.key.clone(), server);
        }
    }

    /// A place has become free: let the first try who waits for one.
    pub fn room(&self) {
        let first = if self.limit.lacks() { self.waiters.borrow().iter().position(|w| w.turn.for_room) } else { None };
        if let Some(waiter) = first.and_then(|first| self.take_waiter(first)) {
            waiter.slot.give(Offer::TryAgain);
        }
    }

    fn take_waiter(&self, at: usize) -> Option<Waiter> {
        let waiter = self.waiters.borrow_mut().remove(at)?;
        self.show_oldest();
        Some(waiter)
    }

    /// Who waits looks again where it need not wait.
    fn retry(&self) {
        if self.waiting() == 0 {
            return;
        }
        let for_room = self.oldest_lacking().is_some();
        if for_room {
            self.limit.starve();
        }
        self.seek(for_room);
    }

    /// There may be a place, or a connection that nobody uses: here on another worker, or of those who share the limit,
    /// one of which is then closed.
    fn seek(&self, for_room: bool) {
        if for_room && self.limit.has_room() {
            self.room();
        } else if let Some(worker) = self.limit.idle_elsewhere(self.worker) {
            (self.ask)(worker, self.key.clone());
        } else if for_room && let Some((worker, rivals)) = self.limit.idle_of_rivals() {
            (self.ask_to_close)(worker, self.key.clone(), rivals);
        }
    }

    /// Those whose time is over look again. When the next one's will be.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let waiters = self.waiters.borrow();
        waiters.iter().filter(|w| w.turn.until <= now).for_each(|w| w.slot.look_again(Look::Again));
        waiters.iter().map(|w| w.turn.until).filter(|until| *until > now).min()
    }

    /// What has been decided may be decided otherwise now: who waits looks again, and keeps its place meanwhile.
    pub fn reconsider(&self) {
        self.waiters.borrow().iter().for_each(|w| w.slot.look_again(Look::Again));
    }

    /// There is a newer lag sample: reads look again, without leaving the queue. Nothing else depends on one.
    fn sampled(&self) {
        let waiters = self.waiters.borrow();
        waiters.iter().filter(|w| w.turn.reads).for_each(|w| w.slot.look_again(Look::Sample));
    }

    fn show_oldest(&self) {
        let oldest = self.waiters.borrow().front().map(|w| w.turn.since.as_nanos());
        self.limit.show_oldest(self.worker, oldest, self.oldest_lacking());
    }

    /// Since when somebody waits here for a place. Where nobody does, those who wait for something else may be many.
    fn oldest_lacking(&self) -> Option<u64> {
        if !self.limit.lacks() {
            return None;
        }
        self.waiters.borrow().iter().find(|w| w.turn.for_room).map(|w| w.turn.since.as_nanos())
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
    /// It waits for a place, too.
    for_room: bool,
    /// Something was given, and taken.
    served: bool,
}

impl Wait {
    /// Wait. Cancel-safe: a connection that was given and not taken goes to the next one with the `Wait`.
    pub async fn offer(&mut self) -> Offer {
        match poll_fn(|cx| self.slot.poll(cx)).await {
            Ok(offer) => {
                self.served = true;
                offer
            }
            Err(Look::Sample) => Offer::Sampled,
            Err(Look::Again | Look::No) => Offer::TryAgain,
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.pool.limit.count_waiter(false, self.for_room);
        if self.served {
            // Who gave has taken it out of the queue.
            return;
        }
        // What was given at the last moment goes to the next.
        match self.slot.offer.take() {
            Some(Offer::Server(server)) => self.pool.give(server),
            Some(Offer::TryAgain | Offer::Sampled) => self.pool.room(),
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
    /// Which pool's waiters look again first.
    first: Cell<usize>,
    hand_over: Rc<dyn Fn(usize, PoolKey, Server)>,
    ask: Rc<dyn Fn(usize, PoolKey)>,
    ask_to_close: Rc<dyn Fn(usize, PoolKey, Rivals)>,
}

impl Pools {
    /// `hand_over` and `ask` reach the other workers, `ask_to_close` this one too.
    pub fn new(
        worker: usize,
        limits: Arc<Limits>,
        doorway: Rc<Doorway>,
        hand_over: Rc<dyn Fn(usize, PoolKey, Server)>,
        ask: Rc<dyn Fn(usize, PoolKey)>,
        ask_to_close: Rc<dyn Fn(usize, PoolKey, Rivals)>,
    ) -> Self {
        let (pools, first) = (RefCell::default(), Cell::default());
        Self { worker, limits, doorway, pools, first, hand_over, ask, ask_to_close }
    }

    /// The pool of that key.
    pub fn of(&self, node: &NodeId, identity: &Arc<Identity>) -> Rc<Pool> {
        let key = PoolKey { node: node.clone(), identity: identity.clone() };
        let new = |key: &PoolKey| {
            Rc::new(Pool {
                key: key.clone(),
                limit: self.limits.of(key),
                opening: Cell::new(0),
                backoff: Cell::default(),
                full: RefCell::default(),
                worker: self.worker,
                doorway: self.doorway.clone(),
                idle: RefCell::default(),
                waiters: RefCell::default(),
                hand_over: self.hand_over.clone(),
                ask: self.ask.clone(),
                ask_to_close: self.ask_to_close.clone(),
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
        self.in_turn().iter().for_each(|pool| pool.reconsider());
    }

    /// There is a newer lag sample: reads that wait look again.
    pub fn sampled(&self) {
        self.pools.borrow().values().for_each(|pool| pool.sampled());
    }

    /// Every pool that somebody waits for, beginning with another one each time: who looks first makes the one attempt to
    /// connect that a node gets in a while, and takes the place that has become free there.
    fn in_turn(&self) -> Vec<Rc<Pool>> {
        let mut pools: Vec<_> = self.pools.borrow().values().filter(|pool| pool.waiting() > 0).cloned().collect();
        let first = self.first.replace(self.first.get().wrapping_add(1));
        let n = pools.len().max(1);
        pools.rotate_left(first % n);
        pools
    }

    /// Of each pool the first who waits looks again where there is room, and asks where there are connections: the queues
    /// between workers have an end, and what one worker tells another may be lost.
    pub fn retry(&self) {
        self.all().iter().for_each(|pool| pool.retry());
    }

    /// Who has waited until its time is over looks again. When the next one's will be.
    pub fn expire(&self, now: Instant) -> Option<Instant> {
        self.in_turn().iter().filter_map(|pool| pool.expire(now)).min()
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
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn pools(workers: usize, ask: Rc<dyn Fn(usize, PoolKey)>) -> Pools {
        // Nobody is told that there is room.
        let limits = Arc::new(Limits::new(Rules::new(1, Duration::from_secs(30)), workers, Arc::new(|_, _| {})));
        Pools::new(0, limits, Rc::default(), Rc::new(|_, _, _| {}), ask, Rc::new(|_, _, _| {}))
    }

    fn pool(pools: &Pools, user: &str) -> Rc<Pool> {
        pool_with(pools, user, Vec::new())
    }

    fn pool_with(pools: &Pools, user: &str, parameters: Vec<(String, String)>) -> Rc<Pool> {
        let (database, dbname, user) = ("d".to_owned(), "d".to_owned(), user.to_owned());
        pools.of(&"n1".parse().unwrap(), &Arc::new(Identity { database, dbname, user, parameters }))
    }

    fn turn(since: u64, reads: bool) -> Turn {
        Turn { since: Instant::from_millis(since), until: Instant::from_millis(30_000), for_room: true, reads }
    }

    /// What a waiter is told, if it is told anything.
    fn told(offer: Pin<&mut impl Future<Output = Offer>>) -> Option<&'static str> {
        match offer.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => None,
            Poll::Ready(Offer::Server(_)) => Some("a server"),
            Poll::Ready(Offer::TryAgain) => Some("try again"),
            Poll::Ready(Offer::Sampled) => Some("a sample"),
        }
    }

    #[test]
    fn what_another_worker_has_told_in_vain_is_found_again() {
        let asked = Rc::new(Cell::new(0));
        let ask = asked.clone();
        let pools = pools(2, Rc::new(move |_, _| ask.set(ask.get() + 1)));
        let pool = pool(&pools, "u");
        let permit = pool.limit.permit(Share::Usual).unwrap();
        let mut wait = pool.wait(turn(1, false));
        let mut offer = pin!(wait.offer());
        assert_eq!(told(offer.as_mut()), None);
        pools.retry();
        assert_eq!(told(offer.as_mut()), None, "there is no room");
        pool.limit.show_idle(1, 1);
        pools.retry();
        assert_eq!((asked.get(), told(offer.as_mut())), (1, None));
        drop(permit);
        assert_eq!(told(offer.as_mut()), None);
        pools.retry();
        assert_eq!(told(offer.as_mut()), Some("try again"));
    }

    #[test]
    fn who_waits_beside_an_idle_connection_of_its_kin_asks_again_for_it_to_be_closed() {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let log = asked.clone();
        let mut pools = pools(2, Rc::new(|_, _| {}));
        pools.ask_to_close = Rc::new(move |worker, _, rivals| log.borrow_mut().push((worker, rivals)));
        let (a, b) = (pool(&pools, "u"), pool_with(&pools, "u", vec![("TimeZone".into(), "UTC".into())]));
        let permit = a.limit.permit(Share::Usual).unwrap();
        let mut wait = b.wait(turn(1, false));
        pools.retry();
        assert_eq!(*asked.borrow(), [], "it is in use");
        // It was given back at the very moment at which nobody seemed to wait.
        a.limit.show_idle(1, 1);
        for _ in 0..2 {
            pools.retry();
            assert_eq!(asked.take(), [(1, Rivals::Kin)]);
        }
        a.limit.show_idle(1, 0);
        drop(permit);
        pools.retry();
        assert_eq!((asked.take().len(), told(pin!(wait.offer()))), (0, Some("try again")));
    }

    #[test]
    fn a_sample_is_told_to_reads_which_keep_their_place() {
        let pools = pools(1, Rc::new(|_, _| {}));
        let pool = pool(&pools, "u");
        let _permit = pool.limit.permit(Share::Usual).unwrap();
        let (mut write, mut read) = (pool.wait(turn(1, false)), pool.wait(turn(2, true)));
        pools.sampled();
        assert_eq!((told(pin!(write.offer())), told(pin!(read.offer()))), (None, Some("a sample")));
        assert_eq!(told(pin!(read.offer())), None);
        // What concerns everybody is told to those as well who have not seen the sample yet.
        pools.sampled();
        pools.reconsider();
        assert_eq!((told(pin!(write.offer())), told(pin!(read.offer()))), (Some("try again"), Some("try again")));
        assert_eq!(pool.waiting(), 2);
        pool.room();
        assert_eq!((told(pin!(write.offer())), told(pin!(read.offer()))), (Some("try again"), None));
        pool.room();
        assert_eq!(told(pin!(read.offer())), Some("try again"));
    }

    #[test]
    fn no_pool_is_always_the_first_to_look_again() {
        let pools = pools(1, Rc::new(|_, _| {}));
        let of: Vec<_> = ["a", "b", "c"].map(|user| pool(&pools, user)).into();
        let _permits: Vec<_> = of.iter().map(|pool| pool.limit.permit(Share::Usual).unwrap()).collect();
        let _waits: Vec<_> = of.iter().map(|pool| pool.wait(turn(1, false))).collect();
        let firsts: std::collections::BTreeSet<_> =
            (0..3).map(|_| pools.in_turn()[0].key.identity.user.clone()).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn who_waits_for_no_place_takes_none_of_another_pool() {
        let pools = pools(1, Rc::new(|_, _| {}));
        let (a, b) = (pool(&pools, "u"), pool_with(&pools, "u", vec![("TimeZone".into(), "UTC".into())]));
        let permit = b.limit.permit(Share::Usual).unwrap();
        // The server has refused it a connection: until it may try again, one that is given back is all it waits for.
        let mut pausing = a.wait(Turn { for_room: false, ..turn(1, false) });
        pools.retry();
        assert!(!b.limit.yields(), "it would make no use of the place");
        drop(permit);
        pools.retry();
        assert_eq!(told(pin!(pausing.offer())), None);
        // Whoever waits behind it for a place is told of one.
        let permit = b.limit.permit(Share::Usual).unwrap();
        let mut lacking = a.wait(turn(2, false));
        assert!(b.limit.yields());
        drop(permit);
        a.room();
        assert_eq!((told(pin!(pausing.offer())), told(pin!(lacking.offer()))), (None, Some("try again")));
        drop(lacking);
        assert_eq!((a.waiting(), a.limit.waiting(), a.limit.lacks()), (1, 1, false));
        drop(pausing);
        assert_eq!((a.waiting(), a.limit.waiting()), (0, 0));
    }
}
