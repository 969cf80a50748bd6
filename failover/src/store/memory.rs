//! A store in memory with faults on demand, for tests of everything above the store.
//!
//! [`MemoryStore::client`] gives another process's connection to the same data: faults belong to a connection, data
//! and leases to all. Leases never expire by time: a test says when ([`MemoryStore::expire`]).

use super::{
    BoxFuture, Compare, Granted, Hints, LeaseId, Range, Snapshot, Store, StoreError, StoreResult, Txn, TxnOutcome,
    Versioned,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;

/// What happens to one call instead of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fails before it is done.
    Unavailable,
    /// A write is done, its answer is lost.
    DoneButUnknown,
    /// A write is not done, nor is that known.
    NotDoneAndUnknown,
}

/// A connection to a store in memory. Clones share the connection; [`MemoryStore::client`] makes another.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    data: Arc<Mutex<Data>>,
    link: Arc<Mutex<Link>>,
}

#[derive(Debug, Default)]
struct Data {
    revision: i64,
    next_lease: i64,
    keys: BTreeMap<String, Versioned>,
    leases: BTreeMap<LeaseId, Duration>,
    watches: Vec<(String, watch::Sender<u64>)>,
    hints_held: bool,
    held: Vec<String>,
}

#[derive(Debug, Default)]
struct Link {
    down: bool,
    next: VecDeque<Fault>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store without faults.
    pub fn new() -> Self {
        Self { data: Arc::default(), link: Arc::default() }
    }

    /// Another connection to the same data, with faults of its own.
    #[must_use]
    pub fn client(&self) -> Self {
        Self { data: Arc::clone(&self.data), link: Arc::default() }
    }

    /// Cut this connection off: every call fails as unavailable until reconnected.
    pub fn set_down(&self, down: bool) {
        self.link().down = down;
    }

    /// The next calls on this connection meet these faults, one each. A read or a renewal that meets an "unknown"
    /// fault is simply unavailable.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.link().next.extend(faults);
    }

    /// As restored from a backup: keys, leases and the revision are those of `backup`.
    pub fn restore(&self, backup: &Self) {
        let (revision, keys, leases) = {
            let backup = backup.data();
            (backup.revision, backup.keys.clone(), backup.leases.clone())
        };
        let mut data = self.data();
        (data.revision, data.keys, data.leases) = (revision, keys, leases);
        let keys: Vec<String> = data.keys.keys().cloned().collect();
        keys.iter().for_each(|key| data.changed(key));
    }

    /// Expire `lease` now: it and its keys are gone.
    pub fn expire(&self, lease: LeaseId) {
        self.data().drop_lease(lease);
    }

    /// Expire the lease that `key` is bound to. False when there is none.
    pub fn expire_holder(&self, key: &str) -> bool {
        let mut data = self.data();
        let lease = data.keys.get(key).and_then(|v| v.lease);
        lease.is_some_and(|l| data.drop_lease(l))
    }

    /// Hold all change hints back (true), or release those held and deliver at once again (false).
    pub fn hold_hints(&self, hold: bool) {
        let mut data = self.data();
        data.hints_held = hold;
        if !hold {
            let held = std::mem::take(&mut data.held);
            held.iter().for_each(|key| data.hint(key));
        }
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().expect("no code panics while it holds this lock")
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().expect("no code panics while it holds this lock")
    }

    fn fault(&self) -> Option<Fault> {
        let mut link = self.link();
        if link.down { Some(Fault::Unavailable) } else { link.next.pop_front() }
    }

    /// Perform `act` on the data unless a fault says otherwise; `writes` tells whether an answer can be lost.
    fn call<T>(
        &self,
        what: &'static str,
        writes: bool,
        act: impl FnOnce(&mut Data) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let why = || "fault injected".to_owned();
        match self.fault() {
            None => act(&mut self.data()),
            Some(Fault::DoneButUnknown) if writes => {
                act(&mut self.data())?;
                Err(StoreError::Indeterminate { what, why: why() })
            }
            Some(Fault::NotDoneAndUnknown) if writes => Err(StoreError::Indeterminate { what, why: why() }),
            Some(Fault::Unavailable | Fault::DoneButUnknown | Fault::NotDoneAndUnknown) => {
                Err(StoreError::Unavailable { what, why: why() })
            }
        }
    }
}

impl Data {
    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::ModRevision(key, rev) => self.keys.get(key).is_some_and(|v| v.mod_revision == *rev),
            Compare::CreateRevision(key, rev) => self.keys.get(key).is_some_and(|v| v.create_revision == *rev),
            Compare::Absent(key) => !self.keys.contains_key(key),
        }
    }

    fn read(&self, ranges: &[Range]) -> Snapshot {
        let mut found = BTreeMap::new();
        for range in ranges {
            let wanted = |key: &&String| match range {
                Range::Key(k) => *key == k,
                Range::Prefix(p) => key.starts_with(p.as_str()),
            };
            found.extend(self.keys.iter().filter(|(k, _)| wanted(k)));
        }
        Snapshot { revision: self.revision, found: found.into_values().cloned().collect() }
    }

    fn txn(&mut self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        if !txn.compares.iter().all(|c| self.holds(c)) {
            return Ok(TxnOutcome { succeeded: false, revision: self.revision });
        }
        if let Some(lease) = txn.puts.iter().filter_map(|p| p.lease).find(|l| !self.leases.contains_key(l)) {
            return Err(StoreError::LeaseLost { lease });
        }
        let removes = txn.deletes.iter().any(|k| self.keys.contains_key(k));
        if !txn.puts.is_empty() || removes {
            self.revision += 1;
        }
        for put in txn.puts {
            let revision = self.revision;
            let create_revision = self.keys.get(&put.key).map_or(revision, |v| v.create_revision);
            let (key, value, lease) = (put.key.clone(), put.value, put.lease);
            self.keys.insert(put.key.clone(), Versioned { key, value, create_revision, mod_revision: revision, lease });
            self.changed(&put.key);
        }
        for key in txn.deletes {
            if self.keys.remove(&key).is_some() {
                self.changed(&key);
            }
        }
        Ok(TxnOutcome { succeeded: true, revision: self.revision })
    }

    fn grant(&mut self, ttl: Duration) -> Granted {
        self.next_lease += 1;
        let lease = LeaseId(self.next_lease);
        let ttl = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).max(Duration::from_secs(1));
        self.leases.insert(lease, ttl);
        Granted { lease, ttl }
    }

    fn drop_lease(&mut self, lease: LeaseId) -> bool {
        let existed = self.leases.remove(&lease).is_some();
        let bound: Vec<String> = self.keys.values().filter(|v| v.lease == Some(lease)).map(|v| v.key.clone()).collect();
        if !bound.is_empty() {
            self.revision += 1;
        }
        for key in bound {
            self.keys.remove(&key);
            self.changed(&key);
        }
        existed
    }

    fn changed(&mut self, key: &str) {
        if self.hints_held {
            self.held.push(key.to_owned());
        } else {
            self.hint(key);
        }
    }

    fn hint(&mut self, key: &str) {
        self.watches.retain(|(_, changes)| !changes.is_closed());
        for (prefix, changes) in &self.watches {
            if key.starts_with(prefix.as_str()) {
                changes.send_modify(|n| *n += 1);
            }
        }
    }
}

fn ready<'a, T: Send + 'a>(result: Result<T, StoreError>) -> StoreResult<'a, T> {
    let future: BoxFuture<'a, _> = Box::pin(std::future::ready(result));
    future
}

impl Store for MemoryStore {
    fn read(&self, ranges: Vec<Range>) -> StoreResult<'_, Snapshot> {
        ready(self.call("read", false, |data| Ok(data.read(&ranges))))
    }

    fn txn(&self, txn: Txn) -> StoreResult<'_, TxnOutcome> {
        ready(self.call("txn", true, |data| data.txn(txn)))
    }

    fn grant(&self, ttl: Duration) -> StoreResult<'_, Granted> {
        ready(self.call("grant lease", true, |data| Ok(data.grant(ttl))))
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreResult<'_, Duration> {
        let renew = |data: &mut Data| data.leases.get(&lease).copied().ok_or(StoreError::LeaseLost { lease });
        ready(self.call("renew lease", false, renew))
    }

    fn revoke(&self, lease: LeaseId) -> StoreResult<'_, ()> {
        let revoke = |data: &mut Data| {
            data.drop_lease(lease);
            Ok(())
        };
        ready(self.call("revoke lease", true, revoke))
    }

    fn apart(&self) -> Arc<dyn Store> {
        Arc::new(self.clone())
    }

    fn watch(&self, prefix: &str) -> Hints {
        let (changes, hints) = watch::channel(0);
        self.data().watches.push((prefix.to_owned(), changes));
        Hints::new(hints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(store: &MemoryStore, key: &str, compare: Option<Compare>) -> Result<TxnOutcome, StoreError> {
        let txn = Txn { compares: compare.into_iter().collect(), ..Txn::new() };
        store.txn(txn.put(key, "v")).await
    }

    #[tokio::test]
    async fn a_transaction_whose_compare_fails_changes_nothing() {
        let s = MemoryStore::new();
        let first = put(&s, "/a", Some(Compare::Absent("/a".into()))).await.unwrap();
        assert!(first.succeeded);
        for stale in [
            Compare::Absent("/a".into()),
            Compare::ModRevision("/a".into(), first.revision + 1),
            Compare::CreateRevision("/a".into(), 0),
            Compare::ModRevision("/b".into(), 0),
        ] {
            assert!(!put(&s, "/a", Some(stale.clone())).await.unwrap().succeeded, "{stale:?}");
        }
        assert_eq!(s.get("/a").await.unwrap().unwrap().mod_revision, first.revision);
    }

    #[tokio::test]
    async fn a_lost_answer_does_not_tell_whether_the_write_was_made() {
        let s = MemoryStore::new();
        s.fail_next([Fault::DoneButUnknown, Fault::NotDoneAndUnknown, Fault::Unavailable]);
        assert!(matches!(put(&s, "/a", None).await, Err(StoreError::Indeterminate { .. })));
        assert!(matches!(put(&s, "/b", None).await, Err(StoreError::Indeterminate { .. })));
        assert!(matches!(s.get("/a").await, Err(StoreError::Unavailable { .. })));
        assert!(s.get("/a").await.unwrap().is_some() && s.get("/b").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_expired_lease_takes_its_keys_along_and_hints() {
        let s = MemoryStore::new();
        let granted = s.grant(Duration::from_millis(1500)).await.unwrap();
        assert_eq!(granted.ttl, Duration::from_secs(2));
        s.txn(Txn::new().put_leased("/p", "me", granted.lease).put("/q", "x")).await.unwrap();
        let mut hints = s.watch("/p");
        assert!(s.client().expire_holder("/p"));
        tokio::time::timeout(Duration::from_secs(1), hints.changed()).await.expect("a hint");
        assert_eq!(s.get_prefix("/").await.unwrap().found.len(), 1);
        assert_eq!(s.keep_alive(granted.lease).await, Err(StoreError::LeaseLost { lease: granted.lease }));
        let late = s.txn(Txn::new().put_leased("/p", "me", granted.lease)).await;
        assert_eq!(late, Err(StoreError::LeaseLost { lease: granted.lease }));
    }

    #[tokio::test]
    async fn a_cut_connection_disturbs_no_other_and_held_hints_come_later() {
        let a = MemoryStore::new();
        let other = a.client();
        a.set_down(true);
        assert!(put(&a, "/a", None).await.is_err());
        let mut hints = a.watch("/");
        a.hold_hints(true);
        assert!(put(&other, "/a", None).await.unwrap().succeeded);
        assert!(tokio::time::timeout(Duration::from_millis(20), hints.changed()).await.is_err());
        a.hold_hints(false);
        tokio::time::timeout(Duration::from_secs(1), hints.changed()).await.expect("the held hint");
    }

    #[tokio::test]
    async fn a_read_of_several_ranges_is_one_snapshot_ordered_by_key() {
        let s = MemoryStore::new();
        for key in ["/m/2", "/t", "/m/1", "/x"] {
            put(&s, key, None).await.unwrap();
        }
        let got = s.read(vec![Range::Key("/t".into()), Range::Prefix("/m/".into())]).await.unwrap();
        let keys: Vec<_> = got.found.iter().map(|v| v.key.as_str()).collect();
        assert_eq!(keys, ["/m/1", "/m/2", "/t"]);
        assert_eq!((got.revision, got.under("/m/").count()), (4, 2));
        assert_eq!(got.get("/t").unwrap().create_revision, 2);
    }
}
