//! Who of the pools that share a limit gives way to whom: those of one database and user, those of one database, those of one
//! user, and those that a server counts together.
//!
//! A connection cannot be given to another pool: one is closed, and another made. So a pool gives way only to somebody who
//! has waited longer there by a margin, and where nobody waits but in one of them, none of the others is looked at.

use super::{Limit, Share};
use crate::pool::PoolKey;
use cluster::Instant;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// A connection that is given back goes to another pool of its group when somebody has waited there this much longer: it
/// cannot be given, one is closed and another made.
const YIELD: Duration = Duration::from_millis(200);

/// Which other pools' connections count against a limit that a pool has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rivals {
    /// Those of its database and user whose sessions began with other parameters: `pool_size`.
    Kin,
    /// Those of its database, as clients name it: `max_db_connections`.
    Database,
    /// Those of its user: `max_user_connections`, or the server's `CONNECTION LIMIT` of a role.
    User,
    /// Those of its database at the server: that of a database.
    ServerDatabase,
    /// All at the server: `max_connections`.
    Server,
}

impl Rivals {
    /// Which limit it was that a server refused a connection for, by the routine that its error names: unlike the
    /// message that is not translated.
    pub fn of_refusal(routine: &[u8]) -> Self {
        match routine {
            b"InitializeSessionUserId" => Self::User,
            b"CheckMyDatabase" => Self::ServerDatabase,
            // Several name the last one.
            _ => Self::Server,
        }
    }

    /// Is `other` one of them?
    pub fn has(self, other: &PoolKey, key: &PoolKey) -> bool {
        let (theirs, ours) = (&other.identity, &key.identity);
        let shares = match self {
            Self::Kin => {
                theirs.database == ours.database
                    && theirs.user == ours.user
                    && theirs.is_replication() == ours.is_replication()
            }
            Self::Database => theirs.database == ours.database,
            Self::User => theirs.user == ours.user,
            Self::ServerDatabase => theirs.dbname == ours.dbname,
            Self::Server => true,
        };
        shares && other.node == key.node && other != key
    }
}

/// Pools of one node that have a limit together.
#[derive(Default)]
pub(super) struct Group {
    pub(super) size: AtomicUsize,
    pub(super) reserve: AtomicUsize,
    pub(super) min: AtomicUsize,
    pub(super) open: AtomicUsize,
    /// How many wait for a place in all of its pools.
    pub(super) waiting: AtomicUsize,
    /// It has more than one pool: a single one owes nothing to others.
    several: AtomicBool,
    /// Somebody waits in one of the pools because all of them have too many.
    starved: AtomicBool,
    /// Nobody in them began to wait before this, nanoseconds since boot. It is put right whenever they are looked at.
    earliest: AtomicU64,
    pools: Mutex<Vec<Weak<Limit>>>,
}

impl Limit {
    /// Somebody waits here: those who give connections back to pools of a group that has no place left see it, and may
    /// close them instead.
    pub fn starve(&self) {
        // The widest limit that is met comes last: a place in that would be of no use where a narrower one is met.
        let full = self.groups().into_iter().find(|group| !group.has_room());
        if let Some(group) = full.filter(|group| group.several.load(Ordering::SeqCst)) {
            group.starved.store(true, Ordering::SeqCst);
        }
    }

    /// Is a connection that is given back here to be closed, because somebody waits longer for its place in another pool?
    pub fn yields(self: &Arc<Self>) -> bool {
        self.groups().into_iter().any(|group| {
            if !group.starved.load(Ordering::SeqCst) {
                return false;
            }
            let own = self.oldest();
            let longer = |since| own.is_none_or(|own| Instant::from_nanos(since) + YIELD < Instant::from_nanos(own));
            // While nobody waits but here, or nobody so much longer, a connection is given back without the group's lock:
            // many wait where many are given back.
            let others = group.waiting.load(Ordering::SeqCst) > self.lacking.load(Ordering::SeqCst);
            if others && !longer(group.earliest.load(Ordering::SeqCst)) {
                return false;
            }
            let longest = if others { group.waits_longest(Some(self)) } else { None };
            if let Some((since, _)) = longest {
                return longer(since);
            }
            if !self.lacks() {
                // Who begins to wait says so again.
                group.starved.store(false, Ordering::SeqCst);
            }
            false
        })
    }

    /// The server takes no more connections: of each rival of this database one that is given back is closed, where
    /// nobody waits for it. Those of other databases are only asked for idle ones.
    pub fn claim(&self, rivals: Rivals) {
        let pools = self.database.pools.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let rivals = pools.iter().filter_map(Weak::upgrade).filter(|limit| rivals.has(&limit.key, &self.key));
        rivals.for_each(|limit| limit.claimed.store(true, Ordering::SeqCst));
    }

    /// Is a connection that nobody waits for to be closed: because it is beyond the size, or a server refuses another pool one?
    pub fn surplus(&self) -> bool {
        self.kin.open.load(Ordering::SeqCst) > self.size()
            || self.database.open.load(Ordering::SeqCst) > self.database.most(Share::Usual)
            || self.user.open.load(Ordering::SeqCst) > self.user.most(Share::Usual)
            || (self.claimed.load(Ordering::SeqCst) && !self.waited_for())
    }

    /// While there is no place: a worker with an idle connection of another pool that has a limit together with this one,
    /// and which pools these are. As many as wait are led to as many connections.
    pub fn idle_of_rivals(&self) -> Option<(usize, Rivals)> {
        let (group, rivals) = if !self.kin.has_room() {
            (&self.kin, Rivals::Kin)
        } else if !self.database.has_room() {
            (&self.database, Rivals::Database)
        } else if !self.user.has_room() {
            (&self.user, Rivals::User)
        } else {
            return None;
        };
        if group.open.load(Ordering::SeqCst) <= self.open.load(Ordering::SeqCst) {
            return None;
        }
        Some((group.idle_but_of(self, self.waiting().saturating_sub(1))?, rivals))
    }
}

impl Group {
    pub(super) fn most(&self, share: Share) -> usize {
        let size = self.size.load(Ordering::SeqCst);
        match share {
            Share::Usual => size,
            Share::Reserve => size + self.reserve.load(Ordering::SeqCst),
            Share::Minimum => self.min.load(Ordering::SeqCst).min(size),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.load(Ordering::SeqCst) < self.most(Share::Usual)
    }

    pub(super) fn add(&self, limit: &Arc<Limit>) {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(limit));
        self.sweep();
    }

    /// Forget pools that are gone.
    pub(super) fn sweep(&self) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        self.several.store(pools.len() > 1, Ordering::SeqCst);
    }

    /// Somebody in one of the pools waits since then.
    pub(super) fn waits_since(&self, nanos: u64) {
        // Mostly others wait for longer, and it is only read.
        if nanos < self.earliest.load(Ordering::SeqCst) {
            self.earliest.fetch_min(nanos, Ordering::SeqCst);
        }
    }

    /// The pool where a place is waited for longest, but for one, and since when.
    fn waits_longest(&self, but: Option<&Arc<Limit>>) -> Option<(u64, Arc<Limit>)> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        // Reset first, looked second: who begins to wait at this moment is seen, or says so after it.
        self.earliest.store(u64::MAX, Ordering::SeqCst);
        let waits = |pool: Arc<Limit>| Some((pool.lacks_longest()?.1, pool));
        let waits: Vec<_> = pools.iter().filter_map(Weak::upgrade).filter_map(waits).collect();
        waits.iter().for_each(|(since, _)| self.waits_since(*since));
        let others = waits.into_iter().filter(|(_, pool)| but.is_none_or(|but| !Arc::ptr_eq(pool, but)));
        others.min_by_key(|(since, _)| *since)
    }

    /// The worker of the nth idle connection, counted round and round, of pools that nobody waits for, but for one.
    fn idle_but_of(&self, but: &Limit, nth: usize) -> Option<usize> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle = vec![0; but.lanes.len()];
        let others = pools.iter().filter_map(Weak::upgrade).filter(|p| !std::ptr::eq(Arc::as_ptr(p), but));
        for pool in others.filter(|p| !p.waited_for()) {
            idle.iter_mut().zip(&pool.lanes).for_each(|(idle, lane)| *idle += lane.idle.load(Ordering::SeqCst));
        }
        let mut nth = nth.checked_rem(idle.iter().sum())?;
        idle.iter().position(|&idle| {
            let here = nth < idle;
            nth = nth.saturating_sub(idle);
            here
        })
    }

    /// A place is free that is of no use to the pool which had taken it. Whose it is now, where there was none before, and
    /// since when it waits.
    pub(super) fn forgo(&self, by: &Arc<Limit>) -> Option<(u64, Arc<Limit>)> {
        let met = self.open.fetch_sub(1, Ordering::SeqCst) >= self.most(Share::Usual);
        let others = self.waiting.load(Ordering::SeqCst) > by.lacking.load(Ordering::SeqCst);
        if met && others { self.waits_longest(Some(by)) } else { None }
    }

    /// A place is free. Was it told to who waits longest, because there was none before?
    pub(super) fn close(&self) -> bool {
        self.open.fetch_sub(1, Ordering::SeqCst);
        if !self.starved.swap(false, Ordering::SeqCst) {
            return false;
        }
        let longest = self.waits_longest(None);
        if self.waiting.load(Ordering::SeqCst) > 1 {
            // One place is not enough, whether the others wait in that pool or elsewhere.
            self.starved.store(true, Ordering::SeqCst);
        }
        let Some((_, pool)) = longest else { return false };
        pool.wake_oldest();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{setup, waits};
    use super::*;
    use crate::config::pools::{Database, User};
    use crate::pool::{Full, Identity};

    #[test]
    fn a_limit_is_shared_with_those_whom_the_server_counts_for_it() {
        let key = |node: &str, database: &str, dbname: &str, user: &str, work_mem: &str| PoolKey {
            node: node.parse().unwrap(),
            identity: Arc::new(Identity {
                database: database.to_owned(),
                dbname: dbname.to_owned(),
                user: user.to_owned(),
                parameters: vec![("work_mem".to_owned(), work_mem.to_owned())],
            }),
        };
        let pools = [
            key("n1", "d", "d", "u", "1MB"),
            key("n1", "d", "d", "u", "2MB"),
            key("n1", "d", "d", "v", "1MB"),
            key("n1", "alias", "d", "v", "1MB"),
            key("n1", "e", "e", "u", "1MB"),
            key("n1", "e", "e", "v", "1MB"),
            key("n2", "d", "d", "u", "2MB"),
        ];
        let of = |rivals: Rivals| -> Vec<usize> { (0..7).filter(|&i| rivals.has(&pools[i], &pools[0])).collect() };
        assert_eq!(of(Rivals::Kin), [1]);
        assert_eq!(of(Rivals::Database), [1, 2]);
        assert_eq!(of(Rivals::of_refusal(b"InitializeSessionUserId")), [1, 4]);
        assert_eq!(of(Rivals::of_refusal(b"CheckMyDatabase")), [1, 2, 3]);
        assert_eq!(of(Rivals::of_refusal(b"InitProcess")), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn one_size_holds_for_a_user_whatever_its_clients_begin_with() {
        let s = setup(|rules| {
            rules.pool_size = 2;
            rules.defaults.min_pool_size = 1;
        });
        let (a, b) = (s.of("u"), s.with("u", &[("TimeZone", "UTC")]));
        let first = a.permit(Share::Usual).unwrap();
        let second = a.permit(Share::Usual).unwrap();
        assert_eq!(b.permit(Share::Minimum).unwrap_err(), Full::Pool { limit: 1 });
        assert_eq!(b.permit(Share::Usual).unwrap_err(), Full::Pool { limit: 2 });
        assert_eq!((a.open(), b.open(), b.open_of_kin()), (2, 0, 2));
        // Neither another user nor who replicates is of the same kin.
        assert!(s.of("v").permit(Share::Usual).is_ok());
        assert!(s.with("u", &[("replication", "database")]).permit(Share::Usual).is_ok());
        assert!(!a.yields(), "nobody waits");
        waits(&b, 2, 500_000_000);
        b.starve();
        assert!(a.yields() && !b.yields());
        // Here somebody waits, too: longer, then not so much shorter that it is worth a connection, then much shorter.
        waits(&a, 0, 400_000_000);
        assert!(!a.yields());
        a.show_oldest(0, Some(600_000_000), Some(600_000_000));
        assert!(!a.yields());
        a.show_oldest(0, Some(701_000_000), Some(701_000_000));
        assert!(a.yields());
        // Of the two the first is told, and the other is not forgotten.
        drop(first);
        assert_eq!(s.woken(), "u@2");
        b.count_waiter(false, true);
        b.show_oldest(2, None, None);
        drop(second);
        assert_eq!(s.woken(), "u@0");
    }

    #[test]
    fn while_nobody_waits_much_longer_a_connection_is_given_back_without_a_lock() {
        let s = setup(|rules| {
            rules.pool_size = 5;
            let database = Database { max_db_connections: Some(2), ..Database::default() };
            rules.databases.insert("d".into(), database);
        });
        let (a, b) = (s.of("a"), s.of("b"));
        let _permits = [a.permit(Share::Usual).unwrap(), b.permit(Share::Usual).unwrap()];
        waits(&a, 0, 500_000_000);
        waits(&b, 1, 400_000_000);
        b.starve();
        let yields_locked = |limit: &Arc<Limit>| {
            let _held = limit.database.pools.lock().unwrap();
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            let limit = limit.clone();
            std::thread::spawn(move || tell.send(limit.yields()));
            told.recv_timeout(Duration::from_secs(60)).expect("it waits for the lock")
        };
        // Whoever looks first finds out since when they wait.
        assert!(!a.yields());
        assert!(!yields_locked(&a) && !yields_locked(&b));
        // Who waited for longest has been served: the first who sees that looks, and the others need not.
        b.show_oldest(1, Some(650_000_000), Some(650_000_000));
        a.show_oldest(0, Some(601_000_000), Some(601_000_000));
        assert!(!a.yields());
        assert!(!yields_locked(&a) && !yields_locked(&b));
        // Who has waited for long elsewhere and comes only now is found at once.
        b.show_oldest(2, Some(300_000_000), Some(300_000_000));
        assert!(a.yields());
    }

    #[test]
    fn nobody_who_waits_behind_another_is_forgotten_beside_what_its_kin_do_not_need() {
        let s = setup(|rules| rules.pool_size = 3);
        let (a, b) = (s.of("u"), s.with("u", &[("TimeZone", "UTC")]));
        let mut permits: Vec<_> = (0..3).map(|_| a.permit(Share::Usual).unwrap()).collect();
        waits(&b, 1, 10);
        waits(&b, 1, 10);
        b.starve();
        for _ in 0..2 {
            assert!(a.yields());
            drop(permits.pop());
            assert_eq!(s.woken(), "u@1");
        }
        b.count_waiter(false, true);
        b.count_waiter(false, true);
        b.show_oldest(1, None, None);
        assert!(!a.yields(), "nobody waits any more");
    }

    #[test]
    fn as_many_idle_connections_of_rivals_are_found_as_lack() {
        let s = setup(|rules| {
            rules.pool_size = 3;
            let database = Database { max_db_connections: Some(4), ..Database::default() };
            rules.databases.insert("d".into(), database);
        });
        let (a, b, other) = (s.of("u"), s.with("u", &[("TimeZone", "UTC")]), s.of("v"));
        let mut permits: Vec<_> = (0..3).map(|_| a.permit(Share::Usual).unwrap()).collect();
        waits(&b, 0, 10);
        assert_eq!(b.idle_of_rivals(), None, "all are in use");
        a.show_idle(0, 2);
        a.show_idle(2, 1);
        let mut found = Vec::new();
        for _ in 0..4 {
            found.push(b.idle_of_rivals());
            waits(&b, 0, 10);
        }
        assert_eq!(found, [0, 0, 2, 0].map(|worker| Some((worker, Rivals::Kin))));
        waits(&a, 1, 20);
        assert_eq!(b.idle_of_rivals(), None, "somebody waits for them there");
        a.count_waiter(false, true);
        a.show_oldest(1, None, None);
        // Another user's make no place among its own; where the database lacks one, anybody's do.
        drop(permits.pop());
        assert_eq!(b.idle_of_rivals(), None, "there is room");
        permits.extend((0..2).map(|_| other.permit(Share::Usual).unwrap()));
        a.show_idle(0, 0);
        a.show_idle(2, 0);
        other.show_idle(1, 1);
        assert_eq!(b.idle_of_rivals(), Some((1, Rivals::Database)));
    }

    #[test]
    fn one_connection_of_each_rival_goes_to_who_is_refused_by_the_server() {
        let s = setup(|rules| rules.pool_size = 5);
        let (a, b) = (s.of("a"), s.of("b"));
        let (first, _second) = (a.permit(Share::Usual).unwrap(), a.permit(Share::Usual).unwrap());
        b.claim(Rivals::User);
        assert!(!a.surplus(), "it is of another user");
        b.claim(Rivals::ServerDatabase);
        assert!(a.surplus() && !b.surplus());
        a.count_waiter(true, true);
        assert!(!a.surplus(), "somebody waits for it");
        a.count_waiter(false, true);
        drop(first);
        assert!(!a.surplus(), "one is enough");
    }

    #[test]
    fn a_users_limit_holds_over_its_databases_and_wakes_those_that_starve() {
        let s = setup(|rules| {
            rules.pool_size = 5;
            rules.defaults.max_user_connections = 7;
            let user = User { max_user_connections: Some(2), ..User::default() };
            rules.users.insert("a".into(), user);
        });
        let (a, elsewhere, b) = (s.of("a"), s.at("e", "a"), s.of("b"));
        let first = a.permit(Share::Usual).unwrap();
        let _second = elsewhere.permit(Share::Usual).unwrap();
        assert_eq!(a.permit(Share::Reserve).unwrap_err(), Full::User { limit: 2 });
        let _others: Vec<_> = (0..5).map(|_| b.permit(Share::Usual).unwrap()).collect();
        assert_eq!(b.permit(Share::Usual).unwrap_err(), Full::Pool { limit: 5 }, "another user has its own");
        assert!(!a.has_room() && !a.surplus());
        waits(&elsewhere, 1, 10);
        elsewhere.starve();
        assert!(a.yields() && !elsewhere.yields() && !b.yields());
        a.show_idle(2, 1);
        assert_eq!(elsewhere.idle_of_rivals(), Some((2, Rivals::User)));
        drop(first);
        assert_eq!(s.woken(), "a@1");
        let third = elsewhere.permit(Share::Usual).unwrap();
        s.obey(|rules| rules.defaults.max_user_connections = 1);
        assert!(a.surplus() && elsewhere.surplus() && b.surplus());
        drop(third);
        assert!(!a.surplus());
    }

    #[test]
    fn a_databases_limit_holds_over_its_pools_and_wakes_those_that_starve() {
        let s = setup(|rules| {
            rules.pool_size = 5;
            let database = Database { max_db_connections: Some(2), ..Database::default() };
            rules.databases.insert("d".into(), database);
        });
        let (a, b) = (s.of("a"), s.of("b"));
        let first = a.permit(Share::Usual).unwrap();
        let _second = a.permit(Share::Usual).unwrap();
        assert!(!a.surplus());
        assert_eq!(b.permit(Share::Usual).unwrap_err(), Full::Database { limit: 2 });
        waits(&b, 1, 10);
        b.starve();
        assert!(a.yields(), "another pool starves");
        assert!(!b.yields());
        drop(first);
        assert_eq!(s.woken(), "b@1");
        b.permit(Share::Usual).unwrap().forgo();
        assert!(!a.yields(), "there is room for who waits");
    }

    #[test]
    fn a_place_that_is_of_no_use_is_told_to_who_can_make_use_of_it() {
        let s = setup(|rules| {
            rules.pool_size = 2;
            let database = Database { max_db_connections: Some(2), ..Database::default() };
            rules.databases.insert("d".into(), database);
        });
        let (a, b) = (s.of("a"), s.of("b"));
        waits(&b, 1, 20);
        a.permit(Share::Usual).unwrap().forgo();
        assert_eq!(s.woken(), "", "there was another");
        let first = a.permit(Share::Usual).unwrap();
        // Those of its own pool would find what it has found.
        waits(&a, 0, 5);
        let second = a.permit(Share::Usual).unwrap();
        second.forgo();
        assert_eq!((s.woken().as_str(), a.open()), ("b@1", 1));
        // Nobody is told whom another limit holds up.
        s.obey(|rules| {
            rules.pool_size = 0;
            let database = Database { max_db_connections: Some(1), ..Database::default() };
            rules.databases.insert("d".into(), database);
        });
        first.forgo();
        assert_eq!((s.woken().as_str(), a.open()), ("", 0));
    }
}
