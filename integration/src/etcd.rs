//! A real etcd of one member, with its files in a scratch directory.

use crate::http;
use crate::ports::free_port;
use crate::process::{Process, unprivileged};
use crate::scratch::Scratch;
use crate::wait::wait_for;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    client_port: u16,
    peer_port: u16,
    dir: PathBuf,
    log: PathBuf,
}

impl Etcd {
    /// Start one and wait until it is healthy.
    ///
    /// # Panics
    /// When etcd is not installed or does not become healthy.
    pub fn start(scratch: &Scratch) -> Self {
        let (client_port, peer_port) = (free_port(), free_port());
        let (dir, log) = (scratch.dir("etcd"), scratch.dir("log").join("etcd.log"));
        let process = spawn(client_port, peer_port, &dir, &log);
        let etcd = Self { process, client_port, peer_port, dir, log };
        etcd.wait_healthy();
        etcd
    }

    /// `host:port` of its client API.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Start it again on its old data.
    ///
    /// # Panics
    /// When it does not become healthy.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.client_port, self.peer_port, &self.dir, &self.log);
        self.wait_healthy();
    }

    /// Back up, into a file of the scratch directory.
    ///
    /// # Panics
    /// When etcdctl fails.
    pub fn save(&self, file: &Path) {
        run("etcdctl", &["--endpoints", &self.endpoint(), "snapshot", "save"], file, &[]);
    }

    /// Replace all it holds by a backup, as an operator does who has lost it, and start it.
    ///
    /// # Panics
    /// When its program fails or etcd does not become healthy.
    pub fn restore(&mut self, file: &Path) {
        self.process.kill();
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data).expect("etcd had data");
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let cluster = format!("e1={peer}");
        let data = data.to_str().expect("the scratch directory is plain text").to_owned();
        let more = ["--name", "e1", "--initial-cluster", &cluster, "--initial-advertise-peer-urls", &peer];
        run(restorer(), &["snapshot", "restore"], file, &[&more[..], &["--data-dir", &data]].concat());
        self.restart();
    }

    /// Lose all it holds, and start it empty.
    ///
    /// # Panics
    /// When it does not become healthy.
    pub fn wipe(&mut self) {
        self.process.kill();
        std::fs::remove_dir_all(self.dir.join("data")).expect("etcd had data");
        self.restart();
    }

    fn wait_healthy(&self) {
        let addr = self.endpoint().parse().expect("an address and a port");
        wait_for("etcd's health", Duration::from_secs(60), || {
            let (status, body) = http::get(addr, "/health", Duration::from_secs(2)).map_err(|e| e.to_string())?;
            if status == 200 && body.contains("true") { Ok(()) } else { Err(body) }
        });
    }
}

/// The program that restores a backup: `etcdctl` only does up to etcd 3.5, which has `etcdutl` already.
pub(crate) fn restorer() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("etcdutl").is_file()) { "etcdutl" } else { "etcdctl" }
}

fn run(program: &str, before: &[&str], file: &Path, after: &[&str]) {
    let mut command = unprivileged(program);
    command.env("ETCDCTL_API", "3").args(before).arg(file).args(after).current_dir("/");
    let done = command.output().expect("etcd's client is installed (Debian package etcd-client)");
    assert!(done.status.success(), "{program} {before:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn spawn(client_port: u16, peer_port: u16, dir: &Path, log: &Path) -> Process {
    let (client, peer) = (format!("http://127.0.0.1:{client_port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = unprivileged("etcd");
    // An election timeout of 500 ms lets leases be as short as a second.
    command.args(["--name", "e1", "--heartbeat-interval", "100", "--election-timeout", "500"]);
    // A disk that stalls is to cost no leader its place; when it is killed, what it wrote stays.
    command.arg("--unsafe-no-fsync");
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("e1={peer}"), "--data-dir"]).arg(dir.join("data"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    Process::spawn("etcd", command, dir, log).expect("etcd is installed (Debian package etcd-server)")
}
