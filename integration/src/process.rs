//! Processes: started as the right user, logged to a file, signalled alone or with all their descendants.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The unprivileged user that everything runs as when the tests are run by root.
pub const USER: &str = "postgres";

/// `Some(user)` when we are root and must drop to it.
///
/// # Panics
/// When we are root and there is no such user.
pub fn drop_to() -> Option<User> {
    nix::unistd::geteuid().is_root().then(|| {
        let found = User::from_name(USER).expect("the user database can be read");
        found.expect("tests run by root need the user postgres, which Debian's PostgreSQL package makes")
    })
}

/// Make `path` belong to the user that will use it.
pub fn give_to_postgres(path: &Path) {
    if let Some(user) = drop_to() {
        nix::unistd::chown(path, Some(user.uid), Some(user.gid)).expect("root may chown");
    }
}

/// A command that will run as the unprivileged user.
pub fn unprivileged(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    if let Some(user) = drop_to() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        command.env("HOME", &user.dir).env("USER", USER).env("LOGNAME", USER);
    }
    command
}

/// A process of the cluster under test, its output in a log file. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Start `command` in its own process group with `cwd` as working directory, output appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, mut command: Command, cwd: &Path, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log).with_context(|| format!("{}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .current_dir(cwd)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Send a signal to this process alone.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid(), signal);
    }

    /// Wait for it to end.
    ///
    /// # Errors
    /// When it does not within `within`.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > within {
                bail!("{} did not end within {within:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `kill -9` and reap.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.char_indices().rev().nth(6000).map_or(0, |(i, _)| i);
            eprintln!("---- end of the log of {}\n{}", self.name, &log[from..]);
        }
    }
}

/// `pid` and all its descendants, parents first. Backends are not in their postmaster's process group, so the tree is
/// walked by parent ids.
pub fn tree(pid: Pid) -> Vec<Pid> {
    let parents: Vec<(Pid, Pid)> = all_pids().into_iter().filter_map(|p| Some((p, parent_of(p)?))).collect();
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, pp)| *pp == parent).map(|(p, _)| *p));
        next += 1;
    }
    found
}

/// Send `signal` to all of `pids`, ignoring those that are gone.
pub fn signal_all(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill(*pid, signal);
    }
}

/// Does the process exist and not only as a zombie?
pub fn alive(pid: Pid) -> bool {
    state_of(pid).is_some_and(|s| s != 'Z' && s != 'X')
}

/// Every process whose working directory is `dir` or inside.
pub fn working_in(dir: &Path) -> Vec<Pid> {
    let inside = |p: &Pid| std::fs::read_link(format!("/proc/{p}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    all_pids().into_iter().filter(inside).collect()
}

/// The state letter of /proc/PID/stat.
pub fn state_of(pid: Pid) -> Option<char> {
    stat_fields(pid)?.split_whitespace().next()?.chars().next()
}

fn parent_of(pid: Pid) -> Option<Pid> {
    Some(Pid::from_raw(stat_fields(pid)?.split_whitespace().nth(1)?.parse().ok()?))
}

/// /proc/PID/stat behind the command name, which may itself hold spaces and parentheses.
fn stat_fields(pid: Pid) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.to_owned())
}

fn all_pids() -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw)).collect()
}
