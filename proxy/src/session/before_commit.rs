//! A cancel request while the server is at a unit that holds a COMMIT and other statements before it.
//!
//! A COMMIT that waits for standbys must not be told to stop waiting, and within a unit the server does not tell how far it
//! is. So it is asked, on another connection, and in the same statement told to stop what it is at, if that is none that
//! commits. One that ends in that very moment leaves the signal to its COMMIT: that is told by its notice, as ever.

use crate::config::PoolMode;
use crate::route::{Consistency, Promise};
use crate::session::acquire::{self, Want};
use crate::session::cancel::Waiters;
use crate::session::client::Session;
use crate::session::in_use::InUse;
use crate::sql::Access;

/// Cancel what the backend `pid` is at, when its text begins with a word of those that commit nothing before their unit does.
/// Who is at a COMMIT shows that text from its Parse on.
fn question(pid: u32) -> String {
    format!(
        "SELECT pg_catalog.pg_cancel_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid={pid} AND state='active' \
         AND wait_event IS DISTINCT FROM 'SyncRep' AND pg_catalog.lower(pg_catalog.substring(query,'^[[:space:](]*([a-zA-Z]+)')) \
         IN ('select','insert','update','delete','merge','with','values','table','lock','copy','refresh')"
    )
}

impl Session {
    /// Cancel what comes before the COMMIT in the unit that the server is at, if it is at that. It takes `connect_timeout` at
    /// most; until then nothing new is sent there.
    pub(super) fn cancel_before_commit(&mut self, waiters: Waiters) {
        let now = self.w.now();
        let Want { promise, .. } = self.want(Access::Write, now);
        let promise = Promise { after: None, consistency: Consistency::Eventual, ..promise };
        let want = Want { quiet: true, avoid: Vec::new(), since: now, promise, ..self.want(Access::Write, now) };
        let Some(server) = &self.server else { return };
        let (node, pid, cancels) = (server.meta.node.clone(), server.meta.key.0, server.cancels.begin());
        let (w, presence, limit) = (self.w.clone(), self.presence.clone(), self.w.config().connect_timeout);
        let keeps = self.mode == PoolMode::Transaction;
        self.cancelling = true;
        tokio::task::spawn_local(async move {
            let ask = async {
                let found = acquire::find(&w, want, 0, None).await.ok()?;
                let mut other = InUse::found(&w, found, keeps);
                // Elsewhere that number is another process's.
                if other.meta().is_some_and(|meta| meta.node == node) {
                    other.ask(&question(pid), limit).await?;
                }
                Some(())
            };
            if tokio::time::timeout(limit, ask).await.ok().flatten().is_none() {
                tracing::debug!(%node, ?limit, "cancel request for what comes before a COMMIT could not be passed on");
            }
            cancels.end();
            presence.wake();
            drop(waiters);
        });
    }
}
