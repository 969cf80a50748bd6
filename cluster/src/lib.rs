//! The words every part of pgtenure shares: log positions, terms, nodes, leases, lag.
//!
//! Everything here is a value or a pure function, except [`clock`], which is the only place in the project that
//! reads the boot-time clock. No crate of ours is imported from here.

pub mod clock;
pub mod config;
pub mod crowd;
pub mod demand;
pub mod keys;
pub mod lag;
pub mod lease;
pub mod lsn;
pub mod node;
pub mod per_term;
pub mod secret;
pub mod sessions;
pub mod sync_names;
pub mod term;
pub mod timeline;
pub mod topology;

pub use clock::{Clock, Instant};
pub use lsn::Lsn;
pub use node::{Endpoint, NodeId, Role};
pub use term::Term;
pub use timeline::TimelineId;
