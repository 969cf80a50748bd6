//! Async mode: what a failover loses is exactly what the report says.

use integration::client::Client;
use integration::cluster::{Cluster, LONG, one_at_a_time};
use integration::config_file::Options;
use integration::wait::wait_for;
use integration::workload::{Workload, rows_found};

/// More than this may not be lost without an operator's word.
const OPTIONS: Options = Options {
    mode: "async",
    // What nobody asked for is not to commit among what is counted.
    parameters: "autovacuum = \"off\"\n",
    manager: "max_loss = \"1KiB\"\n",
    proxy: "",
    fault_proxies: true,
    second_proxy: false,
};

#[test]
fn the_reported_window_is_the_rows_that_are_missing() {
    let _turn = one_at_a_time();
    let cluster = Cluster::start(&OPTIONS);
    Workload::create_table(&cluster.target()).expect("a table");
    let before = cluster.active();
    let mut client = cluster.connect();
    for id in 1..=50 {
        client.query(&format!("insert into rows(id) values ({id})")).expect("a healthy cluster takes rows");
    }
    for standby in cluster.standbys() {
        wait_for("the standby to have the rows", LONG, || has_rows(&cluster, standby, 50));
    }

    cluster.fault_proxy(&before.primary).cut_replication();
    for id in 1001..=1040 {
        client.query(&format!("insert into rows(id) values ({id})")).expect("async mode waits for nobody");
    }
    wait_for("the manager to know that more than it may lose is not replicated", LONG, || {
        let status = cluster.status()?;
        let behind = status["nodes"].as_array().cloned().unwrap_or_default();
        let most = behind.iter().filter_map(|n| n["replay_lag_bytes"].as_u64()).max().unwrap_or(0);
        if most > 1024 { Ok(()) } else { Err(format!("{most} bytes")) }
    });
    a_commit_that_asks_waits_for_a_standby(&cluster, &before.primary);
    cluster.kill_postmaster(&before.primary);

    wait_for("an operator's failover to be accepted", LONG, || {
        let verb = cluster.verb(&["failover", "--allow-data-loss"]);
        if verb.code == 0 { Ok(()) } else { Err(verb) }
    });
    let after = cluster.active_after(before.term);
    assert_ne!(after.primary, before.primary);
    cluster.fault_proxy(&before.primary).heal();
    cluster.streams(&before.primary);

    let found = rows_found(&mut cluster.connect(), 0).expect("the rows can be read");
    let kept = (1..=50).filter(|id| found.contains_key(id)).count();
    let missing = (1001..=1042).filter(|id| !found.contains_key(id)).count() as u64;
    assert_eq!((kept, missing), (50, 42), "what was replicated is there, what was cut off is not");

    let loss = wait_for("the report of the old primary's WAL", LONG, || {
        let verb = cluster.verb(&["report", &after.term.to_string(), "--json"]);
        if verb.code != 0 {
            return Err(format!("{verb:?}"));
        }
        find_loss(&verb.json(), &before.primary).ok_or(verb.stdout)
    });
    assert_eq!(loss["commits"].as_u64(), Some(missing), "{loss}");
    assert_eq!(loss["transactions"].as_array().map(Vec::len), Some(missing as usize), "{loss}");
    assert!(loss["bytes"].as_u64() > Some(0), "{loss}");
    assert!(loss["span_ms"].as_u64().is_some(), "{loss}");
    let table = cluster.verb(&["report", &after.term.to_string()]).exits(0).stdout;
    assert!(table.contains("42"), "a person is told how many: {table}");

    a_replicated_primary_is_replaced_by_itself(&cluster);
}

/// No standby answers: nothing else waits, and who cancels the wait is told that the outcome is not known.
fn a_commit_that_asks_waits_for_a_standby(cluster: &Cluster, primary: &str) {
    let mut asking = cluster.connect();
    asking.query("begin").expect("a block begins");
    asking.query("set local pgtenure.durability = 'semi_sync'").expect("more than the mode is granted");
    asking.query("insert into rows(id) values (1041)").expect("nothing waits before the commit");
    let commit = std::thread::spawn(move || asking.query("commit").map(drop));
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    wait_for("the commit to wait", LONG, || {
        let count = cluster.superuser(primary, waiting)?;
        if count.trim() == "1" { Ok(()) } else { Err(count) }
    });
    let mut other = cluster.connect();
    assert_eq!(other.query("show synchronous_commit").expect("a setting").value(), "local");
    other.query("insert into rows(id) values (1042)").expect("others do not wait");
    assert!(!commit.is_finished(), "the one that asked does");
    let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'";
    cluster.superuser(primary, cancel).expect("the wait is canceled");
    let error = commit.join().expect("the client's thread ends").expect_err("it was not confirmed");
    assert_eq!(error.sqlstate(), Some("08007"), "{error}");
}

/// With nothing unreplicated, async mode fails over without an operator.
fn a_replicated_primary_is_replaced_by_itself(cluster: &Cluster) {
    cluster.all_stream();
    let before = cluster.active();
    let mut client = cluster.connect();
    client.query("insert into rows(id) values (2001)").expect("a healthy cluster takes a row");
    for standby in cluster.standbys() {
        wait_for("the standby to have the row", LONG, || has_rows(cluster, standby, 51));
    }
    wait_for("the proxy to know that", LONG, || {
        client.query("select count(*) from rows").expect("it reads what it wrote");
        let route = client.query("show pgtenure.last_route").expect("a setting").value().to_owned();
        if route.starts_with("standby") { Ok(()) } else { Err(route) }
    });
    cluster.kill_postmaster(&before.primary);
    cluster.active_after(before.term);
    client.query("insert into rows(id) values (2002)").expect("the same connection goes on");
    cluster.streams(&before.primary);
}

fn has_rows(cluster: &Cluster, node: &str, rows: usize) -> Result<(), String> {
    let mut client = Client::connect(&cluster.node_target(node)).map_err(|e| e.to_string())?;
    let count = client.query("select count(*) from rows").map_err(|e| e.to_string())?;
    if count.value() == rows.to_string() { Ok(()) } else { Err(count.value().to_owned()) }
}

/// The loss report of `node`, wherever the answer keeps it.
fn find_loss(json: &serde_json::Value, node: &str) -> Option<serde_json::Value> {
    if json["node"] == node && json["end_lsn"].is_string() {
        return Some(json.clone());
    }
    let inside: Vec<&serde_json::Value> = match json {
        serde_json::Value::Array(list) => list.iter().collect(),
        serde_json::Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    };
    inside.into_iter().find_map(|v| find_loss(v, node))
}
