//! PostgreSQL's programs, and a PostgreSQL's processes as found from its data directory.

use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The directory of PostgreSQL's server programs: `PGTENURE_TEST_PG_BIN`, or the newest major under
/// /usr/lib/postgresql.
///
/// # Panics
/// When there is none.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("PGTENURE_TEST_PG_BIN") {
        return dir.into();
    }
    let majors = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let numbered = majors.filter_map(|d| Some((d.file_name().to_str()?.parse::<u32>().ok()?, d.path().join("bin"))));
    let newest = numbered.filter(|(_, bin)| bin.join("postgres").exists()).max();
    newest.expect("PostgreSQL's server is installed under /usr/lib/postgresql (Debian package postgresql)").1
}

/// A client program (psql, pgbench) of that PostgreSQL.
pub fn client_program(name: &str) -> Command {
    let mut command = Command::new(bin_dir().join(name));
    // Nothing of the caller's environment decides where it connects.
    for key in ["PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGOPTIONS"] {
        command.env_remove(key);
    }
    command.current_dir("/");
    command
}

/// The postmaster that runs on `data_dir`, if one does.
pub fn postmaster(data_dir: &Path) -> Option<Pid> {
    let file = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid = Pid::from_raw(file.lines().next()?.trim().parse().ok()?);
    // A pid file survives kill -9, and the number may have been given to another process since.
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (crate::process::alive(pid) && cwd == data_dir).then_some(pid)
}

/// What a program printed, and whether it went well, for a failure message.
pub fn describe(output: &Output) -> String {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    format!("{}\nstdout: {}\nstderr: {}", output.status, text(&output.stdout), text(&output.stderr))
}
