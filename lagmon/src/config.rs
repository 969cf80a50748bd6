//! The `[lagmon]` section: as typed, and checked.

use cluster::config::{BadSetting, Span};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// `[lagmon]` as typed. No key reloads: a change needs a restart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// How often every node is asked for its position. Lag is resolved, and a read's staleness known, no finer than
    /// this. Default 100ms: ten queries a second cost a node less than a hundredth of a core.
    pub probe_interval: Span,
    /// Between two samples that are taken because reads wait for one (`global` reads, and sessions that have just
    /// written): the nodes are asked at once, and not again sooner than this. Default 2ms: a read
    /// waits for one or two of them, and a few hundred questions a second cost a node some hundredths of a core, while
    /// reads wait. For reads that go to the primary meanwhile, and do not wait, the proxy asks for none within 10 ms.
    pub demand_gap: Span,
    /// How often every node is asked for its slots, its senders and its recovery conflicts. Nothing is routed by them.
    /// Default 2s: before PostgreSQL 15 each question makes the node write a file of statistics.
    pub detail_interval: Span,
    /// A node that does not answer within this is unreachable until it answers again. Until then only its sample ages.
    /// Default 1s: a busy node must not count as dead because of one slow answer.
    pub probe_timeout: Span,
    /// TCP_USER_TIMEOUT of the connections: sent data unacknowledged for so long ends the connection. Default 5s.
    pub tcp_user_timeout: Span,
    /// The user that asks; a member of `pg_monitor`. Default `pgtenure_monitor`, which the agents create.
    pub monitor_user: String,
    /// The database to connect to; nothing in it is read. Default `postgres`, which initdb creates.
    pub monitor_database: String,
    /// File holding that user's password (first line). Default none.
    pub monitor_password_file: Option<PathBuf>,
    /// Environment variable holding that user's password. Default none.
    pub monitor_password_env: Option<String>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            probe_interval: Span::millis(100),
            demand_gap: Span::millis(2),
            detail_interval: Span::secs(2),
            probe_timeout: Span::secs(1),
            tcp_user_timeout: Span::secs(5),
            monitor_user: "pgtenure_monitor".to_owned(),
            monitor_database: "postgres".to_owned(),
            monitor_password_file: None,
            monitor_password_env: None,
        }
    }
}

/// `[lagmon]` checked. See [`Raw`] for what each field means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Between two probes of a node.
    pub probe_interval: Duration,
    /// Between two rounds of probes on demand.
    pub demand_gap: Duration,
    /// Between two questions for details.
    pub detail_interval: Duration,
    /// Per probe, connecting included.
    pub probe_timeout: Duration,
    /// Per connection.
    pub tcp_user_timeout: Duration,
    /// User.
    pub user: String,
    /// Database.
    pub database: String,
    /// Where the password is read from when lagmon starts.
    pub password: PasswordFrom,
}

/// Where a password comes from. The password itself is never part of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordFrom {
    /// The first line of this file.
    File(PathBuf),
    /// This environment variable.
    Env(String),
    /// There is none: the server trusts the address.
    Nowhere,
}

/// Check the section.
///
/// # Errors
/// Every setting that is out of range or contradicts another.
pub fn check(raw: Raw) -> Result<Config, Vec<BadSetting>> {
    let mut bad = Vec::new();
    if raw.probe_interval < Span::millis(10) || raw.probe_interval > Span::secs(60) {
        bad.push(BadSetting::new("lagmon.probe_interval", raw.probe_interval, "must be between 10ms and 60s"));
    }
    if raw.demand_gap < Span::millis(1) || raw.demand_gap > raw.probe_interval {
        let problem = format!("must be between 1ms and lagmon.probe_interval ({})", raw.probe_interval);
        bad.push(BadSetting::new("lagmon.demand_gap", raw.demand_gap, problem));
    }
    if raw.detail_interval < raw.probe_interval {
        let problem = format!("must be at least lagmon.probe_interval ({})", raw.probe_interval);
        bad.push(BadSetting::new("lagmon.detail_interval", raw.detail_interval, problem));
    }
    if raw.probe_timeout < raw.probe_interval {
        let problem = format!("must be at least lagmon.probe_interval ({})", raw.probe_interval);
        bad.push(BadSetting::new("lagmon.probe_timeout", raw.probe_timeout, problem));
    }
    if raw.tcp_user_timeout < raw.probe_timeout {
        let problem = format!("must be at least lagmon.probe_timeout ({})", raw.probe_timeout);
        bad.push(BadSetting::new("lagmon.tcp_user_timeout", raw.tcp_user_timeout, problem));
    }
    for (key, value) in [("lagmon.monitor_user", &raw.monitor_user), ("lagmon.monitor_database", &raw.monitor_database)]
    {
        if value.is_empty() || value.contains('\0') {
            bad.push(BadSetting::new(key, value, "must be a name"));
        }
    }
    let password = match (raw.monitor_password_file, raw.monitor_password_env) {
        (Some(file), None) => PasswordFrom::File(file),
        (None, Some(variable)) => PasswordFrom::Env(variable),
        (None, None) => PasswordFrom::Nowhere,
        (Some(file), Some(_)) => {
            let problem = "lagmon.monitor_password_env is set as well: give one of them";
            bad.push(BadSetting::new("lagmon.monitor_password_file", file.display(), problem));
            PasswordFrom::Nowhere
        }
    };
    if !bad.is_empty() {
        return Err(bad);
    }
    Ok(Config {
        probe_interval: raw.probe_interval.0,
        demand_gap: raw.demand_gap.0,
        detail_interval: raw.detail_interval.0,
        probe_timeout: raw.probe_timeout.0,
        tcp_user_timeout: raw.tcp_user_timeout.0,
        user: raw.monitor_user,
        database: raw.monitor_database,
        password,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_relations_name_both_keys() {
        type Change = fn(&mut Raw);
        let cases: [(Change, &[&str]); 7] = [
            (|_| (), &[]),
            (|r| r.probe_interval = Span::millis(5), &["lagmon.probe_interval = 5ms: must be between 10ms and 60s"]),
            (
                |r| r.demand_gap = Span::millis(101),
                &["lagmon.demand_gap = 101ms: must be between 1ms and lagmon.probe_interval (100ms)"],
            ),
            (
                |r| r.detail_interval = Span::millis(50),
                &["lagmon.detail_interval = 50ms: must be at least lagmon.probe_interval (100ms)"],
            ),
            (
                |r| r.probe_timeout = Span::millis(50),
                &["lagmon.probe_timeout = 50ms: must be at least lagmon.probe_interval (100ms)"],
            ),
            (
                |r| r.tcp_user_timeout = Span::millis(900),
                &["lagmon.tcp_user_timeout = 900ms: must be at least lagmon.probe_timeout (1s)"],
            ),
            (
                |r| (r.monitor_password_file, r.monitor_password_env) = (Some("/x".into()), Some("X".into())),
                &["lagmon.monitor_password_file = /x: lagmon.monitor_password_env is set as well: give one of them"],
            ),
        ];
        for (change, want) in cases {
            let mut raw = Raw::default();
            change(&mut raw);
            let got: Vec<String> = check(raw).err().unwrap_or_default().iter().map(ToString::to_string).collect();
            assert_eq!(got, want);
        }
    }
}
