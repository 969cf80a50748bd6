//! What `SHOW STATS` counts, per database. Each worker counts for itself: adding costs a load and a store.

use cluster::Instant;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Averages are over this long, as PgBouncer's `stats_period` has it by default.
const PERIOD: Duration = Duration::from_secs(60);
/// Databases counted apart; what comes later is counted together under no name. Clients choose names only among
/// databases that exist.
const MAX_DATABASES: usize = 4096;

/// A counter. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Servers given to sessions.
    Assignments,
    /// Transactions that ended.
    Transactions,
    /// Queries, or batches up to a Sync, that were answered.
    Queries,
    /// Bytes from clients.
    Received,
    /// Bytes to clients.
    Sent,
    /// Time in transactions.
    TransactionTime,
    /// Time in queries.
    QueryTime,
    /// Time that statements waited for a server.
    WaitTime,
    /// Named statements that clients prepared.
    ClientParses,
    /// Named statements that were prepared on servers for them.
    ServerParses,
    /// Named statements that were bound.
    Binds,
    /// Logins.
    Logins,
}

/// How many there are.
pub const COUNTERS: usize = 12;

/// One value per counter, in the order of [`Counter`].
pub type Figures = [u64; COUNTERS];

/// One database's counters on one worker.
#[derive(Debug, Default)]
pub struct Tally {
    now: [Cell<u64>; COUNTERS],
    /// Where the running period began.
    base: Cell<Figures>,
    /// What the last whole period had.
    last: Cell<Figures>,
}

impl Tally {
    /// Add to a counter.
    pub fn add(&self, counter: Counter, n: u64) {
        let cell = &self.now[counter as usize];
        cell.set(cell.get() + n);
    }

    /// Add a time.
    pub fn spend(&self, counter: Counter, time: Duration) {
        self.add(counter, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn figures(&self) -> Figures {
        std::array::from_fn(|i| self.now[i].get())
    }

    fn since_base(&self) -> Figures {
        let (now, base) = (self.figures(), self.base.get());
        std::array::from_fn(|i| now[i] - base[i])
    }
}

/// All databases of one worker.
#[derive(Debug)]
pub struct Tallies {
    databases: RefCell<BTreeMap<String, Rc<Tally>>>,
    began: Cell<Instant>,
    /// How long the last whole period was; `None` before its end.
    last: Cell<Option<Duration>>,
}

/// One database on one worker, or their sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TallyView {
    /// Its name.
    pub database: String,
    /// Since the process began.
    pub totals: Figures,
    /// In the last whole period, or since the beginning when none is over.
    pub recent: Figures,
    /// How long that was.
    pub period: Duration,
}

impl Tallies {
    /// Nothing counted yet.
    pub fn new(now: Instant) -> Self {
        Self { databases: RefCell::default(), began: Cell::new(now), last: Cell::new(None) }
    }

    /// The counters of a database.
    pub fn of(&self, database: &str) -> Rc<Tally> {
        let mut databases = self.databases.borrow_mut();
        if let Some(tally) = databases.get(database) {
            return tally.clone();
        }
        let name = if databases.len() < MAX_DATABASES { database } else { "" };
        databases.entry(name.to_owned()).or_default().clone()
    }

    /// End the period when it is over.
    pub fn turn(&self, now: Instant) {
        let elapsed = now.since(self.began.get());
        if elapsed < PERIOD {
            return;
        }
        for tally in self.databases.borrow().values() {
            tally.last.set(tally.since_base());
            tally.base.set(tally.figures());
        }
        self.began.set(now);
        self.last.set(Some(elapsed));
    }

    /// Everything, in order of name.
    pub fn view(&self, now: Instant) -> Vec<TallyView> {
        let databases = self.databases.borrow();
        let of = |(database, tally): (&String, &Rc<Tally>)| {
            let (recent, period) = match self.last.get() {
                Some(period) => (tally.last.get(), period),
                None => (tally.since_base(), now.since(self.began.get())),
            };
            TallyView { database: database.clone(), totals: tally.figures(), recent, period }
        };
        databases.iter().map(of).collect()
    }
}

/// Sums per database over workers, in order of name.
pub fn summed(views: &[TallyView]) -> Vec<TallyView> {
    let mut sums: BTreeMap<&str, TallyView> = BTreeMap::new();
    for view in views {
        match sums.get_mut(view.database.as_str()) {
            None => drop(sums.insert(&view.database, view.clone())),
            Some(sum) => {
                sum.totals = std::array::from_fn(|i| sum.totals[i] + view.totals[i]);
                sum.recent = std::array::from_fn(|i| sum.recent[i] + view.recent[i]);
                sum.period = sum.period.max(view.period);
            }
        }
    }
    sums.into_values().collect()
}

impl TallyView {
    /// A total; times in microseconds.
    pub fn total(&self, counter: Counter) -> u64 {
        let n = self.totals[counter as usize];
        if is_time(counter) { n / 1000 } else { n }
    }

    /// PgBouncer's averages: counts and bytes per second, and times in microseconds per transaction or query; the time
    /// waited is per second.
    pub fn average(&self, counter: Counter) -> u64 {
        let recent = |c: Counter| self.recent[c as usize];
        let per = |n: u64, of: u64| n.checked_div(of).unwrap_or(0);
        match counter {
            Counter::TransactionTime => per(recent(counter) / 1000, recent(Counter::Transactions)),
            Counter::QueryTime => per(recent(counter) / 1000, recent(Counter::Queries)),
            Counter::WaitTime => self.per_second(recent(counter) / 1000),
            Counter::Assignments
            | Counter::Transactions
            | Counter::Queries
            | Counter::Received
            | Counter::Sent
            | Counter::ClientParses
            | Counter::ServerParses
            | Counter::Binds
            | Counter::Logins => self.per_second(recent(counter)),
        }
    }

    fn per_second(&self, n: u64) -> u64 {
        let millis = self.period.as_millis();
        let rate = (u128::from(n) * 1000).checked_div(millis).unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

fn is_time(counter: Counter) -> bool {
    matches!(counter, Counter::TransactionTime | Counter::QueryTime | Counter::WaitTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_grow_and_averages_are_of_the_last_period() {
        let at = Instant::from_millis;
        let tallies = Tallies::new(at(0));
        let app = tallies.of("app");
        for _ in 0..120 {
            app.add(Counter::Queries, 1);
            app.spend(Counter::QueryTime, Duration::from_micros(30));
        }
        let first = &tallies.view(at(10_000))[0];
        assert_eq!((first.average(Counter::Queries), first.average(Counter::QueryTime)), (12, 30));
        tallies.turn(at(59_999));
        tallies.turn(at(60_000));
        app.add(Counter::Queries, 5);
        let then = &tallies.view(at(61_000))[0];
        assert_eq!((then.total(Counter::Queries), then.average(Counter::Queries)), (125, 2));
        assert_eq!(then.total(Counter::QueryTime), 3600);
        tallies.turn(at(120_000));
        let later = &tallies.view(at(120_000))[0];
        assert_eq!((later.average(Counter::Queries), later.average(Counter::TransactionTime)), (0, 0));
        let both = summed(&[then.clone(), later.clone()]);
        assert_eq!((both.len(), both[0].total(Counter::Queries)), (1, 250));
    }
}
