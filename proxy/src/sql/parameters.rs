//! The parameters of a text. Pure.

use super::lexer::{Lexer, Token};
use std::ops::Range;

/// What a text begins with whose parameters PostgreSQL looks for when it is prepared. In what it only executes none are.
const ANALYSED: [&[u8]; 8] = [b"select", b"values", b"with", b"table", b"insert", b"update", b"delete", b"merge"];

/// The highest number of a parameter in a query or a change of rows, 0 when it has none; `None` for other texts, and when
/// it cannot be read with certainty.
pub fn highest_parameter(sql: &[u8]) -> Option<u16> {
    // Where a backslash or another encoding's byte stands, a literal may end elsewhere.
    if sql.iter().any(|b| *b == b'\\' || !b.is_ascii()) {
        return None;
    }
    let (mut lexer, mut highest) = (Lexer::new(sql), 0);
    let mut opened = Lexer::new(sql);
    let first = std::iter::from_fn(|| opened.next()).find(|token| *token != Token::Open);
    if !matches!(first, Some(Token::Word(word)) if ANALYSED.iter().any(|one| one.eq_ignore_ascii_case(word))) {
        return None;
    }
    while let Some(token) = lexer.next() {
        match (token, lexer.last()) {
            (Token::Odd, _) => return None,
            (Token::Literal, [b'$', digits @ ..]) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                highest = highest.max(std::str::from_utf8(digits).ok()?.parse().ok()?);
            }
            _ => {}
        }
    }
    Some(highest)
}

/// Where parameters stand in a text, and their numbers; none where it cannot be read with certainty.
pub fn parameters(sql: &[u8]) -> Vec<(Range<usize>, u16)> {
    let (mut lexer, mut found) = (Lexer::new(sql), Vec::new());
    while let Some(token) = lexer.next() {
        match (token, lexer.last()) {
            (Token::Odd, _) => return Vec::new(),
            (Token::Literal, [b'$', digits @ ..]) => {
                let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                found.extend(number.map(|number| (lexer.at() - 1 - digits.len()..lexer.at(), number)));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{highest_parameter, parameters};

    #[test]
    fn parameters_are_counted_where_they_are_some() {
        for (sql, want) in [
            ("select 1", Some(0)),
            ("select $1, $12 + $3", Some(12)),
            ("select a$5, '$7', \"$8\", $$ $9 $$ -- $4", Some(0)),
            ("select $1::int /* $2 */", Some(1)),
            ("select '\\', $1", None),
            ("select 'é', $1", None),
            ("select '$1", None),
            ("select $70000", None),
            ("((VALUES ($2)))", Some(2)),
            ("/* $3 */ With a as (select $1) select $2", Some(2)),
            ("create function f(int) returns int return $1", None),
            ("prepare x(int) as select $1", None),
            ("selects $1", None),
            ("", None),
        ] {
            assert_eq!(highest_parameter(sql.as_bytes()), want, "{sql}");
        }
    }

    #[test]
    fn parameters_are_found_where_they_stand() {
        for (sql, want) in [
            ("select f('$1', $1, $12)", &[("$1", 1), ("$12", 12)][..]),
            ("select a$5, $$ $9 $$, $x$ $1 $x$ -- $4", &[]),
            ("select $1, '", &[]),
            ("select $70000, $2", &[("$2", 2)]),
        ] {
            let found = parameters(sql.as_bytes());
            let found: Vec<_> = found.into_iter().map(|(at, number)| (&sql[at], number)).collect();
            assert_eq!(found, want, "{sql}");
        }
    }
}
