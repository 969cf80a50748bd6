//! The client's bytes on their way in: messages are cut into units, thrown away, passed on or refused.

use crate::console::tally::Counter;
use crate::metrics::{Source, bump};
use crate::session::batch::{self, Limits, Scan, Unit};
use crate::session::client::{Failure, MAX_PENDING, MAX_TEXT, Session, Tail, Turn, fill, read_more};
use crate::session::lost;
use crate::session::statements::OVERHEAD;
use crate::session::turn::is_told;
use crate::sql::{PinReason, Statement};
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::head;
use crate::wire::error_response::{ClientError, Severity};
use crate::wire::frontend::{self, Subject};
use cluster::Role;
use cluster::per_term::Fate;
use cluster::topology::Gate;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes of a message above which it is gathered in place.
const LONG: usize = 128 * 1024;

impl Session {
    /// Keep what was not used of the client's bytes.
    pub(super) fn keep(&mut self, mut bytes: Vec<u8>, (used, turn): (usize, Option<Turn>)) -> Result<(), Turn> {
        bytes.drain(..used);
        // What `lost` or `fail` put back comes first.
        if self.inbox.is_empty() {
            self.inbox = if bytes.is_empty() { Vec::new() } else { bytes };
        } else {
            self.inbox.extend_from_slice(&bytes);
        }
        turn.map_or(Ok(()), Err)
    }

    pub(super) fn read_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        if self.eof || self.client_dry || self.behind || !self.to_server.is_empty() || !self.to_client.is_empty() {
            return Ok(false);
        }
        let limit = self.w.config().relay_buffer;
        if self.inbox.len() >= limit && !self.wants_more {
            return Ok(false);
        }
        if !self.client.may_read() {
            self.client_dry = true;
            return Ok(false);
        }
        self.client_wakes = false;
        if self.inbox.len() >= LONG {
            return self.read_long(limit, cx);
        }
        let mut scratch = self.w.take_scratch();
        let kept = fill(&mut scratch, &self.inbox, limit);
        let outcome = match self.client.poll_fill(&mut scratch[kept..kept + limit], cx) {
            Poll::Pending => {
                (self.client_dry, self.client_wakes) = (true, is_told());
                Ok(false)
            }
            Poll::Ready(Err(_)) => Err(Turn::Close),
            Poll::Ready(Ok(0)) => {
                self.eof = true;
                Ok(true)
            }
            Poll::Ready(Ok(n)) => {
                self.tally.add(Counter::Received, n as u64);
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

    /// The rest of a message that is read whole and is long. It is gathered in place: to copy what is there with every
    /// read would cost the square of its length.
    #[cold]
    fn read_long(&mut self, limit: usize, cx: &mut Context<'_>) -> Result<bool, Turn> {
        match read_more(&self.w, &mut self.client, &mut self.inbox, limit, cx) {
            Poll::Pending => {
                (self.client_dry, self.client_wakes) = (true, is_told());
                Ok(false)
            }
            Poll::Ready(Err(_)) => Err(Turn::Close),
            Poll::Ready(Ok(0)) => {
                self.eof = true;
                Ok(true)
            }
            Poll::Ready(Ok(n)) => {
                self.tally.add(Counter::Received, n as u64);
                let inbox = std::mem::take(&mut self.inbox);
                let outcome = self.advance(&inbox);
                self.keep(inbox, outcome).map(|()| true)
            }
        }
    }

    /// Deal with bytes of the client: how many were used, and what has to happen before more can be.
    pub(super) fn advance(&mut self, input: &[u8]) -> (usize, Option<Turn>) {
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

    pub(super) fn step(&mut self, input: &[u8]) -> Step {
        if self.desynchronised {
            return Step::Wait;
        }
        if let Some(step) = self.pass_tail(input) {
            return step;
        }
        if self.skip || self.fail.is_some() {
            return self.step_failed(input);
        }
        if self.relay.copy_broken() && self.server.is_some() {
            return Step::Wait;
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
    pub(super) fn pass_tail(&mut self, input: &[u8]) -> Option<Step> {
        match self.tail {
            Tail::None => None,
            Tail::Forward(left) => {
                let n = left.min(input.len());
                self.tail = if left > n { Tail::Forward(left - n) } else { Tail::None };
                self.follow_long(&input[..n]);
                self.send(&input[..n]);
                self.ask_for_syncs();
                self.rest_behind_tail();
                Some(Step::Used(n))
            }
            Tail::Discard(left) => {
                let n = left.min(input.len());
                self.tail = if left > n { Tail::Discard(left - n) } else { Tail::None };
                self.rest_behind_tail();
                Some(Step::Used(n))
            }
        }
    }

    /// The rest of a message has come that was answered before, as of a COPY that has failed: the session rests as it could not
    /// within it.
    fn rest_behind_tail(&mut self) {
        if self.tail == Tail::None && self.server.is_some() && !self.relay.busy() {
            self.rest(self.w.now());
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
    pub(super) fn step_failed(&mut self, input: &[u8]) -> Step {
        let head = match batch::frame_head(input, self.longest_message()) {
            Ok(Some(head)) => head,
            Ok(None) => return Step::More,
            Err(error) => return self.violation(&error),
        };
        match (head.kind, self.fail.take()) {
            (b'X', _) => return self.terminate(),
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

    pub(super) fn tell(&mut self, failure: Failure) {
        match failure {
            Failure::Error(error) => self.error(&error),
            Failure::Frame(frame) => {
                let f = backend::fields(&frame);
                let code = f.code.get(..2).map_or(*b"00", |c| [c[0], c[1]]);
                self.w.counts.error(code, Source::Server);
                self.to_client.queue(&backend::as_error(&frame));
            }
        }
        (self.waiting_since, self.hold, self.hint_warned) = (None, None, false);
        self.give_up_unshown();
        self.avoid.clear();
        (self.rechecks, self.refused) = (None, false);
        self.losses.forget();
        self.give_up_block();
        // Nothing is sent for it to a server that was looked for for this, whatever else is in flight there: the next statement looks
        // anew.
        self.chosen = None;
        self.cancelled &= self.relay.busy();
        if !self.relay.busy() && self.relay.status == TxStatus::Idle {
            self.rest(self.w.now());
        }
    }

    /// Tell the client an error of ours.
    pub(super) fn error(&mut self, error: &ClientError) {
        let report = error.report();
        let code = report.sqlstate.as_str().as_bytes();
        self.w.counts.error([code[0], code[1]], Source::Proxy);
        if let ClientError::CommitUnknown { term, .. } | ClientError::CommitUnresolved { term, .. } = error {
            bump(&self.w.counts.in_doubt);
            self.w.count_doubt(*term, Fate::Unknown);
        }
        self.to_client.append(|out| report.encode(out));
    }

    /// ReadyForQuery.
    pub(super) fn ready(&mut self, status: TxStatus) {
        self.to_client.append(|out| backend::write_ready(out, status));
        self.rescan = true;
        if !self.relay.busy() {
            self.mark_rest(self.w.now());
        }
    }

    /// The client says that it goes: it may read its last answer still, so that is sent whole before.
    pub(super) fn terminate(&mut self) -> Step {
        if self.to_client.settle(&mut self.client) { Step::Turn(0, Turn::Close) } else { Step::Wait }
    }

    /// FATAL, and the end: the client broke the protocol, or the process stops. What was answered before is sent first.
    pub(super) fn violation(&mut self, error: &ClientError) -> Step {
        if !self.to_client.settle(&mut self.client) {
            return Step::Wait;
        }
        self.fatal(error);
        Step::Turn(0, Turn::Close)
    }

    /// Tell the client why its connection ends now, as far as its socket takes that.
    pub(super) fn fatal(&mut self, error: &ClientError) {
        let mut report = error.report();
        report.severity = Severity::Fatal;
        self.to_client.append(|out| report.encode(out));
        self.to_client.try_flush(&mut self.client);
    }

    pub(super) fn longest_message(&self) -> usize {
        usize::try_from(self.w.config().max_message_size).unwrap_or(usize::MAX)
    }

    /// The server reads CopyData: runs of it go on as they are.
    pub(super) fn step_copy(&mut self, input: &[u8]) -> Step {
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
                // The server ignores it while it copies, and owes nothing for it.
                b'H' if run == 0 => return Step::Used(head.total.min(input.len())),
                b'c' | b'f' | b'S' if run == 0 && end > input.len() => return Step::More,
                // This as well; but if the COPY has failed, it answers it.
                b'S' if run == 0 => {
                    self.relay.blind_sync();
                    run = end;
                    break;
                }
                b'c' | b'f' if run == 0 => {
                    self.relay.end_copy_in();
                    run = end;
                    break;
                }
                _ if run > 0 => break,
                b'X' => return self.terminate(),
                // The COPY may have failed, which the server has told and we have not heard; else it will say that this
                // is none of its messages, and end the connection.
                _ => return self.step_past_copy(input),
            }
        }
        self.send(&input[..run]);
        if self.relay.is_blind() && !self.relay.copy_in() {
            // How the COPY ended must be known before anything else is sent.
            self.ask_for_answers();
        }
        Step::Used(run)
    }

    /// None of the messages of the COPY that the server reads. It goes to the server as it is; what would wait for an answer
    /// before gets none, so that the proxy ends the connection in its place.
    fn step_past_copy(&mut self, input: &[u8]) -> Step {
        let step = self.cut_unit(input);
        let waits = matches!(step, Step::Wait) && self.relay.copy_in() && !self.cancelling && self.hold.is_none();
        if !waits {
            return step;
        }
        self.violation(&ClientError::ProtocolViolation { what: "unexpected message during COPY from stdin".into() })
    }

    /// A COPY has failed that may have swallowed Syncs: the server is asked, unless a message is half sent.
    pub(super) fn ask_for_syncs(&mut self) {
        if self.tail == Tail::None
            && let Some(question) = self.relay.blind_question()
        {
            self.send(&question);
        }
    }

    /// Let the server hand out what it has to say without a Sync.
    fn ask_for_answers(&mut self) {
        let mut out = Vec::new();
        frontend::write_flush(&mut out);
        self.send(&out);
        self.flushed = true;
    }

    /// Copy messages that came before the server has said whether it copies: they belong to what is in flight.
    pub(super) fn early_copy(&mut self) -> Step {
        if self.relay.owed() > 0 {
            return Step::Wait;
        }
        // Without a Sync only a COPY is answered by itself: ask for the answer, that shows whether it is one.
        self.ask_for_answers();
        Step::Wait
    }

    pub(super) fn step_unit(&mut self, input: &[u8]) -> Step {
        if matches!(input.first(), Some(b'd' | b'c' | b'f')) && self.server.is_some() && self.relay.may_copy() {
            return self.early_copy();
        }
        if self.server.is_some() && !self.may_send_more() {
            return if self.is_endless() { self.press_for_answers() } else { Step::Wait };
        }
        self.cut_unit(input)
    }

    /// Has a unit that has no Sync yet more to be answered than is kept?
    fn is_endless(&self) -> bool {
        self.relay.open.is_some() && self.relay.pending() >= MAX_PENDING && !self.relay.copy_in()
    }

    /// What it is owed so far is answered before it goes on.
    pub(super) fn press_for_answers(&mut self) -> Step {
        if self.relay.hiding() || self.relay.is_blind() {
            return Step::Wait;
        }
        if self.tell_local() {
            return Step::Used(0);
        }
        if !self.flushed {
            self.ask_for_answers();
        }
        Step::Wait
    }

    /// Cut the next unit and send it on its way.
    fn cut_unit(&mut self, input: &[u8]) -> Step {
        // Within a COPY nothing of what is owed will come: the server waits for the client.
        let waits = self.relay.owed() > 0 && !self.relay.copy_in();
        let mut cut = self.cut.take();
        let functions = self.functions.has_changed().unwrap_or(false);
        if functions {
            let table = self.functions.borrow_and_update().clone();
            let knows = table.number() >= self.knows_from;
            self.table = if knows { table } else { Arc::new(table.outdated()) };
        }
        if functions || self.misroutes != self.w.misroutes.borrow().version() {
            self.reclassify();
            cut = None;
        }
        let mut classes = std::mem::take(&mut self.classes);
        let scan = match cut {
            // What has come since is behind it.
            Some(unit) => {
                debug_assert!(self.is_cut_so(input, &unit));
                Scan::Unit(*unit)
            }
            None => {
                classes.clear();
                self.scan(input, &mut classes)
            }
        };
        let step = match scan {
            Scan::More => Step::More,
            // What was asked before is answered first.
            Scan::Terminate if self.relay.owed() > 0 && self.server.is_some() => Step::Wait,
            Scan::Terminate => self.terminate(),
            Scan::Ignore(total) => self.discard(total, input),
            Scan::Violation(error) => self.violation(&error),
            // An earlier unit that fails leaves the server another unnamed statement than one that does not.
            Scan::Unit(unit) if waits && unit.takes_unnamed && self.relay.unnamed_unconfirmed() => Step::Wait,
            Scan::Unit(unit) if waits && self.names_in_doubt(input, &unit) => Step::Wait,
            Scan::Unit(unit) => {
                let step = self.route(input, &unit, &classes);
                if matches!(step, Step::Turn(0, Turn::Acquire { .. })) && unit.complete && unit.tail_left == 0 {
                    self.cut = Some(Box::new(unit));
                }
                step
            }
        };
        self.classes = classes;
        step
    }

    /// What the input starts with.
    fn scan(&self, input: &[u8], classes: &mut Vec<Statement>) -> Scan {
        let (classifier, config) = (self.classifier(), self.w.config());
        let cx = batch::Context {
            statements: &self.statements,
            classify: &|sql| classifier.of(sql),
            open: self.relay.open,
            portal_may_commit: self.portal_may_commit,
            impatient: self.impatient || self.relay.copy_in(),
            limits: Limits {
                unit: config.relay_buffer,
                text: MAX_TEXT,
                message: self.longest_message(),
                statements: self.account.most(config.statement_bytes()),
            },
        };
        batch::scan(input, &cx, classes)
    }

    /// Would the unit be cut the same now? What is remembered of refusals may end at any time.
    fn is_cut_so(&self, input: &[u8], unit: &Unit) -> bool {
        !self.w.misroutes.borrow().is_empty() || self.scan(input, &mut Vec::new()) == Scan::Unit(unit.clone())
    }

    /// Does a unit name what units before it in the pipeline may have made or dropped?
    fn names_in_doubt(&self, input: &[u8], unit: &Unit) -> bool {
        let (Some(server), Some(doubt)) = (&self.server, self.relay.in_doubt()) else { return false };
        if doubt.all || unit.sql_names || unit.forgets || self.pins.has(PinReason::Prepare) {
            return true;
        }
        let texts = self.w.texts.borrow();
        let prepares = |tail: &[u8]| texts.known(tail, self.parse_key).is_some_and(|id| doubt.ids.contains(&id));
        let (mut at, mut bytes) = (0, server.meta.statements.bytes());
        while at < unit.len {
            let Some(head) = head(&input[at..]).ok().flatten() else { return true };
            let frame = &input[at..(at + head.total).min(unit.len)];
            at += head.total;
            let name = match head.kind {
                b'P' => frontend::parse(frame).map(|p| {
                    bytes += p.tail.len() + OVERHEAD;
                    (p.name, prepares(p.tail))
                }),
                b'B' => frontend::bind(frame).map(|b| (b.statement, false)),
                b'D' | b'C' => match frontend::subject(frame) {
                    Some(Subject::Statement(name)) => Some((name, false)),
                    Some(Subject::Portal(_)) | None => None,
                },
                _ => None,
            };
            let Some((name, again)) = name.filter(|(name, _)| !name.is_empty()) else { continue };
            let here = self.statements.named(name).is_some_and(|named| {
                bytes += named.text.tail.len() + OVERHEAD;
                doubt.ids.contains(&named.text.id) || prepares(&named.text.tail)
            });
            if again || here || doubt.names.contains(&name) {
                return true;
            }
        }
        // What is closed to make room must be known to be there.
        bytes > usize::try_from(self.w.config().server_statement_bytes).unwrap_or(usize::MAX)
    }

    /// Behind what was sent already, may more be sent before that is answered?
    pub(super) fn may_send_more(&self) -> bool {
        let Some(server) = &self.server else { return false };
        if self.relay.hiding() || self.relay.is_blind() {
            return false;
        }
        if self.is_endless() {
            return false;
        }
        if self.relay.open.is_some() || !self.relay.busy() {
            return true;
        }
        // What is sent to the primary may be followed by anything; a standby gets one unit at a time.
        server.meta.role == Role::Primary
            && self.relay.pending() < MAX_PENDING
            && self.w.gate(self.w.now()) == Gate::Open
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
