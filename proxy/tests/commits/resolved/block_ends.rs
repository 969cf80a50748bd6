//! The end of a block is lost with its server: a COMMIT of one that has only read, and a ROLLBACK.

use super::*;
use proxy::console::tally::Counter;

/// A block that is done with these and whose end the server has not looked at; it is lost then.
fn lost_at_end_of(c: &mut Cluster, done: &[&str], commit: impl FnOnce(&mut Raw)) -> Raw {
    let s = Raw::login(c.port, &[]);
    lost_at_end_of_its(c, s, done, commit)
}

/// PostgreSQL runs again, and who logs in has a connection to it.
fn back(c: &mut Cluster) {
    c.nodes[0].start();
    c.warm();
}

fn lost_at_end_of_its(c: &mut Cluster, mut s: Raw, done: &[&str], end: impl FnOnce(&mut Raw)) -> Raw {
    ok(&mut s, "begin");
    for sql in done {
        s.write(|out| {
            run(out, sql);
            sync(out);
        });
        assert!(words(&s.until_ready()).ends_with("Z T"), "{sql}");
    }
    let sql = "select pid from pg_stat_activity where usename = 'app' and state = 'idle in transaction'";
    let process = nix::unistd::Pid::from_raw(c.nodes[0].psql(sql).parse().expect("there is one"));
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // The worker is asked itself: what it has read in one of its turns it has sent by the next.
    let received = |c: &Cluster| c.tally(Counter::Received);
    let before = received(c);
    end(&mut s);
    wait_for("it to be read", || (received(c) > before).then_some(()));
    received(c);
    c.nodes[0].kill();
    s
}

#[test]
fn the_commit_of_a_block_that_has_only_read_leaves_no_doubt() {
    let mut c = Cluster::start(0, |raw| (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::millis(500)));
    c.warm();
    c.psql(TABLES).unwrap();
    let reads = ["select count(*) from t", "savepoint a", "select 1"];
    let mut s = lost_at_end_of(&mut c, &reads, |s| send(s, "commit"));
    assert_eq!(words(&s.until_ready()), "E 40001 | Z I");
    back(&mut c);
    let mut s = lost_at_end_of(&mut c, &reads, |s| {
        s.write(|out| {
            run(out, "commit");
            sync(out);
        });
    });
    assert_eq!(words(&s.until_ready()), "E 40001 | Z I");
    // Whatever is not proven to read may have written.
    for may_write in ["select pg_notify('x', 'y')", "set work_mem = '1MB'"] {
        back(&mut c);
        let mut s = lost_at_end_of(&mut c, &["select 1", may_write], |s| send(s, "commit"));
        assert_eq!(words(&s.until_ready()), "E 08007 | Z I", "{may_write}");
    }
    // Nor is it known of what is sent behind the COMMIT.
    back(&mut c);
    let mut s = lost_at_end_of(&mut c, &reads, |s| {
        s.write(|out| ["commit", "insert into t values (1)"].iter().for_each(|sql| write_query(out, sql)));
    });
    assert_eq!([s.until_ready(), s.until_ready()].map(|seen| words(&seen)), ["E 08007 | Z I", "E 08007 | Z I"]);
}

/// As pgjdbc prepares what it says often.
#[test]
fn a_rollback_that_is_answered_in_place_of_a_lost_server_has_left_its_statement() {
    let mut c = Cluster::start(0, |raw| raw.workers = 1);
    c.psql(TABLES).unwrap();
    let mut s = lost_at_end_of(&mut c, &["insert into t values (2)"], |s| {
        s.write(|out| {
            parse(out, "S_2", "rollback");
            bind(out, "", "S_2", &[]);
            execute(out, "");
            sync(out);
        });
    });
    assert_eq!(words(&s.until_ready()), "1 | 2 | C ROLLBACK | Z I");
    c.nodes[0].start();
    let again = |s: &mut Raw, name: &str| {
        ok(s, "begin");
        s.write(|out| {
            bind(out, "", name, &[]);
            execute(out, "");
            sync(out);
        });
        words(&s.until_ready())
    };
    assert_eq!(again(&mut s, "S_2"), "2 | C ROLLBACK | Z I");
    // The name is taken.
    s.write(|out| {
        parse(out, "S_2", "select 1");
        sync(out);
    });
    assert_eq!(words(&s.until_ready()), "E 42P05 | Z I");
    // The unnamed statement is not again what it was before: that would be executed in its place.
    let mut s = lost_at_end_of_its(&mut c, s, &["insert into t values (3)"], |s| {
        s.write(|out| {
            run(out, "rollback");
            sync(out);
        });
    });
    assert_eq!(words(&s.until_ready()), "1 | 2 | C ROLLBACK | Z I");
    c.nodes[0].start();
    s.write(|out| {
        bind(out, "", "", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(words(&s.until_ready()), "E 26000 | Z I");
}
