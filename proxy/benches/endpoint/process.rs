//! Child processes, and what they use: CPU time, memory, system calls.

use anyhow::{Context, bail};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

/// Longest wait for anything to start, and for one command of a cell beyond its own time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A child that is killed with its owner.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// User and system time of a process so far, seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Cpu {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the endpoint's process")?;
        // The name is in parentheses and may contain anything; the numbers follow it (proc(5): fields 14 and 15).
        let fields: Vec<&str> = stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace().collect();
        let seconds =
            |i: usize| -> anyhow::Result<f64> { Ok(fields.get(i).context("stat")?.parse::<f64>()? / hertz()) };
        Ok(Self { user: seconds(11)?, system: seconds(12)? })
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { user: self.user - earlier.user, system: self.system - earlier.system }
    }

    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

fn hertz() -> f64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().map_or(100.0, |n| n as f64)
}

/// Resident memory of a process, KiB.
pub(crate) fn resident(pid: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the endpoint's memory")?;
    let line = text.lines().find_map(|l| l.strip_prefix("Rss:")).context("smaps_rollup has Rss")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// System calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    pub(crate) all: f64,
    /// Of them, those that send or receive.
    pub(crate) socket: f64,
}

impl Calls {
    /// Of one of `n`.
    pub(crate) fn each(self, n: f64) -> Self {
        Self { all: self.all / n, socket: self.socket / n }
    }
}

/// The thread of an endpoint that samples lag. Its questions are shared by all who wait for one, and no client's.
pub(crate) const SAMPLER: &str = "sampler";

/// Run `command` while the system calls of `pid` are counted in the kernel, but for those of its [`SAMPLER`]. `None` when perf
/// cannot.
pub(crate) fn count_calls(pid: u32, command: &Command) -> anyhow::Result<Option<(Calls, Output)>> {
    const ALL: &str = "raw_syscalls:sys_enter";
    const SOCKET: [&str; 4] = ["sendto", "recvfrom", "sendmsg", "recvmsg"];
    let events: Vec<String> = SOCKET.iter().map(|call| format!("syscalls:sys_enter_{call}")).collect();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).context("the endpoint's threads")?.flatten();
    let is_sampler = |dir: &Path| std::fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim() == SAMPLER);
    let counted = threads.filter(|thread| !is_sampler(&thread.path()));
    let counted: Vec<String> = counted.map(|thread| thread.file_name().to_string_lossy().into_owned()).collect();
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x", ";", "-e", &format!("{ALL},{}", events.join(",")), "-t", &counted.join(","), "--"]);
    perf.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            perf.env(name, value);
        }
    }
    let Ok(output) = perf.output() else { return Ok(None) };
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let count = |event: &str| -> Option<f64> {
        text.lines().find(|line| line.contains(event)).and_then(|line| line.split(';').next()?.parse().ok())
    };
    let socket = events.iter().map(|event| count(event)).sum::<Option<f64>>();
    Ok(count(ALL).zip(socket).map(|(all, socket)| (Calls { all, socket }, output)))
}

/// PostgreSQL's newest installed programs.
pub(crate) fn postgres_program(name: &str) -> anyhow::Result<PathBuf> {
    let majors = std::fs::read_dir("/usr/lib/postgresql").context("PostgreSQL under /usr/lib/postgresql")?.flatten();
    let numbered = majors.filter_map(|d| Some((d.file_name().to_str()?.parse::<u32>().ok()?, d.path().join("bin"))));
    let newest = numbered.filter(|(_, bin)| bin.join("postgres").exists()).max().context("a PostgreSQL server")?;
    Ok(newest.1.join(name))
}

/// A command as the user `postgres` when we are root: neither PostgreSQL nor PgBouncer runs as root.
pub(crate) fn unprivileged(program: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(program);
    if nix::unistd::Uid::effective().is_root() {
        let user = nix::unistd::User::from_name("postgres")?.context("the user postgres exists")?;
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/");
    Ok(command)
}

/// Run to the end; its output when it succeeded.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

pub(crate) fn raise_descriptor_limit() -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("the limit of open files")
}
