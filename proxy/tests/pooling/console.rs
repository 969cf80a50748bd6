//! The admin console before real servers: what exporters and scripts written for PgBouncer rely on, and orders.

use super::common::raw::{Raw, parse, run, sync};
use super::common::{self, Cluster, DEADLINE, PASSWORD, free_port, wait_for};
use proxy::wire::frontend::{write_parse, write_query, write_subject};
use proxy::{ProcessOrder, Refused, Reloaded, Wait};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn psql(cluster: &Cluster, database: &str, sql: &str) -> Output {
    let mut command = cluster.client("psql");
    command.env("PGDATABASE", database).args(["-X", "-A", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    command.output().expect("psql can be started")
}

/// The table as psql prints it, header first, or the error.
fn ask(cluster: &Cluster, sql: &str) -> Result<Vec<Vec<String>>, String> {
    let output = psql(cluster, "pgtenure", sql);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let rows = text.lines().filter(|l| !l.starts_with('('));
    Ok(rows.map(|l| l.split('|').map(str::to_owned).collect()).collect())
}

/// The value of a column in the row whose first cell is `name`.
fn cell(table: &[Vec<String>], name: &str, column: &str) -> Option<String> {
    let at = table[0].iter().position(|c| c == column)?;
    table[1..].iter().find(|row| row[0] == name).map(|row| row[at].clone())
}

/// What an HTTP server on this host says to a GET, once it says 200.
fn fetch(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().next()?.contains(" 200 ").then_some(text)
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's package, which asks by the names of PgBouncer before 1.8.
#[test]
fn debians_exporter_reads_the_console() {
    const EXPORTER: &str = "/usr/bin/prometheus-pgbouncer-exporter";
    if !Path::new(EXPORTER).exists() {
        eprintln!("SKIPPED, NOT TESTED: {EXPORTER} is not installed (scripts/setup --wishes installs it)");
        return;
    }
    let cluster = Cluster::start(0, |raw| raw.console.stats_users = vec!["app".to_owned()]);
    for _ in 0..5 {
        cluster.psql("select 1").expect("the endpoint serves");
    }
    let port = free_port();
    let mut command = Command::new(EXPORTER);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--pgbouncer-host", "127.0.0.1"]);
    command.args(["--pgbouncer-user", "app", "--pgbouncer-port", &cluster.port.to_string()]);
    command.env("PGPASSWORD", PASSWORD).env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable");
    let _exporter = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started"));
    let text = wait_for("the exporter to have the figures", || {
        fetch(port, "/metrics").filter(|text| text.contains("pgbouncer_requests_total{database=\"app\"} 5.0"))
    });
    for metric in
        ["pgbouncer_pool_size{database=\"app\"}", "pgbouncer_reserve_pool{database=\"app\"}", "pgbouncer_used_clients"]
    {
        assert!(text.contains(metric), "{metric}: {text}");
    }
    assert!(text.contains("pgbouncer_active_clients{database=\"app\",user=\"app\"}"), "{text}");
}

#[test]
fn exporters_find_the_tables_and_columns_they_ask_for() {
    let cluster = Cluster::start(1, |raw| {
        raw.console.stats_users = vec!["app".to_owned()];
        raw.pools.max_user_client_connections = 500;
    });
    for _ in 0..5 {
        cluster.psql("select 1").expect("the endpoint serves");
    }
    let mut held = Raw::login(cluster.port, &[]);
    held.write(|out| {
        parse(out, "mine", "select 7 as mine");
        sync(out);
    });
    assert_eq!(held.until_ready(), ["1", "Z I"]);
    held.query("create temp table t (a int)");
    // What prometheus' pgbouncer_exporter scans, table by table.
    for (table, columns) in [
        (
            "DATABASES",
            "name host port database force_user pool_size reserve_pool_size pool_mode max_connections current_connections paused disabled",
        ),
        (
            "POOLS",
            "database user cl_active cl_waiting sv_active sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode",
        ),
        (
            "STATS",
            "database total_xact_count total_query_count total_received total_sent total_xact_time total_query_time total_wait_time avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time avg_query_time avg_wait_time",
        ),
        ("LISTS", "list items"),
        ("CONFIG", "key value default changeable"),
        (
            "CLIENTS",
            "type user database state addr port connect_time request_time wait wait_us ptr link remote_pid tls id",
        ),
        ("SERVERS", "type user database state addr port connect_time request_time ptr link remote_pid"),
        ("USERS", "name pool_mode"),
        ("MEM", "name size used free memtotal"),
        ("VERSION", "version"),
        ("STATS_TOTALS", "database xact_count query_count bytes_received bytes_sent xact_time query_time wait_time"),
        ("STATS_AVERAGES", "database xact_count query_count"),
        ("TOTALS", "name value"),
        ("SOCKETS", "type user"),
        ("STATE", "key value"),
        ("LAG", "node freshness staleness_ms replay_lag_ms replay_lag_bytes"),
        ("TOPOLOGY", "node role host port term gate zone"),
        ("PINS", "id database user node remote_pid reasons"),
        ("PREPARED", "name worker references query_bytes query"),
    ] {
        let rows = ask(&cluster, &format!("SHOW {table};")).unwrap_or_else(|e| panic!("SHOW {table}: {e}"));
        for column in columns.split(' ') {
            assert!(rows[0].iter().any(|c| c == column), "SHOW {table} lacks {column}: {:?}", rows[0]);
        }
        assert!(rows.len() > 1, "SHOW {table} has no rows");
    }
    let stats = ask(&cluster, "SHOW STATS_TOTALS").unwrap();
    for column in ["query_count", "xact_count", "xact_time", "query_time", "client_login_count"] {
        let n: u64 = cell(&stats, "app", column).expect("the database is counted").parse().unwrap();
        assert!(n >= 5, "{column} = {n}");
    }
    let lists = ask(&cluster, "SHOW LISTS").unwrap();
    assert_eq!(cell(&lists, "databases", "items").as_deref(), Some("2"));
    assert_eq!(cell(&lists, "used_clients", "items").as_deref(), Some("1"));
    // PgBouncer shows its console among the databases, and who asks among its clients.
    let databases = ask(&cluster, "SHOW DATABASES").unwrap();
    assert_eq!(cell(&databases, "pgbouncer", "pool_mode").as_deref(), Some("statement"));
    wait_for("who asked before to have left", || {
        let pools = ask(&cluster, "SHOW POOLS").unwrap();
        (cell(&pools, "pgbouncer", "cl_active").as_deref() == Some("1")).then_some(())
    });
    let pins = ask(&cluster, "SHOW PINS").unwrap();
    assert_eq!(pins.len(), 2, "{pins:?}");
    let prepared = ask(&cluster, "SHOW PREPARED").unwrap();
    let text = prepared[0].iter().position(|column| column == "query").expect("there is one");
    assert!(prepared[1..].iter().any(|row| row[text] == "select 7 as mine"), "{prepared:?}");
    let config = ask(&cluster, "SHOW CONFIG").unwrap();
    assert_eq!(cell(&config, "hold_timeout", "value").as_deref(), Some("30s"));
    assert_eq!(cell(&config, "listen", "changeable").as_deref(), Some("no"));
    assert_eq!(cell(&config, "max_client_conn", "value").as_deref(), Some("10000"));
    // Servers are another thing than clients.
    assert_eq!(cell(&config, "max_user_connections", "value").as_deref(), Some("0"));
    assert_eq!(cell(&config, "max_user_client_connections", "value").as_deref(), Some("500"));
    // Looking is all that this user may do.
    let error = ask(&cluster, "PAUSE app").unwrap_err();
    assert!(error.contains("admin access needed"), "{error}");
    // Also under the name that exporters use.
    assert!(psql(&cluster, "pgbouncer", "show pools").status.success());
}

#[test]
fn drivers_that_prepare_everything_are_served() {
    let cluster = Cluster::start(0, |raw| raw.console.stats_users = vec!["app".to_owned()]);
    cluster.psql("select 1").expect("the endpoint serves");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dsn = cluster.dsn().replace("dbname=app", "dbname=pgtenure");
        let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await.expect("a login");
        tokio::spawn(connection);
        // Prepared, described, and with its results in binary form.
        let rows = client.query("SHOW POOLS", &[]).await.expect("a table");
        assert_eq!((rows[0].get::<_, &str>("database"), rows[0].get::<_, i32>("cl_waiting")), ("app", 0));
        let one = client.query_one("select 1", &[]).await.expect("a row");
        assert_eq!(one.get::<_, i32>(0), 1);
        assert_eq!(client.execute("SET extra_float_digits = 3", &[]).await.expect("ignored"), 0);
        let error = client.query("SHOW POLS", &[]).await.unwrap_err();
        let error = error.as_db_error().expect("an error of the console");
        assert_eq!((error.code().code(), error.detail()), ("42601", Some("The nearest valid command is SHOW POOLS.")));
        // The connection goes on. Every table has the same columns in either protocol.
        let tables = "CLIENTS CONFIG DATABASES HELP LAG LISTS MEM PINS POOLS PREPARED SERVERS SOCKETS STATE STATS \
                      STATS_AVERAGES STATS_TOTALS THROTTLE TOPOLOGY TOTALS USERS VERSION";
        for table in tables.split(' ') {
            let sql = format!("SHOW {table}");
            let described = client.prepare(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            let columns: Vec<_> = described.columns().iter().map(|c| c.name().to_owned()).collect();
            client.query(&described, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            let simple = client.simple_query(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            let named = simple.iter().find_map(|m| match m {
                tokio_postgres::SimpleQueryMessage::RowDescription(columns) => Some(columns.clone()),
                _ => None,
            });
            let named: Vec<_> = named.iter().flat_map(|n| n.iter()).map(|c| c.name().to_owned()).collect();
            assert_eq!(columns, named, "{sql}");
            // That one is a notice.
            assert_eq!(columns.is_empty(), table == "HELP", "{sql}");
        }
    });
    let mut raw = common::raw::Raw::login(cluster.port, &[("database", "pgtenure")]);
    // After an error everything up to Sync is thrown away, and one ReadyForQuery is owed.
    raw.write(|out| {
        write_parse(out, b"", b"nonsense\0\0\0");
        write_subject(out, b'D', b"");
        out.extend_from_slice(b"S\0\0\0\x04");
        write_query(out, "show version");
    });
    let (first, second) = (raw.until_ready(), raw.until_ready());
    assert_eq!(first.len(), 2, "{first:?}");
    assert_eq!(second.len(), 4, "{second:?}");
}

#[test]
fn connections_are_shown_with_their_names_and_statements() {
    let cluster = Cluster::start(0, |raw| raw.console.stats_users = vec!["app".to_owned()]);
    let mut raw = Raw::login(cluster.port, &[("application_name", "billing")]);
    raw.write(|out| {
        write_parse(out, b"kept", b"select 1\0\0\0");
        out.extend_from_slice(b"S\0\0\0\x04");
    });
    raw.until_ready();
    for _ in 0..2 {
        raw.write(|out| {
            write_parse(out, b"s1", b"select 1\0\0\0");
            // Bind of `s1` to the unnamed portal, without parameters; Execute; Close; Sync.
            out.extend_from_slice(b"B\0\0\0\x0e\0s1\0\0\0\0\0\0\0");
            out.extend_from_slice(b"E\0\0\0\x09\0\0\0\0\0");
            write_subject(out, b'C', b"s1");
            out.extend_from_slice(b"S\0\0\0\x04");
        });
        raw.until_ready();
    }
    let clients = ask(&cluster, "SHOW CLIENTS").unwrap();
    let shown = |table: &[Vec<String>], kind: &str, column: &str| cell(table, kind, column).expect("a row");
    assert_eq!(shown(&clients, "C", "application_name"), "billing");
    assert_eq!(shown(&clients, "C", "prepared_statements"), "1");
    assert_eq!((shown(&clients, "C", "replication"), shown(&clients, "C", "tls")), ("none".to_owned(), String::new()));
    let stats = ask(&cluster, "SHOW STATS").unwrap();
    let total = |column: &str| cell(&stats, "app", column).expect("the database is counted");
    // All three are one statement on the server.
    assert_eq!((total("total_client_parse_count"), total("total_bind_count")), ("3".to_owned(), "2".to_owned()));
    assert_eq!(total("total_server_parse_count"), "1");
    raw.query("set application_name = 'billing nightly'; begin");
    let clients = ask(&cluster, "SHOW CLIENTS").unwrap();
    let servers = ask(&cluster, "SHOW SERVERS").unwrap();
    assert_eq!(shown(&servers, "S", "state"), "active");
    assert_eq!(shown(&servers, "S", "prepared_statements"), "1");
    assert_eq!(shown(&clients, "C", "link"), shown(&servers, "S", "ptr"));
    assert_eq!(shown(&servers, "S", "link"), shown(&clients, "C", "ptr"));
    raw.query("commit");
    // The client may have its answer before the session has shown what it was.
    wait_for("the new name", || {
        let clients = ask(&cluster, "SHOW CLIENTS").unwrap();
        (shown(&clients, "C", "application_name") == "billing nightly").then_some(())
    });
}

#[test]
fn connections_that_are_to_be_closed_are_waited_for() {
    let cluster = Cluster::start(0, |raw| {
        raw.console.admin_users = vec!["app".to_owned()];
        raw.console.command_timeout = cluster::config::Span::secs(3);
    });
    let mut held = Raw::login(cluster.port, &[]);
    held.query("begin");
    ask(&cluster, "WAIT_CLOSE").expect("nothing is to be closed");
    ask(&cluster, "RECONNECT app").expect("the database is known");
    let servers = ask(&cluster, "SHOW SERVERS").unwrap();
    assert_eq!(cell(&servers, "S", "close_needed").as_deref(), Some("1"));
    let error = ask(&cluster, "WAIT_CLOSE app").unwrap_err();
    assert!(error.contains("1 server connections were still in use"), "{error}");
    held.query("commit");
    ask(&cluster, "WAIT_CLOSE app").expect("it was closed when it became free");
    let error = ask(&cluster, "SUSPEND").unwrap_err();
    assert!(error.contains("not supported"), "{error}");
}

#[test]
fn orders_at_the_console_are_carried_out() {
    let mut typed = None;
    let mut cluster = Cluster::start(0, |raw| {
        raw.console.admin_users = vec!["app".to_owned()];
        typed = Some(raw.clone());
    });
    let typed = typed.expect("the closure ran");
    cluster.psql("select 1").expect("the endpoint serves");
    assert_eq!(ask(&cluster, "PAUSE app"), Ok(vec![vec!["PAUSE".to_owned()]]));
    let databases = ask(&cluster, "SHOW DATABASES").unwrap();
    assert_eq!(cell(&databases, "app", "paused").as_deref(), Some("1"));
    let waiting = std::thread::scope(|scope| {
        let client = scope.spawn(|| cluster.psql("select 42"));
        wait_for("the statement to wait", || {
            let pools = ask(&cluster, "SHOW POOLS").unwrap();
            (cell(&pools, "app", "cl_waiting")? == "1").then_some(())
        });
        ask(&cluster, "RESUME app").expect("the database is resumed");
        client.join().expect("psql ends")
    });
    assert_eq!(waiting.as_deref(), Ok("42"));
    assert!(ask(&cluster, "RESUME app").unwrap_err().contains("not paused"));
    // By either protocol.
    let mut prepares = Raw::login(cluster.port, &[("database", "pgtenure")]);
    for (order, paused) in [
        ("PAUSE app", "1"),
        ("RESUME app", "0"),
        ("DISABLE app", "0"),
        ("ENABLE app", "0"),
        ("RECONNECT app", "0"),
        ("KILL app", "1"),
        ("RESUME app", "0"),
    ] {
        prepares.write(|out| {
            run(out, order);
            sync(out);
        });
        let tag = order.split(' ').next().expect("it has a word");
        assert_eq!(prepares.until_ready().join(" | "), format!("1 | 2 | C {tag} | Z I"), "{order}");
        let databases = ask(&cluster, "SHOW DATABASES").unwrap();
        assert_eq!(cell(&databases, "app", "paused").as_deref(), Some(paused), "{order}");
    }
    assert!(ask(&cluster, "PAUSE pgtenure").is_err());
    // A name that nobody has heard of is a slip of the fingers.
    for order in ["PAUSE", "KILL", "DISABLE", "RECONNECT", "WAIT_CLOSE"] {
        let said = ask(&cluster, &format!("{order} typo")).unwrap_err();
        assert!(said.contains("no such database: typo"), "{said}");
    }

    ask(&cluster, "DISABLE app").expect("the database is closed to clients");
    assert!(cluster.psql("select 1").unwrap_err().contains("not currently accepting connections"));
    ask(&cluster, "ENABLE app").expect("the database is open again");

    let mut victim = Raw::login(cluster.port, &[]);
    let id = wait_for("the client to be listed", || {
        let clients = ask(&cluster, "SHOW CLIENTS").unwrap();
        cell(&clients, "C", "id")
    });
    ask(&cluster, &format!("KILL_CLIENT {id}")).expect("the client is there");
    let mut last = Vec::new();
    while let Some((_, frame)) = victim.frame() {
        last = frame;
    }
    assert!(String::from_utf8_lossy(&last).contains("57P01"));
    assert!(ask(&cluster, "SET pool_size = 3").unwrap_err().contains("cannot be changed"));

    let mut orders = cluster.handle.as_mut().and_then(|h| h.orders.take()).expect("nobody has it yet");
    let process = std::thread::spawn(move || {
        let mut seen = Vec::new();
        while let Some(order) = orders.blocking_recv() {
            match order {
                ProcessOrder::Reload(answer) if seen.is_empty() => {
                    seen.push(Wait::Nothing);
                    let _ = answer.send(Err(Refused(vec!["x.toml:3: no such key".to_owned()])));
                }
                ProcessOrder::Reload(answer) => {
                    let needs_restart = vec!["proxy.listen".to_owned()];
                    let _ = answer.send(Ok(Reloaded { needs_restart, ..Reloaded::default() }));
                }
                ProcessOrder::Shutdown { wait, answer } => {
                    seen.push(wait);
                    let _ = answer.send(Ok(()));
                    return seen;
                }
            }
        }
        seen
    });
    let refused = ask(&cluster, "RELOAD").unwrap_err();
    assert!(refused.contains("nothing was changed") && refused.contains("x.toml:3: no such key"), "{refused}");
    let output = psql(&cluster, "pgtenure", "RELOAD");
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs a restart: proxy.listen"));
    ask(&cluster, "SHUTDOWN WAIT_FOR_CLIENTS").expect("the process agrees");
    assert_eq!(process.join().expect("the process's part ends"), [Wait::Nothing, Wait::Clients]);

    // A reload takes the rights away, also for who comes next.
    let mut changed = typed;
    changed.console.admin_users.clear();
    let config = proxy::config::check(changed).expect("valid");
    cluster.handle.as_ref().expect("it runs").control().reload(config).expect("nothing to open");
    let denied = wait_for("the rights to be gone", || ask(&cluster, "SHOW POOLS").err());
    assert!(denied.contains("permission denied for database \"pgtenure\""), "{denied} within {DEADLINE:?}");
}

/// A line of /proc/self/status, KiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let value = status.lines().find_map(|l| l.strip_prefix(line)).expect("the kernel tells");
    value.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number")
}

#[test]
fn one_message_of_many_commands_takes_the_memory_of_few() {
    let c = Cluster::start(0, |raw| raw.console.stats_users = vec!["app".to_owned()]);
    let mut client = Raw::login(c.port, &[("database", "pgtenure")]);
    client.write(|out| write_query(out, "show config"));
    let (mut table, mut kind) = (0, b' ');
    while kind != b'Z' {
        let (of, frame) = client.frame().expect("it is answered");
        (kind, table) = (of, if of == b'Z' { table } else { table + frame.len() });
    }
    let (commands, before) = (4000, memory("VmRSS"));
    // From here on the most that there was at a time counts.
    std::fs::write("/proc/self/clear_refs", "5").expect("the kernel resets it");
    client.write(|out| write_query(out, &"show config;".repeat(commands)));
    let (mut bytes, mut chunk) = (0, vec![0; 1 << 16]);
    while bytes < commands * table + "Z....I".len() {
        bytes += client.stream.read(&mut chunk).expect("it is answered whole");
    }
    assert_eq!(bytes, commands * table + "Z....I".len());
    let grown = memory("VmHWM").saturating_sub(before);
    assert!(grown < bytes as u64 / 1024 / 3, "{grown} KiB more for an answer of {} KiB", bytes / 1024);
}
