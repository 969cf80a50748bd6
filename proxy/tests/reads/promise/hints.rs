//! What a statement says in a comment about itself.

use super::common::raw::{Raw, ok, value};
use super::common::{self, Cluster, wait_for};
use super::{WHERE, last_route, one_standby};

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
    assert_eq!(a.query(&format!("/* pgtenure: explain_route=on */ {WHERE}"))[0], "N 00000");
    assert_eq!(a.query(WHERE)[0], "T");
    // A block says it for each of its statements, and for no other.
    let notices = |a: &mut Raw, sql: &str| a.query(sql).iter().filter(|s| *s == "N 00000").count();
    for (begin, told) in [
        (&["/* pgtenure: explain_route=on */ begin read only"][..], 1),
        (&["begin read only", "set local pgtenure.explain_route = on"], 1),
        (&["begin", "set local pgtenure.explain_route = on"], 1),
        (&["set pgtenure.explain_route = on", "begin read only", "set local pgtenure.explain_route = off"], 0),
    ] {
        for sql in begin {
            a.query(sql);
        }
        for sql in [WHERE, WHERE, "commit"] {
            assert_eq!(notices(&mut a, sql), told, "{begin:?}: {sql}");
        }
        assert_eq!(notices(&mut a, WHERE), 1 - told, "{begin:?}");
    }
    ok(&mut a, "reset pgtenure.explain_route");
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
