//! What a session has drawn from sequences, which `currval` and `lastval` tell: its own, or nothing.
//!
//! A server keeps the values for whoever asks on that connection. So where anybody in the database asks at all, the first
//! of a session's writes on a connection discards what was drawn there before, in the same write and before its transaction
//! begins. Then what is there is of the session that wrote last. Who asks elsewhere than where it wrote last is told
//! that there is nothing (55000). With `sequence_values = "pin"` who may have drawn stays there, so that it has its own. That
//! binds nobody who asks for nothing: when its server is lost, or its client leaves, nothing is lost but the value.

use crate::catalog::draws::Draws as Asking;
use crate::config::PoolMode;
use crate::config::pools::SequenceValues;
use crate::session::batch::Unit;
use crate::session::client::Session;
use crate::session::relay::DISCARD;
use crate::session::server::Meta;
use crate::session::tracking::Asked;
use crate::sql::PinReason;
use crate::wire::backend::TxStatus;
use cluster::Role;
use std::cell::OnceCell;
use std::sync::Arc;

/// What a session has drawn last.
#[derive(Debug, Default)]
pub(super) struct Draws {
    /// The number of the run of writes on one server in which that was; 0 when there is none.
    pub run: u64,
    /// What it has written in that run has drawn, by its words.
    known: bool,
    /// It is bound to its server since it may have drawn there, and not since it has asked.
    kept: bool,
    /// Whether anybody in its database asks.
    asking: OnceCell<Arc<Asking>>,
}

/// Is what was drawn there not, or not only, of this session's last run?
fn is_foreign(meta: &Meta, draws: &Draws) -> bool {
    meta.drew != 0 && (meta.drew != draws.run || meta.drew_before)
}

/// So much of a text is looked at for what draws.
const LOOKED_AT: usize = 256;

/// Is a text known to draw, by its words?
fn draws_by_its_words(sql: &[u8]) -> bool {
    let words: [&[u8]; 4] = [b"insert", b"nextval", b"copy", b"merge"];
    let text = &sql[..sql.len().min(LOOKED_AT)];
    let within = |at: usize| text.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let begins = |at: &usize| matches!(text[*at] | 0x20, b'i' | b'n' | b'c' | b'm');
    (0..text.len()).filter(begins).any(|at| {
        let is = |word: &[u8]| text.get(at..at + word.len()).is_some_and(|here| here.eq_ignore_ascii_case(word));
        words.iter().any(|word| is(word) && !within(at + word.len()) && !at.checked_sub(1).is_some_and(within))
    })
}

impl Session {
    /// Does anybody in the database ask?
    fn asking(&self) -> &Asking {
        self.draws.asking.get_or_init(|| self.w.shared.catalogs.draws(&self.identity.dbname))
    }

    /// A unit goes to the server: is what was drawn there before to be discarded first? Within a block it would take a
    /// snapshot, which the block may be meant to take later, or not yet.
    pub(super) fn discards_draws(&self, input: &[u8], unit: &Unit) -> bool {
        let Some(server) = self.server.as_ref().filter(|server| server.meta.role == Role::Primary) else {
            return false;
        };
        if !self.may_discard(&server.meta) {
            return false;
        }
        let begins = unit.block.begins.is_some_and(|modes| modes.read_only != Some(true));
        if !begins && unit.complete && !self.may_draw(input, unit) {
            return false;
        }
        let relay = &self.relay;
        let outside =
            relay.open.is_none() && !relay.skipping() && !relay.copy_in() && relay.leads_to() == TxStatus::Idle;
        outside && self.asking().follows()
    }

    /// Is there anything to discard, of others? Who has asked keeps what he has there.
    fn may_discard(&self, meta: &Meta) -> bool {
        let keeps = self.mode != PoolMode::Transaction || self.read_only || self.pins.has(PinReason::Sequence);
        !keeps && is_foreign(meta, &self.draws)
    }

    /// A block is to begin anew on the server by a query of ours: the same before that. True when it takes an answer first.
    pub(super) fn discard_before_block(&mut self) -> bool {
        let Some(server) = self.server.as_ref().filter(|server| server.meta.role == Role::Primary) else {
            return false;
        };
        let discards = self.may_discard(&server.meta) && self.asking().follows();
        if discards {
            self.tracking.asked = Some(Asked::Discard);
            self.send_hidden(DISCARD);
        }
        discards
    }

    /// May the unit draw from sequences? What only sets something does not.
    fn may_draw(&self, input: &[u8], unit: &Unit) -> bool {
        unit.block.unproven && !(unit.pins.has(PinReason::Set) && self.is_aside(input, unit))
    }

    /// A unit was sent to the primary, behind what discards what was drawn there before, or not.
    pub(super) fn note_draws(&mut self, input: &[u8], unit: &Unit, discarded: bool) {
        if discarded {
            self.begin_draws(false);
        }
        if (!discarded || self.values() == SequenceValues::Pin) && self.may_draw(input, unit) {
            self.draw(input, unit);
        }
    }

    /// What more than reads was sent to the primary: it may have drawn from sequences there.
    fn draw(&mut self, input: &[u8], unit: &Unit) {
        let Some(server) = &self.server else { return };
        if server.meta.drew == 0 || server.meta.drew != self.draws.run {
            let before = server.meta.drew != 0;
            self.begin_draws(before);
        }
        let before = self.server.as_ref().is_some_and(|server| server.meta.drew_before);
        // Without others before it, all that is there is its own.
        if before && !self.draws.known {
            let mut known = false;
            self.each_text(input, unit, |sql| known |= draws_by_its_words(sql));
            self.draws.known = known;
        }
        let keeps = self.mode == PoolMode::Transaction
            && !(self.read_only || self.pins.has(PinReason::Sequence))
            && (!before || self.draws.known)
            && self.values() == SequenceValues::Pin;
        if keeps && self.asking().follows() {
            self.pins.add(PinReason::Sequence);
            self.draws.kept = true;
        }
    }

    /// What becomes of what it draws.
    fn values(&self) -> SequenceValues {
        let pools = &self.w.config().pools;
        let own = pools.databases.get(&self.identity.database).and_then(|database| database.sequence_values);
        own.unwrap_or(pools.defaults.sequence_values)
    }

    /// What it has drawn, and not asked for, is no reason to stay any more.
    pub(super) fn leave_draws(&mut self) {
        if std::mem::take(&mut self.draws.kept) {
            self.pins.remove(PinReason::Sequence);
        }
    }

    /// A transaction is over: is what it has drawn still a reason to stay?
    pub(super) fn settle_draws(&mut self) {
        if self.draws.kept && !(self.values() == SequenceValues::Pin && self.asking().may_ask()) {
            self.leave_draws();
        }
    }

    /// From now on it is the session that draws there; others, or itself, may have done so `before`.
    pub(super) fn begin_draws(&mut self, before: bool) {
        let run = self.w.texts.borrow_mut().fresh_id();
        if let Some(server) = &mut self.server {
            (self.draws.run, self.draws.known) = (run, false);
            (server.meta.drew, server.meta.drew_before) = (run, before);
        }
    }

    /// Does the unit ask for what its session has drawn last, on a server where another one may have drawn since? What is
    /// there is discarded first, so that PostgreSQL says that there is nothing. True when that takes an answer first.
    pub(super) fn forget_draws(&mut self, unit: &Unit) -> bool {
        if !unit.pins.has(PinReason::Sequence) {
            return false;
        }
        let followed = self.asking().follows();
        self.asking().ask();
        self.draws.kept = false;
        let asks = !self.pins.has(PinReason::Sequence) && self.mode == PoolMode::Transaction;
        let Some(server) = self.server.as_ref().filter(|_| asks) else { return false };
        // Where nothing was discarded, as nobody has asked before: who is known to have drawn since asks for that.
        let own = !followed && self.draws.known && server.meta.drew == self.draws.run;
        if own || !is_foreign(&server.meta, &self.draws) {
            return false;
        }
        if self.relay.status == TxStatus::Failed || self.relay.open.is_some() {
            return false;
        }
        if !self.relay.busy() {
            self.tracking.asked = Some(Asked::Discard);
            self.send_hidden(DISCARD);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_draws_by_its_words_is_found_at_any_place_near_the_beginning() {
        for text in
            ["Insert into t values (1)", "with x as (select 1) INSERT", "select nextval('s')", "copy t from stdin"]
        {
            assert!(draws_by_its_words(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "update t set i = 1",
            "delete from t",
            "select 1",
            "inser",
            "lock table t",
            "update t set inserted = copy_no",
        ] {
            assert!(!draws_by_its_words(text.as_bytes()), "{text}");
        }
    }
}
