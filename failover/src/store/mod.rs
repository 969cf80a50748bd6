//! What the failover crate needs from etcd: linearizable reads, compare-and-put, leases, change hints.
//!
//! Behind a trait so that machines are tested against [`memory`], which can lose answers, be cut off and expire
//! leases on demand. Keys are whole keys, as [`cluster::keys::Keys`] builds them.
//!
//! Duties of a caller:
//! 1. Every method returns within the store's own deadline; a caller needs none of its own.
//! 2. [`StoreError::Indeterminate`] means that a write may have happened: read again before acting on either case.
//! 3. A change hint may come late, twice or (while etcd is unreachable) not at all. Read again now and then anyway.
//! 4. A lease counts from the instant *before* the call that renewed it, on [`cluster::Clock`].

pub mod etcd;
pub mod memory;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::watch;

/// A boxed future, so that the trait can be used as `Arc<dyn Store>`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a store call gives.
pub type StoreResult<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// A lease in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A key's value and its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The key, whole.
    pub key: String,
    /// The value, as put.
    pub value: Vec<u8>,
    /// Revision at which the key was created.
    pub create_revision: i64,
    /// Revision of its last change: what [`Compare::ModRevision`] compares.
    pub mod_revision: i64,
    /// The lease it is bound to.
    pub lease: Option<LeaseId>,
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Range {
    /// One key.
    Key(String),
    /// Every key that starts with this.
    Prefix(String),
}

/// Keys read at one revision, linearizable: nothing acknowledged before the read was sent is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// etcd's revision when it was read.
    pub revision: i64,
    /// What was found, ordered by key.
    pub found: Vec<Versioned>,
}

impl Snapshot {
    /// The value of `key`, if it exists (and was asked for).
    pub fn get(&self, key: &str) -> Option<&Versioned> {
        self.found.iter().find(|v| v.key == key)
    }

    /// Everything found whose key starts with `prefix`, ordered by key.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Versioned> {
        self.found.iter().filter(move |v| v.key.starts_with(prefix))
    }
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key exists and was last changed at this revision.
    ModRevision(String, i64),
    /// The key exists and was created at this revision: it has not vanished since.
    CreateRevision(String, i64),
    /// The key does not exist.
    Absent(String),
}

/// A write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Bind it to this lease; `None` unbinds it.
    pub lease: Option<LeaseId>,
}

/// All or nothing: when every compare holds, the puts and deletes are made at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Conditions; none means always.
    pub compares: Vec<Compare>,
    /// Writes.
    pub puts: Vec<Put>,
    /// Keys to delete; a missing one is no error.
    pub deletes: Vec<String>,
}

impl Txn {
    /// A transaction without conditions or effects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Add a write of `value`, without a lease.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.puts.push(Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Add a write of `value` that vanishes with `lease`.
    #[must_use]
    pub fn put_leased(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Self {
        self.puts.push(Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Add a deletion.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.deletes.push(key.into());
        self
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Every compare held and the writes were made. False: nothing was changed.
    pub succeeded: bool,
    /// etcd's revision after it; the `mod_revision` of what was put when it succeeded.
    pub revision: i64,
}

/// A lease as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its id.
    pub lease: LeaseId,
    /// Time to live, which may be longer than asked for.
    pub ttl: Duration,
}

/// A store call that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Not done, and certainly so: for a read, or when no endpoint could be reached.
    #[error("etcd is unavailable: {what}: {why}")]
    Unavailable {
        /// The call.
        what: &'static str,
        /// The last endpoint's answer.
        why: String,
    },
    /// A write whose answer was lost: it may or may not have happened, or may even happen yet.
    #[error("outcome unknown: {what}: {why}")]
    Indeterminate {
        /// The call.
        what: &'static str,
        /// What was seen.
        why: String,
    },
    /// The lease does not exist (any more): everything bound to it is gone or will be.
    #[error("lease {lease} is lost")]
    LeaseLost {
        /// The lease.
        lease: LeaseId,
    },
    /// etcd understood and refused: missing permission, a request out of bounds. Trying again does not help.
    #[error("etcd refused: {what}: {why}")]
    Refused {
        /// The call.
        what: &'static str,
        /// etcd's words.
        why: String,
    },
}

/// Hints that something below a prefix may have changed. Cheap to clone; hints coalesce.
#[derive(Clone, Debug)]
pub struct Hints(watch::Receiver<u64>);

impl Hints {
    /// Hints fed by `changes`, whose value means nothing.
    pub fn new(changes: watch::Receiver<u64>) -> Self {
        Self(changes)
    }

    /// Wait for the next hint. Cancel-safe. Waits for ever once the store is gone, so select it with a timer.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Wait for the next hint of any of them. Cancel-safe.
    pub async fn any(all: &mut [Self]) {
        let mut waits: Vec<_> = all.iter_mut().map(|hints| Box::pin(hints.changed())).collect();
        std::future::poll_fn(|context| match waits.iter_mut().any(|w| w.as_mut().poll(context).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

/// A store shared by all processes of a cluster. See the module's header for the caller's duties.
pub trait Store: Send + Sync + 'static {
    /// Read `ranges` at one revision, linearizable.
    fn read(&self, ranges: Vec<Range>) -> StoreResult<'_, Snapshot>;

    /// Try a transaction.
    fn txn(&self, txn: Txn) -> StoreResult<'_, TxnOutcome>;

    /// Create a lease. `ttl` is rounded up to whole seconds and may be granted longer.
    fn grant(&self, ttl: Duration) -> StoreResult<'_, Granted>;

    /// Renew a lease: its time to live from (at the earliest) the instant of this call.
    fn keep_alive(&self, lease: LeaseId) -> StoreResult<'_, Duration>;

    /// End a lease and delete what is bound to it. A lease that is already gone is no error.
    fn revoke(&self, lease: LeaseId) -> StoreResult<'_, ()>;

    /// Change hints for keys below `prefix`, from now on until the last clone is dropped. Needs a tokio runtime.
    fn watch(&self, prefix: &str) -> Hints;

    /// The same store over other connections, for the one thread of the process that has a runtime of its own: a connection
    /// is served by the runtime that made it.
    fn apart(&self) -> Arc<dyn Store>;

    /// Members whose leases are known to misbehave, each with its version, as far as they were asked.
    fn outdated(&self) -> Vec<String> {
        Vec::new()
    }

    /// Read one key, linearizable.
    fn get(&self, key: &str) -> StoreResult<'_, Option<Versioned>> {
        let read = self.read(vec![Range::Key(key.to_owned())]);
        Box::pin(async move { Ok(read.await?.found.pop()) })
    }

    /// Read all keys below `prefix`, linearizable.
    fn get_prefix(&self, prefix: &str) -> StoreResult<'_, Snapshot> {
        self.read(vec![Range::Prefix(prefix.to_owned())])
    }
}
