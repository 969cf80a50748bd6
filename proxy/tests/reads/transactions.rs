//! Transaction blocks that are READ ONLY, against a real primary and real standbys.

use super::common::raw::{Raw, bind, execute, ok, parse, run, sync, value, words};
use super::common::{Cluster, wait_for};
use proxy::wire::codec::{cstring, message};
use proxy::wire::frontend::write_query;

const WHERE: &str = "select current_setting('cluster_name')";

const SCHEMA: &str = "create table t(n int); insert into t select generate_series(1, 5);
    create function loud() returns int language plpgsql volatile as 'begin return 7; end';
    create function takes_xid() returns bigint language sql stable as 'select txid_current()';
    grant all on t to app";

fn start(standbys: usize, set: impl FnOnce(&mut proxy::config::Raw)) -> (Cluster, Raw) {
    let cluster = Cluster::start(standbys, |raw| {
        raw.workers = 1;
        // On a loaded machine a sample of the tests' own monitor may take long.
        raw.max_replay_lag = cluster::config::Span::secs(10);
        set(raw);
    });
    cluster.nodes[0].psql(SCHEMA);
    // A read of it before that is repeated at the primary, and counted.
    cluster.replicate();
    let mut client = Raw::login(cluster.port, &[]);
    settle(&mut client);
    (cluster, client)
}

/// Wait until a standby serves this session's reads, and knows the functions.
fn settle(client: &mut Raw) {
    wait_for("a standby to serve reads", || {
        (value(client, "select current_setting('cluster_name'), abs(1) from t limit 1") != "n1 1").then_some(())
    });
}

/// Where a block that begins so runs, with the isolation it has.
fn block(client: &mut Raw, begin: &[&str]) -> String {
    // What was done at the primary before counts as a write, and would keep it there.
    settle(client);
    begin.iter().for_each(|sql| drop(ok(client, sql)));
    let at = value(
        client,
        "select current_setting('cluster_name'), current_setting('transaction_isolation') from t limit 1",
    );
    assert_eq!(words(&ok(client, "commit")), "C COMMIT | Z I");
    at
}

#[test]
fn a_read_only_block_is_served_by_one_standby() {
    let (cluster, mut a) = start(2, |_| {});
    for begin in [
        "begin read only",
        "START TRANSACTION READ ONLY",
        "begin transaction isolation level repeatable read, read only",
    ] {
        assert_eq!(words(&ok(&mut a, begin)).split_whitespace().last(), Some("T"));
        let at = value(&mut a, "select current_setting('cluster_name'), abs(1) from t limit 1");
        assert!(at == "n2 1" || at == "n3 1", "{begin}: {at}");
        for _ in 0..5 {
            assert_eq!(value(&mut a, WHERE), at[..2], "{begin}");
        }
        assert_eq!(words(&a.query("insert into t values (9)")), "E 25006 | Z E");
        assert_eq!(words(&a.query("select 1")), "E 25P02 | Z E");
        assert_eq!(words(&a.query("rollback")), "C ROLLBACK | Z I");
    }
    // Its modes can come by SET TRANSACTION, which takes it there.
    let at = block(&mut a, &["begin", "set transaction isolation level repeatable read", "set transaction read only"]);
    assert!(at == "n2 repeatable read" || at == "n3 repeatable read", "{at}");
    let at = block(
        &mut a,
        &["begin isolation level repeatable read read only", "set transaction isolation level read committed"],
    );
    assert!(at == "n2 read committed" || at == "n3 read committed", "{at}");
    // What may write, or cannot be there, is the primary's.
    assert_eq!(block(&mut a, &["begin"]), "n1 read committed");
    assert_eq!(block(&mut a, &["begin read write"]), "n1 read committed");
    assert_eq!(block(&mut a, &["begin read only", "set transaction read write"]), "n1 read committed");
    assert_eq!(block(&mut a, &["begin isolation level serializable read only deferrable"]), "n1 serializable");
    assert_eq!(block(&mut a, &["begin read only", "set transaction isolation level serializable"]), "n1 serializable");
    assert_eq!(block(&mut a, &["begin; set transaction read only"]), "n1 read committed", "a string of several");
    // What a driver or an application sets first decides nothing of that.
    for first in ["set local statement_timeout = '60s'", "set work_mem = '4MB'", "set constraints all deferred"] {
        let at = block(&mut a, &["begin read only", first]);
        assert!(at == "n2 read committed" || at == "n3 read committed", "{first}: {at}");
    }
    assert_eq!(
        block(&mut a, &["begin read only", "set local transaction_isolation = serializable"]),
        "n1 serializable"
    );
    settle(&mut a);
    ok(&mut a, "begin read only");
    ok(&mut a, "declare c cursor for select current_setting('cluster_name') from t");
    let at = value(&mut a, "fetch c");
    assert!(at == "n2" || at == "n3", "{at}");
    ok(&mut a, "commit");
    settle(&mut a);
    ok(&mut a, "begin read only");
    ok(&mut a, "declare c cursor for select current_setting('cluster_name'), loud()");
    assert_eq!(value(&mut a, "fetch c"), "n1 7");
    ok(&mut a, "commit");
    // What a block reads it must have written: a standby that has not replayed that is not chosen.
    ok(&mut a, "insert into t values (6)");
    ok(&mut a, "begin read only");
    assert_eq!(value(&mut a, "select count(*) from t"), "6");
    ok(&mut a, "commit");
    // Settings made before it, and in it, follow.
    ok(&mut a, "set work_mem = '3MB'");
    wait_for("a block at a standby with the settings", || {
        settle(&mut a);
        ok(&mut a, "begin read only");
        let at = value(&mut a, "select current_setting('cluster_name') || current_setting('work_mem') from t limit 1");
        ok(&mut a, "set work_mem = '5MB'");
        ok(&mut a, "rollback");
        assert_eq!(value(&mut a, "show work_mem"), "3MB");
        (at == "n23MB" || at == "n33MB").then_some(())
    });
    // What one session has prepared another commits at the primary, and its reads show that from then on.
    ["begin", "insert into t values (7)", "prepare transaction 'two'"].iter().for_each(|sql| drop(ok(&mut a, sql)));
    let mut b = Raw::login(cluster.port, &[]);
    settle(&mut b);
    assert_eq!(value(&mut b, "select count(*) from t"), "6");
    assert_eq!(words(&ok(&mut b, "commit prepared 'two'")), "C COMMIT PREPARED | Z I");
    assert_eq!(value(&mut b, "select count(*) from t"), "7");
    parts_of_one_dump_see_the_same(&cluster, [&mut a, &mut b]);
    // In one that goes on at the primary after all nobody is told what another one has drawn there, but what it has itself.
    cluster.nodes[0].psql("create sequence s; grant all on s to app");
    for draws in [false, true] {
        ok(&mut b, "select nextval('s')");
        ok(&mut a, "begin read only");
        ok(&mut a, "set transaction read write");
        let own = draws.then(|| value(&mut a, "select nextval('s')"));
        ok(&mut a, "update t set n = n where n < 0");
        let told = a.query("select lastval()");
        let want = own.map_or_else(|| "E 55000".to_owned(), |own| format!("D {own}"));
        assert!(told.contains(&want), "{want}: {told:?}");
        ok(&mut a, "rollback");
        ok(&mut a, "discard all");
        settle(&mut a);
    }
}

/// As pg_dump -j: what one block has exported is known where it did so, and nowhere else. pg_dump itself does it, too.
fn parts_of_one_dump_see_the_same(cluster: &Cluster, [first, second]: [&mut Raw; 2]) {
    const MODES: &str = "set transaction isolation level repeatable read, read only";
    settle(first);
    settle(second);
    for sql in ["begin", MODES] {
        ok(first, sql);
    }
    let snapshot = value(first, "select pg_catalog.pg_export_snapshot()");
    let seen = value(first, "select count(*) from t");
    cluster.nodes[0].psql("insert into t values (8)");
    for sql in ["begin", MODES, &format!("set transaction snapshot '{snapshot}'")] {
        ok(second, sql);
    }
    assert_eq!(value(second, "select count(*) from t"), seen, "the other block's snapshot");
    for client in [first, second] {
        ok(client, "commit");
        assert_ne!(value(client, "select count(*) from t"), seen);
    }
    let parent = tempfile::tempdir().expect("a directory");
    let mut dump = cluster.client("pg_dump");
    dump.args(["-Fd", "-j2", "-t", "t", "-f"]).arg(parent.path().join("dump"));
    let output = dump.output().expect("pg_dump can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a block sets first does not keep it where the rest of it cannot be.
#[test]
fn what_a_block_sets_first_goes_with_it_to_another_server() {
    const SET: &str = "select current_setting('cluster_name'), current_setting('statement_timeout'),
        current_setting('work_mem')";
    let (cluster, mut a) = start(1, |_| {});
    cluster.nodes[0].psql("create unlogged table u(n int); insert into u values (3); grant all on u to app");
    wait_for("the standby to know of it", || {
        (cluster.nodes[1].psql("select has_table_privilege('app', to_regclass('u'), 'select')") == "t").then_some(())
    });
    let before = value(&mut a, "select current_setting('statement_timeout'), current_setting('work_mem')");
    for (then, want) in [
        ("select n from u", "3"),
        ("select loud()", "7"),
        ("select pg_try_advisory_xact_lock(5)", "t"),
        ("select n from t limit 1", "1"),
    ] {
        settle(&mut a);
        ok(&mut a, "begin read only");
        ok(&mut a, "set local statement_timeout = '50s' -- at most");
        a.write(|out| {
            run(out, "set work_mem = '3MB'");
            sync(out);
        });
        assert_eq!(words(&a.until_ready()), "1 | 2 | C SET | Z T");
        assert_eq!(value(&mut a, then), want, "{then}");
        let node = if then.contains(" t ") { "n2" } else { "n1" };
        assert_eq!(value(&mut a, SET), format!("{node} 50s 3MB"), "{then}");
        ok(&mut a, "rollback");
        let after = value(&mut a, "select current_setting('statement_timeout'), current_setting('work_mem')");
        assert_eq!(after, before, "{then}");
    }
    // What is kept is the session's then.
    ok(&mut a, "begin read only");
    ok(&mut a, "set work_mem = '5MB'");
    assert_eq!(value(&mut a, "select loud()"), "7");
    ok(&mut a, "commit");
    assert_eq!(value(&mut a, "show work_mem"), "5MB");
    settle(&mut a);
    assert_eq!(value(&mut a, "select current_setting('work_mem') from t limit 1"), "5MB");
    wait_for("nothing to keep it", || (cluster.counter("pgtenure_proxy_pinned_sessions") == 0.0).then_some(()));
}

#[test]
fn a_client_can_say_that_its_transactions_only_read() {
    let (cluster, mut a) = start(1, |_| {});
    for say in ["set default_transaction_read_only = on", "set session characteristics as transaction read only"] {
        ok(&mut a, say);
        assert_eq!(block(&mut a, &["begin"]), "n2 read committed", "{say}");
        assert_eq!(block(&mut a, &["begin read write"]), "n1 read committed", "{say}");
        assert_eq!(words(&a.query("insert into t values (1)")), "E 25006 | Z I", "{say}");
        ok(&mut a, "set session characteristics as transaction read write");
        assert_eq!(block(&mut a, &["begin"]), "n1 read committed", "{say}");
    }
    ok(&mut a, "set default_transaction_isolation = 'serializable'");
    ok(&mut a, "begin read only");
    assert_eq!(
        value(&mut a, "select current_setting('cluster_name'), current_setting('transaction_isolation')"),
        "n1 serializable"
    );
    ok(&mut a, "commit");
    ok(&mut a, "reset all");
    ok(&mut a, "set pgtenure.read_from = 'primary'");
    ok(&mut a, "begin read only");
    assert_eq!(value(&mut a, WHERE), "n1");
    ok(&mut a, "commit");
    let mut b = Raw::login(cluster.port, &[("options", "-c default_transaction_read_only=on")]);
    settle(&mut b);
    assert_eq!(block(&mut b, &["begin"]), "n2 read committed");
    // What only the server knows is found out.
    cluster.nodes[0].psql("alter role app set default_transaction_isolation = 'serializable'");
    replayed(&cluster);
    let mut c = Raw::login(cluster.port, &[("work_mem", "2MB")]);
    let refused = cluster.counter("pgtenure_proxy_retries_total");
    wait_for("a standby to refuse it", || {
        assert_eq!(value(&mut c, "select current_setting('cluster_name') from t limit 1"), "n1");
        ok(&mut c, "begin read only");
        assert_eq!(
            value(&mut c, "select current_setting('transaction_isolation'), n from t limit 1"),
            "serializable 1"
        );
        ok(&mut c, "commit");
        (cluster.counter("pgtenure_proxy_retries_total") > refused).then_some(())
    });
    // So is what its role says.
    cluster.nodes[0].psql("alter role app reset all");
    cluster.nodes[0].psql("alter role app set default_transaction_read_only = on");
    replayed(&cluster);
    let mut d = wait_for("a block to begin as the role says", || {
        let mut d = Raw::login(cluster.port, &[("work_mem", "4MB")]);
        settle(&mut d);
        (block(&mut d, &["begin"]) == "n2 read committed").then_some(d)
    });
    assert_eq!(words(&d.query("insert into t values (1)")), "E 25006 | Z I");
    assert_eq!(block(&mut d, &["begin read write"]), "n1 read committed");
}

/// Wait until the standby has all that the primary has.
fn replayed(cluster: &Cluster) {
    let end = cluster.nodes[0].psql("select pg_current_wal_flush_lsn()");
    wait_for("the standby to have it", || {
        (cluster.nodes[1].psql(&format!("select pg_last_wal_replay_lsn() >= '{end}'")) == "t").then_some(())
    });
}

#[test]
fn drivers_begin_and_read_in_one_unit() {
    let (_cluster, mut a) = start(1, |_| {});
    let name = "select current_setting('cluster_name') from t limit 1";
    a.write(|out| {
        run(out, "begin read only");
        run(out, name);
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | 2 | C BEGIN | 1 | 2 | D n2 | C SELECT 1 | Z T");
    // Statements and portals with names of their own, a portal in two parts.
    a.write(|out| {
        parse(out, "s", "select n, current_setting('cluster_name') from t order by n");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | Z T");
    let part = |out: &mut Vec<u8>, rows: u32| {
        message(out, b'E', |b| {
            cstring(b, b"p");
            b.extend_from_slice(&rows.to_be_bytes());
        });
    };
    a.write(|out| {
        bind(out, "p", "s", &[]);
        part(out, 2);
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "2 | D 1 n2 | D 2 n2 | s | Z T");
    a.write(|out| {
        part(out, 0);
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "D 3 n2 | D 4 n2 | D 5 n2 | C SELECT 3 | Z T");
    a.write(|out| {
        run(out, "commit");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | 2 | C COMMIT | Z I");
    // The whole of it in one unit, and a block that does more than read.
    a.write(|out| {
        run(out, "begin read only");
        run(out, name);
        run(out, "commit");
        sync(out);
        run(out, "begin read only");
        run(out, "select loud(), current_setting('cluster_name')");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | 2 | C BEGIN | 1 | 2 | D n2 | C SELECT 1 | 1 | 2 | C COMMIT | Z I");
    assert_eq!(words(&a.until_ready()), "1 | 2 | C BEGIN | 1 | 2 | D 7 n1 | C SELECT 1 | Z T");
    ok(&mut a, "rollback");
    // Prepared before, and named only when the block has begun.
    a.write(|out| {
        parse(out, "loud", "select loud(), current_setting('cluster_name')");
        run(out, "begin read only");
        sync(out);
        bind(out, "", "loud", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | 1 | 2 | C BEGIN | Z T");
    assert_eq!(words(&a.until_ready()), "2 | D 7 n1 | C SELECT 1 | Z T");
    ok(&mut a, "rollback");
}

#[test]
fn a_block_that_turns_out_to_need_the_primary_is_moved_before_its_first_answer() {
    let (cluster, mut a) = start(2, |_| {});
    let here = "current_setting('cluster_name')";
    // Known from its text.
    ok(&mut a, "begin read only");
    assert_eq!(value(&mut a, &format!("select loud(), {here}")), "7 n1");
    ok(&mut a, "commit");
    ok(&mut a, "begin read only");
    assert_eq!(value(&mut a, &format!("select 'locked' || pg_advisory_xact_lock(1), {here}")), "locked n1");
    ok(&mut a, "commit");
    ok(&mut a, &format!("prepare l as select 'locked' || pg_advisory_xact_lock(1), {here}"));
    settle(&mut a);
    ok(&mut a, "begin read only");
    assert_eq!(value(&mut a, "execute l"), "locked n1");
    ok(&mut a, "commit");
    // Known from the standbys' refusals; the primary's answer is what counts.
    let refused = cluster.counter("pgtenure_proxy_retries_total");
    wait_for("a standby to refuse it", || {
        settle(&mut a);
        ok(&mut a, "begin isolation level repeatable read read only");
        assert_eq!(
            value(&mut a, &format!("select takes_xid() > 0, {here}, current_setting('transaction_isolation')")),
            "t n1 repeatable read"
        );
        ok(&mut a, "rollback");
        (cluster.counter("pgtenure_proxy_retries_total") > refused).then_some(())
    });
    // What is now is when it began: where it has read, or where it had to begin again.
    for (what, node, moved) in [("abs(1)", "n2 n3", "f"), ("loud()", "n1", "t")] {
        wait_for(&format!("a block that calls {what}"), || {
            settle(&mut a);
            ok(&mut a, "begin read only");
            let later = cluster.nodes[0].psql("select clock_timestamp()");
            let ask = format!("select {here}, now() > '{later}', now(), {what} from t limit 1");
            let answer = value(&mut a, &ask);
            let [at, after, day, time, _] = answer.split(' ').collect::<Vec<_>>()[..] else { panic!("{answer}") };
            let again = value(&mut a, "select now()");
            assert_eq!(again, format!("{day} {time}"), "as long as it lasts");
            ok(&mut a, "commit");
            (node.contains(at) && after == moved).then_some(())
        });
    }
    // Later it stays, and is told what cannot be.
    for lock in ["select pg_try_advisory_lock(1)", "execute l"] {
        wait_for("a block at a standby", || {
            settle(&mut a);
            ok(&mut a, "begin read only");
            let there = value(&mut a, &format!("select {here} from t limit 1")) != "n1";
            if there {
                assert_eq!(words(&a.query(lock)), "E 0A000 | Z E");
                assert_eq!(words(&a.query("select 1")), "E 25P02 | Z E");
            }
            assert_eq!(words(&a.query("commit")).split_whitespace().last(), Some("I"));
            there.then_some(())
        });
    }
    settle(&mut a);
    ok(&mut a, "begin read only");
    ok(&mut a, "select 1");
    assert_eq!(words(&a.query("declare c cursor with hold for select 1")), "E 0A000 | Z E");
    ok(&mut a, "rollback");
    // Nothing of all that is left anywhere.
    for node in &cluster.nodes {
        wait_for("no block to be left open", || {
            let open = "select count(*) from pg_stat_activity where usename = 'app' and state like 'idle in%'";
            (node.psql(open) == "0" && node.psql("select count(*) from pg_locks where locktype = 'advisory'") == "0")
                .then_some(())
        });
    }
}

#[test]
fn a_read_only_block_writes_to_its_sessions_own_temporary_table() {
    let (_cluster, mut a) = start(1, |_| {});
    ok(&mut a, "create temp table own(n int)");
    ok(&mut a, "begin read only");
    assert_eq!(words(&ok(&mut a, "insert into own values (1)")), "C INSERT 0 1 | Z T");
    assert_eq!(value(&mut a, "select current_setting('cluster_name'), count(*) from own"), "n1 1");
    ok(&mut a, "commit");
    assert_eq!(value(&mut a, "select count(*) from own"), "1");
}

#[test]
fn a_standby_that_dies_aborts_the_blocks_that_have_read_there_and_no_others() {
    let (mut cluster, mut read) = start(1, |_| {});
    let [mut begun, mut first, mut unit] = [(); 3].map(|()| Raw::login(cluster.port, &[]));
    // The only reader of a session's own is what the settled session has shown to be at n2.
    for client in [&mut read, &mut begun, &mut first] {
        assert_eq!(words(&ok(client, "begin read only")), "C BEGIN | Z T");
    }
    assert_eq!(value(&mut read, "select current_setting('cluster_name') from t limit 1"), "n2");
    let sleep = "select pg_sleep(case current_setting('in_hot_standby', true) when 'on' then 60 else 0 end),
                 current_setting('cluster_name')";
    first.write(|out| write_query(out, sleep));
    unit.write(|out| {
        run(out, "begin read only");
        run(out, sleep);
        sync(out);
    });
    wait_for("both to run at the standby", || {
        let active = "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'PgSleep'";
        (cluster.nodes[1].psql(active) == "2").then_some(())
    });
    cluster.nodes[1].kill();
    assert_eq!(words(&read.query("select 1")), "E 40001 | Z E");
    assert_eq!(words(&read.query("rollback")), "C ROLLBACK | Z I");
    assert_eq!(value(&mut begun, WHERE), "n1", "it had done nothing there");
    assert_eq!(words(&ok(&mut begun, "commit")), "C COMMIT | Z I");
    assert_eq!(words(&first.until_ready()), "T | D  n1 | C SELECT 1 | Z T");
    assert_eq!(words(&ok(&mut first, "commit")), "C COMMIT | Z I");
    assert_eq!(words(&unit.until_ready()), "1 | 2 | C BEGIN | 1 | 2 | D  n1 | C SELECT 1 | Z T");
    assert_eq!(words(&ok(&mut unit, "commit")), "C COMMIT | Z I");
}

#[test]
fn lists_of_functions_hold_per_database_and_a_reload_changes_them_for_sessions_that_are_there() {
    let mut typed = None;
    let (cluster, mut a) = start(1, |raw| {
        raw.deny_functions = vec!["public.takes_xid".to_owned()];
        typed = Some(raw.clone());
    });
    let mut typed = typed.unwrap();
    let control = cluster.handle.as_ref().unwrap().control();
    let mut reload = |allow: &[&str]| {
        let allow_functions = allow.iter().map(|name| (*name).to_owned()).collect();
        let own = proxy::config::pools::Database { allow_functions, ..Default::default() };
        typed.databases.insert("app".to_owned(), own);
        control.reload(proxy::config::check(typed.clone()).unwrap()).unwrap();
    };
    // Labelled stable, but denied: no standby is troubled with it.
    for _ in 0..5 {
        settle(&mut a);
        assert_eq!(value(&mut a, "select takes_xid() > 0, current_setting('cluster_name')"), "t n1");
    }
    assert_eq!(cluster.counter("pgtenure_proxy_retries_total"), 0.0);
    // A statement that was prepared, and so classified, before.
    a.write(|out| {
        parse(out, "loud", "select loud(), current_setting('cluster_name')");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | Z I");
    let mut serves = |node: &str| {
        wait_for(&format!("{node} to serve what calls the function"), || {
            settle(&mut a);
            a.write(|out| {
                bind(out, "", "loud", &[]);
                execute(out, "");
                sync(out);
            });
            (words(&a.until_ready()) == format!("2 | D 7 {node} | C SELECT 1 | Z I")).then_some(())
        });
    };
    serves("n1");
    reload(&["Public.Loud"]);
    serves("n2");
    reload(&["other.loud"]);
    serves("n1");
}

#[test]
fn an_operator_is_told_where_a_statement_would_go() {
    let (cluster, _reader) = start(1, |_| {});
    let control = cluster.handle.as_ref().unwrap().control();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |sql: &str| runtime.block_on(control.explain("app", "app", sql.as_bytes())).unwrap();
    let read =
        wait_for("a standby to be chosen", || Some(ask("select abs(n) from t")).filter(|e| e.target == "standby"));
    assert_eq!((read.meaning.class, read.node.as_deref(), read.reason), ("read", Some("n2"), "fresh"));
    assert!(read.detail.contains(" ms stale, replayed "), "{}", read.detail);
    let loud = ask("select loud() from t");
    assert_eq!((loud.meaning.class, loud.meaning.decided_by), ("write", "function"));
    assert_eq!((loud.meaning.word.as_deref(), loud.target, loud.reason), (Some("loud"), "primary", "write"));
}
