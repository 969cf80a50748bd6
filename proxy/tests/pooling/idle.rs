//! Connections that nobody uses: replaced when they are lost, closed when they are too many or too old.

use super::common::raw::{Raw, bind, execute, parse, sync};
use super::common::{Cluster, wait_for};
use super::{view, words};
use cluster::config::Span;
use proxy::config::PoolMode;
use proxy::pool::view::ServerState;
use proxy::wire::frontend::write_query;

#[test]
fn idle_servers_that_were_terminated_are_replaced_unnoticed() {
    terminate_idle(PoolMode::Transaction);
}

#[test]
fn so_are_those_that_their_clients_keep() {
    terminate_idle(PoolMode::Session);
}

fn terminate_idle(mode: PoolMode) {
    let c = Cluster::start(0, |raw| raw.pools.pool_mode = mode);
    let mut clients: Vec<Raw> = (0..8).map(|_| Raw::login(c.port, &[])).collect();
    clients[0].query("create table t(a int)");
    for client in &mut clients {
        assert_eq!(words(&client.query("set work_mem = '2MB'")), "C SET | Z I");
        assert_eq!(words(&client.query("prepare by_sql as insert into t values (1)")), "C PREPARE | Z I");
        client.write(|out| {
            parse(out, "s", "select current_setting('work_mem') from t limit 1");
            sync(out);
        });
        assert_eq!(words(&client.until_ready()), "1 | Z I");
    }
    for _ in 0..5 {
        clients.iter_mut().for_each(|client| drop(client.query("begin")));
        clients.iter_mut().for_each(|client| drop(client.query("commit")));
        c.nodes[0].psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
        wait_for("the servers to be gone", || {
            (c.nodes[0].psql("select count(*) from pg_stat_activity where usename = 'app'") == "0").then_some(())
        });
        for (i, client) in clients.iter_mut().enumerate() {
            // Whatever comes first behind it.
            let by_sql = |client: &mut Raw| client.query("execute by_sql");
            let inserted = "C INSERT 0 1 | Z I";
            if i % 2 == 0 {
                assert_eq!(words(&by_sql(client)), inserted);
            }
            assert_eq!(words(&client.query("insert into t values (1)")), inserted);
            client.write(|out| {
                bind(out, "", "s", &[]);
                execute(out, "");
                sync(out);
            });
            assert_eq!(words(&client.until_ready()), "2 | D 2MB | C SELECT 1 | Z I");
            assert_eq!(words(&by_sql(client)), inserted);
        }
    }
}

#[test]
fn idle_servers_that_postgresql_ends_itself_are_replaced_unnoticed() {
    let c = Cluster::start(0, |raw| raw.timeouts.server_check_delay = Span::secs(600));
    // A name of it, too: what is connected to anew is resolved by the system, and each of its addresses is tried.
    c.publish(|t| t.primary.as_mut().unwrap().postgres.host = "localhost".to_owned());
    let mut client = Raw::login(c.port, &[]);
    c.nodes[0].psql("alter role app set idle_session_timeout = '300ms'");
    c.nodes[0].psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
    for _ in 0..3 {
        // A read: on a busy machine the time may be over just when it is sent, and it runs again.
        assert_eq!(words(&client.query("select 1")), "T | D 1 | C SELECT 1 | Z I");
        wait_for("the server to be gone (57P05)", || {
            (c.nodes[0].psql("select count(*) from pg_stat_activity where usename = 'app'") == "0").then_some(())
        });
    }
    // A write that is on its way then has not been run either, and nothing is in doubt.
    c.nodes[0].psql("alter role app reset idle_session_timeout");
    c.nodes[0].psql("create table t(a int); grant all on t to app");
    assert_eq!(words(&client.query("set idle_session_timeout = '2s'")), "C SET | Z I");
    let server = idle_server(&c);
    let signal = |s| nix::sys::signal::kill(server, s).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    client.write(|out| write_query(out, "insert into t values (1)"));
    wait_for("the server's time to be over", || {
        let over = "select clock_timestamp() > state_change + interval '3 s' from pg_stat_activity where pid =";
        (c.nodes[0].psql(&format!("{over} {server}")) == "t").then_some(())
    });
    signal(nix::sys::signal::Signal::SIGCONT);
    assert_eq!(words(&client.until_ready()), "E 40001 | Z I");
    assert_eq!(c.nodes[0].psql("select count(*) from t"), "0");
}

/// A server, once nobody has one. On a busy machine what functions leave may not be known yet, and it is still asked what
/// the statement before has left.
fn idle_server(c: &Cluster) -> nix::unistd::Pid {
    let pid = wait_for("the server to be idle", || {
        let servers = view(c).servers;
        servers.iter().find(|server| server.state != ServerState::Active).map(|server| server.pid)
    });
    nix::unistd::Pid::from_raw(pid.try_into().unwrap())
}

#[test]
fn a_server_that_was_killed_while_idle_is_replaced_when_postgresql_is_back() {
    let c = Cluster::start(0, |_| {});
    let mut client = Raw::login(c.port, &[]);
    client.query("create table t(a int)");
    nix::sys::signal::kill(idle_server(&c), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("PostgreSQL to have restarted", || {
        (c.nodes[0].try_psql("select count(*) from pg_stat_activity where usename = 'app'").ok()? == "0").then_some(())
    });
    assert_eq!(words(&client.query("insert into t values (1)")), "C INSERT 0 1 | Z I");
}

#[test]
fn an_idle_server_that_no_longer_answers_is_replaced_unnoticed() {
    let c = Cluster::start(0, |raw| {
        raw.timeouts.server_check_delay = Span::secs(0);
        raw.connect_timeout = Span::millis(500);
    });
    let mut client = Raw::login(c.port, &[]);
    client.query("create table t(a int)");
    let server = idle_server(&c);
    let signal = |s| nix::sys::signal::kill(server, s).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    let seen = words(&client.query("insert into t values (1)"));
    signal(nix::sys::signal::Signal::SIGCONT);
    assert_eq!(seen, "C INSERT 0 1 | Z I");
    assert_eq!(c.nodes[0].psql("select count(*) from t"), "1");
}

/// Terminate idle backends over and over while eight clients run `sql`; every answer that was not `want`. Only such as have
/// run it: one that was just made may be for a statement that has lost its server already, and loses no second one later.
fn odd_answers_while_servers_are_terminated(sql: &str, want: &str) -> Vec<String> {
    let c = Cluster::start(0, |raw| raw.pool_size = 12);
    let port = c.port;
    let stop = std::sync::atomic::AtomicBool::new(false);
    // Also where what terminates them fails: the scope waits for all of its threads.
    struct Stop<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let stopped = Stop(&stop);
        let run = || {
            let mut client = Raw::login(port, &[]);
            let mut odd = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let seen = words(&client.query(sql));
                if seen != want {
                    odd.push(seen);
                }
            }
            odd
        };
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
        for _ in 0..30 {
            c.nodes[0].psql(&format!(
                "select pg_terminate_backend(pid) from pg_stat_activity \
                 where usename = 'app' and state = 'idle' and query = '{sql}'"
            ));
        }
        drop(stopped);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn reads_never_notice_that_idle_servers_are_terminated() {
    let odd = odd_answers_while_servers_are_terminated("select 1", "T | D 1 | C SELECT 1 | Z I");
    assert_eq!(odd, Vec::<String>::new());
}

#[test]
fn unused_servers_are_closed_down_to_those_to_keep() {
    let c = Cluster::start(0, |raw| {
        raw.server_idle_timeout = Span::secs(1);
        raw.pools.min_pool_size = 1;
        raw.pool_size = 3;
    });
    let mut clients: Vec<Raw> = (0..3).map(|_| Raw::login(c.port, &[])).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin")));
    assert_eq!(view(&c).servers.len(), 3);
    clients.iter_mut().for_each(|client| drop(client.query("commit")));
    let open = |since: &str| {
        let of = "select string_agg(pid::text, ' ') from pg_stat_activity where usename = 'app' and state_change <";
        c.nodes[0].psql(&format!("{of} clock_timestamp() - interval '{since}'"))
    };
    let one = wait_for("two to be closed", || Some(open("0")).filter(|pids| pids.parse::<u32>().is_ok()));
    wait_for("the last one to have been idle for longer than that", || (open("2.5 s") == one).then_some(()));
    assert_eq!(open("0"), one);
}

#[test]
fn a_server_that_has_lived_for_long_is_replaced_unnoticed() {
    let c = Cluster::start(0, |raw| {
        (raw.server_idle_timeout, raw.server_lifetime) = (Span::secs(1), Span::secs(1));
        raw.pool_size = 1;
    });
    let pid = |client: &mut Raw| {
        let seen = client.query("select pg_backend_pid()");
        seen[1].strip_prefix("D ").unwrap_or_else(|| panic!("{seen:?}")).to_owned()
    };
    let mut a = Raw::login(c.port, &[]);
    a.query("begin");
    let first = pid(&mut a);
    wait_for("it to be old", || {
        let sql = "select clock_timestamp() - backend_start > interval '1.5 s' from pg_stat_activity where pid = ";
        (c.nodes[0].psql(&format!("{sql}{first}")) == "t").then_some(())
    });
    assert_eq!(pid(&mut a), first, "a transaction keeps it");
    a.query("commit");
    assert_ne!(pid(&mut a), first);
    // An idle one is replaced as well, and nobody fails meanwhile.
    let second = pid(&mut a);
    wait_for("it to be replaced", || (pid(&mut a) != second).then_some(()));
}
