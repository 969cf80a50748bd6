//! A session: two sockets, one task, no buffer while idle.
//!
//! A [`turn`](super::turn) moves what can be moved without waiting: bytes of the client through
//! [`batch`](super::batch) and [`translate`](super::translate) to the server, bytes of the server through
//! [`relay`](super::relay) to the client. What needs more (a server to be found, a lost one to be explained) ends the
//! turn. Reading stops while the other side does not take what was read, so memory stays bounded both ways.

use crate::auth::credentials::Credentials;
use crate::config::PoolMode;
use crate::console::tally::{Counter, Tally};
use crate::net::Stream;
use crate::pool::{Identity, Pool};
use crate::route::{Causality, Reason, Shows};
use crate::session::account::Account;
use crate::session::acquire::Decided;
use crate::session::batch::Unit;
use crate::session::block::Fresh;
use crate::session::draws::Draws;
use crate::session::durability::Noted;
use crate::session::follow::{Long, Reading};
use crate::session::hinted::Unhinted;
pub(super) use crate::session::losses::Loss;
use crate::session::losses::Losses;
use crate::session::outbox::Outbox;
use crate::session::presence::{Activity, Presence};
use crate::session::promised::Promised;
use crate::session::recheck::Recheck;
use crate::session::relay::Relay;
use crate::session::resolve::InDoubt;
use crate::session::said::Said;
use crate::session::server::Server;
use crate::session::sets_after::Position;
use crate::session::shown::Route;
use crate::session::state::{LostBlock, Pins};
use crate::session::statements::ClientStatements;
use crate::session::tracking::Tracking;
use crate::session::{lost, tunnel};
use crate::sql::{Access, FunctionTable, LexRules, Statement};
use crate::wire::backend::TxStatus;
use crate::wire::error_response::ClientError;
use crate::worker::{Settings, Worker};
use cluster::{Instant, NodeId, Role, Term};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::watch;

/// A Query or Parse is read whole up to this, so that it can be classified, bytes.
pub(super) const MAX_TEXT: usize = 1 << 20;
/// Answers owed at most before the client is read again.
pub(super) const MAX_PENDING: usize = 4096;

/// How a connection goes on after a turn.
pub(super) enum Turn {
    /// A server must be found for the unit at the head of the inbox.
    Acquire {
        /// What it needs.
        access: Access,
        /// Its bytes.
        bytes: usize,
    },
    /// The server is held, and the unit at the head of the inbox waits for the standbys.
    Slow,
    /// Another server is to listen for the session.
    Listen,
    /// The server's next answer tells of a commit, and standbys are not known to have that.
    Confirm,
    /// The server is lost.
    Lost(Loss),
    /// The session ends.
    Close,
}

/// The rest of a client's message that did not come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    None,
    Forward(usize),
    Discard(usize),
}

/// A client's session.
pub struct Session {
    pub(super) w: Rc<Worker>,
    pub(super) presence: Rc<Presence>,
    pub(super) place: usize,
    pub(super) client: Stream,
    pub(super) identity: Arc<Identity>,
    /// What statements of its user take.
    pub(super) account: Rc<Account>,
    /// What `SHOW STATS` counts of the database.
    pub(super) tally: Rc<Tally>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) pools: Vec<Rc<Pool>>,
    pub(super) functions: watch::Receiver<Arc<FunctionTable>>,
    pub(super) table: Arc<FunctionTable>,
    /// A table below that number may be older than what this client has defined since.
    pub(super) knows_from: u64,
    pub(super) lex: LexRules,
    /// What is remembered of refusals when the statements were classified.
    pub(super) misroutes: u64,
    /// The role's transactions are SERIALIZABLE unless they say otherwise, as a standby has told.
    pub(super) serializable: bool,
    pub(super) statements: ClientStatements,
    pub(super) causality: Rc<RefCell<Causality>>,
    /// Bytes of the client that have not been dealt with.
    pub(super) inbox: Vec<u8>,
    /// Something has changed that may let the inbox go on.
    pub(super) rescan: bool,
    /// The inbox ends within a unit.
    pub(super) wants_more: bool,
    pub(super) tail: Tail,
    /// A text that is read as it passes.
    pub(super) long: Option<Box<Long>>,
    /// Nothing to read from the client, which may be read: true within one poll only.
    pub(super) client_dry: bool,
    /// The same of the server.
    pub(super) server_dry: bool,
    /// The client's socket wakes the task when something comes: it was told to, and nothing has been read since.
    pub(super) client_wakes: bool,
    /// The same of the server's.
    pub(super) server_wakes: bool,
    pub(super) to_client: Outbox,
    pub(super) to_server: Outbox,
    pub(super) server: Option<Server>,
    /// Where the server goes back to.
    pub(super) pool: Option<Rc<Pool>>,
    /// The start of a server's frame that has not come whole.
    pub(super) server_in: Vec<u8>,
    /// That may be more than the start of one: nobody has looked at it.
    pub(super) behind: bool,
    pub(super) relay: Relay,
    /// Units that may be sent again, as the client wrote them.
    pub(super) retained: Vec<u8>,
    /// Bytes of each unit in flight within `retained`; 0 for one that was not kept.
    pub(super) retained_lens: VecDeque<usize>,
    pub(super) pins: Pins,
    /// Those that the metrics count.
    pub(super) counted: Pins,
    /// What follows it from server to server.
    pub(super) tracking: Tracking,
    pub(super) draws: Draws,
    pub(super) promised: Option<Box<Promised>>,
    /// What the unit at the head of the inbox says for itself.
    pub(super) hinted: Option<Box<Said>>,
    /// What the open block has said for itself, while it has done nothing else.
    pub(super) said: Option<Box<Said>>,
    /// What the open block has set at its standby, while it has done nothing else: the texts.
    pub(super) set_first: Option<Box<str>>,
    /// The client was warned of its comment.
    pub(super) hint_warned: bool,
    /// While a unit commits as it says itself.
    pub(super) unhinted: Option<Unhinted>,
    /// Where the last statement went.
    pub(super) route: Option<Route>,
    /// Why the server was chosen that the next statement goes to.
    pub(super) chosen: Option<Reason>,
    /// The server that the session has already needs a commit that proves it before the next statement.
    pub(super) doubted: bool,
    /// A read was held for the server that the session has already to show what it has read at standbys.
    pub(super) held_unshown: bool,
    /// The server has been given the settings that the unit at the head of the inbox asks for.
    pub(super) told: bool,
    /// What becomes of the position that reads must have seen, for the unit at the head of the inbox.
    pub(super) position: Position,
    /// All that it does is to set or to show a setting of ours.
    pub(super) own: bool,
    /// Settings of ours that this transaction may have set, as bits.
    pub(super) own_set: u32,
    /// Something that can show what others have written ran on the primary in this transaction.
    pub(super) saw: bool,
    /// What the unit in flight shows, as the reads behind it go by that.
    pub(super) shows: Shows,
    /// The term in which it was asked for.
    pub(super) asked_in: Term,
    /// The server that listened for the client is lost, and another one is to listen.
    pub(super) listens: bool,
    /// The server that listened was given up for an error of ours, and another one is to listen before anything else is sent
    /// to any.
    pub(super) relistens: bool,
    /// The server has reported a setting in this transaction.
    pub(super) reported: bool,
    /// What the client was told of settings at login.
    pub(super) base: Arc<Settings>,
    /// Pins lost with their server, not told yet.
    pub(super) lost_pins: Option<(NodeId, Pins)>,
    pub(super) lost_block: LostBlock,
    /// A COMMIT was lost with its server, and its client has not been told what became of it.
    pub(super) in_doubt: Option<Box<InDoubt>>,
    /// What ends a lost block is bound, and not executed yet.
    pub(super) ends_block: bool,
    /// The block has done nothing yet but begin.
    pub(super) fresh: Option<Fresh>,
    /// It is to begin anew on the next server.
    pub(super) replants: bool,
    /// An error was told for an extended unit: the client's messages up to its Sync are thrown away.
    pub(super) skip: bool,
    /// The error for the unit at the head of the inbox.
    pub(super) fail: Option<Failure>,
    pub(super) portal_may_commit: bool,
    pub(super) durability: Noted,
    pub(super) wrote: bool,
    /// More than a proven read was sent to the primary in this transaction: it may have an id.
    pub(super) may_have_xid: bool,
    pub(super) busy: Option<Role>,
    /// The client's cancel request went to the server, which has not answered with an error of that kind.
    pub(super) cancelled: bool,
    /// A cancel request is on its way to the server.
    pub(super) cancelling: bool,
    /// Standbys on which the unit at the head of the inbox failed.
    pub(super) avoid: Vec<NodeId>,
    /// Standbys do not know what that unit names: the primary is asked.
    pub(super) rechecks: Option<Box<Recheck>>,
    /// A standby has refused what is to be sent again: any other one would, too.
    pub(super) refused: bool,
    /// What the oldest unit has lost.
    pub(super) losses: Losses,
    /// Since when the unit at the head of the inbox waits.
    pub(super) waiting_since: Option<Instant>,
    /// It only reads, outside of any block: it does not wait for the standbys.
    pub(super) quiet: bool,
    /// It has waited for the standbys.
    pub(super) was_slowed: bool,
    /// The term that the client was told.
    pub(super) term_told: Term,
    /// The server was the primary when the unit at the head of the inbox came.
    pub(super) proven: bool,
    /// A unit of a held server's session waits for the gate, or for the proof that its server is the primary.
    pub(super) hold: Option<Pin<Box<tokio::time::Sleep>>>,
    /// What that unit needs.
    pub(super) held_for: Access,
    /// The rest of an extended unit is waited for, and how much of it was there when that was over.
    pub(super) patience: Option<Pin<Box<tokio::time::Sleep>>>,
    pub(super) waited_at: usize,
    pub(super) impatient: bool,
    pub(super) generation: u64,
    pub(super) classes: Vec<Statement>,
    /// The unit at the head of the inbox, cut before a server was looked for; `classes` are its.
    pub(super) cut: Option<Box<Unit>>,
    /// Where the one that is looked for now is waited for.
    pub(super) decided: Option<Decided>,
    /// The client will send no more.
    pub(super) eof: bool,
    /// The server ends the connection, because of what the client sent within a COPY.
    pub(super) desynchronised: bool,
    /// What was sent last ended with a Flush: its answers come without a Sync.
    pub(super) flushed: bool,
    pub(super) reason: &'static str,
    /// When the server goes back to its pool.
    pub(super) mode: PoolMode,
    /// It came by a port for reads only: nothing unproven of it reaches a primary.
    pub(super) read_only: bool,
    /// A replication connection: its server is its own from the login on.
    pub(super) tunnel: bool,
    /// Equal for sessions that agree on what a text means: hashed from the settings that decide it.
    pub(super) parse_key: u64,
    /// What the open transaction has set for itself of that.
    pub(super) reading: Reading,
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
        client: Stream,
        (identity, credentials): (Arc<Identity>, Arc<Credentials>),
        causality: Rc<RefCell<Causality>>,
        (settings, lex, application_name): (Arc<Settings>, LexRules, Option<&str>),
        mut functions: watch::Receiver<Arc<FunctionTable>>,
    ) -> Box<Self> {
        let table = functions.borrow_and_update().clone();
        let parse_key = identity.begins();
        let generation = w.generation.get();
        let mode = pool_mode(&w, &identity);
        let tracking = w.begin_tracking(application_name);
        let tally = w.tallies.of(&identity.database);
        tally.add(Counter::Logins, 1);
        let account = w.accounts.borrow_mut().enter(&identity.user);
        // In its place at once: it is large.
        let session = Box::new(Self {
            w,
            presence,
            place,
            client,
            identity,
            account,
            tally,
            credentials,
            pools: Vec::new(),
            functions,
            table,
            lex,
            misroutes: 0,
            knows_from: 0,
            serializable: false,
            statements: ClientStatements::default(),
            causality,
            inbox: Vec::new(),
            rescan: false,
            wants_more: false,
            tail: Tail::None,
            long: None,
            client_dry: false,
            server_dry: false,
            client_wakes: false,
            server_wakes: false,
            to_client: Outbox::default(),
            to_server: Outbox::default(),
            server: None,
            pool: None,
            server_in: Vec::new(),
            behind: false,
            relay: Relay::default(),
            retained: Vec::new(),
            retained_lens: VecDeque::new(),
            pins: Pins::default(),
            counted: Pins::default(),
            tracking,
            draws: Draws::default(),
            promised: None,
            hinted: None,
            said: None,
            set_first: None,
            hint_warned: false,
            held_unshown: false,
            unhinted: None,
            route: None,
            chosen: None,
            doubted: false,
            told: false,
            position: Position::Kept,
            own: false,
            own_set: 0,
            saw: false,
            shows: Shows::default(),
            asked_in: Term(0),
            listens: false,
            relistens: false,
            reported: false,
            base: settings,
            lost_pins: None,
            lost_block: LostBlock::None,
            in_doubt: None,
            ends_block: false,
            fresh: None,
            replants: false,
            skip: false,
            fail: None,
            portal_may_commit: false,
            durability: Noted::default(),
            wrote: false,
            may_have_xid: false,
            busy: None,
            cancelled: false,
            cancelling: false,
            avoid: Vec::new(),
            rechecks: None,
            refused: false,
            losses: Losses::default(),
            waiting_since: None,
            quiet: false,
            was_slowed: false,
            term_told: Term(0),
            proven: false,
            hold: None,
            held_for: Access::Write,
            patience: None,
            waited_at: 0,
            impatient: false,
            generation,
            classes: Vec::new(),
            cut: None,
            decided: None,
            eof: false,
            desynchronised: false,
            flushed: false,
            reason: "write",
            mode,
            read_only: false,
            tunnel: false,
            parse_key,
            reading: Reading::Usual,
        });
        session.presence.settings.replace(session.tracking.settings.clone());
        session.w.patrons.enter(&session.identity, &session.credentials);
        session.w.shared.keyring.enter(&session.identity, &session.credentials);
        session.w.stir();
        session
    }

    /// The first bytes to the client, and what it sent before them.
    pub(super) fn greet(&mut self, hello: Vec<u8>, inbox: Vec<u8>) {
        if self.tunnel || !self.client.write_in_round(&hello, self.place) {
            match self.client.write_at_once(&hello) {
                0 => self.to_client.take_over(hello),
                sent => self.to_client.queue(&hello[sent..]),
            }
        }
        self.rescan = !inbox.is_empty();
        // Nothing is kept for a client that has sent nothing.
        self.inbox = if inbox.is_empty() { Vec::new() } else { inbox };
    }

    /// A setting that changes how the server reads the client's text.
    pub(super) fn learn(&mut self, name: &str, value: &str) {
        self.cut = None;
        let before = self.lex;
        self.lex.learn(name, value);
        // What was prepared before is prepared anew where it is used next, and read there as by now.
        if self.lex != before {
            self.reclassify();
        }
    }

    /// Find this pool without its whole key the next time.
    pub(super) fn remember(&mut self, pool: &Rc<Pool>) {
        if self.pools.iter().any(|p| Rc::ptr_eq(p, pool)) {
            return;
        }
        self.pools.retain(|p| p.key.node != pool.key.node);
        // Nodes come and go; a few are remembered.
        if self.pools.len() >= 8 {
            self.pools.clear();
        }
        self.pools.push(pool.clone());
    }

    /// The status the client believes in.
    pub(super) fn status(&self) -> TxStatus {
        match self.lost_block.exists() {
            true => self.lost_block.status(),
            false if self.replants => TxStatus::Block,
            false => self.relay.status,
        }
    }
}

/// The mode in force for a client that logs in now.
fn pool_mode(w: &Worker, identity: &Identity) -> PoolMode {
    crate::pool::policy::mode(&w.config().pools, &identity.database, &identity.user)
}

/// Run a session to its end.
///
/// It is as large as what an idle client takes: what is awaited rarely is boxed.
pub async fn run(mut session: Box<Session>) {
    if session.tunnel {
        return Box::pin(tunnel::run(*session)).await;
    }
    loop {
        match poll_fn(|cx| session.poll(cx)).await {
            Turn::Acquire { access, bytes } => Box::pin(session.acquire(access, bytes)).await,
            Turn::Slow => Box::pin(session.slow_down()).await,
            Turn::Listen => {
                if !Box::pin(session.listen_again()).await {
                    break;
                }
                (session.client_wakes, session.server_wakes) = (false, false);
            }
            Turn::Confirm => Box::pin(session.confirm()).await,
            Turn::Lost(loss) => {
                session.cut = None;
                if !lost::explain(&mut session, loss) {
                    break;
                }
                if session.in_doubt.is_some() {
                    Box::pin(session.resolve_commit()).await;
                }
                if session.listens && !Box::pin(session.listen_again()).await {
                    break;
                }
                // What was done may have read from them.
                (session.client_wakes, session.server_wakes) = (false, false);
            }
            Turn::Close => break,
        }
    }
    session.abandon_server();
}

/// Also when the session's task ends in a panic: its place and its counts are free again.
impl Drop for Session {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Session {
    fn leave(&mut self) {
        self.leave_draws();
        self.w.places.borrow_mut().leave(self.place);
        self.w.patrons.leave(&self.identity);
        self.w.shared.keyring.leave(&self.identity, &self.credentials);
        self.set_busy(None);
        self.count_working(self.presence.doing.get().activity, Activity::Idle);
        self.give_up_unshown();
        self.count_pins(Pins::NONE);
        self.count_kept(0);
        self.w.accounts.borrow_mut().leave(&self.identity.user);
        // A COPY may have failed while the client was in the middle of a message to it.
        let sent_whole = !matches!(self.tail, Tail::Forward(_)) && self.to_server.is_empty() && !self.relay.is_blind();
        let between = sent_whole && self.server_in.is_empty() && !self.relay.mid_frame();
        let shared = self.mode == PoolMode::Transaction && !self.tunnel;
        let clean =
            shared && between && !self.relay.busy() && self.relay.status == TxStatus::Idle && self.pins.is_empty();
        if let (Some(server), Some(pool)) = (self.server.take(), self.pool.take()) {
            if clean {
                self.w.release(&pool, server, self.w.now());
            } else {
                // In an unknown state, or full of what was this client's: closed.
                self.w.count_in_use(&server.meta, false);
            }
        }
        self.w.put_spare(std::mem::take(&mut self.retained));
        // A request to cancel that is on its way knows of this session for longer.
        self.presence.facts.get().map(|facts| facts.admission.take());
    }
}

/// Read behind what `buf` holds, up to `limit` bytes. Nothing is made room for before it has come: who waits for a server
/// looks here at every turn, and nearly always in vain.
pub(super) fn read_more(
    w: &Worker,
    stream: &mut Stream,
    buf: &mut Vec<u8>,
    limit: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut scratch = w.take_scratch();
    fill(&mut scratch, &[], limit);
    let result = stream.poll_fill(&mut scratch[..limit], cx);
    if let Poll::Ready(Ok(n)) = result {
        buf.extend_from_slice(&scratch[..n]);
    }
    w.put_scratch(scratch);
    result
}

/// Put `kept` at the start of the shared buffer and make room for `limit` bytes behind it. The buffer keeps its
/// length from use to use, so that it is zeroed once and not at every read.
pub(super) fn fill(scratch: &mut Vec<u8>, kept: &[u8], limit: usize) -> usize {
    if scratch.len() < kept.len() + limit {
        scratch.resize(kept.len() + limit, 0);
    }
    scratch[..kept.len()].copy_from_slice(kept);
    kept.len()
}
