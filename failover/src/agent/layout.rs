//! Where an agent keeps what on disk, and how files are written so that they survive a crash.

use cluster::Term;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How the name of a data directory begins that was set aside.
const UNEXAMINED: &str = "data.unexamined-";

/// The directories of one agent. Everything is below `root`.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The agent's directory.
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// PGDATA.
    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// A data directory being made; worthless until renamed to [`Layout::data`].
    pub(crate) fn data_new(&self) -> PathBuf {
        self.root.join("data.new")
    }

    /// A data directory that was replaced and is being removed.
    pub(crate) fn data_old(&self) -> PathBuf {
        self.root.join("data.old")
    }

    /// Configuration: outside PGDATA, where pg_rewind cannot overwrite it.
    pub(crate) fn conf(&self) -> PathBuf {
        self.root.join("conf")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.conf().join("postgresql.conf")
    }

    /// Settings that change while PostgreSQL runs.
    pub(crate) fn dynamic_conf(&self) -> PathBuf {
        self.conf().join("dynamic.conf")
    }

    pub(crate) fn hba_file(&self) -> PathBuf {
        self.conf().join("pg_hba.conf")
    }

    pub(crate) fn ident_file(&self) -> PathBuf {
        self.conf().join("pg_ident.conf")
    }

    /// libpq's password file for `pgtenure_repl`, mode 0600.
    pub(crate) fn passfile(&self) -> PathBuf {
        self.conf().join("passfile")
    }

    /// Directory of the Unix socket, mode 0700.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.root.join("sock")
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Output of the postmaster before its log collector runs; overwritten at each start.
    pub(crate) fn start_log(&self) -> PathBuf {
        self.log_dir().join("start.log")
    }

    /// Saved tails of lost WAL.
    pub(crate) fn lost(&self) -> PathBuf {
        self.root.join("lost")
    }

    /// What the disk is tried with. In pg_wal when that is another file system than ours: PostgreSQL ignores it there.
    pub(crate) fn disk_probe(&self) -> PathBuf {
        let wal = self.data().join("pg_wal");
        let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
        let dir = if device(&wal).is_some_and(|d| Some(d) != device(&self.root)) { wal } else { self.root.clone() };
        dir.join("fsync.probe")
    }

    /// Where a data directory is moved whose WAL, which the change to `term` lost, could not be read as a whole.
    pub(crate) fn unexamined_of(&self, term: Term) -> PathBuf {
        self.root.join(format!("{UNEXAMINED}{term}"))
    }

    /// One that was.
    pub(crate) fn unexamined(&self) -> io::Result<Option<PathBuf>> {
        let entries = fs::read_dir(&self.root)?.flatten();
        let aside = entries.filter(|e| e.file_name().to_string_lossy().starts_with(UNEXAMINED));
        Ok(aside.map(|e| e.path()).min())
    }

    /// Promise and marks.
    pub(crate) fn memory(&self) -> PathBuf {
        self.root.join("agent.json")
    }

    /// Create what is missing, owner-only.
    pub(crate) fn create(&self) -> io::Result<()> {
        for dir in [self.root.clone(), self.conf(), self.socket_dir(), self.log_dir(), self.lost()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        }
        fsync_dir(&self.root)
    }

    /// There is a data directory that PostgreSQL could have run on.
    pub(crate) fn has_data(&self) -> bool {
        self.data().join("global/pg_control").exists()
    }
}

/// Make a directory's entries durable.
pub(crate) fn fsync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Replace `path` by `content` so that after a crash either the old or the new content is there, and after the return
/// the new one. Mode 0600.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, true)
}

/// Replace `path` by `content` atomically for readers, without waiting for the disk: for files that the agent writes
/// anew before each use.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, false)
}

fn replace(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    let tmp = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
    file.write_all(content)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&tmp, path)?;
    if durable { fsync_dir(dir) } else { Ok(()) }
}
