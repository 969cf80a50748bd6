//! Does EXECUTE in a body, or in DO, run what no literal of it shows? Pure.
//!
//! What a text sets that is put together elsewhere is known by nobody: the server lists no custom settings. So such a body
//! may leave anything, which costs its callers a question and the next client of the connection a reset. EXECUTE shows what
//! it runs where its text begins with a literal, and that with the first words of a statement, as nearly all do.

use super::body::{code, literals, whole, words};
use crate::sql::lexer::{Lexer, Token};

/// Does a readable body run what is in a literal?
pub(in crate::sql) fn executes(body: &[u8]) -> bool {
    let mut lexer = Lexer::new(body);
    while let Some(token) = lexer.next() {
        match token {
            Token::Word(word) if word.eq_ignore_ascii_case(b"execute") => return true,
            Token::Odd => return names_execute(body),
            _ => {}
        }
    }
    false
}

fn names_execute(text: &[u8]) -> bool {
    text.windows(7).any(|word| word.eq_ignore_ascii_case(b"execute"))
}

/// Where in an EXECUTE is this?
#[derive(Clone, Copy)]
enum Executed<'a> {
    /// In none.
    Outside,
    /// Behind the word itself, and if not `bare` a parenthesis.
    Begun { bare: bool },
    /// Behind this literal of it. `over`: that ended a statement.
    Shown { literal: &'a [u8], over: bool },
}

/// Does a readable body run what no literal of it shows? Each EXECUTE does whose text does not begin with a literal that
/// shows a statement, or where whole pieces of SQL, or the name of a function, are put in.
pub(super) fn executes_anything(body: &[u8]) -> bool {
    let (mut lexer, mut within) = (Lexer::new(body), Executed::Outside);
    while let Some(token) = lexer.next() {
        let is = |word: &[u8]| matches!(token, Token::Word(w) if w.eq_ignore_ascii_case(word));
        let called = body[lexer.at()..].trim_ascii_start().starts_with(b"(");
        let ends = token == Token::Semicolon || is(b"using") || is(b"into") || is(b"loop");
        within = match within {
            _ if token == Token::Odd => return names_execute(body),
            _ if is(b"execute") => Executed::Begun { bare: true },
            Executed::Outside => continue,
            // EXECUTE FUNCTION of a trigger, GRANT EXECUTE ON.
            Executed::Begun { bare: true } if is(b"on") => Executed::Outside,
            Executed::Begun { bare: true } if is(b"function") || is(b"procedure") => {
                // Else it is a variable of that name.
                if !names_called(&body[lexer.at()..]) {
                    return true;
                }
                Executed::Outside
            }
            Executed::Begun { .. } if token == Token::Open => Executed::Begun { bare: false },
            Executed::Begun { .. } if (is(b"format") || is(b"concat")) && called => Executed::Begun { bare: false },
            Executed::Shown { .. } if ends => Executed::Outside,
            Executed::Shown { over: true, .. } if token != Token::Close => return true,
            Executed::Begun { .. } | Executed::Shown { .. } if token == Token::Literal => {
                let Some(literal) = whole(body, &mut lexer) else { return true };
                let before = match within {
                    Executed::Shown { literal, .. } => Some(literal),
                    Executed::Begun { .. } | Executed::Outside => None,
                };
                let begins = before.is_some() || shows_statement(code(literal)) && is_put_before(&body[lexer.at()..]);
                if !begins || puts_in_calls(before, literal) || begins_unseen(literal) {
                    return true;
                }
                Executed::Shown { literal, over: is_over(literal) }
            }
            Executed::Begun { .. } => return true,
            shown @ Executed::Shown { .. } => shown,
        };
    }
    matches!(within, Executed::Begun { .. })
}

/// Does the name of what is called follow, with a parenthesis behind it?
fn names_called(rest: &[u8]) -> bool {
    let mut lexer = Lexer::new(rest);
    loop {
        let named = match lexer.next() {
            Some(Token::Word(word)) => !word.eq_ignore_ascii_case(b"using"),
            Some(Token::Quoted(_)) => true,
            _ => false,
        };
        match lexer.next() {
            Some(Token::Dot) if named => {}
            next => return named && next == Some(Token::Open),
        }
    }
}

/// Is what stands before this the beginning of a text that is put together, or all of it?
fn is_put_before(rest: &[u8]) -> bool {
    let rest = rest.trim_ascii_start();
    let ends = rest.first().is_none_or(|b| matches!(b, b';' | b',' | b')' | b'\'') || b.is_ascii_alphabetic());
    ends || rest.starts_with(b"||") || rest.starts_with(b"::")
}

/// The first words of statements of which a name, or an expression that calls what is named, may follow unseen.
const SHOWING: &str = "insert update delete merge create alter drop truncate analyze vacuum reindex cluster refresh comment \
    grant revoke lock copy listen unlisten notify reset security reassign import deallocate prepare close declare fetch move \
    load checkpoint show discard explain select with values table call execute set";

/// Does a text begin with a statement of which it shows enough to tell that it sets nothing, or what it sets?
fn shows_statement(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let mut lexer = Lexer::new(text);
    let mut first = lexer.next();
    while first == Some(Token::Open) {
        first = lexer.next();
    }
    let Some(Token::Word(verb)) = first else { return false };
    let is = |word: &str| verb.eq_ignore_ascii_case(word.as_bytes());
    // A word that ends with its literal may go on behind it.
    if lexer.at() == text.len() || !SHOWING.split(' ').any(is) {
        return false;
    }
    match () {
        // What stands behind a comment is not looked at.
        () if is("set") => lexer.at() == verb.len() && shows_setting(lexer),
        () if is("explain") => !words(text).take(16).any(|(_, word)| word.eq_ignore_ascii_case(b"analyze")),
        () if ["select", "with", "values", "call", "execute"].iter().any(|word| is(word)) => {
            let rest = text[lexer.at()..].trim_ascii_start();
            !rest.is_empty() && !rest.starts_with(b"/*") && !rest.starts_with(b"--")
        }
        () => true,
    }
}

/// Does the text behind a SET show which setting it is, or that it is for the transaction only?
fn shows_setting(mut lexer: Lexer<'_>) -> bool {
    let mut name = lexer.next();
    let is = |token: Option<Token<'_>>, words: &[&[u8]]| {
        let Some(Token::Word(name)) = token else { return false };
        words.iter().any(|word| name.eq_ignore_ascii_case(word))
    };
    if is(name, &[b"local"]) {
        return true;
    }
    if is(name, &[b"session"]) {
        name = lexer.next();
    }
    loop {
        if !matches!(name, Some(Token::Word(_) | Token::Quoted(_))) {
            return false;
        }
        match lexer.next() {
            Some(Token::Dot) => name = lexer.next(),
            Some(_) => return true,
            None => return is(name, &[b"role", b"authorization", b"zone", b"schema", b"names"]),
        }
    }
}

/// Does a statement within a literal, behind another, begin with what does not show it?
fn begins_unseen(literal: &[u8]) -> bool {
    behind_statements(literal).any(|text| !text.trim_ascii().is_empty() && !shows_statement(text))
}

/// Does a literal end behind the end of a statement?
fn is_over(literal: &[u8]) -> bool {
    behind_statements(literal).any(|text| text.trim_ascii().is_empty())
}

/// What stands in a literal behind semicolons that are not within literals of its own.
fn behind_statements(literal: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = code(literal);
    let doubled = 1 + usize::from(!literal.starts_with(b"$"));
    let escapes = text.contains(&b'\\');
    let mut quotes = 0_usize;
    text.iter().enumerate().filter_map(move |(at, byte)| {
        quotes += usize::from(*byte == b'\'');
        (*byte == b';' && (escapes || (quotes / doubled).is_multiple_of(2))).then(|| &text[at + 1..])
    })
}

/// May what is put into a literal, or between it and the one `before`, be more than the name of a relation or a value?
fn puts_in_calls(before: Option<&[u8]>, literal: &[u8]) -> bool {
    let text = literal.strip_prefix(b"'").unwrap_or(literal);
    let called = |at: usize| text[at + 1..].trim_ascii_start().starts_with(b"(");
    // A place for something, of which a letter tells what, and what stands before it.
    let place = |at: usize| {
        let form = text[..at].iter().rposition(|b| !b.is_ascii_digit() && *b != b'$')?;
        (text[form] == b'%').then(|| &text[..form])
    };
    let behind = before.map_or(&b""[..], |before| before.strip_suffix(b"'").unwrap_or(before));
    text.trim_ascii_start().starts_with(b"(") && !names_relation(behind, true)
        || text.iter().enumerate().any(|(at, b)| match b {
            b's' => place(at).is_some_and(|ahead| !names_relation(ahead, called(at))),
            b'I' => called(at) && place(at).is_some_and(|ahead| !names_relation(ahead, true)),
            _ => false,
        })
}

/// Is what stands behind this text the name of a relation, with its columns behind it?
fn names_relation(ahead: &[u8], columns: bool) -> bool {
    let mut ahead = ahead.trim_ascii_end();
    while let Some(schema) = ahead.strip_suffix(b".") {
        let from = schema.iter().rposition(u8::is_ascii_whitespace).map_or(0, |at| at + 1);
        ahead = schema[..from].trim_ascii_end();
    }
    let from = ahead.iter().rposition(|b| !b.is_ascii_alphabetic()).map_or(0, |at| at + 1);
    let is = |words: &[&[u8]]| words.iter().any(|word| ahead[from..].eq_ignore_ascii_case(word));
    is(&[b"into", b"table", b"exists", b"on", b"of", b"view"])
        || !columns && is(&[b"from", b"join", b"update", b"only"])
}

/// Does a DO, or anything else of which the code stands in a literal, run what no literal of that shows?
pub(super) fn runs_anything(sql: &[u8]) -> bool {
    in_other_language(sql) || literals(sql).any(|(_, literal)| executes_anything(code(literal)))
}

/// Is the code of a DO in a language that is not read here?
fn in_other_language(sql: &[u8]) -> bool {
    let (mut lexer, mut language) = (Lexer::new(sql), false);
    while let Some(token) = lexer.next() {
        let name = lexer.last();
        let known = [&b"plpgsql"[..], b"sql"].iter().any(|known| code(name).eq_ignore_ascii_case(known));
        match token {
            Token::Odd => return false,
            Token::Word(_) | Token::Quoted(_) | Token::Literal if language && !known => return true,
            _ => language = matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(b"language")),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_runs_what_it_does_not_show_may_leave_anything() {
        let anything = |body: &str| executes(body.as_bytes()) && executes_anything(body.as_bytes());
        for (body, want) in [
            ("begin execute q; end", true),
            ("begin execute format(q, x) into y; end", true),
            ("begin execute 'select ' || f || '()'; end", true),
            ("begin execute format('select %I(1)', f); end", true),
            ("begin execute format('select %1$s', list) into x; end", true),
            ("begin for r in execute q loop x := 1; end loop; end", true),
            // Whatever literals there are, they do not show how it begins.
            ("begin execute (select q from jobs where name = 'nightly'); end", true),
            ("begin execute q || ';'; end", true),
            ("begin execute coalesce(q, 'select 1'); end", true),
            ("begin execute replace('select 1', 'select 1', q); end", true),
            ("begin execute case when a then q else 'select 1' end; end", true),
            ("begin execute concat('SET', ' ', k, ' = ', quote_literal(v)); end", true),
            ("begin execute ('SET' || ' ' || k); end", true),
            ("begin execute concat_ws(' ', 'set', k, '=', v); end", true),
            ("begin execute array_to_string(array['set', k, v], ' '); end", true),
            ("begin execute '/* app */ ' || ' set ' || k; end", true),
            ("begin execute '/* app */ set ' || k; end", true),
            ("begin execute prefix || 'set ' || k; end", true),
            ("begin execute 'set /* app */ ' || k; end", true),
            ("begin execute 'set app . ' || k; end", true),
            ("begin execute 'set app' || '.x = 1'; end", true),
            ("begin execute 'sel' || 'ect 1'; end", true),
            ("begin execute 'select ' || f; end", true),
            ("begin execute 'call ' || f; end", true),
            ("begin execute format('%s', q); end", true),
            ("begin execute format('%s 1', q); end", true),
            ("begin execute E'\\x73et ' || k; end", true),
            ("begin execute 'select 1; ' || q; end", true),
            ("begin execute format('select 1; %s', q); end", true),
            ("begin execute 'do ' || quote_literal(q); end", true),
            ("begin execute 'explain analyze ' || q; end", true),
            ("begin x := 0x1f; execute q; end", true),
            ("begin execute 'set role ' || quote_ident(r); end", false),
            ("begin execute 'set local ' || k || ' = 1'; end", false),
            ("begin execute 'set search_path to ' || s; end", false),
            ("begin execute 'reset role'; end", false),
            ("begin execute E'select \\'a\\'\\n from t'; end", false),
            ("begin execute 'select ''a'', '';'', 1 from t' into x; end", false),
            ("begin execute $q$select ';', 1 from t; select 2$q$; end", false),
            ("begin execute 'select 1; select 2;'; end", false),
            ("begin execute /* nightly */ $q$ select a from t where b = $1 $q$ using y; end", false),
            ("begin execute '/* app */ select a from t'; end", false),
            ("begin execute '(select 1 from t) union (select 2 from t)'; end", true),
            ("begin execute 'with a as (select 1) select * from a' into x; end", false),
            ("begin execute ('delete from t where a = ' || quote_literal(v)); end", false),
            ("begin execute concat('truncate ', t); execute 'analyze ' || t::regclass; end", false),
            ("begin execute format('alter table %I add column %I %s', t, c, y); end", true),
            ("begin execute format('create index if not exists %I on %I (%I)', i, t, c); end", false),
            (
                "begin execute format($f$create table %I partition of %I for values from (%L) to (%L)$f$, a, b, c, d); end",
                false,
            ),
            ("begin return query execute 'select * from t where ' || c || ' = $1' using v; end", false),
            ("begin for r in execute 'select * from ' || quote_ident(t) loop x := 1; end loop; end", false),
            ("begin for r in execute 'explain (format json) ' || q loop x := 1; end loop; end", false),
            ("begin open c for execute 'select a from t order by ' || o; end", false),
            (
                "begin execute 'refresh materialized view ' || v::text; execute 'drop table if exists ' || t || ' cascade'; end",
                false,
            ),
            ("begin execute 'grant select on ' || t || ' to ' || quote_ident(r); execute 'notify ' || ch; end", false),
            ("begin execute 'update ' || t || ' set a = 1 where b = ' || quote_literal(v); end", false),
            ("begin execute 'select 1'; execute q using x; end", true),
            ("begin execute format('set role %I', r); end", false),
            ("begin execute format('insert into %I (a) values ($1)', t) using x; end", false),
            ("begin execute 'create table ' || quote_ident(t) || ' (a int)'; end", false),
            ("begin execute format('insert into %s values ($1.*)', t) using new; end", false),
            ("begin execute format('insert into %I.%I (a) values (1)', s, t); end", false),
            ("begin execute 'insert into ' || t || ' (a) values (1)'; end", false),
            ("begin execute format('select * from %s where a = 1', t) into x; end", false),
            ("begin execute format('select * from %I(1)', f); end", true),
            ("begin execute 'drop table ' || quote_ident(t); end", false),
            (
                "begin create trigger a after insert on t execute function b(); grant execute on function b to c; end",
                false,
            ),
            ("begin create trigger a after insert on t execute procedure \"A\" . b /* all */ (1); end", false),
            ("begin execute procedure; end", true),
            ("begin execute function || ' from t'; end", true),
            ("begin execute function(1); end", true),
            ("begin execute procedure into x using (a); end", true),
            ("begin execute procedure using (a); end", true),
            ("begin perform x; end", false),
        ] {
            assert_eq!(anything(body), want, "{body}");
        }
    }

    #[test]
    fn a_do_that_runs_what_it_does_not_show_is_found_in_any_language_and_quotes() {
        for (sql, want) in [
            ("do $$ begin execute q; end $$", true),
            ("do E'begin execute q; end'", true),
            ("do E'begin\\n execute \\'select 1\\'; execute q; end'", true),
            ("do E'begin perform 1; end'", false),
            // Its quotes are read as they stand.
            ("do 'begin execute ''select a from t''; end'", true),
            ("do language plpgsql $$ begin perform 1; end $$", false),
            ("do $$ begin perform 1; end $$ language \"plpgsql\"", false),
            ("do language plpython3u $$ plpy.execute(q); log('select 1') $$", true),
            ("do $$ spi_exec_query($q) $$ language 'plperl'", true),
        ] {
            assert_eq!(runs_anything(sql.as_bytes()), want, "{sql}");
        }
    }
}
