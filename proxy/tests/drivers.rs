//! The programs and drivers people use, unchanged, through the endpoint.

mod common;

use common::{Cluster, wait_for};

#[test]
fn psql_works_and_reads_are_served_by_the_standby() {
    let c = Cluster::start(1, |_| {});
    assert_eq!(c.psql("create table t(a int); insert into t values (1),(2); select count(*) from t").unwrap(), "2");
    wait_for("a read served by the standby", || {
        (c.psql("select current_setting('cluster_name')").unwrap() == "n2").then_some(())
    });
    let error = c.psql("select 1/0").unwrap_err();
    assert!(error.contains("division by zero"), "{error}");
    let mut wrong = c.client("psql");
    let output = wrong.env("PGPASSWORD", "wrong").args(["-X", "-c", "select 1"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("password authentication failed"), "{text}");
    let mut nowhere = c.client("psql");
    let output = nowhere.env("PGDATABASE", "nowhere").args(["-X", "-c", "select 1"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("database \"nowhere\" does not exist"), "{text}");
}

#[test]
fn pgbench_works_in_every_mode() {
    let c = Cluster::start(1, |raw| raw.pool_size = 8);
    let init = c.client("pgbench").args(["-i", "-s", "1", "-q"]).output().unwrap();
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    for mode in ["simple", "extended", "prepared"] {
        for select_only in [true, false] {
            let mut bench = c.client("pgbench");
            bench.args(["-n", "-M", mode, "-c", "16", "-j", "2", "-t", "50"]);
            if select_only {
                bench.arg("-S");
            }
            let output = bench.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("number of transactions actually processed: 800/800"),
                "{mode} {select_only}: {text} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let sums = "select (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)";
    assert_eq!(c.psql(sums).unwrap(), "t");
}
