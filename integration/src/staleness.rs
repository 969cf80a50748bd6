//! The judge of what reads are promised: `pgtenure verify reads` against a cluster with two proxies, while its standbys
//! are delayed, paused, stopped, killed and cut off, and its primary is replaced in several ways.

use crate::client::Target;
use crate::cluster::{Cluster, LONG, program};
use crate::config_file::{NODES, Options};
use crate::process::{signal_all, unprivileged};
use crate::wait::{wait_for, wait_until};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Longest that a standby is delayed, paused or cut off, ms.
const LONGEST_MS: u64 = 2000;

/// Longest wait for all standbys after a fault: one of them may be copied anew while the reads go on.
const COME_BACK: Duration = Duration::from_secs(300);

/// A cluster for it, of a mode; `proxy` are lines for its proxies.
pub fn cluster(mode: &'static str, proxy: &'static str) -> Cluster {
    let options = Options {
        mode,
        fault_proxies: true,
        second_proxy: true,
        proxy,
        // Every change of primary is wanted here.
        manager: "failover_budget = 1000\n",
        parameters: "max_connections = \"200\"\n",
    };
    let cluster = Cluster::start(&options);
    for target in [cluster.target(), cluster.second_target()] {
        wait_for("a standby to serve a read", LONG, || {
            let mut client = crate::client::Client::connect(&target).map_err(|e| e.to_string())?;
            let answer = client.query("select current_setting('in_hot_standby')").map_err(|e| e.to_string())?;
            if answer.value() == "on" { Ok(()) } else { Err("the primary did".to_owned()) }
        });
    }
    cluster
}

/// `pgtenure verify reads`, running.
#[derive(Debug)]
pub struct Verify {
    child: Child,
}

/// How it ended.
#[derive(Debug)]
pub struct Verdict {
    /// The exit code.
    pub code: i32,
    /// What it printed: JSON, if anything.
    pub report: Value,
    /// What it complained about.
    pub stderr: String,
}

impl Verify {
    /// Start it through both proxies.
    ///
    /// # Panics
    /// When our own program cannot be started.
    pub fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut command = unprivileged(program());
        command.args(["verify", "reads", "--json"]).args(arguments).current_dir("/");
        for target in [cluster.target(), cluster.second_target()] {
            command.arg("--dsn").arg(Target::conninfo(&target));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().expect("our own program starts") }
    }

    /// Wait until it checks reads. A fault before that would hit what it prepares.
    ///
    /// # Panics
    /// When it does not begin.
    pub fn begun(&mut self, cluster: &Cluster) {
        wait_for("the check of reads to begin", LONG, || {
            if self.has_ended() {
                return Ok(());
            }
            let mut client = crate::client::Client::connect(&cluster.target()).map_err(|e| e.to_string())?;
            let written = client.query("begin; select max(n) > 0 from pgtenure_verify.registers; commit");
            let written = written.map_err(|e| e.to_string())?.value().to_owned();
            if written == "t" { Ok(()) } else { Err("nothing is written".to_owned()) }
        });
    }

    /// Ask it to end before its time.
    pub fn stop(&self) {
        signal_all(&[Pid::from_raw(self.child.id().cast_signed())], Signal::SIGINT);
    }

    /// Has it ended?
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    /// Wait for its end. Its output is at most a few pages, which a pipe holds.
    ///
    /// # Panics
    /// When it does not end within `within`.
    pub fn finish(mut self, within: Duration) -> Verdict {
        wait_until("the check of reads to end", within, || self.has_ended());
        let code = self.child.wait().expect("it has ended").code().unwrap_or(-1);
        let text = |pipe: Option<&mut dyn Read>| {
            let mut text = String::new();
            pipe.expect("it is piped").read_to_string(&mut text).expect("it printed text");
            text
        };
        let stdout = text(self.child.stdout.as_mut().map(|p| p as &mut dyn Read));
        let stderr = text(self.child.stderr.as_mut().map(|p| p as &mut dyn Read));
        Verdict { code, report: serde_json::from_str(&stdout).unwrap_or(Value::Null), stderr }
    }
}

impl Drop for Verify {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// What is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All that is streamed to a standby comes late.
    StreamDelayed,
    /// It replays late: its startup process stands still for most of the time.
    ReplayLate,
    /// Its startup process is stopped: it receives, and replays nothing.
    ReplayStopped,
    /// Its replay is paused by an operator.
    ReplayPaused,
    /// Its WAL receiver is stopped: the connection stands, and nothing comes.
    ReceiverStopped,
    /// Its postmaster is killed; the agent starts it again.
    StandbyKilled,
    /// Nothing reaches it by network.
    StandbyCutOff,
    /// No standby reaches the primary.
    StreamsCut,
    /// The primary is moved as planned.
    Switchover,
    /// The primary's PostgreSQL is killed.
    PrimaryKilled,
    /// The primary's host stands still until another has taken over, and then goes on.
    PrimaryFrozen,
}

impl Fault {
    /// What befalls standbys.
    pub const OF_STANDBYS: [Self; 8] = [
        Self::StreamDelayed,
        Self::ReplayLate,
        Self::ReplayStopped,
        Self::ReplayPaused,
        Self::ReceiverStopped,
        Self::StandbyKilled,
        Self::StandbyCutOff,
        Self::StreamsCut,
    ];
    /// What changes the primary.
    pub const OF_PRIMARIES: [Self; 3] = [Self::Switchover, Self::PrimaryKilled, Self::PrimaryFrozen];
    /// And that without losing what was acknowledged, in a mode where nothing is waited for.
    pub const WITHOUT_LOSS: [Self; 1] = [Self::Switchover];
}

/// Faults one after the other, in an order and of lengths that the seed decides.
#[derive(Debug)]
pub struct Faults {
    state: u64,
    of_primaries: &'static [Fault],
    /// Changes of the primary that were asked for.
    changes: usize,
    /// What has befallen the cluster so far while it was not over.
    pub done: Vec<Fault>,
}

impl Faults {
    /// The same seed gives the same faults. `of_primaries` are what changes the primary, at least one.
    pub fn new(seed: u64, of_primaries: &'static [Fault]) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, of_primaries, changes: 0, done: Vec::new() }
    }

    /// A number below `limit` (xorshift).
    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 16) % limit
    }

    /// Every fault of standbys, in a random order.
    pub fn of_standbys(&mut self) -> Vec<Fault> {
        let mut left = Fault::OF_STANDBYS.to_vec();
        let mut order = Vec::new();
        while !left.is_empty() {
            let next = self.below(left.len() as u64) as usize;
            order.push(left.swap_remove(next));
        }
        order
    }

    /// All of them, then one of the primary, the next each round.
    pub fn round(&mut self, cluster: &mut Cluster, over: &mut dyn FnMut() -> bool) {
        for fault in self.of_standbys() {
            if !over() {
                self.inflict(cluster, fault, over);
            }
        }
        if !over() {
            let next = self.of_primaries[self.changes % self.of_primaries.len()];
            self.changes += 1;
            self.inflict(cluster, next, over);
        }
    }

    /// Of these, what has not been done so far.
    pub fn missing(&self, of: &[Fault]) -> Vec<Fault> {
        of.iter().filter(|fault| !self.done.contains(fault)).copied().collect()
    }

    /// Inflict one fault for a random time, undo it, and let the cluster come back.
    ///
    /// # Panics
    /// When the cluster does not come back.
    pub fn inflict(&mut self, cluster: &mut Cluster, fault: Fault, over: &mut dyn FnMut() -> bool) {
        let primary = cluster.active().primary;
        let standbys: Vec<&str> = NODES.into_iter().filter(|n| *n != primary).collect();
        let standby = standbys[self.below(standbys.len() as u64) as usize];
        let time = Duration::from_millis(self.below(LONGEST_MS + 1));
        match fault {
            Fault::StreamDelayed => {
                let stream = cluster.fault_proxy(&primary);
                // What waits comes up to twice as late.
                stream.delay_stream(standby, time / 2);
                last(time * 2, over);
                stream.delay_stream(standby, Duration::ZERO);
            }
            Fault::ReplayLate => {
                for _ in 0..4 {
                    let time = Duration::from_millis(self.below(LONGEST_MS + 1));
                    stop_processes(cluster, standby, "startup", time, over);
                }
            }
            Fault::ReplayStopped => stop_processes(cluster, standby, "startup", time, over),
            Fault::ReceiverStopped => stop_processes(cluster, standby, "walreceiver", time, over),
            Fault::ReplayPaused => {
                told(cluster, standby, "select pg_wal_replay_pause()");
                last(time, over);
                told(cluster, standby, "select pg_wal_replay_resume()");
            }
            Fault::StandbyKilled => cluster.kill_postmaster(standby),
            Fault::StandbyCutOff => {
                cluster.fault_proxy(standby).hold();
                last(time, over);
                cluster.fault_proxy(standby).release();
            }
            Fault::StreamsCut => {
                cluster.fault_proxy(&primary).cut_replication();
                last(time, over);
                cluster.fault_proxy(&primary).heal();
            }
            // On a busy machine it may fail or be refused, and was none then; the cluster has to be open either way.
            Fault::Switchover => drop(cluster.verb(&["switchover", "--json"])),
            Fault::PrimaryKilled | Fault::PrimaryFrozen => replace_primary(cluster, &primary, fault),
        }
        let done = fault != Fault::Switchover || cluster.active().primary != primary;
        if done && !over() {
            self.done.push(fault);
        }
        cluster.all_stream_within(COME_BACK);
        // Time for the reads to spread again, of which the next fault then finds many on standbys.
        last(Duration::from_secs(1), over);
    }
}

/// Let a state last so long, or until all is over.
fn last(time: Duration, over: &mut dyn FnMut() -> bool) {
    let start = Instant::now();
    wait_until("a fault's time to pass", time + LONG, || start.elapsed() >= time || over());
}

/// A standby that an earlier fault killed may still look as if it streamed, and starts only now.
fn told(cluster: &Cluster, standby: &str, sql: &str) {
    wait_for(sql, COME_BACK, || cluster.superuser(standby, sql));
}

fn stop_processes(cluster: &Cluster, standby: &str, title: &str, time: Duration, over: &mut dyn FnMut() -> bool) {
    let pids = cluster.postgres_processes(standby, title);
    signal_all(&pids, Signal::SIGSTOP);
    last(time, over);
    signal_all(&pids, Signal::SIGCONT);
}

fn replace_primary(cluster: &mut Cluster, primary: &str, fault: Fault) {
    let term = cluster.active().term;
    if fault == Fault::PrimaryKilled {
        cluster.kill_postmaster(primary);
        cluster.active_after(term);
        return;
    }
    let frozen = cluster.freeze_node(primary);
    cluster.active_after(term);
    frozen.thaw();
}
