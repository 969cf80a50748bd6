//! A statement that says in a comment what its commit waits for: `/* pgtenure: durability=applied */ insert …`.
//!
//! While it runs the session's `synchronous_commit` is that, and what it was before afterwards; servers are given either
//! like any setting of the session. So a BEGIN says it for its whole block. Within a block a comment changes nothing, as it
//! is the block's COMMIT that waits, and the client is warned. What may not be had is refused, as by SET.

use crate::route::durability::{COMMIT, Durability, NAME};
use crate::session::batch::Unit;
use crate::session::client::{Failure, Session};
use crate::session::incoming::Step;
use crate::session::settings::Settings;
use crate::sql::PinReason;
use crate::wire::backend::{self, TxStatus};
use crate::wire::error_response::ClientError;
use std::sync::Arc;

const IN_BLOCK: &str = "a comment cannot set \"pgtenure.durability\" within a transaction block";
const INSTEAD: &str = "Its COMMIT waits for what BEGIN or SET LOCAL pgtenure.durability has said.";

impl Session {
    /// The unit at the head of the inbox comes with these hints; `None`: it can be routed.
    pub(super) fn hint_durability(&mut self, hints: &[(String, String)], unit: &Unit) -> Option<Step> {
        let hint = hints.iter().rev().find(|(name, _)| name == NAME).map(|(_, value)| value.as_str());
        if hint.is_none() && self.unhinted.is_none() || self.relay.open.is_some() {
            return None;
        }
        match self.relay.status {
            TxStatus::Idle => {}
            TxStatus::Block if hint.is_some() && !self.relay.mid_frame() => {
                self.to_client.append(|out| backend::write_warning(out, IN_BLOCK, INSTEAD));
                return None;
            }
            TxStatus::Block | TxStatus::Failed => return None,
        }
        // What sets something commits nothing, and is to stay.
        let sets = unit.pins.has(PinReason::Set) || unit.discards;
        let asked = match hint.filter(|_| !sets).map(|value| self.judge_hint(value)).transpose() {
            Ok(asked) => asked,
            // What was asked before is answered first.
            Err(_) if self.relay.busy() => return Some(Step::Wait),
            Err(error) => {
                self.fail = Some(Failure::Error(ClientError::Durability(error)));
                return Some(Step::Used(0));
            }
        };
        self.commit_as(asked).then_some(Step::Wait)
    }

    /// The session commits so from here on, or as it says itself. True when what is in flight must be answered first.
    fn commit_as(&mut self, asked: Option<Durability>) -> bool {
        let now: Option<Box<str>> = self.tracking.settings.get(COMMIT).map(Into::into);
        let own = self.unhinted.clone().unwrap_or_else(|| now.clone());
        let next = asked.map_or_else(|| own.clone(), |level| Some(level.commit().into()));
        if next != now {
            if self.relay.busy() {
                return true;
            }
            Settings::set(Arc::make_mut(&mut self.tracking.settings), COMMIT, next.as_deref());
            self.tracking.due = true;
        }
        self.unhinted = asked.map(|_| own);
        if asked.is_none() {
            self.raise_durability();
        }
        false
    }
}
