//! What a server answers: relayed in any pieces, the client gets the same.

use proxy::session::outcome::Record;
use proxy::session::relay::{Entry, Event, Kind, Relay};
use proxy::wire::backend;
use proxy::wire::codec::{Sink, head};
use proxy::wire::error_response::ClientError;

/// The first byte chooses what is owed, the second where the rest is cut.
pub(crate) fn check(data: &[u8]) {
    let [owed, cut, answers @ ..] = data else { return };
    views(answers);
    let (mut whole, mut pieces) = (relay(*owed), relay(*owed));
    let (seen, events, rest) = feed(&mut whole, answers, answers.len().max(1));
    let (seen_in_pieces, events_in_pieces, rest_in_pieces) = feed(&mut pieces, answers, usize::from(*cut).max(1));
    if events.is_none() && events_in_pieces.is_none() {
        // What is held back at the end may differ: a long frame passes as it comes.
        let common = seen.len().min(seen_in_pieces.len());
        assert_eq!(seen[..common], seen_in_pieces[..common]);
        let held = |seen: &[u8], rest: usize| seen.len() + rest;
        assert_eq!(held(&seen, rest), held(&seen_in_pieces, rest_in_pieces), "bytes were lost or made up");
    } else if !matches!(events, Some(Event::Retry { .. })) {
        // A read is only sent elsewhere while nothing of its answer has gone out: in pieces, something may have.
        assert_eq!(events, events_in_pieces);
    }
}

/// A conversation in which this is owed.
fn relay(owed: u8) -> Relay {
    let mut relay = Relay::default();
    let kinds = [Kind::Parse, Kind::Bind, Kind::DescribeStatement, Kind::DescribePortal, Kind::Execute, Kind::Close];
    for (bit, kind) in kinds.into_iter().enumerate() {
        if owed & (1 << bit) != 0 {
            relay.push(Entry { hidden: owed & 0x80 != 0 && kind == Kind::Parse, ..Entry::plain(kind) });
        }
    }
    for kind in [Kind::Sync, Kind::Query] {
        relay.push(Entry { record: Some(Record::default()), ..Entry::plain(kind) });
    }
    relay.standby = owed & 0x40 != 0;
    relay.retries = relay.standby;
    relay
}

/// What the client sees, what ended it, and how many bytes are kept for later.
fn feed(relay: &mut Relay, answers: &[u8], piece: usize) -> (Vec<u8>, Option<Event>, usize) {
    let (mut seen, mut left) = (Vec::new(), Vec::new());
    for piece in answers.chunks(piece) {
        left.extend_from_slice(piece);
        let mut sink = Sink::default();
        let progress = relay.server_bytes(&left, &mut sink, &|| ClientError::InFailedTransaction);
        assert!(progress.consumed <= left.len());
        seen.extend_from_slice(sink.bytes(&left));
        left.drain(..progress.consumed);
        if let Some(event) = progress.event {
            return (seen, Some(event), left.len());
        }
        // What is kept is the start of one frame.
        if let Ok(Some(head)) = head(&left) {
            assert!(head.total > left.len(), "a whole frame is held back");
        }
    }
    (seen, None, left.len())
}

fn views(data: &[u8]) {
    let _ = backend::fields(data);
    let _ = backend::as_error(data);
    let _ = backend::parameter_status(data);
    let _ = backend::backend_key(data);
    let _ = backend::ready_status(data);
    let _ = backend::authentication(data);
}
