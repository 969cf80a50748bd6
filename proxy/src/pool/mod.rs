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
pub mod keyring;
pub mod limit;
pub mod policy;
pub mod survey;
pub mod view;
pub mod warm;

pub use checkout::{Checkout, Offer, Pool, Pools};
pub use doors::{Doors, Order, Scope};
pub use limit::{Full, Limit, Limits, Permit, Rivals, Share};

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

    /// The same for connections that are not for replication.
    pub fn of_sql(&self) -> Self {
        let mut of_sql = self.clone();
        // Only there the name that a client gave is a parameter.
        of_sql.parameters.retain(|(name, _)| name != "replication" && name != "application_name");
        of_sql
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
