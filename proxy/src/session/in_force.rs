//! SHOW of the settings that reads and commits go by, for a session that has not set them: what holds for it then.
//!
//! The server is given these values only for the statement that asks, and made to forget them before the next one: what it
//! is found to have at the end of a transaction is what the client has set.

use crate::route::After;
use crate::route::durability::{COMMIT, Durability, NAME};
use crate::route::promise::{self, AFTER, PREFIX, SETTINGS};
use crate::session::batch::Unit;
use crate::session::client::Session;
use crate::session::durability::level;
use crate::session::sets_after::{Position, SetsAfter};
use crate::session::settings::literal;
use crate::session::shown::find;
use crate::sql::{PinReason, only_sets};
use crate::wire::backend::TxStatus;
use cluster::Role;
use cluster::config::Span;

/// May a text read a setting?
fn asks(sql: &[u8]) -> bool {
    find(sql, b"show") || find(sql, b"current_setting")
}

/// The settings that a text may ask for, as bits of their places in [`SETTINGS`].
pub(super) fn asked(sql: &[u8]) -> u32 {
    if !asks(sql) {
        return 0;
    }
    let named = SETTINGS.iter().enumerate().filter(|(_, name)| find(sql, name.as_bytes()));
    named.fold(0, |bits, (place, _)| bits | 1 << place)
}

/// May a text reset all settings?
fn resets_all(sql: &[u8]) -> bool {
    find(sql, b"all") && (find(sql, b"reset") || find(sql, b"discard"))
}

/// The settings that a text may set, likewise.
fn set(sql: &[u8]) -> u32 {
    if asked(sql) != 0 && !find(sql, b"set ") && !find(sql, b"set_config") {
        return 0;
    }
    let named = SETTINGS.iter().enumerate().filter(|(_, name)| find(sql, name.as_bytes()));
    named.fold(0, |bits, (place, _)| bits | 1 << place)
}

/// Is a text nothing but one SHOW, SET or RESET of a setting of ours?
fn is_own(sql: &[u8]) -> bool {
    let sql = sql.trim_ascii();
    let sql = sql.strip_suffix(b";").unwrap_or(sql);
    let mut words = sql.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let is = |word: &[u8], of: &[&str]| of.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(word));
    let verb = words.next().unwrap_or_default();
    if sql.contains(&b';') || !is(verb, &["show", "set", "reset"]) {
        return false;
    }
    let first = words.next().unwrap_or_default();
    let scoped = is(verb, &["set"]) && is(first, &["session", "local"]);
    let name = if scoped { words.next().unwrap_or_default() } else { first };
    name.get(..PREFIX.len()).is_some_and(|prefix| is(prefix, &[PREFIX]))
}

impl Session {
    /// Is setting or showing one of our settings all that each text of a unit does?
    pub(super) fn is_own(&self, input: &[u8], unit: &Unit) -> bool {
        let mut own = true;
        self.each_text(input, unit, |sql| own &= sql.is_empty() || is_own(sql));
        own
    }

    /// What becomes of the position that reads must have seen, for the unit at the head of the inbox.
    pub(super) fn position(&self, input: &[u8], unit: &Unit) -> Position {
        let changes = unit.pins.has(PinReason::Set) || unit.discards;
        if !changes && !unit.ours || unit.tail_left > 0 {
            return Position::Kept;
        }
        let (mut any, mut only, mut names) = (false, true, false);
        self.each_bound_text(input, unit, |sql| {
            if sql.trim_ascii().is_empty() {
                return;
            }
            any = true;
            only &= only_sets(sql);
            names |= find(sql, b"pgtenure") || resets_all(sql);
        });
        if any && only && changes {
            return Position::Is(None);
        }
        if !names {
            return Position::Kept;
        }
        let mut sets = SetsAfter::new(self.after_of_startup());
        self.each_bound_text(input, unit, |sql| sets.add(sql));
        sets.position(self.relay.status != TxStatus::Idle)
    }

    /// The position of the startup packet, to which RESET goes back.
    pub(super) fn after_of_startup(&self) -> Option<After> {
        let startup = promise::of_startup(&self.identity.parameters);
        startup.iter().rev().find(|(name, _)| name == AFTER).and_then(|(_, value)| promise::token(AFTER, value).ok())
    }

    /// A unit goes to the server: which settings does its transaction have of its own?
    pub(super) fn note_own_set(&mut self, input: &[u8], unit: &Unit) {
        let mut bits = 0;
        self.each_text(input, unit, |sql| bits |= set(sql));
        self.own_set |= bits;
    }

    /// Append the statements that give the server those of the settings that the session has not set.
    pub(super) fn give_settings_in_force(&mut self, sql: &mut String, asked: u32) {
        let in_block = self.relay.status != TxStatus::Idle;
        let mut shown = Vec::new();
        for (place, name) in SETTINGS.iter().enumerate() {
            let bit = 1 << place;
            let doubtful = self.tracking.touched.every || self.tracking.stuck || self.own_set & bit != 0;
            if asked & bit == 0 || !doubtful && self.has_set(name) {
                continue;
            }
            let value = self.in_force(name);
            if doubtful {
                // What has run may have set it, for its transaction or by a name that no text tells.
                sql.push_str("SELECT pg_catalog.set_config(");
                literal(sql, name);
                sql.push(',');
                literal(sql, &value);
                sql.push_str(if in_block { ",true)" } else { ",false)" });
                sql.push_str(" WHERE coalesce(pg_catalog.current_setting(");
                literal(sql, name);
                sql.push_str(",true),'')='';");
                continue;
            }
            // No query: a block's modes may still be set behind it.
            sql.push_str(if in_block { "SET LOCAL " } else { "SET " });
            sql.push_str(name);
            sql.push_str(" TO ");
            literal(sql, &value);
            sql.push(';');
            if !in_block {
                shown.push((*name, value));
            }
        }
        if let Some(server) = &mut self.server {
            server.meta.shown.append(&mut shown);
        }
    }

    /// The server has a value of the client's.
    fn has_set(&self, name: &str) -> bool {
        let known = self.tracking.settings.get(name).is_some_and(|value| !value.is_empty());
        known || promise::of_startup(&self.identity.parameters).iter().any(|(n, _)| n == name)
    }

    fn in_force(&mut self, name: &str) -> String {
        let promise = self.promise();
        match name {
            "pgtenure.consistency" => promise.consistency.as_str().to_owned(),
            "pgtenure.read_from" => promise.read_from.as_str().to_owned(),
            "pgtenure.max_replay_lag" => Span(promise.max_replay_lag).to_string(),
            "pgtenure.standby_wait" => Span(promise.standby_wait).to_string(),
            "pgtenure.no_standby" => promise.no_standby.as_str().to_owned(),
            "pgtenure.explain_route" => if promise.explain_route { "on" } else { "off" }.to_owned(),
            NAME => self.durability_in_force().as_str().to_owned(),
            // A position that reads come after is the session's alone.
            _ => String::new(),
        }
    }

    pub(super) fn durability_in_force(&self) -> Durability {
        let mode = || Durability::of_mode(self.w.view.borrow().topology.semi_sync);
        let begins = || {
            let primary = self.server.as_ref().filter(|server| server.meta.role == Role::Primary)?;
            Some(&*primary.meta.defaults.synchronous_commit).filter(|value| !value.is_empty()).map(level)
        };
        self.tracking.settings.get(COMMIT).map(level).or_else(begins).unwrap_or_else(mode)
    }

    /// Has the server values that it was only given for the client to see, and that are in the way of the next unit? A
    /// block could undo that they are taken back, and one that has failed refuses it.
    pub(super) fn shows(&self) -> bool {
        let begins = self.relay.open.is_none() && self.relay.status == TxStatus::Idle && !self.told;
        begins && self.server.as_ref().is_some_and(|server| !server.meta.shown.is_empty())
    }

    /// The statements that take them back; what the client has set since stays.
    pub(super) fn forget_shown(&self) -> String {
        let Some(server) = &self.server else { return String::new() };
        let mut sql = String::new();
        for name in SETTINGS {
            if server.meta.given.get(name).is_none_or(str::is_empty) {
                sql.push_str("RESET ");
                sql.push_str(name);
                sql.push(';');
            }
        }
        sql
    }
}

/// Is a row of an answer about settings a value that the server was only given for the client to see? A client that has
/// set the same has it either way.
pub(super) fn is_shown(row: &[Option<String>], shown: &[(&str, String)]) -> bool {
    let [Some(kind), Some(name), Some(value)] = row else { return false };
    kind == "s" && shown.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && v == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_sets_or_shows_a_setting_of_ours_is_told() {
        for sql in [
            "show pgtenure.token",
            "SHOW Pgtenure.Last_Route;",
            " set pgtenure.consistency = 'bounded' ; ",
            "set\nlocal pgtenure.durability to applied",
            "SET SESSION pgtenure.consistency='x'",
            "reset pgtenure.after",
        ] {
            assert!(is_own(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "",
            "show work_mem",
            "set local",
            "set pgtenure",
            "set pgtenure.after = 'x'; delete from t",
            "set transaction read only",
            "reset all",
            "select current_setting('pgtenure.token')",
            "/* */ show pgtenure.token",
            "shows pgtenure.token",
        ] {
            assert!(!is_own(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn only_what_may_read_a_setting_asks_for_it() {
        assert_eq!(asked(b"show pgtenure.read_from"), 0b10);
        assert_eq!(
            asked(b"select current_setting('PGTENURE.consistency'), current_setting('pgtenure.read_from')"),
            0b11
        );
        assert_eq!(asked(b"set pgtenure.read_from = 'primary'"), 0);
        assert_eq!(asked(b"show pgtenure.token"), 0);
        assert_eq!(set(b"show pgtenure.read_from"), 0);
        assert_eq!(set(b"set local pgtenure.read_from = 'primary'"), 0b10);
        assert_eq!(set(b"reset pgtenure.read_from; show pgtenure.read_from"), 0b10);
    }
}
