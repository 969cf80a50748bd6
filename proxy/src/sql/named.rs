//! The prepared statements that a text names, and what it prepares.
//!
//! Called only for texts that [`classify`](super::classify()) says are of that kind. A name is what the server makes of
//! it: folded, its quotes undone, cut. One of which that is not certain is none.

use super::lexer::{Lexer, Token};
use std::ops::Deref;

/// NAMEDATALEN - 1: PostgreSQL cuts longer names.
const MAX_NAME: usize = 63;
/// Longest name outside ASCII, bytes: it takes up to three times as many on a server of another encoding.
const MAX_FOREIGN: usize = MAX_NAME / 3;

/// The name of a prepared statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    len: usize,
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Name {
    fn new(bytes: impl Iterator<Item = u8>) -> Option<Self> {
        let mut name = Self { bytes: [0; MAX_NAME], len: 0 };
        let (mut length, mut ascii) = (0_usize, true);
        for byte in bytes {
            length += 1;
            ascii &= byte.is_ascii();
            if name.len < MAX_NAME {
                name.bytes[name.len] = byte;
                name.len += 1;
            }
        }
        (length > 0 && (ascii || length <= MAX_FOREIGN)).then_some(name)
    }

    fn of(token: Option<Token<'_>>) -> Option<Self> {
        match token? {
            // How other letters are folded is up to the server's encoding and locale.
            Token::Word(word) if word.is_ascii() => Self::new(word.iter().map(u8::to_ascii_lowercase)),
            Token::Quoted(name) => {
                let mut after_quote = false;
                Self::new(name.iter().copied().filter(|b| {
                    after_quote = *b == b'"' && !after_quote;
                    !after_quote
                }))
            }
            _ => None,
        }
    }
}

/// Does a text, of which this is the beginning, begin with a statement about prepared statements?
pub fn about_names(sql: &[u8]) -> bool {
    let first = Lexer::new(sql).next();
    [&b"prepare"[..], b"execute", b"deallocate"].iter().any(|word| is(first, word))
}

/// Is it a FETCH? Its columns are those that its session's cursor of that name has when it is parsed.
pub fn fetches(sql: &[u8]) -> bool {
    is(Lexer::new(sql).next(), b"fetch")
}

/// The name and the statement of a PREPARE.
pub fn prepared(sql: &[u8]) -> Option<(Name, &[u8])> {
    let mut lexer = Lexer::new(sql);
    is(lexer.next(), b"prepare").then_some(())?;
    let name = Name::of(lexer.next())?;
    let mut depth = 0_u32;
    loop {
        match lexer.next()? {
            Token::Open => depth += 1,
            Token::Close => depth = depth.checked_sub(1)?,
            Token::Word(word) if depth == 0 && word.eq_ignore_ascii_case(b"as") => {
                return Some((name, &sql[lexer.at()..]));
            }
            Token::Odd | Token::Semicolon => return None,
            _ => {}
        }
    }
}

/// The statement that an EXECUTE names, wherever the text has it.
pub fn executed(sql: &[u8]) -> Option<Name> {
    let (mut lexer, mut depth) = (Lexer::new(sql), 0_u32);
    let mut before = None;
    loop {
        let token = lexer.next()?;
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.checked_sub(1)?,
            Token::Odd => return None,
            Token::Word(word) if depth == 0 && word.eq_ignore_ascii_case(b"execute") && begins_behind(before) => {
                return Name::of(lexer.next());
            }
            _ => {}
        }
        before = Some(token);
    }
}

/// May a statement begin behind this token?
fn begins_behind(before: Option<Token<'_>>) -> bool {
    match before {
        None | Some(Token::Close) => true,
        Some(Token::Word(word)) => {
            [&b"as"[..], b"explain", b"analyze", b"analyse", b"verbose"].iter().any(|w| word.eq_ignore_ascii_case(w))
        }
        Some(_) => false,
    }
}

/// The statement that a DEALLOCATE names.
pub fn deallocated(sql: &[u8]) -> Option<Name> {
    let mut lexer = Lexer::new(sql);
    is(lexer.next(), b"deallocate").then_some(())?;
    let first = lexer.next();
    if !is(first, b"prepare") {
        return Name::of(first);
    }
    match lexer.next() {
        // It may be named like the word.
        None | Some(Token::Semicolon) => Name::of(first),
        second => Name::of(second),
    }
}

fn is(token: Option<Token<'_>>, word: &[u8]) -> bool {
    matches!(token, Some(Token::Word(w)) if w.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_is_deallocated_is_found() {
        for (sql, name) in [
            ("deallocate a", Some("a")),
            ("DEALLOCATE PREPARE \"_Pg3_0\" ;", Some("_Pg3_0")),
            ("deallocate /* x */ MiXed", Some("mixed")),
            ("deallocate prepare", Some("prepare")),
            ("deallocate \"a\"\"b\"", Some("a\"b")),
            ("deallocate \"\"", None),
            ("deallocate é", None),
            ("select 1", None),
        ] {
            assert_eq!(deallocated(sql.as_bytes()).as_deref(), name.map(str::as_bytes), "{sql}");
        }
        let long = "x".repeat(70);
        assert_eq!(deallocated(format!("deallocate {long}").as_bytes()).as_deref(), Some(&long.as_bytes()[..63]));
        assert_eq!(deallocated("deallocate \"é\"".as_bytes()).as_deref(), Some("é".as_bytes()));
        assert_eq!(deallocated(format!("deallocate \"{}\"", "é".repeat(20)).as_bytes()), None);
    }

    #[test]
    fn a_prepare_is_cut_into_name_and_statement() {
        for (sql, want) in [
            ("prepare a as select 1", Some(("a", " select 1"))),
            ("PREPARE \"A b\" (int, numeric(3, 2)) AS select $1 as x", Some(("A b", " select $1 as x"))),
            ("prepare as as select 1", Some(("as", " select 1"))),
            ("prepare a (int", None),
            ("prepare a", None),
        ] {
            let got = prepared(sql.as_bytes());
            let got = got
                .as_ref()
                .map(|(name, inner)| (std::str::from_utf8(name).unwrap(), std::str::from_utf8(inner).unwrap()));
            assert_eq!(got, want, "{sql}");
        }
    }

    #[test]
    fn the_name_that_is_executed_is_found() {
        for (sql, name) in [
            ("execute a(1, 'x')", Some("a")),
            ("explain (costs off) EXECUTE \"B\"", Some("B")),
            ("explain analyze execute a", Some("a")),
            ("create temp table t(execute) as execute a (1)", Some("a")),
            ("create table execute.execute as execute c with no data", Some("c")),
            ("select 1", None),
        ] {
            assert_eq!(executed(sql.as_bytes()).as_deref(), name.map(str::as_bytes), "{sql}");
        }
    }
}
