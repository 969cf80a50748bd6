//! Questions and settings of ours that end at a limit of time which a session has set for its own statements.

use super::common::raw::{Raw, block, ok, two_servers, value};
use super::common::{Cluster, wait_for};
use proxy::wire::frontend::write_query;

#[test]
fn a_question_that_ends_at_the_sessions_own_limit_is_asked_again() {
    let c = two_servers();
    c.nodes[0].psql("create role worker; grant worker to app");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set statement_timeout = '500ms'");
    let pid = value(&mut a, "select pg_backend_pid()");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let superuser = format!("host=127.0.0.1 port={} user=postgres dbname=app", c.nodes[0].port);
    let (lock, connection) = runtime.block_on(tokio_postgres::connect(&superuser, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let locks = "begin; lock table pg_catalog.pg_db_role_setting in access exclusive mode";
    runtime.block_on(lock.batch_execute(locks)).expect("nobody else has it");
    ok(&mut a, "set role worker");
    // Every login waits for that too.
    let over = format!(
        "select count(*) from pg_stat_activity where pid = {pid} and state = 'idle' and query like '%pg_db_role_setting%'"
    );
    wait_for("the question's time to be over", || {
        runtime.block_on(lock.batch_execute("select pg_stat_clear_snapshot()")).expect("an answer");
        let over: i64 = runtime.block_on(lock.query_one(&over, &[])).expect("an answer").get(0);
        (over == 1).then_some(())
    });
    runtime.block_on(lock.batch_execute("commit")).expect("it is held");
    ok(&mut a, "select 1");
    let mut other = block(&c);
    assert_eq!(value(&mut a, "show role"), "worker");
    ok(&mut other, "commit");
    wait_for("nobody to keep a server", || (c.counter("pgtenure_proxy_pinned_sessions") == 0.0).then_some(()));
}

/// No statement of the client waits for a question of ours more than once.
#[test]
fn a_question_about_pins_that_ends_at_the_sessions_own_limit_holds_nobody_up() {
    let c = two_servers();
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set statement_timeout = '300ms'");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let superuser = format!("host=127.0.0.1 port={} user=postgres dbname=app", c.nodes[0].port);
    let (lock, connection) = runtime.block_on(tokio_postgres::connect(&superuser, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let locks = "begin; lock table pg_catalog.pg_locks in access exclusive mode";
    runtime.block_on(lock.batch_execute(locks)).expect("nobody else has it");
    ok(&mut a, "select pg_advisory_lock(1)");
    for _ in 0..3 {
        ok(&mut a, "select 1");
    }
    runtime.block_on(lock.batch_execute("commit")).expect("it is held");
    ok(&mut a, "select pg_advisory_unlock(1)");
    wait_for("nobody to keep a server", || (c.counter("pgtenure_proxy_pinned_sessions") == 0.0).then_some(()));
}

/// The limits of the session before hold while a server takes the next one's settings: that one is not to blame.
#[test]
fn who_cannot_have_its_settings_in_time_gets_another_server() {
    let c = Cluster::start(0, |raw| (raw.workers, raw.pool_size) = (1, 1));
    let node = &c.nodes[0];
    let mut b = Raw::login(c.port, &[]);
    ok(&mut b, "set default_tablespace = 'pg_default'");
    let first = value(&mut b, "select pg_backend_pid()");
    let mut a = Raw::login(c.port, &[]);
    ok(&mut a, "set statement_timeout = '300ms'");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let superuser = format!("host=127.0.0.1 port={} user=postgres dbname=app", node.port);
    let (lock, connection) = runtime.block_on(tokio_postgres::connect(&superuser, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let locks = "begin; lock table pg_catalog.pg_tablespace in access exclusive mode";
    runtime.block_on(lock.batch_execute(locks)).expect("nobody else has it");
    b.write(|out| write_query(out, "select 1"));
    let waits = "select pid from pg_locks where not granted and relation = 'pg_tablespace'::regclass";
    wait_for("the settings to wait on another server", || {
        let pid = node.psql(waits);
        (!pid.is_empty() && pid != first).then_some(())
    });
    runtime.block_on(lock.batch_execute("commit")).expect("it is held");
    assert_eq!(b.until_ready(), ["T", "D 1", "C SELECT 1", "Z I"]);
    assert_eq!(value(&mut b, "show default_tablespace"), "pg_default");
}
