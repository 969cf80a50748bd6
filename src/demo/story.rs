//! The story the exercise plays: write, kill the primary, go on writing, get the old primary back, switch back.
//! Every sentence of it is checked; what it prints is what was seen.

use super::cluster::Cluster;
use super::load::{self, Load, Outage, Verified};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use failover::record::LossReport;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Connections that write.
const WRITERS: usize = 8;
/// Rows acknowledged before the kill, so that the load is steady.
const WARM_ROWS: u64 = 200;
/// How long each of its steps may take, on a machine whose disk stalls.
const PATIENCE: Duration = Duration::from_secs(60);
/// The whole story must end within this.
pub const BOUND: Duration = Duration::from_secs(300);

/// How the primary dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Death {
    /// `kill -9` of the postmaster.
    Postmaster,
    /// `kill -9` of the postmaster and of the agent beside it.
    PostmasterAndAgent,
    /// SIGSTOP of the agent and of every PostgreSQL process of the node: as if its host were gone.
    Freeze,
}

/// What was seen. `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// The cluster's mode.
    pub mode: String,
    /// How the primary died.
    pub death: Death,
    /// The primary that was killed.
    pub old_primary: String,
    /// The primary afterwards.
    pub new_primary: String,
    /// The new term.
    pub term: u64,
    /// The outage as the writers saw it.
    pub outage: Outage,
    /// The failover's phases: milliseconds since it began.
    pub phases: BTreeMap<String, u64>,
    /// The unreplicated-write window: what the old primary's own WAL held past the fork, read before it rejoined.
    pub unreplicated: LossReport,
    /// Reads by the node that served them.
    pub reads_by_node: BTreeMap<String, u64>,
    /// Why the primary served some of them, as the endpoint told its client.
    pub primary_reads: BTreeMap<String, u64>,
    /// Milliseconds until the old primary streamed again.
    pub rejoined_ms: u64,
    /// Rows against answers, the failover.
    pub failover_rows: Verified,
    /// The switchover back: the pause as the writers saw it.
    pub switchover_pause: Outage,
    /// Rows against answers, the switchover.
    pub switchover_rows: Verified,
    /// All took so long.
    pub seconds: f64,
}

/// Play it. Progress goes to `say`.
pub async fn play(cluster: &Cluster, death: Death, say: &dyn Fn(&str)) -> Result<Seen> {
    let start = Instant::now();
    let dsn = cluster.dsn();
    let client = load::connect(&dsn).await?;
    client.batch_execute("create table demo_rows (id bigint not null, writer int not null)").await?;
    let before = cluster.active(None).await?;
    say(&format!("term {}: primary {}; {WRITERS} connections write", before.term, before.primary));

    let load = Load::start(&dsn, "demo_rows", WRITERS, 0).await?;
    load.wait_for(WARM_ROWS, PATIENCE).await.context("the writers before the kill")?;
    let (reads_by_node, primary_reads) = reads(&dsn, &before.primary).await?;
    say(&format!("reads are served by {reads_by_node:?}; by the primary because of {primary_reads:?}"));

    let killed = Instant::now();
    let end_of_freeze = cluster.kill_node(&before.primary, death).await?;
    say(&format!("{death:?} of {}: the same connections keep writing", before.primary));
    let after = cluster.active(Some(before.term)).await?;
    load.wait_for(WARM_ROWS, PATIENCE).await.context("the writers after the kill")?;
    let phases = cluster.phases(after.term).await?;
    say(&format!("term {}: primary {}; phases {phases:?}", after.term, after.primary));
    if let Some(thaw) = end_of_freeze {
        thaw.go();
    }

    cluster.streams(&before.primary, PATIENCE).await?;
    let rejoined_ms = millis(killed.elapsed());
    say(&format!("{} streams again as a standby after {rejoined_ms} ms", before.primary));
    let outcome = load.stop().await?;
    let outage = outcome.outage();
    let failover_rows = outcome.verify(&dsn, "demo_rows").await?;
    say(&format!("outage: median {:.0} ms, worst {:.0} ms", outage.median_ms, outage.worst_ms));
    let unreplicated = cluster.final_report(after.term, &before.primary, PATIENCE).await?;

    let load = Load::start(&dsn, "demo_rows", WRITERS, 1_000_000_000_000).await?;
    load.wait_for(WARM_ROWS, PATIENCE).await.context("the writers before the switchover")?;
    cluster.switchover(&before.primary).await?;
    load.wait_for(WARM_ROWS, PATIENCE).await.context("the writers after the switchover")?;
    let back = cluster.active(Some(after.term)).await?;
    let outcome = load.stop().await?;
    let switchover_pause = outcome.outage();
    let switchover_rows = outcome.verify(&dsn, "demo_rows").await?;
    say(&format!("switchover back to {}: pause {:.0} ms", back.primary, switchover_pause.worst_ms));
    ensure!(back.primary == before.primary, "the switchover went to {}, not {}", back.primary, before.primary);

    let seconds = start.elapsed().as_secs_f64();
    let (old_primary, new_primary, term) = (before.primary, after.primary, after.term);
    let seen = Seen {
        mode: cluster.mode().to_owned(),
        death,
        old_primary,
        new_primary,
        term,
        outage,
        phases,
        unreplicated,
        reads_by_node,
        primary_reads,
        rejoined_ms,
        failover_rows,
        switchover_pause,
        switchover_rows,
        seconds,
    };
    Ok(seen)
}

/// Autocommit reads: which nodes serve them, and why does the primary? A session that is the first of its database
/// begins there, as what functions do is not known yet; and what it has seen there a standby must have replayed.
async fn reads(dsn: &str, primary: &str) -> Result<(BTreeMap<String, u64>, BTreeMap<String, u64>)> {
    let client = load::connect(dsn).await?;
    let deadline = Instant::now() + PATIENCE;
    let mut by_node: BTreeMap<String, u64> = BTreeMap::new();
    let mut because: BTreeMap<String, u64> = BTreeMap::new();
    while Instant::now() < deadline {
        let row = client.query_one("select current_setting('cluster_name')", &[]).await?;
        let node: String = row.get(0);
        if node == primary {
            // The proxy answers it as a simple query.
            let shown = client.simple_query("show pgtenure.last_route").await?;
            let route = shown.iter().find_map(|said| match said {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            let route = route.unwrap_or_default();
            let reason = route.split(": ").nth(1).unwrap_or("unknown").to_owned();
            *because.entry(reason).or_default() += 1;
        }
        *by_node.entry(node).or_default() += 1;
        let by_standbys: u64 = by_node.iter().filter(|(node, _)| *node != primary).map(|(_, n)| n).sum();
        if by_standbys >= 100 {
            return Ok((by_node, because));
        }
    }
    bail!("reads were not served by standbys within {PATIENCE:?}: {by_node:?}, {because:?}")
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Seen {
    /// Everything promised holds: in strict mode no acknowledged row is missing, in async mode no more of them than
    /// the report says.
    pub fn holds(&self) -> bool {
        let reported = if self.mode == "async" { self.unreplicated.commits } else { 0 };
        self.failover_rows.holds(reported) && self.switchover_rows.holds(0) && self.old_primary != self.new_primary
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let rows = |v: &Verified| {
            format!(
                "{} acknowledged, {} missing, {} duplicated; {} answered 08007 ({} of them there); errors {:?}; {} connections lost",
                v.acknowledged, v.missing, v.duplicated, v.in_doubt, v.in_doubt_present, v.errors, v.connections_lost
            )
        };
        let phases: Vec<String> = self.phases.iter().map(|(p, ms)| format!("{p} {ms}")).collect();
        [
            format!("death             {:?} of {}", self.death, self.old_primary),
            format!("new primary       {} at term {}", self.new_primary, self.term),
            format!("outage            median {:.0} ms, worst {:.0} ms", self.outage.median_ms, self.outage.worst_ms),
            format!("phases (ms)       {}", phases.join(", ")),
            format!(
                "unreplicated      {} bytes, {} commits past {} on {}",
                self.unreplicated.bytes, self.unreplicated.commits, self.unreplicated.fork_lsn, self.unreplicated.node
            ),
            format!("old primary       streams again after {} ms", self.rejoined_ms),
            format!("reads             {:?}, by the primary because of {:?}", self.reads_by_node, self.primary_reads),
            format!("rows, failover    {}", rows(&self.failover_rows)),
            format!(
                "switchover        pause median {:.0} ms, worst {:.0} ms",
                self.switchover_pause.median_ms, self.switchover_pause.worst_ms
            ),
            format!("rows, switchover  {}", rows(&self.switchover_rows)),
            if self.holds() { "every promise held" } else { "A PROMISE WAS BROKEN" }.to_owned(),
        ]
        .join("\n")
    }
}
