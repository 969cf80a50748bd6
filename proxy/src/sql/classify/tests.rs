use super::*;
use crate::sql::{BodyRow, FunctionRow, Isolation, Modes, Volatility};
use proptest::prelude::*;

#[test]
fn the_first_statement_of_several_is_told_from_the_rest() {
    for (sql, control, rest) in [
        ("rollback", Control::Rollback { chain: false }, ""),
        ("ROLLBACK; begin; select ';'", Control::Rollback { chain: false }, " begin; select ';'"),
        (" ; -- x\n abort work;;", Control::Rollback { chain: false }, ";"),
        ("commit and chain; x", Control::Commit { chain: true }, " x"),
        ("rollback to s; select 1", Control::RollbackTo, " select 1"),
        ("; /* ; */", Control::Empty, ""),
        ("select ';'; rollback", Control::None, " rollback"),
    ] {
        assert_eq!(first_of(sql.as_bytes()), (control, rest.as_bytes()), "{sql}");
    }
}

/// The functions that tests/corpus refers to, as the catalog of a server with its schema.sql tells them.
fn table() -> FunctionTable {
    let row = |(name, volatility, schema)| FunctionRow { schema, name, volatility };
    let immutable = "lower upper length count sum max percentile_cont date_trunc substring overlay left right \
                     generate_series unnest jsonb_to_recordset to_char md5 array_agg row_number format \
                     overlaps like ilike";
    let stable = "now current_setting version current_schema current_database format_type pg_table_is_visible";
    let volatile = "nextval currval lastval setval random clock_timestamp gen_random_uuid pg_sleep set_config \
                    pg_advisory_lock pg_try_advisory_xact_lock pg_notify txid_current pg_current_xact_id \
                    pg_is_in_recovery pg_current_wal_lsn pg_cancel_backend pg_terminate_backend lo_create lo_get \
                    pg_logical_emit_message pg_switch_wal pg_reload_conf query_to_xml setseed bernoulli";
    let system = |names: &'static str, v| names.split_whitespace().map(move |n| (n, v, "pg_catalog"));
    let own = [
        ("stable_fn", Volatility::Stable),
        ("latest", Volatility::Stable),
        ("names_it", Volatility::Stable),
        ("counts_steps", Volatility::Stable),
        ("number_or_null", Volatility::Stable),
        ("complains", Volatility::Stable),
        ("pages", Volatility::Stable),
        ("Odd Name", Volatility::Immutable),
        ("writing_fn", Volatility::Volatile),
        ("overloaded", Volatility::Immutable),
        ("overloaded", Volatility::Volatile),
        ("writing_step", Volatility::Volatile),
        ("writing_agg", Volatility::Volatile),
        ("writing_attr", Volatility::Volatile),
    ];
    let rows = system(immutable, Volatility::Immutable)
        .chain(system(stable, Volatility::Stable))
        .chain(system(volatile, Volatility::Volatile))
        .chain(own.into_iter().map(|(n, v)| (n, v, "public")));
    let local = ["s", "counter", "scratch", "parted", "half"];
    FunctionTable::new(rows.map(row), &[], &[]).with_local_relations(local).with_definitions(&[
        ("volatile_view", "SELECT nextval('s') AS n"),
        ("state_view", "SELECT q.a FROM counter q(a, b, c)"),
        ("plain_view", "SELECT lower(v) FROM t"),
    ])
}

fn corpus(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(|l| l.replace("\\n", "\n"))
}

const READS: &str = include_str!("../../../tests/corpus/reads.txt");
const WRITES: &str = include_str!("../../../tests/corpus/writes.txt");

fn access(sql: &str) -> Access {
    classify(sql.as_bytes(), &table(), LexRules::STANDARD).access
}

#[test]
fn what_only_reads_is_a_read() {
    let wrong: Vec<_> = corpus(READS).filter(|sql| access(sql) != Access::Read).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_may_write_is_a_write() {
    let wrong: Vec<_> = corpus(WRITES).filter(|sql| access(sql) != Access::Write).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn without_a_catalog_every_function_call_is_a_write() {
    let bare = |sql: &str| classify(sql.as_bytes(), &FunctionTable::unloaded(), LexRules::STANDARD).access;
    assert_eq!(bare("select id from t where id in (1)"), Access::Read);
    for sql in ["select lower('X')", "select now()", "select a over (b)", "select random()"] {
        assert_eq!(bare(sql), Access::Write, "{sql}");
    }
}

#[test]
fn what_only_reads_what_the_primary_has_is_quiet() {
    let of = |sql: &str, table: &FunctionTable| classify(sql.as_bytes(), table, LexRules::STANDARD);
    for (sql, access, quiet) in [
        ("select 1", Access::Read, true),
        ("select count(*) from scratch", Access::Write, true),
        ("select 1; table scratch", Access::Write, true),
        ("copy scratch to stdout", Access::Write, true),
        ("select last_value from s", Access::Write, true),
        ("select last_value from too_new", Access::Write, true),
        ("select n.is_called from too_new n", Access::Write, true),
        ("select * from volatile_view", Access::Write, false),
        ("select nextval('s')", Access::Write, false),
        ("select * from scratch for update", Access::Write, false),
        ("select 1; delete from scratch", Access::Write, false),
        ("select * from scratch; begin", Access::Write, false),
        ("select * from pg_locks", Access::Write, false),
        ("select '", Access::Write, false),
    ] {
        let got = of(sql, &table());
        assert_eq!((got.access, got.quiet), (access, quiet), "{sql}");
        let later = of(sql, &table().outdated());
        assert_eq!((later.access, later.quiet), (Access::Write, quiet), "{sql}, outdated");
    }
}

#[test]
fn a_function_that_is_not_known_may_leave_anything() {
    let of = |sql: &str, table: &FunctionTable| classify(sql.as_bytes(), table, LexRules::STANDARD).strange;
    for (sql, new) in [
        ("select newly(1)", true),
        ("select id from t where public.newly(1)", true),
        ("select 1; call newly()", true),
        ("insert into fresh (a, b) values (1, newly(lower('x')))", true),
        ("update t set a = newly(1)", true),
        ("explain analyze select newly(1)", true),
        ("do $$ begin if lower('x') = 'x' then perform newly(1); end if; end $$", true),
        ("do $$ begin raise notice '%', lower('x'); end $$", false),
        ("select stable_fn(1)", false),
        ("insert into t (a) select writing_fn(2)", false),
        ("insert into fresh (a, b) values (1, lower('x')) on conflict (a) do update set (a, b) = (1, 2)", false),
        ("create table x (a varchar(3), primary key (a))", false),
        ("select * from (values (1)) w (n), generate_series(1, 2) x (y) where n in (1)", false),
        ("select sum(a) over (order by b), json_value(a, 'b'), current_timestamp(3) from t", false),
        ("with w (n) as (select 1) select n from w", false),
        ("explain select newly(1)", false),
        ("execute p(1)", false),
        ("select 1", false),
    ] {
        assert_eq!(of(sql, &table()), new, "{sql}");
        for unknown in [table().outdated(), FunctionTable::unloaded()] {
            assert!(of(sql, &unknown), "{sql}, where nothing is known");
        }
    }
    for sql in ["prepare p as select newly(1)", "begin", "commit", "rollback to a", "show work_mem", ""] {
        for table in [table(), table().outdated(), FunctionTable::unloaded()] {
            assert!(!of(sql, &table), "{sql}");
        }
    }
}

#[test]
fn a_new_function_is_seen_in_a_text_that_cannot_be_read() {
    let rules = LexRules { standard_conforming_strings: true, ascii_safe_encoding: false, ..LexRules::STANDARD };
    let of = |sql: &str| classify(sql.as_bytes(), &table(), rules).strange;
    assert!(of("select 'é'; select newly (1)"));
    assert!(!of("select 'é', lower('x') from t where a in (1)"));
}

#[test]
fn nothing_is_a_read_when_the_server_lexes_differently() {
    for rules in [
        LexRules { standard_conforming_strings: false, ascii_safe_encoding: true, ..LexRules::STANDARD },
        LexRules { standard_conforming_strings: true, ascii_safe_encoding: false, ..LexRules::STANDARD },
    ] {
        for sql in corpus(READS) {
            assert_eq!(classify(sql.as_bytes(), &table(), rules).access, Access::Write, "{sql}");
        }
    }
    let rules = LexRules { standard_conforming_strings: false, ascii_safe_encoding: true, ..LexRules::STANDARD };
    let hidden = classify(br"select 'a\'; select '; commit; --'", &table(), rules);
    assert_eq!(
        (hidden.control, hidden.may_commit),
        (Control::Multi { begins: false, ends: true, revives: false, over: false }, true)
    );
    let plain = classify(b"COMMIT", &table(), rules);
    assert_eq!((plain.control, plain.may_commit), (Control::Commit { chain: false }, true));
}

#[test]
fn a_name_outside_ascii_is_not_looked_for_in_another_encoding() {
    let odd = table().with_local_relations(["größen"]);
    let lex = |client, server| {
        let mut lex = LexRules::STANDARD;
        lex.learn("client_encoding", client);
        lex.learn("server_encoding", server);
        lex
    };
    let read = |sql: &[u8], table: &FunctionTable, lex| classify(sql, table, lex).access == Access::Read;
    let latin = b"select * from gr\xf6\xdfen";
    for (client, server, plain, other) in
        [("UTF8", "UTF8", true, true), ("LATIN1", "UTF8", true, false), ("UTF8", "LATIN1", true, false)]
    {
        let lex = lex(client, server);
        assert_eq!(read(b"select * from t", &odd, lex), plain, "{client} {server}");
        assert_eq!(read("select 'ö' from t".as_bytes(), &odd, lex), other, "{client} {server}");
        assert!(!read("select * from größen".as_bytes(), &odd, lex), "{client} {server}");
        assert_eq!(read(latin, &odd, lex), other, "{client} {server}");
        assert!(read(latin, &table(), lex), "there is no such name");
    }
}

#[test]
fn transaction_statements_are_told_apart() {
    use Control as C;
    let begin = |read_only| C::Begin(Modes { read_only, ..Modes::default() });
    let level = |isolation| Modes { isolation: Some(isolation), ..Modes::default() };
    let strict = Modes { read_only: Some(true), deferrable: Some(true), ..level(Isolation::Serializable) };
    let several = |begins, ends| C::Multi { begins, ends, revives: false, over: false };
    let over = |begins| C::Multi { begins, ends: true, revives: false, over: true };
    for (sql, want, may_commit) in [
        ("", C::Empty, false),
        (" ; -- x\n ; /* y */", C::Empty, false),
        ("select 1", C::None, false),
        ("begin", begin(None), false),
        ("BEGIN WORK", begin(None), false),
        ("begin isolation level serializable, read only, deferrable", C::Begin(strict), false),
        ("begin isolation level repeatable read", C::Begin(level(Isolation::RepeatableRead)), false),
        ("set transaction isolation level read committed", C::SetTransaction(level(Isolation::ReadCommitted)), false),
        ("set transaction isolation level serializable read only deferrable", C::SetTransaction(strict), false),
        ("set transaction snapshot '1-1'", C::None, false),
        ("set transaction to 1", C::None, false),
        ("set local transaction_read_only = on", C::None, false),
        ("set session characteristics as transaction read only", C::None, false),
        ("start transaction read write", begin(Some(false)), false),
        ("commit", C::Commit { chain: false }, true),
        ("/* x */ END transaction;", C::Commit { chain: false }, true),
        ("commit and chain", C::Commit { chain: true }, true),
        ("commit and no chain", C::Commit { chain: false }, true),
        ("commit prepared 'x'", C::FinishPrepared, true),
        ("rollback", C::Rollback { chain: false }, false),
        ("abort work and chain", C::Rollback { chain: true }, false),
        ("rollback to a", C::RollbackTo, false),
        ("rollback work to savepoint \"a\"", C::RollbackTo, false),
        ("rollback prepared 'x'", C::FinishPrepared, false),
        ("savepoint a", C::Savepoint, false),
        ("release savepoint a", C::Release, false),
        ("prepare transaction 'x'", C::PrepareTransaction, true),
        ("prepare transaction as select 1", C::None, true),
        ("prepare p (int) as select $1", C::None, false),
        ("deallocate p", C::Deallocate, false),
        ("deallocate all", C::DeallocateAll, false),
        ("deallocate prepare all", C::DeallocateAll, false),
        ("discard all", C::DiscardAll, false),
        ("discard temp", C::Discard, false),
        ("select 1; select 2", C::None, false),
        ("select 1; select nextval('s')", several(false, false), false),
        ("begin; select 1", several(true, false), false),
        ("select 1; commit; begin", several(true, true), true),
        ("select 1; end", over(false), true),
        ("begin; select 1; commit", over(true), true),
        ("begin; select 1; rollback; select 2", over(true), false),
        ("begin; rollback; start transaction", several(true, true), false),
        ("begin; commit and chain", several(true, true), true),
        ("commit and chain; abort", over(true), true),
        ("begin; prepare transaction 'x'", over(true), true),
        ("select 'commit'; select \"end\"", C::None, false),
        ("select case when true then 1 end", C::None, false),
        ("insert into t values (u&'x')", C::None, false),
        ("insert into t values (u&'x'); commit", over(false), true),
        ("select 1a; begin; x", several(true, false), false),
    ] {
        let s = classify(sql.as_bytes(), &table(), LexRules::STANDARD);
        assert_eq!((s.control, s.may_commit), (want, may_commit), "{sql}");
    }
}

#[test]
fn what_stays_in_the_session_pins() {
    use PinReason as P;
    for (sql, want) in [
        ("set x = 1", Some(P::Set)),
        ("SET search_path TO a, b", Some(P::Set)),
        ("set session x = 1", Some(P::Set)),
        ("set role a", Some(P::Set)),
        ("set session authorization a", Some(P::Set)),
        ("set time zone 'utc'", Some(P::Set)),
        ("set session characteristics as transaction read only", Some(P::Set)),
        ("set local x = 1", None),
        ("set local \"x\" = 1", None),
        ("set local x to 1", None),
        ("set local.x = 1", Some(P::Set)),
        ("set transaction read only", None),
        ("set transaction isolation level serializable", None),
        ("set constraints all deferred", None),
        ("reset x", Some(P::Set)),
        ("discard all", Some(P::Set)),
        ("discard temp", None),
        ("select currval('s')", Some(P::Sequence)),
        ("select set_config('a', 'b', false)", Some(P::Set)),
        ("insert into t select pg_catalog.set_config('a', 'b', false)", Some(P::Set)),
        ("select set_config('a', 'b', true)", None),
        ("select set_config('a', lower(v), TRUE), set_config('b', (select x), true) from t", None),
        ("select set_config('a', 'b', true), set_config('a', 'b', false)", Some(P::Set)),
        ("select set_config('a', 'b', true and false)", Some(P::Set)),
        ("select set_config('a', 'b', not true)", Some(P::Set)),
        ("select set_config('a', 'b', (true))", Some(P::Set)),
        ("select set_config('a', 'b', $1)", Some(P::Set)),
        ("select set_config('a', 'b', x.true)", Some(P::Set)),
        ("select set_config('a', set_config('b', 'c', false), true)", Some(P::Set)),
        ("select set_config('a', set_config('b', 'c', true), false)", Some(P::Set)),
        ("select set_config(a => 'x', b => 'y', is_local => true)", Some(P::Set)),
        ("listen a", Some(P::Listen)),
        ("unlisten a", None),
        ("notify a", None),
        ("load 'x'", Some(P::Load)),
        ("prepare p as select 1", None),
        ("prepare p as select pg_advisory_lock(1)", None),
        ("prepare p as select 1; execute p", Some(P::Prepare)),
        ("prepare é as select 1", Some(P::Prepare)),
        ("do $$ begin execute 'prepare p as select 1'; end $$", Some(P::Prepare)),
        ("prepare transaction as select 1", None),
        ("prepare transaction 'x'", None),
        ("execute p", None),
        ("declare c cursor with hold for select 1", Some(P::HeldCursor)),
        ("declare c cursor for select 1", None),
        ("create temp table x (id int)", Some(P::Temp)),
        ("create temporary view x as select 1", Some(P::Temp)),
        ("create or replace temp view x as select 1", Some(P::Temp)),
        ("create local temp table x (id int)", Some(P::Temp)),
        ("create table pg_temp.x (id int)", Some(P::Temp)),
        ("create function pg_temp.f() returns int language sql as 'select 1'", Some(P::Temp)),
        ("create table temp (id int)", None),
        ("create unlogged table x (id int)", None),
        ("select 1 as a into temp x", Some(P::Temp)),
        ("select 1 as a into local temporary table x", Some(P::Temp)),
        ("insert into temp (id) values (1)", None),
        ("insert into t (temp) values (1)", None),
        ("select pg_advisory_lock(1)", Some(P::AdvisoryLock)),
        ("select pg_try_advisory_lock_shared(1, 2)", Some(P::AdvisoryLock)),
        ("select pg_advisory_xact_lock(1)", None),
        ("select pg_advisory_unlock(1)", None),
        ("select setseed(0.1)", Some(P::Seed)),
        ("select pg_create_logical_replication_slot('s', 'pgoutput', true)", Some(P::Extension)),
        ("select slot_name from pg_replication_slots", None),
        ("select dblink_connect('a', 'b')", Some(P::Dblink)),
        ("select 'set x = 1'", None),
        ("update t set v = 1", None),
        ("select 1; set x = 1", Some(P::Set)),
        ("select 1; select 2; listen a", Some(P::Listen)),
        ("set x = u&'a'", Some(P::Set)),
        ("select u&'a'; set x = 1", Some(P::Set)),
        ("select u&'a', set_config('a', 'b', false)", Some(P::Set)),
        ("create temp table x as select u&'a'", Some(P::Temp)),
    ] {
        let s = classify(sql.as_bytes(), &table(), LexRules::STANDARD);
        assert_eq!(s.pins, want.map_or(Pins::NONE, Pins::of), "{sql}");
    }
}

/// What a server would do: it always understands these, and they always write.
const WRITING: [&str; 11] = [
    "DELETE FROM t",
    "insert into t values (1)",
    "select nextval('s')",
    "SELECT \"nextval\"('s')",
    "select pg_catalog . nextval('s')",
    "select 1 from writing_fn (2)",
    "with d as (update t set v = 1 returning 1) select 1",
    "select * from t for update",
    "select * from t for key share",
    "select 1 into x",
    "merge into t using u on true when matched then delete",
];

/// What writes only as a statement of its own.
const WRITING_ALONE: [&str; 6] =
    ["copy t from stdin", "truncate t", "create table x ()", "call p()", "do $$ ; $$", "execute p"];

/// Things that hide nothing: whole tokens, so that what follows them is code again.
fn harmless() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "select 1",
        "1",
        "'a''b'",
        "E'a\\'b'",
        "e'\\\\'",
        "$$ ; $$",
        "$q$ $$ ' $q$",
        "\"a\"\"b;\"",
        "-- ; '\n",
        "/* ' /* ; */ */",
        "(",
        ")",
        ",",
        ".",
        "+",
        "id",
        "from t",
        "where",
        "as x",
        "in (1)",
        "lower('X')",
        "with",
        "x'ff'",
        "$1",
        "case when",
        "end",
        "::int",
        "a$b$",
        "é",
        "*",
        "/",
        "||",
        "limit 1",
        "union",
        "values (1)",
        "explain",
        "\t",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    /// A statement that writes, with anything at all before it as a statement of its own.
    #[test]
    fn a_second_statement_that_writes_makes_the_string_a_write(
        before in prop::collection::vec(harmless(), 0..8),
        write in prop::sample::select([&WRITING[..], &WRITING_ALONE[..]].concat()),
        after in prop::collection::vec(harmless(), 0..4),
    ) {
        let sql = format!("{} ; {write} ; {}", before.join(" "), after.join(" "));
        prop_assert_eq!(access(&sql), Access::Write, "{}", sql);
    }

    /// A writing statement in the place of a subquery or a common table expression, or at the end.
    #[test]
    fn a_write_hidden_among_tokens_makes_it_a_write(
        before in prop::collection::vec(harmless(), 0..8),
        write in prop::sample::select(&WRITING[..]),
        after in prop::collection::vec(harmless(), 0..8),
    ) {
        let sql = format!("select {} ( {write} ) {}", before.join(" "), after.join(" "));
        prop_assert_eq!(access(&sql), Access::Write, "{}", sql);
    }

    /// The same for commits.
    #[test]
    fn a_commit_hidden_among_statements_is_seen(
        before in prop::collection::vec(harmless(), 0..8),
        commit in prop::sample::select(vec!["commit", "END", "Prepare/**/Transaction 'x'", "commit and chain"]),
        after in prop::collection::vec(harmless(), 0..4),
    ) {
        let sql = format!("{} ; {commit} ; {}", before.join(" "), after.join(" "));
        prop_assert!(classify(sql.as_bytes(), &table(), LexRules::STANDARD).may_commit, "{}", sql);
    }

    /// Blanks, comments and case change nothing.
    #[test]
    fn comments_between_tokens_change_nothing(index in 0..WRITING.len(), comment in "[ \t\n]{1,3}|/\\*[^*/]{0,5}\\*/") {
        let sql = WRITING[index].replace(' ', &comment).to_uppercase().replace("\"NEXTVAL\"", "\"nextval\"");
        prop_assert_eq!(access(&sql), Access::Write, "{}", sql);
    }

    #[test]
    fn any_bytes_at_all_are_classified_without_a_panic(bytes: Vec<u8>, standard: bool, safe: bool) {
        let rules = LexRules { standard_conforming_strings: standard, ascii_safe_encoding: safe, ..LexRules::STANDARD };
        classify(&bytes, &table(), rules);
    }

    #[test]
    fn any_text_of_sql_characters_is_classified_without_a_panic(sql in "[a-z'\"$();,.\\\\E/*\\- \n]{0,60}") {
        classify(sql.as_bytes(), &table(), LexRules::STANDARD);
    }
}

#[test]
fn what_is_done_by_name_is_seen() {
    use Names as N;
    let plain = N::Execute { plain: true };
    for (sql, names) in [
        ("select 1", N::None),
        ("prepare p(int) as select $1; ", N::Prepare),
        ("prepare transaction as select 1", N::Prepare),
        ("prepare transaction 'x'", N::None),
        ("deallocate p", N::Deallocate),
        ("deallocate prepare", N::Deallocate),
        ("deallocate all", N::All),
        ("deallocate prepare all", N::All),
        ("discard all", N::All),
        ("discard plans", N::None),
        ("deallocate all; select 1", N::None),
        ("execute p", plain),
        ("execute p(1, now(), lower($1))", plain),
        ("execute now(1)", plain),
        ("execute p(nextval('s'))", N::Execute { plain: false }),
        ("explain execute p(1)", plain),
        ("explain analyze verbose execute p", plain),
        ("explain (analyze, costs off) execute p", plain),
        ("create table x as execute p(1)", N::Execute { plain: false }),
        ("explain create table x as execute p", N::Execute { plain: false }),
        ("create table x as select 1 as execute", N::Several),
        ("select 1 as execute", N::None),
        ("grant execute on function f to r", N::None),
        ("create trigger r after insert on t execute function f()", N::None),
        ("execute é", N::Several),
        ("select 1; execute p", N::Several),
        ("execute p; execute q", N::Several),
        ("prepare p as select 1; execute p", N::Unknown),
        ("execute p; deallocate p", N::Unknown),
        ("prepare é as select 1", N::Unknown),
        ("select u&'x'; prepare p as select 1", N::Unknown),
        ("do $$ begin execute 'select 1'; end $$", N::None),
        ("do $$ begin execute 'prepare p as select 1'; end $$", N::Unknown),
        ("select name from pg_catalog.pg_prepared_statements", N::List),
        ("select name from pg_prepared_statement()", N::List),
    ] {
        let got = classify(sql.as_bytes(), &table(), LexRules::STANDARD);
        assert_eq!(got.names, names, "{sql}");
        assert!(names == N::None || got.access == Access::Write, "{sql}");
    }
}

#[test]
fn what_is_set_for_the_transaction_only_is_known() {
    let body = |name, text| BodyRow { name, sql: true, text };
    let bodies = [
        body("tokyo", "begin perform set_config('timezone', 'Asia/Tokyo', true); end"),
        body("tenant", "begin perform set_config('app.tenant', 'x', true); end"),
        body("calls_it", "begin set local search_path = a; end"),
    ];
    let table = FunctionTable::new([], &[], &[]).with_bodies(&bodies, &[]);
    for (sql, want) in [
        ("set local timezone = 'UTC'", Local::Named),
        ("select 1; set local timezone = 'UTC'", Local::Named),
        ("select set_config('a.b', 'c', true)", Local::Named),
        ("select set_config('a.b', 'c', false)", Local::Nothing),
        ("set timezone = 'UTC'", Local::Nothing),
        ("set local = 'x'", Local::Nothing),
        ("set transaction read only", Local::Nothing),
        ("prepare p as select set_config('a.b', 'c', true)", Local::Nothing),
        ("select tokyo()", Local::Hidden),
        ("select calls_it()", Local::Hidden),
        ("select tenant()", Local::Nothing),
        ("do $$ begin set local timezone = 'UTC'; end $$", Local::Hidden),
        ("do $$ begin update t set a = 1; end $$", Local::Nothing),
    ] {
        assert_eq!(classify(sql.as_bytes(), &table, LexRules::STANDARD).local, want, "{sql}");
    }
}
