//! What a node answers when probed: PURE.

use cluster::lag::{Pause, ServerStart};
use cluster::{Endpoint, Instant, Lsn, TimelineId};
use std::time::Duration;

/// An answer, and when its question was sent: every position is from that instant or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When the query was sent.
    pub sent_at: Instant,
    /// The system identifier of the server that answered.
    pub system_id: u64,
    /// When that server was started; `None` where that may not be asked.
    pub started: Option<ServerStart>,
    /// What was answered.
    pub facts: Facts,
}

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    /// It is not in recovery.
    Primary(PrimaryFacts),
    /// It is.
    Standby(StandbyFacts),
}

/// Positions of a node that writes WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrimaryFacts {
    /// The timeline it writes.
    pub timeline: TimelineId,
    /// `pg_current_wal_insert_lsn()`, normalised.
    pub insert_lsn: Lsn,
    /// `pg_current_wal_flush_lsn()`.
    pub flush_lsn: Lsn,
    /// What the standbys that commits wait for have flushed, as many of them as have to; `None` when there are too few.
    pub confirmed_lsn: Option<Lsn>,
    /// That is so of every commit that waits as long as they do by default. Otherwise it may be said of what somebody is yet to be
    /// seen waiting for.
    pub confirmed_by_list: bool,
    /// What they have applied, as many of them.
    pub applied_lsn: Option<Lsn>,
    /// For how long the oldest command runs whose commit waits for standbys; `None` when none does.
    pub waits: Option<Duration>,
}

/// Positions of a node in recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StandbyFacts {
    /// `pg_last_wal_replay_lsn()`; `None` before the first record was replayed.
    pub replay_lsn: Option<Lsn>,
    /// `pg_last_wal_receive_lsn()`: flushed by the WAL receiver; `None` when none ran since the start.
    pub receive_lsn: Option<Lsn>,
    /// `pg_stat_wal_receiver.written_lsn`: handed to the operating system.
    pub written_lsn: Option<Lsn>,
    /// `pg_get_wal_replay_pause_state()`: not replaying what it receives, now or from the next record on.
    pub pause: Option<Pause>,
    /// `recovery_min_apply_delay`; zero when it is not set.
    pub apply_delay: Duration,
    /// The timeline that its WAL receiver streams, only while it streams.
    pub streams: Option<TimelineId>,
    /// `sender_host` and `sender_port` of its WAL receiver.
    pub sender: Option<Endpoint>,
    /// Since the last message of its sender, by the standby's own clock.
    pub silent: Option<Duration>,
}

impl StandbyFacts {
    /// Where replay is; the start of WAL before anything was replayed.
    pub fn replayed(&self) -> Lsn {
        self.replay_lsn.unwrap_or(Lsn::INVALID)
    }

    /// What is on its disk. A WAL receiver that starts anew counts from the start of a segment, behind replay.
    pub fn flushed(&self) -> Lsn {
        self.receive_lsn.unwrap_or(Lsn::INVALID).max(self.replayed())
    }

    /// What was handed to its operating system.
    pub fn written(&self) -> Lsn {
        self.written_lsn.unwrap_or(Lsn::INVALID).max(self.flushed())
    }
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered in time.
    Answered(Answer),
    /// Refused, broken, or not answered in time.
    Failed,
}
