//! What this session's reads are promised: the configuration's words as the session's settings change them, worked out
//! again when either has changed.

use crate::config::{Config, PoolMode, reads};
use crate::metrics::bump;
use crate::route::durability::NAME;
use crate::route::hint::{self, Hints};
use crate::route::promise::{self, AFTER, BadPromise};
use crate::route::{After, Consistency, Promise, ReadFrom, Reason, Standing};
use crate::session::assigned::{Assigned, Use, uses};
use crate::session::batch::Unit;
use crate::session::client::{Failure, Session};
use crate::session::hinted;
use crate::session::incoming::Step;
use crate::session::lost;
use crate::session::said::Said;
use crate::session::sets_after::Position;
use crate::session::settings::Shared;
use crate::sql::Access;
use crate::wire::backend::{self, TxStatus};
use crate::wire::error_response::ClientError;
use crate::wire::promise_error::PromiseError;
use cluster::{Instant, Term};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const IN_BLOCK: &str = "a comment within a transaction block cannot set what the block is promised";
const INSTEAD: &str = "The block keeps what a comment of its BEGIN, or SET LOCAL before its first statement, has said.";
/// What is said behind a setting that comes too late.
const LATE: &str = "SET LOCAL counts before the first statement of a block, SET as of the next transaction.";

/// A promise, and what it was worked out from.
pub(super) struct Promised {
    promise: Promise,
    config: Rc<Config>,
    settings: Shared,
    /// What runs outside blocks is SERIALIZABLE, which is not to be had on a standby.
    serializable: bool,
    /// When that was.
    since: Instant,
    /// Settings the client was warned of.
    bad: Vec<BadPromise>,
}

impl Promised {
    /// Must reads of a session that has set this have seen a position that it names, as far as that was worked out?
    pub(super) fn comes_after(&self, settings: &Shared) -> bool {
        self.promise.after.is_some() || !Arc::ptr_eq(&self.settings, settings)
    }
}

impl Session {
    /// What the session's reads outside blocks need, when [`promise`](Self::promise) has just been asked: a standby
    /// cannot run them SERIALIZABLE.
    pub(super) fn access_outside(&self) -> Access {
        let serializable = self.promised.as_deref().is_some_and(|known| known.serializable);
        if serializable { Access::Write } else { Access::Read }
    }

    /// What the unit at the head of the inbox is promised.
    pub(super) fn promise_of_unit(&mut self) -> Promise {
        let promise = self.promise_before();
        match (self.own && !self.says(), self.position) {
            // It sees nothing that anybody has written: a server is all that it needs.
            (true, _) => Promise { after: None, consistency: Consistency::Eventual, ..promise },
            (false, Position::Is(after)) => Promise { after, ..promise },
            (false, Position::Also(after)) => Promise { after: Some(after.later(promise.after)), ..promise },
            (false, Position::Kept | Position::Hidden) => promise,
        }
    }

    /// The same, but for what the unit sets.
    fn promise_before(&mut self) -> Promise {
        match self.hinted.as_deref() {
            Some(hinted) => hinted.promise,
            None => self.promise_of_block().unwrap_or_else(|| self.promise()),
        }
    }

    /// What reads of the session are promised, as it was worked out last.
    pub(super) fn promise_known(&self) -> Option<Promise> {
        self.promised.as_deref().map(|known| known.promise)
    }

    /// A unit may say for itself what it is promised. `None`: it can be routed.
    pub(super) fn take_hint(&mut self, input: &[u8], unit: &Unit) -> Option<Step> {
        self.hinted = None;
        let (mut hints, mut passed) = self.hints(input, unit);
        if (self.unhinted.is_some() || hints.iter().chain(&passed).any(|of| !of.is_empty())) && self.turns() {
            return Some(Step::Wait);
        }
        if let Some(step) = self.hint_durability(&hints, unit) {
            return Some(step);
        }
        let local = self.sets_locally(input, unit);
        let within = self.fresh.is_some() || self.status() != TxStatus::Idle;
        if within {
            // The promise of a block holds as of its BEGIN, and within it no comment counts.
            passed.append(&mut hints);
        }
        if passed.iter().any(|of| !of.is_empty()) {
            self.warn_of_passed(&hints, &passed);
        }
        if within {
            self.warn_of_late(input, unit);
        }
        if hints.is_empty() && local.is_empty() || within && self.fresh.is_none() {
            return None;
        }
        let open = self.relay.open.is_some();
        if within && open && self.has_begun_to_work() {
            return None;
        }
        if within && open && self.relay.pending() > 0 {
            return Some(self.press_for_answers());
        }
        if within && !open && self.relay.busy() {
            // What was asked before is answered first.
            return Some(Step::Wait);
        }
        let holds = self.promise_of_block().unwrap_or_else(|| self.promise());
        let resolved = hints.iter().map(|of| promise::resolve(holds, hint::pairs(of)));
        let all = resolved.reduce(|(a, mut bad), (b, more)| {
            bad.extend(more);
            (a.and(b), bad)
        });
        let (hinted, mut bad) = all.unwrap_or((holds, Vec::new()));
        let (said, more) = Said::new(hinted, local);
        bad.extend(more);
        let detail =
            if within { "Reads of this block go to the primary." } else { "The statement goes to the primary." };
        self.warn_of_hint(&bad.iter().map(|bad| (bad.to_string(), detail)).collect::<Vec<_>>());
        if within && open {
            let why = self.cannot_keep(said, self.w.now());
            return why.map(|error| self.violation(&error));
        }
        self.hinted = Some(Box::new(said));
        None
    }

    /// Is what comes next in another block than what was answered last, or in one no more? Whether a comment counts is known
    /// with the next answer.
    fn turns(&self) -> bool {
        let flies = self.relay.busy() && self.relay.open.is_none();
        flies && (self.fresh.is_some() || self.relay.leads_to() != self.relay.status)
    }

    /// Warn of comments that ask for something else than their block has, which is what held before and what the comment of
    /// its BEGIN says.
    fn warn_of_passed(&mut self, begun: &[Hints], passed: &[Hints]) {
        if self.status() == TxStatus::Failed {
            return;
        }
        let before = self.promise_of_block().unwrap_or_else(|| self.promise());
        let holds = begun.iter().fold(before, |holds, of| promise::resolve(holds, hint::pairs(of)).0);
        let durability =
            |of: &Hints| hint::pairs(of).filter(|(name, _)| *name == NAME).last().map(|(_, value)| value.to_owned());
        let commits = begun.iter().find_map(durability);
        let promised = |of: &Hints| {
            let (promise, bad) = promise::resolve(holds, hint::pairs(of));
            promise != holds || !bad.is_empty()
        };
        let committed = |of: &Hints| durability(of).is_some_and(|value| Some(value) != commits);
        let durability = passed.iter().any(committed).then_some((hinted::IN_BLOCK, hinted::INSTEAD));
        let promise = passed.iter().any(promised).then_some((IN_BLOCK, INSTEAD));
        self.warn_of_hint(&durability.into_iter().chain(promise).collect::<Vec<_>>());
    }

    /// Warn of settings of a promise that are given within a block and do not count for it: it keeps what holds as of its BEGIN, or
    /// what was set for it before its first statement, whatever SHOW says.
    fn warn_of_late(&mut self, input: &[u8], unit: &Unit) {
        if !unit.ours || self.status() == TxStatus::Failed {
            return;
        }
        let holds = self.promise_of_block().unwrap_or_else(|| self.promise());
        let late = self.sets_late(input, unit).into_iter().find(|(name, value)| match value {
            Some(value) => promise::resolve(holds, [(*name, value.as_str())].into_iter()).0 != holds,
            // What it goes back to is looked for when it does.
            None => true,
        });
        if let Some((name, _)) = late {
            let text = format!("\"{name}\" does not change what this transaction block is promised");
            self.warn_of_hint(&[(text, LATE)]);
        }
    }

    /// What the texts of a unit say of themselves, one by one, and behind a BEGIN; nothing when none does. What says nothing is
    /// promised what the session is.
    fn hints(&self, input: &[u8], unit: &Unit) -> (Vec<Hints>, Vec<Hints>) {
        let mut hints = Vec::new();
        if self.w.config().reads.hints {
            self.each_text(input, unit, |sql| hints.extend(hint::of_each(sql)));
        }
        // What comes behind a BEGIN is in its block.
        let own = if unit.block.begins.is_some() { hints.len().min(1) } else { hints.len() };
        let passed = hints.split_off(own);
        if hints.iter().all(Vec::is_empty) {
            hints.clear();
        }
        (hints, passed)
    }

    /// Before a unit is routed: does it ask for what cannot be? Then it is answered here. In a block the server must
    /// not go on with it either.
    pub(super) fn object(&mut self, input: &[u8], unit: &Unit, now: Instant) -> Option<Step> {
        // What is half sent, or in a block that has failed, is the server's to refuse.
        if self.relay.open.is_some() || self.relay.status == TxStatus::Failed && !self.relay.busy() {
            return None;
        }
        let error = match self.objection(input, unit, now) {
            Some(error) => ClientError::Promise(error),
            None => ClientError::Durability(self.objection_to_durability(input, unit).filter(|_| unit.ours)?),
        };
        if self.relay.busy() {
            // What was asked before is answered first.
            return Some(Step::Wait);
        }
        if self.relay.status == TxStatus::Block {
            lost::fail_block(self, error);
        } else {
            self.fail = Some(Failure::Error(error));
        }
        Some(Step::Used(0))
    }

    fn objection(&mut self, input: &[u8], unit: &Unit, now: Instant) -> Option<PromiseError> {
        let mut named = Vec::new();
        if unit.ours || self.position != Position::Kept {
            self.each_bound_text(input, unit, |sql| {
                for how in uses(sql, AFTER) {
                    let Use::Gives(Assigned { value: Some(value), .. }) = how else { continue };
                    if !value.is_empty() {
                        named.push(promise::token(AFTER, &String::from_utf8_lossy(value)));
                    }
                }
            });
        }
        for named in named {
            let error = match named {
                Ok(after) => self.standing(after, (now, now)),
                Err(bad) => Some(PromiseError::Invalid { what: bad.to_string() }),
            };
            if error.is_some() {
                return error;
            }
        }
        // A RESET names none, and goes back to that of the startup packet.
        let startup = |s: &Self, named: After| s.after_of_startup().filter(|after| *after == named);
        let after = match self.position {
            Position::Is(named) => startup(self, named?)?,
            Position::Hidden => return Some(PromiseError::AfterHidden),
            Position::Also(_) => self.promise_before().after?,
            Position::Kept => self.promise_of_unit().after?,
        };
        // What has no server yet is judged when one is looked for, which can wait. What is behind something in flight is judged
        // again when that is answered: a block keeps the position of its BEGIN.
        self.server.as_ref().filter(|_| self.relay.busy() || self.relay.status == TxStatus::Idle)?;
        // What a comment names has come only now.
        let since = self.promised.as_deref().filter(|_| self.hinted.is_none()).map_or(now, |known| known.since);
        self.standing(after, (since, now))
    }

    /// Why a session with a server of its own cannot come after this, which it was told at `since` at the latest.
    fn standing(&self, after: After, (since, now): (Instant, Instant)) -> Option<PromiseError> {
        let view = self.w.view.borrow();
        let term = view.topology.term;
        let why = match after.standing(&view.topology, now) {
            Standing::Lost(why) => Some(why),
            Standing::Need(_) => view.lag.is_past_end(&after, &view.topology, (since, now)),
            Standing::Undecided | Standing::Ahead => None,
        };
        why.map(|why| PromiseError::AfterLost { after, why, term })
    }

    /// The position that the reads of the unit at the head of the inbox must have seen, when the view is too old to tell where
    /// that is; and the view's term.
    pub(super) fn after_unknown(&mut self, now: Instant) -> Option<(After, Term)> {
        let after = self.promise_of_unit().after?;
        let view = self.w.view.borrow();
        match after.standing(&view.topology, now) {
            Standing::Ahead | Standing::Undecided => Some((after, view.topology.term)),
            Standing::Need(_) | Standing::Lost(_) => None,
        }
    }

    /// Must the reads of the unit at the head of the inbox have seen a position that the session's own primary may not have?
    /// One that was looked for just now has it. `starts`: it begins what it runs in.
    pub(super) fn is_behind_after(&mut self, starts: bool, now: Instant) -> bool {
        let says = self.relay.status == TxStatus::Block && !self.relay.busy() && self.says();
        (starts || says) && self.chosen.is_none() && self.after_unknown(now).is_some()
    }

    /// It waits until that can be told. A block that has begun already keeps its server, and so fails.
    pub(super) fn await_after(&mut self, access: Access, starts: bool, now: Instant) -> Step {
        if starts {
            return self.hold_here(access);
        }
        if let Some((after, term)) = self.after_unknown(now) {
            let waited = Duration::ZERO;
            lost::fail_block(self, ClientError::Promise(PromiseError::AfterUnknown { after, term, waited }));
        }
        Step::Used(0)
    }

    /// May what the session was told is written, or what it has read, be in no later term? Then the next statement of one whose reads are promised
    /// to show it fails, and nothing of it is done. `None`: it goes on. `hands_on`: it asks for a token, which covers nothing that
    /// the term may lack; nobody waits for one until that is known.
    pub(super) fn tell_lost(&mut self, hands_on: bool, now: Instant) -> Option<Step> {
        let term = self.w.view.borrow().topology.term;
        let within = hands_on && self.relay.status == TxStatus::Block;
        let starts = !self.own && self.relay.status == TxStatus::Idle;
        let asks = hands_on && self.relay.status == TxStatus::Idle;
        let begins = (starts || asks || within) && self.relay.open.is_none();
        let looks = {
            let causality = self.causality.borrow();
            causality.wrote_before(term) || causality.read_before(term)
        };
        if !begins || !looks {
            return None;
        }
        let promise = if hands_on { self.promise_before() } else { self.promise_of_unit() };
        match promise.consistency {
            Consistency::Eventual | Consistency::Bounded => return None,
            Consistency::Session | Consistency::Global | Consistency::Strong => {}
        }
        if self.relay.busy() {
            // What was asked before is answered first.
            return Some(Step::Wait);
        }
        let (write, read) = {
            let (view, mut causality) = (self.w.view.borrow(), self.causality.borrow_mut());
            // A token of what was written stays of the term that it was written in.
            let write = if starts { causality.take_lost(&view.topology, &view.lag) } else { None };
            // A read that goes to the primary now, for want of anything better, would miss it.
            let in_vain = hands_on || matches!(self.chosen, Some(Reason::Unconfirmed { .. }));
            (write, causality.take_lost_read(&view.topology, &view.lag, in_vain))
        };
        let error = match (write, read) {
            (Some(lost), _) => {
                bump(&self.w.counts.lost_writes);
                PromiseError::WriteLost { ago: now.since(lost.at), lost }
            }
            (None, Some(lost)) => {
                bump(&self.w.counts.lost_reads);
                PromiseError::ReadLost { ago: now.since(lost.at), lost }
            }
            (None, None) => return None,
        };
        let error = ClientError::Promise(error);
        if within {
            lost::fail_block(self, error);
        } else {
            self.fail = Some(Failure::Error(error));
            self.release_unused(now);
        }
        Some(Step::Used(0))
    }

    /// Nothing is sent to the server that was looked for just now: the next statement looks anew, and another session may have
    /// that server, but for one to which something binds this one.
    fn release_unused(&mut self, now: Instant) {
        let looked = self.chosen.take().is_some();
        if looked && !self.is_bound() && !self.relay.is_blind() {
            self.give_back(now);
        }
    }

    /// Does anything bind the session to its server, between its transactions?
    pub(super) fn is_bound(&self) -> bool {
        self.mode != PoolMode::Transaction || !self.pins.is_empty() || self.tracking.stuck
    }

    /// What reads are promised now. A setting that means nothing is told to the client once.
    pub(super) fn promise(&mut self) -> Promise {
        let config = self.w.config();
        let known = self.promised.as_deref();
        let same = |p: &&Promised| Rc::ptr_eq(&p.config, &config) && Arc::ptr_eq(&p.settings, &self.tracking.settings);
        if let Some(known) = known.filter(same) {
            return known.promise;
        }
        let settings = self.tracking.settings.clone();
        let identity = &self.identity;
        let startup = promise::of_startup(&identity.parameters);
        let startup = startup.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        // What was set since comes later and wins.
        let startup = startup.filter(|(name, _)| settings.get(name).is_none());
        let mut configured =
            reads::resolve(&config.reads, config.max_replay_lag, &config.pools, &identity.database, &identity.user);
        if self.read_only {
            // What is told to read only from the primary still may: by the session's own settings.
            configured.read_from = ReadFrom::Standby;
        }
        let (promise, bad) = promise::resolve(configured, startup.chain(settings.iter()));
        let told = self.promised.take().map(|p| p.bad).unwrap_or_default();
        for new in bad.iter().filter(|b| !told.contains(b)) {
            let detail = match new {
                BadPromise::Told { .. } | BadPromise::Name { .. } => {
                    "Reads of this session go to the primary until it is reset."
                }
                BadPromise::Word { .. }
                | BadPromise::Time { .. }
                | BadPromise::Token { .. }
                | BadPromise::Comment { .. } => {
                    "Reads of this session go to the primary until it is set to a valid value or reset."
                }
            };
            self.to_client.append(|out| backend::write_warning(out, &new.to_string(), detail));
        }
        let isolation = self.default_of("default_transaction_isolation");
        let serializable = isolation.is_some_and(|level| level.eq_ignore_ascii_case("serializable"));
        self.promised = Some(Box::new(Promised { promise, config, settings, serializable, since: self.w.now(), bad }));
        promise
    }
}
