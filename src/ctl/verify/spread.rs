//! A distribution of times in a fixed number of buckets: PURE. A quantile is at most a 64th too high.

use std::time::Duration;

/// Buckets per power of two.
const PARTS: u64 = 1 << LOG_PARTS;
/// Its logarithm.
const LOG_PARTS: u64 = 6;
/// Up to 2^40 µs, a fortnight.
const BUCKETS: usize = 40 * PARTS as usize;

/// How often which time was seen.
#[derive(Clone, Debug)]
pub struct Spread {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Spread {
    /// Count one time.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros)] += 1;
        self.total += 1;
    }

    /// All times of both.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let counts = self.counts.iter().zip(&other.counts).map(|(a, b)| a + b).collect();
        Self { counts, total: self.total + other.total }
    }

    /// How many there were.
    pub const fn count(&self) -> u64 {
        self.total
    }

    /// The time that `share` (0 to 1) of all did not exceed; `None` when there was none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (share.clamp(0.0, 1.0) * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        reached.map(|b| Duration::from_micros(upper(b)))
    }
}

/// The first 2 * PARTS buckets are a microsecond wide; above, each power of two has PARTS.
fn bucket(micros: u64) -> usize {
    let index = match micros.checked_ilog2().map(u64::from) {
        Some(log) if micros >= 2 * PARTS => (log - LOG_PARTS) * PARTS + (micros >> (log - LOG_PARTS)),
        Some(_) | None => micros,
    };
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The greatest time of a bucket, µs.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * PARTS {
        return bucket;
    }
    let log = bucket / PARTS + LOG_PARTS - 1;
    let part = bucket % PARTS + PARTS;
    ((part + 1) << (log - LOG_PARTS)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_lies_in_a_bucket_that_is_at_most_a_64th_too_high() {
        let mut last = 0;
        for micros in (0..5000).chain((13..39).flat_map(|p| [(1u64 << p) - 1, 1 << p, (1 << p) + 1])) {
            let b = bucket(micros);
            assert!(b >= last, "{micros} lies below its predecessor");
            assert!(
                upper(b) >= micros && (upper(b) - micros) * PARTS <= micros.max(1),
                "{micros} is told as {}",
                upper(b)
            );
            last = b;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_of_what_was_counted() {
        let mut s = Spread::default();
        assert_eq!(s.quantile(0.5), None);
        (1..=100).for_each(|ms| s.add(Duration::from_millis(ms)));
        for (share, ms) in [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)] {
            let got = s.quantile(share).expect("some were counted").as_micros();
            assert!((ms * 1000..=ms * 1016 + 1).contains(&got), "{share}: {got}");
        }
    }
}
