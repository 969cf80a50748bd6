//! What a worker counts, and when it hands that over.

use super::Worker;
use crate::metrics::Totals;
use crate::session::account::{self, Taken};
use crate::session::presence::Activity;
use crate::session::server::Meta;
use cluster::per_term::Fate;
use cluster::topology::Gate;
use cluster::{Instant, NodeId, Role, Term};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often counters are handed over and idle connections looked at, while anything happens.
const TICK: Duration = Duration::from_millis(100);
/// How often while nothing does.
const QUIET_TICK: Duration = Duration::from_secs(1);
/// How long sessions that do nothing are not woken again to let go of what is out of date.
const LET_GO: Duration = Duration::from_secs(5);
/// How many are woken for that at a tick: who has something to do is served behind all of them.
const LET_GO_TOGETHER: usize = 256;

/// A round through all places, in which sessions are told to let go of tables of functions that are not the newest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LettingGo {
    /// How many tables had been renewed when it began, and when that was.
    renewed: u64,
    began: Instant,
    /// The place at which it goes on, while it is not over.
    next: Option<usize>,
}

impl LettingGo {
    /// Whose turn it is, of so many places, when `renewed` tables have been renewed.
    fn turn(&mut self, renewed: u64, places: usize, now: Instant) -> Range<usize> {
        if self.next.is_none() && renewed != self.renewed && now.since(self.began) >= LET_GO {
            *self = Self { renewed, began: now, next: Some(0) };
        }
        let Some(from) = self.next else { return 0..0 };
        let to = places.min(from + LET_GO_TOGETHER);
        self.next = Some(to).filter(|&to| to < places);
        from..to
    }
}

impl Worker {
    /// The node of that index.
    pub fn node_at(&self, index: usize) -> Option<NodeId> {
        self.outstanding.borrow().get(index).map(|(node, _)| node.clone())
    }

    /// A connection begins or ends to serve a session. The index of its node here.
    pub fn count_in_use(&self, meta: &Meta, begins: bool) -> usize {
        self.stir();
        let slot = &self.in_use[usize::from(meta.role == Role::Standby)];
        slot.set(if begins { slot.get() + 1 } else { slot.get() - 1 });
        let mut outstanding = self.outstanding.borrow_mut();
        let index = outstanding.iter().position(|(n, _)| *n == meta.node).unwrap_or_else(|| {
            outstanding.push((meta.node.clone(), 0));
            outstanding.len() - 1
        });
        let count = &mut outstanding[index].1;
        *count = if begins { *count + 1 } else { count.saturating_sub(1) };
        index
    }

    /// A request to cancel goes on its way. It counts until what this returns is dropped: the process does not end before,
    /// if that takes no time.
    pub(crate) fn begin_errand(self: &Rc<Self>) -> Errand {
        self.errands.set(self.errands.get() + 1);
        Errand(self.clone())
    }

    /// Is any on its way?
    pub(super) fn has_errands(&self) -> bool {
        self.errands.get() > 0
    }

    /// A server begins or ends to work for a session.
    pub fn count_working(&self, begins: bool) {
        self.working.count(begins);
    }

    /// Something happens that the next tick is to see.
    pub fn stir(&self) {
        if !self.stirred.replace(true) {
            self.stir.notify_one();
        }
    }

    /// Returns when it is time for the tick after the one at `last`.
    pub(super) async fn time_to_tick(&self, last: Instant) {
        let quiet = tokio::time::sleep(QUIET_TICK.saturating_sub(self.now().since(last)));
        let stirred = async {
            while !self.stirred.get() {
                self.stir.notified().await;
            }
            tokio::time::sleep(TICK.saturating_sub(self.now().since(last))).await;
        };
        tokio::select! {
            () = quiet => {}
            () = stirred => {}
        }
    }

    /// A session becomes busy on a server of that role, or ceases to be.
    pub fn count_busy(&self, role: Role, begins: bool) {
        let board = &self.shared.boards[self.index];
        let (count, shown) = match role {
            Role::Primary => (&self.busy, &board.busy),
            Role::Standby => (&self.reading, &board.reading),
        };
        count.set(if begins { count.get() + 1 } else { count.get() - 1 });
        shown.store(count.get(), Ordering::SeqCst);
        if role == Role::Standby {
            return;
        }
        if !begins && self.view.borrow().topology.gate != Gate::Open {
            self.shared.applied.notify_one();
        }
    }

    /// A session begins or ends to look for the outcome of its COMMIT.
    pub fn count_resolving(&self, begins: bool) {
        let count = &self.shared.boards[self.index].resolving;
        if begins {
            count.fetch_add(1, Ordering::SeqCst);
        } else {
            count.fetch_sub(1, Ordering::SeqCst);
            self.shared.applied.notify_one();
        }
    }

    /// A commit of `term` was acknowledged with less durability than the cluster's mode. Rare: it was asked for.
    pub fn count_below_mode(&self, term: Term, commits: u32) {
        let board = &self.shared.boards[self.index];
        board.below_mode.lock().unwrap_or_else(PoisonError::into_inner).add(term, u64::from(commits));
        self.shared.metrics.below_mode.inc_by(u64::from(commits));
    }

    /// A write that a server of `term` has not answered met this fate. Rare: the server was lost.
    pub fn count_doubt(&self, term: Term, fate: Fate) {
        let board = &self.shared.boards[self.index];
        board.doubts.lock().unwrap_or_else(PoisonError::into_inner).add(term, fate.into());
        self.shared.applied.notify_one();
    }

    /// A statement begins or ends to wait.
    pub fn count_held(&self, begins: bool) {
        self.stir();
        self.held.set(if begins { self.held.get() + 1 } else { self.held.get() - 1 });
    }

    /// Add up what prepared statements take. While it is too much, clients of users who have more than a share may keep less.
    fn sum_statements(&self) -> u64 {
        let (boards, configured) = (&self.shared.boards, self.config.borrow().statement_bytes());
        let here = self.kept.get() + self.texts.borrow().bytes();
        boards[self.index].statements.store(here, Ordering::Relaxed);
        let all: usize = boards.iter().map(|board| board.statements.load(Ordering::Relaxed)).sum();
        let crowded = account::is_crowded(all, configured);
        let was = self.crowded.replace(crowded);
        if crowded || was {
            let mut accounts = self.accounts.borrow_mut();
            *lock(&boards[self.index].taken) = if crowded { accounts.taken() } else { BTreeMap::new() };
            let taken = if crowded { self.taken() } else { BTreeMap::new() };
            accounts.limit(&account::limits(&taken, configured));
            if !was && let Some((user, largest)) = account::largest(&taken) {
                tracing::warn!(
                    worker = self.index,
                    bytes = all,
                    user = &*user,
                    user_bytes = largest.bytes,
                    user_clients = largest.clients,
                    "prepared statements take too much, clients of users with more than a share get fewer"
                );
            }
        }
        here as u64
    }

    /// Whose statements take how much, at all workers that have said so.
    fn taken(&self) -> BTreeMap<Arc<str>, Taken> {
        let mut taken = BTreeMap::<Arc<str>, Taken>::new();
        for board in &self.shared.boards {
            for (user, here) in &*lock(&board.taken) {
                let all = taken.entry(user.clone()).or_default();
                *all = Taken { bytes: all.bytes + here.bytes, clients: all.clients + here.clients };
            }
        }
        taken
    }

    /// Have sessions that do nothing let go of tables of functions that are not the newest.
    fn let_go(&self, now: Instant) {
        let (mut round, places) = (self.letting_go.get(), self.places.borrow());
        for presence in round.turn(self.shared.catalogs.renewed(), places.room(), now).filter_map(|at| places.at(at)) {
            presence.outdated.set(true);
            // The others look when they have nothing more to do.
            if presence.doing.get().activity == Activity::Idle {
                presence.wake();
            }
        }
        self.letting_go.set(round);
        if round.next.is_some() {
            self.stir();
        }
    }

    pub(super) fn tick(&self) {
        self.stirred.set(false);
        let statement_bytes = self.sum_statements();
        self.schedule();
        self.counts.flush();
        self.let_go(self.now());
        self.tallies.turn(self.now());
        if !self.misroutes.borrow().is_empty() {
            self.misroutes.borrow_mut().expire(self.now());
        }
        let mut totals = Totals {
            sessions: self.shared.boards[self.index].sessions.load(Ordering::Relaxed) as u64,
            held: self.held.get(),
            busy: self.busy.get(),
            primary_in_use: self.in_use[0].get(),
            standby_in_use: self.in_use[1].get(),
            refused_shapes: self.misroutes.borrow().len() as u64,
            statement_bytes,
            ..Totals::default()
        };
        let view = self.view.borrow();
        for pool in self.pools.all() {
            let primary = view.topology.primary.as_ref().is_some_and(|p| p.node == pool.key.node);
            *(if primary { &mut totals.primary_idle } else { &mut totals.standby_idle }) += pool.idle() as u64;
        }
        drop(view);
        let board = &self.shared.boards[self.index];
        let old = std::mem::replace(&mut *board.totals.lock().unwrap_or_else(PoisonError::into_inner), totals);
        if old != totals {
            self.shared.applied.notify_one();
        }
    }
}

/// A request to cancel that is on its way.
pub(crate) struct Errand(Rc<Worker>);

impl Drop for Errand {
    fn drop(&mut self) {
        self.0.errands.set(self.0.errands.get() - 1);
        if !self.0.has_errands() {
            self.0.shared.left.notify_waiters();
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_let_go_of_what_is_out_of_date_a_part_of_them_at_a_tick() {
        let mut round = LettingGo::default();
        let mut turn = |renewed, ms| round.turn(renewed, 600, Instant::from_millis(ms));
        assert!(turn(0, 10_000).is_empty(), "nothing is out of date");
        // What is renewed meanwhile is for the next round, as a session that was told already may have taken the one before.
        assert_eq!([turn(1, 10_100), turn(2, 10_200), turn(2, 10_300)], [0..256, 256..512, 512..600]);
        assert!([10_400, 15_000].into_iter().all(|ms| turn(2, ms).is_empty()), "it is too soon");
        assert_eq!([turn(2, 15_100), turn(2, 15_200), turn(2, 30_000)], [0..256, 256..512, 512..600]);
        assert!(turn(2, 60_000).is_empty());
    }
}
