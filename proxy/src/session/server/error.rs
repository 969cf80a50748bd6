//! Why there is no connection to a server.

use crate::session::challenge::ChallengeError;
use crate::tls::SecureError;
use cluster::{NodeId, Role};
use std::io;
use std::time::Duration;

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
