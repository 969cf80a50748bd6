//! Making commits wait for standbys, and proving that they do.
//!
//! `SHOW synchronous_standby_names` proves nothing: from the empty list to a list it is the checkpointer that switches
//! waiting on when it processes the reload, and from list to list each walsender goes by its own copy. So a list that
//! nobody can satisfy is set first, and a commit of ours is seen to wait under it although every standby has its WAL;
//! only then the real list is set. See syncrep.c. Where only commits that ask for it waited, every session first goes by
//! the default under which all do, see `take_up`. Before commits may be released by two standbys or more, each is seen to
//! be connected only once, see `slots`.

use super::commands::CommandError;
use super::sql::{Sql, SqlError};
use super::{Agent, postgres};
use crate::api::{Arm, Armed};
use crate::fsm::sync_set::Waits;
use cluster::Lsn;
use cluster::sync_names::SyncNames;
use std::io;
use std::time::Duration;
use tokio::time::Instant;

/// Bound on the whole proof: a checkpointer inside a long fsync answers late.
const PROOF_BOUND: Duration = Duration::from_secs(15);

/// Waiting that could not be proved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProofError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("settings could not be written")]
    Settings(#[from] io::Error),
    #[error("commits were not seen to wait within {0:?}")]
    NotWaiting(Duration),
    #[error("{sessions} sessions still commit as before, although they were to end")]
    NotTakenUp { sessions: usize },
    #[error("do not stream through replication slots of their own, so that each could count twice: {nodes}")]
    WithoutSlot { nodes: String },
    #[error("the standbys did not release a commit within {0:?}")]
    NotReleased(Duration),
}

/// A commit that waits under a list that nobody can satisfy.
struct Probe {
    commit: tokio::task::JoinHandle<Result<(), SqlError>>,
    /// Everything that commits past here waits.
    lsn: Lsn,
}

impl Agent {
    /// `/agent/arm`.
    pub(super) async fn arm(&self, order: &Arm) -> Result<Armed, CommandError> {
        self.promise(order.term)?;
        self.must_be_primary(order.term)?;
        let names = match order.sync_names.parse::<SyncNames>() {
            Ok(names @ SyncNames::Any { .. }) => names,
            _ => return Err(self.wrong_state("given a list of standbys")),
        };
        let _turn = self.arming.lock().await;
        // Of two orders under way the later policy's must have the last word, and a policy only grows.
        self.read_records().await.map_err(|e| self.failed("arming", &e))?;
        if self.policy().map(|p| p.epoch) != Some(order.policy_epoch) {
            return Err(self.wrong_state("an order of the policy in force"));
        }
        self.remember(|m| m.armed = m.armed.max(order.policy_epoch)).map_err(|e| self.failed("arming", &e))?;
        let before = self.conf.lock().await.waits.clone();
        match self.arm_from(&before, &names).await {
            Ok(lsn) => {
                tracing::info!(node = %self.env.config.node, term = order.term.0, %lsn, "commits wait for standbys again");
                Ok(Armed { lsn, policy_epoch: order.policy_epoch })
            }
            Err(error) => {
                // Back to what was: the manager still has the suspension on record.
                if let Err(error) = self.go_back(&before).await {
                    tracing::error!(node = %self.env.config.node, %error, "settings could not be written");
                }
                Err(self.failed("arming", &error).into())
            }
        }
    }

    async fn arm_from(&self, before: &Waits, names: &SyncNames) -> Result<Lsn, ProofError> {
        self.all_through_slots(names).await?;
        if self.conf.lock().await.is_lenient() {
            self.set_waits(&Waits::always(before.names.clone())).await?;
            self.taken_up().await?;
        }
        self.prove_and_release(names).await
    }

    async fn prove_and_release(&self, names: &SyncNames) -> Result<Lsn, ProofError> {
        let sql = Sql::local(&self.env, "postgres", Duration::from_secs(2)).await?;
        let deadline = Instant::now() + PROOF_BOUND;
        let probe = self.fenced_probe(&sql, deadline).await?;
        let abort = probe.commit.abort_handle();
        // Each walsender has processed an answer past the probe without releasing it: it knows the fenced list.
        let behind = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn < '{}'",
            probe.lsn
        );
        while sql.value::<u64>("waiting for standbys", &behind, Duration::from_secs(2)).await? > 0 {
            if Instant::now() >= deadline {
                abort.abort();
                return Err(ProofError::NotReleased(PROOF_BOUND));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if probe.commit.is_finished() {
            return Err(ProofError::NotWaiting(PROOF_BOUND));
        }
        self.set_waits(&Waits::always(names.clone())).await?;
        let lsn = probe.lsn;
        let released = tokio::time::timeout_at(deadline, async {
            let mut commit = probe.commit;
            loop {
                // Waiters are looked at again when a standby answers, so give it something to answer.
                sql.rows("writing a record", "SELECT pg_logical_emit_message(false, 'pgtenure', '')", PROOF_BOUND)
                    .await?;
                if let Ok(done) = tokio::time::timeout(Duration::from_millis(100), &mut commit).await {
                    return Ok::<_, SqlError>(done.is_ok_and(|d| d.is_ok()));
                }
            }
        });
        match released.await {
            Ok(Ok(true)) => Ok(lsn),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(false)) | Err(_) => {
                abort.abort();
                Err(ProofError::NotReleased(PROOF_BOUND))
            }
        }
    }

    /// Prove that commits wait before any standby is connected, then set `names`. The probe's commit is released by
    /// the first standbys that follow.
    pub(super) async fn prove_waiting(&self, names: &SyncNames, bound: Duration) -> Result<(), ProofError> {
        let sql = Sql::local(&self.env, "postgres", Duration::from_secs(2)).await?;
        self.fenced_probe(&sql, Instant::now() + bound).await?;
        Ok(self.set_waits(&Waits::always(names.clone())).await?)
    }

    /// Set the list that nobody satisfies and commit until a commit is seen to wait.
    async fn fenced_probe(&self, sql: &Sql, deadline: Instant) -> Result<Probe, ProofError> {
        self.set_waits(&Waits::FENCED).await?;
        while Instant::now() < deadline {
            let other = Sql::local(&self.env, "postgres", Duration::from_secs(2)).await?;
            let pid: i32 = other.value("probing", "SELECT pg_backend_pid()", Duration::from_secs(2)).await?;
            let commit = tokio::spawn(async move {
                other.rows("probing", "SET synchronous_commit = on", Duration::from_secs(2)).await?;
                let write = "SELECT pg_logical_emit_message(true, 'pgtenure', 'armed?')";
                other.rows("probing", write, Duration::from_secs(3600)).await.map(drop)
            });
            let waits = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'");
            while !commit.is_finished() && Instant::now() < deadline {
                if sql.value::<u64>("watching the probe", &waits, Duration::from_secs(2)).await? == 1 {
                    let now = "SELECT pg_current_wal_insert_lsn()";
                    let lsn: Lsn = sql.value("asking for the position", now, Duration::from_secs(2)).await?;
                    self.conf.lock().await.proved();
                    return Ok(Probe { commit, lsn: lsn.normalised_insert() });
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            commit.abort();
        }
        Err(ProofError::NotWaiting(PROOF_BOUND))
    }

    /// Write what commits wait for and tell PostgreSQL. Takes effect soon after; see the module's header for what that
    /// proves.
    pub(super) async fn set_waits(&self, waits: &Waits) -> io::Result<()> {
        self.set_waits_if(waits, |_| true).await
    }

    /// Only if it is so still, by what they wait for now, once nobody else changes that: an order may have done it meanwhile.
    pub(super) async fn set_waits_if(&self, waits: &Waits, still: impl FnOnce(&Waits) -> bool) -> io::Result<()> {
        let mut conf = self.conf.lock().await;
        if !still(&conf.waits) {
            return Ok(());
        }
        let before = conf.waits.clone();
        if conf.change(waits)
            && let Err(error) = conf.write(&self.env).and_then(|()| postgres::reload(&self.env))
        {
            // To be tried again.
            conf.waits = before;
            return Err(error);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_wait_for_longer_than_arming_may_take() {
        let longest = super::super::slots::HELD_WITHIN + super::super::take_up::LONGEST + PROOF_BOUND;
        assert!(crate::fsm::rearm::ARM_WITHIN > longest);
    }
}
