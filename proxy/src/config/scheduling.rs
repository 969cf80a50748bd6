//! How workers are scheduled.

use serde::{Deserialize, Serialize};

/// When a worker waits for what runs on its core instead of interrupting it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchScheduling {
    /// It interrupts what runs.
    Never,
    /// While many statements of its clients are with servers at the same time.
    #[default]
    Busy,
    /// It waits.
    Always,
}

impl std::str::FromStr for BatchScheduling {
    type Err = String;

    /// As the configuration writes it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "never" => Ok(Self::Never),
            "busy" => Ok(Self::Busy),
            "always" => Ok(Self::Always),
            other => Err(format!("{other:?} is not never, busy or always")),
        }
    }
}
