//! The machines that decide: the manager's planner, the agent's own, and how a node rejoins. PURE.

pub mod action;
pub mod agent;
pub mod blocker;
pub mod candidate;
pub mod observe;
mod operate;
pub mod planner;
mod rearm;
pub mod rejoin;
pub mod report;
mod round;
pub mod status;
mod switchover;
pub mod sync_set;
pub mod timers;
pub mod waldump;
