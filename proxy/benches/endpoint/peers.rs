//! What is compared: PostgreSQL itself, the relay, the proxy, PgBouncer, and one more when it is given.

use crate::ports::free_port;
use crate::postgres::Cluster;
use crate::process::{DEADLINE, Running, postgres_program, unprivileged};
use crate::{PASSWORD, USER};
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a peer is, where that decides what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Relay,
    Ours,
    /// The proxy with all reads sent to the primary.
    Unrouted,
    /// The proxy that asks the primary for its position behind each write.
    Asking,
    PgBouncer,
    Given,
}

/// An endpoint to measure.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    name: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The process whose CPU is counted.
    pub(crate) pid: Option<u32>,
    /// Ends with this.
    _child: Option<Running>,
}

impl Peer {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn direct(cluster: &Cluster) -> Self {
        let (host, port) = ("127.0.0.1".to_owned(), cluster.primary.port);
        Self { kind: Kind::Direct, name: "direct".to_owned(), host, port, pid: None, _child: None }
    }

    pub(crate) fn relay(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::spawn(
            &std::env::current_exe()?,
            Kind::Relay,
            "relay",
            &["--relay".to_owned(), cluster.primary.port.to_string()],
        )
    }

    pub(crate) fn ours(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::proxy_of(&std::env::current_exe()?, Kind::Ours, "pgtenure", cluster)
    }

    pub(crate) fn unrouted(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::proxy_of(&std::env::current_exe()?, Kind::Unrouted, "routing off", cluster)
    }

    pub(crate) fn asking(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::proxy_of(&std::env::current_exe()?, Kind::Asking, "commit_lsn = ask", cluster)
    }

    /// The proxy of an older build of this program: `BENCH_BEFORE`.
    pub(crate) fn before(cluster: &Cluster) -> anyhow::Result<Option<Self>> {
        let Ok(program) = std::env::var("BENCH_BEFORE") else { return Ok(None) };
        Self::proxy_of(Path::new(&program), Kind::Ours, "pgtenure before", cluster).map(Some)
    }

    fn proxy_of(program: &Path, kind: Kind, name: &str, cluster: &Cluster) -> anyhow::Result<Self> {
        let (primary, standby) = (cluster.primary.port.to_string(), cluster.standby.port.to_string());
        let userlist = cluster.userlist.display().to_string();
        let role = match kind {
            Kind::Unrouted => "--unrouted",
            Kind::Asking => "--asking",
            Kind::Direct | Kind::Relay | Kind::Ours | Kind::PgBouncer | Kind::Given => "--ours",
        };
        Self::spawn(program, kind, name, &[role.to_owned(), primary, standby, userlist])
    }

    /// This program in another role, which prints its port and ends with its standard input.
    fn spawn(program: &Path, kind: Kind, name: &str, arguments: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Running(command.spawn()?);
        let output = child.0.stdout.take().context("it is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port = line.trim().parse().with_context(|| format!("{name} did not start"))?;
        let pid = Some(child.0.id());
        Ok(Self { kind, name: name.to_owned(), host: "127.0.0.1".to_owned(), port, pid, _child: Some(child) })
    }

    /// PgBouncer as installed, with the same pool size and no authentication.
    pub(crate) fn pgbouncer(cluster: &Cluster) -> anyhow::Result<Self> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
        let program = program.iter().map(Path::new).find(|p| p.exists()).context("not installed")?;
        let version = Command::new(program).arg("--version").output()?;
        let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
        let port = free_port();
        let users = cluster.scratch.path().join("pgbouncer-users.txt");
        std::fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
        let ini = cluster.scratch.path().join("pgbouncer.ini");
        std::fs::write(
            &ini,
            format!(
                "[databases]\n{USER} = host=127.0.0.1 port={} dbname={USER} user={USER}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = 20\nmax_client_conn = 20000\nlog_connections = 0\n\
             log_disconnections = 0\nstats_period = 600\nignore_startup_parameters = extra_float_digits\n",
                cluster.primary.port,
                users.display(),
            ),
        )?;
        let mut command = unprivileged(program)?;
        command.arg("-q").arg(&ini).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Running(command.spawn()?);
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if started.elapsed() > DEADLINE {
                bail!("{version} does not listen");
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let pid = Some(child.0.id());
        let host = "127.0.0.1".to_owned();
        Ok(Self { kind: Kind::PgBouncer, name: version.to_lowercase(), host, port, pid, _child: Some(child) })
    }

    /// `BENCH_PEER`.
    pub(crate) fn from_environment() -> anyhow::Result<Option<Self>> {
        let Ok(text) = std::env::var("BENCH_PEER") else { return Ok(None) };
        let words: Vec<&str> = text.split_whitespace().collect();
        let [name, address, pid] = words[..] else { bail!("BENCH_PEER is NAME HOST:PORT PID, not {text:?}") };
        let (host, port) = address.rsplit_once(':').context("BENCH_PEER needs HOST:PORT")?;
        let (port, pid) = (port.parse().context("BENCH_PEER's port")?, pid.parse().context("BENCH_PEER's pid")?);
        let (name, host) = (name.to_owned(), host.to_owned());
        Ok(Some(Self { kind: Kind::Given, name, host, port, pid: Some(pid), _child: None }))
    }

    /// A client program of PostgreSQL's before this endpoint. Without TLS, which libpq would turn on where it can.
    pub(crate) fn client(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(postgres_program(program)?);
        command.env("PGHOST", &self.host).env("PGPORT", self.port.to_string()).env("PGUSER", USER);
        command.env("PGDATABASE", USER).env("PGPASSWORD", PASSWORD).env("PGSSLMODE", "disable").current_dir("/");
        Ok(command)
    }
}
