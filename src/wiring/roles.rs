//! The roles themselves: starts each, keeps what it shows, and stops them in an order in which none misses another.

use crate::admin::{Part, Routes};
use crate::config::{Config, Role};
use anyhow::{Context, Result, bail};
use cluster::keys::Keys;
use failover::store::Store;
use failover::store::etcd::EtcdStore;
use failover::view::{self, Purpose, Times, View};
use prometheus::Registry;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// How often a role's page is renewed.
const SHOW_EVERY: Duration = Duration::from_millis(250);

/// What a role shows of itself.
#[derive(Clone, Debug)]
struct Shown {
    ready: Result<(), String>,
    state: Value,
}

impl Default for Shown {
    fn default() -> Self {
        Self { ready: Err("starting".to_owned()), state: Value::Null }
    }
}

/// A role as the admin listener sees it.
struct Page {
    role: Role,
    shown: watch::Receiver<Shown>,
}

impl Part for Page {
    fn name(&self) -> &'static str {
        self.role.as_str()
    }

    fn ready(&self) -> Result<(), String> {
        self.shown.borrow().ready.clone()
    }

    fn status(&self) -> Value {
        self.shown.borrow().state.clone()
    }
}

/// A role that ended, and why if nobody asked it to.
struct Ended {
    role: Role,
    by_itself: Option<String>,
}

/// The roles that run.
#[derive(Default)]
pub(super) struct Running {
    tasks: JoinSet<Ended>,
    stops: BTreeMap<Role, oneshot::Sender<Duration>>,
    pages: BTreeMap<Role, watch::Receiver<Shown>>,
    routes: Option<Arc<dyn Routes>>,
    /// Kept for as long as anything follows it.
    _view: Option<View>,
}

/// Start every role asked for.
pub(super) async fn start(config: &Config, registry: &Registry) -> Result<Running> {
    let mut running = Running::default();
    let etcd = EtcdStore::new(&config.etcd).context("cannot use etcd")?;
    let versions = etcd.clone();
    tokio::spawn(async move { versions.check_versions().await });
    let store: Arc<dyn Store> = Arc::new(etcd);
    let keys = Keys::new(&config.etcd.prefix, &config.name);
    for role in &config.roles {
        bail!("the role {role} is not part of this build");
    }
    if config.roles.contains(&Role::Proxy) || config.roles.contains(&Role::Lagmon) {
        let purpose = if config.roles.contains(&Role::Proxy) { Purpose::Proxy } else { Purpose::Observe };
        running._view = Some(view::start(store, keys, Times::from(&config.etcd), purpose, registry)?);
    }
    Ok(running)
}

impl Running {
    /// Run `task` as `role` until it ends or is asked to.
    fn add<F>(&mut self, role: Role, task: impl FnOnce(watch::Sender<Shown>, oneshot::Receiver<Duration>) -> F)
    where
        F: Future<Output = Option<String>> + Send + 'static,
    {
        let (show, shown) = watch::channel(Shown::default());
        let (stop, asked) = oneshot::channel();
        let task = task(show, asked);
        self.tasks.spawn(async move { Ended { role, by_itself: task.await } });
        self.stops.insert(role, stop);
        self.pages.insert(role, shown);
    }

    /// One page per role.
    pub(super) fn parts(&self) -> Vec<Box<dyn Part>> {
        let page = |(role, shown): (&Role, &watch::Receiver<Shown>)| -> Box<dyn Part> {
            Box::new(Page { role: *role, shown: shown.clone() })
        };
        self.pages.iter().map(page).collect()
    }

    /// The managers' routes, if this is one.
    pub(super) fn routes(&self) -> Option<Arc<dyn Routes>> {
        self.routes.clone()
    }

    /// Ends when a role has ended without being asked to: which and why.
    pub(super) async fn ended(&mut self) -> String {
        match self.tasks.join_next().await {
            Some(Ok(ended)) => {
                format!("role {}: {}", ended.role, ended.by_itself.unwrap_or_else(|| "it ended".to_owned()))
            }
            Some(Err(error)) => format!("a role failed: {error}"),
            None => std::future::pending().await,
        }
    }

    /// Stop every role, one after the other: clients first, then who decides, then who drives PostgreSQL.
    pub(super) async fn stop(&mut self, bound: Duration) {
        for role in [Role::Proxy, Role::Lagmon, Role::Manager, Role::Agent] {
            let Some(stop) = self.stops.remove(&role) else { continue };
            if stop.send(bound).is_err() {
                continue;
            }
            while let Some(ended) = self.tasks.join_next().await {
                if ended.is_ok_and(|e| e.role == role) {
                    break;
                }
            }
        }
    }
}
