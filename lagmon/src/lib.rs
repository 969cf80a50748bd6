//! The lag monitor: how far behind each standby is, in bytes and in time, by one clock.
//!
//! Every node is asked for its position at `probe_interval`; [`model`] (PURE) makes lag of the answers without
//! comparing two hosts' clocks and without writing anything. The result goes to the proxy by a watch channel, to
//! Prometheus and to people.

pub mod config;
mod demand;
mod guarded;
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
use demand::{Demand, Rounds};
use model::history::History;
use probe::{Asked, InForce};
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
    demand: Arc<Demand>,
    tasks: [AbortHandle; 2],
}

impl Handle {
    /// What the proxy routes by.
    pub fn lag(&self) -> watch::Receiver<Arc<LagSnapshot>> {
        self.lag.clone()
    }

    /// Asks for a sample of every node now, for somebody who waits for one. Any thread may call it, as often as it likes.
    pub fn ask(&self) -> impl Fn() + Send + Sync + use<> {
        let demand = Arc::clone(&self.demand);
        move || demand.ask()
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
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Start probing the nodes of `topology`, whichever they are. Needs a tokio runtime.
///
/// # Errors
/// When the password cannot be had, or `registry` already has lagmon's metrics.
pub fn start(config: Config, topology: watch::Receiver<Topology>, registry: &Registry) -> Result<Handle, StartError> {
    let password = password(&config.password)?;
    let (in_force_out, in_force) = watch::channel(InForce::of(&topology.borrow()));
    let (reports_out, reports) = mpsc::channel(REPORTS);
    let (lag_out, lag) = watch::channel(Arc::default());
    let (published_out, published) = watch::channel(Arc::default());
    let metrics = metrics::Probes::new(registry)?;
    metrics::Lags::register(registry, published.clone())?;
    let (demand, gap, counter) = (Arc::<Demand>::default(), config.demand_gap, metrics.rounds.clone());
    let ((primary, asked_primary), (standbys, asked_standbys)) = (watch::channel(()), watch::channel(()));
    let rounds = Rounds { demand: Arc::clone(&demand), primary, standbys, lag: lag.clone(), gap, counter };
    let prober = probe::Prober {
        config: Arc::new(config),
        password,
        in_force,
        asked: Asked { primary: asked_primary, standbys: asked_standbys },
        reports: reports_out,
        metrics,
    };
    let history = Arc::default();
    let publisher = Publisher {
        prober,
        in_force: in_force_out,
        reports,
        topology,
        lag: lag_out,
        published: published_out,
        history: Arc::clone(&history),
    };
    let publishing = tokio::spawn(publisher.run()).abort_handle();
    let asking = tokio::spawn(rounds.run()).abort_handle();
    Ok(Handle { lag, published, history, demand, tasks: [publishing, asking] })
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
    Ok(Some(Secret::first_line(&text)))
}
