//! A unit on its way to a server: which one, whether now, and what is kept of it in case the server is lost.

use crate::config::PoolMode;
use crate::console::tally::Counter;
use crate::metrics::{Outcome, bump};
use crate::route::durability::Durability;
use crate::route::{Consistency, Promise, Reason, Unproven};
use crate::session::acquire::{self, Found, Want};
use crate::session::batch::Unit;
use crate::session::client::{Loss, MAX_TEXT, Session, Tail, Turn};
use crate::session::incoming::Step;
use crate::session::lost;
use crate::session::misroute::Classifier;
use crate::session::presence::Activity;
use crate::session::promised::Promised;
use crate::session::relay::Sent;
use crate::session::sets_after::Position;
use crate::session::shown::POSITION;
use crate::session::translate::{Done, Naming, Translator};
use crate::sql::{Access, Local, PinReason, Statement};
use crate::wire::backend::TxStatus;
use crate::wire::codec::{self, Sink};
use crate::wire::frontend;
use cluster::topology::Gate;
use cluster::{Instant, NodeId, Role};
use std::sync::Arc;

/// Why a unit goes to the server that its session has already.
const SAME_SERVER: &str = "same_server";

impl Session {
    /// Send a unit to the server that is held, or to one that is at hand, or ask for one.
    pub(super) fn route(&mut self, input: &[u8], unit: &Unit, classes: &[Statement]) -> Step {
        if self.must_listen() {
            return Step::Turn(0, Turn::Listen);
        }
        let now = self.w.now();
        let missing = unit.ours && self.position_is_missing(input, unit);
        let at_shown = missing && unit.read && self.shown_serves(now);
        let missing = missing && !at_shown || self.refused;
        let access = if missing { Access::Write } else { self.access(unit) };
        self.quiet = unit.quiet && self.relay.status == TxStatus::Idle && !self.replants;
        if self.cancelling
            && let Some(server) = &self.server
        {
            if !self.relay.busy() {
                server.cancels.give_up();
                if server.cancels.astray() {
                    return self.hold_here(access);
                }
            } else if self.presence.doing.get().activity == Activity::InTransaction {
                // A unit of which all was answered so far: it is not its client that it waits for.
                self.mark(Activity::Waiting, now, false);
            }
            return Step::Wait;
        }
        if self.relay.only_asks_position() && (unit.read || unit.block.begins.is_some()) {
            // A standby may serve it in a moment.
            return Step::Wait;
        }
        if let Some(error) = self.must_leave() {
            return self.violation(&error);
        }
        if let Some(step) = self.take_hint(input, unit) {
            return step;
        }
        self.position = self.position(input, unit);
        self.own = unit.ours && unit.tail_left == 0 && !at_shown && self.is_own(input, unit);
        let comes_after = |p: &Promised| p.comes_after(&self.tracking.settings);
        if (unit.ours
            || !matches!(self.position, Position::Kept | Position::Is(None))
            || self.hinted.is_some()
            || self.promised.as_deref().is_some_and(comes_after))
            && let Some(step) = self.object(input, unit, now)
        {
            return step;
        }
        let hands_on = unit.ours && self.asks_token(input, unit);
        if let Some(step) = self.tell_lost(hands_on, now) {
            return step;
        }
        if let Some(step) = self.route_block(unit, access, now) {
            return step;
        }
        if let Some(role) = self.server.as_ref().map(|s| s.meta.role) {
            let starts = !self.relay.busy() && self.relay.status == TxStatus::Idle;
            // One that was looked for just now is as it should be.
            let still = |s: &mut Self| access == Access::Read && (s.chosen.is_some() || s.still_fits(now));
            let fits = role == Role::Primary || !starts || still(self);
            if !fits {
                if self.read_only && !self.pins.is_empty() {
                    // What it has here another client must not find.
                    return Step::Turn(0, Turn::Lost(Loss::Deposed));
                }
                self.give_back(now);
            } else if role == Role::Standby {
                if starts {
                    self.tell_term();
                }
                return self.send_unit(input, unit, classes, now);
            } else {
                return match self.w.gate(now) {
                    // What was asked before is answered first.
                    Gate::Open if !starts && self.must_begin_anew(unit, access, now) => Step::Wait,
                    Gate::Open if self.is_behind_after(starts, now) => self.await_after(access, starts, now),
                    Gate::Open if starts && self.must_await_proof(access, now) => self.hold_unproven(access, now),
                    Gate::Open if starts && self.must_be_shown(unit, now) => match self.hold_unshown(access, now) {
                        Some(step) => step,
                        None => self.send_unit(input, unit, classes, now),
                    },
                    Gate::Open if starts && access == Access::Write && !self.quiet && self.must_slow() => {
                        Step::Turn(0, Turn::Slow)
                    }
                    Gate::Open => self.send_unit(input, unit, classes, now),
                    Gate::Draining if !starts => self.send_unit(input, unit, classes, now),
                    Gate::Draining | Gate::Closed(_) => self.hold_here(access),
                };
            }
        }
        let outside = unit.read && !missing && !self.replants;
        let promise = self.promise_to_keep();
        let access = if outside { self.access_outside() } else { access };
        let (database, causality, avoid) = (self.identity.database.as_str(), &*self.causality, self.avoid.as_slice());
        let need = acquire::Need { database, causality, access, quiet: self.quiet, promise, avoid, since: now };
        let known = |node: &NodeId| self.pools.iter().find(|p| &p.key.node == node).cloned();
        let pool_of = |node: &NodeId| known(node).unwrap_or_else(|| self.w.pools.of(node, &self.identity));
        let own = if unit.pins.has(PinReason::Sequence) { self.draws.run } else { 0 };
        match acquire::at_hand(&self.w, need, (&self.tracking.settings, own), pool_of, now) {
            Ok(found) => {
                self.w.counts.waited(std::time::Duration::ZERO);
                self.remember(&found.pool);
                self.attach(found);
                self.send_unit(input, unit, classes, now)
            }
            Err(decided) => {
                self.decided = decided;
                Step::Turn(0, Turn::Acquire { access, bytes: unit.len })
            }
        }
    }

    /// Why a statement that needs `access` must wait for a proof that the primary which the session has is still that. One
    /// that was looked for just now is.
    pub(super) fn doubts(&mut self, access: Access, now: Instant) -> Option<Unproven> {
        if self.chosen.is_some() || self.proven {
            return None;
        }
        let (promise, since) = (self.promise_of_unit(), self.waiting_since.unwrap_or(now));
        self.w.proven(&self.presence, &promise, access, since).err()
    }

    /// The same, where it waits for an answer in any case.
    fn is_doubtful(&mut self, access: Access, now: Instant) -> bool {
        if self.chosen.is_some() || self.proven {
            return false;
        }
        let (promise, since) = (self.promise_of_unit(), self.waiting_since.unwrap_or(now));
        !self.w.is_proven(&promise, access, since)
    }

    /// Is a unit outside of any block, behind what is in flight at the primary, one that must not go there as it is? Whoever
    /// never waits for an answer would not be looked at again otherwise: it has to be as if nothing had been sent before.
    fn must_begin_anew(&mut self, unit: &Unit, access: Access, now: Instant) -> bool {
        let behind = self.relay.busy() && self.relay.open.is_none() && self.relay.leads_to() == TxStatus::Idle;
        if !behind || self.own {
            return false;
        }
        let access = if unit.read { Access::Read } else { access };
        // What is promised, when that may be set by what is in flight, is not known yet.
        self.own_set != 0
            || self.is_doubtful(access, now)
            || self.after_unknown(now).is_some()
            // What comes within a COPY is not run.
            || !self.relay.copy_in()
                && (self.must_be_shown(unit, now)
                    || access == Access::Write && !unit.quiet && self.w.slowed().is_some())
    }

    /// A session that keeps its server waits for the gate, a proof, or the end of a cancel request that was given up: the
    /// statement is neither sent nor refused yet. What was known when the server was looked for holds no longer when it goes on.
    pub(super) fn hold_here(&mut self, access: Access) -> Step {
        (self.chosen, self.held_for) = (None, access);
        if self.hold.is_none() {
            let (now, most) = (self.w.now(), self.w.config().hold_timeout);
            self.waiting_since = Some(now);
            let left = self.statement_over(now).map_or(most, |over| over.min(most));
            self.hold = Some(Box::pin(tokio::time::sleep(left)));
            self.mark(Activity::Waiting, now, self.status() == TxStatus::Idle);
            // The next turn polls the timer.
            self.presence.wake();
        }
        Step::Wait
    }

    pub(super) fn want(&mut self, access: Access, now: Instant) -> Want {
        Want {
            identity: self.identity.clone(),
            credentials: self.credentials.clone(),
            entered: true,
            causality: self.causality.clone(),
            access,
            quiet: self.quiet,
            promise: self.promise_to_keep(),
            avoid: self.avoid.clone(),
            since: self.waiting_since.unwrap_or(now),
        }
    }

    /// The same for a connection besides the session's own; and may that serve others afterwards?
    pub(super) fn want_beside(&mut self, now: Instant) -> (Want, bool) {
        let want = self.want(Access::Write, now);
        // Whatever its reads are promised: this one may be what an answer to a promise hangs on.
        let promise = Promise { after: None, consistency: Consistency::Eventual, ..want.promise };
        // One for replication is nobody else's, and counts against another limit.
        let identity = if self.tunnel { Arc::new(want.identity.of_sql()) } else { want.identity };
        let want = Want { identity, quiet: true, avoid: Vec::new(), since: now, promise, ..want };
        (want, self.mode == PoolMode::Transaction)
    }

    pub(super) fn attach(&mut self, found: Found) {
        let Found { server, pool, reason, lacked } = found;
        let reason = self.reason_of_recheck(reason);
        let (label, lacked) = (reason.as_str(), lacked.filter(|_| reason != Reason::Rechecked));
        let standby = server.meta.role == Role::Standby;
        // What looked for no standby has waited for the primary to show what one has shown.
        let waited = standby || matches!(reason, Reason::Write | Reason::AsAsked | Reason::Unclear);
        match lacked.or_else(|| reason.lacks_standby().then_some(label)) {
            Some(lacked) if waited => self.w.counts.no_standby(Outcome::Waited, lacked),
            Some(lacked) => self.w.counts.no_standby(Outcome::Primary, lacked),
            None => {}
        }
        (self.chosen, self.told, self.proven, self.held_unshown) = (Some(reason), false, false, false);
        let node = self.w.count_in_use(&server.meta, true);
        self.tally.add(Counter::Assignments, 1);
        self.relay.standby = server.meta.role == Role::Standby;
        self.reason = label;
        (self.server, self.pool) = (Some(server), Some(pool));
        (self.server_dry, self.server_wakes) = (false, false);
        // Nothing that another one has said is of this one.
        self.behind = false;
        self.server_in.clear();
        self.tracking.described.clear();
        self.generation = self.w.generation.get();
        self.show_server(Some(node));
        self.compare();
        self.tell_term();
    }

    /// The server is free of this session.
    pub(super) fn give_back(&mut self, now: Instant) {
        if self.relay.busy() {
            // Nobody comes here so. What it owes would be the next client's answer, and the session would wait for it for ever.
            tracing::warn!(
                place = self.place,
                owed = self.relay.owed(),
                "server that owes answers is closed, not given back"
            );
            lost::leave(self);
            return;
        }
        if !self.server_in.is_empty() || !self.to_server.is_empty() {
            // The rest of what it has begun to say would be taken for the next client's, and the rest of what it was
            // sent, as of a COPY that has failed, would never come.
            (self.server_in, self.behind) = (Vec::new(), false);
            self.drop_server();
            return;
        }
        if let (Some(server), Some(pool)) = (self.server.take(), self.pool.take()) {
            self.show_server(None);
            self.w.release(&pool, server, now);
        }
    }

    /// The server is closed.
    pub(super) fn drop_server(&mut self) -> Option<(NodeId, cluster::Term)> {
        let server = self.server.take()?;
        self.pool = None;
        // Nobody else is to be sent the rest, and nothing waits for it to be sent.
        self.to_server.clear();
        self.show_server(None);
        self.w.count_in_use(&server.meta, false);
        Some((server.meta.node.clone(), server.meta.term))
    }

    /// In a transaction, or with a statement in flight, on a server of that role; `None`: on none.
    pub(super) fn set_busy(&mut self, busy: Option<Role>) {
        let before = std::mem::replace(&mut self.busy, busy);
        if before != busy {
            before.into_iter().for_each(|role| self.w.count_busy(role, false));
            busy.into_iter().for_each(|role| self.w.count_busy(role, true));
        }
    }

    pub(super) fn send_unit(&mut self, input: &[u8], unit: &Unit, classes: &[Statement], now: Instant) -> Step {
        if self.read_only
            && let Some(step) = self.keep_read_only(input, unit, now)
        {
            return step;
        }
        if !self.relay.busy() {
            self.mark(Activity::Active, now, self.relay.status == TxStatus::Idle);
        } else if self.relay.pending() == 0 {
            // It goes on with a unit of which all was answered so far.
            self.mark(Activity::Active, now, false);
        }
        let asks = self.apply()
            || self.forget_draws(unit)
            || self.put_durability_in_force()
            || unit.ours && self.give_values(input, unit)
            // A server knows our settings only once it was given them.
            || self.ask_columns(input, unit);
        if asks || self.must_prove(now) {
            return Step::Wait;
        }
        (self.proven, self.doubted, self.tracking.postponed) = (false, false, false);
        self.tracking.described.clear();
        if unit.ours {
            self.note_own_set(input, unit);
        }
        let (repeatable, shows) = (self.may_repeat(unit), !self.shows_nothing(unit));
        self.note_shows(unit);
        let begins = self.relay.open.is_none();
        let mut sink = Sink::new(self.w.take_spare());
        let (mut naming, config, kept) = (self.naming(), self.w.config(), self.pins);
        self.follow(&input[..unit.len], unit);
        if unit.local != Local::Nothing && unit.statements > 1 {
            // What it names behind that is read by what it sets.
            naming = self.naming();
        }
        let asks_behind = self.asks_position_behind(&input[..unit.len], unit);
        let marks = begins && self.is_marked(unit) && speaks_of_one(&input[..unit.len]);
        let discards = begins && self.discards_draws(input, unit);
        let Some(server) = &mut self.server else { return Step::Wait };
        if discards {
            self.relay.discard_sequences(input, &mut server.meta.statements.unnamed, &mut sink);
        }
        if marks {
            self.relay.ask_mark(input, &mut server.meta.statements.unnamed, &mut sink);
        }
        let mut done = Done::default();
        let unnamed = self.statements.unnamed.as_ref().map(|unnamed| unnamed.serial);
        let classifier = Classifier::new(&self.table, self.lex, &self.identity.dbname, &self.w);
        let refused = Translator {
            client: &mut self.statements,
            server: &mut server.meta.statements,
            texts: self.w.texts.borrow_mut().for_account(&self.account),
            relay: &mut self.relay,
            statement_bytes: self.account.most(config.statement_bytes()),
            usual_statement_bytes: config.statement_bytes(),
            server_bytes: usize::try_from(config.server_statement_bytes).unwrap_or(usize::MAX),
            unnamed_bytes: MAX_TEXT,
            naming,
            classify: &|sql| classifier.of(sql),
            done: &mut done,
            failed: false,
        }
        .unit(input, unit, classes, &mut sink);
        drop(classifier);
        if asks_behind && !refused && !self.relay.skipping() && self.relay.open.is_none() {
            bump(&self.w.counts.positions_behind);
            self.relay.ask_position(input, POSITION, &mut server.meta.statements.unnamed, &mut sink);
        }
        if unit.tail_left > 0 {
            self.tail = if refused { Tail::Discard(unit.tail_left) } else { Tail::Forward(unit.tail_left) };
        }
        if done != Done::default() {
            self.tally.add(Counter::ClientParses, done.client_parses);
            self.tally.add(Counter::ServerParses, done.server_parses);
            self.tally.add(Counter::Binds, done.binds);
        }
        let primary = server.meta.role == Role::Primary;
        // What the server is known to throw away has changed nothing, the last first.
        for undo in std::mem::take(&mut self.relay.undone).into_iter().rev() {
            self.undo(undo);
        }
        self.note_block(&input[..unit.len], unit, begins);
        // What only prepares or closes goes nowhere, as far as a client is told.
        let executes = unit.statements > 0 && (begins || self.relay.parse_only);
        self.relay.parse_only = unit.statements == 0 && (begins || self.relay.parse_only);
        if begins {
            let counted = self.count_unshown();
            self.tell_refused_before(&input[..unit.len], now);
            if primary && unit.read && self.reason == SAME_SERVER && !counted {
                self.count_unspared();
            }
            self.w.counts.query(if primary { "primary" } else { "standby" }, self.reason);
            self.log_route(&input[..unit.len], now);
            self.reason = SAME_SERVER;
        }
        let chosen = self.chosen.take();
        if executes && !unit.ours {
            self.note_route(primary, chosen, kept, now);
        }
        self.forget_said();
        // A unit of shared statements may fail for a reason that is ours, before it has done anything.
        let keep = repeatable || (unit.binds_named && self.relay.status == TxStatus::Idle);
        self.retain(&input[..unit.len], unit, keep, begins);
        self.long = unit.text_at.filter(|_| !refused).map(|at| Box::new(self.long_text(unit, at, unnamed)));
        if let Some(at) = unit.text_at {
            self.follow_long(&input[at..unit.len]);
        }
        self.portal_may_commit |= unit.binds_commit;
        self.wrote |= primary && !unit.read && shows;
        if primary {
            self.note_draws(input, unit, discards);
        }
        self.may_have_xid |= primary && unit.record.writes;
        self.saw |= primary && shows;
        let sets = (!unit.read).then(|| self.note_levels(&input[..unit.len], unit)).filter(|_| primary);
        let only_chooses = unit.ours && self.note_durability(input, unit);
        let counts = sets.is_some_and(|sets| !sets.alone) && !only_chooses;
        let waits = sets.map(|sets| sets.waits).unwrap_or_default();
        let waiting = waits.most >= Durability::Received;
        let hushed = waiting && self.hides_notices() && !self.is_aside(input, unit);
        let late = self.pins.has(PinReason::HeldCursor);
        self.relay.commits.send(begins, Sent { counts, waits, hushed, late });
        if self.durability.is_guessed() && self.relay.status == TxStatus::Block {
            self.note_undone(input, unit);
        }
        (self.flushed, self.hint_warned) = (unit.flush, false);
        self.set_busy(if primary { Some(Role::Primary) } else { self.busy.or(Some(Role::Standby)) });
        (self.impatient, self.waited_at) = (false, 0);
        self.waiting_since = None;
        self.hold = None;
        self.send(sink.bytes(input));
        self.w.put_spare(sink.into_spare());
        self.flush_local(unit);
        Step::Used(unit.len)
    }

    /// A read outside of blocks goes to the primary that its session keeps, also where that was not to be burdened: no standby
    /// has what the session has there.
    #[cold]
    fn count_unspared(&mut self) {
        let spares = !self.own && self.promise_of_unit().spares_primary(Access::Read);
        if spares && self.relay.leads_to() == TxStatus::Idle {
            self.w.counts.no_standby(Outcome::Primary, SAME_SERVER);
        }
    }

    /// Is the unit the COMMIT of a block that may have written? Then what it commits is asked for in the same write.
    fn is_marked(&self, unit: &Unit) -> bool {
        let commits = unit.complete && unit.record.is_commit() && self.may_have_xid;
        commits
            && self.w.config().resolve_commits
            && self.may_ask_mark()
            && !self.relay.standby
            && !self.relay.skipping()
            && !self.relay.copy_in()
            && self.relay.leads_to() == TxStatus::Block
    }

    /// Does the server let the session ask for the mark of a COMMIT? Asked in vain, it would fail the block.
    fn may_ask_mark(&self) -> bool {
        let Some((server, pool)) = self.server.as_ref().zip(self.pool.as_ref()) else { return false };
        server.meta.defaults.marks && pool.limit.lets_mark(server.meta.born)
    }

    /// Whose names prepared statements have on the server.
    fn naming(&self) -> Naming {
        match self.mode {
            PoolMode::Session => Naming::Own,
            PoolMode::Transaction => {
                Naming::Shared { parse_key: self.parse_key, sql: self.pins.has(PinReason::Prepare) }
            }
        }
    }

    /// Answers of ours that a Flush asks for and no answer of the server would bring along.
    pub(super) fn flush_local(&mut self, unit: &Unit) {
        if unit.flush {
            self.tell_local();
        }
    }

    /// Answers of ours that are next. Were there any?
    pub(super) fn tell_local(&mut self) -> bool {
        let mut sink = Sink::default();
        self.relay.flush_local(&mut sink);
        let told = !sink.is_empty();
        self.to_client.queue(sink.bytes(&[]));
        told
    }

    /// Keep a unit that may be sent again. A long one is not worth it.
    pub(super) fn retain(&mut self, bytes: &[u8], unit: &Unit, repeatable: bool, begins: bool) {
        if self.retained.capacity() == 0 {
            self.retained = self.w.take_spare();
        }
        if begins {
            self.retained_lens.push_back(0);
        }
        let Some(len) = self.retained_lens.back_mut() else { return };
        let whole_so_far = begins || *len > 0;
        if repeatable && whole_so_far && unit.tail_left == 0 && self.retained.len() + bytes.len() <= 2 * MAX_TEXT {
            self.retained.extend_from_slice(bytes);
            *len += bytes.len();
        } else {
            let kept = self.retained.len() - *len;
            self.retained.truncate(kept);
            *len = 0;
        }
    }

    /// Send bytes to the server; what it does not take now waits. One that takes no more may have said why: reading
    /// finds that, and then the end.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let primary = self.server.as_ref().is_some_and(|server| server.meta.role == Role::Primary);
        let at_once = primary && self.leaves_at_once();
        let Some(server) = &mut self.server else { return };
        let sent = if at_once {
            self.to_server.send(&mut server.stream, bytes)
        } else {
            self.to_server.send_in_round(&mut server.stream, bytes, self.place)
        };
        if sent.is_err() {
            self.to_server.clear();
            self.server_dry = false;
        }
    }
}

/// Do these messages, which execute one statement, name and describe no other, and register no name? What they are answered
/// can be told without their server then: nothing of it is undone with that.
fn speaks_of_one(messages: &[u8]) -> bool {
    let (mut at, mut parsed, mut named) = (0, false, false);
    while let Some(frame) = codec::head(&messages[at..]).ok().flatten().and_then(|h| messages.get(at..at + h.total)) {
        at += frame.len();
        match frame[0] {
            b'P' if parsed || frontend::parse(frame).is_none_or(|p| !p.name.is_empty()) => return false,
            b'P' => parsed = true,
            b'B' => named |= frontend::bind(frame).is_none_or(|b| !b.statement.is_empty()),
            b'C' => return false,
            b'D' if frame.get(codec::HEAD) == Some(&b'S') => return false,
            _ => {}
        }
    }
    !(parsed && named)
}
