//! `pgtenure adopt`: the plan, and with `--yes` its steps, each waited for and told. Given again it goes on where it was.

use super::{failed, operator};
use crate::args::AdoptArgs;
use crate::config;
use crate::{EXIT_FAILED, EXIT_REFUSED};
use anyhow::{Context, Result, bail};
use cluster::NodeId;
use cluster::keys::Keys;
use failover::adopt::{self, plan};
use failover::config::cluster::ClusterConfig;
use failover::record::{Mode, Phase};
use failover::store::etcd::EtcdStore;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_postgres::{Client, NoTls};

/// Bound on a login.
const LOGIN_BOUND: Duration = Duration::from_secs(10);
/// For so long those whose turn is under way may come to its end before it is taken back.
const UNDO_WAIT: Duration = Duration::from_secs(30);
/// Between two looks while nothing is stopped.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks while writes wait.
const LOOK_OFTEN: Duration = Duration::from_millis(50);

/// What all steps need.
struct Adoption<'a> {
    args: &'a AdoptArgs,
    store: EtcdStore,
    keys: Keys,
    cluster: ClusterConfig,
    agent: failover::config::agent::AgentConfig,
    primary: Client,
}

/// Carry out `pgtenure adopt`.
pub fn run(args: &AdoptArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&anyhow::Error::new(e).context("cannot start the runtime")),
    };
    match runtime.block_on(adopt_cluster(args)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

async fn adopt_cluster(args: &AdoptArgs) -> Result<ExitCode> {
    let config = config::load(&args.config)?;
    let (Some(agent), Some(cluster)) = (config.agent.clone(), config.cluster.clone()) else {
        bail!("{} has no role agent: give the file of the agent on the primary's host", args.config.display());
    };
    let store = EtcdStore::new(&config.etcd).context("cannot reach etcd")?;
    let keys = Keys::new(&config.etcd.prefix, &config.name);
    if args.undo {
        return undo(args, &store, &keys).await;
    }
    let primary = connect(&args.primary).await?;
    let adoption = Adoption { args, store, keys, cluster, agent, primary };
    let found = adopt::survey(&adoption.primary).await?;
    let standing = adopt::standing(&adoption.store, &adoption.keys).await?;
    match (&standing.begun, &standing.term) {
        (None, Some(term)) => {
            bail!("etcd knows this cluster already, in term {}: there is nothing to adopt", term.term)
        }
        (Some(begun), _) if begun.system_id != found.system_id => {
            bail!("another cluster is being adopted under this name")
        }
        (Some(_), _) if args.yes => {
            println!("going on with an adoption that was begun");
            return adoption.finish(&found).await;
        }
        _ => {}
    }
    let wanted = adopt::wanted(&adoption.store, &adoption.keys, &adoption.cluster, &adoption.agent.node).await?;
    let plan = plan::plan(&found, &wanted);
    show(&plan);
    if !plan.obstacles.is_empty() {
        return Ok(ExitCode::from(EXIT_REFUSED));
    }
    if !args.yes {
        println!("nothing was changed; --yes carries it out");
        return Ok(ExitCode::SUCCESS);
    }
    adoption.prepare(&found).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let who = (&adoption.agent.node, operator());
    // Where the primary is now: the survey was before the preparation.
    let found = adopt::survey(&adoption.primary).await?;
    adopt::begin(&adoption.store, &adoption.keys, &adoption.cluster, &found, (who.0, &who.1, now)).await?;
    println!("the cluster is on record, paused; the standbys' agents begin");
    adoption.finish(&found).await
}

async fn connect(dsn: &str) -> Result<Client> {
    let login = tokio::time::timeout(LOGIN_BOUND, login(dsn)?.connect(NoTls)).await;
    let login = login.with_context(|| format!("the primary does not let in within {} s", LOGIN_BOUND.as_secs()))?;
    let (primary, connection) = login.context("cannot connect to the primary")?;
    tokio::spawn(connection);
    Ok(primary)
}

/// Of those that had their turn the ones that do not follow the primary under their agents, once they have had some time for it:
/// an agent that is just moving its server would not know any more whom to follow. None where that cannot be seen.
async fn under_way(args: &AdoptArgs, store: &EtcdStore, keys: &Keys) -> Result<Vec<NodeId>> {
    let begun = adopt::standing(store, keys).await?.begun;
    let turns = begun.filter(|a| !a.take_primary).and_then(|a| a.turns).unwrap_or_default();
    if turns.is_empty() {
        return Ok(turns);
    }
    let deadline = Instant::now() + args.wait.min(UNDO_WAIT);
    let unseen = |error: anyhow::Error| {
        eprintln!("who follows the primary cannot be seen: {error:#}");
        Ok(Vec::new())
    };
    let primary = match connect(&args.primary).await {
        Ok(primary) => primary,
        Err(error) => return unseen(error),
    };
    loop {
        let follow = match adopt::following(&primary).await {
            Ok(follow) => follow,
            Err(error) => return unseen(error.into()),
        };
        let left: Vec<NodeId> = turns.iter().filter(|t| !follow.iter().any(|f| f == t.as_str())).cloned().collect();
        if left.is_empty() || Instant::now() >= deadline {
            return Ok(left);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn undo(args: &AdoptArgs, store: &EtcdStore, keys: &Keys) -> Result<ExitCode> {
    let left = under_way(args, store, keys).await?;
    let moved = match adopt::undo(store, keys).await {
        Err(error @ (adopt::AdoptError::PrimaryTaken | adopt::AdoptError::NotBegun)) => {
            eprintln!("refused: {error}");
            return Ok(ExitCode::from(EXIT_REFUSED));
        }
        moved => moved?,
    };
    println!("etcd does not know the cluster any more; the primary is as it was, but for two roles and a table");
    for node in &moved {
        if left.contains(node) {
            println!("{node} does not follow the primary under its agent: it serves no reads until this is done:");
        }
        println!(
            "{node} had its turn. If its directory was moved: stop the agent and then its PostgreSQL, move data below \
             agent.data_dir back to agent.adopt, set primary_conninfo there and start it as before"
        );
    }
    if !moved.is_empty() {
        println!(
            "until then the agents there remember the term: never `pgtenure rebuild` from them, the primary is in no term"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// How to log in to the primary. Whatever database is named, it is `postgres`: agents look for what is created there.
fn login(dsn: &str) -> Result<tokio_postgres::Config> {
    let mut login: tokio_postgres::Config = dsn.parse().context("--primary cannot be understood")?;
    super::with_password(&mut login);
    let own = login.get_options().unwrap_or_default().to_owned();
    login.dbname("postgres").options(format!("{own} {}", cluster::sessions::DEFAULTS));
    Ok(login)
}

fn show(plan: &plan::Plan) {
    for (i, step) in plan.steps.iter().enumerate() {
        println!("{}. {step}", i + 1);
    }
    plan.notes.iter().for_each(|note| println!("note: {note}"));
    plan.obstacles.iter().for_each(|obstacle| eprintln!("refused: {obstacle}"));
}

fn secret(file: &Path) -> Result<cluster::secret::Secret> {
    config::read_secret(file).with_context(|| format!("cannot read {}", file.display()))
}

impl Adoption<'_> {
    /// Roles and the table, and that the standbys' user can log in.
    async fn prepare(&self, found: &plan::Found) -> Result<()> {
        let (repl, monitor) =
            (secret(&self.agent.replication_password_file)?, secret(&self.agent.monitor_password_file)?);
        adopt::prepare(&self.primary, found, &self.agent.node, &repl, &monitor).await?;
        let mut login = tokio_postgres::Config::new();
        login.host(&self.agent.advertise_host).port(self.agent.postgres_port).user("pgtenure_repl");
        login.password(repl.expose()).dbname("postgres");
        let tried = tokio::time::timeout(LOGIN_BOUND, login.connect(NoTls)).await.map_err(anyhow::Error::new);
        let tried = tried.and_then(|answered| Ok(answered.map(|(_, connection)| drop(connection))?));
        tried.with_context(|| {
            "pgtenure_repl cannot log in to the primary; its pg_hba.conf needs, for every node's address, the lines\n\
             host replication pgtenure_repl ADDRESS scram-sha-256\n\
             host postgres pgtenure_repl ADDRESS scram-sha-256\n\
             and a reload. Roles and a table were created on the primary, nothing else was changed"
        })
    }

    /// Standbys, then the primary, then protection.
    async fn finish(&self, found: &plan::Found) -> Result<ExitCode> {
        if let Some(left) = self.standbys().await? {
            eprintln!(
                "{left} do not stream from the primary yet; it serves as before, and nothing has been stopped there. \
                 `pgtenure status` and the agents' logs say more; give the command again to go on, or with --undo to go back"
            );
            return Ok(ExitCode::from(EXIT_FAILED));
        }
        println!("all standbys stream under their agents; writes stop");
        let begun = Instant::now();
        adopt::take_primary(&self.store, &self.keys).await?;
        let old = u64::from(found.timeline.0);
        let deadline = begun + self.args.wait;
        let term = loop {
            let standing = adopt::standing(&self.store, &self.keys).await?;
            let open = standing.term.filter(|t| t.term.0 > old && t.phase == Phase::Active);
            if let Some(term) = open {
                break term;
            }
            if Instant::now() >= deadline {
                eprintln!(
                    "the primary is being taken over since {} s and no term is open yet: `pgtenure status` says what it \
                     waits for",
                    begun.elapsed().as_secs()
                );
                return Ok(ExitCode::from(EXIT_FAILED));
            }
            tokio::time::sleep(LOOK_OFTEN).await;
        };
        let node = term.node.map_or_else(|| "nobody".to_owned(), |n| n.to_string());
        println!("term {} is open on {node}, after {} ms without writes", term.term, begun.elapsed().as_millis());
        self.protection(deadline).await
    }

    /// One standby after the other, until each follows by its node's name; who does not, if that takes too long.
    async fn standbys(&self) -> Result<Option<String>> {
        let others: Vec<_> = self.cluster.voters.iter().filter(|v| **v != self.agent.node).collect();
        let mut told = BTreeSet::new();
        let mut deadline = Instant::now() + self.args.wait;
        loop {
            let follow = adopt::following(&self.primary).await?;
            let left = |v: &&&NodeId| !follow.iter().any(|f| f == v.as_str());
            let Some(next) = others.iter().find(left) else {
                // Those that streamed already, of an adoption that is gone on with, have had theirs.
                for other in &others {
                    adopt::give_turn(&self.store, &self.keys, other).await?;
                }
                return Ok(None);
            };
            // Another command has taken it back. That etcd does not answer says nothing.
            if adopt::standing(&self.store, &self.keys).await.is_ok_and(|standing| standing.begun.is_none()) {
                return Err(adopt::AdoptError::NotBegun.into());
            }
            // One that has streamed and does so no more gets no other time.
            if told.insert(next) {
                adopt::give_turn(&self.store, &self.keys, next).await?;
                println!("waiting for {next}");
                deadline = Instant::now() + self.args.wait;
            }
            if Instant::now() >= deadline {
                let left: Vec<&str> = others.iter().filter(left).map(|v| v.as_str()).collect();
                return Ok(Some(left.join(", ")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn protection(&self, deadline: Instant) -> Result<ExitCode> {
        loop {
            let policy = adopt::standing(&self.store, &self.keys).await?.policy;
            match policy {
                Some(p) if p.mode == Mode::Async => break,
                Some(p) if p.suspended.is_none() => {
                    println!("commits wait for {} standbys", p.k);
                    break;
                }
                _ if Instant::now() >= deadline => {
                    eprintln!("adopted, but commits do not wait for standbys yet: `pgtenure status` says why");
                    return Ok(ExitCode::from(EXIT_FAILED));
                }
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
        println!("adopted");
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_database_is_named_the_one_that_agents_use_is_prepared() {
        for dsn in ["postgres://admin@db1", "postgres://admin@db1/shop", "host=db1 user=admin", "host=db1 dbname=shop"]
        {
            assert_eq!(login(dsn).unwrap().get_dbname(), Some("postgres"), "{dsn}");
        }
    }
}
