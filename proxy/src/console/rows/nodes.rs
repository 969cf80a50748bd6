//! Rows about the cluster: `SHOW LAG` and `TOPOLOGY`.

use super::Facts;
use crate::console::table::Row;
use crate::route::throttle;
use cluster::Role;
use cluster::lag::Freshness;
use std::time::Duration;

impl Facts<'_> {
    pub(super) fn lag_rows(&self) -> Vec<Row> {
        let millis = |d: Duration| d.as_millis();
        let of = |s: &cluster::lag::StandbyLag| {
            let (freshness, staleness, reason) = match s.freshness_at(self.now, self.config.max_replay_lag) {
                Freshness::Fresh { staleness } => ("fresh", Some(millis(staleness)), None),
                Freshness::Lagging { staleness } => ("lagging", Some(millis(staleness)), None),
                Freshness::Unknown { why } => ("unknown", None, Some(why.as_str())),
            };
            let (sample, detail) = (s.sample.as_ref(), &s.detail);
            let avoided = detail.sorts_otherwise && !self.config.reads.allow_other_collations;
            let reason = reason.or_else(|| avoided.then_some("sorts_otherwise"));
            vec![
                s.node.to_string().into(),
                freshness.into(),
                staleness.into(),
                s.replay_lag.ok().map(millis).into(),
                sample.and_then(|s| s.replay_lag_bytes).into(),
                sample.map(|s| millis(self.now.since(s.sent_at))).into(),
                sample.map(|s| s.receive_lsn.to_string()).into(),
                sample.map(|s| s.replay_lsn.to_string()).into(),
                reason.into(),
                detail.write.map(|b| millis(b.time)).into(),
                detail.write.map(|b| b.bytes).into(),
                detail.flush.map(|b| millis(b.time)).into(),
                detail.flush.map(|b| b.bytes).into(),
                detail.heard_at.map(|at| millis(self.now.since(at))).into(),
                detail.upstream.as_ref().map(ToString::to_string).into(),
                detail.pause.map(|p| p.as_str()).into(),
                detail.apply_delay.map(millis).into(),
                detail.conflicts.into(),
            ]
        };
        self.lag.standbys.iter().map(of).collect()
    }

    pub(super) fn throttle_rows(&self) -> Vec<Row> {
        let rules = &self.config.throttle;
        let slowed = throttle::slowed(rules, self.lag, self.topology);
        vec![vec![
            slowed.is_some().into(),
            slowed.map(|s| s.delay.as_millis()).into(),
            slowed.map(|s| s.cause.as_str()).into(),
            slowed.map(|s| s.cause.to_string()).into(),
            rules.on().then_some(rules.max_delay.as_millis()).into(),
        ]]
    }

    pub(super) fn topology_rows(&self) -> Vec<Row> {
        let gate = self.topology.gate_at(self.now);
        let primary = self.topology.primary.iter().map(|m| (m, Role::Primary));
        let standbys = self.topology.standbys.iter().map(|m| (m, Role::Standby));
        let of = |(m, role): (&cluster::topology::Member, Role)| {
            let (word, gate) = match role {
                Role::Primary => ("primary", Some(gate.as_str())),
                Role::Standby => ("standby", None),
            };
            vec![
                m.node.to_string().into(),
                word.into(),
                m.postgres.host.clone().into(),
                m.postgres.port.into(),
                m.fenced.into(),
                self.topology.term.0.into(),
                gate.into(),
                m.zone.clone().into(),
            ]
        };
        primary.chain(standbys).map(of).collect()
    }
}
