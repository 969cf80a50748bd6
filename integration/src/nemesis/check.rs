//! What must hold of a run, whatever happened in it. PURE.
//!
//! * S1 what was acknowledged while commits wait for standbys is there, once, whatever was lowered afterwards;
//! * S2 at most one node acknowledges in a term, and no older term does once a newer one has;
//! * S3 in async mode what is missing of what was acknowledged was reported, by transaction id, and what the report of an open
//!   term lists is missing. It may list more than was acknowledged: nothing in the WAL tells that. What is told at once covers
//!   that: see [`super::check_reports`];
//! * S4 terms grow, each has one node, and the timeline written is the term; no timeline has two histories;
//! * S5 what was refused is not there, also where a COMMIT was answered 40001 after its server was lost, and nothing is
//!   there that nobody sent or twice;
//! * S6 what was read is not lost and not reordered: every list read is a prefix of the list in the end, and a sum of
//!   all accounts is always the same. A standby shows commits that are not acknowledged yet; where they wait for two or
//!   more, a new term may leave it behind with them, and S10 asks that who has read them is told;
//! * S7 and S10, of sessions: see [`super::check_sessions`];
//! * S8, S9 and S11, of nodes: see [`super::check_nodes`];
//! * S12 where it was asked for: no client saw an error.
//!
//! * L2 every node streams in the end, and has what there is.
//!
//! The run itself adds L1 (writes go on soon after the faults end), L2 where not all do in time, L3 (a term changed, or did not, as
//! expected), L6 (commits came to be in doubt, as expected) and L7 (what the scenario waits for comes). Whatever else of a run that
//! ends so can be judged is: all but what a node holds that is away, and, where no term is open, what is lost.
//!
//! Reads at a primary that do not see what was acknowledged just before they were sent are counted and are no violation: a
//! proxy that is cut off together with the old primary reads there, and nothing tells either of them, for as long as the
//! proxies' `max_replay_lag`. In async mode it is as long as their views, and only counted.

use super::check_nodes::nodes;
use super::check_reports::provisional;
use super::check_sessions::sessions;
use super::told::{Content, Event, OPENING_BALANCE, Op, Outcome, Stamp, Told};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a run is held to beyond what always holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Acknowledged writes must survive; otherwise those that were promised to, and the others must survive or be reported.
    pub strict: bool,
    /// No client may see an error.
    pub no_errors: bool,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its invariant, as in the module's list.
    pub invariant: &'static str,
    /// What was found.
    pub found: String,
}

impl Violation {
    /// Is it one of time or of errors, which a machine that is much too busy can cause? What was lost, doubled or
    /// acknowledged by two is never of these.
    pub fn is_of_time(&self) -> bool {
        matches!(self.invariant, "S12" | "L1" | "L2" | "L3" | "L6" | "L7")
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.found)
    }
}

/// Everything that was broken, and nothing when all held.
pub fn violations(told: &Told, rules: Rules) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    acknowledging(&told.events, &mut found);
    nodes(told, &mut found);
    provisional(told, &mut found);
    match told.nodes.get(&told.primary) {
        Some(end) => {
            written(told, rules, end, &mut found);
            terms(told, end, &mut found);
            bank(&told.events, end, &mut found);
            lists(told, end, rules, &mut found);
            same_everywhere(told, end, &mut found);
            sessions(told, &mut found);
        }
        None => found.add("L1", "no term is open in the end: nobody can say what is lost".to_owned()),
    }
    for node in &told.away {
        found
            .add("L2", format!("{node} does not stream in the end, or lacks something: what it holds is not compared"));
    }
    if rules.no_errors {
        for e in told.events.iter().filter(|e| e.outcome != Outcome::Ok) {
            found.add("S12", format!("client {} was told {:?} of {:?}", e.client, e.outcome, e.op));
        }
    }
    found.0
}

/// Reads at a primary that did not see an append acknowledged before they were sent, and not lost in async mode.
pub fn stale_primary_reads(told: &Told) -> usize {
    let lists = told.nodes.get(&told.primary).map(|end| &end.lists);
    let kept = |list: &i64, value: &i64| lists.and_then(|l| l.get(list)).is_some_and(|l| l.contains(value));
    let mut appended = acknowledged_appends(&told.events);
    appended.retain(|(list, value, _)| kept(list, value));
    let reads = told.events.iter().filter_map(|e| match e.op {
        Op::Read { list, at_primary: true } if e.outcome == Outcome::Ok => Some((list, e)),
        Op::Insert { .. } | Op::Transfer { .. } | Op::Append { .. } | Op::Read { .. } | Op::Total => None,
    });
    let stale = |list: i64, read: &Event| {
        let before = appended.iter().filter(|(l, _, answered)| *l == list && *answered < read.sent);
        before.into_iter().any(|(_, value, _)| !read.seen.contains(value))
    };
    reads.filter(|(list, read)| stale(*list, read)).count()
}

fn acknowledged_appends(events: &[Event]) -> Vec<(i64, i64, std::time::Duration)> {
    let append = |e: &Event| match e.op {
        Op::Append { list, value } if e.outcome == Outcome::Ok => Some((list, value, e.answered)),
        Op::Insert { .. } | Op::Transfer { .. } | Op::Append { .. } | Op::Read { .. } | Op::Total => None,
    };
    events.iter().filter_map(append).collect()
}

/// What was found so far.
pub(super) struct Found(Vec<Violation>);

impl Found {
    pub(super) fn add(&mut self, invariant: &'static str, found: String) {
        self.0.push(Violation { invariant, found });
    }
}

/// How often a write was found, and its name; `None` of reads.
fn times(op: &Op, end: &Content) -> Option<(usize, String)> {
    match op {
        Op::Insert { id } => Some((end.rows.get(id).copied().unwrap_or(0), format!("row {id}"))),
        Op::Transfer { id, .. } => Some((end.transfers.get(id).copied().unwrap_or(0), format!("transfer {id}"))),
        Op::Append { list, value } => {
            let found = end.lists.get(list).map_or(0, |l| l.iter().filter(|v| *v == value).count());
            Some((found, format!("value {value} of list {list}")))
        }
        Op::Read { .. } | Op::Total => None,
    }
}

/// S1, S3, S5: every write is there as often as its answer says.
fn written(told: &Told, rules: Rules, end: &Content, found: &mut Found) {
    let mut sent: (BTreeSet<i64>, BTreeSet<i64>, BTreeSet<i64>) = Default::default();
    for e in &told.events {
        let Some((times, name)) = times(&e.op, end) else { continue };
        match e.op {
            Op::Insert { id } => sent.0.insert(id),
            Op::Transfer { id, .. } => sent.1.insert(id),
            Op::Append { value, .. } => sent.2.insert(value),
            Op::Read { .. } | Op::Total => false,
        };
        if times > 1 {
            found.add("S5", format!("{name} of client {} is there {times} times", e.client));
        }
        let reported = e.stamp.as_ref().is_some_and(|s| is_reported(told, s));
        match &e.outcome {
            Outcome::Ok if times == 0 && (rules.strict || told.promised(e).is_some()) => {
                found.add("S1", format!("{name}, acknowledged to client {} by {:?}, is lost", e.client, e.stamp));
            }
            // Where it was written somebody will say so, once that is back.
            Outcome::Ok if times == 0 && e.stamp.as_ref().is_some_and(|s| told.away.contains(&s.node)) => {}
            Outcome::Ok if times == 0 && !reported => {
                found.add("S3", format!("{name}, acknowledged by {:?}, is lost and not reported", e.stamp));
            }
            Outcome::Ok if times > 0 && is_reported_by_an_open_term(told, e.stamp.as_ref()) => {
                found.add("S3", format!("{name}, acknowledged by {:?}, is reported as lost and there", e.stamp));
            }
            Outcome::Failed(state) if times > 0 && e.commit => {
                found.add("S5", format!("{name} was told to be lost with {state} at its COMMIT, and is there"));
            }
            Outcome::Failed(state) if times > 0 => {
                found.add("S5", format!("{name} was refused with {state} and is there"));
            }
            Outcome::Ok | Outcome::Failed(_) | Outcome::Unknown(_) => {}
        }
    }
    let extra = |there: Vec<i64>, sent: &BTreeSet<i64>| there.into_iter().find(|id| !sent.contains(id));
    let values = end.lists.values().flatten().copied().collect();
    let all = [
        ("row", extra(end.rows.keys().copied().collect(), &sent.0)),
        ("transfer", extra(end.transfers.keys().copied().collect(), &sent.1)),
        ("value", extra(values, &sent.2)),
    ];
    for (what, id) in all {
        if let Some(id) = id {
            found.add("S5", format!("{what} {id} was sent by nobody"));
        }
    }
}

/// Was a transaction reported as lost by a term after its own? The new term uses the same ids again.
fn is_reported(told: &Told, stamp: &Stamp) -> bool {
    told.reported.iter().any(|(began, xids)| *began > stamp.timeline && xids.contains(&stamp.xid))
}

/// By one that was not given up: another may have been followed by a term that has what it lacked.
fn is_reported_by_an_open_term(told: &Told, stamp: Option<&Stamp>) -> bool {
    let open = |(began, _): &(&u64, &Vec<u64>)| !told.given_up.contains(began);
    let by = |(began, xids): (&u64, &Vec<u64>)| stamp.is_some_and(|s| *began > s.timeline && xids.contains(&s.xid));
    told.reported.iter().filter(open).any(by)
}

/// S2: one node per term, and terms in the order of time.
fn acknowledging(events: &[Event], found: &mut Found) {
    let mut acks: Vec<(&Event, &Stamp)> = Vec::new();
    for e in events.iter().filter(|e| e.outcome == Outcome::Ok && !matches!(e.op, Op::Read { .. } | Op::Total)) {
        match &e.stamp {
            Some(stamp) => acks.push((e, stamp)),
            None => found.add("S2", format!("{:?} was acknowledged and nobody knows by whom", e.op)),
        }
    }
    let mut nodes: BTreeMap<u64, &Stamp> = BTreeMap::new();
    for (e, stamp) in &acks {
        let first = *nodes.entry(stamp.timeline).or_insert(stamp);
        if first.node != stamp.node {
            let both = format!("{} and {}", first.node, stamp.node);
            found.add("S2", format!("{both} both acknowledged in term {}: {:?}", stamp.timeline, e.op));
        }
    }
    acks.sort_by_key(|(e, _)| e.sent);
    let mut done: Vec<(&Event, &Stamp)> = acks.clone();
    done.sort_by_key(|(e, _)| e.answered);
    let (mut newest, mut next) = (0, 0);
    for (e, stamp) in acks {
        while done.get(next).is_some_and(|(d, _)| d.answered < e.sent) {
            newest = newest.max(done[next].1.timeline);
            next += 1;
        }
        if stamp.timeline < newest {
            let what = format!("{:?} was sent after term {newest} had acknowledged", e.op);
            found.add("S2", format!("{what}, and term {} acknowledged it", stamp.timeline));
        }
    }
}

/// S4: the table of terms, the timeline in the end and the history files.
fn terms(told: &Told, end: &Content, found: &mut Found) {
    for pair in end.terms.windows(2).filter(|p| p[0].0 >= p[1].0) {
        found.add("S4", format!("term {} is followed by term {}", pair[0].0, pair[1].0));
    }
    match end.terms.last() {
        Some((term, node)) if *term != told.timeline || *node != told.primary => {
            let now = format!("{} writes timeline {}", told.primary, told.timeline);
            found.add("S4", format!("{now}, and the last term is {term} of {node}"));
        }
        Some(_) => {}
        None => found.add("S4", "the table of terms is empty".to_owned()),
    }
    let known: BTreeMap<u64, &str> = end.terms.iter().map(|(t, n)| (*t, n.as_str())).collect();
    for stamp in told.events.iter().filter(|e| e.outcome == Outcome::Ok).filter_map(|e| e.stamp.as_ref()) {
        let term = known.get(&stamp.timeline);
        if term.is_none_or(|node| *node != stamp.node) {
            let whose = format!("timeline {}, the term of {term:?}", stamp.timeline);
            found.add("S4", format!("{} acknowledged on {whose}", stamp.node));
        }
    }
    let mut bodies: BTreeMap<u64, (&str, &str)> = BTreeMap::new();
    for ((timeline, node), body) in &told.histories {
        let (first, at) = *bodies.entry(*timeline).or_insert((body, node));
        if first != body {
            found.add("S4", format!("timeline {timeline} has one history on {at} and another on {node}"));
        }
    }
}

/// S6: money is neither made nor lost, at no time and for no reader.
fn bank(events: &[Event], end: &Content, found: &mut Found) {
    let total = OPENING_BALANCE * end.balances.len() as i64;
    let sum: i64 = end.balances.values().sum();
    if sum != total {
        found.add("S6", format!("the accounts hold {sum} of {total}"));
    }
    for e in events.iter().filter(|e| e.op == Op::Total && e.outcome == Outcome::Ok) {
        if e.seen != [total] {
            found.add("S6", format!("client {} read a total of {:?}, not {total}", e.client, e.seen));
        }
    }
    let mut expected: BTreeMap<i64, i64> = end.balances.keys().map(|a| (*a, OPENING_BALANCE)).collect();
    for e in events {
        if let Op::Transfer { id, from, to, amount } = &e.op
            && end.transfers.contains_key(id)
        {
            *expected.entry(*from).or_insert(0) -= amount;
            *expected.entry(*to).or_insert(0) += amount;
        }
    }
    if expected != end.balances {
        found.add("S6", format!("the transfers make {expected:?}, the accounts hold {:?}", end.balances));
    }
}

/// S6: every list that was seen is how the list began.
fn lists(told: &Told, end: &Content, rules: Rules, found: &mut Found) {
    for e in told.events.iter().filter(|e| e.outcome == Outcome::Ok) {
        let (list, appended) = match e.op {
            Op::Append { list, value } => (list, Some(value)),
            Op::Read { list, .. } => (list, None),
            Op::Insert { .. } | Op::Transfer { .. } | Op::Total => continue,
        };
        if appended.is_some() && e.seen.last() != appended.as_ref() {
            found.add("S6", format!("an append of {appended:?} to list {list} answered {:?}", e.seen.last()));
        }
        let all = end.lists.get(&list).map_or(&[][..], Vec::as_slice);
        // In async mode what was seen may be lost, and the report says so.
        if rules.strict && !all.starts_with(&e.seen) {
            let at = all.iter().zip(&e.seen).take_while(|(a, b)| a == b).count();
            let (seen, last) = (e.seen.get(at), all.get(at));
            let left_behind = told.most > 1 && e.at_standby && e.seen[at..].iter().all(|v| !all.contains(v));
            if left_behind {
                continue;
            }
            found.add(
                "S6",
                format!("list {list} was seen by client {} with {seen:?} at {at}, it has {last:?}", e.client),
            );
        }
    }
}

/// Standbys hold what the primary holds.
fn same_everywhere(told: &Told, end: &Content, found: &mut Found) {
    for (node, content) in told.nodes.iter().filter(|(n, c)| **n != told.primary && *c != end) {
        let rows = (content.rows.len(), end.rows.len());
        found.add("S4", format!("{node} holds something else than {}, {} and {} rows", told.primary, rows.0, rows.1));
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
