//! What workers share: a few atomics, what each shows the others, and the messages between them.

use crate::auth::cancel_keys::Secret;
use crate::auth::hashing::Hashing;
use crate::auth::query::Lookups;
use crate::auth::users::Users;
use crate::catalog::Catalogs;
use crate::config::Config;
use crate::control::{CancelKey, PassedCancel, ProcessOrder};
use crate::elder::Passed;
use crate::explain::Asked;
use crate::listener::AskSample;
use crate::metrics::{Metrics, Totals};
use crate::net::{Detached, Origin};
use crate::pool::clients::Clients;
use crate::pool::keyring::Keyring;
use crate::pool::view::View as Inventory;
use crate::pool::{Doors, Identity, Limits, Order, PoolKey, Rivals, Scope};
use crate::reach::Reach;
use crate::route::Decision;
use crate::session::account::Taken;
use crate::session::cancel::place_of;
use crate::session::greeting::Greeting;
use crate::session::peers::Cancelling;
use crate::session::server::Meta;
use crate::tls::Contexts;
use crate::worker::run::Seat;
use cluster::Term;
use cluster::topology::{BelowMode, Doubts, Gate, PerTerm, Topology};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// What a server reports at login.
pub type Settings = Vec<(String, String)>;

/// What all workers share.
pub struct Shared {
    /// The configuration in force. Workers act on their own copy ([`Worker::config`]).
    pub config: watch::Sender<Arc<Config>>,
    /// Users, as the files have them.
    pub users: Users,
    /// Users whom the files do not have.
    pub lookups: Arc<Lookups>,
    /// The secrets of cancel keys.
    pub cancelling: Cancelling,
    /// Where passwords are hashed.
    pub hashing: Hashing,
    /// For users that do not exist.
    pub mock_secret: [u8; 32],
    /// Functions, per database.
    pub catalogs: Catalogs,
    /// How often clients have altered tables.
    pub altered: Arc<AtomicU64>,
    /// The pools' limits.
    pub limits: Arc<Limits>,
    /// Clients per database and per user.
    pub admissions: Arc<Clients>,
    /// Databases, by their names at the servers, from which a client's command wants everybody gone, and until when the last
    /// client is waited for.
    pub awaited: Mutex<BTreeMap<String, tokio::time::Instant>>,
    /// What operators have said about databases. Workers act on their own copy.
    pub doors: Mutex<Doors>,
    /// Certificates, keys and authorities in force.
    pub tls: watch::Receiver<Arc<Contexts>>,
    /// The way to servers.
    pub reach: Arc<Reach>,
    /// The ways to the workers.
    pub peers: Arc<Vec<mpsc::Sender<ToWorker>>>,
    /// What each worker does.
    pub boards: Vec<Board>,
    /// Clients connected, those that are logging in included.
    pub clients: AtomicUsize,
    /// The most of them since memory was last given back.
    pub most_clients: AtomicUsize,
    /// Bytes held in all sessions together.
    pub held_bytes: AtomicU64,
    /// What primaries reported at login, by identity, for clients that come later. Locked at logins only.
    pub welcomes: Mutex<BTreeMap<Arc<Identity>, Arc<Greeting>>>,
    /// What server connections are made with for those who logged in before.
    pub keyring: Keyring,
    /// The process stops: new transactions are refused.
    pub stopping: AtomicBool,
    /// The next process serves new clients, and needs the connections that this one does not.
    pub retiring: AtomicBool,
    /// Clients of the console, who are waited for by nobody.
    pub consoles: AtomicUsize,
    /// A worker has applied a view, or a count that is waited for has changed.
    pub applied: Notify,
    /// A client has left.
    pub left: Notify,
    /// What the console asks of the process.
    pub orders: mpsc::Sender<ProcessOrder>,
    /// The way to the process before this one, for cancel requests and orders: clients of it are still there.
    pub elder: Mutex<Option<mpsc::Sender<Passed>>>,
    /// Asks for a sample of all nodes.
    pub ask_sample: Option<AskSample>,
    /// Asks for a newer view of the cluster.
    pub ask_view: Option<AskSample>,
    /// The metrics.
    pub metrics: Metrics,
}

/// What one worker shows the rest of the process.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Board {
    pub(super) applied: Mutex<Applied>,
    pub(super) busy: AtomicU64,
    pub(super) reading: AtomicU64,
    pub(super) resolving: AtomicU64,
    pub(super) below_mode: Mutex<BelowMode>,
    pub(super) doubts: Mutex<PerTerm<Doubts>>,
    /// Sessions, to choose the worker with the fewest.
    pub sessions: AtomicUsize,
    /// Those of them whose clients have not proven yet who they are.
    pub(super) strangers: AtomicUsize,
    /// What prepared statements take, as of the worker's last tick, bytes.
    pub(super) statements: AtomicUsize,
    /// Whose they are, while those of all workers take too much.
    pub(super) taken: Mutex<BTreeMap<Arc<str>, Taken>>,
    pub(super) totals: Mutex<Totals>,
}

/// A view that a worker acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its term.
    pub term: Term,
    /// The policy's epoch that it goes by.
    pub epoch: u64,
    /// Its revision.
    pub revision: u64,
    /// Its gate.
    pub gate: Gate,
}

impl Default for Applied {
    fn default() -> Self {
        let view = Topology::unknown();
        Self { term: view.term, epoch: view.epoch, revision: view.revision, gate: view.gate }
    }
}

impl Shared {
    /// A cancel request has come: it goes to the worker that its process number names, and to the process before this
    /// one. Who does not know its secret does nothing. What is returned ends when it has been acted on, or lost, by both; within
    /// `limit`.
    pub fn cancel(&self, key: CancelKey, limit: Duration) -> impl Future<Output = ()> + Send + use<> {
        let ((done, here), (passed, there)) = (oneshot::channel(), oneshot::channel());
        if let Some((worker, place)) = place_of(key.pid)
            && let Some(peer) = self.peers.get(worker)
        {
            // A full queue loses the request, as a lost packet would.
            let _ = peer.try_send(ToWorker::Cancel { place, secret: key.secret, done });
        }
        // No session has the number 0: it is that of orders.
        if key.pid != 0
            && let Some(elder) = &*self.elder.lock().unwrap_or_else(PoisonError::into_inner)
        {
            let _ = elder.try_send(Passed::Cancel(PassedCancel { key, done: passed }));
        }
        async move {
            let acted = async {
                let _ = here.await;
                let _ = there.await;
            };
            let _ = tokio::time::timeout(limit, acted).await;
        }
    }

    /// Is there a process before this one that still ends its sessions?
    pub fn has_elder(&self) -> bool {
        let elder = self.elder.lock().unwrap_or_else(PoisonError::into_inner);
        // It is closed when that process has gone.
        elder.as_ref().is_some_and(|to| !to.is_closed())
    }

    /// Users of the userlist.
    pub fn users(&self) -> usize {
        self.users.len()
    }
}

impl Board {
    /// The view the worker acts on.
    pub fn applied(&self) -> Applied {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sessions in a transaction on the primary or with a statement in flight there.
    pub fn busy(&self) -> u64 {
        self.busy.load(Ordering::SeqCst)
    }

    /// Sessions in a transaction on a standby or with a statement in flight there.
    pub fn reading(&self) -> u64 {
        self.reading.load(Ordering::SeqCst)
    }

    /// Sessions that look for the outcome of a COMMIT, on no server of their own.
    pub fn resolving(&self) -> u64 {
        self.resolving.load(Ordering::SeqCst)
    }

    /// Commits acknowledged with less durability than the cluster's mode.
    pub fn below_mode(&self) -> BelowMode {
        *self.below_mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of writes whose server was lost before it answered.
    pub fn doubts(&self) -> PerTerm<Doubts> {
        *self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's gauges as of its last tick.
    pub fn totals(&self) -> Totals {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What reaches a worker from outside.
pub enum ToWorker {
    /// A client has connected.
    Client {
        /// Its socket.
        stream: Detached,
        /// What it has sent already.
        first: Vec<u8>,
        /// Where it comes from.
        origin: Origin,
        /// It counts already.
        seat: Seat,
    },
    /// All places are taken: the client that has gone longest without proving who it is leaves.
    MakeRoom,
    /// A client of another connection asks to cancel what the session of that place does.
    Cancel {
        /// The place.
        place: usize,
        /// The secret given.
        secret: Secret,
        /// Told, or dropped, when it has been acted on.
        done: oneshot::Sender<()>,
    },
    /// A server connection moves here.
    Server(Box<Parcel>),
    /// That worker waits for a connection of that pool.
    Ask {
        /// The worker.
        from: usize,
        /// The pool.
        key: PoolKey,
    },
    /// A place in that pool has become free.
    Room(PoolKey),
    /// That pool lacks a connection that another pool may have.
    Evict {
        /// The pool.
        key: PoolKey,
        /// Which others.
        rivals: Rivals,
    },
    /// An operator has said something: [`Shared::doors`] has it.
    Order {
        /// What.
        order: Order,
        /// Of which databases.
        scope: Scope,
        /// Told when this worker acts on it.
        done: oneshot::Sender<()>,
    },
    /// An operator ends the session of that place.
    KillClient {
        /// The place.
        place: usize,
        /// Told whether there was one.
        done: oneshot::Sender<bool>,
    },
    /// An operator wants to know where a statement would go.
    Explain {
        /// What it is.
        asked: Asked,
        /// Where to say it.
        reply: oneshot::Sender<Decision>,
    },
    /// An operator wants to know what there is.
    Survey {
        /// Where to say it.
        reply: oneshot::Sender<Inventory>,
    },
}

/// A server connection on its way between workers.
pub struct Parcel {
    pub(super) key: PoolKey,
    pub(super) stream: Detached,
    pub(super) meta: Box<Meta>,
}
