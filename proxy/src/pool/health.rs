//! Keeping idle connections honest: closed when their server has gone, when they are unused or old, and at once when
//! the cluster has changed.

use crate::pool::checkout::still_valid;
use crate::pool::policy::{Age, too_old};
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

/// Which unused connections are closed.
#[derive(Clone, Copy, Debug)]
pub struct Unused {
    /// Those that were unused for so long,
    pub after: Duration,
    /// and are more than the pool is to keep.
    pub but_minimum: bool,
}

/// Close idle connections whose server closed or said what an idle one does not, that are unused, or that are older than
/// `lifetime`.
pub fn sweep(pools: &Pools, unused: Unused, lifetime: Duration, now: Instant) {
    for pool in pools.all() {
        sweep_pool(&pool, unused, lifetime, now);
    }
    pools.sweep();
}

fn sweep_pool(pool: &Pool, Unused { after, but_minimum }: Unused, lifetime: Duration, now: Instant) {
    let kept = if but_minimum { pool.limit.min() } else { 0 };
    let mut spare = pool.limit.open_of_kin().saturating_sub(kept);
    pool.retain_idle(|s| {
        let unused = now.since(s.meta.idle_since) >= after && spare > 0;
        let keep = s.is_quiet() && !unused && !too_old(Age { born: s.meta.born, lifetime }, now);
        spare -= usize::from(!keep && spare > 0);
        keep
    });
}
