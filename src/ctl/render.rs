//! Answers of managers as text for people. The same answers are what `--json` prints.

use super::table::Table;
use failover::fsm::blocker::Blocker;
use serde_json::Value;
use std::fmt::Write;

/// A value as one word; `-` when there is none.
fn word(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

fn field(of: &Value, key: &str) -> String {
    word(of.get(key))
}

fn is(of: &Value, key: &str) -> bool {
    of.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn list<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Bytes with a binary unit, three digits at most before it.
fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n, 0);
    while value >= 10_000 && unit + 1 < units.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", units[unit])
}

fn bytes_of(of: &Value, key: &str) -> String {
    of.get(key).and_then(Value::as_u64).map_or_else(|| "-".to_owned(), bytes)
}

fn ms_of(of: &Value, key: &str) -> String {
    match of.get(key) {
        Some(v) if v.is_number() => format!("{v} ms"),
        _ => "-".to_owned(),
    }
}

/// A wall-clock time, milliseconds since 1970, to the second in UTC.
fn time(of: &Value, key: &str) -> String {
    let Some(ms) = of.get(key).and_then(Value::as_u64) else { return "-".to_owned() };
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(ms / 1000);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// A blocker as its sentence; as JSON when it is of a kind we do not know (a newer manager's).
fn sentence(blocker: &Value) -> String {
    match blocker {
        Value::String(text) => text.clone(),
        other => serde_json::from_value::<Blocker>(other.clone()).map_or_else(|_| other.to_string(), |b| b.to_string()),
    }
}

/// `pgtenure status`.
pub fn status(s: &Value) -> String {
    let mut out = format!(
        "cluster {}  term {} {}  primary {}  mode {}  leader {}\n",
        field(s, "cluster"),
        field(s, "term"),
        field(s, "phase"),
        field(s, "primary"),
        field(s, "mode"),
        s.pointer("/leader/admin").or_else(|| s.get("leader")).map_or_else(|| "-".to_owned(), |l| word(Some(l))),
    );
    out.push_str(&safety(s));
    out.push_str(&protection(s));
    let verdict = s.get("verdict").map(|v| v.get("verdict").unwrap_or(v));
    if verdict.and_then(Value::as_str).is_some_and(|v| v != "steady") {
        let _ = writeln!(out, "managers: {}{}", word(verdict), step(s));
    }
    for blocker in s.pointer("/verdict/blockers").and_then(Value::as_array).into_iter().flatten() {
        let _ = writeln!(out, "  held back: {}", sentence(blocker));
    }
    out.push('\n');
    out.push_str(&nodes(s));
    out.push_str(&last_failover(s));
    out
}

fn step(s: &Value) -> String {
    s.pointer("/verdict/step").and_then(Value::as_str).map_or(String::new(), |step| format!(", {step}"))
}

/// One line: would losing the primary now be safe, and if not, why.
fn safety(s: &Value) -> String {
    let Some(safe) = s.get("safe_to_lose_primary") else { return String::new() };
    let yes = safe.get("safe").or_else(|| safe.get("yes")).unwrap_or(safe);
    let why: Vec<String> = list(safe, "why").map(sentence).collect();
    let yes = yes.as_bool().unwrap_or_else(|| yes.as_str() == Some("yes"));
    match yes {
        true => "losing the primary now: safe, a failover would open a new one without loss\n".to_owned(),
        false if why.is_empty() => "losing the primary now: NOT SAFE\n".to_owned(),
        false => format!("losing the primary now: NOT SAFE: {}\n", why.join("; ")),
    }
}

/// Commits that are not protected although the mode says so.
fn protection(s: &Value) -> String {
    let suspended = s.get("suspended").or_else(|| s.pointer("/policy/suspended"));
    match suspended {
        Some(what) if what.is_object() => format!(
            "UNPROTECTED since {} (term {}, {}): {}; until re-armed, which happens by itself\n",
            field(what, "since"),
            field(what, "term"),
            time(what, "since_wall"),
            field(what, "why"),
        ),
        _ => String::new(),
    }
}

fn nodes(s: &Value) -> String {
    let header = ["NODE", "ROLE", "STATE", "TL", "RECEIVED", "REPLAYED", "BEHIND", "STREAMS FROM", "NOTES"];
    let mut table = Table::new(&header);
    for n in list(s, "nodes") {
        table.row([
            field(n, "node"),
            field(n, "role"),
            field(n, "state"),
            field(n, "timeline"),
            word(["receive_lsn", "flush_lsn", "insert_lsn"].iter().find_map(|k| n.get(k).filter(|v| !v.is_null()))),
            word(n.get("replay_lsn").filter(|v| !v.is_null())),
            ["lag_bytes", "replay_lag_bytes"].iter().map(|k| bytes_of(n, k)).find(|b| b != "-").unwrap_or("-".into()),
            field(n, "streams_from"),
            notes(n),
        ]);
    }
    if table.is_empty() { "no nodes known yet\n".to_owned() } else { table.text() }
}

fn notes(n: &Value) -> String {
    let mut notes = Vec::new();
    if n.get("reachable").or_else(|| n.get("agent_reachable")).and_then(Value::as_bool) == Some(false) {
        notes.push("agent unreachable".to_owned());
    }
    if is(n, "fenced") || n.get("fenced").is_some_and(Value::is_object) {
        notes.push("fenced".to_owned());
    }
    if let Some(floor) = n.get("quarantine").filter(|q| !q.is_null()) {
        notes.push(format!(
            "quarantined until {}",
            floor.get("lsn").map_or_else(|| word(Some(floor)), |l| word(Some(l)))
        ));
    }
    for key in ["rejoin", "trouble"] {
        if let Some(text) = n.get(key).and_then(Value::as_str) {
            notes.push(text.to_owned());
        }
    }
    notes.join("; ")
}

fn last_failover(s: &Value) -> String {
    let last = ["last_failover", "last_change", "last"].iter().find_map(|k| s.get(k).filter(|v| v.is_object()));
    last.map_or(String::new(), |j| format!("\nlast change of primary: {}\n", change(j)))
}

/// One journal entry on one line.
fn change(j: &Value) -> String {
    let total = list(j, "phases").last().and_then(|p| p.get("ms")?.as_u64());
    let took = total.map_or(String::new(), |ms| format!(" in {ms} ms"));
    format!(
        "term {} by {}, {} -> {}{took}, {}, {}",
        field(j, "term"),
        field(j, "cause"),
        field(j, "from"),
        field(j, "to"),
        field(j, "finished"),
        time(j, "started"),
    )
}

/// `pgtenure lag`.
pub fn lag(l: &Value) -> String {
    let mut out = String::new();
    if let Some(primary) = l.get("primary").filter(|p| !p.is_null()) {
        let node = primary.get("node").map_or_else(|| word(Some(primary)), |n| word(Some(n)));
        let at = ["insert_lsn", "lsn"].iter().find_map(|k| primary.get(k));
        let _ = writeln!(out, "term {}  primary {node}  at {}\n", field(l, "term"), word(at));
    }
    let mut table = Table::new(&["STANDBY", "REPLAY LAG", "BEHIND", "REPLAYED", "SAMPLE AGE", "NOTES"]);
    let entries = if l.get("standbys").is_some() { "standbys" } else { "nodes" };
    for n in list(l, entries) {
        let behind = ["replay_lag_bytes", "lag_bytes"].iter().map(|k| bytes_of(n, k)).find(|b| b != "-");
        let age = ["sample_age_ms", "age_ms"].iter().map(|k| ms_of(n, k)).find(|a| a != "-");
        let lag = ["replay_lag_ms", "lag_ms"].iter().map(|k| ms_of(n, k)).find(|a| a != "-");
        table.row([
            field(n, "node"),
            lag.unwrap_or_else(|| "unknown".into()),
            behind.unwrap_or_else(|| "-".into()),
            field(n, "replay_lsn"),
            age.unwrap_or_else(|| "-".into()),
            ["unknown", "why", "reason"].iter().find_map(|k| n.get(k)?.as_str()).unwrap_or_default().to_owned(),
        ]);
    }
    out + &if table.is_empty() { "no standbys known\n".to_owned() } else { table.text() }
}

/// `pgtenure history`.
pub fn history(h: &Value) -> String {
    let entries = h.as_array().or_else(|| h.get("history")?.as_array());
    let mut table = Table::new(&["TERM", "STARTED", "CAUSE", "FROM", "TO", "MS", "LOST AT MOST", "OUTCOME"]);
    for j in entries.into_iter().flatten() {
        let total = list(j, "phases").last().map_or_else(|| "-".to_owned(), |p| field(p, "ms"));
        let window = j.get("window").map_or_else(|| "-".to_owned(), |w| bytes_of(w, "bytes"));
        table.row([
            field(j, "term"),
            time(j, "started"),
            field(j, "cause"),
            field(j, "from"),
            field(j, "to"),
            total,
            window,
            field(j, "finished"),
        ]);
    }
    if table.is_empty() { "no change of primary yet\n".to_owned() } else { table.text() }
}

/// `pgtenure report`.
pub fn report(r: &Value) -> String {
    let journal = r.get("journal").filter(|j| j.is_object()).unwrap_or(r);
    let mut out = format!("{}\n", change(journal));
    for line in list(journal, "observed") {
        let _ = writeln!(out, "  seen: {}", word(Some(line)));
    }
    let phases: Vec<String> =
        list(journal, "phases").map(|p| format!("{} {}", field(p, "phase"), field(p, "ms"))).collect();
    if !phases.is_empty() {
        let _ = writeln!(out, "  milliseconds since the first evidence: {}", phases.join(", "));
    }
    for n in list(journal, "recruits") {
        let _ =
            writeln!(out, "  frozen: {} at {} on timeline {}", field(n, "node"), field(n, "lsn"), field(n, "timeline"));
    }
    if let Some(w) = journal.get("window").filter(|w| w.is_object()) {
        let _ = writeln!(
            out,
            "unreplicated-write window, provisional: {} ({}) from {} to {}",
            bytes_of(w, "bytes"),
            ms_of(w, "ms"),
            field(w, "fork_lsn"),
            field(w, "last_known_lsn"),
        );
    }
    let mut found = false;
    for loss in list(r, "reports").chain(list(r, "losses")) {
        found = true;
        out.push_str(&loss_report(loss));
    }
    if !found {
        out.push_str("the old primary's WAL has not been read yet: what it lost is known when it rejoins\n");
    }
    out
}

fn loss_report(l: &Value) -> String {
    let commits = l.get("commits").and_then(Value::as_u64).unwrap_or(0);
    let mut out = format!(
        "final, from the WAL of {}: {} between the fork {} and its end {}: {commits} commits lost, {} aborts{}, \
         {} of the commits made below the cluster's mode\n",
        field(l, "node"),
        bytes_of(l, "bytes"),
        field(l, "fork_lsn"),
        field(l, "end_lsn"),
        field(l, "aborts"),
        l.get("span_ms").filter(|m| m.is_number()).map_or(String::new(), |m| format!(", within {m} ms")),
        field(l, "commits_while_suspended"),
    );
    for t in list(l, "transactions").take(20) {
        let _ = writeln!(out, "  xid {} at {}, {}", field(t, "xid"), field(t, "lsn"), field(t, "committed_at"));
    }
    if commits > 20 {
        let _ = writeln!(out, "  … {} more, see --json", commits - 20);
    }
    if let Some(place) = l.get("kept_in").and_then(Value::as_str) {
        let _ = writeln!(out, "  that WAL is kept in {place}");
    }
    out
}

/// An order that was carried out.
pub fn done(answer: &Value) -> String {
    let journal = answer.get("journal").filter(|j| j.is_object()).or_else(|| answer.get("phases").map(|_| answer));
    match (journal, answer.get("done").or_else(|| answer.get("message")).and_then(Value::as_str)) {
        (Some(journal), _) => format!("done: {}\n", change(journal)),
        (None, Some(text)) => format!("done: {text}\n"),
        (None, None) => "done\n".to_owned(),
    }
}

/// An order that was refused: every reason with its numbers.
pub fn refused(answer: &Value) -> String {
    let reasons: Vec<String> = match answer.get("blockers").or_else(|| answer.get("refused")) {
        Some(Value::Array(all)) => all.iter().map(sentence).collect(),
        Some(one) => vec![sentence(one)],
        None => vec![answer.get("error").map_or_else(|| answer.to_string(), |e| word(Some(e)))],
    };
    let mut out = "refused, nothing was done:\n".to_owned();
    for reason in reasons {
        let _ = writeln!(out, "  {reason}");
    }
    out
}

/// An order that was tried and failed.
pub fn failed(answer: &Value) -> String {
    let why = ["failed", "error", "message"].iter().find_map(|k| answer.get(k)?.as_str()).map(str::to_owned);
    let mut out = format!("failed: {}\n", why.unwrap_or_else(|| answer.to_string()));
    for blocker in list(answer, "blockers") {
        let _ = writeln!(out, "  {}", sentence(blocker));
    }
    if let Some(journal) = answer.get("journal").filter(|j| j.is_object()) {
        let _ = writeln!(out, "where it stands: {}", change(journal));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_refusal_prints_every_blocker_with_its_numbers() {
        let blocker = Blocker::TooFewRecruits {
            m: 3,
            k: 1,
            needed: 2,
            have: vec!["n3".parse().unwrap()],
            missing: vec![failover::fsm::blocker::Missing {
                node: "n2".parse().unwrap(),
                unfit: failover::fsm::blocker::Unfit::Unreachable { silent_ms: 5000 },
            }],
        };
        assert_eq!(
            refused(&json!({ "blockers": [blocker] })),
            "refused, nothing was done:\n  too few standbys: m=3, k=1, 2 needed, 1 there (n3); missing: n2 unreachable \
             for 5000 ms\n"
        );
    }

    #[test]
    fn a_blocker_of_an_unknown_kind_is_shown_whole() {
        assert!(refused(&json!({ "blockers": [{ "blocker": "new_kind", "n": 3 }] })).contains("new_kind"));
    }

    #[test]
    fn sizes_keep_their_leading_digits() {
        let shown: Vec<_> = [0, 9999, 10_000, 16 << 20, 5 << 40].map(bytes).into();
        assert_eq!(shown, ["0 B", "9999 B", "9 KiB", "16 MiB", "5120 GiB"]);
    }

    #[test]
    fn an_unprotected_cluster_says_since_when() {
        let text = status(&json!({
            "cluster": "demo", "term": 7, "phase": "active", "primary": "n3", "mode": "strict",
            "safe_to_lose_primary": { "safe": false, "why": ["commits past 0/5000 are not protected"] },
            "suspended": { "term": 7, "since": "0/5000", "since_wall": 0, "why": "failover with data loss allowed" },
            "nodes": [{ "node": "n3", "role": "primary", "state": "running", "timeline": 7 }],
        }));
        assert!(text.contains("NOT SAFE: commits past 0/5000 are not protected"), "{text}");
        assert!(text.contains("UNPROTECTED since 0/5000 (term 7, 1970-01-01T00:00:00Z)"), "{text}");
    }
}
