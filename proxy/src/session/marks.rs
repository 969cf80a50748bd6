//! What a session shows of itself, to those who look at it.

use crate::console::tally::Counter;
use crate::session::client::Session;
use crate::session::presence::{Activity, Serving};
use crate::session::timers::{self, Progress};
use crate::wire::backend::TxStatus;
use cluster::Instant;

impl Session {
    /// What the session does from now on, for those who look at it.
    pub(super) fn mark(&self, activity: Activity, now: Instant, begins: bool) {
        let was = self.presence.doing.get();
        match was.activity {
            Activity::Waiting if activity != Activity::Waiting => {
                self.tally.spend(Counter::WaitTime, now.since(was.since));
            }
            Activity::Active if matches!(activity, Activity::Idle | Activity::InTransaction) => {
                let spent = now.since(was.since);
                self.tally.spend(Counter::QueryTime, spent);
                self.w.counts.answered(spent);
            }
            Activity::Idle | Activity::Waiting | Activity::Active | Activity::InTransaction => {}
        }
        self.count_working(was.activity, activity);
        if activity == Activity::Idle && was.activity != Activity::Idle {
            self.tally.spend(Counter::TransactionTime, now.since(was.began));
        }
        self.presence.mark(activity, now, begins);
        self.presence.pins.set(self.pins);
        let on_server = self.server.as_ref().map_or(0, |s| s.meta.statements.len());
        self.presence.prepared.set((self.statements.len(), on_server));
        self.count_kept(self.statements.own_bytes());
        self.w.look_at_sessions(now);
    }

    /// What the session's statements take, for the worker that sums it up.
    pub(super) fn count_kept(&self, bytes: usize) {
        let before = self.presence.kept.replace(bytes);
        if before != bytes {
            self.w.kept.set(self.w.kept.get() + bytes - before);
            self.account.add(bytes);
            self.account.subtract(before);
        }
    }

    /// The session has waited since then for other than its server, and does as before: that time counts for no limit.
    pub(super) fn work_again(&self, was: Progress, since: Instant) {
        let now = self.w.now();
        self.mark(was.doing.activity, now, false);
        self.presence.resume(was, now.since(since));
        // That may come sooner than a limit of what begins now.
        if let Some((at, _)) = timers::first(&self.presence.progress(), &self.w.config().timeouts) {
            self.w.look_no_later(at.max(now));
        }
    }

    /// A server begins or ends to work for the session, for the worker that counts those.
    pub(super) fn count_working(&self, was: Activity, is: Activity) {
        let (was, is) = (was == Activity::Active, is == Activity::Active);
        if was != is {
            self.w.count_working(is);
        }
    }

    /// Nothing is owed to the client any more.
    pub(super) fn mark_rest(&self, now: Instant) {
        let idle = self.status() == TxStatus::Idle;
        self.mark(if idle { Activity::Idle } else { Activity::InTransaction }, now, false);
        if idle && self.presence.moved.get() {
            // The next turn sees that it may end now.
            self.presence.wake();
        }
    }

    /// Who serves the session, for those who look at it.
    pub(super) fn show_server(&self, node: Option<usize>) {
        let serving = self.server.as_ref().zip(node).map(|(s, node)| Serving {
            node,
            pid: s.meta.key.0,
            role: s.meta.role,
            born: s.meta.born,
            tls: s.stream.encryption(),
        });
        if serving.is_none() {
            self.presence.asked.set(None);
        }
        self.presence.serving.set(serving);
    }
}
