//! How many server connections pools may have in all workers together, and who waits for one.
//!
//! The pools of one database and user are kin: their sessions began with different startup parameters, which the client
//! chooses, so one size holds for all of them. Those of one database share its limit, where it has one, and so do those of
//! one user.

mod rivals;

pub use rivals::Rivals;

use crate::config::pools::Pools as Rules;
use crate::pool::policy::{self, PoolPolicy};
use crate::pool::{PoolKey, Scope};
use cluster::{Instant, NodeId};
use rivals::Group;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// What one worker shows the others of its pool. Apart in memory: each is written by its own worker only.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    /// Idle connections.
    idle: AtomicUsize,
    /// When its oldest waiter began to wait, nanoseconds since boot; 0 when none waits.
    oldest: AtomicU64,
    /// The same of those who wait for a place, too.
    lacking: AtomicU64,
}

/// Tells a worker that a place in a pool has become free.
pub type Wake = Arc<dyn Fn(usize, &PoolKey) + Send + Sync>;

/// Of what share of its pool a connection is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Of the pool's size.
    Usual,
    /// Of the reserve too.
    Reserve,
    /// Only while the pool has fewer than it is to keep open.
    Minimum,
}

/// Why there is no place for one more connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The pool has its size, or its reserve too.
    Pool {
        /// Connections allowed.
        limit: usize,
    },
    /// `max_db_connections`.
    Database {
        /// Connections allowed.
        limit: usize,
    },
    /// `max_user_connections`.
    User {
        /// Connections allowed.
        limit: usize,
    },
}

/// The shared state of one pool.
pub struct Limit {
    key: PoolKey,
    open: AtomicUsize,
    waiting: AtomicUsize,
    /// How many of them wait for a place, too: the others would make no use of one at present.
    lacking: AtomicUsize,
    /// A pool that the server refuses a connection has asked for one of these.
    claimed: AtomicBool,
    /// On connections made up to then the right to ask for marks of COMMITs was found revoked, nanoseconds since boot.
    unmarked: AtomicU64,
    lanes: Box<[Lane]>,
    /// The pools of its database and user.
    kin: Arc<Group>,
    /// The pools of its database.
    database: Arc<Group>,
    /// The pools of its user.
    user: Arc<Group>,
    /// Told when a connection is closed; shared by all.
    closed: Arc<Notify>,
    /// Called with a worker's index when a place has become free and somebody waits there.
    wake: Wake,
}

impl std::fmt::Debug for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limit").field("key", &self.key).field("size", &self.size()).field("open", &self.open).finish()
    }
}

fn take(count: &AtomicUsize, most: usize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < most).then_some(n + 1)).is_ok()
}

impl Limit {
    /// A place for one more connection.
    ///
    /// # Errors
    /// Why there is none.
    pub fn permit(self: &Arc<Self>, share: Share) -> Result<Permit, Full> {
        let (of_database, of_user) = (self.database.most(Share::Usual), self.user.most(Share::Usual));
        let limit = self.kin.most(share);
        // As below, but without a place taken and given back, of which others would be told.
        if self.database.open.load(Ordering::SeqCst) < of_database {
            if self.user.open.load(Ordering::SeqCst) >= of_user {
                return Err(Full::User { limit: of_user });
            }
            if self.kin.open.load(Ordering::SeqCst) >= limit {
                return Err(Full::Pool { limit });
            }
        }
        if !take(&self.database.open, of_database) {
            return Err(Full::Database { limit: of_database });
        }
        if !take(&self.user.open, of_user) {
            self.database.close();
            return Err(Full::User { limit: of_user });
        }
        if take(&self.kin.open, limit) {
            self.open.fetch_add(1, Ordering::SeqCst);
            return Ok(Permit(Some(self.clone())));
        }
        self.database.close();
        self.user.close();
        Err(Full::Pool { limit })
    }

    fn obey(&self, policy: &PoolPolicy) {
        self.kin.size.store(policy.size, Ordering::SeqCst);
        self.kin.reserve.store(policy.reserve, Ordering::SeqCst);
        self.kin.min.store(policy.min, Ordering::SeqCst);
        self.database.size.store(policy.max_db.unwrap_or(usize::MAX), Ordering::SeqCst);
        self.user.size.store(policy.max_user.unwrap_or(usize::MAX), Ordering::SeqCst);
    }

    /// Most connections allowed, those of its kin included, without the reserve.
    pub fn size(&self) -> usize {
        self.kin.size.load(Ordering::SeqCst)
    }

    /// Connections that the pool and its kin are to keep open.
    pub fn min(&self) -> usize {
        self.kin.min.load(Ordering::SeqCst)
    }

    /// Is there a reserve?
    pub fn has_reserve(&self) -> bool {
        self.kin.reserve.load(Ordering::SeqCst) > 0
    }

    /// Connections open or being opened, in all workers.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The same, those of its kin included.
    pub fn open_of_kin(&self) -> usize {
        self.kin.open.load(Ordering::Relaxed)
    }

    /// Could one more be opened?
    pub fn has_room(&self) -> bool {
        self.groups().into_iter().all(Group::has_room)
    }

    /// How many wait, in all workers.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Does anybody wait, in any worker?
    pub fn waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Does anybody wait for a place, in any worker?
    pub fn lacks(&self) -> bool {
        self.lacking.load(Ordering::SeqCst) > 0
    }

    /// One more waits, or one less. `for_room`: for a place, too.
    pub fn count_waiter(&self, one_more: bool, for_room: bool) {
        let count = |waiting: &AtomicUsize| {
            if one_more {
                waiting.fetch_add(1, Ordering::SeqCst);
            } else {
                waiting.fetch_sub(1, Ordering::SeqCst);
            }
        };
        count(&self.waiting);
        if for_room {
            count(&self.lacking);
            self.groups().into_iter().for_each(|group| count(&group.waiting));
        }
    }

    /// Show this worker's number of idle connections.
    pub fn show_idle(&self, worker: usize, idle: usize) {
        self.lanes[worker].idle.store(idle, Ordering::SeqCst);
    }

    /// Show since when this worker's oldest waiter waits, and the oldest of those who wait for a place.
    pub fn show_oldest(&self, worker: usize, oldest: Option<u64>, lacking: Option<u64>) {
        let show = |shown: &AtomicU64, nanos: Option<u64>| shown.store(nanos.map_or(0, |n| n.max(1)), Ordering::SeqCst);
        show(&self.lanes[worker].oldest, oldest);
        show(&self.lanes[worker].lacking, lacking);
        if let Some(nanos) = lacking {
            self.groups().into_iter().for_each(|group| group.waits_since(nanos));
        }
    }

    /// The other worker whose oldest waiter waits longest, and since when.
    pub fn oldest_elsewhere(&self, worker: usize) -> Option<(usize, u64)> {
        let others = self.lanes.iter().enumerate().filter(|(i, _)| *i != worker);
        let waits = others.map(|(i, lane)| (i, lane.oldest.load(Ordering::SeqCst))).filter(|(_, since)| *since > 0);
        waits.min_by_key(|(_, since)| *since)
    }

    /// Another worker that has idle connections.
    pub fn idle_elsewhere(&self, worker: usize) -> Option<usize> {
        (0..self.lanes.len()).find(|&i| i != worker && self.lanes[i].idle.load(Ordering::SeqCst) > 0)
    }

    /// A connection was refused the mark of a COMMIT: on those that exist nobody asks for one any more. What is made later
    /// says at its login whether it may be asked.
    pub fn refuse_marks(&self, now: Instant) {
        self.unmarked.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    /// May a connection that was made at `born` still be asked for marks?
    pub fn lets_mark(&self, born: Instant) -> bool {
        born.as_nanos() > self.unmarked.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.claimed.store(false, Ordering::SeqCst);
        if !self.kin.close() {
            self.wake_oldest();
        }
        self.database.close();
        self.user.close();
        self.closed.notify_waiters();
    }

    /// Those that it has a limit together with.
    fn groups(&self) -> [&Group; 3] {
        [&self.kin, &self.database, &self.user]
    }

    /// Since when somebody waits here, for whatever it is.
    fn oldest(&self) -> Option<u64> {
        if !self.waited_for() {
            return None;
        }
        self.lanes.iter().map(|lane| lane.oldest.load(Ordering::SeqCst)).filter(|since| *since > 0).min()
    }

    /// The worker where a place is waited for longest, and since when.
    fn lacks_longest(&self) -> Option<(usize, u64)> {
        if !self.lacks() {
            return None;
        }
        let waits = self.lanes.iter().enumerate().map(|(i, lane)| (i, lane.lacking.load(Ordering::SeqCst)));
        waits.filter(|(_, since)| *since > 0).min_by_key(|(_, since)| *since)
    }

    fn wake_oldest(&self) {
        if let Some((worker, _)) = self.lacks_longest() {
            (self.wake)(worker, &self.key);
        }
    }
}

/// A place in a pool; dropping it frees the place and wakes who waits longest.
#[derive(Debug)]
pub struct Permit(Option<Arc<Limit>>);

impl Permit {
    /// For a connection that no limit holds for.
    pub const fn beyond() -> Self {
        Self(None)
    }

    /// Free the place without waking anybody of its pool, where nobody can make use of it at present.
    pub fn forgo(mut self) {
        if let Some(limit) = self.0.take() {
            limit.open.fetch_sub(1, Ordering::SeqCst);
            let others = limit.groups().map(|group| group.forgo(&limit)).into_iter().flatten();
            if let Some((_, pool)) = others.filter(|(_, pool)| pool.has_room()).min_by_key(|(since, _)| *since) {
                pool.wake_oldest();
            }
            limit.closed.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(limit) = self.0.take() {
            limit.close();
        }
    }
}

/// The limits of all pools of the process. Locked when a worker sees a pool for the first time, and to be shown.
pub struct Limits {
    known: Mutex<Known>,
    workers: usize,
    wake: Wake,
    /// Told when a server connection has been closed.
    pub closed: Arc<Notify>,
}

struct Known {
    rules: Rules,
    pools: HashMap<PoolKey, Arc<Limit>>,
    databases: HashMap<(NodeId, String), Arc<Group>>,
    users: HashMap<(NodeId, String), Arc<Group>>,
    /// By database and user. Replication connections, which no pool keeps, count for themselves.
    kin: HashMap<(NodeId, String, String, bool), Arc<Group>>,
}

impl Limits {
    /// `wake` is called from any worker.
    pub fn new(rules: Rules, workers: usize, wake: Wake) -> Self {
        let (pools, databases, users, kin) = Default::default();
        let known = Known { rules, pools, databases, users, kin };
        Self { known: Mutex::new(known), workers, wake, closed: Arc::default() }
    }

    /// The limit of that pool.
    pub fn of(&self, key: &PoolKey) -> Arc<Limit> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limit) = known.pools.get(key) {
            return limit.clone();
        }
        let (node, of) = (&key.node, &key.identity);
        let database = known.databases.entry((node.clone(), of.database.clone())).or_default().clone();
        let user = known.users.entry((node.clone(), of.user.clone())).or_default().clone();
        let kin = (node.clone(), of.database.clone(), of.user.clone(), of.is_replication());
        let kin = known.kin.entry(kin).or_default().clone();
        let limit = Arc::new(Limit {
            key: key.clone(),
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            lacking: AtomicUsize::new(0),
            claimed: AtomicBool::new(false),
            unmarked: AtomicU64::new(0),
            lanes: (0..self.workers).map(|_| Lane::default()).collect(),
            kin,
            database,
            user,
            closed: self.closed.clone(),
            wake: self.wake.clone(),
        });
        limit.obey(&policy::resolve(&known.rules, &of.database, &of.user));
        limit.groups().into_iter().for_each(|group| group.add(&limit));
        known.pools.insert(key.clone(), limit.clone());
        limit
    }

    /// The rules have changed.
    pub fn obey(&self, rules: &Rules) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.rules == *rules {
            return;
        }
        known.rules = rules.clone();
        for limit in known.pools.values() {
            limit.obey(&policy::resolve(rules, &limit.key.identity.database, &limit.key.identity.user));
        }
    }

    /// Server connections open or being opened to the databases meant.
    pub fn open(&self, scope: &Scope) -> usize {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.pools.values().filter(|l| scope.covers(&l.key.identity.database)).map(|l| l.open()).sum()
    }

    /// Forget pools that no worker has any more.
    pub fn sweep(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.pools.len();
        known.pools.retain(|_, limit| Arc::strong_count(limit) > 1);
        if known.pools.len() == before {
            return;
        }
        known.databases.retain(|_, database| Arc::strong_count(database) > 1);
        known.users.retain(|_, user| Arc::strong_count(user) > 1);
        known.kin.retain(|_, kin| Arc::strong_count(kin) > 1);
        let groups = known.databases.values().chain(known.users.values()).chain(known.kin.values());
        groups.for_each(|group| group.sweep());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Identity;
    use std::time::Duration;

    pub(super) struct Setup {
        pub(super) limits: Limits,
        woken: Arc<Mutex<Vec<(String, usize)>>>,
    }

    pub(super) fn setup(change: impl FnOnce(&mut Rules)) -> Setup {
        let woken = Arc::new(Mutex::new(Vec::new()));
        let log = woken.clone();
        let mut rules = Rules::new(1, Duration::from_secs(30));
        change(&mut rules);
        let wake = move |worker, key: &PoolKey| log.lock().unwrap().push((key.identity.user.clone(), worker));
        Setup { limits: Limits::new(rules, 3, Arc::new(wake)), woken }
    }

    impl Setup {
        pub(super) fn of(&self, user: &str) -> Arc<Limit> {
            self.with(user, &[])
        }

        /// The pool of that user in another database.
        pub(super) fn at(&self, database: &str, user: &str) -> Arc<Limit> {
            let (dbname, parameters) = (database.to_owned(), Vec::new());
            let identity = Identity { database: database.to_owned(), dbname, user: user.into(), parameters };
            self.limits.of(&PoolKey { node: "n1".parse().unwrap(), identity: Arc::new(identity) })
        }

        /// Other rules than those of `setup` hold now.
        pub(super) fn obey(&self, change: impl FnOnce(&mut Rules)) {
            let mut rules = Rules::new(5, Duration::from_secs(30));
            change(&mut rules);
            self.limits.obey(&rules);
        }

        /// The pool of those who begin with these parameters.
        pub(super) fn with(&self, user: &str, parameters: &[(&str, &str)]) -> Arc<Limit> {
            let (database, dbname) = ("d".to_owned(), "d".to_owned());
            let parameters = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            let identity = Identity { database, dbname, user: user.into(), parameters };
            self.limits.of(&PoolKey { node: "n1".parse().unwrap(), identity: Arc::new(identity) })
        }

        pub(super) fn woken(&self) -> String {
            let woken = std::mem::take(&mut *self.woken.lock().unwrap());
            woken.iter().map(|(user, worker)| format!("{user}@{worker}")).collect::<Vec<_>>().join(" ")
        }
    }

    pub(super) fn waits(limit: &Limit, worker: usize, since: u64) {
        limit.count_waiter(true, true);
        limit.show_oldest(worker, Some(since), Some(since));
    }

    #[test]
    fn a_freed_place_wakes_who_waits_longest() {
        let s = setup(|_| {});
        let limit = s.of("u");
        let permit = limit.permit(Share::Usual).unwrap();
        assert_eq!(limit.permit(Share::Usual).unwrap_err(), Full::Pool { limit: 1 });
        assert!(!limit.has_room());
        waits(&limit, 0, 30);
        waits(&limit, 2, 20);
        assert_eq!(limit.oldest_elsewhere(2), Some((0, 30)));
        drop(permit);
        assert_eq!(s.woken(), "u@2");
        s.of("u").permit(Share::Usual).unwrap().forgo();
        assert_eq!((s.woken(), limit.open()), (String::new(), 0));
    }

    #[test]
    fn the_reserve_comes_after_the_size_and_the_minimum_before() {
        let s = setup(|rules| {
            rules.pool_size = 2;
            rules.defaults.reserve_pool_size = 1;
            rules.defaults.min_pool_size = 1;
        });
        let limit = s.of("u");
        let _first = limit.permit(Share::Minimum).unwrap();
        assert_eq!(limit.permit(Share::Minimum).unwrap_err(), Full::Pool { limit: 1 });
        let _second = limit.permit(Share::Usual).unwrap();
        assert_eq!(limit.permit(Share::Usual).unwrap_err(), Full::Pool { limit: 2 });
        assert!(!limit.surplus());
        let third = limit.permit(Share::Reserve).unwrap();
        assert!(limit.surplus(), "what is of the reserve is closed when nobody waits");
        assert_eq!(limit.permit(Share::Reserve).unwrap_err(), Full::Pool { limit: 3 });
        drop(third);
        assert_eq!((limit.open(), s.limits.open(&Scope::All)), (2, 2));
        assert_eq!(s.limits.open(&Scope::Database("other".into())), 0);
    }

    #[test]
    fn new_rules_hold_for_pools_that_exist() {
        let s = setup(|_| {});
        let limit = s.of("u");
        let _permit = limit.permit(Share::Usual).unwrap();
        s.limits.obey(&Rules::new(2, Duration::from_secs(30)));
        let second = limit.permit(Share::Usual).unwrap();
        s.limits.obey(&Rules::new(1, Duration::from_secs(30)));
        assert!(limit.surplus());
        drop(second);
        assert!(!limit.surplus());
    }
}
