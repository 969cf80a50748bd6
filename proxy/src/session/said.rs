//! What a transaction block is promised by itself: by a comment of its BEGIN, and by SET LOCAL before its first statement.
//!
//! A promise holds as of BEGIN. So what is said behind that counts while the block has done nothing else: it begins anew
//! where it can be kept, or once it is proven, with what was said before it. Later it is a setting of the server's only.

use crate::route::promise::{self, AFTER, BadPromise};
use crate::route::{Consistency, Promise};
use crate::session::assigned::{Scope, assigned};
use crate::session::batch::Unit;
use crate::session::client::Session;
use crate::session::follow::Reading;
use crate::session::lost;
use crate::session::settings::literal;
use crate::session::state::Pins;
use crate::sql::{Access, PinReason, sets_aside};
use crate::wire::backend::TxStatus;
use crate::wire::error_response::ClientError;
use crate::wire::promise_error::PromiseError;
use cluster::{Instant, Role};

const CONSISTENCY: &str = "pgtenure.consistency";

/// The settings that a promise is made of, and whether its client is told where statements go.
const NAMES: [&str; 7] = [
    CONSISTENCY,
    "pgtenure.read_from",
    "pgtenure.max_replay_lag",
    "pgtenure.standby_wait",
    "pgtenure.no_standby",
    AFTER,
    "pgtenure.explain_route",
];

/// Bytes that are kept of what a block sets first.
const MAX_SET_FIRST: usize = 4096;

/// What a unit or a block is promised that says so itself.
pub(super) struct Said {
    /// All of it.
    pub(super) promise: Promise,
    /// What was set for the transaction.
    settings: Vec<(&'static str, String)>,
}

impl Said {
    /// What is set for the transaction, on top of what holds without.
    pub(super) fn new(holds: Promise, settings: Vec<(&'static str, String)>) -> (Self, Vec<BadPromise>) {
        let (promise, bad) = promise::resolve(holds, settings.iter().map(|(n, v)| (*n, v.as_str())));
        (Self { promise, settings }, bad)
    }

    /// What was set for the transaction, to be set again.
    pub(super) fn write(&self, sql: &mut String) {
        for (name, value) in &self.settings {
            sql.push_str(";SET LOCAL ");
            sql.push_str(name);
            sql.push_str(" TO ");
            literal(sql, value);
        }
    }

    /// The same, behind what was said before.
    fn behind(mut self, earlier: Self) -> Self {
        let again = |name: &str| self.settings.iter().any(|(n, _)| *n == name);
        let mut settings = earlier.settings;
        settings.retain(|(name, _)| !again(name));
        settings.append(&mut self.settings);
        Self { promise: self.promise, settings }
    }
}

fn late(name: &'static str, to: &str) -> ClientError {
    ClientError::Promise(PromiseError::Late { name, to: to.to_owned() })
}

impl Session {
    /// What the open block is promised by itself, while that counts.
    pub(super) fn promise_of_block(&self) -> Option<Promise> {
        self.fresh.and(self.said.as_deref()).map(|said| said.promise)
    }

    /// Is the client told where the unit goes that is sent now? As of what was known of its promise when it was routed.
    pub(super) fn explains(&self) -> bool {
        let said = self.hinted.as_deref().or(self.said.as_deref());
        said.map_or_else(|| self.promise_known(), |said| Some(said.promise)).is_some_and(|of| of.explain_route)
    }

    /// A unit is on its way: nothing is asked any more of what was said for its block, if that ends with it.
    pub(super) fn forget_said(&mut self) {
        if self.said.is_some() && self.relay.leads_to() == TxStatus::Idle {
            self.said = None;
        }
    }

    /// What the texts of a unit give the settings of a promise, and for how long; `None`: the value of before.
    fn gives(&self, input: &[u8], unit: &Unit) -> Vec<(&'static str, Option<String>, Scope)> {
        let mut given = Vec::new();
        if !unit.ours || unit.tail_left > 0 {
            return given;
        }
        self.each_text(input, unit, |sql| {
            for name in NAMES {
                let value = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                given.extend(assigned(sql, name).map(|a| (name, a.value.map(value), a.scope)));
            }
        });
        given
    }

    /// What a unit sets for its transaction of what reads are promised.
    pub(super) fn sets_locally(&self, input: &[u8], unit: &Unit) -> Vec<(&'static str, String)> {
        let local = self.gives(input, unit).into_iter().filter(|(_, _, scope)| *scope == Scope::Transaction);
        local.filter_map(|(name, value, _)| Some((name, value?))).collect()
    }

    /// What a unit within a block sets of it without effect on that block.
    pub(super) fn sets_late(&self, input: &[u8], unit: &Unit) -> Vec<(&'static str, Option<String>)> {
        let early = self.fresh.is_some();
        let late = self.gives(input, unit).into_iter().filter(|(_, _, scope)| *scope == Scope::Session || !early);
        late.map(|(name, value, _)| (name, value)).collect()
    }

    /// Does the unit say something of the open block's promise that may still be kept?
    pub(super) fn says(&self) -> bool {
        self.fresh.is_some() && self.hinted.is_some()
    }

    /// Is all that a unit does to say what its block is promised? The block has done nothing then.
    pub(super) fn only_says(&self, unit: &Unit) -> bool {
        let said = self.hinted.as_deref().map_or(0, |said| said.settings.len());
        self.own && said > 0 && usize::try_from(unit.statements) == Ok(said)
    }

    /// Is all that a unit does to set, at the standby that has the block, what decides nothing of where that is? It is kept
    /// then, to be said again where the block begins anew.
    pub(super) fn only_sets(&mut self, input: &[u8], unit: &Unit) -> bool {
        let alone = self.relay.standby && unit.block.aside && !unit.block.unproven && unit.statements == 1;
        if !alone {
            return false;
        }
        let mut texts: Vec<String> = Vec::new();
        self.each_text(input, unit, |sql| {
            let text = String::from_utf8_lossy(sql);
            if !text.is_empty() && !texts.iter().any(|known| *known == *text) {
                texts.push(text.into_owned());
            }
        });
        let [text] = texts.as_slice() else { return false };
        let before = self.set_first.as_deref().unwrap_or_default();
        let keeps = sets_aside(text.as_bytes()) && text.is_ascii() && before.len() + text.len() <= MAX_SET_FIRST;
        if keeps {
            // It may end in a comment.
            self.set_first = Some(format!("{before}\n;{text}").into());
        }
        keeps
    }

    /// What keeps the session on its server but for what the open block has set first.
    pub(super) fn pins_but_first(&self) -> Pins {
        let first = self.set_first.is_some() && self.tracking.fresh.has(PinReason::Set);
        if first { self.pins.without(Pins::of(PinReason::Set)) } else { self.pins }
    }

    /// The block has left the server where it has set something.
    pub(super) fn unfollow_sets(&mut self) {
        if self.set_first.is_some() {
            self.tracking.lose(&mut self.pins, true);
            (self.parse_key, self.reading) = (self.shared_key(), Reading::Usual);
            self.statements.apart = false;
        }
    }

    /// It is set again where the block has begun anew.
    pub(super) fn follow_sets_again(&mut self) {
        let Some(texts) = &self.set_first else { return };
        let touched = &mut self.tracking.touched;
        touched.add(texts.as_bytes(), &[], self.lex);
        touched.every |= touched.is_empty();
        self.parse_key = self.w.texts.borrow_mut().fresh_id();
        self.statements.apart = true;
        self.pins.add(PinReason::Set);
        self.tracking.fresh.add(PinReason::Set);
    }

    /// A unit goes to the server that says what its block is promised, or begins one with that.
    pub(super) fn note_said(&mut self, begins: bool) {
        if self.fresh.is_none() {
            // Whether its client is told of routes is asked until the block ends.
            self.said = self.said.take().filter(|_| self.relay.status != TxStatus::Idle);
        } else if begins {
            self.said = self.hinted.take();
        } else if let Some(said) = self.hinted.take() {
            self.said = Some(match self.said.take() {
                Some(earlier) => Box::new(said.behind(*earlier)),
                None => said,
            });
        }
    }

    /// Does the open block need a proof for what it is promised now, which what began it did not? One that was begun for
    /// that has it.
    pub(super) fn needs_proof(&mut self, access: Access, now: Instant) -> bool {
        if self.chosen.is_some() || !self.says() {
            return false;
        }
        let promise = self.promise_of_unit();
        if promise.consistency == Consistency::Strong {
            let before = self.promise_of_block().unwrap_or_else(|| self.promise());
            let protected = self.w.view.borrow().topology.protected;
            return protected && before.consistency != Consistency::Strong;
        }
        self.w.proven(&self.presence, &promise, access, now).is_err()
    }

    /// A block that cannot begin anew asks for `strong`, which its server can only be proven for before BEGIN: it fails.
    /// True when it does.
    pub(super) fn refuse_late_proof(&mut self, now: Instant) -> bool {
        let strong = self.says() && self.promise_of_unit().consistency == Consistency::Strong;
        let refused = strong && self.needs_proof(Access::Write, now);
        if refused {
            lost::fail_block(self, late(CONSISTENCY, Consistency::Strong.as_str()));
        }
        refused
    }

    /// A unit says what its block, which has done nothing yet, is promised, and a part of it is at the block's server already:
    /// what is described before it is executed. So the block stays there. Why it cannot be promised that.
    pub(super) fn cannot_keep(&mut self, said: Said, now: Instant) -> Option<ClientError> {
        let (holds, wants) = (self.promise_of_block().unwrap_or_else(|| self.promise()), said.promise);
        self.hinted = Some(Box::new(said));
        // Its client is told where statements go, wherever that is.
        if (Promise { explain_route: holds.explain_route, ..wants }) == holds {
            return None;
        }
        let standby = self.server.as_ref().is_some_and(|server| server.meta.role == Role::Standby);
        // What BEGIN needed no proof for may need one now, and cannot wait for it.
        let proven_less = holds.consistency == Consistency::Eventual || wants.max_replay_lag < holds.max_replay_lag;
        let serves = match standby {
            true => self.still_fits(now),
            false => !proven_less || !self.needs_proof(Access::Write, now),
        };
        match wants.after.filter(|_| wants.after != holds.after) {
            Some(after) => Some(late(AFTER, &after.to_string())),
            None if serves && (wants.consistency < Consistency::Global || wants.consistency == holds.consistency) => {
                None
            }
            None => Some(late(CONSISTENCY, wants.consistency.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_said_later_counts_and_all_of_it_is_said_again() {
        let holds = Promise { standby_wait: Duration::from_secs(2), ..Promise::session(Duration::from_secs(1)) };
        let (first, bad) = Said::new(holds, vec![("pgtenure.consistency", "global".to_owned())]);
        assert!(bad.is_empty());
        let more = vec![("pgtenure.max_replay_lag", "5s".to_owned()), ("pgtenure.consistency", "it's".to_owned())];
        let (second, bad) = Said::new(first.promise, more);
        assert_eq!(bad.len(), 1);
        assert_eq!(
            (second.promise.consistency, second.promise.standby_wait),
            (Consistency::Global, Duration::from_secs(2))
        );
        let mut sql = "BEGIN".to_owned();
        second.behind(first).write(&mut sql);
        assert_eq!(sql, "BEGIN;SET LOCAL pgtenure.max_replay_lag TO E'5s';SET LOCAL pgtenure.consistency TO E'it''s'");
    }
}
