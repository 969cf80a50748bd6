//! ALTER ROLE … SET and ALTER DATABASE … SET reach sessions that begin later, and a pooled connection has begun long
//! ago. When the catalog's readers find such defaults changed, the connections of their database are replaced as
//! after RECONNECT: each as soon as it is free. A standby that has not replayed the change gives old defaults to
//! connections that are made meanwhile, so it is done again once it has.

use crate::catalog::Changes;
use crate::config::pools::Pools;
use crate::pool::admin::{closed_here, here};
use crate::pool::doors::{Order, Scope};
use crate::pool::policy::dbname;
use crate::worker::Shared;
use cluster::lag::LagSnapshot;
use cluster::topology::Topology;
use cluster::{Lsn, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// How long the workers have to hear of it.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the last client of a database is waited for: PostgreSQL looks for so long whether nobody is left there.
const CLIENTS_LIMIT: Duration = Duration::from_secs(5);

/// Replace connections whenever defaults have changed, until the process stops.
pub async fn follow(
    shared: &Shared,
    mut changes: watch::Receiver<Changes>,
    (mut lag, topology): (watch::Receiver<Arc<LagSnapshot>>, watch::Receiver<Topology>),
    mut stopped: watch::Receiver<bool>,
) {
    let follow = async {
        let (mut seen, mut behind) = (Changes::default(), Behind::default());
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                sampled = lag.changed(), if !behind.0.is_empty() => if sampled.is_err() { behind.0.clear() },
            }
            let now = changes.borrow_and_update().clone();
            let mut due = BTreeSet::new();
            for (name, change) in now.iter().filter(|(name, change)| seen.get(*name) != Some(change)) {
                due.insert(name.clone());
                let standbys = topology.borrow().standbys.iter().map(|member| member.node.clone()).collect();
                behind.0.insert(name.clone(), (change.at, standbys));
            }
            seen = now;
            due.extend(behind.caught_up(&lag.borrow_and_update()));
            for at_servers in &due {
                replace(shared, at_servers).await;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

/// Standbys that are not known to have replayed the last change of a database's defaults.
#[derive(Default)]
struct Behind(BTreeMap<String, (Lsn, BTreeSet<NodeId>)>);

impl Behind {
    /// The databases of whose last change one more standby is known to have it.
    fn caught_up(&mut self, lag: &LagSnapshot) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (name, (at, nodes)) in &mut self.0 {
            let before = nodes.len();
            let has = |node: &NodeId| {
                let sample = lag.standbys.iter().find(|s| s.node == *node).and_then(|s| s.sample.as_ref());
                sample.is_some_and(|sample| sample.replay_lsn >= *at)
            };
            nodes.retain(|node| !has(node));
            if nodes.len() < before {
                found.insert(name.clone());
            }
        }
        self.0.retain(|_, (_, nodes)| !nodes.is_empty());
        found
    }
}

async fn replace(shared: &Shared, at_servers: &str) {
    let pools = shared.config.borrow().pools.clone();
    forget(shared, at_servers);
    for database in names(&pools, at_servers) {
        let limit = (Instant::now() + LIMIT, LIMIT);
        match here(shared, Order::Reconnect, Scope::Database(database.clone()), limit).await {
            Ok(()) => tracing::info!(database, "defaults of roles or databases changed, connections are replaced"),
            Err(error) => tracing::warn!(database, %error, "connections with old defaults not replaced"),
        }
    }
    // A connection that was made meanwhile may have said what the old ones began with.
    forget(shared, at_servers);
}

/// A client is about to drop, rename, move or copy the database that has this name at the servers: where it has no clients
/// here, connections to it are closed as soon as they are free, and who comes asks a server whether it is there. Clients
/// would be in the way without a proxy, too; but one may be leaving, so they are waited for as long as PostgreSQL does.
pub fn leave(shared: &Arc<Shared>, at_servers: &str) {
    if !has_clients(shared, at_servers) {
        return close(shared, at_servers);
    }
    if awaited(shared).insert(at_servers.to_owned(), Instant::now() + CLIENTS_LIMIT).is_some() {
        // Whoever waits already does so for longer now.
        return;
    }
    let (shared, at_servers) = (shared.clone(), at_servers.to_owned());
    tokio::task::spawn_local(async move {
        while let Some(until) = awaited_until(&shared, &at_servers) {
            if timeout_at(until, without_clients(&shared, &at_servers)).await.is_ok() {
                awaited(&shared).remove(&at_servers);
                return close(&shared, &at_servers);
            }
        }
    });
}

/// Has the database any client here?
fn has_clients(shared: &Shared, at_servers: &str) -> bool {
    let config = shared.config.borrow();
    names(&config.pools, at_servers).iter().any(|name| shared.admissions.of_database(name) > 0)
}

/// Returns when the last client of the database has left.
async fn without_clients(shared: &Shared, at_servers: &str) {
    loop {
        // Listened for before it is looked at: who leaves in between is not missed.
        let mut left = std::pin::pin!(shared.left.notified());
        left.as_mut().enable();
        if !has_clients(shared, at_servers) {
            return;
        }
        left.await;
    }
}

/// Until when the last client of each database is waited for.
fn awaited(shared: &Shared) -> MutexGuard<'_, BTreeMap<String, Instant>> {
    shared.awaited.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until when that of this one is; when that is over, nobody waits any more.
fn awaited_until(shared: &Shared, at_servers: &str) -> Option<Instant> {
    let mut awaited = awaited(shared);
    let until = awaited.get(at_servers).copied().filter(|until| *until > Instant::now());
    if until.is_none() {
        awaited.remove(at_servers);
    }
    until
}

/// Nobody is left.
fn close(shared: &Arc<Shared>, at_servers: &str) {
    let pools = shared.config.borrow().pools.clone();
    forget(shared, at_servers);
    for scope in names(&pools, at_servers).into_iter().map(Scope::Database).filter(|s| shared.limits.open(s) > 0) {
        let shared = shared.clone();
        tokio::task::spawn_local(async move {
            let limit = (Instant::now() + LIMIT, LIMIT);
            match here(&shared, Order::Reconnect, scope.clone(), limit).await {
                Ok(()) => {
                    tracing::info!(?scope, "no client is left, connections are closed for a command on the database")
                }
                Err(error) => tracing::warn!(?scope, %error, "connections not closed for a command on the database"),
            }
            // Names of databases may come and go for as long as the process lives.
            let _ = closed_here(&shared, &scope, limit).await;
            if shared.limits.open(&scope) == 0 {
                shared.doors.lock().unwrap_or_else(PoisonError::into_inner).made_anew(&scope);
            }
        });
    }
}

/// What a login was told once is not what the next one is to be told.
fn forget(shared: &Shared, at_servers: &str) {
    let mut welcomes = shared.welcomes.lock().unwrap_or_else(PoisonError::into_inner);
    welcomes.retain(|identity, _| identity.dbname != at_servers);
}

/// What clients call the database that has this name at the servers.
fn names(pools: &Pools, at_servers: &str) -> BTreeSet<String> {
    let configured = pools.databases.keys().map(String::as_str);
    let meant = configured.chain([at_servers]).filter(|name| dbname(pools, name) == at_servers);
    meant.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pools::Database;

    #[test]
    fn a_database_is_meant_by_all_its_names() {
        let mut pools = Pools::new(1, Duration::ZERO);
        let named = |dbname: &str| Database { dbname: Some(dbname.to_owned()), ..Database::default() };
        pools.databases.insert("alias".to_owned(), named("app"));
        pools.databases.insert("other".to_owned(), named("elsewhere"));
        let of = |name: &str| names(&pools, name).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(
            (of("app"), of("elsewhere"), of("other")),
            ("alias app".into(), "elsewhere other".into(), String::new())
        );
    }
}
