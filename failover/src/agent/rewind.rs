//! Repairing the data directory: pg_rewind, or a fresh copy by pg_basebackup.
//!
//! Both are marked so that an interruption is noticed: a rewind by a mark in the agent's memory (such a directory is
//! never started, only replaced), a copy by being made beside and renamed when it is whole. The same mark without an
//! examined tail is that of a directory that is whole and cannot be started under the primary there is.

use super::Agent;
use super::env::REPLICATION_USER;
use super::layout::fsync_dir;
use super::left_memory;
use super::postgres::{self, ServerError};
use super::recovery_conf::{conninfo, conninfo_of_copy};
use super::rejoin::{RejoinError, Source};
use super::sql::{Sql, SqlError};
use super::tool::{self, ToolError};
use crate::api::Position;
use crate::fsm::unstarted::{Failing, NotYet, Reason, Unstarted};
use crate::record::MemberRecord;
use cluster::timeline::Fork;
use cluster::{Endpoint, Lsn, NodeId, Term, TimelineId};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Bound on one question to a standby.
const ASK_BOUND: Duration = Duration::from_secs(3);
/// Bound on a rewind.
const REWIND_BOUND: Duration = Duration::from_secs(6 * 3600);
/// A copy that has said nothing for so long does not get on: what it writes is synced to disk at its end.
const CLONE_SILENCE: Duration = Duration::from_secs(2 * 3600);
/// Bound on finding out who is primary when a copy is whole.
const SOURCE_BOUND: Duration = Duration::from_secs(60);
/// Between two attempts at that.
const SOURCE_PAUSE: Duration = Duration::from_millis(500);
/// Bound on the source's checkpoint after its promotion, which its agent asks for.
const CHECKPOINT_BOUND: Duration = Duration::from_secs(120);
/// What pg_rewind prints before it changes the first file.
const CHANGES_BEGIN: &str = "rewinding from last common checkpoint";

/// Clears the flag that tells a freeze not to wait.
struct Replacing<'a>(&'a Agent);

impl<'a> Replacing<'a> {
    fn begin(agent: &'a Agent) -> Self {
        agent.replacing.store(true, Ordering::Release);
        Self(agent)
    }
}

impl Drop for Replacing<'_> {
    fn drop(&mut self) {
        self.0.replacing.store(false, Ordering::Release);
    }
}

impl Agent {
    /// Rewind to `parted` and start under the source. PostgreSQL is stopped, its tail was examined.
    pub(super) async fn rewind(&self, source: &Source, parted: Fork) -> Result<(), RejoinError> {
        let replacing = Replacing::begin(self);
        self.rejoining("rewinding");
        self.source_has_checkpointed(source).await?;
        let file = |what| move |source| RejoinError::File { what, source };
        // Single-user recovery, which pg_rewind runs when needed, refuses to run as a standby.
        for signal in ["standby.signal", "recovery.signal"] {
            postgres::remove(&self.env.layout.data().join(signal))
                .map_err(file("standby.signal could not be removed"))?;
        }
        self.remember(|m| (m.rewinding, m.condemned) = (true, true)).map_err(file("the mark could not be written"))?;
        tracing::info!(
            node = %self.env.config.node, term = source.term.0, timeline = parted.timeline.0, lsn = %parted.lsn, "rewinding"
        );
        let changed = AtomicBool::new(false);
        // Until then its WAL can be examined for another primary; pg_rewind ends with the agent, so it changes nothing unseen.
        let spoil = || self.remember(|m| m.condemned = false).map_err(file("the mark could not be written"));
        let look = |line: &str| {
            if line.contains(CHANGES_BEGIN)
                && !changed.swap(true, Ordering::Relaxed)
                && let Err(error) = spoil()
            {
                tracing::error!(node = %self.env.config.node, %error, "the rewind's mark could not be written");
            }
        };
        let mut command = self.env.program("pg_rewind");
        // Up to 13 it makes a temporary table at the source.
        command.env("PGOPTIONS", cluster::sessions::unhurried(self.env.version));
        command.arg("--target-pgdata").arg(self.env.layout.data());
        command.arg("--source-server").arg(conninfo(&self.env, &source.endpoint));
        if self.env.version >= 150_000 {
            command.arg("--config-file").arg(self.env.layout.config_file());
        }
        if let Err(error) = tool::run_lines(command, REWIND_BOUND, look, look).await {
            // Before the first change the directory is as it was (recovered at most), so the rewind may be repeated if
            // only the source was not there. Otherwise the mark stays, and a copy comes next.
            let unreachable =
                matches!(&error, ToolError::Failed { stderr, .. } if stderr.contains("connection to server"));
            if !changed.load(Ordering::Relaxed) && (unreachable || matches!(error, ToolError::Start { .. })) {
                self.remember(|m| (m.rewinding, m.condemned) = (false, false))
                    .map_err(file("the mark could not be cleared"))?;
            }
            if changed.load(Ordering::Relaxed) {
                spoil()?;
            }
            return Err(error.into());
        }
        let floor = self.floor(source).await?;
        self.remember(|m| {
            m.quarantine = Some(floor);
            (m.rewinding, m.condemned) = (false, false);
            m.examined = None;
        })
        .map_err(file("the mark could not be cleared"))?;
        drop(replacing);
        tracing::info!(node = %self.env.config.node, term = source.term.0, lsn = %floor.lsn, "rewound");
        self.start_under(source).await
    }

    /// Before PostgreSQL 16 pg_rewind takes the source's timeline from its last checkpoint and sees nothing to do when
    /// that is still the old one.
    async fn source_has_checkpointed(&self, source: &Source) -> Result<(), RejoinError> {
        let ask = |e| RejoinError::Ask { node: source.node.clone(), source: e };
        let bound = Duration::from_secs(5);
        let sql = Sql::of_primary(&self.env, &source.endpoint, bound).await.map_err(ask)?;
        let deadline = tokio::time::Instant::now() + CHECKPOINT_BOUND;
        let what = "waiting for the source's checkpoint";
        loop {
            let query = "SELECT timeline_id FROM pg_control_checkpoint()";
            let timeline: u32 = sql.value(what, query, bound).await.map_err(ask)?;
            if TimelineId(timeline) == source.history.timeline {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ask(SqlError::TimedOut { what, after: CHECKPOINT_BOUND }));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The node may have acknowledged everything up to here and has lost part of it.
    async fn floor(&self, source: &Source) -> Result<Position, RejoinError> {
        let ask = |e| RejoinError::Ask { node: source.node.clone(), source: e };
        let bound = Duration::from_secs(5);
        let sql = Sql::of_primary(&self.env, &source.endpoint, bound).await.map_err(ask)?;
        let lsn: Lsn = sql.value("asking the source", "SELECT pg_current_wal_flush_lsn()", bound).await.map_err(ask)?;
        Ok(Position { timeline: source.history.timeline, lsn })
    }

    /// Start as a standby of the source: a rewound node is not consistent before it has received WAL from it.
    async fn start_under(&self, source: &Source) -> Result<(), RejoinError> {
        self.rejoining("catching up");
        // The file is read at the start.
        self.follow_source(source).await?;
        match self.start_as(postgres::As::Standby, source.term).await {
            Ok(_) => self.unstarted().started(),
            Err(error @ ServerError::Superseded) => {
                // Whether the next primary can take it over is seen from the quarantine's floor.
                postgres::stop(&self.env, postgres::Stop::Immediate).await?;
                return Err(error.into());
            }
            Err(error @ (ServerError::NotReady { .. } | ServerError::Ended { .. })) => {
                postgres::stop(&self.env, postgres::Stop::Immediate).await?;
                let reason = match error {
                    ServerError::Ended { reason, .. } => reason,
                    _ => Reason::InTheData,
                };
                if let Err(kept) = self.unstarted().replace(self.env.clock.now(), reason) {
                    return Err(RejoinError::Unstarted { kept, source: error });
                }
                // It cannot become consistent without that source: replace it.
                self.condemn()?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
        self.look_again(self.env.config.probe_timeout).await;
        Ok(())
    }

    pub(super) fn uncopied(&self) -> std::sync::MutexGuard<'_, Failing> {
        self.uncopied.lock().expect("no holder of this lock panics")
    }

    /// May the primary of that term be copied now?
    pub(super) fn may_copy(&self, term: Term) -> Result<(), NotYet> {
        self.uncopied().may_copy(self.env.clock.now(), term)
    }

    fn unstarted(&self) -> std::sync::MutexGuard<'_, Unstarted> {
        self.unstarted.lock().expect("no holder of this lock panics")
    }

    /// It counts again: whatever was copied is as it should be.
    pub(super) fn left_quarantine(&self) {
        *self.unstarted() = Unstarted::default();
    }

    /// Start what was rewound or copied before under the primary there is now.
    pub(super) async fn start_under_primary(&self) -> Result<(), RejoinError> {
        let source = self.source().await?;
        // It needs WAL up to its floor; on another line of descent it can never become consistent.
        if self.memory().quarantine.is_some_and(|floor| !source.history.contains(floor.timeline, floor.lsn)) {
            tracing::warn!(
                node = %self.env.config.node, term = source.term.0, primary = %source.node,
                reason = "rewound or copied from a primary whose WAL the new one does not have", "to be cloned"
            );
            return self.condemn();
        }
        self.start_under(&source).await
    }

    /// What is here is whole, and can never be started. It may hold WAL of a primary that is lost for good, so it is examined
    /// before it is replaced; a rewind that was interrupted has had that done before.
    fn condemn(&self) -> Result<(), RejoinError> {
        self.remember(|m| (m.rewinding, m.condemned, m.examined) = (true, true, None))
            .map_err(|source| RejoinError::File { what: "the mark could not be written", source })
    }

    /// Copy the primary: this node has no data.
    pub(super) async fn clone_primary(&self) -> Result<(), RejoinError> {
        let source = self.source().await?;
        let done = self.clone_from(&source).await;
        self.rejoining(None);
        done
    }

    /// Replace whatever is here by a copy of the source. Data that is here has been examined.
    pub(super) async fn clone_from(&self, source: &Source) -> Result<(), RejoinError> {
        self.may_copy(source.term)?;
        let _replacing = Replacing::begin(self);
        self.has_room_for(source).await?;
        let layout = &self.env.layout;
        let file = |what| move |source| RejoinError::File { what, source };
        self.rejoining("cloning");
        let from = self.to_copy_from(source).await;
        let copied = match self.copy(&from).await {
            Err(error) if from.0 != source.node => {
                tracing::warn!(node = %self.env.config.node, from = %from.0, %error, "copying the primary instead");
                remove_tree(&layout.data_new()).map_err(file("an unfinished copy could not be removed"))?;
                self.copy(&(source.node.clone(), source.endpoint.clone())).await
            }
            done => done,
        };
        match &copied {
            Ok(()) => *self.uncopied() = Failing::default(),
            Err(error) => self.uncopied().failed(self.env.clock.now(), source.term, error.to_string()),
        }
        copied?;
        // Who was primary when it began may be none any more. What was copied of that one is of no use then; where a standby was, it is.
        let newer = if from.0 == source.node { None } else { Some(self.source_within(SOURCE_BOUND).await?) };
        let source = newer.as_ref().unwrap_or(source);
        let floor = self.floor(source).await?;
        // In this order: a crash in between leaves either the old data or none, and a quarantine more than needed.
        self.remember(|m| m.quarantine = Some(floor)).map_err(file("the mark could not be written"))?;
        if layout.data().exists() {
            remove_tree(&layout.data_old()).map_err(file("old data could not be removed"))?;
            self.remove_left_memory();
            fs::rename(layout.data(), layout.data_old()).map_err(file("old data could not be moved"))?;
        }
        fs::rename(layout.data_new(), layout.data()).map_err(file("the copy could not be moved"))?;
        fsync_dir(&layout.root).map_err(file("the copy could not be moved"))?;
        self.remember(|m| (m.rewinding, m.condemned, m.examined) = (false, false, None))
            .map_err(file("the mark could not be cleared"))?;
        remove_tree(&layout.data_old()).map_err(file("old data could not be removed"))?;
        tracing::info!(node = %self.env.config.node, term = source.term.0, lsn = %floor.lsn, "cloned");
        self.look_again(self.env.config.probe_timeout).await;
        Ok(())
    }

    /// What is here was killed, perhaps, and is not started any more.
    fn remove_left_memory(&self) {
        match left_memory::remove(&self.env.layout.data(), self.env.version) {
            Ok(true) => {
                tracing::info!(node = %self.env.config.node, "shared memory of the old data's server was left: removed")
            }
            Ok(false) => {}
            // It was stopped.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(node = %self.env.config.node, %error, "shared memory that was left stays"),
        }
    }

    /// The primary, who may be about to change.
    async fn source_within(&self, bound: Duration) -> Result<Source, RejoinError> {
        let deadline = tokio::time::Instant::now() + bound;
        loop {
            match self.source().await {
                Err(_) if tokio::time::Instant::now() < deadline => tokio::time::sleep(SOURCE_PAUSE).await,
                done => return done,
            }
        }
    }

    /// One base backup into the new directory.
    async fn copy(&self, (from, endpoint): &(NodeId, Endpoint)) -> Result<(), ToolError> {
        tracing::info!(node = %self.env.config.node, %from, "copying data");
        let mut command = self.env.program("pg_basebackup");
        command.arg("--pgdata").arg(self.env.layout.data_new());
        command.arg("--dbname").arg(conninfo_of_copy(&self.env, endpoint)).args(["--username", REPLICATION_USER]);
        command.args(["--wal-method=stream", "--checkpoint=fast", "--no-password", "--progress"]);
        let spoke = Notify::new();
        let progress = |line: &str| {
            spoke.notify_one();
            if let Some(progress) = progress_of(line) {
                self.state.change(|o| o.rejoin = Some(progress));
            }
        };
        // However much there is to copy: as long as it gets on.
        let copied = tool::run_lines(command, Duration::MAX, |_| {}, progress);
        let timed_out = || ToolError::TimedOut { program: "pg_basebackup".into(), after: CLONE_SILENCE };
        unless_silent(copied, &spoke, CLONE_SILENCE).await.ok_or_else(timed_out)?
    }

    /// The node to copy from: the primary, or where that is wished a standby that streams its very timeline, so that all
    /// of its WAL is on the primary's line.
    async fn to_copy_from(&self, source: &Source) -> (NodeId, Endpoint) {
        let (members, init) = {
            let records = self.records.borrow();
            (records.members.clone(), records.init.as_ref().and_then(|i| i.value.system_id.clone()))
        };
        let (me, wished) = (&self.env.config.node, self.env.config.copy_from_standby);
        let fits = |m: &&MemberRecord| m.node != *me && m.node != source.node && m.standing.apply_delay_ms == 0;
        for member in members.values().filter(fits).filter(|_| wished) {
            let Ok(sql) = Sql::observer(&self.env, &member.postgres, ASK_BOUND).await else { continue };
            let query = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
                (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming')";
            let Ok(rows) = sql.rows("asking a standby", query, ASK_BOUND).await else { continue };
            let row: Vec<Option<String>> = rows.into_iter().next().unwrap_or_default();
            let [Some(recovery), id, Some(timeline)] = &row[..] else { continue };
            let timeline = timeline.parse().ok().map(TimelineId);
            if recovery == "t" && *id == init && timeline == source.term.timeline() {
                return (member.node.clone(), member.postgres.clone());
            }
        }
        (source.node.clone(), source.endpoint.clone())
    }
}

/// Do `work` unless it says nothing for so long.
async fn unless_silent<T>(work: impl Future<Output = T>, spoke: &Notify, silence: Duration) -> Option<T> {
    let silent = async { while tokio::time::timeout(silence, spoke.notified()).await.is_ok() {} };
    tokio::select! {
        done = work => Some(done),
        () = silent => None,
    }
}

/// Remove a directory that may be missing.
pub(super) fn remove_tree(path: &std::path::Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// `23456/45678 kB (51%), 0/1 tablespace` as `cloning 51 % (22 of 44 MiB)`.
fn progress_of(line: &str) -> Option<String> {
    let (bytes, rest) = line.split_once(" kB (")?;
    let percent: u32 = rest.split_once('%')?.0.trim().parse().ok()?;
    let (done, total) = bytes.trim().rsplit(char::is_whitespace).next()?.split_once('/')?;
    let (done, total): (u64, u64) = (done.parse().ok()?, total.parse().ok()?);
    Some(format!("cloning {percent} % ({} of {} MiB)", done >> 10, total >> 10))
}

impl From<ToolError> for super::reconcile::ActError {
    fn from(error: ToolError) -> Self {
        Self::Server(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_that_says_nothing_is_given_up() {
        let (spoke, soon, late) = (Notify::new(), Duration::from_millis(1), Duration::from_secs(3600));
        assert_eq!(unless_silent(std::future::ready(7), &spoke, late).await, Some(7));
        assert_eq!(unless_silent(std::future::pending::<()>(), &spoke, soon).await, None);
    }

    #[test]
    fn progress_is_read_from_pg_basebackup() {
        let told = progress_of("    23456/45678 kB (51%), 0/1 tablespace");
        assert_eq!(told.as_deref(), Some("cloning 51 % (22 of 44 MiB)"));
        assert_eq!(progress_of("waiting for checkpoint"), None);
    }
}
