//! A turn of a session: what can be moved without waiting is moved, both ways.

use crate::session::client::{Session, Turn};
use std::future::Future;
use std::task::{Context, Poll};
use std::time::Duration;

/// Turns of one poll before other sessions get theirs.
const MAX_TURNS: usize = 16;

/// How long the rest of an extended unit is waited for. A unit comes in one piece nearly always, and what is known whole
/// can be sent to a standby; but its client may wait for an error before it sends the Sync.
const PATIENCE: Duration = Duration::from_millis(10);

/// Has a socket that was found to have nothing been told to wake the task? Without budget the runtime does not look at
/// sockets, but polls the task again.
pub(super) fn is_told() -> bool {
    tokio::task::coop::has_budget_remaining()
}

impl Session {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        self.presence.park(cx.waker());
        (self.client_dry, self.server_dry) = (false, false);
        for _ in 0..MAX_TURNS {
            match self.turn(cx) {
                Ok(true) if !self.is_settled() => {}
                Ok(_) => {
                    self.await_sockets(cx);
                    return Poll::Pending;
                }
                Err(turn) => return Poll::Ready(turn),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Would another turn find nothing to do? Most that move something leave it so, and to see that costs less than the turn.
    fn is_settled(&mut self) -> bool {
        let empty = self.inbox.is_empty() && self.to_client.is_empty() && self.to_server.is_empty();
        let quiet = empty && !self.behind && !self.eof && !self.cancelling && self.hold.is_none() && !self.relistens;
        if !quiet || self.client.may_read() || self.server.as_ref().is_some_and(|s| s.stream.may_read()) {
            return false;
        }
        if std::mem::take(&mut self.rescan) {
            self.wants_more = true;
        }
        (self.client_dry, self.server_dry) = (true, true);
        true
    }

    /// Be woken by the sockets that may be read and have nothing. One that was told so and not read since wakes the task
    /// still: to be told again costs as much as a lock.
    fn await_sockets(&mut self, cx: &mut Context<'_>) {
        let mut ready = false;
        if self.client_dry && !self.client_wakes {
            ready |= self.client.poll_read_ready(cx).is_ready();
            self.client_wakes = is_told();
        }
        if let Some(server) = self.server.as_ref().filter(|_| self.server_dry && !self.server_wakes) {
            ready |= server.stream.poll_read_ready(cx).is_ready();
            self.server_wakes = is_told();
        }
        if ready {
            (self.client_wakes, self.server_wakes) = (false, false);
            cx.waker().wake_by_ref();
        }
    }

    /// One round. True when something moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        self.look_outside(cx)?;
        let mut moved = self.to_client.flush(&mut self.client, cx).map_err(|_| Turn::Close)?;
        self.watch_writes(moved);
        if let Some(server) = &mut self.server {
            // One that takes no more may have said why: reading finds that, and then the end.
            moved |= self.to_server.flush(&mut server.stream, cx).unwrap_or_else(|_| {
                self.to_server.clear();
                true
            });
        }
        // What came behind an answer first: to go on with another server would lose it.
        if self.may_rescan() {
            self.rescan = false;
            if self.inbox.is_empty() {
                self.wants_more = true;
            } else {
                moved = true;
                let inbox = std::mem::take(&mut self.inbox);
                let outcome = self.advance(&inbox);
                self.keep(inbox, outcome)?;
            }
        }
        moved |= self.read_server(cx)?;
        moved |= self.read_client(cx)?;
        // What was sent is answered as PostgreSQL does after a half-close; what waits for more of the client is over.
        let answered = self.relay.owed() > 0 || (self.flushed && self.relay.pending() > 0);
        // Not what we have asked for behind all of it.
        let gone = matches!(self.inbox.first(), None | Some(b'X'));
        let owed = answered && !self.relay.copy_in() && !(self.relay.hiding() && gone);
        // What is held will be sent.
        let held = !gone && (self.hold.is_some() || self.cancelling);
        if self.eof && !moved && !owed && !held && self.to_client.is_empty() {
            if self.to_client.settle(&mut self.client) {
                return Err(Turn::Close);
            }
            // The next turn waits until the client has taken the end of its last answer.
            return Ok(true);
        }
        if self.must_listen() && !moved && self.inbox.is_empty() {
            return Err(Turn::Listen);
        }
        self.await_rest(cx);
        // What waits for a socket is woken by it: to look again before that would be all that the worker does.
        Ok(moved || self.may_rescan())
    }

    /// The inbox is to be looked at again, and nothing is in the way.
    fn may_rescan(&self) -> bool {
        self.rescan && !self.behind && self.to_client.is_empty() && self.to_server.is_empty()
    }

    /// The inbox ends within an extended unit: send what is there when no more comes for a while.
    fn await_rest(&mut self, cx: &mut Context<'_>) {
        if self.inbox.is_empty() {
            self.patience = None;
            return;
        }
        let begun = matches!(self.inbox.first(), Some(b'P' | b'B' | b'D' | b'E' | b'C'));
        if !begun || !self.wants_more || self.relay.copy_in() {
            self.patience = None;
            return;
        }
        if self.inbox.len() == self.waited_at {
            return;
        }
        let sleep = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        if sleep.as_mut().poll(cx).is_ready() {
            (self.patience, self.waited_at) = (None, self.inbox.len());
            (self.impatient, self.rescan) = (true, true);
        }
    }

    /// Does the client take what is sent to it?
    pub(super) fn watch_writes(&self, moved: bool) {
        let blocked = &self.presence.blocked;
        if self.to_client.is_empty() {
            if blocked.get().is_some() {
                blocked.set(None);
            }
        } else if moved || blocked.get().is_none() {
            let now = self.w.now();
            blocked.set(Some(now));
            self.w.look_at_writes(now);
        }
    }
}
