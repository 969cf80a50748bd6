//! A function as an operator names it in the configuration: `audit`, `billing.audit`, `"Billing"."Audit Log"`.
//!
//! As PostgreSQL reads identifiers: unquoted ones are folded to lower case, in quoted ones a quote is doubled. Without
//! a schema all functions of that name are meant, whatever their arguments.

use std::fmt;
use std::str::FromStr;

/// NAMEDATALEN - 1: PostgreSQL cuts what is longer.
const MAX_NAME: usize = 63;

/// A function, in one schema or in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionName {
    /// `nspname`; `None`: of any schema.
    pub schema: Option<String>,
    /// `proname`
    pub name: String,
}

/// What is no function's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FunctionNameError {
    /// Nothing, or nothing between dots or quotes.
    #[error("must name a function: name or schema.name")]
    Empty,
    /// `a.b.c`
    #[error("must have one dot at most, as in schema.name; quote what has a dot in it")]
    TooManyParts,
    /// `f(int)`
    #[error("must be without arguments: all functions of that name are meant")]
    Arguments,
    /// A quote that does not end, or that is followed by something else than a dot.
    #[error("must have each quoted part between two double quotes")]
    Quotes,
    /// A character that no unquoted name has.
    #[error("must have double quotes around a name with {0:?} in it")]
    Character(char),
    /// Reads never call such a function on a standby.
    #[error("must be ASCII: what other names stand for depends on the client's encoding, so they run on the primary")]
    NotAscii,
    /// A part is too long.
    #[error("must be at most {MAX_NAME} bytes long, as PostgreSQL's names are")]
    TooLong,
}

impl FunctionName {
    /// Is it this function?
    pub fn is(&self, schema: &str, name: &str) -> bool {
        self.name == name && self.schema.as_deref().is_none_or(|own| own == schema)
    }
}

impl FromStr for FunctionName {
    type Err = FunctionNameError;

    fn from_str(text: &str) -> Result<Self, FunctionNameError> {
        let (first, rest) = part(text)?;
        let Some(rest) = rest else { return Ok(Self { schema: None, name: first }) };
        match part(rest)? {
            (name, None) => Ok(Self { schema: Some(first), name }),
            (_, Some(_)) => Err(FunctionNameError::TooManyParts),
        }
    }
}

/// The first part of a name, and what is behind its dot.
fn part(text: &str) -> Result<(String, Option<&str>), FunctionNameError> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => unquoted(quoted)?,
        None => {
            let (name, rest) = text.split_once('.').map_or((text, None), |(name, rest)| (name, Some(rest)));
            let stranger = |(i, c): &(usize, char)| match c {
                '0'..='9' | '$' => *i == 0,
                c => !(c.is_ascii_alphabetic() || *c == '_'),
            };
            match name.chars().enumerate().find(stranger) {
                _ if !name.is_ascii() => return Err(FunctionNameError::NotAscii),
                Some((_, '(' | ')')) => return Err(FunctionNameError::Arguments),
                Some((_, c)) => return Err(FunctionNameError::Character(c)),
                None => (name.to_ascii_lowercase(), rest),
            }
        }
    };
    match name.len() {
        0 => Err(FunctionNameError::Empty),
        _ if !name.is_ascii() => Err(FunctionNameError::NotAscii),
        length if length > MAX_NAME => Err(FunctionNameError::TooLong),
        _ => Ok((name, rest)),
    }
}

/// What is before the closing quote, and what is behind the dot that follows it.
fn unquoted(quoted: &str) -> Result<(String, Option<&str>), FunctionNameError> {
    let mut name = String::new();
    let mut left = quoted;
    loop {
        let (before, behind) = left.split_once('"').ok_or(FunctionNameError::Quotes)?;
        name.push_str(before);
        match behind.chars().next() {
            Some('"') => {
                name.push('"');
                left = &behind[1..];
            }
            Some('.') => return Ok((name, Some(&behind[1..]))),
            Some('(') => return Err(FunctionNameError::Arguments),
            Some(_) => return Err(FunctionNameError::Quotes),
            None => return Ok((name, None)),
        }
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.schema.iter().chain([&self.name]).enumerate() {
            let dot = if i > 0 { "." } else { "" };
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if part.chars().all(plain) && !part.starts_with(|c: char| c.is_ascii_digit()) {
                write!(f, "{dot}{part}")?;
            } else {
                write!(f, "{dot}\"{}\"", part.replace('"', "\"\""))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_postgresql_reads_identifiers() {
        for (text, schema, name, shown) in [
            ("audit", None, "audit", "audit"),
            ("Audit", None, "audit", "audit"),
            ("Billing.Audit", Some("billing"), "audit", "billing.audit"),
            ("\"Audit\"", None, "Audit", "\"Audit\""),
            ("\"a.b\".\"say \"\"so\"\"\"", Some("a.b"), "say \"so\"", "\"a.b\".\"say \"\"so\"\"\""),
            ("_f$1", None, "_f$1", "\"_f$1\""),
        ] {
            let read: FunctionName = text.parse().unwrap();
            assert_eq!((read.schema.as_deref(), read.name.as_str()), (schema, name), "{text}");
            assert_eq!(read.to_string(), shown);
            assert_eq!(shown.parse(), Ok(read));
        }
    }

    #[test]
    fn what_is_no_name_is_told_why() {
        use FunctionNameError::*;
        let long = "x".repeat(64);
        for (text, why) in [
            ("", Empty),
            (".f", Empty),
            ("s.", Empty),
            ("\"\"", Empty),
            ("a.b.c", TooManyParts),
            ("f(int)", Arguments),
            ("s.f()", Arguments),
            ("\"f\"()", Arguments),
            ("\"f", Quotes),
            ("\"f\"g", Quotes),
            ("my report", Character(' ')),
            ("1st", Character('1')),
            ("s.a-b", Character('-')),
            ("größe", NotAscii),
            ("s.\"Größe\"", NotAscii),
            (long.as_str(), TooLong),
        ] {
            assert_eq!(text.parse::<FunctionName>(), Err(why), "{text}");
        }
    }

    #[test]
    fn a_name_without_a_schema_means_all() {
        let of = |text: &str| text.parse::<FunctionName>().unwrap();
        assert!(of("f").is("a", "f") && of("f").is("b", "f") && !of("f").is("a", "g"));
        assert!(of("a.f").is("a", "f") && !of("a.f").is("b", "f"));
    }
}
