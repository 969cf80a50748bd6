//! A real PostgreSQL primary and its standby for one test: started on free ports, stopped and deleted when dropped.

#[path = "../../../integration/src/ports.rs"]
mod ports;
#[path = "../../../integration/src/segment.rs"]
mod segment;
#[path = "../../../integration/src/server.rs"]
mod server;
#[path = "../../../integration/src/template.rs"]
mod template;

use ports::free_port;
use server::Server;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Longest time a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct Postgres {
    /// TCP port on 127.0.0.1; also names the Unix socket in `dir`.
    pub(crate) port: u16,
    server: Option<Server>,
    dir: tempfile::TempDir,
}

/// The user to run as: PostgreSQL refuses root.
fn unprivileged() -> Option<(u32, u32)> {
    // SAFETY: no preconditions; it only reads the process's credentials.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
    let line = passwd.lines().find(|l| l.starts_with("postgres:")).expect("user postgres exists");
    let mut ids = line.split(':').skip(2).map(|n| n.parse().expect("a numeric id"));
    Some((ids.next().expect("a uid"), ids.next().expect("a gid")))
}

/// Where PostgreSQL keeps its programs: `PGTENURE_TEST_PG_BIN`, or the newest that is installed.
fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("PGTENURE_TEST_PG_BIN") {
        return dir.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed").flatten();
    let newest = versions
        .filter(|e| e.path().join("bin/initdb").exists())
        .max_by_key(|e| e.file_name().to_string_lossy().parse::<u32>().unwrap_or(0));
    newest.expect("a PostgreSQL with initdb").path().join("bin")
}

fn program(name: &str) -> Command {
    let mut command = Command::new(bin_dir().join(name));
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    command
}

fn run(mut command: Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn scratch() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("pgt").tempdir().expect("a scratch directory");
    if let Some((uid, gid)) = unprivileged() {
        chown(dir.path(), Some(uid), Some(gid)).expect("root may give a directory away");
    }
    dir
}

impl Postgres {
    /// A new cluster's primary. Local connections need no password, TCP ones SCRAM.
    pub(crate) fn primary() -> Self {
        let dir = scratch();
        let (data, arguments) =
            (dir.path().join("data"), ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]);
        let recipe = [&arguments[..], &["--auth-host=scram-sha-256", "-N"]].concat();
        template::data_dir(&data, &bin_dir().join("initdb"), &recipe, || {
            let mut initdb = program("initdb");
            initdb.args(&recipe).arg("-D").arg(&data);
            run(initdb);
        });
        Self::start(dir, "n1")
    }

    /// A standby that streams from this server.
    pub(crate) fn standby(&self, name: &str) -> Self {
        let dir = scratch();
        let mut backup = program("pg_basebackup");
        backup.args(["-U", "postgres", "-X", "stream", "-c", "fast", "-R", "--no-sync", "-h"]).arg(self.dir.path());
        backup.args(["-p", &self.port.to_string(), "-D"]).arg(dir.path().join("data"));
        run(backup);
        Self::start(dir, name)
    }

    fn start(dir: tempfile::TempDir, name: &str) -> Self {
        let port = free_port();
        let data = dir.path().join("data");
        let server = Server::start(&data, &dir.path().join("log"), || {
            let mut command = program("postgres");
            command.arg("-D").arg(&data).arg("-k").arg(dir.path());
            command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
            command.args(["-c", &format!("cluster_name={name}"), "-c", "max_connections=50"]);
            command.args(["-c", "dynamic_shared_memory_type=mmap"]);
            command
        });
        Self { port, server: Some(server), dir }
    }

    /// The directory of its Unix socket.
    pub(crate) fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// psql over the Unix socket, as superuser.
    pub(crate) fn psql(&self, args: &[&str]) -> Output {
        let mut psql = program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        psql.arg(self.socket_dir()).args(["-p", &self.port.to_string()]).args(args);
        psql.output().expect("psql starts")
    }

    /// Run SQL over the Unix socket as superuser; its output without the last line break.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let output = self.psql(&["-c", sql]);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Wait until a query gives `want`.
    pub(crate) fn await_sql(&self, sql: &str, want: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let got = self.sql(sql);
            if got == want {
                return;
            }
            assert!(Instant::now() < deadline, "{sql} still gives {got}, awaited {want}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.server.take());
        segment::remove_segment(&self.dir.path().join("data"));
    }
}
