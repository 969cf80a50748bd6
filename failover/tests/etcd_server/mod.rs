//! Real etcd for tests: members on free loopback ports in a directory of their own, killed when dropped.

#[path = "../../../integration/src/ports.rs"]
mod ports;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a member to answer or to lead.
const PATIENCE: Duration = Duration::from_secs(60);

/// An etcd cluster.
pub(crate) struct Etcd {
    members: Vec<Member>,
    cluster: String,
    /// What else its members are started with.
    more: Vec<String>,
    dir: tempfile::TempDir,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    process: Option<Child>,
}

impl Etcd {
    /// Start `count` members and wait until they answer.
    pub(crate) fn start(count: usize) -> Self {
        Self::start_with(count, Vec::new())
    }

    /// The same with `more` on the members' command lines.
    pub(crate) fn start_with(count: usize, more: Vec<String>) -> Self {
        let etcd = Self::spawn_all(count, "http", more);
        etcd.await_healthy();
        etcd
    }

    /// One that clients talk to by TLS. Nobody has waited for it: etcdctl has no certificate.
    pub(crate) fn start_tls(more: Vec<String>) -> Self {
        Self::spawn_all(1, "https", more)
    }

    fn spawn_all(count: usize, scheme: &str, more: Vec<String>) -> Self {
        // Each member has a host of its own.
        let url = |scheme: &str, i: usize| format!("{scheme}://127.0.0.{}:{}", 1 + i, ports::free_port());
        let member = |i| Member { name: format!("e{i}"), client: url(scheme, i), peer: url("http", i), process: None };
        let members: Vec<Member> = (0..count).map(member).collect();
        let cluster: Vec<String> = members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut etcd = Self { members, cluster: cluster.join(","), more, dir };
        (0..count).for_each(|i| etcd.spawn(i));
        etcd
    }

    /// Start member `i` (again).
    pub(crate) fn spawn(&mut self, i: usize) {
        let dir = self.dir.path();
        let member = &mut self.members[i];
        let log = std::fs::File::create(dir.join(format!("{}.log", member.name))).expect("a log file");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--name", &member.name])
            .arg("--data-dir")
            .arg(dir.join(&member.name))
            .args(["--listen-client-urls", &member.client, "--advertise-client-urls", &member.client])
            .args(["--listen-peer-urls", &member.peer, "--initial-advertise-peer-urls", &member.peer])
            // A disk that stalls is to cost no leader its place; of members that are killed, what they wrote stays.
            .args(["--initial-cluster", &self.cluster, "--unsafe-no-fsync"])
            .args(["--heartbeat-interval", "100", "--election-timeout", "1000", "--pre-vote"])
            .args(&self.more)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is installed");
        member.process = Some(child);
    }

    /// The members' client URLs.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| m.client.clone()).collect()
    }

    /// Wait until every member serves a linearizable read.
    pub(crate) fn await_healthy(&self) {
        let deadline = Instant::now() + PATIENCE;
        for member in &self.members {
            while !etcdctl(&[&member.client], &["get", "health", "--command-timeout=1s"]).0 {
                let log = || std::fs::read_to_string(self.dir.path().join(format!("{}.log", member.name)));
                assert!(Instant::now() < deadline, "etcd member {} is not healthy: {:?}", member.name, log());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// The member that leads, waiting for an election to end.
    pub(crate) fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (i, member) in self.members.iter().enumerate() {
                let (_, out) = etcdctl(&[&member.client], &["endpoint", "status", "--command-timeout=1s"]);
                if out.split(", ").nth(4) == Some("true") {
                    return i;
                }
            }
            assert!(Instant::now() < deadline, "no etcd member leads");
        }
    }

    /// Send `signal` to member `i`.
    pub(crate) fn signal(&self, i: usize, signal: Signal) {
        let child = self.members[i].process.as_ref().expect("started");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it runs");
    }

    /// Kill member `i` with -9 and wait for its end.
    pub(crate) fn kill(&mut self, i: usize) {
        if let Some(mut child) = self.members[i].process.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|i| self.kill(i));
    }
}

/// Run etcdctl; did it succeed, and what did it print?
pub(crate) fn etcdctl(endpoints: &[&str], args: &[&str]) -> (bool, String) {
    let out = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        .args(args)
        .output()
        .expect("etcdctl is installed");
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
}
