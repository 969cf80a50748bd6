//! What the admin port shows of the proxy.

use crate::metrics::Totals;
use cluster::{NodeId, Term};
use serde::Serialize;
use std::net::SocketAddr;

/// The proxy as `/status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Where clients connect.
    pub listen: Vec<SocketAddr>,
    /// The newest term known.
    pub term: Term,
    /// May writes be sent: `open`, `draining`, or why not.
    pub gate: &'static str,
    /// The primary of that term, if known.
    pub primary: Option<NodeId>,
    /// Clients connected.
    pub clients: usize,
    /// Bytes of statements that are held.
    pub held_bytes: u64,
    /// Sums over all workers.
    pub totals: Totals,
    /// Each worker.
    pub workers: Vec<WorkerStatus>,
}

/// One worker.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerStatus {
    /// The term it acts on.
    pub term: Term,
    /// The gate it has applied.
    pub gate: &'static str,
    /// Its gauges.
    #[serde(flatten)]
    pub totals: Totals,
}
