//! Scratch directories, and the certainty that nothing started in one outlives its test.
//!
//! A small guard process waits on a pipe that only this test process holds. When the pipe closes, for whatever reason
//! (the directory is dropped, the test panics, the test process is killed with -9), the guard kills every process
//! whose working directory lies inside, removes the shared memory that a PostgreSQL killed so leaves behind (see
//! `segment`), and then removes the directory. Everything the harness starts runs with its
//! working directory inside; PostgreSQL always does (its data directory).

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the guard runs; `$1` is the directory, `$2` the name of the file that says "keep the files".
const GUARD: &str = r#"
while read -r _; do :; done
for round in 1 2 3 4 5; do
  found=0
  for p in /proc/[0-9]*; do
    cwd=$(readlink "$p/cwd" 2>/dev/null) || continue
    case "$cwd" in "$1"|"$1"/*) kill -CONT "${p#/proc/}" 2>/dev/null; kill -KILL "${p#/proc/}" 2>/dev/null; found=1;; esac
  done
  [ "$found" = 0 ] && break
  sleep 0.2
done
for pid in $(find "$1" -name postmaster.pid 2>/dev/null); do
  id=$(awk 'NR == 7 { print $2 }' "$pid")
  awk -v id="$id" '$2 == id && $7 == 0 { exit 1 }' /proc/sysvipc/shm || ipcrm -m "$id"
done
[ -e "$1/$2" ] || rm -rf "$1"
"#;

const KEEP: &str = "KEEP";

/// A directory under the system's temporary directory, short enough for Unix sockets, owned by the user that
/// PostgreSQL will run as.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    guard: Child,
}

impl Scratch {
    /// Make one.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pgt").rand_bytes(5).tempdir().expect("a scratch directory");
        let path = dir.keep().canonicalize().expect("the scratch directory exists");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("our own directory");
        crate::process::give_to_postgres(&path);
        let guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "pgtenure-test-guard"])
            .arg(&path)
            .arg(KEEP)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Not in the terminal's process group: Ctrl-C ends the test, and then the guard does its work.
            .process_group(0)
            .spawn()
            .expect("/bin/sh starts");
        Self { path, guard }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A subdirectory of that name, made if missing, owned like the directory itself.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).expect("a directory in our scratch directory");
        crate::process::give_to_postgres(&path);
        path
    }

    /// A file of that name with that content and mode 0600, owned like the directory.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, content).expect("a file in our scratch directory");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
        crate::process::give_to_postgres(&path);
        path
    }

    /// Leave the files when the test ends (processes are killed all the same), for a person to read.
    pub fn keep_files(&self) {
        let _ = std::fs::write(self.path.join(KEEP), "");
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("PGTENURE_TEST_KEEP").is_some() {
            self.keep_files();
            eprintln!("files kept in {}", self.path.display());
        }
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
