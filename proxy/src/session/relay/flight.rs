//! What is in flight, as those ask who must decide about it: could it commit, has the client seen part of its answer,
//! and what is left of it when the server is given up.

use crate::session::outcome::{At, Record};
use crate::session::relay::confirmed::Confirmed;
use crate::session::relay::{Entry, Kind, Relay, Undo};
use crate::wire::backend::TxStatus;
use crate::wire::error_response::ClientError;

impl Relay {
    /// The records of all that was sent and not answered, oldest first, the open unit last.
    pub fn sent(&self) -> Vec<Record> {
        self.records().collect()
    }

    fn records(&self) -> impl Iterator<Item = Record> {
        let mut implicit = self.implicit && self.status == TxStatus::Block;
        let as_there = move |record: Record| {
            implicit &= record.stays();
            match implicit {
                _ if self.standby => record.on_standby(),
                true => record.in_implicit(),
                false => record,
            }
        };
        self.queue.iter().filter_map(|e| e.record).chain(self.open).map(as_there)
    }

    /// Is any of what was sent and not answered able to make something durable?
    pub fn may_commit(&self) -> bool {
        let mut at = At::from(self.status);
        self.records().any(|r| {
            let commits = r.may_commit(at);
            at = r.from(at);
            commits
        })
    }

    /// May the oldest unit that is not answered make something durable?
    pub(super) fn head_may_commit(&self) -> bool {
        self.records().next().is_some_and(|record| record.may_commit(self.status))
    }

    /// Is the unit that has no Sync yet the oldest one, and nothing of it durable before it gets one?
    pub fn awaits_sync(&self) -> bool {
        let head = self.queue.iter().all(|entry| entry.record.is_none());
        head && self.open.is_some_and(|open| !open.commits_by_itself(self.status))
    }

    /// May the server be in a failed block when it reads what is sent next?
    pub fn may_be_failed(&self) -> bool {
        let certain = self.owed == 0 || self.status == TxStatus::Idle && self.sent().iter().all(Record::is_read);
        self.status == TxStatus::Failed || !certain
    }

    /// Does the oldest unit that is not answered hold an explicit COMMIT, or one phase of two? What is behind it is not
    /// reached yet; within it the server hands out no answer that would tell how far it is.
    pub fn is_committing(&self) -> bool {
        self.records().next().is_some_and(|r| r.commits_explicitly)
    }

    /// Does it, or a string in it that ends a block?
    pub fn may_be_at_commit(&self) -> bool {
        self.records().next().is_some_and(|r| r.commits_explicitly || r.ends_within)
    }

    /// Does that unit execute something else as well, which the server may still be at? Of a simple query it does not tell.
    pub fn may_be_before_commit(&self) -> bool {
        let end = self.queue.iter().position(|entry| entry.kind.owes_ready());
        let unit = self.queue.iter().take(end.map_or(usize::MAX, |end| end + 1));
        let runs = unit.filter(|entry| matches!(entry.kind, Kind::Execute | Kind::Query)).count();
        self.is_committing() && runs > 1
    }

    /// The status that the server has behind all that was sent, when nothing of it fails; a block where that is not certain.
    pub fn leads_to(&self) -> TxStatus {
        self.records().fold(At::from(self.status), |at, record| record.from(at)).status
    }

    /// Has part of the answer to the oldest unit reached the client?
    pub fn delivered(&self) -> bool {
        self.delivered || self.body_left > 0
    }

    /// From now to the next ReadyForQuery success is not reported: `error` is.
    pub fn doubt(&mut self, error: ClientError) {
        // It has been told already, and the rest of the answers is on its way to nobody.
        if !self.withhold {
            self.doubt.get_or_insert_with(|| Box::new(error));
        }
    }

    /// The names that were registered by what was sent and not answered, each with the number of its unit.
    pub fn registers(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut unit = 0;
        self.queue.iter().filter_map(move |entry| {
            let of = unit;
            unit += usize::from(entry.kind.owes_ready() && !entry.hidden);
            Some((of, entry.undo.registers()?))
        })
    }

    /// Give up the server: the entries of what it never answered, oldest first. What they registered is in `undone`.
    pub fn abandon(&mut self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.queue.drain(..).collect();
        for entry in entries.iter_mut().rev() {
            self.undone.push(std::mem::take(&mut entry.undo));
        }
        let done = std::mem::take(&mut self.done);
        if !self.delivered {
            self.undone.extend(done.into_iter().rev());
        }
        (self.owed, self.open, self.skipping, self.copy_in) = (0, None, false, false);
        (self.hiding, self.implicit) = (false, false);
        self.commits.forget();
        self.end_blind();
        (self.body_left, self.delivered, self.doubt, self.withhold) = (0, false, None, false);
        (self.again, self.executed, self.forgetting) = (false, false, false);
        (self.mark, self.foiled) = (None, None);
        (self.hushed, self.failed, self.confirmed) = (None, false, Confirmed::default());
        entries
    }

    /// Leave the server to finish what it was sent, which nobody waits for any more: the entries owed, as far as the
    /// client is concerned, oldest first. What the client must take back is in `undone`; what is told from here on
    /// is the server's alone.
    pub fn part(&mut self) -> (Vec<Entry>, Self) {
        let mut rest = std::mem::take(self);
        self.status = rest.status;
        let mut entries: Vec<Entry> = rest.queue.iter().cloned().collect();
        self.undone = std::mem::take(&mut rest.undone);
        self.undone.extend(entries.iter_mut().rev().map(|e| std::mem::take(&mut e.undo).of_client()));
        self.undone.extend(rest.done.drain(..).rev().map(Undo::of_client));
        (rest.retries, rest.head_kept) = (false, false);
        (entries, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::outcome::{Answer, answers};
    use crate::sql::{FunctionTable, LexRules, classify};
    use crate::wire::backend::write_ready;
    use crate::wire::codec::Sink;

    fn unit(kind: Kind, texts: &[&str]) -> Entry {
        let mut record = Record::default();
        for sql in texts {
            record.execute(&classify(sql.as_bytes(), &FunctionTable::unloaded(), LexRules::STANDARD));
        }
        Entry { record: Some(record), ..Entry::plain(kind) }
    }

    fn ready(relay: &mut Relay, status: TxStatus) {
        let mut said = Vec::new();
        write_ready(&mut said, status);
        relay.server_bytes(&said, &mut Sink::default(), &|| ClientError::Cancelled);
    }

    /// PostgreSQL 18 leaves the transaction open of what was executed without a Sync before a Query.
    #[test]
    fn a_sync_may_commit_what_an_earlier_unit_has_left_open() {
        use TxStatus::{Block, Idle};
        let insert = "insert into t values (1)";
        let undone = Answer::BlockAborted(TxStatus::Failed);
        for (before, sent, want) in [
            // What was executed, and the Query; then what comes with a Sync.
            (&[(Kind::Query, &[insert, "select 1"][..], Block)][..], &[&[insert][..]][..], &[Answer::Unknown][..]),
            (&[(Kind::Query, &[insert, "select 1"], Block)], &[&[]], &[Answer::Unknown]),
            (&[(Kind::Query, &["select 1", "select 1"], Block)], &[&["select 1"], &[]], &[Answer::Unknown; 2]),
            (
                &[(Kind::Query, &[insert, "select 1"], Block), (Kind::Function, &[insert], Block)],
                &[&[]],
                &[Answer::Unknown],
            ),
            (&[(Kind::Query, &[insert, "select 1"], Block)], &[&["rollback"]], &[Answer::RollbackDone]),
            (
                &[(Kind::Query, &[insert, "select 1"], Block)],
                &[&["begin"], &[insert]],
                &[undone, Answer::InFailedBlock],
            ),
            // A block that was begun by name, before or by then.
            (&[(Kind::Query, &["begin"], Block)], &[&[insert]], &[undone]),
            (&[(Kind::Query, &[insert, "begin"], Block), (Kind::Sync, &[insert], Block)], &[&[insert]], &[undone]),
            (&[(Kind::Query, &[insert, "select 1"], Block), (Kind::Sync, &["begin"], Block)], &[&[]], &[undone]),
            // It has ended since.
            (
                &[
                    (Kind::Query, &[insert, "select 1"], Block),
                    (Kind::Sync, &[insert], Idle),
                    (Kind::Sync, &["begin"], Block),
                ],
                &[&[insert]],
                &[undone],
            ),
        ] {
            let mut relay = Relay::default();
            for (kind, texts, status) in before {
                relay.push(unit(*kind, texts));
                ready(&mut relay, *status);
            }
            sent.iter().for_each(|texts| relay.push(unit(Kind::Sync, texts)));
            assert_eq!(answers(relay.status, &relay.sent(), false), want, "{before:?}, {sent:?}");
            let commits = want.contains(&Answer::Unknown);
            assert_eq!((relay.may_commit(), relay.head_may_commit()), (commits, commits), "{before:?}, {sent:?}");
            relay.standby = true;
            assert!(!relay.may_commit(), "a standby commits nothing");
            relay.abandon();
            assert!(!relay.implicit);
        }
    }
}
