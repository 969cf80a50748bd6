//! Bringing the node that one would like as primary to where the most advanced recruit ends. PURE.
//!
//! Both are frozen for the term: the one receives what the other has and nothing else, so nothing that a quorum has proven
//! changes. It is tried once in a round, for a bounded time; when it does not work out the most advanced is chosen
//! (tried again where that one is never promoted by itself).

use crate::api::{CatchUp, Frozen, Position};
use crate::fsm::action::{Action, Command};
use crate::fsm::blocker::Verdict;
use crate::fsm::candidate::{choose, rather};
use crate::fsm::observe::millis;
use crate::fsm::planner::Planner;
use crate::fsm::recruit::wishes;
use crate::fsm::report::observed;
use crate::fsm::round::{Round, send};
use cluster::{Instant, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long it may take: the limit in bytes is a fraction of that on any network that replicates.
const BOUND: Duration = Duration::from_secs(1);

/// A recruit that receives from another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CatchingUp {
    node: NodeId,
    from: NodeId,
    to: Position,
    since: Instant,
    over: bool,
}

impl Planner {
    /// Is a recruit being brought to the end of another? Begins it where that gives a primary that is liked better.
    pub(super) fn catches_up(
        &mut self,
        now: Instant,
        round: &mut Round,
        usable: &BTreeMap<NodeId, Frozen>,
        out: &mut Vec<Action>,
    ) -> bool {
        if round.catching_up.is_none() {
            round.catching_up = self.to_catch_up(now, round, usable);
            if let Some(c) = &round.catching_up
                && let Some(member) = self.seen.records.members.get(&c.from)
            {
                let (from, endpoint, to) = (c.from.clone(), member.postgres.clone(), c.to);
                let order = CatchUp { term: round.term, from, endpoint, to, deadline_ms: millis(BOUND) };
                send(out, &c.node, Command::CatchUp(order), BOUND);
                observed(
                    &mut round.journal,
                    format!("{} received from {} what it lacked up to {}", c.node, c.from, to.lsn),
                );
            }
        }
        let Some(c) = round.catching_up.as_mut().filter(|c| !c.over) else { return false };
        // Its answer is due by then; without one the most advanced will do.
        c.over = now.since(c.since) >= BOUND * 2;
        let step = format!("{} receives from {} up to {}", c.node, c.from, c.to.lsn);
        self.verdict = Verdict::Acting { term: round.term, step };
        !c.over
    }

    fn to_catch_up(&self, now: Instant, round: &Round, usable: &BTreeMap<NodeId, Frozen>) -> Option<CatchingUp> {
        // A switchover's target has its own rule, who comes home is complete, and losses allowed need no help.
        if round.begin.end.is_some() || round.begin.home.is_some() || round.begin.allow_loss {
            return None;
        }
        let preferences = self.preferences(round.prev.as_ref().map(|p| &p.node));
        let wishes = wishes(round, &preferences);
        let choice = choose(usable, &wishes)?;
        let node = rather(usable, &wishes, &choice, self.settings.max_switchover_lag)?;
        let runs = |n: &NodeId| !round.needs_recovery(n);
        let known = self.seen.records.members.contains_key(&choice.node);
        let (from, to) = (choice.node, choice.base);
        (runs(&node) && runs(&from) && known).then_some(CatchingUp { node, from, to, since: now, over: false })
    }
}

impl Round {
    /// Nobody else can be chosen: it is tried again now and then.
    pub(super) fn forget_catching_up(&mut self, now: Instant, pause: Duration) {
        self.catching_up.take_if(|c| now.since(c.since) >= pause);
    }

    /// The recruit has answered where it ends now, or that it could not.
    pub(super) fn caught_up(&mut self, node: &NodeId) {
        if let Some(c) = self.catching_up.as_mut().filter(|c| c.node == *node) {
            c.over = true;
        }
    }
}
