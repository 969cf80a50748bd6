//! The machines that decide: the manager's planner, the agent's own, and how a node rejoins. PURE.

pub mod agent;
pub mod rejoin;
pub mod timers;
pub mod waldump;
