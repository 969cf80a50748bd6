//! The `[proxy]` section as typed, with its defaults.

use super::{
    Addresses, BatchScheduling, IoUring, auth, cancel, console, durability, nodes, pools, reads, throttle, timeouts,
    tls,
};
use cluster::config::{Size, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `[proxy]` as typed. A reload changes every key but those that [`super::reload::needs_restart`] names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Address and port for clients, or a list of them. Default `127.0.0.1:6432`: not 5432, so that a PostgreSQL on
    /// the same host is not in the way, and loopback, so that nothing is offered to a network unasked.
    pub listen: Addresses,
    /// The same for clients that only read: their sessions are as those of a standby, whoever serves them. Reads go where
    /// those of `listen` go, writes are refused with 25006. Default none: sessions say themselves that they only read.
    pub listen_read_only: Option<Addresses>,
    /// Worker threads, each with its own runtime and sessions. Default 0: one per core, because a session never
    /// changes its worker and more threads than cores only take turns.
    pub workers: usize,
    /// Clients that a worker gets before the next one gets any; above that each goes to the worker with the fewest.
    /// Default 16: two workers that are half idle wake up for every statement, while one that serves both halves finds
    /// several when it wakes, and one serves 16 clients easily. 1 spreads them from the first on, for few clients that
    /// keep more than a core busy. Live, for clients that connect afterwards.
    pub worker_fill: usize,
    /// When workers wait for what runs on their core instead of interrupting it when something arrives for them (Linux's
    /// SCHED_BATCH): `never`, `busy` (while six statements or more of a worker are with servers at the same time) or `always`.
    /// Default busy: waiting finds more to do at once and takes less CPU, but whatever else computes on the core delays
    /// each message by milliseconds, which a few clients would feel and many hardly do. Live.
    pub batch_scheduling: BatchScheduling,
    /// Whether what a worker sends in one round of its loop is handed to the kernel in one call, by io_uring: `auto` (where
    /// the kernel lets it) or `off`. Default auto: where it is forbidden, as in many containers, each message is sent by
    /// itself. Off where a filter of system calls ends who tries instead of refusing. Live.
    pub io_uring: IoUring,
    /// Server connections that this process may hold to one node for one database and user. Default 80: PostgreSQL's
    /// `max_connections` is 100 by default, and the rest is for agents, lagmon, replication and people. A node whose slots
    /// are all taken cannot be rejoined to. All of a node together, over all proxies, must stay below its
    /// `max_connections` by some 20.
    pub pool_size: usize,
    /// Client connections this process accepts; the next is refused with 53300. Default 10000.
    pub max_client_connections: usize,
    /// How long a statement waits for a server connection before ERROR 53300, or for the end of a pause. What it is held
    /// for other reasons (`hold_timeout`) does not count. Default 30s.
    pub query_wait_timeout: Span,
    /// How long a statement that was not sent is held while no primary accepts writes, before ERROR 57P03. Default
    /// 30s: many times what a failover takes, and less than what applications usually wait. What the proxy itself asks a
    /// server between two transactions is given up after as long, but not before 10 s: that server is closed, and with it
    /// goes what binds the session to it.
    pub hold_timeout: Span,
    /// Memory for statements that are held or wait for a server connection, in all sessions together. What exceeds it gets
    /// ERROR 57P03 at once, or 53300 when only a connection lacks. Default 64MiB.
    pub hold_bytes: Size,
    /// Find out what became of a COMMIT whose server was lost before it answered. The COMMIT of a block that may have
    /// written goes out behind a query for its transaction id, in the same write, which costs the server some 20 us; the
    /// client then waits, `hold_timeout` at most, and is told success, 40001 or, where nobody can tell, 08007. Off: it is
    /// 08007 at once, as it is where PUBLIC may not call `pg_current_xact_id_if_assigned` and `pg_current_wal_insert_lsn`.
    /// Default true. Live.
    pub resolve_commits: bool,
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
    /// How long a server may take to finish what a client that has gone had asked for, before that is cancelled; what
    /// only reads is at once. A server that does not stop for as long again is closed, and so is one with what may commit:
    /// that goes on, as what waits for standbys must not be told to stop waiting. Default 5s.
    pub drain_timeout: Span,
    /// File of users and their secrets in PgBouncer's form: SCRAM verifiers, MD5 hashes, passwords. Default `/etc/pgtenure/userlist.txt`.
    pub userlist: PathBuf,
    /// Volatile functions that reads on a standby may call all the same: `name` or `schema.name`, written as in SQL,
    /// without arguments. Without a schema those of all schemas are meant; with one a name is still as volatile as the
    /// worst of the others, as a text does not always tell which it means. Default none: nothing but the server's own
    /// catalog says what a function does. Live.
    pub allow_functions: Vec<String>,
    /// Functions that must run on the primary whatever their volatility, as those that are labelled stable and yet
    /// write or depend on the node; so do all others of that name. Default none. Live.
    pub deny_functions: Vec<String>,
    /// How often functions, views and triggers are read again, per database in use, besides behind DDL that passes here.
    /// Default 60s: until then a standby refuses by itself most of what changed elsewhere, but not a function that came to
    /// tell of its server, or to go on behind that refusal, nor what one leaves in its session.
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
    /// version 1 or 2, and the client's address is what it says; only cancel requests that `proxy.cancel.peers` pass on
    /// have none. Default none: nobody else tells an address.
    pub proxy_protocol_from: Vec<String>,
    /// TLS towards clients.
    pub tls: tls::ClientRaw,
    /// TLS towards servers.
    pub server_tls: tls::ServerRaw,
    /// What reads are promised.
    pub reads: reads::Raw,
    /// What commits wait for.
    pub durability: durability::Own,
    /// Slowing writes while the standbys cannot keep up.
    pub throttle: throttle::Raw,
    /// Where this proxy is: reads go to standbys of its own zone while one of them may serve them. A node's zone is what
    /// `nodes` says here, or else its `agent.zone`. Default none.
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
            listen_read_only: None,
            workers: 0,
            worker_fill: 16,
            batch_scheduling: BatchScheduling::default(),
            io_uring: IoUring::default(),
            pool_size: 80,
            max_client_connections: 10_000,
            query_wait_timeout: Span::secs(30),
            hold_timeout: Span::secs(30),
            resolve_commits: true,
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
            durability: durability::Own::default(),
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
