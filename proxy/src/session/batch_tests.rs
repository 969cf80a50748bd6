use super::*;
use crate::sql::{FunctionTable, LexRules, Modes, classify};
use crate::wire::backend::TxStatus;
use crate::wire::codec::{cstring, message};
use crate::wire::frontend::{write_parse, write_query, write_subject};

const LIMITS: Limits = Limits { unit: 1000, text: 5000, message: 100_000, statements: 200 };

fn scan_with(input: &[u8], open: Option<Record>, portal_may_commit: bool) -> Scan {
    // Known, and nothing in it.
    let functions = FunctionTable::new([], &[], &[]);
    let statements = ClientStatements::default();
    let cx = Context {
        statements: &statements,
        impatient: false,
        classify: &|sql| classify(sql, &functions, LexRules::STANDARD),
        open,
        portal_may_commit,
        limits: LIMITS,
    };
    scan(input, &cx, &mut Vec::new())
}

fn unit(input: &[u8]) -> Unit {
    match scan_with(input, None, false) {
        Scan::Unit(unit) => unit,
        other => panic!("{other:?}"),
    }
}

fn parse(out: &mut Vec<u8>, name: &str, sql: &str) {
    write_parse(out, name.as_bytes(), &[sql.as_bytes(), &[0, 0, 0]].concat());
}

fn bind(out: &mut Vec<u8>, portal: &str, statement: &str) {
    message(out, b'B', |b| {
        cstring(b, portal.as_bytes());
        cstring(b, statement.as_bytes());
        b.extend_from_slice(&[0; 6]);
    });
}

fn execute(out: &mut Vec<u8>, portal: &str) {
    message(out, b'E', |b| {
        cstring(b, portal.as_bytes());
        b.extend_from_slice(&[0; 4]);
    });
}

fn bare(out: &mut Vec<u8>, kind: u8) {
    message(out, kind, |_| {});
}

/// Statements of one extended unit.
fn extended(sqls: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for sql in sqls {
        parse(&mut out, "", sql);
        bind(&mut out, "", "");
        execute(&mut out, "");
    }
    bare(&mut out, b'S');
    out
}

#[test]
fn only_units_of_reads_may_go_to_a_standby() {
    let simple = |sql: &str| {
        let mut out = Vec::new();
        write_query(&mut out, sql);
        out
    };
    for (input, read) in [
        (simple("select 1"), true),
        (simple("select 1 for update"), false),
        (simple("begin"), false),
        (simple("set x = 1"), false),
        (extended(&["select 1", "select 2"]), true),
        (extended(&["select 1", "delete from t"]), false),
        (extended(&["begin", "select 1"]), false),
        (extended(&[]), true),
    ] {
        let unit = unit(&input);
        assert!(unit.complete && unit.len == input.len());
        assert_eq!(unit.read, read, "{}", String::from_utf8_lossy(&input));
    }
    // Behind a Flush the same transaction may go on to write.
    let mut out = Vec::new();
    parse(&mut out, "", "select 1");
    bind(&mut out, "", "");
    execute(&mut out, "");
    bare(&mut out, b'H');
    assert!(!unit(&out).read);
    // Or behind a Query without a Sync before it, from PostgreSQL 18 on.
    let mut out = Vec::new();
    parse(&mut out, "", "select 1");
    bind(&mut out, "", "");
    let bound = out.len();
    execute(&mut out, "");
    write_query(&mut out, "select 2");
    assert!(unit(&out).complete && !unit(&out).read);
    out.truncate(bound);
    write_query(&mut out, "select 2");
    assert!(unit(&out).complete && unit(&out).read, "nothing was executed yet");
    // Parsing needs no primary, whatever is parsed.
    let mut out = Vec::new();
    parse(&mut out, "w", "delete from t");
    write_subject(&mut out, b'D', b"w");
    bare(&mut out, b'S');
    assert!(unit(&out).read && unit(&out).statements == 0);
    // What is bound and not executed is bound on the primary when it would stay in the session: a standby that is left
    // would take with it what nobody has set.
    for (sql, read) in [("select 1", true), ("set work_mem = 1", false), ("listen a", false)] {
        let mut out = Vec::new();
        parse(&mut out, "", sql);
        bind(&mut out, "", "");
        bare(&mut out, b'S');
        assert_eq!(unit(&out).read, read, "{sql}");
    }
}

#[test]
fn every_cut_of_a_unit_asks_for_more() {
    let input = extended(&["select 1", "delete from t"]);
    for cut in 0..input.len() {
        assert_eq!(scan_with(&input[..cut], None, false), Scan::More, "{cut}");
    }
    let two = [&input[..], &input[..]].concat();
    assert_eq!(unit(&two).len, input.len());
}

#[test]
fn a_flush_ends_what_is_sent_and_the_rest_follows() {
    let mut out = Vec::new();
    parse(&mut out, "", "insert into t values (1)");
    bind(&mut out, "p", "");
    execute(&mut out, "p");
    bare(&mut out, b'H');
    let first = unit(&out);
    assert!(first.flush && !first.complete && first.len == out.len());
    assert!(first.record.may_commit(TxStatus::Idle));
    let mut rest = Vec::new();
    bare(&mut rest, b'S');
    let Scan::Unit(second) = scan_with(&rest, Some(first.record), false) else { panic!("a Sync is a unit's end") };
    assert!(second.complete && second.record.may_commit(TxStatus::Idle) && !second.read);
}

#[test]
fn a_portal_that_was_bound_earlier_may_commit_only_if_something_bound_does() {
    let mut out = Vec::new();
    execute(&mut out, "earlier");
    bare(&mut out, b'S');
    for may_commit in [false, true] {
        let Scan::Unit(unit) = scan_with(&out, None, may_commit) else { panic!("a unit") };
        assert_eq!(unit.record.may_commit(TxStatus::Block), may_commit);
    }
    let mut out = Vec::new();
    parse(&mut out, "c", "commit");
    bind(&mut out, "earlier", "c");
    bare(&mut out, b'S');
    assert!(unit(&out).binds_commit);
}

#[test]
fn long_messages_are_sent_in_parts() {
    let long = "x".repeat(20_000);
    let mut query = Vec::new();
    write_query(&mut query, &format!("select '{long}'"));
    assert_eq!(scan_with(&query[..900], None, false), Scan::More);
    let part = unit(&query[..2000]);
    assert_eq!((part.len, part.tail_left, part.complete, part.read), (2000, query.len() - 2000, true, false));
    assert_eq!(part.text_at, Some(5), "what it sets is found as it passes");
    assert!(part.pins.is_empty());
    assert!(part.record.may_commit(TxStatus::Block), "what was not read may hold a COMMIT");
    let mut named = Vec::new();
    parse(&mut named, "n", &long);
    // For one with a name there is no room: it passes as well, to be refused in its place.
    let Scan::Unit(begun) = scan_with(&named[..2000], None, false) else { panic!("a part of it") };
    assert_eq!((begun.len, begun.tail_left, begun.text_at), (2000, named.len() - 2000, None));
    // Where there is room, it is waited for.
    assert_eq!(scan_with(&named[..150], None, false), Scan::More);
    let mut out = Vec::new();
    parse(&mut out, "", "select $1");
    message(&mut out, b'B', |b| {
        b.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
        b.extend(vec![1; 30_000]);
    });
    let part = unit(&out[..4000]);
    assert_eq!((part.len, part.tail_left, part.complete), (4000, out.len() - 4000, false));
    // Its names are waited for.
    let mut out = Vec::new();
    bind(&mut out, &"p".repeat(2000), &"s".repeat(10_000));
    assert_eq!(scan_with(&out[..3000], None, false), Scan::More);
    let refused = ClientError::ProtocolViolation { what: "malformed Bind message".to_owned() };
    assert_eq!(scan_with(&out[..6000], None, false), Scan::Violation(refused));
}

#[test]
fn a_message_longer_than_configured_is_refused_by_its_head() {
    let head = |length: u32| [b"Q".as_slice(), &length.to_be_bytes(), b"select 1"].concat();
    let refused = Scan::Violation(ClientError::MessageTooLong { length: 100_002, limit: 100_000 });
    assert_eq!(scan_with(&head(100_001), None, false), refused);
    assert_eq!(scan_with(&head(100_000), None, false), Scan::More);
}

#[test]
fn what_is_no_unit_is_told_apart() {
    let of = |kind: u8, len: usize| {
        let mut out = Vec::new();
        message(&mut out, kind, |b| b.extend(vec![0; len]));
        out
    };
    assert_eq!(scan_with(&of(b'X', 0), None, false), Scan::Terminate);
    assert_eq!(scan_with(&of(b'd', 100), None, false), Scan::Ignore(105));
    // The server says what is wrong with a body.
    for bad in [of(b'Q', 0), [of(b'P', 3), of(b'D', 1), of(b'S', 0)].concat()] {
        let Scan::Unit(unit) = scan_with(&bad, None, false) else { panic!("no unit in {bad:?}") };
        assert_eq!((unit.len, unit.complete), (bad.len(), true));
    }
    for bad in [of(b'y', 0), of(b'S', 20_000), b"Q\0\0\0\x01".to_vec()] {
        assert!(matches!(scan_with(&bad, None, false), Scan::Violation(_)), "{bad:?}");
    }
}

#[test]
fn what_a_unit_does_to_its_block_is_summed_up() {
    let modes = |read_only| Modes { read_only, ..Modes::default() };
    let only = Some(modes(Some(true)));
    let block = Block::default();
    for (sqls, want) in [
        (&["begin read only"][..], Block { begins: only, ..block }),
        (&["begin", "set transaction read only"], Block { begins: Some(modes(None)), sets: only, ..block }),
        (&["set transaction read only"], Block { sets: only, ..block }),
        (&["begin read only", "select 1", "commit"], Block { begins: only, more: true, ..block }),
        (&["begin read only", "commit and chain"], Block { begins: only, more: true, unproven: true, ..block }),
        (&["begin read only", "insert into t values (1)"], Block { begins: only, more: true, unproven: true, ..block }),
        (&["select 1", "begin read only"], Block { more: true, unproven: true, ..block }),
        (&["select 1", "set transaction read only"], Block { more: true, unproven: true, ..block }),
        (&["begin read only", "set local work_mem = '1MB'"], Block { begins: only, more: true, aside: true, ..block }),
        (&["begin read only", "set work_mem = '1MB'"], Block { begins: only, more: true, aside: true, ..block }),
        (&["declare c cursor for select 1"], Block { more: true, aside: true, ..block }),
        (&["declare c cursor with hold for select 1"], Block { more: true, unproven: true, ..block }),
        (&["set local transaction_read_only = off"], Block { more: true, unproven: true, ..block }),
        (&["select pg_advisory_unlock(1)"], Block { more: true, unproven: true, advisory: true, ..block }),
    ] {
        assert_eq!(unit(&extended(sqls)).block, want, "{sqls:?}");
    }
}

#[test]
fn a_flush_outside_of_a_unit_is_nothing() {
    let mut flush = Vec::new();
    bare(&mut flush, b'H');
    assert_eq!(scan_with(&flush, None, false), Scan::Ignore(5));
    // What is owed of an open unit it asks for.
    assert!(matches!(scan_with(&flush, Some(Record::default()), false), Scan::Unit(Unit { len: 5, flush: true, .. })));
    let mut behind = extended(&["select 1"]);
    let len = behind.len();
    behind.extend_from_slice(&flush);
    assert_eq!(unit(&behind).len, len);
    assert_eq!(scan_with(&behind[len..], None, false), Scan::Ignore(5));
}
