//! Which of two agents of one name may be on record for their node. PURE.
//!
//! An agent that is alone must get there by itself whatever was there before it: its node is started again, moves or is made anew. So
//! nobody waits for one that was not heard. One that was heard may only be started again, or be cut off for a moment from the agent
//! that asks, and what the node has acknowledged is there: its place is not taken before it was away for long.

use cluster::Instant;
use std::time::Duration;

/// Another agent that is on record for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namesake {
    /// There is none, or no agent listens where it was.
    Gone,
    /// It does not answer.
    Silent,
    /// It answers.
    Lives,
}

/// Whose place the record is, as far as this agent has looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// It has not looked yet.
    #[default]
    Unknown,
    /// Nobody was heard there who was there before it.
    Own,
    /// Another agent was heard there, and this one has not been there since it was started: what it receives must not count for
    /// the node.
    Others,
}

/// So long one that has lived must have been away before its place is taken. An agent is started again sooner.
const AWAY: Duration = Duration::from_secs(60);
/// And one that was never heard, where the record was this agent's before: etcd was restored, or the two cannot reach each other.
const UNHEARD: Duration = Duration::from_secs(10);
/// Of the time between two looks so much counts, lest one that stood still takes what it did not hear for silence.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

/// What an agent knows of another one that is on record for its node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Other {
    /// It has answered, and its place was not taken since.
    lived: bool,
    /// When it was looked for last, and for how long it had not answered then.
    away: Option<(Instant, Duration)>,
    /// This agent has been on record since it was started.
    was_on_record: bool,
}

impl Other {
    /// It was looked for: may the agent put itself on record? `first`: since it was started, or the record was lost.
    pub fn may_register(&mut self, found: Namesake, first: bool, now: Instant) -> bool {
        if found == Namesake::Lives {
            (self.lived, self.away) = (true, None);
            return false;
        }
        let away = self.away.map_or(Duration::ZERO, |(at, away)| away + now.since(at).min(BETWEEN_LOOKS));
        let enough = if self.lived { AWAY } else { UNHEARD };
        let may = away >= enough || !self.lived && (first || found == Namesake::Gone);
        self.lived &= !may;
        self.away = (!may).then_some((now, away));
        may
    }

    /// The agent is on record.
    pub fn registered(&mut self) {
        self.was_on_record = true;
    }

    /// It was heard, and its place was not taken since.
    pub fn was_heard(&self) -> bool {
        self.lived
    }

    /// Once it was looked for.
    pub fn place(&self) -> Place {
        if self.lived && !self.was_on_record { Place::Others } else { Place::Own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Namesake::{Gone, Lives, Silent};

    const FIRST: bool = true;

    /// What comes of looking once a second from `from` on, for so many seconds.
    fn looks(other: &mut Other, found: Namesake, first: bool, seconds: std::ops::Range<u64>) -> Vec<bool> {
        seconds.map(|s| other.may_register(found, first, Instant::from_millis(1000 * s))).collect()
    }

    #[test]
    fn an_agent_that_is_alone_is_on_record_at_once() {
        for found in [Gone, Silent] {
            let mut other = Other::default();
            assert_eq!(looks(&mut other, found, FIRST, 0..1), [true], "{found:?}: it was started again, or has moved");
            assert_eq!(other.place(), Place::Own);
        }
    }

    #[test]
    fn nobody_takes_the_place_of_a_living_agent_of_the_same_name() {
        let mut other = Other::default();
        assert!(!looks(&mut other, Lives, FIRST, 0..300).contains(&true));
        assert_eq!(other.place(), Place::Others);
    }

    #[test]
    fn one_that_lived_is_given_the_time_to_be_started_again() {
        for found in [Gone, Silent] {
            let mut other = Other::default();
            looks(&mut other, Lives, FIRST, 0..1);
            assert!(!looks(&mut other, found, FIRST, 1..60).contains(&true), "{found:?}");
            assert_eq!(other.place(), Place::Others);
            looks(&mut other, Lives, FIRST, 60..61);
            assert!(!looks(&mut other, found, FIRST, 61..121).contains(&true), "it was back in between");
        }
    }

    #[test]
    fn nobody_is_kept_out_for_ever_by_one_that_is_gone() {
        for found in [Gone, Silent] {
            let mut other = Other::default();
            looks(&mut other, Lives, FIRST, 0..1);
            let may = looks(&mut other, found, FIRST, 1..62);
            assert_eq!(may.iter().position(|may| *may), Some(60), "{found:?}");
            assert_eq!(other.place(), Place::Own);
        }
        // Nor by what an etcd that was restored tells of, at an address that does not answer.
        let mut other = Other::default();
        assert_eq!(looks(&mut other, Silent, !FIRST, 0..61).iter().position(|may| *may), Some(10));
        assert!(!other.was_heard());
        assert_eq!(looks(&mut Other::default(), Gone, !FIRST, 0..1), [true]);
    }

    #[test]
    fn what_was_not_heard_while_the_agent_stood_still_is_no_absence() {
        let mut other = Other::default();
        looks(&mut other, Lives, FIRST, 0..1);
        looks(&mut other, Silent, FIRST, 1..2);
        assert_eq!(looks(&mut other, Silent, FIRST, 3600..3602), [false, false]);
    }

    #[test]
    fn who_has_been_on_record_goes_on_when_another_takes_its_place() {
        let mut other = Other::default();
        looks(&mut other, Gone, FIRST, 0..1);
        other.registered();
        looks(&mut other, Lives, !FIRST, 1..9);
        assert_eq!(other.place(), Place::Own);
    }
}
