//! Success that is not told before standbys are known to have it.
//!
//! Whoever stops a wait for standbys (`pg_cancel_backend`, by anybody) makes PostgreSQL tell success, behind a notice. A
//! session may hide notices, by `client_min_messages`: then success alone says nothing, and the relay stops in front of
//! it until its session has made sure, in whichever way, that standbys have what was committed.

use crate::session::relay::{Kind, Relay};
use crate::wire::backend::TxStatus;

/// What standbys are known to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Confirmed {
    /// All that the server tells of in so many of its next bytes: they had come when that was looked at.
    bytes: usize,
    /// The last message told of its own commit, and of that it is known: nothing is left to the end of the unit.
    told: bool,
}

impl Confirmed {
    /// This ends a statement, and its message ends behind so many bytes.
    pub(super) fn end_of_statement(&mut self, frame: &[u8], end: usize) {
        self.told = end <= self.bytes && frame[0] == b'C' && COMMITS_FIRST.contains(&&frame[5..]);
    }

    /// This ends a unit.
    pub(super) fn end_of_unit(&mut self) {
        self.told = false;
    }

    /// So many bytes are dealt with.
    pub(super) fn pass(&mut self, consumed: usize) {
        self.bytes = self.bytes.saturating_sub(consumed);
    }
}

/// A message that may tell of a commit.
pub(super) enum Told<'a> {
    /// CommandComplete, with this tag.
    Tag(&'a [u8]),
    /// ReadyForQuery.
    End(TxStatus),
}

/// Commands that have committed all there is when they are told of. What others do, a Sync may commit.
const COMMITS_FIRST: [&[u8]; 2] = [b"COMMIT\0", b"PREPARE TRANSACTION\0"];

/// Commands that commit nothing by themselves where a Sync is still to come.
const COMMIT_LATER: [&[u8]; 12] = [
    b"INSERT", b"UPDATE", b"DELETE", b"MERGE", b"SELECT", b"COPY", b"FETCH", b"MOVE", b"BEGIN", b"SET", b"RESET",
    b"SHOW",
];

impl Relay {
    /// Standbys have what the server tells of in so many bytes, which come next.
    pub fn confirm(&mut self, bytes: usize) {
        self.confirmed.bytes = bytes;
    }

    /// Must that be made sure before this message is passed, which ends behind so many bytes?
    pub(super) fn is_unconfirmed(&self, told: Told<'_>, end: usize) -> bool {
        if !self.commits.may_hide(self.hushed) || self.failed || self.withhold || self.again {
            return false;
        }
        if end <= self.confirmed.bytes || self.confirmed.told && matches!(told, Told::End(_)) {
            return false;
        }
        // Another error is told in its place.
        if self.doubt.is_some() || self.foiled.is_some() {
            return false;
        }
        let Some(head) = self.queue.front().filter(|entry| !entry.hidden) else { return false };
        let commits = match (head.kind, told) {
            // A simple query commits before its last command is told of, and perhaps behind each.
            (Kind::Query, Told::Tag(tag)) => tag != b"ROLLBACK\0",
            (Kind::Execute, Told::Tag(tag)) => {
                let word = tag.split(|b| matches!(b, b' ' | 0)).next().unwrap_or_default();
                tag != b"ROLLBACK\0" && !COMMIT_LATER.contains(&word)
            }
            (Kind::Sync | Kind::Function, Told::End(status)) => status == TxStatus::Idle,
            (_, Told::Tag(_) | Told::End(_)) => false,
        };
        commits && self.head_may_commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::durability::Durability;
    use crate::session::outcome::Record;
    use crate::session::relay::{Entry, Event, Sent};
    use crate::sql::{FunctionTable, LexRules, classify};
    use crate::wire::backend::{write_command_complete, write_ready};
    use crate::wire::codec::Sink;
    use crate::wire::error_response::ClientError;

    fn unit(kinds: &[Kind], sql: &str) -> Vec<Entry> {
        let mut record = Record::default();
        record.execute(&classify(sql.as_bytes(), &FunctionTable::unloaded(), LexRules::STANDARD));
        let entry = |&kind: &Kind| Entry { record: kind.owes_ready().then_some(record), ..Entry::plain(kind) };
        kinds.iter().map(entry).collect()
    }

    /// How often the relay stops while a unit is answered with these tags, each time in front of what is not passed yet.
    /// `at_once`: all of it comes in one read.
    fn stops(from: TxStatus, (kinds, sql): (&[Kind], &str), tags: &[&str], to: TxStatus, at_once: bool) -> usize {
        let mut relay = Relay { status: from, ..Relay::default() };
        unit(kinds, sql).into_iter().for_each(|entry| relay.push(entry));
        let waits = Durability::SemiSync.into();
        relay.commits.send(true, Sent { counts: true, waits, hushed: true, late: false });
        let mut messages = vec![Vec::new(); tags.len() + 1];
        tags.iter().zip(&mut messages).for_each(|(tag, out)| write_command_complete(out, tag));
        write_ready(messages.last_mut().unwrap(), to);
        let said = messages.concat();
        let reads = if at_once { vec![said.clone()] } else { messages };
        let (mut told, mut stops, mut last) = (Vec::new(), 0, None);
        for mut left in reads {
            last = loop {
                let mut sink = Sink::default();
                let progress = relay.server_bytes(&left, &mut sink, &|| ClientError::Cancelled);
                told.extend_from_slice(sink.bytes(&left));
                left.drain(..progress.consumed);
                if progress.event != Some(Event::Unconfirmed) {
                    break progress.event;
                }
                assert!(said[told.len()..].starts_with(&left), "{sql}");
                stops += 1;
                relay.confirm(left.len());
            };
        }
        assert_eq!((last, &told), (Some(Event::Idle), &said), "{sql}");
        stops
    }

    #[test]
    fn the_relay_stops_before_each_message_that_may_tell_of_a_commit() {
        use Kind::{Execute, Query, Sync};
        use TxStatus::{Block, Failed, Idle};
        let (extended, twice) = (&[Execute, Sync][..], &[Execute, Execute, Sync][..]);
        for (from, unit, tags, to, apart) in [
            (Idle, (&[Query][..], "insert into t values (1)"), &["INSERT 0 1"][..], Idle, 1),
            (Idle, (extended, "insert into t values (1)"), &["INSERT 0 1"], Idle, 1),
            (Idle, (extended, "create table t()"), &["CREATE TABLE"], Idle, 2),
            (Block, (extended, "prepare transaction 'x'"), &["PREPARE TRANSACTION"], Idle, 1),
            (Block, (&[Query], "insert into t values (1)"), &["INSERT 0 1"], Block, 0),
            (Block, (&[Query], "commit"), &["COMMIT"], Idle, 1),
            (Block, (&[Query], "commit and chain"), &["COMMIT"], Block, 1),
            (Block, (&[Query], "commit"), &["ROLLBACK"], Idle, 0),
            (Failed, (&[Query], "commit"), &["ROLLBACK"], Idle, 0),
            (Block, (&[Query], "rollback"), &["ROLLBACK"], Idle, 0),
            (Block, (extended, "commit"), &["COMMIT"], Idle, 1),
            (Block, (twice, "commit"), &["COMMIT", "INSERT 0 1"], Idle, 2),
            (Idle, (&[Query], "begin; insert into t values (1); commit"), &["BEGIN", "INSERT 0 1", "COMMIT"], Idle, 3),
            (Idle, (&[Query], "select 1"), &["SELECT 1"], Idle, 0),
            (Idle, (extended, "begin"), &["BEGIN"], Block, 0),
        ] {
            assert_eq!(stops(from, unit, tags, to, false), apart, "{} from {from:?}", unit.1);
            // What has come by the time that standbys are looked at is looked at with it.
            assert_eq!(stops(from, unit, tags, to, true), apart.min(1), "{} from {from:?}, at once", unit.1);
        }
    }
}
