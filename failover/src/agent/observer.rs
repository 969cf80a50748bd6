//! Observing the primary from this node: its agent over HTTP, its PostgreSQL by a query. And what this node's own
//! health needs: a heartbeat in the WAL while it is primary, a write probe of its disk.

use super::Agent;
use super::env::MONITOR_USER;
use super::sql::{FULL, Sql, SqlError};
use super::state::{PULSE, Sight};
use crate::api::PostgresState;
use crate::record::Phase;
use bytes::Bytes;
use cluster::{Endpoint, NodeId, Term};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io::{self, Write};
use std::time::Duration;
use tokio::net::TcpStream;

/// Between two writes of the heartbeat and of the disk probe.
const HEARTBEAT: Duration = Duration::from_secs(1);
const DISK_PROBE: Duration = Duration::from_secs(1);

/// Whom to observe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    node: NodeId,
    term: Term,
    agent: Endpoint,
    pub(super) postgres: Endpoint,
}

/// It does not let in, or ends a query: for good, until somebody does something about it. A wrong password, a rule of its
/// pg_hba.conf, or a trigger at logins (17), which only a superuser's session can do without. Not what only says that it shuts down
/// (57) or is full (53).
fn is_no(error: &SqlError) -> bool {
    error.code().is_some_and(|code| !code.starts_with("57") && !code.starts_with("53"))
}

impl Agent {
    pub(super) fn observed(&self) -> Option<Observed> {
        let records = self.records.borrow();
        let term = &records.term.as_ref()?.value;
        let node = term.node.as_ref().filter(|n| **n != self.env.config.node)?;
        if !matches!(term.phase, Phase::Active | Phase::Draining) {
            return None;
        }
        let member = records.members.get(node)?;
        let (agent, postgres) = (member.agent.clone(), member.postgres.clone());
        Some(Observed { node: node.clone(), term: term.term, agent, postgres })
    }

    /// Ages count from the last answer, or from when observing began.
    pub(super) fn sighted(&self, whom: &Observed, change: impl FnOnce(&mut Sight)) {
        let now = self.env.clock.now();
        self.state.change(|o| {
            let same = o.sees.as_ref().is_some_and(|s| s.node == whom.node && s.term == whom.term);
            if !same {
                o.sees = Some(Sight {
                    node: whom.node.clone(),
                    term: whom.term,
                    agent_at: now,
                    sql_at: now,
                    accept_at: now,
                    full_at: None,
                    agent_refused: false,
                    sql_refused: false,
                });
            }
            if let Some(sight) = &mut o.sees {
                change(sight);
            }
        });
    }

    /// Note that this agent runs: see [`super::state::Observed::runs`].
    pub(super) async fn pulse(&self) {
        loop {
            let now = self.env.clock.now();
            self.state.change(|o| o.runs(now));
            tokio::time::sleep(PULSE).await;
        }
    }

    /// Ask the primary's agent whether it lives, every `probe_interval`.
    pub(super) async fn observe_primary_agent(&self) {
        let mut connection: Option<(Endpoint, http1::SendRequest<Empty<Bytes>>)> = None;
        loop {
            let Some(whom) = self.observed() else {
                connection = None;
                self.state.change(|o| o.sees = None);
                tokio::time::sleep(self.env.config.probe_interval).await;
                continue;
            };
            let kept = connection.take().filter(|(to, c)| *to == whom.agent && !c.is_closed()).map(|(_, c)| c);
            let sent = self.env.clock.now();
            let asked = tokio::time::timeout(self.env.config.probe_timeout, self.alive(&whom.agent, kept)).await;
            match asked {
                Ok(Ok(again)) => {
                    connection = Some((whom.agent.clone(), again));
                    self.sighted(&whom, |s| (s.agent_at, s.agent_refused) = (sent, false));
                }
                Ok(Err(error)) => {
                    let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                    self.sighted(&whom, |s| s.agent_refused = refused);
                }
                Err(_) => self.sighted(&whom, |s| s.agent_refused = false),
            }
            tokio::time::sleep(self.env.config.probe_interval).await;
        }
    }

    /// Ask the primary's PostgreSQL a question, every `probe_interval`.
    pub(super) async fn observe_primary_sql(&self) {
        let mut connection: Option<(Endpoint, Sql)> = None;
        loop {
            let Some(whom) = self.observed() else {
                connection = None;
                self.locked_out(None);
                tokio::time::sleep(self.env.config.probe_interval).await;
                continue;
            };
            let sent = self.env.clock.now();
            let bound = self.env.config.probe_timeout;
            let asked = async {
                let kept = connection.take().filter(|(to, c)| *to == whom.postgres && !c.is_closed());
                let sql = match kept {
                    Some((_, sql)) => sql,
                    None => Sql::observer(&self.env, &whom.postgres, bound).await?,
                };
                sql.rows("observing the primary", "SELECT 1", bound).await?;
                Ok::<_, SqlError>(sql)
            };
            let asked = asked.await;
            self.locked_out(asked.as_ref().err().filter(|e| is_no(e)).map(|error| {
                format!("{} refuses {MONITOR_USER}, so that nobody here sees whether it lives: {error}", whom.node)
            }));
            match asked {
                Ok(sql) => {
                    connection = Some((whom.postgres.clone(), sql));
                    self.sighted(&whom, |s| (s.sql_at, s.sql_refused) = (sent, false));
                }
                // Somebody has answered all the same, if not who could tell whether the sessions do.
                Err(error) if error.code() == Some(FULL) => {
                    self.sighted(&whom, |s| (s.full_at, s.sql_refused) = (Some(sent), false));
                }
                Err(error) => self.sighted(&whom, |s| s.sql_refused = error.is_refused()),
            }
            tokio::time::sleep(self.env.config.probe_interval).await;
        }
    }

    fn locked_out(&self, why: Option<String>) {
        if self.state.look(|o| o.locked_out != why) {
            self.state.change(|o| o.locked_out = why);
        }
    }

    /// While primary, write a small record every second: it tells an idle stream from a stuck one, and PostgreSQL's WAL
    /// writer flushes it, so that a disk that hangs shows on an idle primary too. It takes no transaction id and waits
    /// for nobody.
    pub(super) async fn beat(&self) {
        let mut sql: Option<Sql> = None;
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            if !self.state.look(|o| matches!(o.postgres, PostgresState::Primary(_))) {
                sql = None;
                continue;
            }
            let bound = self.env.config.probe_timeout;
            let open = match sql.take().filter(|s| !s.is_closed()) {
                Some(open) => Ok(open),
                None => Sql::local(&self.env, "postgres", bound).await,
            };
            let Ok(open) = open else { continue };
            if open.rows("heartbeat", "SELECT pg_logical_emit_message(false, 'pgtenure', '')", bound).await.is_ok() {
                sql = Some(open);
            }
        }
    }

    /// Write and fsync a block beside the WAL every second. A disk that hangs, or fails, is seen by the age of the attempt.
    pub(super) async fn probe_disk(&self) {
        loop {
            let path = self.env.layout.disk_probe();
            let began = self.env.clock.now();
            self.state.change(|o| o.disk_is_tried(began));
            let done = tokio::task::spawn_blocking(move || {
                let mut file = std::fs::File::create(path)?;
                file.write_all(&[0; 4096])?;
                file.sync_all()
            });
            let took = match done.await {
                Ok(Ok(())) => Some(self.env.clock.now().since(began)),
                Ok(Err(error)) => {
                    self.trouble(&format!("the disk could not be written: {error}"));
                    None
                }
                Err(_) => None,
            };
            self.state.change(|o| o.disk_was_tried(took));
            tokio::time::sleep(DISK_PROBE).await;
        }
    }

    /// `GET /livez`, over a kept connection if there is one. The secret is not asked for; who shows it may keep it.
    async fn alive(
        &self,
        to: &Endpoint,
        kept: Option<http1::SendRequest<Empty<Bytes>>>,
    ) -> io::Result<http1::SendRequest<Empty<Bytes>>> {
        let mut sender = match kept {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
                // Ends when the sender is dropped or the peer closes; errors are seen by the sender.
                tokio::spawn(connection);
                sender
            }
        };
        let shown = format!("Bearer {}", self.env.secret.expose());
        let request = hyper::Request::get("/livez").header(hyper::header::HOST, to.to_string());
        let request = request.header(hyper::header::AUTHORIZATION, shown).body(Empty::new());
        let response = sender.send_request(request.map_err(io::Error::other)?).await.map_err(io::Error::other)?;
        let good = response.status().is_success();
        // Read it to the end, so that the connection can be used again.
        response.into_body().collect().await.map_err(io::Error::other)?;
        if good { Ok(sender) } else { Err(io::Error::other("not alive")) }
    }
}
