//! Columns of prepared statements that clients were told: tables change, and servers that share a statement's text had
//! others.

use super::common::prepared::{prepare, server_parses, use_it, used};
use super::common::raw::{Raw, bind, block, close, describe, execute, ok, parse, sync, two_servers, value, words};
use super::common::{self, wait_for};
use proxy::wire::backend;
use proxy::wire::codec::message;
use proxy::wire::startup::cancel_request;
use std::io::Write;

const TEXT: &str = "select * from shape";

#[test]
fn a_standby_that_lags_gives_no_older_columns_than_its_client_knows() {
    let c = common::Cluster::start(1, |raw| {
        (raw.workers, raw.pool_size) = (1, 1);
        raw.max_replay_lag = cluster::config::Span::secs(60);
    });
    c.nodes[0].psql("create table shape(a int); insert into shape values (1); grant all on shape to app");
    let mut old = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    wait_for("the standby to serve reads", || {
        (value(&mut old, "select current_setting('cluster_name') from shape") == "n2").then_some(())
    });
    // Each prepares it on the only connection to the standby, and knows what is there.
    let mut plain = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    plain.write(|out| {
        parse(out, "s", TEXT);
        sync(out);
    });
    assert_eq!(words(&plain.until_ready()), "1 | Z I");
    assert_eq!(used(&mut plain, "s"), "2 | D 1 | C SELECT 1 | Z I");
    let mut new = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    c.nodes[1].psql("select pg_wal_replay_pause()");
    c.nodes[0].psql("alter table shape add b int default 2");
    ok(&mut new, "set pgtenure.read_from = 'primary'");
    knows(&mut new, TEXT);
    ok(&mut new, "reset pgtenure.read_from");
    // It is there, with one column; of that nobody was told.
    assert_eq!(value(&mut new, "select current_setting('cluster_name')"), "n2");
    assert_eq!(used(&mut new, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
    // Who has been told of one column by the standby gets that there.
    knows(&mut old, TEXT);
    assert_eq!(used(&mut old, "s"), "2 | D 1 | C SELECT 1 | Z I");
    assert_eq!(used(&mut new, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
    assert_eq!(used(&mut old, "s"), "2 | D 1 | C SELECT 1 | Z I");
    c.nodes[1].psql("select pg_wal_replay_resume()");
    wait_for("the standby to serve the new columns", || {
        let told = used(&mut new, "s");
        assert_eq!(told, "2 | D 1 2 | C SELECT 1 | Z I");
        let at_standby =
            c.nodes[1].psql("select count(*) from pg_attribute where attrelid = 'shape'::regclass and attname = 'b'");
        (at_standby == "1").then_some(())
    });
    assert_eq!(used(&mut new, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
    assert_eq!(value(&mut new, "select current_setting('cluster_name')"), "n2");
    assert_eq!(used(&mut old, "s"), "E 0A000 | Z I", "what it knows is true no more");
}

#[test]
fn who_knows_the_new_columns_is_not_refused_for_what_a_connection_had_prepared() {
    let c = two_servers();
    c.nodes[0].psql("create table shape(a int); insert into shape values (1); grant all on shape to app");
    let mut old = Raw::login(c.port, &[]);
    knows(&mut old, TEXT);
    let mut described = Raw::login(c.port, &[]);
    let mut other = block(&c);
    c.nodes[0].psql("alter table shape add b int default 2");
    // On the second connection, which has not prepared it.
    knows(&mut described, TEXT);
    ok(&mut other, "commit");
    // Both connections serve it, the first one too, in a block and outside.
    for _ in 0..2 {
        assert_eq!(used(&mut described, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
        let mut other = block(&c);
        assert_eq!(used(&mut described, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
        ok(&mut described, "begin");
        assert_eq!(used(&mut described, "s"), "2 | D 1 2 | C SELECT 1 | Z T");
        ok(&mut described, "commit");
        ok(&mut other, "commit");
    }
    for _ in 0..2 {
        assert_eq!(used(&mut old, "s"), "E 0A000 | Z I");
        let mut other = block(&c);
        assert_eq!(used(&mut old, "s"), "E 0A000 | Z I");
        ok(&mut other, "commit");
    }
}

/// `s` prepared, described and used.
fn knows(client: &mut Raw, text: &str) {
    assert_eq!(prepare(client, "s", text), "1 | Z I");
    client.write(|out| {
        describe(out, "s");
        sync(out);
    });
    assert_eq!(words(&client.until_ready()), "t | T | Z I");
}

/// The error that using a statement ends with: its code, its words, and the routine that says it.
fn refused(client: &mut Raw, name: &str) -> [String; 3] {
    client.write(|out| use_it(out, name));
    let (kind, frame) = client.frame().expect("an answer");
    assert_eq!(kind, b'E');
    assert_eq!(words(&client.until_ready()), "Z I");
    let fields = backend::fields(&frame);
    [fields.code, fields.message, fields.routine].map(|field| String::from_utf8_lossy(field).into_owned())
}

/// Drivers know it by its routine alone, close the statement then, and prepare it again.
#[test]
fn who_is_refused_for_other_columns_is_told_all_that_postgresql_tells() {
    let c = two_servers();
    c.nodes[0].psql("create table shape(a int); grant all on shape to app");
    let mut direct = Raw::login(c.nodes[0].port, &[]);
    // Two that share it, and one that has described it and comes to a server without it.
    let [mut first, mut second, mut moved] = [(); 3].map(|()| Raw::login(c.port, &[]));
    for client in [&mut direct, &mut first, &mut second] {
        assert_eq!(prepare(client, "s", TEXT), "1 | Z I");
        assert_eq!(used(client, "s"), "2 | C SELECT 0 | Z I");
    }
    knows(&mut moved, "select * from shape where true");
    c.nodes[0].psql("alter table shape add b int");
    let want = refused(&mut direct, "s");
    assert_eq!(want[2], "RevalidateCachedQuery");
    assert_eq!(refused(&mut first, "s"), want);
    assert_eq!(refused(&mut second, "s"), want);
    let mut busy = block(&c);
    assert_eq!(refused(&mut moved, "s"), want);
    ok(&mut busy, "commit");
    // Nor is a name that is not there known by anything else.
    let want = refused(&mut direct, "none");
    assert_eq!(want[2], "FetchPreparedStatement");
    assert_eq!(refused(&mut first, "none"), want);
}

/// PostgreSQL keeps the types of parameters from when a statement was prepared, and so must a server that lacks it: drivers send
/// values in binary by what they were told.
#[test]
fn parameters_have_the_types_that_their_client_was_told_on_any_server() {
    let c = two_servers();
    for (n, (from, to, value, want)) in [
        ("int", "bigint", &7_i32.to_be_bytes()[..], "2 | C INSERT 0 1 | Z I"),
        ("bigint", "float8", &7_i64.to_be_bytes(), "2 | C INSERT 0 1 | Z I"),
        ("int", "date", &7_i32.to_be_bytes(), "E 42804 | Z I"),
    ]
    .into_iter()
    .enumerate()
    {
        let sql = format!("insert into t{n} values ($1)");
        let mut clients = [c.port, c.nodes[0].port].map(|port| Raw::login(port, &[]));
        ok(&mut clients[0], &format!("create table t{n}(a {from})"));
        for client in &mut clients {
            assert_eq!(prepare(client, "s", &sql), "1 | Z I");
            client.write(|out| {
                describe(out, "s");
                sync(out);
            });
            assert_eq!(words(&client.until_ready()), "t | n | Z I");
        }
        ok(&mut clients[0], &format!("alter table t{n} drop a; alter table t{n} add a {to}"));
        // It needs the other connection.
        let mut other = block(&c);
        for client in &mut clients {
            for _ in 0..2 {
                client.write(|out| {
                    message(out, b'B', |b| {
                        b.extend_from_slice(b"\0s\0\0\x01\0\x01\0\x01");
                        b.extend_from_slice(&(value.len() as u32).to_be_bytes());
                        b.extend_from_slice(value);
                        b.extend_from_slice(&[0, 0]);
                    });
                    execute(out, "");
                    sync(out);
                });
                assert_eq!(words(&client.until_ready()), want, "{from} to {to}");
            }
        }
        ok(&mut other, "commit");
        let stored = c.nodes[0].psql(&format!("select count(*) filter (where a::text = '7') from t{n}"));
        assert_eq!(stored, if want.starts_with('E') { "0" } else { "4" }, "{from} to {to}");
    }
}

/// The same text means another table in another database, and on a server where a temporary one hides the table.
#[test]
fn a_table_that_changes_elsewhere_leaves_the_same_text_alone() {
    const TEXT: &str = "select * from shape";
    let c = two_servers();
    c.nodes[0].psql("create database other owner app");
    let mut clients = ["app", "other"].map(|database| Raw::login(c.port, &[("database", database)]));
    for client in &mut clients {
        ok(client, "create table shape(a int); insert into shape values (1)");
        knows(client, TEXT);
        assert_eq!(used(client, "s"), "2 | D 1 | C SELECT 1 | Z I");
    }
    let [here, there] = &mut clients;
    let mut hides = Raw::login(c.port, &[]);
    ok(&mut hides, "create temp table shape(b text, c text); insert into shape values ('x', 'y')");
    assert_eq!(prepare(&mut hides, "s", TEXT), "1 | Z I");
    assert_eq!(used(&mut hides, "s"), "2 | D x y | C SELECT 1 | Z I");
    ok(&mut hides, "alter table shape drop c");
    assert_eq!(used(&mut hides, "s"), "E 0A000 | Z I");
    assert_eq!(used(here, "s"), "2 | D 1 | C SELECT 1 | Z I");
    ok(&mut hides, "drop table shape");
    // Now also where it was hidden.
    wait_for("nothing to be hidden", || (c.counter("pgtenure_proxy_pinned_sessions") == 0.0).then_some(()));
    assert_eq!(used(here, "s"), "2 | D 1 | C SELECT 1 | Z I");
    let mut other = block(&c);
    assert_eq!(used(here, "s"), "2 | D 1 | C SELECT 1 | Z I");
    ok(&mut other, "commit");
    ok(here, "alter table shape add b int default 2");
    assert_eq!(used(here, "s"), "E 0A000 | Z I");
    assert_eq!(used(there, "s"), "2 | D 1 | C SELECT 1 | Z I");
}

#[test]
fn columns_that_a_search_path_changes_are_refused_to_who_knows_others() {
    let c = two_servers();
    c.nodes[0].psql(
        "create schema wide authorization app; create table wide.shape(a int, b int); create table shape(a int);
         insert into wide.shape values (1, 2); insert into shape values (1); grant all on shape, wide.shape to app",
    );
    let [mut a, mut direct] = [c.port, c.nodes[0].port].map(|port| Raw::login(port, &[]));
    for client in [&mut a, &mut direct] {
        ok(client, "set search_path = wide");
        knows(client, "select * from shape");
        ok(client, "reset search_path");
        assert_eq!(used(client, "s"), "E 0A000 | Z I");
        ok(client, "set search_path = wide");
        assert_eq!(used(client, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
    }
}

/// A server that lacks the statement would prepare it with the columns of now.
#[test]
fn columns_that_a_table_has_got_are_refused_to_who_knows_others_on_any_server() {
    let c = two_servers();
    c.nodes[0].psql("create table shape(a int); grant all on shape to app");
    for (text, changes, want) in [
        ("select * from shape", "alter table shape add b int", "E 0A000 | Z I"),
        ("insert into shape values (1) returning *", "alter table shape drop b", "E 0A000 | Z I"),
        ("select * from shape as s", "drop table shape; create table shape(a int)", "2 | C SELECT 0 | Z I"),
    ] {
        let mut a = Raw::login(c.port, &[]);
        knows(&mut a, text);
        c.nodes[0].psql(&format!("{changes}; grant all on shape to app"));
        // It needs the other connection.
        let mut other = block(&c);
        for _ in 0..2 {
            assert_eq!(used(&mut a, "s"), want, "{text}");
        }
        ok(&mut a, "begin");
        assert_eq!(used(&mut a, "s") == "E 0A000 | Z E", want.starts_with('E'), "{text}");
        ok(&mut a, "rollback");
        ok(&mut other, "commit");
        assert_eq!(c.nodes[0].psql("select count(*) from shape"), "0", "{text}");
    }
}

/// A standby that has not replayed yet what changed the columns says nothing of what they are.
#[test]
fn a_standby_that_lags_is_not_asked_for_good_what_columns_a_table_has() {
    const WHERE: &str = "select current_setting('cluster_name')";
    let c = common::Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(60);
    });
    c.nodes[0].psql("create table shape(a int); insert into shape values (1); grant all on shape to app");
    let mut a = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    wait_for("the standby to serve reads", || {
        (value(&mut a, "select current_setting('cluster_name') from shape") == "n2").then_some(())
    });
    c.nodes[1].psql("select pg_wal_replay_pause()");
    c.nodes[0].psql(
        "alter table shape add b int default 2; create table fresh(a int); insert into fresh values (3);
         grant all on fresh to app",
    );
    // One whose columns are others there, and one that is refused there.
    ok(&mut a, "set pgtenure.read_from = 'primary'");
    for (name, text) in [("s", "select * from shape"), ("f", "select * from fresh")] {
        assert_eq!(prepare(&mut a, name, text), "1 | Z I");
        a.write(|out| {
            describe(out, name);
            sync(out);
        });
        assert_eq!(words(&a.until_ready()), "t | T | Z I");
    }
    ok(&mut a, "reset pgtenure.read_from");
    for _ in 0..2 {
        assert_eq!(value(&mut a, WHERE), "n2");
        assert_eq!(used(&mut a, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
        assert_eq!(used(&mut a, "f"), "2 | D 3 | C SELECT 1 | Z I");
    }
    // A block stays where it is, and fails; what its client knows is true all the same.
    ok(&mut a, "begin read only");
    assert_eq!(used(&mut a, "s"), "E 0A000 | Z E");
    ok(&mut a, "rollback");
    c.nodes[1].psql("select pg_wal_replay_resume()");
    wait_for("the standby to have the table", || {
        (c.nodes[1].psql("select to_regclass('fresh') is not null") == "t").then_some(())
    });
    assert_eq!(value(&mut a, WHERE), "n2");
    assert_eq!(used(&mut a, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
    ok(&mut a, "begin read only");
    assert_eq!(used(&mut a, "s"), "2 | D 1 2 | C SELECT 1 | Z T");
    assert_eq!(value(&mut a, WHERE), "n2");
    ok(&mut a, "commit");
}

/// The server that lacks a described statement is asked for its columns first, and waits for a lock with that. The client
/// has sent its own statement, which is what is cancelled.
#[test]
fn a_statement_whose_columns_are_waited_for_is_cancelled() {
    let c = common::Cluster::start(0, |raw| (raw.workers, raw.pool_size) = (1, 2));
    let waits = "select count(*) from pg_locks where not granted and relation = 'locked'::regclass";
    let mut client = described(&c, "select * from locked");
    let mut lock = Raw::login(c.nodes[0].port, &[]);
    let _busy = block(&c);
    for begin in ["select 1", "begin"] {
        ok(&mut lock, "begin; lock table locked in access exclusive mode");
        ok(&mut client, begin);
        client.write(|out| use_it(out, "s"));
        wait_for("the statement to wait", || (c.nodes[0].psql(waits) == "1").then_some(()));
        let mut request = common::dial(c.port);
        request.write_all(&cancel_request(client.key.0, client.key.1)).expect("the endpoint reads");
        let seen = words(&client.until_ready());
        assert_eq!(seen, if begin == "begin" { "E 57014 | Z E" } else { "E 57014 | Z I" });
        ok(&mut lock, "commit");
        ok(&mut client, "rollback");
    }
    assert_eq!(used(&mut client, "s"), "2 | D 1 | C SELECT 1 | Z I");
}

#[test]
fn a_statement_whose_columns_are_waited_for_is_over_in_its_time() {
    let c = common::Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size) = (1, 2);
        raw.timeouts.query_timeout = cluster::config::Span::secs(1);
    });
    let mut client = described(&c, "select * from locked");
    let mut lock = Raw::login(c.nodes[0].port, &[]);
    let _busy = block(&c);
    ok(&mut lock, "begin; lock table locked in access exclusive mode");
    assert_eq!(used(&mut client, "s"), "E 57014 | Z I");
    ok(&mut lock, "commit");
    assert_eq!(used(&mut client, "s"), "2 | D 1 | C SELECT 1 | Z I");
}

/// Nor is a statement that is there prepared anew beside itself because its columns could not be asked for: that would wait
/// for the lock as long again.
#[test]
fn a_statement_whose_columns_are_waited_for_ends_with_its_lock_timeout() {
    let c = two_servers();
    let mut client = described(&c, "select * from locked");
    ok(&mut client, "set lock_timeout = '100ms'");
    let _busy = block(&c);
    let mut other = Raw::login(c.port, &[]);
    assert_eq!(prepare(&mut other, "o", "select * from locked"), "1 | Z I");
    assert_eq!(used(&mut other, "o"), "2 | D 1 | C SELECT 1 | Z I");
    let parses = server_parses(&c);
    let mut lock = Raw::login(c.nodes[0].port, &[]);
    ok(&mut lock, "begin; lock table locked in access exclusive mode");
    assert_eq!(used(&mut client, "s"), "E 55P03 | Z I");
    assert_eq!(server_parses(&c), parses);
    ok(&mut lock, "commit");
    assert_eq!(used(&mut client, "s"), "2 | D 1 | C SELECT 1 | Z I");
}

/// A client that has described the statement "s" of a table, "locked", of one row.
fn described(c: &common::Cluster, text: &str) -> Raw {
    c.nodes[0].psql("create table locked as select 1 as a; alter table locked owner to app");
    let mut client = Raw::login(c.port, &[]);
    assert_eq!(prepare(&mut client, "s", text), "1 | Z I");
    client.write(|out| {
        describe(out, "s");
        sync(out);
    });
    assert_eq!(words(&client.until_ready()), "t | T | Z I");
    client
}

/// Drivers that prepare by themselves close and prepare in the unit that uses the statement.
#[test]
fn a_name_that_its_unit_makes_anew_is_not_asked_for_what_it_was() {
    let c = two_servers();
    c.nodes[0].psql("create table shape(a int); create table other(a int); grant all on shape, other to app");
    let mut a = Raw::login(c.port, &[]);
    knows(&mut a, "select * from shape");
    c.nodes[0].psql("drop table shape");
    let mut busy = block(&c);
    a.write(|out| {
        close(out, "s");
        parse(out, "s", "select * from other");
        describe(out, "s");
        use_it(out, "s");
    });
    assert_eq!(words(&a.until_ready()), "3 | 1 | t | T | 2 | C SELECT 0 | Z I");
    ok(&mut busy, "commit");
}

/// What makes room for one closes another that the same unit binds.
#[test]
fn a_unit_binds_more_described_statements_than_its_server_has_room_for() {
    let c = common::Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.pool_size = 2;
        raw.server_statement_bytes = cluster::config::Size(64 << 10);
    });
    let names = ["a", "b", "c", "d"];
    let mut a = Raw::login(c.port, &[]);
    for name in names {
        let text = format!("select '{name}' /* {} */", "x".repeat(24 << 10));
        assert_eq!(prepare(&mut a, name, &text), "1 | Z I");
        a.write(|out| {
            describe(out, name);
            sync(out);
        });
        assert_eq!(words(&a.until_ready()), "t | T | Z I");
    }
    let mut busy = block(&c);
    a.write(|out| {
        for name in names {
            bind(out, "", name, &[]);
            execute(out, "");
        }
        sync(out);
    });
    let all: Vec<String> = names.iter().map(|name| format!("2 | D {name} | C SELECT 1")).collect();
    assert_eq!(words(&a.until_ready()), format!("{} | Z I", all.join(" | ")));
    ok(&mut busy, "commit");
}

/// A Bind that does not come whole.
#[test]
fn columns_are_asked_for_before_a_long_bind_too() {
    let c = two_servers();
    c.nodes[0].psql("create table shape(a text); grant all on shape to app");
    let mut a = Raw::login(c.port, &[]);
    knows(&mut a, "select * from shape where a <> $1");
    c.nodes[0].psql("alter table shape add b int");
    let mut busy = block(&c);
    let long = "x".repeat(200 << 10);
    for _ in 0..2 {
        a.write(|out| {
            bind(out, "", "s", &[&long]);
            execute(out, "");
            sync(out);
        });
        assert_eq!(words(&a.until_ready()), "E 0A000 | Z I");
    }
    ok(&mut busy, "commit");
}

/// PostgreSQL looks at the cursor when FETCH is parsed.
#[test]
fn a_fetch_has_the_columns_of_its_own_cursor() {
    let c = two_servers();
    let mut clients = [Raw::login(c.port, &[]), Raw::login(c.port, &[])];
    for (client, columns) in clients.iter_mut().zip([1_u16, 2]) {
        let row = if columns == 1 { "select 'a'" } else { "select 'a', 'b'" };
        ok(client, &format!("begin; declare c cursor for {row}"));
        client.write(|out| {
            parse(out, "f", "/* next */ fetch c");
            describe(out, "f");
            sync(out);
        });
        let described = loop {
            match client.frame().expect("an answer") {
                (b'T', frame) => break u16::from_be_bytes([frame[5], frame[6]]),
                (b'E' | b'Z', frame) => panic!("{}", String::from_utf8_lossy(&frame)),
                _ => {}
            }
        };
        assert_eq!(client.until_ready(), ["Z T"]);
        assert_eq!(described, columns);
        ok(client, "commit");
    }
}

/// The types of its parameters that a statement is described with.
fn types(client: &mut Raw, name: &str) -> Vec<u32> {
    client.write(|out| {
        describe(out, name);
        sync(out);
    });
    let (kind, frame) = client.frame().expect("an answer");
    assert_eq!(kind, b't');
    assert_eq!(words(&client.until_ready()), "n | Z I");
    frame[7..].chunks(4).map(|oid| u32::from_be_bytes(oid.try_into().unwrap())).collect()
}

/// PostgreSQL tells who prepares a text of the types of now, and who has prepared it before of those of then.
#[test]
fn who_prepares_behind_a_change_of_types_is_told_the_new_ones() {
    const TEXT: &str = "insert into typed values ($1)";
    let c = common::Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size) = (2, 2);
        raw.console.stats_users = vec!["app".to_owned()];
    });
    c.nodes[0].psql("create table typed(a int); alter table typed owner to app");
    let mut old = [c.port, c.port, c.nodes[0].port].map(|port| Raw::login(port, &[]));
    for client in &mut old {
        assert_eq!(prepare(client, "s", TEXT), "1 | Z I");
        assert_eq!(types(client, "s"), [23]);
    }
    let mut console = Raw::login(c.port, &[("database", "pgtenure")]);
    let shown = |console: &mut Raw| console.query("show prepared").iter().filter(|row| row.contains(TEXT)).count();
    let before = shown(&mut console);
    let mut ddl = Raw::login(c.port, &[]);
    assert_eq!(prepare(&mut ddl, "before", TEXT), "1 | Z I");
    ok(&mut ddl, "begin");
    ok(&mut ddl, "alter table typed alter a type text");
    // Who has altered it knows of that at once.
    assert_eq!(prepare(&mut ddl, "s", TEXT), "1 | Z T");
    ddl.write(|out| {
        bind(out, "", "s", &["text"]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&ddl.until_ready()), "2 | C INSERT 0 1 | Z T");
    ok(&mut ddl, "commit");
    let mut new: Vec<Raw> = [c.port, c.port, c.port, c.port, c.nodes[0].port].map(|port| Raw::login(port, &[])).into();
    for client in &mut new {
        assert_eq!(prepare(client, "s", TEXT), "1 | Z I");
        assert_eq!(types(client, "s"), [25]);
    }
    for client in &mut old {
        assert_eq!(types(client, "s"), [23], "what it was told holds");
    }
    // Both are kept, each for as long as somebody has it.
    let both = shown(&mut console);
    assert!(both > before, "{before}, {both}");
    drop((old, ddl));
    wait_for("what nobody has to be gone", || (shown(&mut console) < both).then_some(()));
}
