//! Streaming through slots, where commits wait for two standbys or more: see [`crate::fsm::slots`].
//!
//! Each agent keeps those of its own PostgreSQL. That of its node at the upstream it only makes where it is missing, and
//! takes it back from a walsender of before: who streams through it no more knows best.

use super::arm::ProofError;
use super::recovery_conf::Upstream;
use super::sql::{Sql, SqlError};
use super::{Agent, postgres};
use crate::api::PostgresState;
use crate::fsm::slots::{self, Left, Slot, Tend};
use cluster::node::SLOT_PREFIX;
use cluster::sync_names::SyncNames;
use cluster::{Instant, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two looks at slots when nothing wakes them.
const EVERY: Duration = Duration::from_millis(500);
/// Bound on one question to the upstream.
const ASK_BOUND: Duration = Duration::from_secs(1);
/// Without streaming for so long the upstream is asked for the slot.
const REFUSED_FOR: Duration = Duration::from_millis(500);
/// The upstream's walsender does not give it back for so long: an operator should know.
const HELD_FOR: Duration = Duration::from_secs(10);
/// How long the standbys may take to stream through their slots once they are to.
pub(super) const HELD_WITHIN: Duration = Duration::from_secs(5);

/// Walsenders under these nodes' names that have not just their slot, to be selected from; `node` is the name. What
/// PostgreSQL shows of walsenders is read before what it shows of slots, so one that has just taken its slot is not among them.
pub(super) fn without_slot(nodes: &[NodeId]) -> String {
    format!("{} WHERE state <> 'startup' AND {SLOTS_OF_R} IS DISTINCT FROM slot", under_names(nodes))
}

/// Walsenders that stream under these nodes' names and have their slots.
fn through_slot(nodes: &[NodeId]) -> String {
    format!("{} WHERE state = 'streaming' AND {SLOTS_OF_R} = slot", under_names(nodes))
}

fn under_names(nodes: &[NodeId]) -> String {
    let pairs: Vec<String> = nodes.iter().map(|n| format!("('{n}', '{}')", n.slot_name())).collect();
    format!(
        "(SELECT * FROM pg_stat_replication OFFSET 0) r JOIN (VALUES {}) m (node, slot) ON application_name = node",
        pairs.join(", ")
    )
}

/// The slots that the walsender of a row `r` has. It may have made temporary ones of its own.
pub(super) const SLOTS_OF_R: &str =
    "(SELECT string_agg(slot_name::text, ' ') FROM pg_replication_slots s WHERE s.active_pid = r.pid)";

/// What an operator can do something about: no free slot, none at all, no right to make one.
fn is_trouble(error: &SqlError) -> bool {
    matches!(error.code(), Some("53400" | "55000" | "42501"))
}

/// Somebody else did the same at the same time, or a standby has just come back.
fn is_overtaken(error: &SqlError) -> bool {
    // duplicate_object, undefined_object, object_in_use
    matches!(error.code(), Some("42710" | "42704" | "55006"))
}

impl Agent {
    /// Keep this node's slots, and its stream in its own at the upstream, for ever.
    pub(super) async fn keep_slots(&self) {
        let mut records = self.records.subscribe();
        let (mut left, mut sql, mut held_since) = (Left::default(), None, None);
        loop {
            let kept = self.tend_slots(&mut left, &mut sql).await;
            if kept.is_err() {
                sql = None;
            }
            // Also where its own are in trouble: they are for the time when it is the primary.
            let streams = self.stream_through_slot(&mut held_since).await;
            let why = |error: SqlError| {
                tracing::debug!(node = %self.env.config.node, %error, "replication slots not seen to");
                is_trouble(&error).then(|| self.failed("keeping replication slots", &error).why)
            };
            let (kept, streams) = (kept.err().and_then(why), streams.unwrap_or_else(why));
            let trouble = [streams, kept].into_iter().flatten().reduce(|all, one| format!("{all}; {one}"));
            if self.state.look(|o| o.no_slot != trouble) {
                tracing::warn!(node = %self.env.config.node, trouble, "replication slots");
                self.state.change(|o| o.no_slot = trouble);
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = records.changed() => {}
            }
        }
    }

    /// Are standbys to stream through slots? Not under a primary that its agent has not taken over yet. `None` before a
    /// policy was read: as they did then.
    pub(super) fn through_slots(&self) -> Option<bool> {
        let policy = self.policy()?;
        Some(self.records.borrow().adopt.is_none() && slots::wanted(&policy))
    }

    /// Must they? `None` if not. Else the nodes whose records say that their agents know of slots: one after the other is
    /// upgraded.
    pub(super) fn must_have_slots(&self) -> Option<BTreeSet<NodeId>> {
        // Before the records are borrowed: it borrows them, too, and to do so twice waits for ever for who is to write in between.
        let required = self.policy().is_some_and(|p| slots::required(&p));
        let records = self.records.borrow();
        let must = records.adopt.is_none() && required;
        must.then(|| records.members.values().filter(|m| m.slots).map(|m| m.node.clone()).collect())
    }

    fn slots_needed(&self) -> Option<BTreeSet<String>> {
        let through = self.through_slots();
        slots::needed(&self.env.config.node, through, self.records.borrow().members.keys())
    }

    /// How many slots of ours there are, and of others.
    async fn count_slots(&self) -> (usize, usize) {
        let dir = self.env.layout.data().join("pg_replslot");
        let count = move || {
            let kept = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let ours = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with(SLOT_PREFIX);
            let (ours, others): (Vec<_>, Vec<_>) = kept.partition(ours);
            (ours.len(), others.len())
        };
        tokio::task::spawn_blocking(count).await.unwrap_or_default()
    }

    /// How many slots there could be of ours, for who is to say whether these suffice.
    fn note_room(&self, others: usize) {
        let room = self.state.look(|o| o.most_slots).map(|most| most.saturating_sub(others));
        if self.state.look(|o| o.slot_room) != room {
            self.state.change(|o| o.slot_room = room);
        }
    }

    /// PostgreSQL is not asked where there never were any.
    async fn tend_slots(&self, left: &mut Left, sql: &mut Option<Sql>) -> Result<(), SqlError> {
        let (ours, others) = self.count_slots().await;
        self.note_room(others);
        let answers = |p: &PostgresState| matches!(p, PostgresState::Standby(_) | PostgresState::Primary(_));
        let needed = self.slots_needed().filter(|needed| !needed.is_empty() || ours > 0);
        let Some(needed) = needed.filter(|_| self.state.look(|o| answers(&o.postgres))) else {
            *sql = None;
            return Ok(());
        };
        let sql = match sql.take().filter(|s| !s.is_closed()) {
            Some(open) => sql.insert(open),
            None => sql.insert(Sql::local(&self.env, "postgres", self.env.config.probe_timeout).await?),
        };
        let mut found = self.own_slots(sql, self.env.config.probe_timeout).await?;
        // Nobody streams from a standby; and who streams from a primary without its slot needs none there.
        self.state.look(|o| match &o.postgres {
            PostgresState::Primary(p) => {
                let streams = |s: &Slot| p.followers.iter().any(|f| f.node.slot_name() == s.name);
                found.iter_mut().for_each(|slot| slot.unused = !slot.active && streams(slot));
            }
            _ => found.iter_mut().for_each(|slot| slot.unused = true),
        });
        let mut kept = Ok(());
        for todo in left.tend(self.env.clock.now(), &needed, &found) {
            kept = kept.and(self.tend_slot(sql, &todo, self.env.config.probe_timeout).await);
        }
        kept
    }

    async fn own_slots(&self, sql: &Sql, bound: Duration) -> Result<Vec<Slot>, SqlError> {
        let query = format!(
            "SELECT slot_name, active, restart_lsn IS NOT NULL OR xmin IS NOT NULL, coalesce(wal_status = 'lost', false) \
             FROM pg_replication_slots WHERE slot_type = 'physical' AND starts_with(slot_name::text, '{SLOT_PREFIX}')"
        );
        let rows = sql.rows("asking for replication slots", &query, bound).await?;
        let slot = |row: Vec<Option<String>>| {
            let mut row = row.into_iter();
            let name = row.next()??;
            let mut yes = || row.next().flatten().as_deref() == Some("t");
            Some(Slot { name, active: yes(), keeps: yes(), lost: yes(), unused: false })
        };
        Ok(rows.into_iter().filter_map(slot).collect())
    }

    async fn tend_slot(&self, sql: &Sql, todo: &Tend, bound: Duration) -> Result<(), SqlError> {
        let drop = |name: &str| format!("pg_drop_replication_slot('{name}')");
        let make = |name: &str| format!("pg_create_physical_replication_slot('{name}', false)");
        let (what, call) = match todo {
            Tend::Make(name) => ("making a replication slot", make(name)),
            Tend::Renew(name) => ("renewing a replication slot", format!("{}, {}", drop(name), make(name))),
            Tend::Drop(name) => ("dropping a replication slot", drop(name)),
        };
        match sql.rows(what, &format!("SELECT {call}"), bound).await {
            Err(error) if !is_overtaken(&error) => Err(error),
            Err(_) => Ok(()),
            Ok(_) => {
                tracing::info!(node = %self.env.config.node, ?todo, "replication slot");
                Ok(())
            }
        }
    }

    /// Make those that are missing before this node is promoted: its first standbys are refused without. A promotion does
    /// not fail for it.
    pub(super) async fn make_slots(&self, sql: &Sql, bound: Duration) {
        let Some(needed) = self.slots_needed().filter(|n| !n.is_empty()) else { return };
        let made = async {
            let found = self.own_slots(sql, bound).await?;
            let mut made = Ok(());
            for name in needed.iter().filter(|n| found.iter().all(|s| s.name != **n)) {
                made = made.and(self.tend_slot(sql, &Tend::Make(name.clone()), bound).await);
            }
            made
        };
        if let Err(error) = made.await {
            tracing::warn!(node = %self.env.config.node, %error, "replication slots not made before the promotion");
        }
    }

    /// Stream through this node's slot, or without again, as the policy says. Gives what an operator should know.
    async fn stream_through_slot(&self, held_since: &mut Option<Instant>) -> Result<Option<String>, SqlError> {
        let Some(through) = self.through_slots() else { return Ok(None) };
        let (upstream, is) = {
            let conf = self.conf.lock().await;
            (conf.upstream.clone(), conf.is_through_slot())
        };
        let standby = match self.state.look(|o| o.postgres.clone()) {
            PostgresState::Standby(_) => true,
            PostgresState::Primary(_) => false,
            _ => return Ok(None), // it is told when it is started
        };
        if is != through && standby == upstream.is_some() {
            if let Some(upstream) = upstream.as_ref().filter(|_| through) {
                self.slot_at(upstream).await?;
            }
            self.set_through_slot(upstream.as_ref(), through).await;
        }
        // What streamed without before this agent knew of slots would be ended as somebody else.
        let seen_to = !through || !standby || is;
        if seen_to && self.state.look(|o| !o.slots_seen_to) {
            self.state.change(|o| o.slots_seen_to = true);
        }
        let now = self.env.clock.now();
        let refused = |since: Option<Instant>| since.is_some_and(|t| now.since(t) >= REFUSED_FOR);
        let upstream = upstream.filter(|_| through && standby && self.state.look(|o| refused(o.not_streaming_since)));
        let since = held_since.take();
        let Some(upstream) = upstream else { return Ok(None) };
        let Some(holder) = self.slot_at(&upstream).await? else { return Ok(None) };
        let since = *held_since.insert(since.unwrap_or(now));
        let told = || format!("{} does not end this node's former connection (pid {holder})", upstream.node);
        Ok((now.since(since) >= HELD_FOR).then(told))
    }

    /// Write that, unless the upstream is another by now: then whoever has set it has seen to that.
    async fn set_through_slot(&self, upstream: Option<&Upstream>, through: bool) {
        let mut conf = self.conf.lock().await;
        if conf.upstream.as_ref() != upstream || !conf.go_through_slot(through) {
            return;
        }
        if let Err(error) = conf.write(&self.env).and_then(|()| postgres::reload(&self.env)) {
            conf.go_through_slot(!through);
            tracing::error!(node = %self.env.config.node, %error, "settings could not be written");
            return;
        }
        tracing::info!(node = %self.env.config.node, through, "streaming through a replication slot");
    }

    /// Make this node's slot at the upstream if it is missing, and end the walsender that has it while this node receives
    /// nothing through it. Gives that one's pid.
    async fn slot_at(&self, upstream: &Upstream) -> Result<Option<String>, SqlError> {
        let name = self.env.config.node.slot_name();
        let sql = Sql::of_primary(&self.env, &upstream.endpoint, ASK_BOUND).await?;
        let made = format!(
            "SELECT CASE WHEN NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{name}') \
             THEN (SELECT slot_name FROM pg_create_physical_replication_slot('{name}', false)) END"
        );
        // One that was invalidated lets nobody stream through it, as of PostgreSQL 18.
        let lost = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = '{name}' AND wal_status = 'lost' AND active_pid IS NULL"
        );
        match sql.rows("dropping a lost slot", &lost, ASK_BOUND).await {
            Err(error) if !is_overtaken(&error) => return Err(error),
            _ => {}
        }
        match sql.rows("making the slot", &made, ASK_BOUND).await {
            Err(error) if !is_overtaken(&error) => return Err(error),
            _ => {}
        }
        self.look_again(self.env.config.probe_timeout).await;
        if self.state.look(|o| o.not_streaming_since.is_none()) {
            return Ok(None);
        }
        let held = format!(
            "SELECT active_pid, pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE slot_name = '{name}' AND active_pid IS NOT NULL"
        );
        let rows = sql.rows("taking the slot back", &held, ASK_BOUND).await?;
        let holder = rows.into_iter().next().and_then(|r| r.into_iter().next().flatten());
        if let Some(pid) = &holder {
            tracing::warn!(
                node = %self.env.config.node, upstream = %upstream.node, pid, "ending this node's former connection"
            );
        }
        Ok(holder)
    }

    /// Before two or more may release commits, so many voters stream through their slots, and nobody without: that would be
    /// ended once they may, and must not be what they are short of then. Nobody is ended here.
    pub(super) async fn all_through_slots(&self, names: &SyncNames) -> Result<(), ProofError> {
        let SyncNames::Any { k, names: voters } = names else { return Ok(()) };
        if *k < 2 || self.through_slots() != Some(true) {
            return Ok(());
        }
        let sql = Sql::local(&self.env, "postgres", Duration::from_secs(2)).await?;
        let members: Vec<NodeId> = self.records.borrow().members.keys().cloned().collect();
        let without = format!("SELECT node FROM {}", without_slot(&members));
        let through = format!("SELECT node FROM {}", through_slot(&members));
        let begun = tokio::time::Instant::now();
        loop {
            let mut found = [BTreeSet::new(), BTreeSet::new()];
            for (nodes, query) in found.iter_mut().zip([&through, &without]) {
                let rows = sql.rows("looking for standbys without a slot", query, Duration::from_secs(2)).await?;
                nodes.extend(rows.into_iter().filter_map(|r| r.into_iter().next()??.parse::<NodeId>().ok()));
            }
            let nodes = slots::not_through(*k, voters, &found[0], &found[1]);
            if nodes.is_empty() {
                return Ok(());
            }
            if begun.elapsed() >= HELD_WITHIN {
                let nodes: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
                return Err(ProofError::WithoutSlot { nodes: nodes.join(", ") });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
