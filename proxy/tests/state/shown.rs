//! SHOW of the proxy's own settings, by a driver and by bytes, before anybody has set them.

use super::common::prepared::used;
use super::common::raw::{Raw, bind, block, describe, execute, flush, ok, parse, sync, two_servers, value, words};
use super::common::{self, Cluster, wait_for};

/// Every setting of the proxy's, and what holds for a session that has set none.
const NAMES: [(&str, &str); 11] = [
    ("pgtenure.consistency", "bounded"),
    ("pgtenure.read_from", "standby"),
    ("pgtenure.max_replay_lag", "10s"),
    ("pgtenure.standby_wait", "250ms"),
    ("pgtenure.no_standby", "primary"),
    ("pgtenure.after", ""),
    ("pgtenure.explain_route", "off"),
    ("pgtenure.durability", "semi_sync"),
    ("pgtenure.last_route", ""),
    ("pgtenure.token", ""),
    ("pgtenure.term", "1"),
];

fn cluster(standbys: usize) -> Cluster {
    Cluster::start(standbys, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(10);
        raw.reads.standby_wait = cluster::config::Span::millis(250);
        let mut user = proxy::config::pools::User::default();
        user.reads.consistency = Some(proxy::route::Consistency::Bounded);
        raw.users.insert("app".to_owned(), user);
    })
}

/// By messages, as one unit: Parse, Describe of the portal, and the rest.
fn extended(client: &mut Raw, sql: &str) -> Vec<String> {
    client.write(|out| {
        common::raw::run(out, sql);
        common::raw::sync(out);
    });
    client.until_ready()
}

#[test]
fn a_driver_is_shown_every_setting_of_ours_however_it_asks() {
    let c = cluster(0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for (name, want) in NAMES {
            // A server that has never heard of the name: the first thing it is asked for is its description.
            let (mut client, connection) = tokio_postgres::connect(&c.dsn(), tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            let show = format!("show {name}");
            let row = client.query_one(&show, &[]).await.unwrap_or_else(|e| panic!("{show}: {e:?}"));
            assert_eq!(row.columns()[0].name(), name);
            // Asking is no route; but what the primary has answered, be it a description, is covered by a token.
            let right = |seen: &str| seen == want || name == "pgtenure.token" && seen.starts_with("1-1-0/");
            assert!(right(row.get(0)), "{show}: {row:?}");
            let (statement, select) = (client.prepare(&show), format!("select current_setting('{name}')"));
            let (statement, other) = tokio::join!(statement, client.query_one(&select, &[]));
            let statement = statement.unwrap();
            let seen = other.unwrap().get::<_, Option<String>>(0).unwrap_or_default();
            assert!(right(&seen), "{select}: {seen}");
            let block = client.transaction().await.unwrap();
            for row in [block.query_one(&statement, &[]).await, block.query_one(&show, &[]).await] {
                let seen = row.unwrap_or_else(|e| panic!("{show} in a block: {e:?}")).get::<_, String>(0);
                // BEGIN went there.
                let begun = name == "pgtenure.last_route" && seen.starts_with("primary n1: ");
                assert!(begun || right(&seen), "{show} in a block: {seen}");
            }
            block.rollback().await.unwrap();
        }
    });
}

#[test]
fn what_a_session_is_shown_is_what_holds_and_nothing_of_it_stays() {
    let c = cluster(1);
    let mut a = Raw::login(c.port, &[]);
    let show = "show pgtenure.consistency";
    wait_for("a read served by the standby", || {
        (value(&mut a, "select current_setting('cluster_name')") == "n2").then_some(())
    });
    // In every way that PostgreSQL's own settings can be asked for, on either node.
    assert_eq!(value(&mut a, show), "bounded");
    assert_eq!(extended(&mut a, show), ["1", "2", "D bounded", "C SHOW", "Z I"]);
    assert_eq!(value(&mut a, "select current_setting('pgtenure.max_replay_lag')"), "10s");
    assert_eq!(value(&mut a, "begin; show pgtenure.no_standby; rollback"), "primary");
    ok(&mut a, "prepare p as select current_setting('pgtenure.last_route'), current_setting('pgtenure.consistency')");
    let route = value(&mut a, "show pgtenure.last_route");
    assert!(route.contains(": "), "{route}");
    assert_eq!(value(&mut a, "execute p"), format!("{route} bounded"));
    // What it is shown does not become what it has set: neither by what a block takes back, nor by the block's end.
    ok(&mut a, "begin; set local pgtenure.consistency = 'global'");
    assert_eq!(value(&mut a, show), "global");
    ok(&mut a, "savepoint s; set local pgtenure.consistency = 'strong'");
    assert_eq!(extended(&mut a, show)[2], "D strong");
    ok(&mut a, "rollback to s");
    assert_eq!(value(&mut a, show), "global");
    ok(&mut a, "reset pgtenure.consistency");
    assert_eq!(value(&mut a, show), "bounded");
    ok(&mut a, "commit");
    assert_eq!(value(&mut a, show), "bounded");
    let left = "select coalesce(current_setting('pgtenure.' || 'consistency', true), '')";
    assert_eq!(value(&mut a, left), "");
    ok(&mut a, "set pgtenure.consistency = 'eventual'");
    assert_eq!(value(&mut a, show), "eventual");
    assert_eq!(value(&mut a, left), "eventual");
    assert_eq!(value(&mut a, "set pgtenure.standby_wait = '1s'; show pgtenure.standby_wait"), "1s");
    assert_eq!(value(&mut a, "show pgtenure.standby_wait"), "1s");
    ok(&mut a, "reset all");
    assert_eq!(value(&mut a, show), "bounded");
    // A string that begins a block which fails, or is rolled back.
    assert_eq!(
        a.query("begin; show pgtenure.consistency; select 1/0"),
        ["C BEGIN", "T", "D bounded", "C SHOW", "E 22012", "Z E"]
    );
    ok(&mut a, "rollback");
    assert_eq!(value(&mut a, "begin; show pgtenure.no_standby"), "primary");
    ok(&mut a, "rollback");
    assert_eq!(value(&mut a, left), "");
    // A block's modes can still be set behind it, and what it has set itself is shown.
    ok(&mut a, "begin");
    assert_eq!(value(&mut a, show), "bounded");
    ok(&mut a, "set transaction isolation level serializable");
    ok(&mut a, "set local pgtenure.durability = 'applied'");
    assert_eq!(value(&mut a, "show pgtenure.durability"), "applied");
    assert_eq!(value(&mut a, "show synchronous_commit"), "remote_apply");
    ok(&mut a, "rollback");
    // What the login said, another client on the same servers, and names that are not there.
    let mut b = Raw::login(c.port, &[("pgtenure.consistency", "Strong"), ("options", "-c pgtenure.read_from=primary")]);
    assert_eq!(value(&mut b, show), "Strong");
    assert_eq!(value(&mut b, "show pgtenure.read_from"), "primary");
    assert_eq!(value(&mut b, "show pgtenure.standby_wait"), "250ms");
    assert_eq!(a.query("show pgtenure.nonsense"), ["E 42704", "Z I"]);
    assert_eq!(value(&mut a, "show pgtenure.explain_route"), "off");
}

#[test]
fn a_block_that_is_rolled_back_leaves_nothing_of_what_was_shown_within_it() {
    let c = cluster(0);
    let mut a = Raw::login(c.port, &[]);
    for (name, shown, set) in [
        ("consistency", "bounded", "global"),
        ("durability", "semi_sync", "applied"),
        ("read_from", "standby", "primary"),
    ] {
        let sql = format!("begin; show pgtenure.{name}; set pgtenure.{name} = '{set}'; rollback");
        assert_eq!(value(&mut a, &sql), shown);
        let left = format!("select coalesce(current_setting('pgtenure.' || '{name}', true), '')");
        assert_eq!(value(&mut a, &left), "", "{name} is not the session's own");
        let source = "select source from pg_settings where name = 'synchronous_commit'";
        assert_ne!(value(&mut a, source), "session", "{name}");
        // What it does set it keeps.
        let show = if name == "durability" { String::new() } else { format!("show pgtenure.{name};") };
        ok(&mut a, &format!("{show} set pgtenure.{name} = '{set}'"));
        assert_eq!(value(&mut a, &left), set);
        ok(&mut a, &format!("reset pgtenure.{name}"));
        assert_eq!(value(&mut a, &left), "");
    }
}

#[test]
fn a_token_that_is_described_first_covers_the_write_before_it() {
    let c = cluster(0);
    ok(&mut Raw::login(c.port, &[]), "create table t(a int)");
    for _ in 0..5 {
        let mut a = Raw::login(c.port, &[]);
        ok(&mut a, "insert into t values (1)");
        // As asyncpg does it.
        a.write(|out| {
            parse(out, "", "show pgtenure.token");
            describe(out, "");
            flush(out);
        });
        assert_eq!([a.next(), a.next(), a.next()], ["1", "t", "T"]);
        a.write(|out| {
            bind(out, "", "", &[]);
            execute(out, "");
            sync(out);
        });
        let seen = a.until_ready();
        assert!(seen[1].starts_with("D 1-1-0/"), "{seen:?}");
    }
}

#[test]
fn a_setting_whose_columns_are_asked_for_is_known_there_before() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    for (name, sql) in [("s", "show pgtenure.read_from"), ("t", "show pgtenure.term")] {
        a.write(|out| {
            parse(out, name, sql);
            describe(out, name);
            sync(out);
        });
        assert_eq!(words(&a.until_ready()), "1 | t | T | Z I");
    }
    // On another server, which has never heard of the names.
    let _other = block(&c);
    for (name, want) in [("s", "standby"), ("t", "1"), ("s", "standby")] {
        assert_eq!(used(&mut a, name), format!("2 | D {want} | C SHOW | Z I"));
    }
}
