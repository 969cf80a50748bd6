//! The workload of a run: unique inserts, a bank and lists that are appended to, through both proxies, every answer
//! remembered with who gave it.

use super::scenario::Dice;
use super::told::{Content, Event, OPENING_BALANCE, Op, Outcome, Stamp};
use crate::client::{Answer, Client, ClientError, Target};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Accounts of the bank.
const ACCOUNTS: i64 = 40;
/// The first so many are for transfers that may wait to be applied: what they lock then, the others do without.
const APPLIED: i64 = 8;
/// Lists.
const LISTS: i64 = 6;
/// Ids of different clients never meet.
const BLOCK: i64 = 1_000_000;
/// Between two operations of a client: enough of them, and the cores are left to what is tested.
const PAUSE: Duration = Duration::from_millis(40);
/// In the end what goes on is waited for so long; then its connection ends, and nobody knows what became of it.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// Clients of each kind, per proxy.
const KINDS: [Kind; 6] = [Kind::Insert, Kind::Insert, Kind::Bank, Kind::Bank, Kind::Lists, Kind::Read];

/// What the server says of itself, in the statement that writes.
const STAMP: &str = "current_setting('cluster_name'), \
     ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, \
     pg_current_xact_id(), current_setting('synchronous_standby_names'), current_setting('synchronous_commit'), \
     pg_current_wal_insert_lsn() - '0/0'";
/// How many columns that are.
const STAMPS: usize = 6;
/// Tells where a read was answered; a volatile function would send it to the primary.
const WHERE: &str = "current_setting('in_hot_standby')";
/// One in so many operations on lists is a read of the list that was appended to last, by the same session.
const READ_BACK: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Insert,
    Bank,
    Lists,
    Read,
}

/// Make the tables of a run, which are dropped first.
///
/// # Errors
/// The server's or the connection's.
pub fn create(client: &mut Client) -> Result<(), ClientError> {
    client.query(&format!(
        "drop schema if exists nemesis cascade; create schema nemesis; \
         create table nemesis.rows (id bigint not null); \
         create table nemesis.accounts (id bigint primary key, balance bigint not null); \
         create table nemesis.transfers (id bigint not null, debit bigint not null, credit bigint not null); \
         create table nemesis.lists (id bigint primary key, list bigint[] not null); \
         insert into nemesis.accounts select i, {OPENING_BALANCE} from generate_series(1, {ACCOUNTS}) i; \
         insert into nemesis.lists select i, '{{}}' from generate_series(1, {LISTS}) i"
    ))?;
    Ok(())
}

/// A running workload.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Vec<Event>>>,
    lines: Vec<Line>,
    start: Instant,
}

/// A client's present connection, for who wants to end it.
type Line = Arc<Mutex<Option<TcpStream>>>;

impl Load {
    /// Start it through every target. When asked for, half of the transfers through the first one wait until a standby has
    /// applied them.
    pub fn start(targets: &[Target], seed: u64, to_be_applied: bool) -> Self {
        Self::of(&KINDS, PAUSE, targets, seed, to_be_applied)
    }

    /// Only inserts, and more of them: to see how long nothing is acknowledged.
    pub fn inserts(targets: &[Target], seed: u64) -> Self {
        Self::of(&[Kind::Insert; 4], Duration::from_millis(4), targets, seed, false)
    }

    /// Inserts and the bank, for hours: no list, which would grow without bound.
    pub fn steady(targets: &[Target], seed: u64) -> Self {
        Self::of(&[Kind::Insert, Kind::Insert, Kind::Bank], Duration::from_millis(100), targets, seed, false)
    }

    fn of(kinds: &[Kind], pause: Duration, targets: &[Target], seed: u64, to_be_applied: bool) -> Self {
        let (stop, start) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let acknowledged: Vec<Arc<AtomicU64>> = targets.iter().map(|_| Arc::default()).collect();
        let (mut threads, mut lines) = (Vec::new(), Vec::new());
        for (i, (target, count)) in targets.iter().zip(&acknowledged).enumerate() {
            for kind in kinds.iter().copied() {
                let number = threads.len();
                let line = Line::default();
                lines.push(line.clone());
                let runner = Runner {
                    target: target.clone(),
                    client: None,
                    line,
                    pause,
                    to_be_applied: to_be_applied && i == 0,
                    number,
                    next: (number as i64 + 1) * BLOCK,
                    session: (number as u64) << 32,
                    list: 1,
                    dice: Dice::new(seed ^ (number as u64 + 1) << 32),
                    start,
                    events: Vec::new(),
                };
                let (stop, count) = (stop.clone(), count.clone());
                threads.push(std::thread::spawn(move || runner.run(kind, &stop, &count)));
            }
        }
        Self { stop, acknowledged, threads, lines, start }
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Wait until so many more writes are acknowledged through each target; how long that took.
    ///
    /// # Errors
    /// When `within` has passed before.
    pub fn acknowledges(&self, writes: u64, within: Duration) -> Result<Duration, String> {
        let begun = Instant::now();
        let goals: Vec<u64> = self.acknowledged.iter().map(|c| c.load(Ordering::Relaxed) + writes).collect();
        let missing = || {
            let counts = self.acknowledged.iter().map(|c| c.load(Ordering::Relaxed));
            counts.zip(&goals).filter(|(now, goal)| now < goal).count()
        };
        while missing() > 0 {
            if begun.elapsed() > within {
                return Err(format!("{} proxies did not acknowledge {writes} writes in {within:?}", missing()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(begun.elapsed())
    }

    /// When it began, since 1970.
    pub fn began(&self) -> Duration {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(self.start.elapsed())
    }

    /// Stop after the present operations, which are not waited for long, and tell everything.
    ///
    /// # Panics
    /// When a client's thread panicked.
    pub fn finish(mut self) -> Vec<Event> {
        self.stop.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        while begun.elapsed() < ENDS_WITHIN && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        for line in &self.lines {
            if let Some(stream) = &*line.lock().unwrap_or_else(PoisonError::into_inner) {
                // It may have ended by itself.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        let threads = std::mem::take(&mut self.threads);
        threads.into_iter().flat_map(|t| t.join().expect("a client does not panic")).collect()
    }
}

impl Drop for Load {
    /// A run that is given up must not write into the next one.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Runner {
    target: Target,
    client: Option<Client>,
    line: Line,
    pause: Duration,
    /// Half of the transfers ask for more than the mode: they are on a standby's disk while they still wait.
    to_be_applied: bool,
    number: usize,
    next: i64,
    session: u64,
    /// The list that was used last.
    list: i64,
    dice: Dice,
    start: Instant,
    events: Vec<Event>,
}

/// What came of one attempt.
struct Attempt {
    op: Op,
    sent: Instant,
    /// The answer whose first row has the stamp first, for writes; for reads what was read comes first.
    result: Result<Answer, ClientError>,
    /// A failure of it may have left something behind.
    in_doubt: bool,
}

impl Runner {
    fn run(mut self, kind: Kind, stop: &AtomicBool, acknowledged: &AtomicU64) -> Vec<Event> {
        while !stop.load(Ordering::Relaxed) {
            let mut client = match self.client.take() {
                Some(client) => client,
                // A proxy may be dead or cut off for a while: its clients come again.
                None => match Client::connect(&self.target) {
                    Ok(client) => {
                        self.session += 1;
                        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = client.line().ok();
                        client
                    }
                    Err(_) => {
                        std::thread::sleep(self.pause * 2);
                        continue;
                    }
                },
            };
            let attempt = self.attempt(kind, &mut client);
            let event = self.event(attempt, &mut client);
            let gone = matches!(&event.outcome, Outcome::Unknown(why) if !why.starts_with("08007"));
            if event.outcome == Outcome::Ok && event.stamp.is_some() {
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            self.events.push(event);
            if !gone && usable(&mut client) {
                self.client = Some(client);
            }
            std::thread::sleep(self.pause);
        }
        self.events
    }

    fn attempt(&mut self, kind: Kind, client: &mut Client) -> Attempt {
        self.next += 1;
        let id = self.next;
        let sent = Instant::now();
        match kind {
            Kind::Insert => {
                let sql = format!("insert into nemesis.rows values ({id}) returning {STAMP}");
                Attempt { op: Op::Insert { id }, sent, result: client.query(&sql), in_doubt: true }
            }
            Kind::Lists if self.dice.below(READ_BACK) == 0 => {
                let (list, at_primary) = (self.list, false);
                let result = client.query(&format!("{} where id = {list}", read_lists()));
                Attempt { op: Op::Read { list, at_primary }, sent, result, in_doubt: false }
            }
            Kind::Lists => {
                let list = 1 + self.dice.below(LISTS as u64) as i64;
                self.list = list;
                let sql = format!(
                    "update nemesis.lists set list = list || {id}::bigint where id = {list} \
                     returning {STAMP}, array_to_string(list, ' ')"
                );
                Attempt { op: Op::Append { list, value: id }, sent, result: client.query(&sql), in_doubt: true }
            }
            Kind::Bank => self.transfer(client, id),
            Kind::Read => {
                let list = 1 + self.dice.below(LISTS as u64) as i64;
                let (op, sql) = match self.dice.below(3) {
                    0 => (Op::Total, format!("select sum(balance), {WHERE} from nemesis.accounts")),
                    n => {
                        let sql = format!("{} where id = {list}", read_lists());
                        let at_primary = n == 1;
                        let sql = if at_primary { format!("begin; {sql}; commit") } else { sql };
                        (Op::Read { list, at_primary }, sql)
                    }
                };
                Attempt { op, sent, result: client.query(&sql), in_doubt: false }
            }
        }
    }

    /// A transaction in five round trips; its outcome is that of the COMMIT once that was sent.
    fn transfer(&mut self, client: &mut Client, id: i64) -> Attempt {
        let (before, count) = if self.to_be_applied { (0, APPLIED) } else { (APPLIED, ACCOUNTS - APPLIED) };
        let a = 1 + self.dice.below(count as u64) as i64;
        let b = 1 + (a + self.dice.below(count as u64 - 1) as i64) % count;
        let (a, b) = (before + a, before + b);
        let amount = 1 + self.dice.below(20) as i64;
        let op = Op::Transfer { id, from: a, to: b, amount };
        // In one order, so that no two deadlock.
        let both = [(a.min(b), if a < b { -amount } else { amount }), (a.max(b), if a < b { amount } else { -amount })];
        let work = |client: &mut Client, waits: bool| {
            client.query("begin")?;
            if waits {
                client.query("set local synchronous_commit = remote_apply")?;
            }
            for (account, change) in both {
                client
                    .query(&format!("update nemesis.accounts set balance = balance + {change} where id = {account}"))?;
            }
            client.query(&format!("insert into nemesis.transfers values ({id}, {a}, {b}) returning {STAMP}"))
        };
        let begun = Instant::now();
        let waits = self.to_be_applied && self.dice.below(2) == 0;
        match work(client, waits) {
            Ok(stamped) => {
                let sent = Instant::now();
                let result = match client.query("commit") {
                    Ok(answer) if answer.tags == ["COMMIT"] => Ok(stamped),
                    // A block that has failed answers ROLLBACK: nothing has happened.
                    Ok(_) => return Attempt { op, sent, result: Err(rolled_back()), in_doubt: false },
                    Err(e) => Err(e),
                };
                Attempt { op, sent, result, in_doubt: true }
            }
            Err(e) => Attempt { op, sent: begun, result: Err(e), in_doubt: false },
        }
    }

    fn event(&self, attempt: Attempt, client: &mut Client) -> Event {
        let Attempt { op, sent, result, in_doubt } = attempt;
        let read = matches!(op, Op::Read { .. } | Op::Total);
        let commit = in_doubt && matches!(op, Op::Transfer { .. });
        let unknown = |why: String| if in_doubt { Outcome::Unknown(why) } else { Outcome::Failed(why) };
        let mut at_standby = false;
        let (outcome, stamp, seen) = match result {
            Ok(answer) => {
                let row = answer.rows.first().cloned().unwrap_or_default();
                let stamp = if read { None } else { stamp(&row) };
                at_standby = read && row.get(1).and_then(Option::as_deref) == Some("on");
                let seen = row.get(if read { 0 } else { STAMPS }).and_then(Option::as_deref).map(numbers);
                (Outcome::Ok, stamp, seen.unwrap_or_default())
            }
            Err(ClientError::Server(e)) if e.severity != "FATAL" && e.sqlstate != "08007" => {
                (Outcome::Failed(e.sqlstate), None, Vec::new())
            }
            Err(ClientError::Server(e)) => {
                if e.severity == "FATAL" {
                    client.status = 0;
                }
                (unknown(format!("{} {}", e.sqlstate, e.message)), None, Vec::new())
            }
            Err(ClientError::Io(e)) => {
                // The protocol is out of step now, whatever the status said last.
                client.status = 0;
                (unknown(e.to_string()), None, Vec::new())
            }
        };
        let (sent, answered) = (sent - self.start, self.start.elapsed());
        Event {
            client: self.number,
            session: self.session,
            op,
            sent,
            answered,
            outcome,
            stamp,
            seen,
            at_standby,
            commit,
        }
    }
}

fn rolled_back() -> ClientError {
    let error = crate::client::ServerError { sqlstate: "40000".into(), ..Default::default() };
    ClientError::Server(error)
}

/// Outside a transaction, or brought there.
fn usable(client: &mut Client) -> bool {
    match client.status {
        b'I' => true,
        b'T' | b'E' => client.query("rollback").is_ok() && client.status == b'I',
        _ => false,
    }
}

fn read_lists() -> String {
    format!("select array_to_string(list, ' '), {WHERE} from nemesis.lists")
}

fn stamp(row: &[Option<String>]) -> Option<Stamp> {
    let number = |i: usize| row.get(i)?.as_deref()?.parse::<u64>().ok();
    let text = |i: usize| row.get(i).cloned().flatten().unwrap_or_default();
    let (sync_names, sync_commit) = (text(3), text(4));
    let (node, timeline, xid, lsn) = (row.first()?.clone()?, number(1)?, number(2)?, number(5)?);
    Some(Stamp { node, timeline, lsn, xid, sync_names, sync_commit })
}

fn numbers(text: &str) -> Vec<i64> {
    text.split_whitespace().filter_map(|n| n.parse().ok()).collect()
}

/// What a node holds, but for its terms.
///
/// # Errors
/// The server's or the connection's.
pub fn content(client: &mut Client) -> Result<Content, ClientError> {
    let mut content = Content::default();
    let mut pairs = |sql: &str| -> Result<Vec<(i64, String)>, ClientError> {
        let answer = client.query(sql)?;
        let pair = |r: &Vec<Option<String>>| Some((r.first()?.as_deref()?.parse().ok()?, r.get(1)?.clone()?));
        Ok(answer.rows.iter().filter_map(pair).collect())
    };
    let count = |pairs: Vec<(i64, String)>| pairs.into_iter().map(|(id, n)| (id, n.parse().unwrap_or(0)));
    content.rows = count(pairs("select id, count(*) from nemesis.rows group by id")?).collect();
    content.transfers = count(pairs("select id, count(*) from nemesis.transfers group by id")?).collect();
    let balances = pairs("select id, balance from nemesis.accounts")?;
    content.balances = balances.into_iter().map(|(id, n)| (id, n.parse().unwrap_or(i64::MIN))).collect();
    let lists = pairs("select id, array_to_string(list, ' ') from nemesis.lists")?;
    content.lists = lists.into_iter().map(|(id, list)| (id, numbers(&list))).collect();
    Ok(content)
}
