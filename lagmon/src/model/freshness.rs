//! May a standby's figures be believed? PURE.
//!
//! A standby that receives nothing, or replays nothing on somebody's order, can look as if it had all there is: with
//! its receiver dead, received equals replayed. So lag is known only of a standby that answers, streams the primary's
//! own timeline and replays what it receives.

use super::estimate::Reference;
use super::sample::{Answer, Facts, StandbyFacts};
use cluster::lag::LagUnknown;

/// The standby's positions, if its lag behind `primary` may be computed from them.
///
/// # Errors
/// Why not; the first that applies, in the order in which an operator would look.
pub(super) fn believed<'a>(
    answer: Option<&'a Answer>,
    reachable: bool,
    primary: Reference<'_>,
) -> Result<&'a StandbyFacts, LagUnknown> {
    let standby = match (answer, reachable) {
        (_, false) => return Err(LagUnknown::Unreachable),
        (None, true) => return Err(LagUnknown::NeverSampled),
        (Some(answer), true) if is_foreign(answer, primary.system_id) => return Err(LagUnknown::OtherCluster),
        (Some(Answer { facts: Facts::Primary(_), .. }), true) => return Err(LagUnknown::NotInRecovery),
        (Some(Answer { facts: Facts::Standby(standby), .. }), true) => standby,
    };
    if standby.pause.is_some() {
        return Err(LagUnknown::ReplayPaused);
    }
    let Some(streams) = standby.streams else { return Err(LagUnknown::StreamBroken) };
    match primary.facts {
        None => Err(LagUnknown::NoPrimarySample),
        Some(primary) if primary.timeline != streams => Err(LagUnknown::StreamBroken),
        Some(_) => Ok(standby),
    }
}

/// Has a server of another cluster answered?
pub(super) fn is_foreign(answer: &Answer, system_id: Option<u64>) -> bool {
    system_id.is_some_and(|id| id != answer.system_id)
}

#[cfg(test)]
mod tests {
    use super::super::sample::PrimaryFacts;
    use super::super::window::Window;
    use super::*;
    use cluster::lag::Pause;
    use cluster::{Instant, Lsn, TimelineId};

    #[test]
    fn only_a_standby_that_streams_and_replays_the_primarys_timeline_is_believed() {
        let (insert_lsn, flush_lsn) = (Lsn(9), Lsn(9));
        let primary = PrimaryFacts { timeline: TimelineId(7), insert_lsn, flush_lsn, ..PrimaryFacts::default() };
        let streaming = StandbyFacts { streams: Some(TimelineId(7)), ..StandbyFacts::default() };
        let answer = |standby: &StandbyFacts| {
            let facts = Facts::Standby(standby.clone());
            Some(Answer { sent_at: Instant::from_millis(1), system_id: 5, started: None, facts })
        };
        let promoted = Facts::Primary(primary.clone());
        let promoted = Some(Answer { sent_at: Instant::from_millis(1), system_id: 5, started: None, facts: promoted });
        let window = Window::new(4);
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
            let reference = |system_id| Reference { facts: primary, window: &window, system_id };
            for system_id in [None, Some(5)] {
                assert_eq!(believed(answer.as_ref(), reachable, reference(system_id)), want);
            }
            if answer.is_some() && reachable {
                let foreign = believed(answer.as_ref(), reachable, reference(Some(6)));
                assert_eq!(foreign, Err(LagUnknown::OtherCluster), "whatever it says of itself");
            }
        }
    }
}
