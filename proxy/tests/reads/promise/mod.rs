//! What reads are promised, against a real primary and a real standby whose replay is stopped and started.

mod hints;
mod proven;
mod tokens;

use super::common::raw::{Raw, ok, value};
use super::common::{self, Cluster, wait_for};

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
    cancel(&cluster, &a);
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
    // What a session has on its server is nowhere else.
    ok(&mut a, "create temp table own(n int)");
    assert_eq!(value(&mut a, WHERE), "n1");
    becomes([1.0, 2.0, 1.0]);
    ok(&mut a, "begin");
    assert_eq!(value(&mut a, WHERE), "n1");
    ok(&mut a, "commit");
    becomes([1.0, 2.0, 1.0]);
    // Nor is one left out whose wait something else ends: a request to cancel it, or its session's limit.
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    ok(&mut c, "update seen set n = 4");
    c.write(|out| proxy::wire::frontend::write_query(out, WHERE));
    wait_for("the read to wait", || (cluster.counter("pgtenure_proxy_held_statements") > 0.0).then_some(()));
    cancel(&cluster, &c);
    assert_eq!(c.until_ready(), ["E 57014", "Z I"]);
    becomes([1.0, 2.0, 2.0]);
    ok(&mut c, "set statement_timeout = '100ms'");
    assert_eq!(c.query(WHERE), ["E 57014", "Z I"]);
    becomes([1.0, 2.0, 3.0]);
}

fn cancel(cluster: &Cluster, client: &Raw) {
    let mut request = common::dial(cluster.port);
    std::io::Write::write_all(&mut request, &proxy::wire::startup::cancel_request(client.key.0, client.key.1)).unwrap();
}

#[test]
fn what_was_prepared_is_a_read_only_as_texts_are_read_now() {
    let cluster = one_standby();
    let sql = r"select current_setting('cluster_name'), '\\' || 'x'";
    for set in ["standard_conforming_strings = off", "client_encoding = 'BIG5'"] {
        let mut a = Raw::login(cluster.port, &[]);
        a.write(|out| {
            common::raw::parse(out, "s", sql);
            common::raw::sync(out);
        });
        assert_eq!(a.until_ready(), ["1", "Z I"]);
        let run = |a: &mut Raw| {
            a.write(|out| {
                common::raw::bind(out, "", "s", &[]);
                common::raw::execute(out, "");
                common::raw::sync(out);
            });
            let seen = a.until_ready();
            seen.iter()
                .find_map(|s| s.strip_prefix("D ").map(|row| row[..2].to_owned()))
                .unwrap_or_else(|| panic!("{seen:?}"))
        };
        wait_for("a read at the standby", || (run(&mut a) == "n2").then_some(()));
        // It waits for no sample then.
        ok(&mut a, "set pgtenure.consistency = 'eventual'");
        ok(&mut a, &format!("set {set}"));
        assert_eq!(run(&mut a), "n1", "{set}");
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
fn reads_stay_in_the_proxys_zone_as_the_nodes_tell_it_and_go_by_weight_elsewhere() {
    let cluster = Cluster::start(2, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(10);
        raw.zone = Some("west".to_owned());
        for (node, weight) in [("n2", 1), ("n3", 10_000)] {
            raw.nodes.insert(node.to_owned(), proxy::config::nodes::Node { zone: None, weight });
        }
    });
    // One that keeps nothing of what it has read, and so no standby for its sake.
    let mut a = Raw::login(cluster.port, &[("pgtenure.consistency", "bounded")]);
    // Told by the nodes' own agents; one that says nothing is in no zone.
    for (zones, node) in [([None; 2], "n3"), ([Some("west"), None], "n2"), ([Some("west"), Some("east")], "n2")] {
        cluster.publish(|t| {
            for (standby, zone) in t.standbys.iter_mut().zip(zones) {
                standby.zone = zone.map(str::to_owned);
            }
        });
        let mut in_a_row = 0;
        wait_for("reads to go there", || {
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
fn a_session_that_keeps_its_server_stays_at_the_primary_once_it_has_been_there() {
    let cluster = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.pools.pool_mode = proxy::config::PoolMode::Session;
        raw.max_replay_lag = cluster::config::Span::secs(10);
    });
    let mut a = wait_for("the standby to serve reads", || {
        let mut a = Raw::login(cluster.port, &[]);
        (value(&mut a, WHERE) == "n2").then_some(a)
    });
    assert_eq!(value(&mut a, WHERE), "n2");
    ok(&mut a, "set datestyle = 'german'");
    assert_eq!(value(&mut a, WHERE), "n1");
    ok(&mut a, "begin read only");
    assert_eq!(value(&mut a, WHERE), "n1");
    ok(&mut a, "commit");
    assert_eq!(value(&mut a, WHERE), "n1");
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
