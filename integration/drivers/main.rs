//! The driver matrix: every driver runs its script against PostgreSQL itself and through the endpoint, pooling by
//! transaction and by session, and must print the same each time. `make test-drivers` installs the drivers and runs
//! this; `PGTENURE_DRIVERS` names those to run, separated by commas. A driver that is not installed is a failure,
//! unless `PGTENURE_DRIVERS_MAY_LACK=1` says that it need not be.
//!
//! A script connects as the environment says (PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE) and prints what it sees,
//! a line per step; what differs between any two connections to one server is left out, or taken out here.

use integration::client::Target;
use integration::cluster::Cluster;
use integration::config_file::Options;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest time that one script may take.
const LIMIT: Duration = Duration::from_secs(180);
/// Lines of a difference that are printed.
const SHOWN: usize = 12;

const PROXY: &str = "pool_size = 20\n\n[proxy.databases.app_session]\ndbname = \"app\"\npool_mode = \"session\"\n";

/// A driver's name and how its script is started; `None` when something that it needs is not there.
type Driver = (&'static str, fn(&Places) -> Option<Command>);

const DRIVERS: [Driver; 16] = [
    ("psycopg3", |p| p.python("psycopg_script.py", &["psycopg"])),
    ("psycopg2", |p| p.python("psycopg_script.py", &["psycopg2"])),
    ("asyncpg", |p| p.python("asyncpg_script.py", &[])),
    ("node-postgres", |p| p.node("pg.mjs")),
    ("postgres.js", |p| p.node("postgres.mjs")),
    ("tokio-postgres", |p| p.built("rust/debug/drivers", &["tokio-postgres"])),
    ("sqlx", |p| p.built("rust/debug/drivers", &["sqlx"])),
    ("pgjdbc", |p| p.java("Matrix.java")),
    ("pgjdbc modes", |p| p.java("Modes.java")),
    ("pgx", |p| p.built("go", &["pgx"])),
    ("lib/pq", |p| p.built("go", &["postgres"])),
    ("pgx itself", |p| p.built("pgx", &[])),
    ("lib/pq itself", |p| p.built("pq", &[])),
    ("libpq pipeline", |p| p.built("pipeline", &[])),
    ("psql", |p| p.psql("script.sql")),
    ("psql commands", |p| p.psql("commands.sql")),
];

/// Where scripts and installed drivers are.
struct Places {
    /// integration/drivers
    scripts: PathBuf,
    /// target/drivers
    installed: PathBuf,
    /// For scratch files of a script.
    scratch: PathBuf,
}

impl Places {
    fn command(&self, program: PathBuf) -> Option<Command> {
        program.exists().then(|| Command::new(program))
    }

    fn python(&self, script: &str, arguments: &[&str]) -> Option<Command> {
        let mut command = self.command(self.installed.join("venv/bin/python"))?;
        command.arg(self.scripts.join("python").join(script)).args(arguments);
        Some(command)
    }

    fn node(&self, script: &str) -> Option<Command> {
        let script = self.installed.join("node").join(script);
        let installed = script.exists() && self.installed.join("node/node_modules").is_dir();
        installed.then(|| {
            let mut command = Command::new("node");
            command.arg(script);
            command
        })
    }

    fn built(&self, program: &str, arguments: &[&str]) -> Option<Command> {
        let mut command = self.command(self.installed.join(program))?;
        command.args(arguments);
        Some(command)
    }

    fn java(&self, script: &str) -> Option<Command> {
        let jar = Path::new("/usr/share/java/postgresql.jar");
        jar.exists().then(|| {
            let mut command = Command::new("java");
            command.arg("-cp").arg(jar).arg(self.scripts.join("java").join(script));
            command
        })
    }

    fn psql(&self, script: &str) -> Option<Command> {
        let mut command = integration::postgres::client_program("psql");
        command.args(["-X", "-v"]).arg(format!("scratch={}", self.scratch.display())).arg("-f");
        command.arg(self.scripts.join("psql").join(script)).env("PSQL_SCRATCH", &self.scratch);
        Some(command)
    }
}

/// What a script printed, line by line, and whether it ran to its end.
struct Printed {
    lines: Vec<String>,
    ended: Result<(), String>,
}

fn run(mut command: Command, target: &Target, database: &str) -> Printed {
    command.env("PGHOST", target.addr.ip().to_string()).env("PGPORT", target.addr.port().to_string());
    command.env("PGUSER", &target.user).env("PGPASSWORD", &target.password).env("PGDATABASE", database);
    command.env("PGSSLMODE", "disable").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = match command.spawn().and_then(|child| bounded(child, start)) {
        Ok(output) => output,
        Err(error) => return Printed { lines: Vec::new(), ended: Err(error.to_string()) },
    };
    let [mut text, errors] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    let ended = if output.status.success() { Ok(()) } else { Err(output.status.to_string()) };
    // psql says there what the server said; others warn of themselves, or say what ended them.
    if ended.is_err() || errors.starts_with("psql:") {
        text.push_str(&errors);
    }
    Printed { lines: text.lines().map(same_everywhere).collect(), ended }
}

/// The output of a process, which is killed when it takes too long.
fn bounded(mut child: std::process::Child, start: Instant) -> std::io::Result<Output> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let read = |from: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            let done = from.map_or(Ok(0), |mut from| from.read_to_end(&mut all));
            done.map(|_| all)
        })
    };
    let stdout = read(out.take().map(|o| Box::new(o) as _));
    let stderr = read(err.take().map(|e| Box::new(e) as _));
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if start.elapsed() > LIMIT => {
                child.kill()?;
                break child.wait()?;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let joined = |t: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| t.join().expect("reading does not panic");
    Ok(Output { status, stdout: joined(stdout)?, stderr: joined(stderr)? })
}

/// A line without what differs between two connections to the same server.
fn same_everywhere(line: &str) -> String {
    let mut line = line.to_owned();
    for before in ["server process with PID ", "pg_temp_", "lo_import ", "lo_unlink ", "127.0.0.1\", port "] {
        if let Some(at) = line.find(before) {
            let digits = at + before.len();
            let end = line[digits..].find(|c: char| !c.is_ascii_digit()).map_or(line.len(), |n| digits + n);
            line.replace_range(digits..end, "N");
        }
    }
    line
}

/// The lines that differ, as `step: direct | through the endpoint`.
fn differences(direct: &Printed, through: &Printed) -> Vec<String> {
    let mut all = Vec::new();
    if let Err(status) = &through.ended {
        all.push(format!("ended with {status}"));
    }
    let (count, nothing) = (direct.lines.len().max(through.lines.len()), String::new());
    for n in 0..count {
        let (a, b) = (direct.lines.get(n).unwrap_or(&nothing), through.lines.get(n).unwrap_or(&nothing));
        if a != b {
            all.push(format!("line {}: {a} | {b}", n + 1));
        }
    }
    all
}

fn version(printed: &Printed) -> String {
    let first = printed.lines.first().map_or("", String::as_str);
    let found = first.strip_prefix("[\"version\"").map(|rest| rest.trim_matches(|c: char| " ,\"]".contains(c)));
    found.unwrap_or("-").to_owned()
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asked = std::env::var("PGTENURE_DRIVERS").unwrap_or_default();
    let wanted = |name: &str| asked.is_empty() || asked.split(',').any(|a| a.trim() == name);
    let cluster = Cluster::start(&Options { proxy: PROXY, ..Options::default() });
    let places = Places {
        scripts: root.join("drivers"),
        installed: root.join("../target/drivers"),
        scratch: cluster.scratch().path().to_owned(),
    };
    let (endpoint, server) = (cluster.target(), cluster.node_target(&cluster.active().primary));
    let (mut failed, mut lacking, mut ran) = (0, 0, 0);
    println!("{:<16}{:<44}{:>6}  {:<12}{:<12}", "driver", "version", "lines", "transaction", "session");
    for (name, make) in DRIVERS.into_iter().filter(|(name, _)| wanted(name)) {
        let start = || make(&places);
        let Some(command) = start() else {
            lacking += 1;
            println!("{name:<16}SKIPPED: it is not installed. make test-drivers installs it.");
            continue;
        };
        ran += 1;
        let direct = run(command, &server, &server.database);
        let runs = ["app", "app_session"].map(|database| match start() {
            Some(command) => differences(&direct, &run(command, &endpoint, database)),
            None => vec!["it is no longer installed".to_owned()],
        });
        let word = |d: &Vec<String>| if d.is_empty() { "equal".to_owned() } else { format!("{} differ", d.len()) };
        let lines = direct.lines.len();
        let [transaction, session] = &runs;
        println!("{name:<16}{:<44}{lines:>6}  {:<12}{:<12}", version(&direct), word(transaction), word(session));
        if let Err(status) = &direct.ended {
            let last = direct.lines.last().map_or("", String::as_str);
            println!("    against PostgreSQL itself it ended with {status}: {last}");
        }
        for (mode, differ) in ["transaction", "session"].into_iter().zip(&runs) {
            differ.iter().take(SHOWN).for_each(|line| println!("    {mode}, {line}"));
        }
        failed += usize::from(direct.ended.is_err() || runs.iter().any(|d| !d.is_empty()));
    }
    println!("{ran} drivers ran, {failed} failed, {lacking} skipped");
    let may_lack = std::env::var("PGTENURE_DRIVERS_MAY_LACK").is_ok_and(|v| v == "1");
    if failed > 0 || ran == 0 || (lacking > 0 && !may_lack) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
