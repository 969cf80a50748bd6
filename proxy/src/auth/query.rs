//! `proxy.auth.query`: users that the userlist does not have are looked up in a database, and remembered for a while.
//!
//! Each look-up has a connection of its own as `proxy.auth.user`, never one that a client has used, with nothing but
//! `pg_catalog` on its search path: what a client says in its startup packet does not reach it (CVE-2025-12819). The
//! user's name is a parameter. One look-up runs for a user and an address at a time, whoever waits for it. While no node answers, what
//! was found before still counts, however old: a failover locks nobody out who was let in before.

use crate::auth::userlist::Stored;
use crate::config::auth::Query;
use crate::config::{Config, PasswordFrom};
use crate::reach::{Reach, ReachError};
use crate::tls::live::chain;
use cluster::node::Endpoint;
use cluster::secret::Secret;
use cluster::sessions::DEFAULTS;
use cluster::topology::Topology;
use cluster::{Clock, Instant};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

/// Users remembered; beyond that the oldest are forgotten, half at a time.
const MAX_KEPT: usize = 10_000;
/// Look-ups at the same time.
const AT_ONCE: usize = 4;
/// Those of them for clients of one address: whoever asks for names that nobody has keeps only its neighbours waiting.
const AT_ONCE_FOR_ONE: usize = 2;
/// Addresses whose look-ups are counted; beyond that those that have none are forgotten.
const MAX_ADDRESSES: usize = 1024;
/// A look-up as old as this was not refuted by a wrong password alone: people mistype.
const YOUNG: Duration = Duration::from_secs(1);

/// Why a user could not be looked up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// There is no node to ask.
    #[error("no node is known")]
    NoNode,
    /// It took too long.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// The password of `proxy.auth.user` cannot be read.
    #[error("the password of proxy.auth.user cannot be read")]
    Password,
    /// The server or the connection failed.
    #[error("{0}")]
    Server(String),
    /// What the query gave is no user and secret.
    #[error("the query must give one row of two columns of text, the user and its secret")]
    Shape,
}

/// Database and user.
type Key = (String, String);

#[derive(Clone, Debug)]
struct Known {
    stored: Option<Stored>,
    at: Instant,
    /// A password was wrong since: it counts only where nobody can be asked.
    doubted: bool,
}

type Answer = Option<Result<Option<Stored>, LookupError>>;

/// The look-ups, and what they found.
#[derive(Debug)]
pub struct Lookups {
    topology: watch::Receiver<Topology>,
    runtime: Handle,
    reach: Arc<Reach>,
    turns: Arc<Semaphore>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    known: HashMap<Key, Known>,
    /// For an address each: who waits for one does not wait behind all that another address has asked for.
    running: HashMap<(Key, Option<IpAddr>), watch::Receiver<Answer>>,
    turns: HashMap<IpAddr, Weak<Semaphore>>,
}

impl Kept {
    /// The turns of an address.
    fn turns_of(&mut self, address: IpAddr) -> Arc<Semaphore> {
        if let Some(turns) = self.turns.get(&address).and_then(Weak::upgrade) {
            return turns;
        }
        if self.turns.len() >= MAX_ADDRESSES {
            self.turns.retain(|_, turns| turns.strong_count() > 0);
        }
        let turns = Arc::new(Semaphore::new(AT_ONCE_FOR_ONE));
        self.turns.insert(address, Arc::downgrade(&turns));
        turns
    }
}

impl Lookups {
    /// Looked up by tasks on `runtime`, at the nodes of `topology`.
    pub fn new(topology: watch::Receiver<Topology>, runtime: Handle, reach: Arc<Reach>) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Arc::new(Self { topology, runtime, reach, turns, kept: Mutex::default() })
    }

    /// What is known of `user`, who asks for `database` from that address, or from this host.
    ///
    /// # Errors
    /// Nobody could be asked, and nothing is remembered.
    pub async fn stored(
        self: &Arc<Self>,
        config: &Config,
        (database, user): (&str, &str),
        address: Option<IpAddr>,
    ) -> Result<Option<Stored>, LookupError> {
        let Some(query) = &config.auth.query else { return Ok(None) };
        let key = (query.database.clone().unwrap_or_else(|| database.to_owned()), user.to_owned());
        let mut answer = {
            let mut kept = self.lock();
            if let Some(known) = kept.known.get(&key).filter(|known| fresh(known, query)) {
                return Ok(known.stored.clone());
            }
            // One whose sender is gone was never answered, and will not be.
            let running = (key, address);
            match kept.running.get(&running).filter(|running| running.has_changed().is_ok()) {
                Some(running) => running.clone(),
                None => {
                    let (tell, answer) = watch::channel(None);
                    kept.running.insert(running.clone(), answer.clone());
                    let turns = address.map(|address| kept.turns_of(address));
                    self.runtime.spawn(self.clone().look_up(running, turns, query.clone(), tell));
                    answer
                }
            }
        };
        let answer = answer.wait_for(Option::is_some).await.map(|answer| answer.clone());
        answer.ok().flatten().unwrap_or(Err(LookupError::NoNode))
    }

    /// A password was wrong: it may have changed since. The next attempt looks again. What is known is not forgotten:
    /// somebody's wrong password locks nobody out while no node answers.
    pub fn doubt(&self, user: &str) {
        let now = Clock.now();
        let mut kept = self.lock();
        let of_user = kept.known.iter_mut().filter(|((_, known), _)| known == user).map(|(_, known)| known);
        of_user.for_each(|known| known.doubted |= now.since(known.at) >= YOUNG);
    }

    /// Forget everything: the query has changed.
    pub fn forget(&self) {
        self.lock().known.clear();
    }

    async fn look_up(
        self: Arc<Self>,
        running: (Key, Option<IpAddr>),
        turns: Option<Arc<Semaphore>>,
        query: Query,
        tell: watch::Sender<Answer>,
    ) {
        let bounded = tokio::time::timeout(query.timeout, async {
            let never = "the semaphore is never closed";
            let _own = match &turns {
                Some(turns) => Some(turns.acquire().await.expect(never)),
                None => None,
            };
            let _turn = self.turns.acquire().await.expect(never);
            self.ask_any(&running.0, &query).await
        });
        let answer = bounded.await.unwrap_or(Err(LookupError::Timeout(query.timeout)));
        let answer = self.keep(running, answer);
        tell.send_replace(Some(answer));
    }

    fn keep(
        &self,
        running: (Key, Option<IpAddr>),
        answer: Result<Option<Stored>, LookupError>,
    ) -> Result<Option<Stored>, LookupError> {
        let at = Clock.now();
        let mut kept = self.lock();
        kept.running.remove(&running);
        let (key, _) = running;
        match answer {
            Ok(stored) => {
                if kept.known.len() >= MAX_KEPT {
                    let mut ages: Vec<Instant> = kept.known.values().map(|k| k.at).collect();
                    let (_, middle, _) = ages.select_nth_unstable(MAX_KEPT / 2);
                    let middle = *middle;
                    kept.known.retain(|_, k| k.at > middle);
                }
                kept.known.insert(key, Known { stored: stored.clone(), at, doubted: false });
                Ok(stored)
            }
            Err(error) => {
                tracing::warn!(database = key.0.as_str(), %error, "user not looked up");
                kept.known.get(&key).map_or(Err(error), |known| Ok(known.stored.clone()))
            }
        }
    }

    async fn ask_any(&self, key: &Key, query: &Query) -> Result<Option<Stored>, LookupError> {
        let view = self.topology.borrow().clone();
        let mut last = LookupError::NoNode;
        // A standby knows the users as well, at most a little late.
        for member in view.primary.iter().chain(&view.standbys).filter(|m| !m.fenced) {
            match ask(&self.reach, &member.postgres, key, query).await {
                Ok(stored) => return Ok(stored),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh(known: &Known, query: &Query) -> bool {
    let ttl = if known.stored.is_some() { query.cache_ttl } else { query.negative_cache_ttl };
    !known.doubted && Clock.now().since(known.at) < ttl
}

async fn ask(reach: &Reach, endpoint: &Endpoint, key: &Key, query: &Query) -> Result<Option<Stored>, LookupError> {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&query.user)
        .dbname(&key.0)
        .application_name("pgtenure_auth")
        // The last word counts.
        .options(format!("{DEFAULTS} -c default_transaction_read_only=on"));
    if let Some(password) = password(&query.password).await? {
        config.password(password.expose());
    }
    let server = |error: tokio_postgres::Error| {
        let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        LookupError::Server(format!("{error}{source}"))
    };
    let unreached = |error: ReachError| LookupError::Server(chain(&error));
    let (client, connection) = reach.converse(endpoint, &mut config).await.map_err(unreached)?;
    let rows = async { client.query(query.text.as_str(), &[&key.1]).await };
    let rows = tokio::select! {
        rows = rows => rows.map_err(server)?,
        // The connection ends before the query does only when it fails.
        ended = connection => return Err(ended.err().map_or(LookupError::NoNode, server)),
    };
    let Some(row) = rows.first() else { return Ok(None) };
    if rows.len() > 1 || row.len() < 2 {
        return Err(LookupError::Shape);
    }
    let secret: Option<&str> = row.try_get(1).map_err(|_| LookupError::Shape)?;
    // No secret: the user exists and has no password.
    Stored::parse(secret.unwrap_or_default()).map(Some).map_err(|_| LookupError::Shape)
}

async fn password(from: &PasswordFrom) -> Result<Option<Secret>, LookupError> {
    let from = from.clone();
    let read = tokio::task::spawn_blocking(move || match from {
        PasswordFrom::Nowhere => Some(None),
        PasswordFrom::File(path) => {
            let text = std::fs::read_to_string(path).ok()?;
            Some(Some(Secret::first_line(&text)))
        }
        PasswordFrom::Env(name) => std::env::var(name).ok().map(|p| Some(Secret::new(p))),
    });
    read.await.ok().flatten().ok_or(LookupError::Password)
}
