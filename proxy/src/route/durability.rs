//! What a commit must have reached before it is acknowledged, and who may ask for less than the cluster's mode.
//!
//! A session chooses by `pgtenure.durability`, which stands for a value of PostgreSQL's `synchronous_commit`, or by that
//! itself; the configuration chooses for a database or a user. Both words are judged alike: more than the mode is always
//! granted, less only where the operator allows it.
//!
//! Source: PostgreSQL documentation, "synchronous_commit".

use serde::{Deserialize, Serialize};
use std::fmt;

/// The setting of ours.
pub const NAME: &str = "pgtenure.durability";
/// PostgreSQL's own, which it stands for.
pub const COMMIT: &str = "synchronous_commit";

/// What a commit waits for, from nothing to everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Nothing: what the last moments brought may be lost with the primary's process.
    Async,
    /// The primary's disk.
    Local,
    /// That, and the operating systems of the standbys that commits wait for.
    Received,
    /// That, and the disks of those standbys.
    SemiSync,
    /// That, and reads at those standbys see it.
    Applied,
}

impl Durability {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Async, Self::Local, Self::Received, Self::SemiSync, Self::Applied];

    /// What the cluster's mode promises of every commit.
    pub const fn of_mode(strict: bool) -> Self {
        if strict { Self::SemiSync } else { Self::Local }
    }

    /// As it is written in settings and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Local => "local",
            Self::Received => "received",
            Self::SemiSync => "semi_sync",
            Self::Applied => "applied",
        }
    }

    /// The value of `synchronous_commit` that it stands for.
    pub const fn commit(self) -> &'static str {
        match self {
            Self::Async => "off",
            Self::Local => "local",
            Self::Received => "remote_write",
            Self::SemiSync => "on",
            Self::Applied => "remote_apply",
        }
    }

    /// Of a value of `pgtenure.durability`.
    pub fn of(value: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.as_str().eq_ignore_ascii_case(value.trim()))
    }

    /// Of a value of `synchronous_commit`, as its server or a client spells it.
    pub fn of_commit(value: &str) -> Option<Self> {
        let value = value.trim();
        let is = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(value));
        if is(&["false", "no", "0"]) {
            return Some(Self::Async);
        }
        if is(&["true", "yes", "1"]) {
            return Some(Self::SemiSync);
        }
        Self::ALL.into_iter().find(|d| d.commit().eq_ignore_ascii_case(value))
    }

    /// Of a value of the setting of that name.
    pub fn of_setting(name: &str, value: &str) -> Option<Self> {
        if name == NAME { Self::of(value) } else { Self::of_commit(value) }
    }

    /// What a value of `pgtenure.durability` can be, for people.
    pub fn available() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    /// An SQL expression for the `synchronous_commit` that the session's `pgtenure.durability` stands for: NULL, its
    /// default, when that is not set, and what it is when the value is none of those that are `permitted`.
    pub fn sql(permitted: impl Fn(Self) -> bool) -> String {
        let of = "pg_catalog.lower(coalesce(pg_catalog.current_setting('pgtenure.durability',true),''))";
        let mut sql = format!("CASE {of} WHEN '' THEN NULL");
        for one in Self::ALL.into_iter().filter(|d| permitted(*d)) {
            sql.push_str(&format!(" WHEN '{}' THEN '{}'", one.as_str(), one.commit()));
        }
        sql + " ELSE pg_catalog.current_setting('synchronous_commit') END"
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What several commits wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Each at least for this.
    pub least: Durability,
    /// None for more than this.
    pub most: Durability,
}

impl From<Durability> for Waits {
    fn from(level: Durability) -> Self {
        Self { least: level, most: level }
    }
}

impl Default for Waits {
    /// Of what commits nothing.
    fn default() -> Self {
        Durability::Async.into()
    }
}

impl Waits {
    /// These and those.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { least: self.least.min(other.least), most: self.most.max(other.most) }
    }
}

/// What the configuration says for a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What its commits wait for unless it says otherwise; `None`: what the cluster's mode says.
    pub level: Option<Durability>,
    /// It may ask for less than the mode.
    pub allow_lower: bool,
}

impl Rule {
    /// The least that a session under this rule may have.
    pub fn least(self, strict: bool) -> Durability {
        let mode = Durability::of_mode(strict);
        match self.level {
            _ if self.allow_lower => Durability::Async,
            // The operator has said so.
            Some(level) => level.min(mode),
            None => mode,
        }
    }

    /// May a session have that?
    pub fn permits(self, level: Durability, strict: bool) -> bool {
        level >= self.least(strict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Durability::{Applied, Async, Local, Received, SemiSync};

    #[test]
    fn every_word_stands_for_a_value_of_synchronous_commit() {
        for (word, value, level) in [
            ("async", "off", Async),
            ("local", "local", Local),
            ("received", "remote_write", Received),
            ("semi_sync", "on", SemiSync),
            ("applied", "remote_apply", Applied),
        ] {
            assert_eq!((Durability::of(word), Durability::of_commit(value)), (Some(level), Some(level)));
            assert_eq!((level.as_str(), level.commit()), (word, value));
            assert_eq!(serde_json::from_str::<Durability>(&format!("\"{word}\"")).unwrap(), level);
        }
        assert_eq!((Durability::of(" Semi_Sync "), Durability::of("on")), (Some(SemiSync), None));
        for (value, level) in [("0", Async), ("FALSE", Async), ("yes", SemiSync), ("1", SemiSync)] {
            assert_eq!(Durability::of_commit(value), Some(level));
        }
        assert_eq!(Durability::of_commit("remote"), None);
    }

    #[test]
    fn less_than_the_mode_is_had_only_where_it_is_allowed() {
        let none = Rule::default();
        let all = [Async, Local, Received, SemiSync, Applied];
        let of = |rule: Rule, strict| all.into_iter().filter(|d| rule.permits(*d, strict)).collect::<Vec<_>>();
        assert_eq!(of(none, true), [SemiSync, Applied]);
        assert_eq!(of(none, false), [Local, Received, SemiSync, Applied]);
        assert_eq!(of(Rule { allow_lower: true, ..none }, true), all);
        // What the operator has given is also what may be gone back to, and a rule above the mode binds nobody to it.
        assert_eq!(of(Rule { level: Some(Local), ..none }, true), [Local, Received, SemiSync, Applied]);
        assert_eq!(of(Rule { level: Some(Applied), ..none }, true), [SemiSync, Applied]);
    }

    #[test]
    fn the_server_works_out_what_is_permitted() {
        let sql = Durability::sql(|d| d >= Durability::SemiSync);
        assert!(sql.contains("WHEN 'semi_sync' THEN 'on' WHEN 'applied' THEN 'remote_apply' ELSE"), "{sql}");
        assert!(!sql.contains("'off'"), "{sql}");
    }
}
