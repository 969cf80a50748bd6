//! Keeping `min_pool_size` connections to the primary open for those who are connected, so that a new primary, or a
//! first burst, is not met by everybody's logins at once.

use crate::auth::credentials::Credentials;
use crate::pool::backoff::mix;
use crate::pool::policy::resolve;
use crate::pool::{Identity, Pool, Share};
use crate::route::{Causality, Promise};
use crate::session::acquire::{self, Want};
use crate::sql::Access;
use crate::worker::Worker;
use cluster::Role;
use cluster::topology::{Gate, Member};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A connection is begun so much later at most, so that workers and processes do not log in at the same moment.
const JITTER: Duration = Duration::from_millis(100);

/// Who is connected to one worker, and how it logs in. Keys are kept no longer than their clients.
#[derive(Default)]
pub struct Patrons {
    by_identity: RefCell<BTreeMap<Arc<Identity>, Patron>>,
}

struct Patron {
    credentials: Arc<Credentials>,
    clients: usize,
    warming: bool,
}

impl Patrons {
    /// One more client.
    pub fn enter(&self, identity: &Arc<Identity>, credentials: &Arc<Credentials>) {
        let mut all = self.by_identity.borrow_mut();
        let new = || Patron { credentials: credentials.clone(), clients: 0, warming: false };
        let patron = all.entry(identity.clone()).or_insert_with(new);
        patron.clients += 1;
        // The newest are right after a change of password.
        patron.credentials = credentials.clone();
    }

    /// One less.
    pub fn leave(&self, identity: &Arc<Identity>) {
        let mut all = self.by_identity.borrow_mut();
        if let Some(patron) = all.get_mut(identity) {
            patron.clients -= 1;
            if patron.clients == 0 {
                all.remove(identity);
            }
        }
    }

    fn set_warming(&self, identity: &Arc<Identity>, warming: bool) {
        if let Some(patron) = self.by_identity.borrow_mut().get_mut(identity) {
            patron.warming = warming;
        }
    }
}

/// Begin a connection for each pool to the primary that has fewer than it is to keep: one at a time for each. True
/// when any has.
pub fn top_up(w: &Rc<Worker>) -> bool {
    let now = w.now();
    if w.gate(now) != Gate::Open {
        return false;
    }
    let Some(primary) = w.view.borrow().topology.primary.clone() else { return false };
    let config = w.config();
    let mut lacking = Vec::new();
    for (identity, patron) in &*w.patrons.by_identity.borrow() {
        let rules = resolve(&config.pools, &identity.database, &identity.user);
        if rules.min > 0 && !identity.is_replication() && !w.doorway.paused(&identity.database) {
            let pool = w.pools.of(&primary.node, identity);
            if pool.limit.open() < rules.min {
                lacking.push((pool, patron.credentials.clone(), patron.warming));
            }
        }
    }
    let any = !lacking.is_empty();
    for (pool, credentials, warming) in lacking {
        if !warming && w.may_connect(&primary.node, now).is_ok() {
            w.patrons.set_warming(&pool.key.identity, true);
            tokio::task::spawn_local(add_one(w.clone(), pool, primary.clone(), credentials));
        }
    }
    any
}

async fn add_one(w: Rc<Worker>, pool: Rc<Pool>, primary: Member, credentials: Arc<Credentials>) {
    let jitter = u64::try_from(JITTER.as_nanos()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_nanos(mix(w.next_seed()) % jitter)).await;
    if let Ok(permit) = pool.limit.permit(Share::Minimum) {
        let identity = pool.key.identity.clone();
        let causality = Rc::new(RefCell::new(Causality::default()));
        let promise = Promise::session(w.config().max_replay_lag);
        let (access, quiet) = (Access::Write, false);
        let want = Want { identity, credentials, causality, access, quiet, promise, avoid: Vec::new(), since: w.now() };
        let limit = w.config().hold_timeout;
        match acquire::open(&w, &want, &primary, Role::Primary, permit, limit).await {
            Ok(server) => pool.give(server),
            Err(Some(error)) => tracing::debug!(node = %primary.node, %error, "pool not filled to its minimum"),
            Err(None) => {}
        }
    }
    w.patrons.set_warming(&pool.key.identity, false);
}
