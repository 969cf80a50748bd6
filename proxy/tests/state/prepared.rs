//! Prepared statements of the protocol under transaction pooling, against a real server: what clients share must not
//! show, neither when a table changes under a statement nor in a pipeline.

use super::common::prepared::{prepare, server_parses, use_it, used};
use super::common::raw::{Raw, bind, block, close, describe, execute, ok, parse, run, sync, two_servers, value, words};
use super::common::{self, wait_for};
use proxy::wire::backend;
use proxy::wire::codec::message;
use proxy::wire::frontend::write_query;

#[test]
fn a_table_changes_under_a_statement_that_clients_share() {
    const TEXT: &str = "select * from shape";
    let c = two_servers();
    let mut ddl = Raw::login(c.port, &[]);
    ok(&mut ddl, "create table shape(a int); insert into shape values (1)");
    let mut clients: Vec<Raw> = (0..4).map(|_| Raw::login(c.port, &[])).collect();
    let [knows, fresh, in_block, in_pipeline] = clients.as_mut_slice() else { panic!("four clients") };
    for client in [&mut *knows, fresh, in_block, in_pipeline] {
        assert_eq!(prepare(client, "s", TEXT), "1 | Z I");
    }
    knows.write(|out| {
        describe(out, "s");
        sync(out);
    });
    assert_eq!(words(&knows.until_ready()), "t | T | Z I");
    assert_eq!(used(knows, "s"), "2 | D 1 | C SELECT 1 | Z I");
    ok(&mut ddl, "alter table shape add b int default 2");
    // Who may decode by the old columns is told, as by PostgreSQL; in a block and in a pipeline everybody is.
    assert_eq!(ok(in_block, "begin"), ["C BEGIN", "Z T"]);
    assert_eq!(used(in_block, "s"), "E 0A000 | Z E");
    ok(in_block, "rollback");
    in_pipeline.write(|out| {
        use_it(out, "s");
        run(out, "select 'goes on'");
        sync(out);
    });
    assert!(["E 0A000 | Z I", "2 | D 1 2 | C SELECT 1 | Z I"].contains(&words(&in_pipeline.until_ready()).as_str()));
    assert_eq!(words(&in_pipeline.until_ready()), "1 | 2 | D goes on | C SELECT 1 | Z I");
    assert_eq!(used(knows, "s"), "E 0A000 | Z I");
    assert_eq!(used(knows, "s"), "E 0A000 | Z I", "for as long as it keeps it");
    // Who has only prepared it does not notice; nor does who prepares it again.
    assert_eq!(used(fresh, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
    for client in [knows, in_block] {
        client.write(|out| {
            close(out, "s");
            parse(out, "s", TEXT);
            use_it(out, "s");
        });
        assert_eq!(words(&client.until_ready()), "3 | 1 | 2 | D 1 2 | C SELECT 1 | Z I");
    }
}

/// `names` prepared by a client whose next server has none of them, and a client that keeps the other one busy.
fn moved(c: &common::Cluster, names: &[&str]) -> (Raw, Raw) {
    let mut client = Raw::login(c.port, &[]);
    for name in names {
        assert_eq!(prepare(&mut client, name, &format!("select '{name}'")), "1 | Z I");
    }
    (client, block(c))
}

#[test]
fn a_pipeline_does_not_stop_at_each_statement_that_its_server_lacks() {
    let c = two_servers();
    let (mut client, _busy) = moved(&c, &["a", "b", "c"]);
    ok(&mut client, "select 1");
    // Nothing is answered while this is locked, and all the same all three are prepared there.
    let holder = c.nodes[0].port;
    let lock = move |sql: &str| format!("host=127.0.0.1 port={holder} user=postgres dbname=app {sql}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (other, connection) = runtime.block_on(tokio_postgres::connect(&lock(""), tokio_postgres::NoTls)).unwrap();
    let connection = runtime.spawn(connection);
    runtime.block_on(other.batch_execute("select pg_advisory_lock(7)")).unwrap();
    let before = server_parses(&c);
    client.write(|out| {
        run(out, "select pg_advisory_xact_lock(7)");
        sync(out);
        for name in ["a", "b", "c"] {
            use_it(out, name);
        }
    });
    wait_for("three statements to be prepared behind one that waits", || {
        (server_parses(&c) >= before + 3).then_some(())
    });
    runtime.block_on(other.batch_execute("select pg_advisory_unlock(7)")).unwrap();
    assert_eq!(words(&client.until_ready()), "1 | 2 | D  | C SELECT 1 | Z I");
    for name in ["a", "b", "c"] {
        assert_eq!(words(&client.until_ready()), format!("2 | D {name} | C SELECT 1 | Z I"));
    }
    connection.abort();
}

#[test]
fn a_unit_that_fails_in_a_pipeline_prepares_nothing_for_those_behind_it() {
    let c = two_servers();
    let (mut client, _busy) = moved(&c, &["a", "b", "c"]);
    ok(&mut client, "select 1");
    client.write(|out| {
        // Fails before its hidden Parse is looked at.
        run(out, "select 1/0");
        use_it(out, "a");
        use_it(out, "b");
        use_it(out, "a");
        // A name that is not made after all, one that is dropped, and one that is not.
        run(out, "select 1/0");
        parse(out, "d", "select 'd'");
        close(out, "b");
        sync(out);
        use_it(out, "c");
        use_it(out, "d");
        use_it(out, "b");
        close(out, "c");
        parse(out, "c", "select 'another c'");
        sync(out);
        use_it(out, "c");
        parse(out, "e", "select 'a'");
        use_it(out, "e");
    });
    for want in [
        "1 | E 22012 | Z I",
        "2 | D b | C SELECT 1 | Z I",
        "2 | D a | C SELECT 1 | Z I",
        "1 | E 22012 | Z I",
        "2 | D c | C SELECT 1 | Z I",
        "E 26000 | Z I",
        "2 | D b | C SELECT 1 | Z I",
        "3 | 1 | Z I",
        "2 | D another c | C SELECT 1 | Z I",
        "1 | 2 | D a | C SELECT 1 | Z I",
    ] {
        assert_eq!(words(&client.until_ready()), want);
    }
    // A statement whose table is gone: the error is that of its own Bind, for each use, and no name of ours is in it.
    let mut owner = c.nodes[0].try_psql("create table gone(a int); grant all on gone to app").map(drop);
    assert_eq!(owner, Ok(()));
    assert_eq!(prepare(&mut client, "gone", "select * from gone"), "1 | Z I");
    owner = c.nodes[0].try_psql("drop table gone").map(drop);
    assert_eq!(owner, Ok(()));
    let pid = value(&mut client, "select pg_backend_pid()");
    c.nodes[0].psql(&format!("select pg_terminate_backend({pid})"));
    wait_for("the server to be gone", || {
        (c.nodes[0].psql(&format!("select count(*) from pg_stat_activity where pid = {pid}")) == "0").then_some(())
    });
    client.write(|out| {
        use_it(out, "gone");
        use_it(out, "gone");
        use_it(out, "a");
    });
    for want in ["E 42P01 | Z I", "E 42P01 | Z I", "2 | D a | C SELECT 1 | Z I"] {
        assert_eq!(words(&client.until_ready()), want);
    }
}

/// What is sent to a server that lacks the statement must not be what the client's own unit is refused for.
#[test]
fn a_description_before_a_block_takes_no_snapshot() {
    let c = two_servers();
    for (name, begin) in
        [("a", "begin isolation level serializable"), ("b", "begin; set transaction isolation level repeatable read")]
    {
        let (mut client, mut busy) = moved(&c, &[name]);
        for subject in [name, ""] {
            if subject.is_empty() {
                assert_eq!(prepare(&mut client, "", "select 'unnamed'"), "1 | Z I");
                // Now the client needs the other connection.
                ok(&mut busy, "commit");
                ok(&mut busy, "begin");
            }
            client.write(|out| {
                describe(out, subject);
                write_query(out, begin);
            });
            let described = words(&client.until_ready());
            assert!(described.starts_with("t | T | C BEGIN"), "{subject:?}, {begin}: {described}");
            ok(&mut client, "rollback");
        }
        ok(&mut busy, "rollback");
    }
}

/// A server says it when the text is parsed, which for most clients that share it is long past.
#[test]
fn every_client_is_told_what_is_noticed_in_its_text() {
    let c = two_servers();
    let long = format!("select 1 as {}", "n".repeat(70));
    let backslash = "select 'a\\\\b'";
    let mut clients: Vec<Raw> = (0..3).map(|_| Raw::login(c.port, &[])).collect();
    let mut direct = Raw::login(c.nodes[0].port, &[]);
    for client in clients.iter_mut().chain([&mut direct]) {
        for (name, text, code) in [("long", long.as_str(), "42622"), ("strings", backslash, "22P06")] {
            if name == "strings" {
                ok(client, "set standard_conforming_strings = off");
            }
            assert_eq!(prepare(client, name, text), format!("N {code} | 1 | Z I"));
            // The name is taken, which is found after that.
            assert_eq!(prepare(client, name, text), format!("N {code} | E 42P05 | Z I"));
        }
    }
    // Nobody is told again when another server is to have it.
    let mut busy = block(&c);
    for client in &mut clients {
        assert_eq!(used(client, "long"), "2 | D 1 | C SELECT 1 | Z I");
        assert_eq!(prepare(client, "long", &long), "N 42622 | E 42P05 | Z I");
    }
    ok(&mut busy, "commit");
}

/// In a block that has failed a server cannot be given a statement that it lacks; a Bind that does not fit it is refused as
/// PostgreSQL refuses it all the same, before the block is looked at.
#[test]
fn a_bind_that_does_not_fit_its_statement_is_told_so_in_a_failed_block() {
    let c = two_servers();
    let fail = |client: &mut Raw| {
        ok(client, "begin");
        assert_eq!(words(&client.query("select 1 / 0")), "E 22012 | Z E");
    };
    let said = |client: &mut Raw, formats: &[u8], parameters: &[&str]| {
        client.write(|out| {
            message(out, b'B', |b| {
                b.extend_from_slice(b"\0s\0");
                b.extend_from_slice(formats);
                b.extend_from_slice(&(parameters.len() as u16).to_be_bytes());
                for p in parameters {
                    b.extend_from_slice(&(p.len() as u32).to_be_bytes());
                    b.extend_from_slice(p.as_bytes());
                }
                b.extend_from_slice(&[0, 0]);
            });
            sync(out);
        });
        let (kind, frame) = client.frame().expect("an answer");
        assert_eq!(kind, b'E');
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let fields = backend::fields(&frame);
        let said = (text(fields.code), text(fields.message));
        assert_eq!(client.until_ready(), ["Z E"]);
        said
    };
    let [mut a, mut direct] = [c.port, c.nodes[0].port].map(|port| Raw::login(port, &[]));
    for client in [&mut a, &mut direct] {
        client.write(|out| {
            parse(out, "s", "select $1::int + $2");
            bind(out, "", "s", &["1", "2"]);
            execute(out, "");
            sync(out);
        });
        assert_eq!(words(&client.until_ready()), "1 | 2 | D 3 | C SELECT 1 | Z I");
    }
    // It takes the connection that has the statement.
    let mut other = block(&c);
    fail(&mut a);
    fail(&mut direct);
    for (formats, parameters, code) in [
        (&[0, 0][..], &["1"][..], "08P01"),
        (&[0, 0], &["1", "2", "3"], "08P01"),
        (&[0, 2, 0, 0, 0, 0], &["1"], "08P01"),
        (&[0, 0], &["1", "2"], "25P02"),
    ] {
        let got = said(&mut a, formats, parameters);
        assert_eq!(got, said(&mut direct, formats, parameters), "{formats:?} {parameters:?}");
        assert_eq!(got.0, code, "{formats:?} {parameters:?}");
    }
    assert_eq!(words(&a.query("rollback")), "C ROLLBACK | Z I");
    ok(&mut other, "commit");
}

/// What is closed to make room is prepared again when it is used.
#[test]
fn a_server_keeps_no_more_statements_than_it_has_room_for() {
    let c = common::Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.pool_size = 1;
        raw.server_statement_bytes = cluster::config::Size(64 << 10);
    });
    let mut clients = [Raw::login(c.port, &[]), Raw::login(c.port, &[])];
    for round in 0..2 {
        for (who, client) in clients.iter_mut().enumerate() {
            for i in 0..100 {
                let name = format!("s{i}");
                if round == 0 {
                    assert_eq!(prepare(client, &name, &format!("select '{who} {i}'")), "1 | Z I");
                }
                assert_eq!(used(client, &name), format!("2 | D {who} {i} | C SELECT 1 | Z I"));
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let view = runtime.block_on(c.handle.as_ref().unwrap().view(common::DEADLINE)).expect("the workers answer");
    let prepared: Vec<usize> = view.servers.iter().map(|server| server.prepared).collect();
    assert!(matches!(prepared[..], [1..=64]), "{prepared:?}");
}

#[test]
fn a_text_whose_parameters_are_looked_for_only_when_it_runs_is_bound_without_any() {
    let c = two_servers();
    let [mut a, mut direct] = [c.port, c.nodes[0].port].map(|port| Raw::login(port, &[]));
    for (name, sql, tag) in [
        ("f", "create or replace function one(int) returns int language sql return $1", "CREATE FUNCTION"),
        ("p", "prepare ready(int) as select $1", "PREPARE"),
    ] {
        for client in [&mut a, &mut direct] {
            assert_eq!(prepare(client, name, sql), "1 | Z I");
        }
        // It takes the connection that has the statement.
        let mut other = block(&c);
        for client in [&mut a, &mut direct] {
            // A block that may have failed, as far as is known when the statement comes.
            client.write(|out| {
                write_query(out, "begin");
                write_query(out, "savepoint s");
                use_it(out, name);
            });
            assert_eq!(words(&client.until_ready()), "C BEGIN | Z T");
            assert_eq!(words(&client.until_ready()), "C SAVEPOINT | Z T");
            assert_eq!(words(&client.until_ready()), format!("2 | C {tag} | Z T"));
            assert_eq!(words(&client.query("select 1 / 0")), "E 22012 | Z E");
            assert_eq!(used(client, name), "E 25P02 | Z E");
            assert_eq!(words(&client.query("rollback")), "C ROLLBACK | Z I");
        }
        ok(&mut other, "commit");
    }
}

/// A server that has `select * from shape` as it was before the table got another column, and who has it there.
fn outdated() -> (common::Cluster, Raw) {
    let c = common::Cluster::start(0, |raw| (raw.workers, raw.pool_size) = (1, 1));
    c.nodes[0].psql("create table shape(a int); create table t(n int); grant all on shape, t to app");
    let mut client = Raw::login(c.port, &[]);
    assert_eq!(prepare(&mut client, "s", "select * from shape"), "1 | Z I");
    assert_eq!(used(&mut client, "s"), "2 | C SELECT 0 | Z I");
    c.nodes[0].psql("alter table shape add b int; insert into shape values (1, 2)");
    (c, client)
}

#[test]
fn what_a_unit_commits_before_an_outdated_statement_is_not_done_twice() {
    let (c, _knows) = outdated();
    let mut client = Raw::login(c.port, &[]);
    client.write(|out| {
        run(out, "begin");
        run(out, "insert into t values (1)");
        run(out, "commit");
        parse(out, "s", "select * from shape");
        use_it(out, "s");
    });
    let told = words(&client.until_ready());
    assert_eq!(told, "1 | 2 | C BEGIN | 1 | 2 | C INSERT 0 1 | 1 | 2 | C COMMIT | 1 | E 0A000 | Z I");
    assert_eq!(c.nodes[0].psql("select count(*) from t"), "1");
}

#[test]
fn a_statement_is_not_refused_for_what_others_have_prepared_before_a_change_of_its_table() {
    let (c, _knows) = outdated();
    let mut client = Raw::login(c.port, &[]);
    assert_eq!(prepare(&mut client, "s", "select * from shape"), "1 | Z I");
    assert_eq!(used(&mut client, "s"), "2 | D 1 2 | C SELECT 1 | Z I");
}

/// Who has prepared it behind the change is told once at most, where it cannot be done again: in a block, or behind what was
/// executed.
#[test]
fn who_has_prepared_a_statement_behind_the_change_is_not_refused_for_ever() {
    let (c, _knows) = outdated();
    let mut client = Raw::login(c.port, &[]);
    assert_eq!(prepare(&mut client, "s", "select * from shape"), "1 | Z I");
    ok(&mut client, "begin");
    assert_eq!(used(&mut client, "s"), "E 0A000 | Z E");
    ok(&mut client, "rollback");
    ok(&mut client, "begin");
    assert_eq!(used(&mut client, "s"), "2 | D 1 2 | C SELECT 1 | Z T");
    ok(&mut client, "rollback");
}

#[test]
fn who_has_executed_something_before_an_outdated_statement_is_told_once() {
    let (c, _knows) = outdated();
    let mut client = Raw::login(c.port, &[]);
    assert_eq!(prepare(&mut client, "s", "select * from shape"), "1 | Z I");
    let both = |client: &mut Raw| {
        client.write(|out| {
            run(out, "select 1");
            use_it(out, "s");
        });
        words(&client.until_ready())
    };
    assert_eq!(both(&mut client), "1 | 2 | D 1 | C SELECT 1 | E 0A000 | Z I");
    assert_eq!(both(&mut client), "1 | 2 | D 1 | C SELECT 1 | 2 | D 1 2 | C SELECT 1 | Z I");
}
