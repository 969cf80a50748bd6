//! Real PostgreSQL servers, a proxy in this process, and a topology made by hand.
//!
//! Each test file uses its own part of this.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its own part")]

pub mod authority;
pub mod dice;
pub mod direct;
pub mod joined;
#[path = "../../../integration/src/ports.rs"]
mod ports;
pub mod prepared;
pub mod raw;
#[path = "../../../integration/src/segment.rs"]
mod segment;
#[path = "../../../integration/src/server.rs"]
mod server;
pub mod slow;
#[path = "../../../integration/src/template.rs"]
mod template;

use cluster::lag::{Detail, LagSnapshot, LagUnknown, PrimarySample, ServerStart, StandbyLag, StandbySample};
use cluster::node::Endpoint;
use cluster::topology::{Gate, Member, Topology};
use cluster::{Clock, Lsn, NodeId, Term, TimelineId};
pub use ports::free_port;
use proxy::auth::scram::Verifier;
use proxy::auth::userlist;
use proxy::config::{self, Config};
use proxy::console::tally::Counter;
use server::Server;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Longest wait for any condition.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const PASSWORD: &str = "correct horse";

/// Wait until `condition` gives something, or fail saying what was awaited.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        // To look takes longer than to wait: what took long so far may be seen a little late.
        std::thread::sleep((started.elapsed() / 10).clamp(Duration::from_millis(10), Duration::from_millis(50)));
    }
}

/// A program of PostgreSQL's: of `PGTENURE_TEST_PG_BIN`, or of the newest major Debian's way.
pub fn bin(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("PGTENURE_TEST_PG_BIN") {
        return PathBuf::from(dir).join(name);
    }
    let majors = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let numbered = majors.filter_map(|d| Some((d.file_name().to_str()?.parse::<u32>().ok()?, d.path().join("bin"))));
    let newest = numbered.filter(|(_, bin)| bin.join("postgres").exists()).max();
    newest.expect("PostgreSQL's server is installed under /usr/lib/postgresql").1.join(name)
}

/// Is this PostgreSQL built with that library? Only one that was asked for by `PGTENURE_TEST_PG_BIN` may be without.
pub fn has(library: &str) -> bool {
    let program = std::fs::read(bin("postgres")).unwrap();
    let has = program.windows(library.len()).any(|bytes| bytes == library.as_bytes());
    assert!(has || std::env::var_os("PGTENURE_TEST_PG_BIN").is_some(), "nothing shows that it has {library}");
    if !has {
        eprintln!("SKIPPED: this PostgreSQL is built without {library}");
    }
    has
}

/// PostgreSQL refuses to run as root.
fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new(program);
    if nix::unistd::Uid::effective().is_root() {
        let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("the user postgres exists");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/").env_remove("PGOPTIONS");
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the program can be started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// One PostgreSQL.
pub struct Node {
    pub name: NodeId,
    pub port: u16,
    pub data: PathBuf,
    server: Option<Server>,
}

impl Node {
    fn spawn(&mut self) {
        self.server = Some(Server::start(&self.data, &self.data.with_extension("log"), || {
            let mut command = unprivileged(&bin("postgres"));
            command.arg("-D").arg(&self.data);
            command
        }));
    }

    /// Run SQL as the superuser; rows as psql prints them.
    pub fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn try_psql(&self, sql: &str) -> Result<String, String> {
        direct::run(self.port, sql)
    }

    /// `kill -9` of every process of it, as when the host dies.
    pub fn kill(&mut self) {
        drop(self.server.take());
    }

    /// Start again after a kill.
    pub fn start(&mut self) {
        self.spawn();
    }

    /// The process that takes connections.
    pub fn postmaster(&self) -> nix::unistd::Pid {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).expect("it runs");
        let pid = file.lines().next().expect("its first line is the process");
        nix::unistd::Pid::from_raw(pid.parse().expect("a number"))
    }

    pub fn promote(&self) {
        self.psql("select pg_promote(false)");
        wait_for("the promotion", || (self.psql("select pg_is_in_recovery()") == "f").then_some(()));
    }

    pub fn member(&self) -> Member {
        let postgres = Endpoint { host: "127.0.0.1".to_owned(), port: self.port };
        Member { node: self.name.clone(), postgres, fenced: false, candidate: true, zone: None }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        segment::remove_segment(&self.data);
    }
}

/// A primary, its standbys, and a proxy before them.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub topology: watch::Sender<Topology>,
    pub registry: prometheus::Registry,
    pub handle: Option<proxy::Handle>,
    pub port: u16,
    /// While it is true, no sample of the nodes reaches the proxy.
    pub blind: watch::Sender<bool>,
    stop_lag: watch::Sender<bool>,
    lag_thread: Option<std::thread::JoinHandle<()>>,
    scratch: tempfile::TempDir,
}

impl Cluster {
    /// `standbys` of them, with the proxy's settings changed by `set`.
    pub fn start(standbys: usize, set: impl FnOnce(&mut config::Raw)) -> Self {
        let scratch = tempfile::Builder::new().prefix("pgt").tempdir().expect("a scratch directory");
        if nix::unistd::Uid::effective().is_root() {
            run(Command::new("chown").arg("postgres").arg(scratch.path()));
        }
        let mut nodes = vec![create_primary(scratch.path())];
        for i in 0..standbys {
            let standby = create_standby(scratch.path(), &nodes[0], i + 2);
            nodes.push(standby);
        }
        let verifier = nodes[0].psql("select rolpassword from pg_authid where rolname = 'app'");
        let verifier: Verifier = verifier.parse().expect("PostgreSQL keeps a SCRAM verifier");
        let users = scratch.path().join("userlist.txt");
        std::fs::write(&users, userlist::line("app", &verifier) + "\n").expect("scratch is writable");
        let mut raw = config::Raw {
            listen: ([127, 0, 0, 1], 0).into(),
            workers: 2,
            // Few clients are on both workers then, and servers move between them.
            worker_fill: 1,
            userlist: users,
            monitor_user: "postgres".to_owned(),
            ..config::Raw::default()
        };
        set(&mut raw);
        let config: Config = config::check(raw).expect("the test's settings are valid");
        let (topology, topology_seen) = watch::channel(open(1, &nodes[0], &nodes[1..]));
        let (lag, lag_seen) = watch::channel(Arc::new(LagSnapshot::default()));
        let ((stop_lag, stopped), (blind, blinded)) = (watch::channel(false), watch::channel(false));
        let seen = topology.subscribe();
        let lag_thread = Some(std::thread::spawn(move || sample_lag(&seen, &lag, (stopped, blinded))));
        let registry = prometheus::Registry::new();
        let inputs = proxy::Inputs { topology: topology_seen, lag: lag_seen, ask: None, ask_view: None };
        let handle = proxy::start(config, inputs, &registry).expect("the proxy starts");
        let port = handle.addr.port();
        Self { nodes, topology, registry, handle: Some(handle), port, blind, stop_lag, lag_thread, scratch }
    }

    /// The file of users.
    pub fn userlist(&self) -> PathBuf {
        self.scratch.path().join("userlist.txt")
    }

    /// A connection string to the endpoint.
    pub fn dsn(&self) -> String {
        format!("host=127.0.0.1 port={} user=app password='{PASSWORD}' dbname=app sslmode=disable", self.port)
    }

    /// A client program (psql, pgbench) before the endpoint.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(bin(program));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string()).env("PGUSER", "app");
        command.env("PGPASSWORD", PASSWORD).env("PGDATABASE", "app").env_remove("PGOPTIONS").current_dir("/");
        command
    }

    /// SQL through psql and the endpoint; what it prints, or its error.
    pub fn psql(&self, sql: &str) -> Result<String, String> {
        let output = self.client("psql").args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]).output();
        let output = output.expect("psql can be started");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Wait until a statement is served, whose connection is there for the next one then: to make one may take longer than
    /// a test lets statements be held.
    pub fn warm(&self) {
        wait_for("a statement to be served", || self.psql("select 1").ok());
    }

    /// Put settings in force: at all workers when this returns.
    pub fn reload(&self, raw: config::Raw) {
        let handle = self.handle.as_ref().expect("the proxy runs");
        let config = config::check(raw).expect("the test's settings are valid");
        handle.control().reload(config).expect("what they name can be used");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(handle.view(DEADLINE)).expect("the workers answer");
    }

    /// Publish a view; `revision` grows by itself.
    pub fn publish(&self, change: impl FnOnce(&mut Topology)) {
        self.topology.send_modify(|t| {
            change(t);
            t.revision += 1;
        });
        let (term, epoch, gate) = {
            let t = self.topology.borrow();
            (t.term, t.epoch, t.gate)
        };
        // One that is being drained has its handle elsewhere.
        let Some(handle) = self.handle.as_ref() else { return };
        let state = handle.state.clone();
        // What of it the state does not tell they know of as well, once they have answered: the cluster comes before that.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(handle.view(DEADLINE)).expect("the workers answer");
        wait_for("all workers to act on the view", || {
            let s = *state.borrow();
            (s.term == term && s.epoch == epoch && s.gate == gate).then_some(())
        });
    }

    /// Wait until every standby has all that the primary has now. What a test has made is to be there after a failover, and
    /// a stream that stands still for a moment does not end sooner for that.
    pub fn replicate(&self) {
        let end = self.nodes[0].psql("select pg_current_wal_flush_lsn()");
        for standby in &self.nodes[1..] {
            let there = format!("select pg_last_wal_replay_lsn() >= '{end}'");
            wait_for("the standby to have it", || (standby.psql(&there) == "t").then_some(()));
        }
    }

    /// Wait until commits of the first node go by its `synchronous_standby_names`. Whoever is asked has read that there is a
    /// list before the checkpointer has, which tells all who commit; it does so before it makes a checkpoint.
    pub fn list_is_in_force(&self) {
        // One of them it may make before, if it was about to look for what is asked for.
        for _ in 0..2 {
            self.nodes[0].psql("checkpoint");
        }
    }

    /// Close the gate, promote `node`, and open the next term.
    pub fn fail_over_to(&self, node: usize) {
        self.publish(|t| t.gate = Gate::Closed(cluster::topology::Closed::Promoting));
        self.nodes[node].promote();
        let primary = self.nodes[node].member();
        self.publish(|t| {
            t.term = t.term.next();
            t.gate = Gate::Open;
            t.standbys.retain(|s| s.node != primary.node);
            t.primary = Some(primary);
        });
    }

    /// What all workers have counted, as the console shows it.
    pub fn tally(&self, of: Counter) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let view = self.handle.as_ref().expect("the proxy runs").view(DEADLINE);
        let view = runtime.block_on(view).expect("the workers answer");
        view.tallies.iter().map(|t| t.totals[of as usize]).sum()
    }

    pub fn counter(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().filter(|f| f.name() == name);
        family.flat_map(|f| f.get_metric()).map(|m| m.get_counter().get_value() + m.get_gauge().get_value()).sum()
    }

    /// The same, only where a label has this value.
    pub fn counter_of(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let of = families.iter().filter(|f| f.name() == name).flat_map(|f| f.get_metric());
        let of = of.filter(|m| m.get_label().iter().any(|l| l.value() == label));
        of.map(|m| m.get_counter().get_value() + m.get_gauge().get_value()).sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_lag.send_replace(true);
        drop(self.handle.take());
        if let Some(thread) = self.lag_thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(term: u64, primary: &Node, standbys: &[Node]) -> Topology {
    Topology {
        term: Term(term),
        system_id: None,
        revision: 1,
        gate: Gate::Open,
        primary: Some(primary.member()),
        standbys: standbys.iter().map(Node::member).collect(),
        valid_until: None,
        confirmed_until: None,
        epoch: 1,
        protected: true,
        semi_sync: true,
        quorums: Vec::new(),
        begun_by: 1,
        read_at: None,
        fork: None,
        forks: Vec::new(),
        xid_bounds: Vec::new(),
        holds_all_of: None,
        holds_written_of: None,
        loss_allowed: false,
    }
}

const INITDB: [&str; 8] = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"];
const SETTINGS: &str = "fsync = off\nwal_level = logical\nmax_connections = 60\nshared_buffers = 32MB\n\
                        password_encryption = 'scram-sha-256'\nlisten_addresses = '127.0.0.1'\nhot_standby = on\n\
                        unix_socket_directories = ''\nwal_retrieve_retry_interval = 100ms\nmax_wal_senders = 5\n\
                        max_prepared_transactions = 5\ndynamic_shared_memory_type = mmap\n";

fn create_primary(scratch: &Path) -> Node {
    let mut node = Node { name: "n1".parse().unwrap(), port: free_port(), data: scratch.join("n1"), server: None };
    let databases = format!("create role app login password '{PASSWORD}'\ncreate database app owner app\n");
    let recipe = [&INITDB[..], &[SETTINGS, &databases]].concat();
    template::data_dir(&node.data, &bin("initdb"), &recipe, || {
        run(unprivileged(&bin("initdb")).arg("-D").arg(&node.data).args(INITDB));
        append(&node.data.join("postgresql.conf"), SETTINGS);
        alone(&node.data, &databases);
    });
    append(&node.data.join("postgresql.conf"), &format!("port = {}\ncluster_name = 'n1'\n", node.port));
    let hba = "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n\
               host replication all 127.0.0.1/32 trust\n";
    std::fs::write(node.data.join("pg_hba.conf"), hba).expect("the data directory is writable");
    node.spawn();
    node
}

/// Run statements, one a line, in a PostgreSQL of one process that listens nowhere.
fn alone(data: &Path, sql: &str) {
    let mut postgres = unprivileged(&bin("postgres"));
    postgres.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(data).arg("postgres");
    let mut child = postgres.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("postgres can be started");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(sql.as_bytes()).expect("it reads its input");
    drop(input);
    assert!(child.wait().expect("our child").success(), "{sql}");
}

fn create_standby(scratch: &Path, primary: &Node, number: usize) -> Node {
    let name = format!("n{number}");
    let mut node = Node { name: name.parse().unwrap(), port: free_port(), data: scratch.join(&name), server: None };
    let mut backup = unprivileged(&bin("pg_basebackup"));
    backup.arg("-D").arg(&node.data).args(["-h", "127.0.0.1", "-U", "postgres", "-c", "fast", "-R", "--no-sync"]);
    run(backup.args(["-p", &primary.port.to_string()]));
    let own = format!("port = {}\ncluster_name = '{name}'\n", node.port);
    append(&node.data.join("postgresql.conf"), &own);
    node.spawn();
    node
}

fn append(path: &Path, text: &str) {
    let old = std::fs::read_to_string(path).expect("PostgreSQL made this file");
    std::fs::write(path, old + text).expect("the data directory is writable");
}

/// A lag monitor of a few lines: every node sampled in turn, lag taken from positions alone.
fn sample_lag(
    topology: &watch::Receiver<Topology>,
    lag: &watch::Sender<Arc<LagSnapshot>>,
    (stop, blind): (watch::Receiver<bool>, watch::Receiver<bool>),
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut kept = Kept::new();
    while !*stop.borrow() {
        let view = topology.borrow().clone();
        let snapshot = runtime.block_on(async {
            let mut snapshot = LagSnapshot { term: view.term, ..LagSnapshot::default() };
            if let Some(primary) = &view.primary {
                let sent_at = Clock.now();
                if let Some((lsn, flush_lsn, confirmed)) = primary_position(&mut kept, primary).await {
                    let node = primary.node.clone();
                    let timeline = view.term.timeline().unwrap_or(TimelineId(1));
                    let insert_lsn = lsn.normalised_insert();
                    snapshot.primary = Some(PrimarySample {
                        node,
                        timeline,
                        insert_lsn,
                        flush_lsn,
                        sent_at,
                        confirmed_until: confirmed.then_some(sent_at),
                        flushed_until: confirmed.then_some(sent_at),
                        applied_lsn: None,
                    });
                }
            }
            for member in &view.standbys {
                snapshot.standbys.push(sample_standby(&mut kept, member, snapshot.primary.as_ref()).await);
            }
            snapshot
        });
        if !*blind.borrow() {
            lag.send_replace(Arc::new(snapshot));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn sample_standby(kept: &mut Kept, member: &Member, primary: Option<&PrimarySample>) -> StandbyLag {
    let sent_at = Clock.now();
    let node = member.node.clone();
    let Some((replay_lsn, started)) = standby_position(kept, member).await else {
        return StandbyLag { node, sample: None, replay_lag: Err(LagUnknown::Unreachable), detail: Detail::default() };
    };
    let behind = primary.map(|p| p.insert_lsn.bytes_since(replay_lsn));
    let replay_lag = match behind {
        Some(0) => Ok(Duration::ZERO),
        Some(_) => Ok(Duration::from_millis(100)),
        None => Err(LagUnknown::NoPrimarySample),
    };
    let sample = StandbySample {
        receive_lsn: replay_lsn,
        replay_lsn,
        received_timeline: None,
        replay_lag_bytes: behind,
        sent_at,
        asked_at: sent_at,
        up_since: cluster::Instant::from_millis(0),
        started: Some(started),
    };
    StandbyLag { node, sample: Some(sample), replay_lag, detail: Detail::default() }
}

async fn standby_position(kept: &mut Kept, member: &Member) -> Option<(Lsn, ServerStart)> {
    let sql = format!("select pg_last_wal_replay_lsn()::text, {}", ServerStart::EXPRESSION);
    let row = ask(kept, member, &sql).await?;
    Some((row.try_get::<_, String>(0).ok()?.parse().ok()?, ServerStart(row.try_get(1).ok()?)))
}

/// Where the primary's WAL ends, as inserted and as flushed, and whether the standbys that commits wait for, if any, have all
/// that it has flushed. Without any, whether nobody may have flushed a commit that others do not see yet: who waits for a client, a
/// lock or a time has not.
async fn primary_position(kept: &mut Kept, member: &Member) -> Option<(Lsn, Lsn, bool)> {
    let sql = "select pg_current_wal_insert_lsn()::text, current_setting('synchronous_standby_names') = '' \
               and not exists (select from pg_stat_activity where wait_event = 'SyncRep' \
                               or backend_xid is not null and state = 'active' \
                               and coalesce(wait_event_type, '') not in ('Client', 'Lock', 'Timeout')) \
               or coalesce(f.here <= (select max(flush_lsn) from pg_stat_replication \
                                      where sync_state in ('sync', 'quorum')), false) \
               , f.here::text from (select pg_current_wal_flush_lsn() as here offset 0) f";
    let row = ask(kept, member, sql).await?;
    let lsn = |column| row.try_get::<_, String>(column).ok()?.parse().ok();
    Some((lsn(0)?, lsn(2)?, row.try_get(1).ok()?))
}

/// A connection per server and question, on which it is prepared: to connect for each is most of what a sample costs.
type Kept = BTreeMap<(u16, String), (tokio_postgres::Client, tokio_postgres::Statement)>;

/// The one row of a question. A connection that is of no use any more is followed by a new one.
async fn ask(kept: &mut Kept, member: &Member, sql: &str) -> Option<tokio_postgres::Row> {
    let key = (member.postgres.port, sql.to_owned());
    if let Some((client, question)) = kept.remove(&key)
        && let Ok(row) = client.query_one(&question, &[]).await
    {
        kept.insert(key, (client, question));
        return Some(row);
    }
    let config =
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=1", member.postgres.port);
    let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.ok()?;
    tokio::spawn(connection);
    let question = client.prepare(sql).await.ok()?;
    let row = client.query_one(&question, &[]).await.ok()?;
    kept.insert(key, (client, question));
    Some(row)
}

/// A socket to the endpoint.
pub fn dial(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the endpoint accepts");
    stream.set_nodelay(true).expect("a TCP socket");
    stream.set_read_timeout(Some(DEADLINE)).expect("a TCP socket");
    stream
}
