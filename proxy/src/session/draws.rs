//! What a session has drawn from sequences, which `currval` and `lastval` tell: its own, or nothing.
//!
//! A server keeps the values for whoever asks on that connection. So where anybody in the database asks at all, the first
//! of a session's writes on a connection discards what was drawn there before, in the same write and before its transaction
//! begins. Then what is there is of the session that wrote last. Who asks elsewhere than where it wrote last is told
//! that there is nothing (55000).

use crate::catalog::draws::Draws as Asking;
use crate::config::PoolMode;
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
    /// It has written since it has the server that it has.
    pub here: bool,
    /// Whether anybody in its database asks.
    asking: OnceCell<Arc<Asking>>,
}

/// Is what was drawn there not, or not only, of this session's last run?
fn is_foreign(meta: &Meta, draws: &Draws) -> bool {
    meta.drew != 0 && (meta.drew != draws.run || meta.drew_before)
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
        } else if self.may_draw(input, unit) {
            self.draw();
        }
    }

    /// What more than reads was sent to the primary: it may have drawn from sequences there.
    fn draw(&mut self) {
        let Some(server) = &mut self.server else { return };
        if server.meta.drew == 0 || server.meta.drew != self.draws.run {
            let before = server.meta.drew != 0;
            self.begin_draws(before);
        }
        self.draws.here = true;
    }

    /// From now on it is the session that draws there; others, or itself, may have done so `before`.
    pub(super) fn begin_draws(&mut self, before: bool) {
        let run = self.w.texts.borrow_mut().fresh_id();
        if let Some(server) = &mut self.server {
            (self.draws.run, self.draws.here) = (run, true);
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
        let asks = !self.pins.has(PinReason::Sequence) && self.mode == PoolMode::Transaction;
        let Some(server) = self.server.as_ref().filter(|_| asks) else { return false };
        // Where nothing was discarded, as nobody has asked before: who has written in this very transaction has hardly done so
        // without drawing what it asks for.
        let own = !followed && self.draws.here && server.meta.drew == self.draws.run;
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
