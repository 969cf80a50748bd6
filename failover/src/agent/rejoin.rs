//! Coming back under a primary: facts from both sides, then what [`crate::fsm::rejoin`] decides.

use super::Agent;
use super::control::Control;
use super::env::literal;
use super::layout::fsync_dir;
use super::postgres::{self, ServerError, Stop};
use super::recovery_conf::Upstream;
use super::room::NoRoom;
use super::sql::{Replication, Sql, SqlError};
use super::state::{Awaited, Unsteady};
use super::tool::ToolError;
use super::wal_tail::{ExamineError, began_at};
use crate::api::{Position, PostgresState};
use crate::fsm::rejoin::{Facts, Plan, divergence, plan};
use crate::fsm::unstarted::{Kept, NotYet};
use cluster::timeline::{Fork, History};
use cluster::{Endpoint, Lsn, NodeId, Term, TimelineId};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Bound on one question to the primary.
const ASK_BOUND: Duration = Duration::from_secs(3);

/// A rejoin that did not get on; tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RejoinError {
    #[error("there is no primary to follow")]
    NoPrimary,
    #[error("the primary {node} could not be asked")]
    Ask {
        node: NodeId,
        #[source]
        source: SqlError,
    },
    #[error("{node} is not the primary of term {term} yet")]
    NotPrimary { node: NodeId, term: Term },
    #[error("{node} belongs to another cluster: system identifier {theirs}, ours is {ours}")]
    OtherCluster { node: NodeId, theirs: String, ours: String },
    #[error("the history of {node} is not understood")]
    History {
        node: NodeId,
        #[source]
        source: cluster::timeline::ParseHistoryError,
    },
    #[error("it does not start; {kept}")]
    Unstarted {
        kept: Kept,
        #[source]
        source: ServerError,
    },
    #[error(transparent)]
    Uncopied(#[from] NotYet),
    #[error("term {promised} was promised meanwhile")]
    Superseded { promised: Term },
    #[error(
        "etcd was restored from a backup: timeline {timeline} was begun twice, and its term was open: what was acknowledged may be here, and not at {node}"
    )]
    OpenedBefore { timeline: TimelineId, node: NodeId },
    #[error(
        "replay is paused at {lsn}, and a standby follows another primary only once it has replayed all that it has: pg_wal_replay_resume()"
    )]
    ReplayPaused { lsn: Lsn },
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Own(#[from] SqlError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Examine(#[from] ExamineError),
    #[error("{what}")]
    File {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// A primary and its line of descent.
pub(super) struct Source {
    pub(super) node: NodeId,
    pub(super) term: Term,
    pub(super) endpoint: Endpoint,
    pub(super) history: History,
    /// A connection to it, for further questions.
    pub(super) sql: Sql,
}

impl Source {
    /// Did `term` end what was `node`'s on that timeline? By its own record: where it cannot tell, by what it branched off from.
    pub(super) async fn ended(&self, node: &NodeId, timeline: TimelineId, term: Term) -> Result<bool, SqlError> {
        let query = format!(
            "SELECT EXISTS (SELECT FROM pgtenure.term old, pgtenure.term next WHERE old.term = {timeline} AND old.node = {} \
             AND next.term = {term} AND coalesce(next.prev, old.term) = old.term)",
            literal(node.as_str())
        );
        Ok(self.sql.value::<String>("asking whose term it was", &query, ASK_BOUND).await? == "t")
    }
}

fn kept(timeline: TimelineId, source: &Source) -> RejoinError {
    RejoinError::OpenedBefore { timeline, node: source.node.clone() }
}

impl Agent {
    /// Compare and do the next step. The caller holds `actuator`.
    pub(super) async fn rejoin(&self) -> Result<(), RejoinError> {
        let (_, term, _) = self.target().ok_or(RejoinError::NoPrimary)?;
        match self.state.get().postgres {
            PostgresState::Standby(_) => {
                let streaming = self.state.look(|o| o.receiver.as_ref().is_some_and(|r| r.streaming));
                let both = async {
                    if streaming {
                        // A stream is only cut once its primary could be asked.
                        let source = self.source().await?;
                        return Ok((source, self.detached_end(term).await?));
                    }
                    // Both sides at once: a cluster waits for this while its new primary opens.
                    tokio::try_join!(self.source(), self.detached_end(term))
                };
                let (source, end) = self.unless_superseded(term, both).await?;
                self.rejoin_standby(&source, end).await
            }
            PostgresState::Stopped { .. } => {
                let source = self.unless_superseded(term, self.source()).await?;
                self.rejoin_stopped(&source).await
            }
            // Seen differently a moment ago: the next round decides anew.
            _ => Ok(()),
        }
    }

    /// Do `work`, but give it up as soon as a term above `term` is promised: a freeze must not wait for it.
    async fn unless_superseded<T>(
        &self,
        term: Term,
        work: impl Future<Output = Result<T, RejoinError>>,
    ) -> Result<T, RejoinError> {
        let mut state = self.state.subscribe();
        tokio::select! {
            done = work => done,
            newer = state.wait_for(|o| o.promise > term) => {
                let promised = newer.map_or(term, |o| o.promise);
                Err(RejoinError::Superseded { promised })
            }
        }
    }

    /// End of the WAL of a node in recovery, cut off first.
    async fn detached_end(&self, term: Term) -> Result<Position, RejoinError> {
        let bound = self.env.config.probe_timeout;
        // A freeze for this very term has seen to it already.
        let cut_off = self.cut_off_for.load(Ordering::Acquire) == term.0;
        if !cut_off {
            self.cut_off().await.map_err(|e| RejoinError::File { what: "settings could not be written", source: e })?;
        }
        let (sql, opened) = tokio::join!(Sql::local(&self.env, "postgres", bound), Replication::open(&self.env, bound));
        let sql = sql?;
        let received = if cut_off { None } else { self.receiver_gone(&sql, false).await? };
        self.replay_all(&sql).await?;
        let (end, replay) = self.local_end(&sql, received, &mut opened.ok()).await?;
        // What was received past the end of replay is the beginning of a record, which PostgreSQL drops.
        Ok(Position { lsn: replay, ..end })
    }

    /// A node in recovery that was cut off and ends there: follow, or stop and repair.
    async fn rejoin_standby(&self, source: &Source, end: Position) -> Result<(), RejoinError> {
        let own = self.own_history(end.timeline);
        let memory = self.memory();
        let facts = Facts {
            own_end: end,
            own: own.as_ref(),
            upstream: &source.history,
            rewind_interrupted: memory.rewinding,
            whole: memory.condemned,
            examined: memory.examined,
            opened: memory.opened,
            source_is_open: self.is_open(source.term),
        };
        let next = plan(&facts);
        tracing::info!(
            node = %self.env.config.node, term = source.term.0, timeline = end.timeline.0, lsn = %end.lsn,
            primary = %source.node, ?next, "compared histories"
        );
        if next == Plan::Follow {
            if self.start_without_other_lines(source, end.timeline).await? {
                return Ok(());
            }
            if self.unless_superseded(source.term, self.is_wal_kept(source, end.lsn)).await? {
                if memory.examined.is_some() {
                    self.remember(|m| m.examined = None)
                        .map_err(|source| RejoinError::File { what: "the mark could not be cleared", source })?;
                }
                let report = async {
                    self.report_nothing_lost(source, end).await;
                    Ok(())
                };
                self.unless_superseded(source.term, report).await?;
                return self.follow_source(source).await;
            }
            // Until then it stays up.
            self.may_copy(source.term)?;
            self.unless_superseded(source.term, self.has_room_for(source)).await?;
            // Nothing here is lost by that: all of it is on the primary's line.
            tracing::warn!(
                node = %self.env.config.node, term = source.term.0, lsn = %end.lsn,
                reason = "the primary does not keep the WAL that follows", "cloning"
            );
            postgres::stop(&self.env, Stop::Fast(self.env.config.stop_timeout)).await?;
            return self.clone_from(source).await;
        }
        if let Plan::Keep(timeline) = next {
            // Cut off and running, it can be frozen.
            return Err(kept(timeline, source));
        }
        postgres::stop(&self.env, Stop::Fast(self.env.config.stop_timeout)).await?;
        self.look_again(self.env.config.probe_timeout).await;
        self.repair(source, own.as_ref(), end).await
    }

    /// A node that was a primary (or whose rewind was interrupted): its end is read from its WAL, it is not started.
    async fn rejoin_stopped(&self, source: &Source) -> Result<(), RejoinError> {
        let memory = self.memory();
        let control = Control::read(&self.env).await?;
        let timeline = self.newest_timeline(control.timeline);
        let own = self.own_history(timeline);
        if memory.rewinding && memory.examined.is_some() && !memory.condemned {
            return self.repair(source, own.as_ref(), Position { timeline, lsn: control.checkpoint }).await;
        }
        let parted = own.as_ref().and_then(|h| divergence(h, Lsn(u64::MAX), &source.history));
        // Where the lines do not part, or not in what is known, the end is looked for from the last checkpoint on.
        let from = parted.filter(|p| p.lsn != Lsn(u64::MAX)).unwrap_or(Fork { timeline, lsn: control.checkpoint });
        let end = match &own {
            Some(h) => self.end_of_wal(h, from, &control).await?,
            None => control.checkpoint,
        };
        let end = Position { timeline, lsn: end };
        let facts = Facts {
            own_end: end,
            own: own.as_ref(),
            upstream: &source.history,
            rewind_interrupted: memory.rewinding,
            whole: memory.condemned,
            examined: memory.examined,
            opened: memory.opened,
            source_is_open: self.is_open(source.term),
        };
        let next = plan(&facts);
        tracing::info!(
            node = %self.env.config.node, term = source.term.0, timeline = timeline.0, lsn = %end.lsn,
            primary = %source.node, ?next, "compared histories"
        );
        if next == Plan::Follow {
            self.rejoining("starting");
            self.start_detached(self.memory().promise).await?;
            self.look_again(self.env.config.probe_timeout).await;
            return Ok(());
        }
        self.repair(source, own.as_ref(), end).await
    }

    /// Examine, then rewind or clone. PostgreSQL is stopped.
    async fn repair(&self, source: &Source, own: Option<&History>, end: Position) -> Result<(), RejoinError> {
        // Examining once suffices for the decision that follows it; a third round would mean that nothing changes.
        for _ in 0..3 {
            let memory = self.memory();
            let facts = Facts {
                own_end: end,
                own,
                upstream: &source.history,
                rewind_interrupted: memory.rewinding,
                whole: memory.condemned,
                examined: memory.examined,
                opened: memory.opened,
                source_is_open: self.is_open(source.term),
            };
            match plan(&facts) {
                Plan::Follow => return Ok(()),
                Plan::Examine(parted) => {
                    self.rejoining("examining wal");
                    match self.examine(source, own, end, parted).await {
                        Err(RejoinError::Examine(error @ ExamineError::Missing { .. })) => {
                            return self.set_aside(began_at(&source.history, parted), &error);
                        }
                        done => done?,
                    }
                }
                Plan::Rewind(parted) => return self.rewind(source, parted).await,
                Plan::Keep(timeline) => return Err(kept(timeline, source)),
                Plan::Reclone(why) => {
                    tracing::warn!(node = %self.env.config.node, reason = why.as_str(), "a rewind cannot help, cloning");
                    return self.clone_from(source).await;
                }
            }
        }
        Ok(())
    }

    /// Is this term open, as last read?
    fn is_open(&self, term: Term) -> bool {
        self.records.borrow().term.as_ref().is_some_and(|t| t.value.term == term && t.value.is_open())
    }

    /// Does the source still have the WAL that follows `lsn`? Whoever was away for longer than `agent.wal_keep` lasts
    /// would wait for it for ever.
    async fn is_wal_kept(&self, source: &Source, lsn: Lsn) -> Result<bool, RejoinError> {
        let ask = |e| RejoinError::Ask { node: source.node.clone(), source: e };
        let next = Lsn(lsn.0 + 1);
        // Streaming begins with the segment of the next byte, on whichever timeline its file is.
        let query = format!(
            "SELECT pg_current_wal_flush_lsn() < '{next}' OR EXISTS (SELECT FROM pg_ls_dir('pg_wal', true, false) f \
             WHERE length(f) = 24 AND substr(f, 9) = substr(pg_walfile_name('{next}'), 9))"
        );
        let kept: String = source.sql.value("asking for the primary's WAL", &query, ASK_BOUND).await.map_err(ask)?;
        Ok(kept == "t")
    }

    /// A tail that cannot be read any more must not be destroyed either: its directory is moved out of the way.
    fn set_aside(&self, term: Term, why: &ExamineError) -> Result<(), RejoinError> {
        let file = |source| RejoinError::File { what: "unexamined data could not be set aside", source };
        let layout = &self.env.layout;
        let to = layout.unexamined_of(term);
        std::fs::rename(layout.data(), &to).map_err(file)?;
        fsync_dir(&layout.root).map_err(file)?;
        tracing::error!(
            node = %self.env.config.node, term = term.0, error = %why, kept_in = %to.display(),
            "lost wal could not be examined as a whole, its data is set aside"
        );
        Ok(())
    }

    /// Somebody has to look at data that was set aside, and to remove it.
    pub(super) fn tell_of_unexamined(&self) {
        // A directory that cannot be read is told of by whoever needs it.
        let found = self.env.layout.unexamined().unwrap_or_default();
        let told = found.map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let term = name.rsplit('-').next().unwrap_or_default();
            let path = path.display();
            format!("{path} has WAL that the cluster lacks and not all of which could be read: see report {term}, then remove it")
        });
        if self.state.look(|o| o.unexamined != told) {
            self.state.change(|o| o.unexamined = told);
        }
    }

    /// Stream from the source: its line of descent was compared with ours.
    pub(super) async fn follow_source(&self, source: &Source) -> Result<(), RejoinError> {
        {
            let mut conf = self.conf.lock().await;
            // Under the lock that a freeze needs: either it comes first and is seen here, or it cuts off after us.
            let promised = self.memory().promise;
            if promised > source.term {
                return Err(RejoinError::Superseded { promised });
            }
            // Commands of older terms may still be under way. Obeyed, one could write an older timeline again.
            if promised < source.term {
                self.remember(|m| m.promise = m.promise.max(source.term))
                    .map_err(|e| RejoinError::File { what: "the promise could not be written", source: e })?;
            }
            self.cut_off_for.store(0, Ordering::Release);
            drop(self.standing.take_replication());
            conf.connect(Upstream { node: source.node.clone(), endpoint: source.endpoint.clone(), term: source.term });
            // Until its own turn its pg_hba.conf is the one that it had; it is connected to anew in the next term.
            if self.records.borrow().is_by_hand(&source.node, source.term) {
                conf.is_by_hand();
            }
            if let Some(through) = self.through_slots() {
                conf.go_through_slot(through);
            }
            let now = self.env.clock.now();
            self.state.change(|o| {
                o.frozen_for = None;
                (o.not_streaming_since, o.unsteady) = (Some(now), Unsteady::anew(now));
                o.awaited = o.awaited.map(|a| Awaited { asked: now, ..a });
            });
            let told = conf.write(&self.env).and_then(|()| postgres::reload(&self.env));
            told.map_err(|e| RejoinError::File { what: "settings could not be written", source: e })?;
        }
        tracing::info!(
            node = %self.env.config.node, term = source.term.0, primary = %source.node, "following the primary"
        );
        self.look_now.notify_one();
        Ok(())
    }

    /// The primary, verified to be one of its term, and its line of descent.
    pub(super) async fn source(&self) -> Result<Source, RejoinError> {
        let (node, term, endpoint) = self.target().ok_or(RejoinError::NoPrimary)?;
        let promised = self.memory().promise;
        if promised > term {
            return Err(RejoinError::Superseded { promised });
        }
        let ask = |source| RejoinError::Ask { node: node.clone(), source };
        let sql = Sql::of_primary(&self.env, &endpoint, ASK_BOUND).await.map_err(ask)?;
        let query = "SELECT (SELECT system_identifier FROM pg_control_system()), \
            CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END";
        let row = sql.rows("asking the primary", query, ASK_BOUND).await.map_err(ask)?;
        let mut row = row.into_iter().next().unwrap_or_default().into_iter();
        let theirs = row.next().flatten().unwrap_or_default();
        let timeline = row.next().flatten().and_then(|t| u32::from_str_radix(&t, 16).ok()).map(TimelineId);
        if let Some(ours) = self.state.look(|o| o.system_id.clone()).filter(|ours| *ours != theirs) {
            return Err(RejoinError::OtherCluster { node, theirs, ours });
        }
        let Some(timeline) = timeline.filter(|t| Some(*t) == term.timeline()) else {
            return Err(RejoinError::NotPrimary { node, term });
        };
        let history = if timeline.0 == 1 {
            History::root(timeline)
        } else {
            let file = format!("pg_wal/{}", timeline.history_file());
            // Written by the primary before it is one, so it is there; 1 MiB is thousands of failovers.
            let query =
                format!("SELECT convert_from(pg_read_binary_file({}, 0, 1048576, false), 'UTF8')", literal(&file));
            let text: String = sql.value("reading the primary's history", &query, ASK_BOUND).await.map_err(ask)?;
            History::parse(timeline, &text).map_err(|source| RejoinError::History { node: node.clone(), source })?
        };
        Ok(Source { node, term, endpoint, history, sql })
    }
}
