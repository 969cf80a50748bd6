//! Which settings a text may change.
//!
//! Called only for texts that [`classify`](super::classify()) says may change some. Too many names do no harm: the
//! server is asked for each, and knows. What cannot be found out is said, and the session stays where it is.

use super::LexRules;
use super::classify::{code, executes, literals, words};
use super::effects::SetConfig;
use super::lexer::{Lexer, Token};
use super::reading::tells;
use super::spliced::{Spliced, spliced};
use std::collections::BTreeSet;
use std::ops::Range;

/// Names kept of one transaction; with more, everything is asked for.
const MAX_NAMES: usize = 64;
/// Longest name kept, bytes: a custom setting's name has several parts of 63.
const MAX_NAME: usize = 255;

/// Settings that may have changed since the server was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Any setting that the server lists may have.
    pub every: bool,
    /// Custom settings have, most likely, and their names could not be found.
    pub nameless: bool,
    /// Custom settings may have, and nothing tells.
    pub hidden: bool,
    /// These may have, in lower case.
    pub names: BTreeSet<Box<str>>,
    /// The last statement about `application_name` takes it back to what the session began with.
    pub renamed_back: bool,
}

impl Touched {
    /// None may have.
    pub fn is_empty(&self) -> bool {
        !self.every && !self.nameless && self.names.is_empty()
    }

    /// May one of them be a setting by which texts are read?
    pub fn tells(&self) -> bool {
        self.every || self.names.iter().any(|name| tells(name))
    }

    /// Add what functions may have changed.
    pub fn join(&mut self, other: Self) {
        self.every |= other.every;
        self.nameless |= other.nameless;
        self.hidden |= other.hidden;
        other.names.iter().for_each(|name| self.name(name.as_bytes()));
        self.renamed_back |= other.renamed_back;
    }

    /// Add what a text may change when it is executed with these parameters.
    pub fn add(&mut self, sql: &[u8], parameters: &[&[u8]], lex: LexRules) {
        let standard = lex.standard_conforming_strings && lex.ascii_safe_encoding;
        if !standard && sql.iter().any(|b| !b.is_ascii() || *b == b'\\') {
            return self.unreadable(sql, parameters);
        }
        let mut s = Scan { sql, at: 0, lexer: Lexer::new(sql), ahead: None, looked: false };
        loop {
            match self.statement(&mut s, parameters) {
                Some(Token::Semicolon) => {}
                Some(Token::Odd) => return self.unreadable(sql, parameters),
                _ => return,
            }
        }
    }

    /// A text that is too long to be read, or whose words mean something else to the server.
    pub fn unreadable(&mut self, sql: &[u8], parameters: &[&[u8]]) {
        self.every = true;
        self.nameless |= sql.windows(10).any(|w| w.eq_ignore_ascii_case(b"set_config"));
        self.splice(sql, 0..sql.len());
        self.loose(sql);
        parameters.iter().for_each(|p| self.loose(p));
    }

    /// Add what the body of a function may change, which is in SQL or PL/pgSQL. False when nothing was found.
    pub fn add_body(&mut self, body: &[u8], lex: LexRules) -> bool {
        let (mut s, mut first) = (Scan { sql: body, at: 0, lexer: Lexer::new(body), ahead: None, looked: false }, true);
        let (mut called, mut found) = (false, false);
        while let Some(token) = s.next() {
            match token {
                Token::Odd => {
                    self.put_together(body, 0..body.len());
                    return true;
                }
                Token::Word(word) => {
                    let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
                    match () {
                        () if first && is(b"set") => self.set(&mut s),
                        () if first && is(b"reset") => self.reset(&mut s),
                        () => {}
                    }
                    found |= first && (is(b"set") || is(b"reset"));
                    called = is(b"set_config");
                    found |= self.odd_ways(word);
                    first = is(b"begin") || is(b"then") || is(b"else") || is(b"loop");
                    continue;
                }
                Token::Quoted(name) => called = name == b"set_config",
                Token::Open if called => {
                    self.argument(&mut s, &[]);
                    (called, found) = (false, true);
                }
                _ => called = false,
            }
            first = token == Token::Semicolon;
        }
        if !lex.standard_conforming_strings {
            self.put_together(body, 0..body.len());
            return true;
        }
        if executes(body) {
            // What is put together there is not followed.
            literals(body).for_each(|(at, literal)| self.put_together(body, at..at + literal.len()));
            return true;
        }
        found
    }

    /// Add what a part of a text may change that is, or holds, SQL in literals: what the server lists, and the custom settings
    /// that are named.
    pub fn put_together(&mut self, text: &[u8], part: Range<usize>) {
        self.every = true;
        self.splice(text, part.clone());
        self.loose(&text[part]);
    }

    /// Are there custom settings in a part of a text whose names are put together?
    fn splice(&mut self, text: &[u8], part: Range<usize>) {
        let sets = spliced(text, part.clone());
        self.hidden |= sets == Spliced::Maybe;
        let text = &text[part];
        self.nameless |= sets == Spliced::Surely
            || words(text).any(|(at, word)| {
                let behind = text[at + word.len()..].trim_ascii_start();
                word.eq_ignore_ascii_case(b"set_config") && calls_nameless(behind) && lasts(behind)
            });
    }

    /// One statement; returns the token that ended it.
    fn statement<'a>(&mut self, s: &mut Scan<'a>, parameters: &[&[u8]]) -> Option<Token<'a>> {
        let first = match s.next() {
            Some(Token::Word(word)) => word,
            end @ (None | Some(Token::Semicolon | Token::Odd)) => return end,
            Some(_) => b"",
        };
        let is = |word: &[u8]| first.eq_ignore_ascii_case(word);
        if is(b"set") {
            self.set(s);
        } else if is(b"reset") {
            self.reset(s);
        } else if is(b"discard") {
            if s.next_is(b"all") {
                (self.every, self.renamed_back) = (true, true);
            }
        } else if is(b"do") || is(b"call") {
            // What runs inside is not followed; the names it spells out are asked for. The whole text is looked at, once.
            self.every = true;
            if !std::mem::replace(&mut s.looked, true) {
                for (_, literal) in literals(s.sql) {
                    let code = code(literal);
                    self.splice(code, 0..code.len());
                }
                self.loose(s.sql);
            }
        }
        self.calls(s, parameters)
    }

    /// The rest of a statement: calls of `set_config`, and what else changes settings.
    fn calls<'a>(&mut self, s: &mut Scan<'a>, parameters: &[&[u8]]) -> Option<Token<'a>> {
        let mut called = false;
        loop {
            match s.next() {
                end @ (None | Some(Token::Semicolon | Token::Odd)) => return end,
                Some(Token::Word(word)) => {
                    called = word.eq_ignore_ascii_case(b"set_config");
                    self.odd_ways(word);
                }
                Some(Token::Quoted(name)) => called = name == b"set_config",
                Some(Token::Open) if std::mem::take(&mut called) => self.argument(s, parameters),
                Some(_) => called = false,
            }
        }
    }

    /// A word that changes settings in another way than by naming them: an UPDATE of `pg_settings`, and a function of
    /// pg_trgm.
    fn odd_ways(&mut self, word: &[u8]) -> bool {
        let (every, limit) = (word.eq_ignore_ascii_case(b"pg_settings"), word.eq_ignore_ascii_case(b"set_limit"));
        self.every |= every;
        if limit {
            self.name(b"pg_trgm.similarity_threshold");
        }
        every || limit
    }

    /// The first argument of `set_config`: a literal or a parameter, or it is not known.
    fn argument(&mut self, s: &mut Scan<'_>, parameters: &[&[u8]]) {
        let literal = s.literal();
        s.cast();
        let name = match (literal, s.peek()) {
            (Some([b'\'', name @ .., b'\'']), Some(Token::Comma)) if !name.contains(&b'\'') => Some(name),
            (Some([b'$', digits @ ..]), Some(Token::Comma)) => {
                let number = std::str::from_utf8(digits).ok().and_then(|d| d.parse::<usize>().ok());
                number.and_then(|n| parameters.get(n.checked_sub(1)?).copied())
            }
            _ => None,
        };
        match name {
            Some(name) => {
                self.renamed_back &= Naming::of(name) != Naming::ApplicationName;
                self.name(name);
            }
            None => (self.every, self.nameless) = (true, true),
        }
    }

    fn set(&mut self, s: &mut Scan<'_>) {
        let mut scope = false;
        for word in [&b"session"[..], b"local"] {
            if s.next_is(word) {
                scope = true;
                // A setting may be named like the word; that name is asked for as well.
                if let Some(Token::Dot | Token::Operator) = s.peek() {
                    return self.qualified(s, word);
                }
                break;
            }
        }
        if scope && s.next_is(b"authorization") {
            self.all_of(&["session_authorization", "role"]);
        } else if scope && s.next_is(b"characteristics") {
            self.all_of(&[
                "default_transaction_isolation",
                "default_transaction_read_only",
                "default_transaction_deferrable",
            ]);
        } else {
            let names = self.setting(s);
            if names == Naming::ApplicationName {
                let assigned = s.next_is(b"to") || s.peek() == Some(Token::Operator) && s.next().is_some();
                self.renamed_back = assigned && s.next_is(b"default");
            }
        }
    }

    fn reset(&mut self, s: &mut Scan<'_>) {
        if s.next_is(b"all") {
            (self.every, self.renamed_back) = (true, true);
        } else if s.next_is(b"session") {
            if s.next_is(b"authorization") {
                self.all_of(&["session_authorization", "role"]);
            } else {
                self.qualified(s, b"session");
            }
        } else {
            let names = self.setting(s);
            self.renamed_back |= names == Naming::ApplicationName;
        }
    }

    /// The name of a setting, or the words that stand for one.
    fn setting(&mut self, s: &mut Scan<'_>) -> Naming {
        match s.next() {
            Some(Token::Word(word)) => {
                let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
                if is(b"time") && s.next_is(b"zone") {
                    self.all_of(&["timezone"]);
                } else if is(b"names") {
                    self.all_of(&["client_encoding"]);
                } else if is(b"schema") {
                    self.all_of(&["search_path"]);
                } else if is(b"xml") {
                    self.all_of(&["xmloption"]);
                } else {
                    self.qualified(s, word);
                    return Naming::of(word);
                }
            }
            Some(Token::Quoted(word)) if !word.contains(&b'"') => {
                self.qualified(s, word);
                return Naming::of(word);
            }
            // A syntax error, most likely.
            _ => self.every = true,
        }
        Naming::Other
    }

    /// A name that may go on behind dots.
    fn qualified(&mut self, s: &mut Scan<'_>, first: &[u8]) {
        let mut name = first.to_vec();
        while let Some(Token::Dot) = s.peek() {
            s.next();
            match s.next() {
                Some(Token::Word(word) | Token::Quoted(word)) => {
                    name.push(b'.');
                    name.extend_from_slice(word);
                }
                _ => break,
            }
        }
        self.name(&name);
    }

    fn all_of(&mut self, names: &[&str]) {
        names.iter().for_each(|name| self.name(name.as_bytes()));
    }

    fn name(&mut self, name: &[u8]) {
        match std::str::from_utf8(name) {
            Ok(name) if name.len() <= MAX_NAME && self.names.len() < MAX_NAMES => {
                let name = name.to_ascii_lowercase();
                // Setting the one changes the other.
                if name == "session_authorization" {
                    self.names.insert("role".into());
                }
                self.names.insert(name.into());
            }
            _ => {
                self.every = true;
                self.nameless |= name.contains(&b'.');
            }
        }
    }

    /// Everything that looks like a custom setting's name, wherever it stands.
    fn loose(&mut self, text: &[u8]) {
        let part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.' | 0x80..);
        for run in text.split(|b| !part(b)).filter(|run| run.contains(&b'.')) {
            let starts = |p: &[u8]| p.first().is_some_and(|b| !b.is_ascii_digit() && *b != b'$');
            if run.split(|b| *b == b'.').all(starts) && run.len() <= MAX_NAME {
                self.name(run);
            }
        }
    }
}

/// Behind `set_config`: not for the transaction only, as far as it can be read?
fn lasts(behind: &[u8]) -> bool {
    let (mut lexer, mut call, mut depth) = (Lexer::new(behind), SetConfig::new(1), 0_u32);
    while let Some(token) = lexer.next() {
        match token {
            Token::Open => depth += 1,
            Token::Comma => call.comma(depth),
            Token::Close => {
                depth = depth.saturating_sub(1);
                if let Some(local) = call.close(depth) {
                    return !local;
                }
            }
            Token::Odd => return true,
            Token::Word(word) => call.token(word.eq_ignore_ascii_case(b"true")),
            _ => call.token(false),
        }
    }
    true
}

/// Behind `set_config` in a literal: a call whose first argument is anything but a whole literal of its own?
fn calls_nameless(behind: &[u8]) -> bool {
    let [b'(', inside @ ..] = behind else { return false };
    let quote = |b: &u8| matches!(b, b'\'' | b'\\');
    let inside = inside.trim_ascii_start();
    let name = &inside[inside.iter().take_while(|b| quote(b)).count()..];
    let rest = &name[name.iter().take_while(|b| !quote(b)).count()..];
    let rest = rest[rest.iter().take_while(|b| quote(b)).count()..].trim_ascii_start();
    name.len() == inside.len() || rest.first() != Some(&b',')
}

/// Which setting a statement names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    ApplicationName,
    Other,
}

impl Naming {
    fn of(name: &[u8]) -> Self {
        if name.eq_ignore_ascii_case(b"application_name") { Self::ApplicationName } else { Self::Other }
    }
}

/// A text while it is read, one token ahead.
struct Scan<'a> {
    sql: &'a [u8],
    /// Where the token that was peeked at begins.
    at: usize,
    lexer: Lexer<'a>,
    ahead: Option<Option<Token<'a>>>,
    /// What stands in its literals was looked at.
    looked: bool,
}

impl<'a> Scan<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        match self.ahead.take() {
            Some(token) => token,
            None => self.lexer.next(),
        }
    }

    fn peek(&mut self) -> Option<Token<'a>> {
        if self.ahead.is_none() {
            self.at = self.lexer.at();
            self.ahead = Some(self.lexer.next());
        }
        self.ahead.flatten()
    }

    /// Take the next token if it is this word.
    fn next_is(&mut self, word: &[u8]) -> bool {
        let is = matches!(self.peek(), Some(Token::Word(w)) if w.eq_ignore_ascii_case(word));
        if is {
            self.ahead = None;
        }
        is
    }

    /// Take a cast to a type of one word, as the server writes it behind every literal.
    fn cast(&mut self) {
        if self.peek() == Some(Token::Operator) && self.sql[self.at..].trim_ascii_start().starts_with(b"::") {
            self.next();
            self.next();
            if let Some(Token::Word(_)) = self.peek() {
                self.next();
            }
        }
    }

    /// Take the next token if it is a literal: its text, blanks before it taken off.
    fn literal(&mut self) -> Option<&'a [u8]> {
        if self.peek() != Some(Token::Literal) {
            return None;
        }
        self.ahead = None;
        let text = &self.sql[self.at..self.lexer.at()];
        // A comment before it is not a blank to this; then its name is not known.
        Some(text.trim_ascii_start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, parameters: &[&str], every: bool, nameless: bool, names: &[&str]) {
        let mut touched = Touched::default();
        let parameters: Vec<&[u8]> = parameters.iter().map(|p| p.as_bytes()).collect();
        touched.add(sql.as_bytes(), &parameters, LexRules::STANDARD);
        let got: Vec<&str> = touched.names.iter().map(Box::as_ref).collect();
        assert_eq!((touched.every, touched.nameless, &got[..]), (every, nameless, names), "{sql}");
    }

    #[test]
    fn settings_are_named_by_their_statements() {
        for (sql, names) in [
            ("SET work_mem = '1MB'", &["work_mem"][..]),
            ("set session WORK_MEM to 1; select 1", &["work_mem"]),
            ("set \"Work_Mem\" = 1", &["work_mem"]),
            ("set app . \"User\" = 'x'", &["app.user"]),
            ("set local.x = 1", &["local.x"]),
            ("set session.x = 1", &["session.x"]),
            ("set time zone 'utc'", &["timezone"]),
            ("set names 'utf8'", &["client_encoding"]),
            ("set schema 'a'", &["search_path"]),
            ("set role a; reset work_mem", &["role", "work_mem"]),
            ("set session authorization a", &["role", "session_authorization"]),
            ("reset session authorization", &["role", "session_authorization"]),
            ("select 1; reset time zone", &["timezone"]),
            ("select set_config('app.x', 'a', false)", &["app.x"]),
            ("SELECT set_config('app.x'::text, 'a'::text, false) AS set_config", &["app.x"]),
            ("select pg_catalog . set_config ( 'A', f('b', 'c'), false), set_config('b', '', false)", &["a", "b"]),
        ] {
            check(sql, &[], false, false, names);
        }
        let isolation = "default_transaction_isolation";
        let three = ["default_transaction_deferrable", isolation, "default_transaction_read_only"];
        check("set session characteristics as transaction read only", &[], false, false, &three);
    }

    #[test]
    fn parameters_name_settings_too() {
        check("select set_config($2, $1, false)", &["v", "app.y"], false, false, &["app.y"]);
        check("select set_config($3, $1, false)", &["v", "app.y"], true, true, &[]);
    }

    #[test]
    fn what_cannot_be_named_is_admitted() {
        check("reset all", &[], true, false, &[]);
        check("discard all", &[], true, false, &[]);
        check("discard temp", &[], false, false, &[]);
        check("select set_config('app.' || x, 'a', false)", &[], true, true, &[]);
        check("select set_config('app.'::text || x, 'a', false)", &[], true, true, &[]);
        check("select set_config(E'a', 'a', false)", &[], true, true, &[]);
        check("select set_config('it''s', 'a', false)", &[], true, true, &[]);
        check("select set_config(/* x */ 'a', 'a', false)", &[], true, true, &[]);
        check("do $$ begin set app.z = 1; end $$", &[], true, false, &["app.z"]);
        check("do $$ begin execute 'set app.' || k || ' = 1'; end $$", &[], true, true, &[]);
        check("do $$ begin perform set_config(k, 'a', false); end $$", &[], true, true, &[]);
        check("do $$ begin perform set_config(k, f('a', 1), true); end $$", &[], true, false, &[]);
        check("do 'begin perform set_config(''app.q'', ''a'', false); end'", &[], true, false, &["app.q"]);
        check("set x = u&\"app.q\"", &[], true, false, &["app.q", "x"]);
        check("set x = u&'app.q'", &[], false, false, &["x"]);
        check("set x = 1; update pg_settings set setting = '1' where name = 'y'", &[], true, false, &["x"]);
        check("select set_limit(0.5)", &[], false, false, &["pg_trgm.similarity_threshold"]);
    }

    #[test]
    fn it_is_known_whether_the_applications_name_is_given_or_taken_back() {
        for (sql, back) in [
            ("reset application_name", true),
            ("reset all", true),
            ("discard all", true),
            ("discard plans", false),
            ("reset work_mem", false),
            ("set Application_Name to default", true),
            ("set \"application_name\" = default", true),
            ("set session application_name to DEFAULT", true),
            ("set application_name = ''", false),
            ("set application_name to 'default'", false),
            ("set application_name = ''; reset application_name", true),
            ("reset application_name; set application_name = ''", false),
            ("reset all; set work_mem = 1", true),
            ("reset all; select set_config('application_name', '', false)", false),
        ] {
            let mut touched = Touched::default();
            touched.add(sql.as_bytes(), &[], LexRules::STANDARD);
            assert_eq!(touched.renamed_back, back, "{sql}");
        }
    }

    #[test]
    fn a_body_names_what_it_sets_also_in_what_it_executes() {
        let of = |body: &str| {
            let mut touched = Touched::default();
            let found = touched.add_body(body.as_bytes(), LexRules::STANDARD);
            (found, touched.every, touched.nameless, touched.names.into_iter().collect::<Vec<_>>().join(" "))
        };
        for (body, want) in [
            ("begin if action = 'set' then return; end if; end", (false, false, false, "")),
            ("begin set role r1; end", (true, false, false, "role")),
            ("begin perform set_config('app.x', v, false); execute 'select 1'; end", (true, true, false, "app.x")),
            ("begin execute 'select set_config(''app.y'', $1, false)' using v; end", (true, true, false, "app.y")),
            ("begin execute 'select set_config($1, $2, false)' using n, v; end", (true, true, true, "")),
            ("begin execute 'select set_config(''app.' || n || ''', ''x'', false)'; end", (true, true, true, "")),
            ("begin execute q; raise notice 'set_config failed'; end", (true, true, false, "")),
            ("begin execute 'select set_config($1, $2, true)' using n, v; end", (true, true, false, "")),
            ("begin execute format('set app.%I = %L', k, v); end", (true, true, true, "")),
            ("begin execute format('set app.x = %L', v); end", (true, true, false, "app.x")),
            ("begin q := 'set '; q := q || k; execute q; end", (true, true, false, "")),
        ] {
            let (found, every, nameless, names) = of(body);
            assert_eq!((found, every, nameless, names.as_str()), want, "{body}");
        }
    }

    #[test]
    fn what_may_be_set_unseen_is_told() {
        let hidden = |body: &str| {
            let mut touched = Touched::default();
            touched.add_body(body.as_bytes(), LexRules::STANDARD);
            touched.hidden
        };
        assert!(hidden("begin q := 'set '; q := q || k; execute q; end"));
        assert!(!hidden("begin q := 'update t'; q := q || ' set ' || c; execute q; end"));
    }

    #[test]
    fn too_many_names_are_not_kept() {
        let mut touched = Touched::default();
        for i in 0..100 {
            touched.add(format!("set app.x{i} = 1").as_bytes(), &[], LexRules::STANDARD);
        }
        assert!(touched.every && touched.nameless && touched.names.len() == MAX_NAMES);
    }
}
