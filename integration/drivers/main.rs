//! The driver matrix: every driver runs its script against PostgreSQL itself and through the endpoint, pooling by
//! transaction and by session, and must print the same each time; most do so over TLS once more. Then every driver
//! takes turns while the primary is replaced. `make test-drivers` installs the drivers and runs this;
//! `PGTENURE_DRIVERS` names those to run, separated by commas. A driver that is not installed is a failure, unless
//! `PGTENURE_DRIVERS_MAY_LACK=1` says that it need not be. The servers, and psql, are those of `PGTENURE_TEST_PG_BIN` where
//! that is set, and over TLS nothing is run where they are built without it.
//!
//! A script connects as the environment says (PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE, PGSSLMODE, PGSSLROOTCERT)
//! and prints what it sees, a line per step; what differs between any two connections to one server is left out, or
//! taken out here.

#![allow(unreachable_pub, missing_docs, reason = "a program has no public interface")]

mod authority;
mod places;
mod script;
mod turns;

use authority::Authority;
use integration::client::Target;
use integration::cluster::Cluster;
use integration::config_file::Options;
use integration::postgres::bin_dir;
use places::{DRIVERS, Places, WITHOUT_TLS};
use script::{Login, differences, run};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Lines of a difference that are printed.
const SHOWN: usize = 12;
/// The names by which the endpoint knows the database: pooled by transaction, by session, and only over TLS.
const DATABASES: [&str; 3] = ["app", "app_session", "app_tls"];

struct Matrix {
    cluster: Cluster,
    authority: Authority,
    endpoint: Target,
    server: Target,
    primary: String,
    /// The servers and their psql have it.
    tls: bool,
}

impl Matrix {
    fn start() -> Self {
        let (authority, tls) = (Authority::new(), has_tls());
        let [cert, key, ca] =
            ["server.crt", "server.key", "ca.crt"].map(|name| authority.path(name).display().to_string());
        let mut proxy = format!(
            "pool_size = 20\n\n[proxy.databases.app_session]\ndbname = \"app\"\npool_mode = \"session\"\n\n\
             [proxy.databases.app_tls]\ndbname = \"app\"\n\n\
             [proxy.auth]\nrules = [\"hostnossl app_tls all all reject\", \"host all all all scram-sha-256\"]\n\n\
             [proxy.tls]\nmode = \"allow\"\ncert = \"{cert}\"\nkey = \"{key}\"\n"
        );
        let mut parameters = String::new();
        if tls {
            proxy += &format!("\n[proxy.server_tls]\nmode = \"verify-full\"\nca = \"{ca}\"\n");
            parameters = format!("ssl = \"on\"\nssl_cert_file = \"{cert}\"\nssl_key_file = \"{key}\"\n");
        }
        // The options of all tests are written in their text; these name files, and live as long as this program.
        let (proxy, parameters) = (proxy.leak(), parameters.leak());
        let cluster = Cluster::start(&Options { proxy, parameters, ..Options::default() });
        let primary = cluster.active().primary;
        let (endpoint, server) = (cluster.target(), cluster.node_target(&primary));
        Self { cluster, authority, endpoint, server, primary, tls }
    }

    /// A driver's script through the endpoint by each name of the database, next to the server itself. Is all equal?
    fn script(&self, name: &str, start: &dyn Fn() -> Option<Command>) -> bool {
        let ca: PathBuf = self.authority.path("ca.crt");
        let print = |target, database, primary, authority| {
            let command = start().expect("what was installed a moment ago still is");
            run(command, &Login { target, database, primary, authority })
        };
        let direct = print(&self.server, &self.server.database, None, None);
        let [by_transaction, by_session, tls] = DATABASES;
        // A session that keeps its server reads there.
        let mut runs: Vec<_> = [(by_transaction, Some(&*self.primary)), (by_session, None)]
            .map(|(database, primary)| (database, print(&self.endpoint, database, primary, None)))
            .map(|(database, printed)| (database, differences(&direct, &printed)))
            .into();
        let mut failures = direct.failure();
        if self.tls && !WITHOUT_TLS.contains(&name) {
            let direct = print(&self.server, &self.server.database, None, Some(&ca));
            failures.extend(direct.failure());
            runs.push((tls, differences(&direct, &print(&self.endpoint, tls, None, Some(&ca)))));
        }
        print!("{name:<16}{:<44}{:>6}  ", direct.version(), direct.lines.len());
        for (_, differ) in &runs {
            print!("{:<12}", if differ.is_empty() { "equal".to_owned() } else { format!("{} differ", differ.len()) });
        }
        println!();
        failures.iter().for_each(|failure| println!("    against PostgreSQL itself {failure}"));
        for (database, differ) in &runs {
            differ.iter().take(SHOWN).for_each(|line| println!("    {database}, {line}"));
        }
        failures.is_empty() && runs.iter().all(|(_, differ)| differ.is_empty())
    }
}

/// Are the servers, and psql, built with it? Only those that were asked for may be without.
fn has_tls() -> bool {
    let program = std::fs::read(bin_dir().join("postgres")).expect("the server can be read");
    let has = program.windows(6).any(|bytes| bytes == b"libssl");
    assert!(has || std::env::var_os("PGTENURE_TEST_PG_BIN").is_some(), "nothing shows that PostgreSQL has TLS");
    has
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asked = std::env::var("PGTENURE_DRIVERS").unwrap_or_default();
    let wanted = |name: &str| asked.is_empty() || asked.split(',').any(|a| a.trim() == name);
    let matrix = Matrix::start();
    let places = Places {
        scripts: root.join("drivers"),
        installed: root.join("../target/drivers"),
        scratch: matrix.cluster.scratch().path().to_owned(),
    };
    let (mut failed, mut lacking, mut ran) = (0, 0, 0);
    println!("{:<16}{:<44}{:>6}  {:<12}{:<12}{:<12}", "driver", "version", "lines", "transaction", "session", "TLS");
    for (name, make) in DRIVERS.into_iter().filter(|(name, _)| wanted(name)) {
        let start = || make(&places);
        if start().is_none() {
            lacking += 1;
            println!("{name:<16}SKIPPED: it is not installed. make test-drivers installs it.");
            continue;
        }
        ran += 1;
        failed += usize::from(!matrix.script(name, &start));
    }
    failed += turns::run(&matrix.cluster, &places, wanted);
    println!("{ran} drivers ran, {failed} failed, {lacking} skipped");
    let may_lack = std::env::var("PGTENURE_DRIVERS_MAY_LACK").is_ok_and(|v| v == "1");
    if failed > 0 || ran == 0 || (lacking > 0 && !may_lack) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
