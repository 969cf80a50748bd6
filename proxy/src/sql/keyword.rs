//! The keywords that classification looks at, and which of them may stand before `(` without being a function.
//!
//! Source: PostgreSQL documentation, Appendix C; src/include/parser/kwlist.h and gram.y of versions 13 to 18.

use super::ends::Ends;

/// A keyword of interest, or [`Keyword::None`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(super) enum Keyword {
    None,
    Abort, All, Analyze, And, As, Begin, Call, Chain, Characteristics, Close, Commit, Committed, Constraints, Copy, Create,
    Deallocate, Declare, Deferrable, Delete, Discard, Do, Drop, End, Execute, Explain, For, From, Global, Hold, Insert, Into, Key, Listen, Load, Local, Merge,
    No, Not, Only, Or, Prepare, Prepared, Read, Recursive, Release, Repeatable, Replace, Reset, Rollback, Savepoint, Select, Serializable, Session, Set,
    Share, Show, Start, Stdout, Table, Tablesample, Temp, To, Transaction, Uncommitted, Unlisten, Update, Values, Verbose, With, Work, Write,
}

/// The keywords of interest.
#[rustfmt::skip]
const KEYWORDS: [(&str, Keyword); 74] = {
    use Keyword as K;
    [
        ("as", K::As), ("do", K::Do), ("no", K::No), ("or", K::Or), ("to", K::To), ("all", K::All), ("and", K::And),
        ("end", K::End), ("for", K::For), ("key", K::Key), ("not", K::Not), ("set", K::Set), ("call", K::Call),
        ("copy", K::Copy), ("drop", K::Drop), ("from", K::From), ("hold", K::Hold), ("into", K::Into),
        ("load", K::Load), ("only", K::Only), ("read", K::Read), ("show", K::Show), ("temp", K::Temp),
        ("with", K::With), ("work", K::Work), ("abort", K::Abort), ("begin", K::Begin), ("close", K::Close),
        ("reset", K::Reset), ("chain", K::Chain), ("local", K::Local), ("merge", K::Merge), ("share", K::Share),
        ("start", K::Start), ("table", K::Table), ("write", K::Write), ("commit", K::Commit), ("create", K::Create),
        ("delete", K::Delete), ("global", K::Global), ("insert", K::Insert), ("listen", K::Listen),
        ("select", K::Select), ("stdout", K::Stdout), ("stdin", K::Stdout), ("update", K::Update),
        ("values", K::Values), ("analyze", K::Analyze), ("analyse", K::Analyze), ("declare", K::Declare),
        ("discard", K::Discard), ("execute", K::Execute), ("explain", K::Explain), ("prepare", K::Prepare),
        ("release", K::Release), ("replace", K::Replace), ("session", K::Session), ("verbose", K::Verbose),
        ("prepared", K::Prepared), ("rollback", K::Rollback), ("unlisten", K::Unlisten), ("committed", K::Committed),
        ("deferrable", K::Deferrable), ("repeatable", K::Repeatable), ("serializable", K::Serializable),
        ("uncommitted", K::Uncommitted), ("recursive", K::Recursive), ("savepoint", K::Savepoint),
        ("temporary", K::Temp), ("deallocate", K::Deallocate), ("constraints", K::Constraints),
        ("tablesample", K::Tablesample), ("transaction", K::Transaction), ("characteristics", K::Characteristics),
    ]
};

/// Words that the grammar takes for itself before `(`: reserved words, which no unquoted function can be named, and
/// constructs in the form of functions that write nothing. Not among them: `treat`, which calls a cast function, and
/// `substring` and `overlay`, which are looked up like any function when called with commas.
#[rustfmt::skip]
const RESERVED_BEFORE_PARENTHESIS: [&str; 94] = [
    "as", "in", "on", "or", "to", "all", "and", "any", "bit", "dec", "end", "for", "int", "not", "row", "both", "case",
    "cast", "char", "else", "from", "null", "only", "real", "some", "then", "time", "trim", "when", "with", "array",
    "fetch", "float", "group", "least", "limit", "nchar", "order", "table", "union", "using", "where", "xmlpi",
    "bigint", "except", "exists", "having", "nullif", "offset", "select", "values", "window", "between", "boolean",
    "collate", "decimal", "default", "extract", "integer", "lateral", "leading", "numeric", "varchar", "xmlroot",
    "coalesce", "distinct", "greatest", "grouping", "interval", "national", "position", "smallint", "trailing",
    "variadic", "xmlparse", "xmltable", "character", "intersect", "normalize", "returning", "symmetric", "timestamp",
    "xmlconcat", "xmlexists", "xmlforest", "asymmetric", "xmlelement", "xmlserialize", "xmlattributes", "xmlnamespaces",
    "current_time", "current_timestamp", "localtime", "localtimestamp",
];

/// Words that the grammar may take for itself before `(`, but that a function can be named as well, in some version at
/// least: a call unless the catalog is known and knows no volatile function of that name.
#[rustfmt::skip]
const PERHAPS_BEFORE_PARENTHESIS: [&str; 32] = [
    "by", "is", "cube", "join", "like", "next", "over", "sets", "zone", "first", "ilike", "escape", "filter", "rollup",
    "operator", "overlaps", "repeatable", "materialized", "varying", "recursive", "second", "columns", "json",
    "json_array", "json_arrayagg", "json_exists", "json_objectagg", "json_query", "json_scalar", "json_serialize",
    "json_table", "json_value",
];

/// What is known of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) keyword: Keyword,
    /// Before `(` it is no function.
    pub(super) reserved_before_parenthesis: bool,
    /// Before `(` it may be no function.
    pub(super) perhaps_before_parenthesis: bool,
}

impl Known {
    /// Nothing.
    pub(super) const NOTHING: Self =
        Self { keyword: Keyword::None, reserved_before_parenthesis: false, perhaps_before_parenthesis: false };

    /// What is known of a word in lower case, whose ends these are. No more than a multiplication, and as a rule one comparison of numbers: most
    /// words of a text are none of these, or keywords.
    #[inline]
    pub(super) fn of(ends: Ends, lower: &[u8]) -> Self {
        let mut at = ends.mix(BITS);
        loop {
            let Some(found) = WORDS.entries.get(usize::from(WORDS.places[at])) else { return Self::NOTHING };
            // Up to this length the ends are the whole.
            if found.ends == ends && (ends.length <= 16 || found.word.as_bytes() == lower) {
                return found.known;
            }
            at = (at + 1) % WORDS.places.len();
        }
    }
}

/// The keyword that a word in lower case is.
pub(super) fn keyword(lower: &[u8]) -> Keyword {
    Known::of(Ends::of(lower), lower).keyword
}

/// The table of the words has so many places, as a power of two.
const BITS: u32 = 10;
/// More words than there are.
const MAX_WORDS: usize = 200;

#[derive(Clone, Copy)]
struct Entry {
    word: &'static str,
    ends: Ends,
    known: Known,
}

/// The words, and where each is: at the place that its ends lead to, or the next that is free.
struct Words {
    entries: [Entry; MAX_WORDS],
    len: usize,
    places: [u8; 1 << BITS],
}

static WORDS: Words = {
    let none = Entry { word: "", ends: Ends::NONE, known: Known::NOTHING };
    let mut words = Words { entries: [none; MAX_WORDS], len: 0, places: [u8::MAX; 1 << BITS] };
    let mut i = 0;
    while i < KEYWORDS.len() {
        words.known(KEYWORDS[i].0).keyword = KEYWORDS[i].1;
        i += 1;
    }
    i = 0;
    while i < RESERVED_BEFORE_PARENTHESIS.len() {
        words.known(RESERVED_BEFORE_PARENTHESIS[i]).reserved_before_parenthesis = true;
        i += 1;
    }
    i = 0;
    while i < PERHAPS_BEFORE_PARENTHESIS.len() {
        words.known(PERHAPS_BEFORE_PARENTHESIS[i]).perhaps_before_parenthesis = true;
        i += 1;
    }
    words
};

impl Words {
    /// What is known of a word, which is added where it is new.
    const fn known(&mut self, word: &'static str) -> &mut Known {
        let ends = Ends::of(word.as_bytes());
        let mut at = ends.mix(BITS);
        while self.places[at] != u8::MAX {
            let index = self.places[at] as usize;
            if same(self.entries[index].word.as_bytes(), word.as_bytes()) {
                return &mut self.entries[index].known;
            }
            at = (at + 1) % self.places.len();
        }
        let index = self.len;
        self.places[at] = index as u8;
        self.len += 1;
        self.entries[index] = Entry { word, ends, known: Known::NOTHING };
        &mut self.entries[index].known
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(word: &str) -> Known {
        Known::of(Ends::of(word.as_bytes()), word.as_bytes())
    }

    #[test]
    fn each_word_is_found_and_no_other() {
        for (word, keyword) in KEYWORDS {
            assert_eq!(known(word).keyword, keyword, "{word}");
        }
        let all = KEYWORDS.into_iter().map(|(word, _)| word);
        let all = all.chain(RESERVED_BEFORE_PARENTHESIS).chain(PERHAPS_BEFORE_PARENTHESIS);
        for word in all.clone() {
            let of = known(word);
            assert_eq!(of.reserved_before_parenthesis, RESERVED_BEFORE_PARENTHESIS.contains(&word), "{word}");
            assert_eq!(of.perhaps_before_parenthesis, PERHAPS_BEFORE_PARENTHESIS.contains(&word), "{word}");
            assert_eq!(of.keyword == Keyword::None, !KEYWORDS.iter().any(|(other, _)| *other == word), "{word}");
            // Neither what is like one of them.
            let more = [format!("{word}_"), format!("_{word}"), word[1..].to_owned(), word.to_uppercase()];
            let changed = (0..word.len()).map(|i| format!("{}_{}", &word[..i], &word[i + 1..]));
            for other in more.into_iter().chain(changed).filter(|other| !all.clone().any(|word| word == other)) {
                assert_eq!(known(&other), Known::NOTHING, "{other}");
            }
        }
        assert_eq!(known(""), Known::NOTHING);
    }
}
