//! What lagmon shows on the admin port: the answers to `GET /lag`, also its part of `/status`, and `GET /lag/history`.

use crate::model::detail::{Sender, Slot};
use crate::model::estimate::Estimate;
use crate::model::history::{History, Point, STEP};
use crate::publish::{Node, Published};
use cluster::Instant;
use cluster::lag::{Behind, Upstream};
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
        "standbys": published.estimates.iter().map(|e| standby(published, e, now)).collect::<Vec<_>>(),
        "nodes": published.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

/// Every standby's points, oldest first. Ages are of `now`.
pub fn history(history: &History, now: Instant) -> Value {
    let point = |p: &Point| {
        json!({
            "age_ms": ms(now.since(p.start)),
            "min_ms": p.lag.map(|(least, _)| ms(least)),
            "max_ms": p.lag.map(|(_, greatest)| ms(greatest)),
            "bytes": p.bytes,
            "unknown": p.unknown,
            "conflicts": p.conflicts,
        })
    };
    let lines = history
        .lines()
        .map(|(node, points)| json!({ "node": node, "points": points.map(point).collect::<Vec<_>>() }))
        .collect::<Vec<_>>();
    json!({ "step_ms": ms(STEP), "standbys": lines })
}

fn standby(published: &Published, estimate: &Estimate, now: Instant) -> Value {
    let detail = &estimate.lag.detail;
    let sample = estimate.lag.sample.as_ref();
    let time = |b: Option<Behind>| b.map(|b| ms(b.time));
    let bytes = |b: Option<Behind>| b.map(|b| b.bytes);
    json!({
        "node": estimate.lag.node,
        "unknown": estimate.lag.replay_lag.err().map(|why| why.as_str()),
        "replay_lag_ms": time(estimate.replay),
        "flush_lag_ms": time(detail.flush),
        "write_lag_ms": time(detail.write),
        "replay_lag_bytes": sample.and_then(|s| s.replay_lag_bytes),
        "flush_lag_bytes": bytes(detail.flush),
        "write_lag_bytes": bytes(detail.write),
        "receive_lsn": sample.map(|s| s.receive_lsn),
        "replay_lsn": sample.map(|s| s.replay_lsn),
        "received_timeline": sample.and_then(|s| s.received_timeline).map(|t| t.0),
        "staleness_ms": estimate.lag.staleness_at(now).ok().map(ms),
        "sample_age_ms": estimate.sampled_at.map(|at| ms(now.since(at))),
        "data_age_ms": estimate.complete_until.map(|at| ms(now.since(at))),
        "stream_age_ms": detail.heard_at.map(|at| ms(now.since(at))),
        "streams_from": detail.upstream.as_ref().map(|u| match u {
            Upstream::Primary => published.snapshot.primary.as_ref().map_or_else(|| "primary".to_owned(), |p| p.node.to_string()),
            Upstream::Cascade(_) | Upstream::Elsewhere(_) => u.to_string(),
        }),
        "upstream": detail.upstream.as_ref().map(Upstream::kind),
        "replay_pause": detail.pause.map(|p| p.as_str()),
        "apply_delay_ms": detail.apply_delay.map(ms),
        "recovery_conflicts": detail.conflicts,
        "sorts_otherwise": detail.sorts_otherwise,
    })
}

fn node(of: &Node) -> Value {
    let senders = of.detail.senders.iter().zip(&of.receivers).map(|(s, receiver)| {
        let Sender { application_name, logical: _, state, sync_state, unflushed_bytes } = s;
        json!({
            "application_name": application_name, "kind": receiver.as_str(), "state": state, "sync_state": sync_state,
            "unflushed_bytes": unflushed_bytes,
        })
    });
    json!({
        "node": of.node,
        "slots": of.detail.slots.iter().map(slot).collect::<Vec<_>>(),
        "senders": senders.collect::<Vec<_>>(),
        "recovery_conflicts": of.detail.conflicts.map(|c| c.by_cause().map(|(cause, n)| (cause.to_owned(), n.into())))
            .map(|causes| Value::Object(causes.into_iter().collect())),
        "collations": of.detail.collations,
        "sorts_otherwise": of.sorts_otherwise,
    })
}

fn slot(s: &Slot) -> Value {
    json!({
        "slot": s.name,
        "kind": if s.logical { "logical" } else { "physical" },
        "active": s.active,
        "retained_bytes": s.retained_bytes,
        "wal_status": s.wal_status.map(|w| w.as_str()),
        "safe_wal_bytes": s.safe_wal_bytes,
        "inactive_ms": s.inactive_ms,
        "invalidation_reason": s.invalidation_reason,
    })
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::lag::{Detail, LagUnknown, StandbyLag};

    #[test]
    fn an_unknown_lag_is_null_with_its_reason_never_zero() {
        let lag_of = |replay_lag| StandbyLag {
            node: "n2".parse().unwrap(),
            sample: None,
            replay_lag,
            detail: Detail::default(),
        };
        let estimate = Estimate {
            lag: lag_of(Err(LagUnknown::ReplayPaused)),
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
