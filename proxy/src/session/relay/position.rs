//! The question behind a write where the primary's WAL ends: nothing of its answer is the client's.
//!
//! It is a simple query in the same write as what may commit, and runs when that is answered: the client does not wait for
//! it. So it is only asked behind what ends outside a block and is no COPY. Should it run in a block all the same, which has
//! failed then, it fails too and tells nothing.

use crate::session::relay::{Entry, Event, Hidden, Kind, Relay, Step, Undo};
use crate::wire::backend::{self, TxStatus, fields};
use crate::wire::codec::Sink;
use crate::wire::frontend;

impl Relay {
    /// Ask behind what was written last. `unnamed` is the server's unnamed statement, which a simple query destroys.
    pub fn ask_position(&mut self, input: &[u8], sql: &str, unnamed: &mut Option<u64>, sink: &mut Sink) {
        frontend::write_query(sink.insert(input), sql);
        let undo = Undo::Unnamed { client: None, server: Some(unnamed.take()), illegible: false };
        self.push(Entry { hidden: true, undo, ..Entry::plain(Kind::Position) });
    }

    /// Is nothing owed outside a block but answers to such questions, and at least one?
    pub fn only_asks_position(&self) -> bool {
        let idle = self.open.is_none() && self.status == TxStatus::Idle;
        // Mostly the first says that it is not: a pipeline may be long.
        idle && !self.queue.is_empty() && self.queue.iter().all(|entry| entry.kind == Kind::Position)
    }

    /// Such questions that are not answered.
    pub(super) fn positions(&self) -> usize {
        self.queue.iter().filter(|entry| entry.kind == Kind::Position).count()
    }

    /// A part of the answer.
    pub(super) fn position_frame(&mut self, kind: u8, frame: &[u8], input: &[u8], sink: &mut Sink) -> Step {
        match kind {
            b'T' => self.hidden = Hidden::default(),
            b'D' if self.hidden.rows.is_empty() => self.hidden.rows.extend(backend::text_row(frame)),
            b'E' => {
                let f = fields(frame);
                if f.is_fatal() {
                    let code = f.code.try_into().unwrap_or(*b"00000");
                    return Step::Stop(Event::Fatal { code });
                }
                // Cancelled, or in a block that has failed.
                self.hidden = Hidden { error: Some(frame.into()), ..Hidden::default() };
            }
            b'Z' => {
                if backend::ready_status(frame).is_none() {
                    return Step::Stop(Event::Violation("a malformed ReadyForQuery"));
                }
                self.queue.pop_front();
                self.owed -= 1;
                self.unnamed_unconfirmed &= !self.queue.is_empty();
                self.local_answers_behind(input, sink);
                return Step::Stop(Event::Position);
            }
            b'C' | b'N' => {}
            _ => return Step::Stop(Event::Violation("an answer to something that was not asked")),
        }
        Step::Pass { shown: false }
    }
}
