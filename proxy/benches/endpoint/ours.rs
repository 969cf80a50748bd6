//! The proxy as a process of its own: a topology that never changes, lag sampled from both servers, and routing on, off, or
//! with a question behind each write.

use crate::process::SAMPLER;
use cluster::lag::{Detail, LagSnapshot, PrimarySample, StandbyLag, StandbySample};
use cluster::node::Endpoint;
use cluster::topology::{Gate, Member, Topology};
use cluster::{Clock, Lsn, NodeId, Term, TimelineId};
use proxy::config;
use proxy::config::tls::ClientMode;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_postgres::NoTls;

/// How often lag is sampled, and how soon again where somebody waits for a sample: as lagmon does by default, so that the cost
/// is what it is in use.
const SAMPLE: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_millis(2);

/// Run until the standard input ends. Prints its port first.
pub(crate) fn run(role: &str, primary: u16, standby: u16, userlist: PathBuf) -> anyhow::Result<()> {
    let mut raw = config::Raw {
        listen: ([127, 0, 0, 1], 0).into(),
        workers: crate::variable("BENCH_WORKERS", 2)?,
        batch_scheduling: crate::variable("BENCH_BATCH", config::BatchScheduling::default())?,
        io_uring: crate::variable("BENCH_URING", config::IoUring::default())?,
        pool_size: 20,
        max_client_connections: 20_000,
        userlist: userlist.clone(),
        monitor_user: "postgres".to_owned(),
        ..config::Raw::default()
    };
    match role {
        "--unrouted" => raw.reads.read_from = proxy::route::ReadFrom::Primary,
        "--asking" => raw.reads.commit_lsn = config::reads::CommitLsn::Ask,
        _ => {}
    }
    // As PgBouncer is set up: what is compared is connections, not password hashes.
    raw.auth.rules = vec!["host all all all trust".to_owned()];
    let (cert, key) = crate::tls::files(&userlist);
    raw.tls = config::tls::ClientRaw { mode: ClientMode::Allow, cert: Some(cert), key: Some(key), ..raw.tls };
    let config = config::check(raw).map_err(|bad| anyhow::anyhow!("{bad:?}"))?;
    let (primary, standby) = (member("n1", primary)?, member("n2", standby)?);
    let topology = Topology {
        term: Term(1),
        system_id: None,
        revision: 1,
        gate: Gate::Open,
        primary: Some(primary.clone()),
        standbys: vec![standby.clone()],
        valid_until: None,
        confirmed_until: None,
        epoch: 1,
        protected: true,
        semi_sync: true,
        quorums: Vec::new(),
        begun_by: 1,
        read_at: None,
        fork: None,
        forks: Vec::new(),
        xid_bounds: Vec::new(),
        holds_all_of: None,
        holds_written_of: None,
        loss_allowed: false,
    };
    let (_publish, topology) = watch::channel(topology);
    let (lag, lag_seen) = watch::channel(Arc::new(LagSnapshot::default()));
    let asked = Arc::new(Notify::new());
    let ask = {
        let asked = asked.clone();
        Arc::new(move || asked.notify_one()) as proxy::AskSample
    };
    let inputs = proxy::Inputs { topology, lag: lag_seen, ask: Some(ask), ask_view: None };
    let handle = proxy::start(config, inputs, &prometheus::Registry::new())?;
    std::thread::Builder::new().name(SAMPLER.to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(sample(&primary, &standby, &lag, &asked))
    })?;
    println!("{}", handle.addr.port());
    let _ = std::io::stdin().read(&mut [0])?;
    Ok(())
}

fn member(name: &str, port: u16) -> anyhow::Result<Member> {
    let node: NodeId = name.parse()?;
    Ok(Member {
        node,
        postgres: Endpoint { host: "127.0.0.1".to_owned(), port },
        fenced: false,
        candidate: true,
        zone: None,
    })
}

async fn sample(
    primary: &Member,
    standby: &Member,
    lag: &watch::Sender<Arc<LagSnapshot>>,
    asked: &Notify,
) -> anyhow::Result<()> {
    let (p, s) = (connect(primary).await?, connect(standby).await?);
    loop {
        let sent_at = Clock.now();
        let insert_lsn = position(&p, "pg_current_wal_insert_lsn()").await?.normalised_insert();
        let node = primary.node.clone();
        let sampled = PrimarySample {
            node,
            timeline: TimelineId(1),
            insert_lsn,
            flush_lsn: insert_lsn,
            sent_at,
            confirmed_until: Some(sent_at),
            flushed_until: Some(sent_at),
            applied_lsn: None,
        };
        let sent_at = Clock.now();
        let replay_lsn = position(&s, "pg_last_wal_replay_lsn()").await?;
        let behind = insert_lsn.bytes_since(replay_lsn);
        let replayed = StandbySample {
            receive_lsn: replay_lsn,
            replay_lsn,
            received_timeline: Some(TimelineId(1)),
            replay_lag_bytes: Some(behind),
            sent_at,
            asked_at: sent_at,
            up_since: cluster::Instant::from_millis(0),
            started: None,
        };
        let replay_lag = Ok(if behind == 0 { Duration::ZERO } else { SAMPLE });
        let standbys = vec![StandbyLag {
            node: standby.node.clone(),
            sample: Some(replayed),
            replay_lag,
            detail: Detail::default(),
        }];
        lag.send_replace(Arc::new(LagSnapshot { term: Term(1), primary: Some(sampled), standbys, proven_at: None }));
        tokio::time::sleep(AGAIN).await;
        let _ = tokio::time::timeout(SAMPLE - AGAIN, asked.notified()).await;
    }
}

async fn connect(member: &Member) -> anyhow::Result<tokio_postgres::Client> {
    let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", member.postgres.port);
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn position(client: &tokio_postgres::Client, function: &str) -> anyhow::Result<Lsn> {
    let row = client.query_one(&format!("select {function}::text"), &[]).await?;
    Ok(row.try_get::<_, String>(0)?.parse()?)
}
