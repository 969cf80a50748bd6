//! The modes of a transaction, as BEGIN and SET TRANSACTION give them.

use std::fmt::Write;

/// An isolation level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// `READ UNCOMMITTED`
    ReadUncommitted,
    /// `READ COMMITTED`
    ReadCommitted,
    /// `REPEATABLE READ`
    RepeatableRead,
    /// `SERIALIZABLE`: not to be had on a standby.
    Serializable,
}

impl Isolation {
    /// As SQL has it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::ReadUncommitted => "READ UNCOMMITTED",
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

/// What was written of a transaction's modes; `None` is as the session has it by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Modes {
    /// `READ ONLY` or `READ WRITE`.
    pub read_only: Option<bool>,
    /// `ISOLATION LEVEL`.
    pub isolation: Option<Isolation>,
    /// `DEFERRABLE` or `NOT DEFERRABLE`.
    pub deferrable: Option<bool>,
}

impl Modes {
    /// These, and then those of a later statement.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        Self {
            read_only: later.read_only.or(self.read_only),
            isolation: later.isolation.or(self.isolation),
            deferrable: later.deferrable.or(self.deferrable),
        }
    }

    /// May a standby run a transaction of these modes? One that may write cannot run there, and SERIALIZABLE is not to be
    /// had. `default` is what the session has of a setting, where that is known.
    pub fn suit_standby<'a>(self, default: impl Fn(&str) -> Option<&'a str>) -> bool {
        let is = |name: &str, value: &str| default(name).is_some_and(|now| now.eq_ignore_ascii_case(value));
        self.read_only.unwrap_or_else(|| is("default_transaction_read_only", "on"))
            && self.isolation.map_or_else(
                || !is("default_transaction_isolation", "serializable"),
                |level| level != Isolation::Serializable,
            )
    }

    /// The BEGIN that gives a transaction these modes.
    pub fn begin(self) -> String {
        let mut sql = "BEGIN".to_owned();
        if let Some(isolation) = self.isolation {
            let _ = write!(sql, " ISOLATION LEVEL {}", isolation.as_str());
        }
        if let Some(read_only) = self.read_only {
            sql.push_str(if read_only { " READ ONLY" } else { " READ WRITE" });
        }
        if let Some(deferrable) = self.deferrable {
            sql.push_str(if deferrable { " DEFERRABLE" } else { " NOT DEFERRABLE" });
        }
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_begun_again_with_what_its_statements_said() {
        let first = Modes { read_only: Some(false), deferrable: Some(true), ..Modes::default() };
        let later = Modes { read_only: Some(true), isolation: Some(Isolation::RepeatableRead), ..Modes::default() };
        assert_eq!(first.then(later).begin(), "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY DEFERRABLE");
        assert_eq!(Modes::default().begin(), "BEGIN");
    }

    #[test]
    fn only_what_cannot_write_and_is_to_be_had_there_suits_a_standby() {
        let modes = |read_only, isolation| Modes { read_only, isolation, deferrable: None };
        for (read_only, isolation, of, want) in [
            (None, None, modes(None, None), false),
            (None, None, modes(Some(true), None), true),
            (Some("on"), None, modes(None, None), true),
            (Some("off"), Some("read committed"), modes(None, None), false),
            (Some("on"), None, modes(Some(false), None), false),
            (None, Some("serializable"), modes(Some(true), None), false),
            (None, Some("serializable"), modes(Some(true), Some(Isolation::RepeatableRead)), true),
            (None, None, modes(Some(true), Some(Isolation::Serializable)), false),
        ] {
            let default = |name: &str| if name == "default_transaction_read_only" { read_only } else { isolation };
            assert_eq!(of.suit_standby(default), want, "{of:?}");
        }
    }
}
