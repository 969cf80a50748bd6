//! `[agent]` and `[bootstrap]`: one node's PostgreSQL, and how a new cluster is filled.

use crate::config::watchdog::{self, WatchdogConfig, WatchdogRaw};
use crate::record::Standing;
use ::cluster::config::{BadSetting, Size, Span};
use ::cluster::{Endpoint, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest path of a Unix socket, bytes, that every supported system takes (sun_path is 108 with its NUL).
const MAX_SOCKET_PATH: usize = 100;

/// `[agent]` as typed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentRaw {
    /// This node's name: one of `cluster.voters`, unless `joins`. No default.
    pub node: String,
    /// This node is none of `cluster.voters`: it copies an existing cluster and follows it without a vote, until `pgtenure
    /// policy --voters` gives it one. Default false, so that a misspelt name is found.
    pub joins: bool,
    /// Of standbys that hold the same WAL the one with the highest priority becomes primary; one that is little behind is
    /// first brought to the same. Default 100, at most 1000.
    pub priority: u32,
    /// Where this node is, e.g. a data centre or rack: of standbys with the same priority one in the old primary's zone
    /// becomes primary, and proxies whose `proxy.zone` is the same read here rather than elsewhere. Default none.
    pub zone: String,
    /// This node becomes primary only when an operator names it. Default false.
    pub never_promote: bool,
    /// Replay commits so much later (`recovery_min_apply_delay`), as a way back from mistakes. Such a node must not vote,
    /// serves no reads and is not promoted by itself; `agent.wal_keep` of the primary must last for that time, or it is
    /// cloned anew at a change of primary. Default 0s.
    pub apply_delay: Span,
    /// Proxies may read from this node while it is a standby. Default true.
    pub serve_reads: bool,
    /// Directory of the agent; PostgreSQL's data is in `data` below it, its configuration in `conf`, its socket in
    /// `sock`, its logs in `log`, WAL of lost transactions in `lost`. Absolute, at most 75 bytes. No default.
    pub data_dir: PathBuf,
    /// Copy data from a standby where one follows the primary, to spare the primary's disk and network; a delayed one is not
    /// used. Default false: the primary.
    pub copy_from_standby: bool,
    /// Data directory of a PostgreSQL that runs without an agent, for `pgtenure adopt`: it is moved to `data` then, so it
    /// must be in the same file system, and the agent's user must own it. Default none. Used once.
    pub adopt: PathBuf,
    /// Where the agent's HTTP listens for managers and other agents. Default `127.0.0.1:7401`: loopback, so that it
    /// is never exposed unintentionally.
    pub listen: String,
    /// Host under which other nodes reach both the agent's HTTP and PostgreSQL. Default `127.0.0.1`.
    pub advertise_host: String,
    /// `listen_addresses` of PostgreSQL. Default `127.0.0.1`.
    pub postgres_listen: String,
    /// Port of PostgreSQL. Default 7432: 5432 is often taken by a server that the package started.
    pub postgres_port: u16,
    /// Directory of PostgreSQL's programs. Default `/usr/lib/postgresql/15/bin`.
    pub bin_dir: PathBuf,
    /// Further PostgreSQL parameters, passed on as they are. Those that failover depends on are refused by name.
    /// Default none.
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf after the agent's own. Default one: every user but the agent's own by SCRAM from anywhere. Backups
    /// and others that receive WAL need a line with the database replication.
    pub pg_hba: Vec<String>,
    /// `wal_keep_size`: WAL kept for absent standbys, and at most so much. Default `512MiB`: a standby that was away
    /// for longer is cloned anew.
    pub wal_keep: Size,
    /// How many tails of lost WAL are kept in `lost`. Default 5; the oldest are removed.
    pub lost_wal_keep: u32,
    /// Of a longer tail only the first so much is kept. Default `2GiB`.
    pub lost_wal_max: Size,
    /// Password file (first line) of `pgtenure_repl`, which replicates and rewinds. No default.
    pub replication_password_file: PathBuf,
    /// Password file (first line) of `pgtenure_monitor`, which only reads statistics. No default.
    pub monitor_password_file: PathBuf,
    /// How often PostgreSQL is asked for its state, and the primary observed. Default `200ms`.
    pub probe_interval: Span,
    /// After so long without an answer PostgreSQL counts as hung. Default `1s`; above `agent.probe_interval`.
    pub probe_timeout: Span,
    /// Time to live asked of etcd for the primary's lease. Default `3s`.
    pub lease_ttl: Span,
    /// How often the lease is renewed. Default `600ms`; at most a quarter of `agent.lease_ttl`.
    pub lease_renew: Span,
    /// How long before the end of its lease an async primary stops acknowledging. Default `700ms`; below half of
    /// `agent.lease_ttl`. Pays for clock drift and for stopping PostgreSQL.
    pub lease_margin: Span,
    /// How long a fast shutdown may take before it becomes an immediate one. Default `20s`.
    pub stop_timeout: Span,
    /// How long PostgreSQL may take to answer after its start; crash recovery counts. Default `10min`.
    pub start_timeout: Span,
    /// A standby whose PostgreSQL has answered nothing for so long is stopped and started again. Default `1min`; at least
    /// `10s`. Where that does not help, the next time comes after twice as long.
    pub hung_standby_timeout: Span,
    /// Stop PostgreSQL when the agent is told to stop. Default true: stopping the service stops the database. False
    /// leaves it running, for an upgrade of the agent.
    pub stop_postgres_on_exit: bool,
    /// A device that resets the host.
    pub watchdog: WatchdogRaw,
}

impl Default for AgentRaw {
    fn default() -> Self {
        Self {
            node: String::new(),
            joins: false,
            priority: 100,
            zone: String::new(),
            never_promote: false,
            apply_delay: Span::millis(0),
            serve_reads: true,
            data_dir: PathBuf::new(),
            copy_from_standby: false,
            adopt: PathBuf::new(),
            listen: "127.0.0.1:7401".into(),
            advertise_host: "127.0.0.1".into(),
            postgres_listen: "127.0.0.1".into(),
            postgres_port: 7432,
            bin_dir: "/usr/lib/postgresql/15/bin".into(),
            parameters: BTreeMap::new(),
            pg_hba: vec!["host all all all scram-sha-256".into()],
            wal_keep: Size(512 << 20),
            lost_wal_keep: 5,
            lost_wal_max: Size(2 << 30),
            replication_password_file: PathBuf::new(),
            monitor_password_file: PathBuf::new(),
            probe_interval: Span::millis(200),
            probe_timeout: Span::secs(1),
            lease_ttl: Span::secs(3),
            lease_renew: Span::millis(600),
            lease_margin: Span::millis(700),
            stop_timeout: Span::secs(20),
            start_timeout: Span::secs(600),
            hung_standby_timeout: Span::secs(60),
            stop_postgres_on_exit: true,
            watchdog: WatchdogRaw::default(),
        }
    }
}

/// `[bootstrap]` as typed: used once, by the node that creates the cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapRaw {
    /// Users to create, from a userlist: lines of `"name" "SCRAM-SHA-256$…"`, the same file that proxies use. Empty
    /// (the default): none.
    pub userlist: PathBuf,
    /// Databases to create and their owners, e.g. `{ app = "app_user" }`. Default none.
    pub databases: BTreeMap<String, String>,
    /// Locale of the cluster. Default `C.UTF-8`: present everywhere, never changes its order with the C library.
    pub locale: String,
    /// Checksums on data pages. Default true.
    pub data_checksums: bool,
    /// Size of a WAL segment: a power of two from 1MiB to 32MiB (of larger ones PostgreSQL wants a larger `min_wal_size` than its
    /// own). Default `4MiB`: a promotion copies one and syncs it while nobody can write.
    pub wal_segment_size: Size,
}

impl Default for BootstrapRaw {
    fn default() -> Self {
        Self {
            userlist: PathBuf::new(),
            databases: BTreeMap::new(),
            locale: "C.UTF-8".into(),
            data_checksums: true,
            wal_segment_size: Size(4 << 20),
        }
    }
}

/// `[agent]`, checked.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// This node.
    pub node: NodeId,
    /// What it is meant for, as told to managers and proxies.
    pub standing: Standing,
    /// The agent's directory, absolute.
    pub data_dir: PathBuf,
    /// Copy from a standby where there is one.
    pub copy_from_standby: bool,
    /// A data directory to take over; empty: none.
    pub adopt: PathBuf,
    /// Where the agent's HTTP listens.
    pub listen: SocketAddr,
    /// Host under which others reach this node.
    pub advertise_host: String,
    /// `listen_addresses`.
    pub postgres_listen: String,
    /// PostgreSQL's port.
    pub postgres_port: u16,
    /// PostgreSQL's programs.
    pub bin_dir: PathBuf,
    /// Parameters passed on.
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf after the agent's own.
    pub pg_hba: Vec<String>,
    /// `wal_keep_size`, bytes.
    pub wal_keep: Size,
    /// Tails of lost WAL kept.
    pub lost_wal_keep: usize,
    /// Bytes of one tail kept.
    pub lost_wal_max: u64,
    /// Password file of `pgtenure_repl`.
    pub replication_password_file: PathBuf,
    /// Password file of `pgtenure_monitor`.
    pub monitor_password_file: PathBuf,
    /// Between two looks at PostgreSQL.
    pub probe_interval: Duration,
    /// Without an answer for so long it is hung.
    pub probe_timeout: Duration,
    /// Asked of etcd.
    pub lease_ttl: Duration,
    /// Between renewals.
    pub lease_renew: Duration,
    /// Before the lease's end.
    pub lease_margin: Duration,
    /// Fast shutdown's bound.
    pub stop_timeout: Duration,
    /// Start's bound.
    pub start_timeout: Duration,
    /// A standby that hangs for so long is started again.
    pub hung_standby_timeout: Duration,
    /// Stop PostgreSQL with the agent.
    pub stop_postgres_on_exit: bool,
    /// `[agent.watchdog]`.
    pub watchdog: WatchdogConfig,
    /// `[bootstrap]`.
    pub bootstrap: BootstrapRaw,
}

impl AgentConfig {
    /// Where others reach this node's PostgreSQL.
    pub fn postgres_endpoint(&self) -> Endpoint {
        Endpoint { host: self.advertise_host.clone(), port: self.postgres_port }
    }
}

/// PostgreSQL parameters that the agent sets itself, and why they cannot be set by the user.
pub const OWNED_PARAMETERS: [(&str, &str); 46] = [
    ("archive_cleanup_command", "set by the agent"),
    ("cluster_name", "it is agent.node"),
    ("config_file", "the agent keeps the configuration outside the data directory, where pg_rewind cannot reach it"),
    ("data_directory", "it is agent.data_dir"),
    ("data_sync_retry", "a failed fsync must stop PostgreSQL"),
    ("external_pid_file", "set by the agent"),
    ("fsync", "an acknowledged commit must be on disk"),
    ("full_page_writes", "pg_rewind needs it"),
    ("hba_file", "see agent.pg_hba"),
    ("hot_standby", "standbys answer the agent's questions"),
    ("ident_file", "set by the agent"),
    ("listen_addresses", "see agent.postgres_listen"),
    ("log_directory", "it is the agent's log directory"),
    ("log_filename", "set by the agent, so that logs are bounded"),
    ("log_rotation_age", "set by the agent, so that logs are bounded"),
    ("log_truncate_on_rotation", "set by the agent, so that logs are bounded"),
    ("logging_collector", "set by the agent, so that logs are bounded"),
    ("password_encryption", "proxies log in with SCRAM keys"),
    ("port", "see agent.postgres_port"),
    ("primary_conninfo", "set at each change of primary"),
    ("primary_slot_name", "WAL for absent standbys is kept by agent.wal_keep"),
    ("promote_trigger_file", "only the agent promotes"),
    ("recovery_end_command", "set by the agent"),
    ("recovery_min_apply_delay", "see agent.apply_delay"),
    ("recovery_target", "a standby follows the latest timeline"),
    ("recovery_target_action", "a standby follows the latest timeline"),
    ("recovery_target_inclusive", "a standby replays all that it receives"),
    ("recovery_target_lsn", "a standby replays all that it receives"),
    ("recovery_target_name", "a standby replays all that it receives"),
    ("recovery_target_time", "a standby replays all that it receives"),
    ("recovery_target_timeline", "a standby follows the latest timeline"),
    ("recovery_target_xid", "a standby replays all that it receives"),
    ("restart_after_crash", "a restart in place would release commits that no standby has"),
    ("restore_command", "set by the agent"),
    ("synchronous_commit", "it is what the cluster's mode says; see proxy.durability.level"),
    ("synchronous_standby_names", "it is cluster.voters and cluster.k"),
    ("unix_socket_directories", "it is the agent's socket directory"),
    ("unix_socket_permissions", "only the agent uses the socket"),
    ("wal_keep_size", "see agent.wal_keep"),
    ("wal_log_hints", "pg_rewind needs it"),
    ("wal_receiver_create_temp_slot", "whether standbys stream through slots is said by cluster.k"),
    ("wal_receiver_status_interval", "set by the agent, failover times depend on it"),
    ("wal_receiver_timeout", "set by the agent, failover times depend on it"),
    ("wal_retrieve_retry_interval", "set by the agent, failover times depend on it"),
    ("wal_sender_timeout", "set by the agent, failover times depend on it"),
    ("wal_writer_delay", "whether a disk hangs is judged by what the WAL writer flushes"),
];

/// Check `[agent]` and `[bootstrap]`.
///
/// # Errors
/// Every setting that is missing, out of range or contradicts another.
pub fn check(raw: &AgentRaw, bootstrap: &BootstrapRaw) -> Result<AgentConfig, Vec<BadSetting>> {
    let mut bad = Vec::new();
    let node: Option<NodeId> = raw.node.parse().map_err(|e| bad.push(bad_value("agent.node", &raw.node, &e))).ok();
    let listen: Option<SocketAddr> =
        raw.listen.parse().map_err(|e| bad.push(bad_value("agent.listen", &raw.listen, &e))).ok();
    check_paths(raw, &mut bad);
    check_parameters(&raw.parameters, &mut bad);
    check_times(raw, &mut bad);
    let watchdog = watchdog::check(&raw.watchdog, raw.lease_ttl, raw.lease_renew, &mut bad);
    if raw.advertise_host.is_empty() || raw.advertise_host.contains(char::is_whitespace) {
        bad.push(BadSetting::new("agent.advertise_host", &raw.advertise_host, "expected a host name or address"));
    }
    check_standing(raw, &mut bad);
    if raw.postgres_port == 0 {
        bad.push(BadSetting::new("agent.postgres_port", 0, "expected 1 to 65535"));
    }
    if let Some(line) = raw.pg_hba.iter().find(|l| l.contains(['\n', '\r'])) {
        bad.push(BadSetting::new("agent.pg_hba", format!("{line:?}"), "one line per entry"));
    }
    let segment = bootstrap.wal_segment_size;
    if raw.wal_keep.0 < segment.0.max(16 << 20) {
        bad.push(BadSetting::new("agent.wal_keep", raw.wal_keep, "at least 16MiB, and one segment"));
    }
    if !(1 << 20..=32 << 20).contains(&segment.0) || !segment.0.is_power_of_two() {
        let why = "expected a power of two from 1MiB to 32MiB";
        bad.push(BadSetting::new("bootstrap.wal_segment_size", segment, why));
    }
    match (node, listen, bad.is_empty()) {
        (Some(node), Some(listen), true) => Ok(checked(raw, bootstrap, node, listen, watchdog)),
        _ => Err(bad),
    }
}

fn bad_value(key: &str, value: &str, error: &dyn std::fmt::Display) -> BadSetting {
    BadSetting::new(key, format!("{value:?}"), error.to_string())
}

/// Longest delay of replay: PostgreSQL counts milliseconds in 32 bits.
const LONGEST_DELAY: Duration = Duration::from_millis(i32::MAX as u64);

fn check_standing(raw: &AgentRaw, bad: &mut Vec<BadSetting>) {
    if raw.priority > 1000 {
        bad.push(BadSetting::new("agent.priority", raw.priority, "at most 1000"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if raw.zone.len() > 63 || !raw.zone.chars().all(plain) {
        let why = "expected at most 63 letters, digits, _, - or .";
        bad.push(BadSetting::new("agent.zone", format!("{:?}", raw.zone), why));
    }
    if raw.apply_delay.0 > LONGEST_DELAY {
        bad.push(BadSetting::new("agent.apply_delay", raw.apply_delay, "at most 24 days"));
    }
}

fn check_paths(raw: &AgentRaw, bad: &mut Vec<BadSetting>) {
    let absolute = |p: &Path| p.is_absolute() && !p.to_string_lossy().contains(['\'', '\n', '"', '\\', ' ']);
    for (key, path) in [
        ("agent.data_dir", &raw.data_dir),
        ("agent.bin_dir", &raw.bin_dir),
        ("agent.replication_password_file", &raw.replication_password_file),
        ("agent.monitor_password_file", &raw.monitor_password_file),
    ] {
        if !absolute(path) {
            bad.push(BadSetting::new(key, path.display(), "expected an absolute path without quotes and spaces"));
        }
    }
    let adopts = !raw.adopt.as_os_str().is_empty();
    if adopts && (!absolute(&raw.adopt) || raw.adopt.starts_with(&raw.data_dir)) {
        let why = "expected an absolute path without quotes and spaces, not below agent.data_dir";
        bad.push(BadSetting::new("agent.adopt", raw.adopt.display(), why));
    }
    let socket = raw.data_dir.join("sock").join(format!(".s.PGSQL.{}", raw.postgres_port));
    let length = socket.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        let why = format!("its socket's path would have {length} bytes, {MAX_SOCKET_PATH} are possible");
        bad.push(BadSetting::new("agent.data_dir", raw.data_dir.display(), why));
    }
}

fn check_parameters(parameters: &BTreeMap<String, String>, bad: &mut Vec<BadSetting>) {
    for (name, value) in parameters {
        let key = format!("agent.parameters.{name}");
        let folded = name.to_ascii_lowercase();
        if let Some((_, why)) = OWNED_PARAMETERS.iter().find(|(owned, _)| *owned == folded) {
            bad.push(BadSetting::new(&key, value, format!("set by the agent: {why}")));
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.is_empty() || !name.chars().all(word) || folded.starts_with("include") {
            bad.push(BadSetting::new(&key, value, "not the name of a PostgreSQL parameter"));
        }
        if value.contains(['\n', '\r', '\0']) {
            bad.push(BadSetting::new(&key, format!("{value:?}"), "expected one line"));
        }
        if folded == "wal_level" && !matches!(value.as_str(), "replica" | "logical") {
            bad.push(BadSetting::new(&key, value, "expected replica or logical"));
        }
        // How many are needed depends on the cluster.
        if folded == "max_wal_senders" && value.trim().parse::<u32>().is_err() {
            bad.push(BadSetting::new(&key, value, "expected a number"));
        }
    }
}

fn check_times(raw: &AgentRaw, bad: &mut Vec<BadSetting>) {
    let mut relation = |key: &str, value: Span, holds: bool, why: String| {
        if !holds {
            bad.push(BadSetting::new(key, value, why));
        }
    };
    let (probe, timeout) = (raw.probe_interval, raw.probe_timeout);
    relation("agent.probe_interval", probe, probe.0 >= Duration::from_millis(10), "at least 10ms".into());
    relation("agent.probe_timeout", timeout, timeout > probe, format!("must be above agent.probe_interval ({probe})"));
    let (ttl, renew, margin) = (raw.lease_ttl, raw.lease_renew, raw.lease_margin);
    relation("agent.lease_ttl", ttl, ttl.0 >= Duration::from_secs(1), "at least 1s, etcd's unit".into());
    let renews = !renew.0.is_zero() && renew.0 * 4 <= ttl.0;
    relation("agent.lease_renew", renew, renews, format!("must be above 0 and at most agent.lease_ttl ({ttl}) / 4"));
    // Two that are lost in a row are survived, if the third is answered in time.
    let survives = renew.0 * 3 + Duration::from_millis(100) <= ttl.0.saturating_sub(margin.0);
    let why =
        format!("three times it and 100ms must fit into agent.lease_ttl ({ttl}) less agent.lease_margin ({margin})");
    relation("agent.lease_renew", renew, survives || !renews, why);
    let fits = margin.0 >= Duration::from_millis(100) && margin.0 * 2 < ttl.0;
    relation(
        "agent.lease_margin",
        margin,
        fits,
        format!("must be at least 100ms and below agent.lease_ttl ({ttl}) / 2"),
    );
    relation("agent.stop_timeout", raw.stop_timeout, raw.stop_timeout.0 >= timeout.0, "at least 1s".into());
    relation("agent.start_timeout", raw.start_timeout, raw.start_timeout.0.as_secs() >= 1, "at least 1s".into());
    let hung = raw.hung_standby_timeout;
    relation("agent.hung_standby_timeout", hung, hung.0.as_secs() >= 10, "at least 10s".into());
}

fn checked(
    raw: &AgentRaw,
    bootstrap: &BootstrapRaw,
    node: NodeId,
    listen: SocketAddr,
    watchdog: WatchdogConfig,
) -> AgentConfig {
    AgentConfig {
        node,
        standing: Standing {
            priority: raw.priority,
            zone: (!raw.zone.is_empty()).then(|| raw.zone.clone()),
            never_promote: raw.never_promote,
            apply_delay_ms: u64::try_from(raw.apply_delay.0.as_millis()).unwrap_or(u64::MAX),
            serve_reads: raw.serve_reads,
        },
        data_dir: raw.data_dir.clone(),
        copy_from_standby: raw.copy_from_standby,
        adopt: raw.adopt.clone(),
        listen,
        advertise_host: raw.advertise_host.clone(),
        postgres_listen: raw.postgres_listen.clone(),
        postgres_port: raw.postgres_port,
        bin_dir: raw.bin_dir.clone(),
        parameters: raw.parameters.clone(),
        pg_hba: raw.pg_hba.clone(),
        wal_keep: raw.wal_keep,
        lost_wal_keep: raw.lost_wal_keep.max(1) as usize,
        lost_wal_max: raw.lost_wal_max.0,
        replication_password_file: raw.replication_password_file.clone(),
        monitor_password_file: raw.monitor_password_file.clone(),
        probe_interval: raw.probe_interval.0,
        probe_timeout: raw.probe_timeout.0,
        lease_ttl: raw.lease_ttl.0,
        lease_renew: raw.lease_renew.0,
        lease_margin: raw.lease_margin.0,
        stop_timeout: raw.stop_timeout.0,
        start_timeout: raw.start_timeout.0,
        hung_standby_timeout: raw.hung_standby_timeout.0,
        stop_postgres_on_exit: raw.stop_postgres_on_exit,
        watchdog,
        bootstrap: bootstrap.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::watchdog::WatchdogMode;

    fn raw() -> AgentRaw {
        AgentRaw {
            node: "n1".into(),
            data_dir: "/var/lib/pgtenure/n1".into(),
            replication_password_file: "/etc/pgtenure/repl".into(),
            monitor_password_file: "/etc/pgtenure/monitor".into(),
            ..AgentRaw::default()
        }
    }

    fn problems(raw: &AgentRaw) -> Vec<String> {
        check(raw, &BootstrapRaw::default())
            .map_or_else(|bad| bad.iter().map(ToString::to_string).collect(), |_| vec![])
    }

    #[test]
    fn the_defaults_hold_together() {
        assert_eq!(problems(&raw()), Vec::<String>::new());
    }

    #[test]
    fn a_segment_has_a_size_that_initdb_knows() {
        for (bytes, good) in [(1 << 20, true), (32 << 20, true), (1 << 19, false), (3 << 20, false), (64 << 20, false)]
        {
            let bootstrap = BootstrapRaw { wal_segment_size: Size(bytes), ..BootstrapRaw::default() };
            assert_eq!(check(&raw(), &bootstrap).is_ok(), good, "{bytes}");
        }
    }

    #[test]
    fn a_parameter_that_failover_depends_on_is_refused_with_the_reason() {
        let parameters = BTreeMap::from([("FSYNC".to_owned(), "off".to_owned()), ("work_mem".into(), "8MB".into())]);
        assert_eq!(
            problems(&AgentRaw { parameters, ..raw() }),
            ["agent.parameters.FSYNC = off: set by the agent: an acknowledged commit must be on disk"]
        );
    }

    #[test]
    fn what_a_node_is_meant_for_is_checked() {
        let odd = AgentRaw { priority: 1001, zone: "a b".into(), apply_delay: Span::secs(3_000_000), ..raw() };
        let text = problems(&odd);
        assert_eq!(text.len(), 3, "{text:?}");
        let fine = AgentRaw { zone: "dc-1".into(), apply_delay: Span::secs(3600), serve_reads: false, ..raw() };
        let standing = check(&fine, &BootstrapRaw::default()).unwrap().standing;
        assert_eq!((standing.zone.as_deref(), standing.apply_delay_ms), (Some("dc-1"), 3_600_000));
        assert!(!standing.is_promoted_by_itself() && !standing.serves_reads());
    }

    #[test]
    fn a_watchdog_that_could_not_be_fed_in_time_is_refused() {
        let with = |mode, timeout| {
            let watchdog = WatchdogRaw { mode, timeout, ..WatchdogRaw::default() };
            problems(&AgentRaw { watchdog, ..raw() })
        };
        assert_eq!(with(WatchdogMode::Required, Span::secs(1)), Vec::<String>::new());
        assert_eq!(with(WatchdogMode::Off, Span::secs(9)), Vec::<String>::new());
        let long = with(WatchdogMode::Automatic, Span::secs(2));
        assert!(long[0].contains("agent.lease_renew (600ms)") && long[0].contains("agent.lease_ttl (3s)"), "{long:?}");
        assert!(with(WatchdogMode::Automatic, Span::millis(1500))[0].contains("whole seconds"));
    }

    #[test]
    fn broken_relations_name_both_keys() {
        let text = problems(&AgentRaw { lease_renew: Span::secs(1), ..raw() }).join("; ");
        assert_eq!(text, "agent.lease_renew = 1s: must be above 0 and at most agent.lease_ttl (3s) / 4");
        // Two renewals may be lost before acknowledgements stop.
        let late = AgentRaw { lease_renew: Span::millis(750), lease_margin: Span::millis(1400), ..raw() };
        let why = "agent.lease_renew = 750ms: three times it and 100ms must fit into agent.lease_ttl (3s) less agent.lease_margin (1400ms)";
        assert_eq!(problems(&late), [why]);
        assert!(problems(&AgentRaw { lease_margin: Span::millis(650), ..late }).is_empty());
        let long = AgentRaw { data_dir: format!("/{}", "d".repeat(90)).into(), ..raw() };
        assert!(problems(&long)[0].contains("100 are possible"), "{:?}", problems(&long));
    }
}
