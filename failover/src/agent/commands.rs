//! Managers' commands other than freeze, promote, open and arm, and what all commands have in common.

use super::Agent;
use super::control::Control;
use super::env::REPLICATION_USER;
use super::postgres::{self, As, Stop};
use super::sql::{Sql, SqlError};
use super::state::{Awaited, Observed};
use crate::api::{
    Checkpoint, Failed, Follow, Frozen, Position, PostgresState, Recover, Refused, Stop as StopOrder, Stopped,
};
use crate::fsm::agent::later_leader;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Begin a new WAL segment where an eighth of the present one or more would be sent again: a WAL receiver asks for the new
/// timeline from its segment's start (walreceiverfuncs.c, `RequestXLogStreaming`), and nobody can write meanwhile. Gives where
/// it begins. Not where more than 16 MiB are left of the present one (segments may have a GiB): standbys are sent that rest
/// too, and commits wait behind it. Nor where WAL is archived: then the stop itself begins one (xlog.c, `ShutdownXLOG`), and
/// sends the rest of what would be a new one while nobody can write.
const NEW_SEGMENT: &str = "SELECT at + mod(size - mod(at, size), size) FROM (SELECT size, pg_switch_wal() - '0/0' AS at \
     FROM (SELECT setting::int8 AS size, mod(pg_current_wal_insert_lsn() - '0/0', setting::int8) AS used \
     FROM pg_settings WHERE name = 'wal_segment_size') AS segment \
     WHERE used >= size / 8 AND size - used <= 16 << 20 AND current_setting('archive_mode') = 'off') AS switched";
/// For so long the standbys may take for the rest of the segment before.
const REST_BOUND: Duration = Duration::from_secs(1);
/// For a CHECKPOINT where no manager says how long it waits.
const CHECKPOINT_BOUND: Duration = Duration::from_secs(60);
/// Who has read nothing for so long, although it reads every second, may have stood still together with who orders.
const UNREAD: Duration = Duration::from_secs(2);
/// To read then.
const READ_BOUND: Duration = Duration::from_millis(500);
/// For so long PostgreSQL is not looked at while it is being stopped.
const UNSEEN: Duration = Duration::from_secs(1);

/// A command that was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// Not obeyed; nothing was done.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Tried.
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl Agent {
    /// The node is not in the state that a command needs.
    pub(super) fn wrong_state(&self, needs: &str) -> CommandError {
        let state = match self.state.get().postgres {
            PostgresState::Absent => "without data".to_owned(),
            PostgresState::Stopped { was_primary, .. } if was_primary => "a stopped primary".into(),
            PostgresState::Stopped { .. } => "stopped".into(),
            PostgresState::Starting => "starting".into(),
            PostgresState::Standby(_) => "a standby".into(),
            PostgresState::Primary(p) => format!("a primary on timeline {}", p.timeline),
            PostgresState::Hung { for_ms } => format!("not answering for {for_ms} ms"),
        };
        Refused::WrongState { node: self.env.config.node.clone(), state, needs: needs.to_owned() }.into()
    }

    /// Become the one who starts, stops, promotes or replaces PostgreSQL; bounded.
    pub(super) async fn act_alone(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, CommandError> {
        let held = tokio::time::timeout(Duration::from_secs(20), self.actuator.lock()).await;
        held.map_err(|_| self.wrong_state("idle: it is being started, rewound or replaced"))
    }

    /// `/agent/recover`.
    pub(super) async fn recover(&self, order: &Recover) -> Result<Frozen, CommandError> {
        self.must_have_our_data()?;
        self.promise(order.term)?;
        let node = self.env.config.node.clone();
        if self.state.look(|o| o.fenced) {
            return Err(Refused::Fenced { node }.into());
        }
        self.must_not_be_its_primary(order.term)?;
        self.outlast_signature(order.term).await?;
        self.count_as_frozen(order.term)?;
        self.cut_off().await.map_err(|e| self.failed("cutting off the WAL receiver", &e))?;
        {
            let _held = self.act_alone().await?;
            if self.memory().rewinding {
                return Err(self.wrong_state("whole: its rewind was interrupted"));
            }
            if !self.env.layout.has_data() {
                return Err(self.wrong_state("with data"));
            }
            // It would not count, and may not even start without WAL from the primary it was copied from.
            if self.memory().quarantine.is_some() && !self.has_postmaster()? {
                return Err(self.wrong_state("out of quarantine"));
            }
            self.start_detached(order.term).await.map_err(|e| self.failed("starting PostgreSQL", &e))?;
        }
        self.look_again(Duration::from_secs(1)).await;
        self.freeze(order.term, false).await
    }

    /// Start as a standby without upstream, if it does not run, and wait until it answers. The caller holds `actuator`.
    pub(super) async fn start_detached(&self, at_term: cluster::Term) -> Result<(), postgres::ServerError> {
        self.cut_off().await.map_err(|source| postgres::ServerError::Start { what: "writing settings", source })?;
        self.start_as(As::Standby, at_term).await.map(drop)
    }

    /// Start and wait. Gives up when a term above `at_term` is promised.
    pub(super) async fn start_as(&self, how: As, at_term: cluster::Term) -> Result<Sql, postgres::ServerError> {
        self.reset_foreign_settings();
        self.spawning.store(true, Ordering::Release);
        if postgres::is_dead(&self.env) {
            self.conf.lock().await.proved();
        }
        let started = async {
            let pid = postgres::start(&self.env, how).await?;
            self.state.change(|o| {
                o.postgres = PostgresState::Starting;
                o.not_expected(self.env.clock.now());
            });
            postgres::wait_ready(&self.env, pid, || self.memory().promise > at_term).await
        }
        .await;
        self.spawning.store(false, Ordering::Release);
        self.look_now.notify_one();
        if started.is_ok() {
            tracing::info!(node = %self.env.config.node, ?how, "postgres started");
        }
        started
    }

    /// Somebody's ALTER SYSTEM must not win over what failover depends on.
    pub(super) fn reset_foreign_settings(&self) {
        let path = self.env.layout.data().join("postgresql.auto.conf");
        let Ok(text) = std::fs::read_to_string(&path) else { return };
        let foreign = super::recovery_conf::foreign_settings(&text);
        if foreign.is_empty() {
            return;
        }
        let cleaned = super::recovery_conf::without(&text, &foreign);
        let written = super::layout::write_durably(&path, cleaned.as_bytes());
        let node = &self.env.config.node;
        // Tried again at every round.
        let due = self.said.settings.is_due(self.env.clock.now(), &format!("{foreign:?}{written:?}"));
        match written {
            Ok(()) if due => {
                tracing::error!(%node, settings = ?foreign, "settings of ours in postgresql.auto.conf were reset");
            }
            Ok(()) => {}
            Err(error) => {
                if due {
                    tracing::error!(%node, settings = ?foreign, %error, "postgresql.auto.conf could not be written");
                }
                return;
            }
        }
        if let Err(error) = postgres::reload(&self.env) {
            tracing::error!(node = %self.env.config.node, %error, "PostgreSQL was not told to read its settings again");
        }
    }

    /// `/agent/follow`: the agent's own machine compares histories and follows, rewinds or clones.
    pub(super) async fn follow(&self, order: Follow) -> Result<(), CommandError> {
        self.promise(order.term)?;
        if order.primary == self.env.config.node {
            return Err(self.wrong_state("another node than the primary"));
        }
        if let Some(base) = order.ahead {
            return self.attend(&order, base).await;
        }
        let standby = self.state.look(|o| matches!(o.postgres, PostgresState::Standby(_)));
        if let (true, Some(timeline), Some(lsn)) = (standby, order.term.timeline(), order.record_lsn) {
            let since = self.env.clock.now();
            self.state.change(|o| o.awaited = Some(Awaited { timeline, lsn, since, asked: since }));
            self.look_now.notify_one();
        }
        *self.follow.lock().expect("no holder of this lock panics") = Some(order);
        self.wake.notify_one();
        Ok(())
    }

    /// `/agent/checkpoint`. A new segment is begun before, so that little of one is sent again behind the switchover.
    pub(super) async fn checkpoint(&self, order: &Checkpoint) -> Result<(), CommandError> {
        self.promise(order.term)?;
        self.must_be_primary(order.term)?;
        let failed = |e: SqlError| self.failed("CHECKPOINT", &e);
        let sql = Sql::local(&self.env, "postgres", self.env.config.probe_timeout).await.map_err(failed)?;
        if let Err(error) = self.begin_segment(&sql, order.term).await {
            tracing::warn!(node = %self.env.config.node, term = order.term.0, %error, "a WAL segment was not begun, or was not waited for");
        }
        let bound = if order.deadline_ms == 0 { CHECKPOINT_BOUND } else { Duration::from_millis(order.deadline_ms) };
        sql.rows("CHECKPOINT", "CHECKPOINT", bound).await.map_err(failed)?;
        Ok(())
    }

    /// Commits wait behind the rest of the old segment, so the standbys are to have it before anybody is held: otherwise that
    /// wait and the switchover's would be one. The switchover goes on without those that take too long.
    async fn begin_segment(&self, sql: &Sql, term: cluster::Term) -> Result<(), SqlError> {
        let bound = self.env.config.probe_timeout;
        let rows = sql.rows("pg_switch_wal", NEW_SEGMENT, bound).await?;
        let Some(begin) = rows.first().and_then(|row| row.first()?.as_deref()?.parse::<u64>().ok()) else {
            return Ok(());
        };
        let begun = tokio::time::Instant::now();
        let what = "waiting for the segment's rest";
        let query = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND usename = '{REPLICATION_USER}' \
             AND application_name NOT LIKE 'copy:%' AND flush_lsn - '0/0' < {begin}"
        );
        loop {
            let behind: u64 = sql.value(what, &query, bound).await?;
            let took = begun.elapsed();
            if behind == 0 || took >= REST_BOUND {
                let (lsn, took_ms) = (cluster::Lsn(begin), took.as_millis());
                tracing::info!(node = %self.env.config.node, term = term.0, %lsn, behind, took_ms, "a new WAL segment was begun");
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Refuse unless PostgreSQL is primary on the timeline of `term`.
    pub(super) fn must_be_primary(&self, term: cluster::Term) -> Result<(), CommandError> {
        let timeline = self.state.look(|o| match &o.postgres {
            PostgresState::Primary(p) => Some(p.timeline),
            _ => None,
        });
        if timeline.is_some() && timeline == term.timeline() {
            Ok(())
        } else {
            Err(self.wrong_state(&format!("primary on timeline {term}")))
        }
    }

    /// Refuse unless PostgreSQL is primary on the timeline of `term`, or does not answer and was.
    pub(super) fn must_serve(&self, term: cluster::Term) -> Result<(), CommandError> {
        let hung = self.state.look(|o| match &o.postgres {
            PostgresState::Hung { .. } if o.was_primary => o.last_timeline,
            _ => None,
        });
        if hung.is_some() && hung == term.timeline() { Ok(()) } else { self.must_be_primary(term) }
    }

    /// Refuses where that cannot be seen.
    pub(super) fn has_postmaster(&self) -> Result<bool, CommandError> {
        let found = postgres::postmaster(&self.env).map_err(|e| self.failed("looking for the postmaster", &e))?;
        Ok(found.is_some())
    }

    /// Stop it, and tell what it left.
    async fn stop_and_see(&self, bound: Duration) -> Result<Control, CommandError> {
        let failed = |e: &dyn std::error::Error| self.failed("stopping", e);
        postgres::stop(&self.env, Stop::Fast(bound)).await.map_err(|e| failed(&e))?;
        if !self.env.layout.has_data() {
            return Err(self.wrong_state("with data"));
        }
        let control = Control::read(&self.env).await.map_err(|e| failed(&e))?;
        // The lease is given back meanwhile. Not at the next look only: one that hangs would keep it, and have it renewed.
        self.is_stopped_as(control.clone());
        Ok(control)
    }

    /// Refuse what an earlier leader orders that stood still, and woke when another had taken its place: within a term nothing else
    /// tells. Where etcd does not answer, what was read before counts.
    async fn must_be_of_latest_leader(&self, leader: i64) -> Result<(), CommandError> {
        let read_at = self.records.borrow().read_at;
        if leader != 0 && read_at.is_none_or(|at| self.env.clock.now().since(at) >= UNREAD) {
            let read = tokio::time::timeout(READ_BOUND, self.read_records()).await;
            tracing::debug!(node = %self.env.config.node, ?read, "who leads was read for an order");
        }
        let newest = self.records.borrow().leader;
        match later_leader(leader, newest) {
            Some(newest) => Err(Refused::EarlierLeader { node: self.env.config.node.clone(), leader, newest }.into()),
            None => Ok(()),
        }
    }

    /// `/agent/stop`. Also of one that hangs: then it is killed.
    pub(super) async fn stop(&self, order: &StopOrder) -> Result<Stopped, CommandError> {
        self.promise(order.term)?;
        let _held = self.act_alone().await?;
        let failed = |e: &dyn std::error::Error| self.failed("stopping", e);
        if self.has_postmaster()? {
            self.must_be_of_latest_leader(order.leader).await?;
            // Nobody but this agent starts it, so a primary that was seen is one still. Whether it answers is another matter.
            if order.only_if_hung || self.must_be_primary(order.term).is_err() {
                self.look_again(self.env.config.probe_timeout).await;
            }
            self.must_serve(order.term)?;
            // One that is full answers, if only that.
            let hangs = |o: &Observed| matches!(o.postgres, PostgresState::Hung { for_ms: 1.. });
            if order.only_if_hung && !self.state.look(hangs) {
                return Err(self.wrong_state("a primary that does not answer"));
            }
        }
        // Also where its postmaster is dead, and no look has ended yet what that left: it could still acknowledge commits.
        let stopping = self.stop_and_see(Duration::from_millis(order.deadline_ms));
        tokio::pin!(stopping);
        self.stopping.store(true, Ordering::Release);
        let in_time = tokio::time::timeout(UNSEEN, &mut stopping).await;
        self.stopping.store(false, Ordering::Release);
        self.look_now.notify_one();
        let control = match in_time {
            Ok(control) => control?,
            Err(_) => stopping.await?,
        };
        let clean = control.state == "shut down";
        let end = match clean {
            // The shutdown checkpoint is the last record: its end is the end of WAL.
            true => Some(self.end_of_record(&control).await.map_err(|e| failed(&e))?),
            false => None,
        };
        tracing::info!(node = %self.env.config.node, term = order.term.0, clean, "primary stopped by a manager");
        Ok(Stopped { clean, end: end.map(|lsn| Position { timeline: control.timeline, lsn }) })
    }
}
