//! S3, its second half: what was told at once of a loss covers what turns out to be lost. PURE.
//!
//! The provisional report of a term is a window of the old primary's WAL. It begins where that begins which the new primary
//! lacks, and ends no sooner than the old primary was known to end: where it was among the nodes that the choice was made of, or
//! stopped cleanly. Elsewhere it ends as far as the old primary was heard: no sooner than what was acknowledged before it was
//! heard last. One that is cut off may go on writing, and what it writes then is in the final report only.

use super::check::Found;
use super::told::{Outcome, Provisional, Told};
use std::time::Duration;

/// Agents look and report several times a second; on a machine that is much too busy what is heard may be so old.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// S3.
pub(super) fn provisional(told: &Told, found: &mut Found) {
    for (term, window) in &told.provisional {
        let Provisional { node, from, to, .. } = window;
        let mut uncovered = |what: String| {
            let told = format!("term {term} was told to lack at most what {node} wrote from {from:X} to {to:X}");
            found.add("S3", format!("{told}, and {what}"));
        };
        if let Some((begin, last)) = window.left {
            if begin < *from {
                uncovered(format!("what it lacks begins at {begin:X}"));
            }
            if window.end.is_some() && last > *to.max(from) {
                uncovered(format!("lacks a commit at {last:X}"));
            }
        }
        if let Some(end) = window.end.filter(|end| end > to.max(from)) {
            uncovered(format!("it was known to end at {end:X}"));
        }
        if let Some(lsn) = acknowledged_and_heard(told, window).filter(|lsn| lsn > to.max(from)) {
            uncovered(format!("it was heard long after it had acknowledged what begins at {lsn:X}"));
        }
    }
}

/// The last position that a client knows of the old primary from before it was heard last.
fn acknowledged_and_heard(told: &Told, window: &Provisional) -> Option<u64> {
    let (began, heard) = (told.began?, window.heard?);
    let before = told.events.iter().filter(|e| e.outcome == Outcome::Ok && began + e.answered + HEARD_WITHIN <= heard);
    let stamps = before.filter_map(|e| e.stamp.as_ref());
    stamps.filter(|s| s.node == window.node && s.timeline == window.ended).map(|s| s.lsn).max()
}
