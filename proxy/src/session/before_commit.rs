//! A server is to stop what it is at, which may be a commit by now.
//!
//! What waits for standbys must not be told to stop waiting: it would be visible to all, and be on no standby. So it is not
//! when a client asks for that while its server is at a COMMIT, and whatever it is at when nobody asks but a limit or an
//! operator. Within a unit the server does not tell how far it is. So it is asked, on another connection, and in the same
//! statement told to stop what it is at, if it does not wait. One that ends in that very moment leaves the signal to its
//! commit: that is told by its notice, as ever.

use crate::config::PoolMode;
use crate::route::{Consistency, Promise};
use crate::session::acquire::Want;
use crate::session::cancel::Waiters;
use crate::session::client::Session;
use crate::session::confirm::Connection;
use crate::sql::Access;
use std::cell::Cell;

/// What a server may be told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unless {
    /// All but a wait for standbys.
    Waiting,
    /// Of those only what comes before the COMMIT in the same unit: a text that begins with a word of those that commit nothing
    /// before their unit does. Who is at a COMMIT shows that text from its Parse on.
    Committing,
}

/// Cancel what the backend `pid` is at, unless that is what must go on.
fn question(pid: u32, unless: Unless) -> String {
    let words = match unless {
        Unless::Waiting => "",
        Unless::Committing => {
            " AND pg_catalog.lower(pg_catalog.substring(query,'^[[:space:](]*([a-zA-Z]+)')) \
             IN ('select','insert','update','delete','merge','with','values','table','lock','copy','refresh')"
        }
    };
    format!(
        "SELECT pg_catalog.pg_cancel_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid={pid} AND state='active' \
         AND wait_event IS DISTINCT FROM 'SyncRep'{words}"
    )
}

impl Session {
    /// Cancel what the server is at, unless that is what must go on. It takes `connect_timeout` at most; until then nothing new is
    /// sent there, and one whose question was not seen to end serves no other client. The connection for it is one that nobody has
    /// to wait for: those of the pool may all wait for standbys. One that was idle and does not answer may be dead: half of the
    /// time is for a new one.
    pub(super) fn cancel_unless(&mut self, unless: Unless, waiters: Waiters) {
        let now = self.w.now();
        let Want { promise, .. } = self.want(Access::Write, now);
        let promise = Promise { after: None, consistency: Consistency::Eventual, ..promise };
        let want = Want { quiet: true, avoid: Vec::new(), since: now, promise, ..self.want(Access::Write, now) };
        let Some(server) = &self.server else { return };
        let (node, pid, cancels) = (server.meta.node.clone(), server.meta.key.0, server.cancels.begin());
        let (w, presence, limit) = (self.w.clone(), self.presence.clone(), self.w.config().connect_timeout);
        let keeps = self.mode == PoolMode::Transaction;
        let errand = self.w.begin_errand();
        self.cancelling = true;
        presence.spared.set(false);
        tokio::task::spawn_local(async move {
            let _errand = errand;
            // A question that nobody waits for any more may be read when another client has that server.
            let asking = Cell::new(0);
            let ask = async {
                // Many may be over a limit at the same time.
                let _turn = w.questions.acquire().await.ok()?;
                let mut next = Connection::open(&w, &want, keeps).await;
                while let Some(mut other) = next.take() {
                    // Elsewhere that number is another process's.
                    if other.server().meta().is_none_or(|meta| meta.node != node) {
                        return Some(());
                    }
                    asking.set(asking.get() + 1);
                    let patience = if other.reused() { limit / 2 } else { limit };
                    if let Some(answer) = other.server().ask(&question(pid, unless), patience).await {
                        asking.set(asking.get() - 1);
                        presence.spared.set(answer.error.is_none() && answer.rows.is_empty());
                        return Some(());
                    }
                    if other.reused() {
                        drop(other);
                        next = Connection::new(&w, &want).await;
                    }
                }
                None
            };
            if tokio::time::timeout(limit, ask).await.ok().flatten().is_none() {
                tracing::debug!(%node, ?limit, "a server could not be asked whether it may stop what it is at");
            }
            if asking.get() > 0 {
                cancels.lose();
            }
            cancels.end();
            presence.wake();
            drop(waiters);
        });
    }
}
