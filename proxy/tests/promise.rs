//! What reads are promised, against a real primary and a real standby whose replay is stopped and started.

mod common;

use common::raw::Raw;
use common::{Cluster, wait_for};

const WHERE: &str = "select current_setting('cluster_name')";

fn ok(client: &mut Raw, sql: &str) -> Vec<String> {
    let seen = client.query(sql);
    assert!(!seen.iter().any(|s| s.starts_with("E ") || s == "EOF"), "{sql}: {seen:?}");
    seen
}

/// The one value that a query gives.
fn value(client: &mut Raw, sql: &str) -> String {
    let seen = ok(client, sql);
    seen.iter().find_map(|s| s.strip_prefix("D ")).unwrap_or_else(|| panic!("{sql}: {seen:?}")).to_owned()
}

fn one_standby() -> Cluster {
    let cluster = Cluster::start(1, |raw| raw.workers = 1);
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (0)");
    let mut client = Raw::login(cluster.port, &[]);
    wait_for("the standby to serve reads", || (value(&mut client, WHERE) == "n2").then_some(()));
    cluster
}

#[test]
fn a_session_chooses_what_its_reads_may_miss() {
    let cluster = one_standby();
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
}

#[test]
fn a_read_waits_for_a_standby_as_long_as_it_is_told() {
    let cluster = one_standby();
    cluster.nodes[1].psql("select pg_wal_replay_pause()");
    let options = "-c pgtenure.standby_wait=20s -c pgtenure.no_standby=error";
    let mut a = Raw::login(cluster.port, &[("options", options)]);
    ok(&mut a, "update seen set n = 2");
    a.write(|out| proxy::wire::frontend::write_query(out, "select n, current_setting('cluster_name') from seen"));
    wait_for("the read to wait", || (cluster.counter("pgtenure_proxy_held_statements") > 0.0).then_some(()));
    cluster.nodes[1].psql("select pg_wal_replay_resume()");
    assert_eq!(a.until_ready(), ["T", "D 2 n2", "C SELECT 1", "Z I"]);
}

#[test]
fn global_reads_see_what_others_were_acknowledged_before_they_began() {
    let cluster = one_standby();
    let mut writer = Raw::login(cluster.port, &[]);
    let settings = [("pgtenure.consistency", "global"), ("pgtenure.standby_wait", "20s")];
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
