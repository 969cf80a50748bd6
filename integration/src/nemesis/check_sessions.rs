//! What must hold of each session: what its commits waited for, and what its reads see. PURE.
//!
//! * S7 whenever a write was acknowledged, the settings it ran under were at least as strong as the policy on record;
//! * S10 a read at a standby sees what its session wrote before, and what had been acknowledged to anybody longer ago
//!   than the proxies' `max_replay_lag`;
//! * S10 where commits wait for standbys, a session that was shown what is lost in the end is told before it misses it;
//! * S6 a read at a primary sees the same, where commits wait for standbys.

use super::check::Found;
use super::told::{Event, Op, Outcome, Policy, Told};
use std::collections::BTreeMap;
use std::time::Duration;

/// What the proxies promise: `proxy.max_replay_lag`, which no scenario changes.
const MAX_REPLAY_LAG: Duration = Duration::from_secs(1);
/// A read waits for so long at most for the primary to show what its session was shown by a standby. Those behind it do not wait
/// for that any more, in that term.
const CONFIRM_WAIT: Duration = Duration::from_secs(5);
/// No standby has this name; a commit that waits for it waits until the list is another.
const FENCED: &str = "__fenced__";

/// S7, S10.
pub(super) fn sessions(told: &Told, found: &mut Found) {
    for event in told.events.iter().filter(|e| e.outcome == Outcome::Ok) {
        let (Some(policy), Some(stamp)) = (told.promised(event), &event.stamp) else { continue };
        if let Err(why) = protects(policy, &stamp.node, &stamp.sync_names, &stamp.sync_commit) {
            let by = format!("{} in term {}", stamp.node, stamp.timeline);
            found.add("S7", format!("{:?} was acknowledged by {by}: {why}", event.op));
        }
    }
    reads(told, found);
    if told.policy.is_some() {
        goes_back(told, found);
    }
}

/// S10: what is lost in the end nobody sees any more, and who has seen it is told so in between.
fn goes_back(told: &Told, found: &mut Found) {
    let nothing = BTreeMap::new();
    let end = told.nodes.get(&told.primary).map_or(&nothing, |c| &c.lists);
    let opened = first_acknowledged(told);
    let mut sessions: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
    told.events.iter().for_each(|e| sessions.entry(e.session).or_default().push(e));
    for events in sessions.values_mut() {
        events.sort_by_key(|e| e.sent);
        // What it has seen of each list and is not there in the end, until when it may miss that, and by which operation.
        let mut seen: BTreeMap<i64, Vec<(i64, Duration, usize)>> = BTreeMap::new();
        for (i, e) in events.iter().enumerate() {
            let waited = e.answered.saturating_sub(e.sent) >= CONFIRM_WAIT;
            let in_one_term = !opened.iter().any(|at| (e.sent..e.answered).contains(at));
            let reads = matches!(e.op, Op::Read { at_primary: false, .. } | Op::Total) && e.outcome == Outcome::Ok;
            if reads && waited && in_one_term {
                let next = opened.iter().find(|at| **at > e.answered).map(|at| *at + MAX_REPLAY_LAG);
                seen.values_mut().flatten().for_each(|(_, until, _)| *until = next.unwrap_or(Duration::MAX));
            }
            let list = match (&e.op, &e.outcome) {
                (_, Outcome::Unknown(why) | Outcome::Failed(why)) if why.starts_with("08007") => {
                    seen.clear();
                    continue;
                }
                // A block at the primary does not wait until what was read at a standby is confirmed.
                (Op::Append { list, .. } | Op::Read { list, at_primary: false }, Outcome::Ok) => *list,
                _ => continue, // shows nothing of a list
            };
            // Whoever waits in vain goes to the primary in the end, and to no standby that lacks it.
            if waited && !(reads && in_one_term) && !e.at_standby {
                seen.remove(&list);
            }
            let may_miss = |until: Duration| e.sent < until && !e.at_standby;
            let missed = |(value, until, _): &&(i64, Duration, usize)| !may_miss(*until) && !e.seen.contains(value);
            if let Some((missed, _, by)) = seen.get(&list).into_iter().flatten().find(missed) {
                let (client, between) = (e.client, story(&events[*by..=i]));
                let what =
                    format!("client {client} saw {missed} in list {list}, misses it and was not told: {between}");
                found.add("S10", what);
            }
            let there = end.get(&list).map_or(&[][..], Vec::as_slice);
            let lost = e.seen.iter().filter(|v| !there.contains(v)).map(|v| (*v, Duration::ZERO, i));
            seen.entry(list).or_default().extend(lost);
        }
    }
}

/// What a session did, and when: the first operation and the last ones.
fn story(events: &[&Event]) -> String {
    const LAST: usize = 12;
    let one = |e: &&Event| {
        let (sent, answered) = (e.sent.as_millis(), e.answered.as_millis());
        let by = match (&e.stamp, e.at_standby) {
            (Some(stamp), _) => format!(" by {} in {}", stamp.node, stamp.timeline),
            (None, true) => " by a standby".to_owned(),
            (None, false) => String::new(),
        };
        format!("{sent}-{answered} ms {:?}{by}: {:?}", e.op, e.outcome)
    };
    let left_out = events.len().saturating_sub(LAST + 1);
    let mut told: Vec<String> = events.iter().take(1).map(one).collect();
    if left_out > 0 {
        told.push(format!("{left_out} more"));
    }
    told.extend(events.iter().skip(1 + left_out).map(one));
    told.join("; ")
}

/// When something was first acknowledged in each term, in order.
fn first_acknowledged(told: &Told) -> Vec<Duration> {
    let mut first: BTreeMap<u64, Duration> = BTreeMap::new();
    for event in told.events.iter().filter(|e| e.outcome == Outcome::Ok) {
        if let Some(stamp) = &event.stamp {
            let at = first.entry(stamp.timeline).or_insert(event.answered);
            *at = event.answered.min(*at);
        }
    }
    let mut first: Vec<Duration> = first.into_values().collect();
    first.sort_unstable();
    first
}

/// Do a primary's settings wait for what the policy asks for?
fn protects(policy: &Policy, primary: &str, names: &str, commit: &str) -> Result<(), String> {
    if matches!(commit, "off" | "local" | "remote_write") {
        return Err(format!("synchronous_commit is {commit}"));
    }
    let weak = |why: &str| Err(format!("synchronous_standby_names is {names:?}: {why}"));
    let Some((k, list)) = any_of(names) else { return weak("not of ANY") };
    if k < policy.k {
        return weak(&format!("fewer than {}", policy.k));
    }
    let counts = |name: &str| name == FENCED || (name != primary && policy.voters.iter().any(|v| v == name));
    match list.into_iter().find(|n| !counts(n)) {
        Some(name) => weak(&format!("{name} does not count")),
        None => Ok(()),
    }
}

/// Of how many names any have to confirm, by `synchronous_standby_names`, and which.
pub(super) fn any_of(names: &str) -> Option<(usize, Vec<&str>)> {
    let (k, list) = names.strip_prefix("ANY ")?.strip_suffix(')')?.split_once('(')?;
    Some((k.trim().parse().ok()?, list.split(',').map(|n| n.trim().trim_matches('"')).collect()))
}

/// S10, and S6 of reads at a primary. In async mode what is lost in the end cannot be asked for.
fn reads(told: &Told, found: &mut Found) {
    let end = told.nodes.get(&told.primary).map(|c| &c.lists);
    let kept = |list: i64, value: i64| end.and_then(|l| l.get(&list)).is_some_and(|l| l.contains(&value));
    let mut appended: BTreeMap<i64, Vec<(&Event, i64)>> = BTreeMap::new();
    for e in told.events.iter().filter(|e| e.outcome == Outcome::Ok) {
        if let Op::Append { list, value } = e.op
            && kept(list, value)
        {
            appended.entry(list).or_default().push((e, value));
        }
    }
    for read in told.events.iter().filter(|e| e.at_standby && e.outcome == Outcome::Ok) {
        let Op::Read { list, .. } = read.op else { continue };
        for (append, value) in appended.get(&list).into_iter().flatten() {
            let own = append.session == read.session && append.answered <= read.sent;
            let old = append.answered + MAX_REPLAY_LAG < read.sent;
            if (own || old) && !read.seen.contains(value) {
                let ago = read.sent.saturating_sub(append.answered);
                let whose = if own { "its own session's" } else { "a" };
                found.add(
                    "S10",
                    format!("a read of list {list} at a standby missed {whose} value {value}, {ago:?} old"),
                );
            }
        }
    }
    // A primary may have been replaced without knowing it; but whoever reads there through a proxy, while commits wait for
    // standbys, does so on a proof that is no older than this that it was not.
    let at_primary = |e: &&Event| e.outcome == Outcome::Ok && matches!(e.op, Op::Read { at_primary: true, .. });
    for read in told.events.iter().filter(|e| told.policy.is_some() && at_primary(e)) {
        let Op::Read { list, .. } = read.op else { continue };
        for (append, value) in appended.get(&list).into_iter().flatten() {
            if append.answered + MAX_REPLAY_LAG < read.sent && !read.seen.contains(value) {
                let ago = read.sent.saturating_sub(append.answered);
                found.add("S6", format!("a read of list {list} at a primary missed a value {value}, {ago:?} old"));
            }
        }
    }
}
