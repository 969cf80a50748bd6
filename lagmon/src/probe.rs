//! Probes: one task and one kept connection per node, so that a slow node delays no other.
//!
//! One query asks for the positions. Its deadline covers connecting; when it runs out the connection is given up, because
//! what a server answers late says nothing of the present. Another, less often, asks for slots, senders and conflicts;
//! a node that cannot answer that one is no less reachable.

use crate::config::Config;
use crate::guarded::Guarded;
use crate::metrics::Probes;
use crate::model::detail::NodeDetail;
use crate::model::sample::{Answer, Outcome};
use crate::query::{self, AnswerError, Identity};
use cluster::demand::Allowed;
use cluster::secret::Secret;
use cluster::topology::Topology;
use cluster::{Clock, Endpoint, Instant, NodeId, Term, sessions};
use socket2::{SockRef, TcpKeepalive};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, Statement};
use tracing::{info, warn};

/// Pause before connecting again: doubled from the first to the last while a node does not answer. A refusal costs
/// nothing and is not slowed down past the first; a node that hangs would collect our connections.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// How often the name of a node that answers is looked up again: it may lead to another server by now, which everybody else
/// finds, while the old one goes on answering.
const LOOK_UP: Duration = Duration::from_secs(60);

/// Why a probe gave nothing.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("cannot connect")]
    Dial(#[source] std::io::Error),
    #[error("cannot log in")]
    Connect(#[source] tokio_postgres::Error),
    #[error("the query failed")]
    Query(#[source] tokio_postgres::Error),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the answer cannot be read")]
    Answer(#[from] AnswerError),
}

/// A probe's outcome and what it belongs to.
#[derive(Debug)]
pub(crate) struct Report {
    /// The term in force when the probe was sent.
    pub(crate) term: Term,
    /// The node.
    pub(crate) node: NodeId,
    /// What came of it.
    pub(crate) news: News,
}

/// What a probe task reports.
#[derive(Debug)]
pub(crate) enum News {
    /// Of the question for positions.
    Positions(Outcome),
    /// Of the question for details; `None`: it was not answered.
    Detail(Option<NodeDetail>),
    /// Its connection was given up, whose end would tell that the server has ended.
    OutOfSight,
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

/// The term in force, and its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) term: Term,
    pub(crate) primary: Option<NodeId>,
}

impl InForce {
    pub(crate) fn of(topology: &Topology) -> Self {
        Self { term: topology.term, primary: topology.primary.as_ref().map(|m| m.node.clone()) }
    }
}

/// Change when somebody waits for a sample.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) primary: watch::Receiver<()>,
    pub(crate) standbys: watch::Receiver<()>,
}

impl Asked {
    fn served(&mut self) {
        self.primary.mark_unchanged();
        self.standbys.mark_unchanged();
    }
}

/// What all probes of a process share.
#[derive(Clone, Debug)]
pub(crate) struct Prober {
    pub(crate) config: Arc<Config>,
    pub(crate) password: Option<Secret>,
    pub(crate) in_force: watch::Receiver<InForce>,
    pub(crate) asked: Asked,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) metrics: Probes,
}

impl Prober {
    /// Probe `node` at `endpoint` from now on.
    pub(crate) fn start(&self, node: NodeId, endpoint: Endpoint) -> Probe {
        let login = login(&self.config, self.password.as_ref());
        let (shared, to) = (self.clone(), endpoint.clone());
        let run = Run { shared, node, endpoint: to, login, connection: None, detailed: None, detail_failed: false };
        Probe { endpoint, task: tokio::spawn(run.run()).abort_handle() }
    }
}

fn login(config: &Config, password: Option<&Secret>) -> tokio_postgres::Config {
    let mut login = tokio_postgres::Config::new();
    login
        .user(&config.user)
        .dbname(&config.database)
        .application_name("pgtenure_lagmon")
        .options(sessions::unhurried(0));
    if let Some(password) = password {
        login.password(password.expose());
    }
    login
}

/// A server that vanishes without a word is noticed, by what is not acknowledged or by silent keepalive probes.
async fn dial(endpoint: &Endpoint, config: &Config) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_user_timeout(Some(config.tcp_user_timeout))?;
    let whole = |time: Duration| time.max(Duration::from_secs(1)); // the kernel counts seconds
    let probes = TcpKeepalive::new().with_time(whole(config.tcp_user_timeout));
    let probes = probes.with_interval(whole(config.probe_timeout));
    socket.set_tcp_keepalive(&probes.with_retries(3))?;
    Ok(stream)
}

/// A connection and its prepared query. The driver's task ends with it, and it with the server.
struct Connection {
    client: Client,
    major: u32,
    identity: Identity,
    positions: Statement,
    /// Prepared when first asked.
    details: Option<Statement>,
    driver: JoinHandle<()>,
    /// Where it leads.
    peer: IpAddr,
    /// When that was last compared with the node's name.
    looked_up: Instant,
    /// The look that is under way: does the name lead elsewhere? No probe waits for it.
    lookup: Option<JoinHandle<bool>>,
}

impl Connection {
    /// Does the name of `endpoint` lead elsewhere, as far as is known?
    async fn is_passed_by(&mut self, endpoint: &Endpoint, now: Instant) -> bool {
        match self.lookup.take() {
            Some(lookup) if lookup.is_finished() => return lookup.await.unwrap_or(false),
            Some(lookup) => self.lookup = Some(lookup),
            None if now.since(self.looked_up) >= LOOK_UP => {
                self.looked_up = now;
                self.lookup = Some(tokio::spawn(leads_elsewhere(endpoint.clone(), self.peer)));
            }
            None => {}
        }
        false
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
        if let Some(lookup) = &self.lookup {
            lookup.abort();
        }
    }
}

/// Is `peer` none of the addresses that the endpoint has? What cannot be looked up is not compared.
async fn leads_elsewhere(endpoint: Endpoint, peer: IpAddr) -> bool {
    let Ok(found) = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await else { return false };
    let mut found = found.map(|address| address.ip().to_canonical()).peekable();
    found.peek().is_some() && found.all(|address| address != peer.to_canonical())
}

struct Run {
    shared: Prober,
    node: NodeId,
    endpoint: Endpoint,
    login: tokio_postgres::Config,
    connection: Option<Connection>,
    /// When details were last asked for, and in which term.
    detailed: Option<(Instant, Term)>,
    /// The last question for details failed, and that was logged.
    detail_failed: bool,
}

impl Run {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(self.shared.config.probe_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut answered, mut pause) = (None, RECONNECT.0);
        loop {
            let is_primary = self.shared.in_force.borrow().primary.as_ref() == Some(&self.node);
            // A server that ended may come back in between, behind what it last told: that is not left to the next tick.
            tokio::select! {
                _ = ticks.tick() => {}
                () = closed(&mut self.connection) => {}
                () = Self::asked(&mut self.shared.asked, is_primary) => ticks.reset(),
            }
            // Whoever asks from here on is not served by this probe.
            self.shared.asked.served();
            let term = self.shared.in_force.borrow().term;
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
            if !self.report(term, News::Positions(outcome)).await {
                return;
            }
            if !failed && self.detail_is_due(started, term) {
                self.detailed = Some((started, term));
                let detail = self.detail().await;
                if !self.report(term, News::Detail(detail)).await {
                    return;
                }
                if self.connection.is_none() && !self.report(term, News::OutOfSight).await {
                    return;
                }
            }
            let passed_by = match &mut self.connection {
                Some(connection) => connection.is_passed_by(&self.endpoint, started).await,
                None => false,
            };
            if passed_by {
                info!(node = %self.node, endpoint = %self.endpoint, "name leads elsewhere, connecting there");
                self.connection = None;
                if !self.report(term, News::OutOfSight).await {
                    return;
                }
            }
            if failed {
                tokio::time::sleep(pause).await;
                let hung = Clock.now().since(started) >= self.shared.config.probe_timeout;
                pause = if hung { (pause * 2).min(RECONNECT.1) } else { RECONNECT.0 };
            }
        }
    }

    /// Ends when somebody waits for a sample of this node.
    async fn asked(asked: &mut Asked, is_primary: bool) {
        let asked = if is_primary { &mut asked.primary } else { &mut asked.standbys };
        if asked.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn report(&self, term: Term, news: News) -> bool {
        self.shared.reports.send(Report { term, node: self.node.clone(), news }).await.is_ok()
    }

    /// A new term forgets what was known.
    fn detail_is_due(&self, now: Instant, term: Term) -> bool {
        let interval = self.shared.config.detail_interval;
        self.detailed.is_none_or(|(at, of)| of != term || now.since(at) >= interval)
    }

    async fn probe(&mut self) -> Result<Answer, ProbeError> {
        if self.connection.is_none() {
            self.connection = Some(connect(&self.login, &self.endpoint, &self.shared.config).await?);
        }
        let connection = self.connection.as_ref().expect("connected above");
        let sent_at = Clock.now();
        let row = connection.client.query_one(&connection.positions, &[]).await.map_err(ProbeError::Query)?;
        let Identity { system_id, started } = connection.identity;
        Ok(Answer { sent_at, system_id, started, facts: query::facts(&row)? })
    }

    /// Ask for details. A question that is still open would delay the next probe, so its connection is given up.
    async fn detail(&mut self) -> Option<NodeDetail> {
        let limit = self.shared.config.probe_timeout;
        let connection = self.connection.as_mut()?;
        let asked = timeout(limit, ask_details(connection)).await;
        let error = match asked {
            Ok(Ok(detail)) => {
                self.detail_failed = false;
                return Some(detail);
            }
            Ok(Err(error)) => error,
            Err(_) => {
                self.connection = None;
                ProbeError::TimedOut(limit)
            }
        };
        if !std::mem::replace(&mut self.detail_failed, true) {
            warn!(node = %self.node, error = %chain(&error), "node does not tell its slots, senders and conflicts");
        }
        None
    }
}

/// Ends when the connection has ended.
async fn closed(connection: &mut Option<Connection>) {
    match connection {
        Some(connection) => drop((&mut connection.driver).await),
        None => std::future::pending().await,
    }
}

async fn ask_details(connection: &mut Connection) -> Result<NodeDetail, ProbeError> {
    let statement = match connection.details.take() {
        Some(statement) => statement,
        None => connection.client.prepare(&query::details(connection.major)).await.map_err(ProbeError::Query)?,
    };
    let row = connection.client.query_one(&statement, &[]).await.map_err(ProbeError::Query)?;
    connection.details = Some(statement);
    Ok(query::detail(&row)?)
}

async fn connect(
    login: &tokio_postgres::Config,
    endpoint: &Endpoint,
    config: &Config,
) -> Result<Connection, ProbeError> {
    let stream = dial(endpoint, config).await.map_err(ProbeError::Dial)?;
    let peer = stream.peer_addr().map_err(ProbeError::Dial)?.ip();
    // The monitor's password is verified by SCRAM: whoever asks for it is no server of ours.
    let stream = Guarded::new(stream, Allowed::default());
    let (client, driver) = login.connect_raw(stream, NoTls).await.map_err(ProbeError::Connect)?;
    let major = query::major(driver.parameter("server_version"));
    // The driver's error is also the next query's, which reports it.
    let driver = tokio::spawn(async move { drop(driver.await) });
    match introduce(&client, major).await {
        Ok((identity, positions)) => {
            let (details, looked_up, lookup) = (None, Clock.now(), None);
            Ok(Connection { client, major, identity, positions, details, driver, peer, looked_up, lookup })
        }
        Err(error) => {
            driver.abort();
            Err(error)
        }
    }
}

/// Ask who answers, and prepare what is asked at each probe.
async fn introduce(client: &Client, major: u32) -> Result<(Identity, Statement), ProbeError> {
    client.batch_execute(&sessions::unhurry(major * 10_000)).await.map_err(ProbeError::Query)?;
    let row = match client.query_one(&query::identity(true), &[]).await {
        // An operator may have taken from everybody what everybody may ask.
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            client.query_one(&query::identity(false), &[]).await
        }
        answered => answered,
    };
    let identity = query::identified(&row.map_err(ProbeError::Query)?)?;
    let positions = client.prepare(&query::positions(major)).await.map_err(ProbeError::Query)?;
    Ok((identity, positions))
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
    fn what_users_have_put_into_public_is_not_found() {
        let config = crate::config::check(crate::config::Raw::default()).unwrap();
        assert!(login(&config, None).get_options().unwrap().starts_with(sessions::DEFAULTS));
    }

    #[tokio::test]
    async fn a_connection_is_passed_by_when_its_address_is_none_of_the_names() {
        let leads_elsewhere = async |host: &str, peer: &str| {
            leads_elsewhere(Endpoint { host: host.to_owned(), port: 5432 }, peer.parse().unwrap()).await
        };
        for (host, peer, elsewhere) in [
            ("127.0.0.1", "127.0.0.1", false),
            ("127.0.0.1", "::ffff:127.0.0.1", false),
            ("localhost", "127.0.0.1", false),
            ("127.0.0.1", "127.0.0.2", true),
            ("localhost", "192.0.2.1", true),
            ("no such name.invalid", "192.0.2.1", false),
        ] {
            assert_eq!(leads_elsewhere(host, peer).await, elsewhere, "{host} {peer}");
        }
    }
}
