//! What a session has written and read, as its answers tell: reads behind that must not miss it.

use crate::ledger::entry::hides_notices;
use crate::metrics::Outcome;
use crate::route::{self, Consistency, Reason, Shows};
use crate::session::batch::Unit;
use crate::session::client::Session;
use crate::session::incoming::Step;
use crate::sql::Access;
use crate::wire::backend::{self, TxStatus};
use cluster::lag::ServerStart;
use cluster::{Instant, NodeId, Role};
use std::time::Duration;

/// Why a statement waits at a server that the session has already, in metrics.
const UNCONFIRMED: &str = "unconfirmed";

/// How long a client that is warned of what it may miss has to reckon with that.
const UNTIL: &str = "The primary has waited in vain for standbys to confirm it. Until they do, or the session reads at a standby \
                     again, its statements go to the primary all the same.";

impl Session {
    /// May reads behind the unit at the head of the inbox, which is about to be sent, not go by what that shows? It is alone
    /// outside of any block, and all that it does is to set or to show settings of ours, or to prepare and to describe.
    pub(super) fn shows_nothing(&self, unit: &Unit) -> bool {
        let executes = unit.statements > 0 || !unit.complete || unit.tail_left > 0;
        (self.own || !executes) && self.relay.status == TxStatus::Idle && !self.relay.busy()
    }

    /// It is sent now. What is in flight with it, or in one block, counts as what shows the least of it.
    pub(super) fn note_shows(&mut self, unit: &Unit) {
        let nothing = self.shows_nothing(unit);
        if self.own {
            if nothing {
                self.shows = Shows::Nothing;
            }
            return;
        }
        let anew = !self.relay.busy() && (self.relay.status == TxStatus::Idle || self.fresh.is_some());
        if anew {
            // What is answered shows the history of this term, whatever has come of it by then.
            let view = self.w.view.borrow();
            self.asked_in = view.lag.shown(&view.topology);
        }
        let all = match self.promise_of_unit().consistency {
            Consistency::Session | Consistency::Global | Consistency::Strong => self.is_shown(),
            Consistency::Eventual | Consistency::Bounded => false,
        };
        self.shows = match (all, self.shows) {
            _ if nothing => Shows::Nothing,
            (true, Shows::Some) if !anew => Shows::Some,
            (true, _) => Shows::All,
            (false, _) => Shows::Some,
        };
    }

    /// Does the session's server show all that the session has read at standbys? One was chosen for that. The primary may have
    /// been taken without a look at it, as within a block, or by a statement that had waited long enough for that.
    fn is_shown(&mut self) -> bool {
        let primary = self.server.as_ref().is_some_and(|server| server.meta.role == Role::Primary);
        if !primary {
            return true;
        }
        if matches!(self.chosen, Some(Reason::Unconfirmed { .. })) {
            self.miss();
        }
        let view = self.w.view.borrow();
        self.causality.borrow_mut().is_shown_at_primary(&view.topology, &view.lag)
    }

    /// A statement goes to a primary that may not show what the session has read: its client is told so, once.
    fn miss(&mut self) {
        let now = self.w.now();
        let mut causality = self.causality.borrow_mut();
        causality.misses(self.w.view.borrow().topology.term);
        // Nothing can be said in the middle of a message: the next one that may miss it tells. Or nothing is to be said.
        let hidden = self.tracking.settings.get("client_min_messages").is_some_and(hides_notices);
        if hidden || self.relay.mid_frame() {
            return;
        }
        let Some((node, at)) = causality.take_untold() else { return };
        let at_node = node.map_or_else(|| "at standbys".to_owned(), |node| format!("at {node}"));
        let text = format!("what was read {at_node} {} ms before may be missing here", now.since(at).as_millis());
        self.to_client.append(|out| backend::write_warning(out, &text, UNTIL));
    }

    /// Must a statement outside of any block, or one that begins a block, wait before it goes to the primary that the session has,
    /// which may not show yet what was read at standbys? What was looked for just now does not, unless that was taken to prove its
    /// term by a commit, without a look at anything else.
    pub(super) fn must_be_shown(&mut self, unit: &Unit, now: Instant) -> bool {
        let looked = self.chosen.as_ref().is_some_and(|reason| !matches!(reason, Reason::Unproven { .. }));
        let looks = unit.statements > 0 && !self.own && !looked && self.fresh.is_none();
        looks && self.causality.borrow().has_seen() && self.unshown(now).is_some()
    }

    /// For how long a statement still waits for the session's primary to show what was read at standbys, and when that was.
    /// `None`: it does.
    pub(super) fn unshown(&mut self, now: Instant) -> Option<(Duration, Instant)> {
        let (promise, since) = (self.promise_of_unit(), self.waiting_since.unwrap_or(now));
        let view = self.w.view.borrow();
        route::shown(&promise, &self.causality.borrow(), &view.topology, &view.lag, (since, now)).err()
    }

    /// Is there a wait for that at all? Behind one that was in vain there is none.
    pub(super) fn waits_unshown(&mut self, now: Instant) -> bool {
        self.unshown(now).is_some_and(|(left, _)| !left.is_zero())
    }

    /// A statement that needs `access` waits for that, as long as one that has no server yet. `None`: it has.
    pub(super) fn hold_unshown(&mut self, access: Access, now: Instant) -> Option<Step> {
        let (left, since) = self.unshown(now)?;
        self.held_unshown = true;
        if left.is_zero() {
            // It is to prove its term all the same.
            self.doubted |= matches!(self.chosen, Some(Reason::Unproven { .. }));
            let reason = Reason::Unconfirmed { since };
            (self.reason, self.chosen) = (reason.as_str(), Some(reason));
            return self.tell_lost(false, now);
        }
        self.w.await_sample(&self.presence);
        Some(self.hold_for(access, left, now))
    }

    /// A statement goes to the server that the session has already: did it wait there? What has come of that is counted.
    pub(super) fn count_unshown(&mut self) -> bool {
        let waited = std::mem::take(&mut self.held_unshown);
        if waited {
            let vain = matches!(self.chosen, Some(Reason::Unconfirmed { .. }));
            self.w.counts.no_standby(if vain { Outcome::Primary } else { Outcome::Waited }, UNCONFIRMED);
        }
        waited
    }

    /// It ends otherwise: by an error, or its client is gone.
    pub(super) fn give_up_unshown(&mut self) {
        if std::mem::take(&mut self.held_unshown) {
            self.w.counts.no_standby(Outcome::Error, UNCONFIRMED);
        }
    }

    /// So many units were answered by `now`, and some of them ended a transaction. What that has written counts at once: what
    /// its client has sent behind it may have begun the next one already, in an answer that came with it.
    pub(super) fn note_answers(&mut self, (answered, ended): (usize, usize), now: Instant) {
        // A COMMIT AND CHAIN ends none.
        if answered > 0 {
            self.note_commits(now);
        }
        if ended > 0 && (self.wrote || self.saw) {
            self.causality.borrow_mut().answered(now, self.wrote, self.shows);
        }
        // Also within a block: however that ends, this was shown.
        let standby = self.server.as_ref().filter(|s| s.meta.role == Role::Standby);
        if let Some(server) = standby.filter(|_| answered > 0) {
            self.read_at(&server.meta.node, server.meta.started, now);
        }
    }

    /// A standby has answered in part, and is lost.
    pub(super) fn saw_at(&self, node: &NodeId, started: Option<ServerStart>) {
        self.read_at(node, started, self.w.now());
    }

    /// It showed what others may not show yet.
    fn read_at(&self, node: &NodeId, started: Option<ServerStart>, now: Instant) {
        let term = self.w.view.borrow().topology.term;
        self.causality.borrow_mut().read_at((node, started), (self.asked_in, term), now, self.shows);
    }

    /// The transaction is over without an answer that says so. `seen`: its client may have seen something of it. May it have
    /// written?
    pub(super) fn forget_transaction(&mut self, seen: bool) -> bool {
        let (wrote, saw) = (std::mem::take(&mut self.wrote), std::mem::take(&mut self.saw));
        if saw && seen && !wrote {
            self.causality.borrow_mut().saw(self.w.now(), self.shows);
        }
        wrote
    }
}
