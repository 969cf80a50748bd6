//! The agent's own loop: facts in, one act out, done, and again.

use super::adopt::AdoptError;
use super::arm::ProofError;
use super::postgres::{self, ServerError, Stop};
use super::sql::Sql;
use super::{Agent, bootstrap::BootstrapError, rejoin::RejoinError};
use crate::api::PostgresState;
use crate::fsm::agent::{Act, Because, Facts, Server, decide};
use crate::fsm::sync_set::Waits;
use crate::record::{Phase, TermRecord};
use crate::store::StoreError;
use cluster::sync_names::SyncNames;
use cluster::{NodeId, Term};
use std::io;
use std::time::Duration;

/// Between two decisions when nothing wakes the loop.
const IDLE: Duration = Duration::from_millis(500);
/// After an act that failed: doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest pause after failures.
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// How long a new upstream is connected to without PostgreSQL's pauses in between.
const EAGER_FOR: Duration = Duration::from_secs(3);

/// An act that failed; tried again after a pause.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Rejoin(#[from] RejoinError),
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    #[error("settings could not be written")]
    Settings(#[from] std::io::Error),
    #[error("commits could not be made to wait")]
    Protecting(#[from] ProofError),
}

/// For so long it counts that a standby had to be started again because it hung.
const HUNG_MEMORY: Duration = Duration::from_secs(3 * 3600);

impl Agent {
    /// Decide and act for ever.
    pub(super) async fn reconcile(&self) {
        let mut records = self.records.subscribe();
        let mut backoff = BACKOFF_MIN;
        let mut troubled = false;
        loop {
            let known = self.records.borrow().read_at.is_some();
            let act = if known { self.act_once().await } else { Ok(Act::Wait(Because::NoPrimary)) };
            let failed = act.is_err();
            let pause = match act {
                Ok(act) => {
                    backoff = BACKOFF_MIN;
                    let trouble = if let Act::Wait(because) = act { because.trouble() } else { None };
                    match trouble {
                        Some(text) => self.trouble(text),
                        None if troubled => self.untroubled(),
                        None => {}
                    }
                    troubled = trouble.is_some();
                    // Act again at once after having acted: the facts are others now.
                    if matches!(act, Act::Wait(_)) { IDLE } else { Duration::from_millis(5) }
                }
                Err(error) => {
                    let told = self.failed("acting", &error).why;
                    self.trouble(&told);
                    troubled = true;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    backoff
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
                // An act that failed may have ended with PostgreSQL's end: that is no reason to try again sooner.
                () = self.died.notified(), if !failed => {}
                _ = records.changed() => {}
            }
        }
    }

    async fn act_once(&self) -> Result<Act, ActError> {
        // That must not keep it from stopping what is to stop.
        let unproved = match self.preset_by_policy().await {
            Err(error @ ActError::Protecting(_)) => Err(error),
            other => Ok(other?),
        };
        self.reset_foreign_settings();
        self.tell_of_unexamined();
        self.calm_down()?;
        self.finish_adoption().await?;
        if matches!(self.decide_now(), Act::Wait(_)) {
            self.look_at_restartpoints().await?;
            return unproved.map(|()| self.decide_now());
        }
        let _held = self.actuator.lock().await;
        // Facts may have changed while another held it.
        self.look_again(self.env.config.probe_timeout).await;
        let act = self.decide_now();
        if !matches!(act, Act::Wait(_)) {
            tracing::info!(node = %self.env.config.node, ?act, "acting by itself");
        }
        match act {
            Act::Wait(_) => {}
            Act::TakeOver => {
                let done = self.take_over().await;
                self.rejoining(None);
                done?;
            }
            Act::Create => self.claim_creation().await?,
            Act::ResumeCreation => self.create_cluster().await?,
            Act::Clone => self.clone_primary().await?,
            Act::StartDetached => {
                self.rejoining("starting");
                let started = self.start_detached(self.memory().promise).await;
                self.rejoining(None);
                self.look_again(self.env.config.probe_timeout).await;
                started?;
            }
            Act::StartUnder => {
                let done = self.start_under_primary().await;
                self.rejoining(None);
                done?;
            }
            Act::Rejoin => {
                let done = self.rejoin().await;
                self.rejoining(None);
                done?;
            }
            Act::StopStranded => {
                tracing::warn!(
                    node = %self.env.config.node,
                    reason = "it waits for WAL of a node that is not the primary", "stopping postgres that is starting"
                );
                postgres::stop(&self.env, Stop::Immediate).await?;
                self.look_again(self.env.config.probe_timeout).await;
            }
            Act::StopHung => {
                tracing::warn!(node = %self.env.config.node, "the standby has hung for too long: starting postgres again");
                self.note_hung_stop();
                postgres::stop(&self.env, Stop::Immediate).await?;
                self.look_again(self.env.config.probe_timeout).await;
            }
            Act::StopNamesake => {
                tracing::warn!(node = %self.env.config.node, "another agent is on record for this node: stopping postgres");
                postgres::stop(&self.env, Stop::Fast(self.env.config.stop_timeout)).await?;
                self.look_again(self.env.config.probe_timeout).await;
            }
            Act::StopFenced => self.stop_fenced().await?,
            Act::StopSuperseded => {
                tracing::warn!(node = %self.env.config.node, "another term has begun: stopping postgres");
                postgres::stop(&self.env, Stop::Immediate).await?;
                self.look_again(self.env.config.probe_timeout).await;
            }
        }
        Ok(act)
    }

    /// The promotion that was to come is over, or long enough ago, whatever became of it and whether etcd tells of it.
    fn fill_segments(&self) -> io::Result<()> {
        let Ok(mut conf) = self.conf.try_lock() else { return Ok(()) };
        let now = self.env.clock.now();
        if conf.sparse_for(now).is_none_or(|sparse| sparse < EAGER_FOR) {
            return Ok(());
        }
        conf.fill();
        let told = conf.write(&self.env).and_then(|()| postgres::reload(&self.env));
        told.inspect_err(|_| conf.not_filled(now))
    }

    /// The upstream is connected to and the term open, or it has been tried for long enough to be tried at leisure.
    fn calm_down(&self) -> io::Result<()> {
        self.fill_segments()?;
        let open = self.records.borrow().term.as_ref().is_some_and(|t| t.value.phase == Phase::Active);
        let now = self.env.clock.now();
        let missing = self.state.look(|o| o.not_streaming_since.map(|t| now.since(t)));
        if missing.map_or(!open, |missing| missing < EAGER_FOR) {
            return Ok(());
        }
        // Somebody is changing it right now; the next round looks again.
        let Ok(mut conf) = self.conf.try_lock() else { return Ok(()) };
        if conf.calm()
            && let Err(error) = conf.write(&self.env).and_then(|()| postgres::reload(&self.env))
        {
            conf.not_calmed();
            return Err(error);
        }
        Ok(())
    }

    fn decide_now(&self) -> Act {
        let seen = self.state.get();
        let records = self.records.borrow().clone();
        let memory = self.memory();
        let ordered = self.ordered_record(records.term.as_ref().map(|t| &t.value));
        let record = ordered.as_ref().or(records.term.as_ref().map(|t| &t.value));
        let conf = self.conf.try_lock().map(|c| c.upstream.clone());
        // Somebody is changing it right now; the next round sees the result.
        let Ok(upstream) = conf else { return Act::Wait(Because::Fine) };
        let server = match &seen.postgres {
            PostgresState::Absent => Server::Absent,
            PostgresState::Stopped { was_primary, .. } => Server::Stopped { was_primary: *was_primary },
            PostgresState::Starting => Server::Starting,
            PostgresState::Standby(_) => {
                Server::Standby { streaming: seen.receiver.as_ref().filter(|r| r.streaming).and_then(|r| r.timeline) }
            }
            PostgresState::Primary(p) => Server::Primary { timeline: p.timeline },
            PostgresState::Hung { .. } => Server::Hung { was_primary: seen.was_primary },
        };
        decide(&Facts {
            node: &self.env.config.node,
            server,
            promise: memory.promise,
            record,
            init: records.init.as_ref().map(|i| &i.value),
            system_id: seen.system_id.as_deref(),
            memory_of: seen.memory_of.as_deref(),
            fence: records.fences.get(&self.env.config.node),
            maintenance: records.maintenance,
            adopts: self.adoption(),
            upstream: upstream.as_ref().map(|u| (&u.node, u.term)),
            starts_late: seen
                .starting_since
                .is_some_and(|t| self.env.clock.now().since(t) >= self.env.config.start_timeout),
            hangs_late: match seen.postgres {
                PostgresState::Hung { for_ms } => Duration::from_millis(for_ms) >= self.hung_patience(),
                _ => false,
            },
            // A receiver that connects over and over again does not stream, whatever it says in between.
            not_streaming_for: [seen.unsteady.since(), seen.awaited.map(|a| a.asked)]
                .into_iter()
                .flatten()
                .map(|t| self.env.clock.now().since(t))
                .max()
                .unwrap_or_default(),
            rewind_interrupted: memory.rewinding,
            quarantined: memory.quarantine.is_some(),
            remembers: memory.promise > Term(0) || memory.policy.is_some(),
            others: records.others(&self.env.config.node, &self.env.cluster.voters, self.env.clock.now()),
            voter: self.env.is_voter(),
            place: seen.place,
        })
    }

    /// How long a standby may hang before it is started again: twice as long each time that does not help.
    fn hung_patience(&self) -> Duration {
        let (stops, last) = *self.hung_stops.lock().expect("no holder of this lock panics");
        let stops = if self.env.clock.now().since(last) < HUNG_MEMORY { stops } else { 0 };
        self.env.config.hung_standby_timeout * (1 << stops.min(5))
    }

    fn note_hung_stop(&self) {
        let now = self.env.clock.now();
        let mut hung = self.hung_stops.lock().expect("no holder of this lock panics");
        *hung = (if now.since(hung.1) < HUNG_MEMORY { hung.0 + 1 } else { 1 }, now);
    }

    /// A manager's order to follow says what etcd's hint will say a moment later.
    fn ordered_record(&self, read: Option<&TermRecord>) -> Option<TermRecord> {
        let order = self.follow.lock().expect("no holder of this lock panics").clone()?;
        let read = read?;
        let newer = order.term > read.term;
        let promoting = order.term == read.term && matches!(read.phase, Phase::Recruiting | Phase::Promoting);
        if !newer && !promoting {
            return None;
        }
        Some(TermRecord { term: order.term, phase: Phase::Opening, node: Some(order.primary), ..read.clone() })
    }

    /// The primary to follow now, and how to reach it.
    pub(super) fn target(&self) -> Option<(NodeId, Term, cluster::Endpoint)> {
        let records = self.records.borrow();
        let read = records.term.as_ref().map(|t| &t.value);
        if self.ordered_record(read).is_some() {
            let order = self.follow.lock().expect("no holder of this lock panics").clone()?;
            return Some((order.primary, order.term, order.endpoint));
        }
        let (node, term) = records.primary_node()?;
        Some((node.clone(), term, records.postgres_of(node)?.clone()))
    }

    /// Every node holds what commits would wait for if it were promoted. On a primary only towards more waiting; the
    /// other way is a manager's or the lease's decision, but where it is on record already.
    async fn preset_by_policy(&self) -> Result<(), ActError> {
        if self.records.borrow().policy.is_none() {
            return Ok(());
        }
        let serving = self.state.look(|o| match &o.postgres {
            PostgresState::Primary(_) | PostgresState::Hung { .. } => Some(true),
            PostgresState::Standby(_) => Some(false),
            _ => None,
        });
        if serving == Some(true) {
            self.note_protection();
        }
        // In this order: a term that opens unprotected is read together with the policy that says so, and to go by the one and by the
        // policy from before would have commits wait again, for ever.
        let serves = self.serves().is_some();
        let waits = self.waits_by_policy();
        match serving {
            // Looked at last: what a promotion has set and proved is not to be replaced by what was read before it.
            Some(false) => {
                let still = || self.is_unfrozen_standby() && self.waits_by_policy() == waits;
                Ok(self.set_waits_if(&waits, |_| still()).await?)
            }
            // Before the term is open the manager's orders hold.
            Some(true) if !serves => Ok(()),
            Some(true) if waits.on_request => Ok(self.preset_on_request(&waits).await?),
            Some(true) if waits.protects() => self.preset_always(&waits).await,
            Some(true) | None => Ok(()),
        }
    }

    /// Frozen, the manager chooses the names with the promotion; and a promoted one counts as frozen until it is seen to be a
    /// primary.
    fn is_unfrozen_standby(&self) -> bool {
        self.state.look(|o| o.frozen_for.is_none() && matches!(o.postgres, PostgresState::Standby(_)))
    }

    /// The primary of a cluster whose commits all wait. Where only those did that ask for it, each session must be seen to
    /// go by the other default; until that is proved it is tried again.
    async fn preset_always(&self, waits: &Waits) -> Result<(), ActError> {
        let (holds, lenient) = {
            let conf = self.conf.lock().await;
            (conf.waits.clone(), conf.is_lenient())
        };
        if holds.names == SyncNames::Fenced || !holds.on_request && !lenient && holds.protects() {
            return Ok(());
        }
        if !holds.on_request && !lenient {
            // Whoever orders that they wait for nobody has read why.
            return Ok(self.set_waits_if(waits, |_| self.waits_by_policy() == *waits).await?);
        }
        // An order to arm does all of it.
        let Ok(_turn) = self.arming.try_lock() else { return Ok(()) };
        tracing::warn!(node = %self.env.config.node, "the policy makes all commits wait, but they did not");
        if let Err(error) = self.make_all_wait(waits).await {
            self.conf.lock().await.not_taken_up();
            self.set_waits(waits).await?;
            return Err(error.into());
        }
        Ok(())
    }

    /// The primary of an async cluster: nothing that is asked for is promised to a later term, so the list may be set or
    /// changed at any time, once nobody waits who has not asked for it.
    async fn preset_on_request(&self, waits: &Waits) -> std::io::Result<()> {
        let holds = self.conf.lock().await.waits.clone();
        if holds == *waits || holds.names == SyncNames::Fenced || self.is_being_lowered() {
            return Ok(());
        }
        let Ok(_turn) = self.arming.try_lock() else { return Ok(()) };
        if !holds.on_request {
            // As in `relax`: under this policy or a later one they were ordered to wait.
            let armed = self.memory().armed;
            if self.policy().is_some_and(|p| armed >= p.epoch) {
                return Ok(());
            }
            // Only an agent that ended in between leaves this, or a record of old.
            return if self.holds_lease() { self.let_through(waits.clone()).await } else { Ok(()) };
        }
        if holds.names == SyncNames::Off && self.commits_wait().await {
            return Ok(());
        }
        // A fence may have been put up meanwhile.
        self.set_waits_if(waits, |now| *now == holds).await
    }

    /// Does the policy say that commits are to wait for nobody, and not yet that they do?
    fn is_being_lowered(&self) -> bool {
        self.suspension().and_then(|s| s.lowered).is_some_and(|l| l.complete_from.is_none())
    }

    /// Does a commit still wait that began when all did? True when that is not known.
    async fn commits_wait(&self) -> bool {
        let bound = self.env.config.probe_timeout;
        let waiting = async {
            self.settings_read(bound).await?;
            let sql = Sql::local(&self.env, "postgres", bound).await?;
            let count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            sql.value::<u64>("looking for commits that wait", count, bound).await
        };
        waiting.await.map_or(true, |n| n > 0)
    }

    fn suspension(&self) -> Option<crate::record::Suspension> {
        self.policy()?.suspended
    }

    /// From where to where commits of this primary were unprotected: what a report of its WAL will need.
    fn note_protection(&self) {
        let Some(policy) = self.policy() else { return };
        let memory = self.memory();
        let (suspended, rearmed) = match (policy.suspended, policy.rearmed, memory.suspended.clone()) {
            (Some(now), ..) => (Some(now), None),
            (None, Some(end), Some(last)) if end.ended(&last) => (Some(last), Some(end)),
            (None, ..) => return,
        };
        if (&memory.suspended, memory.rearmed) != (&suspended, rearmed)
            && let Err(error) = self.remember(|m| (m.suspended, m.rearmed) = (suspended, rearmed))
        {
            tracing::debug!(%error, "suspension not remembered");
        }
    }

    async fn stop_fenced(&self) -> Result<(), ActError> {
        if self.state.look(|o| matches!(o.postgres, PostgresState::Primary(_))) {
            self.set_waits(&Waits::FENCED).await.map_err(ActError::Settings)?;
        }
        let clean = postgres::stop(&self.env, Stop::Fast(self.env.config.stop_timeout)).await?;
        tracing::info!(node = %self.env.config.node, clean, "stopped, because an operator fenced the node");
        self.look_again(self.env.config.probe_timeout).await;
        Ok(())
    }
}
