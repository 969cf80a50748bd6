//! Hosts on one machine: network namespaces joined by a bridge, with packets dropped between them as a scenario says.
//!
//! All of it lies inside a network and mount namespace of this program's own, which it enters by starting itself again
//! under `unshare`: nothing is left on the machine when the last process in it has ended, and two runs never meet.

use super::delay::Delay;
use super::scenario::Wait;
use crate::process::alive;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The hosts with their last byte of the address.
const HOSTS: [(&str, u8); 5] = [("n1", 1), ("n2", 2), ("n3", 3), ("p1", 11), ("p2", 12)];
/// The clients' and the operators' side: the bridge itself. What reaches it is never dropped.
const CLIENTS: &str = "10.77.0.254";
/// Its own address on the wire. Without one a bridge takes the least of its ports', and so another when a port comes or goes:
/// what hosts send there would be lost until they ask for it anew, half a minute later.
const CLIENTS_MAC: &str = "02:00:00:00:00:fe";

/// How `ip` calls a port's bridge: not a word of ours.
pub(super) const BRIDGED_TO: &str = concat!("mas", "ter");
/// Says to the program that it is inside.
const INSIDE: &str = "PGTENURE_NEMESIS_INSIDE";

/// The address of a host.
///
/// # Panics
/// When there is no such host.
pub fn address(host: &str) -> Ipv4Addr {
    let found = HOSTS.iter().find(|(name, _)| *name == host);
    Ipv4Addr::new(10, 77, 0, found.unwrap_or_else(|| panic!("there is no host {host}")).1)
}

/// All hosts by name.
pub fn hosts() -> Vec<&'static str> {
    HOSTS.iter().map(|(name, _)| *name).collect()
}

/// Are we inside namespaces of our own?
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Why there can be no hosts here, if so: tried with what is needed, and undone.
pub fn impossible() -> Option<String> {
    let script = "ip link set lo up && mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip netns add try \
                  && test -c /dev/net/tun && ip link add br0 type bridge && ip link add v0 type veth peer name w0 netns try \
                  && ip netns exec try nft add table inet t \
                  && ip netns exec try nft add chain inet t i '{ type filter hook input priority 0 ; }' \
                  && ip netns exec try nft add rule inet t i numgen random mod 100 '<' 5 drop";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-c", script]).stdin(Stdio::null());
    match command.output() {
        Ok(out) if out.status.success() => None,
        Ok(out) => Some(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// This program again, inside.
pub fn again(arguments: &[String]) -> Command {
    let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--"]).arg(exe).args(arguments).env(INSIDE, "1");
    command
}

/// The hosts, up and reachable.
#[derive(Debug)]
pub struct Sandbox {
    namespaces: BTreeMap<&'static str, PathBuf>,
    delays: BTreeMap<String, Delay>,
}

impl Sandbox {
    /// Make them.
    ///
    /// # Panics
    /// When the kernel refuses, or when we are not inside.
    pub fn new() -> Self {
        assert!(inside(), "hosts are only made inside namespaces of our own");
        let mut script = format!(
            "set -e\nip link set lo up\nmkdir -p /run/netns\nmount -t tmpfs none /run/netns\n\
             ip link add hosts address {CLIENTS_MAC} type bridge\nip addr add {CLIENTS}/24 dev hosts\nip link set hosts up\n"
        );
        for (host, _) in HOSTS {
            let ip = address(host);
            script += &format!(
                "ip netns add {host}\nip link add to-{host} type veth peer name eth0 netns {host}\n\
                 ip link set to-{host} {BRIDGED_TO} hosts up\nip -n {host} link set lo up\n\
                 ip -n {host} addr add {ip}/24 dev eth0\nip -n {host} link set eth0 up\n\
                 ip netns exec {host} nft -f - <<end\ntable inet faults {{\n\
                 chain in {{ type filter hook input priority 0; }}\nchain out {{ type filter hook output priority 0; }}\n\
                 }}\nend\n"
            );
        }
        shell(&script);
        let namespaces = HOSTS.map(|(host, _)| (host, Path::new("/run/netns").join(host)));
        Self { namespaces: namespaces.into(), delays: BTreeMap::new() }
    }

    /// A command on a host, as root or as the unprivileged user.
    pub fn command(&self, host: &str, program: &Path, as_root: bool) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespaces[host].display()));
        if let Some(user) = crate::process::drop_to().filter(|_| !as_root) {
            command.arg(format!("--setuid={}", user.uid)).arg(format!("--setgid={}", user.gid));
            command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
        }
        command.arg("--").arg(program);
        command
    }

    /// Every process on a host.
    pub fn processes(&self, host: &str) -> Vec<Pid> {
        let of = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok()
        };
        let wanted = of(&self.namespaces[host]);
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| Some(Pid::from_raw(e.file_name().to_str()?.parse().ok()?)));
        pids.filter(|pid| alive(*pid) && of(Path::new(&format!("/proc/{pid}/ns/net"))) == wanted).collect()
    }

    /// SIGKILL to every process on a host, until there is none, for five seconds at most. What its PostgreSQL has shared in
    /// memory goes with it, as the host's memory would.
    pub fn kill_all(&self, host: &str) {
        let mut shared = BTreeSet::new();
        for _ in 0..500 {
            let all = self.processes(host);
            if all.is_empty() {
                break;
            }
            // Looked at first: who loses its postmaster ends by itself.
            shared.extend(all.iter().copied().flat_map(shared_by));
            for pid in all {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for file in shared {
            let _ = std::fs::remove_file(file);
        }
    }

    /// Drop what `from` sends to `to`.
    pub fn cut(&self, from: &str, to: &str) {
        self.nft(to, &format!("add rule inet faults in ip saddr {} drop", address(from)));
    }

    /// Lose that percentage of what a host sends to and gets from other hosts.
    pub fn lose(&self, host: &str, percent: u64) {
        let rule = |chain: &str, end: &str| {
            let others = format!("ip {end} 10.77.0.0/24 ip {end} != {CLIENTS}");
            format!("add rule inet faults {chain} {others} numgen random mod 100 < {percent} drop\n")
        };
        self.nft(host, &(rule("in", "saddr") + &rule("out", "daddr")));
    }

    /// Let no more than so many kbit/s leave a host, the rest waits up to 400 ms.
    pub fn slow(&self, host: &str, kbits: u64) {
        shell(&format!("tc -n {host} qdisc replace dev eth0 root tbf rate {kbits}kbit burst 4kb latency 400ms"));
    }

    /// Let what leaves a host wait, and what reaches it, if so.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn delay(&mut self, host: &str, wait: Wait, seed: u64) {
        // First the one before: both have the same devices.
        drop(self.delays.remove(host));
        self.delays.insert(host.to_owned(), Delay::start(host, wait, seed));
    }

    /// Undo everything above.
    pub fn heal(&mut self) {
        self.delays.clear();
        for host in self.namespaces.keys() {
            self.nft(host, "flush chain inet faults in\nflush chain inet faults out");
            shell(&format!("tc -n {host} qdisc del dev eth0 root 2>/dev/null || true"));
        }
    }

    fn nft(&self, host: &str, rules: &str) {
        let mut command = self.command(host, Path::new("nft"), true);
        feed(command.args(["-f", "-"]), rules);
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.delays.clear();
        for host in self.namespaces.keys() {
            self.kill_all(host);
            // A namespace outlives its name while a process is left in it; its cable must not.
            shell(&format!("ip link del to-{host} || true\nip netns del {host} || true"));
        }
        shell("ip link del hosts || true\numount /run/netns || true");
    }
}

/// The files that a process of PostgreSQL has mapped in /dev/shm.
fn shared_by(pid: Pid) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.find("/dev/shm/PostgreSQL.").map(|at| &line[at..]));
    files.filter(|file| !file.ends_with(" (deleted)")).map(PathBuf::from).collect()
}

/// Run shell commands that must go well.
///
/// # Panics
/// When they do not.
pub fn shell(script: &str) {
    feed(Command::new("sh").arg("-s"), script);
}

fn feed(command: &mut Command, text: &str) {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads what it is told");
    let status = child.wait().expect("a child can be waited for");
    assert!(status.success(), "{command:?} ended with {status}: {text}");
}
