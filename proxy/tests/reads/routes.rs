//! Seeing why: what an operator is told of a statement, what its session is told of it, and what was counted agree.

use super::common::raw::{Raw, value};
use super::common::{Cluster, wait_for};
use proxy::config::PoolMode;

/// Reads and writes of all kinds that a session can begin with. None of them may depend on another.
const STATEMENTS: [&str; 50] = [
    "select 1",
    "select n from seen",
    "SELECT count(*), max(n) FROM seen WHERE n < 1_000",
    "table seen",
    "values (1), (2)",
    "with x (n) as (select n from seen) select * from x",
    "select * from (values (1)) v (n)",
    "select U&'\\0061' uescape '!'",
    "select now(), random()",
    "select 1; select 2; show work_mem",
    "select /* for update */ 'insert into seen'",
    "copy seen to stdout",
    "copy (select n from seen) to stdout",
    "show server_version",
    "show transaction_read_only",
    "explain select n from seen",
    "explain analyze select n from seen",
    "explain select nextval('s')",
    "explain analyze select nextval('s')",
    "explain delete from seen",
    "select nextval('s')",
    "select last_value from s",
    "select n from seen for update",
    "select n from seen for share",
    "select * into other from seen",
    "select nobody(1)",
    "select notes(1)",
    "select a from scratch",
    "select * from through",
    "select pg_advisory_xact_lock(1)",
    "select current_setting('transaction_read_only')",
    "select current_setting('work_mem')",
    "select pg_is_in_recovery()",
    "select * from pg_stat_activity",
    "insert into seen values (1)",
    "with x as (delete from seen returning n) select * from x",
    "select 1; update seen set n = n",
    "begin",
    "begin read only",
    "start transaction isolation level repeatable read, read only",
    "begin isolation level serializable read only",
    "set work_mem = '5MB'",
    "prepare p as select 1",
    "execute p",
    "listen a",
    "do $$ begin perform 1; end $$",
    "/* pgtenure: read_from=primary */ select 1",
    "/* pgtenure: consistency=eventual */ select 1; select 2",
    "select 1; /* pgtenure: read_from=primary */ select 2",
    "",
];

#[test]
fn what_is_said_before_and_after_a_statement_agrees_and_is_what_was_counted() {
    let c = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(3600);
        raw.reads.hints = true;
    });
    c.nodes[0].psql(
        "create table seen(n int); insert into seen values (0); create sequence s; create unlogged table scratch(a int);
         create function notes(int) returns int language sql as 'select nextval(''s'')::int';
         create view through as select notes(1); grant all on all tables in schema public to app;
         grant all on sequence s to app",
    );
    c.nodes[0].psql("create function last_one() returns int language sql stable as 'select 1'");
    // A standby that does not know it refuses it, and it is sent, and counted, once more.
    c.replicate();
    let known = "select last_one(), current_setting('cluster_name')";
    let mut sent = 0;
    wait_for("the standby and the catalog to be known", || {
        sent += 1;
        (value(&mut Raw::login(c.port, &[]), known) == "1 n2").then_some(())
    });
    let control = c.handle.as_ref().expect("it runs").control();
    let asked = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let counted = || c.counter("pgtenure_proxy_queries_total");
    let mut reasons = std::collections::BTreeSet::new();
    for sql in STATEMENTS {
        let answer = asked.block_on(control.explain("app", "app", sql.as_bytes())).expect("an answer");
        let target = answer.node.as_ref().map_or_else(|| "primary n1".to_owned(), |node| format!("standby {node}"));
        let told = format!("{target}: {}", answer.reason);
        // A session of its own: what another one has written or read is no matter to it.
        let mut session = Raw::login(c.port, &[]);
        session.query(sql);
        sent += 2;
        let route = value(&mut session, "show pgtenure.last_route");
        assert!(route.starts_with(&format!("{told}: ")), "{sql}: {route}, but told {answer:?}");
        assert_eq!(answer.meaning.class == "read", answer.reason != "write", "{sql}: {answer:?}");
        reasons.insert(answer.reason);
    }
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), ["as_asked", "fresh", "invalid_setting", "write"]);
    // Each statement and each SHOW, by whatever target and reason.
    wait_for("all statements to be counted", || (counted() >= f64::from(sent)).then_some(()));
    assert_eq!(counted(), f64::from(sent));
}

/// The same where what a session may be left with is not known, and where it keeps its server.
#[test]
fn what_is_said_of_a_statement_agrees_with_what_becomes_of_it_whatever_is_known_and_whoever_keeps_its_server() {
    // It sets something wherever two of a type are compared.
    const HIDES: &str = "create type pair as (a int, b int);
        create function same(pair, pair) returns bool stable language plpgsql as
            $$ begin perform set_config('app.who', 'same', false); return true; end $$;
        create operator = (leftarg = pair, rightarg = pair, function = same)";
    type Told = (&'static str, &'static str, &'static str);
    const UNSEEN: [Told; 4] = [
        ("select 1", "unseen", "primary n1: write"),
        ("show work_mem", "proven_read", "standby n2: fresh"),
        ("begin read only", "verb", "standby n2: fresh"),
        ("", "proven_read", "standby n2: fresh"),
    ];
    const KEPT: [Told; 4] = [
        ("select 1", "proven_read", "standby n2: fresh"),
        ("begin read only", "pool_mode", "primary n1: write"),
        ("begin isolation level repeatable read, read only", "pool_mode", "primary n1: write"),
        ("begin", "verb", "primary n1: write"),
    ];
    let asked = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for (monitor, mode, schema, told) in [
        ("nobody", PoolMode::Transaction, "", &UNSEEN),
        ("postgres", PoolMode::Transaction, HIDES, &UNSEEN),
        ("postgres", PoolMode::Session, "", &KEPT),
    ] {
        let c = Cluster::start(1, |raw| {
            raw.workers = 1;
            raw.max_replay_lag = cluster::config::Span::secs(3600);
            raw.monitor_user = monitor.to_owned();
            raw.pools.pool_mode = mode;
        });
        if !schema.is_empty() {
            c.nodes[0].psql(schema);
        }
        c.replicate();
        let control = c.handle.as_ref().expect("it runs").control();
        let explain = |sql: &str| asked.block_on(control.explain("app", "app", sql.as_bytes())).expect("an answer");
        wait_for("the standby to be known", || (explain("").node.as_deref() == Some("n2")).then_some(()));
        for (sql, decided_by, route) in told {
            let answer = explain(sql);
            let node = answer.node.as_ref().map_or_else(|| "primary n1".to_owned(), |node| format!("standby {node}"));
            assert_eq!(format!("{node}: {}", answer.reason), *route, "{sql}: {answer:?}");
            assert_eq!(answer.meaning.decided_by, *decided_by, "{sql}: {answer:?}");
            assert_eq!(answer.meaning.class == "read", answer.reason != "write", "{sql}: {answer:?}");
            let mut session = Raw::login(c.port, &[]);
            session.query(sql);
            let went = value(&mut session, "show pgtenure.last_route");
            assert!(went.starts_with(&format!("{route}: ")), "{sql}: {went}, but told {answer:?}");
        }
    }
}

/// What is logged, for a test to read.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The lines of routed statements.
    fn routed(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().expect("no writer panics").clone()).expect("logs are UTF-8");
        text.lines().filter(|line| line.contains("statement routed")).map(str::to_owned).collect()
    }
}

#[test]
fn one_in_so_many_routes_is_logged_and_no_text_of_it() {
    let lines = Lines::default();
    let to = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone());
    // Workers are threads of their own: nothing less reaches them.
    subscriber.try_init().expect("no other test of this program logs");
    let c = Cluster::start(1, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(3600);
        raw.reads.log_one_in = 4;
    });
    let mut session = Raw::login(c.port, &[]);
    wait_for("the standby to serve reads", || {
        (value(&mut session, "select current_setting('cluster_name')") == "n2").then_some(())
    });
    // Some of the four may have been counted before.
    let before = lines.routed().len();
    for secret in 0..12 {
        value(&mut session, &format!("select 'secret {secret}'"));
    }
    let reads = lines.routed().split_off(before);
    assert_eq!(reads.len(), 3, "{reads:?}");
    for line in &reads {
        assert!(
            ["node=n2", "role=Standby", "reason=\"fresh\"", "database=\"app\""].iter().all(|w| line.contains(w)),
            "{line}"
        );
        assert!(!line.contains("secret"), "{line}");
    }
    let shape = |line: &String| line.split("shapes=").nth(1).map(str::to_owned);
    assert!(reads.iter().all(|line| shape(line) == shape(&reads[0]) && shape(line).is_some()), "{reads:?}");
    for _ in 0..4 {
        session.query("create table if not exists t()");
    }
    let writes = lines.routed().split_off(before + 3);
    assert_eq!(writes.len(), 1, "{writes:?}");
    assert!(writes[0].contains("node=n1") && writes[0].contains("reason=\"write\""), "{writes:?}");
    assert_ne!(shape(&writes[0]), shape(&reads[0]));
}

#[test]
fn a_standby_with_settings_of_its_own_reads_dates_as_the_client_was_told() {
    let cluster = Cluster::start(1, |raw| raw.workers = 1);
    let standby = &cluster.nodes[1];
    for set in ["timezone = 'Asia/Tokyo'", "datestyle = 'SQL, DMY'", "intervalstyle = 'iso_8601'"] {
        standby.psql(&format!("alter system set {set}"));
    }
    standby.psql("select pg_reload_conf()");
    wait_for("the standby's own settings", || (standby.psql("show timezone") == "Asia/Tokyo").then_some(()));
    let text = "'02/03/2026'::date, interval '1 day', '2026-01-01 00:00Z'::timestamptz";
    let direct = |node: usize| value(&mut Raw::login(cluster.nodes[node].port, &[]), &format!("select {text}"));
    let read = format!("select current_setting('cluster_name'), {text}");
    assert_ne!(direct(0), direct(1));
    for parameters in [&[][..], &[("timezone", "America/Lima")]] {
        let mut client = Raw::login(cluster.port, parameters);
        let told = value(&mut Raw::login(cluster.nodes[0].port, parameters), &format!("select {text}"));
        let at_standby =
            wait_for("a read at the standby", || value(&mut client, &read).strip_prefix("n2 ").map(str::to_owned));
        assert_eq!(at_standby, told, "{parameters:?}");
    }
}
