//! Making a cluster's records anew when etcd has lost all of its data and there is no backup (`pgtenure rebuild`).
//!
//! What must not be forgotten is on the agents' disks: each one's highest promise and the newest policy it has read. They
//! are asked, a plan is made, and one transaction puts what a manager's own T1 would: a term above everything, recruiting.
//! The managers go on with it. Until then nothing is decided, and a primary whose quorum confirms commits serves on.

pub mod plan;

use crate::api::AgentState;
use crate::config::cluster::ClusterConfig;
use crate::manager::client::AgentLink;
use crate::record::{InitRecord, MemberRecord, ProxyRecord, TermRecord};
use crate::store::{Compare, Range, Store, StoreError, Txn};
use cluster::keys::Keys;
use cluster::secret::Secret;
use cluster::{Endpoint, NodeId, Term};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use plan::{Found, Rebuilt};
use std::time::Duration;
use tokio::task::JoinSet;

/// Bound on one agent's answer.
const BOUND: Duration = Duration::from_secs(3);

/// It could not be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// etcd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record could not be written or understood.
    #[error("a record in etcd is not as it should be")]
    Record(#[from] serde_json::Error),
    /// Something changed in etcd at the same time; nothing was written.
    #[error("something changed in etcd at the same time; nothing was written")]
    Lost,
}

/// Read what etcd still or again knows, and ask every registered agent.
///
/// # Errors
/// etcd does not answer, or with something that is not understood.
pub async fn survey(
    store: &dyn Store,
    keys: &Keys,
    cluster: &ClusterConfig,
    secret: &Secret,
) -> Result<Found, RebuildError> {
    let ranges = vec![
        Range::Prefix(keys.members()),
        Range::Prefix(keys.proxies()),
        Range::Key(keys.term()),
        Range::Key(keys.init()),
        Range::Key(keys.manager()),
    ];
    let read = store.read(ranges).await?;
    let init = read.get(&keys.init()).map(|v| serde_json::from_slice::<InitRecord>(&v.value)).transpose()?;
    let mut proxied = (Term(0), 0);
    for proxy in read.under(&keys.proxies()) {
        let proxy: ProxyRecord = serde_json::from_slice(&proxy.value)?;
        proxied = (proxied.0.max(proxy.term), proxied.1.max(proxy.epoch));
    }
    let mut asked = JoinSet::new();
    for found in read.under(&keys.members()) {
        let member: MemberRecord = serde_json::from_slice(&found.value)?;
        let secret = secret.clone();
        asked.spawn(async move {
            let answer = ask(member.agent, secret).await;
            (member.node.clone(), answer.and_then(|state| own(&member.node, state)))
        });
    }
    let mut found = Found {
        configured: cluster.voters.clone(),
        term: read
            .get(&keys.term())
            .map(|v| serde_json::from_slice::<TermRecord>(&v.value))
            .transpose()?
            .map(|t| t.term),
        system_id: init.and_then(|i| i.system_id),
        proxied,
        led: read.get(&keys.manager()).is_some(),
        ..Found::default()
    };
    while let Some(done) = asked.join_next().await {
        // One that panicked is missing among the answers, which the plan names.
        if let Ok((node, answer)) = done {
            found.agents.insert(node, answer);
        }
    }
    Ok(found)
}

async fn ask(agent: Endpoint, secret: Secret) -> Result<AgentState, String> {
    let at = agent.to_string();
    let mut link = AgentLink::new(agent, secret);
    let answer = link.exchange(Method::GET, "/agent/state", Bytes::new(), BOUND).await;
    match answer.map_err(|e| format!("{at}: {e}"))? {
        (StatusCode::OK, body) => serde_json::from_slice(&body).map_err(|e| format!("{at}: {e}")),
        (StatusCode::UNAUTHORIZED, _) => Err(format!("{at} refuses the secret of cluster.secret_file")),
        (other, _) => Err(format!("{at}: HTTP {other}")),
    }
}

fn own(node: &NodeId, state: AgentState) -> Result<AgentState, String> {
    if state.node == *node { Ok(state) } else { Err(format!("{} answers at its address", state.node)) }
}

/// Put the records, if etcd still knows no term. From here on the managers act.
///
/// # Errors
/// A term was put meanwhile, or etcd does not answer.
pub async fn begin(store: &dyn Store, keys: &Keys, records: &Rebuilt) -> Result<(), RebuildError> {
    // A node without data may have claimed the right to create a cluster in an empty etcd: that is taken from it.
    let claimed = store.get(&keys.init()).await?.map(|v| v.mod_revision);
    let init = match claimed {
        Some(revision) => Compare::ModRevision(keys.init(), revision),
        None => Compare::Absent(keys.init()),
    };
    let policy = serde_json::to_vec(&records.policy)?;
    let mut txn = Txn::new()
        .when(Compare::Absent(keys.term()))
        .when(init)
        .put(keys.init(), serde_json::to_vec(&records.init)?)
        .put(keys.policy(), policy.clone())
        .put(keys.policy_of(records.policy.epoch), policy)
        .put(keys.term(), serde_json::to_vec(&records.term)?)
        .delete(keys.primary());
    for (node, fence) in &records.fences {
        txn = txn.put(keys.fence(node), serde_json::to_vec(fence)?);
    }
    if store.txn(txn).await?.succeeded { Ok(()) } else { Err(RebuildError::Lost) }
}

/// The term on record.
///
/// # Errors
/// etcd does not answer, or with something that is not understood.
pub async fn term(store: &dyn Store, keys: &Keys) -> Result<Option<TermRecord>, RebuildError> {
    let found = store.get(&keys.term()).await?;
    Ok(found.map(|v| serde_json::from_slice(&v.value)).transpose()?)
}
