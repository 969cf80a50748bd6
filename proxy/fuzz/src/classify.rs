//! SQL text from anybody.

use proxy::route::hint;
use proxy::sql::{self, Access, BodyRow, FunctionTable, LexRules, LongText, Recall, RelationRow, Touched, classify};
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// What was found before: to make one for each text would take longer than all else.
    static RECALL: RefCell<Recall> = RefCell::default();
}

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
    in_a_body(data);
    [LexRules::STANDARD, escaping].into_iter().for_each(|lex| in_pieces(data, lex));
    [LexRules::STANDARD, escaping].into_iter().for_each(|lex| remembered(data, lex));
    say(data);
}

/// What is remembered of a text, of the same with other literals in it, and of all texts before, is what each does.
fn remembered(data: &[u8], lex: LexRules) {
    let functions = FunctionTable::new([], &[], &[]).with_local_relations(["t", "é"]).numbered(1);
    for keep in [2, 1, 3, 2] {
        let text = with_others(data, keep);
        let want = classify(&text, &functions, lex);
        let found = RECALL.with_borrow_mut(|recall| recall.of(&text, &functions, lex));
        assert_eq!(found, want, "something else is remembered of {}", text.escape_ascii());
    }
}

/// A text with other digits, and with the bytes between its single quotes taken from elsewhere in it.
fn with_others(data: &[u8], keep: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(2 * data.len());
    for (i, piece) in data.split(|b| *b == b'\'').enumerate() {
        text.extend(std::iter::repeat_n(b'\'', usize::from(i > 0)));
        let from = piece.len() * i % data.len().max(1);
        let other = &data[from..(from + piece.len() / keep).min(data.len())];
        let replaced = keep > 1 && i % 2 == 1;
        text.extend(if replaced { other } else { piece }.iter().filter(|b| !replaced || **b != b'\''));
    }
    text.iter_mut().filter(|b| b.is_ascii_digit()).for_each(|b| *b = b'0' + (*b + keep as u8) % 10);
    text
}

/// What the catalog has as a function's body, or behind a relation, may be any text as well.
fn in_a_body(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    let body = BodyRow { name: "f", sql: true, text };
    let relation = RelationRow { name: "r", read: true, text };
    let functions = FunctionTable::unloaded().with_bodies(&[body], &[relation]);
    let _ = classify(b"select f() from r", &functions, LexRules::STANDARD);
}

/// A text too long to be kept is read as it comes: it leaves the same wherever it is cut.
fn in_pieces(data: &[u8], lex: LexRules) {
    let functions = Arc::new(FunctionTable::unloaded());
    let cut = data.iter().map(|b| usize::from(*b)).sum::<usize>() % (data.len() + 1);
    let [whole, pieces] = [&[data][..], &[&data[..cut], &data[cut..]]].map(|pieces| {
        let mut text = LongText::new(lex, functions.clone());
        pieces.iter().for_each(|piece| text.feed(piece));
        (text.touched(), text.finish())
    });
    assert_eq!(whole, pieces, "cut at {cut}");
    let mut touched = Touched::default();
    touched.add(data, &[data], lex);
    touched.add_body(data, lex);
    touched.unreadable(data, &[data]);
}

/// What else is looked for in texts: none of it panics.
fn say(data: &[u8]) {
    let _ = (hint::of_each(data), sql::fingerprint(data), sql::redefines(data), sql::first_words(data));
    let _ = (sql::keeps_read_only(data), sql::sets_aside(data), sql::only_sets(data), sql::only_configures(data));
    let _ = (sql::changes_rows(data), sql::fetches(data), sql::about_names(data), sql::first_of(data));
    let _ = (sql::prepared(data), sql::executed(data), sql::deallocated(data), sql::highest_parameter(data));
    for (range, _) in sql::parameters(data) {
        assert!(range.end <= data.len(), "a parameter behind the text");
    }
    let statements: usize = sql::statements(data).map(<[u8]>::len).sum();
    assert!(statements <= data.len(), "a text has more in its statements than in itself");
}
