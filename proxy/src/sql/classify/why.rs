//! Why a text is a read or is not, for people: the same pass, watched token by token.

use super::{End, LexRules, Part, classify};
use crate::sql::lexer::{Lexer, Token};
use crate::sql::{Access, FunctionTable};

/// What decided about a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Every word is understood, and none can write.
    ProvenRead,
    /// It begins with a word that does not begin what is proven to read.
    Verb(String),
    /// This word or name.
    Word(String),
    /// A call of this function, which the database says is volatile, or which is not known.
    Function(String),
    /// `current_setting` of this, which a standby answers otherwise, or which is not a plain literal.
    Setting(String),
    /// A relation or type of this name must be used on the primary, or leaves something in the session.
    Local(String),
    /// It cannot be read with certainty from this byte on.
    Unreadable(usize),
    /// It is not complete.
    Incomplete,
    /// The session reads texts in another way than ours: `standard_conforming_strings`, or the client's encoding.
    LexRules,
    /// Volatile functions may hide where no text shows them, behind an operator or a cast.
    Hidden,
}

/// What decides about a text.
pub fn why(sql: &[u8], functions: &FunctionTable, lex: LexRules) -> Why {
    if classify(sql, functions, lex).access == Access::Read {
        return Why::ProvenRead;
    }
    if !(lex.standard_conforming_strings && lex.ascii_safe_encoding) {
        return Why::LexRules;
    }
    let mut lexer = Lexer::new(sql);
    loop {
        match statement(&mut lexer, functions) {
            Ok(End::Semicolon) => {}
            Ok(End::Odd) => return Why::Unreadable(lexer.at().min(sql.len())),
            Ok(End::Text) => return Why::Hidden,
            Err(why) => return why,
        }
    }
}

/// Watch one statement.
fn statement(lexer: &mut Lexer<'_>, functions: &FunctionTable) -> Result<End, Why> {
    let mut part = Part::new(functions);
    let mut first = None;
    let end = loop {
        let Some(token) = lexer.next() else { break End::Text };
        match token {
            Token::Odd => return Ok(End::Odd),
            Token::Semicolon => break End::Semicolon,
            token => {
                let before = part.last_word();
                let asked = part.setting_asked(token, lexer.last());
                let column = part.maybe_local;
                part.take(token);
                if column && part.local {
                    return Err(Why::Local(before));
                }
                let begins = first.is_none() && matches!(token, Token::Word(_));
                if begins {
                    first = Some(part.last_word());
                }
                if part.writes || part.local {
                    return Err(asked.unwrap_or_else(|| of_token(&part, token, before, begins)));
                }
            }
        }
    };
    match part.access() {
        Access::Read => Ok(end),
        Access::Write if part.is_empty() => Ok(end),
        Access::Write if part.depth > 0 => Err(Why::Incomplete),
        Access::Write if part.maybe_local => Err(Why::Local(part.last_word())),
        Access::Write => Err(Why::Verb(first.unwrap_or_default())),
    }
}

fn of_token(part: &Part<'_>, token: Token<'_>, before: String, begins: bool) -> Why {
    match token {
        // The name before the parenthesis.
        Token::Open => Why::Function(before),
        Token::Word(_) | Token::Quoted(_) if part.is_local() => Why::Local(part.last_word()),
        Token::Word(_) if begins => Why::Verb(part.last_word()),
        Token::Word(_) | Token::Quoted(_) => Why::Word(part.last_word()),
        Token::Close | Token::Literal | Token::Dot | Token::Comma | Token::Operator | Token::Semicolon | Token::Odd => {
            Why::Incomplete
        }
    }
}

impl Part<'_> {
    /// Look at what `current_setting` is asked for; why not, when that decides.
    fn setting_asked(&mut self, token: Token<'_>, text: &[u8]) -> Option<Why> {
        let before = self.writes;
        self.asked(token, text);
        (self.writes && !before).then(|| Why::Setting(String::from_utf8_lossy(text).into_owned()))
    }

    fn last_word(&self) -> String {
        String::from_utf8_lossy(&self.name[..self.name_len]).into_owned()
    }

    fn is_local(&self) -> bool {
        let name = &self.name[..self.name_len];
        let leaves = || self.functions.used(name).is_some_and(|used| !used.read.pins.is_empty() || used.read.advisory);
        self.functions.is_local_relation(name) || leaves() || matches!(name, b"is_called" | b"log_cnt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{FunctionRow, Volatility};

    #[test]
    fn the_word_that_decides_is_named() {
        let row = |name, volatility| FunctionRow { schema: "public", name, volatility };
        let rows = [
            row("quiet", Volatility::Stable),
            row("loud", Volatility::Volatile),
            row("current_setting", Volatility::Stable),
        ];
        let table = FunctionTable::new(rows, &[], &[]).with_local_relations(["notes"]);
        let word = |text: &str| text.to_owned();
        for (sql, want) in [
            ("select quiet(1) from t; table t", Why::ProvenRead),
            ("update t set a = 1", Why::Verb(word("update"))),
            ("vacuum", Why::Verb(word("vacuum"))),
            ("select 1; begin", Why::Verb(word("begin"))),
            ("with x as (delete from t) select 1", Why::Word(word("delete"))),
            ("select a from t for key share", Why::Word(word("share"))),
            ("select quiet(loud(1))", Why::Function(word("loud"))),
            ("select nobody(1)", Why::Function(word("nobody"))),
            ("select current_setting('Transaction_Read_Only')", Why::Setting(word("'Transaction_Read_Only'"))),
            ("select current_setting($1)", Why::Setting(word("$1"))),
            ("select * from notes", Why::Local(word("notes"))),
            ("select last_value from new_one", Why::Local(word("last_value"))),
            ("select is_called from new_one", Why::Local(word("is_called"))),
            ("select * from pg_locks", Why::Word(word("pg_locks"))),
            ("select (1", Why::Incomplete),
            ("select 1a", Why::Unreadable(8)),
            ("explain select loud(1)", Why::ProvenRead),
            ("explain analyze select loud(1)", Why::Function(word("loud"))),
        ] {
            assert_eq!(why(sql.as_bytes(), &table, LexRules::STANDARD), want, "{sql}");
        }
        let other = LexRules { standard_conforming_strings: false, ..LexRules::STANDARD };
        assert_eq!(why(b"select '\\'", &table, other), Why::LexRules);
        assert_eq!(why(b"select 1", &FunctionTable::unloaded().outdated(), LexRules::STANDARD), Why::Hidden);
    }
}
