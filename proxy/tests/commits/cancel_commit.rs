//! Cancel requests while a commit waits for a standby that never comes: what is passed on, and what is never told as
//! success.

use super::common::raw::{Raw, flush, let_commits_wait, run, sync, wait_until_waiting};
use super::common::{self, Cluster, dial, wait_for};
use cluster::config::Span;
use cluster::topology::Gate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy::config::reads::CommitLsn;
use proxy::config::{self, pools::Database};
use proxy::pool::{Order, Scope};
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// A table of the clients', made past the limits that they are to have.
const UNLIMITED: &str = "create table app.public.t(a int); grant all on t to app";

fn words(seen: &[String]) -> String {
    seen.join(" | ")
}

/// A cluster whose table is there and whose commits wait for nobody.
fn hung() -> Cluster {
    let c = Cluster::start(0, |_| {});
    c.psql("create table t(a int)").expect("nothing hangs yet");
    let_commits_wait(&c);
    c
}

/// As libpq: send the request, and wait until it has been dealt with.
fn cancel(c: &Cluster, s: &Raw) {
    let mut request = dial(c.port);
    request.write_all(&cancel_request(s.key.0, s.key.1)).expect("the endpoint reads");
    assert_eq!(request.read(&mut [0]).expect("it is closed"), 0);
}

fn send(s: &mut Raw, sql: &str) {
    s.write(|out| write_query(out, sql));
}

#[test]
fn an_explicit_commit_is_not_told_to_stop_waiting() {
    let c = Cluster::start(0, |_| {});
    c.psql("create table t(a int)").expect("nothing hangs yet");
    let mut s: Vec<Raw> = (0..6).map(|_| Raw::login(c.port, &[])).collect();
    for gid in ["two", "none"] {
        s[0].query("begin");
        s[0].query("insert into t values (2)");
        assert_eq!(words(&s[0].query(&format!("prepare transaction '{gid}'"))), "C PREPARE TRANSACTION | Z I");
    }
    let_commits_wait(&c);
    for s in &mut s[..3] {
        s.query("begin");
        s.query("insert into t values (1)");
    }
    let texts = ["commit", "prepare transaction 'three'", "commit prepared 'two'", "rollback prepared 'none'"];
    s[0].write(|out| {
        run(out, texts[0]);
        sync(out);
    });
    for (s, sql) in s[1..5].iter_mut().zip(texts) {
        send(s, sql);
    }
    // So do those send it who have a whole transaction to send.
    send(&mut s[5], "begin; insert into t values (1); commit");
    wait_until_waiting(&c, s.len());
    s.iter().for_each(|s| cancel(&c, s));
    // The requests have been dealt with, and all still wait.
    wait_until_waiting(&c, s.len());
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    let mut answers = s.iter_mut().map(|s| words(&s.until_ready()));
    assert_eq!(answers.next().as_deref(), Some("1 | 2 | C COMMIT | Z I"));
    for (sql, answer) in texts.into_iter().zip(answers) {
        let tag = sql.split_once('\'').map_or(sql, |(words, _)| words).trim().to_uppercase();
        assert_eq!(answer, format!("C {tag} | Z I"));
    }
    assert_eq!(words(&s[5].until_ready()), "C BEGIN | C INSERT 0 1 | C COMMIT | Z I");
}

/// Nobody would be told that it is on no standby, and all would see it.
#[test]
fn what_waits_for_standbys_waits_on_when_its_client_has_gone() {
    let c = Cluster::start(0, |raw| raw.drain_timeout = Span::millis(100));
    c.psql("create table t(a int)").expect("nothing hangs yet");
    let_commits_wait(&c);
    let insert = "insert into t values (1)";
    let (mut simple, mut ext, mut open) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    // What nobody has read of an answer makes the end of the connection known.
    simple.write(|out| ["select 1", insert].iter().for_each(|sql| write_query(out, sql)));
    ext.query("begin");
    ext.query(insert);
    ext.write(|out| {
        write_query(out, "select 1");
        // What has no Sync yet is not reached.
        run(out, "commit");
        sync(out);
        run(out, insert);
        flush(out);
    });
    open.write(|out| {
        ["select 1", insert].iter().for_each(|sql| write_query(out, sql));
        run(out, insert);
        flush(out);
    });
    wait_until_waiting(&c, 3);
    for s in [&simple, &ext, &open] {
        s.stream.peek(&mut [0]).expect("it was answered");
    }
    drop((simple, ext, open));
    let in_use = || c.counter_of("pgtenure_proxy_servers", "in_use");
    wait_for("their servers to be given up", || (in_use() == 0.0).then_some(()));
    let mut direct = Raw::login(c.nodes[0].port, &[]);
    assert_eq!(words(&direct.query("select count(*) from t")), "T | D 0 | C SELECT 1 | Z I");
    wait_until_waiting(&c, 3);
}

#[test]
fn a_commit_of_its_own_that_stopped_waiting_is_told_by_its_notice() {
    let c = hung();
    let mut simple = Raw::login(c.port, &[]);
    let mut ext = Raw::login(c.port, &[]);
    send(&mut simple, "insert into t values (1)");
    ext.write(|out| {
        run(out, "insert into t values (2)");
        sync(out);
    });
    wait_until_waiting(&c, 2);
    cancel(&c, &simple);
    cancel(&c, &ext);
    assert_eq!(words(&simple.until_ready()), "N 01000 | E 08007 | Z I");
    assert_eq!(words(&ext.until_ready()), "1 | 2 | C INSERT 0 1 | N 01000 | E 08007 | Z I");
    // Somebody else may have stopped it as well.
    send(&mut simple, "insert into t values (3)");
    wait_until_waiting(&c, 1);
    c.nodes[0].psql("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'");
    assert_eq!(words(&simple.until_ready()), "N 01000 | E 08007 | Z I");
    wait_for("all of them to be counted", || (c.counter("pgtenure_proxy_in_doubt_total") == 3.0).then_some(()));
    // It is there all the same.
    assert_eq!(words(&simple.query("select count(*) from t")), "T | D 3 | C SELECT 1 | Z I");
}

#[test]
fn a_session_that_hides_the_notice_is_told_all_the_same() {
    // Behind each write it is asked where that ends, which is answered apart.
    let c = Cluster::start(1, |raw| raw.reads.commit_lsn = CommitLsn::Ask);
    c.psql("create table t(a int)").expect("nothing hangs yet");
    let_commits_wait(&c);
    let mut by_set = Raw::login(c.port, &[]);
    by_set.query("set client_min_messages = error");
    let mut at_once = Raw::login(c.port, &[]);
    let mut by_startup = Raw::login(c.port, &[("client_min_messages", "error")]);
    let mut by_options = Raw::login(c.port, &[("options", "-c client_min_messages=error")]);
    let insert = "insert into t values (1)";
    for s in [&mut by_set, &mut by_startup, &mut by_options] {
        send(s, insert);
    }
    send(&mut at_once, &format!("set client_min_messages = error; {insert}"));
    wait_until_waiting(&c, 4);
    for s in [&mut by_set, &mut by_startup, &mut by_options] {
        cancel(&c, s);
        assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    }
    cancel(&c, &at_once);
    assert_eq!(words(&at_once.until_ready()), "E 08007 | Z I");
    // It is told of that one, and not of the next.
    for s in [&mut by_set, &mut by_startup, &mut by_options, &mut at_once] {
        assert_eq!(words(&s.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    }
    // A write that failed before it committed is known to have failed.
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    holder.query("lock table t");
    send(&mut by_set, insert);
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    wait_for("the insert to wait for the lock", || (c.nodes[0].psql(blocked) == "1").then_some(()));
    cancel(&c, &by_set);
    assert_eq!(words(&by_set.until_ready()), "E 57014 | Z I");
}

/// The request comes too late, and nothing that the statement does waits for standbys.
#[test]
fn what_waits_for_nobody_is_told_as_it_is_although_its_client_had_it_cancelled() {
    let c = Cluster::start(0, |raw| {
        (raw.connect_timeout, raw.durability.allow_lower) = (Span::millis(500), Some(true));
    });
    c.psql("create table t(a int)").expect("nothing hangs");
    let mut s = Raw::login(c.port, &[("client_min_messages", "error"), ("synchronous_commit", "off")]);
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    holder.query("lock table t");
    send(&mut s, "insert into t values (1)");
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    wait_for("the insert to wait for the lock", || (c.nodes[0].psql(blocked) == "1").then_some(()));
    // Whoever hands requests on does not, so it is given up in the end.
    let postmaster = c.nodes[0].postmaster();
    kill(postmaster, Signal::SIGSTOP).expect("it runs");
    cancel(&c, &s);
    holder.query("rollback");
    let told = words(&s.until_ready());
    kill(postmaster, Signal::SIGCONT).expect("it stands still");
    assert_eq!(told, "C INSERT 0 1 | Z I");
}

/// What its commit waits for is set by a function, which the text of its call does not show.
#[test]
fn what_waits_by_a_functions_setting_is_no_success_to_who_hides_the_notice() {
    let c = Cluster::start(0, |_| {});
    let waits = "create function waits() returns int language plpgsql as \
                 $$ begin perform set_config('synchronous_commit', 'on', true); insert into t values (1); return 1; end $$";
    for sql in [UNLIMITED, waits] {
        c.nodes[0].psql(sql);
    }
    c.publish(|topology| (topology.protected, topology.semi_sync) = (false, false));
    let_commits_wait(&c);
    // As in a cluster whose commits wait for nobody. No connection of the pool is older.
    c.nodes[0].psql("set synchronous_commit = off; alter role app set synchronous_commit = local");
    let mut s = Raw::login(c.port, &[("client_min_messages", "error")]);
    send(&mut s, "select waits()");
    wait_until_waiting(&c, 1);
    cancel(&c, &s);
    assert_eq!(words(&s.until_ready()), "T | D 1 | E 08007 | Z I");
    s.query("begin");
    s.query("select waits()");
    send(&mut s, "commit");
    wait_until_waiting(&c, 1);
    cancel(&c, &s);
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    assert_eq!(words(&s.query("select count(*) from t")), "T | D 2 | C SELECT 1 | Z I");
}

/// Who asks for more than the cluster's mode is kept that as well; and one that could not be asked is not given up, as what
/// does not end once it was stopped is after ten seconds.
#[test]
fn what_waits_by_its_own_setting_is_stopped_by_no_limit() {
    let c = Cluster::start(0, |raw| {
        (raw.pool_size, raw.workers) = (1, 1);
        raw.timeouts.query_timeout = Span::millis(300);
    });
    c.nodes[0].psql(UNLIMITED);
    c.publish(|topology| (topology.protected, topology.semi_sync) = (false, false));
    let_commits_wait(&c);
    let mut s = Raw::login(c.port, &[]);
    let refused = || c.counter_of("pgtenure_proxy_server_connects_total", "refused");
    c.nodes[0].psql("set synchronous_commit = off; alter role app connection limit 1");
    send(&mut s, "insert into t values (1)");
    let seen = || c.nodes[0].psql("select count(*) from t") != "0";
    wait_for("a connection to ask it on", || (refused() > 0.0 || seen()).then_some(()));
    assert!(!seen(), "it was told to stop waiting");
    s.stream.set_read_timeout(Some(Duration::from_secs(12))).expect("a TCP socket");
    assert!(s.stream.peek(&mut [0]).is_err(), "nothing is told");
    s.stream.set_read_timeout(Some(common::DEADLINE)).expect("a TCP socket");
    assert!(!seen(), "it was told to stop waiting");
    wait_until_waiting(&c, 1);
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&s.until_ready()), "C INSERT 0 1 | Z I");
}

/// One that could not be asked, where standbys have all that there is.
#[test]
fn what_waits_for_a_lock_is_given_up_although_it_may_commit() {
    let c = Cluster::start(1, |raw| {
        (raw.pool_size, raw.workers) = (1, 1);
        raw.timeouts.query_timeout = Span::millis(300);
    });
    c.nodes[0].psql(UNLIMITED);
    c.nodes[0].psql("alter system set synchronous_standby_names = 'ANY 1 (n2)'");
    c.nodes[0].psql("select pg_reload_conf()");
    let waits = "select count(*) from pg_stat_replication where sync_state = 'quorum'";
    wait_for("commits to wait for the standby", || (c.nodes[0].psql(waits) == "1").then_some(()));
    c.list_is_in_force();
    c.nodes[0].psql("begin; lock table app.public.t; prepare transaction 'holder'");
    c.nodes[0].psql("alter role app connection limit 1");
    let mut s = Raw::login(c.port, &[]);
    send(&mut s, "insert into t values (1)");
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    assert!(c.counter_of("pgtenure_proxy_server_connects_total", "refused") > 0.0, "it was asked");
}

/// Nobody would be told that it is on no standby, and all would see it. No client has asked for that.
#[test]
fn what_waits_for_standbys_is_stopped_by_no_limit_and_by_no_order() {
    let mut c = Cluster::start(0, |raw| {
        // All of its connections wait.
        (raw.pool_size, raw.workers) = (1, 1);
        raw.timeouts.query_timeout = Span::millis(300);
    });
    c.nodes[0].psql(UNLIMITED);
    let_commits_wait(&c);
    let insert = "insert into t values (1)";
    let (mut limited, mut killed) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    let seen = |c: &Cluster| c.nodes[0].psql("select count(*) from t") != "0";
    // What is asked is over once all that was connected for it is closed or idle.
    let connects = |c: &Cluster| c.counter_of("pgtenure_proxy_server_connects_total", "ok");
    let asked = |c: &Cluster, before: f64, in_use: f64| {
        wait_for("the server to be asked what it is at", || {
            let over = connects(c) > before && c.counter_of("pgtenure_proxy_servers", "in_use") == in_use;
            (over || seen(c)).then_some(())
        });
        assert!(!seen(c), "it was told to stop waiting");
        wait_until_waiting(c, 1);
    };
    let before = connects(&c);
    send(&mut limited, insert);
    asked(&c, before, 1.0);
    // It is not given up either, as what does not end once it was stopped is after ten seconds: it would go on waiting on a
    // connection that counts for nobody.
    limited.stream.set_read_timeout(Some(Duration::from_secs(11))).expect("a TCP socket");
    assert!(limited.stream.peek(&mut [0]).is_err(), "nothing is told");
    limited.stream.set_read_timeout(Some(common::DEADLINE)).expect("a TCP socket");
    assert!(!seen(&c), "it was told to stop waiting");
    wait_until_waiting(&c, 1);
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&limited.until_ready()), "C INSERT 0 1 | Z I");
    // What does not wait is stopped, though it would commit.
    send(&mut limited, "insert into t select 1 from pg_sleep(60)");
    assert_eq!(words(&limited.until_ready()), "E 57014 | Z I");
    // Also before a COMMIT in the same unit, whatever its text begins with.
    for text in ["/* of a trace */ insert into t select 1 from pg_sleep(60)", "explain analyze select pg_sleep(60)"] {
        limited.write(|out| {
            ["begin", text, "commit"].iter().for_each(|sql| run(out, sql));
            sync(out);
        });
        assert_eq!(words(&limited.until_ready()), "1 | 2 | C BEGIN | 1 | 2 | E 57014 | Z E", "{text}");
        assert_eq!(words(&limited.query("rollback")), "C ROLLBACK | Z I");
    }
    limited.query("begin");
    limited.write(|out| {
        run(out, "insert into t select 1 from pg_sleep(60)");
        write_query(out, "commit");
        sync(out);
    });
    assert_eq!(words(&limited.until_ready()), "1 | 2 | E 57014 | Z E");
    assert_eq!(words(&limited.query("rollback")), "C ROLLBACK | Z I");
    drop(limited);
    // What is to be done is not done under a limit that is that short.
    assert_eq!(c.nodes[0].psql("with gone as (delete from t returning a) select count(*) from gone"), "1");
    let_commits_wait(&c);
    let order = |c: &Cluster, order: Order| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = c.handle.as_ref().expect("the proxy runs");
        runtime.block_on(handle.order(order, Scope::Database("app".to_owned()), Duration::from_secs(10)))
    };
    send(&mut killed, insert);
    wait_until_waiting(&c, 1);
    let before = connects(&c);
    order(&c, Order::Kill).expect("it is carried out");
    assert_eq!(killed.next(), "EOF");
    asked(&c, before, 0.0);
    order(&c, Order::Resume).expect("it was paused");
    // Nor by the end of the process.
    let mut last = Raw::login(c.port, &[]);
    send(&mut last, insert);
    wait_until_waiting(&c, 2);
    drop(c.handle.take());
    assert_eq!(last.next(), "EOF");
    assert!(!seen(&c), "it was told to stop waiting");
    wait_until_waiting(&c, 2);
}

#[test]
fn a_read_is_cancelled_as_ever() {
    let c = hung();
    for parameters in [&[][..], &[("client_min_messages", "error")]] {
        let mut s = Raw::login(c.port, parameters);
        send(&mut s, "select pg_sleep(60)");
        asleep(&c);
        cancel(&c, &s);
        assert_eq!(words(&s.until_ready()), "T | E 57014 | Z I");
    }
}

/// What comes before the COMMIT in a pipeline is cancelled as it would be alone.
#[test]
fn a_statement_with_a_commit_behind_it_is_cancelled() {
    let c = Cluster::start(0, |_| {});
    c.psql("create table t(a int)").expect("nothing hangs");
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    holder.query("lock table t");
    let mut s = Raw::login(c.port, &[]);
    s.write(|out| ["begin", "insert into t values (1)", "commit"].iter().for_each(|sql| write_query(out, sql)));
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    wait_for("the insert to wait for the lock", || (c.nodes[0].psql(blocked) == "1").then_some(()));
    cancel(&c, &s);
    for told in ["C BEGIN | Z T", "E 57014 | Z E", "C ROLLBACK | Z I"] {
        assert_eq!(words(&s.until_ready()), told);
    }
    holder.query("rollback");
    // So is a COMMIT that does not wait for standbys: what was put off until then may take long.
    slow_to_commit(&c);
    for waits in [false, true] {
        if waits {
            let_commits_wait(&c);
        }
        s.query("begin");
        s.query("insert into slow values (1)");
        send(&mut s, "commit");
        asleep(&c);
        cancel(&c, &s);
        assert_eq!(words(&s.until_ready()), "E 57014 | Z I");
    }
    assert_eq!(words(&s.query("select count(*) from slow")), "T | D 0 | C SELECT 1 | Z I");
}

/// A table, "slow", whose rows sleep when they are committed.
fn slow_to_commit(c: &Cluster) {
    for sql in [
        "create table slow(a int)",
        "create function sleeps() returns trigger language plpgsql as 'begin perform pg_sleep(600); return null; end'",
        "create constraint trigger late after insert on slow deferrable initially deferred \
         for each row execute function sleeps()",
    ] {
        c.psql(sql).expect("it is new");
    }
}

fn asleep(c: &Cluster) {
    let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    wait_for("the statement to run", || (c.nodes[0].psql(asleep) == "1").then_some(()));
}

/// A cluster in which what is not known stays so for a second only, once it is given these settings: before that all have the time
/// that it takes to make their connections.
fn hasty(set: impl FnOnce(&mut config::Raw)) -> (Cluster, config::Raw) {
    let mut typed = None;
    let c = Cluster::start(0, |raw| {
        set(raw);
        typed = Some(raw.clone());
    });
    (c, config::Raw { hold_timeout: Span::secs(1), ..typed.expect("they were set") })
}

/// The same, whose commits wait.
fn hung_for_a_second() -> (Cluster, config::Raw) {
    let (c, soon) = hasty(|raw| raw.durability.allow_lower = Some(true));
    c.psql("create table t(a int)").expect("nothing hangs yet");
    // No text of a caller tells what this sets.
    let hush = "create function hush() returns void language plpgsql as \
                $$ begin execute 'set local client_min_' || 'messages = error'; end $$";
    c.psql(hush).expect("nothing hangs yet");
    let adds = "create function adds() returns int language sql as 'insert into t values (1) returning a'";
    c.psql(adds).expect("nothing hangs yet");
    let_commits_wait(&c);
    (c, soon)
}

/// Somebody who is no client of ours stops all commits that wait.
fn stop_waiting(c: &Cluster, count: usize) {
    wait_until_waiting(c, count);
    c.nodes[0].psql("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'");
}

#[test]
fn a_commit_that_others_stop_is_no_success_to_who_hides_the_notice() {
    let (c, soon) = hung_for_a_second();
    let quiet = || Raw::login(c.port, &[("client_min_messages", "error")]);
    let (mut simple, mut ext, mut several, mut block, mut chain) = (quiet(), quiet(), quiet(), quiet(), quiet());
    let (mut local, mut hushed, mut prepared) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]), quiet());
    let (mut held, mut lowers) = (quiet(), quiet());
    let (mut behind, mut behind_another) = (quiet(), quiet());
    let insert = "insert into t values (1)";
    send(&mut simple, insert);
    // What is set behind it does not change what it has waited for.
    send(&mut lowers, "begin; insert into t values (1); commit; set synchronous_commit = off");
    // Nor does what holds in a transaction only change what is committed behind it.
    let lower = "set local synchronous_commit = off; insert into t values (1)";
    send(&mut behind, &format!("begin; {lower}; commit; {insert}"));
    behind_another.query(&format!("begin; {lower}"));
    send(&mut behind_another, &format!("commit; {insert}"));
    ext.write(|out| {
        run(out, insert);
        sync(out);
    });
    send(&mut several, "begin; insert into t values (1); commit; select 1");
    for (s, first) in [
        (&mut block, "select 1"),
        (&mut local, "set local client_min_messages = error"),
        (&mut hushed, "select hush()"),
    ] {
        s.query("begin");
        s.query(first);
        s.query(insert);
        send(s, "commit");
    }
    chain.query("begin");
    chain.query(insert);
    send(&mut chain, "commit and chain");
    prepared.query("begin");
    prepared.query(insert);
    prepared.write(|out| {
        // The success comes before the Sync.
        run(out, "commit");
        flush(out);
    });
    // Takes the id of a transaction when it commits.
    held.query("begin");
    held.query("declare c cursor with hold for select adds()");
    send(&mut held, "commit");
    wait_until_waiting(&c, 12);
    c.reload(soon);
    stop_waiting(&c, 12);
    for s in [&mut simple, &mut lowers, &mut behind, &mut behind_another] {
        assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    }
    assert_eq!(words(&ext.until_ready()), "1 | 2 | C INSERT 0 1 | E 08007 | Z I");
    assert_eq!(words(&several.until_ready()), "E 08007 | Z I");
    for s in [&mut block, &mut local, &mut hushed, &mut held] {
        assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    }
    assert_eq!(words(&chain.until_ready()), "E 08007 | Z T");
    for told in ["1", "2", "E 08007"] {
        assert_eq!(prepared.next(), told);
    }
    prepared.write(sync);
    assert_eq!(words(&prepared.until_ready()), "Z I");
    wait_for("all of them to be counted", || (c.counter("pgtenure_proxy_in_doubt_total") == 12.0).then_some(()));
    assert_eq!(words(&simple.query("select count(*) from t")), "T | D 14 | C SELECT 1 | Z I");
}

#[test]
fn a_commit_that_others_stop_is_told_once_standbys_have_it() {
    let c = Cluster::start(1, |raw| {
        (raw.workers, raw.timeouts.server_check_delay) = (1, Span::millis(0));
        let few = Database { dbname: Some("app".to_owned()), pool_size: Some(2), ..Database::default() };
        raw.databases.insert("few".to_owned(), few);
    });
    c.psql("create table t(a int)").expect("nothing hangs yet");
    let_commits_wait(&c);
    let quiet = || Raw::login(c.port, &[("client_min_messages", "error")]);
    let (mut simple, mut ext, mut block) = (quiet(), quiet(), quiet());
    send(&mut simple, "insert into t values (1)");
    ext.write(|out| {
        run(out, "insert into t values (1)");
        sync(out);
    });
    block.query("begin");
    block.query("insert into t values (1)");
    send(&mut block, "commit");
    stop_waiting(&c, 3);
    wait_until_waiting(&c, 0);
    c.nodes[0].psql("alter system set synchronous_standby_names = '*'");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&simple.until_ready()), "C INSERT 0 1 | Z I");
    assert_eq!(words(&ext.until_ready()), "1 | 2 | C INSERT 0 1 | Z I");
    assert_eq!(words(&block.until_ready()), "C COMMIT | Z I");
    // As ever, where all goes well.
    assert_eq!(words(&simple.query("insert into t values (2)")), "C INSERT 0 1 | Z I");
    assert_eq!(words(&simple.query("insert into t values (3); delete from t")), "C INSERT 0 1 | C DELETE 5 | Z I");
    // Samples tell less where commits wait only for who asks: a commit on another connection does, on one that is there.
    c.publish(|topology| topology.protected = false);
    let connected = || {
        let sql = "select string_agg(pid::text, ' ' order by pid) from pg_stat_activity where usename = 'app'";
        c.nodes[0].psql(sql)
    };
    let before = connected();
    assert_eq!(words(&simple.query("insert into t values (4)")), "C INSERT 0 1 | Z I");
    assert_eq!(connected(), before);
    one_that_says_nothing_holds_up_nobody(&c, simple);
    makes_sure_without_a_connection_of_the_pool(&c);
    // The last, as it leaves commits behind that nobody waits for.
    idle_ones_that_say_nothing_hold_up_nobody(&c, &mut quiet());
    assert_eq!(c.counter("pgtenure_proxy_in_doubt_total"), 0.0);
}

/// Who waits for a standby at its commit, but for one.
fn committing(c: &Cluster, but: i32) -> i32 {
    let sql = format!("select min(pid) from pg_stat_activity where wait_event = 'SyncRep' and pid <> {but}");
    wait_for("a commit to wait", || c.nodes[0].psql(&sql).parse().ok())
}

/// A commit is confirmed by one on a new connection where those that are idle do not answer.
fn idle_ones_that_say_nothing_hold_up_nobody(c: &Cluster, client: &mut Raw) {
    let_commits_wait(c);
    send(client, "insert into t values (5)");
    let of_client = committing(c, 0);
    let idle = "select pid from pg_stat_activity where usename = 'app' and state = 'idle'";
    let idle: Vec<_> = c.nodes[0].psql(idle).lines().map(|pid| Pid::from_raw(pid.parse().expect("a number"))).collect();
    assert!(idle.len() >= 2, "as many as are tried");
    // One beyond the pool's limits may end by itself meanwhile.
    idle.iter().for_each(|pid| _ = kill(*pid, Signal::SIGSTOP));
    c.nodes[0].psql(&format!("select pg_cancel_backend({of_client})"));
    committing(c, of_client);
    c.nodes[0].psql("alter system set synchronous_standby_names = '*'");
    c.nodes[0].psql("select pg_reload_conf()");
    let told = words(&client.until_ready());
    idle.iter().for_each(|pid| _ = kill(*pid, Signal::SIGCONT));
    assert_eq!(told, "C INSERT 0 1 | Z I");
}

/// A commit is confirmed by another one where the first that was sent for that does not come back.
fn one_that_says_nothing_holds_up_nobody(c: &Cluster, mut client: Raw) {
    let_commits_wait(c);
    send(&mut client, "insert into t values (5)");
    let of_client = committing(c, 0);
    c.nodes[0].psql(&format!("select pg_cancel_backend({of_client})"));
    let silent = Pid::from_raw(committing(c, of_client));
    kill(silent, Signal::SIGSTOP).expect("it runs");
    c.nodes[0].psql("alter system set synchronous_standby_names = '*'");
    c.nodes[0].psql("select pg_reload_conf()");
    let told = words(&client.until_ready());
    kill(silent, Signal::SIGCONT).expect("it stands still");
    assert_eq!(told, "C INSERT 0 1 | Z I");
}

/// The sessions have all that their pool may have, when they must know whether standbys have what they committed.
fn makes_sure_without_a_connection_of_the_pool(c: &Cluster) {
    let login = || Raw::login(c.port, &[("database", "few"), ("client_min_messages", "error")]);
    let (mut one, mut two) = (login(), login());
    let begin = |s: &mut Raw| {
        assert_eq!(words(&s.query("begin")), "C BEGIN | Z T");
        assert_eq!(words(&s.query("insert into t values (5)")), "C INSERT 0 1 | Z T");
    };
    let told = |s: &mut Raw| assert_eq!(words(&s.until_ready()), "C COMMIT | Z I");
    for _ in 0..2 {
        begin(&mut one);
        begin(&mut two);
        send(&mut one, "commit");
        send(&mut two, "commit");
        told(&mut one);
        told(&mut two);
    }
    // Nor do they wait for what other sessions wait for.
    begin(&mut one);
    c.publish(|topology| topology.gate = Gate::Draining);
    send(&mut one, "commit");
    told(&mut one);
    c.publish(|topology| topology.gate = Gate::Open);
    begin(&mut one);
    let handle = c.handle.as_ref().expect("the proxy runs");
    let order = |order: Order| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(handle.order(order, Scope::Database("few".to_owned()), common::DEADLINE))
    };
    std::thread::scope(|scope| {
        let paused = scope.spawn(|| order(Order::Pause));
        let (mut sent, mut held) = (false, 0);
        wait_for("a statement to be held", || {
            if !sent {
                send(&mut two, "select 1");
            }
            two.stream.set_nonblocking(true).expect("a TCP socket");
            sent = two.stream.peek(&mut [0]).is_err();
            two.stream.set_nonblocking(false).expect("a TCP socket");
            if !sent {
                two.until_ready();
            }
            // For a moment also one is that asks whether its server lives.
            held = if sent && handle.status().totals.held > 0 { held + 1 } else { 0 };
            (held > 3).then_some(())
        });
        send(&mut one, "commit");
        told(&mut one);
        paused.join().expect("it does not panic").expect("the database is quiet");
    });
    order(Order::Resume).expect("it was paused");
    assert_eq!(words(&two.until_ready()), "T | D 1 | C SELECT 1 | Z I");
}

/// What it says comes before the Sync, and what it does is committed by that only.
#[test]
fn success_that_was_told_before_its_commit_is_none_yet() {
    let (c, soon) = hasty(|raw| raw.workers = 1);
    let mut s = Raw::login(c.port, &[("client_min_messages", "error")]);
    s.write(|out| {
        run(out, "create table t()");
        flush(out);
    });
    for told in ["1", "2", "C CREATE TABLE"] {
        assert_eq!(s.next(), told);
    }
    let_commits_wait(&c);
    c.reload(soon);
    s.write(sync);
    stop_waiting(&c, 1);
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
}

#[test]
fn a_commit_that_waits_to_be_received_is_no_success_when_others_stop_it() {
    let (c, soon) = hung_for_a_second();
    let mut s = Raw::login(c.port, &[("client_min_messages", "error"), ("synchronous_commit", "remote_write")]);
    send(&mut s, "insert into t values (1)");
    wait_until_waiting(&c, 1);
    c.reload(soon);
    stop_waiting(&c, 1);
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
}

/// Samples do not tell where only who asks for it waits; and a commit of ours that would may never come back.
#[test]
fn a_commit_that_was_to_tell_of_another_is_left_behind_by_nobody() {
    let (c, soon) = hung_for_a_second();
    c.publish(|topology| topology.protected = false);
    let mut s = Raw::login(c.port, &[("client_min_messages", "error")]);
    send(&mut s, "insert into t values (1)");
    wait_until_waiting(&c, 1);
    c.reload(soon);
    stop_waiting(&c, 1);
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    wait_until_waiting(&c, 0);
}

/// It is not the statement that takes so long.
#[test]
fn no_limit_of_statements_ends_the_wait_for_what_standbys_have() {
    let hold = Duration::from_secs(5);
    let c = Cluster::start(0, |raw| {
        raw.hold_timeout = Span(hold);
        raw.timeouts.query_timeout = Span::secs(3);
    });
    c.psql("create table t(a int)").expect("nothing hangs yet");
    let_commits_wait(&c);
    let mut s = Raw::login(c.port, &[("client_min_messages", "error")]);
    send(&mut s, "insert into t values (1)");
    wait_until_waiting(&c, 1);
    let stopped = Instant::now();
    stop_waiting(&c, 1);
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    assert!(stopped.elapsed() >= hold, "{:?}", stopped.elapsed());
}

/// The standbys are gone, and what commits nothing need not hear of them.
#[test]
fn what_commits_nothing_waits_for_no_standby_although_notices_are_hidden() {
    let (c, soon) = hung_for_a_second();
    let mut s = Raw::login(c.port, &[("client_min_messages", "error")]);
    assert_eq!(words(&s.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    c.reload(soon);
    let mut in_doubt = 0.0;
    wait_for("the function to be known, which might hold a cursor otherwise", || {
        ["begin", "select hush()"].iter().for_each(|sql| _ = s.query(sql));
        let told = words(&s.query("commit"));
        in_doubt += f64::from(u8::from(told.starts_with("E 08007")));
        (told == "C COMMIT | Z I").then_some(())
    });
    // They are told before they are counted.
    wait_for("those to be counted", || (c.counter("pgtenure_proxy_in_doubt_total") == in_doubt).then_some(()));
    for (sql, told) in [
        ("set client_min_messages = error", "C SET | Z I"),
        ("reset work_mem", "C RESET | Z I"),
        ("select 1", "T | D 1 | C SELECT 1 | Z I"),
        ("begin", "C BEGIN | Z T"),
        ("select hush()", "T | D  | C SELECT 1 | Z T"),
        ("commit", "C COMMIT | Z I"),
        ("begin", "C BEGIN | Z T"),
        ("insert into t values (1)", "C INSERT 0 1 | Z T"),
        ("rollback", "C ROLLBACK | Z I"),
        ("insert into nothing values (1)", "E 42P01 | Z I"),
    ] {
        assert_eq!(words(&s.query(sql)), told, "{sql}");
    }
    s.write(|out| {
        run(out, "insert into t values (1/0)");
        sync(out);
    });
    assert_eq!(words(&s.until_ready()), "1 | E 22012 | Z I");
    assert_eq!(c.counter("pgtenure_proxy_in_doubt_total"), in_doubt);
}

/// Where no server can be asked a statement is cancelled all the same that commits what waits for nobody.
fn needs_nobody_to_ask_where_commits_wait_for_nobody(c: &Cluster) {
    let mut s = Raw::login(c.port, &[]);
    c.publish(|topology| (topology.protected, topology.semi_sync) = (false, false));
    assert_eq!(words(&s.query("set synchronous_commit = local")), "C SET | Z I");
    c.nodes[0].psql("alter role app connection limit 1");
    send(&mut s, "begin; select pg_sleep(600); commit");
    asleep(c);
    cancel(c, &s);
    assert_eq!(words(&s.until_ready()), "C BEGIN | T | E 57014 | Z E");
    assert_eq!(words(&s.query("rollback")), "C ROLLBACK | Z I");
    c.nodes[0].psql("alter role app connection limit -1");
    c.publish(|topology| (topology.protected, topology.semi_sync) = (true, true));
}

/// Who waits for its COMMIT may ask in vain: that is in the way of nobody whose statement may be stopped, and of nothing
/// behind the COMMIT.
#[test]
fn questions_about_commits_that_wait_hold_up_nobody() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.connect_timeout, raw.login_timeout) = (1, Span::secs(60), Span::secs(60));
    });
    c.warm();
    c.psql("create table t(a int)").expect("nothing hangs yet");
    needs_nobody_to_ask_where_commits_wait_for_nobody(&c);
    let mut s: Vec<Raw> = (0..6).map(|_| Raw::login(c.port, &[])).collect();
    s.iter_mut().for_each(|s| assert_eq!(words(&s.query("begin")), "C BEGIN | Z T"));
    s.drain(4..).for_each(|mut s| assert_eq!(words(&s.query("rollback")), "C ROLLBACK | Z I"));
    let_commits_wait(&c);
    let mut sleeps = s.pop().expect("four are left");
    for s in &mut s {
        s.query("insert into t values (1)");
        send(s, "commit");
    }
    wait_until_waiting(&c, 3);
    let idle = || {
        let sql = "select pid from pg_stat_activity where usename = 'app' and state = 'idle'";
        let pids = c.nodes[0].psql(sql);
        pids.lines().map(|pid| Pid::from_raw(pid.parse().expect("a number"))).collect::<Vec<_>>()
    };
    let idle = wait_for("two servers to be idle", || Some(idle()).filter(|idle| idle.len() == 2));
    idle.iter().for_each(|pid| kill(*pid, Signal::SIGSTOP).expect("it runs"));
    let request = |s: &Raw| {
        let mut request = dial(c.port);
        request.write_all(&cancel_request(s.key.0, s.key.1)).expect("the endpoint reads");
        request
    };
    let in_use = || c.counter_of("pgtenure_proxy_servers", "in_use");
    // An idle one is given half of `connect_timeout`.
    let (began, mut requests) = (Instant::now(), Vec::new());
    for (s, asked) in s.iter().zip([5.0, 6.0]) {
        requests.push(request(s));
        wait_for("an idle server to be asked", || (in_use() == asked).then_some(()));
    }
    // This one has no turn.
    requests.push(request(&s[2]));
    send(&mut sleeps, "select pg_sleep(600); commit");
    asleep(&c);
    cancel(&c, &sleeps);
    assert_eq!(words(&sleeps.until_ready()), "T | E 57014 | Z E");
    let in_time = || assert!(began.elapsed() < Duration::from_secs(30), "only once there was a turn");
    in_time();
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    s.iter_mut().for_each(|s| assert_eq!(words(&s.until_ready()), "C COMMIT | Z I"));
    assert_eq!(words(&s[2].query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    in_time();
    idle.iter().for_each(|pid| kill(*pid, Signal::SIGCONT).expect("it stands still"));
    for s in &mut s {
        assert_eq!(words(&s.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    }
}

/// Even where one Sync is behind both.
#[test]
fn a_statement_is_cancelled_that_has_its_commit_in_the_same_unit() {
    // Half of it is for an idle connection that does not answer, and the rest has to do for a new one.
    let c = Cluster::start(0, |raw| (raw.workers, raw.connect_timeout) = (1, Span::secs(8)));
    c.psql("create table t(a int)").expect("nothing hangs yet");
    c.nodes[0].psql("create role tenant; grant tenant to app");
    let_commits_wait(&c);
    let unit = |out: &mut Vec<u8>| {
        ["begin", "insert into t values (1)", "commit"].iter().for_each(|sql| run(out, sql));
        sync(out);
    };
    let mut holder = Raw::login(c.port, &[]);
    holder.query("begin");
    holder.query("lock table t");
    let mut s = Raw::login(c.port, &[]);
    s.write(unit);
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    wait_for("the insert to wait for the lock", || (c.nodes[0].psql(blocked) == "1").then_some(()));
    // The connection that is asked was left by somebody who sees no backend of this user.
    let mut tenant = Raw::login(c.port, &[]);
    assert_eq!(words(&tenant.query("set role tenant")), "C SET | Z I");
    cancel(&c, &s);
    assert_eq!(words(&s.until_ready()), "1 | 2 | C BEGIN | E 57014 | Z E");
    assert_eq!(words(&tenant.query("select current_user")), "T | D tenant | C SELECT 1 | Z I");
    assert_eq!(words(&s.query("rollback")), "C ROLLBACK | Z I");
    holder.query("rollback");
    drop(tenant);
    // The COMMIT itself goes on waiting.
    s.write(unit);
    wait_until_waiting(&c, 1);
    cancel(&c, &s);
    wait_until_waiting(&c, 1);
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&s.until_ready()), "1 | 2 | C BEGIN | 1 | 2 | C INSERT 0 1 | 1 | 2 | C COMMIT | Z I");
    assert_eq!(words(&s.query("select count(*) from t")), "T | D 1 | C SELECT 1 | Z I");
    // The server is asked on a new connection, where one that was idle says nothing any more.
    let mut other = Raw::login(c.port, &[]);
    other.query("begin");
    holder.query("begin");
    holder.query("lock table t");
    s.write(unit);
    wait_for("the insert to wait for the lock", || (c.nodes[0].psql(blocked) == "1").then_some(()));
    other.query("rollback");
    let idle = "select pid from pg_stat_activity where usename = 'app' and state = 'idle'";
    let idle: Vec<_> = c.nodes[0].psql(idle).lines().map(|pid| Pid::from_raw(pid.parse().expect("a number"))).collect();
    assert!(!idle.is_empty());
    idle.iter().for_each(|pid| kill(*pid, Signal::SIGSTOP).expect("it runs"));
    cancel(&c, &s);
    let told = words(&s.until_ready());
    idle.iter().for_each(|pid| kill(*pid, Signal::SIGCONT).expect("it stands still"));
    assert_eq!(told, "1 | 2 | C BEGIN | E 57014 | Z E");
}
