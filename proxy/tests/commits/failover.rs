//! What a client is told when its server is lost, and that it goes on: one case for each row of the outcome table,
//! with real servers killed with -9.

use super::common::raw::{Raw, bind, execute, parse, run, sync};
use super::common::{self, Cluster, wait_for};
use cluster::topology::{Closed, Gate};
use proxy::config::PoolMode;
use proxy::config::pools::Database;
use proxy::console::tally::Counter;
use proxy::pool::view::ServerState;
use proxy::wire::codec::message;
use proxy::wire::frontend::write_query;
use std::time::{Duration, Instant};

fn words(seen: &[String]) -> String {
    seen.join(" | ")
}

/// The server of a sleeping statement is there.
fn wait_until_running(c: &Cluster, node: usize, n: usize) {
    wait_for("the statements to run", || {
        // Active is a server of the proxy's own questions, too.
        let sql = "select count(*) from pg_stat_activity where usename = 'app' and state = 'active' \
                   and (wait_event = 'PgSleep' or wait_event_type = 'Lock')";
        (c.nodes[node].psql(sql) == n.to_string()).then_some(())
    });
}

/// The clients' database once more, whose clients keep their servers.
fn by_session() -> Database {
    Database { pool_mode: Some(PoolMode::Session), dbname: Some("app".into()), ..Database::default() }
}

#[test]
fn a_killed_primary_is_explained_to_every_session_and_all_go_on() {
    kill_primary(PoolMode::Transaction);
}

#[test]
fn a_killed_primary_is_explained_to_those_who_keep_servers_and_all_go_on() {
    kill_primary(PoolMode::Session);
}

fn kill_primary(mode: PoolMode) {
    let mut c = Cluster::start(2, |raw| raw.pools.pool_mode = mode);
    c.psql("create table t(a int); create table u(a int)").unwrap();
    c.replicate();
    let mut logins: Vec<Raw> = (0..11).map(|_| Raw::login(c.port, &[])).collect();
    let [idle, autocommit, block, commit, rollback, failed, pinned, fresh, ext, quiet, portal] = &mut logins[..] else {
        panic!("eleven sessions")
    };
    ext.write(|out| {
        parse(out, "w", "insert into t values (4)");
        sync(out);
    });
    assert_eq!(words(&ext.until_ready()), "1 | Z I");
    // A lock that the statements in flight wait for, held by the superuser directly at the server.
    let lock = format!("host=127.0.0.1 port={} user=postgres dbname=app", c.nodes[0].port);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (locker, connection) = runtime.block_on(tokio_postgres::connect(&lock, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    runtime.block_on(locker.batch_execute("begin; lock table t in access exclusive mode")).unwrap();
    let sleep = "select pg_sleep(60)";
    for s in [&mut *block, commit, rollback, quiet] {
        assert_eq!(words(&s.query("begin")), "C BEGIN | Z T");
        assert_eq!(words(&s.query("insert into u values (1)")), "C INSERT 0 1 | Z T");
    }
    failed.query("begin");
    assert_eq!(words(&failed.query("select 1/0")), "E 22012 | Z E");
    portal.query("begin");
    portal.write(|out| {
        parse(out, "", "select generate_series(1, 9)");
        bind(out, "p", "", &[]);
        sync(out);
    });
    assert_eq!(words(&portal.until_ready()), "1 | 2 | Z T");
    pinned.query("create temp table mine(a int)");
    pinned.query("set work_mem = '1MB'");
    autocommit.write(|out| write_query(out, "insert into t values (1)"));
    block.write(|out| write_query(out, "insert into t values (2)"));
    // A COMMIT that hangs: with another statement before it in the same string.
    commit.write(|out| write_query(out, "insert into t values (3); commit"));
    rollback.write(|out| {
        write_query(out, sleep);
        write_query(out, "rollback");
    });
    ext.write(|out| {
        bind(out, "", "w", &[]);
        execute(out, "");
        sync(out);
    });
    wait_until_running(&c, 0, 5);
    let killed = Instant::now();
    c.nodes[0].kill();
    assert_eq!(words(&autocommit.until_ready()), "E 08007 | Z I");
    assert_eq!(words(&block.until_ready()), "E 40001 | Z E");
    assert_eq!(words(&block.query("select 1")), "E 25P02 | Z E");
    assert_eq!(words(&commit.until_ready()), "E 08007 | Z I");
    let first = words(&rollback.until_ready());
    assert!(first == "E 40001 | Z E" || first == "T | E 40001 | Z E", "{first}");
    assert_eq!(words(&rollback.until_ready()), "C ROLLBACK | Z I");
    assert_eq!(words(&ext.until_ready()), "E 08007 | Z I");
    // A block that was lost while its client was silent: told by its next statement.
    assert_eq!(words(&quiet.query("insert into u values (2)")), "E 40001 | Z E");
    quiet.write(|out| {
        run(out, "rollback");
        sync(out);
    });
    assert_eq!(words(&quiet.until_ready()), "1 | 2 | C ROLLBACK | Z I");
    assert_eq!(words(&failed.query("commit")), "C ROLLBACK | Z I");
    // A portal that was there before is gone, and executing it ends no block.
    portal.write(|out| {
        execute(out, "p");
        sync(out);
    });
    assert_eq!(words(&portal.until_ready()), "E 40001 | Z E");
    portal.write(|out| {
        execute(out, "p");
        sync(out);
    });
    assert_eq!(words(&portal.until_ready()), "E 25P02 | Z E");
    assert_eq!(words(&portal.query("rollback")), "C ROLLBACK | Z I");
    assert_eq!(words(&pinned.query("select 1")), "E 08006 | Z I");
    assert!(killed.elapsed() < Duration::from_secs(25), "nobody waited for the new primary to be told");
    // Statements that were not sent are held, and reads go on meanwhile.
    idle.write(|out| write_query(out, "insert into u values (10)"));
    fresh.write(|out| {
        run(out, "insert into u values (11)");
        sync(out);
    });
    wait_for("both statements to be held", || (c.handle.as_ref()?.status().totals.held >= 2).then_some(()));
    c.fail_over_to(1);
    assert_eq!(words(&idle.until_ready()), "C INSERT 0 1 | Z I");
    assert_eq!(words(&fresh.until_ready()), "1 | 2 | C INSERT 0 1 | Z I");
    assert_eq!(words(&block.query("rollback")), "C ROLLBACK | Z I");
    for (i, s) in logins.iter_mut().enumerate() {
        assert_eq!(words(&s.query(&format!("insert into u values ({})", 100 + i))), "C INSERT 0 1 | Z I", "{i}");
    }
    // A statement prepared before is there after.
    logins[8].write(|out| {
        bind(out, "", "w", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&logins[8].until_ready()), "2 | C INSERT 0 1 | Z I");
    assert_eq!(c.nodes[1].psql("select count(*) from u"), "13");
    let mut new = Raw::login(c.port, &[]);
    assert_eq!(
        words(&new.query("select current_setting('cluster_name') from u limit 1 for update")),
        "T | D n2 | C SELECT 1 | Z I"
    );
}

/// What a client may say to leave the block that it lost, told of it or not, and what it hears, until it is out.
#[test]
fn every_way_out_of_a_lost_block_is_answered() {
    let mut c = Cluster::start(1, |_| {});
    c.psql("create table t(a int)").unwrap();
    c.replicate();
    let cases: [(bool, &str, &str); 14] = [
        (false, "rollback", "C ROLLBACK | Z I"),
        (false, "rollback; begin; select 7", "C ROLLBACK | C BEGIN | T | D 7 | C SELECT 1 | Z T"),
        (
            false,
            "rollback; insert into t values (1); insert into t values (2)",
            "C ROLLBACK | C INSERT 0 1 | C INSERT 0 1 | Z I",
        ),
        (false, "rollback ; ; -- nothing", "C ROLLBACK | Z I"),
        (false, "commit; begin", "E 40001 | Z I"),
        (false, "rollback and chain", "E 40001 | Z E"),
        (false, "rollback to savepoint s", "E 40001 | Z E"),
        (false, "begin", "E 40001 | Z E"),
        (true, "rollback; begin", "C ROLLBACK | C BEGIN | Z T"),
        (true, "commit; begin", "C ROLLBACK | C BEGIN | Z T"),
        (true, "rollback and chain", "E 40001 | Z E"),
        (true, "commit and chain", "E 40001 | Z E"),
        (true, "rollback to s", "E 40001 | Z E"),
        (true, "select 1", "E 25P02 | Z E"),
    ];
    let mut sessions: Vec<Raw> = cases.iter().map(|_| Raw::login(c.port, &[])).collect();
    let (mut pipelined, mut cut) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    for s in sessions.iter_mut().chain([&mut pipelined, &mut cut]) {
        assert_eq!(
            words(&s.query("begin; savepoint s; insert into t values (0)")),
            "C BEGIN | C SAVEPOINT | C INSERT 0 1 | Z T"
        );
    }
    c.nodes[0].kill();
    c.fail_over_to(1);
    for ((told, sql, want), s) in cases.iter().zip(&mut sessions) {
        if *told {
            assert_eq!(words(&s.query("select 1")), "E 40001 | Z E");
        }
        assert_eq!(words(&s.query(sql)), *want, "{sql}, told: {told}");
        let end = if want.ends_with("Z I") { "C INSERT 0 1 | Z I" } else { "C ROLLBACK | Z I" };
        let next = if want.ends_with("Z I") { "insert into t values (3)" } else { "rollback" };
        assert_eq!(words(&s.query(next)), end, "behind {sql}");
    }
    // In one unit of the extended protocol: what follows the end of the block is executed.
    pipelined.write(|out| {
        run(out, "rollback");
        run(out, "insert into t values (4)");
        sync(out);
        run(out, "select 9");
        sync(out);
    });
    assert_eq!(words(&pipelined.until_ready()), "1 | 2 | C ROLLBACK | 1 | 2 | C INSERT 0 1 | Z I");
    assert_eq!(words(&pipelined.until_ready()), "1 | 2 | D 9 | C SELECT 1 | Z I");
    // A message may come in pieces.
    assert_eq!(words(&cut.query("select 1")), "E 40001 | Z E");
    let mut unit = Vec::new();
    run(&mut unit, "rollback");
    let at = unit.len() - 3;
    sync(&mut unit);
    cut.send(&unit[..at]);
    assert_eq!((cut.next(), cut.next()), ("1".into(), "2".into()));
    cut.send(&unit[at..]);
    assert_eq!(words(&cut.until_ready()), "C ROLLBACK | Z I");
    // Nothing of the lost blocks, all of what came behind them.
    assert_eq!(c.nodes[1].psql("select a, count(*) from t group by a order by a"), "1|1\n2|1\n3|4\n4|1");
}

/// What a transaction of a chain has left in the session was committed, and is lost with its server, although the next
/// transaction is lost with it.
/// Its client goes on sending rows, which come in pieces of any size.
#[test]
fn a_block_that_has_lost_its_server_in_a_copy_is_rolled_back() {
    let mut c = Cluster::start(0, |_| {});
    c.psql("create table t(a int)").unwrap();
    let mut a = Raw::login(c.port, &[]);
    assert_eq!(words(&a.query("begin")), "C BEGIN | Z T");
    a.write(|out| write_query(out, "copy t from stdin"));
    assert_eq!(a.next(), "G");
    let mut row = Vec::new();
    message(&mut row, b'd', |b| b.extend_from_slice(b"1\n"));
    a.send(&row);
    c.nodes[0].kill();
    assert_eq!(words(&a.until_ready()), "E 40001 | Z E");
    for piece in row.chunks(6) {
        let before = c.tally(Counter::Received);
        a.send(piece);
        wait_for("a piece to be read", || (c.tally(Counter::Received) > before).then_some(()));
    }
    a.write(|out| {
        message(out, b'c', |_| {});
        write_query(out, "rollback");
    });
    assert_eq!(words(&a.until_ready()), "C ROLLBACK | Z I");
}

#[test]
fn what_was_committed_and_chained_is_said_to_be_lost() {
    let c = Cluster::start(0, |_| {});
    for (leaves, uses) in [("create temp table x(a int)", "select * from x"), ("set timezone = 'UTC'", "show timezone")]
    {
        let mut s = Raw::login(c.port, &[]);
        for sql in ["begin", leaves, "commit and chain"] {
            assert_eq!(s.query(sql).last().map(String::as_str), Some("Z T"), "{sql}");
        }
        c.nodes[0].psql("select pg_terminate_backend(pid) from pg_stat_activity where state = 'idle in transaction'");
        assert!(words(&s.query("select 1")).ends_with("E 40001 | Z E"), "{leaves}");
        // What the lost setting is now is told as soon as the loss is noticed, which the statement may have come before.
        let ended: Vec<_> = s.query("rollback").into_iter().filter(|told| !told.starts_with("S ")).collect();
        assert_eq!(words(&ended), "C ROLLBACK | Z I", "{leaves}");
        assert_eq!(words(&s.query(uses)), "E 08006 | Z I", "{leaves}");
        assert_eq!(s.query("select 1").last().map(String::as_str), Some("Z I"));
    }
    // A transaction that was not committed has left nothing to lose.
    let mut s = Raw::login(c.port, &[]);
    for sql in ["begin", "set timezone = 'UTC'", "rollback and chain", "set timezone = 'UTC'"] {
        assert_eq!(s.query(sql).last().map(String::as_str), Some("Z T"), "{sql}");
    }
    c.nodes[0].psql("select pg_terminate_backend(pid) from pg_stat_activity where state = 'idle in transaction'");
    assert!(words(&s.query("select 1")).ends_with("E 40001 | Z E"));
    s.query("rollback");
    assert!(!words(&s.query("show timezone")).contains("E "));
}

#[test]
fn a_dying_standby_disturbs_no_client() {
    let mut c = Cluster::start(2, |raw| raw.allow_functions = vec!["held".to_owned()]);
    // A read that ends when it is told to.
    c.psql(
        "create table go(a int);
         create function held() returns int language plpgsql as
            $$ begin while not exists (select from go) loop perform pg_sleep(0.02); end loop; return 1; end $$",
    )
    .unwrap();
    let mut s = Raw::login(c.port, &[]);
    let mut reads: Vec<Raw> = (0..6).map(|_| Raw::login(c.port, &[])).collect();
    wait_for("reads at the standbys", || {
        let text = words(&s.query("select current_setting('cluster_name'), (select held() from go)"));
        (text.contains("D n2") || text.contains("D n3")).then_some(())
    });
    // Whoever goes on to end the connection of a read ends the read.
    s.write(|out| write_query(out, "select held() as unwanted"));
    s.stream.set_nonblocking(true).unwrap();
    wait_for("the read to be over", || {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where usename = 'app' and state = 'active' and query like '%as unwanted%'";
        c.nodes.iter().for_each(|n| drop(n.psql(sql)));
        s.stream.peek(&mut [0]).is_ok().then_some(())
    });
    s.stream.set_nonblocking(false).unwrap();
    assert_eq!(words(&s.until_ready()), "E 40001 | Z I");
    for r in &mut reads {
        r.write(|out| write_query(out, "select held()"));
    }
    let at_third = wait_for("the reads to run, some of them at the standbys", || {
        let active = "select count(*) from pg_stat_activity where query = 'select held()' and state = 'active'";
        let counts: Vec<u32> = c.nodes.iter().map(|n| n.psql(active).parse().unwrap()).collect();
        (counts.iter().sum::<u32>() == 6 && counts[1] + counts[2] > 0).then_some(counts[2] > counts[1])
    });
    c.nodes[if at_third { 2 } else { 1 }].kill();
    c.psql("insert into go values (1)").unwrap();
    for r in &mut reads {
        assert_eq!(words(&r.until_ready()), "T | D 1 | C SELECT 1 | Z I");
    }
    let lost = || c.counter("pgtenure_proxy_server_losses_total");
    wait_for("the loss to be counted", || (lost() >= 1.0).then_some(()));
}

#[test]
fn a_closed_gate_holds_and_its_time_is_bounded() {
    let c = Cluster::start(0, |raw| raw.hold_timeout = cluster::config::Span::secs(2));
    let mut inside = Raw::login(c.port, &[]);
    let mut outside = Raw::login(c.port, &[]);
    outside.query("create table t(a int)");
    inside.query("begin");
    inside.query("insert into t values (1)");
    // Draining: what runs goes on, what is new waits.
    c.publish(|t| t.gate = Gate::Draining);
    assert_eq!(c.handle.as_ref().unwrap().state.borrow().busy, 1);
    outside.write(|out| write_query(out, "insert into t values (2)"));
    assert_eq!(words(&inside.query("insert into t values (3)")), "C INSERT 0 1 | Z T");
    assert_eq!(words(&inside.query("commit")), "C COMMIT | Z I");
    wait_for("the busy count to fall", || (c.handle.as_ref()?.state.borrow().busy == 0).then_some(()));
    assert_eq!(words(&outside.until_ready()), "E 57P03 | Z I");
    // Closed and open again under the same term: nothing was lost, nothing is told.
    c.publish(|t| t.gate = Gate::Open);
    inside.query("begin");
    inside.query("insert into t values (4)");
    c.publish(|t| t.gate = Gate::Closed(Closed::Stale));
    inside.write(|out| write_query(out, "commit"));
    outside.write(|out| write_query(out, "insert into t values (5)"));
    std::thread::sleep(Duration::from_millis(200));
    c.publish(|t| t.gate = Gate::Open);
    assert_eq!(words(&inside.until_ready()), "C COMMIT | Z I");
    assert_eq!(words(&outside.until_ready()), "C INSERT 0 1 | Z I");
    // The server may end its session meanwhile: it has not met what was held, and the client could not know.
    inside.query("begin");
    inside.query("insert into t values (6)");
    inside.query("set local idle_in_transaction_session_timeout = '1s'");
    c.publish(|t| t.gate = Gate::Closed(Closed::Stale));
    assert_eq!(words(&inside.query("commit")), "E 40001 | Z I");
    c.publish(|t| t.gate = Gate::Open);
    // Inside a block the time is bounded too.
    inside.query("begin");
    inside.query("insert into t values (6)");
    c.publish(|t| t.gate = Gate::Closed(Closed::Fenced));
    assert_eq!(words(&inside.query("insert into t values (7)")), "E 57P03 | Z E");
    assert_eq!(words(&inside.query("rollback")), "C ROLLBACK | Z I");
    c.publish(|t| t.gate = Gate::Open);
    assert_eq!(words(&outside.query("select count(*) from t")), "T | D 4 | C SELECT 1 | Z I");
}

#[test]
fn a_view_that_ran_out_stops_writes_and_doubts_what_was_in_flight() {
    let c = Cluster::start(0, |_| {});
    let mut s = Raw::login(c.port, &[]);
    let mut held = Raw::login(c.port, &[]);
    s.query("create table t(a int)");
    let soon = |ms| Some(cluster::Clock.now() + Duration::from_millis(ms));
    let until = soon(2000);
    c.publish(|t| t.valid_until = until);
    s.write(|out| write_query(out, "insert into t select 1 from pg_sleep(3)"));
    wait_for("the view to run out", || (Some(cluster::Clock.now()) > until).then_some(()));
    held.write(|out| write_query(out, "insert into t values (2)"));
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    c.topology.send_modify(|t| {
        t.valid_until = soon(60_000);
        t.revision += 1;
    });
    assert_eq!(words(&held.until_ready()), "C INSERT 0 1 | Z I");
}

#[test]
fn a_deposed_primary_that_still_answers_is_left_at_once() {
    let c = Cluster::start(1, |raw| drop(raw.databases.insert("kept".into(), by_session())));
    let mut inside = Raw::login(c.port, &[]);
    let mut flying = Raw::login(c.port, &[]);
    let mut keeps = Raw::login(c.port, &[("database", "kept")]);
    inside.query("create table t(a int)");
    assert_eq!(words(&keeps.query("insert into t values (0)")), "C INSERT 0 1 | Z I");
    c.replicate();
    inside.query("begin");
    inside.query("insert into t values (1)");
    flying.write(|out| write_query(out, "insert into t select 2 from pg_sleep(60)"));
    wait_until_running(&c, 0, 1);
    let started = Instant::now();
    c.fail_over_to(1);
    assert_eq!(words(&flying.until_ready()), "E 08007 | Z I");
    assert_eq!(words(&inside.query("commit")), "E 40001 | Z I");
    assert!(started.elapsed() < Duration::from_secs(25));
    let name = "insert into t values (9) returning current_setting('cluster_name'), pg_is_in_recovery()";
    assert_eq!(words(&inside.query(name)), "T | D n2 f | C INSERT 0 1 | Z I");
    wait_for("no idle connection to the old primary to be kept", || {
        let idle = "select count(*) from pg_stat_activity where usename = 'app' and state = 'idle'";
        (c.nodes[0].psql(idle) == "0").then_some(())
    });
    // Who had one of them all the time does not notice.
    assert_eq!(words(&keeps.query(name)), "T | D n2 f | C INSERT 0 1 | Z I");
}

#[test]
fn a_login_while_there_is_no_primary_is_served_by_a_standby() {
    // Reads go on for as long as a standby may be behind a primary that does not answer.
    let mut c = Cluster::start(1, |raw| {
        raw.max_replay_lag = cluster::config::Span::secs(60);
        raw.timeouts.server_check_delay = cluster::config::Span::secs(0);
        raw.workers = 1;
    });
    let mut reader = Raw::login(c.port, &[]);
    let read = |s: &mut Raw| words(&s.query("select current_setting('cluster_name')"));
    wait_for("a read at the standby", || read(&mut reader).contains("D n2").then_some(()));
    c.nodes[0].kill();
    c.publish(|t| t.gate = Gate::Closed(Closed::Recruiting));
    assert_eq!(read(&mut reader), "T | D n2 | C SELECT 1 | Z I");
    let mut s = Raw::login(c.port, &[("DateStyle", "German")]);
    let standby = s.settings.iter().find(|(n, _)| n == "in_hot_standby").map(|(_, v)| v.clone());
    assert_eq!(standby.as_deref(), Some("off"));
    // Nobody has told yet what such a client is told by a primary, and the standby's connection is idle since.
    drop(Raw::login(c.port, &[("DateStyle", "German")]));
    s.write(|out| write_query(out, "create table t(a int)"));
    c.fail_over_to(1);
    assert_eq!(words(&s.until_ready()), "C CREATE TABLE | Z I");
    // The term is reported: at login, and when another one answers.
    assert_eq!((s.terms(), Raw::login(c.port, &[]).terms()), (vec!["1", "2"], vec!["2"]));
    let timeline = "select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint";
    assert_eq!(words(&s.query(timeline)), "T | D 2 | C SELECT 1 | Z I", "what a trigger compares a term with");
}

#[test]
fn who_only_reads_at_standbys_is_told_of_a_later_term_once_it_is_open() {
    for mode in [PoolMode::Transaction, PoolMode::Session] {
        let c = Cluster::start(1, |raw| {
            raw.max_replay_lag = cluster::config::Span::secs(60);
            raw.workers = 1;
            raw.pools.pool_mode = mode;
        });
        let read = |s: &mut Raw| words(&s.query("select current_setting('cluster_name')"));
        // A session that read too early, before any lag was known, may keep the primary.
        let mut reader = wait_for("a read at the standby", || {
            let mut reader = Raw::login(c.port, &[]);
            read(&mut reader).contains("D n2").then_some(reader)
        });
        c.publish(|t| (t.term, t.gate) = (t.term.next(), Gate::Closed(Closed::Recruiting)));
        assert_eq!((read(&mut reader).as_str(), reader.terms()), ("T | D n2 | C SELECT 1 | Z I", vec!["1"]));
        c.publish(|t| t.gate = Gate::Open);
        wait_for("another read there", || read(&mut reader).contains("D n2").then_some(()));
        assert_eq!(reader.terms(), ["1", "2"], "{mode:?}");
    }
}

#[test]
fn a_read_that_writes_after_all_runs_again_on_the_primary() {
    let c = Cluster::start(1, |raw| {
        raw.catalog_refresh = cluster::config::Span::secs(1);
        raw.reads.remember_refused = cluster::config::Span::millis(0);
    });
    c.psql(
        "create sequence s_seq; create function f() returns bigint stable language sql as 'select nextval(''s_seq'')'",
    )
    .unwrap();
    let mut s = Raw::login(c.port, &[]);
    let mut last = 0;
    wait_for("a standby to refuse it", || {
        let answer = s.query("select f()");
        assert_eq!((answer[0].as_str(), answer[2].as_str()), ("T", "C SELECT 1"), "{answer:?}");
        let value: u64 = answer[1][2..].parse().unwrap();
        // Never twice, never lost: the refused attempt left no trace.
        assert_eq!(value, last + 1);
        last = value;
        (c.counter("pgtenure_proxy_retries_total") >= 1.0).then_some(())
    });
    // The standby has done nothing wrong: its connection serves on.
    let alive = "select string_agg(pid::text, ',' order by backend_start) from pg_stat_activity where usename = 'app'";
    let before = c.nodes[1].psql(alive);
    assert!(!before.trim().is_empty(), "the connection was closed");
    let refused = c.counter("pgtenure_proxy_retries_total");
    wait_for("more refusals", || {
        s.query("select f()");
        (c.counter("pgtenure_proxy_retries_total") >= refused + 3.0).then_some(())
    });
    let after = c.nodes[1].psql(alive);
    assert!(after.trim().starts_with(before.trim()), "{before} then {after}");
}

#[test]
fn what_a_standby_has_refused_is_asked_of_no_other_standby() {
    let c = Cluster::start(2, |raw| {
        raw.workers = 1;
        raw.reads.remember_refused = cluster::config::Span::millis(0);
    });
    c.psql(
        "create sequence s_seq; create function f() returns bigint stable language sql as 'select nextval(''s_seq'')'",
    )
    .unwrap();
    c.replicate();
    let waits = [("pgtenure.standby_wait", "60s"), ("pgtenure.no_standby", "error")];
    let [mut any, mut only] = [Raw::login(c.port, &[]), Raw::login(c.port, &waits)];
    let refused = || c.counter_of("pgtenure_proxy_retries_total", "refused");
    wait_for("a standby to refuse it", || {
        assert_eq!(any.query("select f()")[2], "C SELECT 1");
        (refused() >= 1.0).then_some(())
    });
    let before = refused();
    for told in 1..=3 {
        assert_eq!(only.query("select f()")[2], "C SELECT 1");
        wait_for("that to be counted", || (refused() >= before + f64::from(told)).then_some(()));
        assert_eq!(refused(), before + f64::from(told));
        let route = words(&only.query("show pgtenure.last_route"));
        assert!(route.contains("D primary n1: refused_before: a standby has refused such a statement"), "{route}");
    }
}

#[test]
fn that_a_materialized_view_has_no_rows_yet_is_not_remembered() {
    let c = Cluster::start(1, |raw| raw.workers = 1);
    c.psql("create materialized view m as select 1 as a with no data").unwrap();
    c.replicate();
    let mut s = Raw::login(c.port, &[]);
    wait_for("a standby to be asked several times", || {
        assert_eq!(words(&s.query("select a from m")), "E 55000 | Z I");
        (c.counter_of("pgtenure_proxy_retries_total", "refused") >= 3.0).then_some(())
    });
    c.psql("refresh materialized view m").unwrap();
    c.replicate();
    wait_for("a standby to serve it", || {
        (words(&s.query("select a, current_setting('cluster_name') from m")) == "T | D 1 n2 | C SELECT 1 | Z I")
            .then_some(())
    });
}

#[test]
fn what_a_standby_has_refused_behind_rows_fails_once() {
    let c = Cluster::start(1, |raw| raw.workers = 1);
    c.psql(
        "create sequence s_seq; create function f(int) returns bigint stable language sql \
         as 'select case $1 when 5000 then nextval(''s_seq'') else 0 end'",
    )
    .unwrap();
    c.replicate();
    let mut s = Raw::login(c.port, &[]);
    let told = |s: &mut Raw| s.query("select f(n), repeat('x', 100) from generate_series(1, 5000) n").split_off(1);
    wait_for("a standby to refuse it", || {
        let told = told(&mut s);
        assert!(told.len() > 1000, "{told:?}");
        (told[told.len() - 2] == "E 25006").then_some(())
    });
    let told = told(&mut s);
    assert_eq!(told[told.len() - 2], "C SELECT 5000");
    wait_for("that to be counted", || (c.counter("pgtenure_proxy_misroutes_total") == 1.0).then_some(()));
    let route = words(&s.query("show pgtenure.last_route"));
    assert!(route.contains("D primary n1: refused_before: a standby has refused such a statement"), "{route}");
}

/// As PostgreSQL does when it is stopped; but never where that could be taken for the outcome of a commit.
#[test]
fn a_process_that_stops_tells_its_clients() {
    let mut c = Cluster::start(0, |_| {});
    let mut idle = Raw::login(c.port, &[]);
    let (mut block, mut reading) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let mut committing = Raw::login(c.port, &[]);
    idle.query("create table t(a int)");
    block.query("begin; insert into t values (1)");
    reading.query("begin; insert into t values (2)");
    reading.write(|out| write_query(out, "select pg_sleep(60)"));
    committing.write(|out| write_query(out, "insert into t select 3 from pg_sleep(60)"));
    wait_until_running(&c, 0, 2);
    drop(c.handle.take());
    for (who, client) in [("idle", &mut idle), ("in a block", &mut block), ("with a statement", &mut reading)] {
        assert_eq!((client.next().as_str(), client.next().as_str()), ("E 57P01", "EOF"), "{who}");
    }
    assert_eq!(committing.next(), "EOF", "its outcome is unknown");
}

#[test]
fn a_prepared_statement_that_a_standby_has_refused_by_execute_goes_to_the_primary_at_once() {
    let c = Cluster::start(2, |raw| raw.workers = 1);
    c.psql("create sequence s_seq; create function f(int) returns bigint stable language sql as 'select nextval(''s_seq'')'")
        .unwrap();
    let mut s = Raw::login(c.port, &[]);
    assert_eq!(words(&s.query("prepare p(int) as select f($1)")), "C PREPARE | Z I");
    wait_for("a standby to refuse it", || {
        assert_eq!(s.query("execute p(1)")[2], "C SELECT 1");
        (c.counter("pgtenure_proxy_misroutes_total") >= 1.0).then_some(())
    });
    wait_for("a standby to serve other reads", || {
        let text = words(&s.query("select current_setting('cluster_name')"));
        (!text.contains("D n1")).then_some(())
    });
    let (refused, queries) = (c.counter("pgtenure_proxy_retries_total"), c.counter("pgtenure_proxy_queries_total"));
    for i in 0..20 {
        assert_eq!(s.query(&format!("execute p({i})"))[2], "C SELECT 1");
    }
    wait_for("them to be counted", || (c.counter("pgtenure_proxy_queries_total") >= queries + 20.0).then_some(()));
    assert_eq!(c.counter("pgtenure_proxy_retries_total"), refused);
    assert_eq!(c.counter("pgtenure_proxy_misroutes_total"), 1.0);
}

#[test]
fn what_a_standby_has_refused_goes_to_the_primary_at_once() {
    let c = Cluster::start(2, |raw| raw.workers = 1);
    c.psql("create sequence s_seq; create function f(int) returns bigint stable language sql as 'select nextval(''s_seq'')'")
        .unwrap();
    // It does not ask whether it may write: PostgreSQL's code finds that it may not where nothing should have come to (XX000).
    c.psql("create function emits() returns text stable language sql as $$ select pg_logical_emit_message(true, 'a', '')::text $$")
        .unwrap();
    // That a standby does not know them yet is not what is counted here.
    c.replicate();
    let [mut s, mut prepared] = [(); 2].map(|()| Raw::login(c.port, &[]));
    prepared.write(|out| {
        parse(out, "f", "select f($1)");
        sync(out);
    });
    assert_eq!(words(&prepared.until_ready()), "1 | Z I");
    wait_for("a standby to refuse it", || {
        assert_eq!(s.query("select f(1)")[2], "C SELECT 1");
        (c.counter("pgtenure_proxy_misroutes_total") >= 1.0).then_some(())
    });
    wait_for("a standby to serve other reads", || {
        let text = words(&s.query("select current_setting('cluster_name')"));
        (!text.contains("D n1")).then_some(())
    });
    let refused = c.counter("pgtenure_proxy_retries_total");
    for i in 0..20 {
        assert_eq!(s.query(&format!("SELECT f({i}) /* as before */"))[2], "C SELECT 1");
        prepared.write(|out| {
            bind(out, "", "f", &["7"]);
            execute(out, "");
            sync(out);
        });
        assert_eq!(prepared.until_ready()[2], "C SELECT 1");
    }
    // Of all statements some that came before are counted late.
    let at_once = || c.counter_of("pgtenure_proxy_queries_total", "refused_before");
    wait_for("them to be counted", || (at_once() >= 40.0).then_some(()));
    assert_eq!(c.counter("pgtenure_proxy_retries_total"), refused);
    assert_eq!(c.counter_of("pgtenure_proxy_retries_total", "refused"), refused);
    assert_eq!(c.counter("pgtenure_proxy_misroutes_total"), 1.0);
    wait_for("what is remembered to be told", || (c.counter("pgtenure_proxy_refused_shapes") == 1.0).then_some(()));
    let route = words(&s.query("show pgtenure.last_route"));
    assert!(route.contains("primary n1: "), "{route}");
    s.query("select f(8)");
    let route = words(&s.query("show pgtenure.last_route"));
    assert!(route.contains("D primary n1: refused_before: a standby has refused such a statement"), "{route}");
    wait_for("a standby to refuse what does not ask first", || {
        assert_eq!(s.query("select emits()")[2], "C SELECT 1");
        (c.counter("pgtenure_proxy_misroutes_total") >= 2.0).then_some(())
    });
    let all = c.counter("pgtenure_proxy_retries_total");
    assert_eq!(c.counter_of("pgtenure_proxy_retries_total", "refused"), all);
    assert_eq!(s.query("select emits()")[2], "C SELECT 1");
    assert_eq!(c.counter("pgtenure_proxy_retries_total"), all);
}

#[test]
fn a_standby_that_has_refused_a_statement_serves_others_at_once() {
    let c = Cluster::start(1, |raw| raw.workers = 1);
    c.psql("create sequence s_seq; create function f(int) returns bigint stable language sql as 'select nextval(''s_seq'')'")
        .unwrap();
    c.replicate();
    let mut s = Raw::login(c.port, &[]);
    let first = "select current_setting('cluster_name') /* first */";
    wait_for("the standby to serve a read", || words(&s.query(first)).contains("D n2").then_some(()));
    let backend = |of: &str| c.nodes[1].psql(&format!("select pid from pg_stat_activity where {of}"));
    let pid = backend("query like '%first%' and pid <> pg_backend_pid()");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Of what it refuses, and of what it does not know, the error and the end came in one piece: nothing is to be waited for.
    for (sql, told, counted) in [
        ("select f(1)", "C SELECT 1", "pgtenure_proxy_misroutes_total"),
        ("select * from unknown_table", "E 42P01", "pgtenure_proxy_retries_total"),
    ] {
        let before = c.counter(counted);
        wait_for("it to be asked of the standby first", || {
            let answer = words(&s.query(sql));
            assert!(answer.contains(told), "{answer}");
            (c.counter(counted) > before).then_some(())
        });
        let rests = format!("pid = {pid} and state = 'idle' and query = 'DISCARD ALL'");
        wait_for("the standby's server to be clean again", || (backend(&rests) == pid).then_some(()));
        // PostgreSQL says so before the proxy has heard of it.
        let view = || runtime.block_on(c.handle.as_ref().unwrap().view(common::DEADLINE)).expect("the workers answer");
        wait_for("the proxy to have it back", || {
            view()
                .servers
                .iter()
                .any(|server| server.pid.to_string() == pid && server.state != ServerState::Active)
                .then_some(())
        });
        wait_for("it to serve a read", || words(&s.query(first)).contains("D n2").then_some(()));
        assert_eq!(backend(&format!("pid = {pid} and query like '%first%'")), pid, "another server has served that");
    }
}

#[test]
fn a_drained_proxy_lets_transactions_end() {
    let mut c = Cluster::start(0, |_| {});
    let mut inside = Raw::login(c.port, &[]);
    let mut idle = Raw::login(c.port, &[]);
    inside.query("create table t(a int)");
    inside.query("begin");
    let handle = c.handle.take().unwrap();
    let draining = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(handle.drain(Duration::from_secs(15)));
    });
    wait_for("new transactions to be refused", || {
        let answer = words(&idle.query("select 1"));
        (answer == "E 57P01 | EOF").then_some(())
    });
    assert_eq!(words(&inside.query("insert into t values (1)")), "C INSERT 0 1 | Z T");
    let started = Instant::now();
    assert_eq!(words(&inside.query("commit")), "C COMMIT | Z I");
    draining.join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(c.nodes[0].psql("select count(*) from t"), "1");
}

#[test]
fn a_drained_proxy_lets_reads_on_standbys_end_and_sessions_that_keep_servers_begin_nothing() {
    let mut c = Cluster::start(1, |raw| {
        raw.databases.insert("kept".into(), by_session());
        raw.max_replay_lag = cluster::config::Span::secs(10);
    });
    let (mut reader, mut idle) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let mut keeps = Raw::login(c.port, &[("database", "kept")]);
    assert_eq!(words(&keeps.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    // What was read at the primary counts like a write, so it takes until a sample covers that.
    let at = "T | D n2 | C SELECT 1 | Z ";
    wait_for("the standby to serve reads", || {
        (words(&reader.query("select current_setting('cluster_name')")) == format!("{at}I")).then_some(())
    });
    reader.query("begin read only");
    assert_eq!(words(&reader.query("select current_setting('cluster_name')")), format!("{at}T"));
    let handle = c.handle.take().unwrap();
    let draining = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(handle.drain(Duration::from_secs(60)));
    });
    wait_for("new transactions to be refused", || {
        let answer = words(&idle.query("select 1"));
        (answer == "E 57P01 | EOF").then_some(())
    });
    assert_eq!(words(&keeps.query("select 1")), "E 57P01 | EOF");
    assert_eq!(words(&reader.query("select 2")), "T | D 2 | C SELECT 1 | Z T");
    assert!(!draining.is_finished(), "a transaction runs");
    assert_eq!(words(&reader.query("commit")), "C COMMIT | Z I");
    draining.join().unwrap();
}
