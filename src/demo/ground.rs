//! The ground a demo stands on: its scratch directory, the user it runs as, and what an earlier run left behind.
//!
//! A process belongs to a demo when its environment carries [`MARK`] with this directory, or when its working
//! directory lies below it (PostgreSQL's processes overwrite their environment, but live in their data directory).
//! Nothing else is ever signalled.

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Environment variable that marks every process a demo starts; its value is the demo's directory.
pub const MARK: &str = "PGTENURE_DEMO_DIR";

/// The file that makes a directory ours: only such a directory is ever emptied.
const STAMP: &str = ".pgtenure-demo";

/// Longest directory that still leaves room for a Unix socket below it (sun_path holds 107 bytes).
const LONGEST_DIR: usize = 64;

/// A scratch directory held by this process alone.
pub struct Ground {
    /// Absolute path.
    pub dir: PathBuf,
    /// Whom the demo's processes run as when it was started by root.
    pub user: Option<User>,
    _lock: Flock<File>,
}

impl Ground {
    /// Take the directory: lock it, end what a killed demo left running there, and empty it.
    ///
    /// # Errors
    /// One line for people: not writable, not ours, too long, or another demo lives in it.
    pub fn take(dir: &Path) -> Result<Self> {
        let user = unprivileged_user()?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create the directory {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot resolve {}", dir.display()))?;
        if dir.as_os_str().len() > LONGEST_DIR {
            bail!(
                "{} is too long for Unix sockets below it: choose a --dir of at most {LONGEST_DIR} bytes",
                dir.display()
            );
        }
        let ours = dir.join(STAMP);
        let empty = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?.next().is_none();
        if !empty && !ours.exists() {
            bail!("{} is not empty and was not made by a demo: choose another --dir", dir.display());
        }
        let lock = lock(&ours).with_context(|| format!("cannot write in {}", dir.display()))?;
        let Some(lock) = lock else { bail!("another demo is running in {}", dir.display()) };
        end_processes(&dir, Duration::from_secs(3));
        empty_out(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot write in {}", dir.display()))?;
        Ok(Self { dir, user, _lock: lock })
    }

    /// Create a directory that the demo's user owns and nobody else reads.
    pub fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        self.give(&path)?;
        Ok(path)
    }

    /// Write a file that only the demo's user reads.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        self.give(&path)?;
        Ok(path)
    }

    /// A copy of the running program that the demo's user may execute: the original may lie in root's home.
    pub fn copy_program(&self) -> Result<PathBuf> {
        let path = self.dir.join("pgtenure");
        fs::copy("/proc/self/exe", &path).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    fn give(&self, path: &Path) -> Result<()> {
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .with_context(|| format!("cannot give {} to {}", path.display(), user.name))?;
        }
        Ok(())
    }
}

/// `None`: somebody else holds it.
fn lock(stamp: &Path) -> std::io::Result<Option<Flock<File>>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(stamp)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e.into()),
    }
}

/// Root's PostgreSQL would refuse to start: use `postgres`, which Debian's package creates, else `nobody`.
fn unprivileged_user() -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).with_context(|| format!("cannot look up the user {name}"))? {
            return Ok(Some(user));
        }
    }
    bail!("started as root, but neither the user postgres nor nobody exists to run as")
}

fn empty_out(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == STAMP {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

/// Processes that belong to the demo in `dir`, this one excepted.
pub fn processes(dir: &Path) -> Vec<Pid> {
    let mark = [MARK.as_bytes(), b"=", dir.as_os_str().as_encoded_bytes()].concat();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbers.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != std::process::id().cast_signed())
        .filter(|pid| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            cwd.is_ok_and(|c| c.starts_with(dir)) || env.split(|b| *b == 0).any(|v| v == mark)
        })
        .map(Pid::from_raw)
        .collect()
}

/// End every process of the demo in `dir`: SIGTERM to begin with, SIGKILL after `grace`. True when none is left.
///
/// PostgreSQL takes SIGTERM as "smart" shutdown, which waits for clients that are being ended too; backends take it
/// as "stop now", so the tree falls within the grace or is killed.
pub fn end_processes(dir: &Path, grace: Duration) -> bool {
    let start = Instant::now();
    let mut told = false;
    loop {
        let left = processes(dir);
        if left.is_empty() {
            return true;
        }
        let spent = start.elapsed();
        let signal = if spent < grace { Signal::SIGTERM } else { Signal::SIGKILL };
        if !told || signal == Signal::SIGKILL {
            for pid in left {
                // A stopped process acts on SIGTERM only after SIGCONT. Errors mean it is gone already.
                let _ = kill(pid, signal);
                let _ = kill(pid, Signal::SIGCONT);
            }
            told = true;
        }
        if spent > grace + Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
