//! Which process of the demo listens where, and the configuration files they read: the same keys a deployment on
//! three hosts has, with loopback addresses.

use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// Names of the three PostgreSQL nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Names of the two managers.
pub const MANAGERS: [&str; 2] = ["m1", "m2"];
/// Ports used above the base port.
const SPAN: u16 = 40;

/// Every port, from one base.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    base: u16,
}

impl Ports {
    /// # Errors
    /// The range would end past 65535.
    pub fn new(base: u16) -> Result<Self> {
        if base.checked_add(SPAN).is_none() || base < 1024 {
            bail!("--base-port {base}: must be between 1024 and {}", u16::MAX - SPAN);
        }
        Ok(Self { base })
    }

    /// The endpoint applications connect to.
    pub fn proxy(self) -> u16 {
        self.base
    }

    /// The proxy's admin HTTP.
    pub fn proxy_admin(self) -> u16 {
        self.base + 1
    }

    /// etcd for clients.
    pub fn etcd(self) -> u16 {
        self.base + 2
    }

    /// etcd for its peers.
    pub fn etcd_peer(self) -> u16 {
        self.base + 3
    }

    /// PostgreSQL of the i-th node.
    pub fn postgres(self, i: u16) -> u16 {
        self.base + 10 + i
    }

    /// Agent of the i-th node.
    pub fn agent(self, i: u16) -> u16 {
        self.base + 20 + i
    }

    /// Admin HTTP of the i-th node's process.
    pub fn agent_admin(self, i: u16) -> u16 {
        self.base + 25 + i
    }

    /// Admin HTTP of the i-th manager.
    pub fn manager_admin(self, i: u16) -> u16 {
        self.base + 30 + i
    }

    /// Is every port free?
    ///
    /// # Errors
    /// The first one that is not, and what it is for.
    pub fn check_free(self) -> Result<()> {
        let mut all = vec![
            (self.proxy(), "the endpoint"),
            (self.proxy_admin(), "the proxy's admin page"),
            (self.etcd(), "etcd"),
            (self.etcd_peer(), "etcd's peers"),
        ];
        for i in 0..3 {
            all.extend([
                (self.postgres(i), "PostgreSQL"),
                (self.agent(i), "an agent"),
                (self.agent_admin(i), "an agent's admin page"),
            ]);
        }
        all.extend([(self.manager_admin(0), "a manager"), (self.manager_admin(1), "a manager")]);
        for (port, what) in all {
            TcpListener::bind(("127.0.0.1", port))
                .with_context(|| format!("port {port}, meant for {what}, is taken: choose another --base-port"))?;
        }
        Ok(())
    }
}

/// Programs that must be installed.
pub struct Programs {
    /// etcd.
    pub etcd: PathBuf,
    /// The directory with `postgres`, `initdb`, `pg_rewind`, …
    pub postgres_bin: PathBuf,
}

impl Programs {
    /// # Errors
    /// Which one is missing and how to install it.
    pub fn find() -> Result<Self> {
        let etcd = on_path("etcd").context("etcd is not installed: apt-get install etcd-server (make demo does it)")?;
        let wanted = "PostgreSQL's server programs are not installed: apt-get install postgresql (make demo does it)";
        Ok(Self { etcd, postgres_bin: postgres_bin().context(wanted)? })
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps some servers in sbin, which an ordinary user's PATH lacks.
    let extra = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|d| d.join(program)).find(|p| p.is_file())
}

/// The newest of Debian's versioned directories, else wherever `postgres` is on the PATH.
fn postgres_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
        .filter(|(major, bin)| (13..=18).contains(major) && complete(bin))
        .collect();
    found.sort();
    let versioned = found.pop().map(|(_, bin)| bin);
    versioned
        .or_else(|| on_path("postgres")?.canonicalize().ok()?.parent().map(Path::to_path_buf).filter(|b| complete(b)))
}

fn complete(bin: &Path) -> bool {
    ["postgres", "initdb", "pg_ctl", "pg_rewind", "pg_basebackup", "pg_waldump"].iter().all(|p| bin.join(p).is_file())
}
