//! The roles themselves: starts each, keeps what it shows, and stops them in an order in which none misses another.

use crate::admin::{LagHistory, Part, RouteFuture, Routes};
use crate::config::{self, Config, Role};
use anyhow::{Context, Result};
use cluster::Clock;
use cluster::keys::Keys;
use cluster::topology::{Closed, Gate, Topology};
use failover::agent::{self, AgentHandle};
use failover::fsm::blocker::Verdict;
use failover::fsm::status::Status;
use failover::http::ManagerRoutes;
use failover::manager::{self, ManagerConfig, ManagerHandle};
use failover::store::Store;
use failover::store::etcd::{Avoid, EtcdStore};
use failover::view::register::Registration;
use failover::view::{self, Purpose, Times, View};
use prometheus::{IntGaugeVec, Opts, Registry};
use proxy::inherit::Inherited;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
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
    /// The recent past of the standbys, for the admin HTTP.
    pub(super) lag_history: Option<LagHistory>,
    /// The proxy, to be changed while it runs.
    pub(super) proxy: Option<proxy::Control>,
    /// What operators at the proxy's console ask of the process.
    pub(super) orders: Option<mpsc::Receiver<proxy::ProcessOrder>>,
    /// Reads etcd for as long as it is here.
    view: Option<View>,
}

/// Start every role asked for.
pub(super) async fn start(config: &Config, registry: &Registry, inherited: Option<Inherited>) -> Result<Running> {
    let etcd = EtcdStore::new(&config.etcd).context("cannot use etcd")?;
    let about = "1 where this member's version has known lease bugs (fixed in etcd 3.4.38, 3.5.23, 3.6.5)";
    let outdated = of_members(registry, "pgtenure_failover_etcd_outdated", about)?;
    let about =
        "1 where this member tells of an alarm: it is out of space, or its data differ, and etcd refuses writes";
    let (members, alarm) = (etcd.clone(), of_members(registry, "pgtenure_failover_etcd_alarm", about)?);
    let about = "Size of this member's database, which --quota-backend-bytes limits; the default of that is 2 GiB";
    let bytes = of_members(registry, "pgtenure_failover_etcd_database_bytes", about)?;
    tokio::spawn(async move { members.watch_members(&outdated, &alarm, &bytes).await });
    let store: Arc<dyn Store> = Arc::new(etcd.clone());
    let mut starting = Starting { config, registry, etcd, store, inherited, running: Running::default() };
    // Whoever can fail by itself, and is cheap to undo, comes first; PostgreSQL comes last.
    starting.manager()?;
    starting.lagmon_and_proxy()?;
    starting.agent().await?;
    Ok(starting.running)
}

fn of_members(registry: &Registry, name: &str, about: &str) -> Result<IntGaugeVec> {
    let gauge = IntGaugeVec::new(Opts::new(name, about), &["endpoint"])?;
    registry.register(Box::new(gauge.clone())).context("cannot show what etcd's members say")?;
    Ok(gauge)
}

/// What starting a role needs.
struct Starting<'a> {
    config: &'a Config,
    registry: &'a Registry,
    etcd: EtcdStore,
    store: Arc<dyn Store>,
    /// Sockets of the process before this one.
    inherited: Option<Inherited>,
    running: Running,
}

impl Starting<'_> {
    fn keys(&self) -> Keys {
        Keys::new(&self.config.etcd.prefix, &self.config.name)
    }

    /// One manager per cluster: they share the connections to etcd and nothing else.
    fn manager(&mut self) -> Result<()> {
        let Some(section) = self.config.manager.clone() else { return Ok(()) };
        let file = self.config.secret_file.as_deref().context("cluster.secret_file is not set")?;
        let read = |key: &str, file: &std::path::Path| {
            config::read_secret(file).with_context(|| format!("cannot read {key} {}", file.display()))
        };
        let mut clusters = vec![(self.config.name.clone(), self.keys(), read("cluster.secret_file", file)?)];
        for further in &section.further {
            let prefix = further.prefix.as_deref().unwrap_or(&self.config.etcd.prefix);
            let secret = match &further.secret_file {
                Some(own) => read("manager.clusters.secret_file", own)?,
                None => read("cluster.secret_file", file)?,
            };
            clusters.push((further.name.clone(), Keys::new(prefix, &further.name), secret));
        }
        let one_of_several = clusters.len() > 1;
        let (mut routes, mut managers) = (Vec::new(), Vec::new());
        for (cluster, keys, secret) in clusters {
            let what = format!("role manager, cluster {cluster}");
            let config = ManagerConfig {
                cluster: cluster.clone(),
                one_of_several,
                keys,
                section: section.clone(),
                secret,
                admin: self.config.admin.advertise.clone(),
                view_validity: self.config.etcd.view_validity,
            };
            let manager = manager::start(config, Arc::clone(&self.store), self.registry).context(what)?;
            routes.push((cluster, manager.routes()));
            managers.push(manager);
        }
        self.running.routes = Some(Arc::new(Mounted(routes)));
        let moved = section.move_etcd_leader.then(|| self.etcd.clone());
        self.running.add(Role::Manager, |show, stop| play_managers(managers, moved, show, stop));
        Ok(())
    }

    /// The view feeds lagmon and the proxy, lagmon feeds the proxy, the proxy's state goes back to etcd.
    fn lagmon_and_proxy(&mut self) -> Result<()> {
        let config = self.config;
        if config.lagmon.is_none() && config.proxy.is_none() {
            return Ok(());
        }
        let purpose = if config.proxy.is_some() { Purpose::Proxy } else { Purpose::Observe };
        let times = Times::from(&config.etcd);
        let view = view::start(Arc::clone(&self.store), self.keys(), times, purpose, self.registry)
            .context("cannot register the view's metrics")?;
        // Without lagmon no standby is known to be fresh, so every statement goes to the primary.
        let mut lag = watch::channel(Arc::default()).1;
        let mut ask = None;
        if let Some(section) = config.lagmon.clone() {
            let lagmon = lagmon::start(section, view.topology(), self.registry).context("role lagmon")?;
            lag = lagmon.lag();
            ask = Some(Arc::new(lagmon.ask()) as proxy::AskSample);
            self.running.lag_history = Some(Arc::new(lagmon.history()));
            let topology = view.topology();
            self.running.add(Role::Lagmon, |show, stop| play_lagmon(lagmon, topology, show, stop));
        }
        if let Some(section) = config.proxy.clone() {
            let ask_view = Some(Arc::new(view.ask()) as proxy::AskSample);
            let inputs = proxy::Inputs { topology: view.topology(), lag, ask, ask_view };
            let mut proxy = match self.inherited.take() {
                Some(inherited) => proxy::take_over(section, inputs, self.registry, inherited),
                None => proxy::start(section, inputs, self.registry),
            }
            .context("role proxy")?;
            self.running.proxy = Some(proxy.control());
            self.running.orders = proxy.orders.take();
            let registration = view.register(&proxy_id(), proxy.state.clone());
            let topology = view.topology();
            self.running.add(Role::Proxy, |show, stop| play_proxy(proxy, registration, topology, show, stop));
        }
        self.running.view = Some(view);
        Ok(())
    }

    async fn agent(&mut self) -> Result<()> {
        let (Some(agent), Some(cluster)) = (self.config.agent.clone(), self.config.cluster.clone()) else {
            return Ok(());
        };
        let agent = agent::run(agent, cluster, self.keys(), Arc::clone(&self.store), self.registry);
        let agent = agent.await.context("role agent")?;
        self.running.add(Role::Agent, |show, stop| play_agent(agent, show, stop));
        Ok(())
    }
}

/// Names this proxy in etcd: the host for people, and a number that no other process has.
fn proxy_id() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
    let plain: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    format!("{plain}-{:08x}", rand::random::<u32>())
}

/// The managers' routes by cluster, as the admin listener mounts them. `cluster=NAME` in the query chooses one; without it
/// the first answers.
struct Mounted(Vec<(String, ManagerRoutes)>);

impl Routes for Mounted {
    fn clusters(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn handle<'a>(&'a self, method: &'a str, path: &'a str, query: &'a str, body: &'a [u8]) -> RouteFuture<'a> {
        let asked = query.split('&').find_map(|p| p.strip_prefix("cluster="));
        let found = self.0.iter().find(|(name, _)| asked.is_none_or(|asked| asked == name));
        match found {
            Some((_, routes)) => Box::pin(routes.handle(method, path, query, body)),
            None => {
                let names = self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
                let error = format!("cluster {} is not looked after here, but {names}", asked.unwrap_or_default());
                Box::pin(async move { Some((404, json!({ "error": error }))) })
            }
        }
    }
}

type Stopping = oneshot::Receiver<Duration>;

/// With the host of the cluster's primary. etcd's leader is moved by whoever leads, while nothing is to be done and nothing hangs
/// on a lease that a move would extend: a suspension's bound, a pause, work on a node.
fn avoided(mut all: Avoid, status: &Status) -> Avoid {
    let primary = status.nodes.iter().find(|n| Some(&n.node) == status.primary.as_ref());
    all.hosts.extend(primary.map(|n| n.postgres.host.clone()));
    let bound =
        status.suspended.is_some() || status.paused.is_some() || status.nodes.iter().any(|n| n.maintenance.is_some());
    all.now |= status.leading && status.verdict == Verdict::Steady && !bound;
    all
}

async fn play_managers(
    managers: Vec<ManagerHandle>,
    moved: Option<EtcdStore>,
    show: watch::Sender<Shown>,
    mut stop: Stopping,
) -> Option<String> {
    let statuses: Vec<_> = managers.iter().map(ManagerHandle::status).collect();
    // Ends with this.
    let mut beside = JoinSet::new();
    if let Some(etcd) = moved {
        let statuses = statuses.clone();
        let avoid = move || statuses.iter().fold(Avoid::default(), |all, status| avoided(all, &status.borrow()));
        beside.spawn(async move { etcd.keep_leader_off(avoid).await });
    }
    let (tell, told) = watch::channel(false);
    let play = |mut manager: ManagerHandle| {
        let mut told = told.clone();
        async move {
            tokio::select! {
                why = manager.failed() => return Some(why),
                _ = told.wait_for(|stop| *stop) => {}
            }
            manager.stop().await;
            None
        }
    };
    let mut playing: JoinSet<Option<String>> = managers.into_iter().map(play).collect();
    let mut tick = tokio::time::interval(SHOW_EVERY);
    loop {
        tokio::select! {
            _ = &mut stop => break,
            Some(ended) = playing.join_next() => return ended.unwrap_or_else(|error| Some(error.to_string())),
            _ = tick.tick() => {
                let leads = statuses.iter().filter(|s| s.borrow().leading).count();
                let ready = statuses.iter().try_for_each(|s| manager::ready(&s.borrow()));
                let state = json!({ "leading": leads > 0, "clusters": statuses.len(), "leads": leads });
                show.send_replace(Shown { ready, state });
            }
        }
    }
    // Each gives back its lead; none waits for another.
    tell.send_replace(true);
    while playing.join_next().await.is_some() {}
    None
}

async fn play_lagmon(
    lagmon: lagmon::Handle,
    topology: watch::Receiver<Topology>,
    show: watch::Sender<Shown>,
    mut stop: Stopping,
) -> Option<String> {
    let mut tick = tokio::time::interval(SHOW_EVERY);
    let mut sampled = false;
    loop {
        tokio::select! {
            _ = &mut stop => return None,
            _ = tick.tick() => {
                sampled |= lagmon.published().has_sample();
                let ready = measures(topology.borrow().gate, sampled);
                show.send_replace(Shown { ready, state: lagmon.status() });
            }
        }
    }
}

async fn play_proxy(
    proxy: proxy::Handle,
    registration: Registration,
    topology: watch::Receiver<Topology>,
    show: watch::Sender<Shown>,
    mut stop: Stopping,
) -> Option<String> {
    let mut tick = tokio::time::interval(SHOW_EVERY);
    let bound = loop {
        tokio::select! {
            bound = &mut stop => break bound.unwrap_or_default(),
            _ = tick.tick() => {
                let state = serde_json::to_value(proxy.status()).unwrap_or_default();
                let gate = topology.borrow().gate_at(Clock.now());
                show.send_replace(Shown { ready: serves(gate), state });
            }
        }
    };
    show.send_modify(|s| s.ready = Err("stopping".to_owned()));
    // The other half is for the roles that stop after this one.
    proxy.drain(bound / 2).await;
    // Only now: as long as sessions run, managers must wait for this proxy.
    registration.end().await;
    None
}

const NOT_KNOWN: &str = "nothing is known about the cluster yet: etcd has not answered";

/// A proxy is ready while it knows what the cluster is, whether or not that accepts writes just now: who comes in a failover is held
/// on purpose, and another proxy would do the same.
fn serves(gate: Gate) -> Result<(), String> {
    match gate {
        Gate::Closed(Closed::Unknown) => Err(NOT_KNOWN.to_owned()),
        Gate::Closed(Closed::Stale) => {
            Err("what is known about the cluster is too old: neither etcd nor the primary's agent confirms it"
                .to_owned())
        }
        Gate::Open
        | Gate::Draining
        | Gate::Closed(
            Closed::Vacant
            | Closed::Recruiting
            | Closed::Promoting
            | Closed::Opening
            | Closed::Fenced
            | Closed::Unleased,
        ) => Ok(()),
    }
}

/// A lag monitor is ready once it has had an answer of any node. `sampled`: ever; a loss of all nodes at once makes no proxy
/// beside it less ready than others.
fn measures(gate: Gate, sampled: bool) -> Result<(), String> {
    match gate {
        Gate::Closed(Closed::Unknown) => Err(NOT_KNOWN.to_owned()),
        // There is nobody to ask.
        Gate::Closed(Closed::Vacant) => Ok(()),
        _ if sampled => Ok(()),
        _ => Err("no node has answered the monitoring user yet: the log says why".to_owned()),
    }
}

async fn play_agent(mut agent: AgentHandle, show: watch::Sender<Shown>, mut stop: Stopping) -> Option<String> {
    let mut tick = tokio::time::interval(SHOW_EVERY);
    loop {
        tokio::select! {
            _ = &mut stop => break,
            () = agent.failed() => return Some("a task of the agent ended".to_owned()),
            _ = tick.tick() => {
                let ready = agent.ready().map_err(str::to_owned);
                show.send_replace(Shown { ready, state: serde_json::to_value(agent.state()).unwrap_or_default() });
            }
        }
    }
    show.send_modify(|s| s.ready = Err("stopping".to_owned()));
    agent.stop().await;
    None
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

    /// Ends when every role is ready.
    pub(super) async fn ready(&self) {
        for page in self.pages.values() {
            // A role that has ended is noticed elsewhere.
            if page.clone().wait_for(|shown| shown.ready.is_ok()).await.is_err() {
                return std::future::pending().await;
            }
        }
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
        self.view = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::Instant;

    #[test]
    fn a_proxy_is_ready_in_a_failover_and_not_on_a_view_that_has_run_out() {
        let now = Instant::default() + Duration::from_secs(60);
        let mut topology = Topology::unknown();
        assert!(serves(topology.gate_at(now)).is_err());
        topology.gate = Gate::Open;
        topology.valid_until = Some(now + Duration::from_millis(1));
        assert_eq!(serves(topology.gate_at(now)), Ok(()));
        topology.valid_until = Some(now);
        assert!(serves(topology.gate_at(now)).is_err_and(|why| why.contains("too old")));
        for closed in [Closed::Recruiting, Closed::Promoting, Closed::Opening, Closed::Unleased, Closed::Fenced] {
            topology.gate = Gate::Closed(closed);
            assert_eq!(serves(topology.gate_at(now)), Ok(()));
        }
    }

    #[test]
    fn a_lag_monitor_is_ready_once_a_node_has_answered() {
        assert!(measures(Gate::Closed(Closed::Unknown), true).is_err());
        assert!(measures(Gate::Open, false).is_err_and(|why| why.contains("no node has answered")));
        assert_eq!(measures(Gate::Open, true), Ok(()));
        assert_eq!(measures(Gate::Closed(Closed::Recruiting), true), Ok(()));
        assert_eq!(measures(Gate::Closed(Closed::Vacant), false), Ok(()));
    }
}
