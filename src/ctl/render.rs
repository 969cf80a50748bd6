//! Answers of managers as text for people. The same answers are what `--json` prints.

use super::table::Table;
use cluster::Term;
use cluster::timeline::Fork;
use failover::fsm::blocker::{Blocker, Verdict};
use failover::fsm::status::{NodeStatus, Status};
use failover::http::Loss;
use failover::record::{Cause, DoubtsRecord, JournalRecord, LossReport, Mode, PolicyRecord, Standing, WallMillis};
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

/// A journal in JSON on one line.
fn change_of(journal: &Value) -> String {
    serde_json::from_value::<JournalRecord>(journal.clone()).map_or_else(|_| journal.to_string(), |j| change(&j))
}

/// One change of primary on one line.
fn change(j: &JournalRecord) -> String {
    let took = j.phases.last().map_or(String::new(), |p| format!(" in {} ms", p.ms));
    format!(
        "term {} by {}, {} -> {}{took}, {}, {}",
        j.term,
        word(serde_json::to_value(j.cause).ok().as_ref()),
        or_dash(j.from.as_ref()),
        or_dash(j.to.as_ref()),
        j.finished.as_deref().unwrap_or("not finished"),
        utc(j.started),
    )
}

/// `pgtenure history`.
pub fn history(answer: &Value) -> String {
    let entries = answer.as_array().or_else(|| answer.get("history")?.as_array());
    let losses = losses_in(answer);
    let lost = |term| {
        let known = losses.iter().find(|l| l.term == term);
        known
            .map_or_else(|| "-".to_owned(), |l| if l.whole { l.commits.to_string() } else { format!("{}+", l.commits) })
    };
    let mut table = Table::new(&["TERM", "STARTED", "CAUSE", "FROM", "TO", "MS", "WINDOW", "COMMITS LOST", "OUTCOME"]);
    for entry in entries.into_iter().flatten() {
        let Ok(j) = serde_json::from_value::<JournalRecord>(entry.clone()) else {
            table.row([entry.to_string()]);
            continue;
        };
        table.row([
            j.term.to_string(),
            utc(j.started),
            field(entry, "cause"),
            or_dash(j.from),
            or_dash(j.to),
            or_dash(j.phases.last().map(|p| p.ms)),
            j.window.map_or_else(|| "-".to_owned(), |w| bytes(w.bytes)),
            lost(j.term),
            j.finished.unwrap_or_else(|| "not finished".to_owned()),
        ]);
    }
    if table.is_empty() { "no change of primary yet\n".to_owned() } else { table.text() }
}

/// `pgtenure report`: `{"journal": …, "reports": […]}`.
pub fn report(answer: &Value) -> String {
    let journal = answer.get("journal").cloned().unwrap_or_default();
    let Ok(journal) = serde_json::from_value::<JournalRecord>(journal) else { return format!("{answer:#}\n") };
    let reports = list(answer, "reports").filter_map(|r| serde_json::from_value::<LossReport>(r.clone()).ok());
    let reaches = |end: Fork| journal.fork.is_some_and(|f| f.timeline == end.timeline && f.lsn >= end.lsn);
    let clean = journal.clean_end.is_some_and(reaches);
    let same = journal.from.is_some() && journal.from == journal.to;
    let whole = same && journal.window.is_some_and(|w| w.bytes == 0);
    let mut losses: String = reports.map(|r| loss_text(&r)).collect();
    if !losses.is_empty() && !clean {
        losses.push_str(UNWRITTEN);
    }
    if !losses.is_empty() && journal.finished.as_deref().is_some_and(|how| how != "active") {
        losses.push_str(UNOPENED);
    }
    let mut out = journal_text(&journal);
    if let Some(ended) = journal.ended() {
        let told = list(answer, "doubts").filter_map(|d| serde_json::from_value::<DoubtsRecord>(d.clone()).ok());
        let told: Vec<DoubtsRecord> = told.collect();
        out.push_str(&below_mode_text(&journal, &told));
        out.push_str(&doubts_text(ended, &told));
    }
    match (losses.is_empty(), journal.cause) {
        (false, _) => out.push_str(&losses),
        (true, Cause::Bootstrap) => {}
        (true, _) if clean => out.push_str("nothing lost: the old primary was stopped cleanly\n"),
        (true, _) if whole => {
            out.push_str("nothing lost of what the old primary had written: it is primary again\n");
            out.push_str(UNWRITTEN);
        }
        (true, Cause::Failover | Cause::OperatorFailover | Cause::Restart | Cause::Switchover) => {
            out.push_str("final: not known yet, the old primary's WAL is read when it rejoins\n")
        }
    }
    for other in losses_in(answer) {
        let least = if other.whole { "" } else { "at least " };
        let _ = writeln!(out, "term {} lost {least}{} commits: report {}", other.term, other.commits, other.term);
    }
    out
}

fn losses_in(answer: &Value) -> Vec<Loss> {
    list(answer, "losses").filter_map(|l| serde_json::from_value(l.clone()).ok()).collect()
}

/// A later term is made from whoever has the most, and that need not be who was chosen for this one. Its manager may have given
/// it up just when its primary opened it.
const UNOPENED: &str = "this term may never have been opened: then what it lacks may be in the next one, whose own report tells what \
                        that lacks\n";

/// What no WAL tells of a primary that was not stopped cleanly.
const UNWRITTEN: &str = "not known: commits with synchronous_commit = off of the last moments before the old primary ended may have \
                         been answered and never written\n";

/// When each phase ended, on a line.
fn phases(j: &JournalRecord) -> String {
    let phases: Vec<String> = j.phases.iter().map(|p| format!("{} {}", p.phase, p.ms)).collect();
    if phases.is_empty() {
        return String::new();
    }
    format!("  milliseconds since the first evidence: {}\n", phases.join(", "))
}

fn journal_text(j: &JournalRecord) -> String {
    let mut out = format!("{}\n", change(j));
    for line in &j.observed {
        let _ = writeln!(out, "  seen: {line}");
    }
    if j.data_loss_allowed {
        out.push_str("an operator allowed data loss: what the old primary alone had may have been given up\n");
    }
    out.push_str(&phases(j));
    for n in &j.recruits {
        let _ = writeln!(out, "  frozen: {} at {} on timeline {}", n.node, n.lsn, n.timeline);
    }
    if let Some(w) = j.window {
        let _ = writeln!(
            out,
            "unreplicated-write window, provisional: {}{} from {} to {} as last heard of the old primary, which may have \
             written more since",
            bytes(w.bytes),
            w.ms.map_or(String::new(), |ms| format!(" in {ms} ms")),
            w.fork_lsn,
            w.last_known_lsn,
        );
    }
    out
}

/// The journal has what proxies had told when the term was opened; those that were cut off then tell later.
fn below_mode_text(j: &JournalRecord, told: &[DoubtsRecord]) -> String {
    let commits = told.iter().map(|d| d.below_mode).sum::<u64>().max(j.below_mode);
    let of = "commits acknowledged below the cluster's mode in the term that ended";
    if commits == 0 {
        return format!("{of}: no proxy has told of any\n");
    }
    format!("{of}: {commits}, as told by now (sessions with a lowered synchronous_commit)\n")
}

/// What proxies found out about the writes that the term had not answered. Told by each when it knows, so it may grow.
fn doubts_text(term: Term, doubts: &[DoubtsRecord]) -> String {
    let doubts: Vec<&DoubtsRecord> = doubts.iter().filter(|d| d.had_any()).collect();
    if doubts.is_empty() {
        return format!("writes in doubt in term {term}: no proxy has told of any\n");
    }
    let sum = |of: fn(&DoubtsRecord) -> u64| doubts.iter().copied().map(of).sum::<u64>();
    format!(
        "writes in doubt in term {term}: {} commits survived and were answered so, {} were lost and answered 40001, {} stayed \
         unknown and were answered 08007, as told by {} proxies\n",
        sum(|d| d.survived),
        sum(|d| d.lost),
        sum(|d| d.unknown),
        doubts.len()
    )
}

/// Transactions shown; `--json` has more.
const SHOWN: usize = 20;

fn loss_text(l: &LossReport) -> String {
    if l.bytes == 0 {
        let (node, end, fork) = (&l.node, l.end_lsn, l.fork_lsn);
        return format!(
            "final, from the WAL of {node}: nothing lost of what it had written, it ends at {end} and the fork is at {fork}\n"
        );
    }
    // A loss that was not counted must not read as none.
    let (how, gap) = match l.unread_to {
        None => ("final", String::new()),
        Some(to) => ("not whole", format!(", of which that up to {to} was not kept, at least")),
    };
    let mut out = format!(
        "{how}, from the WAL of {}: {} between the fork {} and its end {}{gap}: {} commits lost, {} aborts{}, {} of the \
         commits made while the mode was suspended\n",
        l.node,
        bytes(l.bytes),
        l.fork_lsn,
        l.end_lsn,
        l.at_least(),
        l.aborts,
        l.span_ms.map_or(String::new(), |ms| format!(", within {ms} ms")),
        l.commits_while_suspended,
    );
    for t in l.transactions.iter().take(SHOWN) {
        let _ = writeln!(out, "  xid {} at {}, {}", t.xid, t.lsn, t.committed_at);
    }
    let (more, listed) = (l.commits.saturating_sub(SHOWN as u64), l.transactions.len().saturating_sub(SHOWN));
    if more > listed as u64 {
        let _ = writeln!(out, "  … {more} more, the first {listed} of them in --json, the others only in that WAL");
    } else if more > 0 {
        let _ = writeln!(out, "  … {more} more, see --json");
    }
    if let Some(place) = &l.kept_in {
        let _ = match l.kept_to {
            None => writeln!(out, "  that WAL is kept in {place}"),
            Some(to) if to <= l.fork_lsn => writeln!(out, "  nothing of that WAL is kept: agent.lost_wal_max is less"),
            Some(to) => {
                writeln!(out, "  that WAL is kept in {place} up to {to}: the rest was more than agent.lost_wal_max")
            }
        };
    }
    out
}

/// The journal of an answer to an order, if it made a term.
/// The change of primary that an order was about, with its phases.
fn journal_in(answer: &Value) -> Option<String> {
    let journal = answer.get("journal").filter(|j| j.is_object())?;
    let phases = serde_json::from_value(journal.clone()).map_or_else(|_| String::new(), |j| phases(&j));
    Some(format!("{}\n{phases}", change_of(journal)))
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
    fn a_change_that_was_ordered_and_its_report_tell_its_phases() {
        let journal = json!({
            "term": 8, "cause": "operator_failover", "observed": [], "from": "n1", "to": "n2", "started": 0,
            "phases": [{ "phase": "frozen", "ms": 12 }, { "phase": "open", "ms": 340 }], "recruits": [], "m": 3, "k": 1,
            "fork": null, "xid_bound": null, "window": null, "finished": "active", "data_loss_allowed": false,
        });
        let change = "term 8 by operator_failover, n1 -> n2 in 340 ms, active, 1970-01-01T00:00:00Z\n  \
            milliseconds since the first evidence: frozen 12, open 340\n";
        let told = done(&json!({ "done": "n2 is primary", "journal": journal }));
        assert_eq!(told, format!("done: n2 is primary\n{change}"));
        let told = failed(&json!({ "error": "too late", "journal": journal }));
        assert_eq!(told, format!("failed: too late\nwhere it stands: {change}"));
        let told = report(&json!({ "journal": journal, "reports": [] }));
        assert!(told.starts_with(change), "{told}");
    }

    #[test]
    fn nothing_is_called_lost_or_not_lost_that_is_not_known() {
        let journal = |cause: &str, to: &str, clean_end: Value, window: Value| {
            json!({
                "term": 8, "cause": cause, "observed": [], "from": "n1", "to": to, "started": 0, "phases": [], "recruits": [],
                "m": 3, "k": 1, "fork": { "timeline": 7, "lsn": "0/5000" }, "xid_bound": 700, "window": window,
                "finished": "active", "data_loss_allowed": false, "clean_end": clean_end,
            })
        };
        let check = |journal: Value, reports: Value, says: &str, tells_of_unwritten: bool| {
            let text = report(&json!({ "journal": journal, "reports": reports }));
            assert!(text.contains(says), "{says} is missing: {text}");
            assert_eq!(text.contains(UNWRITTEN), tells_of_unwritten, "{text}");
        };
        let (end, none) = (json!({ "timeline": 7, "lsn": "0/5000" }), Value::Null);
        let short = json!({ "timeline": 7, "lsn": "0/6000" });
        check(journal("switchover", "n2", end.clone(), none.clone()), json!([]), "nothing lost: the old", false);
        check(journal("switchover", "n2", none.clone(), none.clone()), json!([]), "not known yet", false);
        check(journal("operator_failover", "n2", short, none.clone()), json!([]), "not known yet", false);
        let window = json!({ "fork_lsn": "0/5000", "last_known_lsn": "0/5000", "bytes": 0, "ms": null });
        check(journal("switchover", "n1", none.clone(), window), json!([]), "it is primary again", true);
        let whole = json!([{
            "node": "n1", "term": 8, "timeline": 7, "fork_lsn": "0/5000", "end_lsn": "0/5000", "bytes": 0,
            "commits": 0, "aborts": 0, "transactions": [], "commits_while_suspended": 0, "span_ms": null, "kept_in": null,
            "examined": 0,
        }]);
        let mut given_up = journal("failover", "n2", none.clone(), Value::Null);
        check(given_up.clone(), whole.clone(), "nothing lost of what it had written", true);
        given_up["finished"] = json!("given up: n2 was lost before it was opened");
        check(given_up, whole.clone(), "may be in the next one", true);
        check(journal("failover", "n2", none, Value::Null), whole.clone(), "nothing lost of what it had written", true);
        check(
            journal("switchover", "n2", end, Value::Null),
            whole.clone(),
            "nothing lost of what it had written",
            false,
        );
        let mut gap = whole;
        (gap[0]["end_lsn"], gap[0]["unread_to"], gap[0]["bytes"]) = (json!("0/9000"), json!("0/8000"), json!(0x4000));
        let says = format!("not whole, from the WAL of n1: {} between", bytes(0x4000));
        check(journal("failover", "n2", Value::Null, Value::Null), gap.clone(), &says, true);
        let says = "of which that up to 0/8000 was not kept, at least: 1 commits lost";
        check(journal("failover", "n2", Value::Null, Value::Null), gap.clone(), says, true);
        let long = &mut gap[0];
        let commit = json!({ "xid": 7, "lsn": "0/8000", "committed_at": "then" });
        (long["unread_to"], long["commits"]) = (Value::Null, json!(1500));
        long["transactions"] = vec![commit; 1000].into();
        (long["kept_in"], long["kept_to"]) = (json!("/d"), json!("0/8800"));
        let lost = journal("failover", "n2", Value::Null, Value::Null);
        check(
            lost.clone(),
            gap.clone(),
            "  … 1480 more, the first 980 of them in --json, the others only in that WAL\n",
            true,
        );
        let says = "  that WAL is kept in /d up to 0/8800: the rest was more than agent.lost_wal_max\n";
        check(lost.clone(), gap.clone(), says, true);
        gap[0]["kept_to"] = gap[0]["fork_lsn"].clone();
        check(lost, gap, "  nothing of that WAL is kept: agent.lost_wal_max is less\n", true);
    }

    #[test]
    fn the_terms_that_lost_something_are_named_whichever_is_asked_for() {
        let journal = |term| {
            json!({
                "term": term, "cause": "failover", "observed": [], "from": "n1", "to": "n2", "started": 0, "phases": [],
                "recruits": [], "m": 3, "k": 1, "fork": null, "xid_bound": null, "window": null, "finished": "active",
                "data_loss_allowed": term == 9, "clean_end": null,
            })
        };
        let losses = json!([{ "term": 7, "commits": 12, "whole": true }, { "term": 8, "commits": 3, "whole": false }]);
        let text = report(&json!({ "journal": journal(9), "reports": [], "losses": losses }));
        assert!(text.contains("an operator allowed data loss"), "{text}");
        assert!(
            text.ends_with("term 7 lost 12 commits: report 7\nterm 8 lost at least 3 commits: report 8\n"),
            "{text}"
        );
        let text = history(&json!({ "history": [journal(7), journal(8), journal(9)], "losses": losses }));
        let ends = ["COMMITS LOST  OUTCOME", "12            active", "3+            active", "-             active"];
        assert!(text.lines().count() == 4 && text.lines().zip(ends).all(|(line, end)| line.ends_with(end)), "{text}");
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
