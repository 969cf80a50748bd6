//! What a block sets for itself of that by which texts are read (SET LOCAL, `set_config` with `true`) is not read by other
//! sessions in statements that they share, under transaction pooling, against a real server.

use super::common::prepared::{prepare, server_parses, used};
use super::common::raw::{Raw, bind, execute, ok, parse, run, sync, value, words};
use super::common::{self, Cluster};
use proxy::wire::frontend::write_query;

/// Says which time zone its constant was read in: made when the text is parsed.
const TEXT: &str = "select extract(hour from '2026-01-01 00:00'::timestamptz at time zone 'UTC')::int as h";
/// What that is in UTC, and in Tokyo.
const USUAL: &str = "2 | D 0 | C SELECT 1";
const TOKYO: &str = "2 | D 15 | C SELECT 1";

/// One server connection for everybody.
fn one_server() -> Cluster {
    common::Cluster::start(0, |raw| (raw.workers, raw.pool_size) = (1, 1))
}

#[test]
fn what_a_block_reads_by_its_own_settings_is_not_shared() {
    type Sets = fn(&mut Raw);
    let c = one_server();
    c.nodes[0].psql(
        "create function tokyo() returns void language plpgsql as \
         $$ begin perform set_config('timezone', 'Asia/Tokyo', true); end $$",
    );
    let ways: [(&str, Sets); 8] = [
        ("set local", |client| drop((ok(client, "begin"), ok(client, "set local timezone = 'Asia/Tokyo'")))),
        ("of several", |client| drop(ok(client, "begin; select 1; set local timezone to 'Asia/Tokyo'; select 2"))),
        ("set_config", |client| {
            ok(client, "begin");
            ok(client, "select set_config('TimeZone', 'Asia/Tokyo', true)");
        }),
        ("by message", |client| {
            client.write(|out| {
                run(out, "begin");
                parse(out, "", "select set_config($1, $2, true)");
                bind(out, "", "", &["timezone", "Asia/Tokyo"]);
                execute(out, "");
                sync(out);
            });
            assert!(words(&client.until_ready()).ends_with("Z T"));
        }),
        ("by name", |client| {
            prepare(client, "set", "set local time zone 'Asia/Tokyo'");
            ok(client, "begin");
            assert!(used(client, "set").starts_with("2 | C SET"));
        }),
        ("taken back", |client| {
            ok(client, "begin; set local timezone = 'Asia/Tokyo'");
            ok(client, "savepoint s");
            ok(client, "set local timezone = 'UTC'");
            ok(client, "rollback to s");
        }),
        ("by a function", |client| drop((ok(client, "begin"), ok(client, "select tokyo()")))),
        ("in a pipeline", |client| {
            client.write(|out| {
                write_query(out, "begin");
                write_query(out, "set local timezone = 'Asia/Tokyo'");
                write_query(out, "select 1");
            });
            assert_eq!(words(&client.until_ready()), "C BEGIN | Z T");
            assert!(words(&client.until_ready()).starts_with("C SET"));
            client.until_ready();
        }),
    ];
    for (i, (way, sets)) in ways.into_iter().enumerate() {
        // Of its own for each way.
        let text = format!("{TEXT} /* {i} */");
        let mut a = Raw::login(c.port, &[("TimeZone", "UTC")]);
        let mut b = Raw::login(c.port, &[("TimeZone", "UTC")]);
        let mut direct = Raw::login(c.nodes[0].port, &[("TimeZone", "UTC")]);
        for client in [&mut a, &mut direct] {
            sets(client);
            assert_eq!(prepare(client, "s", &text), "1 | Z T", "{way}");
            assert_eq!(used(client, "s"), format!("{TOKYO} | Z T"), "{way}");
            ok(client, "commit");
            // It keeps what was read when it was prepared.
            assert_eq!(used(client, "s"), format!("{TOKYO} | Z I"), "{way}");
        }
        assert_eq!(prepare(&mut b, "s", &text), "1 | Z I", "{way}");
        assert_eq!(used(&mut b, "s"), format!("{USUAL} | Z I"), "{way}");
        // Nor does who has set it for itself read what others share.
        sets(&mut a);
        assert_eq!(prepare(&mut a, "again", &text), "1 | Z T", "{way}");
        assert_eq!(used(&mut a, "again"), format!("{TOKYO} | Z T"), "{way}");
        ok(&mut a, "rollback");
        assert_eq!(prepare(&mut a, "usual", &text), "1 | Z I", "{way}");
        assert_eq!(used(&mut a, "usual"), format!("{USUAL} | Z I"), "{way}");
    }
}

#[test]
fn what_is_sent_in_one_unit_with_set_local_is_not_shared() {
    let c = one_server();
    let mut a = Raw::login(c.port, &[("TimeZone", "UTC")]);
    let mut b = Raw::login(c.port, &[("TimeZone", "UTC")]);
    // Prepared elsewhere: here it is prepared within the unit.
    assert_eq!(prepare(&mut a, "s", TEXT), "1 | Z I");
    let pid = value(&mut a, "select pg_backend_pid()");
    c.nodes[0].psql(&format!("select pg_terminate_backend({pid})"));
    common::wait_for("the server to be gone", || {
        (c.nodes[0].psql(&format!("select count(*) from pg_stat_activity where pid = {pid}")) == "0").then_some(())
    });
    a.write(|out| {
        run(out, "begin");
        run(out, "set local timezone = 'Asia/Tokyo'");
        bind(out, "", "s", &[]);
        execute(out, "");
        parse(out, "t", TEXT);
        bind(out, "", "t", &[]);
        execute(out, "");
        run(out, "commit");
        sync(out);
    });
    let told = words(&a.until_ready());
    assert!(told.contains("D 15 | C SELECT 1 | 1 | 2 | D 15"), "{told}");
    assert_eq!(prepare(&mut b, "s", TEXT), "1 | Z I");
    assert_eq!(used(&mut b, "s"), format!("{USUAL} | Z I"));
    assert_eq!(prepare(&mut b, "t", TEXT), "1 | Z I");
    assert_eq!(used(&mut b, "t"), format!("{USUAL} | Z I"));
}

/// A server prepares a text once for all blocks that set the same, and for all that set what texts are not read by.
#[test]
fn blocks_that_set_the_same_share_what_they_prepare() {
    let c = one_server();
    let parses = |client: &mut Raw, sets: &str, parsed: u64| {
        let before = server_parses(&c);
        ok(client, "begin");
        ok(client, sets);
        assert_eq!(prepare(client, "s", "select 'a shared one'"), "1 | Z T");
        assert_eq!(used(client, "s"), "2 | D a shared one | C SELECT 1 | Z T");
        ok(client, "commit");
        assert_eq!(server_parses(&c) - before, parsed, "{sets}");
    };
    // A text is shared with those who have it.
    let mut clients: Vec<Raw> = Vec::new();
    let path = "set local search_path = \"$user\", public";
    for (sets, parsed) in [
        ("select set_config('app.tenant', '7', true)", 1),
        ("select set_config('app.tenant', '8', true)", 0),
        ("set local statement_timeout = '1min'", 0),
        (path, 1),
        (path, 0),
        ("select set_config('search_path', 'public', true)", 1),
        ("select set_config('search_path', 'public', true)", 0),
        ("select set_config('search_path', lower('PUBLIC'), true)", 1),
        ("select set_config('search_path', lower('PUBLIC'), true)", 1),
    ] {
        clients.push(Raw::login(c.port, &[]));
        parses(clients.last_mut().unwrap(), sets, parsed);
    }
}
