//! `[agent.watchdog]`: a device that resets the host when it is not fed.

use cluster::config::{BadSetting, Span};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// When the device is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogMode {
    /// Never.
    Off,
    /// Where it can be opened.
    Automatic,
    /// Without it this node does not become primary where the lease is the fence.
    Required,
}

/// `[agent.watchdog]` as typed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchdogRaw {
    /// `off`; `automatic`: use the device if it can be opened; `required`: a node whose device cannot be opened does not
    /// become primary, and lets no commits through without standbys. It is armed only where commits are not confirmed by
    /// standbys, so that the lease is the only fence; then an agent that is killed or stands still takes its host with it.
    /// Default `off`.
    pub mode: WatchdogMode,
    /// The device. It must be possible to stop it (nowayout off), and the agent's user must be able to write to it.
    /// Anything that is no device, a FIFO say, gets the same bytes. Default `/dev/watchdog`.
    pub device: PathBuf,
    /// After so long without food the device resets the host: whole seconds. Default `1s`; with two times
    /// `agent.lease_renew` at most `agent.lease_ttl`, as it is fed only while all of it fits before the lease's end. A
    /// longer one, with a longer lease, forgives longer pauses of the host.
    pub timeout: Span,
}

impl Default for WatchdogRaw {
    fn default() -> Self {
        Self { mode: WatchdogMode::Off, device: "/dev/watchdog".into(), timeout: Span::secs(1) }
    }
}

/// `[agent.watchdog]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// When it is used.
    pub mode: WatchdogMode,
    /// The device.
    pub device: PathBuf,
    /// After so long without food it resets the host.
    pub timeout: Duration,
    /// The longest that the device may set instead.
    pub longest: Duration,
}

/// Check it against the lease's times.
pub(super) fn check(raw: &WatchdogRaw, ttl: Span, renew: Span, bad: &mut Vec<BadSetting>) -> WatchdogConfig {
    let timeout = raw.timeout.0;
    let longest = ttl.0.saturating_sub(renew.0 * 2);
    if raw.mode != WatchdogMode::Off {
        if timeout.is_zero() || timeout.subsec_nanos() != 0 {
            bad.push(BadSetting::new("agent.watchdog.timeout", raw.timeout, "expected whole seconds, at least 1s"));
        }
        if timeout > longest {
            let why = format!("with two times agent.lease_renew ({renew}) it must fit into agent.lease_ttl ({ttl})");
            bad.push(BadSetting::new("agent.watchdog.timeout", raw.timeout, why));
        }
        if !raw.device.is_absolute() {
            bad.push(BadSetting::new("agent.watchdog.device", raw.device.display(), "expected an absolute path"));
        }
    }
    WatchdogConfig { mode: raw.mode, device: raw.device.clone(), timeout, longest }
}
