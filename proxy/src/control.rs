//! Changing a running proxy from outside, and what the proxy asks of the process it runs in.

use crate::config::{Config, reload};
pub use crate::console::command::Wait;
use crate::worker::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{oneshot, watch};

/// Orders on their way to the process; more are refused.
pub(crate) const ORDERS: usize = 16;

/// What an operator at the console asks of the whole process.
#[derive(Debug)]
pub enum ProcessOrder {
    /// Read the configuration file again; the answer goes here.
    Reload(oneshot::Sender<Result<Reloaded, Refused>>),
    /// Stop the process; the answer comes before it stops.
    Shutdown {
        /// What is waited for.
        wait: Wait,
        /// Agreed to, or why not.
        answer: oneshot::Sender<Result<(), Refused>>,
    },
}

/// A configuration that took effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reloaded {
    /// Keys that changed and are in force.
    pub applied: Vec<String>,
    /// Keys that changed and take effect at the next start only.
    pub needs_restart: Vec<String>,
}

/// Nothing was changed, for these reasons.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Refused(pub Vec<String>);

/// A hold on a running proxy.
#[derive(Clone)]
pub struct Control {
    pub(crate) shared: Arc<Shared>,
    pub(crate) accepting: watch::Sender<bool>,
}

impl Control {
    /// Put a checked configuration in force; keys that need a restart keep their running values. Blocks while files
    /// that it names are read.
    ///
    /// # Errors
    /// What it names cannot be used. Nothing is changed then.
    pub fn reload(&self, new: Config) -> Result<(), Refused> {
        self.shared.config.send_modify(|config| *config = Arc::new(reload::applied(config, new)));
        Ok(())
    }

    /// Accept no more clients; those that are here stay.
    pub fn stop_accepting(&self) {
        self.accepting.send_replace(false);
    }

    /// Clients connected.
    pub fn clients(&self) -> usize {
        self.shared.clients.load(Ordering::SeqCst)
    }

    /// Ends when no client is left. Cancel-safe.
    pub async fn left(&self) {
        loop {
            let mut changed = std::pin::pin!(self.shared.left.notified());
            changed.as_mut().enable();
            if self.clients() == 0 {
                return;
            }
            changed.await;
        }
    }
}
