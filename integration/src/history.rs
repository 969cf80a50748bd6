//! What clients were told, against what the database holds afterwards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a client was told about one row it tried to insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The commit was acknowledged.
    Acknowledged,
    /// 08007: it may have been committed or not.
    InDoubt,
    /// Refused with this SQLSTATE, which says that it was not committed.
    Refused(String),
    /// The connection died under it.
    Disconnected(String),
}

/// One row's story.
#[derive(Clone, Debug)]
pub struct Event {
    /// The row's id, used once in a history.
    pub id: i64,
    /// The connection that sent it.
    pub connection: usize,
    /// When the statement that could commit it was sent.
    pub sent: Instant,
    /// When the answer came.
    pub answered: Instant,
    /// The answer.
    pub outcome: Outcome,
}

/// All stories of a workload.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In no particular order.
    pub events: Vec<Event>,
}

/// The SQLSTATEs that a failover may show to a writer, besides 08007.
pub const FAILOVER_REFUSALS: [&str; 2] = ["40001", "57P03"];

impl History {
    /// Everything that the rows found contradict, in words. Empty: the history holds.
    ///
    /// Acknowledged rows are there exactly once, rows in doubt at most once, refused rows not at all, and no row is
    /// there that nobody sent.
    pub fn contradictions(&self, found: &BTreeMap<i64, usize>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut sent = BTreeMap::new();
        for e in &self.events {
            let times = found.get(&e.id).copied().unwrap_or(0);
            let holds = match e.outcome {
                Outcome::Acknowledged => times == 1,
                Outcome::InDoubt | Outcome::Disconnected(_) => times <= 1,
                Outcome::Refused(_) => times == 0,
            };
            if !holds {
                wrong.push(format!(
                    "row {} of connection {} was {:?}, found {times} times",
                    e.id, e.connection, e.outcome
                ));
            }
            if sent.insert(e.id, ()).is_some() {
                wrong.push(format!("row {} was sent twice by the workload itself", e.id));
            }
        }
        wrong.extend(found.keys().filter(|id| !sent.contains_key(id)).map(|id| format!("row {id} was sent by nobody")));
        wrong
    }

    /// Ids of acknowledged rows.
    pub fn acknowledged(&self) -> Vec<i64> {
        self.events.iter().filter(|e| e.outcome == Outcome::Acknowledged).map(|e| e.id).collect()
    }

    /// How often each answer but an acknowledgement was given.
    pub fn refusals(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for e in &self.events {
            let name = match &e.outcome {
                Outcome::Acknowledged => continue,
                Outcome::InDoubt => "08007".to_owned(),
                Outcome::Refused(state) => state.clone(),
                Outcome::Disconnected(why) => format!("disconnected: {why}"),
            };
            *counts.entry(name).or_insert(0) += 1;
        }
        counts
    }

    /// The longest time between two acknowledgements in a row, for every connection; ordered from short to long.
    pub fn longest_gaps(&self) -> Vec<Duration> {
        let mut by_connection: BTreeMap<usize, Vec<Instant>> = BTreeMap::new();
        for e in self.events.iter().filter(|e| e.outcome == Outcome::Acknowledged) {
            by_connection.entry(e.connection).or_default().push(e.answered);
        }
        let mut gaps: Vec<Duration> = by_connection
            .into_values()
            .map(|mut times| {
                times.sort();
                times.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
            })
            .collect();
        gaps.sort();
        gaps
    }

    /// Acknowledgements received at or after `when`, per connection.
    pub fn acknowledged_since(&self, when: Instant) -> BTreeMap<usize, usize> {
        let mut counts = BTreeMap::new();
        for e in &self.events {
            let late = e.outcome == Outcome::Acknowledged && e.answered >= when;
            *counts.entry(e.connection).or_insert(0) += usize::from(late);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: i64, outcome: Outcome) -> Event {
        let now = Instant::now();
        Event { id, connection: 0, sent: now, answered: now, outcome }
    }

    #[test]
    fn every_way_to_break_a_promise_is_seen() {
        let refused = || Outcome::Refused("40001".into());
        for (outcome, times, holds) in [
            (Outcome::Acknowledged, 0, false),
            (Outcome::Acknowledged, 1, true),
            (Outcome::Acknowledged, 2, false),
            (Outcome::InDoubt, 0, true),
            (Outcome::InDoubt, 1, true),
            (Outcome::InDoubt, 2, false),
            (refused(), 0, true),
            (refused(), 1, false),
        ] {
            let history = History { events: vec![event(7, outcome.clone())] };
            let found: BTreeMap<i64, usize> = (times > 0).then_some((7, times)).into_iter().collect();
            assert_eq!(history.contradictions(&found).is_empty(), holds, "{outcome:?} found {times} times");
        }
        assert_eq!(History::default().contradictions(&BTreeMap::from([(1, 1)])), ["row 1 was sent by nobody"]);
    }

    #[test]
    fn the_outage_is_the_longest_gap_of_each_connection() {
        let start = Instant::now();
        let ack = |connection, ms| Event {
            id: ms,
            connection,
            sent: start,
            answered: start + Duration::from_millis(ms as u64),
            outcome: Outcome::Acknowledged,
        };
        let h = History { events: vec![ack(0, 0), ack(0, 10), ack(0, 400), ack(1, 0), ack(1, 50)] };
        assert_eq!(h.longest_gaps(), [Duration::from_millis(50), Duration::from_millis(390)]);
    }
}
