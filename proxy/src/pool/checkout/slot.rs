//! Where a waiter is told what it gets, and when to look again.

use crate::session::server::Server;
use cluster::Instant;
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What a waiter gets.
pub enum Offer {
    /// A connection.
    Server(Server),
    /// Things may be otherwise now, as where there is a place for a new connection: check out again, and wait at the same
    /// place in the queue if there is none.
    TryAgain,
    /// There is a newer lag sample: a read may belong elsewhere now. Where it does not, go on waiting.
    Sampled,
}

/// Why a waiter is to look again; the later includes the former.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Look {
    /// It is not.
    #[default]
    No,
    /// There is a newer lag sample.
    Sample,
    /// Anything may be otherwise.
    Again,
}

/// A turn that is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Since when: those that began earlier are served earlier.
    pub since: Instant,
    /// When it is time to look again (see [`super::Pools::expire`]).
    pub until: Instant,
    /// It waits for a place for a new connection, too.
    pub for_room: bool,
    /// It is a read: lag samples concern it.
    pub reads: bool,
}

pub(super) struct Waiter {
    pub(super) turn: Turn,
    pub(super) slot: Rc<Slot>,
}

/// Where a waiter finds what it is given. Both ends are of one thread.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) offer: Cell<Option<Offer>>,
    /// It is to look again, and keeps its place meanwhile.
    look: Cell<Look>,
    waker: Cell<Option<Waker>>,
}

impl Slot {
    pub(super) fn give(&self, offer: Offer) {
        self.offer.set(Some(offer));
        self.wake();
    }

    pub(super) fn look_again(&self, why: Look) {
        self.look.set(self.look.get().max(why));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// What it is given; without that, that it is to look again.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Result<Offer, Look>> {
        if let Some(offer) = self.offer.take() {
            return Poll::Ready(Ok(offer));
        }
        match self.look.take() {
            Look::No => {
                self.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
            look => Poll::Ready(Err(look)),
        }
    }
}
