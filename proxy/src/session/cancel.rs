//! Cancel requests: our own keys, and when a request goes on to a server.
//!
//! A key's process number says which worker and which place there; its secret is random. A request reaches the server
//! only while that client has a statement in flight on it, and the server serves nobody else until the request is
//! done, for it would hit the next client's statement.

use crate::net::Stream;
use crate::session::encrypt;
use crate::session::server::Server;
use crate::tls::SecureError;
use crate::wire::startup::cancel_request;
use crate::worker::Worker;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};

/// Bits of a process number that hold the worker's index.
const WORKER_BITS: u32 = 10;
/// Places a worker has for sessions.
pub const MAX_PLACES: usize = 1 << (31 - WORKER_BITS);

/// The process number for a place of a worker. Never 0, and positive for clients that read it as signed.
pub fn pid_of(worker: usize, place: usize) -> u32 {
    debug_assert!(worker < 1 << WORKER_BITS && place < MAX_PLACES - 1, "both are bounded where they are made");
    ((place as u32 + 1) << WORKER_BITS) | worker as u32
}

/// The worker and the place of a process number.
pub fn place_of(pid: u32) -> Option<(usize, usize)> {
    let place = (pid >> WORKER_BITS).checked_sub(1)?;
    Some(((pid & ((1 << WORKER_BITS) - 1)) as usize, place as usize))
}

/// How long until it is looked at again whether anybody keeps a server that a lost request may reach.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Requests of one client that are waited for at most; who asks for more is told at once that it is done.
const MAX_WAITERS: usize = 64;

/// Lost requests for one server whose end is waited for at most: while so many may still hit it none more is sent.
const MAX_LATE: u32 = 4;

/// Those whose connections stay open until their request has been acted on, as PostgreSQL keeps them: a client that
/// has seen the end of one may send its next statement without fear. They are told when this is dropped.
#[derive(Debug, Default)]
pub struct Waiters(Vec<oneshot::Sender<()>>);

impl Waiters {
    /// One more.
    pub fn add(&mut self, done: oneshot::Sender<()>) {
        if self.0.len() < MAX_WAITERS {
            self.0.push(done);
        }
    }

    fn join(&mut self, others: Self) {
        others.0.into_iter().for_each(|done| self.add(done));
    }
}

/// Cancel requests on their way to one server connection.
#[derive(Debug, Default)]
pub struct Cancels {
    running: Cell<u32>,
    /// So many were lost whose end is waited for all the same.
    late: Cell<u32>,
    /// One was sent and never seen to end: it may lie in the postmaster's queue, and hit whatever runs when it is read.
    astray: Cell<bool>,
    ended: Notify,
    /// Who waits for the question of each kind that is on its way.
    asked: RefCell<[Option<Waiters>; Asks::ALL.len()]>,
    /// The server is at nothing any more.
    over: Cell<bool>,
    told: Notify,
}

/// For whom a server is asked whether it may stop what it is at. Each has turns of its own: what hundreds of clients ask who
/// wait for their COMMITs is in the way of no limit, and of nobody whose statement may be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// A limit, or an operator.
    Limit,
    /// A client whose server may be at something before a COMMIT.
    Client,
    /// A client whose server is at a COMMIT alone.
    AtCommit,
}

impl Asks {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Limit, Self::Client, Self::AtCommit];
}

impl Cancels {
    /// Is any on its way?
    pub fn running(&self) -> bool {
        self.running.get() > 0
    }

    /// May one still come that nobody waits for any more? The server must not serve another client.
    pub fn astray(&self) -> bool {
        self.astray.get()
    }

    /// One was sent and not seen to end.
    pub fn lose(&self) {
        self.astray.set(true);
    }

    /// One was lost, and its end is waited for all the same.
    fn be_late(&self) {
        self.lose();
        self.late.set(self.late.get() + 1);
        self.end();
    }

    /// May one whose end is waited for hit what a session sends that keeps the server?
    pub fn in_the_way(&self) -> bool {
        self.running.get() + self.late.get() > 0
    }

    /// Are so many of them waited for that one more would be of no use?
    pub fn crowded(&self) -> bool {
        self.late.get() >= MAX_LATE
    }

    /// Does a session, or what goes on in its place, keep the server?
    fn is_kept(self: &Rc<Self>) -> bool {
        // Each request and each question has one more.
        Rc::strong_count(self) > (self.running.get() + self.late.get()) as usize
    }

    /// Count one more; it ends with [`Self::end`].
    pub fn begin(self: &Rc<Self>) -> Rc<Self> {
        self.over.set(false);
        self.running.set(self.running.get() + 1);
        self.clone()
    }

    /// One is over.
    pub fn end(&self) {
        self.running.set(self.running.get() - 1);
        self.ended.notify_one();
    }

    /// A question is to be asked: are there none for the same yet? Else these wait for the end of that.
    pub fn ask(&self, asks: Asks, waiters: Waiters) -> bool {
        match &mut self.asked.borrow_mut()[asks as usize] {
            Some(others) => {
                others.join(waiters);
                false
            }
            none => {
                *none = Some(waiters);
                true
            }
        }
    }

    /// It is over; who waits for it is told when what this returns is dropped.
    pub fn asked(&self, asks: Asks) -> Option<Waiters> {
        self.asked.borrow_mut()[asks as usize].take()
    }

    /// All that it was at is answered: a question that was not sent yet need not be.
    pub fn give_up(&self) {
        self.over.set(true);
        self.told.notify_waiters();
    }

    /// Wait until no question need be sent that is not; `sent` says which is.
    pub async fn given_up(&self, sent: impl Fn() -> bool) {
        loop {
            let told = self.told.notified();
            if self.over.get() && !sent() {
                return;
            }
            told.await;
        }
    }

    /// Need none be?
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Wait until none is. Each is bounded, so this is.
    pub async fn ended(&self) {
        while self.running() {
            self.ended.notified().await;
        }
    }
}

/// How a request reaches a server.
pub struct Way {
    /// Who sends it.
    pub worker: Rc<Worker>,
    /// The host's name.
    pub host: Arc<str>,
    /// Its address.
    pub peer: SocketAddr,
}

/// Send a request to a server and wait until it has been acted on: the server closes the connection then. `cancels`
/// has counted it already ([`Cancels::begin`]), and knows afterwards whether it was seen to end. One that does not within
/// `limit` is lost, which is told, and is late for `hold_timeout` more at most, while a session keeps the server: what that sends
/// would be hit.
pub async fn forward(way: Way, key: (u32, u32), limit: Duration, cancels: Rc<Cancels>, lost: impl FnOnce()) {
    let Way { worker, host, peer } = way;
    let sent = Cell::new(false);
    let talk = async {
        let mut stream = Stream::from(TcpStream::connect(peer).await?);
        let contexts = worker.shared.tls.borrow().clone();
        encrypt::secure(&mut stream, &contexts, &host, &worker.handshakes).await?;
        sent.set(true);
        stream.write_all(&cancel_request(key.0, key.1)).await?;
        let mut byte = [0];
        // It ends; what it says before does not matter.
        let _ended = stream.read(&mut byte).await?;
        sent.set(false);
        Ok::<(), SecureError>(())
    };
    let mut talk = std::pin::pin!(talk);
    let answered = tokio::time::timeout(limit, &mut talk).await;
    match &answered {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "cancel request failed"),
        Err(_) => tracing::debug!(%peer, ?limit, "cancel request was not answered in time"),
    }
    if !sent.get() {
        return cancels.end();
    }
    if answered.is_ok() {
        cancels.lose();
        return cancels.end();
    }
    cancels.be_late();
    lost();
    let kept = async {
        while cancels.is_kept() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(worker.config().hold_timeout, talk) => {}
        () = kept => {}
    }
    cancels.late.set(cancels.late.get() - 1);
}

/// The same where nobody waits for it.
pub fn send(worker: &Rc<Worker>, server: &Server) {
    let meta = &server.meta;
    let way = Way { worker: worker.clone(), host: meta.host.clone(), peer: meta.peer };
    let errand = worker.begin_errand();
    let lost = || drop(errand);
    tokio::task::spawn_local(forward(way, meta.key, worker.config().connect_timeout, server.cancels.begin(), lost));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_number_leads_back_to_its_place() {
        for (worker, place) in [(0, 0), (1, 0), (1023, MAX_PLACES - 2), (5, 77)] {
            let pid = pid_of(worker, place);
            assert_eq!(place_of(pid), Some((worker, place)));
            assert!(pid > 0 && i32::try_from(pid).is_ok());
        }
        assert_eq!(place_of(0), None);
    }

    #[test]
    fn one_that_is_late_hides_no_other_and_is_waited_for_while_the_server_is_kept() {
        let server = Rc::new(Cancels::default());
        let first = server.begin();
        first.be_late();
        assert!(server.astray() && !server.running() && server.in_the_way() && first.is_kept());
        let second = server.begin();
        assert!(server.running());
        drop(server);
        assert!(!first.is_kept());
        second.end();
        assert!(!first.crowded());
        (1..MAX_LATE).for_each(|_| first.begin().be_late());
        assert!(first.crowded());
        first.late.set(0);
        assert!(!first.in_the_way() && !first.crowded());
    }
}
