//! The manager's metrics. Labels are enums of our own or names of configured nodes.
//!
//! Every manager exports all of these; those marked (leader) are only meaningful on the one that leads, where
//! `pgtenure_failover_leading` is 1, and are removed (absent) elsewhere, never 0.
//!
//! A process that looks after several clusters adds the label `cluster` to all of them.
//!
//! | metric | type | meaning |
//! |---|---|---|
//! | `pgtenure_failover_leading` | gauge | 1 on the leading manager, 0 on the others |
//! | `pgtenure_failover_term` | gauge | newest term read from etcd |
//! | `pgtenure_failover_phase{phase}` | gauge | 1 for the term's phase (`recruiting`, `promoting`, `opening`, `active`, `draining`), 0 for the others; all absent before a term exists |
//! | `pgtenure_failover_node_primary{node}` | gauge | 1 for the node of the newest term, 0 for the other members |
//! | `pgtenure_failover_recruits_needed` | gauge (leader) | standbys a failover would have to freeze (m - k; 1 in async mode) |
//! | `pgtenure_failover_recruits_available` | gauge (leader) | standbys that could be frozen now |
//! | `pgtenure_failover_safe_to_lose_primary` | gauge (leader) | 1: losing the primary now would lead to an open primary again, and lose nothing that the mode promises |
//! | `pgtenure_failover_suspended` | gauge | 1 while commits wait for no standby although the mode is not async |
//! | `pgtenure_failover_suspension_ended` | gauge | 1 while commits wait although no standby is there: what available mode allows has been used up |
//! | `pgtenure_failover_paused` | gauge | 1 while an operator lets no change of primary begin by itself |
//! | `pgtenure_failover_blocked{blocker}` | gauge (leader) | 1 per kind of blocker that holds the planner back now |
//! | `pgtenure_failover_agent_reachable{node}` | gauge (leader) | 1: the node's agent answered within detect_timeout |
//! | `pgtenure_failover_node_quarantined{node}` | gauge (leader) | 1: not a candidate before it replayed past a floor |
//! | `pgtenure_failover_node_fenced{node}` | gauge | 1: fenced by an operator |
//! | `pgtenure_failover_node_maintenance{node}` | gauge | 1: an operator works on the node |
//! | `pgtenure_failover_standby_streaming{node}` | gauge (leader) | 1: streams the current timeline from the primary; absent for the primary |
//! | `pgtenure_failover_standby_lag_bytes{node}` | gauge (leader) | bytes of WAL of the primary not yet replayed, by the agents' reports |
//! | `pgtenure_failover_failovers_total{cause,outcome}` | counter | terms begun by this manager; cause as in the journal (`failover`, `operator_failover`, `switchover`, `restart`), outcome `active` or `superseded` |
//! | `pgtenure_failover_last_failover_seconds` | gauge | from the first evidence to open, of the last term this manager opened |
//! | `pgtenure_failover_lost_bytes` | gauge | provisional unreplicated-write window of that term, bytes; absent where there is none |
//! | `pgtenure_failover_lost_commits{term}` | gauge | commits found past the fork in the WAL of the primary that the term replaced, by the reports of the newest 32 terms; 1 at least where not all of it could be read |
//! | `pgtenure_failover_lost_commits_found_timestamp_seconds{term}` | gauge | when that was found, by the clock of the node that did |
//! | `pgtenure_failover_store_errors_total{kind}` | counter | etcd calls that failed; kind `unavailable`, `indeterminate`, `lease_lost`, `refused` |
//! | `pgtenure_failover_records_age_seconds` | gauge | age of the last successful read of etcd by this manager; before the first since it runs |

use crate::fsm::blocker::{Blocker, Verdict};
use crate::fsm::status::Status;
use crate::record::{Cause, JournalRecord, LossReport, Mode, Phase};
use crate::store::StoreError;
use cluster::{Clock, Instant, Role};
use prometheus::{Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::sync::{Arc, Mutex};

/// The manager's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    leading: IntGauge,
    term: IntGauge,
    phase: IntGaugeVec,
    node_primary: IntGaugeVec,
    recruits_needed: IntGaugeVec,
    recruits_available: IntGaugeVec,
    safe: IntGaugeVec,
    suspended: IntGauge,
    paused: IntGauge,
    blocked: IntGaugeVec,
    agent_reachable: IntGaugeVec,
    quarantined: IntGaugeVec,
    fenced: IntGaugeVec,
    maintenance: IntGaugeVec,
    streaming: IntGaugeVec,
    lag_bytes: IntGaugeVec,
    failovers: IntCounterVec,
    last_seconds: GaugeVec,
    lost_bytes: IntGaugeVec,
    lost_commits: IntGaugeVec,
    lost_found: IntGaugeVec,
    suspension_ended: IntGauge,
    store_errors: IntCounterVec,
    records_age: Gauge,
    /// Before the first read, when this was made.
    read_at: Arc<Mutex<Instant>>,
}

/// Where metrics are registered, and the cluster they are of when there are several.
struct Place<'a> {
    registry: &'a Registry,
    cluster: Option<&'a str>,
}

impl Place<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        let opts = Opts::new(format!("pgtenure_failover_{name}"), help);
        match self.cluster {
            Some(cluster) => opts.const_label("cluster", cluster),
            None => opts,
        }
    }
}

fn gauge(r: &Place<'_>, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let g = IntGauge::with_opts(r.opts(name, help))?;
    r.registry.register(Box::new(g.clone()))?;
    Ok(g)
}

fn gauges(r: &Place<'_>, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    let g = IntGaugeVec::new(r.opts(name, help), labels)?;
    r.registry.register(Box::new(g.clone()))?;
    Ok(g)
}

fn counters(r: &Place<'_>, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    let c = IntCounterVec::new(r.opts(name, help), labels)?;
    r.registry.register(Box::new(c.clone()))?;
    Ok(c)
}

impl Metrics {
    /// Register all of them, with a label `cluster` where a process looks after several.
    ///
    /// # Errors
    /// A name is taken: two managers share a registry.
    pub fn register(registry: &Registry, cluster: Option<&str>) -> prometheus::Result<Self> {
        let r = &Place { registry, cluster };
        let help = "from the first evidence to open, last term opened here";
        let last_seconds = GaugeVec::new(r.opts("last_failover_seconds", help), &[])?;
        registry.register(Box::new(last_seconds.clone()))?;
        let records_age = Gauge::with_opts(r.opts("records_age_seconds", "age of the last read of etcd"))?;
        registry.register(Box::new(records_age.clone()))?;
        Ok(Self {
            leading: gauge(r, "leading", "1 on the leading manager")?,
            term: gauge(r, "term", "newest term read from etcd")?,
            phase: gauges(r, "phase", "1 for the phase of the newest term", &["phase"])?,
            node_primary: gauges(r, "node_primary", "1 for the node of the newest term", &["node"])?,
            recruits_needed: gauges(r, "recruits_needed", "standbys a failover would have to freeze", &[])?,
            recruits_available: gauges(r, "recruits_available", "standbys that could be frozen now", &[])?,
            safe: gauges(r, "safe_to_lose_primary", "1: losing the primary now would be safe", &[])?,
            suspended: gauge(r, "suspended", "1 while commits wait for no standby although the mode is not async")?,
            paused: gauge(r, "paused", "1 while no change of primary begins by itself")?,
            blocked: gauges(r, "blocked", "1 per kind of blocker that holds the planner back", &["blocker"])?,
            agent_reachable: gauges(r, "agent_reachable", "1: the agent answered lately", &["node"])?,
            quarantined: gauges(
                r,
                "node_quarantined",
                "1: not a candidate before it replayed past a floor",
                &["node"],
            )?,
            fenced: gauges(r, "node_fenced", "1: fenced by an operator", &["node"])?,
            maintenance: gauges(r, "node_maintenance", "1: an operator works on the node", &["node"])?,
            streaming: gauges(r, "standby_streaming", "1: streams the current timeline from the primary", &["node"])?,
            lag_bytes: gauges(r, "standby_lag_bytes", "bytes of the primary's WAL not yet replayed", &["node"])?,
            failovers: counters(r, "failovers_total", "terms begun by this manager", &["cause", "outcome"])?,
            last_seconds,
            lost_bytes: gauges(r, "lost_bytes", "provisional unreplicated-write window of the last term", &[])?,
            lost_commits: gauges(r, "lost_commits", "commits found past the fork in the old primary's WAL", &["term"])?,
            store_errors: counters(r, "store_errors_total", "etcd calls that failed", &["kind"])?,
            records_age,
            lost_found: gauges(
                r,
                "lost_commits_found_timestamp_seconds",
                "when they were found, by that node's clock",
                &["term"],
            )?,
            suspension_ended: gauge(
                r,
                "suspension_ended",
                "1 while commits wait: available mode's limits are used up",
            )?,
            read_at: Arc::new(Mutex::new(Clock.now())),
        })
    }

    /// A call of etcd failed.
    pub(crate) fn store_error(&self, error: &StoreError) {
        let kind = match error {
            StoreError::Unavailable { .. } => "unavailable",
            StoreError::Indeterminate { .. } => "indeterminate",
            StoreError::LeaseLost { .. } => "lease_lost",
            StoreError::Refused { .. } => "refused",
        };
        self.store_errors.with_label_values(&[kind]).inc();
    }

    /// The records were read.
    pub(crate) fn records_read(&self, at: Instant) {
        *self.read_at.lock().expect("no holder panics") = at;
    }

    /// A term that this manager began is open, or was given up.
    pub(crate) fn ended(&self, cause: Cause, active: bool, journal: &JournalRecord) {
        let outcome = if active { "active" } else { "superseded" };
        self.failovers.with_label_values(&[cause_word(cause), outcome]).inc();
        if !active {
            return;
        }
        if let Some(last) = journal.phases.last() {
            let seconds = std::time::Duration::from_millis(last.ms).as_secs_f64();
            self.last_seconds.with_label_values::<&str>(&[]).set(seconds);
        }
        self.lost_bytes.reset();
        if let Some(window) = journal.window {
            let bytes = i64::try_from(window.bytes).unwrap_or(i64::MAX);
            self.lost_bytes.with_label_values::<&str>(&[]).set(bytes);
        }
    }

    /// The final reports of lost WAL.
    pub(crate) fn losses(&self, reports: &[LossReport]) {
        self.lost_commits.reset();
        self.lost_found.reset();
        for report in reports {
            let term = report.term.to_string();
            let at_most = |gauge: &IntGaugeVec, n: u64| {
                let of_term = gauge.with_label_values(&[&term]);
                of_term.set(of_term.get().max(i64::try_from(n).unwrap_or(i64::MAX)));
            };
            // Several nodes may have the same commits.
            at_most(&self.lost_commits, report.at_least());
            at_most(&self.lost_found, report.examined / 1000);
        }
    }

    /// Show a status.
    pub(crate) fn show(&self, status: &Status, recruits: Option<(usize, usize)>) {
        self.leading.set(i64::from(status.leading));
        self.term.set(status.term.map_or(0, |t| i64::try_from(t.0).unwrap_or(i64::MAX)));
        if let Some(phase) = status.phase {
            for p in [Phase::Recruiting, Phase::Promoting, Phase::Opening, Phase::Active, Phase::Draining] {
                self.phase.with_label_values(&[phase_word(p)]).set(i64::from(p == phase));
            }
        }
        let suspended = status.suspended.as_ref().filter(|_| status.mode.is_some_and(|m| m != Mode::Async));
        let ended = suspended.is_some_and(|s| s.lowered.as_ref().is_some_and(|l| l.ended.is_some()));
        self.suspended.set(i64::from(suspended.is_some() && !ended));
        self.suspension_ended.set(i64::from(ended));
        self.paused.set(i64::from(status.paused.is_some()));
        let read_at = *self.read_at.lock().expect("no holder panics");
        self.records_age.set(Clock.now().since(read_at).as_secs_f64());
        // A node that was removed is gone from them too.
        for of_each_node in [&self.node_primary, &self.fenced, &self.maintenance] {
            of_each_node.reset();
        }
        for only_of_the_leader in [
            &self.recruits_needed,
            &self.recruits_available,
            &self.safe,
            &self.blocked,
            &self.agent_reachable,
            &self.quarantined,
            &self.streaming,
            &self.lag_bytes,
        ] {
            only_of_the_leader.reset();
        }
        for node in &status.nodes {
            let name = node.node.as_str();
            self.node_primary.with_label_values(&[name]).set(i64::from(status.primary.as_ref() == Some(&node.node)));
            self.fenced.with_label_values(&[name]).set(i64::from(node.fenced));
            self.maintenance.with_label_values(&[name]).set(i64::from(node.maintenance.is_some()));
        }
        if status.leading {
            self.show_as_leader(status, recruits);
        }
    }

    fn show_as_leader(&self, status: &Status, recruits: Option<(usize, usize)>) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        if let Some((needed, available)) = recruits {
            self.recruits_needed.with_label_values::<&str>(&[]).set(count(needed));
            self.recruits_available.with_label_values::<&str>(&[]).set(count(available));
        }
        self.safe.with_label_values::<&str>(&[]).set(i64::from(status.safe_to_lose_primary.as_promised));
        // What alerts ask for is there from the beginning; the others come with their first cause.
        for kind in [Blocker::PRIMARY_STUCK, Blocker::TOO_FEW_RECRUITS] {
            self.blocked.with_label_values(&[kind]).set(0);
        }
        if let Verdict::Hold { blockers } = &status.verdict {
            for blocker in blockers {
                self.blocked.with_label_values(&[blocker.kind()]).set(1);
            }
        }
        for node in &status.nodes {
            let name = node.node.as_str();
            self.agent_reachable.with_label_values(&[name]).set(i64::from(node.agent_reachable));
            self.quarantined.with_label_values(&[name]).set(i64::from(node.quarantine.is_some()));
            if status.primary.as_ref() == Some(&node.node) {
                continue;
            }
            self.streaming.with_label_values(&[name]).set(i64::from(node.streams_from.is_some()));
            if let (Some(bytes), Some(Role::Standby)) = (node.replay_lag_bytes, node.role) {
                self.lag_bytes.with_label_values(&[name]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        }
    }
}

const fn cause_word(cause: Cause) -> &'static str {
    match cause {
        Cause::Bootstrap => "bootstrap",
        Cause::Failover => "failover",
        Cause::OperatorFailover => "operator_failover",
        Cause::Switchover => "switchover",
        Cause::Restart => "restart",
    }
}

const fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Recruiting => "recruiting",
        Phase::Promoting => "promoting",
        Phase::Opening => "opening",
        Phase::Active => "active",
        Phase::Draining => "draining",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsm::planner::Planner;
    use crate::fsm::status::NodeStatus;
    use crate::fsm::timers::Settings;
    use crate::record::{Lowered, MaintenanceRecord, Standing, Suspension};
    use cluster::Endpoint;

    fn status_of(planner: &Planner) -> Status {
        planner.status(Instant::from_millis(0), "t", None)
    }

    fn shown(registry: &Registry, name: &str) -> Vec<(String, f64)> {
        let families = registry.gather();
        let family = families.iter().find(|f| f.name() == format!("pgtenure_failover_{name}"));
        let metrics = family.map(|f| f.get_metric().to_vec()).unwrap_or_default();
        let labels = |m: &prometheus::proto::Metric| m.get_label().iter().map(|l| l.value().to_owned()).collect();
        metrics.iter().map(|m| (labels(m), m.get_gauge().get_value())).collect()
    }

    #[test]
    fn what_was_lost_in_earlier_terms_is_shown_with_them() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, None).unwrap();
        let report = |term, node: &str, commits, unread_to| LossReport {
            term: cluster::Term(term),
            node: node.parse().unwrap(),
            timeline: cluster::TimelineId(1),
            fork_lsn: cluster::Lsn(1),
            end_lsn: cluster::Lsn(9),
            unread_to,
            bytes: 8,
            commits,
            aborts: 0,
            transactions: Vec::new(),
            span_ms: None,
            commits_while_suspended: 0,
            kept_in: None,
            kept_to: None,
            examined: 1000 * term,
        };
        let gap = Some(cluster::Lsn(5));
        metrics.losses(&[report(7, "n1", 12, None), report(7, "n2", 3, None), report(9, "n2", 0, gap)]);
        let of = |term: &str, n| (term.to_owned(), n);
        assert_eq!(shown(&registry, "lost_commits"), [of("7", 12.0), of("9", 1.0)]);
        let found = shown(&registry, "lost_commits_found_timestamp_seconds");
        assert_eq!(found, [of("7", 7.0), of("9", 9.0)]);
        metrics.losses(&[report(9, "n1", 0, None)]);
        assert_eq!(shown(&registry, "lost_commits"), [of("9", 0.0)]);
    }

    #[test]
    fn commits_that_wait_again_are_not_called_unprotected() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, None).unwrap();
        let mut status = status_of(&Planner::new("m", Settings::default()));
        let told = |status: &Status| {
            metrics.show(status, None);
            ["suspended", "suspension_ended"].map(|name| shown(&registry, name)[0].1)
        };
        status.mode = Some(Mode::Available);
        assert_eq!(told(&status), [0.0, 0.0]);
        let lowered = |ended: Option<&str>| Lowered {
            k: 1,
            complete_from: Some(cluster::Lsn(7)),
            timed: true,
            ended: ended.map(str::to_owned),
        };
        let suspension = |lowered| Suspension {
            term: cluster::Term(7),
            since: cluster::Lsn(5),
            since_wall: 0,
            why: "n2 is gone".into(),
            lowered,
        };
        for (lowered, mode, want) in [
            (None, Mode::Strict, [1.0, 0.0]),
            (Some(lowered(None)), Mode::Available, [1.0, 0.0]),
            (Some(lowered(Some("1 GiB"))), Mode::Available, [0.0, 1.0]),
            (Some(lowered(None)), Mode::Async, [0.0, 0.0]),
        ] {
            (status.suspended, status.mode) = (Some(suspension(lowered)), Some(mode));
            assert_eq!(told(&status), want, "{status:?}");
        }
    }

    fn in_maintenance(node: &str) -> NodeStatus {
        NodeStatus {
            node: node.parse().unwrap(),
            postgres: Endpoint { host: "h".into(), port: 1 },
            role: None,
            state: "stopped".into(),
            voter: false,
            agent_reachable: false,
            silent_ms: 0,
            timeline: None,
            receive_lsn: None,
            replay_lsn: None,
            replay_lag_bytes: None,
            replay_lag_ms: None,
            streams_from: None,
            fenced: true,
            fence: None,
            quarantine: None,
            rejoin: None,
            promise: None,
            maintenance: Some(MaintenanceRecord { by: "me".into(), why: "disk".into(), at: 0, until: None }),
            standing: Standing::default(),
            trouble: None,
            agent: None,
        }
    }

    #[test]
    fn a_node_that_was_removed_is_shown_no_longer() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, None).unwrap();
        let mut status = status_of(&Planner::new("m", Settings::default()));
        status.nodes = vec![in_maintenance("n1"), in_maintenance("n2")];
        metrics.show(&status, None);
        status.nodes.pop();
        metrics.show(&status, None);
        assert_eq!(
            ["node_primary", "node_fenced", "node_maintenance"].map(|name| shown(&registry, name).len()),
            [1; 3]
        );
    }
}
