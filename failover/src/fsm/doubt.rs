//! Commits that may be with somebody who is none of us: one who has only a node's name, or a second one that lives under it.
//! PURE.
//!
//! What such a one confirms is acknowledged, and no failover asks it. From the last moment at which it was seen the newest
//! commits are in doubt until k voters are known to have all that there was then. Nothing is lost by that as long as the
//! primary lives. Without it nobody can tell, so no failover begins by itself.
//!
//! Every manager that hears the primary knows of it; one that has started since the primary last told does not.

use crate::api::Primary;
use crate::record::PolicyRecord;
use cluster::{Lsn, NodeId, Term};
use std::collections::BTreeSet;

/// What is in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Of this term.
    pub term: Term,
    /// Up to here at least.
    pub lsn: Lsn,
    /// The nodes whose names somebody else had.
    pub nodes: BTreeSet<NodeId>,
    /// The primary has told since that nobody has them any more: `lsn` covers all. It may die without.
    pub closed: bool,
}

impl Doubt {
    /// Do k voters besides that primary have all of it?
    pub fn is_over(&self, policy: &PolicyRecord, primary: &NodeId, has: impl Fn(&NodeId) -> bool) -> bool {
        let there = |voters: &[NodeId]| voters.iter().filter(|n| *n != primary && has(n)).count();
        self.closed && policy.quorums().all(|(voters, k)| there(voters) >= k as usize)
    }
}

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Doubts {
    doubt: Option<Doubt>,
}

impl Doubts {
    /// What the primary of that term tells.
    pub fn hear(&mut self, term: Term, policy: &PolicyRecord, node: &NodeId, primary: &Primary) {
        // Only a voter's name counts for commits, and its own does not; nor any where none is waited for.
        let counts = |n: &&NodeId| *n != node && policy.protects() && policy.counts(n);
        let doubted: BTreeSet<NodeId> = primary.doubted.iter().filter(counts).cloned().collect();
        let mut doubt = self.doubt.take().filter(|d| d.term == term);
        if !doubted.is_empty() {
            let mut nodes = doubt.map(|d| d.nodes).unwrap_or_default();
            nodes.extend(doubted);
            doubt = Some(Doubt { term, lsn: primary.flush_lsn, nodes, closed: false });
        } else if let Some(open) = doubt.as_mut().filter(|d| !d.closed) {
            // Reports may have been missed meanwhile.
            (open.lsn, open.closed) = (primary.flush_lsn, true);
        }
        self.doubt = doubt;
    }

    /// Is it over, by what there is now? `primary`: of that term, `node`, unless it is gone. `own`: up to where a node's own
    /// agent says that it has received that term's WAL. Who streams under a name that somebody else has had may be that one.
    pub fn settle(
        &mut self,
        term: Term,
        policy: &PolicyRecord,
        (node, primary): (&NodeId, Option<&Primary>),
        own: impl Fn(&NodeId) -> Option<Lsn>,
    ) {
        let streams = |n: &NodeId, lsn: Lsn| {
            let rows = primary.map_or(&[][..], |p| &p.followers);
            rows.iter().any(|f| f.node == *n && f.flush_lsn >= Some(lsn))
        };
        let over = |d: &Doubt| {
            let has = |n: &NodeId| own(n) >= Some(d.lsn) || !d.nodes.contains(n) && streams(n, d.lsn);
            // A term that has ended is decided by what its successor finds.
            d.term == term && d.is_over(policy, node, has)
        };
        self.doubt = self.doubt.take().filter(|d| !over(d));
    }

    /// What is in doubt of that term.
    pub fn of(&self, term: Term) -> Option<&Doubt> {
        self.doubt.as_ref().filter(|d| d.term == term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Follower;
    use crate::record::{Limits, Mode};
    use cluster::TimelineId;

    fn n(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn position(text: &str) -> (NodeId, Lsn) {
        let (node, lsn) = text.split_once('=').unwrap();
        (n(node), Lsn(lsn.parse().unwrap()))
    }

    fn policy() -> PolicyRecord {
        PolicyRecord {
            epoch: 1,
            voters: ["n1", "n2", "n3", "n4"].map(n).to_vec(),
            k: 2,
            mode: Mode::Strict,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        }
    }

    /// n1 at `flush`; `followers` as `n2=LSN`, and behind a `|` what the nodes' own agents say.
    fn told(doubts: &mut Doubts, term: u64, flush: u64, followers: &str, doubted: &[&str]) -> Option<(u64, String)> {
        let (followers, own) = followers.split_once('|').unwrap_or((followers, ""));
        let policy = policy();
        let follower = |text: &str| {
            let (node, flush_lsn) = position(text);
            let (state, flush_lsn) = ("streaming".into(), Some(flush_lsn));
            Follower { node, state, flush_lsn, replay_lsn: None, sync_state: String::new() }
        };
        let primary = Primary {
            timeline: TimelineId(7),
            insert_lsn: Lsn(flush),
            flush_lsn: Lsn(flush),
            sync_names: String::new(),
            followers: followers.split_whitespace().map(follower).collect(),
            impostors: Vec::new(),
            doubted: doubted.iter().map(|name| n(name)).collect(),
        };
        doubts.hear(Term(term), &policy, &n("n1"), &primary);
        let own = |node: &NodeId| own.split_whitespace().map(position).find(|(n, _)| n == node).map(|(_, lsn)| lsn);
        doubts.settle(Term(term), &policy, (&n("n1"), Some(&primary)), own);
        let names = |d: &Doubt| d.nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ");
        doubts.of(Term(term)).map(|d| (d.lsn.0, names(d)))
    }

    #[test]
    fn doubt_lasts_until_k_voters_have_what_there_was_when_it_was_last_seen() {
        let d = &mut Doubts::default();
        let of = |lsn, nodes: &str| Some((lsn, nodes.to_owned()));
        assert_eq!(told(d, 7, 100, "n2=100 n3=100", &[]), None);
        assert_eq!(told(d, 7, 200, "n2=200 n3=100", &["n2"]), of(200, "n2"));
        assert_eq!(told(d, 7, 300, "n2=300 n3=300 n4=300", &["n2"]), of(300, "n2"), "it goes on");
        // The primary dies: what it has told last is not all that there is.
        let gone = &mut d.clone();
        let all = |_: &NodeId| Some(Lsn(300));
        gone.settle(Term(7), &policy(), (&n("n1"), None), all);
        assert!(gone.of(Term(7)).is_some());
        // Nobody is seen any more, at 400 or a moment before.
        assert_eq!(told(d, 7, 400, "n3=400 n3=400 n4=399", &[]), of(400, "n2"), "one node counts once");
        assert_eq!(told(d, 7, 500, "n1=500 n3=500 n5=500", &[]), of(400, "n2"), "only voters count");
        assert_eq!(told(d, 7, 500, "n2=500 n3=500", &[]), of(400, "n2"), "who streams as n2 may be the other one");
        assert_eq!(told(d, 7, 500, "n2=500 n3=500|n2=399", &[]), of(400, "n2"));
        assert_eq!(told(&mut d.clone(), 7, 500, "n3=500 n4=400", &[]), None);
        let gone = &mut d.clone();
        gone.settle(Term(7), &policy(), (&n("n1"), None), |_| Some(Lsn(400)));
        assert_eq!(gone.of(Term(7)), None, "what they say themselves counts without it, too");
        assert_eq!(told(d, 7, 500, "n2=500 n3=500|n2=400", &[]), None, "its own agent says so");
        // What was in doubt of an earlier term is decided with it.
        told(d, 7, 500, "", &["n2"]);
        assert_eq!(told(d, 8, 600, "", &[]), None);
        // The primary waits neither for itself nor for who does not vote.
        assert_eq!(told(d, 8, 600, "", &["n1", "n5"]), None);
    }
}
