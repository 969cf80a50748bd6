//! A statement that waits for a server: how long, and what ends the wait before one is found.

use crate::session::acquire::{self, NotFound};
use crate::session::client::{Failure, Session, read_more};
use crate::session::presence::Activity;
use crate::session::recheck::ASKED_FOR;
use crate::session::turn::is_told;
use crate::sql::Access;
use crate::wire::backend::TxStatus;
use crate::wire::error_response::ClientError;
use std::future::{Future, poll_fn};
use std::task::{Context, Poll};

impl Session {
    /// Find a server for the unit at the head of the inbox, or an error for it.
    pub(super) async fn acquire(&mut self, access: Access, bytes: usize) {
        let now = self.w.now();
        self.waiting_since.get_or_insert(now);
        self.mark(Activity::Waiting, now, self.status() == TxStatus::Idle);
        let (want, decided, cut) = (self.want(access, now), self.decided.take(), self.cut.take());
        let w = self.w.clone();
        let find = acquire::find(&w, want, bytes, decided);
        // Without a statement nothing of the client's is over.
        let over = self.statement_over(now).filter(|_| bytes > 0);
        let mut over = over.map(|left| Box::pin(tokio::time::sleep(left)));
        // What a standby has said to it is as good an answer as that there is no primary to ask.
        let told = self.rechecks.as_deref().and_then(|recheck| recheck.told.clone());
        let refused = |otherwise| told.clone().map_or(otherwise, |told| NotFound::Refused(told.into()));
        let mut asked = told.as_ref().map(|_| Box::pin(tokio::time::sleep(ASKED_FOR)));
        let outcome = tokio::select! {
            biased;
            outcome = poll_fn(|cx| self.watch_waiting(bytes, cx)) => match outcome {
                Some(error) => Err(NotFound::Error(error)),
                // The next turn sees the end of the connection.
                None => return,
            },
            outcome = find => outcome.map_err(refused),
            () = poll_fn(|cx| over.as_mut().map_or(Poll::Pending, |over| over.as_mut().poll(cx))) => {
                Err(NotFound::Error(self.statement_timeout_error(w.now())))
            }
            () = poll_fn(|cx| asked.as_mut().map_or(Poll::Pending, |over| over.as_mut().poll(cx))) => {
                Err(NotFound::Refused(told.clone().unwrap_or_default().into()))
            }
        };
        self.rescan = true;
        match outcome {
            Ok(found) => {
                self.cut = cut;
                self.remember(&found.pool);
                self.attach(found);
            }
            Err(NotFound::Error(error)) => self.fail = Some(Failure::Error(error)),
            Err(NotFound::Refused(frame)) => self.fail = Some(Failure::Frame(frame)),
        }
    }

    /// While a statement of so many bytes waits for a server: the same, and is its transaction to begin at all? What is
    /// led elsewhere behind a pause must not go where it would have gone before.
    fn watch_waiting(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<Option<ClientError>> {
        if bytes > 0 && self.presence.moved.get() && self.must_leave().is_some() {
            self.rescan = true;
            return Poll::Ready(None);
        }
        self.watch_client(cx)
    }

    /// While a statement waits: has the client gone (`None`), or cancelled it? What its socket has not taken of the
    /// answer before goes on being sent.
    pub(super) fn watch_client(&mut self, cx: &mut Context<'_>) -> Poll<Option<ClientError>> {
        self.presence.park(cx.waker());
        let Ok(moved) = self.to_client.flush(&mut self.client, cx) else {
            (self.eof, self.inbox) = (true, Vec::new());
            return Poll::Ready(None);
        };
        self.watch_writes(moved);
        if self.presence.end.get() || self.presence.expired.get().is_some() {
            return Poll::Ready(None);
        }
        if self.presence.cancel.take().is_some() {
            return Poll::Ready(Some(ClientError::Cancelled));
        }
        while self.inbox.len() < 2 * self.w.config().relay_buffer && !self.eof {
            if !self.client.may_read() {
                if !self.client_wakes && self.client.poll_read_ready(cx).is_ready() {
                    continue;
                }
                self.client_wakes = self.client_wakes || is_told();
                break;
            }
            let limit = self.w.config().relay_buffer;
            self.client_wakes = false;
            match read_more(&self.w, &mut self.client, &mut self.inbox, limit, cx) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => {
                    (self.eof, self.inbox) = (true, Vec::new());
                    return Poll::Ready(None);
                }
                // It will send no more, and may still read: what it sent is answered, as PostgreSQL does.
                Poll::Ready(Ok(0)) => self.eof = true,
                Poll::Ready(Ok(_)) => {}
            }
        }
        Poll::Pending
    }
}
