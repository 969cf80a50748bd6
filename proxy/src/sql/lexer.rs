//! Cuts SQL into the few kinds of token that classification needs.
//!
//! Follows PostgreSQL's scanner (src/backend/parser/scan.l) with `standard_conforming_strings = on` and an encoding
//! whose multi-byte characters hold no ASCII byte. Anything the scanner would refuse, and anything on which versions
//! 13 to 18 differ, is [`Token::Odd`]: the caller then assumes the worst of the whole text.

/// A token. Comments and blanks are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// An unquoted identifier or keyword, as written.
    Word(&'a [u8]),
    /// A quoted identifier without its quotes; `""` inside is not yet undoubled.
    Quoted(&'a [u8]),
    /// A literal: string of any form, number or parameter.
    Literal,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `.`
    Dot,
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// Any other character that PostgreSQL's grammar uses.
    Operator,
    /// Not understood; nothing behind it can be trusted.
    Odd,
}

/// The rest of a text.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// Where the last token began.
    from: usize,
}

#[cfg(test)]
thread_local! {
    /// Bytes that were read on this thread.
    static READ: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How much the lexers of this thread have read, bytes.
#[cfg(test)]
pub(crate) fn read_by_lexers() -> usize {
    READ.get()
}

const SPACE: u8 = 1;
const IDENT_START: u8 = 2;
const IDENT: u8 = 4;
const DIGIT: u8 = 8;
const OPERATOR: u8 = 16;

/// What each byte may be.
const CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        let c = b as u8;
        table[b] = match c {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => IDENT_START | IDENT,
            b'0'..=b'9' => DIGIT | IDENT,
            b'$' => IDENT,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*' | b'/' | b'%' | b'<'
            | b'>' | b'=' | b'[' | b']' | b':' => OPERATOR,
            _ => 0,
        };
        b += 1;
    }
    table
};

fn is(byte: Option<&u8>, class: u8) -> bool {
    byte.is_some_and(|b| CLASS[usize::from(*b)] & class != 0)
}

/// A blank?
pub(super) fn is_blank(byte: u8) -> bool {
    is(Some(&byte), SPACE)
}

/// May an identifier begin with it?
pub(super) fn starts_word(byte: u8) -> bool {
    is(Some(&byte), IDENT_START)
}

/// May an identifier go on with it?
pub(super) fn is_word(byte: u8) -> bool {
    is(Some(&byte), IDENT)
}

/// A digit?
pub(super) fn is_digit(byte: u8) -> bool {
    is(Some(&byte), DIGIT)
}

/// An operator's character?
pub(super) fn is_operator(byte: u8) -> bool {
    is(Some(&byte), OPERATOR)
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, from: 0 }
    }

    /// How much of the text has been read, bytes.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The last token as it was written.
    pub(super) fn last(&self) -> &'a [u8] {
        self.text.get(self.from..self.at).unwrap_or_default()
    }

    /// The next token; `None` at the end.
    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        #[cfg(test)]
        let begins = self.at;
        let token = self.token();
        #[cfg(test)]
        READ.with(|read| read.set(read.get() + self.at - begins));
        token
    }

    #[inline]
    fn token(&mut self) -> Option<Token<'a>> {
        if self.skip_blanks().is_err() {
            return Some(Token::Odd);
        }
        self.from = self.at;
        let first = *self.text.get(self.at)?;
        let class = CLASS[usize::from(first)];
        Some(if class & IDENT_START != 0 {
            self.word(first)
        } else if class & DIGIT != 0 {
            self.number()
        } else {
            self.at += 1;
            match first {
                b'(' => Token::Open,
                b')' => Token::Close,
                b',' => Token::Comma,
                b';' => Token::Semicolon,
                b'\'' => self.plain_string(),
                b'"' => self.quoted_identifier(),
                b'$' => self.dollar(),
                b'.' if is(self.text.get(self.at), DIGIT) => {
                    self.at -= 1;
                    self.number()
                }
                b'.' => Token::Dot,
                _ if class & OPERATOR != 0 => Token::Operator,
                _ => Token::Odd,
            }
        })
    }

    /// Skip blanks and comments. `Err` when a comment does not end.
    #[inline]
    fn skip_blanks(&mut self) -> Result<(), ()> {
        loop {
            while is(self.text.get(self.at), SPACE) {
                self.at += 1;
            }
            if !matches!(self.text.get(self.at), Some(b'-' | b'/')) || !self.comment()? {
                return Ok(());
            }
        }
    }

    /// Skip a comment, if there is one here.
    fn comment(&mut self) -> Result<bool, ()> {
        match self.text.get(self.at..self.at + 2) {
            Some(b"--") => {
                let rest = &self.text[self.at..];
                let end = rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len());
                self.at += end;
                Ok(true)
            }
            Some(b"/*") => self.block_comment().map(|()| true),
            _ => Ok(false),
        }
    }

    /// Skip a comment in which others may nest.
    fn block_comment(&mut self) -> Result<(), ()> {
        let mut depth = 0_u32;
        while let Some(pair) = self.text.get(self.at..self.at + 2) {
            match pair {
                b"/*" => {
                    depth = depth.saturating_add(1);
                    self.at += 2;
                }
                b"*/" => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
        Err(())
    }

    /// An identifier, or the prefix of a literal.
    fn word(&mut self, first: u8) -> Token<'a> {
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| CLASS[usize::from(*b)] & IDENT == 0).unwrap_or(rest.len());
        let word = &rest[..end];
        self.at += end;
        if word.len() > 1 {
            return Token::Word(word);
        }
        match (self.text.get(self.at), first.to_ascii_lowercase()) {
            (Some(b'\''), b'e') => self.escape_string(),
            // Bit and hexadecimal literals go on behind a line break as what they are; so they end like escapes.
            (Some(b'\''), b'b' | b'x') => {
                self.at += 1;
                match self.plain_string() {
                    Token::Literal => self.unless_continued(),
                    odd => odd,
                }
            }
            // Its quotes are those of a plain one, whatever escapes it has: these are undone behind the scanner.
            (Some(b'&'), b'u') if self.text.get(self.at + 1) == Some(&b'\'') => {
                self.at += 2;
                self.plain_string()
            }
            (Some(b'&'), b'u') if self.text.get(self.at + 1) == Some(&b'"') => Token::Odd,
            _ => Token::Word(word),
        }
    }

    /// A plain literal, behind its opening quote. A doubled quote reads as two literals, which is as good.
    fn plain_string(&mut self) -> Token<'a> {
        match self.text[self.at..].iter().position(|b| *b == b'\'') {
            Some(end) => {
                self.at += end + 1;
                Token::Literal
            }
            None => Token::Odd,
        }
    }

    /// `E'…'`, at its quote: a backslash takes the next byte along.
    fn escape_string(&mut self) -> Token<'a> {
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                None => return Token::Odd,
                Some(b'\\') => self.at += 2,
                Some(b'\'') if self.text.get(self.at + 1) == Some(&b'\'') => self.at += 2,
                Some(b'\'') => break,
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        self.unless_continued()
    }

    /// A literal that goes on behind a line break keeps its kind there; rather than follow that, call it odd.
    fn unless_continued(&self) -> Token<'a> {
        let mut ahead = self.clone();
        match ahead.skip_blanks() {
            Ok(()) if ahead.text.get(ahead.at) != Some(&b'\'') => Token::Literal,
            _ => Token::Odd,
        }
    }

    /// A quoted identifier, behind its opening quote.
    fn quoted_identifier(&mut self) -> Token<'a> {
        let start = self.at;
        loop {
            match self.text[self.at..].iter().position(|b| *b == b'"') {
                None => return Token::Odd,
                Some(end) => self.at += end + 1,
            }
            if self.text.get(self.at) != Some(&b'"') {
                return Token::Quoted(&self.text[start..self.at - 1]);
            }
            self.at += 1;
        }
    }

    /// A parameter or a dollar-quoted string, behind the first `$`.
    fn dollar(&mut self) -> Token<'a> {
        if is(self.text.get(self.at), DIGIT) {
            while is(self.text.get(self.at), DIGIT) {
                self.at += 1;
            }
            return self.unless_glued();
        }
        let open = self.at - 1;
        if !matches!(self.text.get(self.at), Some(b'$')) && !is(self.text.get(self.at), IDENT_START) {
            return Token::Odd;
        }
        while is(self.text.get(self.at), IDENT) && self.text[self.at] != b'$' {
            self.at += 1;
        }
        if self.text.get(self.at) != Some(&b'$') {
            return Token::Odd;
        }
        self.at += 1;
        let tag = &self.text[open..self.at];
        match find(&self.text[self.at..], tag) {
            Some(end) => {
                self.at += end + tag.len();
                Token::Literal
            }
            None => Token::Odd,
        }
    }

    /// A number: decimal with fraction and exponent, or hexadecimal, octal or binary; underscores may part digits. Before
    /// PostgreSQL 16 the forms other than plain decimals are errors (15), or a number and a name behind it that is no
    /// keyword: nothing that writes either.
    fn number(&mut self) -> Token<'a> {
        let base = self.text.get(self.at + 1).map(u8::to_ascii_lowercase);
        if self.text[self.at] == b'0' && matches!(base, Some(b'x' | b'o' | b'b')) {
            self.at += 2;
            return match self.digits(|b| match base {
                Some(b'x') => b.is_ascii_hexdigit(),
                Some(b'o') => matches!(b, b'0'..=b'7'),
                _ => matches!(b, b'0' | b'1'),
            }) {
                0 => Token::Odd,
                _ => self.unless_glued(),
            };
        }
        self.decimals();
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.decimals();
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if !is(self.text.get(self.at), DIGIT) {
                return Token::Odd;
            }
            self.decimals();
        }
        self.unless_glued()
    }

    /// Decimal digits, if there are any; the first is not behind an underscore.
    fn decimals(&mut self) {
        if is(self.text.get(self.at), DIGIT) {
            self.digits(|b| b.is_ascii_digit());
        }
    }

    /// Digits, each of which may have an underscore before it; how many.
    fn digits(&mut self, digit: impl Fn(&u8) -> bool) -> usize {
        let mut count = 0;
        loop {
            let ahead = usize::from(self.text.get(self.at) == Some(&b'_'));
            if !self.text.get(self.at + ahead).is_some_and(&digit) {
                return count;
            }
            self.at += ahead + 1;
            count += 1;
        }
    }

    /// A number or parameter with an identifier glued to it is read differently by different versions.
    fn unless_glued(&self) -> Token<'a> {
        if is(self.text.get(self.at), IDENT) { Token::Odd } else { Token::Literal }
    }
}

/// Where `needle` starts in `text`; it begins with `$`.
fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|b| *b == b'$') {
        if text[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens in one line: words as they are, `"q"` for quoted identifiers, `L` literals, `ODD`.
    fn check(sql: &str, want: &str) {
        let mut lexer = Lexer::new(sql.as_bytes());
        let mut got = Vec::new();
        while let Some(token) = lexer.next() {
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            got.push(match token {
                Token::Word(w) => text(w),
                Token::Quoted(q) => format!("\"{}\"", text(q)),
                Token::Literal => "L".to_owned(),
                Token::Open => "(".to_owned(),
                Token::Close => ")".to_owned(),
                Token::Dot => ".".to_owned(),
                Token::Comma => ",".to_owned(),
                Token::Semicolon => ";".to_owned(),
                Token::Operator => "+".to_owned(),
                Token::Odd => "ODD".to_owned(),
            });
            if token == Token::Odd {
                break;
            }
        }
        assert_eq!(got.join(" "), want, "{sql}");
    }

    #[test]
    fn comments_are_blanks() {
        check("a -- b\nc", "a c");
        check("a --b\rc", "a c");
        check("a/* x /* y */ ; */b", "a b");
        check("a /*/ */ b", "a b");
        check("a /* **/ b", "a b");
        check("a*/* x */b", "a + b");
        check("a+--x\nb", "a + b");
        check("a /* /* */ b", "a ODD");
        check("a /*", "a ODD");
        check("--", "");
        check("a-", "a +");
    }

    #[test]
    fn strings_hide_what_is_in_them() {
        check("'a;b' x", "L x");
        check("'it''s' x", "L L x");
        check("'a\\' x", "L x");
        check("E'a\\'b' x", "L x");
        check("e'a''b' x", "L x");
        check("typE'a' x", "typE L x");
        check("N'a' x", "N L x");
        check("b'01' X'ff'", "L L");
        check("'open", "ODD");
        check("E'open\\'", "ODD");
        check("E'open\\", "ODD");
    }

    #[test]
    fn an_escape_string_continued_on_the_next_line_is_odd() {
        check("E'a'\n'b\\' || ' ; delete from t; --'", "ODD");
        check("E'a' -- c\n 'b'", "ODD");
        check("E'a' || 'b'", "L + + L");
        check("'a'\n'b'", "L L");
        check("x'a'\n'b'", "ODD");
    }

    #[test]
    fn dollar_quotes_end_at_their_own_tag() {
        check("$$a;b$$ x", "L x");
        check("$t$ $$ $x$ $t$ x", "L x");
        check("$t$ $$t$ x", "L x");
        check("$t$ $bt$ x", "ODD");
        check("a$$b", "a$$b");
        check("$1 $23", "L L");
        check("$1a", "ODD");
        check("$ x", "ODD");
        check("$é$ ; $é$ x", "L x");
    }

    #[test]
    fn identifiers_follow_the_server() {
        check("\"a\"\"b\" \"C;\" é", "\"a\"\"b\" \"C;\" é");
        check("u & 1", "u + L");
        check("u&\"x\"", "ODD");
        check("U&\"x\" uescape '!'", "ODD");
        check("\"open", "ODD");
    }

    #[test]
    fn numbers_glued_to_words_are_odd() {
        check("1 1.5 .5 1. 1e5 1e-5 1.5E+3", "L L L L L L L");
        for odd in
            ["1a", "1$a$", "1e", "1ee5", "1.into", "1é", "1_", "1__0", "1_a", "1._5", "1e_5", "1e5_", "0x", "0x_"]
        {
            check(odd, "ODD");
        }
        for odd in ["0x1g", "0x1_", "0x1__f", "0xinto", "0o8", "0o17a", "0b", "0b12", "0b1é", "0x1$a$", "$1_0", "00x1"]
        {
            check(odd, "ODD");
        }
        check("a[1:2]::int", "a + L + L + + + int");
    }

    #[test]
    fn numbers_of_all_bases_end_where_the_server_ends_them() {
        check("0x1F 0o17 0b101 0X_dead_BEEF 1_000 1_0.2_5e1_0 .5_0 1_000.", "L L L L L L L L");
        check("0x1f.5 0x1e+5 0x1f-- 1\n,0b1'x'", "L L L + L L , L L");
        check("0x1f from 1_000;delete", "L from L ; delete");
    }

    #[test]
    fn unicode_strings_end_like_plain_ones() {
        check("U&'x' u&'\\' x", "L L x");
        check("u&'a''b' U&'d!0061' UESCAPE '!' x", "L L L UESCAPE L x");
        check("U&'a'\n'\\' ; x", "L L ; x");
        check("U &'x' nu&'x' u&", "U + L nu + L u +");
        check("U&'open", "ODD");
    }

    #[test]
    fn bytes_postgresql_has_no_use_for_are_odd() {
        for odd in ["\0", "\\", "{", "}", "\x01"] {
            check(odd, "ODD");
        }
    }
}
