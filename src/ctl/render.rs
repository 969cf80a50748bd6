//! Answers of managers as text for people. The same answers are what `--json` prints.

mod changes;

pub use changes::{history, report};

use super::table::Table;
use changes::{change, journal_in};
use failover::fsm::blocker::{Blocker, Verdict};
use failover::fsm::status::{NodeStatus, Status};
use failover::record::{Mode, PolicyRecord, Standing, WallMillis};
use serde_json::Value;
use std::fmt::{self, Write};

/// A value as one word; `-` when there is none.
fn word(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

pub(super) fn field(of: &Value, key: &str) -> String {
    word(of.get(key))
}

pub(super) fn list<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Bytes with a binary unit, three digits at most before it.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n, 0);
    while value >= 10_000 && unit + 1 < units.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", units[unit])
}

pub(super) fn bytes_of(of: &Value, key: &str) -> String {
    of.get(key).and_then(Value::as_u64).map_or_else(|| "-".to_owned(), bytes)
}

pub(super) fn ms_of(of: &Value, key: &str) -> String {
    match of.get(key) {
        Some(v) if v.is_number() => format!("{v} ms"),
        _ => "-".to_owned(),
    }
}

fn or_dash(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// A wall-clock time to the second.
fn utc(ms: WallMillis) -> String {
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

/// `pgtenure status`. An answer that is no status (another version's) is shown as it is.
pub fn status(answer: &Value) -> String {
    let Ok(s) = serde_json::from_value::<Status>(answer.clone()) else { return format!("{answer:#}\n") };
    let mut out = format!(
        "cluster {}  term {}  phase {}  primary {}  mode {}  leading manager {}\n",
        s.cluster,
        or_dash(s.term),
        field(answer, "phase"),
        or_dash(s.primary.as_ref()),
        field(answer, "mode"),
        or_dash(s.leader.as_ref().map(|l| &l.admin)),
    );
    if !s.leading {
        let _ = writeln!(out, "NO MANAGER LEADS: {}; as the manager asked knows it:", s.verdict_text.join("; "));
    }
    let safe = match (s.safe_to_lose_primary.safe, s.safe_to_lose_primary.why.join("; ")) {
        (true, _) => "safe".to_owned(),
        (false, why) => format!("NOT SAFE: {why}"),
    };
    let _ = writeln!(out, "losing the primary now: {safe}");
    if let Some(pause) = &s.paused {
        let until = pause.until.map_or_else(String::new, |u| format!(", until {}", utc(u)));
        let why = if pause.why.is_empty() { String::new() } else { format!(": {}", pause.why) };
        let _ = writeln!(out, "PAUSED by {} since {}{until}{why}; nothing changes by itself", pause.by, utc(pause.at));
    }
    if let Some(since) = &s.suspended {
        let _ = writeln!(
            out,
            "UNPROTECTED since {} (term {}, {}): {}; armed again by itself when enough standbys stream",
            since.since,
            since.term,
            utc(since.since_wall),
            since.why,
        );
    }
    if !s.outdated_etcd.is_empty() {
        let members = s.outdated_etcd.join(", ");
        let _ = writeln!(out, "ETCD with known lease bugs (fixed in 3.4.38, 3.5.23, 3.6.5): {members}");
    }
    match &s.verdict {
        Verdict::Steady | Verdict::Following => {}
        Verdict::Acting { .. } => _ = writeln!(out, "under way: {}", s.verdict_text.join("; ")),
        Verdict::Hold { blockers } => {
            blockers.iter().for_each(|b| _ = writeln!(out, "held back: {b}"));
        }
    }
    out.push('\n');
    out.push_str(&nodes(&s.nodes));
    for p in &s.proxies {
        let _ = writeln!(out, "proxy {}  term {}  gate {}  busy {}", p.id, p.term, p.gate, p.busy);
    }
    if let Some(journal) = &s.last_failover {
        let _ = writeln!(out, "last change of primary: {}", change(journal));
    }
    out
}

/// Who votes, and what a commit waits for.
pub fn policy(answer: &Value) -> String {
    let s: Status = match serde_json::from_value(answer.clone()) {
        Ok(status) => status,
        Err(_) => return format!("{answer:#}\n"),
    };
    let Some(p) = s.policy else { return "no policy is known: the cluster has not been created yet\n".to_owned() };
    one_policy(&p)
}

/// The policies that have been in force, oldest first.
pub fn policies(answer: &Value) -> String {
    match serde_json::from_value::<Vec<PolicyRecord>>(answer["history"].clone()) {
        Ok(policies) => policies.iter().map(one_policy).collect(),
        Err(_) => format!("{answer:#}\n"),
    }
}

fn one_policy(p: &PolicyRecord) -> String {
    let names = |voters: &[cluster::NodeId]| voters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut out = String::new();
    let _ = writeln!(out, "epoch {}, mode {}", p.epoch, p.mode.as_str());
    let who = if p.mode == Mode::Async { "commits that ask for it" } else { "commits" };
    let _ = writeln!(out, "voters {}; {who} wait for {} of the standbys among them", names(&p.voters), p.k);
    if p.mode == Mode::Available {
        let (loss, time) = (bytes(p.limits.max_loss_bytes), humantime(p.limits.max_ms));
        let _ = writeln!(out, "without them they may go unprotected for {loss} and {time}");
    }
    if let Some(to) = &p.joint {
        let _ = writeln!(out, "being changed to: voters {}; {} of them", names(&to.voters), to.k);
    }
    if let Some(since) = &p.suspended {
        let _ = writeln!(out, "suspended since {} (term {}): {}", since.since, since.term, since.why);
        if let Some(ended) = since.lowered.as_ref().and_then(|l| l.ended.as_ref()) {
            let _ = writeln!(out, "commits wait again: {ended}");
        }
    } else if let Some(end) = &p.rearmed {
        let _ = writeln!(out, "the last suspension ended at {} (term {})", end.lsn, end.term);
    }
    out
}

fn humantime(ms: u64) -> String {
    ::humantime::format_duration(std::time::Duration::from_millis(ms)).to_string()
}

fn nodes(nodes: &[NodeStatus]) -> String {
    let voters = nodes.iter().any(|n| n.voter);
    let mut table = Table::new(&["NODE", "STATE", "TL", "RECEIVED", "REPLAYED", "BEHIND", "LAG", "NOTES"]);
    for n in nodes {
        table.row([
            n.node.to_string(),
            n.state.clone(),
            or_dash(n.timeline),
            or_dash(n.receive_lsn),
            or_dash(n.replay_lsn),
            n.replay_lag_bytes.map_or_else(|| "-".to_owned(), bytes),
            n.replay_lag_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
            notes(n, voters),
        ]);
    }
    if table.is_empty() { "no nodes known yet\n".to_owned() } else { table.text() }
}

/// `voters`: it is known who votes.
fn notes(n: &NodeStatus, voters: bool) -> String {
    let mut notes = Vec::new();
    if !n.agent_reachable {
        notes.push(format!("agent silent for {} ms", n.silent_ms));
    }
    if n.fenced {
        let by = n.fence.as_ref().map_or_else(String::new, |f| format!(" by {} since {}", f.by, utc(f.at)));
        notes.push(format!("fenced{by}"));
    }
    if let Some(m) = &n.maintenance {
        let until = m.until.map_or_else(String::new, |u| format!(" until {}", utc(u)));
        let why = if m.why.is_empty() { String::new() } else { format!(": {}", m.why) };
        notes.push(format!("IN MAINTENANCE by {} since {}{until}{why}", m.by, utc(m.at)));
    }
    if let Some(from) = &n.streams_from {
        notes.push(format!("from {from}"));
    }
    if let Some(floor) = &n.quarantine {
        notes.push(format!("quarantined until it has replayed {} on timeline {}", floor.lsn, floor.timeline));
    }
    notes.extend(standing(&n.standing));
    notes.extend(n.rejoin.iter().chain(&n.trouble).cloned());
    if voters && !n.voter {
        notes.push("does not vote".to_owned());
    }
    notes.join("; ")
}

/// What a node is meant for, where that is not the default.
fn standing(s: &Standing) -> Vec<String> {
    let default = Standing::default();
    let mut notes = Vec::new();
    if s.priority != default.priority {
        notes.push(format!("priority {}", s.priority));
    }
    notes.extend(s.zone.as_ref().map(|zone| format!("zone {zone}")));
    if s.apply_delay_ms > 0 {
        notes.push(format!("replays {} later", humantime(s.apply_delay_ms)));
    } else if !s.serve_reads {
        notes.push("serves no reads".to_owned());
    }
    if s.never_promote {
        notes.push("never promoted by itself".to_owned());
    }
    notes
}

/// An order that was carried out.
pub fn done(answer: &Value) -> String {
    let mut out = format!("done: {}\n", field(answer, "done"));
    if let Some(journal) = journal_in(answer) {
        out.push_str(&journal);
    }
    out
}

/// An order that was refused: every reason with its numbers.
pub fn refused(answer: &Value) -> String {
    format!("refused, nothing was done:\n{}", reasons(answer))
}

/// Why an order was refused, a line for each reason.
pub fn reasons(answer: &Value) -> String {
    let mut reasons: Vec<String> = list(answer, "blockers").map(sentence).collect();
    if reasons.is_empty() {
        reasons.push(answer.get("error").map_or_else(|| answer.to_string(), |e| word(Some(e))));
    }
    reasons.iter().fold(String::new(), |out, reason| out + "  " + reason + "\n")
}

/// An order that was tried and failed.
pub fn failed(answer: &Value) -> String {
    let why = answer.get("error").map_or_else(|| answer.to_string(), |e| word(Some(e)));
    let mut out = format!("failed: {why}\n");
    if let Some(journal) = journal_in(answer) {
        let _ = write!(out, "where it stands: {journal}");
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
            "cluster": "demo", "term": 7, "phase": "active", "primary": "n3", "mode": "strict", "policy": null,
            "suspended": { "term": 7, "since": "0/5000", "since_wall": 0, "why": "data loss was allowed" },
            "leading": true, "leader": { "id": "a", "admin": "db1:7400" }, "proxies": [],
            "nodes": [{
                "node": "n3", "postgres": { "host": "db3", "port": 5432 }, "role": "primary", "state": "primary",
                "voter": true, "agent_reachable": false, "silent_ms": 1200, "timeline": 7, "receive_lsn": "0/6000",
                "replay_lsn": null, "replay_lag_bytes": null, "replay_lag_ms": null, "streams_from": null,
                "fenced": false, "quarantine": null, "rejoin": null, "promise": 7, "trouble": null, "agent": null,
            }],
            "safe_to_lose_primary": { "safe": false, "why": ["commits past 0/5000 are not protected"] },
            "verdict": { "verdict": "steady" }, "verdict_text": [], "last_failover": null, "records_ms_ago": 3,
            "outdated_etcd": ["http://db1:2379 (3.4.23)"],
        }));
        let expected = "cluster demo  term 7  phase active  primary n3  mode strict  leading manager db1:7400\n\
            losing the primary now: NOT SAFE: commits past 0/5000 are not protected\n\
            UNPROTECTED since 0/5000 (term 7, 1970-01-01T00:00:00Z): data loss was allowed; armed again by itself \
            when enough standbys stream\n\
            ETCD with known lease bugs (fixed in 3.4.38, 3.5.23, 3.6.5): http://db1:2379 (3.4.23)\n\n\
            NODE  STATE    TL  RECEIVED  REPLAYED  BEHIND  LAG  NOTES\n\
            n3    primary  7   0/6000    -         -       -    agent silent for 1200 ms\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_answer_that_is_no_status_is_shown_whole() {
        assert_eq!(status(&json!({ "term": 3 })), "{\n  \"term\": 3\n}\n");
    }
}
