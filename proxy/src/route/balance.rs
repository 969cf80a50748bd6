//! Which of several standbys: of two picked at random the one with fewer connections that serve a session for its weight, and
//! nodes of the proxy's own zone before others.
//!
//! Always taking the least loaded would send every session of a worker to the same standby between two answers; two
//! random choices spread nearly as well and do not herd (Mitzenmacher, "The Power of Two Choices"). A node that comes
//! back weighs little at first; alone in its zone it gets only that share of what comes, and the other zones the rest, as far
//! as they have not come back just as late.

use super::footing::Footing;
use cluster::NodeId;
use cluster::topology::Member;

/// How busy each node is, as far as this worker knows, and how it stands.
pub trait Loads {
    /// Connections to `node` that serve a session: with a statement, in a block, or kept.
    fn outstanding(&self, node: &NodeId) -> u32;

    /// How it stands.
    fn footing(&self, _node: &NodeId) -> Footing {
        Footing::default()
    }
}

/// One of the members that are `fit`, and how it is; `None` when none is.
pub(super) fn choose<'m, F>(
    members: &'m [Member],
    fit: impl Fn(&Member, Footing) -> Option<F>,
    loads: &dyn Loads,
    seed: u64,
) -> Option<(&'m Member, F)> {
    let fit = |m: &Member| fit(m, loads.footing(&m.node));
    let chosen = match members {
        // Whatever it weighs: there is no other.
        [only] => only,
        members => among(members, |m| fit(m).is_some(), loads, seed)?,
    };
    fit(chosen).map(|fit| (chosen, fit))
}

fn among<'m>(members: &'m [Member], fit: impl Fn(&Member) -> bool, loads: &dyn Loads, seed: u64) -> Option<&'m Member> {
    let share = |m: &Member| u64::from(loads.footing(&m.node).share);
    // Behind a change of term all have come back only just: none is spared for others then.
    let most = || members.iter().filter(|m| fit(m)).map(share).max().unwrap_or(100).max(1);
    let takes = |m: &Member| share(m) >= 100 || mix(seed ^ 1) % most() < share(m);
    let near = members.iter().any(|m| loads.footing(&m.node).near && fit(m) && takes(m));
    let weigh = |m: &Member| {
        let footing = loads.footing(&m.node);
        if (near && !footing.near) || !fit(m) { 0 } else { u64::from(footing.weight.max(1)) }
    };
    let total: u64 = members.iter().map(weigh).sum();
    let (first, weight) = pick(members, weigh, mix(seed), total)?;
    // Never the same one twice.
    let others = |m: &Member| if m.node == first.node { 0 } else { weigh(m) };
    let Some((second, other)) = pick(members, others, mix(seed ^ 2), total - weight) else { return Some(first) };
    let busy = |m: &Member, weight: u64| (u64::from(loads.outstanding(&m.node)), weight);
    let ((a, of_a), (b, of_b)) = (busy(first, weight), busy(second, other));
    // a / of_a > b / of_b
    Some(if a * of_b > b * of_a { second } else { first })
}

/// The member in whose weight the number falls, with that weight.
fn pick(members: &[Member], weigh: impl Fn(&Member) -> u64, number: u64, total: u64) -> Option<(&Member, u64)> {
    let mut left = number.checked_rem(total)?;
    members.iter().map(|m| (m, weigh(m))).find(|(_, weight)| {
        let found = left < *weight;
        left = left.saturating_sub(*weight);
        found
    })
}

/// Spreads a counter over all bits (the finaliser of splitmix64).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
