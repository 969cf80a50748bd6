//! Finding a server for a unit that has not been sent: holding it while there is none, queueing for a connection,
//! making one. Everything here waits with a deadline, and starts again when the cluster changes.

mod open;
mod queue;

pub use open::{any_standby, open};

use crate::auth::credentials::Credentials;
use crate::metrics::{Outcome, bump};
use crate::pool::policy::{PoolPolicy, resolve};
use crate::pool::{Checkout, Identity, Pool};
use crate::route::{Causality, Consistency, LostRead, Promise, Reason, Request, Target, Unproven};
use crate::session::server::{ConnectError, Server};
use crate::session::settings::Shared;
use crate::session::slow;
use crate::sql::Access;
use crate::wire::error_response::ClientError;
use crate::wire::pool_error::PoolError;
use crate::wire::promise_error::PromiseError;
use crate::worker::Worker;
use cluster::topology::{Gate, Member};
use cluster::{Instant, NodeId, Role};
use queue::Queue;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long nothing is looked at while the gate is shut.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What is looked for, and for whom.
#[derive(Clone)]
pub struct Want {
    /// Whose session.
    pub identity: Arc<Identity>,
    /// What it can log in to servers with.
    pub credentials: Arc<Credentials>,
    /// It has logged in already: who has done so since may know better.
    pub entered: bool,
    /// What it has written and read.
    pub causality: Rc<RefCell<Causality>>,
    /// What the unit needs.
    pub access: Access,
    /// It only reads, wherever it must: it is not slowed.
    pub quiet: bool,
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
        let Self { identity, causality, access, quiet, promise, avoid, since, .. } = self;
        let (database, access, quiet) = (identity.database.as_str(), *access, *quiet);
        Need { database, causality, access, quiet, promise: *promise, avoid, since: *since }
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
    /// Why no standby could serve a read when it began to wait.
    pub lacked: Option<&'static str>,
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
    /// It only reads, wherever it must: it is not slowed.
    pub quiet: bool,
    /// What the session is promised of its reads.
    pub promise: Promise,
    /// Standbys on which this very unit has failed.
    pub avoid: &'a [NodeId],
    /// When it began to wait.
    pub since: Instant,
}

/// Where a unit goes that has no connection yet.
pub struct Decided {
    pool: Rc<Pool>,
    role: Role,
    reason: Reason,
}

/// A connection that is at hand: no waiting, no connecting.
///
/// # Errors
/// There is none. Where one is to be waited for, when that is known and nothing but a connection is missing.
pub fn at_hand(
    w: &Worker,
    need: Need<'_>,
    wanted: (&Shared, u64),
    pool_of: impl FnOnce(&NodeId) -> Rc<Pool>,
    now: Instant,
) -> Result<Found, Option<Decided>> {
    let (target, reason) = target(w, need, now);
    // Writes wait while the standbys do not keep up.
    if target == Target::Primary && need.access == Access::Write && !need.quiet && w.slowed().is_some() {
        return Err(None);
    }
    let (node, role) = serving(w, target, now).ok_or(None)?;
    if w.doorway.paused(need.database) {
        return Err(None);
    }
    let pool = pool_of(&node);
    // Who waits already goes first.
    if pool.waiting() > 0 {
        return Err(Some(Decided { pool, role, reason }));
    }
    let Some(mut server) = pool.at_hand(w.check_before(now), wanted) else {
        return Err(Some(Decided { pool, role, reason }));
    };
    if !w.still_valid(&server.meta) {
        return Err(None);
    }
    match sampled(w, &mut server, &need.promise) {
        Sampled::Itself => Ok(Found { server, pool, reason, lacked: None }),
        Sampled::NotSince => {
            pool.give(server);
            Err(None)
        }
        Sampled::Another => Err(None),
    }
}

/// Of which server is what is known of a connection's node?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sampled {
    /// Of this very one.
    Itself,
    /// Nothing was sampled since its login. A standby that was restarted begins with less replayed than the one before it had.
    NotSince,
    /// Of one that has taken its name, or whose name it has taken: nothing is known of this one, which must serve nobody.
    Another,
}

/// Is what is known of the server's node of this very server? When nothing is known of it yet, a sample is asked for.
fn sampled(w: &Worker, server: &mut Server, promise: &Promise) -> Sampled {
    let meta = &mut server.meta;
    if meta.role == Role::Primary || promise.consistency == Consistency::Eventual {
        return Sampled::Itself;
    }
    if !meta.sampled {
        let view = w.view.borrow();
        let sample = view.lag.snapshot().standby(&meta.node).and_then(|standby| standby.sample.as_ref());
        meta.sampled = sample.is_some_and(|sample| sample.asked_at >= meta.ready);
    }
    match meta.sampled {
        true if w.is_another(meta, promise) => Sampled::Another,
        true => Sampled::Itself,
        false => {
            w.ask_sample();
            Sampled::NotSince
        }
    }
}

/// Where a unit would go, and why.
pub fn target(w: &Worker, need: Need<'_>, now: Instant) -> (Target, Reason) {
    let Need { access, promise, avoid, since, .. } = need;
    let request = Request { access, promise, avoid, since };
    let decision = w.decide(&request, &mut need.causality.borrow_mut(), now);
    if decision.wants_sample(w.sample_age(now)) {
        w.ask_sample();
    }
    if decision.wants_proof() {
        w.ask_proof(since, now);
    }
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

/// Find a connection for a unit of so many bytes; `decided`: where, when that was decided just now. Cancel-safe: a
/// connection that was got and not returned goes back or is closed.
///
/// It is as small as what those need who wait for a connection that is given back: what is awaited rarely is boxed.
///
/// # Errors
/// What to tell the client when the time is over, or when the server refuses this user.
pub async fn find(
    w: &Rc<Worker>,
    mut want: Want,
    bytes: usize,
    mut decided: Option<Decided>,
) -> Result<Found, NotFound> {
    let _held = Held::new(w, bytes).map_err(NotFound::Error)?;
    // A login, or a session that listens, has nothing to write.
    if bytes > 0 && want.access == Access::Write && !want.quiet && w.slowed().is_some() {
        Box::pin(slow::down(w, want.since)).await;
    }
    let mut queue = Queue::default();
    let mut lacks = Lacks::new(w);
    loop {
        let now = w.now();
        queue.look(now);
        let hold_left = queue.hold_left(w, &want, now);
        if hold_left.is_zero() {
            let error = lacks.error.take();
            let error = error.unwrap_or_else(|| hold_timeout(w, lacks.read.as_ref(), want.since, now));
            return Err(NotFound::Error(error));
        }
        if let Some(frame) = queue.give_up(w, &want) {
            return Err(NotFound::Refused(frame));
        }
        if w.doorway.paused(&want.identity.database) {
            queue.lacks(now);
            change(w, paused(w, &want, &queue, now).map_err(NotFound::Error)?).await;
            continue;
        }
        let Decided { pool, role, reason } = match decided.take() {
            Some(decided) => decided,
            None => match decide(w, &want, &mut lacks, now).map_err(NotFound::Error)? {
                Ok(decided) => decided,
                Err(left) => {
                    change(w, left.min(hold_left)).await;
                    continue;
                }
            },
        };
        let server = match pool.checkout(w.check_before(now), queue.share(w, &want, now)) {
            Checkout::Ready(server) => Some(server),
            Checkout::Check(server) => Box::pin(check(w, server, hold_left)).await,
            Checkout::Full(full) => queue.wait(w, &want, &pool, full).await.map_err(NotFound::Error)?,
            Checkout::Open(permit) => match member(w, &pool.key.node, role) {
                Some(member) => Box::pin(queue.make(w, &mut want, (&member, role), &pool, permit)).await?,
                None => None,
            },
        };
        if let Some(mut server) = server.filter(|s| w.still_valid(&s.meta)) {
            match sampled(w, &mut server, &want.promise) {
                Sampled::Itself => {
                    w.counts.waited(w.now().since(want.since));
                    return Ok(Found { server, pool, reason, lacked: lacks.standby.take() });
                }
                // It may turn out to be staler than was thought: everything is decided anew.
                Sampled::NotSince => {
                    pool.give(server);
                    change(w, hold_left).await;
                }
                // The next one may be the one that was sampled.
                Sampled::Another => {}
            }
        }
    }
}

/// Wait until something has changed, for so long at most. What was looked at without waiting since has not changed
/// before this: changes come on the worker's own thread.
pub(super) async fn change(w: &Worker, most: Duration) {
    let _ = tokio::time::timeout(most, w.changed.notified()).await;
}

/// What a unit waits for. Where that ends without a server, be it that a limit is over or its client has gone, and a standby
/// was lacking, it is counted.
struct Lacks<'a> {
    w: &'a Worker,
    /// What it is told if it waits in vain, where that is known.
    error: Option<ClientError>,
    /// Why no standby could serve it first.
    standby: Option<&'static str>,
    /// Why a read goes where it goes, or nowhere, as of now.
    read: Option<Reason>,
}

impl<'a> Lacks<'a> {
    fn new(w: &'a Worker) -> Self {
        Self { w, error: None, standby: None, read: None }
    }
}

impl Drop for Lacks<'_> {
    fn drop(&mut self) {
        self.standby.iter().for_each(|reason| self.w.counts.no_standby(Outcome::Error, reason));
    }
}

/// Where a unit goes now; within, how long to wait for a change when that is nowhere yet. The gate is one that may open:
/// it is looked at again from time to time, as the view's validity may be over.
fn decide(
    w: &Worker,
    want: &Want,
    lacks: &mut Lacks<'_>,
    now: Instant,
) -> Result<Result<Decided, Duration>, ClientError> {
    let (target, reason) = target(w, want.need(), now);
    if reason.lacks_standby() {
        lacks.standby.get_or_insert(reason.as_str());
    }
    let tells = want.access == Access::Read || matches!(reason, Reason::Unconfirmed { .. });
    lacks.read = tells.then(|| reason.clone());
    match target {
        Target::Nowhere => {
            if matches!(reason, Reason::Unproven { .. }) {
                lacks.standby.get_or_insert(reason.as_str());
            }
            return Err(nowhere(w, want, reason, now));
        }
        Target::Wait(left) => {
            let waited = now.since(want.since);
            lacks.error = match reason {
                Reason::AfterUnknown { after, term } => {
                    Some(ClientError::Promise(PromiseError::AfterUnknown { after, term, waited }))
                }
                Reason::Unproven { what, .. } => Some(unproven(w, &what, want.since, now)),
                _ => None,
            };
            return Ok(Err(left));
        }
        Target::Primary | Target::Standby(_) => lacks.error = None,
    }
    let Some((node, role)) = serving(w, target, now) else { return Ok(Err(LOOK_AGAIN)) };
    Ok(Ok(Decided { pool: w.pools.of(&node, &want.identity), role, reason }))
}

fn rules(w: &Worker, want: &Want) -> PoolPolicy {
    resolve(&w.config().pools, &want.identity.database, &want.identity.user)
}

/// How long a statement of a paused database may still wait.
fn paused(w: &Worker, want: &Want, queue: &Queue, now: Instant) -> Result<Duration, ClientError> {
    let (left, waited) = (queue.wait_left(w, want), now.since(want.since));
    if left.is_zero() {
        let database = want.identity.database.clone();
        return Err(ClientError::Pool(PoolError::Paused { database, waited }));
    }
    Ok(left)
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

/// Which node a target is, as things are: a primary only while the gate is open.
fn serving(w: &Worker, target: Target, now: Instant) -> Option<(NodeId, Role)> {
    match target {
        Target::Wait(_) | Target::Nowhere => None,
        Target::Standby(node) => Some((node, Role::Standby)),
        Target::Primary => {
            let view = w.view.borrow();
            let primary = view.topology.primary.as_ref().filter(|_| view.topology.gate_at(now) == Gate::Open);
            primary.map(|primary| (primary.node.clone(), Role::Primary))
        }
    }
}

fn member(w: &Worker, node: &NodeId, role: Role) -> Option<Member> {
    let view = w.view.borrow();
    match role {
        Role::Primary => view.topology.primary.clone().filter(|primary| &primary.node == node),
        Role::Standby => view.topology.member(node).cloned(),
    }
}

/// The error for what goes nowhere: a read that no standby may serve and that must not burden the primary, one that comes after
/// what is lost, or one that has waited in vain to know whether what its session has read is.
fn nowhere(w: &Worker, want: &Want, reason: Reason, now: Instant) -> ClientError {
    let consistency = want.promise.consistency.as_str();
    match reason {
        Reason::AfterLost { after, why, term } => ClientError::Promise(PromiseError::AfterLost { after, why, term }),
        Reason::Unproven { what, .. } => unproven(w, &what, want.since, now),
        reason => match matches!(reason, Reason::Unconfirmed { .. }).then(|| lost_in_vain(w, want)).flatten() {
            Some(lost) => ClientError::Promise(PromiseError::ReadLost { ago: now.since(lost.at), lost }),
            None => ClientError::NoStandby { consistency, waited: now.since(want.since), why: reason.to_string() },
        },
    }
}

/// What was read at a standby, and nobody tells what became of: told once.
fn lost_in_vain(w: &Worker, want: &Want) -> Option<LostRead> {
    let view = w.view.borrow();
    let lost = want.causality.borrow_mut().take_lost_read(&view.topology, &view.lag, true)?;
    bump(&w.counts.lost_reads);
    Some(lost)
}

/// The error for a unit that was held too long; for a `read` that had no server of its own, why.
pub fn hold_timeout(w: &Worker, read: Option<&Reason>, since: Instant, now: Instant) -> ClientError {
    let view = w.view.borrow();
    ClientError::HoldTimeout {
        waited: now.since(since),
        read: read.map(Reason::to_string),
        gate: view.topology.gate_at(now),
        term: view.topology.term,
        node: view.topology.primary.as_ref().map(|p| p.node.clone()),
    }
}

/// The error for a unit that could not be sent because its term may be over.
pub fn unproven(w: &Worker, what: &Unproven, since: Instant, now: Instant) -> ClientError {
    let view = w.view.borrow();
    let Some(primary) = &view.topology.primary else { return hold_timeout(w, None, since, now) };
    let (node, term, waited) = (primary.node.clone(), what.term, now.since(since));
    ClientError::Promise(PromiseError::Unproven { node, term, waited, why: what.to_string() })
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
        | ConnectError::OtherServer { node, .. }
        | ConnectError::Protocol { node, .. } => {
            NotFound::Error(ClientError::ServerLogin { node, why: "connection failed".to_owned() })
        }
    }
}
