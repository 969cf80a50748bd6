//! Writers through the endpoint that remember every answer, and the check of what became of their rows.
//!
//! Each connection inserts rows of its own numbers, one after another. A row that was acknowledged must be there
//! exactly once; one answered 08007 at most once; one refused by any other error not at all.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// What one writer saw.
#[derive(Default)]
struct Seen {
    acks: Vec<(i64, Instant)>,
    in_doubt: Vec<i64>,
    refused: Vec<i64>,
    errors: BTreeMap<String, u64>,
    dropped: Option<String>,
}

/// Running writers.
pub struct Load {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Seen>>,
}

/// What all writers saw, after they stopped.
pub struct Outcome {
    seen: Vec<Seen>,
}

/// Longest gaps between two acknowledgements, per connection.
#[derive(Clone, Debug, Serialize)]
pub struct Outage {
    /// The median connection's longest gap, ms.
    pub median_ms: f64,
    /// The worst connection's longest gap, ms.
    pub worst_ms: f64,
    /// Every connection's longest gap, ms, ascending.
    pub per_connection_ms: Vec<f64>,
}

/// The rows against the answers.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Rows acknowledged.
    pub acknowledged: u64,
    /// Acknowledged rows that are missing: must be 0 in strict mode.
    pub missing: u64,
    /// Rows that are there more than once: must be 0.
    pub duplicated: u64,
    /// Rows answered 08007.
    pub in_doubt: u64,
    /// Of those, rows that are there.
    pub in_doubt_present: u64,
    /// Rows refused (40001, 57P03, …) that are there nevertheless: must be 0.
    pub refused_present: u64,
    /// Connections that were lost: must be 0.
    pub connections_lost: u64,
    /// Errors seen, by SQLSTATE.
    pub errors: BTreeMap<String, u64>,
}

impl Verified {
    /// Does every promise hold, when `reported` commits were reported as lost?
    pub fn holds(&self, reported: u64) -> bool {
        self.acknowledged > 0
            && self.missing <= reported
            && self.duplicated == 0
            && self.refused_present == 0
            && self.connections_lost == 0
    }
}

/// Connect through the endpoint; the connection's task ends with the client.
pub async fn connect(dsn: &str) -> Result<Client> {
    let (client, connection) = tokio::time::timeout(Duration::from_secs(35), tokio_postgres::connect(dsn, NoTls))
        .await
        .context("no answer from the endpoint within 35 s while connecting")?
        .context("cannot connect to the endpoint")?;
    tokio::spawn(connection);
    Ok(client)
}

impl Load {
    /// `writers` connections insert into `table` (id bigint, writer int) until stopped. `first_id` keeps the rows of
    /// several loads apart.
    pub async fn start(dsn: &str, table: &str, writers: usize, first_id: i64) -> Result<Self> {
        let (stop, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let client = connect(dsn).await?;
            let sql = format!("insert into {table} (id, writer) values ($1, $2)");
            let (stop, acked) = (stop.clone(), acked.clone());
            let writer = i32::try_from(writer)?;
            let first = first_id + i64::from(writer) * 1_000_000_000;
            tasks.push(tokio::spawn(async move { write(client, sql, writer, first, &stop, &acked).await }));
        }
        Ok(Self { stop, acked, tasks })
    }

    /// Rows acknowledged so far, on all connections.
    pub fn acknowledged(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Wait until `more` rows beyond now are acknowledged.
    ///
    /// # Errors
    /// Not within `bound`.
    pub async fn wait_for(&self, more: u64, bound: Duration) -> Result<()> {
        let (start, goal) = (Instant::now(), self.acknowledged() + more);
        while self.acknowledged() < goal {
            if start.elapsed() > bound {
                bail!("only {} of {more} rows were acknowledged within {bound:?}", more - (goal - self.acknowledged()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Let each connection finish its row and stop.
    pub async fn stop(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Vec::new();
        for task in self.tasks {
            let one = tokio::time::timeout(Duration::from_secs(40), task).await;
            seen.push(one.context("a writer got no answer to its last row within 40 s")?.context("a writer panicked")?);
        }
        Ok(Outcome { seen })
    }
}

async fn write(client: Client, sql: String, writer: i32, first: i64, stop: &AtomicBool, acked: &AtomicU64) -> Seen {
    let mut seen = Seen::default();
    // Prepared once: the statement must survive the failover.
    let statement = match client.prepare(&sql).await {
        Ok(s) => s,
        Err(e) => {
            seen.dropped = Some(e.to_string());
            return seen;
        }
    };
    for id in first.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match client.execute(&statement, &[&id, &writer]).await {
            Ok(_) => {
                seen.acks.push((id, Instant::now()));
                acked.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => {
                let code = e.code().map_or("connection", |c| c.code()).to_owned();
                if code == "08007" || code == "connection" {
                    seen.in_doubt.push(id)
                } else {
                    seen.refused.push(id)
                }
                *seen.errors.entry(code).or_default() += 1;
                if client.is_closed() {
                    seen.dropped = Some(e.to_string());
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    seen
}

impl Outcome {
    /// The outage as the clients saw it.
    pub fn outage(&self) -> Outage {
        let longest = |s: &Seen| {
            let gaps = s.acks.windows(2).map(|w| w[1].1.duration_since(w[0].1));
            gaps.max().unwrap_or_default().as_secs_f64() * 1000.0
        };
        let mut all: Vec<f64> = self.seen.iter().map(longest).collect();
        all.sort_by(f64::total_cmp);
        let median = all.get(all.len() / 2).copied().unwrap_or_default();
        Outage { median_ms: median, worst_ms: all.last().copied().unwrap_or_default(), per_connection_ms: all }
    }

    /// Compare the rows that are in the table with the answers.
    pub async fn verify(&self, dsn: &str, table: &str) -> Result<Verified> {
        let client = connect(dsn).await?;
        // Not a read that a standby may serve: in a transaction it goes to the primary.
        client.batch_execute("begin").await?;
        let mut rows: HashMap<i64, u64> = HashMap::new();
        for row in client.query(&format!("select id from {table}"), &[]).await? {
            *rows.entry(row.get(0)).or_default() += 1;
        }
        client.batch_execute("commit").await?;
        let there = |id: &i64| rows.contains_key(id);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let acks = || self.seen.iter().flat_map(|s| s.acks.iter().map(|(id, _)| id));
        let doubt = || self.seen.iter().flat_map(|s| &s.in_doubt);
        let mut errors: BTreeMap<String, u64> = BTreeMap::new();
        for (code, n) in self.seen.iter().flat_map(|s| &s.errors) {
            *errors.entry(code.clone()).or_default() += n;
        }
        let mine = || acks().chain(doubt());
        Ok(Verified {
            acknowledged: count(acks().count()),
            missing: count(acks().filter(|id| !there(id)).count()),
            duplicated: count(mine().filter(|id| rows.get(id).is_some_and(|n| *n > 1)).count()),
            in_doubt: count(doubt().count()),
            in_doubt_present: count(doubt().filter(|id| there(id)).count()),
            refused_present: count(self.seen.iter().flat_map(|s| &s.refused).filter(|id| there(id)).count()),
            connections_lost: count(self.seen.iter().filter(|s| s.dropped.is_some()).count()),
            errors,
        })
    }
}
