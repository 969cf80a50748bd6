//! Where the terms that followed leave the one that a COMMIT was sent in.

use cluster::timeline::{Fork, XidBound};
use cluster::topology::Topology;
use cluster::{Lsn, Term};

/// The line of descent of a term that is open.
#[derive(Clone, Copy, Debug)]
pub struct Descent<'a> {
    /// The term.
    pub term: Term,
    /// The timelines before its own and where each was left, oldest first.
    pub forks: &'a [Fork],
    /// Where terms begin in the numbering of transactions, as far as that is known.
    pub bounds: &'a [XidBound],
}

/// What has followed a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Nothing: it is the term that is open.
    Same,
    /// Another term left it there and leads to the one that is open.
    Left {
        /// What the term wrote from here on is in no later one.
        fork: Lsn,
        /// The term that left it.
        by: Term,
        /// The first transaction id that `by` cannot have from before, where it is known.
        bound: Option<u64>,
    },
    /// The term that is open descends from older ones, and not from this.
    Passed,
    /// The line of descent does not reach back so far, or the view is older than the term.
    Unknown,
}

impl<'a> Descent<'a> {
    /// Of the view's term.
    pub fn of(topology: &'a Topology) -> Self {
        Self { term: topology.term, forks: &topology.forks, bounds: &topology.xid_bounds }
    }

    /// What has followed `term`. A timeline is its term's number (INV-4).
    pub fn since(&self, term: Term) -> Since {
        if term == self.term {
            return Since::Same;
        }
        if term > self.term {
            return Since::Unknown;
        }
        let timeline_of = |fork: &Fork| Term(u64::from(fork.timeline.0));
        match self.forks.iter().position(|fork| timeline_of(fork) == term) {
            Some(at) => {
                let by = self.forks.get(at + 1).map_or(self.term, timeline_of);
                let bound = self.bounds.iter().find(|b| b.term == by).map(|b| b.xid);
                Since::Left { fork: self.forks[at].lsn, by, bound }
            }
            // Older ones than it are there, so it would be too.
            None if self.forks.first().is_some_and(|oldest| timeline_of(oldest) < term) => Since::Passed,
            None => Since::Unknown,
        }
    }
}

/// The timeline of a term, where one was made by hand: for tests.
#[cfg(test)]
const fn fork(timeline: u32, lsn: u64) -> Fork {
    Fork { timeline: cluster::TimelineId(timeline), lsn: Lsn(lsn) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_term_of_the_line_is_the_one_that_counts() {
        let bound = |term, xid| XidBound { term: Term(term), xid };
        let left = |fork, by, bound| Since::Left { fork: Lsn(fork), by: Term(by), bound };
        // Term 3 was promoted and never recorded; 4 was no term of this line; 5 is open.
        let forks = [fork(1, 0x100), fork(2, 0x200), fork(3, 0x300)];
        let bounds = [bound(2, 720), bound(5, 790)];
        let descent = Descent { term: Term(5), forks: &forks, bounds: &bounds };
        for (term, want) in [
            (5, Since::Same),
            (6, Since::Unknown),
            (1, left(0x100, 2, Some(720))),
            (2, left(0x200, 3, None)),
            (3, left(0x300, 5, Some(790))),
            (4, Since::Passed),
            (0, Since::Unknown),
        ] {
            assert_eq!(descent.since(Term(term)), want, "term {term}");
        }
        let nothing = Descent { term: Term(5), forks: &[], bounds: &[] };
        assert_eq!(nothing.since(Term(4)), Since::Unknown);
        assert_eq!(nothing.since(Term(5)), Since::Same);
    }
}
