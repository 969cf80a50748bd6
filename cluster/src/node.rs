//! Nodes: their names, roles and addresses.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

/// Longest name of a node, bytes: PostgreSQL cuts `application_name` at NAMEDATALEN - 1.
const MAX_NAME: usize = 63;

/// How the names of the slots begin that agents make.
pub const SLOT_PREFIX: &str = "pgtenure_";

/// The name of a PostgreSQL node, also its `application_name` on the replication connection.
///
/// Lower-case letters, digits and underscores, a letter first: such a name needs no quoting in
/// `synchronous_standby_names`, where names compare without regard to case; `any` and `first` are keywords there.
#[derive(Clone, Debug, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct NodeId(Arc<str>);

/// Names that are compared at every statement come from one place mostly, and are one object then.
impl PartialEq for NodeId {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Hash for NodeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// A text that cannot be a node's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a node name: expected a lower-case letter, then lower-case letters, digits or _, 63 at most, and not any or first"
)]
pub struct BadNodeId(String);

impl NodeId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The slot through which this node streams, where it streams through one: no other node's, and nobody else's. Of a
    /// name that is too long for that, its beginning and a sum of all of it.
    pub fn slot_name(&self) -> String {
        const FITS: usize = MAX_NAME - SLOT_PREFIX.len();
        const BEGINNING: usize = FITS - 17;
        if self.0.len() <= FITS {
            return format!("{SLOT_PREFIX}{}", self.0);
        }
        // FNV-1a.
        let sum = self
            .0
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, b| (sum ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        format!("{SLOT_PREFIX}{}_{sum:016x}", &self.0[..BEGINNING])
    }

    /// The same name with a count of owners of its own: threads that clone one name all the time slow each other down.
    pub fn unshared(&self) -> Self {
        Self((*self.0).into())
    }
}

impl FromStr for NodeId {
    type Err = BadNodeId;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let first = s.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let rest = s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let keyword = matches!(s, "any" | "first");
        if first && rest && !keyword && s.len() <= MAX_NAME {
            Ok(Self(s.into()))
        } else {
            Err(BadNodeId(s.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a node is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts writes.
    Primary,
    /// In recovery, following the primary.
    Standby,
}

/// A TCP address as configured: a host name or address and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        for good in ["n1", "a", "node_2"] {
            assert_eq!(good.parse::<NodeId>().unwrap().as_str(), good);
        }
        for bad in ["", "1n", "N1", "n-1", "n 1", "_n", "*", "any", "first"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
        assert!("n".repeat(64).parse::<NodeId>().is_err());
    }

    #[test]
    fn each_name_has_a_slot_of_its_own_that_postgresql_takes() {
        let name = |text: &str| text.parse::<NodeId>().unwrap().slot_name();
        assert_eq!(name("n2"), "pgtenure_n2");
        let (fits, long, other) = ("n".repeat(54), "n".repeat(55), format!("{}_", "n".repeat(54)));
        assert_eq!(name(&fits), format!("pgtenure_{fits}"));
        assert_eq!([name(&fits).len(), name(&long).len(), name(&other).len()], [63; 3]);
        assert_ne!(name(&long), name(&other));
    }

    #[test]
    fn an_ipv6_host_is_printed_in_brackets() {
        assert_eq!(Endpoint { host: "::1".into(), port: 5432 }.to_string(), "[::1]:5432");
        assert_eq!(Endpoint { host: "db1".into(), port: 5432 }.to_string(), "db1:5432");
    }
}
