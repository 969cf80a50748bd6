//! What the body of a function leaves in the session that calls it. Pure.
//!
//! A body is code of another language with SQL in it, so this looks for what begins a statement: behind a semicolon, the
//! few words that PL/pgSQL puts before one, or a quote. The SET of an UPDATE is none. In SQL and PL/pgSQL nothing but
//! EXECUTE runs what is in a literal; without it a literal is looked at no more than a comment. What is found too much
//! costs the server a question, for it knows what is left; what is found too little stays in the session. Of what the
//! server cannot be asked about, LOAD above all, nothing may be found that is not there.

use super::executed::{executes, executes_anything};
use super::part::{End, Part};
use crate::sql::effects::Head;
use crate::sql::functions::FunctionTable;
use crate::sql::keyword::{Keyword as K, keyword};
use crate::sql::lexer::{Lexer, Token};
use crate::sql::loose::pins_anywhere;
use crate::sql::spliced::{Spliced, spliced};
use crate::sql::{LexRules, Local, PinReason, Pins, Touched};

/// Longer words are none that matter.
const MAX_NAME: usize = 63;

/// What a body leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sql) struct BodyLeaves {
    /// In the session.
    pub(in crate::sql) pins: Pins,
    /// It may end what others have left.
    pub(in crate::sql) unpins: bool,
    /// It takes or leaves advisory locks, be it for its transaction.
    pub(in crate::sql) advisory: bool,
    /// What it may set for its transaction only.
    pub(in crate::sql) local: Local,
}

/// What a body leaves. `sql`: its language is SQL or PL/pgSQL.
pub(in crate::sql) fn body_leaves(body: &[u8], sql: bool, functions: &FunctionTable) -> BodyLeaves {
    let (head, local) = (Head::new(), Local::Nothing);
    let mut found = Found { functions, head, pins: Pins::NONE, unpins: false, advisory: false, local };
    if sql {
        found.statements(body);
        found.begun(body);
        if executes(body) {
            literals(body).for_each(|(at, literal)| {
                found.text(literal, true);
                // SET, and of what it sets the literal shows nothing.
                if spliced(body, at..at + literal.len()) != Spliced::No {
                    found.pins.add(PinReason::Set);
                }
            });
            if executes_anything(body) {
                found.pins.join(Pins::ANYTHING);
            }
        }
    } else {
        found.text(body, false);
    }
    let mut pins = found.pins;
    pins.join(found.head.calls);
    let operators = functions.bodies().operators_in(body);
    pins.join(operators.0);
    found.unpins |= operators.1;
    // What it asks of a sequence it has drawn itself, or the next one draws anew.
    pins.remove(PinReason::Sequence);
    let unpins = found.unpins || found.head.unlocks;
    let advisory = found.advisory || found.head.advisory || pins.has(PinReason::AdvisoryLock);
    let local = match found.local.max(found.head.local) {
        Local::Named if !tells(body, sql) => Local::Nothing,
        Local::Nothing => Local::Nothing,
        Local::Named | Local::Hidden => Local::Hidden,
    };
    BodyLeaves { pins, unpins, advisory, local }
}

/// May a body that sets something for its transaction set what texts are read by?
fn tells(body: &[u8], sql: bool) -> bool {
    let mut touched = Touched::default();
    if sql {
        touched.add_body(body, LexRules::STANDARD);
    }
    !sql || touched.tells()
}

/// What was found in a body.
struct Found<'a> {
    functions: &'a FunctionTable,
    /// Of functions that are called.
    head: Head,
    pins: Pins,
    unpins: bool,
    advisory: bool,
    local: Local,
}

impl Found<'_> {
    /// A readable body, cut at its semicolons.
    fn statements(&mut self, body: &[u8]) {
        let mut lexer = Lexer::new(body);
        loop {
            let (part, end) = Part::scan(&mut lexer, self.functions);
            // What looks like LOAD may be a variable's name.
            let mut pins = part.head.pins();
            pins.remove(PinReason::Load);
            pins.join(part.head.left());
            self.pins.join(pins);
            self.unpins |= part.head.unpins();
            self.advisory |= part.head.advisory;
            self.local = self.local.max(part.head.local());
            match end {
                End::Semicolon => {}
                End::Text => return,
                End::Odd => {
                    // What would last for life is found only where it is called.
                    self.pins.join(askable(pins_anywhere(body, self.functions)));
                    self.unpins = true;
                    return self.text(body, true);
                }
            }
        }
    }

    /// Statements of a readable body, behind whatever begins one.
    fn begun(&mut self, body: &[u8]) {
        let (mut lexer, mut first) = (Lexer::new(body), true);
        let (mut before, mut sets, mut loads) = (K::None, false, false);
        while let Some(token) = lexer.next() {
            if loads && token == Token::Literal {
                self.pins.add(PinReason::Load);
            }
            loads = false;
            let Token::Word(word) = token else {
                first = token == Token::Semicolon;
                (before, sets) = (K::None, false);
                continue;
            };
            let is = folded(word);
            if sets {
                self.set(is);
            }
            (sets, loads) = (first && is == K::Set, first && is == K::Load);
            self.word(is, before, first);
            first = is_before_statement(word);
            before = is;
        }
    }

    /// SQL in a literal that may be executed, or in the text of another language: any word behind a quote may begin a
    /// statement, if it is not all that is quoted.
    fn text(&mut self, text: &[u8], sql: bool) {
        let (mut before, mut sets, mut first) = (K::None, false, false);
        for (at, word) in words(text) {
            let (ahead, behind) = (text[..at].trim_ascii_end(), &text[at + word.len()..]);
            let is = folded(word);
            if sets {
                self.set(is);
            }
            let opens = |b: &u8| matches!(b, b'\'' | b'"' | b'$' | b';') || !sql && matches!(b, b'`' | b'{' | b'(');
            first = (first || ahead.last().is_some_and(opens)) && behind.first().is_some_and(u8::is_ascii_whitespace);
            sets = first && is == K::Set;
            if first && is == K::Load && names_library(behind) {
                self.pins.add(PinReason::Load);
            }
            self.word(is, before, first);
            if behind.trim_ascii_start().starts_with(b"(") {
                self.call(word);
            }
            if let Some(lower) = lowered(word, &mut [0; MAX_NAME]) {
                if lower.starts_with(b"pg_temp") {
                    self.pins.add(PinReason::Temp);
                }
                if let Some(used) = self.functions.used(lower) {
                    // Whether it is used, and how, cannot be told.
                    self.pins.join(askable(used.changed.pins));
                    self.unpins |= used.changed.unpins;
                }
            }
            // What PL/Python, PL/Perl and PL/Tcl keep for a session.
            if !sql && matches!(word, b"GD" | b"SD" | b"_SHARED") {
                self.pins.add(PinReason::Extension);
            }
            first = is_before_statement(word);
            before = is;
        }
    }

    /// The word behind SET.
    fn set(&mut self, word: K) {
        if word == K::Local {
            self.local = self.local.max(Local::Named);
        } else if !is_of_transaction(word) {
            self.pins.add(PinReason::Set);
        }
    }

    /// A word; `first`: it begins a statement.
    fn word(&mut self, word: K, before: K, first: bool) {
        match word {
            K::Reset if first => self.pins.add(PinReason::Set),
            K::Listen if first => self.pins.add(PinReason::Listen),
            K::Prepare if first => self.pins.add(PinReason::Prepare),
            K::Hold if before == K::With => self.pins.add(PinReason::HeldCursor),
            K::Temp if matches!(before, K::Create | K::Replace | K::Local | K::Global | K::Into) => {
                self.pins.add(PinReason::Temp);
            }
            K::Close | K::Deallocate | K::Discard | K::Drop | K::Unlisten => self.unpins |= first,
            _ => {}
        }
    }

    /// A word that stands before `(` in a text.
    fn call(&mut self, name: &[u8]) {
        let mut space = [0; MAX_NAME];
        let Some(lower) = lowered(name, &mut space) else { return };
        self.head.call(lower);
        if lower == b"set_config" {
            self.pins.add(PinReason::Set);
            self.local = Local::Hidden;
        }
        if self.functions.is_pinning(lower) {
            self.pins.add(PinReason::Extension);
        }
        if let Some(left) = self.functions.bodies().get(lower) {
            self.pins.join(left.pins);
            self.unpins |= left.unpins;
            self.local = self.local.max(left.local);
        }
    }
}

/// Those of which the server knows whether they are still there.
fn askable(mut pins: Pins) -> Pins {
    for reason in [PinReason::Load, PinReason::Seed, PinReason::Dblink, PinReason::Extension] {
        pins.remove(reason);
    }
    pins
}

/// What stands between the quotes of a literal, of either kind, or of a name.
pub(in crate::sql) fn code(literal: &[u8]) -> &[u8] {
    let mark = |quote: u8| literal.iter().position(|b| *b == quote);
    let (from, tag) = match literal {
        [b'$', rest @ ..] => match rest.iter().position(|b| *b == b'$') {
            Some(end) => (end + 2, end + 2),
            None => (0, 0),
        },
        // Behind E, N, U& and the like.
        _ => mark(b'\'').or(mark(b'"')).map_or((0, 0), |at| (at + 1, 1)),
    };
    literal.get(from..literal.len().saturating_sub(tag)).unwrap_or_default()
}

/// The literals of a readable body, as they are written, and where: with a doubled quote inside, which the lexer reads as the
/// end of one and the beginning of another.
pub(in crate::sql) fn literals(body: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut lexer = Lexer::new(body);
    std::iter::from_fn(move || {
        loop {
            match lexer.next()? {
                Token::Literal => break,
                Token::Odd => return None,
                _ => {}
            }
        }
        let literal = whole(body, &mut lexer)?;
        Some((lexer.at() - literal.len(), literal))
    })
}

/// All of a literal, of which the lexer is behind the first piece.
pub(super) fn whole<'a>(body: &'a [u8], lexer: &mut Lexer<'a>) -> Option<&'a [u8]> {
    let from = lexer.at() - lexer.last().len();
    while body.get(lexer.at()) == Some(&b'\'') && body[from..lexer.at()].ends_with(b"'") {
        if lexer.next() != Some(Token::Literal) {
            return None;
        }
    }
    Some(&body[from..lexer.at()])
}

/// Behind LOAD in a text: is it the name of a library and nothing else, or what `format` makes one of?
fn names_library(behind: &[u8]) -> bool {
    let quote = |b: &u8| matches!(b, b'\'' | b'\\');
    let text = behind.trim_ascii_start();
    if let [b'%', form @ ..] = text {
        return form.iter().find(|b| !b.is_ascii_digit() && **b != b'$') == Some(&b'L');
    }
    let name = &text[text.iter().take_while(|b| quote(b)).count()..];
    let rest = &name[name.iter().take_while(|b| !quote(b)).count()..];
    let rest = rest[rest.iter().take_while(|b| quote(b)).count()..].trim_ascii_start();
    let plain = name.first().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'$' | b'/' | b'_'));
    plain && name.len() < text.len() && rest.first().is_none_or(|b| matches!(b, b';' | b'"' | b'$' | b'`'))
}

/// May a statement of PL/pgSQL stand behind this word?
fn is_before_statement(word: &[u8]) -> bool {
    [&b"begin"[..], b"then", b"else", b"loop"].iter().any(|w| word.eq_ignore_ascii_case(w))
}

/// Behind SET: for the transaction only.
fn is_of_transaction(word: K) -> bool {
    matches!(word, K::Local | K::Transaction | K::Constraints)
}

fn folded(word: &[u8]) -> K {
    lowered(word, &mut [0; MAX_NAME]).map_or(K::None, keyword)
}

fn lowered<'a>(word: &[u8], space: &'a mut [u8; MAX_NAME]) -> Option<&'a [u8]> {
    let lower = space.get_mut(..word.len())?;
    lower.copy_from_slice(word);
    lower.make_ascii_lowercase();
    Some(lower)
}

/// Every run of characters that could be a word, and where it begins.
pub(in crate::sql) fn words(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | 0x80..);
    let mut at = 0;
    text.split(move |b| !part(b)).filter_map(move |word| {
        let begins = at;
        at += word.len() + 1;
        (!word.is_empty()).then_some((begins, word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(body: &str) -> Vec<PinReason> {
        body_leaves(body.as_bytes(), true, &FunctionTable::unloaded()).pins.list()
    }

    #[test]
    fn what_a_body_leaves_in_its_session_is_found() {
        use PinReason as P;
        for (body, want) in [
            ("begin return set_config('work_mem', '9MB', false); end", &[P::Set][..]),
            ("select set_config('app.x', $1, false)", &[P::Set]),
            ("begin perform set_config('app.x', v, true); end", &[]),
            ("begin set role r1; end", &[P::Set]),
            ("begin -- as its owner\n SET search_path TO a; end", &[P::Set]),
            ("begin if x then reset role; end if; end", &[P::Set]),
            ("begin set local work_mem = '1MB'; set constraints all deferred; end", &[]),
            ("begin update t set a = 1; insert into t values (1) on conflict do update set a = 2; end", &[]),
            ("begin for r in select 1 loop set my.x = 1; end loop; end", &[P::Set]),
            ("begin execute 'set role ' || quote_ident(r); end", &[P::Set]),
            ("begin execute format('set local role %I', r); end", &[]),
            ("begin execute 'set ' || quote_ident(n) || ' = 1'; end", &[P::Set]),
            ("begin execute 'update t set ' || c || ' = 1'; end", &[]),
            ("begin execute 'update ' || t || ' set ' || c || ' = 1'; end", &[]),
            ("begin execute $x$ select set_config('a', 'b', false) $x$; end", &[P::Set]),
            ("begin create temp table made(a int); end", &[P::Temp]),
            ("begin execute 'create local temporary table made(a int)'; end", &[P::Temp]),
            ("begin select 1 into temp t2; end", &[P::Temp]),
            ("declare temp int; begin temp := 1; end", &[]),
            ("begin perform pg_advisory_lock(5); end", &[P::AdvisoryLock]),
            ("begin perform pg_advisory_xact_lock(5); end", &[]),
            ("begin execute 'listen abc'; end", &[P::Listen]),
            ("begin return nextval('s') + currval('s'); end", &[]),
            ("begin execute 'create table pg_temp.made(a int)'; end", &[P::Temp]),
            ("begin create table pg_temp.made(a int); end", &[P::Temp]),
            ("begin execute 'select 1; set role r1'; end", &[P::Set]),
            ("begin execute 'select pg_advisory_lock(1)'; end", &[P::AdvisoryLock]),
            ("begin execute 'do $y$ begin set role r1; end $y$'; end", &[P::Set]),
            ("begin load 'age'; end", &[P::Load]),
            ("begin execute 'load ''age'''; end", &[P::Load]),
            ("begin execute format('load %1$L', x); end", &[P::Load]),
            ("begin execute $$ load '$libdir/age' ; $$; end", &[P::Load]),
            ("begin /* set role r1; */ return 'x'; end", &[]),
        ] {
            assert_eq!(leaves(body), want, "{body}");
        }
    }

    #[test]
    fn what_only_looks_like_a_statement_leaves_nothing() {
        for body in [
            "begin if action = 'set' then return 1; end if; end",
            "begin raise notice 'Reset password for %', who; end",
            "begin perform log_step('load', 'set x', $$reset all$$); end",
            "begin /* set_config( */ return 1; -- load 'age'\n end",
            "begin return 'set_config(''a'', ''b'', false)'; end",
            "begin load := load + 1; return load; end",
            // With EXECUTE a literal may be a statement, and these are still none that would last for life.
            "begin execute q; perform log_step('load', 'x'); raise notice 'load % of %', a, b; end",
            "begin execute q; raise notice 'load ''%'' done', a; raise notice 'load ''x'' done'; end",
            "begin execute q; -- setseed(1), dblink_connect('x')\n raise notice 'setseed, reset'; end",
            "begin execute q; if action = 'set' then return 1; end if; end",
            "begin x := 0x1f; /* setseed, dblink_connect */ for i in 1..10 loop y := i; end loop; end",
        ] {
            assert_eq!(leaves(body), [], "{body}");
        }
    }

    #[test]
    fn it_is_found_in_other_languages_too() {
        let leaves = |body: &str| body_leaves(body.as_bytes(), false, &FunctionTable::unloaded()).pins.list();
        assert_eq!(leaves("plpy.execute(\"set role r1\")"), [PinReason::Set]);
        assert_eq!(
            leaves("plv8.execute(`set role r1`); f(`create table pg_temp.a(b int)`)"),
            [PinReason::Set, PinReason::Temp]
        );
        assert_eq!(leaves("spi_exec_query(q(set role r1)); q{ reset role }"), [PinReason::Set]);
        assert_eq!(leaves("plpy.execute(\"load 'age'\")"), [PinReason::Load]);
        assert_eq!(leaves("log('load', 'x'); log('set'); log(\"load 'x' done\"); len(set(x))"), []);
        assert_eq!(leaves("GD['x'] = 1\nreturn set([1])"), [PinReason::Extension]);
        assert_eq!(leaves("temp = 1\nfor x in set(y): temp += x"), []);
    }

    #[test]
    fn what_ends_a_pin_is_found() {
        let ends = |body: &str| body_leaves(body.as_bytes(), true, &FunctionTable::unloaded()).unpins;
        assert!(ends("begin perform pg_advisory_unlock(5); end") && ends("begin x := 1; drop table made; end"));
        assert!(ends("begin drop table made; end") && ends("begin execute 'drop table made'; end"));
        assert!(!ends("begin raise notice 'drop it'; end"));
        assert!(!ends("begin perform pg_advisory_lock(5); end"));
    }
}
