//! From samples to lag: PURE.
//!
//! A standby's staleness now is the time since the instant up to which it has everything (`Window::passed`). It is
//! given in two parts, lag when sampled and the sample's age, split at the older of the two newest probes (the
//! standby's and the primary's): as of that instant both were known, and a standby that had caught up then has a lag
//! of exactly zero. The sum does not depend on where it is split.
//!
//! Positions are compared with what the primary had *flushed*: nothing else can reach a standby. A commit that was
//! acknowledged before its flush (synchronous_commit = off) counts from its flush.

use super::sample::{Answer, Facts, PrimaryFacts, StandbyFacts};
use super::window::Window;
use super::{Track, freshness};
use cluster::lag::{Behind, Detail, LagUnknown, StandbyLag, StandbySample, Upstream};
use cluster::{Instant, Lsn, NodeId};

/// Everything known of one standby.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// What the proxy routes by, and the rest of what is known.
    pub lag: StandbyLag,
    /// WAL visible to its readers; `None` while the lag is unknown.
    pub replay: Option<Behind>,
    /// When its newest probe that was answered was sent.
    pub sampled_at: Option<Instant>,
    /// Its data were complete up to this instant when last that could be told. Stays when its stream breaks.
    pub complete_until: Option<Instant>,
}

/// The primary as last sampled, with the window of its samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reference<'a> {
    /// `None` while no primary answers.
    pub(super) facts: Option<&'a PrimaryFacts>,
    pub(super) window: &'a Window,
    /// The cluster's, where it is known.
    pub(super) system_id: Option<u64>,
}

pub(super) fn estimate(node: &NodeId, track: &Track, upstream: Option<Upstream>, primary: Reference<'_>) -> Estimate {
    let answer = track.answer.as_ref();
    let believed = freshness::believed(answer, track.reachable, primary);
    let dated = believed.and_then(|standby| {
        let (newest, flushed) = primary.window.newest().ok_or(LagUnknown::NoPrimarySample)?;
        let sent_at = answer.map_or(newest, |a| a.sent_at).min(newest);
        let behind = |lsn: Lsn| {
            let passed = primary.window.passed(lsn).ok_or(LagUnknown::NoPrimarySample)?;
            Ok((Behind { bytes: flushed.bytes_since(lsn), time: sent_at.since(passed) }, passed))
        };
        let (replay, complete_until) = behind(standby.replayed())?;
        let (flush, write) = (behind(standby.flushed())?.0, behind(standby.written())?.0);
        Ok(Dated { sent_at, replay, flush, write, complete_until })
    });
    let sample = answer.and_then(|a| sample(a, track.up_since, dated.as_ref().ok(), primary));
    let replay_lag = dated.as_ref().map(|d| d.replay.time).map_err(|why| *why);
    let dated = dated.ok();
    let detail = detail(track, dated.as_ref(), upstream);
    Estimate {
        lag: StandbyLag { node: node.clone(), sample, replay_lag, detail },
        replay: dated.as_ref().map(|d| d.replay),
        sampled_at: answer.map(|a| a.sent_at),
        complete_until: dated.map(|d| d.complete_until).or(track.complete_until),
    }
}

/// What is known besides the replay lag. What a node said that does not answer any more is not repeated.
fn detail(track: &Track, dated: Option<&Dated>, upstream: Option<Upstream>) -> Detail {
    let answer = track.answer.as_ref().filter(|_| track.reachable);
    let Some(Answer { sent_at, system_id: _, started: _, facts: Facts::Standby(standby) }) = answer else {
        return Detail::default();
    };
    Detail {
        write: dated.map(|d| d.write),
        flush: dated.map(|d| d.flush),
        upstream,
        // The difference was taken after the question was sent: heard then, or later.
        heard_at: standby.silent.filter(|_| standby.streams.is_some()).map(|silent| *sent_at - silent),
        pause: standby.pause,
        apply_delay: Some(standby.apply_delay).filter(|delay| !delay.is_zero()),
        conflicts: track.detail.as_ref().and_then(|d| d.conflicts).map(|c| c.total()),
        // As the primary is known to.
        sorts_otherwise: false,
    }
}

struct Dated {
    sent_at: Instant,
    replay: Behind,
    flush: Behind,
    write: Behind,
    complete_until: Instant,
}

/// The positions for the snapshot; `None` of a node that is no standby.
fn sample(
    answer: &Answer,
    up_since: Option<Instant>,
    dated: Option<&Dated>,
    primary: Reference<'_>,
) -> Option<StandbySample> {
    let Facts::Standby(standby) = &answer.facts else { return None };
    // What another cluster has replayed means nothing here.
    if freshness::is_foreign(answer, primary.system_id) {
        return None;
    }
    Some(StandbySample {
        receive_lsn: standby.flushed(),
        replay_lsn: standby.replayed(),
        received_timeline: standby.streams,
        replay_lag_bytes: bytes(standby, primary),
        sent_at: dated.map_or(answer.sent_at, |d| d.sent_at),
        asked_at: answer.sent_at,
        up_since: up_since.unwrap_or(answer.sent_at),
        started: answer.started,
    })
}

/// Bytes behind, also while replay is paused or nothing streams: positions of one timeline can be compared. Not of a
/// standby that streams another timeline.
fn bytes(standby: &StandbyFacts, primary: Reference<'_>) -> Option<u64> {
    let facts = primary.facts?;
    let comparable = standby.streams.is_none_or(|timeline| timeline == facts.timeline);
    comparable.then(|| facts.flush_lsn.bytes_since(standby.replayed()))
}
