//! The cluster as this process sees it: etcd's records read again and again, published as a [`Topology`].
//!
//! A change hint makes the next read happen at once, and so does who asks for one; else a read happens every third of the
//! view's validity, so that two may fail. What the records mean is decided in [`topology`] (PURE); [`register`] tells the managers what
//! a proxy has applied; [`vouch`] asks the primary's agent while etcd does not answer.
//!
//! Duties of a user:
//! 1. Ask [`Topology::gate_at`] with the present instant each time, never keep a gate.
//! 2. A proxy calls [`View::register`] once: until then its view is valid for no time where safety hangs on time,
//!    because no manager would wait for it.

pub mod metrics;
mod read;
pub mod register;
pub mod topology;
mod vouch;

use crate::config::etcd::Config;
use crate::store::{Hints, Store};
use cluster::keys::Keys;
use cluster::topology::{ProxyState, Topology};
use cluster::{Clock, Instant};
use metrics::Metrics;
use prometheus::Registry;
use register::{Registered, Registration};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use topology::{Records, Validity, later, not_shortened, same_but_revision, steps_back};
use tracing::{info, warn};

/// Least pause between two reads, however many hints come.
const MIN_GAP: Duration = Duration::from_millis(10);
/// Least pause between two reads, however many ask: a proxy asks only while a statement waits and no standby proves the term.
const ASKED_GAP: Duration = Duration::from_millis(50);
/// Pause after a read that failed; the read itself has already waited.
const FAILED_PAUSE: Duration = Duration::from_millis(100);

/// The times a view hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// T_p, see `etcd.view_validity`.
    pub validity: Duration,
    /// The same for a strict cluster; [`cluster::topology::STRICT_VIEW`] but in tests.
    pub strict: Duration,
    /// Asked for when registering, see `etcd.lease_ttl`.
    pub lease_ttl: Duration,
}

impl From<&Config> for Times {
    fn from(config: &Config) -> Self {
        Self { validity: config.view_validity, strict: cluster::topology::STRICT_VIEW, lease_ttl: config.lease_ttl }
    }
}

/// What the view is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To look at: monitoring, the command line.
    Observe,
    /// To send writes by. It is valid only while this process is registered (see the module's header).
    Proxy,
}

/// How reading goes, for status pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// When the last read that succeeded was sent.
    pub read_at: Option<Instant>,
    /// Why the last read failed, if it did.
    pub error: Option<String>,
}

/// A running view. Reading stops when it is dropped; receivers keep the last value.
pub struct View {
    topology: watch::Receiver<Topology>,
    records: watch::Receiver<Arc<Records>>,
    health: watch::Receiver<Health>,
    store: Arc<dyn Store>,
    keys: Keys,
    times: Times,
    registered: Arc<Registered>,
    asked: Arc<Notify>,
    reader: AbortHandle,
    voucher: AbortHandle,
}

/// Start reading. Needs a tokio runtime.
///
/// # Errors
/// When `registry` already has a view's metrics.
pub fn start(
    store: Arc<dyn Store>,
    keys: Keys,
    times: Times,
    purpose: Purpose,
    registry: &Registry,
) -> Result<View, prometheus::Error> {
    let (topology_out, topology) = watch::channel(Topology::unknown());
    let (records_out, records) = watch::channel(Arc::new(Records::default()));
    let (health_out, health) = watch::channel(Health::default());
    let registered = Arc::new(Registered::default());
    let asked = Arc::<Notify>::default();
    let metrics = Metrics::new(registry, topology.clone(), health.clone())?;
    let topology_out = Arc::new(topology_out);
    let voucher = vouch::Voucher { topology: Arc::clone(&topology_out), records: records.clone(), times };
    let reader = Reader {
        store: Arc::clone(&store),
        keys: keys.clone(),
        times,
        registered: (purpose == Purpose::Proxy).then(|| Arc::clone(&registered)),
        asked: Arc::clone(&asked),
        out: Out {
            topology: topology_out,
            records: records_out,
            health: health_out,
            stepped_back: false,
            unreadable: BTreeSet::new(),
            metrics,
        },
    };
    let reader = tokio::spawn(reader.run()).abort_handle();
    let voucher = tokio::spawn(voucher.run()).abort_handle();
    Ok(View { topology, records, health, store, keys, times, registered, asked, reader, voucher })
}

impl View {
    /// The cluster as it may be acted on.
    pub fn topology(&self) -> watch::Receiver<Topology> {
        self.topology.clone()
    }

    /// The records it was made from.
    pub fn records(&self) -> watch::Receiver<Arc<Records>> {
        self.records.clone()
    }

    /// How reading goes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Asks for a reading now, because somebody waits for one that is newer than the last. All who ask before it begins
    /// share it.
    pub fn ask(&self) -> impl Fn() + Send + Sync + 'static {
        let asked = Arc::clone(&self.asked);
        move || asked.notify_one()
    }

    /// Tell the managers, as `proxies/<id>` under a lease, what this proxy has applied; and for good, as
    /// `doubts/<term>/<id>`, what it found out about writes in doubt and how many commits it acknowledged below the mode. No other process has this id. At most once per view.
    pub fn register(&self, id: &str, state: watch::Receiver<ProxyState>) -> Registration {
        let (store, registered) = (Arc::clone(&self.store), Arc::clone(&self.registered));
        register::start(store, self.keys.clone(), id, self.times, (state, self.topology()), registered)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.reader.abort();
        self.voucher.abort();
    }
}

struct Reader {
    store: Arc<dyn Store>,
    keys: Keys,
    times: Times,
    /// Set for a proxy: the registration its view's validity depends on.
    registered: Option<Arc<Registered>>,
    /// Told when somebody waits for a reading.
    asked: Arc<Notify>,
    out: Out,
}

struct Out {
    topology: Arc<watch::Sender<Topology>>,
    records: watch::Sender<Arc<Records>>,
    health: watch::Sender<Health>,
    stepped_back: bool,
    /// Keys of nodes' records that could not be understood.
    unreadable: BTreeSet<String>,
    metrics: Metrics,
}

impl Reader {
    async fn run(mut self) {
        let clock = Clock;
        let mut hints = read::watches(&self.keys).map(|prefix| self.store.watch(&prefix));
        let never = Notify::new();
        let registered = self.registered.clone();
        let newly_registered = registered.as_ref().map_or(&never, |r| r.newly());
        let asked = Arc::clone(&self.asked);
        let mut waited_for = false;
        loop {
            let (sent_at, next_asked) = (clock.now(), tokio::time::Instant::now() + ASKED_GAP);
            let until = self.registered.as_ref().map(|r| r.until().unwrap_or(sent_at));
            let (lasts, strict_lasts) = (self.times.validity, self.times.strict);
            let validity = Validity { sent_at, lasts, strict_lasts, registered_until: until };
            let read = read::records(self.store.as_ref(), &self.keys).await;
            let failed = read.is_err();
            let pause = match read {
                Ok(read) => {
                    self.out.tell_unreadable(read.unreadable);
                    let older = !self.out.publish(read.records, validity, waited_for);
                    if let Some(registered) = self.registered.as_ref().filter(|_| older) {
                        registered.restored();
                    }
                    tokio::time::sleep(MIN_GAP).await;
                    self.times.validity / 3
                }
                Err(error) => {
                    self.out.failed(error.to_string());
                    tokio::time::sleep(FAILED_PAUSE).await;
                    Duration::ZERO
                }
            };
            let ask = async {
                tokio::time::sleep_until(next_asked).await;
                asked.notified().await;
            };
            // Who waits still does when that reading failed.
            waited_for &= failed;
            tokio::select! {
                () = Hints::any(&mut hints) => (),
                () = newly_registered.notified() => (),
                () = tokio::time::sleep(pause) => (),
                () = ask => waited_for = true,
            }
        }
    }
}

impl Out {
    /// `waited_for`: who waits is told by how new the reading is. False: they are older than what is known, and ignored.
    fn publish(&mut self, records: Records, validity: Validity, waited_for: bool) -> bool {
        let next = topology::topology(&records, validity);
        self.metrics.read_ok();
        let was = self.health.send_replace(Health { read_at: Some(validity.sent_at), error: None });
        if was.error.is_some() {
            info!("etcd answers again");
        }
        if let Some(back) = steps_back(&self.topology.borrow(), &next) {
            if !std::mem::replace(&mut self.stepped_back, true) {
                let topology::StepBack { what, current, read } = back;
                warn!(what, current, read, "etcd went back to something older, its records are ignored");
            }
            return false;
        }
        self.stepped_back = false;
        self.records.send_if_modified(|current| {
            let news = Records { revision: 0, ..records.clone() } != Records { revision: 0, ..(**current).clone() };
            if news {
                *current = Arc::new(records);
            }
            news
        });
        self.topology.send_if_modified(|current| {
            let next = later(current, not_shortened(current, next));
            let step = if waited_for { Duration::ZERO } else { validity.lasts / 4 };
            if same_but_revision(current, &next, step) {
                return false;
            }
            if (current.term, current.gate) != (next.term, next.gate) || node(current) != node(&next) {
                info!(
                    term = next.term.0,
                    gate = next.gate.as_str(),
                    from = current.gate.as_str(),
                    node = node(&next).unwrap_or("none"),
                    // Where the term's timeline begins; absent until it is known, and in the first term.
                    lsn = next.fork.map(|f| tracing::field::display(f.lsn)),
                    "the view of the cluster changed"
                );
            }
            current.merge(next)
        });
        true
    }

    /// Once, and again when others are.
    fn tell_unreadable(&mut self, keys: BTreeSet<String>) {
        if keys != self.unreadable && !keys.is_empty() {
            let names: Vec<&str> = keys.iter().map(String::as_str).take(20).collect();
            warn!(
                keys = names.join(", "),
                "records of nodes cannot be understood: a fence holds, a member is left out"
            );
        }
        self.unreadable = keys;
    }

    fn failed(&mut self, error: String) {
        self.metrics.read_failed();
        let first = self.health.borrow().error.is_none();
        if first {
            warn!(error, "etcd cannot be read, acting on the last view while it is valid");
        }
        self.health.send_modify(|h| h.error = Some(error));
    }
}

fn node(topology: &Topology) -> Option<&str> {
    topology.primary.as_ref().map(|m| m.node.as_str())
}
