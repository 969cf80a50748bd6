//! The task that feeds the model and publishes what it makes of it.

use crate::model::Model;
use crate::model::detail::{NodeDetail, Receiver};
use crate::model::estimate::Estimate;
use crate::model::history::History;
use crate::probe::{InForce, News, Probe, Prober, Report};
use cluster::lag::LagSnapshot;
use cluster::topology::Topology;
use cluster::{Clock, NodeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tracing::warn;

/// One state of the model, published whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// What the proxy routes by.
    pub snapshot: Arc<LagSnapshot>,
    /// The same standbys with everything known of them, for metrics and people.
    pub estimates: Vec<Estimate>,
    /// Slots, senders and conflicts of the nodes that told them, ordered by name.
    pub nodes: Vec<Node>,
}

impl Published {
    /// Has any node answered?
    pub fn has_sample(&self) -> bool {
        self.snapshot.primary.is_some() || self.estimates.iter().any(|e| e.sampled_at.is_some())
    }
}

/// What one node told of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub node: NodeId,
    /// What it told.
    pub detail: NodeDetail,
    /// What each of its senders sends to, in the same order.
    pub receivers: Vec<Receiver>,
    /// It sorts text by other rules than the primary.
    pub sorts_otherwise: bool,
}

pub(crate) struct Publisher {
    pub(crate) prober: Prober,
    pub(crate) in_force: watch::Sender<InForce>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) topology: watch::Receiver<Topology>,
    pub(crate) lag: watch::Sender<Arc<LagSnapshot>>,
    pub(crate) published: watch::Sender<Arc<Published>>,
    pub(crate) history: Arc<Mutex<History>>,
}

impl Publisher {
    /// Runs until the topology's sender is gone.
    pub(crate) async fn run(mut self) {
        let mut model = Model::new();
        let mut probes = BTreeMap::new();
        self.follow(&mut model, &mut probes);
        loop {
            tokio::select! {
                changed = self.topology.changed() => match changed {
                    Ok(()) => self.follow(&mut model, &mut probes),
                    Err(_) => return,
                },
                Some(report) = self.reports.recv() => {
                    record(&mut model, report);
                    // What has come meanwhile is published with it.
                    while let Ok(report) = self.reports.try_recv() {
                        record(&mut model, report);
                    }
                }
            }
            self.publish(&model);
        }
    }

    /// Take over the topology; probe exactly its nodes.
    fn follow(&mut self, model: &mut Model, probes: &mut BTreeMap<NodeId, Probe>) {
        let topology = self.topology.borrow_and_update().clone();
        // What has come until now is of the servers of before.
        while let Ok(report) = self.reports.try_recv() {
            record(model, report);
        }
        model.follow(&topology);
        let now = InForce::of(&topology);
        self.in_force.send_if_modified(|in_force| std::mem::replace(in_force, now.clone()) != now);
        let members = || topology.primary.iter().chain(&topology.standbys);
        probes.retain(|node, probe| members().any(|m| &m.node == node && m.postgres == probe.endpoint));
        for member in members() {
            let start = || self.prober.start(member.node.clone(), member.postgres.clone());
            probes.entry(member.node.clone()).or_insert_with(start);
        }
    }

    fn publish(&self, model: &Model) {
        let estimates = model.estimates();
        let snapshot = Arc::new(model.snapshot(&estimates));
        let kept = |node: &NodeId| model.members().endpoint(node).is_some();
        self.history.lock().expect("no code panics while it holds this lock").add(
            Clock.now(),
            &snapshot.standbys,
            kept,
        );
        self.lag.send_replace(Arc::clone(&snapshot));
        let nodes = model.details().map(|(node, detail)| Node {
            node: node.clone(),
            detail: detail.clone(),
            receivers: detail.senders.iter().map(|s| model.members().receiver(s)).collect(),
            sorts_otherwise: model.sorts_otherwise(node),
        });
        let nodes: Vec<Node> = nodes.collect();
        warn_of_collations(&self.published.borrow().nodes, &nodes);
        self.published.send_replace(Arc::new(Published { snapshot, estimates, nodes }));
    }
}

/// Warn of those of `now` that sort text otherwise, once: those of `before` were told.
fn warn_of_collations(before: &[Node], now: &[Node]) {
    let told = |node: &Node| before.iter().any(|b| b.node == node.node && b.sorts_otherwise);
    for node in now.iter().filter(|node| node.sorts_otherwise && !told(node)) {
        let collations = node.detail.collations.as_deref().unwrap_or_default();
        warn!(node = %node.node, collations, "standby sorts text by other rules than the primary, reads by an index there may be wrong");
    }
}

fn record(model: &mut Model, Report { term, node, news }: Report) {
    match news {
        News::Positions(outcome) => model.record(term, &node, outcome),
        News::Detail(detail) => model.record_detail(term, &node, detail),
        News::OutOfSight => model.lose_sight(&node),
    }
}
