//! A view's metrics. The age is computed when scraped: a reader that hangs must not export a young age.
//!
//! `pgtenure_failover_view_term`, `pgtenure_failover_view_gate{gate}` (1 for the gate that holds now, else 0),
//! `pgtenure_failover_view_age_seconds` (before the first read since the process reads), `pgtenure_failover_view_primary{node}`,
//! `pgtenure_failover_view_reads_total{outcome}`.

use super::Health;
use cluster::topology::{Closed, Gate, Topology};
use cluster::{Clock, Instant};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::sync::Mutex;
use tokio::sync::watch;

const GATES: [Gate; 10] = [
    Gate::Open,
    Gate::Draining,
    Gate::Closed(Closed::Unknown),
    Gate::Closed(Closed::Vacant),
    Gate::Closed(Closed::Recruiting),
    Gate::Closed(Closed::Promoting),
    Gate::Closed(Closed::Opening),
    Gate::Closed(Closed::Stale),
    Gate::Closed(Closed::Fenced),
    Gate::Closed(Closed::Unleased),
];

/// Counts reads; everything else is collected from what was published.
#[derive(Debug)]
pub(super) struct Metrics {
    ok: IntCounter,
    failed: IntCounter,
}

impl Metrics {
    pub(super) fn new(
        registry: &Registry,
        topology: watch::Receiver<Topology>,
        health: watch::Receiver<Health>,
    ) -> Result<Self, prometheus::Error> {
        let opts = Opts::new("pgtenure_failover_view_reads_total", "Reads of the cluster's records, by outcome");
        let reads = IntCounterVec::new(opts, &["outcome"])?;
        registry.register(Box::new(reads.clone()))?;
        registry.register(Box::new(Published::new(topology, health)?))?;
        Ok(Self { ok: reads.with_label_values(&["ok"]), failed: reads.with_label_values(&["failed"]) })
    }

    pub(super) fn read_ok(&self) {
        self.ok.inc();
    }

    pub(super) fn read_failed(&self) {
        self.failed.inc();
    }
}

/// Collects the gauges from the published view.
struct Published {
    topology: watch::Receiver<Topology>,
    health: watch::Receiver<Health>,
    term: IntGauge,
    gate: GaugeVec,
    primary: GaugeVec,
    age: Gauge,
    began: Instant,
    /// Two scrapes at once would empty each other's vectors.
    filling: Mutex<()>,
}

impl Published {
    fn new(topology: watch::Receiver<Topology>, health: watch::Receiver<Health>) -> Result<Self, prometheus::Error> {
        let gauges = |name: &str, help: &str, label: &str| GaugeVec::new(Opts::new(name, help), &[label]);
        Ok(Self {
            topology,
            health,
            term: IntGauge::new("pgtenure_failover_view_term", "The newest term this process acts on")?,
            gate: gauges("pgtenure_failover_view_gate", "1 for the gate that holds now", "gate")?,
            primary: gauges("pgtenure_failover_view_primary", "1 for the primary of the term", "node")?,
            age: Gauge::new("pgtenure_failover_view_age_seconds", "Since the last read of etcd that succeeded")?,
            began: Clock.now(),
            filling: Mutex::new(()),
        })
    }
}

impl Collector for Published {
    fn desc(&self) -> Vec<&Desc> {
        [self.term.desc(), self.gate.desc(), self.primary.desc(), self.age.desc()].into_iter().flatten().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = Clock.now();
        let _alone = self.filling.lock().expect("no code panics while it holds this lock");
        let mut families = Vec::new();
        {
            let topology = self.topology.borrow();
            self.term.set(i64::try_from(topology.term.0).unwrap_or(i64::MAX));
            let holds = topology.gate_at(now);
            for gate in GATES {
                self.gate.with_label_values(&[gate.as_str()]).set(f64::from(u8::from(gate == holds)));
            }
            self.primary.reset();
            if let Some(primary) = &topology.primary {
                self.primary.with_label_values(&[primary.node.as_str()]).set(1.0);
            }
        }
        families.extend(self.term.collect());
        families.extend(self.gate.collect());
        families.extend(self.primary.collect());
        let read_at = self.health.borrow().read_at.unwrap_or(self.began);
        self.age.set(now.since(read_at).as_secs_f64());
        families.extend(self.age.collect());
        families
    }
}
