//! What an operator sees: the cluster as the leading manager knows it, and whether losing the primary would be safe.
//! PURE.

use crate::api::{AgentState, PostgresState};
use crate::fsm::blocker::{Blocker, Verdict, list};
use crate::fsm::observe::millis;
use crate::fsm::planner::Planner;
use crate::fsm::sync_set;
use crate::record::{
    FenceRecord, JournalRecord, MaintenanceRecord, Mode, PauseRecord, Phase, PolicyRecord, Standing, Suspension,
};
use cluster::{Endpoint, Instant, Lsn, NodeId, Role, Term, TimelineId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// etcd counts as gone when it has not been read for so long: longer than it takes to elect its leader.
const ETCD_SILENT: Duration = Duration::from_secs(5);

/// `/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster's name.
    pub cluster: String,
    /// The newest term; `None` before the cluster exists.
    pub term: Option<Term>,
    /// Its phase.
    pub phase: Option<Phase>,
    /// The node of the term.
    pub primary: Option<NodeId>,
    /// Mode of the policy in force.
    pub mode: Option<Mode>,
    /// The policy in force.
    pub policy: Option<PolicyRecord>,
    /// Since when commits are not protected although the mode is strict.
    pub suspended: Option<Suspension>,
    /// Does the manager that answers lead?
    pub leading: bool,
    /// The leading manager, if known.
    pub leader: Option<Leader>,
    /// Every member, ordered by name.
    pub nodes: Vec<NodeStatus>,
    /// Proxies known to etcd.
    pub proxies: Vec<ProxyStatus>,
    /// Would losing the primary now be safe?
    pub safe_to_lose_primary: Safety,
    /// An operator wants no change of primary by itself.
    #[serde(default)]
    pub paused: Option<PauseRecord>,
    /// What the planner does or waits for.
    pub verdict: Verdict,
    /// `verdict` in words.
    pub verdict_text: Vec<String>,
    /// The last change of primary known to this manager.
    pub last_failover: Option<JournalRecord>,
    /// Age of what was read from etcd, ms.
    pub records_ms_ago: Option<u64>,
    /// Members of etcd whose leases are known to misbehave, each with its version.
    #[serde(default)]
    pub outdated_etcd: Vec<String>,
}

/// The leading manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its id.
    pub id: String,
    /// Its admin address.
    pub admin: String,
}

/// A proxy as it registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Its id.
    pub id: String,
    /// The term it acts on.
    pub term: Term,
    /// The oldest epoch of the policy that it acts on.
    #[serde(default)]
    pub epoch: u64,
    /// Its gate.
    pub gate: String,
    /// Sessions busy on the primary.
    pub busy: u64,
}

/// Would losing the primary now be safe?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Safety {
    /// Enough nodes could be frozen and enough would follow, so the cluster would open again without loss.
    pub safe: bool,
    /// It would lose nothing that the mode promises: in async mode that is little.
    #[serde(default)]
    pub as_promised: bool,
    /// Why not; in async mode, what would be lost.
    pub why: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeId,
    /// Where its PostgreSQL listens.
    pub postgres: Endpoint,
    /// By what its PostgreSQL is; `None` when that is not known or it is stopped.
    pub role: Option<Role>,
    /// `primary`, `superseded` (it runs as the primary of an older term), `streaming` (from the primary, on its
    /// timeline), `standby`, `frozen`, `starting`, `stopped`, `absent`, `hung`, `unreachable`, `fenced`.
    pub state: String,
    /// It votes.
    pub voter: bool,
    /// Its agent answered lately.
    pub agent_reachable: bool,
    /// Since when nothing was heard of its agent, ms.
    pub silent_ms: u64,
    /// Its timeline.
    pub timeline: Option<TimelineId>,
    /// Received (standby) or written (primary) up to here.
    pub receive_lsn: Option<Lsn>,
    /// Replayed up to here.
    pub replay_lsn: Option<Lsn>,
    /// Bytes of the primary's last known WAL not replayed here.
    pub replay_lag_bytes: Option<u64>,
    /// How long ago the primary passed the position replayed here, ms.
    pub replay_lag_ms: Option<u64>,
    /// The node it streams from.
    pub streams_from: Option<NodeId>,
    /// Fenced by an operator.
    pub fenced: bool,
    /// By whom, and when.
    #[serde(default)]
    pub fence: Option<FenceRecord>,
    /// Neither counted nor chosen before it has replayed past here.
    pub quarantine: Option<crate::api::Position>,
    /// Rejoin under way.
    pub rejoin: Option<String>,
    /// Highest term promised.
    pub promise: Option<Term>,
    /// An operator works on it.
    #[serde(default)]
    pub maintenance: Option<MaintenanceRecord>,
    /// What it is meant for.
    #[serde(default)]
    pub standing: Standing,
    /// What is wrong there.
    pub trouble: Option<String>,
    /// What its last report said, whole.
    pub agent: Option<AgentState>,
}

impl Planner {
    /// The status at `now`. `leader` is the manager known to lead.
    pub fn status(&self, now: Instant, cluster: &str, leader: Option<Leader>) -> Status {
        let term = self.seen.term();
        let policy = self.seen.policy().cloned();
        Status {
            cluster: cluster.to_owned(),
            term: term.map(|t| t.term),
            phase: term.map(|t| t.phase),
            primary: term.and_then(|t| t.node.clone()),
            mode: policy.as_ref().map(|p| p.mode),
            suspended: policy.as_ref().and_then(|p| p.suspended.clone()),
            policy,
            leading: self.leads(),
            leader,
            nodes: self.seen.records.members.keys().map(|n| self.node_status(now, n)).collect(),
            proxies: self.proxy_status(),
            safe_to_lose_primary: self.safety(now),
            paused: self.seen.records.pause.clone(),
            verdict: self.verdict.clone(),
            verdict_text: self.without_etcd(now).map_or_else(|| words(&self.verdict), |gone| vec![gone]),
            last_failover: self.last.clone(),
            records_ms_ago: self.seen.read_at.map(|at| millis(now.since(at))),
            outdated_etcd: Vec::new(),
        }
    }

    fn proxy_status(&self) -> Vec<ProxyStatus> {
        let proxies = self.seen.records.proxies.iter();
        proxies
            .map(|(id, p)| ProxyStatus {
                id: id.clone(),
                term: p.term,
                epoch: p.epoch,
                gate: p.gate.clone(),
                busy: p.busy,
            })
            .collect()
    }

    fn node_status(&self, now: Instant, node: &NodeId) -> NodeStatus {
        let reachable = self.seen.reachable(node, now, &self.settings);
        let known = self.seen.agents.get(node).and_then(|a| a.state.as_ref());
        let postgres = reachable.map(|s| &s.postgres);
        let (timeline, receive_lsn, replay_lsn) = match postgres {
            Some(PostgresState::Standby(s)) => (Some(s.timeline), Some(s.receive_lsn), Some(s.replay_lsn)),
            Some(PostgresState::Primary(p)) => (Some(p.timeline), Some(p.insert_lsn), None),
            Some(PostgresState::Stopped { timeline, .. }) => (Some(*timeline), None, None),
            Some(PostgresState::Absent | PostgresState::Starting | PostgresState::Hung { .. }) | None => {
                (None, None, None)
            }
        };
        let term = self.seen.term().map_or(Term(0), |t| t.term);
        let head = self.clock.last(term);
        NodeStatus {
            node: node.clone(),
            postgres: self
                .seen
                .records
                .members
                .get(node)
                .map_or_else(|| Endpoint { host: String::new(), port: 0 }, |m| m.postgres.clone()),
            role: match postgres {
                Some(PostgresState::Primary(_)) => Some(Role::Primary),
                Some(PostgresState::Standby(_)) => Some(Role::Standby),
                _ => None, // unknown or not running
            },
            state: self.node_word(now, node, reachable),
            voter: self.seen.policy().is_some_and(|p| p.counts(node)),
            agent_reachable: reachable.is_some(),
            silent_ms: millis(self.seen.silent_for(node, now)),
            timeline,
            receive_lsn,
            replay_lsn,
            replay_lag_bytes: head.zip(replay_lsn).map(|(h, r)| h.bytes_since(r)),
            replay_lag_ms: replay_lsn.and_then(|r| self.clock.lag_ms(term, r, now)),
            streams_from: self.seen.streaming(node, now, &self.settings).and_then(|s| s.streams_from.clone()),
            fenced: self.seen.fenced(node),
            fence: self.seen.records.fences.get(node).cloned(),
            quarantine: known.and_then(|s| s.quarantine),
            rejoin: reachable.and_then(|s| s.rejoin.clone()),
            promise: known.map(|s| s.promise),
            maintenance: self.seen.records.maintenance.get(node).cloned(),
            standing: self.standing(node),
            trouble: known.and_then(|s| s.trouble.clone()),
            agent: known.cloned(),
        }
    }

    fn node_word(&self, now: Instant, node: &NodeId, reachable: Option<&AgentState>) -> String {
        let Some(state) = reachable else { return "unreachable".into() };
        if self.seen.fenced(node) {
            return "fenced".into();
        }
        match &state.postgres {
            PostgresState::Absent => "absent",
            PostgresState::Stopped { .. } => "stopped",
            PostgresState::Starting => "starting",
            PostgresState::Hung { .. } => "hung",
            PostgresState::Primary(p) if !self.is_of_term(node, p.timeline) => "superseded",
            PostgresState::Primary(_) => "primary",
            // From a primary of an older term, or not past the fork yet, it only follows half-way.
            PostgresState::Standby(_) if self.seen.streaming(node, now, &self.settings).is_some() => "streaming",
            PostgresState::Standby(_) if state.frozen_for.is_some() => "frozen",
            PostgresState::Standby(_) => "standby",
        }
        .into()
    }

    /// Is the node, writing `timeline`, the primary of the current term?
    fn is_of_term(&self, node: &NodeId, timeline: TimelineId) -> bool {
        self.is_term_node(node) && self.seen.term().is_some_and(|t| t.term.timeline() == Some(timeline))
    }

    /// Would a failover now find enough recruits, and then enough followers to open?
    pub fn safety(&self, now: Instant) -> Safety {
        let not = |why: Vec<String>| Safety { safe: false, as_promised: false, why };
        if !self.leads() {
            return not(vec![self.without_etcd(now).unwrap_or_else(|| "this manager does not lead".into())]);
        }
        let (Some(term), Some(policy)) = (self.seen.term(), self.seen.policy()) else {
            return not(vec![self.no_cluster().to_string()]);
        };
        let Some(primary) = self.seen.open_primary() else {
            return not(vec![format!("term {} is not open", term.term)]);
        };
        let mut why: Vec<String> = Vec::new();
        why.extend(self.too_few(now, policy, Some(primary)).iter().map(ToString::to_string));
        if why.is_empty() {
            why.extend(self.leans_on_maintained(now, policy, primary));
        }
        // One that could be frozen but does not stream is of no help before it has been repaired.
        let follows = |n: &&NodeId| {
            *n != primary && self.unfit(n, now).is_none() && self.seen.streaming(n, now, &self.settings).is_some()
        };
        let there: Vec<NodeId> =
            self.seen.agents.keys().filter(|n| policy.counts(n)).filter(follows).cloned().collect();
        let needed = sync_set::open_quorum(policy) as usize;
        // Whichever of them becomes primary, the others must do.
        let opens = |c: &NodeId| sync_set::opens(policy, c, &there);
        // In available mode a term opens alone, on record.
        let alone = policy.mode == Mode::Available && !there.is_empty();
        if !alone && !there.iter().any(opens) {
            let there = there.len();
            why.push(format!("{there} standbys stream; a candidate and {needed} followers are needed to open"));
        }
        if let Verdict::Hold { blockers } = &self.verdict {
            why.extend(blockers.iter().map(ToString::to_string));
        }
        let spent = self.failovers_spent(now);
        if spent >= self.settings.failover_budget {
            why.push(format!("the budget of {spent} automatic failovers is spent"));
        }
        if let Some(pause) = &self.seen.records.pause {
            why.push(Blocker::Paused { by: pause.by.clone(), why: pause.why.clone() }.to_string());
        }
        if let Some(s) = policy.suspended.as_ref().filter(|s| s.lowered.is_some() && policy.mode != Mode::Async) {
            why.push(format!("commits past {} (term {}) are on no standby for certain: {}", s.since, s.term, s.why));
        }
        why.extend(self.impostors(now, primary));
        why.extend(self.in_doubt().map(|b| b.to_string()));
        let as_promised = why.is_empty();
        if policy.mode == Mode::Async {
            why.push("async mode: what no standby has received would be lost".into());
        }
        why.dedup();
        Safety { safe: why.is_empty(), as_promised, why }
    }

    /// Somebody acknowledges commits in the name of a standby, and no failover would ask him.
    fn impostors(&self, now: Instant, primary: &NodeId) -> Option<String> {
        match &self.seen.reachable(primary, now, &self.settings)?.postgres {
            PostgresState::Primary(p) if !p.impostors.is_empty() => {
                Some(format!("the newest commits may be with impostors only: {}", list(&p.impostors)))
            }
            _ => None, // what does not answer as primary tells of none
        }
    }

    /// What it means that etcd does not answer this manager, once that has lasted.
    fn without_etcd(&self, now: Instant) -> Option<String> {
        let silent = self.seen.read_at.map(|at| now.since(at)).filter(|s| *s >= ETCD_SILENT)?;
        Some(format!("etcd has not answered this manager for {} ms: no failover is possible", millis(silent)))
    }

    /// Recruits needed and there, for the metrics.
    pub fn recruits(&self, now: Instant) -> Option<(usize, usize)> {
        let (policy, prev) = (self.seen.policy()?, self.last_tenure()?);
        let there = sync_set::others(policy, &prev, &self.prospects(now)).len();
        Some((sync_set::needed(policy, Some(&prev.node)), there))
    }
}

fn words(verdict: &Verdict) -> Vec<String> {
    match verdict {
        Verdict::Following => vec!["this manager does not lead".into()],
        Verdict::Steady => vec!["nothing to do".into()],
        Verdict::Acting { term, step } => vec![format!("term {term}: {step}")],
        Verdict::Hold { blockers } => vec![list(blockers)],
    }
}
