//! Back from commits that all wait to commits that wait only when they ask for it.
//!
//! Those that wait already do so for the list, whether they asked for it or not, and no server tells which. Emptying the
//! list acknowledges all of them, also those that asked; it is done when the policy says that nothing is promised. After
//! a fence, or an order to make all wait that came to nothing, the list is set instead: standbys that answer release them
//! in a moment, and without any they are told after a while, by PostgreSQL's own warning, that it waits no longer.

use super::Agent;
use super::env::Env;
use super::sql::{Sql, SqlError};
use crate::fsm::sync_set::Waits;
use cluster::sync_names::SyncNames;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For so long a commit waits for a standby although it may not have asked to.
const PATIENCE: Duration = Duration::from_secs(3);
const BOUND: Duration = Duration::from_secs(2);

impl Agent {
    /// Let through who waits, whatever for; then only who asks waits. The list is set by `preset_by_policy` when nobody
    /// waits any more, or it would hold those that it was to let through.
    pub(super) async fn let_through(&self, waits: Waits) -> io::Result<()> {
        let names = if waits.on_request { SyncNames::Off } else { waits.names };
        self.set_waits(&Waits { names, ..waits }).await?;
        self.wake.notify_one();
        Ok(())
    }

    /// Back to what commits waited for before, without letting anybody through who asked to wait.
    pub(super) async fn go_back(&self, before: &Waits) -> io::Result<()> {
        self.set_waits(before).await?;
        if before.on_request && before.names != SyncNames::Off {
            tokio::spawn(release(Arc::clone(&self.env)));
        }
        Ok(())
    }
}

async fn release(env: Arc<Env>) {
    match release_trapped(&env).await {
        Ok(0) => {}
        Ok(commits) => {
            tracing::warn!(node = %env.config.node, commits, "commits waited for standbys that do not answer: given up");
        }
        Err(error) => tracing::debug!(node = %env.config.node, %error, "waiting commits not looked for"),
    }
}

/// Those that began before now, and wait still after a while; how many were given up.
async fn release_trapped(env: &Env) -> Result<u64, SqlError> {
    let (what, deadline) = ("looking for commits that wait", Instant::now() + PATIENCE);
    let sql = Sql::local(env, "postgres", BOUND).await?;
    let now: String = sql.value(what, "SELECT extract(epoch FROM clock_timestamp())", BOUND).await?;
    let trapped = format!("FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query_start <= to_timestamp({now})");
    while Instant::now() < deadline {
        if sql.value::<u64>(what, &format!("SELECT count(*) {trapped}"), BOUND).await? == 0 {
            return Ok(0);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    sql.value(what, &format!("SELECT count(pg_terminate_backend(pid)) {trapped}"), BOUND).await
}
