//! The watchdog device: opened, fed by writing to it, and stopped by a last `V` before it is closed.
//!
//! What is done is decided in [`crate::fsm::watchdog`]. The task has the thread that keeps the lease: a process that is busy must
//! not lose its host. Whoever opens the device has begun its countdown.

use super::Agent;
use super::commands::CommandError;
use crate::config::watchdog::{WatchdogConfig, WatchdogMode};
use crate::fsm::watchdog::{self, Act, Facts, decide};
use crate::record::Phase;
use crate::view::topology::shortened;
use cluster::Instant;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// `_IOR('W', 0, struct watchdog_info)` of linux/watchdog.h.
const GET_SUPPORT: libc::Ioctl = 0x8028_5700;
/// `_IOWR('W', 6, int)`.
const SET_TIMEOUT: libc::Ioctl = 0xC004_5706;
/// The device is stopped by a `V` before it is closed.
const MAGIC_CLOSE: u32 = 0x0100;

/// `struct watchdog_info`.
#[repr(C)]
#[derive(Default)]
struct Support {
    options: u32,
    firmware: u32,
    identity: [u8; 32],
}

/// A device that counts down.
#[derive(Debug)]
struct Device {
    file: File,
    timeout: Duration,
    stoppable: bool,
    /// When it was last fed.
    fed_at: Option<Instant>,
}

/// Between two feedings at most, however long the timeout is: so exactly is it known when it fires.
const LONGEST_TICK: Duration = Duration::from_millis(200);

/// The device of a node, open or not.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    device: Option<Device>,
    /// Why it could not be opened or fed when that was last tried.
    failed: Option<String>,
}

impl Device {
    fn open(config: &WatchdogConfig) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open(&config.device)?;
        if !file.metadata()?.file_type().is_char_device() {
            return Ok(Self { file, timeout: config.timeout, stoppable: true, fed_at: None });
        }
        let stoppable = stoppable(&file, &config.device)?;
        let mut device = Self { stoppable, file, timeout: config.timeout, fed_at: None };
        let mut seconds = libc::c_int::try_from(config.timeout.as_secs()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the request takes a pointer to an int, which lives during the call.
        let done = unsafe { libc::ioctl(device.file.as_raw_fd(), SET_TIMEOUT, &raw mut seconds) };
        let set = if done == 0 {
            Ok(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
        } else {
            Err(io::Error::last_os_error())
        };
        match set {
            Ok(set) if set <= config.longest && !set.is_zero() => device.timeout = set,
            Ok(set) => {
                let error = io::Error::other(format!(
                    "it sets a timeout of {set:?}, {:?} is the most possible",
                    config.longest
                ));
                return Err(device.given_up(error));
            }
            Err(error) => return Err(device.given_up(error)),
        }
        Ok(device)
    }

    /// It must not reset the host for a timeout that does not fit.
    fn given_up(&mut self, error: io::Error) -> io::Error {
        match self.stop() {
            Ok(()) => error,
            Err(stopping) => io::Error::other(format!("{error}; and it could not be stopped: {stopping}")),
        }
    }

    fn feed(&mut self, now: Instant) -> io::Result<()> {
        self.file.write_all(b".")?;
        self.fed_at = Some(now);
        Ok(())
    }

    fn stop(&mut self) -> io::Result<()> {
        self.file.write_all(b"V")
    }
}

/// Can it be stopped once it was opened?
fn stoppable(file: &File, device: &Path) -> io::Result<bool> {
    let mut support = Support::default();
    // SAFETY: the request fills a struct of this layout, which lives during the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), GET_SUPPORT, &raw mut support) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = device.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let name = if name == "watchdog" { "watchdog0" } else { name };
    let nowayout = std::fs::read_to_string(format!("/sys/class/watchdog/{name}/nowayout")).unwrap_or_default();
    Ok(support.options & MAGIC_CLOSE != 0 && nowayout.trim() != "1")
}

impl Watchdog {
    fn arm(&mut self, config: &WatchdogConfig) -> io::Result<()> {
        if self.device.is_none() {
            let device = Device::open(config)?;
            tracing::info!(device = %config.device.display(), timeout = ?device.timeout, "watchdog armed");
            if !device.stoppable {
                tracing::warn!(device = %config.device.display(), "this watchdog cannot be stopped: it is fed until the agent ends");
            }
            self.device = Some(device);
        }
        Ok(())
    }

    fn feed(&mut self, config: &WatchdogConfig, now: Instant) -> io::Result<()> {
        self.arm(config)?;
        match &mut self.device {
            Some(device) => device.feed(now),
            None => Ok(()),
        }
    }

    /// Stop it, if that is possible; else feed it on.
    fn disarm(&mut self, now: Instant) -> io::Result<()> {
        match &mut self.device {
            Some(device) if !device.stoppable => return device.feed(now),
            Some(device) => device.stop()?,
            None => return Ok(()),
        }
        self.device = None;
        tracing::info!("watchdog disarmed");
        Ok(())
    }

    /// Act, and keep what came of it. An act that does not touch the device says nothing about it: what failed stays so.
    fn act(&mut self, act: Act, config: &WatchdogConfig, now: Instant) {
        let done = match act {
            Act::Feed => self.feed(config, now),
            Act::Disarm => self.disarm(now),
            Act::Starve | Act::Rest => return,
        };
        self.failed = done.err().map(|e| format!("watchdog {}: {e}", config.device.display()));
    }

    /// What is left until it fires.
    fn fires_in(&self, now: Instant) -> Option<Duration> {
        let device = self.device.as_ref()?;
        Some((device.fed_at? + device.timeout).since(now))
    }
}

impl Agent {
    /// Feed the device while it must be. Ends never.
    pub(super) async fn tend_watchdog(&self) {
        let config = &self.env.config.watchdog;
        if config.mode == WatchdogMode::Off {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep((config.timeout / 5).min(LONGEST_TICK)).await;
            let mut watchdog = self.watchdog.lock().expect("no holder of this lock panics");
            let act = decide(&self.watchdog_facts(&watchdog));
            self.act_on(&mut watchdog, act);
        }
    }

    /// Do it, and tell when the device can no longer be used, or can again.
    fn act_on(&self, watchdog: &mut Watchdog, act: Act) {
        let before = watchdog.failed.clone();
        watchdog.act(act, &self.env.config.watchdog, self.env.clock.now());
        self.metrics.watchdog_armed.set(i64::from(watchdog.device.is_some()));
        if watchdog.failed == before {
            return;
        }
        if let Some(why) = &watchdog.failed {
            tracing::error!(node = %self.env.config.node, why, ?act, "the watchdog cannot be used");
            self.trouble(why);
        } else {
            self.untroubled();
        }
    }

    /// Must PostgreSQL be stopped now, or the device fires before the stop is done?
    pub(super) fn watchdog_is_about_to_fire(&self) -> bool {
        let watchdog = self.watchdog.lock().expect("no holder of this lock panics");
        watchdog::must_stop(&self.watchdog_facts(&watchdog), watchdog.fires_in(self.env.clock.now()))
    }

    /// PostgreSQL was just stopped, which is not seen yet: the device needs not wait for that.
    pub(super) fn disarm_watchdog(&self) {
        let mut watchdog = self.watchdog.lock().expect("no holder of this lock panics");
        if watchdog.device.is_some() {
            self.act_on(&mut watchdog, Act::Disarm);
        }
    }

    fn watchdog_facts(&self, watchdog: &Watchdog) -> Facts {
        let unprotected = !self.protects();
        let now = self.env.clock.now();
        let becoming = {
            let records = self.records.borrow();
            records.term.as_ref().is_some_and(|t| {
                let ours = t.value.node.as_ref() == Some(&self.env.config.node);
                ours && matches!(t.value.phase, Phase::Promoting | Phase::Opening)
            })
        };
        Facts {
            armed: watchdog.device.is_some(),
            fenced_by_lease: unprotected && (self.serves().is_some() || self.is_unguarded()),
            becoming: unprotected && becoming,
            lease_left: self.lease().map(|l| (l.sent_at + shortened(l.ttl)).since(now)),
            timeout: watchdog.device.as_ref().map_or(self.env.config.watchdog.timeout, |d| d.timeout),
        }
    }

    /// Before commits may be acknowledged by the lease alone: is the device armed that is to fence this node then?
    pub(super) fn must_have_watchdog(&self, what: &str) -> Result<(), CommandError> {
        let config = &self.env.config.watchdog;
        if config.mode != WatchdogMode::Required {
            return Ok(());
        }
        let mut watchdog = self.watchdog.lock().expect("no holder of this lock panics");
        self.act_on(&mut watchdog, Act::Feed);
        match &watchdog.failed {
            None => Ok(()),
            Some(why) => {
                let told = io::Error::other(format!("agent.watchdog.mode is required, and {why}"));
                Err(self.failed(what, &told).into())
            }
        }
    }

    /// A lease was taken by which commits may be acknowledged: it does not count where the device is required for that and
    /// cannot be used.
    pub(super) fn lease_counts(&self) -> bool {
        self.protects() || self.must_have_watchdog("taking the lease").is_ok()
    }

    /// A primary that must not be one without the device does not renew its lease without it.
    pub(super) fn lacks_watchdog(&self) -> bool {
        self.env.config.watchdog.mode == WatchdogMode::Required
            && !self.protects()
            && self.watchdog.lock().expect("no holder of this lock panics").failed.is_some()
    }

    /// The agent ends, and PostgreSQL has or is to go on without it.
    pub(super) fn leave_watchdog(&self) {
        let mut watchdog = self.watchdog.lock().expect("no holder of this lock panics");
        let node = &self.env.config.node;
        match watchdog.disarm(self.env.clock.now()) {
            Err(error) => tracing::error!(%node, %error, "the watchdog could not be stopped: the host will be reset"),
            Ok(()) => {
                if let Some(device) = &watchdog.device {
                    let after = device.timeout;
                    tracing::error!(%node, ?after, "this watchdog cannot be stopped (nowayout): the host will be reset");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(device: &Path) -> WatchdogConfig {
        let (timeout, longest) = (Duration::from_secs(1), Duration::from_secs(2));
        WatchdogConfig { mode: WatchdogMode::Required, device: device.to_owned(), timeout, longest }
    }

    fn now(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn what_failed_stays_so_until_the_device_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir.path().join("watchdog"));
        let mut watchdog = Watchdog::default();
        watchdog.act(Act::Feed, &config, now(0));
        assert!(watchdog.failed.is_some());
        for idle in [Act::Rest, Act::Starve] {
            watchdog.act(idle, &config, now(0));
            assert!(watchdog.failed.is_some(), "{idle:?} has not tried it");
        }
        std::fs::write(&config.device, b"").unwrap();
        watchdog.act(Act::Feed, &config, now(1000));
        assert_eq!((watchdog.failed.clone(), watchdog.fires_in(now(1300))), (None, Some(Duration::from_millis(700))));
    }

    #[test]
    fn it_is_fed_by_writing_and_stopped_by_a_last_v() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        std::fs::write(&device, b"").unwrap();
        let mut watchdog = Watchdog::default();
        for _ in 0..2 {
            watchdog.feed(&config(&device), now(0)).unwrap();
            watchdog.feed(&config(&device), now(0)).unwrap();
            watchdog.disarm(now(0)).unwrap();
            assert!(watchdog.device.is_none());
        }
        watchdog.disarm(now(0)).unwrap();
        assert_eq!(std::fs::read(&device).unwrap(), b"..V..V");
    }

    #[test]
    fn what_is_closed_without_being_stopped_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        std::fs::write(&device, b"").unwrap();
        let mut watchdog = Watchdog::default();
        watchdog.feed(&config(&device), now(0)).unwrap();
        drop(watchdog);
        assert_eq!(std::fs::read(&device).unwrap(), b".");
    }

    #[test]
    fn one_that_cannot_be_opened_or_is_no_watchdog_is_an_error() {
        let gone = Watchdog::default().feed(&config(Path::new("/nonexistent/watchdog")), now(0)).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        // A character device, which knows nothing of the requests.
        let other = Watchdog::default().feed(&config(Path::new("/dev/null")), now(0)).unwrap_err();
        assert_eq!(other.raw_os_error(), Some(libc::ENOTTY));
    }
}
