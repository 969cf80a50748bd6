//! Promotion: a frozen standby becomes the primary of a term, on the timeline of the term's number.
//!
//! `pg_promote` that does not finish in time may still finish later, so whoever gives up stops PostgreSQL first; the
//! node then comes back as a standby. A newer promise is a reason to give up.

use super::commands::CommandError;
use super::env::literal;
use super::founding;
use super::layout::fsync_dir;
use super::postgres::{self, Stop, remove};
use super::sql::{Sql, SqlError};
use super::{Agent, wall_millis};
use crate::api::{Position, PostgresState, Prepared, Promote, Promoted, Refused};
use crate::fsm::sync_set::Waits;
use crate::record::Phase;
use cluster::sync_names::SyncNames;
use cluster::timeline::{Fork, History, XidBound, mark};
use cluster::{Lsn, Term, TimelineId};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Most timelines that may lie between the old and the new one: each is an empty file.
const MAX_GAP: u32 = 100_000;
/// How long replication slots that are missing are waited for.
const SLOTS_BOUND: Duration = Duration::from_secs(1);
/// How long the checkpoint after a promotion is put off at most.
const OPEN_BOUND: Duration = Duration::from_secs(5);
/// And how long once the term is open: those who were held write first.
const FIRST_WRITES: Duration = Duration::from_millis(150);

/// How often PostgreSQL is asked whether it is promoted: closely while clients wait for most promotions to end.
const POLL: Duration = Duration::from_millis(2);
const POLL_LATER: Duration = Duration::from_millis(5);
const CLOSELY: Duration = Duration::from_millis(150);

/// A position past the term's record, and where the terms begin that have one: this database has those that lead to it.
const RECORDED: &str = "pg_current_wal_flush_lsn(), (SELECT string_agg(term || ':' || xid_bound, ',' ORDER BY term) \
    FROM (SELECT term, xid_bound FROM pgtenure.term WHERE xid_bound IS NOT NULL ORDER BY term DESC LIMIT 64) AS newest)";

/// `term:xid,term:xid`.
fn parse_bounds(text: &str) -> Vec<XidBound> {
    let bound = |pair: &str| {
        let (term, xid) = pair.split_once(':')?;
        Some(XidBound { term: Term(term.parse().ok()?), xid: xid.parse().ok()? })
    };
    text.split(',').filter_map(bound).collect()
}

/// The xid that the new primary gives first, and whether the table of terms is there: nothing is left to be replayed.
async fn next_xid(sql: &Sql, left: Duration) -> Result<(u64, bool), SqlError> {
    let what = "asking for the next xid";
    let query = "SELECT pg_snapshot_xmax(pg_current_snapshot()), to_regclass('pgtenure.term') IS NOT NULL";
    let row = sql.rows(what, query, left).await?.into_iter().next().unwrap_or_default();
    let text = |i: usize| row.get(i).and_then(Option::as_deref);
    let xid = text(0).and_then(|t| t.parse().ok());
    let xid = xid.ok_or_else(|| SqlError::Answer { what, answer: format!("{row:?}").chars().take(200).collect() })?;
    Ok((xid, text(1) == Some("t")))
}

/// The timeline that PostgreSQL writes; `None` while it is in recovery.
async fn timeline_written(sql: &Sql, left: Duration) -> Result<Option<TimelineId>, SqlError> {
    let query = "SELECT CASE WHEN NOT pg_is_in_recovery() \
        THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END";
    let rows = sql.rows("promotion", query, left).await?;
    let text = rows.into_iter().next().unwrap_or_default().into_iter().next().flatten();
    Ok(text.map(|t| TimelineId(u32::from_str_radix(&t, 16).unwrap_or(0))))
}

#[derive(Debug, thiserror::Error)]
enum PromoteError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Proof(#[from] super::arm::ProofError),
    #[error("could not write {what}")]
    File {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{what} took longer than {after_ms} ms")]
    TimedOut { what: &'static str, after_ms: u64 },
    #[error("a newer term was promised")]
    Superseded,
    #[error("promoted to timeline {got} instead of {want}")]
    Timeline { got: TimelineId, want: TimelineId },
    #[error("{0}")]
    Other(&'static str),
}

impl Agent {
    /// `/agent/promote`.
    pub(super) async fn promote(&self, order: &Promote) -> Result<Promoted, CommandError> {
        self.promise(order.term)?;
        let node = self.env.config.node.clone();
        if self.state.look(|o| o.fenced) {
            return Err(Refused::Fenced { node }.into());
        }
        self.must_have_our_data()?;
        let Some(timeline) = order.term.timeline() else { return Err(self.wrong_state("below term 2^32")) };
        let Ok(names) = order.sync_names.parse::<SyncNames>() else {
            return Err(self.wrong_state("given names that pgtenure wrote"));
        };
        let _held = self.act_alone().await?;
        let asked = self.own_recovery(Duration::from_secs(5)).await;
        let (sql, recovering) = asked.map_err(|_| self.wrong_state("a frozen standby"))?;
        if !recovering.map_err(|e| self.failed("promoting", &e))? {
            return self.promoted_before(order, timeline, &sql).await;
        }
        if self.state.look(|o| o.frozen_for) != Some(order.term) {
            return Err(self.wrong_state("frozen for this term"));
        }
        if self.memory().opened >= order.term {
            return Err(self.wrong_state("in a term that is not open yet"));
        }
        let received = self.state.look(|o| o.last_timeline);
        let mut opened = self.standing.take_replication();
        let (have, _) = self.local_end(&sql, received, &mut opened).await.map_err(|e| self.failed("promoting", &e))?;
        // A primary's walsenders are looked at by their names.
        drop(opened);
        if have != order.base {
            return Err(Refused::OtherPosition { node, have: Some(have), want: order.base }.into());
        }
        let unreached = self.unreached_histories(order.base).map_err(|e| self.failed("reading histories", &e))?;
        let sql = match unreached.is_empty() {
            true => sql,
            false => Arc::new(self.restart_without(&unreached, order.term).await?),
        };
        let waits = Waits { names, on_request: order.on_request };
        if !waits.protects() {
            self.must_have_watchdog("promoting", None).await?;
        }
        match self.try_promote(order, timeline, waits, &sql).await {
            Ok(promoted) => Ok(promoted),
            Err(error) => {
                tracing::error!(%node, term = order.term.0, %error, "promotion given up, stopping postgres");
                // It may still become a primary: it must not run when another candidate is tried.
                if let Err(error) = postgres::stop(&self.env, Stop::Immediate).await {
                    tracing::error!(%node, %error, "postgres could not be stopped");
                }
                self.remove_stubs(order.base.timeline, timeline);
                self.look_again(Duration::from_secs(1)).await;
                Err(self.failed("promoting", &error).into())
            }
        }
    }

    /// The command is repeated because its answer was lost.
    async fn promoted_before(
        &self,
        order: &Promote,
        timeline: TimelineId,
        sql: &Sql,
    ) -> Result<Promoted, CommandError> {
        self.look_again(self.env.config.probe_timeout).await;
        self.must_be_primary(order.term)?;
        let query = format!("SELECT xid_bound, {RECORDED} FROM pgtenure.term WHERE term = {}", order.term);
        let rows = sql.rows("reading the term's record", &query, Duration::from_secs(5)).await;
        let rows = rows.map_err(|e| self.failed("promoting", &e))?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter().flatten();
        let bound = row.next().and_then(|t| t.parse().ok());
        // At or past the end of the record.
        let lsn = row.next().and_then(|t| t.parse::<Lsn>().ok());
        let xid_bounds = row.next().map(|t| parse_bounds(&t)).unwrap_or_default();
        let forks = self.own_history(timeline).map(|h| h.forks).unwrap_or_default();
        match (bound, lsn, forks.last().copied()) {
            (Some(xid_bound), Some(record_lsn), Some(fork)) => {
                let prepared = self.prepared(sql, Duration::from_secs(5)).await;
                Ok(Promoted { fork, forks, xid_bound, xid_bounds, record_lsn, prepared })
            }
            _ => Err(self.wrong_state("promoted under this term with its record")),
        }
    }

    async fn try_promote(
        &self,
        order: &Promote,
        timeline: TimelineId,
        waits: Waits,
        sql: &Sql,
    ) -> Result<Promoted, PromoteError> {
        let deadline = Instant::now() + Duration::from_millis(order.deadline_ms);
        let left = |what| match deadline.checked_duration_since(Instant::now()) {
            _ if self.memory().promise > order.term => Err(PromoteError::Superseded),
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(PromoteError::TimedOut { what, after_ms: order.deadline_ms }),
        };
        // etcd's write is over before PostgreSQL's begin, and those of the standbys that clients wait for.
        self.ask_for_lease(order.term);
        let unproved = self.preset_waits(&waits).await?;
        if self.conf.lock().await.is_lenient() {
            // The readers that are ended next were the last to go by the default of before.
            self.settings_read(left("reading the settings")?).await?;
        }
        let what = "replaying what was received";
        // Conflicts with readers block replay and promotion; setting the delay to 0 does not help those that wait.
        let end_readers = super::unblock::end_readers();
        let clear =
            format!("SELECT CASE WHEN pg_is_wal_replay_paused() THEN pg_wal_replay_resume()::text END; {end_readers}");
        // Whether all is replayed is asked behind it, at once.
        let (cleared, replayed) =
            tokio::join!(sql.batch("ending readers", &clear, left(what)?), self.replayed(sql, order.base, &left));
        cleared?;
        self.conf.lock().await.taken_up();
        replayed?;
        let slots = self.make_slots(sql, left("making replication slots")?.min(SLOTS_BOUND));
        let ((), next) = tokio::join!(slots, next_xid(sql, left(what)?));
        let (xid_bound, has_terms) = next?;
        self.write_stubs(order.base.timeline, timeline)
            .and_then(|()| self.leave_mark(order.base.timeline, timeline))
            .map_err(|source| PromoteError::File { what: "histories", source })?;
        tracing::info!(
            node = %self.env.config.node, term = order.term.0, timeline = timeline.0, "timelines are numbered, promoting"
        );
        let what = "promotion";
        sql.rows("pg_promote", "SELECT pg_promote(false)", left(what)?).await?;
        let begun = Instant::now();
        let got = loop {
            if let Some(got) = timeline_written(sql, left(what)?).await? {
                break got;
            }
            let pause = if begun.elapsed() < CLOSELY { POLL } else { POLL_LATER };
            tokio::time::sleep(pause.min(left(what)?)).await;
        };
        if got != timeline {
            return Err(PromoteError::Timeline { got, want: timeline });
        }
        let (fork, forks) = self.forks_of_new(timeline)?;
        if unproved && waits.protects() {
            // The list may have been empty a moment ago: prove that it is in force.
            tracing::info!(
                node = %self.env.config.node, term = order.term.0, "not known that commits wait already, proving that they do"
            );
            self.prove_waiting(&waits.names, left("proving the names")?).await?;
        }
        if !has_terms {
            self.table_of_terms(sql, left("creating the table of terms")?).await?;
        }
        let bound = left("recording the term")?;
        let recording = self.record_term(sql, order, fork, xid_bound, bound);
        let (recorded, prepared) = tokio::join!(recording, self.prepared(sql, bound));
        let (record_lsn, xid_bounds) = recorded?;
        tracing::info!(
            node = %self.env.config.node, term = order.term.0, timeline = timeline.0, lsn = %fork.lsn, "promoted"
        );
        // Frozen until a look shows the primary: before, it would pass for a standby whose names are its own to set.
        self.state.change(|o| o.last_timeline = Some(timeline));
        self.checkpoint_later(order.term);
        self.look_now.notify_one();
        Ok(Promoted { fork, forks, xid_bound, xid_bounds, record_lsn, prepared })
    }

    /// Told to an operator, and nothing depends on it.
    async fn prepared(&self, sql: &Sql, left: Duration) -> Prepared {
        let query = "SELECT gid, count(*) OVER () FROM pg_prepared_xacts ORDER BY prepared LIMIT 20";
        let rows = sql.rows("looking for prepared transactions", query, left).await.unwrap_or_else(|error| {
            tracing::warn!(node = %self.env.config.node, %error, "prepared transactions not known");
            Vec::new()
        });
        let count = rows.first().and_then(|r| r.get(1)?.as_deref()?.parse().ok()).unwrap_or(0);
        Prepared { count, oldest: rows.into_iter().filter_map(|r| r.into_iter().next()?).collect() }
    }

    /// What commits wait for before and after, and replay without delay; true when they may not wait for it yet.
    async fn preset_waits(&self, waits: &Waits) -> Result<bool, PromoteError> {
        let mut conf = self.conf.lock().await;
        let effective = self.state.look(|o| match &o.postgres {
            PostgresState::Standby(s) => Some(s.sync_names.clone()),
            _ => None,
        });
        let names_hold = conf.waits.names == waits.names && effective.as_deref() == Some(&waits.names.to_string());
        // All that was received is to be replayed first, now.
        let delayed = self.env.config.standing.apply_delay_ms > 0 && !std::mem::replace(&mut conf.undelayed, true);
        if conf.change(waits) || !names_hold || delayed {
            let told = conf.write(&self.env).and_then(|()| postgres::reload(&self.env));
            told.map_err(|source| PromoteError::File { what: "settings", source })?;
        }
        Ok(!names_hold || conf.is_unproved())
    }

    /// Wait until everything up to `base` that is a whole record is replayed.
    async fn replayed(
        &self,
        sql: &Sql,
        base: Position,
        left: &impl Fn(&'static str) -> Result<Duration, PromoteError>,
    ) -> Result<(), PromoteError> {
        let what = "replaying what was received";
        let query = "SELECT pg_last_wal_replay_lsn(), \
            (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')";
        loop {
            let row = sql.rows(what, query, left(what)?).await?.into_iter().next().unwrap_or_default();
            let text = |i: usize| row.get(i).and_then(Option::as_deref);
            let lsn = text(0).and_then(|t| t.parse::<Lsn>().ok()).unwrap_or_default();
            // The last bytes received may be the beginning of a record that never came.
            let at_end = text(1).is_some_and(super::freeze::is_at_end);
            if lsn >= base.lsn || at_end {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5).min(left(what)?)).await;
        }
    }

    /// Histories of timelines that left ours past the end of our WAL: fetched from a primary that was lost before we
    /// got that far.
    fn unreached_histories(&self, base: Position) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for (number, path) in self.histories_above(base.timeline)? {
            let history = History::parse(number, &std::fs::read_to_string(&path)?);
            let leaves = |f: &Fork| f.timeline == base.timeline && f.lsn > base.lsn;
            if history.is_ok_and(|h| h.forks.iter().any(leaves)) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// PostgreSQL has taken such a history for its own line and would put it into the new one, with a fork past the
    /// end; whoever goes by that would be rewound to the wrong place. It only forgets it with a restart.
    async fn restart_without(&self, unreached: &[PathBuf], term: Term) -> Result<Sql, CommandError> {
        tracing::warn!(node = %self.env.config.node, term = term.0, files = ?unreached, "restarting without unreached histories");
        postgres::stop(&self.env, Stop::Immediate).await.map_err(|e| self.failed("promoting", &e))?;
        for path in unreached {
            remove(path).map_err(|e| self.failed("removing a history", &e))?;
        }
        let started = self.start_as(postgres::As::Standby, term).await;
        started.map_err(|e| self.failed("promoting", &e).into())
    }

    /// Empty histories for the numbers between, so that PostgreSQL chooses the term's number for its timeline.
    fn write_stubs(&self, from: TimelineId, to: TimelineId) -> io::Result<()> {
        if to.0 <= from.0 || to.0 - from.0 > MAX_GAP {
            return Err(io::Error::other(format!("from timeline {from} to {to}")));
        }
        let wal = self.env.layout.data().join("pg_wal");
        for number in from.0 + 1..to.0 {
            let path = wal.join(TimelineId(number).history_file());
            if !path.exists() {
                File::create(path)?.sync_all()?;
            }
        }
        // Mostly there is none, and clients wait.
        if to.0 > from.0 + 1 { fsync_dir(&wal) } else { Ok(()) }
    }

    /// By this the new timeline is told from another that begins at the same place: PostgreSQL begins its history with all that the
    /// parent's file says. The parent's need not outlive a crash. One that is not there is not made up, but timeline 1 has none, and
    /// PostgreSQL reads none.
    fn leave_mark(&self, from: TimelineId, to: TimelineId) -> io::Result<()> {
        let path = self.env.layout.data().join("pg_wal").join(from.history_file());
        let by = format!("{} {} {}", self.env.config.node, self.env.holder, wall_millis());
        match File::options().append(true).create(from.0 == 1).mode(0o600).open(path) {
            Ok(mut file) => file.write_all(mark(to, &by).as_bytes()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Remove what [`Agent::write_stubs`] wrote; a real history is never empty.
    fn remove_stubs(&self, from: TimelineId, to: TimelineId) {
        let wal = self.env.layout.data().join("pg_wal");
        for number in from.0 + 1..to.0 {
            let path = wal.join(TimelineId(number).history_file());
            if path.metadata().is_ok_and(|m| m.len() == 0)
                && let Err(error) = remove(&path)
            {
                tracing::warn!(path = %path.display(), %error, "stub history not removed");
            }
        }
    }

    /// Where the new timeline left its parent, and that its own.
    fn forks_of_new(&self, timeline: TimelineId) -> Result<(Fork, Vec<Fork>), PromoteError> {
        let path = self.env.layout.data().join("pg_wal").join(timeline.history_file());
        let what = "the new history";
        let text = std::fs::read_to_string(path).map_err(|source| PromoteError::File { what, source })?;
        let forks = History::parse(timeline, &text).map(|h| h.forks).unwrap_or_default();
        let last = forks.last().copied().ok_or(PromoteError::Other("the new history file has no parent"))?;
        Ok((last, forks))
    }

    /// Without its table no term could ever be opened again, and only a primary can create it: it may have been dropped, or
    /// the cluster adopted by way of another database.
    async fn table_of_terms(&self, sql: &Sql, left: Duration) -> Result<(), SqlError> {
        tracing::warn!(node = %self.env.config.node, "the table of terms is missing, creating it");
        sql.batch("granting", &founding::grants(), left).await?;
        sql.batch("creating the table of terms", founding::TERMS, left).await?;
        Ok(())
    }

    /// Insert the term's record without waiting for standbys: managers verify that it reaches them. Its end, and where the
    /// terms begin that have one.
    async fn record_term(
        &self,
        sql: &Sql,
        order: &Promote,
        fork: Fork,
        xid_bound: u64,
        left: Duration,
    ) -> Result<(Lsn, Vec<XidBound>), PromoteError> {
        let prev = order.prev_term.map_or_else(|| "NULL".into(), |t| t.to_string());
        let insert = format!(
            "SET synchronous_commit = local; BEGIN; \
             INSERT INTO pgtenure.term (term, node, prev, fork_timeline, fork_lsn, xid_bound, policy_epoch, record_lsn) \
             VALUES ({}, {}, {prev}, {}, '{}', {xid_bound}, {}, pg_current_wal_insert_lsn()); COMMIT; SELECT {RECORDED}",
            order.term,
            literal(self.env.config.node.as_str()),
            fork.timeline,
            fork.lsn,
            order.policy_epoch,
        );
        // The commit is flushed; what was inserted behind it may not be for a while, and standbys only get what is.
        let mut rows = sql.batch("recording the term", &insert, left).await?.pop().unwrap_or_default();
        let mut row = rows.pop().unwrap_or_default().into_iter();
        let lsn = row.next().flatten().and_then(|t| t.parse().ok());
        let lsn = lsn.ok_or(PromoteError::Other("the end of the term's record is not known"))?;
        Ok((lsn, row.next().flatten().map(|t| parse_bounds(&t)).unwrap_or_default()))
    }

    /// pg_rewind before PostgreSQL 16 looks for the new timeline in the source's last checkpoint. In the background, and
    /// not before the term is open (or [`OPEN_BOUND`]) and clients have written: they wait for the standbys, whose WAL needs
    /// the disk.
    fn checkpoint_later(&self, term: Term) {
        let env = Arc::clone(&self.env);
        let mut records = self.records.subscribe();
        tokio::spawn(async move {
            let open = |r: &super::Records| {
                let newest = r.term.as_ref().map(|t| &t.value);
                newest.is_some_and(|t| t.term > term || t.term == term && t.phase == Phase::Active)
            };
            // Not opened in time, or the agent is ending: a standby may be waiting for the checkpoint all the same.
            let _ = tokio::time::timeout(OPEN_BOUND, records.wait_for(open)).await;
            tokio::time::sleep(FIRST_WRITES).await;
            let done = async {
                let sql = Sql::local(&env, "postgres", Duration::from_secs(5)).await?;
                sql.rows("CHECKPOINT", "CHECKPOINT", Duration::from_secs(600)).await
            };
            if let Err(error) = done.await {
                tracing::warn!(node = %env.config.node, term = term.0, %error, "checkpoint after promotion failed");
            }
        });
    }
}
