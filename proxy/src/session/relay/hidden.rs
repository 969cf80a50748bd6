//! Queries of ours to the server that a session holds: alone in flight, and nothing of their answers is the client's.

use crate::session::relay::described::{columns, types};
use crate::session::relay::{Entry, Event, Kind, Relay, Step};
use crate::wire::backend::{self, fields};

/// Rows of an answer to a query of ours at most, bytes: tens of thousands of channels.
const MAX_HIDDEN_BYTES: usize = 2 << 20;

/// What a query of ours was answered.
#[derive(Debug, Default)]
pub struct Hidden {
    /// Its rows, as far as they are text.
    pub rows: Vec<Vec<Option<String>>>,
    /// What they took on the wire, bytes.
    pub(super) bytes: usize,
    /// The parameters' types that were described last, as a Parse message has them.
    pub types: Vec<u8>,
    /// These parameters and their columns, hashed.
    pub columns: u64,
    /// The ErrorResponse, when it failed.
    pub error: Option<Vec<u8>>,
    /// A commit in it has given up waiting for standbys.
    pub unreplicated: bool,
}

impl Relay {
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

    /// A part of the answer to a query of ours.
    pub(super) fn hide_frame(&mut self, kind: u8, frame: &[u8]) -> Step {
        match kind {
            b'D' => {
                self.hidden.bytes += frame.len();
                match backend::text_row(frame) {
                    Some(row) if self.hidden.bytes <= MAX_HIDDEN_BYTES => self.hidden.rows.push(row),
                    _ => return Step::Stop(Event::Violation("a row that was not asked for")),
                }
            }
            b'E' => {
                let f = fields(frame);
                if f.is_fatal() {
                    let code = f.code.try_into().unwrap_or(*b"00000");
                    return Step::Stop(Event::Fatal { code });
                }
                self.hidden.error = Some(frame.to_vec());
            }
            b'S' => self.learn(frame),
            b'Z' => {
                let Some(status) = backend::ready_status(frame) else {
                    return Step::Stop(Event::Violation("a malformed ReadyForQuery"));
                };
                self.queue.pop_front();
                (self.owed, self.status, self.hiding) = (0, status, false);
                return Step::Stop(Event::Hidden);
            }
            b'N' => self.hidden.unreplicated |= fields(frame).routine == b"SyncRepWaitForLSN",
            b't' => self.hidden.types = types(frame).to_vec(),
            b'T' | b'n' => self.hidden.columns = columns(&self.hidden.types, frame),
            b'C' | b'I' | b'1' | b'3' => {}
            _ => return Step::Stop(Event::Violation("an answer to something that was not asked")),
        }
        Step::Pass { shown: false }
    }
}
