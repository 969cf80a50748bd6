//! Why there is no connection to a server.

use crate::pool::Rivals;
use crate::session::challenge::ChallengeError;
use crate::tls::SecureError;
use crate::wire::backend::fields;
use cluster::{NodeId, Role};
use std::io;
use std::time::Duration;

/// too_many_connections: the server has as many as it takes, of all or of this user.
const TOO_MANY: &str = "53300";
/// invalid_password.
const WRONG_PROOF: &str = "28P01";
/// Classes of what a server says of itself: it lacks something, is started, stopped or told to refuse, has a fault, or the
/// connection has. Everything else is about the role, the database or the startup packet.
const OF_SERVER: [&str; 5] = ["53", "57", "58", "08", "XX"];

/// What a failed attempt speaks against: what is left alone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Only the client: the node answers, and others may connect.
    Client,
    /// A limit of the role or the database is reached: connections of this pool.
    Pool,
    /// Logins of this pool, which a standby refuses: what is right at the primary may not have come there yet.
    Login,
    /// The node, or a limit of all of it.
    Node,
}

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
    /// What answers at the node's address is another server.
    #[error("what answers at {node}'s address {what}")]
    OtherServer {
        /// The server.
        node: NodeId,
        /// How it differs.
        what: String,
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
            Self::OtherServer { .. } => "other_server",
            Self::Protocol { .. } => "protocol",
        }
    }

    /// Is it about this user and database, so that trying again or elsewhere is of no use?
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { code, .. } => !OF_SERVER.iter().any(|class| code.starts_with(class)),
            Self::Challenge { .. } => true,
            Self::Io { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::WrongRole { .. }
            | Self::OtherServer { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// Has the server refused the proof itself, be it of a wrong password?
    pub fn is_of_proof(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == WRONG_PROOF)
    }

    /// The server takes no more connections: whose count against the limit that it has met?
    pub fn limit(&self) -> Option<Rivals> {
        match self {
            Self::Refused { code, frame, .. } if code == TOO_MANY => Some(Rivals::of_refusal(fields(frame).routine)),
            _ => None,
        }
    }

    /// What is it that is not to be tried again at once?
    pub fn blame(&self, role: Role, replication: bool) -> Blame {
        match self.limit() {
            _ if self.is_final() && role == Role::Standby => Blame::Login,
            _ if self.is_final() => Blame::Client,
            // Walsenders have a limit of their own.
            Some(_) if replication => Blame::Pool,
            Some(Rivals::User | Rivals::ServerDatabase) => Blame::Pool,
            Some(Rivals::Kin | Rivals::Database | Rivals::Server) | None => Blame::Node,
        }
    }
}
