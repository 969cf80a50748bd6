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

pub(super) const IN_BLOCK: &str = "a comment cannot set \"pgtenure.durability\" within a transaction block";
pub(super) const INSTEAD: &str = "Its COMMIT waits for what BEGIN or SET LOCAL pgtenure.durability has said.";

/// What a session's `synchronous_commit` is while a comment's is in force.
pub(super) struct Unhinted {
    /// The session's own.
    own: Option<Box<str>>,
    /// The comment's. What the session has instead of it, it has set itself since.
    given: &'static str,
    /// The session has set it itself in the block that the comment began: it may be the same, and stays.
    kept: bool,
}

impl Session {
    /// The texts of the unit at the head of the inbox come with these hints; `None`: it can be routed.
    pub(super) fn hint_durability(&mut self, hints: &[Vec<(String, String)>], unit: &Unit) -> Option<Step> {
        let said = |of: &Vec<(String, String)>| of.iter().rev().find(|(name, _)| name == NAME).map(|(_, v)| v.clone());
        let said: Vec<Option<String>> = hints.iter().map(said).collect();
        let hint = strongest(&said, || self.own_durability());
        if hint.is_none() && self.unhinted.is_none() || self.relay.open.is_some() {
            return None;
        }
        match self.status() {
            TxStatus::Idle => {}
            TxStatus::Block | TxStatus::Failed => return None,
        }
        // What sets something commits nothing, and is to stay.
        let sets = unit.pins.has(PinReason::Set) || unit.discards;
        let asked = match hint.filter(|_| !sets).map(|value| self.judge_hint(&value)).transpose() {
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

    /// Warn of the comment of the unit at the head of the inbox, of each thing with its detail, once: it may be looked at
    /// again before it is sent.
    pub(super) fn warn_of_hint(&mut self, texts: &[(impl AsRef<str>, &str)]) {
        // Nothing can be said in the middle of a message.
        if texts.is_empty() || self.hint_warned || self.relay.mid_frame() {
            return;
        }
        self.hint_warned = true;
        for (text, detail) in texts {
            self.to_client.append(|out| backend::write_warning(out, text.as_ref(), detail));
        }
    }

    /// The session sets for itself what its commits wait for, within a block that may have begun with a comment. What is
    /// rolled back later, be it to a savepoint, is taken for undone.
    pub(super) fn keep_hinted(&mut self) {
        if let Some(unhinted) = self.unhinted.as_mut().filter(|_| self.relay.status == TxStatus::Block) {
            (unhinted.kept, self.relay.rolled_back) = (true, false);
        }
    }

    /// Is what the session commits with a comment's, and not its own?
    pub(super) fn commits_as_hinted(&self) -> bool {
        let given = self.unhinted.as_ref().map(|u| u.given);
        given.is_some() && self.tracking.settings.get(COMMIT) == given
    }

    /// What the session's commits wait for without a comment.
    fn own_durability(&self) -> Durability {
        match self.unhinted.as_ref().filter(|unhinted| self.commits_as_hinted() && !unhinted.kept) {
            Some(Unhinted { own: Some(own), .. }) => Durability::of_commit(own).unwrap_or(Durability::SemiSync),
            Some(Unhinted { own: None, .. }) => Durability::of_mode(self.w.view.borrow().topology.semi_sync),
            None => self.durability_in_force(),
        }
    }

    /// The session commits so from here on, or as it says itself. True when what is in flight must be answered first.
    fn commit_as(&mut self, asked: Option<Durability>) -> bool {
        let now: Option<Box<str>> = self.tracking.settings.get(COMMIT).map(Into::into);
        let own = match &self.unhinted {
            Some(unhinted) if self.commits_as_hinted() && (!unhinted.kept || self.relay.rolled_back) => {
                unhinted.own.clone()
            }
            _ => now.clone(),
        };
        let next = asked.map_or_else(|| own.clone(), |level| Some(level.commit().into()));
        if next != now {
            if self.relay.busy() {
                return true;
            }
            Settings::set(Arc::make_mut(&mut self.tracking.settings), COMMIT, next.as_deref());
            self.tracking.due = true;
        }
        self.unhinted = asked.map(|level| Unhinted { own, given: level.commit(), kept: false });
        if asked.is_none() {
            self.raise_durability();
        }
        false
    }
}

/// The hint that holds for statements that are committed together, each of which says this or nothing. `own`: what the session's
/// commits wait for, which those want that say nothing.
fn strongest(said: &[Option<String>], own: impl FnOnce() -> Durability) -> Option<String> {
    let hints = || said.iter().flatten();
    if let Some(invalid) = hints().find(|value| Durability::of(value).is_none()) {
        return Some(invalid.clone());
    }
    let level = hints().filter_map(|value| Durability::of(value)).max()?;
    let stronger = said.iter().all(Option::is_some) || level > own();
    stronger.then(|| level.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_together_waits_for_the_most_that_one_of_it_wants() {
        for (said, want) in [
            (&[Some("local")][..], Some("local")),
            (&[Some("local"), Some("applied"), Some("async")], Some("applied")),
            (&[Some("async"), None], None),
            (&[None, Some("applied")], Some("applied")),
            (&[None, Some("twice"), Some("applied")], Some("twice")),
            (&[None], None),
            (&[], None),
        ] {
            let said: Vec<Option<String>> = said.iter().map(|value| value.map(str::to_owned)).collect();
            assert_eq!(strongest(&said, || Durability::SemiSync).as_deref(), want, "{said:?}");
        }
    }
}
