//! `proxy.zone` and `[proxy.nodes]`: which standbys reads go to sooner than to others.

use crate::route::Favour;
use crate::route::footing::WEIGHT;
use cluster::NodeId;
use cluster::config::BadSetting;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Greatest weight.
const MOST: u32 = 10_000;

/// `[proxy.nodes.NAME]`. Every key is optional.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Where it is: a name that is compared with `proxy.zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its share of reads next to other standbys. 100 unless said otherwise.
    pub weight: u32,
}

impl Default for Node {
    fn default() -> Self {
        Self { zone: None, weight: WEIGHT }
    }
}

/// Check them; what cannot be used is added to `bad`.
pub fn check(
    zone: Option<&str>,
    nodes: &BTreeMap<String, Node>,
    bad: &mut Vec<BadSetting>,
) -> BTreeMap<NodeId, Favour> {
    let mut favours = BTreeMap::new();
    for (name, node) in nodes {
        let near = zone.is_some() && node.zone.as_deref() == zone;
        match name.parse::<NodeId>() {
            Ok(id) => drop(favours.insert(id, Favour { weight: node.weight, near })),
            Err(error) => bad.push(BadSetting::new("proxy.nodes", name, error.to_string())),
        }
        if !(1..=MOST).contains(&node.weight) {
            let key = format!("proxy.nodes.{name}.weight");
            bad.push(BadSetting::new(&key, node.weight, format!("must be between 1 and {MOST}")));
        }
    }
    favours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_near_in_the_proxys_own_zone_only() {
        let node = |zone: &str, weight| Node { zone: Some(zone.to_owned()), weight };
        let nodes = BTreeMap::from([("n1", node("a", 50)), ("n2", node("b", 100)), ("n3", Node::default())]);
        let nodes = nodes.into_iter().map(|(name, node)| (name.to_owned(), node)).collect();
        let near = |zone| {
            let mut bad = Vec::new();
            let favours = check(zone, &nodes, &mut bad);
            assert!(bad.is_empty());
            favours.iter().map(|(name, f)| format!("{name} {} {}", f.weight, f.near)).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(near(Some("a")), "n1 50 true, n2 100 false, n3 100 false");
        assert_eq!(near(None), "n1 50 false, n2 100 false, n3 100 false");
        let mut bad = Vec::new();
        check(None, &BTreeMap::from([("n1".to_owned(), Node { zone: None, weight: 0 })]), &mut bad);
        assert_eq!(bad[0].to_string(), "proxy.nodes.n1.weight = 0: must be between 1 and 10000");
    }
}
