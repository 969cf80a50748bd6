//! What a session has written and read is not missed by its later reads, however it came to an end.

use super::common::joined::joined;
use super::common::raw::{Raw, bind, describe, execute, let_commits_wait, ok, parse, sync, value};
use super::common::{Cluster, wait_for};
use cluster::topology::{Closed, Gate, Quorum};
use proxy::wire::frontend::write_query;

const COUNT: &str = "select count(*), current_setting('cluster_name') from seen";
const LONG: (&str, &str) = ("pgtenure.max_replay_lag", "1h");

/// An empty table that all nodes have. What the primary says that has `tag` in it comes with the next answer.
fn start(standbys: usize, tag: Option<&'static [u8]>) -> Cluster {
    let cluster = Cluster::start(standbys, |raw| raw.workers = 1);
    if let Some(tag) = tag {
        let port = joined(cluster.nodes[0].port, tag);
        cluster.publish(|t| t.primary.as_mut().expect("n1").postgres.port = port);
    }
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app");
    for node in &cluster.nodes[1..] {
        let there = "select count(*) from pg_class where relname = 'seen'";
        wait_for("the table", || (node.psql(there) == "1").then_some(()));
    }
    wait_for("reads to be served where they should", || {
        let mut client = Raw::login(cluster.port, &[LONG]);
        (value(&mut client, COUNT).ends_with("n1") == (standbys == 0)).then_some(())
    });
    cluster
}

/// Two standbys were sampled alike; since then n2 has replayed a row, and n3 nothing.
fn n2_shows_more() -> Cluster {
    let cluster = start(2, None);
    // What connects later is not read at before a sample was taken since.
    let (mut blocks, mut at) = (Vec::new(), [0, 0]);
    wait_for("connections to both standbys", || {
        let mut client = Raw::login(cluster.port, &[LONG]);
        ok(&mut client, "begin read only");
        at[usize::from(value(&mut client, COUNT).ends_with("n3"))] += 1;
        blocks.push(client);
        (at.into_iter().min() > Some(2)).then_some(())
    });
    drop(blocks);
    cluster.nodes[2].psql("select pg_wal_replay_pause()");
    cluster.blind.send_replace(true);
    cluster.nodes[0].psql("insert into seen values (1)");
    wait_for("n2 to have it", || (cluster.nodes[1].psql("select count(*) from seen") == "1").then_some(()));
    cluster
}

/// A session that has read the row at n2, as the last thing that `say` has it do.
fn reads_at_n2(cluster: &Cluster, say: &[&str]) -> Raw {
    // Those that read at n3 stay there, so that it is the busier one.
    let mut others = Vec::new();
    wait_for("a session whose read goes to n2", || {
        let mut client = Raw::login(cluster.port, &[LONG]);
        say.iter().for_each(|sql| drop(ok(&mut client, sql)));
        let found = value(&mut client, COUNT) == "1 n2";
        let (client, other) = if found { (Some(client), None) } else { (None, Some(client)) };
        others.extend(other);
        client
    })
}

fn lsn(text: &str) -> cluster::Lsn {
    text.parse().expect("a position")
}

/// There is no n2 any more, and the others are sampled again.
fn lose_n2(cluster: &mut Cluster) {
    cluster.nodes[1].kill();
    cluster.publish(|t| t.standbys.retain(|s| s.node.as_str() != "n2"));
    cluster.blind.send_replace(false);
}

#[test]
fn what_a_lost_block_has_shown_is_not_missed_behind_it() {
    let mut cluster = n2_shows_more();
    let begin = ["begin read only"];
    let [mut told, mut eventual] = [reads_at_n2(&cluster, &[]), reads_at_n2(&cluster, &[])];
    let (mut refused, mut lost) = (reads_at_n2(&cluster, &begin), reads_at_n2(&cluster, &begin));
    assert_eq!(refused.query("select pg_advisory_lock(1)"), ["E 0A000", "Z E"]);
    lose_n2(&mut cluster);
    assert_eq!(lost.query(COUNT), ["E 40001", "Z E"]);
    for mut client in [refused, lost] {
        ok(&mut client, "rollback");
        assert_eq!(value(&mut client, COUNT), "1 n1");
    }
    // Two had to confirm a commit, and n3 need not have what n2 has shown, which nobody hears of: a read waits for that in
    // vain, and is told so before it is sent to a primary that may lack it.
    let voters = cluster.nodes.iter().map(|node| node.name.clone()).collect();
    let n2 = cluster.nodes[1].member();
    cluster.publish(|t| {
        t.quorums = vec![Quorum { voters, k: 2 }];
        t.standbys.push(n2);
    });
    ok(&mut eventual, "set pgtenure.consistency = 'eventual'");
    // Until its server has told what that has set, it is lost with the server; this is sent behind that.
    assert_eq!(value(&mut eventual, "show pgtenure.consistency"), "eventual");
    cluster.nodes[0].kill();
    cluster.fail_over_to(2);
    told.write(|out| write_query(out, COUNT));
    assert!(value(&mut eventual, COUNT).ends_with("n3"), "it is promised nothing");
    assert_eq!(told.until_ready(), ["E 08007", "Z I"]);
    assert!(value(&mut told, COUNT).ends_with("n3"), "it is told once");
    wait_for("it to be counted", || (cluster.counter("pgtenure_proxy_lost_reads_told_total") == 1.0).then_some(()));
}

#[test]
fn what_was_only_prepared_at_a_standby_keeps_nothing_waiting() {
    let cluster = n2_shows_more();
    let at_standby = || cluster.counter_of("pgtenure_proxy_queries_total", "standby");
    let (mut client, before) = (Raw::login(cluster.port, &[LONG]), at_standby());
    client.write(|out| {
        parse(out, "s", "select 0 from pg_backend_pid()");
        describe(out, "s");
        sync(out);
    });
    assert_eq!(client.until_ready(), ["1", "t", "T", "Z I"]);
    wait_for("a standby to have prepared it", || (at_standby() > before).then_some(()));
    // Nobody tells the primary's position now: it would be waited for in vain.
    client.write(|out| {
        bind(out, "", "s", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(client.until_ready(), ["2", "D 0", "C SELECT 1", "Z I"]);
}

/// The session is promised less for this one statement.
fn unlooked(client: &mut Raw, sql: &str) {
    let says = ["set pgtenure.consistency = 'eventual'", sql, "set pgtenure.consistency = 'session'"];
    says.iter().for_each(|sql| drop(ok(client, sql)));
}

#[test]
fn asking_where_a_read_went_does_not_make_the_session_forget_it() {
    let mut cluster = n2_shows_more();
    // Each asks some standby.
    let asked = [0; 8].map(|_| {
        let mut client = reads_at_n2(&cluster, &[]);
        assert!(value(&mut client, "show pgtenure.last_route").starts_with("standby n2"));
        client
    });
    // Nor does what the primary answers: one has read what others' commits wait to show there.
    let_commits_wait(&cluster);
    let mut writer = Raw::login(cluster.nodes[0].port, &[]);
    writer.write(|out| write_query(out, "insert into seen values (2)"));
    wait_for("n2 to have it", || (cluster.nodes[1].psql("select count(*) from seen") == "2").then_some(()));
    let [
        mut besides,
        mut vain,
        mut pinned,
        mut pinned_vain,
        mut ahead,
        mut strict,
        mut keeps,
        mut alone,
        mut begins,
        mut copies,
    ] = [(); 10].map(|()| {
        wait_for("a session whose read goes to n2", || {
            let mut client = Raw::login(cluster.port, &[LONG]);
            (value(&mut client, COUNT) == "2 n2").then_some(client)
        })
    });
    // They are promised less for the moment, and the primary answers without having been looked at. Two keep its connection then,
    // and nobody's commit makes them wait.
    let lock = "select pg_advisory_lock_shared(1)";
    for (client, sql) in [(&mut besides, "select pg_backend_pid()"), (&mut pinned, lock), (&mut pinned_vain, lock)] {
        unlooked(client, sql);
    }
    ok(&mut strict, "set pgtenure.no_standby = 'error'");
    lose_n2(&mut cluster);
    // What ends such a wait otherwise is counted, too.
    let failed = || cluster.counter_of("pgtenure_proxy_no_standby_total", "error");
    let before = failed();
    unlooked(&mut pinned, "set statement_timeout = '100ms'");
    assert_eq!(pinned.query(COUNT), ["E 57014", "Z I"]);
    unlooked(&mut pinned, "set statement_timeout = 0");
    wait_for("it to be counted", || (failed() == before + 1.0).then_some(()));
    let unconfirmed = || cluster.counter_of("pgtenure_proxy_no_standby_total", "unconfirmed");
    let before = unconfirmed();
    pinned_vain.write(|out| write_query(out, COUNT));
    // What comes within a COPY is no read, and nothing before it is answered.
    copies.write(|out| ["copy seen from stdin", COUNT].iter().for_each(|sql| write_query(out, sql)));
    vain.write(|out| write_query(out, COUNT));
    // Nobody confirms it, and reads do not wait for ever, nor a second time: but it is not forgotten. The client is warned once,
    // and each is counted as what may miss it.
    for client in [&mut vain, &mut pinned_vain] {
        for warned in [&["N 01000"][..], &[]] {
            if warned.is_empty() {
                client.write(|out| write_query(out, COUNT));
            }
            let answer = ["T", "D 1 n1", "C SELECT 1", "Z I"];
            assert_eq!(client.until_ready(), [warned, &answer].concat());
            let route = value(client, "show pgtenure.last_route");
            assert!(route.starts_with("primary n1: unconfirmed: "), "{route}");
        }
    }
    assert_eq!(copies.until_ready(), ["N 01000", "G", "E 08P01", "E 08P01", "EOF"]);
    wait_for("all of them to be counted", || (unconfirmed() >= before + 5.0).then_some(()));
    // What waits is counted, also at a server that its session has already.
    let waited = || cluster.counter_of("pgtenure_proxy_no_standby_total", "waited");
    let before = waited();
    // It takes effect at the reload: they wait for no longer than reads do.
    cluster.nodes[0].psql("alter system reset synchronous_standby_names");
    pinned.write(|out| write_query(out, COUNT));
    ahead.write(|out| {
        write_query(out, "select 0 from pg_backend_pid()");
        write_query(out, COUNT);
    });
    besides.write(|out| write_query(out, COUNT));
    wait_for("its read to wait", || (cluster.counter("pgtenure_proxy_held_statements") > 1.0).then_some(()));
    cluster.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(ahead.until_ready(), ["T", "D 0", "C SELECT 1", "Z I"]);
    for client in [&mut besides, &mut pinned, &mut ahead] {
        assert_eq!(client.until_ready(), ["T", "D 2 n1", "C SELECT 1", "Z I"]);
    }
    wait_for("what was pinned to be counted", || (waited() >= before + 1.0).then_some(()));
    drop((pinned, pinned_vain, ahead));
    for mut client in asked {
        assert_eq!(value(&mut client, COUNT), "2 n1");
    }
    // A policy that was never seen protects nobody, and what n2 had nobody tells while that is away.
    let n2 = cluster.nodes[1].member();
    cluster.publish(|t| {
        t.begun_by = 99;
        t.standbys.push(n2);
    });
    cluster.fail_over_to(2);
    unlooked(&mut keeps, lock);
    for client in [&mut vain, &mut strict, &mut keeps] {
        client.write(|out| write_query(out, COUNT));
    }
    // No position of this term covers what it may lack, and a token is not waited for.
    begins.write(|out| write_query(out, "begin"));
    assert_eq!(alone.query("show pgtenure.token"), ["E 08007", "Z I"]);
    assert_ne!(value(&mut alone, "show pgtenure.token"), "", "it is told once");
    assert_eq!(begins.until_ready(), ["E 08007", "Z I"]);
    assert_eq!(begins.query("begin"), ["C BEGIN", "Z T"], "it is told once");
    ok(&mut begins, "rollback");
    for client in [&mut vain, &mut strict, &mut keeps] {
        assert_eq!(client.until_ready(), ["E 08007", "Z I"]);
    }
    assert_eq!(strict.query(COUNT), ["E 57P03", "Z I"], "it is told once");
    // Who was told so is idle, and has no server that it has not had before; of that, nothing is known any more.
    assert!(value(&mut keeps, COUNT).ends_with("n3"));
    let route = value(&mut keeps, "show pgtenure.last_route");
    assert!(route.contains("same_server: the session keeps it for"), "{route}");
    let in_use = || cluster.counter_of("pgtenure_proxy_servers", "in_use");
    wait_for("connections to be given back", || (in_use() == 1.0).then_some(()));
    for client in [&mut vain, &mut besides] {
        assert!(value(client, COUNT).ends_with("n3"), "it is told once, and not where the primary has shown it since");
    }
}

#[test]
fn blocks_and_writes_show_what_a_standby_has_shown() {
    let cluster = n2_shows_more();
    // Nobody confirms a commit from now on, but n2 shows it.
    let_commits_wait(&cluster);
    let mut writer = Raw::login(cluster.nodes[0].port, &[]);
    writer.write(|out| write_query(out, "insert into seen values (2)"));
    wait_for("n2 to have it", || (cluster.nodes[1].psql("select count(*) from seen") == "2").then_some(()));
    let seen = [(); 5].map(|()| {
        wait_for("a session whose read goes to n2", || {
            let mut client = Raw::login(cluster.port, &[LONG]);
            (value(&mut client, COUNT) == "2 n2").then_some(client)
        })
    });
    let [mut begins, mut writes, mut prepares, mut asks, mut says] = seen;
    let update = "update seen set n = 3 where n = 2";
    begins.write(|out| write_query(out, "begin"));
    writes.write(|out| write_query(out, update));
    prepares.write(|out| write_query(out, "select count(*) from (select 0 from seen for key share) locked"));
    asks.write(|out| {
        write_query(out, "set pgtenure.read_from = 'primary'");
        write_query(out, COUNT);
    });
    // It is promised nothing as of BEGIN, but before it reads.
    ["set pgtenure.consistency = 'eventual'", "begin"].iter().for_each(|sql| drop(ok(&mut says, sql)));
    says.write(|out| write_query(out, "set local pgtenure.consistency = 'session'"));
    wait_for("all of them to wait", || (cluster.counter("pgtenure_proxy_held_statements") == 5.0).then_some(()));
    cluster.nodes[0].psql("alter system reset synchronous_standby_names");
    cluster.blind.send_replace(false);
    cluster.nodes[0].psql("select pg_reload_conf()");
    assert_eq!(begins.until_ready(), ["C BEGIN", "Z T"]);
    assert_eq!(value(&mut begins, COUNT), "2 n1");
    assert_eq!(prepares.until_ready(), ["T", "D 2", "C SELECT 1", "Z I"]);
    assert_eq!(asks.until_ready(), ["C SET", "Z I"]);
    assert_eq!(asks.until_ready(), ["T", "D 2 n1", "C SELECT 1", "Z I"]);
    assert_eq!(says.until_ready(), ["C SET", "Z T"]);
    assert_eq!(value(&mut says, COUNT), "2 n1");
    assert_eq!(writes.until_ready(), ["C UPDATE 1", "Z I"]);
    let waited = || cluster.counter_of("pgtenure_proxy_no_standby_total", "waited");
    wait_for("what has waited to be counted", || (waited() >= 4.0).then_some(()));
}

#[test]
fn a_token_covers_what_a_standby_has_shown() {
    let cluster = n2_shows_more();
    let written = lsn(&cluster.nodes[0].psql("select pg_current_wal_lsn()"));
    for begin in [&[][..], &["begin read only"]] {
        let mut client = reads_at_n2(&cluster, begin);
        let token = value(&mut client, "show pgtenure.token");
        assert!(token.starts_with("1-1-") && lsn(&token[4..]) >= written, "{token} after {begin:?}, want {written}");
        if !begin.is_empty() {
            assert_eq!(value(&mut client, COUNT), "1 n2", "the block goes on");
            ok(&mut client, "commit");
        }
        // Nor has asking hidden anything from the session.
        assert_eq!(value(&mut client, COUNT), "1 n2");
    }
    // What a commit that waits to be applied has reached is n2, which it waits for, and not n3.
    cluster.blind.send_replace(false);
    cluster.nodes[0].psql("alter system set synchronous_standby_names = 'ANY 1 (n2)'");
    cluster.nodes[0].psql("select pg_reload_conf()");
    let waits = "select count(*) from pg_stat_replication where sync_state = 'quorum'";
    wait_for("commits to wait for n2", || (cluster.nodes[0].psql(waits) == "1").then_some(()));
    cluster.list_is_in_force();
    for n in 2..12 {
        let mut client = Raw::login(cluster.port, &[LONG]);
        ok(&mut client, "set synchronous_commit = remote_apply");
        ok(&mut client, "insert into seen values (1)");
        let read = value(&mut client, COUNT);
        assert!(read == format!("{n} n1") || read == format!("{n} n2"), "{read} where {n} were written");
    }
}

#[test]
fn a_token_of_what_a_standby_has_shown_needs_no_primary() {
    let mut cluster = n2_shows_more();
    let written = lsn(&cluster.nodes[0].psql("select pg_current_wal_lsn()"));
    let mut client = reads_at_n2(&cluster, &[]);
    cluster.nodes[0].kill();
    cluster.publish(|t| {
        (t.term, t.gate) = (t.term.next(), Gate::Closed(Closed::Recruiting));
        // A policy that was never seen.
        t.begun_by = 99;
    });
    let token = value(&mut client, "show pgtenure.token");
    assert!(token.starts_with("1-1-") && lsn(&token[4..]) >= written, "{token}, want {written}");
    // That is of the term before, too, and may be in the next one or not.
    assert_eq!(value(&mut client, COUNT), "1 n2");
    cluster.publish(|t| {
        t.gate = Gate::Open;
        t.primary = t.standbys.pop();
        t.standbys.clear();
    });
    assert_eq!(client.query(COUNT), ["E 08007", "Z I"]);
}

#[test]
fn a_token_covers_what_the_session_was_notified_of() {
    let cluster = start(0, None);
    let mut listens = Raw::login(cluster.port, &[]);
    ok(&mut listens, "listen news");
    value(&mut listens, "show pgtenure.token");
    cluster.nodes[0].psql("insert into seen values (1)");
    let written = lsn(&cluster.nodes[0].psql("select pg_current_wal_lsn()"));
    cluster.nodes[0].psql("notify news");
    assert_eq!(listens.next(), "A");
    let token = value(&mut listens, "show pgtenure.token");
    assert!(lsn(&token[4..]) >= written, "{token}, want {written}");
}

#[test]
fn a_write_whose_answer_came_with_that_of_the_next_begin_is_not_missed() {
    for (tag, before, first) in [
        (&b"COMMIT\0"[..], &["begin", "insert into seen values (1)"][..], "commit"),
        (b"INSERT 0 1\0", &[], "insert into seen values (1)"),
    ] {
        let cluster = start(1, Some(tag));
        let mut client = Raw::login(cluster.port, &[LONG]);
        wait_for("the standby to serve reads", || (value(&mut client, COUNT) == "0 n2").then_some(()));
        cluster.nodes[1].psql("select pg_wal_replay_pause()");
        before.iter().for_each(|sql| drop(ok(&mut client, sql)));
        client.write(|out| {
            write_query(out, first);
            write_query(out, "begin");
        });
        assert_eq!(client.until_ready().last().map(String::as_str), Some("Z I"));
        assert_eq!(client.until_ready(), ["C BEGIN", "Z T"]);
        if tag.starts_with(b"C") {
            // What the proxy does not let it do, it closes the server for.
            assert_eq!(client.query("set local synchronous_commit = off"), ["E 42501", "Z E"]);
            ok(&mut client, "rollback");
            assert_eq!(value(&mut client, COUNT), "1 n1");
            writes_that_no_text_shows_are_not_missed(&cluster);
        } else {
            // The block would begin anew at the standby.
            ok(&mut client, "set transaction read only");
            assert_eq!(value(&mut client, COUNT), "1 n1");
        }
    }
}

/// The standby has not replayed them, and would serve whoever has written nothing.
fn writes_that_no_text_shows_are_not_missed(cluster: &Cluster) {
    cluster.nodes[0].psql(
        "create table app.public.noted(n int); grant all on noted to app;
         create function adds() returns int language sql as 'insert into seen values (2) returning n';
         create function notes() returns trigger language plpgsql as 'begin perform adds(); return new; end';
         create trigger noting after insert on noted for each row execute function notes()",
    );
    let before: u32 = cluster.nodes[0].psql("select count(*) from seen").parse().expect("a number");
    let writes = ["select adds()", "do 'begin perform adds(); end'", "insert into noted values (1)"];
    for (n, sql) in (before + 1..).zip(writes) {
        let mut client = Raw::login(cluster.port, &[LONG]);
        assert!(value(&mut client, COUNT).ends_with("n2"), "before {sql}");
        ok(&mut client, sql);
        assert_eq!(value(&mut client, COUNT), format!("{n} n1"), "behind {sql}");
    }
}

#[test]
fn a_session_that_keeps_its_primary_waits_for_the_term_that_it_reads_after() {
    let cluster = Cluster::start(0, |raw| {
        raw.workers = 1;
        raw.hold_timeout = cluster::config::Span::secs(3);
    });
    let select = "select 1 from t";
    let mut pinned = Raw::login(cluster.port, &[]);
    ok(&mut pinned, "create temp table t(n int)");
    // A block that has begun cannot be held: it would keep its server.
    ok(&mut pinned, "begin");
    assert_eq!(pinned.query("set local pgtenure.after = '2-2-0/1'"), ["E 57P03", "Z E"]);
    assert_eq!(pinned.query("rollback"), ["C ROLLBACK", "Z I"]);

    let mut pinned = Raw::login(cluster.port, &[]);
    ok(&mut pinned, "create temp table t(n int)");
    // What is sent behind it before that is answered has to wait as well.
    pinned.write(|out| {
        write_query(out, "set pgtenure.after = '2-2-0/1'");
        write_query(out, select);
    });
    assert_eq!(pinned.until_ready(), ["C SET", "Z I"]);
    assert_eq!(pinned.until_ready(), ["E 57P03", "Z I"]);
    assert_eq!(pinned.query(select), ["E 57P03", "Z I"], "nothing newer is known for as long as it waits");
    pinned.write(|out| write_query(out, select));
    // Another process's primary, as far as a session knows that has one.
    cluster.publish(|t| t.term = t.term.next());
    assert_eq!(pinned.until_ready()[0], "E 08006");
}
