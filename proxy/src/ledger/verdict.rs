//! What became of a COMMIT, by the term that is open and by what its primary says.

use crate::ledger::{Mark, Since};
use cluster::{Lsn, Term};
use std::fmt;

/// What is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ask the primary for the status of the transaction with this id, which is no other's there.
    Ask(u64),
    /// It was not committed, and never will be.
    Lost(Proof),
    /// It was committed, and the open term has it.
    Survived,
    /// The primary still has it: to be asked again.
    Running,
    /// It was committed by the primary, and whether standbys have it is not known yet.
    Unconfirmed,
    /// Nobody can tell.
    Unknown(Why),
}

/// What proves a commit lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its record would be past the end of what `by` has of its term.
    PastFork {
        /// The term that followed.
        by: Term,
        /// Where that left the commit's.
        fork: Lsn,
    },
    /// Its transaction had not ended where `by` begins.
    PastBound {
        /// The term that followed.
        by: Term,
        /// The first transaction id that no earlier term has completed there.
        bound: u64,
    },
    /// The open term does not descend from its own.
    Passed,
    /// The primary says that it was rolled back.
    Aborted,
}

/// Why nobody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It had no transaction id when it was asked for.
    NoXid,
    /// What followed its term is not known.
    NoDescent,
    /// Where the term that followed begins in the numbering of transactions was not recorded.
    NoBound,
    /// The primary does not know it any more.
    Forgotten,
    /// Nothing keeps a later term from following one that has it, while the open one is not protected by a quorum.
    NotFinal,
    /// No primary could be asked in time.
    NoPrimary,
    /// The primary had not ended it in time.
    StillRunning,
    /// The primary has committed it, and no standby confirmed that in time.
    Unconfirmed,
    /// The client did not want to wait.
    GivenUp,
}

/// What a primary says of a transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `committed`.
    Committed,
    /// `aborted`.
    Aborted,
    /// `in progress`.
    InProgress,
    /// NULL, an error, or anything else.
    Unknown,
}

impl Status {
    /// Of the value of `pg_xact_status`.
    pub fn of(value: Option<&str>) -> Self {
        match value {
            Some("committed") => Self::Committed,
            Some("aborted") => Self::Aborted,
            Some("in progress") => Self::InProgress,
            Some(_) | None => Self::Unknown,
        }
    }
}

/// What is known of a commit before anybody was asked. `protected`: commits of the open term wait for a quorum, so that
/// whatever follows it descends from it. Else a node that did not hear of it may come later with what it lacks.
pub fn before_asking(mark: &Mark, since: Since, protected: bool) -> Verdict {
    match told(mark, since) {
        Verdict::Lost(_) if !protected => Verdict::Unknown(Why::NotFinal),
        told => told,
    }
}

fn told(mark: &Mark, since: Since) -> Verdict {
    match since {
        Since::Same => mark.xid.map_or(Verdict::Unknown(Why::NoXid), Verdict::Ask),
        Since::Passed => Verdict::Lost(Proof::Passed),
        Since::Unknown => Verdict::Unknown(Why::NoDescent),
        // Its record, if there is one, begins where the other term does or later.
        Since::Left { fork, by, .. } if mark.lsn >= fork => Verdict::Lost(Proof::PastFork { by, fork }),
        Since::Left { by, bound, .. } => match (mark.xid, bound) {
            (None, _) => Verdict::Unknown(Why::NoXid),
            (Some(_), None) => Verdict::Unknown(Why::NoBound),
            (Some(xid), Some(bound)) if xid >= bound => Verdict::Lost(Proof::PastBound { by, bound }),
            (Some(xid), Some(_)) => Verdict::Ask(xid),
        },
    }
}

/// What the primary's word comes to. Of a later term all is settled that came before it. In the commit's own term one
/// that waits for standbys has committed on the primary alone, and may yet be lost.
pub fn after_asking(status: Status, since: Since, protected: bool) -> Verdict {
    match (status, since) {
        (Status::Aborted, Since::Left { .. }) if !protected => Verdict::Unknown(Why::NotFinal),
        (Status::Aborted, _) => Verdict::Lost(Proof::Aborted),
        (Status::Committed, Since::Same) => Verdict::Unconfirmed,
        (Status::Committed, _) => Verdict::Survived,
        (Status::InProgress, Since::Same) => Verdict::Running,
        // Nothing of an earlier term runs on.
        (Status::InProgress | Status::Unknown, _) => Verdict::Unknown(Why::Forgotten),
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PastFork { by, fork } => write!(f, "term {by} has its term only up to {fork}"),
            Self::PastBound { by, bound } => write!(f, "term {by} begins at transaction {bound}"),
            Self::Passed => f.write_str("the term that followed does not descend from its own"),
            Self::Aborted => f.write_str("the primary has it as aborted"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoXid => "it had no transaction ID before its COMMIT",
            Self::NoDescent => "what followed its term is not known",
            Self::NoBound => "where the next term begins was not recorded",
            Self::Forgotten => "the primary does not know it",
            Self::NotFinal => "the term that is open has not got it, and a later one may",
            Self::NoPrimary => "no primary could be asked in time",
            Self::StillRunning => "its primary had not ended it in time",
            Self::Unconfirmed => "its primary has committed it, and no standby has confirmed that in time",
            Self::GivenUp => "it was not waited for",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Since = Since::Left { fork: Lsn(0x200), by: Term(8), bound: Some(731) };
    const UNBOUND: Since = Since::Left { fork: Lsn(0x200), by: Term(8), bound: None };

    #[test]
    fn an_id_is_asked_about_only_where_it_is_no_other_transactions() {
        use Verdict::{Ask, Lost, Unknown};
        let past_fork = Lost(Proof::PastFork { by: Term(8), fork: Lsn(0x200) });
        let past_bound = Lost(Proof::PastBound { by: Term(8), bound: 731 });
        for (xid, lsn, since, want) in [
            (Some(730), 0x100, Since::Same, Ask(730)),
            (None, 0x100, Since::Same, Unknown(Why::NoXid)),
            (Some(730), 0x100, LEFT, Ask(730)),
            // The new primary gives these ids out again.
            (Some(731), 0x100, LEFT, past_bound),
            (Some(900), 0x1ff, LEFT, past_bound),
            // Its record is not there, whatever its id.
            (Some(730), 0x200, LEFT, past_fork),
            (Some(900), 0x300, LEFT, past_fork),
            (None, 0x200, LEFT, past_fork),
            (Some(730), 0x200, UNBOUND, past_fork),
            (None, 0x100, LEFT, Unknown(Why::NoXid)),
            (Some(730), 0x100, UNBOUND, Unknown(Why::NoBound)),
            (None, 0x100, UNBOUND, Unknown(Why::NoXid)),
            (Some(730), 0x100, Since::Passed, Lost(Proof::Passed)),
            (Some(730), 0x100, Since::Unknown, Unknown(Why::NoDescent)),
            (None, 0x100, Since::Unknown, Unknown(Why::NoDescent)),
        ] {
            let mark = Mark { xid, lsn: Lsn(lsn) };
            assert_eq!(before_asking(&mark, since, true), want, "{mark:?} {since:?}");
            // Where a later term may have it after all, none is said to be lost.
            let want = if matches!(want, Lost(_)) { Unknown(Why::NotFinal) } else { want };
            assert_eq!(before_asking(&mark, since, false), want, "{mark:?} {since:?}, not protected");
        }
    }

    #[test]
    fn what_the_primary_says_is_final_in_a_later_term_and_may_change_in_the_same() {
        for (said, same, later) in [
            (Some("committed"), Verdict::Unconfirmed, Verdict::Survived),
            (Some("aborted"), Verdict::Lost(Proof::Aborted), Verdict::Lost(Proof::Aborted)),
            (Some("in progress"), Verdict::Running, Verdict::Unknown(Why::Forgotten)),
            (None, Verdict::Unknown(Why::Forgotten), Verdict::Unknown(Why::Forgotten)),
            (Some("odd"), Verdict::Unknown(Why::Forgotten), Verdict::Unknown(Why::Forgotten)),
        ] {
            for protected in [true, false] {
                assert_eq!(after_asking(Status::of(said), Since::Same, protected), same, "{said:?}");
            }
            assert_eq!(after_asking(Status::of(said), LEFT, true), later, "{said:?}");
            let later = if later == Verdict::Survived { later } else { Verdict::Unknown(Why::NotFinal) };
            let unknown = matches!(Status::of(said), Status::InProgress | Status::Unknown);
            let later = if unknown { Verdict::Unknown(Why::Forgotten) } else { later };
            assert_eq!(after_asking(Status::of(said), LEFT, false), later, "{said:?}");
        }
    }
}
