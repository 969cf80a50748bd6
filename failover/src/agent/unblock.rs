//! A standby asks its primary for WAL only once it has replayed all that it has. Paused replay, or readers in its way,
//! would keep a voter from a new primary for as long as they last, and the new term from opening.

use super::Agent;
use super::rejoin::RejoinError;
use super::sql::{APPLICATION_NAME, Sql, SqlError};
use crate::fsm::unblock::{self, Waits};
use cluster::Lsn;
use std::time::Duration;
use tokio::time::Instant;

/// How long replay is waited for here; whoever needs its end waits further.
const BOUND: Duration = Duration::from_secs(20);

/// Replay as [`Agent::replay_all`] looks at it.
struct Standing {
    replay: Lsn,
    at_end: bool,
    paused: bool,
    version: u32,
    event: String,
    kind: String,
}

const STANDING: &str = "SELECT pg_last_wal_replay_lsn(), pg_is_wal_replay_paused(), a.wait_event, a.wait_event_type, \
 current_setting('server_version_num') \
 FROM (SELECT 1) one LEFT JOIN pg_stat_activity a ON a.backend_type = 'startup'";

impl Standing {
    fn waits(&self) -> Waits<'_> {
        Waits { version: self.version, event: &self.event, kind: &self.kind }
    }
}

impl Agent {
    /// Does this node vote, as far as it knows?
    pub(super) fn votes(&self) -> bool {
        unblock::votes(self.memory().policy.as_ref(), &self.env.config.node, self.env.is_voter())
    }

    /// Let a voter replay what it has: a pause is lifted, readers in the way are ended. Nobody waits for a node without a
    /// vote, so it keeps its pause.
    ///
    /// # Errors
    /// [`RejoinError::ReplayPaused`] for a node without a vote; when PostgreSQL cannot be asked.
    pub(super) async fn replay_all(&self, sql: &Sql) -> Result<(), RejoinError> {
        let (begun, votes) = (Instant::now(), self.votes());
        let (mut moved, mut last) = (begun, None);
        while begun.elapsed() < BOUND {
            let now = self.standing(sql).await?;
            if now.paused && !votes {
                return Err(RejoinError::ReplayPaused { lsn: now.replay });
            }
            if now.at_end || !votes {
                return Ok(());
            }
            if last != Some(now.replay) {
                (moved, last) = (Instant::now(), Some(now.replay));
            }
            if now.paused {
                let node = &self.env.config.node;
                tracing::warn!(%node, lsn = %now.replay, "replay was paused: it goes on, to follow the new primary");
                sql.batch("resuming replay", "SELECT pg_wal_replay_resume()", BOUND).await?;
            } else if unblock::ends_readers(&now.waits(), moved.elapsed()) {
                let node = &self.env.config.node;
                let ended: String = sql.value("ending readers", &end_readers(), BOUND).await?;
                tracing::warn!(%node, lsn = %now.replay, ended, "readers were in the way of replay");
                moved = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn standing(&self, sql: &Sql) -> Result<Standing, SqlError> {
        let bound = self.env.config.probe_timeout.max(Duration::from_secs(2));
        let row = sql.rows("asking for replay", STANDING, bound).await?.into_iter().next().unwrap_or_default();
        let text = |i: usize| row.get(i).and_then(Option::as_deref);
        let event = text(2).unwrap_or_default();
        Ok(Standing {
            replay: text(0).and_then(|t| t.parse().ok()).unwrap_or_default(),
            paused: text(1) == Some("t"),
            at_end: super::freeze::is_at_end(event),
            version: text(4).and_then(|t| t.parse().ok()).unwrap_or_default(),
            event: event.to_owned(),
            kind: text(3).unwrap_or_default().to_owned(),
        })
    }
}

/// End every client's session but ours; gives their number.
pub(super) fn end_readers() -> String {
    format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' \
         AND pid <> pg_backend_pid() AND application_name <> '{APPLICATION_NAME}'"
    )
}
