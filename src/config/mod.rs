//! The configuration file: one TOML file, the roles chosen in it, one section per crate or part.
//!
//! [`RawConfig`] holds what was typed, with each crate's own raw section; [`load`] checks every section that the roles
//! need and the relations between sections, and lists all problems at once. Secrets are never in the file: keys name
//! the files they are in, and they are read when a role starts.

mod parse;
pub mod process;
mod relations;
pub mod shape;

use cluster::config::BadSetting;
use cluster::secret::Secret;
use failover::config::{agent, cluster as cluster_section, etcd, manager};
use parse::{Parsed, Problem};
use process::{AdminConfig, AdminRaw, ProcessConfig, ProcessRaw};
use serde::{Deserialize, Serialize};
use shape::Shape;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// A part that a process can play. Any set of them in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts PostgreSQL clients.
    Proxy,
    /// Measures replay lag.
    Lagmon,
    /// Drives one PostgreSQL.
    Agent,
    /// Decides on failovers.
    Manager,
}

impl Role {
    /// The role as written in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Lagmon => "lagmon",
            Self::Agent => "agent",
            Self::Manager => "manager",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The file as typed. Each key is described in `configs/example.toml` and at its struct.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Which roles this process plays. No default.
    pub roles: Vec<Role>,
    /// The process itself.
    pub process: ProcessRaw,
    /// Its admin HTTP.
    pub admin: AdminRaw,
    /// What all parts of a cluster agree on.
    pub cluster: cluster_section::ClusterRaw,
    /// Where the cluster's records are.
    pub etcd: etcd::Raw,
    /// Role proxy.
    pub proxy: proxy::config::Raw,
    /// Role lagmon.
    pub lagmon: lagmon::config::Raw,
    /// Role agent.
    pub agent: agent::AgentRaw,
    /// Role agent, when it creates the cluster.
    pub bootstrap: agent::BootstrapRaw,
    /// Role manager.
    pub manager: manager::ManagerRaw,
}

/// The file, checked. A role's section is there exactly when the role is asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// Roles asked for, at least one.
    pub roles: BTreeSet<Role>,
    /// `[process]`.
    pub process: ProcessConfig,
    /// `[admin]`.
    pub admin: AdminConfig,
    /// `cluster.name`.
    pub name: String,
    /// `cluster.secret_file`, if set.
    pub secret_file: Option<PathBuf>,
    /// `[cluster]`, for agents and managers.
    pub cluster: Option<cluster_section::ClusterConfig>,
    /// `[etcd]`.
    pub etcd: etcd::Config,
    /// `[proxy]`.
    pub proxy: Option<proxy::config::Config>,
    /// `[lagmon]`.
    pub lagmon: Option<lagmon::config::Config>,
    /// `[agent]` with `[bootstrap]`.
    pub agent: Option<agent::AgentConfig>,
    /// `[manager]`.
    pub manager: Option<manager::ManagerSection>,
    /// Keys of the file that are no more: they are told of, and everybody goes on without.
    pub removed: Vec<Problem>,
}

/// A file that cannot be used. Its text has one line per problem.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("could not read configuration file {}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file was read and is wrong.
    #[error("{}", listed(file, problems))]
    Wrong {
        /// The file.
        file: PathBuf,
        /// Everything wrong with it, in the order of its lines.
        problems: Vec<Problem>,
    },
}

fn listed(file: &Path, problems: &[Problem]) -> String {
    let line = |p: &Problem| match p.line {
        Some(n) => format!("{}:{n}: {p}", file.display()),
        None => format!("{}: {p}", file.display()),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Read and check a file.
///
/// # Errors
/// It cannot be read, or everything that is wrong with it.
pub fn load(file: &Path) -> Result<Config, ConfigError> {
    load_raw(file).map(|(_, config)| config)
}

/// Read and check a file; what was typed is given too.
///
/// # Errors
/// As [`load`].
pub fn load_raw(file: &Path) -> Result<(RawConfig, Config), ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let etcd_password = std::env::var(etcd::PASSWORD_VARIABLE).ok().map(Secret::new);
    check_raw(&text, etcd_password).map_err(|problems| ConfigError::Wrong { file: file.to_owned(), problems })
}

/// Check the text of a file.
///
/// # Errors
/// Everything wrong with it, in the order of its lines.
pub fn check(text: &str, etcd_password: Option<Secret>) -> Result<Config, Vec<Problem>> {
    check_raw(text, etcd_password).map(|(_, config)| config)
}

fn check_raw(text: &str, etcd_password: Option<Secret>) -> Result<(RawConfig, Config), Vec<Problem>> {
    let mut parsed: Parsed<RawConfig> = parse::parse(text, &Shape::of::<RawConfig>());
    let unreadable = !parsed.problems.is_empty() && parsed.lines.is_empty();
    let config = if unreadable { None } else { sections(&mut parsed, etcd_password) };
    match config {
        Some(config) if parsed.problems.is_empty() => Ok((parsed.raw, config)),
        _ => {
            parsed.problems.append(&mut parsed.removed);
            parsed.problems.sort_by_key(|p| p.line.unwrap_or(usize::MAX));
            Err(parsed.problems)
        }
    }
}

/// Check every section; what is wrong is added to `parsed`.
fn sections(parsed: &mut Parsed<RawConfig>, etcd_password: Option<Secret>) -> Option<Config> {
    let raw = parsed.raw.clone();
    let roles: BTreeSet<Role> = raw.roles.iter().copied().collect();
    let plays = |role| roles.contains(&role);
    let commands = plays(Role::Agent) || plays(Role::Manager);
    let mut bad = Vec::new();
    if roles.is_empty() && !parsed.problems.iter().any(|p| p.text.starts_with("roles")) {
        bad.push(BadSetting::new("roles", "[]", "name at least one of proxy, lagmon, agent, manager"));
    }
    let process = keep(&mut bad, process::check_process(&raw.process));
    let admin = keep(&mut bad, process::check_admin(&raw.admin));
    let cluster = cluster_or_name(&raw.cluster, commands, &mut bad);
    let etcd = keep(&mut bad, etcd::check(raw.etcd.clone(), etcd_password));
    let proxy = plays(Role::Proxy).then(|| keep(&mut bad, proxy::config::check(raw.proxy.clone())));
    let lagmon = plays(Role::Lagmon).then(|| keep(&mut bad, lagmon::config::check(raw.lagmon.clone())));
    let agent = plays(Role::Agent).then(|| keep(&mut bad, agent::check(&raw.agent, &raw.bootstrap)));
    let manager = plays(Role::Manager).then(|| keep(&mut bad, manager::check(&raw.manager)));
    bad.extend(relations::check(&raw, &roles));
    parsed.add(bad);
    let secret_file = Some(raw.cluster.secret_file).filter(|f| !f.as_os_str().is_empty());
    Some(Config {
        process: process?,
        admin: admin?,
        name: raw.cluster.name,
        secret_file,
        cluster: cluster?,
        etcd: etcd?,
        proxy: present(proxy)?,
        lagmon: present(lagmon)?,
        agent: present(agent)?,
        manager: present(manager)?,
        removed: parsed.removed.clone(),
        roles,
    })
}

fn keep<T>(bad: &mut Vec<BadSetting>, result: Result<T, Vec<BadSetting>>) -> Option<T> {
    result.map_err(|found| bad.extend(found)).ok()
}

/// A section that was not asked for is fine; one that was asked for must have passed.
fn present<T>(section: Option<Option<T>>) -> Option<Option<T>> {
    section.map_or(Some(None), |checked| checked.map(Some))
}

/// Agents and managers need the whole section; a proxy or lagmon only the name that is part of every key in etcd.
fn cluster_or_name(
    raw: &cluster_section::ClusterRaw,
    commands: bool,
    bad: &mut Vec<BadSetting>,
) -> Option<Option<cluster_section::ClusterConfig>> {
    match cluster_section::check(raw) {
        Ok(cluster) => Some(Some(cluster).filter(|_| commands)),
        Err(found) => {
            let found: Vec<_> = found.into_iter().filter(|b| commands || b.key == "cluster.name").collect();
            let passed = found.is_empty();
            bad.extend(found);
            passed.then_some(None)
        }
    }
}

/// The first line of a file that holds a secret.
///
/// # Errors
/// It cannot be read, or its first line is empty.
pub fn read_secret(file: &Path) -> std::io::Result<Secret> {
    let text = std::fs::read_to_string(file)?;
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "its first line is empty"));
    }
    Ok(Secret::new(line))
}

#[cfg(test)]
mod tests;
