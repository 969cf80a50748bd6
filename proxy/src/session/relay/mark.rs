//! The question in front of a COMMIT, which marks it for [`crate::ledger`]: nothing of its answer is the client's.
//!
//! It is a simple query in the same write as the COMMIT, so that its answer leaves the server before the commit begins. In
//! a block that has failed already it fails too, which changes nothing. Should it fail a block that was well (cancelled,
//! or out of time), its COMMIT rolls back, which a client may take for success: that is told the error instead.

use crate::ledger::{Mark, entry};
use crate::session::relay::{Entry, Event, Kind, Relay, Step, Undo};
use crate::wire::backend::{self, TxStatus, fields};
use crate::wire::codec::Sink;
use crate::wire::frontend;

/// The SQLSTATE of a statement in a block that has failed.
const IN_FAILED_BLOCK: &[u8] = b"25P02";
/// insufficient_privilege: the right to call the functions was revoked.
const NOT_ALLOWED: &[u8] = b"42501";

impl Relay {
    /// Ask for the mark of the COMMIT that is written next. `unnamed` is the server's unnamed statement, which a simple
    /// query destroys.
    pub fn ask_mark(&mut self, input: &[u8], unnamed: &mut Option<u64>, sink: &mut Sink) {
        frontend::write_query(sink.insert(input), entry::ASK);
        let undo = Undo::Unnamed { client: None, server: Some(unnamed.take()), illegible: false };
        self.push(Entry { hidden: true, undo, ..Entry::plain(Kind::Mark) });
    }

    /// What the server said just before the COMMIT that is the oldest unit, when it was asked and has answered, and the
    /// client can still be told either outcome.
    pub fn mark(&self) -> Option<Mark> {
        self.mark.filter(|_| !self.delivered() || self.stays_begun())
    }

    /// Has the server not come to the COMMIT that is the oldest unit? A server answers in the order in which it was asked, and
    /// owes the answer to the question before it.
    pub fn awaits_mark(&self) -> bool {
        self.queue.iter().find(|e| e.kind.owes_ready()).is_some_and(|e| e.kind == Kind::Mark)
    }

    /// Do the answers to the first messages of a marked COMMIT hold, whatever becomes of it? Not of a simple query, whose
    /// only answer is its success.
    pub(super) fn stays_begun(&self) -> bool {
        self.mark.is_some() && self.queue.iter().find(|e| e.kind.owes_ready()).is_some_and(|e| e.kind == Kind::Sync)
    }

    /// A part of the answer to it.
    pub(super) fn mark_frame(&mut self, kind: u8, frame: &[u8]) -> Step {
        match kind {
            b'D' => {
                let row = backend::text_columns(frame);
                self.mark = row.and_then(|[xid, lsn, _]| Mark::of_row([xid, lsn]));
                // What has no id waits for nobody, unless it takes one yet.
                let waits = |xid: Option<&str>| xid.is_some() || self.commits.runs_late();
                self.hushed = row.map(|[xid, _, level]| waits(xid) && level.is_none_or(entry::hides_notices));
            }
            b'E' => {
                let f = fields(frame);
                let code = f.code.try_into().unwrap_or(*b"00000");
                if f.is_fatal() {
                    return Step::Stop(Event::Fatal { code });
                }
                if f.code != IN_FAILED_BLOCK {
                    if self.errors.len() < 16 {
                        self.errors.push([code[0], code[1]]);
                    }
                    self.unmarked |= f.code == NOT_ALLOWED;
                    self.foiled = Some(frame.into());
                }
            }
            b'Z' => {
                let Some(status) = backend::ready_status(frame) else {
                    return Step::Stop(Event::Violation("a malformed ReadyForQuery"));
                };
                self.queue.pop_front();
                self.owed -= 1;
                // The status stays what the client was told last.
                if status != TxStatus::Block {
                    // Nothing of it is committed by what follows.
                    (self.mark, self.hushed) = (None, None);
                }
            }
            b'T' | b'C' | b'N' => {}
            _ => return Step::Stop(Event::Violation("an answer to something that was not asked")),
        }
        Step::Pass { shown: false }
    }
}
