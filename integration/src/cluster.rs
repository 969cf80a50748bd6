//! A whole cluster as processes: etcd, three agents with their PostgreSQL, two managers, one proxy with lagmon.

use crate::client::{Client, ClientError, Target};
use crate::config_file::{APP, Layout, MANAGERS, NODES, NodePorts, Options};
use crate::etcd::Etcd;
use crate::fault::{FaultProxy, freeze, thaw};
use crate::history::History;
use crate::http;
use crate::ports::free_port;
use crate::postgres::{bin_dir, describe, postmaster};
use crate::process::{Process, signal_all, tree, unprivileged, working_in};
use crate::scratch::Scratch;
use crate::wait::{wait_for, wait_until};
use crate::workload::rows_found;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// The application's password.
pub(crate) const PASSWORD: &str = "correct horse 'battery' staple";
pub(crate) const MONITOR_PASSWORD: &str = "monitor of tests";
/// Longest time that any change of the cluster is waited for.
pub const LONG: Duration = Duration::from_secs(60);

/// A running cluster. Everything is killed and removed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    roles: BTreeMap<String, Process>,
    etcd: Etcd,
    layout: Layout,
    faults: Vec<FaultProxy>,
    // Last: the guard removes the files when the rest is gone.
    scratch: Scratch,
}

/// The primary of an open term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active {
    /// The term.
    pub term: u64,
    /// Its primary.
    pub primary: String,
}

/// What an operator's command answered.
#[derive(Debug)]
pub struct Verb {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Verb {
    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in the output of {self:?}"))
    }

    /// The same, checked to have ended with that exit code.
    ///
    /// # Panics
    /// When it ended otherwise.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {self:#?}");
        self
    }
}

/// A node whose processes are all stopped by SIGSTOP.
#[derive(Debug)]
pub struct Frozen(Vec<Pid>);

impl Frozen {
    /// SIGCONT to all of them.
    pub fn thaw(self) {
        thaw(&self.0);
    }
}

/// Clusters of one test program run one after the other: two at once would fight for the cores.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The program under test: `PGTENURE_BIN`, or the one beside this test's own directory in target/.
///
/// # Panics
/// When it was not built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let beside = || {
            let exe = std::env::current_exe().expect("a test knows its own path");
            exe.ancestors().nth(2).expect("target/PROFILE/deps/test").join("pgtenure")
        };
        let path = std::env::var_os("PGTENURE_BIN").map_or_else(beside, PathBuf::from);
        assert!(path.exists(), "{} is missing: cargo build first (make test does)", path.display());
        path
    })
}

impl Cluster {
    /// Start one with defaults and wait until it accepts writes and both standbys stream.
    pub fn healthy() -> Self {
        Self::start(&Options::default())
    }

    /// Start one and wait until it accepts writes and both standbys stream.
    ///
    /// # Panics
    /// When any part does not come up.
    pub fn start(options: &Options) -> Self {
        let mut cluster = Self::unstarted(options);
        let proxies: &[&str] = if options.second_proxy { &["proxy", "proxy2"] } else { &["proxy"] };
        for name in NODES.iter().chain(&MANAGERS).chain(proxies) {
            cluster.start_role(name);
        }
        cluster.every_process_lives();
        cluster.active();
        cluster.all_stream();
        cluster.endpoint_writes();
        cluster
    }

    /// The files of one, and etcd, before any of its processes is started.
    ///
    /// # Panics
    /// When etcd does not come up.
    pub fn unstarted(options: &Options) -> Self {
        let scratch = Scratch::new();
        scratch.dir("log");
        let etcd = Etcd::start(&scratch);
        let layout = layout(options, etcd.endpoint());
        write_secrets(&scratch);
        for (name, text) in layout.files(scratch.path(), options) {
            scratch.file(&format!("{name}.toml"), &text);
        }
        let faults = if options.fault_proxies { fault_proxies(&layout) } else { Vec::new() };
        Self { roles: BTreeMap::new(), etcd, layout, faults, scratch }
    }

    /// Wait until every process answers on its admin port; one that ended instead is a failure at once.
    fn every_process_lives(&mut self) {
        let nodes = NODES.iter().zip(self.layout.nodes.iter().map(|n| n.admin));
        let managers = MANAGERS.iter().zip(self.layout.managers.iter().copied());
        let proxies = [(&"proxy", self.layout.proxy_admin)];
        let second = self.layout.second_proxy.map(|(_, admin)| (&"proxy2", admin));
        let all: Vec<_> = nodes.chain(managers).chain(proxies).chain(second).collect();
        for (name, admin) in all {
            let role = self.role(name);
            wait_for(&format!("{name} to answer on its admin port"), LONG, || {
                if let Some(status) = role.ended() {
                    panic!("{name} ended with {status}: {}", role.log());
                }
                http::get(admin, "/livez", Duration::from_secs(2)).map_err(|e| format!("{e:#}"))
            });
        }
    }

    /// The directory with everything.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Where everything listens.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The etcd.
    pub fn etcd(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// Start a process that is not running: a node's agent, a manager, or `proxy`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_role(&mut self, name: &str) {
        let mut command = Command::new(program());
        command.arg("run").arg("--config").arg(self.config(name));
        let log = self.scratch.path().join(format!("log/{name}.log"));
        let process = Process::spawn(name, command, self.scratch.path(), &log).expect("our own program starts");
        self.roles.insert(name.to_owned(), process);
    }

    /// A process by name.
    ///
    /// # Panics
    /// When there is none.
    pub fn role(&mut self, name: &str) -> &mut Process {
        self.roles.get_mut(name).unwrap_or_else(|| panic!("{name} was never started"))
    }

    /// `kill -9` of a process of ours. An agent's PostgreSQL goes on.
    pub fn kill_role(&mut self, name: &str) {
        self.role(name).kill();
    }

    /// SIGTERM, and wait for the end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop_role(&mut self, name: &str) {
        let role = self.role(name);
        role.signal(Signal::SIGTERM);
        role.wait(Duration::from_secs(70)).expect("a process told to stop stops");
    }

    /// The configuration file of a process.
    pub fn config(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.toml"))
    }

    /// A node's data directory.
    pub fn data_dir(&self, node: &str) -> PathBuf {
        self.scratch.path().join(node).join("data")
    }

    /// The endpoint, as the application logs in.
    pub fn target(&self) -> Target {
        Target {
            addr: self.layout.proxy,
            user: APP.to_owned(),
            password: PASSWORD.to_owned(),
            database: APP.to_owned(),
            patience: Duration::from_secs(50),
        }
    }

    /// The second proxy's endpoint.
    ///
    /// # Panics
    /// When the cluster was started without one.
    pub fn second_target(&self) -> Target {
        let (addr, _) = self.layout.second_proxy.expect("Options::second_proxy was set");
        Target { addr, ..self.target() }
    }

    /// A node's PostgreSQL itself, past the proxy.
    pub fn node_target(&self, node: &str) -> Target {
        Target { addr: self.ports(node).postgres, ..self.target() }
    }

    /// A node's ports.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn ports(&self, node: &str) -> &NodePorts {
        &self.layout.nodes[index(node)]
    }

    /// The fault proxy in front of a node.
    ///
    /// # Panics
    /// When the cluster was started without them.
    pub fn fault_proxy(&self, node: &str) -> &FaultProxy {
        self.faults.get(index(node)).expect("Options::fault_proxies was set")
    }

    /// A connection through the endpoint.
    ///
    /// # Panics
    /// When the login fails.
    pub fn connect(&self) -> Client {
        Client::connect(&self.target()).expect("the endpoint accepts the application")
    }

    /// The leading manager's status.
    ///
    /// # Errors
    /// What each manager answered instead.
    pub fn status(&self) -> Result<Value, String> {
        let mut instead = Vec::new();
        for admin in &self.layout.managers {
            match http::get_json(*admin, "/status", Duration::from_secs(2)) {
                Ok(status) if status["leading"] == true => return Ok(status),
                Ok(other) => instead.push(other.to_string()),
                Err(e) => instead.push(format!("{e:#}")),
            }
        }
        Err(instead.join("; "))
    }

    /// The name of the leading manager, told by its admin address in the status.
    ///
    /// # Panics
    /// When none leads.
    pub fn leader(&self) -> String {
        wait_for("a leading manager", LONG, || {
            let status = self.status()?;
            let named = status["leader"].to_string();
            let ours = MANAGERS.iter().zip(&self.layout.managers).find(|(_, admin)| named.contains(&admin.to_string()));
            ours.map(|(name, _)| (*name).to_owned()).ok_or(named)
        })
    }

    /// Wait for an open term.
    pub fn active(&self) -> Active {
        self.active_after(0)
    }

    /// Wait for an open term later than `term`.
    ///
    /// # Panics
    /// When none opens.
    pub fn active_after(&self, term: u64) -> Active {
        wait_for(&format!("an open term after {term}"), LONG, || {
            let s = self.status()?;
            let now = s["term"].as_u64().unwrap_or(0);
            match (s["phase"].as_str(), s["primary"].as_str()) {
                (Some("active"), Some(primary)) if now > term => Ok(Active { term: now, primary: primary.to_owned() }),
                _ => Err(s.to_string()),
            }
        })
    }

    /// Wait until `node` streams from the present primary, by the manager's status.
    ///
    /// # Panics
    /// When it does not.
    pub fn streams(&self, node: &str) {
        self.streams_within(node, LONG);
    }

    fn streams_within(&self, node: &str, limit: Duration) {
        wait_for(&format!("{node} to stream from the primary"), limit, || {
            let s = self.status()?;
            let primary = s["primary"].as_str().unwrap_or("nobody");
            let nodes = s["nodes"].as_array().cloned().unwrap_or_default();
            let found = nodes.iter().find(|n| n["node"] == node).cloned().unwrap_or_default();
            if found["streams_from"] == primary { Ok(()) } else { Err(format!("primary {primary}, {found}")) }
        });
    }

    /// The word by which the leading manager describes a node: `streaming`, `unreachable`, …
    ///
    /// # Errors
    /// When no manager leads.
    pub fn node_state(&self, node: &str) -> Result<String, String> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.iter().find(|n| n["node"] == node);
        Ok(found.map_or_else(|| "absent from the status".to_owned(), |n| n["state"].as_str().unwrap_or("").to_owned()))
    }

    /// Wait until every node but the primary streams from it.
    pub fn all_stream(&self) {
        self.all_stream_within(LONG);
    }

    /// The same, for as long as a busy machine needs to copy a node anew.
    ///
    /// # Panics
    /// When one does not.
    pub fn all_stream_within(&self, limit: Duration) {
        let primary = self.active().primary;
        for node in NODES.iter().filter(|n| **n != primary) {
            self.streams_within(node, limit);
        }
    }

    /// The standbys now, by the status.
    pub fn standbys(&self) -> Vec<&'static str> {
        let primary = self.active().primary;
        NODES.into_iter().filter(|n| *n != primary).collect()
    }

    /// Wait until a statement through the endpoint may write.
    ///
    /// # Panics
    /// When none may.
    pub fn endpoint_writes(&self) {
        wait_for("the endpoint to accept writes", LONG, || {
            let mut client = Client::connect(&self.target()).map_err(|e| e.to_string())?;
            client.query("begin; create temp table probe(); commit").map_err(|e| e.to_string())
        });
    }

    /// Run an operator's command with this cluster's configuration.
    ///
    /// # Panics
    /// When our program cannot be started or takes for ever.
    pub fn verb(&self, arguments: &[&str]) -> Verb {
        let mut command = Command::new("timeout");
        command.arg("120").arg(program()).args(arguments).arg("--config").arg(self.config("m1"));
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("our own program starts");
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Verb { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Run SQL as PostgreSQL's superuser, over the node's Unix socket, as only its own user may. What psql printed,
    /// rows only.
    ///
    /// # Errors
    /// What psql complained about.
    pub fn superuser(&self, node: &str, sql: &str) -> Result<String, String> {
        let mut command = unprivileged(bin_dir().join("psql"));
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-c", sql]);
        command.arg("-h").arg(self.scratch.path().join(node).join("sock"));
        command.arg("-p").arg(self.ports(node).postgres.port().to_string()).current_dir("/");
        let output = command.stdin(Stdio::null()).output().map_err(|e| format!("psql: {e}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(format!("{node}: {sql}: {}", describe(&output)))
    }

    /// The pids of a node's PostgreSQL processes whose title contains `title`, as in `startup` and `walreceiver`.
    pub fn postgres_processes(&self, node: &str, title: &str) -> Vec<Pid> {
        let all = self.postmaster(node).map(tree).unwrap_or_default();
        let called = |pid: &Pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(title)
        };
        all.into_iter().filter(called).collect()
    }

    /// The pid of a node's postmaster, if one runs.
    pub fn postmaster(&self, node: &str) -> Option<Pid> {
        postmaster(&self.data_dir(node))
    }

    /// `kill -9` of a node's postmaster alone.
    ///
    /// # Panics
    /// When none runs.
    pub fn kill_postmaster(&self, node: &str) {
        let pid = self.postmaster(node).unwrap_or_else(|| panic!("no PostgreSQL runs on {node}"));
        signal_all(&[pid], Signal::SIGKILL);
    }

    /// `kill -9` of every PostgreSQL process of a node.
    pub fn kill_postgres(&self, node: &str) {
        wait_until(&format!("every PostgreSQL process of {node} to be gone"), Duration::from_secs(60), || {
            let mut all = working_in(&self.data_dir(node));
            if let Some(postmaster) = self.postmaster(node) {
                all.extend(tree(postmaster));
            }
            signal_all(&all, Signal::SIGKILL);
            all.is_empty()
        });
    }

    /// SIGSTOP to a node's agent and all its PostgreSQL processes, as one.
    ///
    /// # Panics
    /// When one of them does not run.
    pub fn freeze_node(&mut self, node: &str) -> Frozen {
        let agent = self.role(node).pid();
        let postmaster = self.postmaster(node).unwrap_or_else(|| panic!("no PostgreSQL runs on {node}"));
        Frozen(freeze(&[agent, postmaster]))
    }

    /// Start a node that is none of the voters; it copies the primary.
    pub fn join(&mut self, name: &str) {
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let advertise = [127, 0, 0, 1].into();
        let ports = NodePorts { advertise, agent: local(), postgres: local(), admin: local() };
        let text = self.layout.joining(self.scratch.path(), &Options::default(), name, &ports);
        self.scratch.file(&format!("{name}.toml"), &text);
        self.start_role(name);
    }

    /// `kill -9` of everything: agents, PostgreSQL, managers, proxy.
    pub fn kill_all(&mut self) {
        for role in self.roles.values_mut() {
            role.kill();
        }
        for node in NODES {
            self.kill_postgres(node);
        }
    }

    /// Compare a history with the rows there are, read through the endpoint from the primary.
    ///
    /// # Panics
    /// When a promise was broken, listing the first rows concerned.
    pub fn verify(&self, history: &History, first_block: i64) {
        let found = rows_found(&mut self.connect(), first_block).expect("the rows can be read");
        let wrong = history.contradictions(&found);
        let some: Vec<&String> = wrong.iter().take(10).collect();
        assert!(wrong.is_empty(), "{} broken promises: {some:#?}", wrong.len());
    }

    /// The timeline that a node's PostgreSQL writes or streams, asked of itself. `None` while a standby streams
    /// nothing.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn timeline(&self, node: &str) -> Result<Option<u64>, ClientError> {
        let sql = "select case when pg_is_in_recovery() then (select received_tli from pg_stat_wal_receiver)
                   else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end";
        let answer = Client::connect(&self.monitor_target(node))?.query(sql)?;
        Ok(answer.rows.first().and_then(|r| r[0].as_deref()?.parse().ok()))
    }

    /// A node's PostgreSQL itself, as the user that may read statistics.
    pub fn monitor_target(&self, node: &str) -> Target {
        let own = |s: &str| s.to_owned();
        let (user, password, database) = (own("pgtenure_monitor"), own(MONITOR_PASSWORD), own("postgres"));
        Target { user, password, database, ..self.node_target(node) }
    }

    /// Wait until every node's timeline is the term: the primary writes it, the standbys stream it.
    ///
    /// # Panics
    /// When one's is not.
    pub fn timelines_are(&self, term: u64) {
        for node in NODES {
            wait_for(&format!("{node} to be on timeline {term}"), LONG, || match self.timeline(node) {
                Ok(Some(timeline)) if timeline == term => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
    }
}

fn index(node: &str) -> usize {
    NODES.iter().position(|n| *n == node).unwrap_or_else(|| panic!("there is no node {node}"))
}

fn layout(options: &Options, etcd: String) -> Layout {
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let node = |i: u8| {
        let advertise: [u8; 4] = if options.fault_proxies { [127, 0, 0, 11 + i] } else { [127, 0, 0, 1] };
        NodePorts {
            advertise: advertise.into(),
            agent: (advertise, free_port()).into(),
            postgres: local(free_port()),
            admin: local(free_port()),
        }
    };
    Layout {
        etcd,
        nodes: (0..3).map(node).collect(),
        managers: MANAGERS.iter().map(|_| local(free_port())).collect(),
        proxy: local(free_port()),
        proxy_admin: local(free_port()),
        second_proxy: options.second_proxy.then(|| (local(free_port()), local(free_port()))),
    }
}

/// Each node is advertised under an address of its own, where the same port leads through the proxy.
fn fault_proxies(layout: &Layout) -> Vec<FaultProxy> {
    let proxy = |n: &NodePorts| {
        let at = SocketAddr::new(n.advertise, n.postgres.port());
        FaultProxy::start(at, n.postgres).unwrap_or_else(|e| panic!("{at}: {e}"))
    };
    layout.nodes.iter().map(proxy).collect()
}

/// The files with secrets that every configuration names.
pub(crate) fn write_secrets(scratch: &Scratch) {
    scratch.file("shared.secret", "a secret that only these tests know\n");
    scratch.file("replication.password", "replication of tests\n");
    scratch.file("monitor.password", MONITOR_PASSWORD);
    scratch.file("userlist.txt", &userlist_entry(APP, PASSWORD));
}

/// A userlist line made by the program itself.
fn userlist_entry(user: &str, password: &str) -> String {
    let mut command = Command::new(program());
    command.args(["userlist", "entry", user]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("our own program starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    writeln!(stdin, "{password}").expect("it reads a password");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "userlist entry: {}", output.status);
    String::from_utf8(output.stdout).expect("a line of text")
}
