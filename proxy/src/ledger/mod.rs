//! What became of a COMMIT whose server was lost before it answered. Pure.
//!
//! Just before a COMMIT the server is asked for the transaction's id and for the end of its WAL, in the same write. Where the
//! answer came, the terms that followed may tell the outcome: a transaction that they do not hold is lost, and of one that
//! they may hold the new primary knows. That an id is asked about where it cannot have been given to another transaction
//! is the point of it all: a new primary numbers its transactions on from where it was promoted.

pub mod entry;
pub mod verdict;
pub mod window;

pub use entry::Mark;
pub use verdict::{Status, Verdict, Why};
pub use window::{Descent, Since};
