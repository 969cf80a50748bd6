//! A primary and its standby to measure against: trust everywhere, no fsync.

use crate::ports::free_port;
use crate::process::{DEADLINE, Running, postgres_program, run, unprivileged};
use crate::{PASSWORD, USER};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// pgbench's scale: a million accounts.
const SCALE: u32 = 10;
/// Rows and bytes of the table that is copied.
pub(crate) const COPY_ROWS: u64 = 1_000_000;

/// One server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) port: u16,
    data: PathBuf,
    child: Option<Running>,
}

/// Both, and a directory for whatever else is written.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) primary: Server,
    pub(crate) standby: Server,
    pub(crate) userlist: PathBuf,
    pub(crate) copy_bytes: u64,
    // Dropped last: the servers end first.
    pub(crate) scratch: tempfile::TempDir,
}

impl Cluster {
    /// `port` of the primary; 0 for any.
    pub(crate) fn start(port: u16) -> anyhow::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("pgtenure-bench").tempdir()?;
        if nix::unistd::Uid::effective().is_root() {
            run(Command::new("chown").arg("postgres").arg(scratch.path()))?;
        }
        let primary = Server::primary(scratch.path(), if port == 0 { free_port() } else { port })?;
        primary.sql(&format!("create role {USER} login superuser password '{PASSWORD}'"))?;
        primary.sql(&format!("create database {USER} owner {USER}"))?;
        run(primary.client("pgbench")?.args(["-i", "-q", "-s", &SCALE.to_string()]))?;
        primary.sql(&format!(
            "create unlogged table copied (a int, b text); create table source as select i as a, \
             left(repeat(md5(i::text), 3), 94) as b from generate_series(1, {COPY_ROWS}) i"
        ))?;
        primary.sql("vacuum analyze source")?;
        let data = scratch.path().join("copy.txt");
        std::fs::File::create(&data)?;
        run(primary.client("psql")?.args(["-X", "-q", "-c"]).arg(format!("\\copy source to '{}'", data.display())))?;
        let copy_bytes = data.metadata()?.len();
        let verifier = primary.sql(&format!("select rolpassword from pg_authid where rolname = '{USER}'"))?;
        let userlist = scratch.path().join("userlist.txt");
        std::fs::write(&userlist, format!("\"{USER}\" \"{}\"\n", verifier.trim()))?;
        crate::tls::write(&userlist)?;
        let standby = Server::standby(scratch.path(), &primary)?;
        Ok(Self { primary, standby, userlist, copy_bytes, scratch })
    }
}

impl Server {
    fn primary(scratch: &Path, port: u16) -> anyhow::Result<Self> {
        let data = scratch.join("primary");
        let mut initdb = unprivileged(&postgres_program("initdb")?)?;
        initdb.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
        run(&mut initdb)?;
        let settings = "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 400\n\
                        shared_buffers = 256MB\nfsync = off\nsynchronous_commit = off\nfull_page_writes = off\n\
                        max_wal_size = 4GB\nwal_level = replica\n";
        append(&data, settings)?;
        Self { port, data, child: None }.spawn()
    }

    fn standby(scratch: &Path, primary: &Self) -> anyhow::Result<Self> {
        let (data, port) = (scratch.join("standby"), free_port());
        let mut backup = unprivileged(&postgres_program("pg_basebackup")?)?;
        backup.args(["-h", "127.0.0.1", "-p", &primary.port.to_string(), "-U", "postgres", "-c", "fast", "-R"]);
        run(backup.args(["--no-sync", "-D"]).arg(&data))?;
        Self { port, data, child: None }.spawn()
    }

    fn spawn(mut self) -> anyhow::Result<Self> {
        append(&self.data, &format!("port = {}\n", self.port))?;
        let mut command = unprivileged(&postgres_program("postgres")?)?;
        command.arg("-D").arg(&self.data).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(Running(command.spawn().context("postgres")?));
        let started = Instant::now();
        while let Err(error) = self.sql("select 1") {
            if started.elapsed() > DEADLINE {
                bail!("PostgreSQL does not answer: {error:#}");
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(self)
    }

    /// A client program before this server.
    fn client(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(postgres_program(program)?);
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string()).env("PGUSER", USER);
        command.env("PGDATABASE", USER).current_dir("/");
        Ok(command)
    }

    /// Run SQL as the superuser, in the application's database once it exists.
    pub(crate) fn sql(&self, sql: &str) -> anyhow::Result<String> {
        let mut psql = self.client("psql")?;
        let early = sql == "select 1" || sql.starts_with("create role") || sql.starts_with("create database");
        psql.env("PGUSER", "postgres").env("PGDATABASE", if early { "postgres" } else { USER });
        let output = run(psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// Children of the postmaster end with it, as they share its memory; `kill` alone would leave them a while.
impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = nix::unistd::Pid::from_raw(child.0.id().cast_signed());
        // Immediate shutdown: the data is thrown away.
        if nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).is_ok() {
            let _ = child.0.wait();
        }
    }
}

fn append(data: &Path, text: &str) -> anyhow::Result<()> {
    let path = data.join("postgresql.conf");
    let old = std::fs::read_to_string(&path)?;
    Ok(std::fs::write(&path, old + text)?)
}
