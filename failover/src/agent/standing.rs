//! Connections to our own PostgreSQL that stand: while a primary is replaced clients wait for each that is made anew.

use super::Agent;
use super::sql::{FULL, Replication, Row, Sql, SqlError};
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
        match self.standing_sql("SELECT 1").await {
            Some((sql, _)) => Ok(sql),
            None => Sql::local(&self.env, "postgres", self.env.config.probe_timeout).await.map(Arc::new),
        }
    }

    /// The same, which has told whether PostgreSQL is in recovery; by a new one within `bound`.
    pub(super) async fn own_recovery(&self, bound: Duration) -> Result<(Arc<Sql>, Result<bool, SqlError>), SqlError> {
        let query = "SELECT pg_is_in_recovery()";
        if let Some((sql, rows)) = self.standing_sql(query).await
            && let Some(told) = rows.first().and_then(|r| r.first()?.as_deref())
        {
            return Ok((sql, Ok(told == "t")));
        }
        let sql = Sql::local(&self.env, "postgres", self.env.config.probe_timeout).await?;
        let told = sql.value::<String>("asking for recovery", query, bound).await;
        Ok((Arc::new(sql), told.map(|t| t == "t")))
    }

    /// The connection that stands, if there is one and it answers that.
    async fn standing_sql(&self, query: &str) -> Option<(Arc<Sql>, Vec<Row>)> {
        let standing = self.standing.looking.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sql = standing.filter(|s| !s.is_closed())?;
        let rows = sql.rows("asking whether it answers", query, QUICK).await.ok()?;
        Some((sql, rows))
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
