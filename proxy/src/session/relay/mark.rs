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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::relay::testing::{error, feed, plain, shape};
    use crate::wire::backend::{write_command_complete, write_ready};
    use crate::wire::codec::message;

    /// A block's COMMIT with the question in front of it, and what the server says to both.
    fn marked(
        row: Option<[Option<&str>; 2]>,
        error_code: Option<&str>,
        status: TxStatus,
        tag: &str,
    ) -> (Relay, Vec<u8>) {
        let mut relay = Relay { status: TxStatus::Block, ..Relay::default() };
        let mut sink = Sink::default();
        relay.ask_mark(&[], &mut Some(7), &mut sink);
        assert_eq!(shape(sink.bytes(&[])), "Q");
        relay.push(plain(Kind::Query));
        let mut said = Vec::new();
        if let Some(row) = row {
            message(&mut said, b'T', |b| b.extend_from_slice(&[0, 0]));
            message(&mut said, b'D', |b| {
                b.extend_from_slice(&[0, 3]);
                for value in row.into_iter().chain([Some("notice")]) {
                    b.extend_from_slice(&value.map_or(-1, |v| v.len() as i32).to_be_bytes());
                    b.extend_from_slice(value.unwrap_or_default().as_bytes());
                }
            });
            write_command_complete(&mut said, "SELECT 1");
        }
        if let Some(code) = error_code {
            error(&mut said, "ERROR", code, "any");
        }
        write_ready(&mut said, status);
        let (told, events) = feed(&mut relay, &said, &[3, 50]);
        assert_eq!((shape(&told).as_str(), events), ("", Vec::new()), "nothing of it is the client's");
        let mut rest = Vec::new();
        write_command_complete(&mut rest, tag);
        write_ready(&mut rest, TxStatus::Idle);
        (relay, rest)
    }

    #[test]
    fn a_commit_is_marked_by_what_the_server_said_before_it_until_it_is_answered() {
        let (mut relay, rest) = marked(Some([Some("731"), Some("0/5000060")]), None, TxStatus::Block, "COMMIT");
        assert_eq!(relay.mark(), Some(Mark { xid: Some(731), lsn: cluster::Lsn(0x500_0060) }));
        assert_eq!((relay.status, relay.owed()), (TxStatus::Block, 1));
        let (told, events) = feed(&mut relay, &rest, &[]);
        assert_eq!((shape(&told).as_str(), events), ("CZ", vec![Event::Idle]));
        assert_eq!((relay.mark(), relay.status), (None, TxStatus::Idle));
        let (mut relay, _) = marked(Some([None, Some("0/5000060")]), None, TxStatus::Block, "COMMIT");
        assert_eq!(relay.mark(), Some(Mark { xid: None, lsn: cluster::Lsn(0x500_0060) }));
        relay.abandon();
        assert_eq!(relay.mark(), None, "nor of the next server");
    }

    #[test]
    fn a_question_that_fails_a_good_block_is_told_and_one_in_a_failed_block_is_not() {
        // Cancelled: what was a COMMIT rolls back, and must not look like a success.
        let (mut relay, rest) = marked(None, Some("57014"), TxStatus::Failed, "ROLLBACK");
        assert_eq!((relay.mark(), relay.status), (None, TxStatus::Block), "the client believes in its block");
        let (told, _) = feed(&mut relay, &rest, &[]);
        assert_eq!(shape(&told), "E(57014)Z");
        assert_eq!(relay.status, TxStatus::Idle);
        // An earlier unit of the pipeline had failed, and that was told.
        let (mut relay, rest) = marked(None, Some("25P02"), TxStatus::Failed, "ROLLBACK");
        let (told, _) = feed(&mut relay, &rest, &[]);
        assert_eq!(shape(&told), "CZ");
        // Outside a block there is nothing to be marked.
        let (relay, _) = marked(Some([None, Some("0/5000060")]), None, TxStatus::Idle, "COMMIT");
        assert_eq!(relay.mark(), None);
    }
}
