//! What is known of a session outside of its own task: where it is, what it does, and what it is told.

use crate::auth::cancel_keys::Secret;
use crate::net::Origin;
use crate::pool::Identity;
use crate::pool::clients::Admission;
use crate::session::cancel::{MAX_PLACES, Waiters};
use crate::session::settings::Shared;
use crate::session::state::Pins;
pub use crate::session::timers::{Activity, Doing};
use crate::session::timers::{Expiry, Progress};
use cluster::{Instant, Role};
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;
use tokio::sync::oneshot;

/// The server that serves a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The node, as the worker's index of it.
    pub node: usize,
    /// The process there.
    pub pid: u32,
    /// What the node was when the connection was made.
    pub role: Role,
    /// When that was.
    pub born: Instant,
    /// How the connection is encrypted: version and cipher.
    pub tls: Option<(&'static str, &'static str)>,
}

/// What a client said at login.
#[derive(Debug)]
pub struct Facts {
    /// Whose session.
    pub identity: Arc<Identity>,
    /// Where it comes from.
    pub origin: Origin,
    /// When it came.
    pub connected: Instant,
    /// How its connection is encrypted: version and cipher.
    pub tls: Option<(&'static str, &'static str)>,
    /// A replication connection, and of which kind: `physical` or `logical`.
    pub replication: Option<&'static str>,
    /// It counts until it leaves, even if others still look at what it was.
    pub admission: RefCell<Option<Admission>>,
}

/// What can be told a session from outside of its own sockets, and what it shows.
pub struct Presence {
    /// Its secret for cancel requests, once it has one.
    pub secret: Cell<Option<Secret>>,
    waker: RefCell<Option<Waker>>,
    /// A cancel request has come, from these.
    pub cancel: Cell<Option<Waiters>>,
    /// Such requests that are on their way to its server.
    pub cancels: Cell<usize>,
    /// It is to end.
    pub end: Cell<bool>,
    /// Whose it is.
    pub facts: OnceCell<Facts>,
    /// What it does.
    pub doing: Cell<Doing>,
    /// Statements that it, and that its server, has prepared.
    pub prepared: Cell<(usize, usize)>,
    /// What its statements take that is its own, as it counts for its worker, bytes.
    pub kept: Cell<usize>,
    /// The settings that it has set, its `application_name` among them.
    pub settings: RefCell<Shared>,
    /// Who serves it.
    pub serving: Cell<Option<Serving>>,
    /// What binds it to its server.
    pub pins: Cell<Pins>,
    /// Since when its client has taken nothing of what waits for it.
    pub blocked: Cell<Option<Instant>>,
    /// A query of ours is in flight that no limit of a statement ends: when it is given up.
    pub asked: Cell<Option<Instant>>,
    /// It has taken too long over something.
    pub expired: Cell<Option<Expiry>>,
    /// What its server is at was to be stopped, and was not: it waits for standbys, or could not be asked.
    pub spared: Cell<bool>,
    /// Its statement waits for a proof that the primary is still that.
    pub unproven: Cell<bool>,
    /// New clients of its database are led elsewhere: it ends as soon as it is outside of a transaction.
    pub moved: Cell<bool>,
    /// What it waits for may have come.
    pub again: Cell<bool>,
    /// There are newer tables of functions than it may have.
    pub outdated: Cell<bool>,
    told: Cell<Option<Instant>>,
}

impl Presence {
    /// A session that begins now.
    pub fn new(now: Instant) -> Self {
        Self {
            secret: Cell::new(None),
            waker: RefCell::default(),
            cancel: Cell::new(None),
            cancels: Cell::new(0),
            end: Cell::new(false),
            facts: OnceCell::new(),
            doing: Cell::new(Doing { activity: Activity::Idle, since: now, began: now }),
            prepared: Cell::new((0, 0)),
            kept: Cell::new(0),
            settings: RefCell::default(),
            serving: Cell::new(None),
            pins: Cell::new(Pins::default()),
            blocked: Cell::new(None),
            asked: Cell::new(None),
            expired: Cell::new(None),
            spared: Cell::new(false),
            unproven: Cell::new(false),
            moved: Cell::new(false),
            again: Cell::new(false),
            outdated: Cell::new(false),
            told: Cell::new(None),
        }
    }

    /// It does something else from now on, or the same anew; `begins` says whether a transaction begins with it.
    pub fn mark(&self, activity: Activity, now: Instant, begins: bool) {
        let began = if begins { now } else { self.doing.get().began };
        self.doing.set(Doing { activity, since: now, began });
        self.told.set(None);
        self.spared.set(false);
    }

    /// It goes on with what it did, which stood still for that long.
    pub fn resume(&self, was: Progress, still: Duration) {
        let Doing { activity, since, began } = was.doing;
        self.doing.set(Doing { activity, since: since + still, began: began + still });
        self.told.set(was.told.map(|told| told + still));
    }

    /// What its limits depend on.
    pub fn progress(&self) -> Progress {
        let (told, asked, blocked) = (self.told.get(), self.asked.get(), self.blocked.get());
        Progress { doing: self.doing.get(), told, asked, blocked }
    }

    /// It has taken too long.
    pub fn expire(&self, expiry: Expiry, now: Instant) {
        self.expired.set(Some(expiry));
        self.told.set(Some(now));
        self.wake();
    }

    /// Wake this task when something is to be told.
    pub fn park(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        match &*slot {
            Some(old) if old.will_wake(waker) => {}
            _ => *slot = Some(waker.clone()),
        }
    }

    /// Something is to be told.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// What it waits for may have come: it looks again.
    pub fn look_again(&self) {
        self.again.set(true);
        self.wake();
    }

    /// A client of another connection asks to cancel what it does; `done` is told when that has been acted on.
    pub fn cancel(&self, done: oneshot::Sender<()>) {
        let mut waiters = self.cancel.take().unwrap_or_default();
        waiters.add(done);
        self.cancel.set(Some(waiters));
        self.wake();
    }

    /// The session is to end.
    pub fn end(&self) {
        self.end.set(true);
        self.wake();
    }
}

/// The sessions of a worker, each at its place.
#[derive(Default)]
pub struct Places {
    at: Vec<Option<Rc<Presence>>>,
    free: Vec<usize>,
}

impl Places {
    /// Take a place; `None` when all are taken.
    pub fn enter(&mut self, presence: Rc<Presence>) -> Option<usize> {
        if let Some(place) = self.free.pop() {
            self.at[place] = Some(presence);
            return Some(place);
        }
        if self.at.len() >= MAX_PLACES - 1 {
            return None;
        }
        self.at.push(Some(presence));
        Some(self.at.len() - 1)
    }

    /// Leave a place.
    pub fn leave(&mut self, place: usize) {
        self.at[place] = None;
        self.free.push(place);
    }

    /// Who is at that place.
    pub fn at(&self, place: usize) -> Option<&Rc<Presence>> {
        self.at.get(place).and_then(Option::as_ref)
    }

    /// How many places there are, taken or not.
    pub fn room(&self) -> usize {
        self.at.len()
    }

    /// Everybody, with their places.
    pub fn all(&self) -> impl Iterator<Item = (usize, &Rc<Presence>)> {
        self.at.iter().enumerate().filter_map(|(place, presence)| Some((place, presence.as_ref()?)))
    }
}
