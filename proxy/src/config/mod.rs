//! The `[proxy]` section: as typed, and checked.

pub mod console;
pub mod nodes;
pub mod pools;
pub mod reads;
pub mod reload;
pub mod throttle;
pub mod timeouts;

pub mod listen;
mod network;
pub mod tls;

pub use network::Network;

pub use pools::PoolMode;
pub mod auth;
pub mod cancel;

pub use listen::Addresses;

use cluster::config::{BadSetting, Size, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `[proxy]` as typed. A reload changes every key but those that [`reload::needs_restart`] names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Address and port for clients, or a list of them. Default `127.0.0.1:6432`: not 5432, so that a PostgreSQL on
    /// the same host is not in the way, and loopback, so that nothing is offered to a network unasked.
    pub listen: Addresses,
    /// Worker threads, each with its own runtime and sessions. Default 0: one per core, because a session never
    /// changes its worker and more threads than cores only take turns.
    pub workers: usize,
    /// Clients that a worker gets before the next one gets any; above that each goes to the worker with the fewest.
    /// Default 16: two workers that are half idle wake up for every statement, while one that serves both halves finds
    /// several when it wakes, and one serves 16 clients easily. 1 spreads them from the first on, for few clients that
    /// keep more than a core busy. Live, for clients that connect afterwards.
    pub worker_fill: usize,
    /// Server connections that each pool of this process may hold; a pool is one node, database, user and set of
    /// startup parameters. Default 80: PostgreSQL's `max_connections` is 100 by default, and the rest is for agents,
    /// lagmon, replication and people. A node whose slots are all taken cannot be rejoined to. All pools of a node
    /// together, over all proxies, must stay below its `max_connections` by some 20.
    pub pool_size: usize,
    /// Client connections this process accepts; the next is refused with 53300. Default 10000.
    pub max_client_connections: usize,
    /// How long a statement waits for a server connection before ERROR 53300. Default 30s.
    pub query_wait_timeout: Span,
    /// How long a statement that was not sent is held while no primary accepts writes, before ERROR 57P03. Default
    /// 30s: many times what a failover takes, and less than what applications usually wait.
    pub hold_timeout: Span,
    /// Memory for statements that are held, in all sessions together. What exceeds it gets ERROR 57P03 at once.
    /// Default 64MiB.
    pub hold_bytes: Size,
    /// How stale a standby may be to serve reads: its replay lag plus the age of the sample that told it. Default 1s.
    pub max_replay_lag: Span,
    /// A server connection unused for so long is closed. Default 10min.
    pub server_idle_timeout: Span,
    /// A server connection older than this is closed when it is next free, so that memory PostgreSQL's process has
    /// gathered returns. Default 1h.
    pub server_lifetime: Span,
    /// How long a TCP connection to a server may take to establish. Default 2s.
    pub connect_timeout: Span,
    /// How long the addresses of a host's name are used before they are asked for again. Default 15s: most
    /// services that move a name keep it for longer; when they do not answer the last addresses are used.
    pub dns_ttl: Span,
    /// How long startup and login may take, of a client here and of us at a server. Default 10s.
    pub login_timeout: Span,
    /// TCP_USER_TIMEOUT on server connections: sent data unacknowledged for so long means the server is gone.
    /// Default 5s.
    pub tcp_user_timeout: Span,
    /// How many bytes a session relays at a time in each direction; a longer message streams through. Default 16KiB:
    /// enough for whole results of short queries; an idle session has none.
    pub relay_buffer: Size,
    /// Longest message accepted from a client. Default 1GiB, PostgreSQL's own limit.
    pub max_message_size: Size,
    /// Memory for the protocol-level prepared statements of one client connection. Default 16MiB.
    pub prepared_statement_bytes: Size,
    /// Memory for the prepared statements that a server connection keeps for its clients, counted as their texts and
    /// 1KiB each, which is less than PostgreSQL takes; the least recently used are closed. Default 4MiB: thousands of
    /// statements, and far below `work_mem` for most.
    pub server_statement_bytes: Size,
    /// Bytes that a server may still send for a client that has gone, before its connection is closed instead of used
    /// again. Default 1MiB: more than most results, and less costly than a new connection.
    pub drain_bytes: Size,
    /// How long a server may take to finish what a client that has gone had asked for, before its connection is closed.
    /// Default 5s.
    pub drain_timeout: Span,
    /// File of users and their secrets in PgBouncer's form: SCRAM verifiers, MD5 hashes, passwords. Default `/etc/pgtenure/userlist.txt`.
    pub userlist: PathBuf,
    /// Volatile functions that reads on a standby may call all the same. Lower case as in `pg_proc`, no schema.
    /// Default none: nothing but the server's own catalog says what a function does.
    pub allow_functions: Vec<String>,
    /// Functions that must run on the primary whatever their volatility, as those that are labelled stable and yet
    /// write or depend on the node. Default none.
    pub deny_functions: Vec<String>,
    /// How often the volatility of functions is read again, per database in use. Default 60s: a function that
    /// became volatile meanwhile is still refused by the standby itself.
    pub catalog_refresh: Span,
    /// The user that reads the catalog. Default `pgtenure_monitor`.
    pub monitor_user: String,
    /// File holding that user's password. Default none: one of the two keys must be set where a password is asked.
    pub monitor_password_file: Option<PathBuf>,
    /// Environment variable holding that user's password. Default none.
    pub monitor_password_env: Option<String>,
    /// How long clients may take.
    pub timeouts: timeouts::Raw,
    /// Who may use the admin console.
    pub console: console::Raw,
    /// Directory of a Unix-domain socket for clients, named as PostgreSQL names its own: `.s.PGSQL.` and the port of
    /// `listen`. Default none: clients come by TCP.
    pub unix_socket_dir: Option<PathBuf>,
    /// Mode of that socket, octal. Default 0777: who may come in is the rules' business, as in PostgreSQL.
    pub unix_socket_permissions: String,
    /// Networks of trusted proxies before this one. They must begin each connection with a PROXY protocol header,
    /// version 1 or 2, and the client's address is what it says. Default none: nobody else tells an address.
    pub proxy_protocol_from: Vec<String>,
    /// TLS towards clients.
    pub tls: tls::ClientRaw,
    /// TLS towards servers.
    pub server_tls: tls::ServerRaw,
    /// What reads are promised.
    pub reads: reads::Raw,
    /// Slowing writes while the standbys cannot keep up.
    pub throttle: throttle::Raw,
    /// Where this proxy is: reads go to standbys of its own zone while one of them may serve them. Default none.
    pub zone: Option<String>,
    /// What holds for single nodes. Default none.
    pub nodes: BTreeMap<String, nodes::Node>,
    /// What holds for all pools.
    pub pools: pools::Raw,
    /// What holds for single databases, by the name clients ask for. Default none.
    pub databases: BTreeMap<String, pools::Database>,
    /// What holds for single users. Default none.
    pub users: BTreeMap<String, pools::User>,
    /// Who may log in.
    pub auth: auth::Raw,
    /// Cancel requests between processes.
    pub cancel: cancel::Raw,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: Addresses::from(([127, 0, 0, 1], 6432)),
            workers: 0,
            worker_fill: 16,
            pool_size: 80,
            max_client_connections: 10_000,
            query_wait_timeout: Span::secs(30),
            hold_timeout: Span::secs(30),
            hold_bytes: Size(64 << 20),
            max_replay_lag: Span::secs(1),
            server_idle_timeout: Span::secs(600),
            server_lifetime: Span::secs(3600),
            connect_timeout: Span::secs(2),
            dns_ttl: Span::secs(15),
            login_timeout: Span::secs(10),
            tcp_user_timeout: Span::secs(5),
            relay_buffer: Size(16 << 10),
            max_message_size: Size(1 << 30),
            prepared_statement_bytes: Size(16 << 20),
            server_statement_bytes: Size(4 << 20),
            drain_bytes: Size(1 << 20),
            drain_timeout: Span::secs(5),
            userlist: PathBuf::from("/etc/pgtenure/userlist.txt"),
            allow_functions: Vec::new(),
            deny_functions: Vec::new(),
            catalog_refresh: Span::secs(60),
            monitor_user: "pgtenure_monitor".to_owned(),
            monitor_password_file: None,
            monitor_password_env: None,
            timeouts: timeouts::Raw::default(),
            console: console::Raw::default(),
            unix_socket_dir: None,
            unix_socket_permissions: "0777".to_owned(),
            proxy_protocol_from: Vec::new(),
            tls: tls::ClientRaw::default(),
            server_tls: tls::ServerRaw::default(),
            reads: reads::Raw::default(),
            throttle: throttle::Raw::default(),
            zone: None,
            nodes: BTreeMap::new(),
            pools: pools::Raw::default(),
            databases: BTreeMap::new(),
            users: BTreeMap::new(),
            auth: auth::Raw::default(),
            cancel: cancel::Raw::default(),
        }
    }
}

/// `[proxy]` checked. Each field means what its key in [`Raw`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `listen`
    pub listen: Addresses,
    /// `workers`; `None` means one per core.
    pub workers: Option<usize>,
    /// `worker_fill`
    pub worker_fill: usize,
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
    /// `allow_functions`
    pub allow_functions: Vec<String>,
    /// `deny_functions`
    pub deny_functions: Vec<String>,
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
    /// `[proxy.throttle]`
    pub throttle: throttle::Throttle,
    /// `zone` and `[proxy.nodes]`
    pub favours: BTreeMap<cluster::NodeId, crate::route::Favour>,
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
    bad.extend(listen::check(&raw.listen));
    let unix_socket_permissions = check_mode(&raw.unix_socket_permissions, &mut bad);
    let proxy_protocol_from = check_networks(&raw.proxy_protocol_from, &mut bad);
    let (tls, server_tls) =
        (tls::check_client(raw.tls.clone(), &mut bad), tls::check_server(raw.server_tls.clone(), &mut bad));
    bad.extend(pools::check(&raw.pools, &raw.databases, &raw.users));
    bad.extend(reads::check(&raw.reads, &raw.databases, &raw.users));
    bad.extend(throttle::check(&raw.throttle, raw.hold_timeout));
    let favours = nodes::check(raw.zone.as_deref(), &raw.nodes, &mut bad);
    let auth = auth::check(&raw.auth).map_err(|more| bad.extend(more));
    let cancel = cancel::check(&raw.cancel).map_err(|more| bad.extend(more));
    let (true, Ok(auth), Ok(cancel)) = (bad.is_empty(), auth, cancel) else { return Err(bad) };
    Ok(Config {
        typed: Box::new(raw.clone()),
        console: raw.console.checked(),
        listen: raw.listen,
        workers: (raw.workers > 0).then_some(raw.workers),
        worker_fill: raw.worker_fill,
        pool_size: raw.pool_size,
        max_client_connections: raw.max_client_connections,
        query_wait_timeout: raw.query_wait_timeout.0,
        hold_timeout: raw.hold_timeout.0,
        hold_bytes: raw.hold_bytes.0,
        max_replay_lag: raw.max_replay_lag.0,
        favours,
        reads: raw.reads,
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
        allow_functions: raw.allow_functions,
        deny_functions: raw.deny_functions,
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
    for (key, names) in [("allow_functions", &raw.allow_functions), ("deny_functions", &raw.deny_functions)] {
        for name in names.iter().filter(|n| n.is_empty() || n.contains(['.', '(', '"'])) {
            let problem = "must be a function's bare name, without schema, quotes or arguments";
            bad.push(BadSetting::new(&key_of(key), format!("{name:?}"), problem));
        }
    }
    for name in raw.allow_functions.iter().filter(|n| raw.deny_functions.contains(n)) {
        let problem = "is in proxy.deny_functions as well";
        bad.push(BadSetting::new("proxy.allow_functions", format!("{name:?}"), problem));
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
            allow_functions: vec!["public.f".into(), "g".into()],
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
                "proxy.allow_functions = \"public.f\": must be a function's bare name, without schema, quotes or arguments",
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
