//! What a standby knows of timelines that lead nowhere: see [`crate::fsm::rejoin::leads_elsewhere`].

use super::Agent;
use super::postgres::{self, As, Stop};
use super::rejoin::{RejoinError, Source};
use crate::fsm::rejoin::leads_elsewhere;
use cluster::TimelineId;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A standby that is cut off writes what it has in memory when it stops. Killed, it would replay from its last restartpoint on
/// before it receives again, which may take longer than to let it end; and it is in the way of a freeze only for less than that
/// waits (`freeze::END_BOUND`).
const STOP_BOUND: Duration = Duration::from_secs(10);

impl Agent {
    /// Histories of timelines above `timeline`. An empty file is a stub that only keeps a number from being used.
    pub(super) fn histories_above(&self, timeline: TimelineId) -> io::Result<Vec<(TimelineId, PathBuf)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.env.layout.data().join("pg_wal"))? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|n| n.strip_suffix(".history"));
            let Some(number) = number.and_then(|n| u32::from_str_radix(n, 16).ok()).map(TimelineId) else { continue };
            if number > timeline && entry.metadata()?.len() > 0 {
                found.push((number, entry.path()));
            }
        }
        Ok(found)
    }

    /// Start a standby that was cut off again, without the histories of other lines than the source's. False: it has none.
    /// Once for a term: the source may have such a file, too, and hand it on, but with its own behind it, which
    /// PostgreSQL prefers.
    pub(super) async fn start_without_other_lines(
        &self,
        source: &Source,
        timeline: TimelineId,
    ) -> Result<bool, RejoinError> {
        if self.lines_left_for.load(Ordering::Acquire) == source.term.0 {
            return Ok(false);
        }
        let file = |source| RejoinError::File { what: "histories of other timelines", source };
        let mut others = self.histories_above(timeline).map_err(file)?;
        others.retain(|(number, _)| leads_elsewhere(*number, timeline, &source.history));
        if others.is_empty() {
            return Ok(false);
        }
        tracing::warn!(
            node = %self.env.config.node, term = source.term.0, primary = %source.node, files = ?others,
            "starting postgres again without the histories of terms that were given up"
        );
        // A freeze for a newer term waits for this.
        postgres::stop(&self.env, Stop::Fast(STOP_BOUND.min(self.env.config.stop_timeout))).await?;
        for (_, path) in &others {
            postgres::remove(path).map_err(file)?;
        }
        self.start_as(As::Standby, source.term).await?;
        self.lines_left_for.store(source.term.0, Ordering::Release);
        self.look_again(self.env.config.probe_timeout).await;
        Ok(true)
    }
}
