//! Which of two agents of one name may be on record for their node. PURE.
//!
//! An agent that is alone must get there by itself whatever was there before it: its node is started again, moves or is made anew. So
//! nobody waits for one that was not heard. One that was heard may only be started again, or be cut off for a moment from the agent
//! that asks, and what the node has acknowledged is there: its place is not taken before it was away for long. Two that cannot ask
//! each other learn of each other by the record, which the one has written behind the other.

use cluster::Instant;
use std::time::Duration;

/// Another agent that is on record for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namesake {
    /// There is none, or another node's agent or this one itself is where it was.
    Gone,
    /// Nobody listens where it was.
    Refused,
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
/// One that only has written: it was started by mistake, say, with another secret, and stopped. Until its place is taken orders for the
/// node go there.
const REFUSED: Duration = Duration::from_secs(10);
/// Of the time between two looks so much counts, lest one that stood still takes what it did not hear for silence.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

/// What an agent knows of another one that is on record for its node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Other {
    /// It has answered, or written, and its place was not taken since.
    lived: bool,
    /// It has answered since its place was taken last.
    answered: bool,
    /// When it was looked for last, and for how long it had not answered then.
    away: Option<(Instant, Duration)>,
    /// Of that, for how long nobody had listened there.
    refused: Duration,
    /// The revision at which this agent put itself on record, since it was started, or at which it found that another one had
    /// since then.
    written: Option<i64>,
}

impl Other {
    /// It was looked for: may the agent put itself on record? `written`: the revision at which the other one did, if there is
    /// one. What an etcd tells of that was restored is older than what this agent has written: nobody lives by that.
    pub fn may_register(&mut self, found: Namesake, written: Option<i64>, now: Instant) -> bool {
        let behind_us = self.written.zip(written).is_some_and(|(own, other)| other > own);
        if behind_us {
            self.written = written;
        }
        if behind_us || found == Namesake::Lives {
            self.answered |= found == Namesake::Lives;
            (self.lived, self.away, self.refused) = (true, None, Duration::ZERO);
            return false;
        }
        let passed = self.away.map_or(Duration::ZERO, |(at, _)| now.since(at).min(BETWEEN_LOOKS));
        let away = self.away.map_or(Duration::ZERO, |(_, away)| away + passed);
        self.refused = if found == Namesake::Refused { self.refused + passed } else { Duration::ZERO };
        let may = !self.lived || away >= AWAY || (!self.answered && self.refused >= REFUSED);
        if may {
            (self.lived, self.answered, self.refused) = (false, false, Duration::ZERO);
        }
        self.away = (!may).then_some((now, away));
        may
    }

    /// The agent is on record, at this revision.
    pub fn registered(&mut self, revision: i64) {
        self.written = Some(revision);
    }

    /// It was heard or read of, and its place was not taken since.
    pub fn was_heard(&self) -> bool {
        self.lived
    }

    /// Once it was looked for.
    pub fn place(&self) -> Place {
        if self.lived && self.written.is_none() { Place::Others } else { Place::Own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Namesake::{Gone, Lives, Refused, Silent};

    /// Another one's, put there before this agent was.
    const WRITTEN: Option<i64> = Some(5);

    /// What comes of looking once a second from `from` on, for so many seconds.
    fn looks(other: &mut Other, found: Namesake, written: Option<i64>, seconds: std::ops::Range<u64>) -> Vec<bool> {
        seconds.map(|s| other.may_register(found, written, Instant::from_millis(1000 * s))).collect()
    }

    #[test]
    fn an_agent_that_is_alone_is_on_record_at_once() {
        for found in [Gone, Refused, Silent] {
            let mut other = Other::default();
            assert_eq!(
                looks(&mut other, found, WRITTEN, 0..1),
                [true],
                "{found:?}: it was started again, or has moved"
            );
            assert_eq!(other.place(), Place::Own);
        }
    }

    #[test]
    fn nobody_takes_the_place_of_a_living_agent_of_the_same_name() {
        let mut other = Other::default();
        assert!(!looks(&mut other, Lives, WRITTEN, 0..300).contains(&true));
        assert_eq!(other.place(), Place::Others);
    }

    #[test]
    fn one_that_lived_is_given_the_time_to_be_started_again() {
        for found in [Gone, Refused, Silent] {
            let mut other = Other::default();
            looks(&mut other, Lives, WRITTEN, 0..1);
            assert!(!looks(&mut other, found, WRITTEN, 1..60).contains(&true), "{found:?}");
            assert_eq!(other.place(), Place::Others);
            looks(&mut other, Lives, WRITTEN, 60..61);
            assert!(!looks(&mut other, found, WRITTEN, 61..121).contains(&true), "it was back in between");
        }
    }

    #[test]
    fn nobody_is_kept_out_for_ever_by_one_that_is_gone() {
        for found in [Gone, Refused, Silent] {
            let mut other = Other::default();
            looks(&mut other, Lives, WRITTEN, 0..1);
            let may = looks(&mut other, found, WRITTEN, 1..62);
            assert_eq!(may.iter().position(|may| *may), Some(60), "{found:?}");
            assert_eq!(other.place(), Place::Own);
        }
    }

    #[test]
    fn what_a_restored_etcd_tells_of_keeps_nobody_out() {
        for found in [Gone, Refused, Silent] {
            let mut other = Other::default();
            looks(&mut other, Gone, None, 0..1);
            other.registered(7);
            assert_eq!(looks(&mut other, found, WRITTEN, 1..2), [true], "{found:?}");
            assert!(!other.was_heard());
        }
    }

    #[test]
    fn two_that_cannot_ask_each_other_are_told_by_what_they_write() {
        // At an address that is each one's own, say, or with another secret.
        for found in [Gone, Silent] {
            let mut other = Other::default();
            looks(&mut other, Gone, None, 0..1);
            other.registered(7);
            let may = looks(&mut other, found, Some(8), 1..63);
            assert_eq!(may.iter().position(|may| *may), Some(61), "{found:?}: nor do they write by turns");
            other.registered(9);
            assert!(!other.was_heard());
            assert_eq!(looks(&mut other, found, Some(10), 63..64), [false]);
            assert!(other.was_heard());
            assert_eq!(other.place(), Place::Own, "it has been there");
        }
    }

    #[test]
    fn one_that_has_only_written_is_waited_for_while_somebody_may_be_there() {
        let mut other = Other::default();
        looks(&mut other, Gone, None, 0..1);
        other.registered(7);
        let may = looks(&mut other, Refused, Some(8), 1..13);
        assert_eq!(may.iter().position(|may| *may), Some(11), "nobody listens there");
        // Listened to in between, or heard: as long as any.
        other.registered(9);
        assert!(!looks(&mut other, Refused, Some(10), 13..24).contains(&true));
        assert!(!looks(&mut other, Silent, Some(10), 24..25).contains(&true));
        assert!(!looks(&mut other, Refused, Some(10), 25..34).contains(&true));
        looks(&mut other, Lives, Some(10), 35..36);
        let may = looks(&mut other, Refused, Some(10), 36..97);
        assert_eq!(may.iter().position(|may| *may), Some(60));
    }

    #[test]
    fn what_was_not_heard_while_the_agent_stood_still_is_no_absence() {
        let mut other = Other::default();
        looks(&mut other, Lives, WRITTEN, 0..1);
        looks(&mut other, Silent, WRITTEN, 1..2);
        assert_eq!(looks(&mut other, Silent, WRITTEN, 3600..3602), [false, false]);
    }

    #[test]
    fn who_has_been_on_record_goes_on_when_another_takes_its_place() {
        let mut other = Other::default();
        looks(&mut other, Gone, None, 0..1);
        other.registered(7);
        looks(&mut other, Lives, Some(8), 1..9);
        assert_eq!(other.place(), Place::Own);
    }
}
