//! The machines that decide: the manager's planner, the agent's own, and how a node rejoins. PURE.

pub mod timers;
