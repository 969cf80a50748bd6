//! The agent's metrics: `pgtenure_failover_agent_*`.

use super::Agent;
use crate::api::PostgresState;
use prometheus::{Gauge, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};
use std::time::Duration;

/// States of PostgreSQL, as label values.
const STATES: [&str; 6] = ["absent", "stopped", "starting", "standby", "primary", "hung"];

/// Registered once per agent.
#[derive(Debug)]
pub(crate) struct Metrics {
    promise: IntGauge,
    postgres: IntGaugeVec,
    observed_age: Gauge,
    lease_left: Gauge,
    fsync: Gauge,
    fenced: IntGauge,
    quarantined: IntGauge,
    trouble: IntGauge,
    impostors: IntGauge,
    /// Of those, ended because the node itself was connected too.
    pub(super) impostors_ended: IntCounter,
    /// Receivers of WAL that were ended so that a standby finds a place.
    pub(super) receivers_ended: IntCounter,
    records_age: Gauge,
    /// 1 while the lease rests on the other agents' signatures.
    pub(super) countersigned: IntGauge,
    /// 1 while the watchdog device counts down.
    pub(super) watchdog_armed: IntGauge,
    /// Commits found in lost WAL.
    pub(super) lost_commits: IntCounter,
    /// etcd calls that failed.
    pub(super) store_errors: IntCounter,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| IntGauge::new(format!("pgtenure_failover_agent_{name}"), help);
        let seconds = |name: &str, help: &str| Gauge::new(format!("pgtenure_failover_agent_{name}"), help);
        let counter = |name: &str, help: &str| IntCounter::new(format!("pgtenure_failover_agent_{name}"), help);
        let m = Self {
            promise: gauge("promised_term", "Highest term promised by this agent")?,
            postgres: IntGaugeVec::new(
                Opts::new("pgtenure_failover_agent_postgres", "1 for the state that PostgreSQL is in"),
                &["state"],
            )?,
            observed_age: seconds("observed_age_seconds", "Since PostgreSQL last answered")?,
            lease_left: seconds("lease_remaining_seconds", "Until the primary's lease must be renewed; 0 without one")?,
            fsync: seconds("fsync_probe_seconds", "Last write and fsync beside the WAL")?,
            fenced: gauge("fenced", "1 while an operator has fenced this node")?,
            quarantined: gauge("quarantined", "1 while this node counts neither as recruit nor as candidate")?,
            trouble: gauge("trouble", "1 while something is wrong that the agent cannot repair")?,
            impostors: gauge("impostors", "Walsenders that use a node's name without being that node")?,
            impostors_ended: counter(
                "impostors_ended_total",
                "Walsenders under a connected node's name that were ended",
            )?,
            receivers_ended: counter("receivers_ended_total", "Receivers of WAL ended for a standby's place")?,
            records_age: seconds(
                "records_age_seconds",
                "Since etcd's records were last read, before the first time since the agent runs",
            )?,
            countersigned: gauge(
                "countersigned",
                "1 while etcd does not renew the lease and the other agents sign for it",
            )?,
            watchdog_armed: gauge("watchdog_armed", "1 while the watchdog device counts down")?,
            lost_commits: counter("lost_commits_total", "Commits found in WAL that the cluster has not")?,
            store_errors: counter("store_errors_total", "Calls to etcd that failed")?,
        };
        registry.register(Box::new(m.promise.clone()))?;
        registry.register(Box::new(m.postgres.clone()))?;
        for g in [&m.observed_age, &m.lease_left, &m.fsync, &m.records_age] {
            registry.register(Box::new(g.clone()))?;
        }
        for g in [&m.fenced, &m.quarantined, &m.trouble, &m.impostors, &m.countersigned, &m.watchdog_armed] {
            registry.register(Box::new(g.clone()))?;
        }
        for c in [&m.lost_commits, &m.store_errors, &m.impostors_ended, &m.receivers_ended] {
            registry.register(Box::new(c.clone()))?;
        }
        Ok(m)
    }
}

impl Agent {
    /// Copy the state into the metrics every second; those that are asked for are at most so old.
    pub(super) async fn refresh_metrics(&self) {
        let began = self.env.clock.now();
        loop {
            let (now, o, m) = (self.env.clock.now(), self.state.get(), &self.metrics);
            let told = o.told(&self.env, now);
            let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
            m.promise.set(i64::try_from(o.promise.0).unwrap_or(i64::MAX));
            for state in STATES {
                m.postgres.with_label_values(&[state]).set(i64::from(state == name(&o.postgres)));
            }
            m.observed_age.set(seconds(told.observed_ms_ago));
            m.lease_left.set(seconds(told.lease_left_ms.unwrap_or(0)));
            m.fsync.set(seconds(told.fsync_probe_ms.unwrap_or(0)));
            let read_at = self.records.borrow().read_at.unwrap_or(began);
            m.records_age.set(now.since(read_at).as_secs_f64());
            m.fenced.set(i64::from(o.fenced));
            m.quarantined.set(i64::from(o.quarantine.is_some()));
            m.trouble.set(i64::from(told.trouble.is_some()));
            let impostors = if let PostgresState::Primary(p) = &o.postgres { p.impostors.len() } else { 0 };
            m.impostors.set(i64::try_from(impostors).unwrap_or(i64::MAX));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn name(state: &PostgresState) -> &'static str {
    match state {
        PostgresState::Absent => "absent",
        PostgresState::Stopped { .. } => "stopped",
        PostgresState::Starting => "starting",
        PostgresState::Standby(_) => "standby",
        PostgresState::Primary(_) => "primary",
        PostgresState::Hung { .. } => "hung",
    }
}
