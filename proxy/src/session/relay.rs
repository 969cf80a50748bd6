//! The answers a server owes, and what of its bytes goes to the client.
//!
//! Every message forwarded leaves an [`Entry`]; every answer takes one away. So injected answers are taken out and
//! answers of our own put in at their place, an error in the extended protocol skips to its Sync as the server does,
//! and at any moment it is known which ReadyForQuery is owed for what. Data is not decoded: runs of frames pass as
//! they are, and a frame that is larger than what was read passes in pieces.

mod blind;
mod commits;
mod confirmed;
mod described;
mod discard;
mod entry;
mod failure;
mod flight;
mod frames;
mod hidden;
mod mark;
mod names;
mod position;
mod reports;
#[cfg(test)]
mod testing;

pub use commits::{Commits, Sent};
pub use described::Described;
pub use discard::DISCARD;
pub use entry::{Entry, Kind, Survivors, Undo, Use};
pub use hidden::Hidden;
pub use names::InDoubt;
pub use reports::Reported;

use crate::ledger::Mark;
use crate::session::outcome::Record;
use crate::session::statements::{Text, Unnamed};
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::{BadLength, Sink, head};
use crate::wire::error_response::ClientError;
use blind::Blind;
use confirmed::Confirmed;
use std::collections::VecDeque;
use std::rc::Rc;

/// Changes of names that are remembered of a unit of which the client has seen a part.
const MAX_DONE: usize = 256;

/// A data frame above this size passes before it is complete, bytes.
const STREAM_ABOVE: usize = 32 * 1024;
/// Longest frame that must be read whole (tags and the like), bytes.
const MAX_WHOLE: usize = 1 << 20;
/// Longest error, notice or report of a setting, bytes: a function may raise what it has been given, and servers from
/// version 18 on report the `search_path`, which has no limit.
const MAX_TOLD: usize = 64 << 20;
/// A frame above this size that must be read whole is put together before it is looked at again, bytes.
const ASSEMBLE_ABOVE: usize = 64 * 1024;
/// The SQLSTATE of a server that cannot make sense of what it is sent. What we send is well formed, but a client may
/// send the wrong messages within a COPY.
pub const PROTOCOL_VIOLATION: &[u8; 5] = b"08P01";
/// Longest buffer kept for the next unnamed statement's text, bytes.
const MAX_SPARE: usize = 4096;

/// Why [`Relay::server_bytes`] stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A ReadyForQuery passed, and no answer is owed.
    Idle,
    /// A query of ours is answered: [`Relay::hidden`] has what it said.
    Hidden,
    /// The question where the primary's WAL ends is answered: [`Relay::hidden`] has what it said.
    Position,
    /// A standby refused or broke off a read of which nothing has reached the client.
    Retry {
        /// The server's SQLSTATE.
        code: [u8; 5],
    },
    /// The only unit in flight failed because a shared statement's result has other columns now, which its client does
    /// not know: nothing of it has reached the client, the server is idle again, and the unit is to be sent again.
    Again,
    /// A COPY has failed, and it is known now what became of the Syncs that were sent to it.
    Seen {
        /// So many ReadyForQuery are the client's.
        answered: usize,
        /// What the client sends is thrown away up to its next Sync.
        skips: bool,
    },
    /// What comes next tells of success, and that the wait for standbys was given up may have been hidden:
    /// [`Relay::confirm`] or [`Relay::doubt`] lets it pass.
    Unconfirmed,
    /// The server says FATAL or PANIC: it closes the connection.
    Fatal {
        /// The server's SQLSTATE.
        code: [u8; 5],
    },
    /// The server ends a session of which nothing in flight could commit, for a limit that may be the client's own: it has
    /// been idle, or in its transaction, for too long.
    TimedOut {
        /// The server's SQLSTATE.
        code: [u8; 5],
        /// Its words.
        told: Box<[u8]>,
    },
    /// The server said something that is not an answer to anything.
    Violation(&'static str),
}

/// How much of the server's bytes was used.
#[derive(Debug)]
pub struct Progress {
    /// Bytes dealt with; the rest is the start of an incomplete frame, or what comes behind the event.
    pub consumed: usize,
    /// Why it stopped, unless at the end.
    pub event: Option<Event>,
}

/// What the relay has to ask of its session while it passes answers on.
pub trait Host {
    /// The error to report for a success that no standby has.
    fn not_replicated(&self) -> ClientError;

    /// The server reports that value as the `application_name`: what it is to the client, when that is another.
    fn name_told(&self, _value: &str) -> Option<&str> {
        None
    }

    /// A standby does not know what the oldest unit names: may it not have replayed that yet, and is the primary there to be
    /// asked?
    fn must_recheck(&self) -> bool {
        false
    }

    /// May a notification be meant for the client? Not when it shares the server and has not asked to listen.
    fn hears(&self) -> bool {
        true
    }

    /// The process number that the client knows a notifying one by, when that is another: its own.
    fn pid_told(&self, _pid: u32) -> Option<u32> {
        None
    }

    /// The server's and the client's own `application_name`, when that was taken back on a server that had its login's
    /// already and so reports nothing.
    fn name_taken_back(&self) -> Option<(&str, &str)> {
        None
    }

    /// The `application_name` that the client was told last, when that may be told again without need.
    fn name_known(&self) -> Option<&str> {
        None
    }
}

impl<F: Fn() -> ClientError> Host for F {
    fn not_replicated(&self) -> ClientError {
        self()
    }
}

/// The state of the conversation with the server that the session holds.
#[derive(Debug, Default)]
pub struct Relay {
    queue: VecDeque<Entry>,
    /// Units that owe a ReadyForQuery.
    owed: usize,
    /// The status of the last ReadyForQuery.
    pub status: TxStatus,
    /// What was executed without a Sync has begun the transaction that is open.
    implicit: bool,
    /// The unit that is being sent and has no Sync yet, when there is one.
    pub open: Option<Record>,
    /// The server discards everything until a Sync that has not been sent yet.
    skipping: bool,
    copy_in: bool,
    /// Syncs that it may ignore.
    blind: Blind,
    /// Bytes of a server's frame still to pass.
    body_left: usize,
    /// Part of the answer to the oldest unit has reached the client.
    delivered: bool,
    /// Success must not be reported before the next ReadyForQuery.
    doubt: Option<Box<ClientError>>,
    /// Doubts that were reported since this was looked at.
    pub doubted: usize,
    /// The doubt was reported: the rest of this unit's answers is withheld.
    withhold: bool,
    /// The server listens for nobody it serves: a notification came that was not meant for the client.
    pub misheard: bool,
    /// The client was notified.
    pub heard: bool,
    /// The server is a standby.
    pub standby: bool,
    /// Retry the errors of what is sent elsewhere: it is a read, or begins a block, and nothing before it would be lost.
    pub retries: bool,
    /// So are those of a standby that may not know yet what it names: nothing keeps it from the primary.
    pub rechecks: bool,
    /// The standby does not know what the oldest unit names, of which the primary is to be asked: in these words.
    pub lacks: Option<Box<[u8]>>,
    /// What a standby refuses because it is one is the client's to know.
    pub keeps_refusals: bool,
    /// A standby refused what was sent because its transaction would be SERIALIZABLE, which has nothing to do with its
    /// text.
    pub serializable: bool,
    /// A standby refused to read a materialized view that has no rows there yet, which the next REFRESH changes.
    pub unfilled: bool,
    /// A standby refused to write for a read of which rows had reached the client, behind so many that were answered.
    pub refused: Option<usize>,
    /// Nothing is executed there, only parsed: whatever a standby says against that, the primary may know better.
    pub parse_only: bool,
    /// What has to be taken back, in this order.
    pub undone: Vec<Undo>,
    /// Settings the server reported.
    pub reported: Vec<Reported>,
    /// Statements whose description has passed.
    pub described: Vec<Described>,
    /// The types of the parameters that were described last.
    types: Vec<u8>,
    /// Shared statements whose results have other columns now.
    pub retired: Vec<Rc<Text>>,
    /// All prepared statements were dropped, but for these that were prepared behind it.
    pub forgotten: Option<Survivors>,
    /// What routing knows of functions, operators, views and the like may have been changed.
    pub redefined: bool,
    /// A table was altered: what is prepared behind it may have parameters of other types.
    pub altered: bool,
    /// What sessions begin with may have been changed, by ALTER ROLE or ALTER DATABASE.
    pub redefaults: bool,
    /// A transaction has ended, with a COMMIT or in any way that leaves none, since this was looked at.
    pub kept: bool,
    /// Something was rolled back since this was looked at.
    pub rolled_back: bool,
    /// A unit in flight may drop all prepared statements.
    forgetting: bool,
    /// The oldest unit was kept whole, so that it can be sent again.
    pub head_kept: bool,
    /// The oldest unit's answers are withheld, because it is sent again.
    again: bool,
    /// A statement of the oldest unit has been executed: what it did may be committed.
    executed: bool,
    /// Names of statements that were used for the first time and have failed so.
    pub unused: Vec<Rc<[u8]>>,
    /// A buffer for the next unnamed statement's text.
    pub spare: Vec<u8>,
    /// ReadyForQuery messages that passed.
    pub answered: usize,
    /// Those of them that ended a transaction.
    pub ended: usize,
    /// What of it commits.
    pub commits: Commits,
    /// A name that was registered or dropped, here or on the server, is not confirmed yet.
    unconfirmed: bool,
    /// Nor is a change of the unnamed statement.
    unnamed_unconfirmed: bool,
    /// What the current unit has registered and was answered already.
    done: Vec<Undo>,
    /// Errors that passed, by the first two bytes of their SQLSTATE.
    pub errors: Vec<[u8; 2]>,
    /// A query of ours is in flight, alone; this is what it is answered.
    hiding: bool,
    /// What the last query of ours was answered.
    pub hidden: Hidden,
    /// The ErrorResponse to what was to be prepared before the oldest unit: it is told in place of that one's own.
    untold: Option<Box<[u8]>>,
    /// What the server said just before the COMMIT that is the oldest unit.
    mark: Option<Mark>,
    /// By what it said then, may it hide that the COMMIT's wait for standbys was given up?
    hushed: Option<bool>,
    /// The oldest unit has failed.
    failed: bool,
    /// What standbys are known to have.
    confirmed: Confirmed,
    /// The session has no right to ask about it.
    pub unmarked: bool,
    /// What was drawn from sequences was discarded, or could not be, since this was looked at.
    pub discarded: Option<bool>,
    /// The ErrorResponse to the question about it, which has failed the COMMIT's block: to be told in place of success.
    foiled: Option<Box<[u8]>>,
}

impl Relay {
    /// Note a message that was forwarded or answered in place.
    pub fn push(&mut self, entry: Entry) {
        if self.skipping {
            // The server throws it away, unless it is the Sync.
            if entry.kind != Kind::Sync {
                self.open.get_or_insert_default().absorb(&entry.record.unwrap_or_default());
                self.undone.push(entry.undo);
                return;
            }
            self.skipping = false;
        }
        self.owed += usize::from(entry.kind.owes_ready());
        self.unconfirmed |= entry.undo.names();
        self.unnamed_unconfirmed |= entry.undo.is_of_unnamed();
        self.queue.push_back(entry);
    }

    /// Answers owed.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Is anything owed, or a unit open?
    pub fn busy(&self) -> bool {
        !self.queue.is_empty() || self.open.is_some()
    }

    /// Units that were sent whole and owe a ReadyForQuery.
    pub fn owed(&self) -> usize {
        self.owed
    }

    /// The unnamed statement was replaced or destroyed by a unit that has its Sync and has not been answered.
    pub fn unnamed_unconfirmed(&self) -> bool {
        self.unnamed_unconfirmed && self.owed > 0
    }

    /// What is being sent may drop all prepared statements.
    pub fn forgets(&mut self) {
        self.forgetting = true;
    }

    /// The server reads CopyData.
    pub fn copy_in(&self) -> bool {
        self.copy_in
    }

    /// Something else was sent to a server that reads CopyData: it will say so and end the connection, unless the COPY
    /// has failed meanwhile.
    pub fn copy_broken(&self) -> bool {
        let beside = |e: &Entry| !matches!(e.kind, Kind::LocalParse | Kind::LocalClose);
        self.copy_in && self.queue.iter().skip(1).any(beside)
    }

    /// May something in flight turn out to be a COPY from the client?
    pub fn may_copy(&self) -> bool {
        !self.skipping && self.queue.iter().any(|e| matches!(e.kind, Kind::Query | Kind::Execute))
    }

    /// Is a frame of the server half passed?
    pub fn mid_frame(&self) -> bool {
        self.body_left > 0
    }

    /// Does the server discard what is sent to it?
    pub fn skipping(&self) -> bool {
        self.skipping
    }

    /// The client ended the COPY: CopyDone or CopyFail was forwarded.
    pub fn end_copy_in(&mut self) {
        self.copy_in = false;
    }

    /// Deal with bytes of the server.
    pub fn server_bytes(&mut self, input: &[u8], sink: &mut Sink, host: &dyn Host) -> Progress {
        let (mut at, mut mark, mut visible) = (0, 0, false);
        let event = loop {
            if self.body_left > 0 {
                let n = self.body_left.min(input.len() - at);
                sink.pass(input, at..at + n);
                (at, self.body_left) = (at + n, self.body_left - n);
                if self.body_left > 0 {
                    break None;
                }
                self.local_answers(input, sink);
            }
            let head = match head(&input[at..]) {
                Ok(Some(head)) => head,
                Ok(None) => break None,
                Err(BadLength { .. }) => break Some(Event::Violation("a message with an impossible length")),
            };
            let end = at + head.total;
            if end > input.len() {
                let data = matches!(head.kind, b'D' | b'd' | b'T' | b't' | b'V' | b'A');
                if data && head.total > STREAM_ABOVE && self.shows(head.kind) && !self.hiding {
                    self.local_answers(input, sink);
                    if head.kind == b'T' {
                        self.pop_described();
                    }
                    visible = true;
                    self.body_left = end - input.len();
                    sink.pass(input, at..input.len());
                    at = input.len();
                } else if head.total > longest(head.kind) {
                    break Some(Event::Violation("a message longer than expected"));
                }
                break None;
            }
            if head.kind == b'D' && self.passes_rows() {
                // The bulk of all traffic.
                sink.pass(input, at..end);
                (at, visible) = (end, true);
                continue;
            }
            let frame = &input[at..end];
            match self.frame(head.kind, frame, input, at..end, sink, host) {
                Step::Pass { shown } => visible |= shown,
                Step::Ready { begun } => {
                    visible = begun;
                    self.delivered = begun;
                    mark = sink.len();
                    if self.queue.is_empty() && self.open.is_none() && !self.is_blind() {
                        at = end;
                        break Some(Event::Idle);
                    }
                }
                Step::Again => {
                    sink.truncate(mark);
                    visible = false;
                }
                Step::Stop(event) => {
                    // The refusal itself is left to who deals with the rest of the server's answers.
                    at = if matches!(event, Event::Retry { .. } | Event::Unconfirmed) { at } else { end };
                    let unfounded = match event {
                        // What came before it is why it ends the connection.
                        Event::Fatal { code } => code != *PROTOCOL_VIOLATION,
                        Event::Retry { .. } => true,
                        Event::Idle
                        | Event::Hidden
                        | Event::Position
                        | Event::Again
                        | Event::Unconfirmed
                        | Event::Seen { .. }
                        | Event::TimedOut { .. }
                        | Event::Violation(_) => false,
                    };
                    if unfounded && !self.delivered && !self.stays_begun() {
                        sink.truncate(mark);
                        visible = false;
                    }
                    break Some(event);
                }
            }
            at = end;
        };
        self.delivered |= visible;
        self.confirmed.pass(at);
        Progress { consumed: at, event }
    }

    /// Is more of the frame that `begun` is the start of to come before it is looked at? Else it would be copied again with
    /// each read.
    pub fn assembles(&self, begun: &[u8]) -> bool {
        if begun.is_empty() || self.body_left > 0 {
            return false;
        }
        let whole = head(begun).ok().flatten().filter(|h| h.total > ASSEMBLE_ABOVE && h.total <= longest(h.kind));
        whole.is_some_and(|h| h.total > begun.len())
    }

    /// Nothing more comes of the oldest unit. Has it failed?
    fn end_of_unit(&mut self) -> bool {
        self.confirmed.end_of_unit();
        self.hushed = None;
        std::mem::take(&mut self.failed)
    }

    /// Until its unit is over, what was registered may have to be taken back: the unit is sent again elsewhere.
    fn remember(&mut self, undo: Undo) {
        match undo {
            Undo::None => {}
            // Nothing that the client has seen a part of is sent again, and it may go on for ever.
            _ if self.delivered && self.done.len() >= MAX_DONE => {}
            Undo::Unnamed { .. }
            | Undo::Registered(_)
            | Undo::Removed(..)
            | Undo::RemovedOwn(..)
            | Undo::Closed(..)
            | Undo::Moved(..)
            | Undo::LetGo(..)
            | Undo::Forgotten(..)
            | Undo::All(..)
            | Undo::Prepared(..) => self.done.push(undo),
        }
    }

    /// A unit is over, and nothing of it is taken back any more.
    fn settle(&mut self) {
        for undo in self.done.drain(..) {
            if let Undo::Unnamed { client: Some(Some(Unnamed { tail: Some(tail), .. })), .. } = undo {
                // Kept for as long as the session is: only a short one is worth it.
                if tail.capacity() <= MAX_SPARE {
                    self.spare = tail;
                }
            }
        }
    }

    fn survivors(&self) -> Survivors {
        let mut s = Survivors::default();
        self.queue.iter().for_each(|entry| s.add(&entry.undo));
        s
    }

    fn head_is(&self, kind: Kind) -> bool {
        self.queue.front().is_some_and(|e| e.kind == kind)
    }

    fn pop_described(&mut self) {
        if self.head_is(Kind::DescribeStatement) || self.head_is(Kind::DescribePortal) {
            self.queue.pop_front();
        }
    }

    /// Before a message that answers nothing: the answers of ours that are next belong to what came before the
    /// statement that it is of. Were there any?
    fn ours_first(&mut self, input: &[u8], sink: &mut Sink) -> bool {
        let before = sink.len();
        self.local_answers(input, sink);
        sink.len() > before
    }

    /// Do rows pass as they are? Nothing is hidden or withheld, and no answer of ours is next.
    #[inline]
    fn passes_rows(&self) -> bool {
        let ours = || {
            let head = self.queue.front().map(|entry| entry.kind);
            matches!(head, Some(Kind::LocalParse | Kind::LocalClose | Kind::Mark | Kind::Position | Kind::Discard))
        };
        !self.hiding && !self.withhold && !ours()
    }

    /// Put in the answers that are ours, as far as they are next.
    #[inline]
    fn local_answers(&mut self, input: &[u8], sink: &mut Sink) {
        if self.head_is(Kind::LocalParse) || self.head_is(Kind::LocalClose) {
            self.put_in_local_answers(input, sink);
        }
    }

    #[inline(never)]
    fn put_in_local_answers(&mut self, input: &[u8], sink: &mut Sink) {
        while let Some(entry) = self.queue.front() {
            let kind = match entry.kind {
                Kind::LocalParse => b'1',
                Kind::LocalClose => b'3',
                _ => return,
            };
            if let Some(entry) = self.queue.pop_front() {
                self.remember(entry.undo);
            }
            if !self.withhold {
                backend::write_bare(sink.insert(input), kind);
            }
        }
    }

    /// The same behind a question of ours, which was in front: unless the server's answer to what follows brings them along.
    /// Until something of its answer was told, a unit can be sent again.
    fn local_answers_behind(&mut self, input: &[u8], sink: &mut Sink) {
        let local = |kind| matches!(kind, Kind::LocalParse | Kind::LocalClose);
        if self.queue.iter().find(|e| !local(e.kind)).is_none_or(|e| e.kind == Kind::Sync) {
            let before = sink.len();
            self.local_answers(input, sink);
            self.delivered |= sink.len() > before;
        }
    }

    /// Answers that are ours and that a Flush asks for: the server has nothing to say that would bring them along.
    pub fn flush_local(&mut self, sink: &mut Sink) {
        self.local_answers(&[], sink);
        self.delivered |= !sink.is_empty();
    }
}

fn longest(kind: u8) -> usize {
    if matches!(kind, b'E' | b'N' | b'S') { MAX_TOLD } else { MAX_WHOLE }
}

enum Step {
    Pass {
        /// The client gets it.
        shown: bool,
    },
    Ready {
        /// Answers of ours to the next unit went out behind it.
        begun: bool,
    },
    /// The unit will be sent again: what was handed on of its answers is taken back.
    Again,
    Stop(Event),
}

#[cfg(test)]
mod tests;
