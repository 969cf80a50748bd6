//! A position that later reads must have seen, as text that another connection, process or service can hand on.
//!
//! `SHOW pgtenure.token` gives one that covers what the session has written and read; `SET pgtenure.after` takes it.
//! A position means something only together with the history it was written in, so it names term and timeline too:
//! what lies past the point at which a later term left that timeline is in no history any more. And the cluster, where its
//! system identifier is known: terms and positions of another are as good as any.

use super::policy::Lag;
use cluster::topology::{Gate, Topology};
use cluster::{Instant, Lsn, Term, TimelineId};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

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

/// A primary that was not asked for this long is not asked by itself: nobody should wait for that.
const SAMPLED: Duration = Duration::from_secs(2);

/// A token as it is handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// The position.
    pub token: Token,
    /// PostgreSQL's system identifier of the cluster that it is of; `None`: it does not tell.
    pub system_id: Option<u64>,
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
    /// It is in no history that this term has.
    Lost(Gone),
    /// A new term begins, and it is not decided yet where it leaves the token's timeline.
    Undecided,
    /// It is of a later term than the newest one known here.
    Ahead,
}

/// Why a position is in no history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It lies past this, where a later term left its timeline.
    Fork(Lsn),
    /// Its timeline is not known to be an ancestor of this term's.
    Lineage,
    /// It lies past this, where the WAL of its term ended when the primary was asked later: it is made up, or of a history that
    /// is not this one.
    End(Lsn),
    /// It is of another cluster than this one, which has this system identifier.
    OtherCluster(u64),
}

impl After {
    /// What it comes to in the term of `topology`.
    pub fn standing(&self, topology: &Topology, now: Instant) -> Standing {
        match (self.system_id, topology.system_id) {
            (Some(of), Some(ours)) if of != ours => Standing::Lost(Gone::OtherCluster(ours)),
            _ => self.token.standing(topology, now),
        }
    }

    /// Does it lie past the end of the primary's WAL that was told when that was asked, at `since` or later? The token was
    /// there already by then.
    ///
    /// # Errors
    /// It was not asked since: the end that is known.
    pub(super) fn is_past_end(
        &self,
        topology: &Topology,
        lag: &Lag,
        (since, now): (Instant, Instant),
    ) -> Result<Option<Gone>, Lsn> {
        let known = lag.primary_of(topology).filter(|_| self.token.term == topology.term);
        let Some(sample) = known.filter(|sample| now.since(sample.sent_at) <= SAMPLED) else { return Ok(None) };
        match sample.insert_lsn {
            end if self.token.lsn <= end => Ok(None),
            end if sample.sent_at >= since => Ok(Some(Gone::End(end))),
            end => Err(end),
        }
    }

    /// The one that covers both.
    pub fn later(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| if self.token.later(Some(other.token)) == self.token { self } else { other })
    }
}

impl From<Token> for After {
    fn from(token: Token) -> Self {
        Self { token, system_id: None }
    }
}

impl Token {
    /// What it comes to in the term of `topology`.
    pub fn standing(&self, topology: &Topology, now: Instant) -> Standing {
        if self.term == topology.term {
            // A term writes the timeline of its number: what says otherwise is of another cluster, or made up.
            let of_term = topology.term.timeline().is_none_or(|timeline| timeline == self.timeline);
            return if of_term { Standing::Need(self.lsn) } else { Standing::Lost(Gone::Lineage) };
        }
        if self.term > topology.term {
            return Standing::Ahead;
        }
        let fork = topology.forks.iter().find(|f| f.timeline == self.timeline).map(|f| f.lsn);
        match (fork, topology.gate_at(now)) {
            // Until the term is open another node may be promoted instead.
            (_, Gate::Closed(_)) => Standing::Undecided,
            (Some(fork), _) if self.lsn <= fork => Standing::Need(self.lsn),
            (fork, _) => Standing::Lost(fork.map_or(Gone::Lineage, Gone::Fork)),
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
    pub fn later(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| if (other.term, other.lsn) > (self.term, self.lsn) { other } else { self })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term.0, self.timeline.0, self.lsn)
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.system_id {
            Some(of) => write!(f, "{}-{of}", self.token),
            None => write!(f, "{}", self.token),
        }
    }
}

impl FromStr for After {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let mut parts = text.splitn(4, '-');
        let mut number = || {
            let digits = parts.next().filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
            digits.ok_or(BadToken)
        };
        let term = Term(number()?.parse().map_err(|_| BadToken)?);
        let timeline = TimelineId(number()?.parse().map_err(|_| BadToken)?);
        let lsn = parts.next().ok_or(BadToken)?.parse().map_err(|_| BadToken)?;
        let digits = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = |text: &str| Some(text).filter(digits).and_then(|text| text.parse().ok()).ok_or(BadToken);
        let system_id = parts.next().map(number).transpose()?;
        Ok(Self { token: Token { term, timeline, lsn }, system_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::timeline::Fork;
    use cluster::topology::Closed;

    fn after(text: &str) -> After {
        text.parse().unwrap()
    }

    fn token(text: &str) -> Token {
        after(text).token
    }

    #[test]
    fn a_token_is_read_as_it_is_written() {
        for text in [
            "3-3-0/16B3748",
            "18446744073709551615-4294967295-FFFFFFFF/FFFFFFFF-18446744073709551615",
            "1-1-0/0",
            "3-3-0/16B3748-7301234567890123456",
        ] {
            assert_eq!(after(text).to_string(), text);
        }
        for bad in [
            "",
            "3",
            "3-3",
            "3-3-",
            "-3-0/1",
            "3--0/1",
            "+3-3-0/1",
            "3-3-0/1-",
            "3-3-16B3748",
            "3 -3-0/1",
            "x",
            "3-3-0/1-+1",
            "3-3-0/1-1-1",
        ] {
            assert_eq!(bad.parse::<After>(), Err(BadToken), "{bad:?}");
        }
    }

    #[test]
    fn only_what_is_in_this_terms_history_is_still_there() {
        let fork = |timeline, lsn| Fork { timeline: TimelineId(timeline), lsn: Lsn(lsn) };
        let forks = vec![fork(3, 0x100), fork(5, 0x200)];
        let open = Topology { term: Term(7), gate: Gate::Open, forks, ..Topology::unknown() };
        let closed = Topology { gate: Gate::Closed(Closed::Promoting), ..open.clone() };
        let lost = |lsn| Standing::Lost(Gone::Fork(Lsn(lsn)));
        for (text, want, while_closed) in [
            ("7-7-0/999", Standing::Need(Lsn(0x999)), Standing::Need(Lsn(0x999))),
            ("5-5-0/200", Standing::Need(Lsn(0x200)), Standing::Undecided),
            ("5-5-0/201", lost(0x200), Standing::Undecided),
            // An older term's: what counts is where its own timeline was left.
            ("3-3-0/100", Standing::Need(Lsn(0x100)), Standing::Undecided),
            ("3-3-0/180", lost(0x100), Standing::Undecided),
            // A term that is no ancestor, or one that is not remembered.
            ("4-4-0/1", Standing::Lost(Gone::Lineage), Standing::Undecided),
            ("8-8-0/1", Standing::Ahead, Standing::Ahead),
            ("7-5-0/1", Standing::Lost(Gone::Lineage), Standing::Lost(Gone::Lineage)),
        ] {
            let at = Instant::from_millis(1);
            assert_eq!(token(text).standing(&open, at), want, "{text}");
            assert_eq!(token(text).standing(&closed, at), while_closed, "{text}");
        }
        let ours = Topology { system_id: Some(42), ..open.clone() };
        for (text, of, want) in [
            ("7-7-0/1-42", &ours, Standing::Need(Lsn(1))),
            ("7-7-0/1-43", &ours, Standing::Lost(Gone::OtherCluster(42))),
            ("8-8-0/1-43", &ours, Standing::Lost(Gone::OtherCluster(42))),
            // What does not tell, or is not known, is not compared.
            ("7-7-0/1", &ours, Standing::Need(Lsn(1))),
            ("7-7-0/1-43", &open, Standing::Need(Lsn(1))),
        ] {
            assert_eq!(after(text).standing(of, Instant::from_millis(1)), want, "{text}");
        }
        assert_eq!(token("5-5-0/201").carried(&open), Some(Lsn(0x200)));
        assert_eq!(token("3-3-0/80").carried(&open), Some(Lsn(0x80)));
        assert_eq!(token("4-4-0/80").carried(&open), None);
        assert_eq!(token("5-5-0/201").carried(&closed), Some(Lsn(0x201)), "it may survive yet");
    }
}
