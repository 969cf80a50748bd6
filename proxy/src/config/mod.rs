//! The `[proxy]` section: as typed, and checked.

pub mod console;
pub mod durability;
pub mod functions;
mod io_uring;
pub mod nodes;
pub mod pools;
pub mod reads;
pub mod reload;
pub mod throttle;
pub mod timeouts;

pub mod listen;
mod network;
mod raw;
mod scheduling;
pub mod tls;

pub use io_uring::IoUring;
pub use network::Network;
pub use raw::Raw;
pub use scheduling::BatchScheduling;

pub use pools::PoolMode;
pub mod auth;
pub mod cancel;

pub use listen::Addresses;

use cluster::config::{BadSetting, Size, Span};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `[proxy]` checked. Each field means what its key in [`Raw`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `listen`
    pub listen: Addresses,
    /// `listen_read_only`
    pub listen_read_only: Vec<std::net::SocketAddr>,
    /// `workers`; `None` means one per core.
    pub workers: Option<usize>,
    /// `worker_fill`
    pub worker_fill: usize,
    /// `batch_scheduling`
    pub batch_scheduling: BatchScheduling,
    /// `io_uring`
    pub io_uring: IoUring,
    /// `pool_size`
    pub pool_size: usize,
    /// `max_client_connections`
    pub max_client_connections: usize,
    /// `query_wait_timeout`
    pub query_wait_timeout: Duration,
    /// `hold_timeout`
    pub hold_timeout: Duration,
    /// `hold_bytes`
    pub hold_bytes: u64,
    /// `resolve_commits`
    pub resolve_commits: bool,
    /// `max_replay_lag`
    pub max_replay_lag: Duration,
    /// `server_idle_timeout`
    pub server_idle_timeout: Duration,
    /// `server_lifetime`
    pub server_lifetime: Duration,
    /// `connect_timeout`
    pub connect_timeout: Duration,
    /// `dns_ttl`
    pub dns_ttl: Duration,
    /// `login_timeout`
    pub login_timeout: Duration,
    /// `tcp_user_timeout`
    pub tcp_user_timeout: Duration,
    /// `relay_buffer`, bytes
    pub relay_buffer: usize,
    /// `max_message_size`, bytes: fits the protocol's signed 32-bit length.
    pub max_message_size: u32,
    /// `prepared_statement_bytes`
    pub prepared_statement_bytes: u64,
    /// `server_statement_bytes`
    pub server_statement_bytes: u64,
    /// `drain_bytes`
    pub drain_bytes: u64,
    /// `drain_timeout`
    pub drain_timeout: Duration,
    /// `userlist`
    pub userlist: PathBuf,
    /// `allow_functions` and `deny_functions`, of all databases and of single ones
    pub functions: functions::Functions,
    /// `catalog_refresh`
    pub catalog_refresh: Duration,
    /// `monitor_user`
    pub monitor_user: String,
    /// `monitor_password_file` or `monitor_password_env`
    pub monitor_password: PasswordFrom,
    /// `[proxy.timeouts]`
    pub timeouts: timeouts::Timeouts,
    /// `[proxy.console]`
    pub console: console::Console,
    /// As typed, for `SHOW CONFIG`.
    pub typed: Box<Raw>,
    /// `unix_socket_dir`
    pub unix_socket_dir: Option<PathBuf>,
    /// `unix_socket_permissions`
    pub unix_socket_permissions: u32,
    /// `proxy_protocol_from`
    pub proxy_protocol_from: Vec<Network>,
    /// `tls`
    pub tls: tls::ClientTls,
    /// `server_tls`
    pub server_tls: tls::ServerTls,
    /// `[proxy.reads]`
    pub reads: reads::Raw,
    /// `[proxy.durability]`
    pub durability: durability::Own,
    /// `[proxy.throttle]`
    pub throttle: throttle::Throttle,
    /// `zone` and `[proxy.nodes]`
    pub nodes: nodes::Nodes,
    /// `[proxy.pools]`, `[proxy.databases]` and `[proxy.users]`
    pub pools: pools::Pools,
    /// `auth`
    pub auth: auth::Auth,
    /// `cancel`
    pub cancel: cancel::Cancel,
}

impl Config {
    /// Every key with its value in force, for people. No secret is ever part of a configuration.
    pub fn shown(&self) -> BTreeMap<String, String> {
        shown(&self.typed)
    }

    /// What the prepared statements of one client may take, bytes.
    pub fn statement_bytes(&self) -> usize {
        usize::try_from(self.prepared_statement_bytes).unwrap_or(usize::MAX)
    }

    /// Every key with its default.
    pub fn shown_defaults() -> BTreeMap<String, String> {
        shown(&Raw::default())
    }
}

fn shown(raw: &Raw) -> BTreeMap<String, String> {
    fn collect(prefix: &str, value: serde_json::Value, out: &mut BTreeMap<String, String>) {
        use serde_json::Value;
        let text = match value {
            Value::Object(map) if !map.is_empty() || prefix.is_empty() => {
                for (key, value) in map {
                    collect(&if prefix.is_empty() { key } else { format!("{prefix}.{key}") }, value, out);
                }
                return;
            }
            Value::Null | Value::Object(_) => String::new(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        out.insert(prefix.to_owned(), text);
    }
    let mut out = BTreeMap::new();
    collect("", serde_json::to_value(raw).unwrap_or_default(), &mut out);
    out
}

/// Where a password comes from. The password itself is never part of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordFrom {
    /// None is needed.
    Nowhere,
    /// The first line of a file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

/// Check ranges and relations; all problems at once.
///
/// # Errors
/// Every setting that is out of range or contradicts another.
pub fn check(raw: Raw) -> Result<Config, Vec<BadSetting>> {
    let mut bad = check_ranges(&raw);
    bad.extend(check_relations(&raw));
    bad.extend(timeouts::check(&raw.timeouts));
    bad.extend(console::check(&raw.console));
    bad.extend(listen::check(&raw.listen, raw.listen_read_only.as_ref()));
    let unix_socket_permissions = check_mode(&raw.unix_socket_permissions, &mut bad);
    let proxy_protocol_from = check_networks(&raw.proxy_protocol_from, &mut bad);
    let (tls, server_tls) =
        (tls::check_client(raw.tls.clone(), &mut bad), tls::check_server(raw.server_tls.clone(), &mut bad));
    bad.extend(pools::check(&raw.pools, &raw.databases, &raw.users));
    bad.extend(reads::check(&raw.reads, &raw.databases, &raw.users));
    bad.extend(throttle::check(&raw.throttle, raw.hold_timeout));
    let nodes = nodes::check(raw.zone.as_ref(), &raw.nodes, &mut bad);
    let functions = functions::check((&raw.allow_functions, &raw.deny_functions), &raw.databases, &mut bad);
    let auth = auth::check(&raw.auth).map_err(|more| bad.extend(more));
    let cancel = cancel::check(&raw.cancel).map_err(|more| bad.extend(more));
    let (true, Ok(auth), Ok(cancel)) = (bad.is_empty(), auth, cancel) else { return Err(bad) };
    Ok(Config {
        typed: Box::new(raw.clone()),
        console: raw.console.checked(),
        listen: raw.listen,
        listen_read_only: raw.listen_read_only.map_or(Vec::new(), |some| some.all().to_vec()),
        workers: (raw.workers > 0).then_some(raw.workers),
        worker_fill: raw.worker_fill,
        batch_scheduling: raw.batch_scheduling,
        io_uring: raw.io_uring,
        pool_size: raw.pool_size,
        max_client_connections: raw.max_client_connections,
        query_wait_timeout: raw.query_wait_timeout.0,
        hold_timeout: raw.hold_timeout.0,
        hold_bytes: raw.hold_bytes.0,
        resolve_commits: raw.resolve_commits,
        max_replay_lag: raw.max_replay_lag.0,
        nodes,
        reads: raw.reads,
        durability: raw.durability,
        throttle: raw.throttle.checked(),
        server_idle_timeout: raw.server_idle_timeout.0,
        server_lifetime: raw.server_lifetime.0,
        connect_timeout: raw.connect_timeout.0,
        dns_ttl: raw.dns_ttl.0,
        login_timeout: raw.login_timeout.0,
        tcp_user_timeout: raw.tcp_user_timeout.0,
        relay_buffer: usize::try_from(raw.relay_buffer.0).expect("checked to be at most 1 MiB"),
        max_message_size: u32::try_from(raw.max_message_size.0).expect("checked to be at most 1 GiB"),
        prepared_statement_bytes: raw.prepared_statement_bytes.0,
        server_statement_bytes: raw.server_statement_bytes.0,
        drain_bytes: raw.drain_bytes.0,
        drain_timeout: raw.drain_timeout.0,
        userlist: raw.userlist,
        functions,
        catalog_refresh: raw.catalog_refresh.0,
        monitor_user: raw.monitor_user,
        monitor_password: match (raw.monitor_password_file, raw.monitor_password_env) {
            (Some(path), _) => PasswordFrom::File(path),
            (None, Some(name)) => PasswordFrom::Env(name),
            (None, None) => PasswordFrom::Nowhere,
        },
        timeouts: raw.timeouts.checked(),
        unix_socket_dir: raw.unix_socket_dir,
        unix_socket_permissions,
        proxy_protocol_from,
        tls,
        server_tls,
        pools: pools::Pools {
            defaults: raw.pools,
            pool_size: raw.pool_size,
            query_wait_timeout: raw.query_wait_timeout.0,
            databases: raw.databases,
            users: raw.users,
        },
        auth,
        cancel,
    })
}

fn check_ranges(raw: &Raw) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    let day = 24 * 3600;
    let spans = [
        ("query_wait_timeout", raw.query_wait_timeout, Span::millis(1), Span::secs(day)),
        ("hold_timeout", raw.hold_timeout, Span::millis(1), Span::secs(day)),
        ("max_replay_lag", raw.max_replay_lag, Span::millis(0), Span::secs(day)),
        ("server_idle_timeout", raw.server_idle_timeout, Span::secs(1), Span::secs(30 * day)),
        ("server_lifetime", raw.server_lifetime, Span::secs(1), Span::secs(30 * day)),
        ("connect_timeout", raw.connect_timeout, Span::millis(10), Span::secs(60)),
        ("dns_ttl", raw.dns_ttl, Span::secs(1), Span::secs(day)),
        ("login_timeout", raw.login_timeout, Span::millis(100), Span::secs(600)),
        ("tcp_user_timeout", raw.tcp_user_timeout, Span::millis(100), Span::secs(600)),
        ("drain_timeout", raw.drain_timeout, Span::millis(1), Span::secs(day)),
        ("catalog_refresh", raw.catalog_refresh, Span::secs(1), Span::secs(day)),
    ];
    for (key, value, least, most) in spans {
        if value < least || value > most {
            bad.push(BadSetting::new(&key_of(key), value, format!("must be between {least} and {most}")));
        }
    }
    let sizes = [
        ("hold_bytes", raw.hold_bytes, Size(64 << 10), Size(64 << 30)),
        ("relay_buffer", raw.relay_buffer, Size(4 << 10), Size(1 << 20)),
        ("max_message_size", raw.max_message_size, Size(64 << 10), Size(1 << 30)),
        ("prepared_statement_bytes", raw.prepared_statement_bytes, Size(64 << 10), Size(4 << 30)),
        ("server_statement_bytes", raw.server_statement_bytes, Size(64 << 10), Size(4 << 30)),
        ("drain_bytes", raw.drain_bytes, Size(0), Size(4 << 30)),
    ];
    for (key, value, least, most) in sizes {
        if value < least || value > most {
            bad.push(BadSetting::new(&key_of(key), value, format!("must be between {least} and {most}")));
        }
    }
    let counts = [
        ("workers", raw.workers, 0, 1024),
        ("worker_fill", raw.worker_fill, 1, 1_000_000),
        ("pool_size", raw.pool_size, 1, 100_000),
        ("max_client_connections", raw.max_client_connections, 1, 1_000_000),
    ];
    for (key, value, least, most) in counts {
        if value < least || value > most {
            bad.push(BadSetting::new(&key_of(key), value, format!("must be between {least} and {most}")));
        }
    }
    bad
}

fn check_relations(raw: &Raw) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    if raw.connect_timeout > raw.login_timeout {
        let problem = format!("must not exceed proxy.login_timeout ({})", raw.login_timeout);
        bad.push(BadSetting::new("proxy.connect_timeout", raw.connect_timeout, problem));
    }
    if raw.server_idle_timeout > raw.server_lifetime {
        let problem = format!("must not exceed proxy.server_lifetime ({})", raw.server_lifetime);
        bad.push(BadSetting::new("proxy.server_idle_timeout", raw.server_idle_timeout, problem));
    }
    if raw.monitor_user.is_empty() {
        bad.push(BadSetting::new("proxy.monitor_user", "\"\"", "must name a user"));
    }
    if let (Some(path), Some(_)) = (&raw.monitor_password_file, &raw.monitor_password_env) {
        let problem = "proxy.monitor_password_env is set as well: give one of them";
        bad.push(BadSetting::new("proxy.monitor_password_file", path.display(), problem));
    }
    bad
}

fn check_mode(text: &str, bad: &mut Vec<BadSetting>) -> u32 {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.unwrap_or_else(|| {
        bad.push(BadSetting::new("proxy.unix_socket_permissions", text, "must be an octal mode, as in 0770"));
        0
    })
}

fn check_networks(texts: &[String], bad: &mut Vec<BadSetting>) -> Vec<Network> {
    let mut networks = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(network) => networks.push(network),
            Err(problem) => bad.push(BadSetting::new("proxy.proxy_protocol_from", text, problem)),
        }
    }
    networks
}

fn key_of(key: &str) -> String {
    format!("proxy.{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(raw: Raw) -> Vec<String> {
        check(raw).err().unwrap_or_default().iter().map(BadSetting::to_string).collect()
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = check(Raw::default()).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:6432");
        assert_eq!(config.workers, None);
        assert_eq!(config.monitor_password, PasswordFrom::Nowhere);
    }

    #[test]
    fn all_problems_are_told_at_once_and_name_both_keys() {
        let raw = Raw {
            pool_size: 0,
            connect_timeout: Span::secs(20),
            server_idle_timeout: Span::secs(7200),
            allow_functions: vec!["f()".into(), "g".into()],
            deny_functions: vec!["g".into()],
            monitor_password_file: Some("/x".into()),
            monitor_password_env: Some("X".into()),
            ..Raw::default()
        };
        assert_eq!(
            problems(raw),
            [
                "proxy.pool_size = 0: must be between 1 and 100000",
                "proxy.connect_timeout = 20s: must not exceed proxy.login_timeout (10s)",
                "proxy.server_idle_timeout = 2h: must not exceed proxy.server_lifetime (1h)",
                "proxy.monitor_password_file = /x: proxy.monitor_password_env is set as well: give one of them",
                "proxy.allow_functions = \"f()\": must be without arguments: all functions of that name are meant",
                "proxy.allow_functions = \"g\": is in proxy.deny_functions as well",
            ]
        );
    }

    #[test]
    fn a_size_out_of_range_is_refused() {
        let raw = Raw { relay_buffer: Size(100), ..Raw::default() };
        assert_eq!(problems(raw), ["proxy.relay_buffer = 100B: must be between 4KiB and 1MiB"]);
    }
}
