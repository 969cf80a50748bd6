//! Secrets: read from a file or the environment, never printed.

use std::fmt;

/// A password, token or key. `Debug` and `Display` hide it; [`Secret::expose`] is the only way to read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wrap a secret that was read from its source.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret in a file's text: its first line, without blanks around it, wherever one is read. A blank that one reader
    /// kept would make another password of it.
    pub fn first_line(text: &str) -> Self {
        Self(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// The secret itself. Never pass it to a log, an error or a metric.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_means_one_secret() {
        for text in ["pass word", "pass word\n", "pass word \r\n", " pass word\t\nanother line\n"] {
            assert_eq!(Secret::first_line(text).expose(), "pass word", "{text:?}");
        }
        assert_eq!(Secret::first_line("").expose(), "");
    }
}
