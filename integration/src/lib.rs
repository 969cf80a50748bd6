//! The harness of the end-to-end tests: the `pgtenure` binary as processes, real PostgreSQL, real etcd, faults.
//!
//! Nothing here knows how the product works inside: it is driven by its configuration file, its endpoint, its admin
//! port and its command line, as an operator would.

pub mod client;
pub mod cluster;
pub mod config_file;
pub mod etcd;
pub mod fault;
pub mod history;
pub mod http;
pub mod nemesis;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod scratch;
mod segment;
mod server;
pub mod source;
pub mod staleness;
pub mod tap;
mod template;
pub mod wait;
pub mod workload;
