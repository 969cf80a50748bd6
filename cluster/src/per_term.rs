//! What is counted by terms: a report of a failover is about the term before the present one.

use crate::term::Term;
use std::ops::AddAssign;

/// Counts of the newest two terms in which there was anything to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerTerm<C> {
    counts: [(Term, C); 2],
}

/// How many commits were acknowledged below the cluster's mode.
pub type BelowMode = PerTerm<u64>;

impl<C: AddAssign + Copy + Default + PartialEq> PerTerm<C> {
    /// Count so much more in `term`. What is of a term older than both kept is dropped.
    pub fn add(&mut self, term: Term, more: C) {
        if more == C::default() {
            return;
        }
        let [newest, second] = self.counts;
        if term == newest.0 {
            self.counts[0].1 += more;
        } else if term > newest.0 {
            self.counts = [(term, more), newest];
        } else if term == second.0 {
            self.counts[1].1 += more;
        } else if term > second.0 {
            self.counts[1] = (term, more);
        }
    }

    /// Add all that another has counted.
    pub fn merge(&mut self, other: Self) {
        other.iter().for_each(|(term, counted)| self.add(term, counted));
    }

    /// What was counted in that term, as far as that is kept.
    pub fn of(&self, term: Term) -> C {
        self.iter().find(|(of, _)| *of == term).map(|(_, counted)| counted).unwrap_or_default()
    }

    /// Terms and what was counted in them, newest first.
    pub fn iter(&self) -> impl Iterator<Item = (Term, C)> {
        self.counts.into_iter().filter(|(_, counted)| *counted != C::default())
    }
}

/// What became of a write whose server was lost before it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A COMMIT that is in the cluster; its client was told so.
    Survived,
    /// A COMMIT that is proven not to be; its client was told 40001.
    Lost,
    /// Nobody could tell: 08007.
    Unknown,
}

/// How many writes met each fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// See [`Fate::Survived`].
    pub survived: u64,
    /// See [`Fate::Lost`].
    pub lost: u64,
    /// See [`Fate::Unknown`].
    pub unknown: u64,
}

impl Doubts {
    /// All of them.
    pub const fn all(&self) -> u64 {
        self.survived + self.lost + self.unknown
    }
}

impl From<Fate> for Doubts {
    fn from(fate: Fate) -> Self {
        let mut one = Self::default();
        match fate {
            Fate::Survived => one.survived = 1,
            Fate::Lost => one.lost = 1,
            Fate::Unknown => one.unknown = 1,
        }
        one
    }
}

impl AddAssign for Doubts {
    fn add_assign(&mut self, more: Self) {
        self.survived += more.survived;
        self.lost += more.lost;
        self.unknown += more.unknown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_for_two_terms() {
        let mut b = BelowMode::default();
        for (term, n) in [(3, 1), (3, 2), (5, 4), (3, 1), (4, 0)] {
            b.add(Term(term), n);
        }
        assert_eq!(b.iter().collect::<Vec<_>>(), [(Term(5), 4), (Term(3), 4)]);
        b.add(Term(7), 1);
        b.add(Term(3), 9);
        assert_eq!(b.iter().collect::<Vec<_>>(), [(Term(7), 1), (Term(5), 4)]);
    }

    #[test]
    fn what_two_have_counted_is_added_fate_by_fate() {
        let (mut a, mut b) = (PerTerm::<Doubts>::default(), PerTerm::default());
        a.add(Term(3), Fate::Lost.into());
        for (term, fate) in [(3, Fate::Lost), (3, Fate::Survived), (4, Fate::Unknown)] {
            b.add(Term(term), fate.into());
        }
        a.merge(b);
        let of = |survived, lost, unknown| Doubts { survived, lost, unknown };
        assert_eq!(a.iter().collect::<Vec<_>>(), [(Term(4), of(0, 0, 1)), (Term(3), of(1, 2, 0))]);
    }
}
