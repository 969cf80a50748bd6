//! Server connections, per worker; their number, per process.
//!
//! A pool is keyed by node, database, user and startup parameters; its size is that of all sets of parameters together. Its
//! connections belong to the worker that made them; the limit is shared through a few atomics that are touched when a connection is opened, closed, given back
//! or waited for. While the limit is reached, a connection that is given back where nobody waits moves to the worker
//! where somebody does.

pub mod admin;
pub mod backoff;
pub mod checkout;
pub mod clients;
pub mod defaults;
pub mod doors;
pub mod health;
pub mod limit;
pub mod policy;
pub mod survey;
pub mod view;
pub mod warm;

pub use checkout::{Checkout, Offer, Pool, Pools};
pub use doors::{Doors, Order, Scope};
pub use limit::{Full, Limit, Limits, Permit, Share};

use crate::config::pools::Pools as Rules;
use crate::session::settings;
use cluster::NodeId;
use std::sync::Arc;

/// Who logs in, where to, with which settings: what a server connection cannot change for another client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Database, by the name clients ask for: rules, limits and orders hold for that.
    pub database: String,
    /// Its name at the servers.
    pub dbname: String,
    /// User.
    pub user: String,
    /// Startup parameters, by name.
    pub parameters: Vec<(String, String)>,
}

impl Identity {
    /// Tells apart what sessions begin with that decides what their texts mean.
    pub fn begins(&self) -> u64 {
        settings::begins(&self.dbname, &self.user, self.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())))
    }

    /// Would its clients be led elsewhere if they came now?
    pub fn leads_elsewhere(&self, rules: &Rules) -> bool {
        let forced = policy::forced_user(rules, &self.database);
        policy::dbname(rules, &self.database) != self.dbname || forced.is_some_and(|forced| forced != self.user)
    }

    /// Is it for physical replication, which belongs to no database?
    pub fn is_physical(&self) -> bool {
        self.parameters.iter().any(|(name, value)| name == "replication" && value != "database")
    }

    /// Is it for replication connections? Each has a server of its own, that is made for it and never used again.
    pub fn is_replication(&self) -> bool {
        self.parameters.iter().any(|(name, _)| name == "replication")
    }
}

/// A pool's key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// The node.
    pub node: NodeId,
    /// Who and where to.
    pub identity: Arc<Identity>,
}

/// Which other pools' connections count against a limit that a pool has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rivals {
    /// Those of its database and user whose sessions began with other parameters: `pool_size`.
    Kin,
    /// Those of its database, as clients name it: `max_db_connections`.
    Database,
    /// Those of its user: the server's `CONNECTION LIMIT` of a role.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
