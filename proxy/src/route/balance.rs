//! Which of several standbys: the one with fewer statements outstanding of two picked at random.
//!
//! Always taking the least loaded would send every session of a worker to the same standby between two answers; two
//! random choices spread nearly as well and do not herd (Mitzenmacher, "The Power of Two Choices").

use cluster::NodeId;
use cluster::topology::Member;

/// How busy each node is, as far as this worker knows.
pub trait Loads {
    /// Statements sent to `node` and not answered yet.
    fn outstanding(&self, node: &NodeId) -> u32;
}

/// One of the members that are `fit`; `None` when none is.
pub(super) fn choose<'m>(
    members: &'m [Member],
    fit: impl Fn(&Member) -> bool,
    loads: &dyn Loads,
    seed: u64,
) -> Option<&'m Member> {
    let count = members.iter().filter(|m| fit(m)).count();
    let nth = |n: usize| members.iter().filter(|m| fit(m)).nth(n);
    if count <= 1 {
        return nth(0);
    }
    let n = count as u64;
    let mixed = mix(seed);
    let first = mixed % n;
    // Never the same one twice.
    let second = (first + 1 + (mixed >> 32) % (n - 1)) % n;
    let (first, second) = (nth(first as usize)?, nth(second as usize)?);
    let fewer = loads.outstanding(&second.node) < loads.outstanding(&first.node);
    Some(if fewer { second } else { first })
}

/// Spreads a counter over all bits (the finaliser of splitmix64).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
