//! PostgreSQL's programs, a PostgreSQL's processes as found from its data directory, and a single PostgreSQL of our
//! own for tests that need no cluster.

use crate::client::{Client, Target};
use crate::ports::free_port;
use crate::process::unprivileged;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::template;
use crate::wait::wait_for;
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

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

/// A PostgreSQL outside any cluster.
#[derive(Debug)]
pub struct Postgres {
    target: Target,
    server: Server,
}

impl Postgres {
    /// Make and start one in `scratch`, its superuser `app` logging in by SCRAM.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(scratch: &Scratch) -> Self {
        let (data, log) = (scratch.path().join("single"), scratch.dir("log").join("single.log"));
        let password = scratch.file("single.password", "a password\n");
        let (program, arguments) = (bin_dir().join("initdb"), ["-U", "app", "-E", "UTF8", "--locale=C", "-N"]);
        template::data_dir(&data, &program, &arguments, || {
            let mut initdb = unprivileged(&program);
            initdb.args(arguments).args(["-A", "scram-sha-256", "--pwfile"]).arg(password);
            let output = initdb.arg("-D").arg(&data).current_dir(scratch.path()).output().expect("initdb starts");
            assert!(output.status.success(), "initdb: {}", describe(&output));
        });
        let port = free_port();
        let server = Server::start(&data, &log, || {
            let mut postgres = unprivileged(bin_dir().join("postgres"));
            postgres.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "fsync=off"]).current_dir(&data);
            postgres.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
            postgres.args(["-c", "dynamic_shared_memory_type=mmap"]);
            postgres
        });
        let target = Target {
            addr: ([127, 0, 0, 1], port).into(),
            user: "app".to_owned(),
            password: "a password".to_owned(),
            database: "postgres".to_owned(),
            patience: Duration::from_secs(20),
        };
        wait_for("the single PostgreSQL to accept a login", Duration::from_secs(60), || {
            Client::connect(&target).map(|_| ()).map_err(|e| e.to_string())
        });
        Self { target, server }
    }

    /// How to log in.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its postmaster.
    pub fn pid(&self) -> Pid {
        self.server.pid()
    }
}
