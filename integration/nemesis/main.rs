//! `make nemesis`, `make soak`, `make bench-failover`: see `integration::nemesis`.
//!
//! * `run SCENARIO[,SCENARIO] SEED RUNS RESULTS`: so many runs of each, with seeds from SEED on; `all` for every
//!   scenario, in turn;
//! * `soak HOURS SEED RESULTS`: every scenario over and over, for so long;
//! * `bench ROUNDS KINDS`: so many failovers of each kind, timed;
//! * `saturate MINUTES SEED RESULTS`: no free core and disks that stall, for so long.
//!
//! RESULTS is a file to which a line per run is added, or `-`, and one per scenario that this machine does not permit. Exits 0
//! only when everything held, and 77 when it does not permit what was asked for by name.

use integration::nemesis::outage::{KINDS, measure, table};
use integration::nemesis::run::needs;
use integration::nemesis::sandbox::{again, impossible, inside};
use integration::nemesis::saturation::saturate;
use integration::nemesis::scenario::Scenario;
use integration::nemesis::session::{Session, names, scenario};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs of one scenario in a row while soaking: a world takes longer to make than a run.
const IN_A_ROW: u64 = 2;

/// The exit code where this machine does not permit what was asked for.
const IMPOSSIBLE: u8 = 77;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Held,
    Broken,
    /// Something that was asked for could not be played.
    Impossible,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !inside() {
        if let Some(why) = impossible() {
            eprintln!("SKIPPED: no network namespaces here, and the nemesis needs them (root): {why}");
            return ExitCode::from(IMPOSSIBLE);
        }
        eprintln!("unshare: {}", again(&arguments).exec());
        return ExitCode::FAILURE;
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["run", which, seed, runs, results] => {
            number(seed).and_then(|seed| Ok((seed, number(runs)?))).and_then(|(s, r)| play(which, s, r, results))
        }
        ["soak", hours, seed, results] => {
            let hours: Result<f64, String> = hours.parse().map_err(|e| format!("{hours}: {e}"));
            hours.and_then(|hours| soak(hours, number(seed)?, results))
        }
        ["bench", rounds, kinds] => number(rounds).and_then(|rounds| bench(rounds, kinds)),
        ["saturate", minutes, seed, results] => {
            number(minutes).and_then(|minutes| saturated(minutes, number(seed)?, results))
        }
        _ => Err("usage: run SCENARIO SEED RUNS RESULTS | soak HOURS SEED RESULTS | bench ROUNDS KINDS | saturate \
                  MINUTES SEED RESULTS"
            .to_owned()),
    };
    match done {
        Ok(Ended::Held) => ExitCode::SUCCESS,
        Ok(Ended::Broken) => ExitCode::FAILURE,
        Ok(Ended::Impossible) => ExitCode::from(IMPOSSIBLE),
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(64)
        }
    }
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|e| format!("{word}: {e}"))
}

/// The file of results, or none for `-`.
fn open(results: &str) -> Result<Option<File>, String> {
    let file = || File::options().create(true).append(true).open(results);
    if results == "-" { Ok(None) } else { file().map(Some).map_err(|e| format!("{results}: {e}")) }
}

fn say(results: &mut Option<File>, line: &str) {
    println!("{}", line.trim_end());
    if let Some(file) = results {
        let _ = writeln!(file, "{}", line.trim_end());
    }
}

/// What was played so far.
struct Tally {
    session: Session,
    results: Option<File>,
    runs: usize,
    broken: usize,
    late: usize,
    unjudged: usize,
    skipped: Vec<String>,
    acknowledged: usize,
    terms: u64,
}

impl Tally {
    fn new(results: &str) -> Result<Self, String> {
        let (results, session) = (open(results)?, Session::default());
        Ok(Self {
            session,
            results,
            runs: 0,
            broken: 0,
            late: 0,
            unjudged: 0,
            skipped: Vec::new(),
            acknowledged: 0,
            terms: 0,
        })
    }

    fn play(&mut self, scenario: &Scenario, seed: u64) {
        self.runs += 1;
        match self.session.play(scenario, seed) {
            Ok(verdict) => {
                self.acknowledged += verdict.counts.0;
                self.terms += verdict.terms.1 - verdict.terms.0;
                self.say(&verdict.line());
                if !verdict.broken.is_empty() {
                    self.broken += usize::from(!verdict.is_safe());
                    self.late += usize::from(verdict.is_safe());
                    self.say(&verdict.complaints(12));
                }
                if !verdict.answers.is_empty() {
                    println!("  answers: {:?}", verdict.answers);
                }
            }
            Err(why) => {
                self.unjudged += 1;
                self.say(&format!("{} seed {seed}: NOT JUDGED: {why}", scenario.name));
            }
        }
    }

    fn say(&mut self, line: &str) {
        say(&mut self.results, line);
    }

    /// Of these scenarios those that this machine can play, the ones that can share a world next to each other.
    fn playable(&mut self, names: &[String]) -> Result<Vec<Scenario>, String> {
        let mut all = Vec::new();
        for name in names {
            let scenario = scenario(name)?;
            match needs(&scenario).impossible() {
                Some(why) => {
                    self.say(&format!("SKIPPED: {name}: {why}"));
                    self.skipped.push(name.clone());
                }
                None => all.push(scenario),
            }
        }
        all.sort_by_key(|s| std::cmp::Reverse(needs(s)));
        Ok(all)
    }

    fn end(mut self) -> Ended {
        let (runs, broken, late, unjudged) = (self.runs, self.broken, self.late, self.unjudged);
        let (acknowledged, terms) = (self.acknowledged, self.terms);
        self.say(&format!(
            "{runs} runs, {broken} broken, {late} late, {unjudged} not judged; {acknowledged} operations acknowledged, {terms} changes \
             of primary; {} of the scenarios skipped{}",
            self.skipped.len(),
            self.skipped.iter().map(|name| format!(" {name}")).collect::<String>()
        ));
        match (broken + late + unjudged, runs, self.skipped.is_empty()) {
            (1.., ..) => Ended::Broken,
            // What was asked for was not played at all.
            (_, 0, false) => Ended::Impossible,
            _ => Ended::Held,
        }
    }
}

fn play(which: &str, seed: u64, runs: u64, results: &str) -> Result<Ended, String> {
    let mut tally = Tally::new(results)?;
    let names = if which == "all" { names() } else { which.split(',').map(str::to_owned).collect() };
    for scenario in tally.playable(&names)? {
        for seed in seed..seed + runs {
            tally.play(&scenario, seed);
        }
    }
    // Of several by their names each was asked for.
    let all_played = which == "all" || tally.skipped.is_empty();
    Ok(match tally.end() {
        Ended::Held if !all_played => Ended::Impossible,
        ended => ended,
    })
}

fn soak(hours: f64, mut seed: u64, results: &str) -> Result<Ended, String> {
    let (start, length) = (Instant::now(), Duration::from_secs_f64(hours * 3600.0));
    let mut tally = Tally::new(results)?;
    let scenarios = tally.playable(&names())?;
    while start.elapsed() < length {
        for scenario in &scenarios {
            for seed in seed..seed + IN_A_ROW {
                if start.elapsed() < length {
                    tally.play(scenario, seed);
                }
            }
        }
        seed += IN_A_ROW;
    }
    Ok(tally.end())
}

fn bench(rounds: u64, kinds: &str) -> Result<Ended, String> {
    let wanted = |name: &str| kinds == "all" || kinds.split(',').any(|k| k == name);
    let mut tables = Vec::new();
    for kind in KINDS.into_iter().filter(|kind| wanted(kind.name)) {
        let name = kind.name;
        let mut report = |number: usize, round: &integration::nemesis::outage::Round| {
            println!(
                "{name} {number}: worst {:?} nobody {:?} {:?} {:?}",
                round.worst, round.nobody, round.errors, round.phases
            );
        };
        let all = measure(kind, usize::try_from(rounds).unwrap_or(50), 1, &mut report);
        tables.push(table(name, &all));
    }
    if tables.is_empty() {
        return Err(format!("{kinds}: no such kind; there are {:?}", KINDS.map(|k| k.name)));
    }
    println!("\n{}", tables.join("\n"));
    Ok(Ended::Held)
}

fn saturated(minutes: u64, seed: u64, results: &str) -> Result<Ended, String> {
    let mut results = open(results)?;
    let done = saturate(Duration::from_secs(60 * minutes), seed, &mut |line| println!("{line}"))?;
    say(&mut results, &done.line());
    for violation in done.broken.iter().take(20) {
        say(&mut results, &format!("  {violation}"));
    }
    Ok(if done.broken.is_empty() { Ended::Held } else { Ended::Broken })
}
