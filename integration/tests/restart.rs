//! Everything dies and is started again, in any order: the cluster is writable and every acknowledged row is there.

use integration::cluster::{Cluster, LONG, one_at_a_time};
use integration::config_file::{MANAGERS, NODES};
use integration::workload::{Style, Workload};
use std::time::Duration;

const ORDERS: [[&str; 6]; 3] = [
    ["n1", "n2", "n3", "m1", "m2", "proxy"],
    ["proxy", "m2", "m1", "n3", "n2", "n1"],
    ["m1", "n2", "proxy", "n3", "m2", "n1"],
];

#[test]
fn everything_killed_and_started_in_any_order_is_writable_with_every_acknowledged_row() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    for (i, order) in ORDERS.iter().enumerate() {
        let before = cluster.active();
        let block = 1 + 100 * i as i64;
        let load =
            Workload::start(&cluster.target(), 4, &[Style::Autocommit, Style::Block], block, Duration::from_millis(2));
        load.wait_for_more(200, LONG);
        cluster.kill_all();
        let history = load.finish();
        if i == 1 {
            cluster.etcd().kill();
            cluster.etcd().restart();
        }
        for name in order {
            cluster.start_role(name);
        }
        let after = cluster.active_after(before.term);
        cluster.endpoint_writes();
        cluster.all_stream();
        cluster.verify(&history, block);
        cluster.timelines_are(after.term);
    }
}

#[test]
fn a_cluster_stopped_in_good_order_starts_again() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::healthy();
    Workload::create_table(&cluster.target()).expect("a table");
    let load = Workload::start(&cluster.target(), 4, &[Style::Autocommit], 1, Duration::from_millis(2));
    load.wait_for_more(100, LONG);
    let history = load.finish();
    for name in ["proxy"].iter().chain(&MANAGERS).chain(&NODES) {
        cluster.stop_role(name);
    }
    for node in NODES {
        assert_eq!(cluster.postmaster(node), None, "PostgreSQL stops with its agent");
    }
    for name in NODES.iter().chain(&MANAGERS).chain(&["proxy"]) {
        cluster.start_role(name);
    }
    cluster.active();
    cluster.endpoint_writes();
    cluster.all_stream();
    cluster.verify(&history, 1);
}
