//! Every driver takes turns through the endpoint while the primary is replaced, pooling by transaction and by session: a
//! write, a transaction, a read of the last one written, over and over on one connection.
//!
//! A turn's line is `ok N KIND`, `error N KIND SQLSTATE MESSAGE`, or `missing N KIND` for a read that did not see the
//! session's own write; `closed` says that the driver had to connect again. In a switchover nothing but `ok` may be
//! printed. When the primary is killed a turn may end with a code that says so, on a connection that goes on. What was
//! acknowledged is there in the end, and what was refused is not, unless the outcome was unknown.

use crate::places::{Places, TURNS, connects};
use crate::script::Login;
use integration::client::Client;
use integration::cluster::{Cluster, LONG};
use integration::wait::wait_for;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Turns without an error before the primary is replaced, and again after.
const TURNS_AROUND: usize = 30;
/// Rolled back, and outcome unknown: what a client is told of its transaction when the primary dies.
const ALLOWED: [&str; 2] = ["40001", "08007"];
const UNKNOWN: &str = "08007";

/// Lines that a driver has printed, with the time when each was read.
type Lines = Arc<Mutex<Vec<(Instant, String)>>>;

struct Taking {
    name: &'static str,
    child: Child,
    lines: Lines,
}

/// What one driver saw.
#[derive(Default)]
struct Seen {
    turns: usize,
    acknowledged: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    by_sqlstate: BTreeMap<String, usize>,
    /// The longest time between two lines.
    longest: Duration,
    /// What must not be.
    wrong: Vec<String>,
}

impl Taking {
    fn start(name: &'static str, mut command: Command, login: &Login<'_>, stop: &Path) -> Self {
        connects(&mut command, login);
        command.env("MATRIX_STOP", stop).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        let lines = Lines::default();
        let (out, into) = (child.stdout.take().expect("it is piped"), lines.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line));
            }
        });
        Self { name, child, lines }
    }

    fn lines(&self) -> Vec<(Instant, String)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn good(&self) -> usize {
        self.lines().iter().filter(|(_, line)| line.starts_with("ok ")).count()
    }

    /// Wait until it has so many good turns, or has ended.
    fn reaches(&mut self, turns: usize) {
        wait_for(&format!("{} to take {turns} turns", self.name), LONG, || {
            let ended = matches!(self.child.try_wait(), Ok(Some(_)));
            let last = self.lines().last().cloned();
            if ended || self.good() >= turns { Ok(()) } else { Err((self.good(), last)) }
        });
    }

    fn finish(mut self) -> Seen {
        let status = wait_for(&format!("{} to stop", self.name), LONG, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(other.map(|_| self.lines().last().cloned())),
        });
        let mut seen = judge(&self.lines());
        if !status.success() {
            seen.wrong.push(format!("it ended with {status}"));
        }
        seen
    }
}

fn judge(lines: &[(Instant, String)]) -> Seen {
    let mut seen = Seen::default();
    for (_, line) in lines {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let number = words.get(1).and_then(|n| n.parse().ok());
        match (words[0], number, words.get(2)) {
            ("ok", Some(_), Some(&"read")) => {}
            ("ok", Some(turn), Some(_)) => {
                seen.acknowledged.insert(turn);
            }
            ("error", Some(turn), Some(kind)) => {
                let sqlstate = words.get(3).copied().unwrap_or("-");
                *seen.by_sqlstate.entry(sqlstate.to_owned()).or_default() += 1;
                if *kind != "read" && sqlstate != UNKNOWN {
                    seen.refused.insert(turn);
                }
                // A read is run again elsewhere.
                if *kind == "read" || !ALLOWED.contains(&sqlstate) {
                    seen.wrong.push(line.clone());
                }
            }
            _ => seen.wrong.push(line.clone()),
        }
        seen.turns += usize::from(number.is_some());
    }
    let gaps = lines.windows(2).map(|pair| pair[1].0 - pair[0].0);
    seen.longest = gaps.max().unwrap_or_default();
    seen
}

/// What happens to the primary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Switchover,
    Kill,
}

impl Event {
    fn happens(self, cluster: &Cluster) {
        let before = cluster.active();
        match self {
            Self::Switchover => {
                cluster.verb(&["switchover"]).exits(0);
            }
            Self::Kill => cluster.kill_postgres(&before.primary),
        }
        cluster.active_after(before.term);
    }
}

/// The names of the database by which they are taken, and how that pools.
const POOLING: [(&str, &str); 2] = [("app", "transaction"), ("app_session", "session")];

/// Run them all, those that are `wanted`, and print a table. How many failed.
pub fn run(cluster: &Cluster, places: &Places, wanted: impl Fn(&str) -> bool) -> usize {
    let mut client = cluster.connect();
    let table = "create table matrix_turns(driver text, turn int, primary key (driver, turn))";
    client.query(table).expect("a table for the turns");
    client.terminate();
    let (pooling, primary) = ("pooling", "primary");
    println!("\n{:<16}{pooling:<12}{primary:<12}{:>6}{:>9}  errors by SQLSTATE", "driver", "turns", "longest");
    let mut failed = 0;
    let events = [(Event::Switchover, "switched"), (Event::Kill, "killed")];
    for ((database, pooling), (event, called)) in POOLING.into_iter().flat_map(|by| events.map(|event| (by, event))) {
        for (name, mut seen) in round(cluster, places, &wanted, (database, event)) {
            if event == Event::Switchover && !seen.by_sqlstate.is_empty() {
                seen.wrong.push("a switchover shows no errors".to_owned());
            }
            seen.wrong.extend(promises(cluster, name, &seen));
            let errors: Vec<String> = seen.by_sqlstate.iter().map(|(state, n)| format!("{state} {n}")).collect();
            let longest = seen.longest.as_millis();
            let errors = errors.join(", ");
            println!("{name:<16}{pooling:<12}{called:<12}{:>6}{longest:>6} ms  {errors}", seen.turns);
            seen.wrong.iter().take(crate::SHOWN).for_each(|line| println!("    {line}"));
            failed += usize::from(!seen.wrong.is_empty());
        }
        cluster.all_stream();
    }
    failed
}

/// All take turns at once while the primary is replaced.
fn round(
    cluster: &Cluster,
    places: &Places,
    wanted: &impl Fn(&str) -> bool,
    (database, event): (&str, Event),
) -> Vec<(&'static str, Seen)> {
    let (target, stop) = (cluster.target(), places.scratch.join("stop"));
    let _ = std::fs::remove_file(&stop);
    cluster.connect().query("truncate matrix_turns").expect("the table is emptied");
    let login = Login { target: &target, database, primary: None, authority: None };
    let started = TURNS.into_iter().filter(|(name, _)| wanted(name)).filter_map(|(name, make)| {
        let command = make(places)?;
        Some(Taking::start(name, command, &login, &stop))
    });
    let mut all: Vec<Taking> = started.collect();
    all.iter_mut().for_each(|driver| driver.reaches(TURNS_AROUND));
    event.happens(cluster);
    let so_far: Vec<usize> = all.iter().map(Taking::good).collect();
    all.iter_mut().zip(so_far).for_each(|(driver, turns)| driver.reaches(turns + TURNS_AROUND));
    std::fs::write(&stop, "").expect("scratch is writable");
    all.into_iter().map(|driver| (driver.name, driver.finish())).collect()
}

/// Which of the rows are not as was said.
fn promises(cluster: &Cluster, name: &str, seen: &Seen) -> Vec<String> {
    // In a transaction block, because those go to the primary.
    let sql = format!("begin; select turn from matrix_turns where driver = '{name}'; commit");
    let answer = Client::connect(&cluster.target()).and_then(|mut c| c.query(&sql)).expect("the rows can be read");
    let there: BTreeSet<u64> = answer.rows.iter().filter_map(|row| row[0].as_deref()?.parse().ok()).collect();
    let lost = seen.acknowledged.difference(&there).map(|turn| format!("turn {turn} was acknowledged and is lost"));
    let undead = seen.refused.intersection(&there).map(|turn| format!("turn {turn} was refused and is there"));
    lost.chain(undead).collect()
}
