//! What a session is told whose write was acknowledged and is in no later term.

use super::common::raw::{Raw, ok, value};
use super::common::{Cluster, wait_for};
use cluster::timeline::Fork;
use cluster::topology::{Closed, Gate};
use cluster::{Lsn, Term, TimelineId};

const WHERE: &str = "select current_setting('cluster_name')";

/// Promote the standby, which is n2, and open its term.
fn fail_over(c: &mut Cluster, change: impl FnOnce(&mut cluster::topology::Topology)) {
    c.nodes[0].kill();
    c.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    c.nodes[1].promote();
    let history = std::fs::read_to_string(c.nodes[1].data.join("pg_wal/00000002.history")).expect("it was promoted");
    let lsn: Lsn = history.split_whitespace().nth(1).expect("a position").parse().expect("a position");
    let primary = c.nodes[1].member();
    c.publish(|t| {
        (t.term, t.gate) = (Term(2), Gate::Open);
        t.standbys.clear();
        t.primary = Some(primary);
        t.forks = vec![Fork { timeline: TimelineId(1), lsn }];
        change(t);
    });
}

/// The standby receives nothing from now on.
fn cut(c: &Cluster) {
    c.nodes[1].psql("alter system set primary_conninfo = ''");
    c.nodes[1].psql("select pg_reload_conf()");
    wait_for("the stream to end", || {
        (c.nodes[1].psql("select count(*) from pg_stat_wal_receiver") == "0").then_some(())
    });
}

/// A session whose write the standby has, and of which that is known.
fn early(c: &Cluster) -> Raw {
    let mut early = Raw::login(c.port, &[]);
    ok(&mut early, "insert into t values (1)");
    wait_for("the standby to serve it", || (value(&mut early, WHERE) == "n2").then_some(()));
    assert_eq!(value(&mut early, "select count(*) from t"), "1");
    early
}

#[test]
fn a_session_whose_acknowledged_write_may_be_lost_is_told_once() {
    let mut c = Cluster::start(1, |raw| raw.workers = 1);
    c.psql("create table t(a int)").unwrap();
    c.publish(|t| t.protected = false);
    let mut early = early(&c);
    cut(&c);
    let [mut reads, mut writes, mut block] = [(); 3].map(|()| Raw::login(c.port, &[]));
    let mut loose = Raw::login(c.port, &[("pgtenure.consistency", "bounded")]);
    let [mut idle, mut chained] = [(); 2].map(|()| Raw::login(c.port, &[]));
    for sql in ["begin", "insert into t values (2)", "commit and chain"] {
        ok(&mut chained, sql);
    }
    for client in [&mut reads, &mut writes, &mut block, &mut loose] {
        ok(client, "insert into t values (2)");
    }
    ok(&mut idle, "select 1");
    // What was rolled back was not acknowledged.
    let mut undone = Raw::login(c.port, &[]);
    for sql in ["begin", "insert into t values (2)", "rollback"] {
        ok(&mut undone, sql);
    }
    assert_eq!(undone.query("insert into t values (1/0)"), ["E 22012", "Z I"]);
    fail_over(&mut c, |_| {});
    assert_eq!(reads.query("select count(*) from t"), ["E 08007", "Z I"]);
    assert_eq!(value(&mut reads, "select count(*) from t"), "1", "it is told once");
    assert_eq!(writes.query("insert into t values (3)"), ["E 08007", "Z I"]);
    assert_eq!(value(&mut writes, "select count(*) from t"), "1", "nothing of the statement was done");
    assert_eq!(block.query("begin"), ["E 08007", "Z I"]);
    ok(&mut block, "begin");
    ok(&mut block, "insert into t values (4)");
    ok(&mut block, "commit");
    // Its COMMIT was acknowledged, whatever became of the transaction behind it.
    assert_eq!(chained.query("select 1"), ["E 40001", "Z E"]);
    ok(&mut chained, "rollback");
    assert_eq!(chained.query("select count(*) from t"), ["E 08007", "Z I"]);
    for client in [&mut loose, &mut early, &mut idle, &mut undone] {
        assert_eq!(value(client, "select min(a) from t"), "1", "nothing was lost, or it was not promised");
    }
    wait_for("those to be counted", || (c.counter("pgtenure_proxy_lost_writes_told_total") == 4.0).then_some(()));
}

#[test]
fn what_a_quorum_confirmed_is_told_as_lost_only_where_an_operator_allowed_that() {
    for allowed in [false, true] {
        let mut c = Cluster::start(1, |raw| raw.workers = 1);
        c.psql("create table t(a int)").unwrap();
        let mut early = early(&c);
        cut(&c);
        let mut late = Raw::login(c.port, &[]);
        ok(&mut late, "insert into t values (2)");
        fail_over(&mut c, |t| t.loss_allowed = allowed);
        let told = late.query("select count(*) from t");
        assert_eq!(told == ["E 08007", "Z I"], allowed, "{told:?}");
        assert_eq!(value(&mut early, "select count(*) from t"), "1");
    }
}
