//! Databases from which a client's command wants everybody gone.

use super::*;

/// One that a client may drop.
fn with_database(c: &Cluster, name: &str) {
    c.nodes[0].psql("alter role app createdb");
    c.nodes[0].psql(&format!("create database {name} owner app"));
}

#[test]
fn a_database_is_dropped_right_behind_its_last_client() {
    let c = Cluster::start(0, |_| {});
    with_database(&c, "extra");
    // On each worker, and by another name.
    let mut last: Vec<Raw> = (0..2).map(|_| Raw::login(c.port, &[("database", "extra")])).collect();
    // The connection of one stays open for whoever comes next, that of the other does not.
    assert_eq!(words(&last[0].query("select 1")), "T | D 1 | C SELECT 1 | Z I");
    assert_eq!(words(&last[1].query("create temp table t()")), "C CREATE TABLE | Z I");
    let mut b = Raw::login(c.port, &[]);
    b.write(|out| write_query(out, "drop database extra"));
    // PostgreSQL looks again for five seconds: they leave later than the command comes.
    wait_for("the command to look for others", || {
        let runs = "select count(*) from pg_stat_activity where query = 'drop database extra' and state = 'active'";
        (c.nodes[0].psql(runs) == "1").then_some(())
    });
    drop(last);
    assert_eq!(words(&b.until_ready()), "C DROP DATABASE | Z I");
    let said = refused(&c, "extra");
    assert!(said.contains("database \"extra\" does not exist"), "{said}");
}

#[test]
fn who_leaves_and_who_drops_may_be_served_by_any_workers() {
    let c = Cluster::start(0, |_| {});
    let mut b = Raw::login(c.port, &[]);
    for round in 0..5 {
        let name = format!("extra{round}");
        with_database(&c, &name);
        let mut last = Raw::login(c.port, &[("database", &name)]);
        assert_eq!(words(&last.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
        drop(last);
        assert_eq!(words(&b.query(&format!("drop database {name}"))), "C DROP DATABASE | Z I", "{round}");
    }
}
