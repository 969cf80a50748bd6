//! Starts the roles that a configuration asks for and joins them: the view of etcd feeds the proxy and lagmon, lagmon
//! feeds the proxy, the proxy's state goes back to etcd for the managers.
//!
//! Order matters. Privileges go before any thread exists; signals are caught and the admin address is taken before
//! anything is started. A role that ends by itself ends the process: whoever supervises it starts it anew, and half a
//! process would look well from outside.

mod roles;

use crate::admin::{self, Pages};
use crate::config::{self, Config, Role};
use crate::process;
use anyhow::{Context, Result, anyhow};
use prometheus::Registry;
use roles::Running;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// Threads of the runtime that agents, managers and lagmon share; the proxy's workers have their own.
const THREADS: usize = 2;
/// For what ignores the end of the runtime.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// `pgtenure run`.
///
/// # Errors
/// The configuration is wrong, a role cannot start, or one ended by itself.
pub fn run(file: &Path) -> Result<()> {
    let config = config::load(file)?;
    process::drop_privileges(config.process.user.as_deref(), config.roles.contains(&Role::Agent))?;
    let open_files = process::raise_open_files()?;
    process::start_log(config.process.log_format, &config.process.log_level)
        .map_err(|e| anyhow!("cannot start logging: {e}"))?;
    let roles = config.roles.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(",");
    if nix::unistd::Uid::effective().is_root() {
        warn!("running as root, which no role needs: set process.user");
    }
    info!(roles, cluster = config.name, version = env!("CARGO_PKG_VERSION"), open_files, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("roles")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(play(config));
    runtime.shutdown_timeout(LAST_WAIT);
    result
}

/// Start everything, wait for a signal or a failure, finish everything.
async fn play(config: Config) -> Result<()> {
    let mut stop = Stop::catch()?;
    let bound = config.process.drain_timeout;
    let listener = admin::bind(config.admin.listen).await?;
    let registry = Registry::new();
    let mut running = tokio::select! {
        started = roles::start(&config, &registry) => started?,
        name = stop.asked() => {
            info!(signal = name, "stopped while starting");
            return Ok(());
        }
    };
    let pages = pages(&config, &running, registry)?;
    let serving = tokio::spawn(admin::serve(listener, Arc::new(pages)));
    info!(address = %config.admin.listen, "admin pages are served");
    let outcome = tokio::select! {
        name = stop.asked() => {
            info!(signal = name, "stopping");
            Ok(())
        }
        why = running.ended() => {
            error!(reason = why, "a role ended by itself");
            Err(anyhow!(why))
        }
    };
    tokio::select! {
        () = running.stop(bound) => info!("stopped"),
        () = tokio::time::sleep(bound) => warn!(?bound, "roles did not finish in time"),
        name = stop.asked() => warn!(signal = name, "a second signal, not waiting any longer"),
    }
    serving.abort();
    outcome
}

/// What the admin listener shows. Orders are only taken by managers, so only they need the secret.
fn pages(config: &Config, running: &Running, registry: Registry) -> Result<Pages> {
    let secret = match (&config.secret_file, config.roles.contains(&Role::Manager)) {
        (Some(file), true) => {
            let secret = config::read_secret(file);
            Some(secret.with_context(|| format!("cannot read cluster.secret_file {}", file.display()))?)
        }
        _ => None,
    };
    Ok(Pages { parts: running.parts(), routes: running.routes(), registry, secret })
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
