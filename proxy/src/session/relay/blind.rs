//! Syncs that a COPY from the client may have swallowed.
//!
//! While it copies, the server ignores Syncs; once the COPY has failed each is answered. libpq sends one behind every
//! Execute, before it knows what that is. When the COPY ends well it has read all that was sent before its CopyDone.
//! When it fails, nobody can tell from the outside how many of them it had read by then, so the server is asked: a Sync,
//! a Close of nothing, and another Sync. As many ReadyForQuery as come before the CloseComplete, but one, are theirs.
//! Nothing of the client's is sent before that is known.

use crate::session::relay::{Entry, Event, Kind, Relay, Step};
use crate::wire::backend::TxStatus;
use crate::wire::frontend::{write_subject, write_sync};

/// What is known of the Syncs that were sent to a server that copies.
#[derive(Debug, Default)]
pub(super) enum Blind {
    /// There are none.
    #[default]
    None,
    /// There are some, and the COPY has not ended.
    Sent,
    /// The COPY has failed, one of the extended protocol or not, and the server is to be asked.
    Failed {
        extended: bool,
        /// ReadyForQuery messages that came since, for which nobody waits.
        ready: usize,
    },
    /// The server was asked.
    Asked {
        extended: bool,
        /// ReadyForQuery messages that came.
        ready: usize,
        /// CloseComplete has come.
        closed: bool,
    },
}

impl Relay {
    /// May the server have swallowed a Sync, or will it? Nothing but what belongs to the COPY may be sent then.
    pub fn is_blind(&self) -> bool {
        !matches!(self.blind, Blind::None)
    }

    /// A Sync of the client goes to a server that copies.
    pub fn blind_sync(&mut self) {
        self.blind = Blind::Sent;
    }

    /// The COPY has failed: the question that is to be put to the server, once no message is half sent.
    pub fn blind_question(&mut self) -> Option<Vec<u8>> {
        let Blind::Failed { extended, ready } = self.blind else { return None };
        self.blind = Blind::Asked { extended, ready, closed: false };
        // What the server skips to is this.
        self.open = None;
        self.push(Entry { hidden: true, ..Entry::plain(Kind::Sync) });
        let mut out = Vec::new();
        write_sync(&mut out);
        write_subject(&mut out, b'C', b"pgtenure_nothing");
        write_sync(&mut out);
        Some(out)
    }

    /// The server begins to copy: it ignores the Syncs that were sent already.
    pub(super) fn begin_copy_in(&mut self) {
        self.copy_in = true;
        let before = self.queue.len();
        let lost = self.queue.iter().skip(1).filter(|e| e.kind == Kind::Sync).filter_map(|e| e.record);
        let open = lost.fold(self.open.unwrap_or_default(), |mut open, r| {
            open.absorb(&r);
            open
        });
        if self.head_is(Kind::Execute) {
            self.open = Some(open);
        }
        self.queue.retain(|e| e.kind != Kind::Sync);
        let dropped = before - self.queue.len();
        self.owed -= dropped;
        if dropped > 0 {
            self.blind = Blind::Sent;
        }
    }

    /// The COPY has ended well, or there was none.
    pub(super) fn end_blind(&mut self) {
        self.blind = Blind::None;
    }

    /// Something has failed: was it a COPY with Syncs in doubt?
    pub(super) fn fail_blind(&mut self) {
        if matches!(self.blind, Blind::Sent) {
            self.blind = Blind::Failed { extended: self.head_is(Kind::Execute), ready: 0 };
        }
    }

    /// A ReadyForQuery or CloseComplete, when it answers the question or a Sync in doubt; `None` when not.
    pub(super) fn blind_frame(&mut self, status: Option<TxStatus>) -> Option<Step> {
        let (extended, ready, closed) = match &mut self.blind {
            Blind::None | Blind::Sent => return None,
            // A simple query's own comes first.
            Blind::Failed { .. } | Blind::Asked { .. } if self.queue.front().is_some_and(|e| !e.hidden) => return None,
            Blind::Failed { ready, .. } => {
                *ready += usize::from(status.is_some());
                return Some(Step::Pass { shown: false });
            }
            Blind::Asked { extended, ready, closed } => (extended, ready, closed),
        };
        match status {
            None => *closed = true,
            Some(_) if !*closed => *ready += 1,
            Some(status) => {
                let answered = ready.saturating_sub(1);
                let skips = *extended && answered == 0;
                self.implicit = status == TxStatus::Block && (self.implicit || self.status == TxStatus::Idle);
                (self.status, self.owed, self.open) = (status, 0, None);
                self.queue.clear();
                self.answered += usize::from(*extended);
                let (extended, failed) = (*extended, self.failed);
                if extended {
                    self.commits.answer(status, failed);
                }
                self.commits.clear();
                self.ended += usize::from(extended && status == TxStatus::Idle);
                self.blind = Blind::None;
                self.end_of_unit();
                self.settle();
                return Some(Step::Stop(Event::Seen { answered, skips }));
            }
        }
        Some(Step::Pass { shown: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::relay::testing::{error, feed, plain, shape};
    use crate::wire::backend::{write_bare, write_command_complete, write_ready};
    use crate::wire::codec::message;

    #[test]
    fn a_copy_of_the_extended_protocol_swallows_the_sync_sent_before_its_data() {
        let mut relay = Relay::default();
        for kind in [Kind::Bind, Kind::Execute, Kind::Sync] {
            relay.push(plain(kind));
        }
        let mut s = Vec::new();
        write_bare(&mut s, b'2');
        message(&mut s, b'G', |b| b.extend_from_slice(&[0, 0, 0]));
        feed(&mut relay, &s, &[]);
        assert!(relay.copy_in() && relay.owed() == 0 && relay.busy());
        relay.end_copy_in();
        relay.open = None;
        relay.push(plain(Kind::Sync));
        let mut s = Vec::new();
        write_command_complete(&mut s, "COPY 1");
        write_ready(&mut s, TxStatus::Idle);
        assert_eq!(feed(&mut relay, &s, &[]).1, [Event::Idle]);
    }

    #[test]
    fn syncs_that_a_failed_copy_may_have_read_are_found_out_about() {
        // What the server says behind the error, part of it before it was asked; a simple query has one of its own.
        for (kind, heard, early, want) in [
            (Kind::Execute, "Z3Z", 0, (0, true)),
            (Kind::Execute, "ZZ3Z", 0, (1, false)),
            (Kind::Execute, "ZZ3Z", 1, (1, false)),
            (Kind::Execute, "ZZZ3Z", 1, (2, false)),
            (Kind::Query, "ZZ3Z", 0, (0, false)),
            (Kind::Query, "ZZ3Z", 1, (0, false)),
            (Kind::Query, "ZZZ3Z", 2, (1, false)),
        ] {
            let mut relay = Relay::default();
            relay.push(plain(kind));
            if kind == Kind::Execute {
                relay.push(plain(Kind::Sync));
            }
            let answers = |of: &str| {
                let mut s = Vec::new();
                of.bytes().for_each(|b| match b {
                    b'Z' => write_ready(&mut s, TxStatus::Idle),
                    b'G' => message(&mut s, b'G', |b| b.extend_from_slice(&[0, 0, 0])),
                    b'E' => error(&mut s, "ERROR", "22P02", "x"),
                    other => write_bare(&mut s, other),
                });
                s
            };
            feed(&mut relay, &answers("G"), &[]);
            relay.blind_sync();
            let (told, events) = feed(&mut relay, &answers(&("E".to_owned() + &heard[..early])), &[]);
            assert!(shape(&told).starts_with("E(22P02)") && events.is_empty(), "{kind:?} {heard} {events:?}");
            assert!(relay.blind_question().is_some() && relay.blind_question().is_none() && relay.busy());
            let (told, events) = feed(&mut relay, &answers(&heard[early..]), &[]);
            let (answered, skips) = want;
            assert_eq!(events, [Event::Seen { answered, skips }], "{kind:?} {heard}");
            assert_eq!(shape(&told), if kind == Kind::Query && early == 0 { "Z" } else { "" }, "{kind:?} {heard}");
            assert!(!relay.busy() && !relay.is_blind() && relay.owed() == 0, "{kind:?} {heard}");
        }
    }
}
