//! Scenario files: one step a line, `#` begins a comment. PURE.
//!
//! A line that begins with `or` is an alternative to the lines before it; the run's seed chooses. `A..B` as a time is
//! any between, chosen by the seed too. Hosts are named `n1` to `n3`, `p1` and `p2`, or by what they are when the step
//! is played: `primary`, `standby` (either, by the seed), `other` (the other one), `old` (the primary when the run
//! began), `leader` (of the managers), `etcd-leader`, `any` (database host), `proxy` (either).
//!
//! ```text
//! needs disks | clocks | async | available           what the world must have
//! needs tight                             one automatic failover in ten minutes, and 64 KiB that one may lose
//! needs etcd-disks                        each member of etcd on a disk of its own
//! needs own-world                         the policy is changed: the world is not used again
//! expect no-errors | same-term | new-term what is checked besides what always is
//! expect no-loss                          what was acknowledged is there, in async mode too
//! expect writes                           somebody is acknowledged something in every three seconds
//! expect resolved                         of commits in doubt some are found to be there, and some to be lost
//! kill WHAT of HOST                       SIGKILL; WHAT: postmaster, postgres (all of it), agent, manager, etcd,
//!                                         proxy, host (everything on it), walsender, walreceiver, startup, backend, …
//! stop WHAT of HOST                       SIGSTOP
//! continue                                SIGCONT to everything
//! start WHAT of HOST                      start again what was killed
//! arm kill|stop WHAT when KIND says TEXT  the same at the moment when the log of a KIND says so, on that host
//! arm kill|stop WHAT of HOST when KIND says TEXT
//!                                         the same of what runs on HOST now, whichever host's log says so
//! cut HOSTS | HOSTS                       drop packets both ways; HOSTS are separated by commas
//! cut HOSTS > HOSTS                       drop what the first send to the second
//! isolate HOST                            drop everything to and from all other hosts
//! lose N% at HOST                         drop so many packets at random
//! slow HOST to N kbit                     delay what leaves it by its rate
//! delay HOST by A..B losing N%            what leaves it waits for some time between, and is lost at random
//! delay HOST both ways by A..B losing N%  what reaches it, too
//! reconnect                               end every cut, loss and delay
//! fill disk of HOST, free disk of HOST, freeze disk of HOST, thaw disk of HOST
//! freeze etcd disk of HOST, thaw etcd disk of HOST
//! clock of HOST jumps OFFSET              as in +10s, -1h
//! pause replay of HOST                    by an operator's pg_wal_replay_pause()
//! conflict at HOST                        a long query there, and a vacuum on the primary that it conflicts with
//! promote HOST by hand                    pg_promote(), past the managers
//! back up etcd, restore etcd              a snapshot; all members lose what they hold and begin with that
//! operator ARGUMENTS                      a verb of ours; hosts in it are replaced by their names
//! for TIME                                let it last
//! await failover | writes | operators     a newer term is open; a proxy accepts a write; every verb has answered
//! await blows                             every armed blow has fallen
//! await held TEXT                         the leading manager holds, and its reasons have these words
//! heal                                    undo everything, wait until all nodes stream
//! ```

use std::time::Duration;

/// Names of hosts by what they are.
const SELECTORS: [&str; 8] = ["primary", "standby", "other", "old", "leader", "etcd-leader", "any", "proxy"];
/// Processes that scenarios may name.
const TARGETS: [&str; 13] = [
    "postmaster",
    "postgres",
    "agent",
    "manager",
    "etcd",
    "proxy",
    "host",
    "walsender",
    "walreceiver",
    "startup",
    "checkpointer",
    "walwriter",
    "backend",
];

/// What a scenario needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Asynchronous replication.
    Async,
    /// Disks that can be filled and frozen.
    Disks,
    /// Such disks for the members of etcd, too.
    EtcdDisks,
    /// Clocks that can jump.
    Clocks,
    /// The mode in which the primary goes on alone for a while.
    Available,
    /// Small limits of what happens by itself.
    Tight,
    /// Nothing else is played there afterwards.
    OwnWorld,
}

/// What is checked besides what always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No client sees an error.
    NoErrors,
    /// The term does not change.
    SameTerm,
    /// It does.
    NewTerm,
    /// Commits in doubt are resolved both ways.
    Resolved,
    /// Nothing that was acknowledged is lost, whatever the mode.
    NoLoss,
    /// Writes go on all the time.
    Writes,
}

/// How a process is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
}

/// What happens to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// It is full.
    Fill,
    /// It has space again.
    Free,
    /// Writes wait.
    Freeze,
    /// They go on.
    Thaw,
}

/// What happens to packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Each waits so long at least.
    pub from: Duration,
    /// And at most.
    pub to: Duration,
    /// So many percent are lost.
    pub percent: u64,
    /// Those that reach the host, too, not only those that leave it.
    pub both_ways: bool,
}

/// One step. Hosts are selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `kill` and `stop`.
    Strike(Blow, String, String),
    /// `continue`.
    Continue,
    /// `start`.
    Start(String, String),
    /// `arm`: the blow, at what, of which host if not of whose log it is, the kind of process whose log is read, and what it says.
    Arm(Blow, String, Option<String>, String, String),
    /// `cut`: from, to, and also the other way.
    Cut(Vec<String>, Vec<String>, bool),
    /// `isolate`.
    Isolate(String),
    /// `lose`.
    Lose(String, u64),
    /// `slow`.
    Slow(String, u64),
    /// `delay`.
    Delay(String, Wait),
    /// `reconnect`.
    Reconnect,
    /// `fill`, `free`, `freeze`, `thaw`.
    Disk(DiskFault, String),
    /// The same of the disk that only etcd uses.
    EtcdDisk(DiskFault, String),
    /// `clock`.
    Clock(String, String),
    /// `pause replay`.
    PauseReplay(String),
    /// `conflict`.
    Conflict(String),
    /// `promote … by hand`.
    PromoteByHand(String),
    /// `back up etcd`.
    BackUpEtcd,
    /// `restore etcd`.
    RestoreEtcd,
    /// `operator`.
    Operator(Vec<String>),
    /// `for`: at least and at most.
    For(Duration, Duration),
    /// `await failover`.
    AwaitFailover,
    /// `await writes`.
    AwaitWrites,
    /// `await operators`.
    AwaitOperators,
    /// `await blows`.
    AwaitBlows,
    /// `await held`, with these words.
    AwaitHeld(String),
    /// `heal`.
    Heal,
}

/// A scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// The file's name without its ending.
    pub name: String,
    /// What it needs.
    pub needs: Vec<Need>,
    /// What it expects.
    pub expects: Vec<Expect>,
    /// The steps, each with its alternatives.
    steps: Vec<Vec<Step>>,
}

/// A seed's random numbers (xorshift).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        let mut dice = Self((seed ^ 0x5851_f42d_4c95_7f2d).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Seeds that differ in few bits give first numbers that do too.
        for _ in 0..8 {
            dice.below(2);
        }
        dice
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }

    /// A time between two.
    pub fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let span = u64::try_from(to.saturating_sub(from).as_millis()).unwrap_or(0);
        from + Duration::from_millis(self.below(span + 1))
    }
}

impl Scenario {
    /// Read a file's text.
    ///
    /// # Errors
    /// Which line says what nobody understands.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut scenario = Self { name: name.to_owned(), needs: Vec::new(), expects: Vec::new(), steps: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if !line.is_empty() {
                scenario.line(line).map_err(|e| format!("{name}, line {}: {e}: {line:?}", number + 1))?;
            }
        }
        if scenario.steps.is_empty() { Err(format!("{name} has no steps")) } else { Ok(scenario) }
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["needs", "async"] => self.needs.push(Need::Async),
            ["needs", "disks"] => self.needs.push(Need::Disks),
            ["needs", "etcd-disks"] => self.needs.push(Need::EtcdDisks),
            ["needs", "clocks"] => self.needs.push(Need::Clocks),
            ["needs", "available"] => self.needs.push(Need::Available),
            ["needs", "tight"] => self.needs.push(Need::Tight),
            ["needs", "own-world"] => self.needs.push(Need::OwnWorld),
            ["expect", "resolved"] => self.expects.push(Expect::Resolved),
            ["expect", "writes"] => self.expects.push(Expect::Writes),
            ["expect", "no-loss"] => self.expects.push(Expect::NoLoss),
            ["expect", "no-errors"] => self.expects.push(Expect::NoErrors),
            ["expect", "same-term"] => self.expects.push(Expect::SameTerm),
            ["expect", "new-term"] => self.expects.push(Expect::NewTerm),
            ["or", ref rest @ ..] => {
                let step = step(rest)?;
                self.steps.last_mut().ok_or("there is no step before it")?.push(step);
            }
            _ => self.steps.push(vec![step(&words)?]),
        }
        Ok(())
    }

    /// The steps that a seed chooses.
    pub fn steps(&self, dice: &mut Dice) -> Vec<Step> {
        let choose = |all: &Vec<Step>| all[dice.below(all.len() as u64) as usize].clone();
        self.steps.iter().map(choose).collect()
    }
}

fn step(words: &[&str]) -> Result<Step, String> {
    let own = |s: &str| s.to_owned();
    Ok(match *words {
        [blow @ ("kill" | "stop"), what, "of", at] => Step::Strike(self::blow(blow)?, target(what)?, host(at)?),
        ["continue"] => Step::Continue,
        ["start", what, "of", at] => Step::Start(target(what)?, host(at)?),
        ["arm", blow, what, "when", kind, "says", ref text @ ..] if !text.is_empty() => {
            Step::Arm(self::blow(blow)?, target(what)?, None, target(kind)?, text.join(" "))
        }
        ["arm", blow, what, "of", at, "when", kind, "says", ref text @ ..] if !text.is_empty() => {
            Step::Arm(self::blow(blow)?, target(what)?, Some(host(at)?), target(kind)?, text.join(" "))
        }
        ["cut", from, "|", to] => Step::Cut(list(from)?, list(to)?, true),
        ["cut", from, ">", to] => Step::Cut(list(from)?, list(to)?, false),
        ["isolate", at] => Step::Isolate(host(at)?),
        ["lose", percent, "at", at] => Step::Lose(host(at)?, number(percent.trim_end_matches('%'))?),
        ["slow", at, "to", rate, "kbit"] => Step::Slow(host(at)?, number(rate)?),
        ["delay", at, "by", time, "losing", percent] => Step::Delay(host(at)?, wait(time, percent, false)?),
        ["delay", at, "both", "ways", "by", time, "losing", percent] => {
            Step::Delay(host(at)?, wait(time, percent, true)?)
        }
        ["reconnect"] => Step::Reconnect,
        ["fill", "disk", "of", at] => Step::Disk(DiskFault::Fill, host(at)?),
        ["free", "disk", "of", at] => Step::Disk(DiskFault::Free, host(at)?),
        ["freeze", "disk", "of", at] => Step::Disk(DiskFault::Freeze, host(at)?),
        ["thaw", "disk", "of", at] => Step::Disk(DiskFault::Thaw, host(at)?),
        ["freeze", "etcd", "disk", "of", at] => Step::EtcdDisk(DiskFault::Freeze, host(at)?),
        ["thaw", "etcd", "disk", "of", at] => Step::EtcdDisk(DiskFault::Thaw, host(at)?),
        ["clock", "of", at, "jumps", offset] => Step::Clock(host(at)?, own(offset)),
        ["pause", "replay", "of", at] => Step::PauseReplay(host(at)?),
        ["conflict", "at", at] => Step::Conflict(host(at)?),
        ["promote", at, "by", "hand"] => Step::PromoteByHand(host(at)?),
        ["back", "up", "etcd"] => Step::BackUpEtcd,
        ["restore", "etcd"] => Step::RestoreEtcd,
        ["operator", ref arguments @ ..] if !arguments.is_empty() => {
            Step::Operator(arguments.iter().map(|a| own(a)).collect())
        }
        ["for", time] => {
            let (from, to) = span(time)?;
            Step::For(from, to)
        }
        ["await", "failover"] => Step::AwaitFailover,
        ["await", "writes"] => Step::AwaitWrites,
        ["await", "operators"] => Step::AwaitOperators,
        ["await", "blows"] => Step::AwaitBlows,
        ["await", "held", ref text @ ..] if !text.is_empty() => Step::AwaitHeld(text.join(" ")),
        ["heal"] => Step::Heal,
        _ => return Err("not a step".to_owned()),
    })
}

fn blow(word: &str) -> Result<Blow, String> {
    match word {
        "kill" => Ok(Blow::Kill),
        "stop" => Ok(Blow::Stop),
        _ => Err(format!("{word} is neither kill nor stop")),
    }
}

fn target(word: &str) -> Result<String, String> {
    let known = TARGETS.contains(&word);
    known.then(|| word.to_owned()).ok_or_else(|| format!("{word} is no process"))
}

fn host(word: &str) -> Result<String, String> {
    let known = is_host(word) || SELECTORS.contains(&word);
    known.then(|| word.to_owned()).ok_or_else(|| format!("{word} is no host"))
}

/// Does a word name a host, by its own name or by what it is?
pub fn names_a_host(word: &str) -> bool {
    host(word).is_ok()
}

fn is_host(word: &str) -> bool {
    matches!(word, "n1" | "n2" | "n3" | "p1" | "p2")
}

fn list(words: &str) -> Result<Vec<String>, String> {
    words.split(',').map(host).collect()
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

fn wait(time: &str, percent: &str, both_ways: bool) -> Result<Wait, String> {
    let ((from, to), percent) = (span(time)?, number(percent.trim_end_matches('%'))?);
    Ok(Wait { from, to, percent, both_ways })
}

/// `A..B`, or one time.
fn span(time: &str) -> Result<(Duration, Duration), String> {
    let (from, to) = time.split_once("..").unwrap_or((time, time));
    Ok((duration(from)?, duration(to)?))
}

fn duration(word: &str) -> Result<Duration, String> {
    let ms = word.strip_suffix("ms").map(number);
    let s = || word.strip_suffix('s').ok_or_else(|| format!("{word} is no time")).and_then(number);
    Ok(Duration::from_millis(ms.unwrap_or_else(|| Ok(1000 * s()?))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_ours_is_understood() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/nemesis/scenarios");
        let mut count = 0;
        for file in std::fs::read_dir(dir).expect("the scenarios are there") {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("a text");
            let scenario =
                Scenario::parse(&path.display().to_string(), &text).unwrap_or_else(|error| panic!("{error}"));
            // A blow that waits for words which nobody writes any more never falls.
            for step in scenario.steps.iter().flatten() {
                if let Step::Arm(_, _, _, kind, text) = step {
                    assert!(says(kind, text), "{}: no {kind} says {text:?}", scenario.name);
                }
            }
            count += 1;
        }
        assert!(count > 10, "only {count} scenarios");
    }

    /// Do agents, or managers, write that into their logs? Of a record that is changed the kind is a field.
    fn says(kind: &str, text: &str) -> bool {
        match text.strip_prefix("change=") {
            Some(word) => {
                sources("manager").contains("change = word") && sources("fsm").contains(&format!("=> {word},"))
            }
            None => sources(kind).contains(&format!("\"{text}")),
        }
    }

    fn sources(of: &str) -> String {
        let dir = format!("{}/../failover/src/{of}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(dir).expect("the sources").map(|f| f.expect("a file").path());
        files.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
    }

    #[test]
    fn a_seed_chooses_always_the_same_and_seeds_choose_everything() {
        let text = "kill postmaster of primary # why\nor isolate primary\nor stop host of primary\nfor 1s..2s\nheal";
        let scenario = Scenario::parse("x", text).unwrap();
        let chosen = |seed| scenario.steps(&mut Dice::new(seed)).swap_remove(0);
        let mut seen: Vec<Step> = Vec::new();
        for seed in 0..40 {
            assert_eq!(chosen(seed), chosen(seed));
            if !seen.contains(&chosen(seed)) {
                seen.push(chosen(seed));
            }
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for wrong in ["kill king of primary", "kill agent of n9", "for soon", "cut n1 n2", "await held", "or heal", ""]
        {
            let refused = Scenario::parse("x", wrong);
            assert!(refused.is_err(), "{wrong}: {refused:?}");
        }
        assert!(Scenario::parse("x", "heal\nbow").unwrap_err().contains("line 2"));
    }
}
