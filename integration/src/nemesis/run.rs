//! One run: from a healthy cluster through a scenario to a verdict.

use super::check::{Rules, Violation, stale_primary_reads, violations};
use super::deeds::deeds;
use super::load::{Load, content, create};
use super::play::Play;
use super::records;
use super::scenario::{Dice, Expect, Need, Scenario};
use super::session::attempt;
use super::told::{Content, Doubts, Event, Outcome, Told};
use super::world::{Needs, PROXIES, World};
use crate::client::Client;
use crate::cluster::Active;
use crate::config_file::NODES;
use crate::wait::wait_for;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// After the faults a proxy has to acknowledge again within this. The protocol needs seconds; a machine that runs all
/// of it, and other things, may need more.
pub(super) const WRITES_AGAIN: Duration = Duration::from_secs(25);
/// And every node has to stream within this.
const NODES_AGAIN: Duration = Duration::from_secs(120);

/// What came of a run.
#[derive(Debug)]
pub struct Verdict {
    /// The scenario's name.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// What was done, in order.
    pub done: Vec<String>,
    /// What was broken; empty when all held.
    pub broken: Vec<Violation>,
    /// Acknowledged, refused and unknown operations.
    pub counts: (usize, usize, usize),
    /// Refusals and unknown outcomes by their names.
    pub answers: BTreeMap<String, usize>,
    /// What the reports tell of writes in doubt.
    pub doubts: Doubts,
    /// First and last term.
    pub terms: (u64, u64),
    /// Reads at a primary that was not the newest; no violation.
    pub stale: usize,
    /// From the end of the faults until both proxies acknowledge, and until every node streams.
    pub recovered: (Duration, Duration),
    /// The longest time without an acknowledged write.
    pub outage: Duration,
    /// The whole run.
    pub took: Duration,
}

impl Verdict {
    /// One line for a table of results.
    pub fn line(&self) -> String {
        let (ok, failed, unknown) = self.counts;
        let mut line = format!(
            "{} seed {} terms {}-{} ok {ok} failed {failed} unknown {unknown} in doubt {}/{}/{} stale {} outage {} ms \
             writes after {} ms nodes after {} ms took {} s: ",
            self.scenario,
            self.seed,
            self.terms.0,
            self.terms.1,
            self.doubts.survived,
            self.doubts.lost,
            self.doubts.unknown,
            self.stale,
            self.outage.as_millis(),
            self.recovered.0.as_millis(),
            self.recovered.1.as_millis(),
            self.took.as_secs(),
        );
        line += match (self.is_safe(), self.broken.is_empty()) {
            (_, true) => "held",
            (true, false) => "LATE",
            (false, false) => "BROKEN",
        };
        line + &format!(" [{}]", self.done.join("; "))
    }

    /// Was nothing broken but what a busy machine can cause?
    pub fn is_safe(&self) -> bool {
        self.broken.iter().all(Violation::is_of_time)
    }

    /// What was broken, one line each, at most so many.
    pub fn complaints(&self, most: usize) -> String {
        let mut text = String::new();
        for violation in self.broken.iter().take(most) {
            let _ = writeln!(text, "  {violation}");
        }
        if self.broken.len() > most {
            let _ = writeln!(text, "  and {} more", self.broken.len() - most);
        }
        text
    }
}

/// What a scenario needs of its world.
pub fn needs(scenario: &Scenario) -> Needs {
    Needs {
        asynchronous: scenario.needs.contains(&Need::Async),
        available: scenario.needs.contains(&Need::Available),
        netem: scenario.needs.contains(&Need::Netem),
        disks: scenario.needs.contains(&Need::Disks),
        clocks: scenario.needs.contains(&Need::Clocks),
        tight: scenario.needs.contains(&Need::Tight),
        etcd_on_disk: false,
    }
}

/// Play a scenario in a world that is healthy, and leave it so.
///
/// # Errors
/// When the run cannot be judged: the scenario's own waits fail, or the cluster does not come back.
pub fn run(world: &mut World, scenario: &Scenario, seed: u64) -> Result<Verdict, String> {
    let began = Instant::now();
    let before = prepare(world)?;
    let epoch = records::epoch(world);
    let load = Load::start(&PROXIES.map(|p| world.target(p)), seed, !world.needs().asynchronous);
    load.acknowledges(20, WRITES_AGAIN)?;
    let mut dice = Dice::new(seed);
    let steps = scenario.steps(&mut dice);
    let mut play = Play::new(world, dice, &before.primary, before.term);
    let mut failed = Ok(());
    for step in &steps {
        failed = play.step(step);
        if failed.is_err() {
            break;
        }
    }
    play.end();
    let done = std::mem::take(&mut play.done);
    drop(play);
    failed.map_err(|e| format!("{e}; done: {}", done.join("; ")))?;

    world.heal();
    let healed = Instant::now();
    let mut broken = Vec::new();
    let mut late = |what: &str, e: String| broken.push(Violation { invariant: "L1", found: format!("{what}: {e}") });
    if let Err(e) = load.acknowledges(5, WRITES_AGAIN) {
        late("no acknowledged writes after the faults", e);
    }
    let writes = healed.elapsed();
    let back = attempt(|| {
        world.healthy(NODES_AGAIN);
        Ok(())
    });
    let nodes = healed.elapsed();
    let (told, after) = match back {
        Ok(()) => {
            load.acknowledges(5, WRITES_AGAIN).map_err(|e| format!("after all nodes stream: {e}"))?;
            let load_began = load.began();
            let events = load.finish();
            let after = wait_for("an open term", WRITES_AGAIN, || world.active());
            let mut told = collect(world, events, &after, before.term, epoch)?;
            told.began = (!world.needs().clocks).then_some(load_began);
            let expects = |expect| scenario.expects.contains(&expect);
            let strict = told.policy.is_some() || expects(Expect::NoLoss);
            let rules = Rules { strict, no_errors: expects(Expect::NoErrors) };
            broken.extend(violations(&told, rules));
            broken.extend(unexpected(scenario, &told, (before.term, after.term)));
            (told, after.term)
        }
        // What the nodes hold cannot be compared then.
        Err(found) => {
            broken.push(Violation { invariant: "L2", found });
            (Told { events: load.finish(), ..Told::default() }, before.term)
        }
    };
    let (counts, answers) = counts(&told.events);
    Ok(Verdict {
        scenario: scenario.name.clone(),
        seed,
        done,
        broken,
        counts,
        answers,
        doubts: told.doubts,
        terms: (before.term, after),
        stale: stale_primary_reads(&told),
        recovered: (writes, nodes),
        outage: longest_gap(&told.events),
        took: began.elapsed(),
    })
}

/// What the scenario expects, and what did not come about.
fn unexpected(scenario: &Scenario, told: &Told, terms: (u64, u64)) -> Vec<Violation> {
    let doubts = &told.doubts;
    let lost = told.events.iter().filter(|e| e.commit && e.outcome == Outcome::Failed("40001".into())).count() as u64;
    let wrong = |expected: &Expect| match expected {
        Expect::SameTerm if terms.0 != terms.1 => Some("L3"),
        Expect::NewTerm if terms.0 == terms.1 => Some("L3"),
        // No proxy dies where this is expected, so the reports have all that clients were told.
        Expect::Resolved if doubts.lost < lost => Some("S3"),
        Expect::Resolved if doubts.survived == 0 || doubts.lost == 0 => Some("L6"),
        Expect::SameTerm | Expect::NewTerm | Expect::Resolved | Expect::NoErrors | Expect::NoLoss => None,
    };
    let found = |expected| {
        let (before, after) = terms;
        format!("{expected:?} was expected, from term {before} to {after}, in doubt {doubts:?}, {lost} told to be lost")
    };
    scenario.expects.iter().filter_map(|e| Some(Violation { invariant: wrong(e)?, found: found(e) })).collect()
}

/// Fresh tables, present on every node.
pub(super) fn prepare(world: &World) -> Result<Active, String> {
    world.healthy(NODES_AGAIN);
    let before = wait_for("an open term", WRITES_AGAIN, || world.active());
    let mut primary = Client::connect(&world.target(PROXIES[0])).map_err(|e| e.to_string())?;
    create(&mut primary).map_err(|e| e.to_string())?;
    settle(world, &before.primary)?;
    Ok(before)
}

/// Wait until every standby has replayed what the primary has written by now.
fn settle(world: &World, primary: &str) -> Result<(), String> {
    let at = world.superuser(primary, "select pg_current_wal_lsn()")?;
    for node in NODES.iter().filter(|n| **n != primary) {
        let sql = format!("select pg_last_wal_replay_lsn() >= '{at}'");
        wait_for(&format!("{node} to replay up to {at}"), NODES_AGAIN, || match world.superuser(node, &sql) {
            Ok(there) if there == "t" => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    Ok(())
}

/// Everything that can be asked when all is over.
pub(super) fn collect(
    world: &World,
    events: Vec<Event>,
    after: &Active,
    began: u64,
    epoch: u64,
) -> Result<Told, String> {
    settle(world, &after.primary)?;
    let mut nodes: BTreeMap<String, Content> = BTreeMap::new();
    let mut histories = BTreeMap::new();
    for node in NODES {
        let read = || {
            let mut client = Client::connect(&world.node_target(node)).map_err(|e| e.to_string())?;
            content(&mut client).map_err(|e| e.to_string())
        };
        let mut content = wait_for(&format!("the content of {node}"), WRITES_AGAIN, read);
        content.terms = terms(world, node)?;
        nodes.insert(node.to_owned(), content);
        for (timeline, body) in history_files(world, node) {
            histories.insert((timeline, node.to_owned()), body);
        }
    }
    let timeline = "select ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int";
    let timeline = world.superuser(&after.primary, timeline)?.parse().map_err(|e| format!("a timeline: {e}"))?;
    let mut told = Told { events, nodes, primary: after.primary.clone(), timeline, histories, ..Told::default() };
    let reports = records::reports(world, began, after.term);
    told.doubts = records::doubts(&reports);
    records::promise(world, epoch, began)?.told(&reports, &mut told);
    told.recruits = records::recruits(world);
    told.slots = records::slots(world, &after.primary);
    for node in NODES {
        agents(world, node, &mut told)?;
    }
    Ok(told)
}

/// What a node's agent did and keeps.
fn agents(world: &World, node: &str, told: &mut Told) -> Result<(), String> {
    let log = std::fs::read(world.log_file(node, "agent")).map_err(|e| format!("the log of {node}'s agent: {e}"))?;
    told.deeds.insert(node.to_owned(), deeds(&String::from_utf8_lossy(&log)));
    let dir = world.scratch().path().join(node);
    let memory = std::fs::read_to_string(dir.join("agent.json")).map_err(|e| format!("{node}'s promise: {e}"))?;
    let memory: Value = serde_json::from_str(&memory).map_err(|e| format!("{node}'s promise: {e}"))?;
    told.promises.insert(node.to_owned(), memory["promise"].as_u64().ok_or("no promise")?);
    let kept = std::fs::read_dir(dir.join("lost")).into_iter().flatten().flatten().map(|e| e.path());
    told.kept.extend(kept.filter(|d| d.join("report.json").exists()).map(|d| d.display().to_string()));
    Ok(())
}

/// A node's table of terms, in the order in which they were written.
fn terms(world: &World, node: &str) -> Result<Vec<(u64, String)>, String> {
    let table = world.superuser(node, "select term, node from pgtenure.term order by ctid")?;
    let pair = |line: &str| line.split_once('|').and_then(|(t, n)| Some((t.parse().ok()?, n.to_owned())));
    Ok(table.lines().filter_map(pair).collect())
}

/// The history files of a node that are not empty.
fn history_files(world: &World, node: &str) -> Vec<(u64, String)> {
    let dir = world.scratch().path().join(node).join("data/pg_wal");
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let history = |path: std::path::PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".history")?.to_owned();
        let body = std::fs::read_to_string(&path).ok().filter(|b| !b.is_empty())?;
        Some((u64::from_str_radix(&name, 16).ok()?, body))
    };
    files.filter_map(|f| history(f.path())).collect()
}

pub(super) fn counts(events: &[Event]) -> ((usize, usize, usize), BTreeMap<String, usize>) {
    let (mut counts, mut answers) = ((0, 0, 0), BTreeMap::new());
    for event in events {
        match &event.outcome {
            Outcome::Ok => counts.0 += 1,
            Outcome::Failed(why) => {
                counts.1 += 1;
                *answers.entry(format!("failed {why}")).or_insert(0) += 1;
            }
            Outcome::Unknown(why) => {
                counts.2 += 1;
                *answers.entry(format!("unknown {why}")).or_insert(0) += 1;
            }
        }
    }
    (counts, answers)
}

/// The longest time between two acknowledged writes of any client.
pub(super) fn longest_gap(events: &[Event]) -> Duration {
    let acknowledged = |e: &&Event| e.outcome == Outcome::Ok && e.stamp.is_some();
    let mut times: Vec<Duration> = events.iter().filter(acknowledged).map(|e| e.answered).collect();
    times.sort();
    times.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
}
