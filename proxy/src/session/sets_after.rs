//! What a unit does to the position that its reads must have seen (`pgtenure.after`): which of its reads come before it is
//! set, and which behind. Pure.
//!
//! Which value is in force when a statement runs the server tells only afterwards. So whatever may be holds.

use crate::route::After;
use crate::route::promise::{self, AFTER};
use crate::session::assigned::{Scope, Use, is_spelled_otherwise, names, uses};
use crate::sql::{first_words, only_configures, statements};

/// What becomes of the position that reads must have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The unit is held to the one in force.
    Kept,
    /// It is held to this one, which it sets before it reads anything; to none where it reads nothing, or takes it away.
    Is(Option<After>),
    /// It sets this one, and reads while the one in force may be so still, or again.
    Also(After),
    /// It sets one that its text does not show, and reads.
    Hidden,
}

/// What the texts of a unit do, one by one.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetsAfter {
    /// The position that the session began with, to which RESET goes back.
    startup: Option<After>,
    /// It is set at all.
    sets: bool,
    /// It is set to what no text shows.
    hides: bool,
    /// It is set for a transaction only.
    local: bool,
    /// Something is read.
    reads: bool,
    /// What was in force before the unit may be so
    old: bool,
    /// while something is read.
    reads_old: bool,
    /// The latest of all that are named.
    named: Option<After>,
}

impl SetsAfter {
    pub(super) fn new(startup: Option<After>) -> Self {
        let (sets, hides, local, reads, reads_old) = (false, false, false, false, false);
        Self { startup, sets, hides, local, reads, old: true, reads_old, named: None }
    }

    /// The next text. What an EXECUTE runs comes behind it, where that is all of its text; behind others it does so too late.
    pub(super) fn add(&mut self, sql: &[u8]) {
        let all = || statements(sql).filter(|one| !one.trim_ascii().is_empty());
        let several = all().nth(1).is_some();
        all().for_each(|one| self.add_statement(one, several));
    }

    fn add_statement(&mut self, sql: &[u8], several: bool) {
        let [verb, second] = first_words(sql);
        if !only_configures(sql) && (several || verb != b"execute") {
            self.reads = true;
            self.reads_old |= self.old;
        }
        // These run what they say only later, or unseen.
        let kept = [&b"prepare"[..], b"create", b"alter", b"do"].contains(&verb.as_slice());
        for how in uses(sql, AFTER) {
            match how {
                Use::Names => {}
                Use::Hides => self.hide(kept),
                Use::Gives(given) => {
                    self.local |= given.scope == Scope::Transaction;
                    self.give(given.value);
                }
            }
        }
        let may_set = matches!(verb.as_slice(), b"set" | b"reset") || names(sql, b"set_config");
        if may_set && is_spelled_otherwise(sql, AFTER) {
            self.hide(kept);
        }
        match verb.as_slice() {
            b"reset" | b"discard" if second == b"all" => self.give(None),
            b"commit" | b"end" => self.old |= self.local,
            b"prepare" if second == b"transaction" => self.old |= self.local,
            b"rollback" | b"abort" => self.old = true,
            _ => {}
        }
    }

    /// It is set to what is not known, unless that is only kept.
    fn hide(&mut self, kept: bool) {
        (self.sets, self.hides) = (self.sets || !kept, self.hides || !kept);
    }

    /// It is set to this; `None`: to what the session began with.
    fn give(&mut self, value: Option<&[u8]>) {
        (self.sets, self.old) = (true, false);
        let token = match value {
            None => self.startup,
            Some(value) => promise::token(AFTER, &String::from_utf8_lossy(value)).ok(),
        };
        self.named = token.map(|token| token.later(self.named)).or(self.named);
    }

    /// What becomes of the position. `begun`: the unit begins in a block, in which what holds is as of its BEGIN.
    pub(super) fn position(&self, begun: bool) -> Position {
        match self.named {
            _ if self.hides && self.reads && begun => Position::Kept,
            _ if self.hides && self.reads => Position::Hidden,
            named if self.sets && !self.reads_old => Position::Is(named),
            Some(named) => Position::Also(named),
            None => Position::Kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(texts: &[&str], startup: Option<&str>) -> String {
        let mut sets = SetsAfter::new(startup.map(|text| text.parse().unwrap()));
        texts.iter().for_each(|sql| sets.add(sql.as_bytes()));
        match sets.position(false) {
            Position::Kept => "kept".to_owned(),
            Position::Is(None) => "none".to_owned(),
            Position::Is(Some(after)) => after.to_string(),
            Position::Also(after) => format!("also {after}"),
            Position::Hidden => "hidden".to_owned(),
        }
    }

    #[test]
    fn reads_are_held_to_whatever_may_be_in_force() {
        for (sql, want) in [
            ("set pgtenure.after = '2-2-0/1'; select n from t", "2-2-0/1"),
            ("set pgtenure.after = '2-2-0/1'; set pgtenure.after = ''; select n from t", "2-2-0/1"),
            ("select n from t; set pgtenure.after = '2-2-0/1'", "also 2-2-0/1"),
            ("select set_config('pgtenure.after', '2-2-0/1', false)", "2-2-0/1"),
            ("select set_config('pgtenure.after', '2-2-0/1', false), n from t", "also 2-2-0/1"),
            ("set pgtenure.after = ''; select n from t", "none"),
            ("reset pgtenure.after; select n from t", "none"),
            ("select n from t; set pgtenure.after = ''", "kept"),
            ("set a.b = 'c'; select current_setting('pgtenure.after'), n from t", "kept"),
            // What a block has set is over with it.
            ("begin; set local pgtenure.after = ''; select n from t; commit", "none"),
            ("begin; set local pgtenure.after = ''; commit; select n from t", "kept"),
            ("begin; set local pgtenure.after = '2-2-0/1'; end; select n from t", "also 2-2-0/1"),
            ("begin; set pgtenure.after = ''; commit; select n from t", "none"),
            ("begin; set pgtenure.after = ''; rollback; select n from t", "kept"),
            ("begin; set pgtenure.after = ''; rollback; set pgtenure.after = ''; select n from t", "none"),
            ("begin; set pgtenure.after = ''; abort; select n from t", "kept"),
            ("begin; set local pgtenure.after = ''; prepare transaction 'x'; select n from t", "kept"),
            // What an EXECUTE reads comes before it, whatever that is.
            ("execute p; set pgtenure.after = ''", "kept"),
            ("execute p; reset pgtenure.after", "kept"),
            ("execute p(1); reset all", "kept"),
            ("execute p; set pgtenure.after = '2-2-0/1'", "also 2-2-0/1"),
            // What no text shows.
            ("select set_config('pgtenure.after', $1, false)", "none"),
            ("select set_config('pgtenure.after', $1, false), n from t", "hidden"),
            ("set pgtenure.after = $$x$$; select n from t", "hidden"),
            ("set pgtenure.\"after\" = ''; select n from t", "hidden"),
            ("/* ; */ set pgtenure . after = ''; select n from t", "hidden"),
            ("set /* x */ pgtenure.after = ''; select n from t", "hidden"),
            ("set pgtenure.after = E''; select n from t", "hidden"),
            ("select set_config('pgtenure' || '.after', '', false), n from t", "hidden"),
            ("select set_config($$pgtenure.after$$, '', false), n from t", "hidden"),
            ("select set_config('pgtenure.after', '', 't'), n from t", "hidden"),
            ("set pgtenure.\"after\" = ''", "none"),
            ("/* pgtenure: after=2-2-0/1 */ select set_config('a.b', 'x', false), n from t", "kept"),
        ] {
            assert_eq!(position(&[sql], None), want, "{sql}");
        }
        let execute = "/* x */ execute p('2-2-0/1')";
        assert_eq!(position(&[execute, "select set_config('pgtenure.after', $1, false)"], None), "none");
        assert_eq!(position(&[execute, "select set_config('pgtenure.after', $1, false), n from t"], None), "hidden");
    }

    #[test]
    fn a_reset_goes_back_to_what_the_session_began_with() {
        for (sql, want) in [
            ("reset pgtenure.after; select n from t", "2-2-0/9"),
            ("set pgtenure.after to default; select n from t", "2-2-0/9"),
            ("/* x */ reset ALL; select n from t", "2-2-0/9"),
            ("select n from t; discard all", "also 2-2-0/9"),
            ("set pgtenure.after = ''; select n from t", "none"),
        ] {
            assert_eq!(position(&[sql], Some("2-2-0/9")), want, "{sql}");
        }
    }

    #[test]
    fn what_is_only_defined_hides_nothing() {
        for sql in [
            "create function f(tok text) returns void language plpgsql as $$ declare t text := tok; begin perform \
             set_config('pgtenure.after', t, false); end $$",
            "do $$ declare x text; begin x := f(); perform set_config('pgtenure.after', x, false); end $$",
            "/* x; y */ prepare p as select set_config('pgtenure.after', $1, false)",
            "create function f() returns text begin atomic select 1; select set_config('pgtenure.after', g(), false); end",
        ] {
            assert_eq!(position(&[sql], None), "kept", "{sql}");
        }
        let behind = "do $$ begin end $$; select set_config('pgtenure.after', g(), false)";
        assert_eq!(position(&[behind], None), "hidden");
    }

    #[test]
    fn a_text_is_gone_through_a_few_times_however_often_it_names_the_setting() {
        const LONG: usize = 1 << 20;
        for (one, want) in [
            ("set pgtenure.after='';", "none"),
            ("select current_setting('pgtenure.after'),", "kept"),
            ("pgtenure.after,", "kept"),
            ("set\u{20}\u{20}local pgtenure.after=2;", "none"),
            ("set a.b='pgtenure .after';", "none"),
            ("/*pgtenure.after;", "kept"),
        ] {
            let sql = one.repeat(LONG / one.len());
            let before = crate::sql::read_by_lexers();
            assert_eq!(position(&[&sql], None), want, "{one}");
            let read = crate::sql::read_by_lexers() - before;
            assert!(read < 6 * LONG, "{one}: {read} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(
            words in prop::collection::vec(prop::sample::select(vec![
                "set", "reset", "local", "session", "all", "select", "set_config", "current_setting", "pgtenure", "after", ".",
                "pgtenure.after", "2-2-0/1", "(", ")", ",", ";", "'", "\"", "$$", "$1", "--", "\n", "/*", "*/", "/", "e'", "u&",
                "::text", "=", "to", "default", "true", "||", "execute", "prepare", "commit", "begin", " ", "é",
            ]), 0..40),
        ) {
            let sql = words.concat();
            let mut sets = SetsAfter::new(None);
            sets.add(sql.as_bytes());
            let _ = sets.position(false);
        }
    }
}
