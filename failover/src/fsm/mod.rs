//! The machines that decide: the manager's planner, the agent's own, and how a node rejoins. PURE.

pub mod action;
pub mod agent;
mod begin;
pub mod blocker;
pub mod candidate;
mod catch_up;
mod maintenance;
pub mod observe;
mod opening;
mod operate;
mod pause;
pub mod planner;
mod policy;
pub mod preference;
mod rearm;
mod recruit;
pub mod rejoin;
mod remove;
pub mod report;
mod round;
pub mod status;
pub mod stuck;
mod suspend;
mod switchover;
pub mod sync_set;
pub mod timers;
pub mod waldump;
