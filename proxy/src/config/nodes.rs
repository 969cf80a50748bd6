//! `proxy.zone` and `[proxy.nodes]`: which standbys reads go to sooner than to others.

use crate::route::Favour;
use crate::route::footing::WEIGHT;
use cluster::NodeId;
use cluster::config::BadSetting;
use cluster::topology::Member;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Greatest weight.
const MOST: u32 = 10_000;

/// `[proxy.nodes.NAME]`. Every key is optional.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Where it is: a name that is compared with `proxy.zone`. What its agent says unless it is said here.
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

/// What is known here of where nodes are and what weight they have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// `proxy.zone`
    zone: Option<String>,
    nodes: BTreeMap<NodeId, Node>,
}

impl Nodes {
    /// How a node stands with this proxy; its zone is what is said of it here, or else what it says of itself.
    pub fn favour(&self, name: &NodeId, member: Option<&Member>) -> Favour {
        let node = self.nodes.get(name);
        let zone = node.and_then(|node| node.zone.as_ref()).or_else(|| member?.zone.as_ref());
        Favour { weight: node.map_or(WEIGHT, |node| node.weight), near: zone.is_some() && zone == self.zone.as_ref() }
    }
}

/// Check them; what cannot be used is added to `bad`.
pub fn check(zone: Option<&String>, nodes: &BTreeMap<String, Node>, bad: &mut Vec<BadSetting>) -> Nodes {
    let mut known = BTreeMap::new();
    for (name, node) in nodes {
        match name.parse::<NodeId>() {
            Ok(id) => drop(known.insert(id, node.clone())),
            Err(error) => bad.push(BadSetting::new("proxy.nodes", name, error.to_string())),
        }
        if !(1..=MOST).contains(&node.weight) {
            let key = format!("proxy.nodes.{name}.weight");
            bad.push(BadSetting::new(&key, node.weight, format!("must be between 1 and {MOST}")));
        }
    }
    Nodes { zone: zone.cloned(), nodes: known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::Endpoint;

    #[test]
    fn a_node_is_near_in_the_proxys_own_zone_only() {
        let node = |zone: Option<&str>, weight| Node { zone: zone.map(str::to_owned), weight };
        let nodes = [("n1", node(Some("a"), 50)), ("n2", node(Some("b"), 100)), ("n3", node(None, 70))];
        let nodes = nodes.into_iter().map(|(name, node)| (name.to_owned(), node)).collect();
        // What the nodes say of themselves counts where nothing is said here.
        let says = |name: &str, zone: Option<&str>| {
            let postgres = Endpoint { host: "h".to_owned(), port: 1 };
            Member {
                node: name.parse().unwrap(),
                postgres,
                fenced: false,
                candidate: true,
                zone: zone.map(str::to_owned),
            }
        };
        let members = [says("n1", Some("b")), says("n2", Some("a")), says("n3", Some("a")), says("n4", Some("a"))];
        let near = |zone: Option<&str>, members: &[Member]| {
            let mut bad = Vec::new();
            let known = check(zone.map(str::to_owned).as_ref(), &nodes, &mut bad);
            assert!(bad.is_empty());
            let of = |name: &str| {
                let name = name.parse().unwrap();
                let f = known.favour(&name, members.iter().find(|m| m.node == name));
                format!("{} {}", f.weight, f.near)
            };
            ["n1", "n2", "n3", "n4"].map(of).join(", ")
        };
        assert_eq!(near(Some("a"), &members), "50 true, 100 false, 70 true, 100 true");
        assert_eq!(near(Some("a"), &[]), "50 true, 100 false, 70 false, 100 false");
        assert_eq!(near(None, &members), "50 false, 100 false, 70 false, 100 false");
        let mut bad = Vec::new();
        check(None, &BTreeMap::from([("n1".to_owned(), Node { zone: None, weight: 0 })]), &mut bad);
        assert_eq!(bad[0].to_string(), "proxy.nodes.n1.weight = 0: must be between 1 and 10000");
    }
}
