//! A server whose client has gone: what was asked of it is read to its end, within a bound, an open transaction is
//! rolled back, and everything the session left is discarded. Then it serves others; else it is closed.

use crate::config::PoolMode;
use crate::pool::Pool;
use crate::session::cancel::{self, Waiters};
use crate::session::client::{Session, Tail};
use crate::session::outbox::Outbox;
use crate::session::outcome::Record;
use crate::session::relay::{Entry, Event, Kind, Relay, Reported};
use crate::session::server::Server;
use crate::sql::PinReason;
use crate::wire::backend::TxStatus;
use crate::wire::codec::{Sink, cstring, message};
use crate::wire::error_response::ClientError;
use crate::wire::frontend::write_query;
use crate::worker::Worker;
use cluster::Role;
use std::io;
use std::rc::Rc;

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;

/// Why a server is closed instead.
#[derive(Debug, thiserror::Error)]
enum DrainError {
    #[error("its connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("it had more than {limit} bytes to say")]
    TooLong { limit: u64 },
    #[error("it ended the connection or broke the protocol")]
    Ended,
    #[error("it did not come to rest")]
    Restless,
    #[error("a cancel request for it was not seen to end")]
    CancelAstray,
}

struct Drained {
    server: Server,
    relay: Relay,
    /// The start of a frame that has not come whole.
    rest: Vec<u8>,
    /// What was not sent yet.
    to_server: Outbox,
    left: u64,
    limit: u64,
}

impl Session {
    /// The client has gone and left its server in the middle of something: somebody else sees to it.
    pub(super) fn abandon_server(&mut self) {
        self.leave_draws();
        let idle = !self.relay.busy() && self.relay.status == TxStatus::Idle && self.to_server.is_empty();
        // Settings are discarded; what else the server keeps for a pin may be more than can be, and half a message cannot
        // be completed.
        let pinned = self.pins.list().iter().any(|&reason| reason != PinReason::Set);
        if idle && self.mode == PoolMode::Transaction && self.pins.is_empty() {
            return;
        }
        // Its Sync would commit what the client has not committed; without one PostgreSQL rolls back, as the connection ends.
        let uncommitted = self.relay.open.is_some() && self.relay.may_commit();
        // How many ReadyForQuery are still to come is not known behind a COPY that has failed.
        if pinned || self.tail != Tail::None || self.relay.is_blind() || uncommitted {
            // PostgreSQL would not see that nobody waits for what it works on.
            let commits_nothing = !self.relay.may_commit() || self.relay.awaits_sync();
            if self.relay.pending() > 0 && !self.cancelling && commits_nothing {
                self.forward_cancel(Waiters::default());
            }
            return;
        }
        let mut relay = std::mem::take(&mut self.relay);
        (relay.retries, relay.head_kept) = (false, false);
        let Some((pool, drained)) = self.drained(relay) else { return };
        let (busy, w) = (std::mem::take(&mut self.busy), self.w.clone());
        let cancelling = std::mem::take(&mut self.cancelling);
        tokio::task::spawn_local(async move {
            // What it reads nobody waits for.
            if !cancelling && drained.relay.sent().iter().all(Record::is_read) {
                drained.cancel(&w);
            }
            drain(w, pool, drained, busy).await;
        });
    }
}

impl Session {
    /// Can its server go on alone, with what it was sent?
    pub(super) fn may_part(&self) -> bool {
        let whole =
            self.to_server.is_empty() && self.tail == Tail::None && !self.relay.mid_frame() && !self.relay.is_blind();
        whole && self.mode == PoolMode::Transaction && self.pins.is_empty()
    }

    /// The session goes on without its server, which finishes what it was sent and serves others then: the entries
    /// that nobody will answer.
    pub(super) fn part(&mut self) -> Vec<Entry> {
        let (entries, relay) = self.relay.part();
        if let Some((pool, drained)) = self.drained(relay) {
            tokio::task::spawn_local(drain(self.w.clone(), pool, drained, None));
        }
        entries
    }
}

impl Session {
    /// The session goes on without its server, on which it has a transaction block that has done nothing.
    pub(super) fn leave_block(&mut self) {
        let mut relay = std::mem::take(&mut self.relay);
        relay.retries = false;
        let Some((pool, drained)) = self.drained(relay) else { return };
        self.set_busy(None);
        tokio::task::spawn_local(roll_back(self.w.clone(), pool, drained));
    }

    /// Its server, and the conversation that it has there.
    fn drained(&mut self, relay: Relay) -> Option<(Rc<Pool>, Drained)> {
        let (server, pool) = self.server.take().zip(self.pool.take())?;
        self.show_server(None);
        let (rest, to_server) = (std::mem::take(&mut self.server_in), std::mem::take(&mut self.to_server));
        let limit = self.w.config().drain_bytes;
        Some((pool, Drained { server, relay, rest, to_server, left: limit, limit }))
    }
}

/// End a block that has done nothing. The session's settings stay: they were there before it.
async fn roll_back(w: Rc<Worker>, pool: Rc<Pool>, mut d: Drained) {
    let outcome = tokio::time::timeout(w.config().drain_timeout, d.run("ROLLBACK")).await;
    d.server.meta.statements.unnamed = None;
    let clean = d.relay.status == TxStatus::Idle && d.relay.errors.is_empty() && d.rest.is_empty();
    if matches!(outcome, Ok(Ok(()))) && clean {
        return w.release(&pool, d.server, w.now());
    }
    tracing::debug!(node = %d.server.meta.node, "server that a block was moved from is closed");
    w.count_in_use(&d.server.meta, false);
}

/// `busy`: a server of that role counts as busy until this is over.
async fn drain(w: Rc<Worker>, pool: Rc<Pool>, mut d: Drained, busy: Option<Role>) {
    let limit = w.config().drain_timeout;
    let mut outcome = tokio::time::timeout(limit, d.finish()).await;
    if outcome.is_err() && d.cancel(&w) {
        // It would go on without a connection that counts, and keep its locks.
        outcome = tokio::time::timeout(limit, d.finish()).await;
    }
    busy.into_iter().for_each(|role| w.count_busy(role, false));
    let node = d.server.meta.node.clone();
    match outcome {
        Ok(Ok(())) => return w.release(&pool, d.server, w.now()),
        Ok(Err(error)) => tracing::debug!(%node, %error, "server of a client that has gone is closed"),
        Err(_) => tracing::debug!(%node, ?limit, "server of a client that has gone is closed, it took too long"),
    }
    w.count_in_use(&d.server.meta, false);
}

impl Drained {
    /// Have the server stop what it works on, unless that is nothing, or may commit something: what waits for standbys must
    /// not be told to stop waiting, or all would see what no standby has.
    fn cancel(&self, w: &Rc<Worker>) -> bool {
        if self.relay.pending() == 0 || self.relay.may_commit() || self.server.cancels.running() {
            return false;
        }
        cancel::send(w, &self.server);
        true
    }

    async fn finish(&mut self) -> Result<(), DrainError> {
        self.settle().await?;
        // A cancel request on its way must not hit what follows.
        self.server.cancels.ended().await;
        if self.relay.status != TxStatus::Idle {
            self.run("ROLLBACK").await?;
        }
        if self.server.cancels.astray() {
            return Err(DrainError::CancelAstray);
        }
        self.relay.errors.clear();
        self.run("DISCARD ALL").await?;
        if !self.relay.errors.is_empty() || self.relay.status != TxStatus::Idle || !self.rest.is_empty() {
            return Err(DrainError::Restless);
        }
        let meta = &mut self.server.meta;
        meta.statements.clear(&[]);
        meta.statements.unnamed = None;
        (meta.given, meta.estranged, meta.drew, meta.drew_before) = (Default::default(), 0, 0, false);
        Ok(())
    }

    async fn run(&mut self, sql: &str) -> Result<(), DrainError> {
        let mut out = Vec::new();
        write_query(&mut out, sql);
        self.to_server.send(&mut self.server.stream, &out)?;
        self.relay.push(Entry::plain(Kind::Query));
        self.settle().await
    }

    /// End what is open and read until nothing is owed.
    async fn settle(&mut self) -> Result<(), DrainError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            // All that is owed may have come before the session left it: what it was refused, say.
            self.read_rest()?;
            self.end_open()?;
            if !self.relay.busy() {
                // The rest of a COPY that has failed, say: the next client's must not come behind a part of it.
                return Ok(self.to_server.empty(&mut self.server.stream).await?);
            }
            let n = self.to_server.exchange(&mut self.server.stream, &mut chunk).await?;
            if n == 0 {
                return Err(DrainError::Ended);
            }
            self.left = self.left.checked_sub(n as u64).ok_or(DrainError::TooLong { limit: self.limit })?;
            self.rest.extend_from_slice(&chunk[..n]);
        }
    }

    /// The client will send no more: an open COPY fails, and an open unit gets its Sync.
    fn end_open(&mut self) -> Result<(), DrainError> {
        let mut out = Vec::new();
        if self.relay.is_blind() {
            return Err(DrainError::Restless);
        }
        if self.relay.copy_in() {
            message(&mut out, b'f', |b| cstring(b, b"the client has gone"));
            self.relay.end_copy_in();
        }
        if let Some(record) = self.relay.open.take() {
            message(&mut out, b'S', |_| {});
            self.relay.push(Entry { record: Some(record), ..Entry::plain(Kind::Sync) });
        }
        Ok(self.to_server.send(&mut self.server.stream, &out)?)
    }

    fn read_rest(&mut self) -> Result<(), DrainError> {
        loop {
            let mut nobody = Sink::default();
            let progress = self.relay.server_bytes(&self.rest, &mut nobody, &|| ClientError::ShuttingDown);
            self.rest.drain(..progress.consumed);
            for Reported { name, value, .. } in std::mem::take(&mut self.relay.reported) {
                self.server.meta.report(&name, &value);
            }
            // All statements are discarded in the end.
            self.relay.undone.clear();
            self.relay.retired.clear();
            match progress.event {
                None => return Ok(()),
                // Nobody is told.
                Some(Event::Unconfirmed) => self.relay.confirm(self.rest.len()),
                Some(Event::Idle | Event::Hidden | Event::Position | Event::Again) if self.rest.is_empty() => {
                    return Ok(());
                }
                Some(Event::Idle | Event::Hidden | Event::Position | Event::Again) => {}
                Some(
                    Event::Retry { .. }
                    | Event::Seen { .. }
                    | Event::Fatal { .. }
                    | Event::TimedOut { .. }
                    | Event::Violation(_),
                ) => return Err(DrainError::Ended),
            }
        }
    }
}
