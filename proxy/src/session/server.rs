//! A connection to a PostgreSQL server: how it is made, and what is known of it.

use crate::auth::credentials::Credentials;
use crate::auth::hashing::Hashing;
use crate::net::Stream;
use crate::pool::{Identity, Permit};
use crate::session::cancel::Cancels;
use crate::session::challenge::{Allowed, Answers, ChallengeError};
use crate::session::encrypt;
use crate::session::settings::Shared;
use crate::session::statements::ServerStatements;
use crate::session::tracking::Reports;
use crate::tls::SecureError;
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::head;
use crate::wire::{frontend, startup};
use crate::worker::Worker;
use cluster::topology::Member;
use cluster::{Instant, NodeId, Role, Term};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest message of a login, bytes: error texts and parameter values.
const MAX_LOGIN_MESSAGE: usize = 64 * 1024;
/// A Sync message: answered with ReadyForQuery, and nothing else happens.
const SYNC: &[u8] = b"S\0\0\0\x04";
/// Rounds of messages a login may take before ReadyForQuery.
const MAX_LOGIN_MESSAGES: usize = 1000;
/// Settings whose change makes a server unusable for other clients are all that it reports; names compare exactly.
type Settings = Vec<(String, String)>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The TCP connection failed or broke.
    #[error("connection to {node} failed")]
    Io {
        /// The server.
        node: NodeId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{node} did not complete {stage} in {limit:?}")]
    Timeout {
        /// The server.
        node: NodeId,
        /// What was waited for.
        stage: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The server said no.
    #[error("{node} refused the connection: {message} ({code})")]
    Refused {
        /// The server.
        node: NodeId,
        /// Its SQLSTATE.
        code: String,
        /// Its message.
        message: String,
        /// Its whole ErrorResponse.
        frame: Vec<u8>,
    },
    /// The connection could not be encrypted.
    #[error("encrypted connection to {node} failed: {source}")]
    Tls {
        /// The server.
        node: NodeId,
        /// Why.
        #[source]
        source: SecureError,
    },
    /// What it asks for cannot be answered, or the exchange of proofs failed.
    #[error("login to {node} failed")]
    Challenge {
        /// The server.
        node: NodeId,
        /// Why.
        #[source]
        source: ChallengeError,
    },
    /// The server is not what the topology says.
    #[error("{node} is not a {}", match expected { Role::Primary => "primary", Role::Standby => "standby" })]
    WrongRole {
        /// The server.
        node: NodeId,
        /// What it should be.
        expected: Role,
    },
    /// The server said something that does not belong to a login.
    #[error("{node} broke the protocol: {what}")]
    Protocol {
        /// The server.
        node: NodeId,
        /// How.
        what: &'static str,
    },
}

impl ConnectError {
    /// The word the metrics have for it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io { .. } => "unreachable",
            Self::Timeout { .. } => "timeout",
            Self::Refused { .. } => "refused",
            Self::Tls { .. } => "tls_failed",
            Self::Challenge { .. } => "login_failed",
            Self::WrongRole { .. } => "wrong_role",
            Self::Protocol { .. } => "protocol",
        }
    }

    /// Is it about this user and database, so that trying again or elsewhere is of no use?
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { code, .. } => code.starts_with("28") || code.starts_with("3D") || code.starts_with("22"),
            Self::Challenge { .. } => true,
            Self::Io { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::WrongRole { .. }
            | Self::Protocol { .. } => false,
        }
    }
}

/// A connection that is logged in.
#[derive(Debug)]
pub struct Server {
    /// The socket.
    pub stream: Stream,
    /// What the pool and the session know of it. Apart, so that checking a connection out and giving it back moves little.
    pub meta: Box<Meta>,
    /// Cancel requests on their way to it.
    pub cancels: Rc<Cancels>,
}

impl Server {
    /// Does it answer an empty message as an idle server does?
    pub async fn answers(&mut self) -> bool {
        if self.stream.write_all(SYNC).await.is_err() || self.stream.flush().await.is_err() {
            return false;
        }
        let mut heard = Vec::new();
        for _ in 0..MAX_LOGIN_MESSAGES {
            match self.meta.absorb(&mut heard) {
                Absorbed::Ready => return heard.is_empty(),
                Absorbed::Unfit => return false,
                Absorbed::All => {}
            }
            if !self.stream.read_buf(&mut heard).await.is_ok_and(|n| n > 0) {
                return false;
            }
        }
        false
    }

    /// Is it as an idle server is: open, with nothing to say but what such a one may say by itself? That is taken in.
    /// Costs a system call only when something has come.
    pub fn is_quiet(&mut self) -> bool {
        let mut first = [0; 64];
        match self.stream.try_fill(&mut first) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
            Ok(n) if n > 0 => self.take_in(&first[..n]),
            Ok(_) | Err(_) => false,
        }
    }

    #[cold]
    fn take_in(&mut self, first: &[u8]) -> bool {
        let (mut heard, mut more) = (first.to_vec(), [0; 4096]);
        for _ in 0..MAX_LOGIN_MESSAGES {
            if self.meta.absorb(&mut heard) != Absorbed::All {
                return false;
            }
            match self.stream.try_fill(&mut more) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return heard.is_empty(),
                Ok(n) if n > 0 => heard.extend_from_slice(&more[..n]),
                Ok(_) | Err(_) => return false,
            }
        }
        false
    }
}

/// What an idle server has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absorbed {
    /// All whole messages were such as come at any time; what is left is the start of one.
    All,
    /// It is ready, outside a transaction.
    Ready,
    /// Something that an idle server does not say.
    Unfit,
}

/// Settings that a server does not report and that matter here, as it began with them. Empty when it was not asked:
/// on a replication connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// `client_min_messages`: may hide the notice of a cancelled wait for a standby.
    pub client_min_messages: Box<str>,
    /// `synchronous_commit`: may ask for less than the cluster's mode.
    pub synchronous_commit: Box<str>,
}

/// All that moves with a connection from one worker to another.
#[derive(Debug)]
pub struct Meta {
    /// The node it leads to.
    pub node: NodeId,
    /// What the node was when the connection was made, verified.
    pub role: Role,
    /// The term in which it was made.
    pub term: Term,
    /// Where it leads, for cancel requests.
    pub peer: SocketAddr,
    /// The host's name, for cancel requests: certificates are verified against it.
    pub host: Arc<str>,
    /// The server's own key for cancel requests.
    pub key: (u32, u32),
    /// What it has prepared.
    pub statements: ServerStatements,
    /// What it reported at login.
    pub settings: Arc<Settings>,
    /// Settings it began with that it does not report.
    pub defaults: Defaults,
    /// Settings that differ from that now.
    pub changed: Settings,
    /// What the last session has set here.
    pub given: Shared,
    /// It listens to something that no session it serves knows of.
    pub listens: bool,
    /// It must not serve another client.
    pub spoilt: bool,
    /// When it was made.
    pub born: Instant,
    /// When it was last given back.
    pub idle_since: Instant,
    /// Its place in the pool's limit.
    pub permit: Permit,
}

impl Meta {
    /// The server reported a setting.
    pub fn report(&mut self, name: &str, value: &str) {
        self.changed.retain(|(n, _)| n != name);
        if !self.settings.iter().any(|(n, v)| n == name && v == value) {
            self.changed.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Does what the last session has set explain all that has changed? Something else may change settings: a reload
    /// of the server's configuration, a function.
    pub fn explained(&self) -> bool {
        self.changed.iter().all(|(name, value)| self.explains(name, value))
    }

    fn explains(&self, name: &str, value: &str) -> bool {
        let given = || self.given.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        let other_role = || self.given.get("role").is_some() || self.given.get("session_authorization").is_some();
        given() == Some(value) || name == "is_superuser" && other_role()
    }

    /// What has changed and no session has set is what the server begins with from now on: its configuration was
    /// reloaded. Not who it is and what it may do, which no reload changes. True when something was adopted.
    pub fn adopt(&mut self) -> bool {
        let fixed = |name: &str| matches!(name, "in_hot_standby" | "is_superuser" | "session_authorization");
        let new = |(name, value): &&(String, String)| !self.explains(name, value) && !fixed(name);
        let adopted: Settings = self.changed.iter().filter(new).cloned().collect();
        if adopted.is_empty() {
            return false;
        }
        self.changed.retain(|(n, _)| !adopted.iter().any(|(name, _)| n == name));
        for (name, value) in &mut *Arc::make_mut(&mut self.settings) {
            if let Some((_, now)) = adopted.iter().find(|(n, _)| n == name) {
                now.clone_into(value);
            }
        }
        true
    }

    /// Take in what a server may say while nobody asks it anything.
    fn absorb(&mut self, heard: &mut Vec<u8>) -> Absorbed {
        let mut at = 0;
        let absorbed = loop {
            let total = match head(&heard[at..]) {
                Ok(Some(h)) if h.total <= MAX_LOGIN_MESSAGE => h.total,
                Ok(None) => break Absorbed::All,
                Ok(Some(_)) | Err(_) => break Absorbed::Unfit,
            };
            let Some(frame) = heard.get(at..at + total) else { break Absorbed::All };
            match frame[0] {
                b'N' => {}
                // Of a LISTEN that no text showed: whoever is served next has not asked for it.
                b'A' => self.listens = true,
                b'S' => match backend::parameter_status(frame) {
                    Some((name, value)) => self.report(name, value),
                    None => break Absorbed::Unfit,
                },
                b'Z' if backend::ready_status(frame) == Some(TxStatus::Idle) => {
                    at += total;
                    break Absorbed::Ready;
                }
                _ => break Absorbed::Unfit,
            }
            at += total;
        };
        heard.drain(..at);
        self.adopt();
        if self.explained() { absorbed } else { Absorbed::Unfit }
    }
}

impl Reports for Meta {
    fn reported(&self, name: &str) -> Option<(&str, &str)> {
        let of = |list: &[(String, String)]| list.iter().position(|(n, _)| n.eq_ignore_ascii_case(name));
        let login = self.settings[of(&self.settings)?].1.as_str();
        Some((login, of(&self.changed).map_or(login, |i| self.changed[i].1.as_str())))
    }

    fn known_statements(&self) -> Vec<&str> {
        let ascii = |name| std::str::from_utf8(name).ok().filter(|name: &&str| name.is_ascii());
        self.statements.own().filter_map(|(name, _)| ascii(name)).collect()
    }
}

/// What a login needs.
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

/// Connect, log in and verify the role.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(login: Login<'_>, permit: Permit, now: Instant) -> Result<Server, ConnectError> {
    let node = login.member.node.clone();
    let io = |source| ConnectError::Io { node: node.clone(), source };
    let endpoint = &login.member.postgres;
    let shared = &login.worker.shared;
    let stream = shared.reach.dial(endpoint, &login.worker.config(), login.connect_timeout).await.map_err(io)?;
    let peer = stream.peer_addr().map_err(io)?;
    let mut wire = LoginWire { stream: Stream::Tcp(stream), node: node.clone(), buf: Vec::new(), at: 0 };
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
        changed: Vec::new(),
        given: Shared::default(),
        listens: false,
        spoilt: false,
        born: now,
        idle_since: now,
        permit,
    });
    Ok(Server { stream: wire.stream, meta, cancels: Rc::default() })
}

struct Welcome {
    settings: Settings,
    defaults: Defaults,
    key: (u32, u32),
}

async fn log_in(wire: &mut LoginWire, login: &Login<'_>) -> Result<Welcome, ConnectError> {
    let identity = login.identity;
    let mut out = Vec::with_capacity(256);
    let fixed = [("user", identity.user.as_str()), ("database", identity.dbname.as_str())];
    let own = identity.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    // No name of our own: RESET and DISCARD ALL lead back to what stands here, and a client that gave none sees that.
    startup::write_startup(&mut out, fixed.into_iter().chain(own));
    wire.send(&out).await?;
    let node = wire.node.clone();
    let protocol = |what| ConnectError::Protocol { node: node.clone(), what };
    let refused = |source| ConnectError::Challenge { node: node.clone(), source };
    let endpoint = wire.stream.tls().and_then(|peer| peer.server_end_point.as_deref()).map(<[u8]>::to_vec);
    let mut answers = Answers::new(&identity.user, login.credentials, login.allowed, login.hashing, endpoint);
    let mut welcome = Welcome { settings: Vec::new(), defaults: Defaults::default(), key: (0, 0) };
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
                welcome.settings.push((name.to_owned(), value.to_owned()));
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

fn refusal(node: NodeId, frame: Vec<u8>) -> ConnectError {
    let f = backend::fields(&frame);
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    ConnectError::Refused { node, code: text(f.code), message: text(f.message), frame: frame.clone() }
}

/// A node that was demoted or promoted behind the topology's back must not be taken for what it was. PostgreSQL 14
/// and later report `in_hot_standby`, which does for replication connections; 13 is asked, and every other connection
/// is, together with what no version reports.
async fn verify(wire: &mut LoginWire, login: &Login<'_>, welcome: &mut Welcome) -> Result<(), ConnectError> {
    let reported = welcome.settings.iter().find(|(name, _)| name == "in_hot_standby").map(|(_, value)| value == "on");
    let in_recovery = match reported {
        Some(answer) if login.identity.is_replication() => answer,
        _ if login.identity.is_physical() => ask_walsender(wire).await?,
        _ => {
            let (in_recovery, defaults) = ask(wire).await?;
            welcome.defaults = defaults;
            in_recovery
        }
    };
    if in_recovery == (login.role == Role::Standby) {
        Ok(())
    } else {
        Err(ConnectError::WrongRole { node: wire.node.clone(), expected: login.role })
    }
}

/// A walsender without a database runs no SQL. What it can show is that a node in recovery only reads; a primary whose
/// sessions only read by default is taken for one, which refuses more than it must.
async fn ask_walsender(wire: &mut LoginWire) -> Result<bool, ConnectError> {
    let row = ask_row(wire, "SHOW transaction_read_only").await?;
    Ok(matches!(row.as_slice(), [Some(value)] if value == "on"))
}

/// Is it in recovery, and what has it begun with?
async fn ask(wire: &mut LoginWire) -> Result<(bool, Defaults), ConnectError> {
    // A standby refuses even this to a role whose transactions are SERIALIZABLE by default.
    const QUESTION: &str = "BEGIN ISOLATION LEVEL READ COMMITTED;\
                            SELECT pg_catalog.pg_is_in_recovery(),pg_catalog.current_setting('client_min_messages'),\
                            pg_catalog.current_setting('synchronous_commit');COMMIT";
    let row = ask_row(wire, QUESTION).await?;
    let [Some(in_recovery), Some(messages), Some(commit)] = row.as_slice() else {
        return Err(ConnectError::Protocol { node: wire.node.clone(), what: "an odd answer to what it is" });
    };
    let defaults =
        Defaults { client_min_messages: messages.as_str().into(), synchronous_commit: commit.as_str().into() };
    Ok((in_recovery == "t", defaults))
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
