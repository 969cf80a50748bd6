//! The task that feeds the model and publishes what it makes of it.

use crate::model::Model;
use crate::model::estimate::Estimate;
use crate::probe::{Probe, Prober, Report};
use cluster::lag::LagSnapshot;
use cluster::topology::Topology;
use cluster::{NodeId, Term};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// One state of the model, published whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// What the proxy routes by.
    pub snapshot: Arc<LagSnapshot>,
    /// The same standbys with everything known of them, for metrics and people.
    pub estimates: Vec<Estimate>,
}

pub(crate) struct Publisher {
    pub(crate) prober: Prober,
    pub(crate) term: watch::Sender<Term>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) topology: watch::Receiver<Topology>,
    pub(crate) lag: watch::Sender<Arc<LagSnapshot>>,
    pub(crate) published: watch::Sender<Arc<Published>>,
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
                Some(report) = self.reports.recv() => model.record(report.term, &report.node, report.outcome),
            }
            self.publish(&model);
        }
    }

    /// Take over the topology; probe exactly its nodes.
    fn follow(&mut self, model: &mut Model, probes: &mut BTreeMap<NodeId, Probe>) {
        let topology = self.topology.borrow_and_update().clone();
        model.follow(&topology);
        self.term.send_if_modified(|term| std::mem::replace(term, topology.term) != topology.term);
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
        self.lag.send_replace(Arc::clone(&snapshot));
        self.published.send_replace(Arc::new(Published { snapshot, estimates }));
    }
}
