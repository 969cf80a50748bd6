//! Listening for clients, and starting and stopping the workers.
//!
//! One thread sums up what the workers do and looks at files. Clients are accepted and served on the workers' threads.

use crate::auth::hashing::Hashing;
use crate::auth::query::Lookups;
use crate::auth::userlist::LoadUserlistError;
use crate::auth::users::Users;
use crate::catalog::{self, Catalogs, ReadPasswordError};
use crate::config::Config;
use crate::config::pools::Pools;
use crate::control::{Control, ORDERS, ProcessOrder};
use crate::http::{Status, WorkerStatus};
use crate::inherit::{Inherited, Listening, tcp_name};
use crate::local;
use crate::metrics::Metrics;
use crate::pool::admin::{self, OrderError};
use crate::pool::keyring::Keyring;
use crate::pool::view::View;
use crate::pool::{Limits, Order, PoolKey, Scope};
use crate::reach::Reach;
use crate::resolve::Resolver;
use crate::session::peers::Cancelling;
use crate::sums::{TICK, publish_state, state_of, totals, working};
use crate::tls;
use crate::worker::{self, Board, Entrance, Entrances, Inbound, Shared, ToWorker, Worker, tune};
use cluster::lag::LagSnapshot;
use cluster::topology::{ProxyState, Topology};
use cluster::{Clock, Term};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// Messages on their way to one worker; more is lost, which closes a client or a connection.
const QUEUE: usize = 4096;
/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 1024;
/// How often the userlists are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(1);
/// What the proxy acts on.
pub struct Inputs {
    /// Who accepts writes.
    pub topology: watch::Receiver<Topology>,
    /// How far the standbys are.
    pub lag: watch::Receiver<Arc<LagSnapshot>>,
    /// Asks for a sample now, because a read waits for one. Called from any thread and for many reads at once; what it asks
    /// for comes by `lag`. `None`: samples come when they come.
    pub ask: Option<AskSample>,
    /// The same for a newer view, which comes by `topology`: when a statement waits for a proof that its term is not over
    /// and no standby gives one.
    pub ask_view: Option<AskSample>,
}

/// See [`Inputs::ask`] and [`Inputs::ask_view`].
pub type AskSample = Arc<dyn Fn() + Send + Sync>;

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr} (proxy.listen, proxy.listen_read_only)")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The Unix-domain socket cannot be listened on.
    #[error("cannot listen on {} (proxy.unix_socket_dir)", path.display())]
    ListenLocally {
        /// The socket.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The userlist cannot be used.
    #[error("cannot read a userlist (proxy.userlist, proxy.auth.server_userlist)")]
    Userlist(#[from] LoadUserlistError),
    /// The monitoring user's password cannot be read.
    #[error("cannot read the monitoring user's password")]
    Password(#[from] ReadPasswordError),
    /// The TLS files cannot be used.
    #[error("cannot use the TLS files (proxy.tls, proxy.server_tls)")]
    Tls(#[from] tls::LoadError),
    /// The secret for cancel requests cannot be read.
    #[error("cannot use the secret for cancel requests")]
    CancelSecret(#[source] std::io::Error),
    /// What the process before this one was ordered cannot be read.
    #[error("cannot read what operators have ordered the process before this one")]
    Orders(#[source] std::io::Error),
    /// A metric is registered twice.
    #[error("cannot register the proxy's metrics")]
    Metrics(#[from] prometheus::Error),
    /// A thread or its runtime cannot be made.
    #[error("cannot start a worker")]
    Thread(#[source] std::io::Error),
}

/// A running proxy. Dropping it stops accepting and ends all sessions.
pub struct Handle {
    /// What all workers act on, for the manager.
    pub state: watch::Receiver<ProxyState>,
    /// Where clients connect, the first address.
    pub addr: SocketAddr,
    /// All addresses.
    pub addrs: Vec<SocketAddr>,
    /// Where clients connect that only read.
    pub read_only_addrs: Vec<SocketAddr>,
    /// What operators at the console ask of the process. Refused there when nobody listens here.
    pub orders: Option<mpsc::Receiver<ProcessOrder>>,
    shared: Arc<Shared>,
    topology: watch::Receiver<Topology>,
    accepting: watch::Sender<bool>,
    listening: Arc<Listening>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// Start the proxy: as many worker threads as configured, and one that oversees them.
///
/// # Errors
/// See [`StartError`].
pub fn start(config: Config, inputs: Inputs, registry: &prometheus::Registry) -> Result<Handle, StartError> {
    start_with(config, inputs, registry, Inherited::default(), true)
}

/// Start the proxy on the sockets of the process before this one, where it has them. Nobody is accepted before
/// [`Control::begin_accepting`].
///
/// # Errors
/// See [`StartError`].
pub fn take_over(
    config: Config,
    inputs: Inputs,
    registry: &prometheus::Registry,
    inherited: Inherited,
) -> Result<Handle, StartError> {
    start_with(config, inputs, registry, inherited, false)
}

fn start_with(
    config: Config,
    inputs: Inputs,
    registry: &prometheus::Registry,
    mut inherited: Inherited,
    begin: bool,
) -> Result<Handle, StartError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = config.workers.unwrap_or(cores);
    let listening = Arc::<Listening>::default();
    let wanted = [config.listen.all(), &config.listen_read_only].concat();
    let mut sockets = listen_tcp(&wanted, config.timeouts.client_tcp_user, &mut inherited, &listening)?;
    let read_only = sockets.split_off(config.listen.all().len());
    let addrs: Vec<SocketAddr> = sockets.iter().map(|(_, addr)| *addr).collect();
    let addr = addrs[0];
    let read_only_addrs: Vec<SocketAddr> = read_only.iter().map(|(_, addr)| *addr).collect();
    let local = listen_locally(&config, addr.port(), &mut inherited, &listening)?;
    let doors = inherited.doors().map_err(StartError::Orders)?;
    let users = Users::load(&config)?;
    let metrics = Metrics::register(registry)?;
    let tls = tls::live::Live::load(&config, tls::live::Metrics::register(registry)?)?;
    let reading = catalog::Settings::from_config(&config)?;
    let overseer = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    let cancelling = Cancelling::new(&config).map_err(StartError::CancelSecret)?;
    let rules = config.pools.clone();
    let (config, configured) = watch::channel(Arc::new(config));
    let resolver = Resolver::system(overseer.handle().clone());
    let reach = Arc::new(Reach::new(resolver, tls.subscribe(), configured.clone()));
    let (topology, handle) = (inputs.topology.clone(), overseer.handle().clone());
    let catalogs = Catalogs::new(reading, configured, topology, handle, reach.clone());
    let (peers, messages): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(QUEUE)).unzip();
    let peers = Arc::new(peers);
    let (stop, stopped) = watch::channel(false);
    let (accepting, accepts) = watch::channel(begin);
    let (ask, orders) = mpsc::channel(ORDERS);
    let shared = Arc::new(Shared {
        users,
        lookups: Lookups::new(inputs.topology.clone(), overseer.handle().clone(), reach.clone()),
        cancelling,
        hashing: Hashing::new(cores),
        mock_secret: rand::random(),
        catalogs,
        limits: Arc::new(limits(rules, &peers)),
        admissions: Arc::default(),
        awaited: std::sync::Mutex::default(),
        doors: std::sync::Mutex::new(doors),
        peers,
        boards: (0..count).map(|_| Board::default()).collect(),
        clients: AtomicUsize::new(0),
        most_clients: AtomicUsize::new(0),
        altered: Arc::default(),
        held_bytes: AtomicU64::new(0),
        welcomes: std::sync::Mutex::default(),
        keyring: Keyring::default(),
        stopping: AtomicBool::new(false),
        retiring: AtomicBool::new(false),
        consoles: AtomicUsize::new(0),
        applied: Notify::new(),
        left: Notify::new(),
        orders: ask,
        elder: std::sync::Mutex::default(),
        tls: tls.subscribe(),
        reach,
        metrics,
        config,
        ask_sample: inputs.ask,
        ask_view: inputs.ask_view,
    });
    let mut threads = Vec::with_capacity(count + 1);
    let tcp = |sockets: Vec<Socket>, reads| sockets.into_iter().map(move |(s, _)| Entrance::Tcp(s, reads));
    let entrances = tcp(sockets, false).chain(tcp(read_only, true)).chain(local.map(Entrance::Unix));
    let mut entrances = Some(Entrances { sockets: entrances.collect(), accepting: accepts });
    let (lives, workers) = mpsc::channel(1);
    for (index, messages) in messages.into_iter().enumerate() {
        let (topology, lag, entrances) = (inputs.topology.clone(), inputs.lag.clone(), entrances.take());
        let inbound = Inbound { entrances, messages, topology, lag, stop: stopped.clone() };
        threads.push(spawn_worker(index, shared.clone(), inbound, lives.clone())?);
    }
    drop(lives);
    let (publish, state) = watch::channel(state_of(&shared));
    let (all, lag, topology) = (shared.clone(), inputs.lag, inputs.topology.clone());
    let seen = topology.clone();
    let thread = std::thread::Builder::new().name("proxy-oversee".to_owned()).spawn(move || {
        overseer.block_on(async {
            let files = keep_users(&all, stopped.clone());
            let tls = tls.follow(all.config.subscribe(), stopped.clone());
            let nodes = (lag.clone(), seen.clone());
            let defaults = crate::pool::defaults::follow(&all, all.catalogs.changes(), nodes, stopped.clone());
            let state = publish_state(&all, publish, (seen, lag), stopped.clone(), workers);
            tokio::join!(state, tls, files, defaults);
        });
    });
    threads.push(thread.map_err(StartError::Thread)?);
    warn_of_trust(&shared.config.borrow());
    tracing::info!(?addrs, ?read_only_addrs, workers = count, "proxy listens");
    Ok(Handle {
        state,
        addr,
        addrs,
        read_only_addrs,
        orders: Some(orders),
        shared,
        topology,
        accepting,
        listening,
        stop,
        threads,
    })
}

/// A listening socket, and where.
type Socket = (std::net::TcpListener, SocketAddr);

/// Listen on all of these, on the sockets of the process before where it has them; each with what it became.
fn listen_tcp(
    wanted: &[SocketAddr],
    user_timeout: Option<std::time::Duration>,
    inherited: &mut Inherited,
    listening: &Listening,
) -> Result<Vec<Socket>, StartError> {
    let mut sockets = Vec::with_capacity(wanted.len());
    for &addr in wanted {
        let failed = |source| StartError::Listen { addr, source };
        let socket = match inherited.tcp(addr).map_err(failed)? {
            Some(socket) => socket,
            // An IPv6 socket for all addresses would take the IPv4 ones as well.
            None => bind(addr, wanted.iter().any(|a| a.is_ipv4() && a.port() == addr.port())).map_err(failed)?,
        };
        tune(&socket, user_timeout).map_err(failed)?;
        listening.keep(tcp_name(addr), socket.try_clone().map_err(failed)?.into());
        let addr = socket.local_addr().map_err(failed)?;
        sockets.push((socket, addr));
    }
    Ok(sockets)
}

fn bind(addr: SocketAddr, only_v6: bool) -> std::io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    if addr.is_ipv6() && only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Listen on the Unix-domain socket, where one is configured.
fn listen_locally(
    config: &Config,
    port: u16,
    inherited: &mut Inherited,
    listening: &Listening,
) -> Result<Option<std::os::unix::net::UnixListener>, StartError> {
    let Some(dir) = &config.unix_socket_dir else { return Ok(None) };
    let path = local::path(dir, port);
    let failed = |source| StartError::ListenLocally { path: path.clone(), source };
    let socket = local::listen(&path, config.unix_socket_permissions, BACKLOG, inherited).map_err(failed)?;
    listening.keep(local::name(&path), socket.try_clone().map_err(failed)?.into());
    tracing::info!(path = %path.display(), "proxy listens");
    Ok(Some(socket))
}

fn limits(rules: Pools, peers: &Arc<Vec<mpsc::Sender<ToWorker>>>) -> Limits {
    let ways = peers.clone();
    let wake = Arc::new(move |worker: usize, key: &PoolKey| {
        // A full queue means a busy worker: its own releases serve its waiters, or its next tick.
        let _ = ways[worker].try_send(ToWorker::Room(key.clone()));
    });
    Limits::new(rules, peers.len(), wake)
}

/// `lives` is dropped when the worker has ended.
fn spawn_worker(
    index: usize,
    shared: Arc<Shared>,
    inbound: Inbound,
    lives: mpsc::Sender<()>,
) -> Result<JoinHandle<()>, StartError> {
    let (report, built) = std::sync::mpsc::sync_channel(1);
    let work = move || {
        // A local runtime never leaves its thread. A LocalSet on top of an ordinary one would wake its own thread
        // through an eventfd: one write more for every batch of events.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = match builder.enable_all().build_local(tokio::runtime::LocalOptions::default()) {
            Ok(runtime) => runtime,
            Err(error) => return drop(report.send(Err(error))),
        };
        // The starter waits for this, so it listens.
        drop(report.send(Ok(())));
        runtime.block_on(async move {
            let worker = Worker::new(index, shared);
            worker::run(worker, inbound).await;
        });
        // Its sessions end with their runtime.
        drop((runtime, lives));
    };
    let thread = std::thread::Builder::new().name(format!("proxy-{index}")).spawn(work).map_err(StartError::Thread)?;
    match built.recv() {
        Ok(built) => built.map_err(StartError::Thread)?,
        Err(ended) => return Err(StartError::Thread(std::io::Error::other(ended))),
    }
    Ok(thread)
}

/// Read the userlists again when they are written. One that cannot be used changes nothing.
async fn keep_users(shared: &Shared, mut stop: watch::Receiver<bool>) {
    let mut look = tokio::time::interval(LOOK_AT_FILES);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut refused = None;
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let config = shared.config.borrow().clone();
        // A few short reads on this thread, which does nothing else in a hurry.
        let seen = shared.users.outdated(&config);
        if seen.is_none() || seen == refused {
            continue;
        }
        match shared.users.reload(&config) {
            Ok(changed) => tracing::info!(changed, "userlists read again"),
            Err(error) => {
                tracing::error!(%error, source = ?std::error::Error::source(&error).map(ToString::to_string), "userlist not used, the old one stays");
                refused = seen;
            }
        }
    }
}

/// A rule that trusts other hosts leaves the network as the only guard.
fn warn_of_trust(config: &Config) {
    for rule in config.auth.rules.trusting() {
        tracing::warn!(%rule, "a rule of proxy.auth.rules lets anybody in from other hosts without a password");
    }
}

impl Handle {
    /// A hold on the proxy for who changes it while it runs.
    pub fn control(&self) -> Control {
        let (accepting, listening) = (self.accepting.clone(), self.listening.clone());
        Control { shared: self.shared.clone(), accepting, listening }
    }

    /// What `/status` shows.
    pub fn status(&self) -> Status {
        let topology = self.topology.borrow();
        let gate = topology.gate_at(Clock.now());
        let workers = self.shared.boards.iter().map(|board| {
            let applied = board.applied();
            WorkerStatus { term: applied.term, gate: applied.gate.as_str(), totals: board.totals() }
        });
        Status {
            listen: self.addrs.clone(),
            term: topology.term,
            gate: gate.as_str(),
            primary: topology.primary.as_ref().map(|p| p.node.clone()),
            clients: self.shared.clients.load(Ordering::Relaxed),
            held_bytes: self.shared.held_bytes.load(Ordering::Relaxed),
            totals: totals(&self.shared),
            workers: workers.collect(),
        }
    }

    /// Carry out an operator's order; see [`admin::order`].
    ///
    /// # Errors
    /// See [`OrderError`].
    pub async fn order(&self, order: Order, scope: Scope, limit: Duration) -> Result<(), OrderError> {
        admin::order(&self.shared, order, scope, limit).await
    }

    /// Everything the workers have at this moment; see [`admin::view`].
    ///
    /// # Errors
    /// See [`OrderError`].
    pub async fn view(&self, limit: Duration) -> Result<View, OrderError> {
        admin::view(&self.shared, limit).await
    }

    /// Stop accepting, refuse new transactions, wait up to `bound` for the running ones and for the outcome of COMMITs whose
    /// server was lost, then end all sessions. What became of writes in doubt is in [`Self::state`] then.
    pub async fn drain(self, bound: Duration) {
        self.control().stop_accepting();
        self.shared.stopping.store(true, Ordering::SeqCst);
        let quiet = async {
            let mut state = self.state.clone();
            // The workers are asked themselves: what was published last may be older than the newest transaction.
            while working(&self.shared) > 0 {
                // A transaction may begin and end between two publications.
                let _ = tokio::time::timeout(TICK, state.changed()).await;
            }
        };
        if tokio::time::timeout(bound, quiet).await.is_err() {
            let busy = working(&self.shared);
            tracing::warn!(busy, waited = ?bound, "transactions still run, their sessions are ended");
        }
        self.stop.send_replace(true);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.accepting.send_replace(false);
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// The term in force, for logs.
impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let term: Term = self.state.borrow().term;
        f.debug_struct("Handle").field("addr", &self.addr).field("term", &term).finish_non_exhaustive()
    }
}
