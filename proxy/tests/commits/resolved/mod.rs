//! A COMMIT that is lost with its server: what became of it is found out, and told as it is. With real servers, where
//! every window is held open by a wait: for a standby that never comes, for a lock that a deferred trigger wants.

mod block_ends;
mod drained;

use super::common::raw::{Raw, bind, execute, let_commits_wait, ok, parse, run, sync, value, wait_until_waiting};
use super::common::{self, Cluster, Node, dial, wait_for};
use cluster::timeline::{Fork, XidBound};
use cluster::topology::{Closed, Gate};
use cluster::{Lsn, Term, TimelineId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy::pool::{Order, Scope};
use proxy::session::presence::Activity;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::{Read, Write};
use std::time::Duration;

const RESOLVED: &str = "pgtenure_proxy_commits_resolved_total";

fn words(seen: &[String]) -> String {
    seen.join(" | ")
}

fn send(s: &mut Raw, sql: &str) {
    s.write(|out| write_query(out, sql));
}

/// `t`, and `slow`, whose rows are only committed when `gate` is free.
const TABLES: &str = "create table t(a int); create table slow(a int); create table gate(); \
    create function pass() returns trigger language plpgsql as 'begin perform from gate; return null; end'; \
    create constraint trigger late after insert on slow deferrable initially deferred \
    for each row execute function pass()";

/// A session in a block that has written `sql`, and the id of its transaction.
fn begun(c: &Cluster, sql: &str) -> (Raw, u64) {
    let mut s = Raw::login(c.port, &[]);
    ok(&mut s, "begin");
    ok(&mut s, sql);
    let xid = value(&mut s, "select pg_current_xact_id()");
    (s, xid.parse().expect("an id"))
}

/// Shut the gate of `slow`, as long as what is returned lives.
fn shut(c: &Cluster) -> Raw {
    let mut holder = Raw::login(c.nodes[0].port, &[]);
    ok(&mut holder, "begin");
    ok(&mut holder, "lock table gate in access exclusive mode");
    holder
}

fn wait_until_blocked(c: &Cluster, count: usize) {
    let sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query ilike 'commit%'";
    wait_for("commits to wait for the gate", || (c.nodes[0].psql(sql) == count.to_string()).then_some(()));
}

/// Wait until the standby has all that the primary has flushed.
fn replicate(c: &Cluster) {
    // Flushes, and completes no transaction.
    c.nodes[0].psql("select pg_logical_emit_message(false, 'x', 'y')");
    let lsn = c.nodes[0].psql("select pg_switch_wal()");
    let there = format!("select pg_last_wal_replay_lsn() >= '{lsn}'");
    wait_for("the standby to have it", || (c.nodes[1].psql(&there) == "t").then_some(()));
}

/// The standby receives no more.
fn cut_off(c: &Cluster) {
    c.nodes[1].psql("alter system set primary_conninfo = ''");
    c.nodes[1].psql("select pg_reload_conf()");
    wait_for("the standby to receive no more", || {
        (c.nodes[1].psql("select count(*) from pg_stat_wal_receiver") == "0").then_some(())
    });
}

/// Promote a node to timeline 2; where that leaves the first, and begins in the numbering of transactions.
fn promoted(node: &Node) -> (Fork, XidBound) {
    let xid = node.psql("select pg_snapshot_xmax(pg_current_snapshot())").parse().expect("an id");
    node.promote();
    let history = std::fs::read_to_string(node.data.join("pg_wal/00000002.history")).expect("it was promoted");
    let lsn: Lsn = history.split_whitespace().nth(1).expect("a position").parse().expect("a position");
    (Fork { timeline: TimelineId(1), lsn }, XidBound { term: Term(2), xid })
}

/// Promote the standby behind a closed gate; what its view will say of it.
fn promote(c: &Cluster) -> (Fork, XidBound) {
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    promoted(&c.nodes[1])
}

fn open(c: &Cluster, fork: Fork, bound: Option<XidBound>) {
    let primary = c.nodes[1].member();
    c.publish(|t| {
        (t.term, t.gate) = (Term(2), Gate::Open);
        t.standbys.clear();
        t.primary = Some(primary);
        (t.fork, t.forks, t.xid_bounds) = (Some(fork), vec![fork], bound.into_iter().collect());
    });
}

/// Wait until a COMMIT's outcome is looked for.
fn wait_until_looked_for(c: &Cluster) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = c.handle.as_ref().unwrap();
    wait_for("its outcome to be looked for", || {
        let view = runtime.block_on(handle.view(common::DEADLINE)).expect("the workers answer");
        view.clients.iter().any(|client| client.activity == Activity::Waiting).then_some(())
    });
}

fn cancel(c: &Cluster, s: &Raw) {
    let mut request = dial(c.port);
    request.write_all(&cancel_request(s.key.0, s.key.1)).expect("the endpoint reads");
    assert_eq!(request.read(&mut [0]).expect("it is closed"), 0);
}

#[test]
fn commits_in_flight_at_a_failover_are_told_as_the_new_primary_has_them() {
    let mut c = Cluster::start(1, |_| {});
    c.psql(TABLES).unwrap();
    let_commits_wait(&c);
    let _holder = shut(&c);
    // Never completed, and older than what is: the new primary will say that it is aborted.
    let (mut aborted, _) = begun(&c, "insert into slow values (1)");
    // On the standby, and never acknowledged.
    let (mut simple, _) = begun(&c, "insert into t values (2)");
    let (mut extended, _) = begun(&c, "insert into t values (3)");
    // Not completed either, and newer than all that is.
    let (mut unfinished, newest) = begun(&c, "insert into slow values (4)");
    send(&mut aborted, "commit");
    send(&mut unfinished, "end");
    wait_for("the commits to wait for the gate", || {
        let sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query in ('commit', 'end')";
        (c.nodes[0].psql(sql) == "2").then_some(())
    });
    simple.write(|out| {
        write_query(out, "commit");
        write_query(out, "insert into t values (20)");
    });
    extended.write(|out| {
        run(out, "commit");
        sync(out);
    });
    wait_until_waiting(&c, 2);
    replicate(&c);
    cut_off(&c);
    // Begins past the end of what the standby has, which has never seen its id.
    let (mut past, again) = begun(&c, "insert into t values (5)");
    past.write(|out| {
        run(out, "commit");
        sync(out);
    });
    wait_until_waiting(&c, 3);
    c.nodes[0].kill();
    let (fork, bound) = promote(&c);
    assert!(bound.xid <= newest, "nothing completed behind it: {bound:?}, {newest}");
    // Now the id is somebody else's, who has committed: who asks for it is told a lie.
    wait_for("the id to be given out again", || {
        c.nodes[1].psql("create table if not exists other(a int); insert into other values (1)");
        let used = c.nodes[1].psql("select pg_snapshot_xmax(pg_current_snapshot())").parse::<u64>().unwrap() > again;
        (used && c.nodes[1].psql(&format!("select pg_xact_status('{again}')")) == "committed").then_some(())
    });
    open(&c, fork, Some(bound));
    assert_eq!(words(&simple.until_ready()), "C COMMIT | Z I");
    // What was sent behind it was never looked at: nothing is known of that.
    assert_eq!(words(&simple.until_ready()), "E 08007 | Z I");
    assert_eq!(words(&extended.until_ready()), "1 | 2 | C COMMIT | Z I");
    for (lost, what) in [(&mut aborted, "aborted"), (&mut unfinished, "unfinished"), (&mut past, "past")] {
        assert_eq!(words(&lost.until_ready()), "E 40001 | Z I", "{what}");
        assert_eq!(words(&lost.query("insert into t values (10)")), "C INSERT 0 1 | Z I", "{what}");
    }
    assert_eq!(c.nodes[1].psql("select string_agg(a::text, ' ' order by a) from t"), "2 3 10 10 10");
    assert_eq!(c.nodes[1].psql("select count(*) from slow"), "0");
    let count = |outcome| c.counter_of(RESOLVED, outcome);
    assert_eq!((count("survived"), count("lost"), count("unknown")), (2.0, 3.0, 0.0));
    wait_for("the doubts to be counted", || (c.counter("pgtenure_proxy_in_doubt_total") == 1.0).then_some(()));
    // What was told counts as what that term has acknowledged: its session hears of a later one that lacks it.
    c.publish(|t| {
        (t.term, t.loss_allowed) = (Term(3), true);
        t.forks.push(Fork { timeline: TimelineId(2), lsn: Lsn(1) });
    });
    assert_eq!(words(&extended.query("select 1")), "E 08007 | Z I");
}

#[test]
fn what_nobody_can_tell_stays_in_doubt() {
    let mut c = Cluster::start(1, |_| {});
    c.psql(TABLES).unwrap();
    let_commits_wait(&c);
    let (mut unbound, _) = begun(&c, "insert into t values (1)");
    let (mut cancelled, _) = begun(&c, "insert into t values (2)");
    let mut without = Raw::login(c.port, &[]);
    ok(&mut without, "begin");
    // Takes an id only when it commits, and has something to wait for.
    ok(&mut without, "notify news");
    ok(&mut without, "select pg_logical_emit_message(false, 'x', 'y')");
    for s in [&mut unbound, &mut cancelled, &mut without] {
        send(s, "commit");
    }
    wait_until_waiting(&c, 3);
    replicate(&c);
    c.nodes[0].kill();
    // Without an id there is nothing to ask for.
    assert_eq!(words(&without.until_ready()), "E 08007 | Z I");
    // Nobody is left who could be asked, and who does not want to wait need not.
    wait_for("the others to look for a primary", || (c.handle.as_ref()?.status().totals.held >= 2).then_some(()));
    cancel(&c, &cancelled);
    assert_eq!(words(&cancelled.until_ready()), "E 08007 | Z I");
    let (fork, _) = promote(&c);
    open(&c, fork, None);
    assert_eq!(words(&unbound.until_ready()), "E 08007 | Z I");
    assert_eq!(c.nodes[1].psql("select count(*) from t"), "2");
    assert_eq!(c.counter_of(RESOLVED, "unknown"), 3.0);
    wait_for("the doubts to be counted", || (c.counter("pgtenure_proxy_in_doubt_total") == 3.0).then_some(()));
}

#[test]
fn a_backend_that_is_lost_alone_is_asked_for_at_its_own_primary() {
    let c = Cluster::start(0, |raw| raw.hold_timeout = cluster::config::Span::secs(60));
    c.psql(TABLES).unwrap();
    let holder = shut(&c);
    let end_waiting = |event: &str| {
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity where query ilike 'commit%' and ";
        c.nodes[0].psql(&format!("{sql} wait_event = '{event}'"))
    };
    // Ended before it committed.
    let (mut aborted, _) = begun(&c, "insert into slow values (1)");
    send(&mut aborted, "commit");
    wait_until_blocked(&c, 1);
    assert_eq!(end_waiting("relation"), "1");
    assert_eq!(words(&aborted.until_ready()), "E 40001 | Z I");
    drop(holder);
    // Committed at the primary, and no standby has it: nothing is told before one does.
    let_commits_wait(&c);
    let (mut waits, _) = begun(&c, "insert into t values (2)");
    waits.write(|out| {
        run(out, "commit");
        sync(out);
    });
    wait_until_waiting(&c, 1);
    assert_eq!(end_waiting("SyncRep"), "1");
    wait_for("its proof to wait in its place", || {
        let sql = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and query like '%emit_message%'";
        (c.nodes[0].psql(sql) == "1").then_some(())
    });
    assert_eq!(c.counter(RESOLVED), 1.0, "the other's");
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&waits.until_ready()), "1 | 2 | C COMMIT | Z I");
    assert_eq!(value(&mut waits, "select count(*) from t"), "1");
    assert_eq!((c.counter_of(RESOLVED, "survived"), c.counter_of(RESOLVED, "lost")), (1.0, 1.0));
}

/// Its client would wait for ever for what it believes to listen to.
#[test]
fn a_commit_that_survives_without_its_listen_ends_the_session() {
    let c = Cluster::start(0, |raw| raw.hold_timeout = cluster::config::Span::secs(60));
    c.psql(TABLES).unwrap();
    let_commits_wait(&c);
    let (mut s, _) = begun(&c, "insert into t values (1)");
    ok(&mut s, "listen news");
    send(&mut s, "commit");
    wait_until_waiting(&c, 1);
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity where query = 'commit'";
    assert_eq!(c.nodes[0].psql(&format!("{sql} and wait_event = 'SyncRep'")), "1");
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&s.until_ready()), "C COMMIT | Z I");
    assert_eq!((s.next(), s.next()), ("E 08006".to_owned(), "EOF".to_owned()));
}

/// Start node 0 again as a standby of nobody, and promote it: on timeline 2, of which the view knows nothing.
fn promote_behind_the_view(c: &mut Cluster) -> (Fork, XidBound) {
    c.nodes[0].kill();
    std::fs::write(c.nodes[0].data.join("standby.signal"), "").expect("it is written");
    c.nodes[0].start();
    promoted(&c.nodes[0])
}

#[test]
fn a_commit_belongs_to_the_timeline_of_its_server_whatever_the_view_said() {
    let mut c = Cluster::start(0, |raw| raw.hold_timeout = cluster::config::Span::secs(60));
    c.psql(TABLES).unwrap();
    // The view says term 1 for a while yet: its primary is the same node.
    let (fork, bound) = promote_behind_the_view(&mut c);
    let_commits_wait(&c);
    let (mut s, _) = begun(&c, "insert into t values (1)");
    send(&mut s, "commit");
    wait_until_waiting(&c, 1);
    // Past the fork of term 1, and not of term 1: it is there, and was not lost.
    c.publish(|t| {
        t.term = Term(2);
        (t.fork, t.forks, t.xid_bounds) = (Some(fork), vec![fork], vec![bound]);
    });
    wait_for("its outcome to be looked for", || (c.counter("pgtenure_proxy_server_losses_total") > 0.0).then_some(()));
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&s.until_ready()), "C COMMIT | Z I");
    assert_eq!(c.nodes[0].psql("select count(*) from t"), "1");
}

#[test]
fn where_the_timeline_may_not_be_asked_for_a_commit_is_in_doubt_at_once() {
    let mut c = Cluster::start(0, |raw| raw.hold_timeout = cluster::config::Span::secs(600));
    c.psql(TABLES).unwrap();
    c.nodes[0].psql("revoke execute on function pg_walfile_name(pg_lsn) from public");
    let (fork, bound) = promote_behind_the_view(&mut c);
    let_commits_wait(&c);
    let (mut s, _) = begun(&c, "insert into t values (1)");
    send(&mut s, "commit");
    wait_until_waiting(&c, 1);
    c.publish(|t| {
        t.term = Term(2);
        (t.fork, t.forks, t.xid_bounds) = (Some(fork), vec![fork], vec![bound]);
    });
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
}

#[test]
fn nothing_is_said_to_be_lost_while_a_later_term_may_have_it() {
    let mut c = Cluster::start(1, |_| {});
    c.psql(TABLES).unwrap();
    c.publish(|t| t.protected = false);
    let_commits_wait(&c);
    // On the standby before it is promoted, and past what it has.
    let (mut there, _) = begun(&c, "insert into t values (1)");
    send(&mut there, "commit");
    wait_until_waiting(&c, 1);
    replicate(&c);
    cut_off(&c);
    let (mut past, _) = begun(&c, "insert into t values (2)");
    send(&mut past, "commit");
    wait_until_waiting(&c, 2);
    c.nodes[0].kill();
    let (fork, bound) = promote(&c);
    open(&c, fork, Some(bound));
    assert_eq!(words(&there.until_ready()), "C COMMIT | Z I");
    // Another standby may have it, and be promoted next.
    assert_eq!(words(&past.until_ready()), "E 08007 | Z I");
    assert_eq!(c.counter_of(RESOLVED, "lost"), 0.0);
}

#[test]
fn what_was_to_be_applied_by_standbys_is_so_before_it_is_told() {
    let c = Cluster::start(1, |raw| raw.hold_timeout = cluster::config::Span::secs(60));
    c.psql(TABLES).unwrap();
    let name = c.nodes[0].psql("select application_name from pg_stat_replication");
    c.nodes[0].psql(&format!("alter system set synchronous_standby_names = '\"{name}\"'"));
    c.nodes[0].psql("select pg_reload_conf()");
    wait_for("the standby to count", || {
        (c.nodes[0].psql("select count(*) from pg_stat_replication where sync_state = 'sync'") == "1").then_some(())
    });
    c.list_is_in_force();
    c.nodes[1].psql("select pg_wal_replay_pause()");
    wait_for("replay to pause", || {
        (c.nodes[1].psql("select pg_get_wal_replay_pause_state()") == "paused").then_some(())
    });
    let mut s = Raw::login(c.port, &[]);
    ok(&mut s, "set pgtenure.durability = 'applied'");
    ok(&mut s, "begin");
    ok(&mut s, "insert into t values (1)");
    send(&mut s, "commit");
    end_it_and_see_its_proof_wait(&c);
    // The standby has it all the time, and shows it only now.
    c.nodes[1].psql("select pg_wal_replay_resume()");
    assert_eq!(words(&s.until_ready()), "C COMMIT | Z I");
    assert_eq!(c.nodes[1].psql("select count(*) from t"), "1");
}

/// The session whose COMMIT waits for standbys is ended.
fn end_it_and_see_its_proof_wait(c: &Cluster) {
    wait_until_waiting(c, 1);
    let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity where query ilike 'commit%' and \
        wait_event = 'SyncRep'";
    assert_eq!(c.nodes[0].psql(ended), "1");
    wait_for("its proof to wait in its place", || {
        let sql = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and query like '%emit_message%'";
        (c.nodes[0].psql(sql) == "1").then_some(())
    });
    assert_eq!(c.counter(RESOLVED), 0.0);
}

#[test]
fn who_asked_for_standbys_is_told_nothing_before_they_have_it_though_the_mode_does_without() {
    let c = Cluster::start(0, |raw| raw.hold_timeout = cluster::config::Span::secs(60));
    c.psql(TABLES).unwrap();
    c.publish(|t| t.protected = false);
    let_commits_wait(&c);
    let mut s = Raw::login(c.port, &[]);
    ok(&mut s, "set pgtenure.durability = 'semi_sync'");
    ok(&mut s, "begin");
    ok(&mut s, "insert into t values (1)");
    send(&mut s, "commit");
    end_it_and_see_its_proof_wait(&c);
    c.nodes[0].psql("alter system reset synchronous_standby_names");
    c.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(words(&s.until_ready()), "C COMMIT | Z I");
}

#[test]
fn a_client_sees_nothing_of_what_is_asked_before_its_commit() {
    let c = Cluster::start(0, |_| {});
    c.psql("create table t(a int primary key deferrable initially deferred)").unwrap();
    let mut s = Raw::login(c.port, &[]);
    for (block, want) in [
        (&["begin", "insert into t values (1)", "commit"][..], "C COMMIT | Z I"),
        (&["begin", "select 1", "commit"], "C COMMIT | Z I"),
        (&["begin", "insert into t values (1)", "commit"], "E 23505 | Z I"),
        (&["begin", "insert into t values (2)", "select 1/0", "commit"], "C ROLLBACK | Z I"),
        (&["begin", "insert into t values (2)", "commit and chain"], "C COMMIT | Z T"),
        (&["insert into t values (3)", "commit work"], "C COMMIT | Z I"),
        (&["begin", "insert into t values (4)", "prepare transaction 'p'"], "C PREPARE TRANSACTION | Z I"),
        (&["begin", "savepoint s", "insert into t values (5)", "release s", "end"], "C COMMIT | Z I"),
        (&["begin isolation level serializable", "insert into t values (6)", "commit"], "C COMMIT | Z I"),
    ] {
        let seen: Vec<String> = block.iter().map(|sql| words(&s.query(sql))).collect();
        assert_eq!(seen.last().map(String::as_str), Some(want), "{block:?}: {seen:?}");
    }
    ok(&mut s, "commit prepared 'p'");
    // A pipeline: the state of the block is not known when its COMMIT is sent.
    for bad in [false, true] {
        s.write(|out| {
            run(out, "begin");
            sync(out);
            run(out, if bad { "insert into t values (1/0)" } else { "insert into t values (7)" });
            sync(out);
            run(out, "commit");
            sync(out);
            run(out, "select 9");
            sync(out);
        });
        let units: Vec<String> = (0..4).map(|_| words(&s.until_ready())).collect();
        let (second, third) = if bad {
            ("1 | E 22012 | Z E", "C ROLLBACK | Z I")
        } else {
            ("1 | 2 | C INSERT 0 1 | Z T", "C COMMIT | Z I")
        };
        assert!(units[1] == second || bad && units[1] == "E 22012 | Z E", "{units:?}");
        assert_eq!(units[2], format!("1 | 2 | {third}"), "{units:?}");
        assert_eq!(units[3], "1 | 2 | D 9 | C SELECT 1 | Z I", "{units:?}");
    }
    // The unnamed statement outlives a block as if nothing had come between.
    s.write(|out| {
        common::raw::parse(out, "", "select 8");
        sync(out);
    });
    assert_eq!(words(&s.until_ready()), "1 | Z I");
    s.write(|out| {
        common::raw::bind(out, "", "", &[]);
        common::raw::execute(out, "");
        sync(out);
    });
    assert_eq!(words(&s.until_ready()), "2 | D 8 | C SELECT 1 | Z I");
    assert_eq!(value(&mut s, "select string_agg(a::text, ' ' order by a) from t"), "1 2 3 4 5 6 7");
}

#[test]
fn a_commit_waits_for_its_outcome_no_longer_than_a_statement_is_held() {
    let mut c = Cluster::start(0, |raw| (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::millis(500)));
    c.warm();
    c.psql(TABLES).unwrap();
    let_commits_wait(&c);
    let (mut s, _) = begun(&c, "insert into t values (1)");
    send(&mut s, "commit");
    wait_until_waiting(&c, 1);
    c.nodes[0].kill();
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
    assert_eq!(c.counter_of(RESOLVED, "unknown"), 1.0, "it was tried");
}

/// One that was there may have died without a sign of it.
#[test]
fn a_commit_is_asked_about_anew_where_an_idle_connection_says_nothing() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::secs(16)));
    c.psql(TABLES).unwrap();
    let mut s = Raw::login(c.port, &[]);
    ok(&mut s, "begin");
    let (mut other, _) = begun(&c, "insert into t values (1)");
    let silent = Pid::from_raw(value(&mut other, "select pg_backend_pid()").parse().unwrap());
    ok(&mut s, "insert into slow values (1)");
    let _holder = shut(&c);
    send(&mut s, "commit");
    wait_until_blocked(&c, 1);
    ok(&mut other, "rollback");
    kill(silent, Signal::SIGSTOP).unwrap();
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where wait_event = 'relation' and query = 'commit'";
    assert_eq!(c.nodes[0].psql(end), "1");
    let told = words(&s.until_ready());
    kill(silent, Signal::SIGCONT).unwrap();
    assert_eq!(told, "E 40001 | Z I");
}

#[test]
fn a_session_that_ends_while_its_commit_is_in_doubt_is_told_that_first() {
    let mut c = Cluster::start(0, |_| {});
    c.psql(TABLES).unwrap();
    let_commits_wait(&c);
    let (mut s, _) = begun(&c, "insert into t values (1)");
    send(&mut s, "commit");
    wait_until_waiting(&c, 1);
    c.nodes[0].kill();
    wait_until_looked_for(&c);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = c.handle.as_ref().unwrap();
    runtime.block_on(handle.order(Order::Kill, Scope::All, common::DEADLINE)).unwrap();
    assert_eq!(s.next(), "E 08007");
    assert_eq!(s.next(), "Z I");
    assert_eq!(s.next(), "E 57P01");
}

#[test]
fn a_commit_that_also_registers_a_name_is_not_said_to_have_done_both() {
    let mut c = Cluster::start(1, |_| {});
    c.psql(TABLES).unwrap();
    let_commits_wait(&c);
    let (mut s, _) = begun(&c, "insert into t values (1)");
    s.write(|out| {
        common::raw::parse(out, "mine", "commit");
        common::raw::bind(out, "", "mine", &[]);
        common::raw::execute(out, "");
        sync(out);
    });
    wait_until_waiting(&c, 1);
    c.nodes[0].kill();
    assert_eq!(words(&s.until_ready()), "E 08007 | Z I");
}

/// The COMMIT of a block of `s` that waits for the gate, when its backend is ended alone: what its client is told.
fn commit_of_ended(c: &Cluster, s: &mut Raw) -> String {
    let _holder = shut(c);
    ok(s, "begin");
    ok(s, "insert into slow values (1)");
    send(s, "commit");
    wait_until_blocked(c, 1);
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where wait_event = 'relation' and query = 'commit'";
    assert_eq!(c.nodes[0].psql(end), "1");
    words(&s.until_ready())
}

fn commits(s: &mut Raw, insert: &str) {
    ok(s, "begin");
    ok(s, insert);
    assert_eq!(words(&s.query("commit")), "C COMMIT | Z I", "{insert}");
}

#[test]
fn a_commit_does_not_fail_where_nobody_may_ask_about_it() {
    let c = Cluster::start(0, |raw| raw.workers = 1);
    let superuser = |sql: &str| c.nodes[0].psql(sql);
    c.psql(TABLES).unwrap();
    superuser("create role other");
    superuser("grant other to app; grant all on all tables in schema public to other");
    let reconnect = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let order = c.handle.as_ref().unwrap().order(Order::Reconnect, Scope::All, common::DEADLINE);
        runtime.block_on(order).unwrap();
    };
    // Revoked while connections exist that were allowed to ask: one is refused, for all of them.
    let (mut a, _) = begun(&c, "insert into t values (1)");
    let (mut b, _) = begun(&c, "insert into t values (2)");
    superuser("revoke execute on function pg_current_xact_id_if_assigned() from public");
    assert_eq!(words(&a.query("commit")), "E 42501 | Z I", "it is not said to be committed");
    assert_eq!(words(&b.query("commit")), "C COMMIT | Z I");
    commits(&mut a, "insert into t values (3)");
    // Connections that are made from now on say themselves that they must not be asked.
    reconnect();
    commits(&mut a, "insert into t values (4)");
    assert_eq!(commit_of_ended(&c, &mut b), "E 08007 | Z I");
    // A session may take on roles that have no right where its own has.
    superuser("grant execute on function pg_current_xact_id_if_assigned() to app");
    reconnect();
    commits(&mut b, "set local role other; insert into t values (5)");
    ok(&mut a, "set role other");
    commits(&mut a, "insert into t values (6)");
    // Nor is what else a login asks for every primary's to tell.
    superuser("revoke execute on function pg_walfile_name(pg_lsn) from public");
    superuser("revoke execute on function pg_current_wal_insert_lsn() from public");
    reconnect();
    commits(&mut b, "insert into t values (7)");
    superuser("grant execute on function pg_walfile_name(pg_lsn) to public");
    superuser("grant execute on function pg_current_wal_insert_lsn() to public");
    superuser("grant execute on function pg_current_xact_id_if_assigned() to public");
    reconnect();
    assert_eq!(commit_of_ended(&c, &mut b), "E 40001 | Z I");
    assert_eq!(superuser("select string_agg(a::text, ' ' order by a) from t"), "2 3 4 5 6 7");
}

#[test]
fn a_read_that_may_have_written_is_not_run_again_when_its_primary_dies() {
    let mut c = Cluster::start(1, |_| {});
    for sql in [
        "create table w(a int); create table r(a int)",
        "create function add_one() returns int language sql as 'insert into w values (1) returning a'",
        "create function bump() returns int stable language plpgsql as 'begin return add_one(); end'",
        "create view bumped as select bump() as n",
        "create function two() returns int stable language sql as 'select 2'",
    ] {
        c.psql(sql).unwrap();
    }
    let texts = ["select bump()", "select n from bumped", "select two()"];
    let mut sessions = texts.map(|_| {
        let mut s = Raw::login(c.port, &[("pgtenure.read_from", "primary")]);
        // Known as a read once the catalog was read again.
        wait_for("the function to be known", || {
            value(&mut s, "select two()");
            let route = value(&mut s, "show pgtenure.last_route");
            route.contains("as_asked").then_some(())
        });
        s
    });
    let_commits_wait(&c);
    send(&mut sessions[0], texts[0]);
    send(&mut sessions[1], texts[1]);
    wait_until_waiting(&c, 2);
    replicate(&c);
    c.nodes[0].kill();
    let (fork, bound) = promote(&c);
    open(&c, fork, Some(bound));
    for s in &mut sessions[..2] {
        assert_eq!(s.until_ready(), ["E 08007", "Z I"]);
    }
    // One that calls nothing of the kind is.
    assert_eq!(value(&mut sessions[2], texts[2]), "2");
    assert_eq!(c.nodes[1].psql("select count(*) from w"), "2");
}

/// What a server says before it has answered the question in front of a COMMIT was said before the COMMIT.
#[test]
fn a_server_that_ends_before_it_has_begun_a_commit_leaves_no_doubt() {
    let c = Cluster::start(0, |raw| raw.workers = 1);
    c.psql(TABLES).unwrap();
    let (mut s, _) = begun(&c, "insert into t values (1)");
    let pid = value(&mut s, "select pg_backend_pid()");
    let process = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let sent = || c.counter_of("pgtenure_proxy_queries_total", "primary");
    let before = sent();
    send(&mut s, "commit");
    wait_for("the commit to be sent", || (sent() > before).then_some(()));
    assert_eq!(c.nodes[0].psql(&format!("select pg_terminate_backend({pid})")), "t");
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(words(&s.until_ready()), "E 40001 | Z I");
    assert_eq!(c.nodes[0].psql("select count(*) from t"), "0");
    assert_eq!(words(&s.query("insert into t values (2)")), "C INSERT 0 1 | Z I");
}
