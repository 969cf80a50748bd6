//! What does not change while an agent runs: configuration, directories, secrets, identity.

use super::StartError;
use super::layout::Layout;
use super::tool;
use crate::config::agent::AgentConfig;
use crate::config::cluster::ClusterConfig;
use cluster::Clock;
use cluster::keys::Keys;
use cluster::secret::Secret;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// The user that replicates and rewinds.
pub(crate) const REPLICATION_USER: &str = "pgtenure_repl";
/// The user that reads statistics.
pub(crate) const MONITOR_USER: &str = "pgtenure_monitor";

/// Everything fixed.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) config: AgentConfig,
    pub(crate) cluster: ClusterConfig,
    pub(crate) keys: Keys,
    pub(crate) layout: Layout,
    /// As `server_version_num`, e.g. 150018.
    pub(crate) version: u32,
    pub(crate) secret: Secret,
    pub(crate) replication_password: Secret,
    pub(crate) monitor_password: Secret,
    /// A random id of this agent process.
    pub(crate) holder: String,
    /// Boot id of this host.
    pub(crate) host: String,
    pub(crate) clock: Clock,
}

impl Env {
    /// Read secrets, find out PostgreSQL's version, make directories.
    pub(crate) async fn prepare(config: AgentConfig, cluster: ClusterConfig, keys: Keys) -> Result<Self, StartError> {
        if nix::unistd::geteuid().is_root() {
            return Err(StartError::Root);
        }
        let layout = Layout::new(&config.data_dir);
        layout.create().map_err(|source| StartError::Directory { path: config.data_dir.clone(), source })?;
        let postgres = config.bin_dir.join("postgres");
        let mut ask = Command::new(&postgres);
        ask.arg("--version");
        let text = tool::run(ask, Duration::from_secs(10)).await.map_err(StartError::Postgres)?.stdout;
        let version = version(&text).ok_or_else(|| StartError::Version { text: text.trim().to_owned() })?;
        if version < 130_000 {
            return Err(StartError::Version { text: text.trim().to_owned() });
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Ok(Self {
            secret: secret(&cluster.secret_file, 16)?,
            replication_password: secret(&config.replication_password_file, 1)?,
            monitor_password: secret(&config.monitor_password_file, 1)?,
            holder: format!("{:016x}", rand::random::<u64>()),
            clock: Clock,
            config,
            cluster,
            keys,
            layout,
            version,
            host,
        })
    }

    /// One of PostgreSQL's programs. What runs in a server can read the environment it was started with, which needs none of
    /// the secrets in ours.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.config.bin_dir.join(name));
        own_variables().for_each(|name| _ = command.env_remove(name));
        command
    }

    /// Is this node a voter of the configuration?
    pub(crate) fn is_voter(&self) -> bool {
        self.cluster.voters.contains(&self.config.node)
    }
}

/// The variables of the environment that are meant for us.
pub(crate) fn own_variables() -> impl Iterator<Item = std::ffi::OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("PGTENURE_"))
}

/// The first line of a secret's file.
fn secret(path: &Path, at_least: usize) -> Result<Secret, StartError> {
    let text = std::fs::read_to_string(path).map_err(|source| StartError::Secret { path: path.to_owned(), source })?;
    let secret = Secret::first_line(&text);
    if secret.expose().len() < at_least {
        return Err(StartError::ShortSecret { path: path.to_owned(), at_least });
    }
    Ok(secret)
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` as 150018; development versions count as their `.0`.
fn version(text: &str) -> Option<u32> {
    let number = text.split("(PostgreSQL) ").nth(1)?.split_whitespace().next()?;
    let digits = |s: &str| s.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    Some(digits(major)? * 10_000 + digits(minor).unwrap_or(0))
}

/// A value inside single quotes of a configuration file or conninfo.
pub(crate) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// An SQL string literal, whatever `standard_conforming_strings` says.
pub(crate) fn literal(value: &str) -> String {
    format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// An SQL identifier.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_majors_are_read() {
        assert_eq!(version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(150_018));
        assert_eq!(version("postgres (PostgreSQL) 18.4\n"), Some(180_004));
        assert_eq!(version("postgres (PostgreSQL) 19devel\n"), Some(190_000));
        assert_eq!(version("etcd 3"), None);
    }

    #[test]
    fn quotes_cannot_be_broken_out_of() {
        assert_eq!(quoted(r"a'b\"), r"'a\'b\\'");
        assert_eq!(literal(r"a'b\"), r"E'a''b\\'");
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
    }
}
