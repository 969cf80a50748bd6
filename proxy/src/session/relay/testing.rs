//! What the tests of the relay share: entries of the queue, messages of a server, and how they reach it.

use super::*;
use crate::wire::backend::fields;
use crate::wire::codec::{cstring, message};

pub(super) fn doubt() -> ClientError {
    ClientError::InFailedTransaction
}

pub(super) fn plain(kind: Kind) -> Entry {
    let record = kind.owes_ready().then(Record::default);
    Entry { record, ..Entry::plain(kind) }
}

pub(super) fn hidden(kind: Kind) -> Entry {
    Entry { hidden: true, ..plain(kind) }
}

pub(super) fn error(out: &mut Vec<u8>, severity: &str, code: &str, routine: &str) {
    message(out, if severity == "WARNING" { b'N' } else { b'E' }, |b| {
        for (kind, text) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', "m"), (b'R', routine)] {
            b.push(kind);
            cstring(b, text.as_bytes());
        }
        b.push(0);
    });
}

/// The messages in `bytes`: type, and for an error its code.
pub(super) fn shape(bytes: &[u8]) -> String {
    let (mut at, mut out) = (0, String::new());
    while let Some(h) = head(&bytes[at..]).unwrap() {
        let frame = &bytes[at..at + h.total];
        out.push(h.kind as char);
        if h.kind == b'E' {
            out.push_str(&format!("({})", String::from_utf8_lossy(fields(frame).code)));
        }
        at += h.total;
    }
    assert_eq!(at, bytes.len(), "whole messages only");
    out
}

/// Feed `input` in pieces of the given sizes, as sockets do.
pub(super) fn feed(relay: &mut Relay, input: &[u8], pieces: &[usize]) -> (Vec<u8>, Vec<Event>) {
    let (mut out, mut events, mut left, mut fed) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut pieces = pieces.iter().copied().chain(std::iter::repeat(usize::MAX));
    while fed < input.len() {
        let n = pieces.next().unwrap().clamp(1, input.len() - fed);
        left.extend_from_slice(&input[fed..fed + n]);
        fed += n;
        loop {
            let mut sink = Sink::default();
            let progress = relay.server_bytes(&left, &mut sink, &doubt);
            out.extend_from_slice(sink.bytes(&left));
            left.drain(..progress.consumed);
            match progress.event {
                Some(event @ Event::Retry { .. }) => {
                    events.push(event);
                    return (out, events);
                }
                Some(event) => events.push(event),
                None => break,
            }
            if left.is_empty() {
                break;
            }
        }
    }
    (out, events)
}

pub(super) fn text(name: &str) -> Rc<Text> {
    crate::session::statements::Texts::new(0).own(name.as_bytes(), b"select\0\0\0")
}
