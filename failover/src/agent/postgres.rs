//! Starting and stopping the node's PostgreSQL.
//!
//! The postmaster is started in a session of its own, so that it outlives the agent; a running one is adopted. It is
//! started as a standby, always, except while a cluster is being created. A stop is only done when no process of the
//! data directory is left.

use super::Env;
use super::control::Control;
use super::env::own_variables;
use super::process::{self, Death};
use super::sql::{Sql, SqlError};
use super::tool::ToolError;
use crate::fsm::unstarted::{Reason, last_words, reason};
use cluster::TimelineId;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// An immediate shutdown that takes longer is finished by SIGKILL.
const IMMEDIATE_BOUND: Duration = Duration::from_secs(1);
/// SIGKILL works at once unless a process hangs in the kernel.
const KILL_BOUND: Duration = Duration::from_secs(10);

/// Names the file by which each process of PostgreSQL's says how gladly the kernel may kill it.
const OOM_FILE: &str = "PG_OOM_ADJUST_FILE";

/// In the data directory, where the log's writer tells to which files it writes.
const CURRENT_LOG: &str = "current_logfiles";

/// PostgreSQL that does not start or stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// A file could not be prepared or the program not started.
    #[error("could not start PostgreSQL: {what}")]
    Start {
        /// The step.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended instead of getting ready.
    #[error("PostgreSQL ended while starting: {log}")]
    Ended {
        /// The end of its log.
        log: String,
        /// What that says of the data.
        reason: Reason,
    },
    /// It is not ready in time.
    #[error("PostgreSQL was not ready after {after:?}: {last}")]
    NotReady {
        /// The bound.
        after: Duration,
        /// Its last answer.
        last: String,
    },
    /// Whether it runs cannot be seen.
    #[error("PostgreSQL's processes could not be looked for")]
    Look(#[source] io::Error),
    /// Processes are left that SIGKILL does not end.
    #[error(
        "processes of PostgreSQL are left after SIGKILL: they wait in the kernel, for a disk mostly, and no lease of theirs is given \
         back before they are gone"
    )]
    Unkillable,
    /// A newer term made the wait pointless.
    #[error("given up, because a newer term has begun")]
    Superseded,
    /// One of its programs failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// It did not answer.
    #[error(transparent)]
    Sql(#[from] SqlError),
}

impl ServerError {
    /// Something of it may run, although it was to be stopped.
    pub(crate) fn may_run(&self) -> bool {
        matches!(self, Self::Unkillable | Self::Look(_))
    }
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Disconnect clients, write a checkpoint; immediate after the bound.
    Fast(Duration),
    /// At once; recovery at the next start.
    Immediate,
}

/// The postmaster's pid, if it lives. An agent that is out of descriptors sees nothing, and knows nothing either.
pub(crate) fn postmaster(env: &Env) -> io::Result<Option<Pid>> {
    process::postmaster_of(&env.layout.data())
}

/// There is none, and that was seen.
pub(crate) fn is_dead(env: &Env) -> bool {
    postmaster(env).is_ok_and(|found| found.is_none())
}

/// End whatever a postmaster has left.
async fn end_all(env: &Env) -> Result<(), ServerError> {
    match process::kill_all(&env.layout.data(), KILL_BOUND, || true).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(ServerError::Unkillable),
        Err(error) => Err(ServerError::Look(error)),
    }
}

/// How to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// With `standby.signal`.
    Standby,
    /// Only for a cluster that is being created.
    Creator,
}

/// Start the postmaster. A running one is left alone. Does not wait until it answers.
pub(crate) async fn start(env: &Env, how: As) -> Result<Pid, ServerError> {
    if let Some(pid) = postmaster(env).map_err(ServerError::Look)? {
        return Ok(pid);
    }
    // Backends that a killed postmaster left behind hold its shared memory and could still write.
    end_all(env).await?;
    prepare(env, how).map_err(|source| ServerError::Start { what: "preparing the data directory", source })?;
    let failed = |source| ServerError::Start { what: "running postgres", source };
    let log = File::create(env.layout.start_log()).map_err(failed)?;
    let mut command = std::process::Command::new(env.config.bin_dir.join("postgres"));
    command
        .arg("-D")
        .arg(env.layout.data())
        .arg("-c")
        .arg(format!("config_file={}", env.layout.config_file().display()));
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    // Where it changes to anyway: it counts as one of the directory's processes from its first moment, not only once it
    // has got there. Whoever starts, stops or kills next, as when a newer term ends the wait for this one, finds it.
    command.env("LC_ALL", "C").current_dir(env.layout.data());
    own_variables().for_each(|name| _ = command.env_remove(name));
    // The postmaster is protected as the agent is; sessions, which use the memory, are not.
    if std::env::var_os(OOM_FILE).is_none() {
        command.env(OOM_FILE, "/proc/self/oom_score_adj").env("PG_OOM_ADJUST_VALUE", "0");
    }
    // SAFETY: setsid is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
    let child = command.spawn().map_err(failed)?;
    let pid = i32::try_from(child.id()).map_err(|e| failed(io::Error::other(e)))?;
    Ok(Pid::from_raw(pid))
}

fn prepare(env: &Env, how: As) -> io::Result<()> {
    let data = env.layout.data();
    // Another program may have got the pid by now, and PostgreSQL would then refuse to start.
    let lock = env.layout.socket_dir().join(format!(".s.PGSQL.{}.lock", env.config.postgres_port));
    for stale in [data.join("postmaster.pid"), lock, data.join(CURRENT_LOG)] {
        remove(&stale)?;
    }
    let signal = data.join("standby.signal");
    match how {
        As::Standby => {
            remove_stubs_at_the_end(&data.join("pg_wal"))?;
            remove(&data.join("recovery.signal"))?;
            File::create(signal)?.sync_all()
        }
        As::Creator => remove(&signal),
    }
}

/// Empty histories above every real one are what is left of a promotion, or of a follower's fetching, that was killed
/// half-way. PostgreSQL would take the highest for its target, find that its own timeline is no ancestor of it, and
/// refuse to start.
fn remove_stubs_at_the_end(wal: &Path) -> io::Result<()> {
    let mut histories: Vec<(TimelineId, bool)> = Vec::new();
    for entry in fs::read_dir(wal)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".history"));
        let Some(number) = number.and_then(|n| u32::from_str_radix(n, 16).ok()) else { continue };
        histories.push((TimelineId(number), entry.metadata()?.len() == 0));
    }
    histories.sort_unstable();
    for (timeline, _) in histories.into_iter().rev().take_while(|(_, empty)| *empty) {
        remove(&wal.join(timeline.history_file()))?;
    }
    super::layout::fsync_dir(wal)
}

/// Remove a file that may be missing.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Wait until it answers. `given_up` is asked now and then.
pub(crate) async fn wait_ready(env: &Env, pid: Pid, given_up: impl Fn() -> bool) -> Result<Sql, ServerError> {
    let after = env.config.start_timeout;
    let deadline = tokio::time::Instant::now() + after;
    loop {
        let last = match Sql::local(env, "postgres", env.config.probe_timeout).await {
            Ok(sql) => return Ok(sql),
            Err(error) => error.to_string(),
        };
        process::reap_one(pid);
        if !alive(pid) {
            process::let_speak(&env.layout.data()).await;
            let log = log_tail(env);
            return Err(ServerError::Ended { reason: reason(&log), log: last_words(&log).join(" | ") });
        }
        // Not before it has told its pid: whoever comes next would find no postmaster, and start another.
        if given_up() && postmaster(env).is_ok_and(|found| found == Some(pid)) {
            return Err(ServerError::Superseded);
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(ServerError::NotReady { after, last });
        }
        // Each attempt costs a process, which a cluster that is failing over has better use for.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// A zombie has no working directory.
fn alive(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok()
}

/// Stop it and everything it left. True: it was a clean shutdown (as pg_control says).
pub(crate) async fn stop(env: &Env, how: Stop) -> Result<bool, ServerError> {
    if let Some(pid) = postmaster(env).map_err(ServerError::Look)? {
        let (signal, bound) = match how {
            Stop::Fast(bound) => (Signal::SIGINT, bound),
            Stop::Immediate => (Signal::SIGQUIT, IMMEDIATE_BOUND),
        };
        process::send(pid, signal);
        if !ended(pid, bound).await && how != Stop::Immediate {
            process::send(pid, Signal::SIGQUIT);
            ended(pid, IMMEDIATE_BOUND).await;
        }
    }
    end_all(env).await?;
    if !env.layout.has_data() {
        return Ok(true);
    }
    Ok(Control::read(env).await?.clean())
}

/// Wait for a process to end. False: it did not within the bound.
async fn ended(pid: Pid, bound: Duration) -> bool {
    match Death::of(pid) {
        Ok(None) => true,
        Ok(Some(death)) => {
            let ended = tokio::time::timeout(bound, death.wait()).await.is_ok();
            process::reap_one(pid);
            ended
        }
        Err(_) => false,
    }
}

/// The configuration files are read again, by all processes, soon after.
///
/// # Errors
/// When it cannot be seen whether it runs: then it was told nothing.
pub(crate) fn reload(env: &Env) -> io::Result<()> {
    if let Some(pid) = postmaster(env)? {
        process::send(pid, Signal::SIGHUP);
    }
    Ok(())
}

/// The end of what PostgreSQL logged.
pub(crate) fn log_tail(env: &Env) -> String {
    let path = current_log(&env.layout.data(), env.layout.start_log());
    let text = File::open(path).and_then(|mut f| {
        let length = f.metadata()?.len();
        f.seek(SeekFrom::Start(length.saturating_sub(4000)))?;
        let mut bytes = Vec::new();
        f.take(4000).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    });
    text.unwrap_or_default()
}

/// What a postmaster says before the log's writer runs is in `start_log`. That one tells where it writes before it does.
fn current_log(data: &Path, start_log: PathBuf) -> PathBuf {
    let told = fs::read_to_string(data.join(CURRENT_LOG)).unwrap_or_default();
    // Each line begins with a format.
    told.lines().next().and_then(|line| line.split_once(' ')).map_or(start_log, |(_, path)| data.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_where_its_writer_tells_and_the_starts_own_before_that_runs() {
        let data = tempfile::tempdir().unwrap();
        let current = || current_log(data.path(), "/log/start.log".into());
        assert_eq!(current(), Path::new("/log/start.log"));
        for (told, path) in [
            ("stderr /log/postgresql-04.log\n", PathBuf::from("/log/postgresql-04.log")),
            ("stderr /a log/x.log\ncsvlog /a log/x.csv\n", "/a log/x.log".into()),
            ("csvlog log/x.csv\n", data.path().join("log/x.csv")),
            ("", "/log/start.log".into()),
        ] {
            fs::write(data.path().join(CURRENT_LOG), told).unwrap();
            assert_eq!(current(), path, "{told}");
        }
    }
}
