//! lagmon's metrics. Lags, ages and positions are taken from the published state when scraped, so that ages are of
//! that moment and what is not known is absent.
//!
//! Per standby (`node`): `pgtenure_lagmon_{write,flush,replay}_lag_seconds`, `pgtenure_lagmon_{write,flush,replay}_lag_bytes`
//! (replay bytes also while replay is paused or the stream is broken), `pgtenure_lagmon_lag_unknown{reason}` (1 for
//! the reason that holds, else 0), `pgtenure_lagmon_data_age_seconds` (since its data were last known to be complete;
//! grows while the lag is unknown), `pgtenure_lagmon_stream_age_seconds` (since its receiver last heard from its sender;
//! on an idle primary that is no lag), `pgtenure_lagmon_apply_delay_seconds` (absent when none is set),
//! `pgtenure_lagmon_upstream{kind}`, `pgtenure_lagmon_recovery_conflicts_total{cause}` (the server's own count, which a
//! reset of its statistics sets back). Per slot of a node (`slot`; as many as a node tells, 64 at most):
//! `pgtenure_lagmon_slot_retained_bytes`, `pgtenure_lagmon_slot_active`, `pgtenure_lagmon_slot_wal_status{status}`.
//! Per node: `pgtenure_lagmon_senders{kind}`, `pgtenure_lagmon_sorts_otherwise`, `pgtenure_lagmon_sample_age_seconds`,
//! `pgtenure_lagmon_node_role{role}`, `pgtenure_lagmon_probes_total{outcome}`, `pgtenure_lagmon_probe_seconds`. Of the
//! cluster: `pgtenure_lagmon_term`, `pgtenure_lagmon_primary_flush_position_bytes`,
//! `pgtenure_lagmon_demanded_rounds_total`.

use crate::model::detail::{Receiver, WalStatus};
use crate::model::estimate::Estimate;
use crate::publish::{Node, Published};
use cluster::lag::{Behind, LagUnknown, Upstream};
use cluster::{Clock, Instant, NodeId, Role};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Upper bounds of the probe histogram, seconds: from a local round trip to the longest timeout in use.
const PROBE_BUCKETS: [f64; 11] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

const REASONS: [LagUnknown; 7] = [
    LagUnknown::NeverSampled,
    LagUnknown::Unreachable,
    LagUnknown::StreamBroken,
    LagUnknown::ReplayPaused,
    LagUnknown::NoPrimarySample,
    LagUnknown::NotInRecovery,
    LagUnknown::OtherCluster,
];

/// Counts probes.
#[derive(Clone, Debug)]
pub(crate) struct Probes {
    total: IntCounterVec,
    seconds: HistogramVec,
    /// Rounds on demand.
    pub(crate) rounds: IntCounter,
}

impl Probes {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let total = Opts::new("pgtenure_lagmon_probes_total", "Probes of a node, by outcome");
        let total = IntCounterVec::new(total, &["node", "outcome"])?;
        let seconds = HistogramOpts::new("pgtenure_lagmon_probe_seconds", "Time a probe took, connecting included");
        let seconds = HistogramVec::new(seconds.buckets(PROBE_BUCKETS.to_vec()), &["node"])?;
        let rounds = "Rounds of probes that were made because somebody waited for one";
        let rounds = IntCounter::new("pgtenure_lagmon_demanded_rounds_total", rounds)?;
        registry.register(Box::new(total.clone()))?;
        registry.register(Box::new(rounds.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { total, seconds, rounds })
    }

    pub(crate) fn observe(&self, node: &NodeId, answered: bool, took: Duration) {
        let outcome = if answered { "answered" } else { "failed" };
        self.total.with_label_values(&[node.as_str(), outcome]).inc();
        self.seconds.with_label_values(&[node.as_str()]).observe(took.as_secs_f64());
    }
}

/// Collects everything else from what was published.
pub(crate) struct Lags {
    published: watch::Receiver<Arc<Published>>,
    term: IntGauge,
    primary_flush: Gauge,
    seconds: [GaugeVec; 3],
    bytes: [GaugeVec; 3],
    data_age: GaugeVec,
    sample_age: GaugeVec,
    unknown: GaugeVec,
    role: GaugeVec,
    stream_age: GaugeVec,
    apply_delay: GaugeVec,
    upstream: GaugeVec,
    slot_retained: GaugeVec,
    slot_active: GaugeVec,
    slot_status: GaugeVec,
    senders: GaugeVec,
    sorts_otherwise: GaugeVec,
    conflicts: CounterVec,
    /// Two scrapes at once would empty each other's vectors.
    filling: Mutex<()>,
}

impl Lags {
    pub(crate) fn register(
        registry: &Registry,
        published: watch::Receiver<Arc<Published>>,
    ) -> Result<(), prometheus::Error> {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(format!("pgtenure_lagmon_{name}"), help), labels)
        };
        let behind = |unit: &str, what: &str| {
            Ok::<_, prometheus::Error>([
                gauges(&format!("write_lag_{unit}"), &format!("{what} that a standby has not written"), &["node"])?,
                gauges(&format!("flush_lag_{unit}"), &format!("{what} that a standby has not flushed"), &["node"])?,
                gauges(&format!("replay_lag_{unit}"), &format!("{what} that a standby has not replayed"), &["node"])?,
            ])
        };
        let age = "Since a standby's data were last known to be complete";
        let position = "WAL position that the primary has flushed";
        let conflicts = "pgtenure_lagmon_recovery_conflicts_total";
        let conflicts =
            Opts::new(conflicts, "Statements of a standby cancelled by recovery conflicts, by its own count");
        let lags = Self {
            published,
            term: IntGauge::new("pgtenure_lagmon_term", "The term whose primary is sampled")?,
            primary_flush: Gauge::new("pgtenure_lagmon_primary_flush_position_bytes", position)?,
            seconds: behind("seconds", "Age of the oldest WAL")?,
            bytes: behind("bytes", "WAL")?,
            data_age: gauges("data_age_seconds", age, &["node"])?,
            sample_age: gauges("sample_age_seconds", "Since the newest probe that was answered was sent", &["node"])?,
            unknown: gauges("lag_unknown", "1 for the reason why a standby's lag is not known", &["node", "reason"])?,
            role: gauges("node_role", "1 for what the node is in the term in force", &["node", "role"])?,
            stream_age: gauges(
                "stream_age_seconds",
                "Since a standby's receiver last heard from its sender",
                &["node"],
            )?,
            apply_delay: gauges("apply_delay_seconds", "recovery_min_apply_delay of a standby", &["node"])?,
            upstream: gauges("upstream", "1 for what a standby streams from", &["node", "kind"])?,
            slot_retained: gauges("slot_retained_bytes", "WAL that a replication slot retains", &["node", "slot"])?,
            slot_active: gauges("slot_active", "1 while somebody streams from the slot", &["node", "slot"])?,
            slot_status: gauges("slot_wal_status", "1 for the slot's wal_status", &["node", "slot", "status"])?,
            senders: gauges("senders", "Receivers that a node sends WAL to, by what they are", &["node", "kind"])?,
            sorts_otherwise: gauges(
                "sorts_otherwise",
                "1 for a node whose collations are of other versions than the primary's",
                &["node"],
            )?,
            conflicts: CounterVec::new(conflicts, &["node", "cause"])?,
            filling: Mutex::new(()),
        };
        registry.register(Box::new(lags))
    }

    fn vectors(&self) -> impl Iterator<Item = &GaugeVec> {
        let rest = [
            &self.data_age,
            &self.sample_age,
            &self.unknown,
            &self.role,
            &self.stream_age,
            &self.apply_delay,
            &self.upstream,
            &self.slot_retained,
            &self.slot_active,
            &self.slot_status,
            &self.senders,
            &self.sorts_otherwise,
        ];
        self.seconds.iter().chain(&self.bytes).chain(rest)
    }

    fn fill(&self, published: &Published, now: Instant) {
        self.vectors().for_each(GaugeVec::reset);
        self.conflicts.reset();
        self.term.set(i64::try_from(published.snapshot.term.0).unwrap_or(i64::MAX));
        if let Some(primary) = &published.snapshot.primary {
            self.primary_flush.set(primary.flush_lsn.0 as f64);
            let node = primary.node.as_str();
            self.sample_age.with_label_values(&[node]).set(now.since(primary.sent_at).as_secs_f64());
            self.role.with_label_values(&[node, role(Role::Primary)]).set(1.0);
        }
        published.estimates.iter().for_each(|e| self.fill_standby(e, now));
        published.nodes.iter().for_each(|n| self.fill_node(n));
    }

    fn fill_node(&self, of: &Node) {
        let node = of.node.as_str();
        for slot in &of.detail.slots {
            let labels = [node, slot.name.as_str()];
            self.slot_active.with_label_values(&labels).set(f64::from(u8::from(slot.active)));
            if let Some(bytes) = slot.retained_bytes {
                self.slot_retained.with_label_values(&labels).set(bytes as f64);
            }
            for status in WalStatus::ALL {
                let holds = slot.wal_status == Some(status);
                let labels = [node, slot.name.as_str(), status.as_str()];
                self.slot_status.with_label_values(&labels).set(f64::from(u8::from(holds)));
            }
        }
        self.sorts_otherwise.with_label_values(&[node]).set(f64::from(u8::from(of.sorts_otherwise)));
        for kind in Receiver::ALL {
            let count = of.receivers.iter().filter(|r| **r == kind).count();
            self.senders.with_label_values(&[node, kind.as_str()]).set(count as f64);
        }
        for (cause, count) in of.detail.conflicts.iter().flat_map(|c| c.by_cause()) {
            self.conflicts.with_label_values(&[node, cause]).inc_by(count as f64);
        }
    }

    fn fill_standby(&self, estimate: &Estimate, now: Instant) {
        let node = estimate.lag.node.as_str();
        let parts: [Option<Behind>; 3] = [estimate.lag.detail.write, estimate.lag.detail.flush, estimate.replay];
        for (i, behind) in parts.iter().enumerate() {
            if let Some(behind) = behind {
                self.seconds[i].with_label_values(&[node]).set(behind.time.as_secs_f64());
                self.bytes[i].with_label_values(&[node]).set(behind.bytes as f64);
            }
        }
        let replay_bytes = estimate.lag.sample.as_ref().and_then(|s| s.replay_lag_bytes);
        if let Some(bytes) = replay_bytes {
            self.bytes[2].with_label_values(&[node]).set(bytes as f64);
        }
        let detail = &estimate.lag.detail;
        if let Some(delay) = detail.apply_delay {
            self.apply_delay.with_label_values(&[node]).set(delay.as_secs_f64());
        }
        for kind in Upstream::KINDS {
            let holds = detail.upstream.as_ref().is_some_and(|u| u.kind() == kind);
            self.upstream.with_label_values(&[node, kind]).set(f64::from(u8::from(holds)));
        }
        let ages = [
            (&self.data_age, estimate.complete_until),
            (&self.sample_age, estimate.sampled_at),
            (&self.stream_age, detail.heard_at),
        ];
        for (gauge, since) in ages {
            if let Some(since) = since {
                gauge.with_label_values(&[node]).set(now.since(since).as_secs_f64());
            }
        }
        for reason in REASONS {
            let holds = estimate.lag.replay_lag == Err(reason);
            self.unknown.with_label_values(&[node, reason.as_str()]).set(f64::from(u8::from(holds)));
        }
        self.role.with_label_values(&[node, role(Role::Standby)]).set(1.0);
    }
}

const fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Standby => "standby",
    }
}

impl Collector for Lags {
    fn desc(&self) -> Vec<&Desc> {
        let scalars = [self.term.desc(), self.primary_flush.desc()];
        let vectors = self.vectors().flat_map(Collector::desc).chain(self.conflicts.desc());
        scalars.into_iter().flatten().chain(vectors).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let published = Arc::clone(&self.published.borrow());
        let _alone = self.filling.lock().expect("no code panics while it holds this lock");
        self.fill(&published, Clock.now());
        let mut families = self.term.collect();
        if published.snapshot.primary.is_some() {
            families.extend(self.primary_flush.collect());
        }
        families.extend(self.vectors().flat_map(Collector::collect));
        families.extend(self.conflicts.collect());
        families
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::detail::NodeDetail;
    use cluster::lag::LagSnapshot;

    #[test]
    fn a_node_that_sorts_otherwise_is_shown() {
        let node = |name: &str, sorts_otherwise| Node {
            node: name.parse().unwrap(),
            detail: NodeDetail::default(),
            receivers: Vec::new(),
            sorts_otherwise,
        };
        let nodes = vec![node("n1", false), node("n2", true)];
        let published = Published { snapshot: Arc::new(LagSnapshot::default()), estimates: Vec::new(), nodes };
        let (_sender, receiver) = watch::channel(Arc::new(published));
        let registry = Registry::new();
        Lags::register(&registry, receiver).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [r#"sorts_otherwise{node="n1"} 0"#, r#"sorts_otherwise{node="n2"} 1"#] {
            assert!(text.contains(&format!("pgtenure_lagmon_{line}")), "{text}");
        }
    }
}
