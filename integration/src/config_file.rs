//! The configuration files of a cluster on loopback: what an operator of three hosts would write, with our ports.

use crate::postgres::bin_dir;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Names of the PostgreSQL nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Names of the managers.
pub const MANAGERS: [&str; 2] = ["m1", "m2"];
/// The user and the database of the application.
pub const APP: &str = "app";

/// What a test wants different from the defaults.
#[derive(Clone, Debug)]
pub struct Options {
    /// `cluster.mode`.
    pub mode: &'static str,
    /// Lines for `[agent.parameters]`.
    pub parameters: &'static str,
    /// Lines for `[manager]`.
    pub manager: &'static str,
    /// Lines for `[proxy]`.
    pub proxy: &'static str,
    /// Put a fault proxy between each PostgreSQL and everything that reaches it by TCP.
    pub fault_proxies: bool,
    /// Run a second proxy, `proxy2`.
    pub second_proxy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { mode: "strict", parameters: "", manager: "", proxy: "", fault_proxies: false, second_proxy: false }
    }
}

/// Where one node's parts listen.
#[derive(Clone, Debug)]
pub struct NodePorts {
    /// `agent.advertise_host`: 127.0.0.1, or the address of the fault proxy.
    pub advertise: IpAddr,
    /// The agent's HTTP for managers and agents.
    pub agent: SocketAddr,
    /// PostgreSQL itself.
    pub postgres: SocketAddr,
    /// The process's admin HTTP.
    pub admin: SocketAddr,
}

/// Everything that the files name.
#[derive(Clone, Debug)]
pub struct Layout {
    /// etcd's client URL.
    pub etcd: String,
    /// By node, in the order of [`NODES`].
    pub nodes: Vec<NodePorts>,
    /// Admin HTTP of the managers, in the order of [`MANAGERS`].
    pub managers: Vec<SocketAddr>,
    /// The endpoint.
    pub proxy: SocketAddr,
    /// The proxy's admin HTTP.
    pub proxy_admin: SocketAddr,
    /// The second proxy's endpoint and admin HTTP, when there is one.
    pub second_proxy: Option<(SocketAddr, SocketAddr)>,
}

impl Layout {
    /// The file of each process, as (name, text). `dir` holds the secrets and the nodes' directories.
    pub fn files(&self, dir: &Path, options: &Options) -> Vec<(String, String)> {
        let mut files = Vec::new();
        for (name, ports) in NODES.iter().zip(&self.nodes) {
            files.push((
                (*name).to_owned(),
                self.common(dir, options, "\"agent\"", ports.admin) + &on_loopback(dir, name, ports, options),
            ));
        }
        for (name, admin) in MANAGERS.iter().zip(&self.managers) {
            let text = self.common(dir, options, "\"manager\"", *admin) + "\n[manager]\n" + options.manager;
            files.push(((*name).to_owned(), text));
        }
        let proxies = [("proxy", Some((self.proxy, self.proxy_admin))), ("proxy2", self.second_proxy)];
        for (name, (listen, admin)) in proxies.into_iter().filter_map(|(name, at)| Some((name, at?))) {
            let head = self.common(dir, options, "\"proxy\", \"lagmon\"", admin);
            files.push((name.to_owned(), head + &proxy(dir, listen, options)));
        }
        files
    }

    /// The file of a node that joins the running cluster without a vote.
    pub fn joining(&self, dir: &Path, options: &Options, name: &str, ports: &NodePorts) -> String {
        let agent = on_loopback(dir, name, ports, options).replacen("[agent]\n", "[agent]\njoins = true\n", 1);
        self.common(dir, options, "\"agent\"", ports.admin) + &agent
    }

    fn common(&self, dir: &Path, options: &Options, roles: &str, admin: SocketAddr) -> String {
        common(dir, options, std::slice::from_ref(&self.etcd), roles, admin)
    }
}

/// What every file begins with. `roles` are quoted and separated by commas, `etcd` are `host:port`.
pub(crate) fn common(dir: &Path, options: &Options, etcd: &[String], roles: &str, admin: SocketAddr) -> String {
    let voters = NODES.map(|n| format!("\"{n}\"")).join(", ");
    let user = crate::process::drop_to().map_or(String::new(), |u| format!("user = \"{}\"\n", u.name));
    let etcd: Vec<String> = etcd.iter().map(|e| format!("\"http://{e}\"")).collect();
    let (mode, etcd, dir) = (options.mode, etcd.join(", "), dir.display());
    format!(
        "roles = [{roles}]\n\n[process]\n{user}\n[admin]\nlisten = \"{admin}\"\n\n[cluster]\nname = \"test\"\n\
         mode = \"{mode}\"\nvoters = [{voters}]\nsecret_file = \"{dir}/shared.secret\"\n\n\
         [etcd]\nendpoints = [{etcd}]\n"
    )
}

/// What follows for a proxy with lagmon.
pub(crate) fn proxy(dir: &Path, listen: SocketAddr, options: &Options) -> String {
    let dir = dir.display();
    let monitor = format!("monitor_password_file = \"{dir}/monitor.password\"\n");
    format!(
        "\n[proxy]\nlisten = \"{listen}\"\nuserlist = \"{dir}/userlist.txt\"\n{monitor}{}\n[lagmon]\n{monitor}",
        options.proxy
    )
}

/// The same where nothing befalls the disk: what its PostgreSQL shares goes with the directory (see `segment`).
fn on_loopback(dir: &Path, name: &str, ports: &NodePorts, options: &Options) -> String {
    let head = "[agent.parameters]\n";
    agent(dir, name, ports, options).replacen(head, &format!("{head}dynamic_shared_memory_type = \"mmap\"\n"), 1)
}

/// What follows for an agent.
pub(crate) fn agent(dir: &Path, name: &str, ports: &NodePorts, options: &Options) -> String {
    let (dir, bin) = (dir.display(), bin_dir());
    let mut text = String::from("\n[agent]\n");
    let mut line = |key: &str, value: String| {
        writeln!(text, "{key} = {value}").expect("a String takes all");
    };
    line("node", format!("\"{name}\""));
    line("data_dir", format!("\"{dir}/{name}\""));
    line("listen", format!("\"{}\"", ports.agent));
    line("advertise_host", format!("\"{}\"", ports.advertise));
    line("postgres_listen", format!("\"{}\"", ports.postgres.ip()));
    line("postgres_port", ports.postgres.port().to_string());
    line("bin_dir", format!("\"{}\"", bin.display()));
    line("wal_keep", "\"64MiB\"".to_owned());
    line("replication_password_file", format!("\"{dir}/replication.password\""));
    line("monitor_password_file", format!("\"{dir}/monitor.password\""));
    // Small machines run many of these at once.
    let parameters = "shared_buffers = \"32MB\"\nmax_wal_size = \"256MB\"\n";
    text + &format!(
        "\n[agent.parameters]\n{parameters}{}\n[bootstrap]\nuserlist = \"{dir}/userlist.txt\"\ndatabases = {{ {APP} = \"{APP}\" }}\n",
        options.parameters
    )
}
