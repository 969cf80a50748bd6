//! Clients share a statement's text on a server, and were told other columns of it at other servers.

mod common;

use common::raw::{Raw, bind, block, describe, execute, ok, parse, sync, two_servers, value, words};
use common::wait_for;

const TEXT: &str = "select * from shape";

/// `s` prepared, and described.
fn knows(client: &mut Raw) {
    client.write(|out| {
        parse(out, "s", TEXT);
        describe(out, "s");
        sync(out);
    });
    assert_eq!(words(&client.until_ready()), "1 | t | T | Z I");
}

fn used(client: &mut Raw) -> String {
    client.write(|out| {
        bind(out, "", "s", &[]);
        execute(out, "");
        sync(out);
    });
    words(&client.until_ready())
}

#[test]
fn a_standby_that_lags_gives_no_older_columns_than_its_client_knows() {
    let c = common::Cluster::start(1, |raw| {
        (raw.workers, raw.pool_size) = (1, 1);
        raw.max_replay_lag = cluster::config::Span::secs(60);
    });
    c.nodes[0].psql("create table shape(a int); insert into shape values (1); grant all on shape to app");
    let mut old = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    wait_for("the standby to serve reads", || {
        (value(&mut old, "select current_setting('cluster_name') from shape") == "n2").then_some(())
    });
    // Each prepares it on the only connection to the standby, and knows what is there.
    let mut plain = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    plain.write(|out| {
        parse(out, "s", TEXT);
        sync(out);
    });
    assert_eq!(words(&plain.until_ready()), "1 | Z I");
    assert_eq!(used(&mut plain), "2 | D 1 | C SELECT 1 | Z I");
    let mut new = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    c.nodes[1].psql("select pg_wal_replay_pause()");
    c.nodes[0].psql("alter table shape add b int default 2");
    ok(&mut new, "set pgtenure.read_from = 'primary'");
    knows(&mut new);
    ok(&mut new, "reset pgtenure.read_from");
    // It is there, with one column; of that nobody was told.
    assert_eq!(value(&mut new, "select current_setting('cluster_name')"), "n2");
    assert_eq!(used(&mut new), "2 | D 1 2 | C SELECT 1 | Z I");
    // Who has been told of one column by the standby gets that there.
    knows(&mut old);
    assert_eq!(used(&mut old), "2 | D 1 | C SELECT 1 | Z I");
    assert_eq!(used(&mut new), "2 | D 1 2 | C SELECT 1 | Z I");
    assert_eq!(used(&mut old), "2 | D 1 | C SELECT 1 | Z I");
    c.nodes[1].psql("select pg_wal_replay_resume()");
    wait_for("the standby to serve the new columns", || {
        let told = used(&mut new);
        assert_eq!(told, "2 | D 1 2 | C SELECT 1 | Z I");
        let at_standby =
            c.nodes[1].psql("select count(*) from pg_attribute where attrelid = 'shape'::regclass and attname = 'b'");
        (at_standby == "1").then_some(())
    });
    assert_eq!(used(&mut new), "2 | D 1 2 | C SELECT 1 | Z I");
    assert_eq!(value(&mut new, "select current_setting('cluster_name')"), "n2");
    assert_eq!(used(&mut old), "E 0A000 | Z I", "what it knows is true no more");
}

#[test]
fn who_knows_the_new_columns_is_not_refused_for_what_a_connection_had_prepared() {
    let c = two_servers();
    c.nodes[0].psql("create table shape(a int); insert into shape values (1); grant all on shape to app");
    let mut old = Raw::login(c.port, &[]);
    knows(&mut old);
    let mut described = Raw::login(c.port, &[]);
    let mut other = block(&c);
    c.nodes[0].psql("alter table shape add b int default 2");
    // On the second connection, which has not prepared it.
    knows(&mut described);
    ok(&mut other, "commit");
    // Both connections serve it, the first one too, in a block and outside.
    for _ in 0..2 {
        assert_eq!(used(&mut described), "2 | D 1 2 | C SELECT 1 | Z I");
        let mut other = block(&c);
        assert_eq!(used(&mut described), "2 | D 1 2 | C SELECT 1 | Z I");
        ok(&mut described, "begin");
        assert_eq!(used(&mut described), "2 | D 1 2 | C SELECT 1 | Z T");
        ok(&mut described, "commit");
        ok(&mut other, "commit");
    }
    for _ in 0..2 {
        assert_eq!(used(&mut old), "E 0A000 | Z I");
        let mut other = block(&c);
        assert_eq!(used(&mut old), "E 0A000 | Z I");
        ok(&mut other, "commit");
    }
}
