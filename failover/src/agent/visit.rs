//! Connections to the agent's HTTP server: how many, and for how long.
//!
//! The port is open to every proxy's host, so whoever has not shown the cluster's secret gets one answer and little time,
//! and must not be able to keep managers out however many come: see [`Crowd`]. A failover's orders arrive on new connections.

use cluster::crowd::Crowd;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Most connections that have not shown the secret yet.
const STRANGERS: usize = 256;
/// How long one of them may last.
const STRANGER_BOUND: Duration = Duration::from_secs(5);
/// Most connections that have shown it and are kept; managers and agents have a few each.
const KNOWN: usize = 128;

/// All of a server's.
pub(super) struct Visits {
    strangers: Arc<Mutex<Crowd<Arc<Notify>>>>,
    known: Arc<Semaphore>,
}

impl Default for Visits {
    fn default() -> Self {
        Self { strangers: Arc::new(Mutex::new(Crowd::new(STRANGERS))), known: Arc::new(Semaphore::new(KNOWN)) }
    }
}

/// One connection.
pub(super) struct Visit {
    strangers: Arc<Mutex<Crowd<Arc<Notify>>>>,
    known: Arc<Semaphore>,
    number: u64,
    asked_to_leave: Arc<Notify>,
    stays: OnceLock<OwnedSemaphorePermit>,
}

impl Visits {
    /// A connection was accepted; another one may be asked to leave for it.
    pub(super) fn enter(&self, from: IpAddr) -> Visit {
        let asked_to_leave = Arc::new(Notify::new());
        let (number, out) = lock(&self.strangers).enter(from, Arc::clone(&asked_to_leave));
        if let Some(out) = out {
            out.notify_one();
        }
        let (strangers, known) = (Arc::clone(&self.strangers), Arc::clone(&self.known));
        Visit { strangers, known, number, asked_to_leave, stays: OnceLock::new() }
    }
}

impl Visit {
    /// It has shown the secret: from here on it is not asked to leave. False when too many stay already.
    pub(super) fn stay(&self) -> bool {
        if self.stays.get().is_some() {
            return true;
        }
        let Ok(place) = Arc::clone(&self.known).try_acquire_owned() else { return false };
        lock(&self.strangers).leave(self.number);
        // Requests of one connection come one after the other, so nobody else has set it.
        self.stays.set(place).is_ok()
    }

    /// Ends when the connection must end, which one that stays never must.
    pub(super) async fn overstayed(&self) {
        // Too long is one reason, somebody else's turn the other.
        let _ = tokio::time::timeout(STRANGER_BOUND, self.asked_to_leave.notified()).await;
        if self.stays.get().is_some() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        lock(&self.strangers).leave(self.number);
    }
}

fn lock<T>(crowd: &Mutex<Crowd<T>>) -> std::sync::MutexGuard<'_, Crowd<T>> {
    crowd.lock().expect("nobody panics while holding it")
}
