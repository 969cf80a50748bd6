//! Which of the units in flight end a transaction of which something may be committed: for the ledger, one by one.

use crate::wire::backend::TxStatus;
use std::collections::VecDeque;

/// The commits of a conversation.
#[derive(Debug, Default)]
pub struct Commits {
    /// Of each unit that was sent and not answered, oldest first.
    sent: VecDeque<Sent>,
    /// Such a one was answered, and its transaction has not ended.
    open: bool,
    /// Transactions with such that have ended since this was looked at.
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
}

impl Commits {
    /// A unit is sent, or more of it.
    pub fn send(&mut self, begins: bool, unit: Sent) {
        match self.sent.back_mut() {
            Some(last) if !begins => {
                last.counts |= unit.counts;
                last.waits |= unit.waits;
                last.hushed |= unit.hushed;
            }
            Some(_) | None => self.sent.push_back(unit),
        }
    }

    /// Does what the oldest commits wait for standbys, and may its server hide that it has given that up? `hushed`: where
    /// the server has said so itself.
    pub(super) fn may_hide(&self, hushed: Option<bool>) -> bool {
        self.sent.front().is_some_and(|unit| unit.waits && hushed.unwrap_or(unit.hushed))
    }

    /// The oldest was answered, with this status.
    pub fn answer(&mut self, status: TxStatus) {
        self.open |= self.sent.pop_front().is_some_and(|unit| unit.counts);
        if status == TxStatus::Idle {
            self.ended += u32::from(std::mem::take(&mut self.open));
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
        self.open = false;
    }

    /// How many transactions have ended.
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
        [Idle, Idle, Idle, Block].into_iter().for_each(|status| c.answer(status));
        assert_eq!((c.take(), c.take()), (2, 0));
        [Block, Idle, Idle].into_iter().for_each(|status| c.answer(status));
        assert_eq!(c.take(), 2);
        let counts = Sent { counts: true, ..Sent::default() };
        c.send(true, counts);
        c.answer(Block);
        c.send(true, counts);
        c.forget();
        c.send(true, Sent::default());
        c.answer(Idle);
        assert_eq!(c.take(), 0, "what was lost with its server");
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
            c.answer(TxStatus::Idle);
        }
        // The second part of a unit.
        c.send(true, Sent { waits: true, ..Sent::default() });
        c.send(false, Sent { hushed: true, ..Sent::default() });
        assert!(c.may_hide(None));
    }
}
