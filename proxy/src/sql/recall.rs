//! What texts were found to do, for the next time: an application sends few texts, again and again, and many of them
//! differ in literals only. Pure, and no allocation once it is made.
//!
//! Two texts are one here when they are the same but for decimal numbers that stand alone: behind a blank or one of a
//! few operators, and before a blank, a comma, a closing parenthesis, a semicolon or the end. Classification takes such
//! a number for a literal whatever its value is, or does not look at it (in a string or a comment), so it does not
//! matter which one it was. In a quoted identifier it would.
//!
//! So are texts that differ in string literals, where it is certain what is one and where it does not matter. Certain it is
//! where every quote is one: nothing escapes it, and no comment or dollar quote may hold it. Whether it matters is what the
//! classification of the first such text tells: not unless something looked into literals, for the name of a setting, say.
//! Where it matters only numbers may differ, and where a quoted identifier might be meant, nothing.

use super::classify::classified;
use super::{FunctionTable, LexRules, Statement, classify};

/// Longest text that is remembered, bytes, each such literal counted as one to three.
const LONGEST: usize = 1024;
/// Texts remembered: one for each value of so many bits of its hash.
const BITS: u32 = 8;

const DIGIT: u8 = 1;
const BEFORE: u8 = 2;
const BEHIND: u8 = 4;
const QUOTE: u8 = 8;

/// What each byte is to a literal: part of a number, what may be before it or behind it, or a quote.
const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut b = 0;
    while b < 256 {
        class[b] = match b as u8 {
            b'0'..=b'9' => DIGIT,
            b' ' | b'\t' | b'\n' | b'\r' | b',' => BEFORE | BEHIND,
            b'=' | b'<' | b'>' | b'(' | b'+' | b'*' | b'/' => BEFORE,
            b')' | b';' => BEHIND,
            b'"' | b'\'' => QUOTE,
            _ => 0,
        };
        b += 1;
    }
    class
};

fn is(byte: u8, class: u8) -> bool {
    CLASS[usize::from(byte)] & class != 0
}

/// What is remembered of a text, but for the shape itself.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    /// The number of the function table it was classified with; 0 while nothing is here.
    table: u64,
    lex: LexRules,
    /// How its quotes were read.
    quotes: Quotes,
    len: usize,
}

/// How the quotes of a text are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    /// As any other byte, but that with a double quote the whole text counts as it is.
    AnyByte,
    /// Each begins or ends what is quoted.
    Certain,
}

#[derive(Clone)]
struct Slot {
    key: Key,
    class: Statement,
    /// Literals were looked into: another text of this shape may do something else.
    looked: bool,
    shape: [u8; LONGEST],
}

/// What was remembered.
pub struct Recall {
    slots: Box<[Slot]>,
    /// The shape of the text that is asked for.
    shape: [u8; LONGEST],
}

impl Default for Recall {
    fn default() -> Self {
        let class = classify(b"", &FunctionTable::unloaded(), LexRules::STANDARD);
        let key = Key { table: 0, lex: LexRules::STANDARD, quotes: Quotes::AnyByte, len: 0 };
        let empty = Slot { key, class, looked: false, shape: [0; LONGEST] };
        Self { slots: vec![empty; 1 << BITS].into(), shape: [0; LONGEST] }
    }
}

impl Recall {
    /// What `sql` does: what [`classify`] finds, or found before under the same rules with the same functions. With a table
    /// that has no number nothing is remembered.
    pub fn of(&mut self, sql: &[u8], functions: &FunctionTable, lex: LexRules) -> Statement {
        let table = functions.number();
        if table == 0 {
            return classify(sql, functions, lex);
        }
        for certain in [true, false] {
            let Some((len, quotes)) = shape(sql, &mut self.shape, certain) else { break };
            let (key, shape) = (Key { table, lex, quotes, len }, &self.shape[..len]);
            let slot = &mut self.slots[hash(shape, key)];
            if slot.key != key || &slot.shape[..len] != shape {
                let (class, looked) = classified(sql, functions, lex);
                (slot.key, slot.class, slot.looked) = (key, class, looked && quotes == Quotes::Certain);
                slot.shape[..len].copy_from_slice(shape);
            }
            if !slot.looked {
                return slot.class;
            }
        }
        classify(sql, functions, lex)
    }
}

/// What a text has in common with texts of other literals, while it is written.
struct Shape<'a> {
    out: &'a mut [u8; LONGEST],
    len: usize,
}

impl Shape<'_> {
    /// Add this; `None` when there is no room.
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.out.get_mut(self.len..self.len + bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }
}

/// Write the shape of `sql`: how long that is, and how its quotes were read, as certain ones only if that is asked for.
/// `None` when it is too long.
fn shape(sql: &[u8], out: &mut [u8; LONGEST], certain: bool) -> Option<(usize, Quotes)> {
    let (mut shape, mut at, mut copied, mut quotes) = (Shape { out, len: 0 }, 0, 0, None);
    while let Some(next) = digit_or_quote(&sql[at..]) {
        let from = at + next;
        let behind = from > 0 && is(sql[from - 1], BEFORE);
        let first = sql[from];
        at = from + 1;
        if is(first, DIGIT) {
            at += sql[at..].iter().position(|b| !is(*b, DIGIT)).unwrap_or(sql.len() - at);
            if behind && sql.get(at).is_none_or(|b| is(*b, BEHIND)) {
                shape.put(&sql[copied..from])?;
                // One digit stands for all of them.
                shape.put(b"0")?;
                copied = at;
            }
        } else if is(first, QUOTE) {
            let read = || if certain && are_certain(sql) { Quotes::Certain } else { Quotes::AnyByte };
            match *quotes.get_or_insert_with(read) {
                Quotes::Certain => {
                    // The rest of what does not end is in it.
                    let Some(inside) = sql[at..].iter().position(|b| *b == first) else { break };
                    at += inside + 1;
                    // One with a doubled quote in it reads as two, and neither counts as a literal.
                    if first == b'\'' && behind && sql.get(at) != Some(&first) {
                        shape.put(&sql[copied..=from])?;
                        shape.put(if sql[from..at].is_ascii() { b"'" } else { b"\x80'" })?;
                        copied = at;
                    }
                }
                Quotes::AnyByte if first == b'"' => {
                    shape.len = 0;
                    shape.put(sql)?;
                    return Some((shape.len, Quotes::AnyByte));
                }
                Quotes::AnyByte => {}
            }
        }
    }
    shape.put(&sql[copied..])?;
    Some((shape.len, quotes.unwrap_or(Quotes::AnyByte)))
}

/// Is each quote of a text the beginning or end of what is quoted? Not where one may be escaped, or in a comment, or quoted
/// by dollars.
fn are_certain(sql: &[u8]) -> bool {
    // Without a branch, so that many bytes are looked at together.
    let hides = |a: u8, b: u8| {
        (a == b'\\') | (a == b'-') & (b == b'-') | (a == b'/') & (b == b'*') | (a == b'$') & !b.is_ascii_digit()
    };
    let pairs = sql.iter().zip(sql.get(1..).unwrap_or_default());
    !pairs.fold(false, |found, (a, b)| found | hides(*a, *b)) && !matches!(sql.last(), Some(b'\\' | b'$'))
}

/// Where the first digit or quote, or one of `#$%&`, is. Most of a text is neither, so eight bytes are looked at together.
fn digit_or_quote(bytes: &[u8]) -> Option<usize> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // Bytes below `limit`, as their highest bits. A byte above the lowest one so marked may be marked wrongly.
    let below = |word: u64, limit: u64| word.wrapping_sub(EACH * limit) & !word & (EACH << 7);
    let (words, rest) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // From `"` up to `'` there are six.
        let marks = below(word ^ (EACH * 0x30), 10) | below(word ^ (EACH * 0x27), 6);
        if marks != 0 {
            return Some(8 * i + marks.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|b| is(*b, DIGIT) || matches!(b, b'"'..=b'\'')).map(|at| 8 * words.len() + at)
}

/// Where a shape is kept. It need not be more than good: what is found there is compared.
fn hash(shape: &[u8], key: Key) -> usize {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    let (words, rest) = shape.as_chunks::<8>();
    let seed = mix(key.table ^ (key.quotes as u64) << 32, shape.len() as u64);
    let hash = words.iter().fold(seed, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    (mix(hash, u64::from_le_bytes(last)) >> (u64::BITS - BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::super::{Access, BodyRow, FunctionRow, RelationRow, Volatility};
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn shape_of(sql: &str, certain: bool) -> Option<(String, bool)> {
        let mut out = [0; LONGEST];
        let (len, quotes) = shape(sql.as_bytes(), &mut out, certain)?;
        Some((String::from_utf8_lossy(&out[..len]).into_owned(), quotes == Quotes::Certain))
    }

    #[test]
    fn numbers_that_stand_alone_do_not_count() {
        for (sql, want) in [
            ("select a from t where b = 123;", "select a from t where b = 0;"),
            ("select f(12, 13)", "select f(0, 0)"),
            ("select 1", "select 0"),
            ("limit 10 offset 20", "limit 0 offset 0"),
            ("a=10", "a=0"),
            // These may be something else, or part of something else.
            ("select 1.5, t1, $1, 1e5, 1_000, 0x1f", "select 1.5, t1, $1, 1e5, 1_000, 0x1f"),
            ("1 2", "1 0"),
            ("select 'a 12' limit 10", "select 'a 12' limit 0"),
            ("select 'a 12 ' limit 10", "select 'a 0 ' limit 0"),
            ("select \"t 1\" limit 10", "select \"t 1\" limit 10"),
            ("select 10, \"t\"", "select 10, \"t\""),
        ] {
            assert_eq!(shape_of(sql, false), Some((want.to_owned(), false)), "{sql}");
        }
        let long = "x".repeat(LONGEST);
        assert_eq!(shape_of(&long, true), Some((long.clone(), false)));
        assert_eq!(shape_of(&format!("{long}x"), true), None);
        let numbers = format!("{} = {}", "x".repeat(LONGEST - 4), "1".repeat(LONGEST));
        assert_eq!(shape_of(&numbers, true).map(|(s, _)| s.len()), Some(LONGEST));
        assert_eq!(shape_of(&format!("{}\" = 1", "x".repeat(LONGEST)), true), None);
    }

    #[test]
    fn literals_do_not_count_where_they_are_certain() {
        for (sql, want) in [
            ("select a from t where b = 'it is 5' limit 12", "select a from t where b = '' limit 0"),
            ("values ('', 'a;b', '{\"c\": 1}', 'Müller')", "values ('', '', '', '\u{fffd}')"),
            ("select \"t 1\".\"it's\" from \"t\" limit 10", "select \"t 1\".\"it's\" from \"t\" limit 0"),
            ("select $1, '$5'", "select $1, ''"),
            // These may be something else, or go on.
            ("select 'it''s', E'a', e'a''b', N'c', x'1f', U&'d'", "select 'it''s', E'a', e'a''b', N'c', x'1f', U&'d'"),
            ("select a||'b', 'c' 'd', 1'e'", "select a||'b', '' '', 1'e'"),
            ("'a' ''", "'a' ''"),
            ("select 'a', 'b", "select '', 'b"),
        ] {
            assert_eq!(shape_of(sql, true), Some((want.to_owned(), true)), "{sql}");
        }
        for sql in ["'a' -- it's", "/* it's */ 'a'", "'a\\'", "$$ 'a' $$", "$t$ 'a' $t$", "'a' $", "'a' \\"] {
            assert_eq!(shape_of(sql, true), Some((sql.to_owned(), false)), "{sql}");
        }
    }

    fn stable() -> FunctionTable {
        let row = |name| FunctionRow { schema: "public", name, volatility: Volatility::Stable };
        FunctionTable::new(["f", "current_setting"].map(row), &[], &[])
    }

    #[test]
    fn a_text_is_classified_anew_with_another_table_or_other_rules() {
        let mut recall = Recall::default();
        let (standard, odd) =
            (LexRules::STANDARD, LexRules { standard_conforming_strings: false, ..LexRules::STANDARD });
        let (known, unknown) = (stable(), FunctionTable::unloaded());
        for (number, lex, sql, table, want) in [
            (1, standard, "select f(1)", &known, Access::Read),
            (1, standard, "select f(22)", &unknown, Access::Read),
            (1, odd, "select f(1)", &known, Access::Write),
            (2, standard, "select f(333)", &unknown, Access::Write),
            (2, standard, "select f(1)", &known, Access::Write),
            (2, standard, "select f('a')", &known, Access::Read),
            (2, standard, "select f('b set x = 1')", &unknown, Access::Read),
            (2, standard, "select f('ä')", &unknown, Access::Write),
            (2, standard, "select f('öü')", &known, Access::Write),
            (0, standard, "select f(1)", &known, Access::Read),
            (0, standard, "select f(1)", &unknown, Access::Write),
        ] {
            let found = recall.of(sql.as_bytes(), &table.clone().numbered(number), lex);
            assert_eq!(found.access, want, "{sql} by {number}");
        }
    }

    #[test]
    fn where_literals_are_looked_into_they_count() {
        let mut recall = Recall::default();
        let table = stable().numbered(1);
        for (first, second) in [
            (
                "select current_setting('a.b') from f('x')",
                "select current_setting('transaction_read_only') from f('y')",
            ),
            ("select set_config('a.b', 'c', true)", "select set_config('pgtenure.after', 'c', true)"),
            ("do 'begin end'", "do 'begin perform pg_advisory_lock(1); end'"),
            ("do 'begin end'", "do 'begin execute q; end'"),
        ] {
            let [one, other] = [first, second].map(|sql| classify(sql.as_bytes(), &table, LexRules::STANDARD));
            assert_ne!(one, other, "{first}");
            for (sql, want) in [(first, one), (second, other), (first, one)] {
                assert_eq!(recall.of(sql.as_bytes(), &table, LexRules::STANDARD), want, "{sql}");
            }
        }
    }

    /// Pieces that make texts in which numbers stand where they might matter.
    const PIECES: [&str; 60] = [
        "select ",
        "insert ",
        "update t set ",
        "from ",
        "where ",
        "for update ",
        "t",
        "a",
        " ",
        "\n",
        "'",
        "E'",
        "\\",
        "\"",
        "--",
        "/*",
        "*/",
        "$$",
        "$a$",
        "$",
        "=",
        "-",
        "+",
        "*",
        "/",
        "<",
        ">",
        "(",
        ")",
        ",",
        ";",
        ".",
        "e",
        "x",
        "_",
        "begin;",
        "commit",
        "prepare p as ",
        "execute p(",
        "deallocate ",
        "set pgtenure.after to ",
        "show ",
        "explain (analyze ",
        "do ",
        "pg_temp",
        "pg_advisory_lock(",
        "nextval(",
        "set_config(",
        "current_setting(",
        "limit ",
        "into ",
        "U&",
        "transaction ",
        "copy t to stdout ",
        "||",
        "::",
        "'a''b'",
        "\"t 1\"",
        "E'a'",
        "pgtenure.x",
    ];

    /// What may stand in a literal, and mean something where it is looked into.
    const CONTENTS: [&str; 24] = [
        "",
        "a",
        "it is 5",
        "Müller",
        "é",
        "transaction_read_only",
        "pgtenure.after",
        "synchronous_commit",
        "set x = 1",
        "listen n",
        "; delete from t; ",
        "begin execute q; end",
        "begin perform pg_advisory_lock(1); end",
        "pg_temp.t",
        "create temp table t",
        "nextval(",
        "|+|",
        "%%",
        "odd",
        "t 1",
        "\"",
        "deallocate all",
        "prepare p",
        "commit",
    ];

    /// Tables that make all kinds of difference, numbered.
    static TABLES: LazyLock<Vec<FunctionTable>> = LazyLock::new(|| {
        let rows = [
            ("nextval", Volatility::Volatile),
            ("pg_advisory_lock", Volatility::Volatile),
            ("noting", Volatility::Volatile),
            ("f", Volatility::Stable),
            ("current_setting", Volatility::Stable),
        ];
        let rows = rows.map(|(name, volatility)| FunctionRow { schema: "pg_catalog", name, volatility });
        let plain = FunctionTable::new(rows, &[], &[]).with_local_relations(["t 1", "t1"]);
        let body = BodyRow { name: "sets", sql: true, text: "begin perform set_config('app.x', 'y', false); end" };
        let used = |name| RelationRow { name, read: true, text: "SELECT sets();" };
        let all = [
            FunctionTable::unloaded(),
            plain.clone(),
            plain.clone().with_local_relations(["ödd"]),
            plain.clone().with_operators([("|+|", "noting")]),
            plain.clone().with_bodies(&[body], &[used("odd"), used("t 1")]),
            plain.with_bodies(&[body], &[used("%%")]),
        ];
        (1..).zip(all).map(|(number, table)| table.numbered(number)).collect()
    });

    /// Every way to read a text.
    fn rules() -> impl Iterator<Item = LexRules> {
        (0..8).map(|bits| LexRules {
            standard_conforming_strings: bits & 1 == 0,
            ascii_safe_encoding: bits & 2 == 0,
            client_utf8: bits & 4 == 0,
            server_utf8: true,
        })
    }

    /// A text with what stands between its quotes, and its numbers, taken from `other`.
    fn varied(sql: &str, mut other: impl FnMut() -> usize) -> String {
        let mut varied = String::new();
        for (i, piece) in sql.split('\'').enumerate() {
            if i > 0 {
                varied.push('\'');
            }
            match other() % 4 {
                0..3 if i % 2 == 1 => varied.push_str(CONTENTS[other() % CONTENTS.len()]),
                _ => varied.push_str(piece),
            }
        }
        let numbers = varied.split_inclusive(|c: char| !c.is_ascii_digit());
        let with_others = numbers.map(|run| match (run.find(|c: char| !c.is_ascii_digit()), other() % 4) {
            (Some(at @ 1..), 0) => format!("'{}'{}", CONTENTS[other() % CONTENTS.len()], &run[at..]),
            (Some(at @ 1..), 1) => format!("{}{}", other(), &run[at..]),
            _ => run.to_owned(),
        });
        with_others.collect()
    }

    /// What is remembered of all the texts that are kept for tests, with all kinds of literals in them, is what each does.
    #[test]
    fn texts_are_remembered_as_they_are_classified() {
        let files = [
            include_str!("../../tests/corpus/reads.txt"),
            include_str!("../../tests/corpus/writes.txt"),
            include_str!("../../tests/corpus/oracle.txt"),
        ];
        let (mut recall, tables, rules) = (Recall::default(), &*TABLES, rules().collect::<Vec<_>>());
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for line in files.into_iter().flat_map(str::lines) {
            let line = line.replace("\\n", "\n");
            for table in tables {
                let lex = if random() % 2 == 0 { LexRules::STANDARD } else { rules[random() % rules.len()] };
                for _ in 0..4 {
                    let text = varied(&line, &mut random);
                    let want = classify(text.as_bytes(), table, lex);
                    assert_eq!(recall.of(text.as_bytes(), table, lex), want, "{text} by {} {lex:?}", table.number());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_first_digit_or_quote_is_found(bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x20_u8..0x3c], 0..40)) {
            let want = bytes.iter().position(|b| b.is_ascii_digit() || (b'"'..=b'\'').contains(b));
            prop_assert_eq!(digit_or_quote(&bytes), want);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn texts_of_one_shape_are_classified_alike(
            pieces in prop::collection::vec(
                (0..PIECES.len(), prop::option::of((0_u64..2000, 0_u64..2000)), prop::option::of((0..CONTENTS.len(), 0..CONTENTS.len()))),
                1..14,
            ),
            (table, lex) in (0..6_usize, 0..8_usize),
        ) {
            let (table, lex) = (&TABLES[table], rules().nth(lex).unwrap());
            let (mut one, mut other) = (String::new(), String::new());
            for (piece, numbers, literals) in pieces {
                one.push_str(PIECES[piece]);
                other.push_str(PIECES[piece]);
                if let Some((a, b)) = numbers {
                    one.push_str(&a.to_string());
                    other.push_str(&b.to_string());
                }
                if let Some((a, b)) = literals {
                    one.push_str(&format!("'{}'", CONTENTS[a]));
                    other.push_str(&format!("'{}'", CONTENTS[b]));
                }
            }
            let [by_one, by_other] = [&one, &other].map(|sql| classified(sql.as_bytes(), table, lex));
            for certain in [true, false] {
                let (a, b) = (shape_of(&one, certain), shape_of(&other, certain));
                if a == b && !(by_one.1 && a.is_some_and(|(_, certain)| certain)) {
                    prop_assert_eq!(by_one, by_other, "{} and {}", one, other);
                }
            }
        }
    }
}
