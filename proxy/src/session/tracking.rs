//! What follows a session from server to server, and when the server is asked about it. Pure.
//!
//! A transaction that may have changed settings, or that may have begun or ended what binds the session, is followed
//! by one question to its server before that is given back. Most answers need no question: the server reports a dozen
//! settings by itself. The next server is given the settings before the session's next unit.

use crate::session::settings::{self, Settings, Shared};
use crate::session::statements::Text;
use crate::sql::{PinReason, Pins, Touched};
use cluster::Instant;
use std::rc::Rc;

/// Which reasons to stay the server can be asked about.
const ASKABLE: [(PinReason, &str); 4] = [
    // Everything in a schema depends on it; the index of pg_depend finds that at once.
    (
        PinReason::Temp,
        "EXISTS(SELECT FROM pg_catalog.pg_depend WHERE refclassid='pg_catalog.pg_namespace'::pg_catalog.regclass \
         AND refobjid=pg_catalog.pg_my_temp_schema())",
    ),
    (
        PinReason::AdvisoryLock,
        "EXISTS(SELECT FROM pg_catalog.pg_locks WHERE locktype='advisory' AND pid=pg_catalog.pg_backend_pid())",
    ),
    (PinReason::HeldCursor, "EXISTS(SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)"),
    // What follows the session is left out: the names are put in by [`exists`].
    (PinReason::Prepare, "EXISTS(SELECT FROM pg_catalog.pg_prepared_statements WHERE name NOT LIKE E'pgtenure\\\\_%'"),
];

/// So often in a row a question may end at a limit of the session's own.
const MAX_UNHEARD: u8 = 8;

/// The one setting of the startup packet that servers are not logged in with.
pub const APPLICATION_NAME: &str = "application_name";
/// Whether transactions are READ ONLY that do not say.
pub const READ_ONLY: &str = "default_transaction_read_only";

/// What the query of ours in flight is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The server is given the session's settings.
    Apply,
    /// The primary is asked where its WAL ends.
    Position {
        /// When it was asked.
        at: Instant,
    },
    /// The server is given the values of settings that only tell.
    Tell,
    /// The server tells a text's columns, which its client may know otherwise.
    Columns {
        /// The client's name for it.
        name: Rc<[u8]>,
        /// The text.
        text: Rc<Text>,
        /// It was prepared there for that.
        parsed: bool,
    },
    /// A standby closes a text that has other columns there than its client was told.
    Close,
    /// The server forgets what another session has drawn from sequences.
    Discard,
    /// The server is told what the open block's commit waits for.
    Durability,
    /// It is proven that the server is the primary.
    Proof {
        /// When that was begun.
        since: Instant,
    },
    /// Another server listens to the session's channels.
    Listen,
    /// The session's block, which has done nothing yet, begins on another server.
    Begin,
    /// The server is asked what has become of settings and pins.
    Question {
        /// About settings.
        settings: bool,
        /// About these pins.
        pins: Pins,
    },
}

/// What a server reports by itself.
pub trait Reports {
    /// A setting's value at login and now, when the server reports it. The name is in lower case.
    fn reported(&self, name: &str) -> Option<(&str, &str)>;

    /// The prepared statements that it has under names of clients, and that we know.
    fn known_statements(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// The question whether there is reason to stay.
fn exists(reason: PinReason, part: &str, server: &impl Reports) -> String {
    let mut sql = part.to_owned();
    if reason == PinReason::Prepare {
        for name in server.known_statements() {
            sql.push_str(" AND name<>");
            settings::literal(&mut sql, name);
        }
        sql.push(')');
    }
    sql
}

/// What follows a session.
#[derive(Debug, Default)]
pub struct Tracking {
    /// The settings that the client has set, and its `application_name`.
    pub settings: Shared,
    /// The `application_name` of the client's startup packet: what RESET goes back to.
    application_name: Option<Box<str>>,
    /// Settings that may have changed since the server was last asked.
    pub touched: Touched,
    /// The server has settings that could not be given to another: those that nobody knows, or that are not portable now.
    pub stuck: bool,
    /// It has settings that nobody knows.
    unknown: bool,
    /// Pins that were added since the server was last asked.
    pub fresh: Pins,
    /// Something may have ended a pin.
    pub unpins: bool,
    /// The session is as new, if nothing failed: DISCARD ALL.
    pub discards: bool,
    /// A statement failed since the last transaction ended.
    pub failed: bool,
    /// The server has other settings than the session.
    pub due: bool,
    /// The texts whose columns the server was asked for since a unit was sent to it.
    pub described: Vec<u64>,
    /// What the query of ours in flight is for.
    pub asked: Option<Asked>,
    /// Servers in a row that have not taken the settings in time.
    pub unapplied: u8,
    /// Questions in a row that were not answered in time.
    unheard: u8,
    /// A question was not answered in time, and nothing was sent for the client since: it is not asked at once again.
    pub postponed: bool,
    /// A transaction has ended that may have kept what it did, since the server was last asked.
    pub kept: bool,
    /// Channels listened to.
    pub channels: Vec<String>,
    /// The client has sent a LISTEN since the server last told the channels.
    pub listened: bool,
    /// Transactions stay READ ONLY by default, whatever the client sets.
    pub read_only: bool,
    /// What tells the session apart from others where it has left what nobody knows of; 0 before.
    pub number: u64,
    /// The session's `search_path`, where it has set one, puts new tables into the temporary schema.
    pub creates_temp: Option<bool>,
    /// Settings the server reported, as the client knows them.
    pub told: Vec<(String, String)>,
}

impl Tracking {
    /// A session whose startup packet gave this `application_name`.
    pub fn new(application_name: Option<&str>) -> Self {
        Self::like(application_name, &Shared::default())
    }

    /// The same; when it begins with the settings that `another` one has, they share them.
    pub fn like(application_name: Option<&str>, another: &Shared) -> Self {
        let same = another.get(APPLICATION_NAME) == application_name
            && another.len() == usize::from(application_name.is_some());
        let settings = if same {
            another.clone()
        } else {
            let mut settings = Settings::default();
            settings.set(APPLICATION_NAME, application_name);
            settings.into()
        };
        Self { settings, application_name: application_name.map(Into::into), ..Self::default() }
    }

    /// What is sent may bind the session by these reasons, besides by those that it has. Each LISTEN adds to what the server
    /// is to be asked for; the others are there or not.
    pub fn pin(&mut self, pins: &mut Pins, new: Pins) {
        self.fresh.join(new.without(*pins));
        if new.has(PinReason::Listen) {
            self.fresh.add(PinReason::Listen);
        }
        pins.join(new);
    }

    /// Is anything to be asked, now that a transaction is over?
    pub fn is_due(&self, pins: Pins) -> bool {
        !self.touched.is_empty() || !self.subject(pins).is_empty()
    }

    /// The pins to ask about.
    fn subject(&self, pins: Pins) -> Pins {
        let mut subject = Pins::NONE;
        for reason in ASKABLE.iter().map(|(reason, _)| *reason).chain([PinReason::Listen]) {
            if pins.has(reason) && (self.unpins || self.fresh.has(reason)) {
                subject.add(reason);
            }
        }
        subject
    }

    /// A transaction is over: the question to ask, or `None` when what the server has reported answers it.
    pub fn question(&mut self, pins: &mut Pins, server: &impl Reports) -> Option<String> {
        if std::mem::take(&mut self.discards) && !self.failed {
            pins.remove(PinReason::Sequence);
            (self.stuck, self.unknown) = (false, false);
        }
        let subject = self.subject(*pins);
        let mut sql = String::new();
        let settings = !self.touched.is_empty() && !self.answer_from_reports(pins, server);
        if settings {
            let known = self.settings.iter().map(|(n, _)| n).filter(|n| n.contains('.'));
            let known: Vec<&str> = if self.touched.every { known.collect() } else { Vec::new() };
            let names = self.touched.names.iter().map(Box::as_ref).chain(known);
            settings::question(&mut sql, self.touched.every, names);
        }
        for (reason, part) in ASKABLE.iter().filter(|(reason, _)| subject.has(*reason)) {
            settings::union(&mut sql);
            let exists = exists(*reason, part, server);
            sql.push_str(&format!("SELECT 'p','{}',{exists}::pg_catalog.text", reason.label()));
        }
        if subject.has(PinReason::Listen) {
            settings::union(&mut sql);
            sql.push_str("SELECT 'l',c,NULL FROM pg_catalog.pg_listening_channels() AS listening(c)");
        }
        (self.unpins, self.fresh, self.failed, self.kept) = (false, Pins::NONE, false, false);
        if sql.is_empty() {
            return None;
        }
        self.asked = Some(Asked::Question { settings, pins: subject });
        Some(sql)
    }

    /// Settle what has changed by what the server reports, if that is all.
    fn answer_from_reports(&mut self, pins: &mut Pins, server: &impl Reports) -> bool {
        if self.touched.every || self.touched.nameless {
            return false;
        }
        if !self.touched.names.iter().all(|name| server.reported(name).is_some()) {
            return false;
        }
        let names = std::mem::take(&mut self.touched.names);
        let now: Vec<(&str, Option<&str>)> =
            names.iter().map(|name| (name.as_ref(), server.reported(name).map(|(_, now)| now))).collect();
        let back = std::mem::take(&mut self.touched.renamed_back);
        self.settle(&now, (false, back), pins, server);
        true
    }

    /// The answer to a question of these rows.
    pub fn answer(
        &mut self,
        (settings, asked): (bool, Pins),
        rows: &[Vec<Option<String>>],
        pins: &mut Pins,
        server: &impl Reports,
    ) {
        let row = |row: &'_ [Option<String>]| -> Option<(char, String, Option<String>)> {
            let [kind, name, value] = row else { return None };
            Some((kind.as_ref()?.chars().next()?, name.clone()?, value.clone()))
        };
        let rows: Vec<_> = rows.iter().filter_map(|r| row(r)).collect();
        for (reason, _) in ASKABLE.iter().filter(|(reason, _)| asked.has(*reason)) {
            let holds = |r: &(char, String, Option<String>)| {
                r.0 == 'p' && r.1 == reason.label() && r.2.as_deref() == Some("true")
            };
            if !rows.iter().any(holds) {
                pins.remove(*reason);
            }
        }
        if asked.has(PinReason::Listen) {
            self.channels = rows.iter().filter(|r| r.0 == 'l').map(|r| r.1.clone()).collect();
            self.listened = false;
            if self.channels.is_empty() {
                pins.remove(PinReason::Listen);
            }
        }
        self.unheard = 0;
        if settings {
            let touched = std::mem::take(&mut self.touched);
            self.unknown |= touched.nameless;
            let values: Vec<_> = rows.iter().filter(|r| r.0 == 's').map(|r| (r.1.as_str(), r.2.as_deref())).collect();
            self.settle(&values, (touched.every, touched.renamed_back), pins, server);
        }
    }

    /// These are the values now, of some settings or of all that there are; `back`: the name of the application was
    /// taken back.
    fn settle(
        &mut self,
        values: &[(&str, Option<&str>)],
        (all, back): (bool, bool),
        pins: &mut Pins,
        server: &impl Reports,
    ) {
        let mut settings = Settings::clone(&self.settings);
        if all {
            settings.clear();
        }
        for (name, value) in values {
            settings.set(name, *value);
        }
        // A reset name is the one that the proxy logged in with.
        let name = APPLICATION_NAME;
        let reset = back && server.reported(name).is_some_and(|(login, now)| login == now);
        if self.application_name.is_some() && (reset || settings.get(name).is_none()) {
            settings.set(name, self.application_name.as_deref());
        }
        if self.read_only && settings.get(READ_ONLY).is_some() {
            settings.set(READ_ONLY, Some("on"));
        }
        if settings != *self.settings {
            self.settings = settings.into();
        }
        self.stuck = self.unknown || !self.settings.portable();
        if !self.stuck {
            pins.remove(PinReason::Set);
        }
    }

    /// A transaction is over that has left nothing.
    pub fn rest(&mut self) {
        (self.unpins, self.fresh, self.failed, self.discards) = (false, Pins::NONE, false, false);
        self.kept = false;
    }

    /// The server could not be asked in time, about these pins among others: it is to be asked again when the next
    /// transaction is over. False when that has been tried often enough: what it has stays unknown.
    pub fn ask_again(&mut self, pins: Pins) -> bool {
        self.unheard = self.unheard.saturating_add(1);
        self.postponed = self.unheard <= MAX_UNHEARD;
        if self.postponed {
            self.fresh.join(pins);
        }
        self.postponed
    }

    /// The server could not be asked: what it has stays unknown.
    pub fn unanswered(&mut self) {
        self.unknown |= !std::mem::take(&mut self.touched).is_empty();
        self.stuck |= self.unknown;
    }

    /// The server is lost, and with it what is not in the settings. `undone`: its transaction was, too.
    pub fn lose(&mut self, pins: &mut Pins, undone: bool) {
        if undone && !self.kept {
            // What the transaction itself brought about never was.
            for reason in [PinReason::Set, PinReason::Temp, PinReason::HeldCursor, PinReason::Listen] {
                let older =
                    reason == PinReason::Set && self.stuck || reason == PinReason::Listen && !self.channels.is_empty();
                if self.fresh.has(reason) && !older {
                    pins.remove(reason);
                }
            }
        }
        if self.stuck {
            let (told, channels) = (std::mem::take(&mut self.told), std::mem::take(&mut self.channels));
            let (read_only, number) = (self.read_only, self.number);
            *self = Self { told, channels, read_only, number, ..Self::new(self.application_name.as_deref()) };
        }
        self.touched = Touched::default();
        (self.stuck, self.unknown) = (false, false);
        (self.unpins, self.discards, self.failed, self.due) = (false, false, false, false);
        (self.fresh, self.asked, self.listened, self.kept) = (Pins::NONE, None, false, false);
        self.postponed = false;
    }

    /// The client was told that it listens, or that it does no longer, and the server has not told yet to what.
    pub fn asks_channels(&self) -> bool {
        let asks = matches!(self.asked, Some(Asked::Question { pins, .. }) if pins.has(PinReason::Listen));
        self.listened && (asks || self.kept) || asks && !self.channels.is_empty()
    }

    /// Are all channels known, by names that any server understands?
    pub fn knows_channels(&self) -> bool {
        !self.channels.is_empty() && !self.channels.iter().any(|name| name.contains(char::REPLACEMENT_CHARACTER))
    }

    /// The server that listened for the session is lost: the statements that make another one listen.
    pub fn listen_again(&self) -> String {
        let quoted = |channel: &String| format!("LISTEN \"{}\"", channel.replace('"', "\"\""));
        self.channels.iter().map(quoted).collect::<Vec<_>>().join(";")
    }

    /// The server reports this name of the application. What the client is told in its place, when that is another: the
    /// server falls back to the name of the proxy's login, and the client to that of its own.
    pub fn name_told(&self, value: &str, server: &impl Reports) -> Option<&str> {
        let own = self.application_name.as_deref()?;
        let (login, _) = server.reported(APPLICATION_NAME)?;
        (self.touched.renamed_back && value == login).then_some(own)
    }

    /// The name of the application of the server's login and the client's own, when that was taken back and the server
    /// has the first.
    pub fn name_taken_back<'a>(&'a self, server: &'a impl Reports) -> Option<(&'a str, &'a str)> {
        if !self.touched.renamed_back {
            return None;
        }
        let (login, now) = server.reported(APPLICATION_NAME)?;
        self.application_name.as_deref().filter(|_| login == now).map(|own| (login, own))
    }

    /// The name of the application as the client was told it last. `None` when it has none of its own.
    pub fn name_known(&self) -> Option<&str> {
        let own = self.application_name.as_deref()?;
        let told = self.told.iter().find(|(n, _)| n == APPLICATION_NAME);
        Some(told.map_or(own, |(_, value)| value.as_str()))
    }

    /// The server has reported a setting, and the client has read it.
    pub fn tell(&mut self, name: String, value: String) {
        self.told.retain(|(n, _)| *n != name);
        self.told.push((name, value));
    }

    /// The session begins with `new` settings instead of `old` ones: what the client has to be told, which are those
    /// that it has not set itself.
    pub fn rebase(&mut self, old: &[(String, String)], new: &[(String, String)]) -> Vec<(String, String)> {
        let mut changed = Vec::new();
        for (name, value) in new {
            let lower = name.to_ascii_lowercase();
            let fixed = matches!(lower.as_str(), "is_superuser" | "in_hot_standby" | "session_authorization");
            if fixed || self.settings.get(&lower).is_some() {
                continue;
            }
            let believed = self.told.iter().chain(old).find(|(n, _)| n == name);
            if believed.is_none_or(|(_, v)| v != value) {
                changed.push((name.clone(), value.clone()));
            }
            self.told.retain(|(n, _)| n != name);
        }
        changed
    }

    /// What the client was told and is no longer so: `base` is what it was told at login.
    pub fn corrections(&mut self, base: &[(String, String)]) -> Vec<(String, String)> {
        let mut corrected = Vec::new();
        for (name, value) in &mut self.told {
            let lower = name.to_ascii_lowercase();
            if matches!(lower.as_str(), "is_superuser" | "in_hot_standby") {
                continue;
            }
            let login = || base.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
            let Some(now) = self.settings.get(&lower).or_else(login) else { continue };
            if now != value {
                now.clone_into(value);
                corrected.push((name.clone(), value.clone()));
            }
        }
        let own = self.application_name.as_deref();
        self.told.retain(|(n, v)| match own {
            Some(own) if n == APPLICATION_NAME => v != own,
            _ => !base.iter().any(|(bn, bv)| bn == n && bv == v),
        });
        corrected
    }
}

#[cfg(test)]
#[path = "tracking_tests.rs"]
mod tests;
