//! `commit_lsn = "ask"`: the primary is asked behind each write where its WAL ends, against a real primary and a real
//! standby whose replay stands still.

use super::common::raw::{Raw, bind, execute, ok, parse, run, sync, value, words};
use super::common::{Cluster, wait_for};
use proxy::wire::codec::message;
use proxy::wire::frontend::write_query;

const ASKED: &str = "pgtenure_proxy_positions_asked_total";

/// A cluster that asks, and whose standby serves reads and has no more than n = 0 for now.
fn asks(set: impl FnOnce(&mut proxy::config::Raw)) -> Cluster {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        // On a loaded machine a sample of the tests' own monitor may take long.
        raw.max_replay_lag = cluster::config::Span::secs(10);
        raw.reads.commit_lsn = proxy::config::reads::CommitLsn::Ask;
        set(raw);
    });
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    wait_for("the standby to have it", || {
        (cluster.nodes[1].try_psql("select count(*) from seen").ok()? == "1").then_some(())
    });
    wait_for("the standby to serve reads", || {
        // One that keeps its server would keep the primary.
        let mut a = Raw::login(cluster.port, &[]);
        (value(&mut a, "select current_setting('cluster_name')") == "n2").then_some(())
    });
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    cluster
}

fn last_route(client: &mut Raw) -> String {
    let route = value(client, "show pgtenure.last_route");
    route.splitn(3, ": ").take(2).collect::<Vec<_>>().join(": ")
}

/// So many questions in the same write as what commits, and so many after it.
fn asked(cluster: &Cluster, behind: u32, after: u32) {
    let counted = || (cluster.counter_of(ASKED, "behind"), cluster.counter_of(ASKED, "after"));
    let want = (f64::from(behind), f64::from(after));
    wait_for("the questions to be counted", || (counted() == want).then_some(()));
}

/// No sample is waited for: the position is known, and the standby is known not to have it.
fn known(a: &mut Raw, n: u32) {
    assert_eq!(value(a, "select max(n) from seen"), n.to_string());
    assert_eq!(last_route(a), "primary n1: replay_behind");
}

#[test]
fn the_position_of_a_write_is_asked_for_where_that_is_configured() {
    let cluster = asks(|_| {});
    let mut a = Raw::login(cluster.port, &[]);
    for n in 1..20 {
        ok(&mut a, &format!("update seen set n = {n}"));
        known(&mut a, n);
    }
    asked(&cluster, 19, 0);
    for sql in ["begin", "update seen set n = 20", "commit"] {
        ok(&mut a, sql);
    }
    known(&mut a, 20);
    asked(&cluster, 20, 0);
    // Behind a COPY nothing can be asked before it has ended.
    a.write(|out| write_query(out, "copy seen from stdin"));
    assert_eq!(a.next(), "G");
    a.write(|out| {
        message(out, b'd', |b| b.extend_from_slice(b"21\n"));
        message(out, b'c', |_| {});
    });
    assert_eq!(words(&a.until_ready()), "C COPY 1 | Z I");
    known(&mut a, 21);
    asked(&cluster, 20, 1);
    // Nor behind what may be several, of which one fails within a block.
    assert_eq!(
        words(&a.query("begin; update seen set n = 22; select 1 / 0; commit")),
        "C BEGIN | C UPDATE 2 | E 22012 | Z E"
    );
    ok(&mut a, "rollback");
    cluster.nodes[1].psql("select pg_wal_replay_resume()");
    wait_for("the standby to have it", || {
        (value(&mut a, "select max(n), min(current_setting('cluster_name')) from seen") == "21 n2").then_some(())
    });
}

#[test]
fn what_is_asked_behind_a_write_changes_nothing_for_its_client() {
    let cluster = asks(|_| {});
    let mut a = Raw::login(cluster.port, &[]);
    // The unnamed statement is still there.
    a.write(|out| {
        run(out, "update seen set n = n + 1 returning n");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | 2 | D 1 | C UPDATE 1 | Z I");
    for n in 2..5 {
        a.write(|out| {
            bind(out, "", "", &[]);
            execute(out, "");
            sync(out);
        });
        assert_eq!(words(&a.until_ready()), format!("2 | D {n} | C UPDATE 1 | Z I"));
    }
    known(&mut a, 4);
    // Nobody waits for the answers of a pipeline, and what fails in it fails alone.
    a.write(|out| {
        write_query(out, "update seen set n = 5");
        write_query(out, "update seen set n = 1 / 0");
        parse(out, "up", "update seen set n = n + $1::int returning n");
        bind(out, "", "up", &["1"]);
        execute(out, "");
        sync(out);
        write_query(out, "begin");
        write_query(out, "delete from seen");
        write_query(out, "select 1 / 0");
        write_query(out, "commit");
        write_query(out, "update seen set n = n + 1 returning n");
    });
    for want in [
        "C UPDATE 1 | Z I",
        "E 22012 | Z I",
        "1 | 2 | D 6 | C UPDATE 1 | Z I",
        "C BEGIN | Z T",
        "C DELETE 1 | Z T",
        "E 22012 | Z E",
        "C ROLLBACK | Z I",
        "T | D 7 | C UPDATE 1 | Z I",
    ] {
        assert_eq!(words(&a.until_ready()), want);
    }
    known(&mut a, 7);
    // A deferred check fails the COMMIT itself.
    cluster.nodes[0].psql("alter table app.public.seen add unique (n) deferrable initially deferred");
    for (sql, want) in
        [("begin", "C BEGIN | Z T"), ("insert into seen values (7)", "C INSERT 0 1 | Z T"), ("commit", "E 23505 | Z I")]
    {
        assert_eq!(words(&a.query(sql)), want, "{sql}");
    }
    // Who leaves behind a write gets its answer, and its server serves others.
    a.write(|out| {
        write_query(out, "update seen set n = 8");
        message(out, b'X', |_| {});
    });
    assert_eq!(words(&a.until_ready()), "C UPDATE 1 | Z I");
    assert_eq!(a.next(), "EOF");
    let mut b = Raw::login(cluster.port, &[]);
    ok(&mut b, "update seen set n = 9");
    known(&mut b, 9);
}

#[test]
fn what_a_table_has_gained_is_hidden_from_who_does_not_know_it_though_a_position_is_asked_for() {
    let cluster = asks(|raw| raw.pool_size = 1);
    let sql = "update seen set n = n + 1 returning *";
    let mut a = Raw::login(cluster.port, &[]);
    a.write(|out| {
        parse(out, "a", sql);
        bind(out, "", "a", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&a.until_ready()), "1 | 2 | D 1 | C UPDATE 1 | Z I");
    cluster.nodes[0].psql("alter table app.public.seen add more text default 'x'");
    let mut b = Raw::login(cluster.port, &[]);
    b.write(|out| {
        parse(out, "b", sql);
        bind(out, "", "b", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&b.until_ready()), "1 | 2 | D 2 x | C UPDATE 1 | Z I");
    known(&mut b, 2);
}

#[test]
fn who_cannot_read_at_a_standby_next_asks_for_no_position() {
    let cluster = asks(|_| {});
    let mut keeps = Raw::login(cluster.port, &[]);
    ok(&mut keeps, "create temp table own(n int)");
    ok(&mut keeps, "update seen set n = 1");
    let mut serializable = Raw::login(cluster.port, &[("default_transaction_isolation", "serializable")]);
    ok(&mut serializable, "update seen set n = 2");
    let standbys = cluster.topology.borrow().standbys.clone();
    cluster.publish(|view| view.standbys.clear());
    let mut a = Raw::login(cluster.port, &[]);
    ok(&mut a, "update seen set n = 3");
    cluster.publish(|view| view.standbys = standbys);
    ok(&mut a, "update seen set n = 4");
    asked(&cluster, 1, 0);
}
