//! The cluster as a proxy may act on it: who accepts writes, under which term, and until when that is known.
//!
//! Ordered by term and then by revision, so that an older view arriving late never replaces a newer one (INV-2).

use crate::clock::Instant;
use crate::node::{Endpoint, NodeId};
pub use crate::per_term::{BelowMode, Doubts, PerTerm};
use crate::term::Term;
use crate::timeline::{Fork, XidBound};
use std::time::Duration;

/// How long a view of a strict cluster may be acted on without anybody confirming it. The primary's agent does not let
/// commits through without standbys sooner than this after it has read that the mode was lowered, so it is the same in
/// every process and no setting. Several times what etcd needs for an election.
pub const STRICT_VIEW: Duration = Duration::from_secs(6);

/// A consistent view of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// The newest term known.
    pub term: Term,
    /// PostgreSQL's system identifier of the cluster; `None`: not known, and not compared.
    pub system_id: Option<u64>,
    /// etcd's revision of the view, to order views of the same term.
    pub revision: u64,
    /// May writes be sent to the primary?
    pub gate: Gate,
    /// The primary of `term`; while the gate is closed, the node that was or will be, if known.
    pub primary: Option<Member>,
    /// Every other node, ordered by name.
    pub standbys: Vec<Member>,
    /// Writes (and relaying their acknowledgements) must stop at this instant unless the view is renewed. `None` when
    /// safety does not hang on time: in `strict` mode the quorum fences, and goes on to.
    pub valid_until: Option<Instant>,
    /// The same where `valid_until` is `None`: the mode may have been lowered since, without this process having heard of
    /// it. Confirmed by etcd or, without etcd, by the primary's agent. `None`: never.
    pub confirmed_until: Option<Instant>,
    /// The policy's epoch that the view goes by.
    pub epoch: u64,
    /// Commits wait for standbys, by that policy.
    pub protected: bool,
    /// The mode promises of every commit that standbys confirm it: strict, and available also while it is suspended.
    pub semi_sync: bool,
    /// The quorums that confirm commits, two while one is changed to another. A later term opens when it has frozen enough
    /// of each. Empty where time is what keeps a later term from opening (`valid_until`).
    pub quorums: Vec<Quorum>,
    /// The epoch of the policy by which this term was begun: its quorums tell whose WAL the term begins with.
    pub begun_by: u64,
    /// When etcd was asked for this view, or last confirmed it: no later term was open then. `None`: never.
    pub read_at: Option<Instant>,
    /// Where this term's timeline left the previous one; `None` in the first term.
    pub fork: Option<Fork>,
    /// That and the forks before it, oldest first: what of older timelines this term's holds. Empty while the term's
    /// primary is not promoted.
    pub forks: Vec<Fork>,
    /// Where this term, and those before it that are known, begin in the numbering of transactions. Empty while the term's
    /// primary is not promoted.
    pub xid_bounds: Vec<XidBound>,
    /// A term all of whose writes this one holds, whatever positions are known of it.
    pub holds_all_of: Option<Term>,
    /// The same but for what was committed last with `synchronous_commit = off`.
    pub holds_written_of: Option<Term>,
    /// An operator allowed this term to begin without what a quorum had confirmed in the one before.
    pub loss_allowed: bool,
}

/// How many standbys confirm a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// The nodes that count.
    pub voters: Vec<NodeId>,
    /// How many of them, besides the primary, have flushed a commit before it is acknowledged.
    pub k: u32,
}

impl Quorum {
    /// Since when no later term can have been open, as the voters seen receiving WAL from `primary` prove it. `seen` tells
    /// when each was asked that answered so.
    ///
    /// A node that is frozen for a later term receives nothing more from this one. k voters besides the primary that are
    /// not frozen leave m - 1 - k others, one less than a later term needs. (Of a primary that is no voter, which only an
    /// operator's word makes, one more must be seen.)
    pub fn proven(&self, primary: &NodeId, seen: impl Fn(&NodeId) -> Option<Instant>) -> Option<Instant> {
        let mut asked: Vec<Instant> = self.voters.iter().filter(|v| *v != primary).filter_map(seen).collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        let needed = self.k as usize + usize::from(!self.voters.contains(primary));
        asked.get(needed.checked_sub(1)?).copied()
    }
}

/// A node and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub node: NodeId,
    /// Where its PostgreSQL listens.
    pub postgres: Endpoint,
    /// Taken out of routing: fenced or in maintenance, or not meant to serve reads.
    pub fenced: bool,
    /// It may become primary without an operator's naming it: it has a vote, and nothing keeps it from that.
    pub candidate: bool,
    /// Where it is, as its agent's configuration says; `None`: it does not.
    pub zone: Option<String>,
}

/// May the primary be written to?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Yes.
    Open,
    /// Transactions that run may finish; new ones are held: a switchover is about to stop the primary.
    Draining,
    /// No, and why.
    Closed(Closed),
}

/// Why nothing may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closed {
    /// Nothing was learnt yet.
    Unknown,
    /// No term has a primary (a cluster being created, or one that was stopped).
    Vacant,
    /// A new term is recruiting standbys.
    Recruiting,
    /// The new primary is being promoted.
    Promoting,
    /// The new primary waits until a record of its term is on a quorum.
    Opening,
    /// The view is older than its validity and etcd does not answer.
    Stale,
    /// An operator stopped writes by fencing the primary.
    Fenced,
    /// The primary's lease is gone, and safety hangs on it (async mode, or commits are not protected now).
    Unleased,
}

impl Closed {
    /// The reason as one snake_case word, for logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Vacant => "vacant",
            Self::Recruiting => "recruiting",
            Self::Promoting => "promoting",
            Self::Opening => "opening",
            Self::Stale => "stale",
            Self::Fenced => "fenced",
            Self::Unleased => "unleased",
        }
    }
}

impl Gate {
    /// The gate as one snake_case word, for logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Draining => "draining",
            Self::Closed(why) => why.as_str(),
        }
    }
}

impl Topology {
    /// Nothing known yet.
    pub fn unknown() -> Self {
        Self {
            term: Term(0),
            system_id: None,
            revision: 0,
            gate: Gate::Closed(Closed::Unknown),
            primary: None,
            standbys: Vec::new(),
            valid_until: None,
            confirmed_until: None,
            epoch: 0,
            protected: false,
            semi_sync: false,
            quorums: Vec::new(),
            begun_by: 0,
            read_at: None,
            fork: None,
            forks: Vec::new(),
            xid_bounds: Vec::new(),
            holds_all_of: None,
            holds_written_of: None,
            loss_allowed: false,
        }
    }

    /// From when on nothing may be sent to the primary, nor its acknowledgements passed on, by this view.
    pub fn ends_at(&self) -> Option<Instant> {
        self.valid_until.or(self.confirmed_until)
    }

    /// The gate at `now`: an open or draining one is closed as stale once the view's validity has run out.
    pub fn gate_at(&self, now: Instant) -> Gate {
        match (self.gate, self.ends_at()) {
            (Gate::Open | Gate::Draining, Some(end)) if now >= end => Gate::Closed(Closed::Stale),
            (gate, _) => gate,
        }
    }

    /// The instant as of which it is known that no later term was open: by etcd, or by `streams`, the standbys that were seen
    /// receiving WAL from this view's primary. `None` where time keeps a later term from opening: as of any instant before
    /// the view ends.
    pub fn proven_at(&self, streams: Option<Instant>, now: Instant) -> Option<Instant> {
        let read_at = self.read_at.unwrap_or_default();
        match self.gate_at(now) {
            _ if self.quorums.is_empty() => None,
            Gate::Open | Gate::Draining => Some(read_at.max(streams.unwrap_or_default())),
            // The term that begins may have opened since, and its own standbys stream.
            Gate::Closed(_) => Some(read_at),
        }
    }

    /// Does `newer` differ in nothing but until when it may be acted on, and by which reading of etcd?
    pub fn is_renewed_by(&self, newer: &Self) -> bool {
        let Self { revision, valid_until, confirmed_until, read_at, .. } = newer.clone();
        *newer == Self { revision, valid_until, confirmed_until, read_at, ..self.clone() }
            && (valid_until.is_some(), confirmed_until.is_some())
                == (self.valid_until.is_some(), self.confirmed_until.is_some())
    }

    /// Replace by `newer` unless that is older. True when something changed.
    pub fn merge(&mut self, newer: Self) -> bool {
        if (newer.term, newer.revision) < (self.term, self.revision) || newer == *self {
            return false;
        }
        *self = newer;
        true
    }

    /// The member of that name, primary or standby.
    pub fn member(&self, node: &NodeId) -> Option<&Member> {
        self.primary.iter().chain(&self.standbys).find(|m| &m.node == node)
    }
}

/// What a proxy tells the manager, so that a switchover can wait for its transactions to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyState {
    /// The newest term this proxy acts on, on all its workers.
    pub term: Term,
    /// The oldest epoch of the policy that any of its workers acts on.
    pub epoch: u64,
    /// The gate all its workers have applied.
    pub gate: Gate,
    /// Sessions inside a transaction on the primary or with a statement in flight there.
    pub busy: u64,
    /// Commits acknowledged with less durability than the cluster's mode.
    pub below_mode: BelowMode,
    /// What became of writes whose server was lost before it answered.
    pub doubts: PerTerm<Doubts>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(term: u64, revision: u64) -> Topology {
        Topology { term: Term(term), revision, gate: Gate::Open, ..Topology::unknown() }
    }

    #[test]
    fn an_older_term_never_replaces_a_newer_one() {
        let mut t = view(7, 100);
        assert!(!t.merge(view(6, 200)));
        assert!(!t.merge(view(7, 99)));
        assert!(!t.merge(view(7, 100)));
        assert!(t.merge(view(7, 101)) && t.merge(view(8, 1)));
        assert_eq!(t.term, Term(8));
    }

    #[test]
    fn voters_that_receive_prove_the_term_as_of_when_enough_were_asked() {
        let node = |n: u64| -> NodeId { format!("n{n}").parse().unwrap() };
        let quorum = |m: u64, k| Quorum { voters: (1..=m).map(node).collect(), k };
        // When n2, n3, ... were asked that receive from n1.
        let seen = |times: &'static [u64]| {
            move |who: &NodeId| {
                let (_, at) = times.iter().enumerate().find(|(i, _)| *who == node(*i as u64 + 2))?;
                (*at > 0).then(|| Instant::from_millis(*at))
            }
        };
        for (m, k, times, want) in [
            (2, 1, &[9][..], Some(9)),
            (2, 1, &[0], None),
            (3, 1, &[9, 0], Some(9)),
            (3, 1, &[5, 9], Some(9)),
            (3, 2, &[5, 9], Some(5)),
            (3, 2, &[0, 9], None),
            (5, 2, &[7, 0, 9, 0], Some(7)),
            (5, 2, &[0, 0, 9, 0], None),
            (5, 3, &[7, 8, 9, 0], Some(7)),
            // n5 has no vote.
            (3, 2, &[5, 0, 0, 9], None),
        ] {
            let proven = quorum(m, k).proven(&node(1), seen(times));
            assert_eq!(proven, want.map(Instant::from_millis), "m = {m}, k = {k}, {times:?}");
        }
        let others = Quorum { voters: vec![node(2), node(3), node(4)], k: 1 };
        assert_eq!(others.proven(&node(1), seen(&[5, 9])), Some(Instant::from_millis(5)), "n1 is no voter");
        assert_eq!(others.proven(&node(1), seen(&[0, 9])), None);
    }

    #[test]
    fn a_term_is_proven_by_etcd_or_by_streams_and_once_closed_by_etcd_alone() {
        let at = Instant::from_millis;
        let quorums = vec![Quorum { voters: Vec::new(), k: 1 }];
        let t = Topology { quorums, read_at: Some(at(5)), confirmed_until: Some(at(20)), ..view(7, 1) };
        assert_eq!(t.proven_at(None, at(10)), Some(at(5)));
        assert_eq!(t.proven_at(Some(at(8)), at(10)), Some(at(8)));
        assert_eq!(t.proven_at(Some(at(3)), at(10)), Some(at(5)));
        assert_eq!(t.proven_at(Some(at(8)), at(20)), Some(at(5)), "the view has ended");
        let closed = Topology { gate: Gate::Closed(Closed::Opening), ..t.clone() };
        assert_eq!(closed.proven_at(Some(at(8)), at(10)), Some(at(5)));
        let timed = Topology { quorums: Vec::new(), ..t };
        assert_eq!(timed.proven_at(None, at(10)), None);
    }

    #[test]
    fn a_view_read_again_is_renewed_unless_it_says_something_else() {
        let at = Instant::from_millis;
        let t = Topology { confirmed_until: Some(at(20)), ..view(7, 1) };
        let again = Topology { confirmed_until: Some(at(40)), read_at: Some(at(30)), revision: 9, ..t.clone() };
        assert!(t.is_renewed_by(&again));
        assert!(!t.is_renewed_by(&Topology { epoch: 3, ..again.clone() }));
        assert!(!t.is_renewed_by(&Topology { gate: Gate::Draining, ..again.clone() }));
        assert!(!t.is_renewed_by(&Topology { confirmed_until: None, valid_until: Some(at(40)), ..again }));
    }

    #[test]
    fn an_open_gate_closes_when_the_view_is_too_old() {
        let t = Topology { valid_until: Some(Instant::from_millis(10)), ..view(7, 1) };
        assert_eq!(t.gate_at(Instant::from_millis(9)), Gate::Open);
        assert_eq!(t.gate_at(Instant::from_millis(10)), Gate::Closed(Closed::Stale));
        assert_eq!(view(7, 1).gate_at(Instant::from_millis(u64::MAX / 2_000_000)), Gate::Open);
        let strict = Topology { confirmed_until: Some(Instant::from_millis(20)), ..view(7, 1) };
        assert_eq!(strict.gate_at(Instant::from_millis(19)), Gate::Open);
        assert_eq!(strict.gate_at(Instant::from_millis(20)), Gate::Closed(Closed::Stale));
    }
}
