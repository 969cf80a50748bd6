//! The proxy's decisions against real servers: what is classified as a read runs on a hot standby, and SCRAM works in
//! both directions.

mod oracle;
mod postgres;

use cluster::node::Endpoint;
use cluster::secret::Secret;
use cluster::topology::{Gate, Member, Topology};
use postgres::Postgres;
use proxy::auth::scram::{ClientSide, LoginKeys, MECHANISM, NONCE_LEN, ServerSide, Verifier};
use proxy::catalog::{Catalogs, Settings};
use proxy::reach::Reach;
use proxy::resolve::Resolver;
use proxy::sql::{Access, FunctionTable, HARMLESS, LexRules, Volatility, classify};
use proxy::tls::Contexts;
use proxy::wire::error_response::ClientError;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(60);
const SCHEMA: &str = include_str!("corpus/schema.sql");
const READS: &str = include_str!("corpus/reads.txt");
const WRITES: &str = include_str!("corpus/writes.txt");

fn corpus(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(|l| l.replace("\\n", "\n"))
}

fn member(name: &str, port: u16) -> Member {
    let postgres = Endpoint { host: "127.0.0.1".into(), port };
    Member { node: name.parse().expect("a node name"), postgres, fenced: false, candidate: true, zone: None }
}

fn settings() -> Settings {
    Settings {
        user: "monitor".into(),
        password: Some(Secret::new("watching")),
        connect_timeout: Duration::from_secs(2),
        refresh: Duration::from_secs(60),
        pinning: Arc::default(),
    }
}

fn config(set: impl FnOnce(&mut proxy::config::Raw)) -> Arc<proxy::config::Config> {
    let mut raw = proxy::config::Raw::default();
    set(&mut raw);
    Arc::new(proxy::config::check(raw).expect("a configuration that is right"))
}

/// Catalogs read through these servers, without TLS.
fn catalogs(
    settings: Settings,
    config: watch::Receiver<Arc<proxy::config::Config>>,
    topology: watch::Receiver<Topology>,
    runtime: &tokio::runtime::Runtime,
) -> Catalogs {
    let contexts = watch::channel(Arc::new(Contexts::load(&config.borrow()).expect("no file is named"))).1;
    let resolver = Resolver::system(runtime.handle().clone());
    let reach = Arc::new(Reach::new(resolver, contexts, config.clone()));
    Catalogs::new(settings, config, topology, runtime.handle().clone(), reach)
}

/// Read the catalog of database postgres through the servers at these ports, the primary's first.
fn load(primary: u16, standby: u16) -> Arc<FunctionTable> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let topology = Topology {
        gate: Gate::Open,
        primary: Some(member("n1", primary)),
        standbys: vec![member("n2", standby)],
        ..Topology::unknown()
    };
    let (_sender, receiver) = watch::channel(topology);
    let catalogs = catalogs(settings(), watch::channel(config(|_| {})).1, receiver, &runtime);
    runtime.block_on(async {
        let mut table = catalogs.table("postgres");
        let loaded = tokio::time::timeout(DEADLINE, table.wait_for(|t| t.is_loaded())).await;
        loaded.expect("the catalog is read in time").expect("its task lives").clone()
    })
}

#[test]
fn a_catalog_is_read_again_and_an_unknown_database_stays_unloaded() {
    let primary = Postgres::primary();
    primary.sql("CREATE ROLE monitor LOGIN PASSWORD 'watching'");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // At first only a node that does not answer is known.
    let dead = Topology { primary: Some(member("n1", 1)), ..Topology::unknown() };
    let (topology, receiver) = watch::channel(dead.clone());
    let settings = Settings { refresh: Duration::from_millis(200), ..settings() };
    let (lists, configured) = watch::channel(config(|_| {}));
    let catalogs = catalogs(settings, configured, receiver, &runtime);
    runtime.block_on(async {
        let mut table = catalogs.table("postgres");
        let unknown = catalogs.table("nonexistent");
        let until = async |table: &mut watch::Receiver<Arc<FunctionTable>>, want: fn(&FunctionTable) -> bool| {
            let seen = tokio::time::timeout(DEADLINE, table.wait_for(|t| want(t))).await;
            seen.expect("the catalog is read in time").expect("its task lives");
        };
        assert!(!table.borrow().is_loaded());
        let cannot = async |count: usize| {
            let known = async {
                while catalogs.unread() != count {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(DEADLINE, known).await.expect("it is known which cannot be read");
        };
        cannot(2).await;
        topology.send_replace(Topology { primary: Some(member("n1", primary.port)), ..dead.clone() });
        until(&mut table, FunctionTable::is_loaded).await;
        cannot(1).await;
        assert_eq!(table.borrow().volatility(b"later"), None);
        primary.sql("CREATE FUNCTION later() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'");
        until(&mut table, |t| t.volatility(b"later") == Some(Volatility::Volatile)).await;
        // What is allowed from now on is taken from the configuration at once.
        lists.send_replace(config(|raw| raw.allow_functions = vec!["public.later".to_owned()]));
        until(&mut table, |t| t.volatility(b"later") == Some(Volatility::Stable)).await;
        // A cast that may write, behind the name of its type and of all that has such parts.
        primary.sql(
            "CREATE TYPE token AS (a int); CREATE TYPE made AS (a int); CREATE DOMAIN own AS made;
             CREATE TYPE pair AS (a token, b made); CREATE TYPE pairs AS (a pair[]); CREATE TYPE plain_one AS (a token);
             CREATE FUNCTION makes(token) RETURNS made LANGUAGE sql VOLATILE AS 'SELECT NULL::made';
             CREATE CAST (token AS made) WITH FUNCTION makes(token)",
        );
        until(&mut table, |t| {
            let casts =
                ["x::made", "x::made[]", "x::_made", "x::own", "x::_own", "x::pair", "x::pairs", "'{}'::_pairs"];
            let access = |x| classify(format!("select {x} from t").as_bytes(), t, LexRules::STANDARD).access;
            casts.into_iter().all(|x| access(x) == Access::Write) && access("x::plain_one, y::_token") == Access::Read
        })
        .await;
        assert!(table.borrow().unseen_behind().is_empty());
        // What is read at the primary only keeps its name from standbys, but no other session's temporary table does.
        let dsn = format!("host={} port={} user=postgres", primary.socket_dir().display(), primary.port);
        let (other, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await.expect("a login");
        tokio::spawn(connection);
        let both = "CREATE TEMPORARY TABLE draft (id serial); CREATE UNLOGGED TABLE unsafe_one (id serial)";
        other.batch_execute(both).await.expect("both are made");
        fn reads(name: &str, t: &FunctionTable) -> bool {
            classify(format!("select {name} from t").as_bytes(), t, LexRules::STANDARD).access == Access::Read
        }
        until(&mut table, |t| !reads("unsafe_one", t) && !reads("unsafe_one_id_seq", t)).await;
        assert!(reads("draft", &table.borrow()) && reads("draft_id_seq", &table.borrow()));
        // One to a type that is not written as the catalog has it.
        let cast = |t: &FunctionTable| classify(b"select x::integer from t", t, LexRules::STANDARD).access;
        assert_eq!(cast(&table.borrow()), Access::Read);
        primary.sql(
            "CREATE FUNCTION worth(token) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
             CREATE CAST (token AS integer) WITH FUNCTION worth(token)",
        );
        until(&mut table, |t| classify(b"select x::integer from t", t, LexRules::STANDARD).access == Access::Write)
            .await;
        assert!(table.borrow().unseen_behind().iter().eq(["cast to int4 by worth"]));
        // A server that goes away takes nothing back.
        topology.send_replace(dead);
        drop(primary);
        assert!(table.borrow().is_loaded() && !unknown.borrow().is_loaded());
        // The task ends with its last listener; who comes later starts anew.
        drop(table);
        let gone = async {
            while catalogs.table("postgres").borrow().is_loaded() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, gone).await.expect("the task ends");
    });
}

#[test]
fn what_is_classified_as_a_read_runs_on_a_standby() {
    let primary = Postgres::primary();
    primary.sql(SCHEMA);
    primary.sql("CREATE ROLE monitor LOGIN PASSWORD 'watching'; GRANT pg_monitor TO monitor");
    let standby = primary.standby("n2");
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    standby.await_sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");

    let table = load(primary.port, standby.port);
    let access = |sql: &str| classify(sql.as_bytes(), &table, LexRules::STANDARD).access;
    let mut wrong: Vec<String> = corpus(WRITES).filter(|sql| access(sql) != Access::Write).collect();
    for sql in corpus(READS) {
        let ran = standby.psql(&["-c", &sql]);
        // A server may be built without it; what it would answer is the same everywhere.
        let lacks_xml = String::from_utf8_lossy(&ran.stderr).contains("built with libxml");
        if access(&sql) != Access::Read || !ran.status.success() && !lacks_xml {
            wrong.push(format!("{sql}: {}", String::from_utf8_lossy(&ran.stderr)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    oracle::check(&primary, &standby, &table);
    every_function_called_a_read_is_not_volatile(&primary, &table);
    every_function_without_arguments_called_a_read_runs(&standby, &table);
    no_view_of_the_servers_own_that_calls_a_volatile_function_is_a_read(&primary, &table);
    no_random_text_called_a_read_takes_a_transaction_id(&primary, &table);

    // A primary that does not answer: the standby's catalog says the same.
    drop(primary);
    let again = load(1, standby.port);
    assert_eq!(again.len(), table.len());
}

#[test]
fn what_may_write_in_spite_of_its_label_is_found_behind_what_calls_it() {
    let primary = Postgres::primary();
    primary.sql(
        "CREATE ROLE monitor LOGIN PASSWORD 'watching'; CREATE TABLE w (a int); CREATE SEQUENCE s;
         CREATE FUNCTION add_one(int) RETURNS int LANGUAGE sql AS 'INSERT INTO w VALUES ($1) RETURNING a';
         CREATE FUNCTION \"Odd one\"() RETURNS int LANGUAGE sql AS 'SELECT add_one(1)';
         CREATE FUNCTION calls_odd() RETURNS int LANGUAGE sql STABLE AS 'SELECT \"Odd one\"()';
         CREATE FUNCTION step(int, int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN add_one($2); END';
         CREATE AGGREGATE steps(int) (SFUNC = step, STYPE = int);
         CREATE FUNCTION adds(int, int) RETURNS int LANGUAGE sql AS 'SELECT add_one($2)';
         CREATE AGGREGATE all_added(int) (SFUNC = adds, STYPE = int);
         CREATE FUNCTION calls_aggregate() RETURNS int LANGUAGE sql STABLE AS 'SELECT all_added(a) FROM w';
         CREATE VIEW adding AS SELECT add_one(1) AS a;
         CREATE FUNCTION calls_view() RETURNS int LANGUAGE sql STABLE AS 'SELECT a FROM adding';
         CREATE VIEW drawing AS SELECT nextval('s') AS n;
         CREATE FUNCTION calls_drawing() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT n FROM drawing';
         CREATE FUNCTION outer_one() RETURNS int LANGUAGE sql STABLE AS 'SELECT calls_view()';
         CREATE FUNCTION two() RETURNS int LANGUAGE sql STABLE AS 'SELECT 2'",
    );
    let table = load(primary.port, 1);
    for sql in [
        "select calls_odd()",
        "select steps(a) from w",
        "select calls_aggregate()",
        "select calls_view()",
        "select calls_drawing()",
        "select outer_one()",
    ] {
        let access = classify(sql.as_bytes(), &table, LexRules::STANDARD).access;
        assert!(access == Access::Write || table.doubtful().in_text(sql.as_bytes()), "{sql}");
    }
    for sql in ["select two()", "select a from w", "select abs(1)"] {
        assert!(!table.doubtful().in_text(sql.as_bytes()), "{sql}");
    }
}

/// Against the server's own words: no function that it calls volatile may be called by a read, but for the few that
/// are known to be harmless.
fn every_function_called_a_read_is_not_volatile(primary: &Postgres, table: &FunctionTable) {
    let names =
        primary.sql("select distinct proname from pg_proc where provolatile = 'v' and proname ~ '^[a-z_0-9]+$'");
    let reads: Vec<_> = names
        .lines()
        .filter(|name| {
            let sql = format!("select pg_catalog.{name}()");
            classify(sql.as_bytes(), table, LexRules::STANDARD).access == Access::Read
        })
        .collect();
    let mut reads: Vec<_> = reads;
    reads.sort_unstable();
    // Which of them there are depends on the version.
    let mut harmless: Vec<_> = names.lines().filter(|name| HARMLESS.contains(name)).collect();
    harmless.sort_unstable();
    assert!(harmless.len() >= 7, "{harmless:?}");
    assert_eq!(reads, harmless);
}

/// Views that come with the server are no part of what is read of a database's views: their names are known.
fn no_view_of_the_servers_own_that_calls_a_volatile_function_is_a_read(primary: &Postgres, table: &FunctionTable) {
    let views = primary.sql(
        "select relname from pg_class where relkind = 'v' and relnamespace = 'pg_catalog'::regnamespace
         and pg_get_viewdef(oid) ~ (select '\\m(' || string_agg(distinct proname, '|') || ')\\(' from pg_proc
                                    where provolatile = 'v' and pronamespace = 'pg_catalog'::regnamespace)",
    );
    let access = |name: &&str| classify(format!("select * from {name}").as_bytes(), table, LexRules::STANDARD).access;
    let reads: Vec<_> = views.lines().filter(|name| access(name) == Access::Read).collect();
    assert!(views.lines().count() > 5 && reads.is_empty(), "{reads:?} of {views}");
}

/// Of the functions that can be called without arguments, those taken for reads do not ask for a primary.
fn every_function_without_arguments_called_a_read_runs(standby: &Postgres, table: &FunctionTable) {
    let names = standby.sql(
        "select proname from pg_proc where pronargs = 0 and prokind = 'f' and pronamespace = 'pg_catalog'::regnamespace
         and prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)",
    );
    let mut tried = 0;
    for name in names.lines() {
        let sql = format!("select pg_catalog.\"{name}\"()");
        if classify(sql.as_bytes(), table, LexRules::STANDARD).access == Access::Read {
            tried += 1;
            let ran = standby.psql(&["-v", "VERBOSITY=sqlstate", "-c", &sql]);
            let stderr = String::from_utf8_lossy(&ran.stderr);
            let asks_for_primary = ["25006", "55000", "0A000"].iter().any(|code| stderr.contains(code));
            assert!(!asks_for_primary, "{sql}: {stderr}");
        }
    }
    assert!(tried > 20, "only {tried} functions were tried");
}

/// The server itself as the judge: texts put together at random, of pieces that quote, comment and write, are run when
/// they are taken for reads. None may have the server take a transaction id.
fn no_random_text_called_a_read_takes_a_transaction_id(primary: &Postgres, table: &FunctionTable) {
    const WRITES: [&str; 3] =
        ["; insert into scratch values (1) ;", ", txid_current() ", "; select txid_current() ; --"];
    const QUOTING: [&str; 18] = [
        "'",
        "'",
        "''",
        "\"",
        "\"\"",
        "$$",
        "$a$",
        "E'",
        "E'a'\n'b\\'",
        "e'\\'",
        "\\'",
        "U&'x'",
        "x'",
        "--",
        "\n",
        "/*",
        "*/",
        " 1",
    ];
    const PIECES: [&str; 26] = [
        "delete from t",
        "insert into scratch values (1)",
        "nextval('s')",
        "txid_current()",
        "'",
        "\"",
        "$$",
        "--",
        "\n",
        "/*",
        "*/",
        ";",
        "select 1",
        "(",
        ")",
        ",",
        "1",
        "a",
        "with x as (",
        "from t",
        "for update",
        "into y",
        "writing_fn(-2)",
        "as f",
        "table t",
        "explain analyze",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let seed: u64 = rand::random();
    let mut state = seed | 1;
    let mut next = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    runtime.block_on(async {
        let mut config = tokio_postgres::Config::new();
        config.host_path(primary.socket_dir()).port(primary.port).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("the primary answers");
        tokio::spawn(connection);
        let next_xid = async || {
            let row = client.query_one("select pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await;
            row.expect("the primary answers").get::<_, String>(0)
        };
        // Autovacuum takes transaction ids of its own.
        client.batch_execute("alter system set autovacuum = off").await.expect("a superuser may");
        client.batch_execute("select pg_reload_conf()").await.expect("a superuser may");
        let (mut reads, mut ran) = (0, 0);
        let mut before = next_xid().await;
        for turn in 0..60_000 {
            // Either anything at all, or a write between pieces that quote: what one reader takes for the inside of a
            // literal and the other does not.
            let (pieces, hidden) =
                if next(2) == 0 { (&PIECES[..], "") } else { (&QUOTING[..], WRITES[next(WRITES.len())]) };
            let mut soup = |length: usize| -> String {
                (0..length).map(|_| pieces[next(pieces.len())].to_owned() + ["", " "][next(2)]).collect()
            };
            let (before_it, after_it) = (soup(1 + turn % 5), soup(turn / 5 % 4));
            let sql = format!("select {before_it}{hidden}{after_it}");
            if classify(sql.as_bytes(), table, LexRules::STANDARD).access == Access::Read {
                reads += 1;
                ran += u32::from(client.simple_query(&sql).await.is_ok());
                let after = next_xid().await;
                assert_eq!(after, before, "seed {seed}: {sql:?} took a transaction id");
                before = after;
            }
        }
        assert!(
            reads > 500 && ran > 100,
            "seed {seed}: only {reads} taken for reads and {ran} understood by the server"
        );
    });
}

/// The keys that a login with a password leaves, without any server.
fn keys_of_login(user: &str, password: &str, verifier: &Verifier) -> LoginKeys {
    let mut server = ServerSide::new(verifier.clone(), [1; NONCE_LEN]);
    let mut client = ClientSide::with_password(user, password, [2; NONCE_LEN]);
    let first = server.first(client.mechanism().as_bytes(), &client.first()).expect("the first message is right");
    let last = client.respond(&first).expect("the server's is too");
    server.finish(&last).expect("the password is right").keys
}

#[test]
fn keys_taken_from_a_clients_proof_log_in_to_postgresql() {
    let primary = Postgres::primary();
    primary.sql("CREATE ROLE alice LOGIN PASSWORD 'sécret'");
    let verifier: Verifier = primary.sql("select rolpassword from pg_authid where rolname = 'alice'").parse().unwrap();
    let keys = keys_of_login("alice", "sécret", &verifier);
    let mut exchange = ClientSide::with_keys("alice", keys.clone(), [3; NONCE_LEN]);
    assert_eq!(log_in(primary.port, "alice", &mut exchange).unwrap(), "logged in");
    let mut exchange = ClientSide::with_password("alice", "sécret", [4; NONCE_LEN]);
    assert_eq!(log_in(primary.port, "alice", &mut exchange).unwrap(), "logged in");
    let mut exchange = ClientSide::with_password("alice", "wrong", [5; NONCE_LEN]);
    assert_eq!(log_in(primary.port, "alice", &mut exchange).unwrap(), "28P01");

    primary.sql("ALTER ROLE alice PASSWORD 'sécret'");
    let mut exchange = ClientSide::with_keys("alice", keys, [6; NONCE_LEN]);
    let error = log_in(primary.port, "alice", &mut exchange).unwrap_err().to_string();
    assert_eq!(error, "the userlist's verifier for user \"alice\" differs from the server's: the salt");
    let made = Verifier::from_password("sécret", [9; 16], 4096);
    primary.sql(&format!("ALTER ROLE alice PASSWORD '{made}'"));
    let mut exchange = ClientSide::with_keys("alice", keys_of_login("alice", "sécret", &made), [7; NONCE_LEN]);
    assert_eq!(log_in(primary.port, "alice", &mut exchange).unwrap(), "logged in");
}

/// Log in over TCP; `logged in`, or the SQLSTATE of the refusal.
fn log_in(port: u16, user: &str, exchange: &mut ClientSide) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let body = format!("user\0{user}\0database\0postgres\0\0");
    let length = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &[0, 3, 0, 0], body.as_bytes()].concat())?;
    loop {
        let (kind, body) = read_message(&mut stream)?;
        let code = body.get(..4).map_or(0, |c| u32::from_be_bytes(c.try_into().unwrap()));
        match (kind, code) {
            (b'R', 10) => {
                let first = exchange.first();
                let length = u32::try_from(first.len()).unwrap().to_be_bytes();
                let body = [MECHANISM.as_bytes(), b"\0", &length, &first].concat();
                write_message(&mut stream, b'p', &body)?;
            }
            (b'R', 11) => {
                let reply = exchange.respond(&body[4..]).map_err(io::Error::other)?;
                write_message(&mut stream, b'p', &reply)?;
            }
            (b'R', 12) => exchange.finish(&body[4..]).map_err(io::Error::other)?,
            (b'R', 0) => return Ok("logged in".into()),
            (b'E', _) => {
                let field = body.split(|b| *b == 0).find(|f| f.first() == Some(&b'C'));
                return Ok(String::from_utf8_lossy(&field.expect("every error has a code")[1..]).into_owned());
            }
            (kind, code) => panic!("unexpected message {:?} {code}", char::from(kind)),
        }
    }
}

fn read_message(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body)?;
    Ok((head[0], body))
}

fn write_message(stream: &mut TcpStream, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&[&[kind], &length[..], body].concat())
}

/// A server that lets one client log in and answers one query.
fn serve_one(listener: &TcpListener, verifier: &Verifier) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    stream.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4])?;
    write_message(&mut stream, b'R', &[&10u32.to_be_bytes()[..], MECHANISM.as_bytes(), b"\0\0"].concat())?;
    let mut exchange = ServerSide::new(verifier.clone(), [8; NONCE_LEN]);
    let (_, initial) = read_message(&mut stream)?;
    let first = exchange.first(MECHANISM.as_bytes(), &initial[MECHANISM.len() + 5..]).expect("libpq speaks SCRAM");
    write_message(&mut stream, b'R', &[&11u32.to_be_bytes()[..], &first].concat())?;
    let (_, last) = read_message(&mut stream)?;
    let Ok(accepted) = exchange.finish(&last) else {
        let mut out = Vec::new();
        ClientError::BadPassword { user: "alice".into() }.encode(&mut out);
        return stream.write_all(&out);
    };
    write_message(&mut stream, b'R', &[&12u32.to_be_bytes()[..], &accepted.server_final].concat())?;
    write_message(&mut stream, b'R', &0u32.to_be_bytes())?;
    write_message(&mut stream, b'Z', b"I")?;
    let (kind, _) = read_message(&mut stream)?;
    assert_eq!(kind, b'Q');
    let mut out = Vec::new();
    ClientError::Unsupported { feature: "everything" }.encode(&mut out);
    stream.write_all(&out)?;
    write_message(&mut stream, b'Z', b"I")?;
    // psql says goodbye before it closes.
    read_message(&mut stream).map(|_| ())
}

#[test]
fn psql_logs_in_to_us_and_understands_our_errors() {
    let verifier = Verifier::from_password("sécret", [9; 16], 4096);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let psql = |password: &str| -> Output {
        std::thread::scope(|scope| {
            let server = scope.spawn(|| serve_one(&listener, &verifier));
            let mut psql = Command::new("psql");
            psql.args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "alice", "-d", "x", "-c", "select 1"]);
            psql.envs([("PGPASSWORD", password), ("PGSSLMODE", "disable"), ("PGGSSENCMODE", "disable")]);
            psql.envs([("PGCONNECT_TIMEOUT", "30"), ("LC_ALL", "C.UTF-8")]);
            let output = psql.output().expect("psql starts");
            server.join().expect("the server does not panic").expect("the conversation ends well");
            output
        })
    };
    let right = psql("sécret");
    assert_eq!(String::from_utf8_lossy(&right.stderr).trim(), "ERROR:  everything is not supported by this proxy");
    let wrong = psql("secret");
    let stderr = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(stderr.contains("FATAL:  password authentication failed for user \"alice\""), "{stderr}");
}
