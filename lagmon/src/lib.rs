//! The lag monitor: how far behind each standby is, in bytes and in time, by one clock.
//!
//! Every node is asked for its position at `probe_interval`; [`model`] (PURE) makes lag of the answers without
//! comparing two hosts' clocks and without writing anything. The result goes to the proxy by a watch channel, to
//! Prometheus and to people.

pub mod config;
pub mod http;
mod metrics;
pub mod model;
mod probe;
pub mod publish;
mod query;

use cluster::Clock;
use cluster::lag::LagSnapshot;
use cluster::secret::Secret;
use cluster::topology::Topology;
use config::{Config, PasswordFrom};
use model::history::History;
use prometheus::Registry;
use publish::{Published, Publisher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// Reports waiting for the model. Probes wait when it is full, so that none is lost.
const REPORTS: usize = 64;

/// Why lagmon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The password file cannot be read.
    #[error("cannot read lagmon.monitor_password_file {}", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The environment variable is not set, or not text.
    #[error("lagmon.monitor_password_env: the variable {variable} is not set")]
    PasswordEnv {
        /// The variable's name.
        variable: String,
    },
    /// Another lagmon runs in this process.
    #[error("cannot register lagmon's metrics")]
    Metrics(#[from] prometheus::Error),
}

/// A running lag monitor. It stops when this is dropped; receivers keep the last value.
#[derive(Debug)]
pub struct Handle {
    lag: watch::Receiver<Arc<LagSnapshot>>,
    published: watch::Receiver<Arc<Published>>,
    history: Arc<Mutex<History>>,
    task: AbortHandle,
}

impl Handle {
    /// What the proxy routes by.
    pub fn lag(&self) -> watch::Receiver<Arc<LagSnapshot>> {
        self.lag.clone()
    }

    /// Everything known, as last published.
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published.borrow())
    }

    /// Everything known, as JSON for `/lag` and `/status`.
    pub fn status(&self) -> serde_json::Value {
        http::lag(&self.published(), Clock.now())
    }

    /// Answers `/lag/history`: the recent past of every standby, as JSON.
    pub fn history(&self) -> impl Fn() -> serde_json::Value + Send + Sync + use<> {
        let history = Arc::clone(&self.history);
        move || http::history(&history.lock().expect("no code panics while it holds this lock"), Clock.now())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Start probing the nodes of `topology`, whichever they are. Needs a tokio runtime.
///
/// # Errors
/// When the password cannot be had, or `registry` already has lagmon's metrics.
pub fn start(config: Config, topology: watch::Receiver<Topology>, registry: &Registry) -> Result<Handle, StartError> {
    let password = password(&config.password)?;
    let (term_out, term) = watch::channel(topology.borrow().term);
    let (reports_out, reports) = mpsc::channel(REPORTS);
    let (lag_out, lag) = watch::channel(Arc::default());
    let (published_out, published) = watch::channel(Arc::default());
    let metrics = metrics::Probes::new(registry)?;
    metrics::Lags::register(registry, published.clone())?;
    let prober = probe::Prober { config: Arc::new(config), password, term, reports: reports_out, metrics };
    let history = Arc::default();
    let publisher = Publisher {
        prober,
        term: term_out,
        reports,
        topology,
        lag: lag_out,
        published: published_out,
        history: Arc::clone(&history),
    };
    let task = tokio::spawn(publisher.run()).abort_handle();
    Ok(Handle { lag, published, history, task })
}

fn password(from: &PasswordFrom) -> Result<Option<Secret>, StartError> {
    let text = match from {
        PasswordFrom::Nowhere => return Ok(None),
        PasswordFrom::Env(variable) => {
            std::env::var(variable).map_err(|_| StartError::PasswordEnv { variable: variable.clone() })?
        }
        PasswordFrom::File(path) => {
            std::fs::read_to_string(path).map_err(|source| StartError::PasswordFile { path: path.clone(), source })?
        }
    };
    Ok(Some(Secret::new(text.lines().next().unwrap_or_default())))
}
