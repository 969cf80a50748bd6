//! `[manager]`: how deaths are noticed and how long each step of a failover may take.

use crate::fsm::timers::Settings;
use cluster::config::{BadSetting, Size, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `[manager]` as typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagerRaw {
    /// The primary is suspected when its agent and, as the other agents see it, its PostgreSQL were silent for so
    /// long. Shorter finds deaths sooner and mistakes pauses for deaths more often. Default `1s`: four missed probes.
    pub detect_timeout: Span,
    /// A postmaster that lives but answers no query for so long counts as dead. Default `3s`: longer than a
    /// checkpoint's stall on a slow disk.
    pub hung_timeout: Span,
    /// A primary that answers but cannot commit for so long, because its disk hangs or no quorum of standbys
    /// acknowledges, is replaced if the others are better. Default `5s`: disks of virtual machines stall for seconds.
    pub stuck_timeout: Span,
    /// An agent answers a state request at a change or after so long. Default `200ms`.
    pub poll_wait: Span,
    /// Bound on one HTTP exchange with an agent beyond the time that the command itself may take. Default `1s`.
    pub agent_timeout: Span,
    /// Time to freeze one node, including the replay of its local WAL after a restart. Default `30s`.
    pub freeze_timeout: Span,
    /// How long to wait for further reachable nodes once enough are frozen; for none where a switchover's target has the old
    /// primary's clean end. Default `500ms`.
    pub recruit_grace: Span,
    /// Time for a promotion, including the replay of WAL received; then the candidate is stopped. Default `30s`.
    pub promote_timeout: Span,
    /// With data loss allowed by an operator: how long to wait for enough standbys to follow before opening without
    /// them. Default `3s`.
    pub open_wait: Span,
    /// Available mode: how long fewer standbys than commits wait for must have streamed before the primary goes on without
    /// them. Default `5s`: a standby that is restarted is back by then.
    pub suspend_after: Span,
    /// Switchover: how long running transactions may go on before the primary is stopped. Default `5s`.
    pub drain_timeout: Span,
    /// Switchover: how long the clean shutdown may take; then the old primary is started again. Default `10s`.
    pub stop_timeout: Span,
    /// Switchover: most bytes that the target may be behind in replay. Default `16MiB`, about a second of replay.
    pub max_switchover_lag: Size,
    /// Async mode: an automatic failover that would lose more than this holds for an operator, before it begins and before
    /// it chooses the new primary. Default `16MiB`.
    pub max_loss: Size,
    /// Bound on an operator's whole request. Default `60s`.
    pub operation_timeout: Span,
    /// Automatic failovers allowed within `failover_window`, restarts of a primary that was found stopped included; more wait for
    /// an operator. Default 6: a flapping host must not move the primary for ever.
    pub failover_budget: u32,
    /// See `failover_budget`. Default `10min`.
    pub failover_window: Span,
    /// Async mode: a primary that the leading manager has never heard is waited for so long before a standby replaces
    /// it, because after a stop of everything it alone has every acknowledged row. So long an operator has to order
    /// otherwise, too, before a stopped primary is recovered of which the others lack more than `max_loss`; and so long the
    /// agent of a primary whose lease is gone may be silent, while its PostgreSQL answers others. Default `30s`.
    pub restart_grace: Span,
    /// Time to live of the leading manager's lease; etcd may raise it. Default `2s`: half a failover's budget when a
    /// manager dies together with the primary.
    pub lease_ttl: Span,
    /// Records in etcd are read at every change hint and at least this often. Default `1s`.
    pub read_interval: Span,
    /// Move etcd's leader to another member when it is on the primary's host, so that the two do not die together. Default
    /// true: else that costs an election and the leases that etcd extends then, seconds in which nobody can write. Members are
    /// known by the hosts in `etcd.endpoints`. With etcd's authentication it needs the role root from etcd 3.6 and 3.5.28 on. False
    /// where others decide where etcd's leader is; a move starts all leases in etcd anew, theirs too.
    pub move_etcd_leader: bool,
    /// Further clusters that this process looks after, each by itself, by name: `prefix` of its keys in etcd (default
    /// `etcd.prefix`) and `secret_file` of its agents (default `cluster.secret_file`). Default none.
    pub clusters: BTreeMap<String, FurtherRaw>,
}

/// A further cluster as typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FurtherRaw {
    /// Prefix of its keys. Empty: `etcd.prefix`.
    pub prefix: String,
    /// File of the secret that its agents know. Empty: `cluster.secret_file`.
    pub secret_file: PathBuf,
}

/// A further cluster, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Further {
    /// Its name.
    pub name: String,
    /// Prefix of its keys, unless `etcd.prefix`.
    pub prefix: Option<String>,
    /// Its secret's file, unless `cluster.secret_file`.
    pub secret_file: Option<PathBuf>,
}

impl Default for ManagerRaw {
    fn default() -> Self {
        Self {
            detect_timeout: Span::secs(1),
            hung_timeout: Span::secs(3),
            stuck_timeout: Span::secs(5),
            poll_wait: Span::millis(200),
            agent_timeout: Span::secs(1),
            freeze_timeout: Span::secs(30),
            recruit_grace: Span::millis(500),
            promote_timeout: Span::secs(30),
            open_wait: Span::secs(3),
            suspend_after: Span::secs(5),
            drain_timeout: Span::secs(5),
            stop_timeout: Span::secs(10),
            max_switchover_lag: Size(16 << 20),
            max_loss: Size(16 << 20),
            operation_timeout: Span::secs(60),
            failover_budget: 6,
            failover_window: Span::secs(600),
            restart_grace: Span::secs(30),
            lease_ttl: Span::secs(2),
            read_interval: Span::secs(1),
            move_etcd_leader: true,
            clusters: BTreeMap::new(),
        }
    }
}

/// `[manager]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerSection {
    /// What the planner needs.
    pub settings: Settings,
    /// See [`ManagerRaw::poll_wait`].
    pub poll_wait: Duration,
    /// See [`ManagerRaw::agent_timeout`].
    pub agent_timeout: Duration,
    /// See [`ManagerRaw::lease_ttl`].
    pub lease_ttl: Duration,
    /// See [`ManagerRaw::read_interval`].
    pub read_interval: Duration,
    /// See [`ManagerRaw::move_etcd_leader`].
    pub move_etcd_leader: bool,
    /// See [`ManagerRaw::clusters`].
    pub further: Vec<Further>,
}

fn check_clusters(clusters: &BTreeMap<String, FurtherRaw>, bad: &mut Vec<BadSetting>) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    for (name, further) in clusters {
        let key = format!("manager.clusters.{name}");
        if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
            bad.push(BadSetting::new(&key, name, "expected 1 to 63 letters, digits, _ or -"));
        }
        if !further.prefix.is_empty() && !further.prefix.starts_with('/') {
            bad.push(BadSetting::new(&key, format!("{:?}", further.prefix), "its prefix must begin with /"));
        }
    }
}

fn further(clusters: &BTreeMap<String, FurtherRaw>) -> Vec<Further> {
    let one = |(name, raw): (&String, &FurtherRaw)| Further {
        name: name.clone(),
        prefix: (!raw.prefix.is_empty()).then(|| raw.prefix.clone()),
        secret_file: (!raw.secret_file.as_os_str().is_empty()).then(|| raw.secret_file.clone()),
    };
    clusters.iter().map(one).collect()
}

/// Check `[manager]`.
///
/// # Errors
/// Every problem found.
pub fn check(raw: &ManagerRaw) -> Result<ManagerSection, Vec<BadSetting>> {
    let mut bad = Vec::new();
    let spans = [
        ("manager.detect_timeout", raw.detect_timeout),
        ("manager.hung_timeout", raw.hung_timeout),
        ("manager.stuck_timeout", raw.stuck_timeout),
        ("manager.poll_wait", raw.poll_wait),
        ("manager.agent_timeout", raw.agent_timeout),
        ("manager.freeze_timeout", raw.freeze_timeout),
        ("manager.recruit_grace", raw.recruit_grace),
        ("manager.promote_timeout", raw.promote_timeout),
        ("manager.suspend_after", raw.suspend_after),
        ("manager.drain_timeout", raw.drain_timeout),
        ("manager.stop_timeout", raw.stop_timeout),
        ("manager.operation_timeout", raw.operation_timeout),
        ("manager.failover_window", raw.failover_window),
        ("manager.read_interval", raw.read_interval),
    ];
    for (key, span) in spans {
        if span.0.is_zero() {
            bad.push(BadSetting::new(key, span, "must be above 0s"));
        }
    }
    check_clusters(&raw.clusters, &mut bad);
    if raw.detect_timeout.0 < raw.poll_wait.0 * 4 {
        let problem = format!("must be at least 4 times manager.poll_wait ({})", raw.poll_wait);
        bad.push(BadSetting::new("manager.detect_timeout", raw.detect_timeout, problem));
    }
    if raw.lease_ttl.0 < Duration::from_secs(1) {
        bad.push(BadSetting::new("manager.lease_ttl", raw.lease_ttl, "must be at least 1s, etcd's shortest lease"));
    }
    if raw.stuck_timeout.0 < Duration::from_secs(2) {
        let problem = "must be at least 2s: the probes that it judges are a second apart";
        bad.push(BadSetting::new("manager.stuck_timeout", raw.stuck_timeout, problem));
    }
    if raw.operation_timeout.0 <= raw.drain_timeout.0 + raw.stop_timeout.0 {
        let problem = format!(
            "must be above manager.drain_timeout ({}) + manager.stop_timeout ({})",
            raw.drain_timeout, raw.stop_timeout
        );
        bad.push(BadSetting::new("manager.operation_timeout", raw.operation_timeout, problem));
    }
    if raw.failover_budget == 0 {
        bad.push(BadSetting::new("manager.failover_budget", 0, "must be at least 1"));
    }
    if !bad.is_empty() {
        return Err(bad);
    }
    let settings = Settings {
        detect_timeout: raw.detect_timeout.0,
        hung_timeout: raw.hung_timeout.0,
        stuck_timeout: raw.stuck_timeout.0,
        freeze_timeout: raw.freeze_timeout.0,
        recruit_grace: raw.recruit_grace.0,
        promote_timeout: raw.promote_timeout.0,
        open_wait: raw.open_wait.0,
        suspend_after: raw.suspend_after.0,
        drain_timeout: raw.drain_timeout.0,
        stop_timeout: raw.stop_timeout.0,
        max_switchover_lag: raw.max_switchover_lag.0,
        max_loss: raw.max_loss.0,
        operation_timeout: raw.operation_timeout.0,
        failover_budget: raw.failover_budget as usize,
        failover_window: raw.failover_window.0,
        restart_grace: raw.restart_grace.0,
        ..Settings::default()
    };
    Ok(ManagerSection {
        settings,
        poll_wait: raw.poll_wait.0,
        agent_timeout: raw.agent_timeout.0,
        lease_ttl: raw.lease_ttl.0,
        read_interval: raw.read_interval.0,
        move_etcd_leader: raw.move_etcd_leader,
        further: further(&raw.clusters),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_accepted() {
        let section = check(&ManagerRaw::default()).expect("the defaults hold");
        assert_eq!(section.settings, Settings::default());
    }

    #[test]
    fn broken_relations_name_both_keys() {
        let raw = ManagerRaw { detect_timeout: Span::millis(500), ..ManagerRaw::default() };
        let bad = check(&raw).unwrap_err();
        assert_eq!(
            bad[0].to_string(),
            "manager.detect_timeout = 500ms: must be at least 4 times manager.poll_wait (200ms)"
        );
        let raw = ManagerRaw { stop_timeout: Span::secs(60), failover_budget: 0, ..ManagerRaw::default() };
        assert_eq!(check(&raw).unwrap_err().len(), 2);
    }
}
