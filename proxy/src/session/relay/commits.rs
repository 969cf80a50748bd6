//! Which of the units in flight end a transaction of which something may be committed: for the ledger, one by one.

use crate::route::durability::{Durability, Waits};
use crate::wire::backend::TxStatus;
use std::collections::VecDeque;

/// What is committed when these are told of, whatever comes behind them.
const BY_THEMSELVES: [&[u8]; 2] = [b"COMMIT", b"PREPARE TRANSACTION"];
/// So may these, outside a block.
const PROCEDURES: [&[u8]; 2] = [b"CALL", b"DO"];
/// The same of what may not run in a block, where it is the first that a unit executes: PostgreSQL commits it before what is
/// behind it. Some have the tags of others that may.
const BEFORE_THE_REST: [&[u8]; 13] = [
    b"VACUUM",
    b"REINDEX",
    b"CLUSTER",
    b"CREATE INDEX",
    b"DROP INDEX",
    b"CREATE DATABASE",
    b"ALTER DATABASE",
    b"DROP DATABASE",
    b"CREATE TABLESPACE",
    b"DROP TABLESPACE",
    b"CREATE SUBSCRIPTION",
    b"ALTER SUBSCRIPTION",
    b"DROP SUBSCRIPTION",
];

/// The commits of a conversation.
#[derive(Debug, Default)]
pub struct Commits {
    /// Of each unit that was sent and not answered, oldest first.
    sent: VecDeque<Sent>,
    /// Such a one was answered, and its transaction has not ended.
    open: bool,
    /// Something of it was committed all the same, should it be rolled back.
    kept: bool,
    /// The oldest was sent in a block.
    in_block: bool,
    /// A command of the oldest was told of.
    begun: bool,
    /// The last command of the oldest has rolled back what came before it,
    undone: bool,
    /// or committed it.
    chained: bool,
    /// Transactions with such that have ended, and not by a rollback, since this was looked at.
    ended: Ended,
}

/// Transactions that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// How many, by the least that their commits may have waited for.
    by_level: [u32; Durability::ALL.len()],
}

impl Ended {
    /// How many they are.
    pub fn count(self) -> u32 {
        self.by_level.iter().sum()
    }

    /// How many of them may have waited for less than that.
    pub fn below(self, level: Durability) -> u32 {
        let all = Durability::ALL.into_iter().zip(self.by_level);
        all.filter(|(of, _)| *of < level).map(|(_, count)| count).sum()
    }

    fn add(&mut self, level: Durability) {
        let all = Durability::ALL.into_iter().zip(&mut self.by_level);
        all.filter(|(of, _)| *of == level).for_each(|(_, count)| *count += 1);
    }
}

/// What is known of a unit when it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// It does more than read, or set what commits wait for.
    pub counts: bool,
    /// What that which it commits waits for; of what commits nothing, nothing.
    pub waits: Waits,
    /// The server may hide the notice that it has given that up.
    pub hushed: bool,
    /// It may run something when it commits: what a cursor shows that is held.
    pub late: bool,
}

impl Commits {
    /// A unit is sent, or more of it.
    pub fn send(&mut self, begins: bool, unit: Sent) {
        match self.sent.back_mut() {
            Some(last) if !begins => {
                last.counts |= unit.counts;
                last.waits = last.waits.and(unit.waits);
                last.hushed |= unit.hushed;
                last.late |= unit.late;
            }
            Some(_) | None => self.sent.push_back(unit),
        }
    }

    /// Does what the oldest commits wait for standbys, and may its server hide that it has given that up? `hushed`: where
    /// the server has said so itself.
    pub(super) fn may_hide(&self, hushed: Option<bool>) -> bool {
        let waits = |unit: &Sent| unit.waits.most >= Durability::Received;
        self.sent.front().is_some_and(|unit| waits(unit) && hushed.unwrap_or(unit.hushed))
    }

    /// A server is to stop what it is at, and no text tells whether that waits for standbys: it does, and hides it.
    pub fn distrust(&mut self) {
        for unit in &mut self.sent {
            unit.hushed = true;
            unit.waits.most = unit.waits.most.max(Durability::SemiSync);
        }
    }

    /// What that which the oldest commits waits for, if anything is in flight.
    pub fn waits(&self) -> Option<Waits> {
        self.sent.front().map(|unit| unit.waits)
    }

    /// May the oldest do more in its COMMIT than it has done before?
    pub(super) fn runs_late(&self) -> bool {
        self.sent.front().is_some_and(|unit| unit.late)
    }

    /// A command of the oldest is over, with this tag; none where it has no tag. `executed`: by an Execute.
    pub fn end_of_statement(&mut self, tag: &[u8], executed: bool) {
        let is = |words: &[&[u8]]| words.iter().any(|word| tag.starts_with(word));
        // A transaction may end within a unit, or go over into the next one, and procedures may commit.
        let first = executed && !self.begun && !self.in_block;
        // In a block neither a procedure nor DO can commit.
        let by_itself = is(&BY_THEMSELVES) || !self.in_block && is(&PROCEDURES);
        self.kept |= by_itself || first && is(&BEFORE_THE_REST);
        self.begun = true;
        // Behind ROLLBACK, which may be one to a savepoint, rather too many count than too few.
        self.in_block &= !is(&[b"COMMIT", b"ROLLBACK"]);
        self.in_block |= is(&[b"BEGIN", b"START TRANSACTION"]);
        (self.undone, self.chained) = (tag == b"ROLLBACK\0", tag == b"COMMIT\0");
    }

    /// The oldest was answered, with this status; or it has `failed`.
    pub fn answer(&mut self, status: TxStatus, failed: bool) {
        let unit = self.sent.pop_front().unwrap_or_default();
        self.open |= unit.counts;
        let (undone, chained) = (std::mem::take(&mut self.undone) || failed, std::mem::take(&mut self.chained));
        (self.begun, self.in_block) = (false, status != TxStatus::Idle);
        let idle = status == TxStatus::Idle;
        // What was committed is told at once: the transaction that goes on behind it may be lost.
        if (idle || self.kept) && self.open && (self.kept || !undone) {
            self.ended.add(unit.waits.least);
        }
        if idle || self.kept {
            // What came behind a commit in the same unit counts for the next one.
            self.open &= !idle && !chained;
            self.kept = false;
        }
    }

    /// The oldest goes back to where it came from.
    pub fn take_back(&mut self) {
        self.sent.pop_front();
        (self.begun, self.undone, self.chained) = (false, false, false);
    }

    /// Nothing is in flight any more.
    pub fn clear(&mut self) {
        self.sent.clear();
    }

    /// The server is given up, and with it the transaction.
    pub fn forget(&mut self) {
        *self = Self { ended: self.ended, ..Self::default() };
    }

    /// The transactions that have ended of which something may be committed.
    pub fn take(&mut self) -> Ended {
        std::mem::take(&mut self.ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transaction_of_a_pipeline_counts_once() {
        use TxStatus::{Block, Idle};
        let mut c = Commits::default();
        // Two statements by themselves, a read, a block, and one that is sent in two parts.
        for (begins, counts) in [
            (true, true),
            (true, true),
            (true, false),
            (true, false),
            (true, true),
            (true, false),
            (true, false),
            (false, true),
        ] {
            c.send(begins, Sent { counts, ..Sent::default() });
        }
        [Idle, Idle, Idle, Block].into_iter().for_each(|status| c.answer(status, false));
        assert_eq!((c.take().count(), c.take().count()), (2, 0));
        [Block, Idle, Idle].into_iter().for_each(|status| c.answer(status, false));
        assert_eq!(c.take().count(), 2);
        let counts = Sent { counts: true, ..Sent::default() };
        c.send(true, counts);
        c.answer(Block, false);
        c.send(true, counts);
        c.forget();
        c.send(true, Sent::default());
        c.answer(Idle, false);
        assert_eq!(c.take().count(), 0, "what was lost with its server");
    }

    #[test]
    fn what_was_rolled_back_does_not_count() {
        use TxStatus::{Block, Idle};
        let ok = |tags: &'static [&'static str]| (tags, Idle, false);
        for (units, want) in [
            (&[ok(&["INSERT 0 1"])][..], 1),
            (&[(&["INSERT 0 1"], Idle, true)], 0),
            (&[(&["BEGIN"], Block, false), ok(&["COMMIT"])], 1),
            (&[(&["BEGIN"], Block, false), ok(&["ROLLBACK"])], 0),
            (&[(&["BEGIN"], Block, false), (&[], Block, true), ok(&["ROLLBACK"])], 0),
            // A savepoint's.
            (&[(&["ROLLBACK"], Block, false), ok(&["COMMIT"])], 1),
            (&[ok(&["BEGIN", "INSERT 0 1", "COMMIT", "BEGIN", "ROLLBACK"])], 1),
            (&[(&["BEGIN", "INSERT 0 1", "COMMIT"], Idle, true)], 1),
            (&[ok(&["ROLLBACK", "INSERT 0 1"])], 1),
            (&[ok(&["ROLLBACK", ""])], 1),
            // COMMIT AND CHAIN, and a procedure.
            (&[(&["COMMIT"], Block, false), ok(&["ROLLBACK"])], 1),
            (&[(&["COMMIT"], Block, false), ok(&["COMMIT"])], 2),
            (&[(&["COMMIT", "INSERT 0 1"], Block, false), ok(&["ROLLBACK"])], 1),
            (&[(&["COMMIT", "INSERT 0 1"], Block, false), ok(&["COMMIT"])], 2),
            (&[(&["CALL"], Idle, true)], 1),
            (&[(&["BEGIN"], Block, false), (&["CALL"], Block, false), ok(&["ROLLBACK"])], 0),
            (&[(&["BEGIN"], Block, false), (&["DO"], Block, false), ok(&["COMMIT"])], 1),
            (&[(&["BEGIN", "DO"], Block, false), ok(&["ROLLBACK"])], 0),
            (&[ok(&["BEGIN", "COMMIT", "CALL"])], 1),
            (&[ok(&["ROLLBACK"]), ok(&["INSERT 0 1"])], 1),
            (&[ok(&["INSERT 0 1"]), ok(&["ROLLBACK"])], 1),
        ] {
            let mut c = Commits::default();
            for (tags, status, failed) in units {
                c.send(true, Sent { counts: true, ..Sent::default() });
                let tags = tags.iter().map(|tag| if tag.is_empty() { String::new() } else { format!("{tag}\0") });
                tags.for_each(|tag| c.end_of_statement(tag.as_bytes(), false));
                c.answer(*status, *failed);
            }
            assert_eq!(c.take().count(), want, "{units:?}");
        }
    }

    #[test]
    fn what_was_committed_before_its_unit_failed_counts() {
        for (before, tags, failed, executed, want) in [
            (None, &["VACUUM"][..], true, true, 1),
            (None, &["CREATE INDEX"], true, true, 1),
            (None, &["VACUUM", "ROLLBACK"], false, true, 1),
            (None, &["VACUUM", "INSERT 0 1"], false, true, 1),
            // Not as the second, which PostgreSQL refuses, and not in a block or in a string.
            (None, &["INSERT 0 1", "CREATE INDEX"], true, true, 0),
            (Some("BEGIN"), &["CREATE INDEX"], true, true, 0),
            (None, &["CREATE INDEX"], true, false, 0),
            (None, &["INSERT 0 1"], true, true, 0),
        ] {
            let mut c = Commits::default();
            let counts = Sent { counts: true, ..Sent::default() };
            if let Some(tag) = before {
                c.send(true, counts);
                c.end_of_statement(format!("{tag}\0").as_bytes(), executed);
                c.answer(TxStatus::Block, false);
            }
            c.send(true, counts);
            tags.iter().for_each(|tag| c.end_of_statement(format!("{tag}\0").as_bytes(), executed));
            c.answer(TxStatus::Idle, failed);
            assert_eq!(c.take().count(), want, "{tags:?} behind {before:?}");
        }
    }

    /// A COMMIT AND CHAIN was acknowledged, whatever becomes of the transaction behind it.
    #[test]
    fn what_was_committed_and_chained_counts_although_its_server_is_lost() {
        for (tags, want) in [(&["COMMIT"][..], 1), (&["COMMIT", "INSERT 0 1"], 1), (&["INSERT 0 1"], 0)] {
            let mut c = Commits::default();
            c.send(true, Sent { counts: true, ..Sent::default() });
            tags.iter().for_each(|tag| c.end_of_statement(format!("{tag}\0").as_bytes(), false));
            c.answer(TxStatus::Block, false);
            c.forget();
            assert_eq!(c.take().count(), want, "{tags:?}");
        }
    }

    #[test]
    fn a_commit_waits_for_what_was_in_force_when_it_was_sent() {
        use Durability::{Applied, Async, Local, SemiSync};
        let mut c = Commits::default();
        let sent = |level: Durability| Sent { counts: true, hushed: true, waits: level.into(), ..Sent::default() };
        [Applied, Async, Local].into_iter().for_each(|level| c.send(true, sent(level)));
        // The second part of a unit.
        c.send(false, sent(SemiSync));
        let mut seen = Vec::new();
        while let Some(waits) = c.waits() {
            seen.push((waits.least, waits.most, c.may_hide(None)));
            c.answer(TxStatus::Idle, false);
        }
        assert_eq!(seen, [(Applied, Applied, true), (Async, Async, false), (Local, SemiSync, true)]);
        let ended = c.take();
        assert_eq!((ended.count(), ended.below(SemiSync), ended.below(Local)), (3, 2, 1));
    }

    #[test]
    fn the_server_knows_better_than_the_text_what_it_hides() {
        let mut c = Commits::default();
        assert!(!c.may_hide(Some(true)), "nothing is in flight");
        let (waiting, not) = (Waits::from(Durability::Received), Waits::from(Durability::Local));
        for (waits, hushed, said, hides) in [
            (waiting, true, None, true),
            (waiting, true, Some(false), false),
            (waiting, false, Some(true), true),
            (waiting, false, None, false),
            (not, true, Some(true), false),
        ] {
            c.send(true, Sent { waits, hushed, ..Sent::default() });
            assert_eq!(c.may_hide(said), hides, "{waits:?}, by the text: {hushed}, by the server: {said:?}");
            c.answer(TxStatus::Idle, false);
        }
        // The second part of a unit.
        c.send(true, Sent { waits: waiting, ..Sent::default() });
        c.send(false, Sent { hushed: true, ..Sent::default() });
        assert!(c.may_hide(None));
    }
}
