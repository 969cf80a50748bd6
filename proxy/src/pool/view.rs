//! What the pools hold at one moment, for people: clients, server connections, and their sums.

use crate::config::PoolMode;
use crate::console::tally::TallyView;
use crate::net::Origin;
use crate::session::presence::Activity;
use crate::sql::PinReason;
use cluster::{Instant, NodeId, Role};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// A client's session.
#[derive(Clone, Debug)]
pub struct ClientView {
    /// The worker it lives on.
    pub worker: usize,
    /// Its place there. Worker and place together name it as long as it lives.
    pub place: usize,
    /// The database it asked for.
    pub database: String,
    /// Its user.
    pub user: String,
    /// Where it comes from.
    pub origin: Origin,
    /// When it came.
    pub connected: Instant,
    /// What it does.
    pub activity: Activity,
    /// Cancel requests for it that its server has not acted on yet.
    pub cancels: usize,
    /// Since when.
    pub since: Instant,
    /// Since when it has taken nothing of what waits for it.
    pub blocked_since: Option<Instant>,
    /// When its transaction, or the statement it is at, began.
    pub transaction_since: Option<Instant>,
    /// Why it keeps its server between transactions.
    pub pins: Vec<PinReason>,
    /// How the connection is encrypted: version and cipher.
    pub tls: Option<(&'static str, &'static str)>,
    /// A replication connection, and of which kind: `physical` or `logical`.
    pub replication: Option<&'static str>,
    /// Its `application_name` in force.
    pub application_name: String,
    /// Statements it has prepared by name.
    pub prepared: usize,
    /// The server that serves it: its node and its process there.
    pub server: Option<(NodeId, u32)>,
}

/// What a server connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// It serves a session.
    Active,
    /// It is free.
    Idle,
    /// It is free, and for so long that it is checked before it serves again.
    Used,
}

impl ServerState {
    /// The word PgBouncer has for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Used => "used",
        }
    }
}

/// A server connection.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// The worker it belongs to.
    pub worker: usize,
    /// The node it leads to.
    pub node: NodeId,
    /// What the node was when the connection was made.
    pub role: Role,
    /// The node's address, when it is known here.
    pub addr: Option<SocketAddr>,
    /// The database its clients ask for.
    pub database: String,
    /// The user.
    pub user: String,
    /// The process there.
    pub pid: u32,
    /// What it is at.
    pub state: ServerState,
    /// When it was made.
    pub born: Instant,
    /// Since when it is at that.
    pub since: Instant,
    /// How the connection is encrypted: version and cipher.
    pub tls: Option<(&'static str, &'static str)>,
    /// It serves a replication connection, of this kind.
    pub replication: Option<&'static str>,
    /// The `application_name` that the session it serves has there.
    pub application_name: String,
    /// Statements it has prepared.
    pub prepared: usize,
    /// The place of the client it serves, on the same worker.
    pub client: Option<usize>,
}

/// How long statements of a pool wait, and how many connections are being made for it, on one worker.
#[derive(Clone, Debug)]
pub struct QueueView {
    /// The database its clients ask for.
    pub database: String,
    /// The user.
    pub user: String,
    /// Connections being made.
    pub opening: usize,
}

/// What one worker has.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Sessions.
    pub clients: Vec<ClientView>,
    /// Server connections.
    pub servers: Vec<ServerView>,
    /// Queues.
    pub queues: Vec<QueueView>,
    /// Sums per database.
    pub tallies: Vec<TallyView>,
    /// Statements that clients have prepared.
    pub prepared: Vec<PreparedView>,
}

/// A prepared text that clients of one worker share.
#[derive(Clone, Debug)]
pub struct PreparedView {
    /// The worker.
    pub worker: usize,
    /// Its name on servers.
    pub name: String,
    /// How many clients and servers have it.
    pub references: usize,
    /// Bytes of the text.
    pub bytes: usize,
    /// The start of the text.
    pub query: String,
}

/// One database and user, over all nodes and workers. Named as PgBouncer names its columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolView {
    /// The database its clients ask for.
    pub database: String,
    /// The user.
    pub user: String,
    /// Clients that no statement waits for: idle, or served.
    pub cl_active: usize,
    /// Clients whose statement waits for a server.
    pub cl_waiting: usize,
    /// Cancel requests on their way to servers, each on a connection of its own.
    pub cancels: usize,
    /// Server connections that serve a client.
    pub sv_active: usize,
    /// Server connections that are free.
    pub sv_idle: usize,
    /// Server connections that are free and will be checked before they serve again.
    pub sv_used: usize,
    /// Server connections being made.
    pub sv_login: usize,
    /// How long the first in the queue has waited.
    pub maxwait: Duration,
    /// When its server connections go back.
    pub mode: PoolMode,
}

impl View {
    /// Add what another worker has.
    pub fn join(&mut self, mut other: Self) {
        self.clients.append(&mut other.clients);
        self.servers.append(&mut other.servers);
        self.queues.append(&mut other.queues);
        self.tallies.append(&mut other.tallies);
        self.prepared.append(&mut other.prepared);
    }

    /// Databases that are in use or have been, by the names clients ask for; some more than once.
    pub fn databases(&self) -> impl Iterator<Item = &str> {
        let clients = self.clients.iter().map(|c| c.database.as_str());
        let servers = self.servers.iter().map(|s| s.database.as_str());
        let known = self.tallies.iter().map(|t| t.database.as_str()).filter(|d| !d.is_empty());
        clients.chain(servers).chain(known)
    }

    /// Sums per database and user, in order. `mode_of` resolves the mode.
    pub fn pools(&self, now: Instant, mode_of: impl Fn(&str, &str) -> PoolMode) -> Vec<PoolView> {
        let mut pools: BTreeMap<(&str, &str), PoolView> = BTreeMap::new();
        for c in &self.clients {
            let pool = pools.entry((&c.database, &c.user)).or_default();
            pool.cancels += c.cancels;
            if c.activity == Activity::Waiting {
                pool.cl_waiting += 1;
                pool.maxwait = pool.maxwait.max(now.since(c.since));
            } else {
                pool.cl_active += 1;
            }
        }
        for s in &self.servers {
            let pool = pools.entry((&s.database, &s.user)).or_default();
            match s.state {
                ServerState::Active => pool.sv_active += 1,
                ServerState::Idle => pool.sv_idle += 1,
                ServerState::Used => pool.sv_used += 1,
            }
        }
        for q in &self.queues {
            pools.entry((&q.database, &q.user)).or_default().sv_login += q.opening;
        }
        let named = pools.into_iter().map(|((database, user), pool)| PoolView {
            mode: mode_of(database, user),
            database: database.to_owned(),
            user: user.to_owned(),
            ..pool
        });
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_servers_are_summed_by_database_and_user() {
        let at = Instant::from_millis;
        let client = |place, user: &str, activity, since| ClientView {
            worker: 0,
            place,
            database: "d".into(),
            user: user.into(),
            origin: Origin::Local { uid: 0 },
            connected: at(0),
            activity,
            cancels: place,
            since: at(since),
            blocked_since: None,
            transaction_since: None,
            pins: Vec::new(),
            tls: None,
            replication: None,
            application_name: String::new(),
            prepared: 0,
            server: None,
        };
        let server = |state| ServerView {
            worker: 0,
            node: "n1".parse().unwrap(),
            role: Role::Primary,
            addr: None,
            database: "d".into(),
            user: "a".into(),
            pid: 1,
            state,
            born: at(0),
            since: at(0),
            tls: None,
            replication: None,
            application_name: String::new(),
            prepared: 0,
            client: None,
        };
        let mut view = View {
            clients: vec![client(0, "b", Activity::Idle, 0), client(1, "a", Activity::Waiting, 700)],
            servers: vec![server(ServerState::Active), server(ServerState::Idle)],
            queues: vec![QueueView { database: "d".into(), user: "a".into(), opening: 2 }],
            ..View::default()
        };
        view.join(View {
            clients: vec![client(0, "a", Activity::Waiting, 400), client(1, "a", Activity::Active, 0)],
            servers: vec![server(ServerState::Used)],
            queues: vec![QueueView { database: "d".into(), user: "a".into(), opening: 1 }],
            ..View::default()
        });
        let pools = view.pools(at(1000), |_, user| if user == "b" { PoolMode::Session } else { PoolMode::Transaction });
        let base = PoolView { database: "d".into(), ..PoolView::default() };
        let a = PoolView {
            user: "a".into(),
            cl_active: 1,
            cl_waiting: 2,
            cancels: 2,
            sv_active: 1,
            sv_idle: 1,
            sv_used: 1,
            sv_login: 3,
            maxwait: Duration::from_millis(600),
            ..base.clone()
        };
        let b = PoolView { user: "b".into(), cl_active: 1, mode: PoolMode::Session, ..base };
        assert_eq!(pools, [a, b]);
    }
}
