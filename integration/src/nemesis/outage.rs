//! Many failovers of one kind: how long clients could not write, and what the managers say where the time went.

use super::load::Load;
use super::run::longest_gap;
use super::scenario::Dice;
use super::told::{Event, Outcome};
use super::world::{Needs, PROXIES, World};
use crate::cluster::Active;
use crate::process::signal_all;
use crate::wait::wait_for;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// How a primary goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL to the postmaster.
    Postmaster,
    /// Its host is cut off from all others.
    Partition,
    /// SIGKILL to everything on its host.
    Host,
    /// `pgtenure switchover`.
    Switchover,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    death: Death,
    /// In async mode, and not in strict.
    asynchronous: bool,
    /// etcd's leader is on the primary's host and goes with it; otherwise it is elsewhere, where the managers lead it.
    with_etcd: bool,
}

impl Kind {
    const fn of(name: &'static str, death: Death, asynchronous: bool, with_etcd: bool) -> Self {
        Self { name, death, asynchronous, with_etcd }
    }
}

/// Every kind. Managers that may not move etcd's leader, as where etcd asks for a password and theirs is not root's, are in the
/// last two for as long as it is where it is.
pub const KINDS: [Kind; 8] = [
    Kind::of("postmaster-killed", Death::Postmaster, false, false),
    Kind::of("host-partitioned", Death::Partition, false, false),
    Kind::of("host-killed", Death::Host, false, false),
    Kind::of("switchover", Death::Switchover, false, false),
    Kind::of("async-host-lost", Death::Partition, true, false),
    Kind::of("async-host-killed", Death::Host, true, false),
    Kind::of("host-partitioned-with-etcd-leader", Death::Partition, false, true),
    Kind::of("async-host-lost-with-etcd-leader", Death::Partition, true, true),
];

/// Longest that one failover, or the way back, is waited for.
const LONG: Duration = Duration::from_secs(60);

/// One failover.
#[derive(Clone, Debug)]
pub struct Round {
    /// The longest time between two acknowledged writes of any client, of all clients the worst and the median one.
    pub worst: Duration,
    /// See `worst`.
    pub median: Duration,
    /// The longest time in which nobody was acknowledged anything.
    pub nobody: Duration,
    /// Errors that clients saw, by name.
    pub errors: BTreeMap<String, usize>,
    /// Milliseconds since the first evidence, by the name of the phase that ended, as the managers' journal has them.
    pub phases: Vec<(String, u64)>,
}

/// So many failovers of a kind. `report` is called after each.
pub fn measure(kind: Kind, rounds: usize, seed: u64, report: &mut dyn FnMut(usize, &Round)) -> Vec<Round> {
    let needs = Needs { asynchronous: kind.asynchronous, etcd_on_disk: true, ..Needs::default() };
    let mut world = World::start(needs);
    let mut dice = Dice::new(seed);
    let mut all = Vec::new();
    for number in 0..rounds {
        let round = one(&mut world, kind, &mut dice);
        report(number, &round);
        all.push(round);
    }
    all
}

fn one(world: &mut World, kind: Kind, dice: &mut Dice) -> Round {
    let primary = super::collect::prepare(world).expect("a healthy cluster");
    // Failovers are seldom a second apart: the last one's primary may have etcd's leader beside it, which its managers move.
    wait_for("etcd to lead from elsewhere than the primary's host", LONG, || match world.etcd_leader() {
        Some(host) if host != primary.primary => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let load = Load::inserts(&PROXIES.map(|p| world.target(p)), dice.below(u64::MAX));
    load.acknowledges(100, LONG).expect("a healthy cluster takes writes");
    // Not always at the same place of the detectors' periods.
    std::thread::sleep(dice.between(Duration::ZERO, Duration::from_millis(300)));
    // Led there at the last moment, as the managers lead it off again within two seconds.
    if kind.with_etcd {
        wait_for("etcd to lead from the primary's host", LONG, || {
            world.move_etcd_leader(&primary.primary)?;
            match world.etcd_leader() {
                Some(host) if host == primary.primary => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    kill(world, kind.death, &primary);
    let after = wait_for("a newer term", LONG, || match world.active() {
        Ok(now) if now.term > primary.term => Ok(now),
        other => Err(format!("{other:?}")),
    });
    load.acknowledges(50, LONG).expect("writes go on in the new term");
    let events = load.finish();
    world.heal();
    Round { phases: phases(world, after.term), ..round(&events) }
}

fn kill(world: &mut World, death: Death, now: &Active) {
    match death {
        Death::Postmaster => signal_all(&world.pids(&now.primary, "postmaster"), Signal::SIGKILL),
        Death::Partition => {
            for other in super::sandbox::hosts().into_iter().filter(|h| *h != now.primary) {
                world.sandbox.cut(&now.primary, other);
                world.sandbox.cut(other, &now.primary);
            }
        }
        Death::Host => world.sandbox.kill_all(&now.primary),
        Death::Switchover => {
            let verb = world.verb(&["switchover"]);
            assert_eq!(verb.code, 0, "{verb:?}");
        }
    }
}

fn round(events: &[Event]) -> Round {
    let mut by_client: BTreeMap<usize, Vec<Event>> = BTreeMap::new();
    let mut errors = BTreeMap::new();
    for event in events {
        by_client.entry(event.client).or_default().push(event.clone());
        match &event.outcome {
            Outcome::Ok => {}
            Outcome::Failed(why) => *errors.entry(format!("failed {why}")).or_insert(0) += 1,
            Outcome::Unknown(why) => *errors.entry(format!("unknown {why}")).or_insert(0) += 1,
        }
    }
    let mut gaps: Vec<Duration> = by_client.values().map(|events| longest_gap(events)).collect();
    gaps.sort();
    let (median, worst) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    Round { worst, median, nobody: longest_gap(events), errors, phases: Vec::new() }
}

fn phases(world: &World, term: u64) -> Vec<(String, u64)> {
    wait_for("the managers' journal", LONG, || {
        let verb = world.verb(&["history", "--json"]);
        let history: serde_json::Value = serde_json::from_str(&verb.stdout).map_err(|e| format!("{e}: {verb:?}"))?;
        let entries = history["history"].as_array().cloned().unwrap_or_default();
        let entry = entries.iter().find(|j| j["term"] == term).ok_or_else(|| format!("nothing of term {term}"))?;
        let pair = |p: &serde_json::Value| Some((p["phase"].as_str()?.to_owned(), p["ms"].as_u64()?));
        Ok::<_, String>(entry["phases"].as_array().into_iter().flatten().filter_map(pair).collect())
    })
}

/// A distribution in one line: least, median, nine in ten, most.
fn spread(mut all: Vec<u64>) -> String {
    all.sort_unstable();
    let at = |share: usize| all[(all.len() - 1) * share / 100];
    format!("{:>6} {:>6} {:>6} {:>6}", at(0), at(50), at(90), at(100))
}

/// A kind's rounds as text.
pub fn table(name: &str, rounds: &[Round]) -> String {
    let mut text = format!("{name}: {} failovers; milliseconds      least median 90% most\n", rounds.len());
    let millis = |of: fn(&Round) -> Duration| spread(rounds.iter().map(|r| of(r).as_millis() as u64).collect());
    let _ = writeln!(text, "  outage of the worst client          {}", millis(|r| r.worst));
    let _ = writeln!(text, "  outage of the median client         {}", millis(|r| r.median));
    let _ = writeln!(text, "  nobody was acknowledged             {}", millis(|r| r.nobody));
    let mut names: Vec<&String> = Vec::new();
    for (phase, _) in rounds.iter().flat_map(|r| &r.phases) {
        if !names.contains(&phase) {
            names.push(phase);
        }
    }
    for name in names {
        let took = rounds.iter().filter_map(|r| {
            let at = r.phases.iter().position(|(phase, _)| phase == name)?;
            Some(r.phases[at].1.saturating_sub(at.checked_sub(1).map_or(0, |before| r.phases[before].1)))
        });
        let took: Vec<u64> = took.collect();
        let _ = writeln!(text, "  phase {name:<29} {}  ({} of them)", spread(took.clone()), took.len());
    }
    let mut errors: BTreeMap<&String, usize> = BTreeMap::new();
    for (name, count) in rounds.iter().flat_map(|r| &r.errors) {
        *errors.entry(name).or_insert(0) += count;
    }
    let _ = writeln!(text, "  errors that clients saw: {errors:?}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::told::{Op, Stamp};

    #[test]
    fn a_round_is_the_longest_gap_of_each_client() {
        let event = |client, ms| Event {
            client,
            session: 0,
            op: Op::Insert { id: 1 },
            sent: Duration::ZERO,
            answered: Duration::from_millis(ms),
            outcome: Outcome::Ok,
            stamp: Some(Stamp::default()),
            seen: Vec::new(),
            at_standby: false,
            commit: false,
        };
        let all = [event(0, 0), event(0, 10), event(0, 400), event(1, 0), event(1, 50), event(1, 70)];
        let found = round(&all);
        let millis = [found.worst, found.median, found.nobody].map(|d| d.as_millis());
        assert_eq!(millis, [390, 390, 330]);
        assert!(table("x", &[found]).contains("390"));
    }

    #[test]
    fn a_spread_is_of_what_was_measured() {
        assert_eq!(spread((1..=100).collect()).split_whitespace().collect::<Vec<_>>(), ["1", "50", "90", "100"]);
        assert_eq!(spread(vec![7]).split_whitespace().collect::<Vec<_>>(), ["7", "7", "7", "7"]);
    }
}
