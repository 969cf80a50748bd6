//! Settings by which texts are read: what a text means is up to them when it is parsed.

use super::lexer::{Lexer, Token};

/// Settings under which a text means the same, whatever they are: statements prepared under one are good under another.
const WITHOUT_MEANING: [&str; 11] = [
    "application_name",
    "client_min_messages",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "maintenance_work_mem",
    "statement_timeout",
    "synchronous_commit",
    "temp_buffers",
    "work_mem",
];

/// Words of a SELECT of `set_config` that mean the same whoever runs it, and when.
const PLAIN: [&str; 7] = ["select", "pg_catalog", "set_config", "true", "text", "varchar", "as"];

/// Does a setting of this name, in lower case, matter to what a text means?
pub fn tells(name: &str) -> bool {
    !WITHOUT_MEANING.contains(&name) && !name.contains('.')
}

/// Does each statement of this begin a block, or set what its own words and parameters say, the same for whoever runs it? The
/// text is read as with `standard_conforming_strings` on. What is in doubt does not.
pub fn sets_plainly(sql: &[u8]) -> bool {
    let is = |word: &[u8], what: &str| word.eq_ignore_ascii_case(what.as_bytes());
    let (mut lexer, mut before, mut selects) = (Lexer::new(sql), Token::Semicolon, false);
    while let Some(token) = lexer.next() {
        let plain = match token {
            Token::Semicolon => true,
            Token::Odd => false,
            Token::Word(verb) if before == Token::Semicolon => {
                selects = is(verb, "select");
                selects || ["set", "begin", "start"].iter().any(|plain| is(verb, plain))
            }
            _ if before == Token::Semicolon => false,
            Token::Open => selects && matches!(before, Token::Word(name) if is(name, "set_config")),
            // A name for the result.
            Token::Word(word) if selects => {
                PLAIN.iter().any(|plain| is(word, plain)) || matches!(before, Token::Word(name) if is(name, "as"))
            }
            Token::Quoted(_) => !selects || matches!(before, Token::Word(name) if is(name, "as")),
            Token::Word(_) | Token::Literal | Token::Close | Token::Dot | Token::Comma | Token::Operator => true,
        };
        if !plain {
            return false;
        }
        before = token;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_its_own_words_say_is_set_plainly() {
        for (sql, want) in [
            ("set local search_path = a, \"B\"", true),
            ("begin; SET LOCAL timezone to 'UTC';", true),
            ("select set_config('search_path', $1, true)", true),
            (
                "select pg_catalog.set_config('timezone', 'UTC'::text, true) as \"x\", set_config('a', $2, true) as y",
                true,
            ),
            ("", true),
            ("select set_config('timezone', current_setting('a.b'), true)", false),
            ("select set_config('timezone', current_user, true)", false),
            ("select set_config('timezone', tz, true) from t", false),
            ("select set_config('timezone', (select 'UTC'), true)", false),
            ("select f('UTC')", false),
            ("set local timezone = 'UTC'; commit", false),
            ("begin; savepoint s; set local timezone = 'UTC'", false),
            ("execute p", false),
            ("set local timezone = 'UTC", false),
        ] {
            assert_eq!(sets_plainly(sql.as_bytes()), want, "{sql}");
        }
    }
}
