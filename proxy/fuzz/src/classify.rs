//! SQL text from anybody.

use proxy::sql::{Access, FunctionTable, LexRules, classify};

/// No text panics; blanks and comments before a text change nothing; what a session with a stricter reading calls a
/// read is one for a session that reads it as usual.
pub(crate) fn check(data: &[u8]) {
    let functions = FunctionTable::unloaded();
    let class = |sql: &[u8], rules| classify(sql, &functions, rules);
    let plain = class(data, LexRules::STANDARD);
    let commented = [b" /* a /* nested */ one */ -- and a line\n\t", data].concat();
    let commented = class(&commented, LexRules::STANDARD);
    // What a text that cannot be read might leave behind is guessed from its first words, which a comment moves.
    let pins = if plain.access == Access::Read { commented.pins } else { plain.pins };
    assert_eq!(plain, proxy::sql::Statement { pins, ..commented }, "a comment changed what a statement does");
    let escaping = LexRules { standard_conforming_strings: false, ..LexRules::STANDARD };
    let _ = class(data, escaping);
    // Bytes of a multi-byte character may look like quotes: only text of ASCII alone can be proven to be a read.
    let unsafe_encoding = class(data, LexRules { ascii_safe_encoding: false, ..LexRules::STANDARD });
    if unsafe_encoding.access == Access::Read {
        assert_eq!(plain.access, Access::Read, "an encoding made a read of a write");
    }
    // A write behind the text keeps the whole from being a read, unless the text swallows it.
    let written = [data, b"\n;delete from t"].concat();
    let swallows = data.iter().any(|b| matches!(b, b'\'' | b'"' | b'$' | b'/' | b'*' | b'-' | b'(' | b'[' | 0));
    if !swallows {
        assert_eq!(class(&written, LexRules::STANDARD).access, Access::Write, "a DELETE was called a read");
    }
}
