//! A connection that a session uses for a question of ours, besides its own.

use crate::pool::Pool;
use crate::route::durability::Durability;
use crate::session::acquire::Found;
use crate::session::cancel;
use crate::session::proof;
use crate::session::relay::Hidden;
use crate::session::server::{Meta, Server};
use crate::worker::Worker;
use std::rc::Rc;
use std::time::Duration;

/// A connection that is counted while it is used, and given back unless it broke.
pub(super) struct InUse<'a> {
    w: &'a Rc<Worker>,
    pool: Rc<Pool>,
    server: Option<Server>,
    /// It is as it was, and may serve others.
    whole: bool,
    /// It is at a question.
    asked: bool,
}

impl<'a> InUse<'a> {
    /// `whole`: it may serve others afterwards.
    pub(super) fn new(w: &'a Rc<Worker>, pool: Rc<Pool>, server: Server, whole: bool) -> Self {
        w.count_in_use(&server.meta, true);
        Self { w, pool, server: Some(server), whole, asked: false }
    }

    /// The same of one that was found.
    pub(super) fn found(w: &'a Rc<Worker>, found: Found, whole: bool) -> Self {
        Self::new(w, found.pool, found.server, whole)
    }

    /// Does a commit that waits for `level` end, and as it should, in that time?
    pub(super) async fn commits(&mut self, level: Durability, left: Duration) -> bool {
        let proof = self.ask(&proof::commit_as(level), left).await;
        proof.is_some_and(|proof| proof.error.is_none() && !proof.unreplicated)
    }

    /// Is it still what it was, and has said nothing since?
    pub(super) fn is_valid(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| self.w.still_valid(&server.meta) && server.is_quiet())
    }

    /// What its server is.
    pub(super) fn meta(&self) -> Option<&Meta> {
        self.server.as_ref().map(|server| &*server.meta)
    }

    /// Has a session left it with another `session_authorization`?
    pub(super) fn is_another_user(&self) -> bool {
        self.meta().is_some_and(|meta| meta.given.get("session_authorization").is_some())
    }

    /// A question to it; `None`: it has not answered in that time.
    pub(super) async fn ask(&mut self, sql: &str, left: Duration) -> Option<Hidden> {
        let server = self.server.as_mut()?;
        // Until it has answered, it is in the middle of something.
        let whole = std::mem::replace(&mut self.whole, false);
        self.asked = true;
        let answer = tokio::time::timeout(left, server.ask(sql)).await.ok()?;
        self.asked = false;
        self.whole = whole && answer.is_some();
        answer
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        if self.whole {
            self.w.release(&self.pool, server, self.w.now());
        } else {
            if self.asked {
                // Its backend may wait for standbys, and would wait on where it counts nowhere.
                cancel::send(self.w, &server);
            }
            self.w.count_in_use(&server.meta, false);
        }
    }
}
