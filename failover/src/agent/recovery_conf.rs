//! PostgreSQL's configuration files: what is fixed for the agent's life, and the few settings that change.
//!
//! All of it is outside PGDATA (`-c config_file`), so that pg_rewind and pg_basebackup cannot bring another node's. An
//! entry in `postgresql.auto.conf` would silently win over ours: [`foreign_settings`] finds those.

use super::env::{Env, REPLICATION_USER, quoted};
use super::layout::write_atomically;
use crate::adopt::plan::senders;
use crate::config::agent::OWNED_PARAMETERS;
use crate::fsm::places::kept;
use crate::fsm::sync_set::Waits;
use cluster::sync_names::SyncNames;
use cluster::{Endpoint, Instant, Lsn, NodeId, Term};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

/// The database user that is a superuser; only over the agent's own socket.
const SUPERUSER: &str = "postgres";

/// Where the WAL receiver connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upstream {
    pub(crate) node: NodeId,
    pub(crate) endpoint: Endpoint,
    /// The term whose primary it is.
    pub(crate) term: Term,
}

/// The settings that change while PostgreSQL runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dynamic {
    pub(crate) upstream: Option<Upstream>,
    /// What commits wait for: preset on standbys for the case of promotion.
    pub(crate) waits: Waits,
    /// Sessions may go by a default under which their commits wait only when they ask for it.
    lenient: bool,
    /// There was no list while the server ran, and that commits wait for the one there is now was not proved since.
    unproved: bool,
    /// The checkpoint that the server's last restartpoint was made of, and whether others came before it, all since the
    /// postmaster had told its processes of that list.
    restartpoint: Option<(Lsn, bool)>,
    /// A new upstream is being connected to.
    eager: bool,
    /// The upstream ran without an agent when it was connected to, by rules of its own for who is let in how.
    by_hand: bool,
    /// Since when segments are made sparse: behind a promotion that is to come.
    sparse: Option<Instant>,
    /// How often this agent has written the file.
    written: u64,
    /// Replay does not wait for `recovery_min_apply_delay`, until the node follows somebody again.
    pub(crate) undelayed: bool,
    /// The standby streams through its slot.
    through_slot: bool,
    /// An earlier agent's fence was found. For whoever lifts it.
    pub(crate) left_fenced: bool,
}

/// Tells which of our files a session goes by, see [`Dynamic::stamp`].
pub(crate) const STAMP: &str = "pgtenure.settings";

/// The line by which only commits that ask for it wait.
const ON_REQUEST: &str = "synchronous_commit = 'local'";
/// The line by which all do that ask for no less.
const ALWAYS: &str = "synchronous_commit = 'on'";
/// The same, where that is not known of every session.
const ALWAYS_SOON: &str = "synchronous_commit = 'on' # not of every session yet";
/// Behind a list of which it is not known that the checkpointer has taken it up.
const UNPROVED: &str = " # not proved";
/// The line by which the startup process connects again at once (wal_retrieve_retry_interval in PostgreSQL's
/// documentation); as long as the upstream is away each attempt costs a process and lines of the log.
const EAGER: &str = "wal_retrieve_retry_interval = '20ms'";
/// The line by which a new timeline's first segment is made without 16 MiB of zeros being written and synced, for which the
/// first commit in it would wait. What PostgreSQL writes there later costs more, as the file system allots it only then.
const SPARSE: &str = "wal_init_zero = off";

/// The parameter that names the slot.
const SLOT: &str = "primary_slot_name";

impl Dynamic {
    pub(crate) const fn new(waits: Waits) -> Self {
        let lenient = waits.on_request;
        let (eager, undelayed, through_slot, left_fenced) = (false, false, false, false);
        Self {
            upstream: None,
            waits,
            lenient,
            unproved: false,
            restartpoint: None,
            eager,
            by_hand: false,
            sparse: None,
            written: 0,
            undelayed,
            through_slot,
            left_fenced,
        }
    }

    /// Of a server that runs: its list, and the rest as in the file that an earlier agent wrote. False: this agent has
    /// written another, which the server goes by.
    pub(crate) fn adopt(&mut self, env: &Env, names: SyncNames) -> bool {
        if self.written > 0 {
            return false;
        }
        self.left_fenced = names == SyncNames::Fenced;
        let text = std::fs::read_to_string(env.layout.dynamic_conf()).unwrap_or_default();
        let has = |line: &str| text.lines().any(|l| l == line);
        self.waits = Waits { names, on_request: has(ON_REQUEST) };
        self.lenient = !has(ALWAYS);
        self.unproved = text.lines().any(|l| l.ends_with(UNPROVED));
        self.eager = has(EAGER);
        self.sparse = has(SPARSE).then(Instant::default);
        self.through_slot = text.lines().any(|l| l.starts_with(SLOT));
        true
    }

    /// Follow that one from now on, and soon: PostgreSQL's first connection to a primary of a later timeline only learns
    /// of it, and streams at the second.
    pub(crate) fn connect(&mut self, upstream: Upstream) {
        self.upstream = Some(upstream);
        (self.eager, self.sparse, self.by_hand) = (true, None, false);
    }

    /// That one is not under its agent yet.
    pub(crate) const fn is_by_hand(&mut self) {
        self.by_hand = true;
    }

    /// The same before it is promoted: clients wait for the segment that its timeline begins with.
    pub(crate) fn connect_ahead(&mut self, upstream: Upstream, now: Instant) {
        self.connect(upstream);
        self.sparse = Some(now);
    }

    /// Segments are made sparse for this long.
    pub(crate) fn sparse_for(&self, now: Instant) -> Option<Duration> {
        self.sparse.map(|since| now.since(since))
    }

    /// Segments are made as usual. To be written then.
    pub(crate) const fn fill(&mut self) {
        self.sparse = None;
    }

    /// That could not be written: it is to be tried again.
    pub(crate) const fn not_filled(&mut self, now: Instant) {
        self.sparse = Some(now);
    }

    /// Does the standby stream through its slot?
    pub(crate) const fn is_through_slot(&self) -> bool {
        self.through_slot
    }

    /// Let it do so, or no more; true when that is another. To be written then, and it connects anew.
    pub(crate) const fn go_through_slot(&mut self, through: bool) -> bool {
        let other = self.through_slot != through;
        self.through_slot = through;
        self.eager |= other && self.upstream.is_some();
        other
    }

    /// Connections that fail are tried again at PostgreSQL's usual pace; true when that is another. To be written then.
    pub(crate) const fn calm(&mut self) -> bool {
        self.sparse = None;
        std::mem::replace(&mut self.eager, false)
    }

    /// That could not be written: it is to be tried again.
    pub(crate) const fn not_calmed(&mut self) {
        self.eager = true;
    }

    /// What it is to hold; true when that is another. To be written then.
    pub(crate) fn change(&mut self, waits: &Waits) -> bool {
        let other = self.waits != *waits;
        if self.waits.names == SyncNames::Off && waits.names != SyncNames::Off {
            (self.unproved, self.restartpoint) = (true, None);
        }
        self.waits = waits.clone();
        self.lenient |= waits.on_request;
        other
    }

    /// May sessions commit without waiting although they do not ask for that?
    pub(crate) const fn is_lenient(&self) -> bool {
        self.lenient
    }

    /// That commits wait was not proved: sessions may go by an older default.
    pub(crate) const fn not_taken_up(&mut self) {
        (self.lenient, self.unproved, self.restartpoint) = (true, true, None);
    }

    /// Might commits not wait yet, although the server shows the list?
    pub(crate) const fn is_unproved(&self) -> bool {
        self.unproved
    }

    /// Of a standby that has been told of the list: the checkpoint that its last restartpoint was made of. True once that
    /// proves it: the second one that ends was begun after the first, and in between the checkpointer has read the file.
    pub(crate) fn saw_restartpoint(&mut self, latest: Lsn) -> bool {
        match self.restartpoint {
            Some((last, _)) if last == latest => {}
            Some((_, true)) => self.unproved = false,
            last => self.restartpoint = Some((latest, last.is_some())),
        }
        !self.unproved
    }

    /// Has the standby been told of the list, so that its restartpoints count?
    pub(crate) const fn counts_restartpoints(&self) -> bool {
        self.restartpoint.is_some()
    }

    /// Is the file in force one that an earlier agent wrote?
    pub(crate) const fn is_inherited(&self) -> bool {
        self.written == 0
    }

    /// The server starts with the list, or commits were seen to wait.
    pub(crate) const fn proved(&mut self) {
        self.unproved = false;
    }

    /// Every session goes by what the file says now.
    pub(crate) const fn taken_up(&mut self) {
        self.lenient = self.waits.on_request;
    }

    /// The value of [`STAMP`] in the file last written; no other file ever has it. A connection that shows it was made
    /// after the postmaster had read the file and had told all its processes to.
    pub(crate) fn stamp(&self, env: &Env) -> String {
        format!("{}.{}", env.holder, self.written)
    }

    /// Replace the file. It takes effect at the next start or SIGHUP.
    pub(crate) fn write(&mut self, env: &Env) -> io::Result<()> {
        self.written += 1;
        self.undelayed &= self.upstream.is_none();
        let conninfo = self.upstream.as_ref().map_or_else(String::new, |u| match self.by_hand {
            true => conninfo_by_hand(env, &u.endpoint),
            false => conninfo(env, &u.endpoint),
        });
        let slot =
            if self.through_slot { format!("{SLOT} = '{}'\n", env.config.node.slot_name()) } else { String::new() };
        write_atomically(&env.layout.dynamic_conf(), self.text(&conninfo, &slot, &self.stamp(env)).as_bytes())
    }

    fn text(&self, conninfo: &str, slot: &str, stamp: &str) -> String {
        format!(
            "# Written by pgtenure, replaced at each change.\n\
             primary_conninfo = {}\n{slot}restore_command = ''\nsynchronous_standby_names = {}{}\n{}\n{}{}{}{STAMP} = {}\n",
            quoted(conninfo),
            quoted(&self.waits.names.to_string()),
            if self.unproved { UNPROVED } else { "" },
            match (self.waits.on_request, self.lenient) {
                (true, _) => ON_REQUEST,
                (false, true) => ALWAYS_SOON,
                (false, false) => ALWAYS,
            },
            if self.eager { format!("{EAGER}\n") } else { String::new() },
            if self.sparse.is_some() { format!("{SPARSE}\n") } else { String::new() },
            if self.undelayed { "recovery_min_apply_delay = 0\n" } else { "" },
            quoted(stamp),
        )
    }
}

/// libpq's connection string to another node's PostgreSQL as `pgtenure_repl`, for a standby.
pub(crate) fn conninfo(env: &Env, to: &Endpoint) -> String {
    conninfo_as(env, to, env.config.node.as_str(), Demands::Scram)
}

/// The same to one that is being adopted.
fn conninfo_by_hand(env: &Env, to: &Endpoint) -> String {
    conninfo_as(env, to, env.config.node.as_str(), Demands::ScramOrNone)
}

/// The same for pg_basebackup. It streams WAL and confirms what it has flushed, as a standby does, so under the node's name
/// commits would be acknowledged by it: by files that are thrown away where the copy fails.
pub(crate) fn conninfo_of_copy(env: &Env, to: &Endpoint) -> String {
    conninfo_as(env, to, &name_of_copy(&env.config.node), Demands::Scram)
}

/// Can be no node's, however PostgreSQL cuts it.
fn name_of_copy(node: &NodeId) -> String {
    format!("copy:{node}")
}

/// How a server may make sure of who logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demands {
    /// Every node of ours demands SCRAM (see [`hba`]): whoever asks for the password itself, or for none, is none.
    Scram,
    /// One that is not under its agent yet may let in by `trust` or a certificate. Nobody is told the password all the same.
    ScramOrNone,
}

fn conninfo_as(env: &Env, to: &Endpoint, application_name: &str, demands: Demands) -> String {
    format!(
        "host={} port={} user={REPLICATION_USER} dbname=postgres application_name={application_name} passfile={} \
         connect_timeout=3 keepalives_idle=5 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=5000{}",
        to.host,
        to.port,
        env.layout.passfile().display(),
        demanded(env.version, demands),
    )
}

/// PostgreSQL's client library knows how to be told that from version 16 on, and refuses the word before.
const fn demanded(version: u32, demands: Demands) -> &'static str {
    match demands {
        Demands::Scram if version >= 160_000 => " require_auth=scram-sha-256",
        Demands::ScramOrNone if version >= 160_000 => " require_auth=scram-sha-256,none",
        Demands::Scram | Demands::ScramOrNone => "",
    }
}

/// Write everything that is fixed. `user`: the operating system's user that runs agent and PostgreSQL.
pub(crate) fn write_fixed(env: &Env, user: &str) -> io::Result<()> {
    write_atomically(&env.layout.config_file(), postgresql_conf(env).as_bytes())?;
    write_atomically(&env.layout.hba_file(), hba(&env.config.pg_hba).as_bytes())?;
    write_atomically(&env.layout.ident_file(), format!("pgtenure {user} {SUPERUSER}\n").as_bytes())?;
    let password = env.replication_password.expose().replace('\\', "\\\\").replace(':', "\\:");
    write_atomically(&env.layout.passfile(), format!("*:*:*:{REPLICATION_USER}:{password}\n").as_bytes())
}

/// Users of ours over TCP only for their purpose, the superuser never; then the configured lines. Without one of these
/// nobody else receives WAL: `all` as a database means none of it.
fn hba(lines: &[String]) -> String {
    let mut text = "# Written by pgtenure at each start.\n\
        local all postgres peer map=pgtenure\n\
        local replication postgres peer map=pgtenure\n\
        local all all reject\n\
        host all postgres all reject\n\
        host replication postgres all reject\n\
        host replication pgtenure_repl all scram-sha-256\n\
        host postgres pgtenure_repl all scram-sha-256\n\
        host all pgtenure_repl all reject\n\
        host all pgtenure_monitor all scram-sha-256\n"
        .to_owned();
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// initdb makes the same choice, but writes it to a file that is not read here. POSIX shared memory needs `/dev/shm`,
/// which a bare chroot or container may lack.
fn shared_memory() -> &'static str {
    if tempfile_in("/dev/shm") { "posix" } else { "sysv" }
}

/// Can this process create files there?
fn tempfile_in(dir: &str) -> bool {
    let path = format!("{dir}/pgtenure.{:016x}", rand::random::<u64>());
    let made = std::fs::File::create_new(&path).is_ok();
    // Gone already is as good.
    let _ = std::fs::remove_file(&path);
    made
}

/// A number among the configured parameters.
fn limit(parameters: &BTreeMap<String, String>, name: &str, default: usize) -> usize {
    let set = parameters.iter().rfind(|(n, _)| n.eq_ignore_ascii_case(name));
    set.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(default)
}

fn postgresql_conf(env: &Env) -> String {
    let c = &env.config;
    let mut text = "# Written by pgtenure at each start; see agent.parameters.\n".to_owned();
    let mut set = |name: &str, value: &str| {
        writeln!(text, "{name} = {}", quoted(value)).expect("writing to a string cannot fail");
    };
    // Defaults that a user may override.
    for (name, value) in [
        ("wal_level", "replica"),
        ("max_replication_slots", "16"),
        ("hot_standby_feedback", "off"),
        ("max_standby_streaming_delay", "5s"),
        ("log_line_prefix", "%m [%p] "),
        ("shared_buffers", "128MB"),
        ("dynamic_shared_memory_type", shared_memory()),
    ] {
        set(name, value);
    }
    set("max_wal_senders", &senders(env.cluster.voters.len()).to_string());
    let number = |name, default| limit(&c.parameters, name, default);
    if let Some(kept) = kept(number("max_connections", 100).saturating_sub(number("reserved_connections", 0))) {
        set("superuser_reserved_connections", &kept.to_string());
    }
    for (name, value) in &c.parameters {
        set(name, value);
    }
    let path = |p: std::path::PathBuf| p.to_string_lossy().into_owned();
    for (name, value) in [
        ("cluster_name", c.node.as_str().to_owned()),
        ("listen_addresses", c.postgres_listen.clone()),
        ("port", c.postgres_port.to_string()),
        ("unix_socket_directories", path(env.layout.socket_dir())),
        ("unix_socket_permissions", "0700".into()),
        ("hba_file", path(env.layout.hba_file())),
        ("ident_file", path(env.layout.ident_file())),
        ("hot_standby", "on".into()),
        ("fsync", "on".into()),
        ("full_page_writes", "on".into()),
        ("wal_log_hints", "on".into()),
        ("data_sync_retry", "off".into()),
        ("restart_after_crash", "off".into()),
        ("password_encryption", "scram-sha-256".into()),
        ("recovery_target_timeline", "latest".into()),
        ("recovery_min_apply_delay", c.standing.apply_delay_ms.to_string()),
        ("wal_receiver_timeout", "5s".into()),
        ("wal_sender_timeout", "5s".into()),
        ("wal_receiver_status_interval", "1s".into()),
        ("wal_retrieve_retry_interval", "200ms".into()),
        ("wal_keep_size", format!("{}MB", c.wal_keep.0 >> 20)),
        ("logging_collector", "on".into()),
        ("log_directory", path(env.layout.log_dir())),
        // One file per hour of the day, each overwritten a day later.
        ("log_filename", "postgresql-%H.log".into()),
        ("log_rotation_age", "60min".into()),
        ("log_truncate_on_rotation", "on".into()),
    ] {
        set(name, &value);
    }
    writeln!(text, "include = {}", quoted(&path(env.layout.dynamic_conf()))).expect("writing to a string cannot fail");
    text
}

/// Settings of ours that `postgresql.auto.conf` overrides (somebody ran ALTER SYSTEM), given the file's text.
pub(crate) fn foreign_settings(auto_conf: &str) -> Vec<String> {
    auto_conf.lines().map(name_of).filter(|n| OWNED_PARAMETERS.iter().any(|(owned, _)| owned == n)).collect()
}

/// The parameter that a line of PostgreSQL's configuration sets; some other word if it sets none.
fn name_of(line: &str) -> String {
    let ends = |c: char| c == '=' || c.is_ascii_whitespace();
    line.trim_start().split(ends).next().unwrap_or_default().to_ascii_lowercase()
}

/// Remove those settings from the file's text.
pub(crate) fn without(auto_conf: &str, names: &[String]) -> String {
    let kept = |l: &&str| !names.contains(&name_of(l));
    auto_conf.lines().filter(kept).map(|l| format!("{l}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_ours_in_auto_conf_is_found_and_removed() {
        let text = "# Do not edit\nwork_mem = '8MB'\nPrimary_Conninfo = 'host=x'\nsynchronous_standby_names=''\n\
            \trecovery_target_lsn\t= '0/1'\n";
        let found = foreign_settings(text);
        assert_eq!(found, ["primary_conninfo", "synchronous_standby_names", "recovery_target_lsn"]);
        assert_eq!(without(text, &found), "# Do not edit\nwork_mem = '8MB'\n");
    }

    #[test]
    fn what_a_client_library_does_not_know_it_is_not_told() {
        assert_eq!([Demands::Scram, Demands::ScramOrNone].map(|d| demanded(150_018, d)), ["", ""]);
        assert_eq!(demanded(160_000, Demands::Scram), " require_auth=scram-sha-256");
        assert_eq!(demanded(160_000, Demands::ScramOrNone), " require_auth=scram-sha-256,none");
    }

    #[test]
    fn a_new_upstream_is_connected_to_without_pauses_until_it_is_there() {
        let mut conf = Dynamic::new(Waits { names: SyncNames::Off, on_request: false });
        assert!(!conf.text("", "", "1").contains("wal_retrieve_retry_interval"));
        let endpoint = Endpoint { host: "n2".into(), port: 5432 };
        let upstream = Upstream { node: "n2".parse().unwrap(), endpoint, term: Term(2) };
        let lines = |conf: &Dynamic| {
            let text = conf.text("host=n2", "", "2");
            [EAGER, SPARSE].map(|line| text.lines().any(|l| l == line))
        };
        conf.connect_ahead(upstream.clone(), Instant::default());
        assert_eq!(lines(&conf), [true, true]);
        conf.fill();
        assert_eq!(lines(&conf), [true, false]);
        // A disk that is full ends the receiver that makes a segment, not the server: that one is not met twice.
        conf.connect_ahead(upstream.clone(), Instant::default());
        conf.connect(upstream);
        assert_eq!(lines(&conf), [true, false]);
        assert!(conf.calm() && !conf.calm());
        let text = conf.text("host=n2", "", "3");
        assert!(!text.contains("wal_retrieve_retry_interval") && !text.contains("wal_init_zero"), "{text}");
    }

    #[test]
    fn a_new_list_is_in_force_once_a_second_restartpoint_has_ended() {
        let conf = &mut Dynamic::new(Waits { names: SyncNames::Off, on_request: false });
        let set = |conf: &mut Dynamic| {
            conf.change(&Waits { names: SyncNames::Off, on_request: false });
            conf.change(&Waits::FENCED);
            assert!(!conf.counts_restartpoints() && conf.is_unproved());
        };
        set(conf);
        let seen = |conf: &mut Dynamic, lsns: &[u64]| lsns.iter().map(|l| conf.saw_restartpoint(Lsn(*l))).collect();
        let told: Vec<bool> = seen(conf, &[5, 5, 7, 7, 7, 9]);
        assert_eq!(told, [false, false, false, false, false, true]);
        assert!(!conf.is_unproved());
        // Each list from none anew.
        set(conf);
        let told: Vec<bool> = seen(conf, &[9, 11]);
        assert_eq!(told, [false, false]);
        set(conf);
        let told: Vec<bool> = seen(conf, &[11, 13, 15]);
        assert_eq!(told, [false, false, true]);
    }

    #[test]
    fn the_superuser_is_rejected_over_tcp_before_any_line_of_the_user() {
        let text = hba(&["host all all all trust".into()]);
        let reject = text.find("host all postgres all reject").unwrap();
        assert!(reject < text.find("host all all all trust").unwrap());
    }
}
