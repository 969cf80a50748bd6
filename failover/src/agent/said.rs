//! What is found again at every look, and is said in the log now and then only.

use cluster::Instant;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The same is said again after so long.
const AGAIN: Duration = Duration::from_secs(60);

/// What was said last, and when.
#[derive(Debug, Default)]
pub(super) struct Said(Mutex<Option<(String, Instant)>>);

impl Said {
    /// Is `what` to be said at `now`? It counts as said then.
    pub(super) fn is_due(&self, now: Instant, what: &str) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = last.as_ref().is_some_and(|(said, at)| said == what && now.since(*at) < AGAIN);
        if !lately {
            *last = Some((what.to_owned(), now));
        }
        !lately
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_once_a_minute_and_what_is_new_at_once() {
        let (said, at) = (Said::default(), |s: u64| Instant::from_millis(s * 1000));
        let due: Vec<bool> = [(1, "full"), (2, "full"), (59, "full"), (61, "full"), (62, "gone"), (63, "full")]
            .map(|(now, what)| said.is_due(at(now), what))
            .into();
        assert_eq!(due, [true, false, false, true, true, true]);
    }
}
