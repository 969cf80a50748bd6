//! The queries of ours that keep a session's settings the same on whichever server serves it.

use crate::ledger::entry::hides_notices;
use crate::pool::defaults::leave;
use crate::session::batch::Unit;
use crate::session::client::{Session, Tail};
use crate::session::settings;
use crate::session::state::Pins;
use crate::session::statements::ClientStatements;
use crate::session::tracking::Reports;
use crate::sql::{FunctionTable, Leaves, LexRules, LongText, Name, PinReason, Touched, alone_in, executed, prepared};
use crate::wire::backend;
use crate::wire::codec::head;
use crate::wire::frontend;
use cluster::Role;
use std::sync::Arc;

mod asked;
mod reading;

pub(super) use reading::Reading;

/// What a function may leave of which nothing is known yet, as far as the server can be asked.
const ANYTHING: Pins = {
    let mut pins = Pins::of(PinReason::Set);
    pins.add(PinReason::Temp);
    pins.add(PinReason::AdvisoryLock);
    pins.add(PinReason::HeldCursor);
    pins.add(PinReason::Listen);
    pins
};

/// A text that is read as it passes.
pub(super) struct Long {
    text: LongText,
    /// The unnamed statement that it is, and what has come of it.
    kept: Option<(u64, Vec<u8>)>,
}

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
        if !unit.read && unit.tail_left == 0 {
            self.make_way(&input[..unit.len]);
        }
        let temp = !unit.read && !self.relay.standby && self.creates_temp();
        self.follow_local(input, unit);
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
            if touched.hidden {
                self.estrange();
            }
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

    /// A command that takes that nobody is connected to another database does not fail because of what is open to it here for
    /// nobody: PostgreSQL waits for some seconds.
    fn make_way(&self, unit: &[u8]) {
        let Ok(Some(first)) = head(unit) else { return };
        let Some(frame) = unit.get(..first.total) else { return };
        let sql = match first.kind {
            b'Q' => frontend::query(frame),
            b'P' => frontend::parse(frame).map(|parse| parse.sql),
            _ => None,
        };
        if let Some(database) = sql.and_then(alone_in) {
            leave(&self.w.shared, &database);
        }
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

    /// May a new table be a temporary one although its text does not say so?
    fn creates_temp(&self) -> bool {
        let begins = || self.server.as_ref().is_some_and(|server| server.meta.defaults.creates_temp);
        self.tracking.creates_temp.unwrap_or_else(begins)
    }

    /// The parse key of what is shared with all sessions that began alike and have the same settings.
    pub(super) fn shared_key(&self) -> u64 {
        self.tracking.settings.parse_key(self.identity.begins())
    }

    /// A text that begins at `at` in its unit, which was sent just now, and is read as it passes. Before that the client had
    /// this unnamed statement: a new one is kept, where there is room for it, as another server may be asked for it.
    pub(super) fn long_text(&self, unit: &Unit, at: usize, before: Option<u64>) -> Long {
        let room = self.account.most(self.w.config().statement_bytes());
        let length = unit.len - at + unit.tail_left;
        let parsed = self.statements.unnamed.as_ref().map(|unnamed| unnamed.serial).filter(|&now| before != Some(now));
        let kept = parsed.filter(|_| self.statements.has_room(b"", length, room));
        Long {
            text: LongText::new(self.lex, self.table.clone()),
            kept: kept.map(|serial| (serial, Vec::with_capacity(length))),
        }
    }

    /// A piece of a text that is read as it passes; behind the last one, remember what it may change.
    pub(super) fn follow_long(&mut self, piece: &[u8]) {
        let Some(long) = &mut self.long else { return };
        long.text.feed(piece);
        long.kept.iter_mut().for_each(|(_, kept)| kept.extend_from_slice(piece));
        if self.tail != Tail::None {
            return;
        }
        let Some(long) = self.long.take() else { return };
        let Long { text: mut long, kept } = *long;
        self.tracking.touched.join(long.touched());
        let Leaves { mut pins, mut unpins, nameless, strange } = long.finish();
        if self.tracking.touched.hidden {
            self.estrange();
        }
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
            if let Some((_, tail)) = kept.filter(|(serial, _)| *serial == unnamed.serial) {
                unnamed.tail = Some(tail);
            }
        }
    }

    /// Find out which settings a unit may change.
    fn touch(&mut self, input: &[u8], unit: &Unit) {
        let touched = &mut self.tracking.touched;
        if unit.tail_left > 0 && !unit.pins.has(PinReason::Set) {
            // What runs is not known, rather than what the rest of the values is: everything is asked for.
            return;
        }
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
                    // What NULL names sets nothing.
                    let values: Vec<_> = values.into_iter().map(Option::unwrap_or_default).collect();
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
        if self.tracking.postponed {
            return self.ask_position();
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
        self.share_again();
    }

    /// What is prepared from now on is shared with who reads it alike, as far as that is known.
    pub(super) fn share_again(&mut self) {
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

    /// Tell the client of settings that are not what it was told.
    pub(super) fn correct(&mut self) {
        for (name, value) in self.tracking.corrections(&self.base) {
            self.to_client.append(|out| backend::write_parameter_status(out, &name, &value));
        }
    }

    /// Could the session have switched off the notice that tells of a cancelled wait for a standby?
    pub(super) fn hides_notices(&self) -> bool {
        // What its role, its database or its startup packet set is what its server began with.
        let default = self.server.as_ref().map(|server| &*server.meta.defaults.client_min_messages);
        let level = self.tracking.settings.get("client_min_messages").or(default);
        let quiet = level.is_none_or(hides_notices);
        // Or by what runs now, whose settings are not known yet.
        let touched = &self.tracking.touched;
        let now = touched.every || touched.names.iter().any(|n| &**n == "client_min_messages");
        quiet || now || self.pins.has(PinReason::Set)
    }
}
