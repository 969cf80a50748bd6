//! A machine that is much too busy, with disks that stall: nothing is dead, so nothing may change hands.
//!
//! Every core has a burner that takes what the cluster leaves, and each database host's disk, with PostgreSQL's data,
//! the agent's promises and etcd's log on it, stands still for a second again and again: one host's, or all at once.
//! Clients write through both proxies all the time; what they were told is checked as in every run.

use super::check::{Rules, Violation, violations};
use super::collect::{Since, collect, prepare};
use super::disk::Stall;
use super::load::Load;
use super::records::epoch;
use super::run::{counts, longest_gap};
use super::scenario::Dice;
use super::told::Told;
use super::world::{Needs, PROXIES, World};
use crate::config_file::NODES;
use crate::wait::wait_for;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a disk stands still.
const STALL: Duration = Duration::from_secs(1);
/// Between two stalls, chosen by the seed.
const BETWEEN_STALLS: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(9));
/// In one of so many stalls all disks stand still.
const ALL_AT_ONCE: u64 = 3;
/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_secs(300);
/// What is waited for at the beginning and in the end.
const LONG: Duration = Duration::from_secs(120);

/// What came of it.
#[derive(Debug)]
pub struct Saturated {
    /// How long the disks stalled and the cores burned.
    pub lasted: Duration,
    /// First and last term; a failover is one more.
    pub terms: (u64, u64),
    /// Acknowledged, refused and unknown operations.
    pub counts: (usize, usize, usize),
    /// The longest time in which nobody was acknowledged anything.
    pub longest_gap: Duration,
    /// Stalls of one disk.
    pub stalls: usize,
    /// The load average of the machine: least and most of what was seen.
    pub load: (f64, f64),
    /// What was broken; empty when all held.
    pub broken: Vec<Violation>,
}

impl Saturated {
    /// One line for a table of results.
    pub fn line(&self) -> String {
        let (ok, failed, unknown) = self.counts;
        format!(
            "saturated for {} s: terms {}-{} ok {ok} failed {failed} unknown {unknown} longest time without an \
             acknowledgement {} ms, {} stalls of {} ms, load average {:.0} to {:.0}: {}",
            self.lasted.as_secs(),
            self.terms.0,
            self.terms.1,
            self.longest_gap.as_millis(),
            self.stalls,
            STALL.as_millis(),
            self.load.0,
            self.load.1,
            if self.broken.is_empty() { "held" } else { "BROKEN" },
        )
    }
}

/// Burn and stall for so long. `say` is told now and then how far it is.
///
/// # Errors
/// When it cannot be judged: the cluster does not come up, or what was written cannot be read in the end.
pub fn saturate(length: Duration, seed: u64, say: &mut dyn FnMut(&str)) -> Result<Saturated, String> {
    let world = World::start(Needs { disks: true, etcd_on_disk: true, ..Needs::default() });
    let before = prepare(&world)?;
    let since = Since { term: before.term, epoch: epoch(&world) };
    let load = Load::steady(&PROXIES.map(|p| world.target(p)), seed);
    load.acknowledges(20, LONG)?;
    let weather = weather(&world, length, seed, say)?;
    load.acknowledges(5, LONG)?;
    let began = load.began();
    let events = load.finish();
    let after = wait_for("an open term", LONG, || world.active());
    let told = Told { events, began: Some(began), ..collect(&world, since, Some(&after), &[])? };
    let mut broken = violations(&told, Rules { strict: true, no_errors: false });
    if after.term != before.term {
        let found = format!("nothing was dead, and the term went from {} to {}", before.term, after.term);
        broken.push(Violation { invariant: "L3", found });
    }
    if !broken.is_empty() {
        world.scratch().keep_files();
        say(&format!("the files are kept in {}", world.scratch().path().display()));
    }
    Ok(Saturated {
        lasted: weather.lasted,
        terms: (before.term, after.term),
        counts: counts(&told.events).0,
        longest_gap: longest_gap(&told.events),
        stalls: weather.stalls,
        load: weather.load,
        broken,
    })
}

struct Weather {
    lasted: Duration,
    stalls: usize,
    load: (f64, f64),
}

fn weather(world: &World, length: Duration, seed: u64, say: &mut dyn FnMut(&str)) -> Result<Weather, String> {
    let _burners = Burners::start();
    let (start, mut dice, mut said) = (Instant::now(), Dice::new(seed), Instant::now());
    let (mut stalls, mut load) = (0, (f64::MAX, 0.0_f64));
    while start.elapsed() < length {
        let nodes = if dice.below(ALL_AT_ONCE) == 0 { NODES.to_vec() } else { vec![NODES[dice.below(3) as usize]] };
        let all: Vec<Stall> = nodes.iter().map(|node| world.disk(node).stall(STALL)).collect();
        stalls += all.len();
        all.into_iter().for_each(Stall::over);
        std::thread::sleep(dice.between(BETWEEN_STALLS.0, BETWEEN_STALLS.1));
        let now = load_average()?;
        load = (load.0.min(now), load.1.max(now));
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            say(&format!("{} s, {stalls} stalls, load {now}: {:?}", start.elapsed().as_secs(), world.active()));
        }
    }
    Ok(Weather { lasted: start.elapsed(), stalls, load })
}

fn load_average() -> Result<f64, String> {
    let text = std::fs::read_to_string("/proc/loadavg").map_err(|e| e.to_string())?;
    text.split_whitespace().next().and_then(|n| n.parse().ok()).ok_or(text)
}

/// A process per core that takes whatever the others leave.
struct Burners(Vec<Child>);

impl Burners {
    fn start() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // It ends with this program, however that ends.
        let script = "while kill -0 $1; do i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; done";
        let burner = |_| {
            let mut command = Command::new("nice");
            command.args(["-n", "5", "sh", "-c", script, "burner"]).arg(std::process::id().to_string());
            command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().expect("nice is part of coreutils")
        };
        Self((0..cores).map(burner).collect())
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            let _ = (burner.kill(), burner.wait());
        }
    }
}
