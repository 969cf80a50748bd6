//! One client's session: what was said, what is owed, and what a lost server means for it.
//!
//! The decisions are in the PURE modules [`batch`], [`outcome`], [`relay`], [`state`], [`statements`] and
//! [`translate`]; [`client`], [`login`], [`server`] and [`cancel`] do the IO around them.

pub mod acquire;
pub mod batch;
pub mod cancel;
pub mod client;
mod durability;
pub mod login;
mod lost;
pub mod outbox;
pub mod outcome;
pub mod relay;
pub mod server;
pub mod state;
pub mod statements;
pub mod translate;
