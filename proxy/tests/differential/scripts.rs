//! The scripts: what the protocol allows and drivers or people do, and its corners.

use super::copies::copies;
use super::names::names;
use super::script::{INT4, Script, TEXT};
use super::sql_names::sql_names;

/// Scripts short enough to be cut at every byte.
pub fn short() -> Vec<Script> {
    [simple(), extended(), errors(), portals(), names(), sql_names(), copies(), settings()].concat()
}

fn simple() -> Vec<Script> {
    vec![
        Script::new("simple queries").query("select 1").answers(4).query("select 'a', null, ''").query("select 1 where false"),
        Script::new("nothing to run").query("").query(";").query("-- a comment").query("/* one */ ; -- two"),
        Script::new("several statements").query("select 1; select 2; ; select 3").query("select 1; select 1/0; select 2"),
        Script::new("an implicit transaction").query("insert into t values (10, 'x'); select 1/0").query("select id from t order by 1"),
        Script::new("a block begun inside").query(
            "insert into t values (10, 'x'); begin; insert into t values (11, 'y'); rollback; select count(*) from t",
        ),
        Script::new("a commit inside").query("begin; insert into t values (12, 'z'); commit; select 1/0").query("select count(*) from t"),
        Script::new("blocks").query("begin").query("select 1").query("select 1/0").query("select 1").query("").query("commit")
            .query("commit").query("begin").query("begin").query("rollback and chain").query("commit and chain").query("rollback"),
        Script::new("savepoints").query("begin").query("savepoint a").query("select nothing").query("rollback to a")
            .query("select 1; release a").query("rollback to a").query("rollback"),
        Script::new("a deferred constraint fails at commit").query("begin; insert into parent_of values (99)").query("commit")
            .query("select count(*) from parent_of"),
        Script::new("notices").query("do $$ begin raise notice 'one'; raise warning 'two' using hint = 'h', detail = 'd'; end $$")
            .query("rollback").query("select noisy(3)").query("drop table if exists never_there"),
        Script::new("a procedure that commits").query("call commits()").query("begin").query("call commits()").query("rollback"),
        Script::new("a block of code that commits").query("do $$ begin perform 1; commit; perform 2; rollback; end $$").query("begin")
            .query("do $$ begin commit; end $$").query("commit").query("select 1"),
        Script::new("words for blocks").query("start transaction").query("end and chain").query("abort and no chain").query("end").query("abort")
            .query("begin isolation level nonsense").query("begin isolation level serializable, read only, deferrable; show transaction_deferrable; end work")
            .query("set transaction snapshot 'nowhere'").query("begin isolation level repeatable read; set transaction snapshot 'nowhere'").query("rollback"),
        Script::new("explain and show").query("explain (costs off) select 1").query("show server_version_num").query("show nothing"),
        Script::new("syntax errors").query("selec 1").query("select * from nowhere").query("select 'unterminated").query("select $$x"),
        Script::new("tags").query("create temp table tagged as select 1 as x").query("update t set word = 'u' where id < 3")
            .query("delete from t where id = 3").query("select * into temp tagged_too from t").query("truncate t")
            .query("drop table tagged; drop table tagged_too").query("listen l; unlisten l").query("vacuum t").query("begin; vacuum t").query("rollback"),
        Script::new("a function call").function(177, &["20", "22"]).function(177, &["1"]).function(999_999, &[]).query("begin")
            .function(177, &["1", "x"]).function(177, &["1", "2"]).query("rollback").function(177, &["1", "2"]),
        Script::new("cursors by SQL").query("begin").query("declare c cursor for select * from generate_series(1, 5)")
            .query("fetch 2 from c").query("move 1 in c").query("fetch all c").query("close c").query("fetch c").query("rollback"),
        Script::new("SQL-level prepare").query("prepare p(int) as select $1 + 1").query("execute p(1)").query("prepare p as select 2")
            .query("deallocate p").query("execute p(1)").query("prepare q as select 1; execute q; deallocate q"),
        Script::new("notifications to oneself").query("listen here").query("notify here, 'hello'").query("begin; notify here, 'a'; notify here, 'a'; notify here, 'b'; commit")
            .query("begin; notify here, 'never'; rollback").query("unlisten here"),
        Script::new("large objects").query("begin; select lo_create(424242); select lo_put(424242, 0, 'abc'); select lo_get(424242); select lo_unlink(424242); commit"),
        Script::new("two-phase commit").query("begin; insert into t values (50, 'two')").query("prepare transaction 'gid'")
            .query("select count(*) from t where id = 50").query("commit prepared 'gid'").query("select count(*) from t where id = 50"),
    ]
}

fn extended() -> Vec<Script> {
    vec![
        Script::new("one statement").run("select $1::int + 1, $2::text", &[Some("41"), None]).sync().answers(5),
        Script::new("described")
            .parse("", "select $1::int, word from t where id = $1", &[INT4])
            .describe(b'S', "")
            .bind("", "", &[Some("2")])
            .describe(b'P', "")
            .execute("", 0)
            .sync(),
        Script::new("no rows to describe")
            .parse("", "insert into t values ($1, $2)", &[0, TEXT])
            .describe(b'S', "")
            .bind("", "", &[Some("77"), Some("w")])
            .describe(b'P', "")
            .execute("", 0)
            .sync(),
        Script::new("binary")
            .parse("", "select $1::int4, $2::text, now() - now()", &[])
            .bind_as("", "", &[1, 0], &[Some(&[0, 0, 1, 0]), Some(b"x")], &[1])
            .execute("", 0)
            .sync(),
        Script::new("an empty query")
            .parse("", "", &[])
            .describe(b'S', "")
            .bind("", "", &[])
            .describe(b'P', "")
            .execute("", 0)
            .sync(),
        Script::new("pipelined units")
            .run("insert into t values (20, 'a')", &[])
            .sync()
            .run("select count(*) from t", &[])
            .sync()
            .run("select 1", &[])
            .run("select 2", &[])
            .sync()
            .sync(),
        Script::new("flush")
            .parse("f", "select $1::int", &[])
            .describe(b'S', "f")
            .flush()
            .answers(3)
            .bind("", "f", &[Some("1")])
            .execute("", 0)
            .flush()
            .answers(3)
            .execute("", 0)
            .flush()
            .answers(1)
            .sync()
            .answers(1)
            .close(b'S', "f")
            .flush()
            .answers(1)
            .sync(),
        Script::new("flush behind what needs no server")
            .parse("x", "select 1", &[])
            .sync()
            .answers(2)
            .run("select 2", &[])
            .close(b'S', "x")
            .flush()
            .answers(5)
            .sync()
            .answers(1)
            .run("select 3", &[])
            .parse("y", "select 1", &[])
            .flush()
            .answers(5)
            .sync(),
        Script::new("flush keeps the transaction")
            .run("insert into t values (30, 'f')", &[])
            .flush()
            .answers(3)
            .run("select count(*) from t", &[])
            .flush()
            .answers(4)
            .run("select 1/0", &[])
            .flush()
            .answers(2)
            .sync()
            .query("select count(*) from t where id = 30"),
        Script::new("a query without a sync before")
            .run("select 1", &[])
            .query("select 2")
            .run("insert into t values (31, 'q')", &[])
            .query("select count(*) from t"),
        Script::new("blocks by extended messages")
            .run("begin", &[])
            .sync()
            .run("insert into t values (40, 'b')", &[])
            .sync()
            .run("select 1/0", &[])
            .sync()
            .run("select 1", &[])
            .sync()
            .run("rollback", &[])
            .sync()
            .run("select count(*) from t", &[])
            .sync(),
        Script::new("begin and commit in one unit")
            .run("begin", &[])
            .run("insert into t values (41, 'c')", &[])
            .run("commit", &[])
            .run("select count(*) from t", &[])
            .sync(),
        Script::new("a unit that cannot be in a block").run("select 1", &[]).run("vacuum t", &[]).sync(),
        Script::new("several statements in one Parse").parse("", "select 1; select 2", &[]).sync(),
        Script::new("wrong numbers")
            .parse("", "select $1::int", &[])
            .bind("", "", &[])
            .sync()
            .bind("", "", &[Some("x")])
            .sync()
            .bind_as("", "", &[7], &[Some(b"1")], &[])
            .sync()
            .bind("", "", &[Some("99999999999")])
            .execute("", 0)
            .sync(),
        Script::new("polymorphic parameters")
            .parse("", "select $1", &[])
            .describe(b'S', "")
            .sync()
            .parse("", "select $1 + $2", &[])
            .sync()
            .parse("", "select $2::int", &[])
            .sync(),
    ]
}

fn errors() -> Vec<Script> {
    vec![
        Script::new("skip to the sync").run("select 1", &[]).run("select nothing", &[]).run("select 2", &[]).describe(b'S', "")
            .close(b'S', "").flush().sync().run("select 3", &[]).sync(),
        Script::new("a query is skipped as well").bind("", "nowhere", &[]).execute("", 0).query("select 1").function(177, &["1", "2"]).sync().query("select 2"),
        Script::new("an error late").run("select 10 / (3 - n) from generate_series(1, 5) n", &[]).sync().query("select 10 / (3 - n) from generate_series(1, 5) n"),
        Script::new("errors in two units").run("select 1/0", &[]).sync().run("select 1/0", &[]).sync().query("select 1/0").query("select 1"),
        Script::new("unknown portal").execute("nowhere", 0).sync().describe(b'P', "nowhere").sync().close(b'P', "nowhere").sync(),
        Script::new("unknown statement").describe(b'S', "nowhere").sync().bind("", "nowhere", &[]).sync().close(b'S', "nowhere").sync(),
        Script::new("constraint violations").query("insert into t values (1, 'twice')").run("insert into t values (null, 'x')", &[]).sync()
            .query("insert into t values ('x', 1)").query("update t set id = 1"),
        Script::new("wrong subjects").describe(b'X', "a").run("select 1", &[]).sync().close(b'X', "a").sync().query("select 1"),
        Script::new("malformed bodies").raw(b'P', |b| b.extend(b"a\0select 1\0\0")).sync().raw(b'P', |b| b.extend(b"a\0select 1\0\0\0x")).sync()
            .raw(b'P', |b| b.extend(b"a\0select 1")).run("select 1", &[]).sync().raw(b'B', |b| b.extend(b"p\0")).sync().raw(b'B', |b| b.extend(b"p")).sync()
            .raw(b'B', |b| b.extend(b"\0\0\0\x02\0\0\0\0\0")).sync().raw(b'D', |b| b.extend(b"Sa")).sync().raw(b'C', |b| b.extend(b"Sa\0x")).sync()
            .raw(b'E', |b| b.extend(b"a")).sync().raw(b'E', |b| b.extend(b"\0\0\0")).sync().raw(b'D', |_| {}).sync(),
        Script::new("malformed parameters").parse("m", "select $1::int", &[]).raw(b'B', |b| b.extend(b"\0m\0\0\0\0\x01\0\0\0\x09x")).sync()
            .raw(b'B', |b| b.extend(b"\0m\0\0\0\0\x01\0\0\0\x011\0\0x")).sync().raw(b'B', |b| b.extend(b"\0m\0\0\x02\0\0\0\0\0\x01\0\0\0\x011\0\0")).sync(),
        Script::new("malformed queries").raw(b'Q', |b| b.extend(b"select 1")).raw(b'Q', |b| b.extend(b"select 1\0x")).raw(b'Q', |_| {}).query("select 1"),
        Script::new("raised").query("do $$ begin raise 'boom %', 1 using errcode = 'XY123', hint = 'h', detail = 'd', table = 't', column = 'c', schema = 's', constraint = 'k', datatype = 'y'; end $$"),
    ]
}

fn portals() -> Vec<Script> {
    vec![
        Script::new("rows in portions")
            .parse("", "select * from generate_series(1, 5)", &[])
            .bind("p", "", &[])
            .execute("p", 2)
            .execute("p", 2)
            .flush()
            .answers(8)
            .execute("p", 2)
            .execute("p", 2)
            .sync()
            .execute("p", 1)
            .sync(),
        Script::new("portals in a block")
            .query("begin")
            .parse("s", "select * from generate_series(1, 5)", &[])
            .bind("p", "s", &[])
            .execute("p", 2)
            .sync()
            .bind("q", "s", &[])
            .execute("q", 1)
            .sync()
            .execute("p", 2)
            .execute("q", 0)
            .close(b'P', "p")
            .execute("p", 1)
            .sync()
            .query("rollback")
            .execute("q", 1)
            .sync()
            .close(b'S', "s")
            .sync(),
        Script::new("a portal by name twice")
            .query("begin")
            .parse("", "select 1", &[])
            .bind("p", "", &[])
            .bind("p", "", &[])
            .sync()
            .query("rollback"),
        Script::new("the unnamed portal again")
            .parse("", "select generate_series(1, 3)", &[])
            .bind("", "", &[])
            .execute("", 1)
            .bind("", "", &[])
            .execute("", 2)
            .sync(),
        Script::new("portal and cursor share names")
            .query("begin; declare c cursor for select generate_series(1, 4)")
            .describe(b'P', "c")
            .execute("c", 2)
            .sync()
            .query("fetch c")
            .parse("", "select 1", &[])
            .bind("c", "", &[])
            .sync()
            .query("rollback"),
        Script::new("a portal outlives its statement")
            .query("begin")
            .parse("s", "select generate_series(1, 3)", &[])
            .bind("p", "s", &[])
            .close(b'S', "s")
            .execute("p", 2)
            .sync()
            .execute("p", 0)
            .sync()
            .query("commit"),
        Script::new("the unnamed statement over units")
            .parse("", "select 5", &[])
            .sync()
            .bind("", "", &[])
            .execute("", 0)
            .sync()
            .bind("", "", &[])
            .describe(b'P', "")
            .execute("", 0)
            .sync()
            .query("select 1")
            .bind("", "", &[])
            .sync(),
        Script::new("a held cursor")
            .query("begin; declare h cursor with hold for select generate_series(1, 3); commit")
            .query("fetch h")
            .query("fetch h")
            .execute("h", 1)
            .sync()
            .query("close h")
            .query("fetch h"),
    ]
}

fn settings() -> Vec<Script> {
    vec![
        Script::new("set")
            .query("set timezone = 'Asia/Tokyo'")
            .query("show timezone")
            .query("reset timezone")
            .query("set datestyle = 'sql, dmy'")
            .query("show datestyle")
            .query("set extra_float_digits = 0")
            .query("show extra_float_digits")
            .query("set nothing = 1")
            .query("set work_mem = 'x'"),
        Script::new("set in a block")
            .query("begin")
            .query("set timezone = 'UTC'")
            .query("set local datestyle = 'german'")
            .query("show datestyle")
            .query("rollback")
            .query("show timezone")
            .query("show datestyle")
            .query("begin; set timezone = 'UTC'; commit")
            .query("show timezone")
            .query("set local timezone = 'GMT'"),
        Script::new("set undone by a savepoint")
            .query("begin")
            .query("set work_mem = '1MB'")
            .query("savepoint a")
            .query("set work_mem = '2MB'")
            .query("show work_mem")
            .query("rollback to a")
            .query("show work_mem")
            .query("commit")
            .query("show work_mem")
            .query("reset work_mem")
            .query("show work_mem"),
        Script::new("set by function")
            .query("select set_config('timezone', 'Asia/Tokyo', false)")
            .query("show timezone")
            .query("select set_config('my.own', 'x', false)")
            .query("show my.own")
            .query("select current_setting('my.own'), current_setting('my.other', true)"),
        Script::new("set by extended messages")
            .run("set statement_timeout = '10s'", &[])
            .sync()
            .run("show statement_timeout", &[])
            .sync()
            .run("set timezone = 'UTC'", &[])
            .run("show timezone", &[])
            .run("select 1/0", &[])
            .sync()
            .run("show timezone", &[])
            .sync()
            .run("reset all", &[])
            .sync(),
        Script::new("encodings")
            .query("set client_encoding = 'latin1'")
            .query("select chr(233)")
            .query("select 'x' || chr(8364)")
            .query("reset client_encoding")
            .query("select chr(233), chr(8364)"),
        Script::new("standard strings off")
            .query("set standard_conforming_strings = off")
            .query("select 'a\\'b'")
            .query("reset standard_conforming_strings")
            .query("select 'a\\'"),
        Script::new("roles")
            .query("set role nobody_there")
            .query("set session characteristics as transaction read only")
            .query("insert into t values (60, 'r')")
            .query("reset all")
            .query("begin read only")
            .query("insert into t values (60, 'r')")
            .query("rollback")
            .query("set transaction isolation level serializable")
            .query("begin isolation level serializable; show transaction_isolation; commit"),
        Script::new("advisory locks")
            .query("select pg_advisory_lock(7), pg_advisory_lock(7)")
            .query("select pg_advisory_unlock(7)")
            .query("select pg_advisory_unlock(7)")
            .query("select pg_advisory_unlock(7)")
            .query("begin; select pg_advisory_xact_lock(8); commit"),
        Script::new("a timeout")
            // For this statement alone: what comes behind it may take its time. It has no rows to describe, which may be over
            // before that.
            .query("begin; set local statement_timeout = 20; insert into t select 70, 'late' from pg_sleep(5)")
            .query("rollback")
            .query("select 1"),
    ]
}

/// Scripts whose messages are too long to be cut at every byte.
pub fn long() -> Vec<Script> {
    let wide = "w".repeat(300_000);
    let lines: Vec<u8> = (1000..6000).flat_map(|i| format!("{i}\tline {i}\n").into_bytes()).collect();
    let mut many = Script::new("many units in one write");
    for i in 0..300 {
        many = many.run("select $1::int, repeat('x', 20)", &[Some(&i.to_string())]).sync();
    }
    vec![
        Script::new("a long parameter")
            .run("select length($1), md5($1)", &[Some(&wide)])
            .sync()
            .query(format!("select length('{wide}')")),
        Script::new("long rows")
            .query("select repeat('x', 200000), n from generate_series(1, 5) n")
            .run("select repeat('y', 100000), repeat('z', 33000)", &[])
            .sync(),
        Script::new("many rows").query("select n, 'row ' || n from generate_series(1, 5000) n"),
        Script::new("a long copy in")
            .query("copy t from stdin")
            .copy_data(&lines)
            .copy_data(&lines[..0])
            .copy_done()
            .query("copy (select * from t order by id) to stdout"),
        Script::new("a long copy that fails")
            .query("copy t from stdin")
            .copy_data(&lines)
            .copy_data(b"bad\n")
            .copy_data(&lines)
            .copy_done()
            .query("select count(*) from t"),
        Script::new("long errors")
            .query(format!("select \"{}\"", "c".repeat(5000)))
            .query("do $$ begin raise '%', repeat('e', 100000); end $$")
            .query("do $$ begin raise notice '%', repeat('n', 100000); end $$"),
        many,
    ]
}
