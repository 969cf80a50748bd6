//! How each standby stands with one worker: its weight, whether it is near, and whether it has come back only just.
//!
//! A standby at the edge of the bound would be left and taken up again at every sample. So one that was too stale, or
//! not heard of, is held to a lower bound until it keeps that (`strict`), and then takes its share of reads little by
//! little: its caches are cold, and what made it fall behind may not be over.

use cluster::lag::LagSnapshot;
use cluster::{Instant, NodeId};
use std::time::Duration;

/// The weight of a node that has none of its own.
pub const WEIGHT: u32 = 100;
/// The share of its weight that a node has at once when it comes back, per cent.
const FIRST_SHARE: u128 = 10;
/// What a node that was too stale must keep of the bound, per cent.
const STRICT: u32 = 80;

/// What is known of a node beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Favour {
    /// Its share of reads next to others.
    pub weight: u32,
    /// It is in the proxy's own zone.
    pub near: bool,
}

impl Default for Favour {
    fn default() -> Self {
        Self { weight: WEIGHT, near: false }
    }
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footing {
    /// Its share of reads next to others, in hundredths of its configured weight.
    pub weight: u32,
    /// It is in the proxy's own zone.
    pub near: bool,
    /// How much of its full share it takes, per cent.
    pub share: u32,
    /// It was too stale lately, and is held to a lower bound.
    pub strict: bool,
}

impl Default for Footing {
    fn default() -> Self {
        Self { weight: WEIGHT * 100, near: false, share: 100, strict: false }
    }
}

/// The bound that a node which was too stale must keep.
pub fn strict(bound: Duration) -> Duration {
    bound * STRICT / 100
}

#[derive(Clone, Debug)]
struct Node {
    name: NodeId,
    footing: Footing,
    /// Too stale, or not heard of.
    out: bool,
    /// When it came back.
    back: Option<Instant>,
}

/// How all nodes stand.
#[derive(Clone, Debug, Default)]
pub struct Footings(Vec<Node>);

impl Footings {
    /// A newer sample, `bound` being the greatest staleness in general; one that comes back takes its full share after
    /// `slow_start`. What is no longer sampled is forgotten.
    pub fn observe(
        &mut self,
        snapshot: &LagSnapshot,
        favour: impl Fn(&NodeId) -> Favour,
        (bound, slow_start): (Duration, Duration),
        now: Instant,
    ) {
        let first = self.0.is_empty();
        self.0.retain(|node| snapshot.standby(&node.name).is_some());
        for standby in &snapshot.standbys {
            let stale = standby.staleness_at(now).ok();
            let index = self.0.iter().position(|node| node.name == standby.node).unwrap_or_else(|| {
                // At the start all are new, and none needs to be spared; later a new one is cold.
                let new = Node { name: standby.node.clone(), footing: Footing::default(), out: !first, back: None };
                self.0.push(new);
                self.0.len() - 1
            });
            let node = &mut self.0[index];
            match stale {
                Some(stale) if node.out && stale <= strict(bound) => (node.out, node.back) = (false, Some(now)),
                Some(stale) if stale <= bound => {}
                Some(_) | None => node.out = true,
            }
            node.stand(favour(&standby.node), slow_start, now);
        }
    }

    /// How a node stands, as of the last sample.
    pub fn of(&self, name: &NodeId) -> Footing {
        self.0.iter().find(|node| node.name == *name).map_or_else(Footing::default, |node| node.footing)
    }
}

impl Node {
    fn stand(&mut self, favour: Favour, slow_start: Duration, now: Instant) {
        let share = match self.back {
            Some(back) if now.since(back) < slow_start => {
                let passed = now.since(back).as_millis() * (100 - FIRST_SHARE) / slow_start.as_millis().max(1);
                u32::try_from(FIRST_SHARE + passed).unwrap_or(100)
            }
            Some(_) | None => 100,
        };
        let Favour { weight, near } = favour;
        self.footing = Footing { weight: weight * share, near, share, strict: self.out };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::Lsn;
    use cluster::lag::{LagUnknown, StandbyLag, StandbySample};

    const BOUND: Duration = Duration::from_millis(1000);
    const SLOW: Duration = Duration::from_secs(10);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    /// A sample of n2 taken at that time; `None` for a lag that is not known.
    fn sampled(at_ms: u64, lag_ms: Option<u64>) -> LagSnapshot {
        let sample = StandbySample {
            receive_lsn: Lsn(1),
            replay_lsn: Lsn(1),
            received_timeline: None,
            replay_lag_bytes: Some(0),
            sent_at: at(at_ms),
            asked_at: at(at_ms),
            up_since: Instant::from_millis(0),
        };
        let replay_lag = lag_ms.map(Duration::from_millis).ok_or(LagUnknown::Unreachable);
        let (node, detail) = ("n2".parse().unwrap(), Default::default());
        let standby = StandbyLag { node, sample: Some(sample), replay_lag, detail };
        LagSnapshot { standbys: vec![standby], ..LagSnapshot::default() }
    }

    #[test]
    fn a_standby_at_the_bound_does_not_flap_and_comes_back_slowly() {
        let node: NodeId = "n2".parse().unwrap();
        let mut footings = Footings::default();
        for (now, lag, strict, share) in [
            // All are new at the start: it takes its share at once.
            (0, Some(0), false, 100),
            (100, Some(990), false, 100),
            (200, Some(1010), true, 100),
            // Within the bound again, which is not enough.
            (300, Some(900), true, 100),
            (400, Some(801), true, 100),
            (500, Some(800), false, 10),
            (600, Some(950), false, 10),
            (5_500, Some(0), false, 55),
            (10_499, Some(0), false, 99),
            (10_500, Some(0), false, 100),
            (11_000, None, true, 100),
            (12_000, Some(0), false, 10),
        ] {
            footings.observe(&sampled(now, lag), |_| Favour::default(), (BOUND, SLOW), at(now));
            let footing = footings.of(&node);
            assert_eq!((footing.strict, footing.share), (strict, share), "at {now} ms");
            assert_eq!(footing.weight, WEIGHT * share);
        }
        // One that nobody samples any more begins anew.
        footings.observe(&LagSnapshot::default(), |_| Favour::default(), (BOUND, SLOW), at(13_000));
        assert_eq!(footings.of(&node), Footing::default());
    }
}
