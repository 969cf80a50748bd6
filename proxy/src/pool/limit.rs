//! How many server connections one pool may have in all workers together, and who waits for one.

use crate::pool::PoolKey;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What one worker shows the others of its pool. Apart in memory: each is written by its own worker only.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    /// Idle connections.
    idle: AtomicUsize,
    /// When its oldest waiter began to wait, nanoseconds since boot; 0 when none waits.
    oldest: AtomicU64,
}

/// Tells a worker that a place in a pool has become free.
pub type Wake = Arc<dyn Fn(usize, &PoolKey) + Send + Sync>;

/// The shared state of one pool.
pub struct Limit {
    key: PoolKey,
    size: usize,
    open: AtomicUsize,
    waiting: AtomicUsize,
    lanes: Box<[Lane]>,
    /// Called with a worker's index when a place has become free and somebody waits there.
    wake: Wake,
}

impl std::fmt::Debug for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limit").field("key", &self.key).field("size", &self.size).field("open", &self.open).finish()
    }
}

impl Limit {
    /// A place for one more connection, when there is one.
    pub fn permit(self: &Arc<Self>) -> Option<Permit> {
        let taken = self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < self.size).then_some(n + 1));
        taken.is_ok().then(|| Permit(self.clone()))
    }

    /// Most connections allowed.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Connections open or being opened, in all workers.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Does anybody wait, in any worker?
    pub fn waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// One more waits, or one less.
    pub fn count_waiter(&self, one_more: bool) {
        if one_more {
            self.waiting.fetch_add(1, Ordering::SeqCst);
        } else {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Show this worker's number of idle connections.
    pub fn show_idle(&self, worker: usize, idle: usize) {
        self.lanes[worker].idle.store(idle, Ordering::SeqCst);
    }

    /// Show since when this worker's oldest waiter waits.
    pub fn show_oldest(&self, worker: usize, nanos: Option<u64>) {
        self.lanes[worker].oldest.store(nanos.map_or(0, |n| n.max(1)), Ordering::SeqCst);
    }

    /// The other worker whose oldest waiter waits longest, and since when.
    pub fn oldest_elsewhere(&self, worker: usize) -> Option<(usize, u64)> {
        let others = self.lanes.iter().enumerate().filter(|(i, _)| *i != worker);
        let waits = others.map(|(i, lane)| (i, lane.oldest.load(Ordering::SeqCst))).filter(|(_, since)| *since > 0);
        waits.min_by_key(|(_, since)| *since)
    }

    /// Another worker that has idle connections.
    pub fn idle_elsewhere(&self, worker: usize) -> Option<usize> {
        (0..self.lanes.len()).find(|&i| i != worker && self.lanes[i].idle.load(Ordering::SeqCst) > 0)
    }

    fn close(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        if self.waited_for() {
            let waits = self.lanes.iter().enumerate().map(|(i, lane)| (i, lane.oldest.load(Ordering::SeqCst)));
            if let Some((worker, _)) = waits.filter(|(_, since)| *since > 0).min_by_key(|(_, since)| *since) {
                (self.wake)(worker, &self.key);
            }
        }
    }
}

/// A place in a pool; dropping it frees the place and wakes who waits longest.
#[derive(Debug)]
pub struct Permit(Arc<Limit>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The limits of all pools of the process. Locked when a worker sees a pool for the first time, and to be shown.
pub struct Limits {
    pools: Mutex<HashMap<PoolKey, Arc<Limit>>>,
    size: usize,
    workers: usize,
    wake: Wake,
}

impl Limits {
    /// `wake` is called from any worker.
    pub fn new(size: usize, workers: usize, wake: Wake) -> Self {
        Self { pools: Mutex::default(), size, workers, wake }
    }

    /// The limit of that pool.
    pub fn of(&self, key: &PoolKey) -> Arc<Limit> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(Limit {
                key: key.clone(),
                size: self.size,
                open: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                lanes: (0..self.workers).map(|_| Lane::default()).collect(),
                wake: self.wake.clone(),
            })
        };
        pools.entry(key.clone()).or_insert_with(new).clone()
    }

    /// Forget pools that no worker has any more.
    pub fn sweep(&self) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, limit| Arc::strong_count(limit) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Identity;

    #[test]
    fn a_freed_place_wakes_who_waits_longest() {
        let woken = Arc::new(Mutex::new(Vec::new()));
        let log = woken.clone();
        let limits = Limits::new(1, 3, Arc::new(move |worker, _| log.lock().unwrap().push(worker)));
        let identity = Identity { database: "d".into(), user: "u".into(), parameters: Vec::new() };
        let key = PoolKey { node: "n1".parse().unwrap(), identity: Arc::new(identity) };
        let limit = limits.of(&key);
        let permit = limit.permit().unwrap();
        assert!(limit.permit().is_none());
        for (worker, since) in [(0, 30), (2, 20)] {
            limit.count_waiter(true);
            limit.show_oldest(worker, Some(since));
        }
        assert_eq!(limit.oldest_elsewhere(2), Some((0, 30)));
        drop(permit);
        assert_eq!(*woken.lock().unwrap(), [2]);
        assert!(limits.of(&key).permit().is_some());
    }
}
