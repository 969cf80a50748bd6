//! The programs and drivers people use, unchanged, through the endpoint.

use super::common::raw::{Raw, bind, execute, ok, parse, sync, value};
use super::common::{self, Cluster, wait_for};

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
            bench.args(["-n", "-M", mode, "-c", "16", "-j", "2", "-t", "25"]);
            if select_only {
                bench.arg("-S");
            }
            let output = bench.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("number of transactions actually processed: 400/400"),
                "{mode} {select_only}: {text} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let sums = "select (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)";
    assert_eq!(c.psql(sums).unwrap(), "t");
}

#[test]
fn tokio_postgres_works() {
    let c = Cluster::start(1, |_| {});
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (mut client, connection) = tokio_postgres::connect(&c.dsn(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("create table t(a int primary key, b text)").await.unwrap();
        let insert = client.prepare("insert into t values ($1, $2)").await.unwrap();
        let pipelined = (0..50).map(|i| {
            let (client, insert) = (&client, &insert);
            async move { client.execute(insert, &[&i, &"text"]).await }
        });
        for result in futures_of(pipelined).await {
            assert_eq!(result.unwrap(), 1);
        }
        let select = client.prepare("select b from t where a = $1").await.unwrap();
        for i in 0..50 {
            let row = client.query_one(&select, &[&i]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), "text");
        }
        let tx = client.transaction().await.unwrap();
        tx.execute(&insert, &[&100, &"gone"]).await.unwrap();
        tx.rollback().await.unwrap();
        let error = client.execute(&insert, &[&1, &"twice"]).await.unwrap_err();
        assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION));
        let rows = client.query("select count(*) from t", &[]).await.unwrap();
        assert_eq!(rows[0].get::<_, i64>(0), 50);
        let token = client.cancel_token();
        let sleep = client.execute("select pg_sleep(20) from t for update", &[]);
        let cancel = async {
            let running = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
            let started = std::time::Instant::now();
            while c.nodes[0].psql(running) != "1" {
                assert!(started.elapsed() < common::DEADLINE, "the statement did not run");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            token.cancel_query(tokio_postgres::NoTls).await
        };
        let (slept, cancelled) = tokio::join!(sleep, cancel);
        cancelled.unwrap();
        assert_eq!(slept.unwrap_err().code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
    });
}

/// Run futures together: their messages go out as one pipeline.
async fn futures_of<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in running.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(output) = future.as_mut().poll(cx) {
                *done = Some(output);
            }
        }
        if running.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    running.into_iter().filter_map(|(_, done)| done).collect()
}

#[test]
fn psycopg_works() {
    let c = Cluster::start(1, |_| {});
    let script = r#"
import psycopg2
c = psycopg2.connect("")
k = c.cursor()
k.execute("create table t(a int)")
k.executemany("insert into t values (%s)", [(i,) for i in range(100)])
c.commit()
k.execute("insert into t values (1)")
c.rollback()
k.execute("select count(*) from t")
assert k.fetchone() == (100,)
try:
    k.execute("select nothing")
    assert False
except psycopg2.errors.UndefinedColumn:
    c.rollback()
named = c.cursor("named")
named.execute("select * from t order by a")
assert len(named.fetchmany(10)) == 10
c.commit()
c.set_session(autocommit=True)
import io
k.copy_from(io.StringIO("7\n8\n"), "t")
k.execute("select count(*) from t")
assert k.fetchone() == (102,)
c.close()
print("fine")
"#;
    // The interpreter of the distribution, which has its driver.
    let output = c.client("psql").args(["--version"]).output().unwrap();
    assert!(output.status.success());
    let mut python = std::process::Command::new("/usr/bin/python3");
    python.args(["-c", script]).env("PGHOST", "127.0.0.1").env("PGPORT", c.port.to_string()).env("PGUSER", "app");
    let output = python.env("PGPASSWORD", common::PASSWORD).env("PGDATABASE", "app").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("fine"), "{out} {err}");
}

#[test]
fn a_hundred_pgbench_clients_go_through_a_failover() {
    let mut c = Cluster::start(2, |raw| raw.pool_size = 40);
    let init = c.client("pgbench").args(["-i", "-s", "2", "-q"]).output().unwrap();
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    c.replicate();
    let run = |args: &[&str]| {
        let mut bench = c.client("pgbench");
        bench.args(["-n", "-c", "100", "-j", "2", "-T", "12"]).args(args);
        bench.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let reads = run(&["-S", "-M", "prepared"]);
    let writes = run(&["-M", "simple"]);
    wait_for("transactions to be acknowledged", || {
        (c.nodes[0].psql("select count(*) from pgbench_history").parse::<u32>().ok()? > 20).then_some(())
    });
    c.nodes[0].kill();
    c.fail_over_to(1);
    let reads = reads.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&reads.stdout), String::from_utf8_lossy(&reads.stderr));
    assert!(reads.status.success() && out.contains("number of failed transactions: 0"), "{out} {err}");
    let writes = writes.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&writes.stderr);
    for line in err.lines().filter(|l| l.contains("ERROR") || l.contains("FATAL") || l.contains("aborted")) {
        let known =
            ["transaction aborted because its server was lost", "it is unknown whether", "no primary accepts writes"];
        // A client that was told that an outcome is unknown gives up, and pgbench says so in the end.
        let gave_up = line.contains("aborted in command") || line.contains("Run was aborted");
        assert!(known.iter().any(|k| line.contains(k)) || gave_up, "{line}");
    }
    assert!(!err.contains("server closed the connection") && !err.contains("connection to server"), "{err}");
}

#[test]
fn what_a_client_defines_is_known_to_its_next_statement_and_soon_to_all() {
    // Far longer than the test: only the client's own commands have the catalog read again.
    let c = Cluster::start(1, |raw| raw.catalog_refresh = cluster::config::Span::secs(3600));
    wait_for("reads to go to the standby", || {
        (c.psql("select current_setting('cluster_name')").unwrap() == "n2").then_some(())
    });
    let define =
        "create function place() returns text stable language sql as 'select current_setting(''cluster_name'')'";
    c.psql(define).unwrap();
    wait_for("the new function to be known", || (c.psql("select place()").ok()? == "n2").then_some(()));
    let both = ["-X", "-q", "-A", "-t", "-c", "alter function place() volatile", "-c", "select place()"];
    let output = c.client("psql").args(both).output().expect("psql can be started");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "n1", "{output:?}");
    wait_for("the change to be known to others", || (c.psql("select place()").ok()? == "n1").then_some(()));
    // A standby that has not replayed it knows nothing of it: whoever reads there is answered by the primary.
    c.replicate();
    c.nodes[1].psql("select pg_wal_replay_pause()");
    let mut other = Raw::login(c.port, &[("pgtenure.consistency", "eventual")]);
    wait_for("reads to go to the standby", || {
        (value(&mut other, "select current_setting('cluster_name')") == "n2").then_some(())
    });
    let late = "create function late() returns text stable language sql as 'select current_setting(''cluster_name'')'; \
                create table later(n int)";
    c.psql(late).unwrap();
    assert!(c.nodes[1].try_psql("select 1 from later").is_err(), "the standby has replayed it already");
    wait_for("what the standby lacks to be asked for there, and then of the primary", || {
        for sql in ["select count(*) from later", "select count(*) from later where n = 7"] {
            assert_eq!(value(&mut other, sql), "0");
        }
        value(&mut other, "show pgtenure.last_route").starts_with("primary n1: rechecked: ").then_some(())
    });
    let lacking = || c.counter_of("pgtenure_proxy_retries_total", "lacking");
    wait_for("a function to be asked for at the standby", || {
        assert_eq!(value(&mut other, "select late()"), "n1");
        (lacking() > 2.0).then_some(())
    });
    other.write(|out| {
        parse(out, "p", "select n from later");
        bind(out, "", "p", &[]);
        execute(out, "");
        sync(out);
    });
    assert_eq!(other.until_ready(), ["1", "2", "C SELECT 0", "Z I"]);
    // What the primary does not know either is told once.
    wait_for("the primary's own error", || {
        (other.query("select nothing from later") == ["E 42703", "Z I"]).then_some(())
    });
    // What began at a standby ends there.
    wait_for("a transaction to begin at the standby", || {
        ok(&mut other, "begin read only");
        let there = value(&mut other, "select current_setting('cluster_name')") == "n2";
        if there {
            assert_eq!(other.query("select n from later"), ["E 42P01", "Z E"]);
        }
        ok(&mut other, "rollback");
        there.then_some(())
    });
    ok(&mut other, "set pgtenure.no_standby = 'error'");
    wait_for("the standby to be asked", || (other.query("select n from later") == ["E 42P01", "Z I"]).then_some(()));
}
