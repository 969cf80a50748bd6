//! `[proxy.timeouts]`: how long clients may take, and when an idle server connection is no longer trusted unseen.

use cluster::config::{BadSetting, Span};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[proxy.timeouts]` as typed. `0s` switches a timeout off.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// A server connection that was idle for longer answers an empty message before it serves again, so that one that
    /// died in silence is replaced unnoticed. Default 30s: short of what firewalls forget connections after. `0s`:
    /// always.
    pub server_check_delay: Span,
    /// A client idle outside a transaction for so long is disconnected, FATAL 57P05. Default 0s, never: PostgreSQL's
    /// default.
    pub client_idle_timeout: Span,
    /// A client idle inside a transaction for so long is disconnected, FATAL 25P03, and its transaction is rolled back.
    /// Default 0s, never: PostgreSQL's default.
    pub idle_in_transaction_timeout: Span,
    /// A statement that a server has worked on for so long is cancelled, ERROR 57014; waiting for a server does not
    /// count. A COMMIT is never cancelled, nor is another write while it waits for standbys. Default 0s, never: PostgreSQL's default.
    pub query_timeout: Span,
    /// A transaction open for so long is ended: its statement cancelled, then the client disconnected, FATAL 25P04. A
    /// COMMIT is let finish. Default 0s, never: PostgreSQL's default.
    pub transaction_timeout: Span,
    /// A client that takes nothing of what is sent to it for so long is disconnected, so that it frees its server.
    /// Default 10min: longer than a person looks at a page of output.
    pub client_write_timeout: Span,
    /// TCP_USER_TIMEOUT on clients' connections: what was sent to a client and is unacknowledged for so long means that
    /// its host is gone. It ends one that takes nothing for so long as well, and a silent one only then. Default 0s: the
    /// kernel's own, a quarter of an hour while something is unacknowledged, a minute and a half in silence.
    pub client_tcp_user_timeout: Span,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            server_check_delay: Span::secs(30),
            client_idle_timeout: Span::secs(0),
            idle_in_transaction_timeout: Span::secs(0),
            query_timeout: Span::secs(0),
            transaction_timeout: Span::secs(0),
            client_write_timeout: Span::secs(600),
            client_tcp_user_timeout: Span::secs(0),
        }
    }
}

/// `[proxy.timeouts]` checked. `None`: switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// `server_check_delay`
    pub server_check_delay: Duration,
    /// `client_idle_timeout`
    pub client_idle: Option<Duration>,
    /// `idle_in_transaction_timeout`
    pub idle_in_transaction: Option<Duration>,
    /// `query_timeout`
    pub query: Option<Duration>,
    /// `transaction_timeout`
    pub transaction: Option<Duration>,
    /// `client_write_timeout`
    pub client_write: Option<Duration>,
    /// `client_tcp_user_timeout`
    pub client_tcp_user: Option<Duration>,
}

impl Raw {
    /// Each means what its key says.
    pub fn checked(&self) -> Timeouts {
        let on = |span: Span| (!span.0.is_zero()).then_some(span.0);
        Timeouts {
            server_check_delay: self.server_check_delay.0,
            client_idle: on(self.client_idle_timeout),
            idle_in_transaction: on(self.idle_in_transaction_timeout),
            query: on(self.query_timeout),
            transaction: on(self.transaction_timeout),
            client_write: on(self.client_write_timeout),
            client_tcp_user: on(self.client_tcp_user_timeout),
        }
    }
}

/// Check ranges, all at once.
pub fn check(raw: &Raw) -> Vec<BadSetting> {
    let spans = [
        ("server_check_delay", raw.server_check_delay),
        ("client_idle_timeout", raw.client_idle_timeout),
        ("idle_in_transaction_timeout", raw.idle_in_transaction_timeout),
        ("query_timeout", raw.query_timeout),
        ("transaction_timeout", raw.transaction_timeout),
        ("client_write_timeout", raw.client_write_timeout),
        ("client_tcp_user_timeout", raw.client_tcp_user_timeout),
    ];
    let most = Span::secs(30 * 24 * 3600);
    let over = spans.into_iter().filter(|(_, value)| *value > most);
    let bad =
        |(key, value)| BadSetting::new(&format!("proxy.timeouts.{key}"), value, format!("must not exceed {most}"));
    over.map(bad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_switches_a_timeout_off_and_a_long_one_is_refused() {
        let timeouts = Raw::default().checked();
        assert_eq!((timeouts.query, timeouts.client_write), (None, Some(Duration::from_secs(600))));
        let raw = Raw { query_timeout: Span::secs(31 * 24 * 3600), ..Raw::default() };
        let bad: Vec<String> = check(&raw).iter().map(BadSetting::to_string).collect();
        assert_eq!(bad, ["proxy.timeouts.query_timeout = 31d: must not exceed 30d"]);
    }
}
