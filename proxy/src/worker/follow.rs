//! A worker takes over newer views of the cluster and newer samples, and tells those who wait for them.

use super::{Applied, Worker};
use crate::net::round;
use crate::pool::health;
use crate::route::{self, Promise, Unproven};
use crate::session::presence::Presence;
use crate::sql::Access;
use cluster::lag::LagSnapshot;
use cluster::topology::Topology;
use cluster::{Instant, Term};
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Between two questions for one proof, once it has not come at once.
const ASK_AGAIN: Duration = Duration::from_millis(50);

impl Worker {
    pub(super) fn apply_topology(&self, topology: Topology) {
        // What was sent under the older view.
        round::send();
        let applied =
            Applied { term: topology.term, epoch: topology.epoch, revision: topology.revision, gate: topology.gate };
        let renewed;
        {
            let mut view = self.view.borrow_mut();
            // What had ended opens again: that is a change.
            let ended = view.topology.gate_at(self.now()) != view.topology.gate;
            renewed = !ended && view.topology.is_renewed_by(&topology);
            if !view.topology.merge(topology) {
                return;
            }
            // Names are cloned at every statement: their counts must not be shared with other workers.
            let view = &mut *view;
            view.lag.follow(&view.topology);
            for member in view.topology.primary.iter_mut().chain(&mut view.topology.standbys) {
                member.node = member.node.unshared();
            }
        }
        if renewed {
            // Nobody has to do anything else than before, least of all who waits for a connection.
            self.tell_the_unproven();
        } else {
            self.generation.set(self.generation.get() + 1);
            self.throttle();
            self.stir();
            // What could not be reached may be now.
            self.backoffs.borrow_mut().clear();
            self.full.borrow_mut().clear();
            health::apply_topology(&self.pools, &self.view.borrow().topology);
        }
        // From here on nothing is sent under the older view: every sender looks at this one first.
        let board = &self.shared.boards[self.index];
        *board.applied.lock().unwrap_or_else(PoisonError::into_inner) = applied;
        self.shared.applied.notify_one();
        if renewed {
            self.changed.notify_waiters();
        } else {
            self.each_session(Presence::wake);
            self.tell_change();
        }
    }

    pub(super) fn apply_lag(&self, lag: Arc<LagSnapshot>) {
        let config = self.config();
        let now = self.now();
        let mut view = self.view.borrow_mut();
        self.footings.borrow_mut().observe(
            &lag,
            |node| config.nodes.favour(node, view.topology.member(node)),
            (config.max_replay_lag, config.reads.slow_start.0),
            now,
        );
        view.lag.update(lag);
        drop(view);
        self.throttle();
        self.tell_the_unproven();
        self.changed.notify_waiters();
        self.pools.sampled();
    }

    /// May a statement that came at `since` go to the primary which its session has, as far as that is proven to be it?
    ///
    /// # Errors
    /// Not yet. `who` asks is woken when that may have changed.
    pub fn proven(
        &self,
        who: &Rc<Presence>,
        promise: &Promise,
        access: Access,
        since: Instant,
    ) -> Result<(), Unproven> {
        let now = self.now();
        let view = self.view.borrow();
        let proven = route::proven(promise, access, &view.topology, &view.lag, (since, now));
        if proven.is_err() {
            if !who.unproven.replace(true) {
                self.unproven.borrow_mut().push(who.clone());
            }
            self.ask_proof(since, now);
        }
        proven
    }

    /// The same as of now, for whom something else will wake: nobody is asked.
    pub fn is_proven(&self, promise: &Promise, access: Access, since: Instant) -> bool {
        let view = self.view.borrow();
        route::proven(promise, access, &view.topology, &view.lag, (since, self.now())).is_ok()
    }

    /// `who` waits for a newer sample, which is asked for.
    pub fn await_sample(&self, who: &Rc<Presence>) {
        if !who.unproven.replace(true) {
            self.unproven.borrow_mut().push(who.clone());
        }
        self.ask_sample();
    }

    /// A statement that came at `since` waits for a proof that the term is not over: the nodes are asked for one, and
    /// where they give none etcd. At once; with pauses when it has waited for longer, as what is cut off does not answer
    /// the more for being asked.
    pub fn ask_proof(&self, since: Instant, now: Instant) {
        if now.since(since) >= route::ASK_FOR_PROOF && now.since(self.proof_asked.get()) < ASK_AGAIN {
            return;
        }
        self.proof_asked.set(now);
        self.ask_sample();
        let view = self.view.borrow();
        if let Some(ask) = &self.shared.ask_view
            && route::only_etcd_proves(&view.topology, &view.lag, now)
        {
            ask();
        }
    }

    /// After what time a commit may prove the term for a statement that waits for a proof. `None`: not as things are.
    pub fn commit_proves_in(&self, now: Instant) -> Option<Duration> {
        let view = self.view.borrow();
        route::commit_proves_in(&view.topology, &view.lag, now)
    }

    /// A commit that was sent in `term` at that time was confirmed: that is proven for others, too.
    pub fn committed(&self, term: Term, sent_at: Instant) {
        self.view.borrow_mut().lag.committed(term, sent_at);
    }

    /// Nobody else looks at what has changed.
    fn tell_the_unproven(&self) {
        for presence in self.unproven.take() {
            presence.unproven.set(false);
            presence.look_again();
        }
    }
}
