//! The schema that a run makes for itself, and its connections.

use anyhow::{Context, Result};
use std::time::Duration;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

/// Everything lies in it.
pub(super) const SCHEMA: &str = "pgtenure_verify";
/// How its comment begins, by which a run's remains are told from somebody else's schema.
const MARK: &str = "made by pgtenure verify reads";
/// Longest wait for a login, and for the answer to a statement: longer than an endpoint holds one.
pub(super) const PATIENCE: Duration = Duration::from_secs(45);

/// An endpoint to connect to.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    config: Config,
    /// Host and port, for people.
    pub(super) name: String,
}

impl Endpoint {
    /// As libpq's connection string or URI says.
    pub(super) fn parse(dsn: &str) -> Result<Self> {
        let mut config: Config = dsn.parse().with_context(|| format!("cannot understand --dsn {}", shown(dsn)))?;
        crate::ctl::with_password(&mut config);
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => anyhow::bail!("--dsn {}: no host", shown(dsn)),
        };
        let name = format!("{host}:{}", config.get_ports().first().copied().unwrap_or(5432));
        config.connect_timeout(PATIENCE).application_name("pgtenure verify");
        Ok(Self { config, name })
    }

    /// Log in, with these settings besides the connection string's own. The connection's task ends with the client.
    pub(super) async fn connect(&self, settings: &[(&str, String)]) -> Result<Client, tokio_postgres::Error> {
        let mut config = self.config.clone();
        let mut options = config.get_options().unwrap_or_default().to_owned();
        for (name, value) in settings {
            options.push_str(&format!(" -c {name}={value}"));
        }
        config.options(options);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

/// A connection string without what may be a password.
fn shown(dsn: &str) -> String {
    if dsn.contains("password") || dsn.contains('@') { "(not shown, it holds a password)".into() } else { dsn.into() }
}

/// Why a run does not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The schema is there.
    #[error(
        "schema {SCHEMA} exists already, {}: another run goes on, or was killed (then --replace drops it)",
        .comment.as_deref().unwrap_or("and is not ours")
    )]
    Exists {
        /// What its comment says, when a run has made it.
        comment: Option<String>,
    },
    /// The servers do not tell in a read whether they are standbys.
    #[error("PostgreSQL {0}: before 14 a read cannot tell whether a standby has served it")]
    Old(i32),
}

/// The first major version that has `in_hot_standby`.
const LEAST: i32 = 14;

/// Make the schema with `registers` rows at 0. With `replace` drop what an earlier run has left.
pub(super) async fn make(endpoint: &Endpoint, registers: usize, replace: bool) -> Result<Option<Refusal>> {
    let client = endpoint.connect(&[]).await.with_context(|| format!("cannot connect to {}", endpoint.name))?;
    // In a block, so that it is asked of the primary.
    client.batch_execute("begin").await?;
    let version = client.query_one("select current_setting('server_version_num')::int / 10000", &[]).await;
    let version: i32 = version.context("cannot ask for the version")?.get(0);
    if version < LEAST {
        return Ok(Some(Refusal::Old(version)));
    }
    let found = client
        .query_opt("select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = $1", &[&SCHEMA])
        .await
        .context("cannot look for the schema")?;
    if let Some(row) = found {
        let comment = row.get::<_, Option<String>>(0).filter(|c| c.starts_with(MARK));
        if comment.is_none() || !replace {
            return Ok(Some(Refusal::Exists { comment }));
        }
        client.batch_execute(&format!("drop schema {SCHEMA} cascade")).await.context("cannot drop the old schema")?;
    }
    let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
    let comment = format!("{MARK}, process {} on {}", std::process::id(), host.replace('\'', ""));
    // Rows are updated over and over: with room on their pages they stay there, and no index grows.
    let sql = format!(
        "create schema {SCHEMA};
         comment on schema {SCHEMA} is '{comment}';
         create table {SCHEMA}.registers (register int primary key, n bigint not null) with (fillfactor = 20);
         insert into {SCHEMA}.registers select r, 0 from generate_series(0, {}) r;
         commit",
        registers - 1
    );
    match client.batch_execute(&sql).await {
        Ok(()) => Ok(None),
        Err(e) if e.code() == Some(&SqlState::DUPLICATE_SCHEMA) => Ok(Some(Refusal::Exists { comment: None })),
        Err(e) => Err(e).context(format!("cannot make the schema {SCHEMA}")),
    }
}

/// Drop the schema. The cluster may be changing its primary just now, so it is tried for some time.
pub(super) async fn drop_schema(endpoint: &Endpoint) -> Result<()> {
    let attempt = async || -> Result<()> {
        let client = endpoint.connect(&[]).await?;
        client.batch_execute(&format!("drop schema if exists {SCHEMA} cascade")).await?;
        Ok(())
    };
    let mut last = Ok(());
    for _ in 0..3 {
        last = match tokio::time::timeout(PATIENCE, attempt()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(anyhow::anyhow!("no answer within {PATIENCE:?}")),
        };
    }
    last.with_context(|| format!("cannot drop the schema {SCHEMA}: drop it by hand"))
}
