//! What the functions of a database leave in the session that calls them, as their bodies tell, and its relations in one
//! that uses them: by triggers, rules, defaults, checks, and the queries of views. Pure.
//!
//! Only those are known that leave something.

use super::classify::{BodyLeaves, body_leaves, words};
use super::functions::FunctionTable;
use super::{LexRules, Local, PinReason, Pins, Touched};
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

/// What runs when a relation is used; or a type, by casts to it, or an operator.
#[derive(Clone, Copy, Debug)]
pub struct RelationRow<'a> {
    /// `relname`, `typname` or `oprname`
    pub name: &'a str,
    /// When it is read, too; else only when it is changed.
    pub read: bool,
    /// SQL, or what stands for it: what is named in it is used.
    pub text: &'a str,
}

/// The functions that leave something, and the relations whose use does, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bodies {
    left: BTreeMap<Box<[u8]>, Left>,
    relations: BTreeMap<Box<[u8]>, Used>,
    /// Names of those that change settings and are not made of one word.
    odd: Vec<Box<[u8]>>,
    /// Those of the relations that are operators.
    operators: Vec<Box<[u8]>>,
    /// Some of them change settings.
    sets: bool,
}

/// What the use of the relations of one name leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// Of any use.
    pub(super) read: Left,
    /// When they are changed; with the texts of either.
    pub(super) changed: Left,
}

/// What the functions of one name leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// In the session.
    pub(super) pins: Pins,
    /// They may end what binds it.
    pub(super) unpins: bool,
    /// They take or leave advisory locks.
    pub(super) advisory: bool,
    /// They may set for the transaction what texts are read by.
    pub(super) local: Local,
    /// Their texts, and whether these are SQL or PL/pgSQL.
    texts: Vec<(bool, Arc<str>)>,
}

impl Left {
    fn sets(&self) -> bool {
        self.pins.has(PinReason::Set)
    }

    fn is_empty(&self) -> bool {
        self.pins.is_empty() && !self.unpins && !self.advisory && self.local == Local::Nothing
    }

    fn add(&mut self, leaves: BodyLeaves) {
        self.pins.join(leaves.pins);
        self.unpins |= leaves.unpins;
        self.advisory |= leaves.advisory;
        self.local = self.local.max(leaves.local);
    }

    fn join(&mut self, other: &Self) {
        let Self { pins, unpins, advisory, local, texts: _ } = *other;
        self.add(BodyLeaves { pins, unpins, advisory, local });
    }
}

/// What these relations leave, where `functions` knows what those leave that they use.
fn used(rows: &[RelationRow<'_>], functions: &FunctionTable) -> BTreeMap<Box<[u8]>, Used> {
    let mut all: BTreeMap<Box<[u8]>, Used> = BTreeMap::new();
    for row in rows {
        let leaves = body_leaves(row.text.as_bytes(), true, functions);
        let mut used = Used::default();
        if row.read {
            used.read.add(leaves);
            // A view may be changed, and what it stands on with it.
            let change = ["UPDATE ", row.text].concat();
            used.changed.add(body_leaves(change.as_bytes(), true, functions));
        }
        used.changed.add(leaves);
        if !used.changed.is_empty() {
            let known = all.entry(row.name.as_bytes().into()).or_default();
            known.read.join(&used.read);
            known.changed.join(&used.changed);
            known.changed.texts.push((true, row.text.into()));
        }
    }
    all
}

impl Bodies {
    /// What these functions and relations leave, where `functions` knows what those leave that they use.
    fn of(rows: &[BodyRow<'_>], relations: &[RelationRow<'_>], functions: &FunctionTable) -> Self {
        let mut left: BTreeMap<Box<[u8]>, Left> = BTreeMap::new();
        for row in rows {
            let leaves = body_leaves(row.text.as_bytes(), row.sql, functions);
            if !leaves.pins.is_empty() || leaves.unpins || leaves.advisory || leaves.local != Local::Nothing {
                let left = left.entry(row.name.as_bytes().into()).or_default();
                left.add(leaves);
                left.texts.push((row.sql, row.text.into()));
            }
        }
        for name in functions.unfollowed() {
            left.entry(name.clone()).or_default().pins.join(Pins::ANYTHING);
        }
        let plain = |name: &[u8]| words(name).next() == Some((0, name));
        let relations = used(relations, functions);
        let setting = left.iter().filter(|(_, left)| left.sets()).map(|(name, _)| name);
        let used = relations.iter().filter(|(_, used)| used.changed.sets()).map(|(name, _)| name);
        let setting: Vec<_> = setting.chain(used).collect();
        let sets = !setting.is_empty();
        let odd = setting.into_iter().filter(|name| !plain(name)).cloned().collect();
        let operators = relations.keys().filter(|name| is_operator(name)).cloned().collect();
        Self { left, relations, odd, operators, sets }
    }

    /// Do any operators leave something?
    pub(super) fn has_operators(&self) -> bool {
        !self.operators.is_empty()
    }

    /// What the operators leave in the session that stand anywhere in a text, be it in a literal, and whether they may end
    /// something.
    pub(super) fn operators_in(&self, text: &[u8]) -> (Pins, bool) {
        let (mut pins, mut unpins) = (Pins::NONE, false);
        for name in self.operators.iter().filter(|name| text.windows(name.len()).any(|part| part == &***name)) {
            if let Some(used) = self.relation(name) {
                pins.join(used.changed.pins);
                unpins |= used.changed.unpins;
            }
        }
        (pins, unpins)
    }

    /// What functions of that exact name leave.
    pub(super) fn get(&self, name: &[u8]) -> Option<&Left> {
        if self.left.is_empty() { None } else { self.left.get(name) }
    }

    /// What the use of relations of that exact name leaves.
    pub(super) fn relation(&self, name: &[u8]) -> Option<&Used> {
        if self.relations.is_empty() { None } else { self.relations.get(name) }
    }

    /// Is nothing known of any function or relation?
    pub fn is_empty(&self) -> bool {
        self.left.is_empty() && self.relations.is_empty()
    }

    /// Names of functions that leave something or end it, in order, and then those of such relations and types.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let relations = self.relations.keys().filter(|name| !is_operator(name));
        self.left.keys().chain(relations).filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// Names of such relations.
    pub(super) fn relations(&self) -> impl Iterator<Item = &[u8]> {
        self.relations.keys().map(Box::as_ref)
    }

    /// Add the settings that functions may change which a text may call, and those that these call. Where a function is
    /// known to change some and its text does not show which, all are asked for: nobody stays on a server for that.
    pub fn touch(&self, sql: &[u8], touched: &mut Touched, lex: LexRules) {
        if !self.sets {
            return;
        }
        let (mut seen, mut look) = (BTreeSet::new(), vec![sql]);
        while let Some(text) = look.pop() {
            for (name, left) in self.setting_in(text) {
                if !seen.insert((name, std::ptr::from_ref(left))) {
                    continue;
                }
                for (sql, text) in &left.texts {
                    let text = text.as_bytes();
                    if !sql {
                        touched.put_together(text, 0..text.len());
                    } else if !touched.add_body(text, lex) && !self.setting_in(text).any(|(called, _)| called != name) {
                        touched.every = true;
                    }
                    look.push(text);
                }
            }
        }
    }

    /// The functions that change settings and that a text may call, and such relations that it may use.
    fn setting_in<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a Left)> {
        let of = |name: &[u8]| {
            let used = self.relations.get_key_value(name).map(|(name, used)| (&**name, &used.changed));
            [self.left.get_key_value(name).map(|(name, left)| (&**name, left)), used]
        };
        let named = words(text).flat_map(move |(_, word)| {
            let lower = word.to_ascii_lowercase();
            let mixed = if *lower == *word { [None, None] } else { of(word) };
            of(&lower).into_iter().chain(mixed).flatten()
        });
        let odd = self.odd.iter().filter(|name| text.windows(name.len()).any(|part| part == &***name));
        named.chain(odd.flat_map(move |name| of(name).into_iter().flatten())).filter(|(_, left)| left.sets())
    }
}

fn is_operator(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| super::lexer::is_operator(*b))
}

impl FunctionTable {
    /// The same with what runs where no text shows it, as SQL: anywhere, or only where a statement does more than read or change
    /// rows.
    #[must_use]
    pub fn with_hidden<'a>(mut self, hidden: impl IntoIterator<Item = (bool, &'a str)>) -> Self {
        for (everywhere, text) in hidden {
            let BodyLeaves { pins, unpins, .. } = body_leaves(text.as_bytes(), true, &self);
            if !pins.is_empty() || unpins {
                self.set_anywhere(everywhere, !everywhere);
            }
        }
        self
    }

    /// The same with what functions leave in the session that calls them, and relations in one that uses them.
    #[must_use]
    pub fn with_bodies(mut self, rows: &[BodyRow<'_>], relations: &[RelationRow<'_>]) -> Self {
        for _ in 0..MAX_CALLS {
            let found = Bodies::of(rows, relations, &self);
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
    use crate::sql::{Access, FunctionRow, Volatility, classify};

    fn table() -> FunctionTable {
        let row = |name, text| BodyRow { name, sql: true, text };
        let functions = [
            row("fills", "begin insert into parent values (1); end"),
            row("outer_one", "begin perform inner_one(); end"),
            row("inner_one", "begin perform set_config('app.x', 'y', false); set role r1; end"),
            row("locks", "begin perform pg_advisory_lock(1); end"),
            row("waits", "begin perform pg_advisory_xact_lock(1); end"),
            row("harmless", "begin update t set a = 1; end"),
            row("Odd one", "begin create temp table made(a int); end"),
        ];
        let used = |name, text| RelationRow { name, read: false, text };
        FunctionTable::new([], &[], &[]).with_bodies(
            &functions,
            &[
                used("audited", "PERFORM inner_one()"),
                used("parent", "UPDATE audited"),
                used("Odd table", "SELECT locks()"),
                used("plain", "SELECT nextval('s')"),
                RelationRow { name: "shown", read: true, text: "SELECT locks() AS a FROM audited;" },
            ],
        )
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
            ("insert into public.audited values (1)", &[PinReason::Set]),
            ("with x as (delete from parent returning a) select * from x", &[PinReason::Set]),
            ("copy audited from stdin", &[PinReason::Set]),
            ("truncate audited", &[PinReason::Set]),
            ("select * from audited", &[]),
            ("copy audited to stdout", &[]),
            ("insert into \"Odd table\" values (1)", &[PinReason::AdvisoryLock]),
            ("insert into odd values (1)", &[]),
            ("insert into plain values (1)", &[]),
            ("select a from shown", &[PinReason::AdvisoryLock]),
            ("update shown set a = 1", &[PinReason::Set, PinReason::AdvisoryLock]),
            ("select fills()", &[PinReason::Set]),
            ("do $$ begin insert into audited values (1); end $$", &[PinReason::Set]),
        ] {
            let statement = classify(sql.as_bytes(), &table, LexRules::STANDARD);
            assert_eq!(statement.pins.list(), want, "{sql}");
            assert!(want.is_empty() || statement.access == Access::Write, "{sql}");
        }
        assert_eq!(
            table.bodies().names().collect::<Vec<_>>(),
            ["Odd one", "fills", "inner_one", "locks", "outer_one", "waits", "Odd table", "audited", "parent", "shown"]
        );
    }

    #[test]
    fn a_function_that_locks_for_its_transaction_is_no_read_and_known_to_lock() {
        let rows = [FunctionRow { schema: "public", name: "waits", volatility: Volatility::Stable }];
        let text = "begin perform pg_advisory_xact_lock(1); end";
        let used = RelationRow { name: "waiting", read: true, text: "SELECT waits() AS a;" };
        let table = FunctionTable::new(rows, &[], &[]);
        let table = table.with_bodies(&[BodyRow { name: "waits", sql: true, text }], &[used]);
        for sql in ["select waits()", "do $$ begin perform waits(); end $$", "select a from waiting"] {
            let statement = classify(sql.as_bytes(), &table, LexRules::STANDARD);
            assert_eq!((statement.access, statement.advisory), (Access::Write, true), "{sql}");
        }
        let statement =
            classify(b"do $$ begin perform pg_try_advisory_xact_lock(1); end $$", &table, LexRules::STANDARD);
        assert!(statement.advisory && statement.pins.is_empty());
    }

    #[test]
    fn the_settings_of_all_functions_that_are_called_are_asked_for() {
        for sql in ["select outer_one()", "insert into parent values (1)", "select fills()", "update shown set a = 1"] {
            let mut touched = Touched::default();
            table().bodies().touch(sql.as_bytes(), &mut touched, LexRules::STANDARD);
            let names: Vec<&str> = touched.names.iter().map(Box::as_ref).collect();
            assert_eq!((touched.every, touched.nameless, names), (false, false, vec!["app.x", "role"]), "{sql}");
        }
    }

    #[test]
    fn what_stands_for_functions_leaves_what_they_leave() {
        let row = |name, text| BodyRow { name, sql: true, text };
        let functions = [
            row("sets", "begin perform set_config('app.x', 'y', false); end"),
            row("calls_it", "begin perform runs_text('x'); end"),
            row("steps", "PERFORM sets()"),
        ];
        let stands = |name, text| RelationRow { name, read: true, text };
        let relations = [
            stands("|+|", "PERFORM sets()"),
            stands("|-|", "PERFORM plain()"),
            stands("made", "PERFORM sets()"),
            stands("shown", "SELECT 1 |+| 2"),
        ];
        let known = ["sum", "lower", "plain", "calls_it", "runs_text", "steps", "sets"];
        let known = known.map(|name| FunctionRow { schema: "public", name, volatility: Volatility::Stable });
        let table = || {
            let table = FunctionTable::new(known, &[], &[]).with_unfollowed(["runs_text"]);
            table.with_bodies(&functions, &relations)
        };
        let found = |sql: &str, table: &FunctionTable| classify(sql.as_bytes(), table, LexRules::STANDARD);
        for (sql, sets, strange) in [
            ("select 1|+|2", true, false),
            ("select 1 |-| 2", false, false),
            ("select 1::made", true, false),
            ("select * from shown", true, false),
            ("select steps(1)", true, false),
            ("select runs_text('x')", false, true),
            ("select calls_it()", false, true),
            ("select plain(1)", false, false),
        ] {
            let found = found(sql, &table());
            assert_eq!((found.pins.has(PinReason::Set), found.strange), (sets, strange), "{sql}");
            assert_eq!(found.access == Access::Read, !sets && !strange, "{sql}");
            let mut touched = Touched::default();
            table().bodies().touch(sql.as_bytes(), &mut touched, LexRules::STANDARD);
            assert_eq!(touched.names.contains("app.x"), sets, "{sql}");
        }
        assert!(found("do $$ begin perform calls_it(); end $$", &table()).strange);
        // What no text shows.
        let hidden = |everywhere, text| table().with_hidden([(everywhere, text)]);
        for (sql, everywhere, commands) in [
            ("select plain(1)", true, false),
            ("insert into t values (1)", true, false),
            ("create table x (a int)", true, true),
            ("begin", false, false),
        ] {
            assert_eq!(found(sql, &hidden(true, "PERFORM sets()")).strange, everywhere, "{sql}");
            assert_eq!(found(sql, &hidden(false, "PERFORM sets()")).strange, commands, "{sql}");
            assert!(!found(sql, &hidden(true, "PERFORM plain()")).strange, "{sql}");
        }
    }

    #[test]
    fn where_no_name_is_found_all_settings_are_asked_for() {
        let row = |name, sql, text| BodyRow { name, sql, text };
        let rows = [
            row("Odd set", true, "begin set role r1; end"),
            row("by_odd", true, "begin perform \"Odd set\"(); end"),
            row("tcl", false, "spi_exec {set role r1}"),
            row("ends", true, "begin drop table made; end"),
        ];
        let table = FunctionTable::new([], &[], &[]).with_bodies(&rows, &[]);
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
