//! What lagmon knows about each node, as the proxy, the metrics and the operators read it.
//!
//! Times are differences on one host's clock: no two hosts' clocks are ever compared (the LSN clock, see lagmon's
//! `model`). A standby's staleness at a moment is its replay lag when sampled plus the sample's age.

use crate::clock::Instant;
use crate::lsn::Lsn;
use crate::node::NodeId;
use crate::term::Term;
use crate::timeline::TimelineId;
use std::time::Duration;

/// One round of samples, published whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LagSnapshot {
    /// The term whose primary was sampled.
    pub term: Term,
    /// The primary's newest sample; `None` while no primary answers.
    pub primary: Option<PrimarySample>,
    /// One entry per standby known to the topology, ordered by name.
    pub standbys: Vec<StandbyLag>,
    /// No later term was open at this instant, as the voters prove that were seen receiving WAL from the primary
    /// ([`crate::topology::Quorum::proven`]). `None`: that was never proven.
    pub proven_at: Option<Instant>,
}

/// Where the primary's WAL ended.
#[derive(Clone, Debug, PartialEq)]
pub struct PrimarySample {
    /// The primary.
    pub node: NodeId,
    /// The timeline it writes.
    pub timeline: TimelineId,
    /// `pg_current_wal_insert_lsn()`, normalised: at or past the end of every commit acknowledged before `sent_at`.
    pub insert_lsn: Lsn,
    /// `pg_current_wal_flush_lsn()`.
    pub flush_lsn: Lsn,
    /// When the query was sent: anything acknowledged before this instant is at or below `insert_lsn`.
    pub sent_at: Instant,
    /// What was flushed before this instant has been confirmed by the standbys that commits wait for, so the primary
    /// shows it, as any standby that has replayed it does. `None`: not known.
    pub confirmed_until: Option<Instant>,
    /// What was flushed before this instant those standbys have flushed. Later than the other while commits wait for them to
    /// apply it. `None`: not known.
    pub flushed_until: Option<Instant>,
    /// What those standbys have applied, as the primary knows: no commit before it waits for anything any more. `None`: not
    /// known.
    pub applied_lsn: Option<Lsn>,
}

/// One standby's position and lag.
#[derive(Clone, Debug, PartialEq)]
pub struct StandbyLag {
    /// The standby.
    pub node: NodeId,
    /// The newest sample that was answered, with positions; `None` when none ever was in this term.
    pub sample: Option<StandbySample>,
    /// Replay lag when sampled, or why it cannot be told.
    pub replay_lag: Result<Duration, LagUnknown>,
    /// What else is known of it. No route depends on it, but on `sorts_otherwise`.
    pub detail: Detail,
}

/// How far a position is behind the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Bytes, from the position to what the primary was last known to have flushed.
    pub bytes: u64,
    /// Time by the LSN clock.
    pub time: Duration,
}

/// What people and the throttle want to know of a standby besides its replay lag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// WAL handed to its operating system; `None` while the lag is unknown, as for the next.
    pub write: Option<Behind>,
    /// WAL on its disk.
    pub flush: Option<Behind>,
    /// Where it streams from, while it streams.
    pub upstream: Option<Upstream>,
    /// The last message of its sender came at this instant, by the difference of two times on the standby's own clock.
    pub heard_at: Option<Instant>,
    /// Replay is paused, or was asked to.
    pub pause: Option<Pause>,
    /// `recovery_min_apply_delay`, when it is set.
    pub apply_delay: Option<Duration>,
    /// Statements cancelled by recovery conflicts since its statistics were reset.
    pub conflicts: Option<u64>,
    /// Its collations are of other versions than the primary's: what it reads by an index may be wrong. False as well while
    /// one of them has not told yet.
    pub sorts_otherwise: bool,
}

/// Where a standby's WAL comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The primary of the term.
    Primary,
    /// Another standby: it is a cascade, behind by at least what that one is.
    Cascade(NodeId),
    /// A sender that is no member of the cluster, as the standby names it.
    Elsewhere(String),
}

impl Upstream {
    /// All kinds.
    pub const KINDS: [&'static str; 3] = ["primary", "cascade", "elsewhere"];

    /// The kind as one word, one of [`Self::KINDS`], for metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Primary => Self::KINDS[0],
            Self::Cascade(_) => Self::KINDS[1],
            Self::Elsewhere(_) => Self::KINDS[2],
        }
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Cascade(node) => write!(f, "{node}"),
            Self::Elsewhere(sender) => f.write_str(sender),
        }
    }
}

/// `pg_get_wal_replay_pause_state()`. Before PostgreSQL 14 a request cannot be told from a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Asked for; replay stops at the next record.
    Requested,
    /// Nothing is replayed.
    Paused,
}

impl Pause {
    /// PostgreSQL's words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "pause requested",
            Self::Paused => "paused",
        }
    }
}

/// Positions of a standby at one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct StandbySample {
    /// Received and flushed to disk: `pg_last_wal_receive_lsn()`, or the replay position when greater.
    pub receive_lsn: Lsn,
    /// `pg_last_wal_replay_lsn()`.
    pub replay_lsn: Lsn,
    /// The timeline its WAL receiver is on, while it streams.
    pub received_timeline: Option<TimelineId>,
    /// Bytes between the primary's flush position known then and `replay_lsn`.
    pub replay_lag_bytes: Option<u64>,
    /// The older of when it and the primary were asked.
    pub sent_at: Instant,
    /// When it was asked. A server that was connected to before, and is still there, is the one that answered.
    pub asked_at: Instant,
    /// It was not restarted since: no probe has failed from this instant on.
    pub up_since: Instant,
    /// Which server has answered; `None` where that may not be asked.
    pub started: Option<ServerStart>,
}

/// When a server was started, in microseconds since 1970 by its own clock. Of two servers that answer to one name, at once or
/// one after the other, it tells which is which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerStart(pub i64);

impl ServerStart {
    /// The expression that asks a server for it, whatever the session's settings are. The number is a bigint.
    pub const EXPRESSION: &str = "(pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) \
                                  OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8";
}

/// Why a standby's lag is not known. A standby with any of these is never fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LagUnknown {
    /// No sample yet in this term.
    NeverSampled,
    /// The last probe failed or was not answered in time.
    Unreachable,
    /// Its WAL receiver does not stream, or streams a timeline that is not the primary's.
    StreamBroken,
    /// Replay is paused.
    ReplayPaused,
    /// No sample of the primary old or new enough to date the standby's position.
    NoPrimarySample,
    /// The node is not in recovery although the topology calls it a standby.
    NotInRecovery,
    /// Its system identifier is another than the cluster's: what answers at its address is no member.
    OtherCluster,
}

impl LagUnknown {
    /// The reason as one snake_case word, for logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NeverSampled => "never_sampled",
            Self::Unreachable => "unreachable",
            Self::StreamBroken => "stream_broken",
            Self::ReplayPaused => "replay_paused",
            Self::NoPrimarySample => "no_primary_sample",
            Self::NotInRecovery => "not_in_recovery",
            Self::OtherCluster => "other_cluster",
        }
    }
}

/// The verdict on a standby against a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Staleness within the budget.
    Fresh {
        /// Replay lag plus sample age.
        staleness: Duration,
    },
    /// Staleness known and beyond the budget.
    Lagging {
        /// Replay lag plus sample age.
        staleness: Duration,
    },
    /// Not known: treated as beyond every budget.
    Unknown {
        /// Why.
        why: LagUnknown,
    },
}

impl StandbyLag {
    /// Replay lag plus the sample's age at `now`.
    ///
    /// # Errors
    /// Why the lag is unknown.
    pub fn staleness_at(&self, now: Instant) -> Result<Duration, LagUnknown> {
        let lag = self.replay_lag?;
        let sample = self.sample.as_ref().ok_or(LagUnknown::NeverSampled)?;
        Ok(lag + now.since(sample.sent_at))
    }

    /// The verdict at `now` against `budget`.
    pub fn freshness_at(&self, now: Instant, budget: Duration) -> Freshness {
        match self.staleness_at(now) {
            Ok(staleness) if staleness <= budget => Freshness::Fresh { staleness },
            Ok(staleness) => Freshness::Lagging { staleness },
            Err(why) => Freshness::Unknown { why },
        }
    }
}

impl LagSnapshot {
    /// The entry of `node`.
    pub fn standby(&self, node: &NodeId) -> Option<&StandbyLag> {
        self.standbys.iter().find(|s| &s.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(replay_lag: Result<Duration, LagUnknown>) -> StandbyLag {
        let sample = StandbySample {
            receive_lsn: Lsn(10),
            replay_lsn: Lsn(10),
            received_timeline: Some(TimelineId(1)),
            replay_lag_bytes: Some(0),
            sent_at: Instant::from_millis(1000),
            asked_at: Instant::from_millis(1000),
            up_since: Instant::from_millis(0),
            started: None,
        };
        StandbyLag { node: "n2".parse().unwrap(), sample: Some(sample), replay_lag, detail: Detail::default() }
    }

    #[test]
    fn staleness_is_replay_lag_plus_the_age_of_the_sample() {
        let s = lag(Ok(Duration::from_millis(300)));
        let (now, budget) = (Instant::from_millis(1200), Duration::from_millis(500));
        assert_eq!(s.freshness_at(now, budget), Freshness::Fresh { staleness: budget });
        let later = Instant::from_millis(1201);
        assert_eq!(s.freshness_at(later, budget), Freshness::Lagging { staleness: Duration::from_millis(501) });
    }

    #[test]
    fn an_unknown_lag_is_within_no_budget() {
        let s = lag(Err(LagUnknown::StreamBroken));
        let verdict = s.freshness_at(Instant::from_millis(1000), Duration::MAX);
        assert_eq!(verdict, Freshness::Unknown { why: LagUnknown::StreamBroken });
    }
}
