//! Connections that insert numbered rows and remember what they were told about each.

use crate::client::{Client, ClientError, Target};
use crate::history::{Event, History, Outcome};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a connection writes a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One autocommit INSERT by simple query.
    Autocommit,
    /// BEGIN, INSERT and COMMIT, each waited for.
    Block,
    /// A named prepared statement, prepared once when the connection begins.
    Prepared,
}

/// A running workload on table `rows(id bigint)`.
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<Event>>>,
}

/// Ids of different connections and workloads never meet: each connection counts up from a block of its own.
const BLOCK: i64 = 1_000_000;

impl Workload {
    /// Make the table, unless it is there.
    ///
    /// # Errors
    /// The server's or the connection's.
    pub fn create_table(target: &Target) -> Result<(), ClientError> {
        Client::connect(target)?.query("create table if not exists rows(id bigint not null)").map(|_| ())
    }

    /// Start `connections` writers, their styles in turn from `styles`; ids begin at `first_block`. `pause` between two
    /// rows of a connection bounds the load.
    ///
    /// # Panics
    /// When a connection cannot log in: a workload starts on a healthy cluster.
    pub fn start(target: &Target, connections: usize, styles: &[Style], first_block: i64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads = (0..connections)
            .map(|connection| {
                let mut client = Client::connect(target).expect("a workload starts on a healthy cluster");
                let style = styles[connection % styles.len()];
                if style == Style::Prepared {
                    let sql = "insert into rows(id) values ($1)";
                    client
                        .send(&[crate::client::parse("ins", sql), crate::client::message(b'S', b"")].concat())
                        .expect("sent");
                    client.until_ready().expect("prepared");
                }
                let (stop, count) = (stop.clone(), acknowledged.clone());
                let mut id = (first_block + connection as i64) * BLOCK;
                std::thread::spawn(move || {
                    let mut events = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        id += 1;
                        let event = write_row(&mut client, style, id, connection);
                        if event.outcome == Outcome::Acknowledged {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        let dead = matches!(event.outcome, Outcome::Disconnected(_));
                        events.push(event);
                        if dead {
                            break;
                        }
                        std::thread::sleep(pause);
                    }
                    events
                })
            })
            .collect();
        Self { stop, acknowledged, threads }
    }

    /// Rows acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Wait until that many more rows are acknowledged.
    ///
    /// # Panics
    /// When that takes longer than `within`.
    pub fn wait_for_more(&self, rows: u64, within: Duration) {
        let goal = self.acknowledged() + rows;
        crate::wait::wait_for(&format!("{rows} more acknowledged rows"), within, || {
            if self.acknowledged() >= goal { Ok(()) } else { Err(self.acknowledged()) }
        });
    }

    /// Have all connections died?
    pub fn has_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Stop all connections after their present row.
    ///
    /// # Panics
    /// When a writer thread panicked.
    pub fn finish(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.threads.into_iter().flat_map(|t| t.join().expect("a writer does not panic"));
        History { events: joined.collect() }
    }
}

/// Connections that read, over and over, and note who answered.
#[derive(Debug)]
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<ReadLog>>,
}

/// What readers saw.
#[derive(Clone, Debug, Default)]
pub struct ReadLog {
    /// Answers by node.
    pub served_by: BTreeMap<String, usize>,
    /// Everything that was not an answer.
    pub errors: Vec<String>,
}

impl Readers {
    /// Start `connections` readers with `pause` between two reads.
    ///
    /// # Panics
    /// When a connection cannot log in: readers start on a healthy cluster.
    pub fn start(target: &Target, connections: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..connections)
            .map(|_| {
                let mut client = Client::connect(target).expect("readers start on a healthy cluster");
                let stop = stop.clone();
                std::thread::spawn(move || {
                    let mut log = ReadLog::default();
                    while !stop.load(Ordering::Relaxed) {
                        match client.query("select current_setting('cluster_name')") {
                            Ok(answer) => *log.served_by.entry(answer.value().to_owned()).or_insert(0) += 1,
                            Err(e) => log.errors.push(e.to_string()),
                        }
                        if log.errors.len() > 100 {
                            break;
                        }
                        std::thread::sleep(pause);
                    }
                    log
                })
            })
            .collect();
        Self { stop, threads }
    }

    /// Stop them all.
    ///
    /// # Panics
    /// When a reader thread panicked.
    pub fn finish(self) -> ReadLog {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = ReadLog::default();
        for log in self.threads.into_iter().map(|t| t.join().expect("a reader does not panic")) {
            for (node, count) in log.served_by {
                *all.served_by.entry(node).or_insert(0) += count;
            }
            all.errors.extend(log.errors);
        }
        all
    }
}

/// How often each id is in the table, for ids at or past `first_block`'s.
///
/// # Errors
/// The server's or the connection's.
pub fn rows_found(client: &mut Client, first_block: i64) -> Result<BTreeMap<i64, usize>, ClientError> {
    let from = first_block * BLOCK;
    // In a transaction block, because those go to the primary.
    let sql = format!("begin; select id, count(*) from rows where id >= {from} group by id; commit");
    let number = |v: &Option<String>| v.as_deref().and_then(|v| v.parse::<i64>().ok()).expect("a number");
    let answer = client.query(&sql)?;
    Ok(answer.rows.iter().map(|r| (number(&r[0]), number(&r[1]) as usize)).collect())
}

fn write_row(client: &mut Client, style: Style, id: i64, connection: usize) -> Event {
    let mut sent = Instant::now();
    let result = match style {
        Style::Autocommit => client.query(&format!("insert into rows(id) values ({id})")).map(|_| ()),
        Style::Prepared => client.extended("ins", None, &[&id.to_string()]).map(|_| ()),
        Style::Block => block(client, id, &mut sent),
    };
    let outcome = match result {
        Ok(()) => Outcome::Acknowledged,
        Err(ClientError::Server(e)) if e.severity == "FATAL" => {
            Outcome::Disconnected(format!("FATAL {} {}", e.sqlstate, e.message))
        }
        Err(ClientError::Server(e)) if e.sqlstate == "08007" => Outcome::InDoubt,
        Err(ClientError::Server(e)) => Outcome::Refused(e.sqlstate),
        Err(ClientError::Io(e)) => Outcome::Disconnected(e.to_string()),
    };
    Event { id, connection, sent, answered: Instant::now(), outcome }
}

/// A transaction in three round trips. Whatever failed, the connection is outside a transaction afterwards.
fn block(client: &mut Client, id: i64, sent: &mut Instant) -> Result<(), ClientError> {
    let tried = (|| {
        client.query("begin")?;
        client.query(&format!("insert into rows(id) values ({id})"))?;
        *sent = Instant::now();
        let answer = client.query("commit")?;
        // A COMMIT of a failed block answers ROLLBACK; no statement of this block failed, so that would be a lie.
        if answer.tags == ["COMMIT"] { Ok(()) } else { Err(std::io::Error::other(format!("{:?}", answer.tags)).into()) }
    })();
    if tried.is_err() && client.status != b'I' {
        client.query("rollback")?;
    }
    tried
}
