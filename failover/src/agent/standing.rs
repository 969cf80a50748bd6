//! Connections to our own PostgreSQL that stand: while a primary is replaced clients wait for each that is made anew.

use super::Agent;
use super::sql::{FULL, Replication, Sql, SqlError};
use cluster::{Lsn, TimelineId};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One that does not answer within this is not used.
const QUICK: Duration = Duration::from_millis(200);
/// Until who was ended has left.
const LEAVING: Duration = Duration::from_millis(20);

/// What stands.
#[derive(Default)]
pub(super) struct Standing {
    /// The one by which PostgreSQL is looked at.
    looking: Mutex<Option<Arc<Sql>>>,
    /// The one that a freeze has asked for the timeline, for the promotion that follows.
    replication: Mutex<Option<Replication>>,
}

impl Standing {
    /// PostgreSQL is looked at by this one from now on.
    pub(super) fn look_by(&self, sql: Option<&Arc<Sql>>) {
        *self.looking.lock().unwrap_or_else(PoisonError::into_inner) = sql.cloned();
    }

    pub(super) fn take_replication(&self) -> Option<Replication> {
        self.replication.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn keep_replication(&self, opened: Option<Replication>) {
        *self.replication.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    }
}

impl Agent {
    /// A connection to our own PostgreSQL that has answered just now, or a new one.
    pub(super) async fn own_sql(&self) -> Result<Arc<Sql>, SqlError> {
        let standing = self.standing.looking.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sql) = standing.filter(|s| !s.is_closed())
            && sql.rows("asking whether it answers", "SELECT 1", QUICK).await.is_ok()
        {
            return Ok(sql);
        }
        Sql::local(&self.env, "postgres", self.env.config.probe_timeout).await.map(Arc::new)
    }

    /// [`Replication::identify`] by that connection, if it answers; otherwise by a new one, which takes its place.
    pub(super) async fn identify(&self, opened: &mut Option<Replication>) -> Result<(TimelineId, Lsn), SqlError> {
        if let Some(mut standing) = opened.take()
            && let Ok(found) = standing.identify(QUICK).await
        {
            *opened = Some(standing);
            return Ok(found);
        }
        let bound = self.env.config.probe_timeout;
        let found = opened.insert(self.replication(bound).await?).identify(bound).await;
        if found.is_err() {
            *opened = None;
        }
        found
    }

    /// A new one. Where strangers have taken all places for receivers of WAL one of them leaves: no failover would be
    /// possible otherwise, and whoever receives from a standby has no part in any commit.
    async fn replication(&self, bound: Duration) -> Result<Replication, SqlError> {
        let begun = tokio::time::Instant::now();
        loop {
            match Replication::open(&self.env, bound).await {
                Err(error) if error.code() == Some(FULL) && begun.elapsed() < bound => {
                    self.make_room(&*self.own_sql().await?).await;
                    tokio::time::sleep(LEAVING).await;
                }
                other => return other,
            }
        }
    }
}
