//! What a client is told about limits, timeouts and operators' orders.

use super::error_response::{Report, error, fatal, millis};
use super::sqlstate::SqlState;
use std::time::Duration;

/// Who has a limit of server connections together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The sessions of a database and a user.
    Pool,
    /// The pools of a database.
    Database,
    /// The pools of a user.
    User,
}

/// A limit, a timeout or an order that ends a statement or a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// No server connection became free in the query wait timeout.
    Exhausted {
        /// How long the statement waited.
        waited: Duration,
        /// Connections allowed.
        limit: usize,
        /// Whose limit that is.
        of: Sharing,
        /// Statements that wait for the same pool, this one included.
        waiting: usize,
    },
    /// An operator has paused the database, for longer than the query wait timeout.
    Paused {
        /// The database.
        database: String,
        /// How long the statement waited.
        waited: Duration,
    },
    /// An operator has closed the database to new clients.
    Disabled {
        /// The database.
        database: String,
    },
    /// The configuration leads its clients to another database, or to another user there, since it was read again.
    Moved {
        /// The database, by the name clients ask for.
        database: String,
    },
    /// The database has as many clients as it may have.
    ClientsOfDatabase {
        /// The database.
        database: String,
        /// The limit.
        limit: usize,
    },
    /// The user has as many clients as it may have.
    ClientsOfUser {
        /// The user.
        user: String,
        /// The limit.
        limit: usize,
    },
    /// There are as many replication connections as there may be.
    Replication {
        /// The limit.
        limit: usize,
    },
    /// The client was idle for longer than `proxy.timeouts.client_idle_timeout`.
    Idle,
    /// It was idle in its transaction for longer than `proxy.timeouts.idle_in_transaction_timeout`.
    IdleInTransaction,
    /// Its transaction was open for longer than `proxy.timeouts.transaction_timeout`.
    Transaction,
    /// A statement has waited for as long as the session's `statement_timeout`.
    Statement {
        /// How long.
        waited: Duration,
    },
}

impl PoolError {
    /// As the client reads it. The texts are PostgreSQL's where it has the same.
    pub fn report(&self) -> Report {
        match self {
            Self::Exhausted { waited, limit, of, waiting } => exhausted(*waited, *limit, *of, *waiting),
            Self::Paused { database, waited } => {
                error(SqlState::CANNOT_CONNECT_NOW, format!("database \"{database}\" is paused"))
                    .detail(format!("Waited {} for it to be resumed.", millis(*waited)))
                    .hint("Retry the transaction.")
            }
            Self::Disabled { database } => fatal(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("database \"{database}\" is not currently accepting connections"),
            ),
            Self::Moved { database } => {
                fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
                    .detail(format!("Database \"{database}\" leads elsewhere now."))
                    .hint("Connect again.")
            }
            Self::ClientsOfDatabase { database, limit } => {
                fatal(SqlState::TOO_MANY_CONNECTIONS, format!("too many connections for database \"{database}\""))
                    .detail(format!("This proxy takes {limit} connections for it."))
            }
            Self::ClientsOfUser { user, limit } => {
                fatal(SqlState::TOO_MANY_CONNECTIONS, format!("too many connections for role \"{user}\""))
                    .detail(format!("This proxy takes {limit} connections of it."))
            }
            Self::Replication { limit } => fatal(SqlState::TOO_MANY_CONNECTIONS, "too many replication connections")
                .detail(format!("This proxy passes {limit} of them to the primary."))
                .hint("Raise proxy.pools.max_replication_connections if the primary has walsenders to spare."),
            Self::Idle => fatal(SqlState::IDLE_SESSION_TIMEOUT, "terminating connection due to idle-session timeout"),
            Self::IdleInTransaction => fatal(
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout",
            ),
            Self::Transaction => {
                fatal(SqlState::TRANSACTION_TIMEOUT, "terminating connection due to transaction timeout")
            }
            Self::Statement { waited } => {
                error(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
                    .detail(format!("It waited {} for a server.", millis(*waited)))
            }
        }
    }
}

fn exhausted(waited: Duration, limit: usize, of: Sharing, waiting: usize) -> Report {
    let (whose, hint) = match of {
        Sharing::Pool => ("pool", "Raise proxy.pool_size or shorten transactions."),
        Sharing::Database => ("database", "Raise max_db_connections or shorten transactions."),
        Sharing::User => ("user", "Raise max_user_connections or shorten transactions."),
    };
    error(SqlState::TOO_MANY_CONNECTIONS, "no server connection became free in time")
        .detail(format!(
            "Waited {}; all {limit} connections of the {whose} are in use, {waiting} statements wait.",
            millis(waited)
        ))
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: &PoolError, want: &str) {
        let r = error.report();
        let (severity, detail, hint) = (r.severity.as_str(), r.detail.unwrap_or_default(), r.hint.unwrap_or(""));
        assert_eq!(format!("{severity} {} {} | {detail} | {hint}", r.sqlstate, r.message), want);
    }

    #[test]
    fn every_limit_has_its_words() {
        use PoolError as E;
        let (waited, database, user) = (Duration::from_millis(1500), "app".to_owned(), "ann".to_owned());
        for (of, whose, what) in [
            (Sharing::Pool, "pool", "proxy.pool_size"),
            (Sharing::Database, "database", "max_db_connections"),
            (Sharing::User, "user", "max_user_connections"),
        ] {
            let want = format!(
                "ERROR 53300 no server connection became free in time | Waited 1500 ms; all 20 connections of the {whose} are in use, 3 statements wait. | Raise {what} or shorten transactions."
            );
            check(&E::Exhausted { waited, limit: 20, of, waiting: 3 }, &want);
        }
        check(
            &E::Paused { database: database.clone(), waited },
            "ERROR 57P03 database \"app\" is paused | Waited 1500 ms for it to be resumed. | Retry the transaction.",
        );
        check(
            &E::Disabled { database: database.clone() },
            "FATAL 55000 database \"app\" is not currently accepting connections |  | ",
        );
        check(
            &E::Moved { database: database.clone() },
            "FATAL 57P01 terminating connection due to administrator command | Database \"app\" leads elsewhere now. | Connect again.",
        );
        check(
            &E::ClientsOfDatabase { database, limit: 7 },
            "FATAL 53300 too many connections for database \"app\" | This proxy takes 7 connections for it. | ",
        );
        check(
            &E::ClientsOfUser { user, limit: 7 },
            "FATAL 53300 too many connections for role \"ann\" | This proxy takes 7 connections of it. | ",
        );
        check(
            &E::Replication { limit: 5 },
            "FATAL 53300 too many replication connections | This proxy passes 5 of them to the primary. | Raise proxy.pools.max_replication_connections if the primary has walsenders to spare.",
        );
        check(&E::Idle, "FATAL 57P05 terminating connection due to idle-session timeout |  | ");
        check(&E::IdleInTransaction, "FATAL 25P03 terminating connection due to idle-in-transaction timeout |  | ");
        check(
            &E::Statement { waited },
            "ERROR 57014 canceling statement due to statement timeout | It waited 1500 ms for a server. | ",
        );
        check(&E::Transaction, "FATAL 25P04 terminating connection due to transaction timeout |  | ");
    }
}
