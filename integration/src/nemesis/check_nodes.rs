//! What must hold of the nodes, whatever happened to them. PURE.
//!
//! * S4 no two nodes are promoted for one term: where both end at the same place, their histories are the same;
//! * S8 a node that was rewound or copied is no recruit and no primary before it has replayed what it once held, and does not
//!   connect ahead to who is to be the primary;
//! * S9 promises grow, over restarts too, and an agent acts for no term below its promise; nothing is acknowledged any
//!   more in a term once fewer than k of those who could confirm it are not frozen for a later one;
//! * S7 where commits wait for two or more, each member has a slot for each other one in the end, and those of the standbys are
//!   in use at the primary; elsewhere there are none;
//! * S11 no data is overwritten before its lost WAL was examined, reported and kept.
//!
//! An acknowledgement by a node in quarantine needs no check: confirming a position, it has all WAL up to there.

use super::check::Found;
use super::check_sessions::any_of;
use super::deeds::Deed;
use super::told::{Event, Op, Outcome, Stamp, Told};
use std::collections::BTreeMap;
use std::time::Duration;

/// S4, S7, S8, S9, S11.
pub(super) fn nodes(told: &Told, found: &mut Found) {
    for (node, deeds) in &told.deeds {
        quarantine(told, node, deeds, found);
        promises(told, node, deeds, found);
        tails(told, node, deeds, found);
    }
    twins(told, found);
    acknowledged_when_frozen(told, found);
    for (node, (have, want)) in told.slots.iter().filter(|(_, (have, want))| have != want) {
        found.add("S7", format!("{node} has the slots {have:?}, and ought to have {want:?}"));
    }
    understood(told, found);
}

/// S4. Who has numbered the timelines for a term may have written it, though nothing tells of the end of its promotion.
fn twins(told: &Told, found: &mut Found) {
    let mut writers: BTreeMap<u64, &str> = BTreeMap::new();
    for (node, deeds) in &told.deeds {
        for (_, deed) in deeds {
            let (Deed::Numbered(term) | Deed::Promoted(term)) = deed else { continue };
            let first = *writers.entry(*term).or_insert(node);
            if first != node {
                found.add("S4", format!("{first} was to be promoted for term {term}, and {node} did {deed:?}"));
            }
        }
    }
}

/// A log whose words have changed would hide everything.
fn understood(told: &Told, found: &mut Found) {
    let terms = told.nodes.get(&told.primary).map_or(0, |end| end.terms.len());
    let some = |is: fn(&Deed) -> bool| told.deeds.values().flatten().any(|(_, deed)| is(deed));
    if terms > 1 && !(some(|d| matches!(d, Deed::Frozen(_))) && some(|d| matches!(d, Deed::Promoted(_)))) {
        found.add("S9", format!("there were {terms} terms, and no agent's log tells of a freeze and a promotion"));
    }
}

/// S8.
fn quarantine(told: &Told, node: &str, deeds: &[(Duration, Deed)], found: &mut Found) {
    let mut quarantined = false;
    for (_, deed) in deeds {
        match deed {
            Deed::Rewound | Deed::Cloned => quarantined = true,
            Deed::Counts | Deed::Created => quarantined = false,
            Deed::Promoted(term) if quarantined => {
                found.add("S8", format!("{node} was promoted for term {term} while it was quarantined"));
            }
            Deed::Frozen(term)
                if quarantined && told.recruits.get(term).is_some_and(|r| r.iter().any(|r| r == node)) =>
            {
                found.add("S8", format!("{node} was a recruit of term {term} while it was quarantined"));
            }
            Deed::Attended(term) if quarantined => {
                found.add("S8", format!("{node} connected ahead for term {term} while it was quarantined"));
            }
            Deed::Promised(_) | Deed::Frozen(_) | Deed::Attended(_) | Deed::Numbered(_) | Deed::Promoted(_) => {}
            Deed::Followed(_) | Deed::Examined(..) | Deed::Rewinding(_) | Deed::Outlived | Deed::SetAside => {}
        }
    }
}

/// S9: what an agent promised and did for which term.
fn promises(told: &Told, node: &str, deeds: &[(Duration, Deed)], found: &mut Found) {
    let mut promised = 0;
    for (_, deed) in deeds {
        match deed {
            Deed::Promised(term) if *term <= promised => {
                found.add("S9", format!("{node} promised term {term} after term {promised}"));
            }
            Deed::Promised(term) => promised = *term,
            Deed::Frozen(term) | Deed::Attended(term) | Deed::Promoted(term) | Deed::Followed(term)
                if *term < promised =>
            {
                found.add("S9", format!("{node} had promised term {promised} and did {deed:?}"));
            }
            // A follower promises without a word of its own.
            Deed::Followed(term) => promised = *term,
            Deed::Frozen(_) | Deed::Attended(_) | Deed::Numbered(_) | Deed::Promoted(_) | Deed::Examined(..) => {}
            Deed::Rewinding(_) | Deed::Rewound | Deed::Outlived | Deed::SetAside | Deed::Created => {}
            Deed::Cloned | Deed::Counts => {}
        }
    }
    match told.promises.get(node) {
        Some(kept) if *kept >= promised => {}
        kept => found.add("S9", format!("{node} promised term {promised}, on its disk is {kept:?}")),
    }
}

/// S11.
fn tails(told: &Told, node: &str, deeds: &[(Duration, Deed)], found: &mut Found) {
    // Rewound or copied data that does not count yet has nothing of its own that could be lost.
    let (mut data, mut own, mut examined, mut nothing_lost) = (false, false, Vec::new(), false);
    for (_, deed) in deeds {
        match deed {
            Deed::Examined(lsn, _) => examined.push(lsn),
            Deed::Rewinding(lsn) if !examined.contains(&lsn) => {
                found
                    .add("S11", format!("{node} was rewound to {lsn}, and nobody had examined what it held past that"));
            }
            Deed::Outlived => nothing_lost = true,
            Deed::SetAside => data = false,
            Deed::Created => (data, own) = (true, true),
            Deed::Cloned => {
                if data && own && examined.is_empty() && !nothing_lost {
                    found.add("S11", format!("{node} was copied over data that nobody had examined"));
                }
                (data, own, nothing_lost) = (true, false, false);
                examined.clear();
            }
            // What was examined before it is of another directory or of an earlier life of this one.
            Deed::Promoted(_) => {
                (data, own) = (true, true);
                examined.clear();
            }
            Deed::Rewound => own = false,
            Deed::Counts => own = true,
            Deed::Promised(_) | Deed::Frozen(_) | Deed::Attended(_) | Deed::Numbered(_) => {}
            Deed::Followed(_) | Deed::Rewinding(_) => {}
        }
    }
    let last = deeds.iter().rev().find_map(|(_, deed)| match deed {
        Deed::Examined(_, kept_in) => Some(kept_in),
        _ => None, // the others keep nothing
    });
    if let Some(kept_in) = last.filter(|kept_in| !told.kept.contains(*kept_in)) {
        found.add("S11", format!("{node} says that its lost WAL is in {kept_in}, and it is not"));
    }
}

/// S9: in strict mode a term is over once too few are left who are not frozen for a later one to confirm a commit.
fn acknowledged_when_frozen(told: &Told, found: &mut Found) {
    let (Some(began), Some(_)) = (told.began, &told.policy) else { return };
    let write = |e: &&Event| e.outcome == Outcome::Ok && !matches!(e.op, Op::Read { .. } | Op::Total);
    for event in told.events.iter().filter(write) {
        let Some(stamp) = &event.stamp else { continue };
        let frozen = |node: &str| {
            let later = |d: &&(Duration, Deed)| matches!(d.1, Deed::Frozen(term) if term > stamp.timeline);
            told.deeds.get(node).and_then(|deeds| deeds.iter().find(later)).map(|(at, _)| *at)
        };
        let (k, names) = waited_for(told, stamp);
        let mut all: Vec<Duration> = names.iter().filter_map(|n| frozen(n)).collect();
        all.sort();
        // With so many of them frozen fewer than k are left.
        let Some(at) = names.len().checked_sub(k).and_then(|enough| all.get(enough)) else { continue };
        if began + event.sent > *at {
            let frozen =
                format!("{:?} was sent after {} of {names:?} were frozen for a later term", event.op, all.len());
            found
                .add("S9", format!("{frozen}, and {} acknowledged it in term {}, k = {k}", stamp.node, stamp.timeline));
        }
    }
}

/// Of whom a commit needed how many to be acknowledged. What its statement ran under is in force until a later policy asks for
/// less, or for others: of a commit that may have been answered then only the least is certain, which is one of all others.
fn waited_for<'t>(told: &'t Told, stamp: &'t Stamp) -> (usize, Vec<&'t str>) {
    let others = || told.deeds.keys().map(String::as_str).filter(|n| *n != stamp.node).collect();
    let Some((k, mut names)) = any_of(&stamp.sync_names) else { return (1, others()) };
    names.sort_unstable();
    // While k is being raised both are asked for; its statement ran at that time or later.
    let mut since = told.asked.iter().skip_while(|asked| asked.most < k);
    let Some(first) = since.next() else { return (1, others()) };
    // A list that lacks a voter, or has a name of nobody, is only for a while.
    let whole = first.voters.iter().map(String::as_str).filter(|v| *v != stamp.node).eq(names.iter().copied());
    let lasts = since.all(|later| later.least >= k && later.voters == first.voters);
    if whole && lasts { (k, names) } else { (1, others()) }
}
