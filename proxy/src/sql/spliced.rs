//! A SET in a literal whose setting is put together there: `EXECUTE 'set app.' || name || ...`, `format('set %I = %L', ...)`.
//! Pure.
//!
//! The server lists no custom settings, so one that is set so is known by nobody. Most literals that begin with `set ` and
//! show nothing behind it are a clause of an UPDATE that is put together; what stands before them tells them apart.

use super::classify::words;
use super::lexer::is_word;
use std::ops::Range;

/// Does a literal set what it does not show?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spliced {
    /// It shows all that it sets.
    No,
    /// Perhaps.
    Maybe,
    /// Nothing else can be meant.
    Surely,
}

/// Does a SET in this part of `body`, which is a literal of it or all of it, name what it does not show?
pub(super) fn spliced(body: &[u8], part: Range<usize>) -> Spliced {
    let found = words(&body[part.clone()]).filter(|(_, word)| word.eq_ignore_ascii_case(b"set"));
    found
        .map(|(at, word)| one(&body[..part.start + at], &body[part.start + at + word.len()..part.end]))
        .max()
        .unwrap_or(Spliced::No)
}

/// One SET, behind and before these.
fn one(ahead: &[u8], behind: &[u8]) -> Spliced {
    let Some(begins) = Beginning::of(ahead) else { return Spliced::No };
    if !behind.first().is_some_and(u8::is_ascii_whitespace) {
        // A literal that is this word alone, among others that are put together, is no value that something is compared with.
        return if is_piece(ahead, behind) { Spliced::Maybe } else { Spliced::No };
    }
    match (Shown::of(behind), begins) {
        (Shown::All, _) | (Shown::Nothing | Shown::Begun, Beginning::GoesOn) => Spliced::No,
        (Shown::Custom, Beginning::GoesOn) | (Shown::Nothing, Beginning::Begins) | (Shown::Begun, _) => Spliced::Maybe,
        (Shown::Custom, Beginning::Begins | Beginning::Executed) | (Shown::Nothing, Beginning::Executed) => {
            Spliced::Surely
        }
    }
}

/// Is it all of a literal that something is put together of?
fn is_piece(ahead: &[u8], behind: &[u8]) -> bool {
    let Some(before) = ahead.strip_suffix(b"'") else { return false };
    let (before, behind) = (before.trim_ascii_end(), behind.strip_prefix(b"'").unwrap_or_default().trim_ascii_start());
    matches!(before, [.., b'|' | b',']) || behind.starts_with(b"||") || ends_with(before, b"execute")
}

/// What a word is the first of.
#[derive(Clone, Copy)]
enum Beginning {
    /// A literal that goes on with something.
    GoesOn,
    /// A statement in a literal.
    Begins,
    /// A literal that is executed.
    Executed,
}

impl Beginning {
    /// Of the word behind this text. `None`: something else in its literal stands before it.
    fn of(ahead: &[u8]) -> Option<Self> {
        let ahead = ahead.trim_ascii_end();
        let quotes = |text: &[u8]| text.iter().rev().take_while(|b| matches!(b, b'\'' | b'"' | b'`' | b'\\')).count();
        let before = match ahead {
            [] => return Some(Self::Begins),
            [.., b';' | b'{' | b'('] => return Some(Self::Begins),
            [rest @ .., b'$'] => &rest[..rest.iter().rposition(|b| *b == b'$')?],
            // One that ends a name in quotes ends no literal.
            [.., b'"'] if in_quotes(ahead) => return None,
            _ if quotes(ahead) > 0 => &ahead[..ahead.len() - quotes(ahead)],
            _ => {
                let opens = [&b"begin"[..], b"then", b"else", b"loop"].iter().any(|word| ends_with(ahead, word));
                return opens.then_some(Self::Begins);
            }
        };
        Some(Self::of_literal(before))
    }

    /// Of the first word of the literal behind this text.
    fn of_literal(before: &[u8]) -> Self {
        let mut before = before.trim_ascii_end();
        if before.ends_with(b"E") || before.ends_with(b"e") && !ends_with(before, b"execute") {
            before = before[..before.len() - 1].trim_ascii_end();
        }
        loop {
            before = before.trim_ascii_end();
            before = match before.strip_suffix(b"(") {
                Some(rest) => rest,
                None if ends_with(before, b"format") || ends_with(before, b"concat") => &before[..before.len() - 6],
                None => break,
            };
        }
        match before {
            [.., b'|' | b',' | b'+' | b'.'] => Self::GoesOn,
            _ if ends_with(before, b"execute") => Self::Executed,
            _ => Self::Begins,
        }
    }
}

fn ends_with(text: &[u8], word: &[u8]) -> bool {
    let Some(at) = text.len().checked_sub(word.len()) else { return false };
    text[at..].eq_ignore_ascii_case(word) && !text[..at].last().is_some_and(|b| is_word(*b))
}

/// Is the last `"` the end of what is quoted, as far as that began in the same literal?
fn in_quotes(text: &[u8]) -> bool {
    let literal = text.iter().rposition(|b| *b == b'\'').map_or(text, |at| &text[at..]);
    literal.iter().filter(|b| **b == b'"').count() % 2 == 0
}

/// What the text behind SET shows of the setting's name.
#[derive(Clone, Copy)]
enum Shown {
    /// All of it, or it is a setting of the transaction's.
    All,
    /// That it is a custom one.
    Custom,
    /// How it begins, without a dot.
    Begun,
    /// Nothing.
    Nothing,
}

impl Shown {
    fn of(behind: &[u8]) -> Self {
        let mut behind = behind.trim_ascii_start();
        let is = |text: &[u8], word: &[u8]| {
            text.len() > word.len()
                && text[..word.len()].eq_ignore_ascii_case(word)
                && text[word.len()].is_ascii_whitespace()
        };
        if is(behind, b"local") {
            return Self::All;
        }
        if is(behind, b"session") {
            behind = behind[b"session".len()..].trim_ascii_start();
        }
        let part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.' | b'"' | 0x80..);
        let name = &behind[..behind.iter().position(|b| !part(b)).unwrap_or(behind.len())];
        let rest = &behind[name.len()..];
        // The literal ends there, or a place for something begins.
        let cut = matches!(rest, [] | [b'\'' | b'`' | b'{', ..]) || is_place(rest);
        match name {
            [] if cut => Self::Nothing,
            // The end of a literal that began with such a mark.
            [b'$', ..] => Self::Nothing,
            [b'"', tail @ ..] if cut && !tail.contains(&b'.') => Self::Nothing,
            [.., b'.'] => Self::Custom,
            _ if cut && name.contains(&b'.') => Self::Custom,
            _ if cut => Self::Begun,
            _ => Self::All,
        }
    }
}

/// `%I`, `%1$s` and the like.
fn is_place(text: &[u8]) -> bool {
    let Some(form) = text.strip_prefix(b"%") else { return false };
    form.iter().find(|b| !b.is_ascii_digit() && **b != b'$').is_some_and(|b| matches!(b, b'I' | b's' | b'L'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::classify::literals;

    #[test]
    fn a_set_whose_setting_is_put_together_is_told_from_a_clause() {
        let of = |body: &str| {
            let body = body.as_bytes();
            literals(body).map(|(at, literal)| spliced(body, at..at + literal.len())).max().unwrap_or(Spliced::No)
        };
        use Spliced::{Maybe, No, Surely};
        for (body, want) in [
            ("execute format('set app.%I = %L', k, v)", Surely),
            ("execute format('SET session %I = %L', k, v)", Surely),
            ("execute format('set app.\"%s\" = %L', k, v)", Surely),
            ("execute 'set ' || k || ' = 1'", Surely),
            ("execute $x$ set $x$ || k || ' = 1'", Surely),
            ("execute 'set app.' || k || ' = 1'", Surely),
            ("q := 'set app.' || k || ' = 1'", Surely),
            ("q := 'select 1; set app.' || k", Surely),
            ("execute 'do $y$ begin set app.' || k || ' = 1; end $y$'", Surely),
            ("q := 'set ' || k || ' = 1'", Maybe),
            ("q := format('set %I = %L', k, v)", Maybe),
            ("q := 'update t' || ' set pos.' || c", Maybe),
            ("execute format('set app_%s.tenant = %L', k, v)", Maybe),
            ("execute 'set app' || '.' || k", Maybe),
            ("execute concat_ws(' ', 'set', k, '=', quote_literal(v))", Maybe),
            ("execute 'SET' || ' ' || k", Maybe),
            ("execute format('update \"t\" set %I = %L', c, v)", No),
            ("execute 'update \"t\" set \"' || c || '\" = 1'", No),
            ("execute 'set role' || ' r1'", Maybe),
            ("execute 'set app.x = ' || v", No),
            ("execute 'set app.x to ' || v", No),
            ("execute format('set role %I', r)", No),
            ("execute 'set role ' || r", No),
            ("execute 'set session authorization ' || r", No),
            ("execute format('set local app.%I = %L', k, v)", No),
            ("execute 'update t set ' || c || ' = 1'", No),
            ("execute 'update ' || t || ' set ' || c || ' = 1'", No),
            ("execute 'update ' || t || format(' set %I = %L', c, v)", No),
            ("execute concat('update ', t, ' set ', c)", No),
            ("execute format('update %I set %I = %L', t, c, v)", No),
            ("if action = 'set' then raise notice 'set % to %', k, v", No),
        ] {
            assert_eq!(of(body), want, "{body}");
        }
        let python = b"plpy.execute(\"set app.%s = '%s'\" % (k, v))";
        assert_eq!(spliced(python, 0..python.len()), Surely);
        let python = b"plpy.execute(\"update t set a = %s\" % v)";
        assert_eq!(spliced(python, 0..python.len()), No);
    }
}
