//! What the functions of a database leave in the session that calls them, as their bodies tell. Pure.
//!
//! Only those are known that leave something. A trigger is not named by the text that fires it, so its function is not
//! found; nor is what a function in C does.

use super::classify::{body_leaves, words};
use super::functions::FunctionTable;
use super::{LexRules, Pins, Touched};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How deep calls of functions by functions are followed.
pub const MAX_CALLS: usize = 4;

/// A function as the catalog has it.
#[derive(Clone, Copy, Debug)]
pub struct BodyRow<'a> {
    /// `proname`
    pub name: &'a str,
    /// Its language is SQL or PL/pgSQL.
    pub sql: bool,
    /// `prosrc`
    pub text: &'a str,
}

/// The functions that leave something, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bodies(BTreeMap<Box<[u8]>, Left>);

/// What the functions of one name leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// In the session.
    pub(super) pins: Pins,
    /// They may end what binds it.
    pub(super) unpins: bool,
    texts: Vec<Arc<str>>,
}

impl Bodies {
    /// What these functions leave, where `functions` knows what those leave that they call.
    fn of(rows: &[BodyRow<'_>], functions: &FunctionTable) -> Self {
        let mut known = Self::default();
        for row in rows {
            let (pins, unpins) = body_leaves(row.text.as_bytes(), row.sql, functions);
            if !pins.is_empty() || unpins {
                let left = known.0.entry(row.name.as_bytes().into()).or_default();
                left.pins.join(pins);
                left.unpins |= unpins;
                left.texts.push(row.text.into());
            }
        }
        known
    }

    /// What functions of that exact name leave.
    pub(super) fn get(&self, name: &[u8]) -> Option<&Left> {
        if self.0.is_empty() { None } else { self.0.get(name) }
    }

    /// Names of functions that leave something, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, left)| !left.pins.is_empty()).filter_map(|(name, _)| std::str::from_utf8(name).ok())
    }

    /// Add the settings that functions may change which a text may call, and those that these call.
    pub fn touch(&self, sql: &[u8], touched: &mut Touched, lex: LexRules) {
        if self.0.is_empty() {
            return;
        }
        let (mut seen, mut look) = (BTreeSet::new(), vec![sql]);
        while let Some(text) = look.pop() {
            for (_, word) in words(text) {
                let lower = word.to_ascii_lowercase();
                let Some((name, left)) = self.0.get_key_value(&*lower).or_else(|| self.0.get_key_value(word)) else {
                    continue;
                };
                if seen.insert(name) {
                    left.texts.iter().for_each(|text| touched.add_body(text.as_bytes(), lex));
                    look.extend(left.texts.iter().map(|text| text.as_bytes()));
                }
            }
        }
    }
}

impl FunctionTable {
    /// The same with what functions leave in the session that calls them.
    #[must_use]
    pub fn with_bodies(mut self, rows: &[BodyRow<'_>]) -> Self {
        for _ in 0..MAX_CALLS {
            let found = Bodies::of(rows, &self);
            if found == *self.bodies() {
                break;
            }
            self.set_bodies(found);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Access, PinReason, classify};

    fn table() -> FunctionTable {
        let row = |name, text| BodyRow { name, sql: true, text };
        FunctionTable::new([], &[], &[]).with_bodies(&[
            row("outer_one", "begin perform inner_one(); end"),
            row("inner_one", "begin perform set_config('app.x', 'y', false); set role r1; end"),
            row("locks", "begin perform pg_advisory_lock(1); end"),
            row("harmless", "begin update t set a = 1; end"),
            row("Odd one", "begin create temp table made(a int); end"),
        ])
    }

    #[test]
    fn a_call_leaves_what_the_functions_body_leaves() {
        let table = table();
        for (sql, want) in [
            ("select locks()", &[PinReason::AdvisoryLock][..]),
            ("select public.inner_one()", &[PinReason::Set]),
            ("select 1 from outer_one() x", &[PinReason::Set]),
            ("select harmless()", &[]),
            ("select locks from t", &[]),
            ("select \"Odd one\"()", &[PinReason::Temp]),
            ("do $$ begin perform locks(); end $$", &[PinReason::AdvisoryLock]),
        ] {
            let statement = classify(sql.as_bytes(), &table, LexRules::STANDARD);
            assert_eq!(statement.pins.list(), want, "{sql}");
            assert!(want.is_empty() || statement.access == Access::Write, "{sql}");
        }
        assert_eq!(table.bodies().names().collect::<Vec<_>>(), ["Odd one", "inner_one", "locks", "outer_one"]);
    }

    #[test]
    fn the_settings_of_all_functions_that_are_called_are_asked_for() {
        let mut touched = Touched::default();
        table().bodies().touch(b"select outer_one()", &mut touched, LexRules::STANDARD);
        let names: Vec<&str> = touched.names.iter().map(Box::as_ref).collect();
        assert_eq!((touched.every, touched.nameless, names), (false, false, vec!["app.x", "role"]));
    }
}
