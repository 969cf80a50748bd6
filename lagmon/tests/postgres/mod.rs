//! A real primary and its standbys for tests, on free loopback ports, stopped when dropped. PostgreSQL refuses to run
//! as root, so root runs it as the user postgres.

#[path = "../../../integration/src/ports.rs"]
mod ports;
#[path = "../../../integration/src/segment.rs"]
mod segment;
#[path = "../../../integration/src/server.rs"]
mod server;
#[path = "../../../integration/src/template.rs"]
mod template;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use ports::free_port;
use server::Server;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a standby to stream.
const PATIENCE: Duration = Duration::from_secs(60);

/// A primary (node 0) and standbys.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    pub(crate) ports: Vec<u16>,
    servers: Vec<Option<Server>>,
}

/// A running pg_recvlogical.
pub(crate) struct Subscriber(Child);

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bin() -> PathBuf {
    if let Some(dir) = std::env::var_os("PGTENURE_TEST_PG_BIN") {
        return dir.into();
    }
    // The newest major installed the Debian way, else whatever is on the path.
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed.filter_map(|d| Some((d.file_name().to_str()?.parse::<u32>().ok()?, d.path()))).max();
    newest.map_or_else(PathBuf::new, |(_, path)| path.join("bin"))
}

fn command(program: &str) -> Command {
    let program = bin().join(program);
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig", "KILL"]).arg(program);
    command.current_dir("/");
    command
}

fn run(mut command: Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Run SQL on the node at `port` and give what it printed. For what waits beside a test, which ends with the servers when
/// the test fails; with the cluster itself it would keep them.
pub(crate) fn sql_at(port: u16, sql: &str) -> String {
    let mut psql = command("psql");
    psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres", "-p"]);
    psql.arg(port.to_string()).args(["-c", sql, "postgres"]);
    let output = psql.output().expect("psql is installed");
    assert!(output.status.success(), "port {port}: {sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Cluster {
    /// Start a primary with the role pgtenure_monitor, and `standbys` standbys that stream from it.
    pub(crate) fn start(standbys: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        if nix::unistd::geteuid().is_root() {
            let postgres = nix::unistd::User::from_name("postgres").expect("a user database").expect("a user postgres");
            chown(dir.path(), Some(postgres.uid.as_raw()), Some(postgres.gid.as_raw())).expect("we are root");
        }
        let mut cluster = Self { dir, ports: vec![free_port()], servers: vec![None] };
        let arguments = ["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"];
        template::data_dir(&cluster.data(0), &bin().join("initdb"), &arguments, || {
            let mut initdb = command("initdb");
            initdb.args(arguments).arg("-D").arg(cluster.data(0));
            run(initdb);
        });
        cluster.spawn(0);
        cluster.sql(0, "CREATE ROLE pgtenure_monitor LOGIN IN ROLE pg_monitor; CREATE TABLE t(v int)");
        for _ in 0..standbys {
            cluster.add(0);
        }
        cluster
    }

    /// Add a standby that streams from node `source`, and give its number.
    pub(crate) fn add(&mut self, source: usize) -> usize {
        let i = self.ports.len();
        self.ports.push(free_port());
        self.servers.push(None);
        let mut backup = command("pg_basebackup");
        let from = format!("host=127.0.0.1 user=postgres application_name=n{} port={}", i + 1, self.ports[source]);
        backup.args(["-d", &from, "-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"]).arg(self.data(i));
        run(backup);
        self.spawn(i);
        // It answers as soon as it is consistent, which is before it streams: who looks only once is to see it stream.
        let begun = Instant::now();
        while self.sql(i, "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") != "1" {
            assert!(begun.elapsed() < PATIENCE, "node {i} does not stream: {}", self.log(i));
            std::thread::sleep(Duration::from_millis(10));
        }
        i
    }

    /// Send a signal to the WAL receiver of node `i`.
    pub(crate) fn signal_receiver(&self, i: usize, signal: Signal) {
        let pid = self.sql(i, "SELECT pid FROM pg_stat_wal_receiver").parse().expect("a WAL receiver");
        nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("it runs and is ours");
    }

    /// Send a signal to the postmaster of node `i` and to lagmon's backend there, `backend`.
    pub(crate) fn signal_postmaster(&self, i: usize, backend: Pid, signal: Signal) {
        let postmaster = self.servers[i].as_ref().expect("it runs").pid();
        for pid in [postmaster, backend] {
            nix::sys::signal::kill(pid, signal).expect("it runs and is ours");
        }
    }

    /// Run pg_recvlogical on `slot` of node 0 until what is given is dropped.
    pub(crate) fn subscriber(&self, slot: &str) -> Subscriber {
        let mut tool = command("pg_recvlogical");
        let port = self.ports[0].to_string();
        tool.args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p", &port, "-S", slot, "--start"]);
        tool.args(["-f", "-"]).stdout(Stdio::null()).stderr(Stdio::null());
        Subscriber(tool.spawn().expect("pg_recvlogical is installed"))
    }

    fn data(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("d{i}"))
    }

    /// Start node `i` and wait until it answers queries.
    pub(crate) fn spawn(&mut self, i: usize) {
        let data = self.data(i);
        let server = Server::start(&data, &self.dir.path().join(format!("{i}.log")), || {
            let mut server = command("postgres");
            server.arg("-D").arg(&data).args(["-p", &self.ports[i].to_string(), "-h", "127.0.0.1", "-k"]).arg(&data);
            for setting in [
                "fsync=off",
                "shared_buffers=16MB",
                "max_connections=20",
                "wal_level=logical",
                "wal_retrieve_retry_interval=100ms",
                "autovacuum=off",
                "dynamic_shared_memory_type=mmap",
            ] {
                server.args(["-c", setting]);
            }
            server
        });
        self.servers[i] = Some(server);
    }

    /// Run SQL on node `i` and give what it printed.
    pub(crate) fn sql(&self, i: usize, sql: &str) -> String {
        sql_at(self.ports[i], sql)
    }

    /// Wait until commits of node 0 go by its `synchronous_standby_names`. Whoever is asked has read that there is a list
    /// before the checkpointer has, which tells all who commit; it does so before it makes a checkpoint.
    pub(crate) fn list_is_in_force(&self) {
        // One of them it may make before, if it was about to look for what is asked for.
        for _ in 0..2 {
            self.sql(0, "CHECKPOINT");
        }
    }

    /// What node `i` has logged.
    pub(crate) fn log(&self, i: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{i}.log"))).expect("it was started")
    }

    /// Stop node `i` at once, as by kill -9 of the whole node, and wait for its end.
    pub(crate) fn stop(&mut self, i: usize) {
        if self.servers[i].take().is_some() {
            segment::remove_segment(&self.data(i));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.servers.len()).rev().for_each(|i| self.stop(i));
    }
}
