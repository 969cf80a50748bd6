//! What a database's names mean for routing: functions by their volatility, relations a standby should not read.
//!
//! A name means the worst of all objects that bear it in all schemas, because which of them a statement means depends
//! on search_path and argument types. An immutable snapshot, shared by the sessions of a database.

use super::bodies::{Bodies, Used};
use super::callers::Callers;
use super::ends::{Ends, short};
use super::{Access, FunctionName, LexRules, classify};
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Volatility as in `pg_proc.provolatile`, worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Volatility {
    /// `i`
    Immutable,
    /// `s`
    Stable,
    /// `v`
    Volatile,
}

/// A row of `pg_proc`.
#[derive(Clone, Copy, Debug)]
pub struct FunctionRow<'a> {
    /// Its schema: `nspname` of `pg_namespace`. In `pg_catalog` only superusers create functions.
    pub schema: &'a str,
    /// `proname`
    pub name: &'a str,
    /// `provolatile`
    pub volatility: Volatility,
}

/// System functions that are volatile, write nothing and mean no particular node: reads may call them.
pub const HARMLESS: [&str; 10] = [
    "random",
    "random_normal",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
    "clock_timestamp",
    "timeofday",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
];

/// Functions that are not labelled volatile, yet assign a transaction id, or mean the session's own server process, or
/// work on a primary only, or read relations that the text need not show.
const PRIMARY_ONLY: [&str; 34] = [
    "inet_server_addr",
    "inet_server_port",
    "txid_current",
    "txid_current_if_assigned",
    "pg_current_xact_id",
    "pg_current_xact_id_if_assigned",
    // A snapshot that a standby takes does not tell who runs.
    "txid_current_snapshot",
    "pg_current_snapshot",
    "pg_backend_pid",
    "pg_blocking_pids",
    "pg_safe_snapshot_blocking_pids",
    "pg_my_temp_schema",
    "pg_is_other_temp_schema",
    "pg_listening_channels",
    "pg_cursor",
    "pg_prepared_statement",
    "pg_prepared_xact",
    "pg_lock_status",
    "pg_get_replication_slots",
    "pg_show_all_settings",
    "pg_show_replication_origin_status",
    "pg_postmaster_start_time",
    "pg_conf_load_time",
    "pg_numa_available",
    "pg_walfile_name",
    "pg_walfile_name_offset",
    "pg_split_walfile_name",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "xpath_table",
];

/// Do functions of that name run on the primary, whatever the configuration says?
pub fn is_primary_only(name: &str) -> bool {
    PRIMARY_ONLY.contains(&name)
}

/// What is known of a database's names.
#[derive(Clone, Debug, Default)]
pub struct FunctionTable {
    names: Arc<HashMap<Box<[u8]>, Meaning, BuildHasherDefault<NameHasher>>>,
    local_relations: Sieve,
    /// Operators behind which volatile functions hide; nearly always none.
    volatile_operators: Vec<Box<[u8]>>,
    /// A volatile function hides where no text shows it.
    unseen: bool,
    /// Where.
    unseen_behind: BTreeSet<String>,
    loaded: bool,
    /// It could not be read.
    failed: bool,
    /// Definitions have changed since it was read.
    outdated: bool,
    /// Its own among all tables of this process, when it may be told apart from them; else 0.
    number: u64,
    /// Functions that leave something in the session, as the configuration says; nearly always none.
    pinning: Arc<[String]>,
    /// What functions leave there, as their bodies tell, and relations.
    bodies: Arc<Bodies>,
    /// Of the names of such relations; nearly always there are none.
    leaving_relations: Sieve,
    /// A name that matters where it stands for itself is not ASCII: in another encoding it is not found.
    odd_names: bool,
    /// Functions of which nothing tells what they leave.
    unfollowed: Arc<BTreeSet<Box<[u8]>>>,
    /// Every statement, or every one that does more than read or change rows, may run what leaves something where no text
    /// shows it.
    anywhere: (bool, bool),
    /// Functions that may write although they are not labelled volatile.
    doubtful: Arc<Callers>,
}

/// Operators that the grammar uses without writing them: for IN, BETWEEN, LIKE, SIMILAR TO, DISTINCT, USING, CASE, ORDER BY and the
/// like, or in another spelling.
const UNWRITTEN_OPERATORS: [&str; 12] = ["=", "<", ">", "<=", ">=", "<>", "~~", "!~~", "~~*", "!~~*", "~", "!~"];

/// Says of most names at once that they are not in a small set, without hashing them.
#[derive(Clone, Copy, Debug, Default)]
struct Sieve([u64; 4]);

impl Sieve {
    fn place(ends: Ends) -> (usize, u64) {
        let mixed = ends.mix(8);
        (mixed >> 6, 1 << (mixed & 63))
    }

    fn add(&mut self, name: &[u8]) {
        let (word, bit) = Self::place(Ends::of(name));
        self.0[word] |= bit;
    }

    fn may_hold(&self, ends: Ends) -> bool {
        let (word, bit) = Self::place(ends);
        self.0[word] & bit != 0
    }
}

/// What a name may mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Meaning {
    /// The worst volatility of the functions of that name; `None` when there is none.
    volatility: Option<Volatility>,
    /// A relation or type of that name must be used on the primary.
    local_relation: bool,
    /// A volatile function hides behind it.
    hides: bool,
}

impl FunctionTable {
    /// Nothing known yet: every function call is a write, and every statement may leave anything.
    pub fn unloaded() -> Self {
        Self::default()
    }

    /// The same where it could not be read.
    #[must_use]
    pub fn failed(mut self) -> Self {
        self.failed = true;
        self
    }

    /// Is nothing known yet, and will it be soon?
    pub fn is_awaited(&self) -> bool {
        !self.loaded && !self.failed
    }

    /// Known once, and no more: nothing is a read for standbys until another table comes. What functions leave in the
    /// session is as likely the same as not, and is kept; the server is asked, too (`tells_all`).
    #[must_use]
    pub fn outdated(&self) -> Self {
        Self { unseen: true, outdated: true, number: 0, ..self.clone() }
    }

    /// Have definitions changed since it was read?
    pub fn is_outdated(&self) -> bool {
        self.outdated
    }

    /// The same where the configuration says that these functions leave something in the session.
    #[must_use]
    pub fn with_pinning(mut self, pinning: Arc<[String]>) -> Self {
        self.pinning = pinning;
        self
    }

    /// Functions that leave something in the session, as the configuration says.
    pub fn pinning(&self) -> &Arc<[String]> {
        &self.pinning
    }

    /// Is this one of them? The name is folded as the server folds it.
    pub fn is_pinning(&self, name: &[u8]) -> bool {
        self.pinning.iter().any(|known| known.as_bytes() == name)
    }

    /// The same where these functions may write although they are not labelled volatile.
    #[must_use]
    pub fn with_doubtful(mut self, doubtful: Callers) -> Self {
        self.doubtful = Arc::new(doubtful);
        self
    }

    /// Functions that may write although they are not labelled volatile.
    pub fn doubtful(&self) -> &Callers {
        &self.doubtful
    }

    /// What functions leave in the session that calls them.
    pub fn bodies(&self) -> &Bodies {
        &self.bodies
    }

    /// The same where nothing tells what these functions leave in the session.
    #[must_use]
    pub fn with_unfollowed<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.unfollowed = Arc::new(names.into_iter().map(|name| name.as_bytes().into()).collect());
        self
    }

    /// Functions of which nothing tells what they leave.
    pub(super) fn unfollowed(&self) -> &BTreeSet<Box<[u8]>> {
        &self.unfollowed
    }

    pub(super) fn set_anywhere(&mut self, every: bool, commands: bool) {
        self.anywhere = (self.anywhere.0 | every, self.anywhere.1 | commands);
    }

    pub(super) fn set_bodies(&mut self, bodies: Bodies) {
        self.leaving_relations = Sieve::default();
        bodies.relations().for_each(|name| {
            self.leaving_relations.add(name);
            self.odd_names |= !name.is_ascii();
        });
        self.bodies = Arc::new(bodies);
    }

    /// What the use of a relation of that exact name leaves in the session.
    pub(super) fn used(&self, name: &[u8]) -> Option<&Used> {
        self.used_by(Ends::of(name), name)
    }

    /// The same where its ends are known.
    #[inline]
    pub(super) fn used_by(&self, ends: Ends, name: &[u8]) -> Option<&Used> {
        if self.leaving_relations.may_hold(ends) { self.bodies.relation(name) } else { None }
    }

    /// The same where functions leave what they leave by another table.
    #[must_use]
    pub fn with_bodies_of(mut self, other: &Self) -> Self {
        self.bodies = other.bodies.clone();
        self.leaving_relations = other.leaving_relations;
        self.odd_names |= other.odd_names;
        (self.unfollowed, self.anywhere) = (other.unfollowed.clone(), other.anywhere);
        self
    }

    /// From the rows of `pg_proc`. Functions in `allow` may be called by reads whatever their volatility, those in
    /// `deny` and all others of the same name may not; where both name one, it is denied.
    pub fn new<'a>(
        rows: impl IntoIterator<Item = FunctionRow<'a>>,
        allow: &[FunctionName],
        deny: &[FunctionName],
    ) -> Self {
        let mut table = Self { loaded: true, ..Self::default() };
        for row in rows {
            let harmless = row.schema == "pg_catalog" && HARMLESS.contains(&row.name);
            let allowed = harmless || allow.iter().any(|name| name.is(row.schema, row.name));
            let volatility = if allowed { Volatility::Stable } else { row.volatility };
            table.odd_names |= volatility == Volatility::Volatile && !row.name.is_ascii();
            let meaning = table.entry(row.name);
            meaning.volatility = meaning.volatility.max(Some(volatility));
        }
        for name in PRIMARY_ONLY.into_iter().chain(deny.iter().map(|name| name.name.as_str())) {
            table.entry(name).volatility = Some(Volatility::Volatile);
        }
        table
    }

    /// The same where these functions tell of their session or their server, whatever their labels say.
    #[must_use]
    pub fn with_telling<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        for name in names {
            self.entry(name).volatility = Some(Volatility::Volatile);
        }
        self
    }

    /// The same with relations that must be read on the primary: unlogged tables, which a standby
    /// refuses to read; sequences, whose state in the WAL runs ahead of the values handed out; foreign tables, which may be
    /// a server's own files.
    #[must_use]
    pub fn with_local_relations<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        for name in names {
            self.entry(name).local_relation = true;
            self.local_relations.add(name.as_bytes());
            self.odd_names |= !name.is_ascii();
        }
        self
    }

    /// The same with operators, each with the name of its function: a text that holds one whose function is volatile, be
    /// it in a literal, is not a read. With a volatile `=` or another that the grammar uses without writing it, none is.
    #[must_use]
    pub fn with_operators<'a>(mut self, operators: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        for (operator, function) in operators {
            if self.volatility(function.as_bytes()) == Some(Volatility::Volatile) {
                if UNWRITTEN_OPERATORS.contains(&operator) {
                    self.unseen = true;
                    self.unseen_behind.insert(format!("operator {operator} by {function}"));
                }
                self.volatile_operators.push(operator.as_bytes().into());
            }
        }
        self
    }

    /// The same with casts: the type each makes, its function's name, and whether it is implicit. A text that names a
    /// type which a volatile function makes is not a read; with a volatile implicit cast, none is.
    #[must_use]
    pub fn with_casts<'a>(mut self, casts: impl IntoIterator<Item = (&'a str, &'a str, bool)>) -> Self {
        for (target, function, implicit) in casts {
            if self.volatility(function.as_bytes()) == Some(Volatility::Volatile) {
                if implicit {
                    self.unseen = true;
                    self.unseen_behind.insert(format!("cast to {target} by {function}"));
                }
                self = self.with_hiding([target]);
            }
        }
        self
    }

    /// The same with relations and types behind which volatile functions hide.
    fn with_hiding<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        for name in names {
            self.entry(name).hides = true;
            self = self.with_local_relations([name]);
        }
        self
    }

    /// The operators and casts for which no text of its database is a read, each with its volatile function.
    pub fn unseen_behind(&self) -> &BTreeSet<String> {
        &self.unseen_behind
    }

    /// Is there anything that is looked for in the whole of every text, be it in a literal?
    pub(super) fn looks_into_literals(&self) -> bool {
        !self.volatile_operators.is_empty() || self.bodies.has_operators()
    }

    /// Can this text, or any, call a volatile function without naming it?
    pub(super) fn may_hide_volatile(&self, sql: &[u8]) -> bool {
        let holds = |operator: &[u8]| sql.windows(operator.len()).any(|part| part == operator);
        self.unseen || self.volatile_operators.iter().any(|operator| holds(operator))
    }

    /// The same with every view, policy or domain whose definition, as SQL text, is not a read: what
    /// names it must run on the primary. Views upon such views are found in further rounds.
    #[must_use]
    pub fn with_definitions(mut self, definitions: &[(&str, &str)]) -> Self {
        let mut left: Vec<_> = definitions.to_vec();
        loop {
            let (reads, writes): (Vec<_>, Vec<_>) = left.into_iter().partition(|(_, definition)| {
                classify(definition.as_bytes(), &self, LexRules::STANDARD).access == Access::Read
            });
            if writes.is_empty() {
                return self;
            }
            self = self.with_hiding(writes.iter().map(|(name, _)| *name));
            left = reads;
        }
    }

    /// The same, finished, with the number that no other table of this process has.
    #[must_use]
    pub fn numbered(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    /// What tells it apart from other tables; 0 when nothing does.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Were rows ever loaded?
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// How many names are known.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Is no name known?
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The worst volatility under that exact name; `None` when it names no function.
    pub fn volatility(&self, name: &[u8]) -> Option<Volatility> {
        self.meaning(name).volatility
    }

    fn meaning(&self, name: &[u8]) -> Meaning {
        self.names.get(name).copied().unwrap_or_default()
    }

    /// May a text mean a name that is not found in it, as its bytes are not those of the catalog? These are UTF-8, and only in
    /// that encoding does PostgreSQL leave letters outside ASCII as they are.
    pub(super) fn may_be_misread(&self, sql: &[u8], lex: LexRules) -> bool {
        self.odd_names && !(lex.client_utf8 && lex.server_utf8) && !sql.is_ascii()
    }

    /// Must a relation of that name be read on the primary?
    pub(super) fn is_local_relation(&self, name: &[u8]) -> bool {
        self.has_local_relation(Ends::of(name), name)
    }

    /// The same where its ends are known.
    #[inline]
    pub(super) fn has_local_relation(&self, ends: Ends, name: &[u8]) -> bool {
        self.local_relations.may_hold(ends) && self.meaning(name).local_relation
    }

    /// May using a relation or type of that name call a volatile function?
    pub(super) fn hides_volatile(&self, name: &[u8]) -> bool {
        self.meaning(name).hides
    }

    /// Is it known what functions and relations leave in the session? Else any statement may leave anything.
    pub(super) fn tells_all(&self) -> bool {
        self.loaded && !self.outdated && !self.anywhere.0
    }

    /// Is it known only of statements that read or change rows what they leave?
    pub(super) fn tells_of_rows_only(&self) -> bool {
        self.anywhere.1
    }

    /// Is a function of that name newer than what is known, so that it may leave anything?
    pub(super) fn is_new(&self, name: &[u8]) -> bool {
        self.meaning(name).volatility.is_none()
    }

    fn entry(&mut self, name: &str) -> &mut Meaning {
        Arc::make_mut(&mut self.names).entry(name.as_bytes().into()).or_default()
    }
}

/// Eight bytes at a time: a nanosecond or two for a name, where the standard hasher takes 20. Its collisions can be
/// constructed, but only by someone who may create objects in the database, and would slow down nothing but that database.
#[derive(Clone, Copy, Debug, Default)]
struct NameHasher(u64);

impl NameHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.mix(u64::from_le_bytes(*word)));
        self.mix(short(rest));
    }

    fn write_usize(&mut self, length: usize) {
        self.mix(length as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Volatility::{Immutable, Stable, Volatile};

    fn row(name: &str, volatility: Volatility, system: bool) -> FunctionRow<'_> {
        FunctionRow { schema: if system { "pg_catalog" } else { "public" }, name, volatility }
    }

    fn named(names: &[&str]) -> Vec<FunctionName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_name_is_as_volatile_as_its_worst_overload() {
        let rows =
            [row("f", Immutable, true), row("f", Volatile, false), row("f", Stable, true), row("g", Stable, true)];
        let t = FunctionTable::new(rows, &[], &[]);
        assert_eq!(t.volatility(b"f"), Some(Volatile));
        assert_eq!(t.volatility(b"g"), Some(Stable));
        assert_eq!(t.volatility(b"h"), None);
        assert_eq!(t.volatility(b"F"), None);
    }

    #[test]
    fn the_lists_win_over_the_catalog_and_denial_over_permission() {
        let rows = [row("mine", Volatile, false), row("other", Immutable, false), row("both", Immutable, false)];
        let t = FunctionTable::new(rows, &named(&["mine", "both", "missing"]), &named(&["other", "both"]));
        assert_eq!(t.volatility(b"mine"), Some(Stable));
        assert_eq!(t.volatility(b"other"), Some(Volatile));
        assert_eq!(t.volatility(b"both"), Some(Volatile));
        assert_eq!(t.volatility(b"pg_backend_pid"), Some(Volatile));
        assert_eq!(t.volatility(b"missing"), None);
    }

    #[test]
    fn a_schema_narrows_what_is_allowed_and_never_what_is_denied() {
        let of = |schema, name| FunctionRow { schema, name, volatility: Volatile };
        let rows = [of("a", "f"), of("a", "g"), of("b", "g"), FunctionRow { volatility: Stable, ..of("c", "h") }];
        let t = FunctionTable::new(rows, &named(&["a.f", "a.g"]), &named(&["z.h"]));
        assert_eq!(t.volatility(b"f"), Some(Stable));
        // A text may mean the other one.
        assert_eq!(t.volatility(b"g"), Some(Volatile));
        assert_eq!(t.volatility(b"h"), Some(Volatile));
        assert_eq!(FunctionTable::new(rows, &named(&["g"]), &[]).volatility(b"g"), Some(Stable));
    }

    #[test]
    fn a_volatile_function_is_seen_through_views_upon_views() {
        let t = FunctionTable::new([row("f", Volatile, false), row("g", Stable, false)], &[], &[]);
        let t = t.with_definitions(&[
            ("top", "SELECT * FROM middle;"),
            ("middle", "SELECT x FROM bottom;"),
            ("bottom", "SELECT f() AS x;"),
            ("plain", "SELECT g() AS x FROM t;"),
        ]);
        for (name, local) in [("top", true), ("middle", true), ("bottom", true), ("plain", false), ("t", false)] {
            assert_eq!(t.is_local_relation(name.as_bytes()), local, "{name}");
        }
    }

    #[test]
    fn a_volatile_function_is_seen_behind_operators_and_casts() {
        let rows = || [row("f", Volatile, false), row("g", Stable, false)];
        let table = || FunctionTable::new(rows(), &[], &[]);
        let access = |sql: &str, t: &FunctionTable| classify(sql.as_bytes(), t, LexRules::STANDARD).access;
        let t = table().with_operators([("|+|", "f"), ("|-|", "g")]);
        for (sql, want) in [
            ("select 1 |+| 2", Access::Write),
            ("select 1|+|2", Access::Write),
            ("select 1 operator(public.|+|) 2", Access::Write),
            ("select 1 |-| 2, 3 = 4", Access::Read),
        ] {
            assert_eq!(access(sql, &t), want, "{sql}");
        }
        let t = table().with_casts([("made", "f", false), ("other", "g", true)]);
        assert!(t.unseen_behind().is_empty());
        for (sql, want) in [
            ("select 1::made", Access::Write),
            ("select cast(1 as public.\"made\")", Access::Write),
            ("select made '1'", Access::Write),
            ("select 1::other", Access::Read),
        ] {
            assert_eq!(access(sql, &t), want, "{sql}");
        }
        // Nothing in the text tells of these.
        let similar = table().with_operators([("!~", "f")]);
        assert_eq!(access("select x not similar to 'y' from t", &similar), Access::Write);
        for (t, behind) in [
            (table().with_operators([("=", "f"), ("<", "g")]), "operator = by f"),
            (table().with_casts([("made", "f", true), ("other", "f", false)]), "cast to made by f"),
        ] {
            assert_eq!(access("select x in (1) from t", &t), Access::Write);
            assert!(t.unseen_behind().iter().eq([behind]), "{:?}", t.unseen_behind());
        }
        assert_eq!(access("select 1", &FunctionTable::unloaded().outdated()), Access::Write);
        // A function that the configuration allows is allowed behind an operator too.
        let t = FunctionTable::new(rows(), &named(&["f"]), &[]).with_operators([("=", "f")]);
        assert_eq!(access("select 1 = 1", &t), Access::Read);
    }

    #[test]
    fn a_harmless_name_is_harmless_only_as_a_system_function() {
        let t = FunctionTable::new([row("random", Volatile, true)], &[], &[]);
        assert_eq!(t.volatility(b"random"), Some(Stable));
        let t = FunctionTable::new([row("random", Volatile, true), row("random", Volatile, false)], &[], &[]);
        assert_eq!(t.volatility(b"random"), Some(Volatile));
    }
}
