//! One whole message of the server: whose answer it is, and whether the client gets it.

use crate::session::relay::confirmed::Told;
use crate::session::relay::{Entry, Event, Host, Kind, Relay, Step, Undo};
use crate::wire::backend::{self, TxStatus, fields};
use crate::wire::codec::Sink;

impl Relay {
    pub(super) fn shows(&self, kind: u8) -> bool {
        // What is withheld must be read whole to be thrown away; only data can be that long.
        !self.withhold || kind == b'A'
    }

    pub(super) fn frame(
        &mut self,
        kind: u8,
        frame: &[u8],
        input: &[u8],
        span: std::ops::Range<usize>,
        sink: &mut Sink,
        host: &dyn Host,
    ) -> Step {
        if self.hiding && kind != b'A' {
            return self.hide_frame(kind, frame);
        }
        match self.queue.front().map(|entry| entry.kind) {
            Some(Kind::Mark) if !matches!(kind, b'A' | b'S') => return self.mark_frame(kind, frame),
            Some(Kind::Position) if !matches!(kind, b'A' | b'S') => {
                return self.position_frame(kind, frame, input, sink);
            }
            Some(Kind::Discard) if !matches!(kind, b'A' | b'S') => return self.discard_frame(kind, frame, input, sink),
            _ => {}
        }
        match kind {
            // The bulk of all traffic first.
            b'D' | b'd' | b'c' => {
                self.local_answers(input, sink);
                self.pass(input, span, sink)
            }
            b'Z' => self.ready(frame, input, span, sink, host),
            b'C' | b'I' | b's' | b'V' => self.end_of_statement(frame, input, span, sink),
            b'1' => self.answer(&[Kind::Parse], input, span, sink),
            b'2' => self.answer(&[Kind::Bind], input, span, sink),
            b'3' => match self.blind_frame(None) {
                Some(step) => step,
                None => self.answer(&[Kind::Close], input, span, sink),
            },
            b't' => {
                self.local_answers(input, sink);
                self.note_types(frame);
                self.pass(input, span, sink)
            }
            b'T' | b'n' => {
                self.local_answers(input, sink);
                self.note_description(frame);
                self.pop_described();
                self.pass_last(input, span, sink)
            }
            b'G' => {
                self.local_answers(input, sink);
                self.begin_copy_in();
                self.pass(input, span, sink)
            }
            b'H' => {
                self.local_answers(input, sink);
                self.pass(input, span, sink)
            }
            b'E' => self.error(frame, input, span, sink, host),
            b'N' => self.notice(frame, input, span, sink, host),
            b'S' => {
                let shown = self.ours_first(input, sink);
                self.report(frame, input, span, sink, host);
                Step::Pass { shown }
            }
            b'A' if host.hears() => {
                self.heard = true;
                let notifying = backend::notifying_pid(frame).and_then(|pid| host.pid_told(pid));
                match notifying {
                    Some(own) => backend::with_notifying_pid(sink.insert(input), frame, own),
                    None => sink.pass(input, span),
                }
                Step::Pass { shown: false }
            }
            b'A' => {
                self.misheard = true;
                Step::Pass { shown: false }
            }
            b'W' => Step::Stop(Event::Violation("a COPY in both directions")),
            _ => Step::Stop(Event::Violation("an unknown message type")),
        }
    }

    /// ReadyForQuery: a unit is over.
    fn ready(
        &mut self,
        frame: &[u8],
        input: &[u8],
        span: std::ops::Range<usize>,
        sink: &mut Sink,
        host: &dyn Host,
    ) -> Step {
        let Some(status) = backend::ready_status(frame) else {
            return Step::Stop(Event::Violation("a malformed ReadyForQuery"));
        };
        if self.is_unconfirmed(Told::End(status), span.end) {
            return Step::Stop(Event::Unconfirmed);
        }
        self.local_answers(input, sink);
        if let Some(step) = self.blind_frame(Some(status)) {
            return step;
        }
        let (hidden, record) = match self.queue.pop_front() {
            Some(entry) if entry.kind.owes_ready() => (entry.hidden, entry.record),
            _ => return Step::Stop(Event::Violation("a ReadyForQuery that nobody waits for")),
        };
        self.owed -= 1;
        if status == TxStatus::Idle {
            self.implicit = false;
        } else if let Some(record) = record.filter(|_| !hidden) {
            // A server of version 18 leaves open what came without a Sync before a Query.
            let begun = self.implicit || self.status == TxStatus::Idle;
            self.implicit = begun && record.leads_to(TxStatus::Idle) == TxStatus::Idle;
        }
        (self.copy_in, self.status) = (false, status);
        if hidden {
            return Step::Pass { shown: false };
        }
        (self.untold, self.mark, self.foiled) = (None, None, None);
        let failed = self.end_of_unit();
        self.executed = false;
        self.unconfirmed = self.unconfirmed && self.queue.iter().any(|e| e.undo.names());
        self.forgetting = self.forgetting && self.queue.iter().any(|e| e.kind != Kind::Position);
        self.unnamed_unconfirmed &= !self.queue.is_empty();
        if std::mem::take(&mut self.again) {
            self.withhold = false;
            self.commits.take_back();
            self.undone.extend(self.done.drain(..).rev().map(Undo::of_client));
            return Step::Stop(Event::Again);
        }
        if let Some(error) = self.doubt.take() {
            error.encode(sink.insert(input));
            self.doubted += 1;
        }
        self.withhold = false;
        self.answered += 1;
        self.commits.answer(status, failed);
        self.ended += usize::from(status == TxStatus::Idle);
        self.kept |= status == TxStatus::Idle;
        self.settle();
        self.take_name_back(input, sink, host);
        sink.pass(input, span);
        let before = sink.len();
        self.local_answers(input, sink);
        Step::Ready { begun: sink.len() > before }
    }

    /// A statement, or a portal as far as it was asked for, is over.
    fn end_of_statement(&mut self, frame: &[u8], input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) -> Step {
        if frame[0] == b'C' && self.is_unconfirmed(Told::Tag(&frame[5..]), span.end) {
            return Step::Stop(Event::Unconfirmed);
        }
        self.confirmed.end_of_statement(frame, span.end);
        self.local_answers(input, sink);
        let hidden = self.queue.front().is_some_and(|e| e.hidden);
        let executed = self.head_is(Kind::Execute);
        if executed && let Some(entry) = self.queue.pop_front() {
            self.remember(entry.undo);
        }
        if hidden {
            return Step::Pass { shown: false };
        }
        (self.copy_in, self.executed) = (false, true);
        self.commits.end_of_statement(if frame[0] == b'C' { &frame[5..] } else { &[] }, executed);
        self.end_blind();
        self.redefined |= crate::sql::redefines(&frame[5..]);
        self.altered |= &frame[5..] == b"ALTER TABLE\0";
        self.rolled_back |= &frame[5..] == b"ROLLBACK\0";
        // Another transaction may follow at once.
        self.kept |= &frame[5..] == b"COMMIT\0";
        self.redefaults |= matches!(&frame[5..], b"ALTER ROLE\0" | b"ALTER DATABASE\0");
        if matches!(&frame[5..], b"DEALLOCATE ALL\0" | b"DISCARD ALL\0") {
            self.forgotten = Some(self.survivors());
        }
        if let Some(frame) = self.foiled.take() {
            if !self.withhold {
                sink.insert(input).extend_from_slice(&frame);
            }
            self.withhold = true;
            return Step::Pass { shown: true };
        }
        if let Some(error) = self.doubt.take() {
            error.encode(sink.insert(input));
            self.doubted += 1;
            self.withhold = true;
            return Step::Pass { shown: true };
        }
        self.pass_last(input, span, sink)
    }

    /// NoticeResponse.
    fn notice(
        &mut self,
        frame: &[u8],
        input: &[u8],
        span: std::ops::Range<usize>,
        sink: &mut Sink,
        host: &dyn Host,
    ) -> Step {
        let f = fields(frame);
        if f.routine == b"SyncRepWaitForLSN" {
            self.doubt(host.not_replicated());
        }
        let shown = self.ours_first(input, sink);
        if let Some(Entry { kind: Kind::Parse, undo: Undo::Prepared(text, _), .. }) = self.queue.front() {
            text.notice();
        }
        if self.queue.front().is_some_and(|e| e.hidden) {
            return Step::Pass { shown };
        }
        // That it ends is told by who sees what becomes of what was sent. A client may raise the same code itself.
        if !(f.code.starts_with(b"57P") && matches!(f.routine, b"quickdie" | b"SyncRepWaitForLSN")) {
            sink.pass(input, span);
        }
        Step::Pass { shown }
    }

    /// Hand a frame on, unless the unit's answers are withheld.
    fn pass(&mut self, input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) -> Step {
        if !self.withhold {
            sink.pass(input, span);
        }
        Step::Pass { shown: true }
    }

    /// Hand on the last frame of a message's answer. Answers of ours that are next follow it: behind what a Flush has asked
    /// for nothing of the server's comes that would bring them along.
    fn pass_last(&mut self, input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) -> Step {
        let step = self.pass(input, span, sink);
        self.local_answers(input, sink);
        step
    }

    fn answer(&mut self, kinds: &[Kind], input: &[u8], span: std::ops::Range<usize>, sink: &mut Sink) -> Step {
        self.local_answers(input, sink);
        match self.queue.front() {
            // What we make fail has not.
            Some(Entry { kind: Kind::Bind, refusal: Some(_), .. }) if kinds.contains(&Kind::Bind) => {
                Step::Stop(Event::Violation("a success where there is nothing to bind"))
            }
            Some(entry) if kinds.contains(&entry.kind) => {
                let hidden = entry.hidden;
                if let Some(entry) = self.queue.pop_front() {
                    self.remember(entry.undo);
                }
                if hidden {
                    return Step::Pass { shown: false };
                }
                self.pass_last(input, span, sink)
            }
            _ => Step::Stop(Event::Violation("an answer to something that was not asked")),
        }
    }
}
