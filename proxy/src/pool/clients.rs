//! How many clients a database and a user have in all workers together. Locked at login and at the end only.

use crate::config::pools::Pools as Rules;
use crate::pool::policy::{ClientLimit, client_limits};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The clients of the process.
#[derive(Debug, Default)]
pub struct Clients {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    databases: HashMap<String, usize>,
    users: HashMap<String, usize>,
}

impl Clients {
    /// One more client of that database, by the name it asks for, and that user.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(self: &Arc<Self>, rules: &Rules, database: &str, user: &str) -> Result<Admission, ClientLimit> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let limits = client_limits(rules, database, user);
        let reached = limits.into_iter().find(|limit| match *limit {
            ClientLimit::Database(most) => counts.databases.get(database).is_some_and(|n| *n >= most),
            ClientLimit::User(most) => counts.users.get(user).is_some_and(|n| *n >= most),
        });
        if let Some(limit) = reached {
            return Err(limit);
        }
        *counts.databases.entry(database.to_owned()).or_default() += 1;
        *counts.users.entry(user.to_owned()).or_default() += 1;
        Ok(Admission { clients: self.clone(), database: database.into(), user: user.into() })
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

/// A client that counts until this is dropped.
#[derive(Debug)]
pub struct Admission {
    clients: Arc<Clients>,
    database: Box<str>,
    user: Box<str>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.clients.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { databases, users } = &mut *counts;
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
        let admit = |database: &str, user: &str| clients.admit(&rules, database, user);
        let first = admit("d", "u").unwrap();
        assert_eq!(admit("e", "u").unwrap_err(), ClientLimit::User(1));
        let _second = admit("d", "v").unwrap();
        assert_eq!(admit("d", "v").unwrap_err(), ClientLimit::Database(2));
        drop(first);
        assert_eq!((clients.of_database("d"), clients.of_user("u"), clients.of_user("v")), (1, 0, 1));
        assert!(admit("d", "u").is_ok());
    }
}
