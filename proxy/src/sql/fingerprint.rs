//! What texts have in common that differ only in blanks, comments, letter case and literals: their shape.

use super::lexer::{Lexer, Token};

/// A number that texts of one shape share, and of which other texts hardly ever have the same. Not to be relied on
/// against somebody who looks for two shapes with one number. FNV-1a; no allocation.
pub fn fingerprint(sql: &[u8]) -> u64 {
    let mut hash = Fnv::default();
    let mut lexer = Lexer::new(sql);
    let mut from = lexer.at();
    while let Some(token) = lexer.next() {
        match token {
            Token::Word(word) => word.iter().for_each(|b| hash.add(b.to_ascii_lowercase())),
            Token::Quoted(name) => {
                hash.add(b'"');
                name.iter().for_each(|b| hash.add(*b));
            }
            Token::Literal => hash.add(b'?'),
            Token::Operator => hash.add(sql[lexer.at() - 1]),
            Token::Open => hash.add(b'('),
            Token::Close => hash.add(b')'),
            Token::Dot => hash.add(b'.'),
            Token::Comma => hash.add(b','),
            Token::Semicolon => hash.add(b';'),
            // Nothing behind it is understood: what is there counts byte by byte.
            Token::Odd => {
                sql[from..].iter().for_each(|b| hash.add(*b));
                break;
            }
        }
        hash.add(0);
        from = lexer.at();
    }
    hash.0
}

struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_one_shape_share_a_fingerprint() {
        for (a, b, same) in [
            ("select f(1) from t where a = 'x'", "SELECT  f(22) /* c */ FROM t WHERE a = $1 -- d", true),
            ("select \"T\" from t", "select \"t\" from t", false),
            ("select a + b", "select a - b", false),
            ("select f(1)", "select g(1)", false),
            ("select a.b", "select a, b", false),
            ("select ab", "select a b", false),
            ("select 1; \u{1} one", "select 1; \u{1} two", false),
            ("", " -- nothing", true),
        ] {
            assert_eq!(fingerprint(a.as_bytes()) == fingerprint(b.as_bytes()), same, "{a} / {b}");
        }
    }
}
