//! Sessions of `proxy.listen_read_only`: as those of a standby.
//!
//! Whatever they send goes to a standby, which refuses writes by itself and in its own words. When none qualifies, the
//! primary takes its place only for what cannot write there: reads that are proven to be such, the start and the end of
//! transactions, and what changes the session's other settings. Everything else is refused here, so it does not matter by
//! which SET, block or function a client might try to get write access: none of it reaches a primary. That sessions there
//! begin with `default_transaction_read_only` is a second bolt, for functions that are labelled stable and write.

use crate::config::PoolMode;
use crate::session::batch::Unit;
use crate::session::block::kept;
use crate::session::client::{Failure, Session};
use crate::session::incoming::Step;
use crate::session::lost;
use crate::session::state::Pins;
use crate::session::tracking::READ_ONLY;
use crate::sql::{Modes, PinReason, keeps_read_only};
use crate::wire::backend::TxStatus;
use crate::wire::codec::head;
use crate::wire::error_response::ClientError;
use crate::wire::frontend;
use crate::wire::read_only_error::ReadOnlyError;
use cluster::{Instant, Role};

/// Log in to servers READ ONLY, whatever the client has asked for. What stands in `options` comes before this.
pub(super) fn at_login(parameters: &mut Vec<(String, String)>) {
    parameters.retain(|(name, _)| !name.eq_ignore_ascii_case(READ_ONLY));
    parameters.push((READ_ONLY.to_owned(), "on".to_owned()));
}

/// Why the primary is not given a unit, if it is not. `aside`: its texts only change or show other settings.
fn objection(unit: &Unit, aside: impl FnOnce() -> bool) -> Option<ReadOnlyError> {
    let writes = |modes: Modes| modes.read_only == Some(false);
    if unit.block.begins.is_some_and(writes) || unit.block.sets.is_some_and(writes) {
        return Some(ReadOnlyError::ReadWrite);
    }
    (unit.block.unproven && !aside()).then_some(ReadOnlyError::Statement)
}

impl Session {
    /// From here on, only read.
    pub(super) fn only_read(&mut self) {
        // A session with a server of its own would have to choose between standby and primary for good.
        (self.read_only, self.mode, self.tracking.read_only) = (true, PoolMode::Transaction, true);
    }

    /// What of a unit's pins a standby would grant, and is not given here.
    pub(super) fn foreign(&self, unit: &Unit) -> Pins {
        let pins = kept(unit.pins);
        // These a standby refuses itself, as what they are: writes.
        let refused = Pins::of(PinReason::Temp);
        let mut foreign =
            if self.read_only { pins.without(refused).without(Pins::of(PinReason::Listen)) } else { pins };
        if unit.block.advisory {
            foreign.add(PinReason::AdvisoryLock);
        }
        foreign
    }

    /// A unit is about to be sent to the server that the session has: may it?
    pub(super) fn keep_read_only(&mut self, input: &[u8], unit: &Unit, now: Instant) -> Option<Step> {
        let (role, node) = self.server.as_ref().map(|s| (s.meta.role, s.meta.node.clone()))?;
        let error = match role {
            Role::Primary => ClientError::ReadOnly(objection(unit, || self.is_aside(input, unit))?),
            Role::Standby => {
                let what = self.foreign(unit);
                match (what.is_empty(), what.has(PinReason::Sequence)) {
                    (true, _) => return None,
                    (false, true) => ClientError::ReadOnly(ReadOnlyError::Statement),
                    (false, false) => ClientError::NotOnStandby { node, what: what.list() },
                }
            }
        };
        if self.relay.open.is_some() {
            // Half of it is there already.
            return Some(self.violation(&error));
        }
        if self.relay.busy() {
            // What was asked before is answered first.
            return Some(Step::Wait);
        }
        match self.relay.status {
            TxStatus::Block => lost::fail_block(self, error),
            TxStatus::Failed => self.fail = Some(Failure::Error(ClientError::InFailedTransaction)),
            TxStatus::Idle => {
                self.fail = Some(Failure::Error(error));
                self.chosen = None;
                if self.pins.is_empty() {
                    self.give_back(now);
                }
            }
        }
        Some(Step::Used(0))
    }

    /// Is all that a unit executes about settings, and not about this one? What was bound before it is not known.
    pub(super) fn is_aside(&self, input: &[u8], unit: &Unit) -> bool {
        if unit.tail_left > 0 || !unit.complete || self.lex_is_odd() {
            return false;
        }
        let (mut parsed, mut bound, mut at) = (Vec::new(), false, 0);
        while at < unit.len {
            let frame = head(&input[at..]).ok().flatten().and_then(|h| input.get(at..at + h.total));
            let Some(frame) = frame else { return false };
            at += frame.len();
            let aside = match frame[0] {
                b'Q' => frontend::query(frame).is_some_and(keeps_read_only),
                b'P' => frontend::parse(frame).is_some_and(|p| {
                    parsed.push(p.name);
                    keeps_read_only(p.sql)
                }),
                b'B' => frontend::bind(frame).is_some_and(|b| {
                    bound = true;
                    let known = || self.statements.sql(b.statement).is_some_and(keeps_read_only);
                    b.portal.is_empty() && (parsed.contains(&b.statement) || known())
                }),
                b'E' => bound && frame.get(5) == Some(&0),
                b'D' | b'C' | b'S' => true,
                // Function calls above all.
                _ => false,
            };
            if !aside {
                return false;
            }
        }
        true
    }

    /// May a text mean something else to the server than to us?
    fn lex_is_odd(&self) -> bool {
        !self.lex.standard_conforming_strings || !self.lex.ascii_safe_encoding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_log_in_otherwise() {
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        let mut parameters = vec![pair("Default_Transaction_Read_Only", "off"), pair("TimeZone", "UTC")];
        at_login(&mut parameters);
        assert_eq!(parameters, [pair("TimeZone", "UTC"), pair(READ_ONLY, "on")]);
    }
}
