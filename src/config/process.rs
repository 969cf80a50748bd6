//! `[process]` and `[admin]`: what belongs to the process rather than to a role.

use crate::process::LogFormat;
use cluster::config::{BadSetting, Span};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// `[process]` as typed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessRaw {
    /// Unprivileged user to become when started by root. Default none: then the role agent is refused as root, because
    /// PostgreSQL refuses to run as root.
    pub user: Option<String>,
    /// `text` for people or `json` for collectors, on standard error. Default `text`.
    pub log_format: LogFormat,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, also per module as in `info,proxy=debug`. Default
    /// `info`: state changes, not sessions.
    pub log_level: String,
    /// How long roles may take to finish after SIGTERM or SIGINT; then the process ends anyway. Default `60s`: longer
    /// than a fast shutdown of PostgreSQL takes.
    pub drain_timeout: Span,
    /// Unix-domain socket at which the next process, started with `--takeover`, is given the listening sockets of this
    /// one. For processes with the roles proxy and lagmon only. Default none: a restart refuses clients for a moment.
    pub handover_socket: Option<PathBuf>,
}

impl Default for ProcessRaw {
    fn default() -> Self {
        Self {
            user: None,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
            drain_timeout: Span::secs(60),
            handover_socket: None,
        }
    }
}

/// `[admin]` as typed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminRaw {
    /// Where the admin HTTP listens. Default `127.0.0.1:7400`: loopback, because its pages need no secret to read.
    pub listen: String,
    /// `HOST:PORT` under which others reach it: managers publish it for the command line. Default none: `admin.listen`
    /// as it stands; needed when that is a wildcard address.
    pub advertise: Option<String>,
}

impl Default for AdminRaw {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7400".to_owned(), advertise: None }
    }
}

/// `[process]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessConfig {
    /// User to become when started by root.
    pub user: Option<String>,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Filter of the log.
    pub log_level: String,
    /// Bound on finishing.
    pub drain_timeout: Duration,
    /// Where the next process asks for the sockets.
    pub handover_socket: Option<PathBuf>,
}

/// `[admin]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// `HOST:PORT` for others.
    pub advertise: String,
}

/// Check `[process]`.
///
/// # Errors
/// Everything wrong with it.
pub fn check_process(raw: &ProcessRaw) -> Result<ProcessConfig, Vec<BadSetting>> {
    let mut bad = Vec::new();
    if raw.user.as_deref() == Some("") {
        bad.push(BadSetting::new("process.user", "\"\"", "expected the name of a user, or no such key"));
    }
    if let Err(e) = EnvFilter::try_new(&raw.log_level) {
        bad.push(BadSetting::new("process.log_level", format!("{:?}", raw.log_level), e.to_string()));
    }
    if raw.drain_timeout < Span::secs(1) {
        bad.push(BadSetting::new("process.drain_timeout", raw.drain_timeout, "must be at least 1s"));
    }
    if !bad.is_empty() {
        return Err(bad);
    }
    Ok(ProcessConfig {
        user: raw.user.clone(),
        log_format: raw.log_format,
        log_level: raw.log_level.clone(),
        drain_timeout: raw.drain_timeout.0,
        handover_socket: raw.handover_socket.clone(),
    })
}

/// Check `[admin]`.
///
/// # Errors
/// Everything wrong with it.
pub fn check_admin(raw: &AdminRaw) -> Result<AdminConfig, Vec<BadSetting>> {
    let quoted = |s: &str| format!("{s:?}");
    let listen: SocketAddr = raw.listen.parse().map_err(|_| {
        vec![BadSetting::new("admin.listen", quoted(&raw.listen), "expected ADDRESS:PORT, as in \"127.0.0.1:7400\"")]
    })?;
    let advertise = match &raw.advertise {
        Some(at) if at.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok()) => at.clone(),
        Some(at) => return Err(vec![BadSetting::new("admin.advertise", quoted(at), "expected HOST:PORT")]),
        None if listen.ip().is_unspecified() => {
            let problem = "is a wildcard address: set admin.advertise to what others reach it by";
            return Err(vec![BadSetting::new("admin.listen", quoted(&raw.listen), problem)]);
        }
        None => listen.to_string(),
    };
    Ok(AdminConfig { listen, advertise })
}
