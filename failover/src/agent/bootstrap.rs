//! Creating a cluster: one node wins a key in etcd, runs initdb, fills in what the others and the proxies need, and
//! puts the first term. Every step can be repeated after an interruption.

use super::Agent;
use super::control::Control;
use super::env::{identifier, literal};
use super::founding;
use super::layout::fsync_dir;
use super::postgres::{As, ServerError};
use super::rewind::remove_tree;
use super::sql::{Sql, SqlError};
use super::tool::{self, ToolError};
use crate::config::agent::BootstrapRaw;
use crate::fsm::sync_set::Waits;
use crate::record::{Cause, InitRecord, Limits, MemberRecord, Phase, PolicyRecord, TermRecord};
use crate::store::{Compare, Range, StoreError, Txn};
use cluster::{Lsn, NodeId, Term};
use std::io;
use std::time::Duration;

/// Bound on one statement.
const BOUND: Duration = Duration::from_secs(30);

/// A creation that did not get on; tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootstrapError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("{what}")]
    File {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("line {line} of {file}: expected \"name\" \"SCRAM-SHA-256$…\"")]
    Userlist { file: String, line: usize },
    #[error("{node} has registered with data: the cluster exists, and etcd has lost it")]
    Exists { node: NodeId },
    #[error("a record could not be written or read")]
    Record(#[from] serde_json::Error),
}

impl Agent {
    /// Try to become the node that creates the cluster.
    pub(super) async fn claim_creation(&self) -> Result<(), BootstrapError> {
        let key = self.env.keys.init();
        let record = InitRecord { node: self.env.config.node.clone(), system_id: None };
        let txn = self.while_none_has_data().await?;
        let txn = txn
            .when(Compare::Absent(key.clone()))
            .when(Compare::Absent(self.env.keys.term()))
            .put(key, serde_json::to_vec(&record)?);
        let won = self.store.txn(txn).await?.succeeded;
        tracing::info!(node = %self.env.config.node, won, "asked to create the cluster");
        self.read_records().await?;
        Ok(())
    }

    /// Conditions of a transaction that must not come after another voter has registered with data: then there is a cluster,
    /// which etcd has lost.
    async fn while_none_has_data(&self) -> Result<Txn, BootstrapError> {
        let keys = &self.env.keys;
        let read = self.store.read(vec![Range::Prefix(keys.members())]).await?;
        let own = keys.member(&self.env.config.node);
        for found in read.under(&keys.members()).filter(|f| f.key != own) {
            let member: MemberRecord = serde_json::from_slice(&found.value)?;
            if member.system_id.is_some() {
                return Err(BootstrapError::Exists { node: member.node });
            }
        }
        let voters = self.env.cluster.voters.iter().map(|v| keys.member(v)).filter(|key| *key != own);
        Ok(voters.fold(Txn::new(), |txn, key| match read.get(&key) {
            Some(found) => txn.when(Compare::ModRevision(key, found.mod_revision)),
            None => txn.when(Compare::Absent(key)),
        }))
    }

    /// Create it: this node has won.
    pub(super) async fn create_cluster(&self) -> Result<(), BootstrapError> {
        let layout = &self.env.layout;
        let users = self.users()?;
        if !layout.has_data() {
            self.initdb().await?;
        }
        // Commits made while the cluster is filled have nobody to wait for.
        self.set_waits(&Waits::NOBODY).await.map_err(|source| BootstrapError::File { what: "settings", source })?;
        let sql = self.start_as(As::Creator, Term(u64::MAX)).await?;
        self.fill(&sql, &users).await?;
        let record_lsn = self.first_record(&sql).await?;
        let waits = super::presumed_waits(&self.env);
        self.set_waits(&waits).await.map_err(|source| BootstrapError::File { what: "settings", source })?;
        self.settings_read(BOUND).await?;
        self.put_first_term(record_lsn).await?;
        self.look_again(Duration::from_secs(1)).await;
        Ok(())
    }

    async fn initdb(&self) -> Result<(), BootstrapError> {
        let layout = &self.env.layout;
        let file = |what| move |source| BootstrapError::File { what, source };
        remove_tree(&layout.data_new()).map_err(file("an unfinished data directory could not be removed"))?;
        tracing::info!(node = %self.env.config.node, "running initdb");
        let mut command = self.env.program("initdb");
        command.arg("-D").arg(layout.data_new()).args(initdb_options(&self.env.config.bootstrap, self.env.version));
        tool::run(command, Duration::from_secs(300)).await?;
        std::fs::rename(layout.data_new(), layout.data()).map_err(file("the new data could not be moved"))?;
        fsync_dir(&layout.root).map_err(file("the new data could not be moved"))
    }

    /// Users, grants, databases, and the table of terms.
    async fn fill(&self, sql: &Sql, users: &[(String, String)]) -> Result<(), BootstrapError> {
        let what = "creating users";
        sql.batch(what, founding::QUIET, BOUND).await?;
        for role in founding::roles(&self.env.replication_password, &self.env.monitor_password) {
            sql.batch(what, &role, BOUND).await?;
        }
        for (name, verifier) in users {
            sql.batch(what, &founding::role(name, &format!("PASSWORD {}", literal(verifier))), BOUND).await?;
        }
        for (database, owner) in &self.env.config.bootstrap.databases {
            let exists = format!("SELECT count(*) FROM pg_database WHERE datname = {}", literal(database));
            if sql.value::<u32>("creating databases", &exists, BOUND).await? == 0 {
                let create = format!("CREATE DATABASE {} OWNER {}", identifier(database), identifier(owner));
                sql.batch("creating databases", &create, BOUND).await?;
            }
        }
        sql.batch("creating the table of terms", founding::TERMS, BOUND).await?;
        Ok(())
    }

    /// The first term's record; gives the end of its commit, or a later position.
    async fn first_record(&self, sql: &Sql) -> Result<Lsn, BootstrapError> {
        let insert = founding::first_term(1, &self.env.config.node);
        sql.batch("recording the first term", &insert, BOUND).await?;
        Ok(sql.value("recording the first term", "SELECT pg_current_wal_flush_lsn()", BOUND).await?)
    }

    async fn put_first_term(&self, record_lsn: Lsn) -> Result<(), BootstrapError> {
        let (keys, cluster) = (&self.env.keys, &self.env.cluster);
        let system_id = Control::read(&self.env).await?.system_id;
        let node = self.env.config.node.clone();
        let policy = PolicyRecord {
            epoch: 1,
            voters: cluster.voters.clone(),
            k: cluster.k,
            mode: cluster.mode,
            suspended: None,
            limits: Limits::default(),
            joint: None,
            rearmed: None,
        };
        let term = TermRecord {
            term: Term(1),
            phase: Phase::Opening,
            coordinator: self.env.holder.clone(),
            node: Some(node.clone()),
            cause: Cause::Bootstrap,
            prev: None,
            fork: None,
            forks: Vec::new(),
            xid_bound: None,
            xid_bounds: Vec::new(),
            record_lsn: Some(record_lsn),
            policy_epoch: 1,
            newest_timeline: None,
            holds_all_of: None,
            holds_written_of: None,
            history_lost: false,
            lossy_timelines: Vec::new(),
            chosen_before: None,
            data_loss_allowed: false,
        };
        let init = self.records.borrow().init.as_ref().map_or(0, |i| i.revision);
        let txn = self.while_none_has_data().await?;
        let txn = txn
            .when(Compare::Absent(keys.term()))
            .when(Compare::ModRevision(keys.init(), init))
            .put(keys.init(), serde_json::to_vec(&InitRecord { node, system_id: Some(system_id) })?)
            .put(keys.policy(), serde_json::to_vec(&policy)?)
            .put(keys.policy_of(policy.epoch), serde_json::to_vec(&policy)?)
            .put(keys.term(), serde_json::to_vec(&term)?);
        let created = self.store.txn(txn).await?.succeeded;
        tracing::info!(node = %self.env.config.node, term = 1, lsn = %record_lsn, created, "cluster created");
        self.read_records().await?;
        Ok(())
    }

    /// Users of the userlist with their verifiers: lines of `"name" "SCRAM-SHA-256$…"`, comments with `;` or `#`.
    fn users(&self) -> Result<Vec<(String, String)>, BootstrapError> {
        let path = &self.env.config.bootstrap.userlist;
        if path.as_os_str().is_empty() {
            return Ok(Vec::new());
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| BootstrapError::File { what: "bootstrap.userlist could not be read", source })?;
        parse_users(&text).map_err(|line| BootstrapError::Userlist { file: path.display().to_string(), line })
    }
}

/// What initdb is told besides where, by PostgreSQL's `version`.
fn initdb_options(bootstrap: &BootstrapRaw, version: u32) -> Vec<String> {
    let mut options = vec!["-U", "postgres", "-E", "UTF8", "--auth-local=peer", "--auth-host=scram-sha-256"];
    if version >= 140_000 {
        options.push("--no-instructions");
    }
    match (bootstrap.data_checksums, version) {
        (true, _) => options.push("--data-checksums"),
        // The default changed then, and with it came the word.
        (false, 180_000..) => options.push("--no-data-checksums"),
        (false, _) => {}
    }
    let segment = format!("--wal-segsize={}", bootstrap.wal_segment_size.0 >> 20);
    options.into_iter().map(str::to_owned).chain([format!("--locale={}", bootstrap.locale), segment]).collect()
}

/// The number of the first bad line as error.
fn parse_users(text: &str) -> Result<Vec<(String, String)>, usize> {
    let mut users = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        let parsed = quoted_word(line).and_then(|(name, rest)| Some((name, quoted_word(rest)?.0)));
        match parsed {
            Some((name, verifier)) if !name.is_empty() && verifier.starts_with("SCRAM-SHA-256$") => {
                users.push((name, verifier));
            }
            _ => return Err(i + 1),
        }
    }
    Ok(users)
}

/// A word in double quotes, where two of them mean one, and what follows it.
fn quoted_word(text: &str) -> Option<(String, &str)> {
    let mut rest = text.trim_start().strip_prefix('"')?;
    let mut word = String::new();
    loop {
        let end = rest.find('"')?;
        word.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                word.push('"');
                rest = after;
            }
            None => return Some((word, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::config::Size;

    #[test]
    fn initdb_of_each_version_is_told_only_what_it_knows() {
        let told = |data_checksums, version| {
            let bootstrap = BootstrapRaw { data_checksums, ..BootstrapRaw::default() };
            let options = initdb_options(&bootstrap, version);
            ["--no-instructions", "--data-checksums", "--no-data-checksums"]
                .map(|o| options.iter().any(|told| told == o))
        };
        assert_eq!(told(true, 130_023), [false, true, false]);
        assert_eq!(told(false, 130_023), [false; 3]);
        assert_eq!(told(true, 150_018), [true, true, false]);
        assert_eq!(told(false, 170_010), [true, false, false]);
        assert_eq!(told(true, 180_006), [true, true, false]);
        assert_eq!(told(false, 180_006), [true, false, true]);
        let bootstrap = BootstrapRaw { wal_segment_size: Size(64 << 20), ..BootstrapRaw::default() };
        assert!(initdb_options(&bootstrap, 150_018).contains(&"--wal-segsize=64".to_owned()), "it counts in MiB");
    }

    #[test]
    fn a_userlist_is_read_and_a_plain_password_refused_with_its_line() {
        let good =
            "; users\n\"app\" \"SCRAM-SHA-256$4096:c2FsdA==$a:b\"\n\"we\"\"ird\" \"SCRAM-SHA-256$1:a$b:c\" \"\"\n";
        let users = parse_users(good).unwrap();
        assert_eq!(users[1].0, "we\"ird");
        assert_eq!(users.len(), 2);
        assert_eq!(parse_users("\n\"app\" \"secret\"\n"), Err(2));
        assert_eq!(parse_users("app SCRAM-SHA-256$1"), Err(1));
    }
}
