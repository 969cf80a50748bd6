//! Relations between settings of different sections; those within a section are checked by its own crate.

use super::{RawConfig, Role};
use cluster::config::{BadSetting, Span};
use std::collections::BTreeSet;

/// Everything that contradicts something in another section, for the roles that this process plays.
pub(super) fn check(raw: &RawConfig, roles: &BTreeSet<Role>) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    let plays = |role| roles.contains(&role);
    if plays(Role::Agent) {
        agent(raw, plays(Role::Proxy), &mut bad);
    }
    if plays(Role::Lagmon) {
        lagmon(raw, plays(Role::Proxy), &mut bad);
    }
    if plays(Role::Proxy) {
        proxy(raw, &mut bad);
    }
    if plays(Role::Manager) {
        manager(raw, &mut bad);
    }
    ports(raw, roles, &mut bad);
    if let Some(path) = &raw.process.handover_socket
        && let Some(role) = roles.iter().find(|r| !matches!(r, Role::Proxy | Role::Lagmon))
    {
        let problem = format!("only processes with the roles proxy and lagmon hand over; this one is {role} as well");
        bad.push(BadSetting::new("process.handover_socket", path.display(), problem));
    }
    bad
}

fn below(bad: &mut Vec<BadSetting>, key: &str, value: Span, limit: Span, what: &str) {
    if value >= limit {
        bad.push(BadSetting::new(key, value, format!("must be below {what}")));
    }
}

/// Does PostgreSQL have room for everybody that the cluster needs?
fn places(raw: &RawConfig, bad: &mut Vec<BadSetting>) {
    let parameter = |name: &str| raw.agent.parameters.iter().rfind(|(n, _)| n.eq_ignore_ascii_case(name));
    let number = |name: &str, default| parameter(name).map_or(Some(default), |(_, v)| v.trim().parse().ok());
    let voters = raw.cluster.voters.len();
    let needed = failover::adopt::plan::senders_needed(voters);
    if let Some(places) = number("max_wal_senders", failover::adopt::plan::senders(voters)).filter(|n| *n < needed) {
        let problem =
            format!("at least {needed} for the {voters} of cluster.voters: two for each other one, and the agent's");
        bad.push(BadSetting::new("agent.parameters.max_wal_senders", places, problem));
    }
    let many = |name, default| number(name, default).unwrap_or(default);
    let kept =
        failover::fsm::places::kept(many("max_connections", 100).saturating_sub(many("reserved_connections", 0)));
    if let Some(kept) = number("superuser_reserved_connections", kept.unwrap_or(3)).filter(|n| *n < 5) {
        let problem = "at least 5: the agent's sessions, which must not be kept out";
        bad.push(BadSetting::new("agent.parameters.superuser_reserved_connections", kept, problem));
    }
    let others = voters.saturating_sub(1);
    if let Some(slots) = number("max_replication_slots", 16).filter(|n| raw.cluster.k >= 2 && *n < others) {
        let problem = format!("at least {others}: where cluster.k is 2 or more each other node has a slot");
        bad.push(BadSetting::new("agent.parameters.max_replication_slots", slots, problem));
    }
}

fn agent(raw: &RawConfig, with_proxy: bool, bad: &mut Vec<BadSetting>) {
    if !raw.agent.node.is_empty() && !raw.agent.joins && !raw.cluster.voters.contains(&raw.agent.node) {
        let voters = raw.cluster.voters.join(", ");
        bad.push(BadSetting::new(
            "agent.node",
            &raw.agent.node,
            format!("is not among cluster.voters ({voters}), and agent.joins is not set"),
        ));
    }
    if !raw.agent.apply_delay.0.is_zero() && raw.cluster.voters.contains(&raw.agent.node) {
        let problem = "only for nodes that do not vote: this one is among cluster.voters";
        bad.push(BadSetting::new("agent.apply_delay", raw.agent.apply_delay, problem));
    }
    places(raw, bad);
    let (drain, stop) = (raw.process.drain_timeout, raw.agent.stop_timeout);
    // A proxy in the same process drains first, for half of the time.
    let (times, needed) =
        if with_proxy { ("twice agent.stop_timeout", stop.0 * 2) } else { ("agent.stop_timeout", stop.0) };
    if drain.0 <= needed {
        let problem = format!("must be above {times} ({stop}), or PostgreSQL is left to itself while it stops");
        bad.push(BadSetting::new("process.drain_timeout", drain, problem));
    }
    let (ttl, view) = (raw.agent.lease_ttl, raw.etcd.view_validity);
    if view > ttl {
        let problem = format!("must be at most agent.lease_ttl ({ttl}): a proxy must not outlive the primary's lease");
        bad.push(BadSetting::new("etcd.view_validity", view, problem));
    }
}

/// Without a proxy beside it nothing is routed by what a lagmon measures.
fn lagmon(raw: &RawConfig, with_proxy: bool, bad: &mut Vec<BadSetting>) {
    if with_proxy {
        let budget = raw.proxy.max_replay_lag;
        let half = Span(budget.0 / 2);
        let what = format!("proxy.max_replay_lag ({budget}) / 2, or no standby is ever fresh");
        below(bad, "lagmon.probe_interval", raw.lagmon.probe_interval, half, &what);
    }
}

/// The mode may change while the file stays, so that both leases count: the primary's runs out first in async mode, the
/// lead's where the leading manager is lost as well. In a file without these sections they are the defaults.
fn proxy(raw: &RawConfig, bad: &mut Vec<BadSetting>) {
    let (hold, detect) = (raw.proxy.hold_timeout, raw.manager.detect_timeout);
    let leases = [("agent.lease_ttl", raw.agent.lease_ttl), ("manager.lease_ttl", raw.manager.lease_ttl)];
    if let Some((key, ttl)) =
        leases.into_iter().max_by_key(|(_, ttl)| *ttl).filter(|(_, ttl)| hold.0 <= detect.0 + ttl.0)
    {
        let problem = format!(
            "must be above manager.detect_timeout ({detect}) + {key} ({ttl}), or statements give up before a \
             failover can end"
        );
        bad.push(BadSetting::new("proxy.hold_timeout", hold, problem));
    }
}

fn manager(raw: &RawConfig, bad: &mut Vec<BadSetting>) {
    let (read, view) = (raw.manager.read_interval, raw.etcd.view_validity);
    below(bad, "manager.read_interval", read, view, &format!("etcd.view_validity ({view})"));
    if raw.manager.clusters.contains_key(&raw.cluster.name) {
        let problem = "is cluster.name, which this manager looks after anyway";
        bad.push(BadSetting::new("manager.clusters", &raw.cluster.name, problem));
    }
    let (ttl, request) = (raw.manager.lease_ttl, raw.etcd.request_timeout);
    if ttl.0 < request.0 * 2 {
        let problem = format!("must be at least twice etcd.request_timeout ({request})");
        bad.push(BadSetting::new("manager.lease_ttl", ttl, problem));
    }
}

/// Two listeners of one process on one address.
fn ports(raw: &RawConfig, roles: &BTreeSet<Role>, bad: &mut Vec<BadSetting>) {
    let mut listeners = vec![("admin.listen", raw.admin.listen.clone())];
    if roles.contains(&Role::Proxy) {
        listeners.extend(raw.proxy.listen.all().iter().map(|addr| ("proxy.listen", addr.to_string())));
        let read_only = raw.proxy.listen_read_only.iter().flat_map(proxy::config::Addresses::all);
        listeners.extend(read_only.map(|addr| ("proxy.listen_read_only", addr.to_string())));
    }
    if roles.contains(&Role::Agent) {
        listeners.push(("agent.listen", raw.agent.listen.clone()));
    }
    for (i, (key, at)) in listeners.iter().enumerate() {
        if let Some((other, _)) = listeners[..i].iter().find(|(_, taken)| taken == at) {
            bad.push(BadSetting::new(key, format!("{at:?}"), format!("is also {other}")));
        }
    }
}
