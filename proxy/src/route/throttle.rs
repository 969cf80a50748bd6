//! Back-pressure: how long a new transaction that may write waits because the standbys cannot keep up. PURE.
//!
//! The best standby counts of those that may become primary: the one that is the least behind, relative to the limits. Where
//! replay is measured, so does the best of those that are read from, if it is further behind. At a limit the delay is nothing,
//! at twice the limit `max_delay`, and never more: writes are slowed, not stopped. The delay is that of the moment, so
//! who waits already goes on as soon as the lag has shrunk.

use crate::config::throttle::{Measure, Throttle, UnknownLag};
use cluster::lag::{LagSnapshot, LagUnknown, StandbyLag};
use cluster::topology::{Member, Topology};
use std::fmt;
use std::time::Duration;

/// A delay and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slowed {
    /// For a transaction that begins now.
    pub delay: Duration,
    /// Why.
    pub cause: Cause,
}

/// Why writes are slowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The best standby lags by too much time.
    Time {
        /// Its lag.
        lag: Duration,
        /// `proxy.throttle.max_write_lag`
        limit: Duration,
    },
    /// The best standby lags by too many bytes.
    Bytes {
        /// Its lag.
        lag: u64,
        /// `proxy.throttle.max_write_lag_bytes`
        limit: u64,
    },
    /// No standby's lag is known, and the configuration says to slow down then.
    Unknown,
}

impl Cause {
    /// All causes, for metrics.
    pub const NAMES: [&'static str; 3] = ["time", "bytes", "unknown"];

    /// The cause as one word, one of [`Self::NAMES`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Time { .. } => Self::NAMES[0],
            Self::Bytes { .. } => Self::NAMES[1],
            Self::Unknown => Self::NAMES[2],
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time { lag, limit } => write!(f, "{} ms of {} ms", lag.as_millis(), limit.as_millis()),
            Self::Bytes { lag, limit } => write!(f, "{lag} B of {limit} B"),
            Self::Unknown => f.write_str("not known"),
        }
    }
}

/// Thousandths of a limit; a delay begins above 1000.
type Ratio = u128;

/// The delay in force; `None` when there is none. Lag that was sampled in another term is not known.
pub fn slowed(rules: &Throttle, lag: &LagSnapshot, topology: &Topology) -> Option<Slowed> {
    if !rules.on() {
        return None;
    }
    let best = |matters: fn(&Member) -> bool| {
        let counts = |s: &&StandbyLag| topology.standbys.iter().any(|m| m.node == s.node && matters(m));
        let standbys = lag.standbys.iter().filter(|_| lag.term == topology.term).filter(counts);
        standbys.filter_map(|s| worst_of(rules, lag, s)).min_by_key(|(ratio, _)| *ratio)
    };
    let reader = if rules.measure == Measure::Replay { best(|m| !m.fenced) } else { None };
    let counts = best(|m| m.candidate).into_iter().chain(reader).max_by_key(|(ratio, _)| *ratio);
    match (counts, rules.unknown_lag) {
        (Some((ratio, cause)), _) => {
            let over = ratio.saturating_sub(1000).min(1000);
            let nanos = rules.max_delay.as_nanos() * over / 1000;
            let delay = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            (!delay.is_zero()).then_some(Slowed { delay, cause })
        }
        (None, UnknownLag::Delay) => Some(Slowed { delay: rules.max_delay, cause: Cause::Unknown }),
        (None, UnknownLag::Pass) => None,
    }
}

/// The limit that `standby` is closest to, or furthest beyond; `None` when nothing that has a limit is known of it. Of
/// one whose replay is paused the bytes are known, though not the time.
fn worst_of(rules: &Throttle, lag: &LagSnapshot, standby: &StandbyLag) -> Option<(Ratio, Cause)> {
    let flush = standby.detail.flush;
    let (time, bytes) = match (standby.replay_lag, rules.measure) {
        (Ok(replay), Measure::Replay) => (Some(replay), standby.sample.as_ref().and_then(|s| s.replay_lag_bytes)),
        (Ok(_), Measure::Flush) => (flush.map(|b| b.time), flush.map(|b| b.bytes)),
        (Err(LagUnknown::ReplayPaused), measure) => (None, paused_bytes(measure, lag, standby)),
        (
            Err(
                LagUnknown::NeverSampled
                | LagUnknown::Unreachable
                | LagUnknown::StreamBroken
                | LagUnknown::NoPrimarySample
                | LagUnknown::NotInRecovery
                | LagUnknown::OtherCluster,
            ),
            _,
        ) => return None,
    };
    let of_time = time
        .zip(rules.max_write_lag)
        .map(|(lag, limit)| (lag.as_nanos() * 1000 / limit.as_nanos().max(1), Cause::Time { lag, limit }));
    let of_bytes = bytes
        .zip(rules.max_write_lag_bytes)
        .map(|(lag, limit)| (u128::from(lag) * 1000 / u128::from(limit.max(1)), Cause::Bytes { lag, limit }));
    of_time.into_iter().chain(of_bytes).max_by_key(|(ratio, _)| *ratio)
}

fn paused_bytes(measure: Measure, lag: &LagSnapshot, standby: &StandbyLag) -> Option<u64> {
    let sample = standby.sample.as_ref()?;
    match measure {
        Measure::Replay => sample.replay_lag_bytes,
        Measure::Flush => Some(lag.primary.as_ref()?.flush_lsn.bytes_since(sample.receive_lsn)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::lag::{Behind, Detail, StandbySample};
    use cluster::{Endpoint, Instant, Lsn, Term};
    use proptest::prelude::*;

    fn rules(time_ms: u64, bytes: u64) -> Throttle {
        Throttle {
            max_write_lag: (time_ms > 0).then(|| Duration::from_millis(time_ms)),
            max_write_lag_bytes: (bytes > 0).then_some(bytes),
            max_delay: Duration::from_millis(100),
            ..Throttle::default()
        }
    }

    fn standby(name: &str, lag: Result<u64, LagUnknown>, bytes: u64) -> StandbyLag {
        let sample = StandbySample {
            receive_lsn: Lsn(1000),
            replay_lsn: Lsn(1000),
            received_timeline: None,
            replay_lag_bytes: Some(bytes),
            sent_at: Instant::from_millis(0),
            asked_at: Instant::from_millis(0),
            up_since: Instant::from_millis(0),
            started: None,
        };
        let replay_lag = lag.map(Duration::from_millis);
        StandbyLag { node: name.parse().unwrap(), sample: Some(sample), replay_lag, detail: Detail::default() }
    }

    fn topology(fenced: bool) -> Topology {
        both((false, true), (fenced, !fenced))
    }

    /// Of n2 and n3: is it fenced, and a candidate?
    fn both(n2: (bool, bool), n3: (bool, bool)) -> Topology {
        let member = |name: &str, (fenced, candidate)| Member {
            node: name.parse().unwrap(),
            postgres: Endpoint { host: "h".into(), port: 1 },
            fenced,
            candidate,
            zone: None,
        };
        Topology { term: Term(7), standbys: vec![member("n2", n2), member("n3", n3)], ..Topology::unknown() }
    }

    fn delay(rules: &Throttle, standbys: Vec<StandbyLag>) -> Option<(u128, &'static str)> {
        let lag = LagSnapshot { term: Term(7), primary: None, standbys, proven_at: None };
        slowed(rules, &lag, &topology(false)).map(|s| (s.delay.as_millis(), s.cause.as_str()))
    }

    #[test]
    fn the_delay_grows_from_the_limit_to_its_double_and_no_further() {
        for (lag, want) in
            [(0, None), (1000, None), (1250, Some(25)), (1999, Some(99)), (2000, Some(100)), (90_000, Some(100))]
        {
            let by_time = delay(&rules(1000, 0), vec![standby("n2", Ok(lag), 0)]);
            assert_eq!(by_time, want.map(|ms| (ms, "time")), "{lag} ms");
            let by_bytes = delay(&rules(0, 1000), vec![standby("n2", Ok(0), lag)]);
            assert_eq!(by_bytes, want.map(|ms| (ms, "bytes")), "{lag} bytes");
        }
    }

    #[test]
    fn the_best_standby_counts_and_of_it_the_worse_of_both_limits() {
        let both = rules(1000, 1000);
        let (near, far) = (standby("n2", Ok(1100), 1500), standby("n3", Ok(5000), 0));
        assert_eq!(delay(&both, vec![near.clone(), far.clone()]), Some((50, "bytes")));
        assert_eq!(delay(&both, vec![near, standby("n3", Ok(10), 10)]), None);
        // A node that is fenced cannot take over, and one that is no member is nobody's standby.
        let lag =
            LagSnapshot { term: Term(7), primary: None, standbys: vec![far, standby("n9", Ok(0), 0)], proven_at: None };
        assert_eq!(slowed(&both, &lag, &topology(true)), None);
        assert!(slowed(&both, &lag, &topology(false)).is_some());
    }

    #[test]
    fn the_best_candidate_counts_and_for_replay_the_best_reader_too() {
        let flushed = |name: &str, ms| {
            let flush = Some(Behind { bytes: 0, time: Duration::from_millis(ms) });
            StandbyLag { detail: Detail { flush, ..Detail::default() }, ..standby(name, Ok(ms), 0) }
        };
        // n2 is kept for failovers, n3 for reports.
        let topology = both((true, true), (false, false));
        let slows = |measure, standbys| {
            let lag = LagSnapshot { term: Term(7), primary: None, standbys, proven_at: None };
            slowed(&Throttle { measure, ..rules(1000, 0) }, &lag, &topology).is_some()
        };
        for (n2, n3, by_flush, by_replay) in
            [(0, 0, false, false), (0, 5000, false, true), (5000, 0, true, true), (5000, 5000, true, true)]
        {
            let standbys = || vec![flushed("n2", n2), flushed("n3", n3)];
            let both = (slows(Measure::Flush, standbys()), slows(Measure::Replay, standbys()));
            assert_eq!(both, (by_flush, by_replay), "{n2} ms and {n3} ms");
        }
        // Where nothing is known of one kind the other counts alone.
        assert!(!slows(Measure::Replay, vec![flushed("n2", 0), standby("n3", Err(LagUnknown::Unreachable), 0)]));
        assert!(!slows(Measure::Replay, vec![standby("n2", Err(LagUnknown::Unreachable), 0), flushed("n3", 0)]));
    }

    #[test]
    fn when_no_lag_is_known_the_configuration_decides() {
        let lost = |why| vec![standby("n2", Err(why), 90_000)];
        let (pass, slow) = (rules(1000, 1000), Throttle { unknown_lag: UnknownLag::Delay, ..rules(1000, 1000) });
        for why in [LagUnknown::Unreachable, LagUnknown::StreamBroken, LagUnknown::NeverSampled] {
            assert_eq!(delay(&pass, lost(why)), None);
            assert_eq!(delay(&slow, lost(why)), Some((100, "unknown")));
        }
        // One that is known counts alone.
        assert_eq!(delay(&slow, vec![standby("n2", Err(LagUnknown::Unreachable), 0), standby("n3", Ok(0), 0)]), None);
        // Another term's lag says nothing.
        let lag =
            LagSnapshot { term: Term(6), primary: None, standbys: vec![standby("n2", Ok(0), 0)], proven_at: None };
        assert_eq!(slowed(&slow, &lag, &topology(false)).map(|s| s.cause), Some(Cause::Unknown));
        // Of a paused replay the bytes are known, and only they.
        assert_eq!(delay(&rules(0, 1000), lost(LagUnknown::ReplayPaused)), Some((100, "bytes")));
        assert_eq!(delay(&rules(1000, 0), lost(LagUnknown::ReplayPaused)), None);
    }

    #[test]
    fn what_is_measured_is_chosen() {
        let mut s = standby("n2", Ok(5000), 5000);
        s.detail.flush = Some(Behind { bytes: 1500, time: Duration::from_millis(0) });
        let flush = Throttle { measure: Measure::Flush, ..rules(1000, 1000) };
        assert_eq!(delay(&flush, vec![s.clone()]), Some((50, "bytes")));
        assert_eq!(delay(&rules(1000, 1000), vec![s]), Some((100, "bytes")));
    }

    #[test]
    fn without_limits_nothing_is_ever_slowed() {
        let off = Throttle { unknown_lag: UnknownLag::Delay, ..rules(0, 0) };
        assert_eq!(delay(&off, vec![]), None);
        assert_eq!(delay(&off, vec![standby("n2", Ok(90_000), 1 << 40)]), None);
    }

    proptest! {
        #[test]
        fn more_lag_is_never_less_delay_and_it_is_bounded(a in 0u64..100_000, b in 0u64..100_000, limit in 1u64..10_000) {
            let of = |lag| delay(&rules(limit, 0), vec![standby("n2", Ok(lag), 0)]).map_or(0, |(ms, _)| ms);
            prop_assert!(of(a.max(b)) >= of(a.min(b)) && of(a.max(b)) <= 100);
        }
    }
}
