//! Reads from the servers what their functions and relations mean for routing, per database in use.
//!
//! A task per database connects as the monitoring user to the primary, or to any standby while no primary has answered
//! yet, reads `pg_proc` and a few more, and publishes an immutable table. It never keeps a connection. Until the
//! first table is there, and whenever one is out of date, errors are on the safe side: unknown functions are writes,
//! and a standby refuses what turns out to write.

mod bodies;
mod callers;
mod definitions;
pub mod draws;
mod read;

use crate::config::{Config, PasswordFrom};
use crate::reach::Reach;
use crate::sql::{FunctionName, FunctionTable};
use cluster::Lsn;
use cluster::secret::Secret;
use cluster::topology::Topology;
use draws::Draws;
use read::{Catalog, Last, read_any};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Databases whose catalog is read at the same time. The sessions of a database beyond that read on the primary.
const MAX_DATABASES: usize = 256;
/// The first pause after a failed attempt; doubled at each, up to the refresh interval.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// How long further changes are waited for when a client has changed definitions: a migration makes many.
const SETTLE: Duration = Duration::from_millis(200);
/// So many operators and casts are named in one line of the log.
const MAX_TOLD: usize = 10;
/// How many times as long as a reading took, clients' definitions lead to no other one: some define something all the time.
const REST: u32 = 4;

/// How to read catalogs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The monitoring user.
    pub user: String,
    /// Its password; `None` where none is asked.
    pub password: Option<Secret>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How often a catalog is read again.
    pub refresh: Duration,
    /// Functions that leave something in the session.
    pub pinning: Arc<[String]>,
}

/// A password that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadPasswordError {
    /// From a file.
    #[error("could not read proxy.monitor_password_file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// From the environment.
    #[error("proxy.monitor_password_env names {name}, which is not set")]
    Env {
        /// The variable.
        name: String,
    },
}

impl Settings {
    /// From the configuration. Reads the password; blocks.
    ///
    /// # Errors
    /// The password's file or variable cannot be read.
    pub fn from_config(config: &Config) -> Result<Self, ReadPasswordError> {
        Ok(Self {
            user: config.monitor_user.clone(),
            password: read_password(&config.monitor_password)?,
            connect_timeout: config.connect_timeout,
            refresh: config.catalog_refresh,
            pinning: config.pools.defaults.pin_functions.clone().into(),
        })
    }
}

fn read_password(from: &PasswordFrom) -> Result<Option<Secret>, ReadPasswordError> {
    match from {
        PasswordFrom::Nowhere => Ok(None),
        PasswordFrom::File(path) => {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| ReadPasswordError::File { path: path.clone(), source })?;
            Ok(Some(Secret::first_line(&text)))
        }
        PasswordFrom::Env(name) => match std::env::var(name) {
            Ok(password) => Ok(Some(Secret::new(password))),
            Err(_) => Err(ReadPasswordError::Env { name: name.clone() }),
        },
    }
}

/// The catalogs of all databases in use. Clones share them.
#[derive(Clone, Debug)]
pub struct Catalogs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    /// For the lists of functions.
    config: watch::Receiver<Arc<Config>>,
    topology: watch::Receiver<Topology>,
    runtime: Handle,
    reach: Arc<Reach>,
    databases: Mutex<BTreeMap<String, Database>>,
    /// What sessions of a database begin with, as far as roles and databases say, as it was read last.
    defaults: Mutex<BTreeMap<String, u64>>,
    /// Readings begun so far.
    begun: AtomicU64,
    /// How often a newer table took the place of one.
    renewed: AtomicU64,
    /// Those that somebody may still have.
    kept: Mutex<Vec<Weak<FunctionTable>>>,
    changes: watch::Sender<Changes>,
}

/// The tables of a database.
pub type Tables = watch::Receiver<Arc<FunctionTable>>;

/// The last change of the defaults of roles and databases, by database.
pub type Changes = BTreeMap<String, Change>;

/// A change of what sessions begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// How many there were.
    pub count: u64,
    /// Where the primary's WAL ended behind it: a standby that has replayed less may not know of it.
    pub at: Lsn,
}

/// A database whose catalog is being read.
#[derive(Clone, Debug)]
struct Database {
    tables: watch::Sender<Arc<FunctionTable>>,
    /// Told when a client has changed definitions.
    changed: Arc<Notify>,
    /// Whether anybody asks for what was drawn from sequences.
    draws: Arc<Draws>,
    /// It could not be read when that was tried last.
    unread: Arc<AtomicBool>,
}

impl Catalogs {
    /// Catalogs read by tasks on `runtime` from the nodes of `topology`, with the lists of functions that `config` has.
    pub fn new(
        settings: Settings,
        config: watch::Receiver<Arc<Config>>,
        topology: watch::Receiver<Topology>,
        runtime: Handle,
        reach: Arc<Reach>,
    ) -> Self {
        let databases = Mutex::new(BTreeMap::new());
        let (defaults, (changes, _)) = (Mutex::default(), watch::channel(Changes::default()));
        Self {
            shared: Arc::new(Shared {
                settings,
                config,
                topology,
                runtime,
                reach,
                databases,
                defaults,
                begun: AtomicU64::new(0),
                renewed: AtomicU64::new(0),
                kept: Mutex::default(),
                changes,
            }),
        }
    }

    /// Told when what sessions begin with has changed: ALTER ROLE … SET, ALTER DATABASE … SET.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.shared.changes.subscribe()
    }

    /// Read all catalogs again soon: a client has changed a role or a database. Takes the same lock as the others.
    pub fn refresh_all(&self) {
        let databases = self.shared.databases.lock().unwrap_or_else(PoisonError::into_inner);
        let mut defaults = self.shared.defaults.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, known) in &*databases {
            // Where nothing was read yet, whatever is read now may be news to connections that exist.
            defaults.entry(name.clone()).or_insert(0);
            known.changed.notify_one();
        }
    }

    /// The table of `database`, now and as it changes. The first call starts its task, which ends when all receivers
    /// are gone. Takes a lock: call it at the start of a session, after authentication.
    pub fn table(&self, database: &str) -> Tables {
        let mut databases = self.shared.databases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = databases.get(database) {
            return known.tables.subscribe();
        }
        let unloaded = FunctionTable::unloaded().with_pinning(self.shared.settings.pinning.clone());
        let (sender, receiver) = watch::channel(Arc::new(unloaded));
        if databases.len() >= MAX_DATABASES {
            tracing::warn!(
                limit = MAX_DATABASES,
                "too many databases in use, reads of this one stay on the primary, which is asked behind each statement"
            );
            sender.send_modify(|table| *table = Arc::new(FunctionTable::clone(table).failed()));
            return receiver;
        }
        let known = Database {
            tables: sender,
            changed: Arc::new(Notify::new()),
            draws: Arc::default(),
            unread: Arc::default(),
        };
        databases.insert(database.to_owned(), known.clone());
        self.shared.runtime.spawn(keep(self.shared.clone(), database.to_owned(), known));
        receiver
    }

    /// Grows whenever a table of some database is not the newest any more.
    pub fn renewed(&self) -> u64 {
        self.shared.renewed.load(Ordering::Relaxed)
    }

    /// How many of the databases in use could not be read when that was tried last. Locks.
    pub fn unread(&self) -> usize {
        let databases = self.shared.databases.lock().unwrap_or_else(PoisonError::into_inner);
        databases.values().filter(|known| known.unread.load(Ordering::Relaxed)).count()
    }

    /// How many tables of catalogs are in memory: the newest of each database, and older ones that sessions work with. Locks.
    pub fn kept(&self) -> usize {
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|table| table.strong_count() > 0);
        kept.len()
    }

    /// Whether anybody asks for what was drawn from sequences in `database`, of which somebody has the table. Locks, too.
    pub fn draws(&self, database: &str) -> Arc<Draws> {
        let databases = self.shared.databases.lock().unwrap_or_else(PoisonError::into_inner);
        databases.get(database).map(|known| known.draws.clone()).unwrap_or_default()
    }

    /// Read the catalog of `database` again soon: a client has changed definitions in it. Takes the same lock. Tables of
    /// the number returned and above know of it; one below may have been on its way already.
    pub fn refresh(&self, database: &str) -> u64 {
        let knows = self.shared.begun.load(Ordering::SeqCst) + 1;
        let databases = self.shared.databases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = databases.get(database) {
            known.changed.notify_one();
        }
        knows
    }
}

/// Read one database's catalog again and again while someone listens.
async fn keep(shared: Arc<Shared>, database: String, known: Database) {
    let Database { tables: sender, changed, draws, unread: is_unread } = known;
    let (mut topology, mut config) = (shared.topology.clone(), shared.config.clone());
    let refresh = shared.settings.refresh;
    let mut retry = RETRY_MIN;
    let mut complained = false;
    let (mut missing, mut unread, mut unsearched, mut undefined) = (Vec::new(), None, None, None);
    let mut unseen = BTreeSet::new();
    let mut last = Last::default();
    // Clients' definitions, which may go on, have led to the reading.
    let mut led_to = false;
    loop {
        let view = topology.borrow_and_update().clone();
        let lists = config.borrow_and_update().functions.of(&database);
        last.asks = draws.is_asked();
        let number = shared.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let began = Instant::now();
        let mut rested = began;
        let pause = match read_any(&shared, &view, &database, (&lists, &last)).await {
            Ok(Catalog { mut table, of_primary, defaults, names, unread: now, searched, definitions, asks }) => {
                draws.read(asks);
                defaults.into_iter().for_each(|defaults| compare(&shared, &database, defaults));
                tracing::debug!(database = database.as_str(), names = table.len(), "catalog read");
                let unknown = unknown_names(&config.borrow(), &database, &names);
                if missing != unknown {
                    missing = unknown;
                    complain_of(&missing, &database);
                }
                if unseen != *table.unseen_behind() {
                    unseen.clone_from(table.unseen_behind());
                    tell_unseen(&unseen, &database);
                }
                let failed = bodies::complain_of(now, &mut unread, &database);
                if failed && table.bodies().is_empty() {
                    table = table.with_bodies_of(&sender.borrow());
                }
                let searched = searched.map(|now| last.searched = Some(now));
                let defined = definitions.map(|now| last.definitions = now);
                let again = failed
                    | callers::complain_of(searched.err(), &mut unsearched, &database)
                    | definitions::complain_of(defined.err(), &mut undefined, &database)
                    | !of_primary;
                last.of_primary |= of_primary;
                // A standby may be behind what a client has defined.
                let table = if of_primary { table.numbered(number) } else { table };
                show(&shared, &sender, table);
                complained = false;
                is_unread.store(false, Ordering::Relaxed);
                if led_to {
                    rested = Instant::now() + rest(began.elapsed(), refresh);
                }
                retry = if again { (retry * 2).min(refresh) } else { RETRY_MIN };
                // What stood in the way may have been a lock.
                if again { retry } else { refresh }
            }
            Err(error) => {
                is_unread.store(true, Ordering::Relaxed);
                if !complained {
                    let error = with_sources(&error);
                    tracing::warn!(database = database.as_str(), error, "could not read the catalog, retrying");
                    complained = true;
                }
                if sender.borrow().is_awaited() {
                    sender.send_modify(|table| *table = Arc::new(FunctionTable::clone(table).failed()));
                }
                retry = (retry * 2).min(refresh);
                retry
            }
        };
        let moved = async {
            // A node that comes or goes is a reason to try sooner, not one to read again what was just read.
            while topology.changed().await.is_ok() {
                if complained {
                    return;
                }
            }
            // Nobody tells of nodes any more: the process is stopping.
            std::future::pending().await
        };
        let relisted = async {
            while config.changed().await.is_ok() {
                if config.borrow_and_update().functions.of(&database) != lists {
                    return;
                }
            }
            std::future::pending().await
        };
        let redefined = async {
            changed.notified().await;
            tokio::time::sleep(SETTLE.min(refresh)).await;
            tokio::time::sleep_until(rested).await;
        };
        led_to = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = relisted => false,
            () = moved => {
                tokio::time::sleep(RETRY_MIN.min(refresh)).await;
                false
            }
            () = redefined => true,
        };
        // The lock keeps a new session from subscribing between the count and the removal.
        let mut databases = shared.databases.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.receiver_count() == 0 {
            databases.remove(&database);
            return;
        }
    }
}

/// For how long behind a reading that such led to, and that took so long, no client's definitions lead to the next one.
fn rest(took: Duration, refresh: Duration) -> Duration {
    took.saturating_mul(REST).min(refresh)
}

/// Let sessions have a table, which they ask for when they next do something.
fn show(shared: &Shared, sender: &watch::Sender<Arc<FunctionTable>>, table: FunctionTable) {
    let table = Arc::new(table);
    let mut kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.retain(|table| table.strong_count() > 0);
    kept.push(Arc::downgrade(&table));
    drop(kept);
    if sender.send_replace(table).is_loaded() {
        shared.renewed.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the database's own lists name and the database does not have.
fn unknown_names(config: &Config, database: &str, names: &BTreeSet<FunctionName>) -> Vec<String> {
    let has = |named: &FunctionName| match &named.schema {
        Some(_) => names.contains(named),
        None => names.iter().any(|known| known.name == named.name),
    };
    config.functions.own(database).filter(|named| !has(named)).map(ToString::to_string).collect()
}

fn complain_of(missing: &[String], database: &str) {
    if !missing.is_empty() {
        let functions = missing.join(", ");
        tracing::warn!(database, functions, "allow_functions or deny_functions names what the database does not have");
    }
}

/// Tell what keeps all reads of a database on the primary, or that nothing does any more.
fn tell_unseen(behind: &BTreeSet<String>, database: &str) {
    if behind.is_empty() {
        tracing::info!(database, "no operator or cast keeps all reads on the primary any more");
        return;
    }
    let some = behind.iter().take(MAX_TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    tracing::warn!(
        database,
        count = behind.len(),
        behind = some,
        "all reads stay on the primary, any may call a volatile function: label it right, or name it in allow_functions"
    );
}

/// Are the defaults of a database's sessions what they were?
fn compare(shared: &Shared, database: &str, (defaults, at): (u64, Lsn)) {
    let mut known = shared.defaults.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= MAX_DATABASES && !known.contains_key(database) {
        known.clear();
    }
    if known.insert(database.to_owned(), defaults).is_some_and(|before| before != defaults) {
        shared.changes.send_modify(|changes| {
            let change = changes.entry(database.to_owned()).or_default();
            *change = Change { count: change.count + 1, at };
        });
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_that_takes_long_is_not_read_all_the_time() {
        let rest = |took| rest(Duration::from_millis(took), Duration::from_secs(60)).as_millis();
        assert_eq!([rest(50), rest(2000), rest(30_000)], [200, 8000, 60_000]);
    }
}
