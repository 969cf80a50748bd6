//! The words and symbols of a console command.

/// What a text is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A bare word or a quoted name.
    Word(String),
    /// A string.
    Text(String),
    /// Any other character.
    Symbol(char),
}

impl Token {
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w.eq_ignore_ascii_case(word))
    }

    pub(super) fn word(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text),
            Self::Symbol(_) => None,
        }
    }
}

/// The tokens of a text; comments and blanks are left out.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if c.is_whitespace() {
            rest = after;
        } else if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, behind)| behind);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, behind)| behind);
        } else if c == '\'' || c == '"' {
            let (body, behind) = quoted(after, c);
            out.push(if c == '"' { Token::Word(body) } else { Token::Text(body) });
            rest = behind;
        } else if c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '$') {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '$')));
            let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
            out.push(Token::Word(word.to_owned()));
            rest = behind;
        } else {
            out.push(Token::Symbol(c));
            rest = after;
        }
    }
    out
}

/// The inside of a quoted text whose opening quote is gone, and what is behind it. A doubled quote stands for itself.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut body = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            body.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
            body.push(quote);
            chars.next();
        } else {
            return (body, &text[at + c.len_utf8()..]);
        }
    }
    (body, "")
}
