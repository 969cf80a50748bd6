//! A COMMIT is lost with its server, and its block has only read.

use super::*;

/// A block that is done with these and whose COMMIT the server has not looked at; it is lost then.
fn commit_of_lost(c: &mut Cluster, done: &[&str], commit: impl FnOnce(&mut Raw)) -> Raw {
    let mut s = Raw::login(c.port, &[]);
    ok(&mut s, "begin");
    done.iter().for_each(|sql| drop(ok(&mut s, sql)));
    let sql = "select pid from pg_stat_activity where usename = 'app' and state = 'idle in transaction'";
    let process = nix::unistd::Pid::from_raw(c.nodes[0].psql(sql).parse().expect("there is one"));
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let sent = |c: &Cluster| c.counter_of("pgtenure_proxy_queries_total", "primary");
    let before = sent(c);
    commit(&mut s);
    wait_for("the commit to be sent", || (sent(c) > before).then_some(()));
    c.nodes[0].kill();
    s
}

#[test]
fn the_commit_of_a_block_that_has_only_read_leaves_no_doubt() {
    let mut c = Cluster::start(0, |raw| (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::millis(500)));
    c.psql(TABLES).unwrap();
    let reads = ["select count(*) from t", "savepoint a", "select 1"];
    let mut s = commit_of_lost(&mut c, &reads, |s| send(s, "commit"));
    assert_eq!(words(&s.until_ready()), "E 40001 | Z I");
    c.nodes[0].start();
    let mut s = commit_of_lost(&mut c, &reads, |s| {
        s.write(|out| {
            run(out, "commit");
            sync(out);
        });
    });
    assert_eq!(words(&s.until_ready()), "E 40001 | Z I");
    // Whatever is not proven to read may have written.
    for may_write in ["select pg_notify('x', 'y')", "set work_mem = '1MB'"] {
        c.nodes[0].start();
        let mut s = commit_of_lost(&mut c, &["select 1", may_write], |s| send(s, "commit"));
        assert_eq!(words(&s.until_ready()), "E 08007 | Z I", "{may_write}");
    }
    // Nor is it known of what is sent behind the COMMIT.
    c.nodes[0].start();
    let mut s = commit_of_lost(&mut c, &reads, |s| {
        s.write(|out| ["commit", "insert into t values (1)"].iter().for_each(|sql| write_query(out, sql)));
    });
    assert_eq!([s.until_ready(), s.until_ready()].map(|seen| words(&seen)), ["E 08007 | Z I", "E 08007 | Z I"]);
}
