//! The answer to `/lag` as text. Of a manager it has less: what is not there is shown as unknown or left out.

use super::super::render::{bytes, bytes_of, field, list, ms_of};
use super::super::table::Table;
use cluster::node::SLOT_PREFIX;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::Duration;

/// Points of a line.
const WIDTH: usize = 60;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What was seen of every standby, oldest first: the greatest lag in milliseconds; `None` where it was not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    lines: BTreeMap<String, VecDeque<Option<u64>>>,
}

impl Past {
    /// Begin with a lagmon's own memory, brought to a point per `interval`.
    pub(super) fn begin(&mut self, history: &Value, interval: Duration) {
        let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        for line in list(history, "standbys") {
            let mut points: Vec<Option<Option<u64>>> = vec![None; WIDTH];
            for point in list(line, "points") {
                let age = point.get("age_ms").and_then(Value::as_u64).unwrap_or(u64::MAX) / interval;
                let place = usize::try_from(age).ok().and_then(|age| WIDTH.checked_sub(age + 1));
                let Some(place) = place else { continue };
                let unknown = point.get("unknown").and_then(Value::as_bool).unwrap_or(true);
                let worst = point.get("max_ms").and_then(Value::as_u64).filter(|_| !unknown);
                // One unknown among several says more than the others.
                points[place] = Some(points[place].map_or(worst, |seen| seen.zip(worst).map(|(a, b)| a.max(b))));
            }
            // A longer step than ours leaves gaps: what held before still held.
            let seen = points.into_iter().skip_while(Option::is_none);
            let filled = seen.scan(None, |last, point| {
                *last = point.or(*last);
                *last
            });
            self.lines.insert(field(line, "node"), filled.collect());
        }
    }

    /// Add an answer to `/lag`. Who is not in it is no standby any more.
    pub(super) fn add(&mut self, answer: &Value) {
        self.lines.retain(|node, _| list(answer, "standbys").any(|s| &field(s, "node") == node));
        for standby in list(answer, "standbys") {
            let line = self.lines.entry(field(standby, "node")).or_default();
            if line.len() >= WIDTH {
                line.pop_front();
            }
            let known = standby.get("unknown").is_none_or(Value::is_null);
            line.push_back(standby.get("replay_lag_ms").and_then(Value::as_u64).filter(|_| known));
        }
    }

    /// A line of blocks as high as the lag, against the greatest in sight; `?` where it was not known.
    fn line(&self, node: &str) -> (String, Option<u64>) {
        let points = || self.lines.get(node).into_iter().flatten();
        let greatest = points().filter_map(|p| *p).max();
        let top = greatest.unwrap_or(0).max(1);
        let bar = |ms: u64| {
            let level = (ms.saturating_mul(BARS.len() as u64 - 1)).div_ceil(top);
            BARS[usize::try_from(level).unwrap_or(0).min(BARS.len() - 1)]
        };
        (points().map(|point| point.map_or('?', bar)).collect(), greatest)
    }
}

/// One look of `--watch`.
pub(super) fn frame(answer: &Value, past: &Past) -> String {
    let mut out = table(answer);
    out.push('\n');
    for standby in list(answer, "standbys") {
        let node = field(standby, "node");
        let (line, greatest) = past.line(&node);
        let greatest = greatest.map_or_else(|| "unknown".to_owned(), |ms| format!("up to {ms} ms"));
        let _ = writeln!(out, "{node}  {line:>WIDTH$}  {greatest}");
    }
    out
}

/// The table, and what stands out below it.
pub(super) fn table(answer: &Value) -> String {
    let primary = answer.get("primary").filter(|p| p.is_object());
    let place = |key| primary.map_or_else(|| "-".to_owned(), |p| field(p, key));
    let mut out = format!("term {}  primary {}  at {}\n\n", field(answer, "term"), place("node"), place("insert_lsn"));
    let mut table =
        Table::new(&["STANDBY", "WRITE", "FLUSH", "REPLAY LAG", "BEHIND", "REPLAYED", "SAMPLE AGE", "HEARD", "NOTES"]);
    for n in list(answer, "standbys") {
        let known = n.get("unknown").is_none_or(Value::is_null);
        table.row([
            field(n, "node"),
            ms_of(n, "write_lag_ms"),
            ms_of(n, "flush_lag_ms"),
            if known { ms_of(n, "replay_lag_ms") } else { "unknown".to_owned() },
            bytes_of(n, "replay_lag_bytes"),
            field(n, "replay_lsn"),
            ms_of(n, "sample_age_ms"),
            ms_of(n, "stream_age_ms"),
            notes(n),
        ]);
    }
    out.push_str(&if table.is_empty() { "no standbys known\n".to_owned() } else { table.text() });
    let told: String = list(answer, "nodes").map(|told| node(told) + &sorts(told)).collect();
    if !told.is_empty() {
        out.push('\n');
        out.push_str(&told);
    }
    out
}

/// A node that sorts text by other rules than the primary has indexes that are wrong for it.
fn sorts(of: &Value) -> String {
    if of.get("sorts_otherwise").and_then(Value::as_bool) != Some(true) {
        return String::new();
    }
    let (node, own) = (field(of, "node"), field(of, "collations"));
    format!("{node} sorts text by other rules than the primary ({own}): what it reads by an index may be wrong\n")
}

fn number(of: &Value, key: &str) -> Option<u64> {
    of.get(key).and_then(Value::as_u64)
}

fn notes(n: &Value) -> String {
    let text = |key| n.get(key).and_then(Value::as_str);
    let mut notes: Vec<String> = text("unknown").map(str::to_owned).into_iter().collect();
    match (text("upstream"), text("streams_from")) {
        (Some("cascade"), Some(from)) => notes.push(format!("cascade of {from}")),
        (Some("elsewhere"), Some(from)) => notes.push(format!("streams from {from}, no member")),
        _ => {}
    }
    if text("unknown") != Some("replay_paused") || text("replay_pause") == Some("pause requested") {
        notes.extend(text("replay_pause").map(|pause| format!("replay {pause}")));
    }
    notes.extend(number(n, "apply_delay_ms").map(|ms| format!("applies {ms} ms late (recovery_min_apply_delay)")));
    notes.extend(number(n, "recovery_conflicts").filter(|n| *n > 0).map(|n| format!("{n} recovery conflicts")));
    notes.join("; ")
}

/// A slot that agents made, and that keeps no more than it may: they see to those, on every node.
fn is_as_it_should_be(slot: &Value) -> bool {
    field(slot, "slot").starts_with(SLOT_PREFIX)
        && slot.get("wal_status").and_then(Value::as_str).is_none_or(|s| s == "reserved")
}

/// What an operator should know of a node's slots and receivers.
fn node(n: &Value) -> String {
    let name = field(n, "node");
    let mut out = String::new();
    for s in list(n, "slots").filter(|s| !is_as_it_should_be(s)) {
        let active = s.get("active").and_then(Value::as_bool) == Some(true);
        let _ = write!(out, "slot {} on {name} ({}): ", field(s, "slot"), field(s, "kind"));
        out.push_str(if active { "active" } else { "inactive" });
        if let Some(ms) = number(s, "inactive_ms").filter(|_| !active) {
            let _ = write!(out, " for {} s", ms / 1000);
        }
        if let Some(kept) = number(s, "retained_bytes") {
            let _ = write!(out, ", retains {}", bytes(kept));
        }
        let _ = write!(out, ", {}", field(s, "wal_status"));
        if let Some(why) = s.get("invalidation_reason").and_then(Value::as_str) {
            let _ = write!(out, ", invalidated: {why}");
        }
        out.push('\n');
    }
    for s in list(n, "senders").filter(|s| s.get("kind").and_then(Value::as_str) != Some("standby")) {
        let kind = if field(s, "kind") == "logical" { "a logical subscriber" } else { "no member" };
        let name_of = field(s, "application_name");
        let _ = writeln!(out, "{name} also sends to {name_of} ({kind}): {}", field(s, "state"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_says_what_stands_out() {
        let answer = json!({
            "term": 3, "primary": { "node": "n1", "insert_lsn": "0/500" },
            "standbys": [
                {
                    "node": "n2", "unknown": null, "replay_lag_ms": 1200, "flush_lag_ms": 4, "write_lag_ms": 3,
                    "replay_lag_bytes": 20480, "replay_lsn": "0/400", "sample_age_ms": 20, "stream_age_ms": 60,
                    "streams_from": "n1", "upstream": "primary", "apply_delay_ms": 1000, "recovery_conflicts": 2,
                },
                {
                    "node": "n3", "unknown": "replay_paused", "replay_lag_ms": null, "replay_lsn": "0/300",
                    "sample_age_ms": 10, "streams_from": "n2", "upstream": "cascade", "replay_pause": "pause requested",
                },
            ],
            "nodes": [{
                "node": "n1",
                "slots": [{
                    "slot": "pgtenure_n2", "kind": "physical", "active": true, "retained_bytes": 0, "wal_status": "reserved",
                }, {
                    "slot": "pgtenure_n3", "kind": "physical", "active": false, "retained_bytes": null, "wal_status": null,
                }, {
                    "slot": "old", "kind": "logical", "active": false, "retained_bytes": 1 << 30,
                    "wal_status": "extended", "inactive_ms": 90_000,
                }],
                "senders": [
                    { "application_name": "n2", "kind": "standby", "state": "streaming" },
                    { "application_name": "copy", "kind": "logical", "state": "streaming" },
                ],
            }, { "node": "n2", "collations": "libc 2.31", "sorts_otherwise": true }],
        });
        let want = "\
            term 3  primary n1  at 0/500\n\n\
            STANDBY  WRITE  FLUSH  REPLAY LAG  BEHIND  REPLAYED  SAMPLE AGE  HEARD  NOTES\n\
            n2       3 ms   4 ms   1200 ms     20 KiB  0/400     20 ms       60 ms  applies 1000 ms late \
            (recovery_min_apply_delay); 2 recovery conflicts\n\
            n3       -      -      unknown     -       0/300     10 ms       -      replay_paused; cascade of n2; \
            replay pause requested\n\n\
            slot old on n1 (logical): inactive for 90 s, retains 1024 MiB, extended\n\
            n1 also sends to copy (a logical subscriber): streaming\n\
            n2 sorts text by other rules than the primary (libc 2.31): what it reads by an index may be wrong\n";
        assert_eq!(table(&answer), want);
    }

    #[test]
    fn the_past_is_a_line_as_high_as_the_lag_with_gaps_where_it_was_unknown() {
        let mut past = Past::default();
        let of = |lag: Value, unknown: Value| json!({ "standbys": [{ "node": "n2", "replay_lag_ms": lag, "unknown": unknown }] });
        for ms in [0, 1, 40, 80] {
            past.add(&of(json!(ms), Value::Null));
        }
        past.add(&of(Value::Null, json!("unreachable")));
        assert_eq!(past.line("n2"), ("▁▂▅█?".to_owned(), Some(80)));
        (0..WIDTH).for_each(|_| past.add(&of(json!(0), Value::Null)));
        assert_eq!(past.line("n2"), ("▁".repeat(WIDTH), Some(0)));
        past.add(&json!({ "standbys": [] }));
        assert_eq!(past.line("n2"), (String::new(), None));
    }

    #[test]
    fn a_lagmons_memory_is_brought_to_the_interval() {
        let point =
            |age_ms: u64, max_ms: u64, unknown: bool| json!({ "age_ms": age_ms, "max_ms": max_ms, "unknown": unknown });
        let points = [
            point(900_000, 99, false),
            point(9000, 1, false),
            point(5000, 7, false),
            point(4500, 2, false),
            point(1500, 3, true),
        ];
        let history = json!({ "standbys": [{ "node": "n2", "points": points }] });
        let line = |interval| {
            let mut past = Past::default();
            past.begin(&history, Duration::from_secs(interval));
            past.lines.remove("n2").unwrap()
        };
        // Ages 9, 5 and 4, 1 s: the gaps repeat what was seen before them.
        let seconds = [Some(1), Some(1), Some(1), Some(1), Some(7), Some(2), Some(2), Some(2), None, None];
        assert_eq!(line(1), seconds);
        assert_eq!(line(4), [Some(1), Some(7), None]);
    }
}
