//! Waiting for a condition, with a deadline, saying what was awaited.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Pauses between two looks at a condition, which are looked at, never slept for: a tenth of the wait so far, within
/// these. To look costs the time of a processor that what is awaited needs.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// Look at `condition` until it is `Ok`; its value. The last `Err` says how far it was when time ran out.
///
/// # Panics
/// When `within` has passed, naming `what` and the last refusal.
pub fn wait_for<T, E: Debug>(what: &str, within: Duration, mut condition: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        let last = match condition() {
            Ok(value) => return value,
            Err(e) => e,
        };
        assert!(start.elapsed() < within, "waited {within:?} for {what}; last seen: {last:?}");
        std::thread::sleep((start.elapsed() / 10).clamp(PAUSES.0, PAUSES.1));
    }
}

/// [`wait_for`] for a plain yes or no.
///
/// # Panics
/// When `within` has passed, naming `what`.
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, within, || if condition() { Ok(()) } else { Err("not yet") });
}
