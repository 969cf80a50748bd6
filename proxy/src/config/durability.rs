//! `[proxy.durability]`: what commits wait for unless the session says otherwise, and who may ask for less than the
//! cluster's mode.

use crate::config::pools::{Database, Pools, User};
use crate::route::durability::{Durability, Rule};
use serde::{Deserialize, Serialize};

/// `[proxy.durability]`, `[proxy.databases.NAME.durability]` and `[proxy.users.NAME.durability]`. Every key is optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Own {
    /// What a commit waits for: `async` (nothing), `local` (the primary's disk), `received` (that, and the memory of
    /// the standbys that commits wait for), `semi_sync` (their disks), `applied` (until reads there see it). Sessions say
    /// otherwise by `SET pgtenure.durability`. Default none: what the cluster's mode says, `semi_sync` in strict mode
    /// and `local` in async mode. A user's own comes before that of its database. For clients that log in afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Durability>,
    /// Whether sessions may ask for less than the cluster's mode, by `pgtenure.durability` or by PostgreSQL's own
    /// `synchronous_commit`. Default false: a failover may then lose what was acknowledged, and reports how many commits
    /// that may concern. A user's own comes before that of its database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_lower: Option<bool>,
}

/// What is configured for a database, by the name clients ask for, and a user: the narrower rule wins.
pub fn resolve(all: &Own, pools: &Pools, database: &str, user: &str) -> Rule {
    let d = pools.databases.get(database).map_or(Own::default(), |d: &Database| d.durability);
    let u = pools.users.get(user).map_or(Own::default(), |u: &User| u.durability);
    Rule {
        level: u.level.or(d.level).or(all.level),
        allow_lower: u.allow_lower.or(d.allow_lower).or(all.allow_lower).unwrap_or(false),
    }
}

/// May any session of this configuration commit with less than a strict cluster promises?
pub fn lowers(all: &Own, pools: &Pools) -> bool {
    let lowers = |own: &Own| own.allow_lower == Some(true) || own.level.is_some_and(|l| l < Durability::SemiSync);
    let own = pools.databases.values().map(|d| &d.durability).chain(pools.users.values().map(|u| &u.durability));
    std::iter::once(all).chain(own).any(lowers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_narrower_rule_wins() {
        let mut pools = Pools::new(1, Duration::ZERO);
        let all = Own::default();
        assert_eq!((resolve(&all, &pools, "app", "ann"), lowers(&all, &pools)), (Rule::default(), false));
        let of_database = Own { level: Some(Durability::Applied), allow_lower: Some(true) };
        let of_user = Own { level: None, allow_lower: Some(false) };
        pools.databases.insert("app".to_owned(), Database { durability: of_database, ..Database::default() });
        pools.users.insert("ann".to_owned(), User { durability: of_user, ..User::default() });
        let of = |database, user| resolve(&all, &pools, database, user);
        assert_eq!(of("app", "bob"), Rule { level: Some(Durability::Applied), allow_lower: true });
        assert_eq!(of("app", "ann"), Rule { level: Some(Durability::Applied), allow_lower: false });
        assert_eq!(of("other", "ann"), Rule::default());
        assert!(lowers(&all, &pools));
    }
}
