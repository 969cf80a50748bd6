//! `pgtenure demo`: a whole cluster on loopback, each role its own process of this program, and a story that is
//! played and checked.
//!
//! The demo writes configuration files and starts processes, nothing else: everything the cluster does, it does as on
//! three hosts. Unlike a deployment it also restarts a process that died, which there is systemd's work.

pub mod cluster;
pub mod ground;
pub mod layout;
pub mod load;
pub mod story;
pub mod supervise;

use anyhow::{Context, Result};
use cluster::Cluster;
use ground::Ground;
use layout::{Ports, Programs};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use story::Death;
use supervise::Supervisor;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long processes may take to stop by themselves.
const STOP_BOUND: Duration = Duration::from_secs(10);
/// How often the table is drawn.
const REFRESH: Duration = Duration::from_secs(1);

/// `pgtenure demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Play the story without a person and check it: write, kill the primary, switch back. Exit 0 only if all holds.
    #[arg(long)]
    exercise: bool,
    /// With --exercise: print what was seen as JSON.
    #[arg(long, requires = "exercise")]
    json: bool,
    /// With --exercise: how the primary dies.
    #[arg(long, value_enum, default_value = "postmaster", requires = "exercise")]
    kill: Death,
    /// Scratch directory, emptied at each start. Default: pgtenure-demo-UID in the directory for temporary files.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The endpoint's port; the 40 ports from there on are used.
    #[arg(long, value_name = "PORT", default_value_t = 16400)]
    base_port: u16,
    /// Durability mode.
    #[arg(long, value_name = "MODE", default_value = "strict", value_parser = ["strict", "async"])]
    mode: String,
}

/// Run the demo until Ctrl-C, or play the exercise.
pub fn run(args: &Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&anyhow::Error::new(e).context("cannot start the runtime")),
    };
    let code = runtime.block_on(async {
        match demo(args).await {
            Ok(code) => code,
            Err(e) => fail(&e),
        }
    });
    // A thread may still wait for a name lookup or a file; nothing of it is needed any more.
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("pgtenure demo: {error:#}");
    ExitCode::from(1)
}

async fn demo(args: &Args) -> Result<ExitCode> {
    let programs = Programs::find()?;
    let ports = Ports::new(args.base_port)?;
    let uid = nix::unistd::Uid::effective();
    let dir = args.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("pgtenure-demo-{uid}")));
    let ground = Ground::take(&dir)?;
    ports.check_free()?;
    // From here on Ctrl-C must stop what was started, so the signals are caught before anything is.
    let mut stop = Stop::catch()?;
    let (cluster, supervisor) = cluster::start(&ground, ports, &programs, &args.mode)?;
    let result = tokio::select! {
        done = live(args, &cluster) => done,
        () = stop.asked() => Ok(ExitCode::SUCCESS),
    };
    finish(&ground, supervisor).await;
    result
}

async fn live(args: &Args, cluster: &Cluster) -> Result<ExitCode> {
    if !args.json {
        println!("starting etcd, three PostgreSQL nodes with agents, two managers and a proxy …");
    }
    cluster.active(None).await?;
    cluster.all_stream().await?;
    if !args.exercise {
        return watch(cluster).await;
    }
    let say = |line: &str| {
        if !args.json {
            println!("· {line}");
        }
    };
    let seen = tokio::time::timeout(story::BOUND, story::play(cluster, args.kill, &say)).await;
    let seen = seen.with_context(|| format!("the story did not end within {:?}", story::BOUND))??;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&seen)?)
    } else {
        println!("\n{}", seen.text())
    }
    Ok(if seen.holds() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Show the cluster until Ctrl-C.
async fn watch(cluster: &Cluster) -> Result<ExitCode> {
    let terminal = std::io::stdout().is_terminal();
    let mut last = String::new();
    loop {
        let (table, primary) = match cluster.get("/status").await {
            Ok(status) => {
                let primary = status.get("primary").and_then(|p| p.as_str()).map(str::to_owned);
                (crate::ctl::render::status(&status), primary)
            }
            Err(e) => (format!("no manager answers: {e}\n"), None),
        };
        let text = format!("{table}\n{}", hints(cluster, primary.as_deref().unwrap_or("n1")));
        if terminal {
            // Home, the text with each line's rest erased, then everything below.
            print!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"));
        } else if last.is_empty() {
            print!("{text}");
        }
        std::io::stdout().flush()?;
        last = text;
        tokio::time::sleep(REFRESH).await;
    }
}

fn hints(cluster: &Cluster, primary: &str) -> String {
    let program = std::env::current_exe().map_or_else(|_| "pgtenure".into(), |p| p.display().to_string());
    let config = cluster.manager_config();
    let kill = cluster.postmaster_file(primary);
    format!(
        "connection string  {}\nin a browser       {}/ (managers)  {}/ (proxy and lag)\n\n\
         type next, in another terminal:\n  psql {}\n  kill -9 $(head -1 {})\n  \
         {program} status --config {}\n\nCtrl-C stops everything.\n",
        cluster.uri(),
        cluster.admin_url(),
        cluster.proxy_admin_url(),
        cluster.uri(),
        kill.display(),
        config.display(),
    )
}

async fn finish(ground: &Ground, supervisor: Supervisor) {
    supervisor.stop_all(STOP_BOUND).await;
    let dir = ground.dir.clone();
    let gone = tokio::task::spawn_blocking(move || ground::end_processes(&dir, Duration::from_secs(2))).await;
    if !gone.unwrap_or(false) {
        eprintln!("pgtenure demo: processes in {} did not end even by SIGKILL", ground.dir.display());
    }
}

/// SIGINT, SIGTERM and SIGHUP end the demo.
struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    fn catch() -> Result<Self> {
        let all = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [a, b, c] = all.map(signal);
        Ok(Self { signals: [a?, b?, c?] })
    }

    async fn asked(&mut self) {
        let [a, b, c] = &mut self.signals;
        tokio::select! { _ = a.recv() => {}, _ = b.recv() => {}, _ = c.recv() => {} }
    }
}
