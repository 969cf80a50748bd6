//! A worker's loop, and the clients that it is given.

use crate::net::{Origin, Stream, round};
use crate::pool::{health, survey, warm};
use crate::session::server::Server;
use crate::session::{client, login};
use crate::worker::accept::{self, Entrances};
use crate::worker::{Parcel, Shared, Stranger, ToWorker, Worker};
use cluster::lag::LagSnapshot;
use cluster::topology::Topology;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long a client may take to hear that the process ends.
const DISMISSAL: Duration = Duration::from_secs(1);

/// For how long a connection is unused before it is closed in a process whose clients come to the next one: they are few
/// and become fewer, and both processes together may have no more connections than the servers take.
const RETIRING_IDLE: Duration = Duration::from_secs(1);

/// What a worker listens to.
pub struct Inbound {
    /// Where clients come in, for the worker that accepts them.
    pub entrances: Option<Entrances>,
    /// Messages.
    pub messages: mpsc::Receiver<ToWorker>,
    /// The topology.
    pub topology: watch::Receiver<Topology>,
    /// The lag.
    pub lag: watch::Receiver<Arc<LagSnapshot>>,
    /// Ends the worker.
    pub stop: watch::Receiver<bool>,
}

/// Run a worker until it is told to stop.
pub async fn run(worker: Rc<Worker>, mut inbound: Inbound) {
    worker.schedule();
    worker.send_together();
    let of = worker.clone();
    tokio::task::spawn_local(round::run(move |place| of.wake(place)));
    let topology = inbound.topology.borrow_and_update().clone();
    worker.apply_topology(topology);
    let lag = inbound.lag.borrow_and_update().clone();
    worker.apply_lag(lag);
    // Only now: who comes in finds the cluster known.
    if let Some(entrances) = inbound.entrances.take()
        && let Err(error) = accept::begin(&worker, entrances)
    {
        return tracing::error!(%error, "the runtime does not take a listening socket");
    }
    let mut config = worker.shared.config.subscribe();
    let mut ticked = worker.now();
    let (mut topology_lives, mut lag_lives) = (true, true);
    loop {
        tokio::select! {
            // The cluster first: nothing may be sent under a view that is known to be old.
            biased;
            changed = inbound.topology.changed(), if topology_lives => {
                topology_lives = changed.is_ok();
                let topology = inbound.topology.borrow_and_update().clone();
                worker.apply_topology(topology);
                warm::prepare(&worker);
            }
            _ = inbound.stop.wait_for(|stop| *stop) => return dismiss(&worker).await,
            changed = inbound.lag.changed(), if lag_lives => {
                lag_lives = changed.is_ok();
                let lag = inbound.lag.borrow_and_update().clone();
                worker.apply_lag(lag);
            }
            // Its sender lives in what all workers share.
            Ok(()) = config.changed() => {
                let config = config.borrow_and_update().clone();
                worker.apply_config(&config);
            }
            message = inbound.messages.recv() => match message {
                Some(message) => receive(&worker, message),
                None => return,
            },
            () = worker.time_to_look() => worker.look(worker.now()),
            () = worker.time_to_tick(ticked) => {
                ticked = worker.now();
                let config = worker.config();
                worker.tick();
                worker.pools.retry();
                let retiring = worker.shared.retiring.load(Ordering::Relaxed);
                let unused = if retiring {
                    health::Unused { after: config.server_idle_timeout.min(RETIRING_IDLE), but_minimum: false }
                } else {
                    health::Unused { after: config.server_idle_timeout, but_minimum: true }
                };
                health::sweep(&worker.pools, unused, config.server_lifetime, ticked);
                if !retiring && warm::top_up(&worker) {
                    worker.stir();
                }
            }
        }
    }
}

/// The process ends: who is still here is told so, as far as that takes no time.
async fn dismiss(worker: &Worker) {
    worker.each_session(|presence| presence.end());
    let gone = async {
        loop {
            // Listened for before it is looked at: who leaves in between is not missed.
            let mut left = std::pin::pin!(worker.shared.left.notified());
            left.as_mut().enable();
            if worker.places.borrow().all().next().is_none() && !worker.has_errands() {
                return;
            }
            left.await;
        }
    };
    let _ = tokio::time::timeout(DISMISSAL, gone).await;
}

fn receive(worker: &Rc<Worker>, message: ToWorker) {
    worker.stir();
    match message {
        ToWorker::Client { stream, first, origin, seat } => match stream.attach() {
            Ok(stream) => serve(worker, (stream, first), origin, seat),
            Err(error) => tracing::warn!(%error, "client socket could not be registered"),
        },
        ToWorker::MakeRoom => worker.dismiss_stranger(),
        ToWorker::Cancel { place, secret, done } => worker.cancel(place, secret, done),
        ToWorker::Server(parcel) => {
            let Parcel { key, stream, meta } = *parcel;
            if let Ok(stream) = stream.attach() {
                let server = Server { stream, meta, cancels: Rc::default() };
                if worker.still_valid(&server.meta) {
                    worker.pools.of(&key.node, &key.identity).give(server);
                }
            }
        }
        ToWorker::Ask { from, key } => worker.pools.of(&key.node, &key.identity).asked_by(from),
        ToWorker::Room(key) => worker.pools.of(&key.node, &key.identity).room(),
        ToWorker::Evict { key, rivals } => worker.pools.evict(&key, rivals),
        ToWorker::Order { order, scope, done } => {
            worker.obey(order, &scope);
            // Who asked may have given up.
            let _ = done.send(());
        }
        ToWorker::KillClient { place, done } => {
            let _ = done.send(worker.kill_client(place));
        }
        ToWorker::Explain { asked, reply } => {
            let _ = reply.send(worker.explain(&asked));
        }
        ToWorker::Survey { reply } => {
            let _ = reply.send(survey::of(worker));
        }
    }
}

/// Serve a client, of whose bytes the first have been read, in a task of its own.
pub(super) fn serve(worker: &Rc<Worker>, client: (Stream, Vec<u8>), origin: Origin, seat: Seat) {
    worker.stir();
    let (stranger, of) = (Stranger::enter(worker), worker.clone());
    let id = stranger.id();
    let task = tokio::task::spawn_local(async move {
        // A login needs more memory than the session after it: it is given back.
        if let Some(session) = Box::pin(login::welcome(&of, client, origin, (seat.read_only, stranger))).await {
            client::run(session).await;
        }
        drop(seat);
        of.stir();
    });
    worker.keep_stranger(id, task.abort_handle());
}

/// A client's place in the counts, for as long as it is connected or on its way to its worker.
pub struct Seat {
    shared: Arc<Shared>,
    worker: usize,
    /// It came by an address of `proxy.listen_read_only`.
    read_only: bool,
}

impl Seat {
    /// Count a client of that worker.
    pub(super) fn take(shared: Arc<Shared>, worker: usize, read_only: bool) -> Self {
        let clients = shared.clients.fetch_add(1, Ordering::SeqCst) + 1;
        shared.boards[worker].sessions.fetch_add(1, Ordering::SeqCst);
        if clients > shared.most_clients.load(Ordering::Relaxed) {
            shared.most_clients.fetch_max(clients, Ordering::Relaxed);
        }
        Self { shared, worker, read_only }
    }
}

/// Clients above which it is worth while to give memory back when half of them have left.
const MANY_CLIENTS: usize = 256;

/// Give freed memory back to the system: the allocator keeps it, all the more when what is left lies behind it.
fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no preconditions, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.boards[self.worker].sessions.fetch_sub(1, Ordering::SeqCst);
        let left = shared.clients.fetch_sub(1, Ordering::SeqCst) - 1;
        let most = shared.most_clients.load(Ordering::Relaxed);
        // Each time that half have left, so seldom that its cost does not matter.
        if most >= MANY_CLIENTS && left <= most / 2 {
            shared.most_clients.store(left, Ordering::Relaxed);
            trim_heap();
        }
        shared.left.notify_waiters();
    }
}
