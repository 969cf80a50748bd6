//! A proxy takes over the listening socket of the one before it: nobody is refused, nobody's transaction breaks.

use super::common::raw::Raw;
use super::common::{self, Cluster, dial, wait_for};
use proxy::inherit::Inherited;
use proxy::pool::view::ServerState;
use proxy::pool::{Order, Scope};
use proxy::wire::startup::cancel_request;
use proxy::{Control, Passed, PassedCancel, PassedOrder};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How often a client connects while processes change.
const EVERY: Duration = Duration::from_millis(20);
/// Connections between two takeovers.
const BETWEEN: usize = 15;

/// A proxy that accepts no more, and what passes cancel requests on to it.
struct Elder {
    handle: proxy::Handle,
    ends: oneshot::Sender<()>,
    relay: JoinHandle<()>,
}

impl Elder {
    fn end(self) {
        drop((self.handle, self.ends));
        self.relay.join().expect("the relay ends");
    }
}

/// The next proxy, on the sockets of the one before, which accepts no more when this returns. Cancel requests go on.
fn succeed(cluster: &mut Cluster, config: &proxy::config::Config) -> Elder {
    let before = cluster.handle.take().expect("a proxy runs");
    let control = before.control();
    let inherited = Inherited::new(control.listeners().expect("descriptors are left"));
    let (_lag, lag) = tokio::sync::watch::channel(std::sync::Arc::default());
    let inputs = proxy::Inputs { topology: cluster.topology.subscribe(), lag, ask: None, ask_view: None };
    let config = config.clone();
    let next = proxy::take_over(config, inputs, &prometheus::Registry::new(), inherited).expect("the next one starts");
    next.control().begin_accepting();
    let ((to, requests), (ends, ended)) = (mpsc::channel(16), oneshot::channel());
    next.control().pass_on(to);
    let elder = control.clone();
    let relay = std::thread::spawn(move || runtime().block_on(relay(elder, requests, ended)));
    control.stop_accepting();
    control.retire();
    cluster.handle = Some(next);
    Elder { handle: before, ends, relay }
}

async fn relay(elder: Control, mut requests: mpsc::Receiver<Passed>, mut ended: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            Some(passed) = requests.recv() => match passed {
                Passed::Cancel(PassedCancel { key, done }) => {
                    let acted = elder.cancel(key);
                    tokio::spawn(async move {
                        acted.await;
                        drop(done);
                    });
                }
                Passed::Order(PassedOrder { text, done }) => {
                    let obeying = elder.obey(text.as_bytes()).await;
                    tokio::spawn(async move { done.send(obeying.await) });
                }
            },
            _ = &mut ended => return,
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn cancel(port: u16, (pid, secret): (u32, u32)) {
    let mut stream = dial(port);
    stream.write_all(&cancel_request(pid, secret)).expect("the endpoint reads");
    // It closes the connection when it has dealt with the request.
    stream.read_to_end(&mut Vec::new()).expect("the endpoint closes");
}

/// Begin a statement that sleeps for so many seconds.
fn sleep(cluster: &Cluster, client: &mut Raw, seconds: u32) {
    let sql = format!("select pg_sleep({seconds})");
    client.write(|out| proxy::wire::frontend::write_query(out, &sql));
    let runs = format!("select count(*) from pg_stat_activity where query = '{sql}' and state = 'active'");
    wait_for("the statement to run", || (cluster.nodes[0].psql(&runs) == "1").then_some(()));
}

#[test]
fn clients_connect_and_transactions_finish_through_three_takeovers() {
    let mut typed = None;
    let port = common::free_port();
    let mut cluster = Cluster::start(0, |raw| {
        raw.listen = ([127, 0, 0, 1], port).into();
        typed = Some(raw.clone());
    });
    let config = proxy::config::check(typed.expect("the closure ran")).expect("valid");
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut block = Raw::login(port, &[]);
    block.query("begin");
    block.query("create table kept as select 1 as a");
    let mut sleeper = Raw::login(port, &[]);
    let mut elders = Vec::new();
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut running = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                // A refusal, a reset or an error in any of these is a panic in its thread.
                running.push(scope.spawn(|| {
                    let answer = Raw::login(port, &[]).query("select 1");
                    assert_eq!(answer.len(), 4, "{answer:?}");
                    served.fetch_add(1, Ordering::SeqCst);
                }));
                std::thread::sleep(EVERY);
            }
            running.into_iter().for_each(|client| client.join().expect("every client is served"));
        });
        for _ in 0..3 {
            let so_far = served.load(Ordering::SeqCst);
            wait_for("clients to be served", || (served.load(Ordering::SeqCst) >= so_far + BETWEEN).then_some(()));
            elders.push(succeed(&mut cluster, &config));
        }
        let so_far = served.load(Ordering::SeqCst);
        wait_for("clients of the last one", || (served.load(Ordering::SeqCst) >= so_far + BETWEEN).then_some(()));
        stop.store(true, Ordering::SeqCst);
        clients.join().expect("no client failed");
    });
    // A cancel request for a client of the first process arrives at the fourth.
    sleep(&cluster, &mut sleeper, 60);
    cancel(port, sleeper.key);
    let answer = sleeper.until_ready().join(" ");
    assert!(answer.contains("57014"), "{answer}");
    // However many of them come from one address, they are no forgeries: its requests go on being obeyed.
    (0..25).for_each(|_| cancel(port, sleeper.key));
    let mut newest = Raw::login(port, &[]);
    sleep(&cluster, &mut newest, 61);
    cancel(port, newest.key);
    let answer = newest.until_ready().join(" ");
    assert!(answer.contains("57014"), "{answer}");
    // What the processes before the last do not need they leave to it, although they have clients.
    let runtime = runtime();
    for elder in &elders {
        wait_for("unused connections to be closed", || {
            let view = runtime.block_on(elder.handle.view(common::DEADLINE)).expect("the workers answer");
            view.servers.iter().all(|s| s.state == ServerState::Active).then_some(())
        });
    }
    // The first process's transaction has lived through all of it.
    let commit = block.query("commit").join(" ");
    assert!(commit.contains("COMMIT"), "{commit}");
    assert_eq!(cluster.nodes[0].psql("select a from kept"), "1");
    drop((block, sleeper));
    for elder in &elders {
        let control = elder.handle.control();
        wait_for("the clients to have left", || (control.clients() == 0).then_some(()));
    }
    // Nor do they count for anything when those processes have gone.
    elders.into_iter().for_each(Elder::end);
    sleep(&cluster, &mut newest, 62);
    cancel(port, newest.key);
    let answer = newest.until_ready().join(" ");
    assert!(answer.contains("57014"), "{answer}");
}

#[test]
fn a_cancel_request_is_over_when_the_process_before_has_acted_on_it() {
    let mut typed = None;
    let mut cluster = Cluster::start(0, |raw| {
        raw.listen = ([127, 0, 0, 1], common::free_port()).into();
        // For so long it is waited for.
        (raw.connect_timeout, raw.login_timeout) = [cluster::config::Span::secs(60); 2].into();
        typed = Some(raw.clone());
    });
    let config = proxy::config::check(typed.expect("the closure ran")).expect("valid");
    let port = cluster.port;
    let mut sleeper = Raw::login(port, &[]);
    let elder = succeed(&mut cluster, &config);
    let (to, mut requests) = mpsc::channel(1);
    cluster.handle.as_ref().expect("it runs").control().pass_on(to);
    let (client, told, Passed::Cancel(PassedCancel { key, done })) = (loop {
        sleep(&cluster, &mut sleeper, 60);
        let (over, told) = std::sync::mpsc::sync_channel(1);
        let key = sleeper.key;
        let client = std::thread::spawn(move || {
            cancel(port, key);
            over.send(()).expect("the test goes on");
        });
        let passed = wait_for("the request to be passed on", || match requests.try_recv() {
            Ok(passed) => Some(Some(passed)),
            // The process before may have accepted it in its last moment.
            Err(_) => client.is_finished().then_some(None),
        });
        if let Some(passed) = passed {
            break (client, told, passed);
        }
        sleeper.until_ready();
    }) else {
        panic!("nobody has ordered anything")
    };
    runtime().block_on(elder.handle.control().cancel(key));
    let answer = sleeper.until_ready().join(" ");
    assert!(answer.contains("57014"), "{answer}");
    assert!(told.try_recv().is_err(), "the client may send its next statement too early");
    drop(done);
    told.recv_timeout(common::DEADLINE).expect("it is told");
    client.join().expect("the endpoint closes");
    elder.end();
}

#[test]
fn orders_hold_for_the_clients_of_the_process_before() {
    let mut typed = None;
    let mut cluster = Cluster::start(0, |raw| {
        raw.listen = ([127, 0, 0, 1], common::free_port()).into();
        typed = Some(raw.clone());
    });
    let config = proxy::config::check(typed.expect("the closure ran")).expect("valid");
    let mut client = Raw::login(cluster.port, &[]);
    let before = succeed(&mut cluster, &config);
    let runtime = runtime();
    let order = |cluster: &Cluster, order: Order, limit: Duration| {
        let handle = cluster.handle.as_ref().expect("it runs");
        runtime.block_on(handle.order(order, Scope::Database("app".to_owned()), limit))
    };
    client.query("begin");
    client.query("create table ordered ()");
    // It is not said to be paused while they write, and then nothing is.
    let said = order(&cluster, Order::Pause, Duration::from_millis(10)).expect_err("a transaction is open").to_string();
    assert!(said.contains("the process before this one"), "{said}");
    assert!(client.query("commit").join(" ").contains("COMMIT"));
    assert_eq!(client.query("select 1").len(), 4);
    order(&cluster, Order::Pause, common::DEADLINE).expect("no transaction is open");
    let view = runtime.block_on(before.handle.view(common::DEADLINE)).expect("the workers answer");
    assert!(view.servers.is_empty());
    client.write(|out| proxy::wire::frontend::write_query(out, "select 2"));
    order(&cluster, Order::Resume, common::DEADLINE).expect("it is paused");
    assert_eq!(client.until_ready().len(), 4);
    order(&cluster, Order::Kill, common::DEADLINE).expect("all are ended");
    let control = before.handle.control();
    wait_for("the clients to have left", || (control.clients() == 0).then_some(()));
    before.end();
    // Nobody is asked who has gone.
    order(&cluster, Order::Resume, common::DEADLINE).expect("it is paused");
    assert_eq!(Raw::login(cluster.port, &[]).query("select 1").len(), 4);
}

#[test]
fn every_address_that_is_listened_on_is_handed_over() {
    let mut typed = None;
    let dir = tempfile::Builder::new().prefix("pgt").tempdir().expect("a directory");
    let addresses = [1, 2, 3].map(|last| std::net::SocketAddr::from(([127, 0, 0, last], common::free_port())));
    let mut cluster = Cluster::start(0, |raw| {
        raw.listen = proxy::config::Addresses::new(addresses[..2].to_vec());
        raw.listen_read_only = Some(addresses[2].into());
        raw.unix_socket_dir = Some(dir.path().to_owned());
        typed = Some(raw.clone());
    });
    let config = proxy::config::check(typed.expect("the closure ran")).expect("valid");
    let show = |host: &str, port: u16| {
        let mut psql = std::process::Command::new(common::bin("psql"));
        let dsn = format!("host={host} port={port} user=app dbname=app");
        let output =
            psql.env("PGPASSWORD", common::PASSWORD).args(["-XAtc", "show transaction_read_only", "-d", &dsn]).output();
        String::from_utf8_lossy(&output.expect("psql can be started").stdout).trim().to_owned()
    };
    let answer = |address: std::net::SocketAddr| show(&address.ip().to_string(), address.port());
    // That of this host is the very same file afterwards.
    let local = || {
        let port = addresses[0].port();
        let file = std::fs::metadata(dir.path().join(format!(".s.PGSQL.{port}"))).expect("it is there");
        (show(&dir.path().display().to_string(), port), file.ino())
    };
    let handle = cluster.handle.as_ref().expect("it runs");
    assert_eq!((&handle.addrs[..], &handle.read_only_addrs[..]), addresses.split_at(2));
    assert_eq!(addresses.map(answer), ["off", "off", "on"]);
    let own = local();
    assert_eq!(own.0, "off");
    // So are the orders of operators.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let order = |cluster: &Cluster, order: Order, database: &str| {
        let handle = cluster.handle.as_ref().expect("it runs");
        runtime.block_on(handle.order(order, Scope::Database(database.to_owned()), common::DEADLINE))
    };
    order(&cluster, Order::Pause, "app").expect("nobody is in its way");
    order(&cluster, Order::Disable, "other").expect("it is closed");
    let before = succeed(&mut cluster, &config);
    before.end();
    let refused =
        cluster.client("psql").env("PGPORT", addresses[0].port().to_string()).env("PGDATABASE", "other").output();
    let said = String::from_utf8_lossy(&refused.expect("psql can be started").stderr).into_owned();
    assert!(said.contains("database \"other\" is not currently accepting connections"), "{said}");
    order(&cluster, Order::Resume, "app").expect("it is paused");
    assert_eq!(addresses.map(answer), ["off", "off", "on"]);
    assert_eq!(local(), own);
}
