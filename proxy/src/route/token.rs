//! A position that later reads must have seen, as text that another connection, process or service can hand on.
//!
//! `SHOW pgtenure.token` gives one that covers what the session has written and read; `SET pgtenure.after` takes it.
//! A position means something only together with the history it was written in, so it names term and timeline too:
//! what lies past the point at which a later term left that timeline is in no history any more.

use cluster::topology::{Gate, Topology};
use cluster::{Instant, Lsn, Term, TimelineId};
use std::fmt;
use std::str::FromStr;

/// A position in one term's WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token {
    /// The term in which the position was sampled.
    pub term: Term,
    /// The timeline that its primary wrote.
    pub timeline: TimelineId,
    /// The position.
    pub lsn: Lsn,
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token (a value of pgtenure.token is expected, as in \"3-3-0/16B3748\")")]
pub struct BadToken;

/// What a token comes to in the present term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A standby must have replayed this.
    Need(Lsn),
    /// It lies past the point at which its timeline was left, or its timeline is none of this term's ancestors.
    Lost {
        /// Where its timeline was left; `None` when that is not known.
        fork: Option<Lsn>,
    },
    /// A new term begins, and it is not decided yet where it leaves the token's timeline.
    Undecided,
    /// It is of a later term than the newest one known here.
    Ahead,
}

impl Token {
    /// What it comes to in the term of `topology`.
    pub fn standing(&self, topology: &Topology, now: Instant) -> Standing {
        if self.term == topology.term {
            // A term writes the timeline of its number: what says otherwise is of another cluster, or made up.
            let of_term = topology.term.timeline().is_none_or(|timeline| timeline == self.timeline);
            return if of_term { Standing::Need(self.lsn) } else { Standing::Lost { fork: None } };
        }
        if self.term > topology.term {
            return Standing::Ahead;
        }
        let fork = topology.forks.iter().find(|f| f.timeline == self.timeline).map(|f| f.lsn);
        match (fork, topology.gate_at(now)) {
            // Until the term is open another node may be promoted instead.
            (_, Gate::Closed(_)) => Standing::Undecided,
            (Some(fork), _) if self.lsn <= fork => Standing::Need(self.lsn),
            (fork, _) => Standing::Lost { fork },
        }
    }

    /// The position to have replayed in the term of `topology` for whoever wrote or read up to this one: what lies past
    /// the fork is gone, so the fork will do. `None` when the fork is not known.
    pub(super) fn carried(&self, topology: &Topology) -> Option<Lsn> {
        if self.term == topology.term || matches!(topology.gate, Gate::Closed(_)) {
            return Some(self.lsn);
        }
        let fork = topology.forks.iter().find(|f| f.timeline == self.timeline)?;
        Some(self.lsn.min(fork.lsn))
    }

    /// The one that covers both: the later term's, and in one term the greater position's.
    pub(super) fn later(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| if (other.term, other.lsn) > (self.term, self.lsn) { other } else { self })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term.0, self.timeline.0, self.lsn)
    }
}

impl FromStr for Token {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let mut parts = text.splitn(3, '-');
        let mut number = || {
            let digits = parts.next().filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
            digits.ok_or(BadToken)
        };
        let term = Term(number()?.parse().map_err(|_| BadToken)?);
        let timeline = TimelineId(number()?.parse().map_err(|_| BadToken)?);
        let lsn = parts.next().ok_or(BadToken)?.parse().map_err(|_| BadToken)?;
        Ok(Self { term, timeline, lsn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::timeline::Fork;
    use cluster::topology::Closed;

    fn token(text: &str) -> Token {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_is_read_as_it_is_written() {
        for text in ["3-3-0/16B3748", "18446744073709551615-4294967295-FFFFFFFF/FFFFFFFF", "1-1-0/0"] {
            assert_eq!(token(text).to_string(), text);
        }
        for bad in ["", "3", "3-3", "3-3-", "-3-0/1", "3--0/1", "+3-3-0/1", "3-3-0/1-", "3-3-16B3748", "3 -3-0/1", "x"]
        {
            assert_eq!(bad.parse::<Token>(), Err(BadToken), "{bad:?}");
        }
    }

    #[test]
    fn only_what_is_in_this_terms_history_is_still_there() {
        let fork = |timeline, lsn| Fork { timeline: TimelineId(timeline), lsn: Lsn(lsn) };
        let forks = vec![fork(3, 0x100), fork(5, 0x200)];
        let open = Topology { term: Term(7), gate: Gate::Open, forks, ..Topology::unknown() };
        let closed = Topology { gate: Gate::Closed(Closed::Promoting), ..open.clone() };
        let lost = |lsn| Standing::Lost { fork: Some(Lsn(lsn)) };
        for (text, want, while_closed) in [
            ("7-7-0/999", Standing::Need(Lsn(0x999)), Standing::Need(Lsn(0x999))),
            ("5-5-0/200", Standing::Need(Lsn(0x200)), Standing::Undecided),
            ("5-5-0/201", lost(0x200), Standing::Undecided),
            // An older term's: what counts is where its own timeline was left.
            ("3-3-0/100", Standing::Need(Lsn(0x100)), Standing::Undecided),
            ("3-3-0/180", lost(0x100), Standing::Undecided),
            // A term that is no ancestor, or one that is not remembered.
            ("4-4-0/1", Standing::Lost { fork: None }, Standing::Undecided),
            ("8-8-0/1", Standing::Ahead, Standing::Ahead),
            ("7-5-0/1", Standing::Lost { fork: None }, Standing::Lost { fork: None }),
        ] {
            let at = Instant::from_millis(1);
            assert_eq!(token(text).standing(&open, at), want, "{text}");
            assert_eq!(token(text).standing(&closed, at), while_closed, "{text}");
        }
        assert_eq!(token("5-5-0/201").carried(&open), Some(Lsn(0x200)));
        assert_eq!(token("3-3-0/80").carried(&open), Some(Lsn(0x80)));
        assert_eq!(token("4-4-0/80").carried(&open), None);
        assert_eq!(token("5-5-0/201").carried(&closed), Some(Lsn(0x201)), "it may survive yet");
    }
}
