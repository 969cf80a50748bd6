//! Keeping idle connections honest: closed when their server has gone, when they are unused or old, and at once when
//! the cluster has changed.

use crate::pool::checkout::{still_silent, still_valid};
use crate::pool::{Pool, Pools};
use cluster::Instant;
use cluster::topology::Topology;
use std::time::Duration;

/// Close idle connections that no longer belong to `topology`: a demoted node still answers.
pub fn apply_topology(pools: &Pools, topology: &Topology) {
    for pool in pools.all() {
        pool.retain_idle(|s| still_valid(&s.meta.node, s.meta.role, s.meta.term, topology));
    }
}

/// Close idle connections whose server spoke or closed, that were unused for `idle_timeout`, or that are older than
/// `lifetime`.
pub fn sweep(pools: &Pools, idle_timeout: Duration, lifetime: Duration, now: Instant) {
    for pool in pools.all() {
        sweep_pool(&pool, idle_timeout, lifetime, now);
    }
    pools.sweep();
}

fn sweep_pool(pool: &Pool, idle_timeout: Duration, lifetime: Duration, now: Instant) {
    pool.retain_idle(|s| {
        still_silent(s) && now.since(s.meta.idle_since) < idle_timeout && now.since(s.meta.born) < lifetime
    });
}
