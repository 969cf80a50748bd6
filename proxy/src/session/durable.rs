//! What this session's commits wait for: `pgtenure.durability`, `synchronous_commit`, and what the operator allows.
//!
//! `pgtenure.durability` is a custom setting of PostgreSQL's, kept by the server like those that reads go by. When a
//! transaction that has set it is over, the session's `synchronous_commit` becomes what it stands for. In a block it must
//! hold for that block's own COMMIT, so a query of ours behind the statement has the server set the other for the
//! transaction: ROLLBACK, savepoints and the end of SET LOCAL undo both alike. Of the two settings the one that was set
//! last counts.

use crate::config::durability::resolve;
use crate::pool::Identity;
use crate::route::durability::{COMMIT, Durability, NAME, Rule};
use crate::route::promise;
use crate::session::assigned::{Scope, assigned};
use crate::session::batch::Unit;
use crate::session::client::Session;
use crate::session::durability::{self, Due, Sets, level};
use crate::session::lost;
use crate::session::relay::Hidden;
use crate::session::settings::Settings;
use crate::session::tracking::Asked;
use crate::wire::backend::{self, TxStatus};
use crate::wire::durability_error::DurabilityError;
use crate::wire::error_response::ClientError;
use crate::worker::Worker;
use cluster::{Role, Term};
use std::sync::Arc;

/// What a client is told whose setting has no effect.
const KEPT: &str = "Commits of this session wait for what the cluster's mode says.";

/// What the configuration lets a session have.
fn rule(w: &Worker, identity: &Identity) -> Rule {
    let config = w.config();
    resolve(&config.durability, &config.pools, &identity.database, &identity.user)
}

/// May `setting` be given this value?
fn judge(setting: &'static str, value: &str, rule: Rule, strict: bool) -> Result<(), DurabilityError> {
    if value.is_empty() {
        return Ok(());
    }
    match Durability::of_setting(setting, value) {
        Some(asked) if !rule.permits(asked, strict) => {
            Err(DurabilityError::Below { setting, asked, least: rule.least(strict), strict })
        }
        None if setting == NAME => Err(DurabilityError::Invalid { value: value.to_owned() }),
        // What it cannot be, the server says.
        Some(_) | None => Ok(()),
    }
}

/// May a text set `name`?
fn sets(sql: &[u8], name: &str) -> bool {
    let holds = |what: &str| sql.windows(what.len()).any(|w| w.eq_ignore_ascii_case(what.as_bytes()));
    holds(name) && (assigned(sql, name).is_some() || holds("set_config"))
}

/// Does a text have more than one statement? A semicolon in a literal counts as if it ended one.
fn several(sql: &[u8]) -> bool {
    sql.split(|b| *b == b';').filter(|part| !part.trim_ascii().is_empty()).count() > 1
}

/// What servers are logged in with beyond the client's own parameters, so that its commits wait for what it asks, or for
/// what the configuration says.
///
/// # Errors
/// It asks for what it may not have.
pub(super) fn at_login(w: &Worker, identity: &Identity) -> Result<Vec<(String, String)>, ClientError> {
    let (rule, view) = (rule(w, identity), w.view.borrow());
    let strict = view.topology.semi_sync;
    // Nothing is judged by a mode that is not known.
    let known = view.topology.term != Term(0);
    let (mut own, mut commit) = (None, None);
    let mut take = |name: &str, value: &str| {
        let setting = if name.eq_ignore_ascii_case(NAME) {
            NAME
        } else if name.eq_ignore_ascii_case(COMMIT) {
            COMMIT
        } else {
            return Ok(());
        };
        if known {
            judge(setting, value, rule, strict)?;
        }
        *(if setting == NAME { &mut own } else { &mut commit }) = Durability::of_setting(setting, value);
        Ok(())
    };
    let plain = |name: &str| !name.eq_ignore_ascii_case("options");
    for (_, value) in identity.parameters.iter().filter(|(name, _)| !plain(name)) {
        promise::options(value)
            .iter()
            .try_for_each(|(name, value)| take(name, value))
            .map_err(ClientError::Durability)?;
    }
    for (name, value) in identity.parameters.iter().filter(|(name, _)| plain(name)) {
        take(name, value).map_err(ClientError::Durability)?;
    }
    let level = own.or(rule.level.filter(|_| commit.is_none()));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Ok(level.map_or(Vec::new(), |l| vec![pair(NAME, l.as_str()), pair(COMMIT, l.commit())]))
}

impl Session {
    fn is_strict(&self) -> bool {
        self.w.view.borrow().topology.semi_sync
    }

    /// What a unit's own comment asks for.
    pub(super) fn judge_hint(&self, value: &str) -> Result<Durability, DurabilityError> {
        judge(NAME, value, rule(&self.w, &self.identity), self.is_strict())?;
        Durability::of(value).ok_or_else(|| DurabilityError::Invalid { value: value.to_owned() })
    }

    /// Why a unit may not set what it sets, as far as its text tells.
    pub(super) fn objection_to_durability(&self, input: &[u8], unit: &Unit) -> Option<DurabilityError> {
        let mut found = None;
        let mut among = unit.statements > 1 || !unit.complete;
        let mut named = false;
        self.each_text(input, unit, |sql| {
            among |= several(sql);
            named |= sets(sql, NAME);
            for setting in [NAME, COMMIT] {
                let value = assigned(sql, setting).and_then(|a| a.value);
                let Some(value) = value.filter(|_| found.is_none()) else { continue };
                let rule = rule(&self.w, &self.identity);
                found = judge(setting, &String::from_utf8_lossy(value), rule, self.is_strict()).err();
            }
        });
        let commits = !unit.complete || unit.record.may_commit(self.relay.status);
        found.or((named && among && commits).then_some(DurabilityError::Among))
    }

    /// A unit goes to the server: what it sets, and what that waits for which it commits.
    pub(super) fn note_levels(&mut self, input: &[u8], unit: &Unit) -> Sets {
        let known = self.server.as_ref().map(|server| self.known_durability(&server.meta));
        let known = known.unwrap_or((None, Durability::SemiSync));
        let mut sets = self.durability.note(input, known, unit.binds_named);
        if self.durability.is_guessed() && (unit.binds_named || unit.tail_left > 0) {
            // What its bytes do not show.
            let mut ends = unit.tail_left > 0;
            self.each_text(input, unit, |sql| ends |= durability::ends(sql).is_some());
            if ends {
                let after = self.durability.end(known);
                sets.waits = if unit.record.is_commit() { sets.waits } else { sets.waits.and(after) };
            }
        }
        sets
    }

    /// A unit goes to the server: may it set what is to hold for the block that it is in, or for the session? True when
    /// setting is all that it does, so that it commits nothing.
    pub(super) fn note_durability(&mut self, input: &[u8], unit: &Unit) -> bool {
        let (mut label, mut commit) = (false, false);
        let (mut alone, mut stays) = (unit.statements <= 1, false);
        self.each_text(input, unit, |sql| {
            alone &= !several(sql);
            label |= sets(sql, NAME);
            commit |= sets(sql, COMMIT) && assigned(sql, COMMIT).is_none();
            let for_session = |name| assigned(sql, name).map_or_else(|| sets(sql, name), |a| a.scope == Scope::Session);
            stays |= [NAME, COMMIT].into_iter().any(for_session);
        });
        if stays {
            self.keep_hinted();
        }
        self.durability.named |= label;
        if label {
            self.durability.due = Some(Due::Set);
        } else if commit {
            self.durability.due.get_or_insert(Due::Ask);
        }
        label && alone
    }

    /// A unit goes to the server that may undo a part of its transaction.
    pub(super) fn note_undone(&mut self, input: &[u8], unit: &Unit) {
        let word = b"rollback";
        let mut back = false;
        self.each_text(input, unit, |sql| back |= sql.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word)));
        if back {
            self.durability.undone();
        }
    }

    /// Put in force what the open block has set. True when that takes an answer of the server first.
    pub(super) fn put_durability_in_force(&mut self) -> bool {
        let Some(due) = self.durability.due.filter(|_| self.relay.open.is_none()) else { return false };
        if self.relay.busy() {
            return true;
        }
        if self.relay.status != TxStatus::Block {
            self.durability.due = None;
            return false;
        }
        let (rule, strict) = (rule(&self.w, &self.identity), self.is_strict());
        let is = match due {
            Due::Set => Durability::sql(|level| rule.permits(level, strict)),
            Due::Ask => format!("pg_catalog.current_setting('{COMMIT}')"),
        };
        let label = if due == Due::Set { "pg_catalog.current_setting('pgtenure.durability',true)" } else { "NULL" };
        self.tracking.asked = Some(Asked::Durability);
        self.send_hidden(&format!("SELECT {label},pg_catalog.set_config('{COMMIT}',{is},true)"));
        true
    }

    /// The server has said what the open block's commit waits for.
    pub(super) fn durability_told(&mut self, answer: &Hidden) {
        let (rule, strict) = (rule(&self.w, &self.identity), self.is_strict());
        let judged = match (&answer.error, answer.rows.as_slice()) {
            (None, [row]) => match row.as_slice() {
                [label, Some(commit)] => judge(NAME, label.as_deref().unwrap_or_default(), rule, strict)
                    .and_then(|()| judge(COMMIT, commit, rule, strict))
                    .map(|()| level(commit)),
                _ => Err(DurabilityError::NotSet { why: "nothing".to_owned() }),
            },
            (Some(frame), _) => {
                let why = String::from_utf8_lossy(backend::fields(frame).message).into_owned();
                Err(DurabilityError::NotSet { why })
            }
            (None, _) => Err(DurabilityError::NotSet { why: "nothing".to_owned() }),
        };
        match judged {
            Ok(level) => self.durability.told(level),
            Err(error) => lost::fail_block(self, ClientError::Durability(error)),
        }
    }

    /// The session's settings are known again: its `synchronous_commit` becomes what it chose, or what it must have.
    pub(super) fn choose_durability(&mut self) {
        let label = self.tracking.settings.get(NAME).filter(|value| !value.is_empty());
        let chosen = label.and_then(Durability::of);
        let invalid = label.filter(|_| chosen.is_none()).map(str::to_owned);
        let mut commit = self.tracking.settings.get(COMMIT).and_then(Durability::of_commit);
        let (named, strict) = (self.durability.named, self.is_strict());
        if named || chosen != self.durability.chosen {
            self.durability.chosen = chosen;
            if let Some(value) = invalid {
                self.warn_of_durability(&DurabilityError::Invalid { value });
            }
            commit = chosen;
        } else if self.commits_as_hinted() || commit.is_none_or(|level| level >= Durability::of_mode(strict)) {
            // What a comment asks for was judged when it came, and the session's own is kept meanwhile.
            return;
        }
        let rule = rule(&self.w, &self.identity);
        if let Some(asked) = commit.filter(|level| !rule.permits(*level, strict)) {
            let setting = if named { NAME } else { COMMIT };
            self.warn_of_durability(&DurabilityError::Below { setting, asked, least: rule.least(strict), strict });
            commit = None;
        }
        self.set_commit(commit);
    }

    fn warn_of_durability(&mut self, error: &DurabilityError) {
        let text = error.report().message;
        self.to_client.append(|out| backend::write_warning(out, &text, KEPT));
    }

    fn set_commit(&mut self, level: Option<Durability>) {
        let value = level.map(Durability::commit);
        if self.tracking.settings.get(COMMIT) != value {
            Settings::set(Arc::make_mut(&mut self.tracking.settings), COMMIT, value);
            self.tracking.due = true;
        }
    }

    /// A primary may begin its sessions with less than this one may have, by ALTER ROLE or ALTER DATABASE.
    pub(super) fn raise_durability(&mut self) {
        let Some(server) = self.server.as_ref().filter(|s| s.meta.role == Role::Primary) else { return };
        let begins = &*server.meta.defaults.synchronous_commit;
        if matches!(begins, "on" | "remote_apply" | "") || self.tracking.settings.get(COMMIT).is_some() {
            return;
        }
        let (begins, strict) = (level(begins), self.is_strict());
        if begins < Durability::of_mode(strict) {
            let rule = rule(&self.w, &self.identity);
            if !rule.permits(begins, strict) {
                self.set_commit(Some(rule.least(strict)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_sets_is_told_from_one_that_shows() {
        for (sql, want) in [
            ("set pgtenure.durability = 'x'", true),
            ("reset pgtenure.durability", true),
            ("select set_config('pgtenure.durability', $1, true)", true),
            ("show pgtenure.durability", false),
            ("select current_setting('pgtenure.durability')", false),
            ("set work_mem = 1", false),
        ] {
            assert_eq!(sets(sql.as_bytes(), NAME), want, "{sql}");
        }
        assert!(several(b"begin; set local x = 1") && !several(b"set local x = 1; ") && !several(b""));
    }

    #[test]
    fn a_value_is_judged_by_either_name() {
        let rule = Rule::default();
        for (setting, value, strict, good) in [
            (NAME, "", true, true),
            (NAME, "semi_sync", true, true),
            (NAME, "Local", true, false),
            (NAME, "local", false, true),
            (NAME, "on", true, false),
            (COMMIT, "remote_write", true, false),
            (COMMIT, "TRUE", true, true),
            (COMMIT, "no", false, false),
            (COMMIT, "nonsense", true, true),
        ] {
            assert_eq!(judge(setting, value, rule, strict).is_ok(), good, "{setting} {value} {strict}");
        }
    }
}
