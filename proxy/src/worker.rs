//! One single-threaded runtime per core. A session lives and dies on its worker, with its pools and its view of the
//! cluster; what workers share is a few atomics and the messages of [`ToWorker`].

mod accept;
mod counting;
mod follow;
mod reach;
mod rechecks;
mod run;
mod scheduling;
mod shared;
mod slow;
mod strangers;
mod watch;

pub use accept::{Entrance, Entrances, tune};
use counting::LettingGo;
pub use run::{Inbound, Seat, run};
use scheduling::{Scheduling, Working};
pub use shared::{Applied, Board, Parcel, Settings, Shared, ToWorker};
pub use strangers::{Stranger, Strangers};

use crate::auth::cancel_keys::Secret;
use crate::config::pools::Pools as Rules;
use crate::config::{Config, IoUring, reads};
use crate::console::tally::Tallies;
use crate::explain::Asked;
use crate::metrics::Counts;
use crate::net::round;
use crate::pool::backoff::Backoff;
use crate::pool::checkout::still_valid;
use crate::pool::doors::Doorway;
use crate::pool::policy::{Age, forced_user, too_old};
use crate::pool::warm::Patrons;
use crate::pool::{Identity, Order, PoolKey, Pools, Rivals, Scope};
use crate::route::recheck::Rechecks;
use crate::route::sample::{Refusals, Sample};
use crate::route::{
    self, Causality, Consistency, Decision, Footing, Footings, Lag, Loads, Misroutes, Promise, Reason, Request, Slowed,
    Target,
};
use crate::session::account::Accounts;
use crate::session::cancel::Asks;
use crate::session::confirm::Later;
use crate::session::greeting::Greeting;
use crate::session::presence::{Places, Presence};
use crate::session::server::{Meta, Server};
use crate::session::settings::Shared as Beginning;
use crate::session::statements::Texts;
use crate::session::timers;
use crate::session::tracking::Tracking;
use crate::sql::{Access, Callers, FunctionTable, Recall};
use cluster::topology::{Gate, Topology};
use cluster::{Clock, Instant, NodeId, Role, Term};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, oneshot};

/// Servers that are asked at the same time whether they may stop what they are at, for each kind of those who ask.
const QUESTIONS_AT_ONCE: usize = 2;
/// TLS handshakes of which a step, up to a millisecond of computing, is done between two rounds of the relay.
const HANDSHAKES_IN_A_ROUND: usize = 1;
/// Buffers kept for the next session that needs one.
const MAX_SPARES: usize = 64;
/// A buffer above this is not kept, bytes.
const MAX_SPARE: usize = 256 * 1024;
/// Settings kept for the next client of the same identity.
const MAX_WELCOMES: usize = 4096;

/// The cluster as this worker acts on it.
pub struct View {
    /// Who accepts writes.
    pub topology: Topology,
    /// How far the standbys are.
    pub lag: Lag,
}

/// A worker.
pub struct Worker {
    /// Its index.
    pub index: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// The cluster.
    pub view: RefCell<View>,
    /// Grows with each change of the topology.
    pub generation: Cell<u64>,
    /// Sessions that wait, with a server of their own, for a proof that its term is not over.
    unproven: RefCell<Vec<Rc<Presence>>>,
    /// When a proof was asked for last.
    proof_asked: Cell<Instant>,
    /// Commits of ours that tell of others'.
    pub(crate) later: Later,
    /// Told at each change of topology or lag.
    pub changed: Notify,
    /// Server connections.
    pub pools: Pools,
    /// What operators have said.
    pub doorway: Rc<Doorway>,
    /// Who is connected.
    pub patrons: Patrons,
    /// Sessions.
    pub places: RefCell<Places>,
    /// Prepared texts.
    pub texts: RefCell<Texts>,
    /// Counters.
    pub counts: Counts,
    /// What `SHOW STATS` counts.
    pub tallies: Tallies,
    /// Bounds the connections being made to each node.
    connects: RefCell<BTreeMap<NodeId, Rc<Semaphore>>>,
    /// Bounds the questions whether a server may stop what it is at.
    pub(crate) questions: [Semaphore; Asks::ALL.len()],
    /// Requests to cancel that are on their way.
    errands: Cell<usize>,
    /// Bounds the TLS handshakes that compute between two rounds of the relay.
    pub handshakes: Semaphore,
    /// Which decisions are logged.
    pub sample: Cell<Sample>,
    /// Which clients that are not let in are logged.
    refusals: Cell<Refusals>,
    /// Which errors of standbys the primary is asked about, and what it has said.
    rechecks: RefCell<Rechecks>,
    /// How each standby stands.
    footings: RefCell<Footings>,
    /// What standbys have refused lately.
    pub misroutes: RefCell<Misroutes>,
    /// What texts were found to do.
    pub recall: RefCell<Recall>,
    /// What sessions have that do nothing in place of a table that is not the newest.
    pub(crate) no_table: Arc<FunctionTable>,
    /// Who is told to let go of old ones.
    letting_go: Cell<LettingGo>,
    backoffs: RefCell<BTreeMap<NodeId, Backoff>>,
    /// What nodes said that take no more connections of anybody.
    full: RefCell<BTreeMap<NodeId, Vec<u8>>>,
    /// Bounds the clients that prove who they are at the same time.
    pub logins: Semaphore,
    /// Who has not done so yet.
    strangers: Strangers,
    /// What statements of sessions take that is not shared between them, bytes.
    pub(crate) kept: Cell<usize>,
    /// Whose all of those are.
    pub(crate) accounts: RefCell<Accounts>,
    /// Statements of all clients take more than they should.
    crowded: Cell<bool>,
    outstanding: RefCell<Vec<(NodeId, u32)>>,
    /// What the newest session has begun with.
    newcomer: RefCell<Beginning>,
    scratch: Cell<Vec<u8>>,
    spares: RefCell<Vec<Vec<u8>>>,
    config: RefCell<Rc<Config>>,
    scheduling: Cell<Scheduling>,
    /// Something has happened since the last tick.
    stirred: Cell<bool>,
    /// Told when `stirred` becomes true.
    stir: Notify,
    /// The shortest limit on what sessions do.
    shortest: Cell<Option<Duration>>,
    /// When to look at the sessions.
    look_at: Cell<Option<Instant>>,
    /// `look_at` has become earlier.
    look_earlier: Notify,
    seed: Cell<u64>,
    /// How long new transactions that may write wait.
    slowed: Cell<Option<Slowed>>,
    /// When they last waited, since it was logged that they do.
    slow: Cell<Option<Instant>>,
    busy: Cell<u64>,
    reading: Cell<u64>,
    held: Cell<u64>,
    in_use: [Cell<u64>; 2],
    /// Sessions that servers work for.
    working: Working,
}

impl Loads for Worker {
    fn outstanding(&self, node: &NodeId) -> u32 {
        self.outstanding.borrow().iter().find(|(n, _)| n == node).map_or(0, |(_, count)| *count)
    }

    fn footing(&self, node: &NodeId) -> Footing {
        self.footings.borrow().of(node)
    }
}

impl Worker {
    /// A worker that has seen nothing yet.
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let [to_give, to_ask, to_close] = std::array::from_fn(|_| shared.peers.clone());
        let hand_over = Rc::new(move |to: usize, key: PoolKey, server: Server| {
            // A connection that cannot move is closed, and its place goes to who waits.
            let Server { stream, meta, .. } = server;
            if let Ok(stream) = stream.detach() {
                let _ = to_give[to].try_send(ToWorker::Server(Box::new(Parcel { key, stream, meta })));
            }
        });
        let ask = Rc::new(move |of: usize, key: PoolKey| {
            let _ = to_ask[of].try_send(ToWorker::Ask { from: index, key });
        });
        let ask_to_close = Rc::new(move |of: usize, key: PoolKey, rivals: Rivals| {
            let _ = to_close[of].try_send(ToWorker::Evict { key, rivals });
        });
        let doorway = Rc::<Doorway>::default();
        doorway.obey(shared.doors.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let pools = Pools::new(index, shared.limits.clone(), doorway.clone(), hand_over, ask, ask_to_close);
        let counts = Counts::new(&shared.metrics);
        let config = Rc::new(Config::clone(&shared.config.borrow()));
        let shortest = timers::shortest(&config.timeouts);
        let logins = Semaphore::new(config.auth.max_logins);
        Rc::new(Self {
            index,
            pools,
            doorway,
            patrons: Patrons::default(),
            stirred: Cell::new(false),
            stir: Notify::new(),
            counts,
            tallies: Tallies::new(Clock.now()),
            config: RefCell::new(config),
            scheduling: Cell::default(),
            view: RefCell::new(View { topology: Topology::unknown(), lag: Lag::default() }),
            generation: Cell::new(0),
            unproven: RefCell::default(),
            proof_asked: Cell::default(),
            later: Later::default(),
            changed: Notify::new(),
            places: RefCell::default(),
            texts: RefCell::new(Texts::new((index as u64) << 48).since(shared.altered.clone())),
            connects: RefCell::default(),
            questions: Asks::ALL.map(|_| Semaphore::new(QUESTIONS_AT_ONCE)),
            errands: Cell::new(0),
            handshakes: Semaphore::new(HANDSHAKES_IN_A_ROUND),
            sample: Cell::default(),
            refusals: Cell::default(),
            rechecks: RefCell::default(),
            footings: RefCell::default(),
            misroutes: RefCell::default(),
            recall: RefCell::default(),
            no_table: Arc::new(FunctionTable::unloaded().with_doubtful(Callers::unknown())),
            letting_go: Cell::default(),
            backoffs: RefCell::default(),
            full: RefCell::default(),
            shortest: Cell::new(shortest),
            look_at: Cell::new(None),
            look_earlier: Notify::new(),
            logins,
            strangers: Strangers::default(),
            kept: Cell::new(0),
            accounts: RefCell::default(),
            crowded: Cell::new(false),
            outstanding: RefCell::default(),
            newcomer: RefCell::default(),
            scratch: Cell::default(),
            spares: RefCell::default(),
            seed: Cell::new(index as u64),
            slowed: Cell::default(),
            slow: Cell::default(),
            busy: Cell::new(0),
            reading: Cell::new(0),
            held: Cell::new(0),
            in_use: Default::default(),
            working: Working::default(),
            shared,
        })
    }

    /// Now.
    pub fn now(&self) -> Instant {
        Clock.now()
    }

    /// Is one more client that is not let in to be logged, as a warning or as less? Then how many were left out since the one
    /// before.
    pub fn logs_refusal(&self, warns: bool) -> Option<u64> {
        let mut refusals = self.refusals.get();
        let left_out = refusals.takes(warns, self.now());
        self.refusals.set(refusals);
        left_out
    }

    /// The configuration in force. Its own copy: the count of its owners is this worker's alone.
    pub fn config(&self) -> Rc<Config> {
        self.config.borrow().clone()
    }

    /// Have this thread scheduled as configured, and as what has happened since the last time asks for.
    fn schedule(&self) {
        let most = self.working.take_most();
        let (now, configured) = (self.scheduling.get(), self.config.borrow().batch_scheduling);
        self.scheduling.set(now.obey(now.wants(configured, most)));
    }

    /// Send together what a round of the loop sends, as configured.
    fn send_together(&self) {
        let wanted = self.config.borrow().io_uring == IoUring::Auto;
        match round::together(wanted) {
            Ok(true) if self.index == 0 => tracing::info!(io_uring = wanted, "how workers send has changed"),
            Ok(_) => {}
            // As good as one that is not wanted.
            Err(error) if self.index == 0 => {
                tracing::info!(%error, "the kernel lets us not use io_uring, which saves calls")
            }
            Err(_) => {}
        }
    }

    fn apply_config(&self, config: &Config) {
        self.shortest.set(timers::shortest(&config.timeouts));
        self.look_no_later(self.now());
        let old = self.config.replace(Rc::new(config.clone()));
        self.mark_moved(&old.pools, &config.pools);
        self.schedule();
        self.send_together();
        self.throttle();
        self.shared.limits.obey(&config.pools);
        self.pools.reconsider();
        self.each_session(Presence::wake);
    }

    /// Sessions whose database is led elsewhere by new rules are told so when they are next outside of a transaction. What
    /// replicates goes on.
    fn mark_moved(&self, old: &Rules, new: &Rules) {
        if old == new {
            return;
        }
        self.each_session(|presence| {
            let Some(facts) = presence.facts.get().filter(|facts| facts.replication.is_none()) else { return };
            let database = &facts.identity.database;
            let released = forced_user(old, database).is_some() && forced_user(new, database).is_none();
            if released || facts.identity.leads_elsewhere(new) {
                presence.moved.set(true);
            }
        });
    }

    /// May the primary be written to?
    pub fn gate(&self, now: Instant) -> Gate {
        self.view.borrow().topology.gate_at(now)
    }

    /// Ask for a sample of all nodes, for a read that needs a newer one.
    pub fn ask_sample(&self) {
        if let Some(ask) = &self.shared.ask_sample {
            ask();
        }
    }

    /// How long ago the primary was asked for the newest sample of it; `None` while none is known.
    pub fn sample_age(&self, now: Instant) -> Option<Duration> {
        self.view.borrow().lag.snapshot().primary.as_ref().map(|sample| now.since(sample.sent_at))
    }

    /// Where a unit goes.
    pub fn decide(&self, request: &Request<'_>, causality: &mut Causality, now: Instant) -> Decision {
        let seed = self.next_seed();
        let view = self.view.borrow();
        route::decide(request, causality, &view.topology, &view.lag, self, now, seed)
    }

    /// Where a statement would go now that a new session of that database and user sends.
    fn explain(&self, asked: &Asked) -> Decision {
        let (config, now) = (self.config(), self.now());
        let (Asked { access, shape, database, user, hints }, reads) = (asked, &config.reads);
        let mut promise = reads::resolve(reads, config.max_replay_lag, &config.pools, database, user);
        if reads.hints {
            let each = hints.iter().map(|of| route::promise::resolve(promise, route::hint::pairs(of)).0);
            promise = each.reduce(Promise::and).unwrap_or(promise);
        }
        if *access == Access::Read && self.misroutes.borrow().holds(*shape, now) {
            return Decision { target: Target::Primary, reason: Reason::RefusedBefore };
        }
        let request = Request { access: *access, avoid: &[], promise, since: now };
        self.decide(&request, &mut Causality::default(), now)
    }

    /// Would a read of this promise still be sent to that standby?
    pub fn still_fits(&self, node: &NodeId, promise: &Promise, causality: &mut Causality, now: Instant) -> bool {
        let view = self.view.borrow();
        route::still_fits(node, promise, causality, &view.topology, &view.lag, now)
    }

    /// Does this connection lead to another server than the one of which the lag is known under its node's name? `eventual`
    /// reads do not mind.
    pub fn is_another(&self, meta: &Meta, promise: &Promise) -> bool {
        let Some(started) = meta.started.filter(|_| meta.role == Role::Standby) else { return false };
        let sampled = || self.view.borrow().lag.answering(&meta.node);
        promise.consistency != Consistency::Eventual && sampled().is_some_and(|sampled| sampled != started)
    }

    /// May this connection go on serving?
    pub fn still_valid(&self, meta: &Meta) -> bool {
        self.still_serves(&meta.node, meta.role, meta.term)
    }

    /// Is a node still what it was in that term?
    pub fn still_serves(&self, node: &NodeId, role: Role, term: Term) -> bool {
        still_valid(node, role, term, &self.view.borrow().topology)
    }

    /// Connections that were idle since before that are checked before they serve again.
    pub fn check_before(&self, now: Instant) -> Instant {
        now - self.config().timeouts.server_check_delay
    }

    /// Give a connection back to its pool, or close it.
    pub fn release(self: &Rc<Self>, pool: &Rc<crate::pool::Pool>, mut server: Server, now: Instant) {
        self.count_in_use(&server.meta, false);
        let old = too_old(Age { born: server.meta.born, lifetime: self.config().server_lifetime }, now);
        if server.meta.spoilt
            || !server.meta.explained()
            || old
            || !self.still_valid(&server.meta)
            || !server.stream.is_sent()
            || server.cancels.astray()
        {
            return;
        }
        server.meta.idle_since = now;
        if !server.cancels.running() {
            return pool.give(server);
        }
        // A cancel request is on its way: it must not hit the next client.
        let (worker, pool) = (self.clone(), pool.clone());
        tokio::task::spawn_local(async move {
            server.cancels.ended().await;
            if worker.still_valid(&server.meta) && !server.cancels.astray() {
                pool.give(server);
            }
        });
    }

    /// A number that differs each time.
    pub fn next_seed(&self) -> u64 {
        let seed = self.seed.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.seed.set(seed);
        seed
    }

    /// The cluster or what operators have said is another one: who waits looks again.
    fn tell_change(&self) {
        self.changed.notify_waiters();
        self.pools.reconsider();
    }

    fn obey(&self, order: Order, scope: &Scope) {
        let doors = self.shared.doors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.doorway.obey(doors);
        for pool in self.pools.all() {
            let database = &pool.key.identity.database;
            pool.retain_idle(|s| !self.doorway.must_close(database, s.meta.born));
        }
        if order == Order::Kill {
            let places = self.places.borrow();
            let meant = |p: &Presence| p.facts.get().is_some_and(|f| scope.covers(&f.identity.database));
            places.all().filter(|(_, p)| meant(p)).for_each(|(_, p)| p.end());
        }
        self.tell_change();
    }

    fn kill_client(&self, place: usize) -> bool {
        let places = self.places.borrow();
        let presence = places.at(place);
        presence.into_iter().for_each(|p| p.end());
        presence.is_some()
    }

    /// The buffer that all sessions of this worker read into, one at a time.
    pub fn take_scratch(&self) -> Vec<u8> {
        self.scratch.take()
    }

    /// Give it back.
    pub fn put_scratch(&self, scratch: Vec<u8>) {
        if scratch.capacity() <= 4 * MAX_SPARE {
            self.scratch.set(scratch);
        }
    }

    /// An empty buffer.
    pub fn take_spare(&self) -> Vec<u8> {
        self.spares.borrow_mut().pop().unwrap_or_default()
    }

    /// Give a buffer back.
    pub fn put_spare(&self, mut spare: Vec<u8>) {
        let mut spares = self.spares.borrow_mut();
        if spare.capacity() > 0 && spare.capacity() <= MAX_SPARE && spares.len() < MAX_SPARES {
            spare.clear();
            spares.push(spare);
        }
    }

    /// Keep what a primary reported for clients that come later. Servers that begin alike share it: what is returned.
    pub fn keep_welcome(&self, identity: &Arc<Identity>, settings: &Arc<Settings>) -> Arc<Settings> {
        let mut welcomes = self.shared.welcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = welcomes.get(identity).filter(|known| known.settings == *settings) {
            return known.settings.clone();
        }
        if welcomes.len() >= MAX_WELCOMES && !welcomes.contains_key(identity) {
            make_room(&mut welcomes);
        }
        welcomes.insert(identity.clone(), Arc::new(Greeting::new(settings.clone())));
        settings.clone()
    }

    /// A primary lets it in no more.
    pub fn forget_welcome(&self, identity: &Identity) {
        self.shared.welcomes.lock().unwrap_or_else(PoisonError::into_inner).remove(identity);
    }

    /// What follows a new session. Those who come one after the other mostly begin with the same settings, and share them.
    pub fn begin_tracking(&self, application_name: Option<&str>) -> Tracking {
        let mut last = self.newcomer.borrow_mut();
        let tracking = Tracking::like(application_name, &last);
        last.clone_from(&tracking.settings);
        tracking
    }

    /// What a primary reported to this identity.
    pub fn welcome(&self, identity: &Arc<Identity>) -> Option<(Arc<Identity>, Arc<Greeting>)> {
        let welcomes = self.shared.welcomes.lock().unwrap_or_else(PoisonError::into_inner);
        welcomes.get_key_value(identity).map(|(i, s)| (i.clone(), s.clone()))
    }

    /// The same, its settings only.
    pub fn told(&self, identity: &Identity) -> Option<Arc<Settings>> {
        let welcomes = self.shared.welcomes.lock().unwrap_or_else(PoisonError::into_inner);
        welcomes.get(identity).map(|greeting| greeting.settings.clone())
    }

    /// Run `tell` for every session's presence.
    fn each_session(&self, tell: impl Fn(&Presence)) {
        self.places.borrow().all().for_each(|(_, p)| tell(p));
    }

    /// Wake the session at that place, whoever has it.
    fn wake(&self, place: usize) {
        if let Some(presence) = self.places.borrow().at(place) {
            presence.wake();
        }
    }

    fn cancel(&self, place: usize, secret: Secret, done: oneshot::Sender<()>) {
        let presence = self.places.borrow().at(place).cloned();
        if let Some(presence) = presence.filter(|p| p.secret.get() == Some(secret)) {
            presence.cancel(done);
        }
    }
}

/// Forget one greeting: of whom no session and no pool is left, where there is such a one.
fn make_room<T>(welcomes: &mut BTreeMap<Arc<Identity>, T>) {
    let unused = welcomes.keys().find(|identity| Arc::strong_count(identity) == 1).cloned();
    let _forgotten = match unused {
        Some(identity) => welcomes.remove_entry(&identity),
        None => welcomes.pop_first(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_by_who_is_gone() {
        let identity = |user: &str| {
            let [database, dbname, user] = ["d", "d", user].map(str::to_owned);
            Arc::new(Identity { database, dbname, user, parameters: Vec::new() })
        };
        let used: Vec<_> = ["a", "c"].into_iter().map(identity).collect();
        let mut welcomes: BTreeMap<_, _> = used.iter().cloned().map(|identity| (identity, ())).collect();
        welcomes.insert(identity("b"), ());
        make_room(&mut welcomes);
        assert!(welcomes.keys().eq(&used));
        make_room(&mut welcomes);
        assert!(welcomes.keys().eq(&used[1..]));
    }
}
