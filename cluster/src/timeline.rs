//! Timelines and their history, as PostgreSQL keeps them.
//!
//! Source: PostgreSQL documentation, "Timelines"; src/backend/access/transam/timeline.c. A history file
//! `%08X.history` lists, oldest first, each ancestor and the LSN at which its successor forked off. PostgreSQL begins a new one
//! with all of its parent's, comments included: by these a timeline is known that was begun twice at the same place.

use crate::lsn::Lsn;
use crate::term::Term;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// How a line of ours begins in a history file.
const MARK: &str = "# pgtenure ";

/// PostgreSQL's own counter of histories; in pgtenure always the number of the term that wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The file name of this timeline's history.
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An ancestor and where it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The ancestor timeline.
    pub timeline: TimelineId,
    /// The position at which the next timeline branched off: the first byte that is no longer the ancestor's.
    pub lsn: Lsn,
}

/// Where a term begins in the numbering of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidBound {
    /// The term.
    pub term: Term,
    /// The first 64-bit transaction id that no earlier term has completed: what has it, or one past it, in an earlier term
    /// is not in this one.
    pub xid: u64,
}

/// The line of descent of one timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The timeline described.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first. Empty for timeline 1.
    pub forks: Vec<Fork>,
    /// Of it and its ancestors, what [`mark`] has left of who began them. Not of those begun by hand or by older agents.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub marks: BTreeMap<TimelineId, String>,
}

/// A line for the parent's history file, before `timeline` is begun from it: `by` is told by nobody else, ever.
pub fn mark(timeline: TimelineId, by: &str) -> String {
    format!("{MARK}{timeline} {by}\n")
}

/// A history file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of {file}: {why}")]
pub struct ParseHistoryError {
    file: String,
    line: usize,
    why: &'static str,
}

impl History {
    /// A timeline without ancestors.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, forks: Vec::new(), marks: BTreeMap::new() }
    }

    /// Parse a history file's text. Blank lines and `#` comments are skipped, as PostgreSQL does, but for marks. Of a number the
    /// last one counts: a promotion may have been given up and tried again.
    ///
    /// # Errors
    /// A line without `timeline<TAB>lsn`, or timelines that do not increase.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self, ParseHistoryError> {
        let mut forks: Vec<Fork> = Vec::new();
        let mut marks = BTreeMap::new();
        for (i, line) in text.lines().enumerate() {
            let line_no = i + 1;
            let fail = |why| ParseHistoryError { file: timeline.history_file(), line: line_no, why };
            // A mark is not flushed: after a power failure a file system may have zeros in its place.
            let line = line.trim_start_matches(|c: char| c.is_whitespace() || c == '\0');
            if let Some((number, by)) = line.strip_prefix(MARK).and_then(|mark| mark.trim_end().split_once(' '))
                && let Ok(number) = number.parse()
            {
                marks.insert(TimelineId(number), by.to_owned());
            }
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let tli = words.next().and_then(|w| w.parse().ok()).ok_or_else(|| fail("no timeline number"))?;
            let lsn = words.next().and_then(|w| w.parse().ok()).ok_or_else(|| fail("no switch LSN"))?;
            let tli = TimelineId(tli);
            if forks.last().is_some_and(|f| f.timeline >= tli) || tli >= timeline {
                return Err(fail("timelines must increase"));
            }
            forks.push(Fork { timeline: tli, lsn });
        }
        marks.retain(|t, _| *t == timeline || forks.iter().any(|f| f.timeline == *t));
        Ok(Self { timeline, forks, marks })
    }

    /// Where `ancestor` ended on this line of descent; `None` when it is not an ancestor.
    pub fn fork_of(&self, ancestor: TimelineId) -> Option<Lsn> {
        self.forks.iter().find(|f| f.timeline == ancestor).map(|f| f.lsn)
    }

    /// Did this line's `timeline` begin with another promotion than that line's? Only marks of both tell.
    pub fn began_otherwise(&self, other: &Self, timeline: TimelineId) -> bool {
        self.marks.get(&timeline).zip(other.marks.get(&timeline)).is_some_and(|(ours, theirs)| ours != theirs)
    }

    /// Is the position (timeline, lsn) on this line of descent, so that a node that ends there may simply follow?
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        timeline == self.timeline || self.fork_of(timeline).is_some_and(|fork| lsn <= fork)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "1\t0/3000148\tno recovery target specified\n\n# note\n3\t0/5000000\tno recovery target specified\n";

    fn history() -> History {
        History::parse(TimelineId(7), TEXT).unwrap()
    }

    #[test]
    fn forks_are_read_in_order() {
        assert_eq!(history().fork_of(TimelineId(1)), Some("0/3000148".parse().unwrap()));
        assert_eq!(history().fork_of(TimelineId(3)), Some("0/5000000".parse().unwrap()));
        assert_eq!(history().fork_of(TimelineId(2)), None);
    }

    #[test]
    fn a_position_past_the_fork_is_not_contained() {
        let h = history();
        let at = |tli, lsn: &str| h.contains(TimelineId(tli), lsn.parse().unwrap());
        assert!(at(1, "0/3000148") && at(7, "9/0"));
        assert!(!at(1, "0/3000149") && !at(2, "0/1") && !at(8, "0/1"));
    }

    #[test]
    fn who_began_a_timeline_of_the_line_is_known_by_its_last_mark() {
        let given_up = [mark(TimelineId(3), "a 1"), mark(TimelineId(5), "b 2"), mark(TimelineId(7), "c 3")].concat();
        let text = format!("{given_up}{TEXT}{}# pgtenure x y\n# pgtenure 3\n", mark(TimelineId(7), "c 4"));
        let marked = History::parse(TimelineId(7), &text).unwrap();
        assert_eq!(marked.forks, history().forks);
        assert_eq!(marked.marks, [(TimelineId(3), "a 1".to_owned()), (TimelineId(7), "c 4".to_owned())].into());
        let zeros = format!("\0\0\0{}\0\0\n{TEXT}\0\0", mark(TimelineId(3), "a 1"));
        let zeros = History::parse(TimelineId(7), &zeros).unwrap();
        assert_eq!((zeros.forks, zeros.marks.len()), (history().forks, 1), "a mark was lost with a power failure");
        let other = History::parse(TimelineId(7), &format!("{TEXT}{}", mark(TimelineId(7), "d 5"))).unwrap();
        let otherwise = |a: &History, b: &History| [3, 5, 7].map(|t| a.began_otherwise(b, TimelineId(t)));
        assert_eq!(otherwise(&marked, &other), [false, false, true]);
        assert_eq!(otherwise(&marked, &history()), [false; 3], "an older agent began it");
    }

    #[test]
    fn an_empty_stub_has_no_ancestors() {
        assert_eq!(History::parse(TimelineId(5), "").unwrap(), History::root(TimelineId(5)));
    }

    #[test]
    fn broken_files_are_refused_with_their_line() {
        for (text, want) in [
            ("x\t0/1\n", "line 1 of 00000007.history: no timeline number"),
            ("1\n", "line 1 of 00000007.history: no switch LSN"),
            ("2\t0/1\n1\t0/2\n", "line 2 of 00000007.history: timelines must increase"),
            ("7\t0/1\n", "line 1 of 00000007.history: timelines must increase"),
        ] {
            assert_eq!(History::parse(TimelineId(7), text).unwrap_err().to_string(), want);
        }
    }
}
