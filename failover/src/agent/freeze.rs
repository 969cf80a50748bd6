//! Freeze: stop receiving from primaries of lower terms, for good, and say where the WAL ends.
//!
//! The promise is on disk before anything else. Clearing `primary_conninfo` stops the WAL receiver within milliseconds
//! unless replay is paused or blocked by a conflict; then the receiver would go on acknowledging, so it is ended by
//! SIGTERM (SQL cannot do that). Either way it is seen to be gone before the answer.

use super::commands::CommandError;
use super::control::Control;
use super::memory::Memory;
use super::recovery_conf::Upstream;
use super::sql::{Replication, Sql};
use super::{Agent, postgres, process};
use crate::api::{Frozen, Position, PostgresState, Refused};
use cluster::timeline::History;
use cluster::{Lsn, Term, TimelineId};
use nix::unistd::Pid;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a freeze waits for replay to reach the end of local WAL, and for whoever starts PostgreSQL.
const END_BOUND: Duration = Duration::from_secs(20);
/// How long it waits for the table of terms: its answer is due before that of [`END_BOUND`].
const RECORD_BOUND: Duration = Duration::from_secs(2);
/// A receiver that was not seen is looked for again after this: one may have been starting.
const SECOND_LOOK: Duration = Duration::from_millis(30);
/// How long the receiver may take to end by itself.
const GRACE: Duration = Duration::from_millis(60);

/// Where replay stands.
pub(super) struct Replay {
    pub(super) receive: Option<Lsn>,
    pub(super) replay: Lsn,
    receiver: Option<(i32, Option<TimelineId>)>,
    /// The startup process waits for more WAL than there is locally.
    at_end: bool,
    paused: bool,
}

/// pg_stat_wal_receiver shows a receiver only once it has connected, pg_stat_activity from its first moment: one that
/// was still connecting to the old primary would otherwise come to life after the freeze. Both are read before the positions:
/// these are the end only if they were asked for when replay had come to it and nobody received.
const REPLAY: &str = "SELECT pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), coalesce(w.pid, a.receiver), \
 w.received_tli, a.replay_waits_for, pg_is_wal_replay_paused() \
 FROM (SELECT max(pid) FILTER (WHERE backend_type = 'walreceiver') AS receiver, \
  max(wait_event) FILTER (WHERE backend_type = 'startup') AS replay_waits_for FROM pg_stat_activity) a \
 LEFT JOIN pg_stat_wal_receiver w ON true";

impl Agent {
    /// Promise `term`: lower ones are refused from now on, also after a restart.
    pub(super) fn promise(&self, term: Term) -> Result<(), CommandError> {
        let mut promised = self.memory().promise;
        if term > promised {
            // Another order may promise at the same time: what counts is what the file has.
            let keep = |m: &mut Memory| {
                promised = m.promise;
                m.promise = promised.max(term);
            };
            self.remember(keep).map_err(|e| self.failed("writing the promise", &e))?;
            if term > promised {
                tracing::info!(node = %self.env.config.node, term = term.0, "promised");
            }
        }
        if term < promised {
            let node = self.env.config.node.clone();
            return Err(Refused::LowerTerm { node, term, promised }.into());
        }
        Ok(())
    }

    /// A freeze that comes late must not stop the very primary that its term has got, nor cut off who follows it. Nor may
    /// one that a manager gives by an etcd restored from a backup, which tells of the term as unfinished.
    pub(super) fn must_not_be_its_primary(&self, term: Term) -> Result<(), CommandError> {
        if self.memory().opened >= term {
            return Err(self.wrong_state("in a term that is not open yet"));
        }
        match self.must_serve(term) {
            Ok(()) => Err(self.wrong_state("not the primary of the term already")),
            Err(_) => Ok(()),
        }
    }

    /// Is the data directory, or what is remembered, known to be another cluster's?
    pub(super) fn has_foreign_data(&self) -> bool {
        let init = self.records.borrow().init.clone();
        let want = init.as_ref().and_then(|i| i.value.system_id.as_ref());
        let foreign = |have: &Option<String>| have.as_ref().is_some_and(|have| want.is_some_and(|want| want != have));
        self.state.look(|o| foreign(&o.system_id) || foreign(&o.memory_of))
    }

    /// Before a promise: of another cluster's terms it may be a higher one, and its PostgreSQL is none of ours to stop.
    pub(super) fn must_have_our_data(&self) -> Result<(), CommandError> {
        if self.has_foreign_data() { Err(self.wrong_state("with this cluster's data")) } else { Ok(()) }
    }

    /// `/agent/freeze`. `is_stopped`: see [`crate::api::Freeze`].
    pub(super) async fn freeze(&self, term: Term, is_stopped: bool) -> Result<Frozen, CommandError> {
        self.must_have_our_data()?;
        self.promise(term)?;
        self.must_not_be_its_primary(term)?;
        self.must_be_alone()?;
        self.outlast_signature(term).await?;
        self.count_as_frozen(term)?;
        self.state.change(|o| o.awaited = None);
        // A receiver of another term's may be on its way to somebody who serves.
        let of_last = |u: &Upstream| u.term.0 + 1 == term.0;
        let is_stopped = is_stopped && self.conf.lock().await.upstream.as_ref().is_some_and(of_last);
        // From here on nobody connects ahead for the freeze before this one.
        self.cut_off_for.store(0, Ordering::Release);
        self.cut_off().await.map_err(|e| self.failed("cutting off the WAL receiver", &e))?;
        if self.replacing.load(Ordering::Acquire) {
            return Ok(self.without_position(term, false));
        }
        // Whoever promotes sees the new promise and gives up; whoever starts PostgreSQL is waited for.
        let held = tokio::time::timeout(END_BOUND, self.actuator.lock()).await;
        let Ok(_held) = held else { return Ok(self.without_position(term, false)) };
        // A later term may have been promised meanwhile, and frozen for.
        self.promise(term)?;
        // Whoever had it may have connected for a freeze of the same term.
        if self.conf.lock().await.upstream.is_some() {
            self.cut_off().await.map_err(|e| self.failed("cutting off the WAL receiver", &e))?;
        }
        self.count_as_frozen(term)?;
        if !self.has_postmaster()? {
            let was_primary =
                self.env.layout.has_data() && Control::read(&self.env).await.is_ok_and(|c| c.was_primary());
            return Ok(self.without_position(term, was_primary));
        }
        let asked = self.own_recovery(END_BOUND).await;
        let mut was_primary = self.state.look(|o| o.was_primary);
        if matches!(asked, Ok((_, Err(_)))) && !was_primary {
            // An agent that has only just started has not seen it.
            was_primary = Control::read(&self.env).await.is_ok_and(|c| c.was_primary());
        }
        match asked {
            Ok((sql, Ok(true))) => self.freeze_standby(term, is_stopped, &sql).await,
            // Starting as a standby without upstream: not hurt, but its end is not known yet.
            Err(_) if self.state.look(|o| o.postgres == PostgresState::Starting) => {
                Ok(self.without_position(term, false))
            }
            Err(error) if !self.state.look(|o| o.was_primary) => {
                Err(self.failed("freezing a standby that does not answer", &error).into())
            }
            Ok((_, Err(error))) if !was_primary => {
                Err(self.failed("freezing a standby that does not answer", &error).into())
            }
            // Promoted for this very term while the freeze waited its turn.
            Ok((_, Ok(false)))
                if self.state.look(|o| o.last_timeline.is_some() && o.last_timeline == term.timeline()) =>
            {
                self.state.change(|o| o.frozen_for = None);
                Err(self.wrong_state("not the primary of the term already"))
            }
            // A primary, or one that does not answer and was one.
            _ => {
                tracing::warn!(node = %self.env.config.node, term = term.0, "stopping the old primary");
                let stopped = postgres::stop(&self.env, postgres::Stop::Immediate).await;
                stopped.map_err(|e| self.failed("stopping the old primary", &e))?;
                self.look_again(Duration::from_millis(500)).await;
                Ok(self.without_position(term, true))
            }
        }
    }

    /// Refused where a later term was promised meanwhile, by whomever.
    pub(super) fn count_as_frozen(&self, term: Term) -> Result<(), CommandError> {
        let mut counts = false;
        self.state.change(|o| counts = o.freeze_for(term));
        if counts { Ok(()) } else { self.promise(term) }
    }

    fn without_position(&self, term: Term, was_primary: bool) -> Frozen {
        Frozen {
            node: self.env.config.node.clone(),
            term,
            position: None,
            replay_lsn: None,
            history: None,
            quarantine: self.memory().quarantine,
            was_primary,
            system_id: self.state.look(|o| o.system_id.clone()),
            recorded: None,
        }
    }

    /// No upstream from now on. PostgreSQL is told; whether it obeyed is seen by [`Agent::receiver_gone`].
    pub(super) async fn cut_off(&self) -> std::io::Result<()> {
        let mut conf = self.conf.lock().await;
        conf.upstream = None;
        conf.fill();
        conf.write(&self.env)?;
        postgres::reload(&self.env)
    }

    async fn freeze_standby(&self, term: Term, is_stopped: bool, sql: &Sql) -> Result<Frozen, CommandError> {
        let failed = |e: &dyn std::error::Error| self.failed("freezing", e);
        // Connecting takes as long as the second look for a receiver.
        let bound = self.env.config.probe_timeout;
        let (seen, opened) = tokio::join!(self.receiver_gone(sql, is_stopped), Replication::open(&self.env, bound));
        let seen = seen.map_err(|e| failed(&e))?;
        // Of a receiver that had ended already, what it received on is known from earlier looks.
        let seen = seen.max(self.state.look(|o| o.last_timeline));
        let mut opened = opened.ok();
        let end = self.local_end(sql, seen, &mut opened).await;
        self.standing.keep_replication(opened);
        let (position, replay_lsn) = end.map_err(|e| failed(&e))?;
        self.promise(term)?;
        self.cut_off_for.store(term.0, Ordering::Release);
        let history = self.own_history(position.timeline);
        let known = self.memory().opened.timeline() >= Some(position.timeline);
        let recorded = if known { None } else { self.recorded(sql).await };
        self.state.change(|o| o.last_timeline = Some(position.timeline));
        tracing::info!(
            node = %self.env.config.node, term = term.0, timeline = position.timeline.0, lsn = %position.lsn, "frozen"
        );
        Ok(Frozen {
            node: self.env.config.node.clone(),
            term,
            position: Some(position),
            replay_lsn: Some(replay_lsn),
            history,
            quarantine: self.memory().quarantine,
            was_primary: false,
            system_id: self.state.look(|o| o.system_id.clone()),
            recorded,
        })
    }

    /// The newest term in `pgtenure.term`, once all that was received is replayed. A timeline that was never read as open may be
    /// of a term that etcd, restored from a backup, knows nothing of; or somebody has promoted the node past the managers.
    async fn recorded(&self, sql: &Sql) -> Option<Term> {
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < RECORD_BOUND && !self.replay(sql).await.ok()?.at_end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let query = "SELECT max(term) FROM pgtenure.term";
        let told = sql.rows("reading the newest term's record", query, self.env.config.probe_timeout).await;
        let rows = told.inspect_err(|error| {
            tracing::warn!(node = %self.env.config.node, %error, "the newest term's record is not known");
        });
        rows.ok()?.into_iter().next()?.into_iter().next()??.parse().ok().map(Term)
    }

    /// Wait until no WAL receiver is left, ending it when it does not end by itself. Gives the timeline that it was
    /// receiving. `is_stopped`: one that is starting finds nobody.
    pub(super) async fn receiver_gone(
        &self,
        sql: &Sql,
        is_stopped: bool,
    ) -> Result<Option<TimelineId>, super::sql::SqlError> {
        let what = "waiting for the WAL receiver to end";
        let begun = tokio::time::Instant::now();
        let (mut timeline, mut clear) = (None, 0);
        let mut seen = false;
        while begun.elapsed() < END_BOUND {
            let now = self.replay(sql).await?;
            let Some((pid, receiving)) = now.receiver else {
                // One that was seen and has ended by itself proves that the new setting was read; otherwise one may
                // just have been starting with the old setting.
                clear += 1;
                if seen || is_stopped || clear >= 2 || now.at_end && now.receive.is_none() {
                    return Ok(timeline);
                }
                tokio::time::sleep(SECOND_LOOK).await;
                continue;
            };
            (seen, clear) = (true, 0);
            timeline = timeline.max(receiving);
            if begun.elapsed() >= GRACE {
                process::end_receiver(&self.env.layout.data(), Pid::from_raw(pid));
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        Err(super::sql::SqlError::TimedOut { what, after: END_BOUND })
    }

    /// End of valid WAL and of replay, with no receiver running. `received` is the timeline seen while receiving.
    ///
    /// After a restart PostgreSQL does not know what it once received, so replay must come to the end of local WAL
    /// first. Before one, the receive position is known at once, however far replay is.
    pub(super) async fn local_end(
        &self,
        sql: &Sql,
        received: Option<TimelineId>,
        opened: &mut Option<Replication>,
    ) -> Result<(Position, Lsn), super::sql::SqlError> {
        let what = "waiting for replay to reach the end of local WAL";
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < END_BOUND {
            let now = self.replay(sql).await?;
            let known = now.receive.is_some() && (now.paused || begun.elapsed() > Duration::from_millis(300));
            if now.at_end || known {
                let (timeline, _) = self.identify(opened).await?;
                // Received on a newer timeline than replayed: only possible while replay is behind.
                let timeline = if now.at_end { timeline } else { received.max(Some(timeline)).unwrap_or(timeline) };
                let lsn = now.receive.unwrap_or_default().max(now.replay);
                return Ok((Position { timeline, lsn }, now.replay));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(super::sql::SqlError::TimedOut { what, after: END_BOUND })
    }

    pub(super) async fn replay(&self, sql: &Sql) -> Result<Replay, super::sql::SqlError> {
        let rows =
            sql.rows("asking for replay", REPLAY, self.env.config.probe_timeout.max(Duration::from_secs(2))).await?;
        let row = rows.into_iter().next().unwrap_or_default();
        let text = |i: usize| row.get(i).and_then(Option::as_deref);
        Ok(Replay {
            receive: text(0).and_then(|t| t.parse().ok()),
            replay: text(1).and_then(|t| t.parse().ok()).unwrap_or_default(),
            receiver: text(2)
                .and_then(|p| p.parse().ok())
                .map(|pid| (pid, text(3).and_then(|t| t.parse().ok()).map(TimelineId))),
            at_end: text(4).is_some_and(is_at_end),
            paused: text(5) == Some("t"),
        })
    }

    /// The line of descent of a timeline of ours, from its file. `None` when the file is missing or damaged.
    pub(super) fn own_history(&self, timeline: TimelineId) -> Option<History> {
        if timeline.0 <= 1 {
            return Some(History::root(timeline));
        }
        let path = self.env.layout.data().join("pg_wal").join(timeline.history_file());
        let text = std::fs::read_to_string(&path).ok()?;
        let history = History::parse(timeline, &text).ok()?;
        // An empty file is a stub that only keeps the number from being used.
        if history.forks.is_empty() { None } else { Some(history) }
    }
}

/// Is the startup process waiting for more WAL than there is locally, by its wait event? For when nobody receives: that wakes
/// one that waits for a receiver's WAL, so whoever still seems to has not been scheduled since, and may have WAL to replay.
pub(super) fn is_at_end(wait_event: &str) -> bool {
    wait_event == "RecoveryRetrieveRetryInterval"
}
