//! May a standby's figures be believed? PURE.
//!
//! A standby that receives nothing, or replays nothing on somebody's order, can look as if it had all there is: with
//! its receiver dead, received equals replayed. So lag is known only of a standby that answers, streams the primary's
//! own timeline and replays what it receives.

use super::sample::{Answer, Facts, PrimaryFacts, StandbyFacts};
use cluster::lag::LagUnknown;

/// The standby's positions, if its lag behind `primary` may be computed from them.
///
/// # Errors
/// Why not; the first that applies, in the order in which an operator would look.
pub fn believed<'a>(
    answer: Option<&'a Answer>,
    reachable: bool,
    primary: Option<&PrimaryFacts>,
) -> Result<&'a StandbyFacts, LagUnknown> {
    let standby = match (answer, reachable) {
        (_, false) => return Err(LagUnknown::Unreachable),
        (None, true) => return Err(LagUnknown::NeverSampled),
        (Some(Answer { facts: Facts::Primary(_), .. }), true) => return Err(LagUnknown::NotInRecovery),
        (Some(Answer { facts: Facts::Standby(standby), .. }), true) => standby,
    };
    if standby.pause.is_some() {
        return Err(LagUnknown::ReplayPaused);
    }
    let Some(streams) = standby.streams else { return Err(LagUnknown::StreamBroken) };
    match primary {
        None => Err(LagUnknown::NoPrimarySample),
        Some(primary) if primary.timeline != streams => Err(LagUnknown::StreamBroken),
        Some(_) => Ok(standby),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::lag::Pause;
    use cluster::{Instant, Lsn, TimelineId};

    #[test]
    fn only_a_standby_that_streams_and_replays_the_primarys_timeline_is_believed() {
        let primary =
            PrimaryFacts { timeline: TimelineId(7), insert_lsn: Lsn(9), flush_lsn: Lsn(9), confirmed_lsn: None };
        let streaming = StandbyFacts { streams: Some(TimelineId(7)), ..StandbyFacts::default() };
        let answer = |standby: &StandbyFacts| {
            Some(Answer { sent_at: Instant::from_millis(1), facts: Facts::Standby(standby.clone()) })
        };
        let promoted = Some(Answer { sent_at: Instant::from_millis(1), facts: Facts::Primary(primary.clone()) });
        let paused = StandbyFacts { pause: Some(Pause::Requested), ..streaming.clone() };
        let stopped = StandbyFacts { streams: None, ..streaming.clone() };
        let elsewhere = StandbyFacts { streams: Some(TimelineId(5)), ..streaming.clone() };
        for (answer, reachable, primary, want) in [
            (None, true, Some(&primary), Err(LagUnknown::NeverSampled)),
            (None, false, Some(&primary), Err(LagUnknown::Unreachable)),
            (answer(&streaming), false, Some(&primary), Err(LagUnknown::Unreachable)),
            (promoted, true, Some(&primary), Err(LagUnknown::NotInRecovery)),
            (answer(&paused), true, Some(&primary), Err(LagUnknown::ReplayPaused)),
            (answer(&stopped), true, Some(&primary), Err(LagUnknown::StreamBroken)),
            (answer(&stopped), true, None, Err(LagUnknown::StreamBroken)),
            (answer(&elsewhere), true, Some(&primary), Err(LagUnknown::StreamBroken)),
            (answer(&streaming), true, None, Err(LagUnknown::NoPrimarySample)),
            (answer(&streaming), true, Some(&primary), Ok(&streaming)),
        ] {
            assert_eq!(believed(answer.as_ref(), reachable, primary), want);
        }
    }
}
