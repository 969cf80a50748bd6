//! What a session has set, as its server would spell it, and how another server is made to have the same. Pure.
//!
//! The text of a statement only tells that settings may have changed, and which; the values come from the server once
//! the transaction is over, so that ROLLBACK, savepoints, units and spellings need no understanding here. A server
//! remembers whose settings it has: one that serves another session next is given the difference, and only that.
//!
//! Names are kept in lower case, as PostgreSQL compares them.

use crate::sql::tells;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Settings that one session may have; one that sets more stays on its server.
pub const MAX_SETTINGS: usize = 256;
/// Bytes of names and values that one session may have.
const MAX_BYTES: usize = 16 * 1024;

/// Settings of a session that it or its client has set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<Box<str>, Box<str>>);

/// Settings that a session, or the server that serves it, shares with others.
pub type Shared = Arc<Settings>;

impl Settings {
    /// The value of `name`, which is in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Box::as_ref)
    }

    /// Set, or with `None` forget, `name`, which is in lower case.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => _ = self.0.insert(name.into(), value.into()),
            None => _ = self.0.remove(name),
        }
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_ref(), v.as_ref()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Can they be given to another server? Not when they are too many, or when their bytes mean something else under
    /// another `client_encoding`.
    pub fn portable(&self) -> bool {
        let bytes: usize = self.iter().map(|(n, v)| n.len() + v.len()).sum();
        self.len() <= MAX_SETTINGS && bytes <= MAX_BYTES && self.iter().all(|(n, v)| n.is_ascii() && v.is_ascii())
    }
}

impl Settings {
    /// Tells apart the settings under which one text may be prepared to mean different things: `search_path` and the
    /// role above all, but also how literals are read. `begins` tells apart what sessions begin with, and is the key for the
    /// session's defaults.
    pub fn parse_key(&self, begins: u64) -> u64 {
        let telling = self.iter().filter(|(name, _)| tells(name));
        telling.fold(begins, |key, (name, value)| mix(mix(key, name), value))
    }
}

/// FNV-1a, of a string and its end.
pub fn mix(key: u64, text: &str) -> u64 {
    mix_bytes(key, text.as_bytes())
}

/// The same of bytes.
pub fn mix_bytes(key: u64, text: &[u8]) -> u64 {
    let byte = |key: u64, byte| (key ^ u64::from(byte) ^ 0xcbf2_9ce4_8422_2325).wrapping_mul(0x0000_0100_0000_01b3);
    text.iter().copied().chain([0]).fold(key, byte)
}

/// Tells apart what sessions begin with that decides what their texts mean: the database, the user, and the settings of
/// the startup packet.
pub fn begins<'a>(dbname: &str, user: &str, parameters: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    let telling = parameters.filter(|(name, _)| tells(&name.to_ascii_lowercase()));
    telling.fold(mix(mix(0, dbname), user), |key, (name, value)| mix(mix(key, name), value))
}

/// Does this `search_path` put new tables where only the session sees them? The schema of the user's name rarely exists.
pub fn creates_temp(search_path: &str) -> bool {
    let mut schemas = search_path.split(',').map(|name| name.trim().trim_matches('"'));
    schemas.find(|name| *name != "$user").is_some_and(|name| name.eq_ignore_ascii_case("pg_temp"))
}

/// Settings that change who the session is. They come last when they are set, and first when they are reset: what a
/// role may not set, the one before it may.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];
/// Belong to a transaction, whatever the server says of their source.
const OF_TRANSACTION: &str = "'transaction_isolation','transaction_read_only','transaction_deferrable'";

/// The statement that gives a server that has `has` the settings `wanted`; `None` when there is nothing to do.
/// `reported` tells of a setting that the server reports by itself what it was at login and what it is.
pub fn apply<'a>(
    wanted: &Settings,
    has: &Settings,
    reported: impl Fn(&str) -> Option<(&'a str, &'a str)>,
) -> Option<String> {
    let actual = |name: &str| reported(name).map_or_else(|| has.get(name), |(_, now)| Some(now));
    let mut calls: Vec<(&str, Option<&str>)> = Vec::new();
    let gone = |name: &str| {
        let back = reported(name).is_some_and(|(login, now)| login == now);
        has.get(name).is_some() && wanted.get(name).is_none() && !back
    };
    // Another identity than the login's must not stand in the way of the settings below it.
    let stranger = IDENTITY.iter().any(|name| has.get(name).is_some() && has.get(name) != wanted.get(name));
    if stranger {
        calls.extend(IDENTITY.iter().filter(|name| has.get(name).is_some()).map(|&name| (name, None)));
    }
    let plain = |name: &str| !IDENTITY.contains(&name);
    calls.extend(has.iter().filter(|(n, _)| plain(n) && gone(n)).map(|(n, _)| (n, None)));
    calls.extend(wanted.iter().filter(|(n, v)| plain(n) && actual(n) != Some(v)).map(|(n, v)| (n, Some(v))));
    // A new session's user takes away the role.
    if IDENTITY.iter().any(|name| wanted.get(name) != has.get(name)) {
        calls.extend(IDENTITY.iter().filter_map(|name| Some((*name, Some(wanted.get(name)?)))));
    }
    if calls.is_empty() {
        return None;
    }
    let mut sql = String::from("SELECT ");
    for (i, (name, value)) in calls.into_iter().enumerate() {
        if i > 0 {
            sql.push(',');
        }
        sql.push_str("pg_catalog.set_config(");
        literal(&mut sql, name);
        sql.push(',');
        match value {
            Some(value) => literal(&mut sql, value),
            None => sql.push_str("NULL"),
        }
        sql.push_str(",false)");
    }
    Some(sql)
}

/// What is left of a server's settings behind RESET ALL: who the session is.
pub fn not_reset(has: &Settings) -> Settings {
    let mut left = Settings::default();
    IDENTITY.iter().for_each(|name| left.set(name, has.get(name)));
    left
}

/// Append a string literal that reads the same whatever `standard_conforming_strings` is.
pub fn literal(out: &mut String, text: &str) {
    out.push_str("E'");
    for c in text.chars() {
        if matches!(c, '\'' | '\\') {
            out.push(c);
        }
        out.push(c);
    }
    out.push('\'');
}

/// The part of a question to the server that asks for settings, as rows of kind `s`, name and value. With `every` it
/// asks for all that the session has set; custom ones, which the server does not list, by name like `names`.
pub fn question<'a>(sql: &mut String, every: bool, names: impl Iterator<Item = &'a str>) {
    if every {
        sql.push_str(
            "SELECT 's',pg_catalog.lower(name),setting FROM pg_catalog.pg_settings \
             WHERE source='session' AND name NOT IN (",
        );
        sql.push_str(OF_TRANSACTION);
        sql.push(')');
    }
    let names: Vec<&str> = names.filter(|n| !every || n.contains('.') || IDENTITY.contains(n)).collect();
    let identity = IDENTITY.iter().filter(|n| every || names.contains(*n));
    for name in identity {
        union(sql);
        // A session without a role of its own has the role that its user or database is given, if any.
        let value = match *name {
            "role" => {
                "CASE WHEN pg_catalog.current_setting('role')='none' AND NOT EXISTS \
                 (SELECT FROM pg_catalog.pg_db_role_setting d, pg_catalog.unnest(d.setconfig) c WHERE c LIKE 'role=%') \
                 THEN NULL ELSE pg_catalog.current_setting('role') END"
            }
            _ => "pg_catalog.current_setting('session_authorization')",
        };
        sql.push_str("SELECT 's','");
        sql.push_str(name);
        sql.push_str("',");
        sql.push_str(value);
    }
    let plain: Vec<&str> = names.into_iter().filter(|n| !IDENTITY.contains(n)).collect();
    if plain.is_empty() {
        return;
    }
    union(sql);
    sql.push_str("SELECT 's',n,pg_catalog.current_setting(n,true) FROM pg_catalog.unnest(ARRAY[");
    for (i, name) in plain.into_iter().enumerate() {
        if i > 0 {
            sql.push(',');
        }
        literal(sql, name);
    }
    sql.push_str("]::pg_catalog.text[]) AS asked(n)");
}

/// Put `UNION ALL` before a further part of a question.
pub fn union(sql: &mut String) {
    if !sql.is_empty() {
        sql.push_str(" UNION ALL ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> Settings {
        let mut map = Settings::default();
        entries.iter().for_each(|(n, v)| map.set(n, Some(v)));
        map
    }

    fn check(wanted: &[(&str, &str)], has: &[(&str, &str)], want: &[&str]) {
        let sql = apply(&map(wanted), &map(has), |_| None);
        let calls = want.iter().map(|c| format!("pg_catalog.set_config({c},false)")).collect::<Vec<_>>().join(",");
        assert_eq!(sql, (!want.is_empty()).then(|| format!("SELECT {calls}")), "{wanted:?} over {has:?}");
    }

    #[test]
    fn only_the_difference_is_applied() {
        check(&[], &[], &[]);
        check(&[("a", "1")], &[("a", "1")], &[]);
        check(&[("a", "1")], &[("a", "2"), ("b", "3")], &["E'b',NULL", "E'a',E'1'"]);
        check(&[("a", "it's \\")], &[], &["E'a',E'it''s \\\\'"]);
    }

    #[test]
    fn who_the_session_is_comes_first_when_reset_and_last_when_set() {
        check(&[("role", "r"), ("x", "1")], &[], &["E'x',E'1'", "E'role',E'r'"]);
        check(&[("x", "1")], &[("role", "r")], &["E'role',NULL", "E'x',E'1'"]);
        check(
            &[("role", "r"), ("session_authorization", "a"), ("x", "1")],
            &[("session_authorization", "b")],
            &["E'session_authorization',NULL", "E'x',E'1'", "E'session_authorization',E'a'", "E'role',E'r'"],
        );
        check(
            &[("role", "r"), ("session_authorization", "a")],
            &[("role", "q"), ("session_authorization", "a")],
            &["E'session_authorization',NULL", "E'role',NULL", "E'session_authorization',E'a'", "E'role',E'r'"],
        );
    }

    #[test]
    fn a_role_is_set_again_behind_the_session_user_that_takes_it_away() {
        let both: &[_] = &[("role", "r"), ("session_authorization", "a")];
        check(both, &[("role", "r")], &["E'session_authorization',E'a'", "E'role',E'r'"]);
        check(both, &[("session_authorization", "a")], &["E'session_authorization',E'a'", "E'role',E'r'"]);
        check(both, both, &[]);
    }

    #[test]
    fn what_the_server_reports_is_believed() {
        let reported = |name: &str| match name {
            "timezone" => Some(("UTC", "UTC")),
            "datestyle" => Some(("ISO, MDY", "SQL, DMY")),
            _ => None,
        };
        assert_eq!(apply(&map(&[("timezone", "UTC")]), &map(&[]), reported), None);
        assert_eq!(apply(&map(&[]), &map(&[("timezone", "UTC")]), reported), None);
        let sql = apply(&map(&[]), &map(&[("datestyle", "SQL, DMY")]), reported);
        assert_eq!(sql.as_deref(), Some("SELECT pg_catalog.set_config(E'datestyle',NULL,false)"));
    }

    #[test]
    fn a_text_is_shared_by_those_who_read_it_alike() {
        let key = |entries: &[(&str, &str)]| map(entries).parse_key(0);
        assert_eq!(key(&[]), 0);
        assert_eq!(key(&[("application_name", "x"), ("work_mem", "1MB"), ("app.user", "7")]), 0);
        assert_ne!(key(&[("search_path", "a")]), 0);
        assert_ne!(key(&[("search_path", "a")]), key(&[("search_path", "b")]));
        assert_ne!(key(&[("role", "a")]), key(&[("datestyle", "a")]));
    }

    #[test]
    fn a_text_is_shared_only_by_those_who_begin_alike() {
        let of = |dbname, user, parameters: &[(&'static str, &'static str)]| {
            map(&[("role", "r")]).parse_key(begins(dbname, user, parameters.iter().copied()))
        };
        let one = of("a", "u", &[("search_path", "x")]);
        assert_eq!(of("a", "u", &[("search_path", "x"), ("Work_Mem", "1MB")]), one);
        for other in [of("b", "u", &[("search_path", "x")]), of("a", "v", &[("search_path", "x")]), of("a", "u", &[])] {
            assert_ne!(other, one);
        }
    }

    #[test]
    fn only_a_path_that_begins_with_the_temporary_schema_makes_temporary_tables() {
        for (path, temp) in [
            ("pg_temp", true),
            ("pg_temp, public", true),
            ("\"PG_TEMP\",x", true),
            ("\"$user\", pg_temp", true),
            ("\"$user\", public", false),
            ("admin, pg_temp", false),
            ("", false),
        ] {
            assert_eq!(creates_temp(path), temp, "{path}");
        }
    }

    #[test]
    fn what_has_no_meaning_elsewhere_is_not_portable() {
        assert!(map(&[("a", "1")]).portable());
        assert!(!map(&[("a", "é")]).portable());
        assert!(!map(&[("a", &"x".repeat(MAX_BYTES))]).portable());
        let mut many = Settings::default();
        (0..=MAX_SETTINGS).for_each(|i| many.set(&format!("a.x{i}"), Some("1")));
        assert!(!many.portable());
    }

    #[test]
    fn a_question_names_what_the_server_does_not_list() {
        let mut sql = String::new();
        question(&mut sql, true, ["app.x", "work_mem"].into_iter());
        assert!(sql.contains("E'app.x'") && sql.contains("'role'") && !sql.contains("work_mem"), "{sql}");
        sql.clear();
        question(&mut sql, false, ["work_mem"].into_iter());
        assert!(sql.starts_with("SELECT 's',n,") && sql.contains("E'work_mem'") && !sql.contains("role"), "{sql}");
    }
}
