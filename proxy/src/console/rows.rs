//! The rows of every table, made of one moment's view of the workers.

mod nodes;
mod sockets;
mod stats;

use crate::config::{Config, reload};
use crate::console::command::Show;
use crate::console::table::{Cell, Row};
use crate::console::tally::Counter;
use crate::pool::Doors;
use crate::pool::policy;
use crate::pool::view::{ClientView, ServerState, View};
use crate::session::presence::Activity;
use cluster::Instant;
use cluster::lag::LagSnapshot;
use cluster::topology::Topology;
use std::collections::BTreeSet;

/// What exporters know the console by.
const CONSOLE: &str = "pgbouncer";

/// Everything a table may be made of.
pub struct Facts<'a> {
    /// What the workers have.
    pub view: &'a View,
    /// The configuration in force.
    pub config: &'a Config,
    /// What operators have said.
    pub doors: &'a Doors,
    /// The cluster.
    pub topology: &'a Topology,
    /// The standbys' lag.
    pub lag: &'a LagSnapshot,
    /// Where clients connect.
    pub listen: std::net::SocketAddr,
    /// Now.
    pub now: Instant,
    /// Now on the wall: seconds since 1970.
    pub wall: u64,
    /// Bytes of memory the process has, when that is known.
    pub resident: Option<u64>,
    /// Users that may log in, when they are known.
    pub users: usize,
    /// Clients that have not proven yet who they are.
    pub logging_in: usize,
    /// Clients of the console.
    pub consoles: usize,
}

/// The rows of a table.
pub fn of(show: Show, facts: &Facts<'_>) -> Vec<Row> {
    match show {
        Show::Clients => facts.clients(),
        Show::Servers => facts.servers(),
        Show::Sockets => facts.clients().into_iter().chain(facts.servers()).collect(),
        Show::Config => facts.config_rows(),
        Show::Databases => facts.databases(),
        Show::Help => Vec::new(),
        Show::Lag => facts.lag_rows(),
        Show::Lists => facts.lists(),
        Show::Mem => facts.mem(),
        Show::Pins => facts.pins(),
        Show::Pools => facts.pools(),
        Show::Prepared => facts.prepared(),
        Show::State => facts.state(),
        Show::Stats => facts.per_database(|t| {
            let totals = stats::ORDER.iter().map(|c| t.total(*c));
            let averages = stats::ORDER.iter().map(|c| t.average(*c));
            totals.chain(averages).chain([t.total(Counter::Queries)]).collect()
        }),
        Show::StatsTotals => facts.per_database(|t| stats::ORDER.iter().map(|c| t.total(*c)).collect()),
        Show::StatsAverages => facts.per_database(|t| stats::ORDER.iter().map(|c| t.average(*c)).collect()),
        Show::Totals => facts.totals(),
        Show::Throttle => facts.throttle_rows(),
        Show::Topology => facts.topology_rows(),
        Show::Users => facts.users(),
        Show::Version => vec![vec![version().into()]],
    }
}

/// What `SHOW VERSION` says.
pub fn version() -> String {
    format!("pgtenure {}", env!("CARGO_PKG_VERSION"))
}

/// PgBouncer's names of settings that have another one here.
const PGBOUNCERS: [(&str, &str); 9] = [
    ("max_client_conn", "max_client_connections"),
    ("max_db_connections", "pools.max_db_connections"),
    ("max_db_client_connections", "pools.max_db_client_connections"),
    ("max_user_connections", "pools.max_user_connections"),
    ("max_user_client_connections", "pools.max_user_client_connections"),
    ("default_pool_size", "pool_size"),
    ("min_pool_size", "pools.min_pool_size"),
    ("reserve_pool_size", "pools.reserve_pool_size"),
    ("pool_mode", "pools.pool_mode"),
];

impl Facts<'_> {
    /// Every database that is configured or in use.
    fn names(&self) -> BTreeSet<&str> {
        self.config.pools.databases.keys().map(String::as_str).chain(self.view.databases()).collect()
    }

    fn databases(&self) -> Vec<Row> {
        let pools = &self.config.pools;
        let primary = self.topology.primary.as_ref();
        let of = |name: &str| {
            let rules = policy::resolve(pools, name, "");
            let servers = self.view.servers.iter().filter(|s| s.database == name).count();
            let clients = self.view.clients.iter().filter(|c| c.database == name).count();
            let limit = policy::client_limits(pools, name, "").find_map(|limit| match limit {
                policy::ClientLimit::Database(n) => Some(n),
                policy::ClientLimit::All(_) | policy::ClientLimit::User(_) | policy::ClientLimit::Replication(_) => {
                    None
                }
            });
            vec![
                name.into(),
                primary.map(|p| p.postgres.host.clone()).into(),
                primary.map(|p| p.postgres.port).into(),
                policy::dbname(pools, name).into(),
                policy::forced_user(pools, name).map(str::to_owned).into(),
                rules.size.into(),
                rules.min.into(),
                rules.reserve.into(),
                self.config.server_lifetime.as_secs().into(),
                rules.mode.as_str().into(),
                Cell::Null,
                rules.max_db.unwrap_or(0).into(),
                servers.into(),
                limit.unwrap_or(0).into(),
                clients.into(),
                self.doors.paused(name).into(),
                self.doors.disabled(name).into(),
                rules.reserve.into(),
            ]
        };
        // The console itself, as PgBouncer shows its own.
        let console = vec![
            CONSOLE.into(),
            Cell::Null,
            self.listen.port().into(),
            CONSOLE.into(),
            CONSOLE.into(),
            0u64.into(),
            0u64.into(),
            0u64.into(),
            0u64.into(),
            "statement".into(),
            Cell::Null,
            0u64.into(),
            0u64.into(),
            0u64.into(),
            self.consoles.into(),
            false.into(),
            false.into(),
            0u64.into(),
        ];
        self.names().into_iter().map(of).chain([console]).collect()
    }

    fn pools(&self) -> Vec<Row> {
        let rules = &self.config.pools;
        let pools = self.view.pools(self.now, |database, user| policy::mode(rules, database, user));
        let row = |p: crate::pool::view::PoolView, mode: &'static str| {
            vec![
                p.database.into(),
                p.user.into(),
                p.cl_active.into(),
                p.cl_waiting.into(),
                p.cancels.into(),
                0u64.into(),
                p.sv_active.into(),
                p.cancels.into(),
                0u64.into(),
                p.sv_idle.into(),
                p.sv_used.into(),
                0u64.into(),
                p.sv_login.into(),
                p.maxwait.as_secs().into(),
                p.maxwait.subsec_micros().into(),
                mode.into(),
                Cell::Null,
            ]
        };
        let of = |p: crate::pool::view::PoolView| {
            let mode = p.mode.as_str();
            row(p, mode)
        };
        // The console's clients, as PgBouncer shows its own.
        let console = crate::pool::view::PoolView {
            database: CONSOLE.to_owned(),
            user: CONSOLE.to_owned(),
            cl_active: self.consoles,
            ..Default::default()
        };
        pools.into_iter().map(of).chain([row(console, "statement")]).collect()
    }

    fn users(&self) -> Vec<Row> {
        let clients = self.view.clients.iter().map(|c| c.user.as_str());
        let configured = self.config.pools.users.keys().map(String::as_str);
        let names: BTreeSet<&str> = configured.chain(clients).collect();
        let of = |name: &str| {
            let rules = self.config.pools.users.get(name);
            let number = |n: Option<usize>| n.map_or(String::new(), |n| n.to_string());
            let defaults = &self.config.pools.defaults;
            let servers = rules.and_then(|u| u.max_user_connections).unwrap_or(defaults.max_user_connections);
            let clients = rules.and_then(|u| u.max_client_connections).unwrap_or(defaults.max_user_client_connections);
            vec![
                name.into(),
                number(rules.and_then(|u| u.pool_size)).into(),
                number(rules.and_then(|u| u.reserve_pool_size)).into(),
                rules.and_then(|u| u.pool_mode).map(|m| m.as_str()).into(),
                servers.into(),
                self.view.servers.iter().filter(|s| s.user == name).count().into(),
                clients.into(),
                self.view.clients.iter().filter(|c| c.user == name).count().into(),
            ]
        };
        names.into_iter().map(of).collect()
    }

    fn lists(&self) -> Vec<Row> {
        let idle = self.view.servers.iter().filter(|s| s.state != ServerState::Active).count();
        let lists = [
            ("databases", self.databases().len()),
            ("users", self.users),
            ("pools", self.pools().len()),
            ("free_clients", 0),
            ("used_clients", self.view.clients.len()),
            ("login_clients", self.logging_in),
            ("free_servers", idle),
            ("used_servers", self.view.servers.len() - idle),
            ("dns_names", 0),
            ("dns_zones", 0),
            ("dns_queries", 0),
            ("dns_pending", 0),
        ];
        lists.into_iter().map(|(list, items)| vec![list.into(), items.into()]).collect()
    }

    fn config_rows(&self) -> Vec<Row> {
        let (now, default) = (self.config.shown(), Config::shown_defaults());
        let row = |(key, value): (&String, &String)| {
            let changeable = if reload::needs_restart(key) { "no" } else { "yes" };
            vec![key.clone().into(), value.clone().into(), default.get(key).cloned().into(), changeable.into()]
        };
        let mut rows: Vec<Row> = now.iter().map(row).collect();
        // By PgBouncer's names, for exporters that ask for them.
        for (theirs, ours) in PGBOUNCERS {
            let (value, default) = (now.get(ours).cloned(), default.get(ours).cloned());
            rows.push(vec![theirs.into(), value.into(), default.into(), "yes".into()]);
        }
        rows
    }

    fn mem(&self) -> Vec<Row> {
        let used = |name: &str, size: usize, used: usize| -> Row {
            vec![name.into(), size.into(), used.into(), 0u64.into(), (size * used).into()]
        };
        let mut rows = vec![
            used("session", size_of::<crate::session::client::Session>(), self.view.clients.len()),
            used("server", size_of::<crate::session::server::Server>(), self.view.servers.len()),
        ];
        let text: usize = self.view.prepared.iter().map(|p| p.bytes).sum();
        let texts = self.view.prepared.len();
        rows.push(vec![
            "prepared_text".into(),
            text.checked_div(texts).unwrap_or(0).into(),
            texts.into(),
            0u64.into(),
            text.into(),
        ]);
        if let Some(resident) = self.resident {
            rows.push(vec!["process_resident".into(), resident.into(), 1u64.into(), 0u64.into(), resident.into()]);
        }
        rows
    }

    fn pins(&self) -> Vec<Row> {
        let pinned = self.view.clients.iter().filter(|c| !c.pins.is_empty());
        let of = |c: &ClientView| {
            let reasons: Vec<&str> = c.pins.iter().map(|p| p.as_str()).collect();
            let (node, pid) = c.server.as_ref().map_or((None, None), |(n, p)| (Some(n.to_string()), Some(*p)));
            let state = match c.activity {
                Activity::Idle => "idle",
                Activity::Waiting => "waiting",
                Activity::Active => "active",
                Activity::InTransaction => "in_transaction",
            };
            vec![
                sockets::id_of(c.worker, c.place).into(),
                c.database.clone().into(),
                c.user.clone().into(),
                node.into(),
                pid.into(),
                reasons.join(", ").into(),
                state.into(),
            ]
        };
        pinned.map(of).collect()
    }

    fn prepared(&self) -> Vec<Row> {
        let of = |p: &crate::pool::view::PreparedView| {
            vec![p.name.clone().into(), p.worker.into(), p.references.into(), p.bytes.into(), p.query.clone().into()]
        };
        self.view.prepared.iter().map(of).collect()
    }

    fn state(&self) -> Vec<Row> {
        let paused = self.doors.paused_all();
        let word = |yes: bool| if yes { "yes" } else { "no" };
        [("active", !paused), ("paused", paused), ("suspended", false)]
            .into_iter()
            .map(|(key, yes)| vec![key.into(), word(yes).into()])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::sockets::timestamp;
    use super::*;
    use crate::config::{Raw, check};
    use crate::console::command::{Command, SHOWS};
    use crate::console::tally::{self, Counter};
    use crate::console::{columns, table};
    use crate::net::Origin;
    use crate::pool::view::ServerView;
    use cluster::Role;

    #[test]
    fn a_moment_is_told_as_people_read_it() {
        for (seconds, want) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_473_599, "2026-11-23 22:39:59 UTC"),
        ] {
            assert_eq!(timestamp(seconds), want);
        }
    }

    #[test]
    fn every_table_has_a_cell_for_each_column() {
        let config = check(Raw::default()).unwrap();
        let node = |name: &str| cluster::topology::Member {
            node: name.parse().unwrap(),
            postgres: cluster::node::Endpoint { host: "h".into(), port: 1 },
            fenced: false,
            candidate: true,
            zone: None,
        };
        let topology = Topology { primary: Some(node("n1")), standbys: vec![node("n2")], ..Topology::unknown() };
        let standby = cluster::lag::StandbyLag {
            node: "n2".parse().unwrap(),
            sample: None,
            replay_lag: Err(cluster::lag::LagUnknown::NeverSampled),
            detail: cluster::lag::Detail::default(),
        };
        let lag = LagSnapshot { standbys: vec![standby], ..LagSnapshot::default() };
        let at = Instant::from_millis(500);
        let client = ClientView {
            worker: 0,
            place: 3,
            database: "d".into(),
            user: "u".into(),
            origin: Origin::Local { uid: 0 },
            connected: at,
            activity: Activity::Waiting,
            cancels: 0,
            since: at,
            blocked_since: None,
            transaction_since: None,
            pins: vec![crate::sql::PinReason::Temp],
            tls: None,
            replication: None,
            application_name: String::new(),
            prepared: 1,
            server: Some(("n1".parse().unwrap(), 7)),
        };
        let server = ServerView {
            worker: 0,
            node: "n1".parse().unwrap(),
            role: Role::Primary,
            addr: None,
            database: "d".into(),
            user: "u".into(),
            pid: 7,
            state: ServerState::Active,
            born: at,
            since: at,
            tls: Some(("TLSv1.3", "x")),
            replication: None,
            application_name: String::new(),
            prepared: 1,
            client: Some(3),
        };
        let prepared = crate::pool::view::PreparedView {
            worker: 0,
            name: "s".into(),
            references: 1,
            bytes: 8,
            query: "select 1".into(),
        };
        let tallies = tally::Tallies::new(at);
        tallies.of("d").add(Counter::Queries, 2);
        let view = View {
            clients: vec![client],
            servers: vec![server],
            tallies: tallies.view(at),
            prepared: vec![prepared],
            ..View::default()
        };
        let facts = Facts {
            view: &view,
            config: &config,
            doors: &Doors::default(),
            topology: &topology,
            lag: &lag,
            listen: ([127, 0, 0, 1], 1).into(),
            now: Instant::from_millis(1000),
            wall: 1_000_000,
            resident: Some(1),
            users: 1,
            logging_in: 0,
            consoles: 1,
        };
        for (name, show) in SHOWS {
            let Some(columns) = columns::of(&Command::Show(show)) else { continue };
            let rows = of(show, &facts);
            assert!(!rows.is_empty(), "{name}");
            let mut out = Vec::new();
            rows.iter().for_each(|row| table::write_row(&mut out, &columns, row, &table::Formats(vec![1])));
        }
    }
}
