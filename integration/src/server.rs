//! A PostgreSQL of a test: started until it is ready, killed with every process of it.
//!
//! Two things end a server that is only just started, and neither is what a test is about: a process of its predecessor
//! that was killed and has not gone yet (`pre-existing shared memory block is still in use`), and somebody on its port.
//! So a killed server is gone when [`Server::kill`] returns, and one that ends before it was ready is started again.
//!
//! The tests of other crates include this file by its path: it uses `std` and `nix`.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a server to start or to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Before the next try.
const PAUSE: Duration = Duration::from_millis(100);

/// A running server. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    data: PathBuf,
    child: Child,
}

impl Server {
    /// Start what `command` says on the data directory `data`, its output appended to the file `log`, and wait until it
    /// accepts connections. A pid file that a kill left behind is removed: its number may be another process's by now.
    ///
    /// # Panics
    /// When it is not ready in time, with the end of its log.
    pub(crate) fn start(data: &Path, log: &Path, mut command: impl FnMut() -> Command) -> Self {
        let begun = Instant::now();
        loop {
            let _ = std::fs::remove_file(data.join("postmaster.pid"));
            let out = File::options().create(true).append(true).open(log).expect("the log can be written");
            let mut postgres = command();
            postgres.stdin(Stdio::null()).stdout(out.try_clone().expect("a file")).stderr(out);
            let child = postgres.spawn().expect("postgres can be started");
            let mut server = Self { data: data.to_owned(), child };
            while server.child.try_wait().expect("our child").is_none() {
                if server.is_ready() {
                    assert!(server.shares_in_its_directory(), "what it shares would stay in /dev/shm: see segment.rs");
                    return server;
                }
                assert!(begun.elapsed() < PATIENCE, "not ready within {PATIENCE:?}: {}", end_of(log));
                std::thread::sleep(LOOK_EVERY);
            }
            assert!(begun.elapsed() < PATIENCE, "it ends whenever it is started: {}", end_of(log));
            std::thread::sleep(PAUSE);
        }
    }

    /// Its postmaster.
    #[allow(dead_code, reason = "only some of the tests signal it")]
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What the postmaster itself notes for `pg_ctl`, in the eighth line of its pid file.
    fn is_ready(&self) -> bool {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let line = |i: usize| text.lines().nth(i).map(str::trim);
        line(0) == Some(&self.child.id().to_string()) && line(7) == Some("ready")
    }

    /// Nothing that it shares is where it would stay behind a kill.
    fn shares_in_its_directory(&self) -> bool {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap_or_default();
        !maps.contains("/dev/shm/PostgreSQL.")
    }

    /// `kill -9` of the postmaster and of every process of it, as when the host dies, until none is left.
    ///
    /// # Panics
    /// When one stays.
    pub(crate) fn kill(&mut self) {
        let begun = Instant::now();
        let _ = self.child.kill();
        loop {
            // Looked at first: once it has ended it starts no further ones.
            let ended = self.child.try_wait().expect("our child").is_some();
            let left = working_in(&self.data);
            left.iter().for_each(|pid| _ = kill(*pid, Signal::SIGKILL));
            if ended && left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{left:?} do not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes whose working directory is `dir`, as that of all processes of a PostgreSQL is its data directory.
/// One that has given back its memory and its sockets has none any more.
pub(crate) fn working_in(dir: &Path) -> Vec<Pid> {
    let Ok(dir) = dir.canonicalize() else { return Vec::new() };
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let there = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir);
    pids.filter(there).map(Pid::from_raw).collect()
}

fn end_of(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
