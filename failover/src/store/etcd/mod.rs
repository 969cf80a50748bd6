//! The store on etcd.
//!
//! One client per endpoint, never one balanced over all: with a balanced client a single frozen member blocked
//! renewals for seconds and lost the lease. Deadlines are ours. Reads are hedged (a slow endpoint is overtaken by the
//! next one), renewals are raced on all endpoints, writes go to one endpoint that has just answered and are sent to
//! another only when the first certainly did nothing.

mod classify;
mod endpoint;
mod leader;
mod watch;

pub use leader::Avoid;

use super::{
    Compare, Granted, Hints, LeaseId, Range, Snapshot, Store, StoreError, StoreResult, Txn, TxnOutcome, Versioned,
};
use crate::config::etcd::Config;
use classify::{Fate, fate, is_from_older_login, is_older_than_fixed};
use endpoint::Endpoint;
use etcd_client::{Client, CompareOp, GetOptions, KeyValue, PutOptions, StatusResponse, TxnOp, TxnOpResponse};
use prometheus::IntGaugeVec;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

/// A read that was not answered for so long is also sent to the next endpoint: ten times what an answer takes.
const HEDGE: Duration = Duration::from_millis(150);
/// Pause before the endpoints are tried again when all have failed.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// An endpoint that answered so recently gets a write without being asked first whether it is alive.
const PROVEN: Duration = Duration::from_millis(300);
/// Between two looks at the members' versions.
const VERSIONS_AGAIN: Duration = Duration::from_secs(60);

/// A store on an etcd cluster.
#[derive(Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

struct Shared {
    endpoints: Vec<Arc<Endpoint>>,
    /// Index of the endpoint that answered last.
    preferred: AtomicUsize,
    /// When it did, milliseconds since `born`.
    proven_ms: AtomicU64,
    born: Instant,
    request_timeout: Duration,
    /// Members with known lease bugs, by address, and their versions.
    outdated: Mutex<BTreeMap<String, String>>,
    /// The same with connections of its own, once it was asked for.
    apart: OnceLock<Arc<Shared>>,
}

/// Why the store could not be set up. That etcd does not answer is no reason: it may come later.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file named in `[etcd]` cannot be read.
    #[error("cannot read {key} {}", path.display())]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The user has no password.
    #[error("no password for the etcd user {0}")]
    NoPassword(String),
}

impl EtcdStore {
    /// A store on `config`'s endpoints. Connections are made when first needed.
    ///
    /// # Errors
    /// When a file named in the configuration cannot be read.
    pub fn new(config: &Config) -> Result<Self, ConnectError> {
        let endpoints = Endpoint::all(&Arc::new(config.clone()))?;
        Ok(Self { shared: Arc::new(Shared::new(endpoints, config.request_timeout)) })
    }

    /// Check the members for ever: one may be down at first, or be replaced by an older one. `outdated` shows for each
    /// endpoint that has answered whether leases are known to misbehave there, `alarm` whether it tells of an alarm, `bytes` how
    /// large its database is.
    pub async fn watch_members(&self, outdated: &IntGaugeVec, alarm: &IntGaugeVec, bytes: &IntGaugeVec) {
        let mut told = BTreeMap::new();
        let mut alarmed = BTreeMap::new();
        loop {
            for (url, version) in self.check_versions(&mut told).await {
                outdated.with_label_values(&[url]).set(i64::from(is_older_than_fixed(&version)));
            }
            let found = self.check_alarms().await;
            // What a member told that does not answer any more need not hold.
            alarm.reset();
            bytes.reset();
            for (url, alarms, size) in found {
                bytes.with_label_values(&[&url]).set(size);
                alarm.with_label_values(&[&url]).set(i64::from(!alarms.is_empty()));
                if alarmed.insert(url.clone(), alarms.clone()).unwrap_or_default() != alarms {
                    warn!(
                        endpoint = url,
                        alarms = alarms.join(", "),
                        "etcd's alarms have changed: with one it refuses writes"
                    );
                }
            }
            tokio::time::sleep(VERSIONS_AGAIN).await;
        }
    }

    /// Ask every member for its version and warn about those whose leases are known to misbehave, unless that was `told`
    /// of it before. Returns what was new: members that answered and their versions.
    pub async fn check_versions(&self, told: &mut BTreeMap<String, String>) -> Vec<(String, String)> {
        let mut new = Vec::new();
        for endpoint in &self.shared.endpoints {
            let Some(version) = self.status_of(endpoint).await.map(|s| s.version().to_owned()) else { continue };
            let url = &endpoint.url;
            if told.insert(url.clone(), version.clone()).as_ref() == Some(&version) {
                continue;
            }
            if is_older_than_fixed(&version) {
                warn!(endpoint = url, version, fixed_in = "3.4.38, 3.5.23, 3.6.5", "etcd has known lease bugs");
                self.outdated_members().insert(url.clone(), version.clone());
            } else {
                self.outdated_members().remove(url);
                info!(endpoint = url, version, "etcd member found");
            }
            new.push((url.clone(), version));
        }
        new
    }

    /// Members that answered, the alarms that each tells of, and what counts against its quota, in bytes: without space, or with
    /// data that differ, etcd refuses writes and leases while reads go on.
    pub async fn check_alarms(&self) -> Vec<(String, Vec<String>, i64)> {
        let mut found = Vec::new();
        for endpoint in &self.shared.endpoints {
            let Some(status) = self.status_of(endpoint).await else { continue };
            let alarms = ["NOSPACE", "CORRUPT"].into_iter().filter(|a| status.errors().iter().any(|e| e.contains(a)));
            found.push((endpoint.url.clone(), alarms.map(str::to_owned).collect(), status.db_size()));
        }
        found
    }

    /// What that member says of itself; `None` where it does not answer, or not to this user.
    async fn status_of(&self, endpoint: &Endpoint) -> Option<StatusResponse> {
        let asked = async {
            let mut client = endpoint.client().await?;
            client.status().await
        };
        tokio::time::timeout(self.shared.request_timeout, asked).await.ok()?.ok()
    }

    fn outdated_members(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.shared.outdated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every endpoint's URL.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.shared.endpoints.iter().map(|e| e.url.as_str())
    }
}

impl Shared {
    fn new(endpoints: Vec<Arc<Endpoint>>, request_timeout: Duration) -> Self {
        let (preferred, proven_ms) = (AtomicUsize::new(0), AtomicU64::new(0));
        let (born, outdated, apart) = (Instant::now(), Mutex::default(), OnceLock::new());
        Self { endpoints, preferred, proven_ms, born, request_timeout, outdated, apart }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.request_timeout
    }

    fn answered(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
        let ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.proven_ms.store(ms.max(1), Ordering::Relaxed);
    }

    fn failed(&self, index: usize) {
        let next = (index + 1) % self.endpoints.len();
        let _ = self.preferred.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        self.proven_ms.store(0, Ordering::Relaxed);
    }

    fn is_proven(&self) -> bool {
        match self.proven_ms.load(Ordering::Relaxed) {
            0 => false,
            ms => self.born.elapsed() < Duration::from_millis(ms) + PROVEN,
        }
    }

    /// An idempotent request: the first endpoint to answer wins; a slow one is overtaken, a failing one skipped.
    async fn hedged<T, F, R>(self: &Arc<Self>, what: &'static str, request: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(Client) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    {
        let (deadline, first, count) = (self.deadline(), self.preferred.load(Ordering::Relaxed), self.endpoints.len());
        let mut tries = 0;
        let mut next_at = Instant::now();
        let mut running = JoinSet::new();
        let mut last = "no endpoint answered in time".to_owned();
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => return Err(StoreError::Unavailable { what, why: last }),
                Some(ended) = running.join_next(), if !running.is_empty() => match ended {
                    Ok((index, Ok(answer))) => {
                        self.answered(index);
                        return Ok(answer);
                    }
                    Ok((index, Err(error))) => {
                        self.failed(index);
                        match fate(&error) {
                            Fate::Refused => return Err(StoreError::Refused { what, why: error.to_string() }),
                            Fate::LeaseLost | Fate::NotDone | Fate::Unknown => last = self.why(index, &error),
                        }
                        let pause = if tries % count == 0 { ROUND_PAUSE } else { Duration::ZERO };
                        next_at = next_at.min(Instant::now() + pause);
                    }
                    Err(gone) => last = gone.to_string(),
                },
                () = tokio::time::sleep_until(next_at), if running.len() < count => {
                    let index = (first + tries) % count;
                    running.spawn(Arc::clone(self).ask(index, request.clone()));
                    tries += 1;
                    next_at = Instant::now() + HEDGE;
                }
            }
        }
    }

    /// `request` on one endpoint, connecting first where needed, and logging in again.
    async fn ask<T, F, R>(self: Arc<Self>, index: usize, request: F) -> (usize, Result<T, etcd_client::Error>)
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let answer = match self.endpoints[index].client().await {
            Ok(client) => match request(client.clone()).await {
                Err(error) if is_from_older_login(&error) => match client.refresh_token().await {
                    Ok(()) => request(client).await,
                    Err(error) => Err(error),
                },
                answer => answer,
            },
            Err(error) => Err(error),
        };
        if answer.is_err() {
            self.endpoints[index].failed();
        }
        (index, answer)
    }

    fn why(&self, index: usize, error: &etcd_client::Error) -> String {
        format!("{}: {error}", self.endpoints[index].url)
    }

    async fn read(self: &Arc<Self>, ranges: Vec<Range>) -> Result<Snapshot, StoreError> {
        let reads: Vec<TxnOp> = ranges.iter().map(read_op).collect();
        let answer = self.hedged("read", move |mut client| {
            // A transaction of reads only is linearizable and sees one revision.
            let txn = etcd_client::Txn::new().and_then(reads.clone());
            async move { client.txn(txn).await }
        });
        let answer = answer.await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let mut found: Vec<Versioned> = Vec::new();
        for part in answer.op_responses() {
            if let TxnOpResponse::Get(part) = part {
                found.extend(part.kvs().iter().map(versioned));
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found.dedup_by(|a, b| a.key == b.key);
        Ok(Snapshot { revision, found })
    }

    async fn txn(self: &Arc<Self>, txn: Txn) -> Result<TxnOutcome, StoreError> {
        const WHAT: &str = "transaction";
        if !self.is_proven() {
            // Costs a round trip, and keeps a write from being stuck in a member that is frozen or cut off, where its
            // outcome would be unknown.
            self.read(txn_key(&txn).into_iter().map(Range::Key).collect()).await?;
        }
        let (deadline, request) = (self.deadline(), etcd_txn(&txn));
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.endpoints.len());
        let mut last = "no endpoint could be connected in time".to_owned();
        for tries in 0.. {
            let index = (first + tries) % count;
            let connecting = tokio::time::timeout_at(deadline, self.endpoints[index].client()).await;
            let Ok(connected) = connecting else { break };
            let answer = match connected {
                Ok(mut client) => {
                    let answer = tokio::time::timeout_at(deadline, client.txn(request.clone())).await;
                    if matches!(&answer, Ok(Err(error)) if is_from_older_login(error)) {
                        // For the next try here. What came of it that one tells.
                        let _ = tokio::time::timeout_at(deadline, client.refresh_token()).await;
                    }
                    answer
                }
                Err(error) => Ok(Err(error)),
            };
            let error = match answer {
                Ok(Ok(answer)) => {
                    self.answered(index);
                    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                    return Ok(TxnOutcome { succeeded: answer.succeeded(), revision });
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    self.failed(index);
                    let why = format!("{}: no answer within {:?}", self.endpoints[index].url, self.request_timeout);
                    return Err(StoreError::Indeterminate { what: WHAT, why });
                }
            };
            self.failed(index);
            self.endpoints[index].failed();
            let why = self.why(index, &error);
            match fate(&error) {
                Fate::NotDone => last = why,
                Fate::Unknown => return Err(StoreError::Indeterminate { what: WHAT, why }),
                Fate::Refused => return Err(StoreError::Refused { what: WHAT, why: error.to_string() }),
                Fate::LeaseLost => {
                    let lease = txn.puts.iter().find_map(|p| p.lease).unwrap_or(LeaseId(0));
                    return Err(StoreError::LeaseLost { lease });
                }
            }
            if (tries + 1) % count == 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(StoreError::Unavailable { what: WHAT, why: last })
    }

    async fn grant(self: &Arc<Self>, ttl: Duration) -> Result<Granted, StoreError> {
        let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(whole.max(1)).unwrap_or(i64::MAX);
        // Hedged although it writes: a lease granted twice expires by itself, with nothing bound to it.
        let grant = move |mut client: Client| async move { client.lease_grant(seconds, None).await };
        let granted = self.hedged("grant lease", grant).await?;
        let ttl = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(0));
        Ok(Granted { lease: LeaseId(granted.id()), ttl })
    }

    /// Race on all endpoints: only the leader renews, and which member still reaches it is not known.
    async fn keep_alive(self: &Arc<Self>, lease: LeaseId) -> Result<Duration, StoreError> {
        let deadline = self.deadline();
        let renew = move |mut client: Client| async move {
            let (mut keeper, mut answers) = client.lease_keep_alive(lease.0).await?;
            // Opening the stream has renewed once already but keeps the granted time to itself.
            keeper.keep_alive().await?;
            Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
        };
        let mut running = JoinSet::new();
        for index in 0..self.endpoints.len() {
            running.spawn(Arc::clone(self).ask(index, renew));
        }
        let (mut lost, mut last) = (false, "no endpoint answered in time".to_owned());
        while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, running.join_next()).await {
            match ended {
                Ok((index, Ok(ttl))) if ttl > 0 => {
                    self.answered(index);
                    return Ok(Duration::from_secs(ttl.unsigned_abs()));
                }
                Ok((_, Ok(_))) => lost = true,
                Ok((index, Err(error))) => match fate(&error) {
                    Fate::LeaseLost => lost = true,
                    Fate::NotDone | Fate::Unknown | Fate::Refused => last = self.why(index, &error),
                },
                Err(gone) => last = gone.to_string(),
            }
        }
        if lost {
            Err(StoreError::LeaseLost { lease })
        } else {
            Err(StoreError::Unavailable { what: "renew lease", why: last })
        }
    }

    async fn revoke(self: &Arc<Self>, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = move |mut client: Client| async move {
            match client.lease_revoke(lease.0).await {
                Ok(_) => Ok(()),
                Err(error) if fate(&error) == Fate::LeaseLost => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.hedged("revoke lease", revoke).await
    }
}

fn read_op(range: &Range) -> TxnOp {
    match range {
        Range::Key(key) => TxnOp::get(key.as_str(), None),
        Range::Prefix(prefix) => TxnOp::get(prefix.as_str(), Some(GetOptions::new().with_prefix())),
    }
}

fn txn_key(txn: &Txn) -> Option<String> {
    let compared = txn.compares.first().map(|c| match c {
        Compare::ModRevision(key, _) | Compare::CreateRevision(key, _) | Compare::Absent(key) => key.clone(),
    });
    compared.or_else(|| txn.puts.first().map(|p| p.key.clone())).or_else(|| txn.deletes.first().cloned())
}

fn etcd_txn(txn: &Txn) -> etcd_client::Txn {
    let compare = |c: &Compare| match c {
        Compare::ModRevision(key, rev) => etcd_client::Compare::mod_revision(key.as_str(), CompareOp::Equal, *rev),
        Compare::CreateRevision(key, rev) => {
            etcd_client::Compare::create_revision(key.as_str(), CompareOp::Equal, *rev)
        }
        Compare::Absent(key) => etcd_client::Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
    };
    let put = |p: &super::Put| {
        let options = p.lease.map(|l| PutOptions::new().with_lease(l.0));
        TxnOp::put(p.key.as_str(), p.value.as_slice(), options)
    };
    let compares: Vec<_> = txn.compares.iter().map(compare).collect();
    let deletes = txn.deletes.iter().map(|k| TxnOp::delete(k.as_str(), None));
    let writes: Vec<_> = txn.puts.iter().map(put).chain(deletes).collect();
    etcd_client::Txn::new().when(compares).and_then(writes)
}

fn versioned(kv: &KeyValue) -> Versioned {
    Versioned {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        lease: (kv.lease() != 0).then(|| LeaseId(kv.lease())),
    }
}

impl Store for EtcdStore {
    fn read(&self, ranges: Vec<Range>) -> StoreResult<'_, Snapshot> {
        Box::pin(self.shared.read(ranges))
    }

    fn txn(&self, txn: Txn) -> StoreResult<'_, TxnOutcome> {
        Box::pin(self.shared.txn(txn))
    }

    fn grant(&self, ttl: Duration) -> StoreResult<'_, Granted> {
        Box::pin(self.shared.grant(ttl))
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreResult<'_, Duration> {
        Box::pin(self.shared.keep_alive(lease))
    }

    fn revoke(&self, lease: LeaseId) -> StoreResult<'_, ()> {
        Box::pin(self.shared.revoke(lease))
    }

    fn watch(&self, prefix: &str) -> Hints {
        watch::start(Arc::clone(&self.shared), prefix.to_owned())
    }

    fn apart(&self) -> Arc<dyn Store> {
        let shared = self.shared.apart.get_or_init(|| {
            let endpoints = self.shared.endpoints.iter().map(|e| e.apart()).collect();
            Arc::new(Shared::new(endpoints, self.shared.request_timeout))
        });
        Arc::new(Self { shared: Arc::clone(shared) })
    }

    fn outdated(&self) -> Vec<String> {
        self.outdated_members().iter().map(|(url, version)| format!("{url} ({version})")).collect()
    }
}
