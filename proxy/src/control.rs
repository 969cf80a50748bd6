//! Changing a running proxy from outside, and what the proxy asks of the process it runs in.

use crate::auth::cancel_keys::Secret;
use crate::auth::userlist::LoadUserlistError;
use crate::auth::users::Users;
use crate::config::{Config, reload};
pub use crate::console::command::Wait;
use crate::elder::{self, Passed};
use crate::explain::{self, ExplainError, Explained};
use crate::inherit::{self, Listening, Named};
use crate::session::peers;
use crate::tls::Contexts;
use crate::tls::live::chain;
use crate::worker::Shared;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, oneshot, watch};

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

/// A cancel request's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelKey {
    /// The process number that the client was given.
    pub pid: u32,
    /// Its secret.
    pub secret: Secret,
}

/// A cancel request on its way to the process before this one.
#[derive(Debug)]
pub struct PassedCancel {
    /// Its key.
    pub key: CancelKey,
    /// Told, or dropped, when it has been acted on.
    pub done: oneshot::Sender<()>,
}

/// An order on its way to the process before this one.
#[derive(Debug)]
pub struct PassedOrder {
    /// What [`Control::obey`] reads, 255 bytes at most.
    pub text: String,
    /// Told whether it was carried out; dropped when that process has gone.
    pub done: oneshot::Sender<bool>,
}

/// A hold on a running proxy.
#[derive(Clone)]
pub struct Control {
    pub(crate) shared: Arc<Shared>,
    pub(crate) accepting: watch::Sender<bool>,
    pub(crate) listening: Arc<Listening>,
}

impl Control {
    /// Put a checked configuration in force; keys that need a restart keep their running values. Blocks while files
    /// that it names are read.
    ///
    /// # Errors
    /// What it names cannot be used. Nothing is changed then.
    pub fn reload(&self, new: Config) -> Result<(), Refused> {
        let old = self.shared.config.borrow().clone();
        let new = Arc::new(reload::applied(&old, new));
        let unusable = |error: LoadUserlistError| {
            let cause = std::error::Error::source(&error).map(|c| format!(": {c}")).unwrap_or_default();
            Refused(vec![format!("{error}{cause}")])
        };
        // All is read before anything takes effect. For the answer: the thread that follows the files reads them again, and puts them in force.
        Contexts::load(&new).map_err(|error| Refused(vec![chain(&error)]))?;
        let users = Users::read(&new).map_err(unusable)?;
        let secret = peers::read(&new).map_err(|error| Refused(vec![error.to_string()]))?;
        self.shared.users.put(users);
        if let Some(secret) = secret {
            self.shared.cancelling.rotate(secret);
        }
        if new.auth.query != old.auth.query {
            self.shared.lookups.forget();
        }
        self.shared.config.send_replace(new);
        elder::reload(&self.shared);
        Ok(())
    }

    /// Where a statement would go that a new session sends, and why.
    ///
    /// # Errors
    /// The proxy does not answer in time.
    pub async fn explain(&self, database: &str, user: &str, sql: &[u8]) -> Result<Explained, ExplainError> {
        explain::explain(&self.shared, database, user, sql).await
    }

    /// Accept clients from now on, where that has not begun.
    pub fn begin_accepting(&self) {
        self.accepting.send_replace(true);
    }

    /// What the process that comes after this one is given: the sockets for clients, and what operators have ordered.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn listeners(&self) -> std::io::Result<Vec<Named>> {
        let doors = self.shared.doors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = self.listening.copies()?;
        all.extend(inherit::orders(&doors)?);
        Ok(all)
    }

    /// The process after this one serves new clients: connections to servers that are not needed here are left to it.
    pub fn retire(&self) {
        self.shared.retiring.store(true, Ordering::Relaxed);
    }

    /// A cancel request that reached the process after this one. It is on its way when this returns; what is returned ends
    /// when it has been acted on, or lost, within `connect_timeout`.
    pub fn cancel(&self, key: CancelKey) -> impl Future<Output = ()> + Send + use<> {
        self.shared.cancel(key, self.shared.config.borrow().connect_timeout)
    }

    /// Pass cancel requests and orders on to the process before this one. Ends when that process has gone and `to` is closed.
    pub fn pass_on(&self, to: mpsc::Sender<Passed>) {
        *self.shared.elder.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
    }

    /// Accept no more clients; those that are here stay.
    pub fn stop_accepting(&self) {
        self.accepting.send_replace(false);
        self.listening.close();
    }

    /// Clients connected, but for those of the console.
    pub fn clients(&self) -> usize {
        self.shared.clients.load(Ordering::SeqCst).saturating_sub(self.shared.consoles.load(Ordering::SeqCst))
    }

    /// Ends when no such client is left. Cancel-safe.
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
