//! Cancel keys: their length by protocol version, and requests that reach another process than their session's.

mod common;

use cluster::lag::LagSnapshot;
use common::{Cluster, dial, free_port, wait_for};
use proxy::wire::backend::fields;
use proxy::wire::codec::head;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::{long_cancel_request, write_startup};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use tokio::sync::watch;

/// A client that was let in without a password, by the protocol version it asked for.
struct Client {
    stream: TcpStream,
    pid: u32,
    secret: Vec<u8>,
    /// Version told by NegotiateProtocolVersion.
    negotiated: Option<u32>,
}

fn frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut start = [0; 5];
    stream.read_exact(&mut start).expect("a message");
    let total = head(&start).expect("a good length").expect("five bytes").total;
    let mut frame = start.to_vec();
    frame.resize(total, 0);
    stream.read_exact(&mut frame[5..]).expect("the whole message");
    (start[0], frame)
}

fn log_in(port: u16, minor: u8, extra: &[(&str, &str)]) -> Client {
    let mut stream = dial(port);
    let mut out = Vec::new();
    write_startup(&mut out, [("user", "app"), ("database", "app")].into_iter().chain(extra.iter().copied()));
    out[7] = minor;
    stream.write_all(&out).expect("the endpoint reads");
    let mut client = Client { stream, pid: 0, secret: Vec::new(), negotiated: None };
    loop {
        let (kind, frame) = frame(&mut client.stream);
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        match kind {
            b'K' => (client.pid, client.secret) = (word(5), frame[9..].to_vec()),
            b'v' => client.negotiated = Some(word(5)),
            b'E' => panic!("refused: {}", String::from_utf8_lossy(&frame)),
            b'Z' => return client,
            _ => {}
        }
    }
}

fn trusting(set: impl FnOnce(&mut proxy::config::Raw)) -> Cluster {
    let cluster = Cluster::start(0, |raw| {
        raw.auth.rules = vec!["host all all all trust".to_owned()];
        set(raw);
    });
    let hba = "host all all 127.0.0.1/32 trust\n";
    std::fs::write(cluster.nodes[0].data.join("pg_hba.conf"), hba).expect("the data directory is writable");
    cluster.nodes[0].psql("select pg_reload_conf()");
    wait_for("the server to trust", || {
        (cluster.nodes[0].psql("select count(*) from pg_hba_file_rules") == "1").then_some(())
    });
    cluster
}

/// Begin a long statement, send the request to `port`, and see whether it ends the statement. A forged request before
/// it must not.
fn cancelled_through(cluster: &Cluster, client: &mut Client, port: u16) {
    let mut out = Vec::new();
    write_query(&mut out, "select pg_sleep(100)");
    client.stream.write_all(&out).expect("the endpoint reads");
    wait_for("the statement to run", || {
        let sql = "select count(*) from pg_stat_activity where query = 'select pg_sleep(100)' and state = 'active'";
        (cluster.nodes[0].psql(sql) == "1").then_some(())
    });
    let mut forged = client.secret.clone();
    forged[0] ^= 1;
    for secret in [&forged, &client.secret] {
        let mut request = dial(port);
        request.write_all(&long_cancel_request(client.pid, secret)).expect("the endpoint reads");
        assert_eq!(request.read(&mut [0]).expect("it is closed"), 0);
    }
    // The columns of the result come before.
    let mut answers = std::iter::from_fn(|| Some(frame(&mut client.stream)));
    let (kind, error) = answers.find(|(kind, _)| *kind != b'T').expect("it goes on");
    assert_eq!((kind, fields(&error).code), (b'E', &b"57014"[..]));
    assert_eq!(frame(&mut client.stream).0, b'Z');
}

#[test]
fn the_key_and_the_version_are_those_of_the_protocol_asked_for() {
    let cluster = trusting(|_| {});
    for (minor, extra, length, negotiated) in [
        (0, None, 4, None),
        (2, None, 32, None),
        (3, None, 32, Some(0x30002)),
        (0, Some(("_pq_.odd", "1")), 4, Some(0x30000)),
        (2, Some(("_pq_.odd", "1")), 32, Some(0x30002)),
    ] {
        let mut client = log_in(cluster.port, minor, extra.as_slice());
        assert_eq!((client.secret.len(), client.negotiated), (length, negotiated), "3.{minor} {extra:?}");
        cancelled_through(&cluster, &mut client, cluster.port);
    }
}

#[test]
fn a_request_reaches_the_process_whose_session_it_means() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let secret = scratch.path().join("secret");
    std::fs::write(&secret, "a secret that two processes share\n").expect("scratch is writable");
    let (first, second) = (free_port(), free_port());
    let mut other = None;
    let cluster = trusting(|raw| {
        raw.listen = ([127, 0, 0, 1], first).into();
        raw.cancel.id = 1;
        raw.cancel.secret_file = Some(secret.clone());
        raw.cancel.peers = vec![format!("2=127.0.0.1:{second}")];
        let mut config = raw.clone();
        config.listen = ([127, 0, 0, 1], second).into();
        config.cancel.id = 2;
        config.cancel.peers = vec![format!("1=127.0.0.1:{first}")];
        other = Some(config);
    });
    let config = proxy::config::check(other.expect("set above")).expect("the settings are right");
    let (_lag, lag) = watch::channel(Arc::new(LagSnapshot::default()));
    let inputs = proxy::Inputs { topology: cluster.topology.subscribe(), lag };
    let _peer = proxy::start(config, inputs, &prometheus::Registry::new()).expect("the second proxy starts");
    for (minor, session, request) in [(0, first, second), (2, first, second), (2, second, first), (0, second, second)] {
        let mut client = log_in(session, minor, &[]);
        cancelled_through(&cluster, &mut client, request);
    }
}
