//! A worker looks at what its sessions do when one of them may be over a limit: no statement arms a timer.

use super::Worker;
use crate::session::timers;
use cluster::Instant;
use std::time::Duration;

/// Those who wait for a connection are told this late at most that they have waited for long enough: so that many are one
/// look.
const GRAIN: Duration = Duration::from_millis(10);
/// When to look again at sessions that were told that they are over a limit.
const SECOND_LOOK: Duration = Duration::from_secs(1);

impl Worker {
    /// Has what sessions do any limit?
    pub fn is_timed(&self) -> bool {
        self.shortest.get().is_some()
    }

    /// A session does something else from now on.
    pub fn look_at_sessions(&self, now: Instant) {
        if let Some(shortest) = self.shortest.get() {
            self.look_no_later(now + shortest);
        }
    }

    /// A client does not take what is sent to it.
    pub fn look_at_writes(&self, now: Instant) {
        if let Some(limit) = self.config().timeouts.client_write {
            self.look_no_later(now + limit);
        }
    }

    /// Something is over at that time.
    pub fn look_no_later(&self, at: Instant) {
        if self.look_at.get().is_none_or(|planned| at < planned) {
            self.look_at.set(Some(at));
            self.look_earlier.notify_one();
        }
    }

    /// Tell each session that is over one of its limits, and those that have waited for long enough, and plan the next look.
    pub(super) fn look(&self, now: Instant) {
        self.look_at.set(None);
        let config = self.config();
        let places = self.places.borrow();
        let mut next = self.pools.expire(now).map(|at| at.max(now + GRAIN));
        for (_, presence) in places.all() {
            match timers::over(&presence.progress(), &config.timeouts, now) {
                Ok(expiry) => {
                    presence.expire(expiry, now);
                    next = Some(next.map_or(now + SECOND_LOOK, |next| next.min(now + SECOND_LOOK)));
                }
                Err(at) => next = next.into_iter().chain(at).min(),
            }
        }
        if let Some(next) = next {
            self.look_no_later(next);
        }
    }

    /// Returns when it is time to look at the sessions.
    pub(super) async fn time_to_look(&self) {
        loop {
            match self.look_at.get() {
                None => self.look_earlier.notified().await,
                Some(at) => tokio::select! {
                    () = tokio::time::sleep(at.since(self.now())) => return,
                    () = self.look_earlier.notified() => {}
                },
            }
        }
    }
}
