//! What functions leave in the session that calls them, and relations in one that uses them, under transaction pooling: it
//! is the caller's, on whichever connection, and nobody else's, though no text names it.

use super::common::raw::{Raw, block, ok, two_servers, value};
use super::common::{Cluster, bin, has, wait_for};
use proxy::wire::codec::message;
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
    create function limits() returns text language plpgsql security definer as
        $$ begin return set_config('temp_file_limit', '1GB', false); end $$;
    create function clause() returns text language sql set work_mem = '5MB' as 'select current_setting(''work_mem'')';
    create table t(a int); grant all on t to app";
const RELATIONS: &str = "create extension pg_trgm;
    create function set_who() returns trigger language plpgsql as
        $$ begin perform set_config('app.who', tg_table_name, false); return new; end $$;
    create table audited(a int primary key);
    create table whole(a int) partition by range (a);
    create table piece partition of whole for values from (0) to (10);
    create table kid(a int references audited on delete cascade);
    create trigger t before insert on audited for each row execute function set_who();
    create trigger t before insert on piece for each row execute function set_who();
    create trigger t after delete on kid for each row execute function set_who();
    create trigger emptied before truncate on piece for each statement execute function set_who();
    create function set_default() returns text language sql as $$ select set_config('app.who', 'default', false) $$;
    create table defaulted(a int, b text default set_default());
    create table checked(a int check (set_config('app.who', 'check', false) is not null));
    create domain says as text check (set_config('app.who', value, false) is not null);
    create domain over_says as says;
    create domain says_itself as text default set_default();
    create type pair as (a int, b over_says);
    create table of_domain(a over_says);
    create table of_default(a int, b says_itself);
    create table of_array(a says[]);
    create table of_pair(a pair);
    create table ruled(a int);
    create rule r as on insert to ruled do also select set_config('app.who', 'rule', false);
    create view shows as select set_config('app.who', 'view', false) as a;
    create view over as select a from audited;
    create view outermost as select a from shows;
    create function fills() returns void language plpgsql as $$ begin insert into audited values (2); end $$;
    create function my_lock(bigint) returns void language internal strict as 'pg_advisory_lock_int8';
    create function my_unlocks() returns void language internal as 'pg_advisory_unlock_all';
    create table \"Odd one\"(a int);
    create trigger t before insert on \"Odd one\" for each row execute function set_who();
    grant all on all tables in schema public to app;
    grant set on parameter session_replication_role to app";
/// What nobody has who has done nothing.
const NOTHING: &str = "select current_setting('work_mem'), current_user, \
     coalesce(current_setting('app.who', true), ''), to_regclass('made') is null, \
     (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
     (select count(*) from pg_listening_channels()), current_setting('session_replication_role')";

fn pinned(c: &Cluster) -> f64 {
    c.counter("pgtenure_proxy_pinned_sessions")
}

/// `call` leaves what `check` says, bound to its server or not, to who has called it and to nobody else.
fn is_its_callers(c: &Cluster, call: &str, pins: bool, (check, want): (&str, &str)) {
    if call.contains("query_to_xml") && !has("libxml2") {
        return;
    }
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, call);
    // The server is asked behind the answer.
    wait_for(call, || (pinned(c) == f64::from(u8::from(pins))).then_some(()));
    // It needs the other connection, unless it is bound.
    let mut other = block(c);
    assert_eq!(value(&mut a, check), want, "{call}");
    drop(a);
    ok(&mut other, "commit");
    wait_for("its end", || (pinned(c) == 0.0).then_some(()));
    let mut both = [block(c), block(c)];
    for session in &mut both {
        assert_eq!(value(session, NOTHING), "4MB app  t 0 0 origin", "{call}");
    }
    both.iter_mut().for_each(|session| _ = ok(session, "commit"));
}

/// The connections' catalog knows the functions, and what was defined before them.
fn known(c: &Cluster) {
    let mut first = Raw::login(c.port, &[]);
    wait_for("the functions to be known", || {
        ok(&mut first, "select locks()");
        (pinned(c) == 1.0).then_some(())
    });
    ok(&mut first, "select unlocks()");
    wait_for("a function to end what a function has begun", || (pinned(c) == 0.0).then_some(()));
}

#[test]
fn what_a_function_leaves_is_its_callers_and_nobody_elses() {
    let c = two_servers();
    c.nodes[0].psql("create role r1; grant r1 to app");
    c.nodes[0].psql(FUNCTIONS);
    known(&c);
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
        ("select clause()", false, "show work_mem", "4MB"),
    ] {
        is_its_callers(&c, call, pins, (check, want));
    }
    // What only its owner may set, nobody may take back by name.
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "select limits()");
    let mut both = [block(&c), block(&c)];
    both.iter_mut().for_each(|session| assert_eq!(value(session, "show temp_file_limit"), "-1"));
    both.iter_mut().for_each(|session| _ = ok(session, "commit"));
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
    // While nobody is connected to a database its catalog need not be known.
    let _somebody = Raw::login(c.port, &[]);
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
            wait_for(&format!("{does}, own: {own}"), || (pinned(&c) == f64::from(u8::from(pins))).then_some(()));
            let mut other = block(&c);
            assert_eq!(value(&mut a, check), want, "{does}, own: {own}");
            drop(a);
            ok(&mut other, "commit");
            wait_for("its end", || (pinned(&c) == 0.0).then_some(()));
            let mut both = [block(&c), block(&c)];
            for session in &mut both {
                assert_eq!(value(session, NOTHING), "4MB app  t 0 0 origin", "{does}, own: {own}");
            }
            both.iter_mut().for_each(|session| _ = ok(session, "commit"));
        }
    }
}

/// The first client of a database may call at once what nobody has read yet: its login waits for that.
#[test]
fn what_a_function_leaves_of_which_nothing_was_known_before_is_its_callers_and_nobody_elses() {
    let c = two_servers();
    c.nodes[0].psql("create role r1; grant r1 to app");
    c.nodes[0].psql(FUNCTIONS);
    is_its_callers(&c, "select sets_own('ann')", false, ("show app.who", "ann"));
}

/// Where nothing can be read of what functions and relations leave, the server is asked behind every statement that may run
/// any. It does not tell of custom settings: their callers may miss them, and nobody else gets them.
#[test]
fn what_is_left_where_no_catalog_can_be_read_is_nobody_elses() {
    let c = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.pool_size = 2;
        raw.monitor_user = "nobody".to_owned();
    });
    c.nodes[0].psql("create role r1; grant r1 to app");
    c.nodes[0].psql(FUNCTIONS);
    c.nodes[0].psql(RELATIONS);
    c.nodes[0].psql(
        "create view sets_it as select sets() as a; grant select on sets_it to app;
        create function locks_it() returns trigger language plpgsql as $$ begin perform locks(); return new; end $$;
        create table locked(a int); grant all on locked to app;
        create trigger t before insert on locked for each row execute function locks_it()",
    );
    const LOCKS: &str = "select count(*) from pg_locks where locktype = 'advisory'";
    for (call, pins, check, want) in [
        ("select sets()", false, "show work_mem", "9MB"),
        ("select a from sets_it", false, "show work_mem", "9MB"),
        ("select becomes('r1')", false, "select current_user", "r1"),
        ("begin; select sets(); rollback", false, "show work_mem", "4MB"),
        ("select makes()", true, "select count(*) from made", "0"),
        ("select outer_one()", true, LOCKS, "1"),
        ("insert into locked values (1)", true, LOCKS, "1"),
        ("select listens()", true, "select * from pg_listening_channels()", "abc"),
        ("select sets_own('ann')", false, "select 1", "1"),
        ("insert into audited values (1)", false, "select 1", "1"),
    ] {
        is_its_callers(&c, call, pins, (check, want));
    }
}

/// A FunctionCall names its function by number.
#[test]
fn what_a_function_leaves_that_is_called_by_number_is_its_callers_and_nobody_elses() {
    let c = two_servers();
    c.nodes[0].psql(FUNCTIONS);
    let of = |name: &str| c.nodes[0].psql(&format!("select '{name}'::regproc::oid")).parse().expect("a number");
    for (name, pins, check, want) in [
        ("sets", false, "show work_mem", "9MB"),
        ("locks", true, "select count(*) from pg_locks where locktype = 'advisory'", "1"),
    ] {
        let function: u32 = of(name);
        let mut a = Raw::login(c.port, &[]);
        a.write(|out| {
            message(out, b'F', |b| {
                b.extend_from_slice(&function.to_be_bytes());
                b.extend_from_slice(&[0; 6]);
            });
        });
        assert_eq!(a.until_ready(), ["V", "Z I"]);
        wait_for(name, || (pinned(&c) == f64::from(u8::from(pins))).then_some(()));
        let mut other = block(&c);
        assert_eq!(value(&mut a, check), want, "{name}");
        drop(a);
        ok(&mut other, "commit");
        wait_for("its end", || (pinned(&c) == 0.0).then_some(()));
        let mut both = [block(&c), block(&c)];
        for session in &mut both {
            assert_eq!(value(session, NOTHING), "4MB app  t 0 0 origin", "{name}");
        }
    }
}

/// What no text names: triggers, also of partitions and behind foreign keys, defaults, checks, domains, rules, views; functions in C
/// under other names; and the odd ways to change a setting.
#[test]
fn what_a_relation_runs_is_its_users_and_nobody_elses() {
    let c = two_servers();
    c.nodes[0].psql(RELATIONS);
    c.nodes[0].psql("create role r1; grant r1 to app");
    c.nodes[0].psql(FUNCTIONS);
    known(&c);
    const WHO: &str = "show app.who";
    for (call, pins, check, want) in [
        ("insert into audited values (1)", false, WHO, "audited"),
        ("select fills()", false, WHO, "audited"),
        ("insert into over values (3)", false, WHO, "audited"),
        (
            "begin; insert into audited values (4); rollback",
            false,
            "select coalesce(current_setting('app.who', true), '') = ''",
            "t",
        ),
        ("insert into whole values (1)", false, WHO, "piece"),
        ("truncate piece", false, WHO, "piece"),
        ("insert into kid values (1)", false, "select coalesce(current_setting('app.who', true), '') = ''", "t"),
        ("delete from audited where a = 1", false, WHO, "kid"),
        ("insert into defaulted values (1)", false, WHO, "default"),
        ("insert into checked values (1)", false, WHO, "check"),
        ("insert into of_domain values ('domain')", false, WHO, "domain"),
        ("insert into of_default values (1)", false, WHO, "default"),
        ("insert into of_array values (array['array'])", false, WHO, "array"),
        ("insert into of_pair values (row(1, 'pair'))", false, WHO, "pair"),
        ("select 'cast'::over_says", false, WHO, "cast"),
        ("insert into ruled values (1)", false, WHO, "rule"),
        ("insert into \"Odd one\" values (1)", false, WHO, "Odd one"),
        ("select * from shows", false, WHO, "view"),
        ("select * from outermost", false, WHO, "view"),
        ("do $$ begin insert into defaulted values (1); end $$", false, WHO, "default"),
        ("select my_lock(5)", true, "select count(*) from pg_locks where locktype = 'advisory'", "1"),
        ("select my_lock(5); select my_unlocks()", false, "select 1", "1"),
        ("update pg_settings set setting = '9MB' where name = 'work_mem'", false, "show work_mem", "9MB"),
        ("select set_limit(0.25)", false, "select show_limit()", "0.25"),
        ("set session_replication_role = 'replica'", false, "show session_replication_role", "replica"),
    ] {
        is_its_callers(&c, call, pins, (check, want));
    }
    let bound = c.counter("pgtenure_proxy_pins_total");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "select count(*) from audited, whole, defaulted, over");
    ok(&mut a, "select setting from pg_settings where name = 'work_mem'");
    assert_eq!(c.counter("pgtenure_proxy_pins_total"), bound, "what is only read leaves nothing");
}

const UNSEEN: &str = "
    create function by_operator(int, int) returns int language plpgsql as
        $$ begin perform set_config('app.who', 'operator', false); return 1; end $$;
    create operator |+| (leftarg = int, rightarg = int, function = by_operator);
    create table combined(a int check (a |+| 1 = 1));
    create type made_of as (a int);
    create function by_cast(int) returns made_of language plpgsql as
        $$ begin perform set_config('app.who', 'cast', false); return row(1); end $$;
    create cast (int as made_of) with function by_cast(int);
    create function by_step(int, int) returns int language plpgsql as
        $$ begin perform set_config('app.who', 'aggregate', false); return 1; end $$;
    create aggregate steps(int) (sfunc = by_step, stype = int, initcond = '0');
    create function by_index(int) returns int language plpgsql immutable as
        $$ begin perform set_config('app.who', 'index', false); return $1; end $$;
    create table indexed(a int);
    create index on indexed (by_index(a));
    create materialized view kept as select locks()::text as a;
    alter materialized view kept owner to app;
    create function runs(q text) returns void language plpgsql as $$ begin execute q; end $$;
    create function runs_it() returns void language sql as $$ select runs('select sets()') $$;
    create extension tablefunc;
    create table jobs(q text);
    insert into jobs values ('set app.who = ''stored''');
    create function runs_stored() returns void language plpgsql as $$ begin execute (select q from jobs); end $$;
    create function sets_any(k text, v text) returns void language plpgsql as
        $$ begin execute format('set app.%I = %L', k, v); end $$;
    create function sets_named(n text, v text) returns void language plpgsql as
        $$ begin execute 'set ' || n || ' = ' || quote_literal(v); end $$;
    create function sets_piecewise(k text, v text) returns void language plpgsql as
        $$ begin execute concat_ws(' ', 'set', 'app.' || k, '=', quote_literal(v)); end $$;
    create function sets_concat(k text, v text) returns void language plpgsql as
        $$ begin execute concat('SET', ' ', k, ' = ', quote_literal(v)); end $$;
    create function sets_apart(k text, v text) returns void language plpgsql as
        $$ begin execute ('SET' || ' ' || k || ' = ' || quote_literal(v)); end $$;
    create function sets_joined(k text, v text) returns void language plpgsql as
        $$ begin execute array_to_string(array['set', k, '=', quote_literal(v)], ' '); end $$;
    create function sets_behind(prefix text, k text, v text) returns void language plpgsql as
        $$ begin execute prefix || 'set ' || k || ' = ' || quote_literal(v); end $$;
    create function runs_named(n text) returns void language plpgsql as
        $$ begin execute (select q from jobs where q like 'set' || n); end $$;
    grant all on all tables in schema public to app";

/// What is called under other names than its own, and what nothing tells of.
#[test]
fn what_is_called_unseen_leaves_it_to_its_callers_and_nobody_else() {
    const WHO: &str = "show app.who";
    const MEMORY: &str = "show work_mem";
    const LOCKS: &str = "select count(*) from pg_locks where locktype = 'advisory'";
    let c = two_servers();
    c.nodes[0].psql(FUNCTIONS);
    c.nodes[0].psql(UNSEEN);
    for (call, pins, check, want) in [
        ("select 1 |+| 2", false, WHO, "operator"),
        ("select 1 operator(public.|+|) 2", false, WHO, "operator"),
        ("insert into combined values (1)", false, WHO, "operator"),
        ("select 5::made_of", false, WHO, "cast"),
        ("select cast(5 as public.\"made_of\")", false, WHO, "cast"),
        ("select steps(1)", false, WHO, "aggregate"),
        ("select steps(1) over ()", false, WHO, "aggregate"),
        ("insert into indexed values (1)", false, WHO, "index"),
        ("refresh materialized view kept", true, LOCKS, "1"),
        ("select runs('set work_mem = ''9MB''')", false, MEMORY, "9MB"),
        ("select runs_it()", false, MEMORY, "9MB"),
        ("select query_to_xml('select sets()', true, true, '')", false, MEMORY, "9MB"),
        ("select * from crosstab('select 1::text, ''a''::text, sets()') as t(a text, b text)", false, MEMORY, "9MB"),
        ("select runs_stored()", false, "select 1", "1"),
        ("select sets_piecewise('who', 'pieces')", false, "select 1", "1"),
        ("select sets_any('who', 'any')", true, WHO, "any"),
        ("select sets_named('app.who', 'named')", true, WHO, "named"),
        ("do $$ begin execute (select q from jobs); end $$", false, "select 1", "1"),
        ("select sets_concat('app.who', 'concat')", false, "select 1", "1"),
        ("select sets_apart('app.who', 'apart')", false, "select 1", "1"),
        ("select sets_joined('app.who', 'joined')", false, "select 1", "1"),
        ("select sets_behind('', 'app.who', 'behind')", false, "select 1", "1"),
        ("select runs_named('%')", false, "select 1", "1"),
        ("do $$ begin execute (select q from jobs where q <> 'x'); end $$", false, "select 1", "1"),
        ("do $$ declare r record; begin select * into r from jobs; execute r.q || ';'; end $$", false, "select 1", "1"),
        ("do $$ begin execute concat('SET', ' ', 'app', '.', 'who = 1'); end $$", false, "select 1", "1"),
        ("do E'begin execute q from jobs; end'", false, "select 1", "1"),
        ("do $$ begin execute '/* app */ ' || ' set ' || 'app.' || 'who = 1'; end $$", false, "select 1", "1"),
        ("do $$ begin execute '/* app */ set ' || 'app' || '.who = 1'; end $$", false, "select 1", "1"),
        ("do $$ begin execute 'select 1; ' || q from jobs; end $$", false, "select 1", "1"),
        ("do $$ begin execute 'set app.' || 'who = ''done'''; end $$", true, WHO, "done"),
        ("do $$ begin perform set_config('app.' || 'who', 'done', false); end $$", true, WHO, "done"),
    ] {
        is_its_callers(&c, call, pins, (check, want));
    }
    let bound = c.counter("pgtenure_proxy_pins_total");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "select count(*), sum(1 + 1) from indexed, combined, kept");
    ok(&mut a, "insert into t values (1::bigint)");
    assert_eq!(c.counter("pgtenure_proxy_pins_total"), bound, "the rest leaves nothing");
}

/// Where what no text shows leaves something, the server is asked behind every statement that may run it.
#[test]
fn what_may_be_called_anywhere_leaves_it_to_its_callers_and_nobody_else() {
    for (made, call) in [
        (
            "create function on_command() returns event_trigger language plpgsql as $$ begin perform sets(); end $$;
            create event trigger e on ddl_command_end execute function on_command();
            grant create on schema public to app",
            "create table x(a int)",
        ),
        (
            "create type tiny as (a int);
            create function by_cast(tiny) returns int language plpgsql as $$ begin perform sets(); return 1; end $$;
            create cast (tiny as int) with function by_cast(tiny) as implicit",
            "select abs(row(1)::tiny)",
        ),
    ] {
        let c = two_servers();
        c.nodes[0].psql(FUNCTIONS);
        c.nodes[0].psql(made);
        is_its_callers(&c, call, false, ("show work_mem", "9MB"));
    }
}

/// A DROP that a savepoint undoes has not ended anything.
#[test]
fn a_temporary_table_whose_drop_is_undone_still_binds() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "create temp table made(a int)");
    for sql in ["begin", "savepoint s", "drop table made", "rollback to s", "commit"] {
        ok(&mut a, sql);
    }
    let mut other = block(&c);
    assert_eq!((value(&mut a, "select count(*) from made"), pinned(&c)), ("0".to_owned(), 1.0));
    for sql in ["begin", "drop table made", "rollback"] {
        ok(&mut a, sql);
    }
    assert_eq!((value(&mut a, "select count(*) from made"), pinned(&c)), ("0".to_owned(), 1.0));
    ok(&mut a, "drop table made");
    wait_for("its end", || (pinned(&c) == 0.0).then_some(()));
    ok(&mut other, "commit");
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

/// Who looks for functions that tell of their server waits for nobody's DDL: then it goes by what was found before.
#[test]
fn a_function_that_tells_of_its_server_stays_on_the_primary_while_a_lock_hides_bodies() {
    let c = Cluster::start(1, |raw| raw.workers = 1);
    c.nodes[0].psql(
        "create table locked(a int); grant all on schema public to app; create view over_locked as select a from locked;
         create function hidden() returns bigint stable language sql begin atomic select count(*) from locked; end;
         create function here() returns int stable language sql as 'select inet_server_port()';
         create function node() returns text stable language sql as $$ select current_setting('cluster_name') $$",
    );
    let mut a = Raw::login(c.port, &[]);
    let serves = |a: &mut Raw| wait_for("a read on the standby", || (value(a, "select node()") == "n2").then_some(()));
    serves(&mut a);
    assert_eq!(value(&mut a, "select here()"), c.nodes[0].port.to_string());
    let mut holder = Raw::login(c.nodes[0].port, &[("user", "postgres")]);
    ok(&mut holder, "begin");
    ok(&mut holder, "lock table locked in access exclusive mode");
    // Reads of who has defined something go to the primary until the catalog has been read again.
    ok(&mut a, "create function more() returns int language sql as 'select 1'");
    ok(&mut a, "create function now_here() returns int stable language sql as 'select inet_server_port()'");
    serves(&mut a);
    // So does one that has come since.
    for call in ["select here()", "select now_here()"] {
        assert_eq!(value(&mut a, call), c.nodes[0].port.to_string(), "{call}");
    }
}

/// Tables are large, and new ones are read all day: who does nothing keeps none that is not the newest.
#[test]
fn what_was_known_of_functions_is_gone_once_nobody_works_with_it() {
    let c = Cluster::start(0, |_| {});
    let known = |count: f64| {
        let what = format!("{count} tables of functions");
        wait_for(&what, || (c.counter("pgtenure_proxy_catalogs_kept") == count).then_some(()));
    };
    let mut idle = Raw::login(c.port, &[]);
    ok(&mut idle, "select 1");
    let mut other = block(&c);
    c.psql("do $$ begin end $$").unwrap();
    // The newest, and that of the block.
    known(2.0);
    ok(&mut other, "commit");
    known(1.0);
    assert_eq!(value(&mut idle, "select 1"), "1");
}
