//! `[proxy.reads]`: what reads outside transaction blocks are promised unless the database, the user or the session
//! itself says otherwise.

use crate::config::pools::{Database, Pools, User};
use crate::route::promise;
use crate::route::{Consistency, NoStandby, Promise, ReadFrom};
use cluster::config::{BadSetting, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// `[proxy.reads]` as typed. The greatest lag is `proxy.max_replay_lag`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// What a read may miss: `eventual` (anything), `bounded` (the last `max_replay_lag`), `session` (that, but never
    /// what the session has written or read itself), `global` (nothing that any proxy had acknowledged before the read
    /// began), `strong` (that, from the primary, once it is proven to be that). Sessions say otherwise by `SET pgtenure.consistency`. Default `session`: what an application can take
    /// without knowing of standbys.
    pub consistency: Consistency,
    /// Where reads may go: `standby` or `primary`. Sessions say otherwise by `SET pgtenure.read_from`. Default
    /// `standby`.
    pub read_from: ReadFrom,
    /// How long a read waits for a standby that may serve it. Sessions say otherwise by `SET pgtenure.standby_wait`.
    /// Default 0ms: the primary serves it at once. `global` ones wait up to 100ms in any case, while that is not in vain.
    pub standby_wait: Span,
    /// What a read does then: `primary` (it goes there) or `error` (57P03). Sessions say otherwise by
    /// `SET pgtenure.no_standby`. Default `primary`.
    pub no_standby: NoStandby,
    /// How long statements of a shape that a standby refused, although it was taken for a read, go to the primary at
    /// once. Default 10min: a function whose label is put right, or that is named in `deny_functions`, needs no memory.
    /// 0ms: not at all, each is refused and sent to the primary then.
    pub remember_refused: Span,
    /// How long a standby that was too stale or not heard of takes to get its full share of reads again, from a tenth at
    /// first. Default 10s: its caches are cold, and what made it fall behind may not be over. 0ms: at once.
    pub slow_start: Span,
    /// Log one in so many decisions at level info: where it went, why, and the shape of the statement, never its text; at
    /// most 20 a second per worker. Default 0: none.
    pub log_one_in: u32,
    /// Whether statements say otherwise for themselves, by a comment before their first word:
    /// `/* pgtenure: consistency=eventual, max_replay_lag=500ms */`, with any of the settings' names; in a string of
    /// several only the first statement. Default false, and then nothing is warned of: where SQL is put together from what
    /// users enter, they could choose too.
    pub hints: bool,
    /// Whether standbys serve reads other than `eventual` ones whose collations are of other versions (glibc, ICU) than the
    /// primary's. Default false: they sort text by other rules than the indexes that they were given, so that rows can be
    /// missing. True is for databases that sort text by `C` alone.
    pub allow_other_collations: bool,
    /// How the position of a session's write is learnt, which its reads at standbys wait for: `sample` (from the lag
    /// monitor's next sample; until that the session reads at the primary) or `ask` (by a query behind each write, in the
    /// same message to the server where that is possible, else once it is answered). Default `sample`: it costs a query
    /// only where a session reads on before a sample shows its write.
    pub commit_lsn: CommitLsn,
}

/// How the position of a write is learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitLsn {
    /// From the lag monitor.
    #[default]
    Sample,
    /// By a query behind the write.
    Ask,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            consistency: Consistency::Session,
            read_from: ReadFrom::Standby,
            standby_wait: Span::millis(0),
            no_standby: NoStandby::Primary,
            remember_refused: Span::secs(600),
            slow_start: Span::secs(10),
            log_one_in: 0,
            hints: false,
            allow_other_collations: false,
            commit_lsn: CommitLsn::Sample,
        }
    }
}

/// `[proxy.databases.NAME.reads]` and `[proxy.users.NAME.reads]`. Every key is optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Own {
    /// As in `[proxy.reads]`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// As in `[proxy.reads]`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_from: Option<ReadFrom>,
    /// As `proxy.max_replay_lag`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replay_lag: Option<Span>,
    /// As in `[proxy.reads]`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby_wait: Option<Span>,
    /// As in `[proxy.reads]`. A user's own comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_standby: Option<NoStandby>,
}

/// What is configured for a database, by the name clients ask for, and a user: the narrower rule wins.
pub fn resolve(reads: &Raw, max_replay_lag: Duration, pools: &Pools, database: &str, user: &str) -> Promise {
    let none = Own::default();
    let d = pools.databases.get(database).map_or(none, |d: &Database| d.reads);
    let u = pools.users.get(user).map_or(none, |u: &User| u.reads);
    Promise {
        consistency: u.consistency.or(d.consistency).unwrap_or(reads.consistency),
        read_from: u.read_from.or(d.read_from).unwrap_or(reads.read_from),
        max_replay_lag: u.max_replay_lag.or(d.max_replay_lag).map_or(max_replay_lag, |s| s.0),
        standby_wait: u.standby_wait.or(d.standby_wait).unwrap_or(reads.standby_wait).0,
        no_standby: u.no_standby.or(d.no_standby).unwrap_or(reads.no_standby),
        other_collations: reads.allow_other_collations,
        ..Promise::session(max_replay_lag)
    }
}

/// Check ranges, all at once.
pub fn check(raw: &Raw, databases: &BTreeMap<String, Database>, users: &BTreeMap<String, User>) -> Vec<BadSetting> {
    let mut bad = Vec::new();
    let most = Span(promise::LONGEST);
    let mut wait = |key: String, value: Option<Span>| {
        if let Some(value) = value.filter(|v| *v > most) {
            bad.push(BadSetting::new(&key, value, format!("must be at most {most}")));
        }
    };
    wait("proxy.reads.standby_wait".to_owned(), Some(raw.standby_wait));
    wait("proxy.reads.slow_start".to_owned(), Some(raw.slow_start));
    wait("proxy.reads.remember_refused".to_owned(), Some(raw.remember_refused));
    databases.iter().for_each(|(n, d)| wait(format!("proxy.databases.{n}.reads.standby_wait"), d.reads.standby_wait));
    users.iter().for_each(|(n, u)| wait(format!("proxy.users.{n}.reads.standby_wait"), u.reads.standby_wait));
    let mut lag = |key: String, value: Option<Span>| {
        let least = Span::millis(1);
        if let Some(value) = value.filter(|v| !(least..=most).contains(v)) {
            bad.push(BadSetting::new(&key, value, format!("must be between {least} and {most}")));
        }
    };
    databases
        .iter()
        .for_each(|(n, d)| lag(format!("proxy.databases.{n}.reads.max_replay_lag"), d.reads.max_replay_lag));
    users.iter().for_each(|(n, u)| lag(format!("proxy.users.{n}.reads.max_replay_lag"), u.reads.max_replay_lag));
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_rule_wins() {
        let mut pools = Pools::new(1, Duration::ZERO);
        let of_database = Own {
            consistency: Some(Consistency::Bounded),
            max_replay_lag: Some(Span::secs(5)),
            standby_wait: Some(Span::secs(2)),
            ..Own::default()
        };
        let of_user =
            Own { consistency: Some(Consistency::Global), no_standby: Some(NoStandby::Error), ..Own::default() };
        pools.databases.insert("app".to_owned(), Database { reads: of_database, ..Database::default() });
        pools.users.insert("ann".to_owned(), User { reads: of_user, ..User::default() });
        let lag = Duration::from_secs(1);
        let of = |database, user| resolve(&Raw::default(), lag, &pools, database, user);
        assert_eq!(of("other", "bob"), Promise::session(lag));
        let both = Promise {
            consistency: Consistency::Global,
            read_from: ReadFrom::Standby,
            max_replay_lag: Duration::from_secs(5),
            standby_wait: Duration::from_secs(2),
            no_standby: NoStandby::Error,
            ..Promise::session(lag)
        };
        assert_eq!(of("app", "ann"), both);
        let others = Raw { allow_other_collations: true, ..Raw::default() };
        let others = resolve(&others, lag, &pools, "app", "ann");
        assert_eq!(others, Promise { other_collations: true, ..both });
        // No session says otherwise.
        let said = promise::resolve(others, [("pgtenure.consistency", "session")].into_iter()).0;
        assert!(said.other_collations && said.consistency == Consistency::Session);
        let long = check(&Raw { standby_wait: Span::secs(3601), ..Raw::default() }, &pools.databases, &pools.users);
        let says = "proxy.reads.standby_wait = 3601s: must be at most 1h";
        assert_eq!(long.iter().map(BadSetting::to_string).collect::<Vec<_>>(), [says]);
    }
}
