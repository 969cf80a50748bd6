//! Whether workers use io_uring.

use serde::{Deserialize, Serialize};

/// When what a worker sends to several sockets is handed to the kernel in one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IoUring {
    /// Where the kernel lets it.
    #[default]
    Auto,
    /// Never.
    Off,
}

impl std::str::FromStr for IoUring {
    type Err = String;

    /// As the configuration writes it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => Err(format!("{other:?} is not auto or off")),
        }
    }
}
