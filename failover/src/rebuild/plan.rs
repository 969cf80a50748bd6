//! What is said before a cluster's records are made anew, and the records: from what its agents remember. PURE.
//!
//! The term is above all promises and above every timeline, so that whoever was primary, and whatever round was under way,
//! is superseded; it is left recruiting, for the managers to go on with. It says that its history is lost: as many nodes
//! must be frozen as suffice whoever was primary last.

use crate::api::{AgentState, PostgresState};
use crate::fsm::sync_set::sufficient_for_any;
use crate::record::{Cause, FenceRecord, InitRecord, Phase, PolicyRecord, Tenure, TermRecord, WallMillis};
use cluster::{NodeId, Term, TimelineId};
use std::collections::{BTreeMap, BTreeSet};

/// What was found in etcd and heard from the agents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// `cluster.voters` of the configuration.
    pub configured: Vec<NodeId>,
    /// What each registered agent answered, or why it did not.
    pub agents: BTreeMap<NodeId, Result<AgentState, String>>,
    /// The term that etcd knows.
    pub term: Option<Term>,
    /// The identifier of the data of the cluster that etcd knows.
    pub system_id: Option<String>,
    /// The newest term and the newest policy's epoch that a registered proxy acts on.
    pub proxied: (Term, u64),
    /// A manager leads.
    pub led: bool,
}

/// What would be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What was found and what will be done, in order.
    pub steps: Vec<String>,
    /// What may go wrong, and what is gone.
    pub notes: Vec<String>,
    /// What forbids it.
    pub obstacles: Vec<String>,
    /// The records, when nothing forbids it.
    pub records: Option<Rebuilt>,
}

/// The records that everything else follows from.
#[derive(Clone, Debug, PartialEq)]
pub struct Rebuilt {
    /// A term above all others, recruiting.
    pub term: TermRecord,
    /// The newest that any agent has read.
    pub policy: PolicyRecord,
    /// Whose data they are.
    pub init: InitRecord,
    /// Of the nodes whose agents still obey a fence.
    pub fences: BTreeMap<NodeId, FenceRecord>,
}

/// So many terms are left free where a node is left out, which may have promised or made some that nobody else knows.
const GAP: u64 = 16;

/// Does it answer for a node whose disk was replaced? What it had promised it no longer knows.
fn has_forgotten(state: &AgentState) -> bool {
    state.promise == Term(0) && state.policy.is_none() && matches!(state.postgres, PostgresState::Absent)
}

/// Decide whether it can be done, without the nodes of `without`. `by` and `now` are for display.
pub fn plan(found: &Found, without: &BTreeSet<NodeId>, by: &str, now: WallMillis) -> Plan {
    let mut plan = Plan::default();
    let answers = found.agents.values().filter_map(|a| a.as_ref().ok());
    let heard: Vec<&AgentState> = answers.filter(|s| !has_forgotten(s)).collect();
    let policy = heard.iter().filter_map(|s| s.policy.as_ref()).max_by_key(|p| p.epoch);
    check_etcd(found, &heard, &mut plan.obstacles);
    let absent = absent(found, policy);
    for (node, why) in &absent {
        if !without.contains(node) {
            plan.obstacles.push(format!(
                "{node} {why}: it may have promised a later term and know a newer policy; start its agent, or leave it out \
                 with --without {node}"
            ));
        }
    }
    for node in without {
        match found.agents.get(node) {
            Some(Ok(state)) if !has_forgotten(state) => {
                plan.obstacles.push(format!("{node} answers: there is no need to leave it out"))
            }
            None if !absent.contains_key(node) => plan.obstacles.push(format!("there is no node {node}")),
            _ => {}
        }
    }
    let ids: BTreeSet<&String> = heard.iter().flat_map(|s| s.system_id.iter().chain(&s.memory_of)).collect();
    match ids.len() {
        0 => plan.obstacles.push("no agent that answers has data".into()),
        1 => {}
        _ => plan.obstacles.push(format!("the nodes hold data of different clusters: {}", of_each(&heard))),
    }
    let Some(policy) = policy else {
        plan.obstacles.push("no agent that answers remembers a policy".into());
        return plan;
    };
    check_proxies(found, policy, without, &mut plan);
    let last = last(&heard);
    if last.is_none() {
        plan.obstacles.push("no node's timeline is known yet: wait until a PostgreSQL answers or is stopped".into());
    }
    let (Some(system_id), Some(last)) = (ids.first(), last) else { return plan };
    let known = above(&heard, found.proxied.0);
    let term = if without.is_empty() { known } else { Term(known.0 + GAP) };
    if found.term.is_none() {
        say(&mut plan, &heard, policy, term);
        warn(&mut plan, &heard, policy, &absent, without);
    }
    if plan.obstacles.is_empty() {
        plan.records = Some(records(term, last, policy, (*system_id).clone(), &heard, (by, now)));
    }
    plan
}

fn check_etcd(found: &Found, heard: &[&AgentState], obstacles: &mut Vec<String>) {
    if let Some(term) = found.term {
        let other = |s: &&&AgentState| s.promise > Term(0) && s.system_id.is_some() && s.system_id != found.system_id;
        let stray = found.system_id.as_ref().filter(|_| heard.iter().any(|s| other(&s)));
        obstacles.push(match stray {
            Some(id) => format!(
                "etcd knows, in term {term}, a cluster whose data have the system identifier {id}; the agents tell {}. If that one \
                 was created when etcd was empty, by a node without data: stop the agents of its nodes, remove their new and \
                 empty data, delete all keys below etcd.prefix, and begin again",
                of_each(heard)
            ),
            None => format!(
                "etcd knows this cluster, in term {term}: nothing is to be rebuilt. After a restored backup the managers begin a \
                 term above all promises by themselves; `pgtenure status` says what they wait for"
            ),
        });
    }
    if !found.led {
        obstacles.push("no manager leads: start the managers first".into());
    }
}

/// A proxy has seen a policy that no agent which answers has.
fn check_proxies(found: &Found, policy: &PolicyRecord, without: &BTreeSet<NodeId>, plan: &mut Plan) {
    let epoch = found.proxied.1;
    if epoch <= policy.epoch {
        return;
    }
    let known = format!(
        "a proxy acts on the policy of epoch {epoch}, and the newest that an agent remembers is {}",
        policy.epoch
    );
    if without.is_empty() {
        plan.obstacles.push(format!("{known}: find the agent that has read it, or leave it out with --without"));
    } else {
        plan.notes.push(format!("{known}: who is left out may know it (a suspension, other voters)"));
    }
}

/// Nodes that ought to be there and do not answer, and how that shows.
fn absent(found: &Found, policy: Option<&PolicyRecord>) -> BTreeMap<NodeId, String> {
    let voters = policy.into_iter().flat_map(|p| p.quorums().flat_map(|(voters, _)| voters));
    let expected: BTreeSet<&NodeId> = found.configured.iter().chain(voters).chain(found.agents.keys()).collect();
    let one = |node: &NodeId| {
        match found.agents.get(node) {
        Some(Ok(state)) if has_forgotten(state) => {
            Some("answers, but has no data and remembers nothing (a new disk?)".to_owned())
        }
        Some(Ok(_)) => None,
        Some(Err(why)) => Some(format!("does not answer ({why})")),
        None if policy.is_some_and(|p| !p.counts(node)) => Some(
            "has not registered, and only cluster.voters of this file names it, not the newest policy (if it was removed, take it \
             out of the file)"
                .to_owned(),
        ),
        None => Some("has not registered".to_owned()),
    }
    };
    expected.into_iter().filter_map(|n| Some((n.clone(), one(n)?))).collect()
}

fn of_each(heard: &[&AgentState]) -> String {
    let ids = |s: &AgentState| -> BTreeSet<String> { s.system_id.iter().chain(&s.memory_of).cloned().collect() };
    let all = |s: &&AgentState| ids(s).into_iter().map(|id| format!("{} {id}", s.node)).collect::<Vec<_>>();
    heard.iter().flat_map(all).collect::<Vec<_>>().join(", ")
}

/// The timeline of the node's last WAL.
fn timeline(state: &AgentState) -> Option<TimelineId> {
    match &state.postgres {
        PostgresState::Primary(p) => Some(p.timeline),
        PostgresState::Standby(s) => Some(s.timeline),
        PostgresState::Stopped { timeline, .. } => Some(*timeline),
        PostgresState::Absent | PostgresState::Starting | PostgresState::Hung { .. } => None,
    }
}

/// The next term after every promise, every term that was read as open or that a proxy acts on, and every timeline, which a
/// term's number must not be below either.
fn above(heard: &[&AgentState], proxied: Term) -> Term {
    let timelines = heard.iter().filter_map(|s| timeline(s)).map(|t| Term(u64::from(t.0)));
    heard.iter().map(|s| s.promise.max(s.opened)).chain(timelines).chain([proxied]).max().unwrap_or(Term(0)).next()
}

/// Who was primary last, as far as one can see: who is, else who has been, or who is followed, on the newest timeline. A
/// wish only: the arithmetic goes by anybody.
fn last(heard: &[&AgentState]) -> Option<Tenure> {
    let claim = |s: &&AgentState| {
        let (rank, node) = match &s.postgres {
            PostgresState::Primary(_) => (3, s.node.clone()),
            PostgresState::Stopped { was_primary: true, .. } => (2, s.node.clone()),
            PostgresState::Standby(p) => (1, p.streams_from.clone().unwrap_or_else(|| s.node.clone())),
            _ => (0, s.node.clone()),
        };
        Some((timeline(s)?, rank, node))
    };
    let (timeline, _, node) = heard.iter().filter_map(claim).max_by_key(|(timeline, rank, _)| (*timeline, *rank))?;
    Some(Tenure { term: Term(u64::from(timeline.0)), node, timeline })
}

fn standing(state: &AgentState) -> String {
    let postgres = match &state.postgres {
        PostgresState::Absent => "no data".to_owned(),
        PostgresState::Stopped { timeline, was_primary, checkpoint_lsn, .. } => {
            let role = if *was_primary { "a stopped primary" } else { "a stopped standby" };
            format!("{role}, timeline {timeline}, checkpoint at {checkpoint_lsn}")
        }
        PostgresState::Starting => "PostgreSQL is starting".to_owned(),
        PostgresState::Standby(s) => format!("a standby, timeline {}, WAL up to {}", s.timeline, s.receive_lsn),
        PostgresState::Primary(p) => format!("a primary, timeline {}, WAL up to {}", p.timeline, p.insert_lsn),
        PostgresState::Hung { for_ms } => format!("PostgreSQL does not answer for {for_ms} ms"),
    };
    let policy = state.policy.as_ref().map_or_else(|| "none".to_owned(), |p| p.epoch.to_string());
    format!("{}: {postgres}; promised term {}, policy epoch {policy}", state.node, state.promise)
}

fn say(plan: &mut Plan, heard: &[&AgentState], policy: &PolicyRecord, term: Term) {
    plan.steps.extend(heard.iter().map(|s| standing(s)));
    let voters: Vec<&str> = policy.voters.iter().map(NodeId::as_str).collect();
    let suspended = if policy.suspended.is_some() { ", suspended" } else { "" };
    plan.steps.push(format!(
        "in etcd: the policy of epoch {}, {}{suspended}, k = {} of {}",
        policy.epoch,
        policy.mode.as_str(),
        policy.k,
        voters.join(", ")
    ));
    plan.steps.push(format!("in etcd: term {term}, above every promise, every open term and every timeline heard of"));
    // A manager freezes no other.
    let able = heard.iter().filter(|s| s.system_id.is_some() && !s.fenced && s.quarantine.is_none());
    let names: BTreeSet<NodeId> = able.map(|s| s.node.clone()).collect();
    let enough = if sufficient_for_any(policy, &names) {
        "those that answer with data suffice"
    } else {
        "those that answer with data, unfenced and not quarantined, do not suffice: they wait for more, or for `pgtenure failover --allow-data-loss`"
    };
    plan.steps.push(format!(
        "the managers freeze as many voters as suffice whoever was primary ({enough}) and promote the one whose WAL ends last \
         (about a second without writes)"
    ));
}

fn warn(
    plan: &mut Plan,
    heard: &[&AgentState],
    policy: &PolicyRecord,
    absent: &BTreeMap<NodeId, String>,
    without: &BTreeSet<NodeId>,
) {
    for (node, why) in absent.iter().filter(|(n, _)| without.contains(n)) {
        plan.notes.push(format!(
            "{node} is left out: it {why}. If it knows a policy newer than epoch {} (a suspension, other voters), what it has \
             acknowledged under that can be lost. If it has promised more than is known here, the managers begin another \
             term above that when its agent is back",
            policy.epoch
        ));
    }
    for s in heard.iter().filter(|s| s.fenced) {
        plan.notes.push(format!("{} stays fenced, as its agent remembers", s.node));
    }
    plan.notes.push(
        "gone with etcd: the history of terms, reports of losses, pauses, marks of maintenance, fences that no agent remembers, \
         and what the budget of failovers has counted"
            .into(),
    );
}

fn records(
    term: Term,
    last: Tenure,
    policy: &PolicyRecord,
    system_id: String,
    heard: &[&AgentState],
    (by, now): (&str, WallMillis),
) -> Rebuilt {
    let init = InitRecord { node: last.node.clone(), system_id: Some(system_id) };
    let term = TermRecord {
        term,
        phase: Phase::Recruiting,
        coordinator: by.to_owned(),
        node: None,
        cause: Cause::Restart,
        prev: Some(last),
        fork: None,
        forks: Vec::new(),
        xid_bound: None,
        xid_bounds: Vec::new(),
        record_lsn: None,
        policy_epoch: policy.epoch,
        newest_timeline: None,
        holds_all_of: None,
        holds_written_of: None,
        history_lost: true,
        lossy_timelines: Vec::new(),
        chosen_before: None,
        data_loss_allowed: false,
    };
    let fence = || FenceRecord { by: by.to_owned(), at: now, stop_writes: true, removed: false };
    let fences = heard.iter().filter(|s| s.fenced).map(|s| (s.node.clone(), fence())).collect();
    Rebuilt { term, policy: policy.clone(), init, fences }
}

#[cfg(test)]
mod tests;
