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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::relay::testing::{error, feed, plain, shape};
    use crate::wire::backend::{write_command_complete, write_ready};
    use crate::wire::codec::message;

    /// What a server answers to the question behind a write.
    fn position(out: &mut Vec<u8>) {
        message(out, b'T', |b| b.extend_from_slice(&[0, 0]));
        message(out, b'D', |b| b.extend_from_slice(b"\0\x01\0\0\0\x030/7"));
        write_command_complete(out, "SELECT 1");
        write_ready(out, TxStatus::Idle);
    }

    #[test]
    fn a_position_is_asked_for_behind_a_write_and_its_answer_is_not_the_clients() {
        for pieces in [&[][..], &[1, 1, 1, 20, 1], &[33, 7]] {
            let (mut relay, mut sink, mut unnamed) = (Relay::default(), Sink::default(), Some(7));
            relay.push(plain(Kind::Query));
            relay.ask_position(b"", "select 1", &mut unnamed, &mut sink);
            assert_eq!((shape(sink.bytes(b"")).as_str(), unnamed), ("Q", None));
            assert!(!relay.only_asks_position(), "the write is owed");
            // What comes next is sent without waiting for it: a Parse that needs no server, and a Flush.
            let mut said = Vec::new();
            write_command_complete(&mut said, "INSERT 0 1");
            write_ready(&mut said, TxStatus::Idle);
            let (told, events) = feed(&mut relay, &said, pieces);
            assert_eq!((shape(&told).as_str(), events), ("CZ", vec![]), "the client does not wait for it");
            assert!(relay.only_asks_position() && relay.busy());
            relay.push(plain(Kind::LocalParse));
            said.clear();
            position(&mut said);
            let (told, events) = feed(&mut relay, &said, pieces);
            assert_eq!((shape(&told).as_str(), events), ("1", vec![Event::Position]));
            assert_eq!((relay.hidden.rows.as_slice(), relay.owed()), (&[vec![Some("0/7".to_owned())]][..], 0));
        }
    }

    #[test]
    fn a_position_that_cannot_be_told_is_nobodys_error() {
        let (mut relay, mut sink) = (Relay::default(), Sink::default());
        relay.push(plain(Kind::Query));
        relay.ask_position(b"", "select 1", &mut None, &mut sink);
        let mut said = Vec::new();
        write_command_complete(&mut said, "INSERT 0 1");
        write_ready(&mut said, TxStatus::Idle);
        error(&mut said, "ERROR", "57014", "ProcessInterrupts");
        write_ready(&mut said, TxStatus::Idle);
        let (told, events) = feed(&mut relay, &said, &[]);
        assert_eq!((shape(&told).as_str(), events), ("CZ", vec![Event::Position]));
        assert!(relay.hidden.error.is_some() && relay.errors.is_empty() && !relay.busy());
    }

    #[test]
    fn a_position_asked_for_behind_a_unit_leaves_none_of_its_names_in_doubt() {
        let (mut relay, mut sink) = (Relay::default(), Sink::default());
        relay.push(plain(Kind::Query));
        relay.forgets();
        relay.ask_position(b"", "select 1", &mut None, &mut sink);
        assert!(relay.in_doubt().is_some_and(|doubt| doubt.all));
        let mut said = Vec::new();
        write_command_complete(&mut said, "DEALLOCATE ALL");
        write_ready(&mut said, TxStatus::Idle);
        feed(&mut relay, &said, &[]);
        assert_eq!(relay.in_doubt(), None);
        said.clear();
        position(&mut said);
        feed(&mut relay, &said, &[]);
        relay.push(plain(Kind::Query));
        assert_eq!(relay.in_doubt(), None, "what comes behind need not wait");
    }
}
