//! What all tasks of a run share: the checker, the counts, when it ends. One thread, so nothing is locked.

use super::checker::{Checker, Mode, Outcome, Violation};
use super::spread::Spread;
use cluster::{Clock, Instant};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Violations of one kind and mode that are kept with all they say; the others are counted.
const MAX_EXAMPLES: usize = 4;
/// How long a global read waits for a standby unless something else is asked for: without waiting hardly any is served
/// by one.
const GLOBAL_WAIT: Duration = Duration::from_secs(1);
/// Different nodes and errors counted by name; more would be a misunderstanding.
const MAX_NAMES: usize = 64;

/// How a run is to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What is checked.
    pub(super) modes: Vec<Mode>,
    /// What the sessions ask for instead of their mode.
    pub(super) ask: Option<String>,
    pub(super) max_replay_lag: Duration,
    pub(super) standby_wait: Option<Duration>,
    /// It ends then,
    pub(super) until: Instant,
    /// or when every mode has so many checked reads.
    pub(super) reads: Option<u64>,
    /// Longest pauses of readers and of writers between two statements.
    pub(super) pauses: (Duration, Duration),
    /// Of each mode's reads standbys have to serve such a share, and one at least; `None`: they need not serve any.
    pub(super) standby_share: Option<f64>,
}

/// Counts of one mode.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) reads: u64,
    pub(super) by_standbys: u64,
    pub(super) nodes: BTreeMap<String, u64>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) primary: Spread,
    pub(super) standby: Spread,
    /// By what was broken.
    pub(super) violations: BTreeMap<&'static str, u64>,
    /// Reads that were asked for in one of the rarer ways, by its name: all, and those that standbys served.
    pub(super) ways: BTreeMap<&'static str, (u64, u64)>,
}

/// A token, and what it covers.
#[derive(Debug)]
pub(super) struct Token {
    /// As the endpoint said it.
    pub(super) text: String,
    pub(super) covered: Vec<i64>,
    /// The session that asked for it.
    pub(super) giver: usize,
}

/// Counts of all writes.
#[derive(Debug, Default)]
pub(super) struct Writes {
    pub(super) acknowledged: u64,
    pub(super) refused: u64,
    pub(super) in_doubt: u64,
    pub(super) errors: BTreeMap<String, u64>,
}

/// A read that was answered.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) mode: Mode,
    pub(super) session: usize,
    pub(super) endpoint: &'a str,
    pub(super) node: String,
    pub(super) standby: bool,
    pub(super) at: Instant,
    pub(super) took: Duration,
    /// The rarer ways in which it was asked for.
    pub(super) ways: Vec<&'static str>,
}

/// A violation and the read that showed it; no read when a refused write had been shown by one.
#[derive(Debug)]
pub(super) struct Example {
    pub(super) violation: Violation,
    pub(super) read: Option<ExampleRead>,
    /// Since the run began.
    pub(super) at: Duration,
}

/// That read.
#[derive(Debug)]
pub(super) struct ExampleRead {
    pub(super) mode: Mode,
    pub(super) session: usize,
    pub(super) endpoint: String,
    pub(super) node: String,
    pub(super) standby: bool,
    pub(super) took: Duration,
}

/// A run going on.
pub(super) struct Run {
    pub(super) checker: RefCell<Checker>,
    plan: Plan,
    started: Instant,
    tallies: RefCell<BTreeMap<Mode, Tally>>,
    unpromised: RefCell<Spread>,
    writes: RefCell<Writes>,
    examples: RefCell<Vec<Example>>,
    shown_and_refused: Cell<u64>,
    sessions: Cell<usize>,
    stopped: Cell<bool>,
    /// The newest.
    token: RefCell<Option<Rc<Token>>>,
    hints_off: RefCell<BTreeSet<String>>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Result {
    pub(super) tallies: BTreeMap<Mode, Tally>,
    /// What the same reads took at the primary that were promised nothing.
    pub(super) unpromised: Spread,
    pub(super) writes: Writes,
    pub(super) examples: Vec<Example>,
    /// Writes that were refused although a read had shown them.
    pub(super) shown_and_refused: u64,
    /// Endpoints that read no comments.
    pub(super) hints_off: BTreeSet<String>,
    pub(super) took: Duration,
    pub(super) interrupted: bool,
    /// The share of each mode's reads that standbys had to serve, and one at least; `None`: they need not have.
    pub(super) standby_share: Option<f64>,
}

impl Tally {
    /// What its reads took, wherever they were served.
    pub(super) fn all(&self) -> Spread {
        self.primary.with(&self.standby)
    }
}

impl Run {
    pub(super) fn new(plan: Plan, registers: usize) -> Self {
        Self {
            checker: RefCell::new(Checker::new(registers, plan.max_replay_lag)),
            tallies: RefCell::new(plan.modes.iter().map(|m| (*m, Tally::default())).collect()),
            unpromised: RefCell::default(),
            plan,
            started: Clock.now(),
            writes: RefCell::default(),
            examples: RefCell::default(),
            shown_and_refused: Cell::new(0),
            sessions: Cell::new(0),
            stopped: Cell::new(false),
            token: RefCell::default(),
            hints_off: RefCell::default(),
        }
    }

    /// Ask all tasks to end.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
    }

    pub(super) fn is_over(&self) -> bool {
        let enough = |reads: u64| self.tallies.borrow().values().all(|t| t.reads >= reads);
        self.stopped.get() || Clock.now() >= self.plan.until || self.plan.reads.is_some_and(enough)
    }

    pub(super) fn next_session(&self) -> usize {
        self.sessions.set(self.sessions.get() + 1);
        self.sessions.get()
    }

    fn asked(&self, mode: Mode) -> String {
        self.plan.ask.clone().unwrap_or_else(|| {
            let consistency = match mode {
                // What a session is promised implies it.
                Mode::Monotonic | Mode::Session => "session",
                Mode::Bounded => "bounded",
                Mode::Global => "global",
            };
            consistency.to_owned()
        })
    }

    /// The comment by which a read says for itself what its mode asks for.
    pub(super) fn hint(&self, mode: Mode) -> String {
        let lag = self.plan.max_replay_lag.as_millis();
        format!("/* pgtenure: consistency={}, max_replay_lag={lag}ms */ ", self.asked(mode))
    }

    /// Startup settings of a session of this mode; where its reads say that themselves, it asks for as little as can be.
    pub(super) fn settings(&self, mode: Mode, hinted: bool) -> Vec<(&'static str, String)> {
        let (asked, lag) = match hinted {
            false => (self.asked(mode), format!("{}ms", self.plan.max_replay_lag.as_millis())),
            true => ("eventual".to_owned(), "1h".to_owned()),
        };
        let mut settings = vec![("pgtenure.consistency", asked), ("pgtenure.max_replay_lag", lag)];
        let default = (mode == Mode::Global).then_some(GLOBAL_WAIT);
        if let Some(wait) = self.plan.standby_wait.or(default) {
            settings.push(("pgtenure.standby_wait", format!("{}ms", wait.as_millis())));
        }
        settings
    }

    pub(super) fn read_pause(&self) -> Duration {
        up_to(self.plan.pauses.0)
    }

    pub(super) fn write_pause(&self) -> Duration {
        up_to(self.plan.pauses.1)
    }

    /// Between two writes of a session that reads: long enough for its reads to leave the primary in between.
    pub(super) fn own_write_pause(&self) -> Duration {
        Duration::from_millis(100) + up_to(Duration::from_millis(1900))
    }

    pub(super) fn wrote(&self, register: usize, outcome: Outcome) {
        let now = Clock.now();
        let mut writes = self.writes.borrow_mut();
        match outcome {
            Outcome::Acknowledged => writes.acknowledged += 1,
            Outcome::Refused => writes.refused += 1,
            Outcome::InDoubt => writes.in_doubt += 1,
        }
        if let Some(violation) = self.checker.borrow_mut().ended(register, outcome, now) {
            self.shown_and_refused.set(self.shown_and_refused.get() + 1);
            self.example(Example { violation, read: None, at: now.since(self.started) });
        }
    }

    pub(super) fn write_error(&self, error: &tokio_postgres::Error) {
        count(&mut self.writes.borrow_mut().errors, &code(error));
    }

    pub(super) fn read_error(&self, mode: Mode, error: &tokio_postgres::Error) {
        self.tally(mode, |tally| count(&mut tally.errors, &code(error)));
    }

    /// A read was not answered.
    pub(super) fn read_silent(&self, mode: Mode) {
        self.tally(mode, |tally| count(&mut tally.errors, "no answer"));
    }

    /// A read was answered, and found to break these promises.
    pub(super) fn read(&self, shown: &Shown<'_>, found: &[Violation]) {
        self.tally(shown.mode, |tally| {
            tally.reads += 1;
            tally.by_standbys += u64::from(shown.standby);
            count(&mut tally.nodes, if shown.node.is_empty() { "unknown" } else { &shown.node });
            let spread = if shown.standby { &mut tally.standby } else { &mut tally.primary };
            spread.add(shown.took);
            for way in &shown.ways {
                let (all, by_standbys) = tally.ways.entry(way).or_default();
                (*all, *by_standbys) = (*all + 1, *by_standbys + u64::from(shown.standby));
            }
            for violation in found {
                *tally.violations.entry(violation.broken.as_str()).or_default() += 1;
            }
        });
        for violation in found {
            let read = ExampleRead {
                mode: shown.mode,
                session: shown.session,
                endpoint: shown.endpoint.to_owned(),
                node: shown.node.clone(),
                standby: shown.standby,
                took: shown.took,
            };
            self.example(Example { violation: *violation, read: Some(read), at: shown.at.since(self.started) });
        }
    }

    /// A session was told this token.
    pub(super) fn hand_on(&self, token: Token) {
        *self.token.borrow_mut() = Some(Rc::new(token));
    }

    /// The newest token of another session than `taker`.
    pub(super) fn token_for(&self, taker: usize) -> Option<Rc<Token>> {
        self.token.borrow().clone().filter(|token| token.giver != taker)
    }

    /// Comments are not read there.
    pub(super) fn no_hints(&self, endpoint: &str) {
        self.hints_off.borrow_mut().insert(endpoint.to_owned());
    }

    /// A read was answered that was promised nothing.
    pub(super) fn read_unpromised(&self, took: Duration) {
        self.unpromised.borrow_mut().add(took);
    }

    fn tally(&self, mode: Mode, change: impl FnOnce(&mut Tally)) {
        change(self.tallies.borrow_mut().entry(mode).or_default());
    }

    fn example(&self, example: Example) {
        let mut examples = self.examples.borrow_mut();
        // A node that lacks the very table is a kind of its own: it cannot say who it is.
        let kind = |e: &Example| (e.violation.broken, e.violation.showed < 0, e.read.as_ref().map(|r| r.mode));
        let of_kind = examples.iter().filter(|e| kind(e) == kind(&example));
        if of_kind.count() < MAX_EXAMPLES {
            examples.push(example);
        }
    }

    /// What came of it, once all tasks have ended.
    pub(super) fn result(&self) -> Result {
        Result {
            tallies: self.tallies.take(),
            unpromised: self.unpromised.take(),
            writes: self.writes.take(),
            examples: self.examples.take(),
            shown_and_refused: self.shown_and_refused.get(),
            hints_off: self.hints_off.take(),
            took: Clock.now().since(self.started),
            interrupted: self.stopped.get(),
            standby_share: self.plan.standby_share,
        }
    }
}

/// Random, so that statements meet samples and faults at all distances.
fn up_to(longest: Duration) -> Duration {
    longest.mul_f64(rand::random::<f64>())
}

fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| "connection".to_owned(), |code| code.code().to_owned())
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    let name = if counts.len() < MAX_NAMES || counts.contains_key(name) { name } else { "others" };
    *counts.entry(name.to_owned()).or_default() += 1;
}
