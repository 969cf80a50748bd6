//! What the console's users are told when something is wrong.

use super::error_response::{Report, error, fatal};
use super::sqlstate::SqlState;
use crate::console::command::BadCommand;

const HELP: &str = "SHOW HELP lists the commands.";

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// A user that is in neither list.
pub fn denied(database: &str) -> Report {
    fatal(SqlState::INSUFFICIENT_PRIVILEGE, format!("permission denied for database \"{database}\""))
        .detail("It is the proxy's console.".to_owned())
        .hint("proxy.console.admin_users and proxy.console.stats_users list who may use it.")
}

/// A command that changes something, by a user that may only look.
pub fn admins_only() -> Report {
    error(SqlState::INSUFFICIENT_PRIVILEGE, "admin access needed")
        .hint("proxy.console.admin_users lists who may give orders.")
}

/// No command, or one that is not available.
pub fn bad_command(bad: &BadCommand) -> Report {
    match bad {
        BadCommand::Unknown { nearest, .. } => {
            let report = error(SqlState::SYNTAX_ERROR, bad.to_string()).hint(HELP);
            match nearest {
                Some(nearest) => report.detail(format!("The nearest valid command is {nearest}.")),
                None => report,
            }
        }
        BadCommand::Argument { .. } => error(SqlState::SYNTAX_ERROR, bad.to_string()).hint(HELP),
        BadCommand::Unsupported { .. } => error(SqlState::FEATURE_NOT_SUPPORTED, bad.to_string())
            .hint("PAUSE lets transactions end; pgtenure run --takeover restarts without stopping anybody."),
        BadCommand::Set { .. } => error(SqlState::CANT_CHANGE_RUNTIME_PARAM, bad.to_string())
            .hint("Change the configuration file, then RELOAD."),
    }
}

/// A text that cannot be read.
pub fn syntax(what: &str) -> Report {
    error(SqlState::SYNTAX_ERROR, what)
}

/// The client broke the protocol.
pub fn protocol(what: &str) -> Report {
    error(SqlState::PROTOCOL_VIOLATION, what)
}

/// A Bind with parameters.
pub fn parameters(given: u16) -> Report {
    let text = format!("bind message supplies {given} parameters, but prepared statement requires 0");
    error(SqlState::PROTOCOL_VIOLATION, text).detail("Commands of the console have no parameters.".to_owned())
}

/// A statement's name is taken.
pub fn duplicate(name: &[u8]) -> Report {
    let text = format!("prepared statement \"{}\" already exists", lossy(name));
    error(SqlState::DUPLICATE_PREPARED_STATEMENT, text)
}

/// No statement of that name.
pub fn unknown_statement(name: &[u8]) -> Report {
    error(SqlState::INVALID_SQL_STATEMENT_NAME, format!("prepared statement \"{}\" does not exist", lossy(name)))
}

/// No portal of that name.
pub fn unknown_portal(name: &[u8]) -> Report {
    error(SqlState::INVALID_CURSOR_NAME, format!("portal \"{}\" does not exist", lossy(name)))
}

/// The console keeps only so many.
pub fn too_many() -> Report {
    error(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements")
}

/// An order about the console itself.
pub fn own_database() -> Report {
    error(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "the console's own database cannot be paused or closed")
}

/// An order about a database that is not known.
pub fn no_database(name: &str) -> Report {
    error(SqlState::INVALID_CATALOG_NAME, format!("no such database: {name}"))
        .hint("It is known once proxy.databases has it or a client has asked for it.")
}

/// `KILL_CLIENT` of nobody.
pub fn no_client(id: u32) -> Report {
    error(SqlState::UNDEFINED_OBJECT, format!("client {id} not found")).hint("SHOW CLIENTS has the id of each.")
}

/// An order that was not carried out.
pub fn order_failed(why: &str) -> Report {
    error(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, why)
}

/// A configuration that was refused.
pub fn reload_refused(reasons: &[String]) -> Report {
    error(SqlState::CONFIG_FILE_ERROR, "the configuration was not reloaded, nothing was changed")
        .detail(reasons.join("\n"))
}
