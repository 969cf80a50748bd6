//! `synchronous_standby_names`: print, parse, and what it means for a set of standbys.
//!
//! Source: PostgreSQL documentation, "synchronous_standby_names"; src/backend/replication/syncrep_gram.y. Only the
//! two forms with a keyword are understood, because only those are ever written by us.

use crate::node::NodeId;
use std::fmt;
use std::str::FromStr;

/// The name no standby has: with it a commit waits for ever, which is the soft fence.
pub const FENCED: &str = "__fenced__";

/// A parsed `synchronous_standby_names`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncNames {
    /// Empty: commits wait for nobody.
    Off,
    /// `ANY k (…)`: each commit waits for any `k` of the names.
    Any {
        /// How many must have flushed.
        k: u32,
        /// Names, in ascending order.
        names: Vec<NodeId>,
    },
    /// `ANY 1 ("__fenced__")`: commits wait until the list is changed.
    Fenced,
}

impl SyncNames {
    /// `ANY k` over the voters without `primary`. `Off` when `k` is 0.
    pub fn for_primary(primary: &NodeId, voters: &[NodeId], k: u32) -> Self {
        let mut names: Vec<NodeId> = voters.iter().filter(|v| *v != primary).cloned().collect();
        names.sort();
        if k == 0 || names.is_empty() { Self::Off } else { Self::Any { k, names } }
    }
}

impl fmt::Display for SyncNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => Ok(()),
            Self::Fenced => write!(f, "ANY 1 (\"{FENCED}\")"),
            Self::Any { k, names } => {
                write!(f, "ANY {k} (")?;
                for (i, name) in names.iter().enumerate() {
                    write!(f, "{}{name}", if i == 0 { "" } else { ", " })?;
                }
                write!(f, ")")
            }
        }
    }
}

/// A setting we did not write: an operator's, or one in a form we do not use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("synchronous_standby_names is {0:?}, which pgtenure did not write")]
pub struct ForeignSyncNames(String);

impl FromStr for SyncNames {
    type Err = ForeignSyncNames;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let foreign = || ForeignSyncNames(s.to_owned());
        let text = s.trim();
        if text.is_empty() {
            return Ok(Self::Off);
        }
        if text == format!("ANY 1 (\"{FENCED}\")") {
            return Ok(Self::Fenced);
        }
        let rest = text.strip_prefix("ANY ").ok_or_else(foreign)?;
        let (k, list) = rest.split_once(" (").ok_or_else(foreign)?;
        let list = list.strip_suffix(')').ok_or_else(foreign)?;
        let names: Result<Vec<NodeId>, _> = list.split(',').map(|n| n.trim().parse()).collect();
        let mut names = names.map_err(|_| foreign())?;
        names.sort();
        let k: u32 = k.parse().map_err(|_| foreign())?;
        if k == 0 || k as usize > names.len() { Err(foreign()) } else { Ok(Self::Any { k, names }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(list: &[&str]) -> Vec<NodeId> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn a_primary_never_waits_for_itself() {
        let v = names(&["n3", "n1", "n2"]);
        assert_eq!(SyncNames::for_primary(&v[1], &v, 1).to_string(), "ANY 1 (n2, n3)");
        assert_eq!(SyncNames::for_primary(&v[1], &v[1..2], 1), SyncNames::Off);
    }

    #[test]
    fn settings_of_others_are_not_understood() {
        for foreign in ["*", "n2", "FIRST 1 (n2, n3)", "ANY 3 (n2, n3)", "ANY 0 (n2)", "ANY 1 (n2"] {
            assert!(foreign.parse::<SyncNames>().is_err(), "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn parsing_what_was_printed_gives_it_back(set in prop::collection::btree_set("[a-z][a-z0-9_]{2,8}", 1..6), k in 1u32..6) {
            let v: Vec<NodeId> = set.iter().filter_map(|n| n.parse().ok()).collect();
            prop_assume!(!v.is_empty() && k as usize <= v.len());
            let s = SyncNames::Any { k, names: v };
            prop_assert_eq!(s.to_string().parse::<SyncNames>(), Ok(s));
        }
    }

    #[test]
    fn the_fence_and_the_empty_list_survive_a_round_trip() {
        for s in [SyncNames::Off, SyncNames::Fenced] {
            assert_eq!(s.to_string().parse::<SyncNames>(), Ok(s));
        }
    }
}
