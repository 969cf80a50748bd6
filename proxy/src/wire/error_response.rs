//! Every error a client may see from the proxy itself, and the one place that gives it severity, SQLSTATE and words.
//!
//! Severities mean what they mean in PostgreSQL: ERROR ends a statement, FATAL ends the connection. Our own detail is
//! in DETAIL and HINT, never in the code: drivers and retry helpers know classes 08, 40 and 57 only. What a client
//! sees and what is logged are two texts; nothing here is meant for the log.
//! Source: PostgreSQL documentation, "Error Message Style Guide" and "Error and Notice Message Fields".

use crate::sql::PinReason;
use crate::wire::sqlstate::SqlState;
use cluster::topology::Gate;
use cluster::{NodeId, Term};
use std::fmt::Write as _;
use std::time::Duration;

/// ERROR or FATAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the connection goes on.
    Error,
    /// The connection is closed after this.
    Fatal,
}

impl Severity {
    /// The word on the wire, in the unlocalised form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// Why the outcome of something that was sent is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The server was lost before it answered.
    ServerLost,
    /// The server answered success, but its wait for a standby had been cancelled: committed there only.
    NotReplicated,
    /// The answer came after the proxy's view of the cluster had run out.
    ViewStale,
}

/// An error for a client, with its facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// A statement was held for `waited` and no primary accepted writes in that time.
    HoldTimeout {
        /// How long it was held.
        waited: Duration,
        /// What the gate said last.
        gate: Gate,
        /// The newest term known.
        term: Term,
        /// The primary of that term, or the node that is to become it, when known.
        node: Option<NodeId>,
    },
    /// No primary accepts writes and there is no room left to hold the statement.
    HoldFull {
        /// Bytes that would be held.
        bytes: u64,
        /// `proxy.hold_bytes`.
        limit: u64,
        /// What the gate said.
        gate: Gate,
        /// The newest term known.
        term: Term,
    },
    /// No server connection became free in `proxy.query_wait_timeout`.
    PoolExhausted {
        /// How long the statement waited.
        waited: Duration,
        /// `proxy.pool_size`.
        limit: usize,
    },
    /// A server refused the login made with the client's own keys.
    ServerLogin {
        /// The server.
        node: NodeId,
        /// What it or the exchange said.
        why: String,
    },
    /// A transaction block was lost with its server; nothing that could commit it had been sent.
    BlockAborted {
        /// The server that was lost.
        node: NodeId,
        /// The term it served.
        term: Term,
    },
    /// A read was cut off after some of its result had reached the client.
    ReadLost {
        /// The server that was lost.
        node: NodeId,
    },
    /// It is not known whether what was sent has been committed.
    CommitUnknown {
        /// The server that had it.
        node: NodeId,
        /// The term under which it was sent.
        term: Term,
        /// Why.
        doubt: Doubt,
    },
    /// A session pinned to a server lost what that server kept for it.
    SessionLost {
        /// The server that was lost.
        node: NodeId,
        /// What is gone.
        lost: Vec<PinReason>,
    },
    /// A statement inside a transaction block that has already failed here.
    InFailedTransaction,
    /// The client cancelled a statement that was still held or queued.
    Cancelled,
    /// A prepared statement of that name exists already.
    DuplicateStatement {
        /// Its name.
        name: String,
    },
    /// No prepared statement of that name exists.
    UnknownStatement {
        /// Its name; empty for the unnamed one.
        name: String,
    },
    /// The prepared statements of one connection take more than `proxy.prepared_statement_bytes`.
    StatementBytes {
        /// The limit, bytes.
        limit: u64,
    },
    /// Something PostgreSQL has and this proxy does not.
    Unsupported {
        /// What, as in `CALL of a replication command`.
        feature: &'static str,
    },
    /// A startup packet asks for something this proxy does not have.
    UnsupportedStartup {
        /// What, as in `replication connections`.
        feature: &'static str,
    },
    /// A protocol version other than 3.
    UnsupportedProtocol {
        /// Major version asked for.
        major: u16,
        /// Minor version asked for.
        minor: u16,
    },
    /// The client broke the protocol.
    ProtocolViolation {
        /// How, as in `invalid message length`.
        what: String,
    },
    /// A message longer than allowed.
    MessageTooLong {
        /// Its announced length, bytes.
        length: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// The startup packet names no user.
    NoUser,
    /// Wrong password, or no such user: a client cannot tell them apart.
    BadPassword {
        /// The user.
        user: String,
    },
    /// Startup and login took longer than `proxy.login_timeout`.
    LoginTimeout,
    /// `proxy.max_client_connections` are connected.
    TooManyClients {
        /// The limit.
        limit: usize,
    },
    /// The proxy stops.
    ShuttingDown,
    /// Our bug.
    Internal {
        /// What went wrong, in words that give nothing away.
        what: &'static str,
    },
}

/// An error as the client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// ERROR or FATAL.
    pub severity: Severity,
    /// The code.
    pub sqlstate: SqlState,
    /// One short phrase.
    pub message: String,
    /// Facts and numbers.
    pub detail: Option<String>,
    /// Advice.
    pub hint: Option<&'static str>,
}

const RETRY: &str = "Retry the transaction.";
const CHECK: &str = "Check whether its effects are there before doing it again.";

impl ClientError {
    /// ERROR or FATAL.
    pub fn severity(&self) -> Severity {
        self.report().severity
    }

    /// The code.
    pub fn sqlstate(&self) -> SqlState {
        self.report().sqlstate
    }

    /// Append an ErrorResponse message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.report().encode(out);
    }

    /// Severity, code and words.
    pub fn report(&self) -> Report {
        match self {
            Self::HoldTimeout { .. }
            | Self::HoldFull { .. }
            | Self::PoolExhausted { .. }
            | Self::ServerLogin { .. } => self.no_server(),
            Self::BlockAborted { .. }
            | Self::ReadLost { .. }
            | Self::CommitUnknown { .. }
            | Self::SessionLost { .. }
            | Self::InFailedTransaction
            | Self::Cancelled => self.lost_work(),
            Self::DuplicateStatement { .. }
            | Self::UnknownStatement { .. }
            | Self::StatementBytes { .. }
            | Self::Unsupported { .. }
            | Self::Internal { .. } => self.refused_statement(),
            Self::UnsupportedStartup { .. }
            | Self::UnsupportedProtocol { .. }
            | Self::ProtocolViolation { .. }
            | Self::MessageTooLong { .. }
            | Self::NoUser
            | Self::BadPassword { .. }
            | Self::LoginTimeout
            | Self::TooManyClients { .. }
            | Self::ShuttingDown => self.refused_connection(),
        }
    }

    fn no_server(&self) -> Report {
        match self {
            Self::HoldTimeout { waited, gate, term, node } => {
                let mut r = error(SqlState::CANNOT_CONNECT_NOW, "no primary accepts writes at present");
                let node = node.as_ref().map_or_else(|| "unknown".to_owned(), NodeId::to_string);
                let held = millis(*waited);
                let gate = gate.as_str();
                r.detail = Some(format!("Held for {held}; writes are {gate}, term {term}, primary {node}."));
                r.hint = Some(RETRY);
                r
            }
            Self::HoldFull { bytes, limit, gate, term } => {
                let mut r = error(SqlState::CANNOT_CONNECT_NOW, "no primary accepts writes at present");
                let gate = gate.as_str();
                r.detail = Some(format!("{bytes} bytes to hold, {limit} allowed; writes are {gate}, term {term}."));
                r.hint = Some(RETRY);
                r
            }
            Self::PoolExhausted { waited, limit } => {
                let mut r = error(SqlState::TOO_MANY_CONNECTIONS, "no server connection became free in time");
                let waited = millis(*waited);
                r.detail = Some(format!("Waited {waited}; the pools of this process hold {limit} connections."));
                r.hint = Some("Raise proxy.pool_size or shorten transactions.");
                r
            }
            Self::ServerLogin { node, why } => {
                let mut r = error(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "could not log in to the server");
                r.detail = Some(format!("Server {node}: {why}."));
                r.hint = Some("Compare the proxy's userlist with pg_authid.");
                r
            }
            _ => unreachable!("report() sends only the four variants above here"),
        }
    }

    fn lost_work(&self) -> Report {
        match self {
            Self::BlockAborted { node, term } => {
                let mut r = error(SqlState::SERIALIZATION_FAILURE, "transaction aborted because its server was lost");
                r.detail = Some(format!("Server {node} was primary in term {term}; nothing was committed."));
                r.hint = Some(RETRY);
                r
            }
            Self::ReadLost { node } => {
                let mut r = error(SqlState::SERIALIZATION_FAILURE, "query interrupted because its server was lost");
                r.detail = Some(format!("Server {node} was lost after part of the result had been sent."));
                r.hint = Some("Run the query again.");
                r
            }
            Self::CommitUnknown { node, term, doubt } => {
                let text = "it is unknown whether the statement was committed";
                let mut r = error(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, text);
                let why = match doubt {
                    Doubt::ServerLost => "was lost before it answered",
                    Doubt::NotReplicated => "committed it without waiting for a standby",
                    Doubt::ViewStale => "answered when it may no longer have been primary",
                };
                r.detail = Some(format!("Server {node}, primary in term {term}, {why}."));
                r.hint = Some(CHECK);
                r
            }
            Self::SessionLost { node, lost } => {
                let mut r = error(SqlState::CONNECTION_FAILURE, "session state was lost with its server");
                let mut what = String::new();
                for (i, reason) in lost.iter().enumerate() {
                    what.push_str(if i == 0 { "" } else { ", " });
                    what.push_str(reason.as_str());
                }
                r.detail = Some(format!("Server {node} was lost. Gone: {what}."));
                r.hint = Some("Set up the session again; the connection itself goes on.");
                r
            }
            Self::InFailedTransaction => error(
                SqlState::IN_FAILED_SQL_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            ),
            Self::Cancelled => error(SqlState::QUERY_CANCELED, "canceling statement due to user request"),
            _ => unreachable!("report() sends only the six variants above here"),
        }
    }

    fn refused_statement(&self) -> Report {
        match self {
            Self::DuplicateStatement { name } => {
                error(SqlState::DUPLICATE_PREPARED_STATEMENT, format!("prepared statement \"{name}\" already exists"))
            }
            Self::UnknownStatement { name } if name.is_empty() => {
                error(SqlState::INVALID_SQL_STATEMENT_NAME, "unnamed prepared statement does not exist")
            }
            Self::UnknownStatement { name } => {
                error(SqlState::INVALID_SQL_STATEMENT_NAME, format!("prepared statement \"{name}\" does not exist"))
            }
            Self::StatementBytes { limit } => {
                let mut r = error(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements");
                r.detail = Some(format!("The statements of one connection may take {limit} bytes."));
                r.hint = Some("Close statements that are no longer used, or raise proxy.prepared_statement_bytes.");
                r
            }
            Self::Unsupported { feature } => {
                error(SqlState::FEATURE_NOT_SUPPORTED, format!("{feature} is not supported by this proxy"))
            }
            Self::Internal { what } => {
                let mut r = error(SqlState::INTERNAL_ERROR, "internal error of the proxy");
                r.detail = Some(format!("{what}."));
                r
            }
            _ => unreachable!("report() sends only the five variants above here"),
        }
    }

    fn refused_connection(&self) -> Report {
        match self {
            Self::UnsupportedStartup { feature } => {
                fatal(SqlState::FEATURE_NOT_SUPPORTED, format!("{feature} are not supported by this proxy"))
            }
            Self::UnsupportedProtocol { major, minor } => {
                let text = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0");
                fatal(SqlState::FEATURE_NOT_SUPPORTED, text)
            }
            Self::ProtocolViolation { what } => fatal(SqlState::PROTOCOL_VIOLATION, what.clone()),
            Self::MessageTooLong { length, limit } => {
                let mut r = fatal(SqlState::PROTOCOL_VIOLATION, "invalid message length");
                r.detail = Some(format!("{length} bytes announced, {limit} allowed."));
                r
            }
            Self::NoUser => fatal(
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                "no PostgreSQL user name specified in startup packet",
            ),
            Self::BadPassword { user } => {
                fatal(SqlState::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
            }
            Self::LoginTimeout => fatal(SqlState::QUERY_CANCELED, "canceling authentication due to timeout"),
            Self::TooManyClients { limit } => {
                let mut r = fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already");
                r.detail = Some(format!("This proxy takes {limit} connections."));
                r
            }
            Self::ShuttingDown => {
                fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
            }
            _ => unreachable!("report() sends only the nine variants above here"),
        }
    }
}

impl Report {
    /// Append an ErrorResponse message. A NUL inside a text would end its field early and shift the rest, so it is
    /// left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(b"E\0\0\0\0");
        let mut field = |code: u8, text: &str| {
            out.push(code);
            out.extend(text.bytes().filter(|b| *b != 0));
            out.push(0);
        };
        field(b'S', self.severity.as_str());
        field(b'V', self.severity.as_str());
        field(b'C', self.sqlstate.as_str());
        field(b'M', &self.message);
        if let Some(detail) = &self.detail {
            field(b'D', detail);
        }
        if let Some(hint) = self.hint {
            field(b'H', hint);
        }
        out.push(0);
        let length = u32::try_from(out.len() - start - 1).expect("a few short texts are far below 4 GiB");
        out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }
}

fn error(sqlstate: SqlState, message: impl Into<String>) -> Report {
    Report { severity: Severity::Error, sqlstate, message: message.into(), detail: None, hint: None }
}

fn fatal(sqlstate: SqlState, message: impl Into<String>) -> Report {
    Report { severity: Severity::Fatal, ..error(sqlstate, message) }
}

fn millis(d: Duration) -> String {
    let mut s = String::new();
    write!(s, "{} ms", d.as_millis()).expect("writing to a String does not fail");
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::topology::Closed;

    fn n1() -> NodeId {
        "n1".parse().unwrap()
    }

    /// One of each variant, with the line a client sees. A variant missing here fails `every_variant_is_listed`.
    fn all() -> Vec<(ClientError, &'static str)> {
        use ClientError as E;
        let (term, node, gate) = (Term(7), n1(), Gate::Closed(Closed::Promoting));
        vec![
            (
                E::HoldTimeout { waited: Duration::from_secs(30), gate, term, node: Some(n1()) },
                "ERROR 57P03 no primary accepts writes at present | Held for 30000 ms; writes are promoting, term 7, primary n1. | Retry the transaction.",
            ),
            (
                E::HoldFull { bytes: 9, limit: 8, gate: Gate::Draining, term },
                "ERROR 57P03 no primary accepts writes at present | 9 bytes to hold, 8 allowed; writes are draining, term 7. | Retry the transaction.",
            ),
            (
                E::PoolExhausted { waited: Duration::from_millis(1500), limit: 20 },
                "ERROR 53300 no server connection became free in time | Waited 1500 ms; the pools of this process hold 20 connections. | Raise proxy.pool_size or shorten transactions.",
            ),
            (
                E::ServerLogin { node: node.clone(), why: "wrong proof".into() },
                "ERROR 28000 could not log in to the server | Server n1: wrong proof. | Compare the proxy's userlist with pg_authid.",
            ),
            (
                E::BlockAborted { node: node.clone(), term },
                "ERROR 40001 transaction aborted because its server was lost | Server n1 was primary in term 7; nothing was committed. | Retry the transaction.",
            ),
            (
                E::ReadLost { node: node.clone() },
                "ERROR 40001 query interrupted because its server was lost | Server n1 was lost after part of the result had been sent. | Run the query again.",
            ),
            (
                E::CommitUnknown { node: node.clone(), term, doubt: Doubt::NotReplicated },
                "ERROR 08007 it is unknown whether the statement was committed | Server n1, primary in term 7, committed it without waiting for a standby. | Check whether its effects are there before doing it again.",
            ),
            (
                E::SessionLost { node, lost: vec![PinReason::Set, PinReason::Temp] },
                "ERROR 08006 session state was lost with its server | Server n1 was lost. Gone: session settings (SET), temporary objects. | Set up the session again; the connection itself goes on.",
            ),
            (
                E::InFailedTransaction,
                "ERROR 25P02 current transaction is aborted, commands ignored until end of transaction block |  | ",
            ),
            (E::Cancelled, "ERROR 57014 canceling statement due to user request |  | "),
            (E::DuplicateStatement { name: "s".into() }, "ERROR 42P05 prepared statement \"s\" already exists |  | "),
            (E::UnknownStatement { name: "s".into() }, "ERROR 26000 prepared statement \"s\" does not exist |  | "),
            (
                E::StatementBytes { limit: 1024 },
                "ERROR 54000 too many prepared statements | The statements of one connection may take 1024 bytes. | Close statements that are no longer used, or raise proxy.prepared_statement_bytes.",
            ),
            (
                E::Unsupported { feature: "FunctionCall" },
                "ERROR 0A000 FunctionCall is not supported by this proxy |  | ",
            ),
            (
                E::UnsupportedStartup { feature: "replication connections" },
                "FATAL 0A000 replication connections are not supported by this proxy |  | ",
            ),
            (
                E::UnsupportedProtocol { major: 2, minor: 0 },
                "FATAL 0A000 unsupported frontend protocol 2.0: server supports 3.0 to 3.0 |  | ",
            ),
            (E::ProtocolViolation { what: "odd".into() }, "FATAL 08P01 odd |  | "),
            (
                E::MessageTooLong { length: 9, limit: 8 },
                "FATAL 08P01 invalid message length | 9 bytes announced, 8 allowed. | ",
            ),
            (E::NoUser, "FATAL 28000 no PostgreSQL user name specified in startup packet |  | "),
            (E::BadPassword { user: "u".into() }, "FATAL 28P01 password authentication failed for user \"u\" |  | "),
            (E::LoginTimeout, "FATAL 57014 canceling authentication due to timeout |  | "),
            (
                E::TooManyClients { limit: 100 },
                "FATAL 53300 sorry, too many clients already | This proxy takes 100 connections. | ",
            ),
            (E::ShuttingDown, "FATAL 57P01 terminating connection due to administrator command |  | "),
            (E::Internal { what: "No target" }, "ERROR XX000 internal error of the proxy | No target. | "),
        ]
    }

    #[test]
    fn every_variant_has_its_words() {
        for (error, want) in all() {
            let r = error.report();
            let (severity, detail, hint) = (r.severity.as_str(), r.detail.unwrap_or_default(), r.hint.unwrap_or(""));
            let got = format!("{severity} {} {} | {detail} | {hint}", r.sqlstate, r.message);
            assert_eq!(got, want, "{error:?}");
        }
    }

    /// This match is exhaustive: a new variant does not compile until it is counted, and is not counted until listed.
    #[test]
    fn every_variant_is_listed() {
        use ClientError as E;
        let index = |e: &E| match e {
            E::HoldTimeout { .. } => 0,
            E::HoldFull { .. } => 1,
            E::PoolExhausted { .. } => 2,
            E::ServerLogin { .. } => 3,
            E::BlockAborted { .. } => 4,
            E::ReadLost { .. } => 5,
            E::CommitUnknown { .. } => 6,
            E::SessionLost { .. } => 7,
            E::InFailedTransaction => 8,
            E::Cancelled => 9,
            E::DuplicateStatement { .. } => 10,
            E::UnknownStatement { .. } => 11,
            E::StatementBytes { .. } => 12,
            E::Unsupported { .. } => 13,
            E::UnsupportedStartup { .. } => 14,
            E::UnsupportedProtocol { .. } => 15,
            E::ProtocolViolation { .. } => 16,
            E::MessageTooLong { .. } => 17,
            E::NoUser => 18,
            E::BadPassword { .. } => 19,
            E::LoginTimeout => 20,
            E::TooManyClients { .. } => 21,
            E::ShuttingDown => 22,
            E::Internal { .. } => 23,
        };
        let seen: Vec<usize> = all().iter().map(|(e, _)| index(e)).collect();
        assert_eq!(seen, (0..24).collect::<Vec<_>>());
    }

    #[test]
    fn an_error_response_is_framed_as_the_protocol_says() {
        let mut out = b"before".to_vec();
        ClientError::ProtocolViolation { what: "a\0b".into() }.encode(&mut out);
        assert_eq!(&out[..7], b"beforeE");
        let body = &out[7..];
        assert_eq!(u32::from_be_bytes(body[..4].try_into().unwrap()) as usize, body.len());
        assert_eq!(&body[4..], b"SFATAL\0VFATAL\0C08P01\0Mab\0\0");
    }
}
