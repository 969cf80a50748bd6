//! Cancel keys: their length by protocol version, and requests that reach another process than their session's.

use super::common::raw::{flush, run, sync};
use super::common::{self, Cluster, dial, free_port, wait_for};
use cluster::lag::LagSnapshot;
use proxy::pool::view::ClientView;
use proxy::session::presence::Activity;
use proxy::wire::backend::fields;
use proxy::wire::codec::head;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::{long_cancel_request, write_startup};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use tokio::sync::watch;

/// A client that was let in without a password, by the protocol version it asked for.
struct Client {
    stream: TcpStream,
    pid: u32,
    secret: Vec<u8>,
    /// Version told by NegotiateProtocolVersion.
    negotiated: Option<u32>,
    /// What comes first on each of its connections.
    header: &'static [u8],
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
    log_in_behind(b"", port, minor, extra)
}

fn log_in_behind(header: &'static [u8], port: u16, minor: u8, extra: &[(&str, &str)]) -> Client {
    let mut stream = dial(port);
    let mut out = Vec::new();
    write_startup(&mut out, [("user", "app"), ("database", "app")].into_iter().chain(extra.iter().copied()));
    out[7] = minor;
    stream.write_all(&[header, &out].concat()).expect("the endpoint reads");
    let mut client = Client { stream, pid: 0, secret: Vec::new(), negotiated: None, header };
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
    trusting_with(0, set)
}

fn trusting_with(standbys: usize, set: impl FnOnce(&mut proxy::config::Raw)) -> Cluster {
    let cluster = Cluster::start(standbys, |raw| {
        raw.auth.rules = vec!["host all all all trust".to_owned()];
        set(raw);
    });
    let hba = "host all,replication all 127.0.0.1/32 trust\n";
    for node in &cluster.nodes {
        std::fs::write(node.data.join("pg_hba.conf"), hba).expect("the data directory is writable");
        node.psql("select pg_reload_conf()");
        wait_for("the server to trust", || (node.psql("select count(*) from pg_hba_file_rules") == "1").then_some(()));
    }
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
        let sent = [client.header, &long_cancel_request(client.pid, secret)].concat();
        request.write_all(&sent).expect("the endpoint reads");
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

/// Two processes that share a secret.
struct Pair {
    cluster: Cluster,
    ports: [u16; 2],
    _peer: proxy::Handle,
    _lag: watch::Sender<Arc<LagSnapshot>>,
    _scratch: tempfile::TempDir,
}

impl Pair {
    fn start(set: impl FnOnce(&mut proxy::config::Raw)) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let secret = scratch.path().join("secret");
        std::fs::write(&secret, "a secret that two processes share\n").expect("scratch is writable");
        let (first, second) = (free_port(), free_port());
        let mut other = None;
        let cluster = trusting(|raw| {
            raw.listen = ([127, 0, 0, 1], first).into();
            raw.cancel.id = 1;
            raw.cancel.secret_file = Some(secret.clone());
            raw.cancel.peers = vec![format!("2=localhost:{second}")];
            set(raw);
            let mut config = raw.clone();
            config.listen = ([127, 0, 0, 1], second).into();
            config.cancel.id = 2;
            config.cancel.peers = vec![format!("1=127.0.0.1:{first}")];
            other = Some(config);
        });
        let config = proxy::config::check(other.expect("set above")).expect("the settings are right");
        let (_lag, lag) = watch::channel(Arc::new(LagSnapshot::default()));
        let inputs = proxy::Inputs { topology: cluster.topology.subscribe(), lag, ask: None, ask_view: None };
        let _peer = proxy::start(config, inputs, &prometheus::Registry::new()).expect("the second proxy starts");
        Self { cluster, ports: [first, second], _peer, _lag, _scratch: scratch }
    }
}

#[test]
fn a_request_reaches_the_process_whose_session_it_means() {
    let pair = Pair::start(|_| {});
    let [first, second] = pair.ports;
    for (minor, session, request) in [(0, first, second), (2, first, second), (2, second, first), (0, second, second)] {
        let mut client = log_in(session, minor, &[]);
        cancelled_through(&pair.cluster, &mut client, request);
    }
}

/// Who comes from the network of a proxy before ours begins with a header, but for the other process: what it passes on is
/// proven by the key.
#[test]
fn a_request_is_passed_on_between_processes_that_are_told_their_clients() {
    let pair = Pair::start(|raw| raw.proxy_protocol_from = vec!["127.0.0.0/8".to_owned()]);
    let [first, second] = pair.ports;
    let header = b"PROXY TCP4 192.0.2.9 10.0.0.2 1 2\r\n";
    for (minor, session, request) in [(0, first, second), (2, second, first)] {
        let mut client = log_in_behind(header, session, minor, &[]);
        cancelled_through(&pair.cluster, &mut client, request);
    }
}

/// Send a query; the SQLSTATE it failed with.
fn ask(client: &mut Client, sql: &str) -> Option<String> {
    let mut out = Vec::new();
    write_query(&mut out, sql);
    client.stream.write_all(&out).expect("the endpoint reads");
    let mut code = None;
    loop {
        match frame(&mut client.stream) {
            (b'E', error) => code = Some(String::from_utf8_lossy(fields(&error).code).into_owned()),
            (b'Z', _) => return code,
            _ => {}
        }
    }
}

#[test]
fn a_request_never_hits_the_clients_own_next_statement() {
    let pair = Pair::start(|_| {});
    let mut clients = [log_in(pair.ports[0], 0, &[]), log_in(pair.ports[1], 2, &[])];
    // This one keeps its server between the two statements, the other need not.
    assert_eq!(ask(&mut clients[1], "create temp table pin()"), None);
    let (mut seed, mut hits) = (20_261_124_u32, 0);
    for round in 0..200 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let client = &mut clients[round % 2];
        let (pid, secret, port) = (client.pid, client.secret.clone(), pair.ports[round / 2 % 2]);
        let moment = std::time::Duration::from_micros(u64::from(seed >> 20));
        let request = std::thread::spawn(move || {
            std::thread::sleep(moment);
            let mut request = dial(port);
            request.write_all(&long_cancel_request(pid, &secret)).expect("the endpoint reads");
            assert_eq!(request.read(&mut [0]).expect("it is closed"), 0);
        });
        let slept = ask(client, "select pg_sleep(0.002)");
        if slept.is_none() {
            // As libpq does: a request that came too late is over when its connection ends.
            request.join().expect("the request was taken");
            assert_eq!(ask(client, "select 1"), None, "round {round}");
            continue;
        }
        assert_eq!((slept.as_deref(), ask(client, "select 1")), (Some("57014"), None), "round {round}");
        request.join().expect("the request was taken");
        hits += 1;
    }
    // Some came in time and some too late, or the moments are badly chosen.
    assert!((1..200).contains(&hits), "{hits}");
}

/// A way to a server that takes its time with what is to cancel another: requests to its postmaster, and questions of the
/// proxy. Each is passed on when it is told so, and said to have been acted on.
struct Slow {
    port: u16,
    go_on: mpsc::SyncSender<()>,
    came: mpsc::Receiver<()>,
    acted_on: mpsc::Receiver<()>,
}

/// The other ends.
#[derive(Clone)]
struct Turns {
    told: Arc<Mutex<mpsc::Receiver<()>>>,
    comes: mpsc::SyncSender<()>,
    acts: mpsc::SyncSender<()>,
}

impl Turns {
    fn wait(&self) {
        let _ = self.comes.send(());
        let _ = self.told.lock().map(|told| told.recv());
    }

    fn pass(&self, mut client: TcpStream, port: u16) -> std::io::Result<()> {
        const CANCEL: [u8; 8] = [0, 0, 0, 16, 4, 210, 22, 46];
        let mut first = [0; 8];
        client.read_exact(&mut first)?;
        let mut server = TcpStream::connect(("127.0.0.1", port))?;
        if first == CANCEL {
            let mut key = [0; 8];
            client.read_exact(&mut key)?;
            self.wait();
            server.write_all(&[first, key].concat())?;
            let _ = server.read(&mut [0])?;
            let _ = self.acts.send(());
            return Ok(());
        }
        server.write_all(&first)?;
        let asked = Arc::new(AtomicBool::new(false));
        let (turns, asks, mut from, mut to) = (self.clone(), asked.clone(), client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut bytes = [0; 8192];
            loop {
                let n @ 1.. = from.read(&mut bytes)? else { return to.shutdown(Shutdown::Write) };
                if bytes[..n].windows(22).any(|word| word == b"pg_cancel_backend(pid)") {
                    turns.wait();
                    asks.store(true, Ordering::SeqCst);
                }
                to.write_all(&bytes[..n])?;
            }
        });
        let mut bytes = [0; 8192];
        loop {
            let n @ 1.. = server.read(&mut bytes)? else { return Ok(()) };
            if asked.swap(false, Ordering::SeqCst) {
                let _ = self.acts.send(());
            }
            client.write_all(&bytes[..n])?;
        }
    }
}

fn slow_with_cancels(port: u16) -> Slow {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let here = listener.local_addr().expect("it listens").port();
    let ((go_on, told), (comes, came)) = (mpsc::sync_channel::<()>(1), mpsc::sync_channel(1));
    let (acts, acted_on) = mpsc::sync_channel(1);
    let turns = Turns { told: Arc::new(Mutex::new(told)), comes, acts };
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let turns = turns.clone();
            std::thread::spawn(move || turns.pass(client, port));
        }
    });
    Slow { port: here, go_on, came, acted_on }
}

/// What the client is answered, up to ReadyForQuery: SQLSTATEs of errors only.
fn errors(client: &mut Client) -> Vec<String> {
    let mut errors = Vec::new();
    loop {
        let (kind, frame) = frame(&mut client.stream);
        match kind {
            b'E' => errors.push(String::from_utf8_lossy(fields(&frame).code).into_owned()),
            b'Z' => return errors,
            _ => {}
        }
    }
}

#[test]
fn a_cancel_request_that_comes_late_hits_no_other_client() {
    let cluster = trusting(|raw| {
        raw.pool_size = 1;
        raw.connect_timeout = cluster::config::Span::secs(3);
    });
    let slow = slow_with_cancels(cluster.nodes[0].port);
    cluster.publish(|t| t.primary.as_mut().expect("there is one").postgres.port = slow.port);
    let node = &cluster.nodes[0];
    let mut holder = log_in(node.port, 0, &[]);
    let say = |client: &mut Client, sql: &str| {
        let mut out = Vec::new();
        write_query(&mut out, sql);
        client.stream.write_all(&out).expect("the other end reads");
    };
    let waits = |sql: &str| {
        let of = format!("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query = '{sql}'");
        wait_for("the statement to wait", || (node.psql(&of) == "1").then_some(()));
    };
    // Its session goes on, or leaves its server in the middle of the statement. With a COMMIT behind it in the same unit the
    // server is asked on another connection what it is at.
    for (leaves, commits) in [(false, true), (false, false), (true, false)] {
        let (mut first, mut second) = (log_in(cluster.port, 0, &[]), log_in(cluster.port, 0, &[]));
        say(&mut holder, "select pg_advisory_lock(7)");
        assert!(errors(&mut holder).is_empty());
        let sql = "select pg_advisory_xact_lock(7) as first";
        match commits {
            false => say(&mut first, sql),
            true => {
                assert_eq!(ask(&mut first, "begin"), None);
                let mut unit = Vec::new();
                run(&mut unit, sql);
                run(&mut unit, "commit");
                sync(&mut unit);
                first.stream.write_all(&unit).expect("the endpoint reads");
            }
        }
        waits(sql);
        let mut request = dial(cluster.port);
        request.write_all(&long_cancel_request(first.pid, &first.secret)).expect("the endpoint reads");
        slow.came.recv_timeout(common::DEADLINE).expect("the request is passed on");
        if leaves {
            drop(first);
        }
        say(&mut holder, "select pg_advisory_unlock(7); select pg_advisory_lock(8)");
        assert!(errors(&mut holder).is_empty());
        // The only connection is free when the request was given up, and the next client runs something.
        let sql = "select pg_advisory_xact_lock(8) as second";
        say(&mut second, sql);
        waits(sql);
        slow.go_on.send(()).expect("it waits for that");
        slow.acted_on.recv_timeout(common::DEADLINE).expect("the server acts on it");
        say(&mut holder, "select pg_advisory_unlock(8)");
        assert!(errors(&mut holder).is_empty());
        assert_eq!(errors(&mut second), [""; 0], "leaves: {leaves}, commits: {commits}");
    }
}

#[test]
fn a_cancel_request_that_was_given_up_hits_no_later_statement_of_its_own_client() {
    let cluster = trusting(|raw| {
        raw.connect_timeout = cluster::config::Span::secs(3);
        raw.hold_timeout = cluster::config::Span::secs(600);
    });
    let slow = slow_with_cancels(cluster.nodes[0].port);
    cluster.publish(|t| t.primary.as_mut().expect("there is one").postgres.port = slow.port);
    let node = &cluster.nodes[0];
    let mut holder = log_in(node.port, 0, &[]);
    for lock in [7, 8, 9, 10, 11] {
        assert_eq!(ask(&mut holder, &format!("select pg_advisory_lock({lock})")), None);
    }
    let [mut first, mut second, mut third] = [(); 3].map(|()| log_in(cluster.port, 0, &[]));
    let mut open = log_in(cluster.port, 0, &[("application_name", "open")]);
    assert_eq!((ask(&mut first, "begin"), ask(&mut third, "begin")), (None, None));
    let say: fn(&mut Client, &str) = |client, sql| {
        let mut out = Vec::new();
        write_query(&mut out, sql);
        client.stream.write_all(&out).expect("the endpoint reads");
    };
    let begin_to_say: fn(&mut Client, &str) = |client, sql| {
        let mut out = Vec::new();
        run(&mut out, sql);
        flush(&mut out);
        client.stream.write_all(&out).expect("the endpoint reads");
    };
    for (client, say, sql) in [
        (&mut first, say, "select pg_advisory_xact_lock(7) as first"),
        (&mut second, say, "select pg_advisory_xact_lock(9) as second"),
        (&mut third, say, "select pg_advisory_xact_lock(10) as third"),
        (&mut open, begin_to_say, "select pg_advisory_xact_lock(11) as open"),
    ] {
        say(client, sql);
        let of = format!("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query = '{sql}'");
        wait_for("the statement to wait", || (node.psql(&of) == "1").then_some(()));
        let mut request = dial(cluster.port);
        request.write_all(&long_cancel_request(client.pid, &client.secret)).expect("the endpoint reads");
        slow.came.recv_timeout(common::DEADLINE).expect("the request is passed on");
    }
    assert_eq!(ask(&mut holder, "select pg_advisory_unlock(n) from unnest('{7, 9, 10, 11}'::int[]) n"), None);
    for client in [&mut first, &mut second, &mut third] {
        assert_eq!(errors(client), [""; 0]);
    }
    while frame(&mut open.stream).0 != b'C' {}
    say(&mut first, "select pg_advisory_xact_lock(8) as later");
    say(&mut third, "select 3");
    begin_to_say(&mut open, "select 4");
    // It is not idle in a transaction, which may have a limit.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = cluster.handle.as_ref().expect("the proxy runs");
    wait_for("the open unit to wait", || {
        let view = runtime.block_on(handle.view(common::DEADLINE)).expect("the workers answer");
        let waits = |c: &ClientView| c.application_name == "open" && c.activity == Activity::Waiting;
        view.clients.iter().any(waits).then_some(())
    });
    // Who need not keep the server goes on without it, once the requests were given up.
    assert_eq!(ask(&mut second, "select 1"), None);
    // What is held is ended by a request of its own, which no server is asked for.
    let request = long_cancel_request(third.pid, &third.secret);
    let told = std::thread::spawn(move || errors(&mut third));
    wait_for("it to be held, and ended", || {
        dial(cluster.port).write_all(&request).expect("the endpoint reads");
        told.is_finished().then_some(())
    });
    assert_eq!(told.join().expect("it is answered"), ["57014"]);
    for _ in 0..4 {
        slow.go_on.send(()).expect("it waits for that");
        slow.acted_on.recv_timeout(common::DEADLINE).expect("the server acts on it");
    }
    assert_eq!(ask(&mut holder, "select pg_advisory_unlock(8)"), None);
    assert_eq!(errors(&mut first), [""; 0]);
    let mut ends = Vec::new();
    sync(&mut ends);
    open.stream.write_all(&ends).expect("the endpoint reads");
    assert_eq!(errors(&mut open), [""; 0]);
}

#[test]
fn a_read_that_is_cancelled_as_a_standby_refuses_it_leaves_the_next_one_to_standbys() {
    let cluster = trusting_with(1, |raw| {
        raw.workers = 1;
        raw.max_replay_lag = cluster::config::Span::secs(60);
        raw.reads.remember_refused = cluster::config::Span::millis(0);
    });
    cluster.nodes[0].psql(
        "create sequence s_seq; grant usage on s_seq to app; create function f() returns bigint stable language plpgsql \
         as 'begin execute ''select pg_adv'' || ''isory_xact_lock(7)''; return nextval(''s_seq''); end'",
    );
    cluster.replicate();
    let mut any = log_in(cluster.port, 0, &[]);
    wait_for("a standby to refuse it", || {
        assert_eq!(ask(&mut any, "select f()"), None);
        (cluster.counter_of("pgtenure_proxy_retries_total", "refused") >= 1.0).then_some(())
    });
    let standby = &cluster.nodes[1];
    let slow = slow_with_cancels(standby.port);
    cluster.publish(|t| t.standbys[0].postgres.port = slow.port);
    let mut holder = log_in(standby.port, 0, &[]);
    assert_eq!(ask(&mut holder, "select pg_advisory_lock(7)"), None);
    let only =
        [("pgtenure.consistency", "bounded"), ("pgtenure.standby_wait", "60s"), ("pgtenure.no_standby", "error")];
    let mut client = log_in(cluster.port, 0, &only);
    let mut out = Vec::new();
    write_query(&mut out, "select f()");
    client.stream.write_all(&out).expect("the endpoint reads");
    let of = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query = 'select f()'";
    wait_for("the read to wait at the standby", || (standby.psql(of) == "1").then_some(()));
    let mut request = dial(cluster.port);
    request.write_all(&long_cancel_request(client.pid, &client.secret)).expect("the endpoint reads");
    slow.came.recv_timeout(common::DEADLINE).expect("the request is passed on");
    assert_eq!(ask(&mut holder, "select pg_advisory_unlock(7)"), None);
    assert_eq!(errors(&mut client), ["57014"]);
    // The primary would divide by zero.
    assert_eq!(ask(&mut client, "select 1 / (current_setting('cluster_name') = 'n2')::int"), None);
}
