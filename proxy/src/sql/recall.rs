//! What texts were found to do, for the next time: an application sends few texts, again and again, and many of them
//! differ in numbers only. Pure, and no allocation once it is made.
//!
//! Two texts are one here when they are the same but for decimal numbers that stand alone: behind a blank or one of a
//! few operators, and before a blank, a comma, a closing parenthesis, a semicolon or the end. Classification takes such
//! a number for a literal whatever its value is, or does not look at it (in a string or a comment), so it does not
//! matter which one it was. In a quoted identifier it would, so a text that has any counts as it is.

use super::{LexRules, Statement};

/// Longest text that is remembered, bytes, each such number counted as one.
const LONGEST: usize = 256;
/// Texts remembered: one for each value of so many bits of its hash.
const BITS: u32 = 8;

const DIGIT: u8 = 1;
const BEFORE: u8 = 2;
const BEHIND: u8 = 4;
const QUOTE: u8 = 8;

/// What each byte is to a number: part of it, what may be before it or behind it, or what makes it matter.
const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut b = 0;
    while b < 256 {
        class[b] = match b as u8 {
            b'0'..=b'9' => DIGIT,
            b' ' | b'\t' | b'\n' | b'\r' | b',' => BEFORE | BEHIND,
            b'=' | b'<' | b'>' | b'(' | b'+' | b'*' | b'/' => BEFORE,
            b')' | b';' => BEHIND,
            b'"' => QUOTE,
            _ => 0,
        };
        b += 1;
    }
    class
};

fn is(byte: u8, class: u8) -> bool {
    CLASS[usize::from(byte)] & class != 0
}

#[derive(Clone)]
struct Slot {
    /// The number of the function table it was classified with; 0 while nothing is here.
    table: u64,
    lex: LexRules,
    class: Statement,
    len: usize,
    shape: [u8; LONGEST],
}

/// What was remembered.
pub struct Recall {
    slots: Box<[Slot]>,
}

impl Default for Recall {
    fn default() -> Self {
        let class = super::classify(b"", &super::FunctionTable::unloaded(), LexRules::STANDARD);
        let empty = Slot { table: 0, lex: LexRules::STANDARD, class, len: 0, shape: [0; LONGEST] };
        Self { slots: vec![empty; 1 << BITS].into() }
    }
}

impl Recall {
    /// What `sql` does, as it was found before under the same rules, or as `classify` finds now. `table` is the number of
    /// the function table that is classified with; 0 when it has none, and then nothing is remembered.
    pub fn of(&mut self, sql: &[u8], (table, lex): (u64, LexRules), classify: impl FnOnce() -> Statement) -> Statement {
        let mut buffer = [0; LONGEST];
        let shape = match shape(sql, &mut buffer) {
            Some(len) if table != 0 => &buffer[..len],
            _ => return classify(),
        };
        let slot = &mut self.slots[hash(shape, table)];
        if slot.table == table && slot.lex == lex && slot.shape.get(..slot.len) == Some(shape) {
            return slot.class;
        }
        slot.class = classify();
        (slot.table, slot.lex, slot.len) = (table, lex, shape.len());
        slot.shape[..shape.len()].copy_from_slice(shape);
        slot.class
    }
}

/// Write what `sql` has in common with texts of other numbers; how long that is, or `None` when it is too long.
fn shape(sql: &[u8], out: &mut [u8; LONGEST]) -> Option<usize> {
    let (mut at, mut len) = (0, 0);
    while let Some(next) = digit_or_quote(&sql[at..]) {
        let digit = at + next;
        if sql[digit] == b'"' {
            out.get_mut(..sql.len())?.copy_from_slice(sql);
            return Some(sql.len());
        }
        let digits = sql[digit..].iter().position(|b| !is(*b, DIGIT)).unwrap_or(sql.len() - digit);
        let end = digit + digits;
        let alone = digit > 0 && is(sql[digit - 1], BEFORE) && sql.get(end).is_none_or(|b| is(*b, BEHIND));
        // One digit stands for all of them.
        let kept = &sql[at..if alone { digit + 1 } else { end }];
        out.get_mut(len..len + kept.len())?.copy_from_slice(kept);
        len += kept.len();
        if alone {
            out[len - 1] = b'0';
        }
        at = end;
    }
    let rest = &sql[at..];
    out.get_mut(len..len + rest.len())?.copy_from_slice(rest);
    Some(len + rest.len())
}

/// Where the first digit or double quote is. Most of a text is neither, so eight bytes are looked at together.
fn digit_or_quote(bytes: &[u8]) -> Option<usize> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // Bytes below `limit`, as their highest bits. A byte above the lowest one so marked may be marked wrongly.
    let below = |word: u64, limit: u64| word.wrapping_sub(EACH * limit) & !word & (EACH << 7);
    let (words, rest) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let marks = below(word ^ (EACH * 0x30), 10) | below(word ^ (EACH * 0x22), 1);
        if marks != 0 {
            return Some(8 * i + marks.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|b| is(*b, DIGIT | QUOTE)).map(|at| 8 * words.len() + at)
}

/// Where a shape is kept. It need not be more than good: what is found there is compared.
fn hash(shape: &[u8], table: u64) -> usize {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    let (words, rest) = shape.as_chunks::<8>();
    let hash = words.iter().fold(mix(table, shape.len() as u64), |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    (mix(hash, u64::from_le_bytes(last)) >> (u64::BITS - BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::super::{FunctionRow, FunctionTable, Volatility, classify};
    use super::*;
    use proptest::prelude::*;

    fn shape_of(sql: &str) -> Option<String> {
        let mut out = [0; LONGEST];
        shape(sql.as_bytes(), &mut out).map(|len| String::from_utf8(out[..len].to_vec()).unwrap())
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
            ("select \"t 1\" limit 10", "select \"t 1\" limit 10"),
        ] {
            assert_eq!(shape_of(sql).as_deref(), Some(want), "{sql}");
        }
        let long = "x".repeat(LONGEST);
        assert_eq!(shape_of(&long), Some(long.clone()));
        assert_eq!(shape_of(&format!("{long}x")), None);
        assert_eq!(
            shape_of(&format!("{} = {}", "x".repeat(LONGEST - 4), "1".repeat(LONGEST))).map(|s| s.len()),
            Some(LONGEST)
        );
        assert_eq!(shape_of(&format!("{}\" = 1", "x".repeat(LONGEST))), None);
    }

    #[test]
    fn a_text_is_classified_anew_with_another_table_or_other_rules() {
        let mut recall = Recall::default();
        let functions = FunctionTable::unloaded();
        let odd = LexRules { standard_conforming_strings: false, ..LexRules::STANDARD };
        let mut asked = 0;
        for (table, lex, sql) in [
            (1, LexRules::STANDARD, "select 1"),
            (1, LexRules::STANDARD, "select 22"),
            (1, odd, "select 1"),
            (2, odd, "select 1"),
            (2, odd, "select 333"),
            (0, odd, "select 1"),
            (0, odd, "select 1"),
        ] {
            recall.of(sql.as_bytes(), (table, lex), || {
                asked += 1;
                classify(sql.as_bytes(), &functions, lex)
            });
        }
        assert_eq!(asked, 5);
    }

    /// Pieces that make texts in which numbers stand where they might matter.
    const PIECES: [&str; 56] = [
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
    ];

    proptest! {
        #[test]
        fn the_first_digit_or_quote_is_found(bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x20_u8..0x3c], 0..40)) {
            let want = bytes.iter().position(|b| b.is_ascii_digit() || *b == b'"');
            prop_assert_eq!(digit_or_quote(&bytes), want);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn texts_of_one_shape_are_classified_alike(
            pieces in prop::collection::vec((0..PIECES.len(), prop::option::of((0_u64..2000, 0_u64..2000))), 1..14),
            standard in any::<bool>(),
        ) {
            let rows = [("nextval", Volatility::Volatile), ("pg_advisory_lock", Volatility::Volatile), ("f", Volatility::Stable)];
            let rows = rows.map(|(name, volatility)| FunctionRow { schema: "pg_catalog", name, volatility });
            let table = FunctionTable::new(rows, &[], &[]).with_local_relations(["t 1", "t1"]);
            let lex = LexRules { standard_conforming_strings: standard, ..LexRules::STANDARD };
            let (mut one, mut other) = (String::new(), String::new());
            for (piece, numbers) in pieces {
                one.push_str(PIECES[piece]);
                other.push_str(PIECES[piece]);
                if let Some((a, b)) = numbers {
                    one.push_str(&a.to_string());
                    other.push_str(&b.to_string());
                }
            }
            if shape_of(&one) == shape_of(&other) {
                let of = |sql: &str| classify(sql.as_bytes(), &table, lex);
                prop_assert_eq!(of(&one), of(&other), "{} and {}", one, other);
            }
        }
    }
}
