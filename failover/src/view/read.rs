//! Reading the records of a view: one linearizable read, decoded.

use super::topology::Records;
use crate::store::{Range, Snapshot, Store, StoreError};
use cluster::keys::Keys;
use cluster::node::NodeId;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

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

/// Read all records of a view at one revision.
pub(super) async fn records(store: &dyn Store, keys: &Keys) -> Result<Records, ReadError> {
    let one = [keys.init(), keys.term(), keys.primary(), keys.policy()].map(Range::Key);
    let many = [keys.members(), keys.fences(), keys.maintenance()].map(Range::Prefix);
    let snapshot = store.read(one.into_iter().chain(many).collect()).await?;
    decode(&snapshot, keys)
}

fn decode(snapshot: &Snapshot, keys: &Keys) -> Result<Records, ReadError> {
    Ok(Records {
        revision: snapshot.revision.unsigned_abs(),
        init: record(snapshot, &keys.init())?,
        term: record(snapshot, &keys.term())?,
        primary: record(snapshot, &keys.primary())?,
        policy: record(snapshot, &keys.policy())?,
        members: by_node(snapshot, &keys.members())?,
        fences: by_node(snapshot, &keys.fences())?,
        maintenance: by_node(snapshot, &keys.maintenance())?,
    })
}

fn record<T: DeserializeOwned>(snapshot: &Snapshot, key: &str) -> Result<Option<T>, ReadError> {
    snapshot.get(key).map(|v| parse(key, &v.value)).transpose()
}

fn by_node<T: DeserializeOwned>(snapshot: &Snapshot, prefix: &str) -> Result<BTreeMap<NodeId, T>, ReadError> {
    let unreadable = |key: &str, why: String| ReadError::Record { key: key.to_owned(), why };
    snapshot
        .under(prefix)
        .map(|v| {
            let name = v.key[prefix.len()..].parse::<NodeId>().map_err(|e| unreadable(&v.key, e.to_string()))?;
            Ok((name, parse(&v.key, &v.value)?))
        })
        .collect()
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, ReadError> {
    serde_json::from_slice(value).map_err(|e| ReadError::Record { key: key.to_owned(), why: e.to_string() })
}
