//! What functions leave in the session that calls them, under transaction pooling: it is the caller's, on whichever
//! connection, and nobody else's, though no text names it.

mod common;

use common::raw::{Raw, block, ok, two_servers, value};
use common::{Cluster, bin, wait_for};
use std::process::Command;

const FUNCTIONS: &str = "create function sets() returns text language plpgsql as
        $$ begin return set_config('work_mem', '9MB', false); end $$;
    create function sets_own(v text) returns void language plpgsql as
        $$ begin perform set_config('app.who', v, false); end $$;
    create function sets_here() returns text language sql as $$ select set_config('app.who', 'here', true) $$;
    create function becomes(r text) returns void language plpgsql as
        $$ begin execute format('set role %I', r); end $$;
    create function makes() returns void language plpgsql as $$ begin create temp table made(a int); end $$;
    create function locks() returns void language sql as 'select pg_advisory_lock(5)';
    create function outer_one() returns void language plpgsql as $$ begin perform locks(); end $$;
    create function unlocks() returns void language sql as 'select pg_advisory_unlock_all()';
    create function listens() returns void language plpgsql as $$ begin execute 'listen abc'; end $$;
    create function updates() returns void language plpgsql as
        $$ begin update t set a = 1; end $$;
    create function ordinary(action text) returns int language plpgsql as $$ begin
        if action = 'set' then return 1; elsif action = 'reset' then raise notice 'Reset password of %', action; end if;
        perform length(concat('load', action)); return 2; end $$;
    create function \"Odd sets\"() returns void language plpgsql as $$ begin set role r1; end $$;
    create function locks_atomic() returns void language sql begin atomic select pg_advisory_lock(5); end;
    create function sets_atomic() returns text language sql return set_config('app.who', 'atom', false);
    create function makes_there() returns void language plpgsql as $$ begin create table pg_temp.made(a int); end $$;
    create function executes() returns void language plpgsql as $$ begin execute 'select locks()'; end $$;
    create function prepares() returns void language plpgsql as $$ begin execute 'prepare p1 as select 7'; end $$;
    create table t(a int); grant all on t to app";
/// What nobody has who has done nothing.
const NOTHING: &str = "select current_setting('work_mem'), current_user, \
     coalesce(current_setting('app.who', true), ''), to_regclass('made') is null, \
     (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
     (select count(*) from pg_listening_channels())";
fn pinned(c: &Cluster) -> f64 {
    c.counter("pgtenure_proxy_pinned_sessions")
}

#[test]
fn what_a_function_leaves_is_its_callers_and_nobody_elses() {
    let c = two_servers();
    c.nodes[0].psql("create role r1; grant r1 to app");
    c.nodes[0].psql(FUNCTIONS);
    let mut first = Raw::login(c.port, &[]);
    wait_for("the functions to be known", || {
        ok(&mut first, "select locks()");
        (pinned(&c) == 1.0).then_some(())
    });
    ok(&mut first, "select unlocks()");
    wait_for("a function to end what a function has begun", || (pinned(&c) == 0.0).then_some(()));
    for (call, pins, check, want) in [
        ("select sets()", false, "show work_mem", "9MB"),
        ("select public.sets_own('ann')", false, "show app.who", "ann"),
        ("select becomes('r1')", false, "select current_user", "r1"),
        ("begin; select sets(); rollback", false, "show work_mem", "4MB"),
        ("select sets_here()", false, "select coalesce(current_setting('app.who', true), '') = ''", "t"),
        ("select makes()", true, "select count(*) from made", "0"),
        ("begin; select makes(); rollback", false, "select to_regclass('made') is null", "t"),
        ("select outer_one()", true, "select count(*) from pg_locks where locktype = 'advisory'", "1"),
        ("select listens()", true, "select * from pg_listening_channels()", "abc"),
        ("select updates()", false, "select 1", "1"),
        ("select ordinary('x')", false, "select ordinary('set')", "1"),
        ("select \"Odd sets\"()", false, "select current_user", "r1"),
        ("select locks_atomic()", true, "select count(*) from pg_locks where locktype = 'advisory'", "1"),
        ("select sets_atomic()", false, "show app.who", "atom"),
        ("select makes_there()", true, "select count(*) from made", "0"),
        ("select executes()", true, "select count(*) from pg_locks where locktype = 'advisory'", "1"),
        ("select prepares()", true, "execute p1", "7"),
    ] {
        let mut a = Raw::login(c.port, &[]);
        ok(&mut a, call);
        // The server is asked behind the answer.
        wait_for(call, || (pinned(&c) == f64::from(u8::from(pins))).then_some(()));
        // It needs the other connection, unless it is bound.
        let mut other = block(&c);
        assert_eq!(value(&mut a, check), want, "{call}");
        drop(a);
        ok(&mut other, "commit");
        wait_for("its end", || (pinned(&c) == 0.0).then_some(()));
        let mut both = [block(&c), block(&c)];
        for session in &mut both {
            assert_eq!(value(session, NOTHING), "4MB app  t 0 0", "{call}");
        }
        both.iter_mut().for_each(|session| _ = ok(session, "commit"));
    }
    let bound = c.counter("pgtenure_proxy_pins_total");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "select updates(), sets_here(), ordinary('x')");
    assert_eq!(c.counter("pgtenure_proxy_pins_total"), bound, "what leaves nothing is not even asked about");
}

/// The catalog is read again some time after a function was made or changed; until then nothing is known of it, and the
/// server is asked what it has left.
#[test]
fn what_a_function_leaves_that_was_just_made_is_its_callers_and_nobody_elses() {
    let c = two_servers();
    c.nodes[0].psql("create role r1; grant r1 to app; grant create on schema public to app");
    c.nodes[0].psql("create function locks() returns void language sql as 'select pg_advisory_lock(5)'");
    let mut first = Raw::login(c.port, &[]);
    wait_for("the functions to be known", || {
        ok(&mut first, "select locks()");
        (pinned(&c) == 1.0).then_some(())
    });
    drop(first);
    wait_for("its end", || (pinned(&c) == 0.0).then_some(()));
    let body = |name: &str, does: &str| {
        format!("create or replace function {name}() returns void language plpgsql as $x$ begin {does}; end $x$")
    };
    for (does, pins, check, want) in [
        ("set role r1", false, "select current_user", "r1"),
        ("perform set_config('work_mem', '9MB', false)", false, "show work_mem", "9MB"),
        ("create temp table made(a int)", true, "select count(*) from made", "0"),
        ("perform pg_advisory_lock(5)", true, "select count(*) from pg_locks where locktype = 'advisory'", "1"),
        ("execute 'listen abc'", true, "select * from pg_listening_channels()", "abc"),
    ] {
        // Of another one by somebody else, whom the proxy does not see; of one's own, that was another a moment ago.
        for (own, name) in [(false, format!("new_{}", does.len())), (true, "changed".to_owned())] {
            let mut a = Raw::login(c.port, &[]);
            if own {
                ok(&mut a, &body(&name, does));
            } else {
                c.nodes[0].psql(&body(&name, does));
            }
            ok(&mut a, &format!("select {name}()"));
            wait_for(does, || (pinned(&c) == f64::from(u8::from(pins))).then_some(()));
            let mut other = block(&c);
            assert_eq!(value(&mut a, check), want, "{does}, own: {own}");
            drop(a);
            ok(&mut other, "commit");
            wait_for("its end", || (pinned(&c) == 0.0).then_some(()));
            let mut both = [block(&c), block(&c)];
            for session in &mut both {
                assert_eq!(value(session, NOTHING), "4MB app  t 0 0", "{does}, own: {own}");
            }
            both.iter_mut().for_each(|session| _ = ok(session, "commit"));
        }
    }
}

/// One body that is no UTF-8, in a database that does not say what it is, keeps no other part of the catalog from being
/// read.
#[test]
fn a_body_that_cannot_be_read_leaves_the_rest_of_the_catalog() {
    let c = Cluster::start(1, |raw| raw.workers = 1);
    c.nodes[0].psql("create database ascii template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'");
    let mut psql = Command::new(bin("psql"));
    let odd = "create function odd() returns void language plpgsql as E'begin -- \\xe9\\n set role r1; end'";
    psql.args([
        "-X",
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-d",
        "ascii",
        "-p",
        &c.nodes[0].port.to_string(),
        "-c",
        odd,
    ]);
    assert!(psql.status().expect("psql can be started").success());
    wait_for("a read on the standby", || {
        let mut psql = c.client("psql");
        psql.env("PGDATABASE", "ascii").args(["-XAtc", "select current_setting('cluster_name')"]);
        let output = psql.output().expect("psql can be started");
        (output.stdout.trim_ascii() == b"n2").then_some(())
    });
}
