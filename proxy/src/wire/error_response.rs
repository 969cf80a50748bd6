//! Every error a client may see from the proxy itself, and the one place that gives it severity, SQLSTATE and words.
//!
//! Severities mean what they mean in PostgreSQL: ERROR ends a statement, FATAL ends the connection. Our own detail is
//! in DETAIL and HINT, never in the code: drivers and retry helpers know classes 08, 40 and 57 only. What a client
//! sees and what is logged are two texts; nothing here is meant for the log.
//! Source: PostgreSQL documentation, "Error Message Style Guide" and "Error and Notice Message Fields".

mod report;

pub use report::{Report, Severity};

pub(super) use report::{error, fatal, millis};

use crate::auth::rules::{Method, Way};
use crate::ledger::Mark;
use crate::ledger::verdict::{Proof, Why};
use crate::sql::PinReason;
use crate::wire::durability_error::DurabilityError;
use crate::wire::pool_error::PoolError;
use crate::wire::promise_error::PromiseError;
use crate::wire::read_only_error::ReadOnlyError;
use crate::wire::sqlstate::SqlState;
use cluster::topology::Gate;
use cluster::{NodeId, Term};
use std::time::Duration;

/// Why the outcome of something that was sent is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The server was lost before it answered.
    ServerLost,
    /// The server answered success, but its wait for a standby had been cancelled: committed there only.
    NotReplicated,
    /// The server answered success, and may have hidden that its wait for a standby had been cancelled; no standby was seen
    /// to have it.
    Unconfirmed,
    /// The answer came after the proxy's view of the cluster had run out.
    ViewStale,
}

/// An error for a client, with its facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// A statement was held for `waited` and had no server in that time.
    HoldTimeout {
        /// How long it was held.
        waited: Duration,
        /// Why it could be served neither by a standby nor by the primary; `None`: the primary alone could have.
        read: Option<String>,
        /// What the gate said last.
        gate: Gate,
        /// The newest term known.
        term: Term,
        /// The primary of that term, or the node that is to become it, when known.
        node: Option<NodeId>,
    },
    /// There is no room left to hold the statement: while no primary accepts writes, or no connection to it is free.
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
    /// No standby may serve a read, and the session does not want it to go to the primary.
    NoStandby {
        /// What the session was promised.
        consistency: &'static str,
        /// How long it waited for one.
        waited: Duration,
        /// Why none served, with the numbers.
        why: String,
    },
    /// What a session asks of its reads cannot be.
    Promise(PromiseError),
    /// What a session asks of its commits cannot be.
    Durability(DurabilityError),
    /// A session that may only read asks for more.
    ReadOnly(ReadOnlyError),
    /// A limit, a timeout or an operator's order.
    Pool(PoolError),
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
    /// A read was cut off after some of its result had reached the client, or a second time.
    ReadLost {
        /// The server that was lost.
        node: NodeId,
        /// The one that it had lost before.
        before: Option<NodeId>,
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
    /// A COMMIT was lost with its server, and it is proven that nothing of it is committed.
    CommitLost {
        /// The server that had it.
        node: NodeId,
        /// The term under which it was sent.
        term: Term,
        /// The transaction's id, when it had one before the COMMIT.
        xid: Option<u64>,
        /// What proves it.
        proof: Proof,
    },
    /// A COMMIT was lost with its server, and nobody can tell whether it is committed.
    CommitUnresolved {
        /// The server that had it.
        node: NodeId,
        /// The term under which it was sent.
        term: Term,
        /// What the server said before it.
        mark: Mark,
        /// Why nobody can tell.
        why: Why,
        /// How its answer was lost.
        doubt: Doubt,
    },
    /// A session pinned to a server lost what that server kept for it.
    SessionLost {
        /// The server that was lost.
        node: NodeId,
        /// What is gone.
        lost: Vec<PinReason>,
    },
    /// The primary refuses settings that the session has on another server.
    SettingsRefused {
        /// The server.
        node: NodeId,
        /// What it said.
        why: String,
    },
    /// A statement in a READ ONLY block on a standby would leave something in the session, or use what means something
    /// else there.
    NotOnStandby {
        /// The standby.
        node: NodeId,
        /// What it is about.
        what: Vec<PinReason>,
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
    /// The result of a prepared statement has other columns than the client was told.
    ResultChanged,
    /// A Bind that does not fit its statement.
    BadBind {
        /// How, as PostgreSQL says it.
        what: String,
    },
    /// No prepared statement of that name exists.
    UnknownStatement {
        /// Its name; empty for the unnamed one.
        name: String,
    },
    /// The prepared statements of one connection take more than `proxy.prepared_statement_bytes`.
    StatementBytes {
        /// The limit, bytes.
        limit: usize,
        /// What it is usually: less while those of all take too much, and those of the user most.
        configured: usize,
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
    /// `replication` in the startup packet is not what it may be.
    BadReplication {
        /// What it is.
        value: String,
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
    /// No rule lets this client in, or one keeps it out.
    NotAdmitted {
        /// The way it came.
        way: Way,
        /// The user.
        user: String,
        /// The database.
        database: String,
        /// A rule rejects it; else none fits.
        by_rule: bool,
    },
    /// The proof that a rule demands was not given, and is no password.
    AuthenticationFailed {
        /// The rule's method.
        method: Method,
        /// The user.
        user: String,
    },
    /// A user could not be looked up.
    UserLookup {
        /// Why.
        why: String,
    },
    /// The client and we do not agree on the channel that a login is bound to.
    ChannelBinding {
        /// How, in PostgreSQL's words.
        what: String,
    },
    /// The client must use TLS (`proxy.tls.mode`).
    TlsRequired,
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

const RETRY: &str = "Retry the transaction.";

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
            Self::HoldTimeout { waited, read, gate, term, node } => {
                hold_timeout(*waited, read.as_deref(), (*gate, *term, node.as_ref()))
            }
            Self::HoldFull { bytes, limit, gate, term } => hold_full(*bytes, *limit, *gate, *term),
            Self::NoStandby { consistency, waited, why } => no_standby(consistency, *waited, why),
            Self::Promise(error) => error.report(),
            Self::Durability(error) => error.report(),
            Self::ReadOnly(error) => error.report(),
            Self::Pool(error) => error.report(),
            Self::ServerLogin { node, why } => server_login(node, why),
            Self::BlockAborted { node, term } => block_aborted(node, *term),
            Self::ReadLost { node, before } => read_lost(node, before.as_ref()),
            Self::CommitUnknown { node, term, doubt } => commit_unknown(node, *term, *doubt),
            Self::CommitLost { node, term, xid, proof } => commit_lost(node, *term, *xid, proof),
            Self::CommitUnresolved { node, term, mark, why, doubt } => {
                commit_unresolved(node, *term, mark, *why, *doubt)
            }
            Self::SessionLost { node, lost } => session_lost(node, lost),
            Self::ResultChanged => error(SqlState::FEATURE_NOT_SUPPORTED, "cached plan must not change result type")
                .routine("RevalidateCachedQuery"),
            Self::SettingsRefused { node, why } => settings_refused(node, why),
            Self::NotOnStandby { node, what } => not_on_standby(node, what),
            Self::InFailedTransaction => error(
                SqlState::IN_FAILED_SQL_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            ),
            Self::Cancelled => error(SqlState::QUERY_CANCELED, "canceling statement due to user request"),
            Self::DuplicateStatement { name } => duplicate_statement(name),
            Self::BadBind { what } => error(SqlState::PROTOCOL_VIOLATION, what.clone()).routine("exec_bind_message"),
            Self::UnknownStatement { name } => unknown_statement(name),
            Self::StatementBytes { limit, configured } => statement_bytes(*limit, *configured),
            Self::Unsupported { feature } => {
                error(SqlState::FEATURE_NOT_SUPPORTED, format!("{feature} is not supported by this proxy"))
            }
            Self::UnsupportedStartup { feature } => {
                fatal(SqlState::FEATURE_NOT_SUPPORTED, format!("{feature} are not supported by this proxy"))
            }
            Self::UnsupportedProtocol { major, minor } => unsupported_protocol(*major, *minor),
            Self::BadReplication { value } => bad_replication(value),
            Self::ProtocolViolation { what } => fatal(SqlState::PROTOCOL_VIOLATION, what.clone()),
            Self::MessageTooLong { length, limit } => message_too_long(*length, *limit),
            Self::NoUser => fatal(
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                "no PostgreSQL user name specified in startup packet",
            ),
            Self::BadPassword { user } => bad_password(user),
            Self::NotAdmitted { way, user, database, by_rule } => not_admitted(*way, user, database, *by_rule),
            Self::AuthenticationFailed { method, user } => authentication_failed(*method, user),
            Self::UserLookup { why } => fatal(SqlState::CANNOT_CONNECT_NOW, "could not look up the user")
                .detail(format!("proxy.auth.query: {why}.")),
            Self::ChannelBinding { what } => fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, what.clone()),
            Self::TlsRequired => {
                fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "connection requires TLS (SSL off)")
                    .hint("Connect with sslmode=require or stronger.")
            }
            Self::LoginTimeout => fatal(SqlState::QUERY_CANCELED, "canceling authentication due to timeout"),
            Self::TooManyClients { limit } => too_many_clients(*limit),
            Self::ShuttingDown => {
                fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
            }
            Self::Internal { what } => {
                error(SqlState::INTERNAL_ERROR, "internal error of the proxy").detail(format!("{what}."))
            }
        }
    }
}

fn hold_timeout(waited: Duration, read: Option<&str>, (gate, term, node): (Gate, Term, Option<&NodeId>)) -> Report {
    let node = node.map_or("unknown", NodeId::as_str);
    let message = match (read, gate) {
        (Some(_), _) => "no server can serve this statement at present",
        // Its connections fail, or end before they are of use.
        (None, Gate::Open) => "the primary cannot be reached at present",
        (None, Gate::Draining | Gate::Closed(_)) => "no primary accepts writes at present",
    };
    let (held, gate) = (millis(waited), gate.as_str());
    let why = read.map(|why| format!(": {why}")).unwrap_or_default();
    error(SqlState::CANNOT_CONNECT_NOW, message)
        .detail(format!("Held for {held}{why}; writes are {gate}, term {term}, primary {node}."))
        .hint(RETRY)
}

fn hold_full(bytes: u64, limit: u64, gate: Gate, term: Term) -> Report {
    if gate == Gate::Open {
        return error(SqlState::TOO_MANY_CONNECTIONS, "no server connection is free, and too much waits for one")
            .detail(format!("{bytes} bytes to hold, {limit} allowed."))
            .hint("Raise proxy.pool_size or proxy.hold_bytes, or shorten transactions.");
    }
    let gate = gate.as_str();
    error(SqlState::CANNOT_CONNECT_NOW, "no primary accepts writes at present")
        .detail(format!("{bytes} bytes to hold, {limit} allowed; writes are {gate}, term {term}."))
        .hint(RETRY)
}

fn no_standby(consistency: &str, waited: Duration, why: &str) -> Report {
    let waited = millis(waited);
    error(SqlState::CANNOT_CONNECT_NOW, "no standby can serve this read at present")
        .detail(format!("Waited {waited} for consistency {consistency}: {why}."))
        .hint("Retry later, or SET pgtenure.no_standby = 'primary'.")
}

fn server_login(node: &NodeId, why: &str) -> Report {
    error(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "could not log in to the server")
        .detail(format!("Server {node}: {why}."))
        .hint("Compare the proxy's userlist with pg_authid.")
}

fn block_aborted(node: &NodeId, term: Term) -> Report {
    error(SqlState::SERIALIZATION_FAILURE, "transaction aborted because its server was lost")
        .detail(format!("Server {node} served it in term {term}; nothing was committed."))
        .hint(RETRY)
}

fn read_lost(node: &NodeId, before: Option<&NodeId>) -> Report {
    let report = error(SqlState::SERIALIZATION_FAILURE, "query interrupted because its server was lost");
    match before {
        Some(before) => report
            .detail(format!("The connection to server {before} was lost while it ran there, and then that to {node}."))
            .hint("Find out whether they were lost because of it before you run it again."),
        None => report
            .detail(format!("Server {node} was lost before all of the answer had come."))
            .hint("Run the query again."),
    }
}

fn commit_unknown(node: &NodeId, term: Term, doubt: Doubt) -> Report {
    let why = match doubt {
        Doubt::ServerLost => "was lost before it answered",
        Doubt::NotReplicated => "committed it without waiting for a standby",
        Doubt::Unconfirmed => "committed it, hides whether it waited for a standby, and none has confirmed it in time",
        Doubt::ViewStale => "answered when it may no longer have been primary",
    };
    error(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, "it is unknown whether the statement was committed")
        .detail(format!("Server {node}, primary in term {term}, {why}."))
        .hint("Check whether its effects are there before doing it again.")
}

fn commit_lost(node: &NodeId, term: Term, xid: Option<u64>, proof: &Proof) -> Report {
    let what = xid.map_or_else(String::new, |xid| format!(" of transaction {xid}"));
    error(SqlState::SERIALIZATION_FAILURE, "transaction was not committed because its server was lost")
        .detail(format!("Server {node}, primary in term {term}, was lost during the COMMIT{what}: {proof}."))
        .hint(RETRY)
}

fn commit_unresolved(node: &NodeId, term: Term, mark: &Mark, why: Why, doubt: Doubt) -> Report {
    let Mark { xid, lsn } = mark;
    let how = match doubt {
        Doubt::ViewStale => "may no longer have been primary when it answered the COMMIT",
        Doubt::ServerLost | Doubt::NotReplicated | Doubt::Unconfirmed => "was lost during the COMMIT",
    };
    let what = xid.map_or_else(String::new, |xid| format!(" of transaction {xid}"));
    error(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, "it is unknown whether the transaction was committed")
        .detail(format!("Server {node}, primary in term {term}, {how}{what} at {lsn} or later: {why}."))
        .hint("Check whether its effects are there before doing it again.")
}

fn not_on_standby(node: &NodeId, what: &[PinReason]) -> Report {
    let what = what.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(", ");
    error(
        SqlState::FEATURE_NOT_SUPPORTED,
        format!("not possible in a READ ONLY transaction that a standby serves: {what}"),
    )
    .detail(format!("Standby {node} serves it."))
    .hint("SET pgtenure.read_from = 'primary' before such a transaction.")
}

fn session_lost(node: &NodeId, lost: &[PinReason]) -> Report {
    let what: Vec<&str> = lost.iter().map(|reason| reason.as_str()).collect();
    error(SqlState::CONNECTION_FAILURE, "session state was lost with its server")
        .detail(format!("Server {node} was lost. Gone: {}.", what.join(", ")))
        .hint("Set up the session again; the connection itself goes on.")
}

fn settings_refused(node: &NodeId, why: &str) -> Report {
    fatal(SqlState::CONNECTION_FAILURE, "could not restore the session's settings on its server")
        .detail(format!("Server {node}: {why}."))
        .hint("Connect again; the settings begin anew.")
}

fn duplicate_statement(name: &str) -> Report {
    error(SqlState::DUPLICATE_PREPARED_STATEMENT, format!("prepared statement \"{name}\" already exists"))
        .routine("StorePreparedStatement")
}

fn unknown_statement(name: &str) -> Report {
    let unknown = |message: String| error(SqlState::INVALID_SQL_STATEMENT_NAME, message);
    match name {
        "" => unknown("unnamed prepared statement does not exist".to_owned()),
        name => unknown(format!("prepared statement \"{name}\" does not exist")).routine("FetchPreparedStatement"),
    }
}

fn statement_bytes(limit: usize, configured: usize) -> Report {
    let report = error(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements");
    if limit < configured {
        return report
            .detail(format!(
                "Those of all clients take too much memory, and those of this user more than their share: until that is \
                 over, the statements of each of its connections may take {limit} bytes instead of {configured}."
            ))
            .hint("Close statements that are no longer used, on whichever connection of the user.");
    }
    report
        .detail(format!("The statements of one connection may take {limit} bytes."))
        .hint("Close statements that are no longer used, or raise proxy.prepared_statement_bytes.")
}

fn unsupported_protocol(major: u16, minor: u16) -> Report {
    let text = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0");
    Report { old: major < 3, ..fatal(SqlState::FEATURE_NOT_SUPPORTED, text) }
}

fn bad_replication(value: &str) -> Report {
    fatal(SqlState::INVALID_PARAMETER_VALUE, format!("invalid value for parameter \"replication\": \"{value}\""))
        .hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
}

fn message_too_long(length: u64, limit: u64) -> Report {
    fatal(SqlState::PROTOCOL_VIOLATION, "invalid message length")
        .detail(format!("{length} bytes announced, {limit} allowed."))
}

fn bad_password(user: &str) -> Report {
    fatal(SqlState::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
}

/// The words of PostgreSQL's message for its own rules, so that what reads it there reads it here.
fn not_admitted(way: Way, user: &str, database: &str, by_rule: bool) -> Report {
    let (host, encryption) = match way {
        Way::Local => ("[local]".to_owned(), "no encryption"),
        Way::Host { address, tls: true } => (address.to_canonical().to_string(), "SSL encryption"),
        Way::Host { address, tls: false } => (address.to_canonical().to_string(), "no encryption"),
    };
    let head = if by_rule { "proxy.auth.rules rejects connection" } else { "no proxy.auth.rules entry" };
    let text = format!("{head} for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}");
    fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, text)
}

fn authentication_failed(method: Method, user: &str) -> Report {
    let how = match method {
        Method::Cert => "certificate",
        Method::Peer => "Peer",
        Method::Scram | Method::Md5 | Method::Password | Method::Trust | Method::Reject => "password",
    };
    fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, format!("{how} authentication failed for user \"{user}\""))
}

fn too_many_clients(limit: usize) -> Report {
    fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
        .detail(format!("This proxy takes {limit} connections."))
}

#[cfg(test)]
mod tests;
