//! Which of several nodes that would do is to be primary: by what their agents were configured for. PURE.
//!
//! A preference decides only among nodes that hold the same WAL (or may be brought to it, see `catch_up`): it never makes
//! a node primary that lacks something another recruit has.

use crate::fsm::planner::Planner;
use crate::record::Standing;
use cluster::NodeId;
use std::collections::BTreeMap;

/// May the node become primary without an operator's naming it?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Willing {
    /// No: configured so, or its replay is delayed.
    Never,
    /// Only if it alone has everything: somebody works on it.
    Hardly,
    /// Yes.
    Yes,
}

/// How much one would like a node as primary; the greater the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preference {
    /// Compared first.
    pub willing: Willing,
    /// `agent.priority`.
    pub priority: u32,
    /// In the zone of the primary before.
    pub near: bool,
}

impl Default for Preference {
    fn default() -> Self {
        Self { willing: Willing::Yes, priority: Standing::default().priority, near: false }
    }
}

impl Planner {
    /// What the node is meant for, as its agent has said.
    pub(super) fn standing(&self, node: &NodeId) -> Standing {
        self.seen.records.members.get(node).map(|m| m.standing.clone()).unwrap_or_default()
    }

    /// Of every member, after `old` was primary.
    pub(super) fn preferences(&self, old: Option<&NodeId>) -> BTreeMap<NodeId, Preference> {
        let zone = old.and_then(|n| self.standing(n).zone);
        let of = |node: &NodeId| {
            let standing = self.standing(node);
            let near = zone.is_some() && standing.zone == zone;
            let willing = match standing.is_promoted_by_itself() {
                false => Willing::Never,
                true if self.seen.maintained(node) => Willing::Hardly,
                true => Willing::Yes,
            };
            (node.clone(), Preference { willing, priority: standing.priority, near })
        };
        self.seen.records.members.keys().map(of).collect()
    }
}
