//! What lagmon shows on the admin port: the answer to `GET /lag`, also its part of `/status`.

use crate::model::estimate::{Behind, Estimate};
use crate::publish::Published;
use cluster::Instant;
use serde_json::{Value, json};
use std::time::Duration;

/// The published state as JSON. Ages are of `now`; what is not known is null, and `unknown` says why.
pub fn lag(published: &Published, now: Instant) -> Value {
    let snapshot = &published.snapshot;
    json!({
        "term": snapshot.term,
        "primary": snapshot.primary.as_ref().map(|p| json!({
            "node": p.node,
            "timeline": p.timeline.0,
            "insert_lsn": p.insert_lsn,
            "flush_lsn": p.flush_lsn,
            "sample_age_ms": ms(now.since(p.sent_at)),
        })),
        "standbys": published.estimates.iter().map(|e| standby(e, now)).collect::<Vec<_>>(),
    })
}

fn standby(estimate: &Estimate, now: Instant) -> Value {
    let sample = estimate.lag.sample.as_ref();
    let time = |b: Option<Behind>| b.map(|b| ms(b.time));
    let bytes = |b: Option<Behind>| b.map(|b| b.bytes);
    json!({
        "node": estimate.lag.node,
        "unknown": estimate.lag.replay_lag.err().map(|why| why.as_str()),
        "replay_lag_ms": time(estimate.replay),
        "flush_lag_ms": time(estimate.flush),
        "write_lag_ms": time(estimate.write),
        "replay_lag_bytes": sample.and_then(|s| s.replay_lag_bytes),
        "flush_lag_bytes": bytes(estimate.flush),
        "write_lag_bytes": bytes(estimate.write),
        "receive_lsn": sample.map(|s| s.receive_lsn),
        "replay_lsn": sample.map(|s| s.replay_lsn),
        "received_timeline": sample.and_then(|s| s.received_timeline).map(|t| t.0),
        "staleness_ms": estimate.lag.staleness_at(now).ok().map(ms),
        "sample_age_ms": estimate.sampled_at.map(|at| ms(now.since(at))),
        "data_age_ms": estimate.complete_until.map(|at| ms(now.since(at))),
    })
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::lag::{LagUnknown, StandbyLag};

    #[test]
    fn an_unknown_lag_is_null_with_its_reason_never_zero() {
        let lag_of = |replay_lag| StandbyLag { node: "n2".parse().unwrap(), sample: None, replay_lag };
        let estimate = Estimate {
            lag: lag_of(Err(LagUnknown::ReplayPaused)),
            write: None,
            flush: None,
            replay: None,
            sampled_at: Some(Instant::from_millis(900)),
            complete_until: Some(Instant::from_millis(100)),
        };
        let published = Published { estimates: vec![estimate], ..Published::default() };
        let shown = lag(&published, Instant::from_millis(1000));
        let n2 = &shown["standbys"][0];
        assert_eq!((&n2["replay_lag_ms"], &n2["replay_lag_bytes"]), (&Value::Null, &Value::Null));
        assert_eq!((n2["unknown"].as_str(), n2["sample_age_ms"].as_u64()), (Some("replay_paused"), Some(100)));
        assert_eq!((n2["data_age_ms"].as_u64(), &shown["primary"]), (Some(900), &Value::Null));
    }
}
