//! A server is to stop what it is at, which may be a commit by now.
//!
//! What waits for standbys must not be told to stop waiting: it would be visible to all, and be on no standby. So it is not
//! when a client asks for that while its server is at a unit with a COMMIT, and whatever it is at when nobody asks but a limit or
//! an operator. Within a unit the server does not tell how far it is. So it is asked, on another connection, and in the same
//! statement told to stop what it is at, if it does not wait. One that ends in that very moment leaves the signal to its
//! commit: that is told by its notice, as ever.

use crate::session::cancel::{Asks, Waiters};
use crate::session::client::Session;
use crate::session::confirm::Connection;
use crate::session::relay::Hidden;
use std::cell::Cell;
use std::time::Duration;

/// What a server may be told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unless {
    /// All but a wait for standbys.
    Waiting,
    /// Of those only what comes before the COMMIT in the same unit: not a text that begins with a word of those that may commit
    /// before their unit does. Who is at a COMMIT shows that text from its Parse on.
    Committing,
}

/// What is answered of a backend that waits for standbys.
const WAITS: &str = "waits";
/// What is answered of one that writes WAL, or the state of transactions, which may be its commit's: a signal now would end the
/// wait behind that.
const FLUSHES: &str = "flushes";
/// Such waits, as regular expression: a new segment is made within a flush, too. What streams waits under such a name as well.
const WRITES: &str = "^wal(?!sender)|slru|xact|committs";
/// How long until such a one is looked at again: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(40));
/// How long until a connection is looked for again, where none was to be had.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Cancel what the backend `pid` is at, unless that is what must go on. The connection was left by somebody else: by another
/// role the backend could not be seen, another time limit could end the question, and other operators could be found.
fn question(pid: u32, unless: Unless) -> String {
    let words = match unless {
        Unless::Waiting => "",
        // A text that is not told, or too long for its first word to be told, may be any.
        Unless::Committing => {
            " AND pg_catalog.lower(pg_catalog.substring(query,\
             '^(?:[[:space:](;]|--[^\n]*\n|/[*](?:[^*]|[*]+[^*/])*[*]+/)*([a-zA-Z]+)')) \
             NOT IN ('commit','end','prepare','rollback','abort','call','do','vacuum')"
        }
    };
    format!(
        "SET LOCAL ROLE NONE;SET LOCAL search_path=pg_catalog;SET LOCAL statement_timeout=0;\
         SELECT CASE WHEN wait_event='SyncRep' THEN '{WAITS}' \
         WHEN pg_catalog.lower(wait_event) ~ '{WRITES}' THEN '{FLUSHES}' \
         WHEN state NOT LIKE 'idle%'{words} THEN pg_catalog.pg_cancel_backend(pid)::pg_catalog.text END \
         FROM pg_catalog.pg_stat_activity WHERE pid={pid}"
    )
}

/// Has it answered that?
fn says(answer: &Hidden, word: &str) -> bool {
    answer.rows.iter().any(|row| row.first().is_some_and(|cell| cell.as_deref() == Some(word)))
}

impl Session {
    /// Cancel what the server is at, unless that is what must go on. It takes `connect_timeout` at most; until then nothing new is
    /// sent there, and one whose question was not seen to end serves no other client. The connection for it is one that nobody has
    /// to wait for: those of the pool may all wait for standbys. One that was idle and does not answer may be dead: half of the
    /// time is for a new one. While one is asked nobody else has it asked for the same.
    pub(super) fn cancel_unless(&mut self, unless: Unless, asks: Asks, waiters: Waiters) {
        let (want, keeps) = self.want_beside(self.w.now());
        let Some(server) = self.server.as_ref().filter(|server| server.cancels.ask(asks, waiters)) else { return };
        let (node, pid, cancels) = (server.meta.node.clone(), server.meta.key.0, server.cancels.begin());
        let (w, presence, limit) = (self.w.clone(), self.presence.clone(), self.w.config().connect_timeout);
        let errand = self.w.begin_errand();
        let serving = presence.serving.get();
        self.cancelling = true;
        tokio::task::spawn_local(async move {
            let _errand = errand;
            // A question that nobody waits for any more may be read when another client has that server.
            let asking = Cell::new(0);
            // Behind a lost server its session may be at something else.
            let spare = |spared| {
                if presence.serving.get() == serving {
                    presence.spared.set(spared);
                }
            };
            let ask = async {
                // Many may be over a limit at the same time.
                let turns = &w.questions[asks as usize];
                let mut turn = turns.acquire().await.ok()?;
                let mut next = Connection::open(&w, &want, keeps).await;
                while next.is_none() {
                    drop(turn);
                    tokio::time::sleep(TRY_AGAIN).await;
                    turn = turns.acquire().await.ok()?;
                    next = Connection::open(&w, &want, keeps).await;
                }
                // That session's user could not be put back together with its role.
                if next.as_mut().is_some_and(|other| other.server().is_another_user()) {
                    drop(next.take());
                    next = Connection::new(&w, &want).await;
                }
                let mut pause = LOOK_AGAIN.0;
                while let Some(mut other) = next.take() {
                    // Elsewhere that number is another process's.
                    if other.server().meta().is_none_or(|meta| meta.node != node) {
                        return Some(());
                    }
                    asking.set(asking.get() + 1);
                    let patience = if other.reused() { limit / 2 } else { limit };
                    if let Some(answer) = other.server().ask(&question(pid, unless), patience).await {
                        asking.set(asking.get() - 1);
                        if says(&answer, FLUSHES) && !cancels.is_over() {
                            drop(turn);
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(LOOK_AGAIN.1);
                            turn = turns.acquire().await.ok()?;
                            next = Some(other);
                            continue;
                        }
                        spare(says(&answer, WAITS));
                        return Some(());
                    }
                    if other.reused() {
                        drop(other);
                        next = Connection::new(&w, &want).await;
                    }
                }
                None
            };
            let asked = tokio::select! {
                asked = tokio::time::timeout(limit, ask) => asked.ok().flatten(),
                () = cancels.given_up(|| asking.get() > 0) => Some(()),
            };
            match (asked, asks) {
                (Some(()), _) => {}
                // Its client was told that this was dealt with.
                (None, Asks::Client) => tracing::info!(%node, ?limit, "a cancel request came to nothing"),
                (None, Asks::Limit | Asks::AtCommit) => {
                    if asks == Asks::Limit && !cancels.is_over() {
                        // It may wait for standbys, and is as little given up as what does.
                        spare(true);
                    }
                    tracing::debug!(%node, ?limit, "a server could not be asked whether it may stop what it is at");
                }
            }
            if asking.get() > 0 {
                cancels.lose();
            }
            let waiters = cancels.asked(asks);
            cancels.end();
            presence.wake();
            drop(waiters);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writes_wal_or_the_state_of_transactions_may_be_at_its_commit() {
        let is_met = |event: &str| {
            WRITES.split('|').any(|word| match word.strip_prefix('^').and_then(|word| word.split_once("(?!")) {
                Some((start, but)) => {
                    event.strip_prefix(start).is_some_and(|rest| !rest.starts_with(but.trim_end_matches(')')))
                }
                None => event.contains(word),
            })
        };
        // As PostgreSQL 13 to 18 call them.
        for event in [
            "WALSync",
            "WALWrite",
            "WALInitSync",
            "WALInitWrite",
            "WALInsert",
            "WALBufMapping",
            "WalSync",
            "SLRUWrite",
            "XactSLRU",
            "XactBuffer",
            "XactGroupUpdate",
            "CommitTsSLRU",
            "CommitTs",
        ] {
            assert!(is_met(&event.to_lowercase()), "{event}");
        }
        let streams = ["WalSenderMain", "WALSenderMain", "WalSenderWaitForWAL", "WalSenderWriteData"];
        let others = ["SyncRep", "transactionid", "virtualxid", "PgSleep", "relation", "ClientRead", "DataFileRead"];
        for event in streams.into_iter().chain(others) {
            assert!(!is_met(&event.to_lowercase()), "{event}");
        }
        for unless in [Unless::Waiting, Unless::Committing] {
            assert!(question(1, unless).contains(&format!("pg_catalog.lower(wait_event) ~ '{WRITES}'")), "{unless:?}");
        }
    }
}
