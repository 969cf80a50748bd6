//! Orders of an operator and questions about the pools, carried to all workers and waited for with a deadline.

use crate::elder;
use crate::pool::doors::{Order, Refusal, Scope};
use crate::pool::view::{ServerView, View};
use crate::worker::{Shared, ToWorker};
use std::sync::PoisonError;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Why an order was not carried out, or a question not answered.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It makes no sense.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A worker did not answer in time.
    #[error("worker {worker} did not answer in {limit:?}")]
    NoAnswer {
        /// The worker.
        worker: usize,
        /// The limit.
        limit: Duration,
    },
    /// Server connections were still in use when the time was over. A pause was taken back; a kill holds.
    #[error("{servers} server connections were still in use after {limit:?}")]
    StillInUse {
        /// How many.
        servers: usize,
        /// The limit.
        limit: Duration,
    },
    /// Another order ended the pause that it waited in.
    #[error("it was resumed before all server connections were closed")]
    Resumed,
    /// The process before this one has not done so in time. A pause was taken back here.
    #[error("the process before this one, which still lets clients finish, has not carried it out: see its log")]
    Elder,
    /// No such session.
    #[error("no such client")]
    NoClient,
}

/// Carry out an order within `limit`, and have the process before this one do so. [`Order::Pause`] and [`Order::Kill`] return
/// when no server connection of these databases is left.
///
/// # Errors
/// See [`OrderError`].
pub async fn order(shared: &Shared, order: Order, scope: Scope, limit: Duration) -> Result<(), OrderError> {
    let until = Instant::now() + limit;
    if order != Order::Pause {
        // Here it is carried out whatever becomes of it there.
        let there = elder::order(shared, order, &scope, until);
        let (there, done) = tokio::join!(there, here(shared, order, scope.clone(), (until, limit)));
        return done.and(there);
    }
    let before = elder::order(shared, order, &scope, until).await;
    if before.is_err() {
        // It may still come to it. What had been paused before stays so.
        let paused_before = shared.doors.lock().unwrap_or_else(PoisonError::into_inner).pauses(&scope).is_some();
        if paused_before {
            return before;
        }
        // With no time left only the first worker there would hear of it.
        let _ = elder::order(shared, Order::Resume, &scope, Instant::now() + TAKE_BACK).await;
        return before;
    }
    here(shared, order, scope, (until, limit)).await.and(before)
}

/// [`order`], in this process only.
pub(crate) async fn here(
    shared: &Shared,
    order: Order,
    scope: Scope,
    (until, limit): (Instant, Duration),
) -> Result<(), OrderError> {
    let paused_before = announce(shared, order, &scope, until, limit).await?;
    if !matches!(order, Order::Pause | Order::Kill) {
        // Who waits in a pause that is over is told so.
        shared.limits.closed.notify_waiters();
        return Ok(());
    }
    let pause = || shared.doors.lock().unwrap_or_else(PoisonError::into_inner).pauses(&scope);
    let Some(number) = pause() else { return Err(OrderError::Resumed) };
    let gone = async {
        loop {
            // Listened for before it is looked at: what closes in between is not missed.
            let mut closed = std::pin::pin!(shared.limits.closed.notified());
            closed.as_mut().enable();
            // That none is open says nothing any more once others may be made.
            if pause() != Some(number) {
                return Err(OrderError::Resumed);
            }
            if shared.limits.open(&scope) == 0 {
                tracing::info!(?order, ?scope, "operator's order carried out");
                return Ok(());
            }
            closed.await;
        }
    };
    if let Ok(outcome) = timeout_at(until, gone).await {
        return outcome;
    }
    let servers = shared.limits.open(&scope);
    // What had been paused before stays so: databases of their own, when this was for all.
    if order == Order::Pause && !paused_before {
        let (until, limit) = (Instant::now() + TAKE_BACK, TAKE_BACK);
        shared.doors.lock().unwrap_or_else(PoisonError::into_inner).unpause(&scope, number);
        // Another order may wait for the same pause.
        shared.limits.closed.notify_waiters();
        tell(shared, Order::Resume, &scope, until, limit).await?;
        elder::order(shared, Order::Resume, &scope, until).await?;
    }
    Err(OrderError::StillInUse { servers, limit })
}

/// Wait within `limit` until no server connection of these databases is left that is to be closed when it is free, as
/// after [`Order::Reconnect`].
///
/// # Errors
/// See [`OrderError`].
pub async fn wait_close(shared: &Shared, scope: &Scope, limit: Duration) -> Result<(), OrderError> {
    let until = Instant::now() + limit;
    elder::wait_close(shared, scope, until).await?;
    closed_here(shared, scope, (until, limit)).await
}

/// [`wait_close`], in this process only.
pub(crate) async fn closed_here(
    shared: &Shared,
    scope: &Scope,
    (until, limit): (Instant, Duration),
) -> Result<(), OrderError> {
    loop {
        // Listened for before it is looked at: what closes in between is not missed.
        let mut closed = std::pin::pin!(shared.limits.closed.notified());
        closed.as_mut().enable();
        let doors = shared.doors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let due = |s: &&ServerView| scope.covers(&s.database) && doors.must_close(&s.database, s.born);
        let servers = view(shared, limit).await?.servers.iter().filter(due).count();
        if servers == 0 {
            return Ok(());
        }
        if timeout_at(until, closed).await.is_err() {
            return Err(OrderError::StillInUse { servers, limit });
        }
    }
}

/// How long the workers have to take a pause back.
const TAKE_BACK: Duration = Duration::from_secs(5);

/// Put an order in force. Was it paused before?
async fn announce(
    shared: &Shared,
    order: Order,
    scope: &Scope,
    until: Instant,
    limit: Duration,
) -> Result<bool, OrderError> {
    let now = cluster::Clock.now();
    let paused_before = {
        let mut doors = shared.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = doors.pauses(scope).is_some();
        doors.obey(order, scope, now)?;
        paused
    };
    tell(shared, order, scope, until, limit).await?;
    Ok(paused_before)
}

/// Have every worker act on what was said.
async fn tell(shared: &Shared, order: Order, scope: &Scope, until: Instant, limit: Duration) -> Result<(), OrderError> {
    each(shared, until, limit, |done| ToWorker::Order { order, scope: scope.clone(), done }).await?;
    Ok(())
}

/// Ask every worker what it has.
///
/// # Errors
/// [`OrderError::NoAnswer`].
pub async fn view(shared: &Shared, limit: Duration) -> Result<View, OrderError> {
    let until = Instant::now() + limit;
    let mut all = View::default();
    for view in each(shared, until, limit, |reply| ToWorker::Survey { reply }).await? {
        all.join(view);
    }
    Ok(all)
}

/// End the session at that place of that worker.
///
/// # Errors
/// [`OrderError::NoClient`], [`OrderError::NoAnswer`].
pub async fn kill_client(shared: &Shared, worker: usize, place: usize, limit: Duration) -> Result<(), OrderError> {
    let until = Instant::now() + limit;
    let Some(peer) = shared.peers.get(worker) else { return Err(OrderError::NoClient) };
    let found = ask(peer, until, |done| ToWorker::KillClient { place, done }).await;
    match found {
        Some(true) => Ok(()),
        Some(false) => Err(OrderError::NoClient),
        None => Err(OrderError::NoAnswer { worker, limit }),
    }
}

async fn each<T>(
    shared: &Shared,
    until: Instant,
    limit: Duration,
    message: impl Fn(oneshot::Sender<T>) -> ToWorker,
) -> Result<Vec<T>, OrderError> {
    let mut answers = Vec::with_capacity(shared.peers.len());
    for (worker, peer) in shared.peers.iter().enumerate() {
        let answer = ask(peer, until, &message).await;
        answers.push(answer.ok_or(OrderError::NoAnswer { worker, limit })?);
    }
    Ok(answers)
}

async fn ask<T>(
    peer: &mpsc::Sender<ToWorker>,
    until: Instant,
    message: impl FnOnce(oneshot::Sender<T>) -> ToWorker,
) -> Option<T> {
    let (tell, answer) = oneshot::channel();
    timeout_at(until, peer.send(message(tell))).await.ok()?.ok()?;
    timeout_at(until, answer).await.ok()?.ok()
}
