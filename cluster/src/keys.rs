//! The etcd key layout, in one place: `<prefix>/<cluster>/…`.

use crate::node::NodeId;
use crate::term::Term;

/// Builds the keys of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// Keys below `<prefix>/<cluster>/`. A trailing slash of `prefix` does not matter.
    pub fn new(prefix: &str, cluster: &str) -> Self {
        Self { root: format!("{}/{cluster}", prefix.trim_end_matches('/')) }
    }

    /// Everything of this cluster.
    pub fn root(&self) -> String {
        format!("{}/", self.root)
    }

    /// The term record: who is or becomes primary. Every change compares its `mod_revision`.
    pub fn term(&self) -> String {
        format!("{}/term", self.root)
    }

    /// Who creates the cluster (compare `create_revision = 0`); kept, so that a cluster is created once.
    pub fn init(&self) -> String {
        format!("{}/init", self.root)
    }

    /// The leading manager, under its lease.
    pub fn manager(&self) -> String {
        format!("{}/manager", self.root)
    }

    /// The primary, under its agent's lease.
    pub fn primary(&self) -> String {
        format!("{}/primary", self.root)
    }

    /// Voters, k and mode in force.
    pub fn policy(&self) -> String {
        format!("{}/policy", self.root)
    }

    /// All policies that have been in force, of late.
    pub fn policy_log(&self) -> String {
        format!("{}/policy_log/", self.root)
    }

    /// A copy of the policy of this epoch.
    pub fn policy_of(&self, epoch: u64) -> String {
        format!("{}/policy_log/{epoch:020}", self.root)
    }

    /// Exists for as long as commits may go unprotected, bound to a lease.
    pub fn grace(&self) -> String {
        format!("{}/grace", self.root)
    }

    /// All nodes' addresses.
    pub fn members(&self) -> String {
        format!("{}/members/", self.root)
    }

    /// One node's addresses and identity.
    pub fn member(&self, node: &NodeId) -> String {
        format!("{}/members/{node}", self.root)
    }

    /// All operator fences.
    pub fn fences(&self) -> String {
        format!("{}/fences/", self.root)
    }

    /// One node's operator fence.
    pub fn fence(&self, node: &NodeId) -> String {
        format!("{}/fences/{node}", self.root)
    }

    /// A cluster that ran without agents is being taken over.
    pub fn adopt(&self) -> String {
        format!("{}/adopt", self.root)
    }

    /// All nodes in maintenance.
    pub fn maintenance(&self) -> String {
        format!("{}/maintenance/", self.root)
    }

    /// One node's maintenance; bound to a lease when it ends by itself.
    pub fn maintenance_of(&self, node: &NodeId) -> String {
        format!("{}/maintenance/{node}", self.root)
    }

    /// An operator's order to change nothing by itself; bound to a lease when it ends by itself.
    pub fn pause(&self) -> String {
        format!("{}/pause", self.root)
    }

    /// All automatic failovers that the budget still counts.
    pub fn spent(&self) -> String {
        format!("{}/spent/", self.root)
    }

    /// The automatic failover that began `term`, bound to a lease as long as the budget's window.
    pub fn spent_on(&self, term: Term) -> String {
        format!("{}/spent/{:020}", self.root, term.0)
    }

    /// All journals.
    pub fn journals(&self) -> String {
        format!("{}/journal/", self.root)
    }

    /// The journal of how a term began. Zero-padded so that keys sort by term.
    pub fn journal(&self, term: Term) -> String {
        format!("{}/journal/{:020}", self.root, term.0)
    }

    /// All reports of lost WAL.
    pub fn reports(&self) -> String {
        format!("{}/report/", self.root)
    }

    /// All reports of lost WAL of the change to `term`.
    pub fn reports_of(&self, term: Term) -> String {
        format!("{}/report/{:020}/", self.root, term.0)
    }

    /// The lost-WAL report of the change to `term`, as read from `node`'s old WAL.
    pub fn report(&self, term: Term, node: &NodeId) -> String {
        format!("{}/report/{:020}/{node}", self.root, term.0)
    }

    /// What all proxies found out about writes that were in flight.
    pub fn doubts(&self) -> String {
        format!("{}/doubts/", self.root)
    }

    /// The same of one term.
    pub fn doubts_of(&self, term: Term) -> String {
        format!("{}/doubts/{:020}/", self.root, term.0)
    }

    /// What one proxy found out about writes that `term` had not answered. Not under its lease: it stays.
    pub fn doubts_by(&self, term: Term, proxy: &str) -> String {
        format!("{}/doubts/{:020}/{proxy}", self.root, term.0)
    }

    /// All proxies' states.
    pub fn proxies(&self) -> String {
        format!("{}/proxies/", self.root)
    }

    /// One proxy's state, under its lease.
    pub fn proxy(&self, id: &str) -> String {
        format!("{}/proxies/{id}", self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_cluster_share_its_root() {
        let k = Keys::new("/pgtenure/", "demo");
        assert_eq!(k.term(), "/pgtenure/demo/term");
        assert!(k.journal(Term(12)).ends_with("/00000000000000000012"));
        assert!(k.member(&"n1".parse().unwrap()).starts_with(&k.members()));
    }
}
