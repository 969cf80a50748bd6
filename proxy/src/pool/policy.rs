//! Which limits and which mode hold for a database and a user.
//!
//! The narrower rule wins: a user's own, then the database's, then what holds for all. A mode or a size of a user says
//! how that user's clients behave, whichever database they ask for.

use crate::config::pools::{Database, PoolMode, Pools, User};
use crate::pool::backoff::mix;
use cluster::Instant;
use std::time::Duration;

/// What holds for the pools of one database and user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolPolicy {
    /// When a server connection goes back.
    pub mode: PoolMode,
    /// Server connections per pool.
    pub size: usize,
    /// Server connections beyond that while somebody has waited for `reserve_after`.
    pub reserve: usize,
    /// When the reserve may be used.
    pub reserve_after: Duration,
    /// Server connections to the primary kept open while there are clients.
    pub min: usize,
    /// Server connections to this database of one node, over all users; `None`: any number.
    pub max_db: Option<usize>,
    /// Server connections of this user to one node, over all databases; `None`: any number.
    pub max_user: Option<usize>,
    /// How long a statement waits for a connection.
    pub query_wait_timeout: Duration,
}

/// A limit of clients, and what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientLimit {
    /// Of the process.
    All(usize),
    /// Of one database.
    Database(usize),
    /// Of one user.
    User(usize),
    /// Replication connections.
    Replication(usize),
}

/// The rules for a database, by the name clients ask for, and a user.
pub fn resolve(pools: &Pools, database: &str, user: &str) -> PoolPolicy {
    let (d, u) = (pools.databases.get(database), pools.users.get(user));
    let d = |key: fn(&Database) -> Option<usize>| d.and_then(key);
    let u = |key: fn(&User) -> Option<usize>| u.and_then(key);
    let wait = pools.users.get(user).and_then(|u| u.query_wait_timeout);
    let wait = wait.or_else(|| pools.databases.get(database).and_then(|d| d.query_wait_timeout));
    let size = u(|u| u.pool_size).or(d(|d| d.pool_size)).unwrap_or(pools.pool_size);
    let min = u(|u| u.min_pool_size).or(d(|d| d.min_pool_size)).unwrap_or(pools.defaults.min_pool_size);
    let max_db = d(|d| d.max_db_connections).unwrap_or(pools.defaults.max_db_connections);
    let max_user = u(|u| u.max_user_connections).unwrap_or(pools.defaults.max_user_connections);
    PoolPolicy {
        mode: mode(pools, database, user),
        size,
        reserve: u(|u| u.reserve_pool_size).or(d(|d| d.reserve_pool_size)).unwrap_or(pools.defaults.reserve_pool_size),
        reserve_after: pools.defaults.reserve_pool_timeout.0,
        // A pool cannot be kept fuller than it may be.
        min: min.min(size),
        max_db: (max_db > 0).then_some(max_db),
        max_user: (max_user > 0).then_some(max_user),
        query_wait_timeout: wait.map_or(pools.query_wait_timeout, |wait| wait.0),
    }
}

/// The mode for a database, by the name clients ask for, and a user.
pub fn mode(pools: &Pools, database: &str, user: &str) -> PoolMode {
    let of_user = pools.users.get(user).and_then(|u| u.pool_mode);
    let of_database = pools.databases.get(database).and_then(|d| d.pool_mode);
    of_user.or(of_database).unwrap_or(pools.defaults.pool_mode)
}

/// The name at the servers of what clients ask for as `database`.
pub fn dbname<'a>(pools: &'a Pools, database: &'a str) -> &'a str {
    pools.databases.get(database).map_or(database, |d| dbname_of(database, d))
}

/// The name at the servers of a database that is configured under `name`.
pub fn dbname_of<'a>(name: &'a str, database: &'a Database) -> &'a str {
    database.dbname.as_deref().unwrap_or(name)
}

/// The user at the servers of those who ask for `database`, when that is not their own.
pub fn forced_user<'a>(pools: &'a Pools, database: &str) -> Option<&'a str> {
    pools.databases.get(database).and_then(|d| d.user.as_deref())
}

/// How many clients a database and a user may have, where that is limited.
pub fn client_limits(pools: &Pools, database: &str, user: &str) -> impl Iterator<Item = ClientLimit> + use<> {
    let of_database = pools.databases.get(database).and_then(|d| d.max_client_connections);
    let of_user = pools.users.get(user).and_then(|u| u.max_client_connections);
    let of_database = of_database.unwrap_or(pools.defaults.max_db_client_connections);
    let of_user = of_user.unwrap_or(pools.defaults.max_user_client_connections);
    let limits = [(of_database, ClientLimit::Database(of_database)), (of_user, ClientLimit::User(of_user))];
    limits.into_iter().filter(|(n, _)| *n > 0).map(|(_, limit)| limit)
}

/// A server connection's age and what it may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// When it was made.
    pub born: Instant,
    /// `proxy.server_lifetime`.
    pub lifetime: Duration,
}

/// Has it lived long enough? Each for between four fifths of the lifetime and the whole of it, so that connections
/// that were made together, after a failover, are not all made anew together.
pub fn too_old(age: Age, now: Instant) -> bool {
    let lived = now.since(age.born);
    if lived < age.lifetime / 2 {
        return false;
    }
    let fifth = u64::try_from((age.lifetime / 5).as_nanos()).unwrap_or(u64::MAX).max(1);
    let less = Duration::from_nanos(mix(age.born.as_nanos()) % fifth);
    lived >= age.lifetime - less
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::config::Span;

    fn pools() -> Pools {
        let mut pools = Pools::new(80, Duration::from_secs(30));
        pools.defaults.min_pool_size = 100;
        pools.defaults.max_db_client_connections = 500;
        let app = Database {
            dbname: Some("app_v2".into()),
            pool_mode: Some(PoolMode::Session),
            pool_size: Some(10),
            max_db_connections: Some(12),
            max_client_connections: Some(7),
            query_wait_timeout: Some(Span::secs(3)),
            ..Database::default()
        };
        let batch = User {
            pool_mode: Some(PoolMode::Transaction),
            pool_size: Some(2),
            min_pool_size: Some(1),
            max_user_connections: Some(3),
            max_client_connections: Some(4),
            query_wait_timeout: Some(Span::secs(60)),
            ..User::default()
        };
        pools.databases.insert("app".into(), app);
        pools.users.insert("batch".into(), batch);
        pools
    }

    /// `mode size min max_db max_user wait_s at | limits`
    fn check(database: &str, user: &str) -> String {
        let pools = pools();
        let p = resolve(&pools, database, user);
        let (wait, at) = (p.query_wait_timeout.as_secs(), dbname(&pools, database));
        let limits: Vec<ClientLimit> = client_limits(&pools, database, user).collect();
        let (max_db, max_user) = (p.max_db, p.max_user);
        format!("{} {} {} {max_db:?} {max_user:?} {wait} {at} | {limits:?}", p.mode.as_str(), p.size, p.min)
    }

    #[test]
    fn a_user_comes_before_a_database_and_that_before_the_rest() {
        for (database, user, want) in [
            ("other", "ann", "transaction 80 80 None None 30 other | [Database(500)]"),
            ("app", "ann", "session 10 10 Some(12) None 3 app_v2 | [Database(7)]"),
            ("other", "batch", "transaction 2 1 None Some(3) 60 other | [Database(500), User(4)]"),
            ("app", "batch", "transaction 2 1 Some(12) Some(3) 60 app_v2 | [Database(7), User(4)]"),
            // The rule is for the name that clients ask for, not for the one at the servers.
            ("app_v2", "ann", "transaction 80 80 None None 30 app_v2 | [Database(500)]"),
        ] {
            assert_eq!(check(database, user), want, "{database} {user}");
        }
    }

    #[test]
    fn zero_means_no_limit() {
        let mut pools = pools();
        pools.databases.insert("open".into(), Database { max_client_connections: Some(0), ..Database::default() });
        assert_eq!(client_limits(&pools, "open", "ann").next(), None);
    }

    #[test]
    fn connections_made_together_do_not_end_together() {
        let lifetime = Duration::from_secs(1000);
        let at_ms = Instant::from_millis;
        let ended = |now| (0..1000).filter(|&ms| too_old(Age { born: at_ms(ms), lifetime }, at_ms(now))).count();
        assert_eq!(ended(799_000), 0);
        assert!((350..650).contains(&ended(900_000)), "{}", ended(900_000));
        assert_eq!(ended(1_001_000), 1000);
    }
}
