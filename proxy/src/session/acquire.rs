//! Finding a server for a unit that has not been sent: holding it while there is none, queueing for a connection,
//! making one. Everything here waits with a deadline, and starts again when the cluster changes.

use crate::auth::credentials::Credentials;
use crate::pool::checkout::Wait;
use crate::pool::policy::{PoolPolicy, resolve};
use crate::pool::{Checkout, Full, Identity, Offer, Permit, Pool, Share};
use crate::route::{Causality, Promise, Reason, Request, Target};
use crate::session::challenge::Allowed;
use crate::session::server::{self, ConnectError, Login, Server};
use crate::session::settings::Shared;
use crate::session::slow;
use crate::sql::Access;
use crate::wire::error_response::ClientError;
use crate::wire::pool_error::PoolError;
use crate::wire::promise_error::PromiseError;
use crate::worker::{ToWorker, Worker};
use cluster::topology::{Gate, Member};
use cluster::{Instant, NodeId, Role};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long nothing is looked at while the gate is shut.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// too_many_connections: the server has as many as it takes, of all or of this user.
const TOO_MANY: &str = "53300";

/// What is looked for, and for whom.
#[derive(Clone)]
pub struct Want {
    /// Whose session.
    pub identity: Arc<Identity>,
    /// What it can log in to servers with.
    pub credentials: Arc<Credentials>,
    /// What it has written and read.
    pub causality: Rc<RefCell<Causality>>,
    /// What the unit needs.
    pub access: Access,
    /// What the session is promised of its reads.
    pub promise: Promise,
    /// Standbys on which this very unit has failed.
    pub avoid: Vec<NodeId>,
    /// When it began to wait.
    pub since: Instant,
}

impl Want {
    /// How long it may take: what a read waits for a standby comes first.
    fn hold(&self, w: &Worker) -> Duration {
        let wait = match self.access {
            Access::Read => self.promise.standby_wait,
            Access::Write => Duration::ZERO,
        };
        w.config().hold_timeout + wait
    }

    fn need(&self) -> Need<'_> {
        let Self { identity, causality, access, promise, avoid, since, .. } = self;
        Need { database: &identity.database, causality, access: *access, promise: *promise, avoid, since: *since }
    }
}

/// A connection for a unit.
pub struct Found {
    /// The connection, checked out.
    pub server: Server,
    /// Where it goes back to.
    pub pool: Rc<Pool>,
    /// Why it was chosen.
    pub reason: Reason,
}

/// Why there is none.
pub enum NotFound {
    /// What the client is told.
    Error(ClientError),
    /// The server's own words.
    Refused(Vec<u8>),
}

/// What a unit needs, borrowed from its session: a [`Want`] for those who need not wait.
#[derive(Clone, Copy)]
pub struct Need<'a> {
    /// The database.
    pub database: &'a str,
    /// What the session has written and read.
    pub causality: &'a RefCell<Causality>,
    /// What the unit needs.
    pub access: Access,
    /// What the session is promised of its reads.
    pub promise: Promise,
    /// Standbys on which this very unit has failed.
    pub avoid: &'a [NodeId],
    /// When it began to wait.
    pub since: Instant,
}

/// A connection that is at hand: no waiting, no connecting.
pub fn at_hand(
    w: &Worker,
    need: Need<'_>,
    settings: &Shared,
    pool_of: impl FnOnce(&NodeId) -> Rc<Pool>,
    now: Instant,
) -> Option<Found> {
    let (target, reason) = target(w, need, now);
    let node = match target {
        Target::Wait(_) | Target::Nowhere => return None,
        // Writes wait while the standbys do not keep up.
        Target::Primary if need.access == Access::Write && w.slowed().is_some() => return None,
        Target::Primary if w.gate(now) == Gate::Open => w.view.borrow().topology.primary.as_ref()?.node.clone(),
        Target::Primary => return None,
        Target::Standby(node) => node,
    };
    let pool = pool_of(&node);
    // Who waits already goes first.
    if pool.waiting() > 0 || w.doorway.paused(need.database) {
        return None;
    }
    let server = pool.at_hand(w.check_before(now), settings)?;
    w.still_valid(&server.meta).then_some(Found { server, pool, reason })
}

/// Where a unit would go, and why.
pub fn target(w: &Worker, need: Need<'_>, now: Instant) -> (Target, Reason) {
    let Need { access, promise, avoid, since, .. } = need;
    let request = Request { access, promise, avoid, since };
    let decision = w.decide(&request, &mut need.causality.borrow_mut(), now);
    (decision.target, decision.reason)
}

/// A unit's bytes, counted against `proxy.hold_bytes` while it waits.
struct Held<'a> {
    w: &'a Worker,
    bytes: u64,
}

impl<'a> Held<'a> {
    fn new(w: &'a Worker, bytes: usize) -> Result<Self, ClientError> {
        let bytes = bytes as u64;
        let held = Self { w, bytes };
        w.count_held(true);
        let total = w.shared.held_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let limit = w.config().hold_bytes;
        if total > limit {
            let (gate, term) = (w.gate(w.now()), w.view.borrow().topology.term);
            return Err(ClientError::HoldFull { bytes: total, limit, gate, term });
        }
        Ok(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.w.shared.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.w.count_held(false);
    }
}

/// Find a connection for a unit of so many bytes. Cancel-safe: a connection that was got and not returned goes back
/// or is closed.
///
/// # Errors
/// What to tell the client when the time is over, or when the server refuses this user.
pub async fn find(w: &Rc<Worker>, mut want: Want, bytes: usize) -> Result<Found, NotFound> {
    let _held = Held::new(w, bytes).map_err(NotFound::Error)?;
    // A login, or a session that listens, has nothing to write.
    if bytes > 0 && want.access == Access::Write {
        slow::down(w, want.since).await;
    }
    let mut queue = Queue::default();
    let mut unknown = None;
    loop {
        // Listened for before it is looked at: a change in between is not missed.
        let mut changed = std::pin::pin!(w.changed.notified());
        changed.as_mut().enable();
        let now = w.now();
        let hold_left = want.hold(w).saturating_sub(now.since(want.since));
        if hold_left.is_zero() {
            if let Some(error) = unknown {
                return Err(NotFound::Error(ClientError::Promise(error)));
            }
            return Err(NotFound::Error(hold_timeout(w, want.since, now)));
        }
        let waited_enough = now.since(want.since) >= rules(w, &want).query_wait_timeout;
        if let Some(frame) = queue.server_full.take_if(|_| waited_enough) {
            return Err(NotFound::Refused(frame));
        }
        if let Some(left) = paused(w, &want, now).map_err(NotFound::Error)? {
            let _ = tokio::time::timeout(left, changed).await;
            continue;
        }
        let (target, reason) = target(w, want.need(), now);
        let promised_left = match target {
            Target::Nowhere => return Err(NotFound::Error(nowhere(&want, reason, now))),
            Target::Wait(left) => Some(left),
            Target::Primary | Target::Standby(_) => None,
        };
        if let Some(left) = promised_left {
            if let Reason::AfterUnknown { after, term } = reason {
                unknown = Some(PromiseError::AfterUnknown { after, term, waited: now.since(want.since) });
            }
            let _ = tokio::time::timeout(left.min(hold_left), changed).await;
            continue;
        }
        let Some((member, role)) = member(w, &target, now) else {
            // The gate is shut: wait for a change, or until the view's validity or the time to hold is over.
            let _ = tokio::time::timeout(hold_left.min(LOOK_AGAIN), changed).await;
            continue;
        };
        let pool = w.pools.of(&member.node, &want.identity);
        let server = match pool.checkout(w.check_before(now), queue.share(w, &want, now)) {
            Checkout::Ready(server) => Some(server),
            Checkout::Check(server) => check(w, server, hold_left).await,
            Checkout::Full(full) => queue.wait(w, &want, &pool, full, changed).await.map_err(NotFound::Error)?,
            Checkout::Open(permit) => queue.make(w, &mut want, (&member, role), &pool, permit, changed).await?,
        };
        if let Some(server) = server.filter(|s| w.still_valid(&s.meta)) {
            w.counts.waited(w.now().since(want.since));
            return Ok(Found { server, pool, reason });
        }
    }
}

fn rules(w: &Worker, want: &Want) -> PoolPolicy {
    resolve(&w.config().pools, &want.identity.database, &want.identity.user)
}

/// How long a statement of a paused database may still wait; `None` when it is not paused.
fn paused(w: &Worker, want: &Want, now: Instant) -> Result<Option<Duration>, ClientError> {
    let database = &want.identity.database;
    if !w.doorway.paused(database) {
        return Ok(None);
    }
    let waited = now.since(want.since);
    let left = rules(w, want).query_wait_timeout.saturating_sub(waited);
    if left.is_zero() {
        return Err(ClientError::Pool(PoolError::Paused { database: database.clone(), waited }));
    }
    Ok(Some(left))
}

/// Ask a connection that was idle for long whether it lives. What does not answer is closed.
async fn check(w: &Rc<Worker>, mut server: Server, left: Duration) -> Option<Server> {
    let limit = w.config().connect_timeout.min(left);
    let lives = tokio::time::timeout(limit, server.answers()).await.unwrap_or(false);
    if !lives {
        tracing::info!(node = %server.meta.node, "idle server connection did not answer, it is closed");
    }
    lives.then_some(server)
}

/// A statement's time in the queue of its pool.
#[derive(Default)]
struct Queue {
    since: Option<Instant>,
    /// The words of a server that takes no more connections.
    server_full: Option<Vec<u8>>,
}

impl Queue {
    fn share(&self, w: &Worker, want: &Want, now: Instant) -> Share {
        let Some(since) = self.since else { return Share::Usual };
        let after = rules(w, want).reserve_after;
        if now.since(since) >= after { Share::Reserve } else { Share::Usual }
    }

    /// Make a connection. `None` when there is none yet: everything is to be looked at again.
    async fn make(
        &mut self,
        w: &Rc<Worker>,
        want: &mut Want,
        (member, role): (&Member, Role),
        pool: &Rc<Pool>,
        permit: Permit,
        changed: std::pin::Pin<&mut tokio::sync::futures::Notified<'_>>,
    ) -> Result<Option<Server>, NotFound> {
        let now = w.now();
        let left = want.hold(w).saturating_sub(now.since(want.since));
        if let Err(pause) = w.may_connect(&member.node, now) {
            // The node could not be connected to lately: a read goes elsewhere, and what needs the primary waits for
            // the next attempt, or for a connection that is given back.
            permit.forgo();
            if role == Role::Standby {
                want.avoid.push(member.node.clone());
                return Ok(None);
            }
            let wait = pool.wait(*self.since.get_or_insert(now), false);
            return Ok(turn(wait, left.min(pause), changed).await);
        }
        let error = match open(w, want, member, role, permit, left).await {
            Ok(server) => return Ok(Some(server)),
            Err(None) => return Ok(None),
            Err(Some(error)) if error.is_final() && role == Role::Primary => return Err(refused(error)),
            Err(Some(error)) => error,
        };
        tracing::debug!(node = %member.node, ?role, error = %describe(&error), "server not reached");
        match (role, error) {
            (Role::Standby, _) => want.avoid.push(member.node.clone()),
            (Role::Primary, ConnectError::Refused { code, frame, .. }) if code == TOO_MANY => {
                self.server_full = Some(frame);
            }
            (Role::Primary, _) => self.server_full = None,
        }
        Ok(None)
    }

    /// Wait for a turn. `None` when something has changed and everything is to be looked at again.
    async fn wait(
        &mut self,
        w: &Worker,
        want: &Want,
        pool: &Rc<Pool>,
        full: Full,
        changed: std::pin::Pin<&mut tokio::sync::futures::Notified<'_>>,
    ) -> Result<Option<Server>, ClientError> {
        let now = w.now();
        let since = *self.since.get_or_insert(now);
        let waited = now.since(since);
        let rules = rules(w, want);
        let mut left = rules.query_wait_timeout.saturating_sub(waited);
        if left.is_zero() {
            let (limit, of_database) = match full {
                Full::Pool { limit } => (limit, false),
                Full::Database { limit } => (limit, true),
            };
            let waiting = pool.limit.waiting() + 1;
            return Err(ClientError::Pool(PoolError::Exhausted { waited, limit, of_database, waiting }));
        }
        if pool.limit.has_reserve() && waited < rules.reserve_after {
            left = left.min(rules.reserve_after - waited);
        }
        let wait = pool.wait(since, true);
        if let Full::Database { .. } = full {
            // Other pools of the database, on any worker, may have a connection that nobody uses.
            let evict = |peer: &tokio::sync::mpsc::Sender<ToWorker>| peer.try_send(ToWorker::Evict(pool.key.clone()));
            w.shared.peers.iter().for_each(|peer| drop(evict(peer)));
        }
        Ok(turn(wait, left, changed).await)
    }
}

/// A turn in the queue. `None` when something has changed, or the time is over.
async fn turn(
    mut wait: Wait,
    left: Duration,
    changed: std::pin::Pin<&mut tokio::sync::futures::Notified<'_>>,
) -> Option<Server> {
    tokio::select! {
        biased;
        offer = wait.offer() => match offer {
            Offer::Server(server) => Some(server),
            Offer::TryAgain => None,
        },
        () = changed => None,
        () = tokio::time::sleep(left) => None,
    }
}

fn member(w: &Worker, target: &Target, now: Instant) -> Option<(Member, Role)> {
    let view = w.view.borrow();
    match target {
        Target::Primary if view.topology.gate_at(now) == Gate::Open => {
            view.topology.primary.clone().map(|m| (m, Role::Primary))
        }
        Target::Primary | Target::Wait(_) | Target::Nowhere => None,
        Target::Standby(node) => view.topology.member(node).cloned().map(|m| (m, Role::Standby)),
    }
}

/// Make a connection.
///
/// # Errors
/// Why it failed; `None` when the cluster changed meanwhile.
pub async fn open(
    w: &Rc<Worker>,
    want: &Want,
    member: &Member,
    role: Role,
    permit: Permit,
    left: Duration,
) -> Result<Server, Option<ConnectError>> {
    let config = w.config();
    let (term, generation) = (w.view.borrow().topology.term, w.generation.get());
    let login = Login {
        member,
        role,
        term,
        identity: &want.identity,
        credentials: &want.credentials,
        allowed: Allowed { md5: config.auth.server_md5, password: config.auth.server_password },
        hashing: &w.shared.hashing,
        worker: w,
        connect_timeout: config.connect_timeout.min(left),
        login_timeout: config.login_timeout.min(left),
    };
    let connecting = async {
        let _turn = w.connects.acquire().await.expect("the semaphore is never closed");
        server::connect(login, permit, w.now()).await
    };
    let moved = async {
        loop {
            w.changed.notified().await;
            // Lag samples come all the time; only the topology matters here.
            if w.generation.get() != generation && !serves(w, member, role, term) {
                return;
            }
        }
    };
    let opening = Opening::new(w.pools.of(&member.node, &want.identity));
    let result = tokio::select! {
        result = connecting => result,
        () = moved => return Err(None),
    };
    drop(opening);
    w.counts.connect(result.as_ref().map_or_else(ConnectError::label, |_| "ok"));
    match &result {
        Ok(server) if server.stream.tls().is_some() => w.counts.handshake("server", true),
        Err(ConnectError::Tls { .. }) => w.counts.handshake("server", false),
        Ok(_) | Err(_) => {}
    }
    // A user or a database that the server does not know says nothing about the node.
    w.connected(&member.node, result.as_ref().map_or_else(ConnectError::is_final, |_| true));
    let mut server = result.map_err(Some)?;
    if role == Role::Primary {
        server.meta.settings = w.keep_welcome(&want.identity, &server.meta.settings);
    }
    if w.still_valid(&server.meta) { Ok(server) } else { Err(None) }
}

/// Counts a connection that is being made.
struct Opening(Rc<Pool>);

impl Opening {
    fn new(pool: Rc<Pool>) -> Self {
        pool.opening.set(pool.opening.get() + 1);
        Self(pool)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
    }
}

fn serves(w: &Worker, member: &Member, role: Role, term: cluster::Term) -> bool {
    crate::pool::checkout::still_valid(&member.node, role, term, &w.view.borrow().topology)
}

/// A connection to any standby, for what it reports at login: when there is no primary to ask.
pub async fn any_standby(w: &Rc<Worker>, want: &Want) -> Option<Server> {
    let standbys = w.view.borrow().topology.standbys.clone();
    for member in standbys.iter().filter(|m| !m.fenced) {
        let pool = w.pools.of(&member.node, &want.identity);
        match pool.checkout(w.check_before(w.now()), Share::Usual) {
            Checkout::Ready(server) => return Some(server),
            Checkout::Check(_) | Checkout::Full(_) => {}
            Checkout::Open(permit) => {
                let limit = w.config().connect_timeout;
                match open(w, want, member, Role::Standby, permit, limit).await {
                    Ok(server) => return Some(server),
                    Err(Some(error)) => {
                        tracing::debug!(node = %member.node, error = %describe(&error), "standby not asked");
                    }
                    Err(None) => return None,
                }
            }
        }
    }
    None
}

/// The error for what goes nowhere: a read that no standby may serve and that must not burden the primary, or one
/// that comes after what is lost.
fn nowhere(want: &Want, reason: Reason, now: Instant) -> ClientError {
    match reason {
        Reason::AfterLost { after, fork, term } => ClientError::Promise(PromiseError::AfterLost { after, fork, term }),
        reason => ClientError::NoStandby {
            consistency: want.promise.consistency.as_str(),
            waited: now.since(want.since),
            why: reason.to_string(),
        },
    }
}

/// The error for a unit that was held too long.
pub fn hold_timeout(w: &Worker, since: Instant, now: Instant) -> ClientError {
    let view = w.view.borrow();
    ClientError::HoldTimeout {
        waited: now.since(since),
        gate: view.topology.gate_at(now),
        term: view.topology.term,
        node: view.topology.primary.as_ref().map(|p| p.node.clone()),
    }
}

fn refused(error: ConnectError) -> NotFound {
    match error {
        ConnectError::Refused { frame, .. } => NotFound::Refused(frame),
        ConnectError::Challenge { node, source } => {
            NotFound::Error(ClientError::ServerLogin { node, why: source.to_string() })
        }
        ConnectError::Tls { node, source } => {
            NotFound::Error(ClientError::ServerLogin { node, why: source.to_string() })
        }
        ConnectError::Io { node, .. }
        | ConnectError::Timeout { node, .. }
        | ConnectError::WrongRole { node, .. }
        | ConnectError::Protocol { node, .. } => {
            NotFound::Error(ClientError::ServerLogin { node, why: "connection failed".to_owned() })
        }
    }
}

fn describe(error: &ConnectError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
