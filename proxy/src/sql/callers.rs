//! What leads to some of a database's functions: what a text calls by name, operator, view, aggregate or cast.
//!
//! Of two kinds that matters although their labels do not tell.
//!
//! * Functions that are not labelled volatile and may write all the same. PostgreSQL keeps such a function from writing
//!   itself, and not from calling one that does. Standbys refuse that, the primary does not. So a read is a read for
//!   routing, where the worst that follows is a refusal; but what may have been done at a primary that died is not done a
//!   second time on the word of a label.
//! * Functions that tell of their own session or server: `currval`, the state of a sequence, statistics. A standby answers,
//!   and something else.

use std::collections::BTreeSet;

/// Such names. They are as PostgreSQL has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    names: BTreeSet<Box<[u8]>>,
    /// Names that are not one word in a text.
    odd: BTreeSet<Box<[u8]>>,
    operators: BTreeSet<Box<[u8]>>,
    /// Any text may call one: by an implicit cast, or it is not known which there are.
    every: bool,
}

/// What calls functions that no text names, as the catalog has it.
#[derive(Clone, Debug, Default)]
pub struct Hidden<'a> {
    /// Operators, each with its function's name.
    pub operators: Vec<(&'a str, &'a str)>,
    /// Casts: the type each makes, its function's name, and whether it is implicit.
    pub casts: Vec<(&'a str, &'a str, bool)>,
    /// Aggregates, each with one of the functions that it calls.
    pub aggregates: Vec<(&'a str, &'a str)>,
    /// Views, policies, domains and defaults of arguments, each with its definition.
    pub definitions: &'a [(&'a str, &'a str)],
}

impl Callers {
    /// It is not known which there are.
    pub fn unknown() -> Self {
        Self { every: true, ..Self::default() }
    }

    /// These, and no others.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut callers = Self::default();
        names.into_iter().for_each(|name| callers.add(name));
        callers
    }

    fn add(&mut self, name: &str) {
        let names = if name.bytes().all(|b| in_name(&b)) { &mut self.names } else { &mut self.odd };
        names.insert(name.as_bytes().into());
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name.as_bytes()) || self.odd.contains(name.as_bytes())
    }

    fn size(&self) -> usize {
        self.names.len() + self.odd.len() + self.operators.len()
    }

    /// The same with what hides them, and what hides that.
    #[must_use]
    pub fn with_hidden(mut self, hidden: &Hidden<'_>) -> Self {
        let mut left: Vec<_> = hidden.definitions.to_vec();
        while !self.is_empty() {
            let before = self.size();
            for (operator, function) in &hidden.operators {
                if self.has(function) {
                    self.operators.insert(operator.as_bytes().into());
                }
            }
            for (target, function, implicit) in &hidden.casts {
                if self.has(function) {
                    self.every |= implicit;
                    self.add(target);
                }
            }
            for (aggregate, part) in &hidden.aggregates {
                if self.has(part) {
                    self.add(aggregate);
                }
            }
            let (calls, others): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(_, text)| self.in_text(text.as_bytes()));
            calls.into_iter().for_each(|(name, _)| self.add(name));
            left = others;
            if before == self.size() {
                break;
            }
        }
        self
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.size() == 0 && !self.every
    }

    /// May any text call one?
    pub fn is_every(&self) -> bool {
        self.every
    }

    /// The names and the operators, as far as they are UTF-8.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.names.iter().chain(&self.odd).chain(&self.operators).filter_map(|word| std::str::from_utf8(word).ok())
    }

    /// May this text call one?
    pub fn in_text(&self, sql: &[u8]) -> bool {
        if self.every || self.is_empty() {
            return self.every;
        }
        let holds = |part: &[u8]| sql.windows(part.len()).any(|w| w == part);
        let mut words = sql.split(|b| !in_name(b)).filter(|word| !word.is_empty());
        // A name may be written by its numbers, or be none that is one word.
        let escaped = holds(b"U&\"") || holds(b"u&\"");
        escaped
            || words.any(|word| self.names.contains(word.to_ascii_lowercase().as_slice()) || self.names.contains(word))
            || self.odd.iter().chain(&self.operators).any(|name| holds(name))
    }
}

fn in_name(b: &u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || !b.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_behind_whatever_calls_it() {
        let definitions = [
            ("v", "SELECT * FROM w"),
            ("w", "SELECT bump() AS n"),
            ("x", "SELECT 1 AS bumped"),
            ("y", "SELECT all_of(a) AS n FROM x"),
        ];
        let hidden = Hidden {
            operators: vec![("@@>", "bump"), ("<->", "lower")],
            casts: vec![("token", "bump", false), ("text", "lower", true)],
            aggregates: vec![("all_of", "bump"), ("some_of", "lower")],
            definitions: &definitions,
        };
        let callers = Callers::new(["bump", "Odd name"]).with_hidden(&hidden);
        for sql in [
            "select BUMP()",
            "select s.bump ( 1 )",
            "select \"Odd name\"(1)",
            "select 1 @@> 2",
            "select x::token",
            "select * from v",
            "select all_of(a) from x",
            "select n from y",
            "select U&\"b\\0075mp\"()",
        ] {
            assert!(callers.in_text(sql.as_bytes()), "{sql}");
        }
        for sql in ["select bumped from x", "select a <-> b", "select x::text", "select some_of(a) from x", ""] {
            assert!(!callers.in_text(sql.as_bytes()), "{sql}");
        }
        assert!(Callers::unknown().in_text(b"select 1") && !Callers::default().in_text(b"select bump()"));
        let implicit = Hidden { casts: vec![("t", "bump", true)], ..Hidden::default() };
        assert!(Callers::new(["bump"]).with_hidden(&implicit).in_text(b"select 1"));
    }
}
