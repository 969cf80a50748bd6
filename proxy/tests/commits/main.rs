//! Commits: what they wait for, what of a wait may be broken off, and what is told of those whose server is lost, against
//! real servers.

mod cancel_commit;
#[path = "../common/mod.rs"]
mod common;
mod durability;
mod failover;
mod lost_write;
mod resolved;
mod throttle;
