//! Orders for the process before this one: while it lets its clients finish, what an operator says holds for them as well.
//!
//! Whoever speaks to the console speaks to this process. A pause that held here only would be told as done while the clients
//! of the one before go on writing.

use crate::control::{Control, PassedOrder, ProcessOrder};
use crate::pool::admin::{self, OrderError};
use crate::pool::{Order, Scope};
use crate::worker::Shared;
use std::pin::Pin;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// How long the process before this one has to answer, besides the time that it has to carry an order out.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes of an order: its length is told in one.
const MAX_TEXT: usize = 255;
/// Orders are no shorter, so that a process that knows nothing of them takes none for the key of a client.
const MIN_TEXT: usize = 40;

const WAIT_CLOSE: &str = "wait_close";
const RELOAD: &str = "reload";

/// Something on its way to the process before this one.
#[derive(Debug)]
pub enum Passed {
    /// A cancel request.
    Cancel(crate::control::PassedCancel),
    /// An order.
    Order(PassedOrder),
}

/// What is carried out, or not; true when it was.
pub type Obeying = Pin<Box<dyn Future<Output = bool> + Send>>;

fn word(order: Order) -> Option<&'static str> {
    match order {
        Order::Pause => Some("pause"),
        Order::Resume => Some("resume"),
        Order::Reconnect => Some("reconnect"),
        Order::Kill => Some("kill"),
        // New clients are those of this process.
        Order::Disable | Order::Enable => None,
    }
}

fn order_of(text: &str) -> Option<Order> {
    [Order::Pause, Order::Resume, Order::Reconnect, Order::Kill].into_iter().find(|order| word(*order) == Some(text))
}

/// Have the process before this one carry it out, if there is one.
///
/// # Errors
/// [`OrderError::Elder`]: it has not, and has not gone meanwhile.
pub(crate) async fn order(shared: &Shared, order: Order, scope: &Scope, until: Instant) -> Result<(), OrderError> {
    match word(order) {
        Some(word) => pass(shared, word, scope, until).await,
        None => Ok(()),
    }
}

/// The same for [`admin::wait_close`].
pub(crate) async fn wait_close(shared: &Shared, scope: &Scope, until: Instant) -> Result<(), OrderError> {
    pass(shared, WAIT_CLOSE, scope, until).await
}

/// Have it read its configuration file again, before it hears of any later order. Its log says what came of that.
pub(crate) fn reload(shared: &Shared) {
    let Some(to) = elder(shared) else { return };
    let (done, _) = oneshot::channel();
    if to.try_send(Passed::Order(PassedOrder { text: text(RELOAD, &Scope::All, Duration::ZERO), done })).is_err() {
        tracing::warn!("the process before this one was not told to read its configuration again");
    }
}

/// The way to the process before this one. Closed when that has gone.
fn elder(shared: &Shared) -> Option<mpsc::Sender<Passed>> {
    shared.elder.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|to| !to.is_closed())
}

async fn pass(shared: &Shared, word: &str, scope: &Scope, until: Instant) -> Result<(), OrderError> {
    let Some(to) = elder(shared) else { return Ok(()) };
    let text = text(word, scope, until.saturating_duration_since(Instant::now()));
    if text.len() > MAX_TEXT {
        return Err(OrderError::Elder);
    }
    let (done, told) = oneshot::channel();
    let passed = async {
        // Neither is answered by one that has gone, and takes its clients with it.
        to.send(Passed::Order(PassedOrder { text, done })).await.is_err() || told.await.unwrap_or(true)
    };
    match timeout_at(until + GRACE, passed).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(OrderError::Elder),
    }
}

fn text(word: &str, scope: &Scope, limit: Duration) -> String {
    let database = match scope {
        Scope::All => None,
        Scope::Database(name) => Some(name),
    };
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let text = serde_json::json!([word, database, limit]).to_string();
    format!("{text:MIN_TEXT$}")
}

impl Control {
    /// Carry out an order of the process after this one. A reload is over when this returns; of other orders what is
    /// returned tells when they are, and whether they were carried out.
    pub async fn obey(&self, text: &[u8]) -> Obeying {
        let Ok((word, database, limit)) = serde_json::from_slice::<(String, Option<String>, u64)>(text) else {
            tracing::warn!("the process after this one ordered what is unknown here");
            return Box::pin(std::future::ready(false));
        };
        let scope = database.map_or(Scope::All, Scope::Database);
        if word == RELOAD {
            let (answer, outcome) = oneshot::channel();
            let asked = self.shared.orders.try_send(ProcessOrder::Reload(answer)).is_ok();
            // Bounded: nothing else that comes from there is read meanwhile, and a process that ends answers nobody.
            let done = asked && matches!(tokio::time::timeout(GRACE, outcome).await, Ok(Ok(Ok(_))));
            return Box::pin(std::future::ready(done));
        }
        let (shared, limit) = (self.shared.clone(), Duration::from_millis(limit));
        Box::pin(async move {
            tracing::info!(order = word, ?scope, "operator's order to the process after this one");
            let done = match order_of(&word) {
                Some(order) => admin::order(&shared, order, scope, limit).await,
                None if word == WAIT_CLOSE => admin::wait_close(&shared, &scope, limit).await,
                None => return false,
            };
            match done {
                // What is not paused here was not to be.
                Ok(()) | Err(OrderError::Refused(_)) => true,
                Err(error) => {
                    tracing::warn!(order = word, %error, "operator's order not carried out here");
                    false
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_the_key_of_no_client() {
        let text = text("kill", &Scope::All, Duration::from_secs(1));
        assert!(crate::CancelSecret::new(text.as_bytes()).is_none());
        let read: (String, Option<String>, u64) = serde_json::from_str(&text).unwrap();
        assert_eq!(read, ("kill".to_owned(), None, 1000));
    }
}
