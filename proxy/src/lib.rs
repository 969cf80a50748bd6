//! The PostgreSQL wire proxy of pgtenure: it speaks the protocol to clients and servers, routes statements to the
//! primary or a standby, and keeps client connections alive when a server dies.

pub mod auth;
pub mod catalog;
pub mod config;
pub mod console;
mod control;
mod elder;
pub mod explain;
pub mod http;
pub mod inherit;
pub mod ledger;
mod listener;
mod local;
pub mod metrics;
pub mod net;
pub mod placing;
pub mod pool;
pub mod reach;
pub mod resolve;
pub mod route;
pub mod session;
pub mod silence;
pub mod sql;
mod sums;
pub mod tls;
pub mod wire;
pub mod worker;

pub use auth::cancel_keys::Secret as CancelSecret;
pub use control::{CancelKey, Control, PassedCancel, PassedOrder, ProcessOrder, Refused, Reloaded, Wait};
pub use elder::{Obeying, Passed};
pub use listener::{AskSample, Handle, Inputs, StartError, start, take_over};
