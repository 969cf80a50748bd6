//! The state of a session under transaction pooling, against a real server: what a client sets, it sees, on whichever
//! connection serves it, and nobody else does.

#![allow(unreachable_pub, missing_docs, reason = "a test program has no public interface")]

mod columns;
#[path = "../common/mod.rs"]
mod common;
mod defaults;
mod dice;
mod functions;
mod in_time;
mod left;
mod listens;
mod local;
mod prepared;
mod shown;
mod sql_prepare;

use common::raw::{Raw, bind, block, execute, ok, parse, run, sync, two_servers, value};
use common::{Cluster, wait_for};

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

/// Who may take on another user's rights keeps them for itself.
#[test]
fn an_authorization_follows_its_session_and_is_never_left_behind() {
    const WHO: &str = "select session_user, current_user, current_setting('is_superuser')";
    let c = Cluster::start(0, |raw| raw.pool_size = 1);
    c.nodes[0].psql("alter role app superuser; create role boss superuser; create role worker; create role odd");
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let mut direct = Raw::login(c.nodes[0].port, &[]);
    for sql in [
        "set session authorization boss",
        WHO,
        "set session authorization worker",
        WHO,
        "set role boss",
        "select 1",
        "begin; set session authorization boss; rollback",
        WHO,
        "begin; set local session authorization boss",
        WHO,
        "commit",
        WHO,
        "begin; set session authorization odd",
        "savepoint s",
        "set session authorization boss",
        WHO,
        "rollback to s",
        WHO,
        "commit",
        WHO,
        "reset session authorization",
        WHO,
        "set role worker",
        "set session authorization boss",
        WHO,
        "set session authorization default",
        WHO,
        "set session authorization worker",
        "set session authorization nobody",
        "discard all",
        WHO,
    ] {
        let (told, want) = (a.query(sql), direct.query(sql));
        assert_eq!(told, want, "{sql}");
        if told.last().is_some_and(|ready| ready == "Z I") {
            assert_eq!(ok(&mut b, WHO), ["T", "D app app on", "C SELECT 1", "Z I"], "behind {sql}");
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
