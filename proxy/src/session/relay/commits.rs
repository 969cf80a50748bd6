//! Which of the units in flight end a transaction of which something may be committed: for the ledger, one by one.

use crate::wire::backend::TxStatus;
use std::collections::VecDeque;

/// The commits of a conversation.
#[derive(Debug, Default)]
pub struct Commits {
    /// Of each unit that was sent and not answered, oldest first: does it do more than read, or set what commits wait for?
    sent: VecDeque<bool>,
    /// Such a one was answered, and its transaction has not ended.
    open: bool,
    /// Transactions with such that have ended since this was looked at.
    ended: u32,
}

impl Commits {
    /// A unit is sent, or more of it.
    pub fn send(&mut self, begins: bool, counts: bool) {
        match self.sent.back_mut() {
            Some(last) if !begins => *last |= counts,
            Some(_) | None => self.sent.push_back(counts),
        }
    }

    /// The oldest was answered, with this status.
    pub fn answer(&mut self, status: TxStatus) {
        self.open |= self.sent.pop_front().unwrap_or(false);
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
            c.send(begins, counts);
        }
        [Idle, Idle, Idle, Block].into_iter().for_each(|status| c.answer(status));
        assert_eq!((c.take(), c.take()), (2, 0));
        [Block, Idle, Idle].into_iter().for_each(|status| c.answer(status));
        assert_eq!(c.take(), 2);
        c.send(true, true);
        c.answer(Block);
        c.send(true, true);
        c.forget();
        c.send(true, false);
        c.answer(Idle);
        assert_eq!(c.take(), 0, "what was lost with its server");
    }
}
