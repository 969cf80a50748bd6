//! What a text does that is too long to be kept: read as it passes, in pieces of any size, with a few words remembered.
//!
//! Only what it leaves in the session is found out. It is a write in any case, for it is on its way already. The same
//! scanner as [`Lexer`](crate::sql::lexer), as a machine of one byte at a time.

use super::Part;
use crate::sql::functions::FunctionTable;
use crate::sql::keyword::Keyword as K;
use crate::sql::lexer::{Token, is_blank, is_digit, is_operator, is_word, starts_word};
use crate::sql::{LexRules, PinReason, Pins, Touched};
use std::sync::{Arc, LazyLock};

/// No function is looked up: it is a write.
static NO_FUNCTIONS: LazyLock<FunctionTable> = LazyLock::new(FunctionTable::unloaded);

/// Longer words are no names that mean anything; one byte more tells that they are longer.
const MAX_WORD: usize = 64;

/// What the scanner is within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Nothing,
    Word,
    /// A number or a parameter; its point has come.
    Number {
        point: bool,
    },
    /// One `-`.
    Minus,
    LineComment,
    /// One `/`.
    Slash,
    /// A comment of that depth; what came last may be half of a mark.
    Comment {
        depth: u32,
        last: u8,
    },
    Plain,
    /// `E'…'`; behind a backslash.
    Escape {
        taken: bool,
    },
    Quoted,
    /// Behind the `"` of a quoted name: another one goes on with it.
    QuotedEnd,
    /// Behind a `$`: a parameter, or the mark of a literal.
    Dollar,
    Mark,
    /// A literal, and how much of the mark that ends it has come.
    Marked {
        matched: usize,
    },
}

/// What a long text leaves in the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    /// What only this server has.
    pub pins: Pins,
    /// It may end what bound the session to its server.
    pub unpins: bool,
    /// It may change custom settings, whose names were not kept.
    pub nameless: bool,
    /// It may leave what nothing tells.
    pub strange: bool,
}

impl Leaves {
    /// Of a text that cannot be read: settings, of any name.
    const UNKNOWN: Self = Self { pins: Pins::of(PinReason::Set), unpins: true, nameless: true, strange: true };
}

/// A long text on its way.
pub struct LongText {
    within: Within,
    /// The word, the quoted name, or the mark of a literal, as far as it is kept.
    kept: [u8; MAX_WORD],
    len: usize,
    /// An escape string has just ended: what continues it behind a line break is one too.
    behind_escape: bool,
    /// The zero byte behind the text has come.
    over: bool,
    /// It cannot be read with certainty.
    odd: bool,
    plain_backslash: bool,
    /// Knows the functions that leave something in the session.
    functions: Arc<FunctionTable>,
    lex: LexRules,
    /// The last token was a name, which a parenthesis makes a call.
    behind_name: bool,
    /// Settings that the functions may change which are called.
    touched: Touched,
    part: Part<'static>,
    /// A name in this statement may be one of a custom setting.
    custom: bool,
    leaves: Leaves,
}

impl LongText {
    /// A text from its beginning.
    pub fn new(lex: LexRules, functions: Arc<FunctionTable>) -> Self {
        Self {
            functions,
            lex,
            behind_name: false,
            touched: Touched::default(),
            within: Within::Nothing,
            kept: [0; MAX_WORD],
            len: 0,
            behind_escape: false,
            over: false,
            odd: false,
            plain_backslash: lex.standard_conforming_strings && lex.ascii_safe_encoding,
            part: Part::new(&NO_FUNCTIONS),
            custom: false,
            leaves: Leaves::default(),
        }
    }

    /// The next piece of it.
    pub fn feed(&mut self, piece: &[u8]) {
        let mut at = 0;
        while at < piece.len() && !self.over && !self.odd {
            at += self.skip(&piece[at..]);
            let Some(&byte) = piece.get(at) else { return };
            self.byte(byte);
            at += 1;
        }
    }

    /// The settings that the functions may change which it calls.
    pub fn touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// The text is over.
    pub fn finish(mut self) -> Leaves {
        if !self.over {
            self.byte(0);
        }
        let read = self.over && !self.odd && self.within == Within::Nothing;
        let functions = &self.functions;
        // Operators are not looked for.
        let hides = !functions.tells_all() || functions.tells_of_rows_only() || functions.bodies().has_operators();
        let strange = self.leaves.pins.take_anything() || self.leaves.strange || hides;
        if read { Leaves { strange, ..self.leaves } } else { Leaves::UNKNOWN }
    }

    /// Bytes within a literal that change nothing: the bulk of a long text.
    fn skip(&self, piece: &[u8]) -> usize {
        let ends = |b: &u8| match self.within {
            Within::Plain => matches!(b, b'\'' | 0) || !self.plain_backslash && (*b == b'\\' || !b.is_ascii()),
            Within::LineComment => matches!(b, b'\n' | b'\r' | 0),
            Within::Marked { matched: 0 } => matches!(b, b'$' | 0),
            _ => true,
        };
        piece.iter().position(ends).unwrap_or(piece.len())
    }

    fn byte(&mut self, byte: u8) {
        if !self.plain_backslash && (byte == b'\\' || !byte.is_ascii()) {
            self.odd = true;
            return;
        }
        match self.within {
            Within::Nothing => self.start(byte),
            Within::Word => self.word(byte),
            Within::Number { point } => self.number(point, byte),
            Within::Minus if byte == b'-' => self.within = Within::LineComment,
            Within::Slash if byte == b'*' => self.within = Within::Comment { depth: 1, last: 0 },
            Within::Minus | Within::Slash => {
                self.token_of(Token::Operator);
                self.start(byte);
            }
            Within::LineComment => {
                if matches!(byte, b'\n' | b'\r' | 0) {
                    self.within = Within::Nothing;
                    self.start(byte);
                }
            }
            Within::Comment { depth, last } => self.comment(depth, last, byte),
            Within::Plain if byte == b'\'' => self.token_of(Token::Literal),
            Within::Escape { taken: true } => self.within = Within::Escape { taken: false },
            Within::Escape { .. } if byte == b'\\' => self.within = Within::Escape { taken: true },
            Within::Escape { .. } if byte == b'\'' => {
                self.token_of(Token::Literal);
                self.behind_escape = true;
            }
            Within::Plain | Within::Escape { .. } => self.unless_over(byte),
            Within::Quoted if byte == b'"' => self.within = Within::QuotedEnd,
            Within::Quoted => {
                self.keep(byte);
                self.unless_over(byte);
            }
            Within::QuotedEnd if byte == b'"' => {
                self.keep(byte);
                self.keep(byte);
                self.within = Within::Quoted;
            }
            Within::QuotedEnd => {
                let (kept, len) = (self.kept, self.len);
                self.token_of(Token::Quoted(&kept[..len]));
                self.start(byte);
            }
            Within::Dollar | Within::Mark => self.mark(byte),
            Within::Marked { matched } => self.marked(matched, byte),
        }
    }

    /// A byte at which a token may begin.
    fn start(&mut self, byte: u8) {
        self.within = Within::Nothing;
        if is_blank(byte) {
            return;
        }
        let behind_escape = std::mem::take(&mut self.behind_escape);
        // What begins like a comment may be one.
        let behind_name = std::mem::take(&mut self.behind_name);
        self.behind_name = behind_name && matches!(byte, b'-' | b'/');
        match byte {
            0 => {
                self.statement_ends();
                self.over = true;
            }
            b'\'' if behind_escape => self.odd = true,
            b'\'' => self.within = Within::Plain,
            b'"' => (self.within, self.len, self.custom) = (Within::Quoted, 0, true),
            b'-' => self.within = Within::Minus,
            b'/' => self.within = Within::Slash,
            b'$' => {
                (self.within, self.len) = (Within::Dollar, 0);
                self.keep(byte);
            }
            b';' => self.statement_ends(),
            b'(' => {
                if behind_name {
                    self.called();
                }
                self.part.take(Token::Open);
                if std::mem::take(&mut self.part.strange) {
                    self.leaves.strange |= self.functions.is_new(&self.part.name[..self.part.name_len]);
                }
            }
            b')' => self.part.take(Token::Close),
            b',' => self.part.take(Token::Comma),
            b'.' => {
                self.custom = true;
                self.part.take(Token::Dot);
            }
            _ if starts_word(byte) => {
                (self.within, self.len) = (Within::Word, 0);
                self.keep(byte);
            }
            _ if is_digit(byte) => self.within = Within::Number { point: false },
            _ if is_operator(byte) => self.part.take(Token::Operator),
            _ => self.odd = true,
        }
    }

    fn word(&mut self, byte: u8) {
        if is_word(byte) {
            return self.keep(byte);
        }
        let prefix = if self.len == 1 { self.kept[0].to_ascii_lowercase() } else { 0 };
        match (byte, prefix) {
            (b'\'', b'e') => self.within = Within::Escape { taken: false },
            // Bits and hexadecimal digits are plain as long as they are well formed, and an error else.
            (b'\'', b'b' | b'x') => self.within = Within::Plain,
            (b'&', b'u') => self.odd = true,
            _ => {
                let (kept, len) = (self.kept, self.len);
                self.token_of(Token::Word(&kept[..len]));
                self.start(byte);
            }
        }
    }

    /// What is glued to a number is read differently by different versions.
    fn number(&mut self, point: bool, byte: u8) {
        match byte {
            b'.' if !point => self.within = Within::Number { point: true },
            b'0'..=b'9' | b'e' | b'E' => {}
            _ if is_word(byte) || byte == b'.' => self.odd = true,
            _ => {
                self.token_of(Token::Literal);
                self.start(byte);
            }
        }
    }

    fn comment(&mut self, depth: u32, last: u8, byte: u8) {
        self.within = match (last, byte) {
            (b'*', b'/') if depth == 1 => Within::Nothing,
            (b'*', b'/') => Within::Comment { depth: depth - 1, last: 0 },
            (b'/', b'*') => Within::Comment { depth: depth.saturating_add(1), last: 0 },
            _ => Within::Comment { depth, last: byte },
        };
        self.unless_over(byte);
    }

    fn mark(&mut self, byte: u8) {
        match byte {
            b'$' => {
                self.keep(byte);
                // A mark that was not kept whole could not be found again.
                self.odd |= self.len == MAX_WORD;
                self.within = Within::Marked { matched: 0 };
            }
            _ if self.within == Within::Dollar && is_digit(byte) => self.within = Within::Number { point: false },
            _ if starts_word(byte) || self.within == Within::Mark && is_word(byte) => {
                self.keep(byte);
                self.within = Within::Mark;
            }
            _ => self.odd = true,
        }
    }

    fn marked(&mut self, matched: usize, byte: u8) {
        let matched = match self.kept.get(matched) {
            Some(&wanted) if wanted == byte => matched + 1,
            _ => usize::from(byte == b'$'),
        };
        self.within = Within::Marked { matched };
        if matched == self.len {
            self.token_of(Token::Literal);
        }
        self.unless_over(byte);
    }

    /// A text that ends within something is refused by the server.
    fn unless_over(&mut self, byte: u8) {
        self.over |= byte == 0;
    }

    fn keep(&mut self, byte: u8) {
        if let Some(place) = self.kept.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn token_of(&mut self, token: Token<'_>) {
        self.within = Within::Nothing;
        self.part.take(token);
        let name = &self.part.name[..self.part.name_len];
        if matches!(token, Token::Word(_) | Token::Quoted(_)) && self.functions.is_pinning(name) {
            // Called or not: it is named.
            self.leaves.pins.add(PinReason::Extension);
        }
        if matches!(token, Token::Word(_) | Token::Quoted(_))
            && let Some(used) = self.functions.used(name)
        {
            // As a rule such a text changes what it names.
            self.leaves.pins.join(used.changed.pins);
            self.leaves.unpins |= used.changed.unpins;
            self.functions.bodies().touch(name, &mut self.touched, self.lex);
        }
        self.behind_name = matches!(token, Token::Word(_) | Token::Quoted(_));
        // What runs inside is in a literal, and not looked at here.
        self.odd |= self.part.verb == K::Do;
    }

    /// A parenthesis stands behind a name.
    fn called(&mut self) {
        let name = &self.part.name[..self.part.name_len];
        if let Some(left) = self.functions.bodies().get(name) {
            self.leaves.pins.join(left.pins);
            self.leaves.unpins |= left.unpins;
            self.functions.bodies().touch(name, &mut self.touched, self.lex);
        }
    }

    fn statement_ends(&mut self) {
        let (head, calls) = (&self.part.head, self.part.head.calls.has(PinReason::Set));
        self.leaves.pins.join(self.part.pins());
        self.leaves.unpins |= head.unpins();
        self.leaves.nameless |= calls || self.custom && head.pins().has(PinReason::Set);
        (self.part, self.custom) = (Part::new(&NO_FUNCTIONS), false);
    }
}

/// The two scanners see the same, wherever a text is cut.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::classify::End;
    use crate::sql::lexer::Lexer;
    use crate::sql::{BodyRow, FunctionRow, Volatility};
    use proptest::prelude::*;

    fn table() -> Arc<FunctionTable> {
        let row = |name, text| BodyRow { name, sql: true, text };
        let bodies = [
            row("sets", "begin perform set_config('app.x', 'y', false); end"),
            row("locks", "begin perform pg_advisory_lock(1); end"),
        ];
        Arc::new(FunctionTable::unloaded().with_pinning(["opens".to_owned()].into()).with_bodies(&bodies, &[]))
    }

    fn long(sql: &[u8], piece: usize) -> Option<(Pins, bool)> {
        let mut text = LongText::new(LexRules::STANDARD, table());
        sql.chunks(piece.max(1)).for_each(|p| text.feed(p));
        let leaves = text.finish();
        (leaves != Leaves::UNKNOWN).then_some((leaves.pins, leaves.unpins))
    }

    /// By the scanner of whole texts; `None` when that is not certain.
    fn whole(sql: &[u8]) -> Option<(Pins, bool)> {
        let (mut lexer, mut pins, mut unpins) = (Lexer::new(sql), Pins::NONE, false);
        loop {
            let (part, end) = Part::scan(&mut lexer, &NO_FUNCTIONS);
            if end == End::Odd || part.verb == K::Do {
                return None;
            }
            pins.join(part.pins());
            unpins |= part.head.unpins();
            if end == End::Text {
                return Some((pins, unpins));
            }
        }
    }

    #[test]
    fn a_long_texts_effects_are_those_of_its_words() {
        let none = Some((Pins::NONE, false));
        for (sql, want) in [
            (
                "insert into t values ('set x = 1; listen n', E'it\\'s', $$create temp$$, $a$ $ $b$ $a$, 1.5e3, -1/2)",
                none,
            ),
            ("insert into t -- set_config('a')\n values (/* set_config( /* ; */ ' */ 'x''y;')", none),
            ("insert into t select set_config('a.b', 'c', false)", Some((Pins::of(PinReason::Set), false))),
            ("set work_mem = '1MB'; insert into public.t values (1)", Some((Pins::of(PinReason::Set), false))),
            ("insert into t select set_config('a.b', 'c', true)", none),
            ("insert into t values (1); prepare p as select 1", Some((Pins::of(PinReason::Prepare), false))),
            ("insert into t values (1); listen news", Some((Pins::of(PinReason::Listen), false))),
            ("insert into t values (\"pg_advisory_lock\"(1))", Some((Pins::of(PinReason::AdvisoryLock), false))),
            ("create temp table x as values ('y')", Some((Pins::of(PinReason::Temp), false))),
            ("insert into t values (1); drop table u", Some((Pins::NONE, true))),
            ("insert into t select Locks /* it */ ('x')", Some((Pins::of(PinReason::AdvisoryLock), false))),
            ("insert into t (locks) values (1)", none),
            ("select Opens('x')", Some((Pins::of(PinReason::Extension), false))),
            ("select 'never ends", None),
            ("select U&'\\0041'", None),
            ("do $$ begin perform set_config('a', 'b', false); end $$", None),
        ] {
            for piece in [1, 2, 3, 7, 1000] {
                assert_eq!(long(sql.as_bytes(), piece), want, "{sql} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn custom_settings_are_told_from_the_servers_own() {
        for (sql, nameless) in [
            ("set work_mem = 1; insert into a.b values (1)", false),
            ("set a.b = 1", true),
            ("reset \"a.b\"", true),
            ("select set_config('work_mem', '1MB', false)", true),
            ("set work_mem = '1.5MB'; reset all", false),
        ] {
            let mut text = LongText::new(LexRules::STANDARD, table());
            text.feed(sql.as_bytes());
            assert_eq!(text.finish().nameless, nameless, "{sql}");
        }
    }

    #[test]
    fn what_functions_set_that_are_called_is_named() {
        let mut text = LongText::new(LexRules::STANDARD, table());
        b"insert into t select sets(), 'x'".chunks(3).for_each(|p| text.feed(p));
        let names: Vec<Box<str>> = text.touched().names.into_iter().collect();
        assert_eq!(names, ["app.x".into()]);
        assert_eq!(text.finish(), Leaves { pins: Pins::of(PinReason::Set), strange: true, ..Leaves::default() });
    }

    #[test]
    fn a_function_that_is_not_known_may_leave_anything() {
        let lower = FunctionRow { schema: "pg_catalog", name: "lower", volatility: Volatility::Immutable };
        let known = Arc::new(FunctionTable::new([lower], &[], &[]));
        for (sql, strange) in [
            ("insert into fresh (a) values (lower('x'))", false),
            ("insert into fresh (a) values (lower(newly ('x')))", true),
            ("insert into fresh (a) values (1); select newly/* x */(1)", true),
        ] {
            for (functions, strange) in [(&known, strange), (&Arc::new(known.outdated()), true)] {
                let mut text = LongText::new(LexRules::STANDARD, functions.clone());
                sql.as_bytes().chunks(3).for_each(|p| text.feed(p));
                assert_eq!(text.finish(), Leaves { strange, ..Leaves::default() }, "{sql}");
            }
        }
    }

    #[test]
    fn where_backslashes_may_mean_something_nothing_is_certain() {
        let mut text = LongText::new(LexRules { standard_conforming_strings: false, ..LexRules::STANDARD }, table());
        text.feed(b"insert into t values ('\\'); set x = 1; --')");
        assert_eq!(text.finish(), Leaves::UNKNOWN);
    }

    proptest! {
        #[test]
        fn a_text_in_pieces_is_read_as_a_whole_one(
            words in prop::collection::vec(prop::sample::select(vec![
                "insert", "into", "select", "set", "listen", "temp", "create", "set_config", "(", ")", ",", ";", "'", "''",
                "\"", "$$", "$a$", "$1", "--", "\n", "/*", "*/", "e'", "\\", "b'", ".", "7", "x", " ", "true", "=", "-", "/",
                "do", "with", "hold", "declare", "drop", "é", "pg_advisory_lock", "u&'",
            ]), 0..40),
            piece in 1usize..9,
        ) {
            let sql = words.concat();
            // Where the scanner of whole texts is certain, this one says the same, or less.
            if let Some(want) = whole(sql.as_bytes()) {
                let got = long(sql.as_bytes(), piece);
                prop_assert!(got.is_none() || got == Some(want), "{:?}: {:?}, not {:?}", sql, got, want);
            }
        }
    }
}
