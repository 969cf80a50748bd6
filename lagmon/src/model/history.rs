//! The last ten minutes of every standby, for a line on a screen: PURE. Bounded: a point per second, each with the least
//! and the greatest lag seen in it.

use cluster::lag::StandbyLag;
use cluster::{Instant, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Time that a point covers.
pub const STEP: Duration = Duration::from_secs(1);
/// Points kept of a standby.
pub const POINTS: usize = 600;

/// How long a point is kept.
const SPAN: Duration = Duration::from_secs(STEP.as_secs() * POINTS as u64);

/// What was seen of a standby within one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// When the step began.
    pub start: Instant,
    /// Least and greatest replay lag; `None` when it was not known once.
    pub lag: Option<(Duration, Duration)>,
    /// Greatest replay lag in bytes.
    pub bytes: Option<u64>,
    /// It was unknown at least once.
    pub unknown: bool,
    /// Statements cancelled by recovery conflicts.
    pub conflicts: u64,
}

/// One standby's points, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    points: VecDeque<Point>,
    /// The server's count of conflicts when last seen.
    conflicts: Option<u64>,
}

/// The lines of all standbys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    lines: BTreeMap<NodeId, Line>,
}

impl History {
    /// Take what is known at `now`. A node that is no standby for a while, as it is the primary, keeps what it had; those that
    /// are not `kept` are forgotten.
    pub fn add(&mut self, now: Instant, standbys: &[StandbyLag], kept: impl Fn(&NodeId) -> bool) {
        self.lines.retain(|node, line| {
            line.expire(now);
            kept(node)
        });
        for standby in standbys {
            self.lines.entry(standby.node.clone()).or_default().add(now, standby);
        }
    }

    /// Every standby's points, oldest first, ordered by name.
    pub fn lines(&self) -> impl Iterator<Item = (&NodeId, impl Iterator<Item = &Point>)> {
        self.lines.iter().map(|(node, line)| (node, line.points.iter()))
    }
}

impl Line {
    fn expire(&mut self, now: Instant) {
        while self.points.front().is_some_and(|p| now.since(p.start) >= SPAN) {
            self.points.pop_front();
        }
    }

    fn add(&mut self, now: Instant, standby: &StandbyLag) {
        if self.points.back().is_none_or(|p| now.since(p.start) >= STEP) {
            if self.points.len() >= POINTS {
                self.points.pop_front();
            }
            self.points.push_back(Point { start: now, lag: None, bytes: None, unknown: false, conflicts: 0 });
        }
        let conflicts = self.new_conflicts(standby.detail.conflicts);
        let Some(point) = self.points.back_mut() else { return };
        match standby.replay_lag {
            Ok(lag) => {
                let (least, greatest) = point.lag.unwrap_or((lag, lag));
                point.lag = Some((least.min(lag), greatest.max(lag)));
            }
            Err(_) => point.unknown = true,
        }
        point.bytes = point.bytes.max(standby.sample.as_ref().and_then(|s| s.replay_lag_bytes));
        point.conflicts += conflicts;
    }

    /// Conflicts since they were last seen. A count that went back was reset: all it has is new.
    fn new_conflicts(&mut self, count: Option<u64>) -> u64 {
        let Some(count) = count else { return 0 };
        match self.conflicts.replace(count) {
            None => 0,
            Some(before) => count.checked_sub(before).unwrap_or(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::lag::{Detail, LagUnknown};

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn standby(lag: Result<u64, LagUnknown>, conflicts: Option<u64>) -> StandbyLag {
        let detail = Detail { conflicts, ..Detail::default() };
        StandbyLag { node: "n2".parse().unwrap(), sample: None, replay_lag: lag.map(Duration::from_millis), detail }
    }

    fn points(h: &History) -> Vec<Point> {
        h.lines().flat_map(|(_, line)| line.copied().collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_point_has_the_least_and_the_greatest_lag_of_its_second() {
        let mut h = History::default();
        for (ms, lag) in [(0, Ok(7)), (300, Ok(2)), (999, Err(LagUnknown::Unreachable)), (1000, Ok(9)), (1999, Ok(30))]
        {
            h.add(at(ms), &[standby(lag, None)], |_| true);
        }
        let ms = |a, b| Some((Duration::from_millis(a), Duration::from_millis(b)));
        let got: Vec<_> = points(&h).iter().map(|p| (p.start, p.lag, p.unknown)).collect();
        assert_eq!(got, [(at(0), ms(2, 7), true), (at(1000), ms(9, 30), false)]);
    }

    #[test]
    fn conflicts_are_counted_once_and_from_a_reset_on() {
        let mut h = History::default();
        for (ms, count) in [(0, Some(40)), (1000, Some(42)), (2000, None), (3000, Some(43)), (4000, Some(5))] {
            h.add(at(ms), &[standby(Ok(0), count)], |_| true);
        }
        assert_eq!(points(&h).iter().map(|p| p.conflicts).collect::<Vec<_>>(), [0, 2, 0, 1, 5]);
    }

    #[test]
    fn only_the_last_ten_minutes_of_present_nodes_are_kept() {
        let mut h = History::default();
        for second in 0..700u64 {
            h.add(at(second * 1000), &[standby(Ok(second), None)], |_| true);
        }
        let kept = points(&h);
        assert_eq!((kept.len(), kept[0].start, kept[POINTS - 1].start), (POINTS, at(100_000), at(699_000)));
        // It becomes the primary, and a standby again.
        h.add(at(700_000), &[], |_| true);
        assert_eq!((points(&h).len(), points(&h)[0].start), (POINTS - 1, at(101_000)));
        h.add(at(1_298_500), &[standby(Ok(7), None)], |_| true);
        assert_eq!(points(&h).iter().map(|p| p.start).collect::<Vec<_>>(), [at(699_000), at(1_298_500)]);
        h.add(at(1_298_600), &[], |node| node.as_str() != "n2");
        assert_eq!(points(&h), []);
    }
}
