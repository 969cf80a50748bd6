//! `[proxy.pools]`, `[proxy.databases.NAME]` and `[proxy.users.NAME]`: who shares server connections, how many there
//! are, and who may connect. Which of the three applies is decided in [`policy`](crate::pool::policy).

use crate::config::console::is_console;
use cluster::config::{BadSetting, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// When a server connection goes back to its pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// At the end of each transaction.
    #[default]
    Transaction,
    /// When the client disconnects: the session behaves exactly as the server behind it.
    Session,
}

impl PoolMode {
    /// As the configuration writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Session => "session",
        }
    }
}

/// What becomes of what a session has drawn from sequences, as `currval` and `lastval` tell it, when its transaction is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceValues {
    /// It stays with the connection until another session writes there.
    #[default]
    Discard,
    /// It stays with the session, which stays on its server.
    Pin,
}

/// `[proxy.pools]` as typed: what holds unless the database or the user says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// When a server connection goes back to its pool: `transaction` (at the end of each transaction) or `session`
    /// (when the client disconnects). Default `transaction`: few servers serve many clients. Sessions that are
    /// connected keep theirs.
    pub pool_mode: PoolMode,
    /// Server connections that a pool may have beyond its `pool_size` while somebody has waited longer than
    /// `reserve_pool_timeout`; closed again when nobody waits. Default 0: the limit means what it says.
    pub reserve_pool_size: usize,
    /// How long a statement waits before its pool may use the reserve. Default 5s: longer than a usual burst.
    pub reserve_pool_timeout: Span,
    /// Server connections to the primary that a pool keeps open while it has clients, also when a new primary has
    /// opened. Default 0: connections are made when they are needed.
    pub min_pool_size: usize,
    /// Server connections of this process to one database of one node, over all its pools. Default 0: no limit but
    /// the pools' own.
    pub max_db_connections: usize,
    /// Server connections of this process as one user to one node, over all databases. Default 0: no limit but the pools'
    /// own.
    pub max_user_connections: usize,
    /// Clients of one database that this process accepts; the next is refused with 53300. Default 0: no limit but
    /// `proxy.max_client_connections`.
    pub max_db_client_connections: usize,
    /// Clients of one user that this process accepts; the next is refused with 53300. Default 0: no limit but
    /// `proxy.max_client_connections`.
    pub max_user_client_connections: usize,
    /// Replication connections of clients that this process passes to the primary; the next is refused with 53300.
    /// 0: no limit. Default 5: each is a walsender there, and of the 10 that PostgreSQL has by default the cluster's
    /// own standbys need theirs.
    pub max_replication_connections: usize,
    /// Functions that leave something in the session that only its server has, as those of extensions which keep state
    /// between statements: a statement that names one binds its session to its server for as long as it lasts. Lower
    /// case as in `pg_proc`, no schema. Default none: what PostgreSQL's own functions leave is known.
    pub pin_functions: Vec<String>,
    /// Settings that stand for more than their value, as where an extension opens something when one is set: a session
    /// that has one stays on its server for as long as it lasts. Lower case; `name.*` means all of that prefix. Default
    /// none: settings follow their session.
    pub pin_settings: Vec<String>,
    /// What `currval` and `lastval` tell behind the transaction that drew: `discard` (55000 once another session has written
    /// on that connection) or `pin` (its own: who may have drawn stays on its server until DISCARD ALL, in databases where
    /// such values are asked for). Default `discard`: to pin who writes takes a server for each such client.
    pub sequence_values: SequenceValues,
}

impl Raw {
    /// Does this setting, in lower case, bind the session that has it to its server?
    pub fn is_pinning(&self, setting: &str) -> bool {
        self.pin_settings.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => setting.starts_with(prefix),
            None => setting == pattern,
        })
    }
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            pool_mode: PoolMode::Transaction,
            reserve_pool_size: 0,
            reserve_pool_timeout: Span::secs(5),
            min_pool_size: 0,
            max_db_connections: 0,
            max_user_connections: 0,
            max_db_client_connections: 0,
            max_user_client_connections: 0,
            max_replication_connections: 5,
            pin_functions: Vec::new(),
            pin_settings: Vec::new(),
            sequence_values: SequenceValues::Discard,
        }
    }
}

/// `[proxy.databases.NAME]`: NAME is what clients ask for. Every key is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// The database's name at the servers. Default NAME.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dbname: Option<String>,
    /// The user that its clients are at the servers, whoever they have proven to be here; its secret comes from
    /// `proxy.auth.server_userlist` or `proxy.userlist`. Default the client's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As in `[proxy.pools]`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_mode: Option<PoolMode>,
    /// As `proxy.pool_size`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_size: Option<usize>,
    /// As in `[proxy.pools]`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve_pool_size: Option<usize>,
    /// As in `[proxy.pools]`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pool_size: Option<usize>,
    /// As `proxy.query_wait_timeout`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_wait_timeout: Option<Span>,
    /// As in `[proxy.pools]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_values: Option<SequenceValues>,
    /// As `proxy.pools.max_db_connections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_db_connections: Option<usize>,
    /// As `proxy.pools.max_db_client_connections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_client_connections: Option<usize>,
    /// As `proxy.allow_functions`, for this database: what it says of a name comes before what `proxy.deny_functions`
    /// says of the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_functions: Vec<String>,
    /// As `proxy.deny_functions`, for this database.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_functions: Vec<String>,
    /// What reads are promised.
    pub reads: super::reads::Own,
    /// What commits wait for.
    pub durability: super::durability::Own,
}

/// `[proxy.users.NAME]`. Every key is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct User {
    /// As in `[proxy.pools]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_mode: Option<PoolMode>,
    /// As `proxy.pool_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_size: Option<usize>,
    /// As in `[proxy.pools]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve_pool_size: Option<usize>,
    /// As in `[proxy.pools]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pool_size: Option<usize>,
    /// As `proxy.query_wait_timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_wait_timeout: Option<Span>,
    /// As in `[proxy.pools]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_user_connections: Option<usize>,
    /// As `proxy.pools.max_user_client_connections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_client_connections: Option<usize>,
    /// What reads are promised.
    pub reads: super::reads::Own,
    /// What commits wait for.
    pub durability: super::durability::Own,
}

/// The three tables checked, with the two keys of `[proxy]` that they override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools {
    /// `[proxy.pools]`
    pub defaults: Raw,
    /// `proxy.pool_size`
    pub pool_size: usize,
    /// `proxy.query_wait_timeout`
    pub query_wait_timeout: Duration,
    /// `[proxy.databases]`, by the name clients ask for.
    pub databases: BTreeMap<String, Database>,
    /// `[proxy.users]`
    pub users: BTreeMap<String, User>,
}

impl Pools {
    /// Nothing but these two.
    pub fn new(pool_size: usize, query_wait_timeout: Duration) -> Self {
        let (defaults, databases, users) = (Raw::default(), BTreeMap::new(), BTreeMap::new());
        Self { defaults, pool_size, query_wait_timeout, databases, users }
    }
}

/// Most connections any count may name.
const MOST: usize = 1_000_000;
const DAY: Span = Span::secs(24 * 3600);

/// Check ranges and relations, all at once.
pub fn check(raw: &Raw, databases: &BTreeMap<String, Database>, users: &BTreeMap<String, User>) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    let counts = [
        ("reserve_pool_size", raw.reserve_pool_size),
        ("min_pool_size", raw.min_pool_size),
        ("max_db_connections", raw.max_db_connections),
        ("max_user_connections", raw.max_user_connections),
        ("max_db_client_connections", raw.max_db_client_connections),
        ("max_user_client_connections", raw.max_user_client_connections),
        ("max_replication_connections", raw.max_replication_connections),
    ];
    for (key, value) in counts {
        count(&mut bad, &format!("proxy.pools.{key}"), Some(value), 0);
    }
    span(&mut bad, "proxy.pools.reserve_pool_timeout", Some(raw.reserve_pool_timeout));
    let folded = |name: &str| !name.chars().any(char::is_uppercase);
    for name in raw.pin_functions.iter().filter(|n| n.is_empty() || n.contains(['.', '(', '"']) || !folded(n)) {
        let problem = "must be a function's bare name in lower case, without schema, quotes or arguments";
        bad.push(BadSetting::new("proxy.pools.pin_functions", format!("{name:?}"), problem));
    }
    let pattern = |name: &str| !name.is_empty() && !name.strip_suffix(".*").unwrap_or(name).contains(['*', ' ']);
    for name in raw.pin_settings.iter().filter(|n| !pattern(n) || !folded(n)) {
        let problem = "must be the name of a setting in lower case, or prefix.*";
        bad.push(BadSetting::new("proxy.pools.pin_settings", format!("{name:?}"), problem));
    }
    for (name, d) in databases {
        let key = |key: &str| format!("proxy.databases.{name}.{key}");
        if d.dbname.as_ref().is_some_and(String::is_empty) {
            bad.push(BadSetting::new(&key("dbname"), "\"\"", "must name a database"));
        }
        if d.user.as_ref().is_some_and(String::is_empty) {
            bad.push(BadSetting::new(&key("user"), "\"\"", "must name a user"));
        }
        if is_console(name) {
            bad.push(BadSetting::new("proxy.databases", name, "is the console's name"));
        }
        count(&mut bad, &key("pool_size"), d.pool_size, 1);
        count(&mut bad, &key("reserve_pool_size"), d.reserve_pool_size, 0);
        count(&mut bad, &key("min_pool_size"), d.min_pool_size, 0);
        count(&mut bad, &key("max_db_connections"), d.max_db_connections, 0);
        count(&mut bad, &key("max_client_connections"), d.max_client_connections, 0);
        span(&mut bad, &key("query_wait_timeout"), d.query_wait_timeout);
    }
    for (name, u) in users {
        let key = |key: &str| format!("proxy.users.{name}.{key}");
        count(&mut bad, &key("pool_size"), u.pool_size, 1);
        count(&mut bad, &key("reserve_pool_size"), u.reserve_pool_size, 0);
        count(&mut bad, &key("min_pool_size"), u.min_pool_size, 0);
        count(&mut bad, &key("max_user_connections"), u.max_user_connections, 0);
        count(&mut bad, &key("max_client_connections"), u.max_client_connections, 0);
        span(&mut bad, &key("query_wait_timeout"), u.query_wait_timeout);
    }
    bad
}

fn count(bad: &mut Vec<BadSetting>, key: &str, value: Option<usize>, least: usize) {
    if let Some(value) = value.filter(|v| !(least..=MOST).contains(v)) {
        bad.push(BadSetting::new(key, value, format!("must be between {least} and {MOST}")));
    }
}

fn span(bad: &mut Vec<BadSetting>, key: &str, value: Option<Span>) {
    let least = Span::millis(1);
    if let Some(value) = value.filter(|v| !(least..=DAY).contains(v)) {
        bad.push(BadSetting::new(key, value, format!("must be between {least} and {DAY}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_names_all_settings_below_it() {
        let raw = Raw { pin_settings: vec!["app.*".to_owned(), "plain".to_owned()], ..Raw::default() };
        for (name, pins) in
            [("app.x", true), ("apple.x", false), ("plain", true), ("plainer", false), ("x.app.y", false)]
        {
            assert_eq!(raw.is_pinning(name), pins, "{name}");
        }
    }

    #[test]
    fn what_is_drawn_is_kept_nowhere_unless_that_is_asked_for() {
        assert_eq!(Raw::default().sequence_values, SequenceValues::Discard);
        let own: Database = serde_json::from_str(r#"{"sequence_values": "pin"}"#).expect("a database");
        assert_eq!(own.sequence_values, Some(SequenceValues::Pin));
        let wrong = serde_json::from_str::<Raw>(r#"{"sequence_values": "pinned"}"#).expect_err("no such value");
        assert!(wrong.to_string().contains("expected `discard` or `pin`"), "{wrong}");
    }

    #[test]
    fn a_count_or_a_wait_out_of_range_names_its_table() {
        let raw = Raw {
            reserve_pool_timeout: Span::millis(0),
            pin_functions: vec!["opens".to_owned(), "public.f".to_owned(), "Opens".to_owned()],
            pin_settings: vec!["app.*".to_owned(), "*".to_owned(), "plain".to_owned()],
            ..Raw::default()
        };
        let database = Database {
            pool_size: Some(0),
            dbname: Some(String::new()),
            user: Some(String::new()),
            ..Database::default()
        };
        let user = User { query_wait_timeout: Some(Span::secs(100_000)), ..User::default() };
        let bad = check(
            &raw,
            &[("app".to_owned(), database), ("pgbouncer".to_owned(), Database::default())].into(),
            &[("ann".to_owned(), user)].into(),
        );
        assert_eq!(
            bad.iter().map(BadSetting::to_string).collect::<Vec<_>>(),
            [
                "proxy.pools.reserve_pool_timeout = 0ms: must be between 1ms and 1d",
                "proxy.pools.pin_functions = \"public.f\": must be a function's bare name in lower case, without schema, quotes or arguments",
                "proxy.pools.pin_functions = \"Opens\": must be a function's bare name in lower case, without schema, quotes or arguments",
                "proxy.pools.pin_settings = \"*\": must be the name of a setting in lower case, or prefix.*",
                "proxy.databases.app.dbname = \"\": must name a database",
                "proxy.databases.app.user = \"\": must name a user",
                "proxy.databases.app.pool_size = 0: must be between 1 and 1000000",
                "proxy.databases = pgbouncer: is the console's name",
                "proxy.users.ann.query_wait_timeout = 100000s: must be between 1ms and 1d",
            ]
        );
    }
}
