//! `[cluster]`: what all agents and managers of a cluster must agree on.

use crate::record::Mode;
use ::cluster::NodeId;
use ::cluster::config::BadSetting;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[cluster]` as typed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterRaw {
    /// Name of the cluster: part of every key in etcd. No default: two clusters on one etcd must differ.
    pub name: String,
    /// `strict`: a commit is acknowledged when `k` standbys have flushed it. `available`: so too, but when they are gone for
    /// `manager.suspend_after` the primary goes on without, within the policy's limits. `async`: by the primary alone;
    /// what a failover loses is measured and reported. Default `strict`. Used when the cluster is created; later the record
    /// in etcd holds.
    pub mode: Mode,
    /// Standbys that must have flushed a commit (`ANY k`); in async mode only one that asks for it, by
    /// `pgtenure.durability`. Default 1: with three nodes the primary or a standby may be lost. Used when the cluster is
    /// created.
    pub k: u32,
    /// Names of the nodes that count, the primary-to-be among them. No default. Used when the cluster is created.
    pub voters: Vec<String>,
    /// File with the secret that managers and agents show each other over HTTP; at least 16 bytes, first line only.
    /// No default: without it anyone who reaches an agent's port could stop its PostgreSQL.
    pub secret_file: PathBuf,
}

impl Default for ClusterRaw {
    fn default() -> Self {
        Self { name: String::new(), mode: Mode::Strict, k: 1, voters: Vec::new(), secret_file: PathBuf::new() }
    }
}

/// `[cluster]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Name of the cluster.
    pub name: String,
    /// Durability mode at creation.
    pub mode: Mode,
    /// Copies beyond the primary's at creation, in async mode of commits that ask for them; 0 when there is one voter.
    pub k: u32,
    /// The voters at creation, ordered by name.
    pub voters: Vec<NodeId>,
    /// File of the shared HTTP secret.
    pub secret_file: PathBuf,
}

/// Check `[cluster]`.
///
/// # Errors
/// Every setting that is missing, out of range or contradicts another.
pub fn check(raw: &ClusterRaw) -> Result<ClusterConfig, Vec<BadSetting>> {
    let mut bad = Vec::new();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if raw.name.is_empty() || raw.name.len() > 63 || !raw.name.chars().all(plain) {
        bad.push(BadSetting::new("cluster.name", &raw.name, "expected 1 to 63 letters, digits, _ or -"));
    }
    let mut voters: Vec<NodeId> = Vec::new();
    for name in &raw.voters {
        match name.parse() {
            Ok(node) if voters.contains(&node) => bad.push(BadSetting::new("cluster.voters", name, "named twice")),
            Ok(node) => voters.push(node),
            Err(e) => bad.push(BadSetting::new("cluster.voters", name, e.to_string())),
        }
    }
    voters.sort();
    if raw.voters.is_empty() {
        bad.push(BadSetting::new("cluster.voters", "[]", "expected the names of the nodes"));
    }
    let m = raw.voters.len();
    // The default asks nothing of a single async node.
    let k = if raw.mode == Mode::Async && m <= 1 { 0 } else { raw.k };
    if raw.mode != Mode::Async && k == 0 || k as usize >= m.max(1) {
        let why = format!("k must be from 1 (in async mode from 0) to the number of cluster.voters less one ({m} - 1)");
        bad.push(BadSetting::new("cluster.k", raw.k, why));
    }
    if raw.secret_file.as_os_str().is_empty() {
        bad.push(BadSetting::new("cluster.secret_file", "\"\"", "expected the path of a file with the shared secret"));
    }
    if !bad.is_empty() {
        return Err(bad);
    }
    Ok(ClusterConfig { name: raw.name.clone(), mode: raw.mode, k, voters, secret_file: raw.secret_file.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> ClusterRaw {
        ClusterRaw {
            name: "demo".into(),
            voters: vec!["n2".into(), "n1".into(), "n3".into()],
            secret_file: "/etc/pgtenure/secret".into(),
            ..ClusterRaw::default()
        }
    }

    #[test]
    fn voters_are_ordered_and_a_single_async_node_has_nobody_to_wait_for() {
        let asynchronous = ClusterRaw { mode: Mode::Async, ..raw() };
        let c = check(&asynchronous).unwrap();
        assert_eq!((c.k, c.voters[0].as_str()), (1, "n1"));
        assert_eq!(check(&ClusterRaw { voters: vec!["n1".into()], ..asynchronous.clone() }).unwrap().k, 0);
        assert_eq!(check(&ClusterRaw { k: 0, ..asynchronous.clone() }).unwrap().k, 0);
        assert!(check(&ClusterRaw { k: 3, ..asynchronous }).is_err());
        assert_eq!(check(&raw()).unwrap().k, 1);
    }

    #[test]
    fn every_problem_is_named_with_its_key() {
        let bad = check(&ClusterRaw { k: 3, ..raw() }).unwrap_err();
        assert_eq!(
            bad[0].to_string(),
            "cluster.k = 3: k must be from 1 (in async mode from 0) to the number of cluster.voters less one (3 - 1)"
        );
        let keys: Vec<String> = check(&ClusterRaw::default()).unwrap_err().into_iter().map(|b| b.key).collect();
        assert_eq!(keys, ["cluster.name", "cluster.voters", "cluster.k", "cluster.secret_file"]);
    }
}
