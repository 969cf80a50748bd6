//! Transaction blocks that a standby serves: those that are READ ONLY, for as long as they last.
//!
//! A block that has done nothing yet but begin can be on any server: it is left behind and begun anew elsewhere when
//! SET TRANSACTION makes it READ ONLY, when its first statement is not proven to read only, when a standby refuses that
//! statement or dies, or has fallen behind since BEGIN. From its first answer on it stays where it is.

use crate::config::PoolMode;
use crate::pool::Identity;
use crate::route::{NoStandby, Target};
use crate::session::acquire;
use crate::session::batch::Unit;
use crate::session::client::{Failure, Loss, Session, Tail, Turn};
use crate::session::incoming::Step;
use crate::session::state::{LostBlock, Pins};
use crate::session::tracking::Asked;
use crate::sql::{Access, Modes, PinReason};
use crate::wire::backend::TxStatus;
use crate::wire::error_response::ClientError;
use cluster::topology::Gate;
use cluster::{Instant, Role};

/// A block that has done nothing yet but begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fresh {
    /// What its statements said of its modes.
    modes: Modes,
    /// What was sent in it and is not answered.
    sent: Sent,
    /// It has left the primary for a standby already.
    moved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// Nothing but what begins it.
    Nothing,
    /// Something is parsed or described.
    Parse,
    /// Its first statement.
    Statement,
}

impl Fresh {
    /// The same, when what was sent in it is to be sent again.
    pub(super) fn unsent(self) -> Self {
        Self { sent: Sent::Nothing, ..self }
    }
}

/// Can a block be begun anew, whose standby is lost? `first` says of what was sent and not answered: how many units, has
/// part of the answer reached the client, were they kept.
pub(super) fn survives(fresh: Option<Fresh>, first: (usize, bool, bool), loss: Loss) -> bool {
    let Some(fresh) = fresh else { return false };
    let undisturbed = match (fresh.sent, first) {
        (Sent::Nothing, (0, _, _)) => true,
        (Sent::Parse | Sent::Statement, (1, false, true)) => true,
        (Sent::Nothing | Sent::Parse | Sent::Statement, _) => false,
    };
    undisturbed
        && match loss {
            Loss::Gone | Loss::Fatal(_) | Loss::Deposed | Loss::Refused(_) => true,
            Loss::ViewStale | Loss::Violation(_) | Loss::HoldTimeout | Loss::Stuck => false,
        }
}

/// A unit that came whole and alone.
fn is_whole(unit: &Unit) -> bool {
    unit.complete && !unit.flush && unit.tail_left == 0
}

/// What keeps a session on its server, but for settings.
pub(super) fn kept(pins: Pins) -> Pins {
    pins.without(Pins::of(PinReason::Set))
}

fn in_startup<'a>(identity: &'a Identity, name: &str) -> Option<&'a str> {
    identity.parameters.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
}

impl Session {
    /// What a unit needs: proven reads may go to a standby, and so may a READ ONLY block that begins with such.
    pub(super) fn access(&self, unit: &Unit) -> Access {
        if self.read_only {
            // What is none for a standby it says itself; what is none for a primary is stopped before it is sent there.
            return Access::Read;
        }
        let block = &unit.block;
        let whole = is_whole(unit) && self.relay.open.is_none();
        let begun = self.fresh.filter(|_| block.begins.is_none()).map(|fresh| fresh.modes);
        let Some(modes) = begun.or(block.begins.filter(|_| self.fresh.is_none())) else {
            return if unit.read { Access::Read } else { Access::Write };
        };
        let may = whole && !block.unproven && self.mode == PoolMode::Transaction;
        let modes = modes.then(block.sets.unwrap_or_default());
        if may && modes.suit_standby(|name| self.default_of(name)) { Access::Read } else { Access::Write }
    }

    /// What the session has of a setting, as far as it is known.
    pub(super) fn default_of(&self, name: &str) -> Option<&str> {
        let login = || self.base.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let told = || (self.serializable && name == "default_transaction_isolation").then_some("serializable");
        self.tracking.settings.get(name).or_else(login).or_else(|| in_startup(&self.identity, name)).or_else(told)
    }

    /// What becomes of a unit in a block that can be elsewhere, or in one that a standby serves. `None`: it goes where
    /// the session is.
    pub(super) fn route_block(&mut self, unit: &Unit, access: Access, now: Instant) -> Option<Step> {
        if self.replants {
            return self.replant(access, now, unit.len);
        }
        let role = self.server.as_ref()?.meta.role;
        if self.relay.status != TxStatus::Block || self.relay.busy() {
            return None;
        }
        let block = &unit.block;
        let reads = unit.statements > 0 && block.more;
        let says = self.says();
        let leaves = self.fresh.filter(|_| self.may_leave()).is_some_and(|fresh| match (role, access) {
            (Role::Standby, Access::Write) => true,
            (Role::Standby, Access::Read) if says => !self.still_fits(now),
            (Role::Standby, Access::Read) => reads && (unit.read || block.aside) && !self.still_fits(now),
            (Role::Primary, Access::Read) => {
                let sets = !block.more && block.sets.is_some();
                let unproven = self.read_only && block.unproven;
                let there = !fresh.moved && (sets || unproven);
                there && matches!(self.target(now), Target::Standby(_)) || self.must_move(now)
            }
            (Role::Primary, Access::Write) => self.needs_proof(access, now) || self.must_show(now),
        });
        if leaves {
            self.leave_block();
            self.unfollow_sets();
            // Nothing was done in the block yet.
            (self.replants, self.wrote, self.saw) = (true, false, false);
            self.fresh = self.fresh.map(|fresh| Fresh { moved: fresh.moved || role == Role::Primary, ..fresh });
            return Some(Step::Turn(0, Turn::Acquire { access, bytes: unit.len }));
        }
        if role == Role::Primary && self.refuse_late_proof(now) {
            return Some(Step::Used(0));
        }
        // Sessions that only read are asked everywhere, not only in blocks, and just before anything is sent.
        let foreign = !self.read_only && !self.foreign(unit).is_empty();
        (role == Role::Standby && foreign).then(|| self.refuse_in_block(unit))
    }

    /// Can the block be elsewhere?
    fn may_leave(&self) -> bool {
        let still = self.to_server.is_empty() && self.tail == Tail::None && self.server_in.is_empty();
        still
            && !self.cancelling
            && self.mode == PoolMode::Transaction
            && self.pins_but_first().is_empty()
            && !self.tracking.stuck
    }

    /// Would the standby that has the block still be chosen for it?
    pub(super) fn still_fits(&mut self, now: Instant) -> bool {
        let promise = self.promise_of_unit();
        let Some(server) = &self.server else { return false };
        let another = self.w.is_another(&server.meta, &promise);
        !another && self.w.still_fits(&server.meta.node, &promise, &mut self.causality.borrow_mut(), now)
    }

    /// A READ ONLY block at the primary says what it is promised: can that not be kept there? A server that was looked for
    /// just now keeps it.
    fn must_move(&mut self, now: Instant) -> bool {
        let says = self.says() && self.chosen.is_none();
        says && (self.target(now) != Target::Primary || self.needs_proof(Access::Read, now))
    }

    /// A block at the primary says what it is promised, and that does not show yet what was read at standbys: it waits for that as
    /// if it began now. One that was looked for just now does not.
    fn must_show(&mut self, now: Instant) -> bool {
        self.says() && self.chosen.is_none() && self.causality.borrow().has_seen() && self.waits_unshown(now)
    }

    /// Where a READ ONLY block that begins now would go.
    fn target(&mut self, now: Instant) -> Target {
        let promise = self.promise_of_unit();
        let database = self.identity.database.as_str();
        let need = acquire::Need {
            database,
            causality: &self.causality,
            access: Access::Read,
            quiet: true,
            promise,
            avoid: &self.avoid,
            since: now,
        };
        acquire::target(&self.w, need, now).0
    }

    /// The block begins anew on a server that is found for it.
    fn replant(&mut self, access: Access, now: Instant, bytes: usize) -> Option<Step> {
        let open = self.w.gate(now) == Gate::Open;
        match &self.server {
            None => Some(Step::Turn(0, Turn::Acquire { access, bytes })),
            Some(server) if server.meta.role == Role::Primary && !open => {
                self.give_back(now);
                Some(Step::Turn(0, Turn::Acquire { access, bytes }))
            }
            Some(_) => {
                if !self.apply() && !self.must_prove(now) && !self.discard_before_block() {
                    let modes = self.fresh.map(|fresh| fresh.modes).unwrap_or_default();
                    let mut sql = modes.begin();
                    self.said.iter().for_each(|said| said.write(&mut sql));
                    self.set_first.iter().for_each(|texts| sql.push_str(texts));
                    self.tracking.asked = Some(Asked::Begin);
                    self.set_busy(Some(if self.relay.standby { Role::Standby } else { Role::Primary }));
                    self.send_hidden(&sql);
                }
                Some(Step::Wait)
            }
        }
    }

    /// The block has begun anew, or has not.
    pub(super) fn block_begun(&mut self, error: Option<Vec<u8>>) {
        match error {
            None => {
                self.replants = false;
                self.follow_sets_again();
            }
            Some(frame) => self.fail = Some(Failure::Frame(frame)),
        }
    }

    /// The unit at the head of the inbox fails, and with it a block that is on no server.
    pub(super) fn give_up_block(&mut self) {
        if std::mem::take(&mut self.replants) {
            let error = Box::new(ClientError::InFailedTransaction);
            (self.fresh, self.lost_block) = (None, LostBlock::Told(error));
            self.set_busy(None);
            self.give_back(self.w.now());
        }
    }

    /// What would stay on the standby, or means something else there, is refused; and that fails the block.
    fn refuse_in_block(&mut self, unit: &Unit) -> Step {
        let node = self.server.as_ref().map(|server| server.meta.node.clone()).expect("a standby serves the block");
        let what = if unit.block.advisory { Pins::of(PinReason::AdvisoryLock) } else { kept(unit.pins) };
        self.leave_block();
        self.fresh = None;
        self.lost_block = LostBlock::Untold(Box::new(ClientError::NotOnStandby { node, what: what.list() }));
        Step::Used(0)
    }

    /// May a unit be sent again, when nothing of its answer has reached the client?
    pub(super) fn may_repeat(&mut self, unit: &Unit) -> bool {
        let alone = self.relay.open.is_none() && unit.complete;
        let first = alone && self.fresh.is_some_and(|fresh| fresh.sent == Sent::Nothing);
        let standby = self.relay.standby;
        // What is not proven to read is not run twice, as far as a standby lets it run at all.
        let unproven = self.read_only && unit.block.unproven;
        self.relay.keeps_refusals = self.read_only;
        self.relay.retries = standby && !unproven && (self.relay.status == TxStatus::Idle || first && self.may_leave());
        // Reads that never burden the primary are not repeated there.
        self.relay.rechecks = self.relay.retries
            && !self.read_only
            && self.relay.status == TxStatus::Idle
            && self.promise_of_unit().no_standby == NoStandby::Primary;
        self.relay.retries || self.relay.status == TxStatus::Idle && unit.record.repeatable(TxStatus::Idle)
    }

    /// A unit goes to the server: is the block still as if it had just begun? `begins`: it is the start of a unit.
    pub(super) fn note_block(&mut self, input: &[u8], unit: &Unit, begins: bool) {
        let (block, whole) = (&unit.block, begins && is_whole(unit));
        let anew = self.fresh.is_none();
        self.fresh = match (self.fresh, block.begins) {
            (Some(fresh), None) if unit.statements == 0 => Some(Fresh { sent: Sent::Parse, ..fresh }),
            (Some(fresh), None) if whole && !block.more => {
                Some(Fresh { modes: fresh.modes.then(block.sets.unwrap_or_default()), ..fresh })
            }
            (Some(fresh), None) if whole && self.only_says(unit) => Some(fresh),
            (Some(fresh), None) if whole && self.only_sets(input, unit) => Some(Fresh { sent: Sent::Parse, ..fresh }),
            (Some(fresh), _) => Some(Fresh { sent: Sent::Statement, ..fresh }),
            (None, Some(modes)) if whole && !block.more && self.relay.status == TxStatus::Idle => {
                let modes = modes.then(block.sets.unwrap_or_default());
                Some(Fresh { modes, sent: Sent::Nothing, moved: false })
            }
            (None, _) => None,
        };
        self.note_said(anew);
        if anew || self.fresh.is_none() {
            self.set_first = None;
        }
    }

    /// Has the first statement of the open block been sent?
    pub(super) fn has_begun_to_work(&self) -> bool {
        self.fresh.is_none_or(|fresh| fresh.sent == Sent::Statement)
    }

    /// Units were answered.
    pub(super) fn block_answered(&mut self) {
        self.fresh = self.fresh.filter(|_| self.relay.status == TxStatus::Block).and_then(|fresh| match fresh.sent {
            Sent::Nothing | Sent::Parse => Some(fresh.unsent()),
            Sent::Statement => None,
        });
        if self.reported {
            // What it has set is told of as if its session had it.
            self.fresh = self.fresh.filter(|_| self.set_first.is_none());
        }
        self.set_first = self.set_first.take().filter(|_| self.fresh.is_some());
    }
}
