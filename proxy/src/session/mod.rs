//! One client's session: what was said, what is owed, and what a lost server means for it.
//!
//! The decisions are in the PURE modules [`batch`], [`outcome`], [`relay`], [`state`], [`statements`] and
//! [`translate`]; [`client`], [`incoming`], [`sending`], [`answers`], [`login`], [`prove`], [`server`],
//! [`challenge`] and [`cancel`] do the IO around them.

pub mod account;
pub mod acquire;
mod answers;
mod assigned;
pub mod batch;
mod before_commit;
mod block;
pub mod cancel;
pub mod challenge;
pub mod client;
mod columns;
pub(crate) mod confirm;
mod drain;
mod draws;
mod durability;
mod durable;
pub(crate) mod encrypt;
mod entering;
mod follow;
pub mod greeting;
mod hinted;
mod in_force;
mod in_use;
mod incoming;
mod label;
pub mod login;
pub mod losses;
mod lost;
mod marks;
pub(crate) mod misroute;
pub mod outbox;
pub mod outcome;
mod outside;
pub mod peers;
pub mod portals;
pub mod presence;
mod promised;
mod proof;
mod prove;
mod proxied;
mod read_only;
pub mod recheck;
pub mod relay;
mod resolve;
mod said;
mod seen;
mod sending;
pub mod server;
mod sets_after;
pub mod settings;
mod shown;
pub mod slow;
pub mod state;
mod statement_timeout;
pub mod statements;
pub mod timers;
pub mod tracking;
pub mod translate;
mod tunnel;
mod turn;
mod waiting;
