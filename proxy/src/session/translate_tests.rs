use super::*;
use crate::session::batch::{Context, Limits, Scan, scan};
use crate::sql::{FunctionTable, LexRules, classify};
use crate::wire::codec::cstring;

struct World {
    client: ClientStatements,
    texts: Texts,
}

impl World {
    /// Write the messages for a server; what reaches it, in words, and what is owed.
    fn send(&mut self, server: &mut ServerStatements, input: &[u8]) -> (String, String) {
        let functions = FunctionTable::unloaded();
        let mut classes = Vec::new();
        let cx = Context {
            statements: &self.client,
            classify: &|sql| classify(sql, &functions, LexRules::STANDARD),
            open: None,
            portal_may_commit: false,
            impatient: false,
            limits: Limits { unit: 10_000, text: 10_000, message: 1 << 30, statements: 2000 },
        };
        let Scan::Unit(unit) = scan(input, &cx, &mut classes) else { panic!("a unit") };
        let (mut relay, mut sink) = (Relay::default(), Sink::default());
        let mut t = Translator {
            client: &mut self.client,
            server,
            texts: &mut self.texts,
            relay: &mut relay,
            statement_bytes: 2000,
            usual_statement_bytes: 2000,
            server_bytes: 1 << 20,
            unnamed_bytes: 1000,
            naming: Naming::Shared { parse_key: 0, sql: false },
            classify: &|sql| classify(sql, &functions, LexRules::STANDARD),
            done: &mut Done::default(),
            failed: false,
        };
        assert!(!t.unit(input, &unit, &classes, &mut sink));
        let entries = relay.abandon();
        let owed = entries.iter().map(|e| format!("{:?}{}", e.kind, if e.hidden { "*" } else { "" }));
        (words(sink.bytes(input)), owed.collect::<Vec<_>>().join(" "))
    }
}

fn words(bytes: &[u8]) -> String {
    let (mut at, mut out) = (0, Vec::new());
    while let Some(h) = head(&bytes[at..]).unwrap() {
        let frame = &bytes[at..at + h.total];
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        out.push(match h.kind {
            b'P' => format!("P({})", text(frontend::parse(frame).unwrap().name)),
            b'B' => format!("B({})", text(frontend::bind(frame).unwrap().statement)),
            b'D' | b'C' => match frontend::subject(frame).unwrap() {
                Subject::Statement(name) => format!("{}({})", h.kind as char, text(name)),
                Subject::Portal(name) => format!("{}[{}]", h.kind as char, text(name)),
            },
            kind => (kind as char).to_string(),
        });
        at += h.total;
    }
    out.join(" ")
}

fn parse(out: &mut Vec<u8>, name: &str, sql: &str) {
    write_parse(out, name.as_bytes(), &[sql.as_bytes(), &[0, 0, 0]].concat());
}

fn bind(out: &mut Vec<u8>, statement: &str) {
    message(out, b'B', |b| {
        cstring(b, b"");
        cstring(b, statement.as_bytes());
        b.extend_from_slice(&[0; 6]);
    });
}

fn unit(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out);
    message(&mut out, b'S', |_| {});
    out
}

fn check(got: (String, String), sent: &str, owed: &str) {
    assert_eq!((got.0.as_str(), got.1.as_str()), (sent, owed));
}

#[test]
fn a_statement_is_prepared_once_on_each_server_that_needs_it() {
    let mut w = World { client: ClientStatements::default(), texts: Texts::new(0) };
    let (mut a, mut b) = (ServerStatements::default(), ServerStatements::default());
    let prepare = unit(|out| parse(out, "s", "select 1"));
    check(w.send(&mut a, &prepare), "P(pgtenure_1) S", "Parse Sync");
    let mut other =
        World { client: ClientStatements::default(), texts: std::mem::replace(&mut w.texts, Texts::new(0)) };
    check(other.send(&mut a, &prepare), "S", "LocalParse Sync");
    let run = unit(|out| {
        bind(out, "s");
        write_subject(out, b'D', b"s");
    });
    check(w.send(&mut a, &run), "B(pgtenure_1) D(pgtenure_1) S", "Bind DescribeStatement Sync");
    check(w.send(&mut b, &run), "P(pgtenure_1) B(pgtenure_1) D(pgtenure_1) S", "Parse* Bind DescribeStatement Sync");
    let end = unit(|out| {
        write_subject(out, b'C', b"s");
        write_subject(out, b'C', b"never was");
        bind(out, "s");
    });
    check(w.send(&mut b, &end), "B(pgtenure_refused) S", "LocalClose LocalClose Bind Sync");
}

#[test]
fn the_unnamed_statement_is_parsed_again_where_another_took_its_place() {
    let mut w = World { client: ClientStatements::default(), texts: Texts::new(0) };
    let mut other = World { client: ClientStatements::default(), texts: Texts::new(1000) };
    let mut server = ServerStatements::default();
    let prepare = unit(|out| parse(out, "", "select 1"));
    let run = unit(|out| bind(out, ""));
    check(w.send(&mut server, &prepare), "P() S", "Parse Sync");
    check(w.send(&mut server, &run), "B() S", "Bind Sync");
    other.send(&mut server, &prepare);
    check(w.send(&mut server, &run), "P() B() S", "Parse* Bind Sync");
    let mut query = Vec::new();
    frontend::write_query(&mut query, "select 1");
    check(w.send(&mut server, &query), "Q", "Query");
    check(w.send(&mut server, &run), "B(pgtenure_refused) S", "Bind Sync");
}

#[test]
fn names_in_use_and_too_many_bytes_are_refused_in_their_place() {
    let mut w = World { client: ClientStatements::default(), texts: Texts::new(0) };
    let mut server = ServerStatements::default();
    w.send(&mut server, &unit(|out| parse(out, "s", "select 1")));
    let again = unit(|out| parse(out, "s", "select 2"));
    // The server itself says that the name is taken, after whatever else it has to say against the text.
    check(w.send(&mut server, &again), "P(pgtenure_1) S", "Parse Sync");
    let long = unit(|out| parse(out, "t", &format!("select '{}'", "x".repeat(2000))));
    check(w.send(&mut server, &long), "B(pgtenure_refused) S", "Bind Sync");
}

fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frontend::write_query(&mut out, sql);
    out
}

#[test]
fn what_sql_names_is_there_before_it() {
    let mut w = World { client: ClientStatements::default(), texts: Texts::new(0) };
    let (mut a, mut b) = (ServerStatements::default(), ServerStatements::default());
    check(w.send(&mut a, &query("prepare p as select 1")), "Q", "Query");
    check(w.send(&mut a, &query("execute p")), "Q", "Query");
    check(w.send(&mut b, &query("explain execute p")), "Q Q", "Query* Query");
    w.send(&mut a, &unit(|out| parse(out, "m", "select 1")));
    check(w.send(&mut a, &query("execute m")), "P(m) S Q", "Parse* Sync* Query");
    check(w.send(&mut a, &query("execute m; execute p")), "Q", "Query");
    // Another client's of that name makes room, and comes back.
    let texts = std::mem::replace(&mut w.texts, Texts::new(1000));
    let mut other = World { client: ClientStatements::default(), texts };
    check(other.send(&mut a, &query("execute p")), "C(p) Q", "Close* Query");
    check(other.send(&mut a, &query("prepare p as select 2")), "Q", "Query");
    check(w.send(&mut a, &query("execute p")), "C(p) Q Q", "Close* Query* Query");
    // Within a unit of the client's nothing ends its transaction, and its unnamed statement and portal stay.
    let within = unit(|out| {
        parse(out, "", "execute p");
        bind(out, "");
    });
    let sent = "C(p) P(pgtenure_replay) B(pgtenure_replay) E C[pgtenure_replay] C(pgtenure_replay) P() B() S";
    check(other.send(&mut a, &within), sent, "Close* Parse* Bind* Execute* Close* Close* Parse Bind Sync");
    // What is dropped may be anything of that name.
    check(w.send(&mut a, &query("deallocate m")), "Q", "Query");
    check(w.send(&mut a, &query("deallocate p")), "Q", "Query");
    check(w.send(&mut b, &query("deallocate p")), "C(p) Q", "Close* Query");
    check(other.send(&mut b, &query("deallocate p")), "P(p) Q", "Parse* Query");
    check(other.send(&mut b, &query("execute p")), "Q", "Query");
}

#[test]
fn a_text_that_is_not_followed_finds_its_names_and_nobody_elses() {
    let mut w = World { client: ClientStatements::default(), texts: Texts::new(0) };
    let mut other = World { client: ClientStatements::default(), texts: Texts::new(1000) };
    let mut server = ServerStatements::default();
    w.send(&mut server, &query("prepare p as select 1"));
    w.send(&mut server, &query("prepare q as select 1"));
    other.send(&mut server, &query("prepare r as select 2"));
    check(w.send(&mut server, &query("prepare r as select 1; deallocate p")), "C(r) Q", "Close* Query");
    // The names in it are the server's alone from then on.
    assert_eq!(w.client.names().map(|n| &**n).collect::<Vec<_>>(), [b"q"]);
    check(w.send(&mut server, &query("select from pg_prepared_statements")), "Q", "Query");
    check(other.send(&mut server, &query("select from pg_prepared_statements")), "C(q) Q Q", "Close* Query* Query");
}

#[test]
fn names_of_ours_are_taken_back_from_who_has_them_by_sql() {
    let mut w = World { client: ClientStatements::default(), texts: Texts::new(0) };
    let mut other = World { client: ClientStatements::default(), texts: Texts::new(1000) };
    let (mut a, mut b) = (ServerStatements::default(), ServerStatements::default());
    check(w.send(&mut a, &query("prepare pgtenure_refused as select 1")), "Q", "Query");
    check(w.send(&mut a, &query("prepare pgtenure_3ea as select 1")), "Q", "Query");
    check(w.send(&mut a, &query("prepare pgtenure_replay as select 1")), "Q", "Query");
    let unknown = unit(|out| bind(out, "nope"));
    check(other.send(&mut a, &unknown), "C(pgtenure_refused) B(pgtenure_refused) S", "Close* Bind Sync");
    check(other.send(&mut a, &unknown), "B(pgtenure_refused) S", "Bind Sync");
    // The client whose name it was has it again when it asks for it.
    check(w.send(&mut a, &query("execute pgtenure_refused")), "Q Q", "Query* Query");
    let texts = (0..2).map(|i| unit(|out| parse(out, &i.to_string(), &format!("select {i}")))).collect::<Vec<_>>();
    check(other.send(&mut b, &texts[0]), "P(pgtenure_3e9) S", "Parse Sync");
    check(other.send(&mut a, &texts[1]), "C(pgtenure_3ea) P(pgtenure_3ea) S", "Close* Parse Sync");
    check(other.send(&mut b, &query("prepare p as select 2")), "Q", "Query");
    let within = unit(|out| {
        parse(out, "", "execute p");
        bind(out, "");
    });
    let sent =
        "C(pgtenure_replay) P(pgtenure_replay) B(pgtenure_replay) E C[pgtenure_replay] C(pgtenure_replay) P() B() S";
    let owed = "Close* Parse* Bind* Execute* Close* Close* Parse Bind Sync";
    check(other.send(&mut a, &within), sent, owed);
}

#[test]
fn portals_that_look_statements_up_take_no_more_than_there_is_room_for() {
    let mut w = World { client: ClientStatements::default(), texts: Texts::new(0) };
    let mut server = ServerStatements::default();
    let text = format!("execute p /* {} */", "x".repeat(1000));
    w.send(&mut server, &unit(|out| parse(out, "s", &text)));
    let bind_to = |portal: &str, statement: &str| {
        unit(|out| {
            message(out, b'B', |b| {
                cstring(b, portal.as_bytes());
                cstring(b, statement.as_bytes());
                b.extend_from_slice(&[0; 6]);
            });
        })
    };
    // The text of a named one is there already.
    for portal in ["a", "b", "a", "b"] {
        check(w.send(&mut server, &bind_to(portal, "s")), "B(pgtenure_1) S", "Bind Sync");
    }
    assert_eq!(w.client.portals.bytes(), 2 * 257);
    check(w.send(&mut server, &bind_to("c", "s")), "B(pgtenure_refused) S", "Bind Sync");
    check(w.send(&mut server, &unit(|out| write_portal(out, "a"))), "C[a] S", "Close Sync");
    check(w.send(&mut server, &bind_to("c", "s")), "B(pgtenure_1) S", "Bind Sync");
    w.client.portals.clear();
    w.send(&mut server, &unit(|out| parse(out, "", &format!("execute p /* {} */", "x".repeat(300)))));
    check(w.send(&mut server, &bind_to("a", "")), "B() S", "Bind Sync");
    check(w.send(&mut server, &bind_to("b", "")), "B(pgtenure_refused) S", "Bind Sync");
}

fn write_portal(out: &mut Vec<u8>, name: &str) {
    message(out, b'C', |b| {
        b.push(b'P');
        cstring(b, name.as_bytes());
    });
}
