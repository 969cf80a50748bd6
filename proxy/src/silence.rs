//! Where a quorum confirms commits, do standbys prove that the term is not over, or etcd alone? Pure.
//!
//! Nothing fails without them while etcd answers; so an operator would not notice before etcd is lost as well. A proxy
//! without lagmon, and one whose lagmon cannot log in to the standbys, have none.

use cluster::lag::LagSnapshot;
use cluster::topology::{Gate, Topology};
use cluster::{Instant, Term};
use std::time::Duration;

/// How long nothing is said: standbys restart, and follow another primary after a failover.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the standbys prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// None is needed: the view's end proves the term, or nothing is open.
    Needless,
    /// That the term was not over so long ago.
    Aged(Term, Duration),
    /// Nothing yet.
    None(Term),
}

impl Proof {
    /// How old it is; `None` when there is none.
    pub fn age(self) -> Option<Duration> {
        match self {
            Self::Aged(_, age) => Some(age),
            Self::Needless | Self::None(_) => None,
        }
    }
}

/// What the standbys prove by `lag`, a newest sample.
pub fn proof(topology: &Topology, lag: &LagSnapshot, now: Instant) -> Proof {
    let open = matches!(topology.gate, Gate::Open | Gate::Draining);
    if !open || topology.quorums.is_empty() {
        return Proof::Needless;
    }
    let proven = lag.proven_at.filter(|_| lag.term == topology.term);
    proven.map_or(Proof::None(topology.term), |at| Proof::Aged(topology.term, now.since(at)))
}

/// What is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silenced {
    /// No standby has proven the term for a while.
    Began {
        /// The term.
        term: Term,
        /// How old the last proof is; `None`: there was none.
        age: Option<Duration>,
    },
    /// They do again.
    Ended {
        /// The term.
        term: Term,
    },
}

/// For how long they have proven nothing, and whether that was said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence {
    since: Option<Instant>,
    said: bool,
}

impl Silence {
    /// What is to be said, once each time that it begins and ends.
    pub fn observe(&mut self, proof: Proof, now: Instant) -> Option<Silenced> {
        let (term, age) = match proof {
            // It is not over because nobody asks.
            Proof::Needless => {
                self.since = None;
                return None;
            }
            Proof::Aged(term, age) if age < PATIENCE => {
                self.since = None;
                return std::mem::take(&mut self.said).then_some(Silenced::Ended { term });
            }
            Proof::Aged(term, age) => (term, Some(age)),
            Proof::None(term) => (term, None),
        };
        let since = *self.since.get_or_insert(now);
        let long = age.is_some() || now.since(since) >= PATIENCE;
        let first = long && !self.said;
        self.said |= long;
        first.then_some(Silenced::Began { term, age })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::topology::{Closed, Quorum};

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1000)
    }

    #[test]
    fn only_an_open_term_that_a_quorum_confirms_needs_a_proof() {
        let quorums = vec![Quorum { voters: Vec::new(), k: 1 }];
        let open = Topology { term: Term(7), gate: Gate::Open, quorums, ..Topology::unknown() };
        let lag = LagSnapshot { term: Term(7), proven_at: Some(at(4)), ..LagSnapshot::default() };
        assert_eq!(proof(&open, &lag, at(5)), Proof::Aged(Term(7), Duration::from_secs(1)));
        let older = LagSnapshot { term: Term(6), ..lag.clone() };
        assert_eq!(proof(&open, &older, at(5)), Proof::None(Term(7)));
        let closed = Topology { gate: Gate::Closed(Closed::Promoting), ..open.clone() };
        assert_eq!(proof(&closed, &lag, at(5)), Proof::Needless);
        assert_eq!(proof(&Topology { quorums: Vec::new(), ..open }, &lag, at(5)), Proof::Needless);
    }

    #[test]
    fn a_silence_is_said_once_when_it_lasts_and_once_when_it_ends() {
        let mut silence = Silence::default();
        let (none, aged) = (Proof::None(Term(7)), |s| Proof::Aged(Term(7), Duration::from_secs(s)));
        let (began, ended) =
            (|age| Some(Silenced::Began { term: Term(7), age }), Some(Silenced::Ended { term: Term(7) }));
        for (now, proof, want) in [
            (0, none, None),
            (9, none, None),
            (10, none, began(None)),
            (11, none, None),
            // A failover in between: it is not said again for the next term.
            (12, Proof::Needless, None),
            (13, none, None),
            (24, none, None),
            (25, aged(0), ended),
            (26, aged(9), None),
            (27, aged(10), began(Some(Duration::from_secs(10)))),
            (28, aged(11), None),
            (29, aged(1), ended),
            (30, none, None),
            (31, aged(1), None),
        ] {
            assert_eq!(silence.observe(proof, at(now)), want, "at {now} s");
        }
    }
}
