//! What the body of a function leaves in the session that calls it. Pure.
//!
//! A body is code of another language with SQL in it, so this looks for what begins a statement: behind a semicolon, the
//! few words that PL/pgSQL puts before one, or a quote, as in EXECUTE. The SET of an UPDATE is none. What is found too
//! much costs the server a question, for it knows what is left; what is found too little stays in the session.

use super::part::{End, Part};
use crate::sql::effects::Head;
use crate::sql::functions::FunctionTable;
use crate::sql::keyword::{Keyword as K, keyword};
use crate::sql::lexer::{Lexer, Token};
use crate::sql::loose::pins_anywhere;
use crate::sql::{PinReason, Pins};

/// Longer words are none that matter.
const MAX_NAME: usize = 63;

/// What a body leaves, and whether it may end what others have left. `sql`: its language is SQL or PL/pgSQL.
pub(in crate::sql) fn body_leaves(body: &[u8], sql: bool, functions: &FunctionTable) -> (Pins, bool) {
    let mut head = Head::new();
    let (mut pins, mut unpins) = (dynamic(body, &mut head, sql), false);
    if sql {
        let mut lexer = Lexer::new(body);
        loop {
            let (part, end) = Part::scan(&mut lexer, functions);
            pins.join(part.head.pins());
            unpins |= part.head.unpins();
            match end {
                End::Semicolon => {}
                End::Text => break,
                End::Odd => {
                    pins.join(pins_anywhere(body, functions));
                    unpins = true;
                    break;
                }
            }
        }
        begun(body, &mut pins);
    } else {
        pins.join(head.calls);
    }
    // What it asks of a sequence it has drawn itself, or the next one draws anew.
    pins.remove(PinReason::Sequence);
    (pins, unpins || head.unlocks)
}

/// Statements of a readable body, behind whatever begins one.
fn begun(body: &[u8], pins: &mut Pins) {
    let (mut lexer, mut first) = (Lexer::new(body), true);
    let (mut before, mut sets) = (K::None, false);
    while let Some(token) = lexer.next() {
        let Token::Word(word) = token else {
            first = token == Token::Semicolon;
            (before, sets) = (K::None, false);
            continue;
        };
        let is = folded(word);
        if sets && !is_of_transaction(is) {
            pins.add(PinReason::Set);
        }
        sets = first && is == K::Set;
        look(is, before, first, pins);
        let begins = |w: &&[u8]| word.eq_ignore_ascii_case(w);
        first = [&b"begin"[..], b"then", b"else", b"loop"].iter().any(begins);
        before = is;
    }
}

/// SQL in literals: any word behind a quote may begin a statement, and so may any in another language.
fn dynamic(body: &[u8], head: &mut Head, sql: bool) -> Pins {
    let (mut pins, mut before, mut sets, mut calls) = (Pins::NONE, K::None, false, 0_usize);
    for (at, word) in words(body) {
        let is = folded(word);
        if sets && !is_of_transaction(is) {
            pins.add(PinReason::Set);
        }
        let quoted = body[..at].trim_ascii_end().last().is_some_and(|b| matches!(b, b'\'' | b'"' | b'$'));
        sets = quoted && is == K::Set;
        look(is, before, quoted, &mut pins);
        if let Some(lower) = lowered(word, &mut [0; MAX_NAME]) {
            head.call(lower);
            calls += usize::from(lower == b"set_config");
        }
        // What PL/Python, PL/Perl and PL/Tcl keep for a session.
        if !sql && matches!(word, b"GD" | b"SD" | b"_SHARED") {
            pins.add(PinReason::Extension);
        }
        before = is;
    }
    if calls > if sql { plain_calls(body) } else { 0 } {
        pins.add(PinReason::Set);
    }
    pins
}

/// How often `set_config` stands outside literals and comments.
fn plain_calls(body: &[u8]) -> usize {
    let (mut lexer, mut found) = (Lexer::new(body), 0);
    while let Some(token) = lexer.next() {
        match token {
            Token::Word(word) | Token::Quoted(word) => found += usize::from(word.eq_ignore_ascii_case(b"set_config")),
            _ => {}
        }
    }
    found
}

/// A word; `first`: it begins a statement.
fn look(word: K, before: K, first: bool, pins: &mut Pins) {
    match word {
        K::Reset if first => pins.add(PinReason::Set),
        K::Listen if first => pins.add(PinReason::Listen),
        K::Load if first => pins.add(PinReason::Load),
        K::Prepare if first => pins.add(PinReason::Prepare),
        K::Hold if before == K::With => pins.add(PinReason::HeldCursor),
        K::Temp if matches!(before, K::Create | K::Replace | K::Local | K::Global | K::Into) => {
            pins.add(PinReason::Temp);
        }
        _ => {}
    }
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
        body_leaves(body.as_bytes(), true, &FunctionTable::unloaded()).0.list()
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
            ("begin execute $x$ select set_config('a', 'b', false) $x$; end", &[P::Set]),
            ("begin create temp table made(a int); end", &[P::Temp]),
            ("begin execute 'create local temporary table made(a int)'; end", &[P::Temp]),
            ("begin select 1 into temp t2; end", &[P::Temp]),
            ("declare temp int; begin temp := 1; end", &[]),
            ("begin perform pg_advisory_lock(5); end", &[P::AdvisoryLock]),
            ("begin perform pg_advisory_xact_lock(5); end", &[]),
            ("begin execute 'listen abc'; end", &[P::Listen]),
            ("begin return nextval('s') + currval('s'); end", &[]),
            ("begin /* set role r1; */ return 'x'; end", &[]),
        ] {
            assert_eq!(leaves(body), want, "{body}");
        }
    }

    #[test]
    fn it_is_found_in_other_languages_too() {
        let leaves = |body: &str| body_leaves(body.as_bytes(), false, &FunctionTable::unloaded()).0.list();
        assert_eq!(leaves("plpy.execute(\"set role r1\")"), [PinReason::Set]);
        assert_eq!(leaves("GD['x'] = 1\nreturn set([1])"), [PinReason::Extension]);
        assert_eq!(leaves("temp = 1\nfor x in set(y): temp += x"), []);
    }

    #[test]
    fn what_ends_a_pin_is_found() {
        let ends = |body: &str| body_leaves(body.as_bytes(), true, &FunctionTable::unloaded()).1;
        assert!(ends("begin perform pg_advisory_unlock(5); end") && ends("begin x := 1; drop table made; end"));
        assert!(!ends("begin perform pg_advisory_lock(5); end"));
    }
}
