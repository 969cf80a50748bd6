//! The IO of a session: two sockets, one task, no buffer while idle.
//!
//! A turn of [`Session::poll`] moves what can be moved without waiting: bytes of the client through
//! [`batch`](super::batch) and [`translate`](super::translate) to the server, bytes of the server through
//! [`relay`](super::relay) to the client. What needs more (a server to be found, a lost one to be explained) ends the
//! turn. Reading stops while the other side does not take what was read, so memory stays bounded both ways.

use crate::auth::scram::LoginKeys;
use crate::metrics::{Source, bump};
use crate::pool::{Identity, Pool};
use crate::route::Causality;
use crate::session::acquire::{self, Found, NotFound, Want};
use crate::session::batch::{self, Limits, Scan, Unit};
use crate::session::durability::Durability;
use crate::session::outbox::Outbox;
use crate::session::relay::{Event, Relay, Undo};
use crate::session::server::Server;
use crate::session::state::{LostBlock, Pins};
use crate::session::statements::ClientStatements;
use crate::session::translate::Translator;
use crate::session::{cancel, lost};
use crate::sql::{Access, FunctionTable, LexRules, PinReason, Statement, classify};
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::Sink;
use crate::wire::error_response::{ClientError, Doubt, Severity};
use crate::wire::frontend;
use crate::worker::{Presence, Settings, Worker};
use cluster::topology::Gate;
use cluster::{Instant, NodeId, Role};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A Query or Parse is read whole up to this, so that it can be classified, bytes.
const MAX_TEXT: usize = 1 << 20;
/// Answers owed at most before the client is read again.
const MAX_PENDING: usize = 4096;
/// Turns of one poll before other sessions get theirs.
const MAX_TURNS: usize = 16;

/// How a connection goes on after a turn.
pub(super) enum Turn {
    /// A server must be found for the unit at the head of the inbox.
    Acquire {
        /// What it needs.
        access: Access,
        /// Its bytes.
        bytes: usize,
    },
    /// The server is lost.
    Lost(Loss),
    /// The session ends.
    Close,
}

/// How a server was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Its connection ended or failed.
    Gone,
    /// It said FATAL.
    Fatal([u8; 5]),
    /// The topology has another primary, or the node another role.
    Deposed,
    /// Its answer came after the view had run out.
    ViewStale,
    /// A standby refused the read.
    Refused([u8; 5]),
    /// It broke the protocol.
    Violation(&'static str),
    /// A block was held for too long.
    HoldTimeout,
}

/// The rest of a client's message that did not come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    None,
    Forward(usize),
    Discard(usize),
}

/// A client's session.
pub struct Session {
    pub(super) w: Rc<Worker>,
    presence: Rc<Presence>,
    place: usize,
    client: TcpStream,
    pub(super) identity: Arc<Identity>,
    keys: LoginKeys,
    pools: Vec<Rc<Pool>>,
    functions: watch::Receiver<Arc<FunctionTable>>,
    table: Arc<FunctionTable>,
    lex: LexRules,
    pub(super) statements: ClientStatements,
    pub(super) causality: Rc<RefCell<Causality>>,
    /// Bytes of the client that have not been dealt with.
    pub(super) inbox: Vec<u8>,
    /// Something has changed that may let the inbox go on.
    pub(super) rescan: bool,
    /// The inbox ends within a unit.
    wants_more: bool,
    tail: Tail,
    pub(super) to_client: Outbox,
    pub(super) to_server: Outbox,
    pub(super) server: Option<Server>,
    /// Where the server goes back to.
    pool: Option<Rc<Pool>>,
    /// The start of a server's frame that has not come whole.
    pub(super) server_in: Vec<u8>,
    pub(super) relay: Relay,
    /// Units that may be sent again, as the client wrote them.
    pub(super) retained: Vec<u8>,
    /// Bytes of each unit in flight within `retained`; 0 for one that was not kept.
    pub(super) retained_lens: VecDeque<usize>,
    pub(super) pins: Pins,
    /// Pins lost with their server, not told yet.
    pub(super) lost_pins: Option<(NodeId, Pins)>,
    pub(super) lost_block: LostBlock,
    /// An error was told for an extended unit: the client's messages up to its Sync are thrown away.
    pub(super) skip: bool,
    /// The error for the unit at the head of the inbox.
    pub(super) fail: Option<Failure>,
    portal_may_commit: bool,
    pub(super) durability: Durability,
    /// More than a change of `synchronous_commit` was sent since the last commit.
    commits: bool,
    pub(super) wrote: bool,
    pub(super) busy: bool,
    /// A cancel request went to the server while something may commit there.
    cancelled: bool,
    /// Standbys on which the unit at the head of the inbox failed.
    pub(super) avoid: Vec<NodeId>,
    /// Since when the unit at the head of the inbox waits.
    waiting_since: Option<Instant>,
    /// A unit of a held server's session waits for the gate.
    hold: Option<Pin<Box<tokio::time::Sleep>>>,
    generation: u64,
    classes: Vec<Statement>,
    /// The client will send no more.
    eof: bool,
    /// What was sent last ended with a Flush: its answers come without a Sync.
    flushed: bool,
    reason: &'static str,
}

/// What a unit is answered instead of being sent.
pub(super) enum Failure {
    /// An error of ours.
    Error(ClientError),
    /// A server's words, made ERROR.
    Frame(Vec<u8>),
}

impl Session {
    /// A session without a server.
    pub(super) fn new(
        w: Rc<Worker>,
        (presence, place): (Rc<Presence>, usize),
        client: TcpStream,
        (identity, keys): (Arc<Identity>, LoginKeys),
        causality: Rc<RefCell<Causality>>,
        settings: &Settings,
        mut functions: watch::Receiver<Arc<FunctionTable>>,
    ) -> Self {
        let table = functions.borrow_and_update().clone();
        let generation = w.generation.get();
        let durability = Durability::of_startup(&identity.parameters);
        let mut session = Self {
            w,
            presence,
            place,
            client,
            identity,
            keys,
            pools: Vec::new(),
            functions,
            table,
            lex: LexRules::STANDARD,
            statements: ClientStatements::default(),
            causality,
            inbox: Vec::new(),
            rescan: false,
            wants_more: false,
            tail: Tail::None,
            to_client: Outbox::default(),
            to_server: Outbox::default(),
            server: None,
            pool: None,
            server_in: Vec::new(),
            relay: Relay::default(),
            retained: Vec::new(),
            retained_lens: VecDeque::new(),
            pins: Pins::default(),
            lost_pins: None,
            lost_block: LostBlock::None,
            skip: false,
            fail: None,
            portal_may_commit: false,
            durability,
            commits: false,
            wrote: false,
            busy: false,
            cancelled: false,
            avoid: Vec::new(),
            waiting_since: None,
            hold: None,
            generation,
            classes: Vec::new(),
            eof: false,
            flushed: false,
            reason: "write",
        };
        settings.iter().for_each(|(name, value)| session.learn(name, value));
        session
    }

    /// The first bytes to the client, and what it sent before them.
    pub(super) fn greet(&mut self, hello: Vec<u8>, inbox: Vec<u8>) {
        self.to_client.queue(&hello);
        self.rescan = !inbox.is_empty();
        self.inbox = inbox;
    }

    /// A setting that changes how the server reads the client's text.
    fn learn(&mut self, name: &str, value: &str) {
        match name {
            "standard_conforming_strings" => self.lex.standard_conforming_strings = value == "on",
            "client_encoding" => self.lex.ascii_safe_encoding = LexRules::encoding_is_ascii_safe(value),
            _ => {}
        }
    }

    pub(super) fn pool_of(&mut self, node: &NodeId) -> Rc<Pool> {
        if let Some(pool) = self.pools.iter().find(|p| &p.key.node == node) {
            return pool.clone();
        }
        let pool = self.w.pools.of(node, &self.identity);
        // Nodes come and go; a few are remembered.
        if self.pools.len() >= 8 {
            self.pools.clear();
        }
        self.pools.push(pool.clone());
        pool
    }

    /// The status the client believes in.
    pub(super) fn status(&self) -> TxStatus {
        if self.lost_block.exists() { self.lost_block.status() } else { self.relay.status }
    }
}

/// Run a session to its end.
pub async fn run(mut session: Session) {
    loop {
        match poll_fn(|cx| session.poll(cx)).await {
            Turn::Acquire { access, bytes } => session.acquire(access, bytes).await,
            Turn::Lost(loss) => {
                if !lost::explain(&mut session, loss) {
                    break;
                }
            }
            Turn::Close => break,
        }
    }
}

/// Also when the session's task ends in a panic: its place and its counts are free again.
impl Drop for Session {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Session {
    fn leave(&mut self) {
        self.w.places.borrow_mut().leave(self.place);
        self.set_busy(false);
        let between = self.server_in.is_empty() && !self.relay.mid_frame() && self.to_server.is_empty();
        let clean = between && !self.relay.busy() && self.relay.status == TxStatus::Idle && self.pins.is_empty();
        if let (Some(server), Some(pool)) = (self.server.take(), self.pool.take()) {
            if clean {
                self.w.release(&pool, server);
            } else {
                // In an unknown state, or full of what was this client's: closed.
                self.w.count_in_use(&server.meta, false);
            }
        }
        self.w.put_spare(std::mem::take(&mut self.retained));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        self.presence.park(cx.waker());
        for _ in 0..MAX_TURNS {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(turn) => return Poll::Ready(turn),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One round. True when something moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        self.look_outside(cx)?;
        let mut moved = self.to_client.flush(&self.client, cx).map_err(|_| Turn::Close)?;
        if let Some(server) = &self.server {
            moved |= self.to_server.flush(&server.stream, cx).map_err(|_| Turn::Lost(Loss::Gone))?;
        }
        if self.rescan && self.to_client.is_empty() && self.to_server.is_empty() {
            self.rescan = false;
            moved = true;
            let inbox = std::mem::take(&mut self.inbox);
            let outcome = self.advance(&inbox);
            self.keep(inbox, outcome)?;
        }
        moved |= self.read_server(cx)?;
        moved |= self.read_client(cx)?;
        // What was sent is answered as PostgreSQL does after a half-close; what waits for more of the client is over.
        let answered = self.relay.owed() > 0 || (self.flushed && self.relay.pending() > 0);
        let owed = answered && !self.relay.copy_in();
        if self.eof && !moved && !owed && self.to_client.is_empty() {
            return Err(Turn::Close);
        }
        Ok(moved)
    }

    /// Changes of the cluster, cancel requests, the end of a hold.
    fn look_outside(&mut self, cx: &mut Context<'_>) -> Result<(), Turn> {
        if self.generation != self.w.generation.get() {
            self.generation = self.w.generation.get();
            self.rescan = true;
            if let Some(server) = &self.server
                && !self.w.still_valid(&server.meta)
            {
                return Err(Turn::Lost(Loss::Deposed));
            }
        }
        if self.presence.cancel.take() {
            self.cancel();
        }
        if let Some(hold) = &mut self.hold
            && hold.as_mut().poll(cx).is_ready()
        {
            self.hold = None;
            self.rescan = true;
            let now = self.w.now();
            match self.w.gate(now) {
                Gate::Open => {}
                // Outside a block there is nothing to lose: only the statement fails.
                Gate::Draining => {
                    let since = self.waiting_since.unwrap_or(now);
                    self.fail = Some(Failure::Error(acquire::hold_timeout(&self.w, since, now)));
                }
                Gate::Closed(_) => return Err(Turn::Lost(Loss::HoldTimeout)),
            }
        }
        Ok(())
    }

    /// A cancel request has come for this session, which holds a server or nothing that runs.
    fn cancel(&mut self) {
        let Some(server) = &self.server else { return };
        if self.hold.is_some() && !self.relay.busy() && self.relay.status == TxStatus::Idle {
            (self.fail, self.rescan) = (Some(Failure::Error(ClientError::Cancelled)), true);
            return;
        }
        // A COMMIT that waits for its standby must not be told to stop waiting.
        if !self.relay.busy() || self.relay.commit_in_flight() {
            return;
        }
        self.cancelled |= self.relay.may_commit();
        let (peer, key, limit) = (server.meta.peer, server.meta.key, self.w.shared.config.connect_timeout);
        // Counted before the task runs: the server may be given back before that.
        let request = cancel::forward(peer, key, limit, server.cancels.begin());
        tokio::task::spawn_local(request);
    }

    /// Keep what was not used of the client's bytes.
    fn keep(&mut self, mut bytes: Vec<u8>, (used, turn): (usize, Option<Turn>)) -> Result<(), Turn> {
        bytes.drain(..used);
        // What `lost` or `fail` put back comes first.
        if self.inbox.is_empty() {
            self.inbox = if bytes.is_empty() { Vec::new() } else { bytes };
        } else {
            self.inbox.extend_from_slice(&bytes);
        }
        turn.map_or(Ok(()), Err)
    }

    fn read_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        let limit = self.w.shared.config.relay_buffer;
        let room = self.inbox.len() < limit || self.wants_more;
        if self.eof || !room || !self.to_server.is_empty() || !self.to_client.is_empty() {
            return Ok(false);
        }
        let mut scratch = self.w.take_scratch();
        let kept = fill(&mut scratch, &self.inbox, limit);
        let outcome = match read_into(&mut self.client, &mut scratch[kept..kept + limit], cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(_)) => Err(Turn::Close),
            Poll::Ready(Ok(0)) => {
                self.eof = true;
                Ok(true)
            }
            Poll::Ready(Ok(n)) => {
                let input = &scratch[..kept + n];
                self.inbox.clear();
                let (used, turn) = self.advance(input);
                self.inbox.extend_from_slice(&input[used..]);
                if self.inbox.is_empty() {
                    self.inbox = Vec::new();
                }
                turn.map_or(Ok(true), Err)
            }
        };
        self.w.put_scratch(scratch);
        outcome
    }

    /// Deal with bytes of the client: how many were used, and what has to happen before more can be.
    fn advance(&mut self, input: &[u8]) -> (usize, Option<Turn>) {
        let mut at = 0;
        self.wants_more = input.is_empty();
        while at < input.len() && self.to_server.is_empty() && self.to_client.is_empty() {
            match self.step(&input[at..]) {
                Step::Used(n) => at += n,
                Step::Wait => break,
                Step::More => {
                    self.wants_more = true;
                    break;
                }
                Step::Turn(n, turn) => return (at + n, Some(turn)),
            }
        }
        self.wants_more |= at == input.len();
        // It goes on once what is in the way has been sent.
        self.rescan |= !self.to_server.is_empty() || !self.to_client.is_empty();
        (at, None)
    }

    fn step(&mut self, input: &[u8]) -> Step {
        if let Some(step) = self.pass_tail(input) {
            return step;
        }
        if self.skip || self.fail.is_some() {
            return self.step_failed(input);
        }
        if self.relay.copy_in() && self.server.is_some() {
            return self.step_copy(input);
        }
        if self.lost_block.exists() || self.lost_pins.is_some() {
            return lost::step(self, input);
        }
        self.step_unit(input)
    }

    /// The rest of a message that did not come whole.
    fn pass_tail(&mut self, input: &[u8]) -> Option<Step> {
        match self.tail {
            Tail::None => None,
            Tail::Forward(left) => {
                let n = left.min(input.len());
                self.tail = if left > n { Tail::Forward(left - n) } else { Tail::None };
                Some(self.send(&input[..n]).map_or(Step::Used(n), |turn| Step::Turn(n, turn)))
            }
            Tail::Discard(left) => {
                let n = left.min(input.len());
                self.tail = if left > n { Tail::Discard(left - n) } else { Tail::None };
                Some(Step::Used(n))
            }
        }
    }

    /// Throw a message away, also what has not come of it.
    pub(super) fn discard(&mut self, total: usize, input: &[u8]) -> Step {
        let n = total.min(input.len());
        if total > n {
            self.tail = Tail::Discard(total - n);
        }
        Step::Used(n)
    }

    /// The head of the inbox gets an error, or has got one and runs to its Sync.
    fn step_failed(&mut self, input: &[u8]) -> Step {
        let head = match batch::frame_head(input, self.longest_message()) {
            Ok(Some(head)) => head,
            Ok(None) => return Step::More,
            Err(error) => return self.violation(&error),
        };
        match (head.kind, self.fail.take()) {
            (b'X', _) => return Step::Turn(0, Turn::Close),
            (b'Q' | b'F', Some(failure)) => {
                self.tell(failure);
                self.ready(self.status());
            }
            (_, Some(failure)) => {
                self.tell(failure);
                self.skip = true;
                return Step::Used(0);
            }
            (b'S', None) => {
                self.skip = false;
                self.ready(self.status());
            }
            (_, None) => {}
        }
        self.discard(head.total, input)
    }

    fn tell(&mut self, failure: Failure) {
        match failure {
            Failure::Error(error) => self.error(&error),
            Failure::Frame(frame) => {
                let f = backend::fields(&frame);
                let code = f.code.get(..2).map_or(*b"00", |c| [c[0], c[1]]);
                self.w.counts.error(code, Source::Server);
                self.to_client.queue(&backend::as_error(&frame));
            }
        }
        (self.waiting_since, self.hold) = (None, None);
        self.avoid.clear();
    }

    /// Tell the client an error of ours.
    pub(super) fn error(&mut self, error: &ClientError) {
        let report = error.report();
        let code = report.sqlstate.as_str().as_bytes();
        self.w.counts.error([code[0], code[1]], Source::Proxy);
        if matches!(error, ClientError::CommitUnknown { .. }) {
            bump(&self.w.counts.in_doubt);
        }
        self.to_client.append(|out| report.encode(out));
    }

    /// ReadyForQuery.
    pub(super) fn ready(&mut self, status: TxStatus) {
        self.to_client.append(|out| backend::write_ready(out, status));
        self.rescan = true;
    }

    /// FATAL, and the end: the client broke the protocol, or the process stops.
    pub(super) fn violation(&mut self, error: &ClientError) -> Step {
        let mut report = error.report();
        report.severity = Severity::Fatal;
        self.to_client.append(|out| report.encode(out));
        self.to_client.try_flush(&self.client);
        Step::Turn(0, Turn::Close)
    }

    pub(super) fn longest_message(&self) -> usize {
        usize::try_from(self.w.shared.config.max_message_size).unwrap_or(usize::MAX)
    }

    /// The server reads CopyData: runs of it go on as they are.
    fn step_copy(&mut self, input: &[u8]) -> Step {
        let mut run = 0;
        loop {
            let head = match batch::frame_head(&input[run..], self.longest_message()) {
                Ok(Some(head)) => head,
                Ok(None) if run > 0 => break,
                Ok(None) => return Step::More,
                Err(error) => return self.violation(&error),
            };
            let end = run + head.total;
            match head.kind {
                b'd' if end > input.len() => {
                    self.tail = Tail::Forward(end - input.len());
                    run = input.len();
                    break;
                }
                b'd' => run = end,
                // The server ignores these while it copies, and owes nothing for them.
                b'H' | b'S' if run == 0 => return Step::Used(head.total.min(input.len())),
                b'c' | b'f' if run == 0 && end > input.len() => return Step::More,
                b'c' | b'f' if run == 0 => {
                    self.relay.end_copy_in();
                    run = end;
                    break;
                }
                _ if run > 0 => break,
                b'X' => return Step::Turn(0, Turn::Close),
                kind => {
                    let what = format!("unexpected message type {kind} during COPY from stdin");
                    return self.violation(&ClientError::ProtocolViolation { what });
                }
            }
        }
        self.send(&input[..run]).map_or(Step::Used(run), |turn| Step::Turn(run, turn))
    }

    /// Copy messages that came before the server has said whether it copies: they belong to what is in flight.
    fn early_copy(&mut self) -> Step {
        if self.relay.owed() > 0 {
            return Step::Wait;
        }
        // Without a Sync only a COPY is answered by itself: ask for the answer, that shows whether it is one.
        let mut flush = Vec::new();
        frontend::write_flush(&mut flush);
        self.send(&flush).map_or(Step::Wait, |turn| Step::Turn(0, turn))
    }

    fn step_unit(&mut self, input: &[u8]) -> Step {
        if matches!(input.first(), Some(b'd' | b'c' | b'f')) && self.server.is_some() && self.relay.may_copy() {
            return self.early_copy();
        }
        if self.server.is_some() && !self.may_send_more() {
            return Step::Wait;
        }
        if self.functions.has_changed().unwrap_or(false) {
            self.table = self.functions.borrow_and_update().clone();
            let (table, lex) = (&self.table, self.lex);
            self.statements.reclassify(|sql| classify(sql, table, lex));
        }
        let mut classes = std::mem::take(&mut self.classes);
        classes.clear();
        let scan = {
            let (table, lex) = (&self.table, self.lex);
            let cx = batch::Context {
                statements: &self.statements,
                classify: &|sql| classify(sql, table, lex),
                open: self.relay.open,
                portal_may_commit: self.portal_may_commit,
                limits: Limits {
                    unit: self.w.shared.config.relay_buffer,
                    text: MAX_TEXT,
                    message: self.longest_message(),
                },
            };
            batch::scan(input, &cx, &mut classes)
        };
        let step = match scan {
            Scan::More => Step::More,
            Scan::Terminate => Step::Turn(0, Turn::Close),
            Scan::Ignore(total) => self.discard(total, input),
            Scan::Violation(error) => self.violation(&error),
            Scan::Unit(unit) => self.route(input, &unit, &classes),
        };
        self.classes = classes;
        step
    }

    /// Behind what was sent already, may more be sent before that is answered?
    fn may_send_more(&self) -> bool {
        let Some(server) = &self.server else { return false };
        if self.relay.open.is_some() || !self.relay.busy() {
            return true;
        }
        // What is sent to the primary may be followed by anything; a standby gets one unit at a time.
        server.meta.role == Role::Primary
            && self.relay.pending() < MAX_PENDING
            && !self.relay.names_unconfirmed()
            && self.w.gate(self.w.now()) == Gate::Open
    }

    /// Send a unit to the server that is held, or to one that is at hand, or ask for one.
    fn route(&mut self, input: &[u8], unit: &Unit, classes: &[Statement]) -> Step {
        let now = self.w.now();
        let access = if unit.read { Access::Read } else { Access::Write };
        if let Some(server) = &self.server {
            let starts = !self.relay.busy() && self.relay.status == TxStatus::Idle;
            let fits = server.meta.role == Role::Primary || unit.read || !starts;
            if !fits {
                self.give_back();
            } else if server.meta.role == Role::Standby {
                return self.send_unit(input, unit, classes);
            } else {
                return match self.w.gate(now) {
                    Gate::Open => self.send_unit(input, unit, classes),
                    Gate::Draining if !starts => self.send_unit(input, unit, classes),
                    Gate::Draining | Gate::Closed(_) => self.hold_here(),
                };
            }
        }
        if self.w.shared.stopping.load(Ordering::Relaxed) {
            return self.violation(&ClientError::ShuttingDown);
        }
        let want = self.want(access, now);
        let w = self.w.clone();
        let found = acquire::at_hand(&w, &want, |node| self.pool_of(node), now);
        match found {
            Some(found) => {
                w.counts.waited(std::time::Duration::ZERO);
                self.attach(found);
                self.send_unit(input, unit, classes)
            }
            None => Step::Turn(0, Turn::Acquire { access, bytes: unit.len }),
        }
    }

    /// A session that keeps its server waits for the gate: the statement is neither sent nor refused yet.
    fn hold_here(&mut self) -> Step {
        if self.hold.is_none() {
            self.hold = Some(Box::pin(tokio::time::sleep(self.w.shared.config.hold_timeout)));
            self.waiting_since = Some(self.w.now());
            // The next turn polls the timer.
            self.presence.wake();
        }
        Step::Wait
    }

    fn want(&mut self, access: Access, now: Instant) -> Want {
        Want {
            identity: self.identity.clone(),
            keys: self.keys.clone(),
            causality: self.causality.clone(),
            access,
            avoid: self.avoid.clone(),
            since: self.waiting_since.unwrap_or(now),
        }
    }

    fn attach(&mut self, found: Found) {
        let Found { server, pool, reason } = found;
        self.w.count_in_use(&server.meta, true);
        self.relay.on_standby = server.meta.role == Role::Standby;
        self.reason = reason;
        (self.server, self.pool) = (Some(server), Some(pool));
        self.generation = self.w.generation.get();
    }

    /// The server is free of this session.
    fn give_back(&mut self) {
        if let (Some(mut server), Some(pool)) = (self.server.take(), self.pool.take()) {
            server.meta.spoilt |= std::mem::take(&mut self.relay.stale_plan);
            self.w.release(&pool, server);
        }
    }

    /// The server is closed.
    pub(super) fn drop_server(&mut self) -> Option<(NodeId, cluster::Term)> {
        let server = self.server.take()?;
        self.pool = None;
        self.relay.stale_plan = false;
        self.w.count_in_use(&server.meta, false);
        Some((server.meta.node.clone(), server.meta.term))
    }

    pub(super) fn set_busy(&mut self, busy: bool) {
        if self.busy != busy {
            self.busy = busy;
            self.w.count_busy(busy);
        }
    }

    fn send_unit(&mut self, input: &[u8], unit: &Unit, classes: &[Statement]) -> Step {
        let Some(server) = &mut self.server else { return Step::Wait };
        let repeatable = self.relay.status == TxStatus::Idle && unit.record.repeatable(TxStatus::Idle);
        let begins = self.relay.open.is_none();
        let mut sink = Sink::new(self.w.take_spare());
        let refused = Translator {
            client: &mut self.statements,
            server: &mut server.meta.statements,
            texts: &mut self.w.texts.borrow_mut(),
            relay: &mut self.relay,
            statement_bytes: usize::try_from(self.w.shared.config.prepared_statement_bytes).unwrap_or(usize::MAX),
            unnamed_bytes: MAX_TEXT,
        }
        .unit(input, unit, classes, &mut sink);
        if unit.tail_left > 0 {
            self.tail = if refused { Tail::Discard(unit.tail_left) } else { Tail::Forward(unit.tail_left) };
        }
        let primary = server.meta.role == Role::Primary;
        self.relay.parse_only = unit.statements == 0 && (begins || self.relay.parse_only);
        if begins {
            self.w.counts.query(if primary { "primary" } else { "standby" }, self.reason);
            self.reason = "same_server";
        }
        self.retain(&input[..unit.len], unit, repeatable, begins);
        self.pins.join(unit.pins);
        self.portal_may_commit |= unit.binds_commit;
        self.wrote |= primary && !unit.read;
        if !unit.read {
            self.commits |= !self.durability.note(&input[..unit.len]);
        }
        self.flushed = unit.flush;
        self.set_busy(primary || self.busy);
        self.waiting_since = None;
        self.hold = None;
        let turn = self.send(sink.bytes(input));
        self.w.put_spare(sink.into_spare());
        self.flush_local(unit);
        turn.map_or(Step::Used(unit.len), |turn| Step::Turn(unit.len, turn))
    }

    /// Answers of ours that a Flush asks for and no answer of the server would bring along.
    fn flush_local(&mut self, unit: &Unit) {
        if unit.flush {
            let mut sink = Sink::default();
            self.relay.flush_local(&mut sink);
            self.to_client.queue(sink.bytes(&[]));
        }
    }

    /// Keep a unit that may be sent again. A long one is not worth it.
    fn retain(&mut self, bytes: &[u8], unit: &Unit, repeatable: bool, begins: bool) {
        if self.retained.capacity() == 0 {
            self.retained = self.w.take_spare();
        }
        if begins {
            self.retained_lens.push_back(0);
        }
        let Some(len) = self.retained_lens.back_mut() else { return };
        let whole_so_far = begins || *len > 0;
        if repeatable && whole_so_far && unit.tail_left == 0 && self.retained.len() + bytes.len() <= 2 * MAX_TEXT {
            self.retained.extend_from_slice(bytes);
            *len += bytes.len();
        } else {
            let kept = self.retained.len() - *len;
            self.retained.truncate(kept);
            *len = 0;
        }
    }

    /// Send bytes to the server; what it does not take now waits.
    fn send(&mut self, bytes: &[u8]) -> Option<Turn> {
        let server = self.server.as_ref()?;
        self.to_server.send(&server.stream, bytes).err().map(|_| Turn::Lost(Loss::Gone))
    }

    fn read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        if !self.to_client.is_empty() {
            return Ok(false);
        }
        let Some(server) = &mut self.server else { return Ok(false) };
        let limit = self.w.shared.config.relay_buffer;
        let mut scratch = self.w.take_scratch();
        let kept = fill(&mut scratch, &self.server_in, limit);
        let outcome = match read_into(&mut server.stream, &mut scratch[kept..kept + limit], cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(_) | Ok(0)) => Err(Turn::Lost(Loss::Gone)),
            Poll::Ready(Ok(n)) => self.server_bytes(&scratch[..kept + n]),
        };
        self.w.put_scratch(scratch);
        outcome
    }

    fn server_bytes(&mut self, input: &[u8]) -> Result<bool, Turn> {
        let Some(server) = &self.server else { return Ok(false) };
        let (node, term, primary) = (server.meta.node.clone(), server.meta.term, server.meta.role == Role::Primary);
        if primary && self.view_ran_out() && self.relay.may_commit() {
            return Err(Turn::Lost(Loss::ViewStale));
        }
        let not_replicated =
            move || ClientError::CommitUnknown { node: node.clone(), term, doubt: Doubt::NotReplicated };
        // A cancelled wait for a standby is told by a notice, unless the session has switched notices off.
        if self.cancelled && self.pins.has(PinReason::Set) {
            self.relay.doubt(not_replicated());
        }
        let mut sink = Sink::new(self.w.take_spare());
        let progress = self.relay.server_bytes(input, &mut sink, &not_replicated);
        let sent = self.to_client.send(&self.client, sink.bytes(input));
        self.w.put_spare(sink.into_spare());
        self.server_in.clear();
        self.server_in.extend_from_slice(&input[progress.consumed..]);
        if self.server_in.is_empty() {
            self.server_in = Vec::new();
        }
        self.account();
        self.rescan |= matches!(self.inbox.first(), Some(b'd' | b'c' | b'f'));
        if sent.is_err() {
            return Err(Turn::Close);
        }
        match progress.event {
            None => Ok(true),
            Some(Event::Idle) => {
                self.idle();
                Ok(true)
            }
            Some(Event::Retry { code }) => Err(Turn::Lost(Loss::Refused(code))),
            Some(Event::Fatal { code }) => Err(Turn::Lost(Loss::Fatal(code))),
            Some(Event::Violation(what)) => Err(Turn::Lost(Loss::Violation(what))),
        }
    }

    /// What the relay found out on the way.
    fn account(&mut self) {
        for undo in std::mem::take(&mut self.relay.undone) {
            self.undo(undo);
        }
        for (name, value) in std::mem::take(&mut self.relay.reported) {
            self.learn(&name, &value);
            if let Some(server) = &mut self.server {
                server.meta.report(&name, &value);
            }
        }
        for class in self.relay.errors.drain(..) {
            self.w.counts.error(class, Source::Server);
        }
        for _ in 0..std::mem::take(&mut self.relay.answered) {
            let len = self.retained_lens.pop_front().unwrap_or(0);
            self.retained.drain(..len);
            self.rescan = true;
            if self.wrote && self.relay.status == TxStatus::Idle {
                self.causality.borrow_mut().wrote(self.w.now());
                self.count_below_mode();
            }
        }
    }

    fn count_below_mode(&mut self) {
        let strict = self.w.view.borrow().topology.valid_until.is_none();
        let below = std::mem::take(&mut self.commits) && self.durability.is_below(strict);
        if let Some(server) = self.server.as_ref().filter(|_| below) {
            self.w.count_below_mode(server.meta.term);
        }
        self.durability.end_transaction();
    }

    /// Nothing is owed.
    fn idle(&mut self) {
        self.rescan |= !self.inbox.is_empty();
        self.cancelled = false;
        self.w.put_spare(std::mem::take(&mut self.retained));
        self.retained_lens.clear();
        self.avoid.clear();
        if self.relay.status == TxStatus::Idle {
            (self.wrote, self.portal_may_commit) = (false, false);
            self.set_busy(false);
            if self.pins.is_empty() && self.server_in.is_empty() && self.tail == Tail::None {
                self.give_back();
            }
        }
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::None => {}
            Undo::Unnamed => {
                self.statements.unnamed = None;
                if let Some(server) = &mut self.server {
                    server.meta.statements.unnamed = None;
                }
            }
            Undo::Registered(name) => drop(self.statements.remove(&name)),
            Undo::Removed(name, statement) => self.statements.insert(&name, statement),
            Undo::Prepared(text, name) => {
                if let Some(server) = &mut self.server {
                    server.meta.statements.remove(text.id);
                }
                if let Some(name) = name {
                    self.statements.remove(&name);
                }
            }
        }
    }

    fn view_ran_out(&self) -> bool {
        self.w.view.borrow().topology.valid_until.is_some_and(|end| self.w.now() >= end)
    }

    /// Find a server for the unit at the head of the inbox, or an error for it.
    async fn acquire(&mut self, access: Access, bytes: usize) {
        let now = self.w.now();
        self.waiting_since.get_or_insert(now);
        let want = self.want(access, now);
        let w = self.w.clone();
        let find = acquire::find(&w, want, bytes);
        let outcome = tokio::select! {
            outcome = find => outcome,
            outcome = poll_fn(|cx| self.watch_client(cx)) => match outcome {
                Some(error) => Err(NotFound::Error(error)),
                // The next turn sees the end of the connection.
                None => return,
            },
        };
        self.rescan = true;
        match outcome {
            Ok(found) => {
                self.pool_of(&found.pool.key.node.clone());
                self.attach(found);
            }
            Err(NotFound::Error(error)) => self.fail = Some(Failure::Error(error)),
            Err(NotFound::Refused(frame)) => self.fail = Some(Failure::Frame(frame)),
        }
    }

    /// While a statement waits: has the client gone (`None`), or cancelled it?
    fn watch_client(&mut self, cx: &mut Context<'_>) -> Poll<Option<ClientError>> {
        self.presence.park(cx.waker());
        if self.presence.cancel.take() {
            return Poll::Ready(Some(ClientError::Cancelled));
        }
        while self.inbox.len() < 2 * self.w.shared.config.relay_buffer && !self.eof {
            let limit = self.w.shared.config.relay_buffer;
            match read_more(&mut self.client, &mut self.inbox, limit, cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0) | Err(_)) => {
                    (self.eof, self.inbox) = (true, Vec::new());
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(_)) => {}
            }
        }
        Poll::Pending
    }
}

/// What one step of the client's bytes came to.
pub(super) enum Step {
    /// So many bytes are dealt with.
    Used(usize),
    /// Nothing can be done before something else happens.
    Wait,
    /// The message is not complete.
    More,
    /// So many bytes are dealt with, and then this.
    Turn(usize, Turn),
}

/// Read behind what `buf` holds, up to `limit` bytes.
fn read_more(stream: &mut TcpStream, buf: &mut Vec<u8>, limit: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let kept = buf.len();
    buf.resize(kept + limit, 0);
    let result = read_into(stream, &mut buf[kept..], cx);
    let n = if let Poll::Ready(Ok(n)) = result { n } else { 0 };
    buf.truncate(kept + n);
    result
}

fn read_into(stream: &mut TcpStream, buf: &mut [u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut read = ReadBuf::new(buf);
    let result = Pin::new(stream).poll_read(cx, &mut read);
    let n = read.filled().len();
    result.map_ok(|()| n)
}

/// Put `kept` at the start of the shared buffer and make room for `limit` bytes behind it. The buffer keeps its
/// length from use to use, so that it is zeroed once and not at every read.
fn fill(scratch: &mut Vec<u8>, kept: &[u8], limit: usize) -> usize {
    if scratch.len() < kept.len() + limit {
        scratch.resize(kept.len() + limit, 0);
    }
    scratch[..kept.len()].copy_from_slice(kept);
    kept.len()
}
