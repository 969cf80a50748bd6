//! The queries of ours that keep a session's settings the same on whichever server serves it.

use crate::config::PoolMode;
use crate::session::batch::Unit;
use crate::session::cancel::Waiters;
use crate::session::client::{Failure, Loss, Session, Tail, Turn};
use crate::session::state::Pins;
use crate::session::statements::ClientStatements;
use crate::session::tracking::{Asked, Reports};
use crate::session::{in_force, settings};
use crate::sql::{Access, FunctionTable, Leaves, LexRules, Name, PinReason, Touched, executed, prepared};
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::head;
use crate::wire::error_response::ClientError;
use crate::wire::frontend;
use cluster::{Instant, Role};
use std::sync::Arc;

/// What a client is told whose notifications come from another server now.
const MISSED: &str = "notifications may have been missed";
const MISSED_DETAIL: &str = "The server that listened for this session was lost; another one listens now.";

/// Servers in a row that may fail to take a session's settings in time, before that is taken for a refusal.
const MAX_UNAPPLIED: u8 = 8;

/// What a function may leave of which nothing is known yet, as far as the server can be asked.
const ANYTHING: Pins = {
    let mut pins = Pins::of(PinReason::Set);
    pins.add(PinReason::Temp);
    pins.add(PinReason::AdvisoryLock);
    pins.add(PinReason::HeldCursor);
    pins.add(PinReason::Listen);
    pins
};

/// Add what a text may change when it is executed, and what an EXECUTE in it may; what that one is given is not looked
/// at. `here` are the statements that the unit itself prepares.
fn add_executed(
    touched: &mut Touched,
    (sql, values): (&[u8], &[&[u8]]),
    here: &[(Name, &[u8])],
    statements: &ClientStatements,
    (lex, functions): (LexRules, &FunctionTable),
) {
    touched.add(sql, values, lex);
    functions.bodies().touch(sql, touched, lex);
    let Some(name) = executed(sql) else { return };
    let of = here.iter().filter(|(n, _)| *n == name).map(|(_, sql)| *sql).chain(statements.sql(&name));
    of.for_each(|sql| {
        touched.add(sql, &[], lex);
        functions.bodies().touch(sql, touched, lex);
    });
}

impl Session {
    /// A unit goes to the server: remember what it may change.
    pub(super) fn follow(&mut self, input: &[u8], unit: &Unit) {
        let temp = !unit.read && !self.relay.standby && self.creates_temp();
        if unit.pins.is_empty() && !unit.unpins && !unit.discards && !unit.strange && !temp {
            return;
        }
        let mut pins = unit.pins;
        if pins.has(PinReason::Temp) {
            // The same text may mean what nobody else has.
            if !self.pins.has(PinReason::Temp) {
                self.parse_key = self.w.texts.borrow_mut().fresh_id();
            }
            self.statements.apart = true;
        }
        if temp {
            pins.add(PinReason::Temp);
        }
        if unit.strange {
            pins.join(ANYTHING);
            self.estrange();
        }
        if pins.has(PinReason::Set) {
            self.touch(input, unit);
            let touched = &mut self.tracking.touched;
            // Nobody stays on a server because of a setting that nothing asks about.
            touched.every |= touched.is_empty() || unit.strange;
            // What is prepared before the settings are known is this session's alone.
            if unit.pins.has(PinReason::Set) {
                self.parse_key = self.w.texts.borrow_mut().fresh_id();
            }
            self.statements.apart = true;
        }
        self.tracking.listened |= unit.pins.has(PinReason::Listen);
        self.tracking.pin(&mut self.pins, pins);
        self.tracking.unpins |= unit.unpins || unit.strange;
        self.tracking.discards |= unit.discards;
    }

    /// Custom settings may be left on the server that no question asks about: the next session resets them.
    fn estrange(&mut self) {
        let number = self.number();
        if let Some(server) = &mut self.server {
            server.meta.estranged = number;
        }
    }

    /// What tells the session apart from others.
    fn number(&mut self) -> u64 {
        if self.tracking.number == 0 {
            self.tracking.number = self.w.texts.borrow_mut().fresh_id();
        }
        self.tracking.number
    }

    /// What more than reads was sent to the primary: it may have drawn from sequences there.
    pub(super) fn note_draws(&mut self) {
        let number = self.number();
        if let Some(server) = &mut self.server {
            server.meta.drew = number;
        }
    }

    /// Does the unit ask for what its session has drawn last, on a server where another one has drawn since? That one's
    /// values are discarded first, so that PostgreSQL says that there are none. True when that takes an answer first.
    pub(super) fn forget_draws(&mut self, unit: &Unit) -> bool {
        let asks = unit.pins.has(PinReason::Sequence) && !self.pins.has(PinReason::Sequence);
        let Some(server) = self.server.as_ref().filter(|_| asks && self.mode == PoolMode::Transaction) else {
            return false;
        };
        let foreign = server.meta.drew != 0 && server.meta.drew != self.tracking.number;
        if !foreign || self.relay.status == TxStatus::Failed || self.relay.open.is_some() {
            return false;
        }
        if !self.relay.busy() {
            self.tracking.asked = Some(Asked::Discard);
            self.send_hidden("DISCARD SEQUENCES");
        }
        true
    }

    /// May a new table be a temporary one although its text does not say so?
    fn creates_temp(&self) -> bool {
        let begins = || self.server.as_ref().is_some_and(|server| server.meta.defaults.creates_temp);
        self.tracking.creates_temp.unwrap_or_else(begins)
    }

    /// The parse key of what is shared with all sessions that began alike and have the same settings.
    pub(super) fn shared_key(&self) -> u64 {
        self.tracking.settings.parse_key(self.identity.begins())
    }

    /// A piece of a text that is read as it passes; behind the last one, remember what it may change.
    pub(super) fn follow_long(&mut self, piece: &[u8]) {
        let Some(long) = &mut self.long else { return };
        long.feed(piece);
        if self.tail != Tail::None {
            return;
        }
        let Some(mut long) = self.long.take() else { return };
        self.tracking.touched.join(long.touched());
        let Leaves { mut pins, mut unpins, nameless, strange } = long.finish();
        let sets = pins.has(PinReason::Set);
        self.tracking.listened |= pins.has(PinReason::Listen);
        if strange {
            pins.join(ANYTHING);
            unpins = true;
            self.estrange();
        }
        if pins.has(PinReason::Set) {
            self.tracking.touched.every = true;
            self.tracking.touched.nameless |= nameless;
            if sets {
                self.parse_key = self.w.texts.borrow_mut().fresh_id();
            }
            self.statements.apart = true;
        }
        self.tracking.pin(&mut self.pins, pins);
        self.tracking.unpins |= unpins;
        if let Some(unnamed) = &mut self.statements.unnamed {
            // It is the one that was parsed: a Query leaves none.
            unnamed.class.pins.join(pins);
            unnamed.class.unpins |= unpins;
            unnamed.class.strange |= strange;
        }
    }

    /// Find out which settings a unit may change.
    fn touch(&mut self, input: &[u8], unit: &Unit) {
        let touched = &mut self.tracking.touched;
        if unit.tail_left > 0 {
            touched.unreadable(&input[..unit.len], &[]);
            touched.nameless = true;
            return;
        }
        let mut parsed: Vec<(&[u8], &[u8])> = Vec::new();
        let mut prepares: Vec<(Name, &[u8])> = Vec::new();
        let mut at = 0;
        while at < unit.len {
            let head = head(&input[at..]).ok().flatten().expect("scan has read this head");
            let frame = &input[at..at + head.total];
            match head.kind {
                b'Q' => {
                    let sql = frontend::query(frame).unwrap_or_default();
                    add_executed(touched, (sql, &[]), &prepares, &self.statements, (self.lex, &self.table));
                }
                b'P' => {
                    let parse = frontend::parse(frame).map(|p| (p.name, p.sql));
                    prepares.extend(parse.and_then(|(_, sql)| prepared(sql)));
                    parsed.extend(parse);
                }
                b'B' => {
                    let Some(b) = frontend::bind(frame) else { break };
                    let values = frontend::bind_values(frame).unwrap_or_default();
                    let here = parsed.iter().rev().find(|(name, _)| *name == b.statement).map(|(_, sql)| *sql);
                    match here.or_else(|| self.statements.sql(b.statement)) {
                        Some(sql) => {
                            prepares.extend(prepared(sql));
                            add_executed(touched, (sql, &values), &prepares, &self.statements, (self.lex, &self.table));
                        }
                        None => (touched.every, touched.nameless) = (true, true),
                    }
                }
                _ => {}
            }
            at += head.total;
        }
    }

    /// A transaction is over. Does the server have to be asked something before it is given back?
    pub(super) fn ask(&mut self) -> bool {
        let Some(server) = &self.server else { return false };
        if std::mem::take(&mut self.reported) && !server.meta.explained() {
            // Something has set what no text named.
            self.tracking.touched.every = true;
        }
        if !self.tracking.is_due(self.pins) {
            self.tracking.rest();
            self.durability.settle();
            return self.ask_position();
        }
        let question = self.tracking.question(&mut self.pins, &*server.meta);
        match question {
            Some(sql) => {
                self.send_hidden(&sql);
                true
            }
            None => {
                self.settled();
                self.ask_position()
            }
        }
    }

    /// The server has the settings that the session is known to have.
    fn settled(&mut self) {
        if self.server.is_some() {
            self.settle_meaning();
        }
        let Some(server) = &mut self.server else { return };
        server.meta.given = self.tracking.settings.clone();
        if server.meta.adopt() {
            server.meta.settings = self.w.keep_welcome(&self.identity, &server.meta.settings);
        }
        let pools = &self.w.config().pools.defaults;
        if !pools.pin_settings.is_empty() && self.tracking.settings.iter().any(|(name, _)| pools.is_pinning(name)) {
            self.pins.add(PinReason::Extension);
        }
        self.presence.settings.replace(self.tracking.settings.clone());
        let name = "application_name";
        let wanted = self.tracking.settings.get(name);
        let due = wanted.is_some() && server.meta.reported(name).is_some_and(|(_, now)| Some(now) != wanted);
        if due {
            // RESET took it to the proxy's own name.
            settings::Settings::set(Arc::make_mut(&mut server.meta.given), name, None);
        }
        self.tracking.due = due;
        self.choose_durability();
        self.durability.settle();
        self.raise_durability();
        self.begin_as_server();
        self.correct();
    }

    /// What a text means now, and who may share it. Where the temporary schema is first now, the transaction that did so
    /// may have made a table there already.
    fn settle_meaning(&mut self) {
        let now = self.tracking.settings.get("search_path").map(settings::creates_temp);
        if std::mem::replace(&mut self.tracking.creates_temp, now) != now && now == Some(true) {
            self.pins.add(PinReason::Temp);
            self.tracking.fresh.add(PinReason::Temp);
        }
        if self.pins.has(PinReason::Set) {
            return;
        }
        let shared = self.shared_key();
        if !self.pins.has(PinReason::Temp) {
            self.parse_key = shared;
        } else if self.parse_key == shared {
            self.parse_key = self.w.texts.borrow_mut().fresh_id();
        }
        self.statements.apart = false;
    }

    /// The server may begin with other settings than the client was told: its configuration was reloaded, or its user's
    /// defaults were changed. The client is told what holds for it now.
    pub(super) fn begin_as_server(&mut self) {
        let Some(server) = &self.server else { return };
        let begins = &server.meta.settings;
        if Arc::ptr_eq(begins, &self.base) || server.meta.role == Role::Standby {
            return;
        }
        let base = std::mem::replace(&mut self.base, begins.clone());
        for (name, value) in self.tracking.rebase(&base, &self.base) {
            self.learn(&name, &value);
            self.to_client.append(|out| backend::write_parameter_status(out, &name, &value));
        }
    }

    /// Give the server the session's settings. True when that takes an answer of the server first.
    pub(super) fn apply(&mut self) -> bool {
        let shown = self.shows();
        if !self.tracking.due && !shown {
            return false;
        }
        if shown && self.relay.busy() {
            return true;
        }
        let mut sql = if shown { self.forget_shown() } else { String::new() };
        let Some(server) = &mut self.server else { return false };
        let (meta, wanted) = (&mut *server.meta, &self.tracking.settings);
        if std::mem::take(&mut meta.listens) {
            sql.push_str("UNLISTEN *;");
        }
        if shown {
            meta.shown.clear();
        }
        if meta.is_strange_to(self.tracking.number) {
            meta.estranged = 0;
            sql.push_str("RESET ALL;");
            sql.extend(settings::apply(wanted, &settings::not_reset(&meta.given), |_| None));
        } else {
            sql.extend(settings::apply(wanted, &meta.given, |name| meta.reported(name)));
        }
        if sql.is_empty() {
            meta.given = wanted.clone();
            self.tracking.due = false;
            return false;
        }
        self.tracking.asked = Some(Asked::Apply);
        self.send_hidden(&sql);
        true
    }

    pub(super) fn send_hidden(&mut self, sql: &str) {
        let Some(server) = &mut self.server else { return };
        // A simple query destroys the unnamed statement.
        server.meta.statements.unnamed = None;
        self.relay.hide();
        let mut out = Vec::with_capacity(sql.len() + 6);
        frontend::write_query(&mut out, sql);
        self.send(&out);
    }

    /// A server was found: has it the session's settings?
    pub(super) fn compare(&mut self) {
        self.raise_durability();
        let Some(server) = &mut self.server else { return };
        let strange = server.meta.is_strange_to(self.tracking.number);
        let (ours, its) = (&mut self.tracking.settings, &mut server.meta.given);
        let (one, same) = (Arc::ptr_eq(ours, its), Arc::ptr_eq(ours, its) || ours == its);
        self.tracking.due = !same || server.meta.listens || strange;
        if same && !one {
            // Those that are equal come to be one, so that most comparisons are of addresses: the lower one stays.
            if Arc::as_ptr(its) < Arc::as_ptr(ours) {
                ours.clone_from(its);
                self.presence.settings.replace(ours.clone());
            } else {
                its.clone_from(ours);
            }
        }
        self.begin_as_server();
    }

    /// A query of ours is answered.
    pub(super) fn hidden_done(&mut self, now: Instant) -> Result<bool, Turn> {
        let mut hidden = std::mem::take(&mut self.relay.hidden);
        self.rescan = true;
        match self.tracking.asked.take() {
            Some(Asked::Apply) => match hidden.error {
                None => {
                    (self.tracking.due, self.tracking.unapplied) = (false, 0);
                    if let Some(server) = &mut self.server {
                        server.meta.given = self.tracking.settings.clone();
                    }
                    self.correct();
                    if std::mem::take(&mut self.listens) {
                        self.send_listen();
                    }
                }
                Some(frame) => self.not_applied(&frame)?,
            },
            Some(Asked::Question { settings, pins }) => {
                match (&self.server, hidden.error) {
                    (Some(server), None) => {
                        hidden.rows.retain(|row| !in_force::is_shown(row, &server.meta.shown));
                        self.tracking.answer((settings, pins), &hidden.rows, &mut self.pins, &*server.meta);
                        self.settled();
                    }
                    (_, Some(frame)) => {
                        let message = String::from_utf8_lossy(backend::fields(&frame).message).into_owned();
                        tracing::debug!(reason = message.as_str(), "session pinned, its settings could not be read");
                        self.tracking.unanswered();
                    }
                    (None, None) => {}
                }
                self.idle(now);
            }
            Some(Asked::Begin) => self.block_begun(hidden.error),
            Some(Asked::Columns { name, text, parsed }) => self.columns_told(&name, &text, parsed, hidden),
            Some(Asked::Close) => self.other_columns_closed(),
            Some(Asked::Discard) => match hidden.error {
                None => self.note_draws(),
                Some(frame) => {
                    self.fail = Some(Failure::Frame(frame));
                    self.rest(now);
                }
            },
            Some(Asked::Position { at }) => {
                self.positioned(at, &hidden);
                self.idle(now);
            }
            // A server that refuses them will say so again when it is asked for them.
            Some(Asked::Tell) => self.told = true,
            Some(Asked::Proof { since }) => self.proof_answered(since, &hidden),
            Some(Asked::Durability) => self.durability_told(&hidden),
            Some(Asked::Listen) if hidden.error.is_some() => return Err(self.deaf()),
            Some(Asked::Listen) => {
                self.to_client.append(|out| backend::write_warning(out, MISSED, MISSED_DETAIL));
                self.idle(now);
            }
            None => {}
        }
        Ok(true)
    }

    /// The server refuses the settings: a standby need not have them, but no statement may run without.
    fn not_applied(&mut self, frame: &[u8]) -> Result<(), Turn> {
        let Some(server) = &mut self.server else { return Ok(()) };
        server.meta.spoilt = true;
        let (node, role) = (server.meta.node.clone(), server.meta.role);
        let code = backend::fields(frame).code;
        if matches!(code, b"57014" | b"55P03") && self.tracking.unapplied < MAX_UNAPPLIED {
            // They were given under the limits of the session before: that says nothing of them, nor of another server.
            self.tracking.unapplied += 1;
            if self.listens {
                return Err(Turn::Lost(Loss::Violation("settings not taken in time")));
            }
            (self.server_in, self.behind) = (Vec::new(), false);
            self.drop_server();
            return Ok(());
        }
        self.give_back(self.w.now());
        if role == Role::Standby {
            self.avoid.push(node);
            return Ok(());
        }
        let why = String::from_utf8_lossy(backend::fields(frame).message).into_owned();
        self.fatal(&ClientError::SettingsRefused { node, why });
        Err(Turn::Close)
    }

    /// The server that listened for the client is lost: find another one, and warn. False when there is none.
    pub(super) async fn listen_again(&mut self) -> bool {
        // Nothing else sends what the loss was answered while a server is looked for.
        self.to_client.try_flush(&mut self.client);
        if !self.tracking.knows_channels() {
            self.deaf();
            return false;
        }
        self.acquire(Access::Write, 0).await;
        self.waiting_since = None;
        if self.fail.take().is_some() {
            self.deaf();
            return false;
        }
        self.listens = self.server.is_some();
        if self.listens {
            self.pins.add(PinReason::Listen);
            // The settings first: names are read by the client's encoding, and what the server listens to for nobody ends
            // with all that it listens to.
            if !self.apply() {
                self.listens = false;
                self.send_listen();
            }
        }
        true
    }

    /// The server begins to listen. One that is lost at once is noticed by the next turn.
    fn send_listen(&mut self) {
        self.tracking.asked = Some(Asked::Listen);
        self.send_hidden(&self.tracking.listen_again());
    }

    /// Nobody listens for a client that waits for notifications: it must notice.
    fn deaf(&mut self) -> Turn {
        if let Some(error) = self.view_of_loss() {
            self.fatal(&error);
        }
        Turn::Close
    }

    fn view_of_loss(&self) -> Option<ClientError> {
        let view = self.w.view.borrow();
        let node = view.topology.primary.as_ref()?.node.clone();
        Some(ClientError::SessionLost { node, lost: vec![PinReason::Listen] })
    }

    /// Tell the client of settings that are not what it was told.
    pub(super) fn correct(&mut self) {
        for (name, value) in self.tracking.corrections(&self.base) {
            self.to_client.append(|out| backend::write_parameter_status(out, &name, &value));
        }
    }

    /// A cancel request has come while a query of ours is in flight: it must not hit that, unless the client's
    /// statement waits for what it waits for.
    pub(super) fn cancel_hidden(&mut self, waiters: Waiters) {
        if self.give_up_proof(Some(ClientError::Cancelled)) {
            return;
        }
        // That stands for the client's own statement, and may wait for as long as that: for a lock on its tables.
        if matches!(self.tracking.asked, Some(Asked::Columns { .. } | Asked::Discard)) {
            return self.forward_cancel(waiters);
        }
        if self.tracking.asked == Some(Asked::Apply) && self.tail == Tail::None && !self.listens {
            self.fail = Some(Failure::Error(ClientError::Cancelled));
            self.rescan = true;
        }
    }

    /// Could the session have switched off the notice that tells of a cancelled wait for a standby?
    pub(super) fn hides_notices(&self) -> bool {
        // What its role, its database or its startup packet set is what its server began with.
        let default = self.server.as_ref().map(|server| &*server.meta.defaults.client_min_messages);
        let level = self.tracking.settings.get("client_min_messages").or(default);
        let quiet = level.is_none_or(|level| matches!(level, "error" | "fatal" | "panic"));
        // Or by what runs now, whose settings are not known yet.
        let touched = &self.tracking.touched;
        let now = touched.every || touched.names.iter().any(|n| &**n == "client_min_messages");
        quiet || now || self.pins.has(PinReason::Set)
    }
}
