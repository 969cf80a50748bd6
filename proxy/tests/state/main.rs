//! The state of a session under transaction pooling, against a real server: what a client sets, it sees, on whichever
//! connection serves it, and nobody else does.

#![allow(unreachable_pub, missing_docs, reason = "a test program has no public interface")]

#[path = "../common/mod.rs"]
mod common;
mod dice;
mod left;
mod listens;

use common::raw::{Raw, bind, block, execute, ok, parse, run, sync, two_servers, value};
use common::{Cluster, wait_for};
use proxy::console::tally::Counter;
use proxy::wire::frontend::write_query;

#[test]
fn what_a_client_sets_follows_it_and_nobody_else() {
    let c = two_servers();
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    ok(&mut a, "set work_mem = '2048 kB'");
    ok(&mut a, "set app.x = 'it''s a\\'");
    ok(&mut a, "select set_config('search_path', 'a, \"B c\"', false)");
    let pid = value(&mut a, "select pg_backend_pid()");
    // Now a needs the other connection.
    ok(&mut b, "begin");
    assert_eq!(value(&mut b, "select pg_backend_pid()"), pid, "the connection used last is used first");
    assert_eq!(value(&mut b, "show work_mem"), "4MB");
    assert_eq!(value(&mut b, "select coalesce(nullif(current_setting('app.x', true), ''), 'none')"), "none");
    assert_ne!(value(&mut a, "select pg_backend_pid()"), pid);
    assert_eq!(value(&mut a, "show work_mem"), "2MB");
    assert_eq!(value(&mut a, "show app.x"), "it's a\\");
    assert_eq!(value(&mut a, "show search_path"), "a, \"B c\"");
    ok(&mut a, "reset work_mem; reset app.x");
    ok(&mut b, "commit");
    assert_eq!(value(&mut b, "show search_path"), "\"$user\", public");
    assert_eq!(value(&mut a, "show work_mem"), "4MB");
    // What means something else under another encoding is on one connection, for as long as it is set.
    ok(&mut b, "begin");
    let mut other = Raw::login(c.port, &[]);
    for then in ["select set_config('app.x', 'Bob', false)", "reset app.x"] {
        ok(&mut a, "select set_config('app.x', 'Jürgen', false)");
        let pid = value(&mut a, "select pg_backend_pid()");
        assert_ne!(value(&mut b, "select pg_backend_pid()"), pid);
        assert_eq!(value(&mut a, "show app.x"), "Jürgen");
        ok(&mut a, then);
        // b has the other one.
        assert_eq!(value(&mut other, "select pg_backend_pid()"), pid, "{then}");
        assert_eq!(value(&mut other, "select coalesce(nullif(current_setting('app.x', true), ''), 'none')"), "none");
    }
    ok(&mut b, "commit");
}

#[test]
fn a_rollback_undoes_settings_in_the_map_too() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set timezone = 'Europe/Berlin'");
    for sql in ["begin", "set timezone = 'UTC'", "savepoint s", "set work_mem = '1MB'", "rollback to s"] {
        ok(&mut a, sql);
    }
    ok(&mut a, "set lock_timeout = '5s'");
    ok(&mut a, "rollback");
    ok(&mut a, "begin; set local work_mem = '3MB'; set statement_timeout = 60000; commit");
    let pid = value(&mut a, "select pg_backend_pid()");
    let mut b = block(&c);
    assert_ne!(value(&mut a, "select pg_backend_pid()"), pid);
    for (name, want) in
        [("timezone", "Europe/Berlin"), ("work_mem", "4MB"), ("lock_timeout", "0"), ("statement_timeout", "1min")]
    {
        assert_eq!(value(&mut a, &format!("show {name}")), want, "{name}");
    }
    ok(&mut b, "commit");
}

#[test]
fn a_clients_application_name_is_on_its_server() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[("application_name", "first")]);
    let mut b = Raw::login(c.port, &[("application_name", "second")]);
    let mut none = Raw::login(c.port, &[]);
    for _ in 0..2 {
        for (client, name) in [(&mut a, "first"), (&mut b, "second")] {
            assert_eq!(value(client, "show application_name"), name);
        }
        assert_eq!(none.query("show application_name")[1], "D ");
        // As on PostgreSQL: nothing is reported, for nothing has changed.
        assert_eq!(none.query("discard all"), ["C DISCARD ALL", "Z I"]);
    }
    assert!(ok(&mut a, "set application_name = 'third'").contains(&"S application_name=third".to_owned()));
    assert_eq!(value(&mut a, "show application_name"), "third");
    // The server falls back to no name, the client to its own.
    assert_eq!(a.query("reset application_name"), ["C RESET", "S application_name=first", "Z I"]);
    assert_eq!(value(&mut a, "show application_name"), "first");
    assert_eq!(value(&mut b, "show application_name"), "second");
}

/// Everything that may change the name of a client that gave one at its login, or gave none: what it is told, and when,
/// is what it would be told by its own server.
#[test]
fn a_client_is_told_of_its_name_what_its_own_server_would_tell() {
    let c = two_servers();
    c.nodes[0].psql("alter role app set application_name = 'of the role'");
    for name in [Some("first"), Some("of the role"), Some(""), Some("Umläute"), None] {
        let startup: Vec<(&str, &str)> = name.map(|name| ("application_name", name)).into_iter().collect();
        let (mut pooled, mut direct) = (Raw::login(c.port, &startup), Raw::login(c.nodes[0].port, &startup));
        for sql in [
            "show application_name",
            "reset application_name",
            "discard all",
            "set application_name = 'third'",
            "set application_name = 'third'",
            "reset application_name",
            "reset all",
            "set application_name = ''",
            "select 1",
            "show application_name",
            "reset application_name",
            "set application_name = 'of the role'",
            "show application_name",
            "set application_name to default",
            "show application_name",
            "begin; set application_name = 'fourth'",
            "rollback",
            "set application_name = 'fifth'",
            "begin; reset application_name",
            "savepoint s",
            "rollback",
            "show application_name",
            "discard all",
            "set application_name = 'a'; reset application_name; set application_name = 'b'; select 1/0",
            "begin; reset all",
            "set local application_name = 'local'",
            "commit",
            "select set_config('application_name', '', false)",
            "show application_name",
            "discard all",
        ] {
            assert_eq!(pooled.query(sql), direct.query(sql), "{sql}, application_name {name:?}");
        }
    }
}

/// A reload changes what servers begin with: their connections are kept, and each client is told once, by whichever
/// server it meets.
#[test]
fn a_reloaded_configuration_reaches_clients_and_costs_no_connection() {
    let c = two_servers();
    let mut clients: Vec<Raw> = (0..3).map(|_| Raw::login(c.port, &[])).collect();
    ok(&mut clients[2], "set timezone = 'Europe/Berlin'");
    let mut other = block(&c);
    let both = [value(&mut other, "select pg_backend_pid()"), value(&mut clients[0], "select pg_backend_pid()")];
    ok(&mut other, "commit");
    c.nodes[0].psql("alter system set timezone = 'Asia/Tokyo'");
    c.nodes[0].psql("select pg_reload_conf()");
    wait_for("the reload", || (c.nodes[0].psql("show timezone") == "Asia/Tokyo").then_some(()));
    let told = |seen: &[String]| seen.iter().filter(|s| s.starts_with("S ")).cloned().collect::<Vec<_>>();
    wait_for("the server's processes to have heard of it", || {
        let seen = ok(&mut clients[0], "show timezone");
        let now = seen.contains(&"D Asia/Tokyo".to_owned());
        if now {
            assert_eq!(told(&seen), ["S TimeZone=Asia/Tokyo"], "{seen:?}");
        }
        now.then_some(())
    });
    assert!(told(&ok(&mut clients[0], "select 1")).is_empty(), "told once");
    // One that comes to that server without having been told.
    let seen = ok(&mut clients[1], "show timezone");
    assert!(seen.contains(&"D Asia/Tokyo".to_owned()), "{seen:?}");
    assert_eq!(told(&seen), ["S TimeZone=Asia/Tokyo"]);
    // Who has set its own is told nothing, and a new one is told at its login.
    assert_eq!(ok(&mut clients[2], "show timezone"), ["T", "D Europe/Berlin", "C SHOW", "Z I"]);
    ok(&mut clients[0], "select 1");
    let new = Raw::login(c.port, &[]);
    assert!(new.settings.contains(&("TimeZone".to_owned(), "Asia/Tokyo".to_owned())), "{:?}", new.settings);
    // Both connections live on.
    let mut other = block(&c);
    let mut after = [value(&mut other, "select pg_backend_pid()"), value(&mut clients[0], "select pg_backend_pid()")];
    let mut both = both;
    both.sort();
    after.sort();
    assert_eq!(after, both);
}

/// A function may listen without any text that shows it, as one that was changed elsewhere. What comes for nobody is kept
/// from the next client, and so is what would come.
#[test]
fn what_an_idle_server_is_notified_of_is_nobodys() {
    let c = two_servers();
    c.nodes[0].psql("create function hears() returns void language plpgsql as $$ begin null; end $$");
    let mut a = Raw::login(c.port, &[]);
    c.nodes[0].psql("create or replace function hears() returns void language plpgsql as $$ begin listen news; end $$");
    ok(&mut a, "select hears()");
    let pid = value(&mut a, "select pg_backend_pid()");
    ok(&mut a, "select 1");
    c.nodes[0].psql("notify news, 'one'");
    let mut b = Raw::login(c.port, &[]);
    wait_for("the notification to be taken in, and no more to come", || {
        let seen = ok(&mut b, "select count(*) from pg_listening_channels()");
        assert!(!seen.contains(&"A".to_owned()), "{seen:?}");
        seen.contains(&"D 0".to_owned()).then_some(())
    });
    assert_eq!(value(&mut b, "select pg_backend_pid()"), pid, "the connection is kept");
    c.nodes[0].psql("notify news, 'two'");
    assert_eq!(ok(&mut b, "select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
    // What comes while the next client is served is not that one's either.
    ok(&mut a, "select hears()");
    let pid = value(&mut a, "select pg_backend_pid()");
    ok(&mut b, "begin");
    assert_eq!(value(&mut b, "select pg_backend_pid()"), pid);
    c.nodes[0].psql("notify news, 'three'");
    assert_eq!(ok(&mut b, "commit"), ["C COMMIT", "Z I"]);
    assert_eq!(value(&mut b, "select count(*) from pg_listening_channels()"), "0");
}

#[test]
fn a_session_finds_the_connection_that_has_its_settings() {
    let c = two_servers();
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    ok(&mut a, "begin");
    let other = ok(&mut b, "select pg_backend_pid()");
    ok(&mut a, "set work_mem = '2MB'; commit");
    let mine = ok(&mut a, "select pg_backend_pid()");
    assert_ne!(mine, other);
    for _ in 0..3 {
        assert_eq!(ok(&mut b, "select pg_backend_pid()"), other);
        assert_eq!(ok(&mut a, "select pg_backend_pid()"), mine);
    }
}

#[test]
fn durability_and_pins_are_counted_as_the_session_has_them() {
    let allows = proxy::config::durability::Own { allow_lower: Some(true), level: None };
    let c = Cluster::start(0, |raw| (raw.workers, raw.pool_size, raw.durability) = (1, 2, allows));
    c.nodes[0].psql("create table t (i int); alter table t owner to app; alter role app set synchronous_commit = off");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "insert into t values (1)");
    ok(&mut a, "set synchronous_commit = on");
    ok(&mut a, "insert into t values (2)");
    assert_eq!(c.counter("pgtenure_proxy_commits_below_mode_total"), 1.0);
    let pins = || (c.counter("pgtenure_proxy_pinned_sessions"), c.counter("pgtenure_proxy_pins_total"));
    // The next statement waits for what the server is asked behind the one before.
    for (sql, counted) in [
        ("create temp table x (i int)", (1.0, 1.0)),
        ("listen news", (2.0, 2.0)),
        ("drop table x", (1.0, 2.0)),
        ("unlisten *", (0.0, 2.0)),
    ] {
        ok(&mut a, sql);
        ok(&mut a, "select 1");
        assert_eq!(pins(), counted, "{sql}");
    }
}

#[test]
fn a_role_follows_its_session_and_is_never_left_behind() {
    let c = two_servers();
    c.nodes[0].psql("create role worker; grant worker to app; create role odd; grant odd to app");
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    ok(&mut a, "set work_mem = '1MB'");
    ok(&mut a, "set role worker");
    for _ in 0..2 {
        assert_eq!(value(&mut b, "select current_user"), "app");
        assert_eq!(value(&mut a, "select current_user"), "worker");
        assert_eq!(value(&mut a, "show work_mem"), "1MB");
    }
    ok(&mut a, "begin; set role odd; rollback");
    let mut hold = block(&c);
    assert_eq!(value(&mut a, "select current_user"), "worker");
    ok(&mut hold, "commit");
    ok(&mut a, "discard all");
    assert_eq!(value(&mut a, "select current_user"), "app");
    assert_eq!(value(&mut a, "show work_mem"), "4MB");
}

#[test]
fn sessions_with_one_role_keep_it_though_one_is_known_to_be_who_it_logged_in_as() {
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    c.nodes[0].psql("create role worker; grant worker to app");
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    ok(&mut a, "set role worker");
    ok(&mut b, "set session authorization default");
    ok(&mut b, "set role worker");
    for _ in 0..2 {
        assert_eq!(value(&mut a, "select current_user"), "worker");
        assert_eq!(value(&mut b, "select current_user"), "worker");
    }
    // What each is told of who it is, is what its own server would tell, though they share this one.
    c.nodes[0].psql("create role boss superuser; grant boss to app");
    let mut direct = Raw::login(c.nodes[0].port, &[]);
    ok(&mut direct, "set role worker");
    for sql in [
        "set role boss",
        "select current_user",
        "set role worker",
        "select current_user",
        "begin; set role boss",
        "rollback",
        "begin; set role boss",
        "savepoint s",
        "set role worker",
        "rollback to s",
        "set session authorization default",
        "commit",
        "set role boss",
        "begin; reset role; rollback",
        "set session authorization app",
        "set role boss",
        "discard all",
        "select current_user",
    ] {
        let (told, want) = (a.query(sql), direct.query(sql));
        assert_eq!(told, want, "{sql}");
        if told.last().is_some_and(|ready| ready == "Z I") {
            assert_eq!(ok(&mut b, "select current_user"), ["T", "D worker", "C SELECT 1", "Z I"], "behind {sql}");
        }
    }
}

#[test]
fn a_parameters_name_is_found_in_its_value() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    a.write(|out| {
        parse(out, "s", "select set_config($1, $2, false)");
        bind(out, "", "s", &["app.tenant", "blue"]);
        execute(out, "");
        sync(out);
    });
    a.until_ready();
    a.write(|out| {
        bind(out, "", "s", &["app.other", "red"]);
        execute(out, "");
        sync(out);
    });
    a.until_ready();
    let pid = value(&mut a, "select pg_backend_pid()");
    let _b = block(&c);
    assert_ne!(value(&mut a, "select pg_backend_pid()"), pid);
    assert_eq!(value(&mut a, "show app.tenant"), "blue");
    assert_eq!(value(&mut a, "show app.other"), "red");
}

#[test]
fn pins_end_when_what_they_stand_for_is_gone() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    for (begins, ends) in [
        ("create temp table x (id int)", "drop table x"),
        ("create temp table x (id int)", "discard temp"),
        ("begin; create temp table x (id int) on commit drop; commit", "select 1"),
        ("select pg_advisory_lock(7)", "select pg_advisory_unlock(7)"),
        ("declare c cursor with hold for select 1", "close c"),
        ("listen news", "unlisten news"),
        ("listen news", "unlisten *"),
        ("create temp table x (id int); listen news; select pg_advisory_lock(7)", "discard all"),
    ] {
        ok(&mut a, begins);
        ok(&mut a, ends);
        let pid = value(&mut a, "select pg_backend_pid()");
        // Others get both connections: a holds none.
        let mut others = [block(&c), block(&c)];
        let got = others.each_mut().map(|other| value(other, "select pg_backend_pid()"));
        assert!(got.contains(&pid), "still pinned after {begins}; {ends}");
        others.iter_mut().for_each(|other| _ = ok(other, "commit"));
    }
    // And they last until then.
    ok(&mut a, "listen news; select pg_advisory_lock(7)");
    ok(&mut a, "unlisten news");
    let pid = value(&mut a, "select pg_backend_pid()");
    let _b = block(&c);
    assert_eq!(value(&mut a, "select pg_backend_pid()"), pid);
    ok(&mut a, "select pg_advisory_unlock_all()");
}

#[test]
fn a_listener_is_warned_after_a_failover_and_goes_on_listening() {
    let mut c = Cluster::start(1, |_| {});
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set work_mem = '2MB'");
    ok(&mut a, "listen news; listen \"Odd one\"");
    // Behind this answer its channels are known; lost before, the session ends with 08006.
    ok(&mut a, "select 1");
    c.nodes[0].kill();
    c.fail_over_to(1);
    // It says nothing, and is told all the same.
    assert_eq!(a.next(), "N 01000");
    c.nodes[1].psql("select pg_notify('Odd one', 'x')");
    assert_eq!(a.next(), "A");
    assert_eq!(value(&mut a, "show work_mem"), "2MB");
    ok(&mut a, "notify news");
    let seen = ok(&mut a, "select 1");
    assert!(!seen.is_empty());
    ok(&mut a, "unlisten *");
}

/// Each of these is told the channels anew, and a block that is lost takes nothing from what was listened to before it.
#[test]
fn every_listen_of_a_session_survives_its_server() {
    let mut c = Cluster::start(1, |_| {});
    let pid = |a: &mut Raw| value(a, "select pg_backend_pid()");
    let terminate = |c: &Cluster, pid: &str| c.nodes[0].psql(&format!("select pg_terminate_backend({pid})"));
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen a");
    ok(&mut a, "listen b");
    let of_a = pid(&mut a);
    terminate(&c, &of_a);
    assert_eq!(a.next(), "N 01000");
    c.nodes[0].psql("select pg_notify('b', '')");
    assert_eq!(a.next(), "A", "its server alone was lost");

    let mut other = Raw::login(c.port, &[]);
    ok(&mut other, "listen a");
    ok(&mut other, "begin");
    ok(&mut other, "listen b");
    let of_other = pid(&mut other);
    terminate(&c, &of_other);
    assert_eq!(other.next(), "N 01000");
    assert_eq!(other.query("select 1"), ["E 40001", "Z E"]);
    ok(&mut other, "rollback");
    assert_eq!(value(&mut other, "select string_agg(c, ',') from pg_listening_channels() c"), "a");
    c.nodes[0].psql("select pg_notify('a', '')");
    assert_eq!((a.next(), other.next()), ("A".to_owned(), "A".to_owned()));

    c.nodes[0].kill();
    c.fail_over_to(1);
    assert_eq!(a.next(), "N 01000");
    c.nodes[1].psql("select pg_notify('b', '')");
    assert_eq!(a.next(), "A");
}

#[test]
fn who_listens_again_does_so_with_its_own_settings() {
    let c = two_servers();
    let node = &c.nodes[0];
    node.psql("create function hears() returns void language plpgsql as $$ begin null; end $$");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen \"grün\"");
    let pid = value(&mut a, "select pg_backend_pid()");
    // The other server has the settings of somebody else, and listens for nobody.
    let mut b = Raw::login(c.port, &[]);
    ok(&mut b, "select hears()");
    node.psql("create or replace function hears() returns void language plpgsql as $$ begin listen news; end $$");
    ok(&mut b, "set client_encoding = latin1");
    ok(&mut b, "select hears()");
    ok(&mut b, "begin");
    node.psql("notify news");
    assert_eq!(ok(&mut b, "commit"), ["C COMMIT", "Z I"]);
    node.psql(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(a.next(), "N 01000");
    ok(&mut a, "select 1");
    node.psql("select pg_notify('grün', '')");
    assert_eq!(a.next(), "A");
}

#[test]
fn a_session_listens_to_thousands_of_channels() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    let all: String = (0..5000).map(|i| format!("listen c{i};")).collect();
    ok(&mut a, &all);
    let pid = value(&mut a, "select pg_backend_pid()");
    ok(&mut a, "listen one");
    assert_eq!(value(&mut a, "select pg_backend_pid()"), pid);
    c.nodes[0].psql(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(a.next(), "N 01000");
    c.nodes[0].psql("select pg_notify('c4999', '')");
    assert_eq!(a.next(), "A");
}

#[test]
fn a_question_that_ends_at_the_sessions_own_limit_is_asked_again() {
    let c = two_servers();
    c.nodes[0].psql("create role worker; grant worker to app");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set statement_timeout = '500ms'");
    let pid = value(&mut a, "select pg_backend_pid()");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let superuser = format!("host=127.0.0.1 port={} user=postgres dbname=app", c.nodes[0].port);
    let (lock, connection) = runtime.block_on(tokio_postgres::connect(&superuser, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let locks = "begin; lock table pg_catalog.pg_db_role_setting in access exclusive mode";
    runtime.block_on(lock.batch_execute(locks)).expect("nobody else has it");
    ok(&mut a, "set role worker");
    // Every login waits for that too.
    let waits = format!("select count(*) from pg_locks where not granted and pid = {pid}");
    for (what, want) in [("the question to wait", true), ("its time to be over", false)] {
        wait_for(what, || {
            let waiting: i64 = runtime.block_on(lock.query_one(&waits, &[])).expect("an answer").get(0);
            ((waiting > 0) == want).then_some(())
        });
    }
    runtime.block_on(lock.batch_execute("commit")).expect("it is held");
    ok(&mut a, "select 1");
    let mut other = block(&c);
    assert_eq!(value(&mut a, "show role"), "worker");
    ok(&mut other, "commit");
    wait_for("nobody to keep a server", || (c.counter("pgtenure_proxy_pinned_sessions") == 0.0).then_some(()));
}

/// No statement of the client waits for a question of ours more than once.
#[test]
fn a_question_about_pins_that_ends_at_the_sessions_own_limit_holds_nobody_up() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set statement_timeout = '300ms'");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let superuser = format!("host=127.0.0.1 port={} user=postgres dbname=app", c.nodes[0].port);
    let (lock, connection) = runtime.block_on(tokio_postgres::connect(&superuser, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let locks = "begin; lock table pg_catalog.pg_locks in access exclusive mode";
    runtime.block_on(lock.batch_execute(locks)).expect("nobody else has it");
    ok(&mut a, "select pg_advisory_lock(1)");
    for _ in 0..3 {
        ok(&mut a, "select 1");
    }
    runtime.block_on(lock.batch_execute("commit")).expect("it is held");
    ok(&mut a, "select pg_advisory_unlock(1)");
    wait_for("nobody to keep a server", || (c.counter("pgtenure_proxy_pinned_sessions") == 0.0).then_some(()));
}

/// It waits for notifications, and would wait for ever.
#[test]
fn who_listened_on_a_server_that_was_given_up_for_the_gate_is_told_so() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::millis(300)));
    c.warm();
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen news");
    c.publish(|t| t.gate = cluster::topology::Gate::Closed(cluster::topology::Closed::Promoting));
    assert_eq!(a.query("select 1"), ["E 08006", "EOF"]);
}

/// A message that was on its way to a server that is lost: the one that listens for the session now would read the rest of it
/// as messages.
#[test]
fn the_rest_of_a_message_goes_to_no_other_server() {
    let c = two_servers();
    c.nodes[0].psql("create table t(n int); grant all on t to app");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "listen news");
    let pid = value(&mut a, "select pg_backend_pid()");
    let (mut foreign, mut whole) = (Vec::new(), Vec::new());
    write_query(&mut foreign, "insert into t values (666)");
    let text = String::from_utf8(foreign.clone()).expect("all of it is ASCII");
    bind(&mut whole, "", "", &[&["x".repeat(100_000), text, "x".repeat(1_000_000)].concat()]);
    let cut = whole.windows(foreign.len()).position(|w| w == foreign).expect("it is in there");
    let before = c.tally(Counter::Received);
    a.write(|out| {
        parse(out, "", "select $1::text");
        out.extend_from_slice(&whole[..cut]);
    });
    wait_for("the first part to be read", || (c.tally(Counter::Received) - before > cut as u64).then_some(()));
    c.nodes[0].psql(&format!("select pg_terminate_backend({pid})"));
    while a.next() != "N 01000" {}
    a.write(|out| {
        out.extend_from_slice(&whole[cut..]);
        sync(out);
    });
    assert_eq!(a.until_ready().last().map(String::as_str), Some("Z I"));
    assert_eq!(value(&mut a, "select count(*) from t"), "0");
    c.nodes[0].psql("notify news");
    assert_eq!(a.next(), "A");
}

/// The limits of the session before hold while a server takes the next one's settings: that one is not to blame.
#[test]
fn who_cannot_have_its_settings_in_time_gets_another_server() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.pool_size) = (1, 1));
    let node = &c.nodes[0];
    let mut b = Raw::login(c.port, &[]);
    ok(&mut b, "set default_tablespace = 'pg_default'");
    let first = value(&mut b, "select pg_backend_pid()");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set statement_timeout = '300ms'");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let superuser = format!("host=127.0.0.1 port={} user=postgres dbname=app", node.port);
    let (lock, connection) = runtime.block_on(tokio_postgres::connect(&superuser, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let locks = "begin; lock table pg_catalog.pg_tablespace in access exclusive mode";
    runtime.block_on(lock.batch_execute(locks)).expect("nobody else has it");
    b.write(|out| write_query(out, "select 1"));
    let waits = "select pid from pg_locks where not granted and relation = 'pg_tablespace'::regclass";
    wait_for("the settings to wait on another server", || {
        let pid = node.psql(waits);
        (!pid.is_empty() && pid != first).then_some(())
    });
    runtime.block_on(lock.batch_execute("commit")).expect("it is held");
    assert_eq!(b.until_ready(), ["T", "D 1", "C SELECT 1", "Z I"]);
    assert_eq!(value(&mut b, "show default_tablespace"), "pg_default");
}

#[test]
fn settings_survive_a_failover_and_what_a_lost_block_set_does_not() {
    let mut c = Cluster::start(1, |_| {});
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set timezone = 'Europe/Berlin'");
    ok(&mut a, "set work_mem = '2MB'");
    ok(&mut a, "begin");
    assert!(ok(&mut a, "set timezone = 'UTC'").contains(&"S TimeZone=UTC".to_owned()));
    c.nodes[0].kill();
    c.fail_over_to(1);
    let seen = a.query("select 1");
    assert!(seen.contains(&"E 40001".to_owned()), "{seen:?}");
    ok(&mut a, "rollback");
    let mut seen = a.query("show timezone");
    seen.extend(a.query("show work_mem"));
    assert!(seen.contains(&"D Europe/Berlin".to_owned()) && seen.contains(&"D 2MB".to_owned()), "{seen:?}");
}

#[test]
fn sql_deallocates_what_a_message_prepared() {
    let c = two_servers();
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    for client in [&mut a, &mut b] {
        client.write(|out| {
            parse(out, "_Pg3_0", "select 7");
            bind(out, "", "_Pg3_0", &[]);
            execute(out, "");
            sync(out);
        });
        assert_eq!(client.until_ready(), ["1", "2", "D 7", "C SELECT 1", "Z I"]);
    }
    assert_eq!(a.query("begin"), ["C BEGIN", "Z T"]);
    assert_eq!(a.query("DEALLOCATE \"_Pg3_0\""), ["C DEALLOCATE", "Z T"]);
    assert_eq!(a.query("commit"), ["C COMMIT", "Z I"]);
    assert_eq!(a.query("DEALLOCATE \"_Pg3_0\""), ["E 26000", "Z I"]);
    for (client, want) in [(&mut a, &["E 26000", "Z I"][..]), (&mut b, &["2", "D 7", "C SELECT 1", "Z I"])] {
        client.write(|out| {
            bind(out, "", "_Pg3_0", &[]);
            execute(out, "");
            sync(out);
        });
        assert_eq!(client.until_ready(), want);
    }
}

/// Longer than any text that is read before it is sent: what it leaves in the session is found on its way.
#[test]
fn a_text_of_megabytes_pins_only_for_what_it_does() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "create table docs (body text)");
    let data = "set x = 1; listen n -- 'quoted' create temp table ".repeat(60_000).replace('\'', "''");
    let free = |c: &Cluster, a: &mut Raw| {
        ok(a, "select 1");
        let mut others = [block(c), block(c)];
        others.iter_mut().for_each(|other| _ = ok(other, "commit"));
        c.counter("pgtenure_proxy_pinned_sessions") == 0.0
    };
    ok(&mut a, &format!("insert into docs values ('{data}')"));
    assert!(free(&c, &mut a), "a long literal pins nothing");
    a.write(|out| {
        run(out, &format!("insert into docs values ($long${data}$long$)"));
        sync(out);
    });
    assert_eq!(a.until_ready(), ["1", "2", "C INSERT 0 1", "Z I"]);
    assert!(free(&c, &mut a), "nor does one that is parsed");
    // The same in a block, with something else behind it.
    ok(&mut a, "begin");
    ok(&mut a, &format!("insert into docs values ('{data}'); insert into docs values ('{data}')"));
    ok(&mut a, "commit");
    assert!(free(&c, &mut a), "nor do two of them");
    assert_eq!(value(&mut a, "select count(*) from docs where length(body) > 2000000"), "4");
    ok(&mut a, &format!("insert into docs values ('{data}'); listen news"));
    ok(&mut a, "select 1");
    assert_eq!(c.counter("pgtenure_proxy_pinned_sessions"), 1.0, "a LISTEN at its end does");
    ok(&mut a, "unlisten *");
    assert!(free(&c, &mut a));
    ok(&mut a, &format!("insert into docs values ('{data}'); set work_mem = '3MB'"));
    let mut others = [block(&c)];
    assert_eq!(value(&mut a, "show work_mem"), "3MB", "a SET is the session's own");
    others.iter_mut().for_each(|other| _ = ok(other, "commit"));
    assert!(free(&c, &mut a), "and goes with it");
}

/// Functions and settings of which only the configuration knows that they leave something behind.
#[test]
fn what_the_configuration_names_pins_its_session_for_good() {
    let c = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.pool_size = 2;
        raw.pools.pin_functions = vec!["opens".to_owned()];
        raw.pools.pin_settings = vec!["tenant.*".to_owned()];
    });
    c.nodes[0].psql("create function opens(int) returns int immutable language sql as 'select $1'");
    let counted = || c.counter("pgtenure_proxy_pinned_sessions");
    for (pins, sql) in [
        (false, "select 'opens(1)'"),
        (true, "select public.Opens(1)"),
        (true, "do $$ begin perform opens(1); end $$"),
        (false, "set app.tenant = 'x'"),
        (true, "set tenant.id = '7'"),
        (true, "select set_config('tenant.name', 'x', false)"),
    ] {
        let mut a = Raw::login(c.port, &[]);
        ok(&mut a, sql);
        ok(&mut a, "discard all");
        let pid = value(&mut a, "select pg_backend_pid()");
        assert_eq!(counted(), f64::from(u8::from(pins)), "{sql}");
        if pins {
            let _other = block(&c);
            assert_eq!(value(&mut a, "select pg_backend_pid()"), pid, "{sql}");
        }
        drop(a);
        wait_for("its end", || (counted() == 0.0).then_some(()));
    }
}

/// A session begins with what its role and its database say, and not with what they said when its server was connected.
#[test]
fn later_sessions_have_the_defaults_that_were_altered() {
    let c = Cluster::start(0, |raw| {
        raw.pool_size = 2;
        raw.catalog_refresh = cluster::config::Span::secs(1);
    });
    let seen = |name: &str| {
        let mut new = Raw::login(c.port, &[]);
        let answer = ok(&mut new, &format!("show {name}"));
        let shown = answer.iter().find_map(|s| s.strip_prefix("D ")).expect("a row").to_owned();
        // At login, or with the answer when the connection was replaced in between.
        let at_login = new.settings.iter().map(|(n, v)| format!("{n}={v}"));
        let later = answer.iter().filter_map(|s| s.strip_prefix("S ")).map(str::to_owned);
        let all: Vec<String> = at_login.chain(later).collect();
        let of = |s: &&String| s.split_once('=').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        let told = all.iter().rfind(of).and_then(|s| s.split_once('=')).map(|(_, v)| v.to_owned());
        assert!(told.is_none() || told.as_ref() == Some(&shown), "told {told:?}, shown {shown}");
        shown
    };
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set lock_timeout = '3s'");
    assert_eq!(seen("work_mem"), "4MB");
    ok(&mut a, "alter role app set work_mem = '7MB'");
    wait_for("new sessions to have the role's setting", || (seen("work_mem") == "7MB").then_some(()));
    ok(&mut a, "alter database app set timezone = 'Asia/Tokyo'");
    wait_for("new sessions to have the database's setting", || (seen("timezone") == "Asia/Tokyo").then_some(()));
    // It reaches those that live, too, which are told, but for what they have set themselves.
    let mut told = ok(&mut a, "alter role app set lock_timeout = '9s'");
    wait_for("new sessions to have that", || (seen("lock_timeout") == "9s").then_some(()));
    wait_for("the living session to have the rest", || {
        let answer = ok(&mut a, "select current_setting('work_mem'), current_setting('timezone')");
        let there = answer.contains(&"D 7MB Asia/Tokyo".to_owned());
        told.extend(answer);
        there.then_some(())
    });
    told.retain(|s| s.starts_with("S "));
    assert_eq!(told, ["S TimeZone=Asia/Tokyo"], "once");
    assert_eq!(value(&mut a, "show lock_timeout"), "3s");
    // By somebody else.
    c.nodes[0].psql("alter role app reset work_mem");
    wait_for("new sessions to have the server's setting", || (seen("work_mem") == "4MB").then_some(()));
    assert_eq!(value(&mut a, "show lock_timeout"), "3s");
}

/// RESET leads back to the client's own startup packet, whoever used the connection before.
#[test]
fn a_reset_leads_back_to_what_the_client_began_with() {
    let c = two_servers();
    let startup = [("DateStyle", "German"), ("options", "-c work_mem=7MB -c search_path=a,b")];
    let mut other = Raw::login(c.port, &[]);
    let (mut pooled, mut direct) = (Raw::login(c.port, &startup), Raw::login(c.nodes[0].port, &startup));
    for sql in [
        "show datestyle",
        "set datestyle = 'SQL, DMY'",
        "reset datestyle",
        "show datestyle",
        "set work_mem = '1MB'; set search_path = c",
        "begin; reset work_mem; rollback",
        "show work_mem",
        "reset all",
        "show work_mem",
        "show search_path",
        "set datestyle to default",
        "set search_path = d",
        "discard all",
        "show search_path",
        "show datestyle",
    ] {
        ok(&mut other, "set datestyle = 'Postgres'; set work_mem = '2MB'");
        assert_eq!(pooled.query(sql), direct.query(sql), "{sql}");
        ok(&mut other, "reset all");
    }
}

/// What ends with its transaction binds nobody beyond it.
#[test]
fn locks_and_objects_of_a_transaction_pin_nothing() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    for sql in [
        "select pg_advisory_xact_lock(1)",
        "begin; select pg_try_advisory_xact_lock_shared(2); commit",
        "begin; select lo_create(4711); select lo_open(4711, 131072); commit",
        "begin; declare c cursor for select 1; fetch c; commit",
        "begin; set local work_mem = '1MB'; select set_config('work_mem', '2MB', true); commit",
        "begin; set transaction isolation level serializable; set constraints all deferred; commit",
    ] {
        ok(&mut a, sql);
        ok(&mut a, "select 1");
        assert_eq!(c.counter("pgtenure_proxy_pins_total"), 0.0, "{sql}");
    }
}
