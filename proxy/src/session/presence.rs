//! What is known of a session outside of its own task: where it is, what it does, and what it is told.

use crate::net::Origin;
use crate::pool::Identity;
use crate::pool::clients::Admission;
use crate::session::cancel::MAX_PLACES;
use crate::session::state::Pins;
use cluster::{Instant, Role};
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

/// What a session does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Nothing: it is outside a transaction and nothing is owed to it.
    #[default]
    Idle,
    /// Its statement waits for a server.
    Waiting,
    /// A server works for it.
    Active,
    /// It is inside a transaction, and nothing is owed to it.
    InTransaction,
}

/// What a session does, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    /// What.
    pub activity: Activity,
    /// Since when.
    pub since: Instant,
    /// When it was last idle: its transaction, or its only statement, has begun then.
    pub left_idle: Instant,
}

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
    /// It counts until it leaves.
    pub admission: Admission,
}

/// Why a session is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An operator said so.
    Killed,
}

/// What can be told a session from outside of its own sockets, and what it shows.
pub struct Presence {
    /// Its secret for cancel requests.
    pub secret: u32,
    waker: RefCell<Option<Waker>>,
    /// A cancel request has come.
    pub cancel: Cell<bool>,
    /// It is to end.
    pub end: Cell<Option<End>>,
    /// Whose it is.
    pub facts: OnceCell<Facts>,
    /// What it does.
    pub doing: Cell<Doing>,
    /// Who serves it.
    pub serving: Cell<Option<Serving>>,
    /// What binds it to its server.
    pub pins: Cell<Pins>,
}

impl Presence {
    /// A session with this secret that begins now.
    pub fn new(secret: u32, now: Instant) -> Self {
        Self {
            secret,
            waker: RefCell::default(),
            cancel: Cell::new(false),
            end: Cell::new(None),
            facts: OnceCell::new(),
            doing: Cell::new(Doing { activity: Activity::Idle, since: now, left_idle: now }),
            serving: Cell::new(None),
            pins: Cell::new(Pins::default()),
        }
    }

    /// It does something else from now on, or the same anew.
    pub fn mark(&self, activity: Activity, now: Instant) {
        let was = self.doing.get();
        let left_idle = if was.activity == Activity::Idle { now } else { was.left_idle };
        self.doing.set(Doing { activity, since: now, left_idle });
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

    /// The session is to end.
    pub fn end(&self, why: End) {
        self.end.set(Some(why));
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

    /// Everybody, with their places.
    pub fn all(&self) -> impl Iterator<Item = (usize, &Rc<Presence>)> {
        self.at.iter().enumerate().filter_map(|(place, presence)| Some((place, presence.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_begins_when_idleness_ends() {
        let at = Instant::from_millis;
        let presence = Presence::new(1, at(1));
        for (activity, now, since, left_idle) in [
            (Activity::Waiting, 10, 10, 10),
            (Activity::Active, 20, 20, 10),
            (Activity::InTransaction, 30, 30, 10),
            (Activity::Active, 40, 40, 10),
            (Activity::Idle, 50, 50, 10),
            (Activity::Active, 60, 60, 60),
        ] {
            presence.mark(activity, at(now));
            assert_eq!(presence.doing.get(), Doing { activity, since: at(since), left_idle: at(left_idle) });
        }
    }
}
