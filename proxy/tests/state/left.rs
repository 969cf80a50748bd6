//! What stays on a server behind its session, and keeps that there or is taken away: sequences, temporary tables, what
//! cannot be followed.

use super::common::raw::{Raw, block, flush, ok, run, sync, two_servers, value};
use super::common::{Cluster, PASSWORD, wait_for};
use proxy::config::pools::{Database, SequenceValues};

fn pins(c: &Cluster) -> f64 {
    c.counter("pgtenure_proxy_pinned_sessions")
}

/// `lastval()` is what its own session has drawn, or nothing.
#[test]
fn nobody_is_told_what_another_has_drawn_from_a_sequence() {
    let c = two_servers();
    c.nodes[0].psql("create table drawn(id serial primary key); grant all on drawn, drawn_id_seq to app");
    let draw = |client: &mut Raw| value(client, "insert into drawn default values returning id");
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let (_, _) = (draw(&mut a), draw(&mut b));
    let seen = a.query("select lastval()");
    assert!(seen.contains(&"E 55000".to_owned()), "{seen:?}");
    let own = draw(&mut a);
    assert_eq!(value(&mut a, "select currval('drawn_id_seq')"), own);
    ok(&mut a, "discard all");
    // In one block nobody comes between.
    let _ = draw(&mut b);
    ok(&mut a, "begin");
    let own = draw(&mut a);
    assert_eq!(value(&mut a, "select lastval()"), own);
    ok(&mut a, "commit");
}

/// Of who has written last it is not known that he has drawn.
#[test]
fn who_writes_without_drawing_is_not_told_what_another_has_drawn() {
    let c = two_servers();
    c.nodes[0].psql(
        "create table drawn(id serial primary key, n int); grant all on drawn, drawn_id_seq to app;
         create function last() returns bigint language sql as 'select lastval()'",
    );
    let insert = "insert into drawn default values";
    for write in
        ["update drawn set n = 1", "insert into drawn(id) values (-1)", "begin; update drawn set n = 1; commit"]
    {
        for ask in ["select lastval()", "select last()", "select currval('drawn_id_seq')"] {
            let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
            ok(&mut a, insert);
            ok(&mut b, insert);
            ok(&mut a, "begin");
            ok(&mut a, "delete from drawn where id < 0");
            ok(&mut a, "commit");
            ok(&mut a, write);
            let seen = a.query(ask);
            assert!(seen.contains(&"E 55000".to_owned()), "{write}, {ask}: {seen:?}");
        }
    }
    // Extended, behind a Flush, and with everything in one pipeline.
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    ok(&mut b, insert);
    a.write(|out| {
        run(out, "select 1");
        sync(out);
        run(out, "select 2");
        flush(out);
        run(out, "update drawn set n = 2");
        sync(out);
        run(out, "select last()");
        sync(out);
    });
    let seen: Vec<_> = (0..3).flat_map(|_| a.until_ready()).collect();
    assert!(seen.contains(&"E 55000".to_owned()), "{seen:?}");
}

/// What discards comes before the block: in it, it would take the snapshot that LOCK is to come before.
#[test]
fn a_block_takes_its_snapshot_where_its_client_wants_it_to() {
    let c = two_servers();
    c.nodes[0].psql("create table drawn(id serial primary key); grant all on drawn, drawn_id_seq to app");
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let insert = "insert into drawn default values";
    for begin in
        [&["begin isolation level repeatable read"][..], &["begin", "set transaction isolation level serializable"]]
    {
        ok(&mut b, insert);
        for sql in begin {
            ok(&mut a, sql);
        }
        let before = c.nodes[0].psql("insert into drawn default values returning id");
        ok(&mut a, "lock table drawn");
        assert_eq!(value(&mut a, "select max(id) from drawn"), before, "{begin:?}");
        assert_ne!(value(&mut a, &format!("{insert} returning id")), before);
        ok(&mut a, "commit");
    }
}

/// Who may have drawn stays where that is kept, if it is wanted, and until it discards that.
#[test]
fn what_a_session_has_drawn_is_its_own_where_that_pins() {
    let c = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.pool_size = 2;
        raw.pools.sequence_values = SequenceValues::Pin;
        let own = Database { sequence_values: Some(SequenceValues::Discard), ..Database::default() };
        raw.databases.insert("app_discards".to_owned(), Database { dbname: Some("app".to_owned()), ..own });
    });
    c.nodes[0].psql("create table drawn(id serial primary key, n int); grant all on drawn, drawn_id_seq to app");
    let insert = "insert into drawn default values returning id";
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    // What was drawn before on the same connection is not its own, though it stays there.
    let _ = value(&mut Raw::login(c.port, &[]), insert);
    wait_for("its end", || (pins(&c) == 0.0).then_some(()));
    ok(&mut a, "update drawn set n = 1");
    let seen = a.query("select lastval()");
    assert!(seen.contains(&"E 55000".to_owned()), "{seen:?}");
    ok(&mut a, "discard all");
    wait_for("nothing to keep it", || (pins(&c) == 0.0).then_some(()));
    for ask in ["select lastval()", "select currval('drawn_id_seq')"] {
        // Alone, in a block, and behind what its session has asked for before.
        let own = value(&mut a, insert);
        ok(&mut b, "begin");
        let other = value(&mut b, insert);
        ok(&mut b, "commit");
        wait_for("both to stay", || (pins(&c) == 2.0).then_some(()));
        assert_eq!(value(&mut a, ask), own, "{ask}");
        assert_eq!(value(&mut b, ask), other, "{ask}");
    }
    for client in [&mut a, &mut b] {
        ok(client, "discard all");
        let seen = client.query("select lastval()");
        assert!(seen.contains(&"E 55000".to_owned()), "{seen:?}");
        ok(client, "discard all");
    }
    wait_for("nothing to keep them", || (pins(&c) == 0.0).then_some(()));
    // A server that was kept for a value that nobody has asked for serves on when its client has gone.
    let own = value(&mut a, "insert into drawn default values returning pg_backend_pid()");
    let mut other = block(&c);
    drop(a);
    wait_for("its end", || (pins(&c) == 0.0).then_some(()));
    let pid = |client: &mut Raw| value(client, "select pg_backend_pid() where txid_current() > 0");
    assert!([pid(&mut other), pid(&mut b)].contains(&own));
    ok(&mut other, "commit");
    ok(&mut other, "discard all");
    // Where it is not wanted nobody stays.
    let mut third = Raw::login(c.port, &[("database", "app_discards")]);
    ok(&mut b, "discard all");
    let _ = value(&mut third, insert);
    wait_for("nothing to keep it", || (pins(&c) == 0.0).then_some(()));
}

/// Where nobody has asked for a long time nothing is discarded until somebody does.
#[test]
fn who_asks_for_the_first_time_is_not_told_what_another_has_drawn_either() {
    let c = two_servers();
    c.nodes[0].psql("create database second owner app");
    c.nodes[0].psql("create database third owner app");
    c.nodes[0].psql("grant create on schema public to app");
    let (update, insert) = ("update drawn set n = 1 where id = 1", "insert into drawn default values");
    for (database, asks_in_block) in [("app", None), ("second", Some(insert)), ("third", Some(update))] {
        let login = || Raw::login(c.port, &[("database", database)]);
        let (mut a, mut b) = (login(), login());
        ok(&mut a, "create table drawn(id serial primary key, n int)");
        for _ in 0..600 {
            ok(&mut a, update);
            ok(&mut b, insert);
        }
        if asks_in_block == Some(update) {
            // It is not known to have drawn there.
            ok(&mut a, "begin");
            ok(&mut a, update);
            let seen = a.query("select lastval()");
            assert!(seen.contains(&"E 55000".to_owned()), "{seen:?}");
            ok(&mut a, "rollback");
        } else if asks_in_block.is_some() {
            // There nobody comes between.
            ok(&mut a, "begin");
            let own = value(&mut a, &format!("{insert} returning id"));
            assert_eq!(value(&mut a, "select lastval()"), own);
            ok(&mut a, "commit");
            // From then on it stays there with what it has.
            ok(&mut a, update);
            assert_eq!(value(&mut a, "select lastval()"), own);
        } else {
            ok(&mut a, update);
            let seen = a.query("select lastval()");
            assert!(seen.contains(&"E 55000".to_owned()), "{seen:?}");
        }
    }
}

/// What also sets something has drawn all the same.
#[test]
fn what_sets_and_draws_is_known_to_have_drawn() {
    let c = two_servers();
    c.nodes[0].psql(
        "create table drawn(id serial primary key); create table kept(id serial primary key);
         create function sets() returns trigger language plpgsql as
         $$begin perform set_config('app.kept', 'yes', true); return new; end$$;
         create trigger sets before insert on kept for each row execute function sets();
         grant all on drawn, drawn_id_seq, kept, kept_id_seq to app",
    );
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    for (before, insert) in [
        ("select 1", "insert into kept default values"),
        ("select 1", "set local app.x = '1'; insert into drawn default values"),
        ("set local app.x = '2'", "insert into drawn default values"),
    ] {
        // It has drawn where the other one draws next.
        ok(&mut b, "insert into drawn default values");
        ok(&mut a, "begin");
        ok(&mut a, before);
        let own = value(&mut a, &format!("{insert} returning id"));
        assert_eq!(value(&mut a, "select lastval()"), own, "{before}, {insert}");
        ok(&mut a, "commit");
    }
}

/// A plain CREATE TABLE makes a temporary one where the temporary schema comes first.
#[test]
fn a_table_that_a_search_path_makes_temporary_is_its_sessions_alone() {
    let c = two_servers();
    let mut other = Raw::login(c.port, &[]);
    for (parameters, before) in [
        (&[][..], "set search_path = pg_temp, public"),
        (&[], "select set_config('search_path', '\"$user\", pg_temp', false)"),
        (&[("search_path", "pg_temp,public")], "select 1"),
    ] {
        for within in [false, true] {
            let mut a = Raw::login(c.port, parameters);
            if within {
                ok(&mut a, "begin");
            }
            ok(&mut a, before);
            ok(&mut a, "create table made(i int)");
            if within {
                ok(&mut a, "commit");
            }
            wait_for("the session to stay", || (pins(&c) == 1.0).then_some(()));
            assert_eq!(value(&mut other, "select to_regclass('pg_temp.made') is null"), "t");
            ok(&mut a, "insert into made values (1)");
            assert_eq!(value(&mut a, "select count(*) from made"), "1");
            ok(&mut a, "drop table made");
            wait_for("nothing to keep it", || (pins(&c) == 0.0).then_some(()));
        }
    }
}

/// What nobody can give another server stays, and with it the session.
#[test]
fn what_cannot_be_followed_keeps_the_session_on_its_server() {
    let c = two_servers();
    c.nodes[0].psql("create extension dblink; alter role app superuser");
    let connect = format!(
        "select dblink_connect('there', 'host=127.0.0.1 port={} user=app password=''{}'' dbname=app')",
        c.nodes[0].port, PASSWORD
    );
    for (leave, check, want) in [
        ("select setseed(0.5)", "select round(random()::numeric, 6)", None),
        ("load 'auto_explain'", "show auto_explain.log_min_duration", Some("-1")),
        (connect.as_str(), "select * from dblink('there', 'select 7') as d(i int)", Some("7")),
    ] {
        let (mut a, mut direct) = (Raw::login(c.port, &[]), Raw::login(c.nodes[0].port, &[]));
        ok(&mut a, leave);
        wait_for(leave, || (pins(&c) == 1.0).then_some(()));
        let pid = value(&mut a, "select pg_backend_pid()");
        let mut other = block(&c);
        assert_ne!(value(&mut other, "select pg_backend_pid()"), pid, "{leave}");
        ok(&mut direct, leave);
        let expected = want.map_or_else(|| value(&mut direct, check), str::to_owned);
        assert_eq!(value(&mut a, check), expected, "{leave}");
        assert_eq!(value(&mut a, "select pg_backend_pid()"), pid, "{leave}");
        drop(a);
        wait_for("its end", || (pins(&c) == 0.0).then_some(()));
    }
}
