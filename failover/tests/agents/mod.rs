//! A cluster of real agents and real PostgreSQL over a store in memory, and the steps of a manager by hand.

#[path = "../../../integration/src/segment.rs"]
mod segment;

use cluster::config::Size;
use cluster::keys::Keys;
use cluster::sync_names::SyncNames;
use cluster::{Endpoint, NodeId, Term};
use failover::agent::{self, AgentHandle};
use failover::api::*;
use failover::config::agent::{AgentConfig, AgentRaw, BootstrapRaw, check};
use failover::config::cluster::ClusterConfig;
use failover::record::*;
use failover::store::memory::MemoryStore;
use failover::store::{Compare, Store, Txn, Versioned};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::NoTls;

pub(crate) const SECRET: &str = "a secret of the tests only";

/// PostgreSQL's programs: those of `PGTENURE_TEST_PG_BIN`, or the newest of Debian's versioned directories.
pub(crate) fn bin() -> String {
    if let Ok(dir) = std::env::var("PGTENURE_TEST_PG_BIN") {
        return dir;
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed").flatten();
    let majors = versions.filter(|e| e.path().join("bin/postgres").is_file());
    let newest = majors.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()).max();
    format!("/usr/lib/postgresql/{}/bin", newest.expect("PostgreSQL's server is installed"))
}

/// Run a test's body as an unprivileged user: PostgreSQL refuses to run as root, so as root the test runs itself again
/// as user postgres.
///
/// # Panics
/// When `name` is not the test's, by which none would run.
pub(crate) fn unprivileged(name: &str, body: impl Future<Output = ()>) {
    assert_eq!(std::thread::current().name(), Some(name), "a test is run again by its name");
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::process::CommandExt;
        let user = nix::unistd::User::from_name("postgres").unwrap().expect("the postgres package makes that user");
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", name, "--nocapture"])
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw())
            .current_dir("/tmp");
        let status = command.env("HOME", "/tmp").status().unwrap();
        assert!(status.success(), "{name} failed as user postgres");
        return;
    }
    let filter = std::env::var("RUST_LOG").unwrap_or_default();
    if !filter.is_empty() {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(300), body).await.expect("the test took too long")
    });
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) config: AgentConfig,
    pub(crate) handle: Option<AgentHandle>,
    pub(crate) store: MemoryStore,
    pub(crate) agent_port: u16,
}

pub(crate) struct Cluster {
    _dir: tempfile::TempDir,
    pub(crate) store: MemoryStore,
    pub(crate) keys: Keys,
    pub(crate) shared: ClusterConfig,
    pub(crate) nodes: Vec<Node>,
    pub(crate) k: u32,
}

impl Drop for Cluster {
    /// Whatever a test did, none of its servers stays.
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(|n| drop(n.handle.take()));
        // A task that is just starting a server ends at its next wait only, so look until nothing comes any more.
        let mut quiet = 0;
        while quiet < 5 {
            let data = || self.nodes.iter().map(|n| n.config.data_dir.join("data"));
            quiet = if data().all(|d| postgres_of(&d).is_empty()) { quiet + 1 } else { 0 };
            data().for_each(|d| kill_all(&d));
            std::thread::sleep(Duration::from_millis(20));
        }
        self.nodes.iter().for_each(|n| segment::remove_segment(&n.config.data_dir.join("data")));
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = std::fs::read_dir(node.config.data_dir.join("log")).into_iter().flatten().flatten();
                for file in log {
                    let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                    let tail: Vec<&str> = text.lines().rev().take(15).collect();
                    eprintln!("--- {} {}", node.id, file.path().display());
                    tail.into_iter().rev().for_each(|l| eprintln!("{l}"));
                }
            }
        }
    }
}

/// Pids of every postgres process that works in `data`.
pub(crate) fn postgres_of(data: &Path) -> Vec<i32> {
    let Ok(data) = data.canonicalize() else { return Vec::new() };
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|c| c == data)).collect()
}

/// All that could write. The writer of the log ends by itself, at the end of its pipe; who has no title has just ended.
pub(crate) fn writing_postgres_of(data: &Path) -> Vec<i32> {
    let writes = |pid: &i32| {
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title);
        let title = title.trim_end_matches([' ', '\0']);
        !title.is_empty() && !title.ends_with("logger")
    };
    postgres_of(data).into_iter().filter(writes).collect()
}

pub(crate) fn kill_all(data: &Path) {
    for pid in postgres_of(data) {
        signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

pub(crate) fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

pub(crate) fn postmaster(config: &AgentConfig) -> i32 {
    let text = std::fs::read_to_string(config.data_dir.join("data/postmaster.pid")).unwrap();
    text.lines().next().unwrap().parse().unwrap()
}

impl Cluster {
    /// Nodes n1, n2, … with PostgreSQL on ports from `base`.
    pub(crate) fn new(base: u16, nodes: u16, mode: Mode, k: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("f2").tempdir().unwrap();
        let file = |name: &str, text: &str| -> PathBuf {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let secret_file = file("secret", SECRET);
        let (repl, monitor) = (file("repl", "repl's: password\\"), file("monitor", "monitor"));
        let names: Vec<NodeId> = (1..=nodes).map(|i| format!("n{i}").parse().unwrap()).collect();
        let shared = ClusterConfig { name: "t".into(), mode, k, voters: names.clone(), secret_file };
        let store = MemoryStore::new();
        let nodes = names.into_iter().zip(base..).map(|(id, port)| {
            let raw = AgentRaw {
                node: id.to_string(),
                data_dir: dir.path().join(id.as_str()),
                listen: "127.0.0.1:0".into(),
                postgres_port: port,
                bin_dir: bin().into(),
                replication_password_file: repl.clone(),
                monitor_password_file: monitor.clone(),
                // What nobody asked for is not to commit among what a test counts.
                parameters: [("shared_buffers", "16MB"), ("autovacuum", "off"), ("dynamic_shared_memory_type", "mmap")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                ..AgentRaw::default()
            };
            let bootstrap = BootstrapRaw { wal_segment_size: Size(16 << 20), ..BootstrapRaw::default() };
            let config = check(&raw, &bootstrap).unwrap();
            Node { id, config, handle: None, store: store.client(), agent_port: 0 }
        });
        Self { nodes: nodes.collect(), _dir: dir, store, keys: Keys::new("/t", "t"), shared, k }
    }

    pub(crate) async fn start(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        let registry = prometheus::Registry::new();
        let store: Arc<dyn Store> = Arc::new(node.store.clone());
        let started = agent::run(node.config.clone(), self.shared.clone(), self.keys.clone(), store, &registry).await;
        let handle = started.unwrap_or_else(|e| panic!("{}: {e:?}", node.id));
        node.agent_port = handle.address().port();
        node.handle = Some(handle);
    }

    /// The agent ends as by kill -9: PostgreSQL goes on.
    pub(crate) async fn crash_agent(&mut self, i: usize) {
        drop(self.nodes[i].handle.take());
        // The directory's lock goes with the last task.
        tokio::task::yield_now().await;
        let path = self.nodes[i].config.data_dir.join("agent.lock");
        until("the agent's lock to be free", async || {
            let file = std::fs::File::create(&path).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok().then_some(())
        })
        .await;
    }

    pub(crate) async fn request(
        &self,
        i: usize,
        method: &str,
        path: &str,
        body: String,
        secret: &str,
    ) -> (u16, String) {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.nodes[i].agent_port)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "agent");
        let request = request.header("authorization", format!("Bearer {secret}"));
        let request = request.body(Full::new(bytes::Bytes::from(body))).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    pub(crate) async fn post<R: DeserializeOwned>(
        &self,
        i: usize,
        verb: &str,
        order: &impl Serialize,
    ) -> Result<R, String> {
        let body = serde_json::to_string(order).unwrap();
        let (status, text) = self.request(i, "POST", &format!("/agent/{verb}"), body, SECRET).await;
        if status == 200 { Ok(serde_json::from_str(&text).unwrap()) } else { Err(format!("{status} {text}")) }
    }

    /// Repeat an order that is refused, as a manager does: the node may not have been looked at in time.
    pub(crate) async fn insist<R: DeserializeOwned>(&self, i: usize, verb: &str, order: &impl Serialize) -> R {
        let refused = |why: &String| eprintln!("{} to {verb}: {why}", self.nodes[i].id);
        until(verb, async || self.post(i, verb, order).await.inspect_err(refused).ok()).await
    }

    pub(crate) async fn state(&self, i: usize) -> AgentState {
        let (status, text) = self.request(i, "GET", "/agent/state", String::new(), SECRET).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn until_state<T>(
        &self,
        i: usize,
        what: &str,
        mut test: impl FnMut(&AgentState) -> Option<T>,
    ) -> T {
        let begun = tokio::time::Instant::now();
        loop {
            let state = self.state(i).await;
            if let Some(found) = test(&state) {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "waited for {what}: {} is {state:#?}", self.nodes[i].id);
            pause(begun).await;
        }
    }

    pub(crate) async fn until_streaming(&self, i: usize, from: usize, term: Term) {
        let primary = self.nodes[from].id.clone();
        self.until_state(i, "streaming from the primary", |s| match &s.postgres {
            PostgresState::Standby(p) => {
                (p.streams_from == Some(primary.clone()) && term.timeline() == Some(p.timeline)).then_some(())
            }
            _ => None,
        })
        .await;
    }

    pub(crate) async fn record<T: DeserializeOwned>(&self, key: String) -> Option<(T, i64)> {
        let found: Option<Versioned> = self.store.get(&key).await.unwrap();
        found.map(|v| (serde_json::from_slice(&v.value).unwrap(), v.mod_revision))
    }

    pub(crate) async fn term(&self) -> (TermRecord, i64) {
        self.record(self.keys.term()).await.unwrap()
    }

    /// A manager's compare-and-put of the term record.
    pub(crate) async fn put_term(&self, record: &TermRecord, revision: i64) -> i64 {
        let txn = Txn::new()
            .when(Compare::ModRevision(self.keys.term(), revision))
            .put(self.keys.term(), serde_json::to_vec(record).unwrap());
        let txn = if record.phase == Phase::Recruiting { txn.delete(self.keys.primary()) } else { txn };
        let done = self.store.txn(txn).await.unwrap();
        assert!(done.succeeded);
        done.revision
    }

    /// Start all agents and play the manager until the first term is open. Gives the primary's number.
    pub(crate) async fn bootstrap(&mut self) -> usize {
        for i in 0..self.nodes.len() {
            self.start(i).await;
        }
        let (record, _) = until("the first term", async || self.record::<TermRecord>(self.keys.term()).await).await;
        let primary = self.number(record.node.as_ref().unwrap());
        for i in (0..self.nodes.len()).filter(|i| *i != primary) {
            self.until_streaming(i, primary, Term(1)).await;
        }
        self.open(primary).await;
        primary
    }

    pub(crate) fn number(&self, id: &NodeId) -> usize {
        self.nodes.iter().position(|n| n.id == *id).unwrap()
    }

    pub(crate) async fn open(&self, i: usize) {
        let (record, term_revision) = self.term().await;
        let (_, policy_revision) = self.record::<PolicyRecord>(self.keys.policy()).await.unwrap();
        let order = Open { term: record.term, term_revision, suspend: None, policy_revision };
        self.insist::<Opened>(i, "open", &order).await;
    }

    /// T1: begin the next term.
    pub(crate) async fn begin(&self) -> (TermRecord, i64) {
        let (old, revision) = self.term().await;
        let next = TermRecord {
            term: old.term.next(),
            phase: Phase::Recruiting,
            coordinator: "test".into(),
            node: None,
            cause: Cause::Failover,
            prev: old.node.map(|node| Tenure { term: old.term, node, timeline: old.term.timeline().unwrap() }),
            fork: None,
            forks: Vec::new(),
            xid_bound: None,
            xid_bounds: Vec::new(),
            record_lsn: None,
            policy_epoch: 1,
            newest_timeline: None,
            holds_all_of: None,
            holds_written_of: None,
            history_lost: false,
            lossy_timelines: Vec::new(),
            chosen_before: None,
            data_loss_allowed: false,
        };
        let revision = self.put_term(&next, revision).await;
        (next, revision)
    }

    pub(crate) async fn freeze(&self, i: usize, term: Term) -> Result<Frozen, String> {
        self.post(i, "freeze", &Freeze { term, coordinator: "test".into(), is_stopped: false }).await
    }

    pub(crate) fn promotion(&self, i: usize, term: Term, base: Position) -> Promote {
        let sync_names = SyncNames::for_primary(&self.nodes[i].id, &self.shared.voters, self.k).to_string();
        let on_request = self.shared.mode == Mode::Async;
        Promote { term, base, sync_names, on_request, policy_epoch: 1, prev_term: None, deadline_ms: 60_000 }
    }

    /// The whole failover by hand: freeze `recruits`, promote `to`, have the others follow, open.
    pub(crate) async fn failover(&self, to: usize, recruits: &[usize]) -> (Term, Promoted) {
        let (record, revision) = self.begin().await;
        self.failover_begun(record, revision, to, recruits).await
    }

    pub(crate) async fn failover_begun(
        &self,
        record: TermRecord,
        revision: i64,
        to: usize,
        recruits: &[usize],
    ) -> (Term, Promoted) {
        let done = self.failover_unopened(record, revision, to, recruits).await;
        self.open(to).await;
        done
    }

    /// All of it but T3.
    pub(crate) async fn failover_unopened(
        &self,
        mut record: TermRecord,
        revision: i64,
        to: usize,
        recruits: &[usize],
    ) -> (Term, Promoted) {
        let term = record.term;
        // The candidate last, once it has what the others have: an old primary that lives goes on writing meanwhile.
        let mut most: Option<Position> = None;
        let freeze = Freeze { term, coordinator: "test".into(), is_stopped: false };
        for &i in recruits.iter().filter(|i| **i != to) {
            most = most.max(self.insist::<Frozen>(i, "freeze", &freeze).await.position);
        }
        self.until_has(to, most).await;
        let base = self.insist::<Frozen>(to, "freeze", &freeze).await.position;
        (record.phase, record.node) = (Phase::Promoting, Some(self.nodes[to].id.clone()));
        let revision = self.put_term(&record, revision).await;
        let order = self.promotion(to, term, base.expect("the candidate runs"));
        let promoted: Promoted = self.insist(to, "promote", &order).await;
        record.phase = Phase::Opening;
        (record.fork, record.xid_bound) = (Some(promoted.fork), Some(promoted.xid_bound));
        record.record_lsn = Some(promoted.record_lsn);
        self.put_term(&record, revision).await;
        let endpoint = Endpoint { host: "127.0.0.1".into(), port: self.nodes[to].config.postgres_port };
        for &i in recruits.iter().filter(|i| **i != to) {
            let order = Follow {
                term,
                primary: self.nodes[to].id.clone(),
                endpoint: endpoint.clone(),
                record_lsn: None,
                ahead: None,
            };
            self.post::<serde_json::Value>(i, "follow", &order).await.unwrap();
            self.until_streaming(i, to, term).await;
        }
        (term, promoted)
    }

    /// Wait until the node has received that, for a while: where the old primary is dead nobody sends it any more.
    async fn until_has(&self, i: usize, position: Option<Position>) {
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let behind = |s: &Standby| position > Some(Position { timeline: s.timeline, lsn: s.receive_lsn });
            match &self.state(i).await.postgres {
                PostgresState::Standby(s) if behind(s) => {}
                // Not looked at in time, on a busy machine.
                PostgresState::Hung { .. } | PostgresState::Starting => {}
                PostgresState::Standby(_)
                | PostgresState::Primary(_)
                | PostgresState::Stopped { .. }
                | PostgresState::Absent => return,
            }
            pause(begun).await;
        }
    }

    pub(crate) async fn sql(&self, i: usize) -> tokio_postgres::Client {
        self.sql_in(i, "postgres").await
    }

    pub(crate) async fn sql_in(&self, i: usize, database: &str) -> tokio_postgres::Client {
        let config = &self.nodes[i].config;
        let mut to = tokio_postgres::Config::new();
        to.host_path(config.data_dir.join("sock")).port(config.postgres_port).user("postgres").dbname(database);
        // Whatever a test has set for everybody, it can be looked at.
        to.options(
            "-c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off -c statement_timeout=0",
        );
        let (client, connection) = to.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Wait until these nodes have replayed what the primary has now: a commit needs only one of them.
    pub(crate) async fn until_replayed(&self, primary: usize, standbys: &[usize]) {
        let written = self.value(primary, "SELECT pg_current_wal_flush_lsn()").await;
        for &i in standbys {
            until("replay", async || {
                let query = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
                (self.value(i, &query).await == "t").then_some(())
            })
            .await;
        }
    }

    pub(crate) async fn value(&self, i: usize, query: &str) -> String {
        let sql = self.sql(i).await;
        for message in sql.simple_query(query).await.unwrap() {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                return row.get(0).unwrap_or("null").to_owned();
            }
        }
        panic!("no row from {query}")
    }
}

/// Wait for a condition.
pub(crate) async fn until<T>(what: &str, mut test: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(found) = test().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "waited for {what}");
        pause(begun).await;
    }
}

/// Between two looks at what is waited for since `begun`. To look takes longer than to wait: what took long so far may
/// be seen a little late.
async fn pause(begun: tokio::time::Instant) {
    let a_tenth = begun.elapsed() / 10;
    tokio::time::sleep(a_tenth.clamp(Duration::from_millis(10), Duration::from_millis(50))).await;
}
