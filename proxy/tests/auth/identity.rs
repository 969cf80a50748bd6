//! Proofs of identity other than a password alone: certificates, the operating system's word, a login that is bound to
//! its encrypted connection. With libpq and OpenSSL as clients.

use super::common::authority::Authority;
use super::common::{Cluster, PASSWORD, has, wait_for};
use proxy::config::tls::ClientMode;
use std::process::{Command, Stdio};

/// TLS for clients, these rules, and a server that trusts everybody.
fn cluster(authority: &Authority, rules: &[&str]) -> Cluster {
    authority.sign("server", "endpoint", &["127.0.0.1", "localhost"]);
    authority.sign("app", "app", &[]);
    authority.sign("other", "other", &[]);
    let c = Cluster::start(0, |raw| {
        raw.tls.mode = ClientMode::Allow;
        raw.tls.cert = Some(authority.path("server.crt"));
        raw.tls.key = Some(authority.path("server.key"));
        raw.tls.client_ca = Some(authority.path("ca.crt"));
        raw.auth.rules = rules.iter().map(|&r| r.to_owned()).collect();
    });
    std::fs::write(c.nodes[0].data.join("pg_hba.conf"), "host all all 127.0.0.1/32 trust\n").expect("it is writable");
    c.nodes[0].psql("select pg_reload_conf()");
    wait_for("the server to trust", || {
        (c.nodes[0].psql("select count(*) from pg_hba_file_rules") == "1").then_some(())
    });
    c
}

/// Run psql; what it prints, or its error.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.args(["-X", "-q", "-A", "-t", "-c", "select current_user"]).output().expect("psql runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// As `app`, over TLS, with the certificate of that name and this password.
fn with(c: &Cluster, authority: &Authority, certificate: Option<&str>, password: &str) -> Result<String, String> {
    let mut psql = c.client("psql");
    psql.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", authority.path("ca.crt")).env("PGPASSWORD", password);
    // A certificate in the home directory is not to be found.
    let name = certificate.unwrap_or("none");
    psql.env("PGSSLCERT", authority.path(&format!("{name}.crt")));
    psql.env("PGSSLKEY", authority.path(&format!("{name}.key")));
    run(&mut psql)
}

#[test]
fn a_certificate_of_the_user_is_enough_where_the_rule_says_so() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    let c = cluster(&authority, &["hostssl all app all cert"]);
    assert_eq!(with(&c, &authority, Some("app"), ""), Ok("app".to_owned()));
    for certificate in [Some("other"), None] {
        let said = with(&c, &authority, certificate, PASSWORD).expect_err("it is not the user's");
        assert!(said.contains("certificate authentication failed for user \"app\""), "{said}");
    }
    let said = run(c.client("psql").env("PGSSLMODE", "disable")).expect_err("the rule is for TLS only");
    assert!(said.contains("no encryption"), "{said}");
}

#[test]
fn a_certificate_is_asked_for_besides_the_password() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    let c = cluster(&authority, &["hostssl all all all scram-sha-256 clientcert=verify-full"]);
    assert_eq!(with(&c, &authority, Some("app"), PASSWORD), Ok("app".to_owned()));
    for (certificate, password) in [(Some("app"), "wrong"), (Some("other"), PASSWORD), (None, PASSWORD)] {
        assert!(with(&c, &authority, certificate, password).is_err(), "{certificate:?} {password}");
    }
    drop(c);
    // Any that is valid.
    let c = cluster(&authority, &["hostssl all all all scram-sha-256 clientcert=verify-ca"]);
    assert_eq!(with(&c, &authority, Some("other"), PASSWORD), Ok("app".to_owned()));
    for (certificate, password) in [(Some("other"), "wrong"), (None, PASSWORD)] {
        assert!(with(&c, &authority, certificate, password).is_err(), "{certificate:?} {password}");
    }
}

#[test]
fn the_operating_system_vouches_for_who_comes_through_the_socket() {
    let dir = tempfile::Builder::new().prefix("pgt").tempdir().expect("a scratch directory");
    let c = Cluster::start(0, |raw| {
        raw.unix_socket_dir = Some(dir.path().to_owned());
        raw.auth.rules = vec!["local all all peer".to_owned(), "host all all all reject".to_owned()];
    });
    let me = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten().expect("we have a name").name;
    c.nodes[0].psql(&format!("create role \"{me}\" login"));
    let mut psql = c.client("psql");
    assert_eq!(run(psql.env("PGHOST", dir.path()).env("PGUSER", &me)), Ok(me.clone()));
    let mut psql = c.client("psql");
    let said = run(psql.env("PGHOST", dir.path())).expect_err("we are somebody else");
    assert!(said.contains("eer authentication failed for user \"app\""), "{said}");
    let mut psql = c.client("psql");
    let said = run(psql.env("PGUSER", &me)).expect_err("nobody vouches for who comes over the network");
    assert!(said.contains("rejects connection"), "{said}");
}

#[test]
fn a_login_is_bound_to_its_encrypted_connection_when_libpq_insists() {
    if !has("libssl") {
        return;
    }
    let authority = Authority::new();
    let c = cluster(&authority, &["host all all all scram-sha-256"]);
    let bound = |mode: &str| {
        let mut psql = c.client("psql");
        run(psql.env("PGCHANNELBINDING", "require").env("PGSSLMODE", mode))
    };
    assert_eq!(bound("require"), Ok("app".to_owned()));
    assert!(bound("disable").expect_err("there is nothing to bind to").contains("channel binding"));
    drop(c);
    // What cannot be bound is not taken for it.
    let c = cluster(&authority, &["host all all all trust"]);
    let mut psql = c.client("psql");
    let said = run(psql.env("PGCHANNELBINDING", "require").env("PGSSLMODE", "require")).expect_err("nothing is bound");
    assert!(said.contains("channel binding required"), "{said}");
}

#[test]
fn openssl_sees_the_protocol_name_with_and_without_a_request() {
    let authority = Authority::new();
    let c = cluster(&authority, &["host all all all scram-sha-256"]);
    let s_client = |more: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &format!("127.0.0.1:{}", c.port), "-verify_return_error", "-CAfile"]);
        let output = openssl.arg(authority.path("ca.crt")).args(more).stdin(Stdio::null()).output();
        String::from_utf8_lossy(&output.expect("openssl can be started").stdout).into_owned()
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let direct = s_client(&["-alpn", "postgresql", version]);
        assert!(direct.contains("ALPN protocol: postgresql"), "{version}: {direct}");
        assert!(direct.contains("Verify return code: 0 (ok)"), "{version}: {direct}");
        let asked = s_client(&["-starttls", "postgres", version]);
        assert!(asked.contains("Verify return code: 0 (ok)"), "{version}: {asked}");
    }
    let old = s_client(&["-alpn", "postgresql", "-tls1_1"]);
    assert!(!old.contains("ALPN protocol: postgresql"), "{old}");
}
