//! One run: from a healthy cluster through a scenario to a verdict.

use super::check::{Rules, Violation, stale_primary_reads, violations};
use super::collect::{Since, collect, prepare};
use super::load::Load;
use super::play::Play;
use super::records;
use super::scenario::{Dice, Expect, Need, Scenario};
use super::session::attempt;
use super::told::{Doubts, Event, Outcome, Told};
use super::world::{Needs, PROXIES, World};
use crate::cluster::Active;
use crate::wait::wait_for;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// A scenario goes on for so long at most, from when its cluster was well: what it waits for then has not come.
const PLAYED: Duration = Duration::from_secs(25);
/// After the faults a proxy has to acknowledge again within this. The protocol needs seconds; a machine that runs all
/// of it, and other things, may need more.
pub(super) const WRITES_AGAIN: Duration = Duration::from_secs(25);
/// Where they are to go on all the time, nobody waits longer for the next one.
const GO_ON: Duration = Duration::from_secs(3);
/// By then, from the beginning, they must, and every node must stream; then what is there is judged: a run is over within a
/// minute.
const GATHERED: Duration = Duration::from_secs(42);
/// Where not all is well, an open term is waited for no longer.
const OPEN_WITHIN: Duration = Duration::from_secs(2);
/// And everything is asked again so often at most when the primary has changed meanwhile.
const ASKED_AGAIN: usize = 3;

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

    /// Can another run begin in its world? A node that stays away would be one too few there.
    pub fn left_well(&self) -> bool {
        self.is_safe() && self.broken.iter().all(|violation| violation.invariant != "L2")
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
        disks: scenario.needs.contains(&Need::Disks),
        etcd_disks: scenario.needs.contains(&Need::EtcdDisks),
        clocks: scenario.needs.contains(&Need::Clocks),
        tight: scenario.needs.contains(&Need::Tight),
        etcd_on_disk: false,
    }
}

/// Play a scenario in a world that is healthy, and leave it so. What does not come about in time is a violation, and whatever
/// can be asked then is judged all the same.
///
/// # Errors
/// When the run cannot be judged: the cluster is not well before it, or nobody can say what a primary or an agent holds.
pub fn run(world: &mut World, scenario: &Scenario, seed: u64) -> Result<Verdict, String> {
    let before = prepare(world)?;
    let began = Instant::now();
    let since = Since { term: before.term, epoch: records::epoch(world) };
    let said_before = operators_words(world).len();
    let load = Load::start(&PROXIES.map(|p| world.target(p)), seed, !world.needs().asynchronous);
    load.acknowledges(20, WRITES_AGAIN)?;
    let mut broken = Vec::new();
    let mut late = |invariant, found: String| broken.push(Violation { invariant, found });
    let mut dice = Dice::new(seed);
    let steps = scenario.steps(&mut dice);
    let mut play = Play::new(world, dice, &before.primary, before.term, began + PLAYED);
    if let Some(why) = steps.iter().find_map(|step| play.step(step).err()) {
        late("L7", why);
    }
    if let Err(why) = play.end() {
        late("L7", why);
    }
    let done = std::mem::take(&mut play.done);
    drop(play);

    world.heal();
    let healed = Instant::now();
    let left = || GATHERED.saturating_sub(began.elapsed());
    let again = |load: &Load| load.acknowledges(5, WRITES_AGAIN.min(left()));
    if let Err(e) = again(&load) {
        late("L1", format!("no acknowledged writes after the faults: {e}"));
    }
    let writes = healed.elapsed();
    let back = attempt(|| Ok(world.healthy(left())));
    let nodes = healed.elapsed();
    let all_well = match back {
        Ok(_) => again(&load).map_err(|e| late("L1", format!("after all nodes stream: {e}"))).is_ok(),
        Err(found) => {
            late("L2", found);
            false
        }
    };
    let load_began = load.began();
    let events = load.finish();
    let (mut told, after) = at_the_end(world, since, all_well)?;
    told.events = events;
    told.began = (!world.needs().clocks).then_some(load_began);
    let expects = |expect| scenario.expects.contains(&expect);
    let strict = told.policy.is_some() || expects(Expect::NoLoss);
    broken.extend(violations(&told, Rules { strict, no_errors: expects(Expect::NoErrors) }));
    let terms = (before.term, after.map_or(before.term, |now| now.term));
    broken.extend(unexpected(scenario, &told, terms, operators_words(world).get(said_before..).unwrap_or_default()));
    let (counts, answers) = counts(&told.events);
    Ok(Verdict {
        scenario: scenario.name.clone(),
        seed,
        done,
        broken,
        counts,
        answers,
        doubts: told.doubts,
        terms,
        stale: stale_primary_reads(&told),
        recovered: (writes, nodes),
        outage: longest_gap(&told.events),
        took: began.elapsed(),
    })
}

/// All that can be asked, and the open term, if there is one. Where not all is well that may change while it is asked.
fn at_the_end(world: &World, since: Since, all_well: bool) -> Result<(Told, Option<Active>), String> {
    if all_well {
        let after = wait_for("an open term", WRITES_AGAIN, || world.active());
        return Ok((collect(world, since, Some(&after), &[])?, Some(after)));
    }
    let mut last = String::new();
    for _ in 0..ASKED_AGAIN {
        let after = attempt(|| Ok(wait_for("an open term", OPEN_WITHIN, || world.active()))).ok();
        let away = world.away().unwrap_or_default();
        match attempt(|| collect(world, since, after.as_ref(), &away)) {
            Ok(told) if after.as_ref() == world.active().ok().as_ref() => return Ok((told, after)),
            Ok(_) => last = format!("it was not {after:?} to the end"),
            Err(why) => last = why,
        }
    }
    Err(format!("what is there in the end could not be read: {last}"))
}

/// What operators' commands have printed in this world.
fn operators_words(world: &World) -> String {
    std::fs::read_to_string(world.log_file("clients", "operators")).unwrap_or_default()
}

/// What the scenario expects, and what did not come about.
fn unexpected(scenario: &Scenario, told: &Told, terms: (u64, u64), said: &str) -> Vec<Violation> {
    let doubts = &told.doubts;
    let lost = told.events.iter().filter(|e| e.commit && e.outcome == Outcome::Failed("40001".into())).count() as u64;
    let wrong = |expected: &Expect| match expected {
        Expect::SameTerm if terms.0 != terms.1 => Some("L3"),
        Expect::NewTerm if terms.0 == terms.1 => Some("L3"),
        // No proxy dies where this is expected, so the reports have all that clients were told.
        Expect::Resolved if doubts.lost < lost => Some("S3"),
        Expect::Resolved if doubts.survived == 0 || doubts.lost == 0 => Some("L6"),
        Expect::Writes if longest_gap(&told.events) > GO_ON => Some("L1"),
        Expect::SameTerm | Expect::NewTerm | Expect::Resolved | Expect::NoErrors | Expect::NoLoss | Expect::Writes => {
            None
        }
    };
    let found = |expected| {
        let (before, after) = terms;
        // Why there is no other term only who was asked for one knows.
        let said = said.lines().map(str::trim).collect::<Vec<_>>().join(" / ");
        format!(
            "{expected:?} was expected, from term {before} to {after}, in doubt {doubts:?}, {lost} told to be lost; operators were \
             told: {said}"
        )
    };
    scenario.expects.iter().filter_map(|e| Some(Violation { invariant: wrong(e)?, found: found(e) })).collect()
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
