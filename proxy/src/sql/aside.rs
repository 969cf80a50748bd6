//! Texts that only change or show settings of the session, and leave it as read-only as it is.

use super::lexer::{Lexer, Token};

/// Is this one statement that changes or shows settings, of which none decides whether transactions may write? The text is
/// read as with `standard_conforming_strings` on. What is in doubt is not.
pub fn keeps_read_only(sql: &[u8]) -> bool {
    only(sql, &["set", "reset", "show", "discard", "deallocate"], |_| false)
}

/// Is this one SET of what does not decide what transactions may do, this one or later ones? It means the same at a
/// standby and at the primary.
pub fn sets_aside(sql: &[u8]) -> bool {
    only(sql, &["set"], |word| word.get(..11).is_some_and(|start| is(start, "transaction")))
}

/// Is this nothing but SET, RESET and DISCARD, which read nothing?
pub fn only_sets(sql: &[u8]) -> bool {
    let mut lexer = Lexer::new(sql);
    let (mut begins, mut any) = (true, false);
    while let Some(token) = lexer.next() {
        match token {
            Token::Semicolon => begins = true,
            Token::Odd => return false,
            Token::Word(verb) if begins => {
                if !["set", "reset", "discard"].iter().any(|one| is(verb, one)) {
                    return false;
                }
                (begins, any) = (false, true);
            }
            _ if begins => return false,
            Token::Word(_)
            | Token::Quoted(_)
            | Token::Literal
            | Token::Open
            | Token::Close
            | Token::Dot
            | Token::Comma
            | Token::Operator => {}
        }
    }
    any
}

/// What changes settings, or begins or ends a block.
const CONTROLS: [&str; 8] = ["set", "reset", "discard", "begin", "start", "commit", "end", "rollback"];

/// Does each statement of this, if there is any, do no more than change settings, or begin or end a block? So does a SELECT of
/// `set_config` that reads no relation, and calls only what reads none.
pub fn only_configures(sql: &[u8]) -> bool {
    const READ: [&str; 7] = ["select", "from", "with", "table", "union", "values", "into"];
    const CALLED: [&str; 6] = ["set_config", "concat", "coalesce", "nullif", "current_setting", "cast"];
    let one_of = |word: &[u8], of: &[&str]| of.iter().any(|one| is(word, one));
    let mut lexer = Lexer::new(sql);
    let (mut before, mut selects) = ([Token::Semicolon; 3], false);
    while let Some(token) = lexer.next() {
        let begins = before[2] == Token::Semicolon;
        let reads = match (token, before) {
            (Token::Odd, _) => true,
            (Token::Semicolon, _) => false,
            (Token::Word(verb), _) if begins => {
                selects = is(verb, "select");
                !selects && !one_of(verb, &CONTROLS)
            }
            _ if begins => true,
            _ if !selects => false,
            (Token::Word(word), _) => one_of(word, &READ),
            (Token::Open, [schema, Token::Dot, Token::Word(name)]) => {
                !matches!(schema, Token::Word(schema) if is(schema, "pg_catalog")) || !one_of(name, &CALLED)
            }
            (Token::Open, [_, _, Token::Word(name)]) => !one_of(name, &CALLED),
            (Token::Open, [_, _, Token::Quoted(_)]) => true,
            _ => false,
        };
        if reads {
            return false;
        }
        before = [before[1], before[2], token];
    }
    true
}

/// The statements of a text, one by one. What stands behind something that cannot be read belongs to what has that, and so
/// does what stands behind the beginning of a function's body that is no literal.
pub fn statements(sql: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut lexer, mut begins) = (Lexer::new(sql), Some(0));
    std::iter::from_fn(move || {
        let from = begins.take()?;
        let (mut depth, mut before) = (0_u32, None);
        while let Some(token) = lexer.next() {
            match token {
                Token::Open => depth += 1,
                Token::Close => depth = depth.saturating_sub(1),
                Token::Semicolon if depth == 0 => {
                    begins = Some(lexer.at());
                    return sql.get(from..lexer.at() - 1);
                }
                Token::Odd => break,
                Token::Word(word) if is(word, "atomic") => {
                    if matches!(before, Some(Token::Word(word)) if is(word, "begin")) {
                        break;
                    }
                }
                Token::Semicolon
                | Token::Word(_)
                | Token::Quoted(_)
                | Token::Literal
                | Token::Dot
                | Token::Comma
                | Token::Operator => {}
            }
            before = Some(token);
        }
        sql.get(from..)
    })
}

/// The first two words of a text, in lower case; nothing where it begins with something else.
pub fn first_words(sql: &[u8]) -> [Vec<u8>; 2] {
    let mut lexer = Lexer::new(sql);
    [(); 2].map(|()| match lexer.next() {
        Some(Token::Word(word)) => word.to_ascii_lowercase(),
        _ => Vec::new(),
    })
}

/// Is this one statement that changes rows, by its first word? The text is read as with `standard_conforming_strings` on.
/// What is in doubt is not.
pub fn changes_rows(sql: &[u8]) -> bool {
    let mut lexer = Lexer::new(sql);
    let verb = lexer.next();
    let changes = |word: &[u8]| ["insert", "update", "delete", "merge"].iter().any(|verb| is(word, verb));
    if !matches!(verb, Some(Token::Word(word)) if changes(word)) {
        return false;
    }
    let mut over = false;
    while let Some(token) = lexer.next() {
        match token {
            Token::Semicolon => over = true,
            Token::Odd => return false,
            _ if over => return false,
            Token::Word(_)
            | Token::Quoted(_)
            | Token::Literal
            | Token::Open
            | Token::Close
            | Token::Dot
            | Token::Comma
            | Token::Operator => {}
        }
    }
    true
}

fn is(word: &[u8], what: &str) -> bool {
    word.eq_ignore_ascii_case(what.as_bytes())
}

/// One statement of these verbs, none of whose words decides whether transactions may write, or what `more` tells.
fn only(sql: &[u8], verbs: &[&str], more: impl Fn(&[u8]) -> bool) -> bool {
    let mut lexer = Lexer::new(sql);
    let Some(Token::Word(verb)) = lexer.next() else { return false };
    if !verbs.iter().any(|v| is(verb, v)) {
        return false;
    }
    let shows = is(verb, "show");
    let mut over = false;
    while let Some(token) = lexer.next() {
        match token {
            Token::Semicolon => over = true,
            _ if over => return false,
            Token::Word(word) => {
                let decides = is(word, "write") || word.to_ascii_lowercase().ends_with(b"_read_only") || more(word);
                if decides && !shows {
                    return false;
                }
            }
            // Such a name may be spelled in other ways.
            Token::Quoted(_) if !shows => return false,
            Token::Odd => return false,
            Token::Quoted(_)
            | Token::Literal
            | Token::Open
            | Token::Close
            | Token::Dot
            | Token::Comma
            | Token::Operator => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sets_and_reads_besides_does_not_only_set() {
        for (sql, want) in [
            ("set a.b = 'c'", true),
            ("/* x */ RESET all;", true),
            ("discard all", true),
            ("set \"x\" = 1", true),
            ("set session characteristics as transaction read write", true),
            ("set a.b = 'c'; reset d;", true),
            ("set a.b = 'c'; select 1", false),
            ("set a.b = 'c'; (select 1)", false),
            (";", false),
            ("set a.b = 'c", false),
            ("select set_config('a.b', 'c', false)", false),
            ("", false),
        ] {
            assert_eq!(only_sets(sql.as_bytes()), want, "{sql}");
        }
    }

    #[test]
    fn statements_are_parted_where_the_server_parts_them() {
        let cut = |sql: &str| {
            let parts = statements(sql.as_bytes()).map(|one| String::from_utf8(one.to_vec()).unwrap());
            parts.collect::<Vec<_>>().join("|")
        };
        for (sql, want) in [
            ("a; b", "a| b"),
            ("a;", "a|"),
            ("", ""),
            ("/* a; b */ a", "/* a; b */ a"),
            ("do $$ a; b $$; c", "do $$ a; b $$| c"),
            ("create rule a as on b do (c; d); e", "create rule a as on b do (c; d)| e"),
            ("create function a() begin atomic b; end; c", "create function a() begin atomic b; end; c"),
            ("a; b 'c; d", "a| b 'c; d"),
        ] {
            assert_eq!(cut(sql), want, "{sql}");
        }
        assert_eq!(first_words(b"/* x */ RESET /**/ All; a"), [b"reset".to_vec(), b"all".to_vec()]);
        assert_eq!(first_words(b"(select"), [Vec::new(), b"select".to_vec()]);
    }

    #[test]
    fn only_what_cannot_make_transactions_writable_is_aside() {
        for (sql, want) in [
            ("set search_path = a, 'b'", true),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY;", true),
            ("show transaction_read_only", true),
            ("/* x */ reset all", true),
            ("discard all", true),
            ("", false),
            ("select 1", false),
            ("do 'begin end'", false),
            ("set search_path = a; delete from t", false),
            ("set transaction_read_only = off", false),
            ("set local Default_Transaction_Read_Only to off", false),
            ("reset default_transaction_read_only", false),
            ("set \"default_transaction_read_only\" = off", false),
            ("set U&\"default_transaction_read\\005fonly\" = off", false),
            ("set session characteristics as transaction read write", false),
            ("set transaction isolation level serializable, read write", false),
            ("show x; delete from t", false),
            ("set x = 'a", false),
        ] {
            assert_eq!(keeps_read_only(sql.as_bytes()), want, "{sql}");
        }
    }

    #[test]
    fn one_statement_that_changes_rows_is_told_from_a_copy_and_from_several() {
        for (sql, want) in [
            ("insert into t values ($1, ';')", true),
            ("/* x */ UPDATE t SET a = a + 1;", true),
            ("delete from \"T\"", true),
            ("merge into t using s on true when matched then do nothing", true),
            ("copy t from stdin", false),
            ("insert into t values (1); copy t from stdin", false),
            ("with x as (select 1) insert into t select * from x", false),
            ("insert into t values ('a", false),
            ("", false),
        ] {
            assert_eq!(changes_rows(sql.as_bytes()), want, "{sql}");
        }
    }

    #[test]
    fn a_set_of_what_transactions_may_do_is_not_aside() {
        for (sql, want) in [
            ("set local statement_timeout = '5s'", true),
            ("SET work_mem TO '1MB';", true),
            ("set constraints all deferred", true),
            ("set local pgtenure.consistency = 'eventual'", true),
            ("set default_transaction_isolation = 'serializable'", true),
            ("set transaction snapshot '00000003-0000001B-1'", false),
            ("set local transaction_isolation = 'serializable'", false),
            ("set session characteristics as transaction read only", false),
            ("set local transaction_read_only = off", false),
            ("set local default_transaction_read_only = off", false),
            ("reset work_mem", false),
            ("set local work_mem = '1MB'; select 1", false),
        ] {
            assert_eq!(sets_aside(sql.as_bytes()), want, "{sql}");
        }
    }
    #[test]
    fn what_only_gives_settings_values_reads_nothing() {
        for (sql, want) in [
            ("select set_config('a.b', $1, false)", true),
            (
                "SELECT pg_catalog.set_config('a.b', $1::text, true) as x, set_config('c.d', concat('e', $2), true);",
                true,
            ),
            ("select set_config('a.b', $1, false), n from t", false),
            ("select set_config('a.b', (select max(n)::text from t), false)", false),
            ("select set_config('a.b', mine(), false)", false),
            ("select set_config('a.b', mine.concat($1), false)", false),
            ("select set_config('a.b', \"mine\"($1), false)", false),
            ("select set_config('a.b', $1, false); select n from t", false),
            ("select set_config('a.b', 'c", false),
            ("select set_config('a.b', cast($1 as text), false)", true),
            ("set a.b = 'c'", true),
            ("begin; select set_config('a.b', $1, false); rollback;", true),
            ("select 1 from t; select set_config('a.b', $1, false)", false),
            ("(select n from t)", false),
            ("", true),
            (" begin; set a = 1;", true),
            ("begin; select n from t", false),
            ("set a = 'b", false),
        ] {
            assert_eq!(only_configures(sql.as_bytes()), want, "{sql}");
        }
    }
}
