//! The server's bytes on their way to the client, and what they tell about the session.

use crate::config::PoolMode;
use crate::console::tally::Counter;
use crate::metrics::{Source, bump};
use crate::route::durability::{COMMIT, Durability};
use crate::route::{self, By, Shows};
use crate::session::cancel::pid_of;
use crate::session::client::{Loss, MAX_PENDING, Session, Tail, Turn, fill};
use crate::session::durability::{Known, level};
use crate::session::presence::Activity;
use crate::session::relay::{Described, Event, Host, PROTOCOL_VIOLATION, Reported, Undo};
use crate::session::server::Meta;
use crate::session::tracking::Tracking;
use crate::session::turn::is_told;
use crate::sql::Pins;
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::Sink;
use crate::wire::error_response::{ClientError, Doubt};
use crate::worker::Worker;
use cluster::per_term::Fate;
use cluster::topology::Gate;
use cluster::{Instant, Role};
use std::sync::Arc;
use std::task::{Context, Poll};

/// What the relay asks of a session.
struct Conversation<'a> {
    w: &'a Worker,
    meta: &'a Meta,
    tracking: &'a Tracking,
    /// The server is the session's own, or kept for it.
    keeps: bool,
    /// The process number that the client was given.
    pid: u32,
}

impl Host for Conversation<'_> {
    fn not_replicated(&self) -> ClientError {
        ClientError::CommitUnknown { node: self.meta.node.clone(), term: self.meta.term, doubt: Doubt::NotReplicated }
    }

    fn name_told(&self, value: &str) -> Option<&str> {
        self.tracking.name_told(value, self.meta)
    }

    fn must_recheck(&self) -> bool {
        // A session that keeps its server would leave it for good.
        !self.keeps && self.w.must_recheck(&self.meta.node)
    }

    fn hears(&self) -> bool {
        self.keeps
    }

    fn pid_told(&self, pid: u32) -> Option<u32> {
        // What another session notifies comes from a process that its client may not know either.
        (pid == self.meta.key.0).then_some(self.pid)
    }

    fn name_taken_back(&self) -> Option<(&str, &str)> {
        self.tracking.name_taken_back(self.meta)
    }

    fn name_known(&self) -> Option<&str> {
        self.tracking.name_known()
    }
}

impl Session {
    pub(super) fn read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        if !self.to_client.is_empty() {
            return Ok(false);
        }
        if self.behind {
            return self.read_behind();
        }
        if self.server_dry {
            return Ok(false);
        }
        let Some(server) = &mut self.server else { return Ok(false) };
        if !server.stream.may_read() {
            self.server_dry = true;
            return Ok(false);
        }
        self.server_wakes = false;
        let limit = self.w.config().relay_buffer;
        let mut scratch = self.w.take_scratch();
        let assembles = self.relay.assembles(&self.server_in);
        let kept = fill(&mut scratch, if assembles { &[] } else { &self.server_in }, limit);
        let outcome = match server.stream.poll_fill(&mut scratch[kept..kept + limit], cx) {
            Poll::Pending => {
                (self.server_dry, self.server_wakes) = (true, is_told());
                Ok(false)
            }
            Poll::Ready(Err(_) | Ok(0)) => Err(Turn::Lost(Loss::Gone)),
            Poll::Ready(Ok(n)) => {
                let owed = self.server_in.is_empty() || self.relay.busy() || self.tracking.asked.is_some();
                let moved = match assembles {
                    true => self.assemble(&scratch[..n]),
                    false => self.server_bytes(&scratch[..kept + n]),
                };
                if !owed && moved.is_ok() {
                    self.rest_behind();
                }
                moved
            }
        };
        self.w.put_scratch(scratch);
        outcome
    }

    /// More of a long message that is read whole.
    #[cold]
    fn assemble(&mut self, more: &[u8]) -> Result<bool, Turn> {
        self.server_in.extend_from_slice(more);
        if self.relay.assembles(&self.server_in) {
            return Ok(true);
        }
        let whole = std::mem::take(&mut self.server_in);
        self.server_bytes(&whole)
    }

    /// What came in one read with an answer, behind it: notifications and the like, or the end. Nothing else need come
    /// that would bring it along.
    #[cold]
    fn read_behind(&mut self) -> Result<bool, Turn> {
        self.behind = false;
        let input = std::mem::take(&mut self.server_in);
        let moved = self.server_bytes(&input)?;
        self.rest_behind();
        Ok(moved)
    }

    /// What had come behind an answer is dealt with, or a part of it: when that was all, the session rests as it could
    /// not before. Unless a unit waits to be sent there: that one's answer leads to rest.
    #[cold]
    fn rest_behind(&mut self) {
        let waits = self.hold.is_some() || self.chosen.is_some();
        if !waits && !self.behind && !self.relay.mid_frame() && !self.relay.busy() && self.tracking.asked.is_none() {
            self.rest(self.w.now());
        }
    }

    pub(super) fn server_bytes(&mut self, input: &[u8]) -> Result<bool, Turn> {
        // Behind the read: what is said below of when the answer came is not too early.
        let now = self.w.now();
        let Some(server) = &self.server else { return Ok(false) };
        if server.meta.role == Role::Primary && self.view_ran_out(now) && self.relay.may_commit() {
            return Err(Turn::Lost(Loss::ViewStale));
        }
        let meta = &server.meta;
        let keeps = self.mode == PoolMode::Session || !self.pins.is_empty();
        let pid = pid_of(self.w.index, self.place);
        let host = Conversation { w: &self.w, meta, tracking: &self.tracking, keeps, pid };
        self.relay.head_kept = self.retained_lens.front().is_some_and(|&len| len > 0);
        let (hiding, blind, copied) = (self.relay.hiding(), self.relay.is_blind(), self.relay.copy_in());
        let at_once = server.meta.role == Role::Primary && self.leaves_at_once();
        let mut sink = Sink::new(self.w.take_spare());
        let progress = self.relay.server_bytes(input, &mut sink, &host);
        self.tally.add(Counter::Sent, sink.len() as u64);
        let sent = if at_once {
            self.to_client.send(&mut self.client, sink.bytes(input))
        } else {
            self.to_client.send_in_round(&mut self.client, sink.bytes(input), self.place)
        };
        self.w.put_spare(sink.into_spare());
        self.server_in.clear();
        self.server_in.extend_from_slice(&input[progress.consumed..]);
        if self.server_in.is_empty() {
            self.server_in = Vec::new();
        }
        self.behind = progress.event.is_some() && !self.server_in.is_empty();
        if std::mem::take(&mut self.relay.misheard)
            && let Some(server) = &mut self.server
        {
            server.meta.listens = true;
        }
        self.account(hiding, now);
        self.rescan |= matches!(self.inbox.first(), Some(b'd' | b'c' | b'f'));
        // What waited for the answer to a COPY.
        self.rescan |= !copied && self.relay.copy_in() && !self.inbox.is_empty();
        // A unit that was too long to go on: nothing else would look at the rest of it before its Sync is answered.
        self.rescan |= self.relay.open.is_some() && !self.wants_more && self.relay.pending() < MAX_PENDING;
        if sent.is_err() {
            return Err(Turn::Close);
        }
        if blind || self.relay.is_blind() {
            self.rescan |= !self.relay.is_blind();
            self.ask_for_syncs();
        }
        match progress.event {
            None => Ok(true),
            Some(Event::Idle) => {
                self.idle(now);
                Ok(true)
            }
            Some(Event::Again) => {
                self.again();
                Ok(true)
            }
            Some(Event::Seen { answered, skips }) => {
                let status = self.relay.status;
                self.to_client.append(|out| (0..answered).for_each(|_| backend::write_ready(out, status)));
                self.skip = skips;
                self.idle(now);
                Ok(true)
            }
            Some(Event::Hidden) => self.hidden_done(now),
            Some(Event::Position) => {
                // All that was answered before it is covered, as of when that came.
                let told = std::mem::take(&mut self.relay.hidden);
                if told.error.is_none() {
                    self.positioned(now, &told);
                }
                self.rescan |= !self.inbox.is_empty();
                if !self.relay.busy() {
                    self.idle(now);
                }
                Ok(true)
            }
            Some(Event::Unconfirmed) => Err(Turn::Confirm),
            Some(Event::Retry { code }) => Err(Turn::Lost(Loss::Refused(code))),
            Some(Event::Fatal { code }) => {
                self.desynchronised |= code == *PROTOCOL_VIOLATION;
                Err(Turn::Lost(Loss::Fatal(code)))
            }
            Some(Event::TimedOut { code, told }) => Err(self.timed_out(code, &told)),
            Some(Event::Violation(what)) => Err(Turn::Lost(Loss::Violation(what))),
        }
    }

    /// The server ends the session that it has with this one, of which it commits nothing: the client had asked for that, or
    /// its role has it, and is told as PostgreSQL tells it. What no client could know of is a lost server.
    #[cold]
    fn timed_out(&mut self, code: [u8; 5], told: &[u8]) -> Turn {
        let in_transaction = self.relay.status != TxStatus::Idle || self.relay.busy();
        let knows = in_transaction || self.mode == PoolMode::Session || !self.pins.is_empty();
        // Nor can it know that what it has sent in time is held.
        if !knows || self.hold.is_some() {
            return Turn::Lost(Loss::Fatal(code));
        }
        self.w.counts.error([code[0], code[1]], Source::Server);
        self.drop_server();
        self.to_client.append(|out| out.extend_from_slice(told));
        self.to_client.try_flush(&mut self.client);
        Turn::Close
    }

    /// What the relay found out on the way; the answer came at `now`.
    pub(super) fn account(&mut self, hidden: bool, now: Instant) {
        if let Some(survivors) = self.relay.forgotten.take() {
            self.statements.clear(&survivors.names);
            if let Some(server) = &mut self.server {
                server.meta.statements.clear(&survivors.ids);
            }
        }
        for undo in std::mem::take(&mut self.relay.undone) {
            self.undo(undo);
        }
        for Described { name, text, columns, types } in std::mem::take(&mut self.relay.described) {
            self.statements.told(&name, &text, columns, types);
            if let Some(server) = &mut self.server {
                server.meta.statements.describe(text.id, columns);
            }
        }
        for text in std::mem::take(&mut self.relay.retired) {
            self.w.texts.borrow_mut().retire(&text);
        }
        for name in std::mem::take(&mut self.relay.unused) {
            if let Some(named) = self.statements.named_mut(&name) {
                named.used = false;
            }
        }
        // Others know of it when it is committed.
        self.statements.apart |= self.relay.altered;
        if self.relay.doubted > 0 {
            self.count_doubted();
        }
        for Reported { name, value, instead } in std::mem::take(&mut self.relay.reported) {
            self.learn(&name, &value);
            if let Some(server) = &mut self.server {
                server.meta.report(&name, &value);
            }
            if !hidden {
                self.reported = true;
                self.read_as_told(&name);
                self.tracking.tell(name, instead.unwrap_or(value));
            }
        }
        if self.rechecks.is_some() && (self.relay.answered > 0 || !self.relay.errors.is_empty()) {
            self.note_recheck();
        }
        self.tracking.failed |= !self.relay.errors.is_empty();
        // The request has had its effect: it stopped a statement before that could commit.
        self.cancelled &= !self.relay.errors.contains(b"57");
        // What the server throws away after an error is owed no longer, and no ReadyForQuery will say so: what waits
        // in the inbox may be the Sync that ends it.
        self.rescan |= !self.relay.errors.is_empty();
        if let Some(discarded) = self.relay.discarded.take() {
            self.rescan |= !self.inbox.is_empty();
            self.server.iter_mut().for_each(|server| server.meta.drew_before |= !discarded);
        }
        if std::mem::take(&mut self.relay.unmarked) {
            self.pool.iter().for_each(|pool| pool.limit.refuse_marks(now));
        }
        for class in self.relay.errors.drain(..) {
            self.w.counts.error(class, Source::Server);
        }
        if std::mem::take(&mut self.relay.heard) {
            // Who notifies has committed before.
            self.causality.borrow_mut().saw(now, Shows::Some);
        }
        if self.relay.answered > 0 && self.relay.busy() && self.w.is_timed() {
            // The next of a pipeline.
            self.mark(Activity::Active, now, self.relay.status == TxStatus::Idle);
        }
        let works = self.presence.doing.get().activity == Activity::Active;
        if self.relay.open.is_some() && self.relay.pending() == 0 && works {
            // It is the client that has not sent its Sync.
            self.mark(Activity::InTransaction, now, false);
        }
        self.tracking.kept |= std::mem::take(&mut self.relay.kept);
        if let Some(before) = self.relay.refused.take() {
            self.remember_refusal(*b"25006", before);
        }
        if self.relay.answered > 0 {
            self.losses.forget();
            self.block_answered();
        }
        let (answered, ended) = (std::mem::take(&mut self.relay.answered), std::mem::take(&mut self.relay.ended));
        // A request that came too late for what is answered now says nothing of what is behind it.
        self.cancelled &= answered == 0 || self.cancelling;
        self.tally.add(Counter::Transactions, ended as u64);
        for _ in 0..answered {
            self.tally.add(Counter::Queries, 1);
            let len = self.retained_lens.pop_front().unwrap_or(0);
            self.retained.drain(..len);
            self.rescan = true;
        }
        self.note_answers((answered, ended), now);
    }

    /// The client was told of commits that the server has given up to wait for.
    #[cold]
    fn count_doubted(&mut self) {
        let Some(term) = self.server.as_ref().map(|server| server.meta.wrote_in()) else { return };
        for _ in 0..std::mem::take(&mut self.relay.doubted) {
            bump(&self.w.counts.in_doubt);
            self.w.counts.error(*b"08", Source::Proxy);
            self.w.count_doubt(term, Fate::Unknown);
        }
    }

    /// The unit that was answered goes back to the head of the inbox: its server is idle and its client knows nothing.
    fn again(&mut self) {
        let mut units = std::mem::take(&mut self.retained);
        units.append(&mut self.inbox);
        self.inbox = units;
        self.retained_lens.clear();
        self.rescan = true;
    }

    /// Transactions have ended that may have written: who was told so at `now` must not miss it. What was committed for less
    /// than the cluster's mode promises is counted.
    pub(super) fn note_commits(&mut self, now: Instant) {
        let commits = self.relay.commits.take();
        let Some(server) = self.server.as_ref().filter(|_| commits.count() > 0) else { return };
        let (protected, draining) = {
            let view = self.w.view.borrow();
            (view.topology.protected, view.topology.gate == Gate::Draining)
        };
        let below = commits.below(Durability::of_mode(protected));
        if below > 0 {
            self.w.count_below_mode(server.meta.term, below);
        }
        if !protected && draining {
            // What the next term has of it is told by a sample that comes before the primary is stopped.
            self.w.ask_sample();
        }
        let by = match (commits.below(Durability::Local), below) {
            (1.., _) => By::Memory,
            (0, 0) if protected => By::Quorum,
            (0, _) => By::Primary,
        };
        self.causality.borrow_mut().acknowledged(server.meta.wrote_in(), by, now);
    }

    /// What a commit would wait for now, on the session's server: what the session is known to have set, and what that server
    /// began with.
    pub(super) fn known_durability(&self, server: &Meta) -> Known {
        (self.tracking.settings.get(COMMIT).map(level), level(&server.defaults.synchronous_commit))
    }

    /// Nothing is owed.
    pub(super) fn idle(&mut self, now: Instant) {
        self.rescan |= !self.inbox.is_empty();
        self.cancelled = false;
        self.w.put_spare(std::mem::take(&mut self.retained));
        self.retained_lens.clear();
        self.relay.commits.clear();
        self.avoid.clear();
        (self.rechecks, self.refused) = (None, false);
        self.mark_rest(now);
        self.settle_reading();
        if self.relay.status == TxStatus::Idle {
            (self.wrote, self.saw, self.portal_may_commit, self.own_set) = (false, false, false, 0);
            self.may_have_xid = false;
            self.statements.portals.clear();
            if std::mem::take(&mut self.relay.altered) {
                self.w.texts.borrow().alter();
                self.share_again();
            }
            if std::mem::take(&mut self.relay.redefined) {
                self.distrust_table();
            }
            if std::mem::take(&mut self.relay.redefaults) {
                self.w.shared.catalogs.refresh_all();
            }
            self.set_busy(None);
            self.let_go_of_table();
            self.rest(now);
        }
    }

    /// This client may have changed what functions do: until the catalog has been read again, its statements go to the
    /// primary. Where no catalog can be read, nothing is expected to change.
    fn distrust_table(&mut self) {
        self.knows_from = self.w.shared.catalogs.refresh(&self.identity.dbname);
        self.w.misroutes.borrow_mut().forget();
        if self.table.is_loaded() {
            self.table = Arc::new(self.table.outdated());
            self.reclassify();
        }
    }

    /// Between transactions, nothing is owed: the server is asked what is to be asked, and goes back to its pool.
    pub(super) fn rest(&mut self, now: Instant) {
        let resting = self.relay.status == TxStatus::Idle && self.tail == Tail::None && self.server_in.is_empty();
        // A cancel request on its way would hit a question of ours; the end of it leads here again.
        if resting
            && self.cancelling
            && let Some(server) = &self.server
        {
            server.cancels.give_up();
        }
        let waits = self.cancelling && !self.may_leave_astray();
        if !resting || waits || self.relay.is_blind() || self.ask() {
            return;
        }
        if self.mode != PoolMode::Transaction {
            return;
        }
        self.settle_draws();
        self.count_pins(self.pins);
        if self.pins.is_empty() && !self.tracking.stuck {
            self.give_back(now);
        }
    }

    /// A cancel request for the server was given up, and nothing binds the session to it? Nobody else is served by it: it is
    /// closed, and the session goes on with another one. Who keeps it waits until the request has ended.
    pub(super) fn may_leave_astray(&self) -> bool {
        let astray = self.server.as_ref().is_some_and(|server| server.cancels.astray());
        astray && self.mode == PoolMode::Transaction && self.pins.is_empty() && !self.tracking.stuck
    }

    /// Count what binds the session between its transactions, as the metrics show it.
    pub(super) fn count_pins(&mut self, now: Pins) {
        if self.counted != now {
            self.w.counts.pins(std::mem::replace(&mut self.counted, now), now);
        }
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::None => {}
            Undo::All(all) => all.into_iter().rev().for_each(|undo| self.undo(undo)),
            Undo::Unnamed { client, server, illegible: _ } => {
                if let Some(before) = client {
                    self.statements.unnamed = before;
                }
                if let (Some(before), Some(server)) = (server, &mut self.server) {
                    server.meta.statements.unnamed = before;
                }
            }
            Undo::Moved(name, before) => {
                if let Some(named) = self.statements.named_mut(&name)
                    && named.text.tail == before.tail
                    && !before.is_retired()
                {
                    named.text = before;
                }
            }
            Undo::Closed(id, name) => {
                if let Some(server) = &mut self.server {
                    server.meta.statements.restore(id, name);
                }
            }
            Undo::RemovedOwn(statement) => {
                let name = statement.name.as_ref().into();
                if let Some(server) = &mut self.server {
                    server.meta.statements.restore(statement.text.id, name);
                }
                self.statements.insert(statement);
            }
            Undo::Forgotten(before) => {
                let (client, of_server) = *before;
                self.statements.recall(client);
                if let (Some(before), Some(server)) = (of_server, &mut self.server) {
                    server.meta.statements.recall(before);
                }
            }
            Undo::LetGo(statement, there) => {
                self.statements.insert(statement);
                if let (Some((id, name)), Some(server)) = (there, &mut self.server) {
                    server.meta.statements.restore(id, name);
                }
            }
            Undo::Registered(name) => drop(self.statements.remove(&name)),
            Undo::Removed(statement) => self.statements.insert(statement),
            Undo::Prepared(text, name) => {
                if let Some(server) = &mut self.server {
                    server.meta.statements.remove(text.id);
                }
                if let Some(name) = name {
                    self.statements.remove(&name);
                }
            }
        }
    }

    /// May something commit of what is between the client and the primary, where only time protects it? That was looked at
    /// just now, and what is kept for the end of a round leaves later: such a message does not wait for it.
    pub(super) fn leaves_at_once(&self) -> bool {
        route::only_time_protects(&self.w.view.borrow().topology) && self.relay.may_commit()
    }

    pub(super) fn view_ran_out(&self, now: Instant) -> bool {
        self.w.view.borrow().topology.ends_at().is_some_and(|end| now >= end)
    }
}
