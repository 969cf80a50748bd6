//! `[proxy.console]`: who may use the admin console, the databases `pgtenure` and `pgbouncer`.

use cluster::config::{BadSetting, Span};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[proxy.console]` as typed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Users that may give orders at the console; they log in as anywhere else. Default none: nobody can.
    pub admin_users: Vec<String>,
    /// Users that may only look (`SHOW`), for exporters. Default none.
    pub stats_users: Vec<String>,
    /// How long PAUSE, KILL and WAIT_CLOSE wait for server connections to be given back. Then a pause is taken back.
    /// Default 60s.
    pub command_timeout: Span,
}

impl Default for Raw {
    fn default() -> Self {
        Self { admin_users: Vec::new(), stats_users: Vec::new(), command_timeout: Span::secs(60) }
    }
}

/// `[proxy.console]` checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    /// `admin_users`
    pub admin_users: Vec<String>,
    /// `stats_users`
    pub stats_users: Vec<String>,
    /// `command_timeout`
    pub command_timeout: Duration,
}

impl Raw {
    /// The values, after [`check`].
    pub fn checked(self) -> Console {
        let Self { admin_users, stats_users, command_timeout } = self;
        Console { admin_users, stats_users, command_timeout: command_timeout.0 }
    }
}

/// What is wrong with it.
pub fn check(raw: &Raw) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    for (key, users) in [("admin_users", &raw.admin_users), ("stats_users", &raw.stats_users)] {
        if users.iter().any(String::is_empty) {
            bad.push(BadSetting::new(&format!("proxy.console.{key}"), "\"\"", "must name a user"));
        }
    }
    let (least, most) = (Span::secs(1), Span::secs(3600));
    if raw.command_timeout < least || raw.command_timeout > most {
        let problem = format!("must be between {least} and {most}");
        bad.push(BadSetting::new("proxy.console.command_timeout", raw.command_timeout, problem));
    }
    bad
}

/// Is this one of the databases that lead to the console?
pub fn is_console(database: &str) -> bool {
    matches!(database, "pgtenure" | "pgbouncer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_and_waiting_has_an_end() {
        let raw = Raw { stats_users: vec![String::new()], command_timeout: Span::secs(0), ..Raw::default() };
        let problems: Vec<String> = check(&raw).iter().map(ToString::to_string).collect();
        let want = [
            "proxy.console.stats_users = \"\": must name a user",
            "proxy.console.command_timeout = 0ms: must be between 1s and 1h",
        ];
        assert_eq!(problems, want);
        assert!(check(&Raw::default()).is_empty());
    }
}
