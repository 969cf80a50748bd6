//! The SQLSTATE codes this proxy sends or acts on.
//!
//! Source: PostgreSQL documentation, Appendix A; src/backend/utils/errcodes.txt.

use std::fmt;

/// A five-character code. Only the constants below exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState {
            $($(#[$doc])* pub const $name: Self = Self(*$code);)*

            /// The code as one of ours; `None` for any other.
            pub fn known(code: &[u8]) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// connection_failure: what a session kept on its server is gone.
    CONNECTION_FAILURE = b"08006";
    /// transaction_resolution_unknown: it may or may not have committed.
    TRANSACTION_RESOLUTION_UNKNOWN = b"08007";
    /// protocol_violation.
    PROTOCOL_VIOLATION = b"08P01";
    /// feature_not_supported.
    FEATURE_NOT_SUPPORTED = b"0A000";
    /// invalid_parameter_value.
    INVALID_PARAMETER_VALUE = b"22023";
    /// read_only_sql_transaction: a standby was asked to write.
    READ_ONLY_SQL_TRANSACTION = b"25006";
    /// in_failed_sql_transaction.
    IN_FAILED_SQL_TRANSACTION = b"25P02";
    /// idle_in_transaction_session_timeout.
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = b"25P03";
    /// transaction_timeout.
    TRANSACTION_TIMEOUT = b"25P04";
    /// invalid_sql_statement_name: no such prepared statement.
    INVALID_SQL_STATEMENT_NAME = b"26000";
    /// invalid_authorization_specification.
    INVALID_AUTHORIZATION_SPECIFICATION = b"28000";
    /// invalid_password.
    INVALID_PASSWORD = b"28P01";
    /// invalid_catalog_name: no such database.
    INVALID_CATALOG_NAME = b"3D000";
    /// serialization_failure: also recovery conflicts on a standby.
    SERIALIZATION_FAILURE = b"40001";
    /// invalid_cursor_name: no such portal.
    INVALID_CURSOR_NAME = b"34000";
    /// deadlock_detected: also against the startup process on a standby.
    DEADLOCK_DETECTED = b"40P01";
    /// insufficient_privilege.
    INSUFFICIENT_PRIVILEGE = b"42501";
    /// syntax_error.
    SYNTAX_ERROR = b"42601";
    /// undefined_object.
    UNDEFINED_OBJECT = b"42704";
    /// duplicate_prepared_statement.
    DUPLICATE_PREPARED_STATEMENT = b"42P05";
    /// too_many_connections.
    TOO_MANY_CONNECTIONS = b"53300";
    /// program_limit_exceeded.
    PROGRAM_LIMIT_EXCEEDED = b"54000";
    /// object_not_in_prerequisite_state.
    OBJECT_NOT_IN_PREREQUISITE_STATE = b"55000";
    /// cant_change_runtime_param.
    CANT_CHANGE_RUNTIME_PARAM = b"55P02";
    /// query_canceled.
    QUERY_CANCELED = b"57014";
    /// admin_shutdown.
    ADMIN_SHUTDOWN = b"57P01";
    /// crash_shutdown.
    CRASH_SHUTDOWN = b"57P02";
    /// cannot_connect_now: no primary accepts writes at present.
    CANNOT_CONNECT_NOW = b"57P03";
    /// database_dropped.
    DATABASE_DROPPED = b"57P04";
    /// idle_session_timeout.
    IDLE_SESSION_TIMEOUT = b"57P05";
    /// config_file_error.
    CONFIG_FILE_ERROR = b"F0000";
    /// internal_error.
    INTERNAL_ERROR = b"XX000";
}

impl SqlState {
    /// The code as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("every constant is ASCII")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_known_by_its_five_characters() {
        assert_eq!(SqlState::known(b"57P03"), Some(SqlState::CANNOT_CONNECT_NOW));
        assert_eq!(SqlState::known(b"42P99"), None);
        assert_eq!(SqlState::TRANSACTION_RESOLUTION_UNKNOWN.to_string(), "08007");
    }
}
