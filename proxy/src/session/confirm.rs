//! A commit was told as success by a server that may have hidden that somebody stopped its wait for standbys.
//!
//! Its client is told once standbys are known to have all that was flushed by then: as samples of the cluster show, or,
//! where they do not tell that, when a [`later`] commit of ours on another connection was confirmed. That takes
//! `proxy.hold_timeout` at most; a cancel request ends it sooner, and behind one that has stopped the wait itself it is a
//! second. Then it is 08007.

mod later;

pub(super) use later::Connection;
pub(crate) use later::Later;

use crate::route::durability::Durability;
use crate::session::acquire::{Want, change};
use crate::session::client::Session;
use crate::session::presence::Activity;
use crate::wire::error_response::{ClientError, Doubt};
use crate::worker::Worker;
use cluster::{Instant, NodeId, Role, Term};
use later::Wait;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

/// How long until a newer sample is asked for, or what has failed is tried again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long it may take where the client has asked for the end of what it waits for.
const CANCELLED: Duration = Duration::from_secs(1);

impl Session {
    /// Find out whether standbys have what the server tells of next. Nothing is decided when it is not the primary any more.
    pub(super) async fn confirm(&mut self) {
        let Some(meta) = self.server.as_ref().map(|server| &server.meta) else { return };
        let (node, term) = (meta.node.clone(), meta.term);
        // What is told of next is of the oldest unit.
        let level = self.relay.commits.waits().unwrap_or_default().most;
        let now = self.w.now();
        // A limit on the statement says nothing about this wait: neither one that it exceeded while its server ran it, nor
        // one that would be reached now.
        let was = self.presence.progress();
        self.mark(Activity::Waiting, now, false);
        self.presence.expired.set(None);
        let w = self.w.clone();
        let (want, keeps) = self.want_beside(now);
        let hold = self.w.config().hold_timeout;
        let limit = if self.cancelled { hold.min(CANCELLED) } else { hold };
        let search = Search { w: &w, want, keeps, node: &node, term, level, limit };
        let confirmed = tokio::select! {
            biased;
            _ = poll_fn(|cx| self.watch_client(cx)) => Some(false),
            confirmed = search.run(now) => confirmed,
        };
        self.work_again(was, now);
        match confirmed {
            Some(true) => self.relay.confirm(self.server_in.len()),
            Some(false) => self.relay.doubt(ClientError::CommitUnknown { node, term, doubt: Doubt::Unconfirmed }),
            // The next turn sees that the server is lost.
            None => {}
        }
        self.rescan = true;
    }
}

/// What is looked for, and how.
struct Search<'a> {
    w: &'a Rc<Worker>,
    want: Want,
    /// Connections may serve others afterwards.
    keeps: bool,
    /// The primary that has committed.
    node: &'a NodeId,
    /// Its term.
    term: Term,
    /// What the commit waited for.
    level: Durability,
    /// How long that may take.
    limit: Duration,
}

impl Search<'_> {
    /// Have standbys what was committed by `at`? `None`: its primary is none any more.
    async fn run(&self, at: Instant) -> Option<bool> {
        let deadline = at + self.limit;
        let mut later = None;
        loop {
            let left = deadline.since(self.w.now());
            let most = ASK_AGAIN.min(left);
            match self.sampled(at)? {
                Some(true) => return Some(true),
                _ if left.is_zero() => return Some(false),
                Some(false) => {
                    self.w.ask_sample();
                    change(self.w, most).await;
                }
                // Who confirms a later commit has this one.
                None => {
                    let wait = later.get_or_insert_with(|| Wait::new(self.w, self.level, (self.term, at)));
                    if wait.is_over() {
                        return Some(true);
                    }
                    wait.go_on(&self.want, self.keeps, most).await;
                }
            }
        }
    }

    /// What the samples say of it, if they do; `None`: its primary is none any more.
    fn sampled(&self, at: Instant) -> Option<Option<bool>> {
        if !self.is_primary() {
            return None;
        }
        let view = self.w.view.borrow();
        // They do not tell what standbys have applied.
        let tell = self.level <= Durability::SemiSync;
        Some(view.lag.confirms(&view.topology, at).filter(|_| tell))
    }

    fn is_primary(&self) -> bool {
        self.w.still_serves(self.node, Role::Primary, self.term)
    }
}
