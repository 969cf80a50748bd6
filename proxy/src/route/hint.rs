//! What a statement says of itself in a comment before its first word: `/* pgtenure: read_from=primary */ select 1`.
//!
//! It is read from the client's own text each time the text is executed, so that sessions which share a prepared
//! statement on a server do not share the first one's hint.

use super::promise::{COMMENT, PREFIX};
use crate::sql::first_of;

/// Settings that a statement names for itself, with their values.
pub type Hints = Vec<(String, String)>;

/// Names and values.
pub fn pairs(hints: &Hints) -> impl Iterator<Item = (&str, &str)> {
    hints.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

/// Longest comment that is read, bytes.
const LONGEST: usize = 256;

/// The settings that a text names for itself, in full and in lower case, with their values; what cannot be read of them as
/// one that does not exist. None when it has no such comment.
pub fn settings(sql: &[u8]) -> Hints {
    let mut text = sql;
    while let Some((comment, rest)) = comment(text) {
        if let Some(words) = comment.trim_ascii_start().strip_prefix(b"pgtenure:") {
            return match std::str::from_utf8(words) {
                Ok(words) if words.len() <= LONGEST => words.split(',').filter_map(setting).collect(),
                Ok(_) => vec![bad("is too long")],
                Err(_) => vec![bad("is not UTF-8")],
            };
        }
        text = rest;
    }
    Vec::new()
}

/// The same where a text may say so of a statement behind its first: that is not read.
fn behind(sql: &[u8]) -> Hints {
    let mut text = sql;
    while let Some((_, rest)) = comment(text) {
        text = rest;
    }
    const SAYS: &[u8] = b"pgtenure:";
    let mut at = (0..text.len().saturating_sub(SAYS.len() - 1)).filter(|i| text[*i..].starts_with(SAYS));
    // Also where that stands in a literal.
    let says = at.any(|i| {
        let before = text[..i].trim_ascii_end();
        before.ends_with(b"/*") || before.ends_with(b"--")
    });
    if says { vec![bad("is not before the first statement of its string")] } else { Vec::new() }
}

/// What a text says of its statements, one by one: its comment speaks for the first of a string, and the others say nothing.
pub fn of_each(sql: &[u8]) -> Vec<Hints> {
    if sql.trim_ascii().is_empty() {
        return Vec::new();
    }
    let (first, behind) = (settings(sql), behind(sql));
    let says = !first.is_empty() || !behind.is_empty();
    let others = says && sql.contains(&b';') && !first_of(sql).1.trim_ascii().is_empty();
    std::iter::once(first).chain(others.then_some(behind)).collect()
}

fn bad(why: &str) -> (String, String) {
    (COMMENT.to_owned(), why.to_owned())
}

/// The comment that a text begins with, and what is behind it.
fn comment(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    if let Some(line) = text.strip_prefix(b"--") {
        let end = line.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(line.len());
        return Some(line.split_at(end));
    }
    let inside = text.strip_prefix(b"/*")?;
    let (mut depth, mut at) = (1, 0);
    loop {
        at += match inside.get(at..at + 2)? {
            b"*/" if depth == 1 => return Some((&inside[..at], &inside[at + 2..])),
            b"*/" => {
                depth -= 1;
                2
            }
            b"/*" => {
                depth += 1;
                2
            }
            _ => 1,
        };
    }
}

fn setting(pair: &str) -> Option<(String, String)> {
    // What has no value is no setting that there is.
    let (name, value) = pair.split_once('=').unwrap_or((pair, "?"));
    let value = value.trim();
    let plain = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')).unwrap_or(value);
    let name = name.trim().to_ascii_lowercase();
    (!pair.trim().is_empty()).then(|| (format!("{PREFIX}{name}"), plain.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_before_the_first_word_is_read() {
        for (sql, want) in [
            ("/* pgtenure: consistency=eventual */ select 1", &[("pgtenure.consistency", "eventual")][..]),
            (
                " \n/*pgtenure: Max_Replay_Lag = '500ms',after=3-3-0/1 */select 1",
                &[("pgtenure.max_replay_lag", "500ms"), ("pgtenure.after", "3-3-0/1")],
            ),
            ("/* pgtenure: */ select 1", &[]),
            ("/* other: read_from=primary */ select 1", &[]),
            ("select /* pgtenure: read_from=primary */ 1", &[]),
            ("-- pgtenure: read_from=primary\nselect 1", &[("pgtenure.read_from", "primary")]),
            (
                "/* dao /* 7 */ */ -- y\n/* pgtenure: read_from=primary */ select 1",
                &[("pgtenure.read_from", "primary")],
            ),
            ("/* pgtenure: read_from primary */ select 1", &[("pgtenure.read_from primary", "?")]),
            ("/* pgtenure: read_from=primary", &[]),
            ("", &[]),
        ] {
            let got = settings(sql.as_bytes());
            let got: Vec<_> = got.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(got, want, "{sql}");
        }
        let long = format!("/* pgtenure: read_from=primary {} */ select 1", "x".repeat(LONGEST));
        assert_eq!(settings(long.as_bytes()), [bad("is too long")]);
        assert_eq!(behind(b"/* pgtenure: read_from=primary */ select 1; select 2"), []);
        assert_eq!(behind(b"select 'pgtenure: x'; select 2"), []);
        assert_eq!(behind(b"select 1; /* pgtenure: read_from=primary */ select 2").len(), 1);
    }
}
