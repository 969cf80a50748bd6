//! What standbys may lack that the primary has: see [`Rechecks`](crate::route::recheck::Rechecks).

use super::Worker;
use cluster::NodeId;
use cluster::topology::Gate;

impl Worker {
    /// A standby does not know what a unit names: is the primary asked, which may?
    pub fn must_recheck(&self, node: &NodeId) -> bool {
        let now = self.now();
        let behind = {
            let view = self.view.borrow();
            if view.topology.gate_at(now) != Gate::Open {
                return false;
            }
            view.lag.may_lack(node, &view.topology)
        };
        self.rechecks.borrow_mut().takes(behind, now)
    }

    /// All standbys there are.
    pub fn standbys(&self) -> Vec<NodeId> {
        self.view.borrow().topology.standbys.iter().map(|standby| standby.node.clone()).collect()
    }
}
