//! How many clients a database and a user have in all workers together. Locked at login and at the end only.

use crate::config::pools::Pools as Rules;
use crate::pool::policy::{ClientLimit, client_limits};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The clients of the process.
#[derive(Debug, Default)]
pub struct Clients {
    counts: Mutex<Counts>,
    /// All of them.
    all: AtomicUsize,
}

#[derive(Debug, Default)]
struct Counts {
    databases: BTreeMap<Arc<str>, usize>,
    users: BTreeMap<Arc<str>, usize>,
    replication: usize,
}

impl Clients {
    /// One more client of that database, by the name it asks for, and that user; for replication or not. `most` of all may
    /// be here.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(
        self: &Arc<Self>,
        (most, rules): (usize, &Rules),
        (database, user): (&str, &str),
        replication: bool,
    ) -> Result<Admission, ClientLimit> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if self.all() >= most {
            return Err(ClientLimit::All(most));
        }
        let reached = client_limits(rules, database, user).find(|limit| match *limit {
            ClientLimit::All(_) => false,
            ClientLimit::Database(most) => counts.databases.get(database).is_some_and(|n| *n >= most),
            ClientLimit::User(most) => counts.users.get(user).is_some_and(|n| *n >= most),
            ClientLimit::Replication(most) => counts.replication >= most,
        });
        let most = rules.defaults.max_replication_connections;
        let walsenders = replication && most > 0 && counts.replication >= most;
        let reached = reached.or(walsenders.then_some(ClientLimit::Replication(most)));
        if let Some(limit) = reached {
            return Err(limit);
        }
        let database = count(&mut counts.databases, database);
        let user = count(&mut counts.users, user);
        counts.replication += usize::from(replication);
        self.all.fetch_add(1, Ordering::Relaxed);
        Ok(Admission { clients: self.clone(), database, user, replication })
    }

    /// Clients of all databases and users.
    pub fn all(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// Clients of that database.
    pub fn of_database(&self, database: &str) -> usize {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.databases.get(database).copied().unwrap_or(0)
    }

    /// Clients of that user.
    pub fn of_user(&self, user: &str) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).users.get(user).copied().unwrap_or(0)
    }
}

/// One more of that name, which those of one name share.
fn count(of: &mut BTreeMap<Arc<str>, usize>, name: &str) -> Arc<str> {
    if let Some((known, _)) = of.get_key_value(name) {
        let known = known.clone();
        of.entry(known.clone()).and_modify(|n| *n += 1);
        return known;
    }
    let name: Arc<str> = name.into();
    of.insert(name.clone(), 1);
    name
}

/// A client that counts until this is dropped.
#[derive(Debug)]
pub struct Admission {
    clients: Arc<Clients>,
    database: Arc<str>,
    user: Arc<str>,
    replication: bool,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.clients.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { databases, users, replication } = &mut *counts;
        *replication -= usize::from(self.replication);
        self.clients.all.fetch_sub(1, Ordering::Relaxed);
        for (map, name) in [(databases, &self.database), (users, &self.user)] {
            if let Some(n) = map.get_mut(&**name) {
                *n -= 1;
                if *n == 0 {
                    map.remove(&**name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pools::User;
    use std::time::Duration;

    #[test]
    fn clients_count_for_their_database_and_their_user_until_they_leave() {
        let mut rules = Rules::new(1, Duration::from_secs(1));
        rules.defaults.max_db_client_connections = 2;
        rules.users.insert("u".into(), User { max_client_connections: Some(1), ..User::default() });
        let clients = Arc::new(Clients::default());
        let admit = |database: &str, user: &str| clients.admit((3, &rules), (database, user), false);
        let first = admit("d", "u").unwrap();
        assert_eq!(admit("e", "u").unwrap_err(), ClientLimit::User(1));
        let _second = admit("d", "v").unwrap();
        assert_eq!(admit("d", "v").unwrap_err(), ClientLimit::Database(2));
        drop(first);
        assert_eq!((clients.of_database("d"), clients.of_user("u"), clients.of_user("v")), (1, 0, 1));
        let _third = admit("d", "u").unwrap();
        let _fourth = admit("e", "w").unwrap();
        assert_eq!(admit("e", "x").unwrap_err(), ClientLimit::All(3));
    }

    #[test]
    fn replication_has_a_limit_of_its_own() {
        let mut rules = Rules::new(1, Duration::from_secs(1));
        rules.defaults.max_replication_connections = 1;
        let clients = Arc::new(Clients::default());
        let first = clients.admit((100, &rules), ("d", "u"), true).unwrap();
        assert_eq!(clients.admit((100, &rules), ("e", "v"), true).unwrap_err(), ClientLimit::Replication(1));
        assert!(clients.admit((100, &rules), ("e", "v"), false).is_ok());
        drop(first);
        assert!(clients.admit((100, &rules), ("e", "v"), true).is_ok());
        rules.defaults.max_replication_connections = 0;
        let all: Vec<_> = (0..9).map(|_| clients.admit((100, &rules), ("d", "u"), true)).collect();
        assert!(all.iter().all(Result::is_ok));
    }
}
