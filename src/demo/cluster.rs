//! The demo's cluster: writes the configuration files, starts the processes, and does to them what a person would.

use super::ground::Ground;
use super::layout::{MANAGERS, NODES, Ports, Programs};
use super::story::Death;
use super::supervise::{Pids, Spec, Supervisor};
use crate::ctl::client::{Admin, CallError};
use anyhow::{Context, Result, anyhow, bail, ensure};
use failover::record::LossReport;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The application's user and database.
pub const USER: &str = "app";

/// A running cluster.
pub struct Cluster {
    dir: PathBuf,
    ports: Ports,
    password: String,
    secret: String,
    mode: String,
    pids: Pids,
}

/// An open term.
pub struct Active {
    /// The term.
    pub term: u64,
    /// Its primary.
    pub primary: String,
}

/// Processes that were stopped and wait to be continued.
pub struct Thaw(Vec<Pid>);

impl Thaw {
    /// SIGCONT to all of them.
    pub fn go(self) {
        for pid in self.0 {
            // Gone already is as good.
            let _ = kill(pid, Signal::SIGCONT);
        }
    }
}

/// Write all configuration and start everything.
pub fn start(ground: &Ground, ports: Ports, programs: &Programs, mode: &str) -> Result<(Cluster, Supervisor)> {
    let secrets = Secrets::make(ground)?;
    let binary = ground.copy_program()?;
    let mut supervisor = Supervisor::new(ground)?;
    supervisor.start(ground, etcd(ground, ports, programs)?)?;
    for file in config_files(ground, ports, programs, mode)? {
        let path = ground.write(&format!("{}.toml", file.name), &file.text)?;
        let args = vec![OsString::from("run"), "--config".into(), path.into()];
        supervisor.start(ground, Spec { name: file.name, program: binary.clone(), args, drop_user: false })?;
    }
    let cluster = Cluster {
        dir: ground.dir.clone(),
        ports,
        password: secrets.app,
        secret: secrets.shared,
        mode: mode.to_owned(),
        pids: supervisor.pids(),
    };
    Ok((cluster, supervisor))
}

/// What only this cluster's processes know.
struct Secrets {
    app: String,
    shared: String,
}

impl Secrets {
    fn make(ground: &Ground) -> Result<Self> {
        let [app, shared, replication, monitor] = [(); 4].map(|()| random_word());
        ground.write("shared.secret", &shared)?;
        ground.write("replication.password", &replication)?;
        ground.write("monitor.password", &monitor)?;
        ground.write("app.password", &app)?;
        let verifier = proxy::auth::scram::Verifier::from_password(&app, rand::random(), 4096);
        ground.write("userlist.txt", &format!("\"{USER}\" \"{verifier}\"\n"))?;
        Ok(Self { app, shared })
    }
}

/// 96 random bits in letters that need no quoting anywhere.
fn random_word() -> String {
    let bits: u128 = rand::random();
    format!("{:024x}", bits >> 32)
}

fn etcd(ground: &Ground, ports: Ports, programs: &Programs) -> Result<Spec> {
    let data = ground.make_dir("etcd")?;
    let client = format!("http://127.0.0.1:{}", ports.etcd());
    let peer = format!("http://127.0.0.1:{}", ports.etcd_peer());
    let mut args: Vec<OsString> = vec!["--data-dir".into(), data.into()];
    for (key, value) in [
        ("--name", "demo"),
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster", &format!("demo={peer}")),
        ("--heartbeat-interval", "50"),
        ("--election-timeout", "500"),
        ("--logger", "zap"),
        ("--auto-compaction-mode", "periodic"),
        ("--auto-compaction-retention", "1h"),
    ] {
        args.extend([OsString::from(key), value.into()]);
    }
    Ok(Spec { name: "etcd".into(), program: programs.etcd.clone(), args, drop_user: true })
}

struct ConfigFile {
    name: String,
    text: String,
}

fn config_files(ground: &Ground, ports: Ports, programs: &Programs, mode: &str) -> Result<Vec<ConfigFile>> {
    let dir = ground.dir.display();
    let user = ground.user.as_ref().map_or(String::new(), |u| format!("user = \"{}\"\n", u.name));
    let voters = NODES.map(|n| format!("\"{n}\"")).join(", ");
    let common = |roles: &str, admin: u16| {
        format!(
            "roles = [{roles}]\n\n[process]\n{user}\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n\n\
             [cluster]\nname = \"demo\"\nmode = \"{mode}\"\nvoters = [{voters}]\nsecret_file = \"{dir}/shared.secret\"\n\n\
             [etcd]\nendpoints = [\"http://127.0.0.1:{}\"]\n",
            ports.etcd()
        )
    };
    let mut files = Vec::new();
    for (i, node) in (0u16..).zip(NODES) {
        ground.make_dir(node)?;
        let head = common("\"agent\"", ports.agent_admin(i));
        let (listen, postgres, bin) = (ports.agent(i), ports.postgres(i), programs.postgres_bin.display());
        let agent = format!(
            "\n[agent]\nnode = \"{node}\"\ndata_dir = \"{dir}/{node}\"\nlisten = \"127.0.0.1:{listen}\"\n\
             postgres_port = {postgres}\nbin_dir = \"{bin}\"\nwal_keep = \"64MiB\"\n\
             replication_password_file = \"{dir}/replication.password\"\n\
             monitor_password_file = \"{dir}/monitor.password\"\n\n\
             [agent.parameters]\nshared_buffers = \"64MB\"\nmax_wal_size = \"256MB\"\n\n\
             [bootstrap]\nuserlist = \"{dir}/userlist.txt\"\ndatabases = {{ {USER} = \"{USER}\" }}\n"
        );
        files.push(ConfigFile { name: node.into(), text: head + &agent });
    }
    for (i, name) in (0u16..).zip(MANAGERS) {
        files.push(ConfigFile { name: name.into(), text: common("\"manager\"", ports.manager_admin(i)) });
    }
    let proxy = format!(
        "\n[proxy]\nlisten = \"127.0.0.1:{}\"\nuserlist = \"{dir}/userlist.txt\"\n\
         monitor_password_file = \"{dir}/monitor.password\"\n\n\
         [lagmon]\nmonitor_password_file = \"{dir}/monitor.password\"\n",
        ports.proxy()
    );
    files
        .push(ConfigFile { name: "proxy".into(), text: common("\"proxy\", \"lagmon\"", ports.proxy_admin()) + &proxy });
    Ok(files)
}

impl Cluster {
    /// The durability mode.
    pub fn mode(&self) -> &str {
        &self.mode
    }

    /// How an application connects.
    pub fn dsn(&self) -> String {
        format!("host=127.0.0.1 port={} user={USER} password={} dbname={USER}", self.ports.proxy(), self.password)
    }

    /// The same as a URI, for psql.
    pub fn uri(&self) -> String {
        format!("postgresql://{USER}:{}@127.0.0.1:{}/{USER}", self.password, self.ports.proxy())
    }

    /// Where a manager's admin HTTP listens.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.manager_admin(0))
    }

    /// The proxy's admin HTTP.
    pub fn proxy_admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.proxy_admin())
    }

    /// The file of a node's postmaster pid.
    pub fn postmaster_file(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("data/postmaster.pid")
    }

    /// A configuration file for the operator's commands.
    pub fn manager_config(&self) -> PathBuf {
        self.dir.join("m1.toml")
    }

    fn admin(&self) -> Admin {
        let urls = [0, 1].map(|i| format!("http://127.0.0.1:{}", self.ports.manager_admin(i)));
        Admin::new(urls.to_vec(), Some(self.secret.clone()))
    }

    /// `GET` from the leading manager.
    pub async fn get(&self, path: &str) -> Result<Value, CallError> {
        self.admin().get(path).await
    }

    /// Wait for an open term, later than `after` when given, whose primary accepts writes.
    pub async fn active(&self, after: Option<u64>) -> Result<Active> {
        let what = match after {
            Some(t) => format!("a term after {t} to open"),
            None => "the cluster to accept writes".to_owned(),
        };
        self.until(&what, Duration::from_secs(60), |s| {
            let term = s.get("term")?.as_u64()?;
            let open = s.get("phase")?.as_str()? == "active" && after.is_none_or(|a| term > a);
            let primary = s.get("primary")?.as_str()?.to_owned();
            open.then_some(Active { term, primary })
        })
        .await
    }

    /// Wait until `node` streams from the present primary and counts again: after a rewind or copy it must first have
    /// replayed what it once held.
    pub async fn streams(&self, node: &str, bound: Duration) -> Result<()> {
        self.until(&format!("{node} to stream as a standby"), bound, |s| {
            let primary = s.get("primary")?.as_str()?;
            let nodes = s.get("nodes")?.as_array()?;
            let found = nodes.iter().find(|n| n.get("node").and_then(Value::as_str) == Some(node))?;
            let counts = found.get("quarantine").is_none_or(Value::is_null);
            (found.get("streams_from")?.as_str()? == primary && counts).then_some(())
        })
        .await
    }

    /// Wait until every node but the primary streams.
    pub async fn all_stream(&self) -> Result<()> {
        let primary = self.active(None).await?.primary;
        for node in NODES.iter().filter(|n| **n != primary) {
            self.streams(node, Duration::from_secs(60)).await?;
        }
        Ok(())
    }

    async fn until<T>(&self, what: &str, bound: Duration, look: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let start = Instant::now();
        let mut last = String::from("no answer yet");
        while start.elapsed() < bound {
            match self.get("/status").await {
                Ok(status) => {
                    if let Some(found) = look(&status) {
                        return Ok(found);
                    }
                    last = summary(&status);
                }
                Err(e) => last = e.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("waited {bound:?} for {what}; last seen: {last}; logs are in {}", self.dir.join("logs").display())
    }

    /// Milliseconds per phase of how `term` came about.
    pub async fn phases(&self, term: u64) -> Result<BTreeMap<String, u64>> {
        let journal = self.get("/history").await?;
        let terms = journal.as_array().or_else(|| journal.get("history")?.as_array()).context("/history is no list")?;
        let entry = terms.iter().find(|j| j.get("term").and_then(Value::as_u64) == Some(term));
        let phases =
            entry.and_then(|j| j.get("phases")?.as_array()).with_context(|| format!("no phases of term {term}"))?;
        let pair = |p: &Value| Some((p.get("phase")?.as_str()?.to_owned(), p.get("ms")?.as_u64()?));
        Ok(phases.iter().filter_map(pair).collect())
    }

    /// What the old primary's own WAL held past the fork of `term`: there once it has rejoined.
    ///
    /// # Errors
    /// No report of `node` within `bound`.
    pub async fn final_report(&self, term: u64, node: &str, bound: Duration) -> Result<LossReport> {
        let start = Instant::now();
        loop {
            let answer = self.get(&format!("/report?term={term}")).await?;
            let reports = answer.get("reports").and_then(Value::as_array).cloned().unwrap_or_default();
            let mut read = reports.into_iter().filter_map(|r| serde_json::from_value::<LossReport>(r).ok());
            match read.find(|r| r.node.as_str() == node) {
                Some(report) => return Ok(report),
                None if start.elapsed() > bound => bail!("no report of {node} on term {term} within {bound:?}"),
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Ask for a switchover and wait until it is done.
    pub async fn switchover(&self, to: &str) -> Result<()> {
        let answer = self.admin().post("/ops/switchover", &json!({ "to": to })).await;
        answer.map(drop).map_err(|e| anyhow!("switchover to {to}: {e}"))
    }

    /// Let a node die. What was only stopped comes back as a [`Thaw`].
    pub async fn kill_node(&self, node: &str, death: Death) -> Result<Option<Thaw>> {
        let postmaster = postmaster_pid(&self.postmaster_file(node)).await?;
        let agent = self.pids.lock().expect("no holder panics").get(node).copied();
        match death {
            Death::Postmaster => kill(postmaster, Signal::SIGKILL).map(|()| None),
            Death::PostmasterAndAgent => {
                let agent = agent.with_context(|| format!("the agent of {node} is not running"))?;
                kill(agent, Signal::SIGKILL).and(kill(postmaster, Signal::SIGKILL)).map(|()| None)
            }
            Death::Freeze => {
                let agent = agent.with_context(|| format!("the agent of {node} is not running"))?;
                let mut all = vec![agent, postmaster];
                all.extend(children(postmaster));
                all.iter().try_for_each(|pid| kill(*pid, Signal::SIGSTOP)).map(|()| Some(Thaw(all)))
            }
        }
        .with_context(|| format!("cannot signal the processes of {node}"))
    }
}

/// One line of a status, for a wait that failed.
fn summary(status: &Value) -> String {
    let word = |k: &str| status.get(k).map_or_else(|| "?".to_owned(), |v| v.to_string().replace('"', ""));
    format!("term {} {}, primary {}, {}", word("term"), word("phase"), word("primary"), word("verdict"))
}

async fn postmaster_pid(file: &Path) -> Result<Pid> {
    let text = tokio::fs::read_to_string(file).await.with_context(|| format!("cannot read {}", file.display()))?;
    let pid = text.lines().next().and_then(|l| l.trim().parse::<i32>().ok());
    let pid = pid.with_context(|| format!("{} does not begin with a pid", file.display()))?;
    ensure!(pid > 1, "{} holds no pid of a postmaster", file.display());
    Ok(Pid::from_raw(pid))
}

/// Direct children: of a postmaster, all other PostgreSQL processes.
fn children(parent: Pid) -> Vec<Pid> {
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbers.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let child_of = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ppid: i32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        (ppid == parent.as_raw()).then_some(())
    };
    pids.filter(|pid| child_of(pid).is_some()).map(Pid::from_raw).collect()
}
