//! The drivers: how each one's scripts are started.

use crate::script::Login;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A driver's name and how its script is started; `None` when something that it needs is not there.
pub type Driver = (&'static str, fn(&Places) -> Option<Command>);

/// What each prints must be the same whatever it is connected to.
pub const DRIVERS: [Driver; 16] = [
    ("psycopg3", |p| p.python("psycopg_script.py", &["psycopg"])),
    ("psycopg2", |p| p.python("psycopg_script.py", &["psycopg2"])),
    ("asyncpg", |p| p.python("asyncpg_script.py", &[])),
    ("node-postgres", |p| p.node("pg.mjs", &[])),
    ("postgres.js", |p| p.node("postgres.mjs", &[])),
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

/// Those whose scripts take long or say little more than another of theirs: not over TLS once more.
pub const WITHOUT_TLS: [&str; 4] = ["pgjdbc modes", "pgx itself", "lib/pq itself", "psql commands"];

/// Each takes turns while the primary is replaced. The name is also what it calls itself in the table of turns.
pub const TURNS: [Driver; 12] = [
    ("psycopg3", |p| p.python("turns.py", &["psycopg3"])),
    ("psycopg2", |p| p.python("turns.py", &["psycopg2"])),
    ("asyncpg", |p| p.python("turns.py", &["asyncpg"])),
    ("node-postgres", |p| p.node("turns.mjs", &["node-postgres"])),
    ("postgres.js", |p| p.node("turns.mjs", &["postgres.js"])),
    ("tokio-postgres", |p| p.built("rust/debug/drivers", &["turns", "tokio-postgres"])),
    ("sqlx", |p| p.built("rust/debug/drivers", &["turns", "sqlx"])),
    ("pgjdbc", |p| p.java("Turns.java")),
    ("pgx", |p| p.built("turns", &["pgx"])),
    ("lib/pq", |p| p.built("turns", &["lib/pq"])),
    ("libpq pipeline", |p| p.built("pipeline_turns", &[])),
    ("psql", |p| p.shell("turns.sh")),
];

/// Where scripts and installed drivers are.
pub struct Places {
    /// integration/drivers
    pub scripts: PathBuf,
    /// target/drivers
    pub installed: PathBuf,
    /// For scratch files of a script.
    pub scratch: PathBuf,
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

    fn node(&self, script: &str, arguments: &[&str]) -> Option<Command> {
        let script = self.installed.join("node").join(script);
        let installed = script.exists() && self.installed.join("node/node_modules").is_dir();
        installed.then(|| {
            let mut command = Command::new("node");
            command.arg(script).args(arguments);
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

    fn shell(&self, script: &str) -> Option<Command> {
        let mut command = Command::new("/bin/sh");
        command.arg(self.scripts.join("psql").join(script));
        command.arg(integration::postgres::client_program("psql").get_program());
        Some(command)
    }
}

/// Tell a script where to connect, as libpq's environment variables do.
pub fn connects(command: &mut Command, login: &Login<'_>) {
    let Login { target, database, primary, authority } = login;
    command.env("PGHOST", target.addr.ip().to_string()).env("PGPORT", target.addr.port().to_string());
    command.env("PGUSER", &target.user).env("PGPASSWORD", &target.password).env("PGDATABASE", database);
    if let Some(primary) = primary {
        command.env("PGTENURE_PRIMARY", primary);
    }
    match authority {
        // Node has its own way to be told.
        Some(ca) => command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", ca).env("NODE_EXTRA_CA_CERTS", ca),
        None => command.env("PGSSLMODE", "disable"),
    };
}
