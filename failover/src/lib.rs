//! Failover: agents beside each PostgreSQL, managers that hold an etcd lease, and the view of the cluster for proxies.
//!
//! Decisions are in `fsm`, `record` and `api` (PURE); `manager`, `agent`, `store` and `view` do the IO around them.

pub mod adopt;
pub mod agent;
mod apart;
pub mod api;
pub mod config;
pub mod fsm;
pub mod http;
pub mod manager;
pub mod metrics;
pub mod rebuild;
pub mod record;
pub mod store;
pub mod view;
