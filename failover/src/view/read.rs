//! Reading the records of a view: one linearizable read, decoded.

use super::topology::Records;
use crate::record::{FenceRecord, MaintenanceRecord};
use crate::store::{Range, Snapshot, Store, StoreError, Versioned};
use cluster::keys::Keys;
use cluster::node::NodeId;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// Records that could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// etcd did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is not what this version understands.
    #[error("the record {key} is unreadable: {why}")]
    Record { key: String, why: String },
}

/// The key and prefixes whose changes matter to a view.
pub(super) fn watches(keys: &Keys) -> [String; 6] {
    [keys.term(), keys.primary(), keys.policy(), keys.members(), keys.fences(), keys.maintenance()]
}

/// What was read, and the keys of nodes whose records cannot be understood. One node's record does not forbid all the
/// others': a member is left out, what an operator has put about a node holds by existing.
pub(super) struct Reading {
    pub(super) records: Records,
    pub(super) unreadable: BTreeSet<String>,
}

/// Read all records of a view at one revision.
pub(super) async fn records(store: &dyn Store, keys: &Keys) -> Result<Reading, ReadError> {
    let one = [keys.init(), keys.term(), keys.primary(), keys.policy()].map(Range::Key);
    let many = [keys.members(), keys.fences(), keys.maintenance()].map(Range::Prefix);
    let snapshot = store.read(one.into_iter().chain(many).collect()).await?;
    decode(&snapshot, keys)
}

fn decode(snapshot: &Snapshot, keys: &Keys) -> Result<Reading, ReadError> {
    let mut unreadable = BTreeSet::new();
    let records = Records {
        revision: snapshot.revision.unsigned_abs(),
        init: record(snapshot, &keys.init())?,
        term: record(snapshot, &keys.term())?,
        primary: record(snapshot, &keys.primary())?,
        policy: record(snapshot, &keys.policy())?,
        members: by_node(snapshot, &keys.members(), || None, &mut unreadable),
        fences: by_node(snapshot, &keys.fences(), || Some(FenceRecord::unreadable()), &mut unreadable),
        maintenance: by_node(snapshot, &keys.maintenance(), || Some(MaintenanceRecord::unreadable()), &mut unreadable),
    };
    Ok(Reading { records, unreadable })
}

fn record<T: DeserializeOwned>(snapshot: &Snapshot, key: &str) -> Result<Option<T>, ReadError> {
    let parse = |v: &Versioned| serde_json::from_slice(&v.value);
    let parsed = snapshot.get(key).map(parse).transpose();
    parsed.map_err(|e| ReadError::Record { key: key.to_owned(), why: e.to_string() })
}

/// A key that is no node's name counts for nobody; `instead` stands for a value that cannot be understood.
fn by_node<T: DeserializeOwned>(
    snapshot: &Snapshot,
    prefix: &str,
    instead: impl Fn() -> Option<T>,
    unreadable: &mut BTreeSet<String>,
) -> BTreeMap<NodeId, T> {
    let mut found = BTreeMap::new();
    for v in snapshot.under(prefix) {
        let value = serde_json::from_slice(&v.value).ok();
        let node = v.key[prefix.len()..].parse::<NodeId>().ok();
        if value.is_none() || node.is_none() {
            unreadable.insert(v.key.clone());
        }
        if let (Some(node), Some(value)) = (node, value.or_else(&instead)) {
            found.insert(node, value);
        }
    }
    found
}
