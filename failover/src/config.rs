//! Configuration of this crate: `[cluster]` is common to managers and agents, `[agent]` and `[bootstrap]` are the
//! agent's, `[manager]` the manager's.
//!
//! Raw structs hold what was typed; `check` turns them into the checked ones that everything else uses, and names both
//! keys when a relation is broken. Files are read elsewhere.

pub mod agent;
pub mod cluster;
pub mod etcd;
pub mod manager;
pub mod watchdog;
