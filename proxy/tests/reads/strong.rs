//! Strong reads against a primary that its standby, and nobody else, has left; and what nothing proves of a term.

use super::common::raw::{Raw, wait_until_waiting};
use super::common::{self, Cluster, dial, wait_for};
use cluster::topology::{Gate, Quorum, Topology};
use cluster::{Clock, Instant};
use proxy::config::PoolMode;
use proxy::session::presence::Activity;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::cancel_request;
use std::io::{Read, Write};
use std::time::Duration;

const READ: &str = "select n, current_setting('cluster_name') from seen";

fn ok(client: &mut Raw, sql: &str) -> Vec<String> {
    let seen = client.query(sql);
    assert!(!seen.iter().any(|s| s.starts_with("E ") || s == "EOF"), "{sql}: {seen:?}");
    seen
}

/// A primary whose commits wait for its standby.
fn semi_sync(hold: Duration) -> Cluster {
    let cluster = Cluster::start(1, |raw| {
        (raw.workers, raw.hold_timeout, raw.reads.hints) = (1, cluster::config::Span(hold), true);
    });
    cluster.nodes[0].psql("create table app.public.seen(n int); grant all on seen to app; insert into seen values (1)");
    cluster.nodes[0].psql("alter system set synchronous_standby_names = 'ANY 1 (n2)'");
    cluster.nodes[0].psql("select pg_reload_conf()");
    let waits = "select count(*) from pg_stat_replication where sync_state = 'quorum'";
    wait_for("commits to wait for the standby", || (cluster.nodes[0].psql(waits) == "1").then_some(()));
    cluster.list_is_in_force();
    cluster
}

/// Cut the standby off from the primary, as freezing does; the clients still reach both.
fn cut(cluster: &Cluster) {
    cluster.nodes[1].psql("alter system set primary_conninfo = ''");
    cluster.nodes[1].psql("select pg_reload_conf()");
    let left = "select count(*) from pg_stat_replication";
    wait_for("the standby to be gone", || (cluster.nodes[0].psql(left) == "0").then_some(()));
}

fn strong(cluster: &Cluster) -> Raw {
    Raw::login(cluster.port, &[("pgtenure.consistency", "strong")])
}

fn wait_for_proof(cluster: &Cluster) {
    let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    wait_for("a commit that nobody confirms", || (cluster.nodes[0].psql(waits) == "1").then_some(()));
}

#[test]
fn a_strong_read_is_never_answered_by_a_primary_that_was_replaced() {
    let cluster = semi_sync(Duration::from_secs(60));
    let mut a = strong(&cluster);
    assert_eq!(a.query(READ), ["T", "D 1 n1", "C SELECT 1", "Z I"]);
    assert_eq!(ok(&mut a, "begin read only; select n from seen; commit")[2], "D 1");
    let mut weak = Raw::login(cluster.port, &[("pgtenure.read_from", "primary")]);
    cut(&cluster);
    a.write(|out| write_query(out, READ));
    wait_for_proof(&cluster);
    // A new primary, that nobody has told the proxy of, acknowledges more.
    cluster.nodes[1].promote();
    cluster.nodes[1].psql("update seen set n = 2");
    assert_eq!(weak.query(READ), ["T", "D 1 n1", "C SELECT 1", "Z I"], "others are answered by the old one");
    let primary = cluster.nodes[1].member();
    cluster.publish(|t| {
        t.term = t.term.next();
        t.standbys.clear();
        t.primary = Some(primary);
    });
    assert_eq!(a.until_ready(), ["T", "D 2 n2", "C SELECT 1", "Z I"]);
    assert_eq!(a.query(READ), ["T", "D 2 n2", "C SELECT 1", "Z I"]);
}

#[test]
fn what_cannot_be_proved_is_an_error_in_time() {
    let mut cluster = semi_sync(Duration::from_secs(2));
    let mut a = strong(&cluster);
    ok(&mut a, READ);
    let hinted = format!("/* pgtenure: consistency=strong */ {READ}");
    let mut asks: Vec<Raw> = (0..3).map(|_| Raw::login(cluster.port, &[("pgtenure.read_from", "primary")])).collect();
    asks.iter_mut().for_each(|client| assert_eq!(ok(client, &hinted)[1], "D 1 n1"));
    ok(&mut asks[2], "begin");
    cluster.nodes[1].kill();
    // A statement asks for that in a comment: alone, behind another, and behind the end of a block.
    for (client, ahead) in asks.iter_mut().zip(["", READ, "commit"]) {
        client.write(|out| [ahead, &hinted].iter().for_each(|sql| write_query(out, sql)));
        let ahead = client.until_ready();
        assert!(!ahead[0].starts_with("E ") && ahead.last().is_some_and(|s| s == "Z I"), "{ahead:?}");
    }
    for sql in [READ, "begin", "update seen set n = 3"] {
        assert_eq!(a.query(sql), ["E 57P03", "Z I"], "{sql}");
    }
    for client in &mut asks {
        assert_eq!(client.until_ready(), ["E 57P03", "Z I"]);
        ok(client, READ);
    }
    // The session itself goes on.
    cluster.nodes[1].start();
    let waits = "select count(*) from pg_stat_replication where sync_state = 'quorum'";
    wait_for("the standby to be back", || (cluster.nodes[0].psql(waits) == "1").then_some(()));
    assert_eq!(a.query(READ), ["T", "D 1 n1", "C SELECT 1", "Z I"]);
}

/// Whoever is gone from a commit that waits leaves its backend behind, which waits on.
#[test]
fn proofs_that_are_given_up_leave_no_commit_behind_that_waits() {
    let cluster = semi_sync(Duration::from_secs(60));
    let mut clients: Vec<Raw> = (0..3).map(|_| strong(&cluster)).collect();
    // One that keeps its server.
    ok(&mut clients[2], "select pg_advisory_lock(1)");
    clients.iter_mut().for_each(|client| _ = ok(client, READ));
    cut(&cluster);
    for client in &mut clients {
        client.write(|out| write_query(out, READ));
        wait_for_proof(&cluster);
        let mut request = dial(cluster.port);
        request.write_all(&cancel_request(client.key.0, client.key.1)).unwrap();
        assert_eq!(request.read(&mut [0]).unwrap(), 0);
        assert_eq!(client.until_ready(), ["E 57014", "Z I"]);
        wait_until_waiting(&cluster, 0);
    }
}

#[test]
fn a_block_that_asks_for_a_proof_before_its_first_statement_gets_it() {
    let cluster = semi_sync(Duration::from_secs(2));
    let mut a = Raw::login(cluster.port, &[]);
    let mut pinned = Raw::login(cluster.port, &[]);
    ok(&mut pinned, "create temp table pins_the_session(n int)");
    let set = "set local pgtenure.consistency = 'strong'";
    for begin in ["begin", "begin read only"] {
        ok(&mut a, begin);
        ok(&mut a, "set local pgtenure.standby_wait = '7ms'");
        ok(&mut a, set);
        // It has begun anew, with what it had said before.
        assert_eq!(a.query("show pgtenure.standby_wait")[1], "D 7ms");
        assert_eq!(a.query("show pgtenure.consistency")[1], "D strong");
        assert_eq!(a.query(READ), ["T", "D 1 n1", "C SELECT 1", "Z T"]);
        ok(&mut a, "commit");
    }
    assert_eq!(a.query("show pgtenure.consistency")[1], "D session");
    cut(&cluster);
    // What was read at the standby a moment ago nobody confirms any more, and the primary would be waited for.
    let mut a = Raw::login(cluster.port, &[("pgtenure.read_from", "primary")]);
    for begin in ["begin", "begin read only"] {
        ok(&mut a, begin);
        assert_eq!(a.query(set), ["E 57P03", "Z E"], "{begin}");
        assert_eq!(a.query(READ), ["E 25P02", "Z E"]);
        assert_eq!(a.query("rollback"), ["C ROLLBACK", "Z I"]);
    }
    let whole = format!("begin; {set}; {READ}; commit");
    assert_eq!(a.query(&whole), ["E 57P03", "Z I"]);
    // Who does not ask for it is answered, and a session that keeps its server cannot ask within a block.
    ok(&mut a, "begin; select n from seen; commit");
    ok(&mut pinned, "begin");
    assert_eq!(pinned.query(set), ["E 0A000", "Z E"]);
    ok(&mut pinned, "rollback");
    // What is sent behind a block's end waits for it: the next one is proven as of its own BEGIN.
    let mut strong = strong(&cluster);
    assert_eq!(strong.query("begin"), ["E 57P03", "Z I"]);
}

#[test]
fn a_commit_proves_the_term_when_nobody_else_does() {
    let mut cluster = semi_sync(Duration::from_secs(2));
    let mut kept = Raw::login(cluster.port, &[]);
    ok(&mut kept, "create temp table pins_the_session(n int)");
    // etcd is gone, and nobody looks at what the standbys receive.
    let voters = cluster.nodes.iter().map(|n| n.member().node).collect();
    cluster.publish(|t| {
        t.quorums = vec![Quorum { voters, k: 1 }];
        t.read_at = Some(Instant::from_millis(1));
    });
    let mut client = Raw::login(cluster.port, &[]);
    let mut global = Raw::login(cluster.port, &[("pgtenure.consistency", "global")]);
    let proofs = |cluster: &Cluster| cluster.nodes[0].psql("select pg_current_wal_insert_lsn()");
    for client in [&mut kept, &mut client, &mut global] {
        ok(client, "begin; update seen set n = n + 1; commit");
        ok(client, "update seen set n = n + 1 returning n");
        assert_eq!(ok(client, READ)[0], "T");
    }
    for n in 0..3 {
        let before = proofs(&cluster);
        let seen = ok(&mut global, "select n from seen");
        assert_ne!(proofs(&cluster), before, "global read {n} needs a proof of its own: {seen:?}");
    }
    // One that always has a statement in flight, and so is never without a server.
    let mut piped = Raw::login(cluster.port, &[("pgtenure.read_from", "primary")]);
    let slow = "select n from seen, pg_sleep(0.4)";
    piped.write(|out| write_query(out, slow));
    let next = |piped: &mut Raw| {
        piped.write(|out| write_query(out, slow));
        piped.until_ready()
    };
    for n in 0..5 {
        assert_eq!(next(&mut piped)[0], "T", "{n}");
    }
    cluster.nodes[1].kill();
    wait_for("the last proof to be too old for it", || (next(&mut piped) == ["E 57P03", "Z I"]).then_some(()));
    for client in [&mut global, &mut client, &mut kept] {
        wait_for("the last proof to be too old", || (client.query(READ) == ["E 57P03", "Z I"]).then_some(()));
    }
}

#[test]
fn where_the_view_has_an_end_that_is_the_proof() {
    let cluster = semi_sync(Duration::from_secs(2));
    let mut a = strong(&cluster);
    cut(&cluster);
    cluster.publish(|t| t.valid_until = Some(Clock.now() + Duration::from_secs(3600)));
    // Where a quorum confirms commits no new term waits for that end, as in available mode.
    assert_eq!(a.query(READ), ["E 57P03", "Z I"]);
    cluster.publish(|t| t.protected = false);
    assert_eq!(a.query(READ), ["T", "D 1 n1", "C SELECT 1", "Z I"]);
    cluster.topology.send_modify(|t| (t.valid_until, t.revision) = (Some(Instant::from_millis(1)), t.revision + 1));
    wait_for("the view's end to be known", || (a.query(READ) == ["E 57P03", "Z I"]).then_some(()));
}

/// Nothing has proven that the term is not over, nor can a commit.
fn unproven(topology: &mut Topology) {
    let voters = vec!["n1".parse().unwrap(), "n2".parse().unwrap()];
    (topology.quorums, topology.read_at, topology.protected) = (vec![Quorum { voters, k: 1 }], None, false);
}

#[test]
fn who_logs_in_needs_no_proof() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::secs(2));
        // A proof is given once, and is good for as long.
        raw.max_replay_lag = cluster::config::Span::secs(60);
    });
    c.publish(unproven);
    let mut any = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    assert_eq!(any.query("select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
    let mut own = Raw::login(c.port, &[]);
    assert_eq!(own.query("select 1"), ["E 57P03", "Z I"]);
    c.publish(|t| t.read_at = Some(Clock.now()));
    assert_eq!(own.query("select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
}

#[test]
fn who_was_held_for_the_gate_is_not_sent_with_the_proof_from_before() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.pool_size, raw.hold_timeout) = (1, 1, cluster::config::Span::secs(3));
        // A proof is given once, and is good for as long.
        raw.max_replay_lag = cluster::config::Span::secs(60);
    });
    let (mut a, mut b) = (Raw::login(c.port, &[]), Raw::login(c.port, &[]));
    ok(&mut a, "set work_mem = '8MB'");
    ok(&mut b, "select 1");
    let pid = c.nodes[0].psql("select pid from pg_stat_activity where usename = 'app'");
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    a.write(|out| write_query(out, "select current_setting('work_mem')"));
    wait_for("the server to be asked for its settings", || {
        (c.counter_of("pgtenure_proxy_servers", "in_use") == 1.0).then_some(())
    });
    c.publish(|t| {
        unproven(t);
        t.gate = Gate::Draining;
    });
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    wait_for("the statement to be held", || {
        let view = c.handle.as_ref().unwrap().view(common::DEADLINE);
        let view = runtime.block_on(view).expect("the workers answer");
        view.clients.iter().any(|client| client.activity == Activity::Waiting).then_some(())
    });
    c.publish(|t| t.gate = Gate::Open);
    assert_eq!(a.until_ready(), ["E 57P03", "Z I"]);
    // The server that it had for that is another's.
    c.publish(|t| t.read_at = Some(Clock.now()));
    assert_eq!(b.query("select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
    assert_eq!(a.query("select current_setting('work_mem')")[1], "D 8MB");
}

/// The statement that it was found for was cancelled, and the next one looks anew.
#[test]
fn a_kept_server_is_proven_for_the_statement_behind_one_that_was_cancelled() {
    let c = Cluster::start(0, |raw| {
        (raw.workers, raw.pools.pool_mode) = (1, PoolMode::Session);
        raw.hold_timeout = cluster::config::Span::secs(3);
        // A proof is given once, and is good for as long.
        raw.max_replay_lag = cluster::config::Span::secs(60);
    });
    c.warm();
    let idle = "select pid from pg_stat_activity where usename = 'app' and query = 'DISCARD ALL' and state = 'idle'";
    let pid = wait_for("a server to be idle", || c.nodes[0].psql(idle).parse().ok());
    let pid = nix::unistd::Pid::from_raw(pid);
    let mut a = Raw::login(c.port, &[("application_name", "another")]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    a.write(|out| write_query(out, "select 1"));
    wait_for("the server to be given its settings", || {
        (c.counter_of("pgtenure_proxy_servers", "in_use") == 1.0).then_some(())
    });
    let mut request = dial(c.port);
    request.write_all(&cancel_request(a.key.0, a.key.1)).unwrap();
    assert_eq!(request.read(&mut [0]).unwrap(), 0);
    assert_eq!(a.until_ready(), ["E 57014", "Z I"]);
    c.publish(unproven);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(a.query("select 1"), ["E 57P03", "Z I"]);
    c.publish(|t| t.read_at = Some(Clock.now()));
    assert_eq!(a.query("select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
}

#[test]
fn settings_of_ours_wait_for_no_proof() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.hold_timeout) = (1, cluster::config::Span::secs(1)));
    c.warm();
    let mut kept = Raw::login(c.port, &[]);
    ok(&mut kept, "create temp table pins_the_session(n int)");
    // A connection for the other one.
    c.warm();
    c.publish(unproven);
    for client in [&mut kept, &mut Raw::login(c.port, &[])] {
        assert_eq!(client.query("set pgtenure.standby_wait = '1s'"), ["C SET", "Z I"]);
        assert_eq!(client.query("show pgtenure.standby_wait"), ["T", "D 1s", "C SHOW", "Z I"]);
        assert_eq!(client.query("show pgtenure.consistency"), ["T", "D session", "C SHOW", "Z I"]);
        assert_eq!(client.query("reset pgtenure.standby_wait"), ["C RESET", "Z I"]);
        client.write(|out| {
            common::raw::run(out, "set pgtenure.read_from = 'primary'");
            common::raw::sync(out);
        });
        assert_eq!(client.until_ready(), ["1", "2", "C SET", "Z I"]);
        // Others do, until it comes or they are told.
        assert_eq!(client.query("select 1"), ["E 57P03", "Z I"]);
        assert_eq!(client.query("set pgtenure.standby_wait = '1s'; select 1"), ["E 57P03", "Z I"]);
        // What asks for less than a proof gets it at once.
        assert_eq!(client.query("set pgtenure.consistency = 'eventual'"), ["C SET", "Z I"]);
        assert_eq!(client.query("select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
    }
}

#[test]
fn where_no_standby_proves_the_term_etcd_is_asked_while_a_statement_waits() {
    let mut typed = None;
    let c = Cluster::start(0, |raw| (raw.workers, typed) = (1, Some(raw.clone())));
    let mut typed = typed.expect("the closure ran");
    typed.max_replay_lag = cluster::config::Span::millis(50);
    let config = proxy::config::check(typed).expect("valid");
    c.publish(unproven);
    let (_lag, lag) = tokio::sync::watch::channel(Default::default());
    let (view, seen) = tokio::sync::watch::channel(c.topology.borrow().clone());
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = asked.clone();
    // etcd's reading, as the view publishes it: asked for now, and there at once.
    let ask_view: proxy::AskSample = std::sync::Arc::new(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        view.send_modify(|t| (t.read_at, t.revision) = (Some(Clock.now()), t.revision + 1));
    });
    let inputs = proxy::Inputs { topology: seen, lag, ask: None, ask_view: Some(ask_view) };
    let proxy = proxy::start(config, inputs, &prometheus::Registry::new()).expect("the proxy starts");
    let mut kept = Raw::login(proxy.addr.port(), &[]);
    ok(&mut kept, "create temp table pins_the_session(n int)");
    let mut client = Raw::login(proxy.addr.port(), &[]);
    let mut global = Raw::login(proxy.addr.port(), &[("pgtenure.consistency", "global")]);
    let asked = || asked.load(std::sync::atomic::Ordering::SeqCst);
    for client in [&mut kept, &mut client] {
        let before = asked();
        wait_for("a read that has etcd asked", || {
            assert_eq!(client.query("select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
            (asked() > before).then_some(())
        });
    }
    let before = asked();
    assert_eq!(global.query("select 1"), ["T", "D 1", "C SELECT 1", "Z I"]);
    assert!(asked() > before, "a global read needs a proof of its own");
    drop(proxy);
}
