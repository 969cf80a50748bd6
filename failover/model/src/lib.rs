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
//! | `Choose` | `fsm/sync_set.rs` `sufficient`, `fsm/candidate.rs` `choose`, `fsm/recruit.rs` `send_choice` |
//! | `TakeOver`, `ChooseLeft` | `fsm/adopt.rs`: another manager goes on with a round in the same term |
//! | `Bring`, `CatchUp` | `fsm/catch_up.rs`, `agent/catch_up.rs` |
//! | `Promote`, `Promoted`, `Record` | `agent/promote.rs`, `fsm/opening.rs` `send_record` |
//! | `Follow`, `Start`, `StopSuperseded` | `fsm/agent.rs` `decide`, `fsm/rejoin.rs` `plan`, `agent/rejoin.rs` `follow_source` |
//! | `Open` | `fsm/opening.rs` `advance_opening`, `agent/lease.rs` `open` |
//! | `MadeLate` | `fsm/planner.rs` `settle_pending` |
//! | `Suspend`, `Relax`, `Note` | `fsm/suspend.rs`, `agent/relax.rs` |
//! | `OpenAlone` | `fsm/opening.rs` `suspension` |
//! | `Arm`, `Rearm` | `agent/arm.rs`, `fsm/rearm.rs` |
//! | `ChangeCopies`, `SetCopies`, `ChangedCopies` | `fsm/policy.rs`, `agent/arm.rs` |
//! | `LeaseEnds` | `agent/lease.rs` `enforce`; that it stops before etcd's lease ends is assumed |
//! | `ProxiesLeave` | `view/topology.rs` `Validity`, `fsm/opening.rs` `proxies_behind` |
//!
//! `tests/agrees.rs` compares the arithmetic with the code's. Where the two differ, the model allows more: a manager
//! chooses as soon as it may, an agent follows any term that it has not promised to leave, a rewind goes back to the
//! beginning. Of the joint change only that of k is modelled, not that of voters. Not modelled: cancelled waits and standbys under a
//! false name, which the proxy and the agent exclude; operators who allow loss; time.

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
        vec![State::first(self.scope.k)]
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
