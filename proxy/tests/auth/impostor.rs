//! Servers that are not what they are taken for, and standbys that let nobody in.

use super::common::raw::{Raw, ok, value};
use super::common::{Cluster, wait_for};
use cluster::Term;
use cluster::config::Span;
use cluster::topology::Member;

const WHERE: &str = "select current_setting('cluster_name')";
const CONNECTS: &str = "pgtenure_proxy_server_connects_total";

#[test]
fn what_answers_at_a_nodes_address_is_of_the_cluster_and_the_term() {
    let c = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.hold_timeout = Span::secs(2);
        raw.auth.rules.push("host replication app all scram-sha-256".to_owned());
    });
    c.nodes[0].psql("alter role app replication");
    let replicates = |kind: &str| {
        let dsn = format!("replication={kind} dbname=app");
        let out = c.client("psql").args(["-X", "-A", "-t", "-d", &dsn, "-c", "IDENTIFY_SYSTEM"]).output();
        out.expect("psql can be started").status.success()
    };
    let id: u64 = c.nodes[0].psql("select system_identifier from pg_control_system()").parse().expect("a number");
    c.publish(|t| t.system_id = Some(id));
    wait_for("the standby to serve reads", || (value(&mut Raw::login(c.port, &[]), WHERE) == "n2").then_some(()));
    assert_eq!(c.counter_of(CONNECTS, "other_server"), 0.0);
    assert!(replicates("true") && replicates("database"));
    let mut client = Raw::login(c.port, &[]);
    c.publish(|t| (t.term, t.system_id) = (Term(2), Some(id + 1)));
    // What is connected stays so.
    for node in &c.nodes {
        node.psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
    }
    for sql in [WHERE, "create table t(a int)"] {
        assert_eq!(client.query(sql), ["E 57P03", "Z I"], "{sql}");
    }
    assert!(c.counter_of(CONNECTS, "other_server") > 0.0);
    // The standby is of the cluster, and what is taken for the primary is one of another term.
    c.publish(|t| t.system_id = Some(id));
    wait_for("the standby to serve reads", || {
        (client.query(WHERE) == ["T", "D n2", "C SELECT 1", "Z I"]).then_some(())
    });
    assert_eq!(client.query("create table t(a int)"), ["E 57P03", "Z I"]);
    assert!(!replicates("database"));
    c.publish(|t| (t.term, t.system_id) = (Term(3), None));
    ok(&mut client, "create table t(a int)");
}

/// Another server takes a node's name, at another address, and the one that had it goes on. What is sampled is the new one.
fn the_server_that_was_sampled_is_read_at(c: &Cluster) {
    let (n2, n3) = (c.nodes[1].member(), c.nodes[2].member());
    let mut client = Raw::login(c.port, &[("pgtenure.consistency", "bounded")]);
    for (standby, at) in [(n2.clone(), "n2"), (Member { postgres: n3.postgres.clone(), ..n2.clone() }, "n3")] {
        c.publish(|t| t.standbys = vec![standby]);
        wait_for(at, || (value(&mut client, WHERE) == at).then_some(()));
    }
    // That of before leads elsewhere, too.
    c.publish(|t| t.standbys = vec![n2.clone()]);
    wait_for("n2 again", || (value(&mut client, WHERE) == "n2").then_some(()));
    c.publish(|t| t.standbys = vec![n2, n3]);
}

#[test]
fn a_standby_that_refuses_a_role_is_left_alone_for_a_while() {
    let c = Cluster::start(2, |raw| raw.workers = 1);
    the_server_that_was_sampled_is_read_at(&c);
    // One that does not mind where it has read before.
    let mut client = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    for node in ["n2", "n3"] {
        wait_for("both to serve reads", || (value(&mut client, WHERE) == node).then_some(()));
    }
    c.nodes[1].psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
    std::fs::write(c.nodes[1].data.join("pg_hba.conf"), "host all postgres 127.0.0.1/32 trust\n").expect("writable");
    c.nodes[1].psql("select pg_reload_conf()");
    wait_for("n2 to refuse", || {
        (c.counter_of(CONNECTS, "refused") > 0.0 || {
            value(&mut client, WHERE);
            false
        })
        .then_some(())
    });
    let before = c.counter_of(CONNECTS, "refused");
    let started = std::time::Instant::now();
    let mut reads = 0;
    while reads <= 20 || started.elapsed() < std::time::Duration::from_secs(1) {
        assert_eq!(value(&mut client, WHERE), "n3");
        reads += 1;
    }
    // On a busy machine so many reads may take longer.
    let longer = (started.elapsed().as_secs_f64() - 1.0).max(0.0);
    // Pauses begin at half a second, or the half of that.
    let refused = c.counter_of(CONNECTS, "refused") - before;
    assert!(refused <= 4.0 + 2.0 * longer, "{refused} attempts for {reads} reads in {longer:.1} s more");
    ok(&mut client, "begin");
}
