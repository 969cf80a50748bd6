//! What reads are promised, against a real primary and a real standby whose replay is stopped and started.

mod common;

use common::raw::{Raw, bind, execute, ok, parse, sync, value, words};
use common::{Cluster, wait_for};
use proxy::wire::codec::message;

const WHERE: &str = "select current_setting('cluster_name')";

fn one_standby() -> Cluster {
    one_standby_with_hints(false)
}

fn one_standby_with_hints(hints: bool) -> Cluster {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.reads.hints = hints;
        // On a loaded machine a sample of the tests' own monitor may take long.
        raw.max_replay_lag = cluster::config::Span::secs(10);
    });
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    wait_for("the standby to have it", || {
        (cluster.nodes[1].try_psql("select count(*) from seen").ok()? == "1").then_some(())
    });
    let mut client = Raw::login(cluster.port, &[]);
    wait_for("the standby to serve reads", || (value(&mut client, WHERE) == "n2").then_some(()));
    cluster
}

#[test]
fn a_session_chooses_what_its_reads_may_miss() {
    let cluster = one_standby();
    cluster.nodes[0].psql(
        "create function adds() returns int language sql as 'insert into seen values (7) returning n';
         create procedure sets() language sql as 'update seen set n = n';
         create table watched(n int); grant all on watched to app;
         create function notes() returns trigger language plpgsql as
            $$ begin update seen set n = n; return null; end $$;
         create trigger notes before truncate on watched for each statement execute function notes()",
    );
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    let mut a = Raw::login(cluster.port, &[]);
    ok(&mut a, "update seen set n = 1");
    // Its own write is not there, so it reads at the primary, or not at all when it wants that.
    assert_eq!(value(&mut a, WHERE), "n1");
    ok(&mut a, "set pgtenure.no_standby = 'error'");
    assert_eq!(a.query(WHERE), ["E 57P03", "Z I"]);
    assert_eq!(value(&mut a, "begin; select n from seen; commit"), "1", "a block goes to the primary");
    // It does not mind: another node, and the older row.
    ok(&mut a, "set pgtenure.consistency = 'eventual'");
    assert_eq!(value(&mut a, WHERE), "n2");
    assert_eq!(value(&mut a, "select n from seen"), "0");
    assert_eq!(value(&mut a, "show pgtenure.consistency"), "eventual");
    // What a transaction set and undid does not count, nor what was reset.
    ok(&mut a, "begin; set pgtenure.no_standby = 'primary'; rollback");
    ok(&mut a, "begin; set local pgtenure.no_standby = 'primary'; commit");
    ok(&mut a, "reset pgtenure.consistency");
    assert_eq!(a.query(WHERE), ["E 57P03", "Z I"]);
    ok(&mut a, "discard all");
    assert_eq!(value(&mut a, WHERE), "n1");
    // Others are not touched by it.
    ok(&mut a, "set pgtenure.no_standby = 'error'");
    let mut b = Raw::login(cluster.port, &[]);
    ok(&mut b, "update seen set n = 3");
    assert_eq!(value(&mut b, "select n from seen"), "3");
    // What has written counts, whatever it looks like.
    for writes in [
        "select adds()",
        "call sets()",
        "truncate watched",
        "with x as (update seen set n = n returning n) select count(*) from x",
    ] {
        let mut own = Raw::login(cluster.port, &[("pgtenure.no_standby", "error")]);
        ok(&mut own, writes);
        assert_eq!(own.query(WHERE), ["E 57P03", "Z I"], "{writes}");
    }
}

#[test]
fn a_read_waits_for_a_standby_as_long_as_it_is_told() {
    let cluster = one_standby();
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    let options = "-c pgtenure.standby_wait=60s -c pgtenure.no_standby=error";
    let mut a = Raw::login(cluster.port, &[("options", options)]);
    ok(&mut a, "update seen set n = 2");
    a.write(|out| proxy::wire::frontend::write_query(out, "select n, current_setting('cluster_name') from seen"));
    wait_for("the read to wait", || (cluster.counter("pgtenure_proxy_held_statements") > 0.0).then_some(()));
    cluster.nodes[1].psql("select pg_wal_replay_resume()");
    assert_eq!(a.until_ready(), ["T", "D 2 n2", "C SELECT 1", "Z I"]);
}

#[test]
fn a_statement_that_waits_is_over_when_the_sessions_timeout_is() {
    let cluster = one_standby();
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    let options = "-c pgtenure.standby_wait=50s -c pgtenure.no_standby=error";
    let mut a = Raw::login(cluster.port, &[("options", options)]);
    ok(&mut a, "update seen set n = 2");
    // So is one that is cancelled.
    a.write(|out| proxy::wire::frontend::write_query(out, "select n from seen"));
    wait_for("the read to wait", || (cluster.counter("pgtenure_proxy_held_statements") > 0.0).then_some(()));
    let mut request = common::dial(cluster.port);
    std::io::Write::write_all(&mut request, &proxy::wire::startup::cancel_request(a.key.0, a.key.1)).unwrap();
    assert_eq!(a.until_ready(), ["E 57014", "Z I"]);
    ok(&mut a, "set statement_timeout = '300ms'");
    assert_eq!(a.query("select n from seen"), ["E 57014", "Z I"]);
    ok(&mut a, "set statement_timeout = 0");
    ok(&mut a, "set pgtenure.consistency = 'eventual'");
    assert_eq!(value(&mut a, "select n from seen"), "0");
    // As a startup packet says it, and where a block begins.
    let token = value(&mut a, "show pgtenure.token");
    let options = format!("{options} -c statement_timeout=300 -c pgtenure.after={token}");
    let mut b = Raw::login(cluster.port, &[("options", &options)]);
    for sql in ["select n from seen", "begin read only"] {
        assert_eq!(b.query(sql), ["E 57014", "Z I"], "{sql}");
    }
}

#[test]
fn what_becomes_of_a_read_that_no_standby_can_serve_is_counted() {
    let cluster = one_standby();
    let counted = |outcome: &str| cluster.counter_of("pgtenure_proxy_no_standby_total", outcome);
    let all = || ["waited", "primary", "error"].map(counted);
    // What was counted while the standby was waited for is there with the read that it served.
    wait_for("the counts of before", || {
        (cluster.counter_of("pgtenure_proxy_queries_total", "standby") > 0.0).then_some(())
    });
    let before = all();
    let becomes = |what: [f64; 3]| {
        let want = [0, 1, 2].map(|i| before[i] + what[i]);
        wait_for(&format!("{want:?} to be counted"), || (all() == want).then_some(()));
    };
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    let mut a = Raw::login(cluster.port, &[("pgtenure.no_standby", "error")]);
    ok(&mut a, "update seen set n = 1");
    assert_eq!(a.query(WHERE), ["E 57P03", "Z I"]);
    becomes([0.0, 0.0, 1.0]);
    let mut b = Raw::login(cluster.port, &[]);
    ok(&mut b, "update seen set n = 2");
    assert_eq!(value(&mut b, WHERE), "n1");
    becomes([0.0, 1.0, 1.0]);
    let mut c = Raw::login(cluster.port, &[("pgtenure.standby_wait", "50s")]);
    ok(&mut c, "update seen set n = 3");
    c.write(|out| proxy::wire::frontend::write_query(out, WHERE));
    wait_for("the read to wait", || (cluster.counter("pgtenure_proxy_held_statements") > 0.0).then_some(()));
    cluster.nodes[1].psql("select pg_wal_replay_resume()");
    assert_eq!(c.until_ready(), ["T", "D n2", "C SELECT 1", "Z I"]);
    becomes([1.0, 1.0, 1.0]);
}

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
    ok(&mut c, "commit");
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

#[test]
fn global_reads_see_what_others_were_acknowledged_before_they_began() {
    let cluster = one_standby();
    let mut writer = Raw::login(cluster.port, &[]);
    let settings = [("pgtenure.consistency", "global"), ("pgtenure.standby_wait", "60s")];
    let mut reader = Raw::login(cluster.port, &settings);
    for i in 1..=20 {
        ok(&mut writer, &format!("update seen set n = {i}"));
        assert_eq!(value(&mut reader, "select n, current_setting('cluster_name') from seen"), format!("{i} n2"));
    }
}

#[test]
fn a_setting_that_means_nothing_is_said_and_keeps_reads_at_the_primary() {
    let cluster = one_standby();
    let mut a = Raw::login(cluster.port, &[]);
    ok(&mut a, "set pgtenure.consistency = 'sessoin'");
    assert_eq!(a.query(WHERE), ["N 01000", "T", "D n1", "C SELECT 1", "Z I"]);
    assert_eq!(a.query(WHERE), ["T", "D n1", "C SELECT 1", "Z I"], "it is said once");
    assert_eq!(last_route(&mut a), "primary n1: invalid_setting");
    ok(&mut a, "set pgtenure.consistency = 'session'");
    wait_for("a read at the standby", || (value(&mut a, WHERE) == "n2").then_some(()));
    let mut b = Raw::login(cluster.port, &[("pgtenure.read_from", "primary")]);
    assert_eq!(value(&mut b, WHERE), "n1");
    assert_eq!(value(&mut b, "show pgtenure.read_from"), "primary");
    ok(&mut b, "set pgtenure.read_from = 'standby'");
    wait_for("a read at the standby", || (value(&mut b, WHERE) == "n2").then_some(()));
    ok(&mut b, "reset pgtenure.read_from");
    assert_eq!(value(&mut b, WHERE), "n1", "back to what the startup packet said");
}

#[test]
fn a_database_has_a_promise_of_its_own() {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        let mut database = proxy::config::pools::Database::default();
        database.reads.read_from = Some(proxy::route::ReadFrom::Primary);
        raw.databases.insert("app".to_owned(), database);
    });
    let mut a = Raw::login(cluster.port, &[]);
    assert_eq!(value(&mut a, WHERE), "n1");
    ok(&mut a, "set pgtenure.read_from = 'standby'");
    wait_for("a read at the standby", || (value(&mut a, WHERE) == "n2").then_some(()));
}

#[test]
fn every_way_to_say_where_reads_may_go_is_heard() {
    let mut typed = None;
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(10);
        raw.reads.hints = true;
        raw.reads.read_from = proxy::route::ReadFrom::Primary;
        typed = Some(raw.clone());
    });
    let mut typed = typed.unwrap();
    let reads = |say: &str, parameters: &[(&str, &str)], before: &[&str], sql: &str, node: &str| {
        let mut client = Raw::login(cluster.port, parameters);
        before.iter().for_each(|sql| drop(ok(&mut client, sql)));
        wait_for(&format!("{node} to serve the read of {say}"), || (value(&mut client, sql) == node).then_some(()));
        // And it stays so.
        (0..5).for_each(|_| assert_eq!(value(&mut client, sql), node, "{say}"));
    };
    let standby = "pgtenure.read_from";
    let hint = &format!("/* pgtenure: read_from=standby */ {WHERE}");
    let set = "set pgtenure.read_from = 'standby'";
    // The first tells that the standby would serve, were it asked to.
    reads("a startup parameter", &[(standby, "standby")], &[], WHERE, "n2");
    reads("the configuration", &[], &[], WHERE, "n1");
    reads("a startup option", &[("options", "-c pgtenure.read_from=standby")], &[], WHERE, "n2");
    reads("SET", &[], &[set], WHERE, "n2");
    reads("set_config", &[], &["select set_config('pgtenure.read_from', 'standby', false)"], WHERE, "n2");
    reads("SET, taken back", &[], &["begin", set, "rollback"], WHERE, "n1");
    reads("RESET", &[(standby, "standby")], &["set pgtenure.read_from = 'primary'", "reset all"], WHERE, "n2");
    reads("a comment", &[], &[], hint, "n2");
    // Rules of the database, and of the user, which come first.
    let control = cluster.handle.as_ref().unwrap().control();
    let from = |read_from| proxy::config::reads::Own { read_from: Some(read_from), ..Default::default() };
    let database =
        proxy::config::pools::Database { reads: from(proxy::route::ReadFrom::Standby), ..Default::default() };
    typed.databases.insert("app".to_owned(), database);
    control.reload(proxy::config::check(typed.clone()).unwrap()).unwrap();
    reads("the database's rule", &[], &[], WHERE, "n2");
    let user = proxy::config::pools::User { reads: from(proxy::route::ReadFrom::Primary), ..Default::default() };
    typed.users.insert("app".to_owned(), user);
    control.reload(proxy::config::check(typed).unwrap()).unwrap();
    reads("the user's rule", &[], &[], WHERE, "n1");
    reads("a session that says otherwise", &[], &[set], WHERE, "n2");
}

#[test]
fn reads_stay_in_the_proxys_zone_as_the_nodes_tell_it() {
    let cluster = Cluster::start(2, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(10);
        raw.zone = Some("west".to_owned());
    });
    // One that keeps nothing of what it has read, and so no standby for its sake.
    let mut a = Raw::login(cluster.port, &[("pgtenure.consistency", "bounded")]);
    // Told by the nodes' own agents; one that says nothing is in no zone.
    for (zones, node) in [([None, Some("west")], "n3"), ([Some("west"), Some("east")], "n2")] {
        cluster.publish(|t| {
            for (standby, zone) in t.standbys.iter_mut().zip(zones) {
                standby.zone = zone.map(str::to_owned);
            }
        });
        let mut in_a_row = 0;
        wait_for("reads to stay in the zone", || {
            in_a_row = if value(&mut a, WHERE) == node { in_a_row + 1 } else { 0 };
            (in_a_row >= 30).then_some(())
        });
    }
}

/// Where the client's last statement went, as `standby n2: fresh`.
fn last_route(client: &mut Raw) -> String {
    let route = value(client, "show pgtenure.last_route");
    route.splitn(3, ": ").take(2).collect::<Vec<_>>().join(": ")
}

#[test]
fn a_token_carries_what_was_written_to_another_session() {
    let cluster = one_standby_with_hints(true);
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    let mut a = Raw::login(cluster.port, &[]);
    ok(&mut a, "update seen set n = 7");
    let token = value(&mut a, "show pgtenure.token");
    assert!(token.starts_with("1-1-0/"), "{token}");
    assert_eq!(value(&mut a, "show pgtenure.token"), token, "asking changes nothing");
    // Another one does not know of the write, until it is told.
    let mut b = Raw::login(cluster.port, &[("pgtenure.max_replay_lag", "1h")]);
    assert_eq!(value(&mut b, "select n, current_setting('cluster_name') from seen"), "0 n2");
    ok(&mut b, &format!("set pgtenure.after = '{token}'"));
    // Its own SET ran at the primary too, and waits for a sample like a write.
    wait_for("the position to be what counts", || {
        assert_eq!(value(&mut b, "select n, current_setting('cluster_name') from seen"), "7 n1");
        (last_route(&mut b) == "primary n1: replay_behind").then_some(())
    });
    // By a comment, for one statement or block, of one that minds nothing else.
    let mut any = Raw::login(cluster.port, &[("pgtenure.consistency", "eventual")]);
    let read = "select n, current_setting('cluster_name') from seen";
    let named = format!("/* pgtenure: after={token} */ {read}");
    for _ in 0..2 {
        wait_for("the standby to serve what names no token", || (value(&mut any, read) == "0 n2").then_some(()));
        assert_eq!(value(&mut any, &named), "7 n1");
        ok(&mut any, &format!("/* pgtenure: after={token} */ begin read only"));
        assert_eq!(value(&mut any, read), "7 n1");
        ok(&mut any, "commit");
    }
    // In the startup packet, with a wait for the standby.
    let options = format!("-c pgtenure.after={token} -c pgtenure.standby_wait=60s -c pgtenure.no_standby=error");
    let mut c = Raw::login(cluster.port, &[("options", &options)]);
    c.write(|out| proxy::wire::frontend::write_query(out, "select n, current_setting('cluster_name') from seen"));
    wait_for("the read to wait", || (cluster.counter("pgtenure_proxy_held_statements") > 0.0).then_some(()));
    cluster.nodes[1].psql("select pg_wal_replay_resume()");
    assert_eq!(c.until_ready(), ["T", "D 7 n2", "C SELECT 1", "Z I"]);
    // Reset, it is forgotten; a transaction that sets it is no worse for it.
    ok(&mut b, "reset pgtenure.after");
    ok(&mut b, &format!("begin; set local pgtenure.after = '{token}'; select n from seen; commit"));
}

#[test]
fn a_token_from_beyond_a_fork_is_refused() {
    let cluster = Cluster::start(2, |raw| (raw.workers, raw.reads.hints) = (1, true));
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    let id = cluster.nodes[0].psql("select system_identifier from pg_control_system()");
    cluster.publish(|t| t.system_id = Some(id.parse().unwrap()));
    let mut a = Raw::login(cluster.port, &[]);
    // A token of another cluster, one that nobody was given, and one as they were before they told their cluster.
    assert_eq!(a.query("set pgtenure.after = '1-1-0/1-42'"), ["E 22023", "Z I"]);
    ok(&mut a, "select set_config('pgtenure.after', concat('1-1-0/1-', '42'), false)");
    assert_eq!(a.query("select n from seen"), ["E 22023", "Z I"]);
    ok(&mut a, "set pgtenure.after = '1-1-FF/0'");
    for statement in [WHERE, "update seen set n = 3", "begin"] {
        // A statement does not wait for ever for the sample that tells.
        wait_for(statement, || {
            let refused = a.query(statement) == ["E 08007", "Z I"];
            a.query("rollback");
            refused.then_some(())
        });
    }
    // One takes the place of it in any way, with a server of its own and without.
    for set in ["select set_config('pgtenure.after', '1-1-0/1', false)", "set a.b = 1; set pgtenure.after = '1-1-0/1'"]
    {
        ok(&mut a, "set pgtenure.after = '1-1-FF/0'");
        ok(&mut a, set);
        ok(&mut a, "select n from seen");
    }
    ok(&mut a, "reset pgtenure.after");
    ok(&mut a, "update seen set n = 1");
    let token = value(&mut a, "show pgtenure.token");
    let later = value(&mut a, "update seen set n = 2 returning 'gone'");
    assert_eq!(later, "gone");
    let lost = value(&mut a, "show pgtenure.token");
    assert!(token.ends_with(&format!("-{id}")), "{token}");
    let lsn = |token: &str| token.split('-').nth(2).unwrap().parse::<cluster::Lsn>().unwrap();
    let mut pinned = Raw::login(cluster.port, &[]);
    ok(&mut pinned, &format!("set pgtenure.after = '{lost}'; create temp table t(n int)"));
    let mut told = Raw::login(cluster.port, &[]);
    ok(&mut told, &format!("set pgtenure.after = '{lost}'"));
    // As if the new primary had received the first write only.
    cluster.fail_over_to(1);
    cluster.publish(|t| {
        t.forks = vec![cluster::timeline::Fork { timeline: cluster::TimelineId(1), lsn: lsn(&token) }];
    });
    let mut b = Raw::login(cluster.port, &[]);
    ok(&mut b, &format!("set pgtenure.after = '{token}'"));
    ok(&mut b, "select n from seen");
    // Set where it can be seen, and set where it cannot.
    assert_eq!(b.query(&format!("set pgtenure.after = '{lost}'")), ["E 08007", "Z I"]);
    assert_eq!(b.query("set pgtenure.after = '1-1-16B3748'"), ["E 22023", "Z I"]);
    assert_eq!(value(&mut b, "show pgtenure.after"), token, "what was refused was not set");
    ok(&mut b, &format!("select set_config('pgtenure.after', concat('{lost}'), false)"));
    let sets = ["set work_mem = '8MB'; select n from seen", "select set_config('a.b', 'c', false), n from seen"];
    for statement in [WHERE, "update seen set n = 3", "begin"].into_iter().chain(sets) {
        assert_eq!(b.query(statement), ["E 08007", "Z I"], "{statement}");
    }
    ok(&mut b, "set work_mem = '8MB'");
    ok(&mut b, "reset pgtenure.after");
    ok(&mut b, "select n from seen");
    // Within a block, the block fails.
    ok(&mut b, "begin");
    let set = b.query(&format!("set local pgtenure.after = '{lost}'"));
    assert_eq!(set, ["E 08007", "Z E"]);
    assert_eq!(b.query("select 1"), ["E 25P02", "Z E"]);
    assert_eq!(b.query("rollback"), ["C ROLLBACK", "Z I"]);
    ok(&mut b, "select n from seen");
    // So it is where a comment names it, and behind what is in flight at the primary.
    let named = format!("/* pgtenure: after={lost} */");
    let behind = |client: &mut Raw, ahead: &str, sql: &str| {
        client.write(|out| [ahead, sql].iter().for_each(|sql| proxy::wire::frontend::write_query(out, sql)));
        let first = client.until_ready();
        assert!(first.last().is_some_and(|s| s == "Z I") && !first[0].starts_with("E "), "{ahead}: {first:?}");
        client.until_ready()
    };
    for sql in ["select n from seen", "update seen set n = n", "begin"].map(|sql| format!("{named} {sql}")) {
        assert_eq!(b.query(&sql), ["E 08007", "Z I"], "{sql}");
        for (before, ahead) in [
            (&[][..], "update seen set n = n"),
            (&["begin"], "commit"),
            (&["begin", "update seen set n = n"], "rollback"),
            (&["begin", "select 1 / 0"], "rollback"),
            (&["begin read only", "select n from seen"], "commit"),
        ] {
            before.iter().for_each(|sql| drop(b.query(sql)));
            assert_eq!(behind(&mut b, ahead, &sql), ["E 08007", "Z I"], "{sql} behind {before:?} {ahead}");
        }
    }
    ok(&mut b, "select n from seen");
    assert_eq!(behind(&mut told, "show pgtenure.term", "select n from seen"), ["E 08007", "Z I"]);
    ok(&mut told, "set pgtenure.after = ''");
    // A session that has a server is held to it from the next statement on, however it was set.
    ok(&mut told, "create temp table t(n int)");
    ok(&mut told, &format!("select set_config('pgtenure.after', concat('{lost}'), false)"));
    assert_eq!(told.query(WHERE), ["E 08007", "Z I"]);
    // What the session has set may be lost by a failover after that, also for one that lost its server with it.
    assert_eq!(pinned.query(WHERE)[0], "E 08006");
    assert_eq!(pinned.query(WHERE), ["E 08007", "Z I"]);
    ok(&mut pinned, "select set_config('pgtenure.after', '', false)");
    ok(&mut pinned, WHERE);
}

#[test]
fn a_token_is_looked_at_by_what_sets_it() {
    let cluster = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.hold_timeout = cluster::config::Span::millis(500);
        raw.reads.hints = true;
    });
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    let ahead = "2-2-0/1";
    // What is refused is refused soon; a login that has no connection to the primary within that time is, too.
    let login = |parameters: &[(&str, &str)]| {
        wait_for("a login in time", || std::panic::catch_unwind(|| Raw::login(cluster.port, parameters)).ok())
    };
    let mut a = login(&[]);
    // A comment names it for its own statement, alone and behind another.
    let named = format!("/* pgtenure: after={ahead} */ select n from seen");
    assert_eq!(a.query(&named), ["E 57P03", "Z I"]);
    a.write(|out| {
        ["update seen set n = n", &named].iter().for_each(|sql| proxy::wire::frontend::write_query(out, sql));
    });
    assert_eq!(a.until_ready(), ["C UPDATE 1", "Z I"]);
    assert_eq!(a.until_ready(), ["E 57P03", "Z I"]);
    assert_eq!(value(&mut a, "select n from seen"), "0");
    for sql in [
        format!("set pgtenure.after = '{ahead}'; select n from seen"),
        format!("select set_config('pgtenure.after', '{ahead}', false), n from seen"),
        format!("begin; set local pgtenure.after = '{ahead}'; select n from seen; commit"),
        format!("select n from seen; set pgtenure.after = '{ahead}'"),
    ] {
        assert_eq!(a.query(&sql), ["E 57P03", "Z I"], "{sql}");
    }
    // What no text shows is set alone.
    let hidden = format!("select set_config('pgtenure.after', concat('{ahead}'), false)");
    let behind = format!("/* x */ {hidden}, n from seen");
    let spelled = [
        format!("set pgtenure.\"after\" = '{ahead}'; select n from seen"),
        format!("set /* x */ pgtenure.after = '{ahead}'; select n from seen"),
        format!("set pgtenure . after = '{ahead}'; select n from seen"),
        format!("select set_config($$pgtenure.after$$, '{ahead}', false), n from seen"),
        format!("select set_config('pgtenure.after', E'{ahead}', false), n from seen"),
        format!("select set_config('pgtenure.after', '{ahead}', 'f'), n from seen"),
        format!(
            "select set_config(setting_name => 'pgtenure.after', new_value => '{ahead}', is_local => false), n from seen"
        ),
    ];
    for sql in
        [format!("{hidden}, n from seen"), behind, format!("{hidden}; select n from seen")].iter().chain(&spelled)
    {
        assert_eq!(a.query(sql), ["E 0A000", "Z I"], "{sql}");
    }
    // A parameter is shown by what is bound to it.
    let batch = |a: &mut Raw, name: &str, parses: bool, token: Option<&str>, read: &str| {
        a.write(|out| {
            if parses {
                parse(out, name, "select set_config('pgtenure.after', $1, false)");
            }
            match token {
                Some(token) => bind(out, "", name, &[token]),
                // One, which is NULL.
                None => message(out, b'B', |b| {
                    b.push(0);
                    b.extend_from_slice(name.as_bytes());
                    b.extend_from_slice(&[0, 0, 0, 0, 1, 255, 255, 255, 255, 0, 0]);
                }),
            }
            execute(out, "");
            if !read.is_empty() {
                parse(out, "", read);
                bind(out, "", "", &[]);
                execute(out, "");
            }
            sync(out);
        });
        words(&a.until_ready())
    };
    const READ: &str = "select n from seen";
    assert_eq!(batch(&mut a, "", true, Some(ahead), READ), "E 57P03 | Z I");
    assert_eq!(batch(&mut a, "", true, Some("a token"), READ), "E 0A000 | Z I");
    assert_eq!(batch(&mut a, "", true, Some(""), READ), "1 | 2 | D  | C SELECT 1 | 1 | 2 | D 0 | C SELECT 1 | Z I");
    assert_eq!(batch(&mut a, "bound", true, Some(""), ""), "1 | 2 | D  | C SELECT 1 | Z I");
    assert_eq!(batch(&mut a, "bound", false, Some(ahead), READ), "E 57P03 | Z I");
    // NULL takes it back to that of the startup packet, which is no empty one.
    let mut began = login(&[("pgtenure.after", ahead)]);
    assert_eq!(batch(&mut began, "", true, None, READ), "E 0A000 | Z I");
    assert_eq!(value(&mut a, "show pgtenure.after"), "", "what was refused was not set");
    ok(&mut a, &hidden);
    // The one in force holds for what only names it, and for what stands before another.
    let mentions = "set a.b = 'c'; select current_setting('pgtenure.after'), n from seen";
    for sql in [mentions, "select n from seen; set pgtenure.after = ''", "select n from seen"] {
        assert_eq!(a.query(sql), ["E 57P03", "Z I"], "{sql}");
    }
    assert_eq!(a.query("set pgtenure.after = ''; select n from seen"), ["C SET", "T", "D 0", "C SELECT 1", "Z I"]);
    let token = value(&mut a, "show pgtenure.token");
    ok(&mut a, &format!("set pgtenure.after = '{token}'; select n from seen"));
    ok(&mut a, &format!("begin; {hidden}; rollback"));
    // In a block as of its BEGIN.
    ok(&mut a, "begin");
    let set = a.query(&format!("set local pgtenure.after = '{ahead}'; select n from seen"));
    assert_eq!(set, ["E 57P03", "Z E"]);
    ok(&mut a, "rollback");
    // What is only defined sets nothing yet, and a comment hides no verb.
    cluster.nodes[0].psql("grant create on schema public to app");
    let body = "declare t text := tok; begin perform set_config('pgtenure.after', t, false); end";
    let define = format!("create function use_token(tok text) returns void language plpgsql as $$ {body} $$");
    assert_eq!(a.query(&define), ["C CREATE FUNCTION", "Z I"]);
    let prepare = "/* x; y */ prepare p as select set_config('pgtenure.after', $1, false)";
    assert_eq!(a.query(prepare), ["C PREPARE", "Z I"]);
    assert_eq!(a.query("/* x */ execute p('')"), ["T", "D ", "C SELECT 1", "Z I"]);
    // What a block or a RESET brings back holds again.
    ok(&mut a, &hidden);
    for (undone, ends) in [("set local pgtenure.after = ''", "commit"), ("set pgtenure.after = ''", "rollback")] {
        let sql = format!("begin; {undone}; {ends}; select n from seen");
        assert_eq!(a.query(&sql), ["E 57P03", "Z I"], "{sql}");
    }
    let mut b = login(&[("options", &format!("-c pgtenure.after={ahead}"))]);
    assert_eq!(b.query("set pgtenure.after = ''; select n from seen"), ["C SET", "T", "D 0", "C SELECT 1", "Z I"]);
    for reset in ["reset pgtenure.after", "set pgtenure.after to default", "discard temp; reset all"] {
        assert_eq!(b.query(&format!("{reset}; select n from seen")), ["E 57P03", "Z I"], "{reset}");
    }
}

#[test]
fn a_session_can_ask_where_its_statements_go() {
    let cluster = one_standby();
    let mut a = Raw::login(cluster.port, &[]);
    assert_eq!(value(&mut a, WHERE), "n2");
    let route = value(&mut a, "show pgtenure.last_route");
    assert!(route.starts_with("standby n2: fresh: ") && route.contains(" ms stale, replayed 0/"), "{route}");
    assert_eq!(value(&mut a, "show pgtenure.last_route"), route, "asking is no route");
    assert_eq!(value(&mut a, "select current_setting('pgtenure.last_route')"), route);
    ok(&mut a, "update seen set n = 1");
    assert_eq!(value(&mut a, "show pgtenure.last_route"), "primary n1: write: not proven read-only");
    assert_eq!(value(&mut a, "show pgtenure.term"), "1");
    // Within a block as well, and before its first query.
    ok(&mut a, "begin");
    assert_eq!(value(&mut a, "show pgtenure.term"), "1");
    ok(&mut a, "set transaction isolation level serializable");
    ok(&mut a, "select n from seen");
    let within = "primary n1: same_server: its transaction block is there";
    assert_eq!(value(&mut a, "show pgtenure.last_route"), within);
    ok(&mut a, "commit");
    // By the extended protocol.
    a.write(|out| {
        common::raw::run(out, "show pgtenure.term");
        common::raw::sync(out);
    });
    assert_eq!(a.until_ready(), ["1", "2", "D 1", "C SHOW", "Z I"]);
    a.write(|out| {
        common::raw::parse(out, "s", "show pgtenure.last_route");
        common::raw::sync(out);
    });
    assert_eq!(a.until_ready(), ["1", "Z I"]);
    ok(&mut a, "update seen set n = 1");
    // What drivers do around it is no route either.
    a.write(|out| {
        common::raw::parse(out, "t", "show pgtenure.last_route");
        common::raw::describe(out, "t");
        common::raw::sync(out);
        common::raw::close(out, "t");
        common::raw::sync(out);
    });
    assert_eq!(a.until_ready(), ["1", "t", "T", "Z I"]);
    assert_eq!(a.until_ready(), ["3", "Z I"]);
    a.write(|out| {
        common::raw::bind(out, "", "s", &[]);
        common::raw::execute(out, "");
        common::raw::sync(out);
    });
    assert_eq!(a.until_ready(), ["2", "D primary n1: write: not proven read-only", "C SHOW", "Z I"]);
    assert_eq!(a.query("set pgtenure.term = '9'")[0], "C SET");
    assert_eq!(value(&mut a, "show pgtenure.term"), "1", "it only tells");
    ok(&mut a, "reset pgtenure.term");
    // Told by itself, as long as it is wanted.
    ok(&mut a, "set pgtenure.explain_route = on");
    let seen = a.query("update seen set n = 2");
    assert_eq!(seen, ["N 00000", "C UPDATE 1", "Z I"]);
    ok(&mut a, "set pgtenure.explain_route = off");
    assert_eq!(a.query("update seen set n = 2"), ["C UPDATE 1", "Z I"]);
    cluster.fail_over_to(1);
    assert_eq!(value(&mut a, "show pgtenure.term"), "2");
}

#[test]
fn reads_that_follow_each_other_without_a_pause_return_to_the_standby() {
    let cluster = one_standby();
    let mut a = Raw::login(cluster.port, &[]);
    ok(&mut a, "update seen set n = 5");
    let started = std::time::Instant::now();
    loop {
        let got = value(&mut a, "select n, current_setting('cluster_name') from seen");
        if got == "5 n2" {
            break;
        }
        assert_eq!(got, "5 n1");
        assert!(started.elapsed() < common::DEADLINE, "it never returns");
    }
}

#[test]
fn a_statement_says_for_itself_what_it_may_miss() {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.reads.hints = true;
    });
    let mut a = Raw::login(cluster.port, &[]);
    wait_for("the standby to serve reads", || (value(&mut a, WHERE) == "n2").then_some(()));
    let hinted = format!("/* pgtenure: read_from=primary */ {WHERE}");
    assert_eq!(value(&mut a, &hinted), "n1");
    assert_eq!(last_route(&mut a), "primary n1: as_asked");
    wait_for("a read at the standby", || (value(&mut a, WHERE) == "n2").then_some(()));
    assert_eq!(a.query(&format!("/* pgtenure: read_from=nowhere */ {WHERE}"))[0], "N 01000");
    // What is not read says so, and goes where any promise is kept; comments of others stand before it, too.
    for (sql, warned) in [
        (format!("/* dao.7 */ {hinted}"), 0),
        (format!("{hinted}; select 1"), 0),
        (format!("/* pgtenure: read_from primary */ {WHERE}"), 1),
        (format!("{WHERE}; {hinted}"), 1),
    ] {
        let seen = a.query(&sql);
        let warnings = seen.iter().filter(|s| *s == "N 01000").count();
        assert!(seen.contains(&"D n1".to_owned()) && warnings == warned, "{sql}: {seen:?}");
    }
    // A block keeps what its BEGIN has said: who asks for something else within it is told so.
    let begun = "/* pgtenure: read_from=primary */ begin";
    for (texts, warned) in [
        (&["begin", &hinted, "commit"][..], 1),
        (&["begin read only", WHERE, &hinted, "commit"], 1),
        (&["begin", "/* pgtenure: durability=local */ select 1", "commit"], 1),
        (&["begin", "/* pgtenure: durability=local, read_from=primary */ select 1", "commit"], 2),
        (&[&format!("begin; {hinted}"), "commit"], 1),
        (&[begun, &hinted, "commit"], 0),
        (&["begin", WHERE, "commit"], 0),
    ] {
        let seen: Vec<String> = texts.iter().flat_map(|sql| a.query(sql)).collect();
        assert_eq!(seen.iter().filter(|s| *s == "N 01000").count(), warned, "{texts:?}: {seen:?}");
    }
    a.write(|out| {
        ["begin", &hinted, "commit"].iter().for_each(|sql| common::raw::run(out, sql));
        common::raw::sync(out);
    });
    let seen = a.until_ready();
    assert_eq!(seen.iter().filter(|s| *s == "N 01000").count(), 1, "{seen:?}");
    // The unnamed statement of before has nothing to do with the next one.
    let mut unnamed = |sql: &str| {
        a.write(|out| {
            common::raw::run(out, sql);
            common::raw::sync(out);
        });
        a.until_ready()
    };
    wait_for("a read at the standby behind a hinted one", || {
        assert!(unnamed(&hinted).contains(&"D n1".to_owned()));
        unnamed(WHERE).contains(&"D n2".to_owned()).then_some(())
    });
    // Two sessions prepare what differs in the comment only, and one prepares both.
    let mut b = Raw::login(cluster.port, &[]);
    let run = |client: &mut Raw, statement: &str| {
        client.write(|out| {
            common::raw::bind(out, "", statement, &[]);
            common::raw::execute(out, "");
            common::raw::sync(out);
        });
        client.until_ready()[1].clone()
    };
    for client in [&mut a, &mut b] {
        client.write(|out| {
            common::raw::parse(out, "plain", WHERE);
            common::raw::parse(out, "hinted", &hinted);
            common::raw::sync(out);
        });
        assert_eq!(client.until_ready(), ["1", "1", "Z I"]);
    }
    for client in [&mut a, &mut b] {
        for _ in 0..3 {
            wait_for("a read at the standby", || (run(client, "plain") == "D n2").then_some(()));
            assert_eq!(run(client, "hinted"), "D n1");
        }
    }
}

#[test]
fn hints_are_comments_unless_they_are_allowed() {
    let cluster = one_standby();
    let mut a = Raw::login(cluster.port, &[]);
    assert_eq!(value(&mut a, &format!("/* pgtenure: read_from=primary */ {WHERE}")), "n2");
}

#[test]
fn a_session_that_keeps_its_server_leaves_a_standby_that_has_become_stale() {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.pools.pool_mode = proxy::config::PoolMode::Session;
    });
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    let mut b = Raw::login(cluster.port, &[]);
    let read = "select n, current_setting('cluster_name') from seen";
    // A session whose first read came too early keeps the primary.
    let mut a = wait_for("the standby to serve reads", || {
        let settings = [("pgtenure.consistency", "global"), ("pgtenure.standby_wait", "60s")];
        let mut a = Raw::login(cluster.port, &settings);
        (value(&mut a, read) == "0 n2").then_some(a)
    });
    for n in 1..10 {
        ok(&mut b, &format!("update seen set n = {n}"));
        assert_eq!(value(&mut a, read), format!("{n} n2"));
    }
}
