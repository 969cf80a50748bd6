//! A later commit of ours: who confirms it has all that was committed before it was sent.
//!
//! Whoever needs one has a server already, and all of them together may have all that their pool has. So nobody waits for a
//! connection: one is taken that is idle, or that the pool has a place for, else one beyond all limits of ours, also while the
//! database is paused, or new transactions are held for a switchover. That is one for each worker and level, as all
//! who wait share the commit that is sent next; and one more where that does not come back, as its connection may say nothing
//! any more while others would.

use crate::pool::policy::{Age, too_old};
use crate::pool::{Checkout, Permit, Pool, Share};
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
/// How long a commit may take before another one is sent beside it, and on a connection that was idle before it is sent on a new
/// one.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many see to the commits of a line, at most.
const MAX_RUNS: u8 = 2;

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
    /// So many see to it,
    runs: Cell<u8>,
    /// of whom so many have nothing to do.
    resting: Cell<u8>,
    /// When one of them began with a commit last.
    begun: Cell<Instant>,
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

    /// Has nobody begun with one, or only somebody who does not come back?
    fn needs_another(&self, now: Instant) -> bool {
        let late = self.resting.get() == 0 && now >= self.begun.get() + PATIENCE;
        self.runs.get() == 0 || self.runs.get() < MAX_RUNS && late
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
        // Those of the line share what is confirmed.
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
        let now = self.w.now();
        if self.line.needs_another(now) {
            self.line.begun.set(now);
            self.line.runs.set(self.line.runs.get() + 1);
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

/// One of so many, while it lives.
struct Counted<'a>(&'a Cell<u8>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<u8>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Commit as long as somebody waits for it. One that fails is the last: who still waits begins anew, with another identity.
async fn run(w: Rc<Worker>, want: Want, keeps: bool, level: Durability) {
    let line = w.later.of(level);
    // Whoever has begun it has counted it.
    let _running = Counted(&line.runs);
    let mut kept: Option<Connection<'_>> = None;
    loop {
        if !line.lacks(w.view.borrow().topology.term) {
            let Some(last) = kept.take() else { return };
            let resting = Counted::new(&line.resting);
            kept = last.linger(line).await;
            drop(resting);
            if !line.lacks(w.view.borrow().topology.term) {
                return;
            }
        }
        line.begun.set(w.now());
        let usable = kept.take().and_then(Connection::usable);
        let connection = match usable {
            Some(connection) => Some(connection),
            None => Connection::open(&w, &want, keeps).await,
        };
        let Some(mut connection) = connection else { return };
        let limit = w.config().hold_timeout;
        let patience = if connection.reused { PATIENCE.min(limit) } else { limit };
        let mut confirmed = connection.commit(level, patience).await;
        if confirmed.is_none() && connection.reused {
            drop(connection);
            let Some(another) = Connection::new(&w, &want).await else { return };
            connection = another;
            confirmed = connection.commit(level, limit).await;
        }
        let Some((term, sent)) = confirmed else { return };
        // One that was sent later may have been confirmed before.
        line.confirmed.set(line.confirmed.get().max(Some((term, sent))));
        line.told.notify_waiters();
        if line.runs.get() > 1 && w.now() >= sent + PATIENCE {
            // Another one has been begun because of it.
            return;
        }
        // Others of its pool may wait for it.
        kept = Some(connection).filter(|connection| connection.beyond);
    }
}

/// A connection to the primary.
pub(in crate::session) struct Connection<'a> {
    w: &'a Rc<Worker>,
    server: InUse<'a>,
    database: &'a str,
    /// It counts for no limit: nobody waits for it.
    beyond: bool,
    /// It was idle, and may be dead without a sign of it.
    reused: bool,
}

impl<'a> Connection<'a> {
    /// Its server.
    pub(in crate::session) fn server(&mut self) -> &mut InUse<'a> {
        &mut self.server
    }

    /// May it have died long ago?
    pub(in crate::session) fn reused(&self) -> bool {
        self.reused
    }

    /// A commit on it: of which term it is, and when it was sent, if it is confirmed in that time.
    async fn commit(&mut self, level: Durability, limit: Duration) -> Option<(Term, Instant)> {
        let (term, sent) = (self.server.meta()?.term, self.w.now());
        self.server.commits(level, limit).await.then_some((term, sent))
    }

    /// One that nobody has to wait for.
    pub(in crate::session) async fn open(w: &'a Rc<Worker>, want: &'a Want, keeps: bool) -> Option<Self> {
        let now = w.now();
        let member = primary(w, now)?;
        let (pool, database) = (w.pools.of(&member.node, &want.identity), want.identity.database.as_str());
        let permit = loop {
            match spare(w, &pool, database, now) {
                Some(Checkout::Ready(server) | Checkout::Check(server)) if w.still_valid(&server.meta) => {
                    let server = InUse::new(w, pool, server, keeps);
                    return Some(Self { w, server, database, beyond: false, reused: true });
                }
                // Its place is free now.
                Some(Checkout::Ready(_) | Checkout::Check(_)) => {}
                Some(Checkout::Open(permit)) => break Some(permit),
                Some(Checkout::Full(_)) | None => break None,
            }
        };
        Self::connect(w, want, keeps, &member, permit).await
    }

    /// A new one, beyond all limits.
    pub(in crate::session) async fn new(w: &'a Rc<Worker>, want: &'a Want) -> Option<Self> {
        let member = primary(w, w.now())?;
        Self::connect(w, want, false, &member, None).await
    }

    async fn connect(
        w: &'a Rc<Worker>,
        want: &'a Want,
        keeps: bool,
        member: &Member,
        permit: Option<Permit>,
    ) -> Option<Self> {
        let (pool, database) = (w.pools.of(&member.node, &want.identity), want.identity.database.as_str());
        let beyond = permit.is_none();
        let permit = permit.unwrap_or_else(Permit::beyond);
        if w.may_connect(&pool, w.now()).is_err() {
            permit.forgo();
            return None;
        }
        match open(w, want, member, Role::Primary, permit, w.config().hold_timeout).await {
            Ok(server) => {
                let server = InUse::new(w, pool, server, keeps && !beyond);
                Some(Self { w, server, database, beyond, reused: false })
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

/// What the pool has to spare. One that was idle for long is not asked whether it lives: a commit is as good a question.
fn spare(w: &Worker, pool: &Pool, database: &str, now: Instant) -> Option<Checkout> {
    // Of who asks in vain others learn that one lacks, and close theirs.
    let has = pool.idle() > 0 || pool.limit.has_room();
    (has && !w.doorway.paused(database)).then(|| pool.checkout(w.check_before(now), Share::Usual))
}

/// The primary, while transactions may end there.
fn primary(w: &Worker, now: Instant) -> Option<Member> {
    let topology = &w.view.borrow().topology;
    let open = matches!(topology.gate_at(now), Gate::Open | Gate::Draining);
    topology.primary.clone().filter(|_| open)
}
