//! What the functions of a database leave in the session that calls them, as their bodies tell. Pure.
//!
//! Only those are known that leave something. A trigger is not named by the text that fires it, so its function is not
//! found; nor is what a function in C does.

use super::classify::{body_leaves, words};
use super::functions::FunctionTable;
use super::{LexRules, PinReason, Pins, Touched};
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
pub struct Bodies {
    left: BTreeMap<Box<[u8]>, Left>,
    /// Names of those that change settings and are not made of one word.
    odd: Vec<Box<[u8]>>,
}

/// What the functions of one name leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// In the session.
    pub(super) pins: Pins,
    /// They may end what binds it.
    pub(super) unpins: bool,
    /// Their texts, and whether these are SQL or PL/pgSQL.
    texts: Vec<(bool, Arc<str>)>,
}

impl Left {
    fn sets(&self) -> bool {
        self.pins.has(PinReason::Set)
    }
}

impl Bodies {
    /// What these functions leave, where `functions` knows what those leave that they call.
    fn of(rows: &[BodyRow<'_>], functions: &FunctionTable) -> Self {
        let mut left: BTreeMap<Box<[u8]>, Left> = BTreeMap::new();
        for row in rows {
            let (pins, unpins) = body_leaves(row.text.as_bytes(), row.sql, functions);
            if !pins.is_empty() || unpins {
                let left = left.entry(row.name.as_bytes().into()).or_default();
                left.pins.join(pins);
                left.unpins |= unpins;
                left.texts.push((row.sql, row.text.into()));
            }
        }
        let plain = |name: &[u8]| words(name).next() == Some((0, name));
        let odd =
            left.iter().filter(|(name, left)| left.sets() && !plain(name)).map(|(name, _)| name.clone()).collect();
        Self { left, odd }
    }

    /// What functions of that exact name leave.
    pub(super) fn get(&self, name: &[u8]) -> Option<&Left> {
        if self.left.is_empty() { None } else { self.left.get(name) }
    }

    /// Is nothing known of any function?
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Names of functions that leave something or end it, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.left.keys().filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// Add the settings that functions may change which a text may call, and those that these call. Where a function is
    /// known to change some and its text does not show which, all are asked for: nobody stays on a server for that.
    pub fn touch(&self, sql: &[u8], touched: &mut Touched, lex: LexRules) {
        if self.left.is_empty() {
            return;
        }
        let (mut seen, mut look) = (BTreeSet::new(), vec![sql]);
        while let Some(text) = look.pop() {
            for (name, left) in self.setting_in(text) {
                if !seen.insert(name) {
                    continue;
                }
                for (sql, text) in &left.texts {
                    let text = text.as_bytes();
                    if !sql {
                        touched.put_together(text);
                    } else if !touched.add_body(text, lex) && !self.setting_in(text).any(|(called, _)| called != name) {
                        touched.every = true;
                    }
                    look.push(text);
                }
            }
        }
    }

    /// The functions that change settings and that a text may call.
    fn setting_in<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a Left)> {
        let named = words(text).filter_map(|(_, word)| {
            let lower = word.to_ascii_lowercase();
            self.left.get_key_value(&*lower).or_else(|| self.left.get_key_value(word))
        });
        let odd = self.odd.iter().filter(|name| text.windows(name.len()).any(|part| part == &***name));
        named
            .chain(odd.filter_map(|name| self.left.get_key_value(&**name)))
            .map(|(name, left)| (&**name, left))
            .filter(|(_, left)| left.sets())
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
    use crate::sql::{Access, classify};

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

    #[test]
    fn where_no_name_is_found_all_settings_are_asked_for() {
        let row = |name, sql, text| BodyRow { name, sql, text };
        let table = FunctionTable::new([], &[], &[]).with_bodies(&[
            row("Odd set", true, "begin set role r1; end"),
            row("by_odd", true, "begin perform \"Odd set\"(); end"),
            row("tcl", false, "spi_exec {set role r1}"),
            row("ends", true, "begin drop table made; end"),
        ]);
        for (sql, every, names) in [
            ("select \"Odd set\"()", false, "role"),
            ("select by_odd()", false, "role"),
            ("select tcl()", true, ""),
            ("select ends()", false, ""),
        ] {
            let mut touched = Touched::default();
            table.bodies().touch(sql.as_bytes(), &mut touched, LexRules::STANDARD);
            let got = touched.names.iter().map(Box::as_ref).collect::<Vec<_>>().join(" ");
            assert_eq!((touched.every, touched.nameless, got.as_str()), (every, false, names), "{sql}");
            let pins = classify(sql.as_bytes(), &table, LexRules::STANDARD).pins;
            assert_eq!(pins.has(PinReason::Set), !touched.is_empty(), "{sql}");
        }
    }
}
