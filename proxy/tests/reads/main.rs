//! Reads: where they go, what they are promised there, and what keeps them from it, against real primaries and standbys.

#[path = "../common/mod.rs"]
mod common;
mod conflicts;
mod positions;
mod promise;
mod read_only;
mod restarted;
mod routes;
mod seen;
mod strong;
mod transactions;
