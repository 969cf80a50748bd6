//! `proxy.auth.query`: users that the userlist does not have are looked up in a database, and remembered for a while.
//!
//! Each look-up has a connection of its own as `proxy.auth.query_user`, never one that a client has used, with nothing but
//! `pg_catalog` on its search path: what a client says in its startup packet does not reach it (CVE-2025-12819). The
//! user's name is a parameter. One look-up runs for a user and a network at a time, whoever waits for it. While no node answers, what
//! was found before still counts, however old: a failover locks nobody out who was let in before.
//!
//! Anybody may ask for any name before he proves anything. So names that do not exist are remembered apart from those that
//! do, look-ups for one network take a part of the turns only, and one turn is for users that were found before.

use crate::auth::userlist::Stored;
use crate::config::auth::Query;
use crate::config::{Config, PasswordFrom};
use crate::reach::{Reach, ReachError};
use crate::tls::live::chain;
use cluster::node::Endpoint;
use cluster::secret::Secret;
use cluster::sessions::unhurried;
use cluster::topology::Topology;
use cluster::{Clock, Instant};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_postgres::error::SqlState;

/// Users remembered, and as many names that do not exist; beyond that the oldest of them are forgotten, half at a time.
const MAX_KEPT: usize = 10_000;
/// Look-ups at the same time,
const AT_ONCE: usize = 3;
/// those of them for clients of one network: whoever asks for names that nobody has keeps only its neighbours waiting,
const AT_ONCE_FOR_ONE: usize = 2;
/// and besides them those of users that were found before.
const AT_ONCE_FOR_KNOWN: usize = 1;
/// Networks whose look-ups are counted; beyond that those that have none are forgotten.
const MAX_NETWORKS: usize = 1024;
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
    /// The password of `proxy.auth.query_user` cannot be read.
    #[error("the password of proxy.auth.query_user (query_password_file or query_password_env) cannot be read")]
    Password,
    /// The server or the connection failed.
    #[error("{0}")]
    Server(String),
    /// The database is not there.
    #[error("{0}")]
    Database(String),
    /// What the query gave is no user and secret.
    #[error("the query must give one row of two columns of text, the user and its secret")]
    Shape,
}

/// Database and user.
type Key = (String, String);

/// Where a client comes from, as far as that can be a share of its own: whoever has one address of IPv6 has as many as it likes
/// of the same /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Network(IpAddr);

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.into()),
            IpAddr::V6(address) => Self(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
        }
    }
}

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
    turns: Semaphore,
    /// Of users that were found before.
    turns_of_known: Semaphore,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    known: HashMap<Key, Known>,
    /// Names that do not exist.
    unknown: HashMap<Key, Known>,
    /// For a network each: who waits for one does not wait behind all that another one has asked for.
    running: HashMap<(Key, Option<Network>), watch::Receiver<Answer>>,
    turns: HashMap<Network, Weak<Semaphore>>,
}

impl Kept {
    /// What is known of that user.
    fn get(&self, key: &Key) -> Option<&Known> {
        self.known.get(key).or_else(|| self.unknown.get(key))
    }

    /// A user was found, or not.
    fn keep(&mut self, key: Key, stored: Option<Stored>, at: Instant) {
        let (of, other) = match stored {
            Some(_) => (&mut self.known, &mut self.unknown),
            None => (&mut self.unknown, &mut self.known),
        };
        other.remove(&key);
        if of.len() >= MAX_KEPT && !of.contains_key(&key) {
            let mut ages: Vec<Instant> = of.values().map(|k| k.at).collect();
            let (_, middle, _) = ages.select_nth_unstable(MAX_KEPT / 2);
            let middle = *middle;
            of.retain(|_, k| k.at > middle);
        }
        of.insert(key, Known { stored, at, doubted: false });
    }

    /// The turns of a network.
    fn turns_of(&mut self, network: Network) -> Arc<Semaphore> {
        if let Some(turns) = self.turns.get(&network).and_then(Weak::upgrade) {
            return turns;
        }
        if self.turns.len() >= MAX_NETWORKS {
            self.turns.retain(|_, turns| turns.strong_count() > 0);
        }
        let turns = Arc::new(Semaphore::new(AT_ONCE_FOR_ONE));
        self.turns.insert(network, Arc::downgrade(&turns));
        turns
    }
}

impl Lookups {
    /// Looked up by tasks on `runtime`, at the nodes of `topology`.
    pub fn new(topology: watch::Receiver<Topology>, runtime: Handle, reach: Arc<Reach>) -> Arc<Self> {
        let (turns, turns_of_known) = (Semaphore::new(AT_ONCE), Semaphore::new(AT_ONCE_FOR_KNOWN));
        Arc::new(Self { topology, runtime, reach, turns, turns_of_known, kept: Mutex::default() })
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
            if let Some(known) = kept.get(&key).filter(|known| fresh(known, query)) {
                return Ok(known.stored.clone());
            }
            // One whose sender is gone was never answered, and will not be.
            let running = (key, address.map(Network::of));
            match kept.running.get(&running).filter(|running| running.has_changed().is_ok()) {
                Some(running) => running.clone(),
                None => {
                    let (tell, answer) = watch::channel(None);
                    kept.running.insert(running.clone(), answer.clone());
                    let known = kept.known.contains_key(&running.0);
                    let turns = running.1.map(|network| kept.turns_of(network));
                    self.runtime.spawn(self.clone().look_up(running, (turns, known), query.clone(), tell));
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
        let Kept { known, unknown, .. } = &mut *kept;
        let of_user = known.iter_mut().chain(unknown).filter(|((_, known), _)| known == user).map(|(_, known)| known);
        of_user.for_each(|known| known.doubted |= now.since(known.at) >= YOUNG);
    }

    /// Forget everything: the query has changed.
    pub fn forget(&self) {
        let mut kept = self.lock();
        kept.known.clear();
        kept.unknown.clear();
    }

    async fn look_up(
        self: Arc<Self>,
        running: (Key, Option<Network>),
        (turns, known): (Option<Arc<Semaphore>>, bool),
        query: Query,
        tell: watch::Sender<Answer>,
    ) {
        let bounded = tokio::time::timeout(query.timeout, async {
            let never = "the semaphore is never closed";
            let like_all = async {
                let own = match &turns {
                    Some(turns) => Some(turns.acquire().await.expect(never)),
                    None => None,
                };
                (own, self.turns.acquire().await.expect(never))
            };
            let _turns = tokio::select! {
                turns = like_all => turns,
                turn = self.turns_of_known.acquire(), if known => (None, turn.expect(never)),
            };
            self.ask_any(&running.0, &query).await
        });
        let answer = bounded.await.unwrap_or(Err(LookupError::Timeout(query.timeout)));
        let answer = self.keep(running, answer);
        tell.send_replace(Some(answer));
    }

    fn keep(
        &self,
        running: (Key, Option<Network>),
        answer: Result<Option<Stored>, LookupError>,
    ) -> Result<Option<Stored>, LookupError> {
        let at = Clock.now();
        let mut kept = self.lock();
        kept.running.remove(&running);
        let (key, _) = running;
        match answer {
            Ok(stored) => {
                kept.keep(key, stored.clone(), at);
                Ok(stored)
            }
            Err(error) => {
                // Anybody may ask for a database that is not there, and is looked up elsewhere then.
                if matches!(error, LookupError::Database(_)) {
                    tracing::debug!(database = key.0.as_str(), %error, "user not looked up there");
                } else {
                    tracing::warn!(database = key.0.as_str(), %error, "user not looked up");
                }
                kept.get(&key).map_or(Err(error), |known| Ok(known.stored.clone()))
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
                // The others would say the same.
                Err(error @ LookupError::Database(_)) => return Err(error),
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
    // Nobody waits for longer.
    let bound = query.timeout.as_millis().max(1);
    let mut config = tokio_postgres::Config::new();
    config
        .user(&query.user)
        .dbname(&key.0)
        .application_name("pgtenure_auth")
        // The last word counts.
        .options(format!("{} -c default_transaction_read_only=on -c statement_timeout={bound}", unhurried(0)));
    if let Some(password) = password(&query.password).await? {
        config.password(password.expose());
    }
    let server = |error: tokio_postgres::Error| {
        let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        LookupError::Server(format!("{error}{source}"))
    };
    let unreached = |error: ReachError| match &error {
        // Nobody gets into what is not there. One that `query_user` may not enter may have users of its own.
        ReachError::Login(refused) if refused.code() == Some(&SqlState::INVALID_CATALOG_NAME) => {
            LookupError::Database(chain(&error))
        }
        _ => LookupError::Server(chain(&error)),
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_exist_push_out_nobody_who_does() {
        let key = |name: String| ("d".to_owned(), name);
        let mut kept = Kept::default();
        kept.keep(key("app".into()), Some(Stored::parse("secret").unwrap()), Instant::from_millis(1));
        for n in 0..2 * MAX_KEPT as u64 {
            kept.keep(key(format!("ghost{n}")), None, Instant::from_millis(2 + n));
        }
        assert!(kept.get(&key("app".into())).is_some() && kept.unknown.len() <= MAX_KEPT);
        assert!(kept.get(&key(format!("ghost{}", 2 * MAX_KEPT - 1))).is_some(), "the youngest are remembered");
        // One that comes to be is known, and one that was dropped is not.
        kept.keep(key("app".into()), None, Instant::from_millis(1));
        assert!(kept.known.is_empty() && kept.get(&key("app".into())).is_some_and(|known| known.stored.is_none()));
    }

    #[test]
    fn the_addresses_of_one_host_have_one_share() {
        let of = |address: &str| Network::of(address.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
