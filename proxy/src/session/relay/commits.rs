//! Which of the units in flight end a transaction of which something may be committed: for the ledger, one by one.

use crate::wire::backend::TxStatus;
use std::collections::VecDeque;

/// What is committed when these are told of, whatever comes behind them.
const BY_THEMSELVES: [&[u8]; 4] = [b"COMMIT", b"PREPARE TRANSACTION", b"CALL", b"DO"];

/// The commits of a conversation.
#[derive(Debug, Default)]
pub struct Commits {
    /// Of each unit that was sent and not answered, oldest first.
    sent: VecDeque<Sent>,
    /// Such a one was answered, and its transaction has not ended.
    open: bool,
    /// Something of it was committed all the same, should it be rolled back.
    kept: bool,
    /// The last command of the oldest has rolled back what came before it.
    undone: bool,
    /// Transactions with such that have ended, and not by a rollback, since this was looked at.
    ended: u32,
}

/// What is known of a unit when it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// It does more than read, or set what commits wait for.
    pub counts: bool,
    /// What it commits waits for standbys.
    pub waits: bool,
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
                last.waits |= unit.waits;
                last.hushed |= unit.hushed;
                last.late |= unit.late;
            }
            Some(_) | None => self.sent.push_back(unit),
        }
    }

    /// Does what the oldest commits wait for standbys, and may its server hide that it has given that up? `hushed`: where
    /// the server has said so itself.
    pub(super) fn may_hide(&self, hushed: Option<bool>) -> bool {
        self.sent.front().is_some_and(|unit| unit.waits && hushed.unwrap_or(unit.hushed))
    }

    /// May the oldest do more in its COMMIT than it has done before?
    pub(super) fn runs_late(&self) -> bool {
        self.sent.front().is_some_and(|unit| unit.late)
    }

    /// A command of the oldest is over, with this tag; none where it has no tag.
    pub fn end_of_statement(&mut self, tag: &[u8]) {
        // A transaction may end within a unit, or go over into the next one, and procedures may commit.
        self.kept |= BY_THEMSELVES.iter().any(|word| tag.starts_with(word));
        self.undone = tag == b"ROLLBACK\0";
    }

    /// The oldest was answered, with this status; or it has `failed`.
    pub fn answer(&mut self, status: TxStatus, failed: bool) {
        self.open |= self.sent.pop_front().is_some_and(|unit| unit.counts);
        let undone = std::mem::take(&mut self.undone) || failed;
        if status == TxStatus::Idle {
            let commits = std::mem::take(&mut self.kept) || !undone;
            self.ended += u32::from(std::mem::take(&mut self.open) && commits);
        }
    }

    /// The oldest goes back to where it came from.
    pub fn take_back(&mut self) {
        self.sent.pop_front();
    }

    /// Nothing is in flight any more.
    pub fn clear(&mut self) {
        self.sent.clear();
    }

    /// The server is given up, and with it the transaction.
    pub fn forget(&mut self) {
        self.sent.clear();
        (self.open, self.kept, self.undone) = (false, false, false);
    }

    /// How many transactions have ended of which something may be committed.
    pub fn take(&mut self) -> u32 {
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
        assert_eq!((c.take(), c.take()), (2, 0));
        [Block, Idle, Idle].into_iter().for_each(|status| c.answer(status, false));
        assert_eq!(c.take(), 2);
        let counts = Sent { counts: true, ..Sent::default() };
        c.send(true, counts);
        c.answer(Block, false);
        c.send(true, counts);
        c.forget();
        c.send(true, Sent::default());
        c.answer(Idle, false);
        assert_eq!(c.take(), 0, "what was lost with its server");
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
            (&[(&["CALL"], Idle, true)], 1),
            (&[ok(&["ROLLBACK"]), ok(&["INSERT 0 1"])], 1),
            (&[ok(&["INSERT 0 1"]), ok(&["ROLLBACK"])], 1),
        ] {
            let mut c = Commits::default();
            for (tags, status, failed) in units {
                c.send(true, Sent { counts: true, ..Sent::default() });
                let tags = tags.iter().map(|tag| if tag.is_empty() { String::new() } else { format!("{tag}\0") });
                tags.for_each(|tag| c.end_of_statement(tag.as_bytes()));
                c.answer(*status, *failed);
            }
            assert_eq!(c.take(), want, "{units:?}");
        }
    }

    #[test]
    fn the_server_knows_better_than_the_text_what_it_hides() {
        let mut c = Commits::default();
        assert!(!c.may_hide(Some(true)), "nothing is in flight");
        for (waits, hushed, said, hides) in [
            (true, true, None, true),
            (true, true, Some(false), false),
            (true, false, Some(true), true),
            (true, false, None, false),
            (false, true, Some(true), false),
        ] {
            c.send(true, Sent { waits, hushed, ..Sent::default() });
            assert_eq!(c.may_hide(said), hides, "waits: {waits}, by the text: {hushed}, by the server: {said:?}");
            c.answer(TxStatus::Idle, false);
        }
        // The second part of a unit.
        c.send(true, Sent { waits: true, ..Sent::default() });
        c.send(false, Sent { hushed: true, ..Sent::default() });
        assert!(c.may_hide(None));
    }
}
