//! TLS on both sides, as libpq and a client of our own see it.

use super::common::authority::Authority;
use super::common::raw::Raw;
use super::common::slow::Slow;
use super::common::{self, Cluster, dial, has, wait_for};
use proxy::config::tls::{ClientMode, Negotiation, ServerMode};
use proxy::wire::backend::{self, TxStatus};
use proxy::wire::codec::message;
use proxy::wire::startup::{SSL_REQUEST, write_startup};
use rustls::pki_types::ServerName;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

fn cluster(authority: &Authority, mode: ClientMode, client_ca: bool) -> Cluster {
    authority.sign("server", "endpoint", &["127.0.0.1", "localhost"]);
    Cluster::start(0, |raw| {
        raw.tls.mode = mode;
        raw.tls.cert = Some(authority.path("server.crt"));
        raw.tls.key = Some(authority.path("server.key"));
        raw.tls.client_ca = client_ca.then(|| authority.path("ca.crt"));
        // Byte by byte a login takes long on a busy machine.
        raw.login_timeout = cluster::config::Span::secs(60);
    })
}

/// psql with further connection parameters.
fn psql(c: &Cluster, parameters: &str, sql: &str) -> Result<String, String> {
    let mut command: Command = c.client("psql");
    let dsn = format!("host=127.0.0.1 port={} user=app dbname=app {parameters}", c.port);
    let output = command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &dsn, "-c", sql]).output();
    let output = output.expect("psql can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn libpq_verifies_the_endpoint_and_moves_bulk_both_ways() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    let c = cluster(&authority, ClientMode::Require, false);
    let ca = authority.path("ca.crt");
    let full = format!("sslmode=verify-full sslrootcert={}", ca.display());
    let info = psql(&c, &full, "\\conninfo").unwrap();
    assert!(info.contains("SSL connection (protocol: TLSv1.3"), "{info}");
    assert_eq!(psql(&c, &full, "select length(repeat('x', 20000000))").unwrap(), "20000000");
    let rows = psql(&c, &full, "select repeat('y', 1000) from generate_series(1, 20000)").unwrap();
    assert_eq!((rows.len(), rows.matches('y').count()), (20_000 * 1001 - 1, 20_000_000));
    let mut copy = c.client("psql");
    let dsn = format!("host=127.0.0.1 port={} user=app dbname=app {full}", c.port);
    let sql = "create temp table t(a text)";
    let copy = copy.args(["-X", "-q", "-A", "-t", "-d", &dsn, "-c", sql, "-c", "\\copy t from pstdin"]);
    let copy = copy.args(["-c", "select count(*), sum(length(a)) from t"]).stdin(std::process::Stdio::piped());
    let mut child = copy.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let line = "z".repeat(999) + "\n";
    child.stdin.take().unwrap().write_all(line.repeat(10_000).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "10000|9990000");
    // Another authority did not sign it, and without TLS nobody comes in.
    let other = Authority::new();
    let wrong = format!("sslmode=verify-ca sslrootcert={}", other.path("ca.crt").display());
    assert!(psql(&c, &wrong, "select 1").unwrap_err().contains("SSL error"));
    assert!(psql(&c, "sslmode=disable", "select 1").unwrap_err().contains("connection requires TLS"));
    // Old libraries send their cancel requests in clear.
    assert_eq!(psql(&c, "sslmode=require", "select 7").unwrap(), "7");
}

#[test]
fn bytes_in_clear_behind_a_request_for_tls_end_the_connection() {
    let authority = Authority::new();
    let c = cluster(&authority, ClientMode::Allow, false);
    let mut injected = SSL_REQUEST.to_vec();
    write_startup(&mut injected, [("user", "app"), ("database", "app")].into_iter());
    let mut s = dial(c.port);
    s.write_all(&injected).unwrap();
    let mut all = Vec::new();
    let _ = s.read_to_end(&mut all);
    let text = String::from_utf8_lossy(&all).into_owned();
    assert!(text.starts_with('E') && text.contains("08P01") && text.contains("unencrypted data"), "{text:?}");
    // What comes in clear after the agreement is no handshake.
    let mut s = dial(c.port);
    s.write_all(&SSL_REQUEST).unwrap();
    let mut byte = [0];
    s.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"S");
    s.write_all(&injected[8..]).unwrap();
    let mut all = Vec::new();
    let _ = s.read_to_end(&mut all);
    assert!(!all.contains(&b'R'), "no login goes on in clear: {all:?}");
    // A client need not ask, and a GSS request is declined first.
    assert_eq!(psql(&c, "sslmode=disable", "select 1").unwrap(), "1");
    let mut s = dial(c.port);
    s.write_all(&[0, 0, 0, 8, 4, 210, 22, 48]).unwrap();
    s.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"N");
    s.write_all(&SSL_REQUEST).unwrap();
    s.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"S");
}

/// What one read brings is not one packet.
#[test]
fn a_login_may_come_byte_by_byte() {
    let authority = Authority::new();
    let c = cluster(&authority, ClientMode::Allow, false);
    let ask = |socket: &mut Slow, request: &[u8]| {
        let mut answer = [0];
        socket.write_all(request).unwrap();
        socket.read_exact(&mut answer).unwrap();
        answer[0]
    };
    let alive = ["T", "D 1", "C SELECT 1", "Z I"];
    let mut socket = Slow::new(dial(c.port));
    assert_eq!(ask(&mut socket, &[0, 0, 0, 8, 4, 210, 22, 48]), b'N');
    assert_eq!(Raw::over(socket, &[]).query("select 1"), alive);
    let mut socket = Slow::new(dial(c.port));
    assert_eq!(ask(&mut socket, &SSL_REQUEST), b'S');
    let name = ServerName::try_from("localhost").unwrap();
    let tls = rustls::ClientConnection::new(authority.client(&[]), name).unwrap();
    assert_eq!(Raw::over(rustls::StreamOwned::new(tls, socket), &[]).query("select 1"), alive);
}

/// Begin TLS without asking; the first message type after a startup packet, or why there is none.
fn direct(c: &Cluster, config: Arc<rustls::ClientConfig>) -> Result<u8, std::io::Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut conn = rustls::ClientConnection::new(config, name).unwrap();
    let mut socket = dial(c.port);
    let mut tls = rustls::Stream::new(&mut conn, &mut socket);
    let mut startup = Vec::new();
    write_startup(&mut startup, [("user", "app"), ("database", "app")].into_iter());
    tls.write_all(&startup)?;
    let mut byte = [0];
    tls.read_exact(&mut byte)?;
    Ok(byte[0])
}

#[test]
fn direct_tls_needs_the_protocol_name() {
    let authority = Authority::new();
    let c = cluster(&authority, ClientMode::Require, false);
    assert_eq!(direct(&c, authority.client(&[b"postgresql"])).unwrap(), b'R');
    assert!(direct(&c, authority.client(&[])).is_err());
    assert!(direct(&c, authority.client(&[b"h2"])).is_err());
}

/// Asked for or direct, in one write with the header and byte by byte; rules see who was brought, and that it is encrypted.
#[test]
fn behind_the_header_of_a_trusted_proxy_comes_tls_as_without_one() {
    let authority = Authority::new();
    authority.sign("server", "endpoint", &["localhost"]);
    let c = Cluster::start(0, |raw| {
        raw.proxy_protocol_from = vec!["127.0.0.0/8".to_owned()];
        raw.auth.rules = vec!["hostssl all all 192.0.2.0/24 scram-sha-256".to_owned()];
        raw.tls.mode = ClientMode::Allow;
        raw.tls.cert = Some(authority.path("server.crt"));
        raw.tls.key = Some(authority.path("server.key"));
    });
    let alive = ["T", "D 1", "C SELECT 1", "Z I"];
    let header = b"PROXY TCP4 192.0.2.9 10.0.0.2 1 2\r\n";
    let tls = |names: &[&[u8]]| {
        let name = ServerName::try_from("localhost").unwrap();
        rustls::ClientConnection::new(authority.client(names), name).unwrap()
    };
    let asked = [header.as_slice(), &SSL_REQUEST].concat();
    let mut byte = [0];
    let mut socket = dial(c.port);
    socket.write_all(&asked).unwrap();
    socket.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"S");
    assert_eq!(Raw::over(rustls::StreamOwned::new(tls(&[]), socket), &[]).query("select 1"), alive);
    let mut slow = Slow::new(dial(c.port));
    slow.write_all(&asked).unwrap();
    slow.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"S");
    assert_eq!(Raw::over(rustls::StreamOwned::new(tls(&[]), slow), &[]).query("select 1"), alive);
    let mut direct = dial(c.port);
    direct.write_all(header).unwrap();
    assert_eq!(Raw::over(rustls::StreamOwned::new(tls(&[b"postgresql"]), direct), &[]).query("select 1"), alive);
    // In clear it is nobody's rule, and a header within TLS is none.
    let refused = |first: &[u8]| {
        let mut socket = dial(c.port);
        let mut hello = first.to_vec();
        write_startup(&mut hello, [("user", "app"), ("database", "app")].into_iter());
        socket.write_all(&hello).unwrap();
        let mut all = Vec::new();
        let _ = socket.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    };
    let text = refused(header);
    assert!(text.starts_with('E') && text.contains("28000") && text.contains("192.0.2.9"), "{text:?}");
    let text = refused(&asked);
    assert!(text.starts_with('E') && text.contains("unencrypted data"), "{text:?}");
    let mut within = dial(c.port);
    within.write_all(header).unwrap();
    let mut within = rustls::StreamOwned::new(tls(&[b"postgresql"]), within);
    within.write_all(header).unwrap();
    let mut all = Vec::new();
    let _ = within.read_to_end(&mut all);
    assert!(!all.contains(&b'R'), "{all:?}");
}

#[test]
fn a_clients_certificate_must_verify_when_there_is_one() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    authority.sign("client", "app", &[]);
    let c = cluster(&authority, ClientMode::Require, true);
    let with = |a: &Authority| {
        format!("sslmode=require sslcert={} sslkey={}", a.path("client.crt").display(), a.path("client.key").display())
    };
    assert_eq!(psql(&c, &with(&authority), "select 1").unwrap(), "1");
    assert_eq!(psql(&c, "sslmode=require", "select 2").unwrap(), "2");
    let other = Authority::new();
    other.sign("client", "app", &[]);
    let refuses = |a: &Authority| {
        let refused = psql(&c, &with(a), "select 3").unwrap_err();
        assert!(refused.contains("unknown ca") || refused.contains("decrypt error"), "{refused}");
    };
    refuses(&other);
    // Another authority takes over.
    authority.replace("ca.crt", &std::fs::read_to_string(other.path("ca.crt")).unwrap());
    wait_for("its certificates to be taken", || psql(&c, &with(&other), "select 4").ok());
    refuses(&authority);
}

#[test]
fn changed_files_are_used_and_broken_ones_are_not() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    let c = cluster(&authority, ClientMode::Require, false);
    let reloads = |result: &str| {
        let families = c.registry.gather();
        let of = families.iter().filter(|f| f.name() == "pgtenure_proxy_tls_reloads_total");
        let metrics = of.flat_map(|f| f.get_metric()).filter(|m| m.get_label().iter().any(|l| l.value() == result));
        metrics.map(|m| m.get_counter().get_value()).sum::<f64>()
    };
    assert!(c.counter("pgtenure_proxy_tls_certificate_remaining_seconds") > 0.0);
    let full = |a: &Authority| format!("sslmode=verify-full sslrootcert={}", a.path("ca.crt").display());
    authority.replace("server.crt", "nonsense");
    wait_for("a broken file to be refused", || (reloads("failed") >= 1.0).then_some(()));
    assert_eq!(psql(&c, &full(&authority), "select 1").unwrap(), "1");
    // Another authority takes over.
    let next = Authority::new();
    next.sign("server", "endpoint", &["127.0.0.1"]);
    for name in ["server.key", "server.crt"] {
        authority.replace(name, &std::fs::read_to_string(next.path(name)).unwrap());
    }
    wait_for("the new certificate", || psql(&c, &full(&next), "select 1").ok());
    assert!(psql(&c, &full(&authority), "select 1").is_err());
}

/// Let the server speak TLS with this certificate, and accept nobody without it.
fn encrypt_server(c: &Cluster, cert: &Path, key: &Path) {
    encrypt_by_rule(c, cert, key, "scram-sha-256");
}

/// The same where clients come in by that method.
fn encrypt_by_rule(c: &Cluster, cert: &Path, key: &Path, method: &str) {
    let node = &c.nodes[0];
    for (from, to) in [(cert, "server.crt"), (key, "server.key")] {
        let to = node.data.join(to);
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o600)).unwrap();
        if nix::unistd::Uid::effective().is_root() {
            let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
            std::os::unix::fs::chown(&to, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
    }
    node.psql("alter system set ssl = on");
    let hba = format!("hostssl all app 127.0.0.1/32 {method}\nhost all postgres 127.0.0.1/32 trust\n");
    std::fs::write(node.data.join("pg_hba.conf"), hba).unwrap();
    node.psql("select pg_reload_conf()");
    wait_for("the server to speak TLS", || (node.psql("show ssl") == "on").then_some(()));
}

#[test]
fn servers_are_verified_and_cancel_requests_are_encrypted_too() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    authority.sign("db", "db", &["127.0.0.1"]);
    let c = Cluster::start(0, |raw| {
        raw.server_tls.mode = ServerMode::VerifyFull;
        raw.server_tls.ca = Some(authority.path("ca.crt"));
        raw.pool_size = 2;
    });
    encrypt_server(&c, &authority.path("db.crt"), &authority.path("db.key"));
    let sql = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(c.psql(sql).unwrap(), "t|TLSv1.3");
    let big = c.psql("select repeat('y', 1000) from generate_series(1, 20000)").unwrap();
    assert_eq!(big.matches('y').count(), 20_000_000);
    // More clients than servers, on two workers: connections move between them with their TLS state.
    let pgbench = c
        .client("pgbench")
        .args(["-n", "-c", "8", "-j", "2", "-t", "50", "-f", "/dev/stdin"])
        .arg("app")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let mut pgbench = pgbench.unwrap();
    pgbench.stdin.take().unwrap().write_all(b"select 1;\n").unwrap();
    let output = pgbench.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("400/400"), "{text} {}", String::from_utf8_lossy(&output.stderr));
    // The server refuses app without TLS, also to ask for a cancellation: that it comes shows that it was encrypted.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&c.dsn(), tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let token = client.cancel_token();
        let (slept, ()) = tokio::join!(client.simple_query("select pg_sleep(60)"), async {
            let runs = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
            while c.nodes[0].psql(runs) != "1" {
                tokio::task::yield_now().await;
            }
            token.cancel_query(tokio_postgres::NoTls).await.unwrap();
        });
        let code = slept.unwrap_err().code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("57014"));
        drop(client);
        connection.await.unwrap().unwrap();
    });
}

/// Who is refused waits until this is over; who is served is to have the time that a slow machine needs.
fn refused_after(works: bool) -> cluster::config::Span {
    cluster::config::Span::secs(if works { 60 } else { 2 })
}

#[test]
fn a_server_that_does_not_verify_is_not_spoken_to() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    authority.sign("db", "db", &["db.example.org"]);
    for (mode, trusted, works) in [
        (ServerMode::VerifyFull, true, false),
        (ServerMode::VerifyCa, true, true),
        (ServerMode::VerifyCa, false, false),
        (ServerMode::Require, false, true),
        (ServerMode::Prefer, false, true),
    ] {
        let other = Authority::new();
        let c = Cluster::start(0, |raw| {
            raw.server_tls.mode = mode;
            raw.server_tls.ca = Some(if trusted { authority.path("ca.crt") } else { other.path("ca.crt") });
            raw.hold_timeout = refused_after(works);
        });
        encrypt_server(&c, &authority.path("db.crt"), &authority.path("db.key"));
        let result = c.psql("select ssl from pg_stat_ssl where pid = pg_backend_pid()");
        assert_eq!(result.as_deref().ok(), works.then_some("t"), "{mode:?} {trusted}: {result:?}");
    }
}

/// Which certificate is shown to servers, and whose are believed.
#[test]
fn changed_files_are_used_towards_servers_too() {
    if !has("libssl") {
        return;
    }
    let (ours, theirs, next) = (Authority::new(), Authority::new(), Authority::new());
    ours.sign("proxy", "somebody", &[]);
    [&theirs, &next].iter().for_each(|authority| authority.sign("db", "db", &["127.0.0.1"]));
    let c = Cluster::start(0, |raw| {
        raw.server_tls.mode = ServerMode::VerifyFull;
        raw.server_tls.ca = Some(theirs.path("ca.crt"));
        raw.server_tls.cert = Some(ours.path("proxy.crt"));
        raw.server_tls.key = Some(ours.path("proxy.key"));
        raw.hold_timeout = cluster::config::Span::secs(2);
    });
    c.nodes[0].psql(&format!("alter system set ssl_ca_file = '{}'", ours.path("ca.crt").display()));
    let encrypt = |authority: &Authority| {
        let method = "scram-sha-256 clientcert=verify-full";
        encrypt_by_rule(&c, &authority.path("db.crt"), &authority.path("db.key"), method);
    };
    encrypt(&theirs);
    let sql = "select client_dn from pg_stat_ssl where pid = pg_backend_pid()";
    assert!(c.psql(sql).is_err(), "it is not app's");
    ours.sign("proxy", "app", &[]);
    let shown = wait_for("the new certificate to be shown", || c.psql(sql).ok());
    assert!(shown.contains("CN=app"), "{shown}");
    // Another authority takes over.
    encrypt(&next);
    wait_for("the server's new certificate", || {
        c.nodes[0].psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
        c.psql(sql).is_err().then_some(())
    });
    assert!(c.psql(sql).is_err());
    theirs.replace("ca.crt", &std::fs::read_to_string(next.path("ca.crt")).unwrap());
    wait_for("it to be believed", || c.psql(sql).ok());
}

/// A way to that port, where `pass` does what each connection begins with.
fn way(port: u16, pass: impl Fn(&mut TcpStream, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (here, pass) = (listener.local_addr().unwrap().port(), Arc::new(pass));
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let pass = pass.clone();
            std::thread::spawn(move || {
                let mut server = TcpStream::connect(("127.0.0.1", port))?;
                pass(&mut client, &mut server)?;
                let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
                std::thread::spawn(move || io::copy(&mut from, &mut to));
                io::copy(&mut server, &mut client)
            });
        }
    });
    here
}

/// CVE-2021-23222 of libpq.
#[test]
fn what_comes_in_clear_behind_a_servers_yes_is_not_the_servers() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    authority.sign("db", "db", &["127.0.0.1"]);
    let c = Cluster::start(0, |raw| {
        raw.server_tls.mode = ServerMode::Require;
        raw.hold_timeout = cluster::config::Span::secs(2);
    });
    encrypt_server(&c, &authority.path("db.crt"), &authority.path("db.key"));
    // All that a server says which takes everybody.
    let mut login = Vec::new();
    message(&mut login, b'R', |body| body.extend_from_slice(&[0; 4]));
    backend::write_ready(&mut login, TxStatus::Idle);
    for (behind, works) in [(login, false), (Vec::new(), true)] {
        let through = way(c.nodes[0].port, move |client, server| {
            let (mut asked, mut answer) = ([0; 8], [0]);
            client.read_exact(&mut asked)?;
            // Who asks for samples speaks no TLS.
            if asked != SSL_REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            server.write_all(&asked)?;
            server.read_exact(&mut answer)?;
            client.write_all(&[&answer[..], &behind].concat())
        });
        c.publish(|t| t.primary.as_mut().expect("there is one").postgres.port = through);
        if works {
            c.warm();
        } else {
            c.psql("select 1").unwrap_err();
        }
    }
}

#[test]
fn servers_that_take_nothing_but_tls_are_reached() {
    let authority = Authority::new();
    // An endpoint of ours is one that also takes it direct.
    let far = cluster(&authority, ClientMode::Require, false);
    let only_tls = way(far.port, |client, _| {
        let mut first = [0];
        client.peek(&mut first)?;
        if first == [0x16] { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    });
    for (negotiation, works) in [(Negotiation::Postgres, false), (Negotiation::Direct, true)] {
        let c = Cluster::start(0, |raw| {
            raw.server_tls.mode = ServerMode::VerifyFull;
            raw.server_tls.negotiation = negotiation;
            raw.server_tls.ca = Some(authority.path("ca.crt"));
            raw.userlist = far.userlist();
            raw.hold_timeout = refused_after(works);
        });
        c.publish(|t| t.primary.as_mut().expect("there is one").postgres.port = only_tls);
        assert_eq!(c.psql("show port").ok(), works.then(|| far.nodes[0].port.to_string()), "{negotiation:?}");
    }
}

/// It may be a server of another protocol, which takes what it is sent for something else.
#[test]
fn a_server_that_does_not_say_that_it_is_postgresql_is_told_nothing_by_direct_tls() {
    let authority = Authority::new();
    authority.sign("db", "db", &["127.0.0.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().port();
    let config = authority.server("db");
    let (heard, hears) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let conn = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(conn, socket);
            let told = tls.read(&mut [0]).unwrap_or(0);
            // Who asks for samples speaks no TLS.
            if !tls.conn.is_handshaking() {
                let _ = heard.try_send(told);
            }
        }
    });
    let c = Cluster::start(0, |raw| {
        raw.server_tls.mode = ServerMode::Require;
        raw.server_tls.negotiation = Negotiation::Direct;
        raw.hold_timeout = cluster::config::Span::secs(2);
    });
    c.publish(|t| t.primary.as_mut().expect("there is one").postgres.port = here);
    assert!(c.psql("select 1").is_err());
    assert_eq!(hears.recv_timeout(common::DEADLINE), Ok(0));
}

#[test]
fn a_reload_with_files_that_cannot_be_used_changes_nothing() {
    let authority = Authority::new();
    let c = cluster(&authority, ClientMode::Require, false);
    let raw = |key: &str| {
        let mut raw = proxy::config::Raw { userlist: c.userlist(), ..proxy::config::Raw::default() };
        raw.tls.mode = ClientMode::Allow;
        raw.tls.cert = Some(authority.path("server.crt"));
        raw.tls.key = Some(authority.path(key));
        proxy::config::check(raw).unwrap()
    };
    let control = c.handle.as_ref().unwrap().control();
    let refused = control.reload(raw("missing.key")).unwrap_err().to_string();
    assert!(refused.contains("missing.key"), "{refused}");
    assert!(psql(&c, "sslmode=disable", "select 1").is_err());
    control.reload(raw("server.key")).unwrap();
    wait_for("TLS to be optional", || psql(&c, "sslmode=disable", "select 1").ok());
}

#[test]
fn a_server_without_tls_is_preferred_to_none_and_no_more() {
    for (mode, works) in [(ServerMode::Prefer, true), (ServerMode::Require, false)] {
        let c = Cluster::start(0, |raw| {
            raw.server_tls.mode = mode;
            raw.hold_timeout = refused_after(works);
        });
        assert_eq!(c.psql("select 1").is_ok(), works, "{mode:?}");
    }
}

#[test]
fn our_own_queries_are_as_protected_as_pooled_connections() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    authority.sign("db", "db", &["127.0.0.1"]);
    let mut checked = None;
    let c = Cluster::start(0, |raw| {
        raw.server_tls.mode = ServerMode::VerifyFull;
        raw.server_tls.ca = Some(authority.path("ca.crt"));
        raw.monitor_user = "watcher".to_owned();
        raw.auth.query =
            Some("select rolname::text, rolpassword from pg_catalog.pg_authid where rolname = $1".to_owned());
        raw.auth.query_user = Some("watcher".to_owned());
        std::fs::write(&raw.userlist, "").unwrap();
        checked = Some(raw.clone());
    });
    c.nodes[0].psql("create role watcher superuser login");
    encrypt_server(&c, &authority.path("db.crt"), &authority.path("db.key"));
    let hba = "hostssl all app 127.0.0.1/32 scram-sha-256\nhostssl all watcher 127.0.0.1/32 trust\n\
               host all postgres 127.0.0.1/32 trust\n";
    std::fs::write(c.nodes[0].data.join("pg_hba.conf"), hba).unwrap();
    c.nodes[0].psql("select pg_reload_conf()");
    // The look-up of the user and the reading of the catalog are let in with TLS only.
    wait_for("the user to be looked up", || c.psql("select 1").ok());
    let load = |raw: proxy::config::Raw, limit: Duration| {
        let config = proxy::config::check(raw).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let contexts = watch::channel(Arc::new(proxy::tls::Contexts::load(&config).unwrap())).1;
        let settings = proxy::catalog::Settings::from_config(&config).unwrap();
        let resolver = proxy::resolve::Resolver::system(runtime.handle().clone());
        let config = watch::channel(Arc::new(config)).1;
        let reach = Arc::new(proxy::reach::Reach::new(resolver, contexts, config.clone()));
        let (topology, handle) = (c.topology.subscribe(), runtime.handle().clone());
        let catalogs = proxy::catalog::Catalogs::new(settings, config, topology, handle, reach);
        runtime.block_on(async {
            let mut table = catalogs.table("app");
            let loaded = tokio::time::timeout(limit, table.wait_for(|t| t.is_loaded()));
            loaded.await.is_ok()
        })
    };
    let raw = checked.unwrap();
    assert!(load(raw.clone(), common::DEADLINE));
    // A server that another authority vouches for is told nothing.
    let other = Authority::new();
    let mut wrong = raw;
    wrong.server_tls.ca = Some(other.path("ca.crt"));
    assert!(!load(wrong, Duration::from_secs(1)));
}
