//! Decisions of routing in a small world: each file asks one question of it.

mod balance;
mod causality;
mod fitness;
mod lost;
mod promises;
mod seen;
mod tenure;

use super::*;
use cluster::lag::{Detail, LagSnapshot, LagUnknown, PrimarySample, ServerStart, StandbyLag, StandbySample};
use cluster::node::Endpoint;
use cluster::timeline::Fork;
use cluster::topology::{Closed, Gate};
use cluster::{Term, TimelineId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const BUDGET: Duration = Duration::from_secs(1);

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn member(name: &str) -> Member {
    Member {
        node: node(name),
        postgres: Endpoint { host: name.to_owned(), port: 5432 },
        fenced: false,
        candidate: true,
        zone: None,
    }
}

/// Busyness by name.
#[derive(Default)]
struct Busy(BTreeMap<&'static str, u32>, BTreeMap<&'static str, Footing>);

impl Loads for Busy {
    fn outstanding(&self, node: &NodeId) -> u32 {
        self.0.get(node.as_str()).copied().unwrap_or(0)
    }

    fn footing(&self, node: &NodeId) -> Footing {
        self.1.get(node.as_str()).copied().unwrap_or_default()
    }
}

/// A cluster of n1 (primary), n2 and n3 in term 7, sampled at 1000 ms with everything replayed up to 100.
struct World {
    topology: Topology,
    snapshot: LagSnapshot,
    lag: Lag,
    causality: Causality,
    busy: Busy,
    avoid: Vec<NodeId>,
    promise: Promise,
    /// When the statement began to wait, if it has.
    since: Option<Instant>,
}

fn standby(name: &str, replay: u64, sent_at: u64) -> StandbyLag {
    let sample = StandbySample {
        receive_lsn: Lsn(replay),
        replay_lsn: Lsn(replay),
        received_timeline: Some(TimelineId(7)),
        replay_lag_bytes: Some(0),
        sent_at: at(sent_at),
        asked_at: at(sent_at),
        up_since: at(0),
        started: None,
    };
    StandbyLag { node: node(name), sample: Some(sample), replay_lag: Ok(Duration::ZERO), detail: Detail::default() }
}

fn sample(name: &str, insert: u64, sent_at: u64) -> PrimarySample {
    let (insert_lsn, flush_lsn) = (Lsn(insert), Lsn(insert));
    let sent_at = at(sent_at);
    let (confirmed_until, flushed_until) = (Some(sent_at), Some(sent_at));
    let (node, timeline) = (node(name), TimelineId(7));
    let applied_lsn = None;
    PrimarySample { node, timeline, insert_lsn, flush_lsn, sent_at, confirmed_until, flushed_until, applied_lsn }
}

impl World {
    fn new() -> Self {
        let topology = Topology {
            term: Term(7),
            gate: Gate::Open,
            primary: Some(member("n1")),
            standbys: vec![member("n2"), member("n3")],
            ..Topology::unknown()
        };
        let snapshot = LagSnapshot {
            term: Term(7),
            primary: Some(sample("n1", 100, 1000)),
            standbys: vec![standby("n2", 100, 1000), standby("n3", 100, 1000)],
            proven_at: None,
        };
        let mut world = Self {
            topology,
            snapshot,
            lag: Lag::default(),
            causality: Causality::default(),
            busy: Busy::default(),
            avoid: Vec::new(),
            promise: Promise::session(BUDGET),
            since: None,
        };
        world.publish();
        world
    }

    fn publish(&mut self) {
        self.lag.follow(&self.topology);
        self.lag.update(Arc::new(self.snapshot.clone()));
    }

    fn decide(&mut self, access: Access, now: u64, seed: u64) -> Decision {
        let since = self.since.unwrap_or(at(now));
        let request = Request { access, avoid: &self.avoid, promise: self.promise, since };
        let Self { topology, lag, causality, busy, .. } = self;
        super::decide(&request, causality, topology, lag, busy, at(now), seed)
    }

    /// A read at `now`, as `n2 fresh` or `primary lagging`.
    fn read(&mut self, now: u64) -> String {
        self.at(Access::Read, now)
    }

    /// The same of what needs `access`.
    fn at(&mut self, access: Access, now: u64) -> String {
        let Decision { target, reason } = self.decide(access, now, now);
        match target {
            Target::Primary => format!("primary {}", reason.as_str()),
            Target::Standby(node) => format!("{node} {}", reason.as_str()),
            Target::Wait(left) => format!("wait {} {}", left.as_millis(), reason.as_str()),
            Target::Nowhere => format!("nowhere {}", reason.as_str()),
        }
    }

    /// Only n2 is left, so that answers do not depend on the seed.
    fn only_n2(mut self) -> Self {
        self.topology.standbys.truncate(1);
        self
    }
}
