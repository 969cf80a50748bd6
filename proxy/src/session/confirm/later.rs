//! A later commit of ours: who confirms it has all that was committed before it was sent.
//!
//! Whoever needs one has a server already, and all of them together may have all that their pool has. So nobody waits for a
//! connection: one is taken that is idle, or that the pool has a place for, else one beyond all limits of ours, also while the
//! database is paused, or new transactions are held for a switchover. That is one for each worker and level at most, as all
//! who wait share the commit that is sent next.

use crate::pool::policy::{Age, too_old};
use crate::pool::{Checkout, Permit, Share};
use crate::route::durability::Durability;
use crate::session::acquire::{Want, change, open};
use crate::session::in_use::InUse;
use crate::worker::Worker;
use cluster::topology::{Gate, Member};
use cluster::{Instant, Role, Term};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long a connection beyond the limits is kept for who needs one next.
const LINGER: Duration = Duration::from_secs(1);

/// The later commits of a worker, by what they wait for.
#[derive(Default)]
pub(crate) struct Later {
    received: Line,
    semi_sync: Line,
    applied: Line,
}

/// Those of one level.
#[derive(Default)]
struct Line {
    /// Sessions that wait.
    waiting: Cell<usize>,
    /// When the last of them was told of its commit.
    asked: Cell<Instant>,
    /// When the last commit was sent that was confirmed, and in which term.
    confirmed: Cell<Option<(Term, Instant)>>,
    /// Somebody sees to it.
    runs: Cell<bool>,
    /// One more waits, or one was confirmed.
    told: Notify,
}

impl Later {
    fn of(&self, level: Durability) -> &Line {
        match level {
            // What waits for nobody is confirmed by nobody.
            Durability::Async | Durability::Local | Durability::Received => &self.received,
            Durability::SemiSync => &self.semi_sync,
            Durability::Applied => &self.applied,
        }
    }
}

impl Line {
    /// Does somebody wait for another one, of that term?
    fn lacks(&self, term: Term) -> bool {
        self.waiting.get() > 0 && !self.has(term, self.asked.get())
    }

    /// Was one confirmed that was sent by then or later, in that term?
    fn has(&self, term: Term, at: Instant) -> bool {
        self.confirmed.get().is_some_and(|(of, sent)| of == term && sent >= at)
    }
}

/// A session's wait for one.
pub(super) struct Wait<'a> {
    w: &'a Rc<Worker>,
    line: &'a Line,
    level: Durability,
    term: Term,
    at: Instant,
}

impl<'a> Wait<'a> {
    /// What was committed by `at` in `term` has waited for `level`.
    pub(super) fn new(w: &'a Rc<Worker>, level: Durability, (term, at): (Term, Instant)) -> Self {
        // The level may come from a setting that was sent behind the commit, and those of the line share what is confirmed.
        let level = level.max(Durability::Received);
        let line = w.later.of(level);
        line.waiting.set(line.waiting.get() + 1);
        line.asked.set(line.asked.get().max(at));
        line.told.notify_waiters();
        Self { w, line, level, term, at }
    }

    /// Was one confirmed?
    pub(super) fn is_over(&self) -> bool {
        self.line.has(self.term, self.at)
    }

    /// See that one is on its way, and wait until something has changed, for so long at most. `keeps`: connections may serve
    /// others afterwards.
    pub(super) async fn go_on(&self, want: &Want, keeps: bool, most: Duration) {
        let told = self.line.told.notified();
        if !self.line.runs.replace(true) {
            tokio::task::spawn_local(run(self.w.clone(), want.clone(), keeps, self.level));
        }
        tokio::select! {
            () = told => {}
            () = change(self.w, most) => {}
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.line.waiting.set(self.line.waiting.get() - 1);
    }
}

/// Somebody sees to it while it lives.
struct Running<'a>(&'a Line);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.runs.set(false);
    }
}

/// Commit as long as somebody waits for it. One that fails is the last: who still waits begins anew, with another identity.
async fn run(w: Rc<Worker>, want: Want, keeps: bool, level: Durability) {
    let line = w.later.of(level);
    let _running = Running(line);
    let mut kept: Option<Connection<'_>> = None;
    loop {
        if !line.lacks(w.view.borrow().topology.term) {
            let Some(last) = kept.take() else { return };
            kept = last.linger(line).await;
            if !line.lacks(w.view.borrow().topology.term) {
                return;
            }
        }
        let usable = kept.take().and_then(Connection::usable);
        let connection = match usable {
            Some(connection) => Some(connection),
            None => Connection::open(&w, &want, keeps).await,
        };
        let Some(mut connection) = connection else { return };
        let Some(term) = connection.server.meta().map(|meta| meta.term) else { return };
        let (sent, limit) = (w.now(), w.config().hold_timeout);
        if !connection.server.commits(level, limit).await {
            return;
        }
        line.confirmed.set(Some((term, sent)));
        line.told.notify_waiters();
        // Others of its pool may wait for it.
        kept = Some(connection).filter(|connection| connection.beyond);
    }
}

/// A connection to the primary.
struct Connection<'a> {
    w: &'a Rc<Worker>,
    server: InUse<'a>,
    database: &'a str,
    /// It counts for no limit: nobody waits for it.
    beyond: bool,
}

impl<'a> Connection<'a> {
    /// One that nobody has to wait for.
    async fn open(w: &'a Rc<Worker>, want: &'a Want, keeps: bool) -> Option<Self> {
        let now = w.now();
        let member = primary(w, now)?;
        let (pool, database) = (w.pools.of(&member.node, &want.identity), want.identity.database.as_str());
        let of_pool = (!w.doorway.paused(database)).then(|| pool.checkout(w.check_before(now), Share::Usual));
        let (permit, beyond) = match of_pool {
            Some(Checkout::Ready(server)) if w.still_valid(&server.meta) => {
                let server = InUse::new(w, pool, server, keeps);
                return Some(Self { w, server, database, beyond: false });
            }
            Some(Checkout::Open(permit)) => (permit, false),
            // One that has to be asked whether it lives is not worth that.
            Some(Checkout::Ready(_) | Checkout::Check(_) | Checkout::Full(_)) | None => (Permit::beyond(), true),
        };
        if w.may_connect(&pool, now).is_err() {
            permit.forgo();
            return None;
        }
        match open(w, want, &member, Role::Primary, permit, w.config().hold_timeout).await {
            Ok(server) => {
                let server = InUse::new(w, pool, server, keeps && !beyond);
                Some(Self { w, server, database, beyond })
            }
            Err(error) => {
                let error = error.map(|error| error.to_string());
                tracing::debug!(node = %member.node, error, "no connection for a commit that tells of others");
                None
            }
        }
    }

    /// The same, if it may be used once more: not when an operator wants it closed.
    fn usable(mut self) -> Option<Self> {
        let valid = self.server.is_valid();
        let (born, now) = (self.server.meta()?.born, self.w.now());
        let old = too_old(Age { born, lifetime: self.w.config().server_lifetime }, now);
        (valid && !old && !self.w.doorway.must_close(self.database, born)).then_some(self)
    }

    /// Keep it for a while for who waits next.
    async fn linger(self, line: &Line) -> Option<Self> {
        let mut connection = self;
        let until = connection.w.now() + LINGER;
        loop {
            connection = connection.usable()?;
            let (told, left) = (line.told.notified(), until.since(connection.w.now()));
            if left.is_zero() {
                return None;
            }
            if line.lacks(connection.w.view.borrow().topology.term) {
                return Some(connection);
            }
            tokio::select! {
                () = told => {}
                () = change(connection.w, left) => {}
            }
        }
    }
}

/// The primary, while transactions may end there.
fn primary(w: &Worker, now: Instant) -> Option<Member> {
    let topology = &w.view.borrow().topology;
    let open = matches!(topology.gate_at(now), Gate::Open | Gate::Draining);
    topology.primary.clone().filter(|_| open)
}
