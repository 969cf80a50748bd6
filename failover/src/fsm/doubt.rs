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
}

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Doubts {
    doubt: Option<Doubt>,
}

impl Doubts {
    /// What the primary of that term tells.
    pub fn hear(&mut self, term: Term, policy: &PolicyRecord, node: &NodeId, primary: &Primary) {
        // Only a voter's name counts for commits, and its own does not.
        let doubted = primary.doubted.iter().filter(|n| *n != node && policy.counts(n)).cloned();
        let doubted: BTreeSet<NodeId> = doubted.collect();
        if !doubted.is_empty() {
            let mut nodes = self.doubt.take().filter(|d| d.term == term).map(|d| d.nodes).unwrap_or_default();
            nodes.extend(doubted);
            self.doubt = Some(Doubt { term, lsn: primary.flush_lsn, nodes });
        }
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
        let goes_on = primary.is_some_and(|p| p.doubted.iter().any(|n| n != node && policy.counts(n)));
        let over = |d: &Doubt| {
            let has = |n: &&NodeId| *n != node && (own(n) >= Some(d.lsn) || !d.nodes.contains(*n) && streams(n, d.lsn));
            let enough = |(voters, k): (&[NodeId], u32)| voters.iter().filter(has).count() >= k as usize;
            // A term that has ended is decided by what its successor finds.
            d.term == term && !goes_on && policy.quorums().all(enough)
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

    /// n1 at `flush`; `followers` as `n2=LSN`, and behind a `|` what the nodes' own agents say.
    fn told(doubts: &mut Doubts, term: u64, flush: u64, followers: &str, doubted: &[&str]) -> Option<(u64, String)> {
        let (followers, own) = followers.split_once('|').unwrap_or((followers, ""));
        let policy = PolicyRecord {
            epoch: 1,
            voters: ["n1", "n2", "n3", "n4"].map(n).to_vec(),
            k: 2,
            mode: Mode::Strict,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        };
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
        assert_eq!(told(d, 7, 400, "n3=400 n3=400 n4=299", &[]), of(300, "n2"), "one node counts once");
        assert_eq!(told(d, 7, 400, "n1=400 n3=400 n5=400", &[]), of(300, "n2"), "only voters count");
        assert_eq!(told(d, 7, 400, "n2=400 n3=400", &[]), of(300, "n2"), "who streams as n2 may be the other one");
        assert_eq!(told(d, 7, 400, "n2=400 n3=400|n2=299", &[]), of(300, "n2"));
        assert_eq!(told(&mut d.clone(), 7, 400, "n3=400 n4=300", &[]), None);
        assert_eq!(told(d, 7, 400, "n2=400 n3=400|n2=300", &[]), None, "its own agent says so");
        // What was in doubt of an earlier term is decided with it.
        told(d, 7, 500, "", &["n2"]);
        assert_eq!(told(d, 8, 600, "", &[]), None);
        // The primary waits neither for itself nor for who does not vote.
        assert_eq!(told(d, 8, 600, "", &["n1", "n5"]), None);
    }
}
