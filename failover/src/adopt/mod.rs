//! Taking over a cluster that runs without agents (`pgtenure adopt`): its primary is asked, a plan is made, and carried out
//! so that every moment before the primary's own stop leaves the cluster serving as it did.
//!
//! The records say term N for the timeline N that the primary writes, paused, and suspended in a way by which only that
//! primary counts as complete: nobody else can be promoted before it has been stopped and started under its agent. That
//! start is an ordinary change of primary with cause *restart*, into term N + 1.

pub mod plan;

use crate::agent::founding;
use crate::config::cluster::ClusterConfig;
use crate::record::{
    AdoptRecord, Cause, InitRecord, Limits, MemberRecord, Mode, PauseRecord, Phase, PolicyRecord, Suspension,
    TermRecord, WallMillis,
};
use crate::store::{Compare, Range, Store, StoreError, Txn};
use cluster::keys::Keys;
use cluster::secret::Secret;
use cluster::{Lsn, NodeId, Term, TimelineId};
use plan::{Found, Wanted};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Bound on one statement.
const BOUND: Duration = Duration::from_secs(30);

/// It could not be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// etcd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The primary said no, or is gone.
    #[error("{what}: {}", source.as_db_error().map_or_else(|| source.to_string(), |e| e.message().to_owned()))]
    Postgres {
        /// What it was asked.
        what: &'static str,
        /// Its answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer in time.
    #[error("{what}: no answer within {BOUND:?}")]
    TimedOut {
        /// What it was asked.
        what: &'static str,
    },
    /// It answered something else than expected.
    #[error("{what}: unexpected answer {answer:?}")]
    Answer {
        /// What it was asked.
        what: &'static str,
        /// Its answer.
        answer: String,
    },
    /// A record could not be written or understood.
    #[error("a record in etcd is not as it should be")]
    Record(#[from] serde_json::Error),
    /// etcd knows a cluster of that name already.
    #[error("etcd knows this cluster already, in term {term}")]
    Exists {
        /// Its term.
        term: Term,
    },
    /// An operator has paused changes of primary since it was begun.
    #[error("{by} has paused changes of primary ({why}): the primary would stay stopped; resume first")]
    Paused {
        /// Who.
        by: String,
        /// In the operator's words.
        why: String,
    },
    /// The primary's turn has come: there is no way back.
    #[error("the primary's own turn has come already: its agent takes it over, and the next term begins")]
    PrimaryTaken,
    /// Standbys that nobody has given their turn.
    #[error("not all standbys have had their turn: {}", left.join(", "))]
    StandbysLeft {
        /// Who.
        left: Vec<String>,
    },
    /// No adoption is under way.
    #[error("no adoption is under way")]
    NotBegun,
    /// Something changed in etcd at the same time; nothing was written.
    #[error("something changed in etcd at the same time; nothing was written")]
    Lost,
}

/// How far an adoption has come, by the records.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// It was begun and not finished.
    pub begun: Option<AdoptRecord>,
    /// The term's record.
    pub term: Option<TermRecord>,
    /// The policy's.
    pub policy: Option<PolicyRecord>,
}

async fn rows(client: &Client, what: &'static str, sql: &str) -> Result<Vec<Vec<Option<String>>>, AdoptError> {
    let asked = tokio::time::timeout(BOUND, client.simple_query(sql)).await;
    let messages =
        asked.map_err(|_| AdoptError::TimedOut { what })?.map_err(|source| AdoptError::Postgres { what, source })?;
    let row = |m: SimpleQueryMessage| match m {
        SimpleQueryMessage::Row(r) => Some((0..r.len()).map(|i| r.get(i).map(str::to_owned)).collect()),
        _ => None, // a command's end
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

async fn pairs(client: &Client, what: &'static str, sql: &str) -> Result<BTreeMap<String, String>, AdoptError> {
    let pair = |r: Vec<Option<String>>| {
        let mut texts = r.into_iter().map(Option::unwrap_or_default);
        Some((texts.next()?, texts.next()?))
    };
    Ok(rows(client, what, sql).await?.into_iter().filter_map(pair).collect())
}

async fn texts(client: &Client, what: &'static str, sql: &str) -> Result<Vec<String>, AdoptError> {
    Ok(rows(client, what, sql).await?.into_iter().filter_map(|r| r.into_iter().next()?).collect())
}

/// Ask the server that was named. The session finds functions in `pg_catalog` only from here on.
///
/// # Errors
/// It does not answer as a PostgreSQL does.
pub async fn survey(client: &Client) -> Result<Found, AdoptError> {
    let what = "asking the primary";
    // For the whole session: what users have put into `public` is not to run with a superuser's rights.
    rows(client, what, "SET search_path = pg_catalog").await?;
    let basics = "SELECT current_setting('server_version_num'), pg_is_in_recovery(), \
        (SELECT system_identifier FROM pg_control_system()), \
        CASE WHEN pg_is_in_recovery() THEN (SELECT to_hex(timeline_id) FROM pg_control_checkpoint()) \
        ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END, \
        CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END, current_setting('port'), \
        (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), \
        EXISTS (SELECT FROM pg_roles WHERE rolname = 'postgres' AND rolsuper)";
    let basics: Vec<String> =
        rows(client, what, basics).await?.concat().into_iter().map(Option::unwrap_or_default).collect();
    let [version, recovery, system_id, timeline, lsn, port, superuser, has_postgres] = &basics[..] else {
        return Err(AdoptError::Answer { what, answer: basics.join(", ") });
    };
    let number = |text: &str| text.parse::<u32>().map_err(|_| AdoptError::Answer { what, answer: text.to_owned() });
    // That of the last checkpoint is an older one until the first after a promotion.
    let timeline =
        u32::from_str_radix(timeline, 16).map_err(|_| AdoptError::Answer { what, answer: timeline.clone() })?;
    Ok(Found {
        version: number(version)?,
        in_recovery: recovery == "t",
        system_id: system_id.clone(),
        timeline: TimelineId(timeline),
        lsn: lsn.parse().unwrap_or(Lsn::INVALID),
        port: u16::try_from(number(port)?).unwrap_or(0),
        settings: pairs(client, what, "SELECT name, setting FROM pg_settings").await?,
        changed: pairs(
            client,
            what,
            "SELECT name, current_setting(name) FROM pg_settings WHERE source IN ('configuration file', 'command line') \
             AND setting IS DISTINCT FROM boot_val AND name NOT LIKE 'lc\\_%' AND name NOT IN ('DateStyle', \
             'TimeZone', 'log_timezone', 'default_text_search_config', 'dynamic_shared_memory_type')",
        )
        .await?,
        superuser: superuser == "t",
        has_postgres: has_postgres == "t",
        slots: texts(client, what, "SELECT slot_name FROM pg_replication_slots ORDER BY 1").await?,
        tablespaces: texts(client, what, "SELECT spcname FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY 1").await?,
        standbys: following(client).await?,
    })
}

/// Who streams from the primary under its agent, by application_name. By that alone it may still be as it was set up by hand,
/// under the same name.
///
/// # Errors
/// It does not answer.
pub async fn following(client: &Client) -> Result<Vec<String>, AdoptError> {
    let sql = "SELECT application_name FROM pg_stat_replication \
         WHERE state = 'streaming' AND usename = 'pgtenure_repl' ORDER BY 1";
    texts(client, "asking who follows", sql).await
}

/// What the records say of the nodes.
///
/// # Errors
/// etcd does not answer.
pub async fn wanted(
    store: &dyn Store,
    keys: &Keys,
    cluster: &ClusterConfig,
    primary: &NodeId,
) -> Result<Wanted, AdoptError> {
    let found = store.read(vec![Range::Prefix(keys.members()), Range::Key(keys.manager())]).await?;
    let member = |v: &crate::store::Versioned| {
        let node = v.key.strip_prefix(&keys.members())?.parse().ok()?;
        Some((node, serde_json::from_slice::<MemberRecord>(&v.value).ok()?))
    };
    let members = found.under(&keys.members()).filter_map(member).collect();
    let led = found.get(&keys.manager()).is_some();
    let (voters, mode, k) = (cluster.voters.clone(), cluster.mode, cluster.k);
    Ok(Wanted { primary: primary.clone(), voters, mode, k, members, led })
}

/// How far it has come.
///
/// # Errors
/// etcd does not answer, or with something that is not understood.
pub async fn standing(store: &dyn Store, keys: &Keys) -> Result<Standing, AdoptError> {
    let found = store.read([keys.adopt(), keys.term(), keys.policy()].map(Range::Key).to_vec()).await?;
    let value = |key: String| found.get(&key).map(|v| v.value.clone());
    let begun = value(keys.adopt()).map(|v| serde_json::from_slice(&v)).transpose()?;
    let term = value(keys.term()).map(|v| serde_json::from_slice(&v)).transpose()?;
    let policy = value(keys.policy()).map(|v| serde_json::from_slice(&v)).transpose()?;
    Ok(Standing { begun, term, policy })
}

/// Create on the running primary what agents need. Can be repeated; nothing that serves changes.
///
/// # Errors
/// The primary refuses.
pub async fn prepare(
    client: &Client,
    found: &Found,
    primary: &NodeId,
    replication_password: &Secret,
    monitor_password: &Secret,
) -> Result<(), AdoptError> {
    let what = "preparing the primary";
    let quiet = "SET password_encryption = 'scram-sha-256'; SET synchronous_commit = local";
    for sql in [founding::QUIET, quiet]
        .into_iter()
        .map(str::to_owned)
        .chain(founding::roles(replication_password, monitor_password))
    {
        rows(client, what, &sql).await?;
    }
    rows(client, what, founding::TERMS).await?;
    rows(client, what, &founding::first_term(u64::from(found.timeline.0), primary)).await?;
    Ok(())
}

/// Put the records that make the standbys' agents begin.
///
/// # Errors
/// etcd knows the cluster already, or does not answer.
pub async fn begin(
    store: &dyn Store,
    keys: &Keys,
    cluster: &ClusterConfig,
    found: &Found,
    (primary, by, now): (&NodeId, &str, WallMillis),
) -> Result<(), AdoptError> {
    let term = Term(u64::from(found.timeline.0));
    let why = "adopted: commits wait for standbys once these stream under their agents".to_owned();
    let by = by.to_owned();
    let suspended = Suspension { term, since: found.lsn, since_wall: now, why: why.clone(), lowered: None };
    let policy = PolicyRecord {
        epoch: 1,
        voters: cluster.voters.clone(),
        k: cluster.k,
        mode: cluster.mode,
        suspended: (cluster.mode != Mode::Async).then_some(suspended),
        limits: Limits::default(),
        joint: None,
        rearmed: None,
    };
    let record = TermRecord {
        term,
        phase: Phase::Active,
        coordinator: by.clone(),
        node: Some(primary.clone()),
        cause: Cause::Bootstrap,
        prev: None,
        fork: None,
        forks: Vec::new(),
        xid_bound: None,
        xid_bounds: Vec::new(),
        record_lsn: Some(found.lsn),
        policy_epoch: 1,
        newest_timeline: None,
        holds_all_of: None,
        holds_written_of: None,
        history_lost: false,
        lossy_timelines: Vec::new(),
        chosen_before: None,
        data_loss_allowed: false,
    };
    let pause = PauseRecord { by: by.clone(), why, at: now, until: None };
    let init = InitRecord { node: primary.clone(), system_id: Some(found.system_id.clone()) };
    let adopt = AdoptRecord {
        by,
        primary: primary.clone(),
        system_id: found.system_id.clone(),
        turns: Some(Vec::new()),
        take_primary: false,
    };
    let txn = Txn::new()
        .when(Compare::Absent(keys.init()))
        .when(Compare::Absent(keys.term()))
        .put(keys.init(), serde_json::to_vec(&init)?)
        .put(keys.policy(), serde_json::to_vec(&policy)?)
        .put(keys.policy_of(policy.epoch), serde_json::to_vec(&policy)?)
        .put(keys.term(), serde_json::to_vec(&record)?)
        .put(keys.pause(), serde_json::to_vec(&pause)?)
        .put(keys.adopt(), serde_json::to_vec(&adopt)?);
    if store.txn(txn).await?.succeeded {
        return Ok(());
    }
    let term = standing(store, keys).await?.term.map_or(Term(0), |t| t.term);
    Err(AdoptError::Exists { term })
}

/// Let that standby's agent take it over. It may be given again.
///
/// # Errors
/// etcd does not answer, or the adoption is not under way any more.
pub async fn give_turn(store: &dyn Store, keys: &Keys, node: &NodeId) -> Result<(), AdoptError> {
    let found = store.get(&keys.adopt()).await?.ok_or(AdoptError::NotBegun)?;
    let mut record: AdoptRecord = serde_json::from_slice(&found.value)?;
    if record.is_turn_of(node) {
        return Ok(());
    }
    record.turns.get_or_insert_default().push(node.clone());
    let txn = Txn::new()
        .when(Compare::ModRevision(keys.adopt(), found.mod_revision))
        .put(keys.adopt(), serde_json::to_vec(&record)?);
    if store.txn(txn).await?.succeeded { Ok(()) } else { Err(AdoptError::Lost) }
}

/// Forget the cluster, as long as its primary was not touched: nothing that serves is stopped by that. Tells which standbys had
/// their turn; their agents keep what they have taken over.
///
/// # Errors
/// etcd does not answer, or it is too late.
pub async fn undo(store: &dyn Store, keys: &Keys) -> Result<Vec<NodeId>, AdoptError> {
    let found = store.read([keys.adopt(), keys.term(), keys.policy(), keys.pause()].map(Range::Key).to_vec()).await?;
    let begun = found.get(&keys.adopt()).ok_or(AdoptError::NotBegun)?;
    let record: AdoptRecord = serde_json::from_slice(&begun.value)?;
    if record.take_primary {
        return Err(AdoptError::PrimaryTaken);
    }
    let mut txn = Txn::new().when(Compare::ModRevision(keys.adopt(), begun.mod_revision));
    for key in [keys.term(), keys.policy()] {
        // Whatever was made of them since is not for this to undo.
        let there = found.get(&key).ok_or(AdoptError::Lost)?;
        txn = txn.when(Compare::ModRevision(key.clone(), there.mod_revision)).delete(key);
    }
    if let Some(pause) = found.get(&keys.pause()).filter(|p| p.mod_revision == begun.create_revision) {
        txn = txn.when(Compare::ModRevision(keys.pause(), pause.mod_revision)).delete(keys.pause());
    }
    let policy: PolicyRecord = serde_json::from_slice(&found.get(&keys.policy()).ok_or(AdoptError::Lost)?.value)?;
    let txn = txn.delete(keys.init()).delete(keys.policy_of(policy.epoch)).delete(keys.adopt());
    if !store.txn(txn).await?.succeeded {
        return Err(AdoptError::Lost);
    }
    Ok(record.turns.unwrap_or(policy.voters).into_iter().filter(|n| *n != record.primary).collect())
}

/// Let the primary's own agent take it over: from here on writes stop until the next term is open.
///
/// # Errors
/// etcd does not answer, the adoption is not under way any more, or somebody has paused changes of primary.
pub async fn take_primary(store: &dyn Store, keys: &Keys) -> Result<(), AdoptError> {
    let found = store.read([keys.adopt(), keys.pause(), keys.policy()].map(Range::Key).to_vec()).await?;
    let (Some(begun), Some(policy)) = (found.get(&keys.adopt()), found.get(&keys.policy())) else {
        return Err(AdoptError::Lost);
    };
    let as_read = match found.get(&keys.pause()) {
        Some(pause) if pause.mod_revision != begun.create_revision => {
            let PauseRecord { by, why, .. } = serde_json::from_slice(&pause.value)?;
            return Err(AdoptError::Paused { by, why });
        }
        Some(pause) => Compare::ModRevision(keys.pause(), pause.mod_revision),
        None => Compare::Absent(keys.pause()),
    };
    let record: AdoptRecord = serde_json::from_slice(&begun.value)?;
    let policy: PolicyRecord = serde_json::from_slice(&policy.value)?;
    // Once the primary is taken over nobody else is: who was left would stay as he is, and be refused by it.
    let left = policy.voters.iter().filter(|v| **v != record.primary && !record.is_turn_of(v));
    let left: Vec<String> = left.map(ToString::to_string).collect();
    if !left.is_empty() {
        return Err(AdoptError::StandbysLeft { left });
    }
    let record = AdoptRecord { take_primary: true, ..record };
    let txn = Txn::new()
        .when(Compare::ModRevision(keys.adopt(), begun.mod_revision))
        .when(as_read)
        .put(keys.adopt(), serde_json::to_vec(&record)?);
    if store.txn(txn).await?.succeeded { Ok(()) } else { Err(AdoptError::Lost) }
}

/// The primary's directory is taken over: forget the adoption, and the pause that it began with. One that an operator has
/// put since stays.
///
/// # Errors
/// etcd does not answer.
pub(crate) async fn finish(store: &dyn Store, keys: &Keys) -> Result<(), StoreError> {
    let found = store.read([keys.adopt(), keys.pause()].map(Range::Key).to_vec()).await?;
    let Some(begun) = found.get(&keys.adopt()) else { return Ok(()) };
    let over = Txn::new().delete(keys.adopt());
    // Both were put by one transaction. One that loses the race is tried again.
    let over = match found.get(&keys.pause()).filter(|p| p.mod_revision == begun.create_revision) {
        Some(ours) => over.when(Compare::ModRevision(keys.pause(), ours.mod_revision)).delete(keys.pause()),
        None => over,
    };
    store.txn(over).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn found() -> Found {
        Found {
            version: 150_018,
            in_recovery: false,
            system_id: "77".into(),
            timeline: TimelineId(3),
            lsn: Lsn(0x5000),
            port: 5432,
            settings: BTreeMap::new(),
            changed: BTreeMap::new(),
            superuser: true,
            has_postgres: true,
            slots: Vec::new(),
            tablespaces: Vec::new(),
            standbys: Vec::new(),
        }
    }

    #[tokio::test]
    async fn it_is_taken_back_until_the_primarys_turn_and_leaves_nothing_on_record() {
        let (store, keys) = (MemoryStore::new(), Keys::new("/t", "t"));
        let [primary, other, third] = ["n1", "n2", "n3"].map(|n| n.parse::<NodeId>().unwrap());
        let cluster = ClusterConfig {
            name: "t".into(),
            mode: Mode::Strict,
            k: 1,
            voters: vec![primary.clone(), other.clone(), third.clone()],
            secret_file: std::path::PathBuf::new(),
        };
        assert!(matches!(undo(&store, &keys).await, Err(AdoptError::NotBegun)));
        for round in 0..2 {
            begin(&store, &keys, &cluster, &found(), (&primary, "me@host", 0)).await.unwrap();
            let again = begin(&store, &keys, &cluster, &found(), (&primary, "me@host", 0)).await;
            assert!(matches!(again, Err(AdoptError::Exists { term: Term(3) })), "{again:?}");
            let turn = async |n: &NodeId| standing(&store, &keys).await.unwrap().begun.unwrap().is_turn_of(n);
            assert!(!turn(&primary).await && !turn(&other).await && !turn(&third).await);
            give_turn(&store, &keys, &other).await.unwrap();
            give_turn(&store, &keys, &other).await.expect("it can be repeated");
            assert!(!turn(&primary).await && turn(&other).await && !turn(&third).await);
            if round == 0 {
                assert_eq!(undo(&store, &keys).await.unwrap(), std::slice::from_ref(&other));
                assert_eq!(store.read(vec![Range::Prefix("/t".into())]).await.unwrap().under("/t").count(), 0);
            }
        }
        let early = take_primary(&store, &keys).await;
        assert!(matches!(&early, Err(AdoptError::StandbysLeft { left }) if *left == ["n3"]), "{early:?}");
        give_turn(&store, &keys, &third).await.unwrap();
        take_primary(&store, &keys).await.unwrap();
        assert!(matches!(undo(&store, &keys).await, Err(AdoptError::PrimaryTaken)));
        let before: AdoptRecord =
            serde_json::from_str(r#"{"by":"me","primary":"n1","system_id":"7","take_primary":false}"#).unwrap();
        assert!(before.is_turn_of(&third) && !before.is_turn_of(&primary), "begun by an earlier version");
    }

    #[tokio::test]
    async fn the_pause_of_an_operator_is_obeyed_and_outlives_the_adoption() {
        let (store, keys) = (MemoryStore::new(), Keys::new("/t", "t"));
        let primary: NodeId = "n1".parse().unwrap();
        let cluster = ClusterConfig {
            name: "t".into(),
            mode: Mode::Strict,
            k: 1,
            voters: vec![primary.clone(), "n2".parse().unwrap()],
            secret_file: std::path::PathBuf::new(),
        };
        for theirs in [false, true] {
            begin(&store, &keys, &cluster, &found(), (&primary, "me@host", 0)).await.unwrap();
            give_turn(&store, &keys, &cluster.voters[1]).await.unwrap();
            take_primary(&store, &keys).await.unwrap();
            let pause = PauseRecord { by: "me@host".into(), why: "network".into(), at: 1, until: None };
            let put = Txn::new().put(keys.pause(), serde_json::to_vec(&pause).unwrap());
            if theirs {
                assert!(store.txn(put).await.unwrap().succeeded);
                let refused = take_primary(&store, &keys).await;
                assert!(matches!(&refused, Err(AdoptError::Paused { why, .. }) if why == "network"), "{refused:?}");
            }
            finish(&store, &keys).await.unwrap();
            assert_eq!(store.get(&keys.adopt()).await.unwrap(), None);
            assert_eq!(store.get(&keys.pause()).await.unwrap().is_some(), theirs);
            assert!(store.txn(Txn::new().delete(keys.init()).delete(keys.term())).await.unwrap().succeeded);
        }
    }
}
