//! A model of the failover protocol, small enough to be explored completely within bounds (see [`Scope`]).
//!
//! It has etcd with transactions whose outcome may stay unknown, agents with promises on disk, PostgreSQL's timelines,
//! logs, waiting commits and what readers see of them, proxies that act on old views, crashes, late, repeated and lost
//! messages. Whoever is suspected, and when, is left open: any manager may begin a term at any time, so nothing here
//! rests on detection or on a single leader.
//!
//! It is written by hand after the code. What mirrors what:
//!
//! | step | code |
//! |---|---|
//! | `Begin` | `fsm/begin.rs` `send_begin`, `planner.rs` `last_tenure` |
//! | `Freeze`, `Recover` | `agent/freeze.rs` `freeze`, `agent/commands.rs` `recover`; answers in `round.rs` `round_answer` |
//! | `Choose` | `fsm/sync_set.rs` `sufficient`, `fsm/candidate.rs` `choose`, `fsm/recruit.rs` `beside`, `send_choice` |
//! | `TakeOver`, `ChooseLeft` | `fsm/adopt.rs`: another manager goes on with a round in the same term |
//! | `Bring`, `CatchUp` | `fsm/catch_up.rs`, `agent/catch_up.rs`; who connects ahead of the promotion catches up and then follows |
//! | `Promote`, `Promoted`, `Record` | `agent/promote.rs`, `fsm/opening.rs` `send_record` |
//! | `Follow`, `Start`, `StopSuperseded` | `fsm/agent.rs` `decide`, `fsm/rejoin.rs` `plan`, `agent/rejoin.rs` `follow_source` |
//! | `Open` | `fsm/opening.rs` `advance_opening`, `agent/lease.rs` `open` |
//! | `MadeLate`, `Unheard` | `fsm/planner.rs` `settle_pending` |
//! | `BackUp`, `Restore` | `fsm/begin.rs` `begin_above_the_promised`, `fsm/sync_set.rs` `sufficient_for_any`; that whoever knows of a later term is heard is assumed |
//! | `Suspend`, `Relax`, `Note` | `fsm/suspend.rs`, `agent/relax.rs` |
//! | `OpenAlone` | `fsm/opening.rs` `suspension` |
//! | `Arm`, `Rearm` | `agent/arm.rs`, `fsm/rearm.rs` |
//! | `Replace` | `fsm/policy.rs` `is_replaced_at_once`, `owed_to_the_voters` |
//! | `ChangeCopies`, `ChangeVoters`, `SetCopies`, `ChangedCopies` | `fsm/policy.rs`, `agent/arm.rs`, `fsm/rearm.rs` |
//! | `LeaseEnds` | `agent/lease.rs` `enforce`; that it stops before etcd's lease ends is assumed |
//! | `Sign`, `KeyEnds`, `SignaturesEnd` | `agent/countersign.rs`; that what is signed outlasts the primary's stop is assumed |
//! | `Vouch` | `agent/vouch.rs`; that a view ends no later than the lease it rests on is assumed |
//! | `ProxiesLeave` | `view/topology.rs` `Validity`, `fsm/opening.rs` `proxies_behind` |
//! | `Reconnect`, `Ended` | `fsm/slots.rs`, `agent/slots.rs`; that an agent whose standby is to stream through its slot knows the policy in force is assumed: who does not is ended, and doubted (`fsm/walsenders.rs`) |
//! | `Cancel` | `proxy/src/session/answers.rs`: a notice of `SyncRepWaitForLSN` is answered by 08007 |
//!
//! `tests/bounds/agrees.rs` compares the arithmetic with the code's. Where the two differ, the model allows more: a manager
//! chooses as soon as it may, an agent follows any term that it has not promised to leave, a rewind goes back to the
//! beginning, an order to catch up is obeyed late and again.
//!
//! What the protocol does, and where it is examined (the simulator is `failover/sim/tests/sim.rs`):
//!
//! | | model | simulator |
//! |---|---|---|
//! | terms, freeze, choice, promotion, opening, rejoin | yes | yes |
//! | a round continued by a new leader in the same term, the old one acting on | yes | yes |
//! | catching up among recruits | yes | yes |
//! | outcomes unknown, answers lost, orders late or repeated | yes | yes |
//! | suspension and its end, available mode, a term opened alone | yes | yes |
//! | k changed | yes, one change | yes |
//! | voters changed with k | yes: m = 3, 4, 3 with k = 1, 2, 1 | yes, in any order |
//! | voters changed while unprotected | one more or one less at a time, k as it was | yes, with k and beyond the limits |
//! | async mode by the lease; signatures and vouching without etcd | yes, without time | yes, with drifting clocks |
//! | etcd restored from a backup | once, to an open term | yes, to any, also an unfinished one |
//! | a standby connected twice, slots where k is 2 or more | yes, one connection left by each at a time | yes, with policies read late |
//! | cancelled waits | yes | no |
//! | a standby under a false name | what it would lose; the primary's agent ends it | no |
//! | nodes removed, and back | as voters only | yes |
//! | nodes cloned for the first time, adopted | no | no |
//! | `--allow-data-loss` | no: it breaks the properties knowingly | that what is lost is in the journal |
//! | commits below the mode (`allow_lower`) | no | no |
//! | switchover, fences, pause, budgets | no: a term may begin at any time | switchover |
//!
//! Two properties have exceptions. A commit whose wait was cancelled is seen by readers of the primary before a standby has
//! it, as in PostgreSQL itself, so it is not counted among what clients could read; its own client is promised nothing.
//! Commits of an unprotected time are promised nothing either.

mod agent;
pub mod check;
mod etcd;
pub mod manager;
mod postgres;
pub mod scope;
pub mod state;
mod step;
pub mod wal;

pub use scope::{Change, Protection, Scope};
use state::State;
use stateright::{Model, Property};
pub use step::Step;

/// The model of m = `M` nodes within a scope.
#[derive(Clone, Debug)]
pub struct Checked<const M: usize> {
    /// The bounds.
    pub scope: Scope,
    /// Check this property alone.
    pub only: Option<&'static str>,
}

impl<const M: usize> Checked<M> {
    /// Everything that must hold within `scope`.
    pub fn new(scope: Scope) -> Self {
        Self { scope, only: None }
    }
}

impl<const M: usize> Model for Checked<M> {
    type State = State<M>;
    type Action = Step;

    fn init_states(&self) -> Vec<State<M>> {
        let mut first = State::first(self.scope.k);
        if let Change::Voters(_) | Change::Replaced = self.scope.change {
            let all_but_one = ((1u16 << (M - 1)) - 1) as u8;
            (first.etcd.policy.voters, first.round.voters) = (all_but_one, all_but_one);
            first.nodes.iter_mut().for_each(|n| n.of = all_but_one);
        }
        let slot = postgres::wants_slots(&self.scope, &first);
        first.nodes.iter_mut().filter(|n| n.upstream != 0).for_each(|n| n.slot = slot);
        vec![first]
    }

    fn actions(&self, state: &State<M>, out: &mut Vec<Step>) {
        step::possible(&self.scope, state, out);
    }

    fn next_state(&self, before: &State<M>, step: Step) -> Option<State<M>> {
        let mut after = *before;
        step::perform(&self.scope, &mut after, step);
        let back = (0..M).any(|i| after.nodes[i].promise < before.nodes[i].promise);
        after.wrong |= if back { check::BROKEN } else { 0 };
        // What else goes wrong must not end the search for what is looked for.
        after.wrong &= self.only.map_or(u8::MAX, check::bit);
        if self.scope.symmetric {
            after = after.canonical();
        }
        (after != *before).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        check::properties(self)
    }
}
