//! Probes: one task and one kept connection per node, so that a slow node delays no other.
//!
//! One query asks for everything. Its deadline covers connecting; when it runs out the connection is given up, because
//! what a server answers late says nothing of the present.

use crate::config::Config;
use crate::metrics::Probes;
use crate::model::sample::{Answer, Facts, Outcome, PrimaryFacts, StandbyFacts};
use cluster::secret::Secret;
use cluster::{Clock, Endpoint, Lsn, NodeId, Term, TimelineId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_postgres::{Client, NoTls, Row, Statement};
use tracing::{info, warn};

/// Pause before connecting again: doubled from the first to the last while a node does not answer. A refusal costs
/// nothing and is not slowed down past the first; a node that hangs would collect our connections.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Asks one node for all it knows. Works from PostgreSQL 13 on. The branches of CASE are not evaluated on a node of
/// the other kind, where they would fail; OFFSET 0 keeps pg_is_in_recovery() from being asked more than once.
const QUERY: &str = "\
SELECT r.in_recovery,
       CASE WHEN NOT r.in_recovery THEN pg_current_wal_insert_lsn()::text END AS insert_lsn,
       CASE WHEN NOT r.in_recovery THEN pg_current_wal_flush_lsn()::text END AS flush_lsn,
       CASE WHEN NOT r.in_recovery THEN pg_walfile_name(pg_current_wal_insert_lsn()) END AS walfile,
       CASE WHEN r.in_recovery THEN pg_last_wal_replay_lsn()::text END AS replay_lsn,
       CASE WHEN r.in_recovery THEN pg_last_wal_receive_lsn()::text END AS receive_lsn,
       CASE WHEN r.in_recovery THEN pg_is_wal_replay_paused() END AS paused,
       w.status AS status,
       w.written_lsn::text AS written_lsn,
       w.received_tli AS received_tli
  FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) r
  LEFT JOIN pg_stat_wal_receiver w ON r.in_recovery";

/// Why a probe gave nothing.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("cannot connect")]
    Connect(#[source] tokio_postgres::Error),
    #[error("the query failed")]
    Query(#[source] tokio_postgres::Error),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("{column} is {value:?}, which cannot be read")]
    Unreadable { column: &'static str, value: String },
}

/// A probe's outcome and what it belongs to.
#[derive(Debug)]
pub(crate) struct Report {
    /// The term in force when the probe was sent.
    pub(crate) term: Term,
    /// The node.
    pub(crate) node: NodeId,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

/// A node being probed. Probing ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) endpoint: Endpoint,
    task: AbortHandle,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all probes of a process share.
#[derive(Clone, Debug)]
pub(crate) struct Prober {
    pub(crate) config: Arc<Config>,
    pub(crate) password: Option<Secret>,
    pub(crate) term: watch::Receiver<Term>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) metrics: Probes,
}

impl Prober {
    /// Probe `node` at `endpoint` from now on.
    pub(crate) fn start(&self, node: NodeId, endpoint: Endpoint) -> Probe {
        let run = Run { shared: self.clone(), node, connect: self.connect_config(&endpoint), connection: None };
        Probe { endpoint, task: tokio::spawn(run.run()).abort_handle() }
    }

    fn connect_config(&self, endpoint: &Endpoint) -> tokio_postgres::Config {
        let mut connect = tokio_postgres::Config::new();
        connect
            .host(&endpoint.host)
            .port(endpoint.port)
            .user(&self.config.user)
            .dbname(&self.config.database)
            .application_name("pgtenure_lagmon")
            .connect_timeout(self.config.probe_timeout)
            .tcp_user_timeout(self.config.tcp_user_timeout)
            .keepalives(true)
            .keepalives_idle(self.config.tcp_user_timeout)
            .keepalives_interval(self.config.probe_timeout)
            .keepalives_retries(3);
        if let Some(password) = &self.password {
            connect.password(password.expose());
        }
        connect
    }
}

/// A connection and its prepared query. The driver's task ends with it.
struct Connection {
    client: Client,
    query: Statement,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

struct Run {
    shared: Prober,
    node: NodeId,
    connect: tokio_postgres::Config,
    connection: Option<Connection>,
}

impl Run {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(self.shared.config.probe_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut answered, mut pause) = (None, RECONNECT.0);
        loop {
            ticks.tick().await;
            let term = *self.shared.term.borrow();
            let started = Clock.now();
            let probed = timeout(self.shared.config.probe_timeout, self.probe()).await;
            let probed = probed.unwrap_or_else(|_| Err(ProbeError::TimedOut(self.shared.config.probe_timeout)));
            self.shared.metrics.observe(&self.node, probed.is_ok(), Clock.now().since(started));
            let was_answered = answered.replace(probed.is_ok());
            let outcome = match probed {
                Ok(answer) => {
                    if was_answered == Some(false) {
                        info!(node = %self.node, "node answers probes again");
                    }
                    pause = RECONNECT.0;
                    Outcome::Answered(answer)
                }
                Err(error) => {
                    if was_answered != Some(false) {
                        warn!(node = %self.node, error = %chain(&error), "node does not answer probes");
                    }
                    self.connection = None;
                    Outcome::Failed
                }
            };
            let failed = outcome == Outcome::Failed;
            if self.shared.reports.send(Report { term, node: self.node.clone(), outcome }).await.is_err() {
                return;
            }
            if failed {
                tokio::time::sleep(pause).await;
                let hung = Clock.now().since(started) >= self.shared.config.probe_timeout;
                pause = if hung { (pause * 2).min(RECONNECT.1) } else { RECONNECT.0 };
            }
        }
    }

    async fn probe(&mut self) -> Result<Answer, ProbeError> {
        if self.connection.is_none() {
            self.connection = Some(connect(&self.connect).await?);
        }
        let connection = self.connection.as_ref().expect("connected above");
        let sent_at = Clock.now();
        let row = connection.client.query_one(&connection.query, &[]).await.map_err(ProbeError::Query)?;
        Ok(Answer { sent_at, facts: facts(&row)? })
    }
}

async fn connect(config: &tokio_postgres::Config) -> Result<Connection, ProbeError> {
    let (client, driver) = config.connect(NoTls).await.map_err(ProbeError::Connect)?;
    // The driver's error is also the next query's, which reports it.
    let driver = tokio::spawn(async move { drop(driver.await) }).abort_handle();
    match client.prepare(QUERY).await {
        Ok(query) => Ok(Connection { client, query, driver }),
        Err(error) => {
            driver.abort();
            Err(ProbeError::Query(error))
        }
    }
}

fn facts(row: &Row) -> Result<Facts, ProbeError> {
    let text = |column: &'static str| row.try_get::<_, Option<String>>(column).map_err(ProbeError::Query);
    let lsn = |column: &'static str| -> Result<Option<Lsn>, ProbeError> {
        let parse = |t: String| t.parse().map_err(|_| ProbeError::Unreadable { column, value: t });
        text(column)?.map(parse).transpose()
    };
    let needed = |column: &'static str| lsn(column)?.ok_or(ProbeError::Unreadable { column, value: String::new() });
    if !row.try_get::<_, bool>("in_recovery").map_err(ProbeError::Query)? {
        let walfile = text("walfile")?.unwrap_or_default();
        let timeline = timeline_of(&walfile).ok_or(ProbeError::Unreadable { column: "walfile", value: walfile })?;
        let insert_lsn = needed("insert_lsn")?.normalised_insert();
        return Ok(Facts::Primary(PrimaryFacts { timeline, insert_lsn, flush_lsn: needed("flush_lsn")? }));
    }
    let streaming = text("status")?.as_deref() == Some("streaming");
    let timeline = row.try_get::<_, Option<i32>>("received_tli").map_err(ProbeError::Query)?;
    Ok(Facts::Standby(StandbyFacts {
        replay_lsn: lsn("replay_lsn")?,
        receive_lsn: lsn("receive_lsn")?,
        written_lsn: lsn("written_lsn")?,
        paused: row.try_get::<_, Option<bool>>("paused").map_err(ProbeError::Query)?.unwrap_or(false),
        streams: timeline.filter(|_| streaming).map(|t| TimelineId(t.cast_unsigned())),
    }))
}

/// The timeline that a WAL file's name begins with. `pg_control` is of no use here: it has the last checkpoint's.
fn timeline_of(walfile: &str) -> Option<TimelineId> {
    walfile.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).map(TimelineId)
}

/// An error with its causes, printed once, here where it is handled.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_is_read_from_the_walfiles_name() {
        assert_eq!(timeline_of("0000001A0000000000000003"), Some(TimelineId(26)));
        for bad in ["", "0000", "zzzzzzzz0000000000000003"] {
            assert_eq!(timeline_of(bad), None, "{bad}");
        }
    }
}
