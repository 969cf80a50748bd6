//! What a worker counts, and when it hands that over.

use super::Worker;
use crate::metrics::Totals;
use crate::session::server::Meta;
use cluster::per_term::Fate;
use cluster::topology::Gate;
use cluster::{Instant, NodeId, Role, Term};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often counters are handed over and idle connections looked at, while anything happens.
const TICK: Duration = Duration::from_millis(100);
/// Prepared statements of all clients together may take so many times what those of one may,
const ALL_STATEMENTS: usize = 32;
/// and beyond that each client's this part of it.
const CROWDED: usize = 16;
/// How often while nothing does.
const QUIET_TICK: Duration = Duration::from_secs(1);

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

    /// What prepared statements of a client may take, bytes. While those of all take too much, who has few goes on.
    pub fn statement_bytes(&self) -> usize {
        let most = usize::try_from(self.config.borrow().prepared_statement_bytes).unwrap_or(usize::MAX);
        if self.crowded.get() { most / CROWDED } else { most }
    }

    fn sum_statements(&self) {
        let boards = &self.shared.boards;
        boards[self.index].statements.store(self.kept.get() + self.texts.borrow().bytes(), Ordering::Relaxed);
        let all: usize = boards.iter().map(|board| board.statements.load(Ordering::Relaxed)).sum();
        let most = usize::try_from(self.config.borrow().prepared_statement_bytes).unwrap_or(usize::MAX);
        let crowded = all > most.saturating_mul(ALL_STATEMENTS);
        if self.crowded.replace(crowded) != crowded && crowded {
            tracing::warn!(
                worker = self.index,
                bytes = all,
                "prepared statements take too much, clients with many get no more"
            );
        }
    }

    pub(super) fn tick(&self) {
        self.stirred.set(false);
        self.sum_statements();
        self.schedule();
        self.counts.flush();
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
