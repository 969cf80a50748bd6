//! Finding a server for a unit that has not been sent: holding it while there is none, queueing for a connection,
//! making one. Everything here waits with a deadline, and starts again when the cluster changes.

use crate::auth::scram::LoginKeys;
use crate::pool::{Checkout, Identity, Offer, Permit, Pool};
use crate::route::{Causality, Request, Target};
use crate::session::server::{self, ConnectError, Login, Server};
use crate::sql::Access;
use crate::wire::error_response::ClientError;
use crate::worker::Worker;
use cluster::topology::{Gate, Member};
use cluster::{Instant, NodeId, Role};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The first pause after a failed connection to the primary; doubled at each, up to the longest.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// The longest.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// What is looked for, and for whom.
#[derive(Clone)]
pub struct Want {
    /// Whose session.
    pub identity: Arc<Identity>,
    /// Its keys.
    pub keys: LoginKeys,
    /// What it has written and read.
    pub causality: Rc<RefCell<Causality>>,
    /// What the unit needs.
    pub access: Access,
    /// Standbys on which this very unit has failed.
    pub avoid: Vec<NodeId>,
    /// When it began to wait.
    pub since: Instant,
}

/// A connection for a unit.
pub struct Found {
    /// The connection, checked out.
    pub server: Server,
    /// Where it goes back to.
    pub pool: Rc<Pool>,
    /// Why it was chosen.
    pub reason: &'static str,
}

/// Why there is none.
pub enum NotFound {
    /// What the client is told.
    Error(ClientError),
    /// The server's own words.
    Refused(Vec<u8>),
}

/// A connection that is at hand: no waiting, no connecting.
pub fn at_hand(w: &Worker, want: &Want, pool_of: impl FnOnce(&NodeId) -> Rc<Pool>, now: Instant) -> Option<Found> {
    let (target, reason) = target(w, want, now);
    let node = match target {
        Target::Primary if w.gate(now) == Gate::Open => w.view.borrow().topology.primary.as_ref()?.node.clone(),
        Target::Primary => return None,
        Target::Standby(node) => node,
    };
    let pool = pool_of(&node);
    // Who waits already goes first.
    if pool.waiting() > 0 {
        return None;
    }
    match pool.checkout() {
        Checkout::Ready(server) if w.still_valid(&server.meta) => Some(Found { server, pool, reason }),
        Checkout::Ready(_) | Checkout::Open(_) | Checkout::Full => None,
    }
}

fn target(w: &Worker, want: &Want, now: Instant) -> (Target, &'static str) {
    let request = Request { access: want.access, avoid: &want.avoid };
    let decision = w.decide(&request, &mut want.causality.borrow_mut(), now);
    (decision.target, decision.reason.as_str())
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
    let mut pause = RETRY_MIN;
    let mut queued: Option<Instant> = None;
    loop {
        // Listened for before it is looked at: a change in between is not missed.
        let mut changed = std::pin::pin!(w.changed.notified());
        changed.as_mut().enable();
        let now = w.now();
        let hold_left = w.config().hold_timeout.saturating_sub(now.since(want.since));
        if hold_left.is_zero() {
            return Err(NotFound::Error(hold_timeout(w, want.since, now)));
        }
        let (target, reason) = target(w, &want, now);
        let Some((member, role)) = member(w, &target, now) else {
            // The gate is shut: wait for a change, or until the view's validity or the time to hold is over.
            let _ = tokio::time::timeout(hold_left.min(RETRY_MAX), changed).await;
            continue;
        };
        let pool = w.pools.of(&member.node, &want.identity);
        let permit = match pool.checkout() {
            Checkout::Ready(server) => {
                if w.still_valid(&server.meta) {
                    w.counts.waited(now.since(want.since));
                    return Ok(Found { server, pool, reason });
                }
                continue;
            }
            Checkout::Open(permit) => permit,
            Checkout::Full => {
                let since = *queued.get_or_insert(now);
                let limit = w.config().query_wait_timeout;
                let left = limit.saturating_sub(now.since(since));
                if left.is_zero() {
                    let (waited, limit) = (now.since(since), pool.limit.size());
                    return Err(NotFound::Error(ClientError::PoolExhausted { waited, limit }));
                }
                if let Some(server) = queue(&pool, since, left, changed).await
                    && w.still_valid(&server.meta)
                {
                    w.counts.waited(w.now().since(want.since));
                    return Ok(Found { server, pool, reason });
                }
                continue;
            }
        };
        match open(w, &want, &member, role, permit, hold_left).await {
            Ok(server) => {
                w.counts.waited(w.now().since(want.since));
                return Ok(Found { server, pool, reason });
            }
            Err(None) => {}
            Err(Some(error)) => match role {
                Role::Standby => {
                    tracing::debug!(node = %member.node, error = %describe(&error), "standby not used for a read");
                    want.avoid.push(member.node.clone());
                }
                Role::Primary if error.is_final() => return Err(refused(error)),
                Role::Primary => {
                    tracing::debug!(node = %member.node, error = %describe(&error), "primary not reached, held");
                    let _ = tokio::time::timeout(hold_left.min(pause), changed).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            },
        }
    }
}

fn member(w: &Worker, target: &Target, now: Instant) -> Option<(Member, Role)> {
    let view = w.view.borrow();
    match target {
        Target::Primary if view.topology.gate_at(now) == Gate::Open => {
            view.topology.primary.clone().map(|m| (m, Role::Primary))
        }
        Target::Primary => None,
        Target::Standby(node) => view.topology.member(node).cloned().map(|m| (m, Role::Standby)),
    }
}

/// Wait in the pool's queue. `None` when something has changed and everything is to be looked at again.
async fn queue(
    pool: &Rc<Pool>,
    since: Instant,
    left: Duration,
    changed: std::pin::Pin<&mut tokio::sync::futures::Notified<'_>>,
) -> Option<Server> {
    let mut wait = pool.wait(since);
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

/// Make a connection. `Err(None)` when the cluster changed meanwhile.
async fn open(
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
        keys: want.keys.clone(),
        connect_timeout: config.connect_timeout.min(left),
        login_timeout: config.login_timeout.min(left),
        tcp_user_timeout: config.tcp_user_timeout,
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
    let result = tokio::select! {
        result = connecting => result,
        () = moved => return Err(None),
    };
    w.counts.connect(result.is_ok());
    let server = result.map_err(Some)?;
    if role == Role::Primary {
        w.keep_welcome(&want.identity, &server.meta.settings);
    }
    if w.still_valid(&server.meta) { Ok(server) } else { Err(None) }
}

fn serves(w: &Worker, member: &Member, role: Role, term: cluster::Term) -> bool {
    crate::pool::checkout::still_valid(&member.node, role, term, &w.view.borrow().topology)
}

/// A connection to any standby, for what it reports at login: when there is no primary to ask.
pub async fn any_standby(w: &Rc<Worker>, want: &Want) -> Option<Server> {
    let standbys = w.view.borrow().topology.standbys.clone();
    for member in standbys.iter().filter(|m| !m.fenced) {
        let pool = w.pools.of(&member.node, &want.identity);
        match pool.checkout() {
            Checkout::Ready(server) => return Some(server),
            Checkout::Full => {}
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
        ConnectError::Scram { node, source } => {
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
