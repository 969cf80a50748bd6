//! Changes of primary as text: what each was, and what it lost.

use super::{Table, bytes, field, list, or_dash, utc, word};
use cluster::Term;
use cluster::timeline::Fork;
use failover::http::Loss;
use failover::record::{Cause, DoubtsRecord, JournalRecord, LossReport};
use serde_json::Value;
use std::fmt::Write as _;

/// A journal in JSON on one line.
fn change_of(journal: &Value) -> String {
    serde_json::from_value::<JournalRecord>(journal.clone()).map_or_else(|_| journal.to_string(), |j| change(&j))
}

/// One change of primary on one line.
pub(super) fn change(j: &JournalRecord) -> String {
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

/// The change of primary that an order was about, with its phases.
pub(super) fn journal_in(answer: &Value) -> Option<String> {
    let journal = answer.get("journal").filter(|j| j.is_object())?;
    let phases = serde_json::from_value(journal.clone()).map_or_else(|_| String::new(), |j| phases(&j));
    Some(format!("{}\n{phases}", change_of(journal)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_that_was_ordered_and_its_report_tell_its_phases() {
        let journal = json!({
            "term": 8, "cause": "operator_failover", "observed": [], "from": "n1", "to": "n2", "started": 0,
            "phases": [{ "phase": "frozen", "ms": 12 }, { "phase": "open", "ms": 340 }], "recruits": [], "m": 3, "k": 1,
            "fork": null, "xid_bound": null, "window": null, "finished": "active", "data_loss_allowed": false,
        });
        let change = "term 8 by operator_failover, n1 -> n2 in 340 ms, active, 1970-01-01T00:00:00Z\n  \
            milliseconds since the first evidence: frozen 12, open 340\n";
        let told = super::super::done(&json!({ "done": "n2 is primary", "journal": journal }));
        assert_eq!(told, format!("done: n2 is primary\n{change}"));
        let told = super::super::failed(&json!({ "error": "too late", "journal": journal }));
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
}
