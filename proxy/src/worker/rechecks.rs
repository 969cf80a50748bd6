//! What standbys may lack that the primary has: see [`Rechecks`](crate::route::recheck::Rechecks).

use super::Worker;
use cluster::NodeId;
use cluster::topology::Gate;

impl Worker {
    /// A standby does not know what a unit names: is the primary asked, which may?
    pub fn must_recheck(&self, node: &NodeId, unit: Option<u64>) -> bool {
        let now = self.now();
        let behind = {
            let view = self.view.borrow();
            if view.topology.gate_at(now) != Gate::Open {
                return false;
            }
            view.lag.may_lack(node, &view.topology)
        };
        self.rechecks.borrow_mut().takes(unit, behind, now)
    }

    /// The primary was asked about a unit: does it fail there as well?
    pub fn rechecked(&self, unit: u64, fails: bool) {
        let (now, view) = (self.now(), self.view.borrow());
        let mut rechecks = self.rechecks.borrow_mut();
        if fails {
            rechecks.fails(unit, now);
        } else if let Some(end) = view.lag.end_of(&view.topology) {
            rechecks.succeeds(unit, (view.topology.term, end), now);
        }
    }

    /// May a standby be known to lack what some unit names?
    pub fn knows_lacking(&self) -> bool {
        !self.rechecks.borrow().is_empty()
    }

    /// The standbys that lack what that unit names, as far as is known.
    pub fn lacking(&self, unit: u64) -> Vec<NodeId> {
        let view = self.view.borrow();
        let needs = self.rechecks.borrow().needs(unit, view.topology.term, self.now());
        let standbys = || view.topology.standbys.iter().map(|standby| &standby.node);
        needs.map_or_else(Vec::new, |lsn| standbys().filter(|node| view.lag.lacks(node, lsn)).cloned().collect())
    }

    /// All standbys there are.
    pub fn standbys(&self) -> Vec<NodeId> {
        self.view.borrow().topology.standbys.iter().map(|standby| standby.node.clone()).collect()
    }
}
