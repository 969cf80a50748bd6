//! What classifying a statement costs. Run with `cargo bench -p proxy --bench classify`; prints nanoseconds.

use proxy::sql::{FunctionRow, FunctionTable, LexRules, Volatility, classify};
use std::hint::black_box;
use std::time::Instant;

const STATEMENTS: [(&str, &str); 7] = [
    ("select by key", "SELECT id, name, balance FROM accounts WHERE id = $1"),
    ("select 1", "select 1"),
    ("pgbench select", "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"),
    ("pgbench update", "UPDATE pgbench_accounts SET abalance = abalance + 42 WHERE aid = 4711;"),
    (
        "cte and join",
        "WITH recent AS (SELECT o.id, o.customer_id, sum(l.price) AS total FROM orders o JOIN lines l ON l.order_id = \
         o.id WHERE o.at > now() - interval '1 day' GROUP BY 1, 2) SELECT c.name, count(*), max(r.total) FROM recent r \
         JOIN customers c ON c.id = r.customer_id WHERE lower(c.country) IN ('de', 'fr') ORDER BY 3 DESC LIMIT 10",
    ),
    ("commit", "COMMIT"),
    ("insert", "INSERT INTO history (tid, bid, aid, delta, mtime) VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP)"),
];
const ROUNDS: u32 = 200_000;

fn main() {
    let names: Vec<String> = (0..3000).map(|i| format!("function_{i}")).collect();
    let own = names.iter().map(String::as_str).chain(["now", "lower", "count", "max", "sum"]);
    let rows = own.map(|name| FunctionRow { schema: "pg_catalog", name, volatility: Volatility::Stable });
    let table = FunctionTable::new(rows, &[], &[]).with_local_relations(["some_sequence"]);
    for (what, sql) in STATEMENTS {
        let best = (0..15).map(|_| round(sql, &table)).min_by(f64::total_cmp).expect("there are rounds");
        println!("{what:16} {best:7.1} ns, {} bytes", sql.len());
    }
}

/// Mean of one round, nanoseconds.
fn round(sql: &str, table: &FunctionTable) -> f64 {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        black_box(classify(black_box(sql.as_bytes()), table, LexRules::STANDARD));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
}
