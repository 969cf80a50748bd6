//! Starts the roles that a configuration asks for and joins them: the view of etcd feeds the proxy and lagmon, lagmon
//! feeds the proxy, the proxy's state goes back to etcd for the managers.
//!
//! Order matters. Privileges go before any thread exists; signals are caught and the admin address is taken before
//! anything is started. A role that ends by itself ends the process: whoever supervises it starts it anew, and half a
//! process would look well from outside.

pub mod reload;
mod roles;

use crate::admin::{self, Pages};
use crate::config::{self, Config, RawConfig, Role};
use crate::handover::{self, Desk, Predecessor};
use crate::process;
use anyhow::{Context, Result, anyhow};
use prometheus::Registry;
use proxy::inherit::Inherited;
use proxy::{Control, ProcessOrder, Refused, Wait};
use reload::{Ask, Reloader};
use roles::Running;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

/// Threads of the runtime that agents, managers and lagmon share; the proxy's workers have their own.
const THREADS: usize = 2;
/// For what ignores the end of the runtime.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// `pgtenure run`.
///
/// # Errors
/// The configuration is wrong, a role cannot start, or one ended by itself.
pub fn run(file: &Path, takeover: bool) -> Result<()> {
    let (raw, config) = config::load_raw(file)?;
    process::drop_privileges(config.process.user.as_deref(), config.roles.contains(&Role::Agent))?;
    let open_files = process::raise_open_files()?;
    process::start_log(config.process.log_format, &config.process.log_level)
        .map_err(|e| anyhow!("cannot start logging: {e}"))?;
    let roles = config.roles.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(",");
    if nix::unistd::Uid::effective().is_root() {
        warn!("running as root, which no role needs: set process.user");
    }
    reload::warn_of_removed(&config);
    info!(roles, cluster = config.name, version = env!("CARGO_PKG_VERSION"), open_files, "starting");
    let before = match (&config.process.handover_socket, takeover) {
        (Some(path), true) => handover::ask(path)?,
        (None, true) => return Err(anyhow!("--takeover needs process.handover_socket")),
        (_, false) => None,
    };
    if takeover {
        info!(found = before.is_some(), "asked the process before this one for its sockets");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("roles")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(play(file, &raw, config, before));
    runtime.shutdown_timeout(LAST_WAIT);
    result
}

/// Start everything, wait for a signal or a failure, finish everything.
async fn play(file: &Path, raw: &RawConfig, config: Config, mut before: Option<Predecessor>) -> Result<()> {
    let mut stop = Stop::catch()?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot catch signals")?;
    let bound = config.process.drain_timeout;
    let admin_name = handover::admin_name(config.admin.listen);
    let inherited = before.as_mut().map(|b| b.tcp(&admin_name)).transpose()?.flatten();
    let listener = match inherited {
        Some(listener) => TcpListener::from_std(listener)?,
        None => admin::bind(config.admin.listen).await?,
    };
    let listener = listener.into_std()?;
    let sockets = before.as_mut().map(|b| Inherited::new(std::mem::take(&mut b.sockets)));
    let registry = Registry::new();
    let mut running = tokio::select! {
        started = roles::start(&config, &registry, sockets) => started?,
        name = stop.asked() => {
            info!(signal = name, "stopped while starting");
            return Ok(());
        }
    };
    let mut reloader = Reloader::new(file.to_owned(), raw, running.proxy.clone(), &registry)?;
    let (ask, mut asked) = reload::queue();
    let pages = pages(&config, &running, registry, ask)?;
    if let Some(before) = before
        && let Err(error) = take_place(before, &mut running, bound, &mut stop).await
    {
        // The one before goes on as if nothing had been.
        running.stop(Duration::ZERO).await;
        return Err(error);
    }
    let desk = config.process.handover_socket.as_deref().map(Desk::open).transpose()?;
    let serving = tokio::spawn(admin::serve(TcpListener::from_std(listener.try_clone()?)?, Arc::new(pages)));
    info!(address = %config.admin.listen, "admin pages are served");
    let orders = running.orders.take();
    let mut ways = Ways { stop: &mut stop, hangup: &mut hangup, asked: &mut asked, orders };
    let desk = desk.map(|desk| OpenDesk { desk, listener, admin_name, serving: serving.abort_handle() });
    let outcome = run_until_asked(&config, &mut running, &mut reloader, &mut ways, desk.as_ref()).await;
    let (finish, outcome) = match outcome {
        Ok(finish) => (finish, Ok(())),
        Err(error) => (bound, Err(error)),
    };
    tokio::select! {
        () = running.stop(finish) => info!("stopped"),
        () = tokio::time::sleep(bound) => warn!(?bound, "roles did not finish in time"),
        name = stop.asked() => warn!(signal = name, "a second signal, not waiting any longer"),
    }
    serving.abort();
    outcome
}

/// Where orders come from while everything runs.
struct Ways<'a> {
    stop: &'a mut Stop,
    hangup: &'a mut Signal,
    asked: &'a mut mpsc::Receiver<reload::Request>,
    orders: Option<mpsc::Receiver<ProcessOrder>>,
}

/// Obey orders that leave the process running. Returns when it is to stop: how long transactions may take to finish, or
/// an error when it must.
async fn run_until_asked(
    config: &Config,
    running: &mut Running,
    reloader: &mut Reloader,
    ways: &mut Ways<'_>,
    desk: Option<&OpenDesk>,
) -> Result<Duration> {
    let bound = config.process.drain_timeout;
    let proxy = running.proxy.clone();
    // Not begun anew with each order: a handover that is under way goes on.
    let mut next = std::pin::pin!(next_process(desk, proxy.as_ref()));
    let (mut taken_over, mut emptying) = (false, None::<Emptying>);
    loop {
        let order = tokio::select! {
            name = ways.stop.asked() => {
                info!(signal = name, waited = emptying.is_some(), "stopping");
                return Ok(bound);
            }
            finish = emptied(&mut emptying) => return Ok(finish),
            why = running.ended() => {
                error!(reason = why, "a role ended by itself");
                return Err(anyhow!(why));
            }
            stream = &mut next, if !taken_over => {
                taken_over = true;
                info!("the next process has taken over, letting clients finish");
                if let Some(proxy) = &proxy {
                    proxy.retire();
                    let (proxy, ordered) = (proxy.clone(), proxy.clone());
                    #[expect(clippy::async_yields_async, reason = "orders begin in turn, and are waited for beside each other")]
                    let order = move |text: Vec<u8>| {
                        let proxy = ordered.clone();
                        async move { proxy.obey(&text).await }
                    };
                    tokio::spawn(handover::serve(stream, move |key| proxy.cancel(key), order));
                }
                // Whoever asks for admin pages is answered by the next process.
                if let Some(desk) = desk {
                    desk.serving.abort();
                }
                emptying = Some(Box::pin(empty(proxy.clone(), Wait::Clients, bound)));
                continue;
            }
            _ = ways.hangup.recv() => {
                // Its outcome is logged and counted; a signal has no answer.
                let _ = reloader.reload("SIGHUP");
                continue;
            }
            // Its sender lives in the pages.
            Some(answer) = ways.asked.recv() => {
                let _ = answer.send(reloader.reload("admin HTTP"));
                continue;
            }
            order = next_order(&mut ways.orders) => order,
        };
        match order {
            ProcessOrder::Reload(answer) => {
                let _ = answer.send(reloader.reload("console"));
            }
            ProcessOrder::Shutdown { wait, answer } => {
                if let Some(role) = config.roles.iter().find(|r| !matches!(r, Role::Proxy | Role::Lagmon)) {
                    let why = format!("this process plays the role {role} as well: stop the service instead");
                    let _ = answer.send(Err(Refused(vec![why])));
                    continue;
                }
                let _ = answer.send(Ok(()));
                info!(?wait, "stopping, the console asked for it");
                emptying = Some(Box::pin(empty(proxy.clone(), wait, bound)));
            }
        }
    }
}

/// Where the next process asks for the sockets, and what is handed over.
struct OpenDesk {
    desk: Desk,
    /// The admin HTTP's.
    listener: std::net::TcpListener,
    admin_name: String,
    serving: AbortHandle,
}

async fn next_process(desk: Option<&OpenDesk>, proxy: Option<&Control>) -> UnixStream {
    match desk {
        Some(desk) => desk.desk.next(&desk.listener, &desk.admin_name, proxy).await,
        None => std::future::pending().await,
    }
}

/// Wait until this process can do what the one before it does, and let that one finish.
async fn take_place(before: Predecessor, running: &mut Running, bound: Duration, stop: &mut Stop) -> Result<()> {
    let ready = tokio::select! {
        () = running.ready() => Ok(()),
        () = tokio::time::sleep(bound) => Err(anyhow!("not ready in {bound:?}: the process before this one goes on")),
        name = stop.asked() => Err(anyhow!("stopped by {name} before it was ready")),
    };
    ready?;
    if before.is_overtaken() {
        return Err(anyhow!("another process has taken over meanwhile"));
    }
    if let Err(error) = before.succeed(running.proxy.as_ref()) {
        warn!(error = format!("{error:#}"), "took over from a process that has gone meanwhile");
    }
    info!("taken over");
    Ok(())
}

async fn next_order(orders: &mut Option<mpsc::Receiver<ProcessOrder>>) -> ProcessOrder {
    match orders {
        Some(orders) => match orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// What is left to do before the process ends, and how long transactions may take then. Orders are obeyed meanwhile.
type Emptying = Pin<Box<dyn Future<Output = Duration>>>;

/// Ends with what is left to do, if that is anything. Cancel-safe.
async fn emptied(emptying: &mut Option<Emptying>) -> Duration {
    match emptying {
        Some(emptying) => emptying.await,
        None => std::future::pending().await,
    }
}

/// `SHUTDOWN` of the console: accept no more clients, and wait for what it asks to wait for, as long as `bound`.
async fn empty(proxy: Option<Control>, wait: Wait, bound: Duration) -> Duration {
    if let (Some(proxy), Wait::Clients) = (proxy, wait) {
        proxy.stop_accepting();
        tokio::select! {
            () = proxy.left() => info!("all clients have left"),
            () = tokio::time::sleep(bound) => {
                warn!(?bound, clients = proxy.clients(), "clients did not leave in time");
            }
        }
    }
    if wait == Wait::Nothing { Duration::ZERO } else { bound }
}

/// What the admin listener shows. Managers cannot do without the secret that orders need; others take no orders then.
fn pages(config: &Config, running: &Running, registry: Registry, reload: Ask) -> Result<Pages> {
    let read = |file: &std::path::PathBuf| {
        config::read_secret(file).with_context(|| format!("cannot read cluster.secret_file {}", file.display()))
    };
    let secret = match config.secret_file.as_ref().map(read).transpose() {
        Err(error) if !config.roles.contains(&Role::Manager) => {
            warn!(error = format!("{error:#}"), "the admin HTTP takes no orders");
            None
        }
        secret => secret?,
    };
    let (parts, routes, lag_history) = (running.parts(), running.routes(), running.lag_history.clone());
    let proxy = running.proxy.clone();
    Ok(Pages { parts, routes, lag_history, registry, secret, proxy, reload: Some(reload) })
}

/// SIGTERM and SIGINT.
struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Self { term: catch(SignalKind::terminate())?, int: catch(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
