//! Places for those who receive WAL (`max_wal_senders`): are all taken, by whom, and who must make room. PURE.
//!
//! PostgreSQL keeps none of them for standbys. Where strangers have taken them all, a standby that has to connect anew is
//! refused, and in strict mode commits wait for it. So voters come first: while one of them is away the last place is left
//! to it.

use cluster::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Most receivers that are named.
const NAMED: usize = 5;

/// Connections kept for superusers where nothing else is configured, of all but those that `reserved_connections` keeps: the
/// agent looks and beats by a session each and proves by two more that commits wait. `None`: PostgreSQL's own, which are 3;
/// it refuses to start where as many as all are kept.
pub const fn kept(connections: usize) -> Option<usize> {
    match connections {
        30.. => Some(8),
        10.. => Some(5),
        _ => None,
    }
}

/// Who has a place, by application_name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// `max_wal_senders`.
    pub most: usize,
    /// How many are taken.
    pub taken: usize,
    /// By whom; not all of them where those are very many.
    pub names: Vec<String>,
}

impl Places {
    /// Nobody else can connect.
    pub const fn full(&self) -> bool {
        self.taken >= self.most && self.most > 0
    }

    /// Voters that have none, of those that ought to.
    pub fn missing<'a>(&self, voters: impl IntoIterator<Item = &'a NodeId>) -> BTreeSet<&'a NodeId> {
        voters.into_iter().filter(|v| !self.names.iter().any(|n| n == v.as_str())).collect()
    }

    /// What an operator is told while all are taken. `missing` are those who ought to have one.
    pub fn trouble(&self, missing: &BTreeSet<&NodeId>) -> Option<String> {
        if !self.full() {
            return None;
        }
        let mut counts = BTreeMap::<&str, usize>::new();
        self.names.iter().for_each(|n| *counts.entry(n).or_default() += 1);
        let mut by: Vec<(&str, usize)> = counts.into_iter().collect();
        by.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let named: Vec<String> =
            by.iter().take(NAMED).map(|(n, c)| if *c == 1 { (*n).to_owned() } else { format!("{n} ({c})") }).collect();
        let more = if by.len() > NAMED { ", ..." } else { "" };
        let whom = match missing.iter().map(|n| n.as_str()).collect::<Vec<_>>() {
            none if none.is_empty() => "a standby that has to connect anew".to_owned(),
            some => some.join(", "),
        };
        let (taken, by) = (self.taken, named.join(", "));
        Some(format!(
            "all {taken} places for receivers of WAL (max_wal_senders) are taken, by {by}{more}: {whom} would be refused"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_server_keeps_what_the_agent_needs_and_more_where_there_is_room() {
        assert_eq!([0, 9, 10, 29, 30, 100].map(kept), [None, None, Some(5), Some(5), Some(8), Some(8)]);
    }

    fn check(most: usize, names: &[&str], voters: &[&str]) -> Option<String> {
        let voters: Vec<NodeId> = voters.iter().map(|v| v.parse().unwrap()).collect();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let places = Places { most, taken: names.len(), names };
        places.trouble(&places.missing(&voters))
    }

    #[test]
    fn an_operator_is_told_who_has_the_places_and_who_has_none() {
        assert_eq!(check(4, &["n2", "n3", "x"], &["n2", "n3"]), None);
        let told = check(4, &["n2", "pg_receivewal", "x", "pg_receivewal"], &["n2", "n3"]).unwrap();
        assert_eq!(
            told,
            "all 4 places for receivers of WAL (max_wal_senders) are taken, by pg_receivewal (2), n2, x: n3 would be refused"
        );
        let told = check(2, &["n2", "n3"], &["n2", "n3"]).unwrap();
        assert!(told.ends_with("by n2, n3: a standby that has to connect anew would be refused"), "{told}");
        let many: Vec<String> = (1..9).map(|i| format!("r{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(check(8, &many, &["n2"]).unwrap().contains("r5, ...: n2"));
    }
}
