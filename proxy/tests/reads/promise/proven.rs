//! What is proven to be a read, and what is never tried at a standby.

use super::common::raw::{Raw, ok, value};
use super::common::{self, Cluster, wait_for};
use super::{WHERE, last_route, one_standby};

#[test]
fn a_read_only_block_is_promised_what_it_says() {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.reads.hints = true;
    });
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    wait_for("the standby to have it", || {
        (cluster.nodes[1].psql("select count(*) from pg_class where relname = 'seen'") == "1").then_some(())
    });
    let options = "-c pgtenure.max_replay_lag=1h";
    let [mut a, mut any] = [(); 2].map(|()| Raw::login(cluster.port, &[("options", options)]));
    wait_for("the standby to serve reads", || (value(&mut a, WHERE) == "n2").then_some(()));
    ok(&mut a, "begin read only");
    ok(&mut a, "set local pgtenure.read_from = 'primary'");
    assert_eq!(value(&mut a, WHERE), "n1");
    ok(&mut a, "commit");
    // One that wants less than its session would be given, which the standby can do at its BEGIN and not any more later: the
    // monitor of these tests calls a standby that lacks anything 100 ms late.
    ok(&mut a, "/* pgtenure: max_replay_lag=99ms */ begin read only");
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    let mut c = Raw::login(cluster.port, &[]);
    ok(&mut c, "update seen set n = 1");
    let behind = |client: &mut Raw| {
        wait_for("the standby to be known to be behind", || {
            assert_eq!(value(client, WHERE), "n1");
            (last_route(client) == "primary n1: replay_behind").then_some(())
        });
    };
    behind(&mut c);
    assert_eq!(value(&mut a, WHERE), "n1");
    ok(&mut a, "commit");
    assert_eq!(value(&mut any, "select n, current_setting('cluster_name') from seen"), "0 n2", "the session's own");
    // One that is described before it is executed, as drivers do.
    let set_local = |client: &mut Raw, to: &str| {
        ok(client, "begin");
        client.write(|out| {
            common::raw::parse(out, "", &format!("select set_config('pgtenure.consistency', '{to}', true)"));
            common::raw::describe(out, "");
            common::raw::flush(out);
        });
        assert_eq!([client.next(), client.next(), client.next()], ["1", "t", "T"]);
        client.write(|out| {
            common::raw::bind(out, "", "", &[]);
            common::raw::execute(out, "");
            common::raw::sync(out);
        });
        client.until_ready()
    };
    assert_eq!(set_local(&mut c, "eventual"), ["2", "D eventual", "C SELECT 1", "Z T"]);
    assert_eq!(value(&mut c, WHERE), "n1");
    ok(&mut c, "commit");
    let mut late = Raw::login(cluster.port, &[]);
    assert_eq!(set_local(&mut late, "global"), ["E 0A000", "EOF"]);
    // One that wants more.
    let local = "set local pgtenure.consistency = 'eventual'";
    for begin in [
        &["/* pgtenure: consistency=eventual */ begin read only"][..],
        &["begin read only", local],
        &["begin", "set transaction read only", "set local pgtenure.standby_wait = '9ms'", local],
        &["begin read only", "select set_config('pgtenure.no_standby', 'error', true)"],
    ] {
        begin.iter().for_each(|sql| drop(ok(&mut c, sql)));
        let node = if begin.last().is_some_and(|sql| sql.starts_with("select")) { "n1" } else { "n2" };
        assert_eq!(value(&mut c, WHERE), node, "{begin:?}");
        assert_eq!(value(&mut c, WHERE), node, "{begin:?}");
        ok(&mut c, "commit");
        assert_eq!(value(&mut c, WHERE), "n1", "behind {begin:?}");
    }
    // What is sent together is promised what keeps all of it.
    let (plain, loose) = ("select n from seen", "/* pgtenure: consistency=eventual */ select n from seen");
    for (texts, want) in [([plain, loose], "D 1"), ([loose, plain], "D 1"), ([loose, loose], "D 0")] {
        c.write(|out| {
            texts.iter().for_each(|sql| common::raw::run(out, sql));
            common::raw::sync(out);
        });
        let seen = c.until_ready();
        assert_eq!(seen.iter().filter(|s| *s == want).count(), 2, "{texts:?}: {seen:?}");
    }
    ok(&mut c, "begin read only");
    assert_eq!(c.query("set local pgtenure.no_standby = 'error'"), ["E 57P03", "Z E"]);
    ok(&mut c, "rollback");
    // A block that says what means nothing reads at the primary, and is told.
    ok(&mut c, "begin read only");
    assert_eq!(c.query("set local pgtenure.consistency = 'evntual'"), ["N 01000", "C SET", "Z T"]);
    assert_eq!(value(&mut c, WHERE), "n1");
    // What comes too late for its block is told, be it for that alone or not.
    for set in
        ["set local pgtenure.consistency = 'strong'", "set pgtenure.after = '1-1-0/1'", "reset pgtenure.read_from"]
    {
        assert_eq!(c.query(set)[0], "N 01000", "{set}");
    }
    let same = "set local pgtenure.consistency = 'session'";
    assert_eq!(c.query(same)[0], "C SET", "it is what holds");
    ok(&mut c, "rollback");
    assert_eq!(c.query("set pgtenure.after = ''")[0], "C SET");
}

#[test]
fn what_the_server_may_read_otherwise_than_a_scanner_goes_to_the_primary() {
    let cluster = one_standby();
    let (sjis, odd) = ("set client_encoding = 'SJIS'", "set standard_conforming_strings = off");
    let plain = ["set client_encoding = 'UTF8'", "set standard_conforming_strings = on"];
    for set in [sjis, "set client_encoding = 'GBK'", odd, "select set_config('client_encoding', 'BIG5', false)"] {
        let mut a = Raw::login(cluster.port, &[]);
        wait_for("a read at the standby", || (value(&mut a, WHERE) == "n2").then_some(()));
        ok(&mut a, set);
        // For this, and not because the standby lacks what was done at the primary.
        for _ in 0..5 {
            assert_eq!(value(&mut a, WHERE), "n1", "{set}");
            assert_eq!(last_route(&mut a), "primary n1: write", "{set}");
        }
        plain.iter().for_each(|sql| drop(ok(&mut a, sql)));
        wait_for("a read at the standby again", || (value(&mut a, WHERE) == "n2").then_some(()));
    }
    let mut b = Raw::login(cluster.port, &[("client_encoding", "SJIS")]);
    (0..5).for_each(|_| assert_eq!(value(&mut b, WHERE), "n1"));
    assert_eq!(last_route(&mut b), "primary n1: write");
}

#[test]
fn a_write_that_was_prepared_by_sql_is_never_tried_at_a_standby() {
    let cluster = one_standby();
    let mut a = Raw::login(cluster.port, &[]);
    ok(&mut a, "prepare w as update seen set n = n + 1 returning current_setting('cluster_name')");
    for _ in 0..20 {
        assert_eq!(value(&mut a, "execute w"), "n1");
        assert_eq!(last_route(&mut a), "primary n1: write");
    }
    assert_eq!(cluster.counter("pgtenure_proxy_retries_total"), 0.0);
    assert_eq!(value(&mut a, "select n from seen"), "20");
}

#[test]
fn a_sequence_that_was_just_made_is_read_at_the_primary() {
    let cluster = one_standby();
    cluster.nodes[0].psql("grant create on schema public to app");
    let mut a = Raw::login(cluster.port, &[("pgtenure.standby_wait", "60s"), ("pgtenure.max_replay_lag", "1h")]);
    for n in 0..5 {
        ok(&mut a, &format!("create sequence s{n}"));
        assert_eq!(value(&mut a, &format!("select nextval('s{n}')")), "1");
        assert_eq!(value(&mut a, &format!("select last_value, is_called from s{n}")), "1 t");
        assert_eq!(value(&mut a, &format!("select log_cnt > 0 from s{n}")), "t");
    }
}
