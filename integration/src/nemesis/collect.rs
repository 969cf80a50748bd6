//! What is there before a run, and everything that can be asked when it is over.

use super::deeds::deeds;
use super::load::{content, create};
use super::records;
use super::run::WRITES_AGAIN;
use super::told::{Content, Told};
use super::world::{PROXIES, World};
use crate::client::Client;
use crate::cluster::Active;
use crate::config_file::NODES;
use crate::wait::wait_for;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A world that is to be used is well within this: what a run before it has broken may have to be copied.
const WELL_WITHIN: Duration = Duration::from_secs(120);
/// What is written by now standbys have replayed within this.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);

/// Since when the product's records are of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    /// The term before it.
    pub(super) term: u64,
    /// The policy's epoch.
    pub(super) epoch: u64,
}

/// Fresh tables, present on every node.
pub(super) fn prepare(world: &World) -> Result<Active, String> {
    world.healthy(WELL_WITHIN);
    let before = wait_for("an open term", WRITES_AGAIN, || world.active());
    let mut primary = Client::connect(&world.target(PROXIES[0])).map_err(|e| e.to_string())?;
    create(&mut primary).map_err(|e| e.to_string())?;
    match &behind(world, &before.primary, &[])?[..] {
        [] => Ok(before),
        late => Err(format!("{late:?} did not replay what {} has", before.primary)),
    }
}

/// Wait until every standby has replayed what the primary has written by now; who has not.
fn behind(world: &World, primary: &str, away: &[&str]) -> Result<Vec<&'static str>, String> {
    let at = world.superuser(primary, "select pg_current_wal_lsn()")?;
    let sql = format!("select pg_last_wal_replay_lsn() >= '{at}'");
    let start = Instant::now();
    let behind = |node: &&str| {
        while world.superuser(node, &sql).ok().as_deref() != Some("t") {
            if start.elapsed() > SETTLED_WITHIN {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    };
    Ok(NODES.into_iter().filter(|n| *n != primary && !away.contains(n)).filter(behind).collect())
}

/// Everything that can be asked when all is over, but for what clients were told. What a node holds that is `away`, or behind,
/// tells nothing; what its agent did and keeps does. Without an open term nobody can say what was kept.
pub(super) fn collect(world: &World, since: Since, after: Option<&Active>, away: &[&str]) -> Result<Told, String> {
    let mut told = Told::default();
    for node in NODES {
        agents(world, node, &mut told)?;
        for (timeline, body) in history_files(world, node) {
            told.histories.insert((timeline, node.to_owned()), body);
        }
    }
    let Some(after) = after else { return Ok(told) };
    let mut away = away.to_vec();
    away.extend(behind(world, &after.primary, &away)?);
    for node in NODES.into_iter().filter(|n| !away.contains(n)) {
        let read = || {
            let mut client = Client::connect(&world.node_target(node)).map_err(|e| e.to_string())?;
            content(&mut client).map_err(|e| e.to_string())
        };
        let mut content: Content = wait_for(&format!("the content of {node}"), SETTLED_WITHIN, read);
        content.terms = terms(world, node)?;
        told.nodes.insert(node.to_owned(), content);
    }
    let timeline = "select ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int";
    let timeline = world.superuser(&after.primary, timeline)?.parse().map_err(|e| format!("a timeline: {e}"))?;
    (told.primary, told.timeline) = (after.primary.clone(), timeline);
    let reports: BTreeMap<u64, Value> = records::reports(world, since.term, after.term);
    (told.doubts, told.provisional) = (records::doubts(&reports), records::provisional(&reports));
    records::promise(world, since)?.told(&reports, &mut told);
    told.recruits = records::recruits(world);
    told.slots = records::slots(world, &after.primary, &away);
    told.away = away.into_iter().map(str::to_owned).collect();
    Ok(told)
}

/// What a node's agent did and keeps.
fn agents(world: &World, node: &str, told: &mut Told) -> Result<(), String> {
    let log = std::fs::read(world.log_file(node, "agent")).map_err(|e| format!("the log of {node}'s agent: {e}"))?;
    told.deeds.insert(node.to_owned(), deeds(&String::from_utf8_lossy(&log)));
    let dir = world.scratch().path().join(node);
    let memory = std::fs::read_to_string(dir.join("agent.json")).map_err(|e| format!("{node}'s promise: {e}"))?;
    let memory: Value = serde_json::from_str(&memory).map_err(|e| format!("{node}'s promise: {e}"))?;
    told.promises.insert(node.to_owned(), memory["promise"].as_u64().ok_or("no promise")?);
    let kept = std::fs::read_dir(dir.join("lost")).into_iter().flatten().flatten().map(|e| e.path());
    told.kept.extend(kept.filter(|d| d.join("report.json").exists()).map(|d| d.display().to_string()));
    Ok(())
}

/// A node's table of terms, in the order in which they were written.
fn terms(world: &World, node: &str) -> Result<Vec<(u64, String)>, String> {
    let table = world.superuser(node, "select term, node from pgtenure.term order by ctid")?;
    let pair = |line: &str| line.split_once('|').and_then(|(t, n)| Some((t.parse().ok()?, n.to_owned())));
    Ok(table.lines().filter_map(pair).collect())
}

/// The history files of a node that are not empty, up to the last fork: whoever was to be promoted there has put a mark behind it,
/// for the next one to begin with.
fn history_files(world: &World, node: &str) -> Vec<(u64, String)> {
    let dir = world.scratch().path().join(node).join("data/pg_wal");
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let history = |path: std::path::PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".history")?.to_owned();
        let body = std::fs::read_to_string(&path).ok()?;
        let lines: Vec<&str> = body.lines().filter(|line| !line.is_empty()).collect();
        let forks = lines.iter().rposition(|line| !line.starts_with('#'))?;
        Some((u64::from_str_radix(&name, 16).ok()?, lines[..=forks].join("\n")))
    };
    files.filter_map(|f| history(f.path())).collect()
}
