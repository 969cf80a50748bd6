//! Keeping `min_pool_size` connections to the primary open for those who are connected, so that a new primary, or a
//! first burst, is not met by everybody's logins at once; and making a few to a new primary while it is not open yet, so
//! that nobody waits for them when it is.

use crate::auth::credentials::Credentials;
use crate::pool::backoff::{Backoff, mix};
use crate::pool::policy::resolve;
use crate::pool::{Identity, Permit, Pool, Share};
use crate::route::{Causality, Promise};
use crate::session::acquire::{self, Want};
use crate::session::server::Blame;
use crate::sql::Access;
use crate::worker::Worker;
use cluster::topology::{Closed, Gate, Member};
use cluster::{Role, Term};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A connection is begun so much later at most, so that workers and processes do not log in at the same moment.
const JITTER: Duration = Duration::from_millis(100);
/// Connections that a worker makes to a primary that is about to open, at most: for one pool, and for all.
const PREPARED: (usize, usize) = (4, 32);

/// Who is connected to one worker, and how it logs in. Keys are kept no longer than their clients.
#[derive(Default)]
pub struct Patrons {
    by_identity: RefCell<BTreeMap<Arc<Identity>, Patron>>,
}

struct Patron {
    credentials: Arc<Credentials>,
    clients: usize,
    warming: bool,
    /// Connections were made to the primary of this term before it opened.
    prepared: Term,
    /// When to try again after the server has refused one.
    backoff: Backoff,
}

impl Patrons {
    /// One more client.
    pub fn enter(&self, identity: &Arc<Identity>, credentials: &Arc<Credentials>) {
        let mut all = self.by_identity.borrow_mut();
        let new = || Patron {
            credentials: credentials.clone(),
            clients: 0,
            warming: false,
            prepared: Term(0),
            backoff: Backoff::default(),
        };
        let patron = all.entry(identity.clone()).or_insert_with(new);
        patron.clients += 1;
        // The newest are right after a change of password.
        if patron.credentials != *credentials {
            (patron.credentials, patron.backoff) = (credentials.clone(), Backoff::default());
        }
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

    /// Of who is still there.
    fn update(&self, identity: &Arc<Identity>, change: impl FnOnce(&mut Patron)) {
        if let Some(patron) = self.by_identity.borrow_mut().get_mut(identity) {
            change(patron);
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
            // What has no place in its database's or its user's limit is not tried for.
            if pool.limit.open_of_kin() < rules.min && pool.limit.has_room() {
                let waits = patron.warming || patron.backoff.left(now).is_some();
                lacking.push((pool, patron.credentials.clone(), waits));
            }
        }
    }
    let any = !lacking.is_empty();
    for (pool, credentials, waits) in lacking {
        if !waits && w.may_connect(&pool, now).is_ok() {
            w.patrons.update(&pool.key.identity, |patron| patron.warming = true);
            tokio::task::spawn_local(add_one(w.clone(), pool, primary.clone(), credentials));
        }
    }
    any
}

/// A primary that was promoted and waits for standbys to follow takes logins already, and those whose statements are held
/// will all want one at once: for each who is connected some are made now, once in a term.
pub fn prepare(w: &Rc<Worker>) {
    let (now, (each, mut left)) = (w.now(), PREPARED);
    if w.gate(now) != Gate::Closed(Closed::Opening) {
        return;
    }
    let (term, primary) = {
        let view = w.view.borrow();
        let Some(primary) = view.topology.primary.clone() else { return };
        (view.topology.term, primary)
    };
    if w.may_reach(&primary.node, now).is_err() {
        return;
    }
    let mut lacking = Vec::new();
    for (identity, patron) in &mut *w.patrons.by_identity.borrow_mut() {
        let done = std::mem::replace(&mut patron.prepared, term) == term;
        if !done && !identity.is_replication() && !w.doorway.paused(&identity.database) {
            lacking.push((w.pools.of(&primary.node, identity), patron.credentials.clone(), patron.clients));
        }
    }
    for (pool, credentials, clients) in lacking {
        for _ in 0..clients.min(each).min(left) {
            let Ok(permit) = pool.limit.permit(Share::Usual) else { break };
            left -= 1;
            tokio::task::spawn_local(add(w.clone(), pool.clone(), primary.clone(), credentials.clone(), permit));
        }
    }
}

async fn add_one(w: Rc<Worker>, pool: Rc<Pool>, primary: Member, credentials: Arc<Credentials>) {
    let jitter = u64::try_from(JITTER.as_nanos()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_nanos(mix(w.next_seed()) % jitter)).await;
    let refused = match pool.limit.permit(Share::Minimum) {
        Ok(permit) => add(w.clone(), pool.clone(), primary, credentials, permit).await,
        Err(_) => None,
    };
    w.patrons.update(&pool.key.identity, |patron| {
        patron.warming = false;
        match refused {
            // Nobody waits for it, and the next attempt would be told the same.
            Some(Blame::Client | Blame::Login | Blame::Pool) => patron.backoff.refused(w.now(), w.next_seed()),
            Some(Blame::Node) => {}
            None => patron.backoff = Backoff::default(),
        }
    });
}

/// One connection more. What has failed, if anything has.
async fn add(
    w: Rc<Worker>,
    pool: Rc<Pool>,
    primary: Member,
    credentials: Arc<Credentials>,
    permit: Permit,
) -> Option<Blame> {
    let identity = pool.key.identity.clone();
    let causality = Rc::new(RefCell::new(Causality::default()));
    let promise = Promise::session(w.config().max_replay_lag);
    let (access, quiet, entered, avoid, since) = (Access::Write, false, true, Vec::new(), w.now());
    let want = Want { identity, credentials, entered, causality, access, quiet, promise, avoid, since };
    let limit = w.config().hold_timeout;
    match acquire::open(&w, &want, &primary, Role::Primary, permit, limit).await {
        Ok(server) => {
            pool.give(server);
            None
        }
        Err(Some(error)) => {
            tracing::debug!(node = %primary.node, %error, "no connection made before one is asked for");
            Some(error.blame(Role::Primary, false))
        }
        Err(None) => None,
    }
}
