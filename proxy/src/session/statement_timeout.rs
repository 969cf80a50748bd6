//! `statement_timeout` while a statement waits: the server that counts it has not got the statement yet.
//!
//! What counts is what is known of the setting without asking: the client's SET, else its startup packet. One that a role
//! or database has by default is left to the server.

use crate::route::promise;
use crate::session::client::Session;
use crate::wire::error_response::ClientError;
use crate::wire::pool_error::PoolError;
use cluster::Instant;
use cluster::config::Span;
use std::time::Duration;

const NAME: &str = "statement_timeout";

/// A time in PostgreSQL's spelling, milliseconds where it names no unit; `None` for none, and for what is not understood.
fn limit(value: &str) -> Option<Duration> {
    let text = value.trim();
    let span = match text.parse::<u64>() {
        Ok(ms) => Duration::from_millis(ms),
        Err(_) => text.parse::<Span>().ok()?.0,
    };
    (!span.is_zero()).then_some(span)
}

/// What a startup packet says of it: by its own name, else in `options`.
fn in_startup(parameters: &[(String, String)]) -> Option<String> {
    let own = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(NAME)).map(|(_, value)| value.clone());
    let options = parameters.iter().filter(|(name, _)| name.eq_ignore_ascii_case("options"));
    let last = |(_, value): &(String, String)| {
        promise::options(value).into_iter().rev().find(|(name, _)| name == NAME).map(|(_, value)| value)
    };
    own.or_else(|| options.filter_map(last).next_back())
}

impl Session {
    /// How much longer a statement may wait that begins, or goes on, to wait now.
    pub(super) fn statement_over(&self, now: Instant) -> Option<Duration> {
        let limit = match self.tracking.settings.get(NAME) {
            Some(value) => limit(value),
            None => in_startup(&self.identity.parameters).as_deref().and_then(limit),
        };
        let waited = self.waiting_since.map_or(Duration::ZERO, |since| now.since(since));
        limit.map(|limit| limit.saturating_sub(waited))
    }

    /// What the client is told whose statement has waited for so long.
    pub(super) fn statement_timeout_error(&self, now: Instant) -> ClientError {
        let waited = self.waiting_since.map_or(Duration::ZERO, |since| now.since(since));
        ClientError::Pool(PoolError::Statement { waited })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_as_postgresql_reads_it() {
        for (value, ms) in [("0", None), ("300", Some(300)), ("5s", Some(5000)), ("2min", Some(120_000)), ("x", None)] {
            assert_eq!(limit(value), ms.map(Duration::from_millis), "{value}");
        }
    }

    #[test]
    fn a_startup_packet_says_it_in_either_way() {
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        let options = pair("options", "-c statement_timeout=1s --statement-timeout=2s");
        assert_eq!(in_startup(std::slice::from_ref(&options)).as_deref(), Some("2s"));
        assert_eq!(in_startup(&[options, pair("Statement_Timeout", "3s")]).as_deref(), Some("3s"));
        assert_eq!(in_startup(&[pair("user", "app")]), None);
    }
}
