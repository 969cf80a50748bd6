//! Rows of what is counted: `SHOW STATS` and its parts, and `SHOW TOTALS`.

use super::Facts;
use crate::console::table::{Cell, Row};
use crate::console::tally::{self, Counter, TallyView};

/// Counters in the order of PgBouncer's columns.
pub(super) const ORDER: [Counter; tally::COUNTERS] = [
    Counter::Assignments,
    Counter::Transactions,
    Counter::Queries,
    Counter::Received,
    Counter::Sent,
    Counter::TransactionTime,
    Counter::QueryTime,
    Counter::WaitTime,
    Counter::ClientParses,
    Counter::ServerParses,
    Counter::Binds,
    Counter::Logins,
];
/// Their names in `SHOW TOTALS`.
const NAMES: [&str; tally::COUNTERS] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "client_parse_count",
    "server_parse_count",
    "bind_count",
    "client_login_count",
];

impl Facts<'_> {
    pub(super) fn per_database(&self, figures: impl Fn(&TallyView) -> Vec<u64>) -> Vec<Row> {
        let sums = tally::summed(&self.view.tallies);
        let row = |t: &TallyView| {
            std::iter::once(t.database.clone().into()).chain(figures(t).into_iter().map(Cell::from)).collect()
        };
        sums.iter().map(row).collect()
    }

    pub(super) fn totals(&self) -> Vec<Row> {
        let all: Vec<TallyView> =
            self.view.tallies.iter().map(|t| TallyView { database: String::new(), ..t.clone() }).collect();
        let sum = tally::summed(&all);
        let rows = |prefix: &'static str, value: fn(&TallyView, Counter) -> u64| {
            let sum = sum.first().cloned();
            ORDER.into_iter().zip(NAMES).map(move |(counter, name)| {
                let n = sum.as_ref().map_or(0, |s| value(s, counter));
                vec![format!("{prefix}_{name}").into(), n.into()]
            })
        };
        rows("total", TallyView::total).chain(rows("avg", TallyView::average)).collect()
    }
}
