//! What a client is told whose commits cannot be what it asks for.

use super::error_response::{Report, error};
use super::sqlstate::SqlState;
use crate::route::durability::{Durability, NAME};

/// What a session asks of its commits cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DurabilityError {
    /// Less than it may have.
    Below {
        /// The setting by which it asked.
        setting: &'static str,
        /// What it asked for.
        asked: Durability,
        /// The least that it may have.
        least: Durability,
        /// The cluster is in strict mode, or in available mode.
        strict: bool,
    },
    /// `pgtenure.durability` is set in the middle of what it is to hold for.
    Among,
    /// No value of `pgtenure.durability`.
    Invalid {
        /// What was given.
        value: String,
    },
    /// The server could not be asked for it.
    NotSet {
        /// What the server said.
        why: String,
    },
}

impl DurabilityError {
    /// As the client reads it.
    pub fn report(&self) -> Report {
        match self {
            Self::Below { setting, asked, least, strict } => {
                let mode = if *strict { "strict or available" } else { "async" };
                let what = format!("permission denied to set parameter \"{setting}\" below the cluster's mode");
                let (asked, least) = (both(*asked), both(*least));
                error(SqlState::INSUFFICIENT_PRIVILEGE, what)
                    .detail(format!("{asked} was asked for; the cluster is in {mode} mode and the least is {least}."))
                    .hint("An operator can permit it by proxy.durability.allow_lower, also for one database or user.")
            }
            Self::Among => {
                let what = format!("parameter \"{NAME}\" cannot be set together with statements that may commit");
                error(SqlState::FEATURE_NOT_SUPPORTED, what).hint("Send the SET by itself, before them.")
            }
            Self::Invalid { value } => {
                let what = format!("invalid value for parameter \"{NAME}\": \"{value}\"");
                error(SqlState::INVALID_PARAMETER_VALUE, what)
                    .hint("Available values: async, local, received, semi_sync, applied.")
            }
            Self::NotSet { why } => {
                error(SqlState::CONNECTION_FAILURE, format!("parameter \"{NAME}\" could not be put in force"))
                    .detail(format!("The server said: {why}."))
            }
        }
    }
}

/// A level by both its names.
fn both(level: Durability) -> String {
    format!("\"{level}\" (synchronous_commit = {})", level.commit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_words() {
        let below = |setting, strict| DurabilityError::Below {
            setting,
            asked: Durability::Async,
            least: Durability::of_mode(strict),
            strict,
        };
        for (error, want) in [
            (
                below("synchronous_commit", true),
                "ERROR 42501 permission denied to set parameter \"synchronous_commit\" below the cluster's mode | \"async\" (synchronous_commit = off) was asked for; the cluster is in strict or available mode and the least is \"semi_sync\" (synchronous_commit = on). | An operator can permit it by proxy.durability.allow_lower, also for one database or user.",
            ),
            (
                below(NAME, false),
                "ERROR 42501 permission denied to set parameter \"pgtenure.durability\" below the cluster's mode | \"async\" (synchronous_commit = off) was asked for; the cluster is in async mode and the least is \"local\" (synchronous_commit = local). | An operator can permit it by proxy.durability.allow_lower, also for one database or user.",
            ),
            (
                DurabilityError::Among,
                "ERROR 0A000 parameter \"pgtenure.durability\" cannot be set together with statements that may commit |  | Send the SET by itself, before them.",
            ),
            (
                DurabilityError::NotSet { why: "odd".into() },
                "ERROR 08006 parameter \"pgtenure.durability\" could not be put in force | The server said: odd. | ",
            ),
        ] {
            let r = error.report();
            let (severity, detail, hint) = (r.severity.as_str(), r.detail.unwrap_or_default(), r.hint.unwrap_or(""));
            assert_eq!(format!("{severity} {} {} | {detail} | {hint}", r.sqlstate, r.message), want);
        }
    }
}
