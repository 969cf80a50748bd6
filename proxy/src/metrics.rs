//! What the proxy counts. Each worker counts for itself and hands its sums over ten times a second, so that no
//! statement touches memory that another worker writes.

use crate::route::throttle::{Cause, Slowed};
use crate::sql::Pins;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, local::LocalHistogram,
};
use std::cell::{Cell, RefCell};

/// The process's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    queries: IntCounterVec,
    no_standby: IntCounterVec,
    checkout_wait: Histogram,
    errors: IntCounterVec,
    in_doubt: IntCounter,
    lost_writes: IntCounter,
    lost_reads: IntCounter,
    resolved: IntCounterVec,
    retries: IntCounterVec,
    refused_shapes: IntGauge,
    misroutes: IntCounter,
    server_losses: IntCounter,
    positions: IntCounterVec,
    connects: IntCounterVec,
    logins: IntCounterVec,
    query_time: Histogram,
    cancels: IntCounterVec,
    handshakes: IntCounterVec,
    sessions: IntGauge,
    held: IntGauge,
    statement_bytes: IntGauge,
    pub(crate) below_mode: IntCounter,
    servers: IntGaugeVec,
    standby_staleness: GaugeVec,
    stream_proof: GaugeVec,
    catalogs_kept: IntGauge,
    catalogs_unread: IntGauge,
    slowed: IntCounterVec,
    slowed_seconds: Counter,
    write_delay: Gauge,
    pins: IntCounterVec,
    pinned: IntGaugeVec,
}

impl Metrics {
    /// Create and register.
    ///
    /// # Errors
    /// A metric of that name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name, help, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let gauges = |name, help, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let buckets = prometheus::exponential_buckets(0.000_1, 4.0, 10)?;
        let wait = HistogramOpts::new("pgtenure_proxy_checkout_wait_seconds", "Wait for a server connection");
        let times = HistogramOpts::new(
            "pgtenure_proxy_query_seconds",
            "Time from a unit of statements sent to a server to its last answer, waits for a server not counted",
        );
        // 100 us to 26 s, by fours.
        let time_buckets = prometheus::exponential_buckets(0.000_1, 4.0, 10)?;
        let metrics = Self {
            query_time: Histogram::with_opts(times.buckets(time_buckets))?,
            cancels: counters(
                "pgtenure_proxy_cancel_requests_total",
                "Cancel requests of clients: ours, passed on to the process whose they are, dropped because too many such were \
                 on their way, of nobody we know, or ignored because their address had sent too many of those",
                &["result"],
            )?,
            handshakes: counters(
                "pgtenure_proxy_tls_handshakes_total",
                "TLS handshakes with clients and with servers, by result",
                &["side", "result"],
            )?,
            queries: counters(
                "pgtenure_proxy_queries_total",
                "Units of statements sent, by target and by why they went there",
                &["target", "reason"],
            )?,
            no_standby: counters(
                "pgtenure_proxy_no_standby_total",
                "Reads, and READ ONLY transactions, that no standby could serve at once, by what became of them (waited for \
                 a standby, sent to the primary, or an error, as also when its client gave up) and by why there was none",
                &["outcome", "reason"],
            )?,
            checkout_wait: Histogram::with_opts(wait.buckets(buckets))?,
            errors: counters(
                "pgtenure_proxy_errors_total",
                "Errors told to clients, by SQLSTATE class and by who reported them",
                &["class", "source"],
            )?,
            in_doubt: IntCounter::new("pgtenure_proxy_in_doubt_total", "Writes answered 08007")?,
            lost_writes: IntCounter::new(
                "pgtenure_proxy_lost_writes_told_total",
                "Sessions told that an acknowledged write of theirs may be lost",
            )?,
            lost_reads: IntCounter::new(
                "pgtenure_proxy_lost_reads_told_total",
                "Sessions told that what they have read at a standby may be lost",
            )?,
            resolved: counters(
                "pgtenure_proxy_commits_resolved_total",
                "COMMITs that were lost with their server and looked into, by what became of them",
                &["outcome"],
            )?,
            retries: counters(
                "pgtenure_proxy_retries_total",
                "Reads, and beginnings of transactions, that were run again elsewhere, by what the first server did",
                &["reason"],
            )?,
            refused_shapes: IntGauge::new(
                "pgtenure_proxy_refused_shapes",
                "Shapes of statements that are remembered because a standby has refused them, by each worker for itself",
            )?,
            misroutes: IntCounter::new(
                "pgtenure_proxy_misroutes_total",
                "Shapes of statements that were taken for reads, refused by a standby and are sent to the primary for a while",
            )?,
            server_losses: IntCounter::new(
                "pgtenure_proxy_server_losses_total",
                "Server connections lost while a session held them",
            )?,
            positions: counters(
                "pgtenure_proxy_positions_asked_total",
                "Times that the primary was asked where its WAL ends for a session's reads at standbys: in the same write as \
                 what commits, behind it, or once that was answered",
                &["when"],
            )?,
            connects: counters(
                "pgtenure_proxy_server_connects_total",
                "Attempts to connect to a server, by result",
                &["result"],
            )?,
            logins: counters("pgtenure_proxy_logins_total", "Client logins, by result", &["result"])?,
            sessions: IntGauge::new("pgtenure_proxy_sessions", "Client sessions")?,
            below_mode: IntCounter::new(
                "pgtenure_proxy_commits_below_mode_total",
                "Commits acknowledged with less durability than the cluster's mode",
            )?,
            held: IntGauge::new("pgtenure_proxy_held_statements", "Statements held or waiting for a server")?,
            statement_bytes: IntGauge::new(
                "pgtenure_proxy_prepared_statement_bytes",
                "Memory that the prepared statements of all clients take",
            )?,
            servers: gauges("pgtenure_proxy_servers", "Server connections, by role and state", &["role", "state"])?,
            standby_staleness: GaugeVec::new(
                Opts::new(
                    "pgtenure_proxy_standby_staleness_seconds",
                    "Replay lag plus age of the sample, as routing sees it",
                ),
                &["node"],
            )?,
            stream_proof: GaugeVec::new(
                Opts::new(
                    "pgtenure_proxy_stream_proof_age_seconds",
                    "Age of the standbys' last proof that the term is not over; absent without one, and where none is needed",
                ),
                &[],
            )?,
            catalogs_kept: IntGauge::new(
                "pgtenure_proxy_catalogs_kept",
                "What is known of databases' functions, in memory: the newest of each, and older ones that sessions work with",
            )?,
            catalogs_unread: IntGauge::new(
                "pgtenure_proxy_catalogs_unread",
                "Databases in use whose catalog could not be read when that was tried last",
            )?,
            slowed: counters(
                "pgtenure_proxy_slowed_transactions_total",
                "Transactions that may write and waited because the standbys do not keep up, by cause",
                &["cause"],
            )?,
            slowed_seconds: Counter::new("pgtenure_proxy_slowed_seconds_total", "What those waited for, in all")?,
            write_delay: Gauge::new(
                "pgtenure_proxy_write_delay_seconds",
                "How long a new write transaction waits now",
            )?,
            pins: counters(
                "pgtenure_proxy_pins_total",
                "Times that a session had to keep its server between transactions, by reason",
                &["reason"],
            )?,
            pinned: gauges(
                "pgtenure_proxy_pinned_sessions",
                "Sessions that keep their server between transactions, by reason; one may have several",
                &["reason"],
            )?,
        };
        // A rate needs a series that begins at nothing.
        for cause in Cause::NAMES {
            metrics.slowed.with_label_values(&[cause]);
        }
        for outcome in Resolved::ALL {
            metrics.resolved.with_label_values(&[outcome.as_str()]);
        }
        for reason in Retried::ALL {
            metrics.retries.with_label_values(&[reason.as_str()]);
        }
        for collector in metrics.collectors() {
            registry.register(collector)?;
        }
        Ok(metrics)
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        vec![
            Box::new(self.queries.clone()),
            Box::new(self.no_standby.clone()),
            Box::new(self.checkout_wait.clone()),
            Box::new(self.errors.clone()),
            Box::new(self.in_doubt.clone()),
            Box::new(self.lost_writes.clone()),
            Box::new(self.lost_reads.clone()),
            Box::new(self.resolved.clone()),
            Box::new(self.retries.clone()),
            Box::new(self.refused_shapes.clone()),
            Box::new(self.misroutes.clone()),
            Box::new(self.server_losses.clone()),
            Box::new(self.positions.clone()),
            Box::new(self.connects.clone()),
            Box::new(self.logins.clone()),
            Box::new(self.query_time.clone()),
            Box::new(self.cancels.clone()),
            Box::new(self.handshakes.clone()),
            Box::new(self.sessions.clone()),
            Box::new(self.held.clone()),
            Box::new(self.statement_bytes.clone()),
            Box::new(self.below_mode.clone()),
            Box::new(self.servers.clone()),
            Box::new(self.standby_staleness.clone()),
            Box::new(self.stream_proof.clone()),
            Box::new(self.catalogs_kept.clone()),
            Box::new(self.catalogs_unread.clone()),
            Box::new(self.slowed.clone()),
            Box::new(self.slowed_seconds.clone()),
            Box::new(self.write_delay.clone()),
            Box::new(self.pins.clone()),
            Box::new(self.pinned.clone()),
        ]
    }

    /// Show the sums over all workers.
    pub fn show(&self, totals: &Totals) {
        let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.sessions.set(int(totals.sessions));
        self.held.set(int(totals.held));
        self.refused_shapes.set(int(totals.refused_shapes));
        self.statement_bytes.set(int(totals.statement_bytes));
        for (role, state, n) in [
            ("primary", "idle", totals.primary_idle),
            ("primary", "in_use", totals.primary_in_use),
            ("standby", "idle", totals.standby_idle),
            ("standby", "in_use", totals.standby_in_use),
        ] {
            self.servers.with_label_values(&[role, state]).set(int(n));
        }
    }

    /// Show how long writes wait now.
    pub fn show_write_delay(&self, slowed: Option<Slowed>) {
        self.write_delay.set(slowed.map_or(0.0, |s| s.delay.as_secs_f64()));
    }

    /// Show the staleness of every standby whose lag is known; the others are absent.
    pub fn show_staleness<'a>(&self, known: impl Iterator<Item = (&'a str, f64)>) {
        self.standby_staleness.reset();
        for (node, seconds) in known {
            self.standby_staleness.with_label_values(&[node]).set(seconds);
        }
    }
}

impl Metrics {
    /// Show how many tables of catalogs are in memory, and how many catalogs cannot be read.
    pub fn show_catalogs(&self, kept: usize, unread: usize) {
        self.catalogs_kept.set(kept as i64);
        self.catalogs_unread.set(unread as i64);
    }

    /// Show how old the standbys' proof of the term is, when there is one.
    pub fn show_proof(&self, age: Option<std::time::Duration>) {
        match age {
            Some(age) => self.stream_proof.with_label_values::<&str>(&[]).set(age.as_secs_f64()),
            None => self.stream_proof.reset(),
        }
    }
}

/// Gauges of one worker, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Client sessions.
    pub sessions: u64,
    /// Statements held or waiting for a server.
    pub held: u64,
    /// Sessions in a transaction on the primary or with a statement in flight there.
    pub busy: u64,
    /// Idle connections to the primary.
    pub primary_idle: u64,
    /// Connections to the primary that serve a session.
    pub primary_in_use: u64,
    /// Idle connections to standbys.
    pub standby_idle: u64,
    /// Connections to standbys that serve a session.
    pub standby_in_use: u64,
    /// Shapes of statements that standbys have refused.
    pub refused_shapes: u64,
    /// Memory that prepared statements of clients take, bytes.
    pub statement_bytes: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.held += other.held;
        self.busy += other.busy;
        self.primary_idle += other.primary_idle;
        self.primary_in_use += other.primary_in_use;
        self.standby_idle += other.standby_idle;
        self.standby_in_use += other.standby_in_use;
        self.refused_shapes += other.refused_shapes;
        self.statement_bytes += other.statement_bytes;
    }
}

/// Why something was run again on another server: what the first one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It refused what it was sent: it is a standby.
    Refused,
    /// Its recovery needed what was being read.
    RecoveryConflict,
    /// It did not know what was named, and may not have replayed that yet.
    Lacking,
    /// It stops, starts or crashes.
    ServerStops,
    /// It has an error of its own: its disk, its memory, its limits.
    ServerError,
    /// Its connection ended, or it did not speak the protocol.
    ServerLost,
    /// It is not what it was: another primary is, or what is known of it is too old.
    Deposed,
}

impl Retried {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::RecoveryConflict,
        Self::Lacking,
        Self::ServerStops,
        Self::ServerError,
        Self::ServerLost,
        Self::Deposed,
    ];

    /// As one snake_case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::RecoveryConflict => "recovery_conflict",
            Self::Lacking => "lacking",
            Self::ServerStops => "server_stops",
            Self::ServerError => "server_error",
            Self::ServerLost => "server_lost",
            Self::Deposed => "deposed",
        }
    }
}

/// What became of a read that no standby could serve at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One did, after a wait.
    Waited,
    /// It went to the primary.
    Primary,
    /// The client was told an error.
    Error,
}

impl Outcome {
    /// As one snake_case word.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Waited => "waited",
            Self::Primary => "primary",
            Self::Error => "error",
        }
    }
}

/// What became of a COMMIT that was lost with its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// It is committed, and its client was told so.
    Survived,
    /// It is not, and its client was told that it may be done again.
    Lost,
    /// Nobody can tell: 08007.
    Unknown,
}

impl Resolved {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Survived, Self::Lost, Self::Unknown];

    /// As one snake_case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Survived => "survived",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

/// Who reported an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A server; it was passed on.
    Server,
    /// The proxy.
    Proxy,
}

/// What one worker counts.
#[derive(Debug)]
pub struct Counts {
    shared: Metrics,
    wait: RefCell<LocalHistogram>,
    query_time: RefCell<LocalHistogram>,
    queries: RefCell<Vec<(&'static str, &'static str, u64)>>,
    no_standby: RefCell<Vec<(&'static str, &'static str, u64)>>,
    errors: RefCell<Vec<([u8; 2], Source, u64)>>,
    /// Statements answered 08007.
    pub in_doubt: Cell<u64>,
    /// Sessions told that an acknowledged write of theirs may be lost.
    pub lost_writes: Cell<u64>,
    /// Sessions told that what they have read may be lost.
    pub lost_reads: Cell<u64>,
    /// Shapes that a standby has refused.
    pub misroutes: Cell<u64>,
    /// Server connections lost while a session held them.
    pub server_losses: Cell<u64>,
    /// Positions of the primary asked for in the same write as what commits.
    pub positions_behind: Cell<u64>,
    /// Positions asked for once that was answered.
    pub positions_after: Cell<u64>,
    /// Logins that led to a session.
    logged_in: Cell<u64>,
}

impl Counts {
    /// Counters of one worker, to be added to `shared`.
    pub fn new(shared: &Metrics) -> Self {
        Self {
            wait: RefCell::new(shared.checkout_wait.local()),
            query_time: RefCell::new(shared.query_time.local()),
            shared: shared.clone(),
            queries: RefCell::default(),
            no_standby: RefCell::default(),
            errors: RefCell::default(),
            in_doubt: Cell::default(),
            lost_writes: Cell::default(),
            lost_reads: Cell::default(),
            misroutes: Cell::default(),
            server_losses: Cell::default(),
            positions_behind: Cell::default(),
            positions_after: Cell::default(),
            logged_in: Cell::default(),
        }
    }

    /// A unit was sent to `target` because of `reason`.
    pub fn query(&self, target: &'static str, reason: &'static str) {
        count(&self.queries, target, reason);
    }

    /// No standby could serve a read at once, for `reason`.
    pub fn no_standby(&self, outcome: Outcome, reason: &'static str) {
        count(&self.no_standby, outcome.as_str(), reason);
    }

    /// What binds a session to its server between transactions has changed. Rare: most are bound by nothing.
    pub fn pins(&self, before: Pins, now: Pins) {
        for reason in now.without(before).list() {
            self.shared.pins.with_label_values(&[reason.label()]).inc();
            self.shared.pinned.with_label_values(&[reason.label()]).inc();
        }
        for reason in before.without(now).list() {
            self.shared.pinned.with_label_values(&[reason.label()]).dec();
        }
    }

    /// Something is run again on another server. Rare.
    pub fn retried(&self, reason: Retried) {
        self.shared.retries.with_label_values(&[reason.as_str()]).inc();
    }

    /// It was found out what became of a COMMIT, or that nobody can tell. Rare.
    pub fn resolved(&self, outcome: Resolved) {
        self.shared.resolved.with_label_values(&[outcome.as_str()]).inc();
    }

    /// A transaction that may write has waited so long because of `cause`.
    pub fn slowed(&self, cause: Cause, wait: std::time::Duration) {
        self.shared.slowed.with_label_values(&[cause.as_str()]).inc();
        self.shared.slowed_seconds.inc_by(wait.as_secs_f64());
    }

    /// A server connection was got after so long.
    pub fn waited(&self, wait: std::time::Duration) {
        self.wait.borrow_mut().observe(wait.as_secs_f64());
    }

    /// A server has answered what it was sent so long before.
    pub fn answered(&self, time: std::time::Duration) {
        self.query_time.borrow_mut().observe(time.as_secs_f64());
    }

    /// A client was told an error of this SQLSTATE class.
    pub fn error(&self, class: [u8; 2], source: Source) {
        let mut errors = self.errors.borrow_mut();
        // Servers can invent classes; there is room for all of PostgreSQL's.
        let room = errors.len() < 200;
        match errors.iter_mut().find(|(c, s, _)| *c == class && *s == source) {
            Some((_, _, n)) => *n += 1,
            None if room => errors.push((class, source, 1)),
            None => {}
        }
    }

    /// An attempt to connect to a server ended: `ok`, or why not.
    pub fn connect(&self, result: &'static str) {
        self.shared.connects.with_label_values(&[result]).inc();
    }

    /// A cancel request has come.
    pub fn cancel(&self, result: &'static str) {
        self.shared.cancels.with_label_values(&[result]).inc();
    }

    /// A TLS handshake ended, with a `client` or a `server`.
    pub fn handshake(&self, side: &'static str, ok: bool) {
        self.shared.handshakes.with_label_values(&[side, if ok { "ok" } else { "failed" }]).inc();
    }

    /// A client has logged in.
    pub fn logged_in(&self) {
        bump(&self.logged_in);
    }

    /// A client's login has failed.
    pub fn login(&self, result: &'static str) {
        self.shared.logins.with_label_values(&[result]).inc();
    }

    /// Hand the sums over.
    pub fn flush(&self) {
        self.wait.borrow_mut().flush();
        self.query_time.borrow_mut().flush();
        for (target, reason, n) in self.queries.borrow_mut().iter_mut().filter(|(_, _, n)| *n > 0) {
            self.shared.queries.with_label_values(&[*target, *reason]).inc_by(std::mem::take(n));
        }
        for (outcome, reason, n) in self.no_standby.borrow_mut().iter_mut().filter(|(_, _, n)| *n > 0) {
            self.shared.no_standby.with_label_values(&[*outcome, *reason]).inc_by(std::mem::take(n));
        }
        for (class, source, n) in self.errors.borrow_mut().iter_mut().filter(|(_, _, n)| *n > 0) {
            let source = match source {
                Source::Server => "server",
                Source::Proxy => "proxy",
            };
            let class = String::from_utf8_lossy(&class[..]);
            self.shared.errors.with_label_values(&[class.as_ref(), source]).inc_by(std::mem::take(n));
        }
        self.shared.in_doubt.inc_by(self.in_doubt.take());
        self.shared.lost_writes.inc_by(self.lost_writes.take());
        self.shared.lost_reads.inc_by(self.lost_reads.take());
        self.shared.misroutes.inc_by(self.misroutes.take());
        self.shared.server_losses.inc_by(self.server_losses.take());
        for (when, sum) in [("behind", &self.positions_behind), ("after", &self.positions_after)] {
            self.shared.positions.with_label_values(&[when]).inc_by(sum.take());
        }
        let logged_in = self.logged_in.take();
        if logged_in > 0 {
            self.shared.logins.with_label_values(&["ok"]).inc_by(logged_in);
        }
    }
}

/// Add one to the sum of two words of ours, which are the same strings whenever they are equal.
fn count(sums: &RefCell<Vec<(&'static str, &'static str, u64)>>, one: &'static str, other: &'static str) {
    let mut sums = sums.borrow_mut();
    match sums.iter_mut().find(|(a, b, _)| std::ptr::eq(*a, one) && std::ptr::eq(*b, other)) {
        Some((_, _, n)) => *n += 1,
        None => sums.push((one, other, 1)),
    }
}

/// Add one to a cell.
pub fn bump(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}
