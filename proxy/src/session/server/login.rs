//! Making a connection: dialling, encrypting, logging in, and verifying what answers.

use super::{ConnectError, Defaults, MAX_LOGIN_MESSAGE, MAX_LOGIN_MESSAGES, Meta, Server, Settings};
use crate::auth::credentials::Credentials;
use crate::auth::hashing::Hashing;
use crate::ledger::entry::ANYONE_MAY;
use crate::net::Stream;
use crate::pool::{Identity, Permit};
use crate::session::challenge::{Allowed, Answers};
use crate::session::encrypt;
use crate::session::settings::{Shared, creates_temp};
use crate::session::statements::ServerStatements;
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::head;
use crate::wire::sqlstate::SqlState;
use crate::wire::{frontend, startup};
use crate::worker::Worker;
use cluster::lag::ServerStart;
use cluster::topology::Member;
use cluster::{Instant, NodeId, Role, Term, TimelineId};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a login needs.
#[derive(Clone)]
pub struct Login<'a> {
    /// The node and its address.
    pub member: &'a Member,
    /// What it must be.
    pub role: Role,
    /// The term in force.
    pub term: Term,
    /// Who logs in, where to, with which settings.
    pub identity: &'a Identity,
    /// What the session can log in with.
    pub credentials: &'a Credentials,
    /// What may be answered besides SCRAM.
    pub allowed: Allowed,
    /// Where passwords are hashed.
    pub hashing: &'a Hashing,
    /// Names, certificates, and turns to compute.
    pub worker: &'a Worker,
    /// `proxy.connect_timeout`, or what is left.
    pub connect_timeout: Duration,
    /// `proxy.login_timeout`.
    pub login_timeout: Duration,
}

/// Connect, log in and verify the role. The permit is left where that fails.
///
/// # Errors
/// See [`ConnectError`].
///
/// # Panics
/// Without a permit.
pub async fn connect(login: Login<'_>, permit: &mut Option<Permit>, now: Instant) -> Result<Server, ConnectError> {
    let node = login.member.node.clone();
    let io = |source| ConnectError::Io { node: node.clone(), source };
    let endpoint = &login.member.postgres;
    let shared = &login.worker.shared;
    let stream = shared.reach.dial(endpoint, &login.worker.config(), login.connect_timeout).await.map_err(io)?;
    let peer = stream.peer_addr().map_err(io)?;
    let mut wire = LoginWire { stream: stream.into(), node: node.clone(), buf: Vec::new(), at: 0 };
    let contexts = shared.tls.borrow().clone();
    let talk = async {
        let secured = encrypt::secure(&mut wire.stream, &contexts, &endpoint.host, &login.worker.handshakes).await;
        secured.map_err(|source| ConnectError::Tls { node: node.clone(), source })?;
        log_in(&mut wire, &login).await
    };
    let welcome = tokio::time::timeout(login.login_timeout, talk).await;
    let welcome = welcome.map_err(|_| ConnectError::Timeout {
        node: node.clone(),
        stage: "the login",
        limit: login.login_timeout,
    })??;
    let meta = Box::new(Meta {
        node,
        role: login.role,
        term: login.term,
        peer,
        host: endpoint.host.as_str().into(),
        key: welcome.key,
        statements: ServerStatements::default(),
        settings: Arc::new(welcome.settings),
        defaults: welcome.defaults,
        timeline: welcome.timeline,
        started: welcome.started,
        changed: Vec::new(),
        given: Shared::default(),
        listens: false,
        shown: Vec::new(),
        estranged: 0,
        drew: 0,
        drew_before: false,
        spoilt: false,
        born: now,
        ready: login.worker.now(),
        sampled: login.role == Role::Primary,
        idle_since: now,
        permit: permit.take().expect("nobody has taken it"),
    });
    Ok(Server { stream: wire.stream, meta, cancels: Rc::default() })
}

struct Welcome {
    settings: Settings,
    defaults: Defaults,
    timeline: Option<TimelineId>,
    started: Option<ServerStart>,
    key: (u32, u32),
}

async fn log_in(wire: &mut LoginWire, login: &Login<'_>) -> Result<Welcome, ConnectError> {
    let identity = login.identity;
    let mut out = Vec::with_capacity(256);
    let fixed = [("user", identity.user.as_str()), ("database", identity.dbname.as_str())];
    let own = identity.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    let as_told = as_told(login);
    let as_told = as_told.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    // No name of our own: RESET and DISCARD ALL lead back to what stands here, and a client that gave none sees that.
    startup::write_startup(&mut out, fixed.into_iter().chain(own).chain(as_told));
    wire.send(&out).await?;
    let node = wire.node.clone();
    let protocol = |what| ConnectError::Protocol { node: node.clone(), what };
    let refused = |source| ConnectError::Challenge { node: node.clone(), source };
    let endpoint = wire.stream.tls().and_then(|peer| peer.server_end_point.as_deref()).map(<[u8]>::to_vec);
    let mut answers = Answers::new(&identity.user, login.credentials, login.allowed, login.hashing, endpoint);
    let (settings, defaults) = (Settings::new(), Defaults::default());
    let mut welcome = Welcome { settings, defaults, timeline: None, started: None, key: (0, 0) };
    for _ in 0..MAX_LOGIN_MESSAGES {
        let (kind, frame) = wire.next().await?;
        match kind {
            b'R' => {
                let challenge =
                    backend::authentication(&frame).ok_or_else(|| protocol("a malformed Authentication"))?;
                out.clear();
                answers.to(challenge, &mut out).await.map_err(refused)?;
                if !out.is_empty() {
                    wire.send(&out).await?;
                }
            }
            b'S' => {
                let (name, value) =
                    backend::parameter_status(&frame).ok_or_else(|| protocol("a malformed ParameterStatus"))?;
                welcome.settings.push((name.to_owned(), value.into_owned()));
            }
            b'K' => {
                welcome.key = backend::backend_key(&frame).ok_or_else(|| protocol("a malformed BackendKeyData"))?;
            }
            b'Z' => {
                verify(wire, login, &mut welcome).await?;
                return Ok(welcome);
            }
            b'E' => return Err(refusal(node, frame)),
            b'N' => {}
            _ => return Err(protocol("an unexpected message during login")),
        }
    }
    Err(protocol("a login without end"))
}

/// Settings that decide what a text means and how a result reads. A standby's configuration may have others than the
/// primary's, which clients are told.
const READING: [&str; 5] = ["TimeZone", "DateStyle", "IntervalStyle", "client_encoding", "standard_conforming_strings"];

/// What a standby is to begin with, beyond the client's own parameters: what a primary has told of them.
fn as_told(login: &Login<'_>) -> Settings {
    if login.role != Role::Standby || login.identity.is_replication() {
        return Settings::new();
    }
    let given = |name: &str| login.identity.parameters.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
    let told = login.worker.told(login.identity);
    let told = told.iter().flat_map(|settings| settings.iter());
    told.filter(|(name, _)| READING.contains(&name.as_str()) && !given(name)).cloned().collect()
}

fn refusal(node: NodeId, frame: Vec<u8>) -> ConnectError {
    let f = backend::fields(&frame);
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    ConnectError::Refused { node, code: text(f.code), message: text(f.message), frame: frame.clone() }
}

/// A node that was demoted or promoted behind the topology's back must not be taken for what it was. PostgreSQL 14
/// and later report `in_hot_standby`, which does for replication connections; 13 is asked, and every other connection
/// is, together with what no version reports. Who replicates asks in its own words whose server it is.
async fn verify(wire: &mut LoginWire, login: &Login<'_>, welcome: &mut Welcome) -> Result<(), ConnectError> {
    let reported = welcome.settings.iter().find(|(name, _)| name == "in_hot_standby").map(|(_, value)| value == "on");
    let in_recovery = match reported {
        Some(answer) if login.identity.is_replication() => answer,
        _ if login.identity.is_physical() => ask_walsender(wire).await?,
        _ => {
            let itself = ask(wire).await?;
            if let Some(what) = is_other(login, &itself) {
                return Err(ConnectError::OtherServer { node: wire.node.clone(), what });
            }
            (welcome.timeline, welcome.started, welcome.defaults) = (itself.timeline, itself.started, itself.defaults);
            itself.in_recovery
        }
    };
    if in_recovery != (login.role == Role::Standby) {
        return Err(ConnectError::WrongRole { node: wire.node.clone(), expected: login.role });
    }
    let has_id = login.worker.view.borrow().topology.system_id.is_some();
    if login.identity.is_replication() && has_id {
        let (system_id, timeline) = identify(wire).await?;
        if let Some(what) = is_elsewhere(login, Some(system_id), Some(timeline).filter(|_| !in_recovery)) {
            return Err(ConnectError::OtherServer { node: wire.node.clone(), what });
        }
    }
    Ok(())
}

/// Is it none of the cluster's servers, or another one than it is taken for: the primary of another term, a standby that is not
/// the one whose lag is known? A name may lead elsewhere for the proxy than for who samples the nodes. What is not known is not
/// compared.
fn is_other(login: &Login<'_>, itself: &Itself) -> Option<String> {
    let sampled = login.worker.view.borrow().lag.answering(&login.member.node);
    let sampled = sampled.filter(|_| login.role == Role::Standby);
    if itself.started.is_some_and(|started| sampled.is_some_and(|sampled| sampled != started)) {
        return Some("is not the server that was sampled".to_owned());
    }
    is_elsewhere(login, itself.system_id, itself.timeline)
}

/// Is it of another cluster, or writes it the timeline of another term?
fn is_elsewhere(login: &Login<'_>, id: Option<u64>, writes: Option<TimelineId>) -> Option<String> {
    let expected = login.worker.view.borrow().topology.system_id?;
    if let Some(other) = id.filter(|id| *id != expected) {
        return Some(format!("is of the cluster with system identifier {other}, not {expected}"));
    }
    let (timeline, term) = (writes?, login.term);
    (term.timeline() != Some(timeline)).then(|| format!("writes timeline {timeline}, and the term is {term}"))
}

/// A walsender without a database runs no SQL. What it can show is that a node in recovery only reads; a primary whose
/// sessions only read by default is taken for one, which refuses more than it must.
async fn ask_walsender(wire: &mut LoginWire) -> Result<bool, ConnectError> {
    let row = ask_row(wire, "SHOW transaction_read_only").await?;
    Ok(matches!(row.as_slice(), [Some(value)] if value == "on"))
}

/// A walsender's system identifier and timeline.
async fn identify(wire: &mut LoginWire) -> Result<(u64, TimelineId), ConnectError> {
    let row = ask_row(wire, "IDENTIFY_SYSTEM").await?;
    let number = |column: usize| row.get(column)?.as_deref();
    let told = number(0).zip(number(1)).and_then(|(id, timeline)| Some((id.parse().ok()?, timeline.parse().ok()?)));
    let (id, timeline) =
        told.ok_or_else(|| ConnectError::Protocol { node: wire.node.clone(), what: "an odd answer to what it is" })?;
    Ok((id, TimelineId(timeline)))
}

/// What a server says of itself.
struct Itself {
    in_recovery: bool,
    /// Its system identifier, where it may be asked.
    system_id: Option<u64>,
    /// The timeline it writes, where it may be asked.
    timeline: Option<TimelineId>,
    /// When it was started, where that and its system identifier may be asked.
    started: Option<ServerStart>,
    defaults: Defaults,
}

/// Is it in recovery, which server is it, which timeline does it write, and what has it begun with? Four of the functions are
/// everybody's unless an operator has taken them away; then these stay unknown.
async fn ask(wire: &mut LoginWire) -> Result<Itself, ConnectError> {
    const TIMELINE: &str = "pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()),1,8)";
    const SYSTEM: &str = "(SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system())";
    let system = format!("{SYSTEM},{}", ServerStart::EXPRESSION);
    const UNKNOWN: &str = "NULL,NULL";
    // A standby refuses even this to a role whose transactions are SERIALIZABLE by default.
    let question = |timeline: &str, system: &str| {
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED;SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN {timeline} END,\
             pg_catalog.current_setting('client_min_messages'),pg_catalog.current_setting('synchronous_commit'),\
             pg_catalog.current_setting('search_path'),{ANYONE_MAY},{system};COMMIT"
        )
    };
    let refused = |row: &Result<_, ConnectError>| matches!(row, Err(ConnectError::Refused { code, .. }) if code == SqlState::INSUFFICIENT_PRIVILEGE.as_str());
    let mut row = ask_row(wire, &question(TIMELINE, &system)).await;
    for (timeline, system) in [(TIMELINE, UNKNOWN), ("''", &system), ("''", UNKNOWN)] {
        if !refused(&row) {
            break;
        }
        row = ask_row(wire, &format!("ROLLBACK;{}", question(timeline, system))).await;
    }
    let row = row?;
    let odd = || ConnectError::Protocol { node: wire.node.clone(), what: "an odd answer to what it is" };
    let [timeline, Some(messages), Some(commit), Some(path), Some(marks), system, started] = row.as_slice() else {
        return Err(odd());
    };
    let system_id = system.as_deref().map(|id| id.parse().map_err(|_| odd())).transpose()?;
    let started = started.as_deref().map(|at| at.parse().map(ServerStart).map_err(|_| odd())).transpose()?;
    let in_recovery = timeline.is_none();
    let timeline = match timeline.as_deref() {
        Some("") | None => None,
        Some(hex) => Some(TimelineId(u32::from_str_radix(hex, 16).map_err(|_| odd())?)),
    };
    let defaults = Defaults {
        client_min_messages: messages.as_str().into(),
        synchronous_commit: commit.as_str().into(),
        creates_temp: creates_temp(path),
        // A transaction's id tells nothing without its timeline.
        marks: marks == "t" && timeline.is_some(),
    };
    Ok(Itself { in_recovery, system_id, timeline, started, defaults })
}

/// The one row that a query gives.
async fn ask_row(wire: &mut LoginWire, sql: &str) -> Result<Vec<Option<String>>, ConnectError> {
    let mut out = Vec::new();
    frontend::write_query(&mut out, sql);
    wire.send(&out).await?;
    let mut answer = None;
    for _ in 0..MAX_LOGIN_MESSAGES {
        let (kind, frame) = wire.next().await?;
        match kind {
            b'D' => answer = backend::text_row(&frame),
            b'E' => return Err(refusal(wire.node.clone(), frame)),
            b'Z' if backend::ready_status(&frame) == Some(TxStatus::Idle) => break,
            _ => {}
        }
    }
    answer.ok_or(ConnectError::Protocol { node: wire.node.clone(), what: "no answer to what it is" })
}

/// Whole messages, while a connection is being made.
struct LoginWire {
    stream: Stream,
    node: NodeId,
    buf: Vec<u8>,
    at: usize,
}

impl LoginWire {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        self.stream.write_all(bytes).await.map_err(|source| ConnectError::Io { node: self.node.clone(), source })
    }

    async fn next(&mut self) -> Result<(u8, Vec<u8>), ConnectError> {
        loop {
            let protocol = |what| ConnectError::Protocol { node: self.node.clone(), what };
            match head(&self.buf[self.at..]) {
                Err(_) => return Err(protocol("a message with an impossible length")),
                Ok(Some(h)) if h.total > MAX_LOGIN_MESSAGE => return Err(protocol("a message longer than expected")),
                Ok(Some(h)) if self.buf.len() - self.at >= h.total => {
                    let frame = self.buf[self.at..self.at + h.total].to_vec();
                    self.at += h.total;
                    return Ok((h.kind, frame));
                }
                Ok(_) => {}
            }
            self.buf.drain(..self.at);
            self.at = 0;
            let n = self.stream.read_buf(&mut self.buf).await;
            let io = |source| ConnectError::Io { node: self.node.clone(), source };
            if n.map_err(io)? == 0 {
                return Err(io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}
