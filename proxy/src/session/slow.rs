//! A transaction that may write waits while the standbys do not keep up (`route::throttle`).

use crate::session::client::{Failure, Session};
use crate::session::presence::Activity;
use crate::worker::Worker;
use cluster::Instant;
use std::future::poll_fn;

/// Wait with a transaction that began to wait at `since`, while the standbys do not keep up: by the delay of the moment,
/// so never for longer than `proxy.throttle.max_delay`.
pub async fn down(w: &Worker, since: Instant) {
    let (began, mut why) = (w.now(), None);
    loop {
        let mut changed = std::pin::pin!(w.changed.notified());
        changed.as_mut().enable();
        let Some(slowed) = w.slowed() else { break };
        let left = slowed.delay.saturating_sub(w.now().since(since));
        if left.is_zero() {
            break;
        }
        why = Some(slowed.cause);
        let _ = tokio::time::timeout(left, changed).await;
    }
    if let Some(cause) = why {
        w.counts.slowed(cause, w.now().since(began));
    }
}

impl Session {
    /// Must a transaction wait that begins on the server that is held? Once.
    pub(super) fn must_slow(&mut self) -> bool {
        !std::mem::take(&mut self.was_slowed) && self.w.slowed().is_some()
    }

    /// Wait with the unit at the head of the inbox, which has a server already.
    pub(super) async fn slow_down(&mut self) {
        let now = self.w.now();
        let since = *self.waiting_since.get_or_insert(now);
        self.mark(Activity::Waiting, now, true);
        let w = self.w.clone();
        tokio::select! {
            () = down(&w, since) => self.was_slowed = true,
            outcome = poll_fn(|cx| self.watch_client(cx)) => match outcome {
                Some(error) => self.fail = Some(Failure::Error(error)),
                // The next turn sees the end of the connection.
                None => return,
            },
        }
        self.rescan = true;
    }
}
