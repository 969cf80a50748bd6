//! Programs and drivers that know nothing of us work through the endpoint unchanged, also across a failover.

use integration::client::Target;
use integration::cluster::{Cluster, LONG, one_at_a_time};
use integration::postgres::{client_program, describe};
use integration::tap::Tap;
use integration::wait::wait_for;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn programs_and_drivers_work_unchanged() {
    let _turn = one_at_a_time();
    let cluster = Cluster::healthy();
    psql_works(&cluster);
    pgbench_works(&cluster);
    python_works(&cluster);
    tokio_postgres_works(&cluster);
    a_hundred_pgbench_clients_survive_a_failover(&cluster);
}

/// A client program that connects by environment, as any application's would.
fn program(name: &str, target: &Target) -> Command {
    let mut command = client_program(name);
    command.env("PGHOST", target.addr.ip().to_string()).env("PGPORT", target.addr.port().to_string());
    command.env("PGUSER", &target.user).env("PGPASSWORD", &target.password).env("PGDATABASE", &target.database);
    command.stdin(Stdio::null());
    command
}

fn run(what: &str, mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(output.status.success(), "{what}: {}", describe(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn psql_works(cluster: &Cluster) {
    let dir = cluster.scratch().path().join("psql");
    std::fs::create_dir_all(&dir).expect("a directory for psql");
    let (input, output) = (dir.join("in.csv"), dir.join("out.csv"));
    std::fs::write(&input, (0..20_000).map(|i| format!("{i},row {i}\n")).collect::<String>()).expect("a file");
    let (input_name, output_name) = (input.display(), output.display());
    let script = format!(
        r"\set ON_ERROR_STOP 1
\conninfo
create table copied(id int primary key, t text);
\copy copied from '{input_name}' csv
\copy (select * from copied order by id) to '{output_name}' csv
begin;
insert into copied values (-1, 'x');
savepoint s;
\set ON_ERROR_STOP 0
insert into copied values (-1, 'a duplicate, so that the block fails');
\set ON_ERROR_STOP 1
rollback to s;
commit;
select count(*) as n from copied \gset
\echo rows :n
select id, t from copied where id < 3 order by id \gdesc
prepare p(int) as select t from copied where id = $1;
execute p(7);
\d copied
\dt
\l
\echo done
"
    );
    let file = dir.join("script.sql");
    std::fs::write(&file, script).expect("a file");
    let mut psql = program("psql", &cluster.target());
    psql.args(["-X", "-f"]).arg(&file);
    let said = run("psql", psql);
    assert!(said.contains("rows 20001") && said.contains("row 7") && said.contains("done"), "{said}");
    let same = |p: &Path| std::fs::read_to_string(p).expect("a file");
    assert_eq!(same(&input), same(&output), "what COPY took in comes out again");
}

const MODES: [&str; 3] = ["simple", "extended", "prepared"];

fn pgbench(target: &Target, arguments: &[&str]) -> Command {
    let mut command = program("pgbench", target);
    command.args(arguments).env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable");
    command
}

fn pgbench_works(cluster: &Cluster) {
    run("pgbench -i", pgbench(&cluster.target(), &["-i", "-q", "-s", "5"]));
    for mode in MODES {
        for script in [&["-S", "-t", "500"][..], &["-t", "10"]] {
            let arguments = [&["-n", "-M", mode, "-c", "8", "-j", "2"], script].concat();
            let said = run(&format!("pgbench {arguments:?}"), pgbench(&cluster.target(), &arguments));
            let done = number_after(&said, "number of transactions actually processed: ");
            assert_eq!(done, if script[0] == "-S" { 4000 } else { 80 }, "{arguments:?}: {said}");
            assert!(said.contains("number of failed transactions: 0 "), "{arguments:?}: {said}");
        }
    }
}

fn number_after(text: &str, what: &str) -> u64 {
    let rest = text.split_once(what).unwrap_or_else(|| panic!("no {what:?} in {text}")).1;
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number")
}

/// psycopg 2 and psycopg 3, Debian's packages python3-psycopg2 and python3-psycopg.
fn python_works(cluster: &Cluster) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/endpoint/psycopg_check.py");
    for module in ["psycopg2", "psycopg"] {
        let importable = |python: &str| {
            let code = format!("import {module}");
            let tried = Command::new(python).args(["-c", &code]).stderr(Stdio::null()).status();
            tried.is_ok_and(|s| s.success())
        };
        // Another Python may come first on the PATH; the packages belong to Debian's.
        let python = ["/usr/bin/python3", "python3"].into_iter().find(|p| importable(p));
        let python = python.unwrap_or_else(|| panic!("install python3-{module} (make test does)"));
        let mut command = Command::new(python);
        command.arg(&script).arg(module).arg(cluster.target().conninfo());
        assert!(run(module, command).contains("all checks passed"));
        eprintln!("{module} works");
    }
}

fn tokio_postgres_works(cluster: &Cluster) {
    let conninfo = cluster.target().conninfo();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(in_time(tokio_postgres_checks(&conninfo)));
}

/// `timeout` needs the runtime's timer, so it is made inside of it.
async fn in_time(checks: impl Future<Output = ()>) {
    tokio::time::timeout(LONG, checks).await.expect("tokio-postgres gets its answers in time");
}

async fn tokio_postgres_checks(conninfo: &str) {
    let (mut client, connection) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await.expect("login");
    let driver = tokio::spawn(connection);
    client.batch_execute("create table tokio(id int primary key, t text)").await.expect("a table");
    let insert = client.prepare("insert into tokio values ($1, $2)").await.expect("prepared");
    for id in 0..20 {
        assert_eq!(client.execute(&insert, &[&id, &format!("row {id}")]).await.expect("a row"), 1);
    }
    // Pipelined: all sent before the first answer is awaited.
    let select = client.prepare("select t from tokio where id = $1").await.expect("prepared");
    let (a, b, c) = tokio::try_join!(
        client.query_one(&select, &[&1]),
        client.query_one(&select, &[&2]),
        client.query_one("select count(*) from tokio", &[])
    )
    .expect("three answers");
    assert_eq!((a.get(0), b.get(0), c.get::<_, i64>(0)), ("row 1", "row 2", 20));
    let error = client.execute(&insert, &[&1, &"again"]).await.expect_err("a duplicate");
    assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION));
    let transaction = client.transaction().await.expect("begun");
    transaction.execute("delete from tokio where id < 10", &[]).await.expect("deleted");
    transaction.rollback().await.expect("rolled back");
    let transaction = client.transaction().await.expect("begun");
    let portal = transaction.bind("select id from tokio order by id", &[]).await.expect("bound");
    assert_eq!(transaction.query_portal(&portal, 7).await.expect("rows").len(), 7);
    assert_eq!(transaction.query_portal(&portal, 100).await.expect("rows").len(), 13);
    transaction.commit().await.expect("committed");
    let cancel = client.cancel_token();
    let slept = {
        let sleep = client.batch_execute("select pg_sleep(60)");
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                slept = &mut sleep => break slept,
                () = tokio::time::sleep(Duration::from_millis(300)) => {}
            }
            // One that comes before the statement has begun finds nothing to cancel.
            cancel.cancel_query(tokio_postgres::NoTls).await.expect("the request is taken");
        }
    };
    assert_eq!(slept.expect_err("cancelled").code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
    drop(client);
    driver.await.expect("the connection's task ends").expect("without an error");
}

/// Select-only finishes without any error; TPC-B sees only what a failover may show, and no connection is lost.
fn a_hundred_pgbench_clients_survive_a_failover(cluster: &Cluster) {
    for (what, arguments, allowed) in [
        ("select-only", &["-S", "-M", "prepared"][..], &[][..]),
        ("TPC-B", &["-M", "extended"], &["40001", "08007", "57P03"]),
    ] {
        let before = cluster.active();
        let tap = Tap::start(cluster.target().addr).expect("a tap");
        let through_the_tap = Target { addr: tap.addr(), ..cluster.target() };
        let mut command =
            pgbench(&through_the_tap, &[&["-n", "-c", "100", "-j", "2", "-T", "12", "-P", "1"], arguments].concat());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pgbench starts");
        wait_for("all pgbench connections to be under way", LONG, || match tap.seen() {
            seen if seen.connections >= 100 && seen.messages >= 4_000 => Ok(()),
            seen => Err(seen),
        });
        cluster.kill_postmaster(&before.primary);
        cluster.active_after(before.term);
        let output = child.wait_with_output().expect("pgbench ends");
        let (seen, said) = (tap.seen(), describe(&output));
        let wrong: Vec<_> =
            seen.errors.iter().filter(|e| !allowed.contains(&e.sqlstate.as_str()) || e.severity != "ERROR").collect();
        assert!(wrong.is_empty(), "{what} saw {wrong:?}\n{said}");
        assert_eq!(seen.closed_by_server, 0, "{what} lost connections\n{said}");
        if allowed.is_empty() {
            assert!(output.status.success() && said.contains("number of failed transactions: 0 "), "{what}: {said}");
        }
        eprintln!("{what} through a failover: {} errors\n{said}", seen.errors.len());
        cluster.all_stream();
    }
}
