//! What a client is told that may only read.

use super::error_response::{Report, error};
use super::sqlstate::SqlState;

/// A session of `proxy.listen_read_only` cannot have what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnlyError {
    /// What is not proven to read, where no standby can refuse or run it.
    Statement,
    /// A transaction that may write.
    ReadWrite,
    /// A replication connection.
    Replication,
}

impl ReadOnlyError {
    /// As the client reads it.
    pub fn report(self) -> Report {
        match self {
            Self::Statement => {
                error(SqlState::READ_ONLY_SQL_TRANSACTION, "cannot execute this statement in a read-only transaction")
                    .detail(
                        "What is not proven to read runs on standbys only, and none serves this session at present."
                            .to_owned(),
                    )
            }
            // PostgreSQL's own words on a standby.
            Self::ReadWrite => {
                error(SqlState::FEATURE_NOT_SUPPORTED, "cannot set transaction read-write mode during recovery")
            }
            Self::Replication => {
                error(SqlState::FEATURE_NOT_SUPPORTED, "replication is not supported at a read-only address")
                    .hint("Connect to an address of proxy.listen.")
            }
        }
    }
}
