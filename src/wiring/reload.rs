//! Reading the configuration file again while the roles run.
//!
//! The file is parsed and checked whole, and what it names is opened, before anything changes; a file that is wrong
//! anywhere changes nothing. Of a good file the proxy's live keys take effect; every other key that changed is named.

use crate::config::{self, Config, RawConfig};
use anyhow::Result;
use prometheus::{IntGauge, Registry};
use proxy::{Control, Refused, Reloaded};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

/// Requests that wait for their turn.
const QUEUE: usize = 16;

/// One request to reload, and where its answer goes.
pub type Request = oneshot::Sender<Result<Reloaded, Refused>>;

/// A way to ask for a reload.
pub type Ask = mpsc::Sender<Request>;

/// Requests of the admin HTTP.
pub(super) fn queue() -> (Ask, mpsc::Receiver<Request>) {
    mpsc::channel(QUEUE)
}

/// A file from before an upgrade must not keep a process from starting.
pub(super) fn warn_of_removed(config: &Config) {
    for key in &config.removed {
        warn!(line = key.line, "{key}");
    }
}

/// What is in force, and where the next configuration comes from.
pub(super) struct Reloader {
    file: PathBuf,
    /// Every key of the file as it is in force.
    running: BTreeMap<String, Value>,
    proxy: Option<Control>,
    successful: IntGauge,
    success_at: IntGauge,
}

impl Reloader {
    /// For a process that was started with `raw`.
    pub(super) fn new(file: PathBuf, raw: &RawConfig, proxy: Option<Control>, registry: &Registry) -> Result<Self> {
        let gauge = |name: &str, help: &str| -> Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let successful = gauge(
            "pgtenure_admin_config_last_reload_successful",
            "Was the configuration read last a good one: 1 or 0",
        )?;
        let success_at = gauge(
            "pgtenure_admin_config_last_reload_success_timestamp_seconds",
            "When a good configuration was read last, seconds since 1970",
        )?;
        let reloader = Self { file, running: keys(raw), proxy, successful, success_at };
        reloader.show(true);
        Ok(reloader)
    }

    fn show(&self, successful: bool) {
        self.successful.set(i64::from(successful));
        if successful {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.success_at.set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Read the file and put it in force. Blocks for as long as files take to be read.
    pub(super) fn reload(&mut self, by: &'static str) -> Result<Reloaded, Refused> {
        // Called by the thread that waits for orders, and no role runs on that one.
        let outcome = self.apply();
        self.show(outcome.is_ok());
        match &outcome {
            Ok(done) => {
                let (applied, needs_restart) = (done.applied.join(" "), done.needs_restart.join(" "));
                info!(by, applied, needs_restart, "configuration reloaded");
            }
            Err(Refused(reasons)) => warn!(by, reasons = reasons.join("; "), "configuration not reloaded"),
        }
        outcome
    }

    fn apply(&mut self) -> Result<Reloaded, Refused> {
        let (raw, config) =
            config::load_raw(&self.file).map_err(|e| Refused(lines(&format!("{:#}", anyhow::Error::new(e)))))?;
        warn_of_removed(&config);
        let Config { proxy, .. } = config;
        let new = keys(&raw);
        let mut outcome = Reloaded::default();
        let all: std::collections::BTreeSet<&String> = self.running.keys().chain(new.keys()).collect();
        for key in all.into_iter().filter(|k| self.running.get(*k) != new.get(*k)) {
            let live = self.proxy.is_some() && proxy.is_some() && is_live(key);
            if live { &mut outcome.applied } else { &mut outcome.needs_restart }.push(key.clone());
        }
        // Also when no key has changed: the files that it names may have.
        if let (Some(running), Some(proxy)) = (&self.proxy, proxy) {
            running.reload(proxy)?;
        }
        for key in &outcome.applied {
            match new.get(key) {
                Some(value) => drop(self.running.insert(key.clone(), value.clone())),
                None => drop(self.running.remove(key)),
            }
        }
        Ok(outcome)
    }
}

/// Does this key take effect without a restart?
pub(crate) fn is_live(key: &str) -> bool {
    key.strip_prefix("proxy.").is_some_and(|key| !proxy::config::reload::needs_restart(key))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// Every key with its value, defaults included. No secret is ever part of a file.
fn keys(raw: &RawConfig) -> BTreeMap<String, Value> {
    fn collect(prefix: &str, value: Value, out: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let full = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                    collect(&full, value, out);
                }
            }
            value => drop(out.insert(prefix.to_owned(), value)),
        }
    }
    let mut out = BTreeMap::new();
    collect("", serde_json::to_value(raw).unwrap_or_default(), &mut out);
    out
}
