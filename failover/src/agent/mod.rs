//! The agent: drives the one PostgreSQL of its node, obeys managers' commands, and follows the cluster's records.
//!
//! Tasks: one looks at PostgreSQL, one reads etcd, one acts on both by itself (`reconcile`), one keeps slots, three keep the primary's
//! lease and fence by it (two of them on a thread of their own), three observe the primary, one serves managers over HTTP. Whoever starts, stops, promotes or
//! replaces PostgreSQL holds `actuator`; whoever changes where the WAL receiver connects or what commits wait for holds
//! `conf`. A freeze gives its promise and cuts the node off before it waits for `actuator`, and whoever holds that gives
//! up on seeing a newer promise.

mod adopt;
mod arm;
mod bootstrap;
mod catch_up;
mod commands;
mod control;
mod countersign;
mod env;
pub(crate) mod founding;
mod freeze;
mod guarded;
mod http;
mod knock;
mod layout;
mod lease;
mod left_memory;
mod memory;
mod metrics;
mod namesake;
mod observer;
mod opening;
mod other_lines;
mod postgres;
mod probe;
mod process;
mod promote;
mod reconcile;
mod records;
mod recovery_conf;
mod rejoin;
mod relax;
mod release;
mod rewind;
mod room;
mod said;
mod slots;
mod sql;
mod standing;
mod state;
mod take_up;
mod tool;
mod unblock;
mod visit;
mod vouch;
mod wal_tail;
mod watchdog;

pub use memory::MemoryError;
pub use tool::ToolError;

use crate::apart::Apart;
use crate::api::{AgentState, Failed, Follow, PostgresState};
use crate::config::agent::AgentConfig;
use crate::config::cluster::ClusterConfig;
use crate::fsm::sync_set::Waits;
use crate::record::Mode;
use crate::store::Store;
use cluster::keys::Keys;
use cluster::sync_names::SyncNames;
use env::Env;
use memory::{Keeper, Memory, Worker};
use metrics::Metrics;
use nix::fcntl::{Flock, FlockArg};
use records::Records;
use recovery_conf::Dynamic;
use state::State;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How long programs that an earlier agent left may take to die.
const LEFTOVER_BOUND: Duration = Duration::from_secs(10);

/// An agent that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// PostgreSQL refuses to run as root.
    #[error("the agent must not run as root, because PostgreSQL refuses to; set process.user")]
    Root,
    /// The agent's directory cannot be used.
    #[error("could not use {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A secret's file cannot be read.
    #[error("could not read the secret in {path}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A secret is too short to be one.
    #[error("the first line of {path} has less than {at_least} bytes")]
    ShortSecret {
        /// The file.
        path: PathBuf,
        /// Fewest bytes.
        at_least: usize,
    },
    /// PostgreSQL's programs do not run.
    #[error("PostgreSQL's programs cannot be used; see agent.bin_dir")]
    Postgres(#[source] ToolError),
    /// PostgreSQL is too old or did not tell its version.
    #[error("PostgreSQL 13 or later is needed, found {text:?}")]
    Version {
        /// What it printed.
        text: String,
    },
    /// The promise cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The address is taken or not ours.
    #[error("could not listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Metrics of an agent are registered already.
    #[error("could not register the agent's metrics")]
    Metrics(#[from] prometheus::Error),
    /// Another agent works on the directory.
    #[error("another agent runs on {path}")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel refused something the agent cannot do without.
    #[error("{what}")]
    System {
        /// What was refused.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The agent, shared by its tasks.
pub(crate) struct Agent {
    pub(crate) env: Arc<Env>,
    pub(crate) store: Arc<dyn Store>,
    /// The same, for the thread that keeps the lease.
    leases: Arc<dyn Store>,
    pub(crate) metrics: Metrics,
    pub(crate) listen: SocketAddr,
    keeper: Keeper,
    /// The ids of the agents that worked in this directory before and are certainly over.
    predecessors: Vec<String>,
    /// The settings that change; whoever changes them holds it until they are on disk and the server was told.
    conf: tokio::sync::Mutex<Dynamic>,
    /// Held by whoever starts, stops, promotes or replaces PostgreSQL.
    actuator: tokio::sync::Mutex<()>,
    /// Held by who changes what a primary's commits wait for and proves it: one order after the other.
    arming: tokio::sync::Mutex<()>,
    /// The holder of `actuator` replaces data (rewind, clone): a freeze needs not wait, nothing is running.
    replacing: AtomicBool,
    /// The term for which a freeze has seen that no WAL receiver is left, until one is given an address again; 0 for
    /// none.
    cut_off_for: AtomicU64,
    /// The term for which histories of other lines were looked for.
    lines_left_for: AtomicU64,
    /// A postmaster was just started and may not have its pid file yet.
    spawning: AtomicBool,
    /// A manager has just ordered to stop it: until that is done, or takes longer, nothing else is to be seen.
    stopping: AtomicBool,
    state: State,
    standing: standing::Standing,
    /// What looks at PostgreSQL have seen of its walsenders.
    walsenders: Mutex<crate::fsm::walsenders::Watch>,
    records: watch::Sender<Records>,
    /// A manager's order to follow, which may be faster than etcd's hint.
    follow: Mutex<Option<Follow>>,
    held: Mutex<Option<lease::Held>>,
    ahead: Mutex<Option<opening::Ahead>>,
    /// When the fence that goes by the lease was last looked at: nobody renews what nobody would fence by.
    fence_kept_at: Mutex<cluster::Instant>,
    /// What was signed for primaries that have lost etcd.
    signature: Mutex<countersign::Signature>,
    /// Until when proxies may act on a policy that was in force; whoever vouches for one holds it.
    vouched_until: Mutex<cluster::Instant>,
    /// What resets the host should this process stand still.
    watchdog: watchdog::Watchdog,
    /// How often lately this node's standby was started again because it hung, and when last.
    hung_stops: Mutex<(u32, cluster::Instant)>,
    /// Copies that were made because what was there did not start.
    unstarted: Mutex<crate::fsm::unstarted::Unstarted>,
    /// Copies that were not made.
    uncopied: Mutex<crate::fsm::unstarted::Failing>,
    /// Something may have to be done by ourselves.
    wake: Notify,
    /// PostgreSQL was seen to have ended.
    died: Notify,
    /// `members/<node>` in etcd is not what this agent wrote.
    register_again: Notify,
    /// The thread that keeps the lease has read records that are new here.
    read_again: Notify,
    look_now: Notify,
    /// See [`next_look`].
    looked: watch::Sender<u64>,
    said: Often,
    _lock: Flock<std::fs::File>,
}

/// What may be found again at every look or round.
#[derive(Default)]
struct Often {
    /// Why the postmaster cannot be looked for.
    postmaster: said::Said,
    /// Impostors that were ended.
    impostors: said::Said,
    /// Settings of ours that somebody else has set.
    settings: said::Said,
}

/// A running agent.
pub struct AgentHandle {
    agent: Arc<Agent>,
    tasks: JoinSet<()>,
    leases: Apart,
}

/// Start an agent. Its tasks run until [`AgentHandle::stop`] or until the handle is dropped; PostgreSQL outlives a
/// dropped handle.
///
/// # Errors
/// See [`StartError`]; nothing runs then.
pub async fn run(
    config: AgentConfig,
    cluster: ClusterConfig,
    keys: Keys,
    store: Arc<dyn Store>,
    registry: &prometheus::Registry,
) -> Result<AgentHandle, StartError> {
    let env = Env::prepare(config, cluster, keys).await?;
    let lock = lock(&env)?;
    let left = |source| StartError::System { what: "programs that an earlier agent left may still be at work", source };
    if !process::kill_tools(&env.layout.root, LEFTOVER_BOUND).await.map_err(left)? {
        return Err(left(io::Error::other("SIGKILL does not end them")));
    }
    process::adopt_orphans().map_err(|source| StartError::System { what: "could not adopt orphans", source })?;
    let keeper = Keeper::open(&env.layout)?;
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::geteuid().to_string(), |u| u.name);
    let no_directory = |source| StartError::Directory { path: env.layout.root.clone(), source };
    recovery_conf::write_fixed(&env, &user).map_err(no_directory)?;
    let address = env.config.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
    let listen = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;
    let mut conf = Dynamic::new(presumed_waits(&env));
    if postgres::is_dead(&env) {
        conf.write(&env).map_err(no_directory)?;
    } else {
        // Until it is looked at, its sessions may go by any default.
        conf.not_taken_up();
    }
    let now = env.clock.now();
    let state = State::new(now);
    let memory = keeper.get();
    let (signature, vouched_until) = (countersign::remembered(&env, &memory), vouch::remembered(&env, &memory));
    state.change(|o| {
        (o.promise, o.opened) = (memory.promise, memory.opened);
        (o.quarantine, o.policy) = (memory.quarantine, memory.policy.clone());
        o.memory_of = memory.system_id.clone();
    });
    let no_thread = |source| StartError::System { what: "could not start the watchdog's thread", source };
    let watchdog = watchdog::Watchdog::start(&env).map_err(no_thread)?;
    let metrics = Metrics::register(registry)?;
    // Nothing keeps it from working now: who never came so far takes nobody's place among those that are remembered.
    let predecessors = succeed(&env, &keeper);
    let agent = Arc::new(Agent {
        metrics,
        env: Arc::new(env),
        leases: store.apart(),
        store,
        listen,
        keeper,
        predecessors,
        conf: tokio::sync::Mutex::new(conf),
        actuator: tokio::sync::Mutex::new(()),
        arming: tokio::sync::Mutex::new(()),
        replacing: AtomicBool::new(false),
        cut_off_for: AtomicU64::new(0),
        lines_left_for: AtomicU64::new(0),
        spawning: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        fence_kept_at: Mutex::new(now),
        state,
        standing: standing::Standing::default(),
        walsenders: Mutex::default(),
        records: watch::channel(Records::default()).0,
        follow: Mutex::new(None),
        held: Mutex::new(None),
        ahead: Mutex::new(None),
        signature: Mutex::new(signature),
        vouched_until: Mutex::new(vouched_until),
        watchdog,
        hung_stops: Mutex::new((0, now)),
        unstarted: Mutex::default(),
        uncopied: Mutex::default(),
        wake: Notify::new(),
        died: Notify::new(),
        register_again: Notify::new(),
        read_again: Notify::new(),
        look_now: Notify::new(),
        looked: watch::channel(0).0,
        said: Often::default(),
        _lock: lock,
    });
    tracing::info!(node = %agent.env.config.node, term = memory.promise.0, address = %listen, "agent started");
    // First look before the first decision: a running PostgreSQL is adopted, not started.
    agent.look_once(&mut None).await;
    let adopted = agent.adopt();
    let mut tasks = JoinSet::new();
    let spawn = |a: &Arc<Agent>| Arc::clone(a);
    let a = spawn(&agent);
    tasks.spawn(async move { a.observe(adopted).await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.follow_records().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.register().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.reconcile().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.keep_slots().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.keep_lease().await });
    let a = spawn(&agent);
    let leases = Apart::spawn(async move {
        tokio::join!(a.renew_lease(), a.gather_signatures(), a.tend_watchdog());
    });
    let no_thread = |source| StartError::System { what: "could not start the thread that keeps the lease", source };
    let leases = leases.map_err(no_thread)?;
    let a = spawn(&agent);
    tasks.spawn(async move { a.pulse().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.observe_primary_agent().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.observe_primary_sql().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.knock().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.knock_at_primary().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.beat().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.probe_disk().await });
    let a = spawn(&agent);
    tasks.spawn(async move { a.refresh_metrics().await });
    tasks.spawn(http::serve(Arc::clone(&agent), listener));
    Ok(AgentHandle { agent, tasks, leases })
}

/// One agent per directory: two would start two postmasters in turn.
fn lock(env: &Env) -> Result<Flock<std::fs::File>, StartError> {
    let path = env.layout.root.join("agent.lock");
    let file = std::fs::File::create(&path)
        .map_err(|source| StartError::Directory { path: env.layout.root.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StartError::Locked { path: env.layout.root.clone() })
}

/// Take the place of the agents that worked here before; the ids of those that are certainly over. Where that is not known, or
/// cannot be remembered, what they held is left to its lease.
fn succeed(env: &Env, keeper: &Keeper) -> Vec<String> {
    let noted = Worker::here(&env.layout, &env.holder, &env.host).and_then(|here| {
        let mut over = Vec::new();
        keeper.update(|m| over = m.succeed(here)).map(|()| over)
    });
    noted.unwrap_or_else(|error| {
        tracing::warn!(node = %env.config.node, %error, "this agent's id is not remembered");
        Vec::new()
    })
}

/// What a promoted node would have to wait for, as long as no policy was read.
fn presumed_waits(env: &Env) -> Waits {
    let names = SyncNames::for_primary(&env.config.node, &env.cluster.voters, env.cluster.k);
    Waits { names, on_request: env.cluster.mode == Mode::Async }
}

/// `delayed`: with a delay, a standby asks for WAL only once it has replayed all that it has.
fn ready(postgres: &PostgresState, left_alone: bool, delayed: bool) -> Result<(), &'static str> {
    match postgres {
        PostgresState::Primary(_) => Ok(()),
        PostgresState::Standby(s) if s.streams_from.is_some() || delayed || left_alone => Ok(()),
        PostgresState::Standby(_) => Err("PostgreSQL streams from nobody"),
        PostgresState::Stopped { .. } | PostgresState::Absent if left_alone => Ok(()),
        PostgresState::Stopped { .. }
        | PostgresState::Absent
        | PostgresState::Starting
        | PostgresState::Hung { .. } => Err("PostgreSQL does not answer"),
    }
}

async fn end(leases: &mut Option<Apart>) {
    if let Some(leases) = leases.take() {
        leases.stop().await;
    }
}

impl AgentHandle {
    /// The state, as served to managers.
    pub fn state(&self) -> AgentState {
        self.agent.state.get().told(&self.agent.env, self.agent.env.clock.now())
    }

    /// Ready: PostgreSQL answers, and streams where it is a standby; or an operator wants it stopped.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), &'static str> {
        let maintenance = self.agent.records.borrow().maintenance;
        let delayed = self.agent.env.config.standing.apply_delay_ms > 0;
        self.agent.state.look(|o| ready(&o.postgres, o.fenced || maintenance, delayed))
    }

    /// Where the agent's HTTP listens: the configured address, with the port that was chosen when 0 was configured.
    pub fn address(&self) -> SocketAddr {
        self.agent.listen
    }

    /// Ends when a task of the agent has ended, which none does by itself: something is wrong beyond repair.
    pub async fn failed(&mut self) {
        tokio::select! {
            Some(_) = self.tasks.join_next() => {}
            () = self.leases.ended() => {}
        }
    }

    /// End the agent, and PostgreSQL with it when `agent.stop_postgres_on_exit` says so (bounded by
    /// `agent.stop_timeout` and some seconds). A primary gives back its lease once it is stopped.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        let agent = &self.agent;
        let mut leases = Some(self.leases);
        if !agent.env.config.stop_postgres_on_exit {
            end(&mut leases).await;
            agent.leave_watchdog().await;
            return;
        }
        let bound = agent.env.config.stop_timeout;
        let stop = |how| postgres::stop(&agent.env, how);
        // Where the lease is the fence it is kept, and the watchdog device fed, until the server is gone. Else whoever is
        // to take over needs not wait for a shutdown that takes long.
        if agent.protects() {
            end(&mut leases).await;
        }
        let stopped = tokio::select! {
            stopped = stop(postgres::Stop::Fast(bound)) => stopped,
            () = agent.outlasts_lease() => {
                tracing::error!(node = %agent.env.config.node, "lease ended during the shutdown: stopping postgres at once");
                stop(postgres::Stop::Immediate).await
            }
        };
        if !stopped.as_ref().is_err_and(postgres::ServerError::may_run) {
            end(&mut leases).await;
            agent.leave_watchdog().await;
        }
        match stopped {
            Ok(clean) => {
                tracing::info!(node = %agent.env.config.node, clean, "postgres stopped with its agent");
                agent.give_back_lease().await;
            }
            Err(error) => tracing::error!(node = %agent.env.config.node, %error, "postgres could not be stopped"),
        }
    }
}

impl Agent {
    /// A running PostgreSQL goes on with what its commits wait for now, whatever the configuration says. False while it
    /// does not answer.
    fn adopt(&self) -> bool {
        let names = self.state.look(|o| match &o.postgres {
            PostgresState::Primary(p) => p.sync_names.parse().ok(),
            PostgresState::Standby(s) => s.sync_names.parse().ok(),
            _ => None,
        });
        let Some(names): Option<SyncNames> = names else { return false };
        let told = names.to_string();
        // Somebody is writing another: the next look finds that.
        let Ok(mut conf) = self.conf.try_lock() else { return false };
        if conf.adopt(&self.env, names) {
            tracing::info!(node = %self.env.config.node, sync_names = told, "adopted a running postgres");
        }
        true
    }

    /// Change what must not be forgotten, durably, and show it.
    fn remember(&self, change: impl FnOnce(&mut Memory)) -> io::Result<()> {
        self.keeper.update(change).inspect_err(|error| {
            tracing::error!(node = %self.env.config.node, %error, "the agent's memory could not be written");
        })?;
        self.state.change(|o| {
            // Read only now: of two that remember at the same time neither may show what was before the other.
            let memory = self.keeper.get();
            (o.promise, o.opened) = (memory.promise, memory.opened);
            (o.quarantine, o.policy) = (memory.quarantine, memory.policy);
        });
        Ok(())
    }

    fn memory(&self) -> Memory {
        self.keeper.get()
    }

    /// Something is wrong and an operator should know; shown until [`Agent::untroubled`].
    fn trouble(&self, what: &str) {
        self.state.change(|o| {
            if o.trouble.as_deref() != Some(what) {
                tracing::warn!(node = %self.env.config.node, reason = what, "trouble");
                o.trouble = Some(what.to_owned());
            }
        });
    }

    fn untroubled(&self) {
        self.state.change(|o| o.trouble = None);
    }

    /// Show what the rejoin is doing.
    fn rejoining(&self, what: impl Into<Option<&'static str>>) {
        let what = what.into().map(str::to_owned);
        self.state.change(|o| o.rejoin = what);
    }

    fn failed(&self, what: &str, why: &dyn std::error::Error) -> Failed {
        let mut text = why.to_string();
        let mut cause = why.source();
        while let Some(c) = cause {
            // Levels that repeat their source's words are not told twice.
            let c_text = c.to_string();
            if !text.contains(&c_text) {
                text = format!("{text}: {c_text}");
            }
            cause = c.source();
        }
        Failed { node: self.env.config.node.clone(), what: what.to_owned(), why: text, at: wall_millis() }
    }

    /// Wait for a look at PostgreSQL that began after this call, at most `bound`.
    async fn look_again(&self, bound: Duration) {
        let mut looked = self.looked.subscribe();
        let due = next_look(*looked.borrow());
        self.look_now.notify_one();
        let _ = tokio::time::timeout(bound, looked.wait_for(|n| *n >= due)).await;
    }
}

/// Looks at PostgreSQL are counted when they begin and when they end. The count when one has ended that begins after `count`:
/// one under way may have asked before.
const fn next_look(count: u64) -> u64 {
    count + 2 + count % 2
}

/// For display only.
pub(crate) fn wall_millis() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis().try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Standby;
    use cluster::{Lsn, TimelineId};

    #[test]
    fn a_standby_is_ready_when_it_streams_or_replays_later_on_purpose() {
        let standby = |streams_from: Option<&str>| {
            PostgresState::Standby(Standby {
                timeline: TimelineId(1),
                receive_lsn: Lsn(1),
                replay_lsn: Lsn(1),
                streams_from: streams_from.map(|n| n.parse().unwrap()),
                replay_paused: false,
                sync_names: String::new(),
            })
        };
        assert_eq!(ready(&standby(Some("n1")), false, false), Ok(()));
        assert_eq!(ready(&standby(None), false, false), Err("PostgreSQL streams from nobody"));
        assert_eq!(ready(&standby(None), false, true), Ok(()));
        assert_eq!(ready(&standby(None), true, false), Ok(()));
        assert_eq!(ready(&PostgresState::Absent, true, false), Ok(()));
        assert!(ready(&PostgresState::Absent, false, true).is_err());
        assert!(ready(&PostgresState::Hung { for_ms: 1 }, true, true).is_err());
    }

    #[test]
    fn a_look_under_way_is_not_the_one_to_wait_for() {
        // None is: it begins, and ends.
        assert_eq!(next_look(4), 6);
        // One is, and ends first.
        assert_eq!(next_look(5), 8);
    }
}
