//! While etcd does not answer: ask the primary's agent whether what was last read still holds.
//!
//! The agent vouches for a term and an epoch of the policy, for a time that it keeps to itself: it does not let commits
//! through without standbys before that is over (`agent::vouch`), and where its lease is the fence it vouches no longer
//! than that lasts. So nothing is asked of etcd, nor of a manager that would have to wait for this proxy.

use super::Times;
use super::topology::{Records, shortened, vouched};
use crate::api::Vouched;
use crate::manager::client::AgentLink;
use cluster::topology::{Gate, Topology};
use cluster::{Clock, Endpoint, Instant, Term};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

pub(super) struct Voucher {
    pub(super) topology: Arc<watch::Sender<Topology>>,
    pub(super) records: watch::Receiver<Arc<Records>>,
    pub(super) times: Times,
}

/// What is to be vouched for, and by whom.
struct Question {
    term: Term,
    epoch: u64,
    agent: Endpoint,
}

impl Voucher {
    /// Ask whenever half of the view's time is over. Ends never.
    pub(super) async fn run(self) {
        // Until when the view was last extended here.
        let mut vouched_until: Option<Instant> = None;
        loop {
            tokio::time::sleep(self.times.validity / 10).await;
            let now = Clock.now();
            let Some(question) = self.question(now) else {
                if vouched_until.is_some_and(|mine| self.topology.borrow().ends_at() != Some(mine)) {
                    vouched_until = None;
                    info!("the view is confirmed by etcd again");
                }
                continue;
            };
            match self.ask(&question).await {
                Ok(answer) => {
                    let end = now + shortened(Duration::from_millis(answer.lasts_ms));
                    self.extend(&question, end);
                    if vouched_until.replace(end).is_none() {
                        warn!(term = question.term.0, "etcd does not answer, the primary's agent vouches for the view");
                    }
                }
                Err(why) => tracing::debug!(term = question.term.0, why, "the primary's agent does not vouch"),
            }
        }
    }

    fn question(&self, now: Instant) -> Option<Question> {
        let (term, epoch, node) = {
            let t = self.topology.borrow();
            let lasts = if t.valid_until.is_some() { self.times.validity } else { self.times.strict };
            let due = t.ends_at()?.since(now) < lasts / 2;
            let open = matches!(t.gate, Gate::Open | Gate::Draining);
            (due && open).then(|| Some((t.term, t.epoch, t.primary.as_ref()?.node.clone())))??
        };
        let agent = self.records.borrow().members.get(&node)?.agent.clone();
        Some(Question { term, epoch, agent })
    }

    async fn ask(&self, question: &Question) -> Result<Vouched, String> {
        // Agents keep no connection of those who do not have the secret.
        let mut to = AgentLink::without_secret(question.agent.clone());
        let path = format!("/vouch?term={}&epoch={}", question.term, question.epoch);
        let bound = self.times.validity / 4;
        let exchange = to.exchange(Method::GET, &path, Bytes::new(), bound);
        // Connecting has a bound of its own, which may be longer than what is left of the view.
        let answered = tokio::time::timeout(bound, exchange).await.map_err(|_| "no answer in time".to_owned())?;
        let (status, body) = answered.map_err(|e| e.to_string())?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map_err(|e| e.to_string()),
            other => Err(format!("HTTP {other}: {}", String::from_utf8_lossy(&body))),
        }
    }

    fn extend(&self, question: &Question, end: Instant) {
        self.topology.send_if_modified(|current| match vouched(current, question.term, question.epoch, end) {
            Some(longer) => {
                *current = longer;
                true
            }
            None => false,
        });
    }
}
