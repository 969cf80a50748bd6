//! The device itself: opened, fed by writing to it, and stopped by a last `V` before it is closed. A driver may take its
//! time for any of this.

use super::Act;
use crate::config::watchdog::WatchdogConfig;
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

/// The device of a node, open or not.
#[derive(Debug)]
pub(super) struct Held {
    config: WatchdogConfig,
    device: Option<Device>,
}

/// A device that counts down, as others may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Armed {
    pub(super) timeout: Duration,
    /// Just before it was last fed.
    pub(super) fed_at: Option<Instant>,
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

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotDone {
    /// It came too late; there is nothing wrong with the device.
    Late,
    /// The device cannot be used.
    Failed(String),
}

impl std::fmt::Display for NotDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Late => f.write_str("what is left of the lease is too short for the watchdog's timeout"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl Held {
    pub(super) fn new(config: WatchdogConfig) -> Self {
        Self { config, device: None }
    }

    pub(super) fn armed(&self) -> Option<Armed> {
        self.device.as_ref().map(|d| Armed { timeout: d.timeout, fed_at: d.fed_at })
    }

    /// Act. To feed it later than `not_after` would let it fire too late: then it is not, and one that was opened for it is
    /// stopped.
    pub(super) fn act(
        &mut self,
        act: Act,
        not_after: Option<Instant>,
        clock: &dyn Fn() -> Instant,
    ) -> Result<(), NotDone> {
        let fed_in_time = match act {
            Act::Feed => self.feed(not_after, clock),
            Act::Disarm => self.disarm(clock()).map(|()| true),
            Act::Starve | Act::Rest => Ok(true),
        };
        match fed_in_time {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotDone::Late),
            Err(e) => Err(NotDone::Failed(format!("watchdog {}: {e}", self.config.device.display()))),
        }
    }

    /// False: too late.
    fn feed(&mut self, not_after: Option<Instant>, clock: &dyn Fn() -> Instant) -> io::Result<bool> {
        let opened = self.device.is_none();
        let late = |now: Instant| not_after.is_some_and(|end| now > end);
        if late(clock()) {
            return Ok(false);
        }
        let device = match &mut self.device {
            Some(device) => device,
            none => {
                let device = Device::open(&self.config)?;
                let name = self.config.device.display();
                tracing::info!(device = %name, timeout = ?device.timeout, "watchdog armed");
                if !device.stoppable {
                    tracing::warn!(device = %name, "this watchdog cannot be stopped: it is fed until the agent ends");
                }
                none.insert(device)
            }
        };
        let now = clock();
        if !late(now) {
            return device.feed(now).map(|()| true);
        }
        // Opened so slowly that it would fire too late.
        if opened {
            self.disarm(now)?;
        }
        Ok(false)
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

    /// The agent ends, and PostgreSQL has or is to go on without it.
    pub(super) fn leave(&mut self, now: Instant) {
        match self.disarm(now) {
            Err(error) => tracing::error!(%error, "the watchdog could not be stopped: the host will be reset"),
            Ok(()) => {
                if let Some(device) = &self.device {
                    let after = device.timeout;
                    tracing::error!(?after, "this watchdog cannot be stopped (nowayout): the host will be reset");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::watchdog::WatchdogMode;

    fn held(device: &Path) -> Held {
        let (timeout, longest) = (Duration::from_secs(1), Duration::from_secs(2));
        Held::new(WatchdogConfig { mode: WatchdogMode::Required, device: device.to_owned(), timeout, longest })
    }

    const fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn it_is_fed_by_writing_and_stopped_by_a_last_v() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        std::fs::write(&device, b"").unwrap();
        let mut held = held(&device);
        for _ in 0..2 {
            held.act(Act::Feed, None, &|| at(0)).unwrap();
            held.act(Act::Feed, None, &|| at(7)).unwrap();
            assert_eq!(held.armed(), Some(Armed { timeout: Duration::from_secs(1), fed_at: Some(at(7)) }));
            held.act(Act::Disarm, None, &|| at(8)).unwrap();
            assert_eq!(held.armed(), None);
        }
        held.act(Act::Disarm, None, &|| at(9)).unwrap();
        assert_eq!(std::fs::read(&device).unwrap(), b"..V..V");
    }

    #[test]
    fn what_is_closed_without_being_stopped_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        std::fs::write(&device, b"").unwrap();
        let mut held = held(&device);
        held.act(Act::Feed, None, &|| at(0)).unwrap();
        drop(held);
        assert_eq!(std::fs::read(&device).unwrap(), b".");
    }

    #[test]
    fn one_that_would_fire_too_late_is_not_fed_and_one_that_was_opened_too_slowly_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        std::fs::write(&device, b"").unwrap();
        let mut held = held(&device);
        assert_eq!(held.act(Act::Feed, Some(at(5)), &|| at(6)), Err(NotDone::Late));
        // Each look at the clock is 6 ms after the one before: so long takes the opening.
        let time = std::cell::Cell::new(0);
        let slow = || at(time.replace(time.get() + 6));
        assert_eq!(held.act(Act::Feed, Some(at(5)), &slow), Err(NotDone::Late));
        assert_eq!((held.armed(), std::fs::read(&device).unwrap()), (None, b"V".to_vec()));
        held.act(Act::Feed, Some(at(5)), &|| at(5)).unwrap();
        assert_eq!(held.act(Act::Feed, Some(at(5)), &|| at(6)), Err(NotDone::Late));
        assert_eq!(held.armed().and_then(|a| a.fed_at), Some(at(5)), "it counts on from when it was fed");
    }

    #[test]
    fn one_that_cannot_be_opened_or_is_no_watchdog_is_an_error() {
        let open = |device: &str| {
            let mut held = held(Path::new(device));
            held.feed(None, &|| at(0)).unwrap_err()
        };
        assert_eq!(open("/nonexistent/watchdog").kind(), io::ErrorKind::NotFound);
        // A character device, which knows nothing of the requests.
        assert_eq!(open("/dev/null").raw_os_error(), Some(libc::ENOTTY));
    }
}
