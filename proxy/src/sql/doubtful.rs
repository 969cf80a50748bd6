//! Functions that are not labelled volatile and may write all the same: what a text calls by name, operator, view or cast.
//!
//! PostgreSQL keeps such a function from writing itself, and not from calling one that does. Standbys refuse that, the
//! primary does not. So a read is a read for routing, where the worst that follows is a refusal; but what may have been
//! done at a primary that died is not done a second time on the word of a label.

use std::collections::BTreeSet;

/// Such functions, and what hides them. Names as PostgreSQL has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubtful {
    names: BTreeSet<Box<[u8]>>,
    operators: BTreeSet<Box<[u8]>>,
    /// Any text may call one: by an implicit cast, or it is not known which there are.
    every: bool,
}

impl Doubtful {
    /// It is not known which there are.
    pub fn unknown() -> Self {
        Self { every: true, ..Self::default() }
    }

    /// These, and no others.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { names: names.into_iter().map(|name| name.as_bytes().into()).collect(), ..Self::default() }
    }

    /// The same with operators, each with its function's name.
    #[must_use]
    pub fn with_operators<'a>(mut self, operators: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        for (operator, function) in operators {
            if self.names.contains(function.as_bytes()) {
                self.operators.insert(operator.as_bytes().into());
            }
        }
        self
    }

    /// The same with casts: the type each makes, its function's name, and whether it is implicit.
    #[must_use]
    pub fn with_casts<'a>(mut self, casts: impl IntoIterator<Item = (&'a str, &'a str, bool)>) -> Self {
        for (target, function, implicit) in casts {
            if self.names.contains(function.as_bytes()) {
                self.every |= implicit;
                self.names.insert(target.as_bytes().into());
            }
        }
        self
    }

    /// The same with what has one in its definition: views, policies, domains, defaults of arguments.
    #[must_use]
    pub fn with_definitions(mut self, definitions: &[(&str, &str)]) -> Self {
        let mut left: Vec<_> = definitions.to_vec();
        while !self.is_empty() {
            let (calls, others): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(_, text)| self.in_text(text.as_bytes()));
            if calls.is_empty() {
                break;
            }
            self.names.extend(calls.into_iter().map(|(name, _)| name.as_bytes().into()));
            left = others;
        }
        self
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.every
    }

    /// May this text call one?
    pub fn in_text(&self, sql: &[u8]) -> bool {
        if self.every || self.is_empty() {
            return self.every;
        }
        let holds = |part: &[u8]| sql.windows(part.len()).any(|w| w == part);
        let in_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || !b.is_ascii();
        let mut words = sql.split(|b| !in_name(b)).filter(|word| !word.is_empty());
        // A name may be written by its numbers, or be none that is one word.
        let escaped = holds(b"U&\"") || holds(b"u&\"");
        escaped
            || words.any(|word| self.names.contains(word.to_ascii_lowercase().as_slice()) || self.names.contains(word))
            || self.names.iter().filter(|name| !name.iter().all(in_name)).any(|name| holds(name))
            || self.operators.iter().any(|operator| holds(operator))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_may_write_is_found_behind_whatever_calls_it() {
        let plain = Doubtful::new(["bump", "Odd name"]);
        let hidden = plain
            .with_operators([("@@>", "bump"), ("<->", "lower")])
            .with_casts([("token", "bump", false), ("text", "lower", true)])
            .with_definitions(&[("v", "SELECT * FROM w"), ("w", "SELECT bump() AS n"), ("x", "SELECT 1 AS bumped")]);
        for sql in [
            "select BUMP()",
            "select s.bump ( 1 )",
            "select \"Odd name\"(1)",
            "select 1 @@> 2",
            "select x::token",
            "select * from v",
            "select U&\"b\\0075mp\"()",
        ] {
            assert!(hidden.in_text(sql.as_bytes()), "{sql}");
        }
        for sql in ["select bumped from x", "select a <-> b", "select x::text", ""] {
            assert!(!hidden.in_text(sql.as_bytes()), "{sql}");
        }
        assert!(Doubtful::unknown().in_text(b"select 1") && !Doubtful::default().in_text(b"select bump()"));
        let implicit = Doubtful::new(["bump"]).with_casts([("t", "bump", true)]);
        assert!(implicit.in_text(b"select 1"));
    }
}
