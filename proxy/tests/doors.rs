//! The ways in besides plain TCP: a Unix-domain socket, and a proxy before ours.

mod common;

use common::{Cluster, dial};
use proxy::wire::startup::write_startup;
use std::io::{Read, Write};

#[test]
fn clients_of_this_host_come_through_the_unix_socket() {
    let dir = tempfile::Builder::new().prefix("pgt").tempdir_in("/tmp").unwrap();
    let c = Cluster::start(0, |raw| {
        raw.unix_socket_dir = Some(dir.path().to_owned());
        raw.unix_socket_permissions = "0700".to_owned();
    });
    let mut psql = c.client("psql");
    let psql = psql.env("PGHOST", dir.path()).args(["-X", "-A", "-t", "-c", "select 1", "-c", "\\conninfo"]);
    let output = psql.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("1\n") && text.contains("via socket in"), "{text} {:?}", output.stderr);
    let big = c
        .client("psql")
        .env("PGHOST", dir.path())
        .args(["-X", "-A", "-t", "-c", "select repeat('x', 5000000)"])
        .output();
    assert_eq!(big.unwrap().stdout.len(), 5_000_001);
}

/// What is answered to a startup packet behind `header`.
fn answer(c: &Cluster, header: &[u8], user: &str) -> String {
    let mut s = dial(c.port);
    let mut out = header.to_vec();
    write_startup(&mut out, [("user", user), ("database", "app")].into_iter());
    s.write_all(&out).unwrap();
    let mut all = vec![0; 4096];
    // A refused connection may end in a reset.
    let n = s.read(&mut all).unwrap_or(0);
    String::from_utf8_lossy(&all[..n]).into_owned()
}

#[test]
fn a_trusted_proxy_must_tell_whom_it_brings_and_rules_see_that_client() {
    let c = Cluster::start(0, |raw| {
        raw.proxy_protocol_from = vec!["127.0.0.0/8".to_owned()];
        raw.auth.rules = vec![
            "host all all 192.0.2.0/24 scram-sha-256".to_owned(),
            "host all all 2001:db8::/32 scram-sha-256".to_owned(),
        ];
    });
    let v2 = |ip: [u8; 4]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        header.extend(ip);
        header.extend([10, 0, 0, 2, 0x30, 0x39, 0x19, 0x20]);
        header
    };
    for header in [
        b"PROXY TCP4 192.0.2.9 10.0.0.2 1 2\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::9 ::1 1 2\r\n".to_vec(),
        v2([192, 0, 2, 9]),
    ] {
        let text = answer(&c, &header, "app");
        assert!(text.starts_with('R') && text.contains("SCRAM-SHA-256"), "{header:?}: {text:?}");
    }
    for header in [b"PROXY TCP4 198.51.100.1 10.0.0.2 1 2\r\n".to_vec(), v2([198, 51, 100, 1])] {
        let text = answer(&c, &header, "app");
        assert!(text.starts_with('E') && text.contains("198.51.100.1"), "{header:?}: {text:?}");
    }
    // The header is not optional, and what is no header is not read on.
    assert_eq!(answer(&c, b"", "app"), "");
    assert_eq!(answer(&c, b"PROXY TCP4 nonsense\r\n", "app"), "");
}
