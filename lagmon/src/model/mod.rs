//! The model of a cluster's lag: PURE. Fed with topologies and probe outcomes, read as one snapshot.
//!
//! Only samples of the primary of the term in force count, on that term's timeline (INV-4): an old primary that still
//! answers dates nobody.

pub mod detail;
pub mod estimate;
pub mod freshness;
pub mod history;
pub mod sample;
pub mod window;

use cluster::lag::{LagSnapshot, PrimarySample, Upstream};
use cluster::topology::{Quorum, Topology};
use cluster::{Endpoint, Instant, Lsn, NodeId, Term};
use detail::{Members, NodeDetail, Sender};
use estimate::{Estimate, Reference};
use sample::{Answer, Facts, Outcome, PrimaryFacts};
use std::collections::BTreeMap;
use window::Window;

/// Samples of the primary kept. Thinned where old, they reach back for hours.
const WINDOW: usize = 4096;

/// What is known of one node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Track {
    answer: Option<Answer>,
    reachable: bool,
    complete_until: Option<Instant>,
    /// Since when every probe was answered; `None` after one that was not.
    up_since: Option<Instant>,
    detail: Option<NodeDetail>,
    /// What it told last of its collations, in whatever term: they change only when it is restarted.
    collations: Option<String>,
}

impl Track {
    const NEW: Self =
        Self { answer: None, reachable: true, complete_until: None, up_since: None, detail: None, collations: None };
}

/// The lag of all standbys of one cluster.
#[derive(Clone, Debug)]
pub struct Model {
    term: Term,
    primary: Option<NodeId>,
    system_id: Option<u64>,
    members: Members,
    quorums: Vec<Quorum>,
    nodes: BTreeMap<NodeId, Track>,
    window: Window,
    /// The newest answer of the primary; `None` while it does not answer as this term's primary.
    sampled: Option<(Instant, PrimaryFacts)>,
    /// What this term's primary had flushed before this was confirmed, as last told by the standbys that commits wait for, and
    /// whether no commit was seen to wait then. It stays so when they are gone, but for what is seen to wait then.
    confirmed: Option<(Instant, bool)>,
    /// No later term was open then.
    proven_at: Option<Instant>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// A model without nodes.
    pub fn new() -> Self {
        Self {
            term: Term(0),
            primary: None,
            system_id: None,
            members: Members::default(),
            quorums: Vec::new(),
            nodes: BTreeMap::new(),
            window: Window::new(WINDOW),
            sampled: None,
            confirmed: None,
            proven_at: None,
        }
    }

    /// The term whose samples are taken.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Follow a change of the cluster. A new term or primary makes all samples old.
    pub fn follow(&mut self, topology: &Topology) {
        let primary = topology.primary.as_ref().map(|m| m.node.clone());
        if (self.term, &self.primary) != (topology.term, &primary) {
            self.term = topology.term;
            self.primary = primary;
            self.window.clear();
            self.sampled = None;
            self.confirmed = None;
            self.proven_at = None;
            for track in self.nodes.values_mut() {
                let (complete_until, up_since) = (track.complete_until, track.up_since);
                *track = Track { complete_until, up_since, collations: track.collations.take(), ..Track::NEW };
            }
        }
        let members = Members::of(topology);
        for (node, track) in &mut self.nodes {
            // Another server, whatever it is called.
            if self.members.endpoint(node) != members.endpoint(node) {
                *track = Track::NEW;
                let of_another = self.primary.as_ref() != Some(node);
                self.sampled = self.sampled.take().filter(|_| of_another);
                self.confirmed = self.confirmed.filter(|_| of_another);
            }
        }
        self.system_id = topology.system_id;
        self.members = members;
        self.quorums.clone_from(&topology.quorums);
        let members = || topology.primary.iter().chain(&topology.standbys).map(|m| &m.node);
        self.nodes.retain(|node, _| members().any(|m| m == node));
        for node in members() {
            self.nodes.entry(node.clone()).or_insert(Track::NEW);
        }
    }

    /// Take the outcome of a probe that was sent in `term`.
    pub fn record(&mut self, term: Term, node: &NodeId, outcome: Outcome) {
        let is_primary = self.primary.as_ref() == Some(node);
        let Some(track) = self.nodes.get_mut(node) else { return };
        // Also of another term: who did not answer may have been restarted.
        track.up_since = match &outcome {
            Outcome::Failed => None,
            Outcome::Answered(answer) => track.up_since.or(Some(answer.sent_at)),
        };
        if term != self.term {
            return;
        }
        track.reachable = matches!(outcome, Outcome::Answered(_));
        match outcome {
            Outcome::Failed if is_primary => self.sampled = None,
            Outcome::Failed => (),
            Outcome::Answered(answer) => {
                track.answer = Some(answer.clone());
                if is_primary {
                    self.record_primary(answer);
                }
            }
        }
        self.date();
        self.proven_at = self.proven_at.max(self.prove());
    }

    /// The connection to `node` is given up although that answers: it may have been restarted when it answers next.
    pub fn lose_sight(&mut self, node: &NodeId) {
        if let Some(track) = self.nodes.get_mut(node) {
            track.up_since = None;
        }
    }

    /// As of when do the voters that receive from the primary prove that its term is not over? Of several quorums each
    /// must say so: which of them is in force may have changed.
    fn prove(&self) -> Option<Instant> {
        let primary = self.primary.as_ref()?;
        let sends = self.members.endpoint(primary)?;
        let seen = |node: &NodeId| self.nodes.get(node).and_then(|track| self.receives(track, sends));
        self.quorums.iter().map(|quorum| quorum.proven(primary, seen)).min().flatten()
    }

    /// When a standby was asked that receives this term's WAL from the sender at that address. One that follows a later
    /// primary receives this timeline too, up to where it was left.
    fn receives(&self, track: &Track, sends: &Endpoint) -> Option<Instant> {
        let answer = track.answer.as_ref().filter(|answer| !freshness::is_foreign(answer, self.system_id))?;
        let Facts::Standby(standby) = &answer.facts else { return None };
        let timeline = standby.streams.filter(|streams| Some(*streams) == self.term.timeline());
        timeline.filter(|_| standby.sender.as_ref() == Some(sends)).map(|_| answer.sent_at)
    }

    /// Take what `node` said of its slots and senders in `term`; `None`: it could not say.
    pub fn record_detail(&mut self, term: Term, node: &NodeId, detail: Option<NodeDetail>) {
        if let Some(track) = self.nodes.get_mut(node).filter(|_| term == self.term) {
            if let Some(told) = detail.as_ref().and_then(|detail| detail.collations.as_ref()) {
                track.collations = Some(told.clone());
            }
            track.detail = detail;
        }
    }

    /// Does a node sort text by other rules than the primary? Its indexes are the primary's, and then in another order than
    /// its own rules say. What one of them has not told differs from nothing.
    pub fn sorts_otherwise(&self, node: &NodeId) -> bool {
        let of = |node: &NodeId| self.nodes.get(node)?.collations.as_ref();
        matches!((of(node), self.primary.as_ref().and_then(of)), (Some(own), Some(its)) if own != its)
    }

    fn record_primary(&mut self, answer: Answer) {
        let foreign = freshness::is_foreign(&answer, self.system_id);
        self.sampled = match answer.facts {
            Facts::Primary(facts) if Some(facts.timeline) == self.term.timeline() && !foreign => {
                // WAL that went back is another history.
                let goes_back = self.window.newest().is_some_and(|(_, newest)| facts.flush_lsn < newest);
                self.confirmed = self.confirmed.filter(|_| !goes_back);
                self.window.add(answer.sent_at, facts.flush_lsn);
                Some((answer.sent_at, facts))
            }
            Facts::Primary(_) | Facts::Standby(_) => None,
        };
        let Some((sent_at, facts)) = self.sampled.as_ref().filter(|(_, facts)| facts.confirmed_by_list) else { return };
        if facts.confirmed_lsn.is_some() {
            // A standby that has less than another that is gone takes nothing back; who is seen to wait may have been overlooked.
            let quiet = facts.waits.is_none();
            let before = self.confirmed.filter(|(_, was_quiet)| quiet && *was_quiet).map(|(until, _)| until);
            self.confirmed = self.confirmed_until(*sent_at, facts).max(before).map(|until| (until, quiet));
        } else if let (Some((until, _)), Some(waits)) = (&mut self.confirmed, facts.waits) {
            // So may who is seen only now, with nobody there to confirm it any more.
            *until = (*until).min(*sent_at - waits);
        }
    }

    /// Remember up to when each standby is complete, for the time when that can no longer be told.
    fn date(&mut self) {
        let dated: Vec<_> = self.estimates().into_iter().map(|e| (e.lag.node, e.complete_until)).collect();
        for (node, until) in dated {
            if let Some(track) = self.nodes.get_mut(&node) {
                track.complete_until = until;
            }
        }
    }

    /// Every standby's estimate, ordered by name.
    pub fn estimates(&self) -> Vec<Estimate> {
        let facts = self.sampled.as_ref().map(|(_, facts)| facts);
        let reference = Reference { facts, window: &self.window, system_id: self.system_id };
        let standbys = self.nodes.iter().filter(|(node, _)| Some(*node) != self.primary.as_ref());
        let estimate = |(node, track)| {
            let mut estimate = estimate::estimate(node, track, self.upstream(node, track), reference);
            estimate.lag.detail.sorts_otherwise = self.sorts_otherwise(node);
            estimate
        };
        standbys.map(estimate).collect()
    }

    fn upstream(&self, node: &NodeId, track: &Track) -> Option<Upstream> {
        let Some(Answer { facts: Facts::Standby(standby), .. }) = &track.answer else { return None };
        let senders = self.details().map(|(n, d)| -> (&NodeId, &[Sender]) { (n, &d.senders) });
        self.members.upstream(node, standby, senders)
    }

    /// What the reachable nodes last said of their slots and senders, ordered by name.
    pub fn details(&self) -> impl Iterator<Item = (&NodeId, &NodeDetail)> {
        let reachable = self.nodes.iter().filter(|(_, track)| track.reachable);
        reachable.filter_map(|(node, track)| Some((node, track.detail.as_ref()?)))
    }

    /// The members of the topology followed.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The primary's newest sample.
    pub fn primary(&self) -> Option<PrimarySample> {
        let (sent_at, facts) = self.sampled.as_ref()?;
        Some(PrimarySample {
            node: self.primary.clone()?,
            timeline: facts.timeline,
            insert_lsn: facts.insert_lsn,
            flush_lsn: facts.flush_lsn,
            sent_at: *sent_at,
            confirmed_until: match facts.confirmed_lsn {
                Some(_) if !facts.confirmed_by_list => self.confirmed_until(*sent_at, facts),
                Some(_) | None => self.confirmed.map(|(until, _)| until),
            },
            flushed_until: self.passed(facts.confirmed_lsn),
            applied_lsn: facts.applied_lsn,
        })
    }

    /// What was flushed before this instant is confirmed. A commit that waits although as many standbys as have to have flushed
    /// it waits for them to apply it: so what a command has done that began before counts only once they have. One that began
    /// since has flushed nothing before.
    fn confirmed_until(&self, sent_at: Instant, facts: &PrimaryFacts) -> Option<Instant> {
        let flushed = self.passed(facts.confirmed_lsn);
        let flushed = flushed.map(|until| facts.waits.map_or(until, |waits| until.min(sent_at - waits)));
        flushed.max(self.passed(facts.applied_lsn))
    }

    /// What was flushed before this instant is at or before that position.
    fn passed(&self, lsn: Option<Lsn>) -> Option<Instant> {
        self.window.passed(lsn?)
    }

    /// The snapshot that is published, made of `estimates`.
    pub fn snapshot(&self, estimates: &[Estimate]) -> LagSnapshot {
        let standbys = estimates.iter().map(|e| e.lag.clone()).collect();
        LagSnapshot { term: self.term, primary: self.primary(), standbys, proven_at: self.proven_at }
    }
}

#[cfg(test)]
mod tests;
