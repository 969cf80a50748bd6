//! The PURE modules of `failover`, from its own files: alone they are soon compiled, so that they can be optimised for the
//! tests, which all of `failover` is too large for. Unoptimised the simulator takes several times as long.

// Their own tests are among those of `failover`.
#![cfg(not(test))]
#![allow(dead_code, unreachable_pub, reason = "what only the rest of failover uses")]

#[path = "../../src/api.rs"]
pub mod api;
#[path = "../../src/fsm/mod.rs"]
pub mod fsm;
#[path = "../../src/record/mod.rs"]
pub mod record;

/// What is PURE of it.
#[path = "../../src/view"]
pub mod view {
    pub mod topology;
}
