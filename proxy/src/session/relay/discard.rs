//! DISCARD SEQUENCES in front of what may draw from sequences: nothing of its answer is the client's.
//!
//! It is a simple query in the same write as what follows it, outside of any block. Should it run in a block that has failed
//! all the same, or be cancelled, it does nothing, and that is told.

use crate::session::relay::{Entry, Event, Kind, Relay, Step, Undo};
use crate::wire::backend::{self, fields};
use crate::wire::codec::Sink;
use crate::wire::frontend;

/// What is sent.
pub const DISCARD: &str = "DISCARD SEQUENCES";

impl Relay {
    /// Discard in front of what is written next. `unnamed` is the server's unnamed statement, which a simple query destroys.
    pub fn discard_sequences(&mut self, input: &[u8], unnamed: &mut Option<u64>, sink: &mut Sink) {
        frontend::write_query(sink.insert(input), DISCARD);
        let undo = Undo::Unnamed { client: None, server: Some(unnamed.take()), illegible: false };
        self.push(Entry { hidden: true, undo, ..Entry::plain(Kind::Discard) });
    }

    /// A part of the answer.
    pub(super) fn discard_frame(&mut self, kind: u8, frame: &[u8], input: &[u8], sink: &mut Sink) -> Step {
        match kind {
            b'E' => {
                let f = fields(frame);
                if f.is_fatal() {
                    let code = f.code.try_into().unwrap_or(*b"00000");
                    return Step::Stop(Event::Fatal { code });
                }
                self.discarded = Some(false);
            }
            b'Z' => {
                if backend::ready_status(frame).is_none() {
                    return Step::Stop(Event::Violation("a malformed ReadyForQuery"));
                }
                // The status stays what the client was told last.
                self.queue.pop_front();
                self.owed -= 1;
                self.discarded.get_or_insert(true);
                self.unnamed_unconfirmed &= !self.queue.is_empty();
                self.local_answers_behind(input, sink);
                if self.queue.is_empty() && self.open.is_none() {
                    // What it was to be in front of was not sent.
                    return Step::Stop(Event::Idle);
                }
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
    use crate::session::relay::Host;
    use crate::wire::backend::{TxStatus, write_bare, write_command_complete, write_ready};
    use crate::wire::error_response::ClientError;

    fn told(relay: &mut Relay, said: &[u8]) -> (Vec<u8>, Option<Event>) {
        let host: &dyn Host = &|| ClientError::InFailedTransaction;
        let mut sink = Sink::default();
        let progress = relay.server_bytes(said, &mut sink, host);
        (sink.bytes(said).to_vec(), progress.event)
    }

    #[test]
    fn nothing_of_it_is_the_clients_and_what_comes_behind_it_is() {
        for fails in [false, true] {
            let (mut relay, mut unnamed) = (Relay::default(), Some(3));
            relay.discard_sequences(b"", &mut unnamed, &mut Sink::default());
            assert_eq!(unnamed, None, "a simple query destroys it");
            // A Parse that needs no server, and a Flush: nothing of the server's would bring its answer along.
            relay.push(Entry::plain(Kind::LocalParse));
            relay.push(Entry::plain(Kind::Sync));
            let mut said = Vec::new();
            if fails {
                ClientError::Cancelled.encode(&mut said);
            } else {
                write_command_complete(&mut said, "DISCARD SEQUENCES");
            }
            write_ready(&mut said, TxStatus::Idle);
            let mut want = Vec::new();
            write_bare(&mut want, b'1');
            assert_eq!(told(&mut relay, &said), (want, None), "fails: {fails}");
            assert_eq!((relay.discarded, relay.owed(), relay.errors.len()), (Some(!fails), 1, 0));
        }
    }

    #[test]
    fn it_leaves_the_session_at_rest_where_nothing_was_sent_behind_it() {
        let mut relay = Relay::default();
        relay.discard_sequences(b"", &mut None, &mut Sink::default());
        let mut said = Vec::new();
        write_ready(&mut said, TxStatus::Idle);
        assert_eq!(told(&mut relay, &said), (Vec::new(), Some(Event::Idle)));
        assert!(!relay.busy());
    }
}
