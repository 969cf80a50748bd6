//! The manager: listens to the agents, reads the records, campaigns for the lead, and does what the planner says.
//!
//! One task steps the planner; everything that waits for the network is a task of its own and comes back as an input. The
//! campaign for the lead and its renewals have a thread of their own.

pub mod client;
mod election;
mod listen;
mod overdue;
mod perform;
mod records;
pub(crate) use records::reports_of;

use crate::apart::Apart;
use crate::config::manager::ManagerSection;
use crate::fsm::action::{Action, Answer, Input, Operation};
use crate::fsm::planner::Planner;
use crate::fsm::status::{Leader, Status};
use crate::fsm::yields::Yields;
use crate::http::ManagerRoutes;
use crate::metrics::Metrics;
use crate::record::{JournalRecord, LeaderRecord};
use crate::store::{Range, Store, Txn, Versioned};
use cluster::keys::Keys;
use cluster::secret::Secret;
use cluster::{Clock, Endpoint, Instant, NodeId};
use election::Election;
use listen::{Listener, Pace};
use overdue::Overdue;
use perform::Performer;
use records::{LeaderSeen, Reader};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

/// The planner is told the time so often.
const TICK: Duration = Duration::from_millis(25);
/// The status is renewed so often when nothing happens.
const SHOW: Duration = Duration::from_millis(200);
/// Inputs that wait for the planner; those who send more wait.
const INPUTS: usize = 256;
/// Operators' requests that wait for the planner.
const REQUESTS: usize = 16;
/// Journals kept in etcd.
const JOURNALS: usize = 200;
/// Journals and reports forgotten at once: etcd takes 128 changes in one transaction.
const MOST_FORGOTTEN: usize = 80;
/// Bound on giving the lead back when stopping.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a manager needs to know.
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// The cluster's name, for display.
    pub cluster: String,
    /// The process looks after others too: its metrics say which cluster they are of.
    pub one_of_several: bool,
    /// Its keys.
    pub keys: Keys,
    /// `[manager]`, checked.
    pub section: ManagerSection,
    /// The secret shared with the agents.
    pub secret: Secret,
    /// Where this process's admin HTTP is reached by the command line.
    pub admin: String,
    /// How long a proxy acts on a view of the records (`etcd.view_validity`); a new term that no quorum protects is
    /// not opened sooner.
    pub view_validity: Duration,
}

/// Why a manager cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A metric's name is taken.
    #[error("metrics of the manager cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// The kernel refused a thread.
    #[error("the thread that keeps the managers' lease cannot be started")]
    Thread(#[source] std::io::Error),
}

/// An operator's request on its way to the planner.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// A running manager. Dropped, it ends at once and its lead runs out.
#[derive(Debug)]
pub struct ManagerHandle {
    routes: ManagerRoutes,
    status: watch::Receiver<Arc<Status>>,
    stop: watch::Sender<bool>,
    election: Apart,
    tasks: JoinSet<&'static str>,
}

impl ManagerHandle {
    /// The routes for the process's admin HTTP.
    pub fn routes(&self) -> ManagerRoutes {
        self.routes.clone()
    }

    /// What this manager knows; renewed several times a second.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Ready: the records were read lately, so this manager can lead or knows who does.
    ///
    /// # Errors
    /// What is missing, as a sentence.
    pub fn ready(&self) -> Result<(), String> {
        ready(&self.status.borrow())
    }

    /// Ends when a task has ended, which none does by itself; which one.
    pub async fn failed(&mut self) -> String {
        match self.tasks.join_next().await {
            Some(Ok(name)) => format!("the {name} task ended"),
            Some(Err(error)) => format!("a task failed: {error}"),
            None => std::future::pending().await,
        }
    }

    /// Give back the lead and end. A change of primary that is under way is left to the next leader.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        if tokio::time::timeout(FAREWELL, self.election.ended()).await.is_err() {
            warn!(bound = ?FAREWELL, "the lead was not given back in time; it runs out by itself");
        }
        self.tasks.shutdown().await;
    }
}

/// See [`ManagerHandle::ready`].
///
/// # Errors
/// What is missing, as a sentence.
pub fn ready(status: &Status) -> Result<(), String> {
    match status.records_ms_ago {
        None => Err("etcd has not been read yet".into()),
        Some(ms) if ms > 10_000 => Err(format!("etcd has not been read for {ms} ms")),
        Some(_) => Ok(()),
    }
}

/// Start a manager. Needs a tokio runtime.
///
/// # Errors
/// See [`StartError`].
pub fn start(
    config: ManagerConfig,
    store: Arc<dyn Store>,
    registry: &prometheus::Registry,
) -> Result<ManagerHandle, StartError> {
    let metrics = Metrics::register(registry, config.one_of_several.then_some(config.cluster.as_str()))?;
    let id: Arc<str> = format!("{:08x}", rand::random::<u32>()).into();
    let host: Arc<str> = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().into();
    let (inputs, input) = mpsc::channel(INPUTS);
    let (requests, request) = mpsc::channel(REQUESTS);
    let (leader, leader_seen) = watch::channel(LeaderSeen::default());
    let asked = Arc::new(Notify::new());
    let mut settings = config.section.settings.clone();
    // The proxies' clocks may run slower than ours by a thousandth; twice that, and rounding up.
    settings.proxy_lease = config.view_validity + config.view_validity / 500 + Duration::from_millis(1);
    let planner = Planner::new(&*id, settings);
    let (show, status) = watch::channel(Arc::new(planner.status(Clock.now(), &config.cluster, None)));
    let (stop, stopping) = watch::channel(false);
    let ((overdue, overdue_seen), (leave, left)) = (watch::channel(None), watch::channel(()));
    let me = LeaderRecord { id: id.to_string(), host: host.to_string(), admin: config.admin.clone() };
    let mut tasks = JoinSet::new();
    let reader = Reader {
        store: Arc::clone(&store),
        keys: config.keys.clone(),
        host,
        inputs: inputs.clone(),
        asked: Arc::clone(&asked),
        leader,
        interval: config.section.read_interval,
        metrics: metrics.clone(),
    };
    tasks.spawn(async move {
        reader.run().await;
        "records"
    });
    let election = Election {
        store: store.apart(),
        keys: config.keys.clone(),
        me,
        ttl: config.section.lease_ttl,
        seen: leader_seen.clone(),
        inputs: inputs.clone(),
        overdue: overdue_seen,
        yields: left,
        stop: stopping,
    };
    let election = Apart::spawn(election.run()).map_err(StartError::Thread)?;
    let routes = ManagerRoutes::new(requests, status.clone(), Arc::clone(&store), config.keys.clone());
    let performer = Performer {
        keys: config.keys.clone(),
        secret: config.secret.clone(),
        inputs: inputs.clone(),
        metrics: metrics.clone(),
        agent_timeout: config.section.agent_timeout,
        id,
    };
    let (pace, _) = watch::channel(Pace::Walk);
    let read_interval = config.section.read_interval;
    let manager = Manager {
        config,
        store,
        planner,
        performer,
        pace,
        overdue: Overdue::new(overdue, read_interval),
        yields: Yields::default(),
        leave,
        leader: leader_seen,
        asked,
        show,
        metrics,
        shown_at: Instant::default(),
        listeners: BTreeMap::new(),
        waiting: BTreeMap::new(),
        requests: 0,
        work: JoinSet::new(),
        inputs,
    };
    tasks.spawn(async move {
        manager.run(input, request).await;
        "planner"
    });
    Ok(ManagerHandle { routes, status, stop, election, tasks })
}

/// The task that steps the planner.
struct Manager {
    config: ManagerConfig,
    store: Arc<dyn Store>,
    planner: Planner,
    performer: Performer,
    pace: watch::Sender<Pace>,
    overdue: Overdue,
    yields: Yields,
    /// Tells the election to leave the lead to another.
    leave: watch::Sender<()>,
    leader: watch::Receiver<LeaderSeen>,
    asked: Arc<Notify>,
    show: watch::Sender<Arc<Status>>,
    metrics: Metrics,
    shown_at: Instant,
    listeners: BTreeMap<NodeId, (Endpoint, AbortHandle)>,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    requests: u64,
    /// Listeners, orders and changes; the planner bounds their number.
    work: JoinSet<()>,
    inputs: mpsc::Sender<Input>,
}

impl Manager {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut requests: mpsc::Receiver<Request>) {
        info!(manager = &*self.performer.id, cluster = self.config.cluster, "manager started");
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let input = tokio::select! {
                biased;
                _ = tick.tick() => Input::Tick { wall: wall() },
                input = inputs.recv() => match input {
                    Some(input) => input,
                    None => return,
                },
                request = requests.recv() => match request {
                    Some(request) => self.enter(request),
                    None => return,
                },
                // Finished work only has to be cleared away; an empty set must not be polled in a circle.
                Some(done) = self.work.join_next(), if !self.work.is_empty() => {
                    if let Err(error) = done && error.is_panic() {
                        warn!(%error, "a task of the manager failed");
                    }
                    continue;
                }
            };
            let read = matches!(input, Input::Records { .. });
            let actions = self.planner.step(Clock.now(), input);
            let news = !actions.is_empty();
            for action in actions {
                self.perform(action);
            }
            if read {
                self.listen();
            }
            self.set_pace();
            let (leader, beside) = {
                let seen = self.leader.borrow();
                (seen.leader.as_ref().map(|_| seen.revision), seen.beside_primary)
            };
            self.overdue.look(Clock.now(), &mut self.planner, leader);
            if self.yields.look(Clock.now(), self.planner.may_yield(), beside) {
                self.leave.send_replace(());
            }
            self.publish(news);
        }
    }

    fn enter(&mut self, request: Request) -> Input {
        self.requests += 1;
        self.waiting.insert(self.requests, request.answer);
        info!(operation = ?request.operation, "an operator asks");
        Input::Operator { id: self.requests, operation: request.operation }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send { node, command, within } => {
                let endpoint = self.planner.seen().records.members.get(&node).map(|m| m.agent.clone());
                self.work.spawn(self.performer.clone().order(node, endpoint, *command, within));
            }
            Action::Change(change) => {
                self.work.spawn(self.performer.clone().change(Arc::clone(&self.store), *change));
            }
            Action::Read => self.asked.notify_one(),
            Action::Answer { id, answer } => {
                info!(answer = ?answer_word(&answer), "operator answered");
                if let Some(waiting) = self.waiting.remove(&id) {
                    // Who asked may have gone.
                    let _ = waiting.send(*answer);
                }
            }
            Action::Ended { cause, active, journal } => self.ended(cause, active, &journal),
        }
    }

    fn ended(&mut self, cause: crate::record::Cause, active: bool, journal: &JournalRecord) {
        self.metrics.ended(cause, active, journal);
        let phases: Vec<String> = journal.phases.iter().map(|p| format!("{} {}", p.phase, p.ms)).collect();
        let (term, phases) = (journal.term.0, phases.join(", "));
        let node = journal.to.as_ref().map(ToString::to_string);
        let lsn = journal.fork.map(|f| f.lsn.to_string());
        if active {
            let lost = journal.window.map(|w| w.bytes);
            info!(term, node, lsn, ?cause, phases, window_bytes = lost, "term is open");
        } else {
            let reason = journal.finished.as_deref();
            warn!(term, node, lsn, ?cause, phases, reason, "term was not opened by this manager");
        }
        let (store, keys) = (Arc::clone(&self.store), self.config.keys.clone());
        self.work.spawn(async move { forget_old_journals(store, keys).await });
    }

    /// One listener per member, at its present address.
    fn listen(&mut self) {
        let members = &self.planner.seen().records.members;
        self.listeners.retain(|node, (_, listener)| {
            let member = members.contains_key(node);
            if !member {
                listener.abort();
            }
            member
        });
        for (node, member) in members {
            if self.listeners.get(node).is_some_and(|(endpoint, _)| *endpoint == member.agent) {
                continue;
            }
            let listener = Listener {
                node: node.clone(),
                endpoint: member.agent.clone(),
                secret: self.config.secret.clone(),
                pace: self.pace.subscribe(),
                inputs: self.inputs.clone(),
                wait: self.config.section.poll_wait,
                timeout: self.config.section.agent_timeout,
            };
            let handle = self.work.spawn(listener.run());
            if let Some((_, old)) = self.listeners.insert(node.clone(), (member.agent.clone(), handle)) {
                old.abort();
            }
        }
    }

    fn set_pace(&self) {
        let pace = if self.planner.leads() && self.planner.hurries() { Pace::Hurry } else { Pace::Walk };
        self.pace.send_if_modified(|p| std::mem::replace(p, pace) != pace);
    }

    fn publish(&mut self, news: bool) {
        let now = Clock.now();
        // Who stops this manager looks no later.
        let turned = self.show.borrow().leading != self.planner.leads();
        if !news && !turned && now.since(self.shown_at) < SHOW {
            return;
        }
        self.shown_at = now;
        let seen = self.leader.borrow().leader.clone();
        let leader = seen.map(|l| Leader { id: l.id, admin: l.admin });
        let mut status = self.planner.status(now, &self.config.cluster, leader);
        status.outdated_etcd = self.store.outdated();
        self.metrics.show(&status, self.planner.recruits(now));
        self.show.send_replace(Arc::new(status));
    }
}

/// Keep the newest journals only, and what belongs to them; etcd is no archive.
async fn forget_old_journals(store: Arc<dyn Store>, keys: Keys) {
    let (journals, doubts) = (keys.journals(), keys.doubts());
    let ranges = vec![Range::Prefix(journals.clone()), Range::Prefix(doubts.clone())];
    let Ok(all) = store.read(ranges).await else { return };
    let journals: Vec<&Versioned> = all.under(&journals).collect();
    let old = journals.len().saturating_sub(JOURNALS).min(20);
    let mut txn = Txn::new();
    for journal in &journals[..old] {
        // One term's at a time: reports are long. Journals whose reports are not known stay for now.
        let Some(term) = records::term_of(&journal.key) else { continue };
        let Ok(reports) = store.get_prefix(&keys.reports_of(term)).await else { break };
        if txn.deletes.len() + reports.found.len() >= MOST_FORGOTTEN {
            break;
        }
        txn = reports.found.iter().fold(txn, |txn, report| txn.delete(report.key.clone())).delete(journal.key.clone());
    }
    // Terms have one length in keys, so that these are ordered as they are.
    let oldest = journals.get(old).and_then(|v| records::one::<JournalRecord>(v)).and_then(|j| j.ended());
    let kept_from = oldest.map(|term| keys.doubts_of(term));
    for doubts in all.under(&doubts).filter(|v| kept_from.as_ref().is_some_and(|kept| v.key < *kept)).take(40) {
        txn = txn.delete(doubts.key.clone());
    }
    if !txn.deletes.is_empty()
        && let Err(error) = store.txn(txn).await
    {
        warn!(%error, "old journals were not deleted");
    }
}

fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn answer_word(answer: &Answer) -> String {
    match answer {
        Answer::Done { note, .. } => format!("done: {note}"),
        Answer::Refused(blockers) => format!("refused: {}", crate::fsm::blocker::list(blockers)),
        Answer::Failed { why, .. } => format!("failed: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use cluster::Term;

    #[tokio::test]
    async fn what_was_lost_is_forgotten_with_its_journal() {
        let (store, keys) = (MemoryStore::new(), Keys::new("/t", "t"));
        let (node, kept) = ("n1".parse().unwrap(), u64::try_from(JOURNALS).unwrap());
        for term in (1..=kept + 5).map(Term) {
            let put = Txn::new().put(keys.journal(term), "{}").put(keys.report(term, &node), "{}");
            assert!(store.txn(put).await.unwrap().succeeded);
        }
        forget_old_journals(Arc::new(store.client()), keys.clone()).await;
        let journals = store.get_prefix(&keys.journals()).await.unwrap().found;
        assert_eq!((journals.len(), journals[0].key.clone()), (JOURNALS, keys.journal(Term(6))));
        for (term, reports) in [(1, 0), (5, 0), (6, 1), (kept + 5, 1)] {
            assert_eq!(store.get_prefix(&keys.reports_of(Term(term))).await.unwrap().found.len(), reports, "{term}");
        }
    }
}
