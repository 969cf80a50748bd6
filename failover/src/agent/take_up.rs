//! When does every session go by a new `synchronous_commit`?
//!
//! Each process reads the configuration for itself: a session does so before the next command after it was told to. One
//! that has begun a command before goes by the old default until that ends, and would acknowledge what it commits by it.
//! So: the postmaster has read the file and told everybody when a new connection shows the file's stamp; after that a
//! session that is seen to wait for its client's next command will go by the new default, and so does one that has begun
//! two commands since (of the first one the beginning may only have been told late). Who does not within a bound is
//! ended.
//!
//! And when does a standby's checkpointer go by a list that there was not before? It reads the file between any two
//! restartpoints, so it has done that once two have ended after the postmaster had told everybody. Asked for by us they
//! would cost the standbys all at once what they spread over minutes.
//!
//! Source: src/backend/tcop/postgres.c, `PostgresMain`; src/backend/postmaster/postmaster.c, SIGHUP;
//! src/backend/postmaster/checkpointer.c, `CheckpointerMain`.

use super::arm::ProofError;
use super::control::Control;
use super::recovery_conf::STAMP;
use super::sql::{Row, Sql, SqlError};
use super::{Agent, postgres};
use crate::api::PostgresState;
use cluster::sync_names::SyncNames;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// For so long a command may go on that was begun under the old default.
const PATIENCE: Duration = Duration::from_secs(5);
/// Ended sessions are gone after that, or hang in the kernel.
const ENDED_BOUND: Duration = Duration::from_secs(2);
const BOUND: Duration = Duration::from_secs(2);
const SETTINGS_READ: &str = "waiting for the settings to be read";
/// Until every session goes by the new default, or that has failed.
#[cfg(test)]
pub(super) const LONGEST: Duration = BOUND.saturating_add(PATIENCE).saturating_add(ENDED_BOUND);

/// Who could commit by its own default and tell a client so. Walsenders take commands too, until they stream.
const SESSIONS: &str = "\
SELECT a.pid, a.backend_start, a.query_start, \
 a.state IN ('idle', 'idle in transaction', 'idle in transaction (aborted)') AND a.wait_event = 'ClientRead' \
FROM pg_stat_activity a LEFT JOIN pg_stat_replication r USING (pid) \
WHERE a.backend_type IN ('client backend', 'walsender') AND coalesce(r.state, 'startup') = 'startup' \
 AND NOT (a.usename = 'postgres' AND a.application_name = 'pgtenure_agent')";

/// Ends the sessions of clients. Our own commit by what they say themselves.
pub(super) const END_ALL: &str = "\
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
WHERE backend_type = 'client backend' AND NOT (usename = 'postgres' AND application_name = 'pgtenure_agent')";

/// A session at one look.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Session {
    pid: i32,
    since: String,
    /// When its last command began, as the server writes it.
    command: Option<String>,
    /// It waits for its client's next command.
    waits: bool,
}

impl Session {
    fn of(row: &Row) -> Option<Self> {
        let text = |i: usize| row.get(i).and_then(Option::as_deref);
        Some(Self {
            pid: text(0)?.parse().ok()?,
            since: text(1)?.to_owned(),
            command: text(2).map(str::to_owned),
            waits: text(3) == Some("t"),
        })
    }
}

/// A session's last command seen, and how many it has begun since the first look.
type Commands = (Option<String>, u32);

/// Sessions that may go by the old default still, by pid and start. `None` before the first look: who comes later has
/// read the new file.
#[derive(Debug, Default)]
struct Pending(Option<BTreeMap<(i32, String), Commands>>);

impl Pending {
    /// What one look shows; gives the pids of those that are left.
    fn look(&mut self, sessions: Vec<Session>) -> Vec<i32> {
        let before = self.0.take();
        let mut left = BTreeMap::new();
        for s in sessions.into_iter().filter(|s| !s.waits) {
            let id = (s.pid, s.since);
            match before.as_ref().map(|known| known.get(&id)) {
                None => _ = left.insert(id, (s.command, 0)),
                Some(None) => {}
                Some(Some((command, begun))) => {
                    let begun = begun + u32::from(*command != s.command);
                    if begun < 2 {
                        left.insert(id, (s.command, begun));
                    }
                }
            }
        }
        let pids = left.keys().map(|(pid, _)| *pid).collect();
        self.0 = Some(left);
        pids
    }
}

impl Agent {
    /// Wait until the postmaster has read the file last written, so that it has told everybody to.
    pub(super) async fn settings_read(&self, bound: Duration) -> Result<(), SqlError> {
        let deadline = Instant::now() + bound;
        while Instant::now() < deadline {
            if self.shows_stamp().await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(SqlError::TimedOut { what: SETTINGS_READ, after: bound })
    }

    /// Does a new connection show the stamp of the file in force?
    async fn shows_stamp(&self) -> Result<bool, SqlError> {
        let sql = Sql::local(&self.env, "postgres", BOUND).await?;
        let stamp = self.conf.lock().await.stamp(&self.env);
        let shown = format!("SELECT coalesce(current_setting('{STAMP}', true), '')");
        Ok(sql.value::<String>(SETTINGS_READ, &shown, BOUND).await? == stamp)
    }

    /// On a standby whose list is not known to be in force: is it by now? A promotion need not prove it then.
    pub(super) async fn look_at_restartpoints(&self) -> io::Result<()> {
        let standby = || self.state.look(|o| matches!(o.postgres, PostgresState::Standby(_)));
        let told_by = {
            let Ok(conf) = self.conf.try_lock() else { return Ok(()) };
            // Nobody shows a stamp that was not written: once the upstream is known it is.
            if !conf.is_unproved() || conf.is_inherited() || conf.waits.names == SyncNames::Off || !standby() {
                return Ok(());
            }
            (!conf.counts_restartpoints()).then(|| conf.stamp(&self.env))
        };
        // Asked again at the next round.
        let bound = self.env.config.probe_timeout;
        if told_by.is_some() && !matches!(timeout(bound, self.shows_stamp()).await, Ok(Ok(true))) {
            return Ok(());
        }
        let Some(latest) = Control::checkpoint_at_hand(&self.env) else { return Ok(()) };
        // Somebody is changing it right now, or has meanwhile.
        let Ok(mut conf) = self.conf.try_lock() else { return Ok(()) };
        let other = told_by.map_or(!conf.counts_restartpoints(), |stamp| stamp != conf.stamp(&self.env));
        if other || !conf.is_unproved() || conf.waits.names == SyncNames::Off || !standby() {
            return Ok(());
        }
        if conf.saw_restartpoint(latest) {
            tracing::info!(node = %self.env.config.node, "the checkpointer goes by the list that commits would wait for");
            conf.write(&self.env).and_then(|()| postgres::reload(&self.env))?;
        }
        Ok(())
    }

    /// Wait until no session goes by an older default any more; end those that do for too long.
    pub(super) async fn taken_up(&self) -> Result<(), ProofError> {
        self.settings_read(BOUND).await?;
        let sql = Sql::local(&self.env, "postgres", BOUND).await?;
        let (patience, mut told) = (Instant::now() + PATIENCE, false);
        let mut pending = Pending::default();
        loop {
            let rows = sql.rows("looking at sessions", SESSIONS, BOUND).await?;
            let left = pending.look(rows.iter().filter_map(Session::of).collect());
            if left.is_empty() {
                self.conf.lock().await.taken_up();
                return Ok(());
            }
            let now = Instant::now();
            if now >= patience + ENDED_BOUND {
                return Err(ProofError::NotTakenUp { sessions: left.len() });
            }
            if now >= patience && !told {
                told = true;
                tracing::warn!(node = %self.env.config.node, sessions = left.len(), "ending sessions that commit as before");
                let pids: Vec<String> = left.iter().map(ToString::to_string).collect();
                let end = format!("SELECT count(pg_terminate_backend(pid)) FROM unnest(ARRAY[{}]) pid", pids.join(","));
                sql.rows("ending sessions", &end, BOUND).await?;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pid:command`, with `!` behind it when it waits for its client.
    fn sessions(text: &str) -> Vec<Session> {
        let one = |word: &str| {
            let (pid, rest) = word.split_once(':').unwrap();
            let command = Some(rest.trim_end_matches('!').to_owned());
            Session { pid: pid.parse().unwrap(), since: "t".into(), command, waits: rest.ends_with('!') }
        };
        text.split_whitespace().map(one).collect()
    }

    #[test]
    fn a_session_goes_by_the_new_default_when_it_has_waited_or_begun_twice() {
        let mut pending = Pending::default();
        for (seen, left) in [
            ("1:a! 2:a 3:a 4:a", &[2, 3, 4][..]),
            // Whoever comes later, or comes back to it, has read the file.
            ("1:b 2:a 3:b 4:a 5:a", &[2, 3, 4]),
            ("1:b 2:a! 3:b 5:a", &[3]),
            ("2:c 3:b", &[3]),
            ("2:c 3:c", &[]),
        ] {
            assert_eq!(pending.look(sessions(seen)), left, "{seen}");
        }
        // Another session with the pid of one that has ended is a new one.
        let mut pending = Pending::default();
        assert_eq!(pending.look(sessions("1:a")), [1]);
        let other = Session { since: "later".into(), ..sessions("1:a").remove(0) };
        assert_eq!(pending.look(vec![other]), [0; 0]);
    }
}
