//! What a read owes to the writes before it: PURE. Acknowledgements and reads go in as they happen, violations come out.
//!
//! The data are registers (rows), each with one writer that counts up. So "misses a write" is "shows a smaller number",
//! and one read of all registers is compared with what was acknowledged when it began.
//!
//! All times are the same process's clock, and each is taken on the safe side: a write counts as acknowledged when its
//! answer was seen, a read begins before it is sent. What is in doubt (08007, a lost connection) may show or not, but
//! what a session has seen must stay. What was refused must never show.
//!
//! The caller's duties: inputs in the order of their times; one write of a register at a time, ended before the next.

use cluster::Instant;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Refused numbers remembered per register; older ones are forgotten.
const MAX_REFUSED: usize = 10_000;

/// What is checked of a session's reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Nothing older than the bound.
    Bounded,
    /// That, and no session goes back.
    Monotonic,
    /// That, and a session sees its own writes.
    Session,
    /// Everything acknowledged before the read began, and no session goes back.
    Global,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bounded, Self::Monotonic, Self::Session, Self::Global];

    /// As typed and printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bounded => "bounded",
            Self::Monotonic => "monotonic",
            Self::Session => "session",
            Self::Global => "global",
        }
    }
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged: it was committed.
    Acknowledged,
    /// An error that says that it was not.
    Refused,
    /// 08007, or no answer: nobody knows.
    InDoubt,
}

/// Which promise a read broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// It misses what was acknowledged longer ago than the bound.
    Stale,
    /// It misses what anybody was acknowledged before it began.
    NotGlobal,
    /// It misses the session's own acknowledged write.
    OwnWrite,
    /// It misses what the session had already read.
    WentBack,
    /// It misses what is covered by the token that the session holds.
    BehindToken,
    /// It shows what was refused or never sent.
    Impossible,
}

impl Broken {
    /// As printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::NotGlobal => "not_global",
            Self::OwnWrite => "own_write",
            Self::WentBack => "went_back",
            Self::BehindToken => "behind_token",
            Self::Impossible => "impossible",
        }
    }
}

/// A promise that a read broke, at the first register concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub broken: Broken,
    /// The register.
    pub register: usize,
    /// What it showed; -1: the row was not there.
    pub showed: i64,
    /// The least that it had to show; the greatest it could, when impossible.
    pub owed: i64,
    /// How long before the read began the number owed was acknowledged; zero when it was not that which was owed.
    pub acknowledged_before: Duration,
    /// Registers concerned.
    pub registers: usize,
}

/// One session's memory.
#[derive(Clone, Debug)]
pub struct Session {
    mode: Mode,
    own: Option<usize>,
    seen: Vec<i64>,
    token: Option<Vec<i64>>,
}

impl Session {
    /// A session that has read nothing; `own` is the register that it writes itself.
    pub fn new(mode: Mode, own: Option<usize>) -> Self {
        Self { mode, own, seen: Vec::new(), token: None }
    }

    /// From now on it asks for what a token covers that [`Checker::covered`] said this of, instead of an earlier one's.
    pub fn take(&mut self, covered: Vec<i64>) {
        self.token = Some(covered);
    }

    /// It asks for what no token covers any more.
    pub fn put_away(&mut self) {
        self.token = None;
    }

    /// Does it hold one?
    pub fn holds_token(&self) -> bool {
        self.token.is_some()
    }
}

/// A read on its way: what it owes was settled when it began.
#[derive(Clone, Debug)]
pub struct Begun {
    at: Instant,
    owed: Vec<Owed>,
    own: Option<i64>,
    token: Option<Vec<i64>>,
    /// What its transaction has shown before.
    before: Vec<i64>,
}

impl Begun {
    /// A read behind this one in its transaction, which is on one server: it must not go back, whatever the mode.
    pub fn behind(self, shown: &[i64]) -> Self {
        Self { before: shown.to_vec(), ..self }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    n: i64,
    acknowledged: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
struct Register {
    sent: i64,
    open: bool,
    /// The number being written was seen by a read that ended already.
    open_seen: bool,
    /// Acknowledgements: the newest that is older than the bound, and all younger ones.
    acknowledged: VecDeque<(Instant, i64)>,
    refused: BTreeSet<i64>,
}

impl Register {
    fn owed(&self, until: Instant) -> Owed {
        let count = self.acknowledged.partition_point(|(at, _)| *at <= until);
        let last = count.checked_sub(1).map(|i| self.acknowledged[i]);
        last.map_or_else(Owed::default, |(at, n)| Owed { n, acknowledged: Some(at) })
    }
}

/// All registers.
#[derive(Clone, Debug)]
pub struct Checker {
    bound: Duration,
    registers: Vec<Register>,
}

impl Checker {
    /// So many registers, all at 0 since longer than `bound`, the greatest staleness allowed.
    pub fn new(registers: usize, bound: Duration) -> Self {
        Self { bound, registers: vec![Register::default(); registers] }
    }

    /// The next number of a register is about to be sent.
    pub fn send(&mut self, register: usize) -> i64 {
        let r = &mut self.registers[register];
        (r.open, r.open_seen) = (true, false);
        r.sent += 1;
        r.sent
    }

    /// The write on its way ended at `now`. A violation when it was refused although a read has shown it.
    pub fn ended(&mut self, register: usize, outcome: Outcome, now: Instant) -> Option<Violation> {
        let oldest = now - self.bound;
        let r = &mut self.registers[register];
        r.open = false;
        match outcome {
            Outcome::InDoubt => None,
            Outcome::Acknowledged => {
                r.acknowledged.push_back((now, r.sent));
                while r.acknowledged.get(1).is_some_and(|(at, _)| *at <= oldest) {
                    r.acknowledged.pop_front();
                }
                None
            }
            Outcome::Refused => {
                r.refused.insert(r.sent);
                if r.refused.len() > MAX_REFUSED {
                    r.refused.pop_first();
                }
                let shown = Violation {
                    broken: Broken::Impossible,
                    register,
                    showed: r.sent,
                    owed: r.sent - 1,
                    acknowledged_before: Duration::ZERO,
                    registers: 1,
                };
                r.open_seen.then_some(shown)
            }
        }
    }

    /// A read of `session` is about to be sent.
    pub fn begin(&self, session: &Session, now: Instant) -> Begun {
        let until = match session.mode {
            Mode::Bounded | Mode::Monotonic | Mode::Session => now - self.bound,
            Mode::Global => now,
        };
        let own = match session.mode {
            Mode::Session | Mode::Global => session.own.map(|own| self.registers[own].owed(now).n),
            Mode::Bounded | Mode::Monotonic => None,
        };
        let owed = self.registers.iter().map(|r| r.owed(until)).collect();
        Begun { at: now, owed, own, token: session.token.clone(), before: Vec::new() }
    }

    /// What a token covers that `session` asks for at `now`, one number per register: all that it has read, and its own
    /// acknowledged writes.
    pub fn covered(&self, session: &Session, now: Instant) -> Vec<i64> {
        let mut covered = session.seen.clone();
        covered.resize(self.registers.len(), -1);
        if let Some(own) = session.own {
            covered[own] = covered[own].max(self.registers[own].owed(now).n);
        }
        covered
    }

    /// It was answered with `shown`, one number per register, -1 for a row that was not there. Each promise is named
    /// once.
    pub fn end(&mut self, session: &mut Session, begun: &Begun, shown: &[i64]) -> Vec<Violation> {
        let mut found: Vec<Violation> = Vec::new();
        let mut add = |broken, register: usize, owed: i64, acknowledged: Option<Instant>| match found
            .iter_mut()
            .find(|v| v.broken == broken)
        {
            Some(known) => known.registers += 1,
            None => found.push(Violation {
                broken,
                register,
                showed: shown.get(register).copied().unwrap_or(-1),
                owed,
                acknowledged_before: acknowledged.map_or(Duration::ZERO, |at| begun.at.since(at)),
                registers: 1,
            }),
        };
        for (i, owed) in begun.owed.iter().enumerate() {
            let n = shown.get(i).copied().unwrap_or(-1);
            if n < owed.n {
                let broken = if session.mode == Mode::Global { Broken::NotGlobal } else { Broken::Stale };
                add(broken, i, owed.n, owed.acknowledged);
            }
            if let Some(own) = begun.own.filter(|own| session.own == Some(i) && n < *own) {
                add(Broken::OwnWrite, i, own, None);
            }
            let seen = session.seen.get(i).filter(|_| session.mode != Mode::Bounded).max(begun.before.get(i));
            if let Some(seen) = seen.copied().filter(|seen| n < *seen) {
                add(Broken::WentBack, i, seen, None);
            }
            if let Some(covered) = begun.token.as_ref().and_then(|t| t.get(i)).filter(|covered| n < **covered) {
                add(Broken::BehindToken, i, *covered, None);
            }
            let r = &mut self.registers[i];
            if n > r.sent || r.refused.contains(&n) {
                add(Broken::Impossible, i, r.sent, None);
            }
            r.open_seen |= r.open && n == r.sent;
        }
        session.seen.resize(self.registers.len(), -1);
        for (seen, n) in session.seen.iter_mut().zip(shown) {
            *seen = (*seen).max(*n);
        }
        found
    }
}

#[cfg(test)]
mod tests;
