//! Looking at our own PostgreSQL: by its pid for death, by one query for everything else.

use super::control::Control;
use super::process::{self, Death};
use super::recovery_conf::Upstream;
use super::sql::{FULL, Row, Sql, SqlError};
use super::state::{Receiver, Unsteady};
use super::{Agent, postgres};
use crate::api::{KNOCK, PostgresState, Primary, Standby};
use crate::fsm::places::Places;
use crate::fsm::walsenders::{Seen, Walsender, Watch};
use crate::record::MemberRecord;
use cluster::{Endpoint, Lsn, NodeId, TimelineId};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// While something is about to happen, look so often.
const EAGER: Duration = Duration::from_millis(20);

/// While clients wait for what this node receives.
const AWAITING: Duration = Duration::from_millis(10);
/// For so long at most.
const AWAITED_FOR: Duration = Duration::from_secs(3);

/// Said while PostgreSQL refuses its own agent.
const NO_CONNECTION_LEFT: &str = "PostgreSQL takes no more connections, nor its superuser's (max_connections, \
    superuser_reserved_connections): nothing can be set or asked";

/// Functions that only work in or out of recovery are guarded by CASE, which evaluates in order.
const QUERY: &str = "\
SELECT r, current_setting('synchronous_standby_names'), \
 CASE WHEN NOT r THEN pg_current_wal_insert_lsn() END, CASE WHEN NOT r THEN pg_current_wal_flush_lsn() END, \
 CASE WHEN NOT r THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END, \
 pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), CASE WHEN r THEN pg_is_wal_replay_paused() END, \
 w.pid, w.status, w.received_tli, w.sender_host, w.sender_port, \
 (SELECT system_identifier FROM pg_control_system()), \
 (SELECT greatest(c.timeline_id, v.min_recovery_end_timeline) FROM pg_control_checkpoint() c, pg_control_recovery() v), \
 current_setting('max_wal_senders'), (SELECT count(*) FROM pg_stat_get_wal_senders()), \
 current_setting('max_replication_slots') \
FROM (SELECT pg_is_in_recovery() AS r OFFSET 0) s LEFT JOIN pg_stat_wal_receiver w ON true";

/// Who receives WAL from here. Slots are only asked for where they are a must.
fn walsenders_query(slots: bool) -> String {
    let slots = if slots { super::slots::SLOTS_OF_R } else { "NULL" };
    format!(
        "SELECT application_name, state, flush_lsn, replay_lsn, sync_state, usename, pid, reply_time, {slots} \
         FROM (SELECT * FROM pg_stat_replication LIMIT 1000) r"
    )
}

/// What one look gave.
pub(crate) struct Look {
    pub(crate) state: PostgresState,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) timeline: Option<TimelineId>,
    pub(crate) system_id: Option<String>,
    /// Names that walsenders have who are not the node, or not in the way they must.
    false_names: Vec<NodeId>,
    /// Of these the names of nodes that must have their slots, used without.
    slotless: BTreeSet<NodeId>,
    /// Who receives WAL from here.
    places: Places,
    /// `max_replication_slots`.
    most_slots: usize,
}

fn walsender(row: &Row) -> Walsender {
    let text = |i: usize| row.get(i).cloned().flatten();
    let lsn = |i: usize| text(i).and_then(|t| t.parse().ok());
    Walsender {
        name: text(0).unwrap_or_default(),
        state: text(1).unwrap_or_default(),
        flush_lsn: lsn(2),
        replay_lsn: lsn(3),
        sync_state: text(4).unwrap_or_default(),
        user: text(5).unwrap_or_default(),
        pid: text(6).and_then(|t| t.parse().ok()).unwrap_or_default(),
        replied: text(7),
        slots: text(8),
    }
}

/// `seen`: what the walsenders of a primary are.
fn understand(row: &Row, walsenders: &[Walsender], seen: impl FnOnce() -> Seen) -> Option<Look> {
    let text = |i: usize| row.get(i).and_then(Option::as_deref);
    let lsn = |i: usize| text(i).and_then(|t| t.parse::<Lsn>().ok());
    let receiver = text(8).map(|pid| Receiver {
        pid: pid.parse().unwrap_or(0),
        streaming: text(9) == Some("streaming"),
        timeline: text(10).and_then(|t| t.parse().ok()).map(TimelineId),
        host: text(11).unwrap_or("").to_owned(),
        port: text(12).and_then(|t| t.parse().ok()).unwrap_or(0),
    });
    let control_timeline = text(14).and_then(|t| t.parse().ok()).map(TimelineId);
    let sync_names = text(1)?.to_owned();
    let (mut false_names, mut slotless) = (Vec::new(), BTreeSet::new());
    let number = |i: usize| text(i).and_then(|t| t.parse().ok()).unwrap_or_default();
    let names = walsenders.iter().map(|w| w.name.clone());
    let places = Places { most: number(15), taken: number(16), names: names.collect() };
    let (state, timeline) = if text(0)? == "t" {
        let replay_lsn = lsn(6).unwrap_or_default();
        let standby = Standby {
            timeline: TimelineId::default(),
            receive_lsn: lsn(5).unwrap_or_default().max(replay_lsn),
            replay_lsn,
            streams_from: None,
            replay_paused: text(7) == Some("t"),
            sync_names,
        };
        let timeline = receiver.as_ref().and_then(|r| r.timeline).max(control_timeline);
        (PostgresState::Standby(standby), timeline)
    } else {
        let timeline = TimelineId(u32::from_str_radix(text(4)?, 16).ok()?);
        let seen = seen();
        (false_names, slotless) = (seen.false_names, seen.slotless);
        let primary = Primary {
            timeline,
            insert_lsn: lsn(2)?.normalised_insert(),
            flush_lsn: lsn(3)?,
            sync_names,
            followers: seen.followers,
            impostors: seen.impostors,
            doubted: seen.doubted,
        };
        (PostgresState::Primary(primary), Some(timeline))
    };
    Some(Look {
        state,
        receiver,
        timeline,
        system_id: text(13).map(str::to_owned),
        false_names,
        slotless,
        places,
        most_slots: number(17),
    })
}

/// Ends the walsenders that [`Watch::look`] calls false, under these names. No locale but C lowers an I to an i everywhere.
fn end_false(names: &str) -> String {
    let (user, lower) = (super::env::REPLICATION_USER, "lower(application_name COLLATE \"C\")");
    format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication \
         WHERE {lower} IN ({names}) AND (usename IS DISTINCT FROM '{user}' OR application_name <> {lower})"
    )
}

/// Ends those that it calls false for want of their slot, and names them.
fn end_without_slot(names: &[NodeId]) -> String {
    format!(
        "SELECT node FROM (SELECT node, pid FROM {} OFFSET 0) s WHERE pg_terminate_backend(pid)",
        super::slots::without_slot(names)
    )
}

/// Ends the walsender that was begun last of those that are neither a node's nor ours. Its user may have been dropped.
fn end_stranger(nodes: &str) -> String {
    let (user, ours) = (super::env::REPLICATION_USER, super::sql::APPLICATION_NAME);
    let nodes = if nodes.is_empty() { "''" } else { nodes };
    format!(
        "SELECT application_name FROM (SELECT pid, application_name FROM pg_stat_replication \
         WHERE NOT (coalesce(usename, '') = '{user}' AND (application_name IN ({nodes}) OR application_name LIKE 'copy:%')) \
         AND NOT (coalesce(usename, '') = 'postgres' AND application_name = '{ours}') \
         ORDER BY backend_start DESC, pid DESC LIMIT 1) s WHERE pg_terminate_backend(pid)"
    )
}

impl Agent {
    /// Look for ever: at once when the postmaster ends or somebody asks, else every `probe_interval`. A PostgreSQL that did
    /// not answer at first is adopted when it does.
    pub(crate) async fn observe(&self, mut adopted: bool) {
        let mut sql: Option<Arc<Sql>> = None;
        let mut watched: Option<(Pid, Death)> = None;
        loop {
            self.look_once(&mut sql).await;
            adopted = adopted || self.adopt();
            if let Ok(pid) = postgres::postmaster(&self.env)
                && watched.as_ref().map(|(p, _)| *p) != pid
            {
                watched = pid.and_then(|p| Some((p, Death::of(p).ok()??)));
            }
            let pause = match self.state.look(|o| o.awaited.map(|a| a.since)) {
                Some(since) if self.env.clock.now().since(since) < AWAITED_FOR => AWAITING,
                _ if self.is_eager() => EAGER,
                _ => self.env.config.probe_interval,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.look_now.notified() => {}
                () = async { match &watched { Some((_, d)) => d.wait().await, None => std::future::pending().await } } => {
                    watched = None;
                }
            }
        }
    }

    /// PostgreSQL is being started, and its pid not written yet.
    fn is_spawning(&self) -> bool {
        self.spawning.load(std::sync::atomic::Ordering::Acquire)
    }

    fn is_eager(&self) -> bool {
        self.state.look(|o| match &o.postgres {
            PostgresState::Starting => true,
            PostgresState::Standby(s) => {
                s.streams_from.is_none()
                    && o.not_streaming_since.is_some_and(|t| self.env.clock.now().since(t) < Duration::from_secs(5))
            }
            _ => false,
        })
    }

    /// Look once and publish what was seen.
    pub(crate) async fn look_once(&self, sql: &mut Option<Arc<Sql>>) {
        self.looked.send_modify(|n| *n += 1);
        self.look_at_it(sql).await;
        self.looked.send_modify(|n| *n += 1);
    }

    async fn look_at_it(&self, sql: &mut Option<Arc<Sql>>) {
        // It takes no more connections, and each that it refuses costs it a process while clients wait.
        if self.stopping.load(std::sync::atomic::Ordering::Acquire) {
            *sql = None;
            self.standing.look_by(None);
            return;
        }
        let now = self.env.clock.now();
        let postmaster = postgres::postmaster(&self.env);
        if let Ok(None) = postmaster {
            *sql = None;
            self.standing.look_by(None);
            if !self.is_spawning() {
                self.saw_stopped().await;
            }
            return;
        }
        // Whoever is asked may answer all the same.
        if let Err(error) = postmaster
            && self.said.postmaster.is_due(now, &error.to_string())
        {
            tracing::warn!(node = %self.env.config.node, %error, "the postmaster could not be looked for");
        }
        let asked = self.ask(sql).await;
        if self.state.look(|o| o.stopped_since(now)) {
            // It hung until then, and tells of before.
            *sql = None;
            self.standing.look_by(None);
            return;
        }
        match asked {
            Ok(look) => {
                let impersonated = self.impersonated(&look);
                let slotless = impersonated.iter().filter(|n| look.slotless.contains(*n)).cloned().collect::<Vec<_>>();
                let (trouble, makes_room) = self.full(&look);
                self.saw(now, look);
                self.state.change(|o| o.full = trouble);
                if let Some(sql) = sql.as_ref().filter(|_| makes_room) {
                    self.make_room(sql).await;
                }
                if let Some(sql) = sql.as_ref().filter(|_| !impersonated.is_empty()) {
                    self.end_impostors(sql, &impersonated, &slotless).await;
                }
            }
            Err(error) => {
                *sql = None;
                self.standing.look_by(None);
                let bound = self.env.config.probe_timeout;
                let full = error.code() == Some(FULL);
                self.state.change(|o| {
                    o.full = full.then(|| NO_CONNECTION_LEFT.to_owned());
                    o.not_told(now, self.env.clock.now(), error.code(), bound);
                });
            }
        }
    }

    /// Nodes under whose name somebody else is connected. Only names of nodes count for commits. While a cluster is adopted
    /// it may be the node itself, which its agent has not taken over yet: then only where that is connected too.
    fn impersonated(&self, look: &Look) -> Vec<NodeId> {
        let records = self.records.borrow();
        let connected = |n: &NodeId| match &look.state {
            PostgresState::Primary(primary) => primary.followers.iter().any(|f| f.node == *n),
            _ => false,
        };
        let ends = |n: &&NodeId| records.members.contains_key(*n) && (records.adopt.is_none() || connected(n));
        look.false_names.iter().filter(ends).cloned().collect()
    }

    /// Commits would count them as the node: end them, whoever they are. Without a node that is told of what it lacks, what
    /// they confirm is nobody's.
    async fn end_impostors(&self, sql: &Sql, names: &[NodeId], slotless: &[NodeId]) {
        let quoted: Vec<String> = names.iter().map(|n| format!("'{n}'")).collect();
        let (what, bound) = ("ending walsenders under a node's name", self.env.config.probe_timeout);
        let ended = async {
            let mut ended = sql.value::<u64>(what, &end_false(&quoted.join(", ")), bound).await?;
            if !slotless.is_empty() && self.must_have_slots().is_some() {
                let rows = sql.rows(what, &end_without_slot(slotless), bound).await?;
                ended += rows.len() as u64;
                let nodes = rows.into_iter().filter_map(|r| r.into_iter().next()??.parse().ok());
                self.watch().ended(self.env.clock.now(), nodes);
            }
            Ok::<_, SqlError>(ended)
        };
        match ended.await {
            Ok(ended) => {
                self.metrics.impostors_ended.inc_by(ended);
                let names = quoted.join(", ");
                // They come back as soon as they are ended.
                if self.said.impostors.is_due(self.env.clock.now(), &names) {
                    let so_far = self.metrics.impostors_ended.get();
                    tracing::error!(node = %self.env.config.node, names, ended, so_far, "impostors ended");
                }
            }
            Err(error) => tracing::error!(node = %self.env.config.node, %error, "impostors not ended"),
        }
    }

    /// What is to be said of the places for receivers of WAL, and is one to be made free? Only the primary's standbys are
    /// waited for. While a cluster is adopted they go by other names.
    fn full(&self, look: &Look) -> (Option<String>, bool) {
        if !look.places.full() || !matches!(look.state, PostgresState::Primary(_)) {
            return (None, false);
        }
        let (records, own) = (self.records.borrow(), &self.env.config.node);
        let policy = records.policy.as_ref().map(|p| &p.value);
        let votes = |n: &&NodeId| *n != own && policy.is_some_and(|p| p.counts(n)) && !records.fences.contains_key(*n);
        let missing = look.places.missing(records.members.keys().filter(votes));
        (look.places.trouble(&missing), !missing.is_empty() && records.adopt.is_none())
    }

    /// The last stranger that has connected leaves.
    pub(super) async fn make_room(&self, sql: &Sql) {
        let nodes: Vec<String> = self.records.borrow().members.keys().map(|n| format!("'{n}'")).collect();
        let query = end_stranger(&nodes.join(", "));
        match sql.rows("making room for a standby", &query, self.env.config.probe_timeout).await {
            Ok(rows) => {
                for name in rows.into_iter().filter_map(|r| r.into_iter().next().flatten()) {
                    self.metrics.receivers_ended.inc();
                    tracing::warn!(node = %self.env.config.node, name, "a receiver of WAL was ended: standbys need its place");
                }
            }
            Err(error) => tracing::warn!(node = %self.env.config.node, %error, "no room was made for a standby"),
        }
    }

    async fn ask(&self, sql: &mut Option<Arc<Sql>>) -> Result<Look, SqlError> {
        if sql.as_ref().is_none_or(|sql| sql.is_closed()) {
            *sql = Some(Arc::new(Sql::local(&self.env, "postgres", self.env.config.probe_timeout).await?));
            self.standing.look_by(sql.as_ref());
        }
        let sql = sql.as_ref().expect("opened just above");
        let (what, slots) = ("asking for the state", self.must_have_slots());
        let query = format!("{QUERY}; {}", walsenders_query(slots.is_some()));
        let answers = sql.batch(what, &query, self.env.config.probe_timeout).await?;
        let bad = || SqlError::Answer { what, answer: format!("{answers:?}").chars().take(300).collect() };
        let row = answers.first().and_then(|rows| rows.first()).ok_or_else(bad)?;
        let walsenders: Vec<Walsender> = answers.get(1).into_iter().flatten().map(walsender).collect();
        let (mut watch, now) = (self.watch(), self.env.clock.now());
        let seen = || watch.look(now, &walsenders, super::env::REPLICATION_USER, slots.as_ref());
        let look = understand(row, &walsenders, seen).ok_or_else(bad)?;
        if !matches!(look.state, PostgresState::Primary(_)) {
            *watch = Watch::default();
        }
        Ok(look)
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.walsenders.lock().expect("no holder of this lock panics")
    }

    /// Nothing may be left of a postmaster that died: its backends could still acknowledge commits.
    async fn saw_stopped(&self) {
        if !self.env.layout.has_data() {
            let now = self.env.clock.now();
            self.state.change(|o| {
                (o.postgres, o.system_id) = (PostgresState::Absent, None);
                o.not_expected(now);
            });
            return;
        }
        let was_stopped = self.state.look(|o| matches!(o.postgres, PostgresState::Stopped { .. }));
        if was_stopped {
            // Backends whose postmaster was killed come to us as orphans.
            process::reap();
            // While it stays stopped pg_control is read now and then only, or when somebody asks.
            if self.state.look(|o| self.env.clock.now().since(o.answered.since)) < Duration::from_millis(100) {
                return;
            }
        } else {
            if !self.state.look(|o| o.ending) {
                tracing::info!(node = %self.env.config.node, "the postmaster is gone, ending what is left of postgres");
            }
            self.state.change(|o| o.ending = true);
        }
        // Not one that is being started meanwhile.
        let dead = || !self.is_spawning() && postgres::is_dead(&self.env);
        if !was_stopped {
            match process::kill_all(&self.env.layout.data(), Duration::from_secs(5), dead).await {
                Ok(true) => {}
                Ok(false) => {
                    if dead() {
                        self.trouble("processes of a dead PostgreSQL are left after SIGKILL");
                    }
                    return;
                }
                Err(error) => {
                    return self.trouble(&format!("what a dead PostgreSQL left cannot be looked for: {error}"));
                }
            }
        }
        match Control::read(&self.env).await {
            Ok(control) => {
                if !was_stopped {
                    tracing::info!(node = %self.env.config.node, state = %control.state, "postgres is not running");
                }
                self.is_stopped_as(control);
            }
            // Moved out of the way just now.
            Err(_) if !self.env.layout.has_data() => {}
            Err(error) => self.trouble(&error.to_string()),
        }
    }

    /// Nothing of it runs any more, and this is what it left.
    pub(super) fn is_stopped_as(&self, control: Control) {
        let now = self.env.clock.now();
        self.state.change(|o| {
            (o.postgres, o.ending) = (control.stopped(), false);
            o.not_expected(now);
            o.receiver = None;
            (o.not_streaming_since, o.unsteady) = (None, Unsteady::default());
            o.last_timeline = None;
            o.system_id = Some(control.system_id);
        });
        self.died.notify_one();
    }

    fn saw(&self, now: cluster::Instant, look: Look) {
        let streams_from = look.receiver.as_ref().filter(|r| r.streaming).and_then(|r| self.sender(r));
        let mut frozen_receiver = None;
        let mut out_of_quarantine = false;
        self.state.change(|o| {
            o.ending = false;
            let streams = look.receiver.as_ref().filter(|r| r.streaming).map(|r| r.pid);
            o.unsteady.saw(streams, now);
            o.not_streaming_since = if streams.is_some() { None } else { o.not_streaming_since.or(Some(now)) };
            o.last_timeline = o.last_timeline.max(look.timeline);
            o.postgres = match look.state {
                PostgresState::Standby(mut s) => {
                    s.streams_from = streams_from;
                    s.timeline = o.last_timeline.unwrap_or_default();
                    out_of_quarantine = o.quarantine.is_some_and(|q| s.replay_lsn >= q.lsn && s.timeline >= q.timeline);
                    if o.awaited.is_some_and(|a| s.timeline >= a.timeline && s.receive_lsn >= a.lsn) {
                        o.awaited = None;
                    }
                    if o.frozen_for.is_some() {
                        frozen_receiver = look.receiver.as_ref().map(|r| r.pid);
                    }
                    PostgresState::Standby(s)
                }
                other => other,
            };
            o.was_primary = matches!(o.postgres, PostgresState::Primary(_));
            if let PostgresState::Primary(p) = &o.postgres
                && o.frozen_for.is_some_and(|term| term.timeline() == Some(p.timeline))
            {
                o.frozen_for = None;
            }
            let unaccepted = o.unaccepted(self.env.clock.now());
            // A primary has replayed all there is.
            out_of_quarantine |= o.was_primary && o.quarantine.is_some();
            o.receiver = look.receiver;
            o.system_id = look.system_id;
            o.most_slots = Some(look.most_slots);
            o.heard(now);
            o.known_at = now;
            // Its sessions answer; but nobody can begin one, and whatever it should start or reload it does not.
            if unaccepted >= KNOCK + self.env.config.probe_timeout {
                o.postgres = PostgresState::Hung { for_ms: unaccepted.as_millis().try_into().unwrap_or(u64::MAX) };
            }
        });
        if out_of_quarantine && self.remember(|m| m.quarantine = None).is_ok() {
            self.left_quarantine();
            tracing::info!(node = %self.env.config.node, "replay has passed the quarantine");
        }
        // A receiver that started in the moment of the freeze must not live on; see `freeze`.
        if let Some(pid) = frozen_receiver.filter(|p| *p > 0) {
            process::end_receiver(&self.env.layout.data(), Pid::from_raw(pid));
        }
    }

    fn sender(&self, receiver: &Receiver) -> Option<NodeId> {
        // Somebody is changing what is followed right now.
        let upstream = self.conf.try_lock().ok().and_then(|conf| conf.upstream.clone());
        let at = Endpoint { host: receiver.host.clone(), port: receiver.port };
        node_at(&at, &self.records.borrow().members, upstream.as_ref())
    }
}

/// Whose address that is: as members have registered, or as it was told whom to follow. A stream outlives its sender's new address.
fn node_at(at: &Endpoint, members: &BTreeMap<NodeId, MemberRecord>, upstream: Option<&Upstream>) -> Option<NodeId> {
    let registered = members.values().find(|m| m.postgres == *at).map(|m| m.node.clone());
    registered.or_else(|| upstream.filter(|u| u.endpoint == *at).map(|u| u.node.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Standing;
    use cluster::Term;

    #[test]
    fn a_standby_streams_from_its_primary_also_when_that_has_another_address_by_now() {
        let at = |host: &str| Endpoint { host: host.into(), port: 5432 };
        let member = |node: &str, host| MemberRecord {
            node: node.parse().unwrap(),
            postgres: at(host),
            agent: at(host),
            pg_version: 150_000,
            system_id: None,
            host: String::new(),
            standing: Standing::default(),
            slots: true,
            holder: None,
        };
        let members = [member("n1", "db1"), member("n2", "db2")].map(|m| (m.node.clone(), m)).into();
        let upstream = Upstream { node: "n1".parse().unwrap(), endpoint: at("10.0.0.1"), term: Term(7) };
        let told = |host, upstream| node_at(&at(host), &members, upstream).map(|n| n.to_string());
        assert_eq!(told("10.0.0.1", Some(&upstream)).as_deref(), Some("n1"));
        assert_eq!(told("10.0.0.1", None), None);
        assert_eq!(told("db2", Some(&upstream)).as_deref(), Some("n2"), "a member's own word comes first");
        assert_eq!(told("10.0.0.2", Some(&upstream)), None);
    }
}
