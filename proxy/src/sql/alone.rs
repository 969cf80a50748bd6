//! Which commands take that nobody is connected to another database: DROP DATABASE, CREATE DATABASE … TEMPLATE and some of ALTER
//! DATABASE.

use super::lexer::{Lexer, Token};

/// Tokens in which the name is looked for.
const MAX_TOKENS: usize = 64;

/// The database that nobody else may be connected to while this runs, if it is such a command.
pub fn alone_in(sql: &[u8]) -> Option<String> {
    let first = sql.iter().find(|b| !b.is_ascii_whitespace())?;
    // Of most writes that is all that is read. A comment may be before it.
    if !matches!(first, b'A' | b'a' | b'C' | b'c' | b'D' | b'd' | b'/' | b'-') {
        return None;
    }
    let mut tokens = Lexer::new(sql);
    let Some(Token::Word(command)) = tokens.next() else { return None };
    let (drop, alter) = (command.eq_ignore_ascii_case(b"drop"), command.eq_ignore_ascii_case(b"alter"));
    if !(drop || alter || command.eq_ignore_ascii_case(b"create")) || !is(tokens.next(), "database") {
        return None;
    }
    let mut named = tokens.next();
    if drop && is(named, "if") {
        tokens.next();
        named = tokens.next();
    }
    if drop {
        return name(named);
    }
    if alter {
        let (verb, what) = (tokens.next(), tokens.next());
        let moves = is(verb, "rename") && is(what, "to") || is(verb, "set") && is(what, "tablespace");
        return if moves { name(named) } else { None };
    }
    (0..MAX_TOKENS).find(|_| is(tokens.next(), "template"))?;
    match tokens.next() {
        Some(Token::Operator) => name(tokens.next()),
        template => name(template),
    }
}

fn is(token: Option<Token<'_>>, word: &str) -> bool {
    matches!(token, Some(Token::Word(w)) if w.eq_ignore_ascii_case(word.as_bytes()))
}

fn name(token: Option<Token<'_>>) -> Option<String> {
    match token {
        Some(Token::Word(word)) => String::from_utf8(word.to_ascii_lowercase()).ok(),
        Some(Token::Quoted(name)) if !name.contains(&b'"') => String::from_utf8(name.to_vec()).ok(),
        // A string, say, or a name with quotes in it: PostgreSQL's own word about its connections stands then.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::alone_in;

    #[test]
    fn the_database_is_named_that_nobody_else_may_be_in() {
        for (sql, want) in [
            ("DROP DATABASE IF EXISTS \"test App\"", Some("test App")),
            ("/* x */ drop database Test_App with (force);", Some("test_app")),
            ("alter database a rename to b", Some("a")),
            ("ALTER DATABASE a SET TABLESPACE fast", Some("a")),
            ("alter database a set work_mem = '1MB'", None),
            ("create database b owner x template = a", Some("a")),
            ("CREATE DATABASE b TEMPLATE a", Some("a")),
            ("create database b", None),
            ("drop table database", None),
            ("delete from database", None),
            ("select 1", None),
            ("", None),
        ] {
            assert_eq!(alone_in(sql.as_bytes()).as_deref(), want, "{sql}");
        }
    }
}
