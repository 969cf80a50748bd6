//! `[proxy.throttle]`: slowing new write transactions while the standbys cannot keep up.

use cluster::config::{BadSetting, Size, Span};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[proxy.throttle]` as typed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// While even the best standby lags by more than this, a transaction that may write waits before it is sent: not at
    /// all at this lag, `max_delay` at its double and beyond, in proportion between. Default none: writes are never
    /// slowed.
    pub max_write_lag: Option<Span>,
    /// The same in bytes of WAL. When both are set the worse of the two counts. Default none.
    pub max_write_lag_bytes: Option<Size>,
    /// Which lag: `flush`, what the standbys do not have on disk, so what a failover in async mode may lose; or
    /// `replay`, what their readers cannot see, so how long a failover replays. Default `replay`, which is never less.
    pub measure: Measure,
    /// The longest that a transaction waits. Default 100ms: with a few dozen clients that is a few hundred commits per
    /// second. Writes are slowed and never stopped.
    pub max_delay: Span,
    /// What to do while no standby's lag is known: `pass`, or `delay` by `max_delay`. Default `pass`: a monitor that
    /// does not answer must not slow the primary.
    pub unknown_lag: UnknownLag,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            max_write_lag: None,
            max_write_lag_bytes: None,
            measure: Measure::default(),
            max_delay: Span::millis(100),
            unknown_lag: UnknownLag::default(),
        }
    }
}

/// Which lag of a standby is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// What it has not replayed.
    #[default]
    Replay,
    /// What it has not flushed.
    Flush,
}

/// What to do while no standby's lag is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownLag {
    /// Nothing.
    #[default]
    Pass,
    /// Wait for `max_delay`.
    Delay,
}

/// `[proxy.throttle]` checked. See [`Raw`] for what each field means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// `max_write_lag`
    pub max_write_lag: Option<Duration>,
    /// `max_write_lag_bytes`
    pub max_write_lag_bytes: Option<u64>,
    /// `measure`
    pub measure: Measure,
    /// `max_delay`
    pub max_delay: Duration,
    /// `unknown_lag`
    pub unknown_lag: UnknownLag,
}

impl Throttle {
    /// Is there a limit?
    pub const fn on(&self) -> bool {
        self.max_write_lag.is_some() || self.max_write_lag_bytes.is_some()
    }
}

impl Raw {
    /// Each means what its key says.
    pub fn checked(&self) -> Throttle {
        Throttle {
            max_write_lag: self.max_write_lag.map(|span| span.0),
            max_write_lag_bytes: self.max_write_lag_bytes.map(|size| size.0),
            measure: self.measure,
            max_delay: self.max_delay.0,
            unknown_lag: self.unknown_lag,
        }
    }
}

/// Limits that are zero, and a delay that would end in an error. `hold_timeout` is the proxy's.
pub fn check(raw: &Raw, hold_timeout: Span) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    if let Some(lag) = raw.max_write_lag.filter(|lag| *lag < Span::millis(10)) {
        bad.push(BadSetting::new("proxy.throttle.max_write_lag", lag, "must be at least 10ms"));
    }
    if let Some(lag) = raw.max_write_lag_bytes.filter(|lag| *lag < Size(8192)) {
        bad.push(BadSetting::new("proxy.throttle.max_write_lag_bytes", lag, "must be at least 8KiB, a page of WAL"));
    }
    if raw.max_delay < Span::millis(1) {
        bad.push(BadSetting::new("proxy.throttle.max_delay", raw.max_delay, "must be at least 1ms"));
    }
    if raw.checked().on() && raw.max_delay >= hold_timeout {
        let problem = format!("must be below proxy.hold_timeout ({hold_timeout}), or writes would fail");
        bad.push(BadSetting::new("proxy.throttle.max_delay", raw.max_delay, problem));
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_nothing_and_a_delay_that_fails_are_refused() {
        let told = |raw: &Raw| check(raw, Span::secs(30)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(&Raw::default()), [""; 0]);
        let raw = Raw {
            max_write_lag: Some(Span::millis(1)),
            max_write_lag_bytes: Some(Size(100)),
            max_delay: Span::secs(30),
            ..Raw::default()
        };
        assert_eq!(
            told(&raw),
            [
                "proxy.throttle.max_write_lag = 1ms: must be at least 10ms",
                "proxy.throttle.max_write_lag_bytes = 100B: must be at least 8KiB, a page of WAL",
                "proxy.throttle.max_delay = 30s: must be below proxy.hold_timeout (30s), or writes would fail",
            ]
        );
    }
}
