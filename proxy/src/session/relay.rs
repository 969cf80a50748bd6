//! The answers a server owes, and what of its bytes goes to the client.
//!
//! Every message forwarded leaves an [`Entry`]; every answer takes one away. So injected answers are taken out and
//! answers of our own put in at their place, an error in the extended protocol skips to its Sync as the server does,
//! and at any moment it is known which ReadyForQuery is owed for what. Data is not decoded: runs of frames pass as
//! they are, and a frame that is larger than what was read passes in pieces.

use crate::session::outcome::Record;
use crate::session::statements::{Named, Text, Unnamed};
use crate::wire::backend::{self, TxStatus, fields};
use crate::wire::codec::{BadLength, Sink, head};
use crate::wire::error_response::ClientError;
use std::collections::VecDeque;
use std::rc::Rc;

/// A data frame above this size passes before it is complete, bytes.
const STREAM_ABOVE: usize = 32 * 1024;
/// Longest frame that must be read whole (errors, notices, tags), bytes.
const MAX_WHOLE: usize = 1 << 20;
/// Rows of an answer to a query of ours at most.
const MAX_HIDDEN_ROWS: usize = 4096;

/// Longest buffer kept for the next unnamed statement's text, bytes.
const MAX_SPARE: usize = 4096;

/// What was forwarded, or answered in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Parse.
    Parse,
    /// Bind.
    Bind,
    /// Describe of a statement.
    DescribeStatement,
    /// Describe of a portal.
    DescribePortal,
    /// Execute.
    Execute,
    /// Close.
    Close,
    /// Sync.
    Sync,
    /// Query.
    Query,
    /// FunctionCall.
    Function,
    /// A Parse that needs no server: ParseComplete is ours.
    LocalParse,
    /// A Close that needs no server: CloseComplete is ours.
    LocalClose,
}

impl Kind {
    /// Does it owe a ReadyForQuery?
    pub const fn owes_ready(self) -> bool {
        matches!(self, Self::Sync | Self::Query | Self::Function)
    }
}

/// What to take back when a message fails or is skipped.
#[derive(Clone, Debug, Default)]
pub enum Undo {
    /// Nothing.
    #[default]
    None,
    /// The unnamed statement was replaced or destroyed. What the client had, and which one the server had; the outer
    /// `None` where nothing was changed.
    Unnamed {
        /// The client's.
        client: Option<Option<Unnamed>>,
        /// The serial of the server's.
        server: Option<Option<u64>>,
    },
    /// A client's statement was registered under this name.
    Registered(Box<[u8]>),
    /// A client's statement was removed.
    Removed(Box<[u8]>, Named),
    /// A text was to be prepared on the server; for a named Parse also the client's name.
    Prepared(Rc<Text>, Option<Box<[u8]>>),
    /// A statement was to be closed on the server: its number and its name there.
    Closed(u64, Box<[u8]>),
    /// A client's statement was removed and was to be closed on the server, where it has the same name.
    RemovedOwn(Box<[u8]>, Named),
}

impl Undo {
    /// Does it change which names the client's statements have?
    const fn names(&self) -> bool {
        match self {
            Self::Registered(_) | Self::Removed(..) | Self::RemovedOwn(..) | Self::Prepared(_, Some(_)) => true,
            Self::None | Self::Unnamed { .. } | Self::Prepared(_, None) | Self::Closed(..) => false,
        }
    }

    /// What is left of it for a server that has done what it was told.
    fn of_client(self) -> Self {
        match self {
            Self::Prepared(_, Some(name)) => Self::Registered(name),
            Self::Unnamed { client, .. } => Self::Unnamed { client, server: None },
            Self::RemovedOwn(name, named) => Self::Removed(name, named),
            Self::Prepared(_, None) | Self::Closed(..) => Self::None,
            Self::None | Self::Registered(_) | Self::Removed(..) => self,
        }
    }
}

/// A message whose answer is owed.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Injected by us: its answer is not for the client.
    pub hidden: bool,
    /// For what owes a ReadyForQuery: what its unit does.
    pub record: Option<Record>,
    /// What to take back when it fails.
    pub undo: Undo,
    /// It is bound to fail, and this is the error to report in place of the server's.
    pub refusal: Option<Box<ClientError>>,
    /// The shared statement it names, and whether the client uses that for the first time.
    pub uses: Option<(Rc<Text>, bool)>,
}

impl Entry {
    /// A message of the client without more to it.
    pub const fn plain(kind: Kind) -> Self {
        Self { kind, hidden: false, record: None, undo: Undo::None, refusal: None, uses: None }
    }
}

/// Why [`Relay::server_bytes`] stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A ReadyForQuery passed, and no answer is owed.
    Idle,
    /// A query of ours is answered: [`Relay::hidden`] has what it said.
    Hidden,
    /// A standby refused or broke off a read of which nothing has reached the client.
    Retry {
        /// The server's SQLSTATE.
        code: [u8; 5],
    },
    /// The only unit in flight failed because a shared statement's result has other columns now, which its client does
    /// not know: nothing of it has reached the client, the server is idle again, and the unit is to be sent again.
    Again,
    /// The server says FATAL or PANIC: it closes the connection.
    Fatal {
        /// The server's SQLSTATE.
        code: [u8; 5],
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

/// A setting the server reported.
pub type Reported = (String, String);

/// Statements that outlive a DEALLOCATE ALL, because they were prepared behind it.
#[derive(Debug, Default)]
pub struct Survivors {
    /// By the client's names.
    pub names: Vec<Box<[u8]>>,
    /// By their numbers on the server.
    pub ids: Vec<u64>,
}

/// What a query of ours was answered.
#[derive(Debug, Default)]
pub struct Hidden {
    /// Its rows, as far as they are text.
    pub rows: Vec<Vec<Option<String>>>,
    /// The ErrorResponse, when it failed.
    pub error: Option<Vec<u8>>,
}

/// The state of the conversation with the server that the session holds.
#[derive(Debug, Default)]
pub struct Relay {
    queue: VecDeque<Entry>,
    /// Units that owe a ReadyForQuery.
    owed: usize,
    /// The status of the last ReadyForQuery.
    pub status: TxStatus,
    /// The unit that is being sent and has no Sync yet, when there is one.
    pub open: Option<Record>,
    /// The server discards everything until a Sync that has not been sent yet.
    skipping: bool,
    copy_in: bool,
    /// Bytes of a server's frame still to pass.
    body_left: usize,
    /// Part of the answer to the oldest unit has reached the client.
    delivered: bool,
    /// Success must not be reported before the next ReadyForQuery.
    doubt: Option<Box<ClientError>>,
    /// The doubt was reported: the rest of this unit's answers is withheld.
    withhold: bool,
    /// Retry a read's errors elsewhere: the server is a standby.
    pub on_standby: bool,
    /// Nothing is executed there, only parsed: whatever a standby says against that, the primary may know better.
    pub parse_only: bool,
    /// What has to be taken back, in this order.
    pub undone: Vec<Undo>,
    /// Settings the server reported.
    pub reported: Vec<Reported>,
    /// Shared statements whose results have other columns now.
    pub retired: Vec<Rc<Text>>,
    /// All prepared statements were dropped, but for these that were prepared behind it.
    pub forgotten: Option<Survivors>,
    /// A unit in flight may drop all prepared statements.
    forgetting: bool,
    /// The oldest unit was kept whole, so that it can be sent again.
    pub head_kept: bool,
    /// The oldest unit's answers are withheld, because it is sent again.
    again: bool,
    /// A buffer for the next unnamed statement's text.
    pub spare: Vec<u8>,
    /// ReadyForQuery messages that passed.
    pub answered: usize,
    /// A name that was registered or dropped is not confirmed yet.
    unconfirmed: bool,
    /// What the current unit has registered and was answered already.
    done: Vec<Undo>,
    /// Errors that passed, by the first two bytes of their SQLSTATE.
    pub errors: Vec<[u8; 2]>,
    /// A query of ours is in flight, alone; this is what it is answered.
    hiding: bool,
    /// What the last query of ours was answered.
    pub hidden: Hidden,
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
        self.queue.push_back(entry);
    }

    /// A query of ours was sent: nothing of its answer is for the client but what is none of its answer. Nothing else
    /// may be in flight, and nothing may be sent before it is answered.
    pub fn hide(&mut self) {
        self.hidden = Hidden::default();
        self.hiding = true;
        self.push(Entry { hidden: true, ..Entry::plain(Kind::Query) });
    }

    /// Is a query of ours in flight?
    pub fn hiding(&self) -> bool {
        self.hiding
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

    /// A name was registered or dropped by a unit that has not been answered: whether it is free is not known.
    pub fn names_unconfirmed(&self) -> bool {
        (self.unconfirmed || self.forgetting) && !self.queue.is_empty()
    }

    /// What is being sent may drop all prepared statements.
    pub fn forgets(&mut self) {
        self.forgetting = true;
    }

    /// The server reads CopyData.
    pub fn copy_in(&self) -> bool {
        self.copy_in
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

    /// The records of all that was sent and not answered, oldest first, the open unit last.
    pub fn sent(&self) -> Vec<Record> {
        self.queue.iter().filter_map(|e| e.record).chain(self.open).collect()
    }

    /// Is any of what was sent and not answered able to make something durable?
    pub fn may_commit(&self) -> bool {
        let mut at = self.status;
        self.queue.iter().filter_map(|e| e.record).chain(self.open).any(|r| {
            let commits = r.may_commit(at);
            at = r.leads_to(at);
            commits
        })
    }

    /// Is an explicit COMMIT or PREPARE TRANSACTION among what was sent and not answered?
    pub fn commit_in_flight(&self) -> bool {
        self.queue.iter().filter_map(|e| e.record).chain(self.open).any(|r| r.commits_explicitly)
    }

    /// Has part of the answer to the oldest unit reached the client?
    pub fn delivered(&self) -> bool {
        self.delivered || self.body_left > 0
    }

    /// From now to the next ReadyForQuery success is not reported: `error` is.
    pub fn doubt(&mut self, error: ClientError) {
        self.doubt.get_or_insert_with(|| Box::new(error));
    }

    /// Give up the server: the entries of what it never answered, oldest first. What they registered is in `undone`.
    pub fn abandon(&mut self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.queue.drain(..).collect();
        for entry in entries.iter_mut().rev() {
            self.undone.push(std::mem::take(&mut entry.undo));
        }
        let done = std::mem::take(&mut self.done);
        if !self.delivered {
            self.undone.extend(done.into_iter().rev());
        }
        (self.owed, self.open, self.skipping, self.copy_in) = (0, None, false, false);
        self.hiding = false;
        (self.body_left, self.delivered, self.doubt, self.withhold) = (0, false, None, false);
        (self.again, self.forgetting) = (false, false);
        entries
    }

    /// Leave the server to finish what it was sent, which nobody waits for any more: the entries owed, as far as the
    /// client is concerned, oldest first. What the client must take back is in `undone`; what is told from here on
    /// is the server's alone.
    pub fn part(&mut self) -> (Vec<Entry>, Self) {
        let mut rest = std::mem::take(self);
        self.status = rest.status;
        let mut entries: Vec<Entry> = rest.queue.iter().cloned().collect();
        self.undone = std::mem::take(&mut rest.undone);
        self.undone.extend(entries.iter_mut().rev().map(|e| std::mem::take(&mut e.undo).of_client()));
        self.undone.extend(rest.done.drain(..).rev().map(Undo::of_client));
        (rest.on_standby, rest.head_kept) = (false, false);
        (entries, rest)
    }

    /// Deal with bytes of the server. `not_replicated` is the error to report for a success that no standby has.
    pub fn server_bytes(
        &mut self,
        input: &[u8],
        sink: &mut Sink,
        not_replicated: &dyn Fn() -> ClientError,
    ) -> Progress {
        let (mut at, mut mark, mut visible) = (0, 0, false);
        let event = loop {
            if self.body_left > 0 {
                let n = self.body_left.min(input.len() - at);
                sink.pass(input, at..at + n);
                (at, self.body_left) = (at + n, self.body_left - n);
                if self.body_left > 0 {
                    break None;
                }
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
                } else if head.total > MAX_WHOLE {
                    break Some(Event::Violation("a message longer than expected"));
                }
                break None;
            }
            let frame = &input[at..end];
            match self.frame(head.kind, frame, input, at..end, sink, not_replicated) {
                Step::Pass { shown } => visible |= shown,
                Step::Ready { begun } => {
                    visible = begun;
                    self.delivered = begun;
                    mark = sink.len();
                    if self.queue.is_empty() && self.open.is_none() {
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
                    at = if matches!(event, Event::Retry { .. }) { at } else { end };
                    if matches!(event, Event::Retry { .. } | Event::Fatal { .. }) && !self.delivered {
                        sink.truncate(mark);
                        visible = false;
                    }
                    break Some(event);
                }
            }
            at = end;
        };
        self.delivered |= visible;
        Progress { consumed: at, event }
    }

    fn shows(&self, kind: u8) -> bool {
        // What is withheld must be read whole to be thrown away; only data can be that long.
        !self.withhold || kind == b'A'
    }

    fn frame(
        &mut self,
        kind: u8,
        frame: &[u8],
        input: &[u8],
        span: std::ops::Range<usize>,
        sink: &mut Sink,
        not_replicated: &dyn Fn() -> ClientError,
    ) -> Step {
        if self.hiding && kind != b'A' {
            return self.hide_frame(kind, frame);
        }
        match kind {
            // The bulk of all traffic first.
            b'D' | b'd' | b'c' => {
                self.local_answers(input, sink);
                self.pass(input, span, sink)
            }
            b'Z' => {
                let Some(status) = backend::ready_status(frame) else {
                    return Step::Stop(Event::Violation("a malformed ReadyForQuery"));
                };
                self.local_answers(input, sink);
                match self.queue.pop_front() {
                    Some(entry) if entry.kind.owes_ready() => self.owed -= 1,
                    _ => return Step::Stop(Event::Violation("a ReadyForQuery that nobody waits for")),
                }
                (self.copy_in, self.status) = (false, status);
                self.unconfirmed = self.unconfirmed && self.queue.iter().any(|e| e.undo.names());
                self.forgetting &= !self.queue.is_empty();
                if std::mem::take(&mut self.again) {
                    self.withhold = false;
                    self.undone.extend(self.done.drain(..).rev().map(Undo::of_client));
                    return Step::Stop(Event::Again);
                }
                if let Some(error) = self.doubt.take() {
                    error.encode(sink.insert(input));
                }
                self.withhold = false;
                self.answered += 1;
                self.settle();
                sink.pass(input, span);
                let before = sink.len();
                self.local_answers(input, sink);
                Step::Ready { begun: sink.len() > before }
            }
            b'C' | b'I' | b's' | b'V' => {
                self.local_answers(input, sink);
                if self.head_is(Kind::Execute) {
                    self.queue.pop_front();
                }
                self.copy_in = false;
                if matches!(&frame[5..], b"DEALLOCATE ALL\0" | b"DISCARD ALL\0") {
                    self.forgotten = Some(self.survivors());
                }
                if let Some(error) = self.doubt.take() {
                    error.encode(sink.insert(input));
                    self.withhold = true;
                    return Step::Pass { shown: true };
                }
                self.pass(input, span, sink)
            }
            b'1' => self.answer(&[Kind::Parse], input, span, sink),
            b'2' => self.answer(&[Kind::Bind], input, span, sink),
            b'3' => self.answer(&[Kind::Close], input, span, sink),
            b't' => {
                self.local_answers(input, sink);
                self.pass(input, span, sink)
            }
            b'T' | b'n' => {
                self.local_answers(input, sink);
                self.pop_described();
                self.pass(input, span, sink)
            }
            b'G' => {
                self.local_answers(input, sink);
                self.copy_in = true;
                if self.head_is(Kind::Execute) {
                    // In copy mode the server ignores the Syncs that were sent behind the Execute already.
                    let before = self.queue.len();
                    let lost = self.queue.iter().skip(1).filter(|e| e.kind == Kind::Sync).filter_map(|e| e.record);
                    let open = lost.fold(self.open.unwrap_or_default(), |mut open, r| {
                        open.absorb(&r);
                        open
                    });
                    self.open = Some(open);
                    self.queue.retain(|e| e.kind != Kind::Sync);
                    self.owed -= before - self.queue.len();
                }
                self.pass(input, span, sink)
            }
            b'H' => {
                self.local_answers(input, sink);
                self.pass(input, span, sink)
            }
            b'E' => self.error(frame, input, span, sink),
            b'N' => {
                let f = fields(frame);
                if f.routine == b"SyncRepWaitForLSN" {
                    self.doubt(not_replicated());
                }
                let shown = self.ours_first(input, sink);
                if !f.code.starts_with(b"57P") {
                    sink.pass(input, span);
                }
                Step::Pass { shown }
            }
            b'S' => {
                self.report(frame);
                let shown = self.ours_first(input, sink);
                sink.pass(input, span);
                Step::Pass { shown }
            }
            b'A' => {
                sink.pass(input, span);
                Step::Pass { shown: false }
            }
            b'W' => Step::Stop(Event::Violation("a COPY in both directions")),
            _ => Step::Stop(Event::Violation("an unknown message type")),
        }
    }

    /// A part of the answer to a query of ours.
    fn hide_frame(&mut self, kind: u8, frame: &[u8]) -> Step {
        match kind {
            b'D' => match backend::text_row(frame) {
                Some(row) if self.hidden.rows.len() < MAX_HIDDEN_ROWS => self.hidden.rows.push(row),
                _ => return Step::Stop(Event::Violation("a row that was not asked for")),
            },
            b'E' => {
                let f = fields(frame);
                if f.is_fatal() {
                    let code = f.code.try_into().unwrap_or(*b"00000");
                    return Step::Stop(Event::Fatal { code });
                }
                self.hidden.error = Some(frame.to_vec());
            }
            b'S' => self.report(frame),
            b'Z' => {
                let Some(status) = backend::ready_status(frame) else {
                    return Step::Stop(Event::Violation("a malformed ReadyForQuery"));
                };
                self.queue.pop_front();
                (self.owed, self.status, self.hiding) = (0, status, false);
                return Step::Stop(Event::Hidden);
            }
            b'T' | b'C' | b'I' | b'N' => {}
            _ => return Step::Stop(Event::Violation("an answer to something that was not asked")),
        }
        Step::Pass { shown: false }
    }

    fn report(&mut self, frame: &[u8]) {
        if let Some((name, value)) = backend::parameter_status(frame) {
            self.reported.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Hand a frame on, unless the unit's answers are withheld.
    fn pass(&mut self, input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) -> Step {
        if !self.withhold {
            sink.pass(input, span);
        }
        Step::Pass { shown: true }
    }

    fn answer(&mut self, kinds: &[Kind], input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) -> Step {
        self.local_answers(input, sink);
        match self.queue.front() {
            Some(entry) if kinds.contains(&entry.kind) => {
                let hidden = entry.hidden;
                if let Some(entry) = self.queue.pop_front() {
                    self.remember(entry.undo);
                }
                if hidden {
                    return Step::Pass { shown: false };
                }
                self.pass(input, span, sink)
            }
            _ => Step::Stop(Event::Violation("an answer to something that was not asked")),
        }
    }

    /// Until its unit is over, what was registered may have to be taken back: the unit is sent again elsewhere.
    fn remember(&mut self, undo: Undo) {
        match undo {
            Undo::None => {}
            Undo::Unnamed { .. }
            | Undo::Registered(_)
            | Undo::Removed(..)
            | Undo::RemovedOwn(..)
            | Undo::Closed(..)
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
        for entry in &self.queue {
            match &entry.undo {
                Undo::Registered(name) => s.names.push(name.clone()),
                Undo::Prepared(text, name) => {
                    s.ids.push(text.id);
                    s.names.extend(name.clone());
                }
                Undo::None | Undo::Unnamed { .. } | Undo::Removed(..) | Undo::RemovedOwn(..) | Undo::Closed(..) => {}
            }
        }
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

    /// Put in the answers that are ours, as far as they are next.
    fn local_answers(&mut self, input: &[u8], sink: &mut Sink) {
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

    /// Answers that are ours and that a Flush asks for: the server has nothing to say that would bring them along.
    pub fn flush_local(&mut self, sink: &mut Sink) {
        self.local_answers(&[], sink);
        self.delivered |= !sink.is_empty();
    }

    fn error(&mut self, frame: &[u8], input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) -> Step {
        let f = fields(frame);
        let mut code = [b'0'; 5];
        if f.code.len() == 5 {
            code.copy_from_slice(f.code);
        }
        if f.is_fatal() {
            return Step::Stop(Event::Fatal { code });
        }
        let stale = code == *b"0A000" && f.routine == b"RevalidateCachedQuery";
        if self.on_standby
            && !self.delivered
            && self.queue.len() + usize::from(self.open.is_some()) > 0
            && (self.parse_only || (elsewhere(&code) && !stale))
        {
            return Step::Stop(Event::Retry { code });
        }
        self.local_answers(input, sink);
        self.copy_in = false;
        if self.again {
            return Step::Pass { shown: false };
        }
        if stale && self.retire_head() {
            self.skip_to_sync();
            (self.again, self.withhold) = (true, true);
            return Step::Again;
        }
        if self.errors.len() < 16 {
            self.errors.push([code[0], code[1]]);
        }
        let refusal = self.fail_head(&code);
        self.doubt = None;
        match refusal {
            Some(error) => error.encode(sink.insert(input)),
            None if self.withhold => {}
            None => sink.pass(input, span),
        }
        Step::Pass { shown: true }
    }

    /// The oldest message has failed: the error to tell instead, when there is one.
    fn fail_head(&mut self, code: &[u8; 5]) -> Option<Box<ClientError>> {
        let entry = self.queue.front_mut()?;
        if entry.kind.owes_ready() {
            // The ReadyForQuery comes by itself, or is the next Sync's.
            return None;
        }
        // A Parse under a name that is taken may fail for other reasons before that one.
        let refusal = entry.refusal.take().filter(|_| entry.kind != Kind::Parse || code == b"42P05");
        if let (Kind::Parse, Undo::Unnamed { client, server }) = (entry.kind, &mut entry.undo) {
            // A Parse that is skipped leaves the unnamed statement as it was; one that fails destroys it first.
            (*client, *server) = (client.take().map(|_| None), Some(None));
        }
        self.skip_to_sync();
        refusal
    }

    /// The oldest message failed because the result of its shared statement has other columns now. True when its client
    /// does not know the old ones and the whole of what is in flight can be sent again.
    fn retire_head(&mut self) -> bool {
        let Some((text, first)) = self.queue.front_mut().and_then(|e| e.uses.take()) else { return false };
        self.retired.push(text);
        let alone = self.open.is_none() && self.owed == 1;
        first && alone && self.head_kept && self.status == TxStatus::Idle && !self.delivered
    }

    /// Throw away what the server throws away after an error in the extended protocol.
    fn skip_to_sync(&mut self) {
        let mut swallowed = Record::default();
        let mut undone = Vec::new();
        loop {
            match self.queue.front_mut() {
                Some(entry) if entry.kind == Kind::Sync => {
                    if let Some(record) = &mut entry.record {
                        record.absorb(&swallowed);
                    }
                    break;
                }
                Some(_) => {
                    let entry = self.queue.pop_front().expect("front_mut was Some");
                    self.owed -= usize::from(entry.kind.owes_ready());
                    swallowed.absorb(&entry.record.unwrap_or_default());
                    undone.push(entry.undo);
                }
                None => {
                    self.skipping = true;
                    self.open.get_or_insert_default().absorb(&swallowed);
                    break;
                }
            }
        }
        self.hand_down_unnamed(&mut undone);
        self.undone.extend(undone.into_iter().rev());
    }

    /// A later unit that was sent already has put another unnamed statement in the place of what is taken back: that
    /// one stays, and what was before comes back only when it fails as well.
    fn hand_down_unnamed(&mut self, undone: &mut [Undo]) {
        let (mut of_client, mut of_server) = (None, None);
        for entry in &mut self.queue {
            if let Undo::Unnamed { client, server } = &mut entry.undo {
                of_client = of_client.or(client.as_mut());
                of_server = of_server.or(server.as_mut());
            }
        }
        // From the last to the first: the oldest state is what remains.
        for undo in undone.iter_mut().rev() {
            if let Undo::Unnamed { client, server } = undo {
                if let Some(later) = &mut of_client
                    && let Some(before) = client.take()
                {
                    **later = before;
                }
                if let Some(later) = &mut of_server
                    && let Some(before) = server.take()
                {
                    **later = before;
                }
            }
        }
    }
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

/// Errors of a standby that the primary, or another standby, would not give: its being in recovery, conflicts with
/// recovery, deadlocks with the startup process, shutdown and crash, its own disk.
fn elsewhere(code: &[u8; 5]) -> bool {
    matches!(code, b"25006" | b"40001" | b"40P01" | b"55000" | b"0A000" | b"57P01" | b"57P02" | b"57P03" | b"57P04")
        || code.starts_with(b"58")
        || code.starts_with(b"XX")
        || code.starts_with(b"53")
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
