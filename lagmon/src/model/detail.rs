//! What a node tells about replication besides its positions, asked for less often: PURE.
//!
//! None of it decides whether a standby is fresh. A sender that is no member of the topology (a tool that receives WAL,
//! a logical subscriber) is counted as what it is and never as a standby.

use super::sample::StandbyFacts;
use cluster::lag::Upstream;
use cluster::topology::Topology;
use cluster::{Endpoint, NodeId};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Slots and senders that one answer may name; the query has the same limit.
pub const NAMED: usize = 64;

/// One answer to the question for details.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDetail {
    /// Its replication slots, ordered by name.
    pub slots: Vec<Slot>,
    /// Whom it sends WAL.
    pub senders: Vec<Sender>,
    /// Of a standby: statements cancelled by recovery conflicts.
    pub conflicts: Option<Conflicts>,
    /// The versions of the collations that its operating system has, as the server sees them.
    pub collations: Option<String>,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Slot {
    /// `slot_name`.
    pub name: String,
    /// `slot_type` is logical.
    pub logical: bool,
    /// Somebody streams from it.
    pub active: bool,
    /// WAL from its `restart_lsn` to the node's position; `None` of one that reserves none.
    pub retained_bytes: Option<u64>,
    /// `wal_status`: reserved, extended, unreserved or lost.
    pub wal_status: Option<WalStatus>,
    /// WAL that may still be written before it is in danger; `None` without `max_slot_wal_keep_size`.
    pub safe_wal_bytes: Option<i64>,
    /// How long nobody has streamed from it, from PostgreSQL 17 on.
    pub inactive_ms: Option<u64>,
    /// Why it was invalidated, from PostgreSQL 17 on.
    pub invalidation_reason: Option<String>,
}

/// `pg_replication_slots.wal_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, still kept.
    Extended,
    /// No longer kept: the next checkpoint may remove it.
    Unreserved,
    /// Removed: whoever needs the slot must start anew.
    Lost,
}

impl WalStatus {
    /// All of them, for metrics.
    pub const ALL: [Self; 4] = [Self::Reserved, Self::Extended, Self::Unreserved, Self::Lost];

    /// PostgreSQL's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Extended => "extended",
            Self::Unreserved => "unreserved",
            Self::Lost => "lost",
        }
    }
}

/// A row of `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Sender {
    /// `application_name`; agents give their node's.
    pub application_name: String,
    /// It decodes: a subscriber, not a standby.
    pub logical: bool,
    /// `state`: startup, catchup, streaming, backup, stopping.
    pub state: Option<String>,
    /// `sync_state`.
    pub sync_state: Option<String>,
    /// WAL sent to it and not yet flushed there, bytes; `None` when it has not said.
    pub unflushed_bytes: Option<u64>,
}

/// What a sender's receiver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// A member of the topology.
    Standby,
    /// A logical subscriber.
    Logical,
    /// Anything else that takes WAL: a tool, or a standby that is no member.
    Other,
}

impl Receiver {
    /// All of them, for metrics.
    pub const ALL: [Self; 3] = [Self::Standby, Self::Logical, Self::Other];

    /// The kind as one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Logical => "logical",
            Self::Other => "other",
        }
    }
}

/// `pg_stat_database_conflicts`, summed over the databases, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Conflicts {
    /// A tablespace was dropped.
    pub tablespace: u64,
    /// A lock was needed.
    pub lock: u64,
    /// Rows that a snapshot could still see were removed.
    pub snapshot: u64,
    /// A buffer was pinned.
    pub bufferpin: u64,
    /// Replay and a query waited for each other.
    pub deadlock: u64,
    /// A logical slot would have lost rows it needs, from PostgreSQL 16 on.
    pub logicalslot: u64,
}

impl Conflicts {
    /// By cause, under PostgreSQL's names.
    pub const fn by_cause(&self) -> [(&'static str, u64); 6] {
        [
            ("tablespace", self.tablespace),
            ("lock", self.lock),
            ("snapshot", self.snapshot),
            ("bufferpin", self.bufferpin),
            ("deadlock", self.deadlock),
            ("logicalslot", self.logicalslot),
        ]
    }

    /// Of all causes.
    pub fn total(&self) -> u64 {
        self.by_cause().iter().map(|(_, n)| n).sum()
    }
}

/// The members of a topology by what their senders and receivers call them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    primary: Option<NodeId>,
    endpoints: BTreeMap<NodeId, Endpoint>,
}

impl Members {
    /// Those of `topology`.
    pub fn of(topology: &Topology) -> Self {
        let all = topology.primary.iter().chain(&topology.standbys);
        Self {
            primary: topology.primary.as_ref().map(|m| m.node.clone()),
            endpoints: all.map(|m| (m.node.clone(), m.postgres.clone())).collect(),
        }
    }

    /// Where a member's PostgreSQL listens.
    pub fn endpoint(&self, node: &NodeId) -> Option<&Endpoint> {
        self.endpoints.get(node)
    }

    /// What receives what `sender` sends.
    pub fn receiver(&self, sender: &Sender) -> Receiver {
        match sender.logical {
            true => Receiver::Logical,
            false if self.endpoints.keys().any(|n| n.as_str() == sender.application_name) => Receiver::Standby,
            false => Receiver::Other,
        }
    }

    /// Where `node` streams from: the member at the address that its receiver names; when none is (another name for the
    /// same host), the member that says it sends to it. `None` while it does not stream.
    pub fn upstream<'a>(
        &self,
        node: &NodeId,
        standby: &StandbyFacts,
        mut senders: impl Iterator<Item = (&'a NodeId, &'a [Sender])>,
    ) -> Option<Upstream> {
        standby.streams?;
        let sender = standby.sender.as_ref()?;
        let at_address = || self.endpoints.iter().find(|(n, at)| *n != node && *at == sender).map(|(n, _)| n);
        let sends = |list: &[Sender]| list.iter().any(|s| !s.logical && s.application_name == node.as_str());
        let found = at_address().or_else(|| senders.find(|(n, list)| *n != node && sends(list)).map(|(n, _)| n));
        Some(match found {
            Some(found) if self.primary.as_ref() == Some(found) => Upstream::Primary,
            Some(found) => Upstream::Cascade(found.clone()),
            None => Upstream::Elsewhere(format!("{}:{}", sender.host, sender.port)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::TimelineId;
    use cluster::topology::Member;

    fn n(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn members() -> Members {
        let member = |name: &str, port| Member {
            node: n(name),
            postgres: Endpoint { host: "db".to_owned(), port },
            fenced: false,
            candidate: true,
            zone: None,
        };
        let standbys = vec![member("n2", 2), member("n3", 3)];
        Members::of(&Topology { primary: Some(member("n1", 1)), standbys, ..Topology::unknown() })
    }

    fn sender(name: &str, logical: bool) -> Sender {
        Sender { application_name: name.to_owned(), logical, state: None, sync_state: None, unflushed_bytes: None }
    }

    #[test]
    fn a_standby_that_streams_from_another_is_a_cascade_by_its_name() {
        let at = |host: &str, port| StandbyFacts {
            streams: Some(TimelineId(1)),
            sender: Some(Endpoint { host: host.to_owned(), port }),
            ..StandbyFacts::default()
        };
        let (to_n3, tools) = (vec![sender("n3", false)], vec![sender("n3", true), sender("pg_receivewal", false)]);
        let (n1, n2) = (n("n1"), n("n2"));
        type Senders<'a> = Vec<(&'a NodeId, &'a [Sender])>;
        let nobody: Senders = vec![(&n1, &tools)];
        for (facts, senders, want) in [
            (at("db", 1), nobody.clone(), Some(Upstream::Primary)),
            (at("db", 2), nobody.clone(), Some(Upstream::Cascade(n("n2")))),
            // Another name for the host: the sender's own word counts.
            (at("10.0.0.1", 1), vec![(&n1, &to_n3[..])], Some(Upstream::Primary)),
            (at("10.0.0.2", 2), vec![(&n1, &tools[..]), (&n2, &to_n3[..])], Some(Upstream::Cascade(n("n2")))),
            (at("far", 5432), nobody.clone(), Some(Upstream::Elsewhere("far:5432".to_owned()))),
            // Its own address names nobody else.
            (at("db", 3), nobody.clone(), Some(Upstream::Elsewhere("db:3".to_owned()))),
            (StandbyFacts { streams: None, ..at("db", 1) }, nobody.clone(), None),
            (StandbyFacts { sender: None, ..at("db", 1) }, nobody.clone(), None),
        ] {
            assert_eq!(members().upstream(&n("n3"), &facts, senders.into_iter()), want, "{facts:?}");
        }
    }

    #[test]
    fn a_logical_subscriber_is_no_standby_whatever_its_name() {
        let receiver = |name, logical| members().receiver(&sender(name, logical));
        assert_eq!(receiver("n2", false), Receiver::Standby);
        assert_eq!(receiver("n2", true), Receiver::Logical);
        assert_eq!(receiver("pg_receivewal", false), Receiver::Other);
    }
}
