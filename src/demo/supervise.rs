//! Starts the demo's processes, starts them again when they die (as systemd's `Restart=always` would), stops them.

use super::ground::{Ground, MARK};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Pause before a process that died is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Clone)]
pub struct Spec {
    /// Short name: the log file's name and what people are told.
    pub name: String,
    /// Program.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// Drop to the demo's user before exec. Our own program does it itself, as configured.
    pub drop_user: bool,
}

/// A running process's pid by name; absent while it is down.
pub type Pids = Arc<Mutex<BTreeMap<String, Pid>>>;

/// All processes of a demo.
pub struct Supervisor {
    pids: Pids,
    stop: watch::Sender<bool>,
    tasks: Vec<(String, tokio::task::JoinHandle<()>)>,
    logs: PathBuf,
    dir: PathBuf,
}

impl Supervisor {
    /// Logs go to `<dir>/logs/<name>.log`.
    pub fn new(ground: &Ground) -> Result<Self> {
        let logs = ground.make_dir("logs")?;
        Ok(Self {
            pids: Pids::default(),
            stop: watch::channel(false).0,
            tasks: Vec::new(),
            logs,
            dir: ground.dir.clone(),
        })
    }

    /// Pids by name, kept up to date.
    pub fn pids(&self) -> Pids {
        self.pids.clone()
    }

    /// Where a process's output goes.
    pub fn log_of(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Start and keep running.
    ///
    /// # Errors
    /// The program cannot be started, which is told in one line.
    pub fn start(&mut self, ground: &Ground, spec: Spec) -> Result<()> {
        let user = ground.user.as_ref().filter(|_| spec.drop_user).map(|u| (u.uid.as_raw(), u.gid.as_raw()));
        let log = self.log_of(&spec.name);
        let child = spawn(&spec, &self.dir, &log, user)?;
        let (name, pids, mut stop, dir) =
            (spec.name.clone(), self.pids.clone(), self.stop.subscribe(), self.dir.clone());
        let mut child = Some(child);
        let task = tokio::spawn(async move {
            while !*stop.borrow() {
                if let Some(mut running) = child.take() {
                    note(&pids, &spec.name, running.id());
                    // wait() ends when the process does; stopping it is stop_all's work.
                    let _ = running.wait().await;
                    note(&pids, &spec.name, None);
                }
                tokio::select! {
                    () = tokio::time::sleep(RESTART_AFTER) => {}
                    _ = stop.changed() => break,
                }
                child = spawn(&spec, &dir, &log, user).ok();
            }
        });
        self.tasks.push((name, task));
        Ok(())
    }

    /// Stop all, the last started first, within about `bound`.
    pub async fn stop_all(mut self, bound: Duration) {
        self.stop.send_replace(true);
        let pids: Vec<Pid> = self.pids.lock().expect("no holder panics").values().copied().collect();
        for pid in &pids {
            let _ = kill(*pid, Signal::SIGCONT);
            let _ = kill(*pid, Signal::SIGTERM);
        }
        let all = async {
            while let Some((_, task)) = self.tasks.pop() {
                let _ = task.await;
            }
        };
        // What does not go by itself is ended by the caller's sweep of the directory.
        let _ = tokio::time::timeout(bound, all).await;
    }
}

fn note(pids: &Pids, name: &str, pid: Option<u32>) {
    let mut pids = pids.lock().expect("no holder panics");
    match pid {
        Some(pid) => pids.insert(name.to_owned(), Pid::from_raw(pid.cast_signed())),
        None => pids.remove(name),
    };
}

fn spawn(spec: &Spec, dir: &Path, log: &Path, user: Option<(u32, u32)>) -> Result<tokio::process::Child> {
    let out = OpenOptions::new().create(true).append(true).open(log);
    let out = out.with_context(|| format!("cannot write {}", log.display()))?;
    let mut cmd = std::process::Command::new(&spec.program);
    cmd.args(&spec.args).current_dir(dir).env(MARK, dir).stdin(Stdio::null());
    cmd.stdout(out.try_clone()?).stderr(out);
    for (key, _) in std::env::vars_os().filter(|(k, _)| foreign(k.as_encoded_bytes())) {
        cmd.env_remove(key);
    }
    // A group of its own: Ctrl-C at the terminal reaches the demo alone, which then stops its children in order.
    cmd.process_group(0);
    if let Some((uid, gid)) = user {
        cmd.uid(uid).gid(gid);
    }
    let mut cmd = tokio::process::Command::from(cmd);
    cmd.spawn().with_context(|| format!("cannot start {} ({})", spec.name, spec.program.display()))
}

/// Variables that would silently change what etcd or PostgreSQL do.
fn foreign(key: &[u8]) -> bool {
    key.starts_with(b"ETCD") || key.starts_with(b"PG") && !key.starts_with(b"PGTENURE")
}
