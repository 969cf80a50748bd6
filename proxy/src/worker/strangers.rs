//! Clients that have not proven yet who they are. They hold a socket each and nothing else, and anybody can open more of
//! them than there is room for: so when the last place is taken, the one that has been here longest makes room, of those that have
//! not said yet who they are if there are any. Who logs in takes a few round trips, and is that one only where all places were
//! taken anew in that time by others who have said as much.

use crate::worker::{Shared, ToWorker, Worker};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use tokio::task::AbortHandle;

/// Those of one worker: first who has not said who it is, each in the order in which they came.
#[derive(Default)]
pub struct Strangers {
    tasks: RefCell<BTreeMap<(bool, u64), AbortHandle>>,
    next: Cell<u64>,
}

/// A client's being one; dropped when it has proven who it is, or is gone.
pub struct Stranger {
    worker: Rc<Worker>,
    id: u64,
    /// It has said who it is.
    named: Cell<bool>,
}

impl Stranger {
    /// A client has come.
    pub(super) fn enter(worker: &Rc<Worker>) -> Self {
        let id = worker.strangers.next.get();
        worker.strangers.next.set(id + 1);
        worker.shared.boards[worker.index].strangers.fetch_add(1, Ordering::Relaxed);
        Self { worker: worker.clone(), id, named: Cell::new(false) }
    }

    /// It has said who it is, and is to prove it.
    pub fn name_itself(&self) {
        let mut tasks = self.worker.strangers.tasks.borrow_mut();
        if let Some(task) = tasks.remove(&(self.named.replace(true), self.id)) {
            tasks.insert((true, self.id), task);
        }
    }

    /// Its number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let task = self.worker.strangers.tasks.borrow_mut().remove(&(self.named.get(), self.id));
        // Who made room is not counted any more.
        if task.is_some() {
            self.worker.shared.boards[self.worker.index].strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Worker {
    /// The task that serves the client of that number.
    pub(super) fn keep_stranger(&self, id: u64, task: AbortHandle) {
        self.strangers.tasks.borrow_mut().insert((false, id), task);
    }

    /// The one that has been here longest goes. Nothing is said to it, which has said nothing that counts.
    pub(super) fn dismiss_stranger(&self) {
        let first = self.strangers.tasks.borrow_mut().pop_first();
        if let Some((_, task)) = first {
            self.shared.boards[self.index].strangers.fetch_sub(1, Ordering::Relaxed);
            self.counts.login("too_many");
            task.abort();
        }
    }

    /// Every place is taken: a client that has not proven who it is makes room for one that has just come. False when
    /// there is none.
    pub(super) fn make_room(&self) -> bool {
        let count = |of: &usize| self.shared.boards[*of].strangers.load(Ordering::Relaxed);
        let Some(most) = (0..self.shared.boards.len()).max_by_key(count).filter(|of| count(of) > 0) else {
            return false;
        };
        if most == self.index {
            self.dismiss_stranger();
            return true;
        }
        self.shared.peers[most].try_send(ToWorker::MakeRoom).is_ok()
    }
}

impl Shared {
    /// Clients of all workers that have not proven yet who they are.
    pub fn strangers(&self) -> usize {
        self.boards.iter().map(|board| board.strangers.load(Ordering::Relaxed)).sum()
    }
}
