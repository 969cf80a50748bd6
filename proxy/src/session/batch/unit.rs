//! What a unit is and does, as far as its messages tell.

use crate::session::outcome::Record;
use crate::session::state::Pins;
use crate::sql::{Access, Control, Local, Modes, PinReason, Statement};

/// A unit, or the part of one that has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Bytes of input that belong to it.
    pub len: usize,
    /// It ends with what owes a ReadyForQuery.
    pub complete: bool,
    /// It ends with a Flush: answers are wanted before its Sync.
    pub flush: bool,
    /// Bytes of its last message that have not come yet.
    pub tail_left: usize,
    /// Where that message's text begins, when it is one that is to be read as it passes.
    pub text_at: Option<usize>,
    /// What it does, the open part before it included.
    pub record: Record,
    /// Proven reads only, so a standby may serve it.
    pub read: bool,
    /// It only reads, be it what only the primary has: back-pressure does not slow it.
    pub quiet: bool,
    /// It may leave in the session what nothing tells.
    pub strange: bool,
    /// What it does to the transaction it is in, when it is whole.
    pub block: Block,
    /// What binds the session to its server.
    pub pins: Pins,
    /// It may end what binds the session to its server.
    pub unpins: bool,
    /// It discards all that the session has: DISCARD ALL.
    pub discards: bool,
    /// It drops all prepared statements.
    pub forgets: bool,
    /// It binds a portal that may commit.
    pub binds_commit: bool,
    /// It names a statement that was prepared under a name.
    pub binds_named: bool,
    /// It makes, uses or drops prepared statements by SQL.
    pub sql_names: bool,
    /// It names the unnamed statement, and has not parsed it.
    pub takes_unnamed: bool,
    /// It may name a setting of the proxy's own.
    pub ours: bool,
    /// What it may set for its transaction only.
    pub local: Local,
    /// It may end the transaction, or take back a part of it.
    pub undoes: bool,
    /// Statements it executes, saturating.
    pub statements: u32,
}

/// What a unit means for a transaction block that has done nothing yet but begin, or that the unit begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// It begins a block before anything else, with these modes.
    pub begins: Option<Modes>,
    /// It sets these modes with its first statements, behind BEGIN or alone.
    pub sets: Option<Modes>,
    /// It does more than that.
    pub more: bool,
    /// What it does more is more than proven reads, SET of what decides nothing here, cursors for such reads, savepoints,
    /// COMMIT and ROLLBACK.
    pub unproven: bool,
    /// It sets something, or declares a cursor.
    pub aside: bool,
    /// It locks or unlocks an advisory lock.
    pub advisory: bool,
}

impl Block {
    pub(super) fn execute(&mut self, class: &Statement) {
        self.advisory |= class.advisory;
        match class.control {
            Control::Empty => {}
            Control::Begin(modes) if !self.more && self.begins.is_none() && self.sets.is_none() => {
                self.begins = Some(modes);
            }
            Control::SetTransaction(modes) if !self.more => {
                self.sets = Some(self.sets.unwrap_or_default().then(modes));
            }
            Control::Commit { chain: false }
            | Control::Rollback { chain: false }
            | Control::Savepoint
            | Control::RollbackTo
            | Control::Release => self.more = true,
            Control::None => {
                (self.more, self.aside) = (true, self.aside | class.aside);
                // Settings follow the session.
                let pins = if class.aside { class.pins.without(Pins::of(PinReason::Set)) } else { class.pins };
                self.unproven |= class.access != Access::Read && !class.aside || !pins.is_empty();
            }
            Control::Begin(_)
            | Control::SetTransaction(_)
            | Control::Commit { chain: true }
            | Control::Rollback { chain: true }
            | Control::PrepareTransaction
            | Control::FinishPrepared
            | Control::Deallocate
            | Control::DeallocateAll
            | Control::DiscardAll
            | Control::Discard
            | Control::Multi { .. } => (self.more, self.unproven) = (true, true),
        }
    }
}
