//! The PostgreSQL wire proxy of pgtenure: it speaks the protocol to clients and servers, routes statements to the
//! primary or a standby, and keeps client connections alive when a server dies.

pub mod auth;
pub mod catalog;
pub mod config;
pub mod route;
pub mod sql;
pub mod wire;
