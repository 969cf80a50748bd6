//! How each standby stands with one worker: its weight, whether it is near, and whether it has come back only just.
//!
//! A standby at the edge of a bound would be left and taken up again at every sample. So one that was too stale, or not
//! heard of, is held to a lower bound until it keeps that (`strict`). Sessions have bounds of their own, and each is judged
//! by its own: one number per standby tells for all of them which it has exceeded and not kept well since. One that was
//! beyond the general bound then takes its share of reads little by little: its caches are cold, and what made it fall behind
//! may not be over. Beyond the bound of a few sessions only it goes on serving the others, and its caches stay as they are.

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
    /// Bounds below this one it has exceeded since it last kept them with a margin: by them it was too stale lately.
    pub exceeded: Duration,
}

impl Default for Footing {
    fn default() -> Self {
        Self { weight: WEIGHT * 100, near: false, share: 100, exceeded: Duration::ZERO }
    }
}

impl Footing {
    /// How stale the node may be for who wants no more than `bound`: less where it was staler lately.
    pub fn held_to(&self, bound: Duration) -> Duration {
        if bound < self.exceeded { strict(bound) } else { bound }
    }
}

/// The bound that a node which was too stale must keep.
fn strict(bound: Duration) -> Duration {
    bound * STRICT / 100
}

/// [`Footing::exceeded`] after a sample that found the node so stale. Bounds below that are exceeded now; those of which it
/// is the lower one or less are kept with a margin; between the two all is as it was before.
fn exceeded(before: Duration, stale: Duration) -> Duration {
    stale.max(before.min(stale * 100 / STRICT))
}

#[derive(Clone, Debug)]
struct Node {
    name: NodeId,
    footing: Footing,
    /// Too stale in general, or not heard of.
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
                let exceeded = if first { Duration::ZERO } else { Duration::MAX };
                let footing = Footing { exceeded, ..Footing::default() };
                self.0.push(Node { name: standby.node.clone(), footing, out: !first, back: None });
                self.0.len() - 1
            });
            let node = &mut self.0[index];
            node.footing.exceeded = stale.map_or(Duration::MAX, |stale| exceeded(node.footing.exceeded, stale));
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
        self.footing = Footing { weight: weight * share, near, share, ..self.footing };
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
            started: None,
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
            let held_to = if strict { BOUND * 8 / 10 } else { BOUND };
            assert_eq!((footing.held_to(BOUND), footing.share), (held_to, share), "at {now} ms");
            assert_eq!(footing.weight, WEIGHT * share);
        }
        // One that nobody samples any more begins anew.
        footings.observe(&LagSnapshot::default(), |_| Favour::default(), (BOUND, SLOW), at(13_000));
        assert_eq!(footings.of(&node), Footing::default());
    }

    #[test]
    fn a_standby_at_the_bound_of_a_session_of_its_own_does_not_flap_either() {
        let node: NodeId = "n2".parse().unwrap();
        let ms = Duration::from_millis;
        let mut footings = Footings::default();
        // By lag: may it serve who wants 200 ms, and who wants 5 s?
        for (now, lag, tight, loose) in [
            (0, Some(0), true, true),
            (100, Some(199), true, true),
            (200, Some(201), false, true),
            (300, Some(190), false, true),
            (400, Some(161), false, true),
            (500, Some(160), true, true),
            (600, Some(190), true, true),
            (700, Some(4_900), false, true),
            (800, Some(5_100), false, false),
            (900, Some(4_100), false, false),
            (1_000, Some(180), false, true),
            (1_100, Some(150), true, true),
            (1_200, None, false, false),
            (1_300, Some(190), false, true),
            (1_400, Some(150), true, true),
        ] {
            footings.observe(&sampled(now, lag), |_| Favour::default(), (BOUND, SLOW), at(now));
            let serves = |bound| lag.is_some_and(|lag| ms(lag) <= footings.of(&node).held_to(bound));
            assert_eq!((serves(ms(200)), serves(ms(5_000))), (tight, loose), "at {now} ms");
        }
    }

    /// What one number tells of all bounds is what each would remember of its own.
    #[test]
    fn every_bound_is_judged_as_if_it_were_the_only_one() {
        let bounds: Vec<Duration> = (0..60).map(|n| Duration::from_millis(n * 20)).collect();
        let mut own: Vec<bool> = vec![false; bounds.len()];
        let (mut all, mut state) = (Duration::ZERO, 7_u64);
        for _ in 0..5_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let stale = Duration::from_millis((state >> 40) % 1_200);
            all = exceeded(all, stale);
            for (bound, out) in bounds.iter().zip(&mut own) {
                *out = stale > *bound || *out && stale > strict(*bound);
                assert_eq!(*bound < all, *out, "{bound:?} at {stale:?}");
            }
        }
    }
}
