//! `pgtenure rebuild`: the plan, and with `--yes` the records; then it waits for the managers to open the term.

use super::{failed, operator};
use crate::args::RebuildArgs;
use crate::config;
use crate::{EXIT_FAILED, EXIT_REFUSED};
use anyhow::{Context, Result, bail};
use cluster::NodeId;
use cluster::keys::Keys;
use failover::rebuild::{self, plan};
use failover::record::Phase;
use failover::store::etcd::EtcdStore;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two looks at the term.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Carry out `pgtenure rebuild`.
pub fn run(args: &RebuildArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&anyhow::Error::new(e).context("cannot start the runtime")),
    };
    match runtime.block_on(rebuild_records(args)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

async fn rebuild_records(args: &RebuildArgs) -> Result<ExitCode> {
    let config = config::load(&args.config)?;
    let Some(cluster) = config.cluster.clone() else {
        bail!("{} has neither role agent nor role manager: give the file of one", args.config.display());
    };
    let secret = config::read_secret(&cluster.secret_file)
        .with_context(|| format!("cannot read the shared secret {}", cluster.secret_file.display()))?;
    let node = |name: &String| name.parse::<NodeId>().with_context(|| format!("--without {name}"));
    let without: BTreeSet<NodeId> = args.without.iter().map(node).collect::<Result<_>>()?;
    let store = EtcdStore::new(&config.etcd).context("cannot reach etcd")?;
    let keys = Keys::new(&config.etcd.prefix, &config.name);
    let found = rebuild::survey(&store, &keys, &cluster, &secret).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let plan = plan::plan(&found, &without, &operator(), now);
    for (i, step) in plan.steps.iter().enumerate() {
        println!("{}. {step}", i + 1);
    }
    plan.notes.iter().for_each(|note| println!("note: {note}"));
    plan.obstacles.iter().for_each(|obstacle| eprintln!("refused: {obstacle}"));
    let Some(records) = &plan.records else { return Ok(ExitCode::from(EXIT_REFUSED)) };
    if !args.yes {
        println!("nothing was changed; --yes carries it out");
        return Ok(ExitCode::SUCCESS);
    }
    rebuild::begin(&store, &keys, records).await?;
    println!("the records are written; the managers go on");
    open(args, &store, &keys, records.term.term).await
}

/// Wait until a term from `least` on is open.
async fn open(args: &RebuildArgs, store: &EtcdStore, keys: &Keys, least: cluster::Term) -> Result<ExitCode> {
    let begun = Instant::now();
    loop {
        let open = rebuild::term(store, keys).await?.filter(|t| t.term >= least && t.phase == Phase::Active);
        if let Some(term) = open {
            let node = term.node.map_or_else(|| "nobody".to_owned(), |n| n.to_string());
            println!("term {} is open on {node}, after {} ms", term.term, begun.elapsed().as_millis());
            return Ok(ExitCode::SUCCESS);
        }
        if begun.elapsed() >= args.wait {
            eprintln!(
                "no term is open after {} s; it goes on: `pgtenure status` says what it waits for",
                begun.elapsed().as_secs()
            );
            return Ok(ExitCode::from(EXIT_FAILED));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
