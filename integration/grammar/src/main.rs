//! Holds the classifier against PostgreSQL's own grammar: no text that the grammar says writes may be called a read.
//!
//! First every piece of the corpus, then mutations of it: words, quotes, comments and operators cut out, doubled and
//! put in, and two texts spliced. What the grammar refuses is refused by the server too, so it may be called anything.
//! Functions are known to be harmless but for a few, as the grammar knows nothing of volatility: a call of one of
//! these must be seen wherever the grammar sees it.
//!
//! `make test-grammar`; GRAMMAR_ROUNDS mutations (default 200,000) from GRAMMAR_SEED (default 1). Files of SQL given as
//! arguments, such as PostgreSQL's own regression tests, join the corpus statement by statement.

// The classifier alone: the rest of the proxy need not be built for this.
#[allow(dead_code, unused_imports, reason = "the proxy uses all of it")]
#[path = "../../../proxy/src/sql/mod.rs"]
mod sql;
mod verdict;

use sql::{Access, FunctionRow, FunctionTable, LexRules, Volatility, classify};
use std::process::ExitCode;
use verdict::Verdict;

const SOURCES: [&str; 3] = [
    include_str!("../../../proxy/tests/corpus/oracle.txt"),
    include_str!("../../../proxy/tests/corpus/reads.txt"),
    include_str!("../../../proxy/tests/corpus/writes.txt"),
];

/// What mutations put in.
const PIECES: [&str; 72] = [
    "'",
    "''",
    "\"",
    "\"\"",
    "$$",
    "$a$",
    "$1",
    "E'",
    "e'\\'",
    "\\'",
    "\\",
    "U&'",
    "u&'a''",
    "uescape '!'",
    "0x1f",
    "0b1",
    "1_000",
    "_0",
    "0x",
    "(costs off)",
    "(verbose, analyze)",
    "(\"analyze\")",
    "x'",
    "b'1'",
    "N'a'",
    "--",
    "\n",
    "\r",
    "/*",
    "*/",
    ";",
    ",",
    "(",
    ")",
    ".",
    " ",
    "::",
    "=>",
    "[",
    "]",
    "as",
    "with",
    "recursive",
    "materialized",
    "select",
    "values (1)",
    "table t",
    "insert into t values (1)",
    "update t set a = 1",
    "delete from t",
    "returning *",
    "into x",
    "for",
    "update",
    "share",
    "key",
    "no key",
    "of t",
    "from",
    "copy",
    "to stdout",
    "explain",
    "analyze",
    "(analyze)",
    "execute p",
    "writes(1)",
    "\"writes\"(1)",
    "s.writes (1)",
    "union",
    "over",
    "cast(1 as",
    "filter (where",
];

fn main() -> ExitCode {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |v| v.parse().expect("a number"));
    let (rounds, seed) = (number("GRAMMAR_ROUNDS", 200_000), number("GRAMMAR_SEED", 1));
    let corpus = corpus();
    let mut court = Court::new();
    for text in &corpus {
        court.judge(text);
    }
    println!("{} texts of the corpus: {}", corpus.len(), court.score());
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..rounds {
        let text = mutate(&corpus, &mut random);
        court.judge(&text);
    }
    println!("and {rounds} mutations from seed {seed}: {}", court.score());
    for text in court.leaks.iter().take(50) {
        println!("the grammar says it writes, and we called it a read: {text:?}");
    }
    // A run in which nearly nothing parses, or nothing writes, shows nothing.
    let shown = court.valid > 1000 && court.writes > 200 && court.reads > 200;
    if court.leaks.is_empty() && shown { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All pieces, all shapes with all pieces of the same kind, and the files named.
fn corpus() -> Vec<String> {
    let lines = |text: &'static str| {
        text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(|l| l.replace("\\n", "\n"))
    };
    let mut texts = Vec::new();
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for line in SOURCES.into_iter().flat_map(lines) {
        match line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            Some(name) if name.bytes().all(|b| b.is_ascii_lowercase() || b == b' ') => {
                sections.push((name.to_owned(), Vec::new()))
            }
            _ => match sections.last_mut() {
                Some((_, pieces)) => pieces.push(line),
                None => texts.push(line),
            },
        }
    }
    let section =
        |name: &str| sections.iter().find(|(n, _)| n == name).map(|(_, pieces)| pieces.clone()).expect("it is there");
    for (shapes, pieces) in [
        ("shapes", "expressions"),
        ("shapes", "writing expressions"),
        ("lock shapes", "locks"),
        ("change shapes", "changes"),
    ] {
        for shape in section(shapes) {
            texts.extend(section(pieces).iter().map(|piece| shape.replacen('@', piece, 1)));
        }
    }
    texts.extend(section("statements"));
    for file in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        texts.extend(text.split_inclusive(";\n").map(str::to_owned));
    }
    texts
}

/// Judges texts and keeps the score.
struct Court {
    functions: FunctionTable,
    valid: u64,
    writes: u64,
    reads: u64,
    needless: u64,
    leaks: Vec<String>,
}

impl Court {
    fn new() -> Self {
        // As the oracle's schema and the server's catalog would have it, in short.
        let writing = verdict::WRITING.iter().map(|name| (*name, Volatility::Volatile));
        let reading = verdict::READING.iter().map(|name| (*name, Volatility::Stable));
        let rows = writing.chain(reading).map(|(name, volatility)| FunctionRow { schema: "public", name, volatility });
        Self {
            functions: FunctionTable::new(rows, &[], &[]),
            valid: 0,
            writes: 0,
            reads: 0,
            needless: 0,
            leaks: Vec::new(),
        }
    }

    fn judge(&mut self, text: &str) {
        // The wire's strings end at a zero byte.
        if text.contains('\0') {
            return;
        }
        let read = classify(text.as_bytes(), &self.functions, LexRules::STANDARD).access == Access::Read;
        match verdict::of(text) {
            Verdict::Invalid => {}
            Verdict::Writes => {
                self.valid += 1;
                self.writes += 1;
                if read {
                    self.leaks.push(text.to_owned());
                }
            }
            Verdict::Reads => {
                self.valid += 1;
                self.reads += u64::from(read);
                self.needless += u64::from(!read);
            }
        }
    }

    fn score(&self) -> String {
        let Self { valid, writes, reads, needless, leaks, .. } = self;
        format!(
            "{valid} are valid, {writes} of them write; of the others {reads} were called reads and {needless} were not; {} \
             writes were called reads",
            leaks.len()
        )
    }
}

/// xorshift64: the same texts from the same seed everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).expect("64 bits") % end.max(1)
    }

    /// A place between two characters; mostly between words, where texts stay valid more often.
    fn place(&mut self, text: &str) -> usize {
        let mut at = self.below(text.len() + 1);
        if self.below(3) > 0 {
            at = text[..floor(text, at)].rfind([' ', '(', ')', ',']).unwrap_or(at);
        }
        floor(text, at)
    }
}

fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A text of the corpus with one to three changes.
fn mutate(corpus: &[String], random: &mut Random) -> String {
    let mut text = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(3) {
        let (a, b) = (random.place(&text), random.place(&text));
        let (a, b) = (a.min(b), a.max(b));
        match random.below(6) {
            0 => text.replace_range(a..b, ""),
            1 => text.insert_str(a, &format!(" {} ", PIECES[random.below(PIECES.len())])),
            2 => text.insert_str(a, PIECES[random.below(PIECES.len())]),
            3 => text.replace_range(a..b, &format!(" {} ", PIECES[random.below(PIECES.len())])),
            4 => text.insert_str(a, &text[a..b].to_owned()),
            // A piece of another text, often a whole expression or query.
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let (c, d) = (random.place(other), random.place(other));
                text.insert_str(a, &format!(" {} ", &other[c.min(d)..c.max(d)]));
            }
        }
        if text.len() > 4000 {
            text.truncate(floor(&text, 4000));
        }
    }
    text
}
