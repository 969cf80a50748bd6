//! Letting commits through without standbys, once the policy says that they are not protected.

use super::Agent;
use super::commands::CommandError;
use super::sql::Sql;
use crate::api::{Relax, Relaxed};
use cluster::Lsn;
use std::time::Duration;

impl Agent {
    /// `/agent/relax`.
    ///
    /// The policy is read anew: only a suspension on record, which every later term begins with, allows it; and only
    /// while the lease is held that ends such a primary.
    pub(super) async fn relax(&self, order: &Relax) -> Result<Relaxed, CommandError> {
        self.promise(order.term)?;
        self.must_be_primary(order.term)?;
        let _turn = self.arming.lock().await;
        self.read_records().await.map_err(|e| self.failed("relaxing", &e))?;
        let allowed = {
            let policy = self.policy().filter(|p| p.epoch == order.policy_epoch);
            policy.map(|p| crate::fsm::sync_set::waits(&p, &self.env.config.node)).filter(|w| !w.protects())
        };
        let Some(waits) = allowed else {
            return Err(self.wrong_state("an order of a policy in force that protects nothing"));
        };
        if self.memory().armed >= order.policy_epoch {
            return Err(self.wrong_state("given no later order to make commits wait"));
        }
        self.outlast_vouched().await?;
        if self.serves() != Some(order.term) || !self.holds_lease() {
            return Err(self.wrong_state("in possession of its lease"));
        }
        self.must_have_watchdog("relaxing", self.lease()).await?;
        self.remember(|m| (m.leased, m.was_strict) = (true, false)).map_err(|e| self.failed("relaxing", &e))?;
        if self.conf.lock().await.waits != waits {
            self.let_through(waits).await.map_err(|e| self.failed("relaxing", &e))?;
        }
        let bound = Duration::from_secs(2);
        let sql = Sql::local(&self.env, "postgres", bound).await.map_err(|e| self.failed("relaxing", &e))?;
        let now = "SELECT pg_current_wal_insert_lsn()";
        let lsn: Lsn =
            sql.value("asking for the position", now, bound).await.map_err(|e| self.failed("relaxing", &e))?;
        tracing::warn!(node = %self.env.config.node, term = order.term.0, %lsn, "commits wait for no standby by themselves");
        Ok(Relaxed { lsn })
    }
}
