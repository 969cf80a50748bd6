//! Who is let in, and how the proxy logs in to servers on whose behalf.

mod cancel_keys;
#[path = "../common/mod.rs"]
mod common;
mod doors;
mod identity;
mod impostor;
mod tls;

use cluster::config::Span;
use cluster::topology::{Closed, Gate};
use common::raw::Raw;
use common::{Cluster, Node, PASSWORD};
use proxy::auth::md5::Md5Hash;
use proxy::pool::{Order, Scope};
use proxy::wire::codec::{cstring, message};
use proxy::wire::lossless;
use proxy::wire::startup::write_startup;
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A cluster with one node whose rules for `app` are `hba`, and a proxy with `rules` and the userlist `users`.
fn cluster(hba: &str, rules: &[&str], users: &str, set: impl FnOnce(&mut proxy::config::Raw)) -> Cluster {
    let cluster = Cluster::start(0, |raw| {
        raw.auth.rules = rules.iter().map(|&r| r.to_owned()).collect();
        std::fs::write(&raw.userlist, users).expect("scratch is writable");
        set(raw);
    });
    let text = format!("host all app 127.0.0.1/32 {hba}\nhost all all 127.0.0.1/32 trust\n");
    std::fs::write(cluster.nodes[0].data.join("pg_hba.conf"), text).expect("the data directory is writable");
    cluster.nodes[0].psql("select pg_reload_conf()");
    common::wait_for("the server to have read its rules", || {
        let rules = cluster.nodes[0].psql("select auth_method from pg_hba_file_rules order by line_number limit 1");
        (rules == hba).then_some(())
    });
    cluster
}

fn plain() -> String {
    format!("\"app\" \"{PASSWORD}\"\n")
}

/// All connections to servers are made anew.
fn reconnect(cluster: &Cluster) {
    let order = cluster.handle.as_ref().expect("it runs").order(Order::Reconnect, Scope::All, common::DEADLINE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(order).expect("nobody is in a transaction");
}

fn set_md5(node: &Node) {
    node.psql(&format!("set password_encryption = 'md5'; alter role app password '{PASSWORD}'"));
}

#[test]
fn a_client_is_trusted_where_the_rules_and_the_server_trust_it() {
    let rules = ["host app app 127.0.0.1/32 trust", "host latin all 127.0.0.1/32 trust"];
    let cluster = cluster("trust", &rules, "", |_| {});
    assert_eq!(cluster.psql("select current_user"), Ok("app".to_owned()));
    let refused = cluster.client("psql").args(["-X", "-d", "postgres", "-c", "select 1"]).output().expect("psql runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let want = "no proxy.auth.rules entry for host \"127.0.0.1\", user \"app\", database \"postgres\", no encryption";
    assert!(said.contains(want), "{said}");
    // Names and options are bytes, in no encoding yet.
    cluster.nodes[0].psql("create database latin template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'");
    let mut admin = Raw::login(cluster.nodes[0].port, &[("user", "postgres"), ("database", "latin")]);
    admin.write(|out| message(out, b'Q', |b| cstring(b, b"create role \"gr\xfcn\" login")));
    assert_eq!(admin.until_ready(), ["C CREATE ROLE", "Z I"]);
    let (user, options) = (lossless::keep(b"gr\xfcn"), lossless::keep(b"-c app.x=\xe4\xff"));
    let mut odd = Raw::login(cluster.port, &[("user", &user), ("database", "latin"), ("options", &options)]);
    let asked =
        "select encode(convert_to(v, 'LATIN1'), 'hex') from unnest(array[current_user, current_setting('app.x')]) v";
    assert_eq!(odd.query(asked), ["T", "D 6772fc6e", "D e4ff", "C SELECT 2", "Z I"]);
    assert!(odd.settings.contains(&("session_authorization".to_owned(), user.into_owned())), "{:?}", odd.settings);
}

#[test]
fn the_first_rule_decides_and_may_reject() {
    let rules = ["host app app 127.0.0.0/8 reject", "host all all all trust"];
    let cluster = cluster("trust", &rules, "", |_| {});
    let said = cluster.psql("select 1").expect_err("a rule rejects it");
    assert!(said.contains("proxy.auth.rules rejects connection for host \"127.0.0.1\", user \"app\""), "{said}");
}

#[test]
fn a_trusted_client_reaches_a_server_that_asks_for_scram_by_the_configured_password() {
    let mut path = None;
    let cluster =
        cluster("scram-sha-256", &["host all all all trust"], &plain(), |raw| path = Some(raw.userlist.clone()));
    assert_eq!(cluster.psql("select current_user"), Ok("app".to_owned()));
    // Who comes later with what the server does not take changes nothing for those who are there.
    let mut before = Raw::login(cluster.port, &[]);
    std::fs::write(path.expect("the harness names it"), "\"app\" \"another\"\n").expect("scratch is writable");
    common::wait_for("the new userlist to be used", || {
        reconnect(&cluster);
        cluster.psql("select 1").is_err().then_some(())
    });
    let mut behind = Raw::login(cluster.port, &[]);
    for client in [&mut before, &mut behind] {
        reconnect(&cluster);
        assert_eq!(client.query("select current_user"), ["T", "D app", "C SELECT 1", "Z I"]);
    }
}

#[test]
fn without_anything_to_answer_a_servers_challenge_the_client_is_told_what_lacks() {
    let cluster = cluster("scram-sha-256", &["host all all all trust"], "", |_| {});
    let said = cluster.psql("select 1").expect_err("nothing answers the server");
    assert!(said.contains("could not log in to the server") && said.contains("asks for scram-sha-256"), "{said}");
}

#[test]
fn a_plain_text_user_logs_in_by_scram_here_and_there_although_the_salts_differ() {
    let cluster = cluster("scram-sha-256", &["host all all all scram-sha-256"], &plain(), |_| {});
    assert_eq!(cluster.psql("select current_user"), Ok("app".to_owned()));
    let mut wrong = cluster.client("psql");
    let output = wrong.env("PGPASSWORD", "wrong").args(["-X", "-c", "select 1"]).output().expect("psql runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("password authentication failed for user \"app\""), "{said}");
}

#[test]
fn an_md5_hash_logs_in_here_and_at_the_server_where_that_is_allowed() {
    let hash = Md5Hash::of("app", PASSWORD).answer([0; 4]);
    assert!(hash.starts_with("md5"));
    let cluster = cluster("md5", &["host all all all md5"], &plain(), |raw| raw.auth.server_md5 = true);
    set_md5(&cluster.nodes[0]);
    assert_eq!(cluster.psql("select current_user"), Ok("app".to_owned()));
    let stored = cluster.nodes[0].psql("select rolpassword from pg_authid where rolname = 'app'");
    let list = format!("\"app\" \"{stored}\"\n");
    drop(cluster);
    // The hash alone is enough, on both sides.
    let cluster = self::cluster("md5", &["host all all all md5"], &list, |raw| raw.auth.server_md5 = true);
    set_md5(&cluster.nodes[0]);
    assert_eq!(cluster.psql("select current_user"), Ok("app".to_owned()));
}

#[test]
fn an_md5_challenge_is_not_answered_unless_configured() {
    let cluster = cluster("md5", &["host all all all md5"], &plain(), |_| {});
    set_md5(&cluster.nodes[0]);
    let said = cluster.psql("select 1").expect_err("the server's method is not allowed");
    assert!(said.contains("proxy.auth.server_md5"), "{said}");
}

#[test]
fn a_password_in_clear_is_checked_against_a_verifier_and_passed_on_where_allowed() {
    let verifier = proxy::auth::scram::Verifier::from_password(PASSWORD, [4; 16], 4096);
    let list = proxy::auth::userlist::line("app", &verifier);
    let rules = ["host all all 127.0.0.1/32 password"];
    let cluster = cluster("password", &rules, &list, |raw| raw.auth.server_password = true);
    assert_eq!(cluster.psql("select current_user"), Ok("app".to_owned()));
    // A token may be long.
    for password in ["wrong".to_owned(), "x".repeat(60_000)] {
        let mut wrong = cluster.client("psql");
        let output = wrong.env("PGPASSWORD", password).args(["-X", "-c", "select 1"]).output().expect("psql runs");
        assert!(String::from_utf8_lossy(&output.stderr).contains("password authentication failed"), "{output:?}");
    }
}

#[test]
fn the_servers_userlist_goes_before_the_clients_login() {
    // The client's verifier has another salt than the server's: its keys alone would not log in.
    let verifier = proxy::auth::scram::Verifier::from_password("another", [4; 16], 4096);
    let list = proxy::auth::userlist::line("app", &verifier);
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let path = scratch.path().join("servers.txt");
    std::fs::write(&path, plain()).expect("scratch is writable");
    let cluster = cluster("scram-sha-256", &["host all all all scram-sha-256"], &list, |raw| {
        raw.auth.server_userlist = Some(path);
    });
    let mut psql = cluster.client("psql");
    let output = psql.env("PGPASSWORD", "another").args(["-XAtc", "select current_user"]).output().expect("psql runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "app", "{output:?}");
}

#[test]
fn md5_asks_for_scram_where_the_secret_is_a_verifier() {
    let cluster = Cluster::start(0, |raw| raw.auth.rules = vec!["host all all all md5".to_owned()]);
    let mut raw = Raw::login(cluster.port, &[]);
    assert_eq!(raw.query("select current_user")[1], "D app");
}

const LOOKUP: &str = "select rolname::text, rolpassword from pg_catalog.pg_authid where rolname = $1";

#[test]
fn a_user_that_only_the_database_knows_is_looked_up_and_remembered_through_a_failover() {
    let rules = ["host all all all scram-sha-256", "local all all scram-sha-256"];
    let dir = tempfile::Builder::new().prefix("pgt").tempdir_in("/tmp").expect("a scratch directory");
    let mut cluster = self::cluster("scram-sha-256", &rules, "", |raw| {
        raw.auth.query = Some("select * from public.look_up($1)".to_owned());
        raw.auth.query_user = Some("postgres".to_owned());
        raw.auth.query_cache_ttl = Span::millis(0);
        raw.auth.query_timeout = Span::secs(600);
        raw.unix_socket_dir = Some(dir.path().to_owned());
    });
    // It takes longer than the test for those who do not matter.
    cluster.nodes[0].psql(
        "create function look_up(who text) returns table(name text, secret text) language plpgsql as
         $$begin
             if who like 'sleeper%' then perform pg_sleep(600); end if;
             return query select rolname::text, rolpassword from pg_authid where rolname = who;
         end$$",
    );
    assert_eq!(cluster.psql("select current_user"), Ok("app".to_owned()));
    // A name that is no SQL and a user that does not exist: refused like a wrong password.
    let mut ghost = cluster.client("psql");
    let output = ghost.env("PGUSER", "x' or true --").args(["-Xc", "select 1"]).output().expect("psql runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("password authentication failed"), "{output:?}");
    let mut before = Raw::login(cluster.port, &[]);
    // A new password is known at the second attempt at the latest, old entries or not.
    cluster.nodes[0].psql("alter role app password 'new one'");
    let log_in = || {
        let mut psql = cluster.client("psql");
        let output = psql.env("PGPASSWORD", "new one").args(["-XAtc", "select 1"]).output().expect("psql runs");
        output.status.success().then_some(())
    };
    common::wait_for("the new password to be accepted", log_in);
    // Who logged in before stays connected, as at PostgreSQL, also where a connection has to be made with the new one.
    reconnect(&cluster);
    assert_eq!(before.query("select current_user"), ["T", "D app", "C SELECT 1", "Z I"]);
    drop(before);
    cluster.nodes[0].psql(&format!("alter role app password '{PASSWORD}'"));
    common::wait_for("the old one to be accepted again", || cluster.psql("select 1").ok());
    // Who asks for many names that take their time keeps nobody else from being looked up.
    let ask = |host: u8, name: &str| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).expect("all of 127 is here");
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], cluster.port)).into()).expect("it is listened on");
        let (mut asking, mut packet) = (TcpStream::from(socket), Vec::new());
        write_startup(&mut packet, [("user", name), ("database", "app")].into_iter());
        asking.write_all(&packet).expect("the endpoint reads");
        asking
    };
    let asleep = |count: u32| {
        common::wait_for("look-ups that take their time", || {
            let sql = "select count(*) from pg_stat_activity where application_name = 'pgtenure_auth' \
                       and wait_event = 'PgSleep'";
            (cluster.nodes[0].psql(sql).parse::<u32>().expect("a number") == count).then_some(())
        });
    };
    let sleep = |host: u8| (0..8).map(|n| ask(host, &format!("sleeper{n}"))).collect::<Vec<_>>();
    let _of_one = sleep(1);
    asleep(2);
    let mut other = ask(2, "nobody");
    other.set_read_timeout(Some(Duration::from_secs(60))).expect("a TCP socket");
    assert!(matches!(other.read(&mut [0]), Ok(1)), "it is not looked up");
    // Where several do, users that were found before have a turn still.
    let _of_another = sleep(2);
    asleep(3);
    cluster.nodes[0].psql("alter role app password 'new one'");
    common::wait_for("the new password to be accepted", log_in);
    cluster.nodes[0].psql(&format!("alter role app password '{PASSWORD}'"));
    common::wait_for("the old one to be accepted again", || cluster.psql("select 1").ok());
    let path = dir.path().join(format!(".s.PGSQL.{}", cluster.port));
    drop(Raw::over(UnixStream::connect(path).expect("it is listened on"), &[]));
    asleep(3);
    // Nobody answers, so what was found before still counts: the login itself gets as far as it did.
    cluster.publish(|t| t.gate = Gate::Closed(Closed::Promoting));
    cluster.nodes[0].kill();
    // Nor does somebody's wrong password end that, however old what is known becomes meanwhile.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1200) {
        let mut wrong = cluster.client("psql");
        let output = wrong.env("PGPASSWORD", "wrong").args(["-Xc", "select 1"]).output().expect("psql runs");
        assert!(String::from_utf8_lossy(&output.stderr).contains("password authentication failed"), "{output:?}");
    }
    let raw = Raw::login(cluster.port, &[]);
    assert!(raw.settings.iter().any(|(name, _)| name == "server_version"));
}

#[test]
fn a_search_path_of_the_client_does_not_reach_the_look_up() {
    let cluster = cluster("scram-sha-256", &["host all all all scram-sha-256"], "", |raw| {
        raw.auth.query = Some("select $1::text, secret_of($1)".to_owned());
        raw.auth.query_user = Some("postgres".to_owned());
    });
    cluster.nodes[0].psql("create schema evil; create function evil.secret_of(text) returns text language sql as 'select ''known''::text'");
    let mut psql = cluster.client("psql");
    psql.env("PGOPTIONS", "-c search_path=evil").env("PGPASSWORD", "known");
    let output = psql.args(["-Xc", "select 1"]).output().expect("psql runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("could not look up the user"), "{output:?}");
}

#[test]
fn a_userlist_that_is_written_is_read_again_and_a_broken_one_is_not() {
    let mut path = None;
    let cluster = cluster("trust", &["host all all all scram-sha-256"], "", |raw| path = Some(raw.userlist.clone()));
    let path = path.expect("the harness names it");
    assert!(cluster.psql("select 1").expect_err("nobody is known").contains("password authentication failed"));
    std::fs::write(&path, plain()).expect("scratch is writable");
    common::wait_for("the new userlist to be used", || cluster.psql("select 1").ok());
    std::fs::write(&path, "broken").expect("scratch is writable");
    let config = proxy::config::Raw { userlist: path, ..proxy::config::Raw::default() };
    let config = proxy::config::check(config).expect("the settings are right");
    let control = cluster.handle.as_ref().expect("it runs").control();
    let refused = control.reload(config).expect_err("the userlist is broken");
    assert!(refused.to_string().contains("line 1"), "{refused}");
    assert_eq!(cluster.psql("select 1"), Ok("1".to_owned()));
}

#[test]
fn clients_of_an_alias_are_its_user_at_the_servers_whoever_they_are_here() {
    let verifier = proxy::auth::scram::Verifier::from_password("hers", [4; 16], 4096);
    let users = plain() + &proxy::auth::userlist::line("ann", &verifier) + "\n";
    let cluster = cluster("scram-sha-256", &["host all all all scram-sha-256"], &users, |raw| {
        let alias = proxy::config::pools::Database {
            dbname: Some("app".to_owned()),
            user: Some("app".to_owned()),
            pool_size: Some(1),
            ..Default::default()
        };
        raw.databases.insert("shop".to_owned(), alias);
    });
    let as_ann = |database: &str, password: &str| {
        let mut psql = cluster.client("psql");
        psql.env("PGUSER", "ann").env("PGPASSWORD", password).env("PGDATABASE", database);
        let output = psql.args(["-XAtc", "select current_user, current_database()"]).output().expect("psql runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    };
    assert_eq!(as_ann("shop", "hers"), Ok("app|app".to_owned()));
    // She proves who she is with her own password, and is nobody at the servers without the alias.
    assert!(as_ann("shop", PASSWORD).expect_err("it is not hers").contains("failed for user \"ann\""));
    assert!(as_ann("app", "hers").is_err());
}

#[test]
fn a_user_who_asks_for_an_alias_is_looked_up_in_the_database_behind_it() {
    let cluster = self::cluster("scram-sha-256", &["host all all all scram-sha-256"], "", |raw| {
        raw.auth.query = Some(LOOKUP.to_owned());
        raw.auth.query_user = Some("postgres".to_owned());
        let alias = proxy::config::pools::Database { dbname: Some("app".to_owned()), ..Default::default() };
        raw.databases.insert("shop".to_owned(), alias);
    });
    let mut psql = cluster.client("psql");
    let output = psql.env("PGDATABASE", "shop").args(["-XAtc", "select current_database()"]).output();
    let output = output.expect("psql runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "app", "{output:?}");
}

#[test]
fn a_user_who_asks_for_no_database_of_the_servers_is_looked_up_all_the_same() {
    let cluster = Cluster::start(0, |raw| {
        std::fs::write(&raw.userlist, "").expect("scratch is writable");
        raw.auth.rules =
            ["host all all all scram-sha-256", "host replication app all scram-sha-256"].map(Into::into).into();
        raw.auth.query = Some(LOOKUP.to_owned());
        raw.auth.query_user = Some("postgres".to_owned());
        raw.console.admin_users = vec!["app".to_owned()];
    });
    cluster.nodes[0].psql("alter role app replication");
    let mut console = Raw::login(cluster.port, &[("database", "pgtenure")]);
    assert_eq!(console.query("show version").last().map(String::as_str), Some("Z I"));
    // Who is known is told by a server that it is not there.
    let output = cluster.client("psql").env("PGDATABASE", "nowhere").args(["-XAtc", "select 1"]).output();
    let said = String::from_utf8_lossy(&output.expect("psql can be started").stderr).into_owned();
    assert!(said.contains("FATAL:  database \"nowhere\" does not exist"), "{said}");
    // As pg_basebackup and its like ask: there is no such database.
    let mut physical = Raw::login(cluster.port, &[("database", "replication"), ("replication", "true")]);
    let seen = physical.query("IDENTIFY_SYSTEM");
    assert!(seen.iter().any(|s| s.starts_with("D ")), "{seen:?}");
}

#[test]
fn a_reload_that_is_refused_changes_no_users() {
    let mut settings = None;
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(0, |raw| settings = Some(raw.clone()));
    let control = cluster.handle.as_ref().unwrap().control();
    let mut changed = settings.unwrap();
    changed.userlist = dir.path().join("others.txt");
    std::fs::write(&changed.userlist, "\"other\" \"x\"\n").unwrap();
    changed.cancel.secret_file = Some(dir.path().join("secret"));
    std::fs::write(dir.path().join("secret"), "short").unwrap();
    let check = |raw: &proxy::config::Raw| proxy::config::check(raw.clone()).expect("the file cannot be looked into");
    let refused = control.reload(check(&changed)).unwrap_err();
    assert!(refused.to_string().contains("at least 16 bytes"), "{refused}");
    assert_eq!(cluster.psql("select 1"), Ok("1".to_owned()));
    std::fs::write(dir.path().join("secret"), "long enough for a secret").unwrap();
    control.reload(check(&changed)).unwrap();
    assert!(cluster.psql("select 1").is_err(), "the users of the new file are in force");
}
