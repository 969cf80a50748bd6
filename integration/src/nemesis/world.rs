//! The processes on the hosts: on each of three database hosts an agent with its PostgreSQL, a manager and a member of
//! etcd, on each of two others a proxy with lagmon.

use super::disk::Disk;
use super::sandbox::{Sandbox, address, hosts};
use crate::client::{Client, Target};
use crate::cluster::{Active, PASSWORD, Verb, program, write_secrets};
use crate::config_file::{APP, NODES, NodePorts, Options, agent, common, proxy};
use crate::etcd::restorer;
use crate::http;
use crate::postgres::{bin_dir, describe, postmaster};
use crate::process::{Process, signal_all, state_of, tree, unprivileged};
use crate::scratch::Scratch;
use crate::segment::remove_segment;
use crate::wait::wait_for;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Hosts of the proxies.
pub const PROXIES: [&str; 2] = ["p1", "p2"];
/// A library that lets one host's clock jump, by Debian's package faketime.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// Between two questions of one kind to the managers.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(200);

/// What a world is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Needs {
    /// `async` instead of `strict`.
    pub asynchronous: bool,
    /// `available` instead of `strict`.
    pub available: bool,
    /// A file system of its own for each database host.
    pub disks: bool,
    /// One for each member of etcd.
    pub etcd_disks: bool,
    /// A wall clock of its own for each database host.
    pub clocks: bool,
    /// One automatic failover in ten minutes, and 64 KiB that it may lose.
    pub tight: bool,
    /// etcd waits for a real disk, its host's where hosts have their own. Otherwise its files are in memory, where they
    /// survive its death as well: what else uses this machine's disk would end its leases.
    pub etcd_on_disk: bool,
}

impl Needs {
    /// Why it cannot be had here, if so.
    pub fn impossible(self) -> Option<String> {
        let clocks = || {
            let missing = self.clocks && !Path::new(FAKETIME).exists();
            missing.then(|| "libfaketime is not installed".to_owned())
        };
        (self.disks || self.etcd_disks).then(super::disk::impossible).flatten().or_else(clocks)
    }
}

/// A running cluster on hosts of its own.
#[derive(Debug)]
pub struct World {
    /// The hosts.
    pub sandbox: Sandbox,
    processes: BTreeMap<(String, String), Process>,
    disks: BTreeMap<&'static str, Disk>,
    etcd_disks: BTreeMap<&'static str, Disk>,
    needs: Needs,
    /// Last but the guard's: the files.
    scratch: Scratch,
}

impl World {
    /// Make it and wait until it accepts writes.
    ///
    /// # Panics
    /// When any part of it does not come up.
    pub fn start(needs: Needs) -> Self {
        let scratch = Scratch::new();
        scratch.dir("log");
        let sandbox = Sandbox::new();
        let mut disks = BTreeMap::new();
        for node in NODES {
            let dir = scratch.dir(node);
            if needs.disks {
                disks.insert(node, Disk::mount(&scratch.path().join(format!("{node}.image")), &dir));
            }
        }
        let etcd = scratch.dir("etcd");
        if !needs.etcd_on_disk {
            super::sandbox::shell(&format!("mount -t tmpfs -o size=1g none {}", etcd.display()));
            crate::process::give_to_postgres(&etcd);
        }
        let mut etcd_disks = BTreeMap::new();
        for node in NODES.into_iter().filter(|_| needs.etcd_disks) {
            let (image, dir) = (format!("{node}.etcd.image"), scratch.dir(&format!("etcd/{node}")));
            etcd_disks.insert(node, Disk::mount(&scratch.path().join(image), &dir));
        }
        write_secrets(&scratch);
        let mut world = Self { sandbox, processes: BTreeMap::new(), disks, etcd_disks, needs, scratch };
        for node in NODES {
            world.set_clock(node, "+0");
        }
        world.write_files();
        world.start_missing();
        // Where other things run as well, all of that may take a while.
        world.healthy(Duration::from_secs(240));
        world
    }

    fn write_files(&self) {
        let mode = match self.needs {
            Needs { asynchronous: true, .. } => "async",
            Needs { available: true, .. } => "available",
            Needs { .. } => "strict",
        };
        // A loss is wanted where it is allowed, and every failover there is to be.
        let manager = match self.needs.tight {
            false => "failover_budget = 1000\nmax_loss = \"1GiB\"\n",
            true => "failover_budget = 1\nmax_loss = \"64KiB\"\n",
        };
        let options = Options { mode, manager, ..Options::default() };
        let (dir, etcd) = (self.scratch.path(), NODES.map(|n| format!("{}:2379", address(n))));
        let file = |host: &str, kind: &str, roles: &str, port: u16, rest: String| {
            let head = common(dir, &options, &etcd, roles, SocketAddr::from((address(host), port)));
            self.scratch.file(&format!("{host}-{kind}.toml"), &(head + &rest));
        };
        for node in NODES {
            let at = |port| SocketAddr::from((address(node), port));
            let ports =
                NodePorts { advertise: address(node).into(), agent: at(7401), postgres: at(5432), admin: at(7400) };
            file(node, "agent", "\"agent\"", 7400, agent(dir, node, &ports, &options));
            file(node, "manager", "\"manager\"", 7410, format!("\n[manager]\n{manager}"));
        }
        for host in PROXIES {
            let listen = SocketAddr::from((address(host), 6432));
            file(host, "proxy", "\"proxy\", \"lagmon\"", 7400, proxy(dir, listen, &options));
        }
    }

    /// The directory with everything.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// What it was made of.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// A database host's disk.
    ///
    /// # Panics
    /// When the world was made without.
    pub fn disk(&self, node: &str) -> &Disk {
        self.disks.get(node).expect("the scenario needs disks")
    }

    /// The disk of a host's member of etcd.
    ///
    /// # Panics
    /// When the world was made without.
    pub fn etcd_disk(&self, node: &str) -> &Disk {
        self.etcd_disks.get(node).expect("the scenario needs etcd-disks")
    }

    /// Let a host's wall clock go wrong by so much, as in `-1h`; `+0` is right.
    pub fn set_clock(&self, node: &str, offset: &str) {
        if self.needs.clocks {
            self.scratch.file(&format!("{node}.clock"), &format!("{offset}\n"));
        }
    }

    /// What runs on a host when all is well.
    pub fn kinds(host: &str) -> &'static [&'static str] {
        if NODES.contains(&host) { &["etcd", "manager", "agent"] } else { &["proxy"] }
    }

    /// Start whatever was never started or has ended.
    pub fn start_missing(&mut self) {
        for host in hosts() {
            for kind in Self::kinds(host) {
                self.start_process(host, kind);
            }
        }
    }

    /// Start a process unless it runs.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_process(&mut self, host: &str, kind: &str) {
        let key = (host.to_owned(), kind.to_owned());
        if self.processes.get_mut(&key).is_some_and(|p| p.ended().is_none()) {
            return;
        }
        let command = if kind == "etcd" { self.etcd(host) } else { self.program(host, kind) };
        let name = format!("{host}-{kind}");
        let process = Process::spawn(&name, command, self.scratch.path(), &self.log_file(host, kind));
        self.processes.insert(key, process.expect("nsenter is part of util-linux"));
    }

    fn program(&self, host: &str, kind: &str) -> Command {
        let mut command = self.sandbox.command(host, program(), true);
        command.arg("run").arg("--config").arg(self.scratch.path().join(format!("{host}-{kind}.toml")));
        let clock = self.scratch.path().join(format!("{host}.clock"));
        if self.needs.clocks && clock.exists() {
            command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.env("FAKETIME_CACHE_DURATION", "1").env("DONT_FAKE_MONOTONIC", "1");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
        }
        command
    }

    fn etcd(&self, host: &str) -> Command {
        let on_its_disk = self.needs.disks && self.needs.etcd_on_disk;
        let dir = if on_its_disk { format!("{host}/etcd") } else { format!("etcd/{host}") };
        let (dir, ip) = (self.scratch.dir(&dir), address(host));
        let mut command = self.sandbox.command(host, Path::new("/usr/bin/env"), false);
        command.args(["-u", "ETCD_NAME", "etcd", "--name", host, "--data-dir"]).arg(dir.join("data"));
        // Else a member that comes back behind a partition ends the leader's term: seconds without a leader, once more.
        command.args(["--heartbeat-interval", "100", "--election-timeout", "1000", "--pre-vote"]);
        for (option, port) in [("client-urls", 2379), ("peer-urls", 2380)] {
            command.arg(format!("--listen-{option}")).arg(format!("http://{ip}:{port}"));
        }
        command.arg("--advertise-client-urls").arg(format!("http://{ip}:2379"));
        command.arg("--initial-advertise-peer-urls").arg(format!("http://{ip}:2380"));
        command.arg("--initial-cluster").arg(members());
        command
    }

    /// Let etcd be led from there.
    ///
    /// # Errors
    /// What etcdctl complained about, or that nobody leads.
    pub fn move_etcd_leader(&self, to: &str) -> Result<(), String> {
        let leader = self.etcd_leader().ok_or("etcd has no leader")?;
        if leader == to {
            return Ok(());
        }
        let endpoint = |host: &str| format!("http://{}:2379", address(host));
        let told = self.etcdctl(to, &["--endpoints", &endpoint(to), "endpoint", "status"])?;
        let id = told.split(", ").nth(1).ok_or_else(|| format!("no member in {told:?}"))?;
        self.etcdctl(to, &["--endpoints", &endpoint(leader), "move-leader", id]).map(drop)
    }

    fn etcdctl(&self, host: &str, arguments: &[&str]) -> Result<String, String> {
        self.etcd_tool("etcdctl", host, arguments)
    }

    fn etcd_tool(&self, program: &str, host: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.sandbox.command(host, Path::new("/usr/bin/env"), false);
        command.args(["ETCDCTL_API=3", "timeout", "10", program]).args(arguments).current_dir("/").stdin(Stdio::null());
        let output = command.output().map_err(|e| format!("{program}: {e}"))?;
        let told = || format!("{program} {arguments:?}: {}", describe(&output));
        if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(told()) }
    }

    fn etcd_backup(&self) -> String {
        self.scratch.dir("etcd").join("backup.db").display().to_string()
    }

    /// Back etcd up, by the first member that can.
    ///
    /// # Errors
    /// What etcdctl complained about, asked for the last one.
    pub fn back_up_etcd(&self) -> Result<(), String> {
        let file = self.etcd_backup();
        let mut told = Err(String::new());
        for host in NODES {
            let endpoint = format!("http://{}:2379", address(host));
            told = told.or_else(|_| self.etcdctl(host, &["--endpoints", &endpoint, "snapshot", "save", &file]));
        }
        told.map(drop)
    }

    /// All members lose what they hold and begin with the backup, as an operator does who has lost etcd.
    ///
    /// # Errors
    /// What etcd's program complained about.
    pub fn restore_etcd(&mut self) -> Result<(), String> {
        let (file, members) = (self.etcd_backup(), members());
        for host in NODES {
            self.processes.remove(&(host.to_owned(), "etcd".to_owned()));
        }
        for host in NODES {
            let on_its_disk = self.needs.disks && self.needs.etcd_on_disk;
            let data = self.scratch.dir(&if on_its_disk { format!("{host}/etcd") } else { format!("etcd/{host}") });
            let data = data.join("data");
            std::fs::remove_dir_all(&data).map_err(|e| format!("{}: {e}", data.display()))?;
            let (data, peer) = (data.display().to_string(), format!("http://{}:2380", address(host)));
            let as_member = ["--name", host, "--initial-cluster", &members, "--initial-advertise-peer-urls", &peer];
            let before = ["snapshot", "restore", &file, "--data-dir", &data];
            self.etcd_tool(restorer(), host, &[&before[..], &as_member].concat())?;
        }
        NODES.into_iter().for_each(|host| self.start_process(host, "etcd"));
        Ok(())
    }

    /// The log of a process.
    pub fn log_file(&self, host: &str, kind: &str) -> PathBuf {
        self.scratch.path().join(format!("log/{host}-{kind}.log"))
    }

    /// The pid of a process, if it runs.
    pub fn pid(&mut self, host: &str, kind: &str) -> Option<Pid> {
        let process = self.processes.get_mut(&(host.to_owned(), kind.to_owned()))?;
        process.ended().is_none().then(|| process.pid())
    }

    /// `kill -9` of a process of ours or of etcd.
    pub fn kill(&mut self, host: &str, kind: &str) {
        if let Some(process) = self.processes.get_mut(&(host.to_owned(), kind.to_owned())) {
            process.signal(Signal::SIGKILL);
        }
    }

    /// A node's postmaster, if one runs.
    pub fn postmaster(&self, node: &str) -> Option<Pid> {
        postmaster(&self.scratch.path().join(node).join("data"))
    }

    /// Pids by the name that scenarios give: `agent`, `manager`, `etcd`, `proxy`, `postmaster`, `postgres` (all of it),
    /// `host` (everything on the host), or what PostgreSQL calls a process, as in `walsender` and `checkpointer`.
    pub fn pids(&mut self, host: &str, what: &str) -> Vec<Pid> {
        match what {
            "host" => self.sandbox.processes(host),
            "agent" | "manager" | "etcd" | "proxy" => self.pid(host, what).into_iter().collect(),
            "postmaster" => self.postmaster(host).into_iter().collect(),
            "postgres" => self.postmaster(host).map(tree).unwrap_or_default(),
            title => {
                let all = self.postmaster(host).map(tree).unwrap_or_default();
                // An idle or active backend shows its user and its client's address.
                let wanted = if title == "backend" { APP } else { title };
                let called = |pid: &Pid| {
                    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    String::from_utf8_lossy(&line).contains(wanted)
                };
                all.into_iter().filter(called).collect()
            }
        }
    }

    /// SIGSTOP until all of it stands still: a process may fork while the list is made.
    pub fn stop(&mut self, host: &str, what: &str) {
        for _ in 0..20 {
            let all = self.pids(host, what);
            let runs = |p: &Pid| !matches!(state_of(*p), Some('T' | 't' | 'Z' | 'X') | None);
            let running: Vec<Pid> = all.into_iter().filter(runs).collect();
            if running.is_empty() {
                return;
            }
            signal_all(&running, Signal::SIGSTOP);
        }
    }

    /// SIGCONT to everything on every host.
    pub fn go_on(&self) {
        for host in hosts() {
            signal_all(&self.sandbox.processes(host), Signal::SIGCONT);
        }
    }

    /// Undo every fault: the network, the disks, the clocks, stopped and dead processes, paused replay.
    pub fn heal(&mut self) {
        self.sandbox.heal();
        for disk in self.disks.values().chain(self.etcd_disks.values()) {
            disk.thaw();
            disk.free();
        }
        for node in NODES {
            self.set_clock(node, "+0");
        }
        self.go_on();
        self.start_missing();
        for node in NODES {
            // It may be down, or be the primary; then there is nothing to resume.
            let _ = self.superuser(node, "select pg_wal_replay_resume() where pg_is_in_recovery()");
        }
    }

    /// The endpoint of a proxy, as the application logs in.
    pub fn target(&self, proxy: &str) -> Target {
        Target {
            addr: (address(proxy), 6432).into(),
            user: APP.to_owned(),
            password: PASSWORD.to_owned(),
            database: APP.to_owned(),
            // Longer than a proxy holds a statement.
            patience: Duration::from_secs(35),
        }
    }

    /// A node's PostgreSQL itself, past the proxies.
    pub fn node_target(&self, node: &str) -> Target {
        Target { addr: (address(node), 5432).into(), ..self.target("p1") }
    }

    /// What the leading manager says; of two that think they lead, the one with the newer term.
    ///
    /// # Errors
    /// What each of them answered instead.
    pub fn status(&self) -> Result<Value, String> {
        let ask = |node: &&str| {
            let at = (address(node), 7410).into();
            http::get_json(at, "/status", Duration::from_secs(1)).map_err(|e| format!("{node}: {e:#}"))
        };
        let answers: Vec<Result<Value, String>> = NODES.iter().map(ask).collect();
        let leading = answers.iter().flatten().filter(|s| s["leading"] == true);
        let newest = leading.max_by_key(|s| s["term"].as_u64().unwrap_or(0)).cloned();
        newest.ok_or_else(|| format!("no manager leads: {answers:?}").chars().take(600).collect())
    }

    /// The host of the leading manager.
    pub fn leader(&self) -> Option<&'static str> {
        let admin = self.status().ok()?["leader"]["admin"].as_str()?.to_owned();
        NODES.into_iter().find(|n| admin.contains(&address(n).to_string()))
    }

    /// The host of etcd's leader, by its own word.
    pub fn etcd_leader(&self) -> Option<&'static str> {
        NODES.into_iter().find(|node| {
            let metrics = http::get((address(node), 2379).into(), "/metrics", Duration::from_secs(1));
            metrics.is_ok_and(|(_, text)| text.contains("\netcd_server_is_leader 1"))
        })
    }

    /// The open term now, if there is one.
    ///
    /// # Errors
    /// What the status is instead.
    pub fn active(&self) -> Result<Active, String> {
        let s = self.status()?;
        match (s["phase"].as_str(), s["primary"].as_str(), s["term"].as_u64()) {
            (Some("active"), Some(primary), Some(term)) => Ok(Active { term, primary: primary.to_owned() }),
            _ => Err(format!("term {}, phase {}, verdict {}", s["term"], s["phase"], s["verdict_text"])),
        }
    }

    /// Wait until the cluster accepts writes through both proxies; then until every node streams. How long each took.
    ///
    /// # Panics
    /// When all that takes longer than `within`.
    pub fn healthy(&self, within: Duration) -> (Duration, Duration) {
        let start = Instant::now();
        let left = || within.saturating_sub(start.elapsed());
        for proxy in PROXIES {
            wait_for(&format!("{proxy} to accept a write"), left(), || seldom(self.writes(proxy)));
        }
        let writes = start.elapsed();
        wait_for("every node to stream from the primary", left(), || seldom(self.all_stream()));
        (writes, start.elapsed())
    }

    /// Does a proxy accept a write?
    ///
    /// # Errors
    /// What it said instead, and what the managers say.
    pub fn writes(&self, proxy: &str) -> Result<(), String> {
        let mut target = self.target(proxy);
        target.patience = Duration::from_secs(9);
        let told = Client::connect(&target).and_then(|mut client| {
            let sql = "begin; create temp table probe(); drop table probe; select pg_current_xact_id(); commit";
            client.query(sql)
        });
        told.map(|_| ()).map_err(|e| format!("{e}; {:?}", self.active()))
    }

    fn all_stream(&self) -> Result<(), String> {
        let (away, states) = self.streaming()?;
        if away.is_empty() { Ok(()) } else { Err(states) }
    }

    /// The standbys that do not stream from the primary of the open term, or do not count there.
    ///
    /// # Errors
    /// What the status is instead.
    pub fn away(&self) -> Result<Vec<&'static str>, String> {
        Ok(self.streaming()?.0)
    }

    /// Who is away, and everybody's state in words.
    fn streaming(&self) -> Result<(Vec<&'static str>, String), String> {
        let s = self.status()?;
        let primary = match s["primary"].as_str() {
            Some(primary) if s["phase"] == "active" => primary.to_owned(),
            _ => return Err(format!("term {}, phase {}, verdict {}", s["term"], s["phase"], s["verdict_text"])),
        };
        let streams = |name: &&str| {
            let found = s["nodes"].as_array().and_then(|all| all.iter().find(|n| n["node"] == *name)).cloned();
            found.is_some_and(|n| n["streams_from"] == primary && n["quarantine"].is_null() && n["rejoin"].is_null())
        };
        let away = NODES.into_iter().filter(|n| *n != primary).filter(|n| !streams(n)).collect();
        let states: Vec<String> = s["nodes"].as_array().into_iter().flatten().map(brief).collect();
        Ok((away, format!("primary {primary}, {}", states.join("; "))))
    }

    /// Run an operator's command from the clients' side.
    ///
    /// # Panics
    /// When our own program cannot be started.
    pub fn verb(&self, arguments: &[&str]) -> Verb {
        let output = self.verb_command(arguments).output().expect("our own program starts");
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Verb { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// An operator's command, bounded.
    pub fn verb_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg("40").arg(program()).args(arguments);
        command.arg("--config").arg(self.scratch.path().join("n1-manager.toml")).stdin(Stdio::null());
        command
    }

    /// Run SQL on a node as PostgreSQL's superuser, over its Unix socket.
    ///
    /// # Errors
    /// What psql complained about.
    pub fn superuser(&self, node: &str, sql: &str) -> Result<String, String> {
        let output: Output = self.psql(node, "postgres", sql).output().map_err(|e| format!("psql: {e}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(format!("{node}: {sql}: {}", describe(&output)))
    }

    /// psql as superuser over a node's Unix socket, told `sql`, bounded.
    pub fn psql(&self, node: &str, database: &str, sql: &str) -> Command {
        let mut command = unprivileged("timeout");
        command.arg("30").arg(bin_dir().join("psql"));
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql]);
        command.arg("-h").arg(self.scratch.path().join(node).join("sock")).args(["-p", "5432"]);
        command.current_dir("/").stdin(Stdio::null());
        command
    }
}

/// Asking is work too, for a machine that is waited for because it is busy.
fn seldom<T>(answer: Result<T, String>) -> Result<T, String> {
    if answer.is_err() {
        std::thread::sleep(ASK_EVERY);
    }
    answer
}

/// etcd's members, as each is told of all.
fn members() -> String {
    NODES.map(|n| format!("{n}=http://{}:2380", address(n))).join(",")
}

/// A node's status in a few words.
fn brief(node: &Value) -> String {
    let word = |key: &str| node[key].to_string();
    let (name, state, from) = (word("node"), word("state"), word("streams_from"));
    format!("{name} {state} from {from}, rejoin {}, quarantine {}", word("rejoin"), word("quarantine"))
}

impl Drop for World {
    fn drop(&mut self) {
        for disk in self.disks.values().chain(self.etcd_disks.values()) {
            disk.thaw();
        }
        for host in hosts() {
            self.sandbox.kill_all(host);
        }
        for node in NODES {
            remove_segment(&self.scratch.path().join(node).join("data"));
        }
        self.disks.clear();
        self.etcd_disks.clear();
        if !self.needs.etcd_on_disk {
            super::sandbox::shell(&format!("umount -l {} || true", self.scratch.path().join("etcd").display()));
        }
    }
}
